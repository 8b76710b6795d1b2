"""Two things at once, in every order that the simulator finds in a thousand seeds.

Whatever the order, afterwards every request has been answered exactly once, the slots are back, the queue is
empty and nobody waits. ``THREADSERVE_SEEDS`` says how many seeds, for a thorough night or a quick look.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import (
    Answers,
    Deployed,
    StillReplica,
    assert_nothing_left,
    call_under,
    check_invariants,
    deployed,
    let_it_rest,
    request_behind,
    still_router,
)
from threadserve.call.request import ANSWERED, Request
from threadserve.concurrency.channel import EMPTY, END, Channel
from threadserve.concurrency.outcome import Value, Withdrawn
from threadserve.errors import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
    RequestTimeoutError,
)
from threadserve.handle import DeploymentHandle
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import AsyncIterator, Callable, Iterator

SEEDS = int(os.environ.get("THREADSERVE_SEEDS", "1000"))

pytestmark = pytest.mark.slow


class Count:
    """A deployment that counts how often each of its calls runs."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self.runs: dict[Any, int] = {}
        count = self

        class Counted:
            def plain(self, name: Any, seconds: float = 0) -> Any:
                count.note(name)
                if seconds:
                    kernel.waiter().wait(seconds)
                return name

            async def coroutine(self, name: Any, seconds: float = 0) -> Any:
                count.note(name)
                if seconds:
                    await asyncio.sleep(seconds)
                return name

            def pair(self, left: Any, right: Any) -> Any:
                count.note("pair")
                assert (left, right) == ("left", "right")

            def items(self, count: int) -> Iterator[int]:
                yield from range(count)

            async def async_items(self, count: int) -> AsyncIterator[int]:
                for item in range(count):
                    yield item

        self.target = Counted

    def note(self, name: Any) -> None:
        self.runs[name] = self.runs.get(name, 0) + 1


class Story:
    """A deployment in a simulation, and actors that go about their business at the same time."""

    def __init__(self, kernel: SimulatedKernel, **options: Any) -> None:
        self.kernel = kernel
        self.count = Count(kernel)
        self.answers = Answers()
        self.options = {"max_ongoing_requests": 1, **options}
        self._actors: list[Any] = []

    @contextmanager
    def told(self) -> Iterator[Deployed]:
        """Run the deployment, let all actors come to an end, and check what must hold."""
        with deployed(self.kernel, self.count.target, **self.options) as deployment:
            yield deployment
            self.join()
            let_it_rest(self.kernel)
            self.kernel.waiter().wait(100)
            check_invariants(deployment.router)
            assert_nothing_left(deployment.router)
        self.answers.assert_each_once()
        assert set(self.count.runs.values()) <= {1}

    def meanwhile(self, *acts: Callable[[], object]) -> None:
        for act in acts:
            self._actors.append(self.kernel.spawn(f"actor {len(self._actors) + 1}", act))

    def join(self) -> None:
        for actor in self._actors:
            actor.join()


def kind_of(request: Request) -> str:
    assert request.outcome is not None
    error = request.outcome.exception
    if error is None:
        return "value"
    kinds: dict[type, str] = {
        RequestCancelledError: "cancelled",
        RequestTimeoutError: "timed out",
        DeploymentUnavailableError: "unavailable",
        BackPressureError: "refused",
    }
    return kinds[type(error)]


class Seen:
    """What came out, over all seeds: a race that ends in one way only is none."""

    def __init__(self) -> None:
        self.endings: set[Any] = set()

    def assert_all(self, *endings: Any) -> None:
        assert self.endings == set(endings)


