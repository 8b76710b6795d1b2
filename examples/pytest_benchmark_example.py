"""Time an app with pytest-benchmark: `pytest examples/pytest_benchmark_example.py`."""

from collections.abc import Iterator
from typing import Any

import pytest

import threadserve as serve


@serve.deployment
class Greeter:
    def greet(self, name: str) -> str:
        return f"hello {name}"


@pytest.fixture(scope="module")
def greeter() -> Iterator[serve.DeploymentHandle[Any]]:
    # Deployed once: what is timed is the call.
    with serve.running(Greeter.bind()) as handle:
        yield handle


def test_greeting(benchmark: Any, greeter: serve.DeploymentHandle[Any]) -> None:
    greeting = benchmark(lambda: greeter.greet.remote("you").result())

    assert greeting == "hello you"
