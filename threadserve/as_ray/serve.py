"""``ray.serve``: the verbs by Ray's rules, over ours."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from threadserve import api
from threadserve.app.application import binding_of, is_application
from threadserve.app.config import HTTPOptions as OurHTTPOptions
from threadserve.app.deployment import is_deployment
from threadserve.as_ray.declare import sealed
from threadserve.as_ray.errors import RayServeException, wrapped
from threadserve.as_ray.handle import DeploymentHandle, face_of
from threadserve.as_ray.isolation import ISOLATION
from threadserve.as_ray.schema import HTTPOptions
from threadserve.call.context import ReplicaContext, inheritance
from threadserve.call.request import current_request
from threadserve.concurrency.loops import LoopWaiter, make_future
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ConfigError, DeployError, NotSupportedError, ServeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from threadserve.runtime.status import ApplicationStatusOverview

__all__ = [
    "RequestContext",
    "RunTarget",
    "ServeStatus",
    "_get_serve_request_context",
    "_run",
    "_run_many",
    "batch",
    "delete",
    "get_app_handle",
    "get_deployment_handle",
    "get_replica_context",
    "get_trace_context",
    "ingress",
    "multiplexed",
    "run",
    "run_many",
    "settings",
    "shutdown",
    "shutdown_async",
    "start",
    "status",
]


class Settings:
    """How Ray is stood in for in this process."""

    def __init__(self) -> None:
        self.opens_http = True
        """Whether the first app opens HTTP, as with Ray; a test suite does so only where it asks."""
        self.inline = True
        """Whether a body may run on the thread that waits for it."""
        self.is_serving = False
        """Whether Serve has been started."""
        self.http: OurHTTPOptions | None = OurHTTPOptions()
        """Where HTTP is served; None for not at all."""
        self.local: set[str] = set()
        """Names of the apps that run in Ray's local testing mode."""


settings = Settings()


class RunTarget(NamedTuple):
    """One app for ``run_many``."""

    target: Any
    name: str = "default"
    route_prefix: str | None = "/"
    logging_config: Any = None
    external_scaler_enabled: bool = False


@dataclass(frozen=True)
class ServeStatus:
    """All apps at one moment."""

    proxies: dict[str, Any] = field(default_factory=dict)
    applications: dict[str, ApplicationStatusOverview] = field(default_factory=dict)
    target_capacity: float | None = None


# ---- up and down


def start(
    proxy_location: Any = None,
    http_options: Any = None,
    grpc_options: Any = None,
    logging_config: Any = None,
    tracing_config: Any = None,
    controller_options: Any = None,
    **_: Any,
) -> None:
    """Start Serve, and HTTP with it, unless it is running. See Ray."""
    if settings.is_serving:
        if http_options is not None:
            _warn("Serve is running already: its HTTP options stay as they are")
        return
    options = HTTPOptions.of(http_options)
    is_disabled = (
        "Disabled" in (str(proxy_location), getattr(proxy_location, "value", "")) or options.is_disabled
    )
    settings.http = None if is_disabled else options.ours
    settings.is_serving = True
    if http_options is not None or settings.opens_http:
        _open_http()


def _open_http() -> None:
    """Open HTTP beside the apps: where the port is taken, their handles work all the same."""
    if settings.http is None or api.http_url() is not None:
        return
    try:
        api.serve_http_late(settings.http)
    except ServeError as error:
        _warn(
            f"{error}. Handles work; HTTP does not, until serve.shutdown() and serve.start(http_options=...)"
        )
        settings.http = None


