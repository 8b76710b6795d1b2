"""The Future of a response beside the stock one: what a ``concurrent.futures.Future`` does, ours does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import request_behind, still_router, wait_until
from threadserve.concurrency.future import CallFuture, is_future
from threadserve.concurrency.outcome import Error, Value
from threadserve.concurrency.real import RealKernel
from threadserve.errors import RequestCancelledError
from threadserve.handle import DeploymentHandle

if TYPE_CHECKING:
    from threadserve.call.response import DeploymentResponse
    from threadserve.concurrency.outcome import Outcome


class Stock:
    """Stock futures, moved by hand as an executor would move them."""

    def make(self) -> concurrent.futures.Future[Any]:
        return concurrent.futures.Future()

    def start(self, future: concurrent.futures.Future[Any]) -> None:
        future.set_running_or_notify_cancel()

    def finish(self, future: concurrent.futures.Future[Any], value: object = None) -> None:
        future.set_result(value)

    def fail(self, future: concurrent.futures.Future[Any], error: BaseException) -> None:
        future.set_exception(error)


class Ours:
    """Futures of responses, each of a deployment of its own that starts and ends its call when it is told to."""

    def __init__(self) -> None:
        self._calls: dict[concurrent.futures.Future[Any], Call] = {}

    def make(self) -> concurrent.futures.Future[Any]:
        call = Call()
        future = call.response.future
        self._calls[future] = call
        return future

    def start(self, future: concurrent.futures.Future[Any]) -> None:
        self._calls[future].start()

    def finish(self, future: concurrent.futures.Future[Any], value: object = None) -> None:
        self._calls[future].end(Value(value))

    def fail(self, future: concurrent.futures.Future[Any], error: BaseException) -> None:
        self._calls[future].end(Error(error))


class Call:
    """One call of one deployment."""

    def __init__(self) -> None:
        self.router, self.replica, self.seat = still_router(RealKernel())
        self.response: DeploymentResponse[Any] = DeploymentHandle[Any](self.router).remote()

    def start(self) -> None:
        if not self.seat.is_open:
            self.router.replace((), (self.seat,))

    def end(self, outcome: Outcome) -> None:
        self.start()
        self.replica.end(request_behind(self.response), outcome)


Side = Stock | Ours


@pytest.fixture(params=[Stock, Ours])
def side(request: pytest.FixtureRequest) -> Side:
    made: Side = request.param()
    return made


class TestLikeTheStockFuture:
    def test_it_is_one(self, side: Side) -> None:
        assert isinstance(side.make(), concurrent.futures.Future)
        assert is_future(side.make())

    def test_it_goes_from_pending_through_running_to_done(self, side: Side) -> None:
        future = side.make()
        assert (future.running(), future.done(), future.cancelled()) == (False, False, False)
        side.start(future)
        assert (future.running(), future.done(), future.cancelled()) == (True, False, False)
        side.finish(future, 3)
        assert future.result(timeout=20) == 3
        assert (future.running(), future.done(), future.cancelled()) == (False, True, False)
        assert future.exception() is None

    def test_it_gives_the_exception(self, side: Side) -> None:
        future, error = side.make(), KeyError("k")
        side.fail(future, error)

        assert future.exception(timeout=20) is error
        with pytest.raises(KeyError):
            future.result()

    def test_it_times_out(self, side: Side) -> None:
        future = side.make()

        with pytest.raises(TimeoutError):
            future.result(timeout=0)
        with pytest.raises(TimeoutError):
            future.exception(timeout=0.001)

    def test_it_is_cancelled_before_it_starts(self, side: Side) -> None:
        future = side.make()

        assert future.cancel()
        assert future.cancel()

        assert (future.cancelled(), future.done(), future.running()) == (True, True, False)
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(timeout=20)
        with pytest.raises(concurrent.futures.CancelledError):
            future.exception(timeout=20)

    def test_it_is_not_cancelled_once_it_runs(self, side: Side) -> None:
        future = side.make()
        side.start(future)

        assert not future.cancel()
        side.finish(future, 3)
        assert future.result(timeout=20) == 3
        assert not future.cancel()
        assert not future.cancelled()

    def test_it_calls_back_once_with_itself(self, side: Side) -> None:
        future, called = side.make(), threading.Semaphore(0)
        calls: list[Any] = []

        def note(done: Any) -> None:
            calls.append((done, done.done()))
            called.release()

        future.add_done_callback(note)
        future.add_done_callback(note)
        side.finish(future)
        assert called.acquire(timeout=20)
        assert called.acquire(timeout=20)
        future.add_done_callback(note)

        assert calls == [(future, True)] * 3

    def test_it_calls_back_in_the_order_of_registration(self, side: Side) -> None:
        future, done = side.make(), threading.Event()
        calls: list[int] = []
        for number in range(5):
            future.add_done_callback(lambda _, number=number: calls.append(number))  # type: ignore[misc]
        future.add_done_callback(lambda _: done.set())

        side.finish(future)

        assert done.wait(20)
        assert calls == [0, 1, 2, 3, 4]

    def test_it_calls_back_when_it_is_cancelled(self, side: Side) -> None:
        future = side.make()
        calls: list[bool] = []
        future.add_done_callback(lambda done: calls.append(done.cancelled()))

        future.cancel()

        assert calls == [True]

    def test_it_logs_a_callback_that_raises_and_calls_the_rest(
        self, side: Side, caplog: pytest.LogCaptureFixture
    ) -> None:
        future, done = side.make(), threading.Event()
        future.add_done_callback(lambda _: 1 // 0)
        future.add_done_callback(lambda _: done.set())

        with caplog.at_level(logging.ERROR):
            side.finish(future)
            assert done.wait(20)

        assert "ZeroDivisionError" in caplog.text

    @pytest.mark.parametrize("return_when", [ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION])
    def test_it_can_be_waited_for_beside_others(self, side: Side, return_when: str) -> None:
        other = Stock()
        ours, stock, pending = side.make(), other.make(), side.make()
        side.fail(ours, KeyError("k"))
        other.finish(stock)
        if return_when == ALL_COMPLETED:
            side.finish(pending)

        found = concurrent.futures.wait([ours, stock, pending], timeout=20, return_when=return_when)

        assert ours in found.done or return_when == FIRST_COMPLETED
        assert (pending in found.done) == (return_when == ALL_COMPLETED)

    def test_it_comes_as_completed(self, side: Side) -> None:
        futures = [side.make() for _ in range(4)]
        completed = concurrent.futures.as_completed(futures, timeout=20)
        for future in (futures[2], futures[0], futures[3], futures[1]):
            side.finish(future)
            assert next(completed) is future

        with pytest.raises(StopIteration):
            next(completed)

    def test_it_can_be_awaited(self, side: Side) -> None:
        async def main() -> None:
            good, bad, cancelled = side.make(), side.make(), side.make()
            awaited = [asyncio.wrap_future(future) for future in (good, bad, cancelled)]
            side.finish(good, 3)
            side.fail(bad, KeyError("k"))
            cancelled.cancel()

            assert await asyncio.wait_for(awaited[0], 20) == 3
            with pytest.raises(KeyError):
                await asyncio.wait_for(awaited[1], 20)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(awaited[2], 20)

        asyncio.run(main())

    def test_it_is_cancelled_with_the_await_unless_it_runs(self, side: Side) -> None:
        async def main() -> None:
            for has_started in (False, True):
                future = side.make()
                if has_started:
                    side.start(future)
                awaited = asyncio.wrap_future(future)
                awaited.cancel()
                await asyncio.sleep(0)
                assert future.cancelled() is (not has_started)

        asyncio.run(main())

    def test_it_has_a_repr(self, side: Side) -> None:
        future = side.make()
        assert "pending" in repr(future)
        future.cancel()
        assert "cancelled" in repr(future)


class TestTheFutureOfAResponse:
    def test_is_always_the_same_one(self) -> None:
        response = Call().response

        assert response.future is response.future

    def test_that_is_answered_already_is_done_at_once(self) -> None:
        call = Call()
        call.end(Value("value"))

        assert call.response.future.done()
        assert call.response.future.result() == "value"

    @pytest.mark.parametrize("has_started", [False, True])
    def test_ends_in_an_error_when_the_response_is_cancelled(self, has_started: bool) -> None:
        """The future's own ``cancel`` is another thing: this is the request's."""
        call = Call()
        future = call.response.future
        if has_started:
            call.start()

        call.response.cancel()

        assert isinstance(future.exception(timeout=20), RequestCancelledError)
        assert isinstance(future.exception(), concurrent.futures.CancelledError)
        assert not future.cancelled()
        assert not future.cancel()
        assert not future.running()

    def test_that_was_cancelled_cancels_the_response(self) -> None:
        call = Call()

        assert call.response.future.cancel()

        assert isinstance(call.response.exception(), RequestCancelledError)
        assert call.router.statistics().queued == 0
        call.start()
        assert call.replica.begun == []

    def test_is_completed_on_a_thread_for_callbacks(self) -> None:
        ours, names = Ours(), list[str]()
        future = ours.make()
        future.add_done_callback(lambda _: names.append(threading.current_thread().name))

        ours.finish(future)
        future.result(timeout=20)

        wait_until(lambda: bool(names))
        assert names == ["threadserve callbacks"]

    def test_is_completed_by_the_first_outcome_it_gets(self) -> None:
        future = CallFuture(lambda: False, lambda: False)

        future.complete(Value(1))
        future.complete(Value(2))
        future.complete(Error(KeyError("k")))

        assert future.result() == 1

    def test_of_a_thousand_calls_are_all_completed(self) -> None:
        router, replica, seat = still_router(RealKernel(), limit=1000)
        futures = [DeploymentHandle[Any](router).remote().future for _ in range(1000)]
        router.replace((), (seat,))

        for request in list(replica.begun):
            replica.end(request, Value("value"))

        assert len(concurrent.futures.wait(futures, timeout=20).done) == 1000
