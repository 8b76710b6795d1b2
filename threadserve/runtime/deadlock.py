"""Finds waits that can never end and ends them with an explanation.

A body that waits for requests, without a timeout, has the watch told. A tenth of a second later, and again from time to time
(``call/lookout.py``), the watch takes one picture of all routers, holding all their locks (in the order of their names;
nobody else ever holds two), and asks ``call/waits.py`` who holds whom. Being stuck is stable, so one picture is proof. Where
there is a knot, its youngest wait gets DeadlockError: that may free all others, and those who only wait for the knot,
however many, have done nothing wrong. Then the watch looks again, until nobody is stuck.

What a body in an interpreter of its own waits for is told from there (``replica/waiting.py``), and is part of the picture.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from threadserve.call.answer import inputs_of
from threadserve.call.lookout import Lookout
from threadserve.call.request import ANSWERED, CURRENT, Wait
from threadserve.call.waits import Picture, knot
from threadserve.concurrency.loops import may_time_out, stack_of_task
from threadserve.concurrency.threads import stack_of_thread
from threadserve.errors import DeadlockError
from threadserve.router.helping import run_claimed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from threadserve.call.request import Request
    from threadserve.concurrency.kernel import Kernel
    from threadserve.router.router import Holdings, Router

    class Watched(Protocol):
        """Replicas behind one router, whose requests may wait for others."""

        @property
        def router(self) -> Router: ...
        @property
        def is_growing(self) -> bool:
            """Whether replicas are starting that will take requests. Takes no lock."""
            ...


__all__ = ["DeadlockWatch"]

_SHOWN = 20


class DeadlockWatch:
    """Looks after the waits in the replicas of one runtime.

    Args:
        kernel: Whose clock and timers to use.
        pools: Returns the pools of all deployments that have or may get replicas.
        is_being_replaced: Whether the replicas behind a router are about to be; asked with the locks of all routers held.
    """

    def __init__(
        self,
        kernel: Kernel,
        pools: Callable[[], Sequence[Watched]],
        is_being_replaced: Callable[[Router], bool],
    ) -> None:
        self._pools = pools
        self._is_being_replaced = is_being_replaced
        self._lookout = Lookout(kernel, self._waits, self._look)

    def notice(self) -> None:
        """Be told that a body has begun to wait. Never blocks, never raises."""
        self._lookout.notice()

    def end(self) -> None:
        """Look no more: the runtime is over, and so are all bodies that it has had."""
        self._pools, self._is_being_replaced = tuple, _never
        self._lookout.end()

    def _look(self) -> None:
        while self._resolve():
            pass

    def _waits(self) -> list[Wait]:
        found: list[Wait] = []
        for router in {pool.router: None for pool in self._pools()}:
            with router.lock:
                found += [
                    wait
                    for request in router.holds().running
                    if (wait := request.wait) is not None
                    and (
                        wait.place is None or not (wait.error or wait.is_ended())
                    )  # who told of it is silent then
                ]
        return found

    def _resolve(self) -> bool:
        """End a wait that can never end; False when there is none."""
        group, waits = self._find()
        victims = [request for request in group if request in waits and not waits[request].is_help]
        if not victims:
            return False
        victim = max(victims, key=lambda request: waits[request].since)
        waits[victim].fail(_explain(victim, waits, group))
        return True

    def _find(self) -> tuple[list[Request], dict[Request, Wait]]:
        """Return a knot, empty where there is none, and the waits of all bodies."""
        pools = self._pools()
        routers = sorted({pool.router for pool in pools}, key=lambda router: router.name)
        with ExitStack() as locks:
            for router in routers:
                locks.enter_context(router.lock)
            holdings = {router.name: router.holds() for router in routers}
            running = [request for held in holdings.values() for request in held.running]
            waits = {request: wait for request in running if (wait := _wait_of(request)) is not None}
            changing = {router.name for router in routers if self._is_being_replaced(router)}
            changing |= {pool.router.name for pool in pools if pool.is_growing}
        # The picture is taken. What follows may call code of the user's, and what it finds to be stuck stays so.
        waits = {request: wait for request, wait in waits.items() if _is_open_ended(request, wait)}
        shut = {name for name, held in holdings.items() if not held.has_free_slot} - changing
        return knot(_draw(holdings, waits, shut)), waits


def _wait_of(request: Request) -> Wait | None:
    """Return the wait that a request's body is in, unless it has ended; the locks are held.

    A body whose thread runs another one waits for that, and only the other one's wait can be ended.
    """
    wait, helped = request.wait, request.helped
    if wait is None and helped is not None and helped.state is not ANSWERED and request.state is not ANSWERED:
        return Wait((helped,), -math.inf)
    return (
        None
        if wait is None or wait.error is not None or request.state is ANSWERED or wait.is_ended()
        else wait
    )


def _is_open_ended(request: Request, wait: Wait) -> bool:
    """Whether no timer is about to end `wait`. It is looked at again last: the timer may have rung since the picture."""
    if wait.is_help:
        return request.helped in wait.needs
    if wait.place is not None:  # whoever told of it has looked
        return request.wait is wait
    may_end = may_time_out(request.runner, lambda context: context.get(CURRENT) is request)
    return not may_end and request.wait is wait


def _draw(holdings: dict[str, Holdings], waits: dict[Request, Wait], shut: set[str]) -> Picture[Request]:
    """Draw who needs whom. Only a queue before slots that are all held by waits is drawn: in any other all can move."""
    picture: Picture[Request] = Picture()
    for name, held in holdings.items():
        picture.needs.update((request, inputs) for request in held.waiting if (inputs := inputs_of(request)))
        picture.needs.update((request, waits[request].needs) for request in held.running if request in waits)
        if name in shut and all(request in waits for request in held.running):
            picture.holders[name] = held.running
            picture.queued.update((request, name) for request in held.queued if request.deadline == math.inf)
    return picture


def _explain(victim: Request, waits: dict[Request, Wait], group: Iterable[Request]) -> DeadlockError:
    """Tell the story of a deadlock, the one who gets it first."""
    others = sorted(
        (request for request in group if request is not victim),
        key=lambda request: waits[request].since if request in waits else math.inf,
    )
    lines = [_describe(request, waits.get(request)) for request in (victim, *others[: _SHOWN - 1])]
    if len(others) >= _SHOWN:
        lines.append(f"... and {len(others) - _SHOWN + 1} more")
    story = "\n  ".join(lines)
    return DeadlockError(
        f"{victim.router.name}.{victim.method} waits for what can never come: every request that could end the wait waits "
        f"for it in turn\n  {story}\n"
        "Give the deployment more replicas or a higher max_ongoing_requests, await instead of blocking, or set a timeout",
        deployment=victim.router.name,
        request_id=victim.request_id,
    )


def _describe(request: Request, wait: Wait | None) -> str:
    name = f"{request.router.name}.{request.method} (request {request.request_id})"
    if wait is None:
        return f"{name} is {request.state.value}"
    needs = ", ".join(f"{need.router.name}.{need.method}" for need in wait.needs[:4])
    where = _place(request) if wait.place is None else wait.place
    return f"{name} holds a slot and waits for {needs}{f' at {where}' if where else ''}"


def _place(request: Request) -> str:
    """Return the ``file:line`` at which the body of `request` waits; an empty string if unknown."""
    runner = request.runner
    if not isinstance(runner, int):
        return stack_of_task(runner)
    above, helped = 0, request.helped
    while helped is not None:
        above, helped = above + 1, helped.helped
    return stack_of_thread(runner, run_claimed.__code__, above)


def _never(_: Router) -> bool:
    """Stand in for a runtime that is over."""
    return False
