"""Two runs differ only where the interval of their ratio says so."""

from __future__ import annotations

import random

import pytest

from benchmarks.compare import changes, interval, show
from benchmarks.measure import EFFORTS, Key, Run
from benchmarks.report import Report, make_report


def report(figure: str = "p50", **samples: list[float]) -> Report:
    run = Run(EFFORTS["full"])
    run.samples = {Key("", "a call", name, figure): values for name, values in samples.items()}
    return make_report("call_latency", "What does it cost?", run)


def around(value: float, seed: int, spread: float = 0.05) -> list[float]:
    chance = random.Random(seed)
    return [value * chance.uniform(1 - spread, 1 + spread) for _ in range(15)]


def verdict(before: Report, after: Report, threshold: float = 0.1, relative_to: str = "") -> str:
    (change,) = [c for c in changes(before, after, relative_to) if c.key.contender == "threadserve"]
    return change.verdict(threshold)


def test_the_interval_holds_the_ratio_and_narrows_with_the_spread() -> None:
    narrow = interval(around(10, 1, 0.01), around(20, 2, 0.01))
    wide = interval(around(10, 1, 0.3), around(20, 2, 0.3))

    assert narrow[0] < 2 < narrow[1]
    assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])


def test_the_same_runs_give_the_same_interval() -> None:
    assert interval(around(10, 1), around(20, 2)) == interval(around(10, 1), around(20, 2))


@pytest.mark.parametrize(
    ("figure", "before", "after", "expected"),
    [
        ("p50", 10, 10, ""),
        ("p50", 10, 10.5, ""),
        ("p50", 10, 13, "worse"),
        ("p50", 13, 10, "better"),
        ("rate", 10, 13, "better"),
        ("rate", 13, 10, "worse"),
    ],
)
def test_a_figure_is_worse_or_better_by_what_it_measures(
    figure: str, before: float, after: float, expected: str
) -> None:
    old = report(figure, threadserve=around(before, 1))
    new = report(figure, threadserve=around(after, 2))

    assert verdict(old, new) == expected


def test_noise_across_the_threshold_is_no_verdict() -> None:
    assert verdict(report(threadserve=around(10, 1, 0.9)), report(threadserve=around(12, 2, 0.9))) == ""


def test_a_few_rounds_are_no_verdict() -> None:
    assert verdict(report(threadserve=[10.0] * 4), report(threadserve=[20.0] * 15)) == "too few rounds"


def test_relative_to_a_rival_a_slower_machine_is_no_slower_program() -> None:
    before = report(threadserve=around(10, 1), executor=around(50, 2))
    after = report(threadserve=around(20, 3), executor=around(100, 4))

    assert verdict(before, after) == "worse"
    assert verdict(before, after, relative_to="executor") == ""


def test_only_figures_of_both_runs_are_compared_in_the_order_of_the_first() -> None:
    before = report(threadserve=around(1, 1), executor=around(1, 2), gone=around(1, 3))
    after = report(new=around(1, 1), executor=around(1, 2), threadserve=around(1, 3))

    assert [change.key.contender for change in changes(before, after)] == ["threadserve", "executor"]


def test_the_table_has_a_row_for_each_figure() -> None:
    before, after = report(threadserve=[10.0] * 5), report(threadserve=[20.0] * 5)

    text = show(before, after, changes(before, after), threshold=0.1)

    row = text.splitlines()[-1]
    assert row.split() == [
        "a",
        "call",
        "threadserve",
        "p50",
        "10",
        "20",
        "2.00",
        "2.00",
        "-",
        "2.00",
        "worse",
    ]
