"""Waits that begin in an interpreter replica and can never end are found like all others, and no other wait is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.doubles import wait_until
from tests.replica.bodies import Everything
from threadserve.concurrency.interpreters import is_offered

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not is_offered(), reason="replica_type='interpreter' exists from Python 3.14 on"
)

GIVE_UP_S = 20
WHERE = re.compile(r"bodies\.py:\d+")


@pytest.fixture(params=["thread", "interpreter"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """Two deployments of one slot each: one in an interpreter, and one of either kind."""
    options: Any = {"max_ongoing_requests": 1}
    other = serve.deployment(Everything, name="Other", replica_type=request.param, **options)
    outer = serve.deployment(Everything, name="Outer", replica_type="interpreter", **options)
    handle = serve.run(outer.bind(1, other=other.bind(10)))
    yield handle, serve.get_deployment_handle("Other", "default")
    serve.shutdown()


def explained(response: Any) -> str:
    """Wait for a DeadlockError, and return what it says."""
    with pytest.raises(serve.DeadlockError) as caught:
        response.result(timeout_s=GIVE_UP_S)
    return str(caught.value)


class TestAWaitThatCannotEnd:
    @pytest.mark.parametrize("method", ["call", "call_later"])
    def test_for_its_own_slot_is_explained_with_its_line(self, pair: Any, method: str) -> None:
        outer, _ = pair

        said = explained(outer.options(method_name=method).remote(outer, "__call__", 1))

        assert "default/Outer.__call__" in said
        assert WHERE.search(said)
        assert outer.remote(1).result(timeout_s=GIVE_UP_S) == 2

    @pytest.mark.parametrize("method", ["call", "call_later"])
    @pytest.mark.parametrize("begin", [0, 1])
    def test_in_a_circle_through_both_is_explained(self, pair: Any, method: str, begin: int) -> None:
        first, second = pair[begin], pair[1 - begin]

        said = explained(first.options(method_name=method).remote(second, method, first, "__call__", 1))

        assert "default/Outer" in said
        assert "default/Other" in said
        assert [each.remote(1).result(timeout_s=GIVE_UP_S) for each in pair] == [2, 11]

    def test_for_an_argument_is_explained(self, pair: Any) -> None:
        outer, _ = pair

        assert WHERE.search(explained(outer.call_in_a_chain.remote(outer)))

    def test_for_a_stream_is_explained(self, pair: Any) -> None:
        outer, other = pair

        assert explained(outer.read.remote(other, "items_and_a_call", outer, 3))
        assert explained(other.read.remote(outer, "items_and_a_call", other, 3))
        assert [each.remote(1).result(timeout_s=GIVE_UP_S) for each in pair] == [2, 11]

    def test_can_be_caught_where_it_was_begun(self, pair: Any) -> None:
        outer, _ = pair

        assert "waits for what can never come" in outer.call_and_catch.remote(outer).result(
            timeout_s=GIVE_UP_S
        )

    def test_does_not_keep_others_from_their_answers(self, pair: Any) -> None:
        outer, _ = pair
        stuck = outer.call.remote(outer, "__call__", 1)
        queued = [outer.remote(number) for number in range(3)]

        assert explained(stuck)
        assert [response.result(timeout_s=GIVE_UP_S) for response in queued] == [1, 2, 3]


class TestAWaitThatCanEnd:
    def test_is_left_alone_however_long_it_lasts(self, pair: Any) -> None:
        outer, other = pair

        assert outer.call.remote(other, "hold", 0.5).result(timeout_s=GIVE_UP_S) == "held"
        assert outer.call_later.remote(other, "hold", 0.5).result(timeout_s=GIVE_UP_S) == "held"

    def test_by_a_timer_of_its_loop_ends_by_that(self, pair: Any) -> None:
        outer, _ = pair

        with pytest.raises(TimeoutError) as caught:
            outer.call_for.remote(0.5, outer, "__call__", 1).result(timeout_s=GIVE_UP_S)
        assert not isinstance(caught.value, serve.RequestTimeoutError)

    def test_by_its_deadline_ends_by_that(self, pair: Any) -> None:
        outer, _ = pair

        with pytest.raises(serve.RequestTimeoutError):
            outer.options(timeout_s=0.5).call.remote(outer, "__call__", 1).result(timeout_s=GIVE_UP_S)
        wait_until(lambda: outer._router.statistics().ongoing == 0)

    def test_by_a_cancellation_ends_by_that(self, pair: Any) -> None:
        outer, other = pair
        response = outer.call.remote(other, "until_cancelled")
        with pytest.raises(TimeoutError):
            response.result(timeout_s=0.3)
        response.cancel()

        with pytest.raises(serve.RequestCancelledError):
            response.result(timeout_s=GIVE_UP_S)
        wait_until(lambda: outer._router.statistics().ongoing == 0)

    def test_is_seen_anew_after_one_that_has_ended(self, pair: Any) -> None:
        outer, other = pair
        first = outer.call.remote(other, "hold", 0.3)
        assert first.result(timeout_s=GIVE_UP_S) == "held"

        assert explained(outer.call.remote(outer, "__call__", 1))
