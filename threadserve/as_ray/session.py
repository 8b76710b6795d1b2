"""``ray.init`` and what can be asked about the cluster, which is this process."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, NoReturn, Self
from uuid import uuid4

from threadserve import api
from threadserve.as_ray import serve
from threadserve.call.context import inheritance
from threadserve.call.request import current_request
from threadserve.errors import NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = [
    "RuntimeContext",
    "__version__",
    "available_resources",
    "cluster_resources",
    "get_gpu_ids",
    "get_node_ip_address",
    "get_runtime_context",
    "init",
    "is_initialized",
    "nodes",
    "session",
    "shutdown",
    "timeline",
]

__version__ = "2.60.0"
"""The Ray whose behaviour is stood in for."""


class Session:
    """What ``ray.init`` was told."""

    def __init__(self) -> None:
        self.is_open = False
        self.namespace = ""
        self.job_id = self.node_id = ""
        self.resources: dict[str, float] = {}

    def open(self, resources: Mapping[str, Any], namespace: str | None) -> None:
        """Begin anew."""
        self.is_open = True
        self.namespace = namespace or str(uuid4())
        self.job_id, self.node_id = "01000000", uuid4().hex + uuid4().hex[:24]
        self.resources = {"CPU": float(os.cpu_count() or 1), **resources}


session = Session()


class _Connection(dict[str, Any]):
    """What ``ray.init`` returns; also a context manager."""

    dashboard_url = ""

    @property
    def address_info(self) -> dict[str, Any]:
        """Where the cluster is."""
        return dict(self)

    def disconnect(self) -> None:
        """As ``ray.shutdown``."""
        shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutdown()


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    namespace: str | None = None,
    ignore_reinit_error: bool = False,
    **accepted: Any,
) -> _Connection:
    """Begin. Whatever address is given, the cluster is this process; all of Ray's arguments are accepted.

    Raises:
        RuntimeError: It was called before, without ``shutdown`` or ``ignore_reinit_error``.
    """
    if session.is_open and not ignore_reinit_error:
        raise RuntimeError(
            "Maybe you called ray.init twice by accident? Call ray.shutdown() first, or pass ignore_reinit_error=True."
        )
    if not session.is_open:
        asked = {"CPU": num_cpus, "GPU": num_gpus, **(resources or {})}
        given = {name: float(amount) for name, amount in asked.items() if amount is not None}
        session.open(given, namespace)
        if resources or num_gpus:
            api.begin(given)
    return _Connection(address=address, node_id=session.node_id, node_ip_address=get_node_ip_address())


def is_initialized() -> bool:
    """Whether ``init`` was called, or something that calls it."""
    return session.is_open


def need_session() -> None:
    """Begin with the defaults, as all of Ray's verbs do."""
    if not session.is_open:
        init()


def shutdown(_exiting_interpreter: bool = False) -> None:
    """End what runs: apps, actors and tasks. May be repeated."""
    serve.shutdown()
    api.shutdown()
    session.is_open = False


# ---- the cluster


def cluster_resources() -> dict[str, float]:
    """Return what there is, by name."""
    need_session()
    return {**session.resources, "node:__internal_head__": 1.0}


def available_resources() -> dict[str, float]:
    """Return what there is; tasks and replicas share it all."""
    return cluster_resources()


def nodes() -> list[dict[str, Any]]:
    """Return the one node that there is."""
    need_session()
    name = socket.gethostname()
    return [
        {
            "NodeID": session.node_id,
            "Alive": True,
            "NodeManagerAddress": get_node_ip_address(),
            "NodeManagerHostname": name,
            "NodeName": get_node_ip_address(),
            "Resources": cluster_resources(),
            "Labels": {},
            "alive": True,
        }
    ]


def get_node_ip_address() -> str:
    """Return the address of this machine, as it calls itself."""
    return "127.0.0.1"


def timeline(filename: str | None = None) -> NoReturn:
    """Refused."""
    raise NotSupportedError("ray.timeline is not supported in one process: nothing records one")


def get_gpu_ids() -> list[Any]:
    """Return the GPUs that are reserved for the running replica."""
    replica = inheritance.get()
    ids = () if replica is None else replica.gpu_ids
    return [int(each) if each.isdigit() else each for each in ids]


class RuntimeContext:
    """Where the running code is."""

    @property
    def namespace(self) -> str:
        """The namespace of named actors."""
        return session.namespace

    @property
    def gcs_address(self) -> str:
        """The address of the cluster's head."""
        return get_node_ip_address()

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Always False."""
        return False

    def get_job_id(self) -> str:
        """Return the id of the script's run."""
        return session.job_id

    def get_node_id(self) -> str:
        """Return the id of the one node."""
        return session.node_id

    def get_worker_id(self) -> str:
        """Return the id of this process."""
        return f"{os.getpid():056x}"

    def get_task_id(self) -> str | None:
        """Return the id of the running call; None outside of one."""
        request = current_request()
        return None if request is None else request.request_id

    def get_actor_id(self) -> str | None:
        """Return the id of the running actor or replica; None outside of one."""
        replica = inheritance.get()
        return None if replica is None else str(replica.replica_tag)

    def get_actor_name(self) -> str | None:
        """Return the name of the running actor or replica; None outside of one."""
        replica = inheritance.get()
        return None if replica is None else str(replica.replica_id)

    def get_assigned_resources(self) -> dict[str, float]:
        """Return what the running code has reserved; empty, where it has reserved nothing of its own."""
        return {}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Return the GPUs that are reserved for the running replica."""
        return {"GPU": [str(each) for each in get_gpu_ids()]}

    def get_runtime_env_string(self) -> str:
        """Return the runtime environment, of which there is none."""
        return "{}"


def get_runtime_context() -> RuntimeContext:
    """Return what can be asked about where the running code is."""
    need_session()
    return RuntimeContext()
