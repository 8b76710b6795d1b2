"""When waits are looked at that may never end: a tenth of a second after they began, and again each time their age has doubled.

Mostly it is the last wait to join that completes a deadlock, but not always: an argument arrives, and what is left to wait
for is stuck; a replica could not be replaced after all. Hence again. Nothing runs when no body waits, and a wait that
ends in time has cost two stores.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from threadserve.call.request import Wait
    from threadserve.concurrency.kernel import Kernel, Timer

__all__ = ["PATIENCE_S", "Lookout"]

PATIENCE_S = 0.1
"""How long a wait lasts before it is looked at, in seconds."""


class Lookout:
    """Looks after the waits of bodies.

    Args:
        kernel: Whose clock and timers to use.
        waits: Returns the waits that there are.
        look: Called when one of them is due, on the thread for errands.
    """

    def __init__(
        self, kernel: Kernel, waits: Callable[[], Sequence[Wait]], look: Callable[[], object]
    ) -> None:
        self._kernel = kernel
        self._waits = waits
        self._look = look
        self._lock = kernel.lock()
        self._alarm: Timer | None = None  # guarded by _lock, as all below
        self._next = math.inf
        self._last = -math.inf

    def notice(self) -> None:
        """Be told that a body has begun to wait. Never blocks, never raises."""
        moment = self._kernel.now() + PATIENCE_S
        if self._next <= moment:  # read without the lock: whoever looks sets it first and sees this wait then
            return
        with suppress(
            RuntimeError
        ):  # there is no thread for a timer: nobody looks, and the wait goes on all the same
            self._look_at(moment)

    def end(self) -> None:
        """Look no more. Nobody may begin to wait any more."""
        self._waits = self._look = tuple  # who asked for this holds it, and shall not be held by it
        with self._lock:
            self._next = -math.inf
            alarm, self._alarm = self._alarm, None
        if alarm is not None:
            alarm.cancel()

    def _look_at(self, moment: float) -> None:
        """Look at `moment`, if not before."""
        with self._lock:
            if self._next <= moment:
                return
            alarm = self._kernel.call_at(moment, lambda: self._kernel.errands.post(self._see))
            if self._alarm is not None:
                self._alarm.cancel()
            self._next, self._alarm = moment, alarm

    def _see(self) -> None:
        """Look, if a wait is due for it, and see when the next one will be."""
        now = self._kernel.now()
        with self._lock:
            last, self._last = self._last, now
            if self._next == -math.inf:  # it has ended
                return
            # Before looking: a wait that begins now is seen, or sets it anew.
            self._next, self._alarm = math.inf, None
        looks = [_looks(wait.since, now) for wait in self._waits()]
        if any(last < due <= now for due, _ in looks):
            self._look()
        if looks:
            self._look_at(max(now + PATIENCE_S, min(following for _, following in looks)))


def _looks(since: float, now: float) -> tuple[float, float]:
    """Return when a wait that began at `since` was to be looked at last, and when it is to be next: its age doubles."""
    age = PATIENCE_S
    while since + age <= now:
        age *= 2
    return since + age / 2, since + age
