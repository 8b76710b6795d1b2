"""Measures a script of two deployments from the start of Python to its exit: on threads and, with ``--ray PYTHON``, on Ray."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
from ray import serve

@serve.deployment
class Adder:
    def __call__(self, value):
        return value + 1

@serve.deployment
class Ingress:
    def __init__(self, adder):
        self.adder = adder

    async def __call__(self, value):
        return await self.adder.remote(value)

assert serve.run(Ingress.bind(Adder.bind())).remote(1).result() == 2
"""


def seconds(command: list[str], environment: dict[str, str], rounds: int) -> list[float]:
    """Return how long each of the runs took."""
    taken: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return sorted(taken)


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ray", help="an interpreter that has real Ray")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(SCRIPT, encoding="utf-8")
        here = os.environ | {"PYTHONPATH": str(ROOT)}
        ways = {"threads": ([sys.executable, "-m", "threadserve.as_ray", str(script)], here, 15)}
        if options.ray:
            ways["Ray"] = ([options.ray, str(script)], dict(os.environ), 3)
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for name, way in ways.items():
            taken = seconds(*way)
            print(
                f"{name:8} median {statistics.median(taken):6.2f} s, least {taken[0]:6.2f} s, of {len(taken)} runs"
            )


if __name__ == "__main__":
    main()
