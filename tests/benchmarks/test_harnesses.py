"""Deployed apps behave in the harnesses that measure: forked, pinned to a core, repeated, and run by pyperf's workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FORKS_AFTER_IMPORT = """
import multiprocessing, sys
import threadserve as serve

for name in serve.__all__:
    getattr(serve, name)  # all that is imported at first use

def work(number):
    return number + 1

def measure(number):
    with serve.running(serve.deployment(work, num_replicas=2).bind()) as handle:
        return sum(response.result() for response in [handle.remote(n) for n in range(100)])

if __name__ == "__main__":
    forked = multiprocessing.get_context("fork")
    with forked.Pool(2) as pool:
        assert pool.map(measure, range(4)) == [5050] * 4
    assert measure(0) == 5050
"""

PINNED = """
import os
import threadserve as serve

os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
with serve.running(serve.deployment(abs, name="abs", num_replicas=2).bind()) as handle:
    assert [response.result() for response in [handle.remote(-n) for n in range(100)]] == list(range(100))
"""


def run(*arguments: str, timeout: float = 60) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_harness_may_fork_after_the_import_and_deploy_in_each_child(tmp_path: Path) -> None:
    script = tmp_path / "forks.py"
    script.write_text(FORKS_AFTER_IMPORT, encoding="utf-8")

    run(str(script))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this platform cannot pin threads")
def test_a_harness_may_pin_the_process_to_a_core() -> None:
    run("-c", PINNED)


@pytest.mark.slow
def test_timeit_can_run_it() -> None:
    deploy = "import threadserve as serve; h = serve.run(serve.deployment(abs, name='abs').bind())"

    # Once: of several that differ, as on a busy machine, it warns.
    assert "loops" in run("-m", "timeit", "-n", "200", "-r", "1", "-s", deploy, "h.remote(-1).result()")


@pytest.mark.slow
def test_a_smoke_run_of_a_benchmark_asks_its_question() -> None:
    said = run("-m", "benchmarks", "fan_out", "--smoke")

    assert "What does it cost to call 4, 16 and 64 at once" in said
    assert "16 calls and back" in said
