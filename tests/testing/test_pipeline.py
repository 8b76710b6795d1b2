"""``check_pipeline``: an app against what its functions say when they are called by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st

import threadserve as serve
from threadserve.testing.pipeline import check_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

FEW = settings(max_examples=60, deadline=None, database=None, phases=[Phase.generate, Phase.shrink])
MANY = settings(FEW, max_examples=1000)


class Double:
    def __call__(self, number: int) -> int:
        if number == 13:
            raise ValueError("unlucky", number)
        return 2 * number

    def count(self, number: int) -> Iterator[int]:
        yield from range(number)


class Front:
    def __init__(self, double: Any) -> None:
        self.double = double

    def __call__(self, number: int) -> int:
        return self.double.remote(number).result() + 1  # type: ignore[no-any-return]

    def count(self, number: int) -> Iterator[int]:
        yield from self.double.options(stream=True).count.remote(number)


class Confused(Front):
    """Keeps the number in the instance while it waits: with two calls at once, one answers for the other."""

    def __call__(self, number: int) -> int:
        self.number = number
        self.double.remote(number).result()
        return 2 * self.number + 1


def app(front: type[Front] = Front, **options: Any) -> Any:
    return serve.deployment(front).options(**options).bind(serve.deployment(Double).bind())


def by_hand(number: int) -> int:
    if number == 13:
        raise ValueError("unlucky", number)
    return 2 * number + 1


def test_a_pipeline_that_agrees_passes_exceptions_included() -> None:
    check_pipeline(app(), inputs=st.integers(10, 15), against=by_hand, settings=FEW)


def test_streams_are_compared_item_by_item() -> None:
    check_pipeline(app(), inputs=st.integers(0, 5), against=range, method="count", stream=True, settings=FEW)

    with pytest.raises(AssertionError, match=r"count\(0\): returns \[\], by hand returns \[0\]"):
        check_pipeline(
            app(), inputs=st.just(0), against=lambda n: [n], method="count", stream=True, settings=FEW
        )


def test_a_wrong_answer_is_shrunk_to_the_smallest_input() -> None:
    with pytest.raises(AssertionError, match=r"__call__\(7\): returns 15, by hand returns 0"):
        check_pipeline(
            app(), inputs=st.integers(0, 99), against=lambda n: 0 if n > 6 else 2 * n + 1, settings=FEW
        )


def test_an_exception_of_another_kind_is_a_wrong_answer() -> None:
    with pytest.raises(AssertionError, match=r"raises ValueError.*, by hand raises KeyError"):
        check_pipeline(app(), inputs=st.just(13), against={}.__getitem__, settings=FEW)


@pytest.mark.slow
def test_a_race_is_found_shrunk_to_two_calls_and_told() -> None:
    with pytest.raises(AssertionError, match="by hand returns") as caught:
        check_pipeline(
            app(Confused, max_ongoing_requests=2),
            inputs=st.integers(0, 5),
            against=by_hand,
            settings=MANY,
        )

    notes = "\n".join(caught.value.__notes__)
    assert "batch=[0, 1]" in notes or "batch=[1, 0]" in notes
    assert "replicas={'Double': 1, 'Confused': 1}" in notes
    assert "begins  [2: default/Confused.__call__]" in notes


def test_one_call_at_a_time_has_no_race() -> None:
    check_pipeline(
        app(Confused, max_ongoing_requests=1), inputs=st.integers(0, 5), against=by_hand, settings=FEW
    )


def test_the_reference_gets_an_input_of_its_own() -> None:
    class Greedy:
        def __call__(self, numbers: list[int]) -> int:
            return len(numbers)

    def reference(numbers: list[int]) -> int:
        numbers.append(0)
        return len(numbers) - 1

    check_pipeline(
        serve.deployment(Greedy).bind(), inputs=st.lists(st.integers()), against=reference, settings=FEW
    )
