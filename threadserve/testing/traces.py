"""What happened in a simulated run, as plain data, as text, and as a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from threadserve.call.request import ANSWERED, CURRENT, Request
from threadserve.replica.target import Target
from threadserve.testing.stand_ins import here
from threadserve.testing.turns import operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from threadserve.concurrency.outcome import Outcome
    from threadserve.testing.turns import Turns

__all__ = ["HOOKS", "Records", "Step", "Trace"]

_DETAIL = re.compile(
    r"(takes|releases|waits for|has|sets|rings|cancels|does not get) (lock|waiter|loop|alarm|the next alarm)\b"
)
_OF_REQUESTS = ("calls", "begins", "answers", "fails with")


class Step(NamedTuple):
    """One thing that one thread did. Holds names and numbers that count, never ids or addresses."""

    step: int
    """Counts from 0."""
    time: float
    """The virtual time, in seconds since the simulation began."""
    thread: str
    """Who did it: "main", "default/Model#0 worker 1", ..."""
    operation: str
    """What: "calls", "begins", "answers", "fails with ValueError", "takes lock 3", "sets waiter 7", "ends", ..."""
    deployment: str
    """Whose request it was about, as "app/deployment"; empty for what is about no request."""
    method: str
    """Which method; empty for what is about no request."""
    request: int | None
    """Which request, in the order in which they were made, from 1; None for what is about no request."""
    caller: int | None
    """For "calls": on behalf of which request; None for plain code."""
    replica: str = ""
    """For "begins": in which replica, as "app/deployment#0"; whoever waits for a call may lend it his thread."""

    @property
    def is_of_request(self) -> bool:
        """Whether it is a stage of a request: "calls", "begins", "answers" or "fails with ..."."""
        return self.request is not None and self.operation.startswith(_OF_REQUESTS)

    @property
    def is_detail(self) -> bool:
        """Whether it is about a lock, waiter or alarm of the runtime's own."""
        return _DETAIL.match(self.operation) is not None

    def __str__(self) -> str:
        whose = f"  [{self.request}: {self.deployment}.{self.method}]" if self.request is not None else ""
        return f"{self.step:>5} {self.time:>9.3f}s  {self.thread}: {self.operation}{whose}"


class Trace(Sequence[Step]):
    """The steps of a run, in order. Same seed, same trace."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = tuple(steps)

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} steps>"

    def __eq__(self, other: object) -> bool:
        return self._steps == other._steps if isinstance(other, Trace) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> Trace: ...
    def __getitem__(self, index: int | slice) -> Step | Trace:
        return Trace(self._steps[index]) if isinstance(index, slice) else self._steps[index]

    def requests(self) -> Trace:
        """Return the steps that are stages of requests: calls, begins, answers, fails."""
        return Trace(step for step in self._steps if step.is_of_request)

    def text(self, *, last: int | None = None, details: bool = True) -> str:
        """Return a line for each step.

        Args:
            last: So many lines at most, those of the end.
            details: Also those about locks, waiters and alarms of the runtime's own.
        """
        steps = [step for step in self._steps if details or not step.is_detail]
        return "\n".join(map(str, steps if last is None else steps[max(0, len(steps) - last) :]))

    def mermaid(self) -> str:
        """Return a Mermaid sequence diagram of the requests: https://mermaid.js.org."""
        stages = [step for step in self._steps if step.is_of_request]
        deployments = {step.request: step.deployment for step in stages}
        callers = {
            step.request: deployments.get(step.caller, "main") for step in stages if step.operation == "calls"
        }
        names = {
            name: f"p{index}" for index, name in enumerate(["main", *dict.fromkeys(deployments.values())])
        }
        lines = ["sequenceDiagram"]
        lines += [f"    participant {alias} as {name}" for name, alias in names.items()]
        for step in stages:
            callee, caller = names[step.deployment], names[callers.get(step.request, "main")]
            if step.operation == "calls":
                lines.append(f"    {caller}->>{callee}: {step.method} ({step.request})")
            elif step.operation == "begins":
                lines.append(f"    Note over {callee}: {step.method} ({step.request}) begins")
            else:
                arrow = "-->>" if step.operation == "answers" else "--x"
                lines.append(f"    {callee}{arrow}{caller}: {step.operation} ({step.request})")
        return "\n".join(lines)


class Records:
    """The requests of a run, numbered as they are made."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def add(self, request: Request) -> None:
        """Note that a request was made."""
        self.note(request, "calls", _Made(request.router.name, request.method, id(CURRENT.get())))

    def note(self, request: Request, verb: str, what: object) -> None:
        """Note a stage of a request."""
        turns = self._turns
        if turns.current is not None and not turns.is_ending:
            turns.entries.append((turns.current.name, verb, what, turns.now, id(request)))

    def trace(self) -> Trace:
        """Return what has happened so far."""
        return Trace(self._steps())

    def _steps(self) -> Iterator[Step]:
        made: dict[int, tuple[int, _Made]] = {}  # by identity, which is good until the next one is made
        count = 0
        for number, (thread, verb, what, time, identity) in enumerate(self._turns.entries):
            caller = None
            if isinstance(what, _Made):
                caller = made[what.caller][0] if what.caller in made else None
                count += 1
                made[identity] = (count, what)
            if identity in made:
                request, facts = made[identity]
                yield Step(
                    number,
                    time,
                    thread,
                    operation(verb, what),
                    facts.deployment,
                    facts.method,
                    request,
                    caller,
                    what.replica if isinstance(what, _Begun) else "",
                )
            else:
                yield Step(number, time, thread, operation(verb, what), "", "", None, None)


class _Made(NamedTuple):
    """What is noted of a call."""

    deployment: str
    method: str
    caller: int  # the identity of the request on whose behalf it was made

    @property
    def label(self) -> str:
        return ""


class _Begun(NamedTuple):
    """What is noted of a body."""

    replica: str

    @property
    def label(self) -> str:
        return ""


# ---- how the records hear of requests


def _around_init(init: Callable[..., None]) -> Callable[..., None]:
    def made(self: Request, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        kernel = here()
        if kernel is not None and kernel.records is not None:
            kernel.records.add(self)

    return made


def _around_settle(settle: Callable[..., Any]) -> Callable[..., Any]:
    def settled(self: Request, outcome: Outcome) -> Any:
        was_answered = self.state is ANSWERED
        news = settle(self, outcome)
        kernel = here()
        if not was_answered and kernel is not None and kernel.records is not None:
            error = outcome.exception
            verb, what = ("answers", "") if error is None else ("fails with", type(error).__name__)
            kernel.records.note(self, verb, what)
        return news

    return settled


def _around_lookup(lookup: Callable[..., Any]) -> Callable[..., Any]:
    def begun(self: Target, request: Request) -> Any:
        kernel = here()
        if kernel is not None and kernel.records is not None:
            replica = request.replica
            rank = "" if replica is None else f"#{replica.rank.rank}"
            kernel.records.note(request, "begins", _Begun(f"{request.router.name}{rank}"))
        return lookup(self, request)

    return begun


HOOKS: list[tuple[Any, str, Callable[[Any], Any]]] = [
    (Request, "__init__", _around_init),
    (Request, "settle", _around_settle),
    (Target, "lookup", _around_lookup),
]
"""What is put around the runtime's own while there is a simulation, so that stages of requests are noted."""
