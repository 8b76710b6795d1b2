"""HTTP comes in wherever the ingress runs: each test asks every kind of replica that this Python offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.http.sites import PlainSite, Site, double
from threadserve.concurrency.interpreters import is_offered

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tests.http.conftest import Until, Web

KINDS = [
    "thread",
    pytest.param(
        "interpreter",
        marks=pytest.mark.skipif(
            not is_offered(), reason="replica_type='interpreter' exists from Python 3.14 on"
        ),
    ),
]
COUNT = "".join(f"{number}," for number in range(500))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def site(web: Web, kind: Any) -> Any:
    other = serve.deployment(double, name="Other", replica_type=kind)
    return web.serve(serve.deployment(Site, replica_type=kind).bind(other.bind()))


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_the_ingress_gets_the_whole_request(site: Any, method: str) -> None:
    response = site.request(method, "/whole?q=1", headers={"x-a": "b", "cookie": "c=d"}, content='{"n": 1}')

    assert response.status_code == 200
    *said, url = response.json()
    assert said == [method, "1", "b", "d", '{"n": 1}', {"n": 1}, True]
    assert url.endswith("/whole?q=1")


def test_a_response_keeps_its_status_and_headers(site: Any) -> None:
    response = site.get("/created")

    assert (response.status_code, response.headers["x-made"], response.json()) == (201, "yes", {"made": 1})


def test_a_stream_comes_whole(site: Any) -> None:
    assert site.get("/streamed").text == COUNT


def test_a_background_task_is_run(site: Any, until: Until) -> None:
    assert site.get("/after").text == "said"
    until(lambda: site.get("/noted").json() == ["done after"])


def test_an_ingress_calls_others(site: Any) -> None:
    assert site.get("/composed").json() == {"composed": 40}


def test_an_error_is_a_500_and_the_next_request_is_answered(site: Any) -> None:
    assert site.get("/fails").status_code == 500
    assert site.get("/created").status_code == 201


def test_a_large_body_gets_there(site: Any) -> None:
    body = b'"' + b"x" * 2_000_000 + b'"'
    response = site.post("/whole?q=1", headers={"x-a": "b", "cookie": "c=d"}, content=body)

    assert len(response.json()[4]) == len(body)


@pytest.mark.parametrize(("path", "note"), [("/hangs", "cancelled"), ("/forever", "left")])
def test_a_client_that_leaves_ends_what_runs_for_it(
    web: Web, site: Any, until: Until, hang_up: Callable[[socket.socket], None], path: str, note: str
) -> None:
    connection = web.ask(path)
    until(lambda: site.get("/noted").json() == ["begun"])
    hang_up(connection)

    until(lambda: note in site.get("/noted").json())


def test_a_deadline_is_kept(site: Any, until: Until) -> None:
    assert site.get("/hangs", headers={"x-request-timeout-seconds": "0.1"}).status_code == 408
    until(lambda: site.get("/noted").json()[-1:] in ([], ["cancelled"]))


def test_a_def_is_an_ingress_too(web: Web, kind: Any) -> None:
    client = web.serve(serve.deployment(PlainSite, replica_type=kind).bind())

    assert client.get("/").json()["method"] == "GET"
    assert client.get("/streamed").text == COUNT
