# Sections 9.1 and 9.2: HTTP.
import asyncio
import dataclasses
import json
import socket
import urllib.error
import urllib.request

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse


def fact(name, value):
    print(f"- {name}: {value!r}", flush=True)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


PORT = free_port()


def ask(path, method="GET", body=None, headers=None, show=("content-type",)):
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}", data=body, method=method, headers=headers or {}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, *[response.headers.get(name) for name in show], response.read()
    except urllib.error.HTTPError as error:
        return error.code, *[error.headers.get(name) for name in show], error.read()


@dataclasses.dataclass
class Point:
    x: int


@serve.deployment
class Returns:
    def __init__(self):
        self.log = []

    async def __call__(self, request: Request):
        kind = request.query_params["kind"]
        if kind == "request":
            return [
                request.method,
                request.url.path,
                request.scope["root_path"],
                (await request.body()).decode(),
            ]
        if kind == "raises":
            raise ValueError("secret")
        if kind == "timeout":
            raise TimeoutError("secret")
        if kind == "response":
            return Response("made", status_code=201, headers={"x-mine": "1"})
        if kind == "json response":
            return JSONResponse({"a": 1}, status_code=202)
        if kind == "stream":
            return StreamingResponse((f"{number} " for number in range(3)), media_type="text/plain")
        if kind == "unencodable":
            return object()
        if kind == "slow":
            await asyncio.sleep(10)
        values = {
            "str": "text",
            "bytes": b"bytes",
            "none": None,
            "dict": {"a": [1, 2]},
            "list": [1],
            "tuple": (1, 2),
            "int": 5,
            "bool": True,
            "float": 1.5,
            "set": {1},
            "dataclass": Point(1),
        }
        return values[kind]


@serve.deployment
def function(request):
    return "function " + request.url.path


@serve.deployment
def nothing():
    return "no argument"


@serve.deployment
class NoCall:
    pass


@serve.deployment(
    max_ongoing_requests=1,
    max_queued_requests=1,
    backpressure_config={"status_code": 429, "retry_after_s": 1.5},
)
class Full:
    async def __call__(self, request):
        await asyncio.sleep(1)
        return "done"


ray.init(num_cpus=10, include_dashboard=False)
serve.start(http_options={"host": "127.0.0.1", "port": PORT})
serve.run(Returns.bind(), name="ret", route_prefix="/ret")
serve.run(function.bind(), name="function", route_prefix="/ret/function")
serve.run(nothing.bind(), name="nothing", route_prefix="/nothing")
serve.run(NoCall.bind(), name="nocall", route_prefix="/nocall")
serve.run(Full.bind(), name="full", route_prefix="/full")
serve.run(function.options(name="hidden").bind(), name="hidden", route_prefix=None)

for kind in "str bytes none dict list tuple int bool float set dataclass".split():
    fact(kind, ask(f"/ret?kind={kind}"))
fact("request", ask("/ret/sub/path?kind=request", "POST", b"body"))
fact("delete", ask("/ret?kind=request", "DELETE"))
fact("response", ask("/ret?kind=response", show=("x-mine",)))
fact("json response", ask("/ret?kind=json%20response"))
fact("stream", ask("/ret?kind=stream"))
fact("exception", ask("/ret?kind=raises", show=()))
fact("TimeoutError", ask("/ret?kind=timeout", show=()))
fact("not encodable", ask("/ret?kind=unencodable", show=())[0])
fact("no __call__", ask("/nocall", show=())[0])
fact("longest prefix", ask("/ret/function/x"))
fact("no parameter", ask("/nothing"))
fact("not a prefix", ask("/retX", show=())[0])
fact("unknown path", ask("/unknown", show=())[0])
fact("healthz", ask("/-/healthz", show=()))
fact("routes", json.loads(ask("/-/routes")[-1]))
fact("request id", ask("/ret?kind=str", headers={"X-Request-ID": "mine"}, show=("x-request-id",)))
fact("timeout", ask("/ret?kind=slow", headers={"x-request-timeout-seconds": "0.5"}, show=())[0])


async def burst():
    loop = asyncio.get_running_loop()
    calls = [loop.run_in_executor(None, lambda: ask("/full", show=("retry-after",))) for _ in range(5)]
    return await asyncio.gather(*calls)


answers = asyncio.run(burst())
refused = [answer for answer in answers if answer[0] != 200]
fact(
    "too many",
    sorted(
        {
            (status, after, body.startswith(b"Request dropped due to backpressure"))
            for status, after, body in refused
        }
    ),
)
fact("some are answered", any(answer[0] == 200 for answer in answers))
serve.delete("ret")
fact("after delete", ask("/ret?kind=str", show=())[0])
serve.shutdown()
