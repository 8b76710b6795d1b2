"""A worker that has nothing to do goes on with the call that its last answer has made ready: one thread switch less.

When a request ends on a worker, calls that waited for its value are admitted by that thread, and each wants somebody to be
woken for it. If the worker would now rest, it holds these wake-ups back, claims the head of one of those queues as
a woken worker would, in the same order and within the same limits, and lets the others be woken before it runs
anything. So a chain of idle stages that nobody waits for runs through on one thread.

Meanwhile the worker is none of its own deployment's: that may hire another one, and its replica can stop without it. When
the worker comes back to as many as there are slots, it goes home.

Which not. A deployment with ``inline=False`` keeps its threads, and its code to them. The producer of a stream may have to
wait for its reader, and a coroutine belongs to its loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from threadserve.call.request import Request
    from threadserve.concurrency.kernel import WaiterLike
    from threadserve.concurrency.outcome import Outcome
    from threadserve.concurrency.waiter import Subscriber
    from threadserve.router.seats import Seat

__all__ = ["NOTHING", "Effects", "Stages", "Wake", "run_stages"]


class Effects(NamedTuple):
    """What a router has decided under its lock and is to do outside."""

    post: tuple[tuple[Seat, Request], ...] = ()
    """Begin these on the loops of their replicas."""
    seat: Seat | None = None
    """Have a worker of this one come."""
    worker: WaiterLike | None = None
    """It rests, and this ends its rest; None where it has to be hired."""


NOTHING = Effects()


class Stages(Protocol):
    """What a router lets a worker of another one do."""

    def act(self, effects: Effects) -> None:
        """Do what was decided. No lock is held."""

    def claim_instead(self, effects: Effects) -> tuple[Seat, Request] | None:
        """Claim the head in the place of the worker that was to come; None where that one has been made to come."""
        ...

    def end(self, seat: Seat, request: Request, outcome: Outcome) -> Sequence[Wake]:
        """Give the slot of `seat` back, answer `request`, and return the wake-ups that follow from it."""
        ...


class Wake:
    """A wake-up that is due, for a call that has just been admitted because of an answer."""

    __slots__ = ("effects", "router")

    def __init__(self, router: Stages, effects: Effects) -> None:
        self.router = router
        self.effects = effects

    def tell(self) -> Iterable[Subscriber]:
        """Have the worker come."""
        self.router.act(self.effects)
        return ()


def run_stages(wakes: Sequence[Wake]) -> None:
    """Run on the calling thread what `wakes` are about, one of them, and what follows from that. Blocks as bodies do."""
    while wakes:
        stage = _claim_one(wakes)
        if stage is None:
            return
        router, seat, request = stage
        outcome = seat.replica.run(request)
        wakes = () if outcome is None else router.end(seat, request, outcome)
        del outcome, request, stage


def _claim_one(wakes: Sequence[Wake]) -> tuple[Stages, Seat, Request] | None:
    """Claim for one of `wakes`, and let all others be told."""
    stage: tuple[Stages, Seat, Request] | None = None
    for wake in wakes:
        if stage is not None:
            wake.tell()
        elif (claimed := wake.router.claim_instead(wake.effects)) is not None:
            stage = (wake.router, *claimed)
    return stage
