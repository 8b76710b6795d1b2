"""The answer of a call, as those see it who wait for it, give it up, or hand it on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import copy
import logging
import math
import pickle
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve import futures
from threadserve.errors import (
    ArgumentError,
    DeploymentUnavailableError,
    ReplicaDiedError,
    RequestCancelledError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threadserve.call.response import DeploymentResponse
    from threadserve.handle import DeploymentHandle

WAIT_S = 10.0

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="default")


class Gate:
    """Where a body stops until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> str:
        self.reached.set()
        return "through" if self.opened.wait(WAIT_S) else "never opened"


class UserError(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint


class Worker:
    def __init__(self, child: DeploymentHandle[Any] | None = None) -> None:
        self.child = child
        self.ended: list[str] = []

    def same(self, value: Any) -> Any:
        return value

    async def same_async(self, value: Any) -> Any:
        return value

    def pause(self, gate: Gate) -> str:
        return gate.wait()

    async def hang(self, reached: threading.Event) -> None:
        try:
            reached.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise

    def fail(self, error: BaseException) -> None:
        raise error

    def fail_by_hand(self) -> None:
        try:
            self.fail(KeyError("inner"))
        except KeyError as error:
            raise UserError(7, hint="look closer") from error

    def read_variable(self) -> str:
        return VARIABLE.get()

    def set_variable(self, value: str) -> None:
        VARIABLE.set(value)

    def remaining(self) -> float:
        return serve.remaining()

    def history(self) -> list[str]:
        return self.ended

    # the same through a child

    def ask(self, method: str, *args: Any) -> Any:
        return getattr(self.child, method).remote(*args).result()

    async def ask_async(self, method: str, *args: Any) -> Any:
        return await getattr(self.child, method).remote(*args)

    def ids(self) -> list[str]:
        assert self.child is not None
        first, second = self.child.same.remote(1), self.child.same.remote(2)
        return [first.request_id, second.request_id]


@pytest.fixture
def worker() -> Iterator[DeploymentHandle[Any]]:
    with serve.running(serve.deployment(Worker).bind(), name="shop") as handle:
        yield handle


@pytest.fixture
def lone() -> Iterator[DeploymentHandle[Any]]:
    """A worker that does one thing at a time."""
    with serve.running(serve.deployment(Worker, max_ongoing_requests=1).bind(), name="lone") as handle:
        yield handle


@pytest.fixture
def parent() -> Iterator[DeploymentHandle[Any]]:
    """A worker with a child."""
    child = serve.deployment(Worker, name="Child").bind()
    with serve.running(serve.deployment(Worker, name="Parent").bind(child), name="family") as handle:
        yield handle


def child_of(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    return serve.get_deployment_handle("Child", handle.app_name)


def how_bodies_ended(handle: DeploymentHandle[Any]) -> Any:
    """Return how bodies of ``hang`` have ended, once one has: it does on the loop, which is given its turns."""
    ended = handle.history.remote().result(timeout_s=WAIT_S)  # the list itself, by reference
    for _ in range(1000):
        if ended:
            break
        handle.same_async.remote(1).result(timeout_s=WAIT_S)
    return ended


def in_threads(count: int, fn: Callable[[], Any]) -> list[Any]:
    """Call `fn` in several threads that start together; what each returned or raised comes back."""
    barrier = threading.Barrier(count)

    def work() -> Any:
        barrier.wait(WAIT_S)
        try:
            return fn()
        except BaseException as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [each.result(WAIT_S) for each in [pool.submit(work) for _ in range(count)]]


class TestValue:
    def test_can_be_fetched_again_and_again_in_every_way(self, worker: DeploymentHandle[Any]) -> None:
        value = object()
        response = worker.same.remote(value)

        async def fetch() -> list[Any]:
            return [await response, await response]

        assert [response.result(), response.result(timeout_s=0)] == [value, value]
        assert asyncio.run(fetch()) == [value, value]
        assert asyncio.run(fetch()) == [value, value]
        assert response.result() is value
        assert response.future.result(0) is value

    def test_reaches_threads_and_event_loops_that_wait_at_once(self, worker: DeploymentHandle[Any]) -> None:
        gate = Gate()
        response = worker.pause.remote(gate)
        waiting = threading.Barrier(9)

        async def gather() -> list[str]:
            tasks = [asyncio.ensure_future(response) for _ in range(5)]
            await asyncio.sleep(0)
            waiting.wait(WAIT_S)
            return await asyncio.gather(*tasks, response)

        def block() -> list[str]:
            waiting.wait(WAIT_S)
            return [response.result()]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(block) for _ in range(5)]
            answers += [pool.submit(lambda: asyncio.run(gather())) for _ in range(3)]
            waiting.wait(WAIT_S)
            assert gate.reached.wait(WAIT_S)
            gate.opened.set()
            found = [each.result(WAIT_S) for each in answers]

        assert found == [["through"]] * 5 + [["through"] * 6] * 3

    def test_can_be_awaited_with_what_asyncio_offers(self, worker: DeploymentHandle[Any]) -> None:
        async def main() -> list[Any]:
            one, two = worker.same.remote(1), worker.same_async.remote(2)
            return [
                await asyncio.gather(one, two),
                await asyncio.wait_for(worker.same.remote(3), WAIT_S),
                await asyncio.shield(worker.same.remote(4)),
                await asyncio.wrap_future(worker.same.remote(5).future),
            ]

        assert asyncio.run(main()) == [[1, 2], 3, 4, 5]

    def test_may_be_none(self, worker: DeploymentHandle[Any]) -> None:
        response = worker.same.remote(None)

        assert response.result() is None
        assert response.exception() is None
        assert response.done()

    def test_may_be_an_exception_that_nobody_raised(self, worker: DeploymentHandle[Any]) -> None:
        error = ValueError("just a value")

        assert worker.same.remote(error).result() is error

    def test_of_an_async_method_reaches_plain_code(self, worker: DeploymentHandle[Any]) -> None:
        assert worker.same_async.remote("x").result() == "x"


class TestGivingUp:
    def test_in_plain_code_leaves_the_call_alone(self, worker: DeploymentHandle[Any]) -> None:
        gate = Gate()
        response = worker.pause.remote(gate)
        assert gate.reached.wait(WAIT_S)

        with pytest.raises(TimeoutError, match=r"shop/Worker\.pause.*timeout_s=0\.01.*running") as caught:
            response.result(timeout_s=0.01)
        assert not isinstance(caught.value, RequestTimeoutError)
        with pytest.raises(TimeoutError):
            response.exception(timeout_s=0)

        gate.opened.set()
        assert response.result(timeout_s=WAIT_S) == "through"
        assert not response.cancelled()

    @pytest.mark.parametrize("timeout", [0, -1, -math.inf])
    def test_at_once_is_what_no_time_means(self, worker: DeploymentHandle[Any], timeout: float) -> None:
        gate = Gate()
        response = worker.pause.remote(gate)

        with pytest.raises(TimeoutError):
            response.result(timeout_s=timeout)

        gate.opened.set()
        assert response.result(timeout_s=math.inf) == "through"
        assert response.result(timeout_s=timeout) == "through"

    @pytest.mark.parametrize(
        ("timeout", "error"),
        [
            (math.nan, ValueError),
            (10**400, ValueError),
            ("5", TypeError),
            (True, TypeError),
            ((1,), TypeError),
        ],
    )
    def test_after_no_number_of_seconds_is_refused(
        self, worker: DeploymentHandle[Any], timeout: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error, match="timeout_s must be a number of seconds or None"):
            worker.same.remote(1).result(timeout_s=timeout)

    def test_an_await_leaves_the_call_alone(self, worker: DeploymentHandle[Any]) -> None:
        gate = Gate()

        async def main() -> None:
            response = worker.pause.remote(gate)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(response, 0.01)
            task = asyncio.ensure_future(response)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not response.done()
            assert not response.cancelled()
            gate.opened.set()
            assert await response == "through"

        asyncio.run(main())

    def test_an_await_with_a_loop_that_ends_harms_nobody_else(
        self, worker: DeploymentHandle[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        gate = Gate()
        response = worker.pause.remote(gate)

        async def give_up() -> None:
            asyncio.ensure_future(response)  # noqa: RUF006 - it is left to its fate on purpose
            await asyncio.sleep(0)

        asyncio.run(give_up())
        gate.opened.set()

        assert response.result(timeout_s=WAIT_S) == "through"
        assert not caplog.records


class TestSlips:
    @pytest.mark.parametrize("verb", ["result", "exception"])
    def test_a_timeout_by_position_or_by_another_name_is_told_its_name(
        self, worker: DeploymentHandle[Any], verb: str
    ) -> None:
        ask: Any = getattr(worker.same.remote(1), verb)

        with pytest.raises(TypeError, match=rf"{verb}\(5\).*timeout_s"):
            ask(5)
        with pytest.raises(TypeError, match=rf"{verb}\(timeout=5\).*timeout_s"):
            ask(timeout=5)

    @pytest.mark.parametrize("verb", ["result", "exception"])
    def test_blocking_in_an_event_loop_is_told_to_await(
        self, worker: DeploymentHandle[Any], verb: str
    ) -> None:
        response = worker.same.remote(1)
        assert response.result() == 1

        async def main() -> None:
            with pytest.raises(RuntimeError, match=r"shop/Worker\.same.*await"):
                getattr(response, verb)()

        asyncio.run(main())

    def test_blocking_in_an_async_method_is_told_to_await(self) -> None:
        class Hasty:
            def __init__(self, child: DeploymentHandle[Any]) -> None:
                self.child = child

            async def __call__(self) -> Any:
                return self.child.same.remote(1).result()

        app = serve.deployment(Hasty).bind(serve.deployment(Worker).bind())
        with serve.running(app) as handle, pytest.raises(RuntimeError, match="await"):
            handle.remote().result(timeout_s=WAIT_S)

    @pytest.mark.parametrize(
        "wait", [concurrent.futures.wait, lambda fs: list(concurrent.futures.as_completed(fs))]
    )
    def test_the_standard_library_gets_the_future_instead(
        self, worker: DeploymentHandle[Any], wait: Any
    ) -> None:
        with pytest.raises(TypeError, match=r"response\.future.*threadserve\.futures"):
            wait([worker.same.remote(1)])

    @pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_a_copy_is_refused(self, worker: DeploymentHandle[Any], travel: Any) -> None:
        with pytest.raises(ArgumentError, match=r"shop/Worker\.same cannot be pickled or copied"):
            travel(worker.same.remote(1))


class TestRepr:
    def test_says_whose_it_is_how_it_stands_and_how_to_get_the_value(
        self, lone: DeploymentHandle[Any]
    ) -> None:
        gate = Gate()
        running = lone.pause.remote(gate)
        assert gate.reached.wait(WAIT_S)
        queued, chained = lone.same.remote(1), lone.same.remote(running)
        failing = lone.fail.remote(ValueError("no"))

        told = [repr(response) for response in (running, queued, chained)]
        gate.opened.set()
        assert failing.exception(timeout_s=WAIT_S) is not None
        told += [repr(response) for response in (queued, failing)]

        for text, words in zip(
            told,
            [
                "pause: running",
                "same: queued",
                "same: waiting for its arguments",
                "same: done",
                "failed with ValueError",
            ],
            strict=True,
        ):
            assert "lone/Worker." in text
            assert words in text
            assert ".result() or await" in text


class TestException:
    def test_arrives_as_itself(self, worker: DeploymentHandle[Any]) -> None:
        error = UserError(7, hint="look closer")
        error.add_note("a note")
        response = worker.fail.remote(error)

        with pytest.raises(UserError) as caught:
            response.result(timeout_s=WAIT_S)

        assert caught.value is error
        assert (caught.value.code, caught.value.hint, caught.value.__notes__) == (
            7,
            "look closer",
            ["a note"],
        )
        assert response.exception() is error
        assert response.done()

    @pytest.mark.parametrize("via", ["result", "await", "future"])
    def test_shows_the_users_lines_and_causes(self, worker: DeploymentHandle[Any], via: str) -> None:
        response = worker.fail_by_hand.remote()
        fetch: dict[str, Callable[[], Any]] = {
            "result": response.result,
            "await": lambda: asyncio.run(awaited(response)),
            "future": lambda: response.future.result(WAIT_S),
        }

        with pytest.raises(UserError) as caught:
            fetch[via]()

        text = "".join(traceback.format_exception(caught.value))
        assert 'raise UserError(7, hint="look closer") from error' in text
        assert "KeyError: 'inner'" in text
        assert "direct cause" in text

    def test_through_several_hops_shows_the_line_of_each(self, parent: DeploymentHandle[Any]) -> None:
        for method in ("ask", "ask_async"):
            with pytest.raises(UserError) as caught:
                getattr(parent, method).remote("fail_by_hand").result(timeout_s=WAIT_S)

            names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
            assert names.index(method) < names.index("fail_by_hand")

    def test_does_not_grow_and_is_not_shared(self, worker: DeploymentHandle[Any]) -> None:
        response = worker.fail_by_hand.remote()

        caught = in_threads(8, response.result) + in_threads(8, lambda: asyncio.run(awaited(response)))

        assert {type(error) for error in caught} == {UserError}
        assert {(error.code, error.hint, str(error)) for error in caught} == {(7, "look closer", "code 7")}
        assert all(isinstance(error.__cause__, KeyError) for error in caught)
        assert len({id(error) for error in caught}) == len(caught)
        depths = [len(traceback.extract_tb(error.__traceback__)) for error in caught]
        assert max(depths) < 25

        later = []
        for _ in range(5):
            with pytest.raises(UserError) as again:
                response.result()
            later.append(len(traceback.extract_tb(again.value.__traceback__)))
        assert len(set(later)) == 1

    @pytest.mark.parametrize(
        "error", [StopIteration(1), StopAsyncIteration(), GeneratorExit(), KeyboardInterrupt()]
    )
    def test_that_means_something_to_python_comes_through_plain_code(
        self, worker: DeploymentHandle[Any], error: BaseException
    ) -> None:
        with pytest.raises(type(error)):
            worker.fail.remote(error).result(timeout_s=WAIT_S)

        assert worker.same.remote(1).result(timeout_s=WAIT_S) == 1

    def test_system_exit_is_the_replicas_and_not_the_callers(self, worker: DeploymentHandle[Any]) -> None:
        with pytest.raises(ReplicaDiedError, match="SystemExit"):
            worker.fail.remote(SystemExit(3)).result(timeout_s=WAIT_S)

    def test_of_the_call_itself_names_the_parameters(self, worker: DeploymentHandle[Any]) -> None:
        with pytest.raises(TypeError, match="same"):
            worker.same.remote(1, 2, 3).result(timeout_s=WAIT_S)


async def awaited(response: DeploymentResponse[Any]) -> Any:
    return await response


class TestCancel:
    def test_of_a_queued_call_keeps_it_from_running(self, lone: DeploymentHandle[Any]) -> None:
        gate, never = Gate(), threading.Event()
        first, second = lone.pause.remote(gate), lone.hang.remote(never)
        assert gate.reached.wait(WAIT_S)

        second.cancel()

        assert (second.done(), second.cancelled(), first.cancelled()) == (True, True, False)
        for _ in range(2):
            with pytest.raises(RequestCancelledError, match=r"lone/Worker\.hang was cancelled") as caught:
                second.result()
            assert isinstance(caught.value, concurrent.futures.CancelledError)
            assert (caught.value.deployment, caught.value.request_id) == ("lone/Worker", second.request_id)
        gate.opened.set()
        assert first.result(timeout_s=WAIT_S) == "through"
        assert lone.same.remote(1).result(timeout_s=WAIT_S) == 1
        assert not never.is_set()

    def test_of_a_running_coroutine_reaches_its_await(self, worker: DeploymentHandle[Any]) -> None:
        reached = threading.Event()
        response = worker.hang.remote(reached)
        assert reached.wait(WAIT_S)

        response.cancel()

        with pytest.raises(RequestCancelledError):
            asyncio.run(awaited(response))
        assert how_bodies_ended(worker) == ["cancelled"]

    def test_of_a_running_def_answers_at_once_and_keeps_its_slot(self, lone: DeploymentHandle[Any]) -> None:
        gate = Gate()
        response = lone.pause.remote(gate)
        assert gate.reached.wait(WAIT_S)
        following = lone.same.remote("next")

        response.cancel()

        with pytest.raises(RequestCancelledError):
            response.result(timeout_s=WAIT_S)
        assert not following.done()
        gate.opened.set()
        assert following.result(timeout_s=WAIT_S) == "next"

    def test_of_an_answered_call_changes_nothing_but_what_cancelled_says(
        self, worker: DeploymentHandle[Any]
    ) -> None:
        response = worker.same.remote(5)
        assert response.result() == 5
        assert not response.cancelled()

        response.cancel()
        response.cancel()

        assert response.cancelled()
        assert response.result() == 5

    @pytest.mark.parametrize("method", ["ask", "ask_async"])
    def test_reaches_all_that_the_call_has_called(self, parent: DeploymentHandle[Any], method: str) -> None:
        reached = threading.Event()
        response = getattr(parent, method).remote("hang", reached)
        assert reached.wait(WAIT_S)

        response.cancel()

        with pytest.raises(RequestCancelledError, match="family/Parent"):
            response.result(timeout_s=WAIT_S)
        assert how_bodies_ended(child_of(parent)) == ["cancelled"]

    def test_wakes_everybody_who_waits(self, worker: DeploymentHandle[Any]) -> None:
        gate = Gate()
        response = worker.pause.remote(gate)
        waiting = threading.Barrier(5)

        def wait() -> BaseException | None:
            waiting.wait(WAIT_S)
            return response.exception()

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(wait) for _ in range(4)]
            waiting.wait(WAIT_S)
            response.cancel()
            assert {type(each.result(WAIT_S)) for each in answers} == {RequestCancelledError}
        gate.opened.set()

    def test_of_one_who_waits_for_an_input_leaves_the_input_alone(
        self, worker: DeploymentHandle[Any]
    ) -> None:
        gate = Gate()
        upstream = worker.pause.remote(gate)
        downstream = worker.same.remote(upstream)

        downstream.cancel()

        assert isinstance(downstream.exception(timeout_s=WAIT_S), RequestCancelledError)
        gate.opened.set()
        assert upstream.result(timeout_s=WAIT_S) == "through"


class TestDoneCallback:
    def test_is_called_once_with_the_response(self, worker: DeploymentHandle[Any]) -> None:
        gate, called = Gate(), threading.Semaphore(0)
        response = worker.pause.remote(gate)
        seen: list[Any] = []

        def note(answered: Any) -> None:
            seen.append((answered, answered.result(timeout_s=0), threading.current_thread()))
            called.release()

        for _ in range(10):
            response.add_done_callback(note)
        assert not seen
        gate.opened.set()

        for _ in range(10):
            assert called.acquire(timeout=WAIT_S)
        assert [(answered, value) for answered, value, _ in seen] == [(response, "through")] * 10
        assert not called.acquire(blocking=False)

    def test_on_an_answered_response_is_called_at_once(self, worker: DeploymentHandle[Any]) -> None:
        response = worker.same.remote(1)
        response.result()
        seen: list[Any] = []

        response.add_done_callback(seen.append)

        assert seen == [response]

    def test_that_raises_is_logged_and_harms_nobody(
        self, worker: DeploymentHandle[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        gate, called = Gate(), threading.Event()
        response = worker.pause.remote(gate)
        response.add_done_callback(lambda _: 1 // 0)
        response.add_done_callback(lambda _: called.set())

        with caplog.at_level(logging.ERROR, "threadserve"):
            gate.opened.set()
            assert called.wait(WAIT_S)
            assert response.result(timeout_s=WAIT_S) == "through"
            response.add_done_callback(lambda _: 1 // 0)

        assert any("shop/Worker.pause" in record.getMessage() for record in caplog.records)

    def test_may_block_on_what_another_callback_brings_about(self, worker: DeploymentHandle[Any]) -> None:
        gate, first, second = Gate(), threading.Event(), threading.Event()
        response = worker.pause.remote(gate)
        response.add_done_callback(lambda _: first.set() if second.wait(WAIT_S) else None)
        response.add_done_callback(lambda _: second.set())

        gate.opened.set()

        assert first.wait(WAIT_S)


class TestFuture:
    def test_is_one_for_the_standard_library(self, worker: DeploymentHandle[Any]) -> None:
        responses = [worker.same.remote(number) for number in range(5)]
        made = [response.future for response in responses]

        done, not_done = concurrent.futures.wait(made, WAIT_S)

        assert all(isinstance(future, concurrent.futures.Future) for future in made)
        assert [response.future for response in responses] == made
        assert (done, not_done) == (set(made), set())
        assert {future.result(0) for future in concurrent.futures.as_completed(made, WAIT_S)} == set(range(5))
        assert [future.exception(0) for future in made] == [None] * 5

    def test_made_by_many_at_once_is_one(self, worker: DeploymentHandle[Any]) -> None:
        gate = Gate()
        response = worker.pause.remote(gate)

        made = in_threads(8, lambda: response.future)

        assert len({id(future) for future in made}) == 1
        gate.opened.set()
        assert made[0].result(WAIT_S) == "through"

    def test_tells_how_the_call_stands(self, lone: DeploymentHandle[Any]) -> None:
        gate = Gate()
        running, queued = lone.pause.remote(gate).future, lone.same.remote(1).future
        assert gate.reached.wait(WAIT_S)

        assert [(each.running(), each.done(), each.cancelled()) for each in (running, queued)] == [
            (True, False, False),
            (False, False, False),
        ]
        gate.opened.set()
        assert (running.result(WAIT_S), queued.result(WAIT_S)) == ("through", 1)
        assert [(each.running(), each.done(), each.cancelled()) for each in (running, queued)] == [
            (False, True, False)
        ] * 2

    def test_cancels_only_what_has_not_started(self, lone: DeploymentHandle[Any]) -> None:
        gate, never = Gate(), threading.Event()
        running, queued = lone.pause.remote(gate), lone.hang.remote(never)
        assert gate.reached.wait(WAIT_S)

        assert not running.future.cancel()
        assert queued.future.cancel()
        assert queued.future.cancel()

        assert queued.future.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            queued.future.result(0)
        assert isinstance(queued.exception(timeout_s=0), RequestCancelledError)
        gate.opened.set()
        assert running.future.result(WAIT_S) == "through"
        assert not running.future.cancel()
        assert not never.is_set()

    def test_of_a_cancelled_request_ends_with_its_error(self, worker: DeploymentHandle[Any]) -> None:
        gate = Gate()
        response = worker.pause.remote(gate)
        future = response.future
        assert gate.reached.wait(WAIT_S)

        response.cancel()

        error = future.exception(WAIT_S)
        assert isinstance(error, RequestCancelledError)
        assert (future.done(), future.cancelled()) == (True, False)
        gate.opened.set()

    def test_refuses_a_callback_that_cannot_be_called(self, worker: DeploymentHandle[Any]) -> None:
        response: Any = worker.pause.remote(gate := Gate())
        gate.opened.set()

        with pytest.raises(TypeError, match="not 5"):
            response.add_done_callback(5)
        response.exception()

    def test_calls_its_callbacks_once_with_itself(self, worker: DeploymentHandle[Any]) -> None:
        gate, called = Gate(), threading.Semaphore(0)
        response = worker.pause.remote(gate)
        seen: list[Any] = []

        def note(future: concurrent.futures.Future[Any]) -> None:
            seen.append(future)
            called.release()

        for _ in range(3):
            response.future.add_done_callback(note)
        gate.opened.set()
        for _ in range(3):
            assert called.acquire(timeout=WAIT_S)

        response.future.add_done_callback(seen.append)

        assert seen == [response.future] * 4

    def test_of_a_failed_call_raises_its_exception(self, worker: DeploymentHandle[Any]) -> None:
        error = ValueError("no")

        with pytest.raises(ValueError, match="no"):
            worker.fail.remote(error).future.result(WAIT_S)


class TestChaining:
    def test_puts_values_in_the_place_of_responses(self, worker: DeploymentHandle[Any]) -> None:
        @serve.deployment
        def show(*args: Any, **kwargs: Any) -> Any:
            return args, kwargs

        plain: concurrent.futures.Future[int] = concurrent.futures.Future()
        with serve.running(show.bind(), name="other") as handle:
            response = handle.remote(worker.same.remote(1), 2, plain, key=worker.same_async.remote(4))
            assert not response.done()
            plain.set_result(3)

            assert response.result(timeout_s=WAIT_S) == ((1, 2, 3), {"key": 4})

    @pytest.mark.parametrize("method", ["same", "same_async"])
    def test_goes_fifty_hops_deep(self, worker: DeploymentHandle[Any], method: str) -> None:
        response = getattr(worker, method).remote("x")
        for _ in range(50):
            response = getattr(worker, method).remote(response)

        assert response.result(timeout_s=WAIT_S) == "x"

    def test_resolves_each_as_soon_as_its_own_inputs_allow(self, worker: DeploymentHandle[Any]) -> None:
        gate = Gate()
        slow, fast = worker.pause.remote(gate), worker.same.remote(1)

        behind_fast, behind_both = worker.same.remote(fast), worker.same.remote(slow)

        assert behind_fast.result(timeout_s=WAIT_S) == 1
        assert not behind_both.done()
        gate.opened.set()
        assert behind_both.result(timeout_s=WAIT_S) == "through"

    def test_behind_a_failure_never_runs_and_has_its_exception(self, worker: DeploymentHandle[Any]) -> None:
        ran: list[Any] = []

        @serve.deployment
        def note(value: Any, other: Any) -> None:
            ran.append(value)

        error = UserError(1, hint="upstream")
        with serve.running(note.bind(), name="other") as handle:
            response = handle.remote(worker.same.remote(1), worker.fail.remote(error))
            with pytest.raises(UserError, match="code 1"):
                response.result(timeout_s=WAIT_S)
            assert handle.remote(0, 0).result(timeout_s=WAIT_S) is None
        assert ran == [0]

    @pytest.mark.parametrize("container", [list, tuple, set, lambda each: {"key": next(iter(each))}])
    def test_in_a_container_is_refused_with_advice(
        self, worker: DeploymentHandle[Any], container: Any
    ) -> None:
        with pytest.raises(ArgumentError, match=r"shop/Worker\.same.*nested in a.*gather"):
            worker.same.remote(container([worker.same.remote(1)])).result(timeout_s=WAIT_S)

    def test_of_a_response_that_is_returned_is_refused_with_advice(
        self, parent: DeploymentHandle[Any]
    ) -> None:
        class Lazy:
            def __init__(self, child: DeploymentHandle[Any]) -> None:
                self.child = child

            def __call__(self) -> Any:
                return self.child.same.remote(1)

        app = serve.deployment(Lazy).bind(serve.deployment(Worker).bind())
        with serve.running(app) as handle, pytest.raises(ArgumentError, match="return its value"):
            handle.remote().result(timeout_s=WAIT_S)


class TestRequestId:
    def test_is_new_for_each_call_from_outside(self, worker: DeploymentHandle[Any]) -> None:
        assert len({worker.same.remote(1).request_id for _ in range(10)}) == 10

    def test_is_the_same_through_the_tree(self, parent: DeploymentHandle[Any]) -> None:
        response = parent.ids.remote()

        assert response.result(timeout_s=WAIT_S) == [response.request_id] * 2


class TestContextVariables:
    def test_of_the_caller_are_seen_through_the_tree(self, parent: DeploymentHandle[Any]) -> None:
        token = VARIABLE.set("mine")
        try:
            responses = [parent.ask.remote("read_variable"), parent.ask_async.remote("read_variable")]
        finally:
            VARIABLE.reset(token)

        assert [response.result(timeout_s=WAIT_S) for response in responses] == ["mine", "mine"]
        assert parent.read_variable.remote().result(timeout_s=WAIT_S) == "default"

    def test_that_a_call_sets_are_its_own(self, worker: DeploymentHandle[Any]) -> None:
        worker.set_variable.remote("theirs").result(timeout_s=WAIT_S)

        assert VARIABLE.get() == "default"
        assert worker.read_variable.remote().result(timeout_s=WAIT_S) == "default"


class TestTimeout:
    def test_ends_a_call_that_runs(self, worker: DeploymentHandle[Any]) -> None:
        gate = Gate()
        response = worker.pause.options(timeout_s=0.05).remote(gate)
        assert gate.reached.wait(WAIT_S)

        with pytest.raises(RequestTimeoutError, match=r"shop/Worker\.pause timed out") as caught:
            response.result(timeout_s=WAIT_S)

        assert isinstance(caught.value, TimeoutError)
        assert caught.value.elapsed_s >= 0.05
        assert not response.cancelled()
        gate.opened.set()

    def test_counts_the_time_in_the_queue_and_such_a_call_never_starts(
        self, lone: DeploymentHandle[Any]
    ) -> None:
        gate, never = Gate(), threading.Event()
        first = lone.pause.remote(gate)
        late = lone.hang.options(timeout_s=0.05).remote(never)

        with pytest.raises(RequestTimeoutError, match="queued"):
            late.result(timeout_s=WAIT_S)

        gate.opened.set()
        assert first.result(timeout_s=WAIT_S) == "through"
        assert lone.same.remote(1).result(timeout_s=WAIT_S) == 1
        assert not never.is_set()

    def test_counts_the_time_for_arguments(self, worker: DeploymentHandle[Any]) -> None:
        never: concurrent.futures.Future[int] = concurrent.futures.Future()

        with pytest.raises(RequestTimeoutError):
            worker.same.options(timeout_s=0.05).remote(never).result(timeout_s=WAIT_S)

    @pytest.mark.parametrize("method", ["ask", "ask_async"])
    def test_is_inherited_by_what_the_call_calls(self, parent: DeploymentHandle[Any], method: str) -> None:
        bounded = getattr(parent, method).options(timeout_s=WAIT_S)

        assert 0 < bounded.remote("remaining").result() <= WAIT_S
        assert getattr(parent, method).remote("remaining").result() == math.inf

    def test_reaches_a_child_that_hangs(self, parent: DeploymentHandle[Any]) -> None:
        reached = threading.Event()

        with pytest.raises(RequestTimeoutError, match="family/Parent"):
            parent.ask.options(timeout_s=0.05).remote("hang", reached).result(timeout_s=WAIT_S)

        assert how_bodies_ended(child_of(parent)) == ["cancelled"]


def test_a_plain_method_may_wait_for_several_of_its_own_calls() -> None:
    class Fan:
        def __init__(self, child: DeploymentHandle[Any]) -> None:
            self.child = child

        def __call__(self, count: int) -> int:
            return sum(futures.gather(*(self.child.same.remote(n) for n in range(count))).result())

    app = serve.deployment(Fan).bind(serve.deployment(Worker).bind())
    with serve.running(app) as handle:
        assert handle.remote(20).result(timeout_s=WAIT_S) == sum(range(20))


def test_what_is_queued_when_the_app_is_deleted_is_answered(lone: DeploymentHandle[Any]) -> None:
    gate = Gate()
    running, queued = lone.pause.remote(gate), lone.same.remote(1)
    chained = lone.same.remote(running)
    assert gate.reached.wait(WAIT_S)
    deleting = threading.Thread(target=serve.delete, args=("lone",))

    deleting.start()

    for response in (queued, chained):
        with pytest.raises(DeploymentUnavailableError, match="lone/Worker"):
            response.result(timeout_s=WAIT_S)
    gate.opened.set()
    assert running.result(timeout_s=WAIT_S) == "through"
    deleting.join(WAIT_S)
