"""The items of a call, as they come: in order, no faster than they are read, and never past a reader that has left."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import functools
import gc
import operator
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve.call.stream import DeploymentResponseGenerator
from threadserve.errors import (
    ArgumentError,
    BackPressureError,
    DeploymentUnavailableError,
    MethodNotFoundError,
    RequestCancelledError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from threadserve.handle import DeploymentHandle

WAIT_S = 10.0


class Trace:
    """What a producer tells the test while it works."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.reached = threading.Event()
        self.ended = threading.Event()
        self.opened = threading.Event()

    def note(self, number: int) -> int:
        self.made.append(number)
        self.reached.set()
        return number


class Producer:
    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    async def count_async(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    def returned(self, to: int) -> Any:
        return (number for number in range(to))

    async def returned_async(self, to: int) -> Any:
        return self.count_async(to)

    async def returned_late(self, to: int) -> Any:
        await asyncio.sleep(0)
        return iter(range(to))

    def traced(self, trace: Trace) -> Iterator[int]:
        try:
            for number in range(1_000_000):
                yield trace.note(number)
        finally:
            trace.ended.set()

    async def traced_async(self, trace: Trace) -> AsyncIterator[int]:
        try:
            for number in range(1_000_000):
                yield trace.note(number)
        finally:
            trace.ended.set()

    async def stalls(self, trace: Trace) -> AsyncIterator[int]:
        try:
            yield trace.note(0)
            await asyncio.Event().wait()
        finally:
            trace.ended.set()

    def gated(self, trace: Trace) -> Iterator[int]:
        yield trace.note(0)
        assert trace.opened.wait(WAIT_S)
        yield trace.note(1)

    def fails(self, after: int) -> Iterator[int]:
        yield from range(after)
        raise ValueError(f"after {after}")

    async def fails_async(self, after: int) -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise ValueError(f"after {after}")

    def plain(self, trace: Trace) -> str:
        trace.reached.set()
        return "plain"

    async def plain_async(self, trace: Trace) -> str:
        trace.reached.set()
        return "plain"

    def values(self) -> list[int]:
        return [1, 2, 3]


class Relay:
    """Hands on what another deployment yields."""

    def __init__(self, source: DeploymentHandle[Any]) -> None:
        self.source = source.options(stream=True)

    def sync(self, method: str, *args: Any) -> Iterator[Any]:
        yield from getattr(self.source, method).remote(*args)

    async def each(self, method: str, *args: Any) -> AsyncIterator[Any]:
        async for item in getattr(self.source, method).remote(*args):
            yield item

    def handed_on(self, method: str, *args: Any) -> Any:
        return iter(list(getattr(self.source, method).remote(*args)))


def stream_of(name: str, **options: Any) -> Any:
    return serve.running(serve.deployment(Producer, **options).bind(), name=name)


@pytest.fixture
def producer() -> Iterator[Any]:
    with stream_of("mill") as handle:
        yield handle.options(stream=True)


@pytest.fixture
def lone() -> Iterator[Any]:
    """A producer with a single slot and a buffer of four items."""
    with stream_of("lone", max_ongoing_requests=1, stream_buffer_size=4) as handle:
        yield handle.options(stream=True)


def read(stream: DeploymentResponseGenerator[Any]) -> list[Any]:
    return list(stream)


def read_async(stream: DeploymentResponseGenerator[Any]) -> list[Any]:
    async def main() -> list[Any]:
        return [item async for item in stream]

    return asyncio.run(main())


def is_free(handle: Any) -> bool:
    """Whether a call gets through: whoever had the slot has given it back."""
    return bool(handle.options(stream=False).values.remote().result(timeout_s=WAIT_S))


def the_reaper_has_done_its_work(handle: Any) -> None:
    """Wait until what was left to it so far, such as the closing of dropped streams, has been done."""
    done = threading.Event()
    handle._router.kernel.errands.post(done.set)
    assert done.wait(WAIT_S)


READERS = pytest.mark.parametrize("reader", [read, read_async])
TRACED = pytest.mark.parametrize("method", ["traced", "traced_async"])


class TestItems:
    @READERS
    @pytest.mark.parametrize(
        "method", ["count", "count_async", "returned", "returned_async", "returned_late"]
    )
    @pytest.mark.parametrize("to", [0, 1, 500])
    def test_come_in_order_from_every_kind_of_generator(
        self, producer: Any, reader: Callable[[Any], list[Any]], method: str, to: int
    ) -> None:
        assert reader(getattr(producer, method).remote(to)) == list(range(to))

    @READERS
    def test_come_once(self, producer: Any, reader: Callable[[Any], list[Any]]) -> None:
        stream = producer.count.remote(3)

        assert reader(stream) == [0, 1, 2]
        assert reader(stream) == []
        with pytest.raises(StopIteration):
            next(stream)

    def test_can_be_read_partly_by_for_and_partly_by_async_for(self, producer: Any) -> None:
        stream = producer.count.remote(200)

        assert [next(stream) for _ in range(100)] == list(range(100))
        assert read_async(stream) == list(range(100, 200))

    def test_may_be_anything_but_an_end(self, producer: Any) -> None:
        @serve.deployment
        def odd() -> Iterator[Any]:
            yield from (None, StopIteration, StopIteration(), ..., (), False)

        with serve.running(odd.bind()) as handle:
            items = read(handle.options(stream=True).remote())

        assert items[:2] == [None, StopIteration]
        assert isinstance(items[2], StopIteration)
        assert items[3:] == [..., (), False]

    def test_go_each_to_one_of_several_readers(self, producer: Any) -> None:
        stream = producer.count.remote(2000)
        barrier = threading.Barrier(4)

        def work() -> list[int]:
            barrier.wait(WAIT_S)
            return read(stream)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            parts = [each.result(WAIT_S) for each in [pool.submit(work) for _ in range(4)]]

        assert sorted(functools.reduce(operator.iadd, parts, [])) == list(range(2000))
        assert all(part == sorted(part) for part in parts)

    def test_come_while_the_producer_still_works(self, producer: Any) -> None:
        trace = Trace()
        stream = producer.gated.remote(trace)

        assert next(stream) == 0
        assert trace.made == [0]
        trace.opened.set()
        assert read(stream) == [1]

    @READERS
    @pytest.mark.parametrize("hop", ["sync", "each", "handed_on"])
    @pytest.mark.parametrize("method", ["count", "count_async"])
    def test_come_through_several_hops(
        self, reader: Callable[[Any], list[Any]], hop: str, method: str
    ) -> None:
        inner = serve.deployment(Relay, name="Inner").bind(serve.deployment(Producer).bind())
        outer = serve.deployment(Relay, name="Outer").bind(inner)
        with serve.running(outer) as handle:
            stream = getattr(handle.options(stream=True), hop).remote(hop, method, 300)

            assert reader(stream) == list(range(300))

    def test_of_many_streams_at_once_do_not_mix(self, producer: Any) -> None:
        async def main() -> list[list[int]]:
            async def one(size: int) -> list[int]:
                return [item async for item in producer.count_async.remote(size)]

            return await asyncio.gather(*(one(size) for size in range(40)))

        assert asyncio.run(main()) == [list(range(size)) for size in range(40)]


class TestBackpressure:
    @TRACED
    @pytest.mark.parametrize("bound", [1, 2, 8])
    def test_stops_the_producer_at_the_bound(self, method: str, bound: int) -> None:
        trace = Trace()
        with stream_of("narrow", stream_buffer_size=bound) as handle:
            stream = getattr(handle.options(stream=True), method).remote(trace)
            for number in range(20):
                assert next(stream) == number
                assert (
                    len(trace.made) <= number + 1 + bound + 1
                )  # read, buffered, and the one that waits at yield
            stream.close()
            assert trace.ended.wait(WAIT_S)

    def test_lets_the_producer_run_ahead_as_far_as_the_bound(self) -> None:
        made = threading.Semaphore(0)

        @serve.deployment(stream_buffer_size=8)
        def items() -> Iterator[int]:
            for number in range(100):
                made.release()
                yield number

        with serve.running(items.bind()) as handle:
            stream = handle.options(stream=True).remote()
            for _ in range(9):
                assert made.acquire(timeout=WAIT_S)

            assert not made.acquire(timeout=0.05)
            assert read(stream) == list(range(100))

    def test_of_sixty_four_items_is_the_default(self) -> None:
        made = threading.Semaphore(0)

        @serve.deployment
        def items() -> Iterator[int]:
            for number in range(1000):
                made.release()
                yield number

        with serve.running(items.bind()) as handle:
            stream = handle.options(stream=True).remote()
            for _ in range(65):
                assert made.acquire(timeout=WAIT_S)

            assert not made.acquire(timeout=0.05)
            stream.close()

    def test_goes_through_a_relay(self) -> None:
        trace = Trace()
        source = serve.deployment(Producer, stream_buffer_size=2).bind()
        with serve.running(serve.deployment(Relay, stream_buffer_size=2).bind(source)) as handle:
            stream = handle.options(stream=True).sync.remote("traced", trace)
            for number in range(50):
                assert next(stream) == number
                assert len(trace.made) <= number + 1 + 2 * 3 + 1
            stream.close()
            assert trace.ended.wait(WAIT_S)

    def test_of_a_full_queue_arrives_at_the_first_item(self) -> None:
        trace = Trace()
        with stream_of("full", max_ongoing_requests=1, max_queued_requests=1) as handle:
            stream = handle.options(stream=True)
            running = stream.gated.remote(trace)
            assert trace.reached.wait(WAIT_S)
            queued, refused = stream.count.remote(3), stream.count.remote(3)

            with pytest.raises(BackPressureError, match="full/Producer"):
                next(refused)
            with pytest.raises(StopIteration):
                next(refused)
            trace.opened.set()
            assert (read(running), read(queued)) == ([0, 1], [0, 1, 2])


class TestException:
    @pytest.mark.parametrize("method", ["fails", "fails_async"])
    @pytest.mark.parametrize("after", [0, 3, 100])
    def test_arrives_after_the_items_before_it_and_once(self, producer: Any, method: str, after: int) -> None:
        stream = getattr(producer, method).remote(after)
        items: list[int] = []

        with pytest.raises(ValueError, match=f"after {after}"):
            items.extend(stream)  # what came before the exception stays

        assert items == list(range(after))
        assert read(stream) == []

    @pytest.mark.parametrize("method", ["fails", "fails_async"])
    def test_arrives_in_async_for(self, producer: Any, method: str) -> None:
        stream = getattr(producer, method).remote(3)

        items: list[int] = []

        async def main() -> None:
            async for item in stream:
                items.append(item)  # noqa: PERF401 - what came before the exception stays

        with pytest.raises(ValueError, match="after 3"):
            asyncio.run(main())
        assert items == [0, 1, 2]
        assert read_async(stream) == []

    @pytest.mark.parametrize("hop", ["sync", "each"])
    def test_goes_through_several_hops(self, hop: str) -> None:
        inner = serve.deployment(Relay, name="Inner").bind(serve.deployment(Producer).bind())
        with serve.running(serve.deployment(Relay, name="Outer").bind(inner)) as handle:
            stream = getattr(handle.options(stream=True), hop).remote(hop, "fails", 3)

            assert [next(stream) for _ in range(3)] == [0, 1, 2]
            with pytest.raises(ValueError, match="after 3"):
                next(stream)

    def test_of_a_missing_method_arrives_at_the_first_item(self, producer: Any) -> None:
        with pytest.raises(MethodNotFoundError, match="did you mean 'count'"):
            next(producer.cuont.remote(3))


class TestMismatch:
    @READERS
    @pytest.mark.parametrize("method", ["plain", "plain_async"])
    def test_a_plain_method_read_as_a_stream_says_so_after_it_ran(
        self, producer: Any, reader: Callable[[Any], Any], method: str
    ) -> None:
        trace = Trace()

        with pytest.raises(
            ArgumentError, match=f"mill/Producer.{method}.*stream=True but did not return a generator"
        ):
            reader(getattr(producer, method).remote(trace))
        assert trace.reached.is_set()

    def test_a_list_is_no_stream(self, producer: Any) -> None:
        with pytest.raises(ArgumentError, match="returned a list"):
            next(producer.values.remote())

    @pytest.mark.parametrize("method", ["traced", "traced_async"])
    def test_a_generator_called_for_a_value_says_so_and_never_begins(
        self, producer: Any, method: str
    ) -> None:
        trace = Trace()

        with pytest.raises(
            ArgumentError, match=rf"mill/Producer\.{method} returned a generator.*options\(stream=True\)"
        ):
            getattr(producer.options(stream=False), method).remote(trace).result(timeout_s=WAIT_S)
        assert not trace.made

    def test_a_stream_has_no_result(self, producer: Any) -> None:
        stream = producer.count.remote(1)

        with pytest.raises(TypeError, match=r"is a stream: read it with `for`"):
            stream.result()

        async def main() -> None:
            with pytest.raises(TypeError, match=r"is a stream: read it with `for`"):
                await stream

        asyncio.run(main())
        assert read(stream) == [0]

    def test_a_stream_is_no_argument(self, producer: Any) -> None:
        plain = producer.options(stream=False)
        for argument in (producer.count.remote(1), [producer.count.remote(1)]):
            with pytest.raises(ArgumentError, match="stream cannot be passed"):
                plain.plain.remote(argument).result(timeout_s=WAIT_S)

    @pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_a_stream_is_not_copied(self, producer: Any, travel: Any) -> None:
        with pytest.raises(ArgumentError, match=r"mill/Producer\.count cannot be pickled or copied"):
            travel(producer.count.remote(1))

    def test_next_in_an_event_loop_is_told_to_use_async_for_and_loses_nothing(self, producer: Any) -> None:
        trace = Trace()
        stream = producer.gated.remote(trace)
        assert trace.reached.wait(WAIT_S)
        trace.opened.set()

        async def main() -> list[int]:
            for _ in range(3):
                with pytest.raises(RuntimeError, match=r"mill/Producer\.gated.*async for"):
                    next(stream)
            return [item async for item in stream]

        assert asyncio.run(main()) == [0, 1]


class TestLeaving:
    @TRACED
    def test_by_close_stops_the_producer_and_frees_its_slot(self, lone: Any, method: str) -> None:
        trace = Trace()
        stream = getattr(lone, method).remote(trace)
        assert [next(stream), next(stream)] == [0, 1]

        stream.close()
        stream.close()

        assert trace.ended.wait(WAIT_S)
        assert read(stream) == []
        assert is_free(lone)

    @TRACED
    def test_by_aclose_does_the_same(self, lone: Any, method: str) -> None:
        trace = Trace()

        async def main() -> None:
            stream = getattr(lone, method).remote(trace)
            assert await anext(stream) == 0
            await stream.aclose()
            assert [item async for item in stream] == []

        asyncio.run(main())
        assert trace.ended.wait(WAIT_S)
        assert is_free(lone)

    @TRACED
    def test_by_dropping_it_half_way_does_the_same(self, lone: Any, method: str) -> None:
        trace = Trace()
        for item in getattr(lone, method).remote(trace):
            if item == 10:
                break
        del item

        assert trace.ended.wait(WAIT_S)
        assert len(trace.made) < 20
        assert is_free(lone)

    @TRACED
    def test_by_del_does_the_same(self, lone: Any, method: str) -> None:
        trace = Trace()
        stream = getattr(lone, method).remote(trace)
        assert trace.reached.wait(WAIT_S)

        del stream
        gc.collect()

        assert trace.ended.wait(WAIT_S)
        assert is_free(lone)

    def test_before_it_began_keeps_it_from_beginning(self, lone: Any) -> None:
        first, second = Trace(), Trace()
        running = lone.gated.remote(first)
        assert first.reached.wait(WAIT_S)
        lone.traced.remote(second)
        the_reaper_has_done_its_work(lone)

        first.opened.set()

        assert read(running) == [0, 1]
        assert is_free(lone)
        assert not second.made

    def test_reaches_a_producer_that_is_suspended(self, lone: Any) -> None:
        trace = Trace()
        stream = lone.stalls.remote(trace)
        assert next(stream) == 0

        stream.close()

        assert trace.ended.wait(WAIT_S)
        assert is_free(lone)

    @pytest.mark.parametrize("hop", ["sync", "each"])
    def test_reaches_the_far_end_of_several_hops(self, hop: str) -> None:
        trace = Trace()
        source = serve.deployment(Producer, max_ongoing_requests=1, stream_buffer_size=2).bind()
        inner = serve.deployment(Relay, name="Inner", max_ongoing_requests=1, stream_buffer_size=2).bind(
            source
        )
        outer = serve.deployment(Relay, name="Outer", max_ongoing_requests=1, stream_buffer_size=2).bind(
            inner
        )
        with serve.running(outer) as handle:
            stream = getattr(handle.options(stream=True), hop).remote(hop, "traced", trace)
            assert next(stream) == 0

            stream.close()

            assert trace.ended.wait(WAIT_S)
            again = getattr(handle.options(stream=True), hop).remote(hop, "count", 5)
            assert read(again) == [0, 1, 2, 3, 4]

    def test_wakes_a_reader_in_another_thread(self, producer: Any) -> None:
        trace = Trace()
        stream = producer.stalls.remote(trace)
        assert next(stream) == 0
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            rest = pool.submit(read, stream)

            stream.close()

            assert rest.result(WAIT_S) == []

    def test_of_an_async_reader_that_is_cancelled_loses_no_item(self, producer: Any) -> None:
        trace = Trace()

        async def main() -> list[int]:
            stream = producer.gated.remote(trace)
            assert await anext(stream) == 0
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(stream), 0.01)
            trace.opened.set()
            return [item async for item in stream]

        assert asyncio.run(main()) == [1]


