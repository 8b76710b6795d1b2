"""A thread that waits for a call runs it, and nobody can tell but by the thread.

Who is first to come to a call, its waiter or a worker, is a race. Where a story needs the waiter to win, the workers are
late: they come when the story lets them. Where it must not matter who wins, many seeds play it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
import traceback
import weakref
from _thread import get_ident
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.doubles import (
    Deployed,
    LateSimulation,
    LateWorkers,
    assert_nothing_left,
    check_invariants,
    deployed,
    let_it_rest,
    lines_run_by,
    request_behind,
    unattended,
    wait_until,
)
from threadserve import futures
from threadserve.call.blocking import DEPTH
from threadserve.call.request import RUNNING
from threadserve.concurrency.outcome import Value
from threadserve.concurrency.real import RealKernel
from threadserve.errors import (
    BackPressureError,
    Cancelled,
    DeploymentUnavailableError,
    ReplicaDiedError,
    RequestCancelledError,
)
from threadserve.router import helping
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threadserve.call.response import DeploymentResponse
    from threadserve.handle import DeploymentHandle


@pytest.fixture(autouse=True)
def nobody_helps() -> None:
    """Here they do, whatever THREADSERVE_INLINE says."""


class Doer:
    """Does what it is told."""

    def do(self, deed: Callable[..., Any], *args: Any) -> Any:
        return deed(*args)

    async def ado(self, deed: Callable[..., Any], *args: Any) -> Any:
        return deed(*args)

    def items(self, deed: Callable[[], Any]) -> Iterator[Any]:
        yield deed()


def late(story: Callable[[LateSimulation], object], seeds: int = 5, *, of: str = "") -> None:
    """Play a story in which workers, perhaps only those of one deployment, come when they are let."""
    for seed in range(seeds):
        kernel = LateSimulation(seed, of=of)
        kernel.run(partial(story, kernel))


def sleep(kernel: SimulatedKernel, seconds: float) -> None:
    kernel.waiter().wait(seconds)


def in_a_thread(kernel: SimulatedKernel, deed: Callable[[], object]) -> None:
    kernel.spawn("somebody else", deed).join()


def is_asleep(gate: Any) -> bool:
    """Whether the thread of a loop sleeps, so that others may be the loop."""
    is_free: bool = gate._turn.acquire(False)
    if is_free:
        gate._turn.release()
    return is_free


def ident(*_: object) -> int:
    """Say which thread runs this."""
    return get_ident()


def add_one(number: int) -> int:
    return number + 1


# ---- what runs on the waiting thread


class TestAWaitingThread:
    @pytest.mark.parametrize("ask", ["result", "exception"])
    def test_runs_the_call_that_it_waits_for(self, ask: str) -> None:
        def story(kernel: LateSimulation) -> None:
            ran: list[int] = []
            with unattended(kernel, Doer) as doer:
                response = doer.handle.do.remote(lambda: ran.append(ident()))

                getattr(response, ask)()

                assert ran == [get_ident()]

        late(story)

    def test_may_be_any_plain_thread(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                seen: list[bool] = []

                in_a_thread(kernel, lambda: seen.append(doer.handle.do.remote(ident).result() == get_ident()))

                assert seen == [True]

        late(story)

    def test_runs_what_another_thread_has_sent_once_it_waits_for_it(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                sent: list[DeploymentResponse[int]] = []
                in_a_thread(kernel, lambda: sent.append(doer.handle.do.remote(ident)))

                assert sent[0].result() == get_ident()

        late(story)

    def test_runs_the_calls_of_that_call_and_theirs(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with (
                unattended(kernel, Doer, name="top") as top,
                unattended(kernel, Doer, name="middle") as middle,
                unattended(kernel, Doer, name="leaf") as leaf,
            ):

                def begin() -> list[int]:
                    return [ident(), *middle.handle.do.remote(go_on).result()]

                def go_on() -> list[int]:
                    return [ident(), leaf.handle.do.remote(ident).result()]

                assert top.handle.do.remote(begin).result() == [get_ident()] * 3

        late(story)

    def test_that_is_a_worker_runs_the_calls_of_its_body(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with deployed(kernel, Doer, name="top") as top, unattended(kernel, Doer, name="leaf") as leaf:
                body = top.handle.do.remote(lambda: (ident(), leaf.handle.do.remote(ident).result()))

                outer, inner = body.result(timeout_s=60)

                assert outer == inner != get_ident()

        late(story, of="leaf")

    def test_runs_a_chain_whose_stages_are_all_idle_in_order(self) -> None:
        def story(kernel: LateSimulation) -> None:
            ran: list[tuple[str, int]] = []

            def stage(name: str, number: int) -> int:
                ran.append((name, ident()))
                return number + 1

            with (
                unattended(kernel, Doer, name="a") as a,
                unattended(kernel, Doer, name="b") as b,
                unattended(kernel, Doer, name="c") as c,
            ):
                answer: Any = 0
                for name, each in zip("abcabc", [a, b, c] * 2, strict=True):
                    answer = each.handle.do.remote(stage, name, answer)

                assert answer.result() == 6

            assert ran == [(name, get_ident()) for name in "abcabc"]

        late(story)

    def test_leaves_a_call_with_several_inputs_to_the_workers(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                do = doer.handle.do
                both = do.remote(lambda *threads: (*threads, ident()), do.remote(ident), do.remote(ident))
                kernel.call_at(1.0, kernel.let_workers_come)

                assert get_ident() not in both.result()

        late(story)

    def test_hears_at_once_of_an_input_that_fails_though_another_could_be_run(self) -> None:
        """The other waits for what the thread does then, so running it would have been the end."""

        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer, unattended(kernel, Doer, name="other") as other:
                go_on = kernel.waiter()
                patient = doer.handle.do.remote(go_on.wait)
                failing = other.handle.do.remote(fail)
                both = doer.handle.do.remote(lambda *_: "never", patient, failing)
                kernel.call_at(1.0, kernel.let_workers_come)

                with pytest.raises(KeyError, match="it fails"):
                    both.result()
                go_on.set()

                assert patient.result() is True

        late(story)

    def test_runs_the_one_input_of_a_call_that_has_it_twice(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                do = doer.handle.do
                thread = do.remote(ident)

                answer = do.remote(lambda *threads: (*threads, ident()), thread, 7, thread).result()

                assert answer == (get_ident(), 7, get_ident(), get_ident())

        late(story)

    def test_waits_for_a_diamond_that_runs_once(self) -> None:
        def story(kernel: LateSimulation) -> None:
            ran: list[str] = []
            with unattended(kernel, Doer, max_ongoing_requests=1) as doer:
                do = doer.handle.do
                top = do.remote(ran.append, "top")
                sides = [do.remote(lambda _, side=side: ran.append(side), top) for side in ("left", "right")]
                kernel.call_at(1.0, kernel.let_workers_come)

                do.remote(lambda *_: ran.append("bottom"), *sides).result()

            assert ran == ["top", "left", "right", "bottom"]

        late(story)

    def test_finds_the_books_as_a_worker_leaves_them(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer, max_ongoing_requests=2) as doer:
                during: list[int] = []

                doer.handle.do.remote(lambda: during.append(doer.router.statistics().ongoing)).result()

                assert during == [1]
                check_invariants(doer.router)
                assert doer.router.statistics().ongoing == 0
                kernel.let_workers_come()
                let_it_rest(kernel)
                assert_nothing_left(doer.router)

        late(story)

    def test_runs_a_function_s_coroutine_only_as_far_as_it_is_a_function(self) -> None:
        """A ``def`` that returns a coroutine: the coroutine goes on on the replica's loop, with the slot."""

        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer, max_ongoing_requests=1) as doer:

                def begin() -> Any:
                    return go_on(ident())

                async def go_on(begun: int) -> tuple[int, int, int]:
                    await asyncio.sleep(1)
                    return begun, ident(), doer.router.statistics().ongoing

                begun, went_on, ongoing = doer.handle.do.remote(begin).result()

                assert begun == get_ident() != went_on
                assert ongoing == 1
                assert doer.router.statistics().ongoing == 0

        late(story)


