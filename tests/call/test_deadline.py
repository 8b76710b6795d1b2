"""Deadlines: who has one, what is left of it, and what happens when it is over. Mostly in virtual time."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.runtime.test_deadlock import Actor, Stage, anothing, nothing, play
from threadserve import futures
from threadserve.call.response import request_of
from threadserve.errors import (
    Cancelled,
    DeploymentUnavailableError,
    RequestCancelledError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from threadserve.handle import DeploymentHandle


def parts_of(error: BaseException | None) -> tuple[float, float, float]:
    """Return the seconds for arguments, queue and body, having seen that they make the whole."""
    assert isinstance(error, RequestTimeoutError)
    parts = error.inputs_s, error.queued_s, error.running_s
    assert sum(parts) == pytest.approx(error.elapsed_s)
    return tuple(round(part, 6) for part in parts)  # type: ignore[return-value]


class TestExpiry:
    def test_answers_a_running_def_at_once_and_keeps_its_slot_until_it_returns(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            seen: list[bool] = []

            def body() -> str:
                seen.append(serve.cancelled())
                stage.sleep(5)
                seen.append(serve.cancelled())
                with pytest.raises(Cancelled):
                    serve.check_cancelled()
                return "too late"

            answer = one.options(timeout_s=2).do.remote(body)
            following = one.do.remote(lambda: stage.kernel.now())

            error = answer.exception()
            assert stage.kernel.now() == 2
            assert parts_of(error) == (0, 0, 2)
            assert following.result() == 5
            assert seen == [False, True]
            assert answer.exception() is not None

        play(story)

    def test_cancels_a_coroutine_at_its_await_and_gives_its_slot_back(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            ended: list[float] = []

            async def body() -> None:
                try:
                    await asyncio.sleep(50)
                except asyncio.CancelledError:
                    ended.append(stage.kernel.now())
                    raise

            answer = one.options(timeout_s=2).ado.remote(body)
            following = one.ado.remote(anothing)

            assert parts_of(answer.exception()) == (0, 0, 2)
            assert following.result() == "nothing"
            assert ended == [2]
            assert stage.kernel.now() == 2

        play(story)

    @pytest.mark.parametrize("method", ["do", "ado"])
    def test_in_the_queue_means_that_the_body_never_begins(self, method: str) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            begun: list[str] = []

            async def abody() -> None:
                begun.append("ado")

            busy = one.do.remote(lambda: stage.sleep(5))
            body: Any = abody if method == "ado" else lambda: begun.append("do")
            answer = getattr(one.options(timeout_s=2), method).remote(body)

            assert parts_of(answer.exception()) == (0, 2, 0)
            assert stage.kernel.now() == 2
            busy.result()
            assert one.do.remote(nothing).result() == "nothing"
            assert begun == []

        play(story)

    def test_while_it_waits_for_its_arguments_leaves_these_alone(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")
            argument = one.do.remote(lambda: (stage.sleep(5), "value")[1])

            answer = other.options(timeout_s=2).do.remote(lambda value: value, argument)

            assert parts_of(answer.exception()) == (2, 0, 0)
            assert argument.result() == "value"
            assert not request_of(argument)._subscribers

        play(story)

    def test_says_where_the_time_went(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")
            argument = other.do.remote(lambda: stage.sleep(1))
            one.do.remote(lambda: stage.sleep(3))

            answer = one.options(timeout_s=7).do.remote(lambda value: stage.sleep(50), argument)
            error = answer.exception()

            assert parts_of(error) == (1, 2, 4)
            assert "timed out after 7 s, while running" in str(error)
            assert "(1 s for its arguments, 2 s queued, 4 s running)" in str(error)
            assert "one/one.do" in str(error)
            assert answer.request_id in str(error)
            assert isinstance(error, TimeoutError)
            assert isinstance(error, serve.RequestError)
            assert (error.deployment, error.request_id) == ("one/one", answer.request_id)

        play(story, seeds=5)

    @pytest.mark.parametrize("method", ["items", "aitems"])
    def test_stops_a_stream_and_its_producer(self, method: str) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            ended: list[float] = []

            def produce() -> Iterator[int]:
                try:
                    for number in range(100):
                        yield number
                        stage.sleep(1)
                finally:
                    ended.append(stage.kernel.now())

            async def aproduce() -> AsyncIterator[int]:
                try:
                    for number in range(100):
                        yield number
                        await asyncio.sleep(1)
                finally:
                    ended.append(stage.kernel.now())

            handle: Any = one.options(stream=True, timeout_s=2.5)
            stream = iter(getattr(handle, method).remote(produce if method == "items" else aproduce))

            assert [next(stream), next(stream), next(stream)] == [0, 1, 2]
            with pytest.raises(RequestTimeoutError):
                next(stream)
            assert stage.kernel.now() == 2.5
            assert list(stream) == []
            assert one.do.remote(nothing).result() == "nothing"
            assert ended in ([2.5], [3])

        play(story)

    def test_wakes_a_producer_that_waits_for_its_reader(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(stream_buffer_size=2)

            stream = one.options(stream=True, timeout_s=2).items.remote(lambda: iter(range(100)))

            assert one.do.remote(nothing).result() == "nothing"
            assert stage.kernel.now() == 2
            with pytest.raises(RequestTimeoutError):
                list(stream)

        play(story)

    def test_of_a_call_cancels_all_that_it_has_called(self) -> None:
        def story(stage: Stage) -> None:
            one, two, three = (stage.deploy(name) for name in ("one", "two", "three"))
            stopped: list[str] = []
            answers: list[Any] = []

            def leaf() -> None:
                while not serve.cancelled():
                    stage.sleep(0.5)
                stopped.append("leaf")

            def middle() -> None:
                answers.append(three.do.remote(leaf))
                try:
                    answers[-1].result()
                except Cancelled:
                    stopped.append("middle")
                    raise

            def root() -> None:
                answers.append(two.do.remote(middle))
                try:
                    answers[0].result()
                except Cancelled:
                    stopped.append("root")
                    raise

            assert parts_of(one.options(timeout_s=2).do.remote(root).exception()) == (0, 0, 2)
            for handle in (one, two, three):
                assert handle.do.remote(nothing).result() == "nothing"
            assert sorted(stopped) == ["leaf", "middle", "root"]
            assert stage.kernel.now() < 3
            for answer in answers:
                assert isinstance(answer.exception(), (RequestTimeoutError, RequestCancelledError))

        play(story)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["def", "coroutine", "queued", "arguments"])
    def test_at_the_very_moment_of_the_answer_is_either(self, kind: str) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")
            began: list[float] = []

            async def abody() -> str:
                began.append(stage.kernel.now())
                await asyncio.sleep(2)
                return "value"

            def body(seconds: float, _: object = None) -> str:
                began.append(stage.kernel.now())
                stage.sleep(seconds)
                return "value"

            hurried = one.options(timeout_s=2)
            if kind == "coroutine":
                answer = hurried.ado.remote(abody)
            elif kind == "def":
                answer = hurried.do.remote(body, 2)
            elif kind == "queued":
                one.do.remote(lambda: stage.sleep(2))
                answer = hurried.do.remote(body, 0)
            else:
                answer = hurried.do.remote(body, 0, other.do.remote(lambda: stage.sleep(2)))

            error = answer.exception()
            if error is None:
                assert answer.result() == "value"
                assert len(began) == 1
            else:
                assert sum(parts_of(error)) == 2
                assert len(began) <= 1
            assert one.do.remote(nothing).result() == "nothing"
            assert one.ado.remote(anothing).result() == "nothing"

        play(story, seeds=60)


class TestInheritance:
    def test_a_child_has_what_its_parent_has_left(self) -> None:
        def story(stage: Stage) -> None:
            one, two, three = (stage.deploy(name) for name in ("one", "two", "three"))

            def middle() -> list[float]:
                stage.sleep(2)
                return [serve.remaining(), *three.do.remote(lambda: [serve.remaining()]).result()]

            def root() -> list[float]:
                stage.sleep(1)
                return [serve.remaining(), *two.do.remote(middle).result()]

            assert one.options(timeout_s=10).do.remote(root).result() == [9, 7, 7]

        play(story, seeds=5)

    @pytest.mark.parametrize(
        ("own", "left"),
        [(None, 10), (3, 3), (30, 10), (math.inf, math.inf)],
        ids=["none", "shorter", "longer", "inf"],
    )
    def test_a_child_s_own_timeout_shortens_it_and_only_infinity_lifts_it(
        self, own: float | None, left: float
    ) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def root() -> float:
                return other.options(timeout_s=own).do.remote(serve.remaining).result()  # type: ignore[no-any-return]

            assert one.options(timeout_s=10).do.remote(root).result() == left

        play(story, seeds=5)

    def test_a_detached_child_outlives_the_expiry_of_its_parent_but_not_its_cancellation(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other", slots=2)
            children: list[Any] = []

            def root() -> None:
                child = other.options(timeout_s=math.inf).do.remote(lambda: (stage.sleep(5), "done")[1])
                children.append(child)
                child.result()

            expired = one.options(timeout_s=2).do.remote(root)
            assert isinstance(expired.exception(), RequestTimeoutError)
            cancelled = one.options(timeout_s=20).do.remote(root)
            stage.sleep(1)
            cancelled.cancel()

            assert children[0].result() == "done"
            assert isinstance(children[1].exception(), RequestCancelledError)

        play(story)

    def test_a_child_that_its_parent_did_not_wait_for_keeps_the_deadline(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")
            children: list[Any] = []

            one.options(timeout_s=5).do.remote(
                lambda: children.append(other.do.remote(lambda: stage.sleep(50)))
            ).result()

            assert isinstance(children[0].exception(), RequestTimeoutError)
            assert stage.kernel.now() == 5

        play(story)

    def test_a_timeout_of_result_bounds_nothing(self) -> None:
        def story(stage: Stage) -> None:
            answer = stage.deploy().do.remote(lambda: (serve.remaining(), stage.sleep(5))[0])

            with pytest.raises(TimeoutError) as raised:
                answer.result(timeout_s=1)

            assert not isinstance(raised.value, RequestTimeoutError)
            assert answer.result() == math.inf

        play(story, seeds=5)

    def test_options_add_to_one_another(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            hurried = one.options(timeout_s=5)

            assert hurried.options(method_name="do").remote(serve.remaining).result() == 5
            assert hurried.options(timeout_s=None).do.remote(serve.remaining).result() == 5
            assert hurried.options(timeout_s=3).do.remote(serve.remaining).result() == 3
            assert one.do.remote(serve.remaining).result() == math.inf

        play(story, seeds=3)


class TestDeadlineBlock:
    """In bodies: there the clock is the simulated one."""

    def test_bounds_the_calls_made_inside_and_none_made_after_it(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def body() -> list[float]:
                seen = [serve.remaining()]
                with serve.deadline(5):
                    seen += [serve.remaining(), other.do.remote(serve.remaining).result()]
                    stage.sleep(1)
                    seen += [serve.remaining(), other.do.remote(serve.remaining).result()]
                return [*seen, serve.remaining(), other.do.remote(serve.remaining).result()]

            assert one.do.remote(body).result() == [math.inf, 5, 5, 4, 4, math.inf, math.inf]

        play(story, seeds=5)

    def test_nests_and_the_earliest_counts(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def left() -> float:
                found = other.do.remote(serve.remaining).result()
                assert found == serve.remaining()
                return found  # type: ignore[no-any-return]

            def body() -> list[float]:
                seen = []
                with serve.deadline(5):
                    with serve.deadline(2):
                        seen.append(left())
                    with serve.deadline(20):
                        seen.append(left())
                    with serve.deadline(math.inf):
                        seen.append(left())
                return [*seen, left()]

            assert one.options(timeout_s=9).do.remote(body).result() == [2, 5, 5, 9]

        play(story, seeds=5)

    def test_is_lifted_by_an_infinite_timeout(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def body() -> float:
                with serve.deadline(5):
                    return other.options(timeout_s=math.inf).do.remote(serve.remaining).result()  # type: ignore[no-any-return]

            assert one.do.remote(body).result() == math.inf

        play(story, seeds=5)

    def test_does_not_interrupt_the_block_itself(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def body() -> tuple[str, float]:
                with serve.deadline(2):
                    slow = other.do.remote(lambda: stage.sleep(50))
                    stage.sleep(5)
                    assert serve.remaining() == 0
                    with pytest.raises(RequestTimeoutError):
                        slow.result()
                    return "went on", stage.kernel.now()

            assert one.do.remote(body).result() == ("went on", 5)

        play(story)

    @pytest.mark.parametrize("method", ["do", "ado"])
    def test_that_is_over_lets_no_further_call_begin(self, method: str) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")
            begun: list[str] = []

            async def abegin() -> None:
                begun.append("ado")

            def body() -> None:
                with serve.deadline(2):
                    stage.sleep(3)
                    call: Any = getattr(other, method)
                    late = call.remote(abegin if method == "ado" else lambda: begun.append("do"))
                    assert parts_of(late.exception()) == (0, 0, 0)

            one.do.remote(body).result()
            assert begun == []

        play(story)

    def test_belongs_to_the_task_that_has_set_it(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other", slots=10)

            async def within(seconds: float) -> tuple[float, float]:
                with serve.deadline(seconds):
                    await asyncio.sleep(1)
                    return serve.remaining(), await other.do.remote(serve.remaining)

            async def body() -> Any:
                found = await asyncio.gather(within(5), within(3), within(math.inf))
                return found, serve.remaining()

            assert one.ado.remote(body).result() == ([(4, 4), (2, 2), (math.inf, math.inf)], math.inf)

        play(story, seeds=5)

    def test_bounds_the_reading_of_a_stream(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def produce() -> Iterator[int]:
                for number in range(100):
                    stage.sleep(1)
                    yield number

            def body() -> list[int]:
                seen: list[int] = []
                with serve.deadline(3.5), pytest.raises(RequestTimeoutError):
                    seen.extend(other.options(stream=True).items.remote(produce))
                return seen

            assert one.do.remote(body).result() == [0, 1, 2]
            assert stage.kernel.now() == 3.5

        play(story, seeds=5)

    def test_is_not_seen_by_the_body_of_a_call_as_its_own(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def child() -> float:
                # Its deadline is the request's, which one may lift; not a bound that it has set itself.
                return one.options(timeout_s=math.inf).ado.remote(left).result()  # type: ignore[no-any-return]

            async def left() -> float:
                return serve.remaining()

            def body() -> Any:
                with serve.deadline(5):
                    answer = other.do.remote(child)
                return answer

            one_more = stage.deploy("root", slots=2)
            holder: list[Any] = []
            one_more.do.remote(lambda: holder.append(body())).result()
            assert holder[0].result() == math.inf

        play(story, seeds=5)


class TestInPlainCode:
    """On real threads and the real clock, as far as it needs them."""

    def test_there_is_no_deadline_and_nothing_is_cancelled(self) -> None:
        assert serve.remaining() == math.inf
        assert serve.cancelled() is False
        serve.check_cancelled()

    def test_a_block_says_what_is_left(self) -> None:
        with serve.deadline(1000):
            assert 999 < serve.remaining() <= 1000
            with serve.deadline(10):
                assert 9 < serve.remaining() <= 10
            assert 999 < serve.remaining() <= 1000
        assert serve.remaining() == math.inf

    def test_an_exception_leaves_the_block_as_it_leaves_any_other(self) -> None:
        with pytest.raises(OSError, match="mine"), serve.deadline(1000):
            raise OSError("mine")
        assert serve.remaining() == math.inf

    def test_a_block_bounds_calls(self) -> None:
        actor: Any = serve.deployment(Actor)
        release = threading.Event()
        with serve.running(actor.bind()) as one:
            try:
                with serve.deadline(0.02):
                    answer = one.do.remote(release.wait)
                with pytest.raises(RequestTimeoutError):
                    answer.result()
                assert one.do.remote(serve.remaining).result() == math.inf
            finally:
                release.set()

    def test_a_call_of_all_at_once_is_over_together(self) -> None:
        actor: Any = serve.deployment(Actor).options(max_ongoing_requests=2)
        release = threading.Event()
        with serve.running(actor.bind()) as one:
            try:
                with serve.deadline(0.02):
                    answers = [one.do.remote(release.wait) for _ in range(10)]
                found = futures.gather(*answers, return_exceptions=True).result()
            finally:
                release.set()

        assert {type(error) for error in found} == {RequestTimeoutError}
        assert [error.running_s > 0 for error in found].count(True) == 2


NO_TIMEOUTS: list[Any] = [0, 0.0, -1, -math.inf, math.nan, True, "1", b"1", [1], 1j]


class TestBadInputs:
    def test_a_number_beyond_every_float_is_none(self) -> None:
        with pytest.raises(ValueError, match="not 1000"):
            serve.deadline(10**400).__enter__()

    @pytest.mark.parametrize("timeout", [*NO_TIMEOUTS, None])
    def test_a_block_refuses_what_is_no_time(self, timeout: Any) -> None:
        with pytest.raises(
            ValueError, match=r"serve\.deadline: the timeout must be a positive number of seconds"
        ):
            serve.deadline(timeout).__enter__()
        assert serve.remaining() == math.inf

    @pytest.mark.parametrize("timeout", NO_TIMEOUTS)
    def test_a_handle_refuses_what_is_no_time(self, timeout: Any) -> None:
        def story(stage: Stage) -> None:
            one: DeploymentHandle[Any] = stage.deploy()

            with pytest.raises(
                ValueError, match=r"one/one.*positive number of seconds or math\.inf"
            ) as raised:
                one.options(timeout_s=timeout)

            assert repr(timeout) in str(raised.value)

        play(story, seeds=1)

    @pytest.mark.parametrize("timeout", [1e-300, 5e-324])
    def test_hardly_any_time_is_a_time(self, timeout: float) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            begun: list[Callable[[], object]] = []
            stage.sleep(1)  # and a second later so little time is none

            error = one.options(timeout_s=timeout).do.remote(lambda: begun.append(nothing)).exception()

            assert isinstance(error, RequestTimeoutError)
            assert begun == []

        play(story, seeds=20)

    def test_all_the_time_of_the_world_is_a_time(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            assert one.options(timeout_s=1.7e308).do.remote(serve.remaining).result() == 1.7e308
            assert one.options(timeout_s=10**9).do.remote(nothing).result() == "nothing"

        play(story, seeds=3)


def test_a_deadline_that_cannot_be_kept_is_the_answer_of_its_request() -> None:
    def story(stage: Stage) -> None:
        one = stage.deploy()
        call_at = stage.kernel.call_at

        def refuse(deadline: float, fn: Callable[[], object]) -> Any:
            raise RuntimeError("can't start new thread")

        stage.kernel.call_at = refuse  # type: ignore[method-assign]
        error = one.options(timeout_s=5).do.remote(nothing).exception()
        stage.kernel.call_at = call_at  # type: ignore[method-assign]

        assert isinstance(error, DeploymentUnavailableError)
        assert "deadline that cannot be kept: can't start new thread" in str(error)
        one.options(timeout_s=5).do.remote(nothing).result()

    play(story, seeds=5)
