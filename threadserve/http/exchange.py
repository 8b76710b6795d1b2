"""How an ingress is called with an HTTP request, and how its response becomes the items of a stream.

The items are tuples of ASGI messages: one tuple for all of a plain response, and one for each message of a
response that has to be run (a StreamingResponse, a FileResponse, one with background tasks).

Such a response is run inside the request: on the replica's loop where the handler is a coroutine, on the
worker's thread otherwise. So its body may use what belongs to that loop, the slot is held until its last
byte, it is cancelled with the request, and it waits when the client is slow.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from threadserve.call.request import CURRENT, Request
from threadserve.call.response import DeploymentResponse
from threadserve.call.stream import DeploymentResponseGenerator
from threadserve.concurrency.interruptible import run_interruptibly
from threadserve.http.convert import BufferedRequest, Incoming, is_plain, messages_of, response_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.responses import Response
    from starlette.types import Message, Scope

    from threadserve.concurrency.channel import Channel

__all__ = ["Exchange", "takes_argument"]

Messages = tuple["Message", ...]


class Exchange:
    """The Adapter of one HTTP request: calls the ingress with it, and says in ASGI what comes of that."""

    def __init__(self, request: BufferedRequest) -> None:
        self.request = request

    def __reduce__(self) -> tuple[Any, ...]:
        """Go into another interpreter; there the client's leaving is heard of as the cancellation that it brings."""
        return _arrived, self.request.luggage()

    def iterate(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a `def` and return an iterator of its messages; an async one if a coroutine came out of it."""
        result = self._call(fn, args, kwargs)
        if _is_pending(result):
            return self._say_async(result)
        return self._say(response_of(result))

    def aiterate(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncIterator[Messages]:
        """Call an `async def` and return an async iterator of its messages."""
        return self._say_async(self._call(fn, args, kwargs))

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return fn(self.request, *args, **kwargs) if takes_argument(fn) else fn(*args, **kwargs)

    def _say(self, response: Response) -> Iterator[Messages]:
        if is_plain(response):
            yield messages_of(response)
            return
        request, _ = _current()
        run_interruptibly(request.router.kernel, self._perform(response), request.attach)

    async def _say_async(self, result: Any) -> AsyncIterator[Messages]:
        response = response_of(await result if _is_pending(result) else result)
        if is_plain(response):
            yield messages_of(response)
        else:
            await self._perform(response)

    async def _perform(self, response: Response) -> None:
        """Run `response`. It sends straight into the request's channel: a generator cannot yield for it."""
        _, channel = _current()

        async def send(message: Message) -> None:
            if not await channel.aput((message,)):
                raise ConnectionAbortedError("the client has left, or the request was cancelled")

        try:
            await response(self.request.scope, self.request.receive, send)
        finally:
            await _close_body(response)


def _arrived(scope: Scope, content: bytes) -> Exchange:
    return Exchange(BufferedRequest(scope, Incoming(content)))


def _current() -> tuple[Request, Channel]:
    request = CURRENT.get()
    assert request is not None
    assert request.channel is not None
    return request, request.channel


def _is_pending(result: Any) -> bool:
    """Whether `result` is a coroutine or the like; an unresolved response of ours is a mistake to be told."""
    return inspect.isawaitable(result) and not isinstance(
        result, (DeploymentResponse, DeploymentResponseGenerator)
    )


async def _close_body(response: Response) -> None:
    """Let a body that was not read to its end tidy up now, in its own context."""
    close = getattr(getattr(response, "body_iterator", None), "aclose", None)
    if close is not None:
        await close()


def takes_argument(fn: Callable[..., Any]) -> bool:
    """Whether `fn` can be called with one positional argument; if in doubt, it can.

    A wrapper's own signature counts, unless it is one that takes anything: then what it wraps decides.
    """
    own = _parameters(fn, follow_wrapped=False)
    if own is None:
        return True
    if own and all(parameter.kind in _ANYTHING for parameter in own):
        own = _parameters(fn, follow_wrapped=True) or []
    return any(parameter.kind in _POSITIONAL for parameter in own)


_ANYTHING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


def _parameters(fn: Callable[..., Any], *, follow_wrapped: bool) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(fn, follow_wrapped=follow_wrapped).parameters.values())
    except (TypeError, ValueError):  # made in C, and silent about it
        return None