class TestCancel:
    @TRACED
    def test_drops_what_was_not_read_and_is_told_once(self, lone: Any, method: str) -> None:
        trace = Trace()
        stream = getattr(lone, method).remote(trace)
        assert next(stream) == 0
        assert not stream.cancelled()

        stream.cancel()
        stream.cancel()

        assert stream.cancelled()
        with pytest.raises(RequestCancelledError, match="lone/Producer"):
            next(stream)
        assert read(stream) == []
        assert trace.ended.wait(WAIT_S)
        assert is_free(lone)

    def test_of_a_queued_stream_keeps_it_from_beginning(self, lone: Any) -> None:
        first, second = Trace(), Trace()
        running, queued = lone.gated.remote(first), lone.traced.remote(second)
        assert first.reached.wait(WAIT_S)

        queued.cancel()

        with pytest.raises(RequestCancelledError):
            next(queued)
        first.opened.set()
        assert read(running) == [0, 1]
        assert is_free(lone)
        assert not second.made

    def test_of_a_finished_stream_changes_nothing(self, producer: Any) -> None:
        stream = producer.count.remote(2)
        assert read(stream) == [0, 1]

        stream.cancel()

        assert stream.cancelled()
        assert read(stream) == []

    def test_of_the_outer_stream_reaches_the_inner_one(self) -> None:
        trace = Trace()
        app = serve.deployment(Relay).bind(serve.deployment(Producer).bind())
        with serve.running(app) as handle:
            stream = handle.options(stream=True).each.remote("stalls", trace)
            assert next(stream) == 0

            stream.cancel()

            with pytest.raises(RequestCancelledError):
                next(stream)
            assert trace.ended.wait(WAIT_S)

    def test_by_a_timeout_arrives_as_that(self, lone: Any) -> None:
        trace = Trace()
        stream = lone.stalls.options(timeout_s=0.05).remote(trace)

        with pytest.raises(RequestTimeoutError):
            read(stream)
        assert trace.ended.wait(WAIT_S)
        assert is_free(lone)


