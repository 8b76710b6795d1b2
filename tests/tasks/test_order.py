"""The lines of callers at an actor: one after the other, also when a caller comes again."""

from __future__ import annotations

from typing import Any

import threadserve as serve
from tests.tasks.stage import Stage, on_stage
from threadserve.tasks.order import OrderedRouter


def test_the_answer_to_an_old_call_does_not_open_a_line_that_came_after_it() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def late(seconds: float) -> float:
            stage.rest(seconds)
            return seconds

        @serve.remote
        class Worker:
            def work(self, name: str, seconds: float) -> None:
                stage.log.append(name)
                stage.rest(seconds)

        worker = Worker.remote()
        first = worker.work.remote("first", late.remote(1))
        stage.rest(1.5)  # it runs, and nobody stands in line
        second = worker.work.remote("second", late.remote(10))
        serve.get(first)
        third = worker.work.remote("third", 0)
        serve.get([second, third])

        assert stage.log == ["first", "second", "third"]

    on_stage(story)


def test_nothing_is_kept_of_a_line_that_is_done() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        class Worker:
            def work(self, number: Any) -> Any:
                return number

        worker = Worker.remote()
        refs = [worker.work.remote(serve.put(number)) for number in range(3)]
        refs += [worker.work.remote([worker._grip]), worker.work.remote(refs[0])]
        serve.get(refs)

        (actor,) = stage.workforce.actors()
        assert isinstance(actor.router, OrderedRouter)
        assert actor.router._lines == actor.router._places == {}

    on_stage(story)
