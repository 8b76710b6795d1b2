"""Programs written for Ray Serve run here when their two import lines are swapped, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0

SWAPS = {
    "from ray import serve": "import threadserve as serve",
    "from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator": (
        "from threadserve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator"
    ),
}

# Each program prints what is written behind its last line.
COMPOSITION = """
import asyncio
from typing import Dict

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator


@serve.deployment(num_replicas=2)
class Preprocessor:
    def __call__(self, text: str) -> str:
        return text.strip().lower()


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=10)
class Tokenizer:
    def __init__(self, separator: str, lowercase: bool = True):
        self.separator = separator
        self.lowercase = lowercase

    def split(self, text: str):
        return text.split(self.separator)


@serve.deployment
class Counter:
    async def count(self, words) -> Dict[str, int]:
        return {word: words.count(word) for word in sorted(set(words))}


@serve.deployment
class Ingress:
    def __init__(self, preprocessor: DeploymentHandle, tokenizer: DeploymentHandle, counter: DeploymentHandle):
        self._preprocessor = preprocessor
        self._tokenizer: DeploymentHandle = tokenizer.options(method_name="split")
        self._counter = counter

    async def __call__(self, text: str) -> Dict[str, int]:
        clean: DeploymentResponse = self._preprocessor.remote(text)
        words: DeploymentResponse = self._tokenizer.remote(clean)
        return await self._counter.count.remote(words)


app = Ingress.bind(Preprocessor.bind(), Tokenizer.bind(" ", lowercase=False), Counter.bind())

if __name__ == "__main__":
    handle: DeploymentHandle = serve.run(app, name="words", route_prefix=None)
    print(handle.remote("  To be or not to BE ").result())
    response = handle.remote("a a")
    assert isinstance(response, DeploymentResponse)

    async def from_a_loop():
        return await asyncio.gather(*[handle.remote("x y") for _ in range(3)])

    print(asyncio.run(from_a_loop()))
    print(serve.status().applications["words"].status == "RUNNING")
    print(serve.get_app_handle("words").remote("z").result(timeout_s=10))
    serve.delete("words")
    serve.shutdown()
"""
COMPOSITION_SAYS = """\
{'be': 2, 'not': 1, 'or': 1, 'to': 2}
[{'x': 1, 'y': 1}, {'x': 1, 'y': 1}, {'x': 1, 'y': 1}]
True
{'z': 1}
"""

STREAMING = """
from typing import AsyncGenerator, Generator

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator


@serve.deployment
class Model:
    def generate(self, prompt: str, n: int) -> Generator[str, None, None]:
        for i in range(n):
            yield f"{prompt}{i}"

    async def generate_async(self, prompt: str, n: int) -> AsyncGenerator[str, None]:
        for i in range(n):
            yield f"{prompt}{i}"

    def broken(self):
        yield 1
        raise ValueError("half way")


@serve.deployment
class Caller:
    def __init__(self, model: DeploymentHandle):
        self._streaming_handle = model.options(stream=True)

    async def __call__(self, n: int):
        gen: DeploymentResponseGenerator = self._streaming_handle.generate.remote("a", n)
        async for chunk in gen:
            yield chunk.upper()

    async def collect(self, n: int):
        return [chunk async for chunk in self._streaming_handle.generate_async.remote("b", n)]


handle = serve.run(Caller.bind(Model.bind()))
stream = handle.options(stream=True).remote(3)
print(isinstance(stream, DeploymentResponseGenerator), list(stream))
print(handle.collect.remote(4).result())

model = serve.get_deployment_handle("Model", "default").options(stream=True)
items = []
try:
    for item in model.broken.remote():
        items.append(item)
except ValueError as error:
    print(items, "half way" in str(error))
try:
    handle.remote(3).result()
except TypeError as error:
    print("returned a generator" in str(error), "stream=True" in str(error))
"""
STREAMING_SAYS = """\
True ['A0', 'A1', 'A2']
['b0', 'b1', 'b2', 'b3']
[1] True
True True
"""

FAN_OUT = """
import asyncio
import random

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator


@serve.deployment(num_replicas=3)
class Scorer:
    def __init__(self, weight: int):
        self.weight = weight

    def score(self, item: int) -> int:
        return self.weight * item


