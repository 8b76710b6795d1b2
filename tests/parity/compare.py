"""Runs the programs of ``programs/`` and compares the facts that they print with those on record.

``python tests/parity/compare.py`` runs them on threads; with ``--python PATH`` the interpreter of an environment that has real
Ray runs them, on a cluster of its own. What differs there on purpose stands in DIFFERENCES, with the reason.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent / "programs"
ROOT = PROGRAMS.parents[2]
LIMIT_S = 240.0
ATTEMPTS = 2
"""A cluster does not always come up on a small machine."""

VARIES = "varies"

DIFFERENCES: dict[tuple[str, str], tuple[str, str]] = {
    ("streams", "giving up loses no item"): (
        VARIES,
        "an item that arrives while its reader gives up is lost there, at times; here it waits for the next reader",
    ),
}
"""(program, fact) -> (what Ray prints, why it is not so here)."""


def names() -> list[str]:
    """Return the names of the programs."""
    return sorted(path.stem for path in PROGRAMS.glob("*.py"))


def expected(name: str) -> dict[str, str]:
    """Return the facts on record."""
    return facts((PROGRAMS / f"{name}.txt").read_text(encoding="utf-8"))


def facts(text: str) -> dict[str, str]:
    """Return fact -> value, of the lines of a program's output that are facts."""
    pairs = (line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("- ") and ": " in line)
    return {pair[0]: pair[1] for pair in pairs}


def run(name: str, python: str | None = None) -> tuple[dict[str, str], str]:
    """Run a program, on threads or with the Ray of `python`; return its facts, and what it said if it failed."""
    script = str(PROGRAMS / f"{name}.py")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    if python is None:
        command = [sys.executable, "-W", "ignore", "-m", "threadserve.as_ray", script]
        environment["PYTHONPATH"] = str(ROOT)
    else:
        command = [python, "-W", "ignore", script]
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment, cwd=PROGRAMS
    )
    trouble = "" if done.returncode == 0 else f"exit status {done.returncode}\n{done.stderr[-3000:]}"
    return facts(done.stdout), trouble


def differing(name: str, found: dict[str, str], *, on_ray: bool) -> list[str]:
    """Return a line for each fact that is not what it should be."""
    lines = []
    for fact, value in expected(name).items():
        wanted, _ = DIFFERENCES.get((name, fact), (value, "")) if on_ray else (value, "")
        if wanted != VARIES and found.get(fact) != wanted:
            lines.append(f"{name}: {fact}: expected {wanted}, found {found.get(fact, 'nothing')}")
    return lines + [f"{name}: {fact}: not on record" for fact in found if fact not in expected(name)]


def main() -> int:
    """Compare all programs, or those named; the number of facts that differ is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", help="an interpreter that has real Ray")
    parser.add_argument(
        "--record", action="store_true", help="write down what threads print as what is expected"
    )
    parser.add_argument("programs", nargs="*", default=names(), metavar="PROGRAM")
    options = parser.parse_args()
    wrong: list[str] = []
    for name in options.programs:
        for _ in range(1 if options.python is None else ATTEMPTS):
            found, trouble = run(name, options.python)
            if not trouble:
                break
        if options.record and not trouble:
            lines = "".join(f"- {fact}: {value}\n" for fact, value in found.items())
            (PROGRAMS / f"{name}.txt").write_text(lines, encoding="utf-8")
        bad = differing(name, found, on_ray=options.python is not None) + (
            [f"{name}: {trouble}"] if trouble else []
        )
        known = sum(1 for program, _ in DIFFERENCES if program == name) if options.python else 0
        print(f"{name:14} {len(found):3} facts, {known} known to differ, {len(bad)} wrong", flush=True)
        wrong += bad
    print("\n".join(wrong))
    return min(len(wrong), 99)


if __name__ == "__main__":
    sys.exit(main())
