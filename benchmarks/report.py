"""The one reporter: what was measured, of whom, where, and how it compares within this run; as text, Markdown, JSON."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import FIGURES, Key, quantile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.measure import Run

__all__ = [
    "Cell",
    "Report",
    "aligned",
    "environment",
    "load",
    "make_report",
    "markdown_table",
    "number",
    "table",
]

OURS = "threadserve"
"""How the contenders that are not rivals begin."""


@dataclass(frozen=True)
class Cell:
    """One figure of one contender, sampled round by round."""

    key: Key
    samples: tuple[float, ...]

    @cached_property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        return quantile(self.samples, 0.25), quantile(self.samples, 0.75)


@dataclass
class Report:
    """What one run of one benchmark found."""

    benchmark: str
    question: str
    environment: dict[str, Any]
    effort: str
    seed: int
    cells: dict[Key, Cell]
    notes: list[str] = field(default_factory=list)
    is_interrupted: bool = False

    def __post_init__(self) -> None:
        contenders = dict.fromkeys(key.contender for key in self.cells)
        self._rivals = [name for name in contenders if not name.startswith(OURS)]

    def median(self, table: str, subject: str, contender: str, figure: str) -> float:
        """Return one median. Raises KeyError if it was not measured."""
        return self.cells[Key(table, subject, contender, figure)].median

    def ratios(self, cell: Cell) -> dict[str, float]:
        """Return how many times each rival's median this one is, of the rivals with the same figure at the same subject."""
        others = [name for name in self._rivals if name != cell.key.contender]
        found = {name: self.cells.get(cell.key._replace(contender=name)) for name in others}
        return {name: cell.median / rival.median for name, rival in found.items() if rival and rival.median}

    def tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Yield name, head and rows of each table: a row for each subject and contender, quartiles of its first figure."""
        for name in dict.fromkeys(key.table for key in self.cells):
            cells = [cell for cell in self.cells.values() if cell.key.table == name]
            figures = list(dict.fromkeys(cell.key.figure for cell in cells))
            rows_of = dict.fromkeys((cell.key.subject, cell.key.contender) for cell in cells)
            subjects = list(dict.fromkeys(subject for subject, _ in rows_of))
            rivals = list(dict.fromkeys(rival for cell in cells for rival in self.ratios(cell)))
            rows = [
                self._row(name, subject, contender, figures, rivals)
                for subject, contender in sorted(rows_of, key=lambda row: subjects.index(row[0]))
            ]
            first, *others = [f"{figure}, {FIGURES[figure].unit}" for figure in figures]
            head = ["", "", first, "quartiles", "n", *others, *[f"x {rival}" for rival in rivals]]
            yield name, head, rows

    def _row(
        self, table: str, subject: str, contender: str, figures: list[str], rivals: list[str]
    ) -> list[str]:
        mine = [self.cells.get(Key(table, subject, contender, figure)) for figure in figures]
        first = mine[0]
        texts = [number(cell.median) if cell else "" for cell in mine]
        spread = " - ".join(map(number, first.quartiles)) if first else ""
        count = str(len(first.samples)) if first else ""
        ratios = self.ratios(first) if first else {}
        times = [number(ratios[rival]) if rival in ratios else "" for rival in rivals]
        return [subject, contender, texts[0], spread, count, *texts[1:], *times]

    def text(self) -> str:
        """Return what a terminal shows."""
        parts = [f"{self.question}\n{self.where}"]
        for name, head, rows in self.tables():
            parts.append("\n".join([*([f"-- {name}"] if name else []), *aligned(head, rows, words=2)]))
        parts += self._remarks()
        return "\n\n".join(parts)

    def markdown(self) -> str:
        """Return the same as a page, with the command that made it."""
        parts = [
            f"# {self.benchmark}\n\n{self.question}",
            f"`{self.environment['command']}`\n\n{self.where}",
        ]
        for name, head, rows in self.tables():
            parts.append("\n".join([*([f"## {name}", ""] if name else []), *markdown_table(head, rows)]))
        return "\n\n".join(parts + self._remarks()) + "\n"

    def json(self) -> str:
        """Return everything: medians, quartiles, each sample, and the ratios."""
        cells = [
            {
                **cell.key._asdict(),
                "unit": FIGURES[cell.key.figure].unit,
                "is_less_better": FIGURES[cell.key.figure].is_less_better,
                "median": cell.median,
                "quartiles": cell.quartiles,
                "n": len(cell.samples),
                "ratios": self.ratios(cell),
                "samples": cell.samples,
            }
            for cell in self.cells.values()
        ]
        document = {each.name: getattr(self, each.name) for each in fields(self)}
        document["cells"] = cells
        return json.dumps(document, indent=1) + "\n"

    @property
    def where(self) -> str:
        """Say on what, and how long, this was measured."""
        where = self.environment
        rivals = "".join(f"; {name} {version}" for name, version in where["packages"].items())
        return (
            f"{where['python']}{rivals}; {where['machine']}; commit {where['commit']}; {where['date']}; "
            f"{self.effort}, seed {self.seed}"
        )

    def _remarks(self) -> list[str]:
        remarks = [f"- {note}" for note in self.notes]
        if self.is_interrupted:
            remarks.append("- interrupted: this is what had been measured")
        return ["\n".join(remarks)] if remarks else []


def make_report(benchmark: str, question: str, run: Run, *, is_interrupted: bool = False) -> Report:
    """Return what a run has found so far."""
    run.finish()
    cells = {key: Cell(key, tuple(samples)) for key, samples in run.samples.items() if samples}
    return Report(
        benchmark, question, environment(), run.effort.name, run.seed, cells, list(run.notes), is_interrupted
    )


def load(path: Path) -> Report:
    """Read what `Report.json` wrote."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    cells: dict[Key, Cell] = {}
    for entry in document["cells"]:
        key = Key(**{name: entry[name] for name in Key._fields})
        cells[key] = Cell(key, tuple(entry["samples"]))
    document["cells"] = cells
    return Report(**document)


