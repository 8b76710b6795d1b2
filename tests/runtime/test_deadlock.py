"""Waits that can never end are explained, and no other wait ever is.

Nearly everything here is played on the seeded simulator, in virtual time, under many orders of steps. The one
deployment of all stories does what it is told, so that each story tells its own bodies.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import pickle
import threading
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.doubles import LateSimulation
from threadserve import futures
from threadserve.app.graph import build
from threadserve.call import lookout
from threadserve.errors import DeadlockError, DeploymentUnavailableError, RequestTimeoutError
from threadserve.runtime.controller import Controller
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from threadserve.handle import DeploymentHandle

SOON = 4 * lookout.PATIENCE_S
"""A deadlock is explained within this time."""


class Actor:
    """Does what it is told."""

    def __init__(self, prepare: Callable[[], object] = lambda: None) -> None:
        prepare()

    def do(self, deed: Callable[..., Any], *args: Any) -> Any:
        return deed(*args)

    async def ado(self, deed: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return await deed(*args)

    def items(self, deed: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        yield from deed()

    async def aitems(self, deed: Callable[[], AsyncIterator[Any]]) -> AsyncIterator[Any]:
        async for item in deed():
            yield item


class Stage:
    """Where a story is played: a runtime on a simulated kernel."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self.kernel = kernel
        self.controller = Controller(kernel)

    def deploy(
        self,
        name: str = "one",
        slots: int = 1,
        *,
        prepare: Callable[[], object] = lambda: None,
        **options: Any,
    ) -> DeploymentHandle[Any]:
        """Run an app of one deployment, both called `name`; again, to replace it."""
        actor: Any = serve.deployment(Actor).options(name=name, max_ongoing_requests=slots, **options)
        return self.controller.deploy(build(actor.bind(prepare), name))

    def sleep(self, seconds: float) -> None:
        self.kernel.waiter().wait(seconds)

    def sleep_until(self, moment: float) -> None:
        self.sleep(moment - self.kernel.now())

    def in_a_thread(self, deed: Callable[[], object]) -> Any:
        """Start a thread as user code does, with the context of the starter."""
        context = copy_context()
        return self.kernel.spawn("a thread of the user's", lambda: context.run(deed))


def play(story: Callable[[Stage], object], seeds: int = 15) -> None:
    """Play a story under several orders of steps, and bring the curtain down."""

    def run(kernel: SimulatedKernel) -> None:
        stage = Stage(kernel)
        story(stage)
        stage.controller.shutdown()

    explore(run, seeds)


def nothing() -> str:
    return "nothing"


async def anothing() -> str:
    return "nothing"


# ---- what is a deadlock


