"""``check_pipeline``: one line to property-test an app against what its functions say when they are called by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import Phase, given, note
from hypothesis import settings as Settings  # noqa: N812 - it is a class, whatever its name
from hypothesis import strategies as st

from threadserve.app.application import Application, Binding, rebound
from threadserve.concurrency.outcome import Outcome, capture
from threadserve.testing.choices import Replay
from threadserve.testing.doubles import Call
from threadserve.testing.generators import names_in, schedules
from threadserve.testing.simulator import simulate, trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.testing.simulator import Grain

__all__ = ["check_pipeline"]

_UNEXPLAINED = [
    phase for phase in Phase if phase is not Phase.explain
]  # which takes longer than all the others


def check_pipeline(  # noqa: PLR0913 - each is named
    app: Application[Any],
    *,
    inputs: st.SearchStrategy[Any],
    against: Callable[[Any], Any],
    method: str = "__call__",
    stream: bool = False,
    at_most: int = 5,
    replicas: int = 2,
    grain: Grain = "operation",
    settings: Settings | None = None,
) -> None:
    """Check that an app, called with several inputs at once, answers each as `against` does, under drawn schedules. Blocks.

    Hypothesis draws the inputs, how many replicas each deployment has, and the schedule of the simulated run; what fails
    is shrunk, all three together, and printed with the story of its calls. Exceptions are answers: they are compared by
    type and arguments. For pipelines whose answers depend on their input alone.

    Args:
        app: What ``.bind()`` returned.
        inputs: The one argument of each call.
        against: The reference: gets a copy of the input, returns (or raises) what is expected.
        method: Which method of the ingress.
        stream: Call it with ``stream=True`` and compare the lists of items.
        at_most: So many calls at once.
        replicas: So many replicas of each deployment, at most.
        grain: As of ``simulate``.
        settings: Hypothesis'; the current profile's without a deadline and explanations if not given.

    Raises:
        AssertionError: An answer differs.
    """
    counts = st.fixed_dictionaries({name: st.integers(1, replicas) for name in names_in(app)})

    def check(batch: list[Any], replicas: dict[str, int], schedule: list[int]) -> None:
        expected = [capture(_by_hand, against, copy.deepcopy(each), stream) for each in batch]
        with simulate(_scaled(app, replicas), strategy=Replay(schedule), grain=grain) as handle:
            answers = [Call(method, (each,), is_stream=stream).on(handle) for each in batch]
            outcomes = [capture(list if stream else _result, answer) for answer in answers]
        for each, outcome, wanted in zip(batch, outcomes, expected, strict=True):
            if not _agree(outcome, wanted):
                note(trace().requests().text())
                raise AssertionError(f"{method}({each!r}): {_shown(outcome)}, by hand {_shown(wanted)}")

    test = given(batch=st.lists(inputs, min_size=1, max_size=at_most), replicas=counts, schedule=schedules())(
        check
    )
    (settings or Settings(deadline=None, phases=_UNEXPLAINED))(test)()


def _by_hand(against: Callable[[Any], Any], value: Any, stream: bool) -> Any:
    result = against(value)
    return list(result) if stream else result


def _result(response: Any) -> Any:
    return response.result()


def _scaled(app: Application[Any], replicas: dict[str, int]) -> Application[Any]:
    def change(binding: Binding) -> Binding:
        return replace(binding, config=binding.config.changed({"num_replicas": replicas[binding.name]}))

    return rebound(app, change)


def _agree(one: Outcome, other: Outcome) -> bool:
    if one.exception is None and other.exception is None:
        return bool(one.unwrap() == other.unwrap())
    return type(one.exception) is type(other.exception) and getattr(one.exception, "args", ()) == getattr(
        other.exception, "args", ()
    )


def _shown(outcome: Outcome) -> str:
    return (
        f"raises {outcome.exception!r}" if outcome.exception is not None else f"returns {outcome.unwrap()!r}"
    )
