"""Two runs of one benchmark: how many times the first each figure of the second is, and whether that is beyond doubt.

The interval of a ratio comes from drawing the rounds anew, with replacement, a thousand times (a percentile bootstrap of
the ratio of medians, from a fixed seed): 95% of the ratios so drawn lie in it. A figure has become worse if the whole
interval lies beyond the threshold, so noise alone rarely says so. Two runs saw the machine in different states;
`--relative-to RIVAL` compares what each run found relative to a rival that it measured by turns.
"""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.measure import FIGURES, quantile
from benchmarks.report import aligned, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measure import Key
    from benchmarks.report import Report

__all__ = ["Change", "changes", "interval", "show"]

DRAWS = 1000
FEWEST = 5
"""Rounds that each run must have for a verdict."""


class Change(NamedTuple):
    """What became of one figure."""

    key: Key
    before: float
    after: float
    ratio: float
    low: float
    high: float
    rounds: int

    def verdict(self, threshold: float) -> str:
        """Say "worse" or "better" if the whole interval is beyond `threshold`, a share such as 0.1."""
        if self.rounds < FEWEST:
            return "too few rounds"
        is_up, is_down = self.low > 1 + threshold, self.high < 1 / (1 + threshold)
        if not is_up and not is_down:
            return ""
        return "worse" if is_up == FIGURES[self.key.figure].is_less_better else "better"


def changes(before: Report, after: Report, relative_to: str = "") -> list[Change]:
    """Return what became of the figures that both reports have."""
    found: list[Change] = []
    for key in before.cells.keys() & after.cells.keys():
        pair = [_samples(report, key, relative_to) for report in (before, after)]
        if all(pair) and all(map(statistics.median, pair)):
            old, new = map(statistics.median, pair)
            low, high = interval(*pair)
            found.append(Change(key, old, new, new / old, low, high, min(map(len, pair))))
    order = list(before.cells)
    return sorted(found, key=lambda change: order.index(change.key))


def _samples(report: Report, key: Key, relative_to: str) -> Sequence[float]:
    if not relative_to:
        return report.cells[key].samples
    rival = report.cells.get(key._replace(contender=relative_to))
    if rival is None or key.contender == relative_to or not rival.median:
        return ()
    return [sample / rival.median for sample in report.cells[key].samples]


def interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Return where 95% of the ratios of medians lie when rounds are drawn anew."""
    chance = random.Random(0)
    ratios = [
        statistics.median(chance.choices(after, k=len(after)))
        / statistics.median(chance.choices(before, k=len(before)))
        for _ in range(DRAWS)
    ]
    return quantile(ratios, 0.025), quantile(ratios, 0.975)


def show(before: Report, after: Report, found: Sequence[Change], threshold: float) -> str:
    """Return a table of all changes, what is worse marked."""
    head = ["", "", "figure", "before", "after", "ratio", "95% interval", "verdict"]
    rows = [
        [
            " ".join(filter(None, (change.key.table, change.key.subject))),
            change.key.contender,
            change.key.figure,
            number(change.before),
            number(change.after),
            f"{change.ratio:.2f}",
            f"{change.low:.2f} - {change.high:.2f}",
            change.verdict(threshold),
        ]
        for change in found
    ]
    runs = [f"{name}: {report.where}" for name, report in (("before", before), ("after", after))]
    return "\n".join([f"{before.benchmark}: {before.question}", *runs, "", *aligned(head, rows, words=3)])
