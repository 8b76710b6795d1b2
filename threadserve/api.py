"""The verbs: run, start, status, delete, shutdown, and the ways to a handle.

All act on the one runtime of this process; in a thread that is under a simulated kernel, on the one of that kernel.
"""

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
from threadserve.concurrency.real import RealKernel, kernel_here
from threadserve.concurrency.threads import get_ident
from threadserve.errors import ConfigError, NotSupportedError, ServeError
from threadserve.runtime.controller import Controller
from threadserve.runtime.status import ServeStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from threadserve.app.deployment import Application
    from threadserve.app.graph import Plan
    from threadserve.call.isolation import Isolation
    from threadserve.concurrency.kernel import Kernel, WaiterLike
    from threadserve.handle import DeploymentHandle
    from threadserve.http.late import LateServer
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


_engaged: set[int] = set()
"""The threads that bring up or take down: who asks for more on one of them is a handler or finalizer that came between."""


class _Engaged:
    """The length of a ``with`` block in which the calling thread brings up or takes down."""

    def __enter__(self) -> None:
        self._is_outermost = get_ident() not in _engaged
        _engaged.add(get_ident())

    def __exit__(self, *exc_info: object) -> None:
        if self._is_outermost:
            _engaged.discard(get_ident())


class _Runtime:
    """The controller and, once it is wanted, the HTTP server."""

    def __init__(self, kernel: Kernel, resources: Mapping[str, object] | None) -> None:
        self.kernel = kernel
        self.controller = Controller(self.kernel, resources)
        self._lock = kernel.turn()  # held while the server is being started or found to be of no use
        self.server: Server | LateServer | None = None
        self.serves_all = False  # whether apps that name no prefix are served
        self._enders: list[WaiterLike] | None = []  # guarded by _lock; who shuts down, None when that is done
        self._is_real = isinstance(kernel, RealKernel)  # what is simulated is ended in other ways as well
        if self._is_real:
            inheritance.install()
            _interrupts.install()

    def serve_http(self, options: HTTPOptions) -> None:
        """Start the HTTP server, unless there is one. Blocks until it accepts connections."""
        if not self._is_real:
            raise NotSupportedError("there is no HTTP in a simulation: it has no sockets; call the handle")
        with _Engaged(), self._lock:
            if self.server is None:
                from threadserve.http.server import Server

                server = Server(self.kernel, options, self.controller.routes, self.controller.patience)
                server.start()
                self.server = server

    def serve_http_late(self, options: HTTPOptions) -> None:
        """Take the port, unless there is a server; what serves there starts with the first client."""
        if not self._is_real:
            raise NotSupportedError("there is no HTTP in a simulation: it has no sockets; call the handle")
        with _Engaged(), self._lock:
            if self.server is None:
                from threadserve.http.late import LateServer

                self.server = LateServer(
                    self.kernel, options, self.controller.routes, self.controller.patience
                )

    def stop_http(self) -> None:
        """Stop the server, if there is one."""
        with self._lock:
            server, self.server = self.server, None
        if server is not None:
            server.stop()

    def deploy(self, plan: Plan, prefix: str | None, isolation: Isolation | None) -> DeploymentHandle[Any]:
        """Bring an app up, over HTTP if it has a prefix; a server that was started for it alone goes if it fails."""
        if prefix is None:
            return self.controller.deploy(plan, None, isolation)
        self.serve_http(HTTPOptions())
        try:
            return self.controller.deploy(plan, prefix, isolation)
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

    def _end(self, server: Server | LateServer | None) -> None:
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
            if self._is_real:
                inheritance.uninstall()
                _interrupts.uninstall()
            with self._lock:
                enders, self._enders = self._enders or [], None
            for ender in enders:
                ender.set()


