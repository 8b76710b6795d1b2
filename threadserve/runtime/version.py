"""An app as the runtime knows it: its versions, how one of them goes, what the status says of it; and who lives beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from threadserve.errors import DeployError
from threadserve.runtime.status import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from threadserve.app.graph import Plan, PlannedDeployment
    from threadserve.call.isolation import Isolation
    from threadserve.concurrency.kernel import Kernel, WaiterLike
    from threadserve.router.router import Router
    from threadserve.router.seats import Seat
    from threadserve.runtime.pool import Pool
    from threadserve.runtime.resources import Reservation

__all__ = ["App", "Lodger", "Place", "Quarters", "Retirement", "Version", "overview"]


class Quarters(Protocol):
    """Replicas behind one router, as far as the controller has to do with them."""

    @property
    def router(self) -> Router:
        """What they get their requests from."""
        ...

    @property
    def seats(self) -> Sequence[Seat]:
        """Those of the replicas that are up."""
        ...

    @property
    def is_growing(self) -> bool:
        """Whether replicas are starting that will take requests. Takes no lock."""
        ...

    @property
    def graceful_shutdown_timeout_s(self) -> float:
        """How long running requests may take to finish when they are closed."""
        ...

    def close(self, reason: str) -> None:
        """Take no more requests; those that run go on. Starts no thread."""


class Lodger(Protocol):
    """Who keeps replicas of its own beside the apps: the tasks and actors."""

    def pools(self) -> Sequence[Quarters]:
        """Return what there is of them."""
        ...

    def shutdown(self) -> None:
        """End them all. Blocks."""


class Version:
    """One deployed plan: its pools, level by level, children first."""

    def __init__(self, plan: Plan, code_version: str, isolation: Isolation | None = None) -> None:
        self.plan = plan
        self.code_version = code_version
        self.isolation = isolation
        self.levels: list[list[Pool]] = []
        self.reservations: list[Reservation] = []
        self.called_off = ""
        """Why it shall not come up after all; empty while it shall."""
        self.nap: WaiterLike | None = None
        """What wakes the thread that deploys it while that waits for resources."""

    @property
    def pools(self) -> list[Pool]:
        """All pools, children first."""
        return [pool for level in self.levels for pool in level]

    @property
    def patience(self) -> float:
        """The longest of its graceful timeouts, in seconds."""
        return max((pool.graceful_shutdown_timeout_s for pool in self.pools), default=0.0)

    def has_yet_to_seat(self, deployment: str) -> bool:
        """Whether it has the deployment, but no replicas of it that take requests."""
        is_in_it = any(planned.name == deployment for planned in self.plan.deployments)
        return is_in_it and not any(pool.is_seated for pool in self.pools if pool.name == deployment)

    def call_off(self, reason: str) -> None:
        """Let it not come up: whoever waits for it, for resources or for its replicas, goes on with DeployError."""
        self.called_off = reason
        if self.nap is not None:
            self.nap.set()
        for pool in self.pools:
            pool.call_off()

    def check(self) -> None:
        """Raise DeployError when it was called off."""
        if self.called_off:
            raise DeployError(f"app {self.plan.app!r} does not come up: {self.called_off}")


class App:
    """What the controller knows of one app. Guarded by the controller's lock."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = ApplicationStatus.NOT_STARTED
        self.message = ""
        self.failed_deployment: str | None = None
        self.route_prefix: str | None = None
        self.deployed_at = 0.0
        self.version: Version | None = None
        self.coming: Version | None = None
        self.failed: Plan | None = None  # no more of it: what was made for it shall not live on


class Place:
    """A version's place in the line for resources: whoever waits there has a new waiter each time."""

    def __init__(self) -> None:
        self.waiter: WaiterLike | None = None

    def tell(self) -> tuple[()]:
        """End the present wait."""
        if self.waiter is not None:
            self.waiter.set()
        return ()


