"""Running a script in the place of Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAYS = [["-m", "threadserve.as_ray"], ["-m", "threadserve", "exec"]]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}

SCRIPT = """
import sys
import neighbour
from ray import serve

@serve.deployment
class Double:
    def __call__(self, value):
        return Value(2 * value.number)

class Value:
    def __init__(self, number):
        self.number = number

if __name__ == "__main__":
    handle = serve.run(Double.bind(), route_prefix=None)
    found = handle.remote(Value(neighbour.NUMBER)).result()
    print(found.number, type(found) is Value, sys.argv, Double.func_or_class.__module__)
    print(sys.modules["__main__"].__file__, "annotations" in globals())
    sys.exit(int(sys.argv[2]))
"""


def run(way: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *way, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_a_script_is_main_with_its_own_arguments_folder_and_exit_status(
    way: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "neighbour.py").write_text("NUMBER = 21")

    done = run(way, str(script), "--flag", "3")

    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"42 True {[str(script), '--flag', '3']} __main__",
        f"{script} False",
    ]
    assert done.returncode == 3


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_what_a_script_raises_is_shown_as_python_shows_it(way: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import ray\n\nraise ValueError('mine')\n")

    done = run(way, str(script))

    assert done.returncode == 1
    assert f'File "{script}", line 3' in done.stderr
    assert done.stderr.splitlines()[-1] == "ValueError: mine"


@pytest.mark.slow
def test_a_script_that_is_not_there_is_told_in_a_line() -> None:
    done = run(WAYS[0], "nowhere.py")

    assert done.returncode == 1
    assert done.stderr == "threadserve.as_ray: there is no script 'nowhere.py'\n"


@pytest.mark.slow
def test_without_a_script_the_usage_is_told() -> None:
    wrong, asked = run(WAYS[0]), run(WAYS[0], "--help")

    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("usage: python -m threadserve.as_ray SCRIPT")
    assert (asked.returncode, asked.stdout) == (0, wrong.stderr)


@pytest.mark.slow
def test_a_stream_that_is_not_read_any_more_does_not_keep_the_script_from_ending(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("""
import itertools
from ray import serve

@serve.deployment
class Endless:
    async def items(self):
        import asyncio
        for number in itertools.count():
            yield number
            await asyncio.sleep(0.01)

handle = serve.run(Endless.bind(), route_prefix=None).options(stream=True)
stream = handle.items.remote()
print(next(stream), next(stream))
del stream
""")
    done = run(WAYS[0], str(script))

    assert (done.stdout, done.stderr, done.returncode) == ("0 1\n", "", 0)
