"""What callers hold of a deployment: turns ``handle.method.remote(...)`` into a request and gives back its response."""

from __future__ import annotations

import math
from contextvars import copy_context
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    cast,
    overload,
)

from threadserve.call import directory
from threadserve.call.deadline import BOUND, check_timeout
from threadserve.call.request import CURRENT, Request
from threadserve.call.response import DeploymentResponse
from threadserve.call.stream import DeploymentResponseGenerator
from threadserve.concurrency.channel import Channel
from threadserve.concurrency.interrupts import INTERRUPTED, is_our_code_interrupted
from threadserve.concurrency.threads import get_ident, is_stack_full

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from threadserve.call.adapter import Adapter
    from threadserve.call.request import Router

    class StreamingHandle:
        """A handle with ``stream=True``, as type checkers see it; at run time there is only DeploymentHandle."""

        def remote(self, /, *args: Any, **kwargs: Any) -> DeploymentResponseGenerator[Any]: ...
        def options(self, **options: Any) -> StreamingHandle: ...
        def __getattr__(self, name: str) -> StreamingHandle: ...


__all__ = ["DeploymentHandle", "DeploymentResponse", "DeploymentResponseGenerator", "send"]

_INF = math.inf
_NO_KWARGS: dict[str, Any] = {}  # nobody writes into it; one dict less for the collector to look at, per call

T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")

_ACCEPTED = (
    "session_id",
    "_prefer_local_routing",
    "_by_reference",
    "request_serialization",
    "response_serialization",
)


class _Options(NamedTuple):
    """What ``options`` sets."""

    method_name: str
    stream: bool
    multiplexed_model_id: str
    timeout_s: float | None