@pytest.mark.parametrize("method", ["plain", "coroutine"])
def test_claim_against_cancel(method: str) -> None:
    seen = Seen()

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel)
        with story.told() as deployment:
            call = deployment.handle.options(method_name=method)
            response = story.answers.watch(call.remote("raced"))
            story.meanwhile(response.cancel, response.cancel)
            follower = story.answers.watch(call.remote("follower"))
            assert follower.result() == "follower"
            kind = kind_of(request_behind(response)) if response.done() else "later"
            seen.endings.add((kind, story.count.runs.get("raced", 0)))

    explore(race, SEEDS)
    assert (
        {("value", 1), ("cancelled", 0)} <= seen.endings <= {("value", 1), ("cancelled", 0), ("cancelled", 1)}
    )


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_answer_against_wait(timeout: float | None) -> None:
    """A waiter that comes while the answer comes, or gives up while it comes, misses nothing."""
    seen = Seen()

    def race(kernel: SimulatedKernel) -> None:
        router, replica, seat = still_router(kernel)
        router.replace((), (seat,))
        answers = Answers()
        response = answers.watch(DeploymentHandle[Any](router).remote())
        request = request_behind(response)

        def wait() -> None:
            try:
                assert response.result(timeout_s=timeout) == "value"
                seen.endings.add("value")
            except TimeoutError:
                seen.endings.add("timed out")
                assert response.result() == "value"

        waiters = [kernel.spawn(f"waiter {number}", wait) for number in range(2)]
        if timeout is None:
            replica.end(request, Value("value"))
        else:
            kernel.call_at(timeout, lambda: replica.end(request, Value("value")))
        for waiter in waiters:
            waiter.join()
        let_it_rest(kernel)
        answers.assert_each_once()
        assert not request._subscribers
        assert_nothing_left(router)

    explore(race, SEEDS)
    seen.assert_all(*(["value"] if timeout is None else ["value", "timed out"]))


def test_answer_against_an_await_that_gives_up() -> None:
    seen = Seen()

    def race(kernel: SimulatedKernel) -> None:
        router, replica, seat = still_router(kernel)
        router.replace((), (seat,))
        answers = Answers()
        response = answers.watch(DeploymentHandle[Any](router).remote())

        async def wait() -> None:
            try:
                assert await asyncio.wait_for(_awaited(response), 5) == "value"
                seen.endings.add("value")
            except TimeoutError:
                seen.endings.add("timed out")
                assert await response == "value"

        moment = kernel.random.choice([4.0, 5.0])
        kernel.call_at(moment, lambda: replica.end(request_behind(response), Value("value")))
        run_loop(kernel, wait())
        let_it_rest(kernel)
        answers.assert_each_once()
        assert not request_behind(response)._subscribers
        assert_nothing_left(router)

    explore(race, SEEDS // 4)
    seen.assert_all("value", "timed out")


async def _awaited(response: Any) -> Any:
    return await response


def run_loop(kernel: SimulatedKernel, coroutine: Any) -> Any:
    loop = kernel.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def test_drain_against_submit() -> None:
    """Each call is run, or told that it came too late; and the drain waits for exactly those that run."""
    seen = Seen()

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel, max_ongoing_requests=2)
        with story.told() as deployment:

            def submit(name: str) -> None:
                response = story.answers.watch(deployment.handle.plain.remote(name, 1))
                try:
                    assert response.result() == name
                    assert story.count.runs[name] == 1
                    seen.endings.add("value")
                except DeploymentUnavailableError:
                    assert name not in story.count.runs
                    seen.endings.add("unavailable")

            story.meanwhile(*(partial(submit, name) for name in "abc"))
            (seat,) = deployment.seats
            deployment.pool.close("it goes")
            assert deployment.router.drain(seat, 60)
            assert not seat.running

    explore(race, SEEDS)
    seen.assert_all("value", "unavailable")


