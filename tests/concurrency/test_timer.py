from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from typing import TYPE_CHECKING

from threadserve.concurrency.timer import Alarm, Timers
from threadserve.concurrency.waiter import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

LATE = 30.0
FAR = 3600.0


class Ringing:
    """What an alarm calls: tells that it rang, and may be found alive or dead."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.rang = Waiter()
        self.thread = ""
        self._act = act

    def __call__(self) -> None:
        self._act()
        self.thread = threading.current_thread().name
        self.rang.set()


def in_future(seconds: float) -> float:
    return time.monotonic() + seconds


def test_an_alarm_rings_on_the_timer_thread() -> None:
    timers, ringing = Timers(), Ringing()

    timers.call_at(in_future(0), ringing)

    assert ringing.rang.wait(LATE)
    assert ringing.thread == "threadserve timer"


def test_no_thread_runs_before_the_first_alarm_and_one_after_it() -> None:
    def count() -> int:
        return sum(thread.name == "threadserve timer" for thread in threading.enumerate())

    before = count()
    timers = Timers()
    assert count() == before

    for _ in range(3):
        timers.call_at(in_future(FAR), lambda: None)

    assert count() == before + 1


def test_an_alarm_does_not_ring_before_its_time() -> None:
    timers, ringing = Timers(), Ringing()
    deadline = in_future(0.02)

    timers.call_at(deadline, ringing)

    assert ringing.rang.wait(LATE)
    assert time.monotonic() >= deadline


def test_an_earlier_alarm_overtakes_the_one_that_is_slept_for() -> None:
    timers, first, earlier = Timers(), Ringing(), Ringing()
    timers.call_at(in_future(0), first)
    first.rang.wait(LATE)  # now the thread is, or will be, asleep

    timers.call_at(in_future(FAR), lambda: None)
    timers.call_at(in_future(0.001), earlier)

    assert earlier.rang.wait(LATE)


def test_alarms_of_the_same_time_ring_in_the_order_in_which_they_were_set() -> None:
    timers, gate, last = Timers(), Waiter(), Ringing()
    rung: list[int] = []
    timers.call_at(in_future(0), lambda: gate.wait(LATE))
    due = in_future(0)

    for number in range(100):
        timers.call_at(due, lambda number=number: rung.append(number))  # type: ignore[misc]
    timers.call_at(due, last)
    gate.set()

    assert last.rang.wait(LATE)
    assert rung == list(range(100))


def test_an_alarm_may_cancel_the_one_that_is_due_with_it() -> None:
    timers, gate, last = Timers(), Waiter(), Ringing()
    rung: list[str] = []
    timers.call_at(in_future(0), lambda: gate.wait(LATE))
    due = in_future(0)

    alarms: list[Alarm] = []

    def cancel_all() -> None:
        for alarm in alarms:
            alarm.cancel()

    timers.call_at(due, cancel_all)
    alarms.append(timers.call_at(due, lambda: rung.append("second")))
    timers.call_at(due, last)
    gate.set()

    assert last.rang.wait(LATE)
    assert not rung


def test_an_alarm_may_set_another() -> None:
    timers, second = Timers(), Ringing()

    timers.call_at(in_future(0), lambda: timers.call_at(in_future(0), second))

    assert second.rang.wait(LATE)


def test_an_alarm_that_fails_is_logged_and_the_next_one_rings(caplog: pytest.LogCaptureFixture) -> None:
    timers, next_one = Timers(), Ringing()

    def fail() -> None:
        raise ValueError("an alarm that fails")

    with caplog.at_level(logging.ERROR, logger="threadserve"):
        timers.call_at(in_future(0), fail)
        timers.call_at(in_future(0), next_one)
        assert next_one.rang.wait(LATE)

    assert "an alarm that fails" in caplog.text


def test_an_alarm_at_infinity_keeps_nobody_from_ringing() -> None:
    timers, ringing = Timers(), Ringing()

    timers.call_at(math.inf, lambda: None)
    timers.call_at(in_future(0.001), ringing)

    assert ringing.rang.wait(LATE)


def test_what_a_cancelled_alarm_would_have_called_is_let_go_at_once() -> None:
    timers, ringing = Timers(), Ringing()
    ghost = weakref.ref(ringing)
    alarm = timers.call_at(in_future(FAR), ringing)
    del ringing

    alarm.cancel()

    assert ghost() is None


def test_what_an_alarm_has_called_is_let_go() -> None:
    timers, ringing, last = Timers(), Ringing(), Ringing()
    ghost = weakref.ref(ringing)

    timers.call_at(in_future(0), ringing)
    del ringing
    timers.call_at(in_future(0), last)

    assert last.rang.wait(LATE)
    assert ghost() is None


def test_what_dies_with_a_cancelled_alarm_may_set_another_one() -> None:
    timers = Timers()

    class Dying:
        def __call__(self) -> None:
            """Never called."""

        def __del__(self) -> None:
            timers.call_at(in_future(FAR), lambda: died.append(True))
            died.append(True)

    died: list[bool] = []

    timers.call_at(in_future(FAR), Dying()).cancel()

    assert died == [True]


def test_cancelled_alarms_do_not_pile_up() -> None:
    timers = Timers()
    kept = [timers.call_at(in_future(FAR), lambda: None) for _ in range(10)]

    for _ in range(10_000):
        timers.call_at(in_future(FAR), lambda: None).cancel()

    assert len(timers._heap) < 200
    assert {entry[2] for entry in timers._heap} >= set(kept)


def test_an_alarm_survives_that_the_cancelled_ones_are_cleared_away() -> None:
    timers, ringing = Timers(), Ringing()
    start = in_future(0.05)
    timers.call_at(start, ringing)

    for _ in range(500):
        timers.call_at(in_future(FAR), lambda: None).cancel()

    assert ringing.rang.wait(LATE)
    assert time.monotonic() >= start


def test_many_threads_may_set_and_cancel_at_once() -> None:
    timers = Timers()
    rung: list[int] = []
    due = in_future(0.02)
    start = threading.Barrier(4)

    def work(first: int) -> None:
        start.wait()
        for number in range(first, first + 200):
            alarm = timers.call_at(due, lambda number=number: rung.append(number))  # type: ignore[misc]
            if number % 2:
                alarm.cancel()

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 800, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = Ringing()
    timers.call_at(max(due, in_future(0)), last)

    assert last.rang.wait(LATE)
    assert {number for number in rung if number % 2 == 0} == set(range(0, 800, 2))
    assert len(rung) == len(set(rung))
