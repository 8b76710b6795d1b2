"""Hypothesis around apps on real threads: fast enough for its health checks, and one example from end to end."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import Phase, assume, event, given, note, settings
from hypothesis import strategies as st
from hypothesis.control import currently_in_test_context

import threadserve as serve
from threadserve.testing import example

example.carry()  # as Hypothesis does by itself where threadserve is installed

RUN = serve.run
"""Asked for here, or the first example would load the runtime."""
BY_DEFAULT = settings.get_profile("default")
"""What users have: a deadline of 200 ms, and all health checks."""


class Inner:
    def __call__(self, number: int) -> int:
        return number

    def picky(self, number: int) -> int:
        assume(number % 2 == 0)
        note(f"inner saw {number}")
        assert number < 100, "too large"
        return number

    async def picky_async(self, number: int) -> int:
        return self.picky(number)

    def is_in_example(self) -> bool:
        return currently_in_test_context()

    def draw(self, data: Any) -> int:
        return data.draw(st.integers(5, 9), label="inside")  # type: ignore[no-any-return]

    def tell(self) -> None:
        event("was inside")


class Outer:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, number: int) -> int:
        return self.inner.remote(number).result()  # type: ignore[no-any-return]

    async def picky(self, number: int) -> int:
        return await self.inner.picky_async.remote(number)  # type: ignore[no-any-return]


APP: Any = serve.deployment(Outer).bind(serve.deployment(Inner).bind())
INNER: Any = serve.deployment(Inner).bind()


def test_a_hundred_apps_are_started_and_stopped_within_the_default_deadline() -> None:
    runs = []

    @settings(BY_DEFAULT, max_examples=100)
    @given(st.integers())
    def holds(number: int) -> None:
        with serve.running(APP) as handle:
            assert handle.remote(number).result() == number
        runs.append(number)

    before = threading.active_count()
    holds()

    assert len(runs) >= 100
    assert threading.active_count() <= before + 2, "the kernel's timer and reaper may have come"


def test_an_assumption_in_a_replica_rejects_the_example_that_called() -> None:
    passed: list[int] = []

    @settings(BY_DEFAULT, max_examples=50)
    @given(st.integers(0, 99))
    def holds(number: int) -> None:
        with serve.running(INNER) as handle:
            passed.append(handle.picky.remote(number).result())

    holds()

    assert passed
    assert all(number % 2 == 0 for number in passed)


@pytest.mark.parametrize("app", [APP, INNER], ids=["through another replica", "directly"])
def test_a_failed_assertion_in_a_replica_shrinks_and_brings_its_notes(app: Any) -> None:
    @settings(BY_DEFAULT, database=None)
    @given(st.integers())
    def holds(number: int) -> None:
        with serve.running(app) as handle:
            handle.picky.remote(number).result()

    with pytest.raises(AssertionError, match="too large") as caught:
        holds()

    notes = "\n".join(caught.value.__notes__)
    assert "number=100" in notes
    assert notes.count("inner saw 100") == 1


def test_an_event_in_a_replica_counts_for_the_example() -> None:
    @settings(BY_DEFAULT, max_examples=5, phases=[Phase.generate])
    @given(st.data())
    def holds(data: Any) -> None:
        with serve.running(INNER) as handle:
            handle.tell.remote().result()
        events = data.conjecture_data.events
        assert "was inside" in events

    holds()


def test_a_replica_can_draw_and_what_it_drew_is_part_of_the_example() -> None:
    @settings(BY_DEFAULT, database=None)
    @given(st.data())
    def holds(data: Any) -> None:
        with serve.running(INNER) as handle:
            assert handle.draw.remote(data).result() < 7

    with pytest.raises(AssertionError) as caught:
        holds()

    assert "Draw 1 (inside): 7" in "\n".join(caught.value.__notes__)


def test_outside_of_an_example_nothing_is_carried() -> None:
    with serve.running(INNER) as handle:
        assert not handle.is_in_example.remote().result()
    assert not example.is_drawing()


def test_examples_in_two_threads_stay_apart() -> None:
    """Each thread has an example of its own; a note of one must not be shown with the other's failure."""
    notes: dict[int, str] = {}

    def search(limit: int) -> None:
        @settings(BY_DEFAULT, database=None, deadline=None, phases=[Phase.generate, Phase.shrink])
        @given(st.integers(0, 1000))
        def holds(number: int) -> None:
            with serve.running(INNER) as handle:
                note(f"{limit} is the limit")
                assert handle.remote(number).result() < limit

        with pytest.raises(AssertionError) as caught:
            holds()
        notes[limit] = "\n".join(caught.value.__notes__)

    threads = [threading.Thread(target=search, args=(limit,)) for limit in (3, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for limit, other in ((3, 30), (30, 3)):
        assert f"number={limit}" in notes[limit]
        assert f"{limit} is the limit" in notes[limit]
        assert f"\n{other} is the limit" not in notes[limit]


def test_a_version_of_hypothesis_that_keeps_it_elsewhere_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Elsewhere:
        value = None

    monkeypatch.setattr("hypothesis.control._current_build_context", Elsewhere())

    example.carry()

    assert not hasattr(Elsewhere, "data")
