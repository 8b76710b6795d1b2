"""What happened in a simulated run, as plain data, as text, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

if TYPE_CHECKING:
    from threadserve.testing.turns import Entry

__all__ = ["Step", "Trace", "told"]


class Step(NamedTuple):
    """One thing that one thread did. Holds names and numbers that count, never ids or addresses."""

    step: int
    """Counts from 0."""
    time: float
    """The virtual time, in seconds since the simulation began."""
    thread: str
    """Who did it: "main", "default/Model#0 worker 1", ..."""
    operation: str
    """What: "calls", "begins", "answers", "fails", "takes lock 3", "sets waiter 7", "ends", "line model.py:12", ..."""
    deployment: str
    """Whose request it was about, as "app/deployment"; empty for what is about no request."""
    method: str
    """Which method; empty for what is about no request."""
    request: int | None
    """Which request, in the order in which they were made, from 1; None for what is about no request."""


class Trace(Sequence[Step]):
    """The steps of a run, in order. Same seed, same trace."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> Trace: ...
    def __getitem__(self, index: int | slice) -> Step | Trace:
        raise NotImplementedError

    def requests(self) -> Trace:
        """Return the steps that are about requests: calls, begins, answers, fails."""
        raise NotImplementedError

    def text(self, *, last: int | None = None) -> str:
        """Return a line for each step, of the `last` ones only if a number is given."""
        raise NotImplementedError

    def mermaid(self) -> str:
        """Return a Mermaid sequence diagram of the requests."""
        raise NotImplementedError


def told(entry: Entry) -> str:
    """Return an entry of the kernel's as a line."""
    thread, verb, what, _, _ = entry
    return f"{thread}: {operation(verb, what)}"


def operation(verb: str, what: object) -> str:
    """Say what was done to what."""
    return f"{verb} {getattr(what, 'label', what)}".strip()
