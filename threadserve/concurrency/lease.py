"""A thread that waits for a coroutine may be its event loop for a while, instead of waking the loop's own thread.

As in a monitor, one thread at a time is the loop. Its own thread is it nearly always: it gives that up exactly while it
sleeps in ``select``. A *guest* that finds it asleep becomes the loop: to all that asyncio can ask, it is the loop's
thread. It runs what is ready and leaves; the loop's own thread is woken only if it has been left something to do: a
handle, or a timer that rings before it would have woken by itself. Files need nothing: the kernel's table is shared.

What code on the loop can notice is the thread: some of its steps run on a caller's. So it is done only where a
deployment allows it, as with other bodies (``router/helping.py``).

Some names of asyncio's that are not public are needed (``_NEEDED``); on a loop without them, in debug mode, and
with a selector that cannot be changed while somebody waits on it, there are no guests.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from threadserve.concurrency.interrupts import is_interrupt
from threadserve.concurrency.threads import get_ident
from threadserve.concurrency.waiter import log_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.concurrency.kernel import Kernel

__all__ = ["Gate"]

_PATIENCE = 64
"""Handles that a guest runs before it leaves the rest to the loop's own thread."""

_NEEDED = (
    "_asyncgen_finalizer_hook",
    "_asyncgen_firstiter_hook",
    "_debug",
    "_ready",
    "_scheduled",
    "_selector",
    "_stopping",
    "_thread_id",
    "_write_to_self",
)


class Gate:
    """Stands before a loop's selector, and says who is the loop. Made by the loop's own thread.

    Args:
        kernel: Makes the lock.
        loop: The loop; its selector is replaced by this.
        on_wake: Called by the loop's own thread before and after it sleeps: it sees to what it may have been woken for,
            and says whether there was anything.
    """

    def __init__(self, kernel: Kernel, loop: Any, on_wake: Callable[[], bool]) -> None:
        self._loop = loop
        self._selector = loop._selector
        self._on_wake = on_wake
        self._owner = get_ident()
        self._turn = kernel.turn()  # whoever holds it is the loop
        self._guests = 0  # guarded by _turn, as is _alarm
        self._alarm = math.inf
        self._turn.acquire()
        loop._selector = self

    @staticmethod
    def fits(loop: Any) -> bool:
        """Whether `loop` can have guests."""
        import asyncio
        import selectors

        is_stock = isinstance(loop, asyncio.SelectorEventLoop) and all(hasattr(loop, n) for n in _NEEDED)
        waits_on_a_copy = (
            selectors.SelectSelector,
            getattr(selectors, "PollSelector", selectors.SelectSelector),
        )
        return is_stock and not isinstance(getattr(loop, "_selector", None), waits_on_a_copy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._selector, name)

    def select(self, timeout: float | None = None) -> list[Any]:
        """Wait for events as the loop's own thread; while it sleeps others may be the loop."""
        loop = self._loop
        # The wake-up for what has just come may have been spent on what came before it. If something has, it may have
        # set a timer that `timeout` knows nothing of.
        has_worked = self._on_wake()
        if has_worked or (timeout is not None and timeout <= 0):
            events: list[Any] = self._selector.select(0)
        else:
            guests = self._guests
            self._alarm = loop._scheduled[0]._when if loop._scheduled else math.inf
            self._turn.release()
            try:
                events = self._selector.select(timeout)
            finally:
                self._turn.acquire()
            if guests != self._guests:
                events = self._selector.select(0)  # what there was may have been dealt with
            self._on_wake()
        return events

    def visit(self, first: Callable[[], object], is_enough: Callable[[], bool]) -> bool:
        """Be the loop until nothing is ready, or it is enough: True; False if somebody else is it.

        For any plain thread that does not handle an exception: what is raised meanwhile would get that as its context.

        Args:
            first: Called as the loop before anything else.
            is_enough: Asked between handles.

        Raises:
            KeyboardInterrupt: It struck while the user's code ran.
        """
        loop = self._loop
        if loop._debug or not self._turn.acquire(False):
            return False
        enter = sys.modules["asyncio.events"]._set_running_loop
        hooks = sys.get_asyncgen_hooks()
        enter(loop)
        loop._thread_id = get_ident()
        sys.set_asyncgen_hooks(loop._asyncgen_firstiter_hook, loop._asyncgen_finalizer_hook)
        try:
            first()
            _run(loop, is_enough)
        finally:
            sys.set_asyncgen_hooks(*hooks)
            loop._thread_id = self._owner
            enter(None)
            timers = loop._scheduled
            is_left = loop._ready or loop._stopping or (timers and timers[0]._when < self._alarm)
            self._guests += 1
            self._turn.release()
            if is_left:
                loop._write_to_self()
        return True


def _run(loop: Any, is_enough: Callable[[], bool]) -> None:
    ready = loop._ready
    for _ in range(_PATIENCE):
        if not ready or loop._debug or is_enough():
            return
        handle = ready.popleft()
        if handle._cancelled:
            continue
        try:
            handle._run()
        except (SystemExit, KeyboardInterrupt) as error:
            if is_interrupt(error):
                raise  # a signal handler's, and so the guest's
            log_failure()  # as on the loop's own thread: not the end of the others
