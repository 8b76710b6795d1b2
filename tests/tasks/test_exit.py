"""What becomes of tasks and actors when the program ends, and in a forked child."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_program_that_is_done_lets_running_tasks_finish_and_idle_actors_go() -> None:
    assert run("""
        import time
        import threadserve as serve

        @serve.remote
        class Idle:
            def ask(self):
                return "asked"

        @serve.remote
        def write():
            time.sleep(0.3)
            print("written", flush=True)

        idle = Idle.remote()
        print(serve.get(idle.ask.remote()), flush=True)
        begun = write.remote()
        while "running" not in repr(begun):
            time.sleep(0.01)
        """).splitlines() == ["asked", "written"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_tasks_of_its_own_and_inherited_actors_refuse() -> None:
    assert run("""
        import os
        import warnings
        import threadserve as serve

        warnings.simplefilter("ignore")

        @serve.remote
        def same(value):
            return value

        @serve.remote
        class Actor:
            def ask(self):
                return "parent"

        actor = Actor.remote()
        serve.get([same.remote(1), actor.ask.remote()])
        child = os.fork()
        if not child:
            print(serve.get(same.remote("child"), timeout=30), flush=True)
            try:
                serve.get(actor.ask.remote(), timeout=30)
            except serve.DeploymentUnavailableError:
                print("refused", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(serve.get(actor.ask.remote()))
        """).splitlines() == ["child", "refused", "parent"]
