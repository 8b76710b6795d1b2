"""The life of an actor: one replica behind a router of its own, from the constructor to the end.

The constructor is a request as well, which waits for its arguments like any other, and then runs on a thread of its own.
What was called meanwhile is queued. An actor ends

* when it is killed, or the runtime is shut down: whatever it runs or has queued fails at once with ActorDiedError;
* when its code raises SystemExit: the same, unless it has restarts left;
* when nobody can call it any more. All handles to it, and all calls that have not begun, hold its ``Grip``; with the grip
  goes the actor, once what it runs has returned. (A finalizer only leaves a note for the reaper.)
"""

from __future__ import annotations

import inspect
import logging
import weakref
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from threadserve.call.context import DeploymentID
from threadserve.call.objectref import Store, find_object, object_id
from threadserve.call.request import Request
from threadserve.concurrency.outcome import Error, Value
from threadserve.errors import ActorDiedError
from threadserve.handle import DeploymentHandle
from threadserve.replica.target import Target
from threadserve.replica.thread import ThreadReplica
from threadserve.router.arguments import Inputs, has_inputs
from threadserve.router.router import Limits, Router
from threadserve.runtime.resources import Ask
from threadserve.runtime.version import Place
from threadserve.tasks.order import OrderedRouter
from threadserve.tasks.pool import GRACE_S, STOP_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from threadserve.concurrency.kernel import Kernel, WaiterLike
    from threadserve.concurrency.waiter import Subscriber
    from threadserve.router.seats import Seat
    from threadserve.runtime.resources import Demand, Ledger, Reservation
    from threadserve.tasks.options import ActorOptions

__all__ = ["Actor", "Grip"]

_log = logging.getLogger("threadserve")

ASYNC_CALLS = 1000
"""How many calls an actor with coroutines runs at once."""


class Grip:
    """Keeps an actor alive. Copied and pickled it stays itself."""

    __slots__ = ("__weakref__", "actor")

    def __init__(self, actor: Actor) -> None:
        self.actor = actor

    def __reduce__(self) -> tuple[Any, ...]:
        return find_object, (object_id(self),)

    def __del__(self) -> None:
        # Wherever this runs: it takes no lock.
        self.actor.kernel.errands.post(self.actor.dismiss)


