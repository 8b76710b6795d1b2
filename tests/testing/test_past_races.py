"""Races that the runtime once had, or was designed to have none of: each is put back, and a simulated test notices.

What is planted is what somebody might write in good faith. Where it is noticed is what users see: an answer that never
comes, comes wrong, or comes twice.

What no order of threads decides has its tests elsewhere: Ctrl-C in the runtime's own code (``concurrency/test_interrupts``),
that nobody helps under a timeout (``router/test_helping``), and what tombstones and long chains cost (``stress/test_leaks``).
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve import futures, testing
from threadserve.call.request import ANSWERED, Request
from threadserve.concurrency import channel
from threadserve.concurrency.channel import Channel
from threadserve.concurrency.future import CallFuture
from threadserve.concurrency.loops import LoopThread
from threadserve.concurrency.outcome import Error
from threadserve.concurrency.reaper import Errands
from threadserve.concurrency.waiter import deliver
from threadserve.router.arguments import Inputs
from threadserve.router.refusals import given_up
from threadserve.router.router import Router
from threadserve.router.seats import NOTHING
from threadserve.runtime.version import Retirement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threadserve.concurrency.outcome import Outcome
    from threadserve.router.seats import Effects, Seat


class _Add:
    def __call__(self, *values: int) -> int:
        assert all(isinstance(value, int) for value in values), values
        return sum(values) + 1

    async def gently(self, value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    def take_a_second(self) -> None:
        testing.current_simulation().advance(1)

    def take_an_hour(self) -> Any:
        return asyncio.sleep(3600)  # begins on a worker, and goes on on the loop

    def fail(self) -> None:
        raise ValueError("on purpose")


class _Meeting:
    """Its calls come in pairs: each waits for the other one."""

    def __init__(self) -> None:
        self._both = threading.Barrier(2)

    def __call__(self) -> None:
        self._both.wait()


Add = serve.deployment(name="Add")(_Add)
Meeting = serve.deployment(name="Meeting")(_Meeting)
ENOUGH_S = 60.0


# ---- the programs: what users do


def wait_for_calls() -> None:
    with testing.simulate(Add.bind()) as handle:
        for response in [handle.remote(n) for n in range(3)]:
            response.result()


def pass_responses() -> None:
    with testing.simulate(Add.bind()) as handle:
        assert handle.remote(handle.remote(1), handle.remote(2)).result() == 6


def read_a_stream() -> None:
    with testing.simulate(Add.bind()) as handle:
        assert list(handle.count.options(stream=True).remote(3)) == [0, 1, 2]


def read_a_narrow_stream() -> None:
    with testing.simulate(Add.options(stream_buffer_size=1).bind()) as handle:
        assert list(handle.count.options(stream=True).remote(3)) == [0, 1, 2]


def drop_streams() -> None:
    with testing.simulate(Add.options(max_ongoing_requests=1, stream_buffer_size=1).bind()) as handle:
        for _ in range(2):
            next(handle.count.options(stream=True).remote(100))  # and nobody reads on
        handle.remote(1).result()


def call_coroutines() -> None:
    with testing.simulate(Add.bind()) as handle:
        assert futures.gather(*[handle.gently.remote(n) for n in range(3)]).result() == [1, 2, 3]


def cancel() -> None:
    with testing.simulate(Add.bind()) as handle:
        response = handle.remote(1)
        response.cancel()
        first = response.exception()
        testing.current_simulation().settle()
        assert type(response.exception()) is type(first), "the answer has changed"


def delete() -> None:
    with testing.simulate(Add.bind()):
        pass


def meet() -> None:
    with testing.simulate(Meeting.options(max_ongoing_requests=2).bind()) as handle:
        for response in [handle.remote() for _ in range(2)]:
            response.result(timeout_s=ENOUGH_S)


def help_with_one_and_wait_for_the_other() -> None:
    with testing.simulate(Add.options(max_ongoing_requests=1).bind()) as handle:
        first, second = handle.remote(1), handle.remote(2)
        first.result()
        second.result(timeout_s=ENOUGH_S)


def cancel_what_runs() -> None:
    with testing.simulate(Add.options(max_ongoing_requests=1).bind()) as handle:
        response = handle.take_a_second.remote()
        testing.current_simulation().settle()
        response.cancel()
        handle.remote(1).result(timeout_s=ENOUGH_S)


def cancel_a_coroutine() -> None:
    with testing.simulate(Add.bind()) as handle:
        handle.take_an_hour.remote().cancel()
    assert testing.current_simulation().now < 1.0, "the body was not told, and had to be abandoned"


def cancel_a_future_that_somebody_is_making() -> None:
    with testing.simulate(Add.options(max_ongoing_requests=1).bind()) as handle:
        handle.take_a_second.remote()
        queued = handle.remote(1)
        other = threading.Thread(target=lambda: queued.future)
        other.start()
        queued.future.cancel()
        other.join()


def delete_what_just_ends() -> None:
    slow = Add.options(max_ongoing_requests=2, graceful_shutdown_timeout_s=0.5)
    with testing.simulate(slow.bind()) as handle:
        for _ in range(2):
            handle.take_a_second.remote()
        testing.current_simulation().advance(0.5)


def fetch_a_failure_twice() -> None:
    fetched: list[BaseException] = []

    def fetch(response: Any) -> None:
        try:
            response.result()
        except ValueError as error:
            fetched.append(error)

    with testing.simulate(Add.bind()) as handle:
        response = handle.fail.remote()
        other = threading.Thread(target=fetch, args=(response,))
        other.start()
        fetch(response)
        other.join()
    assert fetched[0] is not fetched[1], "two threads raise one object"


# ---- the races


def looks_before_it_waits(self: Request, subscriber: Any) -> bool:
    """Ask whether there is an answer, and then, in another step, want to be told of it."""
    if self.state is ANSWERED:
        return False
    with self.router.lock:
        if self._subscribers is None:
            self._subscribers = {}
        self._subscribers[subscriber] = None
    return True


def counts_without_a_guard(self: Inputs) -> None:
    """Count the inputs without one for the registration itself: those that are there at once start the call."""
    self._pending = 0
    register(self)


def takes_in_two_steps(self: Channel, subscriber: Any = None) -> Any:
    """Find a channel empty, and then, in another step, want to be told when it no longer is."""
    item = take(self, None)
    if item is channel.EMPTY and subscriber is not None:
        with self._lock:
            self._readers[subscriber] = None
    return item


def makes_its_waiter_too_late(self: Errands) -> None:
    """Look at the notes, and then make the waiter that the next note will set."""
    while True:
        while self._notes:
            self._notes.popleft()()
        waiter = self._waiter = self._kernel.waiter()
        waiter.wait()


def clears_the_flag_too_late(self: LoopThread) -> None:
    """Empty the inbox, and then, in another step, say that the loop has to be woken for what comes."""
    with self._lock:
        notes, self._inbox = self._inbox, deque()
    for fn in notes:
        fn()
    with self._lock:
        self._is_woken = False


def waits_for_what_is_over(self: Retirement) -> None:
    """Ask whether it is over, and then, in another step, want to be told."""
    with self._lock:
        is_over = self._waiters is None
    if not is_over:
        waiter = self._kernel.waiter()
        with self._lock:
            self._waiters = [*(self._waiters or ()), waiter]
        waiter.wait()


def lets_the_last_answer_win(self: Request, outcome: Any) -> Any:
    """Take the body's result though the request was cancelled."""
    news = settle(self, outcome)
    if news is None:
        self.outcome = outcome
    return news


