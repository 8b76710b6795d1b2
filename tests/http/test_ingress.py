"""What an ingress gets from HTTP, and what becomes of what it returns."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING, Any

import pytest
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

import threadserve as serve

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from starlette.requests import Request

    from tests.http.conftest import Until, Web

WAIT_S = 20.0


class Counter:
    """Counts in all the ways there are to stream."""

    def count(self, end: int) -> Iterator[str]:
        for number in range(end):
            yield f"{number},"

    async def acount(self, end: int) -> AsyncIterator[str]:
        for number in range(end):
            yield f"{number},"


# The request.


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_an_async_ingress_gets_the_whole_request(web: Web, method: str) -> None:
    @serve.deployment
    async def ingress(request: Request) -> Any:
        return [
            request.method,
            request.query_params["q"],
            request.headers["x-a"],
            request.cookies["c"],
            (await request.body()).decode(),
            await request.json(),
            request.client is not None,
        ]

    client = web.serve(ingress.bind())

    response = client.request(method, "/?q=1", headers={"x-a": "b", "cookie": "c=d"}, content='{"n": 1}')

    assert response.json() == [method, "1", "b", "d", '{"n": 1}', {"n": 1}, True]


def test_a_sync_ingress_reads_the_body_with_a_loop_of_its_own(web: Web) -> None:
    @serve.deployment
    def ingress(request: Request) -> Any:
        async def pieces() -> list[str]:
            return [piece.decode() async for piece in request.stream()]

        return [asyncio.run(request.json()), asyncio.run(pieces()), asyncio.run(request.is_disconnected())]

    client = web.serve(ingress.bind())

    assert client.post("/", json=[1]).json() == [[1], ["[1]", ""], False]


def test_a_large_body_arrives_whole(web: Web) -> None:
    @serve.deployment
    async def ingress(request: Request) -> bytes:
        return await request.body()

    body = bytes(range(256)) * 4096 * 4

    assert web.serve(ingress.bind()).post("/", content=body).content == body


def open_wrapper(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def test_an_ingress_that_takes_nothing_gets_nothing(web: Web) -> None:
    class Nothing:
        def __call__(self) -> str:
            return "class"

    class AsyncNothing:
        @open_wrapper
        async def __call__(self) -> str:
            return "async class"

    @serve.deployment
    def function() -> str:
        return "function"

    @serve.deployment
    @open_wrapper
    async def coroutine() -> str:
        return "decorated coroutine"

    client = web.start()
    apps = [serve.deployment(Nothing), serve.deployment(AsyncNothing), function, coroutine]
    for number, each in enumerate(apps):
        web.serve(each.bind(), name=f"app{number}", prefix=f"/{number}")

    texts = [client.get(f"/{number}").text for number in range(len(apps))]

    assert texts == ["class", "async class", "function", "decorated coroutine"]


def test_a_decorated_ingress_gets_the_request(web: Web) -> None:
    @serve.deployment
    @open_wrapper
    async def ingress(request: Request) -> Any:
        return await request.json()

    assert web.serve(ingress.bind()).post("/", json={"a": 1}).json() == {"a": 1}


def test_a_handle_still_passes_what_it_is_given(web: Web) -> None:
    @serve.deployment
    def ingress(value: object) -> str:
        return type(value).__name__

    client = web.serve(ingress.bind())

    assert client.get("/").text == "BufferedRequest"
    assert serve.get_app_handle("default").remote(3).result() == "int"


def test_an_ingress_without_call_is_a_failure_that_the_log_explains(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent:
        def speak(self) -> None: ...

    client = web.serve(serve.deployment(Silent).bind())

    assert client.get("/").status_code == 500
    assert "__call__" in caplog.text
    assert "speak" in caplog.text


# The response.


def test_responses_keep_their_status_headers_and_cookies(web: Web) -> None:
    @serve.deployment
    def ingress(request: Request) -> Response:
        if request.url.path == "/away":
            return RedirectResponse("/there")
        response = JSONResponse({"a": 1}, status_code=201, headers={"x-mine": "1"})
        response.set_cookie("c", "d")
        return response

    client = web.serve(ingress.bind())

    made, away = client.get("/"), client.get("/away")

    assert (made.status_code, made.json(), made.headers["x-mine"]) == (201, {"a": 1}, "1")
    assert made.cookies["c"] == "d"
    assert (away.status_code, away.headers["location"]) == (307, "/there")


def test_a_head_request_gets_the_headers_alone(web: Web) -> None:
    @serve.deployment
    def ingress() -> str:
        return "four"

    response = web.serve(ingress.bind()).head("/")

    assert (response.headers["content-length"], response.content) == ("4", b"")


def test_what_cannot_be_said_in_http_is_a_failure_that_the_log_explains(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy:
        def __init__(self, counter: serve.DeploymentHandle[Any]) -> None:
            self.counter = counter

        def __call__(self, request: Request) -> Any:
            return {
                "/function": open_wrapper,
                "/generator": self.counter.options(stream=True).count.remote(3),
                "/response": self.counter.count.remote(3),
            }[request.url.path]

    client = web.serve(serve.deployment(Clumsy).bind(serve.deployment(Counter).bind()))
    hints = {
        "/function": "a function",
        "/generator": "return starlette.responses.StreamingResponse(generator)",
        "/response": "await it, or use .result()",
    }
    for path, hint in hints.items():
        caplog.clear()
        assert client.get(path).status_code == 500
        assert hint in caplog.text


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_bare_generator_is_a_failure_that_the_log_explains(
    web: Web, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    @serve.deployment
    def generator() -> Iterator[str]:
        yield "a"

    @serve.deployment
    async def agenerator() -> AsyncIterator[str]:
        yield "a"

    client = web.serve({"sync": generator, "async": agenerator}[kind].bind())

    assert client.get("/").status_code == 500
    assert "StreamingResponse(generator)" in caplog.text


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_file_is_sent_as_one(web: Web, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(b"0123456789" * 50_000)

    @serve.deployment
    def sync() -> Response:
        return FileResponse(path)

    @serve.deployment
    async def coroutine() -> Response:
        return FileResponse(path)

    client = web.serve({"sync": sync, "async": coroutine}[kind].bind())

    assert client.get("/").content == path.read_bytes()
    part = client.get("/", headers={"range": "bytes=10-14"})
    assert (part.status_code, part.text) == (206, "01234")


# Streams.


class Streaming:
    """Streams, as a coroutine, all that can be streamed."""

    def __init__(self, counter: serve.DeploymentHandle[Any]) -> None:
        self.counter = counter.options(stream=True)

    async def __call__(self, request: Request) -> Response:
        return StreamingResponse(self.bodies(request.url.path)())

    def bodies(self, path: str) -> Callable[[], Any]:
        counter = self.counter
        return {
            "/handle": lambda: counter.count.remote(200),
            "/ahandle": lambda: counter.acount.remote(200),
            "/generator": lambda: Counter().count(200),
            "/agenerator": lambda: Counter().acount(200),
            "/reyield": lambda: (item for item in counter.acount.remote(200)),
            "/areyield": lambda: (item async for item in counter.count.remote(200)),
        }[path]


class SyncStreaming(Streaming):
    """The same in a def."""

    def __call__(self, request: Request) -> Response:  # type: ignore[override]
        return StreamingResponse(self.bodies(request.url.path)())


@pytest.mark.parametrize("ingress", [Streaming, SyncStreaming])
def test_both_kinds_of_ingress_stream_all_kinds_of_bodies(web: Web, ingress: Any) -> None:
    counter = serve.deployment(Counter).bind()
    deployed: Any = serve.deployment(ingress)
    client = web.serve(deployed.bind(counter))
    whole = "".join(Counter().count(200))

    for path in ("/handle", "/ahandle", "/generator", "/agenerator", "/reyield", "/areyield"):
        response = client.get(path)
        assert response.text == whole, path
        assert response.headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_chunks_leave_as_they_come(web: Web, kind: str) -> None:
    asked = threading.Semaphore(0)

    def body() -> Iterator[str]:
        for number in range(3):
            assert asked.acquire(timeout=WAIT_S)
            yield str(number)

    @serve.deployment
    def sync() -> Response:
        return StreamingResponse(body())

    @serve.deployment
    async def coroutine() -> Response:
        return StreamingResponse(body())

    client = web.serve({"sync": sync, "async": coroutine}[kind].bind())

    with client.stream("GET", "/") as response:
        chunks = response.iter_raw()
        received = []
        for _ in range(3):
            asked.release()
            received.append(next(chunks))

    assert received == [b"0", b"1", b"2"]


def test_a_body_may_use_what_belongs_to_the_replicas_loop(web: Web) -> None:
    class Ingress:
        def __init__(self) -> None:
            self.lines: asyncio.Queue[str | None] = asyncio.Queue()

        async def __call__(self, request: Request) -> Any:
            if request.method == "POST":
                await self.lines.put((await request.body()).decode() or None)
                return None
            loop, context = asyncio.get_running_loop(), serve.get_replica_context()

            async def body() -> AsyncIterator[str]:
                assert asyncio.get_running_loop() is loop
                assert serve.get_replica_context() is context
                while (line := await self.lines.get()) is not None:
                    yield line

            return StreamingResponse(body())

    client = web.serve(serve.deployment(Ingress).bind())
    for line in ("a", "b", ""):
        client.post("/", content=line)

    assert client.get("/").text == "ab"


def test_a_stream_holds_its_slot_to_the_last_byte(web: Web, until: Until) -> None:
    go_on = threading.Event()

    @serve.deployment(max_ongoing_requests=1)
    async def ingress() -> Response:
        async def body() -> AsyncIterator[str]:
            yield "first"
            await asyncio.to_thread(go_on.wait)
            yield "last"

        return StreamingResponse(body())

    client = web.serve(ingress.bind())
    router: Any = serve.get_app_handle("default")._router

    with client.stream("GET", "/") as response:
        chunks = response.iter_raw()
        assert next(chunks) == b"first"
        assert router.statistics().ongoing == 1
        go_on.set()
        assert next(chunks) == b"last"

    until(lambda: router.statistics().ongoing == 0)


def test_background_tasks_run_in_the_request_after_the_response(web: Web) -> None:
    go_on, ended = threading.Event(), threading.Event()
    seen: list[Any] = []

    @serve.deployment
    async def ingress() -> Response:
        async def background() -> None:
            await asyncio.to_thread(go_on.wait)
            seen.append(serve.get_replica_context().deployment)
            ended.set()

        return Response("at once", background=BackgroundTask(background))

    client = web.serve(ingress.bind())

    assert client.get("/").text == "at once"
    assert client.get("/-/healthz").text == "success"  # the same connection: the first response is over
    go_on.set()
    assert ended.wait(WAIT_S)
    assert seen == ["ingress"]


def test_a_background_task_that_fails_is_logged(
    web: Web, caplog: pytest.LogCaptureFixture, until: Until
) -> None:
    @serve.deployment
    async def ingress() -> Response:
        async def background() -> None:
            raise ValueError("nobody hears this")

        return Response("fine", background=BackgroundTask(background))

    client = web.serve(ingress.bind())

    assert client.get("/").text == "fine"
    until(lambda: "nobody hears this" in caplog.text)


@pytest.mark.parametrize("ingress", ["sync", "async"])
@pytest.mark.parametrize("body", ["generator", "handle", "reyield"])
def test_a_client_that_leaves_stops_the_stream(
    web: Web, hang_up: Callable[[socket.socket], None], until: Until, ingress: str, body: str
) -> None:
    stopped = threading.Event()

    class Endless:
        async def items(self) -> AsyncIterator[str]:
            try:
                yield "first"
                await asyncio.Event().wait()
            finally:
                stopped.set()

    class Sync:
        def __init__(self, endless: serve.DeploymentHandle[Any]) -> None:
            self.endless = endless

        def __call__(self) -> Response:
            if body == "generator":
                return StreamingResponse(Endless().items())
            items = self.endless.options(stream=True).items.remote()
            return StreamingResponse(items if body == "handle" else (item for item in items))

    class Async(Sync):
        async def __call__(self) -> Response:  # type: ignore[override]
            return super().__call__()

    cls: Any = {"sync": Sync, "async": Async}[ingress]
    deployed: Any = serve.deployment(cls)
    web.serve(deployed.bind(serve.deployment(Endless).bind()))
    router: Any = serve.get_app_handle("default")._router
    connection = web.ask()
    received = b""
    while b"first" not in received:
        received += connection.recv(1000)

    hang_up(connection)

    assert stopped.wait(WAIT_S)
    until(lambda: router.statistics().ongoing == 0)


@pytest.mark.slow
@pytest.mark.parametrize("ingress", ["sync", "async"])
def test_a_slow_client_slows_the_producer(web: Web, ingress: str) -> None:
    megabyte, count = b"x" * 2**20, 200
    produced: list[int] = []

    class Producer:
        def items(self) -> Iterator[bytes]:
            for number in range(count):
                produced.append(number)
                yield megabyte

    class Sync:
        def __init__(self, producer: serve.DeploymentHandle[Any]) -> None:
            self.producer = producer.options(stream=True)

        def __call__(self) -> Response:
            return StreamingResponse(self.producer.items.remote())

    class Async(Sync):
        async def __call__(self) -> Response:  # type: ignore[override]
            return super().__call__()

    cls: Any = {"sync": Sync, "async": Async}[ingress]
    producer = serve.deployment(Producer, stream_buffer_size=2).bind()
    deployed: Any = serve.deployment(cls, stream_buffer_size=2)
    client = web.serve(deployed.bind(producer))

    with client.stream("GET", "/") as response:
        standstill = 0
        while standstill < 20:  # time passes while others are served
            before = len(produced)
            web._clients[0].get("/-/healthz")
            standstill = standstill + 1 if len(produced) == before else 0
        ahead = len(produced)
        received = sum(map(len, response.iter_raw()))

    assert ahead < count // 2
    assert received == count * len(megabyte)
