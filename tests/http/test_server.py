from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

import threadserve as serve
from threadserve.app.config import HTTPOptions
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ServeError
from threadserve.http import listener as listener_module
from threadserve.http.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.http.conftest import Until, Web

WAIT_S = 20.0


def server(**options: Any) -> Server:
    return Server(RealKernel(), HTTPOptions(**{"port": 0, **options}), dict)


@pytest.fixture
def running() -> Iterator[Server]:
    made = server()
    made.start()
    yield made
    made.stop()


def http_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "threadserve http"]


def test_port_0_takes_a_free_port_and_tells_which(running: Server) -> None:
    assert running.port > 0
    assert running.url == f"http://127.0.0.1:{running.port}"
    assert httpx.get(f"{running.url}/-/routes", trust_env=False).json() == {}


def test_what_a_server_says_of_itself(running: Server) -> None:
    assert repr(running) == f"<Server {running.url} serving>"
    running.stop()
    assert repr(running) == f"<Server {running.url} stopped>"


def test_a_taken_port_is_named_and_costs_nothing(running: Server) -> None:
    other = server(port=running.port)

    with pytest.raises(ServeError, match=rf"127\.0\.0\.1:{running.port}.*taken") as raised:
        other.start()

    assert "\n" not in str(raised.value)
    assert len(http_threads()) == 1
    other.stop()


def test_a_port_that_is_bound_but_not_yet_listened_at_is_taken_as_well() -> None:
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]

        with pytest.raises(ServeError, match=f":{port}.*taken"):
            server(port=port).start()


def test_an_address_of_somebody_else_is_named() -> None:
    with pytest.raises(ServeError, match=r"cannot serve HTTP on 203\.0\.113\.1:0: \w+"):
        server(host="203.0.113.1").start()


def test_a_server_that_cannot_begin_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no protocol")

    monkeypatch.setattr(uvicorn.Config, "load", fail)
    broken = server()

    with pytest.raises(ServeError, match="cannot serve HTTP at") as raised:
        broken.start()

    assert str(raised.value.__cause__) == "no protocol"
    assert not http_threads()


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("localhost", "localhost"), ("::1", "[::1]")]
)
def test_the_url_is_one_that_clients_can_use(host: str, shown: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    made = server(host=host)
    made.start()

    try:
        assert made.url == f"http://{shown}:{made.port}"
        assert httpx.get(f"{made.url}/-/routes", trust_env=False).status_code == 200
    finally:
        made.stop()


def has_ipv6() -> bool:
    try:
        with closing(socket.socket(socket.AF_INET6)) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_responses_do_not_wait_for_nagle() -> None:
    # asyncio sets TCP_NODELAY only on sockets that name their protocol.
    with closing(listener_module.listen("127.0.0.1", 0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_stop_ends_the_thread_and_closes_the_socket() -> None:
    made = server()
    made.start()
    client = httpx.Client(base_url=made.url, trust_env=False)
    client.get("/-/routes")  # leaves an idle connection

    made.stop()
    made.stop()

    assert not http_threads()
    with pytest.raises(httpx.ConnectError):
        httpx.get(made.url, trust_env=False)
    client.close()
    again = server(port=made.port)
    again.start()
    again.stop()


def test_a_server_that_never_began_can_be_stopped() -> None:
    server().stop()


def test_the_server_and_its_loggers_are_left_as_they_were(web: Web) -> None:
    import logging

    log = logging.getLogger("uvicorn.error")
    before = list(log.filters)

    web.start()
    serve.shutdown()

    assert log.filters == before


class Gate:
    """An ingress that a test holds and lets go."""

    def __init__(self, started: threading.Event, go_on: threading.Event) -> None:
        self.started, self.go_on = started, go_on

    async def __call__(self) -> str:
        self.started.set()
        await asyncio.to_thread(self.go_on.wait)
        return "answered"


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_stop_lets_what_runs_finish(web: Web, until: Until) -> None:
    started, go_on = threading.Event(), threading.Event()
    client = web.serve(serve.deployment(Gate).bind(started, go_on))
    answers: list[httpx.Response] = []
    port = client.base_url.port or 0
    asking = threading.Thread(target=lambda: answers.append(client.get("/")))
    asking.start()
    assert started.wait(WAIT_S)
    stopping = threading.Thread(target=serve.shutdown)

    stopping.start()
    until(lambda: not accepts(port))
    go_on.set()
    asking.join(WAIT_S)
    stopping.join(WAIT_S)

    assert [answer.text for answer in answers] == ["answered"]
    assert not http_threads()


def test_stop_cancels_what_does_not_finish_in_time(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    started, cancelled = threading.Event(), threading.Event()

    @serve.deployment
    async def ingress() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    kernel = RealKernel()
    handle = serve.run(ingress.bind())
    made = Server(kernel, HTTPOptions(port=0), lambda: {"/": ("default", handle)}, lambda: 0.05)
    made.start()
    connection = socket.create_connection(("127.0.0.1", made.port))
    connection.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    assert started.wait(WAIT_S)

    made.stop()

    assert cancelled.wait(WAIT_S)
    assert not http_threads()
    connection.close()


def test_what_runs_has_as_long_as_its_app_gives_it(web: Web) -> None:
    @serve.deployment(graceful_shutdown_timeout_s=0.05)
    async def ingress() -> None:
        started.set()
        await asyncio.Event().wait()

    started = threading.Event()
    web.serve(ingress.bind())
    connection = web.connect()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    assert started.wait(WAIT_S)
    began = time.monotonic()

    serve.shutdown()

    assert time.monotonic() - began < 10  # which is half of what it has when nobody says otherwise
    assert not http_threads()
    connection.close()


def test_a_request_may_shut_everything_down(web: Web) -> None:
    @serve.deployment
    def ingress() -> str:
        serve.shutdown()
        return "the last word"

    client = web.serve(ingress.bind())

    response = client.get("/")

    assert response.text == "the last word"


def test_an_idle_connection_is_closed_after_a_while(web: Web) -> None:
    web.start(keep_alive_timeout_s=0.05)
    connection = web.ask("/-/healthz")
    received = b""

    while piece := connection.recv(1000):
        received += piece

    assert re.match(rb"HTTP/1\.1 \d+ ", received)
    connection.close()


def test_nonsense_is_refused_and_the_server_goes_on(web: Web) -> None:
    client = web.start()
    connection = web.connect()

    connection.sendall(b"this is no HTTP\r\n\r\n")

    assert b"400 Bad Request" in connection.recv(1000)
    connection.close()
    assert client.get("/-/routes").status_code == 200
