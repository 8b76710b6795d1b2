"""Work of known kinds: what replicas are scaled with, and what keeps a neighbour busy.

A job says what to do. Whoever runs it notes in a ledger which worker it was, and when it was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import threadserve as serve
from benchmarks import peers

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

__all__ = ["MIXES", "Guest", "Job", "Ledger", "Mix", "adopt", "busy", "calibrate", "compute", "open_mix"]

PIECE = 100
BLOCK = bytes(1 << 16)
STREAMED = 5
STAGES = 4


def _spin(count: int) -> None:
    for _ in range(count):
        sum(range(PIECE))


def _digest(count: int) -> None:
    for _ in range(count):
        hashlib.sha256(BLOCK).digest()  # gives up the GIL, for blocks of this size


_costs: dict[str, float] = {}
"""The seconds of CPU that one piece of each kind of work takes here when nothing else runs."""


def _cost(work: Callable[[int], None]) -> float:
    """Return the best of a few."""
    count = 50

    def once() -> float:
        start = time.thread_time()
        work(count)
        return (time.thread_time() - start) / count

    return min(once() for _ in range(7))


def calibrate() -> dict[str, float]:
    """Find out now, while nothing else runs, how much work takes how long; return it for ``adopt``."""
    for work in (_spin, _digest):
        if work.__name__ not in _costs:
            _costs[work.__name__] = _cost(work)
    return _costs


def adopt(costs: dict[str, float]) -> None:
    """Be told what another interpreter has found out."""
    _costs.update(costs)


def compute(seconds: float) -> None:
    """Do as much pure Python as takes so long alone."""
    _spin(max(1, round(seconds / calibrate()[_spin.__name__])))


def compute_outside(seconds: float) -> None:
    """Do as much work in C, without the GIL, as takes so long alone."""
    _digest(max(1, round(seconds / calibrate()[_digest.__name__])))


class Ledger:
    """Who did how many jobs, and when each was done. Appending and setting an item need no lock."""

    def __init__(self) -> None:
        self.workers: list[int] = []
        self.ends: list[float] = []
        self._done = threading.Semaphore(0)

    def expect(self, count: int) -> None:
        self.workers.clear()
        self.ends = [0.0] * count

    def note(self, number: int, worker: int) -> None:
        self.workers.append(worker)
        if number < len(self.ends):
            self.ends[number] = time.perf_counter()
            self._done.release()

    def wait(self) -> list[float]:
        """Block until all that is expected is done; return when each was."""
        for _ in self.ends:
            self._done.acquire()
        ends, self.ends = self.ends, []
        return ends

    def least_share(self, workers: int) -> float:
        """Return what the idlest worker did, in % of an even share."""
        counts = Counter(self.workers)
        least = min(counts.values(), default=0) if len(counts) == workers else 0
        return 100 * least * workers / max(1, len(self.workers))


class Job(NamedTuple):
    """What to do: so many seconds of a kind of work."""

    number: int
    kind: str
    seconds: float

    def perform(self) -> None:
        match self.kind:
            case "compute":
                compute(self.seconds)
            case "compute outside the GIL":
                compute_outside(self.seconds)
            case "half":
                time.sleep(self.seconds / 2)
                compute(self.seconds / 2)
            case "chain":
                for _ in range(STAGES):
                    time.sleep(self.seconds)
            case _:
                time.sleep(self.seconds)


class Mix(NamedTuple):
    """A sequence of jobs, the same for every contender."""

    name: str
    says: str
    choose: Callable[[int], tuple[str, float]]
    is_for_interpreters: bool = True
    """Whether it is made of plain calls of one deployment, which is what replicas in interpreters are asked here."""

    def job(self, number: int) -> Job:
        return Job(number, *self.choose(number))


def _tail(number: int) -> tuple[str, float]:
    return "sleep", 0.1 if _LONG[number % len(_LONG)] else 0.001


_LONG = [random.Random(seed).random() < 0.05 for seed in range(10_000)]
_KINDS = ("unary", "unary_async", "stream", "stream_async")

MIXES = {
    mix.name: mix
    for mix in (
        Mix("sleep", "5 ms of sleep", lambda _: ("sleep", 0.005)),
        Mix("cpu", "5 ms of pure-Python CPU", lambda _: ("compute", 0.005)),
        Mix("outside", "5 ms of GIL-releasing CPU", lambda _: ("compute outside the GIL", 0.005)),
        Mix("half", "2.5 ms of sleep, then 2.5 ms of pure-Python CPU", lambda _: ("half", 0.005)),
        Mix("tail", "95% of 1 ms of sleep, 5% of 100 ms", _tail),
        Mix(
            "kinds",
            "5 ms of sleep: def, async def, and streams of both",
            lambda n: (_KINDS[n % 4], 0.005),
            is_for_interpreters=False,
        ),
        Mix(
            "graph",
            "chains of four stages of 1 ms of sleep, beside a saturated one",
            lambda _: ("chain", 0.001),
            is_for_interpreters=False,
        ),
    )
}


# ---- who runs them


class Worker:
    """A replica that does jobs of every kind."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __call__(self, job: Job) -> None:
        job.perform()
        self.ledger.note(job.number, id(self))

    def unary(self, job: Job) -> None:
        self(job)

    async def unary_async(self, job: Job) -> None:
        await asyncio.sleep(job.seconds)
        self.ledger.note(job.number, id(self))

    def stream(self, job: Job) -> Iterator[int]:
        for item in range(STREAMED):
            time.sleep(job.seconds / STREAMED)
            yield item
        self.ledger.note(job.number, id(self))

    async def stream_async(self, job: Job) -> AsyncIterator[int]:
        for item in range(STREAMED):
            await asyncio.sleep(job.seconds / STREAMED)
            yield item
        self.ledger.note(job.number, id(self))


