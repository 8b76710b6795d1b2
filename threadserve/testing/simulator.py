"""``simulate``: an app, the runtime and the test itself under the seeded kernel."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from threadserve.app.deployment import Application
    from threadserve.handle import DeploymentHandle
    from threadserve.testing.choices import Strategy
    from threadserve.testing.traces import Trace

__all__ = ["Simulation", "current_simulation", "simulate", "simulation", "trace"]

T = TypeVar("T")

Grain: TypeAlias = Literal["operation", "line", "runtime"]
StrategyName: TypeAlias = Literal["random", "pct", "round_robin", "exhaustive"]


class Simulation:
    """A simulated run, while it lasts and afterwards.

    Attributes:
        seed: What it was begun with.
    """

    seed: int

    @property
    def now(self) -> float:
        """The virtual time, in seconds since the beginning."""
        raise NotImplementedError

    def advance(self, seconds: float) -> None:
        """Wait for so many virtual seconds, as ``time.sleep`` does, while the others go on."""

    def settle(self) -> None:
        """Let all others go on until they wait; the clock hardly moves (by a nanosecond)."""

    @property
    def schedule(self) -> list[int]:
        """The choices so far, as ``Replay`` takes them."""
        raise NotImplementedError

    @property
    def reproduction(self) -> str:
        """What ``reproduce`` takes to repeat this run."""
        raise NotImplementedError

    def trace(self) -> Trace:
        """Return what has happened so far."""
        raise NotImplementedError


def simulation(
    *,
    seed: int = 0,
    strategy: Strategy | StrategyName = "random",
    grain: Grain = "operation",
    rebind: Sequence[ModuleType] = (),
    max_steps: int = 1_000_000,
) -> AbstractContextManager[Simulation]:
    """Simulate the body of a ``with`` block, without an app: ``serve.run`` in it runs apps in the simulation.

    A failure of the run (also in another thread) comes out of the block; its notes say how to reproduce it.
    Inside another simulation it is that one: the arguments, `rebind` apart, are those of the outer one.
    """
    raise NotImplementedError


class simulate(Generic[T]):  # noqa: N801 - used like a function
    """Run an app, and the body of the ``with`` block, one thread at a time in virtual time.

    See ``simulation`` for the other arguments. The app is deployed in the beginning and deleted in the end.
    Inside another simulation (also ``explore``'s) the app joins that one.
    """

    def __init__(
        self,
        app: Application[T],
        *,
        seed: int = 0,
        strategy: Strategy | StrategyName = "random",
        grain: Grain = "operation",
        name: str = "default",
        rebind: Sequence[ModuleType] = (),
        max_steps: int = 1_000_000,
    ) -> None:
        raise NotImplementedError

    def __enter__(self) -> DeploymentHandle[T]:
        raise NotImplementedError

    def __exit__(self, *exc_info: Any) -> None:
        raise NotImplementedError


def current_simulation() -> Simulation:
    """Return the simulation that the calling thread is part of; outside of one, the last that ended on this thread.

    Raises:
        RuntimeError: There is none.
    """
    raise NotImplementedError


def trace() -> Trace:
    """Return what has happened so far in the current simulation, or in the one that has just ended, as plain data."""
    raise NotImplementedError
