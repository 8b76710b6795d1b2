"""Remote functions: what a task gets, what comes of it, and how many of them run."""

from __future__ import annotations

import asyncio
import pickle
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.tasks.stage import SEEDS, Stage, on_stage
from threadserve.runtime.controller import Controller
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@serve.remote
def add(left: int, right: int) -> int:
    return left + right


# ---- values and failures


def test_a_call_returns_a_ref_to_what_the_function_returns() -> None:
    def story(stage: Stage) -> None:
        ref = add.remote(1, right=2)

        assert isinstance(ref, serve.ObjectRef)
        assert serve.get(ref) == 3

    on_stage(story)


def test_refs_and_responses_that_are_arguments_are_replaced_by_their_values() -> None:
    @serve.deployment
    def double(number: int) -> int:
        return 2 * number

    with serve.running(double.bind()) as handle:
        ref = add.remote(handle.remote(1), add.remote(1, 1))

        assert serve.get(ref) == 4
        assert handle.remote(ref).result() == 8


def test_a_ref_in_a_container_stays_a_ref() -> None:
    @serve.remote
    def look(refs: list[Any], by_name: dict[str, Any]) -> tuple[Any, ...]:
        return refs[0], by_name["x"], serve.get([*refs, by_name["x"]])

    def story(stage: Stage) -> None:
        first, second = serve.put(1), add.remote(1, 1)

        assert serve.get(look.remote([first], {"x": second})) == (first, second, [1, 2])

    on_stage(story)


def test_no_thread_waits_for_the_arguments_of_a_task() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def slow() -> int:
            stage.rest(10)
            return 1

        @serve.remote
        def step(number: int) -> int:
            return number + 1

        ref = slow.remote()
        for _ in range(100):
            ref = step.remote(ref)
        stage.rest(1)

        assert stage.workforce.tasks.seats[0].workers == 1
        assert serve.get(ref) == 101

    on_stage(story, seeds=5)


def test_the_exception_of_a_task_arrives_as_itself_and_what_depends_on_it_never_runs() -> None:
    def story(stage: Stage) -> None:
        error = ValueError("bad")

        @serve.remote
        def fail() -> None:
            raise error

        @serve.remote
        def depend(_value: object) -> None:
            stage.log.append("ran")

        failed = fail.remote()
        dependent = depend.remote(failed)

        with pytest.raises(ValueError, match=r"^bad$") as caught:
            serve.get(failed)
        with pytest.raises(ValueError, match=r"^bad$"):
            serve.get(dependent)
        assert caught.value is error or caught.value.args == error.args
        assert stage.log == []

    on_stage(story)


def test_system_exit_ends_the_task_and_nothing_else() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def leave() -> None:
            raise SystemExit(3)

        @serve.remote
        def stay() -> str:
            stage.rest(5)
            return "still here"

        staying, leaving = stay.remote(), leave.remote()

        with pytest.raises(serve.ReplicaDiedError, match=r"threadserve/tasks\.leave raised SystemExit\(3\)"):
            serve.get(leaving)
        assert serve.get(staying) == "still here"

    on_stage(story)


def test_a_task_sees_the_context_variables_of_its_caller() -> None:
    language = ContextVar("language", default="en")

    @serve.remote
    def greet() -> str:
        return language.get()

    def story(stage: Stage) -> None:
        token = language.set("fr")
        ref = greet.remote()
        language.reset(token)

        assert serve.get(ref) == "fr"

    on_stage(story, seeds=2)


# ---- several values


@serve.remote(num_returns=3)
def three() -> tuple[int, ...]:
    return 1, 2, 3


def test_num_returns_gives_a_ref_to_each_value() -> None:
    def story(stage: Stage) -> None:
        first, *others = three.remote()

        assert serve.get(others) == [2, 3]
        assert serve.get(add.remote(first, first)) == 2
        assert first.future.result() == 1

    on_stage(story)


def test_num_returns_0_gives_nothing_and_the_task_runs() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(num_returns=0)
        def note() -> None:
            stage.log.append("ran")

        assert note.remote() is None
        stage.rest()
        assert stage.log == ["ran"]

    on_stage(story, seeds=5)


@pytest.mark.parametrize(("returned", "told"), [((1, 2), "2 of them"), (5, "a int"), ("abc", "a str")])
def test_the_wrong_number_of_values_fails_every_ref(returned: Any, told: str) -> None:
    def story(stage: Stage) -> None:
        @serve.remote(num_returns=3)
        def some() -> Any:
            return returned

        for ref in some.remote():
            with pytest.raises(ValueError, match=rf"some was called with num_returns=3 .* returned {told}"):
                serve.get(ref)

    on_stage(story, seeds=2)


