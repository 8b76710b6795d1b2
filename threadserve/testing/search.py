"""``explore`` searches for a schedule that makes a test fail; ``reproduce`` repeats one."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from threadserve.concurrency.outcome import capture
from threadserve.testing.choices import Random, Replay, named
from threadserve.testing.reproduction import read, trimmed, written
from threadserve.testing.simulator import GRAINS, MAX_STEPS, Simulation, controlled
from threadserve.testing.stand_ins import here

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from threadserve.testing.choices import Schedule, Strategy
    from threadserve.testing.simulator import Grain, StrategyName
    from threadserve.testing.traces import Trace

__all__ = ["Exploration", "ScheduleError", "explore", "reproduce"]

F = TypeVar("F", bound="Callable[..., Any]")

_SHOWN = 60  # lines of a failed run's trace
_ATTEMPTS = 200  # runs to make a schedule simpler


class Exploration(NamedTuple):
    """What a search without a finding did."""

    runs: int
    is_complete: bool
    """Whether every schedule within the strategy's bound was tried; only ``Exhaustive`` knows."""


class ScheduleError(AssertionError):
    """A schedule was found that makes the test fail; the failure is the ``__cause__``.

    Attributes:
        reproduction: What ``reproduce`` takes.
        schedule: The choices, as ``Replay`` takes them; those that do not matter are 0.
        trace: What happened.
        runs: In which run it was found, from 1.
    """

    def __init__(self, message: str, reproduction: str, schedule: list[int], trace: Trace, runs: int) -> None:
        super().__init__(message, reproduction, schedule, trace, runs)
        self.message = message
        self.reproduction = reproduction
        self.schedule = schedule
        self.trace = trace
        self.runs = runs

    def __str__(self) -> str:
        return self.message


class _Run(NamedTuple):
    """One run, and how it ended."""

    simulation: Simulation
    failure: BaseException | None


