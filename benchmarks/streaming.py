"""How many items a second does a stream carry, and how soon is the first one there?"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import threadserve as serve
from benchmarks import peers
from benchmarks.measure import Case

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator

    from benchmarks.measure import Run

QUESTION = "How many items a second does a stream carry, and how soon is the first one there?"

SYNC = "sync consumer"
HOP = "one async hop"
BOUNDS = (16, 64, 256)


def at(subject: str, bound: int) -> str:
    return f"{subject}, bound {bound}"


def produce(count: int) -> Iterator[int]:
    yield from range(count)


class Source:
    def items(self, count: int) -> Iterator[int]:
        return produce(count)


class Hop:
    """Passes on, in a coroutine, what a deployment below yields."""

    def __init__(self, source: Any) -> None:
        self.source = source.options(stream=True)

    async def items(self, count: int) -> AsyncIterator[int]:
        async for item in self.source.items.remote(count):
            yield item


def consume(open_stream: Callable[[int], Iterable[int]], count: int) -> dict[str, float]:
    """Read a whole stream; the rate counts from the call on."""
    start = time.perf_counter()
    items = iter(open_stream(count))
    next(items)
    first = time.perf_counter()
    seen = 1 + sum(1 for _ in items)
    end = time.perf_counter()
    assert seen == count, f"{seen} of {count} items came"
    return {"rate": count / (end - start), "first item": (first - start) * 1e6}


@contextlib.contextmanager
def deployed(app: Any) -> Generator[Callable[[int], Iterable[int]]]:
    with serve.running(app) as handle:
        yield handle.options(stream=True).items.remote


@contextlib.contextmanager
def by_executor(bound: int, *, has_hop: bool) -> Generator[Callable[[int], Iterable[int]]]:
    """Producers on an executor's threads, each with a bounded queue between it and its reader."""
    with ThreadPoolExecutor(2) as executor:

        def open_stream(count: int) -> Iterable[int]:
            stream = through_queue(executor, produce(count), bound)
            return through_queue(executor, stream, bound) if has_hop else stream

        yield open_stream


def through_queue(executor: ThreadPoolExecutor, items: Iterable[int], bound: int) -> Iterator[int]:
    channel: queue.Queue[int | None] = queue.Queue(bound)

    def fill() -> None:
        for item in items:
            channel.put(item)
        channel.put(None)

    executor.submit(fill)
    return iter(channel.get, None)


def direct_async(count: int) -> list[int]:
    """An async generator over an async generator, on a loop of the reader's own."""

    async def source() -> AsyncIterator[int]:
        for item in range(count):
            yield item

    async def hop() -> list[int]:
        return [item async for item in source()]

    return asyncio.run(hop())


def measure(run: Run) -> None:
    count = run.effort.pick(smoke=200, quick=10_000, full=50_000)
    bounds = run.effort.pick(smoke=(64,), quick=BOUNDS, full=BOUNDS)
    with contextlib.ExitStack() as stack:
        streams: list[tuple[str, str, Callable[[int], Iterable[int]]]] = []
        for bound in bounds:
            for name, options in (("threadserve", {}), ("threadserve, inline=False", peers.NO_INLINE)):
                source: Any = serve.deployment(Source, stream_buffer_size=bound, **options)
                hop: Any = serve.deployment(Hop, stream_buffer_size=bound, **options)
                streams.append((at(SYNC, bound), name, stack.enter_context(deployed(source.bind()))))
                streams.append((at(HOP, bound), name, stack.enter_context(deployed(hop.bind(source.bind())))))
            for subject, has_hop in ((SYNC, False), (HOP, True)):
                opened = stack.enter_context(by_executor(bound, has_hop=has_hop))
                streams.append((at(subject, bound), "executor and Queue", opened))
        streams.append((at(SYNC, 64), "direct generator", produce))
        streams.append((at(HOP, 64), "direct async generator", direct_async))
        run.note(
            "direct generators have no bound: nothing runs ahead; the async one gives its items all at once"
        )
        run.note("Pykka and SimpleQueue have no streams; a Queue(bound) between threads is the floor")
        run.rounds(
            [
                Case(subject, name, partial(consume, open_stream, count))
                for subject, name, open_stream in streams
            ]
        )
