"""What do replicas in interpreters of their own cost and bring, beside threads: per call, per byte, per core, per start?"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import threadserve as serve
from benchmarks.measure import Case, Key, can_pin, elapsed, latency, pinned
from threadserve.concurrency.interpreters import is_offered

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from benchmarks.measure import Run

QUESTION = "What do replicas in interpreters of their own cost and bring, beside replicas on threads?"

CALL = "a small call"
ON_ONE_CORE = "a small call, all on one core"
BUFFER = "a buffer of 1 MB as argument"
TREE = "a dict of 1,000 as argument"
CPU = "pure-Python CPU work"
BESIDE = "a trivial call to a thread replica"
START = "start of a replica"
QUIET = "on an idle machine"
WORTH = "pure-Python work per call from which on two replicas in interpreters do more"

ON_THREADS = "threads"
IN_INTERPRETERS = "interpreters"
EXECUTOR = "ThreadPoolExecutor"
PROCESSES = "processes"
ITSELF = "the work itself"
MEGABYTE = 1 << 20


class Worker:
    """What is deployed, as either kind."""

    def same(self, value: int) -> int:
        return value

    def length(self, value: Any) -> int:
        return len(value)

    def burn(self, turns: int) -> int:
        total = 0
        for number in range(turns):
            total += number & 3
        return total


def kinds() -> dict[str, str]:
    """Return the names of the kinds there are, and the replica_type of each."""
    offered = {ON_THREADS: "thread"}
    return offered | {IN_INTERPRETERS: "interpreter"} if is_offered() else offered


@contextlib.contextmanager
def worker(replica_type: Any, replicas: int = 1, *, inline: bool = True) -> Generator[Any]:
    """Deploy the worker, one call at a time in each replica."""
    deployment = serve.deployment(
        Worker,
        replica_type=replica_type,
        num_replicas=replicas,
        max_ongoing_requests=1,
        inline=inline,
    )
    with serve.running(deployment.bind()) as handle:
        yield handle


def measure(run: Run) -> None:
    if not is_offered():
        run.note("this Python has no interpreters for replicas: they exist from CPython 3.14 on")
    build = "free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else "with a GIL"
    run.note(f"Python build: {build}")
    if sys.dont_write_bytecode:
        run.note("PYTHONDONTWRITEBYTECODE is set: each start compiles the modules that come without bytecode")
    with contextlib.ExitStack() as stack:
        handles = {name: stack.enter_context(worker(kind)) for name, kind in kinds().items()}
        pairs = {name: stack.enter_context(worker(kind, 2)) for name, kind in kinds().items()}
        trivial = stack.enter_context(worker("thread", inline=False))
        executor = stack.enter_context(ThreadPoolExecutor(1))
        processes = stack.enter_context(burners(2))
        run.rounds(
            [
                *calls(handles, executor, run.effort.seconds),
                *scaling(handles, pairs, processes, run.effort.pick(200, 1_000_000, 2_000_000)),
                *working(pairs, run.effort.pick(1, 2, 3)),
                *beside(trivial, run.effort.pick(0.002, 0.1, 0.5)),
            ]
        )
        if can_pin:
            run.rounds([*pinned_calls(handles, executor, run.effort.seconds)])
    if len(pairs) > 1:
        derive_worth(run)
    run.rounds([starting(name, kind) for name, kind in kinds().items()], run.effort.pick(0, 3, 5))


def calls(handles: Mapping[str, Any], executor: ThreadPoolExecutor, seconds: float) -> Iterator[Case]:
    """Yield what single calls cost."""
    buffer = memoryview(bytearray(MEGABYTE))
    tree = {str(number): number for number in range(1000)}
    yield Case(CALL, EXECUTOR, partial(latency, partial(submitted, executor), seconds))
    for name, handle in handles.items():
        for subject, method, value in ((CALL, "same", 1), (BUFFER, "length", buffer), (TREE, "length", tree)):
            bound = handle.options(method_name=method)
            yield Case(subject, name, partial(latency, partial(fetched, bound, value), seconds))


def pinned_calls(handles: Mapping[str, Any], executor: ThreadPoolExecutor, seconds: float) -> Iterator[Case]:
    """Yield what remains of a call's costs when it does not matter on which cores the threads happen to be.

    Measured last: threads stay for a while where they have been pinned.
    """
    yield Case(ON_ONE_CORE, EXECUTOR, partial(on_one_core, partial(submitted, executor), seconds))
    for name, handle in handles.items():
        bound = handle.options(method_name="same")
        yield Case(ON_ONE_CORE, name, partial(on_one_core, partial(fetched, bound, 1), seconds))


def on_one_core(call: Callable[[], object], seconds: float) -> dict[str, float]:
    with pinned():
        return latency(call, seconds)


def submitted(executor: ThreadPoolExecutor) -> int:
    """Have the executor do next to nothing, and wait."""
    return executor.submit(abs, 1).result()


def fetched(handle: Any, value: object) -> object:
    """Call and wait."""
    return handle.remote(value).result()


PIECES = 8  # of tens of milliseconds each: the system takes some to spread the threads over the cores


def scaling(
    handles: Mapping[str, Any], pairs: Mapping[str, Any], processes: Sequence[Burner], turns: int
) -> Iterator[Case]:
    """Yield how much more two replicas do than one, and two processes, which is what the machine allows."""
    for name, handle in handles.items():
        work = partial(burn_all, handle, turns), partial(burn_all, pairs[name], turns)
        yield Case(CPU, name, partial(speed_up, *work))
    alone, together = partial(burn_in, processes[:1], turns), partial(burn_in, processes, turns)
    yield Case(CPU, PROCESSES, partial(speed_up, alone, together))


def speed_up(alone: Callable[[], None], together: Callable[[], None]) -> dict[str, float]:
    """Do the same work alone and together, by turns; the quicker of three counts."""
    times = [(elapsed(alone), elapsed(together)) for _ in range(3)]
    return {"speed-up": min(single for single, _ in times) / min(double for _, double in times)}


def burn_all(handle: Any, turns: int) -> None:
    for response in [handle.burn.remote(turns) for _ in range(PIECES)]:
        response.result()


class Burner:
    """A process that does the same work: it is told how many turns, and answers when it has done them."""

    CODE = """