class _Search:
    """Runs a function in one simulation after the other."""

    def __init__(self, fn: Callable[[], object], grain: Grain, max_steps: int) -> None:
        self._fn = fn
        self._grain: Grain = grain
        self._max_steps = max_steps

    def run(self, seed: int, schedule: Schedule, strategy: str) -> _Run:
        run = Simulation(seed, schedule, grain=self._grain, max_steps=self._max_steps, strategy=strategy)

        def within() -> None:
            with run:
                self._fn()

        return _Run(run, capture(within).exception)

    def replay(self, seed: int, choices: Sequence[int]) -> _Run:
        return self.run(seed, Replay(choices).schedule(seed), "replay")

    def simplify(self, found: _Run) -> _Run:
        """Set to 0 what can be set to 0 in the choices of a run that failed, so that it still fails in the same way."""
        best, kind, seed = found, type(found.failure), found.simulation.seed
        choices = trimmed(found.simulation.schedule)
        attempts = 0
        size = max(1, sum(map(bool, choices)) // 2)
        while attempts < _ATTEMPTS:
            places = [index for index, choice in enumerate(choices) if choice]
            is_simpler = False
            for start in range(0, len(places), size):
                gone = set(places[start : start + size])
                attempt = [0 if index in gone else choice for index, choice in enumerate(choices)]
                attempts += 1
                run = self.replay(seed, attempt)
                if type(run.failure) is kind:
                    choices, best, is_simpler = attempt, run, True
                if attempts == _ATTEMPTS:
                    break
            if size == 1 and not is_simpler:
                break
            size = max(1, size // 2)
        return best


def explore(
    fn: Callable[[], object],
    *,
    runs: int = 1000,
    strategy: Strategy | StrategyName = "random",
    seed: int = 0,
    grain: Grain = "operation",
    max_steps: int = MAX_STEPS,
) -> Exploration:
    """Call ``fn()`` in `runs` simulations that differ in their schedule, until one fails. Blocks.

    All of `fn` is simulated: ``simulate``, ``simulation``, ``serve.run`` and ``serve.running`` in it join the simulation.
    `fn` must do the same each time: what it changes outside of itself makes runs differ. Once a run has failed, its
    schedule is made simpler.

    Args:
        fn: A test.
        runs: How often to try.
        strategy: See ``simulation``.
        seed: Of the first run; the others have the following numbers.
        grain: See ``simulation``.
        max_steps: How many switch points each run may have.

    Raises:
        ScheduleError: A run failed. The message has the one line that reproduces it, the trace and a sequence diagram.
        ValueError: An argument is wrong.
    """
    if here() is not None:
        raise RuntimeError(
            "explore cannot be called inside of a simulation: it begins simulations of its own"
        )
    chosen, search = named(strategy), _Search(fn, grain, max_steps)
    with controlled() as control:
        for count in range(runs):
            control.tidy()
            schedule = chosen.schedule(seed + count)
            if schedule is None:
                return Exploration(count, is_complete=True)
            run = search.run(seed + count, schedule, chosen.name)
            if run.failure is not None:
                _report(search, run, count + 1)
    return Exploration(
        runs, is_complete=chosen.schedule(seed + runs) is None if chosen.name == "exhaustive" else False
    )


def _report(search: _Search, found: _Run, runs: int) -> None:
    """Raise what says all about a run that failed."""
    failure = cast("BaseException", found.failure)
    if not isinstance(failure, Exception):
        raise failure
    again = search.replay(found.simulation.seed, found.simulation.schedule)
    if type(again.failure) is not type(failure):
        raise _unsteady(found, again, runs) from failure
    best = search.simplify(again)
    simulation, failure = best.simulation, cast("BaseException", best.failure)
    choices = trimmed(simulation.schedule)
    reproduction = written(simulation.seed, simulation.grain, choices)
    steps = simulation.trace()
    message = (
        f"{type(failure).__name__}: {failure}\n"
        f"found in run {runs}; reproduce it with\n\n"
        f"    @testing.reproduce({reproduction!r})\n\n"
        f"what happened, without the runtime's own locks, the last {_SHOWN} lines at most:\n"
        f"{steps.text(last=_SHOWN, details=False)}\n\n{steps.mermaid()}"
    )
    raise ScheduleError(message, reproduction, choices, steps, runs) from failure


def _unsteady(found: _Run, again: _Run, runs: int) -> ScheduleError:
    """Return what says that a run did not fail again."""
    first, second = found.simulation.trace(), again.simulation.trace()
    steps = itertools.zip_longest(first, second)
    differing = next(((a, b) for a, b in steps if a != b), None)
    where = (
        "the traces are the same"
        if differing is None
        else f"the first step that differs:\n  at first  {differing[0]}\n  then      {differing[1]}"
    )
    reproduction = written(found.simulation.seed, found.simulation.grain, found.simulation.schedule)
    return ScheduleError(
        f"run {runs} failed with {found.failure!r}, but not again with the same choices ({again.failure!r}): something "
        f"outside of the simulation differs between runs (a global, a cache, the order of a set, a real clock); {where}",
        reproduction,
        found.simulation.schedule,
        first,
        runs,
    )


def reproduce(reproduction: str) -> Callable[[F], F]:
    """Decorate a test: it runs in the simulation that the line, printed by a failure, stands for.

    Raises:
        ValueError: The line is not one, or was printed by another version of Python at a grain where that matters.
    """
    seed, name, choices = read(reproduction)
    grain: Grain | None = next((grain for grain in GRAINS if grain == name), None)
    if grain is None:
        raise ValueError(f"{reproduction!r}: there is no grain {name!r}, only {', '.join(GRAINS)}")

    def decorate(fn: F) -> F:
        @functools.wraps(fn)
        def run(*args: Any, **kwargs: Any) -> Any:
            schedule = (Random() if choices is None else Replay(choices)).schedule(seed)
            strategy = Random.name if choices is None else Replay.name
            with Simulation(seed, schedule, grain=grain, strategy=strategy):
                return fn(*args, **kwargs)

        return cast("F", run)

    return decorate
