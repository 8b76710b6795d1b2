"""What a handle is to those who hold it: it calls, it is configured, it travels, and it answers slips with advice."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve.errors import (
    ArgumentError,
    DeploymentUnavailableError,
    MethodNotFoundError,
    RequestTimeoutError,
)
from threadserve.handle import DeploymentHandle

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 10.0


class Echo:
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def same(self, value: Any) -> Any:
        return value

    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    def model(self) -> str:
        return serve.get_multiplexed_model_id()

    def options(self) -> str:
        return "the method named options"

    def remote(self) -> str:
        return "the method named remote"

    def _hidden(self) -> str:
        return "one underscore"

    def __len__(self) -> int:
        return 7


def configured(handle: DeploymentHandle[Any], **options: Any) -> DeploymentHandle[Any]:
    return handle.options(**options)  # type: ignore[no-any-return]


@pytest.fixture
def echo() -> Iterator[DeploymentHandle[Any]]:
    with serve.running(serve.deployment(Echo).bind(), name="shop") as handle:
        yield handle


class TestRemote:
    def test_carries_arguments_by_position_and_by_name(self, echo: DeploymentHandle[Any]) -> None:
        assert echo.remote(1, 2, key="three").result() == ((1, 2), {"key": "three"})

    def test_takes_arguments_of_any_name(self) -> None:
        @serve.deployment
        def names(**named: int) -> list[str]:
            return list(named)

        wanted = ["self", "args", "kwargs", "router", "request_id", "stream", "method_name", "timeout_s"]
        with serve.running(names.bind()) as handle:
            assert handle.remote(**dict.fromkeys(wanted, 1)).result() == wanted

    def test_shares_values_instead_of_copying_them(self, echo: DeploymentHandle[Any]) -> None:
        value = object()

        assert echo.same.remote(value).result() is value

    @pytest.mark.parametrize("contents", ["nested", "generator", "too_many", "missing_method"])
    def test_does_not_raise_for_what_the_call_contains(
        self, echo: DeploymentHandle[Any], contents: str
    ) -> None:
        stream = echo.options(stream=True).count.remote(3)
        call: dict[str, Any] = {
            "nested": lambda: echo.same.remote([echo.same.remote(1)]),
            "generator": lambda: echo.same.remote(stream),
            "too_many": lambda: echo.same.remote(1, 2, 3),
            "missing_method": echo.nothing.remote,
        }

        response = call[contents]()

        with pytest.raises((ArgumentError, TypeError, MethodNotFoundError)):
            response.result(timeout_s=WAIT_S)

    def test_does_not_wait_for_anything(self) -> None:
        gate, reached = threading.Event(), threading.Event()

        @serve.deployment(max_ongoing_requests=1)
        def slow() -> str:
            reached.set()
            return "done" if gate.wait(WAIT_S) else "nobody opened the gate"

        with serve.running(slow.bind()) as handle:
            first = handle.remote()
            assert reached.wait(WAIT_S)

            rest = [handle.remote() for _ in range(100)]

            assert not any(response.done() for response in (first, *rest))
            gate.set()
            assert {response.result(timeout_s=WAIT_S) for response in (first, *rest)} == {"done"}

    def test_runs_even_if_nobody_keeps_the_response(self) -> None:
        ran = threading.Event()

        @serve.deployment
        def work() -> None:
            ran.set()

        with serve.running(work.bind()) as handle:
            handle.remote()

            assert ran.wait(WAIT_S)

    def test_of_a_deleted_app_fails_at_the_response(self) -> None:
        with serve.running(serve.deployment(Echo).bind(), name="gone") as handle:
            pass

        response = handle.remote()

        with pytest.raises(DeploymentUnavailableError, match="gone/Echo") as caught:
            response.result(timeout_s=WAIT_S)
        assert caught.value.deployment == "gone/Echo"
        assert caught.value.request_id == response.request_id

    def test_of_a_function_ignores_the_name_of_the_method(self) -> None:
        @serve.deployment
        def double(n: int) -> int:
            return 2 * n

        with serve.running(double.bind()) as handle:
            assert handle.whatever.remote(21).result() == 42


class TestOptions:
    def test_leave_the_handle_as_it_was(self, echo: DeploymentHandle[Any]) -> None:
        other = echo.options(method_name="model", multiplexed_model_id="x")

        assert other is not echo
        assert echo.remote(1).result() == ((1,), {})
        assert other.remote().result() == "x"

    def test_accumulate(self, echo: DeploymentHandle[Any]) -> None:
        handle = (
            echo.options(multiplexed_model_id="x").options(timeout_s=WAIT_S).model.options(timeout_s=None)
        )

        assert handle.remote().result() == "x"
        assert "model" in repr(handle)

    def test_can_turn_a_stream_off_again(self, echo: DeploymentHandle[Any]) -> None:
        stream = echo.options(stream=True)

        assert list(stream.count.remote(3)) == [0, 1, 2]
        assert stream.options(stream=False).remote(5).result() == ((5,), {})

    @pytest.mark.parametrize(
        "option",
        [
            "session_id",
            "_prefer_local_routing",
            "_by_reference",
            "request_serialization",
            "response_serialization",
        ],
    )
    def test_of_ray_serve_without_effect_here_are_accepted(
        self, echo: DeploymentHandle[Any], option: str
    ) -> None:
        assert configured(echo, **{option: "value"}).remote(1).result() == ((1,), {})

    @pytest.mark.parametrize(
        ("misspelt", "meant"),
        [
            ("time_out_s", "timeout_s"),
            ("method", "method_name"),
            ("multiplexed_model", "multiplexed_model_id"),
        ],
    )
    def test_that_are_unknown_name_the_nearest(
        self, echo: DeploymentHandle[Any], misspelt: str, meant: str
    ) -> None:
        with pytest.raises(TypeError, match=f"shop/Echo has no option '{misspelt}'; did you mean {meant}"):
            configured(echo, **{misspelt: 1})

    def test_that_resemble_none_name_all(self, echo: DeploymentHandle[Any]) -> None:
        with pytest.raises(TypeError, match="method_name, stream, multiplexed_model_id, timeout_s"):
            echo.options(request_id="4f1c")

    @pytest.mark.parametrize("timeout", [0, -1, -0.5, math.nan, True, "5", (1,)])
    def test_refuse_what_is_no_timeout(self, echo: DeploymentHandle[Any], timeout: Any) -> None:
        with pytest.raises(ValueError, match=r"shop/Echo.*positive number of seconds"):
            echo.options(timeout_s=timeout)

    @pytest.mark.parametrize("timeout", [WAIT_S, 10, math.inf, None])
    def test_take_what_is_one(self, echo: DeploymentHandle[Any], timeout: float | None) -> None:
        assert echo.options(timeout_s=timeout).remote(1).result() == ((1,), {})

    @pytest.mark.parametrize("option", ["method_name", "multiplexed_model_id"])
    @pytest.mark.parametrize("value", [5, ["same"], b"same"])
    def test_refuse_what_is_no_string_before_it_can_do_harm(
        self, echo: DeploymentHandle[Any], option: str, value: Any
    ) -> None:
        with pytest.raises(TypeError, match=f"shop/Echo: {option} must be a string"):
            configured(echo, **{option: value})

        assert echo.remote(1).result(timeout_s=WAIT_S) == ((1,), {})

    def test_bound_a_call_that_hangs(self) -> None:
        gate = threading.Event()

        @serve.deployment
        def hang() -> bool:
            return gate.wait(WAIT_S)

        with serve.running(hang.bind()) as handle:
            with pytest.raises(RequestTimeoutError, match="timed out"):
                handle.options(timeout_s=0.05).remote().result(timeout_s=WAIT_S)
            gate.set()


class TestAttributes:
    def test_are_methods(self, echo: DeploymentHandle[Any]) -> None:
        assert echo.same.remote("x").result() == "x"
        assert echo._hidden.remote().result() == "one underscore"

    def test_are_the_same_handle_each_time(self, echo: DeploymentHandle[Any]) -> None:
        assert echo.same is echo.same

    def test_never_fail_and_never_ask_the_deployment(self, echo: DeploymentHandle[Any]) -> None:
        assert isinstance(echo.no_such_method.nor_this_one, DeploymentHandle)

    def test_that_do_not_exist_fail_at_the_response_and_name_the_nearest(
        self, echo: DeploymentHandle[Any]
    ) -> None:
        with pytest.raises(
            MethodNotFoundError,
            match=r"'sam' does not exist in shop/Echo; did you mean 'same'.*Available methods",
        ) as caught:
            echo.sam.remote(1).result(timeout_s=WAIT_S)
        assert {"same", "count", "_hidden", "__call__"} <= set(caught.value.available)

    @pytest.mark.parametrize(
        "name", ["__len__", "__fspath__", "__array__", "__iter__", "__rich_repr__", "__wrapped__"]
    )
    def test_with_two_underscores_do_not_exist(self, echo: DeploymentHandle[Any], name: str) -> None:
        assert not hasattr(echo, name)
        with pytest.raises(AttributeError, match="options"):
            getattr(echo, name)

    def test_with_two_underscores_are_reached_by_name(self, echo: DeploymentHandle[Any]) -> None:
        assert echo.options(method_name="__len__").remote().result() == 7

    @pytest.mark.parametrize("name", ["options", "remote"])
    def test_that_are_the_handles_own_are_reached_by_name(
        self, echo: DeploymentHandle[Any], name: str
    ) -> None:
        assert echo.options(method_name=name).remote().result() == f"the method named {name}"

    def test_tell_the_names_of_app_and_deployment(self, echo: DeploymentHandle[Any]) -> None:
        assert (echo.app_name, echo.deployment_name) == ("shop", "Echo")
        assert (echo.same.app_name, echo.same.deployment_name) == ("shop", "Echo")


class TestSlips:
    def test_calling_the_handle_says_what_to_write(self, echo: DeploymentHandle[Any]) -> None:
        with pytest.raises(TypeError, match=r"handle\.remote\(5, key='x'\)"):
            echo(5, key="x")

    def test_calling_a_method_says_what_to_write(self, echo: DeploymentHandle[Any]) -> None:
        with pytest.raises(TypeError, match=r"handle\.same\.remote\(5\)"):
            echo.same(5)

    def test_the_advice_survives_arguments_that_cannot_be_shown(self, echo: DeploymentHandle[Any]) -> None:
        class Shy:
            def __repr__(self) -> str:
                raise ValueError("no")

        with pytest.raises(TypeError, match=r"write handle\.remote\("):
            echo(Shy())

    def test_the_advice_is_short_whatever_the_arguments(self, echo: DeploymentHandle[Any]) -> None:
        with pytest.raises(TypeError) as caught:
            echo(list(range(100_000)), "x" * 100_000)

        assert len(str(caught.value)) < 300


class TestRepr:
    def test_says_what_it_calls_and_how(self, echo: DeploymentHandle[Any]) -> None:
        assert "shop/Echo" in repr(echo)
        assert ".remote(" in repr(echo)
        assert "shop/Echo.count" in repr(echo.count)
        assert "stream=True" in repr(echo.options(stream=True))


class TestTravel:
    @pytest.mark.parametrize(
        "travel", [copy.copy, copy.deepcopy, lambda handle: pickle.loads(pickle.dumps(handle))]
    )
    def test_keeps_deployment_and_options(self, echo: DeploymentHandle[Any], travel: Any) -> None:
        twin = travel(echo.options(method_name="model", multiplexed_model_id="x", timeout_s=WAIT_S))

        assert twin.remote().result() == "x"
        assert (twin.app_name, twin.deployment_name) == ("shop", "Echo")

    def test_keeps_stream(self, echo: DeploymentHandle[Any]) -> None:
        twin = pickle.loads(pickle.dumps(echo.options(stream=True)))

        assert list(twin.count.remote(3)) == [0, 1, 2]

    def test_works_as_an_argument_and_as_a_result(self, echo: DeploymentHandle[Any]) -> None:
        again = echo.same.remote(echo).result()

        assert again is echo
        assert echo.remote([echo], at={"handle": echo}).result() == (([echo],), {"at": {"handle": echo}})

    def test_reaches_a_redeployed_app(self) -> None:
        class Versioned:
            def __init__(self, version: int) -> None:
                self.version = version

            def __call__(self) -> int:
                return self.version

        old = serve.run(serve.deployment(Versioned).bind(1), name="versioned")
        pickled = pickle.dumps(old)
        assert old.remote().result() == 1

        serve.run(serve.deployment(Versioned).bind(2), name="versioned")

        assert old.remote().result() == 2
        assert pickle.loads(pickled).remote().result() == 2

    def test_reaches_an_app_that_was_deleted_and_run_again(self) -> None:
        old = serve.run(serve.deployment(Echo).bind(), name="again")
        serve.delete("again")
        with pytest.raises(DeploymentUnavailableError):
            old.remote(1).result(timeout_s=WAIT_S)

        serve.run(serve.deployment(Echo).bind(), name="again")

        assert old.remote(1).result() == ((1,), {})

    def test_reaches_an_app_that_runs_again_after_a_shutdown(self) -> None:
        old = serve.run(serve.deployment(Echo).bind(), name="again")
        serve.shutdown()

        serve.run(serve.deployment(Echo).bind(), name="again")

        assert old.remote(1).result() == ((1,), {})

    def test_of_a_handle_that_is_unpickled_before_its_app_runs_finds_it_later(self) -> None:
        pickled = pickle.dumps(serve.run(serve.deployment(Echo).bind(), name="later"))
        serve.shutdown()
        handle = pickle.loads(pickled)
        with pytest.raises(DeploymentUnavailableError, match="later/Echo"):
            handle.remote(1).result(timeout_s=WAIT_S)
        with pytest.raises(DeploymentUnavailableError, match="later/Echo"):
            list(handle.options(stream=True).count.remote(1))

        serve.run(serve.deployment(Echo).bind(), name="later")

        assert handle.remote(1).result() == ((1,), {})
        assert list(handle.options(stream=True).count.remote(100)) == list(range(100))

    def test_leaves_nothing_of_a_deleted_app_alive(self) -> None:
        seen: list[weakref.ref[Any]] = []

        class Heavy:
            def __init__(self) -> None:
                seen.append(weakref.ref(self))

            def __call__(self) -> int:
                return 1

        handle = serve.run(serve.deployment(Heavy).bind(), name="heavy")
        assert handle.remote().result() == 1

        serve.delete("heavy")
        gc.collect()

        assert seen[0]() is None


def test_a_method_that_is_a_property_which_fails_shows_its_own_error() -> None:
    class Broken:
        @property
        def method(self) -> Any:
            raise AttributeError("my own mistake")

    with (
        serve.running(serve.deployment(Broken).bind()) as handle,
        pytest.raises(AttributeError, match="my own mistake") as caught,
    ):
        handle.method.remote().result(timeout_s=WAIT_S)
    assert not isinstance(caught.value, MethodNotFoundError)


def test_an_attribute_that_is_no_method_is_refused() -> None:
    class Data:
        number = 5

    with (
        serve.running(serve.deployment(Data).bind()) as handle,
        pytest.raises(TypeError, match="number is a int, not a method"),
    ):
        handle.number.remote().result(timeout_s=WAIT_S)
