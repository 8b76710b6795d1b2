"""The ASGI app: finds the deployment that a path belongs to, calls it, and passes on what it says.

Each HTTP request is one request in the sense of ``threadserve.call``, made by ``handle.send`` with an
Exchange as its adapter, and read as a stream of ASGI messages. Between the replica and the socket lies
nothing but that stream's bounded channel: a slow client makes uvicorn wait, the channel fills, and the
producer waits.

Beside it a watcher reads what else the connection has to say, which is only ever that the client has left;
then the request is cancelled, and with it all that it has called.
"""

from __future__ import annotations

import asyncio
import logging
import math
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from starlette.responses import JSONResponse

from threadserve.concurrency.loops import give_way
from threadserve.errors import RequestCancelledError
from threadserve.handle import send as send_through
from threadserve.http.convert import BufferedRequest, Incoming, error_response, messages_of, text
from threadserve.http.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send

    from threadserve.call.stream import DeploymentResponseGenerator
    from threadserve.handle import DeploymentHandle

__all__ = ["ConnectionCut", "Route", "Routes", "match"]

Route = tuple[str, "DeploymentHandle[Any]"]
"""The name of an app, and the handle of its ingress."""

_log = logging.getLogger("threadserve")


class ConnectionCut(Exception):  # noqa: N818 - it is no mistake, it is how an ASGI app hangs up
    """Raised at the server to close a connection in the middle of a response; the reason has been logged."""


class Routes:
    """Serves all apps that have a route prefix; as an ASGI app, for one event loop."""

    def __init__(
        self, routes: Callable[[], dict[str, Route]], request_timeout_s: float | None = None
    ) -> None:
        self._routes = routes
        self._request_timeout_s = request_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise NotImplementedError(f"only HTTP is served, not {scope['type']}")
        headers = _Headers(scope)
        reply = _Reply(send, headers.get("x-request-id") or str(uuid4()))
        path = scope["path"].removeprefix(scope["root_path"])
        routes = self._routes()
        prefix = match(path, routes)
        if path == "/-/healthz":
            await reply.say(text("success") if routes else text("no app is running", 503))
        elif path == "/-/routes":
            await reply.say(JSONResponse({prefix: app for prefix, (app, _) in routes.items()}))
        elif prefix is None:
            await reply.say(text(f"Path {path!r} not found. /-/routes lists what is served here.", 404))
        else:
            await self._call(routes[prefix][1], _below(scope, prefix), headers, receive, reply)

    async def _call(
        self, handle: DeploymentHandle[Any], scope: Scope, headers: _Headers, receive: Receive, reply: _Reply
    ) -> None:
        try:
            timeout_s = headers.timeout_s(self._request_timeout_s)
        except ValueError as error:
            await reply.say(text(str(error), 400))
            return
        content = await _read(receive)
        if content is None:  # the client left before it had said what it wants
            return
        incoming = Incoming(content)
        stream = send_through(
            handle,
            adapter=Exchange(BufferedRequest(scope, incoming)),
            request_id=reply.request_id,
            multiplexed_model_id=headers.get("serve-multiplexed-model-id"),
            timeout_s=timeout_s,
        )
        is_bound = headers.get("x-request-disconnect-disabled") != "?1"
        watcher = asyncio.get_running_loop().create_task(
            _watch(receive, incoming, reply, stream.cancel if is_bound else _let_go)
        )
        try:
            await self._pass_on(stream, handle, incoming, reply)
        finally:
            watcher.cancel()
            stream.close()

    async def _pass_on(
        self,
        stream: DeploymentResponseGenerator[tuple[Message, ...]],
        handle: DeploymentHandle[Any],
        incoming: Incoming,
        reply: _Reply,
    ) -> None:
        """Send what the ingress says, until it ends or fails."""
        for number in count(1):
            if (
                not number % _IN_A_ROW
            ):  # where an item is always there nothing here suspends, and nobody else has a turn
                await give_way()
            try:
                messages = await anext(stream)
            except StopAsyncIteration:
                return
            except Exception as error:
                if incoming.has_client_left and isinstance(error, RequestCancelledError):
                    _log.info("request %s: the client has left", reply.request_id)
                    return
                await self._fail(error, f"{handle.app_name}/{handle.deployment_name}", reply)
                return
            for message in messages:
                await reply.send(message)

    async def _fail(self, error: Exception, ingress: str, reply: _Reply) -> None:
        response = error_response(error, ingress)
        if response.status_code == 500 or reply.has_begun:
            _log.error("request %s to %s failed", reply.request_id, ingress, exc_info=error)
        if not reply.has_begun:
            await reply.say(response)
        elif not reply.is_complete:
            raise ConnectionCut


_IN_A_ROW = 16
"""Items of a stream that are sent before others have a turn on the server's loop, the one who sees the client leave included."""


def match(path: str, prefixes: dict[str, Any]) -> str | None:
    """Return the longest of `prefixes` that `path` is, or lies below; None where there is none."""
    while path:
        if path in prefixes:
            return path
        path = path.rpartition("/")[0]
    return "/" if "/" in prefixes else None


def _below(scope: Scope, prefix: str) -> Scope:
    """Return the scope as the app under `prefix` sees it; the path stays whole."""
    root_path = scope["root_path"] + ("" if prefix == "/" else prefix)
    # 2.4: our send raises OSError once the client has left, so a response need not watch for that itself.
    return {**scope, "root_path": root_path, "asgi": {**scope["asgi"], "spec_version": "2.4"}}


class _Headers:
    """The request's headers by name: lower case, and a dash for an underscore."""

    def __init__(self, scope: Scope) -> None:
        self._values: dict[str, str] = {
            name.decode("latin-1").lower().replace("_", "-"): value.decode("latin-1")
            for name, value in reversed(scope["headers"])  # the first of several counts
        }

    def get(self, name: str) -> str:
        return self._values.get(name, "")

    def timeout_s(self, default: float | None) -> float | None:
        """Return the request's time limit in seconds, None for none."""
        given = self.get("x-request-timeout-seconds")
        if not given:
            return default
        try:
            timeout_s = float(given)
        except ValueError:
            timeout_s = math.nan
        if math.isnan(timeout_s):
            raise ValueError(f"the header x-request-timeout-seconds must be a number, not {given!r}")
        return timeout_s if timeout_s > 0 else None


class _Reply:
    """The response on its way to the client, under the request's id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.has_begun = False
        self.is_complete = False

    async def say(self, response: Response) -> None:
        """Send a plain response."""
        for message in messages_of(response):
            await self.send(message)

    async def send(self, message: Message) -> None:
        """Pass one ASGI message on. Waits while the client is slow."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            message = {**message, "headers": self._with_request_id(message.get("headers", ()))}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True  # first: sending it tells the watcher that there is no more to wait for
        await self._send(message)

    def _with_request_id(self, headers: Any) -> list[tuple[bytes, bytes]]:
        others = [(name, value) for name, value in headers if name.lower() != b"x-request-id"]
        return [*others, (b"x-request-id", self.request_id.encode("latin-1"))]


async def _read(receive: Receive) -> bytes | None:
    """Return the request's body; None if the client leaves in the middle of it."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _watch(receive: Receive, incoming: Incoming, reply: _Reply, leave: Callable[[], object]) -> None:
    """Call `leave` if the client goes before it has the whole response."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not reply.is_complete:
        incoming.has_client_left = True
        leave()


def _let_go() -> None:
    """Let the request run on for a client that said so beforehand."""
