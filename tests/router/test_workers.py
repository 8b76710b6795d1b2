"""A worker that has nothing to do goes on with the next stage of a chain, and nobody else can tell but by the thread."""

from __future__ import annotations

import logging
from _thread import get_ident
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import Deployed, check_invariants, deployed, let_it_rest, request_behind
from threadserve.call.request import RUNNING
from threadserve.errors import ReplicaDiedError
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 60.0
"""A wait with a timeout is not helped: only workers run what these tests call."""


@pytest.fixture(autouse=True)
def nobody_helps() -> None:
    """Here workers do, whatever THREADSERVE_INLINE says."""


class Doer:
    def do(self, deed: Callable[..., Any], *args: Any) -> Any:
        return deed(*args)

    async def ado(self, deed: Callable[..., Any], *args: Any) -> Any:
        return deed(*args)

    def items(self, deed: Callable[..., Any], *args: Any) -> Iterator[Any]:
        yield deed(*args)


def threads_so_far(threads: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Do what stages do: say which threads have run them."""
    return (*threads, get_ident())


def sleep(kernel: SimulatedKernel, seconds: float, *_: object) -> None:
    kernel.waiter().wait(seconds)


def begin(stage: Deployed) -> Any:
    """Call the first stage of a chain, which takes long enough for the others to be called."""
    return stage.handle.do.remote(lambda: (sleep(stage.kernel, 0.5), threads_so_far())[1])  # type: ignore[arg-type]


@contextmanager
def line_of(kernel: SimulatedKernel, names: str = "abc", **options: Any) -> Iterator[list[Deployed]]:
    with ExitStack() as stack:
        yield [stack.enter_context(deployed(kernel, Doer, name=name, **options)) for name in names]


def simulated(story: Callable[[SimulatedKernel], object], seeds: int = 20) -> None:
    for seed in range(seeds):
        kernel = SimulatedKernel(seed)
        kernel.run(partial(story, kernel))


def test_calls_one_after_the_other_are_run_by_one_worker_which_rests_before_it_tells() -> None:
    def story(kernel: SimulatedKernel) -> None:
        with deployed(kernel, Doer, max_ongoing_requests=3) as one:
            threads = {one.handle.do.remote(get_ident).result(timeout_s=WAIT_S) for _ in range(5)}

            assert len(threads) == 1

    simulated(story)


class TestAChainThatNobodyHelps:
    def test_runs_through_on_one_thread(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel) as (a, b, c):
                threads = begin(a)
                for stage in (b, c, a):
                    threads = stage.handle.do.remote(threads_so_far, threads)

                (thread,) = set(threads.result(timeout_s=WAIT_S))

                assert thread != get_ident()

        simulated(story)

    def test_goes_back_to_threads_of_its_own_where_a_deployment_keeps_them(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel, "ac") as (a, c), deployed(kernel, Doer, name="own", inline=False) as own:
                first = begin(a)
                second = own.handle.do.remote(threads_so_far, first)
                third = c.handle.do.remote(threads_so_far, second)

                of_a, of_own, of_c = third.result(timeout_s=WAIT_S)

                assert of_own not in (of_a, of_c)

        simulated(story)

    @pytest.mark.parametrize("method", ["ado", "items"])
    def test_leaves_coroutines_and_streams_to_their_own(self, method: str) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel, "ab") as (a, b):
                first = begin(a)
                if method == "ado":
                    found = b.handle.ado.remote(threads_so_far, first).result(timeout_s=WAIT_S)
                else:
                    (found,) = b.handle.options(stream=True).items.remote(threads_so_far, first)

                assert len(set(found)) == 2

        simulated(story, seeds=5)

    def test_ends_where_a_stage_fails(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel) as (a, b, c):
                answer = begin(a)
                failed = b.handle.do.remote(lambda _: dict[str, int]()["nothing"], answer)
                after = c.handle.do.remote(threads_so_far, failed)

                for each in (failed, after):
                    assert isinstance(each.exception(timeout_s=WAIT_S), KeyError)
                assert len(answer.result()) == 1

        simulated(story)

    def test_ends_where_a_stage_ends_its_replica(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel) as (a, b, c):

                def die(_: object) -> None:
                    raise SystemExit(3)

                after = c.handle.do.remote(threads_so_far, b.handle.do.remote(die, begin(a)))

                assert isinstance(after.exception(timeout_s=WAIT_S), ReplicaDiedError)
                for stage in (a, b, c):
                    assert len(stage.handle.do.remote(threads_so_far).result(timeout_s=WAIT_S)) == 1

        simulated(story, seeds=5)

    def test_wakes_all_others_that_were_waiting_before_it_goes_on(self) -> None:
        """The one that the worker takes may wait for the others."""

        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel, "abcd") as (a, *others):
                met = [kernel.waiter() for _ in others]

                def meet(mine: int, _: object) -> bool:
                    met[mine].set()
                    return all(waiter.wait(10) or waiter is met[mine] for waiter in met)

                first = begin(a)
                answers = [
                    each.handle.do.remote(meet, mine, first) for mine, each in enumerate(others[:1])
                ] + [
                    each.handle.do.remote(lambda mine, _: met[mine].set(), mine, first)
                    for mine, each in enumerate(others[1:], 1)
                ]

                for answer in answers:
                    answer.result(timeout_s=WAIT_S)
                assert kernel.now() < 5

        simulated(story)

    def test_wakes_the_other_worker_of_the_deployment_whose_call_it_takes(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel, "ab") as (a, b):
                other_ran = kernel.waiter()
                first = begin(a)
                patient = b.handle.do.remote(lambda _: other_ran.wait(10), first)
                b.handle.do.remote(lambda _: other_ran.set(), first)

                assert patient.result(timeout_s=WAIT_S) is True

        simulated(story)


class TestAWorkerThatIsAway:
    def test_does_not_go_where_its_replica_is_about_to_stop(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with deployed(kernel, Doer, name="b") as b:
                with deployed(kernel, Doer, name="a") as a:
                    slow = b.handle.do.remote(
                        partial(sleep, kernel, 50), a.handle.do.remote(sleep, kernel, 3)
                    )
                    sleep(kernel, 1)
                assert kernel.now() < 10
                slow.result(timeout_s=WAIT_S)

        simulated(story)

    def test_is_replaced_where_it_is_wanted(self) -> None:
        """Its own deployment has one slot, which is free, and one worker, which is not."""

        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel, "ab", max_ongoing_requests=1) as (a, b):
                slow = b.handle.do.remote(partial(sleep, kernel, 30), begin(a))
                sleep(kernel, 1)
                assert request_behind(slow).state is RUNNING

                a.handle.do.remote(threads_so_far).result(timeout_s=5)

                assert not slow.done()
                slow.result(timeout_s=WAIT_S)
                let_it_rest(kernel)
                assert a.router.statistics().workers == 1  # one of the two has gone home
                check_invariants(a.router)
                a.handle.do.remote(threads_so_far).result(timeout_s=5)

        simulated(story)

    def test_comes_back_where_it_is_not_replaced(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel, "ab", max_ongoing_requests=1) as (a, b):
                threads: set[int] = set()
                for _ in range(5):
                    answer = b.handle.do.remote(threads_so_far, begin(a))
                    threads.update(answer.result(timeout_s=WAIT_S))
                    let_it_rest(kernel)

                assert len(threads) == 1
                assert (a.router.statistics().workers, b.router.statistics().workers) == (1, 0)

        simulated(story)

    def test_is_not_waited_for_when_its_replica_stops(self, caplog: pytest.LogCaptureFixture) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with deployed(kernel, Doer, name="b") as b:
                with deployed(kernel, Doer, name="a") as a:
                    slow = b.handle.do.remote(partial(sleep, kernel, 50), begin(a))
                    sleep(kernel, 1)
                    assert request_behind(slow).state is RUNNING
                assert kernel.now() < 10
                assert not slow.done()
                slow.result(timeout_s=WAIT_S)
                let_it_rest(kernel)

        with caplog.at_level(logging.WARNING):
            simulated(story)
        assert not caplog.records

    def test_leaves_nobody_waiting_who_comes_while_it_goes(self) -> None:
        """Its slot is free again, and it counts as one of its own deployment's until it is gone."""

        def race(kernel: SimulatedKernel) -> None:
            with line_of(kernel, "ab", max_ongoing_requests=1) as (a, b):
                slow = b.handle.do.remote(partial(sleep, kernel, 30), begin(a))
                sleep(kernel, 0.5)  # that is when the first stage ends

                a.handle.do.remote(threads_so_far).result(timeout_s=5)

                slow.result(timeout_s=WAIT_S)

        explore(race, 300)

    def test_is_its_replicas_again_when_it_has_come_back(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel, "ab", max_ongoing_requests=1) as (a, b):
                b.handle.do.remote(threads_so_far, begin(a)).result(timeout_s=WAIT_S)
                let_it_rest(kernel)
                slow = a.handle.do.remote(sleep, kernel, 30)
                sleep(kernel, 1)

                (stuck,) = a.seats[0].replica.stop(1)

                assert "worker" in stuck
                slow.result(timeout_s=WAIT_S)

        simulated(story, seeds=5)

    def test_sends_the_worker_home_that_would_have_come_where_its_replica_has_gone(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def race(kernel: SimulatedKernel) -> None:
            with line_of(kernel, "ab", max_ongoing_requests=1) as (a, b):
                b.handle.do.remote(threads_so_far).result(
                    timeout_s=WAIT_S
                )  # from now on somebody rests there
                answer = b.handle.do.remote(threads_so_far, begin(a))
                sleep(kernel, 0.5)

                b.replace_with(Doer, max_ongoing_requests=1)

                answer.result(timeout_s=WAIT_S)

        with caplog.at_level(logging.WARNING):
            explore(race, 200)
        assert not caplog.records

    def test_leaves_the_worker_resting_that_would_have_come(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            with line_of(kernel, "ab", max_ongoing_requests=1) as (a, b):
                own = b.handle.do.remote(threads_so_far).result(timeout_s=WAIT_S)
                let_it_rest(kernel)

                answer = b.handle.do.remote(threads_so_far, begin(a))
                assert own[0] not in answer.result(timeout_s=WAIT_S)
                let_it_rest(kernel)

                assert b.handle.do.remote(threads_so_far).result(timeout_s=WAIT_S) == own

        simulated(story)


@pytest.mark.slow
def test_stages_keep_within_limits_whatever_the_order_of_the_threads() -> None:
    def race(kernel: SimulatedKernel) -> None:
        most: dict[str, int] = {"a": 0, "b": 0}
        now = dict(most)

        def stage(name: str, number: int) -> int:
            now[name] += 1
            most[name] = max(most[name], now[name])
            sleep(kernel, kernel.random.choice([0, 0.1]))
            now[name] -= 1
            return number

        with (
            deployed(kernel, Doer, name="a", max_ongoing_requests=1) as a,
            deployed(kernel, Doer, name="b", max_ongoing_requests=2, num_replicas=2) as b,
        ):
            answers = [
                b.handle.do.remote(stage, "b", a.handle.do.remote(stage, "a", number)) for number in range(6)
            ]
            answers.append(b.handle.do.remote(stage, "b", 6))

            assert [answer.result(timeout_s=WAIT_S) for answer in answers] == list(range(7))
            let_it_rest(kernel)
            for each in (a, b):
                check_invariants(each.router)

        assert most["a"] == 1
        assert most["b"] <= 4

    explore(race, 500)
