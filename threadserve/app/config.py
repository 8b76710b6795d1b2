"""The options of deployments, autoscaling, logging and HTTP: frozen, and each one validates itself."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypedDict, cast

from threadserve.app.rules import (
    a_callable_or_import_string,
    a_dict,
    a_flag,
    a_list,
    a_string,
    actor_options,
    choice,
    json_value,
    log_level,
    no_tls,
    number,
    obeys,
    optional,
    positive,
    refuse,
    refuse_unknown,
    replica_count,
    replica_kind,
    section,
    strictly,
    strings,
    validate,
    whole,
)
from threadserve.errors import ConfigError

__all__ = [
    "UNSET",
    "AutoscalingConfig",
    "AutoscalingPolicy",
    "BackpressureConfig",
    "DeploymentConfig",
    "DeploymentOptions",
    "HTTPOptions",
    "LoggingConfig",
    "Unset",
]


class Unset(enum.Enum):
    """The type of ``UNSET``; ``value is UNSET`` narrows it away for type checkers."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
"""Stands for "not given" where None is a value of its own."""

AUTO_MAX_REPLICAS = 100
PLACEMENT_STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingPolicy:
    """Who decides on the number of replicas, where the built-in rule shall not."""

    policy_function: Callable[..., object] | str = field(
        default="", metadata=obeys(a_callable_or_import_string)
    )
    """Called with the current state; an import string is loaded at start."""
    policy_kwargs: Mapping[str, object] | None = field(default=None, metadata=obeys(optional(a_dict)))
    """Further keyword arguments of the function."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingConfig:
    """How the number of replicas follows the load.

    As in Ray Serve, keys of a dict that are unknown here are ignored.
    """

    min_replicas: int = field(default=1, metadata=obeys(whole(at_least=0)))
    initial_replicas: int | None = field(default=None, metadata=obeys(optional(whole(at_least=0))))
    """Replicas at the start; None means ``min_replicas``."""
    max_replicas: int = field(default=1, metadata=obeys(whole(at_least=1)))
    target_ongoing_requests: float = field(default=2, metadata=obeys(positive()))
    """Running and queued requests that each replica shall have on average."""
    look_back_period_s: float = field(default=30.0, metadata=obeys(positive()))
    """The load is averaged over this time."""
    metrics_interval_s: float = field(default=10.0, metadata=obeys(positive()))
    """Accepted; has no effect here, the load is read where it arises."""
    upscale_delay_s: float = field(default=30.0, metadata=obeys(number(at_least=0)))
    """How long more replicas must have been wished for."""
    downscale_delay_s: float = field(default=600.0, metadata=obeys(number(at_least=0)))
    """How long fewer replicas must have been wished for."""
    downscale_to_zero_delay_s: float | None = field(
        default=None, metadata=obeys(optional(number(at_least=0)))
    )
    """The same for the last replica; None means ``downscale_delay_s``."""
    smoothing_factor: float = field(default=1.0, metadata=obeys(positive()))
    """Used where a direction has no factor of its own."""
    upscaling_factor: float | None = field(default=None, metadata=obeys(optional(positive())))
    """How much of the wished difference is made up at once when growing."""
    downscaling_factor: float | None = field(default=None, metadata=obeys(optional(positive())))
    """How much of the wished difference is made up at once when shrinking."""
    aggregation_function: Literal["mean", "max", "min"] = field(
        default="mean", metadata=obeys(choice("mean", "max", "min"))
    )
    """What becomes of the load's samples within the look-back period."""
    policy: AutoscalingPolicy | None = field(default=None, metadata=obeys(section(AutoscalingPolicy)))
    """None means the built-in rule."""

    def __post_init__(self) -> None:
        validate(self)
        low, high, first = self.min_replicas, self.max_replicas, self.initial_replicas
        if high < low:
            refuse("max_replicas", f"at least min_replicas ({low})", high)
        if first is not None and not low <= first <= high:
            refuse("initial_replicas", f"from min_replicas ({low}) to max_replicas ({high})", first)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackpressureConfig:
    """What HTTP answers when a deployment's queue is full."""

    status_code: Literal[503, 429] = field(default=503, metadata=obeys(choice(503, 429)))
    retry_after_s: float | None = field(default=None, metadata=obeys(optional(number(at_least=0))))
    """Seconds for the ``Retry-After`` header; None sends no header."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingConfig:
    """How the log of a deployment is written."""

    encoding: Literal["TEXT", "JSON"] = field(default="TEXT", metadata=obeys(choice("TEXT", "JSON")))
    log_level: str = field(default="INFO", metadata=obeys(log_level))
    """A level's name or number; kept as its upper-case name."""
    logs_dir: str | None = field(default=None, metadata=obeys(optional(a_string)))
    enable_access_log: bool = field(default=True, metadata=obeys(a_flag))
    additional_log_standard_attrs: tuple[str, ...] = field(default=(), metadata=obeys(strings))
    """Further attributes of ``logging.LogRecord`` to write."""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPOptions:
    """Where and how HTTP is served."""

    host: str = field(default="127.0.0.1", metadata=obeys(a_string))
    port: int = field(default=8000, metadata=obeys(whole(at_least=0, at_most=65535)))
    """0 takes any free port."""
    root_path: str = field(default="", metadata=obeys(a_string))
    """The prefix under which a proxy in front publishes this server."""
    request_timeout_s: float | None = field(default=None, metadata=obeys(optional(positive())))
    """Seconds after which a request is cancelled and answered with 408; None means no limit."""
    keep_alive_timeout_s: float = field(default=90.0, metadata=obeys(number(at_least=0)))
    """Seconds after which an idle connection is closed."""
    ssl_keyfile: str | None = field(default=None, metadata=obeys(no_tls))
    ssl_certfile: str | None = field(default=None, metadata=obeys(no_tls))
    ssl_keyfile_password: str | None = field(default=None, metadata=obeys(no_tls))
    ssl_ca_certs: str | None = field(default=None, metadata=obeys(no_tls))

    def __post_init__(self) -> None:
        validate(self)

    @classmethod
    def of(cls, options: HTTPOptions | Mapping[str, object] | None) -> HTTPOptions:
        """Return the options given as such, as a dict, or as None for the defaults.

        Raises:
            ConfigError: The dict has an unknown key or a refused value.
            NotSupportedError: It asks for TLS.
        """
        kept = cast("HTTPOptions | None", section(cls)("http_options", options))
        return kept or cls()


