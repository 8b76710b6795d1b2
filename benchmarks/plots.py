"""Pictures of what was measured: scaling over replicas, chains over depth. Needs matplotlib, of the extra `bench`."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.report import Report

__all__ = ["SHAPES", "draw"]

SHAPES = {
    "chaining_overhead": (r"chain of (\d+)$", "p50", "stages", "us, p50"),
    "replica_scaling": (
        r"(\d+) replicas?, closed loop of 64$",
        "rate",
        "replicas",
        "calls/s, closed loop of 64",
    ),
}
"""For each benchmark that is drawn: how its subjects name x, the figure that is y, and the labels of the axes."""


def lines(report: Report) -> dict[str, dict[str, list[tuple[int, float, float, float]]]]:
    """Return table -> contender -> points (x, median, lower and upper quartile), those tables that have two x or more."""
    pattern, figure, _, _ = SHAPES[report.benchmark]
    found: dict[str, dict[str, list[tuple[int, float, float, float]]]] = {}
    for key, cell in report.cells.items():
        match = re.match(pattern, key.subject)
        if match and key.figure == figure:
            points = found.setdefault(key.table, {}).setdefault(key.contender, [])
            points.append((int(match[1]), cell.median, *cell.quartiles))
    return {
        table: {name: sorted(points) for name, points in contenders.items()}
        for table, contenders in found.items()
        if max(map(len, contenders.values())) > 1
    }


def draw(report: Report, path: Path) -> bool:
    """Write an SVG; False if there is nothing to be drawn.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    mpl: Any = importlib.import_module("matplotlib")
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = report.benchmark  # else every run names its parts anew
    plt: Any = importlib.import_module("matplotlib.pyplot")
    tables = lines(report)
    if not tables:
        return False
    _, _, x_label, y_label = SHAPES[report.benchmark]
    columns = min(2, len(tables))
    rows = -(-len(tables) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.5 * columns, 4 * rows), squeeze=False, layout="constrained"
    )
    for place, (table, contenders) in zip(axes.flat, tables.items(), strict=False):
        _draw_table(place, table, contenders)
        place.set_xlabel(x_label)
        place.set_ylabel(y_label)
    for place in axes.flat[len(tables) :]:
        place.set_axis_off()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def _draw_table(place: Any, table: str, contenders: dict[str, list[tuple[int, float, float, float]]]) -> None:
    ticks: set[int] = set()
    for name, points in contenders.items():
        at, medians, lows, highs = zip(*points, strict=True)
        (line,) = place.plot(at, medians, marker="o", markersize=3, label=name)
        place.fill_between(at, lows, highs, alpha=0.2, color=line.get_color())
        ticks |= set(at)
    place.set(xscale="log", yscale="log", title=table, xticks=sorted(ticks), xticklabels=sorted(ticks))
    place.minorticks_off()
    place.grid(visible=True, alpha=0.3)
    place.legend(fontsize="small")
