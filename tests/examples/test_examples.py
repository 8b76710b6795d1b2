"""Each example runs, says what it should, and is short enough to be read."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.glob("*.py"))
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def run(name: str, *arguments: str, by: tuple[str, ...] = ()) -> str:
    """Run an example; `by` are the arguments of Python that run it, where it is not run as a program."""
    command = [sys.executable, *by, str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_an_example_is_at_most_sixty_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.slow
def test_chain() -> None:
    assert run("chain") == "(5 + 2) * 3 = 21\n"


@pytest.mark.slow
def test_compose() -> None:
    assert run("compose") == "3 pages, 16 words, the longest is 'precisely'\n"


@pytest.mark.slow
def test_stream() -> None:
    words = ["so", "much", "depends", "upon", "a", "red", "wheel", "barrow"]

    assert run("stream").splitlines() == [
        *(f"{number}: {word}" for number, word in enumerate(words, 1)),
        "1: tick ... and that is enough",
    ]


@pytest.mark.slow
def test_unmodified_ray_script() -> None:
    script = str(EXAMPLES / "unmodified_ray_script.py")
    command = [sys.executable, "-m", "threadserve", "exec", script]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "[{'to': 2, 'be': 2, 'or': 1, 'not': 1}, {'tomorrow': 2, 'and': 1}]",
        "{'be': 1, 'quick': 1}",
        "RayTaskError(ValueError) - ValueError('there are no words')",
    ]


@pytest.mark.slow
def test_tasks_and_actors() -> None:
    assert run("tasks_and_actors").splitlines() == [
        "squares: 285, doubled: 570",
        "2 ready, 2 not asked for",
    ]


@contextmanager
def serving() -> Iterator[str]:
    """Serve hello.py as its docstring says, and yield the address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "threadserve", "run", "hello:language_classifier", "--port", "0"],
        cwd=EXAMPLES,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found is not None
        try:
            yield found[0]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


@pytest.mark.slow
def test_hello() -> None:
    with serving() as url:
        greetings = run("hello_client", url)
        again = run("hello_client", url.rstrip("/"))
        unknown = httpx.post(url, json={"language": "klingon", "name": "Dora"}, trust_env=False)

    assert greetings.splitlines() == ["Bonjour Colette", "Hola Dora"]
    assert again == greetings
    assert (unknown.status_code, unknown.text) == (400, "I speak spanish and french only.")


@pytest.mark.slow
def test_pyperf_example() -> None:
    once = ["--processes", "2", "--values", "1", "--warmups", "0", "--loops", "20", "--min-time", "0.001"]

    assert "greet: Mean" in run("pyperf_example", *once, "--quiet", "--inherit-environ", "PYTHONPATH")


@pytest.mark.slow
def test_pytest_benchmark_example() -> None:
    by = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--benchmark-min-rounds=5",
        "--benchmark-max-time=0.01",
    )

    said = run("pytest_benchmark_example", by=by)

    assert "test_greeting" in said
    assert "1 passed" in said
