"""What simulated code waits with: locks, waiters and alarms that are nothing but turns taken."""

from __future__ import annotations

from _thread import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.testing.turns import SimulatedThread, Turns

__all__ = ["SimulatedAlarm", "SimulatedLock", "SimulatedWaiter"]


class SimulatedLock:
    """A lock that is strict: only its holder may release it."""

    __slots__ = ("_holder", "_name", "_turns", "_waiting")

    def __init__(self, turns: Turns, name: str) -> None:
        self._turns = turns
        self._name = name
        self._holder: SimulatedThread | None = None
        self._waiting: list[SimulatedThread] = []

    def __str__(self) -> str:
        return self._name if self._holder is None else f"{self._name}, held by {self._holder.name}"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; True when taken. Blocks."""
        turns = self._turns
        with turns.section as me:
            turns.pause(me)
            deadline = None if timeout < 0 else turns.now + timeout
            while self._holder is not None:
                if not blocking or not self._wait(me, deadline):
                    turns.log(me, f"does not get {self}")
                    return False
            self._holder = me
            turns.log(me, f"takes {self._name}")
            return True

    def release(self) -> None:
        """Give the lock back; one of those who wait for it may try again."""
        turns = self._turns
        with turns.section as me:
            if self._holder is not me:
                raise RuntimeError(f"{me.name} releases {self}" if self._holder else "release unlocked lock")
            self._holder = None
            turns.log(me, f"releases {self._name}")
            if self._waiting:
                turns.wake(self._waiting.pop(turns.draw(len(self._waiting))))
            turns.pause(me)

    __enter__ = acquire

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _wait(self, me: SimulatedThread, deadline: float | None) -> bool:
        self._waiting.append(me)
        try:  # one that was called by a release while its time ran out must try: it was the only one called
            return self._turns.park(me, self, deadline) or me not in self._waiting
        finally:
            if me in self._waiting:
                self._waiting.remove(me)


class SimulatedWaiter:
    """One thread's one wait. A wait that was ended by ``set`` uses it up, as in the real one."""

    __slots__ = ("_is_set", "_name", "_thread", "_turns")

    def __init__(self, turns: Turns, name: str) -> None:
        self._turns = turns
        self._name = name
        self._is_set = False
        self._thread: SimulatedThread | None = None

    def __str__(self) -> str:
        return self._name

    def wait(self, timeout: float | None = None) -> bool:
        """Block until ``set`` was called: True; or until `timeout` virtual seconds have passed: False."""
        turns = self._turns
        with turns.section as me:
            turns.pause(me)
            if not self._is_set:
                self._thread = me
                try:
                    is_woken = turns.park(me, self, None if timeout is None else turns.now + timeout)
                finally:
                    self._thread = None
                if not is_woken and not self._is_overtaken():
                    return False
            self._is_set = False
            turns.log(me, f"has {self}")
            return True

    def set(self) -> None:
        """End the wait, now or in advance. Never blocks, safe from any thread and at any moment."""
        turns = self._turns
        me = turns.current
        if turns.is_busy or me is None or me.ident != get_ident():
            turns.notes.append(self)
            return
        with turns.section:
            turns.pause(me)
            turns.log(me, f"sets {self}")
            self.fulfil()
            turns.pause(me)

    def fulfil(self) -> None:
        """Be set, at a moment at which the kernel can act on it."""
        self._is_set = True
        if self._thread is not None:
            self._turns.wake(self._thread)

    def _is_overtaken(self) -> bool:
        """Whether a timeout gives way to a ``set`` that came at the same time: either may have been first."""
        return self._is_set and self._turns.draw(2) == 1


class SimulatedAlarm:
    """Something that will happen, unless cancelled."""

    __slots__ = ("_name", "_turns", "fn")

    def __init__(self, turns: Turns, name: str, fn: Callable[[], object]) -> None:
        self._turns = turns
        self._name = name
        self.fn: Callable[[], object] | None = fn

    def __str__(self) -> str:
        return self._name

    def cancel(self) -> None:
        """Let it not happen, if it has not yet."""
        turns = self._turns
        with turns.section as me:
            turns.pause(me)
            fn, self.fn = self.fn, None
            turns.log(me, f"cancels {self}")
        del fn  # dies outside of the section
