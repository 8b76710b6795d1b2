"""Finds the thread that has the right to run, and blocks on something that the simulator does not know."""

from __future__ import annotations

import signal
import sys
import threading
import time
from _thread import allocate_lock
from typing import TYPE_CHECKING

from threadserve.testing.crew import start_real_thread
from threadserve.testing.turns import UncontrolledError

if TYPE_CHECKING:
    from threadserve.testing.turns import Turns

__all__ = ["PATIENCE_S", "unwatch", "watch"]

PATIENCE_S = 1.0
"""Real seconds that a thread may stay in one place between two switch points; ten times as many if it moves."""

_GLANCES = 5
_now, _main = time.monotonic, threading.main_thread()

_lock = allocate_lock()
_watched: dict[Turns, _Look] = {}  # guarded by _lock
_sleeper = allocate_lock()  # held, but for the moment in which there is something to watch again
_sleeper.acquire()
_is_asleep = True  # guarded by _lock
_is_running = False  # guarded by _lock


class _Look:
    """What was last seen of a run."""

    __slots__ = ("glances", "moved", "place", "since", "steps")

    def __init__(self) -> None:
        self.steps = -1
        self.glances = 0  # that have found it in one place: on a busy machine those come late as well
        self.place: object = None
        self.since = self.moved = _now()


def watch(turns: Turns) -> None:
    """Begin to watch a run."""
    global _is_running, _is_asleep
    with _lock:
        _watched[turns] = _Look()
        if not _is_running:
            _is_running, _is_asleep = True, False
            start_real_thread("threadserve simulator, watchdog", _watch)
        elif _is_asleep:
            _is_asleep = False
            _sleeper.release()


def unwatch(turns: Turns) -> None:
    """Watch a run no more."""
    with _lock:
        _watched.pop(turns, None)


def _watch() -> None:
    global _is_asleep
    while True:
        # It has to look now and then: what blocks outside of the kernel tells nobody.
        _sleeper.acquire(timeout=PATIENCE_S / _GLANCES)
        with _lock:
            watched = list(_watched.items())
            _is_asleep = not watched
        if not watched:
            _sleeper.acquire()
        for turns, look in watched:
            _glance(turns, look)
        del watched


def _glance(turns: Turns, look: _Look) -> None:
    now, holder = _now(), turns.current
    if holder is None or turns.is_ending or holder.ident is None:
        return
    frame = sys._current_frames().get(holder.ident)
    place = None if frame is None else (id(frame), frame.f_lasti)
    del frame
    if turns.steps != look.steps:
        look.steps, look.place, look.since, look.moved, look.glances = turns.steps, place, now, now, 0
        return
    look.glances += 1
    if place != look.place:
        look.place, look.moved, look.glances = place, now, 0
    has_stayed = look.glances >= _GLANCES and now - look.moved >= PATIENCE_S
    is_lost = now - look.since >= 10 * PATIENCE_S
    if not (has_stayed or is_lost):
        return
    turns.fail(
        UncontrolledError(
            f"the thread {holder.name!r} has not come to a switch point for {now - look.since:.1f} s of real time: it "
            f"computes for long, or waits for something that the simulator does not control\n{turns.stack_of(holder)}"
        )
    )
    if holder is not turns.threads[0]:
        turns.lost = holder
    elif holder.ident == _main.ident:
        signal.pthread_kill(holder.ident, signal.SIGINT)
