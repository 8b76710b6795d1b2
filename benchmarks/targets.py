"""What was promised, and what is reached: a row for each promise, answered by a named cell of a benchmark.

Most are ratios within one run, so they hold on other machines as well; some are times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from benchmarks import (
    call_latency,
    chaining_overhead,
    cold_start,
    fan_out,
    mixes,
    noisy_neighbour,
    outstanding,
    replica_scaling,
    streaming,
    throughput,
)
from benchmarks.peers import EXECUTOR, HANDED_OFF, OURS, RAY_LOCAL, SIMPLE_QUEUE
from benchmarks.report import aligned, markdown_table, number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.report import Report

__all__ = ["NEEDED", "PROMISED", "TARGETS", "Target", "markdown", "show", "text", "verdicts"]

PROMISED = "What was promised, and what is reached"


class Target(NamedTuple):
    """One promise: where the figure is found, how good it has to be at least, and what is aimed at."""

    row: str
    benchmark: str
    reached: Callable[[Report], float]
    """Raises KeyError where the report has no such cell."""
    at_least: float | None
    aim: float | None
    unit: str
    is_less_better: bool = True

    def meets(self, value: float, limit: float | None) -> str:
        if limit is None:
            return "-"
        return "yes" if (value <= limit if self.is_less_better else value >= limit) else "no"


def cell(subject: str, contender: str, figure: str = "p50", table: str = "") -> Callable[[Report], float]:
    return lambda report: report.median(table, subject, contender, figure)


def ratio(
    subject: str, ours: str, rival: str, figure: str = "p50", table: str = ""
) -> Callable[[Report], float]:
    return lambda report: (
        report.median(table, subject, ours, figure) / report.median(table, subject, rival, figure)
    )


def _hop_in_calls(report: Report) -> float:
    hop = report.median("def", chaining_overhead.HOP, OURS.name, "p50")
    return hop / report.median("def", chaining_overhead.subject(1), EXECUTOR.name, "p50")


def _times_faster(subject: str, table: str = "") -> Callable[[Report], float]:
    return lambda report: 1 / ratio(subject, OURS.name, RAY_LOCAL.name, table=table)(report)


def _gather(row: str, callers: int, contender: str, at_least: float, aim: float) -> Target:
    reached = ratio(throughput.gathered(callers), contender, EXECUTOR.name, "rate")
    return Target(row, "throughput", reached, at_least, aim, "x executor's rate", is_less_better=False)


def _stream(row: str, subject: str, at_least: float, aim: float) -> Target:
    reached = cell(streaming.at(subject, 64), OURS.name, "rate")
    return Target(row, "streaming", reached, at_least, aim, "items/s", is_less_better=False)


def _speed_up(row: str, mix: str, *, replicas: int, callers: int, at_least: float, aim: float) -> Target:
    table = replica_scaling.table(mixes.MIXES[mix])
    reached = cell(replica_scaling.closed(replicas, callers), OURS.name, "speed-up", table)
    return Target(row, "replica_scaling", reached, at_least, aim, "x one replica", is_less_better=False)


def _growth(row: str, figure: str) -> Target:
    low, high = outstanding.COUNTS[-2:]
    reached = cell(outstanding.growth(low, high), OURS.name, f"{figure}, growth", outstanding.GROWTH)
    return Target(row, "outstanding", reached, 1.7, None, "x as much each")


_MANY = outstanding.subject(outstanding.COUNTS[-1])
_TAIL = replica_scaling.table(mixes.MIXES["tail"])
_BESIDE_HALF = chaining_overhead.beside(mixes.MIXES["half"])
_X = "x executor"
_LOOP = "x round trip to a loop"

TARGETS = [
    Target(
        "one call", "call_latency", ratio(call_latency.ONE_CALL, OURS.name, EXECUTOR.name), 0.15, 0.07, _X
    ),
    Target(
        "one call, inline=False, on one core",
        "call_latency",
        ratio(call_latency.ONE_CORE, HANDED_OFF.name, EXECUTOR.name),
        1.1,
        0.9,
        _X,
    ),
    Target(
        "the same, against the floor",
        "call_latency",
        ratio(call_latency.ONE_CORE, HANDED_OFF.name, SIMPLE_QUEUE.name),
        1.6,
        1.3,
        "x SimpleQueue",
    ),
    Target(
        "each further hop of a chain", "chaining_overhead", _hop_in_calls, 0.15, None, "x executor's call"
    ),
    Target(
        "the same, in us",
        "chaining_overhead",
        cell(chaining_overhead.HOP, OURS.name, table="def"),
        None,
        3,
        "us",
    ),
    Target(
        "async ingress over two stages, helping allowed",
        "call_latency",
        ratio(call_latency.INGRESS, OURS.name, call_latency.ROUND_TRIP),
        1.2,
        0.5,
        _LOOP,
    ),
    Target(
        "the same, not allowed",
        "call_latency",
        ratio(call_latency.INGRESS, HANDED_OFF.name, call_latency.ROUND_TRIP),
        3.5,
        2.5,
        _LOOP,
    ),
    _gather("submit 10,000, then gather: one caller", 1, OURS.name, 2.5, 4),
    _gather("eight callers", 8, OURS.name, 1.5, 4),
    _gather("eight callers, inline=False", 8, HANDED_OFF.name, 3, 6),
    Target(
        "fan-out to 16 and back",
        "fan_out",
        ratio(fan_out.subject(16), OURS.name, EXECUTOR.name),
        0.4,
        0.2,
        _X,
    ),
    _stream("stream, bound 64, sync consumer", streaming.SYNC, 500_000, 2_000_000),
    _stream("stream, bound 64, one async hop", streaming.HOP, 400_000, 1_000_000),
    _speed_up("8 replicas of 5 ms sleep", "sleep", replicas=8, callers=64, at_least=7.6, aim=7.9),
    Target(
        "`tail`, open loop at 80%, 4 replicas, p99",
        "replica_scaling",
        ratio(replica_scaling.opened(4, 80), OURS.name, EXECUTOR.name, "p99", _TAIL),
        1.15,
        1.0,
        _X,
    ),
    Target(
        "chain of 4 beside `half` on another deployment",
        "chaining_overhead",
        ratio(chaining_overhead.subject(4), OURS.name, EXECUTOR.name, table=_BESIDE_HALF),
        0.5,
        0.1,
        _X,
    ),
    _speed_up("2 replicas of GIL-releasing work", "outside", replicas=2, callers=8, at_least=1.7, aim=1.9),
    Target(
        "100,000 outstanding: memory each",
        "outstanding",
        cell(_MANY, OURS.name, "memory each"),
        0.6,
        0.4,
        "KB",
    ),
    Target(
        "100,000 outstanding: submit each", "outstanding", cell(_MANY, OURS.name, "submit each"), 3, 1.5, "us"
    ),
    _growth("linear from 10,000 to 100,000: memory", "memory each"),
    _growth("linear from 10,000 to 100,000: submit", "submit each"),
    Target(
        "against Ray's local testing mode, one call",
        "call_latency",
        _times_faster(call_latency.ONE_CALL),
        50,
        200,
        "x faster",
        is_less_better=False,
    ),
    Target(
        "the same, chain of 4",
        "chaining_overhead",
        _times_faster(chaining_overhead.subject(4), "def"),
        50,
        200,
        "x faster",
        is_less_better=False,
    ),
    Target(
        "beside pure-Python work: a call",
        "noisy_neighbour",
        cell(noisy_neighbour.CALL, OURS.name, table=noisy_neighbour.BUSY),
        10,
        5,
        "us",
    ),
    Target(
        "beside pure-Python work: an async ingress",
        "noisy_neighbour",
        cell(noisy_neighbour.INGRESS, OURS.name, table=noisy_neighbour.BUSY),
        100,
        30,
        "us",
    ),
    Target(
        "import",
        "cold_start",
        cell(cold_start.IMPORT, OURS.name, "above nothing", cold_start.PROGRAMS),
        60,
        30,
        "ms",
    ),
    Target(
        "the same, with all that the first app loads",
        "cold_start",
        cell(cold_start.LOADED, OURS.name, "above nothing", cold_start.PROGRAMS),
        60,
        30,
        "ms",
    ),
    Target(
        "deploy 100",
        "cold_start",
        cell(cold_start.deploying(100), OURS.name, "time", cold_start.STEPS),
        100,
        50,
        "ms",
    ),
    Target("exit", "cold_start", cell(cold_start.EXIT, OURS.name, "time", cold_start.STEPS), 50, 25, "ms"),
]
"""Issue 4's table, in its order."""

