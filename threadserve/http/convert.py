"""What Python says in HTTP: a handler's value as a response, an error as a status.

A request's way in is short: ``BufferedRequest`` is Starlette's own Request over a body that is there already.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import decimal
import enum
import ipaddress
import json
import math
import pathlib
import re
import uuid
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request
from starlette.responses import Response

from threadserve.call.request import current_request
from threadserve.call.response import DeploymentResponse
from threadserve.call.stream import DeploymentResponseGenerator
from threadserve.concurrency.loops import LoopWaiter
from threadserve.errors import BackPressureError, DeploymentUnavailableError, RequestTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from starlette.types import Message, Scope

    from threadserve.call.request import Request as ServeRequest

__all__ = [
    "BufferedRequest",
    "Incoming",
    "encode",
    "error_response",
    "is_plain",
    "messages_of",
    "response_of",
    "text",
]


# The way in.


class Incoming:
    """What a client has sent, and whether it is still there."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.has_client_left = False
        """Set by who watches the connection."""
        self._is_received = False

    async def receive(self) -> Message:
        """Be the ASGI receive of whatever the user hands the request to: the body, later the disconnect."""
        if not self._is_received:
            self._is_received = True
            return {"type": "http.request", "body": self.content, "more_body": False}
        await _until_answered(current_request())  # which the client's leaving does
        return {"type": "http.disconnect"}


async def _until_answered(request: ServeRequest | None) -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    told = LoopWaiter(loop, future)
    if request is not None and request.subscribe(told):
        try:
            await future
        finally:
            request.forget(told)


_OF_HTTP = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "app_root_path",
    "headers",
    "client",
    "server",
)


class BufferedRequest(Request):
    """An HTTP request whose body is all there: it can be read on any event loop or thread, repeatedly."""

    def __init__(self, scope: Scope, incoming: Incoming) -> None:
        super().__init__(scope, incoming.receive)
        self._incoming = incoming

    def luggage(self) -> tuple[Scope, bytes]:
        """Return what it can be made of anew in another interpreter: what ASGI says of HTTP, and the body."""
        return {name: self.scope[name] for name in _OF_HTTP if name in self.scope}, self._incoming.content

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body and, as Starlette does, an empty end."""
        if self._incoming.content:
            yield self._incoming.content
        yield b""

    async def body(self) -> bytes:
        """Return the body."""
        return self._incoming.content

    async def is_disconnected(self) -> bool:
        """Whether the client has gone away."""
        return self._incoming.has_client_left


# The way out: values.


def response_of(value: Any) -> Response:
    """Return the response that says `value`; a response is one already.

    Raises:
        TypeError: `value` is nothing that can be sent; the message says what to do instead.
        ValueError: JSON cannot say it, a list that contains itself for one.
    """
    if isinstance(value, Response):
        return value
    if isinstance(value, str):
        return text(value)
    if value is None:
        value = b""
    if isinstance(value, (bytes, bytearray)):
        return Response(bytes(value), headers={"content-type": "text/plain"})
    _refuse_generator(value)
    return Response(encode(value), media_type="application/json")


def text(content: str, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a plain text response."""
    return Response(content, status_code, headers, media_type="text/plain")


def is_plain(response: Response) -> bool:
    """Whether all there is to say stands in the response's fields: nothing has to be run to send it."""
    return type(response).__call__ is Response.__call__ and response.background is None


def messages_of(response: Response) -> tuple[Message, ...]:
    """Return the ASGI messages of a plain response."""
    return (
        {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers},
        {"type": "http.response.body", "body": response.body},
    )


def _refuse_generator(value: Any) -> None:
    if isinstance(value, (GeneratorType, AsyncGeneratorType, DeploymentResponseGenerator)):
        kind = cast("object", value).__class__.__name__
        raise TypeError(
            f"the handler is a generator, or returned one ({kind}), which HTTP cannot send: "
            "return starlette.responses.StreamingResponse(generator)"
        )


# JSON.


