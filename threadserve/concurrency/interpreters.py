"""Interpreters beside this one, each with a GIL of its own, and mailboxes that wake a thread of another interpreter.

What the standard library offers between interpreters is a queue whose blocking ``get`` looks every 10 ms. The queue itself is
quick, and file descriptors belong to the process, so a doorbell beside it removes the problem: an eventfd, or a pipe where
there is none. A thread that sleeps on it holds no GIL, so no GIL changes hands when it is woken: the way there and
back is cheaper than between two threads of one interpreter.

One ring is one item. Who puts an item in rings after that; who hears a ring takes one item, and finds it. So any number
of threads may wait at one mailbox, and each item goes to one of them.

Only CPython from 3.14 on has the public module; what is private before that is unstable (3.12 aborts) or was renamed.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from threadserve.concurrency.waiter import read_on

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from threadserve.concurrency.kernel import Lock

__all__ = ["Interpreter", "Mailbox", "is_offered"]

_ONE = (1).to_bytes(8, sys.byteorder)


def is_offered() -> bool:
    """Whether this Python has interpreters for replicas."""
    import importlib.util

    return importlib.util.find_spec("concurrent.interpreters") is not None


def _module() -> Any:
    from importlib import import_module

    return import_module("concurrent.interpreters")  # which no checker for an older Python knows


class Mailbox:
    """Items on their way to threads of one interpreter, from any other.

    An item is an int, a float, a string, bytes, None, a memoryview, which is shared, or a tuple of these.

    A thread that waits for what an item will bring may come as a visitor, one at a time: then it is the one to be woken,
    by a bell of its own, instead of a thread that would only wake it in turn. A visitor that leaves first says so and then
    sees to all there is; who has put an item in and has rung for a visitor looks again, and rings for the others if it
    has left. So one of them finds the item.
    """

    def __init__(
        self, queue: Any, bell: tuple[int, int], visitors_bell: tuple[int, int], has_visitor: Any
    ) -> None:
        self.parts = (queue, bell, visitors_bell, has_visitor)
        """What another interpreter makes the same mailbox of."""
        self._put = queue.put_nowait
        self._get = queue.get_nowait
        self._count = queue.qsize
        self._bell = bell
        self._visitors_bell = visitors_bell
        self._has_visitor = has_visitor

    @classmethod
    def new(cls, *, for_many: bool = False) -> Mailbox:
        """Make one; with `for_many`, that of several waiting threads a ring wakes but one. An eventfd wakes them all."""
        bell = os.pipe() if for_many else _new_bell()
        return cls(_module().create_queue(), bell, _new_bell(), memoryview(bytearray(1)))

    def put(self, item: Any) -> None:
        """Put `item` in. Does not block, unless there is no eventfd and 8,000 items have not been taken."""
        self._put(item)
        if self._has_visitor[0]:
            self._ring_for_visitor()
        else:
            os.write(self._bell[1], _ONE)

    def _ring_for_visitor(self) -> None:
        os.write(self._visitors_bell[1], _ONE)
        if not self._has_visitor[0]:
            os.write(self._bell[1], _ONE)

    def wait(self) -> None:
        """Wait for an item, which is the caller's to ``take``. Blocks, without a timeout, and without the GIL."""
        os.read(self._bell[0], 8)  # not eventfd_read: this one goes on after a signal

    def take(self) -> Any:
        """Return the oldest item, after ``wait``; None where a visitor has taken it. Does not block."""
        if not self._count():  # asked first, as the exception costs five times as much
            return None
        try:
            return self._get()
        except Exception as error:  # the queue's own, whose class may not be imported yet
            if type(error).__name__ != "QueueEmpty":
                raise
            return None

    def ring(self) -> None:
        """Have one of those who wait look, though there may be nothing."""
        os.write(self._bell[1], _ONE)

    def nudge(self) -> None:
        """Have the visitor, if there is one, look whether it has what it came for."""
        if self._has_visitor[0]:
            os.write(self._visitors_bell[1], _ONE)

    def visit(
        self,
        lock: Lock,
        note: Callable[[Any], Any],
        see_to: Callable[[Any], object],
        is_enough: Callable[[], bool],
    ) -> None:
        """Wait here, and have `see_to` called with each item, until it is enough. Blocks; one thread at a time.

        Args:
            lock: Held while an item is taken, and `note` is called with it.
            note: Returns the item; None where there is none.
            see_to: Called with each item.
            is_enough: Asked before each wait; when it becomes true otherwise than by an item, ``nudge`` tells.

        Raises:
            KeyboardInterrupt: It struck while the thread waited.
        """
        self._has_visitor[0] = 1
        try:
            while True:
                while self._see_to_one(lock, note, see_to):
                    if is_enough():
                        return
                if is_enough():
                    return
                read_on(self._visitors_bell[0])
        finally:
            self._has_visitor[0] = 0
            while self._see_to_one(lock, note, see_to):
                pass

    def _see_to_one(self, lock: Lock, note: Callable[[Any], Any], see_to: Callable[[Any], object]) -> bool:
        """See to the oldest item; False where there is none."""
        with lock:
            item = note(self.take())
        if item is None:
            return False
        see_to(item)
        return True

    def close(self) -> None:
        """Give the file descriptors back. Nobody may use it any more, in any interpreter."""
        for file in {*self._bell, *self._visitors_bell}:
            os.close(file)


def _new_bell() -> tuple[int, int]:
    """Return where a bell is heard, and where it is rung."""
    if hasattr(os, "eventfd"):
        file = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
        return file, file
    return os.pipe()


class Interpreter:
    """One interpreter with a GIL of its own."""

    def __init__(self) -> None:
        self._interpreter = _module().create()

    def run(self, source: str, names: Mapping[str, Any]) -> None:
        """Run `source` in there, on the calling thread, with `names` as globals. Blocks until it ends.

        Raises:
            RuntimeError: It raised; the message has the traceback.
        """
        self._interpreter.prepare_main(**names)
        try:
            self._interpreter.exec(source)
        except _module().ExecutionFailed as error:
            raise RuntimeError(str(error)) from None

    def close(self) -> None:
        """End it. Blocks; no thread may run in it any more."""
        self._interpreter.close()
