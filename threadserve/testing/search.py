"""``explore`` searches for a schedule that makes a test fail; ``reproduce`` repeats one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.testing.choices import Strategy
    from threadserve.testing.simulator import Grain, StrategyName
    from threadserve.testing.traces import Trace

__all__ = ["Exploration", "ScheduleError", "explore", "reproduce"]

F = TypeVar("F", bound="Callable[..., Any]")


class Exploration(NamedTuple):
    """What a search without a finding did."""

    runs: int
    is_complete: bool
    """Whether every schedule within the strategy's bound was tried; only ``Exhaustive`` knows."""


class ScheduleError(AssertionError):
    """A schedule was found that makes the test fail; the failure is the ``__cause__``.

    Attributes:
        reproduction: What ``reproduce`` takes.
        schedule: The choices, as ``Replay`` takes them.
        trace: What happened.
        runs: How many runs it took.
    """

    reproduction: str
    schedule: list[int]
    trace: Trace
    runs: int


def explore(
    fn: Callable[[], object],
    *,
    runs: int = 1000,
    strategy: Strategy | StrategyName = "random",
    seed: int = 0,
    grain: Grain = "operation",
    max_steps: int = 1_000_000,
) -> Exploration:
    """Call ``fn()`` in `runs` simulations that differ in their schedule, until one fails.

    All of `fn` is simulated: ``simulate``, ``simulation``, ``serve.run`` and ``serve.running`` in it join the simulation.
    `fn` must do the same each time: what it changes outside of itself makes runs differ.

    Raises:
        ScheduleError: A run failed. The message has the one line that reproduces it, the trace and a sequence diagram.
    """
    raise NotImplementedError


def reproduce(reproduction: str) -> Callable[[F], F]:
    """Decorate a test: it runs in the simulation that the line, printed by a failure, stands for."""
    raise NotImplementedError
