"""How much more do more replicas serve, how long do calls take then, and is the work shared evenly?"""

from __future__ import annotations

import contextlib
import random
import statistics
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import mixes, peers
from benchmarks.load import arrivals, closed_loop, open_loop
from benchmarks.measure import Case, Key, quantile
from threadserve.concurrency.interpreters import is_offered

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Run

QUESTION = "How much more do 2, 4 and 8 replicas serve than one, how late, and is the work shared evenly?"

REPLICAS = (1, 2, 4, 8)
CALLERS = (1, 8, 64)
LOADS = (50, 80, 95)
NEIGHBOUR = mixes.MIXES["half"]

CONTENDERS = [peers.OURS, peers.HANDED_OFF, *peers.THREADS]


def contenders(mix: mixes.Mix) -> list[peers.Peer]:
    """Return who does the jobs of a mix."""
    if mix.is_for_interpreters and is_offered():
        return [*CONTENDERS[:2], peers.INTERPRETERS, *CONTENDERS[2:]]
    return CONTENDERS


def table(mix: mixes.Mix) -> str:
    return f"{mix.name}: {mix.says}"


def closed(replicas: int, callers: int) -> str:
    return f"{_count(replicas)}, closed loop of {callers}"


def opened(replicas: int, load: int) -> str:
    return f"{_count(replicas)}, open loop at {load}%"


def _count(replicas: int) -> str:
    return f"{replicas} replica{'s' * (replicas > 1)}"


class Bench:
    """One contender with so many workers, and the neighbour that it is measured beside, if any."""

    def __init__(self, stack: contextlib.ExitStack, peer: peers.Peer, mix: mixes.Mix, workers: int) -> None:
        self.mix = mix
        self.workers = workers
        self.ledger = mixes.Ledger()
        self._connect = stack.enter_context(mixes.open_mix(peer, mix, workers, self.ledger))
        self._neighbour: peers.Client | None = None
        if mix.name == "graph":
            connect = stack.enter_context(mixes.open_mix(peer, NEIGHBOUR, 1, mixes.Ledger()))
            self._neighbour = connect()

    def closed(self, callers: int, seconds: float) -> dict[str, float]:
        clients = [self._connect() for _ in range(callers)]
        self.ledger.expect(0)
        with self._beside():
            rate, times = closed_loop(
                callers, lambda number: clients[number % callers].call(self.mix.job(number)), seconds
            )
        return self._figures(rate, times)

    def open(self, moments: list[float]) -> dict[str, float]:
        client = self._connect()
        self.ledger.expect(len(moments))
        with self._beside():
            rate, times = open_loop(
                moments, lambda number: client.submit(self.mix.job(number)), self.ledger.wait
            )
        return self._figures(rate, times)

    def _beside(self) -> contextlib.AbstractContextManager[None]:
        if self._neighbour is None:
            return contextlib.nullcontext()
        return mixes.busy(self._neighbour, NEIGHBOUR)

    def _figures(self, rate: float, times: list[float]) -> dict[str, float]:
        return {
            "rate": rate,
            "p50": statistics.median(times),
            "p99": quantile(times, 0.99),
            "least share": self.ledger.least_share(self.workers),
        }


def measure(run: Run) -> None:
    mixes.calibrate()
    for mix in mixes.MIXES.values():
        if run.wants(mix.name):
            measure_mix(run, mix)


def measure_mix(run: Run, mix: mixes.Mix) -> None:
    replicas = run.effort.pick(smoke=(1, 2), quick=REPLICAS, full=REPLICAS)
    callers = run.effort.pick(smoke=(8,), quick=CALLERS, full=CALLERS)
    seconds = run.effort.pick(smoke=0.01, quick=0.1, full=0.3)
    rounds = run.effort.pick(smoke=0, quick=2, full=5)
    with contextlib.ExitStack() as stack:
        benches = {
            (count, peer.name): Bench(stack, peer, mix, count)
            for peer in peers.present(contenders(mix), run)
            for count in replicas
        }
        run.rounds(
            [
                Case(closed(count, many), name, partial(bench.closed, many, seconds), table(mix))
                for many in callers
                for (count, name), bench in benches.items()
            ],
            rounds,
        )
        for count, name in benches:
            for many in callers:
                rates = [Key(table(mix), closed(n, many), name, "rate") for n in (1, count)]
                run.derive(rates[1]._replace(figure="speed-up"), rates, lambda one, more: more / one)
        run.rounds(open_cases(run, mix, benches, max(callers)), rounds)
    run.note(
        "open loop: Poisson arrivals, the same for all, at a share of the lesser of the capacities of threadserve and "
        f"the executor, as measured in the closed loop of {max(callers)}; latency counts from the arrival that was "
        "drawn to the end of the work; nobody waits there, so inline=False makes no difference"
    )
    run.note("least share: the calls that the idlest replica or worker ran, in % of an even share")
    run.note(
        "Pykka has as many actors, called by turns; rivals do a chain's four steps on one of 4 x as many workers"
    )


def open_cases(run: Run, mix: mixes.Mix, benches: dict[tuple[int, str], Bench], callers: int) -> list[Case]:
    loads = run.effort.pick(smoke=(80,), quick=LOADS, full=LOADS)
    seconds = run.effort.pick(smoke=0.02, quick=0.2, full=1.5 if mix.name == "tail" else 0.4)
    cases: list[Case] = []
    for count in dict.fromkeys(count for count, _ in benches):
        capacity = min(
            statistics.median(run.samples[Key(table(mix), closed(count, callers), name, "rate")])
            for name in (peers.OURS.name, peers.EXECUTOR.name)
        )
        for load in loads:
            schedule = Schedule(capacity * load / 100, seconds, f"{run.seed} {mix.name} {count} {load}")
            cases += [
                Case(opened(count, load), name, schedule.sampler(bench), table(mix))
                for (workers, name), bench in benches.items()
                if workers == count and name != peers.HANDED_OFF.name
            ]
    return cases


class Schedule:
    """Draws arrivals anew for each round, the same ones for every contender."""

    def __init__(self, rate: float, seconds: float, seed: str) -> None:
        self.rate = rate
        self.seconds = seconds
        self.seed = seed

    def sampler(self, bench: Bench) -> Callable[[], dict[str, float]]:
        chance = random.Random(self.seed)
        return lambda: bench.open(arrivals(self.rate, self.seconds, chance))
