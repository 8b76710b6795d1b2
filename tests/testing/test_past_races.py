"""Races that the runtime once had, or was designed to have none of: each is put back, and a simulated test notices.

What is planted is what somebody might write in good faith. Where it is noticed is what users see: an answer that never
comes, comes wrong, or comes twice.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve import futures, testing
from threadserve.call.request import ANSWERED, Request
from threadserve.concurrency import channel
from threadserve.concurrency.channel import Channel
from threadserve.concurrency.loops import LoopThread
from threadserve.concurrency.reaper import Errands
from threadserve.router.arguments import Inputs
from threadserve.runtime.version import Retirement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Add:
    def __call__(self, *values: int) -> int:
        assert all(isinstance(value, int) for value in values), values
        return sum(values) + 1

    async def gently(self, value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    def count(self, to: int) -> Iterator[int]:
        yield from range(to)


Add = serve.deployment(name="Add")(_Add)


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
]
PROGRAMS = [wait_for_calls, pass_responses, read_a_stream, drop_streams, call_coroutines, cancel, delete]


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
