"""The one reporter of all benchmarks: what was measured, where, and how it compares within this run."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

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
    texts = [[str(cell) if not isinstance(cell, float) else f"{cell:.3g}" for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    for number, row in enumerate(texts):
        cells = [cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def _machine() -> str:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    build = f"{platform.python_implementation()} {platform.python_version()}{'' if gil else ' without GIL'}"
    return f"{build}, {os.cpu_count()} cores, {platform.machine()} {platform.system()}"


def _commit() -> str:
    root = Path(__file__).parent
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
