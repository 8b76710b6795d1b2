from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import uuid
from collections import OrderedDict, deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.background import BackgroundTask
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from threadserve.errors import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaDiedError,
    RequestCancelledError,
    RequestTimeoutError,
)
from threadserve.http.convert import (
    BufferedRequest,
    Incoming,
    encode,
    error_response,
    is_plain,
    messages_of,
    response_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@dataclasses.dataclass
class Point:
    x: int
    y: set[int]


class Color(enum.Enum):
    RED = "red"


class Celsius(int): ...


# Values.


@pytest.mark.parametrize(
    ("value", "body", "content_type"),
    [
        ("¡Hola!", "¡Hola!".encode(), "text/plain; charset=utf-8"),
        ("", b"", "text/plain; charset=utf-8"),
        (b"\x00\xff", b"\x00\xff", "text/plain"),
        (bytearray(b"abc"), b"abc", "text/plain"),
        (None, b"", "text/plain"),
        ({"a": [1, 2.5, None]}, b'{"a":[1,2.5,null]}', "application/json"),
        ([], b"[]", "application/json"),
        ((1, "b"), b'[1,"b"]', "application/json"),
        ({7}, b"[7]", "application/json"),
        (3, b"3", "application/json"),
        (True, b"true", "application/json"),
        (math.nan, b"NaN", "application/json"),
        (math.inf, b"Infinity", "application/json"),
    ],
)
def test_a_value_has_its_one_response(value: Any, body: bytes, content_type: str) -> None:
    response = response_of(value)

    assert response.status_code == 200
    assert response.body == body
    assert response.headers["content-type"] == content_type
    assert response.headers["content-length"] == str(len(body))


def test_a_response_goes_out_as_it_is() -> None:
    response = RedirectResponse("/elsewhere")

    assert response_of(response) is response


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Point(1, {2}), {"x": 1, "y": [2]}),
        ([Point(1, {2})], [{"x": 1, "y": [2]}]),
        (frozenset({1}), [1]),
        (deque([1, 2]), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (MappingProxyType({"a": {1}}), {"a": [1]}),
        (Color.RED, "red"),
        (Celsius(21), 21),
        (dt.datetime(2024, 5, 6, 7, 8, 9, tzinfo=dt.UTC), "2024-05-06T07:08:09+00:00"),
        (dt.date(2024, 5, 6), "2024-05-06"),
        (dt.time(7, 8), "07:08:00"),
        (dt.timedelta(minutes=1.5), 90.0),
        (decimal.Decimal(7), 7),
        (decimal.Decimal("0.5"), 0.5),
        (decimal.Decimal("1E+2"), 100),
        ([b"raw"], ["raw"]),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (ValueError("what went wrong"), "what went wrong"),
        ({uuid.UUID(int=5): {1}}, {"00000000-0000-0000-0000-000000000005": [1]}),
        ({"a": [{Color.RED: (1, None)}]}, {"a": [{"red": [1, None]}]}),
        ({1: True, None: 2.5}, {"1": True, "null": 2.5}),
    ],
)
def test_json_says_more_than_its_own_types(value: Any, said: Any) -> None:
    assert json.loads(encode(value)) == said


def test_json_says_what_numpy_makes() -> None:
    np = pytest.importorskip("numpy")
    value = {"array": np.arange(4).reshape(2, 2), "scalar": np.float32(0.5), "flag": np.bool_(True)}

    assert json.loads(encode(value)) == {"array": [[0, 1], [2, 3]], "scalar": 0.5, "flag": True}
    assert json.loads(encode({np.int64(3): "a key"})) == {"3": "a key"}


def test_json_says_what_pydantic_makes() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", size=(int, pydantic.Field(alias="Size")), day=(dt.date, ...))

    said = json.loads(encode([model(Size=3, day=dt.date(2024, 5, 6))]))

    assert said == [{"Size": 3, "day": "2024-05-06"}]


def test_json_says_what_pandas_makes() -> None:
    pandas = pytest.importorskip("pandas")

    assert json.loads(encode(pandas.DataFrame({"a": [1, 2]}))) == [{"a": 1}, {"a": 2}]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_json_comes_back_as_it_went(value: Any) -> None:
    assert json.loads(encode(value)) == value


