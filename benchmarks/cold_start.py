"""How long from nothing to the import, to the first result, to a hundred deployments, and out again?"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.measure import Case, Key

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from benchmarks.measure import Run

QUESTION = "How long do import, deploying 1, 10 and 100, and leaving the program take?"

PROGRAMS = "whole programs"
STEPS = "within a program"
BARE = "nothing at all"
IMPORT = "import"
LOADED = "import, with all that the first app loads"
FIRST = "first result of two that call each other"
COUNTS = (1, 10, 100)
EXIT = "exit with 100 deployed"

ROOT = Path(__file__).resolve().parent.parent


def deploying(count: int) -> str:
    return f"deploy {count}"


OURS_FIRST = """
import threadserve as serve
@serve.deployment
def child(x): return x + 1
@serve.deployment
class Parent:
    def __init__(self, child): self.child = child
    def __call__(self, x): return self.child.remote(x).result()
assert serve.run(Parent.bind(child.bind())).remote(1).result() == 2
"""
EXECUTOR_FIRST = """
from concurrent.futures import ThreadPoolExecutor
child, parent = ThreadPoolExecutor(), ThreadPoolExecutor()
assert parent.submit(lambda x: child.submit(lambda y: y + 1, x).result(), 1).result() == 2
"""
PYKKA_FIRST = """
import pykka
class Child(pykka.ThreadingActor):
    def call(self, x): return x + 1
class Parent(pykka.ThreadingActor):
    def __init__(self, child): super().__init__(); self.child = child
    def call(self, x): return self.child.call(x).get()
child = Child.start()
parent = Parent.start(child.proxy())
assert parent.proxy().call(1).get() == 2
pykka.ActorRegistry.stop_all()
"""
RAY_LOCAL_FIRST = OURS_FIRST.replace("import threadserve as serve", "from ray import serve").replace(
    "child.bind())", "child.bind()), _local_testing_mode=True"
)

LOAD_ALL = """
import threadserve as serve
for name in serve.__all__: getattr(serve, name)  # what is imported at first use
"""
WHOLE = {
    (BARE, "direct call"): "pass",
    (IMPORT, "threadserve"): "import threadserve",
    (LOADED, "threadserve"): LOAD_ALL,
    (IMPORT, "executor"): "from concurrent.futures import ThreadPoolExecutor",
    (IMPORT, "Pykka"): "import pykka",
    (IMPORT, "Ray local"): "from ray import serve",
    (FIRST, "threadserve"): OURS_FIRST,
    (FIRST, "executor"): EXECUTOR_FIRST,
    (FIRST, "Pykka"): PYKKA_FIRST,
    (FIRST, "Ray local"): RAY_LOCAL_FIRST,
}
"""Programs that are timed from their start to their end."""

OURS_STEPS = (
    LOAD_ALL
    + """
def work(x): return x
class Ingress:
    def __init__(self, parts): self.parts = parts
def deploy(count):
    parts = [serve.deployment(work, name=f"part {n}").bind() for n in range(count - 1)]
    serve.run(serve.deployment(Ingress).bind(parts))
"""
)
EXECUTOR_STEPS = """
from concurrent.futures import ThreadPoolExecutor
def deploy(count):
    global pools
    pools = [ThreadPoolExecutor(1) for _ in range(count)]
    for pool in pools: pool.submit(int).result()
"""
PYKKA_STEPS = """
import pykka
class Part(pykka.ThreadingActor):
    use_daemon_thread = True
    def call(self): pass
def deploy(count):
    for part in [Part.start() for _ in range(count)]: part.proxy().call().get()
"""
RAY_LOCAL_STEPS = OURS_STEPS.replace(LOAD_ALL, "from ray import serve").replace(
    "bind(parts))", "bind(parts), _local_testing_mode=True)"
)
WITHIN = {
    "threadserve": OURS_STEPS,
    "executor": EXECUTOR_STEPS,
    "Pykka": PYKKA_STEPS,
    "Ray local": RAY_LOCAL_STEPS,
}
"""Programs that time their own steps; one deploys what the others have pools or actors for."""

TIMED = """
import json, time
start = time.perf_counter()
deploy({count})
spent = time.perf_counter() - start
print(json.dumps([spent, time.time()]), flush=True)
"""


def whole(script: Path, values: int) -> dict[str, float]:
    """Have pyperf run a program a few times, and return the median from its start to its end."""
    pyperf: Any = importlib.import_module("pyperf")
    found = script.with_suffix(".values")
    found.unlink(missing_ok=True)
    measured = ["--processes", "1", "--values", str(values), "--warmups", "0", "--loops", "1"]
    command = ["-m", "pyperf", "command", "--quiet", *measured, "--inherit-environ", "PYTHONPATH"]
    run_python(*command, "-o", str(found), "--", sys.executable, str(script))
    return {"time": pyperf.Benchmark.load(str(found)).median() * 1e3}


def deploy(script: Path) -> dict[str, float]:
    spent, _ = json.loads(run_python(str(script)))
    return {"time": spent * 1e3}


def leave(script: Path) -> dict[str, float]:
    """Return what it takes from the last statement of the program to the end of its process."""
    said = run_python(str(script))
    end = time.time()
    _, left = json.loads(said)
    return {"time": (end - left) * 1e3}


def run_python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,  # Ray says a lot, and all of it is in the way unless it failed
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def measure(run: Run) -> None:
    rounds = run.effort.pick(smoke=0, quick=3, full=9)
    present = {peer.name for peer in peers.present(peers.ALL, run)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run.note(f"{STEPS}: of executors and actors, as many with one worker each, each called once")
        run.rounds([*programs(run, folder, present), *steps(folder, present)], rounds)


def programs(run: Run, folder: Path, present: Container[str]) -> Iterator[Case]:
    if not peers.is_installed("pyperf"):
        run.note(f"{PROGRAMS}: no pyperf installed here, so they are left out")
        return
    values = run.effort.pick(smoke=1, quick=2, full=3)
    bare = Key(PROGRAMS, BARE, "direct call", "time")
    for number, ((subject, name), text) in enumerate(WHOLE.items()):
        if name in present:
            script = folder / f"program{number}.py"
            script.write_text(text, encoding="utf-8")
            yield Case(subject, name, partial(whole, script, values), PROGRAMS)
            mine = Key(PROGRAMS, subject, name, "time")
            run.derive(mine._replace(figure="above nothing"), [mine, bare], lambda all_, none: all_ - none)


def steps(folder: Path, present: Container[str]) -> Iterator[Case]:
    for count in COUNTS:
        for number, (name, text) in enumerate(WITHIN.items()):
            if name in present:
                script = folder / f"step{number}_{count}.py"
                script.write_text(text + TIMED.format(count=count), encoding="utf-8")
                yield Case(deploying(count), name, partial(deploy, script), STEPS)
                if count == COUNTS[-1]:
                    yield Case(EXIT, name, partial(leave, script), STEPS)
