"""How many calls a second are made and answered?"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import peers
from benchmarks.load import closed_loop, together
from benchmarks.measure import Case

if TYPE_CHECKING:
    from benchmarks.measure import Run

QUESTION = "How many calls a second are made and answered?"

MANY = 10_000
FEW = 100


def same(value: int) -> int:
    return value


def gathered(callers: int) -> str:
    return f"submit {MANY:,}, then gather; {callers} caller{'s' * (callers > 1)}"


def waited(callers: int) -> str:
    return f"call and wait; {callers} caller{'s' * (callers > 1)}"


def gather(connect: peers.Connect, callers: int, count: int) -> dict[str, float]:
    """Have each caller submit so many calls and then collect the results."""
    clients = [connect() for _ in range(callers)]

    def caller(number: int) -> None:
        submit, result = clients[number]
        for answer in [submit(value) for value in range(count)]:
            result(answer)

    return {"rate": callers * count / together(callers, caller)}


def wait(connect: peers.Connect, callers: int, seconds: float) -> dict[str, float]:
    clients = [connect() for _ in range(callers)]
    rate, _ = closed_loop(callers, lambda number: clients[number % callers].call(number), seconds)
    return {"rate": rate}


def measure(run: Run) -> None:
    # As many when it is quick, too: how much the collector takes depends on it.
    count = run.effort.pick(smoke=100, quick=MANY, full=MANY)
    if count != MANY:
        run.note(f"{run.effort.name}: {count:,} calls instead of {MANY:,}")
    with contextlib.ExitStack() as stack:
        opened = peers.open_peers(stack, peers.ALL, same, 1, run)
        if run.app:
            opened[run.app.name] = stack.enter_context(run.app.open(same, 1))
        slow = {peer.name for peer in peers.ALL if peer.is_slow} | ({run.app.name} if run.app else set())
        cases = [
            Case(
                gathered(callers),
                name,
                partial(gather, connect, callers, FEW // callers if name in slow else count),
            )
            for callers in (1, 8)
            for name, connect in opened.items()
        ]
        cases += [
            Case(waited(callers), name, partial(wait, connect, callers, run.effort.seconds))
            for callers in (1, 8)
            for name, connect in opened.items()
        ]
        if slow & opened.keys():
            run.note(
                f"of {', '.join(sorted(slow & opened.keys()))} {FEW} calls are gathered, of all callers together"
            )
        run.rounds(cases)
