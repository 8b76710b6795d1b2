"""What deployments reserve is theirs from the start to the end of their version, and nobody waits unheard."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve.app.graph import build
from threadserve.concurrency.real import RealKernel
from threadserve.errors import DeployError, ReplicaStartError, ResourceError
from threadserve.runtime.controller import Controller

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 10.0


def licensed(name: str, **options: Any) -> Any:
    """An app that reserves one of the licences per replica."""

    def work() -> tuple[str, ...]:
        return serve.get_replica_context().gpu_ids

    return serve.deployment(name=name, ray_actor_options={"resources": {"licence": 1}}, **options)(
        work
    ).bind()


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller(RealKernel(), {"licence": 1, "CPU": 2, "GPU": 1, "memory": 1000})
    yield made
    made.shutdown()


def message_of(controller: Controller, app: str) -> str:
    """Wait until the app says in its status what it waits for."""
    patience = threading.Event()
    for _ in range(1000):
        message = (
            controller.status().applications[app].message if app in controller.status().applications else ""
        )
        if message:
            return message
        patience.wait(0.01)
    raise AssertionError(f"{app} never said what it waits for")


def deploy_aside(
    controller: Controller, app: str, bound: Any = None
) -> tuple[threading.Thread, list[BaseException | None]]:
    ended: list[BaseException | None] = []

    def deploy() -> None:
        try:
            controller.deploy(build(bound or licensed("Work"), app))
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=deploy)
    thread.start()
    return thread, ended


def test_what_can_never_fit_is_refused_before_anything_is_started(controller: Controller) -> None:
    with pytest.raises(ResourceError, match="licence") as caught:
        controller.deploy(build(licensed("Work", num_replicas=2), "shop"))

    assert "shop/Work" in str(caught.value)
    assert controller.status().applications == {}


def test_an_app_that_must_wait_for_another_says_so_and_comes_up_when_that_one_goes(
    controller: Controller,
) -> None:
    controller.deploy(build(licensed("Work"), "first"))

    thread, ended = deploy_aside(controller, "second")
    assert "waits for resources" in message_of(controller, "second")
    controller.delete("first")
    thread.join(WAIT_S)

    assert ended == [None]
    assert controller.status().applications["second"].message == ""


def test_deleting_an_app_that_waits_for_resources_ends_its_deployment(controller: Controller) -> None:
    controller.deploy(build(licensed("Work"), "first"))
    thread, ended = deploy_aside(controller, "second")
    message_of(controller, "second")

    controller.delete("second")
    thread.join(WAIT_S)

    assert isinstance(ended[0], DeployError)
    assert list(controller.status().applications) == ["first"]


def test_a_shutdown_does_not_wait_for_an_app_that_waits_for_resources(controller: Controller) -> None:
    controller.deploy(build(licensed("Work"), "first"))
    thread, ended = deploy_aside(controller, "second")
    message_of(controller, "second")

    controller.shutdown()
    thread.join(WAIT_S)

    assert isinstance(ended[0], DeployError)


def test_a_failed_start_gives_back_what_it_had_reserved(controller: Controller) -> None:
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no")

    declared = serve.deployment(Broken).options(ray_actor_options={"resources": {"licence": 1}})
    with pytest.raises(ReplicaStartError):
        controller.deploy(build(declared.bind(), "broken"))

    assert controller.deploy(build(licensed("Work"), "whole")).remote().result(timeout_s=WAIT_S) == ()


def test_where_old_and_new_do_not_fit_together_the_old_version_stops_first(controller: Controller) -> None:
    handle = controller.deploy(build(licensed("Work"), "shop"))

    again = controller.deploy(build(licensed("Work"), "shop"))

    assert again.remote().result(timeout_s=WAIT_S) == ()
    assert handle.remote().result(timeout_s=WAIT_S) == ()


def test_the_replica_context_names_the_gpus_that_are_reserved(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")

    def which() -> tuple[str, ...]:
        return serve.get_replica_context().gpu_ids

    app: Any = serve.deployment(ray_actor_options={"num_gpus": 0.5}, num_replicas=2)(which).bind()

    handle = controller.deploy(build(app, "seeing"))

    assert handle.remote().result(timeout_s=WAIT_S) == ("7",)


def wide(name: str, licences: int) -> Any:
    """An app that reserves so many licences at once."""

    def work() -> str:
        return name

    return serve.deployment(name=name, ray_actor_options={"resources": {"licence": licences}})(work).bind()


def test_apps_that_wait_come_up_in_the_order_in_which_they_came() -> None:
    controller = Controller(RealKernel(), {"licence": 2, "CPU": 2})
    controller.deploy(build(wide("Work", 1), "first"))
    controller.deploy(build(wide("Work", 1), "second"))
    large, large_ended = deploy_aside(controller, "large", wide("Work", 2))
    message_of(controller, "large")

    controller.delete("first")
    small, small_ended = deploy_aside(controller, "small", wide("Work", 1))

    assert message_of(controller, "small").endswith("; large/Work asked before")
    assert (large_ended, small_ended) == ([], [])

    controller.delete("second")
    large.join(WAIT_S)
    assert (large_ended, small_ended) == ([None], [])
    controller.delete("large")
    small.join(WAIT_S)

    assert small_ended == [None]
    controller.shutdown()


def test_an_app_that_is_redeployed_does_not_lose_what_it_has_to_one_that_waits() -> None:
    controller = Controller(RealKernel(), {"licence": 2, "CPU": 2})
    controller.deploy(build(wide("Work", 2), "running"))
    waiting, ended = deploy_aside(controller, "waiting", wide("Work", 1))
    message_of(controller, "waiting")

    again = controller.deploy(build(wide("Work", 2), "running"))

    assert again.remote().result(timeout_s=WAIT_S) == "Work"
    assert ended == []
    controller.delete("running")
    waiting.join(WAIT_S)
    assert ended == [None]
    controller.shutdown()
