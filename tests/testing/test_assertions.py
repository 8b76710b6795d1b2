"""Assertions about calls hold of what is so, and say what is not."""

from __future__ import annotations

from typing import Any

import pytest

import threadserve as serve
from threadserve.testing.assertions import (
    assert_answered,
    assert_max_concurrency,
    assert_no_leaks,
    assert_order,
)
from threadserve.testing.simulator import current_simulation, simulate
from threadserve.testing.traces import Step, Trace


class Worker:
    def __init__(self) -> None:
        self.is_open = False

    def work(self) -> None:
        while not self.is_open:
            current_simulation().advance(0.1)
            serve.check_cancelled()

    def open(self) -> None:
        self.is_open = True

    def forever(self) -> Any:
        while True:
            yield 1


def worker(**options: Any) -> Any:
    return serve.deployment(Worker).options(**options).bind()


def test_the_most_at_once_is_what_the_options_allow() -> None:
    with simulate(worker(num_replicas=2, max_ongoing_requests=2)) as handle:
        calls = [handle.work.remote() for _ in range(9)]
        current_simulation().settle()
        for call in calls:
            call.cancel()

        assert_max_concurrency("Worker", 4)
        assert_max_concurrency("default/Worker", 2, per_replica=True)
        with pytest.raises(
            AssertionError, match=r"default/Worker had 4 bodies under way at step .* at most 3"
        ):
            assert_max_concurrency("Worker", 3)
        with pytest.raises(AssertionError, match=r"default/Worker#\d had 2 bodies under way"):
            assert_max_concurrency("Worker", 1, per_replica=True)


def test_a_trace_can_be_looked_at_afterwards() -> None:
    with simulate(worker(max_ongoing_requests=1)) as handle:
        handle.open.remote().result()

    assert_max_concurrency("Worker", 1)
    assert_order("Worker")
    with pytest.raises(AssertionError, match="no calls of 'Walker'"):
        assert_order("Walker")


def trace(*steps: tuple[str, str, int]) -> Trace:
    return Trace(
        [
            Step(at, 0.0, thread, verb, "app/D", "m", number, None, thread.partition(" ")[0])
            for at, (thread, verb, number) in enumerate(steps)
        ]
    )


def test_bodies_that_begin_out_of_order_are_named() -> None:
    out_of_order = trace(
        ("main", "calls", 1),
        ("main", "calls", 2),
        ("app/D#0 worker 1", "begins", 2),
        ("app/D#1 worker 1", "begins", 1),
    )

    with pytest.raises(
        AssertionError, match="app/D: request 1 was made before request 2 and began after it, at step 3"
    ):
        assert_order("D", trace=out_of_order)
    assert_order("D", per_replica=True, trace=out_of_order)


def test_calls_in_turn_are_not_at_once() -> None:
    in_turn = trace(
        ("main", "calls", 1),
        ("app/D#0 worker 1", "begins", 1),
        ("app/D#0 worker 1", "fails with KeyError", 1),
        ("main", "calls", 2),
        ("app/D#0 worker 1", "begins", 2),
    )

    assert_max_concurrency("D", 1, trace=in_turn)


def test_a_call_without_an_answer_is_named() -> None:
    with simulate(worker()) as handle:
        working, opening = handle.work.remote(), handle.open.remote()
        opening.result()
        assert_answered(opening)
        current_simulation().advance(1)
        assert_answered(working, opening)
        hanging = serve.run(worker(), name="other").work.remote()
        with pytest.raises(
            AssertionError, match=r"1 of 2 calls have no answer:\n<DeploymentResponse of other/Worker\.work"
        ):
            assert_answered(hanging, opening)
        hanging.cancel()


def test_what_is_left_is_named_by_kind() -> None:
    with simulate(worker()) as handle:
        assert_no_leaks(handle)
        call, stream = handle.work.remote(), handle.options(stream=True).forever.remote()
        with pytest.raises(AssertionError) as caught:
            assert_no_leaks()
        assert "unanswered: default/Worker.work (request" in str(caught.value)
        assert "open stream: default/Worker.forever (request" in str(caught.value)
        call.cancel()
        stream.close()
        assert_no_leaks(handle)
