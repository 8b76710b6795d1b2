"""Deployments under Ray's rules, as far as no program of tests/parity tells of them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import threading
import urllib.request
import warnings
from typing import Any

import pytest

import threadserve as ours
from threadserve import as_ray
from threadserve.as_ray.handle import face_of
from threadserve.errors import NotSupportedError

variable = contextvars.ContextVar("variable", default="nothing")


class Echo:
    def __call__(self, value: Any = None) -> Any:
        return value

    def var(self) -> str:
        return variable.get()

    def items(self, count: int) -> Any:
        yield from range(count)

    def boom(self) -> None:
        raise ValueError("bad value")

    def again(self) -> None:
        raise RuntimeError("other")


class Unending:
    def __init__(self) -> None:
        self.made = 0
        self.has_ended = threading.Event()

    def items(self, count: int) -> Any:
        for index in range(count):
            self.made += 1
            yield index
        self.has_ended.set()

    def produced(self) -> int:
        self.has_ended.wait(10)
        return self.made


def test_the_callers_context_variables_are_not_visible(serve: Any) -> None:
    handle = serve.run(serve.deployment(Echo).bind(), route_prefix=None)
    variable.set("mine")

    assert handle.var.remote().result() == "nothing"


def test_no_body_runs_on_the_thread_that_waits_where_that_was_ruled_out(serve: Any) -> None:
    class Where:
        def __call__(self) -> int:
            return threading.get_ident()

    as_ray.install(http=False, inline=False)
    handle = serve.run(serve.deployment(Where).bind(), route_prefix=None)

    assert threading.get_ident() not in {handle.remote().result() for _ in range(20)}


def test_a_face_of_a_native_handle_keeps_its_time_limit_also_for_methods() -> None:
    class Model:
        def predict(self) -> None: ...

    with ours.running(ours.deployment(Model).bind()) as handle:
        face = face_of(handle.options(timeout_s=3))

        assert face._options.timeout_s == face.predict._options.timeout_s == 3
        assert face.options(method_name="predict")._options.timeout_s == 3


def test_two_fetches_of_one_answer_share_nothing(serve: Any) -> None:
    handle = serve.run(serve.deployment(Echo).bind(), route_prefix=None)
    response = handle.remote([1])

    first = response.result()
    first.append(2)

    assert response.result() == [1]
    assert asyncio.run(awaited(response)) == [1]


def test_each_of_several_readers_of_one_upstream_answer_has_its_own(serve: Any) -> None:
    class Changes:
        def __call__(self, values: list[int]) -> list[int]:
            values.append(2)
            return values

    changes = serve.run(serve.deployment(Changes).bind(), route_prefix=None)
    upstream = changes.remote([1])

    assert [changes.remote(upstream).result() for _ in range(2)] == [[1, 2, 2], [1, 2, 2]]
    assert upstream.result() == [1, 2]


def test_an_error_that_is_fetched_twice_is_two_errors(serve: Any) -> None:
    handle = serve.run(serve.deployment(Echo).bind(), route_prefix=None)
    response = handle.boom.remote()
    caught = []
    for _ in range(2):
        with pytest.raises(ValueError, match="ValueError: bad value") as info:
            response.result()
        caught.append(info.value)

    assert caught[0] is not caught[1]
    assert [type(each).__name__ for each in caught] == ["RayTaskError(ValueError)"] * 2


def test_a_stream_is_neither_bounded_nor_stopped_by_dropping_it(serve: Any) -> None:
    handle = serve.run(serve.deployment(Unending).bind(), route_prefix=None)
    stream = handle.options(stream=True).items.remote(1000)
    next(stream)
    del stream
    gc.collect()

    assert handle.produced.remote().result() == 1000


def test_what_is_cancelled_in_a_parent_is_rays_error_there(serve: Any) -> None:
    class Parent:
        def __init__(self, child: Any) -> None:
            self.child = child

        async def __call__(self) -> str:
            response = self.child.remote()
            response.cancel()
            try:
                await response
            except Exception as error:
                return type(error).__module__ + "." + type(error).__name__
            return "nothing"

    class Child:
        async def __call__(self) -> None:
            await asyncio.sleep(3600)

    handle = serve.run(serve.deployment(Parent).bind(serve.deployment(Child).bind()), route_prefix=None)

    assert handle.remote().result() == "ray.serve.exceptions.RequestCancelledError"


def test_an_app_in_local_testing_mode_has_no_http_and_is_not_listed(serve: Any) -> None:
    handle = serve.run(serve.deployment(Echo).bind(), _local_testing_mode=True)

    assert handle.remote(5).result() == 5
    assert serve.status().applications == {}


def test_a_start_that_failed_raises_a_plain_runtime_error_and_tells_the_rest_in_the_status(
    serve: Any,
) -> None:
    made = []

    class Broken:
        def __init__(self) -> None:
            made.append(1)
            raise ValueError("not today")

    with pytest.raises(RuntimeError, match=r"Deploying application default failed.*\['Broken'\]") as info:
        serve.run(serve.deployment(Broken).bind(), route_prefix=None)

    assert type(info.value) is RuntimeError
    assert info.value.__cause__ is None
    assert len(made) == 3
    deployment = serve.status().applications["default"].deployments["Broken"]
    assert "ValueError: not today" in deployment.message


def test_a_failed_redeploy_leaves_the_old_version_up(serve: Any) -> None:
    class Broken:
        def __init__(self) -> None:
            raise ValueError("not today")

    handle = serve.run(serve.deployment(Echo).bind(), route_prefix=None)
    with pytest.raises(RuntimeError):
        serve.run(serve.deployment(Broken).bind(), route_prefix=None)

    assert handle.remote(1).result() == 1


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_http_answers_though_it_starts_with_its_first_client(serve: Any) -> None:
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(serve.deployment(lambda: "hello").options(name="hello").bind())

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as response:
        assert response.read() == b"hello"


def test_a_test_that_asks_for_a_url_gets_one_for_apps_that_run_already(serve: Any) -> None:
    serve.run(serve.deployment(lambda: "hello").options(name="hello").bind())

    url = as_ray.serve_url()
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.read() == b"hello"
    assert as_ray.serve_url() == url


def test_a_taken_port_is_one_warning_and_the_handles_work(serve: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        port = taken.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        handle = serve.run(serve.deployment(Echo).bind())
        serve.run(serve.deployment(Echo).bind(), name="second", route_prefix="/second")

    (warning,) = told
    assert warning.category is RuntimeWarning
    assert f"127.0.0.1:{port}: the port is taken" in str(warning.message)
    assert handle.remote(1).result() == 1


def test_an_app_of_a_test_suite_opens_no_port(serve: Any) -> None:
    serve.run(serve.deployment(Echo).bind())

    assert serve.status().proxies == {}


def test_shutting_down_serve_leaves_actors_alone_and_shutting_down_ray_does_not(ray: Any, serve: Any) -> None:
    class Counter:
        def add(self) -> int:
            return 1

    counter = ray.remote(Counter).remote()
    serve.run(serve.deployment(Echo).bind(), route_prefix=None)

    serve.shutdown()
    assert ray.get(counter.add.remote()) == 1

    ray.shutdown()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(counter.add.remote(), timeout=10)


def test_shutdown_can_be_awaited(serve: Any) -> None:
    serve.run(serve.deployment(Echo).bind(), route_prefix=None)

    asyncio.run(serve.shutdown_async())

    assert serve.status().applications == {}


@pytest.mark.parametrize("feature", ["batch", "multiplexed"])
def test_what_is_not_built_yet_is_refused_when_it_is_called(serve: Any, feature: str) -> None:
    decorate = getattr(serve, feature)

    class Uses:
        @decorate  # type: ignore[untyped-decorator]
        async def bare(self, items: Any) -> Any:
            return items

        @decorate()  # type: ignore[untyped-decorator]
        async def with_options(self, items: Any) -> Any:
            return items

        async def __call__(self, which: str) -> Any:
            return await getattr(self, which)(1)

    handle = serve.run(serve.deployment(Uses).bind(), route_prefix=None)

    for which in ("bare", "with_options"):
        with pytest.raises(NotSupportedError, match=rf"@serve\.{feature} is not supported.*Uses\.{which}"):
            handle.remote(which).result()


def test_an_ingress_of_routes_is_refused_when_it_is_run(serve: Any) -> None:
    @serve.ingress(object())
    class Routes:
        pass

    application = serve.deployment(Echo).bind()
    refused = serve.deployment(Routes).bind(application)

    with pytest.raises(NotSupportedError, match=r"@serve\.ingress.*'Routes'"):
        serve.run(refused)


def test_a_handle_refuses_what_chooses_a_replica(serve: Any) -> None:
    handle = serve.run(serve.deployment(Echo).bind(), route_prefix=None)

    for member in ("broadcast", "choose_replica", "dispatch"):
        with pytest.raises(NotSupportedError, match=member):
            getattr(handle, member)("x")


async def awaited(response: Any) -> Any:
    return await response
