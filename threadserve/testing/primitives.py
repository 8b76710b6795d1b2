"""What simulated code waits with: locks, waiters and alarms that are nothing but turns taken."""

from __future__ import annotations

from _thread import get_ident
from collections import deque
from typing import TYPE_CHECKING, Any

from threadserve.testing.turns import current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from threadserve.concurrency.waiter import Subscriber
    from threadserve.testing.turns import SimulatedThread, Turns

__all__ = ["SimulatedAlarm", "SimulatedDeque", "SimulatedLock", "SimulatedWaiter"]


class SimulatedLock:
    """A lock that is strict: only its holder may release it."""

    __slots__ = ("_holder", "_turns", "_waiting", "label")

    def __init__(self, turns: Turns, number: int) -> None:
        self._turns = turns
        self.label = f"lock {number}"
        """Its name, whoever holds it. It is what the entries have of it: they outlive the run, the lock need not."""
        self._holder: SimulatedThread | None = None
        self._waiting: list[SimulatedThread] | None = None

    def __str__(self) -> str:
        return self.label if self._holder is None else f"{self.label}, held by {self._holder.name}"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; True when taken. Blocks."""
        turns = self._turns
        me = turns.current
        if me is None or turns.is_busy or me.ident != get_ident():
            me = turns.enter()
        turns.is_busy = True  # from here to the end as in `section` and `pause`, without their calls
        try:
            turns.steps += 1
            if turns.runnable or turns.steps > turns.limit:
                turns.give_way(me)
            if self._holder is not None and not self._wait_long(me, blocking, timeout):
                turns.log(me, "does not get", str(self))
                return False
            self._holder = me
            if not turns.is_ending:
                turns.entries.append((me.name, "takes", self.label, turns.now, id(current())))
            return True
        except BaseException as failure:
            turns.blame(failure)
            raise
        finally:
            turns.is_busy = False

    def release(self, *exc_info: object) -> None:
        """Give the lock back; one of those who wait for it may try again."""
        turns = self._turns
        me = turns.current
        if me is None or turns.is_busy or me.ident != get_ident():
            me = turns.enter()
        turns.is_busy = True
        try:
            if self._holder is not me:
                raise RuntimeError(f"{me.name} releases {self}" if self._holder else "release unlocked lock")
            self._holder = None
            if not turns.is_ending:
                turns.entries.append((me.name, "releases", self.label, turns.now, id(current())))
            if self._waiting:
                turns.wake(self._waiting.pop(turns.draw(len(self._waiting))))
            turns.steps += 1
            if turns.runnable or turns.steps > turns.limit:
                turns.give_way(me)
        except BaseException as failure:
            turns.blame(failure)
            raise
        finally:
            turns.is_busy = False

    __enter__ = acquire
    __exit__ = release

    def _wait_long(self, me: SimulatedThread, blocking: bool, timeout: float) -> bool:
        """Wait until nobody holds the lock: True; False when that takes too long."""
        deadline = None if timeout < 0 else self._turns.now + timeout
        while self._holder is not None:
            if not blocking or not self._wait(me, deadline):
                return False
        return True

    def _wait(self, me: SimulatedThread, deadline: float | None) -> bool:
        if self._waiting is None:
            self._waiting = []
        self._waiting.append(me)
        try:  # one that was called by a release while its time ran out must try: it was the only one called
            return self._turns.park(me, self, deadline) or me not in self._waiting
        finally:
            if me in self._waiting:
                self._waiting.remove(me)


class SimulatedWaiter:
    """One thread's one wait. A wait that was ended by ``set`` uses it up, as in the real one."""

    __slots__ = ("_is_set", "_thread", "_turns", "label")

    def __init__(self, turns: Turns, kind: str, number: int) -> None:
        self._turns = turns
        self.label = f"{kind} {number}"
        self._is_set = False
        self._thread: SimulatedThread | None = None

    def __str__(self) -> str:
        return self.label

    def wait(self, timeout: float | None = None) -> bool:
        """Block until ``set`` was called: True; or until `timeout` virtual seconds have passed: False."""
        turns = self._turns
        with turns as me:
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
            turns.log(me, "has", self.label)
            return True

    rest = wait

    def tell(self) -> Iterable[Subscriber]:
        """Be a subscriber: ``set``."""
        self.set()
        return ()

    def set(self) -> None:
        """End the wait, now or in advance. Never blocks, safe from any thread and at any moment."""
        turns = self._turns
        me = turns.current
        if turns.is_busy or me is None or me.ident != get_ident():
            turns.note(self)
            return
        with turns:
            turns.pause(me)
            turns.log(me, "sets", self.label)
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

    __slots__ = ("_turns", "fn", "label")

    def __init__(self, turns: Turns, number: int, fn: Callable[[], object]) -> None:
        self._turns = turns
        self.label = f"alarm {number}"
        self.fn: Callable[[], object] | None = fn

    def __str__(self) -> str:
        return self.label

    def cancel(self) -> None:
        """Let it not happen, if it has not yet."""
        turns = self._turns
        with turns as me:
            turns.pause(me)
            fn, self.fn = self.fn, None
            turns.log(me, "cancels", self.label)
        del fn  # dies outside of the section


class SimulatedDeque(deque[Any]):
    """A deque that is used without a lock: others may go on right before it is touched, and right after."""

    __slots__ = ("_turns",)

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def append(self, item: Any) -> None:
        """Put `item` at the end."""
        stop = self._turns.stop
        stop()
        super().append(item)
        stop()

    def popleft(self) -> Any:
        """Take the first item.

        Raises:
            IndexError: There is none.
        """
        stop = self._turns.stop
        stop()
        item = super().popleft()
        stop()
        return item
