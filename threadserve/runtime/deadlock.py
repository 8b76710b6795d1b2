"""Finds waits that can never end and ends them with an explanation.

A body that waits for requests, without a timeout, has the watch told. A tenth of a second later the watch takes one picture
of all routers, holding all their locks (in the order of their names; nobody else ever holds two), and asks ``call/waits.py``
which requests are stuck. Being stuck is stable, so one picture is proof. The youngest wait among them gets DeadlockError;
that may free the others, so the watch looks again until nobody is stuck.

Each wait is looked at once, when it is a tenth of a second old: a deadlock is completed by the last wait that joins it. Nothing
runs when no body waits, and a wait that ends in time has cost two stores.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from threadserve.call.request import ANSWERED
from threadserve.call.response import DeploymentResponse, request_of
from threadserve.call.waits import Picture, stuck
from threadserve.concurrency.loops import may_time_out, stack_of_task
from threadserve.concurrency.threads import stack_of_thread
from threadserve.errors import DeadlockError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from threadserve.call.request import Request, Wait
    from threadserve.concurrency.kernel import Kernel
    from threadserve.router.router import Holdings, Router

__all__ = ["PATIENCE_S", "DeadlockWatch"]

PATIENCE_S = 0.1
"""How long a wait lasts before it is looked at, in seconds."""


class DeadlockWatch:
    """Looks after the waits in the replicas of one runtime.

    Args:
        kernel: Whose clock and timers to use.
        routers: Returns the routers of the deployments that take requests.
        is_changing: Whether an app's replicas are being started or replaced, so that slots may still come.
    """

    def __init__(
        self, kernel: Kernel, routers: Callable[[], Iterable[Router]], is_changing: Callable[[str], bool]
    ) -> None:
        self._kernel = kernel
        self._routers = routers
        self._is_changing = is_changing
        self._lock = kernel.lock()
        self._is_armed = False  # guarded by _lock

    def notice(self) -> None:
        """Be told that a body has begun to wait. Never blocks."""
        with self._lock:
            if self._is_armed:
                return
            self._is_armed = True
        self._kernel.call_at(self._kernel.now() + PATIENCE_S, lambda: self._kernel.errands.post(self._look))

    def _look(self) -> None:
        """Look at the waits that are old enough, and come back for those that are not yet."""
        with self._lock:
            self._is_armed = False  # before looking: a wait that begins now is seen, or arms anew
        is_due, is_early = self._take_stock()
        while is_due:
            victim = self._resolve()
            if victim is None:
                break
        if is_early:
            self.notice()

    def _take_stock(self) -> tuple[bool, bool]:
        """Say whether some wait is due to be looked at, and whether some is too young for it."""
        due = self._kernel.now() - PATIENCE_S * 0.9
        is_due = is_early = False
        for router in self._routers():
            with router.lock:
                waits = [request.wait for request in router.holds().running]
            for wait in waits:
                if wait is None or wait.is_known:
                    continue
                if wait.since <= due:
                    is_due = wait.is_known = True
                else:
                    is_early = True
        return is_due, is_early

    def _resolve(self) -> Request | None:
        """End the youngest of the waits that can never end, if there is one; the request that waits comes back."""
        routers = sorted(self._routers(), key=lambda router: router.name)
        with ExitStack() as locks:
            for router in routers:
                locks.enter_context(router.lock)
            picture, waits = _draw({router.name: router.holds() for router in routers}, self._is_changing)
            held = stuck(picture)
            victims = [request for request in held if request in waits]
            if not victims:
                return None
            victim = max(victims, key=lambda request: waits[request].since)
        waits[victim].fail(_explain(victim, waits, held))
        return victim


def _draw(
    holdings: dict[str, Holdings], is_changing: Callable[[str], bool]
) -> tuple[Picture[Request], dict[Request, Wait]]:
    """Draw who needs whom, from what the routers hold while their locks are held."""
    picture: Picture[Request] = Picture()
    waits: dict[Request, Wait] = {}
    for name, held in holdings.items():
        for request in held.waiting:
            inputs = _inputs(request)
            if inputs:
                picture.needs[request] = inputs
        for request in held.running:
            wait = request.wait
            if wait is None or wait.error is not None or request.state is ANSWERED or wait.is_ended():
                continue
            if may_time_out(request.runner):
                continue
            picture.needs[request] = wait.needs
            waits[request] = wait
        if not held.has_free_slot and not is_changing(name.partition("/")[0]):
            picture.holders[name] = held.running
            picture.queued.update((request, name) for request in held.queued if request.deadline == float("inf"))
    return picture, waits


def _inputs(request: Request) -> list[Request]:
    """Return what `request` waits for; nothing where something else could let it go on."""
    values = (*(request.args or ()), *(request.kwargs or {}).values())
    inputs = [request_of(value) for value in values if isinstance(value, DeploymentResponse)]
    if request.deadline != float("inf") or any(input.state is ANSWERED and input.outcome is None for input in inputs):
        return []
    unanswered = [input for input in inputs if input.state is not ANSWERED]
    others = any(hasattr(value, "add_done_callback") and not isinstance(value, DeploymentResponse) for value in values)
    return [] if others else unanswered


def _explain(victim: Request, waits: dict[Request, Wait], held: Iterable[Request]) -> DeadlockError:
    """Tell the story of a deadlock, the one who gets it first."""
    others = sorted((request for request in held if request is not victim), key=lambda request: request.created)
    lines = [_describe(request, waits.get(request)) for request in (victim, *others[:19])]
    if len(others) > 19:
        lines.append(f"... and {len(others) - 19} more")
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
    runner = request.runner
    where = stack_of_thread(runner) if isinstance(runner, int) else stack_of_task(runner)
    return f"{name} holds a slot and waits for {needs}{f' at {where}' if where else ''}"