NEEDED: dict[str, list[str]] = {target.benchmark: [] for target in TARGETS} | {
    "replica_scaling": ["sleep", "tail", "outside"],
    "chaining_overhead": ["idle", "half"],
}
"""Which benchmarks have to run, and the parts of them that are asked for; no part means all."""


def verdicts(reports: Mapping[str, Report]) -> list[tuple[Target, float | None]]:
    """Return what was reached at each row; None where it was not measured."""
    return [(target, _reached(target, reports)) for target in TARGETS]


def _reached(target: Target, reports: Mapping[str, Report]) -> float | None:
    try:
        return target.reached(reports[target.benchmark])
    except KeyError:
        return None


def show(reached: list[tuple[Target, float | None]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table."""
    head = ["", "unit", "reached", "at least", "aim", "met?", "aim met?"]
    rows: list[list[str]] = []
    for target, value in reached:
        limits = [number(limit) if limit is not None else "-" for limit in (target.at_least, target.aim)]
        if value is None:
            rows.append([target.row, target.unit, "not measured", *limits, "?", "?"])
        else:
            met = [target.meets(value, limit) for limit in (target.at_least, target.aim)]
            rows.append([target.row, target.unit, number(value), *limits, *met])
    return head, rows


def markdown(reached: list[tuple[Target, float | None]], where: str) -> str:
    """Return a page with the table."""
    return "\n".join([f"# {PROMISED}", "", where, "", *markdown_table(*show(reached)), ""])


def text(reached: list[tuple[Target, float | None]]) -> str:
    """Return the table for a terminal."""
    return "\n".join(aligned(*show(reached), words=2))