@pytest.mark.parametrize("method", ["items", "async_items"])
@pytest.mark.parametrize("how", ["close", "cancel", "drop"])
def test_close_of_a_stream_against_its_producer(method: str, how: str) -> None:
    seen = Seen()

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel, stream_buffer_size=2)
        with story.told() as deployment:
            stream = deployment.handle.options(stream=True, method_name=method).remote(4)
            channel = request_behind(stream).channel
            assert channel is not None
            seen.endings.add(request_behind(stream).state.name)
            if how == "cancel":
                stream.cancel()
                with suppress(RequestCancelledError):
                    for _ in stream:
                        pass
            elif how == "close":
                stream.close()
                assert list(stream) == []
            del stream
            story.meanwhile(lambda: deployment.handle.plain.remote("next").result())
            story.join()
            if how != "drop":
                assert len(channel) == 0

    explore(race, SEEDS // 2)
    assert {"RUNNING"} <= seen.endings <= {"QUEUED", "RUNNING", "ANSWERED"}


@pytest.mark.parametrize("method", ["items", "async_items"])
def test_a_reader_against_its_producer(method: str) -> None:
    """Every item comes, once and in order, however the two take turns, and with either kind of reader."""

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel, stream_buffer_size=2)
        with story.told() as deployment:
            call = deployment.handle.options(stream=True, method_name=method).remote

            async def read() -> list[int]:
                return [item async for item in call(5)]

            if kernel.seed % 2:
                assert list(call(5)) == list(range(5))
            else:
                assert run_loop(kernel, read()) == list(range(5))

    explore(race, SEEDS // 4)


def test_two_readers_of_one_stream() -> None:
    """Each item goes to one of them, in order for each, and both find the end."""

    def race(kernel: SimulatedKernel) -> None:
        channel = Channel(kernel, 2)
        got: list[list[int]] = [[], []]

        def read(mine: list[int]) -> None:
            while True:
                waiter = kernel.waiter()
                item = channel.take(waiter)
                if item is END:
                    return
                if item is not EMPTY:
                    mine.append(item)
                    continue
                waiter.wait(kernel.random.choice([None, 0]))
                channel.forget(waiter)

        readers = [kernel.spawn(f"reader {number}", partial(read, got[number])) for number in range(2)]
        for item in range(6):
            while True:
                waiter = kernel.waiter()
                if channel.offer(item, waiter):
                    break
                waiter.wait()
        channel.finish()
        for reader in readers:
            reader.join()
        assert sorted(got[0] + got[1]) == list(range(6))
        assert got[0] == sorted(got[0])
        assert got[1] == sorted(got[1])

    explore(race, SEEDS)


def test_cancel_of_a_parent_against_the_creation_of_a_child() -> None:
    """Whenever the child is made, it is cancelled with its parent, or the parent had returned before."""
    seen = Seen()

    def race(kernel: SimulatedKernel) -> None:
        router, replica, seat = still_router(kernel)
        router.replace((), (seat,))
        handle = DeploymentHandle[Any](router)
        answers = Answers()
        parent = answers.watch(handle.remote())
        children: list[Any] = []

        def make_children() -> None:
            for _ in range(2):
                child = call_under(request_behind(parent), handle.remote)
                children.append(answers.watch(child))

        actors = [kernel.spawn("maker", make_children)]
        if kernel.seed % 2:
            end = partial(replica.end, request_behind(parent), Value("value"))
            actors.append(kernel.spawn("ender", end))
        parent.cancel()
        for actor in actors:
            actor.join()
        let_it_rest(kernel)
        for child in children:
            request = request_behind(child)
            is_root = request.state is not ANSWERED
            seen.endings.add((kind_of(request_behind(parent)), "root" if is_root else kind_of(request)))
            if is_root:
                assert request_behind(parent).is_over
                assert request._parent is None
            child.cancel()
        for request in list(replica.begun):
            replica.end(request, Value("late"))
        let_it_rest(kernel)
        answers.assert_each_once()
        assert not request_behind(parent)._children
        assert_nothing_left(router)

    explore(race, SEEDS)
    seen.assert_all(("cancelled", "cancelled"), ("cancelled", "root"), ("value", "root"))


def test_a_deadline_against_the_creation_of_a_child() -> None:
    def race(kernel: SimulatedKernel) -> None:
        router, replica, seat = still_router(kernel)
        router.replace((), (seat,))
        handle = DeploymentHandle[Any](router)
        parent = request_behind(handle.options(timeout_s=5).remote())
        children: list[Request] = []

        def make_children() -> None:
            kernel.waiter().wait(5)
            children.append(request_behind(call_under(parent, handle.remote)))
            children.append(request_behind(call_under(parent, handle.options(timeout_s=1).remote)))

        def end() -> None:
            kernel.waiter().wait(5)
            replica.end(parent, Value("value"))

        actors = [kernel.spawn("maker", make_children), kernel.spawn("ender", end)]
        for actor in actors:
            actor.join()
        kernel.waiter().wait(10)
        for child in children:
            if child.state is not ANSWERED:
                assert child.deadline > 10
                child.cancel()
        for request in list(replica.begun):
            replica.end(request, Value("late"))
        assert_nothing_left(router)

    explore(race, SEEDS)


def test_two_wakers() -> None:
    """Two callers at once, workers at rest: both calls are run though at most one wake is under way."""

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel, max_ongoing_requests=2)
        with story.told() as deployment:
            for name in "ab":
                deployment.handle.plain.remote(name, 1)
            kernel.waiter().wait(5)

            def call(name: str) -> None:
                begin = kernel.now()
                assert story.answers.watch(deployment.handle.plain.remote(name, 1)).result() == name
                assert kernel.now() - begin == 1

            story.meanwhile(*(partial(call, name) for name in "cd"))

    explore(race, SEEDS // 2)


@pytest.mark.parametrize("method", ["plain", "coroutine"])
def test_withdraw_against_start(method: str) -> None:
    """``future.cancel()`` succeeds exactly where the body never begins."""
    seen = Seen()

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel)
        with story.told() as deployment:
            call = deployment.handle.options(method_name=method)
            story.answers.watch(call.remote("first", 1))
            response = story.answers.watch(call.remote("raced"))
            future = response.future
            verdicts: list[bool] = []

            def withdraw() -> None:
                kernel.waiter().wait(1)  # which is when the first one leaves its slot
                verdicts.append(future.cancel())

            story.meanwhile(withdraw, withdraw)
            story.join()
            kernel.waiter().wait(10)
            has_run = "raced" in story.count.runs
            assert verdicts == [not has_run] * 2
            assert future.cancelled() is not has_run
            assert future.done()
            outcome = request_behind(response).outcome
            assert isinstance(outcome, Withdrawn) is not has_run
            seen.endings.add(has_run)

    explore(race, SEEDS)
    seen.assert_all(True, False)


