"""What the tests of the core share: a deployment without an app around it, a replica that does nothing, the books."""

from __future__ import annotations

import gc
import itertools
import sys
import sysconfig
import threading
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from threadserve.app.config import DeploymentConfig
from threadserve.app.graph import PlannedDeployment
from threadserve.call.request import ANSWERED, CURRENT, QUEUED, Request
from threadserve.concurrency.real import RealKernel
from threadserve.handle import DeploymentHandle
from threadserve.router.router import Limits, Router
from threadserve.runtime.pool import Pool
from threadserve.testing.scheduler import SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threadserve.call.response import DeploymentResponse
    from threadserve.call.stream import DeploymentResponseGenerator
    from threadserve.concurrency.kernel import Kernel, Thread, WaiterLike
    from threadserve.concurrency.outcome import Outcome
    from threadserve.router.seats import Seat
    from threadserve.testing.turns import SimulatedThread

R = TypeVar("R")

IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


# ---- a deployment, its pool and its router; no app, no controller


@dataclass
class Deployed:
    """One deployment that runs."""

    kernel: Kernel
    router: Router
    pool: Pool
    handle: DeploymentHandle[Any]

    def replace_with(self, target: Any, *args: Any, **options: Any) -> None:
        """Put a new version in the place of this one, and take the old one down."""
        old, self.pool = self.pool, start(self.kernel, self.router, target, args, options)
        self.pool.seat(old)
        old.close("it was replaced")
        old.stop(self.kernel.now() + 60)

    def take_down(self, timeout: float = 60.0) -> None:
        self.pool.close("the test is over")
        self.pool.stop(self.kernel.now() + timeout)

    @property
    def seats(self) -> list[Seat]:
        return self.pool.seats


