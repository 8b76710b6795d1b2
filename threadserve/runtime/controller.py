"""Keeps the apps of one runtime: brings versions up, swaps them, takes them down. Never on a request's path.

A version comes up before the one it replaces goes. Its deployments start children before parents, siblings at once; a
deployment that the app did not have gets its requests as soon as it is up, so that the constructors of its parents
can call it; one that is replaced gets its new replicas when all of the version is up, in one step per deployment.
(A constructor that calls a deployment which is being replaced therefore reaches the old version.) If the version does
not come up, what was started of it is stopped again and nothing else has changed.

A version goes from the ingress down: a parent's running requests may still call its children, so these stay open
until the parent has drained. All of a version shares one deadline, the longest of its graceful timeouts.

Whoever asks waits on the thread that asked, except from inside a replica of the same app: there nothing waits for the
end of the request that asks.

Guarantees. One change of an app at a time (``_turns``); changes of different apps do not wait for each other. The table of
apps is guarded by ``_lock``, nothing is called while it is held. User code runs on the replicas' own threads alone.

Rejected: stopping first and starting then (Ray's default for one replica): a failed update leaves nothing running.
"""

from __future__ import annotations

import logging
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from threadserve.app.graph import Plan, fill
from threadserve.call import directory
from threadserve.call.blocking import wait_for
from threadserve.call.context import inheritance
from threadserve.call.request import ANSWERED
from threadserve.errors import ConfigError, ReplicaStartError, ServeError
from threadserve.handle import DeploymentHandle
from threadserve.router.router import Router
from threadserve.runtime.deadlock import DeadlockWatch
from threadserve.runtime.pool import Pool
from threadserve.runtime.resources import Ask, Ledger, asks_of
from threadserve.runtime.status import ApplicationStatus, ServeStatus
from threadserve.runtime.version import App, Lodger, Place, Quarters, Retirement, Version, overview

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from threadserve.call.isolation import Isolation
    from threadserve.concurrency.kernel import Kernel, Lock

__all__ = ["Controller"]

_log = logging.getLogger("threadserve")
_log.addHandler(logging.NullHandler())  # what is shown of it is for the application to say


L = TypeVar("L", bound=Lodger)


