"""Actors: their state, the order of their calls, how they are named and called, and how they end."""

from __future__ import annotations

import asyncio
import pickle
import types
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.doubles import let_the_dead_go
from tests.tasks.stage import Stage, on_stage
from threadserve.tasks.actor import ActorMethod, method

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@serve.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.count = start

    def add(self, number: int = 1) -> int:
        self.count += number
        return self.count

    def items(self, end: int) -> Iterator[int]:
        yield from range(self.count, end)

    @method(num_returns=2)
    def pair(self) -> tuple[int, int]:
        return self.count, -self.count

    @staticmethod
    def half(number: int) -> float:
        return number / 2


@serve.remote
def value(of: Any) -> Any:
    return of


# ---- calling


def test_an_actor_keeps_its_state_between_calls() -> None:
    def story(stage: Stage) -> None:
        counter = Counter.remote(value.remote(10))

        assert serve.get([counter.add.remote(), counter.add.remote(value.remote(5))]) == [11, 16]
        assert serve.get(counter.half.remote(3)) == 1.5

    on_stage(story)


def test_calls_run_one_at_a_time_in_the_order_in_which_they_were_made() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Worker:
            def work(self, number: int) -> None:
                stage.log.append(number)
                stage.work()

        worker = Worker.remote()
        serve.get([worker.work.remote(number) for number in range(5)])

        assert stage.log == [0, 1, 2, 3, 4]
        assert stage.most_running == 1

    on_stage(story)


def test_several_values_and_streams_work_as_those_of_tasks() -> None:
    def story(stage: Stage) -> None:
        counter = Counter.remote(2)

        assert serve.get(counter.pair.remote()) == [2, -2]
        assert serve.get(counter.pair.options(num_returns=1).remote()) == (2, -2)
        assert [serve.get(ref) for ref in counter.items.remote(5)] == [2, 3, 4]

    on_stage(story)


def test_a_call_that_has_to_wait_for_its_arguments_keeps_the_later_ones_waiting() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def slow(number: int) -> int:
            stage.rest(10)
            return number

        counter = Counter.remote()

        late = counter.add.remote(slow.remote(100))
        assert serve.get([counter.add.remote(), late, counter.add.remote()]) == [101, 100, 102]

    on_stage(story)


def test_other_callers_are_not_kept_waiting() -> None:
    def story(stage: Stage) -> None:
        counter = Counter.remote()

        @serve.remote
        def ask() -> int:
            return int(serve.get(counter.add.remote(1)))

        assert serve.get(counter.add.remote(ask.remote())) == 2

    on_stage(story)


def test_a_failed_or_cancelled_argument_lets_the_later_calls_go_on() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def fail() -> int:
            stage.rest()
            raise ValueError("no number")

        @serve.remote
        def never() -> int:
            stage.rest(5)
            return 0

        counter = Counter.remote()
        failing, cancelled = counter.add.remote(fail.remote()), counter.add.remote(never.remote())
        following = counter.add.remote()
        serve.cancel(cancelled)

        with pytest.raises(ValueError, match="no number"):
            serve.get(failing)
        with pytest.raises(serve.RequestCancelledError):
            serve.get(cancelled)
        assert serve.get(following) == 1

    on_stage(story)


def test_order_can_be_given_up() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def slow() -> int:
            stage.rest(10)
            return 100

        counter = Counter.options(allow_out_of_order_execution=True).remote()
        late = counter.add.remote(slow.remote())

        assert serve.get(counter.add.remote()) == 1
        assert serve.get(late) == 101

    on_stage(story)


def test_max_concurrency_lets_calls_run_at_once() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(max_concurrency=3)
        class Worker:
            def work(self) -> None:
                stage.work()

        worker = Worker.remote()
        serve.get([worker.work.remote() for _ in range(9)])

        assert stage.most_running == 3

    on_stage(story)


