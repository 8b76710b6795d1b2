"""What does a further hop of a chain cost, alone and beside a busy neighbour?"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import threadserve as serve
from benchmarks import peers
from benchmarks.measure import Case, Key, latency

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.measure import Run

QUESTION = "What does a further hop of a chain cost, alone and beside a busy neighbour?"

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
HOP = "each further hop"


def increment(value: int) -> int:
    return value + 1


async def increment_async(value: int) -> int:
    return value + 1


def subject(depth: int) -> str:
    return f"chain of {depth}"


class Stages:
    """Knows the handles of all the others."""

    def __init__(self, stages: list[Any]) -> None:
        self.stages = stages

    def handles(self) -> list[Any]:
        return self.stages


@contextlib.contextmanager
def deployed(work: Callable[[int], Any], depth: int, options: dict[str, Any]) -> Iterator[list[Any]]:
    """Run so many deployments and yield their handles."""
    stages = [serve.deployment(work, name=f"stage {n}", **options).bind() for n in range(depth)]
    with serve.running(serve.deployment(Stages).bind(stages)) as handle:
        yield handle.handles.remote().result()


def chained(handles: list[Any]) -> object:
    """Give each stage the response of the one before, and wait for the last."""
    response: Any = 0
    for handle in handles:
        response = handle.remote(response)
    return response.result()


def in_turn(client: peers.Client, depth: int) -> object:
    """Call one after the other, as one has to where a response is no argument."""
    value = 0
    for _ in range(depth):
        value = client.call(value)
    return value


def measure(run: Run) -> None:
    with contextlib.ExitStack() as stack:
        run.rounds(list(idle_cases(run, stack)))


def idle_cases(run: Run, stack: contextlib.ExitStack) -> Iterator[Case]:
    seconds = run.effort.seconds
    depths = run.effort.pick(smoke=(1, 4, 64), quick=DEPTHS, full=DEPTHS)
    kinds: list[tuple[str, str, Callable[[int], Any], dict[str, Any]]] = [
        ("def", "threadserve", increment, {}),
        ("def", "threadserve, inline=False", increment, peers.NO_INLINE),
        ("async def", "threadserve", increment_async, {}),
        ("async def", "threadserve, inline=False", increment_async, peers.NO_INLINE),
    ]
    for table, name, work, options in kinds:
        handles = stack.enter_context(deployed(work, max(depths), options))
        for depth in depths:
            yield Case(
                subject(depth), name, partial(latency, partial(chained, handles[:depth]), seconds), table
            )
        per_hop(run, table, name, depths)
    rivals = [peers.DIRECT, *peers.THREADS]
    for table, others in (("def", rivals), ("async def", [peers.ASYNCIO])):
        for name, connect in peers.open_peers(stack, others, increment, 1, run.note).items():
            client = connect()
            for depth in depths:
                yield Case(
                    subject(depth), name, partial(latency, partial(in_turn, client, depth), seconds), table
                )
            per_hop(run, table, name, depths)


def per_hop(run: Run, table: str, name: str, depths: tuple[int, ...]) -> None:
    low, high = min(depths), max(depths)
    ends = [Key(table, subject(depth), name, "p50") for depth in (low, high)]
    run.derive(Key(table, HOP, name, "p50"), ends, lambda one, many: (many - one) / (high - low))