def start(
    kernel: Kernel, router: Router, target: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> Pool:
    """Start the replicas of a deployment, open its router, and wait until they are up."""
    config = DeploymentConfig().changed({"max_ongoing_requests": 5, **options})
    planned = PlannedDeployment(name=router.deployment, target=target, config=config)
    pool = Pool(kernel, router, planned, (args, {}), "v1")
    pool.open()
    pool.begin()
    pool.wait_started()
    return pool


def deploy(kernel: Kernel, target: Any, *args: Any, name: str = "D", **options: Any) -> Deployed:
    kernel.errands.start()
    router = Router(kernel, "app", name)
    pool = start(kernel, router, target, args, options)
    pool.seat()
    return Deployed(kernel, router, pool, DeploymentHandle(router))


@contextmanager
def deployed(kernel: Kernel, target: Any, *args: Any, **options: Any) -> Iterator[Deployed]:
    """Run `target` for the length of a ``with`` block; afterwards its books must be empty."""
    deployment = deploy(kernel, target, *args, **options)
    try:
        yield deployment
    finally:
        deployment.take_down()
    check_invariants(deployment.router)
    assert_nothing_left(deployment.router)


# ---- kernels whose workers are late, so that whoever waits for a call is the first to come to it


class LateWorkers(RealKernel):
    """Real threads; the workers of replicas begin when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self._gate = threading.Event()

    def spawn(self, name: str, fn: Callable[[], object]) -> Thread:
        return super().spawn(name, (lambda: self._gate.wait() and fn()) if " worker " in name else fn)

    def let_workers_come(self) -> None:
        self._gate.set()


class LateSimulation(SimulatedKernel):
    """A simulation; the workers of replicas begin when they are let, or only those of the deployment `of`."""

    def __init__(self, seed: int = 0, *, of: str = "") -> None:
        super().__init__(seed)
        self._late = f"{of}#" if of else " worker "
        self._gates: list[WaiterLike] | None = []

    def spawn(self, name: str, fn: Callable[[], object]) -> SimulatedThread:
        if self._gates is not None and self._late in name and " worker " in name:
            gate = self.waiter()
            self._gates.append(gate)
            return super().spawn(name, lambda: gate.wait() and fn())
        return super().spawn(name, fn)

    def let_workers_come(self) -> None:
        gates, self._gates = self._gates, None
        for gate in gates or ():
            gate.set()


@contextmanager
def unattended(
    kernel: LateWorkers | LateSimulation, target: Any, *args: Any, **options: Any
) -> Iterator[Deployed]:
    """Run `target` for the length of a ``with`` block, on whose threads nobody comes before its end or ``let_workers_come``."""
    with deployed(kernel, target, *args, **options) as deployment:
        try:
            yield deployment
        finally:
            kernel.let_workers_come()


# ---- a router whose replica starts nothing: the test itself is whoever runs the bodies


@dataclass
class StillReplica:
    """Takes what it is given and does nothing with it, until ``end`` is called."""

    begun: list[Request] = field(default_factory=list)
    on_done: Callable[[Request, Outcome], None] = field(init=False)

    def begins_async(self, method: str) -> bool:
        return True

    def post(self, request: Request) -> None:
        request.args = request.kwargs = request.context = None  # as a body that begins
        self.begun.append(request)

    def end(self, request: Request, outcome: Outcome) -> None:
        """Let the body of `request` return."""
        self.begun.remove(request)
        self.on_done(request, outcome)


def still_router(kernel: Kernel, *, limit: int = 1, **limits: Any) -> tuple[Router, StillReplica, Seat]:
    """Return an open router, a replica, and the replica's seat, which is still closed."""
    router = Router(kernel, "app", "D")
    router.open(Limits(**limits))
    replica = StillReplica()
    return router, replica, router.seat(replica, limit)  # type: ignore[arg-type]


def call_under(parent: Request, call: Callable[[], R]) -> R:
    """Make a call as the body of `parent` would."""

    def under() -> R:
        CURRENT.set(parent)
        return call()

    return copy_context().run(under)


def request_behind(answer: DeploymentResponse[Any] | DeploymentResponseGenerator[Any]) -> Request:
    return answer._request


# ---- the books


def check_invariants(router: Router) -> None:
    """Assert what must hold whenever the router's lock is free."""
    with router.lock:  # the assertion is outside: to show what failed may take the lock
        broken = list(_broken(router))
    assert broken == []


def _broken(router: Router) -> Iterator[str]:
    live = [request for request in router._queue if request.state is QUEUED]
    seats = list(router._seats)
    free = sum(max(0, seat.limit - len(seat.running)) for seat in seats)
    if not router._queued == len(live) == len(set(live)):
        yield f"{len(live)} are queued, {len(set(live))} different ones, and {router._queued} are counted"
    if any(request.state is QUEUED for request in router._waiting):
        yield "somebody is queued, and waits for arguments too"
    counted = (len(router._seats), router._seats.free)
    if (len(seats), free) != counted:
        yield f"{len(seats)} seats have {free} free slots; counted are {counted}"
    for seat in seats:
        if not (seat.is_open and len(seat.running) <= seat.limit):
            yield f"{seat!r} runs {len(seat.running)}"
        if not len(seat.idle) <= seat.workers <= seat.limit:
            yield f"{seat!r} has {seat.workers} workers, {len(seat.idle)} of them idle"
    is_somebody_between = any(seat.has_room and len(seat.idle) < seat.workers for seat in seats)
    if live and free and not router._is_waking and not is_somebody_between:
        yield "queued, a free slot, and nobody on the way"


def assert_nothing_left(router: Router) -> None:
    """Assert that nobody waits, nothing is queued, no slot is taken and no worker is on its way."""
    now = router.statistics()
    assert (now.waiting, now.queued, now.ongoing) == (0, 0, 0)
    assert not any(request.state is not ANSWERED for request in router._queue)
    assert not router._is_waking


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for what a real thread is about to bring about and nothing tells of."""
    pause = threading.Event()
    for _ in range(4000):
        if is_so():
            return
        pause.wait(0.001)
    raise AssertionError("it did not come about")


def let_the_dead_go() -> None:
    """Have what nobody refers to any more be gone; on builds with a GIL it is already.

    On a free-threaded build an object whose last reference another thread has dropped dies when its own thread
    looks, or when garbage is collected. Where reference counts are exact nothing is collected, so cycles are found.
    """
    if IS_FREE_THREADED:
        gc.collect()


def garbage_of(work: Callable[[], object]) -> int:
    """Count what `work` leaves to the collector: the least of three, for what other tests left may become garbage beside it."""
    found = list[int]()
    for _ in range(3):
        gc.collect()
        gc.disable()  # else it may have been collected already
        try:
            work()
            found.append(gc.collect())
        finally:
            gc.enable()
    return min(found)


def lines_run_by(deed: Callable[[], object]) -> int:
    """Count the lines of Python that are run: a measure of work that is the same every time."""
    count = itertools.count()

    def note(frame: object, event: str, argument: object) -> Any:
        if event == "line":
            next(count)
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        deed()
    finally:
        sys.settrace(before)
    return next(count)


def let_it_rest(kernel: SimulatedKernel) -> None:
    """Let everybody go on until all wait: the clock of a simulation only moves then."""
    kernel.waiter().wait(1e-3)


class Answers:
    """Counts how often a response is answered: once, if all is well."""

    def __init__(self) -> None:
        self._told: dict[Request, int] = {}

    def watch(self, response: DeploymentResponse[R]) -> DeploymentResponse[R]:
        request = request_behind(response)
        self._told[request] = 0
        if not request.subscribe(_Count(self._told, request)):
            self._told[request] += 1
        return response

    @property
    def requests(self) -> list[Request]:
        return list(self._told)

    def assert_each_once(self) -> None:
        assert all(request.state is ANSWERED for request in self._told)
        assert set(self._told.values()) <= {1}


class _Count:
    def __init__(self, told: dict[Request, int], request: Request) -> None:
        self._told = told
        self._request = request

    def tell(self) -> tuple[()]:
        self._told[self._request] += 1
        return ()
