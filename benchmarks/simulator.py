"""What does a simulated run cost: an app of three deployments is brought up, called once, and taken down?"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from report import is_smoke, table

import threadserve as serve
from threadserve import testing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUESTION = "What does a simulated run of a chain of three deployments cost, deploy and shutdown included?"


@serve.deployment
class Add:
    def __call__(self, value: int) -> int:
        total = value
        total += 1
        return total


@serve.deployment
class Pass:
    def __init__(self, after: serve.DeploymentHandle[Any]) -> None:
        self.after = after

    def __call__(self, value: int) -> int:
        response = self.after.remote(value)
        return int(response.result()) + 1


def run() -> None:
    with testing.simulate(CHAIN) as handle:
        assert handle.remote(0).result() == 3


CHAIN = Pass.bind(Pass.options(name="Middle").bind(Add.bind()))  # type: ignore[attr-defined]


def milliseconds(explore: Callable[..., object], runs: int, rounds: int) -> float:
    """Return the time of one run, of the fastest round: a run has no luck of its own, the machine has."""
    times: list[float] = []
    for number in range(rounds):
        start = time.perf_counter()
        explore(run, runs=runs, seed=number * runs)
        times.append((time.perf_counter() - start) / runs * 1e3)
    return min(times)


def main() -> None:
    runs, rounds = (20, 1) if is_smoke(QUESTION) else (500, 5)
    explore = testing.explore
    explore(run, runs=20)
    cases: dict[str, Callable[..., object]] = {
        "no preemption": partial(explore, strategy=testing.Replay()),
        "random": explore,
        "pct": partial(explore, strategy="pct"),
        "round robin": partial(explore, strategy="round_robin"),
        "random, every line": partial(explore, grain="line"),
        "random, every line of threadserve": partial(explore, grain="runtime"),
    }
    costs = {
        name: milliseconds(case, runs if "threadserve" not in name else max(5, runs // 20), rounds)
        for name, case in cases.items()
    }
    rows: list[Sequence[object]] = [
        [name, cost, f"{1000 / cost:,.0f}", cost / costs["random"]] for name, cost in costs.items()
    ]
    table(QUESTION, ["", "ms a run", "runs a second", "x random"], rows)


if __name__ == "__main__":
    main()