class DeploymentHandle(Generic[T_co]):
    """Calls a deployment: ``handle.remote(...)`` calls the instance, ``handle.method.remote(...)`` one of its methods.

    ``remote`` never blocks and never raises for what the call contains; what went wrong arrives at the response.
    Handles are cheap, safe from any thread, may be passed around, kept across redeploys, and pickled.
    """

    _response_type: ClassVar[type[DeploymentResponse[Any]]] = DeploymentResponse
    _stream_type: ClassVar[type[DeploymentResponseGenerator[Any]]] = DeploymentResponseGenerator

    def __init__(
        self,
        router: Router,
        *,
        method_name: str = "__call__",
        stream: bool = False,
        multiplexed_model_id: str = "",
        timeout_s: float | None = None,
    ) -> None:
        self._router = router
        # In one, as each look at an attribute costs more where there is a __getattr__, before 3.12.
        self._options = _Options(method_name, stream, multiplexed_model_id, timeout_s)

    def __repr__(self) -> str:
        options = self._options
        method = "" if options.method_name == "__call__" else f".{options.method_name}"
        stream = ", stream=True" if options.stream else ""
        return f"<DeploymentHandle of {self._router.name}{method}{stream}; call it with .remote(...)>"

    @property
    def deployment_name(self) -> str:
        """The name of the deployment."""
        return self._router.deployment

    @property
    def app_name(self) -> str:
        """The name of the app."""
        return self._router.app

    if TYPE_CHECKING:

        @overload
        def remote(
            self: DeploymentHandle[Callable[..., Coroutine[Any, Any, R]]], /, *args: Any, **kwargs: Any
        ) -> DeploymentResponse[R]: ...
        @overload
        def remote(
            self: DeploymentHandle[Callable[..., R]], /, *args: Any, **kwargs: Any
        ) -> DeploymentResponse[R]: ...
        @overload
        def remote(self, /, *args: Any, **kwargs: Any) -> DeploymentResponse[Any]: ...

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call, and return the response at once: a DeploymentResponse, or a generator of items with ``stream=True``.

        Responses among the arguments are replaced by their values before the body runs; the call waits for
        them without holding a thread, a slot or a place in the queue. Never blocks. Safe from any thread. After
        the app was deleted the response fails with DeploymentUnavailableError.

        Raises:
            RecursionError: So little of the stack is left that the call could not be seen through; nothing was sent.
        """
        return self._call(args, kwargs)

    @overload
    def options(
        self,
        *,
        stream: Literal[True],
        method_name: str = ...,
        multiplexed_model_id: str = ...,
        timeout_s: float | None = ...,
        **accepted: Any,
    ) -> StreamingHandle: ...
    @overload
    def options(
        self,
        *,
        stream: Literal[False] = ...,
        method_name: str = ...,
        multiplexed_model_id: str = ...,
        timeout_s: float | None = ...,
        **accepted: Any,
    ) -> DeploymentHandle[Callable[..., Any]]: ...

    def options(
        self,
        *,
        method_name: str | None = None,
        stream: bool | None = None,
        multiplexed_model_id: str | None = None,
        timeout_s: float | None = None,
        **accepted: Any,
    ) -> Any:
        """Return a handle to the same deployment with other options; what is not named stays as it is.

        Args:
            method_name: The method that ``remote`` calls.
            stream: Whether ``remote`` returns a generator of the items that the method yields.
            multiplexed_model_id: What ``get_multiplexed_model_id()`` tells the method; not inherited by its own calls.
            timeout_s: Bounds each call, queueing and waiting for arguments included, in seconds. The calls that it
                makes inherit what is left. None leaves the bound as it is, ``math.inf`` lifts an inherited one.
            accepted: Options of Ray Serve's that have no effect in one process: session_id, _prefer_local_routing,
                _by_reference, request_serialization, response_serialization.

        Raises:
            TypeError: An option is unknown, or no string where one belongs.
            ValueError: timeout_s is not a positive number.
        """
        for name in accepted:
            if name not in _ACCEPTED:
                self._refuse_option(name)
        for option, text in (("method_name", method_name), ("multiplexed_model_id", multiplexed_model_id)):
            if text is not None and not isinstance(text, str):
                raise TypeError(f"handle of {self._router.name}: {option} must be a string, not {text!r}")
        if timeout_s is not None:
            check_timeout(f"handle of {self._router.name}", timeout_s)
        now = self._options
        return DeploymentHandle[Any](
            self._router,
            method_name=now.method_name if method_name is None else method_name,
            stream=now.stream if stream is None else bool(stream),
            multiplexed_model_id=now.multiplexed_model_id
            if multiplexed_model_id is None
            else multiplexed_model_id,
            timeout_s=now.timeout_s if timeout_s is None else timeout_s,
        )

    def __getattr__(self, name: str) -> DeploymentHandle[Callable[..., Any]]:
        if name.startswith("__") and name.endswith("__"):
            # Otherwise copy, pickle, numpy and pytest would see methods everywhere.
            raise AttributeError(
                f"handle of {self._router.name}: reach {name} with handle.options(method_name={name!r})"
                if "_router" in self.__dict__
                else name
            )
        handle = self.options(method_name=name)
        self.__dict__[name] = handle
        return handle

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        from reprlib import repr as shown  # short, and safe where a repr of the user's fails

        given = ", ".join([*map(shown, args), *(f"{name}={shown(value)}" for name, value in kwargs.items())])
        name = self._options.method_name
        method = "" if name == "__call__" else f".{name}"
        raise TypeError(f"a handle is not called itself: write handle{method}.remote({given})")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._router.app, self._router.deployment, *self._options)

    def _call(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        request_id: str | None = None,
        adapter: Adapter | None = None,
    ) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
        router = self._router
        method, stream, model_id, timeout_s = self._options
        if is_stack_full():
            raise RecursionError(f"the stack has no room left for a call of {router.name}.{method}")
        if type(router) is directory.Absent:  # unpickled before the app was run: it may run by now
            router = self._router = directory.find(router.app, router.deployment) or router
        parent, bound, context = CURRENT.get(), BOUND.get(), copy_context()
        if bound != _INF:
            context.run(BOUND.set, _INF)  # the body inherits what is left through its request
        if parent is not None and request_id is None:
            request_id = parent.request_id
        channel = Channel(router.kernel, router.stream_buffer_size) if stream else None
        request = Request(
            router,
            method,
            args,
            kwargs or _NO_KWARGS,
            context,
            get_ident(),
            request_id,
            channel,
            adapter,
        )
        if model_id:
            request.model_id = model_id
        if INTERRUPTED and is_our_code_interrupted():
            return self._call_later(request, parent, bound)
        if parent is not None or timeout_s is not None or bound != _INF:
            if parent is not None and parent.is_over:
                parent = None
            request.descend_from(parent, timeout_s, bound)
        router.assign(request)
        return self._stream_type(request) if stream else self._response_type(request)

    def _call_later(
        self, request: Request, parent: Request | None, bound: float
    ) -> DeploymentResponse[Any] | DeploymentResponseGenerator[Any]:
        """Make the call of a finalizer that interrupted code of ours, which may hold the locks that a call takes."""

        def assign() -> None:
            parent_now = None if parent is None or parent.is_over else parent
            request.descend_from(parent_now, self._options.timeout_s, bound)
            request.router.assign(request)

        request.router.kernel.errands.post(assign)
        return self._stream_type(request) if self._options.stream else self._response_type(request)

    def _refuse_option(self, name: str) -> NoReturn:
        import difflib

        known = ["method_name", "stream", "multiplexed_model_id", "timeout_s", *_ACCEPTED]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known[:4])}"
        raise TypeError(f"handle of {self._router.name} has no option {name!r}{hint}")


def send(
    handle: DeploymentHandle[Any],
    *args: Any,
    adapter: Adapter,
    request_id: str,
    multiplexed_model_id: str = "",
    timeout_s: float | None = None,
) -> DeploymentResponseGenerator[Any]:
    """Call a deployment from outside, through `adapter`, under a request id that came with the call."""
    timeout = math.inf if timeout_s is None else timeout_s
    bound: Any = handle.options(stream=True, multiplexed_model_id=multiplexed_model_id, timeout_s=timeout)
    return cast("DeploymentResponseGenerator[Any]", bound._call(args, {}, request_id, adapter))


def _rebuild(
    app: str, deployment: str, method_name: str, stream: bool, model_id: str, timeout_s: float | None
) -> DeploymentHandle[Any]:
    router = directory.find(app, deployment) or directory.Absent(
        app, deployment, "no such app runs in this process"
    )
    return DeploymentHandle(
        router, method_name=method_name, stream=stream, multiplexed_model_id=model_id, timeout_s=timeout_s
    )