def test_a_failed_task_fails_each_of_its_refs_and_cancelling_one_cancels_the_task() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(num_returns=2)
        def fail() -> None:
            raise KeyError("k")

        @serve.remote(num_returns=2)
        def wait() -> None:
            try:
                while True:
                    stage.rest()
                    serve.check_cancelled()
            except serve.Cancelled:
                stage.log.append("cancelled")
                raise

        for ref in fail.remote():
            with pytest.raises(KeyError):
                serve.get(ref)
        left, right = wait.remote()
        stage.rest()
        serve.cancel(left)
        for ref in (left, right):
            with pytest.raises(serve.RequestCancelledError):
                serve.get(ref)
        stage.rest(5)
        assert stage.log == ["cancelled"]

    on_stage(story)


# ---- generators


def test_a_generator_gives_a_ref_for_each_item_and_its_failure_comes_last() -> None:
    @serve.remote
    def count(end: int) -> Iterator[int]:
        yield from range(end)
        raise ValueError("no more")

    def story(stage: Stage) -> None:
        generator = count.remote(3)
        assert isinstance(generator, serve.ObjectRefGenerator)
        *refs, last = generator

        assert serve.get(refs) == [0, 1, 2]
        with pytest.raises(ValueError, match="no more"):
            serve.get(last)
        assert list(generator) == []
        with pytest.raises(ValueError, match="no more"):
            serve.get(generator.completed())

    on_stage(story)


def test_an_async_generator_is_read_with_async_for() -> None:
    @serve.remote
    async def count(end: int) -> AsyncIterator[int]:
        for item in range(end):
            await asyncio.sleep(0)
            yield item

    async def read() -> list[int]:
        return [await ref async for ref in count.remote(3)]

    assert asyncio.run(read()) == [0, 1, 2]


def test_leaving_a_generator_stops_its_producer() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def forever() -> Iterator[int]:
            try:
                while True:
                    yield 1
            finally:
                stage.log.append("stopped")

        generator = forever.remote()
        assert serve.get(next(generator)) == 1
        generator.close()
        assert list(generator) == []
        stage.rest()
        assert stage.log == ["stopped"]

    on_stage(story)


# ---- coroutines


def test_coroutines_need_no_slots() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        async def nap(number: int) -> int:
            await asyncio.sleep(1)
            return number

        before = stage.kernel.now()
        refs = [nap.remote(number) for number in range(20)]

        assert serve.get(refs) == list(range(20))
        assert stage.kernel.now() - before < 2

    on_stage(story, seeds=5)


def test_a_coroutine_awaits_refs() -> None:
    @serve.remote
    async def fib(number: int) -> int:
        if number < 2:
            return number
        return sum(await asyncio.gather(fib.remote(number - 1), fib.remote(number - 2)))

    def story(stage: Stage) -> None:
        assert serve.get(fib.remote(6)) == 8

    on_stage(story, seeds=5)


# ---- how many run


def test_no_more_tasks_run_than_there_are_slots() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def work() -> None:
            stage.work()

        serve.get([work.remote() for _ in range(10)])

        assert stage.most_running == 2

    on_stage(story)


def test_a_task_that_waits_lends_its_slot() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def tree(depth: int) -> int:
            if not depth:
                stage.work()
                return 1
            return sum(serve.get([tree.remote(depth - 1), tree.remote(depth - 1)]))

        assert serve.get(tree.remote(4)) == 16
        assert stage.most_running == 2

    on_stage(story, slots=2)


def test_a_task_that_waits_with_wait_lends_its_slot_too() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def child() -> int:
            return 1

        @serve.remote
        def parent() -> int:
            ready, rest = serve.wait([child.remote()], timeout=60)
            assert not rest
            return serve.get(ready[0])

        assert serve.get(parent.remote()) == 1

    on_stage(story, slots=1)


def test_a_task_is_tried_again_where_that_was_asked_for() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(max_retries=2, retry_exceptions=[OSError])
        def flaky(failures: int, kind: type[Exception]) -> str:
            stage.log.append(kind)
            if len(stage.log) <= failures:
                raise kind("again")
            return "done"

        @serve.remote(retry_exceptions=True)
        async def flaky_async() -> int:
            stage.log.append("async")
            if len(stage.log) < 3:
                raise OSError
            return len(stage.log)

        assert serve.get(flaky.remote(2, OSError)) == "done"
        stage.log.clear()
        with pytest.raises(OSError, match="again"):
            serve.get(flaky.remote(3, OSError))
        assert len(stage.log) == 3
        stage.log.clear()
        with pytest.raises(ValueError, match="again"):
            serve.get(flaky.remote(1, ValueError))
        stage.log.clear()
        assert serve.get(flaky_async.remote()) == 3

    on_stage(story, seeds=5)


# ---- deadlines and cancellation come down


