"""What running code can ask about where it runs: its replica and its request."""

from __future__ import annotations

from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any

from threadserve.call.request import ANSWERED, CURRENT, check_cancelled, current_request
from threadserve.concurrency.threads import Inheritance
from threadserve.errors import ConfigError, NotInReplicaError

__all__ = [
    "REPLICA",
    "DeploymentID",
    "ReplicaContext",
    "ReplicaID",
    "ReplicaRank",
    "cancelled",
    "check_cancelled",
    "get_multiplexed_model_id",
    "get_replica_context",
    "inheritance",
    "propagate",
    "propagated",
    "replica_here",
]


@dataclass(frozen=True, slots=True)
class DeploymentID:
    """Names a deployment."""

    name: str
    app_name: str = "default"

    def __str__(self) -> str:
        return f"Deployment(name='{self.name}', app='{self.app_name}')"


@dataclass(frozen=True, slots=True)
class ReplicaID:
    """Names one replica of a deployment."""

    unique_id: str
    deployment_id: DeploymentID

    def __str__(self) -> str:
        name, app = self.deployment_id.name, self.deployment_id.app_name
        return f"Replica(id='{self.unique_id}', deployment='{name}', app='{app}')"


@dataclass(frozen=True, slots=True)
class ReplicaRank:
    """Which of its deployment's replicas this one is, from 0; there is one node, so all three say the same."""

    rank: int
    node_rank: int = 0
    local_rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaContext:
    """Where the running code runs."""

    replica_id: ReplicaID
    rank: ReplicaRank
    world_size: int
    """Replicas that the deployment was started with."""
    code_version: str
    """Changes with each ``serve.run`` of the app."""
    gpu_ids: tuple[str, ...] = ()
    """The GPUs that are reserved for this replica, as ``CUDA_VISIBLE_DEVICES`` names them."""
    gang_context: None = None
    """Always None: gangs are for clusters."""
    get_servable_object: Any = None
    """Internal: returns the user's instance."""

    @property
    def app_name(self) -> str:
        """The name of the app."""
        return self.replica_id.deployment_id.app_name

    @property
    def deployment(self) -> str:
        """The name of the deployment."""
        return self.replica_id.deployment_id.name

    @property
    def replica_tag(self) -> str:
        """The replica's unique id."""
        return self.replica_id.unique_id

    @property
    def servable_object(self) -> Any:
        """The user's instance, or the function; None while the constructor runs."""
        return self.get_servable_object()


REPLICA: ContextVar[ReplicaContext] = ContextVar("threadserve_replica")
"""The replica that the running code belongs to, where it works for no request: a constructor, say."""


def replica_here() -> ReplicaContext | None:
    """Return the replica that this context belongs to; None for none."""
    request = CURRENT.get()
    return REPLICA.get(None) if request is None or request.replica is None else request.replica


inheritance = Inheritance("replica", replica_here)
"""Makes the replica known in threads that user code starts, while a runtime is up."""


def get_replica_context() -> ReplicaContext:
    """Return the context of the replica that runs this code: its constructor, methods, tasks and threads.

    Never blocks.

    Raises:
        NotInReplicaError: This code does not run in a replica.
    """
    context = inheritance.get()
    if context is None:
        raise NotInReplicaError(
            "get_replica_context() was called outside of a replica; only code that a replica runs has one"
        )
    return context  # type: ignore[no-any-return]


class Propagated:
    """The context variables that cross into other interpreters, by the import string of each."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        """In the order in which they were registered; replaced as a whole."""
        self._found: dict[str, ContextVar[Any]] = {}

    def add(self, *names: str) -> None:
        """Have these cross, too."""
        self.names = tuple(dict.fromkeys((*self.names, *names)))

    def values(self, context: Context) -> dict[str, Any] | None:
        """Return what `context` has in them; None for nothing."""
        if not self.names:
            return None
        found = {name: context[variable] for name in self.names if (variable := self._find(name)) in context}
        return found or None

    def restore(self, values: dict[str, Any], context: Context) -> None:
        """Set them in `context`."""
        for name, value in values.items():
            context.run(self._find(name).set, value)

    def _find(self, name: str) -> ContextVar[Any]:
        variable = self._found.get(name)
        if variable is None:
            from importlib import import_module

            module, _, attribute = name.partition(":")
            variable = self._found[name] = getattr(import_module(module), attribute)
        return variable


propagated = Propagated()
"""What ``propagate`` has registered."""


def propagate(*names: str) -> None:
    """Have context variables cross into replicas of ``replica_type="interpreter"``, and into the calls they make.

    Replicas on threads see all of the caller's context variables anyway. Each value must be picklable. Register before
    ``serve.run``; any thread; never blocks.

    Args:
        names: Import strings, ``"module:VARIABLE"``, of ``contextvars.ContextVar`` objects.

    Raises:
        ConfigError: A name is no import string, or it names no ContextVar.

    Example:
        ``serve.propagate("shop.tracing:TRACE_ID")``
    """
    for name in names:
        module, colon, attribute = name.partition(":")
        if not (module and colon and attribute) or module == "__main__":
            raise ConfigError(
                f"propagate: {name!r} is not of the form 'module:VARIABLE', of a module that can be imported elsewhere"
            )
        try:
            variable = propagated._find(name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"propagate: {name!r} cannot be found: {error}") from error
        if not isinstance(variable, ContextVar):
            raise ConfigError(f"propagate: {name!r} is a {type(variable).__name__}, not a ContextVar")
    propagated.add(*names)


def get_multiplexed_model_id() -> str:
    """Return what ``options(multiplexed_model_id=...)`` gave for the running request; "" without. Never blocks."""
    request = current_request()
    return "" if request is None else request.model_id


def cancelled() -> bool:
    """Whether the request that this code works for was cancelled or has expired. Never blocks; False outside of one."""
    request = current_request()
    return request is not None and request.state is ANSWERED
