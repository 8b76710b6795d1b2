"""A real server on a free port for each test, and clients for it."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import pytest

import threadserve as serve
from threadserve.api import http_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT_S = 20.0


class Web:
    """What is served in a test, seen from outside."""

    def __init__(self) -> None:
        self._clients: list[httpx.Client] = []

    def start(self, **http_options: Any) -> httpx.Client:
        """Start the server on a free port and return a client of it."""
        serve.start(http_options={"port": 0, **http_options})
        client = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)
        self._clients.append(client)
        return client

    def serve(
        self, app: Any, *, name: str = "default", prefix: str = "/", **http_options: Any
    ) -> httpx.Client:
        """Run `app` behind a server, and return a client."""
        client = self._clients[0] if self._clients else self.start(**http_options)
        serve.run(app, name=name, route_prefix=prefix)
        return client

    @property
    def url(self) -> str:
        url = http_url()
        assert url is not None
        return url

    def connect(self) -> socket.socket:
        """Open a connection and say nothing yet."""
        url = httpx.URL(self.url)
        return socket.create_connection((url.host, url.port), TIMEOUT_S)

    def ask(self, path: str = "/", *headers: str) -> socket.socket:
        """Send a request on a new connection, and leave its response unread."""
        connection = self.connect()
        lines = [f"GET {path} HTTP/1.1", "Host: test", *headers]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return connection

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def web() -> Iterator[Web]:
    with closing(Web()) as web:
        yield web


class Until(Protocol):
    """Waits for something that can only be looked at."""

    def __call__(self, condition: Callable[[], bool]) -> None: ...


@pytest.fixture
def until() -> Until:
    def wait(condition: Callable[[], bool]) -> None:
        nothing = threading.Event()
        give_up = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < give_up, "it did not come about"
            nothing.wait(0.002)

    return wait


@pytest.fixture
def hang_up() -> Callable[[socket.socket], None]:
    """Return what a client does that leaves without waiting for the rest."""

    def leave(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    return leave
