"""The replicas of one version of one deployment: started together, kept alive, drained and stopped together."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from threadserve.call.context import DeploymentID
from threadserve.errors import ReplicaStartError
from threadserve.replica.target import Target
from threadserve.replica.thread import ThreadReplica
from threadserve.router.router import Limits
from threadserve.runtime.health import HealthProbe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from threadserve.app.graph import PlannedDeployment
    from threadserve.concurrency.kernel import Kernel, Thread, WaiterLike
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
    is started in its place. Guarded by ``_lock``, under which nothing is called.
    """

    def __init__(
        self,
        kernel: Kernel,
        router: Router,
        planned: PlannedDeployment,
        arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
        version: str,
        gpu_ids: Sequence[tuple[str, ...]] = (),
    ) -> None:
        self._kernel = kernel
        self._planned = planned
        self._config = planned.config
        self._arguments = arguments
        self._version = version
        self._gpu_ids = gpu_ids
        self._opening: int | None = None
        self._started = kernel.waiter()
        self._lock = kernel.lock()
        self._failures: list[BaseException] = []  # guarded by _lock, as all below
        self._pending = 0
        self._is_seated = False
        self._is_stopping = False
        self._probes: dict[Seat, HealthProbe] = {}
        self._keepers: list[Thread] = []
        self._naps: dict[WaiterLike, None] = {}
        self.router = router
        self.seats: list[Seat] = []
        """Those of the replicas that are up."""
        self.trouble = ""
        """Why replicas are missing; empty when none is."""

    def __repr__(self) -> str:
        return f"<Pool {self.router.name} {len(self.seats)} up, {self._pending} starting>"

    @property
    def name(self) -> str:
        """The name of the deployment."""
        return self._planned.name

    @property
    def pending(self) -> int:
        """Replicas that are starting."""
        return self._pending

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
        self._opening = self.router.open(self.limits)

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
        with self._lock:
            self._is_seated = True
            seats = list(self.seats)
        self.router.replace([seat for pool in predecessors for seat in pool.unseat()], seats)

    def unseat(self) -> list[Seat]:
        """Give no seat to those that will replace lost replicas; the seats there are come back."""
        with self._lock:
            self._is_seated = False
            return list(self.seats)

    def _start(self, rank: int) -> None:
        replica = self._make(rank)
        attempts = self._config.max_constructor_retry_count or 1
        self._kernel.spawn(f"{replica.name} start", lambda: self._bring_up(replica, attempts))

    def _make(self, rank: int) -> ThreadReplica:
        args, kwargs = self._arguments
        return ThreadReplica(
            self._kernel,
            Target(self._planned.target, args, kwargs),
            deployment=DeploymentID(self._planned.name, self.router.app),
            rank=rank,
            world_size=self._config.initial_replicas,
            code_version=self._version,
            gpu_ids=self._gpu_ids[rank] if self._gpu_ids else (),
        )

    def _bring_up(self, replica: ThreadReplica, attempts: int) -> None:
        """Start a replica of the first set."""
        failure = self._attempt(replica, attempts)
        with self._lock:
            is_wanted = failure is None and not self._is_stopping  # Ctrl-C may have ended the wait for it
            if is_wanted:
                self._settle(replica)
        if not is_wanted:
            replica.stop(_STOP_S)
        with self._lock:
            self._pending -= 1
            if failure is not None:
                self._failures.append(failure)
            is_last = not self._pending
        if is_last:
            self._started.set()

    def _attempt(self, replica: ThreadReplica, attempts: int) -> BaseException | None:
        """Start `replica`, again only as often as the user allowed; the last failure comes back."""
        delay = _FIRST_RETRY_S
        while True:
            try:
                replica.start(copy.deepcopy(self._config.user_config))
                replica.check_health()
                return None
            except BaseException as error:
                failure = error
            attempts -= 1
            if not attempts or not self._nap(delay):
                return failure
            delay = min(delay * 2, _LAST_RETRY_S)

    def _settle(self, replica: ThreadReplica) -> Seat:
        """Make a seat for a replica that is up, and look after it; the lock is held."""
        seat = self.router.seat(replica, self._config.max_ongoing_requests)
        self.seats.append(seat)
        replica.on_death = lambda error: self._lose(seat, error, has_died=True)
        if replica.has_health_check:
            probe = HealthProbe(
                self._kernel,
                replica,
                period_s=self._config.health_check_period_s,
                timeout_s=self._config.health_check_timeout_s,
                on_unhealthy=lambda error: self._lose(seat, error, has_died=False),
            )
            self._probes[seat] = probe
            probe.start()
        return seat

    # ---- staying up

    def _lose(self, seat: Seat, error: BaseException, *, has_died: bool) -> None:
        """Take a replica out and have another one put in its place. Never blocks."""
        with self._lock:
            if self._is_stopping or seat not in self.seats:
                return
            self.seats.remove(seat)
            self._pending += 1
            self.trouble = f"replica {seat.replica.name} was lost: {type(error).__name__}: {error}"
            probe = self._probes.pop(seat, None)
        _log.error("%s", self.trouble)
        if probe is not None:
            probe.stop()
        self.router.replace((seat,), ())
        if has_died:
            self.router.abandon(seat, f"replica {seat.replica.name} died of {type(error).__name__}({error})")
        keeper = self._kernel.spawn(f"{seat.replica.name} replace", lambda: self._replace(seat))
        with self._lock:
            self._keepers.append(keeper)

    def _replace(self, lost: Seat) -> None:
        """Start another replica, as often as it takes; let the lost one finish and stop it."""
        replica = self._make(lost.replica.context.rank.rank)
        attempts = self._config.max_constructor_retry_count or _REPLACEMENT_ATTEMPTS
        failure = self._attempt(replica, attempts)
        seat = None
        with self._lock:
            self._pending -= 1
            if failure is None and not self._is_stopping:
                seat = self._settle(replica)
                self.trouble = ""
            elif failure is not None:
                self._failures.append(failure)
                self.trouble += f"; no other could be started, the last of {attempts} attempts failed: {failure!r}"
            is_dead = not self.seats and not self._pending and not self._is_stopping
            is_seated = self._is_seated
        if seat is None:
            replica.stop(_STOP_S)
        elif is_seated:
            self.router.replace((), (seat,))
        if is_dead and self._opening is not None:
            self.router.close(self.trouble, self._opening)
        self._dismiss(lost, self._kernel.now() + self.graceful_shutdown_timeout_s)

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
        for nap in naps:
            nap.set()
        for probe in probes:
            probe.stop()
        self.router.replace(seats, ())

    def stop(self, deadline: float) -> None:
        """Drain the replicas, which have been closed, until `deadline`, then stop them. Blocks.

        What does not end by then is abandoned: its callers get ReplicaDiedError, and the log says what is left.
        """
        with self._lock:
            seats, keepers = list(self.seats), list(self._keepers)
        for seat in seats:
            self._drain(seat, deadline)
        for seat in seats:
            self._put_away(seat, deadline)
        for keeper in keepers:
            keeper.join(max(_MOMENT_S, deadline + _STOP_S - self._kernel.now()))

    def hurry(self) -> None:
        """Let a drain that is under way end at once; what runs is abandoned."""
        for seat in list(self.seats):
            self.router.hurry(seat)

    def _dismiss(self, seat: Seat, deadline: float) -> None:
        self._drain(seat, deadline)
        self._put_away(seat, deadline)

    def _drain(self, seat: Seat, deadline: float) -> None:
        if self.router.drain(seat, max(0.0, deadline - self._kernel.now())):
            return
        reason = f"it did not end within graceful_shutdown_timeout_s={self.graceful_shutdown_timeout_s:g}"
        for request in self.router.abandon(seat, reason):
            _log.error("%s.%s was given up: %s", self.router.name, request.method, reason)

    def _put_away(self, seat: Seat, deadline: float) -> None:
        for stuck in seat.replica.stop(max(_MOMENT_S, deadline + _STOP_S - self._kernel.now())):
            _log.error("replica %s would not stop and is abandoned: %s", seat.replica.name, stuck)