def clears_its_flag_in_a_step_of_its_own(self: Router, seat: Seat, *, was_woken: bool = True) -> Any:
    """Arrive and look for work, and then, in another step, say that somebody else may be woken."""
    with self.lock:
        request = self._take_next(seat)
    with self.lock:
        if was_woken:
            self._is_waking = False
    return request, NOTHING


def gives_a_slot_back_and_wakes_nobody(
    self: Router, seat: Seat, request: Request, outcome: Outcome, kept: Any = None
) -> Any:
    """End a request that no worker of its own ran, and leave it to the next one that comes to have somebody woken."""
    with self.lock:
        self._seats.give_back(seat, request)
        drained = None if seat.is_open or seat.running else seat.drained
        news = request.end(outcome)
    wakes = deliver(news, kept)
    if drained is not None:
        drained.set()
    return wakes


def keeps_the_slot_of_what_was_cancelled(
    self: Router, seat: Seat, request: Request, outcome: Outcome, call: Effects
) -> Any:
    """See that a request has its answer already, and take all for done."""
    if request.state is ANSWERED:
        return *self.arrive(seat, was_woken=False), (), False
    return conclude(self, seat, request, outcome, call)


def attaches_without_a_look(self: Request, interrupt: Callable[[], object]) -> bool:
    """Note how to interrupt a body, though it may have been cancelled just before."""
    self._interrupt = interrupt
    return True


