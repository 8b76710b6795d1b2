"""Assigns the requests of one deployment to its replicas: one queue, the slots, one lock.

One request's journey
---------------------
1. ``handle.method.remote(*args)`` makes a Request and calls ``assign``. It never blocks.
2. Responses among the arguments are waited for (``router/arguments.py``): by subscription, not by a thread.
3. ``admit`` decides under the lock: refused (BackPressureError), or in the queue, in order.
4. The request is *claimed*, exactly once: in one critical section the head is taken from the queue, a slot from a replica,
   and the request is RUNNING. For a ``def`` the claimer is one of the replica's workers. A coroutine needs no thread,
   so whoever finds it at the head claims it and posts it to the replica's loop.
5. ``replica.run`` calls the user's code and makes an outcome of it.
6. In one critical section the slot is given back, the request is answered and the next one is claimed.
7. The news is delivered with no lock held: waiters wake, calls that waited for this value are admitted. A worker that
   would now rest goes on with one of these (``router/workers.py``).

What holds at all times
-----------------------
* *Queued and a free slot imply somebody on the way.* Whoever makes either true (a request comes, a slot is given back,
  a replica opens) calls ``_pump`` in the same critical section. At most one worker is on its way per router
  (``_is_waking``); when it arrives it takes the flag off, claims, and pumps again. So a burst of submissions wakes
  workers in a chain instead of all at once, and a wake-up is never lost: the flag and the queue are looked at together.
* Slots limit calls, not threads. ANSWERED does not free a slot: only the body's return does.
* Requests that are answered in the queue stay there, dead, until they are met; limits look at the live count.
* A seat that is closed gets nothing new. Its requests go on; its idle workers go home.

Inside the lock are only decisions. What is to be done comes back as *effects* and is done after the lock has been
released, like the news. Nothing foreign runs in between, and the user's values never die under the lock.

Rejected: handing each request to an idle worker under the lock (sixteen submissions are then sixteen wake-ups: five times
the cost); one queue per replica (idle replicas beside queued requests).
"""

from __future__ import annotations

import sys
from collections import deque
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from threadserve.call.request import ANSWERED, QUEUED, RUNNING, WAITING, Request
from threadserve.concurrency.outcome import Error
from threadserve.concurrency.threads import get_ident, is_stack_full
from threadserve.concurrency.waiter import deliver, tell
from threadserve.errors import DeploymentUnavailableError, ReplicaDiedError
from threadserve.router.arguments import count_inputs, watch_inputs
from threadserve.router.helping import help_along, run_claimed
from threadserve.router.limits import Holdings, Limits, RouterStatistics
from threadserve.router.refusals import given_up, refusal, unavailable
from threadserve.router.seats import NOTHING, Effects, Seat, Seats
from threadserve.router.workers import Wake, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from threadserve.call.isolation import Isolation
    from threadserve.concurrency.kernel import Kernel, Lock
    from threadserve.concurrency.outcome import Outcome
    from threadserve.concurrency.waiter import Subscriber
    from threadserve.errors import RequestError
    from threadserve.replica.base import Replica

__all__ = ["Holdings", "Limits", "Router", "RouterStatistics"]


