"""Calls that wait for the answers of other calls."""

from __future__ import annotations

import concurrent.futures
import gc
import math
import sys
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles import StillReplica, deployed, let_the_dead_go, request_behind, still_router, wait_until
from threadserve.call.request import ANSWERED, Request, State
from threadserve.concurrency.outcome import Error, Value
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ArgumentError, RequestCancelledError, RequestTimeoutError
from threadserve.handle import DeploymentHandle
from threadserve.testing.scheduler import SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from threadserve.call.response import DeploymentResponse
    from threadserve.concurrency.outcome import Outcome


class Bench:
    """A deployment whose bodies the test runs by hand, in any order; what they got is kept."""

    def __init__(self) -> None:
        self.got: dict[Request, tuple[Any, ...]] = {}
        self.router, self.replica, seat = still_router(RealKernel(), limit=100_000)
        bench = self

        class Noting(StillReplica):
            def post(self, request: Request) -> None:
                bench.got[request] = (*(request.args or ()), *(request.kwargs or {}).values())
                super().post(request)

        self.replica = Noting()
        seat = self.router.seat(self.replica, 100_000)  # type: ignore[arg-type]
        self.router.replace((), (seat,))
        self.call = DeploymentHandle[Any](self.router).remote

    def end(
        self, response: DeploymentResponse[Any], value: object = None, *, error: BaseException | None = None
    ) -> None:
        outcome: Outcome = Value(value) if error is None else Error(error)
        self.replica.end(request_behind(response), outcome)

    def has_begun(self, response: DeploymentResponse[Any]) -> bool:
        return request_behind(response) in self.got

    def arguments(self, response: DeploymentResponse[Any]) -> tuple[Any, ...]:
        return self.got[request_behind(response)]


class Looked:
    """Has something done when somebody looks at what it is, as a lazy object may."""

    def __init__(self) -> None:
        self.at: Callable[[], object] = lambda: None

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        self.at()
        return object


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestAnInput:
    def test_that_is_not_there_keeps_the_call_off_the_queue(self, bench: Bench) -> None:
        first = bench.call()
        second = bench.call(first)

        assert request_behind(second).state is State.WAITING
        assert not bench.has_begun(second)
        assert bench.router.statistics().waiting == 1

    def test_is_replaced_by_its_value(self, bench: Bench) -> None:
        first = bench.call()
        second = bench.call(1, first, [3], key=first)

        bench.end(first, "value")

        assert bench.arguments(second) == (1, "value", [3], "value")
        assert bench.router.statistics().waiting == 0

    def test_that_is_there_already_is_taken_at_once(self, bench: Bench) -> None:
        first = bench.call()
        bench.end(first, "value")

        second = bench.call(first)

        assert bench.arguments(second) == ("value",)

    def test_may_be_given_twice_and_to_many(self, bench: Bench) -> None:
        first = bench.call()
        twice = bench.call(first, first, again=first)
        others = [bench.call(first) for _ in range(10)]

        bench.end(first, 7)

        assert bench.arguments(twice) == (7, 7, 7)
        assert [bench.arguments(other) for other in others] == [(7,)] * 10

    def test_may_be_none_or_an_exception_object(self, bench: Bench) -> None:
        nothing, problem = bench.call(), bench.call()
        both = bench.call(nothing, problem)
        error = ValueError("a value like any other")

        bench.end(nothing, None)
        bench.end(problem, error)

        assert bench.arguments(both) == (None, error)

    def test_of_several_is_waited_for_whatever_the_order(self, bench: Bench) -> None:
        inputs = [bench.call() for _ in range(4)]
        last = bench.call(*inputs)

        for number in (2, 0, 3):
            bench.end(inputs[number], number)
            assert not bench.has_begun(last)
        bench.end(inputs[1], 1)

        assert bench.arguments(last) == (0, 1, 2, 3)

    def test_may_be_a_diamond(self, bench: Bench) -> None:
        top = bench.call()
        left, right = bench.call(top), bench.call(top)
        bottom = bench.call(left, right, top)

        bench.end(top, 1)
        bench.end(right, 3)
        bench.end(left, 2)

        assert bench.arguments(bottom) == (2, 3, 1)

    def test_may_be_a_plain_future(self, bench: Bench) -> None:
        future = concurrent.futures.Future[int]()
        call = bench.call(future, other=future)

        assert not bench.has_begun(call)
        future.set_result(5)

        assert bench.arguments(call) == (5, 5)

    def test_may_be_the_future_of_a_response(self, bench: Bench) -> None:
        first = bench.call()
        second = bench.call(first.future)

        bench.end(first, 5)

        wait_until(lambda: bench.has_begun(second))
        assert bench.arguments(second) == (5,)

    def test_may_be_a_future_that_is_done(self, bench: Bench) -> None:
        future = concurrent.futures.Future[int]()
        future.set_result(5)

        assert bench.arguments(bench.call(future)) == (5,)

    def test_from_another_deployment_is_as_good(self, bench: Bench) -> None:
        other = Bench()
        first = other.call()
        second = bench.call(first)

        other.end(first, 5)

        assert bench.arguments(second) == (5,)


