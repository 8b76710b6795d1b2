"""The verbs: run, start, status, delete, shutdown, and the ways to a handle. All act on the one runtime of this process."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from threadserve.app.config import UNSET, HTTPOptions, Unset
from threadserve.app.graph import build
from threadserve.call import directory
from threadserve.call.context import inheritance
from threadserve.concurrency.interrupts import Interrupts, is_our_code_interrupted
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ConfigError, NotSupportedError, ServeError
from threadserve.runtime.controller import Controller
from threadserve.runtime.status import ServeStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from threadserve.app.deployment import Application
    from threadserve.app.graph import Plan
    from threadserve.concurrency.kernel import WaiterLike
    from threadserve.handle import DeploymentHandle
    from threadserve.http.server import Server

__all__ = [
    "RunTarget",
    "controller",
    "delete",
    "get_app_handle",
    "get_deployment_handle",
    "run",
    "run_many",
    "running",
    "shutdown",
    "start",
    "status",
]

T = TypeVar("T")

_EXIT_CLOSE_S = 5.0
_EXIT_PATIENCE_S = 1.0


class RunTarget(NamedTuple):
    """One app for ``run_many``."""

    target: Application[Any]
    name: str = "default"
    route_prefix: str | Unset | None = UNSET


class _Runtime:
    """The controller and, once it is wanted, the HTTP server."""

    def __init__(self, resources: Mapping[str, object] | None) -> None:
        self.kernel = _kernel
        self.controller = Controller(self.kernel, resources)
        self._lock = RealKernel.lock()  # held while the server is being started or found to be of no use
        self.server: Server | None = None
        self.serves_all = False  # whether apps that name no prefix are served
        self._enders: list[WaiterLike] | None = []  # guarded by _lock; who shuts down, None when that is done
        inheritance.install()
        _interrupts.install()

    def serve_http(self, options: HTTPOptions) -> None:
        """Start the HTTP server, unless there is one. Blocks until it accepts connections."""
        with self._lock:
            if self.server is None:
                from threadserve.http.server import Server

                server = Server(self.kernel, options, self.controller.routes, self.controller.patience)
                server.start()
                self.server = server

    def deploy(self, plan: Plan, prefix: str | None) -> DeploymentHandle[Any]:
        """Bring an app up, over HTTP if it has a prefix; a server that was started for it alone goes if it fails."""
        if prefix is None:
            return self.controller.deploy(plan, None)
        if plan.deployment(plan.ingress).config.replica_type == "interpreter":
            raise NotSupportedError(
                f"app {plan.app!r}: the ingress {plan.ingress!r} has replica_type='interpreter', and HTTP requests do not "
                "cross into other interpreters; let a deployment on threads be the ingress, and call this one from there"
            )
        self.serve_http(HTTPOptions())
        try:
            return self.controller.deploy(plan, prefix)
        except BaseException:
            server = None
            with self._lock:
                if not self.serves_all and not self.controller.routes():
                    server, self.server = self.server, None
            if server is not None:
                server.stop()
            raise

    def shutdown(self) -> None:
        """Stop the server, then the apps. Who comes second waits for the first, unless in a replica, which is waited for."""
        waiter = self.kernel.waiter()
        with self._lock:
            is_first = self._enders == []
            if self._enders is None:
                waiter.set()
            else:
                self._enders.append(waiter)
            server, self.server = self.server, None
        if is_first:
            self._end(server)
        elif inheritance.get() is None:
            waiter.wait()
            self.controller.shutdown()  # the first may have been in a replica, and has not waited for that

    def _end(self, server: Server | None) -> None:
        try:
            if server is not None:
                server.stop()
        except BaseException:  # Ctrl-C during the drain: the rest of it is skipped
            self._end_apps(hurry=True)
            raise
        self._end_apps()

    def _end_apps(self, *, hurry: bool = False) -> None:
        try:
            self.controller.shutdown(hurry=hurry)
        finally:
            inheritance.uninstall()
            _interrupts.uninstall()
            with self._lock:
                enders, self._enders = self._enders or [], None
            for ender in enders:
                ender.set()


_kernel = RealKernel()  # for one runtime after the other: its threads stay
_interrupts = Interrupts()
_lock = RealKernel.lock()
_runtime: _Runtime | None = None  # guarded by _lock
_former: _Runtime | None = None  # guarded by _lock; the last one that was shut down, or is being
_numbers = itertools.count(1)
_blocked: list[WaiterLike] = []


def _current(resources: Mapping[str, object] | None = None) -> _Runtime:
    """Return the runtime, starting it, with `resources`, if there is none."""
    global _runtime
    directory.refuse_beyond("serve.run")
    with _lock:
        if _runtime is None:
            _runtime = _Runtime(resources)
        return _runtime


def controller() -> Controller:
    """Return the controller of the one runtime of this process, starting it; for the rooms above."""
    return _current().controller


def run(
    target: Application[T],
    blocking: bool = False,
    name: str = "default",
    route_prefix: str | Unset | None = UNSET,
    logging_config: object = None,
) -> DeploymentHandle[T]:
    """Bring an app up and return the handle of its ingress, the deployment that was bound last.

    An app of the same name is replaced: the new version comes up before the old one goes, handles stay good, and nothing
    in flight is lost. If the new version cannot start, the old one stays.

    Blocks until every replica is up; with `blocking`, until Ctrl-C. Any thread, a replica's own included.

    Args:
        target: What ``.bind()`` returned.
        blocking: Serve until Ctrl-C, then shut down and raise KeyboardInterrupt.
        name: Names the app.
        route_prefix: Serve HTTP under this prefix, on 127.0.0.1:8000 unless ``start`` said otherwise. None for no HTTP.
            When it is not given: "/" if ``start`` was called, else no HTTP.
        logging_config: Accepted for Ray Serve's sake; without effect.

    Raises:
        TypeError: `target` is no application, for example a deployment without ``.bind()``.
        ConfigError: The name, the prefix or the graph is wrong, or the prefix belongs to another app.
        ReplicaStartError: A constructor failed; the user's exception is its ``__cause__``.
    """
    _check_name(name)
    plan = build(target, name)
    prefix = _check_prefix(name, route_prefix)
    runtime = _current()
    if isinstance(prefix, Unset):
        prefix = "/" if runtime.serves_all else None
    handle = runtime.deploy(plan, prefix)
    if blocking:
        _block(runtime)
    return handle


def run_many(targets: Sequence[RunTarget], blocking: bool = False) -> list[DeploymentHandle[Any]]:
    """Bring several apps up, one after the other, and return their ingress handles in the same order. See ``run``.

    Raises:
        ConfigError: There are no targets, or two have one name.
        TypeError: One is no RunTarget.
    """
    if not targets:
        raise ConfigError("run_many needs at least one RunTarget")
    for target in targets:
        if not isinstance(target, RunTarget):
            raise TypeError(
                f"run_many takes a list of serve.RunTarget(application, name=...), not of {target!r}"
            )
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        raise ConfigError(f"run_many: each app needs a name of its own, not {names}")
    handles = [run(target.target, name=target.name, route_prefix=target.route_prefix) for target in targets]
    if blocking:
        _block(_current())
    return handles


class running(Generic[T]):  # noqa: N801 - used like a function
    """Run an app for the length of a ``with`` block: ``with serve.running(app) as handle: ...``.

    Entering blocks as ``run`` does, leaving as ``delete`` does. May be nested and used from several threads.

    Args:
        target: What ``.bind()`` returned.
        name: Names the app; without it the app gets a name that no other has, and nothing stays of it if it does not start.
        route_prefix: As in ``run``.
    """

    def __init__(
        self, target: Application[T], *, name: str | None = None, route_prefix: str | None = None
    ) -> None:
        self._target = target
        self._is_named = name is not None
        self._name = f"app-{next(_numbers)}" if name is None else name
        self._prefix = route_prefix

    def __enter__(self) -> DeploymentHandle[T]:
        try:
            return run(self._target, name=self._name, route_prefix=self._prefix)
        except BaseException:
            if not self._is_named:
                delete(self._name)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        delete(self._name)


def start(
    http_options: HTTPOptions | dict[str, Any] | None = None,
    resources: Mapping[str, object] | None = None,
    **accepted: Any,
) -> None:
    """Start the runtime and its HTTP server; later apps are served under "/" unless ``run`` says otherwise.

    Blocks until the server accepts connections. When it runs already nothing changes.

    Args:
        http_options: Where to serve; 127.0.0.1:8000 without. Port 0 takes any free port.
        resources: What deployments can reserve by name through ``ray_actor_options``, such as ``{"licences": 2}``; also
            says how many "CPU", "GPU" and bytes of "memory" there are, where the machine is not to be asked.
        accepted: Ray Serve's proxy_location, grpc_options, logging_config, tracing_config: without effect.

    Raises:
        ConfigError: An option is wrong.
        ServeError: The port is taken.
    """
    known = ("proxy_location", "grpc_options", "logging_config", "tracing_config", "controller_options")
    for option in accepted:
        if option not in known:
            raise TypeError(
                f"start() has no option {option!r}; known are http_options, resources, {', '.join(known)}"
            )
    options = HTTPOptions.of(http_options)
    runtime = _current(resources)
    runtime.serve_http(options)
    runtime.serves_all = True


def http_url() -> str | None:
    """Return where HTTP is served, such as ``http://127.0.0.1:8000``; None when it is not."""
    runtime = _runtime
    server = None if runtime is None else runtime.server
    return None if server is None else server.url


