"""Calls made where the stack is almost full: each comes about or was never made, and what it called stays in order."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.doubles import check_invariants, wait_until
from threadserve.concurrency.threads import is_stack_full

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.handle import DeploymentHandle

    Deed = Callable[[DeploymentHandle[Any]], object]

WAIT_S = 10.0

DEEDS: dict[str, Deed] = {
    "send": lambda handle: handle.add.remote(1),
    "send to a loop": lambda handle: handle.add_async.remote(1),
    "ask": lambda handle: handle.add.remote(1).result(),
    "ask a loop": lambda handle: handle.add_async.remote(1).result(),
    "ask a chain": lambda handle: handle.add.remote(handle.add_async.remote(1)).result(),
}


class Adder:
    def add(self, number: int) -> int:
        return number + 1

    async def add_async(self, number: int) -> int:
        return number + 1


def with_frames_left(left: int, deed: Callable[[], object]) -> None:
    """Call `deed` where about `left` frames more are the end of the stack."""

    def measure() -> int:
        try:
            return measure() + 1
        except RecursionError:
            return 0

    def descend(depth: int) -> None:
        if depth:
            descend(depth - 1)
        else:
            deed()

    descend(measure() - left - 5)


@pytest.mark.slow
@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_a_call_at_the_end_of_the_stack_is_made_or_is_not_but_never_half_made(deed: Deed) -> None:
    assert 0 < sum(is_refused(left, deed) for left in range(60)) < 60


def is_refused(left: int, deed: Deed) -> bool:
    """Do it in an app of its own, whose threads have not begun, and make sure that the app serves others afterwards."""
    refused = False
    with serve.running(serve.deployment(Adder).bind()) as handle:
        try:
            with_frames_left(left, lambda: deed(handle))
        except RecursionError:
            refused = True

        found: list[int] = []
        later = threading.Thread(target=lambda: found.extend(ask_both(handle)))
        later.start()
        later.join()

        assert found == [2, 2]
        router: Any = handle._router
        wait_until(lambda: not router.statistics().ongoing)
        assert router.statistics().queued == 0
        check_invariants(router)
    return refused


def ask_both(handle: DeploymentHandle[Any]) -> list[int]:
    return [method.remote(1).result(timeout_s=WAIT_S) for method in (handle.add, handle.add_async)]


def test_a_recursion_without_end_ends_in_its_own_error_and_harms_no_other_call() -> None:
    def recur(handle: DeploymentHandle[Any]) -> None:
        handle.add.remote(1).result()
        recur(handle)

    with serve.running(serve.deployment(Adder).bind()) as handle:
        for _ in range(3):
            with pytest.raises(RecursionError):
                recur(handle)

        assert ask_both(handle) == [2, 2]


def test_the_stack_is_full_a_little_before_its_end_and_not_long_before() -> None:
    seen: dict[int, bool] = {}
    for left in (8, 60):
        with_frames_left(left, lambda left=left: seen.update({left: is_stack_full()}))  # type: ignore[misc]

    assert seen == {8: True, 60: False}
    assert not is_stack_full()