import sys
def burn(turns):
    total = 0
    for number in range(turns):
        total += number & 3
    return total
for line in sys.stdin:
    pieces, turns = map(int, line.split())
    for _ in range(pieces):
        burn(turns)
    print(flush=True)
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, pieces: int, turns: int) -> None:
        assert self._process.stdin is not None
        print(pieces, turns, file=self._process.stdin, flush=True)

    def end(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def close(self) -> None:
        self._process.communicate()


@contextlib.contextmanager
def burners(count: int) -> Generator[list[Burner]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Burner())) for _ in range(count)]


def burn_in(processes: Sequence[Burner], turns: int) -> None:
    for process in processes:
        process.begin(PIECES // len(processes), turns)
    for process in processes:
        process.end()


TURNS = (0, 250, 1000, 4000, 16_000)
CALLS = 250  # so many for the same reason


def worked(turns: int) -> str:
    return f"{CALLS} calls of {turns} turns, two replicas"


def working(pairs: Mapping[str, Any], times: int) -> Iterator[Case]:
    """Yield what calls cost, of those under way at once, that do more and more; and what they do."""
    for turns in TURNS:
        yield Case(worked(turns), ITSELF, partial(each, partial(do_itself, turns), times))
        for name, pair in pairs.items():
            yield Case(worked(turns), name, partial(each, partial(do_all, pair, turns), times))


def each(do: Callable[[], object], times: int) -> dict[str, float]:
    return {"each": min(elapsed(do) for _ in range(times)) / CALLS * 1e6}


def do_itself(turns: int) -> None:
    burn = Worker().burn
    for _ in range(CALLS):
        burn(turns)


def do_all(pair: Any, turns: int) -> None:
    for response in [pair.burn.remote(turns) for _ in range(CALLS)]:
        response.result()


def derive_worth(run: Run) -> None:
    """Promise the work per call at which both kinds do as much: where the lines between the measured sizes cross."""
    sources = [
        Key("", worked(turns), name, "each")
        for turns in TURNS
        for name in (ITSELF, ON_THREADS, IN_INTERPRETERS)
    ]
    run.derive(Key("", WORTH, IN_INTERPRETERS, "each"), sources, crossing)


def crossing(*figures: float) -> float:
    """Return the work at which interpreters begin to be quicker than threads, of triples of work and both.

    Infinite where they never are.
    """
    triples = list(zip(figures[::3], figures[1::3], figures[2::3], strict=True))
    before = triples[0]
    if before[2] <= before[1]:
        return 0.0
    for work, on_threads, in_interpreters in triples[1:]:
        behind, ahead = before[2] - before[1], on_threads - in_interpreters
        if ahead >= 0:
            return before[0] + (work - before[0]) * behind / (behind + ahead)
        before = work, on_threads, in_interpreters
    return math.inf


def beside(trivial: Any, seconds: float) -> Iterator[Case]:
    """Yield what a call that is handed to a thread costs while another replica keeps a core busy."""
    yield Case(BESIDE, QUIET, partial(latency, lambda: trivial.same.remote(1).result(), seconds))
    for name, kind in kinds().items():
        yield Case(BESIDE, f"beside busy {name}", partial(latency_beside, trivial, kind, seconds))


def latency_beside(trivial: Any, kind: str, seconds: float) -> dict[str, float]:
    is_over = threading.Event()
    with worker(kind, inline=False) as neighbour:

        def keep_busy() -> None:
            while not is_over.is_set():
                neighbour.burn.remote(100_000).result()

        thread = threading.Thread(target=keep_busy)
        thread.start()
        try:
            return latency(lambda: trivial.same.remote(1).result(), seconds)
        finally:
            is_over.set()
            thread.join()


def starting(name: str, kind: str) -> Case:
    """Measure how long one replica takes to start, and the memory that it keeps."""

    def sample() -> dict[str, float]:
        before, begin = resident(), time.perf_counter()
        with worker(kind):
            took = time.perf_counter() - begin
            return {"time": took * 1e3, "memory each": max(0.0, resident() - before)}

    return Case(START, name, sample)


def resident() -> float:
    """Return the memory of this process in KB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return float(line.split()[1])
