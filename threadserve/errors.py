"""Every error a user can catch.

::

    ServeError                                base; the message says what, where, and what to do
    |- ConfigError        (ValueError)        a declaration is wrong; raised at decoration, bind or run
    |  |- GraphError                          clashing names, two ingresses, a graph that cannot be built
    |  `- ImportStringError                   "module:attribute" cannot be loaded (says which half)
    |- DeployError                            the app could not become healthy
    |  |- ReplicaStartError                   the user's constructor failed; the original is __cause__
    |  `- ResourceError                       it asks for more than there is; .resource .asked .total
    |- RequestError                           about one request; .deployment and .request_id
    |  |- BackPressureError                   the queue is full; .queued .limit .retry_after_s
    |  |- RequestTimeoutError (TimeoutError)  the deadline passed; .elapsed_s
    |  |- RequestCancelledError (concurrent.futures.CancelledError)  someone cancelled
    |  |- DeadlockError                       a wait that can never end; names each deployment, method, request and line
    |  |- MethodNotFoundError (AttributeError)  no such method; .available
    |  |- ArgumentError    (TypeError)        an argument or result that cannot travel in this way
    |  |- ReplicaDiedError                    the replica went away with the request in it
    |  |  `- ActorDiedError                   the actor was killed, has ended, or could not start (then see __cause__)
    |  `- DeploymentUnavailableError          deleted, stopped or not deployed
    |- NotInReplicaError  (RuntimeError)      asked for what only a replica has, outside of one
    |- NotSupportedError                      this Python or this form cannot do it; says where it can
    `- InternalError                          a bug in threadserve; please report it

    Cancelled (BaseException)                 raised inside user code at a checkpoint

``Cancelled`` is no ServeError, so that ``except Exception`` in user code does not swallow it.
Every class survives pickling: the message is the only positional argument, all else is an attribute.
"""

from __future__ import annotations

from concurrent.futures import CancelledError

__all__ = [
    "ActorDiedError",
    "ArgumentError",
    "BackPressureError",
    "Cancelled",
    "ConfigError",
    "DeadlockError",
    "DeployError",
    "DeploymentUnavailableError",
    "GraphError",
    "ImportStringError",
    "InternalError",
    "MethodNotFoundError",
    "NotInReplicaError",
    "NotSupportedError",
    "ReplicaDiedError",
    "ReplicaStartError",
    "RequestCancelledError",
    "RequestError",
    "RequestTimeoutError",
    "ResourceError",
    "ServeError",
]


class ServeError(Exception):
    """Base of every error that threadserve raises on its own account."""


class ConfigError(ServeError, ValueError):
    """A declaration is wrong: an option, a bind argument, a name."""


class GraphError(ConfigError):
    """A bound graph cannot become an app."""


class ImportStringError(ConfigError):
    """An import string such as ``module:attribute`` cannot be loaded."""


class DeployError(ServeError):
    """An app could not become healthy."""


class ReplicaStartError(DeployError):
    """A replica could not start; the user's own exception is ``__cause__``."""


class ResourceError(DeployError):
    """A deployment asks for more than there is, so its reservation can never be met.

    Attributes:
        deployment: ``app/deployment`` that asked.
        resource: What there is too little of: ``"CPU"``, ``"GPU"``, ``"memory"`` or a name of the user's.
        asked: Resource -> the amount that was too much. The message says whose: of one replica, of all of
            them together, or of several deployments together.
        total: Resource -> the amount that there is.
    """

    def __init__(
        self,
        message: str,
        *,
        deployment: str = "",
        resource: str = "",
        asked: dict[str, float] | None = None,
        total: dict[str, float] | None = None,
    ) -> None:
        super().__init__(message)
        self.deployment = deployment
        self.resource = resource
        self.asked = asked or {}
        self.total = total or {}


class RequestError(ServeError):
    """Something about one request.

    Attributes:
        deployment: ``app/deployment`` that the request was for.
        request_id: The id of the request, as in ``response.request_id``.
    """

    def __init__(self, message: str, *, deployment: str = "", request_id: str = "") -> None:
        super().__init__(message)
        self.deployment = deployment
        self.request_id = request_id


class BackPressureError(RequestError):
    """The deployment's queue is full.

    Attributes:
        queued: Requests that waited when this one came.
        limit: The deployment's ``max_queued_requests``.
        status_code: What HTTP answers: 503, or 429 where ``backpressure_config`` says so.
        retry_after_s: What HTTP advises the client to wait, in seconds; None where nothing was configured.
    """

    def __init__(
        self,
        message: str,
        *,
        deployment: str = "",
        request_id: str = "",
        queued: int = 0,
        limit: int = 0,
        status_code: int = 503,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, deployment=deployment, request_id=request_id)
        self.queued = queued
        self.limit = limit
        self.status_code = status_code
        self.retry_after_s = retry_after_s


class RequestTimeoutError(RequestError, TimeoutError):
    """The deadline of a request passed before its answer came.

    Attributes:
        elapsed_s: Seconds from the call to the expiry; the sum of the three below.
        inputs_s: Seconds of it spent waiting for arguments.
        queued_s: Seconds of it spent in the queue.
        running_s: Seconds of it spent in the body.
    """

    def __init__(
        self,
        message: str,
        *,
        deployment: str = "",
        request_id: str = "",
        elapsed_s: float = 0.0,
        inputs_s: float = 0.0,
        queued_s: float = 0.0,
        running_s: float = 0.0,
    ) -> None:
        super().__init__(message, deployment=deployment, request_id=request_id)
        self.elapsed_s = elapsed_s
        self.inputs_s = inputs_s
        self.queued_s = queued_s
        self.running_s = running_s


class RequestCancelledError(RequestError, CancelledError):
    """Someone cancelled the request before its answer came."""


class DeadlockError(RequestError):
    """A wait that can never end: all that could end it waits for it, directly or through others."""


class MethodNotFoundError(RequestError, AttributeError):
    """The deployment has no such method.

    Attributes:
        available: The names that can be called.
    """

    def __init__(
        self,
        message: str,
        *,
        deployment: str = "",
        request_id: str = "",
        available: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, deployment=deployment, request_id=request_id)
        self.available = available


class ArgumentError(RequestError, TypeError):
    """An argument or a result cannot travel in this way; the message says what to do instead."""


class ReplicaDiedError(RequestError):
    """The replica went away while the request ran in it. The request is not run again."""


class ActorDiedError(ReplicaDiedError):
    """The actor is gone: killed, ended, or its code raised SystemExit. If its constructor failed, ``__cause__`` says how."""


class DeploymentUnavailableError(RequestError):
    """The deployment is deleted, stopped or was never deployed."""


class NotInReplicaError(ServeError, RuntimeError):
    """The call only makes sense in code that a replica runs."""


class NotSupportedError(ServeError):
    """This Python, or this way of running, cannot do what was asked; the message says what can."""


class InternalError(ServeError):
    """A bug in threadserve. Please report it with the traceback."""


class Cancelled(BaseException):
    """Raised inside user code at a checkpoint when the request it works for was cancelled or has expired."""
