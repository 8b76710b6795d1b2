"""What does a trivial call cost beside a deployment that holds the GIL?"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import call_latency, mixes, peers
from benchmarks.chaining_overhead import latency_beside
from benchmarks.measure import Case, latency

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Run

QUESTION = "What does a trivial call cost beside a deployment that holds the GIL?"

CALL = "one call"
INGRESS = "async ingress over two stages"
QUIET, BUSY = "quiet", "beside pure-Python work"

NEIGHBOUR = mixes.Mix("hog", "20 ms of pure-Python CPU, again and again", lambda _: ("compute", 0.02))


def measure(run: Run) -> None:
    mixes.calibrate()
    quiet_s = run.effort.seconds
    busy_s = run.effort.pick(smoke=0.005, quick=0.15, full=0.5)
    contenders = [peers.OURS, peers.HANDED_OFF, peers.DIRECT, *peers.THREADS, peers.ASYNCIO]
    with contextlib.ExitStack() as stack:
        calls: dict[tuple[str, str], Callable[[], object]] = {
            (CALL, name): partial(connect().call, 1)
            for name, connect in peers.open_peers(stack, contenders, call_latency.same, 1, run).items()
        }
        calls |= {(INGRESS, name): call for name, call in call_latency.open_ingresses(stack).items()}
        neighbours = {
            peer.name: stack.enter_context(mixes.open_mix(peer, NEIGHBOUR, 1, mixes.Ledger()))()
            for peer in peers.present(contenders, run)
        }
        cases = [
            Case(subject, name, partial(latency, call, quiet_s), QUIET)
            for (subject, name), call in calls.items()
        ]
        cases += [
            Case(subject, name, partial(latency_beside, neighbours[name], NEIGHBOUR, call, busy_s), BUSY)
            for (subject, name), call in calls.items()
        ]
        run.note(
            f"the neighbour does {NEIGHBOUR.says}, on a worker of the same kind; beside a direct call, on a thread"
        )
        run.rounds(cases)