class DeploymentOptions(TypedDict, total=False):
    """What ``deployment`` and ``Deployment.options`` accept by keyword; see ``DeploymentConfig``."""

    name: str
    num_replicas: int | Literal["auto"] | None
    max_ongoing_requests: int
    max_queued_requests: int
    stream_buffer_size: int
    inline: bool
    replica_type: Literal["thread", "interpreter"]
    user_config: object
    autoscaling_config: AutoscalingConfig | Mapping[str, object] | None
    backpressure_config: BackpressureConfig | Mapping[str, object] | None
    graceful_shutdown_timeout_s: float
    graceful_shutdown_wait_loop_s: float
    health_check_period_s: float
    health_check_timeout_s: float
    max_constructor_retry_count: int | None
    logging_config: LoggingConfig | Mapping[str, object] | None
    ray_actor_options: Mapping[str, object] | None
    placement_group_bundles: Sequence[Mapping[str, float]] | None
    placement_group_strategy: str | None
    placement_group_bundle_label_selector: Sequence[Mapping[str, str]] | None
    max_replicas_per_node: int | None
    request_router_config: Mapping[str, object] | None
    gang_scheduling_config: Mapping[str, object] | None
    deployment_actors: Sequence[object] | None
    rolling_update_percentage: float
    max_surge_percent: int