def encode(value: Any) -> bytes:
    """Return `value` as compact JSON.

    Beside what JSON knows: sets, dataclasses, enums, dates and other simple values of the standard library,
    numpy's arrays and scalars, pandas' frames, pydantic's models. NaN and the infinities are written as
    JavaScript does.

    Raises:
        TypeError: There is no JSON for a value.
        ValueError: A container contains itself.
    """
    with suppress(TypeError):  # perhaps for a key, which json asks nobody about
        return _dump(value)
    return _dump(_with_plain_keys(value))


def _dump(value: Any) -> bytes:
    return json.dumps(value, default=_simplify, separators=(",", ":")).encode()


def _simplify(value: Any) -> Any:
    """Say `value`, which json does not know, one step simpler."""
    _refuse_generator(value)
    cls = cast("Any", type(value))
    if dataclasses.is_dataclass(cls):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(cls)}
    for types, simplify in _SIMPLER:
        if isinstance(value, types):
            return simplify(value)
    if hasattr(cls, "model_dump"):  # pydantic's models
        return value.model_dump(mode="json", by_alias=True)
    if hasattr(cls, "tolist"):  # numpy's arrays and scalars
        return value.tolist()
    if cls.__module__.startswith("pandas.") and hasattr(cls, "to_dict"):
        return value.to_dict(orient="records")
    hint = "await it, or use .result() in a def" if isinstance(value, DeploymentResponse) else _SENDABLE
    raise TypeError(f"the handler returned a {cls.__qualname__}, or a value with one inside: {hint}")


def _number(value: decimal.Decimal) -> int | float:
    exponent = value.as_tuple().exponent
    return int(value) if isinstance(exponent, int) and exponent >= 0 else float(value)


_SIMPLER: list[tuple[tuple[type, ...], Callable[[Any], Any]]] = [
    ((Mapping,), dict),
    ((set, frozenset, deque), list),
    ((enum.Enum,), lambda value: value.value),
    ((dt.date, dt.time), lambda value: value.isoformat()),
    ((dt.timedelta,), dt.timedelta.total_seconds),
    ((decimal.Decimal,), _number),
    ((bytes,), bytes.decode),
    ((re.Pattern,), lambda value: value.pattern),
    ((uuid.UUID, pathlib.PurePath, BaseException), str),
    ((ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network), str),
]
_SENDABLE = "return str, bytes, what JSON can say, a dataclass, a pydantic model, or a Starlette response"


def _with_plain_keys(value: Any) -> Any:
    """Return `value` with the keys of its dicts made into what JSON allows there."""
    if isinstance(value, _DICTS):
        return {_key(key): _with_plain_keys(inner) for key, inner in value.items()}
    if isinstance(value, _LISTS):
        return [_with_plain_keys(inner) for inner in value]
    return value if isinstance(value, _PLAIN) else _with_plain_keys(_simplify(value))


def _key(key: Any) -> Any:
    return key if isinstance(key, _PLAIN) else _key(_simplify(key))


# What JSON knows by itself.
_PLAIN: tuple[type[Any], ...] = (str, int, float, type(None))
_LISTS: tuple[type[Any], ...] = (list, tuple)
_DICTS: tuple[type[Any], ...] = (dict,)


# The way out: errors.


def error_response(error: BaseException, ingress: str) -> Response:
    """Return what a client is told of `error`: much of ours, nothing of the user's.

    `ingress` is ``app/deployment`` that was called. That its time is up is 408; that its handler let the
    timeout of a call of its own through is an error like any other.
    """
    match error:
        case BackPressureError():
            after = error.retry_after_s
            headers = None if after is None else {"retry-after": str(math.ceil(after))}
            return text(str(error), error.status_code, headers)
        case DeploymentUnavailableError():
            return text(str(error), 503)
        case RequestTimeoutError() if error.deployment == ingress:
            return text(f"Request {error.request_id} timed out after {error.elapsed_s:.3g} s.", 408)
        case _:
            return Response("Internal Server Error", 500)
