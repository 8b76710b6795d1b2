"""The slots of a deployment: who has how many of them taken, and whom to wake. Pure bookkeeping, under the router's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threadserve.call.request import Request
    from threadserve.concurrency.kernel import WaiterLike

__all__ = ["NOTHING", "Effects", "Seat", "Seats"]


class Effects(NamedTuple):
    """What a router has decided under its lock and is to do outside."""

    post: tuple[tuple[Seat, Request], ...] = ()
    """Begin these on the loops of their replicas."""
    seat: Seat | None = None
    """Have a worker of this one come."""
    worker: WaiterLike | None = None
    """It rests, and this ends its rest; None where it has to be hired."""

    def rest(self) -> None:
        """Be that worker, and wait for this to be done. Blocks."""
        assert self.worker is not None
        self.worker.rest()


NOTHING = Effects()


class _Kinds(dict[str, bool]):
    """Method -> whether it begins on the replica's loop; asked once."""

    __slots__ = ("_replica",)

    def __init__(self, replica: Any) -> None:
        super().__init__()
        self._replica = replica

    def __missing__(self, method: str) -> bool:
        kind: bool = self._replica.begins_async(method)
        self[method] = kind
        return kind


class Seat:
    """One replica as its router sees it.

    Attributes:
        replica: Whom the requests are given to.
        begins_async: Method -> whether calling it is for the replica's loop, and not for a thread.
        limit: Its slots: how many calls may run in it at once.
        idle: What wakes those of its workers that have nothing to do; the last one to come is the first to be woken.
        workers: How many worker threads it has: those on their way included, those that run others' stages not.
        is_open: Whether it gets new requests.
        running: The requests that have those slots; as many as are taken.
        drained: Told when the last request of a closed seat has returned.
        is_hurried: Whether nobody is to wait for that any more.
    """

    __slots__ = (
        "begins_async",
        "drained",
        "idle",
        "is_hurried",
        "is_open",
        "limit",
        "replica",
        "running",
        "workers",
    )

    def __init__(self, replica: Any, limit: int) -> None:
        self.replica = replica
        self.begins_async = _Kinds(replica)
        self.limit = limit
        self.idle: list[Effects] = []
        self.workers = 0
        self.is_open = False
        self.running: dict[Request, None] = {}
        self.drained: WaiterLike | None = None
        self.is_hurried = False

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Seat {self.replica!r} {state}, {len(self.running)} of {self.limit} slots taken>"

    @property
    def has_room(self) -> bool:
        """Whether it may take one more request."""
        return self.is_open and len(self.running) < self.limit


class Seats:
    """The open seats, ordered by load. Every step takes constant time, but for opening and closing.

    Seats of one load stand in a stack, so the one that became idle last gets the next request: its thread is warm.
    ``_least`` is the least load of any seat; it moves by one at a time because loads do. A seat that is alone, as most
    are, needs no order.
    """

    def __init__(self) -> None:
        self._open: dict[Seat, None] = {}
        self._alone: Seat | None = None
        self._by_load: list[dict[Seat, None]] = []
        self._least = 0
        self.free = 0
        """Slots that are not taken, of all open seats together."""

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Seat]:
        return iter(self._open)

    def add(self, seat: Seat) -> None:
        """Open `seat` for requests."""
        seat.is_open = True
        self._open[seat] = None
        self._arrange()

    def remove(self, seat: Seat) -> None:
        """Close `seat`; the requests in it go on."""
        seat.is_open = False
        del self._open[seat]
        self._arrange()

    def least_loaded(self) -> Seat | None:
        """Return the seat that should get the next request; None when all slots are taken."""
        if self.free <= 0:
            return None
        if self._alone is not None:
            return self._alone
        for load in range(self._least, len(self._by_load)):
            for seat in reversed(self._by_load[load]):
                if seat.has_room:
                    return seat
        return None

    def resize(self, seat: Seat, by: int) -> None:
        """Give `seat` so many slots more, or fewer; what runs in it goes on, be it more than it now has slots."""
        free = max(0, seat.limit - len(seat.running))
        seat.limit += by
        if seat.is_open:
            self.free += max(0, seat.limit - len(seat.running)) - free

    def take(self, seat: Seat, request: Request) -> None:
        """Take a slot of `seat`, which has one."""
        seat.running[request] = None
        self.free -= 1
        if self._alone is None:
            self._move(seat, len(seat.running) - 1)

    def give_back(self, seat: Seat, request: Request) -> None:
        """Give a slot of `seat` back; the seat may have been closed meanwhile."""
        running = seat.running
        del running[request]
        if not seat.is_open:
            return
        if len(running) < seat.limit:  # else it runs more than it has slots: ``resize``
            self.free += 1
        if self._alone is None:
            self._move(seat, len(running) + 1)

    def _arrange(self) -> None:
        """Put the seats that are open now in order."""
        seats = list(self._open)
        self._alone = seats[0] if len(seats) == 1 else None
        self._by_load = []
        self._least = self.free = 0
        if not seats:
            return
        self.free = sum([max(0, seat.limit - len(seat.running)) for seat in seats])
        self._least = min([len(seat.running) for seat in seats])
        self._by_load = [{} for _ in range(max([len(seat.running) for seat in seats]) + 1)]
        for seat in seats:
            self._by_load[len(seat.running)][seat] = None

    def _move(self, seat: Seat, load: int) -> None:
        """Put `seat`, which had `load`, where it belongs now."""
        by_load, now = self._by_load, len(seat.running)
        del by_load[load][seat]
        if now == len(by_load):
            by_load.append({})
        by_load[now][seat] = None
        if now < self._least:
            self._least = now
        else:
            while not by_load[self._least]:
                self._least += 1
