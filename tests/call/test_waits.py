"""Who can never go on: by examples, and against oracles that are too slow for anything but a test."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import chain, combinations
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles import lines_run_by
from threadserve.call.waits import Picture, knot, stuck

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    Seen = Callable[[Picture[int]], Collection[int]]


def picture(
    needs: dict[str, str] | None = None,
    queued: dict[str, str] | None = None,
    holders: dict[str, str] | None = None,
) -> Picture[str]:
    """Draw a picture; requests are letters, deployments are words: ``needs={"a": "bc"}`` is "a waits for b or c"."""
    return Picture(dict(needs or {}), dict(queued or {}), dict(holders or {}))


TABLE = {
    "nobody waits": (picture(), ""),
    "somebody who waits for a body that runs": (picture(needs={"a": "b"}), ""),
    "a body that waits for itself": (picture(needs={"a": "a"}), "a"),
    "two that wait for each other": (picture(needs={"a": "b", "b": "a"}), "ab"),
    "a chain whose end waits for its beginning": (picture(needs={"a": "b", "b": "c", "c": "a"}), "abc"),
    "a chain whose end runs": (picture(needs={"a": "b", "b": "c"}), ""),
    "one of several that are waited for runs": (picture(needs={"a": "bc", "b": "a"}), ""),
    "all of several that are waited for are stuck": (
        picture(needs={"a": "bc", "b": "a", "c": "a"}),
        "abc",
    ),
    "a queued call that waits for the only slot, which its caller has": (
        picture(needs={"a": "b"}, queued={"b": "one"}, holders={"one": "a"}),
        "ab",
    ),
    "the second of two slots is free, so the deployment has no holders in the picture": (
        picture(needs={"a": "b"}, queued={"b": "two"}),
        "",
    ),
    "the second of two slots is held by one who runs": (
        picture(needs={"a": "b"}, queued={"b": "two"}, holders={"two": "ax"}),
        "",
    ),
    "both slots are held by callers of the queued": (
        picture(needs={"a": "c", "b": "d"}, queued={"c": "two", "d": "two"}, holders={"two": "ab"}),
        "abcd",
    ),
    "two deployments, each waiting for a slot of the other one": (
        picture(
            needs={"a": "c", "b": "d"},
            queued={"c": "right", "d": "left"},
            holders={"left": "a", "right": "b"},
        ),
        "abcd",
    ),
    "a call whose argument is stuck": (picture(needs={"a": "b", "b": "a", "c": "a"}), "abc"),
    "a bystander in the queue of a stuck deployment": (
        picture(needs={"a": "b"}, queued={"b": "one", "z": "one"}, holders={"one": "a"}),
        "abz",
    ),
    "a deployment without holders lets its queue go on": (
        picture(queued={"a": "none"}, holders={"none": ""}),
        "",
    ),
    "somebody who waits for nobody can go on": (picture(needs={"a": "", "b": "a"}), ""),
}


@pytest.mark.parametrize("case", TABLE)
def test_it_is_known_who_is_stuck(case: str) -> None:
    drawn, expected = TABLE[case]

    assert stuck(drawn) == set(expected)


class TestKnot:
    def test_nobody_is_in_one_where_all_may_go_on(self) -> None:
        assert knot(picture(needs={"a": "b"})) == []

    def test_those_who_only_wait_for_it_are_left_out(self) -> None:
        drawn = picture(needs={"x": "y", "y": "a", "a": "b", "b": "a", "z": "b"})

        assert stuck(drawn) == set("xyabz")
        assert set(knot(drawn)) == set("ab")

    def test_of_several_it_is_one(self) -> None:
        drawn = picture(needs={"a": "b", "b": "a", "c": "d", "d": "c"})

        assert set(knot(drawn)) in ({"a", "b"}, {"c", "d"})

    def test_all_who_stand_in_the_queue_that_its_member_stands_in_are_left_out(self) -> None:
        drawn = picture(needs={"a": "b"}, queued={"b": "one", "y": "one", "z": "one"}, holders={"one": "a"})

        assert set(knot(drawn)) == {"a", "b"}

    def test_is_the_same_one_each_time(self) -> None:
        drawn = picture(needs={"a": "b", "b": "a", "c": "d", "d": "c", "e": "ac"})

        assert len({tuple(knot(drawn)) for _ in range(10)}) == 1


# ---- random graphs, against two oracles


@dataclass
class World:
    """Deployments with slots, and requests that hold one, want one, or wait for arguments."""

    slots: list[int]
    running: dict[int, int] = field(default_factory=dict)
    """Request -> deployment whose slot it has."""
    queued: dict[int, int] = field(default_factory=dict)
    """Request -> deployment in whose queue it stands."""
    needs: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Request -> those any of whom would let it go on. Who has a slot and needs nobody can end at any time."""

    def drawn(self) -> Picture[int]:
        """Draw it as the watch would: deployments with a free slot are left out."""
        holders = {
            f"d{number}": [request for request, where in self.running.items() if where == number]
            for number in range(len(self.slots))
        }
        full = {name: held for name, held in holders.items() if len(held) >= self.slots[int(name[1:])]}
        queued = {request: f"d{number}" for request, number in self.queued.items()}
        return Picture(dict(self.needs), queued, full)  # type: ignore[arg-type]

    def everything_that_may_happen(self) -> set[int]:
        """Play all games: who may be answered in some way for things to go on; the rest is stuck."""
        start = (frozenset[int](), tuple(sorted(self.running.items())), tuple(sorted(self.queued)))
        seen, ahead = {start}, [start]
        answered: set[int] = set()
        while ahead:
            done, running, queued = ahead.pop()
            answered |= done
            for state in self._steps(done, dict(running), set(queued)):
                if state not in seen:
                    seen.add(state)
                    ahead.append(state)
        return answered

    def _steps(
        self, done: frozenset[int], running: dict[int, int], queued: set[int]
    ) -> Iterator[tuple[frozenset[int], tuple[tuple[int, int], ...], tuple[int, ...]]]:
        for request in {*self.running, *self.queued, *self.needs} - done:
            waited_for = self.needs.get(request)
            if request in queued or (waited_for is not None and not done.intersection(waited_for)):
                continue
            left = {key: where for key, where in running.items() if key != request}
            yield done | {request}, tuple(sorted(left.items())), tuple(sorted(queued))
        for request in queued:
            where = self.queued[request]
            if list(running.values()).count(where) < self.slots[where]:
                took = {**running, request: where}
                yield done, tuple(sorted(took.items())), tuple(sorted(queued - {request}))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world = World(draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)))
    count = draw(st.integers(1, 7))
    some = st.lists(st.integers(0, count - 1), min_size=1, max_size=2, unique=True).map(tuple)
    for request in range(count):
        role = draw(st.sampled_from(["waits with a slot", "queued", "runs", "waits for arguments"]))
        where = draw(st.integers(0, len(world.slots) - 1))
        if role == "queued":
            world.queued[request] = where
            continue
        is_full = list(world.running.values()).count(where) == world.slots[where]
        if role != "waits for arguments" and not is_full:
            world.running[request] = where
        if role != "runs" or is_full:
            world.needs[request] = draw(some)
    return world