@serve.deployment(max_ongoing_requests=100)
class Ensemble:
    def __init__(self, scorers, *, named):
        self.scorers = scorers
        self.named = named

    async def __call__(self, item: int) -> int:
        responses = [scorer.score.remote(item) for scorer in self.scorers]
        total = sum(await asyncio.gather(*responses))
        return total + await self.named["extra"].score.remote(item)

    async def fastest(self, item: int) -> int:
        tasks = [asyncio.ensure_future(self.ask(scorer, item)) for scorer in self.scorers]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return len(done) >= 1

    async def ask(self, scorer: DeploymentHandle, item: int) -> int:
        return await scorer.score.remote(item)

    async def slow(self):
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        except asyncio.TimeoutError:
            return "gave up"


one = Scorer.bind(1)
hundred = Scorer.options(name="Hundred", num_replicas=1).bind(100)
app = Ensemble.bind([one, Scorer.bind(10), hundred], named={"extra": one})
handle = serve.run(app)
print([handle.remote(i).result() for i in range(4)])
print(sorted(serve.status().applications["default"].deployments))
print(handle.fastest.remote(1).result(), handle.slow.remote().result())
responses = [handle.remote(i) for i in range(50)]
print(sum(response.result(timeout_s=30) for response in responses) == 112 * sum(range(50)))
"""
FAN_OUT_SAYS = """\
[0, 112, 224, 336]
['Ensemble', 'Hundred', 'Scorer', 'Scorer_1']
True gave up
True
"""

CONFIGURED = """
from typing import Any, Dict

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator


@serve.deployment(
    num_replicas=2,
    user_config={"threshold": 1},
    max_ongoing_requests=3,
    graceful_shutdown_timeout_s=5,
    health_check_period_s=10,
)
class Thresholder:
    def __init__(self):
        self.threshold = None

    def reconfigure(self, config: Dict[str, Any]) -> None:
        self.threshold = config["threshold"]

    def check_health(self) -> None:
        if self.threshold is None:
            raise RuntimeError("not configured")

    def __call__(self, value: int) -> bool:
        return value > self.threshold


handle = serve.run(Thresholder.bind())
print({handle.remote(2).result() for _ in range(10)})
same_handle = serve.run(Thresholder.options(user_config={"threshold": 5}).bind())
print({handle.remote(2).result() for _ in range(10)}, handle is same_handle)
print(Thresholder.name, Thresholder.num_replicas, Thresholder.user_config)
try:
    serve.run(Thresholder.options(user_config={"wrong": 5}).bind())
except RuntimeError:
    print("RuntimeError")
except Exception as error:
    print(type(error).__name__)
for bad in (dict(num_replicas=0), dict(max_ongoing_requests=0), dict(health_check_period_s=0)):
    try:
        Thresholder.options(**bad)
    except ValueError:
        print("refused", *bad)
try:
    Thresholder()
except RuntimeError:
    print("not to be called")
try:
    serve.run(Thresholder)
except TypeError:
    print("not bound")
"""
CONFIGURED_SAYS = """\
{True}
{False} True
Thresholder 2 {'threshold': 1}
ReplicaStartError
refused num_replicas
refused max_ongoing_requests
refused health_check_period_s
not to be called
not bound
"""

MODEL_ID = """
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator


@serve.deployment
class Downstream:
    def __call__(self):
        return serve.get_multiplexed_model_id()


@serve.deployment
class Upstream:
    def __init__(self, downstream: DeploymentHandle):
        self.downstream = downstream

    async def __call__(self):
        own = serve.get_multiplexed_model_id()
        context = serve.get_replica_context()
        inherited = await self.downstream.remote()
        given = await self.downstream.options(multiplexed_model_id="theirs").remote()
        return own, inherited, given, context.app_name, context.deployment, len(context.replica_tag)


handle = serve.run(Upstream.bind(Downstream.bind()), name="models")
print(handle.options(multiplexed_model_id="m7").remote().result())
print(handle.remote().result()[0] == "")
print(serve.get_multiplexed_model_id() == "")
"""
MODEL_ID_SAYS = """\
('m7', '', 'theirs', 'models', 'Upstream', 8)
True
True
"""

CANCELLED = """
import asyncio
import threading

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

