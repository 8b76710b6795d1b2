"""For tests of code that runs on threadserve: the simulator, which makes the order of things a matter of a seed.

Example:
    >>> import threadserve as serve
    >>> from threadserve import testing
    >>> @serve.deployment
    ... def double(n: int) -> int:
    ...     return 2 * n
    >>> with testing.simulate(double.bind(), seed=7) as handle:
    ...     handle.remote(21).result()
    42

This is the face of the room: each name is loaded at its first use.
"""

from __future__ import annotations

# fmt: off
__all__ = [  # noqa: RUF022 - in the order a newcomer meets them
    "simulate", "explore", "reproduce", "trace",
    "simulation", "current_simulation", "Simulation", "Step", "Trace",
    "Strategy", "Schedule", "Random", "PCT", "RoundRobin", "Exhaustive", "Replay",
    "Exploration", "ScheduleError", "StuckError", "UncontrolledError",
    "check_pipeline", "ServeStateMachine", "generators",
    "schedules", "applications", "deployment_options", "call_histories",
    "faults", "fake", "spy", "record", "replay", "Call", "Fake", "Spy",
    "assert_answered", "assert_max_concurrency", "assert_no_leaks", "assert_order",
]

_HOMES = {
    "threadserve.testing.assertions": "assert_answered assert_max_concurrency assert_no_leaks assert_order",
    "threadserve.testing.choices": "Exhaustive PCT Random Replay RoundRobin Schedule Strategy",
    "threadserve.testing.doubles": "Call Fake Spy fake spy",
    "threadserve.testing.generators": "applications call_histories deployment_options schedules",
    "threadserve.testing.machine": "ServeStateMachine",
    "threadserve.testing.pipeline": "check_pipeline",
    "threadserve.testing.recording": "record replay",
    "threadserve.testing.search": "Exploration ScheduleError explore reproduce",
    "threadserve.testing.simulator": "Simulation current_simulation simulate simulation trace",
    "threadserve.testing.traces": "Step Trace",
    "threadserve.testing.turns": "StuckError UncontrolledError",
}
# fmt: on
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
_MODULES = ("faults", "generators")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threadserve.testing import faults, generators
    from threadserve.testing.assertions import (
        assert_answered,
        assert_max_concurrency,
        assert_no_leaks,
        assert_order,
    )
    from threadserve.testing.choices import (
        PCT,
        Exhaustive,
        Random,
        Replay,
        RoundRobin,
        Schedule,
        Strategy,
    )
    from threadserve.testing.doubles import Call, Fake, Spy, fake, spy
    from threadserve.testing.generators import (
        applications,
        call_histories,
        deployment_options,
        schedules,
    )
    from threadserve.testing.machine import ServeStateMachine
    from threadserve.testing.pipeline import check_pipeline
    from threadserve.testing.recording import record, replay
    from threadserve.testing.search import Exploration, ScheduleError, explore, reproduce
    from threadserve.testing.simulator import Simulation, current_simulation, simulate, simulation, trace
    from threadserve.testing.traces import Step, Trace
    from threadserve.testing.turns import StuckError, UncontrolledError
else:

    def __getattr__(name):
        from importlib import import_module

        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
        value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