class Router:
    """Runs the requests of one deployment. Every member is safe from any thread."""

    def __init__(self, kernel: Kernel, app: str, deployment: str) -> None:
        self.kernel = kernel
        self.app = app
        self.deployment = deployment
        self.name = f"{app}/{deployment}"
        self.stream_buffer_size: float = Limits().stream_buffer_size
        self.lock: Lock = kernel.lock()
        self.isolation: Isolation | None = None  # what requests pass on their way in; None: values are shared
        self._limits = Limits()  # guarded by lock, as all below
        self._most_queued = -1
        self._closed_because: str | None = "it is not deployed"
        self._opening = 0
        self._queue: deque[Request] = deque()
        self._queued = 0
        self._waiting: dict[Request, None] = {}
        self._seats = Seats()
        self._for_workers: set[str] = set()  # methods that no open seat begins on its loop, as far as known
        self.on_wait: Callable[[], None] = lambda: None
        """Called when a body here begins to wait for requests, without a timeout; set by the runtime."""
        # What a request is answered with when the router is closed, and when its replica is given up.
        self.unavailable: Callable[..., RequestError] = DeploymentUnavailableError
        self.died: Callable[..., RequestError] = ReplicaDiedError
        self._is_waking = False
        self._kind_of_waiter = type(kernel.waiter())

    def __repr__(self) -> str:
        now = self.statistics()
        state = "" if self._closed_because is None else ", closed"
        counts = f"{now.ongoing} ongoing, {now.queued} queued, {now.replicas} replicas"
        return f"<Router {self.name} {counts}{state}>"

    def statistics(self) -> RouterStatistics:
        """Return what there is at this moment."""
        with self.lock:
            return RouterStatistics(
                waiting=len(self._waiting),
                queued=self._queued,
                ongoing=sum(len(seat.running) for seat in self._seats),
                replicas=len(self._seats),
                workers=sum(seat.workers for seat in self._seats),
            )

    def watch(self) -> None:
        """Be told that a body waits, without a timeout, for requests; passed on to whoever looks for deadlocks."""
        self.on_wait()

    def holds(self) -> Holdings:
        """Return the unanswered requests here; called with the lock held."""
        return Holdings(
            waiting=tuple(self._waiting),
            queued=tuple(request for request in self._queue if request.state is QUEUED),
            running=tuple(request for seat in self._seats for request in seat.running),
            has_free_slot=self._seats.free > 0 or not len(self._seats),
        )

    # ---- what the runtime decides

    def open(self, limits: Limits, isolation: Isolation | None = None) -> int:
        """Take requests from now on, within `limits`; they queue until there is a replica.

        Returns:
            What ``close`` wants: a number that the next ``open`` makes void.
        """
        with self.lock:
            self._limits = limits
            self._most_queued = limits.max_queued_requests
            self.stream_buffer_size = limits.stream_buffer_size
            self.isolation = isolation
            self._closed_because = None
            self._opening += 1
            return self._opening

    def replace(self, old: Iterable[Seat], new: Iterable[Seat]) -> None:
        """Give new requests to the `new` seats and none to the `old` ones, in one step."""
        idle: list[Effects] = []
        with self.lock:
            self._for_workers.clear()
            for seat in new:
                self._seats.add(seat)
            for seat in old:
                if seat.is_open:
                    self._seats.remove(seat)
                    idle.extend(seat.idle)
                    seat.idle.clear()
            effects = self._pump()
        for call in idle:
            self.act(call)
        self.act(effects)

    def seat(self, replica: Replica, limit: int) -> Seat:
        """Make a seat for `replica`, closed until ``replace`` opens it."""
        seat = Seat(replica, limit)
        replica.on_done = partial(self.end, seat)
        return seat

    def resize(self, seat: Seat, by: int) -> None:
        """Give `seat` so many slots more, or fewer. What runs in it goes on; it gets nothing new until it has room."""
        with self.lock:
            self._seats.resize(seat, by)
            spare = [seat.idle.pop() for _ in range(min(len(seat.idle), seat.workers - seat.limit))]
            effects = self._pump()
        for call in spare:
            self.act(call)
        self.act(effects)

    def drain(self, seat: Seat, timeout: float | None = None) -> bool:
        """Wait until the last request of a closed seat has returned: True; False after `timeout` seconds. Blocks."""
        waiter = self.kernel.waiter()
        with self.lock:
            if not seat.running or seat.is_hurried:
                return not seat.running
            seat.drained = waiter
        waiter.wait(timeout)
        with self.lock:
            seat.drained = None
            return not seat.running

    def hurry(self, seat: Seat) -> None:
        """End a ``drain``, one that is under way or is about to begin, as if its time were over."""
        with self.lock:
            seat.is_hurried = True
            drained = seat.drained
        if drained is not None:
            drained.set()

    def abandon(self, seat: Seat, reason: str) -> list[Request]:
        """Answer what still runs in `seat` with ReplicaDiedError and return it; its threads run on unheard."""
        with self.lock:
            left = list(seat.running)
        return [request for request in left if request.answer(given_up(self.died, request, reason))]

    def close(self, reason: str, opening: int) -> None:
        """Take no more requests; those that wait or are queued get DeploymentUnavailableError. Running ones go on.

        Nothing happens when the router was opened again after `opening`: what goes cannot close what has come.
        """
        news: list[Subscriber] = []
        with self.lock:
            if opening != self._opening:
                return
            self._closed_because = reason
            for request in (*self._waiting, *self._queue):
                news.extend(request.settle(self._unavailable(request)) or ())
            dead, self._queue = self._queue, deque()
        deliver(news)
        del dead

    # ---- what a handle does

    def assign(self, request: Request) -> None:
        """Take over `request` and see to its answer. Never blocks, never raises."""
        try:
            if self.isolation is not None:
                self.isolation.enter(request)
            count = count_inputs(request)
        except Exception as error:  # a refusal, or what a class raises that does not want to be looked at
            request.answer(Error(error.with_traceback(None)))  # whose frames hold the arguments
            return
        if not count:
            news = self.admit(request)
            if news:
                deliver(news)
            return
        inputs = watch_inputs(request, count, self.admit)
        with self.lock:
            is_open = self._closed_because is None
            if is_open and request.state is WAITING:
                self._waiting[request] = None
                request.listen(inputs)
        if is_open:
            inputs.register()
        else:
            request.answer(self._unavailable(request))

    def admit(self, request: Request, inputs: Subscriber | None = None) -> Sequence[Subscriber]:
        """Put `request`, which has all its arguments, in the queue, or refuse it; news comes back.

        Args:
            request: Is WAITING, unless it has been answered.
            inputs: Is not to be told of its answer any more.
        """
        news: Sequence[Subscriber] = ()
        effects = NOTHING
        with self.lock:
            if inputs is not None:
                self._waiting.pop(request, None)
                request.drop(inputs)
            if request.state is not WAITING:  # answered meanwhile: cancelled, most likely
                # Its inputs' values may have come after the answer had cleared the arguments. They die with this frame.
                _left = request.args, request.kwargs
                request.args = request.kwargs = None
            elif self._closed_because is not None:
                news = request.settle(self._unavailable(request)) or ()
            elif self._most_queued >= 0 and self._queued - self._seats.free >= self._most_queued:
                news = request.settle(refusal(request, self._queued, self._limits)) or ()
            else:
                request.state = QUEUED
                if request.deadline != inf:
                    request.admitted = self.kernel.now()
                self._queue.append(request)
                self._queued += 1
                # Else somebody comes for those before it, or no slot is free; or for this one.
                if self._queued == 1 and not (self._is_waking and request.method in self._for_workers):
                    if inputs is not None:  # whoever brought the last of them may be the one who comes
                        news = (Wake(self),)
                    else:
                        effects = self._pump()
        if effects is not NOTHING:
            self.act(effects)
        return news

    def help(self, request: Request, waiting: Request | None) -> None:
        """Run `request`, and what has to come before it, on the calling thread, which waits for it; see ``helping``."""
        is_pinned = request.state is QUEUED and not self._limits.inline
        # What a body raises would have for its context the exception that is being handled.
        if is_pinned or is_stack_full() or sys.exception() is not None:
            return
        while request.state is QUEUED:
            wakes = self.run_here(request, waiting)
            if wakes is None:
                return
            deliver(wakes)
        if request.state is not ANSWERED:
            help_along(request, waiting)

    def run_here(
        self, request: Request, waiting: Request | None, *, is_due: bool = False
    ) -> Sequence[Wake] | None:
        """Run `request`, or an older one of the same caller's, on the calling thread; None where it cannot be.

        Blocks as long as the body does.

        Args:
            request: Is waited for.
            waiting: The request whose body the calling thread runs.
            is_due: A ``Wake`` of this router is held back: where this thread comes instead, the rest of it is done.

        Returns:
            The wake-ups that are due now.
        """
        effects = NOTHING
        with self.lock:
            if request.state is not QUEUED:
                return None
            head = self._queue[0]
            if head is not request:
                head = self._head()
                if head is not request and (head.caller != get_ident() or not self._is_one_at_a_time()):
                    return None
            seat = self._seats.least_loaded()
            if (
                seat is None
                or head.deadline != inf
                or head.channel is not None
                or not self._limits.inline
                or (waiting is not None and waiting.state is not RUNNING)
                or seat.begins_async[head.method]
            ):
                return None
            self._claim(seat)
            if is_due and self._queued:
                effects = self._pump()
        if effects is not NOTHING:
            self.act(effects)
        del request
        try:
            return run_claimed(seat, head, waiting, self.end)
        except BaseException as error:
            if head in seat.running:  # a signal handler of the user's raised in our code
                self.kernel.errands.post(partial(self._lost, seat, head, type(error).__name__))
            raise

    def visit(self, request: Request) -> bool:
        """Run what is ready on the loop that the body of `request` runs on, on the calling thread; False where it cannot be.

        Blocks as long as the code that is ready does.
        """
        host = request.host
        if host is None or request.deadline != inf or not self._limits.inline:
            return False
        return host.visit(lambda: request.state is ANSWERED)

    def leave(self, request: Request) -> None:
        """Strike `request`, answered before it was started, off the books; the lock is held."""
        if request.state is QUEUED:
            self._queued -= 1
            dead = len(self._queue) - self._queued
            if not self._queued:
                self._queue.clear()
            elif dead > 64 and dead * 2 > len(self._queue):
                self._queue = deque(
                    queued for queued in self._queue if queued.state is QUEUED and queued is not request
                )
        else:
            self._waiting.pop(request, None)

    # ---- decisions; the lock is held in all of these

    def _head(self) -> Request:
        """Return the oldest live request, of which there must be one; dead ones before it are dropped."""
        queue = self._queue
        while (head := queue[0]).state is not QUEUED:
            queue.popleft()
        return head

    def _claim(self, seat: Seat) -> Request:
        """Take the head of the queue and a slot of `seat`."""
        request = self._queue[0]
        self._seats.take(seat, request)  # first: where the stack has no room for it, nothing has happened
        self._queue.popleft()
        self._queued -= 1
        request.state = RUNNING
        if request.deadline != inf:
            request.started = self.kernel.now()
        return request

    def _is_one_at_a_time(self) -> bool:
        """Whether a request has to wait for the end of those before it, and not for their beginning only."""
        return len(self._seats) == 1 and all(seat.limit == 1 for seat in self._seats)

    def _pump(self) -> Effects:
        """See to it that somebody comes for the head, if a slot is free."""
        posted: list[tuple[Seat, Request]] = []
        while self._queued:
            seat = self._seats.least_loaded()
            if seat is None:
                break
            head = self._queue[0]
            if head.state is not QUEUED:
                head = self._head()
            if seat.begins_async[head.method]:
                posted.append((seat, self._claim(seat)))
                continue
            self._for_workers.add(head.method)
            if self._is_waking:
                break
            if not seat.idle and seat.workers >= seat.limit:
                break  # a slot is free, so one of its workers is on its way to rest, and looks before it does
            self._is_waking = True
            if seat.idle:
                call = seat.idle.pop()
                return call._replace(post=tuple(posted)) if posted else call
            seat.workers += 1
            return Effects(tuple(posted), seat)
        return Effects(tuple(posted)) if posted else NOTHING

    def _take_next(self, seat: Seat) -> Request | None:
        """Claim the head for a worker of `seat`, if it is one for a worker and `seat` has a slot."""
        if not seat.is_open or len(seat.running) >= seat.limit or not self._queued:
            return None
        head = self._queue[0]
        if head.state is not QUEUED:
            head = self._head()
        if seat.begins_async[head.method]:
            return None
        return self._claim(seat)

    # ---- a worker's life

    def arrive(self, seat: Seat, *, was_woken: bool = True) -> tuple[Request | None, Effects]:
        """Take what is there; a worker that was woken makes it possible for the next one to be."""
        with self.lock:
            if was_woken:
                self._is_waking = False
            return self._take_next(seat), self._pump() if self._queued else NOTHING

    def conclude(
        self, seat: Seat, request: Request, outcome: Outcome, call: Effects
    ) -> tuple[Request | None, Effects, Sequence[Wake], bool]:
        """Give back the slot, answer, and claim the next request, or rest, in one step; then deliver the news.

        Where there is no next request, the wake-ups that follow from the news come back, or, where none can follow,
        that the worker rests now, and is to wait for `call`.
        """
        following: Request | None = None
        effects, rests = NOTHING, False
        with self.lock:
            self._seats.give_back(seat, request)
            drained = None if seat.is_open or seat.running else seat.drained
            news = request.end(outcome)
            if self._queued:
                following = self._take_next(seat)
                if self._queued and self._seats.free > 0:
                    effects = self._pump()
            elif seat.is_open and seat.workers <= seat.limit:
                rests = not news or (len(news) == 1 and type(news[0]) is self._kind_of_waiter)
                if rests:
                    seat.idle.append(call)
        wakes: Sequence[Wake] = ()
        if rests and news:
            tell(news[0])
        elif news:
            wakes = deliver(news, Wake if following is None and self._limits.inline else None)
        if drained is not None:
            drained.set()
        return following, effects, wakes, rests

    def depart(self, seat: Seat) -> bool:
        """Let a worker of `seat` do something else; False where the seat is closed: its replica waits for its workers."""
        with self.lock:
            may_go = seat.is_open
            if may_go:
                seat.workers -= 1
            effects = self._pump()
        self.act(effects)
        return may_go

    def rejoin(self, seat: Seat) -> bool:
        """Let that worker be one again; False where it is not wanted any more."""
        with self.lock:
            is_wanted = seat.is_open and seat.workers < seat.limit
            if is_wanted:
                seat.workers += 1
        return is_wanted

    def rest(self, seat: Seat, call: Effects) -> bool:
        """Wait to be woken by `call`: True; False when the seat is closed and its worker goes home."""
        with self.lock:
            if not seat.is_open or seat.workers > seat.limit:  # it may have lost slots
                seat.workers -= 1
                return False
            if self._queued and seat.has_room and not self._is_waking:
                self._is_waking = True  # it came between the last look and this one: wake nobody, go yourself
                return True
            seat.idle.append(call)
        call.rest()
        return True

    def wake(self) -> None:
        """See to it that somebody comes for the head, if a slot is free."""
        with self.lock:
            effects = self._pump()
        self.act(effects)

    def claim_instead(self) -> tuple[Seat, Request] | None:
        """Claim the head in the place of a worker that was to be woken; None where that is what has been done."""
        claimed: tuple[Seat, Request] | None = None
        with self.lock:
            seat = self._seats.least_loaded() if self._queued and self._limits.inline else None
            if seat is not None:
                head = self._head()
                if head.channel is None and not seat.begins_async[head.method]:
                    claimed = seat, self._claim(seat)
            effects = self._pump()
        self.act(effects)
        return claimed

    def end(
        self, seat: Seat, request: Request, outcome: Outcome, kept: type[Wake] | None = None
    ) -> Sequence[Wake]:
        """Give the slot of `seat` back and answer `request`, which no worker of its own has run.

        A loop did, a thread that waited, or another's worker. The wake-ups that follow come back if they are to be `kept`.
        """
        with self.lock:
            if request not in seat.running:  # it was ended twice, as something struck in between
                return ()
            self._seats.give_back(seat, request)
            drained = None if seat.is_open or seat.running else seat.drained
            news = request.end(outcome)
            effects = self._pump() if self._queued else NOTHING
        if effects is not NOTHING:
            self.act(effects)
        wakes = deliver(news, kept) if news else ()
        if drained is not None:
            drained.set()
        return wakes

    def _lost(self, seat: Seat, request: Request, reason: str) -> None:
        """Be told that a thread that ran a request could perhaps not see to its end."""
        self.end(seat, request, given_up(self.died, request, f"the thread that ran it got {reason}"))

    # ---- effects; no lock is held

    def act(self, effects: Effects) -> None:
        """Do what was decided."""
        for seat, request in effects.post:
            seat.replica.post(request)
        if effects.worker is not None:
            effects.worker.set()
        elif effects.seat is not None:
            self._hire(effects.seat)

    def _hire(self, seat: Seat) -> None:
        """Start a worker of `seat`; where the system has no thread to give, the queue must not wait for it."""
        try:
            seat.replica.add_worker(lambda: work(self, seat))
        except RuntimeError as error:
            self._not_hired(seat, error)

    def _not_hired(self, seat: Seat, error: RuntimeError) -> None:
        news: list[Subscriber] = []
        effects = NOTHING
        with self.lock:
            self._is_waking = False
            seat.workers -= 1
            rested = next((other for other in self._seats if other.idle and other.has_room), None)
            if rested is not None:  # of another replica, with more to do than the one that was to get it
                self._is_waking = True
                effects = rested.idle.pop()
            elif not any(other.workers for other in self._seats):
                for request in tuple(self._queue):
                    if request.state is QUEUED:
                        refusal = self._unavailable(request, f"no thread could be started: {error}")
                        news.extend(request.settle(refusal) or ())
        self.act(effects)
        deliver(news)

    # ---- what is answered instead of the body

    def _unavailable(self, request: Request, reason: str | None = None) -> Error:
        return unavailable(self.unavailable, request, reason or self._closed_because)
