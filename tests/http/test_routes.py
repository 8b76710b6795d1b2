from __future__ import annotations

import asyncio
import logging
import math
import threading
import uuid
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response, StreamingResponse

import threadserve as serve
from threadserve.call.request import current_request
from threadserve.http.routes import match

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

    from tests.http.conftest import Until, Web

HandleOf = serve.DeploymentHandle[Any]
WAIT_S = 20.0


# Which app.


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/", "/"),
        ("/ret", "/ret"),
        ("/ret/", "/ret"),
        ("/ret/sub/path", "/ret"),
        ("/retX", "/"),
        ("/ret/deep", "/ret/deep"),
        ("/ret/deep/er", "/ret/deep"),
        ("/ret/deeper", "/ret"),
        ("/other//double", "/"),
    ],
)
def test_the_longest_prefix_that_ends_at_a_slash_wins(path: str, prefix: str) -> None:
    assert match(path, {"/": 1, "/ret": 2, "/ret/deep": 3}) == prefix


def test_without_a_root_some_paths_match_nothing() -> None:
    prefixes = {"/ret": 1}

    assert match("/retX", prefixes) is None
    assert match("/", prefixes) is None
    assert match("", prefixes) is None
    assert match("*", prefixes) is None


segments = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4)


@given(segments, st.sets(segments.map("/".join).map("/{}".format)))
def test_a_match_is_the_longest_of_the_prefixes_that_fit(
    path_segments: list[str], prefixes: set[str]
) -> None:
    path = "/" + "/".join(path_segments)
    fitting = [each for each in prefixes if each == "/" or f"{path}/".startswith(f"{each}/")]

    assert match(path, dict.fromkeys(prefixes)) == max(fitting, key=len, default=None)


def test_apps_are_found_by_their_prefixes_and_see_whole_paths(web: Web) -> None:
    @serve.deployment
    def root() -> str:
        return "root"

    @serve.deployment
    def below(request: Request) -> dict[str, Any]:
        scope = request.scope
        return {"path": scope["path"], "root_path": scope["root_path"], "url": request.url.path}

    client = web.serve(root.bind(), name="root")
    web.serve(below.bind(), name="below", prefix="/ret")

    whole = client.get("/ret/sub/path?q=1").json()

    assert whole == {"path": "/ret/sub/path", "root_path": "/ret", "url": "/ret/sub/path"}
    assert client.get("/ret").json()["path"] == "/ret"
    assert client.get("/retX").text == "root"
    assert client.get("/-/routes").json() == {"/": "root", "/ret": "below"}


def test_a_root_path_stands_before_what_the_apps_see(web: Web) -> None:
    @serve.deployment
    def ingress(request: Request) -> list[str]:
        return [request.scope["root_path"], request.scope["path"]]

    client = web.serve(ingress.bind(), prefix="/ret", root_path="/outside")

    assert client.get("/ret/sub").json() == ["/outside/ret", "/outside/ret/sub"]
    assert client.get("/-/routes").json() == {"/ret": "default"}


def test_a_path_that_no_app_has_is_not_found(web: Web) -> None:
    @serve.deployment
    def ingress() -> str:
        return "here"

    client = web.serve(ingress.bind(), prefix="/here")

    response = client.get("/elsewhere")

    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/plain")
    assert "Path '/elsewhere' not found" in response.text
    assert "/-/routes" in response.text


def test_an_app_without_a_prefix_has_no_route(web: Web) -> None:
    @serve.deployment
    def hidden() -> str:
        return "hidden"

    client = web.start()
    serve.run(hidden.bind(), name="hidden", route_prefix=None)

    assert client.get("/-/routes").json() == {}
    assert client.get("/").status_code == 404


def test_the_server_is_healthy_while_an_app_runs(web: Web) -> None:
    @serve.deployment
    def ingress() -> None: ...

    client = web.start()

    before = client.get("/-/healthz")
    serve.run(ingress.bind(), name="app")
    during = client.get("/-/healthz")
    serve.delete("app")
    after = client.get("/-/healthz")

    assert (during.status_code, during.text) == (200, "success")
    assert before.status_code == after.status_code == 503


def test_a_redeployed_app_answers_under_its_new_prefix_only(web: Web) -> None:
    @serve.deployment
    def ingress() -> str:
        return "here"

    client = web.serve(ingress.bind(), prefix="/old")
    web.serve(ingress.bind(), prefix="/new")

    assert client.get("/new").text == "here"
    assert client.get("/old").status_code == 404


# Ids and headers.


class Family:
    """Tells what the requests of three generations are called."""

    def __init__(self, child: HandleOf | None = None) -> None:
        self.child = child

    async def __call__(self, *_: object) -> list[str]:
        request = current_request()
        assert request is not None
        below = await self.child.remote() if self.child else []
        return [request.request_id, *below]


def test_a_request_id_goes_through_the_tree_and_back(web: Web) -> None:
    family = serve.deployment(Family)
    client = web.serve(family.bind(family.bind(family.bind())))

    response = client.get("/", headers={"X-Request-ID": "mine"})

    assert response.json() == ["mine"] * 3
    assert response.headers["x-request-id"] == "mine"