def delete(name: str) -> None:
    """Take an app down: running requests finish, queued ones get DeploymentUnavailableError.

    Blocks until it is gone, for the longest ``graceful_shutdown_timeout_s`` of the app at most; from inside a replica of
    the app it does not wait, nor in a signal handler that has interrupted threadserve itself. An unknown name is no
    error. Any thread.
    """
    if _is_left_to_a_thread(lambda: delete(name)):
        return
    runtime = _runtime
    if runtime is not None:
        runtime.controller.delete(name)


def shutdown() -> None:
    """Take all apps down, as ``delete`` does, and stop serving HTTP. Blocks. May be repeated; ``run`` starts anew."""
    global _runtime, _former
    if _is_left_to_a_thread(shutdown):
        return
    with _lock:
        runtime = _runtime or _former
        _runtime, _former = None, runtime
    if runtime is not None:
        runtime.shutdown()
    while _blocked:
        _blocked.pop().set()


def _is_left_to_a_thread(verb: Callable[[], object]) -> bool:
    """Leave `verb` to a thread, and say so, where a signal handler asks for it and its wait could not end."""
    if not is_our_code_interrupted():
        return False
    _kernel.errands.post(lambda: _kernel.spawn("threadserve signalled", verb))
    return True


def status() -> ServeStatus:
    """Return the state of every app. Never blocks; empty when nothing was run."""
    runtime = _runtime
    return ServeStatus() if runtime is None else runtime.controller.status()


