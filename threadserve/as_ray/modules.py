"""Which modules stand in for Ray's, and what each offers: tables, read when a name is first used."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["fill", "is_known"]

_SERVE_STATUS = (
    "ApplicationStatus ApplicationStatusOverview DeploymentStatus DeploymentStatusOverview "
    "DeploymentStatusTrigger ProxyStatus"
)

# fmt: off
_MODULES: dict[str, dict[str, str]] = {
    "ray": {
        "core": "cancel get get_actor kill method put remote wait",
        "refs": "ObjectRef ObjectRefGenerator",
        "session": "available_resources cluster_resources get_gpu_ids get_runtime_context init is_initialized nodes "
                   "shutdown timeline __version__",
        "refs.ObjectRef": "ObjectID",
        "refs.ObjectRefGenerator": "DynamicObjectRefGenerator",
        "schema": "LoggingConfig",
    },
    "ray.actor": {"core": "ActorClass ActorHandle exit_actor method"},
    "ray.remote_function": {"core": "RemoteFunction"},
    "ray.exceptions": {
        "errors": "RayError RayTaskError TaskCancelledError GetTimeoutError RayActorError ActorDiedError "
                  "ActorAlreadyExistsError ActorUnavailableError UnserializableException",
    },
    "ray.runtime_context": {"session": "RuntimeContext get_runtime_context"},
    "ray.types": {"refs": "ObjectRef"},
    "ray.util": {"session": "get_node_ip_address", "core": "list_named_actors", "pool": "ActorPool"},
    "ray.util.actor_pool": {"pool": "ActorPool"},
    "ray.util.metrics": {"metrics": "Counter Gauge Histogram"},
    "ray.serve": {
        "serve": "RunTarget _run _run_many batch delete get_app_handle get_deployment_handle get_replica_context "
                 "get_trace_context ingress multiplexed run run_many shutdown shutdown_async start status",
        "declare": "Application Deployment deployment",
        "schema": "HTTPOptions",
        "context": "get_multiplexed_model_id",
    },
    "ray.serve.api": {
        "serve": "RunTarget _run batch delete get_app_handle get_deployment_handle get_replica_context ingress "
                 "multiplexed run run_many shutdown start status",
        "declare": "Application Deployment deployment",
        "context": "get_multiplexed_model_id",
    },
    "ray.serve.deployment": {"declare": "Application Deployment deployment"},
    "ray.serve.handle": {"handle": "DeploymentHandle DeploymentResponse DeploymentResponseGenerator"},
    "ray.serve.config": {
        "schema": "AggregationFunction AutoscalingConfig AutoscalingPolicy BackpressureConfig HTTPOptions ProxyLocation "
                  "RequestRouterConfig gRPCOptions",
    },
    "ray.serve.schema": {"schema": f"LoggingConfig ProxyLocation {_SERVE_STATUS}", "serve": "ServeStatus",
                         "context": "ReplicaRank"},
    "ray.serve.exceptions": {
        "errors": "RayServeException BackPressureError RequestCancelledError DeploymentUnavailableError "
                  "ReplicaUnavailableError gRPCStatusError",
    },
    "ray.serve.context": {
        "context": "DeploymentID ReplicaContext ReplicaID ReplicaRank",
        "serve": "get_replica_context _get_serve_request_context",
        "errors": "RayServeException",
    },
    "ray.serve.batching": {"serve": "batch"},
    "ray.serve.multiplex": {},
    "ray.serve.metrics": {"metrics": "Counter Gauge Histogram"},
}

_CLUSTER = "it needs a cluster"
_ABSENT_MODULES = {
    "ray.serve.llm": "language models are served by Ray's own engine, which is not here",
    "ray.serve.gradio_integrations": "it serves Gradio apps on a cluster",
    "ray.serve.task_consumer": "it needs a broker",
    "ray.serve.task_processor": "it needs a broker",
    "ray.serve.generated": "there is no gRPC here",
    "ray.serve.autoscaling_policy": "replicas are not scaled by load yet",
    "ray.serve.request_router": "replicas take requests from one queue",
    "ray.data": "Ray Data runs on a cluster", "ray.train": "Ray Train runs on a cluster",
    "ray.tune": "Ray Tune runs on a cluster", "ray.rllib": "RLlib runs on a cluster", "ray.air": _CLUSTER,
    "ray.llm": _CLUSTER, "ray.dag": "there are no compiled graphs; pass responses or refs on",
    "ray.workflow": "Ray has removed it", "ray.autoscaler": _CLUSTER, "ray.dashboard": _CLUSTER,
    "ray.experimental": _CLUSTER, "ray.job_submission": _CLUSTER, "ray.runtime_env": "there is one environment, this one",
    "ray.cluster_utils": _CLUSTER, "ray.client_builder": _CLUSTER, "ray.cross_language": "there is only Python",
    "ray.util.placement_group": "there is one place", "ray.util.scheduling_strategies": "there is one place",
    "ray.util.state": _CLUSTER, "ray.util.collective": _CLUSTER, "ray.util.multiprocessing": "use concurrent.futures",
    "ray.util.joblib": _CLUSTER, "ray.util.dask": _CLUSTER, "ray.util.spark": _CLUSTER, "ray.util.accelerators": _CLUSTER,
    "ray.util.queue": "use queue.Queue: one process shares it", "ray.util.iter": "Ray has deprecated it",
    "ray.util.tracing": "nothing is traced yet", "ray.util.debug": "use breakpoint()", "ray.util.rpdb": "use breakpoint()",
    "ray.util.client": "there is no cluster to connect to", "ray.util.tpu": _CLUSTER,
}

_ABSENT_NAMES = {
    "ray": "ActorClassID ActorID ClientBuilder ClusterID FunctionID JobID Language NodeID PlacementGroupID TaskID UniqueID "
           "WorkerID client cpp_function java_actor_class java_function show_in_dashboard",
    "ray.serve": "ControllerOptions TracingConfig get_deployment_actor get_deployment_actor_context",
    "ray.serve.handle": "DeploymentBroadcastResponse ReplicaSelection",
    "ray.serve.config": "AutoscalingContext ControllerOptions DeploymentActorConfig GangSchedulingConfig "
                        "GangPlacementStrategy GangRuntimeFailurePolicy",
    "ray.serve.schema": "ControllerOptions TracingConfig ServeDeploySchema ServeApplicationSchema DeploymentSchema "
                        "RayActorOptionsSchema HTTPOptionsSchema gRPCOptionsSchema ServeInstanceDetails "
                        "ApplicationDetails DeploymentDetails ReplicaDetails",
    "ray.util": "as_completed check_serialize connect deregister_serializer disconnect get_current_placement_group "
                "get_placement_group inspect_serializability log_once map_unordered placement_group_table "
                "register_serializer remove_placement_group",
}

_REMOVED = {
    "ray.serve.handle": {
        "RayServeHandle": "DeploymentHandle", "RayServeSyncHandle": "DeploymentHandle",
        "RayServeDeploymentHandle": "DeploymentHandle",
    },
    "ray.serve": {
        "get_handle": "serve.get_app_handle", "get_deployment": "serve.get_deployment_handle",
        "list_deployments": "serve.status", "build": "the command `serve build`",
        "RayServeHandle": "ray.serve.handle.DeploymentHandle", "handle_options": "handle.options",
        "connect": "serve.run, which connects by itself", "create_backend": "@serve.deployment",
        "create_endpoint": "@serve.deployment", "accept_batch": "@serve.batch",
    },
    "ray.serve.api": {"get_deployment": "serve.get_deployment_handle", "build": "the command `serve build`"},
    "ray.serve.drivers": {"DAGDriver": "a deployment of your own that calls the others"},
}
# fmt: on


def is_known(fullname: str) -> bool:
    """Whether there is a stand-in for the module of that name."""
    return fullname in _MODULES or fullname in _REMOVED or _reason(fullname) is not None


def _reason(fullname: str) -> str | None:
    """Return why the module, or one above it, is absent; None where none is."""
    while fullname:
        if fullname in _ABSENT_MODULES:
            return _ABSENT_MODULES[fullname]
        fullname = fullname.rpartition(".")[0]
    return None


def fill(module: ModuleType) -> None:
    """Give a new stand-in its name look-up."""
    name = module.__name__
    homes = {offered: home for home, names in _MODULES.get(name, {}).items() for offered in names.split()}
    module.__doc__ = f"threadserve's stand-in for {name}."
    module.__all__ = [each for each in homes if not each.startswith("_")]  # type: ignore[attr-defined]

    def look_up(attribute: str) -> Any:
        value = _find(name, attribute, homes)
        setattr(module, attribute, value)
        return value

    module.__getattr__ = look_up  # type: ignore[method-assign]
    module.__dir__ = lambda: sorted({*vars(module), *homes})  # type: ignore[method-assign]


def _find(module: str, name: str, homes: dict[str, str]) -> Any:
    full = f"{module}.{name}"
    if name in homes:
        return _load(homes[name], name)
    if name.startswith("__"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name)
    if _reason(module) is None and is_known(full):
        return import_module(full)
    if module == "ray.exceptions":
        from threadserve.as_ray.errors import named

        return named(name)
    reason = _reason(module)
    if reason is None and name in _ABSENT_NAMES.get(module, "").split():
        reason = "there is nothing it could do here"
    if reason is not None:
        from threadserve.as_ray.absent import Absent

        return Absent(full, reason)
    raise _refusal(module, name)


def _load(home: str, name: str) -> Any:
    if home == "context":
        return getattr(import_module("threadserve.call.context"), name)
    home, _, other = home.partition(".")
    return getattr(import_module(f"threadserve.as_ray.{home}"), other or name)


def _refusal(module: str, name: str) -> Exception:
    """Say that there is no such name, as Python does, and what has come in its place."""
    successor = _REMOVED.get(module, {}).get(name)
    if successor is None:
        return AttributeError(f"module {module!r} has no attribute {name!r}", name=name)
    advice = f"Ray has removed it; use {successor}"
    if _is_from_import():  # Python would make an ImportError of the AttributeError, and drop what it says
        return ImportError(f"cannot import name {name!r} from {module!r}: {advice}", name=module)
    return AttributeError(f"module {module!r} has no attribute {name!r}: {advice}", name=name)


def _is_from_import() -> bool:
    """Whether the name is wanted by a ``from module import name``."""
    import dis

    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__ and frame.f_back is not None:
        frame = frame.f_back
    code = frame.f_code.co_code
    return dis.opname[code[frame.f_lasti]] == "IMPORT_FROM"
