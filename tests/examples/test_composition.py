"""The four programs of Ray's guide to composing models, written anew with Ray's imports, run without Ray."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

PROGRAMS = Path(__file__).resolve().parent / "composition"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(PROGRAMS.parents[2]), "PYTHONWARNINGS": "error"}


def said_by(name: str) -> list[str]:
    command = [sys.executable, "-m", "threadserve.as_ray", f"{name}.py"]
    done = subprocess.run(
        command, cwd=PROGRAMS, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.slow
def test_an_adder_and_a_multiplier_are_chained_by_responses() -> None:
    assert said_by("chain") == ["30"]


@pytest.mark.slow
def test_a_stream_is_yielded_again_on_its_way() -> None:
    assert said_by("stream") == ["0", "1", "4", "9", "16"]


@pytest.mark.slow
def test_a_response_becomes_a_ref_and_the_ref_the_argument_of_a_task() -> None:
    assert said_by("refs") == ["HELLO ADA!", "HELLO GRACE!"]


@pytest.mark.slow
def test_a_router_over_http_asks_one_of_two_deployments() -> None:
    command = [sys.executable, "-m", "threadserve", "run", "--as-ray", "--port", "0", "language:app"]
    process = subprocess.Popen(command, cwd=PROGRAMS, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line + process.stderr.read()
        try:
            with httpx.Client(trust_env=False, timeout=30) as client:
                german = client.post(found[0], json={"language": "german", "name": "Emmy"})
                italian = client.post(found[0], json={"language": "italian", "name": "Maria"})
                unknown = client.post(found[0], json={"language": "latin", "name": "Hypatia"})
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0

    assert german.json() == {"text": "Guten Tag, Emmy"}
    assert italian.json() == {"text": "Ciao, Maria"}
    assert (unknown.status_code, unknown.text) == (400, "I speak german and italian.")