class Controller:
    """The apps of one runtime. Every member is safe from any thread."""

    def __init__(self, kernel: Kernel, resources: Mapping[str, object] | None = None) -> None:
        self._kernel = self.kernel = kernel
        self._ledger = self.ledger = Ledger(kernel, resources)
        self._lock = kernel.lock()
        self._apps: dict[str, App] = {}  # guarded by _lock
        self._turns: dict[str, _Turn] = {}  # guarded by _lock
        self._ways: dict[tuple[str, str], _Way] = {}  # guarded by _lock
        self._going: dict[Retirement, None] = {}  # guarded by _lock
        self._is_closed = False  # guarded by _lock
        self._lodger: Lodger | None = None  # guarded by _lock
        self._watch = DeadlockWatch(kernel, self._pools, self._is_being_replaced)
        kernel.errands.start()

    def __repr__(self) -> str:
        return f"<Controller of {', '.join(self._apps) or 'no apps'}>"

    # ---- deploy

    def deploy(
        self, plan: Plan, route_prefix: str | None = None, isolation: Isolation | None = None
    ) -> DeploymentHandle[Any]:
        """Bring up `plan`, put it in the place of the app's present version, and return the ingress handle. Blocks.

        With `isolation`, its deployments and their callers share no values.

        Raises:
            ConfigError: Another app has the route prefix.
            ReplicaStartError: A constructor failed; the app's present version, if there is one, goes on.
            ServeError: The runtime has been shut down, or this very app is starting and its own code asks.
        """
        if self._is_starting_itself(plan.app):
            raise ServeError(
                f"app {plan.app!r} cannot be run from the code of its own version that is just starting"
            )
        asks = asks_of(plan)
        if asks:
            self._ledger.check_together(asks)
        with self._turn(plan.app):
            version = Version(plan, f"{self._kernel.random.getrandbits(40):010x}", isolation)
            app, ways = self._begin(version, route_prefix)
            try:
                if asks:
                    self._reserve(app, version, asks)
                predecessors = self._predecessors(app)
                self._bring_up(app, version, ways, predecessors)
            except BaseException as error:
                self._roll_back(app, version, error)
                raise
            self._commit(app, version, route_prefix, predecessors)
        return ways[plan.ingress].handle

    def _begin(self, version: Version, route_prefix: str | None) -> tuple[App, dict[str, _Way]]:
        """Note that `version` is coming, and return the ways to its deployments."""
        plan = version.plan
        with self._lock:
            if self._is_closed:
                raise ServeError("the runtime has been shut down")
            for other in self._apps.values():
                if route_prefix is not None and other.name != plan.app and other.route_prefix == route_prefix:
                    raise ConfigError(
                        f"app {plan.app!r}: the route_prefix {route_prefix!r} belongs to app {other.name!r}; "
                        "give each app its own, or None for no HTTP"
                    )
            app = self._apps.setdefault(plan.app, App(plan.app))
            app.status = ApplicationStatus.DEPLOYING
            app.message, app.failed_deployment = "", None
            if app.version is None:
                app.route_prefix = route_prefix
            app.coming = version
            ways = {planned.name: self._way(plan.app, planned.name) for planned in plan.deployments}
        _log.info("deploying app %r: %s", plan.app, ", ".join(ways))
        return app, ways

    def _bring_up(
        self,
        app: App,
        version: Version,
        ways: Mapping[str, _Way],
        predecessors: Mapping[str, Sequence[Pool]],
    ) -> None:
        """Start the plan's deployments level by level; what has no predecessor gets requests at once."""
        plan = version.plan
        present = {pool.name for pool in app.version.pools} if app.version else set()
        for level in plan.levels():
            pools = [self._pool(version, name, ways) for name in level]
            version.levels.append(pools)
            for pool in pools:
                if pool.name not in present:
                    pool.open()
                pool.begin()
            failures = [error for pool in pools if (error := _failure(pool)) is not None]
            version.check()
            if failures:
                raise failures[0]
            for pool in pools:
                if pool.name not in present:
                    pool.seat(*predecessors.get(pool.name, ()))

    def _reserve(self, app: App, version: Version, asks: list[Ask]) -> None:
        """Reserve what the version asks for, all of it at once; where others hold it, wait until they let it go.

        What the app's own present version holds is not waited for: where both do not fit, the old version stops first.
        """
        place = Place()
        goes_first = app.version is not None  # nobody gets what it gives back in order to have it anew
        try:
            while asks:
                waiter = place.waiter = version.nap = self._kernel.waiter()
                version.check()
                reservations = self._ledger.reserve_together(asks, place, goes_first=goes_first)
                if reservations is not None:
                    version.reservations = reservations
                    return
                if app.version is not None:
                    self._make_room(app, app.version)
                    continue
                message = self._why_it_waits(asks, place)
                with self._lock:
                    app.message = message
                waiter.wait()
        finally:
            self._ledger.forget(place)
            with self._lock:
                app.message = ""

    def _why_it_waits(self, asks: list[Ask], place: Place) -> str:
        ahead = self._ledger.ahead_of(place)
        behind = f"; {', '.join(ahead)} asked before" if ahead else ""
        return f"waits for resources: it asks for {_worded(asks)}; {self._ledger!r}{behind}"

    def _make_room(self, app: App, old: Version) -> None:
        """Stop the present version before the new one starts, because the machine does not have room for both."""
        reason = "its app is being replaced, and there are not the resources for both"
        with self._lock:
            app.version = None
            app.message = "the old version was stopped first: there are not the resources for both"
            retirement = self._retirement(app.name, old, reason)
        _log.warning("app %r: %s", app.name, app.message)
        self._retire(retirement)
        if not self._asks_from_inside(app.name):
            retirement.wait()

    def _pool(self, version: Version, name: str, ways: Mapping[str, _Way]) -> Pool:
        plan = version.plan
        planned = plan.deployment(name)
        gpu_ids = [held.gpu_ids for held in version.reservations if held.deployment == f"{plan.app}/{name}"]
        arguments = (planned.init_args, planned.init_kwargs)
        if planned.children:
            arguments = fill(arguments, lambda child: ways[child].handle)
        return Pool(
            self._kernel,
            ways[name].router,
            planned,
            arguments,
            version.code_version,
            gpu_ids,
            version.isolation,
        )

    def _commit(
        self,
        app: App,
        version: Version,
        route_prefix: str | None,
        predecessors: Mapping[str, Sequence[Pool]],
    ) -> None:
        """Let the new version take the requests; the old one goes, in its own time."""
        old = app.version
        present = {pool.name for pool in old.pools} if old else set()
        for pool in version.pools:
            if pool.name in present:
                pool.open()
                pool.seat(*predecessors.get(pool.name, ()))
        with self._lock:
            app.version, app.coming, app.failed = version, None, None
            app.status, app.route_prefix = ApplicationStatus.RUNNING, route_prefix
            app.deployed_at = time.time()
            retirement = (
                None if old is None else self._retirement(app.name, old, "the app was redeployed without it")
            )
        _log.info("app %r is running", app.name)
        if retirement is not None:
            self._retire(retirement)

    def _predecessors(self, app: App) -> dict[str, list[Pool]]:
        """Return, by deployment, the pools that may have seats behind its router: of the present version, and of those that go.

        Good for the whole turn: nobody else makes versions go meanwhile.
        """
        with self._lock:
            versions = [retirement.version for retirement in self._going if retirement.app == app.name]
            versions += [app.version] if app.version else []
        found: dict[str, list[Pool]] = {}
        for pool in [pool for version in versions for pool in version.pools]:
            found.setdefault(pool.name, []).append(pool)
        return found

    def _roll_back(self, app: App, version: Version, error: BaseException) -> None:
        """Stop what was started of a version that did not come up, and say so in the status."""
        with self._lock:
            app.coming = None
            app.message = _explain(error)
            app.failed_deployment = next((pool.name for pool in version.pools if pool.has_failed), None)
            app.deployed_at = time.time()
            if app.version is None:
                app.status, app.route_prefix = ApplicationStatus.DEPLOY_FAILED, None
                app.failed = version.plan
            else:
                app.status = ApplicationStatus.RUNNING
            retirement = self._retirement(app.name, version, "its app failed to start")
        _log.warning("app %r could not be deployed: %s", app.name, error)
        self._retire(retirement)
        if not self._asks_from_inside(app.name):
            retirement.wait()

    # ---- delete

    def delete(self, name: str) -> None:
        """Take an app down; unknown names are no error. Blocks until it has drained, for its graceful timeout at most."""
        self._begin_delete(name)
        self._wait_for_what_goes(name)

    def shutdown(self, *, hurry: bool = False) -> None:
        """Take all apps down at once and wait for them, and for versions that were still going. May be repeated.

        With `hurry` nothing drains: what still runs is abandoned.
        """
        with self._lock:
            self._is_closed = True
            names = list(self._apps)
            coming = [app.coming for app in self._apps.values() if app.coming]
        for version in coming:
            version.call_off("the runtime is being shut down")
        if hurry:
            with self._lock:
                going = list(self._going)
            for retirement in going:
                retirement.hurry()
        for name in names:
            self._begin_delete(name, hurry=hurry)
        self._wait_for_what_goes()
        if self._lodger is not None:
            self._lodger.shutdown()
        elif not self._going:  # else it is a replica that asks, and has yet to end
            self._watch.end()

    def patience(self) -> float:
        """Return the longest graceful timeout of the apps that are up, in seconds; 0 when none is. Never blocks."""
        with self._lock:
            versions = [app.version for app in self._apps.values() if app.version]
        return max((version.patience for version in versions), default=0.0)

    def exit(self, patience_s: float, report: Callable[[list[str]], object]) -> list[str]:
        """Answer what is queued and let what runs be answered, within the longest graceful timeout; name what is left.

        For the end of the process: starts no thread, waits for no body that has been answered or cancelled. After
        `patience_s` seconds `report` is told once what is being waited for.
        """
        with self._lock:
            self._is_closed = True
            versions = [app.version for app in self._apps.values() if app.version]
        levels: list[Sequence[Quarters]] = [
            level for version in versions for level in reversed(version.levels)
        ]
        levels.append(self._lodgings())
        timeout = max((pool.graceful_shutdown_timeout_s for pool in levels[-1]), default=0.0)
        timeout = max(timeout, self.patience())
        start = self._kernel.now()
        is_reported = timeout <= patience_s
        for level in levels:
            for pool in level:
                pool.close("the process is exiting")
            for router, request in [
                (pool.router, request)
                for pool in level
                for seat in pool.seats
                for request in list(seat.running)
            ]:
                is_of_handle = request.adapter in (None, router.isolation)
                if request.channel is not None and is_of_handle and request.is_root:
                    request.cancel()  # its reader, the program, has come to its end
                if not is_reported and not wait_for(
                    request, max(0.0, start + patience_s - self._kernel.now())
                ):
                    is_reported = True
                    report(self.running())
                wait_for(request, max(0.0, start + timeout - self._kernel.now()))
        return self.running()

    def _wait_for_what_goes(self, name: str | None = None) -> None:
        """Wait for the versions that are on their way out, of one app or of all; from inside an app not for its own."""
        with self._lock:
            going = [retirement for retirement in self._going if name in (None, retirement.app)]
        for retirement in going:
            if not self._asks_from_inside(retirement.app):
                retirement.wait()

    def _begin_delete(self, name: str, *, hurry: bool = False) -> None:
        if self._is_starting_itself(name):
            self._kernel.spawn(f"{name} delete", lambda: self.delete(name))  # once it is up
            return
        waiting = self._apps.get(name)
        coming = None if waiting is None else waiting.coming
        if coming is not None and not coming.levels:
            coming.call_off("it was deleted while it waited for resources")
        with self._turn(name):
            with self._lock:
                app = self._apps.pop(name, None)
                for key in [key for key in self._ways if key[0] == name]:
                    del self._ways[key]
                retirement = (
                    None
                    if app is None or app.version is None
                    else self._retirement(name, app.version, "its app was deleted")
                )
            if app is None:
                return
            _log.info("deleting app %r", name)
            if retirement is not None:
                if hurry:
                    retirement.hurry()
                self._retire(retirement)

    def _retirement(self, app: str, version: Version, reason: str) -> Retirement:
        """Note that `version` goes; the lock is held, so that it is missed at no moment. ``_retire`` must follow."""
        retirement = Retirement(self._kernel, app, version, reason)
        self._going[retirement] = None
        return retirement

    def _retire(self, retirement: Retirement) -> None:
        """Take a version down on a thread of its own."""

        def run() -> None:
            retirement.run()
            with self._lock:
                del self._going[retirement]
            retirement.finish()

        try:
            self._kernel.spawn(f"{retirement.app} retire", run)
        except (
            RuntimeError
        ):  # no thread to be had: then on this one, for whoever waits must not wait for ever
            run()

    # ---- look-ups

    def handle(self, app: str, deployment: str) -> DeploymentHandle[Any]:
        """Return the handle of a deployment, always the same one while the app is not deleted."""
        with self._lock:
            return self._way(app, deployment).handle

    def app_handle(self, name: str) -> DeploymentHandle[Any]:
        """Return the ingress handle of an app.

        Raises:
            ConfigError: There is no such app.
        """
        plans = self._plans(name)
        if not plans:
            raise ConfigError(f"there is no app {name!r}; there are {sorted(self._apps) or 'none'}")
        return self.handle(name, plans[0].ingress)

    def deployment_handle(self, deployment: str, app: str) -> DeploymentHandle[Any]:
        """Return the handle of a deployment of an app.

        Raises:
            KeyError: There is no such app or deployment.
        """
        plans = self._plans(app)
        names = list(dict.fromkeys(planned.name for plan in plans for planned in plan.deployments))
        if deployment not in names:
            known = f"app {app!r} has {names}" if plans else f"there is no app {app!r}"
            raise KeyError(f"there is no deployment {deployment!r} in app {app!r}: {known}")
        return self.handle(app, deployment)

    def routes(self) -> dict[str, tuple[str, DeploymentHandle[Any]]]:
        """Return route prefix -> (app, ingress handle), of the apps that have a prefix and a version."""
        with self._lock:
            found = [
                (app.route_prefix, app.name, app.version.plan.ingress)
                for app in self._apps.values()
                if app.version
            ]
        return {
            prefix: (name, self.handle(name, ingress))
            for prefix, name, ingress in found
            if prefix is not None
        }

    def running(self) -> list[str]:
        """Name what runs at this moment, as ``app/deployment.method``."""
        seats = [(pool.router.name, seat) for pool in self._pools() for seat in pool.seats]
        return [
            f"{name}.{request.method}"
            for name, seat in seats
            for request in list(seat.running)
            if request.state is not ANSWERED
        ]

    def status(self) -> ServeStatus:
        """Return what there is."""
        with self._lock:
            apps = list(self._apps.values())
            return ServeStatus(applications={app.name: overview(app) for app in apps})

    def _plans(self, name: str) -> list[Plan]:
        """Return the plan of an app's present version, of the one that is coming, and of the one that failed instead."""
        with self._lock:
            app = self._apps.get(name)
            if app is None:
                return []
            plans = [version.plan for version in (app.version, app.coming) if version is not None]
            return plans or [app.failed] if app.failed else plans

    def _way(self, app: str, deployment: str) -> _Way:
        """Return the way to a deployment, by the router that old handles still hold, if there is one. The lock is held."""
        way = self._ways.get((app, deployment))
        if way is None:
            router = directory.find(app, deployment)
            if not isinstance(router, Router) or router.kernel is not self._kernel:
                router = Router(self._kernel, app, deployment)
                directory.register(router)
            router.on_wait = self._watch.notice
            way = self._ways[app, deployment] = _Way(router, DeploymentHandle(router))
        return way

    def _versions(self) -> list[Version]:
        """Return what runs, what is coming and what is on its way out; the lock is held."""
        versions = [
            version for app in self._apps.values() for version in (app.version, app.coming) if version
        ]
        return versions + [retirement.version for retirement in self._going]

    def _pools(self) -> list[Quarters]:
        with self._lock:
            pools: list[Quarters] = [pool for version in self._versions() for pool in version.pools]
        return [*pools, *self._lodgings()]

    # ---- what lives beside the apps

    def lodge(self, make: Callable[[Controller], L]) -> L:
        """Return what keeps replicas of its own on this runtime, making it if there is none yet.

        Raises:
            ServeError: The runtime has been shut down.
        """
        with self._lock:
            if self._is_closed:
                raise ServeError("the runtime has been shut down")
            if self._lodger is None:
                self._lodger = make(self)
            return cast("L", self._lodger)

    def look_after(self, router: Router) -> None:
        """Have waits of the bodies behind a lodger's `router` looked at, and forked processes refuse it."""
        router.on_wait = self._watch.notice
        directory.register(router)

    def _lodgings(self) -> Sequence[Quarters]:
        lodger = self._lodger
        return () if lodger is None else lodger.pools()

    def _is_being_replaced(self, router: Router) -> bool:
        """Whether a version is coming that has yet to put its replicas behind `router`. Takes no lock."""
        app = self._apps.get(router.app)
        coming = None if app is None else app.coming
        return coming is not None and coming.has_yet_to_seat(router.deployment)

    @contextmanager
    def _turn(self, name: str) -> Generator[None]:
        """Wait until nobody else changes the app, and let nobody until the end of the block."""
        with self._lock:
            turn = self._turns.setdefault(name, _Turn(self._kernel.turn()))
            turn.wanted += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.wanted -= 1
                if not turn.wanted:
                    del self._turns[name]

    @staticmethod
    def _asks_from_inside(app: str) -> bool:
        replica = inheritance.get()
        return replica is not None and replica.app_name == app

    def _is_starting_itself(self, name: str) -> bool:
        """Whether the code that asks is of a version that is being brought up, which waits for that code in turn."""
        replica, app = inheritance.get(), self._apps.get(name)
        coming = None if app is None else app.coming
        return (
            replica is not None
            and coming is not None
            and (replica.app_name, replica.code_version) == (name, coming.code_version)
        )


class _Way(NamedTuple):
    """How requests come to a deployment."""

    router: Router
    handle: DeploymentHandle[Any]


class _Turn:
    """Who may change an app."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.wanted = 0  # guarded by the controller's lock; those who have it or wait for it


def _worded(asks: list[Ask]) -> str:
    return ", ".join(f"{ask.replicas} x {ask.demand!r} for {ask.deployment}" for ask in asks)


def _failure(pool: Pool) -> ReplicaStartError | None:
    try:
        pool.wait_started()
    except ReplicaStartError as error:
        return error
    return None


def _explain(error: BaseException) -> str:
    """Return what the status says of a failed start: the message, and the traceback of the user's code."""
    cause = error.__cause__
    return str(error) if cause is None else f"{error}\n{''.join(traceback.format_exception(cause)).rstrip()}"