class TestRemote:
    def test_starts_the_work_though_nobody_waits(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            ran: list[int] = []
            with deployed(kernel, Doer) as doer:
                doer.handle.do.remote(lambda: ran.append(ident()))
                let_it_rest(kernel)
                assert len(ran) == 1
                assert ran != [get_ident()]

        explore(story, 20)

    def test_starts_the_work_though_somebody_may_come_for_the_answer_later(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with deployed(kernel, Doer) as doer:
                response = doer.handle.do.remote(ident)
                sleep(kernel, 1)

                assert response.done()
                assert response.result() != get_ident()

        explore(story, 20)


# ---- order


class TestOrder:
    def test_older_calls_of_the_same_thread_go_first_where_there_is_one_slot(self) -> None:
        def story(kernel: LateSimulation) -> None:
            ran: list[tuple[int, int]] = []

            def note(number: int) -> None:
                ran.append((number, ident()))

            with unattended(kernel, Doer, max_ongoing_requests=1) as doer:
                for number in range(5):
                    doer.handle.do.remote(note, number)
                doer.handle.do.remote(note, 5).result()

                assert ran == [(number, get_ident()) for number in range(6)]

        late(story)

    @pytest.mark.parametrize("options", [{"max_ongoing_requests": 2}, {"num_replicas": 2}])
    def test_an_older_call_that_waits_for_what_comes_next_does_not_hold_the_thread(
        self, options: dict[str, int]
    ) -> None:
        """With two slots it only has to begin first; run on the waiting thread, it would wait for ever."""

        def story(kernel: SimulatedKernel) -> None:
            with deployed(kernel, Doer, **{"max_ongoing_requests": 1, **options}) as doer:
                let_on = kernel.waiter()
                older = doer.handle.do.remote(let_on.wait)

                assert doer.handle.do.remote(add_one, 1).result() == 2

                let_on.set()
                assert older.result() is True

        explore(story, 50)

    @pytest.mark.parametrize("slots", [1, 3])
    def test_a_call_behind_somebody_else_s_is_left_to_the_workers(self, slots: int) -> None:
        def story(kernel: LateSimulation) -> None:
            ran: list[str] = []
            threads: list[int] = []

            def note(name: str) -> None:
                ran.append(name)
                threads.append(ident())

            with unattended(kernel, Doer, max_ongoing_requests=slots) as doer:
                in_a_thread(kernel, lambda: doer.handle.do.remote(note, "theirs"))
                mine = doer.handle.do.remote(note, "mine")
                kernel.call_at(1.0, kernel.let_workers_come)

                mine.result()

                assert kernel.now() == 1.0
                kernel.waiter().wait(0.1)  # with more slots than one, theirs had only to begin before
                assert sorted(ran) == ["mine", "theirs"]
                assert ran[0] == "theirs" or slots > 1
                assert get_ident() not in threads

        late(story)

    @pytest.mark.parametrize("slots", [1, 4])
    def test_calls_are_begun_in_the_order_they_were_sent_whoever_takes_them(
        self, slots: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Begun means taken, with a slot: two that are taken one after the other may then overtake each other."""
        takers: set[bool] = set()

        def story(kernel: SimulatedKernel) -> None:
            taken: list[Any] = []
            with deployed(kernel, Doer, max_ongoing_requests=slots) as doer:
                claim = doer.router._claim

                def noted(seat: Any) -> Any:
                    request = claim(seat)
                    taken.append((request.args or (None, None))[1])
                    takers.add(get_ident() == main)
                    return request

                monkeypatch.setattr(doer.router, "_claim", noted)
                main = get_ident()
                for number in range(0, 10, 2):
                    doer.handle.do.remote(str, number)
                    assert doer.handle.do.remote(str, number + 1).result() == str(number + 1)
                let_it_rest(kernel)
            assert taken == list(range(10))

        explore(story, 40)
        assert takers == {True, False}

    @pytest.mark.parametrize("inline", [True, False])
    def test_a_read_sees_the_write_before_it(self, inline: bool) -> None:
        class Cell:
            value = -1

            def set(self, value: int) -> None:
                self.value = value

            def get(self) -> int:
                return self.value

        def story(kernel: SimulatedKernel) -> None:
            with deployed(kernel, Cell, max_ongoing_requests=1, inline=inline) as cell:
                for number in range(10):
                    cell.handle.set.remote(number)
                    assert cell.handle.get.remote().result() == number

        explore(story, 25)

    def test_a_full_deployment_is_waited_for(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer, max_ongoing_requests=1) as doer:
                kernel.spawn("first", lambda: doer.handle.do.remote(sleep, kernel, 5).result())
                let_it_rest(kernel)
                assert doer.router.statistics().ongoing == 1  # helped

                second = doer.handle.do.remote(kernel.now)
                kernel.call_at(1.0, kernel.let_workers_come)

                assert second.result() >= 5

        late(story)


# ---- what does not


def with_a_timeout_of_the_wait(handle: DeploymentHandle[Any]) -> Any:
    return [handle.do.remote(ident).result(timeout_s=1000)]


def with_a_timeout_of_the_question(handle: DeploymentHandle[Any]) -> Any:
    seen: list[int] = []
    handle.do.remote(lambda: seen.append(ident())).exception(timeout_s=1000)
    return seen


def with_a_timeout_of_the_request(handle: DeploymentHandle[Any]) -> Any:
    return [handle.options(timeout_s=1000).do.remote(ident).result()]


def under_a_deadline(handle: DeploymentHandle[Any]) -> Any:
    with serve.deadline(1e9):
        return [handle.do.remote(ident).result()]


def in_a_body_with_a_deadline(handle: DeploymentHandle[Any]) -> Any:
    def body() -> Any:
        return [ident(), handle.do.remote(ident).result()]

    return handle.options(timeout_s=1000).do.remote(body).result()


def in_the_body_of_a_body_with_a_deadline(handle: DeploymentHandle[Any]) -> Any:
    def body() -> Any:
        return [ident(), *handle.do.remote(inner).result()]

    def inner() -> Any:
        return [ident(), handle.do.remote(ident).result()]

    return handle.options(timeout_s=1000).do.remote(body).result()


def in_a_body_with_a_deadline_for_a_call_without(handle: DeploymentHandle[Any]) -> Any:
    def body() -> Any:
        return [ident(), handle.options(timeout_s=float("inf")).do.remote(ident).result()]

    return handle.options(timeout_s=1000).do.remote(body).result()


def with_a_timeout_of_an_argument(handle: DeploymentHandle[Any]) -> Any:
    def both(argument: int) -> Any:
        return [argument]

    return handle.do.remote(both, handle.options(timeout_s=1000).do.remote(ident)).result()


def with_a_timeout_on_the_way_to_an_argument(handle: DeploymentHandle[Any]) -> Any:
    argument = handle.do.remote(lambda: [ident()])
    middle = handle.options(timeout_s=1000).do.remote(lambda threads: [*threads, ident()], argument)
    return handle.do.remote(list, middle).result()


def of_a_coroutine_function(handle: DeploymentHandle[Any]) -> Any:
    return [handle.ado.remote(ident).result()]


def of_a_stream(handle: DeploymentHandle[Any]) -> Any:
    return list(handle.options(stream=True).items.remote(ident))


def in_an_event_loop(handle: DeploymentHandle[Any]) -> Any:
    async def main() -> Any:
        response = handle.do.remote(ident)
        with pytest.raises(RuntimeError, match="await"):
            response.result()
        with pytest.raises(RuntimeError, match="await"):
            response.exception()
        return [await response]

    loop = handle._router.kernel.new_event_loop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def in_an_except_block(handle: DeploymentHandle[Any]) -> Any:
    """What the body raises would get the exception of the block as its context."""
    try:
        raise OSError("the caller's own")
    except OSError:
        for do in (handle.do, handle.ado):
            error = do.remote(fail).exception()
            assert isinstance(error, KeyError)
            assert error.__context__ is None
        return [do.remote(ident).result() for do in (handle.do, handle.ado)]


NEVER: list[Callable[[DeploymentHandle[Any]], Any]] = [
    with_a_timeout_of_the_wait,
    with_a_timeout_of_the_question,
    with_a_timeout_of_the_request,
    under_a_deadline,
    in_a_body_with_a_deadline,
    in_the_body_of_a_body_with_a_deadline,
    in_a_body_with_a_deadline_for_a_call_without,
    with_a_timeout_of_an_argument,
    with_a_timeout_on_the_way_to_an_argument,
    of_a_coroutine_function,
    of_a_stream,
    in_an_event_loop,
    in_an_except_block,
]


class TestNobodyHelps:
    @pytest.mark.parametrize("wait", NEVER)
    def test_where_it_could_be_noticed_or_could_not_end_in_time(self, wait: Any) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with deployed(kernel, Doer) as doer:
                threads = wait(doer.handle)

                assert get_ident() not in threads
                if "in_a_body" in wait.__name__:
                    assert len(set(threads)) == len(threads)

        explore(story, 25)

    def test_the_same_stories_without_a_timeout_can_tell(self) -> None:
        """So that the test above is no comfort where nobody would have helped anyway."""

        def story(kernel: SimulatedKernel) -> None:
            with deployed(kernel, Doer) as doer:
                do = doer.handle.do
                helped["a call"] |= do.remote(ident).result() == get_ident()
                outer, inner = do.remote(lambda: (ident(), do.remote(ident).result())).result(timeout_s=1000)
                helped["a body's call"] |= outer == inner
                argument = do.remote(lambda: [ident()])
                threads = do.remote(lambda threads: [*threads, ident()], argument).result()
                helped["a call's argument"] |= threads == [get_ident()] * 2

        helped = dict.fromkeys(["a call", "a body's call", "a call's argument"], False)
        explore(story, 25)
        assert all(helped.values()), helped

    def test_a_deployment_that_is_pinned_to_its_own_threads(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with deployed(kernel, Doer, inline=False) as doer:
                do = doer.handle.do
                names = do.remote(lambda: [threading.current_thread().name]).result()
                outer, inner = do.remote(lambda: (ident(), do.remote(ident).result())).result()
                chained = do.remote(lambda thread: (thread, ident()), do.remote(ident)).result()

                assert "worker" in names[0]
                assert outer != inner
                assert get_ident() not in (outer, inner, *chained)

        explore(story, 25)

    def test_a_pinned_stage_in_a_chain_of_others(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with (
                deployed(kernel, Doer, name="pinned", inline=False) as pinned,
                unattended(kernel, Doer, name="free") as free,
            ):
                kernel.call_at(1.0, kernel.let_workers_come)
                first = free.handle.do.remote(lambda: [ident()])
                second = pinned.handle.do.remote(lambda threads: [*threads, ident()], first)

                threads = free.handle.do.remote(lambda threads: threads, second).result()

                assert threads[0] == get_ident() != threads[1]

        late(story)

    @pytest.mark.parametrize("timed", ["the wait", "the request"])
    def test_an_older_call_on_behalf_of_one_with_a_timeout(self, timed: str) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer, max_ongoing_requests=1) as doer:
                older = doer.handle.do.remote(ident)
                hurried = doer.handle.options(timeout_s=1000 if timed == "the request" else None)
                kernel.call_at(1.0, kernel.let_workers_come)

                hurried.do.remote(ident).result(timeout_s=1000 if timed == "the wait" else None)

                assert older.result() != get_ident()

        late(story)

    def test_a_stream_that_was_sent_before(self) -> None:
        """Its producer may have to wait for its reader, and that is the thread that waits."""

        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer, max_ongoing_requests=1, stream_buffer_size=1) as doer:
                stream = doer.handle.options(stream=True).items.remote(ident)
                after = doer.handle.do.remote(ident)
                kernel.call_at(1.0, kernel.let_workers_come)

                assert after.result() != get_ident()
                assert kernel.now() == 1.0
                assert list(stream) != [get_ident()]

        late(story)

    def test_a_coroutine_function_that_is_at_the_head_of_the_queue(self) -> None:
        """Behind a call that the thread has taken, and whose worker is still on its way."""

        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer, max_ongoing_requests=2) as doer:

                def body() -> float:
                    coroutine.result()
                    return kernel.now()

                first = doer.handle.do.remote(body)
                coroutine = doer.handle.ado.remote(ident)
                kernel.call_at(1.0, kernel.let_workers_come)

                assert first.result() == 1.0

        late(story)

    def test_after_sixteen_bodies_on_one_stack(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer, max_ongoing_requests=50) as doer:

                def descend(depth: int) -> list[int]:
                    below = doer.handle.do.remote(descend, depth - 1).result() if depth else []
                    return [ident(), *below]

                kernel.call_at(1.0, kernel.let_workers_come)
                threads = doer.handle.do.remote(descend, DEPTH).result()

                assert threads[:DEPTH] == [get_ident()] * 16
                assert threads[DEPTH] != get_ident()

        late(story)

    def test_a_body_that_has_been_cancelled(self) -> None:
        """Its wait is a checkpoint, not the beginning of more work; what it waits for is not its own to be cancelled."""

        def story(kernel: LateSimulation) -> None:
            with deployed(kernel, Doer) as doer, unattended(kernel, Doer, name="other") as other:
                theirs = other.handle.do.remote(ident)
                seen: list[str] = []

                def body() -> None:
                    sleep(kernel, 2)
                    try:
                        theirs.result()
                    except Cancelled:
                        seen.append("cancelled")
                        raise

                response = doer.handle.do.remote(body)
                sleep(kernel, 1)
                response.cancel()
                sleep(kernel, 2)

                assert seen == ["cancelled"]
                assert not theirs.done()

        late(story, of="other")


class TestASuspendedBody:
    """What a coroutine awaits is helped where nothing else can let it go on; real threads, for a real loop is lent."""

    @pytest.mark.parametrize("way", ["the first of several", "with a timeout"])
    def test_that_may_go_on_otherwise_is_not_helped(self, way: str) -> None:
        helpers: list[int] = []

        class Asking:
            async def __call__(self) -> str:
                let_on = threading.Event()
                slow = doer.handle.do.remote(lambda: (helpers.append(ident()), let_on.wait(2)))
                fast = doer.handle.do.remote(ident)
                try:
                    if way == "with a timeout":
                        async with asyncio.timeout(0.01):
                            await slow
                    async for first in futures.as_completed([slow, fast]):
                        await first
                        break
                except TimeoutError:
                    pass
                finally:
                    let_on.set()
                return "went on"

        kernel = LateWorkers()
        with deployed(kernel, Asking, name="asking") as asking, unattended(kernel, Doer) as doer:
            kernel.call_at(kernel.now() + 0.05, kernel.let_workers_come)
            for _ in range(10):  # the first may come before the loop sleeps
                assert asking.handle.remote().result() == "went on"

        assert get_ident() not in helpers

    def test_that_awaits_one_call_after_the_other_is_helped(self) -> None:
        """So that the test above can tell."""

        class Asking:
            async def idle(self) -> None: ...

            async def __call__(self, doer: Any) -> list[int]:
                return [await doer.do.remote(ident) for _ in range(2)]

        def threads() -> Any:
            kernel = LateWorkers()
            with deployed(kernel, Asking, name="asking") as asking, unattended(kernel, Doer) as doer:
                asking.handle.idle.remote().result()
                loop: Any = asking.seats[0].replica._loop.loop
                wait_until(lambda: is_asleep(loop._selector))
                kernel.call_at(kernel.now() + 0.1, kernel.let_workers_come)
                return asking.handle.remote(doer.handle).result()

        assert any(
            threads() == [get_ident()] * 2 for _ in range(60)
        )  # others may be quicker, on a busy machine


# ---- what a body and its caller can tell


VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


def fail(*_: object) -> None:
    raise KeyError("it fails")


class TestNothingElseChanges:
    @pytest.fixture(params=["helped", "pinned", "in a body"])
    def doer(self, request: pytest.FixtureRequest) -> Iterator[Deployed]:
        kernel = LateWorkers()
        if request.param == "helped":
            with unattended(kernel, Doer) as deployment:
                yield deployment
        else:
            kernel.let_workers_come()
            with deployed(kernel, Doer, inline=request.param != "pinned") as deployment:
                yield deployment

    def test_in_the_context_variables(self, doer: Deployed) -> None:
        def look() -> str:
            seen = VARIABLE.get()
            VARIABLE.set("changed by the body")
            return seen

        token = VARIABLE.set("set by the caller")
        response = doer.handle.do.remote(look)
        VARIABLE.set("changed since")
        try:
            assert response.result() == "set by the caller"
            assert VARIABLE.get() == "changed since"
        finally:
            VARIABLE.reset(token)

    def test_in_what_the_body_can_ask(self, doer: Deployed) -> None:
        handle = doer.handle.options(multiplexed_model_id="model")

        response = handle.do.remote(
            lambda: (serve.get_replica_context().deployment, serve.get_multiplexed_model_id())
        )

        assert response.result() == ("D", "model")
        with pytest.raises(serve.errors.NotInReplicaError):
            serve.get_replica_context()

    def test_in_the_error(self, doer: Deployed) -> None:
        response = doer.handle.do.remote(fail)

        with pytest.raises(KeyError, match="it fails") as caught:
            response.result()

        frames = [(frame.filename, frame.name) for frame in traceback.extract_tb(caught.value.__traceback__)]
        here = __file__
        assert [name for file, name in frames if file == here] == ["test_in_the_error", "do", "fail"]
        names = [name for _, name in frames]
        assert not {"run_claimed", "run_here", "help", "_run", "_begin"} & set(names)
        assert caught.value.__context__ is None
        assert response.exception() is caught.value

    @pytest.mark.parametrize("error", [SystemExit(3), SystemExit("enough")])
    def test_in_what_becomes_of_system_exit(self, doer: Deployed, error: SystemExit) -> None:
        def leave() -> None:
            raise error

        response = doer.handle.do.remote(leave)

        with pytest.raises(ReplicaDiedError, match="SystemExit"):
            response.result()
        assert isinstance(response.exception(), ReplicaDiedError)

    def test_in_what_becomes_of_keyboard_interrupt_on_other_threads(self, doer: Deployed) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        seen: list[BaseException | None] = []
        response = doer.handle.do.remote(interrupt)
        thread = threading.Thread(target=lambda: seen.append(response.exception()))
        thread.start()
        thread.join()

        assert [type(error) for error in seen] == [KeyboardInterrupt]
        assert not response.cancelled()

    def test_in_a_body_that_cancels_itself(self, doer: Deployed) -> None:
        def give_up() -> None:
            raise Cancelled

        with pytest.raises(RequestCancelledError, match="cancelled itself"):
            doer.handle.do.remote(give_up).result()

    def test_for_those_who_want_to_be_told(self, doer: Deployed) -> None:
        watched = threading.Event()
        response = doer.handle.do.remote(lambda: watched.wait(20) and 2)
        told: list[tuple[Any, bool]] = []
        come = threading.Semaphore(0)

        def tell(answer: Any) -> None:
            told.append((answer.result(), threading.current_thread() is threading.main_thread()))
            come.release()

        response.add_done_callback(tell)
        response.future.add_done_callback(tell)
        watched.set()
        assert response.result() == 2
        for _ in range(2):
            assert come.acquire(timeout=10)

        assert told == [(2, False), (2, False)]

    def test_for_others_who_wait(self, doer: Deployed) -> None:
        response = doer.handle.do.remote(add_one, 1)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            seen = list(pool.map(lambda _: response.result(), range(4)))

        assert seen == [2] * 4

    def test_for_the_calls_that_a_body_leaves_behind(self, doer: Deployed) -> None:
        left: list[Any] = []
        doer.handle.do.remote(lambda: left.append(doer.handle.do.remote(serve.get_replica_context))).result()

        assert left[0].result().deployment == "D"


# ---- Ctrl-C in a body that runs here


def interrupt() -> None:
    raise KeyboardInterrupt


class TestCtrlC:
    """Simulated: only the main thread gets any, and here it comes out of a body on the main thread."""

    def test_cancels_the_call_and_goes_on_in_the_waiting_thread(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer, max_ongoing_requests=1) as doer:
                response = doer.handle.do.remote(interrupt)

                with pytest.raises(KeyboardInterrupt):
                    response.result()

                assert response.cancelled()
                assert isinstance(response.exception(), RequestCancelledError)
                check_invariants(doer.router)
                assert doer.router.statistics().ongoing == 0
                assert doer.handle.do.remote(add_one, 1).result() == 2

        late(story)

    def test_cancels_every_call_on_the_stack(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                calls: list[Any] = []

                def descend(depth: int) -> None:
                    if not depth:
                        interrupt()
                    calls.append(doer.handle.do.remote(descend, depth - 1))
                    calls[-1].result()

                with pytest.raises(KeyboardInterrupt):
                    descend(5)

                errors = [call.exception() for call in calls]
                assert [type(error) for error in errors] == [RequestCancelledError] * 5
                assert doer.router.statistics().ongoing == 0

        late(story)

    def test_cancels_what_the_body_had_called(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                children: list[Any] = []

                def body() -> None:
                    children.append(doer.handle.do.remote(add_one, 1))
                    interrupt()

                with pytest.raises(KeyboardInterrupt):
                    doer.handle.do.remote(body).result()

                assert isinstance(children[0].exception(), RequestCancelledError)

        late(story)

    def test_tells_the_others_who_wait_of_a_cancellation(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                seen: list[BaseException | None] = []

                def body() -> None:
                    for _ in range(3):
                        kernel.spawn("another", lambda: seen.append(response.exception()))
                    sleep(kernel, 1)
                    interrupt()

                response = doer.handle.do.remote(body)
                with pytest.raises(KeyboardInterrupt):
                    response.result()
                let_it_rest(kernel)

                assert [type(error) for error in seen] == [RequestCancelledError] * 3

        late(story)

    def test_in_an_argument_s_body_cancels_the_argument_and_the_call(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                argument = doer.handle.do.remote(interrupt)
                response = doer.handle.do.remote(lambda value: value, argument)

                with pytest.raises(KeyboardInterrupt):
                    response.result()

                assert isinstance(argument.exception(), RequestCancelledError)
                assert isinstance(response.exception(), RequestCancelledError)

        late(story)

    def test_in_the_body_of_an_older_call_cancels_the_call_that_is_waited_for_as_well(self) -> None:
        def story(kernel: LateSimulation) -> None:
            ran: list[str] = []
            with unattended(kernel, Doer, max_ongoing_requests=1) as doer:
                older = doer.handle.do.remote(interrupt)
                response = doer.handle.do.remote(ran.append, "waited for")

                with pytest.raises(KeyboardInterrupt):
                    response.result()

                assert older.cancelled()
                assert response.cancelled()
                kernel.let_workers_come()
                let_it_rest(kernel)
                assert ran == []

        late(story)

    def test_may_be_handled_by_the_body(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:

                def body() -> str:
                    try:
                        doer.handle.do.remote(interrupt).result()
                    except KeyboardInterrupt:
                        return "tidied up"
                    return "not interrupted"

                assert doer.handle.do.remote(body).result() == "tidied up"

        late(story)


# ---- chains and fans


HOPS = 10_000


def len_of_stack() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


class TestLongChains:
    @pytest.fixture
    def doer(self) -> Iterator[Deployed]:
        with unattended(LateWorkers(), Doer) as doer:
            yield doer

    @staticmethod
    def chain(doer: Deployed, hops: int) -> list[DeploymentResponse[int]]:
        do = doer.handle.do
        calls = [do.remote(add_one, 0)]
        for _ in range(hops - 1):
            calls.append(do.remote(add_one, calls[-1]))
        return calls

    @pytest.mark.slow
    def test_of_ten_thousand_idle_stages_run_on_the_waiting_thread_and_a_shallow_stack(
        self, doer: Deployed
    ) -> None:
        threads: set[int] = set()

        def add_one_here(number: int) -> int:
            threads.add(ident())
            return number + 1

        last: Any = 0
        for _ in range(HOPS):
            last = doer.handle.do.remote(add_one_here, last)
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(len_of_stack() + 60)
        try:
            assert last.result() == HOPS
        finally:
            sys.setrecursionlimit(limit)

        assert threads == {get_ident()}

    def test_take_work_in_proportion_to_their_length(self, doer: Deployed) -> None:
        once, twice = (lines_run_by(self.chain(doer, hops)[-1].result) for hops in (500, 1_000))

        assert once > 500
        assert twice < 2.1 * once

    @pytest.mark.slow
    def test_are_gone_with_their_last_response(self, doer: Deployed) -> None:
        calls = self.chain(doer, HOPS)
        requests = [weakref.ref(request_behind(call)) for call in calls]
        last = calls[-1]
        calls.clear()

        assert last.result() == HOPS
        del last

        assert not any(request() for request in requests)

    @pytest.mark.slow
    def test_fail_on_the_waiting_thread_without_recursion(self, doer: Deployed) -> None:
        do = doer.handle.do
        last: Any = do.remote(fail)
        for _ in range(HOPS):
            last = do.remote(add_one, last)

        with pytest.raises(KeyError, match="it fails"):
            last.result()

    def test_fail_where_a_stage_fails_and_run_no_further(self) -> None:
        def story(kernel: LateSimulation) -> None:
            ran: list[str] = []

            def stage(name: str, _: object = None) -> None:
                ran.append(name)
                if name == "c":
                    fail()

            with unattended(kernel, Doer) as doer:
                answer: Any = None
                answers = []
                for name in "abcde":
                    answer = doer.handle.do.remote(stage, name, answer)
                    answers.append(answer)

                with pytest.raises(KeyError, match="it fails"):
                    answer.result()

                assert ran == ["a", "b", "c"]
                assert [type(each.exception()) for each in answers] == [type(None)] * 2 + [KeyError] * 3

        late(story)

    def test_end_where_a_stage_is_cancelled_while_another_runs_here(self) -> None:
        def story(kernel: LateSimulation) -> None:
            ran: list[str] = []
            with unattended(kernel, Doer) as doer:
                do = doer.handle.do
                first = do.remote(lambda: (second.cancel(), ran.append("first")))
                second: DeploymentResponse[None] = do.remote(lambda _: ran.append("second"), first)
                third = do.remote(lambda _: ran.append("third"), second)

                with pytest.raises(RequestCancelledError):
                    third.result()

                assert ran == ["first"]
                assert first.exception() is None
                check_invariants(doer.router)

        late(story)

    def test_end_when_what_is_waited_for_has_its_answer_from_elsewhere(self) -> None:
        """While the input runs here, the call that waits for it is cancelled; that is heard when the body returns."""

        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                do = doer.handle.do
                calls: list[DeploymentResponse[Any]] = []
                argument = do.remote(lambda: (calls[0].cancel(), "value")[1])
                calls.append(do.remote(lambda *_: "never", argument))

                with pytest.raises(RequestCancelledError):
                    calls[0].result()

                assert argument.result() == "value"

        late(story)

    def test_go_on_with_a_stage_that_somebody_else_has_begun(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                do = doer.handle.do
                first = do.remote(lambda: (sleep(kernel, 5), ident())[1])
                last = do.remote(lambda thread: (thread, ident()), first)
                kernel.spawn("another", first.result)
                let_it_rest(kernel)
                assert request_behind(first).state is RUNNING
                kernel.call_at(1.0, kernel.let_workers_come)

                thread, _ = last.result()

                assert kernel.now() == 5
                assert thread != get_ident()

        late(story)


# ---- the replica goes while a body runs here


class TestTheReplicaGoes:
    def test_a_new_version_waits_for_the_body_and_loses_nothing(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:

                def replace() -> None:
                    sleep(kernel, 1)
                    doer.replace_with(Doer)
                    replaced.append(kernel.now())

                replaced: list[float] = []
                helped = doer.handle.do.remote(lambda: (sleep(kernel, 5), ident())[1])
                other = kernel.spawn("whoever replaces", replace)
                kernel.call_at(2.0, kernel.let_workers_come)

                assert helped.result() == get_ident()
                other.join()
                assert replaced == [5.0]
                assert doer.handle.do.remote(add_one, 1).result() == 2

        late(story)

    def test_a_deletion_waits_for_the_body_and_refuses_what_is_queued(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer, max_ongoing_requests=1) as doer:

                def delete() -> None:
                    sleep(kernel, 1)
                    doer.take_down()
                    gone.append(kernel.now())

                gone: list[float] = []
                other = kernel.spawn("whoever deletes", delete)
                helped = doer.handle.do.remote(lambda: (sleep(kernel, 5), ident())[1])
                queued = doer.handle.do.remote(add_one, 1)
                kernel.call_at(2.0, kernel.let_workers_come)

                assert helped.result() == get_ident()
                other.join()
                assert gone == [5.0]
                assert isinstance(queued.exception(), DeploymentUnavailableError)

        late(story)

    def test_a_body_that_takes_too_long_is_abandoned(self) -> None:
        """The other waiters are answered at once; the one whose thread runs the body when that returns."""

        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer) as doer:
                told: list[tuple[float, type]] = []

                def wait() -> None:
                    error = helped.exception()
                    told.append((kernel.now(), type(error)))

                kernel.call_at(0.5, kernel.let_workers_come)
                helped = doer.handle.do.remote(sleep, kernel, 50)
                for act in (
                    lambda: (sleep(kernel, 1), doer.take_down(timeout=2)),
                    lambda: (sleep(kernel, 1), wait()),
                ):
                    kernel.spawn("another", act)

                error = helped.exception()

                assert isinstance(error, ReplicaDiedError)
                assert kernel.now() == 50
                assert len(told) == 1
                assert told[0][1] is ReplicaDiedError
                assert told[0][0] <= 4
                check_invariants(doer.router)

        late(story)

    def test_a_shutdown_waits_for_a_body_that_runs_on_the_thread_of_a_caller(self) -> None:
        entered, go_on = threading.Event(), threading.Event()

        class Slow:
            def __call__(self) -> int:
                entered.set()
                assert go_on.wait(20)
                return get_ident()

        handle: Any = serve.run(serve.deployment(Slow).bind())
        results: list[tuple[int, int]] = []
        caller = threading.Thread(target=lambda: results.append((handle.remote().result(), get_ident())))
        caller.start()
        assert entered.wait(20)
        ending = threading.Thread(target=serve.shutdown)
        ending.start()
        wait_until(lambda: "closed" in repr(handle._router) or not ending.is_alive())
        assert ending.is_alive()
        go_on.set()
        caller.join()
        ending.join()

        assert len(results) == 1


# ---- the books


class TestTheLastSlot:
    @pytest.mark.parametrize("ending", ["returns", "fails", "is interrupted"])
    def test_given_back_by_a_waiting_thread_wakes_a_worker_for_who_is_queued(self, ending: str) -> None:
        """Nobody waits for the queued one, and nothing else is sent that would wake somebody."""

        def story(kernel: LateSimulation) -> None:
            ran: list[str] = []
            with unattended(kernel, Doer, max_ongoing_requests=1) as doer:

                def body() -> None:
                    kernel.let_workers_come()
                    let_it_rest(kernel)  # the worker that was on the way has come, found nothing, and rests
                    assert not doer.router._is_waking
                    in_a_thread(kernel, lambda: doer.handle.do.remote(ran.append, "queued"))
                    let_it_rest(kernel)
                    assert ran == []
                    if ending == "fails":
                        fail()
                    elif ending == "is interrupted":
                        interrupt()

                try:
                    doer.handle.do.remote(body).result()
                except (KeyError, KeyboardInterrupt):
                    assert ending != "returns"
                let_it_rest(kernel)

                assert ran == ["queued"]

        late(story)

    def test_given_back_by_a_waiting_thread_begins_a_coroutine_that_is_queued(self) -> None:
        def story(kernel: LateSimulation) -> None:
            ran: list[str] = []
            with unattended(kernel, Doer, max_ongoing_requests=1) as doer:

                def body() -> None:
                    in_a_thread(kernel, lambda: doer.handle.ado.remote(ran.append, "queued"))

                doer.handle.do.remote(body).result()
                let_it_rest(kernel)

                assert ran == ["queued"]

        late(story)

    def test_taken_by_a_waiting_thread_counts_for_the_queue(self) -> None:
        def story(kernel: LateSimulation) -> None:
            with unattended(kernel, Doer, max_ongoing_requests=1, max_queued_requests=1) as doer:
                sent: list[Any] = []

                doer.handle.do.remote(
                    lambda: sent.extend(doer.handle.do.remote(add_one, 1) for _ in range(2))
                ).result()

                assert isinstance(sent[1].exception(), BackPressureError)
                assert sent[0].result() == 2

        late(story)


class TestTheEndOfTheStack:
    def test_loses_no_slot(self) -> None:
        """A thread that is near its recursion limit may have room to take a call and none to run it: it takes none."""
        struck = 0
        with deployed(RealKernel(), Doer, max_ongoing_requests=1) as doer:
            # The last twice: without a GIL a worker may answer in time where there is room for 3.
            for room in (*range(60, 0, -1), 1):
                response = doer.handle.do.remote(add_one, 1)

                try:
                    assert near_the_end_of_the_stack(room, response.result) == 2
                except RecursionError:
                    struck += 1
                    response.cancel()

                wait_until(lambda: not doer.router.statistics().ongoing)
                check_invariants(doer.router)
                assert doer.handle.do.remote(add_one, 1).result() == 2
                if struck == 3:
                    break

        assert struck == 3


def near_the_end_of_the_stack(room: int, deed: Callable[[], Any]) -> Any:
    def descend(left: int) -> Any:
        return deed() if left <= 0 else descend(left - 1)

    return descend(sys.getrecursionlimit() - len_of_stack() - room)


def test_a_thread_that_could_not_see_to_the_end_of_a_call_has_it_answered_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal handler of the user's may raise anywhere."""

    def strike(*_: object) -> None:
        raise OSError("from a signal handler")

    with unattended(LateWorkers(), Doer, max_ongoing_requests=1) as doer:
        with monkeypatch.context() as patch:
            patch.setattr(doer.pool.seats[0].replica, "run", strike)
            response = doer.handle.do.remote(add_one, 1)
            with pytest.raises(OSError, match="from a signal handler"):
                response.result()

        assert isinstance(response.exception(timeout_s=20), ReplicaDiedError)
        assert "OSError" in str(response.exception())
        assert doer.handle.do.remote(add_one, 1).result() == 2


def test_a_call_that_is_ended_twice_gives_its_slot_back_once() -> None:
    with unattended(LateWorkers(), Doer, max_ongoing_requests=1) as doer:
        response = doer.handle.do.remote(add_one, 1)
        assert response.result() == 2

        doer.router.end(doer.pool.seats[0], request_behind(response), Value("again"))

        assert response.result() == 2
        check_invariants(doer.router)


def test_only_what_runs_a_body_is_the_border_between_two_on_a_stack() -> None:
    """The deadlock watch divides the stack of a thread there."""
    borders: list[int] = []

    def count() -> None:
        names = [frame.f_code for frame, _ in traceback.walk_stack(sys._getframe())]
        borders.append(names.count(helping.run_claimed.__code__))

    def story(kernel: LateSimulation) -> None:
        with unattended(kernel, Doer) as doer:
            doer.handle.do.remote(lambda: doer.handle.do.remote(count).result()).result()

    late(story, 1)
    assert borders == [2]
