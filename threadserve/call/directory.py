"""Where handles find routers: by app and deployment, also when the handle was pickled or is older than the app."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from threadserve.call.context import REPLICA, replica_here
from threadserve.call.request import CURRENT
from threadserve.concurrency.outcome import Error
from threadserve.concurrency.real import RealKernel, kernel_here
from threadserve.errors import DeploymentUnavailableError, NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.call.request import Request, Router
    from threadserve.concurrency.kernel import Kernel, Lock

__all__ = [
    "Absent",
    "Unmanned",
    "disown_after_fork",
    "find",
    "look_beyond",
    "refuse_after_fork",
    "refuse_beyond",
    "register",
    "registered",
]

_lock = RealKernel.lock()
_routers: weakref.WeakValueDictionary[tuple[Kernel | None, str, str], Router] = (
    weakref.WeakValueDictionary()
)  # guarded by _lock; by the kernel that the thread is under: a simulated app hides no real one of the same name


def register(router: Router) -> None:
    """Make `router` the one that handles find under its app and deployment."""
    with _lock:
        _routers[kernel_here(), router.app, router.deployment] = router


def find(app: str, deployment: str) -> Router | None:
    """Return the router of a deployment, None where there never was one."""
    with _lock:
        router = _routers.get((kernel_here(), app, deployment))
    return _beyond(app, deployment) if router is None and _beyond is not None else router


def look_beyond(find: Callable[[str, str], Router]) -> None:
    """Have `find` asked for what is not here: where this is a subinterpreter, the apps are in another one."""
    global _beyond
    _beyond = find


def refuse_beyond(what: str) -> None:
    """Raise NotSupportedError where this is a subinterpreter: the apps are in another one."""
    if _beyond is not None:
        raise NotSupportedError(
            f"{what} is not possible in an interpreter replica: apps belong to the main interpreter; "
            "pass handles to the constructor, or use replica_type='thread' for this deployment"
        )


_beyond: Callable[[str, str], Router] | None = None


class Unmanned:
    """What routers have in common that run nothing: their requests are answered by others."""

    def watch(self) -> None:
        """Nobody waits here."""

    def leave(self, request: Request) -> None:
        """Nothing is on the books here."""

    def help(self, request: Request, waiting: Request | None) -> None:
        """There is nothing to run."""

    def run_here(self, request: Request, waiting: Request | None, *, is_due: bool = False) -> None:
        """There is nothing to run."""

    def visit(self, request: Request) -> bool:
        """There is nothing to run."""
        return False


def registered(app: str | None = None) -> list[Router]:
    """Return the routers of an app, or of all apps, that are in use, ordered by name."""
    kernel = kernel_here()
    with _lock:
        found = [router for key, router in _routers.items() if key[0] is kernel and app in (None, router.app)]
    return sorted(found, key=lambda router: router.name)


class Absent(Unmanned):
    """The router of a deployment that is not here: answers every request with DeploymentUnavailableError."""

    def __init__(self, app: str, deployment: str, reason: str) -> None:
        self.kernel: Kernel = RealKernel()
        self.lock: Lock = self.kernel.lock()
        self.app = app
        self.deployment = deployment
        self.name = f"{app}/{deployment}"
        self.stream_buffer_size = 1.0
        self._reason = reason

    def assign(self, request: Request) -> None:
        """Answer `request`, which may have been meant for another router."""
        request.router = self
        error = DeploymentUnavailableError(
            f"{self.name} is not available: {self._reason}",
            deployment=self.name,
            request_id=request.request_id,
        )
        request.answer(Error(error))


class _LostLock:
    """The lock of a router in a forked child: its threads are not there, so waiting on it would never end."""

    def __enter__(self) -> bool:
        raise DeploymentUnavailableError(f"this call is not available: {FORKED}")

    def __exit__(self, *exc_info: object) -> None:
        """Never entered."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self.__enter__()

    def release(self) -> None:
        """Never taken."""


FORKED = (
    "this process was forked from the one that runs it, and threads do not survive a fork; "
    "call serve.run in the child, or start the process with the spawn method"
)
"""Why handles and responses that a forked child inherits refuse."""


def disown_after_fork() -> None:
    """Make every router that this forked process inherited refuse, and forget them."""
    global _lock, _routers
    inherited = list(_routers.values())
    _lock, _routers = RealKernel.lock(), weakref.WeakValueDictionary()
    for router in inherited:
        absent = Absent(router.app, router.deployment, FORKED)
        router.assign = absent.assign  # type: ignore[method-assign]
        router.kernel, router.lock = absent.kernel, _LostLock()  # the old kernel's threads are gone as well
    replica = replica_here()
    CURRENT.set(None)
    if replica is not None:  # to which the child still belongs, though its request is the parent's
        REPLICA.set(replica)


def refuse_after_fork(router: Router) -> None:
    """Raise DeploymentUnavailableError if this process inherited `router` in a fork.

    For what would wait, or take another lock, before it came to the router's own.
    """
    if type(router.lock) is _LostLock:
        router.lock.acquire()