def automatic(given: object) -> object:
    """Return what ``num_replicas="auto"`` makes of the ``autoscaling_config`` beside it."""
    if given is None:
        return AutoscalingConfig(max_replicas=AUTO_MAX_REPLICAS)
    if isinstance(given, Mapping):
        return {"max_replicas": AUTO_MAX_REPLICAS, **cast("Mapping[str, object]", given)}
    if isinstance(given, AutoscalingConfig) and given.max_replicas == 1:
        return replace(given, max_replicas=AUTO_MAX_REPLICAS)
    return given


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentConfig:
    """Everything about a deployment except its name and its code.

    Options, defaults and limits are Ray Serve's, except where a field says otherwise. What only a cluster can
    honour is accepted and checked, and has no effect here.
    """

    num_replicas: int = field(default=1, metadata=obeys(replica_count))
    """Copies of the class or function. ``"auto"`` means autoscaling between 1 and 100."""
    max_ongoing_requests: int = field(default=5, metadata=obeys(whole(at_least=1)))
    """Requests that one replica works on at once."""
    max_queued_requests: int = field(default=-1, metadata=obeys(whole(at_least=1, or_else=-1)))
    """Requests that may wait for the deployment before further ones are refused; -1 means any number."""
    stream_buffer_size: int = field(default=64, metadata=obeys(whole(at_least=1)))
    """Items that a streaming method may run ahead of its reader. Not an option of Ray Serve's."""
    inline: bool = field(default=True, metadata=obeys(a_flag))
    """Whether a thread that waits for a ``def`` call which nobody has begun may run it itself. False keeps the deployment's
    code on threads of its own, as code needs that depends on its thread: on its name or identity, on thread-locals, on
    locks and transactions that the caller must not share. Not an option of Ray Serve's."""
    replica_type: Literal["thread", "interpreter"] = field(default="thread", metadata=obeys(replica_kind))
    """Where the code of a replica runs: on threads of this interpreter, or in a subinterpreter that has a GIL of its own,
    which needs CPython 3.14 and a class or function that can be imported. Not an option of Ray Serve's."""
    user_config: object = field(default=None, metadata=obeys(json_value))
    """Given to ``reconfigure``, a method that the class must then have: without it no replica starts."""
    autoscaling_config: AutoscalingConfig | None = field(
        default=None, metadata=obeys(section(AutoscalingConfig, ignore_unknown=True))
    )
    backpressure_config: BackpressureConfig = field(
        default=BackpressureConfig(), metadata=obeys(section(BackpressureConfig, absent=BackpressureConfig()))
    )
    graceful_shutdown_timeout_s: float = field(default=20.0, metadata=obeys(number(at_least=0)))
    """Seconds that running requests get to finish when a replica stops."""
    graceful_shutdown_wait_loop_s: float = field(default=2.0, metadata=obeys(number(at_least=0)))
    """Accepted; has no effect here, where nothing polls for the last request to end."""
    health_check_period_s: float = field(default=10.0, metadata=obeys(positive()))
    health_check_timeout_s: float = field(default=30.0, metadata=obeys(positive()))
    max_constructor_retry_count: int | None = field(default=None, metadata=obeys(optional(whole(at_least=1))))
    """Attempts to start a replica. None, the default, means that the user did not ask for retries."""
    logging_config: LoggingConfig | None = field(default=None, metadata=obeys(section(LoggingConfig)))
    ray_actor_options: Mapping[str, object] = field(
        default_factory=dict[str, object], metadata=obeys(actor_options)
    )
    """``num_cpus``, ``num_gpus`` and the like, by Ray's names. A ``runtime_env`` has no effect here."""
    placement_group_bundles: Sequence[Mapping[str, float]] | None = field(
        default=None, metadata=obeys(optional(a_list))
    )
    """No effect here."""
    placement_group_strategy: str | None = field(
        default=None, metadata=obeys(optional(choice(*PLACEMENT_STRATEGIES)))
    )
    """No effect here."""
    placement_group_bundle_label_selector: Sequence[Mapping[str, str]] | None = field(
        default=None, metadata=obeys(optional(a_list))
    )
    """No effect here."""
    max_replicas_per_node: int | None = field(
        default=None, metadata=obeys(strictly(int, optional(whole(at_least=1, at_most=100))))
    )
    """No effect here."""
    request_router_config: Mapping[str, object] | None = field(default=None, metadata=obeys(optional(a_dict)))
    """No effect here: replicas take requests from one queue."""
    gang_scheduling_config: Mapping[str, object] | None = field(
        default=None, metadata=obeys(optional(a_dict))
    )
    """No effect here."""
    deployment_actors: Sequence[object] | None = field(default=None, metadata=obeys(optional(a_list)))
    """No effect here."""
    rolling_update_percentage: float = field(default=0.2, metadata=obeys(positive(at_most=1)))
    """No effect here: a new version is up before the old one goes."""
    max_surge_percent: int = field(default=0, metadata=obeys(whole(at_least=0, at_most=100)))
    """No effect here: a new version is up before the old one goes."""

    def __post_init__(self) -> None:
        if cast("object", self.num_replicas) == "auto":
            object.__setattr__(self, "autoscaling_config", automatic(self.autoscaling_config))
            object.__setattr__(self, "num_replicas", 1)
        validate(self)
        self._refuse_placement_conflicts()

    @property
    def initial_replicas(self) -> int:
        """Replicas to start with: at least one, because nothing would start the first one later."""
        scaling = self.autoscaling_config
        if scaling is None:
            return self.num_replicas
        first = scaling.min_replicas if scaling.initial_replicas is None else scaling.initial_replicas
        return max(1, first)

    def changed(self, options: Mapping[str, object]) -> DeploymentConfig:
        """Return a copy in which only the named options differ.

        ``num_replicas`` and ``autoscaling_config`` answer one question: the one named now wins over the other
        one from an earlier call.

        Raises:
            ConfigError: A value is refused, or both of these two are in ``options``.
            TypeError: An option is unknown, or a value is of a type for which Ray Serve says so, too.
        """
        if "version" in options:
            raise ConfigError("there is no option 'version': each run replaces what ran under the app's name")
        refuse_unknown(options, self.__dataclass_fields__, of="a deployment", error=TypeError)
        named: dict[str, Any] = dict(options)
        scaling = named.get("autoscaling_config")
        if isinstance(named.get("num_replicas"), int):
            if scaling is not None:
                raise ConfigError(
                    f"num_replicas={named['num_replicas']!r} and autoscaling_config exclude each other; "
                    "give min_replicas and max_replicas in autoscaling_config, or num_replicas alone"
                )
            named["autoscaling_config"] = None
        elif scaling is not None:
            named.setdefault("num_replicas", 1)
        elif named.get("num_replicas") == "auto":
            named["autoscaling_config"] = None
        return replace(self, **named)

    def _refuse_placement_conflicts(self) -> None:
        bundles, selector = self.placement_group_bundles, self.placement_group_bundle_label_selector
        if bundles is None and self.placement_group_strategy is not None:
            raise ConfigError("placement_group_strategy needs placement_group_bundles")
        if bundles is None and selector is not None:
            raise ConfigError("placement_group_bundle_label_selector needs placement_group_bundles")
        if bundles is not None and self.max_replicas_per_node is not None:
            raise ConfigError("placement_group_bundles and max_replicas_per_node exclude each other")
