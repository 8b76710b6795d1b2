"""The one reporter of all benchmarks: what was measured, where, and how it compares within this run."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["is_smoke", "microseconds", "table"]


def is_smoke(question: str) -> bool:
    """Parse the command line; True asks for a run of seconds that only shows that the benchmark works."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--smoke", action="store_true", help="a short run whose figures mean nothing")
    return bool(parser.parse_args().smoke)


def microseconds(fn: Callable[[], object], *, rounds: int, calls: int) -> float:
    """Return the median over `rounds` of the mean time of one of `calls` calls, in microseconds."""
    means: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            fn()
        means.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(means)


def table(question: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print the question, the machine, and one table."""
    print(f"\n{question}")
    print(f"{_machine()}; commit {_commit()}\n")
    texts = [[_text(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    texts.insert(1, ["-" * width for width in widths])
    for name, *figures in texts:
        aligned = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *aligned]).rstrip())


def _text(cell: object) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def _machine() -> str:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    build = f"{platform.python_implementation()} {platform.python_version()}{'' if gil else ' without GIL'}"
    return f"{build}, {os.cpu_count()} cores, {platform.machine()} {platform.system()}"


def _commit() -> str:
    root = Path(__file__).parent
    describe = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