def get_app_handle(name: str) -> DeploymentHandle[Any]:
    """Return the ingress handle of a running app. Never blocks.

    Raises:
        ServeError: There is no such app.
    """
    directory.refuse_beyond("serve.get_app_handle")
    runtime = _runtime
    if runtime is None:
        raise ServeError(f"there is no app {name!r}: nothing has been run in this process")
    return runtime.controller.app_handle(name)


def get_deployment_handle(deployment_name: str, app_name: str | None = None) -> DeploymentHandle[Any]:
    """Return the handle of any deployment of a running app. Never blocks.

    Args:
        deployment_name: The name of the deployment.
        app_name: The name of the app; inside a replica its own app is the default.

    Raises:
        ServeError: Nothing runs, or no app was named outside of a replica.
        KeyError: There is no such deployment.
    """
    replica = inheritance.get()
    if app_name is None:
        if replica is None:
            raise ServeError(
                f"get_deployment_handle({deployment_name!r}): outside of a replica app_name is needed"
            )
        app_name = str(replica.app_name)
    directory.refuse_beyond("serve.get_deployment_handle")
    runtime = _runtime
    if runtime is None:
        raise ServeError(f"there is no app {app_name!r}: nothing has been run in this process")
    return runtime.controller.deployment_handle(deployment_name, app_name)


def _block(runtime: _Runtime) -> None:
    """Wait for Ctrl-C, or for a shutdown from elsewhere."""
    waiter = runtime.kernel.waiter()
    _blocked.append(waiter)
    try:
        if runtime is _runtime:  # else it was shut down before it could have told the waiter
            waiter.wait()
    except KeyboardInterrupt:
        shutdown()
        raise


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"the name of an app must be a non-empty string, not {name!r}")


def _check_prefix(name: str, prefix: str | Unset | None) -> str | Unset | None:
    if prefix is None or isinstance(prefix, Unset):
        return prefix
    if not isinstance(prefix, str):
        raise ConfigError(f"app {name!r}: route_prefix must be a string or None, not {prefix!r}")
    if (
        not prefix.startswith("/")
        or (prefix != "/" and prefix.endswith("/"))
        or "{" in prefix
        or "}" in prefix
    ):
        raise ConfigError(
            f"app {name!r}: route_prefix must start with '/', must not end with one (but for '/' itself) "
            f"and has no braces, unlike {prefix!r}"
        )
    return prefix


@atexit.register
def _at_exit() -> None:
    """Let what runs be answered, for a while; the threads are daemons and end with the process."""
    runtime = _runtime
    if runtime is not None and not _is_interrupted():
        try:
            left = runtime.controller.exit(_EXIT_PATIENCE_S, lambda names: _tell("waiting for", names))
            if left:
                _tell("gave up", left)
        except KeyboardInterrupt:
            pass
    interpreters = sys.modules.get("threadserve.replica.interpreter")
    if (
        interpreters is not None
    ):  # Python would warn of those that nobody has closed, and end them under their threads
        interpreters.close_all(_EXIT_CLOSE_S)


def _is_interrupted() -> bool:
    """Whether the program ends because nobody caught a Ctrl-C; at a prompt that is just the last thing that was shown."""
    return getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1")


def _tell(verb: str, names: list[str]) -> None:
    print(f"threadserve: exiting, {verb} {len(names)} running: {', '.join(names)}", file=sys.stderr)


def _after_fork() -> None:
    """A forked child has none of the threads: what it inherited refuses, and it may run apps of its own."""
    global _lock, _kernel, _runtime, _former
    if _runtime is not None:
        inheritance.uninstall()
        _interrupts.uninstall()
    _lock, _kernel = RealKernel.lock(), RealKernel()
    _runtime = _former = None
    _blocked.clear()
    directory.disown_after_fork()


os.register_at_fork(after_in_child=_after_fork)
