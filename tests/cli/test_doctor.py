from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from threadserve.cli import doctor
from threadserve.cli.main import main
from threadserve.concurrency.interpreters import is_offered

if TYPE_CHECKING:
    from pathlib import Path


def examine(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["doctor", *arguments])
    return done.exit_code, done.output


def test_it_says_what_there_is() -> None:
    status, said = examine()

    assert status == 0
    for word in ("python:", "GIL:", "cores:", "replica types: thread", "packages:", "wrapt", "extras:"):
        assert word in said
    assert f"{sys.version_info[0]}.{sys.version_info[1]}." in said


def test_it_says_which_replica_types_there_are() -> None:
    _, said = examine()

    assert ("interpreter (woken by" in said) is is_offered()
    assert ("from CPython 3.14 on" in said) is not is_offered()


def test_it_names_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"no-such-package": "http"})

    assert "no-such-package missing (pip install threadserve[http])" in examine()[1]


def test_a_module_that_nothing_is_wrong_with_is_no_news() -> None:
    assert examine("json") == examine()


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "ailing.py").write_text("import nothing_of_that_name\n")

    status, said = examine("ailing", "-d", str(tmp_path))

    assert status == 1
    assert "ailing cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'" in said


def test_an_import_that_turns_the_gil_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr(doctor, "_is_gil_on", lambda: next(answers))

    status, said = examine("json")

    assert status == 1
    assert "importing json turned the GIL back on" in said


@pytest.mark.skipif(not is_offered(), reason="replica_type='interpreter' exists from Python 3.14 on")
def test_a_module_for_thread_replicas_only_is_named() -> None:
    status, said = examine("faulthandler")

    assert status == 1
    assert "faulthandler is for thread replicas only: " in said
    assert "does not support loading in subinterpreters" in said
