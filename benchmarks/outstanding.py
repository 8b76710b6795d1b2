"""What do calls cost that wait in the queue, in time and memory, and does each cost more when there are more?"""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import time
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.measure import Case, Key

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from benchmarks.measure import Run

QUESTION = (
    "What does a queued call cost, in time and memory, and does it cost more when there are more of them?"
)

GROWTH = "how each grows"
COUNTS = (1_000, 10_000, 100_000)


def subject(count: int) -> str:
    return f"{count:,} outstanding"


def growth(low: int, high: int) -> str:
    return f"{high:,} against {low:,}"


class Bench:
    """A contender whose one worker can be kept waiting, so that what is submitted stays queued."""

    def __init__(self, open_with: Callable[[peers.Work], peers.Connect]) -> None:
        self._begun = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)
        self._client = open_with(self._work)()

    def _work(self, value: int) -> int:
        if value < 0:
            self._begun.release()
            self._gate.acquire()
        return value

    def times(self, count: int) -> dict[str, float]:
        """Return what it takes to submit each, and to have each run and answered once the worker may."""
        with self._kept_waiting(), collector_watched() as collected:
            start = time.perf_counter()
            answers = self._submit(count)
            submitted = time.perf_counter() - start
        start = time.perf_counter()
        self._take(answers)
        drained = time.perf_counter() - start
        figures = {"submit each": submitted, "of which collector": sum(collected), "drain each": drained}
        return {name: seconds / count * 1e6 for name, seconds in figures.items()}

    def memory(self, count: int) -> dict[str, float]:
        """Return what is allocated for each while it waits."""
        with self._kept_waiting():
            tracemalloc.start()
            try:
                answers = self._submit(count)
                size, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        self._take(answers)
        return {"memory each": size / count / 1024}

    @contextlib.contextmanager
    def _kept_waiting(self) -> Any:
        gc.collect()
        self._held = self._client.submit(-1)
        self._begun.acquire()
        try:
            yield
        finally:
            self._gate.release()

    def _submit(self, count: int) -> list[Any]:
        submit = self._client.submit
        return [submit(0) for _ in itertools.repeat(None, count)]

    def _take(self, answers: list[Any]) -> None:
        result = self._client.result
        result(self._held)
        for answer in answers:
            result(answer)
        del self._held


@contextlib.contextmanager
def collector_watched() -> Generator[list[float]]:
    """Note how long each run of the garbage collector takes, in seconds."""
    took: list[float] = []
    begun = 0.0

    def note(phase: str, _info: object) -> None:
        nonlocal begun
        if phase == "start":
            begun = time.perf_counter()
        else:
            took.append(time.perf_counter() - begun)

    gc.callbacks.append(note)
    try:
        yield took
    finally:
        gc.callbacks.remove(note)


def enter(stack: contextlib.ExitStack, peer: peers.Peer, work: peers.Work) -> peers.Connect:
    return stack.enter_context(peer.open(work, 1))


def measure(run: Run) -> None:
    counts = run.effort.pick(smoke=(100, 1_000), quick=COUNTS, full=COUNTS)
    rounds = run.effort.pick(smoke=0, quick=2, full=7)
    with contextlib.ExitStack() as stack:
        benches: dict[str, Bench] = {}
        for peer in peers.present([peers.OURS_ONE_AT_A_TIME, *peers.THREADS], run):
            benches[peer.name] = Bench(partial(enter, stack, peer))
        cases: list[Case] = []
        for count in counts:
            for name, bench in benches.items():
                cases.append(Case(subject(count), name, partial(bench.times, count)))
                cases.append(Case(subject(count), name, partial(bench.memory, count)))
        for low, high in itertools.pairwise(counts):
            for name in benches:
                for figure in ("submit each", "drain each", "memory each"):
                    ends = [Key("", subject(count), name, figure) for count in (low, high)]
                    key = Key(GROWTH, growth(low, high), name, f"{figure}, growth")
                    run.derive(key, ends, lambda few, many: many / few)
        run.note(
            "memory: what tracemalloc sees allocated between the first submit and the last, in a run of its own"
        )
        run.note(
            f"{peers.OURS_ONE_AT_A_TIME.name}: one replica, max_ongoing_requests=1, as one worker of the others"
        )
        run.rounds(cases, rounds)