class Guest:
    """The same in an interpreter of its own, where the ledger is not: tells who it is, and is noted when that is heard."""

    def __init__(self, costs: dict[str, float]) -> None:
        adopt(costs)

    def __call__(self, job: tuple[int, str, float]) -> int:
        Job(*job).perform()
        return id(self)


class Stage:
    """One of four; the last one notes the end."""

    def __init__(self, ledger: Ledger | None, before: Any = None) -> None:
        self.ledger = ledger
        self.before = before

    def step(self, job: Job) -> Job:
        time.sleep(job.seconds)
        if self.ledger is not None:
            self.ledger.note(job.number, id(self))
        return job

    def handles(self) -> list[Any]:
        """Return the handles of the stages, first to last but this one."""
        return [] if self.before is None else [*self.before.handles.remote().result(), self.before]


@contextlib.contextmanager
def open_mix(
    peer: peers.Peer, mix: Mix, workers: int, ledger: Ledger
) -> Generator[Callable[[], peers.Client]]:
    """Have so many workers of a peer ready to do the jobs of a mix.

    A chain is done by four deployments with so many replicas each, or else by four times as many workers that do all
    four steps: the rivals know no chains.
    """
    opened: contextlib.AbstractContextManager[peers.Connect]
    if peer is peers.INTERPRETERS:
        opened = _guests(workers, ledger)
    elif peer in (peers.OURS, peers.HANDED_OFF):
        options = peers.NO_INLINE if peer is peers.HANDED_OFF else {}
        opened = (_chain if mix.name == "graph" else _workers)(workers, ledger, options)
    else:

        def work(job: Job) -> None:
            job.perform()
            ledger.note(job.number, threading.get_ident())

        opened = peer.open(work, workers * STAGES if mix.name == "graph" else workers)
    with opened as connect:
        yield connect


@contextlib.contextmanager
def _workers(workers: int, ledger: Ledger, options: dict[str, Any]) -> Generator[peers.Connect]:
    deployment: Any = serve.deployment(Worker, num_replicas=workers, max_ongoing_requests=1, **options)
    with serve.running(deployment.bind(ledger)) as handle:
        submit_one: Any = handle.remote
        ways: dict[str, Any] = {
            "unary": handle.unary.remote,
            "unary_async": handle.unary_async.remote,
            "stream": handle.options(stream=True).stream.remote,
            "stream_async": handle.options(stream=True).stream_async.remote,
        }

        def submit(job: Job) -> Any:
            return ways.get(job.kind, submit_one)(job)

        def result(answer: Any) -> object:
            return answer.result() if isinstance(answer, serve.DeploymentResponse) else list(answer)

        yield lambda: peers.Client(submit, result)


@contextlib.contextmanager
def _guests(workers: int, ledger: Ledger) -> Generator[peers.Connect]:
    deployment: Any = serve.deployment(
        Guest, num_replicas=workers, max_ongoing_requests=1, replica_type="interpreter"
    )
    with serve.running(deployment.bind(calibrate())) as handle:

        def submit(job: Job) -> Any:
            response: Any = handle.remote(tuple(job))
            response.future.add_done_callback(partial(_note, ledger, job.number))
            return response

        yield lambda: peers.Client(submit, lambda response: response.result())


def _note(ledger: Ledger, number: int, future: concurrent.futures.Future[int]) -> None:
    ledger.note(number, future.result())


@contextlib.contextmanager
def _chain(workers: int, ledger: Ledger, options: dict[str, Any]) -> Generator[peers.Connect]:
    def declare(number: int) -> Any:
        return serve.deployment(
            Stage, name=f"stage {number}", num_replicas=workers, max_ongoing_requests=1, **options
        )

    app = declare(1).bind(None)
    for number in range(2, STAGES + 1):
        app = declare(number).bind(ledger if number == STAGES else None, app)
    with serve.running(app) as last:
        handles = [*last.handles.remote().result(), last]

        def submit(job: Job) -> Any:
            response: Any = job
            for handle in handles:
                response = handle.step.remote(response)
            return response

        yield lambda: peers.Client(submit, lambda response: response.result())


@contextlib.contextmanager
def busy(client: peers.Client, mix: Mix, calls: int = 2) -> Generator[None]:
    """Keep so many calls of a mix under way for as long as the block runs."""
    stop = threading.Event()
    started = threading.Semaphore(0)
    numbers = itertools.count()
    errors: list[BaseException] = []

    def keep_busy() -> None:
        started.release()
        try:
            while not stop.is_set():
                client.call(mix.job(next(numbers)))
        except BaseException as error:  # noqa: BLE001 - it is raised by who wanted it kept busy
            errors.append(error)

    threads = [threading.Thread(target=keep_busy, daemon=True) for _ in range(calls)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            started.acquire()
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