def test_replacement_of_seats_against_submit() -> None:
    """A new version takes over while calls come: each is answered by one of the two, and runs once."""
    seen = Seen()

    def race(kernel: SimulatedKernel) -> None:
        router, old, old_seat = still_router(kernel, limit=2)
        new = StillReplica()
        new_seat = router.seat(new, 2)  # type: ignore[arg-type]
        router.replace((), (old_seat,))
        answers = Answers()
        handle = DeploymentHandle[Any](router)

        def submit() -> None:
            answers.watch(handle.remote())

        def end(replica: StillReplica) -> None:
            for _ in range(4):
                kernel.waiter().wait(1)
                for request in list(replica.begun):
                    replica.end(request, Value("value"))

        actors = [kernel.spawn(f"caller {number}", submit) for number in range(4)]
        actors += [kernel.spawn("old", lambda: end(old)), kernel.spawn("new", lambda: end(new))]
        router.replace((old_seat,), (new_seat,))
        seen.endings.add((len(old.begun), len(new.begun)))
        check_invariants(router)
        assert router.drain(old_seat, 60)
        for actor in actors:
            actor.join()
        let_it_rest(kernel)
        answers.assert_each_once()
        assert_nothing_left(router)

    explore(race, SEEDS)
    assert len(seen.endings) > 3