class TestAFailedInput:
    def test_fails_the_call_with_its_own_exception(self, bench: Bench) -> None:
        first = bench.call()
        second = bench.call(first)
        error = KeyError("k")

        bench.end(first, error=error)

        assert second.exception() is error
        assert not bench.has_begun(second)
        assert bench.router.statistics().waiting == 0

    def test_fails_the_call_though_others_are_still_to_come(self, bench: Bench) -> None:
        slow, failing = bench.call(), bench.call()
        call = bench.call(slow, failing)

        bench.end(failing, error=KeyError("k"))

        assert call.done()
        bench.end(slow, 1)
        assert isinstance(call.exception(), KeyError)
        assert not bench.has_begun(call)

    def test_fails_the_call_though_it_had_failed_before(self, bench: Bench) -> None:
        failing = bench.call()
        bench.end(failing, error=KeyError("k"))

        call = bench.call(bench.call(), failing)

        assert isinstance(call.exception(), KeyError)
        assert bench.router.statistics().waiting == 0

    def test_that_came_first_is_the_one_that_counts(self, bench: Bench) -> None:
        first, second = bench.call(), bench.call()
        call = bench.call(first, second)

        bench.end(second, error=KeyError("second"))
        bench.end(first, error=ValueError("first"))

        assert isinstance(call.exception(), KeyError)

    @pytest.mark.parametrize("count", [1, 2])
    def test_is_none_where_another_argument_will_not_be_looked_at_any_more(
        self, bench: Bench, count: int
    ) -> None:
        inputs, sly = [bench.call() for _ in range(count)], Looked()
        call = bench.call(*inputs, sly)

        def refuse() -> None:
            raise LookupError("not any more")

        sly.at = refuse
        for each in inputs:
            bench.end(each)

        if count == 1:  # nobody has to look: which one it is was known
            assert bench.has_begun(call)
        else:
            assert isinstance(call.exception(timeout_s=0), LookupError)

    def test_goes_down_through_all_who_wait(self, bench: Bench) -> None:
        first = bench.call()
        second = bench.call(first)
        third, fourth = bench.call(second), bench.call(second, 1)
        fifth = bench.call(third, fourth)

        bench.end(first, error=KeyError("k"))

        assert all(isinstance(call.exception(), KeyError) for call in (second, third, fourth, fifth))

    def test_may_be_a_future(self, bench: Bench) -> None:
        failing, cancelled = concurrent.futures.Future[int](), concurrent.futures.Future[int]()
        first, second = bench.call(failing), bench.call(cancelled)

        failing.set_exception(KeyError("k"))
        cancelled.cancel()

        assert isinstance(first.exception(), KeyError)
        assert isinstance(second.exception(), concurrent.futures.CancelledError)

    def test_that_was_cancelled_cancels_the_call(self, bench: Bench) -> None:
        first = bench.call()
        second = bench.call(first)

        first.cancel()

        assert isinstance(second.exception(), RequestCancelledError)
        assert not second.cancelled()

    def test_that_timed_out_times_out_the_call(self) -> None:
        kernel = SimulatedKernel()

        def main() -> None:
            router, _, seat = still_router(kernel, limit=9)
            router.replace((), (seat,))
            handle = DeploymentHandle[Any](router)
            second = handle.remote(handle.options(timeout_s=2).remote())
            with pytest.raises(RequestTimeoutError):
                second.result()
            assert kernel.now() == 2

        kernel.run(main)

    def test_gives_the_exception_to_each_without_growing_its_traceback(self, bench: Bench) -> None:
        first = bench.call()
        calls = [bench.call(first) for _ in range(20)]
        try:
            raise KeyError("k")
        except KeyError as raised:
            bench.end(first, error=raised)

        depths = [depth_of(call) for call in (first, *calls) for _ in range(3)]

        assert max(depths) == min(depths)


