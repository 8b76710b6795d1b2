"""The command line of the benchmarks: `python -m benchmarks NAME [--quick | --smoke] [--json FILE]`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import EFFORTS, Run
from benchmarks.report import make_report

NAMES = [
    "call_latency",
    "throughput",
    "fan_out",
    "chaining_overhead",
    "streaming",
]


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        for name in NAMES:
            print(f"{name:18} {importlib.import_module(f'benchmarks.{name}').QUESTION}")
        return 0
    if options.name is None:
        parser().print_help()
        return 2
    return run_one(options)


def run_one(options: argparse.Namespace) -> int:
    module: Any = importlib.import_module(f"benchmarks.{options.name}")
    run = Run(EFFORTS[options.effort], options.seed, options, tell=tell)
    is_interrupted = False
    try:
        module.measure(run)
    except KeyboardInterrupt:
        is_interrupted = True
    tell("")
    report = make_report(options.name, module.QUESTION, run, is_interrupted=is_interrupted)
    print(f"\n{report.text()}\n")
    if options.json:
        Path(options.json).write_text(report.json(), encoding="utf-8")
    return 130 if is_interrupted else 0


def tell(text: str) -> None:
    """Say on a terminal how far it is."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("name", nargs="?", choices=NAMES)
    made.add_argument("--list", action="store_true", help="name the benchmarks and what they ask")
    made.add_argument("--quick", dest="effort", action="store_const", const="quick", default="full")
    made.add_argument("--smoke", dest="effort", action="store_const", const="smoke")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--json", metavar="FILE")
    return made


if __name__ == "__main__":
    sys.exit(main())
