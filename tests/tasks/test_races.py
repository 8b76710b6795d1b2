"""Tasks and actors with several things at once, in every order that the simulator finds.

Whatever the order, each call is answered, callers' calls stay in order, and in the end nothing is held, lent or left:
that is what the stage asks when the story is over.
"""

from __future__ import annotations

from typing import Any

import pytest

import threadserve as serve
from tests.tasks.stage import SEEDS, Stage, on_stage

pytestmark = pytest.mark.slow


def test_every_caller_keeps_its_order_whatever_waits_for_arguments() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Log:
            def note(self, caller: str, number: int) -> None:
                stage.log.append((caller, number))

        @serve.remote
        def late(number: int) -> int:
            stage.rest(number % 2)
            return number

        log = Log.remote()

        @serve.remote
        def call(caller: str) -> list[Any]:
            return [
                log.note.remote(caller, late.remote(number) if number % 3 else number) for number in range(5)
            ]

        calls = [call.remote("a"), call.remote("b")]
        serve.get([ref for refs in serve.get(calls) for ref in refs])

        assert [number for caller, number in stage.log if caller == "a"] == list(range(5))
        assert [number for caller, number in stage.log if caller == "b"] == list(range(5))

    on_stage(story, seeds=SEEDS // 5)


def test_calls_are_answered_once_when_the_actor_is_killed_among_them() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Worker:
            def work(self, number: int) -> int:
                stage.rest(0.1)
                return number

        @serve.remote
        def late() -> int:
            stage.rest(0.2)
            return 7

        worker = Worker.remote(*())
        refs: list[Any] = []
        caller = stage.spawn(
            "caller",
            lambda: refs.extend(worker.work.remote(late.remote() if at == 1 else at) for at in range(4)),
        )
        killer = stage.spawn("killer", lambda: (stage.rest(0.15), serve.kill(worker)))
        caller.join()
        killer.join()

        ready, rest = serve.wait(refs, num_returns=4, timeout=50)
        assert (len(ready), rest) == (4, [])
        ended = [ref.future.exception() or ref.future.result() for ref in refs]
        assert all(isinstance(each, (int, serve.ActorDiedError)) for each in ended)

    on_stage(story, seeds=SEEDS // 5)


def test_a_dropped_actor_does_all_that_was_called_before() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Worker:
            def work(self, number: int) -> int:
                return number

        @serve.remote
        def late() -> int:
            return 7

        handles = [Worker.remote()]
        refs = [handles[0].work.remote(1), handles[0].work.remote(late.remote()), handles[0].work.remote(3)]
        dropping = stage.spawn("dropper", handles.clear)

        assert serve.get(refs) == [1, 7, 3]
        dropping.join()
        stage.rest(5)
        assert stage.workforce.actors() == []

    on_stage(story, seeds=SEEDS // 5)


def test_two_who_want_the_same_name_get_one_actor() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(name="one", get_if_exists=True)
        class Counter:
            def __init__(self) -> None:
                self.count = 0

            def add(self) -> int:
                self.count += 1
                return self.count

        handles: list[Any] = []
        threads = [stage.spawn(f"thread {at}", lambda: handles.append(Counter.remote())) for at in range(3)]
        for thread in threads:
            thread.join()

        assert sorted(serve.get([handle.add.remote() for handle in handles])) == [1, 2, 3]

    on_stage(story, seeds=SEEDS // 5)


def test_cancels_kills_and_ends_leave_no_core_reserved() -> None:
    def story(stage: Stage) -> None:
        @serve.remote(num_cpus=1)
        def work(number: int) -> int:
            stage.rest(0.1)
            if number:
                return int(serve.get(work.remote(number - 1)))
            return 0

        @serve.remote(num_cpus=1)
        class Holder:
            def hold(self) -> None:
                stage.rest(0.1)

        holder = Holder.remote()
        refs = [work.remote(number % 3) for number in range(6)]
        deeds: list[Any] = [
            lambda: serve.cancel(refs[0]),
            lambda: serve.cancel(refs[5]),
            lambda: (stage.rest(0.1), serve.cancel(refs[2])),
            lambda: (stage.rest(0.1), serve.kill(holder)),
        ]
        threads = [stage.spawn(f"deed {at}", deed) for at, deed in enumerate(deeds)]
        for thread in threads:
            thread.join()
        ready, rest = serve.wait(refs, num_returns=6, timeout=80)

        assert (len(ready), rest) == (6, [])

    on_stage(story, seeds=SEEDS // 5)


def test_lending_never_loses_a_slot() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def leaf(number: int) -> int:
            stage.work(0.1)
            return number

        @serve.remote
        def parent(number: int) -> int:
            return sum(serve.get([leaf.remote(number), leaf.remote(number)]))

        refs = [parent.remote(number) for number in range(4)]
        stage.rest(0.1)
        serve.cancel(refs[1])
        ready, _ = serve.wait(refs, num_returns=4, timeout=50)

        assert len(ready) == 4
        assert serve.get([refs[0], refs[2], refs[3]]) == [0, 4, 6]
        # A task goes on at once when it has what it waited for, though another one may still be in its slot.
        assert stage.most_running <= 2 + 4

    on_stage(story, slots=2, seeds=SEEDS // 5)
