"""``ray.serve.handle``: handles and responses as Ray's, and what keeps the deployments behind them apart.

A call goes the same way as every other. Ray's rules stand at its ends: ``RayIsolation`` copies what goes in and comes out and
makes a RayTaskError of what the body raises; the response makes a copy for each fetch, and Ray's errors of ours.
"""

from __future__ import annotations

from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from threadserve import handle as ours
from threadserve.app.application import is_application
from threadserve.as_ray.errors import (
    GetTimeoutError,
    RayError,
    RayServeException,
    translated,
    wrapped,
)
from threadserve.call import directory
from threadserve.call.isolation import Isolation, Watch, culprit
from threadserve.call.request import RUNNING
from threadserve.call.response import DeploymentResponse as OurResponse
from threadserve.call.stream import DeploymentResponseGenerator as OurGenerator
from threadserve.concurrency.real import RealKernel
from threadserve.errors import NotSupportedError, ServeError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from threadserve.call.request import Request

__all__ = [
    "ISOLATION",
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
    "RayIsolation",
    "Sealed",
    "Sealing",
    "Slot",
    "face_of",
]

_NESTED = (
    "`DeploymentResponse` is not serializable. A response nested in a list, dict or object is not resolved: pass each as an "
    "argument of its own, or fetch the values first"
)
_STREAM = (
    "Streaming results cannot be passed downstream: a DeploymentResponseGenerator cannot be an argument; "
    "read it and pass the items"
)


