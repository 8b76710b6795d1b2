"""The ledger: what a deployment asks for, what there is, and that nothing is given twice or lost."""

from __future__ import annotations

import math
import os
import pickle
from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from threadserve.concurrency.real import RealKernel
from threadserve.errors import ConfigError, DeployError, ResourceError
from threadserve.runtime import machine as this_machine
from threadserve.runtime.resources import (
    UNIT,
    Ask,
    Demand,
    Ledger,
    Reservation,
    pack,
)
from threadserve.runtime.version import Place
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from threadserve.concurrency.kernel import Kernel
    from threadserve.concurrency.waiter import Subscriber

EMBED = "shop/Embed"
RANK = "shop/Rank"
MACHINE: Mapping[str, object] = {"CPU": 4, "GPU": 2, "memory": 1000, "slots": 1.5}


class Told:
    """A subscriber that counts how often it was told."""

    def __init__(self) -> None:
        self.count = 0

    def tell(self) -> Iterable[Subscriber]:
        self.count += 1
        return ()


def demand(**options: object) -> Demand:
    return Demand.of(EMBED, options)


def ledger(kernel: Kernel | None = None, **totals: object) -> Ledger:
    return Ledger(kernel or RealKernel(), {**MACHINE, **totals})


def reserved(from_ledger: Ledger, wanted: Demand, deployment: str = EMBED) -> Reservation:
    reservation = from_ledger.reserve(deployment, wanted)
    assert reservation is not None
    return reservation


@pytest.fixture(autouse=True)
def no_gpus_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(this_machine, "installed_gpus", tuple)


class TestDemand:
    @pytest.mark.parametrize(
        ("options", "amounts"),
        [
            ({}, {}),
            ({"num_cpus": 2}, {"CPU": 2}),
            ({"num_cpus": 0.5, "num_gpus": 0.25}, {"CPU": 0.5, "GPU": 0.25}),
            ({"num_gpus": 3}, {"GPU": 3}),
            ({"num_gpus": 2.0}, {"GPU": 2}),
            ({"memory": 1.5e9}, {"memory": 1_500_000_000}),
            ({"memory": 2**53 + 1}, {"memory": 2**53 + 1}),
            ({"resources": {"slots": 0.0001, "licence": 1}}, {"licence": 1, "slots": 0.0001}),
            ({"num_cpus": 0, "resources": {"slots": 0.0}}, {}),
            ({"num_cpus": None, "num_gpus": None, "memory": None, "resources": None}, {}),
            ({"runtime_env": {}, "accelerator_type": "T4"}, {}),
        ],
    )
    def test_is_what_the_user_has_set_and_nothing_else(
        self, options: dict[str, object], amounts: dict[str, float]
    ) -> None:
        asked = Demand.of(EMBED, options)

        assert asked.amounts == amounts
        assert asked.is_empty is (not amounts)

    @pytest.mark.parametrize(
        "value", [-1, -0.5, math.nan, math.inf, -math.inf, True, "1", [1], 10**400, 0.00001]
    )
    @pytest.mark.parametrize("option", ["num_cpus", "num_gpus", "memory", "resources"])
    def test_refuses_what_is_no_amount_and_says_where(self, option: str, value: object) -> None:
        options = {option: {"slots": value} if option == "resources" else value}

        with pytest.raises(ConfigError) as caught:
            Demand.of(EMBED, options)

        assert EMBED in str(caught.value)
        assert option in str(caught.value)
        assert repr(value)[:50] in str(caught.value)

    @pytest.mark.parametrize("value", [1.5, 2.0001, 1.0001])
    def test_refuses_a_fraction_of_several_gpus(self, value: float) -> None:
        with pytest.raises(ConfigError, match=rf"{EMBED}.*num_gpus.*whole number.*{value}"):
            demand(num_gpus=value)

    @pytest.mark.parametrize(
        ("named", "said"),
        [
            ({"CPU": 1}, "num_cpus"),
            ({"GPU": 1}, "num_gpus"),
            ({"memory": 1}, "memory"),
            ({"num_cpus": 1}, "'CPU'"),
            ({"": 1}, "not empty"),
            ({3: 1}, "string"),
            ([("slots", 1)], "a dict"),
        ],
    )
    def test_refuses_names_that_no_custom_resource_can_have(self, named: object, said: str) -> None:
        with pytest.raises(ConfigError, match=said) as caught:
            demand(resources=named)

        assert EMBED in str(caught.value)

    def test_is_a_value(self) -> None:
        one = demand(num_cpus=1, resources={"b": 1, "a": 2})

        assert one == demand(resources={"a": 2.0, "b": 1.0}, num_cpus=1.0)
        assert len({one, pickle.loads(pickle.dumps(one))}) == 1
        assert repr(one) == "Demand(CPU=1, a=2, b=1)"

    @given(st.integers(1, UNIT))
    def test_lets_n_replicas_share_one_by_asking_for_an_nth(self, n: int) -> None:
        ((_, units),) = demand(num_cpus=1 / n).units

        assert units * n <= UNIT

    @given(st.integers(1, 10**9))
    def test_loses_nothing_of_what_has_four_decimals(self, units: int) -> None:
        assert demand(num_cpus=units / UNIT).units == (("CPU", units),)


