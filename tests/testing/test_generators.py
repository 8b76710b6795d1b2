"""What the strategies draw is what they promise: apps that answer as they say, options and faults that are accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import threadserve as serve
from threadserve.testing import faults, generators

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threadserve.testing.generators import DrawnApp

SOME = settings(max_examples=40)


class Shop:
    def __call__(self, count: int) -> int:
        return count

    def buy(self, item: str, count: int, note: str = "") -> str:
        return f"{count} {item}"

    def offers(self, limit: bool) -> Iterator[str]:
        yield str(limit)

    async def owners(self) -> list[str]:
        return []

    def check_health(self) -> None: ...

    def _secret(self) -> None: ...


SHOP: Any = serve.deployment(Shop).bind()


@SOME
@given(generators.schedules(switches=3, reach=5))
def test_a_schedule_is_small_integers_mostly_zeros(schedule: list[int]) -> None:
    assert set(schedule) <= {0, 1, 2, 3}
    assert sum(map(bool, schedule)) <= 3
    assert len(schedule) <= 3 * 6


def test_schedules_shrink_to_the_one_switch_that_matters() -> None:
    assert find(generators.schedules(), lambda schedule: 2 in schedule[5:]) == [0, 0, 0, 0, 0, 2]


@pytest.mark.slow
@SOME
@given(generators.applications(), st.integers(1, 50))
def test_an_app_answers_what_it_says(drawn: DrawnApp, number: int) -> None:
    with serve.running(drawn.app) as handle:
        assert handle.remote(number).result() == drawn.expected(number)
        assert sum(handle.options(stream=True).items.remote(number)) == drawn.expected(number)


def children_of(drawn: DrawnApp) -> list[int]:
    return [child for node in drawn.nodes for child in node.children]


@pytest.mark.parametrize(
    "is_so",
    [
        lambda drawn: len(drawn.nodes[-1].children) == 3,
        lambda drawn: len(set(children_of(drawn))) < len(children_of(drawn)),
        lambda drawn: {"async", "stream", "chain"} <= {node.kind for node in drawn.nodes},
        lambda drawn: any(node.options.get("num_replicas", 1) > 1 for node in drawn.nodes),
    ],
    ids=["fan-out", "shared", "mixed", "replicas"],
)
def test_every_kind_of_graph_is_drawn(is_so: Any) -> None:
    assert is_so(
        find(generators.applications(), is_so, settings=settings(phases=[Phase.generate], max_examples=2000))
    )


@SOME
@given(generators.deployment_options(queued=4))
def test_options_are_accepted(options: Any) -> None:
    assert serve.deployment(Shop).options(**options).num_replicas == options.get("num_replicas", 1)


@SOME
@given(generators.faults(SHOP))
def test_faults_fit_the_app_and_their_repr_makes_them_again(drawn: list[faults.Fault]) -> None:
    faults.inject(SHOP, *drawn)

    names = {**vars(faults), "inf": float("inf")}
    again = eval(repr([fault for fault in drawn if not isinstance(fault, faults.Failure)]), names)
    assert again == [fault for fault in drawn if not isinstance(fault, faults.Failure)]


@SOME
@given(generators.call_histories(SHOP))
def test_a_history_is_drawn_from_annotations_and_can_be_played(history: Any) -> None:
    with serve.running(SHOP) as handle:
        for call in history:
            answer = call.on(handle)
            match call.method:
                case "__call__":
                    assert answer.result() == call.args[0]
                case "buy":
                    assert answer.result() == f"{call.args[1]} {call.args[0]}"
                case "offers":
                    assert list(answer) == [str(call.args[0])]
                case other:
                    assert other == "owners"
                    assert answer.result() == []


def test_the_handle_of_a_running_app_will_do() -> None:
    with serve.running(SHOP) as handle:
        methods = find(
            generators.call_histories(handle), lambda history: len({call.method for call in history}) == 4
        )
    assert {call.method for call in methods} == {"__call__", "buy", "offers", "owners"}


def test_arguments_can_be_given_and_methods_chosen() -> None:
    histories = generators.call_histories(
        SHOP, methods=["buy"], arguments={"buy": st.tuples(st.just("tea"), st.just(2))}
    )

    (call,) = find(histories, bool)

    assert (call.method, call.args) == ("buy", ("tea", 2))


def test_a_parameter_without_a_type_asks_for_arguments() -> None:
    def untyped(anything):  # type: ignore[no-untyped-def]
        return anything

    with pytest.raises(serve.ConfigError, match=r"untyped\.__call__ does not say of what type 'anything' is"):
        generators.call_histories(serve.deployment(untyped).bind())
