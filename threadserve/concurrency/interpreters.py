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

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    """

    def __init__(self, queue: Any, ear: int, hand: int) -> None:
        self._queue = queue
        self._ear = ear
        self._hand = hand

    @classmethod
    def new(cls) -> Mailbox:
        """Make one."""
        if hasattr(os, "eventfd"):
            ear = hand = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
        else:
            ear, hand = os.pipe()
        return cls(_module().create_queue(), ear, hand)

    @property
    def parts(self) -> tuple[Any, int, int]:
        """What another interpreter makes the same mailbox of."""
        return self._queue, self._ear, self._hand

    def put(self, item: Any) -> None:
        """Put `item` in. Does not block, unless there is no eventfd and 8,000 items have not been taken."""
        self._queue.put(item)
        os.write(self._hand, _ONE)

    def wait(self) -> None:
        """Wait for an item, which is the caller's to ``take``. Blocks, without a timeout, and without the GIL."""
        os.read(self._ear, 8)  # not eventfd_read: this one goes on after a signal

    def take(self) -> Any:
        """Return the oldest item, after ``wait``. Does not block."""
        return self._queue.get_nowait()

    def close(self) -> None:
        """Give the file descriptors back. Nobody may use it any more, in any interpreter."""
        os.close(self._ear)
        if self._hand != self._ear:
            os.close(self._hand)


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