class TestTotals:
    def test_are_the_cores_and_the_memory_of_this_process_where_nothing_is_given(self) -> None:
        total = Ledger(RealKernel()).statistics().total

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        assert total["CPU"] == cores
        assert total["memory"] >= 0
        assert set(total) == {"CPU", "memory"}

    def test_are_what_is_given_where_something_is(self) -> None:
        assert ledger().statistics().total == {"CPU": 4, "GPU": 2, "memory": 1000, "slots": 1.5}

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"slots": -1}, r"resources\['slots'\]"),
            ({"slots": math.nan}, r"resources\['slots'\]"),
            ({"slots": True}, r"resources\['slots'\]"),
            ({"GPU": 1.5}, r"resources\['GPU'\] must be a whole number, not 1.5"),
            ({"num_cpus": 1}, "'CPU'"),
            ({"num_gpus": 1}, "'GPU'"),
            ([1], "a dict"),
        ],
    )
    def test_refuse_what_is_no_amount(self, wrong: Any, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            Ledger(RealKernel(), wrong)

    def test_hand_out_gpus_by_the_names_that_the_environment_has_for_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
        machine = Ledger(RealKernel())

        assert reserved(machine, demand(num_gpus=2)).gpu_ids == ("GPU-a", "GPU-b")
        assert machine.statistics().total["GPU"] == 2

    @pytest.mark.parametrize(
        ("variable", "count", "gpu_ids"),
        [("5,6,7", 2, ("5", "6")), ("", 2, ("0", "1")), (None, 2, ("0", "1")), ("5", 0, ())],
    )
    def test_have_as_many_gpus_as_given(
        self, variable: str | None, count: int, gpu_ids: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if variable is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        machine = ledger(GPU=count)

        assert machine.statistics().total["GPU"] == count
        assert reserved(machine, demand(num_gpus=count)).gpu_ids == gpu_ids

    def test_refuse_more_gpus_than_the_environment_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")

        with pytest.raises(ConfigError, match=r"'GPU'.* is 3, but CUDA_VISIBLE_DEVICES names only 5, 6"):
            ledger(GPU=3).check(EMBED, Demand(), 1)

    def test_are_looked_up_once_and_gpus_only_for_who_asks_for_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[str] = []

        def look(what: str, found: object) -> object:
            looks.append(what)
            return found

        monkeypatch.setattr(this_machine, "cores", lambda: look("cores", 4))
        monkeypatch.setattr(this_machine, "installed_gpus", lambda: look("gpus", ("0", "1")))
        machine = Ledger(RealKernel())
        assert looks == []

        reserved(machine, demand(num_cpus=1))
        assert looks == ["cores"]
        assert "GPU" not in machine.statistics().total

        reserved(machine, demand(num_gpus=1))
        reserved(machine, demand(num_gpus=0.5))
        assert looks == ["cores", "gpus"]
        assert machine.statistics().free["GPU"] == 0.5

    def test_have_no_memory_where_the_system_does_not_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "sysconf", raising=False)

        with pytest.raises(ResourceError, match=r"8 bytes of memory, and there are 0.*'memory'"):
            Ledger(RealKernel()).check(EMBED, demand(memory=8), 1)


class TestCheck:
    @pytest.mark.parametrize(
        ("options", "replicas"),
        [
            ({}, 1000),
            ({"num_cpus": 4}, 1),
            ({"num_cpus": 0.1}, 40),
            ({"num_cpus": 1 / 3}, 12),
            ({"num_gpus": 1}, 2),
            ({"num_gpus": 0.5}, 4),
            ({"num_gpus": 1 / 3}, 6),
            ({"memory": 500}, 2),
            ({"resources": {"slots": 0.5}}, 3),
            ({"num_cpus": 5}, 0),
        ],
    )
    def test_lets_pass_what_fits_on_an_empty_machine(self, options: dict[str, object], replicas: int) -> None:
        machine = ledger()

        machine.check(EMBED, demand(**options), replicas)

        made = machine.reserve_together([Ask(EMBED, demand(**options), replicas)])
        assert made is not None
        assert len(made) == replicas

    @pytest.mark.parametrize(
        ("options", "replicas", "resource", "asked", "said"),
        [
            ({"num_cpus": 4.0001}, 1, "CPU", 4.0001, "one replica asks for 4.0001 cores, and there are 4"),
            ({"num_cpus": 8}, 3, "CPU", 8, "one replica asks for 8 cores, and there are 4"),
            ({"num_cpus": 1.5}, 3, "CPU", 4.5, "3 replicas together ask for 4.5 cores, and there are 4"),
            ({"num_cpus": 0.1}, 41, "CPU", 4.1, "41 replicas together ask for 4.1 cores"),
            ({"num_gpus": 3}, 1, "GPU", 3, "one replica asks for 3 GPUs, and there are 2"),
            ({"num_gpus": 0.6}, 3, "GPU", 1.8, "1.8 GPUs, and there are 2; a fraction must fit on one"),
            ({"memory": 1001}, 1, "memory", 1001, "1001 bytes of memory, and there are 1000"),
            ({"resources": {"slots": 2}}, 1, "slots", 2, "2 'slots', and there are 1.5"),
            ({"resources": {"tpu": 1}}, 1, "tpu", 1, "1 'tpu', and there are 0"),
        ],
    )
    def test_refuses_what_can_never_fit(
        self, options: dict[str, object], replicas: int, resource: str, asked: float, said: str
    ) -> None:
        machine = ledger()

        with pytest.raises(ResourceError) as caught:
            machine.check(EMBED, demand(**options), replicas)

        error = caught.value
        assert isinstance(error, DeployError)
        assert str(error).startswith(f"{EMBED} can never start: ")
        assert said in str(error)
        assert f"serve.start(resources={{{resource!r}: ...}})" in str(error)
        assert (error.deployment, error.resource) == (EMBED, resource)
        assert error.asked == {resource: asked}
        assert error.total == {"CPU": 4, "GPU": 2, "memory": 1000, "slots": 1.5}

    def test_does_not_mind_what_others_hold(self) -> None:
        machine = ledger()
        reserved(machine, demand(num_cpus=4), RANK)

        machine.check(EMBED, demand(num_cpus=4), 1)

    def test_refuses_deployments_that_never_fit_beside_each_other(self) -> None:
        machine = ledger()
        asks = [
            Ask(RANK, demand(num_cpus=3), 1),
            Ask("shop/Cart", demand(memory=1), 1),
            Ask(EMBED, demand(num_cpus=1), 2),
        ]
        for ask in asks:
            machine.check_together([ask])

        with pytest.raises(ResourceError, match="together with shop/Rank it asks for 5 cores") as caught:
            machine.check_together(asks)

        assert caught.value.deployment == EMBED
        assert caught.value.asked == {"CPU": 5, "memory": 1}

    def test_names_the_deployment_that_is_too_much_alone(self) -> None:
        asks = [Ask(RANK, demand(num_cpus=1), 1), Ask(EMBED, demand(num_cpus=9), 1)]

        with pytest.raises(ResourceError, match="one replica asks for 9 cores") as caught:
            ledger().check_together(asks)

        assert caught.value.deployment == EMBED

    def test_precedes_every_reservation_so_that_nobody_waits_for_what_never_comes(self) -> None:
        told = Told()
        machine = ledger()

        with pytest.raises(ResourceError):
            machine.reserve(EMBED, demand(num_cpus=5), told)

        assert machine.statistics().waiting == 0


class TestReserving:
    def test_ten_times_a_tenth_is_one(self) -> None:
        machine = ledger(CPU=1)

        made = [reserved(machine, demand(num_cpus=0.1)) for _ in range(10)]

        assert len(made) == 10
        assert machine.reserve(EMBED, demand(num_cpus=0.0001)) is None
        assert machine.statistics().free["CPU"] == 0

    def test_an_empty_demand_always_fits(self) -> None:
        machine = ledger(CPU=0)

        assert reserved(machine, Demand()).gpu_ids == ()

    def test_all_or_none(self) -> None:
        machine = ledger()
        first = reserved(machine, demand(num_cpus=2), RANK)
        before = machine.statistics()

        assert machine.reserve_together([Ask(EMBED, demand(num_cpus=1), 3)]) is None
        assert machine.statistics() == before

        first.release()
        made = machine.reserve_together([Ask(EMBED, demand(num_cpus=1), 3)])
        assert made is not None
        assert [each.deployment for each in made] == [EMBED] * 3

    def test_several_deployments_at_once_come_in_the_order_in_which_they_asked(self) -> None:
        machine = ledger()
        asks = [Ask(RANK, demand(num_gpus=0.5), 1), Ask(EMBED, demand(num_gpus=1, num_cpus=1), 1)]

        made = machine.reserve_together(asks)

        assert made is not None
        assert [(each.deployment, each.demand) for each in made] == [
            (RANK, asks[0].demand),
            (EMBED, asks[1].demand),
        ]
        assert sorted(each.gpu_ids for each in made) == [("0",), ("1",)]

    def test_a_release_gives_everything_back_and_may_be_repeated(self) -> None:
        machine = ledger()
        everything = demand(num_cpus=4, num_gpus=2, memory=1000, resources={"slots": 1.5})
        reservation = reserved(machine, everything)
        assert set(machine.statistics().free.values()) == {0}

        for _ in range(3):
            reservation.release()

        assert machine.statistics().free == machine.statistics().total
        again = reserved(machine, everything)
        reservation.release()
        assert machine.reserve(EMBED, demand(num_cpus=1)) is None
        again.release()

    def test_statistics_tell_who_has_what(self) -> None:
        machine = ledger()
        reserved(machine, demand(num_cpus=0.1))
        reserved(machine, demand(num_cpus=0.2, resources={"slots": 1}))
        reserved(machine, demand(num_gpus=1), RANK)
        machine.reserve(EMBED, demand(num_gpus=2), Told())

        statistics = machine.statistics()

        assert statistics.reserved == {EMBED: {"CPU": 0.3, "slots": 1}, RANK: {"GPU": 1}}
        assert statistics.free == {"CPU": 3.7, "GPU": 1, "memory": 1000, "slots": 0.5}
        assert statistics.waiting == 1

    def test_reprs_tell_the_state_in_one_line(self) -> None:
        machine = ledger()
        assert repr(machine) == "<Ledger nothing reserved by 0 replicas, 0 waiting>"

        reservation = reserved(machine, demand(num_cpus=3, num_gpus=0.5, resources={"slots": 1}))
        machine.reserve(EMBED, demand(num_cpus=2), Told())

        assert repr(machine) == (
            "<Ledger 3 of 4 cores, 0.5 of 2 GPUs, 1 of 1.5 'slots' reserved by 1 replicas, 1 waiting>"
        )
        assert repr(reservation) == "<Reservation shop/Embed 3 cores, 0.5 GPUs, 1 'slots' on GPU 0>"
        reservation.release()
        assert repr(reservation) == "<Reservation shop/Embed 3 cores, 0.5 GPUs, 1 'slots' on GPU 0, released>"
        assert repr(reserved(machine, Demand())) == "<Reservation shop/Embed nothing>"


class TestGpus:
    def test_a_whole_one_belongs_to_one_replica(self) -> None:
        machine = ledger(GPU=2)
        first, second = reserved(machine, demand(num_gpus=1)), reserved(machine, demand(num_gpus=1))

        assert (first.gpu_ids, second.gpu_ids) == (("0",), ("1",))
        assert machine.reserve(EMBED, demand(num_gpus=0.1)) is None

    def test_fractions_share_one_before_they_touch_the_next(self) -> None:
        machine = ledger(GPU=2)

        ids = [reserved(machine, demand(num_gpus=0.4)).gpu_ids for _ in range(4)]

        assert ids == [("0",), ("0",), ("1",), ("1",)]
        assert machine.reserve(EMBED, demand(num_gpus=0.4)) is None
        assert reserved(machine, demand(num_gpus=0.2)).gpu_ids == ("0",)

    def test_a_shared_one_goes_before_a_free_one_that_stands_before_it(self) -> None:
        machine = ledger(GPU=2)
        first = reserved(machine, demand(num_gpus=1))
        assert reserved(machine, demand(num_gpus=0.5)).gpu_ids == ("1",)
        first.release()

        assert reserved(machine, demand(num_gpus=0.5)).gpu_ids == ("1",)
        assert reserved(machine, demand(num_gpus=1)).gpu_ids == ("0",)

    def test_several_do_not_go_to_one_that_is_shared(self) -> None:
        machine = ledger(GPU=2)
        shared = reserved(machine, demand(num_gpus=0.1))

        assert machine.reserve(EMBED, demand(num_gpus=2)) is None

        shared.release()
        assert reserved(machine, demand(num_gpus=2)).gpu_ids == ("0", "1")

    def test_deployments_that_ask_together_are_packed_largest_first(self) -> None:
        asks = [Ask(RANK, demand(num_gpus=0.4), 2), Ask(EMBED, demand(num_gpus=0.6), 2)]

        made = ledger(GPU=2).reserve_together(asks)

        assert made is not None
        assert Counter(gpu for each in made for gpu in each.gpu_ids) == {"0": 2, "1": 2}

    @given(
        demands=st.lists(st.one_of(st.integers(0, UNIT), st.sampled_from([2 * UNIT, 3 * UNIT])), max_size=8),
        loads=st.lists(st.integers(0, UNIT), max_size=5),
    )
    def test_are_never_packed_beyond_one(self, demands: list[int], loads: list[int]) -> None:
        before = {str(index): load for index, load in enumerate(loads)}
        after = dict(before)

        placed = pack(demands, after)

        if placed is not None:
            assert all(load <= UNIT for load in after.values())
            assert sum(after.values()) == sum(loads) + sum(demands)
            for units, gpu_ids in zip(demands, placed, strict=True):
                assert len(set(gpu_ids)) == len(gpu_ids) == math.ceil(units / UNIT)
                if units >= UNIT:
                    assert all(before[gpu_id] == 0 and after[gpu_id] == UNIT for gpu_id in gpu_ids)


class TestSubscribers:
    def test_are_told_of_every_release_until_they_have_what_they_ask_for(self) -> None:
        book = ledger()
        reservations = [reserved(book, demand(num_cpus=2)) for _ in range(2)]
        waiting, lucky = Told(), Told()
        assert book.reserve(EMBED, demand(num_cpus=4), waiting) is None
        assert book.reserve(EMBED, demand(num_gpus=1), lucky) is not None

        reservations[0].release()
        reservations[0].release()
        assert book.reserve(EMBED, demand(num_cpus=4), waiting) is None
        assert waiting.count == 1
        reservations[1].release()
        assert waiting.count == 2
        final = book.reserve(EMBED, demand(num_cpus=4), waiting)
        assert final is not None
        final.release()

        assert (waiting.count, lucky.count) == (2, 0)

    def test_are_not_told_of_a_release_that_was_before(self) -> None:
        book = ledger()
        first = reserved(book, demand(num_cpus=4))
        first.release()
        second = reserved(book, demand(num_cpus=4))
        told = Told()
        assert book.reserve(EMBED, demand(num_cpus=1), told) is None

        first.release()
        assert told.count == 0

        second.release()
        assert told.count == 1

    def test_that_give_up_are_not_told(self) -> None:
        book = ledger()
        reservation = reserved(book, demand(num_cpus=4))
        told = Told()
        assert book.reserve(EMBED, demand(num_cpus=1), told) is None

        book.forget(told)
        book.forget(told)
        reservation.release()

        assert told.count == 0

    def test_may_reserve_while_they_are_told(self) -> None:
        book = ledger()
        first = reserved(book, demand(num_cpus=4))
        made: list[Reservation | None] = []

        class Greedy(Told):
            def tell(self) -> Iterable[Subscriber]:
                made.append(book.reserve(EMBED, demand(num_cpus=4), self))
                return ()

        assert book.reserve(EMBED, demand(num_cpus=4), Greedy()) is None

        first.release()

        assert [each is not None for each in made] == [True]


class TestTheLine:
    """Who came first, among those who wait."""

    def test_keeps_small_asks_from_starving_a_large_one(self) -> None:
        book = ledger()
        held = [reserved(book, demand(num_cpus=1)) for _ in range(4)]
        large, small = Told(), Told()
        assert book.reserve(EMBED, demand(num_cpus=4), large) is None

        for each in held:
            each.release()
            assert book.reserve(RANK, demand(num_cpus=1), small) is None
        made = book.reserve(EMBED, demand(num_cpus=4), large)

        assert made is not None
        assert small.count > 0
        assert book.reserve(RANK, demand(num_cpus=1), small) is None
        made.release()
        assert book.reserve(RANK, demand(num_cpus=1), small) is not None

    def test_holds_up_nobody_who_asks_for_something_else(self) -> None:
        book = ledger()
        reserved(book, demand(num_cpus=4))
        assert book.reserve(EMBED, demand(num_cpus=1, num_gpus=1), Told()) is None

        assert book.reserve(RANK, demand(resources={"slots": 1})) is not None
        assert book.reserve(RANK, Demand()) is not None
        assert book.reserve(RANK, demand(num_gpus=1)) is None

    def test_is_joined_by_those_alone_who_can_be_told(self) -> None:
        book = ledger()
        held = reserved(book, demand(num_cpus=4))
        assert book.reserve(EMBED, demand(num_cpus=4)) is None

        held.release()

        assert book.reserve(RANK, demand(num_cpus=1)) is not None

    def test_moves_on_when_somebody_gives_up(self) -> None:
        book = ledger()
        reserved(book, demand(num_cpus=1))
        large, small = Told(), Told()
        assert book.reserve(EMBED, demand(num_cpus=4), large) is None
        assert book.reserve(RANK, demand(num_cpus=1), small) is None
        assert book.ahead_of(small) == [EMBED]

        book.forget(large)

        assert small.count == 1
        assert book.ahead_of(small) == []
        assert book.reserve(RANK, demand(num_cpus=1), small) is not None

    def test_lets_those_go_first_who_give_back_what_they_need_anew(self) -> None:
        book = ledger()
        own = reserved(book, demand(num_cpus=4))
        waiting, renewed, late = Told(), Told(), Told()
        anew = [Ask(RANK, demand(num_cpus=4), 1)]
        assert book.reserve(EMBED, demand(num_cpus=1), waiting) is None
        assert book.reserve_together(anew, renewed, goes_first=True) is None
        assert book.reserve_together(anew, late, goes_first=True) is None
        assert book.ahead_of(late) == [RANK]
        own.release()

        assert book.reserve(EMBED, demand(num_cpus=1), waiting) is None
        assert book.reserve_together(anew, late, goes_first=True) is None
        assert book.reserve_together(anew, renewed, goes_first=True) is not None
        assert book.ahead_of(waiting) == [RANK]


AMOUNTS = st.one_of(
    st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 2 / 3, 1, 2]),
    st.integers(1, 3 * UNIT).map(lambda units: units / UNIT),
)
GPU_AMOUNTS = st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.6, 0.9, 1, 2, 3])
TOTALS = {"CPU": 4, "GPU": 3, "slots": 2.5}


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    options: dict[str, object] = {}
    if draw(st.booleans()):
        options["num_cpus"] = draw(AMOUNTS)
    if draw(st.booleans()):
        options["num_gpus"] = draw(GPU_AMOUNTS)
    if draw(st.booleans()):
        options["resources"] = {"slots": draw(AMOUNTS)}
    return demand(**options)


