"""What does it cost to call many and wait for all?"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import peers
from benchmarks.measure import Case, latency

if TYPE_CHECKING:
    from benchmarks.measure import Run

QUESTION = "What does it cost to call 4, 16 and 64 at once and wait for all?"

WIDTHS = (4, 16, 64)
SLOTS = 5


def same(value: int) -> int:
    return value


def subject(width: int) -> str:
    return f"{width} calls and back"


def fan_out(client: peers.Client, width: int) -> None:
    submit, result = client
    for answer in [submit(value) for value in range(width)]:
        result(answer)


def measure(run: Run) -> None:
    with contextlib.ExitStack() as stack:
        opened = {
            peer.name: connect
            for peer in peers.ALL
            for connect in peers.open_peers(stack, [peer], same, 1 if peer.is_serve else SLOTS, run).values()
        }
        run.note(
            f"one replica, which has {SLOTS} slots by default; the others have {SLOTS} workers, Pykka actors by turns"
        )
        run.rounds(
            [
                Case(
                    subject(width),
                    name,
                    partial(latency, partial(fan_out, connect(), width), run.effort.seconds),
                )
                for width in WIDTHS
                for name, connect in opened.items()
            ]
        )
