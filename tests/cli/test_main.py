from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from threadserve.cli.main import main


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_the_verbs(option: str) -> None:
    done = CliRunner().invoke(main, [option])

    assert done.exit_code == 0
    assert "run" in done.output


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_each_verb_explains_itself(option: str) -> None:
    done = CliRunner().invoke(main, ["run", option])

    assert done.exit_code == 0
    for word in ("MODULE:APP", "--host", "--port", "--name", "--route-prefix", "--app-dir", "-d", "8000"):
        assert word in done.output


def test_version_names_the_version() -> None:
    done = CliRunner().invoke(main, ["--version"])

    assert done.exit_code == 0
    assert done.output.startswith("threadserve 0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["walk"], "No such command"),
        (["run"], "Missing argument"),
        (["run", "a:b", "--port", "70000"], "--port"),
        (["run", "a:b", "key"], "'key' is not KEY=VALUE"),
        (["run", "a:b", "key="], "'key=' is not KEY=VALUE"),
        (["run", "a:b", "=value"], "'=value' is not KEY=VALUE"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, arguments)

    assert done.exit_code == 2
    assert said in done.output


def test_help_loads_nothing_that_serves() -> None:
    code = "import threadserve.cli.main, sys; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    heavy = {"rich", "starlette", "uvicorn", "asyncio", "threadserve.api"}
    assert not heavy & set(loaded)
