"""What does a simulated run cost: three deployments are brought up, called once, and taken down?"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import threadserve as serve
from benchmarks.measure import Case
from threadserve import testing

if TYPE_CHECKING:
    from benchmarks.measure import Run
    from threadserve.testing.choices import Strategy
    from threadserve.testing.simulator import Grain, StrategyName

QUESTION = "What does a simulated run of a chain of three cost, deploy and shutdown included?"

SUBJECT = "chain of three"
AT_RANDOM = "random"


class Way(NamedTuple):
    """How schedules are chosen, and how fine they are."""

    strategy: Strategy | StrategyName
    grain: Grain = "operation"
    share: int = 1
    """It takes so many times longer, about, and is given so many times fewer runs."""


# As the names of rivals go, all are beside the first one.
WAYS = {
    AT_RANDOM: Way("random"),
    "threadserve, no preemption": Way(testing.Replay()),
    "threadserve, pct": Way("pct"),
    "threadserve, round robin": Way("round_robin"),
    "threadserve, random, each line": Way("random", "line", 3),
    "threadserve, random, each line of threadserve": Way("random", "runtime", 20),
}


class Add:
    def __call__(self, value: int) -> int:
        total = value
        total += 1
        return total


class Pass:
    def __init__(self, after: Any) -> None:
        self.after = after

    def __call__(self, value: int) -> int:
        response = self.after.remote(value)
        return int(response.result()) + 1


APP: Any = serve.deployment(Pass, name="first").bind(
    serve.deployment(Pass, name="second").bind(serve.deployment(Add).bind())
)


def one_run() -> None:
    with testing.simulate(APP) as handle:
        assert handle.remote(0).result() == 3


def sample(way: Way, runs: int) -> dict[str, float]:
    """Return the mean time of a run, and how many a second that makes."""
    count = max(1, runs // way.share)
    start = time.perf_counter()
    testing.explore(one_run, runs=count, strategy=way.strategy, grain=way.grain)
    seconds = (time.perf_counter() - start) / count
    return {"time": seconds * 1e3, "rate": 1 / seconds}


def measure(run: Run) -> None:
    runs = run.effort.pick(smoke=2, quick=100, full=200)
    run.rounds([Case(SUBJECT, name, partial(sample, way, runs)) for name, way in WAYS.items()])