def test_the_methods_of_an_async_actor_take_turns_on_one_loop() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Gate:
            def __init__(self) -> None:
                self.is_open = asyncio.Event()
                self.waiting = 0

            async def wait(self) -> str:
                self.waiting += 1
                await self.is_open.wait()
                return "through"

            def open(self) -> int:
                assert asyncio.get_running_loop() is not None
                self.is_open.set()
                return self.waiting

            async def count(self, end: int) -> AsyncIterator[int]:
                for item in range(end):
                    yield item

        gate = Gate.remote()
        waits = [gate.wait.remote() for _ in range(20)]
        stage.rest()

        assert serve.get(gate.open.remote()) == 20
        assert serve.get(waits) == ["through"] * 20
        assert [serve.get(ref) for ref in gate.count.remote(3)] == [0, 1, 2]

    on_stage(story, seeds=5)


def test_max_concurrency_bounds_coroutines_as_well() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(max_concurrency=2)
        class Worker:
            async def work(self) -> None:
                stage.now_running += 1
                stage.most_running = max(stage.most_running, stage.now_running)
                await asyncio.sleep(1)
                stage.now_running -= 1

        worker = Worker.remote()
        serve.get([worker.work.remote() for _ in range(6)])

        assert stage.most_running == 2

    on_stage(story, seeds=5)


def test_what_waits_beyond_max_pending_calls_is_refused() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(max_pending_calls=1)
        class Worker:
            def work(self) -> str:
                stage.rest(5)
                return "done"

        worker = Worker.remote()
        first = worker.work.remote()
        stage.rest()
        second, third = worker.work.remote(), worker.work.remote()

        with pytest.raises(serve.BackPressureError, match=r"actors/Worker-1 is full"):
            serve.get(third)
        assert serve.get([first, second]) == ["done", "done"]

    on_stage(story)


def test_an_actor_that_waits_for_itself_is_told() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Selfish:
            def ask(self, me: list[Any]) -> Any:
                return serve.get(me[0].answer.remote())

            def answer(self) -> int:
                return 42

        selfish = Selfish.remote()
        with pytest.raises(serve.DeadlockError, match=r"actors/Selfish-1\.ask waits for what can never come"):
            serve.get(selfish.ask.remote([selfish]))

    on_stage(story)


# ---- handles


def test_a_method_that_is_not_there_is_refused_at_once() -> None:
    counter = Counter.remote()

    with pytest.raises(AttributeError, match=r"actor class Counter has no method 'ad'; did you mean 'add'\?"):
        _ = counter.ad
    with pytest.raises(AttributeError):
        _ = counter.__len__
    assert isinstance(counter.add, ActorMethod)


def test_what_is_not_called_itself_says_what_is() -> None:
    counter = Counter.remote()

    with pytest.raises(TypeError, match=r"write Counter\.remote\(\.\.\.\)"):
        Counter()
    with pytest.raises(TypeError, match=r"write add\.remote\(\.\.\.\)"):
        counter.add(1)
    with pytest.raises(TypeError, match=r"inherit from Counter\.cls"):
        types.new_class("Sub", types.resolve_bases((Counter,)))
    with pytest.raises(TypeError, match=r"takes an ActorHandle, not 5"):
        serve.kill(5)  # type: ignore[arg-type]


def test_a_copy_of_a_handle_reaches_the_same_actor() -> None:
    counter = Counter.remote()
    copy = pickle.loads(pickle.dumps(counter))
    bound = pickle.loads(pickle.dumps(counter.add))

    assert copy == counter
    assert hash(copy) == hash(counter)
    assert copy._actor_id == counter._actor_id
    assert serve.get([counter.add.remote(), copy.add.remote(), bound.remote()]) == [1, 2, 3]
    assert pickle.loads(pickle.dumps(Counter)) is Counter


def test_a_named_actor_is_found_by_its_name_and_namespace() -> None:
    def story(stage: Stage) -> None:
        here = Counter.options(name="one").remote(1)
        there = Counter.options(name="one", namespace="there").remote(2)

        assert serve.get_actor("one") == here
        assert serve.get_actor("one", namespace="there") == there
        assert Counter.options(name="one", get_if_exists=True).remote(9) == here
        with pytest.raises(serve.ConfigError, match=r"the name 'one' is taken by <Actor Counter-1 \w+>"):
            Counter.options(name="one").remote()
        with pytest.raises(ValueError, match=r"there is no actor named 'two'; there are \['one', 'one'\]"):
            serve.get_actor("two")
        serve.kill(here)
        assert serve.get(Counter.options(name="one").remote(5).add.remote()) == 6

    on_stage(story)


