"""Strategies: who goes on at a switch point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["PCT", "Exhaustive", "Random", "Replay", "RoundRobin", "Schedule", "Strategy"]


class Schedule(Protocol):
    """The choices of one run."""

    def choose(self, current: int | None, others: Sequence[int]) -> int:
        """Return who goes on.

        Args:
            current: The number of the thread that runs, if it could go on; None if it has to wait.
            others: The numbers of the threads that could go on instead, in the order in which they became able to;
                never empty. Threads are numbered as they are started; main is 0.

        Returns:
            With `current`: 0 for it, 1 for ``others[0]``, and so on. Without: 0 for ``others[0]``, and so on.
        """
        ...

    def draw(self, limit: int) -> int:
        """Return one of 0 to `limit` - 1: which waiting thread gets a lock, and the like."""
        ...


class Strategy(Protocol):
    """A way to choose schedules."""

    name: str
    """What stands in the line that reproduces a run."""

    def schedule(self, seed: int) -> Schedule | None:
        """Return the schedule of the run with this seed; None when there are no more that differ."""
        ...


class Random:
    """Any that could go on, by chance; some seeds switch often, others rarely."""

    name = "random"

    def schedule(self, seed: int) -> Schedule | None: ...


class PCT:
    """Probabilistic concurrency testing: threads have random priorities, and at few random moments the first becomes last."""

    name = "pct"

    def __init__(self, depth: int = 3, steps: int = 500) -> None: ...

    def schedule(self, seed: int) -> Schedule | None: ...


class RoundRobin:
    """Everybody in turn, for `quantum` switch points each; the seed says who begins."""

    name = "round_robin"

    def __init__(self, quantum: int = 1) -> None: ...

    def schedule(self, seed: int) -> Schedule | None: ...


class Exhaustive:
    """Every schedule with at most `preemptions` switches away from a thread that could go on; one after the other."""

    name = "exhaustive"

    def __init__(self, preemptions: int | None = 2) -> None: ...

    def schedule(self, seed: int) -> Schedule | None: ...


class Replay:
    """The choices that are given, one for each moment at which there is one; 0, the same one goes on, when they end.

    Numbers that are too large are taken modulo the number of those who could go on, so any list of small integers is a
    schedule, and shrinking the list shrinks towards no switch at all.
    """

    name = "replay"

    def __init__(self, choices: Sequence[int] = ()) -> None: ...

    def schedule(self, seed: int) -> Schedule | None: ...