class TestOneDeployment:
    def test_a_method_that_waits_for_its_own_exhausted_deployment(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            with pytest.raises(DeadlockError):
                one.do.remote(lambda: one.do.remote(nothing).result()).result()

            assert stage.kernel.now() < SOON
            assert one.do.remote(nothing).result() == "nothing"

        play(story)

    def test_a_coroutine_that_awaits_its_own_exhausted_deployment(self) -> None:
        async def call_yourself(one: DeploymentHandle[Any]) -> Any:
            return await one.ado.remote(anothing)

        def story(stage: Stage) -> None:
            one = stage.deploy()

            with pytest.raises(DeadlockError):
                one.ado.remote(call_yourself, one).result()

            assert stage.kernel.now() < SOON
            assert one.ado.remote(anothing).result() == "nothing"

        play(story)

    def test_a_recursion_that_is_deeper_than_there_are_slots(self) -> None:
        def story(stage: Stage) -> None:
            deep = stage.deploy(slots=5)

            def descend(depth: int) -> int:
                return depth and deep.do.remote(descend, depth - 1).result() + 1

            assert deep.do.remote(descend, 4).result() == 4
            with pytest.raises(DeadlockError):
                deep.do.remote(descend, 5).result()
            assert deep.do.remote(descend, 4).result() == 4

        play(story)

    def test_as_many_callers_of_themselves_as_there_are_slots_of_all_replicas(self) -> None:
        def story(stage: Stage) -> None:
            wide = stage.deploy(slots=2, num_replicas=2)
            present = [0]

            def call_yourself() -> Any:
                present[0] += 1
                while present[0] < 4:
                    stage.sleep(0.01)
                return wide.do.remote(nothing).result()

            answers = [wide.do.remote(call_yourself) for _ in range(4)]
            errors = [answer.exception() for answer in answers]

            assert [type(error) for error in errors].count(DeadlockError) == 1
            assert errors.count(None) == 3

        play(story)

    def test_a_body_that_waits_for_its_own_answer(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(slots=3)
            mirror: list[Any] = []

            def look() -> Any:
                while not mirror:
                    stage.sleep(0.01)
                return mirror[0].result()

            mirror.append(one.do.remote(look))

            with pytest.raises(DeadlockError):
                mirror[0].result()

        play(story)

    def test_a_coroutine_that_awaits_its_own_answer(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(slots=3)
            mirror: list[Any] = []

            async def look() -> Any:
                await asyncio.sleep(0.01)
                return await mirror[0]

            mirror.append(one.ado.remote(look))

            with pytest.raises(DeadlockError):
                mirror[0].result()

        play(story)


class TestSeveralDeployments:
    def test_a_chain_of_calls_that_comes_back_to_where_it_began(self) -> None:
        def story(stage: Stage) -> None:
            first, second, third = (stage.deploy(name) for name in ("first", "second", "third"))

            def back() -> Any:
                return first.do.remote(nothing).result()

            def on() -> Any:
                return third.do.remote(back).result()

            with pytest.raises(DeadlockError):
                first.do.remote(lambda: second.do.remote(on).result()).result()

            assert [each.do.remote(nothing).result() for each in (first, second, third)] == ["nothing"] * 3

        play(story)

    @pytest.mark.parametrize("kind", ["threads", "coroutines", "one of each"])
    def test_two_that_wait_for_each_other_with_all_slots_held(self, kind: str) -> None:
        def story(stage: Stage) -> None:
            left, right = stage.deploy("left"), stage.deploy("right")
            inside: list[str] = []

            def cross(me: str, other: DeploymentHandle[Any]) -> Any:
                inside.append(me)
                while len(inside) < 2:
                    stage.sleep(0.01)
                return other.do.remote(nothing).result()

            async def across(me: str, other: DeploymentHandle[Any]) -> Any:
                inside.append(me)
                while len(inside) < 2:
                    await asyncio.sleep(0.01)
                return await other.ado.remote(anothing)

            answers = [
                left.do.remote(cross, "left", right)
                if kind != "coroutines"
                else left.ado.remote(across, "left", right),
                right.do.remote(cross, "right", left)
                if kind == "threads"
                else right.ado.remote(across, "right", left),
            ]
            errors = [answer.exception() for answer in answers]

            assert sorted(str(type(error).__name__) for error in errors) == ["DeadlockError", "NoneType"]

        play(story)

    def test_a_call_whose_argument_waits_for_it(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(slots=3)
            answers: list[Any] = []

            def wait_for_what_waits_for_me() -> Any:
                while not answers:
                    stage.sleep(0.01)
                return answers[0].result()

            argument = one.do.remote(wait_for_what_waits_for_me)
            answers.append(one.do.remote(lambda value: value, argument))

            with pytest.raises(DeadlockError):
                answers[0].result()
            with pytest.raises(DeadlockError):
                argument.result()

        play(story)

    def test_an_argument_that_stands_in_the_queue_behind_who_waits_for_the_call(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def chain() -> Any:
                return other.do.remote(lambda value: value, one.do.remote(nothing)).result()

            with pytest.raises(DeadlockError):
                one.do.remote(chain).result()

        play(story)

    def test_a_handle_among_the_arguments_hides_nothing(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def chain() -> Any:
                return other.do.remote(lambda value, handle: value, one.do.remote(nothing), one).result()

            with pytest.raises(DeadlockError):
                one.do.remote(chain).result()

        play(story)

    def test_several_at_once_are_all_explained(self) -> None:
        def story(stage: Stage) -> None:
            handles = [stage.deploy(f"app {number}") for number in range(5)]

            answers = [h.do.remote(lambda h=h: h.do.remote(nothing).result()) for h in handles]

            assert [type(answer.exception()) for answer in answers] == [DeadlockError] * 5
            assert stage.kernel.now() < SOON
            assert [h.do.remote(nothing).result() for h in handles] == ["nothing"] * 5

        play(story, seeds=5)


class TestSeveralAnswers:
    @pytest.mark.parametrize("wait", ["gather", "wait", "as_completed", "one after the other"])
    def test_all_of_them_stuck_is_a_deadlock(self, wait: str) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            def body() -> Any:
                answers = [one.do.remote(nothing) for _ in range(3)]
                if wait == "gather":
                    return futures.gather(*answers).result()
                if wait == "wait":
                    return futures.wait(answers)
                if wait == "as_completed":
                    return list(futures.as_completed(answers))
                return [answer.result() for answer in answers]

            with pytest.raises(DeadlockError):
                one.do.remote(body).result()

        play(story)

    @pytest.mark.parametrize("wait", ["gather", "as_completed"])
    def test_all_of_them_stuck_is_a_deadlock_of_a_coroutine(self, wait: str) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            async def body() -> Any:
                answers = [one.ado.remote(anothing) for _ in range(3)]
                if wait == "gather":
                    return await futures.gather(*answers)
                return [answer async for answer in futures.as_completed(answers)]

            with pytest.raises(DeadlockError):
                one.ado.remote(body).result()

        play(story)

    def test_one_that_will_come_frees_who_takes_the_first(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def body() -> Any:
                answers = [one.do.remote(nothing), other.do.remote(lambda: stage.sleep(5))]
                first = next(iter(futures.as_completed(answers)))
                return first is answers[1]

            assert one.do.remote(body).result() is True
            assert stage.kernel.now() == pytest.approx(5)

        play(story)

    def test_who_wants_the_others_as_well_is_told_once_the_free_one_has_come(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            def body() -> Any:
                return futures.gather(
                    one.do.remote(nothing), other.do.remote(lambda: stage.sleep(5))
                ).result()

            with pytest.raises(DeadlockError):
                one.do.remote(body).result()
            assert 5 <= stage.kernel.now() < 5 + SOON

        play(story)


class TestCompletedLate:
    """Not by a wait that joins, but by something that ends."""

    def test_an_argument_arrives_and_what_is_left_to_wait_for_is_stuck(self) -> None:
        def story(stage: Stage) -> None:
            one, slow, other = stage.deploy("one"), stage.deploy("slow"), stage.deploy("other")

            def body() -> Any:
                stuck, late = one.do.remote(nothing), slow.do.remote(lambda: stage.sleep(10))
                return other.do.remote(lambda *values: values, stuck, late).result()

            with pytest.raises(DeadlockError):
                one.do.remote(body).result()
            assert 10 <= stage.kernel.now() <= 20 + SOON

        play(story)

    def test_a_replica_could_not_be_replaced_after_all(self) -> None:
        def story(stage: Stage) -> None:
            is_ruined = [False]

            def prepare() -> None:
                if is_ruined[0]:
                    raise OSError("no more of them")

            one = stage.deploy(num_replicas=2, prepare=prepare)
            is_ruined[0] = True
            lost = one.do.remote(lambda: exit(1))
            assert lost.exception() is not None

            answer = one.do.remote(lambda: one.do.remote(nothing).result())

            with pytest.raises(DeadlockError):
                answer.result()
            assert one.do.remote(nothing).result() == "nothing"

        play(story)

    def test_a_new_version_does_not_come_up(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            def fail() -> None:
                stage.sleep(30)
                raise OSError("does not come up")

            def redeploy() -> None:
                with pytest.raises(serve.ReplicaStartError):
                    stage.deploy(prepare=fail)

            attempt = stage.kernel.spawn("redeploy", redeploy)
            stage.sleep(1)
            with pytest.raises(DeadlockError):
                one.do.remote(lambda: one.do.remote(nothing).result()).result()
            attempt.join()
            assert 30 <= stage.kernel.now() <= 60 + SOON

        play(story)


class TestStreams:
    def test_a_reader_that_calls_who_produces_for_it(self) -> None:
        def story(stage: Stage) -> None:
            one, reader = stage.deploy("one", stream_buffer_size=2), stage.deploy("reader")

            def read() -> None:
                for item in one.options(stream=True).items.remote(lambda: iter(range(100))):
                    one.do.remote(lambda item=item: item).result()

            with pytest.raises(DeadlockError):
                reader.do.remote(read).result()
            assert one.do.remote(nothing).result() == "nothing"

        play(story)

    def test_a_reader_that_waits_for_a_stream_which_cannot_begin(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            def read() -> list[int]:
                return list(one.options(stream=True).items.remote(lambda: iter(range(3))))

            with pytest.raises(DeadlockError):
                one.do.remote(read).result()

        play(story)

    def test_a_coroutine_that_reads_a_stream_which_cannot_begin(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            async def read() -> list[int]:
                stream = one.options(stream=True).items.remote(lambda: iter(range(3)))
                return [item async for item in stream]

            with pytest.raises(DeadlockError):
                one.ado.remote(read).result()

        play(story)

    def test_a_producer_that_calls_its_own_deployment(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            def produce() -> Iterator[Any]:
                yield "first"
                yield one.do.remote(nothing).result()

            stream = one.options(stream=True).items.remote(produce)

            assert next(stream) == "first"
            with pytest.raises(DeadlockError):
                next(stream)
            assert one.do.remote(nothing).result() == "nothing"

        play(story)

    def test_a_coroutine_that_calls_who_produces_for_it(self) -> None:
        def story(stage: Stage) -> None:
            one, reader = stage.deploy("one", stream_buffer_size=2), stage.deploy("reader")

            async def produce() -> AsyncIterator[int]:
                for item in range(100):
                    yield item

            async def read() -> None:
                async for _ in one.options(stream=True).aitems.remote(produce):
                    await one.ado.remote(anothing)

            with pytest.raises(DeadlockError):
                reader.ado.remote(read).result(timeout_s=1000)

        play(story)

    def test_a_full_stream_that_a_thread_of_the_reader_s_reads_is_none(self) -> None:
        def story(stage: Stage) -> None:
            one, reader = stage.deploy("one", stream_buffer_size=2), stage.deploy("reader")
            seen = []

            def read() -> Any:
                stream = iter(one.options(stream=True).items.remote(lambda: iter(range(20))))
                seen.append(next(stream))

                def read_on() -> None:
                    for item in stream:
                        stage.sleep(1)
                        seen.append(item)

                thread = stage.in_a_thread(read_on)
                answer = one.do.remote(nothing).result()
                thread.join()
                return answer

            assert reader.do.remote(read).result() == "nothing"
            assert seen == list(range(20))

        play(story)

    def test_a_full_stream_that_plain_code_reads_slowly_is_none(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(stream_buffer_size=2)

            stream = one.options(stream=True).items.remote(lambda: iter(range(20)))
            queued = one.do.remote(nothing)
            seen = []
            for item in stream:
                stage.sleep(1)
                seen.append(item)

            assert seen == list(range(20))
            assert queued.result() == "nothing"

        play(story)

    def test_a_full_stream_whose_reader_waits_for_something_slow_is_none(self) -> None:
        def story(stage: Stage) -> None:
            one, slow, reader = (
                stage.deploy("one", stream_buffer_size=2),
                stage.deploy("slow"),
                stage.deploy("reader"),
            )

            def read() -> int:
                count = 0
                for _ in one.options(stream=True).items.remote(lambda: iter(range(10))):
                    slow.do.remote(lambda: stage.sleep(3)).result()
                    count += 1
                return count

            queued = one.do.remote(nothing)
            assert reader.do.remote(read).result() == 10
            assert queued.result() == "nothing"

        play(story)


# ---- who is told, and what


class TestStory:
    def test_names_every_deployment_method_request_and_line(self) -> None:
        def story(stage: Stage) -> None:
            left, right = stage.deploy("left"), stage.deploy("right")

            def back() -> Any:
                stage.sleep(0.01)
                return left.do.remote(nothing).result()

            def go() -> Any:
                return right.do.remote(back).result()

            answer = left.do.remote(go)
            error = answer.exception()

            assert isinstance(error, DeadlockError)
            assert error.request_id == answer.request_id
            assert error.deployment == "right/right"
            text = str(error)
            assert "left/left.do" in text
            assert "right/right.do" in text
            assert text.count(answer.request_id) == 3  # the two that wait, and the queued one
            for line, offset in ((go, 1), (back, 2)):
                assert f"{__file__}:{line.__code__.co_firstlineno + offset}" in text

        play(story)

    def test_names_the_lines_of_coroutines(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            async def inner() -> Any:
                return await one.ado.remote(anothing)

            async def outer() -> Any:
                return await inner()

            error = one.ado.remote(outer).exception()

            assert f"{__file__}:{inner.__code__.co_firstlineno + 1}" in str(error)

        play(story)

    def test_reaches_a_plain_thread_as_the_answer_it_waits_for(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            answer = one.do.remote(lambda: one.do.remote(nothing).result())
            seen: list[BaseException | None] = []

            threads = [stage.kernel.spawn("plain", lambda: seen.append(answer.exception())) for _ in range(3)]
            for thread in threads:
                thread.join()

            assert [type(error) for error in seen] == [DeadlockError] * 3

        play(story)

    def test_survives_pickling(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            error = one.do.remote(lambda: one.do.remote(nothing).result()).exception()
            twin = pickle.loads(pickle.dumps(error))

            assert (str(twin), twin.deployment, twin.request_id) == (
                str(error),
                "one/one",
                getattr(error, "request_id", None),
            )

        play(story, seeds=1)

    def test_of_a_crowd_tells_the_first_twenty(self) -> None:
        def story(stage: Stage) -> None:
            crowd = stage.deploy(slots=30)
            present = [0]

            def call_yourself() -> Any:
                present[0] += 1
                while present[0] < 30:
                    stage.sleep(0.01)
                return crowd.do.remote(nothing).result()

            answers = [crowd.do.remote(call_yourself) for _ in range(30)]
            errors = [error for answer in answers if (error := answer.exception()) is not None]

            assert len(errors) == 1
            assert "... and 40 more" in str(errors[0])
            assert str(errors[0]).count("\n  ") == 21

        play(story, seeds=2)


class TestVictim:
    def test_is_the_youngest_wait(self) -> None:
        def story(stage: Stage) -> None:
            left, right = stage.deploy("left"), stage.deploy("right")

            def late() -> Any:
                stage.sleep(1)
                return left.do.remote(nothing).result()

            second = right.do.remote(late)
            first = left.do.remote(lambda: right.do.remote(nothing).result())

            assert isinstance(second.exception(), DeadlockError)
            assert first.result() == "nothing"

        play(story)

    def test_may_handle_the_error_and_go_on(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            def body() -> str:
                try:
                    return one.do.remote(nothing).result()  # type: ignore[no-any-return]
                except DeadlockError:
                    return "another way"

            assert one.do.remote(body).result() == "another way"

        play(story)

    def test_who_tries_again_is_told_again(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            def body() -> int:
                answer = one.do.remote(nothing)
                for _ in range(3):
                    with pytest.raises(DeadlockError):
                        answer.result()
                return 3

            assert one.do.remote(body).result() == 3
            assert stage.kernel.now() < 3 * SOON

        play(story)

    def test_is_never_somebody_who_only_waits_for_those_that_hold_each_other(self) -> None:
        def story(stage: Stage) -> None:
            one, front = stage.deploy("one"), stage.deploy("front", slots=10)

            culprit = one.do.remote(lambda: one.do.remote(nothing).result())
            stage.sleep(lookout.PATIENCE_S / 4)
            bystanders = [front.do.remote(lambda: one.do.remote(nothing).result()) for _ in range(20)]

            assert isinstance(culprit.exception(), DeadlockError)
            assert [answer.result() for answer in bystanders] == ["nothing"] * 20

        play(story)


# ---- bodies on one stack


class Late(Stage):
    """A stage on which the workers of all, or of some, come late: who waits for a call runs it."""

    def __init__(self, kernel: LateSimulation) -> None:
        super().__init__(kernel)
        self.let_workers_come = kernel.let_workers_come


def play_late(story: Callable[[Late], object], seeds: int = 10, *, of: str = "") -> None:
    """Play a story in which the workers of the deployment `of`, or all, come when they are let, or after it."""

    def run(kernel: LateSimulation) -> None:
        stage = Late(kernel)
        try:
            story(stage)
        finally:
            kernel.let_workers_come()
        stage.controller.shutdown()

    for seed in range(seeds):
        kernel = LateSimulation(seed, of=of)
        kernel.run(partial(run, kernel))


def line(deed: Callable[..., Any], offset: int = 1) -> str:
    return f"{__file__}:{deed.__code__.co_firstlineno + offset}"


class TestHelpedBodies:
    """A body that waits for a call may run it: then it waits for a body that is on the same stack."""

    @pytest.fixture(autouse=True)
    def nobody_helps(self) -> None:
        """Here they do, whatever THREADSERVE_INLINE says."""

    @pytest.mark.parametrize("where", ["on the thread of a plain caller", "on a worker"])
    def test_one_that_needs_the_slot_of_the_one_below_it(self, where: str) -> None:
        def story(stage: Late) -> None:
            below, above = stage.deploy("below"), stage.deploy("above")

            def begin() -> Any:
                threads.append(threading.get_ident())
                return above.do.remote(go_on).result()

            def go_on() -> Any:
                threads.append(threading.get_ident())
                return below.do.remote(nothing).result()

            threads: list[int] = []
            answer = below.do.remote(begin)
            error = answer.exception(timeout_s=None if "plain" in where else 60)

            assert len(set(threads)) == 1
            assert (threads[0] == threading.get_ident()) is ("plain" in where)
            assert isinstance(error, DeadlockError)
            assert error.deployment == "above/above"
            told = str(error).splitlines()
            assert [text.strip() for text in told[1:3]] == [
                f"above/above.do (request {answer.request_id}) holds a slot and waits for below/below.do at {line(go_on, 2)}",
                f"below/below.do (request {answer.request_id}) holds a slot and waits for above/above.do at {line(begin, 2)}",
            ]
            assert stage.kernel.now() < SOON
            assert below.do.remote(nothing).result() == "nothing"

        play_late(story, of="" if "plain" in where else "above")

    def test_many_on_one_stack_each_with_its_line(self) -> None:
        def story(stage: Late) -> None:
            handles = [stage.deploy(f"stage {number}") for number in range(6)]

            def one() -> Any:
                return handles[1].do.remote(two).result()

            def two() -> Any:
                return handles[2].do.remote(three).result()

            def three() -> Any:
                return handles[3].do.remote(four).result()

            def four() -> Any:
                return handles[4].do.remote(five).result()

            def five() -> Any:
                return handles[0].do.remote(nothing).result()

            error = handles[0].do.remote(one).exception()

            assert isinstance(error, DeadlockError)
            for deed in (one, two, three, four, five):
                assert str(error).count(line(deed)) == 1

        play_late(story)

    def test_of_two_threads_that_hold_each_other(self) -> None:
        def story(stage: Late) -> None:
            left, right, over = stage.deploy("left"), stage.deploy("right"), stage.deploy("over", slots=2)
            inside: list[str] = []

            def stand(own: str, other: DeploymentHandle[Any]) -> Any:
                return over.do.remote(reach, own, other).result()

            def reach(own: str, other: DeploymentHandle[Any]) -> Any:
                inside.append(own)
                while len(inside) < 2:
                    stage.sleep(0.01)
                return other.do.remote(nothing).result()

            stage.kernel.call_at(1.0, stage.let_workers_come)
            errors: list[BaseException | None] = []
            for own, other, name in ((left, right, "left"), (right, left, "right")):
                call = own.do.remote(stand, name, other)
                stage.in_a_thread(lambda call=call: errors.append(call.exception()))  # type: ignore[misc]
            stage.sleep(5)

            assert sorted(type(error).__name__ for error in errors) == ["DeadlockError", "NoneType"]
            told = next(str(error) for error in errors if error is not None)
            assert told.count(line(stand)) == told.count(line(reach, 4)) == 2

        play_late(story)

    def test_an_older_call_of_the_same_thread_that_is_stuck(self) -> None:
        """It runs first, on the same stack, and needs the slot of the body that waits: that is told to the older one."""

        def story(stage: Late) -> None:
            below, above = stage.deploy("below"), stage.deploy("above")
            older: list[Any] = []

            def begin() -> Any:
                older.append(above.do.remote(need))
                return above.do.remote(nothing).result()

            def need() -> Any:
                return below.do.remote(nothing).result()

            assert below.do.remote(begin).result() == "nothing"

            error = older[0].exception()
            assert isinstance(error, DeadlockError)
            assert line(begin, 2) in str(error)
            assert line(need) in str(error)

        play_late(story)

    def test_an_argument_that_is_stuck(self) -> None:
        def story(stage: Late) -> None:
            below, above = stage.deploy("below"), stage.deploy("above", slots=2)

            def begin() -> Any:
                return above.do.remote(lambda value: value, above.do.remote(need)).result()

            def need() -> Any:
                return below.do.remote(nothing).result()

            error = below.do.remote(begin).exception()

            assert isinstance(error, DeadlockError)
            assert line(begin) in str(error)
            assert line(need) in str(error)

        play_late(story)

    def test_the_error_may_be_handled_on_any_floor(self) -> None:
        def story(stage: Late) -> None:
            below, above = stage.deploy("below"), stage.deploy("above")

            def begin() -> Any:
                try:
                    return above.do.remote(lambda: below.do.remote(nothing).result()).result()
                except DeadlockError:
                    return "another way"

            assert below.do.remote(begin).result() == "another way"

        play_late(story)

    def test_no_alarm_while_the_one_on_top_can_go_on(self) -> None:
        """Asleep; with a lock of the user's; before a slot that somebody is about to give back; after the one below was told."""

        def story(stage: Late) -> None:
            below, above = stage.deploy("below"), stage.deploy("above")
            busy = stage.deploy("busy")
            stage.in_a_thread(lambda: busy.do.remote(stage.sleep, 30).result())
            stage.sleep(0.01)

            def sleeps() -> str:
                stage.sleep(30)
                return "slept"

            def waits_for_a_slot() -> Any:
                return busy.do.remote(nothing).result()

            def has_a_timeout() -> str:
                with pytest.raises(TimeoutError):
                    below.do.remote(nothing).result(timeout_s=30)
                return "gave up"

            stage.kernel.call_at(1.0, stage.let_workers_come)
            for deed, answer in (
                (waits_for_a_slot, "nothing"),
                (sleeps, "slept"),
                (has_a_timeout, "gave up"),
            ):
                assert below.do.remote(lambda deed=deed: above.do.remote(deed).result()).result() == answer

        play_late(story)

    def test_no_alarm_while_only_a_thread_beside_the_body_is_held(self) -> None:
        """It waits for the body's slot; the body does not wait for it."""

        def story(stage: Late) -> None:
            below, above = stage.deploy("below"), stage.deploy("above")
            seen: list[Any] = []

            def begin() -> str:
                stage.in_a_thread(lambda: seen.append(above.do.remote(go_on).exception()))
                stage.sleep(30)
                return "done"

            def go_on() -> Any:
                return below.do.remote(nothing).result()

            stage.kernel.call_at(40.0, stage.let_workers_come)

            assert below.do.remote(begin).result() == "done"
            stage.sleep(60)
            # a child of a body that has returned is nobody's child, and its wait has ended like any other
            assert seen == [None]

        play_late(story)

    def test_no_alarm_for_a_recursion_with_as_many_slots_as_bodies(self) -> None:
        def story(stage: Late) -> None:
            deep = stage.deploy(slots=6)

            def descend(depth: int) -> int:
                stage.sleep(1)
                return depth and deep.do.remote(descend, depth - 1).result() + 1

            assert deep.do.remote(descend, 5).result() == 5
            with pytest.raises(DeadlockError):
                deep.do.remote(descend, 6).result()

        play_late(story)

    def test_no_alarm_for_a_body_whose_thread_runs_what_was_cancelled(self) -> None:
        """The one on top has its answer; its body is on the way back, and then the one below goes on."""

        def story(stage: Late) -> None:
            below, above = stage.deploy("below"), stage.deploy("above")
            calls: list[Any] = []

            def begin() -> str:
                calls.append(above.do.remote(go_on))
                return type(calls[0].exception()).__name__

            def go_on() -> None:
                stage.in_a_thread(lambda: (stage.sleep(1), calls[0].cancel()))
                stage.sleep(10)

            stage.kernel.call_at(2.0, lambda: ahead.append(below.do.remote(nothing)))
            ahead: list[Any] = []

            assert below.do.remote(begin).result() == "RequestCancelledError"
            assert stage.kernel.now() == 10
            assert ahead[0].result() == "nothing"

        play_late(story)


class TestAStageOnAnothersWorker:
    """The worker that brought the argument goes on with the call, and does not hold its own deployment up."""

    @pytest.fixture(autouse=True)
    def nobody_helps(self) -> None:
        """Here they do, whatever THREADSERVE_INLINE says."""

    def test_that_calls_its_own_deployment_is_told_with_its_line(self) -> None:
        def story(stage: Stage) -> None:
            before, after = stage.deploy("before"), stage.deploy("after")

            def go_on(thread: int) -> Any:
                threads.update((thread, threading.get_ident()))
                return after.do.remote(nothing).result()

            threads: set[int] = set()
            brought = before.do.remote(lambda: (stage.sleep(1), threading.get_ident())[1])
            error = after.do.remote(go_on, brought).exception(timeout_s=60)

            assert len(threads) == 1
            assert isinstance(error, DeadlockError)
            assert line(go_on, 2) in str(error)
            assert stage.kernel.now() < 1 + SOON
            for each in (before, after):
                assert each.do.remote(nothing).result(timeout_s=60) == "nothing"

        play(story)

    def test_that_calls_the_deployment_whose_worker_that_is_goes_on(self) -> None:
        def story(stage: Stage) -> None:
            before, after = stage.deploy("before"), stage.deploy("after")

            def slow() -> str:
                stage.sleep(30)
                return "slow"

            def go_on(thread: int) -> Any:
                threads.update((thread, threading.get_ident()))
                (answer,), _ = futures.wait([before.do.remote(slow)])  # which does not run it itself
                return answer.result()

            threads: set[int] = set()
            brought = before.do.remote(lambda: (stage.sleep(1), threading.get_ident())[1])

            assert after.do.remote(go_on, brought).result(timeout_s=60) == "slow"
            assert len(threads) == 1

        play(story)


# ---- what is none


class TestCanStillEnd:
    """The body of each story waits for its own exhausted deployment, and something can end that."""

    def test_a_wait_with_a_timeout(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            def body() -> str:
                with pytest.raises(TimeoutError):
                    one.do.remote(nothing).result(timeout_s=5)
                return "gave up"

            assert one.do.remote(body).result() == "gave up"
            assert stage.kernel.now() >= 5

        play(story)

    @pytest.mark.parametrize("verb", ["wait", "as_completed", "gather"])
    def test_a_wait_for_several_with_a_timeout(self, verb: str) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            def body() -> str:
                answers = [one.do.remote(nothing) for _ in range(2)]
                try:
                    if verb == "wait":
                        assert futures.wait(answers, timeout=5).not_done == set(answers)
                    elif verb == "as_completed":
                        list(futures.as_completed(answers, timeout=5))
                    else:
                        futures.gather(*answers).result(timeout_s=5)
                except TimeoutError:
                    pass
                return "gave up"

            assert one.do.remote(body).result() == "gave up"
            assert stage.kernel.now() >= 5

        play(story)

    def test_a_child_with_a_timeout_of_its_own(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            def body() -> str:
                with pytest.raises(RequestTimeoutError):
                    one.options(timeout_s=5).do.remote(nothing).result()
                return "expired"

            assert one.do.remote(body).result() == "expired"
            assert stage.kernel.now() >= 5

        play(story)

    def test_a_deadline_of_the_body_s_own_calls(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            def body() -> str:
                with serve.deadline(5), pytest.raises(RequestTimeoutError):
                    one.do.remote(nothing).result()
                return "expired"

            assert one.do.remote(body).result() == "expired"
            assert stage.kernel.now() >= 5

        play(story)

    def test_a_deadline_of_the_body_itself(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            with pytest.raises(RequestTimeoutError):
                one.options(timeout_s=5).do.remote(lambda: one.do.remote(nothing).result()).result()
            assert stage.kernel.now() >= 5
            assert one.do.remote(nothing).result() == "nothing"

        play(story)

    def test_a_deadline_of_somebody_on_the_way(self) -> None:
        def story(stage: Stage) -> None:
            first, second = stage.deploy("first"), stage.deploy("second")

            def back() -> Any:
                return first.do.remote(nothing).result()

            def there() -> str:
                with pytest.raises(RequestTimeoutError):
                    second.options(timeout_s=5).do.remote(back).result()
                return "expired"

            assert first.do.remote(there).result() == "expired"
            assert stage.kernel.now() >= 5

        play(story)

    @pytest.mark.parametrize("way", ["timeout", "wait_for", "wait_for of a gathering", "timeout_at"])
    def test_an_await_with_a_timeout_of_asyncio(self, way: str) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            async def body() -> str:
                loop = asyncio.get_running_loop()
                answer = one.ado.remote(anothing)
                with pytest.raises(TimeoutError):
                    if way == "timeout":
                        async with asyncio.timeout(5):
                            await answer
                    elif way == "timeout_at":
                        async with asyncio.timeout_at(loop.time() + 5):
                            await answer
                    elif way == "wait_for":
                        await asyncio.wait_for(answer, 5)
                    else:
                        await asyncio.wait_for(futures.gather(answer), 5)
                return "gave up"

            assert one.ado.remote(body).result() == "gave up"
            assert stage.kernel.now() >= 5

        play(story)

    @pytest.mark.slow
    def test_an_await_whose_timeout_is_over_at_the_very_moment_of_the_look(self) -> None:
        def story(stage: Stage) -> None:
            two = stage.deploy(slots=2)

            async def timed() -> str:
                with suppress(TimeoutError):  # unless the other one came too late to take the slot
                    async with asyncio.timeout(0.2):
                        await two.ado.remote(anothing)
                return "gave up"

            async def untimed() -> Any:
                return await two.ado.remote(anothing)

            answers = two.ado.remote(timed), two.ado.remote(untimed)

            assert [answer.result() for answer in answers] == ["gave up", "nothing"]

        play(story, seeds=100)

    def test_the_wait_of_a_thread_of_the_body_s_does_not_hide_the_body_s_own(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")

            async def body() -> Any:
                stage.in_a_thread(lambda: other.do.remote(lambda: stage.sleep(0.05)).result())
                return await one.ado.remote(anothing)

            with pytest.raises(DeadlockError):
                one.ado.remote(body).result(timeout_s=1000)

        play(story)

    @pytest.mark.parametrize("owner", ["the task itself", "a scope, as anyio has"])
    def test_an_await_that_another_timer_will_cancel(self, owner: str) -> None:
        class Scope:
            def __init__(self) -> None:
                self._host_task = asyncio.current_task()

            def deliver(self) -> None:
                assert self._host_task is not None
                self._host_task.cancel()

        def story(stage: Stage) -> None:
            one = stage.deploy()

            async def body() -> str:
                scope = Scope()
                assert scope._host_task is not None
                cancel = scope._host_task.cancel if owner == "the task itself" else scope.deliver
                asyncio.get_running_loop().call_later(5, cancel)
                with pytest.raises(asyncio.CancelledError):
                    await one.ado.remote(anothing)
                return "gave up"

            assert one.ado.remote(body).result() == "gave up"
            assert stage.kernel.now() >= 5

        play(story)

    def test_a_timeout_of_asyncio_around_a_function_that_awaits(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            async def inner() -> Any:
                return await one.ado.remote(anothing)

            async def body() -> str:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(5):
                        await inner()
                return "gave up"

            assert one.ado.remote(body).result() == "gave up"

        play(story)

    def test_a_task_that_the_body_has_created(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            async def body() -> str:
                async def call() -> Any:
                    return await one.ado.remote(anothing)

                task = asyncio.create_task(call())
                done, _ = await asyncio.wait([task], timeout=5)
                assert not done
                task.cancel()
                return "gave up"

            assert one.ado.remote(body).result() == "gave up"
            assert stage.kernel.now() >= 5

        play(story)

    def test_a_thread_that_the_body_has_started(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            seen = []

            def body() -> str:
                answer = one.do.remote(nothing)
                thread = stage.in_a_thread(lambda: seen.append(answer.result()))
                thread.join(5)
                assert thread.is_alive()
                return "gave up"

            assert one.do.remote(body).result() == "gave up"
            stage.sleep(1)
            assert seen == ["nothing"]

        play(story)

    def test_a_plain_future_among_the_answers(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            future: concurrent.futures.Future[str] = concurrent.futures.Future()

            def body() -> Any:
                answer: Any = one.do.remote(nothing)
                done = futures.wait([answer, future], return_when=futures.FIRST_COMPLETED).done
                return done == {future}

            answer = one.do.remote(body)
            stage.sleep(5)
            future.set_result("at last")

            assert answer.result() is True

        play(story)

    def test_a_plain_future_among_the_arguments(self) -> None:
        def story(stage: Stage) -> None:
            one, other = stage.deploy("one"), stage.deploy("other")
            future: concurrent.futures.Future[str] = concurrent.futures.Future()

            def body() -> Any:
                return other.do.remote(lambda *values: values, one.do.remote(nothing), future).result()

            answer = one.do.remote(body)
            stage.sleep(5)
            future.set_exception(OSError("late"))

            with pytest.raises(OSError, match="late"):
                answer.result()

        play(story)

    def test_an_argument_that_may_fail(self) -> None:
        def story(stage: Stage) -> None:
            one, slow, other = stage.deploy("one"), stage.deploy("slow"), stage.deploy("other")

            def fail() -> None:
                stage.sleep(5)
                raise OSError("late")

            def body() -> Any:
                stuck, late = one.do.remote(nothing), slow.do.remote(fail)
                return other.do.remote(lambda *values: values, stuck, late).result()

            with pytest.raises(OSError, match="late"):
                one.do.remote(body).result()

        play(story)

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", [0.1, 0.2, 0.4])
    def test_an_argument_that_fails_at_the_very_moment_of_the_look(self, moment: float) -> None:
        def story(stage: Stage) -> None:
            one, slow, other = stage.deploy("one"), stage.deploy("slow"), stage.deploy("other")

            def fail() -> None:
                stage.sleep_until(moment)
                raise OSError("just now")

            late = slow.do.remote(fail)

            def body() -> Any:
                return other.do.remote(lambda *values: values, one.do.remote(nothing), late).result()

            with pytest.raises(OSError, match="just now"):
                one.do.remote(body).result()

        play(story, seeds=80)

    def test_a_lock_of_the_user_s(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            lock = stage.kernel.lock()

            def guarded() -> str:
                with lock:
                    return "got it"

            lock.acquire()
            answer = one.do.remote(guarded)
            behind = one.do.remote(nothing)
            stage.sleep(5)
            lock.release()

            assert (answer.result(), behind.result()) == ("got it", "nothing")

        play(story)

    def test_a_lock_of_the_user_s_that_one_of_two_holders_waits_for(self) -> None:
        def story(stage: Stage) -> None:
            two = stage.deploy(slots=2)
            lock = stage.kernel.lock()
            lock.acquire()

            def guarded() -> None:
                with lock:
                    pass

            waiting = two.do.remote(guarded)
            calling = two.do.remote(lambda: two.do.remote(nothing).result())
            stage.sleep(5)
            assert not calling.done()
            lock.release()

            waiting.result()
            assert calling.result() == "nothing"

        play(story)

    def test_somebody_who_sleeps(self) -> None:
        def story(stage: Stage) -> None:
            two = stage.deploy(slots=2)

            sleeper = two.do.remote(lambda: stage.sleep(100))
            calling = two.do.remote(lambda: two.do.remote(nothing).result())

            assert calling.result() == "nothing"
            assert stage.kernel.now() >= 100
            sleeper.result()

        play(story)

    def test_a_request_that_was_cancelled_and_whose_body_runs_on(self) -> None:
        def story(stage: Stage) -> None:
            two = stage.deploy(slots=2)

            deaf = two.do.remote(lambda: stage.sleep(5))
            stage.sleep(1)
            deaf.cancel()
            calling = two.do.remote(lambda: two.do.remote(nothing).result())

            assert calling.result() == "nothing"

        play(story)

    def test_a_cancel_ends_a_wait_before_anybody_looks(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            seen: list[BaseException] = []

            def body() -> None:
                try:
                    one.do.remote(nothing).result()
                except BaseException as error:
                    seen.append(error)
                    raise

            answer = one.do.remote(body)
            stage.sleep(lookout.PATIENCE_S / 2)
            answer.cancel()

            assert isinstance(answer.exception(), serve.RequestCancelledError)
            assert one.do.remote(nothing).result() == "nothing"
            assert [type(error) for error in seen] == [serve.Cancelled]

        play(story)


class TestChanging:
    """Nothing is stuck behind a deployment that is about to get more slots."""

    def test_a_new_version_is_on_its_way(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            redeploy = stage.kernel.spawn("redeploy", lambda: stage.deploy(prepare=lambda: stage.sleep(30)))
            stage.sleep(1)
            answer = one.do.remote(lambda: one.do.remote(nothing).result())

            assert answer.result() == "nothing"
            assert stage.kernel.now() >= 30
            redeploy.join()

        play(story)

    def test_a_lost_replica_is_being_replaced(self) -> None:
        def story(stage: Stage) -> None:
            pause = itertools.chain([0, 0], itertools.repeat(30))
            one = stage.deploy(num_replicas=2, prepare=lambda: stage.sleep(next(pause)))

            assert one.do.remote(lambda: exit(1)).exception() is not None
            answer = one.do.remote(lambda: one.do.remote(nothing).result())

            assert answer.result() == "nothing"
            assert stage.kernel.now() >= 30

        play(story)

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", [0.1, 0.2, 0.4])
    def test_the_replacement_takes_its_seat_at_the_very_moment_of_the_look(self, moment: float) -> None:
        def story(stage: Stage) -> None:
            begun = itertools.count()

            def prepare() -> None:
                if next(begun) >= 2:
                    stage.sleep_until(moment)

            one = stage.deploy(num_replicas=2, prepare=prepare)
            assert one.do.remote(lambda: exit(1)).exception() is not None

            assert one.do.remote(lambda: one.do.remote(nothing).result()).result() == "nothing"

        play(story, seeds=80)

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", [0.1, 0.2, 0.4])
    def test_a_replica_is_lost_at_the_very_moment_of_the_look(self, moment: float) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(num_replicas=2)

            def die() -> None:
                stage.sleep_until(moment)
                exit(1)

            dying = one.do.remote(die)
            calling = one.do.remote(lambda: one.do.remote(nothing).result())

            assert calling.result() == "nothing"
            assert isinstance(dying.exception(), serve.ReplicaDiedError)

        play(story, seeds=80)

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", [0.1, 0.2, 0.4])
    def test_the_app_is_replaced_at_the_very_moment_of_the_look(self, moment: float) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()

            redeploy = stage.kernel.spawn(
                "redeploy", lambda: stage.deploy(prepare=lambda: stage.sleep_until(moment))
            )
            answer = one.do.remote(lambda: one.do.remote(nothing).result())

            assert answer.result() == "nothing"
            redeploy.join()

        play(story, seeds=80)

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", [0.1, 0.2])
    def test_the_app_is_deleted_while_a_lost_replica_is_being_replaced(self, moment: float) -> None:
        def story(stage: Stage) -> None:
            begun = itertools.count()
            one = stage.deploy(num_replicas=2, prepare=lambda: stage.sleep(0 if next(begun) < 2 else 30))
            assert one.do.remote(lambda: exit(1)).exception() is not None

            answer = one.do.remote(lambda: one.do.remote(nothing).result())
            stage.sleep_until(moment)
            stage.controller.delete("one")

            assert isinstance(answer.exception(), DeploymentUnavailableError)

        play(story, seeds=100)

    def test_a_deployment_whose_app_is_still_starting_is_looked_at_like_any_other(self) -> None:
        def story(stage: Stage) -> None:
            class Parent:
                def __init__(self, child: DeploymentHandle[Any]) -> None:
                    with pytest.raises(DeadlockError):
                        child.do.remote(lambda: child.do.remote(nothing).result()).result()
                    self.answer = child.do.remote(nothing).result()

                def __call__(self) -> str:
                    return self.answer  # type: ignore[no-any-return]

            child: Any = serve.deployment(Actor).options(name="child", max_ongoing_requests=1)
            parent: Any = serve.deployment(Parent)
            handle = stage.controller.deploy(build(parent.bind(child.bind()), "app"))

            assert handle.remote().result() == "nothing"

        play(story)


# ---- what it costs


class TestCost:
    def test_nothing_is_set_up_where_no_body_waits(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(slots=5)
            before = len(stage.kernel.trace)

            first = one.do.remote(nothing)
            chained = one.do.remote(lambda value: value, first)
            stream = one.options(stream=True).items.remote(lambda: iter(range(10)))

            assert futures.gather(chained, one.ado.remote(anothing)).result() == ["nothing"] * 2
            assert list(stream) == list(range(10))
            assert not [line for line in stage.kernel.trace[before:] if "sets alarm" in line]

        play(story)

    def test_many_short_waits_share_one_look(self) -> None:
        def story(stage: Stage) -> None:
            front, back = stage.deploy("front", slots=3), stage.deploy("back", slots=3)
            before = len(stage.kernel.trace)

            calls = [front.do.remote(lambda: back.do.remote(nothing).result()) for _ in range(30)]

            assert futures.gather(*calls).result() == ["nothing"] * 30
            assert sum("sets alarm" in line for line in stage.kernel.trace[before:]) <= 1

        play(story)

    def test_a_long_wait_is_looked_at_less_and_less_often(self) -> None:
        def story(stage: Stage) -> None:
            front, back = stage.deploy("front"), stage.deploy("back")

            front.do.remote(lambda: back.do.remote(lambda: stage.sleep(3600)).result()).result()

            assert sum("rings alarm" in line for line in stage.kernel.trace) <= 17

        play(story, seeds=3)


# ---- on real threads


def test_real_threads_are_told_as_well() -> None:
    actor: Any = serve.deployment(Actor).options(max_ongoing_requests=1)
    with serve.running(actor.bind()) as one:
        before = threading.active_count()

        async def await_yourself() -> Any:
            return await one.ado.remote(anothing)

        with pytest.raises(DeadlockError, match=r"test_deadlock\.py:\d+"):
            one.do.remote(lambda: one.do.remote(nothing).result()).result()
        with pytest.raises(DeadlockError, match=r"test_deadlock\.py:\d+"):
            one.ado.remote(await_yourself).result()
        assert one.do.remote(nothing).result() == "nothing"
        assert one.ado.remote(anothing).result() == "nothing"
        assert threading.active_count() <= before + 4  # a worker, the loop, the timer, the reaper
