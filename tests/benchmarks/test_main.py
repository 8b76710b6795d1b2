"""The command line: what there is, what is kept of an interrupted run, and when the status is 1."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import __main__ as command
from benchmarks import fan_out
from benchmarks.measure import Case

if TYPE_CHECKING:
    from benchmarks.measure import Run

BENCHMARKS = Path(command.__file__).parent


def measure_a_little(run: Run) -> None:
    run.rounds(
        [Case("16 calls and back", name, lambda: {"p50": 5.0}) for name in ("threadserve", "executor")]
    )


def measure_until_interrupted(run: Run) -> None:
    measure_a_little(run)
    raise KeyboardInterrupt


def test_every_question_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    asking = {
        path.stem
        for path in BENCHMARKS.glob("*.py")
        if re.search(r"^QUESTION = ", path.read_text("utf-8"), re.MULTILINE)
    }

    assert command.main(["--list"]) == 0

    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert listed == asking == {*command.NAMES, command.SOAK}


def test_results_are_a_file_and_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fan_out, "measure", measure_a_little)

    assert command.main(["fan_out", "--smoke", "--results", str(tmp_path / "results")]) == 0

    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["fan_out.json", "fan_out.md"]


def test_an_interrupted_run_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fan_out, "measure", measure_until_interrupted)
    path = tmp_path / "found.json"

    status = command.main(["fan_out", "--smoke", "--json", str(path)])

    assert status == command.INTERRUPTED
    document = json.loads(path.read_text("utf-8"))
    assert document["is_interrupted"]
    assert [cell["median"] for cell in document["cells"]] == [5.0, 5.0]
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(("after", "status"), [(10.0, 0), (20.0, 1), (5.0, 0)])
def test_comparing_says_by_its_status_whether_something_is_worse(
    after: float, status: int, tmp_path: Path
) -> None:
    paths: list[str] = []
    for name, value in (("before", 10.0), ("after", after)):
        path = tmp_path / f"{name}.json"
        path.write_text(found(value), encoding="utf-8")
        paths.append(str(path))

    assert command.main(["compare", *paths]) == status
    assert command.main(["compare", *paths, "--threshold", "150"]) == 0


def found(value: float) -> str:
    from benchmarks.measure import EFFORTS, Run
    from benchmarks.report import make_report

    run = Run(EFFORTS["quick"])
    run.rounds([Case("a call", "threadserve", lambda: {"p50": value})])
    return make_report("fan_out", "?", run).json()


def test_targets_are_read_from_a_folder_and_fail_only_when_they_are_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["targets", "--from", str(tmp_path)]) == 0
    assert "not measured" in capsys.readouterr().out
    assert command.main(["targets", "--from", str(tmp_path), "--strict"]) == 1


def test_without_a_question_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "--list" in capsys.readouterr().out
