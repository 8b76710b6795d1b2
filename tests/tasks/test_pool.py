"""What tasks reserve: in line, first come first served, given back on every path; cores are lent while a task waits."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.tasks.stage import SEEDS, Stage, on_stage
from threadserve.runtime.resources import Demand
from threadserve.tasks.options import TaskOptions
from threadserve.tasks.pool import Job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def worker(stage: Stage, **options: Any) -> serve.RemoteFunction[Any]:
    def work(number: int = 0, seconds: float = 1.0) -> int:
        stage.log.append(number)
        stage.work(seconds)
        return number

    return serve.remote(work).options(**options)


def test_no_more_run_than_the_machine_has_cores_for() -> None:
    def story(stage: Stage) -> None:
        work = worker(stage, num_cpus=1)

        assert serve.get([work.remote(number) for number in range(8)]) == list(range(8))
        assert stage.most_running == 2

    on_stage(story)


def test_those_that_ask_for_the_same_come_in_the_order_of_their_calls() -> None:
    def story(stage: Stage) -> None:
        work = worker(stage, num_cpus=2)
        serve.get([work.remote(number) for number in range(6)])

        assert stage.log == list(range(6))

    on_stage(story)


def test_tasks_that_reserve_do_not_take_the_slots_of_the_others() -> None:
    def story(stage: Stage) -> None:
        plain, reserving = worker(stage), worker(stage, num_cpus=2)
        refs = [reserving.remote(), plain.remote(), plain.remote()]
        serve.get(refs)

        assert stage.most_running == 2

    on_stage(story, slots=1)


def test_small_tasks_do_not_pass_a_large_one_by() -> None:
    def story(stage: Stage) -> None:
        small, large = worker(stage, num_cpus=1), worker(stage, num_cpus=2)
        refs = [small.remote(1, 3.0), large.remote(2), small.remote(3), small.remote(4)]

        assert serve.get(refs) == [1, 2, 3, 4]
        assert stage.log[:2] == [1, 2]

    on_stage(story)


def test_a_task_that_is_cancelled_in_line_keeps_nobody_waiting() -> None:
    def story(stage: Stage) -> None:
        small, large = worker(stage, num_cpus=1), worker(stage, num_cpus=2)
        first, second, third = small.remote(1, 50.0), large.remote(2), small.remote(3)
        stage.rest(1)
        serve.cancel(second)

        assert serve.get(third, timeout=10) == 3
        assert serve.get(first) == 1

    on_stage(story)


def test_what_the_machine_does_not_have_is_refused_at_the_ref() -> None:
    def story(stage: Stage) -> None:
        work = worker(stage, num_cpus=3)
        refs = [work.remote(), work.remote()]

        for ref in refs:
            with pytest.raises(
                serve.ResourceError, match=r"reserving tasks\.work can never start: .* 3 cores"
            ):
                serve.get(ref)
        assert stage.log == []

    on_stage(story)


def test_a_task_that_is_cancelled_in_line_never_runs_and_holds_nothing() -> None:
    def story(stage: Stage) -> None:
        work = worker(stage, num_cpus=2)
        refs = [work.remote(number) for number in range(4)]
        stage.rest(0.5)
        serve.cancel(refs[1])
        serve.cancel(refs[2])

        assert serve.get(refs[3]) == 3
        assert stage.log == [0, 3]

    on_stage(story)


def test_whatever_is_cancelled_when_all_is_given_back() -> None:
    def story(stage: Stage) -> None:
        work = worker(stage, num_cpus=1)
        refs = [work.remote(number) for number in range(4)]
        cancelling = [stage.spawn(f"cancel {at}", partial(serve.cancel, refs[at])) for at in (0, 3)]
        for thread in cancelling:
            thread.join()

        assert serve.get(refs[1:3]) == [1, 2]
        # that nothing is held any more is what the stage asks in the end

    on_stage(story, seeds=min(SEEDS, 100))


def test_the_gpus_of_a_task_are_named() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(num_gpus=1)
        def gpus() -> tuple[str, ...]:
            stage.rest()
            return serve.get_replica_context().gpu_ids

        assert sorted(serve.get([gpus.remote(), gpus.remote()])) == [("0",), ("1",)]

    on_stage(story)


def test_a_task_that_waits_lends_its_cores_but_not_its_gpus() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(num_cpus=1, num_gpus=1)
        def outer() -> tuple[float, float]:
            serve.get(inner.remote())
            free = stage.controller.ledger.statistics().free
            return free["CPU"], free["GPU"]

        @serve.remote(num_cpus=2)
        def inner() -> None:
            stage.rest()
            stage.log.append(stage.controller.ledger.statistics().free["GPU"])

        assert serve.get(outer.remote()) == (1, 1)
        assert stage.log == [1]

    on_stage(story)


def test_a_recursion_of_reserving_tasks_comes_to_its_end() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(num_cpus=1)
        def tree(depth: int) -> int:
            if not depth:
                return 1
            return sum(serve.get([tree.remote(depth - 1), tree.remote(depth - 1)]))

        assert serve.get(tree.remote(3)) == 8

    on_stage(story)


def test_a_coroutine_and_a_generator_hold_what_they_reserve_until_they_end() -> None:
    def story(stage: Stage) -> None:
        import asyncio

        @serve.remote(num_cpus=1)
        async def nap() -> float:
            await asyncio.sleep(1)
            return stage.controller.ledger.statistics().free["CPU"]

        @serve.remote(num_cpus=2)
        def items() -> Iterator[float]:
            yield stage.controller.ledger.statistics().free["CPU"]

        @serve.remote(num_cpus=2)
        async def aitems() -> AsyncIterator[float]:
            await asyncio.sleep(1)
            yield stage.controller.ledger.statistics().free["CPU"]

        assert serve.get(nap.remote()) == 1
        assert [serve.get(ref) for ref in items.remote()] == [0]
        assert [serve.get(ref) for ref in aitems.remote()] == [0]

    on_stage(story, seeds=5)


def test_a_task_that_fails_or_leaves_gives_back_what_it_holds() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(num_cpus=2)
        def fail(kind: type[BaseException]) -> None:
            raise kind("bad")

        for kind in (ValueError, SystemExit):
            with pytest.raises((ValueError, serve.ReplicaDiedError)):
                serve.get(fail.remote(kind))
        assert serve.get(worker(stage, num_cpus=2).remote(5)) == 5

    on_stage(story)


def test_a_job_is_itself_in_every_copy() -> None:
    job = Job(len, TaskOptions(), Demand())

    assert pickle.loads(pickle.dumps(job)) is job
    assert copy.deepcopy([job])[0] is job
