"""How code waits for answers: in plain code, in bodies on threads, in coroutines, and beside a body."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.runtime.test_deadlock import Stage, anothing, nothing, play
from threadserve.call.blocking import block, suspend, wait_for, wait_for_async
from threadserve.call.request import Request, current_request
from threadserve.call.response import request_of
from threadserve.concurrency.loops import LoopWaiter
from threadserve.concurrency.outcome import Value
from threadserve.errors import Cancelled, RequestCancelledError

if TYPE_CHECKING:
    from threadserve.handle import DeploymentHandle


def running() -> Request:
    """Return the request whose body asks."""
    request = current_request()
    assert request is not None
    return request


class TestInPlainCode:
    def test_a_wait_is_only_a_wait(self) -> None:
        def story(stage: Stage) -> None:
            waiter = stage.kernel.waiter()
            stage.kernel.call_at(5, waiter.set)

            assert block(waiter) is True
            assert block(stage.kernel.waiter(), 2) is False
            assert stage.kernel.now() == 7

        play(story, seeds=3)

    @pytest.mark.parametrize(
        ("timeout", "is_answered"), [(0, False), (-1, False), (4, False), (6, True), (math.inf, True)]
    )
    def test_an_answer_is_waited_for_as_long_as_asked(self, timeout: float, is_answered: bool) -> None:
        def story(stage: Stage) -> None:
            request = request_of(stage.deploy().do.remote(lambda: stage.sleep(5)))

            assert wait_for(request, timeout) is is_answered
            assert stage.kernel.now() == min(5, max(0, timeout))

        play(story, seeds=3)

    def test_an_answer_that_is_there_is_not_waited_for(self) -> None:
        def story(stage: Stage) -> None:
            answer = stage.deploy().do.remote(nothing)
            answer.result()

            assert wait_for(request_of(answer), 0) is True
            assert wait_for(request_of(answer), None) is True

        play(story, seeds=3)

    def test_who_gives_up_leaves_no_trace(self) -> None:
        def story(stage: Stage) -> None:
            request = request_of(stage.deploy().do.remote(lambda: stage.sleep(5)))

            for _ in range(3):
                assert wait_for(request, 1) is False

            assert not request._subscribers
            assert wait_for(request) is True

        play(story, seeds=3)

    def test_ctrl_c_cancels_what_is_waited_for(self) -> None:
        class Interrupted:
            def wait(self, timeout: float | None = None) -> bool:
                raise KeyboardInterrupt

            def set(self) -> None: ...

        def story(stage: Stage) -> None:
            one = stage.deploy(inline=False)
            busy, answer = one.do.remote(lambda: stage.sleep(5)), one.do.remote(nothing)
            request = request_of(answer)
            router: Any = request.router
            kernel: Any = router.kernel
            stage.sleep(1)  # the worker has come, with a waiter of its own
            router.kernel = SimpleNamespace(waiter=Interrupted, now=kernel.now)

            with pytest.raises(KeyboardInterrupt):
                wait_for(request)
            router.kernel = kernel

            assert isinstance(answer.exception(), RequestCancelledError)
            assert not request._subscribers
            assert busy.exception() is None

        play(story, seeds=3)


class TestInABody:
    def test_a_cancelled_request_ends_the_wait_of_its_body(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one", inline=False), stage.deploy("other", inline=False)
            ended: list[tuple[float, type]] = []

            def body() -> None:
                try:
                    wait_for(request_of(other.do.remote(lambda: stage.sleep(50))))
                except Cancelled as error:
                    ended.append((stage.kernel.now(), type(error)))
                    raise

            answer = one.do.remote(body)
            stage.sleep(5)
            answer.cancel()

            assert one.do.remote(nothing).result() == "nothing"
            assert ended == [(5, Cancelled)]

        play(story)

    @pytest.mark.parametrize("timeout", [None, 10])
    def test_a_wait_in_a_cancelled_request_does_not_begin(self, timeout: float | None) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(inline=False)
            seen: list[str] = []

            def body() -> None:
                stage.sleep(5)
                try:
                    block(stage.kernel.waiter(), timeout)
                except Cancelled:
                    seen.append(f"at {stage.kernel.now():g}")
                    raise

            answer = one.do.remote(body)
            stage.sleep(1)
            answer.cancel()
            one.do.remote(nothing).result()

            assert seen == ["at 5"]

        play(story)

    def test_an_answer_that_is_there_is_a_checkpoint_all_the_same(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(inline=False)
            there = one.do.remote(nothing)
            there.result()
            seen = []

            def body() -> None:
                stage.sleep(5)
                with pytest.raises(Cancelled):
                    wait_for(request_of(there))
                seen.append("stopped")

            answer = one.do.remote(body)
            stage.sleep(1)
            answer.cancel()
            one.do.remote(nothing).result()

            assert seen == ["stopped"]

        play(story)

    def test_a_wait_is_shown_with_what_it_needs_while_it_lasts(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one", inline=False), stage.deploy("other", inline=False)
            needed: list[Request] = []

            def body() -> None:
                needed.append(request_of(other.do.remote(lambda: stage.sleep(5))))
                wait_for(needed[0])
                assert running().wait is None
                stage.sleep(5)

            answer = one.do.remote(body)
            stage.sleep(1)
            wait = request_of(answer).wait
            assert wait is not None
            assert list(wait.needs) == needed
            assert wait.since == 0
            assert not wait.is_ended()
            stage.sleep(5)

            assert request_of(answer).wait is None
            assert wait.is_ended()
            answer.result()

        play(story)

    @pytest.mark.parametrize(
        "why", ["a timeout", "a deadline of the body's", "nothing to need", "another thread"]
    )
    def test_a_wait_that_may_end_by_itself_is_not_shown(self, why: str) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one", inline=False), stage.deploy("other", inline=False)

            def body() -> None:
                request = request_of(other.do.remote(lambda: stage.sleep(5)))
                if why == "a timeout":
                    wait_for(request, 100)
                elif why == "nothing to need":
                    waiter = stage.kernel.waiter()
                    stage.kernel.call_at(5, waiter.set)
                    block(waiter)
                elif why == "another thread":
                    stage.in_a_thread(lambda: wait_for(request)).join()
                else:
                    wait_for(request)

            answer = (one.options(timeout_s=100) if why == "a deadline of the body's" else one).do.remote(
                body
            )
            stage.sleep(1)

            assert request_of(answer).wait is None
            answer.result()
            assert stage.kernel.now() == 5

        play(story, seeds=5)

    def test_an_error_that_the_wait_is_ended_with_is_raised(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one", inline=False), stage.deploy("other", inline=False)

            def body() -> str:
                with pytest.raises(OSError, match="no use"):
                    wait_for(request_of(other.do.remote(lambda: stage.sleep(50))))
                return f"at {stage.kernel.now():g}"

            answer = one.do.remote(body)
            stage.sleep(5)
            wait = request_of(answer).wait
            assert wait is not None
            wait.fail(OSError("no use"))

            assert answer.result() == "at 5"

        play(story)

    def test_a_thread_that_outlives_the_body_waits_on(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one", inline=False), stage.deploy("other", inline=False)
            seen: list[tuple[float, bool]] = []

            def body() -> str:
                request = request_of(other.do.remote(lambda: stage.sleep(10)))
                stage.in_a_thread(lambda: seen.append((stage.kernel.now(), wait_for(request))))
                stage.sleep(5)
                return "over"

            assert one.do.remote(body).result() == "over"
            stage.sleep(10)

            assert seen == [(0, True)]

        play(story)

    def test_a_thread_beside_the_body_is_stopped_with_it(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one", inline=False), stage.deploy("other", inline=False)
            seen: list[float] = []

            def wait_in_a_thread(request: Request) -> None:
                with pytest.raises(Cancelled):
                    wait_for(request)
                seen.append(stage.kernel.now())

            def body() -> None:
                request = request_of(other.do.remote(lambda: stage.sleep(50)))
                stage.in_a_thread(lambda: wait_in_a_thread(request))
                stage.sleep(10)

            answer = one.do.remote(body)
            stage.sleep(5)
            answer.cancel()
            stage.sleep(1)

            assert seen == [5]

        play(story)

    def test_the_wait_of_a_thread_beside_it_leaves_the_body_s_own_to_be_seen(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one", inline=False), stage.deploy("other", slots=2, inline=False)
            own: list[Request] = []

            def body() -> None:
                own.append(request_of(other.do.remote(lambda: stage.sleep(10))))
                beside = request_of(other.do.remote(lambda: stage.sleep(5)))
                stage.in_a_thread(lambda: wait_for(beside))
                wait_for(own[0])

            answer = one.do.remote(body)
            for moment in (1, 6):  # while both wait, and when the other one has gone
                stage.sleep_until(moment)
                wait = request_of(answer).wait
                assert wait is not None
                assert list(wait.needs) == own
            answer.result()

        play(story)


class TestInACoroutine:
    def test_a_wait_is_shown_with_what_it_needs_while_it_lasts(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            async def body() -> None:
                await wait_for_async(request_of(other.do.remote(lambda: stage.sleep(5))))
                assert running().wait is None
                await asyncio.sleep(5)

            answer = one.ado.remote(body)
            stage.sleep(1)
            wait = request_of(answer).wait
            assert wait is not None
            assert [need.router.deployment for need in wait.needs] == ["other"]
            stage.sleep(5)

            assert request_of(answer).wait is None
            answer.result()

        play(story)

    @pytest.mark.parametrize("why", ["a task of its own", "a deadline of the body's", "nothing to need"])
    def test_a_wait_that_may_end_by_itself_is_not_shown(self, why: str) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            async def body() -> None:
                request = request_of(other.do.remote(lambda: stage.sleep(5)))
                if why == "a task of its own":
                    await asyncio.create_task(wait_for_async(request))
                elif why == "nothing to need":
                    loop = asyncio.get_running_loop()
                    future: asyncio.Future[None] = loop.create_future()
                    loop.call_later(5, future.set_result, None)
                    await suspend(LoopWaiter(loop, future))
                else:
                    await wait_for_async(request)

            answer = (one.options(timeout_s=100) if why == "a deadline of the body's" else one).ado.remote(
                body
            )
            stage.sleep(1)

            assert request_of(answer).wait is None
            answer.result()
            assert stage.kernel.now() == 5

        play(story, seeds=5)

    def test_who_gives_up_leaves_no_trace_and_cancels_nothing(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            async def body() -> str:
                request = request_of(other.do.remote(lambda: stage.sleep(5)))
                for _ in range(3):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(1):
                            await wait_for_async(request)
                assert not request._subscribers
                assert running().wait is None
                await wait_for_async(request)
                return f"{type(request.outcome).__name__} at {stage.kernel.now():g}"

            assert one.ado.remote(body).result() == f"{Value.__name__} at 5"

        play(story)

    def test_a_cancelled_request_ends_the_wait_of_its_body(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")
            ended: list[float] = []

            async def body() -> None:
                try:
                    await wait_for_async(request_of(other.do.remote(lambda: stage.sleep(50))))
                finally:
                    ended.append(stage.kernel.now())

            answer = one.ado.remote(body)
            stage.sleep(5)
            answer.cancel()

            assert one.ado.remote(anothing).result() == "nothing"
            assert ended == [5]

        play(story)

    def test_an_error_that_the_wait_is_ended_with_is_raised(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            async def body() -> str:
                with pytest.raises(OSError, match="no use"):
                    await wait_for_async(request_of(other.do.remote(lambda: stage.sleep(50))))
                return f"at {stage.kernel.now():g}"

            answer = one.ado.remote(body)
            stage.sleep(5)
            wait = request_of(answer).wait
            assert wait is not None
            wait.fail(OSError("no use"))

            assert answer.result() == "at 5"

        play(story)

    def test_an_answer_wakes_coroutines_of_several_loops(self) -> None:
        def story(stage: Stage) -> None:
            homes = [stage.deploy(f"home {number}") for number in range(3)]
            answer = stage.deploy("one").do.remote(lambda: stage.sleep(5))

            async def wait_here() -> float:
                await wait_for_async(request_of(answer))
                return stage.kernel.now()

            def ask(home: DeploymentHandle[Any]) -> Any:
                return home.ado.remote(wait_here)

            assert [waiting.result() for waiting in [ask(home) for home in homes]] == [5, 5, 5]

        play(story)
