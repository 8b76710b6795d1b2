"""The router of an actor that runs one call at a time: keeps the calls of each caller in order.

A deployment's router lets a call that has its arguments overtake one that still waits for them. An actor has state, and
``actor.set.remote(ref)`` before ``actor.get.remote()`` means that `get` sees what was set. So each caller (a body, or
all of plain code) has a line at each actor: its calls are admitted in the order in which they were made. Callers do not
wait for each other: a call may depend on another caller's later call to the same actor.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from threadserve.call.request import ANSWERED, Request, current_request
from threadserve.concurrency.waiter import deliver
from threadserve.router.router import Router

if TYPE_CHECKING:
    from collections.abc import Sequence

    from threadserve.concurrency.kernel import Kernel
    from threadserve.concurrency.waiter import Subscriber

__all__ = ["OrderedRouter"]


class OrderedRouter(Router):
    """Admits the calls of one caller in the order in which they were made."""

    def __init__(self, kernel: Kernel, app: str, deployment: str) -> None:
        super().__init__(kernel, app, deployment)
        self._order = kernel.lock()
        self._lines: dict[Request | None, _Line] = {}  # guarded by _order, with all that is in them
        self._places: dict[Request, _Line] = {}  # guarded by _order; which line a call stands in

    def assign(self, request: Request) -> None:
        """Take over `request`, behind what the same caller has called before. Never blocks, never raises."""
        caller = current_request()
        with self._order:
            line = self._lines.get(caller)
            if line is None:
                line = self._lines[caller] = _Line(self, caller)
            line.calls.append(request)
            self._places[request] = line
        super().assign(request)
        if request in self._places and not request.subscribe(line):  # it waits, or was answered at once
            deliver(line.tell())

    def admit(self, request: Request, inputs: Subscriber | None = None) -> Sequence[Subscriber]:
        """Admit `request`, which has its arguments, if all before it in its line have been."""
        with self._order:
            line = self._places.get(request)
            if line is not None:
                line.ready[request] = inputs
        return super().admit(request, inputs) if line is None else line.tell()

    def admit_next(self, line: _Line) -> Sequence[Subscriber] | None:
        """Admit the head of `line`; None when it has to wait, or there is none."""
        with self._order:
            head = line.calls[0] if line.calls else None
            if (
                head is None and self._lines.get(line.caller) is line
            ):  # and not a later one of the same caller
                del self._lines[line.caller]
            if head is None or not (head in line.ready or head.state is ANSWERED):
                line.is_moving = False
                return None
            line.calls.popleft()
            inputs = line.ready.pop(head, None)
            del self._places[head]
        return super().admit(head, inputs)

    def begin_moving(self, line: _Line) -> bool:
        """Whether nobody else moves `line`; then it is for the caller to do so."""
        with self._order:
            if line.is_moving:
                return False
            line.is_moving = True
            return True


class _Line:
    """The calls of one caller that have not been admitted. Told when one of them has been answered.

    One thread at a time moves it: between two steps the next call is looked at with the lock held, so one that got
    ready meanwhile is seen, and none is admitted before another one that left the line earlier.
    """

    __slots__ = ("_router", "caller", "calls", "is_moving", "ready")

    def __init__(self, router: OrderedRouter, caller: Request | None) -> None:
        self._router = router
        self.caller = caller
        self.calls: deque[Request] = deque()
        self.ready: dict[Request, Subscriber | None] = {}  # with what is not to be told of its answer then
        self.is_moving = False

    def tell(self) -> Sequence[Subscriber]:
        news: list[Subscriber] = []
        if self._router.begin_moving(self):
            while (more := self._router.admit_next(self)) is not None:
                news.extend(more)
        return news
