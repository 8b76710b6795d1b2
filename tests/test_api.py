"""The verbs: apps come up, stand side by side, are replaced under load, fail, and go, and nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve import api
from threadserve.app.config import HTTPOptions
from threadserve.errors import (
    ConfigError,
    DeploymentUnavailableError,
    ReplicaStartError,
    RequestCancelledError,
    ServeError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.app.deployment import Application
    from threadserve.handle import DeploymentHandle

WAIT_S = 10.0


class Gate:
    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.opened = threading.Event()

    def wait(self) -> None:
        self.reached.release()
        assert self.opened.wait(WAIT_S)


class Versioned:
    """Says which version it is."""

    def __init__(self, version: Any = 1, **children: Any) -> None:
        self.version = version
        self.children = children

    def __call__(self) -> Any:
        return self.version

    async def answer(self) -> Any:
        return self.version

    def hold(self, gate: Gate) -> Any:
        gate.wait()
        return self.version

    def ask(self, child: str, method: str = "__call__", *args: Any) -> Any:
        return self.children[child].options(method_name=method).remote(*args).result()

    def do(self, fn: Callable[[], Any]) -> Any:
        return fn()


class Broken:
    def __init__(self, *_: Any) -> None:
        raise ValueError("the model is not there")


def app_of(version: Any = 1, name: str = "Versioned", **children: Any) -> Application[Versioned]:
    return serve.deployment(Versioned, name=name).bind(version, **children)


def broken(*children: Any, **options: Any) -> Application[Broken]:
    return serve.deployment(Broken, **options).bind(*children)


def until_it_fails(call: Callable[[], object]) -> Exception:
    """Call again and again; the exception that ends it comes back."""
    while True:
        try:
            call()
        except Exception as error:
            return error


def alive(seen: list[weakref.ref[Any]]) -> list[Any]:
    """What is still there of some objects, when whoever has let go of them has also left the frames that held them."""
    for _ in range(100):
        gc.collect()
        if not any(ref() is not None for ref in seen):
            return []
        time.sleep(0)
    return [ref() for ref in seen if ref() is not None]


def threads_of(app: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"{app}/")]


def overview(app: str = "default") -> Any:
    return serve.status().applications[app]


class TestRun:
    def test_gives_the_handle_of_what_was_bound_last(self) -> None:
        handle = serve.run(app_of("ingress", child=app_of("child", name="Child")))

        assert handle.remote().result() == "ingress"
        assert handle.deployment_name == "Versioned"
        assert handle.app_name == "default"

    def test_gives_the_same_handle_as_later_look_ups(self) -> None:
        handle = serve.run(app_of(), name="shop")

        assert serve.get_app_handle("shop") is handle
        assert serve.get_deployment_handle("Versioned", "shop") is handle
        assert serve.run(app_of(2), name="shop") is handle

    def test_keeps_several_apps_side_by_side(self) -> None:
        handles = [serve.run(app_of(number), name=f"app{number}") for number in range(5)]

        assert [handle.remote().result() for handle in handles] == [0, 1, 2, 3, 4]
        assert list(serve.status().applications) == [f"app{number}" for number in range(5)]

    @pytest.mark.parametrize("name", ["", None, 5, b"shop"])
    def test_refuses_what_is_no_name(self, name: Any) -> None:
        with pytest.raises(ConfigError, match="non-empty string"):
            serve.run(app_of(), name=name)

    @pytest.mark.parametrize("prefix", ["", "shop", "/shop/", "/{x}", "/a}", 5, b"/"])
    def test_refuses_what_is_no_prefix(self, prefix: Any) -> None:
        with pytest.raises(ConfigError, match="app 'shop': route_prefix must"):
            serve.run(app_of(), name="shop", route_prefix=prefix)
        assert not serve.status().applications

    @pytest.mark.parametrize(
        ("target", "advice"),
        [
            (serve.deployment(Versioned), r"serve\.run\(Versioned\.bind\(\.\.\.\)\)"),
            (Versioned, r"@serve\.deployment"),
            (Versioned(), r"\.bind"),
            ("module:app", "import the application"),
            (None, r"\.bind"),
        ],
    )
    def test_says_what_to_do_with_what_is_no_application(self, target: Any, advice: str) -> None:
        with pytest.raises(TypeError, match=advice):
            serve.run(target)
        assert not serve.status().applications

    def test_says_that_a_handle_runs_already(self) -> None:
        handle: Any = serve.run(app_of())

        with pytest.raises(TypeError, match="a handle, whose app is running already"):
            serve.run(handle)

    def test_accepts_the_logging_config_of_ray_serve(self) -> None:
        assert serve.run(app_of(), logging_config={"log_level": "DEBUG"}).remote().result() == 1

    @pytest.mark.parametrize("verb", ["run", "run_many"])
    def test_with_blocking_returns_when_somebody_shuts_down(self, verb: str) -> None:
        up = threading.Event()

        class Announces:
            def __init__(self) -> None:
                up.set()

        app = serve.deployment(Announces).bind()

        def block() -> None:
            if verb == "run":
                serve.run(app, blocking=True)
            else:
                serve.run_many([serve.RunTarget(app)], blocking=True)

        thread = threading.Thread(target=block)
        thread.start()
        assert up.wait(WAIT_S)
        while overview().status != "RUNNING":
            time.sleep(0)
        serve.shutdown()

        thread.join(WAIT_S)
        assert not thread.is_alive()

    def test_with_blocking_does_not_miss_a_shutdown_that_comes_just_before(self) -> None:
        serve.run(app_of())
        runtime = api._current()
        serve.shutdown()
        thread = threading.Thread(target=api._block, args=(runtime,))

        thread.start()
        thread.join(WAIT_S)

        assert not thread.is_alive()

    def test_names_the_threads_after_app_deployment_and_replica(self) -> None:
        handle = serve.run(serve.deployment(Versioned, num_replicas=2).bind(), name="shop")

        name = handle.do.remote(lambda: threading.current_thread().name).result()

        assert name in {"shop/Versioned#0 worker 1", "shop/Versioned#1 worker 1"}

    def test_tells_the_log_and_nobody_else(
        self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with caplog.at_level(logging.INFO, "threadserve"):
            serve.run(app_of(child=app_of(name="Child")), name="shop")
            serve.delete("shop")

        messages = [record.getMessage() for record in caplog.records]
        assert messages == [
            "deploying app 'shop': Child, Versioned",
            "app 'shop' is running",
            "deleting app 'shop'",
        ]
        assert capfd.readouterr() == ("", "")


class TestRunMany:
    def test_gives_handles_in_the_order_of_the_targets(self) -> None:
        one, two = serve.run_many(
            [serve.RunTarget(app_of(1), name="one"), serve.RunTarget(app_of(2), name="two")]
        )

        assert (one.app_name, two.app_name) == ("one", "two")
        assert (one.remote().result(), two.remote().result()) == (1, 2)

    def test_refuses_nothing_doubles_and_what_is_no_target(self) -> None:
        with pytest.raises(ValueError, match="at least one RunTarget"):
            serve.run_many([])
        with pytest.raises(ConfigError, match="a name of its own"):
            serve.run_many([serve.RunTarget(app_of()), serve.RunTarget(app_of())])
        wrong: Any = [app_of()]
        with pytest.raises(TypeError, match=r"run_many takes a list of serve\.RunTarget"):
            serve.run_many(wrong)
        assert not serve.status().applications


class TestRunning:
    def test_takes_the_app_down_at_the_end(self) -> None:
        with serve.running(app_of()) as handle:
            name = handle.app_name
            assert overview(name).status == "RUNNING"

        assert not serve.status().applications
        assert not threads_of(name)

    def test_takes_the_app_down_when_the_block_raises(self) -> None:
        with pytest.raises(ZeroDivisionError), serve.running(app_of()):
            _ = 1 // 0

        assert not serve.status().applications

    def test_gives_every_app_a_name_of_its_own(self) -> None:
        with serve.running(app_of(1)) as one, serve.running(app_of(2)) as two:
            assert one.app_name != two.app_name
            assert (one.remote().result(), two.remote().result()) == (1, 2)

    def test_may_be_named(self) -> None:
        with serve.running(app_of(), name="shop") as handle:
            assert handle.app_name == "shop"

    def test_leaves_nothing_of_an_app_that_does_not_start(self) -> None:
        with pytest.raises(ReplicaStartError), serve.running(broken()):
            pass

        assert not serve.status().applications

    def test_works_from_several_threads_at_once(self) -> None:
        answers: list[Any] = []

        def use(number: int) -> None:
            with serve.running(app_of(number)) as handle:
                answers.append(handle.remote().result())

        threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)

        assert sorted(answers) == list(range(8))
        assert not serve.status().applications


class TestStart:
    def test_refuses_unknown_options_by_name(self) -> None:
        with pytest.raises(TypeError, match=r"start\(\) has no option 'port'; known are http_options"):
            serve.start(port=8000)
        with pytest.raises(ConfigError, match="did you mean 'port'"):
            serve.start({"prot": 8000})
        with pytest.raises(ConfigError, match="http_options must be"):
            serve.start(5)  # type: ignore[arg-type]


class TestRedeploy:
    def test_keeps_old_handles_good(self) -> None:
        handle = serve.run(app_of(1))
        response = handle.remote()

        serve.run(app_of(2))

        assert response.result() == 1
        assert {handle.remote().result() for _ in range(20)} == {2}
        assert {handle.answer.remote().result() for _ in range(20)} == {2}

    def test_brings_the_new_version_up_before_the_old_one_goes(self) -> None:
        handle = serve.run(app_of(1))
        seen: list[Any] = []

        class Looks:
            def __init__(self) -> None:
                seen.append(handle.remote().result())

            def __call__(self) -> str:
                return "new"

        serve.run(serve.deployment(Looks, name="Versioned").bind())

        assert seen == [1]
        assert handle.remote().result() == "new"

    def test_loses_nothing_under_load_and_answers_with_the_new_version_at_once(self) -> None:
        child = serve.deployment(Versioned, name="Child", num_replicas=2).bind
        handle = serve.run(app_of(0, child=child(0)))
        current, wrong, calls = [0], list[Any](), [0]
        stop = threading.Event()

        def work(method: str, *args: Any) -> None:
            while not stop.is_set():
                floor = current[0]
                try:
                    version = handle.options(method_name=method).remote(*args).result(timeout_s=WAIT_S)
                except BaseException as error:
                    wrong.append(error)
                    return
                calls[0] += 1
                if version < floor:
                    wrong.append((method, version, floor))

        jobs = [("__call__",), ("answer",), ("ask", "child"), ("ask", "child", "answer")] * 2
        threads = [threading.Thread(target=work, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for version in range(1, 9):
            before = calls[0]
            serve.run(app_of(version, child=child(version)))
            current[0] = version
            while calls[0] < before + 50 and not wrong:
                time.sleep(0)
        stop.set()
        for thread in threads:
            thread.join(WAIT_S)

        assert not wrong
        assert handle.ask.remote("child").result() == 8
        assert len(serve.status().applications) == 1

    def test_lets_what_runs_in_the_old_version_finish(self) -> None:
        gate = Gate()
        handle = serve.run(app_of(1, child=app_of("old child", name="Child")))
        running, through = handle.hold.remote(gate), handle.ask.remote("child", "hold", gate)
        for _ in range(2):
            assert gate.reached.acquire(timeout=WAIT_S)

        serve.run(app_of(2, child=app_of("new child", name="Child")))

        assert handle.ask.remote("child").result() == "new child"
        assert not running.done()
        gate.opened.set()
        assert (running.result(timeout_s=WAIT_S), through.result(timeout_s=WAIT_S)) == (1, "old child")

    def test_gives_what_is_queued_to_the_new_version(self) -> None:
        gate = Gate()
        handle = serve.run(serve.deployment(Versioned, max_ongoing_requests=1).bind(1))
        running = handle.hold.remote(gate)
        assert gate.reached.acquire(timeout=WAIT_S)
        queued = [handle.remote() for _ in range(10)]

        serve.run(serve.deployment(Versioned, max_ongoing_requests=1).bind(2))

        assert {response.result(timeout_s=WAIT_S) for response in queued} == {2}
        gate.opened.set()
        assert running.result(timeout_s=WAIT_S) == 1

    def test_ends_the_threads_and_the_objects_of_the_old_version(self) -> None:
        seen: list[weakref.ref[Any]] = []

        class Heavy(Versioned):
            def __init__(self) -> None:
                super().__init__()
                seen.append(weakref.ref(self))

        for _ in range(3):
            serve.run(serve.deployment(Heavy).bind(), name="heavy").remote().result()
        serve.delete("heavy")

        assert not threads_of("heavy")
        assert not alive(seen)

    def test_that_still_drains_is_waited_for_by_delete(self) -> None:
        gate = Gate()
        handle = serve.run(app_of(1), name="shop")
        running = handle.hold.remote(gate)
        assert gate.reached.acquire(timeout=WAIT_S)
        serve.run(app_of(2), name="shop")
        deleting = threading.Thread(target=serve.delete, args=("shop",))
        deleting.start()
        until_it_fails(lambda: handle.remote().result(timeout_s=WAIT_S))

        deleting.join(0.05)
        assert deleting.is_alive()

        gate.opened.set()
        deleting.join(WAIT_S)
        assert running.result(timeout_s=0) == 1
        assert not threads_of("shop")

    def test_removes_deployments_that_are_no_longer_there(self) -> None:
        serve.run(app_of(1, child=app_of(name="Child")))
        child = serve.get_deployment_handle("Child", "default")

        serve.run(app_of(2))

        with pytest.raises(KeyError, match="no deployment 'Child' in app 'default'"):
            serve.get_deployment_handle("Child", "default")
        error = until_it_fails(
            lambda: child.remote().result(timeout_s=WAIT_S)
        )  # until the old version has drained
        assert isinstance(error, DeploymentUnavailableError)
        assert "redeployed without it" in str(error)
        assert list(overview().deployments) == ["Versioned"]

    def test_brings_a_removed_deployment_back_under_its_old_handles(self) -> None:
        serve.run(app_of(1, child=app_of("first", name="Child")))
        child = serve.get_deployment_handle("Child", "default")
        serve.run(app_of(2))

        serve.run(app_of(3, child=app_of("third", name="Child")))

        assert {child.remote().result() for _ in range(20)} == {"third"}

    def test_brings_it_back_alone_though_its_former_version_still_drains(self) -> None:
        holds_first_version, holds_calls = Gate(), Gate()
        handle = serve.run(app_of(1, child=app_of("first", name="Child")))
        child = serve.get_deployment_handle("Child", "default")
        running = handle.hold.remote(holds_first_version)
        assert holds_first_version.reached.acquire(timeout=WAIT_S)
        serve.run(app_of(2))

        serve.run(app_of(3, child=app_of("third", name="Child")))

        calls = [child.hold.remote(holds_calls) for _ in range(10)]  # twice as many as one replica takes
        for _ in range(5):
            assert holds_calls.reached.acquire(timeout=WAIT_S)
        assert not holds_calls.reached.acquire(timeout=0.05)
        holds_calls.opened.set()
        assert {call.result(timeout_s=WAIT_S) for call in calls} == {"third"}
        holds_first_version.opened.set()
        assert running.result(timeout_s=WAIT_S) == 1

    def test_that_fails_leaves_the_old_version_and_says_so(self) -> None:
        handle = serve.run(app_of(1), name="shop")

        with pytest.raises(ReplicaStartError, match="shop/Versioned"):
            serve.run(broken(name="Versioned"), name="shop")

        assert {handle.remote().result() for _ in range(10)} == {1}
        assert overview("shop").status == "RUNNING"
        assert "the model is not there" in overview("shop").message
        assert "the model is not there" in overview("shop").deployments["Versioned"].message
        serve.run(app_of(2), name="shop")
        assert overview("shop").message == ""
        assert handle.remote().result() == 2

    def test_that_fails_takes_its_new_deployments_away_again(self) -> None:
        serve.run(app_of(1), name="shop")

        with pytest.raises(ReplicaStartError):
            serve.run(broken(app_of(name="Extra"), name="Versioned"), name="shop")

        assert list(overview("shop").deployments) == ["Versioned"]
        with pytest.raises(KeyError):
            serve.get_deployment_handle("Extra", "shop")
        assert not [name for name in threads_of("shop") if "Extra" in name]

    def test_lets_constructors_reach_deployments_that_are_new(self) -> None:
        class Looks:
            def __init__(self, *_: Any) -> None:
                self.found = serve.get_deployment_handle("Extra").remote().result()

            def __call__(self) -> Any:
                return self.found

        serve.run(app_of(1, name="Looks"))

        handle = serve.run(serve.deployment(Looks).bind(app_of("extra", name="Extra")))

        assert handle.remote().result() == "extra"

    def test_of_the_own_app_from_inside_a_replica_does_not_wait_for_the_request(self) -> None:
        handle = serve.run(app_of(1))

        response = handle.do.remote(lambda: serve.run(app_of(2)).remote().result())

        assert response.result(timeout_s=WAIT_S) == 2
        assert handle.remote().result() == 2

    def test_by_several_threads_at_once_leaves_one_version(self) -> None:
        handle = serve.run(app_of(0))
        threads = [threading.Thread(target=serve.run, args=(app_of(number),)) for number in range(1, 6)]

        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)

        assert len({handle.remote().result() for _ in range(50)}) == 1


class TestFailedStart:
    def test_raises_at_once_with_the_users_exception_as_the_cause(self) -> None:
        attempts: list[int] = []

        class Counts:
            def __init__(self) -> None:
                attempts.append(1)
                raise ValueError("the model is not there")

        with pytest.raises(
            ReplicaStartError, match=r"shop/Counts could not start: ValueError: the model"
        ) as caught:
            serve.run(serve.deployment(Counts).bind(), name="shop")

        assert isinstance(caught.value.__cause__, ValueError)
        assert len(attempts) == 1

    def test_stands_in_the_status_until_it_is_deleted(self) -> None:
        with pytest.raises(ReplicaStartError):
            serve.run(broken(app_of(name="Child")), name="shop")

        app = overview("shop")
        assert (app.status, app.route_prefix) == ("DEPLOY_FAILED", None)
        failed, child = app.deployments["Broken"], app.deployments["Child"]
        assert (failed.status, failed.status_trigger) == ("DEPLOY_FAILED", "REPLICA_STARTUP_FAILED")
        assert 'raise ValueError("the model is not there")' in failed.message
        assert failed.replica_states == child.replica_states == {}
        assert child.status != "DEPLOY_FAILED"

        serve.delete("shop")

        assert not serve.status().applications

    def test_stands_in_the_status_until_it_is_redeployed(self) -> None:
        with pytest.raises(ReplicaStartError):
            serve.run(broken(), name="shop")

        handle = serve.run(app_of(1), name="shop")

        assert handle.remote().result() == 1
        assert (overview("shop").status, overview("shop").message) == ("RUNNING", "")
        assert list(overview("shop").deployments) == ["Versioned"]

    def test_leaves_no_thread_no_object_and_no_name(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(
            logging.CRITICAL, "threadserve"
        )  # a record would keep the exception, and that the frames
        seen: list[weakref.ref[Any]] = []

        class Heavy:
            def __init__(self, child: Any = None) -> None:
                seen.append(weakref.ref(self))
                if child is not None:
                    raise ValueError("no")

            async def __call__(self) -> None:
                pass

        child = serve.deployment(Heavy, name="Child").bind()
        error = until_it_fails(
            lambda: serve.run(serve.deployment(Heavy, name="Parent", num_replicas=3).bind(child), name="shop")
        )
        assert isinstance(error, ReplicaStartError)
        del error

        assert not threads_of("shop")
        assert not alive(seen)

    def test_answers_calls_through_handles_there_were(self) -> None:
        handles: list[DeploymentHandle[Any]] = []

        class Parent:
            def __init__(self, child: DeploymentHandle[Any]) -> None:
                handles.append(child)
                assert child.remote().result() == 1
                raise ValueError("no")

        with pytest.raises(ReplicaStartError):
            serve.run(serve.deployment(Parent).bind(app_of(1, name="Child")), name="shop")

        for handle in (*handles, serve.get_app_handle("shop")):
            with pytest.raises(DeploymentUnavailableError, match="shop/"):
                handle.remote().result(timeout_s=WAIT_S)

    def test_of_one_replica_among_several_is_a_failure(self) -> None:
        class Second:
            def __init__(self) -> None:
                if serve.get_replica_context().rank.rank == 1:
                    raise ValueError("only I")

        with pytest.raises(ReplicaStartError, match="only I"):
            serve.run(serve.deployment(Second, num_replicas=3).bind())

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError()])
    def test_may_be_of_any_kind(self, error: BaseException) -> None:
        class Raises:
            def __init__(self) -> None:
                raise error

        with pytest.raises(ReplicaStartError) as caught:
            serve.run(serve.deployment(Raises).bind())
        assert caught.value.__cause__ is error

    def test_is_retried_as_often_as_the_user_says(self) -> None:
        attempts: list[int] = []

        class Third:
            def __init__(self) -> None:
                attempts.append(1)
                if len(attempts) < 3:
                    raise ValueError("not yet")

            def __call__(self) -> int:
                return len(attempts)

        handle = serve.run(serve.deployment(Third, max_constructor_retry_count=3).bind())
        assert handle.remote().result() == 3

        attempts.clear()
        with pytest.raises(ReplicaStartError, match="not yet"):
            serve.run(serve.deployment(Third, max_constructor_retry_count=2).bind(), name="other")
        assert len(attempts) == 2

    def test_reserves_no_prefix(self) -> None:
        with pytest.raises(ReplicaStartError):
            serve.run(broken(), name="bad")

        serve.run(app_of(), name="good")

        assert overview("bad").route_prefix is None


class TestHttp:
    """What the verbs decide about it; how it is served is told elsewhere."""

    @pytest.fixture(autouse=True)
    def any_free_port(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(api, "HTTPOptions", functools.partial(HTTPOptions, port=0))

    def test_is_served_only_when_it_is_asked_for(self) -> None:
        serve.run(app_of(), name="quiet")
        assert api.http_url() is None

        serve.run(app_of(), name="loud", route_prefix="/loud")

        assert api.http_url() is not None
        assert overview("loud").route_prefix == "/loud"

    def test_for_one_app_is_not_for_those_that_do_not_ask(self) -> None:
        serve.run(app_of(), name="loud", route_prefix="/loud")

        for name in ("quiet", "silent"):
            serve.run(app_of(), name=name)

        assert {name: app.route_prefix for name, app in serve.status().applications.items()} == {
            "loud": "/loud",
            "quiet": None,
            "silent": None,
        }

    def test_goes_again_when_the_app_that_it_was_for_does_not_start(self) -> None:
        with pytest.raises(ReplicaStartError):
            serve.run(broken(), name="bad", route_prefix="/bad")

        assert api.http_url() is None
        assert "threadserve http" not in {thread.name for thread in threading.enumerate()}

    def test_stays_for_the_others_when_one_does_not_start(self) -> None:
        serve.run(app_of(), name="good", route_prefix="/good")
        url = api.http_url()

        with pytest.raises(ReplicaStartError):
            serve.run(broken(), name="bad", route_prefix="/bad")

        assert api.http_url() == url is not None

    def test_gives_a_prefix_to_one_app_at_a_time(self) -> None:
        serve.run(app_of(), name="first", route_prefix="/shop")

        with pytest.raises(
            ConfigError, match=r"app 'second': the route_prefix '/shop' belongs to app 'first'"
        ):
            serve.run(app_of(), name="second", route_prefix="/shop")
        assert list(serve.status().applications) == ["first"]

        serve.run(app_of(), name="first", route_prefix="/other")
        serve.run(app_of(), name="second", route_prefix="/shop")


class TestConstructors:
    def test_run_children_first_and_once_for_each_replica(self) -> None:
        order: list[str] = []

        class Notes:
            def __init__(self, name: str, *_: Any) -> None:
                order.append(name)

        def notes(name: str, *children: Any, **options: Any) -> Any:
            return serve.deployment(Notes, name=name, **options).bind(name, *children)

        leaf = notes("leaf", num_replicas=2)
        serve.run(notes("root", notes("left", leaf), notes("right", leaf)))

        assert order[:2] == ["leaf", "leaf"]
        assert sorted(order[2:4]) == ["left", "right"]
        assert order[4:] == ["root"]

    def test_of_one_level_and_of_all_replicas_run_at_once(self) -> None:
        together = threading.Barrier(5)

        class Meets:
            def __init__(self) -> None:
                together.wait(WAIT_S)

        pair = serve.deployment(Meets, name="Pair", num_replicas=2).bind()
        trio = serve.deployment(Meets, name="Trio", num_replicas=3).bind()

        serve.run(app_of(1, pair=pair, trio=trio))

        assert not together.broken

    def test_may_call_their_children(self) -> None:
        class Asks:
            def __init__(self, child: DeploymentHandle[Any]) -> None:
                self.found = child.remote().result()

            def __call__(self) -> Any:
                return self.found

        assert serve.run(serve.deployment(Asks).bind(app_of("child"))).remote().result() == "child"

    def test_may_be_coroutines_that_call_their_children(self) -> None:
        class Asks:
            async def __init__(self, child: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
                self.found = await child.remote()
                self.loop = asyncio.get_running_loop()

            async def __call__(self) -> Any:
                assert asyncio.get_running_loop() is self.loop
                return self.found

        assert serve.run(serve.deployment(Asks).bind(app_of("child"))).remote().result() == "child"

    def test_get_handles_out_of_containers(self) -> None:
        class Takes:
            def __init__(self, found: Any, *, more: Any) -> None:
                self.children = [found[0], found[1]["deep"], *more]

            def __call__(self) -> list[Any]:
                return [child.remote().result() for child in self.children]

        app = serve.deployment(Takes).bind(
            [app_of(1, name="A"), {"deep": app_of(2, name="B")}], more=(app_of(3, name="C"),)
        )

        assert serve.run(app).remote().result() == [1, 2, 3]

    def test_that_delete_or_shut_down_their_own_app_do_not_hang(self) -> None:
        for end in (lambda: serve.delete("shop"), serve.shutdown):

            class Quits:
                def __init__(self, end: Callable[[], None] = end) -> None:
                    end()

            with contextlib.suppress(ServeError):
                serve.run(serve.deployment(Quits).bind(), name="shop")
            serve.delete("shop")

            assert "shop" not in serve.status().applications

    def test_that_run_their_own_app_anew_are_refused(self) -> None:
        class Again:
            def __init__(self) -> None:
                serve.run(app_of(), name="shop")

        with pytest.raises(ReplicaStartError) as caught:
            serve.run(serve.deployment(Again).bind(), name="shop")
        assert "app 'shop' cannot be run from the code of its own version" in str(caught.value.__cause__)

    def test_may_run_another_app(self) -> None:
        class Helped:
            def __init__(self) -> None:
                self.helper = serve.run(app_of("helper"), name="helper")

            def __call__(self) -> Any:
                return self.helper.remote().result()

        assert serve.run(serve.deployment(Helped).bind()).remote().result() == "helper"


class TestUserConfig:
    @pytest.mark.parametrize("is_async", [False, True])
    def test_is_there_before_the_first_request_in_every_replica(self, is_async: bool) -> None:
        class Sync:
            level = 0

            def reconfigure(self, config: dict[str, int]) -> None:
                self.level = config["level"]

            def __call__(self) -> int:
                return self.level

        class Async(Sync):
            async def reconfigure(self, config: dict[str, int]) -> None:  # type: ignore[override]
                await asyncio.sleep(0)
                self.level = config["level"]

        deployment = serve.deployment(Async if is_async else Sync, num_replicas=2, user_config={"level": 5})
        handle = serve.run(deployment.bind())
        assert {handle.remote().result() for _ in range(20)} == {5}

        serve.run(deployment.options(user_config={"level": 6}).bind())

        assert {handle.remote().result() for _ in range(20)} == {6}

    def test_without_reconfigure_is_a_failed_start(self) -> None:
        with pytest.raises(ReplicaStartError, match="reconfigure"):
            serve.run(serve.deployment(Versioned, user_config={"level": 5}).bind(), name="shop")
        assert overview("shop").status == "DEPLOY_FAILED"

    @pytest.mark.parametrize("hook", ["reconfigure", "check_health"])
    def test_a_hook_that_raises_is_a_failed_start(self, hook: str) -> None:
        class Hooked:
            def reconfigure(self, config: Any) -> None:
                self.check("reconfigure")

            def check_health(self) -> None:
                self.check("check_health")

            def check(self, name: str) -> None:
                if name == hook:
                    raise ValueError(f"{name} says no")

        with pytest.raises(ReplicaStartError, match=f"{hook} says no"):
            serve.run(serve.deployment(Hooked, user_config=1).bind())


class TestDelete:
    def test_of_an_unknown_app_is_no_error(self) -> None:
        serve.delete("nobody")
        serve.run(app_of())
        serve.delete("nobody")

        assert list(serve.status().applications) == ["default"]

    def test_waits_for_what_runs_and_answers_what_is_queued(self) -> None:
        gate = Gate()
        handle = serve.run(serve.deployment(Versioned, max_ongoing_requests=1).bind(), name="shop")
        running, queued = handle.hold.remote(gate), handle.remote()
        assert gate.reached.acquire(timeout=WAIT_S)
        deleting = threading.Thread(target=serve.delete, args=("shop",))
        deleting.start()

        with pytest.raises(DeploymentUnavailableError):
            queued.result(timeout_s=WAIT_S)
        assert deleting.is_alive()
        gate.opened.set()
        deleting.join(WAIT_S)

        assert running.result(timeout_s=0) == 1
        assert not threads_of("shop")

    def test_lets_a_running_request_call_its_children_to_the_end(self) -> None:
        gate = Gate()

        class Parent:
            def __init__(self, child: DeploymentHandle[Any]) -> None:
                self.child = child

            def __call__(self) -> Any:
                gate.wait()
                return self.child.remote().result()

            async def idle(self) -> None:
                pass

        handle = serve.run(serve.deployment(Parent).bind(app_of("child")), name="shop")
        running = handle.remote()
        assert gate.reached.acquire(timeout=WAIT_S)
        deleting = threading.Thread(target=serve.delete, args=("shop",))
        deleting.start()
        error = until_it_fails(
            lambda: handle.idle.remote().result(timeout_s=WAIT_S)
        )  # until the ingress is closed
        assert isinstance(error, DeploymentUnavailableError)

        gate.opened.set()

        assert running.result(timeout_s=WAIT_S) == "child"
        deleting.join(WAIT_S)

    @pytest.mark.parametrize("end", [lambda: serve.delete("shop"), serve.shutdown])
    def test_from_inside_the_app_does_not_wait_for_the_request_that_asks(
        self, end: Callable[[], None]
    ) -> None:
        handle = serve.run(app_of(), name="shop")

        response = handle.do.remote(end)

        assert response.result(timeout_s=WAIT_S) is None
        assert "shop" not in serve.status().applications

    def test_from_a_thread_of_the_app_does_not_wait_either(self) -> None:
        handle = serve.run(app_of(), name="shop")

        def delete_in_a_thread() -> str:
            thread = threading.Thread(target=serve.delete, args=("shop",))
            thread.start()
            thread.join(WAIT_S)
            return "alive" if thread.is_alive() else "ended"

        assert handle.do.remote(delete_in_a_thread).result(timeout_s=WAIT_S) == "ended"

    def test_of_another_app_from_inside_an_app_waits(self) -> None:
        other = serve.run(app_of(), name="other")
        handle = serve.run(app_of(), name="shop")
        gate = Gate()
        running = other.hold.remote(gate)
        assert gate.reached.acquire(timeout=WAIT_S)

        deleting = handle.do.remote(lambda: serve.delete("other"))

        error = until_it_fails(lambda: other.remote().result(timeout_s=WAIT_S))
        assert isinstance(error, DeploymentUnavailableError)
        assert not deleting.done()
        gate.opened.set()
        deleting.result(timeout_s=WAIT_S)
        assert running.result(timeout_s=0) == 1

    @pytest.mark.slow
    def test_gives_up_on_what_does_not_end_in_time(self, caplog: pytest.LogCaptureFixture) -> None:
        gate = Gate()
        handle = serve.run(
            serve.deployment(
                Versioned, num_replicas=12, max_ongoing_requests=1, graceful_shutdown_timeout_s=0.05
            ).bind(),
            name="shop",
        )
        stuck = [handle.hold.remote(gate) for _ in range(3)]
        for _ in range(3):
            assert gate.reached.acquire(timeout=WAIT_S)

        begin = time.monotonic()
        serve.delete("shop")

        assert time.monotonic() - begin < 2.5  # one second of grace for all of them together
        for response in stuck:
            with pytest.raises(serve.ReplicaDiedError, match="graceful_shutdown_timeout_s"):
                response.result(timeout_s=0)
        assert "shop/Versioned" in caplog.text
        gate.opened.set()

    def test_drops_the_name_for_good(self) -> None:
        serve.run(app_of(), name="shop")
        serve.delete("shop")

        with pytest.raises(ServeError, match="no app 'shop'"):
            serve.get_app_handle("shop")
        with pytest.raises(KeyError, match="no app 'shop'"):
            serve.get_deployment_handle("Versioned", "shop")

    def test_frees_the_handle_for_the_next_app_of_the_name(self) -> None:
        old = serve.run(app_of(1), name="shop")
        serve.delete("shop")

        new = serve.run(app_of(2), name="shop")

        assert (old.remote().result(), new.remote().result()) == (2, 2)


def test_an_answer_that_is_kept_keeps_nothing_of_a_function_that_was_deleted() -> None:
    class Model:
        pass

    def declare() -> tuple[serve.Application[Any], weakref.ref[Any]]:
        model = Model()

        @serve.deployment
        def infer() -> bool:
            return bool(model)

        return infer.bind(), weakref.ref(model)

    app, model = declare()
    answer = serve.run(app, name="shop", route_prefix=None).remote()
    assert answer.result()

    serve.delete("shop")
    del app
    gc.collect()

    assert model() is None
    assert answer.result()


class TestShutdown:
    def test_without_anything_does_nothing(self) -> None:
        serve.shutdown()
        serve.shutdown()

        assert not serve.status().applications

    def test_takes_everything_down_and_a_run_starts_anew(self) -> None:
        for number in range(5):
            handles = [serve.run(app_of(number), name=name) for name in ("one", "two")]
            assert [handle.remote().result() for handle in handles] == [number] * 2
            serve.shutdown()
            serve.shutdown()
            assert not threads_of("one") + threads_of("two")

        assert not serve.status().applications

    def test_leaves_the_same_few_threads_however_often(self) -> None:
        def ours() -> list[str]:
            handle = serve.run(app_of())
            assert handle.options(timeout_s=WAIT_S).remote().result() == 1
            serve.shutdown()
            return sorted(
                thread.name for thread in threading.enumerate() if thread.name.startswith("threadserve ")
            )

        once = ours()

        assert [ours() for _ in range(5)] == [once] * 5

    def test_by_several_threads_ends_in_all_when_everything_is_down(self) -> None:
        gate = Gate()
        running = serve.run(app_of()).hold.remote(gate)
        assert gate.reached.acquire(timeout=WAIT_S)
        begun, ends = threading.Semaphore(0), list[bool]()

        def shut_down() -> None:
            begun.release()
            serve.shutdown()
            ends.append(running.done())

        threads = [threading.Thread(target=shut_down) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=WAIT_S)
        while serve.status().applications:
            time.sleep(0)
        threads[0].join(0.05)
        assert not ends

        gate.opened.set()
        for thread in threads:
            thread.join(WAIT_S)

        assert ends == [True] * 4

    def test_while_an_app_comes_up_ends_both(self) -> None:
        gate, outcome = Gate(), list[Any]()

        class Slow:
            def __init__(self) -> None:
                gate.wait()

        def run() -> None:
            try:
                outcome.append(serve.run(serve.deployment(Slow).bind(), name="slow"))
            except ServeError as error:
                outcome.append(error)

        running = threading.Thread(target=run)
        running.start()
        assert gate.reached.acquire(timeout=WAIT_S)
        assert overview("slow").status == "DEPLOYING"
        ending = threading.Thread(target=serve.shutdown)
        ending.start()
        gate.opened.set()
        ending.join(WAIT_S)
        running.join(WAIT_S)

        assert not ending.is_alive()
        assert not running.is_alive()
        assert len(outcome) == 1
        assert not serve.status().applications

    def test_answers_who_waits(self) -> None:
        gate = Gate()
        handle = serve.run(serve.deployment(Versioned, max_ongoing_requests=1).bind())
        running = handle.hold.remote(gate)
        assert gate.reached.acquire(timeout=WAIT_S)
        chained = handle.do.remote(running)
        ending = threading.Thread(target=serve.shutdown)
        ending.start()

        with pytest.raises(DeploymentUnavailableError):
            chained.result(timeout_s=WAIT_S)
        running.cancel()
        with pytest.raises(RequestCancelledError):
            running.result(timeout_s=WAIT_S)
        gate.opened.set()
        ending.join(WAIT_S)


class TestStatus:
    def test_is_empty_before_anything(self) -> None:
        assert serve.status().applications == {}

    def test_says_what_runs_in_the_words_of_ray_serve(self) -> None:
        before = time.time()
        serve.run(serve.deployment(Versioned, num_replicas=3).bind(), name="shop")

        app = overview("shop")

        assert (app.status, app.message, app.route_prefix) == ("RUNNING", "", None)
        assert before <= app.last_deployed_time_s <= time.time()
        deployment = app.deployments["Versioned"]
        assert (deployment.status, deployment.status_trigger) == ("HEALTHY", "CONFIG_UPDATE_COMPLETED")
        assert (deployment.replica_states, deployment.message) == ({"RUNNING": 3}, "")

    def test_says_what_comes_up(self) -> None:
        seen: list[Any] = []

        class Looks:
            def __init__(self, child: Any) -> None:
                seen.append(overview("shop"))

        serve.run(serve.deployment(Looks).bind(app_of(name="Child")), name="shop")

        assert seen[0].status == "DEPLOYING"
        assert seen[0].deployments["Looks"].replica_states == {"STARTING": 1}
        assert seen[0].deployments["Child"].replica_states == {"RUNNING": 1}
        assert {each.status for each in seen[0].deployments.values()} == {"UPDATING"}


class TestLookUps:
    def test_without_anything_running_say_so(self) -> None:
        serve.shutdown()

        with pytest.raises(ServeError, match="no app 'shop': nothing has been run"):
            serve.get_app_handle("shop")
        with pytest.raises(ServeError, match="no app 'shop': nothing has been run"):
            serve.get_deployment_handle("Versioned", "shop")

    def test_name_what_there_is(self) -> None:
        serve.run(app_of(child=app_of(name="Child")), name="shop")

        with pytest.raises(ServeError, match=r"no app 'shpo'; there are \['shop'\]"):
            serve.get_app_handle("shpo")
        with pytest.raises(KeyError, match=r"'Versioned'"):
            serve.get_deployment_handle("Chlid", "shop")

    def test_outside_of_a_replica_need_an_app(self) -> None:
        serve.run(app_of(), name="shop")

        with pytest.raises(ServeError, match="outside of a replica app_name is needed"):
            serve.get_deployment_handle("Versioned")

    def test_inside_of_a_replica_know_their_app(self) -> None:
        handle = serve.run(app_of(1, child=app_of("child", name="Child")), name="shop")
        serve.run(app_of("elsewhere", name="Child"), name="other")

        assert (
            handle.do.remote(lambda: serve.get_deployment_handle("Child").remote().result()).result()
            == "child"
        )
        assert handle.do.remote(lambda: serve.get_deployment_handle("Versioned").app_name).result() == "shop"


def test_the_finalizer_of_each_replica_runs_once() -> None:
    ends: list[int] = []

    class Ends:
        def __init__(self) -> None:
            self.rank = serve.get_replica_context().rank.rank

        def __del__(self) -> None:
            ends.append(self.rank)

    with serve.running(serve.deployment(Ends, num_replicas=3).bind()):
        assert not ends
    gc.collect()

    assert sorted(ends) == [0, 1, 2]
