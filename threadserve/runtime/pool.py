"""The replicas of one version of one deployment: started together, drained and stopped together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadserve.call.context import DeploymentID
from threadserve.errors import ReplicaStartError
from threadserve.replica.target import Target
from threadserve.replica.thread import ThreadReplica
from threadserve.router.router import Limits

if TYPE_CHECKING:
    from threadserve.app.graph import PlannedDeployment
    from threadserve.concurrency.kernel import Kernel
    from threadserve.router.router import Router
    from threadserve.router.seats import Seat

__all__ = ["Pool"]

_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 1.0


class Pool:
    """Brings up `planned` as replicas behind `router`, and takes them down. Gets no requests until they are seated."""

    def __init__(
        self,
        kernel: Kernel,
        router: Router,
        planned: PlannedDeployment,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        version: str,
    ) -> None:
        self._kernel = kernel
        self._planned = planned
        self._arguments = arguments
        self._version = version
        self._lock = kernel.lock()
        self._failures: list[BaseException] = []  # guarded by _lock
        self._pending = 0  # guarded by _lock; replicas that are starting
        self._opening: int | None = None
        self.router = router
        self.seats: list[Seat] = []  # guarded by _lock; of replicas that are up
        self._started = kernel.waiter()

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
    def limits(self) -> Limits:
        """What the deployment allows its callers."""
        config = self._planned.config
        return Limits(
            max_queued_requests=config.max_queued_requests,
            stream_buffer_size=config.stream_buffer_size,
            status_code=config.backpressure_config.status_code,
            retry_after_s=config.backpressure_config.retry_after_s,
        )

    @property
    def graceful_shutdown_timeout_s(self) -> float:
        """How long running requests may take to finish when the deployment is stopped."""
        return self._planned.config.graceful_shutdown_timeout_s

    @property
    def has_failed(self) -> bool:
        """Whether a replica could not start."""
        return bool(self._failures)

    def open(self) -> None:
        """Have the router take requests, within this pool's limits; they queue until there are seats."""
        self._opening = self.router.open(self.limits)

    def seat(self, predecessor: Pool | None = None) -> None:
        """Give the requests to the replicas of this pool, and no more to those of `predecessor`."""
        self.router.replace(predecessor.seats if predecessor else (), self.seats)

    def close(self, reason: str) -> None:
        """Give no more requests to these replicas; unless a newer pool has opened the router, it takes none either."""
        if self._opening is not None:
            self.router.close(reason, self._opening)
        self.router.replace(self.seats, ())

    def begin(self) -> None:
        """Start every replica, each on a thread of its own. Never blocks."""
        count = self._planned.config.initial_replicas
        self._pending = count
        for rank in range(count):
            replica = self._make(rank, count)
            self._kernel.spawn(f"{replica.name} start", lambda replica=replica: self._bring_up(replica))

    def wait_started(self) -> None:
        """Wait until every replica is up or has failed. Blocks.

        Raises:
            ReplicaStartError: One failed; the user's exception is its cause.
        """
        self._started.wait()
        if self._failures:
            raise self._start_error(self._failures[0]) from self._failures[0]

    def stop(self, deadline: float) -> list[str]:
        """Drain the replicas, whose seats are closed, until `deadline`, then stop them. Blocks.

        What does not end by then is abandoned: its callers get ReplicaDiedError, and what is left is named.
        """
        left: list[str] = []
        for seat in self.seats:
            if not self.router.drain(seat, max(0.0, deadline - self._kernel.now())):
                reason = f"it did not end within graceful_shutdown_timeout_s={self.graceful_shutdown_timeout_s:g}"
                left += [f"{self.router.name}.{request.method}" for request in self.router.abandon(seat, reason)]
        for seat in self.seats:
            left += seat.replica.stop(max(0.0, deadline - self._kernel.now()) + _LAST_RETRY_S)
        return left

    def _make(self, rank: int, count: int) -> ThreadReplica:
        args, kwargs = self._arguments
        return ThreadReplica(
            self._kernel,
            Target(self._planned.target, args, kwargs),
            deployment=DeploymentID(self._planned.name, self.router.app),
            rank=rank,
            world_size=count,
            code_version=self._version,
        )

    def _bring_up(self, replica: ThreadReplica) -> None:
        failure = self._attempt(replica)
        with self._lock:
            self._pending -= 1
            if failure is None:
                self.seats.append(self.router.seat(replica, self._planned.config.max_ongoing_requests))
            else:
                self._failures.append(failure)
            is_last = not self._pending
        if failure is not None:
            replica.stop(_LAST_RETRY_S)
        if is_last:
            self._started.set()

    def _attempt(self, replica: ThreadReplica) -> BaseException | None:
        """Start `replica`, again only as often as the user allowed; the last failure comes back."""
        retries = (self._planned.config.max_constructor_retry_count or 1) - 1
        delay = _FIRST_RETRY_S
        while True:
            try:
                replica.start(self._planned.config.user_config)
                return None
            except BaseException as error:
                failure = error
            if not retries:
                return failure
            retries -= 1
            self._kernel.waiter().wait(delay)
            delay = min(delay * 2, _LAST_RETRY_S)

    def _start_error(self, failure: BaseException) -> ReplicaStartError:
        return ReplicaStartError(
            f"a replica of {self.router.name} could not start: {type(failure).__name__}: {failure}"
        )
