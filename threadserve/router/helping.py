"""A thread that waits for a request may as well run it: two thread switches less, and nothing else changes.

Which requests. One that nobody has begun to run and that stands at the head of its queue, where a slot is free: it is
claimed as a worker would claim it, in the same order, within the same limits, and its body runs in the same context.
An older request that the same thread has sent goes first, where the deployment has one slot: it has to end before. Where
there are more, it only has to begin before, and might wait for what the thread does next; so then, and where
somebody else's is at the head, the thread waits, as it would have. A call that waits for one argument is helped by helping
that, and its own: by a path, never by recursion, so that a chain of 10,000 idle stages runs on the waiting thread. Where
it waits for several, each of them may end the wait by failing, while the thread ran another that waits, perhaps, for
what the thread does then; so it waits.

A coroutine belongs to its loop, so a waiting thread becomes the loop for a while, if that sleeps
(``concurrency/lease.py``); where the coroutine awaits calls that nobody has begun, the thread leaves the loop and helps those.

Which not. The producer of a stream may have to wait for its reader, who would be the
same thread; under a timeout or a deadline nobody could end the wait in time; and ``inline=False`` keeps a deployment
on threads of its own.

``remote`` alone starts the work all the same: a worker is woken, arrives, and finds the queue empty. The wake-up for the
next stage of a chain is held back, as the thread is about to run that itself.

Ctrl-C while a body runs here is the waiting thread's: the request is cancelled, and the interrupt goes on in this thread. What
a body can notice is the thread: its name, its locals, the locks that the caller holds, how deep the stack is.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from threadserve.call.request import ANSWERED, CURRENT, QUEUED, RUNNING
from threadserve.concurrency.interrupts import is_interrupt
from threadserve.concurrency.loops import may_time_out
from threadserve.concurrency.outcome import Error
from threadserve.concurrency.threads import get_ident
from threadserve.concurrency.waiter import deliver
from threadserve.router.arguments import lone_input
from threadserve.router.workers import Wake

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from threadserve.call.request import Request
    from threadserve.concurrency.outcome import Outcome
    from threadserve.concurrency.waiter import Subscriber
    from threadserve.router.seats import Seat

__all__ = ["help_along", "run_claimed"]


def help_along(request: Request, waiting: Request | None) -> None:
    """Bring `request`, which cannot be run at once, as far as the calling thread can.

    Walks up to something that can be run, and back down as what it was needed for goes on.
    """
    path = [request]
    awaited: set[Request] = set()
    wakes: Sequence[Subscriber] = ()
    while path:
        at = path[-1]
        state = at.state
        if state is ANSWERED:
            path.pop()
            continue
        if state is QUEUED:
            more = _run_queued(at, waiting, wakes)
            if more is None:
                return
            wakes = more
            continue
        if wakes:
            deliver(wakes)
            wakes = ()
        if state is RUNNING:
            if not at.router.visit(at):
                return
            if at.state is ANSWERED:
                continue
            upstream = _need(at, awaited)
        else:
            upstream = lone_input(at) if at.deadline == inf else None
        if upstream is None:  # it is somebody else's turn to bring it on
            return
        path.append(upstream)
        del upstream
    deliver(wakes)


def _run_queued(
    request: Request, waiting: Request | None, wakes: Sequence[Subscriber]
) -> Sequence[Subscriber] | None:
    """Run `request`, instead of the worker that one of `wakes` is about, and have the others told before.

    Returns:
        The wake-ups that are due then; None where it could not be run, and all have been told.
    """
    router: object = request.router
    own = None
    for wake in wakes:
        if own is None and type(wake) is Wake and wake.router is router:
            own = wake
        else:
            wake.tell()
    more = request.router.run_here(request, waiting, is_due=own is not None)
    if more is None and own is not None:
        own.tell()
    return more


def _need(request: Request, seen: set[Request]) -> Request | None:
    """Return the call whose answer alone lets a suspended body go on, unless it is `seen`: they may stand in a circle.

    Of several any may do so, and while one of them ran here, the body would have gone on with another. The same is true
    of a timer of the body's own.
    """
    wait = request.wait
    if wait is None or len(wait.needs) != 1:
        return None
    (need,) = wait.needs
    if need.state is ANSWERED or need in seen:
        return None
    if may_time_out(request.runner, lambda context: context.get(CURRENT) is request):
        return None
    seen.add(need)
    return need


def run_claimed(
    seat: Seat,
    request: Request,
    waiting: Request | None,
    finish: Callable[[Seat, Request, Outcome, type[Wake]], Sequence[Wake]],
) -> Sequence[Wake]:
    """Run `request`, which has a slot of `seat`, on the calling thread, and see to its answer.

    Args:
        seat: Where it has its slot.
        request: Has been claimed.
        waiting: The request whose body waits meanwhile, if one does.
        finish: Gives the slot back, answers, and returns the wake-ups that are due then.

    Returns:
        Those: mostly the thread may come itself.

    Raises:
        KeyboardInterrupt: It struck while the body ran; or what a signal handler of the user's has raised there.
    """
    if waiting is None:
        request.depth = 1
        outcome = seat.replica.run(request)
    else:
        request.depth = waiting.depth + 1
        is_body = waiting.runner == get_ident()  # and not a thread that the body has started
        if is_body:
            waiting.helped = request
        outcome = seat.replica.run(request)
        if is_body:
            waiting.helped = None
    if outcome is None:  # it goes on on the loop
        return ()
    interrupt = _interrupt(outcome) if type(outcome) is Error else None
    if interrupt is not None:
        request.cancel()  # and with it what the body has called
    wakes = finish(seat, request, outcome, Wake)
    if interrupt is not None:
        deliver(wakes)
        raise interrupt
    return wakes


def _interrupt(outcome: Outcome) -> BaseException | None:
    """Return what a signal handler has raised in a body that this thread ran; only the main thread has any."""
    error = outcome.exception
    return error if error is not None and is_interrupt(error) else None
