"""Calls that the code of an interpreter replica makes: they run behind the routers of the main interpreter."""

from __future__ import annotations

import gc
import subprocess
import sys
from contextvars import copy_context
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.doubles import wait_until
from tests.replica.bodies import TENANT, Everything, OutOfStock, Point
from threadserve.call.request import Request
from threadserve.concurrency.interpreters import is_offered
from threadserve.concurrency.real import RealKernel
from threadserve.router.bridge import Bridge

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not is_offered(), reason="replica_type='interpreter' exists from Python 3.14 on"
)


@pytest.fixture(params=["thread", "interpreter"])
def handle(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An interpreter replica, whose code calls a replica of either kind."""
    inner = serve.deployment(Everything, name="Inner", replica_type=request.param)
    outer = serve.deployment(Everything, name="Outer", replica_type="interpreter")
    yield serve.run(outer.bind(1, other=inner.bind(10)))
    serve.shutdown()


def the_inner() -> Any:
    return serve.get_deployment_handle("Inner", "default")


def ongoing(handle: Any) -> int:
    count: int = handle._router.statistics().ongoing
    return count


class TestACallFromInside:
    def test_is_answered(self, handle: Any) -> None:
        assert handle.ask.remote("__call__", 5).result() == 15
        assert handle.ask_later.remote("later", 6).result() == 16

    def test_carries_objects(self, handle: Any) -> None:
        assert handle.ask.remote("same", Point(1, 2)).result() == Point(1, 2)

    def test_takes_responses_for_arguments(self, handle: Any) -> None:
        assert handle.chain.remote(1).result() == 31

    def test_brings_errors_as_themselves(self, handle: Any) -> None:
        with pytest.raises(OutOfStock, match="3 x apple") as caught:
            handle.ask.remote("fail").result()

        assert isinstance(caught.value.__cause__, KeyError)

    def test_shares_the_id_of_its_request(self, handle: Any) -> None:
        assert handle.request_ids.remote().result()

    def test_is_bound_by_what_is_left_of_its_request(self, handle: Any) -> None:
        assert 0 < handle.options(timeout_s=60).ask.remote("left").result() <= 60

    def test_is_cancelled_with_its_request(self, handle: Any) -> None:
        response = handle.ask.remote("until_cancelled")
        wait_until(lambda: the_inner().how_far.remote().result()[0] == 1)
        response.cancel()

        wait_until(lambda: the_inner().how_far.remote().result()[1] == ["cancelled"])
        wait_until(lambda: ongoing(handle) == 0 == ongoing(the_inner()))

    def test_may_have_a_deadline_of_its_own(self, handle: Any) -> None:
        assert handle.ask_with_timeout.remote().result() == "gave up"
        wait_until(lambda: the_inner().how_far.remote().result()[1] == ["cancelled"])

    def test_carries_registered_context_variables_on(
        self, handle: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from threadserve.call import context

        monkeypatch.setattr(context.propagated, "names", ())
        serve.propagate("tests.replica.bodies:TENANT")
        token = TENANT.set("shop")
        try:
            assert handle.ask.remote("variables").result()[0] == "shop"
        finally:
            TENANT.reset(token)

    def test_of_a_deployment_that_was_deleted_says_so(self, handle: Any) -> None:
        with pytest.raises(serve.MethodNotFoundError):
            handle.ask.remote("nothing").result()


def test_a_call_keeps_no_argument_that_came_when_it_had_been_cancelled() -> None:
    def send(*_: object) -> None:
        raise AssertionError("it was sent")

    link: Any = SimpleNamespace(send=send)
    request = Request(Bridge(RealKernel(), link, "app", "inner"), "call", (), {}, copy_context())
    request.cancel()
    request.args = ([],)  # by an input whose answer comes at that moment

    assert not list(request.router._send(request))  # type: ignore[attr-defined]

    assert request.args is None


class TestAStreamReadInside:
    @pytest.mark.parametrize("method", ["ask_items", "ask_items_later"])
    def test_comes_whole_and_in_order(self, handle: Any, method: str) -> None:
        assert handle.options(method_name=method).remote(300).result() == [*range(300)]

    def test_that_is_left_ends_its_producer(self, handle: Any) -> None:
        assert handle.ask_and_leave.remote(10**9).result() == 0

        wait_until(lambda: the_inner().how_far.remote().result()[1] == ["items"])
        wait_until(lambda: ongoing(the_inner()) == 0)


def test_an_app_is_not_run_from_inside(handle: Any) -> None:
    with pytest.raises(serve.NotSupportedError, match="main interpreter"):
        handle.run_an_app.remote().result()


def test_many_calls_at_once_are_each_answered_once(handle: Any) -> None:
    responses = [handle.ask.remote("__call__", number) for number in range(200)]

    assert [response.result() for response in responses] == [number + 10 for number in range(200)]
    gc.collect()
    assert ongoing(handle) == 0 == ongoing(the_inner())


PROGRAM = """
import threadserve as serve
from tests.replica.bodies import Everything

D = serve.deployment(Everything, replica_type="interpreter")
handle = serve.run(D.bind(1))
print(handle.remote(1).result())
{rest}
"""


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("", ""),
        ("serve.shutdown()", ""),
        ("handle.remote(2)", ""),
        ("handle.hold.remote(0.2)", ""),
        ("raise SystemExit(0)", ""),
    ],
)
def test_a_program_that_ends_leaves_nothing_and_says_nothing(rest: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(rest=rest)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", said)
