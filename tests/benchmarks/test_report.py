"""A report says what was measured, of whom, and how it compares; as text, as a page, and as a file that can be read back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks.measure import EFFORTS, Key, Run
from benchmarks.report import Report, environment, load, make_report, number, table

if TYPE_CHECKING:
    from pathlib import Path


def sampled(samples: dict[tuple[str, str], list[float]], figure: str = "p50") -> Report:
    run = Run(EFFORTS["quick"], seed=3)
    run.samples = {Key("", subject, name, figure): values for (subject, name), values in samples.items()}
    run.note("a remark")
    return make_report("call_latency", "What does it cost?", run)


@pytest.fixture
def report() -> Report:
    return sampled(
        {
            ("a call", "threadserve"): [4.0, 5.0, 6.0, 7.0, 100.0],
            ("a call", "threadserve, inline=False"): [30.0],
            ("a call", "executor"): [60.0, 60.0, 60.0],
            ("a call", "Pykka"): [90.0],
            ("a chain", "threadserve"): [8.0],
        }
    )


def test_a_cell_is_a_median_with_its_quartiles(report: Report) -> None:
    cell = report.cells[Key("", "a call", "threadserve", "p50")]

    assert cell.median == 6.0
    assert cell.quartiles == (5.0, 7.0)


def test_ratios_are_to_each_rival_at_the_same_subject_and_never_to_ourselves(report: Report) -> None:
    ours = report.cells[Key("", "a call", "threadserve", "p50")]
    alone = report.cells[Key("", "a chain", "threadserve", "p50")]

    assert report.ratios(ours) == {"executor": 0.1, "Pykka": pytest.approx(6 / 90)}
    assert report.ratios(alone) == {}


def test_the_text_names_question_machine_figures_and_remarks(report: Report) -> None:
    lines = report.text().splitlines()

    assert lines[0] == "What does it cost?"
    assert report.environment["commit"] in lines[1]
    assert lines[3].split("  ")[-1] == "x Pykka"
    assert lines[5].split() == ["a", "call", "threadserve", "6", "5", "-", "7", "5", "0.1", "0.0667"]
    assert lines[-1] == "- a remark"


def test_the_page_has_the_command_that_made_it(report: Report) -> None:
    page = report.markdown()

    assert f"`{report.environment['command']}`" in page
    assert "| a call | threadserve | 6 | 5 - 7 | 5 | 0.1 | 0.0667 |" in page


def test_the_file_holds_each_sample_and_what_follows_from_it(report: Report) -> None:
    document = json.loads(report.json())

    assert document["seed"] == 3
    assert document["effort"] == "quick"
    assert document["environment"].keys() >= {
        "python",
        "python_build",
        "machine",
        "commit",
        "command",
        "date",
    }
    assert document["cells"][0] == {
        "table": "",
        "subject": "a call",
        "contender": "threadserve",
        "figure": "p50",
        "unit": "us",
        "is_less_better": True,
        "median": 6.0,
        "quartiles": [5.0, 7.0],
        "n": 5,
        "ratios": {"executor": 0.1, "Pykka": pytest.approx(6 / 90)},
        "samples": [4.0, 5.0, 6.0, 7.0, 100.0],
    }


def test_a_report_that_was_written_is_read_back_the_same(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text(report.json(), encoding="utf-8")

    again = load(path)

    assert again == report
    assert again.text() == report.text()


def test_what_has_no_sample_is_no_row() -> None:
    report = sampled({("a call", "threadserve"): [1.0], ("a call", "executor"): []})

    assert [key.contender for key in report.cells] == ["threadserve"]


def test_an_interrupted_run_says_so() -> None:
    report = make_report("fan_out", "How long?", Run(EFFORTS["full"]), is_interrupted=True)

    assert "interrupted" in report.text()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (12.345, "12.3"), (999.4, "999"), (1234.5, "1,234"), (6.8e6, "6,800,000")],
)
def test_numbers_have_three_digits_that_matter(value: float, text: str) -> None:
    assert number(value) == text


def test_a_program_can_print_a_table_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    table("Is it so?", ["", "count"], [["sent", 12], ["ratio", 0.5]])

    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "Is it so?"
    assert lines[4:] == ["       count", "-----  -----", "sent      12", "ratio    0.5"]


def test_the_environment_says_which_build_this_is() -> None:
    found = environment()

    assert found["python"].startswith("CPython 3.")
    assert "PGO" in found["python"]
    assert "cores" in found["machine"]
