"""How figures are got: rivals take turns within a round, in an order that is shuffled; each round gives one sample.

Load and placement of threads on cores move a hand-over by a factor of four, from minute to minute. So only what was
measured in one run, round by round, may be compared, and a figure is a median with its quartiles.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from benchmarks.peers import Peer

T = TypeVar("T")

__all__ = [
    "EFFORTS",
    "FIGURES",
    "Case",
    "Effort",
    "Figure",
    "Key",
    "Run",
    "can_pin",
    "elapsed",
    "latency",
    "pinned",
    "quantile",
]


class Figure(NamedTuple):
    """What a number says: its unit, and whether less of it is better."""

    unit: str
    is_less_better: bool


FIGURES = {
    "p50": Figure("us", True),
    "p99": Figure("us", True),
    "each": Figure("us", True),
    "first item": Figure("us", True),
    "submit each": Figure("us", True),
    "of which collector": Figure("us", True),
    "drain each": Figure("us", True),
    "rate": Figure("1/s", False),
    "speed-up": Figure("x", False),
    "least share": Figure("%", False),
    "memory each": Figure("KB", True),
    "submit each, growth": Figure("x", True),
    "drain each, growth": Figure("x", True),
    "memory each, growth": Figure("x", True),
    "time": Figure("ms", True),
    "above nothing": Figure("ms", True),
}
"""The figures there are. Times are microseconds unless they are those of whole programs."""


class Effort(NamedTuple):
    """How long it is measured."""

    name: str
    rounds: int
    seconds: float
    """For how long one sample calls, roughly."""

    @property
    def is_smoke(self) -> bool:
        return self.name == "smoke"

    def pick(self, smoke: T, quick: T, full: T) -> T:
        return {"smoke": smoke, "quick": quick}.get(self.name, full)


EFFORTS = {
    "full": Effort("full", 15, 0.05),
    "quick": Effort("quick", 5, 0.02),
    "smoke": Effort("smoke", 0, 0.0005),
}


class Key(NamedTuple):
    """Which figure of whom, at what."""

    table: str
    subject: str
    contender: str
    figure: str


@dataclass(frozen=True)
class Case:
    """One contender at one subject; `sample` measures once and returns a value for each figure."""

    subject: str
    contender: str
    sample: Callable[[], Mapping[str, float]]
    table: str = ""

    def key(self, figure: str) -> Key:
        return Key(self.table, self.subject, self.contender, figure)


@dataclass
class Run:
    """One run of one benchmark: what is asked for, and all that was measured so far.

    A sample is kept as soon as it is there, so an interrupt costs the running one alone.
    """

    effort: Effort
    seed: int = 1
    only: tuple[str, ...] = ()
    """The parts that are asked for, where not all are."""
    without: tuple[str, ...] = ()
    """Rivals that are to be left out."""
    app: Peer | None = None
    """An app of the user's, to be measured beside what is always measured."""
    samples: dict[Key, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tell: Callable[[str], object] = lambda _: None
    """Hears how far it is."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self._derived: list[tuple[Key, list[Key], Callable[..., float]]] = []

    def wants(self, part: str) -> bool:
        """Tell whether this part was asked for; all are, unless some were named."""
        return not self.only or part in self.only

    def rounds(self, cases: Sequence[Case], rounds: int | None = None) -> None:
        """Warm every case up, then sample each of them once a round, in a new order each time.

        Where no rounds are asked for, to see that it works, what warming up found is kept.
        """
        count = self.effort.rounds if rounds is None else rounds
        for case in cases:
            self.tell(f"warming up: {case.table} {case.subject}, {case.contender}")
            for figure, value in case.sample().items():
                samples = self.samples.setdefault(case.key(figure), [])  # in the order of the cases
                samples += [] if count else [value]
        for number in range(count):
            for case in self.chance.sample(cases, len(cases)):
                self.tell(f"round {number + 1} of {count}: {case.table} {case.subject}, {case.contender}")
                for figure, value in case.sample().items():
                    self.samples.setdefault(case.key(figure), []).append(value)

    def derive(self, key: Key, sources: Sequence[Key], by: Callable[..., float]) -> None:
        """Promise a figure that is computed from those of `sources`, round by round. May be called before or after."""
        self._derived.append((key, list(sources), by))

    def note(self, text: str) -> None:
        """Say something below the tables, once."""
        if text not in self.notes:
            self.notes.append(text)

    def finish(self) -> None:
        """Compute what was derived, from as many rounds as there are."""
        for key, sources, by in self._derived:
            rounds = list(zip(*(self.samples.get(source, []) for source in sources), strict=False))
            if rounds:
                self.samples[key] = [by(*values) for values in rounds]


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie, between two of them by proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def latency(
    call: Callable[[], object], seconds: float, clock: Callable[[], int] = time.perf_counter_ns
) -> dict[str, float]:
    """Time single calls, one after the other, for so long and at least five; return p50 and p99 in us."""
    times: list[int] = []
    end = clock() + int(seconds * 1e9)
    while True:
        start = clock()
        call()
        stop = clock()
        times.append(stop - start)
        if stop >= end and len(times) >= 5:
            return {"p50": statistics.median(times) / 1e3, "p99": quantile(times, 0.99) / 1e3}


def elapsed(fn: Callable[[], object]) -> float:
    """Return for how many seconds `fn` runs."""
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


can_pin = hasattr(os, "sched_setaffinity") and Path("/proc/self/task").is_dir()
"""Whether the threads of this process can be kept on one core."""


@contextlib.contextmanager
def pinned() -> Generator[None]:
    """Keep the whole process on one core: the threads there are, and those they start."""
    before = os.sched_getaffinity(0)
    _place({max(before)})
    try:
        yield
    finally:
        _place(before)


def _place(cores: set[int]) -> None:
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208 - the call alone, not a path for each
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(task), cores)
