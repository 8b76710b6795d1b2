"""``ray.serve.handle``: handles and responses as Ray's.

A call goes the same way as every other. Ray's rules stand at its ends: what keeps the deployments apart (``isolation``), and the
response, which makes a copy for each fetch, and Ray's errors of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from threadserve import handle as ours
from threadserve.as_ray.errors import GetTimeoutError, RayError, RayServeException, translated
from threadserve.as_ray.isolation import FACES, ISOLATION, NESTED, STREAM
from threadserve.as_ray.refs import ObjectRef, ObjectRefGenerator, face_of_ref
from threadserve.call import directory
from threadserve.call.context import replica_here
from threadserve.call.request import RUNNING, current_request
from threadserve.call.response import DeploymentResponse as OurResponse
from threadserve.call.stream import DeploymentResponseGenerator as OurGenerator
from threadserve.concurrency.real import RealKernel
from threadserve.errors import NotSupportedError, ServeError

if TYPE_CHECKING:
    from collections.abc import Generator

    from threadserve.call.request import Request

__all__ = ["DeploymentHandle", "DeploymentResponse", "DeploymentResponseGenerator", "face_of"]

R = TypeVar("R")
T = TypeVar("T")


class DeploymentResponse(OurResponse[R]):
    """The answer to ``handle.method.remote(...)``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"DeploymentResponse(request_id={self.request_id!r})"

    def result(  # type: ignore[override]
        self, *, timeout_s: float | None = None, _skip_asyncio_check: bool = False
    ) -> Any:
        """Wait for the answer and return a copy of it, a new one each time. See Ray.

        Raises:
            TimeoutError: It had not been started; GetTimeoutError, one of these, where it runs.
        """
        _refuse_in_constructor(self._request)
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

    async def _to_object_ref(self) -> ObjectRef:
        return face_of_ref(await super()._to_object_ref())  # type: ignore[no-any-return]

    def _to_object_ref_sync(
        self, _timeout_s: float | None = None, _allow_running_in_asyncio_loop: bool = False
    ) -> ObjectRef:
        made = super()._to_object_ref_sync(_timeout_s, _allow_running_in_asyncio_loop)
        return face_of_ref(made)  # type: ignore[no-any-return]

    @property
    def by_reference(self) -> bool:
        """Always True, which is Ray's default."""
        return True

    def __reduce__(self) -> NoReturn:
        raise RayServeException(NESTED)


def _refuse_in_constructor(request: Request) -> None:
    """Raise RuntimeError in a constructor: with Ray it runs in an event loop, be it a `def`."""
    replica = replica_here()
    if replica is not None and replica.servable_object is None and current_request() is None:
        raise RuntimeError(
            f"Sync methods should not be called from within an `asyncio` event loop, in which constructors run: make it "
            f"`async def __init__` and await the response of {request.router.name}.{request.method}"
        )


def _late(request: Request, error: TimeoutError) -> TimeoutError:
    return GetTimeoutError(str(error)) if request.state is RUNNING else TimeoutError(str(error))


class DeploymentResponseGenerator(OurGenerator[R]):
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

    async def _to_object_ref_gen(self) -> ObjectRefGenerator:  # type: ignore[override]
        return face_of_ref(await super()._to_object_ref_gen())  # type: ignore[no-any-return]

    def _to_object_ref_gen_sync(  # type: ignore[override]
        self, _timeout_s: float | None = None, _allow_running_in_asyncio_loop: bool = False
    ) -> ObjectRefGenerator:
        return face_of_ref(super()._to_object_ref_gen_sync(_timeout_s, _allow_running_in_asyncio_loop))  # type: ignore[no-any-return]

    def __del__(self) -> None:
        """Leave the producer alone."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("close", "aclose"):
            raise AttributeError(f"'DeploymentResponseGenerator' object has no attribute {name!r}")
        return super().__getattribute__(name)

    def __reduce__(self) -> NoReturn:
        raise RayServeException(STREAM)


class DeploymentHandle(ours.DeploymentHandle[T]):
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
    ) -> DeploymentHandle[Any]:
        """Return a handle to the same deployment with other options."""
        now = self._options
        return DeploymentHandle(
            self._router,
            method_name=now.method_name if method_name is None else method_name,
            stream=now.stream if stream is None else bool(stream),
            multiplexed_model_id=now.multiplexed_model_id
            if multiplexed_model_id is None
            else multiplexed_model_id,
            timeout_s=now.timeout_s,
        )

    def __getattr__(self, name: str) -> DeploymentHandle[Any]:
        """Return a new handle of the method each time; dunder names are refused, which Ray does not."""
        handle = super().__getattr__(name)
        self.__dict__.pop(name, None)
        return handle  # type: ignore[return-value]

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
        return _rebuild, (*name, *self._options)


def _rebuild(
    app: str, deployment: str, method_name: str, stream: bool, model_id: str, timeout_s: float | None
) -> DeploymentHandle[Any]:
    router = directory.find(app, deployment) or directory.Absent(
        app, deployment, "no such app runs in this process"
    )
    return DeploymentHandle(
        router, method_name=method_name, stream=stream, multiplexed_model_id=model_id, timeout_s=timeout_s
    )


_lock = RealKernel.lock()


def face_of(handle: ours.DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """Return Ray's face of a native handle, always the same one."""
    with _lock:
        faces = handle.__dict__
        if "threadserve.as_ray" not in faces:
            faces["threadserve.as_ray"] = DeploymentHandle(handle._router, **handle._options._asdict())
        face = faces["threadserve.as_ray"]
    assert isinstance(face, DeploymentHandle)
    return face


FACES[ours.DeploymentHandle] = face_of
