"""Locks without convoys: each kind on every Python, though it may be in use on others only."""

from __future__ import annotations

import sys
import threading
import time
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import garbage_of, wait_until
from threadserve.concurrency.lock import BellLock, RealLock, TokenLock, acquire_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Lock = Any
SOON, LATE = 0.01, 30.0


@pytest.fixture(params=[allocate_lock, TokenLock, BellLock])
def make(request: pytest.FixtureRequest) -> Callable[[], Lock]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def nobody_is_interrupted() -> Iterator[None]:
    """Whoever has the GIL keeps it until it blocks."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(100)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def everybody_is_interrupted() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Thread(threading.Thread):
    """Takes a lock and gives it back."""

    def __init__(self, lock: Lock) -> None:
        super().__init__()
        self.lock = lock
        self.has_had_it = False
        self.start()

    def run(self) -> None:
        with self.lock:
            self.has_had_it = True


@pytest.mark.usefixtures("everybody_is_interrupted")
def test_is_had_by_one_at_a_time_by_whatever_way_it_is_taken(make: Callable[[], Lock]) -> None:
    lock, inside, most = make(), [0], [0]

    def by_name() -> None:
        lock.acquire()
        try:
            note()
        finally:
            lock.release()

    def by_with() -> None:
        with lock:
            note()

    def by_trying() -> None:
        while not acquire_within(lock, SOON):
            pass
        note()
        lock.release()

    def note() -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        inside[0] -= 1

    def work(way: Callable[[], None]) -> None:
        for _ in range(500):
            way()

    threads = [threading.Thread(target=work, args=(way,)) for way in (by_name, by_with, by_trying) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LATE)

    assert not any(thread.is_alive() for thread in threads)
    assert (inside, most) == ([0], [1])


def test_is_had_in_the_end_by_each_who_waits(make: Callable[[], Lock]) -> None:
    lock = make()
    with lock:
        threads = [Thread(lock) for _ in range(5)]
        assert not any(thread.has_had_it for thread in threads)

    for thread in threads:
        thread.join(LATE)
    assert all(thread.has_had_it for thread in threads)


def test_is_free_for_the_others_when_one_has_given_up_waiting(make: Callable[[], Lock]) -> None:
    lock = make()
    with lock:
        thread = Thread(lock)
        assert not acquire_within(lock, SOON)
        assert not acquire_within(lock, 0)

    thread.join(LATE)
    assert thread.has_had_it
    assert acquire_within(lock, 0)


def test_is_free_after_its_block_has_raised(make: Callable[[], Lock]) -> None:
    lock = make()

    with pytest.raises(KeyError, match="k"), lock:
        raise KeyError("k")

    assert acquire_within(lock, 0)


def test_leaves_nothing_for_the_collector(make: Callable[[], Lock]) -> None:
    def use() -> None:
        with make():
            pass

    assert garbage_of(use) == 0


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the lock of the interpreter hands over after 1 ms")
@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no GIL to wait for")
@pytest.mark.usefixtures("nobody_is_interrupted")
def test_is_nobodys_while_the_thread_that_waits_for_it_has_no_gil() -> None:
    lock = RealLock()
    lock.acquire()
    thread = Thread(lock)
    wait_until(lambda: is_blocked(thread))

    lock.release()
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end:
        pass  # the other thread is woken meanwhile, but does not get the GIL
    is_free = acquire_within(lock, 0)
    if is_free:
        lock.release()

    thread.join(LATE)
    assert is_free
    assert thread.has_had_it


def is_blocked(thread: threading.Thread) -> bool:
    """Whether `thread` is at its lock. It has blocked there, if this thread runs though that was not interrupted."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_name != "run":
        frame = frame.f_back
    return frame is not None and frame.f_code is Thread.run.__code__
