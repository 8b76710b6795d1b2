"""The queue, the slots and the workers of one deployment."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.doubles import (
    StillReplica,
    assert_nothing_left,
    check_invariants,
    deployed,
    let_it_rest,
    let_the_dead_go,
    request_behind,
    still_router,
    wait_until,
)
from threadserve.call.request import ANSWERED, QUEUED, Request, current_request
from threadserve.concurrency.lock import acquire_within
from threadserve.concurrency.outcome import Value
from threadserve.concurrency.real import RealKernel
from threadserve.concurrency.waiter import Waiter
from threadserve.errors import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaDiedError,
    RequestCancelledError,
)
from threadserve.handle import DeploymentHandle
from threadserve.router.router import Limits, Router
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threadserve.call.response import DeploymentResponse
    from threadserve.router.seats import Seat


def simulated(test: Callable[[SimulatedKernel], object], seed: int = 0) -> None:
    kernel = SimulatedKernel(seed)
    kernel.run(lambda: test(kernel))


class Gate:
    """A deployment whose calls say that they have come and wait to be let through."""

    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()
        self._came = threading.Semaphore(0)
        self._opened = threading.Semaphore(0)

    def pass_through(self, name: Any) -> Any:
        with self._lock:
            self.entered.append(name)
            self._inside += 1
            self.most = max(self.most, self._inside)
        self._came.release()
        assert self._opened.acquire(timeout=20)
        with self._lock:
            self._inside -= 1
        return name

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self._came.acquire(timeout=20)

    def open(self, count: int) -> None:
        self._opened.release(count)

    @property
    def target(self) -> Any:
        gate = self

        class Gated:
            def __call__(self, name: Any = None) -> Any:
                return gate.pass_through(name)

        return Gated


@pytest.fixture
def kernel() -> RealKernel:
    return RealKernel()


@pytest.fixture
def gate() -> Gate:
    return Gate()


class TestAdmission:
    @pytest.mark.parametrize(
        ("slots", "limit", "of_ten"), [(2, 2, 4), (1, 0, 1), (3, 0, 3), (1, 5, 6), (2, -1, 10), (9, 1, 10)]
    )
    def test_takes_as_many_as_slots_and_queue_hold_and_no_more(
        self, slots: int, limit: int, of_ten: int
    ) -> None:
        router, replica, seat = still_router(RealKernel(), limit=slots, max_queued_requests=limit)
        router.replace((), (seat,))
        handle = DeploymentHandle[Any](router)

        responses = [handle.remote(number) for number in range(10)]

        refused = [response for response in responses if response.done()]
        assert len(refused) == 10 - of_ten
        assert responses[of_ten:] == refused
        assert len(replica.begun) == min(slots, of_ten)

    def test_says_who_is_full_and_how_full(self) -> None:
        router, _, seat = still_router(
            RealKernel(), max_queued_requests=2, status_code=429, retry_after_s=3.5
        )
        router.replace((), (seat,))
        error = [DeploymentHandle[Any](router).remote() for _ in range(4)][-1].exception()

        assert isinstance(error, BackPressureError)
        assert (error.queued, error.limit, error.status_code, error.retry_after_s) == (2, 2, 429, 3.5)
        assert "app/D" in str(error)
        assert "2 waiting, max_queued_requests=2" in str(error)

    def test_counts_live_requests_only(self) -> None:
        router, _, seat = still_router(RealKernel(), max_queued_requests=2)
        router.replace((), (seat,))
        responses = [DeploymentHandle[Any](router).remote() for _ in range(3)]

        responses[1].cancel()

        assert not DeploymentHandle[Any](router).remote().done()
        assert DeploymentHandle[Any](router).remote().done()

    def test_does_not_count_slots_of_cancelled_calls_that_still_run(self) -> None:
        router, replica, seat = still_router(RealKernel(), max_queued_requests=0)
        router.replace((), (seat,))
        running = DeploymentHandle[Any](router).remote()

        running.cancel()

        assert isinstance(DeploymentHandle[Any](router).remote().exception(), BackPressureError)
        replica.end(request_behind(running), Value("late"))
        assert not DeploymentHandle[Any](router).remote().done()

    def test_counts_no_slots_of_replicas_that_are_not_there_yet(self) -> None:
        router, _, seat = still_router(RealKernel(), limit=100, max_queued_requests=2)
        handle = DeploymentHandle[Any](router)

        queued = [handle.remote() for _ in range(3)]
        assert [response.done() for response in queued] == [False, False, True]
        router.replace((), (seat,))

        assert not any(handle.remote().done() for _ in range(90))

    def test_does_not_count_calls_that_wait_for_their_arguments(self) -> None:
        router, _, seat = still_router(RealKernel(), max_queued_requests=0)
        handle = DeploymentHandle[Any](router)
        held = concurrent.futures.Future[int]()
        waiting = [handle.remote(held) for _ in range(5)]
        router.replace((), (seat,))

        assert not handle.remote().done()
        held.set_result(1)

        assert all(isinstance(response.exception(), BackPressureError) for response in waiting)

    def test_is_exact_whatever_the_threads_are_doing(self) -> None:
        """2 slots and a limit of 2: of ten at once exactly four are answered."""

        def ten_at_once(kernel: SimulatedKernel) -> None:
            class Slow:
                def __call__(self) -> None:
                    kernel.waiter().wait(1)

            with deployed(kernel, Slow, max_ongoing_requests=2, max_queued_requests=2) as slow:
                errors: list[BaseException | None] = []
                responses: list[DeploymentResponse[Any]] = []
                callers = [
                    kernel.spawn(f"caller {number}", lambda: responses.append(slow.handle.remote()))
                    for number in range(10)
                ]
                for caller in callers:
                    caller.join()
                assert kernel.now() < 1
                errors = [response.exception() for response in responses]
                assert sum(error is None for error in errors) == 4
                assert sum(isinstance(error, BackPressureError) for error in errors) == 6

        explore(ten_at_once, 60)


class TestOrder:
    def test_is_that_of_the_calls(self, kernel: RealKernel) -> None:
        got: list[int] = []

        class Note:
            def __call__(self, number: int) -> None:
                got.append(number)

        with deployed(kernel, Note, max_ongoing_requests=1) as note:
            responses = [note.handle.remote(number) for number in range(2000)]
            responses[-1].result()

        assert got == list(range(2000))

    def test_lets_a_waited_read_see_every_write_before_it(self, kernel: RealKernel) -> None:
        class Register:
            value = -1

            def set(self, value: int) -> None:
                self.value = value

            def get(self) -> int:
                return self.value

        with deployed(kernel, Register, max_ongoing_requests=1) as register:
            for number in range(1000):
                register.handle.set.remote(number)
                assert register.handle.get.remote().result() == number

    def test_holds_for_coroutines_and_functions_in_one_queue(self) -> None:
        def interleaved(kernel: SimulatedKernel) -> None:
            begun: list[int] = []

            class Both:
                def plain(self, number: int) -> None:
                    begun.append(number)

                async def coroutine(self, number: int) -> None:
                    begun.append(number)

            with deployed(kernel, Both, max_ongoing_requests=1) as both:
                methods = [both.handle.plain, both.handle.coroutine]
                responses = [methods[number % 3 == 0].remote(number) for number in range(12)]
                for response in responses:
                    response.result()
            assert begun == list(range(12))

        explore(interleaved, 40)


class TestSlots:
    def test_are_all_used_and_never_overdrawn(self, kernel: RealKernel, gate: Gate) -> None:
        with deployed(kernel, gate.target, max_ongoing_requests=3, num_replicas=2) as gated:
            responses = [gated.handle.remote(number) for number in range(12)]
            gate.wait_for(6)
            assert gated.router.statistics().ongoing == 6
            assert gated.router.statistics().queued == 6
            gate.open(12)
            assert sorted(response.result() for response in responses) == list(range(12))

        assert gate.most == 6

    def test_need_no_more_threads_than_there_are(self, kernel: RealKernel, gate: Gate) -> None:
        gate.open(300)
        with deployed(kernel, gate.target, max_ongoing_requests=3, num_replicas=2) as gated:
            for _ in range(5):
                for response in [gated.handle.remote() for _ in range(60)]:
                    response.result()
            assert gated.router.statistics().workers <= 6
            workers = [thread.name for thread in threading.enumerate() if thread.name.startswith("app/D#")]
            assert len(workers) <= 6

    def test_need_one_thread_where_one_call_comes_at_a_time(self, kernel: RealKernel, gate: Gate) -> None:
        gate.open(100)
        with deployed(kernel, gate.target, max_ongoing_requests=5) as gated:
            for _ in range(50):
                gated.handle.remote().result()
                wait_until(lambda: len(gated.seats[0].idle) == gated.seats[0].workers)

            assert gated.router.statistics().workers == 1

    def test_are_not_held_by_the_answer(self, kernel: RealKernel, gate: Gate) -> None:
        with deployed(kernel, gate.target, max_ongoing_requests=1) as gated:
            first, second = gated.handle.remote(1), gated.handle.remote(2)
            gate.wait_for(1)

            first.cancel()

            assert isinstance(first.exception(), RequestCancelledError)
            assert gated.router.statistics().ongoing == 1
            assert gate.entered == [1]
            gate.open(2)
            assert second.result() == 2
            assert isinstance(first.exception(), RequestCancelledError)

    def test_of_a_def_that_returned_a_coroutine_are_held_until_that_ends(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            class Deferring:
                def __call__(self, seconds: float) -> Any:
                    import asyncio

                    async def later() -> float:
                        await asyncio.sleep(seconds)
                        return kernel.now()

                    return later()

            with deployed(kernel, Deferring, max_ongoing_requests=1) as deferring:
                first, second = deferring.handle.remote(5), deferring.handle.remote(5)
                assert (first.result(), second.result()) == (5, 10)

        simulated(story)


class TestAWorkerAtRest:
    def test_still_comes_when_it_could_not_tell_of_an_answer(
        self, kernel: RealKernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Same:
            def __call__(self, value: int) -> int:
                request: Any = current_request()
                wait_until(lambda: bool(request._subscribers))  # somebody is to be told
                return value

        tell = Waiter.tell

        def fail_once(waiter: Waiter) -> Any:
            monkeypatch.setattr(Waiter, "tell", tell)
            tell(waiter)
            raise MemoryError

        with deployed(kernel, Same, max_ongoing_requests=2) as same:
            monkeypatch.setattr(Waiter, "tell", fail_once)
            answers = [same.handle.remote(number).result(timeout_s=20) for number in range(3)]

            assert answers == [0, 1, 2]
        assert "could not be told" in caplog.text

    def test_holds_on_to_nothing(self, kernel: RealKernel) -> None:
        class Big:
            pass

        class Make:
            def __call__(self, big: Any) -> Big:
                return Big()

        with deployed(kernel, Make, max_ongoing_requests=1) as make:
            big = Big()
            response = make.handle.remote(big)
            made = response.result()
            wait_until(lambda: bool(make.seats[0].idle))
            references = [weakref.ref(big), weakref.ref(made), weakref.ref(request_behind(response))]

            del big, made, response
            let_the_dead_go()

            assert [reference() for reference in references] == [None, None, None]

    def test_holds_on_to_nothing_after_a_failure(self, kernel: RealKernel) -> None:
        class Big:
            pass

        class Fail:
            def __call__(self, big: Any) -> None:
                raise ValueError("no")

        with deployed(kernel, Fail, max_ongoing_requests=1) as fail:
            big = Big()
            response = fail.handle.remote(big)
            with pytest.raises(ValueError):
                response.result()
            wait_until(lambda: bool(fail.seats[0].idle))
            references: list[weakref.ref[Any]] = [weakref.ref(big), weakref.ref(request_behind(response))]

            del big, response
            gc.collect()  # a traceback and what it has seen make a circle

            assert [reference() for reference in references] == [None, None]

    def test_holds_no_request_that_is_somebody_elses_to_run(self) -> None:
        """It came to rest while a request was queued that it could not take: its slots were taken."""

        def story(kernel: SimulatedKernel) -> None:
            class Both:
                async def long(self) -> None:
                    import asyncio

                    await asyncio.sleep(10)

                def short(self, argument: Any = None) -> None:
                    pass

            class Argument:
                pass

            with deployed(kernel, Both, max_ongoing_requests=1) as both:
                both.handle.short.remote().result()
                let_it_rest(kernel)
                router, seat = both.router, both.seats[0]
                long = both.handle.long.remote()
                let_it_rest(kernel)
                queued = both.handle.short.remote(Argument())
                gone = weakref.ref(request_behind(queued))
                router.act(seat.idle.pop())  # somebody woke the worker for nothing
                let_it_rest(kernel)
                queued.cancel()
                del queued
                for _ in range(200):  # sweep the dead out of the queue
                    both.handle.short.remote().cancel()
                long.result()
                let_it_rest(kernel)
                assert gone() is None
                check_invariants(router)

        simulated(story)


class TestAThreadThatCannotBeStarted:
    def test_fails_the_call_with_a_reason(
        self, kernel: RealKernel, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with deployed(kernel, gate.target) as gated:
            monkeypatch.setattr(gated.seats[0].replica, "add_worker", self.refuse)
            error = gated.handle.remote().exception()

            assert isinstance(error, DeploymentUnavailableError)
            assert "can't start new thread" in str(error)
            assert "app/D" in str(error)
            monkeypatch.undo()
            gate.open(1)
            assert gated.handle.remote("now").result() == "now"

    def test_leaves_the_queue_to_the_threads_that_there_are(
        self, kernel: RealKernel, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with deployed(kernel, gate.target, max_ongoing_requests=2) as gated:
            first = gated.handle.remote(1)
            gate.wait_for(1)
            monkeypatch.setattr(gated.seats[0].replica, "add_worker", self.refuse)
            second = gated.handle.remote(2)
            gate.open(2)

            assert (first.result(), second.result()) == (1, 2)

    def test_does_not_keep_a_rested_worker_of_another_replica_from_the_queue(
        self, kernel: RealKernel, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with deployed(kernel, gate.target, max_ongoing_requests=1, num_replicas=2) as gated:
            gate.open(1)
            gated.handle.remote(1).result()
            rested, bare = sorted(gated.seats, key=lambda seat: -seat.workers)
            wait_until(lambda: bool(rested.idle))
            gated.router.replace((bare,), ())
            gated.router.replace((), (bare,))  # now it is the one that gets the next request
            assert gated.router._seats.least_loaded() is bare
            monkeypatch.setattr(bare.replica, "add_worker", self.refuse)
            gate.open(1)

            assert gated.handle.remote(2).result(timeout_s=10) == 2

    def test_fails_a_coroutine_and_gives_its_slot_back(
        self, kernel: RealKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Async:
            async def __call__(self) -> int:
                return 1

        with deployed(kernel, Async, max_ongoing_requests=1) as deployment:
            monkeypatch.setattr(RealKernel, "spawn", self.refuse)
            error = deployment.handle.remote().exception(timeout_s=10)
            assert isinstance(error, ReplicaDiedError)
            assert "can't start new thread" in str(error)
            monkeypatch.undo()

            assert deployment.handle.remote().result(timeout_s=10) == 1

    @staticmethod
    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")


class TestReplacing:
    def test_gives_new_requests_to_the_new_seats_only(self) -> None:
        kernel = RealKernel()
        router, old, old_seat = still_router(kernel, limit=1)
        new = StillReplica()
        new_seat = router.seat(new, 1)  # type: ignore[arg-type]
        router.replace((), (old_seat,))
        handle = DeploymentHandle[Any](router)
        first, second = handle.remote(1), handle.remote(2)

        router.replace((old_seat,), (new_seat,))

        assert old.begun == [request_behind(first)]
        assert new.begun == [request_behind(second)]
        old.end(request_behind(first), Value("old"))
        assert first.result() == "old"
        assert router.statistics().replicas == 1

    def test_lets_nothing_in_flight_be_lost(self, kernel: RealKernel) -> None:
        class Version:
            def __init__(self, name: str) -> None:
                self.name = name

            def __call__(self) -> str:
                return self.name

        with deployed(kernel, Version, "0", num_replicas=2, max_ongoing_requests=2) as versions:
            responses: list[DeploymentResponse[Any]] = []
            go_on = threading.Event()
            go_on.set()

            def submit() -> None:
                while go_on.is_set():
                    responses.append(versions.handle.remote())
                    responses[-1].result()

            callers = [threading.Thread(target=submit) for _ in range(4)]
            for caller in callers:
                caller.start()
            for number in range(1, 6):
                versions.replace_with(Version, str(number), num_replicas=2, max_ongoing_requests=2)
                assert versions.handle.remote().result() == str(number)
            go_on.clear()
            for caller in callers:
                caller.join()

            assert all(response.exception() is None for response in responses)

    def test_sends_the_old_workers_home(self, kernel: RealKernel, gate: Gate) -> None:
        with deployed(kernel, gate.target) as gated:
            gate.open(2)
            gated.handle.remote(1).result()
            old = gated.seats[0]
            gated.replace_with(gate.target)

            assert (old.workers, old.is_open) == (0, False)
            assert gated.handle.remote(2).result() == 2

    def test_of_a_replica_that_is_not_there_does_nothing(self) -> None:
        router, _, seat = still_router(RealKernel())

        router.replace((seat,), ())

        assert router.statistics().replicas == 0


class TestDraining:
    def test_waits_for_the_last_body(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            router, replica, seat = still_router(kernel, limit=2)
            router.replace((), (seat,))
            handle = DeploymentHandle[Any](router)
            requests = [request_behind(handle.remote()) for _ in range(2)]
            router.replace((seat,), ())
            requests[0].cancel()
            kernel.call_at(3, lambda: replica.end(requests[0], Value(1)))
            kernel.call_at(5, lambda: replica.end(requests[1], Value(1)))

            assert not router.drain(seat, 4)
            assert kernel.now() == 4
            assert router.drain(seat, 4)
            assert kernel.now() == 5
            assert router.drain(seat, 0)

        simulated(story)

    def test_of_an_empty_seat_is_over_at_once(self) -> None:
        router, _, seat = still_router(RealKernel())

        assert router.drain(seat)

    def test_that_is_given_up_answers_what_still_runs(self) -> None:
        router, replica, seat = still_router(RealKernel(), limit=2)
        router.replace((), (seat,))
        handle = DeploymentHandle[Any](router)
        stuck, cancelled = handle.remote(), handle.remote()
        cancelled.cancel()
        router.replace((seat,), ())

        left = router.abandon(seat, "it would not end")

        assert left == [request_behind(stuck)]
        assert isinstance(stuck.exception(), ReplicaDiedError)
        assert "it would not end" in str(stuck.exception())
        assert isinstance(cancelled.exception(), RequestCancelledError)
        replica.end(request_behind(stuck), Value("late"))
        replica.end(request_behind(cancelled), Value("late"))
        assert isinstance(stuck.exception(), ReplicaDiedError)
        assert not seat.running


class TestClosing:
    def test_answers_all_that_are_queued_and_lets_run_what_runs(self) -> None:
        router, replica, seat = still_router(RealKernel())
        router.replace((), (seat,))
        handle = DeploymentHandle[Any](router)
        responses = [handle.remote() for _ in range(200)]

        router.close("it was deleted", router._opening)

        errors = [response.exception() for response in responses[1:]]
        assert all(isinstance(error, DeploymentUnavailableError) for error in errors)
        assert "app/D is not available: it was deleted" in str(errors[0])
        replica.end(request_behind(responses[0]), Value("value"))
        assert responses[0].result() == "value"
        assert_nothing_left(router)

    def test_refuses_what_comes_later_until_it_is_opened_again(self) -> None:
        router, replica, seat = still_router(RealKernel())
        router.replace((), (seat,))
        handle = DeploymentHandle[Any](router)
        router.close("it was deleted", router._opening)

        assert isinstance(handle.remote().exception(), DeploymentUnavailableError)
        router.open(Limits())
        assert not handle.remote().done()
        assert len(replica.begun) == 1

    def test_by_a_predecessor_does_not_close_what_has_come_since(self) -> None:
        router, _, _ = still_router(RealKernel())
        old = router._opening
        new = router.open(Limits())

        router.close("the old one goes", old)

        response = DeploymentHandle[Any](router).remote()
        assert not response.done()
        router.close("the new one goes", new)
        assert response.done()

    def test_before_it_was_ever_opened_there_is_an_explanation(self) -> None:
        router = Router(RealKernel(), "app", "D")

        error = DeploymentHandle[Any](router).remote().exception()

        assert isinstance(error, DeploymentUnavailableError)
        assert "not deployed" in str(error)


def test_a_router_says_what_it_is() -> None:
    router, _, seat = still_router(RealKernel())
    assert repr(router) == "<Router app/D 0 ongoing, 0 queued, 0 replicas>"

    router.replace((), (seat,))
    responses = [DeploymentHandle[Any](router).remote() for _ in range(3)]
    assert repr(router) == "<Router app/D 1 ongoing, 2 queued, 1 replicas>"

    router.close("it was deleted", router._opening)
    assert repr(router) == "<Router app/D 1 ongoing, 0 queued, 1 replicas, closed>"
    del responses


def test_a_queue_of_dead_requests_does_not_grow() -> None:
    router, _, _ = still_router(RealKernel())
    handle = DeploymentHandle[Any](router)
    alive = handle.remote()

    for _ in range(5000):
        handle.remote().cancel()

    assert len(router._queue) < 200
    assert router.statistics().queued == 1
    assert not alive.done()


def test_what_is_dropped_out_of_the_queue_does_not_die_under_the_lock() -> None:
    router, _, _ = still_router(RealKernel())
    handle = DeploymentHandle[Any](router)
    died_with_lock_free: list[bool] = []

    class Argument:
        def __del__(self) -> None:
            died_with_lock_free.append(acquire_within(router.lock, 0))
            router.lock.release()

    for _ in range(500):
        handle.remote(Argument()).cancel()
    router.close("it was deleted", router._opening)

    assert died_with_lock_free == [True] * 500


# ---- the two mechanisms that constant traffic hides


def test_a_burst_of_calls_wakes_one_worker_which_wakes_the_next() -> None:
    hired: list[Callable[[], None]] = []

    class Hiring(StillReplica):
        def begins_async(self, method: str) -> bool:
            return False

        def add_worker(self, work: Callable[[], None]) -> None:
            hired.append(work)

    router, _, _ = still_router(RealKernel())
    seat = router.seat(Hiring(), 16)  # type: ignore[arg-type]
    router.replace((), (seat,))

    responses = [DeploymentHandle[Any](router).remote() for _ in range(16)]

    assert (len(hired), seat.workers) == (1, 1)
    request, effects = router.arrive(seat)
    router.act(effects)
    assert request is request_behind(responses[0])
    assert (len(hired), seat.workers) == (2, 2)


def test_an_arriving_worker_wakes_the_next_one() -> None:
    """A burst of calls, then silence: at most one wake is under way, so each worker must see to the next."""

    def burst(kernel: SimulatedKernel) -> None:
        inside = 0

        class Together:
            """Nobody leaves before all have come."""

            def __call__(self) -> None:
                nonlocal inside
                inside += 1
                kernel.waiter().wait(100)

        with deployed(kernel, Together, max_ongoing_requests=4) as together:
            responses = [together.handle.remote() for _ in range(4)]
            kernel.waiter().wait(50)
            assert inside == 4
            for response in responses:
                response.result()
            for _ in range(2):  # now with workers that rest
                let_it_rest(kernel)
                assert len(together.seats[0].idle) == 4
                inside = 0
                responses = [together.handle.remote() for _ in range(4)]
                kernel.waiter().wait(50)
                assert inside == 4
                for response in responses:
                    response.result()

    explore(burst, 40)


@pytest.mark.parametrize("first", ["def", "coroutine", "def that returns a coroutine", "stream"])
@pytest.mark.parametrize("second", ["def", "coroutine"])
def test_a_slot_that_is_given_back_is_seen_to(first: str, second: str) -> None:
    """Silence while the slot comes back: nobody but who gives it back can see to the queue."""

    def handed_on(kernel: SimulatedKernel) -> None:
        import asyncio

        class Work:
            def plain(self) -> None:
                kernel.waiter().wait(5)

            async def coroutine(self) -> None:
                await asyncio.sleep(5)

            def deferring(self) -> Any:
                return self.coroutine()

            def items(self) -> Iterator[int]:
                yield 1
                kernel.waiter().wait(5)

        with deployed(kernel, Work, max_ongoing_requests=1) as work:
            handle = work.handle
            if first == "stream":
                response: Any = handle.options(stream=True).items.remote()
            else:
                methods = {"def": handle.plain, "coroutine": handle.coroutine}
                response = methods.get(first, handle.deferring).remote()
            let_it_rest(kernel)
            queued = (handle.plain if second == "def" else handle.coroutine).remote()
            kernel.waiter().wait(20)

            assert queued.done()
            del response

    explore(handed_on, 25)


# ---- against a small model


class RouterMachine(RuleBasedStateMachine):
    """A router, two still replicas, and a model that knows what stands where."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(RealKernel(), "app", "D")
        self.handle = DeploymentHandle[Any](self.router)
        self.replicas = [StillReplica(), StillReplica()]
        self.seats: list[Seat] = []
        self.is_open = False
        self.opening = 0
        self.limit = -1
        self.queue: list[Request] = []
        self.waiting: dict[Request, concurrent.futures.Future[int]] = {}
        self.running: dict[Request, Seat] = {}
        self.answered: dict[Request, type | None] = {}
        self.told = itertools.count()

    @initialize(limits=st.tuples(st.integers(1, 3), st.integers(1, 3)))
    def begin(self, limits: tuple[int, int]) -> None:
        self.seats = [
            self.router.seat(replica, limit)  # type: ignore[arg-type]
            for replica, limit in zip(self.replicas, limits, strict=True)
        ]

    # -- what happens

    @rule(limit=st.sampled_from([-1, 0, 2]))
    def open_router(self, limit: int) -> None:
        self.opening = self.router.open(Limits(max_queued_requests=limit))
        self.is_open, self.limit = True, limit

    @rule(is_stale=st.booleans())
    def close_router(self, is_stale: bool) -> None:
        self.router.close("closed", self.opening - is_stale)
        if not is_stale:
            self.is_open = self.opening == 0 and self.is_open
            for request in [*self.queue, *self.waiting]:
                self.answered[request] = DeploymentUnavailableError
            self.queue.clear()
            self.waiting.clear()

    @rule(replaced=st.sets(st.integers(0, 1)), opened=st.sets(st.integers(0, 1)))
    def replace_seats(self, replaced: set[int], opened: set[int]) -> None:
        opened = {number for number in opened if not self.seats[number].is_open}
        self.router.replace(
            [self.seats[number] for number in sorted(replaced - opened)],
            [self.seats[number] for number in sorted(opened)],
        )
        self.follow_claims()

    @rule()
    def submit(self) -> None:
        self.expect_admission(request_behind(self.handle.remote(1)))

    @rule()
    def submit_with_an_input(self) -> None:
        future = concurrent.futures.Future[int]()
        request = request_behind(self.handle.remote(future))
        if self.is_open:
            self.waiting[request] = future
        else:
            self.answered[request] = DeploymentUnavailableError

    @precondition(lambda self: self.waiting)
    @rule(number=st.integers(0, 99), fails=st.booleans())
    def an_input_arrives(self, number: int, fails: bool) -> None:
        request = self.pick(self.waiting, number)
        future = self.waiting.pop(request)
        if fails:
            self.answered[request] = KeyError
            future.set_exception(KeyError("k"))
        else:
            before = self.has_room()
            future.set_result(1)
            self.expect_admission(request, had_room=before)

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 99))
    def a_body_returns(self, number: int) -> None:
        request = self.pick(self.running, number)
        seat = self.running.pop(request)
        self.answered.setdefault(request, None)
        self.replicas[self.seats.index(seat)].end(request, Value("value"))
        self.follow_claims()

    @rule(number=st.integers(0, 99), how=st.sampled_from(["cancel", "withdraw", "answer"]))
    def somebody_answers(self, number: int, how: str) -> None:
        everybody = [*self.queue, *self.waiting, *self.running]
        if not everybody:
            return
        request = self.pick(dict.fromkeys(everybody), number)
        has_begun = request in self.running
        if how == "withdraw":
            assert request.withdraw() is (not has_begun)
            kind: type | None = RequestCancelledError
        elif how == "cancel":
            request.cancel()
            kind = RequestCancelledError
        else:
            assert request.answer(Value("another")) is (request not in self.answered)
            kind = None
        if how != "withdraw" or not has_begun:
            self.answered.setdefault(request, kind)
        if request in self.queue:
            self.queue.remove(request)
        self.waiting.pop(request, None)

    # -- what the model expects

    def free(self) -> int:
        taken = [seat for seat in self.running.values() if seat.is_open]
        return sum(seat.limit for seat in self.seats if seat.is_open) - len(taken)

    def has_room(self) -> bool:
        return self.limit < 0 or len(self.queue) - self.free() < self.limit

    def expect_admission(self, request: Request, had_room: bool | None = None) -> None:
        if not self.is_open:
            self.answered[request] = DeploymentUnavailableError
        elif not (self.has_room() if had_room is None else had_room):
            self.answered[request] = BackPressureError
        else:
            self.queue.append(request)
            self.follow_claims()

    def follow_claims(self) -> None:
        """The heads of the queue are claimed, in order, while there are free slots."""
        while self.queue and self.free():
            request = self.queue.pop(0)
            self.running[request] = next(seat for seat in self.seats if request in seat.running)

    @staticmethod
    def pick(requests: dict[Request, Any], number: int) -> Request:
        return list(requests)[number % len(requests)]

    # -- what always holds

    @invariant()
    def the_books_agree(self) -> None:
        now = self.router.statistics()
        assert now.waiting == len(self.waiting)
        assert now.queued == len(self.queue)
        assert now.ongoing == sum(seat.is_open for seat in self.running.values())
        assert now.replicas == sum(seat.is_open for seat in self.seats)
        assert [request for request in self.router._queue if request.state is QUEUED] == self.queue
        for seat in self.seats:
            assert list(seat.running) == [each for each, taken in self.running.items() if taken is seat]
        check_invariants(self.router)

    @invariant()
    def the_answers_agree(self) -> None:
        for request, kind in self.answered.items():
            assert request.state is ANSWERED
            assert request.outcome is not None
            error = request.outcome.exception
            assert error is None if kind is None else isinstance(error, kind)
        for request in [*self.queue, *self.waiting, *self.running]:
            assert (request.state is ANSWERED) == (request in self.answered)


RouterMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40)
TestRouterAgainstAModel = RouterMachine.TestCase