def depth_of(response: DeploymentResponse[Any]) -> int:
    """Return how long the traceback is with which the answer is raised."""
    try:
        response.result()
    except KeyError as error:
        trace, depth = error.__traceback__, 0
        while trace is not None:
            trace, depth = trace.tb_next, depth + 1
        return depth
    raise AssertionError


class TestGivingUp:
    def test_a_call_takes_it_off_its_inputs(self, bench: Bench) -> None:
        first = bench.call()
        second = bench.call(first)
        before = len(request_behind(first)._subscribers or ())

        second.cancel()

        assert before == 1
        assert not request_behind(first)._subscribers
        assert bench.router.statistics().waiting == 0
        bench.end(first, 1)
        assert not bench.has_begun(second)

    def test_a_call_does_not_cancel_its_inputs(self, bench: Bench) -> None:
        first = bench.call()
        bench.call(first).cancel()

        assert not first.done()

    def test_a_call_frees_what_only_it_had(self, bench: Bench) -> None:
        class Argument:
            pass

        first, argument = bench.call(), Argument()
        gone = weakref.ref(argument)
        second = bench.call(first, argument)
        del argument

        second.cancel()

        assert gone() is None

    def test_a_call_while_its_values_are_put_in_their_places_frees_them_too(self, bench: Bench) -> None:
        inputs, sly = [bench.call(), bench.call()], Looked()
        call = bench.call(*inputs, sly)
        sly.at = call.cancel

        for each in inputs:
            bench.end(each, "value")

        assert isinstance(call.exception(), RequestCancelledError)
        assert request_behind(call).args is None
        assert request_behind(call).kwargs is None

    def test_on_a_router_answers_those_who_wait(self, bench: Bench) -> None:
        call = bench.call(concurrent.futures.Future[int]())

        bench.router.close("it was deleted", bench.router._opening)

        assert "it was deleted" in str(call.exception())
        assert bench.router.statistics().waiting == 0

    def test_on_a_router_answers_those_who_come_later(self, bench: Bench) -> None:
        bench.router.close("it was deleted", bench.router._opening)

        assert "it was deleted" in str(bench.call(concurrent.futures.Future[int]()).exception())


class TestARefusal:
    @pytest.mark.parametrize(
        "nest",
        [
            lambda response: [response],
            lambda response: (1, response),
            lambda response: {"key": response},
            lambda response: {response},
            lambda response: [[response]],
            lambda response: [[], {"key": (response,)}],
            lambda response: [*range(60), response],
        ],
        ids=["list", "tuple", "dict", "set", "list in list", "tuple in dict in list", "among 61"],
    )
    def test_meets_a_response_in_a_container(self, bench: Bench, nest: Callable[[Any], Any]) -> None:
        nested = nest(bench.call())
        is_too_deep = (
            nested == [[], {"key": nested[1]["key"]}]
            if isinstance(nested, list) and nested[0] == []
            else False
        )

        call = bench.call(nested) if not is_too_deep else bench.call(nested[1])

        assert isinstance(call.exception(), ArgumentError)
        assert "app/D.__call__" in str(call.exception())
        assert not bench.has_begun(call)

    @pytest.mark.parametrize("depth", [3, 4])
    def test_does_not_look_deeper_than_two_floors(self, bench: Bench, depth: int) -> None:
        nested: Any = bench.call()
        for _ in range(depth):
            nested = [nested]

        assert bench.arguments(bench.call(nested)) == (nested,)

    def test_looks_at_no_more_than_64_elements(self, bench: Bench) -> None:
        many = [*range(64), bench.call()]

        assert bench.arguments(bench.call(many)) == (many,)

    def test_leaves_containers_of_the_users_own_alone(self, bench: Bench) -> None:
        class Mine(list[Any]):
            pass

        mine = Mine([bench.call()])

        assert bench.arguments(bench.call(mine)) == (mine,)

    def test_meets_a_stream(self, bench: Bench) -> None:
        stream = DeploymentHandle[Any](bench.router).options(stream=True).remote()

        for argument in (stream, [stream]):
            call = bench.call(argument)
            assert isinstance(call.exception(), ArgumentError)
            assert "stream" in str(call.exception())
        stream.close()

    def test_arrives_at_the_response_not_at_remote(self, bench: Bench) -> None:
        response = bench.call([bench.call()])

        with pytest.raises(ArgumentError):
            response.result()

    def test_meets_an_argument_that_cannot_even_be_looked_at(self, bench: Bench) -> None:
        class Hostile:
            @property  # type: ignore[misc]
            def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
                raise RuntimeError("do not look")

        response = bench.call([Hostile()])

        assert response.done() or bench.has_begun(response)


