"""The command line of the benchmarks.

python -m benchmarks --list                             what there is
python -m benchmarks NAME [--quick | --smoke]           one question; Ctrl-C keeps what was measured
python -m benchmarks NAME --json FILE --results FOLDER  its figures in a file; or JSON, Markdown and SVG in a folder
python -m benchmarks all                                every question, each in a process of its own
python -m benchmarks targets                            what was promised, and what is reached
python -m benchmarks compare BEFORE.json AFTER.json     two runs; status 1 if a figure is worse beyond --threshold
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import plots, report
from benchmarks.measure import EFFORTS, Run

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = (
    "call_latency",
    "steps",
    "throughput",
    "fan_out",
    "chaining_overhead",
    "streaming",
    "noisy_neighbour",
    "replica_scaling",
    "interpreters",
    "outstanding",
    "cold_start",
    "simulator",
)
SOAK = "soak"
"""Draws up an account instead of a table of rivals, and has a command line of its own."""

TAKE_AN_APP = ("call_latency", "throughput", "chaining_overhead")
HAVE_PARTS = ("chaining_overhead", "replica_scaling")
INTERRUPTED = 130
WITHOUT_CLUSTER = ("--without", "Ray Serve")
"""Nothing is promised against it, and its processes take time from all others."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == [SOAK]:
        sys.argv[:] = [f"{sys.argv[0]} {SOAK}", *given[1:]]
        status: int = importlib.import_module(f"benchmarks.{SOAK}").main()
        return status
    parser = make_parser()
    options = parser.parse_args(given)
    if options.list:
        for name in (*NAMES, SOAK):
            print(f"{name:18} {importlib.import_module(f'benchmarks.{name}').QUESTION}")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def run_one(options: argparse.Namespace) -> int:
    """Measure one question, and report what was measured even if it was interrupted."""
    module: Any = importlib.import_module(f"benchmarks.{options.command}")
    run = Run(EFFORTS[options.effort], options.seed, tuple(options.only), tuple(options.without), tell=tell)
    if options.app:
        run.app = load_app(options)
    is_interrupted = False
    try:
        module.measure(run)
    except KeyboardInterrupt:
        is_interrupted = True
    tell("")
    found = report.make_report(options.command, module.QUESTION, run, is_interrupted=is_interrupted)
    print(f"\n{found.text()}\n", flush=True)
    if options.json:
        Path(options.json).write_text(found.json(), encoding="utf-8")
    if options.results:
        keep(found, Path(options.results))
    return INTERRUPTED if is_interrupted else 0


def load_app(options: argparse.Namespace) -> Any:
    from benchmarks.peers import own_app

    sys.path.insert(0, "")
    return own_app(options.app, options.method, json.loads(options.args))


