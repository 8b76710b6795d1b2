"""``simulate``: an app, the runtime and the test itself under the seeded kernel."""

from __future__ import annotations

import gc
import sys
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeAlias, TypeVar, cast

from threadserve import api
from threadserve.concurrency.outcome import capture
from threadserve.runtime.controller import Controller
from threadserve.testing import control, lines
from threadserve.testing.choices import named
from threadserve.testing.lines import Lines
from threadserve.testing.reproduction import written
from threadserve.testing.scheduler import LateErrands, SimulatedKernel, on_one_processor
from threadserve.testing.stand_ins import here, sleep
from threadserve.testing.traces import HOOKS, Records, Trace
from threadserve.testing.turns import Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType, TracebackType

    from threadserve.app.deployment import Application
    from threadserve.app.graph import Plan
    from threadserve.handle import DeploymentHandle
    from threadserve.testing.choices import Schedule, Strategy

__all__ = [
    "GRAINS",
    "MAX_STEPS",
    "Grain",
    "Simulation",
    "StrategyName",
    "controlled",
    "current_simulation",
    "simulate",
    "simulation",
    "trace",
]

T = TypeVar("T")

Grain: TypeAlias = Literal["operation", "line", "runtime"]
StrategyName: TypeAlias = Literal["random", "pct", "round_robin", "exhaustive"]

GRAINS: tuple[Grain, ...] = ("operation", "line", "runtime")
MAX_STEPS = 1_000_000

_SHOWN = 25  # steps of a failed run, in its note
_INSTANT_S = 1e-9

_last: ContextVar[Simulation | None] = ContextVar("threadserve_last_simulation", default=None)


class Simulation(AbstractContextManager["Simulation"]):
    """A simulated run, while it lasts and afterwards. Made by ``simulation``, ``simulate`` and ``explore``.

    Attributes:
        seed: Of the schedule, and of all chance.
        grain: How fine the switch points are.
    """

    def __init__(
        self,
        seed: int,
        schedule: Schedule,
        *,
        grain: Grain = "operation",
        rebind: Sequence[ModuleType] = (),
        max_steps: int = MAX_STEPS,
        strategy: str = "",
    ) -> None:
        if grain not in GRAINS:
            raise ValueError(f"grain must be one of {', '.join(GRAINS)}, not {grain!r}")
        self.seed = seed
        self.grain = grain
        self._strategy = strategy
        self._lines: Lines | None = None
        self._kernel = SimulatedKernel(
            seed, max_steps=max_steps, schedule=schedule, on_thread=self._on_thread(grain)
        )
        self._kernel.errands = LateErrands(self._kernel, "threadserve reaper")
        if grain != "operation":
            self._lines = Lines(self._kernel, in_plain_code=grain == "runtime")
        self._records = self._kernel.records = Records(self._kernel.turns)
        self._kernel.simulation = self
        self._rebind = rebind
        self._places = control.Places()
        self._depth = 0

    def _on_thread(self, grain: Grain) -> Any:
        return (
            None
            if grain == "operation" or sys.version_info >= (3, 12)
            else lambda fn: cast("Lines", self._lines).run(fn)
        )

    def __repr__(self) -> str:
        return (
            f"<Simulation {self.reproduction!r} at {self.now:g} s, {len(self._kernel.turns.entries)} steps>"
        )

    @property
    def now(self) -> float:
        """The virtual time, in seconds since the beginning."""
        return self._kernel.now()

    def advance(self, seconds: float) -> None:
        """Wait for so many virtual seconds, as ``time.sleep`` does, while the others go on. Blocks."""
        sleep(seconds)

    def settle(self) -> None:
        """Let all others go on until they wait. The clock hardly moves: by a nanosecond. Blocks."""
        sleep(_INSTANT_S)

    @property
    def schedule(self) -> list[int]:
        """The choices so far, as ``Replay`` takes them."""
        return list(self._kernel.turns.choices)

    @property
    def reproduction(self) -> str:
        """What ``reproduce`` takes to repeat this run."""
        return written(self.seed, self.grain, None if self._strategy == "random" else self.schedule)

    def trace(self) -> Trace:
        """Return what has happened so far."""
        return self._records.trace()

    # ---- its life

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth > 1:
            return self
        control.install(_HOOKS)
        try:
            self._kernel.begin()
            self._kernel.turns.begin_here()
            self._places.rebind(self._rebind)
            if self._lines is not None:
                self._lines.begin()
                if self.grain == "runtime":
                    own = lines.own_modules()
                    self._lines.look_for(set(own), own.values())
        except BaseException as failure:
            self._close(failure)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        if error is None:
            error = capture(api.shutdown).exception
        failure = self._close(error)
        if failure is None:
            return
        if not isinstance(failure, KeyboardInterrupt):
            tail = self.trace().text(last=_SHOWN, details=False)
            failure.add_note(
                f"reproduce it with @testing.reproduce({self.reproduction!r}); the trace ends:\n{tail}"
            )
        if failure is not error:
            try:
                raise failure
            finally:
                del failure, error  # no cycle with this frame

    def adopt(self, plan: Plan) -> None:
        """Bring the code of an app's deployments under control."""
        modules, classes = control.modules_of(plan)
        self._places.rebind(modules, classes)
        if self._lines is not None:
            targets = [planned.target for planned in plan.deployments]
            self._lines.look_for(lines.files_of(targets), modules, targets)

    def also(self, rebind: Sequence[ModuleType]) -> None:
        """Rebind further modules."""
        self._places.rebind(rebind)

    def _close(self, error: BaseException | None) -> BaseException | None:
        """End the run and undo what was done for it, whatever happens; return with what it has failed."""
        try:
            return capture(self._kernel.finish, error).exception or (
                None if isinstance(error, Ended) else error
            )
        finally:
            if self._lines is not None:
                self._lines.end()
            self._places.give_back()
            api.forget(self._kernel)
            self._kernel.simulation = None
            _last.set(self)
            control.uninstall()