HOPS = 10_000


def chain(bench: Bench, hops: int = HOPS) -> list[DeploymentResponse[Any]]:
    calls = [bench.call()]
    for _ in range(hops):
        calls.append(bench.call(calls[-1]))
    return calls


class Passing(StillReplica):
    """A replica whose bodies return their argument plus one, at once, and never more than one below the other."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[tuple[Request, Any]] = []
        self.is_running = False

    def post(self, request: Request) -> None:
        self.queue.append((request, (request.args or (0,))[0]))
        request.args = request.kwargs = request.context = None
        if self.is_running:
            return
        self.is_running = True
        while self.queue:
            request, value = self.queue.pop()
            self.on_done(request, Value(value + 1))
        self.is_running = False


class TestTenThousandHops:
    def test_resolve_without_recursion(self, bench: Bench) -> None:
        passing = Passing()
        seat = bench.router.seat(passing, 1)  # type: ignore[arg-type]
        first = bench.call()
        last = first
        for _ in range(HOPS):
            last = bench.call(last)
        bench.router.replace(list(bench.router._seats), (seat,))

        bench.end(first, 0)

        assert last.result() == HOPS

    def test_fail_without_recursion(self, bench: Bench) -> None:
        calls = chain(bench)

        bench.end(calls[0], error=KeyError("k"))

        assert isinstance(calls[-1].exception(), KeyError)
        assert bench.router.statistics().waiting == 0

    def test_are_cancelled_without_recursion(self, bench: Bench) -> None:
        calls = chain(bench)

        calls[0].cancel()

        assert all(call.done() for call in calls)

    def test_are_closed_without_recursion(self, bench: Bench) -> None:
        calls = chain(bench)

        bench.router.close("it was deleted", bench.router._opening)

        assert all(call.done() for call in calls[1:])

    def test_are_forgotten_without_recursion_once_they_have_failed(self, bench: Bench) -> None:
        calls = chain(bench)
        middle = weakref.ref(request_behind(calls[HOPS // 2]))

        calls[0].cancel()
        calls.clear()

        assert middle() is None

    def test_that_nobody_asks_are_gone_once_they_have_resolved(self) -> None:
        kernel = RealKernel()

        class Add:
            def __call__(self, number: int) -> int:
                return number + 1

        with deployed(kernel, Add) as add:
            held = concurrent.futures.Future[int]()
            first = add.handle.remote(held)
            middles: list[weakref.ref[Any]] = []
            last = first
            for _ in range(HOPS):
                last = add.handle.remote(last)
                middles.append(weakref.ref(request_behind(last)))
            del first
            held.set_result(0)
            assert last.result() == HOPS + 1
            del last, held
            let_the_dead_go()
            wait_until(lambda: all(middle() is None for middle in middles))

    def test_that_are_dropped_unresolved_go_when_the_router_closes(self, bench: Bench) -> None:
        calls = chain(bench)
        requests = [weakref.ref(request_behind(call)) for call in calls[1:]]

        calls.clear()
        bench.router.close("it was deleted", bench.router._opening)
        bench.router.replace(list(bench.router._seats), ())
        bench.replica.begun.clear()
        bench.got.clear()
        gc.collect()

        assert not any(request() for request in requests)

    def test_resolve_when_each_is_a_coroutine(self) -> None:
        class Add:
            async def __call__(self, number: int) -> int:
                return number + 1

        with deployed(RealKernel(), Add) as add:
            response = add.handle.remote(0)
            for _ in range(2_000):
                response = add.handle.remote(response)

            assert response.result() == 2_001

    def test_need_a_shallow_stack_only(self, bench: Bench) -> None:
        calls = chain(bench, 2_000)
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(len_of_stack() + 60)
        try:
            bench.end(calls[0], error=KeyError("k"))
        finally:
            sys.setrecursionlimit(limit)

        assert calls[-1].done()


def len_of_stack() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


class TestAValue:
    def test_is_not_kept_by_the_call_that_got_it(self) -> None:
        class Big:
            pass

        class Make:
            def __call__(self) -> Big:
                return Big()

            async def use(self, big: Big) -> int:
                return 1

        kernel = RealKernel()
        with deployed(kernel, Make) as make:
            big = make.handle.remote()
            used = make.handle.use.remote(big)
            assert used.result() == 1
            gone = weakref.ref(big.result())
            del big
            let_the_dead_go()
            wait_until(lambda: gone() is None)
            assert used.result() == 1

    def test_of_a_refused_call_is_not_kept(self, bench: Bench) -> None:
        class Big:
            pass

        big = Big()
        gone = weakref.ref(big)
        refused = bench.call(big, [bench.call()])
        del big

        assert isinstance(refused.exception(), ArgumentError)
        assert gone() is None


# ---- against calling by hand


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    """For each call the numbers of the earlier calls that it takes as arguments."""
    size = draw(st.integers(1, 12))
    return [
        draw(st.lists(st.integers(0, number - 1), max_size=4)) if number else [] for number in range(size)
    ]


@settings(max_examples=150)
@given(graph=graphs(), data=st.data())
def test_any_graph_gives_what_calling_by_hand_gives(graph: list[list[int]], data: st.DataObject) -> None:
    bench = Bench()
    calls: list[DeploymentResponse[Any]] = []
    by_hand: list[float] = []
    ended: set[int] = set()

    def end_some(least: int) -> None:
        ready = [number for number, call in enumerate(calls) if bench.has_begun(call) and number not in ended]
        for number in data.draw(st.permutations(ready))[: max(least, data.draw(st.integers(0, 2)))]:
            bench.end(calls[number], sum(bench.arguments(calls[number])) + number)
            ended.add(number)

    for number, inputs in enumerate(graph):
        calls.append(bench.call(*[calls[each] for each in inputs]))
        by_hand.append(math.fsum(by_hand[each] for each in inputs) + number)
        end_some(0)
    while len(ended) < len(calls):
        end_some(1)

    assert [call.result() for call in calls] == by_hand
    assert all(request_behind(call).state is ANSWERED for call in calls)
    assert bench.router.statistics().waiting == 0


def every_order(count: int) -> Iterator[tuple[int, ...]]:
    import itertools

    return itertools.permutations(range(count))


@pytest.mark.parametrize("order", list(every_order(3)))
def test_inputs_may_be_answered_while_the_others_are_being_registered(order: tuple[int, ...]) -> None:
    """The guard in the count: without it the call begins before it has all its arguments."""
    bench = Bench()
    calls = [bench.call() for _ in range(3)]
    futures = [_Eager(partial(bench.end, calls[number], number)) for number in order]

    last = bench.call(futures[0], calls[0], futures[1], calls[1], futures[2], calls[2])

    assert bench.arguments(last) == (None, 0, None, 1, None, 2)


class _Eager(concurrent.futures.Future[None]):
    """A future that is done, and has something happen when it is asked to tell."""

    def __init__(self, happen: Callable[[], None]) -> None:
        super().__init__()
        self.set_result(None)
        self._happen = happen

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        self._happen()
        super().add_done_callback(fn)
