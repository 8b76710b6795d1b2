"""A bounded channel between one who produces and one who reads: backpressure for streams.

Each side may be a thread or a coroutine, and neither side knows which the other one is. Both build on the same
two steps, ``offer`` and ``take``, which never block: they either succeed, or say that the channel has ended, or
register a subscriber in the same critical section in which they found the buffer full or empty. So there is no gap
between "I looked" and "I sleep" in which a wake-up could be lost.

* ``finish`` is the producer's: no more items will come; readers get what is buffered, then END.
* ``close`` is everybody else's (cancel, deadline, a reader that leaves): the buffer is dropped, readers get END at
  once, and a producer that offers, now or later, is told to stop.

A producer that found the channel full is woken when half of it has been read, not at each item: with small
bounds nearly all the cost of a stream is waking each other.

The bound counts items, not bytes. A channel may have several readers; each item goes to one of them.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from threadserve.concurrency.loops import LoopWaiter
from threadserve.concurrency.waiter import Subscriber, deliver

if TYPE_CHECKING:
    from threadserve.concurrency.kernel import Kernel

__all__ = ["EMPTY", "END", "Channel"]


class _Mark:
    """A value that is nobody's item."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


END: Final = _Mark("END")
"""There are no more items and there will be none."""

EMPTY: Final = _Mark("EMPTY")
"""There is no item now; the subscriber will be told."""


class Channel:
    """Items in order, at most `bound` of them at a time (``math.inf``: any number)."""

    __slots__ = ("_bound", "_is_closed", "_is_finished", "_items", "_lock", "_low", "_readers", "_writers")

    def __init__(self, kernel: Kernel, bound: float) -> None:
        self._bound = bound
        self._low = 0 if math.isinf(bound) else bound // 2
        self._lock = kernel.lock()
        self._items: deque[Any] = deque()  # guarded by _lock, as all below
        self._readers: dict[Subscriber, None] = {}
        self._writers: dict[Subscriber, None] = {}
        self._is_finished = False
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "finished" if self._is_finished else "open"
        return f"<Channel {state}, {len(self._items)} of {self._bound} items>"

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_closed(self) -> bool:
        """Whether the producer should stop."""
        return self._is_closed

    def has_news(self) -> bool:
        """Whether a reader that waits would find something. Takes no lock: the answer may be old when it comes."""
        return bool(self._items) or self._is_finished or self._is_closed

    def has_room(self) -> bool:
        """Whether a producer that waits would be let go on. Takes no lock: the answer may be old when it comes."""
        return len(self._items) <= self._low or self._is_closed

    def offer(self, item: Any, subscriber: Subscriber | None) -> bool | None:
        """Put `item` in: True. Closed: False. Full: None; then `subscriber` is told when to offer again."""
        with self._lock:
            if self._is_closed:
                return False
            if len(self._items) >= self._bound:
                if subscriber is not None:
                    self._writers[subscriber] = None
                return None
            self._items.append(item)
            if not self._readers:
                return True
            reader = next(iter(self._readers))
            del self._readers[reader]
        deliver((reader,))
        return True

    def take(self, subscriber: Subscriber | None = None) -> Any:
        """Return the next item, or END, or EMPTY; then `subscriber` is told when to take again."""
        news: tuple[Subscriber, ...] = ()
        with self._lock:
            if self._items:
                item = self._items.popleft()
                if self._writers and len(self._items) <= self._low:
                    news = tuple(self._writers)
                    self._writers.clear()
            elif self._is_finished or self._is_closed:
                return END
            else:
                if subscriber is not None:
                    self._readers[subscriber] = None
                return EMPTY
        if news:
            deliver(news)
        return item

    def forget(self, subscriber: Subscriber) -> None:
        """Let a side that gave up waiting not be told; if it was told already, the next reader is told instead."""
        news: tuple[Subscriber, ...] = ()
        with self._lock:
            self._writers.pop(subscriber, None)
            if subscriber in self._readers:
                del self._readers[subscriber]
            elif self._items and self._readers:
                reader = next(iter(self._readers))
                del self._readers[reader]
                news = (reader,)
        deliver(news)

    async def aput(self, item: Any) -> bool:
        """Put `item` in, suspending while the channel is full; False when it is closed. For producers on event loops."""
        if (accepted := self.offer(item, None)) is not None:
            return accepted
        import asyncio

        loop = asyncio.get_running_loop()
        while True:
            future: asyncio.Future[None] = loop.create_future()
            subscriber = LoopWaiter(loop, future)
            accepted = self.offer(item, subscriber)
            if accepted is not None:
                return accepted
            try:
                await future
            finally:
                self.forget(subscriber)

    def finish(self) -> None:
        """Say that no more items will come."""
        with self._lock:
            self._is_finished = True
            news = tuple(self._readers)
            self._readers.clear()
        deliver(news)

    def close(self) -> None:
        """Drop what is buffered and send both sides home. Never blocks, safe from any thread, may be repeated."""
        with self._lock:
            self._is_closed = True
            items, self._items = self._items, deque()
            news = (*self._readers, *self._writers)
            self._readers.clear()
            self._writers.clear()
        deliver(news)
        del items  # the user's values die outside the lock
