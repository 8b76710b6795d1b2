"""The replicas of one version of one deployment: started together, kept alive, drained and stopped together."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from threadserve.call.context import DeploymentID, ReplicaContext, ReplicaID, ReplicaRank
from threadserve.concurrency.threads import stack_text
from threadserve.errors import ReplicaStartError
from threadserve.replica.target import Target
from threadserve.replica.thread import ThreadReplica
from threadserve.router.router import Limits
from threadserve.runtime.health import HealthProbe, check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from threadserve.app.graph import PlannedDeployment
    from threadserve.call.isolation import Isolation
    from threadserve.concurrency.kernel import Kernel, Thread, WaiterLike
    from threadserve.replica.base import Replica
    from threadserve.router.router import Router
    from threadserve.router.seats import Seat

__all__ = ["Pool"]

_log = logging.getLogger("threadserve")

_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 1.0
_REPLACEMENT_ATTEMPTS = 20
_STOP_S = 1.0
_MOMENT_S = 0.05  # for the replicas that come after one that used up all of the time


class Pool:
    """Brings up `planned` as replicas behind `router`, replaces those that are lost, and takes them down.

    Every start of a replica has a thread of its own. A replica gets no requests until it is seated; one that is lost (it
    failed three health checks, or its code raised SystemExit) loses its seat at once, and another one with the same rank
    is started in its place. Guarded by ``_lock``; under it the router is called and threads are started, so that
    seats open only while the pool wants them open and nobody who stops the pool overlooks a thread, and nothing else.
    """

    def __init__(
        self,
        kernel: Kernel,
        router: Router,
        planned: PlannedDeployment,
        arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
        version: str,
        gpu_ids: Sequence[tuple[str, ...]] = (),
        isolation: Isolation | None = None,
    ) -> None:
        self._kernel = kernel
        self._planned = planned
        self._config = planned.config
        self._arguments = arguments
        self._version = version
        self._gpu_ids = gpu_ids
        self._isolation = isolation
        self._opening: int | None = None
        self._is_hurried = False
        self._started = kernel.waiter()
        self._lock = kernel.lock()
        self._failures: list[BaseException] = []  # guarded by _lock, as all below
        self._pending = 0
        self._is_seated = False
        self._is_stopping = False
        self._troubles: dict[int, str] = {}  # rank -> why that replica is missing
        self._lost: dict[Seat, None] = {}  # until they have been put away
        self._probes: dict[Seat, HealthProbe] = {}
        self._keepers: list[Thread] = []
        self._left: tuple[Sequence[Seat], Sequence[Thread]] = ((), ())  # to be stopped, once it was closed
        self._naps: dict[WaiterLike, None] = {}
        self.router = router
        self.seats: list[Seat] = []
        """Those of the replicas that are up."""

    def __repr__(self) -> str:
        return f"<Pool {self.router.name} {len(self.seats)} up, {self._pending} starting>"

    @property
    def name(self) -> str:
        """The name of the deployment."""
        return self._planned.name

    @property
    def replica_type(self) -> str:
        """Where the code of its replicas runs."""
        return self._config.replica_type

    @property
    def pending(self) -> int:
        """Replicas that are starting."""
        return self._pending

    @property
    def is_growing(self) -> bool:
        """Whether replicas are starting that will take requests. Takes no lock; true until they do take them."""
        return self._pending > 0 and not self._is_stopping

    @property
    def is_seated(self) -> bool:
        """Whether its replicas take requests, or would if they were up."""
        return self._is_seated

    @property
    def trouble(self) -> str:
        """Why replicas are missing; empty when none is."""
        return "; ".join(list(self._troubles.values()))

    @property
    def has_failed(self) -> bool:
        """Whether a replica could not start."""
        return bool(self._failures)

    @property
    def limits(self) -> Limits:
        """What the deployment allows its callers."""
        return Limits(
            max_queued_requests=self._config.max_queued_requests,
            stream_buffer_size=self._config.stream_buffer_size,
            inline=self._config.inline,
            status_code=self._config.backpressure_config.status_code,
            retry_after_s=self._config.backpressure_config.retry_after_s,
        )

    @property
    def graceful_shutdown_timeout_s(self) -> float:
        """How long running requests may take to finish when the deployment is stopped."""
        return self._config.graceful_shutdown_timeout_s

    # ---- coming up

    def open(self) -> None:
        """Have the router take requests, within this pool's limits; they queue until there are seats."""
        self._opening = self.router.open(self.limits, self._isolation)

    def begin(self) -> None:
        """Start every replica, each on a thread of its own. Never blocks."""
        count = self._config.initial_replicas
        self._pending = count
        for rank in range(count):
            self._start(rank)

    def wait_started(self) -> None:
        """Wait until every replica is up or has failed. Blocks.

        Raises:
            ReplicaStartError: One failed; the user's exception is its cause.
        """
        self._started.wait()
        if self._failures:
            failure = self._failures[0]
            raise ReplicaStartError(
                f"a replica of {self.router.name} could not start: {type(failure).__name__}: {failure}"
            ) from failure

    def call_off(self) -> None:
        """Let ``wait_started`` return though replicas are still starting."""
        self._started.set()

    def seat(self, *predecessors: Pool) -> None:
        """Give the requests to the replicas of this pool, and no more to those of `predecessors`."""
        old = [seat for pool in predecessors for seat in pool.unseat()]
        with self._lock:
            self.router.replace(old, self.seats)
            self._is_seated = True  # last, as where it is said of one replica that it has come up

    def unseat(self) -> list[Seat]:
        """Give no more seats, and start no more replicas; the seats that there are come back."""
        with self._lock:
            self._is_stopping = True
            return list(self.seats)

    def _start(self, rank: int) -> None:
        attempts = self._config.max_constructor_retry_count or 1
        name = f"{self.router.name}#{rank} start"
        try:
            self._kernel.spawn(name, lambda: self._bring_up(rank, attempts))
        except RuntimeError as error:  # the system has no thread to give
            with self._lock:
                conclusion = self._conclude(rank, attempts, error)
            self._announce(conclusion)

    def _make(self, rank: int) -> Replica:
        args, kwargs = self._arguments
        if self._isolation is not None:
            args, kwargs = self._isolation.bound(args, kwargs)
        if self._config.replica_type == "interpreter":
            return self._make_interpreter(rank)
        return ThreadReplica(
            self._kernel,
            Target(self._planned.target, args, kwargs),
            deployment=DeploymentID(self._planned.name, self.router.app),
            rank=rank,
            world_size=self._config.initial_replicas,
            code_version=self._version,
            gpu_ids=self._gpu_ids[rank] if self._gpu_ids else (),
        )

    def _make_interpreter(self, rank: int) -> Replica:
        from threadserve.replica.interpreter import InterpreterReplica
        from threadserve.router import bridge

        context = ReplicaContext(
            replica_id=ReplicaID(
                f"{self._kernel.random.getrandbits(40):010x}"[:8],
                DeploymentID(self._planned.name, self.router.app),
            ),
            rank=ReplicaRank(rank),
            world_size=self._config.initial_replicas,
            code_version=self._version,
            gpu_ids=self._gpu_ids[rank] if self._gpu_ids else (),
            get_servable_object=_nothing,
        )
        return InterpreterReplica(
            self._kernel, self._planned.target, self._arguments, entry=bridge.ENTRY, context=context
        )

    def _bring_up(self, rank: int, attempts: int) -> None:
        """Start a replica and give it its seat; stop it again if it is not wanted any more."""
        replica, failure = self._attempt(rank, attempts)
        with self._lock:
            if replica is not None and not self._is_stopping:
                try:
                    self._settle(replica)
                    replica = None  # it has its seat
                    self._troubles.pop(rank, None)
                except RuntimeError as error:  # the system has no thread to give for its health checks
                    failure = error
            conclusion = _UNFINISHED if replica is not None else self._conclude(rank, attempts, failure)
        if replica is not None:
            replica.stop(_STOP_S)
            with self._lock:
                conclusion = self._conclude(rank, attempts, failure)
        self._announce(conclusion)

    def _conclude(self, rank: int, attempts: int, failure: BaseException | None) -> _Conclusion:
        """Note how a start has ended; the lock is held. ``_announce`` must follow."""
        if failure is not None:
            self._failures.append(failure)
            self._troubles[rank] = self._story(rank, attempts, failure)
        self._pending -= 1  # last: until here more slots may come, and a wait for one is no deadlock
        is_last = not self._pending
        return _Conclusion(is_last, is_last and not self.seats and not self._is_stopping)

    def _announce(self, conclusion: _Conclusion) -> None:
        """Tell who waits for the end of all starts."""
        if conclusion.is_dead and self._opening is not None:
            self.router.close(self.trouble, self._opening)
        if conclusion.is_last:
            self._started.set()

    def _attempt(self, rank: int, attempts: int) -> tuple[Replica | None, BaseException | None]:
        """Start a replica, another one each time, only as often as the user allows; or return the last failure."""
        delay = _FIRST_RETRY_S
        while True:
            replica = None
            try:
                replica = self._make(rank)
                replica.start(copy.deepcopy(self._config.user_config))
                if replica.has_health_check:
                    check(self._kernel, replica, self._config.health_check_timeout_s)
                return replica, None
            except BaseException as error:
                failure = error
            if replica is not None:
                replica.stop(_STOP_S)
            attempts -= 1
            if not attempts or not self._nap(delay):
                return None, failure
            delay = min(delay * 2, _LAST_RETRY_S)

    def _story(self, rank: int, attempts: int, failure: BaseException) -> str:
        """Say why a replica is missing for good; the lock is held."""
        begun = self._troubles.get(rank)
        what = f"{begun}; the last of {attempts} attempts to start another" if begun else "the start"
        return f"{what} failed: {failure!r}"

    def _settle(self, replica: Replica) -> None:
        """Make a seat for a replica that is up, and look after it; the lock is held."""
        seat = self.router.seat(replica, self._config.max_ongoing_requests)
        replica.on_death = lambda error: self._lose(seat, error, has_died=True)
        if replica.has_health_check:
            probe = HealthProbe(
                self._kernel,
                replica,
                period_s=self._config.health_check_period_s,
                timeout_s=self._config.health_check_timeout_s,
                on_unhealthy=lambda error: self._lose(seat, error, has_died=False),
            )
            probe.start()
            self._probes[seat] = probe
        self.seats.append(seat)
        if self._is_seated:
            self.router.replace((), (seat,))

    # ---- staying up

    def _lose(self, seat: Seat, error: BaseException, *, has_died: bool) -> None:
        """Take a replica out and have another one put in its place. Never blocks."""
        replica, rank = seat.replica, seat.replica.context.rank.rank
        attempts = self._config.max_constructor_retry_count or _REPLACEMENT_ATTEMPTS
        trouble = f"replica {replica.name} was lost: {type(error).__name__}: {error}"
        with self._lock:
            if self._is_stopping or seat not in self.seats:
                return
            self.seats.remove(seat)
            self._lost[seat] = None
            self._pending += 1
            self._troubles[rank] = trouble
            self.router.replace((seat,), ())
            probe = self._probes.pop(seat, None)
            self._keepers = [keeper for keeper in self._keepers if keeper.is_alive()]
            no_start = self._keep(f"{replica.name} replace", lambda: self._bring_up(rank, attempts))
            no_end = self._keep(f"{replica.name} dismiss", lambda: self._dismiss(seat))
        _log.error("%s", trouble)
        if probe is not None:
            probe.stop()
        if no_start is not None:
            with self._lock:
                conclusion = self._conclude(rank, 1, no_start)
            self._announce(conclusion)
        if no_end is not None:
            _log.error("replica %s is left behind as it is: %s", replica.name, no_end)
        if has_died:
            self.router.abandon(seat, f"replica {replica.name} died of {type(error).__name__}({error})")

    def _keep(self, name: str, fn: Callable[[], object]) -> RuntimeError | None:
        """Start a thread that ``stop`` waits for, or return why the system has none to give; the lock is held."""
        try:
            self._keepers.append(self._kernel.spawn(name, fn))
        except RuntimeError as error:
            return error
        return None

    def _dismiss(self, lost: Seat) -> None:
        """Let a lost replica finish, and stop it."""
        deadline = self._kernel.now() + self.graceful_shutdown_timeout_s
        self._drain(lost, deadline)
        self._put_away(lost, deadline)
        with self._lock:
            del self._lost[lost]

    def _nap(self, seconds: float) -> bool:
        """Wait before the next attempt; False when there is to be none because the pool stops."""
        waiter = self._kernel.waiter()
        with self._lock:
            if self._is_stopping:
                return False
            self._naps[waiter] = None
        was_woken = waiter.wait(seconds)
        with self._lock:
            self._naps.pop(waiter, None)
        return not was_woken

    # ---- going down

    def close(self, reason: str) -> None:
        """Give no more requests to these replicas; unless a newer pool has opened the router, it takes none either."""
        if self._opening is not None:
            self.router.close(reason, self._opening)
        with self._lock:
            self._is_stopping = True
            seats, naps, probes = list(self.seats), list(self._naps), list(self._probes.values())
            self._probes.clear()
            self._left = seats, list(self._keepers)
        for nap in naps:
            nap.set()
        for probe in probes:
            probe.stop()
        self.router.replace(seats, ())

    def stop(self, deadline: float) -> None:
        """Drain the replicas, which have been closed, until `deadline`, then stop them. Blocks.

        What does not end by then is abandoned: its callers get ReplicaDiedError, and the log says what is left.
        """
        seats, keepers = self._left
        for seat in seats:
            self._drain(seat, deadline)
        for seat in seats:
            self._put_away(seat, deadline)
        if not keepers:
            return
        for keeper in keepers:
            keeper.join(max(0.0, deadline - self._kernel.now()))
        self._end_drains()  # what was lost before has no more time than the others
        for keeper in keepers:
            keeper.join(max(_MOMENT_S, deadline + _STOP_S - self._kernel.now()))
            if keeper.is_alive():
                _log.error(
                    "thread %s would not end and is abandoned, at\n%s", keeper.name, stack_text(keeper.ident)
                )

    def hurry(self) -> None:
        """Let a drain that is under way end at once; what runs is abandoned."""
        self._is_hurried = True
        self._end_drains()

    def _end_drains(self) -> None:
        with self._lock:
            seats = [*self.seats, *self._lost]
        for seat in seats:
            self.router.hurry(seat)

    def _drain(self, seat: Seat, deadline: float) -> None:
        left = 0.0 if self._is_hurried else max(0.0, deadline - self._kernel.now())
        if self.router.drain(seat, left):
            return
        limit = f"graceful_shutdown_timeout_s={self.graceful_shutdown_timeout_s:g}"
        reason = (
            f"the drain, of {limit}, was cut short" if self._is_hurried else f"it did not end within {limit}"
        )
        for request in self.router.abandon(seat, reason):
            _log.error("%s.%s was given up: %s", self.router.name, request.method, reason)

    def _put_away(self, seat: Seat, deadline: float) -> None:
        replica = seat.replica
        left = replica.stop(max(_MOMENT_S, deadline + _STOP_S - self._kernel.now()))
        for stuck in left:
            _log.error("replica %s would not stop and is abandoned: %s", replica.name, stuck)
        if not left:  # it has no news any more, and what is gone shall not wait in a circle for the collector
            replica.on_done = replica.on_death = _nobody


class _Conclusion(NamedTuple):
    """What the end of a start means."""

    is_last: bool
    is_dead: bool
    """No replica is up, and none will be."""


_UNFINISHED = _Conclusion(is_last=False, is_dead=False)


def _nobody(*news: object) -> None:
    """Stand in for the router and the pool of a replica that is gone."""


def _nothing() -> None:
    """Stand in for the instance, which is in another interpreter."""
