"""A bounded channel between one who produces and one who reads: backpressure for streams.

Each side may be a thread or a coroutine, and neither side knows which the other one is. Both build on the same
two steps, ``offer`` and ``take``, which never block: they either succeed, or say that the channel has ended, or
register a subscriber.

An item that finds room, and one that is there, take no lock: appending to a deque and popping from it are atomic on
all builds. Each side first does that and then looks whether the other one sleeps; and who is about to sleep first
says so and then looks again. So either the sleeper finds the item (or the room), or the other side finds the sleeper:
there is no gap between "I looked" and "I sleep" in which a wake-up could be lost. Who sleeps, and whether the channel has
ended, is under the lock.

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
from typing import TYPE_CHECKING, Any, Final, Protocol

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
        self._items: deque[Any] = kernel.deque()  # guarded by _lock, but see above; as all below
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
    def bound(self) -> float:
        """How many items it takes; ``math.inf``: any number."""
        return self._bound

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
        """Put `item` in: True. Closed: False. Full: None; then `subscriber` is told when to offer again.

        One producer at a time.
        """
        items = self._items
        if self._is_closed:
            return False
        if len(items) >= self._bound and not self._has_room_now(subscriber):
            return self._refusal()
        items.append(item)
        if self._readers:
            self._tell_a_reader()
        return True

    def _refusal(self) -> bool | None:
        return False if self._is_closed else None

    def _has_room_now(self, subscriber: Subscriber | None) -> bool:
        """Register `subscriber` unless there is room by now, or the channel is closed."""
        with self._lock:
            if self._is_closed:
                return False
            if subscriber is not None:
                self._writers[subscriber] = None
            if len(self._items) >= self._bound:
                return False
            if subscriber is not None:
                self._writers.pop(subscriber, None)
            return True

    def wait_for_room(self, subscriber: Subscriber) -> bool:
        """Whether an item may be offered; if not, `subscriber` is told when one may be, or the channel is closed."""
        return len(self._items) < self._bound or self._is_closed or self._has_room_now(subscriber)

    def _tell_a_reader(self) -> None:
        with self._lock:
            reader = next(iter(self._readers), None)
            if reader is None:
                return
            del self._readers[reader]
        deliver((reader,))

    def take(self, subscriber: Subscriber | None = None) -> Any:
        """Return the next item, or END, or EMPTY; then `subscriber` is told when to take again."""
        if self._is_closed:
            return END
        items = self._items
        try:
            item = items.popleft()
        except IndexError:
            item = self._take_or_wait(subscriber)
        if self._writers and len(items) <= self._low:
            self._tell_writers()
        return item

    def _take_or_wait(self, subscriber: Subscriber | None) -> Any:
        with self._lock:
            if subscriber is not None:
                self._readers[subscriber] = None
            try:
                item = self._items.popleft()  # by now; not asked for before: other readers take no lock
            except IndexError:
                if not (self._is_finished or self._is_closed):
                    return EMPTY
                item = END
            if subscriber is not None:
                self._readers.pop(subscriber, None)
            return item

    def _tell_writers(self) -> None:
        with self._lock:
            news = tuple(self._writers)
            self._writers.clear()
        deliver(news)

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
        return await put_async(self, item)

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


class Offered(Protocol):
    """What a producer sees of a channel."""

    def offer(self, item: Any, subscriber: Subscriber | None) -> bool | None: ...
    def forget(self, subscriber: Subscriber) -> None: ...


async def put_async(channel: Offered, item: Any) -> bool:
    """Put `item` in `channel`, suspending while that is full; False when it is closed."""
    if (accepted := channel.offer(item, None)) is not None:
        return accepted
    import asyncio

    loop = asyncio.get_running_loop()
    while True:
        future: asyncio.Future[None] = loop.create_future()
        subscriber = LoopWaiter(loop, future)
        accepted = channel.offer(item, subscriber)
        if accepted is not None:
            return accepted
        try:
            await future
        finally:
            channel.forget(subscriber)
