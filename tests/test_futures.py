"""Waiting for several calls at once, in plain code and in coroutines, over responses and plain futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import math
import threading
import weakref
from concurrent.futures import Future
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve import futures
from threadserve.errors import RequestCancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threadserve.handle import DeploymentHandle

WAIT_S = 10.0


class Gates:
    """Calls that end when the test says so."""

    def __init__(self) -> None:
        self.gates = [threading.Event() for _ in range(8)]

    def wait(self, index: int) -> int:
        assert self.gates[index].wait(WAIT_S)
        return index

    def fail(self, index: int) -> None:
        assert self.gates[index].wait(WAIT_S)
        raise ValueError(f"call {index}")

    def double(self, number: int) -> int:
        return 2 * number

    def add(self, one: int, other: int) -> int:
        return one + other

    def open(self, *indices: int) -> None:
        for index in indices:
            self.gates[index].set()


class Held:
    """A handle whose calls the test lets go on one by one."""

    def __init__(self, handle: DeploymentHandle[Any], gates: Gates) -> None:
        self.handle = handle
        self.open = gates.open

    def calls(self, count: int) -> list[Any]:
        return [self.handle.wait.remote(index) for index in range(count)]


@pytest.fixture
def held() -> Iterator[Held]:
    gates: list[Gates] = []

    class Kept(Gates):
        def __init__(self) -> None:
            super().__init__()
            gates.append(self)

    with serve.running(serve.deployment(Kept, max_ongoing_requests=16).bind(), name="calls") as handle:
        yield Held(handle, gates[0])
        gates[0].open(*range(8))


def failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def wait_sync(*args: Any, **kwargs: Any) -> futures.DoneAndNotDone[Any]:
    return futures.wait(*args, **kwargs)


def wait_in_a_loop(*args: Any, **kwargs: Any) -> futures.DoneAndNotDone[Any]:
    return asyncio.run(futures.wait_async(*args, **kwargs))


def each(iterable: Any) -> list[Any]:
    return list(iterable)


def each_in_a_loop(iterable: Any) -> list[Any]:
    async def main() -> list[Any]:
        return [item async for item in iterable]

    return asyncio.run(main())


def get(gathering: futures.Gathering[Any]) -> list[Any]:
    return gathering.result()


def get_in_a_loop(gathering: futures.Gathering[Any]) -> list[Any]:
    async def main() -> list[Any]:
        return await gathering

    return asyncio.run(main())


WAITS = pytest.mark.parametrize("wait", [wait_sync, wait_in_a_loop])
READS = pytest.mark.parametrize("read", [each, each_in_a_loop])
GETS = pytest.mark.parametrize("fetch", [get, get_in_a_loop])
Wait = Any


class TestWait:
    @WAITS
    def test_for_all_ends_when_all_are_done(self, held: Held, wait: Wait) -> None:
        calls = held.calls(4)
        threading.Timer(0, held.open, range(4)).start()

        found = wait([*calls, done(1), failed(KeyError())])

        assert len(found.done) == 6
        assert not found.not_done
        assert set(calls) <= found.done

    @WAITS
    def test_for_the_first_ends_when_one_is_done(self, held: Held, wait: Wait) -> None:
        calls = held.calls(3)
        held.open(1)

        found = wait(calls, return_when=futures.FIRST_COMPLETED)

        assert found == ({calls[1]}, {calls[0], calls[2]})

    @WAITS
    def test_for_the_first_failure_ends_when_one_has_failed(self, held: Held, wait: Wait) -> None:
        calls = [held.handle.wait.remote(0), held.handle.fail.remote(1), held.handle.wait.remote(2)]
        held.open(0)
        assert calls[0].result(timeout_s=WAIT_S) == 0
        held.open(1)

        found = wait(calls, return_when=futures.FIRST_EXCEPTION)

        assert found == ({calls[0], calls[1]}, {calls[2]})

    @WAITS
    def test_for_the_first_failure_ends_when_there_is_none(self, held: Held, wait: Wait) -> None:
        held.open(0, 1)

        assert len(wait(held.calls(2), return_when=futures.FIRST_EXCEPTION).done) == 2

    @WAITS
    @pytest.mark.parametrize("timeout", [0, -1, 0.02])
    def test_that_is_too_short_tells_apart_what_is_not_done(
        self, held: Held, wait: Wait, timeout: float
    ) -> None:
        calls = held.calls(3)
        held.open(2)
        assert calls[2].result(timeout_s=WAIT_S) == 2

        found = wait(calls, timeout)

        assert found == ({calls[2]}, {calls[0], calls[1]})
        held.open(0, 1)
        assert [call.result(timeout_s=WAIT_S) for call in calls] == [0, 1, 2]

    @WAITS
    @pytest.mark.parametrize(
        "return_when", [futures.ALL_COMPLETED, futures.FIRST_COMPLETED, futures.FIRST_EXCEPTION]
    )
    def test_for_nothing_ends_at_once(self, wait: Wait, return_when: str) -> None:
        assert wait([], return_when=return_when) == (set(), set())

    @WAITS
    def test_takes_any_iterable_and_counts_each_source_once(self, held: Held, wait: Wait) -> None:
        held.open(0)
        call = held.handle.wait.remote(0)

        assert wait(iter([call, call, call])).done == {call}

    @WAITS
    @pytest.mark.parametrize("wrong", [5, None, "response", [1, 2], {"key": 1}, asyncio.sleep])
    def test_for_something_else_says_what_it_wants(self, wait: Wait, wrong: Any) -> None:
        with pytest.raises(TypeError, match=r"expected responses and concurrent\.futures futures"):
            wait([done(1), wrong])

    @WAITS
    def test_for_a_stream_says_what_it_wants(self, held: Held, wait: Wait) -> None:
        with pytest.raises(TypeError, match="DeploymentResponseGenerator"):
            wait([held.handle.options(stream=True).double.remote(1)])

    @WAITS
    def test_until_something_unknown_says_what_there_is(self, wait: Wait) -> None:
        with pytest.raises(ValueError, match="FIRST_COMPLETED or FIRST_EXCEPTION, not 'SOMETIME'"):
            wait([done(1)], return_when="SOMETIME")

    @WAITS
    @pytest.mark.parametrize(
        ("timeout", "error"), [(math.nan, ValueError), ("5", TypeError), (True, TypeError)]
    )
    def test_for_no_number_of_seconds_is_refused(
        self, wait: Wait, timeout: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error, match="timeout must be a number of seconds"):
            wait([done(1)], timeout)

    def test_in_an_event_loop_is_told_of_its_twin(self) -> None:
        async def main() -> None:
            with pytest.raises(RuntimeError, match="wait_async"):
                futures.wait([done(1)])

        asyncio.run(main())

    @WAITS
    def test_for_plain_futures_alone_works(self, wait: Wait) -> None:
        first, second = done(1), Future[int]()
        threading.Timer(0.01, second.set_result, (2,)).start()

        assert wait([first, second]).done == {first, second}

    @WAITS
    def test_for_a_cancelled_call_and_a_cancelled_future_ends(self, held: Held, wait: Wait) -> None:
        call, future = held.handle.wait.remote(0), Future[int]()
        future.cancel()
        call.cancel()

        assert wait([call, future]).done == {call, future}

    def test_that_is_cancelled_cancels_nothing(self, held: Held) -> None:
        calls = held.calls(3)

        async def main() -> None:
            task = asyncio.create_task(futures.wait_async(calls))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(futures.wait_async(calls), 0.01)

        asyncio.run(main())
        held.open(0, 1, 2)
        assert [call.result(timeout_s=WAIT_S) for call in calls] == [0, 1, 2]

    def test_that_was_given_up_leaves_nobody_to_be_told(
        self, held: Held, caplog: pytest.LogCaptureFixture
    ) -> None:
        call, future = held.handle.wait.remote(0), Future[int]()

        async def main() -> None:
            task = asyncio.ensure_future(futures.wait_async([call, future]))
            await asyncio.sleep(0)
            task.cancel()

        asyncio.run(main())
        held.open(0)
        future.set_result(1)

        assert call.result(timeout_s=WAIT_S) == 0
        assert not caplog.records

    def test_that_was_given_up_leaves_nothing_with_a_plain_future_that_goes_on(self) -> None:
        class Big:
            pass

        big, forever = done(Big()), Future[int]()
        seen = weakref.ref(big.result())

        futures.wait([big, forever], 0)
        del big
        gc.collect()

        assert seen() is None
        forever.set_result(1)

    def test_in_several_threads_for_the_same_calls_ends_in_all(self, held: Held) -> None:
        calls = held.calls(4)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            waits = [pool.submit(futures.wait, calls) for _ in range(6)]
            held.open(0, 1, 2, 3)

            assert [found.result(WAIT_S).done for found in waits] == [set(calls)] * 6


class TestAsCompleted:
    def test_gives_sources_in_the_order_in_which_they_get_done(self, held: Held) -> None:
        calls = held.calls(4)
        found = iter(futures.as_completed(calls))

        for index in (2, 0, 3, 1):
            held.open(index)
            assert next(found) is calls[index]
        assert next(found, None) is None

    def test_does_so_in_a_coroutine(self, held: Held) -> None:
        calls = held.calls(4)

        async def main() -> None:
            found = aiter(futures.as_completed(calls))
            for index in (2, 0, 3, 1):
                held.open(index)
                assert await anext(found) is calls[index]

        asyncio.run(main())

    @READS
    def test_gives_what_failed_and_plain_futures_as_well(
        self, held: Held, read: Callable[[Any], list[Any]]
    ) -> None:
        sources = [held.handle.fail.remote(0), done(1), failed(KeyError()), held.handle.double.remote(2)]
        held.open(0)

        assert set(read(futures.as_completed(sources))) == set(sources)

    @READS
    def test_of_nothing_is_empty(self, read: Callable[[Any], list[Any]]) -> None:
        assert read(futures.as_completed([])) == []

    @READS
    def test_that_is_too_short_says_how_many_are_missing(
        self, held: Held, read: Callable[[Any], list[Any]]
    ) -> None:
        with pytest.raises(TimeoutError, match=r"2 of 3 were not done within 0\.05 s"):
            read(futures.as_completed([*held.calls(2), done(1)], 0.05))

    @READS
    def test_can_be_begun_again(self, held: Held, read: Callable[[Any], list[Any]]) -> None:
        held.open(0, 1, 2)
        calls = held.calls(3)
        found = futures.as_completed(calls)
        first = next(iter(found))

        assert first in calls
        for _ in range(2):
            again = read(found)
            assert len(again) == 3
            assert set(again) == set(calls)

    def test_says_at_once_what_it_wants(self) -> None:
        with pytest.raises(TypeError, match="expected responses"):
            futures.as_completed([1, 2])

    def test_in_an_event_loop_is_told_of_async_for(self) -> None:
        async def main() -> None:
            with pytest.raises(RuntimeError, match="async for"):
                next(iter(futures.as_completed([done(1)])))

        asyncio.run(main())

    @READS
    def test_of_many_is_complete(self, held: Held, read: Callable[[Any], list[Any]]) -> None:
        calls = [held.handle.double.remote(number) for number in range(3000)]

        found = read(futures.as_completed(calls))

        assert len(found) == 3000
        assert sorted(call.result() for call in found) == list(range(0, 6000, 2))


class TestGather:
    @GETS
    def test_gives_values_in_the_order_of_the_sources(
        self, held: Held, fetch: Callable[[Any], list[Any]]
    ) -> None:
        call = held.handle.double.remote(1)
        gathering = futures.gather(call, done("plain"), held.handle.double.remote(2), call)

        assert fetch(gathering) == [2, "plain", 4, 2]
        assert fetch(gathering) == [2, "plain", 4, 2]

    @GETS
    def test_of_nothing_is_an_empty_list(self, fetch: Callable[[Any], list[Any]]) -> None:
        assert fetch(futures.gather()) == []

    @GETS
    def test_raises_the_failure_without_waiting_for_the_rest(
        self, held: Held, fetch: Callable[[Any], list[Any]]
    ) -> None:
        slow, bad = held.handle.wait.remote(0), held.handle.fail.remote(1)
        held.open(1)

        with pytest.raises(ValueError, match="call 1"):
            fetch(futures.gather(slow, bad))

        assert not slow.done()
        assert not slow.cancelled()

    @GETS
    def test_can_put_failures_among_the_values(self, held: Held, fetch: Callable[[Any], list[Any]]) -> None:
        held.open(1)
        cancelled = held.handle.wait.remote(0)
        cancelled.cancel()
        sources = (held.handle.double.remote(1), held.handle.fail.remote(1), cancelled, failed(KeyError("k")))

        values = fetch(futures.gather(*sources, return_exceptions=True))

        assert values[0] == 2
        assert [type(value) for value in values[1:]] == [ValueError, RequestCancelledError, KeyError]

    def test_that_is_too_short_leaves_the_calls_alone(self, held: Held) -> None:
        calls = held.calls(2)
        gathering = futures.gather(*calls)

        with pytest.raises(TimeoutError, match="2 of 2 calls were not done"):
            gathering.result(timeout_s=0.01)

        held.open(0, 1)
        assert gathering.result(timeout_s=WAIT_S) == [0, 1]

    def test_of_a_cancelled_plain_future_raises_that(self) -> None:
        future = Future[int]()
        future.cancel()

        with pytest.raises(concurrent.futures.CancelledError):
            futures.gather(future).result()

    def test_that_is_cancelled_in_a_loop_cancels_nothing(self, held: Held) -> None:
        calls = held.calls(2)

        async def main() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(futures.gather(*calls), 0.01)

        asyncio.run(main())
        held.open(0, 1)
        assert [call.result(timeout_s=WAIT_S) for call in calls] == [0, 1]

    def test_says_what_it_is(self, held: Held) -> None:
        text = repr(futures.gather(done(1), held.handle.wait.remote(0)))

        assert "2 calls, 1 done" in text
        assert ".result() or await" in text

    def test_in_an_event_loop_is_told_to_await(self) -> None:
        async def main() -> None:
            with pytest.raises(RuntimeError, match="await"):
                futures.gather(done(1)).result()

        asyncio.run(main())

    def test_says_at_once_what_it_wants(self) -> None:
        wrong: Any = [1]
        with pytest.raises(TypeError, match="expected responses"):
            futures.gather(wrong)

    @GETS
    def test_of_many_is_complete(self, held: Held, fetch: Callable[[Any], list[Any]]) -> None:
        calls = [held.handle.double.remote(number) for number in range(3000)]

        assert fetch(futures.gather(*calls)) == list(range(0, 6000, 2))


class TestMap:
    @READS
    @pytest.mark.parametrize("buffersize", [None, 1, 3, 1000])
    def test_gives_values_in_the_order_of_the_items(
        self, held: Held, read: Callable[[Any], list[Any]], buffersize: int | None
    ) -> None:
        assert read(futures.map(held.handle.double, range(50), buffersize=buffersize)) == list(
            range(0, 100, 2)
        )

    @READS
    def test_takes_an_iterable_for_each_parameter_and_stops_with_the_shortest(
        self, held: Held, read: Callable[[Any], list[Any]]
    ) -> None:
        assert read(futures.map(held.handle.add, [1, 2, 3], [10, 20])) == [11, 22]

    @READS
    def test_of_nothing_is_empty(self, held: Held, read: Callable[[Any], list[Any]]) -> None:
        assert read(futures.map(held.handle.double, [])) == []

    def test_with_a_buffer_makes_no_more_calls_than_that(self, held: Held) -> None:
        asked: list[int] = []

        def numbers() -> Iterator[int]:
            for number in count():
                asked.append(number)
                yield number

        values: Iterator[int] = iter(futures.map(held.handle.double, numbers(), buffersize=3))

        assert len(asked) == 3
        assert [next(values) for _ in range(10)] == list(range(0, 20, 2))
        assert len(asked) == 13

    def test_goes_on_where_it_was_left(self, held: Held) -> None:
        values: futures.map[int] = futures.map(held.handle.double, range(5))
        for value in values:
            assert value == 0
            break

        assert list(values) == [2, 4, 6, 8]
        assert list(values) == []

    @READS
    def test_raises_the_failure_at_its_place(self, held: Held, read: Callable[[Any], list[Any]]) -> None:
        held.open(1)

        with pytest.raises(ValueError, match="call 1"):
            read(futures.map(held.handle.fail, [1, 1]))

    def test_without_iterables_or_with_a_wrong_buffer_is_refused(self, held: Held) -> None:
        with pytest.raises(TypeError, match="at least one iterable"):
            futures.map(held.handle.double)
        with pytest.raises(ValueError, match="at least 1 or None, not 0"):
            futures.map(held.handle.double, [1], buffersize=0)


def test_a_body_that_waits_for_calls_is_stopped_when_it_is_cancelled(held: Held) -> None:
    reached = threading.Event()

    @serve.deployment
    def waits() -> None:
        response = held.handle.wait.remote(0)
        reached.set()
        futures.wait([response])

    with serve.running(waits.bind()) as handle:
        response = handle.remote()
        assert reached.wait(WAIT_S)

        response.cancel()

        assert isinstance(response.exception(timeout_s=WAIT_S), RequestCancelledError)
