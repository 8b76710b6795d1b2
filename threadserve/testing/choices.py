"""Strategies: who goes on at a switch point.

A *schedule* is the choices of one run; a *strategy* makes schedules. The generator of chance is our own: the same numbers
in every process and every version of Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PCT", "Chance", "Exhaustive", "Random", "Replay", "RoundRobin", "Schedule", "Strategy", "named"]

_MASK = 2**64 - 1


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
    """What it is called in messages."""

    def schedule(self, seed: int) -> Schedule | None:
        """Return the schedule of the run with this seed; None when there are no more that differ."""
        ...


class Chance:
    """The same numbers in every process and every version: the upper half of a linear congruential generator's 64 bits.

    Neighbouring seeds begin far apart, scattered by a step of splitmix64; which would do for every number, at thrice the cost.
    """

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = _scattered(seed)

    def below(self, limit: int) -> int:
        """Return one of 0 to `limit` - 1."""
        self._state = state = (self._state * _FACTOR + _SUMMAND) & _MASK
        return (state >> 32) % limit


_FACTOR, _SUMMAND = 6364136223846793005, 1442695040888963407


def _scattered(seed: int) -> int:
    z = (seed + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class Random:
    """Any that could go on, by chance; some seeds switch often, others rarely: races differ in how long one must go on alone."""

    name = "random"

    def schedule(self, seed: int) -> Schedule:
        """Return the schedule of `seed`."""
        return _RandomSchedule(seed)


class _RandomSchedule:
    def __init__(self, seed: int) -> None:
        self.draw = below = Chance(seed).below
        more = 1 + (0, 1, 3, 9)[below(4)]  # how much the one that runs is preferred
        state = _scattered(~seed)

        def choose(current: int | None, others: Sequence[int]) -> int:
            nonlocal state
            state = (state * _FACTOR + _SUMMAND) & _MASK  # as in Chance, without the call
            if current is None:
                return (state >> 32) % len(others)
            count = len(others)
            pick = (state >> 32) % (count + more)
            return pick + 1 if pick < count else 0

        self.choose = choose


class PCT:
    """Probabilistic concurrency testing: the thread with the highest priority runs, and at few moments it becomes the last.

    A bug that needs `depth` ordered events is found with probability 1 in n * k ** (depth - 1) at least, for n threads and
    k choices: few switches in the right places rather than many.

    Args:
        depth: One more than the number of moments at which priorities change.
        choices: How many choices a run has; learned from the runs before if it is not given.
    """

    name = "pct"

    def __init__(self, depth: int = 3, choices: int | None = None) -> None:
        if depth < 1:
            raise ValueError(f"PCT: depth must be 1 or more, not {depth!r}")
        self._depth = depth
        self._choices = choices
        self._last: _PCTSchedule | None = None

    def schedule(self, seed: int) -> Schedule:
        """Return the schedule of `seed`."""
        length = self._choices or (self._last.made if self._last else 0) or 100
        self._last = _PCTSchedule(seed, self._depth, length)
        return self._last


class _PCTSchedule:
    def __init__(self, seed: int, depth: int, length: int) -> None:
        chance = Chance(seed)
        self.draw = self._below = chance.below
        self._changes = {chance.below(length) for _ in range(depth - 1)}
        self._priorities: dict[int, int] = {}
        self._lowest = 0
        self.made = 0

    def choose(self, current: int | None, others: Sequence[int]) -> int:
        if current is not None and self.made in self._changes:
            self._lowest -= 1
            self._priorities[current] = self._lowest
        self.made += 1
        threads = others if current is None else (current, *others)
        return max(range(len(threads)), key=lambda index: self._priority(threads[index]))

    def _priority(self, thread: int) -> int:
        priority = self._priorities.get(thread)
        if priority is None:
            priority = self._priorities[thread] = self._below(1 << 32)
        return priority


class RoundRobin:
    """Everybody in turn, for `quantum` choices each."""

    name = "round_robin"

    def __init__(self, quantum: int = 1) -> None:
        if quantum < 1:
            raise ValueError(f"RoundRobin: quantum must be 1 or more, not {quantum!r}")
        self._quantum = quantum

    def schedule(self, seed: int) -> Schedule:
        """Return the schedule; the seed only says how much of the first turn is over."""
        return _RoundRobinSchedule(self._quantum, seed % self._quantum)


class _RoundRobinSchedule:
    def __init__(self, quantum: int, used: int) -> None:
        self._quantum = quantum
        self._used = used

    def choose(self, current: int | None, others: Sequence[int]) -> int:
        self._used += 1
        if current is not None and self._used < self._quantum:
            return 0
        self._used = 0
        return 0 if current is None else 1

    def draw(self, limit: int) -> int:
        return 0


class Replay:
    """The choices that are given, one for each moment at which there is one; 0, the same one goes on, when they end.

    Numbers that are too large are taken modulo the number of those who could go on, so any list of small integers is a
    schedule, and shrinking the list shrinks towards no switch at all.
    """

    name = "replay"

    def __init__(self, choices: Sequence[int] = ()) -> None:
        self._choices = tuple(choices)

    def schedule(self, seed: int) -> Schedule:
        """Return the schedule, the same for every seed."""
        return _Recited(self._choices)


class _Recited:
    def __init__(self, choices: Sequence[int]) -> None:
        self._rest = iter(choices)

    def choose(self, current: int | None, others: Sequence[int]) -> int:
        pick = next(self._rest, 0)
        return pick % (len(others) + (current is not None)) if pick else 0

    def draw(self, limit: int) -> int:
        return next(self._rest, 0) % limit


class Exhaustive:
    """Every schedule with at most `preemptions` switches away from a thread that could go on, one after the other.

    ``schedule`` returns the next one, whatever the seed, and None when all have been seen; each must be run to its end
    before the next one is asked for. The number of schedules grows steeply: for small programs.

    Args:
        preemptions: The bound; None for none.
    """

    name = "exhaustive"

    def __init__(self, preemptions: int | None = 2) -> None:
        self._preemptions = preemptions
        self._running: _Branches | None = None

    def schedule(self, seed: int) -> Schedule | None:
        """Return a schedule that has not been run."""
        path = [] if self._running is None else self._running.next_path()
        self._running = None if path is None else _Branches(path, self._preemptions)
        return self._running


class _Branches:
    """One path through the tree of choices, remembering how many branches there were at each fork."""

    def __init__(self, path: list[int], preemptions: int | None) -> None:
        self._path = path
        self._preemptions = preemptions
        self._used = 0
        self._forks: list[tuple[int, int]] = []  # what was taken, of how many

    def choose(self, current: int | None, others: Sequence[int]) -> int:
        if current is None:
            return self.draw(len(others))
        is_spent = self._preemptions is not None and self._used >= self._preemptions
        taken = self.draw(1 if is_spent else len(others) + 1)
        self._used += taken > 0
        return taken

    def draw(self, limit: int) -> int:
        at = len(self._forks)
        taken = self._path[at] if at < len(self._path) else 0
        self._forks.append((taken, limit))
        return taken

    def next_path(self) -> list[int] | None:
        forks = self._forks
        while forks and forks[-1][0] + 1 >= forks[-1][1]:
            forks.pop()
        return [taken for taken, _ in forks[:-1]] + [forks[-1][0] + 1] if forks else None


_STRATEGIES: dict[str, type[Random | PCT | RoundRobin | Exhaustive]] = {
    strategy.name: strategy for strategy in (Random, PCT, RoundRobin, Exhaustive)
}


def named(strategy: Strategy | str) -> Strategy:
    """Return the strategy of that name; a strategy is itself.

    Raises:
        ValueError: There is none of that name.
    """
    if not isinstance(strategy, str):
        return strategy
    if strategy not in _STRATEGIES:
        raise ValueError(
            f"there is no strategy {strategy!r}; there are {', '.join(sorted(_STRATEGIES))}, or an object"
        )
    return _STRATEGIES[strategy]()
