"""After much work nothing is left: no thread, no slot, no place in a queue, no object, no growing memory."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import sys
import threading
import tracemalloc
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve import api, futures
from threadserve.errors import ReplicaStartError, RequestCancelledError, RequestTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from threadserve.handle import DeploymentHandle

pytestmark = pytest.mark.slow

WAIT_S = 30.0


class Token:
    """A value whose end can be seen."""


class Worker:
    def same(self, value: Any) -> Any:
        return value

    async def same_async(self, value: Any) -> Any:
        await asyncio.sleep(0)
        return value

    def fail(self, value: Any) -> Any:
        raise ValueError(value)

    def tokens(self, seen: list[Any]) -> Iterator[Token]:
        while True:
            token = Token()
            seen.append(weakref.ref(token))
            yield token
            del token

    async def tokens_async(self, seen: list[Any]) -> AsyncIterator[Token]:
        while True:
            token = Token()
            seen.append(weakref.ref(token))
            yield token
            del token

    def wait(self, gate: threading.Event) -> bool:
        return gate.wait(WAIT_S)

    async def hang(self) -> None:
        await asyncio.Event().wait()


class Parent:
    def __init__(self, child: DeploymentHandle[Any]) -> None:
        self.child = child

    def ask(self, value: Any) -> Any:
        return self.child.same.remote(value).result()

    async def ask_async(self, value: Any) -> Any:
        return await self.child.same_async.remote(value)


def family(**options: Any) -> Any:
    return serve.deployment(Parent, **options).bind(serve.deployment(Worker, **options).bind())


def books(*handles: DeploymentHandle[Any]) -> list[tuple[int, int, int]]:
    """Requests that wait for arguments, that are queued, and slots that are taken, once the last body has returned."""
    found = []
    for handle in handles:
        router: Any = handle._router
        for _ in range(10_000):
            now = router.statistics()
            if not now.waiting + now.queued + now.ongoing:
                break
            threading.Event().wait(0.001)  # the slot of a cancelled call comes back when its body returns
        found.append((now.waiting, now.queued, now.ongoing))
    return found


def ours() -> Counter[str]:
    """How many objects there are of each class of ours; what comes on demand, as threads and loops do, aside."""
    gc.collect()
    kinds = (type(each) for each in gc.get_objects())
    found = Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith("threadserve."))
    on_demand: list[str] = ["_OwnThread", "Waiter", "Gate"]
    workers = sum(" worker " in thread.name for thread in threading.enumerate())
    return (
        found - Counter(dict.fromkeys(on_demand, sys.maxsize)) - Counter(Effects=workers)
    )  # what wakes each


def left(before: Counter[str]) -> Counter[str]:
    """What there is more than before, once what is only just being put away has gone."""
    for _ in range(200):
        more = ours() - before
        if not more:
            break
        threading.Event().wait(0.01)
    return more


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("threadserve "))


def grows_by(work: Callable[[], object], *, warm_up: int, rounds: int) -> int:
    """Return by how many bytes the memory has grown after `rounds` of work, when it had been warmed up.

    The least of three times: what other tests have left behind goes, or comes, when it likes; what leaks comes each time.
    """
    return min(_growth(work, warm_up=warm_up, rounds=rounds) for _ in range(3))


def _growth(work: Callable[[], object], *, warm_up: int, rounds: int) -> int:
    for _ in range(warm_up):
        work()
    gc.collect()
    tracemalloc.start()
    try:
        work()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(rounds):
            work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.fixture
def handle() -> Iterator[DeploymentHandle[Any]]:
    with serve.running(family(num_replicas=2), name="stress") as handle:
        yield handle


@pytest.fixture
def worker(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    found = serve.get_deployment_handle("Worker", "stress")
    for method in ("same", "same_async", "fail", "wait", "hang", "nothing"):
        getattr(found, method)  # a handle keeps those of its methods
    return found


class TestCalls:
    @pytest.mark.parametrize("method", ["ask", "ask_async"])
    def test_five_hundred_at_once_leave_nothing(
        self, handle: DeploymentHandle[Any], worker: DeploymentHandle[Any], method: str
    ) -> None:
        getattr(handle, method).remote(1).result()
        before = ours()

        responses = [getattr(handle, method).remote(number) for number in range(500)]

        assert [response.result(timeout_s=WAIT_S) for response in responses] == list(range(500))
        del responses
        assert books(handle, worker) == [(0, 0, 0)] * 2
        assert not left(before)

    def test_five_hundred_from_as_many_threads_leave_nothing(
        self, handle: DeploymentHandle[Any], worker: DeploymentHandle[Any]
    ) -> None:
        handle.ask.remote(1).result()
        handle.ask_async.remote(1).result()
        before = ours()
        barrier = threading.Barrier(500)

        def work(number: int) -> Any:
            barrier.wait(WAIT_S)
            method = handle.ask if number % 2 else handle.ask_async
            return method.remote(number).result(timeout_s=WAIT_S)

        with concurrent.futures.ThreadPoolExecutor(500) as pool:
            answers = list(pool.map(work, range(500)))

        assert answers == list(range(500))
        assert books(handle, worker) == [(0, 0, 0)] * 2
        assert not left(before)

    def test_that_end_in_every_other_way_leave_nothing(
        self, handle: DeploymentHandle[Any], worker: DeploymentHandle[Any]
    ) -> None:
        gate = threading.Event()
        gate.set()

        def work() -> None:
            failing = [worker.fail.remote(number) for number in range(20)]
            chained = [worker.same.remote(response) for response in failing]
            futures.gather(*failing, *chained, return_exceptions=True).result(timeout_s=WAIT_S)
            for response in [worker.hang.remote() for _ in range(20)]:
                response.cancel()
                assert isinstance(response.exception(), RequestCancelledError)
            late = [worker.hang.options(timeout_s=0.001).remote() for _ in range(20)]
            for response in late:
                assert isinstance(response.exception(timeout_s=WAIT_S), RequestTimeoutError)
            mirrored = [worker.wait.remote(gate) for _ in range(20)]
            concurrent.futures.wait([response.future for response in mirrored])
            worker.nothing.remote().exception()
            assert books(handle, worker) == [(0, 0, 0)] * 2

        work()
        before = ours()
        for _ in range(10):
            work()

        assert not left(before)

    def test_let_go_of_arguments_results_and_exceptions(self, worker: DeploymentHandle[Any]) -> None:
        tokens = [Token() for _ in range(100)]
        seen = [weakref.ref(token) for token in tokens]
        responses = [
            *(worker.same.remote(token) for token in tokens[:30]),
            *(worker.same_async.remote(token) for token in tokens[30:60]),
            *(worker.fail.remote(token) for token in tokens[60:]),
        ]
        for response in responses:
            response.exception(timeout_s=WAIT_S)
        assert books(worker) == [(0, 0, 0)]

        del tokens, responses, response
        gc.collect()

        assert [ref() for ref in seen if ref() is not None] == []

    def test_by_the_thousand_do_not_grow(self, handle: DeploymentHandle[Any]) -> None:
        def work() -> None:
            list(futures.map(handle.ask, range(50)))
            list(futures.map(handle.ask_async, range(50)))

        assert grows_by(work, warm_up=5, rounds=20) < 40_000  # 2,000 calls: 20 bytes each


class TestChains:
    @pytest.mark.parametrize("method", ["same", "same_async"])
    def test_of_ten_thousand_hops_leave_nothing(self, worker: DeploymentHandle[Any], method: str) -> None:
        call = getattr(worker, method)
        call.remote(1).result()
        before = ours()
        token = Token()
        seen = weakref.ref(token)

        response = call.remote(token)
        for _ in range(10_000):
            response = call.remote(response)

        assert response.result(timeout_s=WAIT_S) is token
        del response, token
        assert books(worker) == [(0, 0, 0)]
        gc.collect()
        assert seen() is None
        assert not left(before)

    def test_of_ten_thousand_hops_that_wait_can_be_dropped(self, worker: DeploymentHandle[Any]) -> None:
        before = ours()
        gate = threading.Event()

        response = worker.wait.remote(gate)
        for _ in range(10_000):
            response = worker.same.remote(response)
        del response
        gate.set()

        assert books(worker) == [(0, 0, 0)]
        assert not left(before)

    def test_of_ten_thousand_hops_that_wait_can_be_cancelled_at_the_root(
        self, worker: DeploymentHandle[Any]
    ) -> None:
        before = ours()
        gate = threading.Event()

        root = response = worker.wait.remote(gate)
        for _ in range(10_000):
            response = worker.same.remote(response)
        root.cancel()
        gate.set()

        assert isinstance(response.exception(timeout_s=WAIT_S), RequestCancelledError)
        del root, response
        assert books(worker) == [(0, 0, 0)]
        assert not left(before)


class TestStreams:
    @pytest.mark.parametrize("method", ["tokens", "tokens_async"])
    def test_dropped_half_way_leave_nothing(self, worker: DeploymentHandle[Any], method: str) -> None:
        before = ours()
        seen: list[weakref.ref[Token]] = []

        for _ in range(50):
            for number, _token in enumerate(getattr(worker.options(stream=True), method).remote(seen)):
                if number == 10:
                    break
            del _token

        assert books(worker) == [(0, 0, 0)]
        assert not left(before)
        assert [ref() for ref in seen if ref() is not None] == []

    def test_read_by_coroutines_that_are_cancelled_leave_nothing(self, worker: DeploymentHandle[Any]) -> None:
        before = ours()
        seen: list[weakref.ref[Token]] = []

        async def read(to: int) -> None:
            stream = worker.options(stream=True).tokens_async.remote(seen)
            number = 0
            async for _ in stream:
                number += 1
                if number == to:
                    await asyncio.Event().wait()

        async def main() -> None:
            tasks = [asyncio.create_task(read(number)) for number in range(1, 30)]
            await asyncio.wait(tasks, timeout=0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())

        assert books(worker) == [(0, 0, 0)]
        assert worker.same.remote(1).result() == 1  # meets what was cancelled in the queue, and lays it down
        assert not left(before)
        assert [ref() for ref in seen if ref() is not None] == []


class TestApps:
    def test_a_hundred_starts_and_stops_leave_nothing(self) -> None:
        def use(number: int) -> None:
            name = f"app{number}"
            handle = serve.run(family(num_replicas=2), name=name)
            assert handle.ask.remote(number).result() == number
            assert handle.ask_async.remote(number).result() == number
            if number % 3 == 0:
                serve.run(family(), name=name)
            if number % 10 == 0:
                serve.shutdown()
            else:
                serve.delete(name)

        use(0)
        before, kept = ours(), threads()

        for number in range(100):
            use(number)
        serve.shutdown()

        assert not serve.status().applications
        assert threads() == kept
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("app")]
        assert not left(before)

    def test_a_hundred_starts_that_fail_leave_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("CRITICAL", "threadserve")

        class Broken:
            def __init__(self, child: Any) -> None:
                raise ValueError("no")

        def use() -> None:
            try:
                serve.run(serve.deployment(Broken).bind(serve.deployment(Worker).bind()), name="bad")
            except ReplicaStartError:
                serve.delete("bad")

        use()
        before, kept = ours(), threads()

        for _ in range(100):
            use()

        assert not left(before)
        assert threads() == kept

    def test_starts_and_stops_do_not_grow(self) -> None:
        def use() -> None:
            with serve.running(family()) as handle:
                handle.ask.remote(1).result()
                handle.ask_async.remote(1).result()

        assert grows_by(use, warm_up=10, rounds=40) < 40_000

    def test_redeploys_under_one_name_do_not_grow(self) -> None:
        def use() -> None:
            handle = serve.run(family(), name="same")
            handle.ask.remote(1).result()
            api._current().controller._wait_for_what_goes()  # the old version, which ends in its own time

        use()
        assert grows_by(use, warm_up=10, rounds=40) < 40_000


class TestWaits:
    def test_that_are_given_up_do_not_grow(self, worker: DeploymentHandle[Any]) -> None:
        gate = threading.Event()
        response = worker.wait.remote(gate)

        async def glance() -> None:
            for give_up in (
                asyncio.wait_for(response, 0.0001),
                asyncio.wait_for(futures.gather(response), 0.0001),
                futures.wait_async([response], 0),
            ):
                with contextlib.suppress(TimeoutError):
                    await give_up

        def work() -> None:
            for _ in range(50):
                futures.wait([response], 0)
                with pytest.raises(TimeoutError):
                    response.result(timeout_s=0)
            asyncio.run(glance())

        try:
            assert grows_by(work, warm_up=3, rounds=20) < 20_000
        finally:
            gate.set()
