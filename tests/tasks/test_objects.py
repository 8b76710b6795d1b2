"""The verbs over refs: what they take, how long they wait, what they refuse."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any

import pytest

import threadserve as serve
from tests.tasks.stage import Stage, on_stage


def sleeper(stage: Stage) -> serve.RemoteFunction[Any]:
    @serve.remote
    def sleep(seconds: float) -> float:
        stage.rest(seconds)
        return seconds

    return sleep


# ---- get


def test_get_takes_one_or_a_list_of_refs_responses_and_futures() -> None:
    @serve.deployment
    def double(number: int) -> int:
        return 2 * number

    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    future.set_result(3)
    with serve.running(double.bind()) as handle:
        assert serve.get(handle.remote(2)) == 4
        assert serve.get(future) == 3
        mixed: list[Any] = [serve.put(1), handle.remote(1), future]
        assert serve.get(mixed) == [1, 2, 3]
        assert serve.get((serve.put(1),)) == [1]
        assert serve.get([]) == []


def test_get_gives_up_after_its_timeout_and_can_be_asked_again() -> None:
    def story(stage: Stage) -> None:
        sleep = sleeper(stage)
        one, two = sleep.remote(5), sleep.remote(6)

        with pytest.raises(TimeoutError, match=r"tasks\.sleep.* was not done within timeout=1"):
            serve.get(one, timeout=1)
        with pytest.raises(TimeoutError, match=r"2 of 2 calls were not done within 0 s"):
            serve.get([one, two], timeout=0)
        assert serve.get([one, two], timeout=60) == [5, 6]
        assert serve.get(one, timeout=0) == 5

    on_stage(story)


def test_get_raises_the_first_failure_without_waiting_for_the_others() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def fail() -> None:
            stage.rest(1)
            raise ValueError("bad")

        began = stage.kernel.now()
        with pytest.raises(ValueError, match="bad"):
            serve.get([sleeper(stage).remote(50), fail.remote()])
        assert stage.kernel.now() - began < 2

    on_stage(story)


def test_get_and_wait_do_not_block_an_event_loop() -> None:
    async def ask(verb: Any) -> None:
        verb([serve.put(1)])

    for verb in (serve.get, serve.wait):
        with pytest.raises(RuntimeError, match=r"cannot block on serve\.\w+ inside a running event loop"):
            asyncio.run(ask(verb))


@pytest.mark.parametrize("wrong", [5, "ab", [5], None])
def test_get_refuses_what_is_no_ref(wrong: Any) -> None:
    with pytest.raises(TypeError, match="expected responses"):
        serve.get(wrong)


def test_get_says_how_a_generator_of_refs_is_read() -> None:
    @serve.remote
    def items() -> Any:
        yield 1

    generator = items.remote()
    with pytest.raises(TypeError, match="for ref in generator"):
        serve.get(generator)
    assert serve.get(list(generator)) == [1]


def test_get_in_a_cancelled_task_is_a_checkpoint() -> None:
    def story(stage: Stage) -> None:
        @serve.remote
        def work() -> None:
            stage.rest(5)
            try:
                serve.get(serve.put(1))
            except serve.Cancelled:
                stage.log.append("stopped")
                raise

        ref = work.remote()
        stage.rest()
        serve.cancel(ref)
        stage.rest(10)
        assert stage.log == ["stopped"]

    on_stage(story)


# ---- put


def test_put_shares_the_value() -> None:
    value = [1, 2]
    ref = serve.put(value)

    assert serve.get(ref) is value
    assert ref.done()
    with pytest.raises(TypeError, match="is an ObjectRef already"):
        serve.put(ref)


# ---- wait


def test_wait_returns_what_is_ready_and_the_rest_in_the_order_given() -> None:
    def story(stage: Stage) -> None:
        sleep = sleeper(stage)
        refs = [sleep.remote(seconds) for seconds in (3, 1, 2)]

        assert serve.wait(refs) == ([refs[1]], [refs[0], refs[2]])
        assert serve.wait(refs, num_returns=2) == ([refs[1], refs[2]], [refs[0]])
        assert serve.wait(refs, num_returns=3, timeout=0) == ([refs[1], refs[2]], [refs[0]])
        assert serve.wait(refs, num_returns=3) == (refs, [])

    on_stage(story, slots=3)


def test_wait_returns_no_more_than_was_asked_for() -> None:
    refs = [serve.put(number) for number in range(3)]

    ready, rest = serve.wait(refs, num_returns=2)

    assert (len(ready), len(rest)) == (2, 1)


def test_wait_takes_responses_and_futures() -> None:
    @serve.deployment
    def double(number: int) -> int:
        return 2 * number

    never: concurrent.futures.Future[int] = concurrent.futures.Future()
    with serve.running(double.bind()) as handle:
        response, ref = handle.remote(1), serve.put(1)

        assert serve.wait([never, response, ref], num_returns=2) == ([response, ref], [never])


def test_wait_refuses_what_makes_no_sense() -> None:
    ref = serve.put(1)

    assert serve.wait([]) == ([], [])
    with pytest.raises(serve.ConfigError, match="each ref can be given once"):
        serve.wait([ref, ref])
    for number in (0, 2):
        with pytest.raises(ValueError, match=f"num_returns must be from 1 to 1, not {number}"):
            serve.wait([ref], num_returns=number)
    with pytest.raises(TypeError):
        serve.wait([5])


# ---- cancel


def test_cancel_takes_refs_responses_and_streams() -> None:
    @serve.deployment(max_ongoing_requests=4)
    class Endless:
        async def __call__(self) -> None:
            await asyncio.Event().wait()

        async def items(self) -> Any:
            await asyncio.Event().wait()
            yield 1

    with serve.running(Endless.bind()) as handle:
        response: Any = handle.remote()
        stream: Any = handle.options(stream=True).items.remote()
        refs = handle.options(stream=True).items.remote()._to_object_ref_gen_sync()
        ref = handle.remote()._to_object_ref_sync()
        for each in (response, stream, refs, ref):
            serve.cancel(each)

        with pytest.raises(serve.RequestCancelledError):
            response.result()
        with pytest.raises(serve.RequestCancelledError):
            next(stream)
        with pytest.raises(serve.RequestCancelledError):
            serve.get(next(refs))
        with pytest.raises(serve.RequestCancelledError):
            serve.get(ref)


def test_cancel_does_nothing_to_a_value_and_refuses_what_is_none() -> None:
    ref = serve.put(1)

    serve.cancel(ref, force=True, recursive=False)

    assert serve.get(ref) == 1
    with pytest.raises(TypeError, match=r"takes an ObjectRef or a response, not 5; .* serve\.kill"):
        serve.cancel(5)