# ---- the beginning


def test_a_failed_constructor_fails_every_call_and_the_cause_is_the_users_own_exception() -> None:
    def story(stage: Stage) -> None:
        error = ValueError("no start")

        @serve.remote
        class Broken:
            def __init__(self, _value: object = None) -> None:
                raise error

            def call(self) -> None:
                stage.log.append("ran")

        broken = Broken.remote()
        before = broken.call.remote()
        with pytest.raises(
            serve.ActorDiedError, match=r"actors/Broken-1 .* could not start: ValueError: no start"
        ) as caught:
            serve.get(before)
        assert caught.value.__cause__ is error
        with pytest.raises(serve.ActorDiedError):
            serve.get(broken.call.remote())
        assert stage.log == []

    on_stage(story)


def test_a_failed_argument_of_the_constructor_is_the_cause_of_death() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def fail() -> int:
            raise KeyError("nothing there")

        counter = Counter.remote(fail.remote())
        with pytest.raises(serve.ActorDiedError, match="nothing there") as caught:
            serve.get(counter.add.remote())
        assert isinstance(caught.value.__cause__, KeyError)

    on_stage(story)


def test_a_coroutine_can_be_the_constructor() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Slow:
            async def __init__(self) -> None:  # type: ignore[misc]
                await asyncio.sleep(1)
                self.is_up = True

            async def ask(self) -> bool:
                return self.is_up

        assert serve.get(Slow.remote().ask.remote()) is True

    on_stage(story, seeds=5)


def test_an_actor_waits_for_the_resources_that_another_one_has() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(num_gpus=2)
        class Trainer:
            def gpus(self) -> tuple[str, ...]:
                return serve.get_replica_context().gpu_ids

        first = Trainer.remote()
        assert serve.get(first.gpus.remote()) == ("0", "1")
        second = Trainer.remote()
        asked = second.gpus.remote()
        assert serve.wait([asked], timeout=5) == ([], [asked])
        serve.kill(first)
        assert serve.get(asked) == ("0", "1")
        third = Trainer.remote()
        serve.kill(third)
        with pytest.raises(serve.ActorDiedError):
            serve.get(third.gpus.remote())

    on_stage(story)


def test_an_actor_that_asks_for_too_much_never_starts() -> None:
    def story(stage: Stage) -> None:
        big = Counter.options(num_cpus=3).remote()
        with pytest.raises(serve.ActorDiedError) as caught:
            serve.get(big.add.remote())
        assert isinstance(caught.value.__cause__, serve.ResourceError)

    on_stage(story, seeds=5)


# ---- the end


def test_killing_an_actor_fails_what_it_runs_and_what_is_queued() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Worker:
            def work(self) -> None:
                try:
                    while True:
                        stage.rest()
                        serve.check_cancelled()
                finally:
                    stage.log.append("returned")

        worker = Worker.remote()
        calls = [worker.work.remote(), worker.work.remote()]
        stage.rest(2)
        serve.kill(worker)
        calls.append(worker.work.remote())

        for call in calls:
            with pytest.raises(serve.ActorDiedError, match=r"it was killed with serve\.kill"):
                serve.get(call)
        stage.rest(5)
        assert stage.log == ["returned"]
        serve.kill(worker)

    on_stage(story)


def test_killing_an_async_actor_cancels_its_coroutines() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Worker:
            async def work(self) -> None:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    stage.log.append("cancelled")
                    raise

        worker = Worker.remote()
        call = worker.work.remote()
        stage.rest(2)
        serve.kill(worker)
        with pytest.raises(serve.ActorDiedError):
            serve.get(call)
        stage.rest(2)
        assert stage.log == ["cancelled"]

    on_stage(story, seeds=5)


def test_an_actor_that_is_killed_before_it_is_up_never_runs() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Slow:
            def __init__(self) -> None:
                stage.rest(5)

            def call(self) -> None:
                stage.log.append("ran")

        slow = Slow.remote()
        call = slow.call.remote()
        stage.rest()
        serve.kill(slow)
        with pytest.raises(serve.ActorDiedError):
            serve.get(call)
        stage.rest(10)
        assert stage.log == []

    on_stage(story)