def _around_deploy(deploy: Callable[..., Any]) -> Callable[..., Any]:
    def adopting(self: Controller, plan: Plan, *args: Any, **kwargs: Any) -> Any:
        kernel = here()
        if kernel is not None and kernel.simulation is not None:
            kernel.simulation.adopt(plan)
        return deploy(self, plan, *args, **kwargs)

    return adopting


_HOOKS: list[tuple[Any, str, Callable[[Any], Any]]] = [*HOOKS, (Controller, "deploy", _around_deploy)]


def simulation(
    *,
    seed: int = 0,
    strategy: Strategy | StrategyName = "random",
    grain: Grain = "operation",
    rebind: Sequence[ModuleType] = (),
    max_steps: int = MAX_STEPS,
) -> Simulation:
    """Simulate the body of a ``with`` block, without an app: ``serve.run`` in it runs apps in the simulation.

    One thread runs at a time; who goes on at a switch point is a matter of the schedule, and time is virtual. Within it,
    for threads of the simulation only, ``time``, ``threading``, ``queue``, ``random``, ``uuid4`` and asyncio's loops
    are simulated. A failure of the run, also in another thread, comes out of the block; its notes say how to reproduce it.
    Inside another simulation it is that one: all arguments but `rebind` are those of the outer one.

    Args:
        seed: Of the schedule, and of all chance.
        strategy: Who goes on: "random", "pct", "round_robin", "exhaustive", or an object such as ``Replay([0, 1])``.
        grain: Where threads may switch: at every operation of the runtime; at every "line" of the deployments' own
            modules too; or at every line of the "runtime" as well.
        rebind: Modules that have bound names such as ``from time import sleep`` early, apart from those that define the app.
        max_steps: How many switch points the run may have.

    Raises:
        StuckError: Nobody can go on, or the run does not come to an end.
        UncontrolledError: Something was used that is not under control.
        ValueError: An argument is wrong.
    """
    kernel = here()
    if kernel is not None:
        if kernel.simulation is None:
            raise RuntimeError("a simulation cannot be begun inside of SimulatedKernel.run")
        kernel.simulation.also(rebind)
        return cast("Simulation", kernel.simulation)
    chosen = named(strategy)
    schedule = chosen.schedule(seed)
    if schedule is None:
        raise ValueError(f"the strategy {chosen.name} has no schedule left; make another one")
    return Simulation(seed, schedule, grain=grain, rebind=rebind, max_steps=max_steps, strategy=chosen.name)


class simulate(Generic[T]):  # noqa: N801 - used like a function
    """Run an app, and the body of the ``with`` block, one thread at a time in virtual time; gives the ingress handle.

    The app is deployed in the beginning and deleted in the end. Inside another simulation (also ``explore``'s) the app
    joins that one. Not to be entered twice.

    Args:
        app: What ``.bind()`` returned.
        seed: See ``simulation``, as for all but `name`.
        strategy: See there.
        grain: See there.
        name: Names the app.
        rebind: See there.
        max_steps: See there.
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
        max_steps: int = MAX_STEPS,
    ) -> None:
        self._app = app
        self._name = name
        self._options: dict[str, Any] = {
            "seed": seed,
            "strategy": strategy,
            "grain": grain,
            "rebind": rebind,
            "max_steps": max_steps,
        }
        self._simulation: Simulation | None = None

    def __enter__(self) -> DeploymentHandle[T]:
        self._simulation = simulation(**self._options)
        self._simulation.__enter__()
        try:
            return api.run(self._app, name=self._name, route_prefix=None)
        except BaseException as error:
            self._simulation.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._simulation is not None
        left = error if error is not None else capture(api.delete, self._name).exception
        self._simulation.__exit__(None if left is None else type(left), left, tb)
        if left is not error and left is not None:
            raise left


class controlled(AbstractContextManager["controlled"]):  # noqa: N801 - used like a function
    """Keep between runs, one after the other, what need not be done for each of them.

    The garbage collector is away all the while, and comes between two runs if there is a need: by itself it would come at
    the end of each, when it was allowed again, for what is gone a moment later.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._collects = gc.isenabled()

    def __enter__(self) -> Self:
        control.install(_HOOKS)
        self._stack.callback(control.uninstall)
        self._stack.enter_context(on_one_processor())
        if self._collects:
            gc.disable()
            self._stack.callback(gc.enable)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def tidy(self) -> None:
        """Between two runs: collect what is left of the last ones, if it is as much as the collector waits for."""
        counts, limits = gc.get_count(), gc.get_threshold()
        if self._collects and counts[0] > limits[0]:
            gc.collect(int(counts[1] > limits[1]))


def current_simulation() -> Simulation:
    """Return the simulation that the calling thread is part of; outside of one, the last that ended in this context.

    Raises:
        RuntimeError: There is none.
    """
    kernel = here()
    found = _last.get() if kernel is None else kernel.simulation
    if found is None:
        raise RuntimeError("there is no simulation here: use testing.simulate(app) or testing.simulation()")
    return found


def trace() -> Trace:
    """Return what has happened so far in the current simulation, or in the one that has just ended, as plain data."""
    return current_simulation().trace()
