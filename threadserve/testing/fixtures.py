"""What the pytest fixtures give: apps on real threads, apps in the simulator, and the simulator's clock.

The fixtures have the scope of the session, so Hypothesis lets them stand beside ``@given``; what is started in a test is
stopped at its end all the same, and ``fresh=True`` starts anew in each example.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from threadserve import api
from threadserve.app.application import Binding, rebound
from threadserve.testing import census, example
from threadserve.testing.choices import Replay
from threadserve.testing.simulator import current_simulation, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from threadserve.app.application import Application
    from threadserve.handle import DeploymentHandle
    from threadserve.testing.choices import Strategy
    from threadserve.testing.simulator import Grain, StrategyName

__all__ = ["FakeClock", "ServedApps", "SimulatedApps"]

T = TypeVar("T")

_GENERATORS = "threadserve.testing.generators"  # needs Hypothesis, and not every test does


class ServedApps:
    """The fixture ``serve_app``: call it with an application to run that, on real threads, until the test ends.

    Args:
        kind: Of all replicas. Those on threads are what the deployments say, nearly always threads as well; "interpreter"
            puts each deployment, whose class or function must stand at the top level of a module, into interpreters.
    """

    def __init__(self, kind: str = "thread") -> None:
        self._kind = kind
        self._running: dict[Application[Any], tuple[api.running[Any], DeploymentHandle[Any]]] = {}
        self._threads = census.threads()

    def __repr__(self) -> str:
        return "serve_app"

    def __call__(self, app: Application[T], *, fresh: bool = False) -> DeploymentHandle[T]:
        """Run `app` and return the handle of its ingress. Blocks until it is up, as ``serve.run`` does.

        Args:
            app: What ``.bind()`` returned. Where it runs already, the handle is the same one and nothing is started, so
                that the examples of ``@given`` share the replicas.
            fresh: Start it anew, with new replicas, and stop what ran of it before.

        Raises:
            AssertionError: With `fresh`, what ran before has left calls unanswered or streams open.
        """
        if app in self._running:
            if not fresh:
                return self._running[app][1]
            self._stop(app)
        running = api.running(app if self._kind == "thread" else rebound(app, self._changed))
        handle = running.__enter__()
        self._running[app] = running, handle
        return handle

    def _changed(self, binding: Binding) -> Binding:
        return replace(binding, config=binding.config.changed({"replica_type": self._kind}))

    def begin(self) -> None:
        """Note what there is before the test."""
        self._threads = census.threads()

    def end(self) -> None:
        """Stop what was started. Blocks.

        Raises:
            AssertionError: Calls are unanswered, streams open, or threads left.
        """
        left: list[str] = []
        for app in list(self._running):
            try:
                self._stop(app)
            except AssertionError as error:
                left.append(str(error))
        left += [f"thread: {name}" for name in census.threads_left(self._threads)]
        if left:
            raise AssertionError("the test leaves behind\n  " + "\n  ".join(left))

    def _stop(self, app: Application[Any]) -> None:
        running, handle = self._running.pop(app)
        left = census.leaks(handle.app_name)
        if left:
            census.cancel_all(
                handle.app_name
            )  # or each would be waited for, for the graceful timeout of its deployment
        running.__exit__(None, None, None)
        if left:
            raise AssertionError("\n  ".join(left))


class SimulatedApps:
    """The fixture ``simulated_app``: ``with simulated_app(app) as handle`` runs an app in the simulator.

    Under ``@given`` the schedule is drawn by Hypothesis, so that a failing one shrinks to one with few switches, in which
    case it is part of what is printed. Elsewhere it follows from ``--threadserve-seed``, 0 without, and
    ``--threadserve-explore=N`` runs the test N times, with as many seeds.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        if "hypothesis" in sys.modules:
            import_module(_GENERATORS)  # now, for an example has a deadline

    def __repr__(self) -> str:
        return "simulated_app"

    def __call__(
        self,
        app: Application[T],
        *,
        seed: int | None = None,
        strategy: Strategy | StrategyName | None = None,
        grain: Grain = "operation",
        rebind: Sequence[ModuleType] = (),
    ) -> simulate[T]:
        """Return the context manager ``testing.simulate``; what is given goes before what would be drawn or preset."""
        if strategy is None and seed is None and example.is_drawing():
            schedules = import_module(_GENERATORS).schedules()
            strategy = Replay(example.draw(schedules, "schedule"))
        return simulate(
            app,
            seed=self.seed if seed is None else seed,
            strategy="random" if strategy is None else strategy,
            grain=grain,
            rebind=rebind,
        )


class FakeClock:
    """The fixture ``fake_clock``: the virtual time of the app that ``simulated_app`` runs. It passes by itself when all wait."""

    @property
    def now(self) -> float:
        """The virtual time, in seconds since the simulation began."""
        return current_simulation().now

    def advance(self, seconds: float) -> None:
        """Wait for so many virtual seconds, while all others go on; takes no real time."""
        current_simulation().advance(seconds)
