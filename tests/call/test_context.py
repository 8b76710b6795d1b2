"""What running code can ask about where it runs, in every place that user code can be in."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve.call.context import DeploymentID, ReplicaContext, ReplicaID, ReplicaRank
from threadserve.errors import NotInReplicaError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from threadserve.handle import DeploymentHandle

WAIT_S = 10.0


def where() -> str:
    """Where this code runs, as ``app/deployment``; empty outside."""
    try:
        context = serve.get_replica_context()
    except NotInReplicaError:
        return ""
    return f"{context.app_name}/{context.deployment}"


def where_in_a_thread() -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(where()))
    thread.start()
    thread.join(WAIT_S)
    return found[0]


def where_in_a_thread_of_a_thread() -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(where_in_a_thread()))
    thread.start()
    thread.join(WAIT_S)
    return found[0]


def where_in_a_pool() -> str:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(where).result(WAIT_S)


class Asker:
    def __init__(self) -> None:
        self.constructed = [where(), where_in_a_thread()]
        self.context = serve.get_replica_context()
        assert self.context.servable_object is None

    def reconfigure(self, config: Any) -> None:
        self.configured = where()

    def check_health(self) -> None:
        self.checked = where()

    def method(self) -> str:
        return where()

    async def coroutine(self) -> str:
        return where()

    def generator(self) -> Iterator[str]:
        yield where()

    async def async_generator(self) -> AsyncIterator[str]:
        yield where()

    def thread(self) -> str:
        return where_in_a_thread()

    def thread_of_a_thread(self) -> str:
        return where_in_a_thread_of_a_thread()

    def pool(self) -> str:
        return where_in_a_pool()

    async def task(self) -> str:
        return await asyncio.create_task(self.coroutine())

    async def to_thread(self) -> str:
        return await asyncio.to_thread(where)

    async def executor(self) -> str:
        return await asyncio.get_running_loop().run_in_executor(None, where)

    def loop_of_its_own(self) -> str:
        return asyncio.run(self.coroutine())

    def started(self) -> tuple[list[str], str, str]:
        return self.constructed, self.configured, self.checked

    def itself(self) -> bool:
        return serve.get_replica_context().servable_object is self

    def whole(self) -> ReplicaContext:
        return serve.get_replica_context()

    def model(self) -> str:
        return serve.get_multiplexed_model_id()

    async def model_in_a_task(self) -> str:
        async def ask() -> str:
            await asyncio.sleep(0)
            return serve.get_multiplexed_model_id()

        return await asyncio.create_task(ask())


class Parent:
    def __init__(self, child: DeploymentHandle[Any]) -> None:
        self.child = child

    async def models(self) -> tuple[str, str, str]:
        mine = serve.get_multiplexed_model_id()
        plain = await self.child.model.remote()
        named = await self.child.options(multiplexed_model_id="theirs").model.remote()
        return mine, plain, named

    def own(self, name: str) -> Any:
        return serve.get_deployment_handle(name).method.remote().result()

    def in_a_thread(self, name: str) -> Any:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(self.own(name)))
        thread.start()
        thread.join(WAIT_S)
        return found[0]


@pytest.fixture
def asker() -> Iterator[DeploymentHandle[Any]]:
    app = serve.deployment(Asker, user_config={"key": 1}).bind()
    with serve.running(app, name="shop") as handle:
        yield handle


class TestReplica:
    @pytest.mark.parametrize(
        "method",
        [
            "method",
            "coroutine",
            "thread",
            "thread_of_a_thread",
            "pool",
            "task",
            "to_thread",
            "executor",
            "loop_of_its_own",
        ],
    )
    def test_is_known_to_all_code_that_a_call_runs(self, asker: DeploymentHandle[Any], method: str) -> None:
        assert getattr(asker, method).remote().result(timeout_s=WAIT_S) == "shop/Asker"

    @pytest.mark.parametrize("method", ["generator", "async_generator"])
    def test_is_known_to_generators(self, asker: DeploymentHandle[Any], method: str) -> None:
        assert list(getattr(asker.options(stream=True), method).remote()) == ["shop/Asker"]

    def test_is_known_to_constructors_configuration_and_health_checks(
        self, asker: DeploymentHandle[Any]
    ) -> None:
        assert asker.started.remote().result() == (["shop/Asker", "shop/Asker"], "shop/Asker", "shop/Asker")

    def test_is_unknown_outside(self, asker: DeploymentHandle[Any]) -> None:
        assert (where(), where_in_a_thread(), where_in_a_pool()) == ("", "", "")
        with pytest.raises(NotInReplicaError, match="outside of a replica"):
            serve.get_replica_context()
        with pytest.raises(RuntimeError):
            serve.get_replica_context()

    def test_is_unknown_to_done_callbacks(self, asker: DeploymentHandle[Any]) -> None:
        seen: list[str] = []
        called, gate = threading.Event(), threading.Event()

        @serve.deployment
        def wait() -> None:
            gate.wait(WAIT_S)

        with serve.running(wait.bind()) as handle:
            response = handle.remote()
            response.add_done_callback(lambda _: (seen.append(where()), called.set()))
            gate.set()
            assert called.wait(WAIT_S)
        assert seen == [""]

    def test_is_the_callees_and_not_the_callers(self) -> None:
        app = serve.deployment(Parent).bind(serve.deployment(Asker).bind())
        with serve.running(app, name="shop") as handle:
            assert handle.own.remote("Asker").result(timeout_s=WAIT_S) == "shop/Asker"

    def test_has_the_fields_that_programs_for_ray_serve_use(self) -> None:
        with serve.running(serve.deployment(Asker, num_replicas=3).bind(), name="shop") as handle:
            responses = [handle.whole.remote() for _ in range(50)]
            contexts = {response.result().replica_tag: response.result() for response in responses}
            assert handle.itself.remote().result()

        for tag, context in contexts.items():
            assert (context.app_name, context.deployment, context.world_size) == ("shop", "Asker", 3)
            assert context.replica_id == ReplicaID(tag, DeploymentID("Asker", "shop"))
            assert str(context.replica_id) == f"Replica(id='{tag}', deployment='Asker', app='shop')"
            assert str(context.replica_id.deployment_id) == "Deployment(name='Asker', app='shop')"
            assert len(tag) == 8
            assert isinstance(context.rank, ReplicaRank)
            assert context.gang_context is None
        assert {context.rank.rank for context in contexts.values()} <= {0, 1, 2}
        assert len({context.rank.rank for context in contexts.values()}) == len(contexts)
        assert len({context.code_version for context in contexts.values()}) == 1

    def test_of_the_next_version_has_another_code_version(self) -> None:
        def version() -> str:
            handle = serve.run(serve.deployment(Asker).bind(), name="shop")
            return str(handle.whole.remote().result().code_version)

        assert version() != version()

    def test_cannot_be_changed(self, asker: DeploymentHandle[Any]) -> None:
        context = asker.whole.remote().result()

        with pytest.raises(AttributeError):
            context.world_size = 5


class TestModelId:
    def test_is_what_the_caller_named(self, asker: DeploymentHandle[Any]) -> None:
        named = asker.options(multiplexed_model_id="m1")

        assert named.model.remote().result() == "m1"
        assert named.model_in_a_task.remote().result() == "m1"
        assert asker.model.remote().result() == ""

    def test_is_not_inherited_by_the_calls_of_the_call(self) -> None:
        app = serve.deployment(Parent).bind(serve.deployment(Asker).bind())
        with serve.running(app) as handle:
            models = handle.options(multiplexed_model_id="mine").models.remote().result(timeout_s=WAIT_S)

        assert models == ("mine", "", "theirs")

    def test_is_empty_outside(self) -> None:
        assert serve.get_multiplexed_model_id() == ""


class TestDeploymentHandle:
    @pytest.mark.parametrize("method", ["own", "in_a_thread"])
    def test_without_an_app_is_of_the_callers_own(self, method: str) -> None:
        app = serve.deployment(Parent).bind(serve.deployment(Asker).bind())
        with serve.running(app, name="one") as one, serve.running(app, name="two") as two:
            for name, handle in (("one", one), ("two", two)):
                assert getattr(handle, method).remote("Asker").result(timeout_s=WAIT_S) == f"{name}/Asker"
