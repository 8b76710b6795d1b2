"""Where two lines cross, of which only some points were measured."""

from __future__ import annotations

import math

import pytest

from benchmarks.interpreters import crossing


@pytest.mark.parametrize(
    ("figures", "found"),
    [
        ([(0, 5, 30), (100, 105, 80)], 50),
        ([(0, 5, 30), (10, 15, 35), (40, 45, 45)], 40),
        ([(0, 5, 5)], 0),
        ([(0, 5, 30), (100, 105, 130)], math.inf),
    ],
    ids=["between two sizes", "at a size", "at once", "never"],
)
def test_the_work_from_which_interpreters_pay_is_where_the_lines_cross(
    figures: list[tuple[float, float, float]], found: float
) -> None:
    assert crossing(*(value for triple in figures for value in triple)) == pytest.approx(found)
