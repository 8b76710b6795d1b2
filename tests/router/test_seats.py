"""Who has how many slots taken, and who gets the next request."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadserve.router.seats import Seat, Seats


def seats_of(*limits: int) -> tuple[Seats, list[Seat]]:
    """Open a seat of each limit, in order."""
    seats, opened = Seats(), [Seat(f"replica {number}", limit) for number, limit in enumerate(limits)]
    for seat in opened:
        seats.add(seat)
    return seats, opened


def request() -> Any:
    """A request, as far as seats care."""
    return object()


def take(seats: Seats, seat: Seat, times: int = 1) -> list[Any]:
    taken = [request() for _ in range(times)]
    for each in taken:
        seats.take(seat, each)
    return taken


class TestTheNextRequest:
    def test_goes_to_nobody_where_there_is_nobody(self) -> None:
        assert Seats().least_loaded() is None

    def test_goes_to_the_one_with_the_fewest_calls(self) -> None:
        seats, (busy, idle, middling) = seats_of(5, 5, 5)
        take(seats, busy, 3)
        take(seats, middling)

        assert seats.least_loaded() is idle

    def test_goes_to_the_one_that_became_idle_last(self) -> None:
        seats, (first, second, third) = seats_of(5, 5, 5)
        (call,) = take(seats, second)

        assert seats.least_loaded() is third
        seats.give_back(second, call)
        assert seats.least_loaded() is second
        seats.remove(second)
        assert seats.least_loaded() is third
        assert first.is_open

    def test_goes_past_those_whose_slots_are_all_taken(self) -> None:
        seats, (narrow, wide) = seats_of(1, 3)
        take(seats, narrow)
        take(seats, wide, 2)

        assert seats.least_loaded() is wide
        take(seats, wide)
        assert seats.least_loaded() is None

    def test_finds_the_one_with_room_among_those_of_its_load(self) -> None:
        seats, (wide, narrow) = seats_of(2, 1)
        take(seats, wide)
        take(seats, narrow)

        assert seats.least_loaded() is wide


class TestASlot:
    def test_is_free_until_it_is_taken_and_after_it_is_given_back(self) -> None:
        seats, (seat,) = seats_of(2)

        calls = take(seats, seat, 2)

        assert (seats.free, len(seat.running), seat.has_room) == (0, 2, False)
        for call in calls:
            seats.give_back(seat, call)
        assert (seats.free, len(seat.running), seat.has_room) == (2, 0, True)
        assert not seat.running

    def test_is_given_back_only_by_who_has_it(self) -> None:
        seats, (seat,) = seats_of(2)
        take(seats, seat)

        with pytest.raises(KeyError):
            seats.give_back(seat, request())

        assert (seats.free, len(seat.running)) == (1, 1)

    def test_of_a_seat_that_was_closed_meanwhile_counts_for_nobody(self) -> None:
        seats, (closed, other) = seats_of(2, 2)
        (call,) = take(seats, closed)

        seats.remove(closed)
        assert (seats.free, len(seats), closed.has_room) == (2, 1, False)
        seats.give_back(closed, call)

        assert (seats.free, len(closed.running)) == (2, 0)
        assert list(seats) == [other]

    def test_of_a_seat_that_is_opened_again_stays_taken(self) -> None:
        seats, (seat,) = seats_of(2)
        (call,) = take(seats, seat)

        seats.remove(seat)
        seats.add(seat)

        assert (seats.free, len(seat.running)) == (1, 1)
        assert seats.least_loaded() is seat
        seats.give_back(seat, call)
        assert seats.free == 2


def test_a_seat_says_what_it_is() -> None:
    _, (seat,) = seats_of(3)

    assert repr(seat) == "<Seat 'replica 0' open, 0 of 3 slots taken>"


class Model:
    """The same in ten lines, without being quick."""

    def __init__(self) -> None:
        self.open: list[Seat] = []
        self.taken: dict[Seat, list[Any]] = {}

    def load(self, seat: Seat) -> int:
        return len(self.taken.get(seat, ()))

    def free(self) -> int:
        return sum(seat.limit - self.load(seat) for seat in self.open)

    def candidates(self) -> list[Seat]:
        with_room = [seat for seat in self.open if self.load(seat) < seat.limit]
        least = min((self.load(seat) for seat in with_room), default=0)
        return [seat for seat in with_room if self.load(seat) == least]


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "take", "give back"]), st.integers(0, 9)), max_size=60
)


@given(limits=st.lists(st.integers(1, 3), min_size=1, max_size=5), steps=STEPS)
def test_seats_do_what_a_plain_model_does(limits: list[int], steps: list[tuple[str, int]]) -> None:
    seats, model = Seats(), Model()
    all_seats = [Seat(f"replica {number}", limit) for number, limit in enumerate(limits)]

    for step, number in steps:
        seat = all_seats[number % len(all_seats)]
        match step:
            case "add" if seat not in model.open:
                seats.add(seat)
                model.open.append(seat)
            case "remove" if seat in model.open:
                seats.remove(seat)
                model.open.remove(seat)
            case "take" if (found := seats.least_loaded()) is not None:
                call = request()
                seats.take(found, call)
                model.taken.setdefault(found, []).append(call)
            case "give back" if model.load(seat):
                seats.give_back(seat, model.taken[seat].pop(number % model.load(seat)))

        assert seats.free == model.free()
        assert set(seats) == set(model.open)
        assert len(seats) == len(model.open)
        candidates = model.candidates()
        found = seats.least_loaded()
        assert found in candidates if candidates else found is None
        for each in all_seats:
            assert len(each.running) == model.load(each)
            assert list(each.running) == cast("Any", model.taken.get(each, []))


def test_a_seat_that_loses_slots_gets_nothing_new_until_it_has_room() -> None:
    seats, (seat,) = seats_of(2)
    first, second = take(seats, seat, 2)

    seats.resize(seat, -1)
    assert (seat.limit, seats.free, seats.least_loaded()) == (1, 0, None)
    seats.give_back(seat, first)
    assert (seats.free, seats.least_loaded()) == (0, None)
    seats.give_back(seat, second)
    assert (seats.free, seats.least_loaded()) == (1, seat)
    seats.resize(seat, 2)
    take(seats, seat)
    assert seats.free == 2


def test_a_closed_seat_can_be_resized() -> None:
    seats, (seat,) = seats_of(1)
    seats.remove(seat)

    seats.resize(seat, 1)
    assert seats.free == 0
    seats.add(seat)
    assert seats.free == 2
