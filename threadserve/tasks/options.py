"""The options of tasks, actors and their methods: Ray's names, frozen, and each one validates itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from threadserve.app.rules import (
    Rule,
    a_dict,
    a_flag,
    a_string,
    choice,
    inside,
    number,
    obeys,
    optional,
    refuse_unknown,
    shown,
    validate,
    whole,
)
from threadserve.call.deadline import check_timeout
from threadserve.errors import ConfigError, NotSupportedError
from threadserve.runtime.resources import Demand

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["STREAMING", "ActorOptions", "MethodOptions", "TaskOptions", "changed"]

STREAMING = "streaming"
RESOURCES = ("num_cpus", "num_gpus", "memory", "resources")

O = TypeVar("O", bound="MethodOptions")  # noqa: E741 - of options


def _not_here(name: str, value: object) -> object:
    """Refuse what only a cluster can do; None, "" and the like ask for nothing."""
    if not value or (isinstance(value, str) and value in ("DEFAULT", "SPREAD", "default")):
        return None
    raise NotSupportedError(
        f"{name}={shown(value)} needs a cluster, or processes of its own: tasks and actors are threads of this process here"
    )


def _returns(name: str, value: object) -> object:
    if value == "dynamic":
        return STREAMING
    return _RETURNS(name, value)


_COUNT = whole(at_least=0)
_RETURNS = Rule(
    'an int of at least 0 or "streaming"',
    lambda value: value is None or value == STREAMING or _COUNT.accepts(value),
)


def _timeout(name: str, value: Any) -> object:
    if value is not None:
        check_timeout(name, value)
    return value


def _exceptions(name: str, value: Any) -> object:
    if isinstance(value, bool):
        return value
    kinds = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise ConfigError(f"{name} must be True, False or a list of exception classes, not {shown(value)}")
    return kinds


_anything = obeys(lambda name, value: value)
_amount = obeys(optional(number(at_least=0)))
_cluster = obeys(_not_here)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """What ``handle.method.options`` and ``@method`` accept."""

    name: str | None = field(default=None, metadata=obeys(optional(a_string)))
    """Named in errors and in the log, instead of the function; of an actor: by which ``get_actor`` finds it."""
    num_returns: int | str | None = field(default=None, metadata=obeys(_returns))
    """How many refs a call returns; None means 1, or "streaming" where the function is a generator."""
    timeout_s: float | None = field(default=None, metadata=obeys(_timeout))
    """Bounds each call, queueing included, in seconds; ``math.inf`` lifts an inherited deadline. Not one of Ray's."""
    retry_exceptions: bool | Sequence[type[BaseException]] = field(default=False, metadata=obeys(_exceptions))
    """Which exceptions of a task make it run again, up to ``max_retries`` times. Without effect for actors."""
    concurrency_group: str | None = field(default=None, metadata=obeys(optional(a_string)))
    """Accepted; has no effect here."""
    max_task_retries: int = field(default=0, metadata=obeys(whole(at_least=-1)))
    """Accepted; has no effect here: a call that has begun is not run again."""
    enable_task_events: bool = field(default=True, metadata=obeys(a_flag))
    """Accepted; has no effect here."""
    enable_tensor_transport: bool = field(default=False, metadata=obeys(a_flag))
    """Accepted; has no effect here: values are shared."""
    tensor_transport: object = field(default=None, metadata=_anything)
    """Accepted; has no effect here: values are shared."""
    _generator_backpressure_num_objects: int | None = field(default=None, metadata=_anything)
    """Accepted; a producer runs ahead by 64 items here."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions(MethodOptions):
    """What ``serve.remote`` accepts for a function."""

    num_cpus: float | None = field(default=None, metadata=_amount)
    """Cores that are reserved while it runs; None (and 0) for none: it then only needs one of the slots."""
    num_gpus: float | None = field(default=None, metadata=_amount)
    """GPUs that are reserved; ``get_replica_context().gpu_ids`` names them."""
    memory: float | None = field(default=None, metadata=_amount)
    """Bytes that are reserved; nothing watches what is used."""
    resources: Mapping[str, float] | None = field(default=None, metadata=obeys(optional(a_dict)))
    """Further resources, by the names given to ``serve.start(resources=...)``."""
    max_retries: int = field(default=3, metadata=obeys(whole(at_least=-1)))
    """How often ``retry_exceptions`` may have it run again; -1 for ever."""
    max_calls: int = field(default=0, metadata=obeys(whole(at_least=0)))
    """Accepted; has no effect here: threads need no renewal."""
    accelerator_type: str | None = field(default=None, metadata=obeys(optional(a_string)))
    """Accepted; has no effect here."""
    label_selector: Mapping[str, str] | None = field(default=None, metadata=obeys(optional(a_dict)))
    """Accepted; has no effect here: there is one node."""
    object_store_memory: float | None = field(default=None, metadata=_amount)
    """Accepted; has no effect here: values are shared."""
    runtime_env: Mapping[str, object] | None = field(default=None, metadata=_cluster)
    """Refused unless it is empty."""
    scheduling_strategy: object = field(default=None, metadata=_cluster)
    """"DEFAULT" and "SPREAD" have no effect; others are refused."""
    placement_group: object = field(default=None, metadata=_cluster)
    """Refused unless it is "default"."""
    _metadata: Mapping[str, object] | None = field(default=None, metadata=_anything)
    """Accepted; has no effect here."""

    @property
    def retries(self) -> float:
        """How often a task may be run again."""
        return math.inf if self.max_retries == -1 else self.max_retries

    def demand(self, of: str) -> Demand:
        """Return what is to be reserved.

        Raises:
            ConfigError: An amount is refused.
        """
        given = {name: getattr(self, name) for name in RESOURCES if getattr(self, name) is not None}
        return Demand.of(of, given) if given else Demand()


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorOptions(TaskOptions):
    """What ``serve.remote`` accepts for a class."""

    max_concurrency: int | None = field(default=None, metadata=obeys(optional(whole(at_least=1))))
    """Calls that run at once: None means 1, or 1000 where the class has an ``async def``."""
    namespace: str | None = field(default=None, metadata=obeys(optional(a_string)))
    """Where ``name`` is unique."""
    get_if_exists: bool = field(default=False, metadata=obeys(a_flag))
    """Return the actor that has the name, if there is one, instead of starting one."""
    lifetime: str | None = field(default=None, metadata=obeys(choice(None, "detached", "non_detached")))
    """"detached" keeps the actor until it is killed, or the runtime shut down, though no handle is left."""
    max_restarts: int = field(default=0, metadata=obeys(whole(at_least=-1)))
    """How often it starts anew, from its constructor, when its code raised SystemExit; -1 for ever."""
    max_pending_calls: int = field(default=-1, metadata=obeys(whole(at_least=1, or_else=-1)))
    """Calls that may be queued; one more fails with BackPressureError. -1 for any number."""
    concurrency_groups: object = field(default=None, metadata=_anything)
    """Accepted; has no effect here: all methods share ``max_concurrency``."""
    allow_out_of_order_execution: bool | None = field(default=None, metadata=_anything)
    """Let calls whose arguments are there overtake those that wait for theirs."""

    def __post_init__(self) -> None:
        validate(self)
        if self.get_if_exists and self.name is None:
            raise ConfigError("get_if_exists=True needs a name")


def changed(of: str, options: O, given: Mapping[str, Any]) -> O:
    """Return `options` with what is `given` in its place.

    Raises:
        TypeError: An option has an unknown name.
        ConfigError: An option has a value that is refused.
        NotSupportedError: It asks for what needs a cluster.
    """
    if not given:
        return options
    known = [each.name for each in fields(options)]
    refuse_unknown(given, known, of=of, error=TypeError)
    with inside(of):
        return replace(options, **given)
