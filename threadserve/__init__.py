"""Compose, call and serve Python classes and functions in one process.

Example:
    >>> import threadserve as serve
    >>> @serve.deployment
    ... def double(n: int) -> int:
    ...     return 2 * n
    >>> with serve.running(double.bind()) as handle:
    ...     handle.remote(21).result()
    42

This is the face: it names what the package offers and loads each name at its first use.
"""

from __future__ import annotations

# fmt: off
__all__ = [  # noqa: RUF022 - in the order a newcomer meets them
    "deployment", "Deployment", "Application", "AutoscalingConfig", "BackpressureConfig", "HTTPOptions",
    "run", "run_many", "RunTarget", "running", "start", "status", "delete", "shutdown",
    "get_app_handle", "get_deployment_handle", "DeploymentHandle",
    "DeploymentResponse", "DeploymentResponseGenerator",
    "remote", "get", "put", "wait", "cancel", "kill", "get_actor",
    "ObjectRef", "ObjectRefGenerator", "RemoteFunction", "ActorClass", "ActorHandle",
    "deadline", "remaining", "cancelled", "check_cancelled",
    "get_replica_context", "get_multiplexed_model_id", "ReplicaContext", "propagate",
    "ServeError", "ConfigError", "GraphError", "ImportStringError", "DeployError", "ReplicaStartError",
    "ResourceError", "RequestError", "BackPressureError", "RequestTimeoutError", "RequestCancelledError",
    "DeadlockError", "MethodNotFoundError", "ArgumentError", "ReplicaDiedError", "ActorDiedError",
    "DeploymentUnavailableError",
    "NotInReplicaError", "NotSupportedError", "InternalError", "Cancelled",
]

_HOMES = {
    "threadserve.api":
        "RunTarget delete get_app_handle get_deployment_handle run run_many running shutdown start status",
    "threadserve.app.config": "AutoscalingConfig BackpressureConfig HTTPOptions",
    "threadserve.app.deployment": "Application Deployment deployment",
    "threadserve.call.context":
        "ReplicaContext cancelled check_cancelled get_multiplexed_model_id get_replica_context propagate",
    "threadserve.call.deadline": "deadline remaining",
    "threadserve.call.objectref": "ObjectRef ObjectRefGenerator",
    "threadserve.call.response": "DeploymentResponse",
    "threadserve.call.stream": "DeploymentResponseGenerator",
    "threadserve.errors":
        "ActorDiedError ArgumentError BackPressureError Cancelled ConfigError DeadlockError DeployError "
        "DeploymentUnavailableError GraphError ImportStringError InternalError MethodNotFoundError "
        "NotInReplicaError NotSupportedError ReplicaDiedError ReplicaStartError RequestCancelledError "
        "RequestError RequestTimeoutError ResourceError ServeError",
    "threadserve.handle": "DeploymentHandle",
    "threadserve.tasks.actor": "ActorClass ActorHandle get_actor kill",
    "threadserve.tasks.objects": "cancel get put wait",
    "threadserve.tasks.remote": "remote",
    "threadserve.tasks.task": "RemoteFunction",
}
# fmt: on
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

TYPE_CHECKING = False  # what checkers take for true; importing typing would cost more than all of this module
if TYPE_CHECKING:
    from threadserve.api import (
        RunTarget,
        delete,
        get_app_handle,
        get_deployment_handle,
        run,
        run_many,
        running,
        shutdown,
        start,
        status,
    )
    from threadserve.app.config import AutoscalingConfig, BackpressureConfig, HTTPOptions
    from threadserve.app.deployment import Application, Deployment, deployment
    from threadserve.call.context import (
        ReplicaContext,
        cancelled,
        check_cancelled,
        get_multiplexed_model_id,
        get_replica_context,
        propagate,
    )
    from threadserve.call.deadline import deadline, remaining
    from threadserve.call.objectref import ObjectRef, ObjectRefGenerator
    from threadserve.call.response import DeploymentResponse
    from threadserve.call.stream import DeploymentResponseGenerator
    from threadserve.errors import (
        ActorDiedError,
        ArgumentError,
        BackPressureError,
        Cancelled,
        ConfigError,
        DeadlockError,
        DeployError,
        DeploymentUnavailableError,
        GraphError,
        ImportStringError,
        InternalError,
        MethodNotFoundError,
        NotInReplicaError,
        NotSupportedError,
        ReplicaDiedError,
        ReplicaStartError,
        RequestCancelledError,
        RequestError,
        RequestTimeoutError,
        ResourceError,
        ServeError,
    )
    from threadserve.handle import DeploymentHandle
    from threadserve.tasks.actor import ActorClass, ActorHandle, get_actor, kill
    from threadserve.tasks.objects import cancel, get, put, wait
    from threadserve.tasks.remote import remote
    from threadserve.tasks.task import RemoteFunction

    __version__: str
else:  # hidden from checkers, which would otherwise let every misspelt name pass

    def __getattr__(name):
        if name == "__version__":
            from importlib import metadata

            try:
                value = metadata.version("threadserve")
            except metadata.PackageNotFoundError:  # a source tree on the path, not installed
                value = "0+unknown"
        elif name in _HOME_OF:
            from importlib import import_module

            value = getattr(import_module(_HOME_OF[name]), name)
        else:
            hint = ""
            if not name.startswith("_"):
                from difflib import get_close_matches

                hint = "".join(f"; did you mean {near!r}?" for near in get_close_matches(name, __all__, 1))
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}", name=name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__, "__version__"})
