"""How handles find routers, and what becomes of those that a forked process inherits."""

from __future__ import annotations

import gc
import weakref
from contextvars import copy_context
from typing import Any

import pytest

from threadserve.call import directory
from threadserve.call.request import CURRENT, Request
from threadserve.call.response import DeploymentResponse
from threadserve.call.stream import DeploymentResponseGenerator
from threadserve.concurrency.channel import Channel
from threadserve.concurrency.real import RealKernel
from threadserve.errors import DeploymentUnavailableError
from threadserve.handle import DeploymentHandle
from threadserve.router.router import Limits, Router


@pytest.fixture(autouse=True)
def a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_routers", weakref.WeakValueDictionary())
    monkeypatch.setattr(directory, "_lock", RealKernel.lock())


def router(app: str = "shop", deployment: str = "Till") -> Router:
    """A router that takes requests, which nobody will run."""
    made = Router(RealKernel(), app, deployment)
    made.open(Limits())
    directory.register(made)
    return made


def request_for(owner: Any, channel: Channel | None = None) -> Request:
    request = Request(owner, "pay", (), {}, context=copy_context(), request_id="r1", channel=channel)
    owner.assign(request)
    return request


def test_a_router_is_found_by_app_and_deployment() -> None:
    till, stock = router(), router(deployment="Stock")

    assert directory.find("shop", "Till") is till
    assert directory.find("shop", "Stock") is stock
    assert directory.find("shop", "Attic") is None
    assert directory.find("mall", "Till") is None


def test_the_router_that_was_registered_last_is_found() -> None:
    first, second = router(), router()

    assert directory.find("shop", "Till") is second is not first


def test_a_router_that_nobody_holds_is_forgotten() -> None:
    router()
    gc.collect()

    assert directory.find("shop", "Till") is None
    assert not directory._routers


def test_an_absent_router_answers_with_the_reason() -> None:
    absent = directory.Absent("shop", "Till", "it is closed on Sundays")

    response = DeploymentHandle[Any](absent).remote(1)

    with pytest.raises(
        DeploymentUnavailableError, match=r"shop/Till is not available: it is closed on Sundays"
    ):
        response.result()


def test_an_absent_router_answers_for_a_stream_too() -> None:
    absent = directory.Absent("shop", "Till", "it is closed on Sundays")

    stream = DeploymentHandle[Any](absent).options(stream=True).remote(1)

    with pytest.raises(DeploymentUnavailableError):
        next(stream)
    assert list(stream) == []


def test_the_handle_of_an_absent_router_finds_the_one_that_comes() -> None:
    handle = DeploymentHandle[Any](directory.Absent("shop", "Till", "not yet"))
    assert handle.remote().done()

    till = router()

    assert not handle.remote().done()
    assert till.statistics().queued == 1


class TestAfterAFork:
    def test_an_inherited_handle_refuses_and_says_what_to_do(self) -> None:
        handle = DeploymentHandle[Any](router())

        directory.disown_after_fork()

        for inherited in (handle, handle.pay, handle.options(timeout_s=5)):
            with pytest.raises(DeploymentUnavailableError, match=r"shop/Till.*forked.*serve\.run.*spawn"):
                inherited.remote(1).result()

    def test_an_inherited_response_refuses_instead_of_waiting(self) -> None:
        response = DeploymentResponse[Any](request_for(router()))

        directory.disown_after_fork()

        for ask in (response.result, response.exception, response.cancel):
            with pytest.raises(DeploymentUnavailableError, match="forked"):
                ask()
        assert not response.done()
        assert "queued" in repr(response)

    def test_an_inherited_stream_refuses_whether_it_has_items_or_not(self) -> None:
        till = router()
        channel = Channel(till.kernel, 4)
        stream = DeploymentResponseGenerator[int](request_for(till, channel))
        channel.offer(1, None)

        directory.disown_after_fork()

        with pytest.raises(DeploymentUnavailableError, match="forked"):
            next(stream)
        with pytest.raises(DeploymentUnavailableError, match="forked"):
            anext(stream).send(None)

    def test_an_answer_that_was_there_stays(self) -> None:
        response = DeploymentHandle[Any](directory.Absent("shop", "Till", "closed")).remote()

        directory.disown_after_fork()

        assert response.done()
        assert isinstance(response.exception(), DeploymentUnavailableError)

    def test_the_forked_process_may_have_a_router_of_the_same_name(self) -> None:
        old = router()

        directory.disown_after_fork()

        assert directory.find("shop", "Till") is None
        new = router()
        assert directory.find("shop", "Till") is new is not old
        assert not DeploymentHandle[Any](new).remote().done()
        assert DeploymentHandle[Any](old).remote().done()

    def test_its_code_works_for_no_request(self) -> None:
        request = request_for(router())

        def fork_in_a_body() -> Request | None:
            CURRENT.set(request)
            directory.disown_after_fork()
            return CURRENT.get()

        assert copy_context().run(fork_in_a_body) is None