class RayIsolation(Isolation):
    """Deployments apart from each other, by Ray's rules."""

    def enter(self, request: Request) -> None:
        """Copy the arguments; the body will see none of the caller's context variables."""
        for value in (*(request.args or ()), *(request.kwargs or {}).values()):
            if isinstance(value, OurGenerator):
                raise RuntimeError(_STREAM)
        super().enter(request)
        if request.adapter is self:
            request.context = Context()

    def reduced(self, value: object) -> Any:
        """Pickle a native handle as one of Ray's; refuse responses."""
        if type(value) is ours.DeploymentHandle:
            return face_of(value).__reduce__()
        if isinstance(value, OurResponse):
            raise RayServeException(_NESTED)
        if isinstance(value, OurGenerator):
            raise RayServeException(_STREAM)
        return NotImplemented

    def bound(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the bind arguments for one replica, with handles wherever applications were bound."""
        sealed = args[0] if args else None
        if not isinstance(sealed, Sealed):
            return super().bound(args, kwargs)
        return _Unsealing(sealed.children).copy(sealed.arguments)  # type: ignore[no-any-return]

    def unsendable(self, request: Request, name: int | str, value: Any, error: Exception) -> Exception:
        """Return Ray's TypeError; what refuses to be pickled on its own account keeps its error."""
        if isinstance(error, RayServeException):
            return error
        return TypeError(
            f"Could not serialize the argument {name}{culprit(value)} for "
            f"ServeReplica:{request.router.app}:{request.router.deployment}.{request.method}: {error}"
        )

    def raised(self, name: str, error: Exception) -> Exception:
        """Return the RayTaskError for what a body raised."""
        if isinstance(error, StopIteration):
            error = RuntimeError("coroutine raised StopIteration").with_traceback(error.__traceback__)
        return wrapped(f"ServeReplica:{name}", error, self.copy)

    def watch(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Watch:
        """Return copies; a body may do with them what it likes."""
        return Watch(name, self.copy(args), self.copy(kwargs), is_watching=False)


ISOLATION = RayIsolation()


@dataclass(frozen=True)
class Sealed:
    """Bind arguments as they were when they were bound, with a Slot in the place of each application.

    The graph finds the applications in `children`, and puts handles there.
    """

    arguments: Any
    children: tuple[Any, ...]


class Slot:
    """Stands in sealed arguments for one of the children."""

    def __init__(self, index: int) -> None:
        self.index = index


class Sealing(RayIsolation):
    """Copies bind arguments, and takes the applications out of whatever they are in."""

    def __init__(self) -> None:
        self.children: list[Any] = []

    def reduced(self, value: object) -> Any:
        """Put a Slot in the place of an application."""
        if not is_application(value):
            return super().reduced(value)
        if not any(child is value for child in self.children):
            self.children.append(value)
        return Slot, (next(index for index, child in enumerate(self.children) if child is value),)


class _Unsealing(RayIsolation):
    """Copies sealed arguments, and puts handles into the slots."""

    def __init__(self, handles: tuple[Any, ...]) -> None:
        self._handles = handles

    def reduced(self, value: object) -> Any:
        if isinstance(value, Slot):
            value = self._handles[value.index]
        return super().reduced(value)


class DeploymentResponse(OurResponse[Any]):
    """The answer to ``handle.method.remote(...)``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"DeploymentResponse(request_id={self.request_id!r})"

    def result(self, *, timeout_s: float | None = None, _skip_asyncio_check: bool = False) -> Any:
        """Wait for the answer and return a copy of it, a new one each time. See Ray.

        Raises:
            TimeoutError: It had not been started; GetTimeoutError, one of these, where it runs.
        """
        try:
            value = super().result(timeout_s=timeout_s)
        except ServeError as error:
            raise translated(error) from None
        except TimeoutError as error:
            if isinstance(error, RayError) or self.done():
                raise
            raise _late(self._request, error) from None
        return ISOLATION.copy(value)

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            value = yield from super().__await__()
        except ServeError as error:
            raise translated(error) from None
        return ISOLATION.copy(value)

    @property
    def by_reference(self) -> bool:
        """Always True, which is Ray's default."""
        return True

    def __reduce__(self) -> NoReturn:
        raise RayServeException(_NESTED)


def _late(request: Request, error: TimeoutError) -> TimeoutError:
    return GetTimeoutError(str(error)) if request.state is RUNNING else TimeoutError(str(error))


class DeploymentResponseGenerator(OurGenerator[Any]):
    """The items of ``handle.options(stream=True).method.remote(...)``; dropping it stops nothing."""

    __slots__ = ()

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except ServeError as error:
            raise translated(error) from None

    async def __anext__(self) -> Any:
        try:
            return await super().__anext__()
        except ServeError as error:
            raise translated(error) from None

    def __del__(self) -> None:
        """Leave the producer alone."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("close", "aclose"):
            raise AttributeError(f"'DeploymentResponseGenerator' object has no attribute {name!r}")
        return super().__getattribute__(name)

    def __reduce__(self) -> NoReturn:
        raise RayServeException(_STREAM)


class DeploymentHandle(ours.DeploymentHandle[Any]):
    """Calls a deployment, by Ray's rules."""

    _response_type = DeploymentResponse
    _stream_type = DeploymentResponseGenerator

    def __repr__(self) -> str:
        return f"DeploymentHandle(deployment='{self.deployment_name}')"

    def options(  # type: ignore[override]
        self,
        *,
        method_name: Any = None,
        multiplexed_model_id: Any = None,
        session_id: Any = None,
        stream: Any = None,
        _prefer_local_routing: Any = None,
        _by_reference: Any = None,
        request_serialization: Any = None,
        response_serialization: Any = None,
    ) -> DeploymentHandle:
        """Return a handle to the same deployment with other options."""
        return DeploymentHandle(
            self._router,
            method_name=self._method_name if method_name is None else method_name,
            stream=self._stream if stream is None else bool(stream),
            multiplexed_model_id=self._model_id if multiplexed_model_id is None else multiplexed_model_id,
        )

    def broadcast(self, method_name: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it is not built yet."""
        raise NotSupportedError("DeploymentHandle.broadcast is not supported in one process yet")

    def choose_replica(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the replicas of a deployment take requests from one queue, and none is chosen."""
        raise NotSupportedError("DeploymentHandle.choose_replica: replicas take requests from one queue here")

    def dispatch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused; see ``choose_replica``."""
        raise NotSupportedError("DeploymentHandle.dispatch: replicas take requests from one queue here")

    def running_replicas_populated(self) -> bool:
        """Whether calls find replicas; they do when ``serve.run`` has returned."""
        return True

    @property
    def is_initialized(self) -> bool:
        """Whether it has a router; it has one from the beginning."""
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        name = (self._router.app, self._router.deployment)
        return _rebuild, (*name, self._method_name, self._stream, self._model_id)


def _rebuild(app: str, deployment: str, method_name: str, stream: bool, model_id: str) -> DeploymentHandle:
    router = directory.find(app, deployment) or directory.Absent(
        app, deployment, "no such app runs in this process"
    )
    return DeploymentHandle(router, method_name=method_name, stream=stream, multiplexed_model_id=model_id)


_lock = RealKernel.lock()


def face_of(handle: ours.DeploymentHandle[Any]) -> DeploymentHandle:
    """Return Ray's face of a native handle, always the same one."""
    with _lock:
        faces = handle.__dict__
        if "threadserve.as_ray" not in faces:
            faces["threadserve.as_ray"] = DeploymentHandle(
                handle._router,
                method_name=handle._method_name,
                stream=handle._stream,
                multiplexed_model_id=handle._model_id,
            )
        face = faces["threadserve.as_ray"]
    assert isinstance(face, DeploymentHandle)
    return face


