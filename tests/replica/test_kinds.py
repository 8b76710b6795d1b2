"""What a replica does, wherever its code runs: each test asks every kind that this Python offers."""

from __future__ import annotations

import math
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import Deployed, check_invariants, deployed, wait_until
from tests.replica.bodies import TENANT, Decorated, Everything, OutOfStock, Point, Sick, Stillborn, double
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


class TestLimits:
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
