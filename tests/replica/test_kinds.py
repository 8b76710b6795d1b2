"""What a replica does, wherever its code runs: each test asks every kind that this Python offers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import math
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import Deployed, check_invariants, deployed, wait_until
from tests.replica.bodies import (
    TENANT,
    Configured,
    Decorated,
    Everything,
    Mortal,
    OutOfStock,
    Point,
    Quitter,
    Sick,
    SickLater,
    Stillborn,
    double,
)
from threadserve.call.context import inheritance
from threadserve.concurrency.interpreters import is_offered
from threadserve.concurrency.real import RealKernel
from threadserve.errors import (
    BackPressureError,
    MethodNotFoundError,
    ReplicaDiedError,
    ReplicaStartError,
    RequestCancelledError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

KINDS = [
    "thread",
    pytest.param(
        "interpreter",
        marks=pytest.mark.skipif(
            not is_offered(), reason="replica_type='interpreter' exists from Python 3.14 on"
        ),
    ),
]


class Stage:
    """Deploys as the kind of replica under test."""

    def __init__(self, kind: str) -> None:
        self.kernel = RealKernel()
        self.kind = kind

    def deployed(self, target: Any, *args: Any, **options: Any) -> AbstractContextManager[Deployed]:
        return deployed(self.kernel, target, *args, replica_type=self.kind, **options)


def gate() -> memoryview:
    """Return what lets bodies on, wherever they run, when its first byte is set."""
    return memoryview(bytearray(1))


async def _awaited(response: Any) -> Any:
    return await response


@pytest.fixture(params=KINDS)
def stage(request: pytest.FixtureRequest) -> Stage:
    return Stage(request.param)


@pytest.fixture
def everything(stage: Stage) -> Iterator[Deployed]:
    with stage.deployed(Everything, 5) as everything:
        yield everything


class TestACall:
    def test_returns_what_the_body_returns(self, everything: Deployed) -> None:
        assert everything.handle.remote(3).result() == 8
        assert everything.handle.later.remote(4).result() == 9

    def test_may_be_made_of_a_function(self, stage: Stage) -> None:
        with stage.deployed(double) as deployment:
            assert deployment.handle.remote(21).result() == 42

    def test_may_be_made_of_a_decorated_class(self, stage: Stage) -> None:
        target: Any = Decorated
        with stage.deployed(target.func_or_class) as deployment:
            assert deployment.handle.remote().result() == "found"

    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            0,
            -(2**63),
            2**64,
            0.5,
            math.inf,
            "ä\ud800",
            b"\0",
            (),
            (1, ("a", (b"b", None))),
            [1],
            {"k": {2}},
        ],
        ids=repr,
    )
    def test_carries_values_there_and_back(self, everything: Deployed, value: Any) -> None:
        returned = everything.handle.same.remote(value).result()

        assert returned == value
        assert type(returned) is type(value)

    def test_carries_objects_and_keywords(self, everything: Deployed) -> None:
        point = Point(1, 2)

        assert everything.handle.echo.remote(point, key=point).result() == ((point,), {"key": point})

    def test_of_an_unknown_method_says_which_there_are(self, everything: Deployed) -> None:
        with pytest.raises(MethodNotFoundError, match=r"latr.*did you mean 'later'") as caught:
            everything.handle.latr.remote().result()

        assert "echo" in caught.value.available

    def test_that_was_answered_gives_its_slot_back(self, stage: Stage) -> None:
        with stage.deployed(Everything, max_ongoing_requests=1) as deployment:
            assert [response.result() for response in [deployment.handle.remote(i) for i in range(50)]] == [
                *range(50)
            ]

    def test_knows_its_replica(self, everything: Deployed) -> None:
        deployment, rank, tag, thread = everything.handle.whoami.remote().result()

        assert (deployment, rank) == ("D", 0)
        assert tag == everything.seats[0].replica.context.replica_tag
        assert thread

    def test_knows_its_model_id_and_what_is_left_of_its_time(self, everything: Deployed) -> None:
        assert everything.handle.options(multiplexed_model_id="m").model.remote().result() == "m"
        assert everything.handle.left.remote().result() == math.inf
        assert 0 < everything.handle.options(timeout_s=60).left.remote().result() <= 60

    def test_takes_responses_for_arguments(self, everything: Deployed) -> None:
        once = everything.handle.remote(1)

        assert everything.handle.later.remote(everything.handle.remote(once)).result() == 16

    def test_can_be_awaited(self, everything: Deployed) -> None:
        async def main() -> list[int]:
            return [
                *await asyncio.gather(*[_awaited(everything.handle.remote(number)) for number in range(5)])
            ]

        assert asyncio.run(main()) == [5, 6, 7, 8, 9]

    def test_has_a_future(self, everything: Deployed) -> None:
        futures = [everything.handle.remote(number).future for number in range(5)]
        done, _ = concurrent.futures.wait(futures)

        assert sorted(future.result() for future in done) == [5, 6, 7, 8, 9]

    def test_goes_on_when_nobody_waits_any_longer(self, everything: Deployed) -> None:
        flag = gate()
        response = everything.handle.hold_until.remote(flag)
        with pytest.raises(TimeoutError):
            response.result(timeout_s=0.01)
        flag[0] = 1

        assert response.result() == 1

    def test_has_the_same_request_id_inside_as_outside(self, everything: Deployed) -> None:
        response = everything.handle.request_id.remote()

        assert response.result() == response.request_id

    def test_from_several_threads_is_answered_to_each(self, everything: Deployed) -> None:
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            results = threads.map(lambda number: everything.handle.remote(number).result(), range(200))

            assert list(results) == [*range(5, 205)]

    def test_of_a_generator_wants_to_be_a_stream(self, everything: Deployed) -> None:
        with pytest.raises(TypeError, match="stream=True"):
            everything.handle.return_what_should_be_a_stream.remote().result()


class TestAnError:
    @pytest.mark.parametrize(("method", "args"), [("fail", ("3 x apple",)), ("fail_later", ("2 x pear",))])
    def test_arrives_as_itself(self, everything: Deployed, method: str, args: tuple[str]) -> None:
        for _ in range(2):
            with pytest.raises(OutOfStock) as caught:
                everything.handle.options(method_name=method).remote().result()

            assert caught.value.args == args
            assert caught.value.item in args[0]

    def test_brings_its_cause_its_notes_and_its_traceback(self, everything: Deployed) -> None:
        with pytest.raises(OutOfStock) as caught:
            everything.handle.fail.remote().result()

        error = caught.value
        assert isinstance(error.__cause__, KeyError)
        assert error.__notes__ == ["ask again on Monday"]
        shown = "".join(traceback.format_exception(error))
        assert shown.count("bodies.py") == 2
        assert "raise failure from error" in shown
        assert shown.index("KeyError: 'missing'") < shown.index("OutOfStock: 3 x apple")

    def test_is_the_same_for_all_who_ask(self, everything: Deployed) -> None:
        response = everything.handle.fail.remote()
        errors = [response.exception() for _ in range(3)]

        assert [type(error) for error in errors] == [OutOfStock] * 3
        assert [error.__notes__ for error in errors if error is not None] == [["ask again on Monday"]] * 3

    def test_may_be_a_group(self, everything: Deployed) -> None:
        with pytest.raises(ExceptionGroup, match="two") as caught:
            everything.handle.fail_in_a_group.remote().result()

        assert [(type(error), error.args) for error in caught.value.exceptions] == [
            (OutOfStock, ("1 x kiwi",)),
            (ValueError, ("second",)),
        ]

    def test_is_told_of_though_it_cannot_travel(self, everything: Deployed) -> None:
        with pytest.raises(RuntimeError, match="holds"):
            everything.handle.fail_with_a_lock.remote().result()

    @pytest.mark.parametrize(
        ("method", "kind"),
        [
            ("stop_iterating", StopIteration),
            ("cancel_itself", RequestCancelledError),
            ("interrupt", KeyboardInterrupt),
        ],
    )
    def test_that_would_mean_something_else_to_who_waits_does_not(
        self, stage: Stage, method: str, kind: type[BaseException]
    ) -> None:
        with stage.deployed(Everything, inline=False) as deployment:  # inlined, Ctrl-C is that of who waits
            with pytest.raises(kind):
                deployment.handle.options(method_name=method).remote().result()

            assert deployment.handle.remote(1).result() == 1

    def test_of_the_constructor_is_the_cause_of_the_failed_start(self, stage: Stage) -> None:
        with pytest.raises(ReplicaStartError, match="OutOfStock") as caught, stage.deployed(Stillborn):
            pass

        assert isinstance(caught.value.__cause__, OutOfStock)


class TestAStream:
    @pytest.mark.parametrize("method", ["items", "items_later"])
    def test_brings_its_items_in_order(self, everything: Deployed, method: str) -> None:
        items = everything.handle.options(stream=True, method_name=method).remote(500)

        assert list(items) == [*range(500)]

    def test_brings_the_error_after_the_items(self, everything: Deployed) -> None:
        items = everything.handle.options(stream=True).items_that_fail.remote()

        assert next(items) == 1
        with pytest.raises(OutOfStock):
            next(items)
        assert list(items) == []

    def test_may_be_empty_or_fail_at_once(self, everything: Deployed) -> None:
        stream = everything.handle.options(stream=True)

        assert list(stream.no_items.remote()) == []
        with pytest.raises(OutOfStock, match="0 x fig"):
            list(stream.items_that_never_come.remote())

    @pytest.mark.parametrize("method", ["items", "items_later"])
    def test_can_be_read_by_a_coroutine(self, everything: Deployed, method: str) -> None:
        async def main() -> list[int]:
            items = everything.handle.options(stream=True, method_name=method).remote(200)
            return [item async for item in items]

        assert asyncio.run(main()) == [*range(200)]

    def test_of_several_keeps_to_itself(self, everything: Deployed) -> None:
        streams = [everything.handle.options(stream=True).items.remote(100) for _ in range(4)]

        assert [*zip(*streams, strict=True)] == [(number,) * 4 for number in range(100)]

    @pytest.mark.parametrize("method", ["items", "items_later"])
    def test_that_is_dropped_ends_its_producer(self, everything: Deployed, method: str) -> None:
        items = everything.handle.options(stream=True, method_name=method).remote(10**9)
        next(items)
        del items
        gc.collect()

        wait_until(lambda: everything.handle.how_far.remote().result()[1] == [method])

    @pytest.mark.parametrize("method", ["items", "items_later"])
    def test_that_is_cancelled_ends_its_producer_and_its_reader(
        self, everything: Deployed, method: str
    ) -> None:
        items = everything.handle.options(stream=True, method_name=method).remote(10**9)
        next(items)
        items.cancel()

        with pytest.raises(RequestCancelledError):
            list(items)
        wait_until(lambda: everything.handle.how_far.remote().result()[1] == [method])
        wait_until(lambda: everything.router.statistics().ongoing == 0)

    def test_ends_at_its_deadline(self, everything: Deployed) -> None:
        items = everything.handle.options(stream=True, timeout_s=0.1).items.remote(10**9)

        with pytest.raises(RequestTimeoutError):
            while True:
                next(items)
        wait_until(lambda: everything.handle.how_far.remote().result()[1] == ["items"])

    def test_has_a_slot_until_its_producer_has_ended(self, stage: Stage) -> None:
        with stage.deployed(Everything, max_ongoing_requests=1) as deployment:
            items = deployment.handle.options(stream=True).items.remote(1000)
            next(items)
            after = deployment.handle.remote(1)
            assert not after.done()
            items.close()

            assert after.result() == 1

    @pytest.mark.parametrize("method", ["items", "items_later"])
    def test_keeps_its_producer_within_the_bound(self, stage: Stage, method: str) -> None:
        with stage.deployed(Everything, stream_buffer_size=8) as deployment:
            items = deployment.handle.options(stream=True, method_name=method).remote(1000)
            taken = [next(items) for _ in range(3)]
            wait_until(lambda: deployment.handle.how_far.remote().result()[0] >= 9)

            assert deployment.handle.how_far.remote().result()[0] <= len(taken) + 8 + 1
            assert [*taken, *items] == [*range(1000)]

    @pytest.mark.parametrize("method", ["items", "items_later"])
    def test_that_is_left_ends_its_producer(self, everything: Deployed, method: str) -> None:
        items = everything.handle.options(stream=True, method_name=method).remote(10**9)
        next(items)
        items.close()

        wait_until(lambda: method in everything.handle.how_far.remote().result()[1])
        wait_until(lambda: everything.router.statistics().ongoing == 0)


class TestACancelledCall:
    @pytest.mark.parametrize("method", ["until_cancelled", "until_cancelled_later"])
    def test_ends_its_body(self, everything: Deployed, method: str) -> None:
        response = everything.handle.options(method_name=method).remote()
        wait_until(lambda: everything.handle.how_far.remote().result()[0] == 1)
        response.cancel()

        with pytest.raises(RequestCancelledError):
            response.result()
        wait_until(lambda: everything.handle.how_far.remote().result()[1] == ["cancelled"])
        wait_until(lambda: everything.router.statistics().ongoing == 0)

    @pytest.mark.parametrize("method", ["until_cancelled", "until_cancelled_later"])
    def test_by_its_deadline_ends_its_body(self, everything: Deployed, method: str) -> None:
        with pytest.raises(RequestTimeoutError):
            everything.handle.options(method_name=method, timeout_s=0.1).remote().result()

        wait_until(lambda: everything.handle.how_far.remote().result()[1] == ["cancelled"])

    def test_that_has_not_begun_never_does(self, stage: Stage) -> None:
        with stage.deployed(Everything, max_ongoing_requests=1) as deployment:
            running = deployment.handle.until_cancelled.remote()
            queued = deployment.handle.items.remote(1)
            queued.cancel()
            running.cancel()

            wait_until(lambda: deployment.router.statistics().ongoing == 0)
            assert deployment.handle.how_far.remote().result()[1] == ["cancelled"]

    def test_whose_answer_is_there_stays_answered(self, everything: Deployed) -> None:
        response = everything.handle.remote(1)
        assert response.result() == 6
        response.cancel()

        assert response.result() == 6

    def test_by_a_coroutine_that_gives_up_is_not_cancelled(self, everything: Deployed) -> None:
        flag = gate()
        response = everything.handle.hold_until.remote(flag)

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_awaited(response), 0.01)

        asyncio.run(give_up())
        assert not response.done()
        flag[0] = 1
        assert response.result() == 1


class TestADeadline:
    @pytest.mark.parametrize("method", ["items", "later"])
    def test_that_passes_in_the_queue_is_kept_there(self, stage: Stage, method: str) -> None:
        with stage.deployed(Everything, max_ongoing_requests=1) as deployment:
            flag = gate()
            running = deployment.handle.hold_until.remote(flag)
            queued = deployment.handle.options(method_name=method, timeout_s=0.05).remote(1)
            with pytest.raises(RequestTimeoutError, match="while queued") as caught:
                queued.result()
            flag[0] = 1

            assert caught.value.queued_s > 0
            assert caught.value.running_s == 0
            assert running.result() == 1
            assert deployment.handle.how_far.remote().result() == (0, [])

    def test_that_passes_while_the_body_runs_is_kept_there(self, everything: Deployed) -> None:
        with pytest.raises(RequestTimeoutError, match="while running") as caught:
            everything.handle.options(timeout_s=0.05).until_cancelled.remote().result()

        assert caught.value.running_s > 0
        wait_until(lambda: everything.router.statistics().ongoing == 0)


class TestLimits:
    @pytest.mark.parametrize("method", ["hold_until", "hold_until_later"])
    def test_let_exactly_so_many_of_a_burst_run_and_queue(self, stage: Stage, method: str) -> None:
        with stage.deployed(
            Everything, num_replicas=2, max_ongoing_requests=1, max_queued_requests=2
        ) as deployment:
            flag = gate()
            burst = [deployment.handle.options(method_name=method).remote(flag) for _ in range(10)]
            refused = [response for response in burst if response.done()]
            check_invariants(deployment.router)
            flag[0] = 1

            assert len(refused) == 6
            assert {type(response.exception()) for response in refused} == {BackPressureError}
            assert [response.result() for response in burst if response not in refused] == [1] * 4

    @pytest.mark.parametrize("method", ["hold_until", "hold_until_later"])
    def test_are_never_exceeded_inside(self, stage: Stage, method: str) -> None:
        with stage.deployed(Everything, max_ongoing_requests=3) as deployment:
            flag = gate()
            burst = [deployment.handle.options(method_name=method).remote(flag) for _ in range(9)]
            wait_until(lambda: deployment.router.statistics().ongoing == 3)
            flag[0] = 1

            assert max(response.result() for response in burst) <= 3
            assert deployment.handle.at_once.remote().result() == 0

    def test_are_those_of_the_deployment(self, stage: Stage) -> None:
        with stage.deployed(Everything, max_ongoing_requests=2, max_queued_requests=1) as deployment:
            running = [deployment.handle.until_cancelled.remote() for _ in range(2)]
            queued = deployment.handle.remote(1)
            with pytest.raises(BackPressureError):
                deployment.handle.remote(2).result()
            check_invariants(deployment.router)
            for response in running:
                response.cancel()

            assert queued.result() == 1

    def test_let_as_many_run_at_once(self, stage: Stage) -> None:
        with stage.deployed(Everything, max_ongoing_requests=20) as deployment:
            responses = [deployment.handle.until_cancelled.remote() for _ in range(19)]

            assert deployment.handle.remote(1).result() == 1
            for response in responses:
                response.cancel()
            wait_until(lambda: deployment.router.statistics().ongoing == 0)


class TestAReplica:
    def test_gets_its_user_config(self, stage: Stage) -> None:
        with stage.deployed(Everything, user_config={"threshold": [1, 2]}) as deployment:
            assert deployment.handle.get_config.remote().result() == {"threshold": [1, 2]}

    def test_whose_code_exits_is_replaced(self, everything: Deployed) -> None:
        former = everything.seats[0]
        with pytest.raises(ReplicaDiedError, match="SystemExit") as caught:
            everything.handle.exit.remote().result()

        assert isinstance(caught.value.__cause__, SystemExit)
        wait_until(lambda: everything.seats not in ([], [former]))
        assert everything.handle.remote(1).result() == 6

    def test_takes_what_runs_in_it_along(self, everything: Deployed) -> None:
        former = everything.seats[0]
        running = everything.handle.until_cancelled.remote()
        with pytest.raises(ReplicaDiedError):
            everything.handle.exit.remote().result()

        with pytest.raises(ReplicaDiedError, match="died of SystemExit"):
            running.result()
        wait_until(lambda: everything.seats not in ([], [former]))

    def test_that_is_sick_is_replaced(self, stage: Stage) -> None:
        with stage.deployed(Sick, health_check_period_s=0.01) as deployment:
            former = deployment.seats[0].replica
            deployment.handle.fall_ill.remote().result()

            wait_until(lambda: any(seat.replica is not former for seat in deployment.seats))
            assert deployment.handle.remote().result() is False

    def test_that_hangs_in_its_health_check_is_replaced(self, stage: Stage) -> None:
        with stage.deployed(
            SickLater,
            health_check_period_s=0.01,
            health_check_timeout_s=0.05,
            graceful_shutdown_timeout_s=0.1,
        ) as deployment:
            former = deployment.seats[0].replica
            deployment.handle.fall_ill.remote().result()

            wait_until(lambda: any(seat.replica is not former for seat in deployment.seats))
            assert deployment.handle.remote().result() is False

    @pytest.mark.parametrize("method", ["exit", "exit_later", "items_until_exit"])
    def test_that_exits_is_replaced_whatever_body_did_it(self, everything: Deployed, method: str) -> None:
        former = everything.seats[0]
        is_stream = method == "items_until_exit"
        with pytest.raises(ReplicaDiedError, match="SystemExit"):
            if is_stream:
                list(everything.handle.options(stream=True, method_name=method).remote())
            else:
                everything.handle.options(method_name=method).remote().result()

        wait_until(lambda: everything.seats not in ([], [former]))
        assert everything.handle.remote(1).result() == 6

    def test_that_exits_leaves_the_queue_to_the_next_one(self, stage: Stage) -> None:
        with stage.deployed(Everything, max_ongoing_requests=1) as deployment:
            flag = gate()
            running = deployment.handle.hold_until.remote(flag)
            exiting = deployment.handle.exit.remote()
            queued = [deployment.handle.remote(number) for number in range(5)]
            flag[0] = 1

            assert running.result() == 1
            assert isinstance(exiting.exception(), ReplicaDiedError)
            assert [response.result() for response in queued] == [*range(5)]

    def test_whose_constructor_exits_does_not_start(self, stage: Stage) -> None:
        with pytest.raises(ReplicaStartError, match="SystemExit") as caught, stage.deployed(Quitter):
            pass

        assert isinstance(caught.value.__cause__, SystemExit)

    def test_is_made_as_often_as_is_allowed(self, stage: Stage) -> None:
        notes = memoryview(bytearray(2))
        with stage.deployed(Mortal, notes, 2, max_constructor_retry_count=3) as deployment:
            assert deployment.handle.remote().result() == "here"

        assert notes[0] == 3

    def test_is_finalized_once_when_it_is_taken_down(self, stage: Stage) -> None:
        notes = memoryview(bytearray(2))
        with stage.deployed(Mortal, notes) as deployment:
            assert deployment.handle.remote().result() == "here"
            assert notes[1] == 0

        assert tuple(notes) == (1, 1)

    def test_is_configured_by_a_coroutine_in_its_own_context(self, stage: Stage) -> None:
        with stage.deployed(Configured, user_config="7") as deployment:
            assert deployment.handle.remote().result() == (7, True)

    def test_that_refuses_its_user_config_does_not_start(self, stage: Stage) -> None:
        with (
            pytest.raises(ReplicaStartError, match="invalid literal") as caught,
            stage.deployed(Configured, user_config="seven"),
        ):
            pass

        assert isinstance(caught.value.__cause__, ValueError)

    def test_is_known_in_threads_that_its_code_starts(self, everything: Deployed) -> None:
        tag = everything.seats[0].replica.context.replica_tag
        inheritance.install()  # as a runtime does
        try:
            found = everything.handle.whoami_in_a_thread.remote().result()
        finally:
            inheritance.uninstall()

        assert found == tag

    def test_of_the_next_version_takes_over_and_what_runs_ends_in_the_old_one(self, stage: Stage) -> None:
        with stage.deployed(Everything, 1, max_ongoing_requests=1) as deployment:
            flag = gate()
            running = deployment.handle.hold_until.remote(flag)
            queued = deployment.handle.remote(1)
            wait_until(lambda: deployment.router.statistics().ongoing == 1)
            with concurrent.futures.ThreadPoolExecutor(1) as threads:
                replacing = threads.submit(
                    deployment.replace_with, Everything, 2, replica_type=stage.kind, max_ongoing_requests=1
                )
                assert queued.result() == 3
                assert not running.done()
                flag[0] = 1
                replacing.result()

            assert running.result() == 1
            assert deployment.handle.remote(1).result() == 3

    def test_may_be_of_the_other_kind_in_the_next_version(self, stage: Stage) -> None:
        other = {"thread": "interpreter", "interpreter": "thread"}[stage.kind]
        if other == "interpreter" and not is_offered():
            other = "thread"
        with stage.deployed(Everything, 1) as deployment:
            deployment.replace_with(Everything, 2, replica_type=other)

            assert deployment.handle.remote(1).result() == 3

    def test_that_does_not_end_in_time_is_given_up(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        flag = gate()
        with stage.deployed(Everything, graceful_shutdown_timeout_s=0.05) as deployment:
            response = deployment.handle.hold_until.remote(flag)
            wait_until(lambda: deployment.router.statistics().ongoing == 1)
            deployment.take_down(0.05)

            with pytest.raises(ReplicaDiedError, match="did not end within"):
                response.result()
            wait_until(lambda: deployment.router.statistics().ongoing == 0)
        assert "was given up" in caplog.text

    def test_is_drained(self, stage: Stage) -> None:
        with stage.deployed(Everything) as deployment:
            response = deployment.handle.hold.remote(0.1)
            wait_until(lambda: deployment.router.statistics().ongoing == 1)
            deployment.take_down()

            assert response.result() == "held"

    def test_is_one_of_several(self, stage: Stage) -> None:
        with stage.deployed(Everything, num_replicas=2, max_ongoing_requests=1) as deployment:
            first, second = (deployment.handle.until_cancelled.remote() for _ in range(2))
            wait_until(lambda: deployment.router.statistics().ongoing == 2)
            ranks = {seat.replica.context.rank.rank for seat in deployment.seats}
            first.cancel()
            second.cancel()

            assert ranks == {0, 1}


def test_context_variables_that_are_registered_are_seen(
    stage: Stage, everything: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threadserve.call import context

    monkeypatch.setattr(context.propagated, "names", ())
    context.propagate("tests.replica.bodies:TENANT")
    token = TENANT.set("shop")
    try:
        assert everything.handle.variables.remote().result() == ("shop", "nobody")
    finally:
        TENANT.reset(token)