def subsets(keys: Iterable[int]) -> Iterator[frozenset[int]]:
    found = sorted(keys)
    return (
        frozenset(chosen)
        for chosen in chain.from_iterable(combinations(found, size) for size in range(1, len(found) + 1))
    )


def holds_itself(drawn: Picture[int], group: frozenset[int]) -> bool:
    """Whether all that could let a member go on is in `group`: the definition, word for word."""
    return all(_others(drawn, key) and group.issuperset(_others(drawn, key)) for key in group)


def _others(drawn: Picture[int], key: int) -> Iterable[int]:
    return drawn.needs[key] if key in drawn.needs else drawn.holders.get(drawn.queued[key], ())


@pytest.mark.slow
@given(worlds())
@settings(max_examples=300)
def test_stuck_are_exactly_those_whom_nothing_that_may_happen_lets_go_on(world: World) -> None:
    everybody = {*world.running, *world.queued, *world.needs}

    assert stuck(world.drawn()) == everybody - world.everything_that_may_happen()


@pytest.mark.slow
@given(worlds())
@settings(max_examples=300)
def test_stuck_is_the_union_of_all_groups_that_hold_themselves(world: World) -> None:
    drawn = world.drawn()

    groups = [group for group in subsets({*drawn.needs, *drawn.queued}) if holds_itself(drawn, group)]

    assert stuck(drawn) == set(chain.from_iterable(groups))


@pytest.mark.slow
@given(worlds())
@settings(max_examples=300)
def test_a_knot_is_a_smallest_group_that_holds_itself(world: World) -> None:
    drawn = world.drawn()

    found = frozenset(knot(drawn))

    assert bool(found) == bool(stuck(drawn))
    if found:
        assert holds_itself(drawn, found)
        assert not any(holds_itself(drawn, group) for group in subsets(found) if group != found)


@pytest.mark.slow
@given(worlds(), st.data())
@settings(max_examples=200)
def test_nobody_becomes_stuck_because_another_one_may_go_on(world: World, data: st.DataObject) -> None:
    drawn = world.drawn()
    if not drawn.needs:
        return
    freed = data.draw(st.sampled_from(sorted(drawn.needs)))
    before = stuck(drawn)

    del drawn.needs[freed]

    assert stuck(drawn) <= before - {freed}


class TestCost:
    """It is linear: a picture of everything is taken while everything goes on."""

    def queue(self, slots: int, queue: int) -> Picture[int]:
        return Picture(
            {key: (slots + key,) for key in range(slots)},
            {slots + key: "full" for key in range(queue)},
            {"full": range(slots)},
        )

    @pytest.mark.parametrize("seen", [stuck, knot])
    @pytest.mark.parametrize("is_ring", [False, True], ids=["chain", "ring"])
    def test_of_a_chain_of_calls_is_in_proportion_to_its_length(self, seen: Seen, is_ring: bool) -> None:
        def drawn(count: int) -> Picture[int]:
            return Picture({key: ((key + 1) % count if is_ring else key + 1,) for key in range(count)})

        once, twice = (lines_run_by(partial(seen, drawn(count))) for count in (1_000, 2_000))

        assert once > 1_000
        assert twice < 2.1 * once

    @pytest.mark.parametrize("seen", [stuck, knot])
    def test_of_a_queue_before_many_slots_is_in_proportion_to_both_together(self, seen: Seen) -> None:
        once, twice = (lines_run_by(partial(seen, self.queue(100 * n, 1_000 * n))) for n in (1, 2))

        assert once > 1_000
        assert twice < 2.1 * once

    @pytest.mark.slow
    def test_a_chain_of_a_hundred_thousand_calls_is_seen_through(self) -> None:
        count = 100_000

        assert stuck(Picture({key: (key + 1,) for key in range(count)})) == set()
        assert len(knot(Picture({key: ((key + 1) % count,) for key in range(count)}))) == count

    def test_a_long_queue_before_many_slots_is_seen_through(self) -> None:
        slots, queue = 500, 20_000
        drawn = self.queue(slots, queue)

        assert len(stuck(drawn)) == slots + queue
        assert len(knot(drawn)) == 2 * slots
