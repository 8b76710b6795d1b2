"""``ray.serve.config`` and ``ray.serve.schema``: the declarations, as far as one process has a use for them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from threadserve.app.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    BackpressureConfig,
    LoggingConfig,
)
from threadserve.app.config import HTTPOptions as OurHTTPOptions
from threadserve.runtime.status import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

__all__ = [
    "AggregationFunction",
    "ApplicationStatus",
    "ApplicationStatusOverview",
    "AutoscalingConfig",
    "AutoscalingPolicy",
    "BackpressureConfig",
    "DeploymentStatus",
    "DeploymentStatusOverview",
    "DeploymentStatusTrigger",
    "HTTPOptions",
    "LoggingConfig",
    "ProxyLocation",
    "ProxyStatus",
    "RequestRouterConfig",
    "gRPCOptions",
]


class ProxyLocation(enum.StrEnum):
    """Where proxies run; there is one place."""

    Disabled = "Disabled"
    HeadOnly = "HeadOnly"
    EveryNode = "EveryNode"


class ProxyStatus(enum.StrEnum):
    """The state of a proxy."""

    STARTING = "STARTING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"


class AggregationFunction(enum.StrEnum):
    """What becomes of the samples of the load."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"


class _Given:
    """Options that are taken as they are given; those of a cluster have no effect here."""

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({given})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    __hash__ = None  # type: ignore[assignment]


class HTTPOptions(_Given):
    """Where and how HTTP is served. Those of Ray's options that only a cluster can honour have no effect."""

    @classmethod
    def of(cls, options: Any) -> HTTPOptions:
        """Return the options given as such, as a dict or as None."""
        if isinstance(options, cls):
            return options
        if isinstance(options, OurHTTPOptions):
            return cls(**{each.name: getattr(options, each.name) for each in fields(options)})
        return cls(**dict(options if isinstance(options, Mapping) else {}))

    @property
    def is_disabled(self) -> bool:
        """Whether there is to be no HTTP."""
        location = self.__dict__.get("location", "HeadOnly")
        return str(getattr(location, "value", location)) in {"NoServer", "Disabled"}

    @property
    def ours(self) -> OurHTTPOptions:
        """The same in our terms."""
        known = {each.name for each in fields(OurHTTPOptions)}
        given = {name: value for name, value in self.__dict__.items() if name in known and value is not None}
        return OurHTTPOptions(**given)


class gRPCOptions(_Given):  # noqa: N801 - Ray's name
    """Accepted; there is no gRPC here."""


class RequestRouterConfig(dict[str, Any]):
    """Accepted; replicas take requests from one queue."""

    def __init__(self, **options: Any) -> None:
        super().__init__(options)
