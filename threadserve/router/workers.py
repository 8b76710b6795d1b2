"""A worker's life: it comes when it is woken, runs what there is, goes on with what that has made ready, and rests.

When a request ends on a worker, calls that waited for its value are admitted by that thread, and each wants somebody to be
woken for it. If the worker would now rest, it holds these wake-ups back, claims the head of one of those queues as
a woken worker would, in the same order and within the same limits, and lets the others be woken before it runs
anything. So a chain of idle stages that nobody waits for runs through on one thread: a thread switch less per hop.

Meanwhile the worker is none of its own deployment's: that may hire another one, and its replica can stop without it. When
the worker comes back to as many as there are slots, it goes home.

Where an answer can have no such consequence, since nobody waits for it, or one thread, the worker is at rest before it
tells, as of the same critical section: whoever makes the next call finds it there, and it blocks right after.

Which not. A deployment with ``inline=False`` keeps its threads, and its code to them. The producer of a stream may have to
wait for its reader, and a coroutine belongs to its loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from threadserve.concurrency.waiter import deliver
from threadserve.router.seats import NOTHING, Effects

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from threadserve.call.request import Request
    from threadserve.concurrency.kernel import Kernel
    from threadserve.concurrency.outcome import Outcome
    from threadserve.concurrency.waiter import Subscriber
    from threadserve.router.seats import Seat

__all__ = ["Desk", "Wake", "work"]


class Desk(Protocol):
    """What a router is to workers, its own and others'."""

    kernel: Kernel

    def arrive(self, seat: Seat, *, was_woken: bool = True) -> tuple[Request | None, Effects]:
        """Take the next request for a worker of `seat`, if there is one for it."""
        ...

    def conclude(
        self, seat: Seat, request: Request, outcome: Outcome, call: Effects
    ) -> tuple[Request | None, Effects, Sequence[Wake], bool]:
        """Answer `request`, and take the next one; or rest, or get the wake-ups that follow. See the router."""
        ...

    def rest(self, seat: Seat, call: Effects) -> bool:
        """Look once more, and wait to be woken by `call`: True; False for a worker that is to go home. Blocks."""
        ...

    def depart(self, seat: Seat) -> bool:
        """Let a worker of `seat` do something else; False where it must not."""
        ...

    def rejoin(self, seat: Seat) -> bool:
        """Let that worker be one again; False where it is not wanted any more."""
        ...

    def act(self, effects: Effects) -> None:
        """Do what was decided. No lock is held."""

    def wake(self) -> None:
        """See to it that somebody comes for the head, if a slot is free."""

    def claim_instead(self) -> tuple[Seat, Request] | None:
        """Claim the head in the place of a worker that was to be woken; None where that is what has been done."""
        ...

    def end(
        self, seat: Seat, request: Request, outcome: Outcome, kept: type[Wake] | None = None
    ) -> Sequence[Wake]:
        """Give the slot of `seat` back, answer `request`, and return the wake-ups that follow, if they are to be `kept`."""
        ...


class Wake:
    """A wake-up that is due, for a call that has just been admitted because of an answer.

    Whoever holds it is somebody on the way: it must be told, or come itself, before anything of the user's runs.
    """

    __slots__ = ("router",)

    def __init__(self, router: Desk) -> None:
        self.router = router

    def tell(self) -> Iterable[Subscriber]:
        """Have a worker come."""
        self.router.wake()
        return ()


def work(router: Desk, seat: Seat) -> None:
    """Be a worker of `seat` until there is no need for one. Blocks."""
    call = Effects((), seat, router.kernel.waiter())  # the same one each time: who rests is woken once
    request, effects = router.arrive(seat)
    wakes: Sequence[Wake] = ()
    while True:
        if effects is not NOTHING:
            router.act(effects)
        if request is not None:
            outcome = seat.replica.run(request)
            if outcome is None:  # it goes on on the loop and keeps its slot
                request, effects = router.arrive(seat, was_woken=False)
            else:
                request, effects, wakes, rests = router.conclude(seat, request, outcome, call)
                outcome = None  # a worker holds on to nothing while it rests
                if rests:
                    call.rest()
                    request, effects = router.arrive(seat)
            continue
        effects = NOTHING  # as above
        if wakes:
            may_stay = _follow(router, seat, wakes)
            wakes = ()
            if not may_stay:
                return
        if not router.rest(seat, call):  # which looks before it waits
            return
        request, effects = router.arrive(seat)


def _follow(router: Desk, seat: Seat, wakes: Sequence[Wake]) -> bool:
    """Be the worker of those who are to be woken, for a while; False when there is no need for one of `seat` any more."""
    seat.replica.leave()  # first: who stops the replica must not wait for this thread
    if not router.depart(seat):
        seat.replica.come_back()
        deliver(wakes)
        return True
    _run_stages(wakes)
    seat.replica.come_back()
    return router.rejoin(seat)


def _run_stages(wakes: Sequence[Wake]) -> None:
    """Run what `wakes` are about, one of them, and what follows from that."""
    while wakes:
        stage = _claim_one(wakes)
        if stage is None:
            return
        router, seat, request = stage
        outcome = seat.replica.run(request)
        wakes = () if outcome is None else router.end(seat, request, outcome, Wake)
        del outcome, request, stage


def _claim_one(wakes: Sequence[Wake]) -> tuple[Desk, Seat, Request] | None:
    """Claim for one of `wakes`, and let all others be told."""
    stage: tuple[Desk, Seat, Request] | None = None
    for wake in wakes:
        if stage is not None:
            wake.tell()
        elif (claimed := wake.router.claim_instead()) is not None:
            stage = (wake.router, *claimed)
    return stage
