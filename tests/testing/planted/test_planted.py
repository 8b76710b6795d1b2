"""Every planted bug is found, shrinks and repeats; every fixed twin passes.

The bugs are in ``state.py``, ``waiting.py`` and ``timing.py``. They are what people really write, each in its own words.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.testing.planted import state, timing, waiting
from threadserve.testing.choices import Replay
from threadserve.testing.generators import schedules
from threadserve.testing.search import ScheduleError, explore, reproduce

if TYPE_CHECKING:
    from tests.testing.planted.bug import Planted

BUGS = [*state.BUGS, *waiting.BUGS, *timing.BUGS]
RUNS = 1000
"""Within so many a bug has to be found."""
FIXED_RUNS = min(200, int(os.environ.get("THREADSERVE_SEEDS", "200")))
FEW_SWITCHES = 8
"""Of twelve that are drawn at most. To take one out moves those after it, so a bug of two may keep a few that do nothing."""

pytestmark = pytest.mark.slow
of_each = pytest.mark.parametrize("bug", BUGS, ids=str)


def test_there_are_enough_of_them_and_no_name_twice() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 15


@of_each
def test_it_is_found_and_repeats(bug: Planted) -> None:
    with pytest.raises(ScheduleError) as caught:
        explore(lambda: bug.tell(bug.buggy), runs=RUNS, grain=bug.grain)

    found = caught.value
    kind = type(found.__cause__)
    for _ in range(2):
        with pytest.raises(kind):  # type: ignore[type-var]
            bug.tell(bug.buggy, strategy=Replay(found.schedule))
    with pytest.raises(kind):  # type: ignore[type-var]
        reproduce(found.reproduction)(lambda: bug.tell(bug.buggy))()


@of_each
def test_hypothesis_finds_it_and_shrinks_it_to_few_switches(bug: Planted) -> None:
    failing: list[list[int]] = []

    @settings(
        max_examples=RUNS,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(schedules())
    def survives(schedule: list[int]) -> None:
        try:
            bug.tell(bug.buggy, strategy=Replay(schedule))
        except BaseException:
            failing.append(schedule)
            raise

    with pytest.raises(Exception):  # noqa: B017 - whatever it shows itself by
        survives()

    smallest = failing[-1]  # Hypothesis ends by running what it has shrunk to once more
    assert sum(map(bool, smallest)) <= FEW_SWITCHES
    assert in_order(smallest) == min(map(in_order, failing))


def in_order(schedule: list[int]) -> tuple[int, list[tuple[int, int]]]:
    """Return what Hypothesis makes least of: how many switches there are, then when the first one is, and to whom, ..."""
    drawn: list[tuple[int, int]] = []
    gap = 0
    for choice in schedule:
        if choice:
            drawn.append((gap, choice))
        gap = 0 if choice else gap + 1
    return len(drawn), drawn


@of_each
def test_its_fixed_twin_passes(bug: Planted) -> None:
    done = explore(lambda: bug.tell(bug.fixed), runs=FIXED_RUNS, grain=bug.grain)

    assert done.runs == FIXED_RUNS