def test_what_cannot_be_said_is_named_with_what_can() -> None:
    with pytest.raises(TypeError, match=r"a function, .*return str, bytes, .*dataclass"):
        response_of({"deep": [test_what_cannot_be_said_is_named_with_what_can]})


def test_a_list_in_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(ValueError, match="Circular"):
        response_of(endless)


def test_a_bare_generator_is_refused_with_the_way_to_send_it() -> None:
    def items() -> Iterator[str]:
        yield "a"

    async def async_items() -> AsyncIterator[str]:
        yield "a"

    for generator in (items(), async_items(), {"nested": [items()]}):
        with pytest.raises(TypeError, match=r"return starlette\.responses\.StreamingResponse\(generator\)"):
            response_of(generator)


# Responses.


def test_a_response_is_plain_when_nothing_must_run_to_send_it() -> None:
    async def nothing() -> None: ...

    plain = [Response("a"), JSONResponse([]), HTMLResponse("<p>")]
    others = [StreamingResponse(iter(())), Response("a", background=BackgroundTask(nothing))]

    assert [is_plain(response) for response in [*plain, *others]] == [True, True, True, False, False]


def test_the_messages_of_a_plain_response_are_what_it_would_send() -> None:
    response = JSONResponse({"a": 1}, 201, {"x-mine": "1"})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(response({"type": "http"}, buffered(b"").receive, send))

    assert list(messages_of(response)) == sent


# Errors.


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("a secret"), 500, "Internal Server Error"),
        (TimeoutError("the user's own"), 500, "Internal Server Error"),
        (RequestCancelledError("cancelled"), 500, "Internal Server Error"),
        (ReplicaDiedError("it died"), 500, "Internal Server Error"),
        (DeploymentUnavailableError("a/b is not available"), 503, "a/b is not available"),
        (BackPressureError("queue of a/b is full"), 503, "queue of a/b is full"),
        (BackPressureError("queue of a/b is full", status_code=429), 429, "queue of a/b is full"),
        (
            RequestTimeoutError("late", deployment="app/Ingress", request_id="r1", elapsed_s=0.25),
            408,
            "Request r1 timed out after 0.25 s.",
        ),
        (RequestTimeoutError("late", deployment="app/Child"), 500, "Internal Server Error"),
    ],
)
def test_an_error_has_its_status(error: Exception, status: int, said: str) -> None:
    response = error_response(error, "app/Ingress")

    assert response.status_code == status
    assert response.body == said.encode()
    assert "retry-after" not in response.headers


def test_retry_after_is_rounded_up_to_whole_seconds() -> None:
    response = error_response(BackPressureError("full", retry_after_s=1.2), "app/Ingress")

    assert response.headers["retry-after"] == "2"


# Requests.


def buffered(content: bytes, **scope: Any) -> BufferedRequest:
    return BufferedRequest({"type": "http", "headers": [], **scope}, Incoming(content))


def test_a_body_can_be_read_on_any_loop_and_repeatedly() -> None:
    request = buffered(b'{"a": 1}')

    async def chunks() -> list[bytes]:
        return [chunk async for chunk in request.stream()]

    assert asyncio.run(request.json()) == {"a": 1}
    assert asyncio.run(request.body()) == b'{"a": 1}'
    assert asyncio.run(chunks()) == [b'{"a": 1}', b""]
    assert asyncio.run(request.json()) == {"a": 1}


def test_asking_for_the_disconnect_costs_nothing_of_the_body() -> None:
    incoming = Incoming(b"abc")
    request = BufferedRequest({"type": "http", "headers": []}, incoming)

    assert asyncio.run(request.is_disconnected()) is False
    incoming.has_client_left = True
    assert asyncio.run(request.is_disconnected()) is True
    assert asyncio.run(request.body()) == b"abc"


def test_what_a_request_is_handed_to_receives_its_body() -> None:
    async def receive() -> Any:
        return await buffered(b"abc").receive()

    message = asyncio.run(receive())

    assert message == {"type": "http.request", "body": b"abc", "more_body": False}
