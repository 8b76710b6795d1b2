"""Every promise is answered by a cell that some benchmark really has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks import targets
from benchmarks.measure import EFFORTS, Key, Run
from benchmarks.report import Report, make_report

if TYPE_CHECKING:
    from collections.abc import Iterator


class AnyCell(dict[Key, object]):
    """Stands for a report that has every cell, and notes which ones were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Key] = []

    def median(self, *key: str) -> float:
        self.asked.append(Key(*key))
        return 2.0


def asked_for() -> Iterator[tuple[str, Key]]:
    for target in targets.TARGETS:
        report = AnyCell()
        target.reached(report)  # type: ignore[arg-type]
        yield from ((target.benchmark, key) for key in report.asked)


def one_call(ours: float, executor: float) -> dict[str, Report]:
    run = Run(EFFORTS["full"])
    run.samples = {
        Key("", "one call", "threadserve", "p50"): [ours],
        Key("", "one call", "executor", "p50"): [executor],
    }
    return {"call_latency": make_report("call_latency", "?", run)}


def test_what_is_reached_is_set_beside_what_was_promised() -> None:
    head, rows = targets.show(targets.verdicts(one_call(ours=10, executor=100)))

    assert head == ["", "unit", "reached", "at least", "aim", "met?", "aim met?"]
    assert rows[0] == ["one call", "x executor", "0.1", "0.15", "0.07", "yes", "no"]


def test_what_was_not_measured_says_so_and_is_not_met() -> None:
    _, rows = targets.show(targets.verdicts({}))

    assert {row[2] for row in rows} == {"not measured"}
    assert {row[5] for row in rows} == {"?"}
    assert len(rows) == len(targets.TARGETS)


@pytest.mark.parametrize(
    ("value", "limit", "is_less_better", "expected"),
    [
        (1, 2, True, "yes"),
        (2, 2, True, "yes"),
        (3, 2, True, "no"),
        (3, 2, False, "yes"),
        (1, 2, False, "no"),
        (1, None, True, "-"),
    ],
)
def test_a_limit_is_met(value: float, limit: float | None, is_less_better: bool, expected: str) -> None:
    target = targets.Target("row", "benchmark", lambda _: 0.0, limit, None, "us", is_less_better)

    assert target.meets(value, limit) == expected


def test_an_aim_is_at_least_as_hard_as_what_is_promised() -> None:
    for target in targets.TARGETS:
        if target.at_least is not None and target.aim is not None:
            assert target.meets(target.aim, target.at_least) == "yes"


def test_cells_are_named_by_their_benchmarks_so_every_figure_is_known() -> None:
    from benchmarks.measure import FIGURES

    cells = list(asked_for())

    assert {key.figure for _, key in cells} <= FIGURES.keys()
    assert {name for name, _ in cells} == targets.NEEDED.keys()