def test_redeploy_against_calls() -> None:
    """The same with real replicas: their workers, their loops, and the old version on its way out."""

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel)
        with story.told() as deployment:

            def call(name: str) -> None:
                for step, method in enumerate([deployment.handle.plain, deployment.handle.coroutine]):
                    assert story.answers.watch(method.remote((name, step))).result() == (name, step)

            story.meanwhile(*(partial(call, name) for name in "ab"))
            deployment.replace_with(story.count.target, max_ongoing_requests=1)
            story.join()

    explore(race, SEEDS // 4)


def test_coroutines_and_functions_in_one_queue() -> None:
    """Whoever claims what: all of them run, once, and no limit is exceeded."""

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel, max_ongoing_requests=2)
        with story.told() as deployment:
            handle = deployment.handle

            def call(kinds: str) -> None:
                methods = {"d": handle.plain, "c": handle.coroutine}
                responses = [
                    story.answers.watch(methods[kind].remote((kinds, number), number % 2))
                    for number, kind in enumerate(kinds)
                ]
                check_invariants(deployment.router)
                for response in responses:
                    response.result()

            story.meanwhile(*(partial(call, kinds) for kinds in ("dcd", "cdc", "dd")))

    explore(race, SEEDS // 2)


def test_a_mirror_future_against_the_answer() -> None:
    """Made before, during or after the answer, it ends as the response does, and its callbacks run once."""

    def race(kernel: SimulatedKernel) -> None:
        router, replica, seat = still_router(kernel)
        router.replace((), (seat,))
        response = DeploymentHandle[Any](router).remote()
        called: list[concurrent.futures.Future[Any]] = []
        futures: list[concurrent.futures.Future[Any]] = []

        def mirror() -> None:
            future = response.future
            future.add_done_callback(called.append)
            futures.append(future)

        actors = [kernel.spawn(f"mirror {number}", mirror) for number in range(2)]
        if kernel.seed % 3 == 0:
            actors.append(kernel.spawn("canceller", response.cancel))
        replica.end(request_behind(response), Value("value"))
        for actor in actors:
            actor.join()
        let_it_rest(kernel)
        assert futures[0] is futures[1]
        assert called == futures
        assert futures[0].done()
        assert not futures[0].cancelled()
        assert futures[0].exception() is None or response.cancelled()
        assert_nothing_left(router)

    explore(race, SEEDS)


def test_inputs_that_arrive_while_they_are_registered() -> None:
    """The last of them starts the call, neither earlier nor twice; a failing or cancelled one ends it."""
    seen = Seen()

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel, max_ongoing_requests=4)
        with story.told() as deployment:
            call = deployment.handle.plain.remote
            left, right = story.answers.watch(call("left")), story.answers.watch(call("right"))
            if kernel.seed % 2:
                story.meanwhile(left.cancel)
            both = story.answers.watch(deployment.handle.pair.remote(left, right))
            if kernel.seed % 5 == 0:
                story.meanwhile(both.cancel)
            story.join()
            seen.endings.add(type(both.exception()).__name__)

    explore(race, SEEDS)
    assert {"NoneType", "RequestCancelledError"} <= seen.endings


def test_the_last_worker_against_a_new_request() -> None:
    """A worker that goes to rest while a request comes: one of the two sees the other."""

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel)
        with story.told() as deployment:
            for number in range(4):
                response = story.answers.watch(deployment.handle.plain.remote(number))
                assert response.result(timeout_s=1000) == number

    explore(race, SEEDS // 4)


def test_a_stopping_loop_against_a_posted_coroutine() -> None:
    """Whoever is told to go while the first coroutine comes: it is answered, and no loop stays behind."""

    def race(kernel: SimulatedKernel) -> None:
        story = Story(kernel)
        with story.told() as deployment:
            responses: list[Any] = []
            story.meanwhile(
                lambda: responses.append(story.answers.watch(deployment.handle.coroutine.remote("raced", 50)))
            )
            (seat,) = deployment.seats
            deployment.pool.close("it goes")
            deployment.pool.stop(kernel.now())
            story.join()
            let_it_rest(kernel)
            (response,) = responses
            assert response.done()
            assert not seat.replica._loop._thread or not seat.replica._loop._thread.is_alive()

    explore(race, SEEDS // 4)


def test_the_checks_of_this_file_can_fail() -> None:
    kernel = SimulatedKernel()

    def main() -> None:
        router, _, _ = still_router(kernel)
        DeploymentHandle[Any](router).remote()
        with pytest.raises(AssertionError):
            assert_nothing_left(router)
        router._queued = 0
        with pytest.raises(AssertionError):
            check_invariants(router)

    kernel.run(main)
