"""Ray's exceptions, and how ours become Ray's where a script sees them.

What the code of a deployment, task or actor raises arrives as ``RayTaskError(E)``, a class made on demand that is both a
RayTaskError and an E. What the runtime itself has to say arrives bare, as the class that Ray would raise.
"""

from __future__ import annotations

import os
import traceback
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

from threadserve import errors as ours
from threadserve.concurrency.real import RealKernel
from threadserve.concurrency.threads import below_ours

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorUnavailableError",
    "BackPressureError",
    "DeploymentUnavailableError",
    "GetTimeoutError",
    "RayActorError",
    "RayError",
    "RayServeException",
    "RayTaskError",
    "ReplicaUnavailableError",
    "RequestCancelledError",
    "TaskCancelledError",
    "UnserializableException",
    "gRPCStatusError",
    "named",
    "translated",
    "wrapped",
]

# ---- ray.exceptions


class RayError(Exception):
    """Base of what Ray raises."""


class RayTaskError(RayError):
    """What code that ran elsewhere raised; the exception itself is ``cause``."""

    cause: Exception

    def __init__(self, function_name: str = "", traceback_str: str = "", cause: Any = None) -> None:
        super().__init__(cause)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "cause" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.cause, name)

    def __str__(self) -> str:
        return self.traceback_str

    def __reduce__(self) -> tuple[Any, ...]:
        return _rewrapped, (self.function_name, self.traceback_str, self.cause)

    def as_instanceof_cause(self) -> RayTaskError:
        """Return the same as an instance of the cause's class, too."""
        return _dual(self.function_name, self.traceback_str, self.cause)


class TaskCancelledError(RayError):
    """The task was cancelled."""


class GetTimeoutError(RayError, TimeoutError):
    """There was no answer in time."""


class RayActorError(RayError):
    """The actor is not there to answer."""


class ActorDiedError(RayActorError):
    """The actor, or replica, has died; or was killed."""


class ActorUnavailableError(RayActorError):
    """The actor is not there now."""


class ActorAlreadyExistsError(ValueError, RayError):
    """The name is another actor's."""


class UnserializableException(RayError):  # noqa: N818 - Ray's name
    """What was raised could not be made again on this side."""


_OTHERS = """
    ActorHandleNotFoundError ActorPlacementGroupRemoved
    ActorUnschedulableError AsyncioActorExit AuthenticationError CrossLanguageError
    LocalRayletDiedError NodeDiedError ObjectFetchTimedOutError ObjectFreedError ObjectLostError
    ObjectReconstructionFailedError ObjectRefStreamEndOfStreamError ObjectStoreFullError
    OutOfDiskError OutOfMemoryError OwnerDiedError PendingCallsLimitExceeded
    PlasmaObjectNotAvailable RaySystemError ReferenceCountingAssertionError RpcError
    RuntimeEnvSetupError TaskPlacementGroupRemoved TaskUnschedulableError UserCodeException
    WorkerCrashedError
    """


def named(name: str) -> type[RayError]:
    """Return one of those of Ray's exceptions that nothing raises here, so that it can be caught. Made on demand.

    Raises:
        AttributeError: Ray has no exception of that name.
    """
    if name not in _OTHERS.split():
        raise AttributeError(name)
    base = RayActorError if name.startswith("Actor") else RayError
    body = {"__doc__": "Caught by scripts; one process never raises it.", "__module__": "ray.exceptions"}
    made: type[RayError] = type(name, (base,), body)
    with _lock:
        return _made.setdefault(name, made)


_lock = RealKernel.lock()
_made: dict[str, type[RayError]] = {}  # guarded by _lock


# ---- ray.serve.exceptions


class RayServeException(Exception):  # noqa: N818 - Ray's name
    """What Serve refuses."""