class _Ground:
    """A kernel, and the runtime that stands on it: one after the other, for the kernel's threads stay."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.runtime: _Runtime | None = None  # guarded by _lock
        self.blocked: list[WaiterLike] = []
        self._lock = kernel.lock()
        self._former: _Runtime | None = None  # guarded by _lock; the last one that was shut down, or is being

    def current(self, resources: Mapping[str, object] | None = None) -> _Runtime:
        """Return the runtime, starting it, with `resources`, if there is none."""
        with self._lock:
            if self.runtime is None:
                self.runtime = _Runtime(self.kernel, resources)
            return self.runtime

    def shutdown(self) -> None:
        """End the runtime, if there is one, or wait for the end of the last one."""
        with self._lock:
            runtime = self.runtime or self._former
            self.runtime, self._former = None, runtime
        if runtime is not None:
            runtime.shutdown()
        while self.blocked:
            self.blocked.pop().set()


_interrupts = Interrupts()
_numbers = itertools.count(1)
_process = _Ground(RealKernel())
_simulated: dict[Kernel, _Ground] = {}  # guarded by _simulated_lock
_simulated_lock = RealKernel.lock()


def _ground() -> _Ground:
    """Return what the calling thread stands on."""
    kernel = kernel_here()
    if kernel is None:
        return _process
    with _simulated_lock:
        ground = _simulated.get(kernel)
        if ground is None:
            ground = _simulated[kernel] = _Ground(kernel)
        return ground


def forget(kernel: Kernel) -> None:
    """Let go of the runtime of a simulation that is over; for the simulator."""
    with _simulated_lock:
        _simulated.pop(kernel, None)


def _current(resources: Mapping[str, object] | None = None) -> _Runtime:
    """Return the runtime, starting it, with `resources`, if there is none."""
    directory.refuse_beyond("serve.run")
    return _ground().current(resources)


def controller() -> Controller:
    """Return the controller of the one runtime of this process, starting it; for the rooms above."""
    return _current().controller


def run(
    target: Application[T],
    blocking: bool = False,
    name: str = "default",
    route_prefix: str | Unset | None = UNSET,
    logging_config: object = None,
    *,
    strict: bool = False,
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
        strict: Keep deployments and callers apart as a cluster would: arguments, results and bind arguments arrive as
            copies, made by cloudpickle, and a method that changes an argument is reported with a RuntimeWarning.

    Raises:
        TypeError: `target` is no application, for example a deployment without ``.bind()``.
        ConfigError: The name, the prefix or the graph is wrong, or the prefix belongs to another app. With `strict`:
            a class, function or bind argument could not be shipped to a cluster; says which part of it cannot.
        ReplicaStartError: A constructor failed; the user's exception is its ``__cause__``.
    """
    _check_name(name)
    plan = build(target, name)
    prefix = check_prefix(name, route_prefix)
    runtime = _current()
    if isinstance(prefix, Unset):
        prefix = "/" if runtime.serves_all else None
    isolation = _isolation_for(plan) if strict else None
    with _Engaged():
        handle = runtime.deploy(plan, prefix, isolation)
    if blocking:
        _block(runtime)
    return handle


def begin(resources: Mapping[str, object]) -> None:
    """Start the runtime with these resources, if there is none; for ``as_ray``."""
    _current(resources)


def run_isolated(
    target: Application[Any], name: str, route_prefix: str | None, isolation: Isolation
) -> DeploymentHandle[Any]:
    """Run an app whose values pass through `isolation`; for ``as_ray``. HTTP is for ``serve_http_late``. See ``run``."""
    plan = build(target, name)
    with _Engaged():
        return _current().controller.deploy(plan, route_prefix, isolation)


def serve_http_late(options: HTTPOptions) -> None:
    """Take the port now, and start the server when the first client comes; for ``as_ray``. Nothing where one serves.

    Raises:
        ServeError: The port is taken.
    """
    _current().serve_http_late(options)


def delete_all() -> None:
    """Stop serving HTTP and take all apps down; the runtime goes on, with its tasks and actors. For ``as_ray``."""
    runtime = _ground().runtime
    if runtime is not None:
        with _Engaged():
            runtime.stop_http()
            for name in runtime.controller.status().applications:
                runtime.controller.delete(name)


def wait_for_shutdown() -> None:
    """Serve until Ctrl-C, or until a shutdown from elsewhere; for ``as_ray``."""
    _block(_current())