def test_without_a_request_id_there_is_a_new_one_each_time(web: Web) -> None:
    client = web.serve(serve.deployment(Family).bind())

    first, second = client.get("/"), client.get("/")

    for response in (first, second):
        assert response.json() == [response.headers["x-request-id"]]
        uuid.UUID(response.headers["x-request-id"])
    assert first.json() != second.json()


def test_every_response_carries_the_request_id(web: Web) -> None:
    @serve.deployment
    def ingress(request: Request) -> Response:
        if request.url.path == "/own":
            return Response("a", headers={"X-Request-ID": "the handler's"})
        raise ValueError

    client = web.serve(ingress.bind(), prefix="/")
    web.serve(ingress.bind(), name="below", prefix="/a")

    for path in ("/own", "/raises", "/-/healthz", "/-/routes"):
        response = client.get(path, headers={"x-request-id": "mine"})
        assert response.headers.get_list("x-request-id") == ["mine"], path


def test_the_model_id_is_read_from_a_header_however_it_is_spelt(web: Web) -> None:
    @serve.deployment
    def ingress() -> str:
        return serve.get_multiplexed_model_id()

    client = web.serve(ingress.bind())
    names = ["serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id", "SERVE_MULTIPLEXED-MODEL_ID"]

    assert [client.get("/", headers={name: "m1"}).text for name in names] == ["m1"] * 3
    assert client.get("/").text == ""


# Time.


class Patient:
    """Waits for ever, and says when it was told to stop."""

    def __init__(self, started: threading.Event, stopped: threading.Event) -> None:
        self.started, self.stopped = started, stopped

    async def __call__(self, *_: object) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise


class Passing:
    """Passes calls on."""

    def __init__(self, child: HandleOf) -> None:
        self.child = child

    async def __call__(self, *_: object) -> Any:
        return await self.child.remote()


def test_a_request_whose_time_is_up_is_told_so_and_its_tree_is_cancelled(web: Web) -> None:
    started, stopped = threading.Event(), threading.Event()
    app = serve.deployment(Passing).bind(serve.deployment(Patient).bind(started, stopped))
    client = web.serve(app, request_timeout_s=0.1)

    response = client.get("/", headers={"x-request-id": "mine"})

    assert response.status_code == 408
    assert response.headers["content-type"].startswith("text/plain")
    assert response.headers["x-request-id"] == "mine"
    assert "Request mine timed out after 0.1" in response.text
    assert stopped.wait(WAIT_S)


def test_the_header_sets_and_lifts_the_limit(web: Web) -> None:
    @serve.deployment
    def ingress() -> float:
        return serve.remaining()

    client = web.serve(ingress.bind(), request_timeout_s=50)

    def left(**headers: str) -> float:
        remaining: float = client.get("/", headers=headers).json()
        return remaining

    name = "x-request-timeout-seconds"
    assert 0 < left() <= 50
    assert 50 < left(**{name: "100"}) <= 100
    assert left(**{name: "0"}) == left(**{name: "-1"}) == math.inf
    for wrong in ("soon", "nan"):
        response = client.get("/", headers={name: wrong})
        assert response.status_code == 400
        assert repr(wrong) in response.text


def test_waiting_in_the_queue_counts(web: Web) -> None:
    started, stopped = threading.Event(), threading.Event()
    app = serve.deployment(Patient, max_ongoing_requests=1).bind(started, stopped)
    client = web.serve(app)
    first = serve.get_app_handle("default").remote()
    assert started.wait(WAIT_S)

    response = client.get("/", headers={"x-request-timeout-seconds": "0.05"})

    assert response.status_code == 408
    first.cancel()


def test_a_timeout_that_the_handler_lets_through_is_its_own_failure(web: Web) -> None:
    class Ingress:
        def __init__(self, child: HandleOf) -> None:
            self.child = child.options(timeout_s=0.05)

        async def __call__(self) -> Any:
            return await self.child.remote()

    patient = serve.deployment(Patient).bind(threading.Event(), threading.Event())
    client = web.serve(serve.deployment(Ingress).bind(patient))

    assert client.get("/").status_code == 500


# Refusals and failures.


def full(app: Any, started: threading.Event) -> list[Any]:
    """Fill the one slot and the one place in the queue of the deployment that `app` is named after."""
    handle = serve.get_deployment_handle("Patient", app)
    running = handle.remote()
    assert started.wait(WAIT_S)
    return [running, handle.remote()]


def test_a_full_queue_answers_503_and_says_when_to_come_again(web: Web) -> None:
    started = threading.Event()
    patient = serve.deployment(
        Patient, max_ongoing_requests=1, max_queued_requests=1, backpressure_config={"retry_after_s": 1.5}
    )
    client = web.serve(patient.bind(started, threading.Event()))
    calls = full("default", started)

    response = client.get("/")

    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.text.startswith("Request dropped due to backpressure")
    for call in calls:
        call.cancel()