class Actor:
    """One actor. Every member is safe from any thread.

    Args:
        kernel: What it stands on.
        ledger: Where it reserves what it asks for.
        cls: Its class.
        name: Names it in errors, logs and threads; no other actor of the runtime has the same.
        options: Its options.
        on_end: Called once when it takes no more calls, with no lock held.
        on_gone: Called when after that its threads have ended, or were abandoned; the same.
    """

    graceful_shutdown_timeout_s = GRACE_S

    def __init__(
        self,
        kernel: Kernel,
        ledger: Ledger,
        cls: Callable[..., Any],
        *,
        name: str,
        options: ActorOptions,
        on_end: Callable[[Actor], object],
        on_gone: Callable[[Actor], object],
    ) -> None:
        self.kernel = kernel
        self.cls = cls
        self.options = options
        self._ledger = ledger
        self._demand: Demand = options.demand(f"actor {name}")
        is_async = _is_async(cls)
        self._is_async = is_async
        self._slots = options.max_concurrency or (ASYNC_CALLS if is_async else 1)
        keeps_order = self._slots == 1 and not options.allow_out_of_order_execution
        self.router = (OrderedRouter if keeps_order else Router)(kernel, "actors", name)
        self.router.unavailable = self.router.died = self._death
        self._opening = self.router.open(Limits(max_queued_requests=options.max_pending_calls))
        self.handle: DeploymentHandle[Any] = DeploymentHandle(self.router)
        self.store = Store(kernel)
        """For the values of calls that have several."""
        self._on_end = on_end
        self._on_gone = on_gone
        self._creation: Request | None = None
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._cause: BaseException | None = None
        self._lock = kernel.lock()
        self._grip: weakref.ref[Grip] | None = None  # guarded by _lock, as all below
        self._seat: Seat | None = None
        self._reservations: list[Reservation] = []
        self._place = Place()  # in the line for resources
        self._restarts = 0
        self._is_starting = True
        self._is_over = False
        self._leaving = 0  # threads that put replicas away
        self._left: list[WaiterLike] = []

    def __repr__(self) -> str:
        state = "over" if self._is_over else "starting" if self._is_starting else "up"
        return f"<Actor {self.router.deployment} {state}>"

    # ---- as a pool of one replica

    @property
    def seats(self) -> list[Seat]:
        """The seat of its replica, if that is up."""
        seat = self._seat
        return [] if seat is None else [seat]

    @property
    def is_growing(self) -> bool:
        """Whether its replica is starting. Takes no lock."""
        return self._is_starting

    @property
    def is_leaving(self) -> bool:
        """Whether threads of it are being ended. Takes no lock."""
        return self._leaving > 0

    def close(self, reason: str) -> None:
        """Take no more calls; those that wait fail with ActorDiedError, those that run go on. Starts no thread."""
        self.router.close(reason, self._opening)
        for seat in self.seats:
            if seat.is_open:
                self.router.replace((seat,), ())

    # ---- who can call it

    def grip(self) -> Grip | None:
        """Return what keeps it alive; None when it is ending because nothing did."""
        with self._lock:
            grip = None if self._grip is None else self._grip()
            if grip is None and (self._grip is None or self.options.lifetime == "detached"):
                grip = Grip(self)
                self._grip = weakref.ref(grip)
        return grip

    def dismiss(self) -> None:
        """Be told that nobody can call it any more: end it, once what it runs has returned. Never blocks."""
        if self.options.lifetime != "detached":
            self._finish("all handles to it were dropped", None, is_patient=True)

    def kill(self, reason: str, *, may_restart: bool = False) -> None:
        """End it at once. Never blocks for long."""
        seat = self._seat
        if not (may_restart and seat is not None and self._restart(seat, reason)):
            self._finish(reason, None)

    def wait_gone(self, timeout: float) -> None:
        """Wait until its threads have ended, be they abandoned. Blocks up to `timeout` seconds."""
        waiter = self.kernel.waiter()
        with self._lock:
            if not self._leaving:
                return
            self._left.append(waiter)
        waiter.wait(timeout)

    # ---- its beginning

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start it, as soon as the responses and refs among the arguments have their values. Never blocks."""
        creation = Request(self.router, "__init__", args, kwargs, context=Context(), request_id=str(uuid4()))
        self._creation = creation
        creation.subscribe(_Creation(self, creation))
        try:
            waits = has_inputs(creation)
        except Exception as error:
            creation.answer(Error(error.with_traceback(None)))
            return
        if not waits:
            self._start(creation, None)
            return
        inputs = Inputs(creation, self._start)
        if creation.subscribe(inputs):
            inputs.register()

    def creation_failed(self, error: BaseException) -> None:
        """Be told that the constructor, or one of its arguments, has failed."""
        self._finish(f"it could not start: {type(error).__name__}: {error}", error)

    def _start(self, creation: Request, inputs: Subscriber | None) -> Iterable[Subscriber]:
        if inputs is not None:
            creation.forget(inputs)
        args, kwargs = creation.args, creation.kwargs
        if args is not None and kwargs is not None:  # else it was killed meanwhile
            self._arguments = args, kwargs
            self._spawn_replica()
        return ()

    def _spawn_replica(self) -> None:
        try:
            self.kernel.spawn(f"{self.router.name} start", self._bring_up)
        except RuntimeError as error:  # the system has no thread to give
            self.creation_failed(error)

    def _bring_up(self) -> None:
        """Reserve, construct, and take the seat. On a thread of its own."""
        replica = None
        try:
            gpu_ids = self._reserve()
            args, kwargs = self._arguments
            target = _ActorTarget(self.cls, args, kwargs, is_async=self._is_async, terminate=self.dismiss)
            replica = ThreadReplica(
                self.kernel,
                target,
                deployment=DeploymentID(self.router.deployment, self.router.app),
                rank=0,
                world_size=1,
                code_version="",
                gpu_ids=gpu_ids,
            )
            replica.died = self._death
            replica.call(target.construct)
        except BaseException as error:
            self.creation_failed(error)
        else:
            if self._settle(replica):
                return
        if replica is not None:
            replica.stop(STOP_S)
        self._release()

    def _settle(self, replica: ThreadReplica) -> bool:
        """Take the seat of a replica that is up; False when the actor is over."""
        seat = self.router.seat(replica, self._slots)
        replica.on_death = lambda error: self._lose(seat, error)
        with self._lock:
            if self._is_over:
                return False
            self._seat = seat
            self.router.replace(
                (), (seat,)
            )  # under the lock: who ends the actor sees the seat, or comes first
            self._is_starting = False
            if self.options.max_restarts == 0:
                self._arguments = ((), {})
        if self._creation is not None:
            self._creation.answer(Value(None))
        return True

    def _reserve(self) -> tuple[str, ...]:
        """Wait until there is what it asks for, and return its GPUs. Blocks.

        Raises:
            ResourceError: It asks for more than there is.
        """
        if self._demand.is_empty or self._reservations:
            return tuple(gpu_id for held in self._reservations for gpu_id in held.gpu_ids)
        asks = [Ask(self.router.name, self._demand, 1)]
        try:
            while True:
                waiter = self.kernel.waiter()
                with self._lock:
                    if self._is_over:
                        raise ActorDiedError(f"{self.router.name} was ended before it had started")
                    self._place.waiter = waiter
                reservations = self._ledger.reserve_together(asks, self._place)
                if reservations is not None:
                    self._reservations = reservations
                    return reservations[0].gpu_ids
                waiter.wait()
        finally:
            self._ledger.forget(self._place)

    # ---- its end

    def _lose(self, seat: Seat, error: BaseException) -> None:
        """Be told that its code has raised SystemExit. Must not block."""
        reason = f"its code raised {type(error).__name__}({error})"
        if not self._restart(seat, reason):
            self._finish(reason, error)

    def _restart(self, seat: Seat, reason: str) -> bool:
        """Give up what runs and start anew; False when it has no restarts left, or is over."""
        allowed = self.options.max_restarts
        with self._lock:
            if self._is_over or self._seat is not seat or (allowed != -1 and self._restarts >= allowed):
                return False
            self._restarts += 1
            self._seat = None
            self._is_starting = True
            self._leaving += 1
        self.router.replace((seat,), ())
        self.router.abandon(seat, reason)
        _log.warning("%s starts anew: %s", self.router.name, reason)
        self._put_away_soon(seat, STOP_S)
        self._spawn_replica()
        return True

    def _finish(self, reason: str, cause: BaseException | None, *, is_patient: bool = False) -> None:
        """Take no more calls, and put the replica away: at once, or when what it runs has returned."""
        with self._lock:
            if self._is_over:
                seat = None if is_patient else self._seat
                is_first = False
            else:
                seat, is_first = self._seat, True
                self._is_over, self._is_starting = True, False
                self._leaving += seat is not None
        if is_first:
            self._cause = cause
            self._on_end(self)
            self.close(reason)
        self._place.tell()
        if self._creation is not None:
            self._creation.answer(Error(self._death(f"{self.router.name} has ended: {reason}")))
        if seat is None:
            return
        if not is_patient:
            self.router.abandon(seat, reason)
            self.router.hurry(seat)
        if is_first:
            self._put_away_soon(seat, None if is_patient else STOP_S)

    def _put_away_soon(self, seat: Seat, patience: float | None) -> None:
        try:
            self.kernel.spawn(f"{self.router.name} end", lambda: self._put_away(seat, patience))
        except RuntimeError:  # no thread to be had: what is left ends with the process
            self._note_left()

    def _put_away(self, seat: Seat, patience: float | None) -> None:
        """Wait for what it runs, and end the threads."""
        self.router.drain(seat, patience)
        for stuck in seat.replica.stop(STOP_S):
            _log.error("actor %s would not end and is abandoned: %s", seat.replica.name, stuck)
        if self._is_over:
            self._release()
        self._note_left()

    def _note_left(self) -> None:
        with self._lock:
            self._leaving -= 1
            is_gone = self._is_over and not self._leaving
            waiters, self._left = (self._left, []) if is_gone else ([], self._left)
        if is_gone:
            self._on_gone(self)
        for waiter in waiters:
            waiter.set()

    def _release(self) -> None:
        reservations, self._reservations = self._reservations, []
        for reservation in reservations:
            reservation.release()

    def _death(self, message: str, **where: str) -> ActorDiedError:
        error = ActorDiedError(message, **where)
        error.__cause__ = self._cause
        return error


class _Creation:
    """Told when the request of the constructor is answered: if it failed, the actor is over."""

    __slots__ = ("_actor", "_creation")

    def __init__(self, actor: Actor, creation: Request) -> None:
        self._actor = actor
        self._creation = creation

    def tell(self) -> Iterable[Subscriber]:
        outcome = self._creation.outcome
        if outcome is not None and outcome.exception is not None:
            self._actor.creation_failed(outcome.exception)
        return ()


class _ActorTarget(Target):
    """An actor's instance. The first argument of each call is a grip, which is not for the method."""

    def __init__(
        self,
        cls: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        is_async: bool,
        terminate: Callable[[], object],
    ) -> None:
        super().__init__(cls, args, kwargs)
        self._is_async = is_async
        self._terminate = terminate

    def begins_async(self, method: str) -> bool:
        """Whether calls run on the event loop: all of them, where the class has a coroutine, so that none runs beside it."""
        return self._is_async

    def lookup(self, request: Request) -> Callable[..., Any]:
        """Return what `request` calls; see ``Target.lookup``."""
        if request.method == "__ray_ready__":
            return _ready
        if request.method == "__ray_terminate__":
            return lambda grip: self._terminate()
        return partial(_call, super().lookup(request))


def _call(method: Callable[..., Any], _grip: Grip, /, *args: Any, **kwargs: Any) -> Any:
    return method(*args, **kwargs)


def _ready(_grip: Grip) -> bool:
    return True


def _is_async(cls: Callable[..., Any]) -> bool:
    """Whether a class has a method that is a coroutine or an async generator."""
    members = (inspect.getattr_static(cls, name, None) for name in dir(cls))
    return any(
        inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member) for member in members
    )