def test_a_deadline_reaches_tasks() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def slow() -> None:
            stage.log.append(serve.remaining())
            stage.rest(10)

        @serve.remote
        def bounded() -> None:
            with serve.deadline(3.0):
                ref = slow.remote()
            serve.get(ref)

        with pytest.raises(serve.RequestTimeoutError, match=r"threadserve/tasks\.slow timed out after 3 s"):
            serve.get(bounded.remote())
        with pytest.raises(serve.RequestTimeoutError, match=r"threadserve/tasks\.slow timed out after 2 s"):
            serve.get(slow.options(timeout_s=2.0).remote())
        assert [round(left, 6) for left in stage.log] == [3.0, 2.0]

    on_stage(story)


def test_cancelling_a_task_cancels_what_it_has_called() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def child() -> None:
            try:
                while True:
                    stage.rest()
                    serve.check_cancelled()
            except serve.Cancelled:
                stage.log.append("child")
                raise

        @serve.remote
        def parent() -> None:
            try:
                serve.get(child.remote())
            except serve.Cancelled:
                stage.log.append("parent")
                raise

        ref = parent.remote()
        stage.rest(2)
        serve.cancel(ref)
        with pytest.raises(serve.RequestCancelledError):
            serve.get(ref)
        stage.rest(5)
        assert sorted(stage.log) == ["child", "parent"]

    on_stage(story)


def test_a_task_that_is_cancelled_in_the_queue_never_runs() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def work(name: str) -> None:
            stage.log.append(name)
            stage.rest()

        first, second = work.remote("first"), work.remote("second")
        stage.rest(0.5)
        serve.cancel(second)
        serve.get(first)
        stage.rest(2)
        assert stage.log == ["first"]

    on_stage(story, slots=1)


def test_two_tasks_that_wait_for_each_other_are_told() -> None:
    def story(stage: Stage) -> None:
        refs: dict[str, Any] = {}

        @serve.remote
        def wait_for(name: str) -> None:
            stage.rest()
            serve.get(refs[name])

        refs["a"] = wait_for.remote("b")
        refs["b"] = wait_for.remote("a")
        with pytest.raises(serve.DeadlockError, match=r"tasks\.wait_for waits for what can never come"):
            serve.get(refs["a"])
        stage.rest(5)

    on_stage(story)


# ---- declaring


def test_a_remote_function_is_not_called_itself() -> None:
    with pytest.raises(TypeError, match=r"write add\.remote\(\.\.\.\)"):
        add(1, 2)
    assert add.function(1, 2) == 3
    assert add.__name__ == "add"
    assert repr(add) == "<RemoteFunction add; call it with .remote(...)>"


def test_remote_is_a_decorator_with_options_and_a_plain_call() -> None:
    named = serve.remote(num_cpus=1, name="plus")(add.function)

    assert isinstance(named, serve.RemoteFunction)
    assert "threadserve/reserving tasks.plus" in repr(named.remote(1, 1))
    assert serve.get(named.options(num_cpus=None).remote(1, 1)) == 2
    with pytest.raises(TypeError, match=r"takes a function or a class, not 5"):
        serve.remote(5)  # type: ignore[call-overload]


def test_a_remote_function_can_be_pickled() -> None:
    other = three.options(num_returns=1)
    again = pickle.loads(pickle.dumps(other))

    assert pickle.loads(pickle.dumps(three)) is three
    assert (again.function, again.options_given) == (three.function, {"num_returns": 1})


# ---- its end


def test_a_shutdown_fails_what_runs_and_what_is_queued() -> None:
    def story(kernel: SimulatedKernel) -> None:
        controller = Controller(kernel, {"CPU": 1})

        def work() -> None:
            while True:
                kernel.waiter().wait(1.0)
                serve.check_cancelled()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("threadserve.tasks.workforce.controller", lambda: controller)
            patch.setattr("threadserve.tasks.workforce.default_slots", lambda: 1)
            plain, reserving = serve.remote(work), serve.remote(num_cpus=1)(work)
            running = [plain.remote(), reserving.remote()]
            queued = [plain.remote(), reserving.remote()]
            kernel.waiter().wait(0.5)
            controller.shutdown()

            for ref in running:
                with pytest.raises(serve.ReplicaDiedError, match="the runtime was shut down"):
                    serve.get(ref)
            for ref in queued:
                with pytest.raises(serve.DeploymentUnavailableError, match="the runtime was shut down"):
                    serve.get(ref)
            with pytest.raises(serve.ServeError, match="the runtime has been shut down"):
                plain.remote()

    explore(story, min(SEEDS, 8))


def test_after_a_shutdown_the_next_call_starts_a_new_runtime() -> None:
    assert serve.get(add.remote(1, 1)) == 2
    serve.shutdown()
    assert serve.get(add.remote(1, 2)) == 3