def run(
    target: Any,
    blocking: bool = False,
    name: str = "default",
    route_prefix: str | None = "/",
    logging_config: Any = None,
    _local_testing_mode: bool = False,
    external_scaler_enabled: bool = False,
    controller_options: Any = None,
) -> DeploymentHandle[Any]:
    """Run an app and return the handle of its ingress. See Ray.

    Raises:
        RayServeException: The name is empty, or (as a RayTaskError) the route prefix is another app's.
        TypeError: `target` is no application.
        ValueError: The route prefix is malformed.
        RuntimeError: A replica could not start; ``serve.status()`` says why.
    """
    if not name:
        raise RayServeException("Application name must a non-empty string.")
    if not is_application(target):
        hint = "; pass what .bind() returns" if is_deployment(target) else ""
        raise TypeError(
            f"`serve.run` expects an `Application` returned by `Deployment.bind()`{hint}, not {target!r}"
        )
    target = sealed(target, inline=settings.inline)
    _refuse_what_is_missing(target)
    if not _local_testing_mode:
        settings.is_serving = True
        if route_prefix is not None and settings.opens_http:
            _open_http()
    prefix = None if _local_testing_mode else route_prefix
    handle = _deploy(target, name, route_prefix, prefix)
    (settings.local.add if _local_testing_mode else settings.local.discard)(name)
    if blocking:
        api.wait_for_shutdown()
    return handle


def _deploy(target: Any, name: str, given: str | None, prefix: str | None) -> DeploymentHandle[Any]:
    api.check_prefix(name, given)
    try:
        return face_of(api.run_isolated(target, name, prefix, ISOLATION))
    except ConfigError as error:
        if "belongs to app" not in str(error):
            raise
        refused = RayServeException(str(error))
        raise wrapped("ServeController.deploy_applications", refused, lambda same: same) from None
    except DeployError as error:
        failed = api.status().applications[name].deployments
        names = [each for each, seen in failed.items() if seen.status == "DEPLOY_FAILED"] or list(failed)
        raise RuntimeError(
            f"Deploying application {name} failed: Failed to update the deployments {names}. "
            f"({error}; the whole traceback is in serve.status())"
        ) from None


def run_many(
    targets: Sequence[RunTarget],
    blocking: bool = False,
    wait_for_ingress_deployment_creation: bool = True,
    wait_for_applications_running: bool = True,
    **_: Any,
) -> list[DeploymentHandle[Any]]:
    """Run several apps and return their ingress handles in the same order. See Ray."""
    if not targets:
        raise ValueError("No applications provided.")
    handles = [run(each.target, name=each.name, route_prefix=each.route_prefix) for each in targets]
    if blocking:
        api.wait_for_shutdown()
    return handles


def _run(target: Any, *, _blocking: bool = True, **options: Any) -> DeploymentHandle[Any]:
    return run(target, **options)


def _run_many(targets: Sequence[RunTarget], **options: Any) -> list[DeploymentHandle[Any]]:
    return run_many(targets, **options)


def delete(name: str, _blocking: bool = True) -> None:
    """Take an app down; an unknown name is no error. See Ray."""
    _need_serve()
    settings.local.discard(name)
    if _blocking:
        api.delete(name)
    else:
        RealKernel().spawn(f"{name} delete", lambda: api.delete(name))


def shutdown() -> None:
    """Take down all apps, and HTTP; tasks and actors go on. May be repeated. See Ray."""
    settings.is_serving = False
    settings.http = OurHTTPOptions()
    settings.local.clear()
    api.delete_all()


async def shutdown_async() -> None:
    """Take everything down without blocking the event loop."""
    loop, future = make_future()
    done = LoopWaiter(loop, future)

    def work() -> None:
        try:
            shutdown()
        finally:
            done.tell()

    RealKernel().spawn("threadserve shutdown", work)
    await future


# ---- what there is


def status() -> ServeStatus:
    """Return the state of every app; empty when Serve is not running."""
    if not settings.is_serving:
        return ServeStatus()
    found = api.status().applications
    apps = {name: app for name, app in found.items() if name not in settings.local}
    proxies = {} if api.http_url() is None else {"this-process": "HEALTHY"}
    return ServeStatus(proxies=proxies, applications=apps)