class Retirement:
    """One version on its way out."""

    def __init__(self, kernel: Kernel, app: str, version: Version, reason: str) -> None:
        self._kernel = kernel
        self._reason = reason
        self._lock = kernel.lock()
        self._waiters: list[WaiterLike] | None = []  # guarded by _lock; None once it is over
        self._is_hurried = False
        self.app = app
        self.version = version

    def run(self) -> None:
        """Take the version down, from the ingress to the leaves. Blocks."""
        deadline = self._kernel.now() + self.version.patience
        for level in reversed(self.version.levels):
            for pool in level:
                pool.close(self._reason)
            for pool in level:
                pool.stop(self._kernel.now() if self._is_hurried else deadline)
        for reservation in self.version.reservations:
            reservation.release()

    def finish(self) -> None:
        """Tell who waits."""
        with self._lock:
            waiters, self._waiters = self._waiters or [], None
        for waiter in waiters:
            waiter.set()

    def wait(self) -> None:
        """Wait until the version is gone. Blocks; Ctrl-C skips the rest of the drain and goes on as KeyboardInterrupt."""
        waiter = self._kernel.waiter()
        with self._lock:
            if self._waiters is None:
                return
            self._waiters.append(waiter)
        try:
            waiter.wait()
        except KeyboardInterrupt:
            self.hurry()
            raise

    def hurry(self) -> None:
        """Drain no longer: what still runs is abandoned."""
        self._is_hurried = True
        for pool in self.version.pools:
            pool.hurry()


def overview(app: App) -> ApplicationStatusOverview:
    """Return what the status says of `app`, whose fields are guarded by whoever asks."""
    version = app.version or app.coming
    pools = version.pools if version else []
    failed = app.failed.deployments if app.failed and not version else ()
    is_unhealthy = app.status is ApplicationStatus.RUNNING and any(pool.trouble for pool in pools)
    return ApplicationStatusOverview(
        status=ApplicationStatus.UNHEALTHY if is_unhealthy else app.status,
        message=app.message,
        last_deployed_time_s=app.deployed_at,
        route_prefix=app.route_prefix,
        deployments={
            **{pool.name: _deployment_overview(app, pool) for pool in pools},
            **{planned.name: _failed_overview(app, planned) for planned in failed},
        },
    )


def _failed_overview(app: App, planned: PlannedDeployment) -> DeploymentStatusOverview:
    """Return what is left of a deployment of an app that did not come up."""
    is_culprit = planned.name == app.failed_deployment
    return DeploymentStatusOverview(
        status=DeploymentStatus.DEPLOY_FAILED if is_culprit else DeploymentStatus.UPDATING,
        status_trigger=DeploymentStatusTrigger.REPLICA_STARTUP_FAILED
        if is_culprit
        else DeploymentStatusTrigger.CONFIG_UPDATE_STARTED,
        replica_states={},
        replica_type=planned.config.replica_type,
        message=app.message if is_culprit else "",
    )


def _deployment_overview(app: App, pool: Pool) -> DeploymentStatusOverview:
    states = {"STARTING": pool.pending, "RUNNING": len(pool.seats)}
    kind = pool.replica_type
    if app.version is None:
        return DeploymentStatusOverview(
            status=DeploymentStatus.UPDATING,
            status_trigger=DeploymentStatusTrigger.CONFIG_UPDATE_STARTED,
            replica_states={state: count for state, count in states.items() if count},
            replica_type=kind,
        )
    return DeploymentStatusOverview(
        status=DeploymentStatus.UNHEALTHY if pool.trouble else DeploymentStatus.HEALTHY,
        status_trigger=DeploymentStatusTrigger.HEALTH_CHECK_FAILED
        if pool.trouble
        else DeploymentStatusTrigger.CONFIG_UPDATE_COMPLETED,
        replica_states={state: count for state, count in states.items() if count},
        replica_type=kind,
        message=pool.trouble or (app.message if pool.name == app.failed_deployment else ""),
    )