def _isolation_for(plan: Plan) -> Isolation:
    """Return what keeps the deployments of `plan` apart; raises ConfigError for what could not be shipped."""
    from threadserve.call.isolation import Isolation, refuse_unshippable

    for planned in plan.deployments:
        what = f"app {plan.app!r}: deployment {planned.name!r}"
        refuse_unshippable(what, getattr(planned.target, "__qualname__", planned.name), planned.target)
        for index, value in enumerate(planned.init_args):
            refuse_unshippable(what, f"bind argument {index}", value)
        for name, value in planned.init_kwargs.items():
            refuse_unshippable(what, f"bind argument {name}", value)
    return Isolation()


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
        strict: As in ``run``.
    """

    def __init__(
        self,
        target: Application[T],
        *,
        name: str | None = None,
        route_prefix: str | None = None,
        strict: bool = False,
    ) -> None:
        self._target = target
        self._is_named = name is not None
        self._name = f"app-{next(_numbers)}" if name is None else name
        self._prefix = route_prefix
        self._strict = strict

    def __enter__(self) -> DeploymentHandle[T]:
        try:
            return run(self._target, name=self._name, route_prefix=self._prefix, strict=self._strict)
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
    runtime = _ground().runtime
    server = None if runtime is None else runtime.server
    return None if server is None else server.url


def delete(name: str) -> None:
    """Take an app down: running requests finish, queued ones get DeploymentUnavailableError.

    Blocks until it is gone, for the longest ``graceful_shutdown_timeout_s`` of the app at most; from inside a replica of
    the app it does not wait, nor in a signal handler or finalizer that has interrupted ``run``, ``delete`` and the
    like, or a finalizer that has interrupted a call. An unknown name is no error. Any thread.
    """
    if _is_left_to_a_thread(lambda: delete(name)):
        return
    runtime = _ground().runtime
    if runtime is not None:
        with _Engaged():
            runtime.controller.delete(name)


def shutdown() -> None:
    """Take all apps down, as ``delete`` does, and stop serving HTTP. Blocks. May be repeated; ``run`` starts anew."""
    if _is_left_to_a_thread(shutdown):
        return
    with _Engaged():
        _ground().shutdown()


def _is_left_to_a_thread(verb: Callable[[], object]) -> bool:
    """Leave `verb` to a thread, and say so, where a handler or finalizer asks for it and its wait could not end."""
    if get_ident() not in _engaged and not is_our_code_interrupted():
        return False
    kernel = _process.kernel
    kernel.errands.post(lambda: kernel.spawn("threadserve signalled", verb))
    return True


def status() -> ServeStatus:
    """Return the state of every app. Never blocks; empty when nothing was run."""
    runtime = _ground().runtime
    return ServeStatus() if runtime is None else runtime.controller.status()


def get_app_handle(name: str) -> DeploymentHandle[Any]:
    """Return the ingress handle of a running app. Never blocks.

    Raises:
        ServeError: There is no such app.
    """
    directory.refuse_beyond("serve.get_app_handle")
    runtime = _ground().runtime
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
    runtime = _ground().runtime
    if runtime is None:
        raise ServeError(f"there is no app {app_name!r}: nothing has been run in this process")
    return runtime.controller.deployment_handle(deployment_name, app_name)


def _block(runtime: _Runtime) -> None:
    """Wait for Ctrl-C, or for a shutdown from elsewhere."""
    waiter = runtime.kernel.waiter()
    ground = _ground()
    ground.blocked.append(waiter)
    try:
        if runtime is ground.runtime:  # else it was shut down before it could have told the waiter
            waiter.wait()
    except KeyboardInterrupt:
        shutdown()
        raise


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"the name of an app must be a non-empty string, not {name!r}")


def check_prefix(name: str, prefix: str | Unset | None) -> str | Unset | None:
    """Return the route prefix of app `name`, or raise ConfigError."""
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
    runtime = _process.runtime
    if runtime is not None and not _is_interrupted():
        try:
            left = runtime.controller.exit(_EXIT_PATIENCE_S, lambda names: _tell("waiting for", names))
            if left:
                _tell("gave up", left)
        except (KeyboardInterrupt, SystemExit):  # by a signal handler: do not wait any more
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
    global _process, _simulated_lock
    if _process.runtime is not None:
        inheritance.uninstall()
    _interrupts.forget_all()
    _process, _simulated_lock = _Ground(RealKernel()), RealKernel.lock()
    directory.disown_after_fork()


os.register_at_fork(after_in_child=_after_fork)