def get_app_handle(name: str) -> DeploymentHandle[Any]:
    """Return the ingress handle of an app; RayServeException where there is none."""
    _need_serve()
    try:
        return face_of(api.get_app_handle(name))
    except ServeError:
        raise RayServeException(f"Application '{name}' does not exist.") from None


def get_deployment_handle(
    deployment_name: str,
    app_name: str | None = None,
    _check_exists: bool = True,
    _record_telemetry: bool = True,
) -> DeploymentHandle[Any]:
    """Return the handle of any deployment; inside a replica, by default of its own app.

    Raises:
        RayServeException: Outside of a replica, and no app was named; or Serve is not running.
        KeyError: There is no such deployment.
    """
    replica = inheritance.get()
    if app_name is None and replica is None:
        raise RayServeException(
            "Please specify an application name when getting a deployment handle outside of a replica."
        )
    if replica is None:
        _need_serve()
    return face_of(api.get_deployment_handle(deployment_name, app_name))


def get_replica_context() -> ReplicaContext:
    """Return the context of the replica that runs this code; RayServeException outside of one."""
    context = inheritance.get()
    if context is None:
        raise RayServeException(
            "`serve.get_replica_context()` may only be called from within a Ray Serve deployment."
        )
    return context  # type: ignore[no-any-return]


@dataclass(frozen=True)
class RequestContext:
    """What Serve knows of the running request."""

    request_id: str = ""
    app_name: str = ""
    multiplexed_model_id: str = ""
    route: str = ""
    session_id: str = ""
    is_http_request: bool = False


def _get_serve_request_context() -> RequestContext:
    request = current_request()
    if request is None:
        return RequestContext()
    return RequestContext(
        request_id=request.request_id,
        app_name=request.router.app,
        multiplexed_model_id=request.model_id,
        is_http_request=request.adapter is not ISOLATION,
    )


def get_trace_context() -> None:
    """Return None: nothing is traced."""


def _need_serve() -> None:
    if not settings.is_serving:
        raise RayServeException(
            "There is no Serve instance running in this process. Start one with serve.run or serve.start."
        )


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)


# ---- what is not there yet; a module that declares it can be imported, and fails where it is used


def batch(func: Any = None, /, **_: Any) -> Any:
    """Decorate a function that is refused when it is called."""
    return _refusing("@serve.batch", func) if callable(func) else lambda func: _refusing("@serve.batch", func)


def multiplexed(func: Any = None, max_num_models_per_replica: int = 3) -> Any:
    """Decorate a function that is refused when it is called."""
    name = "@serve.multiplexed"
    return _refusing(name, func) if callable(func) else lambda func: _refusing(name, func)


def _refusing(feature: str, func: Callable[..., Any]) -> Callable[..., Any]:
    async def refused(*_: Any, **__: Any) -> Any:
        raise NotSupportedError(f"{feature} is not supported in one process yet ({func.__qualname__})")

    return refused


def ingress(app: Any) -> Callable[[Any], Any]:
    """Mark a class whose routes are an ASGI app's; it is refused when it is run."""

    def decorate(cls: Any) -> Any:
        cls.__threadserve_refused__ = "@serve.ingress (FastAPI and other ASGI apps)"
        return cls

    return decorate


def _refuse_what_is_missing(root: Any) -> None:
    """Raise NotSupportedError if a class of the graph needs what is not built."""
    waiting, seen = [root], list[Any]()
    while waiting:
        binding = binding_of(waiting.pop())
        feature = (
            getattr(binding.target, "__threadserve_refused__", None)
            if inspect.isclass(binding.target)
            else None
        )
        if feature is not None:
            raise NotSupportedError(
                f"{feature} is not supported in one process yet (deployment {binding.name!r})"
            )
        for value in binding.args:
            for child in getattr(value, "children", ()):
                if not any(child is known for known in seen):
                    seen.append(child)
                    waiting.append(child)
