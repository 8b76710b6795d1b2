"""What is shared is used by many threads at once: by those of ``pytest-run-parallel``, where that is installed.

``make stress`` has eight threads begin each test in the same moment, on one app and its handle. On a free-threaded build
nothing but our locks stands between them. Otherwise each is a test of one thread.
"""

from __future__ import annotations

import asyncio
import itertools
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.doubles import check_invariants, wait_until
from threadserve import futures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CALLS = 50
GIVE_UP_S = 60
NAME: ContextVar[int] = ContextVar("tests_name", default=0)

_names = itertools.count(1)


class Counter:
    """Counts without a lock: right only if one body at a time runs."""

    def __init__(self) -> None:
        self.total = 0
        self.running = 0

    def add(self, count: int) -> int:
        self.running += 1
        alone = self.running
        for _ in range(count):
            self.total += 1
        self.running -= 1
        return alone

    def get(self) -> int:
        return self.total


class Bodies:
    """One body of each kind."""

    def __init__(self, counter: Any) -> None:
        self.counter = counter

    def same(self, value: Any) -> Any:
        return value

    async def later(self, value: Any) -> Any:
        await asyncio.sleep(0)
        return value

    def count(self, count: int) -> int:
        alone: int = self.counter.add.remote(count).result()
        return alone

    def items(self, count: int) -> Iterator[int]:
        yield from range(count)

    async def items_later(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    def fail(self, value: int) -> None:
        raise ValueError(value)

    async def forever(self) -> None:
        await asyncio.Event().wait()

    def name(self) -> int:
        return NAME.get()


@pytest.fixture(autouse=True)
def nobody_helps() -> None:
    """Stand for the fixture of this name that patches: a test with a patch is not run by several threads."""


@pytest.fixture
def handle() -> Iterator[Any]:
    counter = serve.deployment(Counter, max_ongoing_requests=1).bind()
    bodies: Any = serve.deployment(Bodies, num_replicas=2, max_ongoing_requests=4)
    with serve.running(bodies.bind(counter), name="shared") as handle:
        yield handle
        for name in ("Bodies", "Counter"):
            router: Any = serve.get_deployment_handle(name, "shared")._router
            wait_until(lambda router=router: router.statistics().ongoing == 0)  # type: ignore[misc]
            check_invariants(router)


@pytest.fixture
def shared(handle: Any) -> tuple[Any, Any]:
    """Two calls whose responses everybody has: of one that returns and of one that fails."""
    return handle.later.remote("shared"), handle.fail.remote(7)


class TestOneHandle:
    def test_gives_everybody_his_own_answers(self, handle: Any) -> None:
        mine = next(_names)
        calls = [
            handle.options(method_name=("same", "later")[number % 2]).remote((mine, number))
            for number in range(CALLS)
        ]

        assert [call.result(timeout_s=GIVE_UP_S) for call in calls] == [(mine, n) for n in range(CALLS)]
        assert [handle.same.remote(number).result() for number in range(CALLS)] == [*range(CALLS)]

    def test_chains_what_everybody_sends(self, handle: Any) -> None:
        for number in range(CALLS // 5):
            call = handle.same.remote(number)
            for method in ("later", "same", "later"):
                call = handle.options(method_name=method).remote(call)
            assert call.result() == number

    def test_carries_the_context_of_each_caller(self, handle: Any) -> None:
        def call() -> None:
            mine = next(_names)
            NAME.set(mine)
            assert {handle.name.remote().result(timeout_s=GIVE_UP_S) for _ in range(CALLS)} == {mine}

        copy_context().run(call)

    @pytest.mark.parametrize("method", ["items", "items_later"])
    def test_streams_to_everybody_in_order(self, handle: Any, method: str) -> None:
        stream = handle.options(stream=True, method_name=method)

        assert list(stream.remote(300)) == [*range(300)]
        left = stream.remote(10**9)
        assert next(left) == 0
        left.close()

    def test_answers_what_is_cancelled_once(self, handle: Any) -> None:
        calls = [handle.forever.remote() for _ in range(3)]
        for call in calls:
            call.cancel()

        assert [type(call.exception()) for call in calls] == [serve.RequestCancelledError] * 3

    def test_keeps_deadlines(self, handle: Any) -> None:
        assert isinstance(
            handle.options(timeout_s=0.01).forever.remote().exception(), serve.RequestTimeoutError
        )

    def test_gathers(self, handle: Any) -> None:
        calls = [handle.later.remote(number) for number in range(CALLS)]

        assert sorted(call.result() for call in futures.as_completed(calls)) == [*range(CALLS)]
        assert futures.gather(*calls).result() == [*range(CALLS)]

    def test_lets_one_body_at_a_time_have_the_only_slot(self, handle: Any) -> None:
        counter = serve.get_deployment_handle("Counter", "shared")
        before = counter.get.remote().result()

        assert {handle.count.remote(20).result(timeout_s=GIVE_UP_S) for _ in range(20)} == {1}
        assert counter.get.remote().result() >= before + 400


class TestOneResponse:
    def test_has_the_same_value_for_all(self, shared: Any) -> None:
        value, _error = shared

        assert {value.result(), value.future.result()} == {"shared"}
        assert value.future is value.future
        assert value.done()

    def test_raises_its_error_for_each(self, shared: Any) -> None:
        _value, error = shared

        for _ in range(10):
            with pytest.raises(ValueError, match="7") as caught:
                error.result()
            assert caught.value.args == (7,)

    def test_is_made_and_read_and_cancelled_by_several(self, handle: Any) -> None:
        call = handle.later.remote(1)
        call.cancel()

        assert call.done()
        assert call.future.done()


class TestTheRuntime:
    def test_runs_and_deletes_apps_while_others_call(self, handle: Any) -> None:
        name = f"own {next(_names)}"
        own: Any = serve.deployment(Counter).bind()
        mine = serve.run(own, name=name, route_prefix=None)
        calls = [mine.add.remote(1) for _ in range(10)]
        answers = [call.exception(timeout_s=GIVE_UP_S) for call in calls]
        assert name in serve.status().applications
        serve.delete(name)

        assert answers == [None] * 10
        assert isinstance(mine.get.remote().exception(), serve.DeploymentUnavailableError)
        assert name not in serve.status().applications
        assert handle.same.remote(1).result() == 1

    def test_shows_its_status_to_all(self, handle: Any) -> None:
        for _ in range(CALLS // 5):
            call = handle.later.remote(0)
            status = serve.status().applications["shared"]
            assert set(status.deployments) == {"Bodies", "Counter"}
            assert call.result() == 0
