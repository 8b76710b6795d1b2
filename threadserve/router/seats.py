"""The slots of a deployment: who has how many of them taken. Pure bookkeeping, under the router's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threadserve.call.request import Request
    from threadserve.concurrency.kernel import WaiterLike

__all__ = ["Seat", "Seats"]


class Seat:
    """One replica as its router sees it.

    Attributes:
        replica: Whom the requests are given to.
        limit: Its slots: how many calls may run in it at once.
        ongoing: How many of them are taken.
        idle: The waiters of its workers that have nothing to do; the last one to come is the first to be woken.
        workers: How many worker threads it has, those on their way included.
        is_open: Whether it gets new requests.
        running: The requests that have those slots.
        drained: Told when the last request of a closed seat has returned.
    """

    __slots__ = ("drained", "idle", "is_open", "limit", "ongoing", "replica", "running", "workers")

    def __init__(self, replica: Any, limit: int) -> None:
        self.replica = replica
        self.limit = limit
        self.ongoing = 0
        self.idle: list[WaiterLike] = []
        self.workers = 0
        self.is_open = False
        self.running: dict[Request, None] = {}
        self.drained: WaiterLike | None = None

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Seat {self.replica!r} {state}, {self.ongoing} of {self.limit} slots taken>"

    @property
    def has_room(self) -> bool:
        """Whether it may take one more request."""
        return self.is_open and self.ongoing < self.limit


class Seats:
    """The open seats, ordered by load. Every step takes constant time.

    Seats of one load stand in a stack, so the one that became idle last gets the next request: its thread is warm.
    ``_least`` is the least load of any seat; it moves by one at a time because loads do.
    """

    def __init__(self) -> None:
        self._by_load: list[dict[Seat, None]] = [{}]
        self._least = 0
        self._count = 0
        self.free = 0
        """Slots that are not taken, of all open seats together."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Seat]:
        for seats in self._by_load:
            yield from seats

    def add(self, seat: Seat) -> None:
        """Open `seat` for requests."""
        seat.is_open = True
        self._count += 1
        self.free += max(0, seat.limit - seat.ongoing)
        self._place(seat)
        self._least = min(self._least, seat.ongoing) if self._count > 1 else seat.ongoing

    def remove(self, seat: Seat) -> None:
        """Close `seat`; the requests in it go on."""
        seat.is_open = False
        self._count -= 1
        self.free -= max(0, seat.limit - seat.ongoing)
        del self._by_load[seat.ongoing][seat]
        self._raise_least()

    def least_loaded(self) -> Seat | None:
        """Return the seat that should get the next request; None when all slots are taken."""
        if self.free <= 0:
            return None
        for load in range(self._least, len(self._by_load)):
            for seat in reversed(self._by_load[load]):
                if seat.has_room:
                    return seat
        return None

    def resize(self, seat: Seat, by: int) -> None:
        """Give `seat` so many slots more, or fewer; what runs in it goes on, be it more than it now has slots."""
        free = max(0, seat.limit - seat.ongoing)
        seat.limit += by
        if seat.is_open:
            self.free += max(0, seat.limit - seat.ongoing) - free

    def take(self, seat: Seat, request: Request) -> None:
        """Take a slot of `seat`, which has one."""
        seat.running[request] = None
        self.free -= 1
        del self._by_load[seat.ongoing][seat]
        seat.ongoing += 1
        self._place(seat)
        self._raise_least()

    def give_back(self, seat: Seat, request: Request) -> None:
        """Give a slot of `seat` back; the seat may have been closed meanwhile."""
        del seat.running[request]
        if not seat.is_open:
            seat.ongoing -= 1
            return
        if seat.ongoing <= seat.limit:  # else it runs more than it has slots: ``resize``
            self.free += 1
        del self._by_load[seat.ongoing][seat]
        seat.ongoing -= 1
        self._place(seat)
        self._least = min(self._least, seat.ongoing)

    def _place(self, seat: Seat) -> None:
        while len(self._by_load) <= seat.ongoing:
            self._by_load.append({})
        self._by_load[seat.ongoing][seat] = None

    def _raise_least(self) -> None:
        if not self._count:
            self._least = 0
            return
        while not self._by_load[self._least]:
            self._least += 1