class LedgerMachine(RuleBasedStateMachine):
    """Against a model that adds up fractions of what is held."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(RealKernel(), TOTALS)
        self.alive: list[Reservation] = []
        self.waiting: list[tuple[Told, set[str]]] = []
        self.counts: dict[Told, int] = {}

    def taken(self, name: str) -> Fraction:
        return sum(
            (Fraction(dict(each.demand.units).get(name, 0), UNIT) for each in self.alive), start=Fraction(0)
        )

    def loads(self) -> dict[str, Fraction]:
        loads = dict.fromkeys(map(str, range(3)), Fraction(0))
        for each in self.alive:
            for gpu_id in each.gpu_ids:
                loads[gpu_id] += min(Fraction(1), Fraction(each.demand.gpu_units, UNIT))
        return loads

    def fits(self, wanted: Demand) -> bool:
        amounts = {name: Fraction(units, UNIT) for name, units in wanted.units}
        gpus = amounts.pop("GPU", Fraction(0))
        room = [load for load in self.loads().values() if load + min(Fraction(1), gpus) <= 1]
        return len(room) >= math.ceil(gpus) and all(
            self.taken(name) + amount <= Fraction(str(TOTALS[name])) for name, amount in amounts.items()
        )

    def is_next(self, wanted: Demand) -> bool:
        return not any(names & set(wanted.amounts) for _, names in self.waiting)

    def expect_news(self) -> None:
        for told, _ in self.waiting:
            self.counts[told] = self.counts.get(told, 0) + 1

    @rule(target=held, deployment=st.sampled_from([EMBED, RANK]), wanted=demands())
    def reserve(self, deployment: str, wanted: Demand) -> Any:
        told = Told()
        if any(Fraction(units, UNIT) > Fraction(str(TOTALS[name])) for name, units in wanted.units):
            with pytest.raises(ResourceError):
                self.ledger.reserve(deployment, wanted, told)
            return multiple()
        is_next = self.is_next(wanted)

        made = self.ledger.reserve(deployment, wanted, told)

        assert (made is not None) is (is_next and self.fits(wanted))
        if made is None:
            self.waiting.append((told, set(wanted.amounts)))
            return multiple()
        assert (made.deployment, made.demand) == (deployment, wanted)
        self.alive.append(made)
        return made

    @rule(target=held, wanted=demands(), count=st.integers(0, 6))
    def reserve_all(self, wanted: Demand, count: int) -> Any:
        before = self.ledger.statistics()
        try:
            made = self.ledger.reserve_together([Ask(EMBED, wanted, count)])
        except ResourceError:
            made = None
        if made is None:
            assert self.ledger.statistics() == before
            return multiple()
        assert len(made) == count
        self.alive += made
        return multiple(*made)

    @rule(reservation=held)
    def release(self, reservation: Reservation) -> None:
        if reservation in self.alive:
            self.alive.remove(reservation)
            self.expect_news()
        reservation.release()

    @rule(reservation=consumes(held))
    def release_twice(self, reservation: Reservation) -> None:
        self.release(reservation)
        self.release(reservation)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        if self.waiting:
            told, _ = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
            self.expect_news()
            self.ledger.forget(told)

    @invariant()
    def nothing_is_given_beyond_the_total(self) -> None:
        for name, total in TOTALS.items():
            assert self.taken(name) <= Fraction(str(total))

    @invariant()
    def the_ledger_counts_as_the_model_does(self) -> None:
        statistics = self.ledger.statistics()
        for name, total in TOTALS.items():
            taken = self.taken(name)
            assert statistics.free[name] == float(Fraction(str(total)) - taken)
            by_deployment = [each.get(name, 0) for each in statistics.reserved.values()]
            assert sum(map(Fraction, map(str, by_deployment)), start=Fraction(0)) == taken
        assert statistics.waiting == len(self.waiting)

    @invariant()
    def no_gpu_is_booked_twice(self) -> None:
        assert all(load <= 1 for load in self.loads().values())
        for each in self.alive:
            if each.demand.gpu_units >= UNIT:
                assert len(each.gpu_ids) == each.demand.gpu_units // UNIT
                assert all(
                    other is each or not set(other.gpu_ids) & set(each.gpu_ids) for other in self.alive
                )

    @invariant()
    def who_waits_is_told_of_each_release_and_each_gap_in_the_line(self) -> None:
        assert all(told.count == self.counts.get(told, 0) for told, _ in self.waiting)

    def teardown(self) -> None:
        for each in self.alive:
            each.release()
        statistics = self.ledger.statistics()
        assert all(statistics.free[name] == total for name, total in TOTALS.items())
        assert statistics.reserved == {}


TestLedgerAgainstItsModel = pytest.mark.slow(LedgerMachine.TestCase)
TestLedgerAgainstItsModel.settings = settings(stateful_step_count=30, max_examples=100)


def take(machine: Ledger, kernel: Kernel, asks: list[Ask]) -> list[Reservation]:
    """Reserve, waiting for releases as long as it takes."""
    place = Place()
    while True:
        waiter = place.waiter = kernel.waiter()
        made = machine.reserve_together(asks, place)
        if made is not None:
            return made
        waiter.wait()


class TestRaces:
    def test_two_deployments_that_race_for_the_last_slot_both_get_it_in_turn(self) -> None:
        firsts = set()

        def main(kernel: SimulatedKernel) -> None:
            machine = Ledger(kernel, {**MACHINE, "slots": 1})
            holders: list[str] = []
            order: list[str] = []
            one = demand(resources={"slots": 1})

            def work(deployment: str) -> None:
                for _ in range(2):
                    (reservation,) = take(machine, kernel, [Ask(deployment, one, 1)])
                    holders.append(deployment)
                    order.append(deployment)
                    kernel.waiter().wait(kernel.random.choice([0, 1]))
                    assert holders == [deployment]
                    holders.clear()
                    reservation.release()
                    reservation.release()

            threads = [kernel.spawn(name, lambda name=name: work(name)) for name in (EMBED, RANK)]  # type: ignore[misc]
            for thread in threads:
                thread.join()

            assert sorted(order) == [EMBED, EMBED, RANK, RANK]
            assert machine.statistics().free == machine.statistics().total
            assert machine.statistics().waiting == 0
            firsts.add(order[0])

        explore(main, 200)

        assert firsts == {EMBED, RANK}

    def test_a_waiter_is_told_however_the_release_falls_beside_its_asking(self) -> None:
        ends = set()

        def main(kernel: SimulatedKernel) -> None:
            machine = Ledger(kernel, {**MACHINE, "slots": 1})
            one = demand(resources={"slots": 1})
            first = reserved(machine, one, RANK)
            releaser = kernel.spawn("release", first.release)
            waiter = kernel.waiter()
            place = waiter

            second = machine.reserve(EMBED, one, place)
            ends.add(second is None)
            if second is None:
                waiter.wait()
                second = machine.reserve(EMBED, one, place)

            assert second is not None
            releaser.join()

        explore(main, 200)

        assert ends == {False, True}

    def test_apps_that_ask_for_all_they_need_at_once_do_not_lock_each_other_out(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            machine = Ledger(kernel, {**MACHINE, "a": 1, "b": 1})
            both = [
                [
                    Ask(f"{app}/One", demand(resources={"a": 1}), 1),
                    Ask(f"{app}/Two", demand(resources={"b": 1}), 1),
                ]
                for app in ("shop", "bank")
            ]

            def work(asks: list[Ask]) -> None:
                for reservation in take(machine, kernel, asks):
                    kernel.waiter().wait(1)
                    reservation.release()

            threads = [
                kernel.spawn(asks[0].deployment, lambda asks=asks: work(asks))  # type: ignore[misc]
                for asks in (both[0], both[1][::-1])
            ]
            for thread in threads:
                thread.join()

        explore(main, 100)

    def test_everybody_in_the_line_gets_a_turn_however_they_come_and_give_up(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            book = Ledger(kernel, {**MACHINE, "slots": 3})

            def work(number: int) -> None:
                for _ in range(3):
                    wanted = kernel.random.choice([1, 2, 3])
                    asks = [Ask(f"app/{number}", demand(resources={"slots": wanted}), 1)]
                    if kernel.random.random() < 0.3:
                        told = Told()
                        made = book.reserve_together(asks, told)
                        kernel.waiter().wait(kernel.random.choice([0, 1]))
                        book.forget(told)
                    else:
                        made = take(book, kernel, asks)
                        kernel.waiter().wait(kernel.random.choice([0, 1]))
                    for each in made or ():
                        each.release()

            threads = [kernel.spawn(str(number), lambda number=number: work(number)) for number in range(4)]  # type: ignore[misc]
            for thread in threads:
                thread.join()

            assert book.statistics().waiting == 0
            assert book.statistics().free == book.statistics().total

        explore(main, 200)

    def test_one_reservation_that_many_release_comes_back_once(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            machine = Ledger(kernel, MACHINE)
            reservation = reserved(machine, demand(num_cpus=3))
            threads = [kernel.spawn(f"release {number}", reservation.release) for number in range(3)]
            for thread in threads:
                thread.join()

            assert machine.statistics().free["CPU"] == 4

        explore(main, 50)

    def test_two_that_look_for_gpus_at_once_agree_on_what_there_is(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[int] = []

        def main(kernel: SimulatedKernel) -> None:
            found = [("0",), ("1",)]

            def look() -> tuple[str, ...]:
                kernel.waiter().wait(kernel.random.choice([0, 1]))
                return found.pop()

            monkeypatch.setattr(this_machine, "installed_gpus", look)
            machine = Ledger(kernel)
            ids: list[tuple[str, ...]] = []

            def work(deployment: str) -> None:
                (reservation,) = take(machine, kernel, [Ask(deployment, demand(num_gpus=1), 1)])
                ids.append(reservation.gpu_ids)
                reservation.release()

            threads = [kernel.spawn(name, lambda name=name: work(name)) for name in (EMBED, RANK)]  # type: ignore[misc]
            for thread in threads:
                thread.join()

            assert ids[0] == ids[1]
            assert machine.statistics().total["GPU"] == 1
            looks.append(2 - len(found))

        explore(main, 60)

        assert set(looks) == {1, 2}