def keep(found: report.Report, folder: Path) -> None:
    """Write JSON, Markdown and, where matplotlib is installed, the picture if this benchmark has one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{found.benchmark}.json").write_text(found.json(), encoding="utf-8")
    (folder / f"{found.benchmark}.md").write_text(found.markdown(), encoding="utf-8")
    if found.benchmark in plots.SHAPES:
        try:
            plots.draw(found, folder / f"{found.benchmark}.svg")
        except ModuleNotFoundError as error:
            print(f"no picture of {found.benchmark}: {error}", file=sys.stderr)


def run_all(options: argparse.Namespace) -> int:
    """Ask every question in a process of its own, then those about the promises; stop at an interrupt."""
    effort = [] if options.effort == "full" else [f"--{options.effort}"]
    kept = ["--results", options.results] if options.results else []
    failed: list[str] = []
    for name in (*NAMES, SOAK):
        arguments = [*effort, *kept] if name != SOAK else ["--smoke"] * (options.effort != "full")
        print(f"== {name}", flush=True)
        status = run_child([name, *arguments])
        if status == INTERRUPTED:
            return status
        failed += [name] * (status != 0)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_targets(options: argparse.Namespace) -> int:
    """Run what the promises need, or read it from a folder, and print what is reached."""
    from benchmarks import targets

    with tempfile.TemporaryDirectory() as made:
        folder = Path(options.read or options.results or made)
        names = list(targets.NEEDED) if options.read else measure_targets(options, folder)
        files = {name: folder / f"{name}.json" for name in names}
        reports = {name: report.load(path) for name, path in files.items() if path.is_file()}
    reached = targets.verdicts(reports)
    where = next(iter(reports.values())).where if reports else "nothing was measured"
    print(f"\n{targets.PROMISED}\n{where}\n\n{targets.text(reached)}\n")
    if options.results:
        Path(options.results, "targets.md").write_text(targets.markdown(reached, where), encoding="utf-8")
    is_met = all(
        value is not None and target.meets(value, target.at_least) != "no" for target, value in reached
    )
    return 0 if is_met or not options.strict else 1


def measure_targets(options: argparse.Namespace, folder: Path) -> list[str]:
    """Measure what the promises need, each in a process of its own; return what has left results, if only in part."""
    from benchmarks import targets

    effort = [] if options.effort == "full" else [f"--{options.effort}"]
    measured: list[str] = []
    for name, parts in targets.NEEDED.items():
        only = [word for part in parts for word in ("--only", part)]
        status = run_child([name, *effort, *only, *WITHOUT_CLUSTER, "--results", str(folder)])
        measured += [name] * (status in (0, INTERRUPTED))
        if status == INTERRUPTED:
            break
    return measured


def run_compare(options: argparse.Namespace) -> int:
    """Print how two runs differ; return 1 if something has become worse beyond doubt and threshold."""
    from benchmarks import compare

    before, after = (report.load(Path(path)) for path in (options.before, options.after))
    found = compare.changes(before, after, options.relative_to)
    threshold = options.threshold / 100
    print(compare.show(before, after, found, threshold))
    return int(any(change.verdict(threshold) == "worse" for change in found))


def run_child(arguments: list[str]) -> int:
    """Run this command line in a process of its own; its interrupt is ours as well."""
    child = subprocess.Popen([sys.executable, "-m", "benchmarks", *arguments])
    try:
        return child.wait()
    except KeyboardInterrupt:  # the child has got it too, and now says what it has measured
        child.wait()
        return INTERRUPTED


def tell(text: str) -> None:
    """Say on a terminal how far it is."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="name the benchmarks and what they ask")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    how = argparse.ArgumentParser(add_help=False)
    efforts = how.add_mutually_exclusive_group()
    for effort, says in (
        ("quick", "fewer and shorter rounds"),
        ("smoke", "shows that it works; figures mean nothing"),
    ):
        efforts.add_argument(f"--{effort}", dest="effort", action="store_const", const=effort, help=says)
    how.set_defaults(effort="full")
    how.add_argument(
        "--results", metavar="FOLDER", help="write JSON, Markdown and SVG here, named after the benchmark"
    )

    one = argparse.ArgumentParser(add_help=False, parents=[how])
    one.add_argument(
        "--seed", type=int, default=1, help="of the order within a round, and of arrivals (default: 1)"
    )
    one.add_argument("--json", metavar="FILE", help="write the figures here")
    one.add_argument(
        "--without", metavar="RIVAL", action="append", default=[], help="leave it out; may be repeated"
    )
    one.set_defaults(app=None, only=[])
    for name in NAMES:
        command = commands.add_parser(name, parents=[one])
        command.set_defaults(run=run_one)
        if name in TAKE_AN_APP:
            command.add_argument("--app", metavar="MODULE:APP", help="measure an app of your own as well")
            command.add_argument("--method", default="__call__", help="of its ingress (default: %(default)s)")
            command.add_argument("--args", metavar="JSON", default="[]", help="a list (default: %(default)s)")
        if name in HAVE_PARTS:
            command.add_argument(
                "--only", metavar="PART", action="append", default=[], help="idle, or a mix; may be repeated"
            )
    commands.add_parser(SOAK, help="see `python -m benchmarks soak --help`")
    commands.add_parser("all", parents=[how]).set_defaults(run=run_all)

    targets = commands.add_parser("targets", parents=[how])
    targets.set_defaults(run=run_targets)
    targets.add_argument(
        "--from", dest="read", metavar="FOLDER", help="read results there instead of measuring"
    )
    targets.add_argument(
        "--strict", action="store_true", help="exit status 1 if something promised is not reached"
    )

    compare = commands.add_parser("compare")
    compare.set_defaults(run=run_compare)
    compare.add_argument("before")
    compare.add_argument("after")
    compare.add_argument(
        "--threshold", type=float, metavar="PERCENT", default=10, help="(default: %(default)s)"
    )
    compare.add_argument("--relative-to", metavar="RIVAL", default="", help="compare ratios to this rival")
    return parser


if __name__ == "__main__":
    sys.exit(main())
