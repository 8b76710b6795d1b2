"""Where does the time of a call go, that the waiting thread runs itself?"""

from __future__ import annotations

import gc
import time
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import threadserve as serve
from benchmarks.measure import Case, latency
from threadserve.call.request import Request
from threadserve.call.response import DeploymentResponse
from threadserve.concurrency.outcome import Value
from threadserve.concurrency.real import RealKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.measure import Run

QUESTION = "Where does the time of a call go, that the waiting thread runs itself?"

OURS = "threadserve"
WHOLE = "the whole: remote(x).result()"
DIRECT = "the body alone, called directly"


def same(value: int) -> int:
    return value


def each(step: Callable[[Any], object], given: Iterable[Any]) -> dict[str, float]:
    """Take a step with each of `given`, and return what one takes, in us; the collector does not come between."""
    things = list(given)
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for thing in things:
            step(thing)
        return {"each": (time.perf_counter() - start) / len(things) * 1e6}
    finally:
        gc.enable()


class Stages:
    """Takes calls through their steps one step at a time, many calls at each.

    The router is that of a deployment, which believes that a worker is on its way: as it is when a thread makes
    one call after the other and helps itself.
    """

    def __init__(self, handle: Any, count: int) -> None:
        self.handle = handle
        self.count = count
        self.router = handle._router
        handle.remote(0).result()
        (self.seat,) = self.router._seats
        self.router._is_waking = True
        self.context = copy_context()
        self.kernel = RealKernel()

    def new(self) -> list[Request]:
        return [self.make(number) for number in range(self.count)]

    def make(self, number: int) -> Request:
        return Request(self.router, "__call__", (number,), {}, copy_context(), 1)

    def queued(self) -> list[Request]:
        requests = self.new()
        for request in requests:
            self.router.assign(request)
        return requests

    def claimed(self) -> list[Request]:
        requests = self.queued()
        for request in requests:
            self.claim(request)
        return requests

    def claim(self, request: Request) -> None:
        """Claim the head, as a thread does that helps; that all are claimed at once needs as many slots."""
        with self.router.lock:
            self.router._claim(self.seat)

    def run(self, request: Request) -> None:
        self.seat.replica.run(request)

    def end(self, request: Request) -> None:
        self.router.end(self.seat, request, Value(1))

    def let_go(self, requests: list[Request]) -> None:
        """Have the books in order again, without the time that this takes."""
        for request in requests:
            if request not in self.seat.running:
                self.claim(request)
            self.end(request)

    def sample(self, step: str) -> dict[str, float]:
        if step == "copy the context":
            return each(lambda _: copy_context(), range(self.count))
        if step == "make the request, the context included":
            return each(self.make, range(self.count))
        if step == "make the response":
            return each(DeploymentResponse, self.new())
        if step == "admit":
            requests = self.new()
            found = each(self.router.assign, requests)
        elif step == "claim":
            requests = self.queued()
            found = each(self.claim, requests)
        elif step == "run the body in its context":
            requests = self.claimed()
            found = each(self.run, requests)
        elif step == "give the slot back and answer":
            requests = self.claimed()
            return each(self.end, requests)
        else:
            assert step == "fetch the value of an answer", step
            requests = self.claimed()
            self.let_go(requests)
            return each(DeploymentResponse.result, [DeploymentResponse(request) for request in requests])
        self.let_go(requests)
        return found


STEPS = (
    "copy the context",
    "make the request, the context included",
    "make the response",
    "admit",
    "claim",
    "run the body in its context",
    "give the slot back and answer",
    "fetch the value of an answer",
)


def measure(run: Run) -> None:
    count = run.effort.pick(smoke=10, quick=1_000, full=5_000)
    deployment: Any = serve.deployment(same, max_ongoing_requests=count)
    with (
        serve.running(deployment.bind(), name="steps") as stepped,
        serve.running(serve.deployment(same).bind()) as handle,
    ):
        stages = Stages(stepped, count)
        run.rounds(
            [
                Case(DIRECT, OURS, lambda: each(same, range(count))),
                *(Case(step, OURS, partial(stages.sample, step)) for step in STEPS),
                Case(WHOLE, OURS, lambda: {"each": latency(lambda: handle.remote(1).result(), 0.02)["p50"]}),
            ]
        )
        stages.router._is_waking = False
    run.note(
        "each step is taken with all calls before the next one is, so nothing of a call is in a cache; the whole is p50"
    )
    run.note("a lock is taken in three of them: admit, claim, give back")
