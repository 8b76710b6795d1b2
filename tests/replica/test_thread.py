"""Where user code runs: on which thread, in which context, and what becomes of what it raises."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import logging
import threading
import traceback
import warnings
import weakref
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import deploy, deployed, request_behind, wait_until
from threadserve.call.context import get_multiplexed_model_id, get_replica_context, inheritance
from threadserve.call.request import current_request
from threadserve.concurrency.real import RealKernel
from threadserve.errors import (
    Cancelled,
    NotInReplicaError,
    ReplicaDiedError,
    RequestCancelledError,
)
from threadserve.testing.scheduler import SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from threadserve.handle import DeploymentHandle


@pytest.fixture
def kernel() -> RealKernel:
    return RealKernel()


class Odd(BaseException):
    """An exception that is no Exception, and takes arguments of its own."""

    def __init__(self, first: int, *, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.second = second


class Unfriendly(Exception):
    """An exception that nobody can copy."""

    def __new__(cls, *args: object) -> Any:
        if args != ("made",):
            raise RuntimeError("no copies")
        return super().__new__(cls, *args)


class Raising:
    """Raises what it is given, in every kind of body."""

    def plain(self, error: BaseException) -> None:
        raise error

    async def coroutine(self, error: BaseException) -> None:
        raise error

    async def suspended(self, error: BaseException) -> None:
        await asyncio.sleep(0)
        raise error

    def deferring(self, error: BaseException) -> Any:
        return self.suspended(error)

    def items(self, error: BaseException) -> Iterator[int]:
        yield 1
        raise error

    async def async_items(self, error: BaseException) -> AsyncIterator[int]:
        yield 1
        raise error


BODIES = ["plain", "coroutine", "suspended", "deferring"]
AS_ITSELF: list[Callable[[], BaseException]] = [
    lambda: ValueError("a plain one"),
    lambda: KeyError("k"),
    lambda: OSError(2, "no such file", "path"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    lambda: Odd(1, second=2),
    lambda: Unfriendly("made"),
    lambda: KeyboardInterrupt("from the body"),
    lambda: GeneratorExit(),
    lambda: StopAsyncIteration(3),
    lambda: ExceptionGroup("several", [ValueError("one"), TypeError("two")]),
    lambda: BaseExceptionGroup("worse", [KeyboardInterrupt(), ValueError("two")]),
    lambda: concurrent.futures.CancelledError("of a future"),
    lambda: TimeoutError("of the body's own"),
    lambda: RequestCancelledError("of a child"),
    lambda: RecursionError("deep"),
    lambda: MemoryError(),
]


class TestWhatABodyRaises:
    @pytest.mark.parametrize("body", BODIES)
    @pytest.mark.parametrize("make", AS_ITSELF, ids=lambda make: type(make()).__name__)
    def test_arrives_as_itself(
        self, kernel: RealKernel, make: Callable[[], BaseException], body: str
    ) -> None:
        error = make()
        with deployed(kernel, Raising, max_ongoing_requests=1) as raising:
            response = raising.handle.options(method_name=body).remote(error)
            if body != "plain" and isinstance(error, StopAsyncIteration):
                assert type(response.exception()) in (StopAsyncIteration, RuntimeError)
                return
            for _ in range(3):
                with pytest.raises(type(error)) as caught:
                    response.result()
                assert str(caught.value) == str(error)
                names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
                assert ("plain" if body == "plain" else body.replace("deferring", "suspended")) in names
            assert response.exception() is error
            raising.handle.plain.remote(ValueError()).exception()  # the replica goes on

    @pytest.mark.parametrize("body", ["items", "async_items"])
    @pytest.mark.parametrize("make", [AS_ITSELF[number] for number in (0, 4, 6, 9)])
    def test_arrives_after_the_items_before_it(
        self, kernel: RealKernel, make: Callable[[], BaseException], body: str
    ) -> None:
        error = make()
        with deployed(kernel, Raising) as raising:
            stream = raising.handle.options(stream=True, method_name=body).remote(error)
            assert next(stream) == 1
            with pytest.raises(type(error)):
                next(stream)
            assert list(stream) == []

    @pytest.mark.parametrize("body", BODIES)
    def test_may_be_stop_iteration(self, kernel: RealKernel, body: str) -> None:
        with deployed(kernel, Raising) as raising:
            response = raising.handle.options(method_name=body).remote(StopIteration(5))
            error = response.exception()

            assert type(error) is (StopIteration if body == "plain" else RuntimeError)

            async def main() -> None:
                with pytest.raises(RuntimeError, match="StopIteration"):
                    await response

            asyncio.run(main())

    @pytest.mark.parametrize("body", ["plain", "items", "async_items", "coroutine"])
    def test_never_looks_like_the_end_of_a_stream(self, kernel: RealKernel, body: str) -> None:
        for error in (StopIteration(1), StopAsyncIteration(1)):
            with deployed(kernel, Raising) as raising:
                stream = raising.handle.options(stream=True, method_name=body).remote(error)
                with pytest.raises((RuntimeError, StopAsyncIteration)):
                    list(stream)

                async def main(raising: Any = raising, error: Any = error) -> None:
                    stream = raising.handle.options(stream=True, method_name=body).remote(error)
                    with pytest.raises((RuntimeError, StopIteration)):
                        [item async for item in stream]

                asyncio.run(main())

    @pytest.mark.parametrize("body", BODIES)
    @pytest.mark.parametrize("error", [asyncio.CancelledError("c"), Cancelled("c")], ids=["asyncio", "ours"])
    def test_that_means_cancelled_becomes_an_ordinary_error(
        self, kernel: RealKernel, body: str, error: BaseException
    ) -> None:
        with deployed(kernel, Raising, max_ongoing_requests=1) as raising:
            caught = raising.handle.options(method_name=body).remote(error).exception()

            assert isinstance(caught, RequestCancelledError)
            assert f"app/D.{body} cancelled itself" in str(caught)
            assert caught.__cause__ is error
            assert isinstance(raising.handle.plain.remote(ValueError()).exception(), ValueError)

    @pytest.mark.parametrize("body", BODIES)
    def test_ends_neither_the_process_nor_the_deployment(
        self, kernel: RealKernel, body: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.CRITICAL), deployed(kernel, Raising, max_ongoing_requests=1) as raising:
            error = raising.handle.options(method_name=body).remote(SystemExit(3)).exception()

            assert isinstance(error, ReplicaDiedError)
            assert isinstance(error.__cause__, SystemExit)
            assert "SystemExit(3)" in str(error)
            assert isinstance(raising.handle.plain.remote(ValueError()).exception(timeout_s=20), ValueError)

    def test_in_a_task_of_its_own_does_not_end_the_loop(
        self, kernel: RealKernel, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Tasks:
            async def start(self) -> None:
                async def leave() -> None:
                    raise SystemExit(3)

                self.task = asyncio.get_running_loop().create_task(leave())

            async def go_on(self) -> str:
                await asyncio.sleep(0.001)
                return "goes on"

        with caplog.at_level(logging.CRITICAL), deployed(kernel, Tasks) as tasks:
            tasks.handle.start.remote().result()
            assert tasks.handle.go_on.remote().result() == "goes on"


user_variable: ContextVar[str] = ContextVar("user_variable", default="nothing")


class Contexts:
    def __init__(self) -> None:
        self.in_constructor = user_variable.get()

    def plain(self) -> str:
        seen = user_variable.get()
        user_variable.set("changed by the call")
        return seen

    async def coroutine(self) -> str:
        seen = user_variable.get()
        user_variable.set("changed by the call")
        await asyncio.sleep(0)
        assert user_variable.get() == "changed by the call"
        return seen

    def deferring(self) -> Any:
        user_variable.set("changed before the coroutine began")
        return self.coroutine()

    def items(self) -> Iterator[str]:
        yield user_variable.get()
        user_variable.set("changed by the call")
        yield user_variable.get()

    async def async_items(self) -> AsyncIterator[str]:
        yield user_variable.get()
        user_variable.set("changed by the call")
        yield user_variable.get()

    def constructed(self) -> str:
        return self.in_constructor


class TestContextVariables:
    @pytest.mark.parametrize("body", ["plain", "coroutine", "items", "async_items"])
    def test_of_the_caller_are_visible_and_changes_stay_in_the_call(
        self, kernel: RealKernel, body: str
    ) -> None:
        with deployed(kernel, Contexts, max_ongoing_requests=1) as contexts:
            handle: Any = contexts.handle.options(method_name=body)
            if "items" in body:
                handle = handle.options(stream=True)
            token = user_variable.set("set by the caller")
            try:
                for _ in range(3):
                    if "items" in body:
                        assert list(handle.remote()) == ["set by the caller", "changed by the call"]
                    else:
                        assert handle.remote().result() == "set by the caller"
                    assert user_variable.get() == "set by the caller"
            finally:
                user_variable.reset(token)
            if "items" not in body:
                assert handle.remote().result() == "nothing"

    def test_go_over_from_a_def_to_the_coroutine_that_it_returns(self, kernel: RealKernel) -> None:
        with deployed(kernel, Contexts) as contexts:
            assert contexts.handle.deferring.remote().result() == "changed before the coroutine began"

    def test_of_a_caller_go_down_a_chain_of_calls(self, kernel: RealKernel) -> None:
        class Outer:
            def __init__(self, inner: DeploymentHandle[Any]) -> None:
                self.inner = inner

            async def __call__(self) -> Any:
                return await self.inner.plain.remote()

        with (
            deployed(kernel, Contexts, name="Inner") as inner,
            deployed(kernel, Outer, inner.handle, name="Outer") as outer,
        ):
            context = contextvars.copy_context()
            context.run(user_variable.set, "set at the top")
            assert context.run(outer.handle.remote).result() == "set at the top"

    def test_are_empty_in_the_constructor(self, kernel: RealKernel) -> None:
        token = user_variable.set("set by who deploys")
        try:
            with deployed(kernel, Contexts) as contexts:
                assert contexts.handle.constructed.remote().result() == "nothing"
        finally:
            user_variable.reset(token)

    def test_leave_the_thread_clean(self, kernel: RealKernel) -> None:
        seen: list[Any] = []

        class Peek:
            def __call__(self) -> None:
                user_variable.set("dirty")

        with deployed(kernel, Peek, max_ongoing_requests=1) as peek:
            replica = peek.seats[0].replica
            run = replica.run

            def look_and_run(request: Any) -> Any:
                outcome = run(request)
                seen.append((user_variable.get(), current_request()))
                return outcome

            replica.run = look_and_run
            peek.handle.remote().result()
            peek.handle.remote().result()

        assert seen[0] == ("nothing", None)


class TestTheReplicaContext:
    @pytest.fixture(autouse=True)
    def inherited_by_threads(self) -> Iterator[None]:
        inheritance.install()
        yield
        inheritance.uninstall()

    def test_is_known_wherever_code_of_the_replica_runs(self, kernel: RealKernel) -> None:
        def rank() -> Any:
            context = get_replica_context()
            return context.deployment, context.rank.rank

        def rank_in_a_thread() -> Any:
            ranks: list[Any] = []
            thread = threading.Thread(target=lambda: ranks.append(rank()))
            thread.start()
            thread.join()
            return ranks[0]

        class Everywhere:
            def __init__(self) -> None:
                self.in_constructor = [rank(), rank_in_a_thread()]

            def reconfigure(self, config: Any) -> None:
                self.in_reconfigure = [rank(), rank_in_a_thread()]

            def plain(self) -> list[Any]:
                with concurrent.futures.ThreadPoolExecutor(1) as executor:
                    pooled = executor.submit(rank).result()
                return [rank(), rank_in_a_thread(), pooled, *self.in_constructor, *self.in_reconfigure]

            async def coroutine(self) -> list[Any]:
                async def task() -> Any:
                    return rank()

                loop = asyncio.get_running_loop()
                return [
                    rank(),
                    await asyncio.create_task(task()),
                    await asyncio.to_thread(rank),
                    await loop.run_in_executor(None, rank),
                    rank_in_a_thread(),
                ]

            def items(self) -> Iterator[Any]:
                yield rank()

            async def async_items(self) -> AsyncIterator[Any]:
                yield rank()

        with deployed(kernel, Everywhere, user_config={"a": 1}) as everywhere:
            handle = everywhere.handle
            found = handle.plain.remote().result() + handle.coroutine.remote().result()
            found += list(handle.options(stream=True).items.remote())
            found += list(handle.options(stream=True).async_items.remote())

        assert found == [("D", 0)] * 14

    def test_has_the_fields_of_ray_serves(self, kernel: RealKernel) -> None:
        class Context:
            def __init__(self) -> None:
                assert get_replica_context().servable_object is None

            def __call__(self) -> Any:
                context = get_replica_context()
                assert context.servable_object is self
                return context

        with deployed(kernel, Context, num_replicas=2) as deployment:
            context = deployment.handle.remote().result()

        assert (context.app_name, context.deployment, context.world_size) == ("app", "D", 2)
        assert context.replica_tag == context.replica_id.unique_id
        assert len(context.replica_tag) == 8
        assert context.code_version == "v1"
        assert context.rank.rank in (0, 1)

    def test_is_unknown_outside_with_an_explanation(self) -> None:
        with pytest.raises(NotInReplicaError, match="outside of a replica"):
            get_replica_context()

    def test_is_that_of_the_callee_in_a_call(self, kernel: RealKernel) -> None:
        class Inner:
            def __call__(self) -> str:
                return get_replica_context().deployment

        class Outer:
            def __init__(self, inner: DeploymentHandle[Any]) -> None:
                self.inner = inner

            async def __call__(self) -> Any:
                return await self.inner.remote(), get_replica_context().deployment

        with (
            deployed(kernel, Inner, name="Inner") as inner,
            deployed(kernel, Outer, inner.handle, name="Outer") as outer,
        ):
            assert outer.handle.remote().result() == ("Inner", "Outer")


class TestTheModelId:
    def test_is_what_the_call_was_made_with_and_is_not_inherited(self, kernel: RealKernel) -> None:
        class Inner:
            async def __call__(self) -> str:
                return get_multiplexed_model_id()

        class Outer:
            def __init__(self, inner: DeploymentHandle[Any]) -> None:
                self.inner = inner

            def __call__(self) -> Any:
                return get_multiplexed_model_id(), self.inner.remote().result()

        with (
            deployed(kernel, Inner, name="Inner") as inner,
            deployed(kernel, Outer, inner.handle, name="Outer") as outer,
        ):
            assert outer.handle.options(multiplexed_model_id="m").remote().result() == ("m", "")
        assert get_multiplexed_model_id() == ""


class TestThreads:
    def test_are_named_after_app_deployment_and_replica(self, kernel: RealKernel) -> None:
        class Name:
            def __init__(self) -> None:
                self.constructed_by = threading.current_thread().name

            def plain(self) -> str:
                return threading.current_thread().name

            async def coroutine(self) -> str:
                return threading.current_thread().name

            def constructed(self) -> str:
                return self.constructed_by

        with deployed(kernel, Name, name="Recommender") as names:
            assert names.handle.plain.remote().result() == "app/Recommender#0 worker 1"
            assert names.handle.coroutine.remote().result() == "app/Recommender#0 loop"
            assert names.handle.constructed.remote().result() == "app/Recommender#0 start"

    def test_of_functions_need_no_loop(self, kernel: RealKernel) -> None:
        with deployed(kernel, lambda: 1) as function:
            function.handle.remote().result()
            assert not [
                thread
                for thread in threading.enumerate()
                if thread.name.startswith("app/") and thread.name.endswith(" loop")
            ]

    def test_are_daemons_that_tracers_know(self, kernel: RealKernel) -> None:
        class Look:
            def __call__(self) -> Any:
                thread = threading.current_thread()
                return thread.daemon, isinstance(thread, threading._DummyThread)

        with deployed(kernel, Look) as look:
            assert look.handle.remote().result() == (True, False)

    def test_of_coroutines_are_one_on_which_they_interleave(self) -> None:
        kernel = SimulatedKernel()
        most, inside = 0, 0

        class Sleep:
            async def __call__(self) -> None:
                nonlocal most, inside
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(5)
                inside -= 1

        def main() -> None:
            with deployed(kernel, Sleep, max_ongoing_requests=3) as sleep:
                for response in [sleep.handle.remote() for _ in range(9)]:
                    response.result()
                assert kernel.now() == 15

        kernel.run(main)
        assert most == 3


class Endless:
    """Streams that tell when they are stopped."""

    def __init__(self, ended: list[str]) -> None:
        self.ended = ended

    def items(self) -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            self.ended.append(threading.current_thread().name.split()[-2])

    async def async_items(self) -> AsyncIterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            self.ended.append("loop")

    async def items_from_a_coroutine(self) -> Iterator[int]:
        await asyncio.sleep(0)
        self.kept = self.items_on_the_loop()  # so that it is not closed by being dropped
        return self.kept

    def items_on_the_loop(self) -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            asyncio.get_running_loop()
            assert current_request() is not None
            self.ended.append("loop")

    def next(self) -> str:
        return "next"


class TestAnEndlessStream:
    @pytest.mark.parametrize("how", ["close", "cancel", "drop"])
    @pytest.mark.parametrize(
        ("body", "where"), [("items", "worker"), ("async_items", "loop"), ("items_from_a_coroutine", "loop")]
    )
    def test_is_stopped_where_it_runs_and_gives_its_slot_back(
        self, kernel: RealKernel, body: str, where: str, how: str
    ) -> None:
        ended: list[str] = []
        with deployed(kernel, Endless, ended, max_ongoing_requests=1) as endless:
            stream = endless.handle.options(stream=True, method_name=body).remote()
            assert [next(stream) for _ in range(100)] == list(range(100))
            if how == "close":
                stream.close()
                assert list(stream) == []
            elif how == "cancel":
                stream.cancel()
                with pytest.raises(RequestCancelledError):
                    next(stream)
                assert list(stream) == []
            del stream

            assert endless.handle.next.remote().result(timeout_s=20) == "next"
            assert ended == [where]

    def test_that_has_produced_all_it_had_is_closed_all_the_same(self, kernel: RealKernel) -> None:
        class Short:
            def items(self) -> Iterator[int]:
                yield from range(5)

        with deployed(kernel, Short) as short:
            stream = short.handle.options(stream=True).items.remote()
            assert next(stream) == 0
            channel = request_behind(stream).channel
            assert channel is not None
            wait_until(lambda: request_behind(stream).outcome is not None)

            stream.close()

            assert list(stream) == []
            assert len(channel) == 0


class TestACoroutine:
    def test_that_is_cancelled_is_interrupted_where_it_waits(self) -> None:
        kernel = SimulatedKernel()
        seen: list[object] = []

        class Sleep:
            async def __call__(self) -> None:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    seen.append(kernel.now())
                    raise

        def main() -> None:
            with deployed(kernel, Sleep) as sleep:
                response = sleep.handle.remote()
                kernel.waiter().wait(3)
                response.cancel()
                with pytest.raises(RequestCancelledError):
                    response.result()
                kernel.waiter().wait(1)
                assert sleep.router.statistics().ongoing == 0

        kernel.run(main)
        assert seen == [3]

    def test_that_swallows_its_cancellation_keeps_its_slot_until_it_returns(self) -> None:
        kernel = SimulatedKernel()
        seen: list[object] = []

        class Stubborn:
            async def __call__(self, other: Any) -> None:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    await asyncio.sleep(5)
                try:
                    await other
                except BaseException as error:
                    seen.append(type(error))

        def main() -> None:
            with deployed(kernel, Stubborn) as stubborn, deployed(kernel, lambda: 1, name="Other") as other:
                value = other.handle.remote()
                value.result()
                response = stubborn.handle.remote(Holder(value))
                kernel.waiter().wait(3)
                response.cancel()
                kernel.waiter().wait(4)
                assert stubborn.router.statistics().ongoing == 1
                kernel.waiter().wait(4)
                assert stubborn.router.statistics().ongoing == 0

        kernel.run(main)
        assert seen == [asyncio.CancelledError]

    def test_gives_way_to_a_timeout_of_its_own(self) -> None:
        kernel = SimulatedKernel()

        class Impatient:
            async def __call__(self) -> str:
                try:
                    async with asyncio.timeout(2):
                        await asyncio.sleep(60)
                except TimeoutError:
                    return f"gave up at {kernel.now():g}"
                return ""

        def main() -> None:
            with deployed(kernel, Impatient) as impatient:
                assert impatient.handle.remote().result() == "gave up at 2"

        kernel.run(main)

    def test_that_never_begins_leaves_no_warning(self, kernel: RealKernel) -> None:
        class Async:
            async def __call__(self) -> None: ...

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with deployed(kernel, Async, max_ongoing_requests=1) as deployment:
                for _ in range(50):
                    deployment.handle.remote().cancel()


class Holder:
    """Carries a response past the resolution of arguments; awaiting it awaits the response."""

    def __init__(self, response: Any) -> None:
        self.response = response

    def __await__(self) -> Any:
        return self.response.__await__()


class TestStopping:
    def test_waits_for_nobody_who_has_gone_and_names_who_has_not(self) -> None:
        kernel = SimulatedKernel()

        class Slow:
            def __call__(self) -> None:
                kernel.waiter().wait(1000)

        def main() -> None:
            slow = deploy(kernel, Slow)
            slow.handle.remote()
            kernel.waiter().wait(1)
            (seat,) = slow.seats
            slow.pool.close("the test is over")

            stuck = seat.replica.stop(5)

            assert [str(name) for name in stuck] != []
            assert all("app/D#0 worker 1" in name for name in stuck)
            kernel.waiter().wait(2000)

        kernel.run(main)

    def test_answers_a_coroutine_that_ignores_it(self) -> None:
        kernel = SimulatedKernel()

        class Stubborn:
            async def __call__(self) -> None:
                await asyncio.sleep(10_000)

        def main() -> None:
            endless = deploy(kernel, Stubborn)
            response = endless.handle.remote()
            kernel.waiter().wait(1)

            endless.take_down(5)

            assert isinstance(response.exception(), ReplicaDiedError)
            assert "graceful_shutdown_timeout_s" in str(response.exception())

        kernel.run(main)

    def test_refuses_what_comes_later(self, kernel: RealKernel) -> None:
        class Async:
            async def __call__(self) -> int:
                return 1

        with deployed(kernel, Async) as deployment:
            assert deployment.handle.remote().result() == 1
            deployment.seats[0].replica.stop(5)

            error = deployment.handle.remote().exception(timeout_s=10)

            assert isinstance(error, ReplicaDiedError)
            assert "app/D" in str(error)

    @pytest.mark.parametrize(
        ("call", "line"),
        [("__call__", "await asyncio.sleep(0.01)  # here"), ("block", "may_end.wait()  # there")],
    )
    def test_says_what_keeps_the_loop_from_ending_and_where_it_is(
        self, kernel: RealKernel, call: str, line: str
    ) -> None:
        may_end = threading.Event()

        class Stubborn:
            async def __call__(self) -> None:
                while not may_end.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0.01)  # here

            async def block(self) -> None:
                may_end.wait()  # there

        text = Path(__file__).read_text(encoding="utf-8").splitlines()
        number = next(n for n, each in enumerate(text, 1) if each.strip() == line)
        deployment = deploy(kernel, Stubborn)
        request = request_behind(deployment.handle.options(method_name=call).remote())
        wait_until(lambda: request.runner is not None)
        (seat,) = deployment.seats
        deployment.pool.close("the test is over")

        (stuck,) = seat.replica.stop(0.2)

        assert stuck.startswith("thread app/D#0 loop, which is at\n")
        assert f"{__file__}:{number}" in stuck or f'"{__file__}", line {number}' in stuck
        may_end.set()
        deployment.take_down()

    @pytest.mark.parametrize(
        "kind", ["a method", "a coroutine", "a failing method", "a finalizer", "an async finalizer"]
    )
    def test_frees_the_instance_without_the_cycle_collector(
        self, kernel: RealKernel, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Model:
            pass

        class Serving:
            def __init__(self) -> None:
                self.model = Model()

            def plain(self) -> None: ...

            async def coroutine(self) -> None: ...

            def failing(self) -> None:
                raise ValueError

        class Finalized(Serving):
            def __del__(self) -> None:
                models.append(weakref.ref(self))

        class AsyncFinalized(Serving):
            async def __del__(self) -> None:
                await asyncio.sleep(0)

        cls = {"a finalizer": Finalized, "an async finalizer": AsyncFinalized}.get(kind, Serving)
        call = {"a coroutine": "coroutine", "a failing method": "failing"}.get(kind, "plain")
        models: list[weakref.ref[Any]] = []
        deployment = deploy(kernel, cls)
        deployment.handle.options(method_name=call).remote().exception(timeout_s=10)
        models.append(weakref.ref(deployment.seats[0].replica.context.servable_object.model))

        gc.disable()
        try:
            deployment.take_down()
            wait_until(lambda: all(model() is None for model in models))
        finally:
            gc.enable()

        assert caplog.text == ""


class TestATaskFactoryThatRaises:
    """asyncio lets code of the user's make the tasks of a loop."""

    class Breaking:
        async def breaks(self) -> None:
            def refuse(*_: object, **__: object) -> Any:
                raise OSError("no tasks today")

            asyncio.get_running_loop().set_task_factory(refuse)

        async def mends(self) -> None:
            asyncio.get_running_loop().set_task_factory(None)

        async def check_health(self) -> None: ...

    def test_answers_the_request_and_keeps_no_slot(self, kernel: RealKernel) -> None:
        with deployed(kernel, self.Breaking, max_ongoing_requests=1) as deployment:
            deployment.handle.breaks.remote().result(timeout_s=10)

            for _ in range(3):
                error = deployment.handle.mends.remote().exception(timeout_s=10)
                assert isinstance(error, OSError)
            with pytest.raises(OSError, match="no tasks today"):
                deployment.seats[0].replica.check_health()