class TestSelf:
    def test_says_what_it_is_and_how_to_read_it(self, producer: Any) -> None:
        stream = producer.count.remote(2)

        assert "mill/Producer.count" in repr(stream)
        assert "for or async for" in repr(stream)
        read(stream)
        assert "ended" in repr(stream)

    def test_has_the_id_of_its_request(self, producer: Any) -> None:
        assert producer.count.remote(1).request_id != producer.count.remote(1).request_id

    def test_is_its_own_iterator(self, producer: Any) -> None:
        stream = producer.count.remote(1)

        assert iter(stream) is stream
        assert aiter(stream) is stream
        assert isinstance(stream, DeploymentResponseGenerator)


def test_a_stream_outlives_a_redeploy_of_its_app() -> None:
    trace = Trace()
    with stream_of("mill") as handle:
        stream = handle.options(stream=True).gated.remote(trace)
        assert next(stream) == 0

        serve.run(serve.deployment(Producer).bind(), name="mill")

        trace.opened.set()
        assert read(stream) == [1]


def test_a_stream_that_is_queued_when_its_app_is_deleted_is_answered() -> None:
    trace = Trace()
    with stream_of("mill", max_ongoing_requests=1) as handle:
        running, queued = (handle.options(stream=True).gated.remote(trace) for _ in range(2))
        assert next(running) == 0
        deleting = threading.Thread(target=serve.delete, args=("mill",))
        deleting.start()

        with pytest.raises(DeploymentUnavailableError, match="mill/Producer"):
            next(queued)
        trace.opened.set()
        assert read(running) == [1]
        deleting.join(WAIT_S)
