"""What there is: frozen snapshots of apps and deployments, in Ray Serve's words."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

__all__ = [
    "ApplicationStatus",
    "ApplicationStatusOverview",
    "DeploymentStatus",
    "DeploymentStatusOverview",
    "DeploymentStatusTrigger",
    "ServeStatus",
]


class ApplicationStatus(enum.StrEnum):
    """The state of an app."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    RUNNING = "RUNNING"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"


class DeploymentStatus(enum.StrEnum):
    """The state of a deployment."""

    UPDATING = "UPDATING"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DEPLOY_FAILED = "DEPLOY_FAILED"


class DeploymentStatusTrigger(enum.StrEnum):
    """What brought a deployment into its state."""

    CONFIG_UPDATE_STARTED = "CONFIG_UPDATE_STARTED"
    CONFIG_UPDATE_COMPLETED = "CONFIG_UPDATE_COMPLETED"
    HEALTH_CHECK_FAILED = "HEALTH_CHECK_FAILED"
    REPLICA_STARTUP_FAILED = "REPLICA_STARTUP_FAILED"
    DELETING = "DELETING"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentStatusOverview:
    """One deployment at one moment."""

    status: DeploymentStatus
    status_trigger: DeploymentStatusTrigger
    replica_states: dict[str, int]
    """How many replicas are in which state: STARTING, RUNNING, STOPPING; absent when none is."""
    replica_type: str = "thread"
    """Where its code runs: "thread" or "interpreter". Not in Ray Serve's status."""
    message: str = ""
    """For a failed start: the traceback of the user's code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationStatusOverview:
    """One app at one moment."""

    status: ApplicationStatus
    message: str = ""
    last_deployed_time_s: float
    """Seconds since the epoch."""
    route_prefix: str | None = None
    """Where HTTP enters; None when it does not."""
    deployments: dict[str, DeploymentStatusOverview] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeStatus:
    """All apps at one moment."""

    applications: dict[str, ApplicationStatusOverview] = field(default_factory=dict)