def completes_what_is_not_done(self: CallFuture, outcome: Outcome) -> None:
    """Ask a future whether it is done, and then, in another step, complete it."""
    if self.done():
        return
    self._turn.append(None)
    complete(self, outcome)


def iterates_over_what_others_change(self: Router, seat: Seat, reason: str) -> list[Request]:
    """Go through what runs while it runs."""
    return [request for request in seat.running if request.answer(given_up(self.died, request, reason))]


def looks_who_is_first(self: Error) -> BaseException:
    """Ask whether somebody has fetched the original, and then, in another step, fetch it."""
    if self._unfetched:
        original = self._original
        self._unfetched.clear()
        return original
    return self._copy()


def looks_for_readers_first(self: Channel, item: Any, subscriber: Any) -> bool | None:
    """Look whether a reader sleeps, and then, in another step, put the item in."""
    has_readers = bool(self._readers)
    if self._is_closed or (len(self) >= self.bound and not self._has_room_now(subscriber)):
        return self._refusal()
    self._items.append(item)
    if has_readers:
        self._tell_a_reader()
    return True


conclude, complete = Router.conclude, CallFuture.complete
settle, take, register = Request.settle, Channel.take, Inputs.register


PLANTED: list[Any] = [
    pytest.param(Request, "subscribe", looks_before_it_waits, wait_for_calls, id="looks-before-it-waits"),
    pytest.param(Inputs, "register", counts_without_a_guard, pass_responses, id="counts-without-a-guard"),
    pytest.param(Channel, "take", takes_in_two_steps, read_a_stream, id="takes-in-two-steps"),
    pytest.param(Errands, "_run", makes_its_waiter_too_late, drop_streams, id="makes-its-waiter-too-late"),
    pytest.param(
        LoopThread, "_drain", clears_the_flag_too_late, call_coroutines, id="clears-the-flag-too-late"
    ),
    pytest.param(Retirement, "wait", waits_for_what_is_over, delete, id="waits-for-what-is-over"),
    pytest.param(Request, "settle", lets_the_last_answer_win, cancel, id="lets-the-last-answer-win"),
    pytest.param(Router, "arrive", clears_its_flag_in_a_step_of_its_own, meet, id="clears-its-flag-alone"),
    pytest.param(
        Router,
        "end",
        gives_a_slot_back_and_wakes_nobody,
        help_with_one_and_wait_for_the_other,
        id="gives-a-slot-back-and-wakes-nobody",
    ),
    pytest.param(
        Router,
        "conclude",
        keeps_the_slot_of_what_was_cancelled,
        cancel_what_runs,
        id="keeps-the-slot-of-what-was-cancelled",
    ),
    pytest.param(
        Request, "attach", attaches_without_a_look, cancel_a_coroutine, id="attaches-without-a-look"
    ),
    pytest.param(
        CallFuture,
        "complete",
        completes_what_is_not_done,
        cancel_a_future_that_somebody_is_making,
        id="completes-what-is-not-done",
    ),
    pytest.param(
        Router,
        "abandon",
        iterates_over_what_others_change,
        delete_what_just_ends,
        id="iterates-over-what-others-change",
    ),
    pytest.param(Error, "fetch", looks_who_is_first, fetch_a_failure_twice, id="looks-who-is-first"),
    pytest.param(
        Channel, "offer", looks_for_readers_first, read_a_narrow_stream, id="looks-for-readers-first"
    ),
]
PROGRAMS = list(dict.fromkeys(planted.values[-1] for planted in PLANTED))


@pytest.fixture(autouse=True)
def nobody_helps() -> None:
    """Here they do, whatever THREADSERVE_INLINE says: one of the races is a helper's."""


# A run that is stuck is given up with calls that never came to their loop.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)
@pytest.mark.parametrize(("owner", "name", "race", "program"), PLANTED)
def test_a_race_that_is_put_back_is_noticed(
    owner: type,
    name: str,
    race: Callable[..., Any],
    program: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, race)
    # Each line of what is planted is a step, for it stands in the module that defines the deployment.
    with pytest.raises(testing.ScheduleError) as caught:
        testing.explore(program, grain="line")

    kind: Any = type(caught.value.__cause__)
    with pytest.raises(kind):
        testing.reproduce(caught.value.reproduction)(program)()
    monkeypatch.undo()
    testing.reproduce(caught.value.reproduction)(program)()
    del caught
    gc.collect()


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_it_nothing_is_found(program: Callable[[], None]) -> None:
    testing.explore(program, runs=200)
