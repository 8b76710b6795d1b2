"""The command in a process of its own, with a folder of apps to serve."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
END_S = 30.0


class Command:
    """A ``threadserve run`` under way."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []

    def url(self) -> str:
        """Wait until it serves, and return where."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"Serving app .* at (http\S+) ", line):
                return found[1]
        raise AssertionError(f"it never served: {''.join(self.said)}")

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; returns the exit status and the rest of stdout and stderr."""
        out, err = self.process.communicate(timeout=END_S)
        return self.process.returncode, out, err


class Terminal:
    """Where commands are typed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack

    def write(self, name: str, source: str) -> None:
        (self.folder / name).write_text(source, encoding="utf-8")

    def start(self, *arguments: str) -> Command:
        process = subprocess.Popen(
            [sys.executable, "-m", "threadserve", "run", *arguments],
            cwd=self.folder,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "PYTHONWARNINGS": "error"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        return Command(process)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        return self.start(*arguments).end()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with ExitStack() as stack:
        yield Terminal(tmp_path, stack)