events = []
ended = threading.Event()


@serve.deployment(max_ongoing_requests=1)
class Worker:
    async def work(self, started):
        try:
            started.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            events.append("cancelled")
            ended.set()
            raise


@serve.deployment
class Parent:
    def __init__(self, worker: DeploymentHandle):
        self.worker = worker

    async def __call__(self, started):
        return await self.worker.work.remote(started)


handle = serve.run(Parent.bind(Worker.bind()))
started = threading.Event()
response = handle.remote(started)
started.wait()
try:
    response.result(timeout_s=0.01)
except TimeoutError:
    print("TimeoutError", response.cancelled())
response.cancel()
print(response.cancelled())
try:
    response.result()
except Exception as error:
    print(type(error).__name__)
ended.wait(10)
print(events)


async def deadline():
    started = threading.Event()
    response = handle.remote(started)
    try:
        await asyncio.wait_for(response, 0.05)
    except asyncio.TimeoutError:
        response.cancel()
        return "gave up"


print(asyncio.run(deadline()))
try:
    handle.missing.remote().result()
except Exception as error:
    print("does not exist" in str(error) and "Available methods" in str(error))
"""
CANCELLED_SAYS = """\
TimeoutError False
True
RequestCancelledError
['cancelled']
gave up
True
"""

FUNCTIONS = """
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator


@serve.deployment
def add_one(n: int) -> int:
    return n + 1


@serve.deployment(num_replicas=2)
async def double(n: int) -> int:
    return 2 * n


class Pipeline:
    def __init__(self, add: DeploymentHandle, double: DeploymentHandle):
        self.add = add
        self.double = double

    def __call__(self, n: int) -> int:
        response: DeploymentResponse = self.add.remote(n)
        for _ in range(5):
            response = self.double.remote(response)
        return response.result()


app = serve.deployment(Pipeline).options(name="Chain").bind(add_one.bind(), double.bind())
handle = serve.run(app, name="chain")
print(handle.remote(0).result(), repr(add_one.name), handle.deployment_name)
handles = serve.run_many(
    [serve.RunTarget(target=add_one.bind(), name="one", route_prefix=None),
     serve.RunTarget(target=double.bind(), name="two", route_prefix=None)]
)
print([h.remote(20).result() for h in handles], sorted(serve.status().applications))
try:
    add_one.bind(1)
except ValueError:
    print("functions take no bind arguments")
try:
    serve.get_deployment_handle("nobody", "one")
except KeyError:
    print("KeyError")
serve.delete("unknown app")
serve.shutdown()
serve.shutdown()
print(serve.status().applications)
"""
FUNCTIONS_SAYS = """\
32 'add_one' Chain
[21, 40] ['chain', 'one', 'two']
functions take no bind arguments
KeyError
{}
"""

PROGRAMS = {
    "composition": (COMPOSITION, COMPOSITION_SAYS),
    "streaming": (STREAMING, STREAMING_SAYS),
    "fan_out": (FAN_OUT, FAN_OUT_SAYS),
    "configured": (CONFIGURED, CONFIGURED_SAYS),
    "model_id": (MODEL_ID, MODEL_ID_SAYS),
    "cancelled": (CANCELLED, CANCELLED_SAYS),
    "functions": (FUNCTIONS, FUNCTIONS_SAYS),
}


def swapped(program: str) -> str:
    """Return the program with its two import lines swapped."""
    for ours in SWAPS:
        assert program.count(f"{ours}\n") == 1
    return "\n".join(SWAPS.get(line, line) for line in program.splitlines())


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_for_ray_serve_runs_with_its_imports_swapped(name: str, tmp_path: Path) -> None:
    program, says = PROGRAMS[name]
    path = tmp_path / "program.py"
    path.write_text(swapped(program))

    ended = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert (ended.stdout, ended.stderr, ended.returncode) == (says, "", 0)


def test_two_lines_are_all_that_differs() -> None:
    for program, _ in PROGRAMS.values():
        changed = [
            (before, after)
            for before, after in zip(program.splitlines(), swapped(program).splitlines(), strict=True)
            if before != after
        ]

        assert changed == list(SWAPS.items())
