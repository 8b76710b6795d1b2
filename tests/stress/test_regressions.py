"""What users of the reference system reported as hangs, and as cancellations that were lost, told again.

The numbers are those of the reports (ray-project/ray#...). What depends on the order of steps is played on the simulator
under many seeds; what was a matter of threads and event loops runs on real ones, held together by events.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.doubles import check_invariants
from tests.runtime.test_deadlock import Actor, Stage, anothing, nothing, play
from threadserve import futures
from threadserve.errors import DeadlockError, RequestCancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threadserve.handle import DeploymentHandle

GIVE_UP_S = 20.0
"""Nothing here takes this long unless it hangs."""


class Adder:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def add(self, value: int) -> int:
        return value + self.amount

    async def add_async(self, value: int) -> int:
        await asyncio.sleep(0)
        return value + self.amount

    def join(self, *values: int) -> int:
        return sum(values) + self.amount

    async def join_async(self, *values: int) -> int:
        await asyncio.sleep(0)
        return sum(values) + self.amount


class Diamond:
    """Calls left and right with what the top says, and the bottom with what these say."""

    def __init__(self, *corners: DeploymentHandle[Any]) -> None:
        self.top, self.left, self.right, self.bottom = corners

    def chain(self, value: int) -> Any:
        top = self.top.add.remote(value)
        return self.bottom.join.remote(self.left.add_async.remote(top), self.right.add.remote(top)).result()

    async def chain_async(self, value: int) -> Any:
        top = self.top.add_async.remote(value)
        return await self.bottom.join_async.remote(
            self.left.add.remote(top), self.right.add_async.remote(top)
        )

    async def step_by_step(self, value: int) -> Any:
        top = await self.top.add.remote(value)
        left, right = self.left.add.remote(top), self.right.add.remote(top)
        return await self.bottom.join.remote(await left, await right)


def diamond(**options: Any) -> Any:
    adder: Any = serve.deployment(Adder).options(**options)
    corners = [adder.options(name=name).bind(n) for n, name in enumerate(("top", "left", "right", "bottom"))]
    root: Any = serve.deployment(Diamond).options(max_ongoing_requests=8)
    return root.bind(*corners)


@pytest.fixture
def one() -> Iterator[DeploymentHandle[Any]]:
    """A deployment with five slots that does what it is told, on real threads."""
    actor: Any = serve.deployment(Actor)
    with serve.running(actor.bind()) as handle:
        yield handle


# ---- 1. hangs


class TestDiamond:
    """#51190: chains with the shape of a diamond hang after a few calls."""

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["chain", "chain_async", "step_by_step"])
    @pytest.mark.parametrize("slots", [1, 5])
    def test_may_be_called_again_and_again(self, method: str, slots: int) -> None:
        with serve.running(diamond(max_ongoing_requests=slots)) as handle:
            call = getattr(handle, method)

            for number in range(100):
                assert call.remote(number).result(timeout_s=GIVE_UP_S) == 2 * number + 6
            many = futures.gather(*[call.remote(number) for number in range(100)])

            assert many.result(timeout_s=GIVE_UP_S) == [2 * number + 6 for number in range(100)]

    @pytest.mark.slow
    def test_ends_in_whatever_order_its_corners_do(self) -> None:
        def story(stage: Stage) -> None:
            top, left, right, bottom = (stage.deploy(name) for name in ("top", "left", "right", "bottom"))

            def call() -> Any:
                begin = top.do.remote(lambda: 1)
                arms = [arm.do.remote(lambda value: value + 1, begin) for arm in (left, right)]
                return bottom.do.remote(lambda *values: sum(values), *arms)

            assert futures.gather(*[call() for _ in range(3)]).result() == [4, 4, 4]

        play(story, seeds=60)

    def test_may_be_many_layers_deep(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(slots=2)
            left = right = one.do.remote(lambda: 1)

            for _ in range(20):
                left, right = (one.do.remote(lambda *values: max(values) + 1, left, right) for _ in range(2))

            assert futures.gather(left, right).result() == [21, 21]

        play(story, seeds=5)


class TestOrderOfAwaits:
    """#54201: awaiting one response after, or before, another that was made of it hangs."""

    @pytest.mark.parametrize("order", ["early first", "late first", "late twice", "all at once"])
    def test_does_not_matter(self, order: str) -> None:
        def story(stage: Stage) -> None:
            one, home = stage.deploy("one"), stage.deploy("home")

            async def wait() -> list[Any]:
                early = one.do.remote(lambda: (stage.sleep(1), "early")[1])
                middle = one.ado.remote(_same, early)
                late = one.do.remote(lambda value: f"{value}, late", middle)
                if order == "early first":
                    return [await early, await middle, await late]
                if order == "late first":
                    found = [await late, await middle, await early]
                    return found[::-1]
                if order == "late twice":
                    await late
                    await late
                return list(await asyncio.gather(early, middle, late))

            assert home.ado.remote(wait).result() == ["early", "early", "early, late"]

        play(story, seeds=20)

    def test_does_not_matter_in_plain_code(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy()
            early = one.do.remote(lambda: (stage.sleep(1), "early")[1])
            late = one.do.remote(lambda value: f"{value}, late", early)

            assert late.result() == "early, late"
            assert early.result() == "early"
            assert late.result() == "early, late"

        play(story, seeds=20)


async def _same(value: Any) -> Any:
    return value


class TestAsCompleted:
    """#59347: chained responses only get done when the slowest of them is."""

    def test_gives_the_end_of_a_fast_chain_before_that_of_a_slow_one(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(slots=10)

            def chain(seconds: float) -> Any:
                begin = one.do.remote(lambda: (stage.sleep(seconds), seconds)[1])
                return one.do.remote(lambda value: value, one.ado.remote(_same, begin))

            chains = [chain(seconds) for seconds in (30, 3, 20, 1)]
            came = [(answer.result(), stage.kernel.now()) for answer in futures.as_completed(chains)]

            assert came == [(1, 1), (3, 3), (20, 20), (30, 30)]

        play(story, seeds=20)

    def test_does_so_in_a_coroutine(self) -> None:
        def story(stage: Stage) -> None:
            one, home = stage.deploy("one", slots=10), stage.deploy("home")

            async def wait() -> list[tuple[float, float]]:
                chains = [
                    one.do.remote(lambda value: value, one.do.remote(lambda s=s: (stage.sleep(s), s)[1]))
                    for s in (30, 3, 20, 1)
                ]
                return [(await each, stage.kernel.now()) async for each in futures.as_completed(chains)]

            assert home.ado.remote(wait).result() == [(1, 1), (3, 3), (20, 20), (30, 30)]

        play(story, seeds=20)


class TestRemote:
    """#24228: ``.remote()`` itself blocks; #46893: waiting for an argument blocks the caller, or its event loop."""

    def test_returns_however_much_waits(self, one: DeploymentHandle[Any]) -> None:
        gate = threading.Event()
        try:
            blocked = [one.do.remote(gate.wait) for _ in range(5)]
            answers = [one.do.remote(nothing) for _ in range(1000)]
            chained = [
                one.do.remote(lambda *values: len(values), *answers[:10], blocked[0]) for _ in range(100)
            ]

            assert not any(answer.done() for answer in [*answers, *chained])
        finally:
            gate.set()
        assert futures.gather(*chained).result(timeout_s=GIVE_UP_S) == [11] * 100
        assert futures.gather(*answers).result(timeout_s=GIVE_UP_S) == ["nothing"] * 1000

    def test_leaves_the_event_loop_of_its_caller_running(self, one: DeploymentHandle[Any]) -> None:
        gate = threading.Event()

        async def main() -> list[Any]:
            slow = one.do.remote(gate.wait)
            chained = one.do.remote(lambda value: ("chained", value), slow)
            turns = 0
            while turns < 100:
                await asyncio.sleep(0)
                turns += 1
            assert not chained.done()
            gate.set()
            return list(await asyncio.gather(slow, chained))

        assert asyncio.run(asyncio.wait_for(main(), GIVE_UP_S)) == [True, ("chained", True)]


class TestFullPool:
    """#231: a task that waits for another one on a full pool never ends."""

    def test_explains_itself_and_goes_on(self, one: DeploymentHandle[Any]) -> None:
        everybody = threading.Barrier(5)

        def call_yourself() -> Any:
            everybody.wait(GIVE_UP_S)
            return one.do.remote(nothing).result()

        answers = [one.do.remote(call_yourself) for _ in range(5)]
        errors = [answer.exception(timeout_s=GIVE_UP_S) for answer in answers]

        assert [type(error) for error in errors if error is not None] == [DeadlockError]
        assert one.do.remote(nothing).result(timeout_s=GIVE_UP_S) == "nothing"


class TestSeveralLoops:
    """#54201, #55142, #27266: a handle or a response that is used from another event loop hangs."""

    def test_share_a_handle_and_a_response(self, one: DeploymentHandle[Any]) -> None:
        gate = threading.Event()
        shared = one.do.remote(lambda: (gate.wait(GIVE_UP_S), "shared")[1])
        everybody = threading.Barrier(5)

        async def visit(number: int) -> list[Any]:
            own = one.ado.remote(_same, number)
            everybody.wait(GIVE_UP_S)
            chained = one.do.remote(lambda *values: values, shared, own)
            return [await own, await chained, await shared]

        def visitor(number: int) -> list[Any]:
            return asyncio.run(asyncio.wait_for(visit(number), GIVE_UP_S))

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            visits = [threads.submit(visitor, number) for number in range(4)]
            everybody.wait(GIVE_UP_S)
            gate.set()
            found = [visit.result() for visit in visits]

        assert found == [[number, ("shared", number), "shared"] for number in range(4)]

    def test_come_and_go_while_a_response_stays(self, one: DeploymentHandle[Any]) -> None:
        gate = threading.Event()
        stays = one.do.remote(lambda: (gate.wait(GIVE_UP_S), "stayed")[1])

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(_awaited(stays)), 0.001)

        for _ in range(3):
            asyncio.run(give_up())
        gate.set()

        assert asyncio.run(_awaited(stays)) == "stayed"
        assert stays.result() == "stayed"

    def test_may_be_those_of_other_replicas(self) -> None:
        def story(stage: Stage) -> None:
            homes = [stage.deploy(f"home {number}") for number in range(3)]
            shared = stage.deploy().do.remote(lambda: (stage.sleep(1), "shared")[1])

            async def wait() -> Any:
                return await shared

            assert futures.gather(*[home.ado.remote(wait) for home in homes]).result() == ["shared"] * 3

        play(story, seeds=20)


async def _awaited(answer: Any) -> Any:
    return await answer


class TestParallel:
    """#40328, #44354: parallel calls come back late because a sync method has blocked the loop; #20169: threads."""

    def test_calls_of_a_sync_method_run_at_once(self, one: DeploymentHandle[Any]) -> None:
        everybody = threading.Barrier(5)

        answers = [one.do.remote(everybody.wait, GIVE_UP_S) for _ in range(5)]

        assert sorted(futures.gather(*answers).result(timeout_s=GIVE_UP_S)) == [0, 1, 2, 3, 4]

    def test_calls_from_a_coroutine_run_at_once(self, one: DeploymentHandle[Any]) -> None:
        everybody = threading.Barrier(4)

        async def fan_out() -> Any:
            return await asyncio.gather(*[one.do.remote(everybody.wait, GIVE_UP_S) for _ in range(4)])

        assert sorted(one.ado.remote(fan_out).result(timeout_s=GIVE_UP_S)) == [0, 1, 2, 3]

    def test_a_sync_method_leaves_the_coroutines_of_its_replica_running(
        self, one: DeploymentHandle[Any]
    ) -> None:
        gate = threading.Event()

        async def open_it() -> str:
            await asyncio.sleep(0)
            gate.set()
            return "opened"

        waiting = [one.do.remote(gate.wait, GIVE_UP_S) for _ in range(4)]
        opening = one.ado.remote(open_it)

        assert opening.result(timeout_s=GIVE_UP_S) == "opened"
        assert futures.gather(*waiting).result(timeout_s=GIVE_UP_S) == [True] * 4

    def test_a_fast_call_does_not_wait_for_a_slow_one(self, one: DeploymentHandle[Any]) -> None:
        gate = threading.Event()
        slow = one.do.remote(gate.wait, GIVE_UP_S)

        assert one.do.remote(nothing).result(timeout_s=GIVE_UP_S) == "nothing"
        assert not slow.done()
        gate.set()
        slow.result()


# ---- 5. cancellations


class TestCancelledChildren:
    """#52533: about one in a hundred child calls runs on after its parent was cancelled."""

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["def", "coroutine"])
    @pytest.mark.parametrize("moment", [0.0, 0.5, 1.0])
    def test_stop_all_of_them(self, kind: str, moment: float) -> None:
        def story(stage: Stage) -> None:
            root, middle, leaf = (stage.deploy(name, slots=2) for name in ("root", "middle", "leaf"))
            running: list[str] = []
            late: list[float] = []

            def note(name: str, change: Callable[[str], object]) -> None:
                if change == running.append and stage.kernel.now() > moment + 0.6:
                    late.append(stage.kernel.now())
                change(name)

            def work() -> None:
                note("leaf", running.append)
                try:
                    while True:
                        serve.check_cancelled()
                        stage.sleep(0.5)
                finally:
                    note("leaf", running.remove)

            async def awork() -> None:
                note("leaf", running.append)
                try:
                    await asyncio.sleep(1000)
                finally:
                    note("leaf", running.remove)

            def fan_out(below: DeploymentHandle[Any], *deed: Any) -> None:
                stage.sleep(0.5)
                futures.gather(*[below.do.remote(*deed) for _ in range(3)]).result()

            async def afan_out(below: DeploymentHandle[Any], *deed: Any) -> None:
                await asyncio.sleep(0.5)
                await futures.gather(*[below.ado.remote(*deed) for _ in range(3)])

            if kind == "def":
                answer = root.do.remote(fan_out, middle, fan_out, leaf, work)
            else:
                answer = root.ado.remote(afan_out, middle, afan_out, leaf, awork)
            stage.sleep_until(moment)
            answer.cancel()

            assert isinstance(answer.exception(), RequestCancelledError)
            stage.sleep(2)
            assert running == []
            assert late == []
            for handle in (root, middle, leaf):
                calls = [handle.do.remote(nothing) for _ in range(4)] + [
                    handle.ado.remote(anothing) for _ in range(4)
                ]
                assert futures.gather(*calls).result() == ["nothing"] * 8
                router: Any = handle._router
                check_invariants(router)
                assert router.statistics().ongoing == 0

        play(story, seeds=30)


class TestCancelledCallers:
    """#44644: a race leaves replicas with all their slots taken by nobody; #37943: and with a queue that never empties."""

    @pytest.mark.slow
    def test_leave_every_slot_free_whenever_they_go(self) -> None:
        def story(stage: Stage) -> None:
            one = stage.deploy(slots=3)

            async def nap() -> None:
                await asyncio.sleep(0.2)

            answers = [
                one.do.remote(lambda: stage.sleep(0.2)) if number % 2 else one.ado.remote(nap)
                for number in range(12)
            ]
            for number, answer in enumerate(answers):
                if number % 3:
                    answer.cancel()
                stage.sleep(0.05 * (number % 2))
            futures.wait(answers)
            stage.sleep(1)

            router: Any = one._router
            check_invariants(router)
            now = router.statistics()
            assert (now.ongoing, now.queued, now.waiting) == (0, 0, 0)
            everybody = [one.do.remote(lambda: stage.sleep(1)) for _ in range(3)]
            begin = stage.kernel.now()
            futures.gather(*everybody).result()
            assert stage.kernel.now() == begin + 1

        play(story, seeds=60)