@serve.remote(max_restarts=1)
class Fragile:
    def __init__(self, start: int) -> None:
        self.calls = start

    def call(self) -> int:
        self.calls += 1
        return self.calls

    def leave(self) -> None:
        raise SystemExit(3)


def test_system_exit_ends_an_actor() -> None:
    def story(stage: Stage) -> None:
        fragile = Fragile.options(max_restarts=0).remote(0)
        left = fragile.leave.remote()
        after = fragile.call.remote()

        with pytest.raises(serve.ActorDiedError, match=r"SystemExit\(3\)") as caught:
            serve.get(left)
        assert isinstance(caught.value.__cause__, SystemExit)
        with pytest.raises(serve.ActorDiedError, match=r"its code raised SystemExit\(3\)"):
            serve.get(after)

    on_stage(story)


def test_an_actor_with_restarts_left_starts_anew_and_does_what_was_queued() -> None:
    def story(stage: Stage) -> None:
        fragile = Fragile.remote(value.remote(10))
        assert serve.get(fragile.call.remote()) == 11
        left, after = fragile.leave.remote(), fragile.call.remote()

        with pytest.raises(serve.ActorDiedError):
            serve.get(left)
        assert serve.get(after) == 11
        serve.kill(fragile, no_restart=False)
        with pytest.raises(serve.ActorDiedError):
            serve.get(fragile.call.remote())

    on_stage(story)


def test_an_actor_ends_when_its_last_handle_is_dropped_after_what_was_called() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Worker:
            def work(self, number: int) -> int:
                stage.rest()
                return number

            def __del__(self) -> None:
                stage.log.append("gone")

        worker = Worker.remote()
        calls = [worker.work.remote(number) for number in range(3)]
        other = worker.work
        del worker
        assert serve.get(calls[0]) == 0
        del other
        assert serve.get(calls) == [0, 1, 2]
        stage.rest(5)
        assert stage.log == ["gone"]
        assert stage.workforce.actors() == []

    on_stage(story)


def test_a_handle_in_a_call_that_has_not_begun_keeps_the_actor() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def slow() -> int:
            stage.rest(5)
            return 7

        @serve.remote
        def use(counter: Any, number: int) -> int:
            return int(serve.get(counter.add.remote(number)))

        ref = use.remote(Counter.remote(), slow.remote())
        assert serve.get(ref) == 7
        let_the_dead_go()
        stage.rest()
        assert stage.workforce.actors() == []

    on_stage(story)


def test_a_detached_actor_lives_on_without_handles() -> None:
    def story(stage: Stage) -> None:
        Counter.options(name="counter", lifetime="detached").remote(5)
        stage.rest()

        assert serve.get(serve.get_actor("counter").add.remote()) == 6
        stage.rest()
        serve.kill(serve.get_actor("counter"))
        with pytest.raises(serve.ConfigError):
            serve.get_actor("counter")

    on_stage(story)


def test_a_named_actor_that_is_not_detached_ends_with_its_handles() -> None:
    def story(stage: Stage) -> None:
        Counter.options(name="counter").remote(5)

        with pytest.raises(serve.ConfigError):
            serve.get_actor("counter")
        assert serve.get(Counter.options(name="counter").remote(1).add.remote()) == 2

    on_stage(story)


def test_a_shutdown_ends_all_actors_also_those_that_will_not_return() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Stubborn:
            def work(self) -> None:
                stage.rest(30)

        stubborn = Stubborn.options(lifetime="detached").remote()
        call = stubborn.work.remote()
        stage.rest()
        stage.controller.shutdown()
        with pytest.raises(serve.ActorDiedError, match="the runtime was shut down"):
            serve.get(call)
        stage.controller._is_closed = False  # for the books

    on_stage(story, seeds=5)


def test_ready_and_terminate_are_there_as_in_ray() -> None:
    def story(stage: Stage) -> None:
        counter = Counter.remote()
        assert serve.get(counter.__ray_ready__.remote()) is True
        counter.__ray_terminate__.remote()
        stage.rest()
        with pytest.raises(serve.ActorDiedError):
            serve.get(counter.add.remote())

    on_stage(story, seeds=5)