class BackPressureError(RayServeException, ours.BackPressureError):
    """The queue is full. ``args`` are Ray's: requests queued, limit, status code, advised delay."""

    def __init__(
        self,
        num_queued_requests: int,
        max_queued_requests: int,
        status_code: int = 503,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = (
            "Request dropped due to backpressure "
            f"(num_queued_requests={num_queued_requests}, max_queued_requests={max_queued_requests})."
        )
        ours.BackPressureError.__init__(
            self,
            self.message,
            queued=num_queued_requests,
            limit=max_queued_requests,
            status_code=status_code,
            retry_after_s=retry_after_s,
        )
        self.args = (num_queued_requests, max_queued_requests, status_code, retry_after_s)

    def __str__(self) -> str:
        return self.message


class RequestCancelledError(RayServeException, TaskCancelledError):
    """The request was cancelled."""

    def __init__(self, request_id: str | None = None) -> None:
        super().__init__(request_id)
        self.request_id = request_id

    def __str__(self) -> str:
        return (
            "Request was cancelled."
            if self.request_id is None
            else f"Request {self.request_id} was cancelled."
        )


class DeploymentUnavailableError(RayServeException, ours.DeploymentUnavailableError):
    """The deployment is deleted, has failed, or was never deployed."""

    def __init__(self, deployment_id: object = None, reason: str = "") -> None:
        ours.DeploymentUnavailableError.__init__(self, str(deployment_id))
        self.args = (deployment_id,)
        self.message = f"{deployment_id} is unavailable: {reason}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.message)


class ReplicaUnavailableError(RayServeException):
    """The chosen replica is not there."""


class gRPCStatusError(RayServeException):  # noqa: N801 - Ray's name
    """Caught by scripts; there is no gRPC here."""


for _class in (RayError, *RayError.__subclasses__(), *RayActorError.__subclasses__()):
    _class.__module__ = "ray.exceptions"  # so they are shown, and found when they are unpickled
for _class in (RayServeException, *RayServeException.__subclasses__()):
    _class.__module__ = "ray.serve.exceptions"


# ---- wrapping


def wrapped(name: str, error: Exception, copy: Callable[[Exception], Exception]) -> Exception:
    """Return what the caller of `name` gets for the exception `error` of its body.

    That is a ``RayTaskError(E)`` around a copy of the exception, an UnserializableException where no copy can be made.
    """
    text = _text(name, error)
    if isinstance(error, RayTaskError):  # of a call that the body has made: wrapped once, the text grows
        return _dual(name, text, error.cause)
    try:
        cause = copy(error)
    except Exception:
        return UnserializableException(
            f"Failed to deserialize exception. Its class must be made again from its args. Original exception:\n{text}"
        )
    return _dual(name, text, cause)


def _text(name: str, error: Exception) -> str:
    trace = below_ours(error.__traceback__)
    told = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    return f"ray::{name}() (pid={os.getpid()}, in this process)\n{told}"


def _dual(name: str, text: str, cause: Exception) -> RayTaskError:
    cls = _dual_class(type(cause))
    if cls is None:
        return RayTaskError(name, text, cause)
    made = _raw(cls, cause)
    made.function_name, made.traceback_str, made.cause = name, text, cause
    made.args = (cause,)
    made.__suppress_context__ = True
    return made


def _raw(cls: type[RayTaskError], cause: Exception) -> RayTaskError:
    """Make an instance past what the user's class does in ``__new__`` and ``__init__``."""
    if isinstance(cause, ExceptionGroup):
        return ExceptionGroup.__new__(cls, cause.message, cause.exceptions)  # type: ignore[type-var]
    makers = (vars(base).get("__new__") for base in cls.__mro__)
    make = next(maker for maker in makers if isinstance(maker, BuiltinFunctionType))
    return make(cls, cause)  # type: ignore[no-any-return]


def _rewrapped(name: str, text: str, cause: Exception) -> RayTaskError:
    return _dual(name, text, cause)


_duals: dict[type[Exception], type[RayTaskError] | None] = {}  # guarded by _lock


def _dual_class(cls: type[Exception]) -> type[RayTaskError] | None:
    """Return the class that is both; None where Python lets no class be."""
    with _lock:
        known = cls in _duals
    if not known:
        name = f"RayTaskError({cls.__name__})"
        body = {
            "__module__": "ray.exceptions",
            "__init__": lambda self, *_: None,
            "__str__": RayTaskError.__str__,
        }
        try:
            dual = type(name, (RayTaskError, cls), {**body, "__qualname__": name})
        except TypeError:
            dual = None
        with _lock:
            _duals.setdefault(cls, dual)
    with _lock:
        return _duals[cls]


# ---- translation


def translated(error: BaseException) -> BaseException:
    """Return what Ray would raise where we raised `error`; itself, where that is the same or nothing of Ray's."""
    if not isinstance(error, ours.ServeError) or isinstance(error, (RayError, RayServeException)):
        return error
    for kind, translate in _TRANSLATIONS:
        if isinstance(error, kind):
            made = translate(error)
            made.__suppress_context__ = True
            return made.with_traceback(error.__traceback__)
    return error


def _unavailable(error: Any) -> Exception:
    app, _, deployment = error.deployment.partition("/")
    return DeploymentUnavailableError(f"Deployment(name='{deployment}', app='{app}')", str(error))


def _from_replica(error: Any, cause: Exception) -> Exception:
    return wrapped(f"ServeReplica:{error.deployment}", cause, lambda same: same)


_TRANSLATIONS: tuple[tuple[type[ours.ServeError], Callable[[Any], Exception]], ...] = (
    (
        ours.BackPressureError,
        lambda error: BackPressureError(error.queued, error.limit, error.status_code, error.retry_after_s),
    ),
    (ours.RequestCancelledError, lambda error: RequestCancelledError(error.request_id)),
    (ours.DeploymentUnavailableError, _unavailable),
    (ours.ReplicaDiedError, lambda error: ActorDiedError(f"The actor died: {error}")),
    (ours.MethodNotFoundError, lambda error: _from_replica(error, RayServeException(str(error)))),
    (ours.ArgumentError, lambda error: _from_replica(error, TypeError(str(error)))),
)