def test_a_childs_full_queue_answers_with_the_childs_status(web: Web) -> None:
    started = threading.Event()
    patient = serve.deployment(
        Patient, max_ongoing_requests=1, max_queued_requests=1, backpressure_config={"status_code": 429}
    )
    client = web.serve(serve.deployment(Passing).bind(patient.bind(started, threading.Event())))
    calls = full("default", started)

    response = client.get("/")

    assert response.status_code == 429
    assert "retry-after" not in response.headers
    for call in calls:
        call.cancel()


def test_a_deployment_that_is_gone_answers_503(web: Web) -> None:
    @serve.deployment
    def child() -> None: ...

    other = serve.run(child.bind(), name="other")
    client = web.serve(serve.deployment(Passing).bind(other))
    serve.delete("other")

    response = client.get("/")

    assert response.status_code == 503
    assert "other/child is not available" in response.text


def test_what_a_handler_raises_is_logged_and_never_sent(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    @serve.deployment
    async def ingress() -> None:
        raise ValueError("the password is 1234")

    client = web.serve(ingress.bind())

    response = client.get("/", headers={"x-request-id": "mine"})

    assert response.status_code == 500
    assert response.text == "Internal Server Error"
    assert "content-type" not in response.headers
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert record.name == "threadserve"
    assert "mine" in record.getMessage()
    assert "default/ingress" in record.getMessage()
    assert record.exc_text is not None
    assert record.exc_text.endswith("ValueError: the password is 1234")
    assert "async def ingress" not in response.text
    assert __file__ in record.exc_text


def test_an_http_exception_is_an_exception_like_any_other(web: Web) -> None:
    from starlette.exceptions import HTTPException

    @serve.deployment
    def ingress() -> None:
        raise HTTPException(status_code=418)

    assert web.serve(ingress.bind()).get("/").status_code == 500


def test_after_the_body_has_begun_an_exception_cuts_the_connection(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    @serve.deployment
    async def ingress() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield "first"
            yield "second"
            raise ValueError("too late to say so")

        return StreamingResponse(body())

    client = web.serve(ingress.bind())
    received = b""

    with client.stream("GET", "/") as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            for chunk in response.iter_raw():
                received += chunk

    assert received == b"firstsecond"
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.name for record in errors] == ["threadserve"]
    assert client.get("/-/healthz").status_code == 200


# The client leaves.


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_client_that_leaves_cancels_its_tree(
    web: Web, hang_up: Callable[[socket.socket], None], kind: str
) -> None:
    class Waiting:
        def __init__(self, child: HandleOf, ended: threading.Event) -> None:
            self.child, self.ended = child, ended

        def __call__(self) -> Any:
            try:
                return self.child.remote().result()
            finally:
                self.ended.set()

    started, stopped, ended = threading.Event(), threading.Event(), threading.Event()
    patient = serve.deployment(Patient).bind(started, stopped)
    ingress = {
        "async": serve.deployment(Passing).bind(patient),
        "sync": serve.deployment(Waiting).bind(patient, ended),
    }[kind]
    web.serve(ingress)
    connection = web.ask()
    assert started.wait(WAIT_S)

    hang_up(connection)

    assert stopped.wait(WAIT_S)
    if kind == "sync":
        assert ended.wait(WAIT_S)


def test_a_client_that_leaves_takes_its_request_out_of_the_queue(
    web: Web, hang_up: Callable[[socket.socket], None], until: Until
) -> None:
    started = threading.Event()
    web.serve(serve.deployment(Patient, max_ongoing_requests=1).bind(started, threading.Event()))
    handle: Any = serve.get_app_handle("default")
    running = handle.remote()
    assert started.wait(WAIT_S)
    connection = web.ask()
    until(lambda: handle._router.statistics().queued == 1)

    hang_up(connection)

    until(lambda: handle._router.statistics().queued == 0)
    assert not running.done()
    running.cancel()


def test_a_client_can_say_beforehand_that_its_leaving_means_nothing(
    web: Web, hang_up: Callable[[socket.socket], None]
) -> None:
    started, left, go_on, finished = (threading.Event() for _ in range(4))

    @serve.deployment
    async def ingress(request: Request) -> None:
        started.set()
        while not await request.is_disconnected():
            await asyncio.sleep(0)
        left.set()
        await asyncio.to_thread(go_on.wait)
        finished.set()

    client = web.serve(ingress.bind(), prefix="/")
    connection = web.ask("/", "X-Request-Disconnect-Disabled: ?1")
    assert started.wait(WAIT_S)

    hang_up(connection)

    assert left.wait(WAIT_S)
    client.get("/-/healthz")  # the server has seen the client leave, and has had the time to act on it
    go_on.set()
    assert finished.wait(WAIT_S)


def test_a_client_that_leaves_in_the_middle_of_its_body_calls_nobody(
    web: Web, hang_up: Callable[[socket.socket], None]
) -> None:
    called = threading.Event()

    @serve.deployment
    def ingress() -> str:
        called.set()
        return "called"

    client = web.serve(ingress.bind())
    connection = web.ask("/", "Content-Length: 100")

    hang_up(connection)

    assert client.get("/-/healthz").text == "success"
    assert not called.is_set()