def table(question: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print the question, the machine, and one table of a program that draws up its own."""
    where = environment()
    print(f"\n{question}\n{where['python']}; {where['machine']}; commit {where['commit']}\n")
    print("\n".join(aligned(head, [[_text(cell) for cell in row] for row in rows])))


def number(value: float, digits: int = 3) -> str:
    """Write so many digits that matter, and thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _text(cell: object) -> str:
    return number(cell) if isinstance(cell, float) else str(cell)


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """Lay a table out in lines: the first columns, which are words, to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [list(head), ["-" * width for width in widths], *map(list, rows)]
    return [
        "  ".join(
            text.ljust(width) if place < words else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay a table out for a page; the first two columns are words."""
    rule = ["---", "---", *["--:"] * (len(head) - 2)]
    return [_markdown_row(row) for row in (head, rule, *rows)]


def _markdown_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def environment() -> dict[str, Any]:
    """Return where and how this runs: machine, Python build, commit, command."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    is_declared = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    build = f"{platform.python_implementation()} {platform.python_version()}"
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return {
        # Distributions have ways of their own to it, which do not show.
        "python": f"{build}{'' if gil else ' without GIL'}, {'PGO' if is_declared else 'no PGO declared'}",
        "python_build": sys.version,
        "has_gil": gil,
        "machine": f"{_processor()}, {len(affinity)} of {os.cpu_count()} cores, {platform.platform(terse=True)}",
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "packages": _packages(),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "command": f"python -m benchmarks {shlex.join(sys.argv[1:])}".rstrip(),
    }


def _packages() -> dict[str, str]:
    """Return the versions of the rivals that are installed."""
    found: dict[str, str] = {}
    for name in ("pykka", "ray"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Name the commit, and say if the tree differs from it; results that were written meanwhile make no difference."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results"
    )
    return f"{commit}{'-dirty' if changed else ''}" if commit else "unknown"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return ""
    return done.stdout.strip()
