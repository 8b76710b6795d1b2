"""What does a further hop of a chain cost, alone and beside a busy neighbour?"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import threadserve as serve
from benchmarks import mixes, peers
from benchmarks.measure import Case, Key, latency

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from benchmarks.measure import Run

QUESTION = "What does a further hop of a chain cost, alone and beside a busy neighbour?"

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
HOP = "each further hop"
DEF, ASYNC = "def", "async def"
RAY_DEPTH = 4
"""More deployments would be more processes than a small machine has room for."""


def increment(value: int) -> int:
    return value + 1


async def increment_async(value: int) -> int:
    return value + 1


def subject(depth: int) -> str:
    return f"chain of {depth}"


def beside(mix: mixes.Mix) -> str:
    return f"beside {mix.name}: {mix.says}"


class Stages:
    """Knows the handles of all the others."""

    def __init__(self, stages: list[Any]) -> None:
        self.stages = stages

    def handles(self) -> list[Any]:
        return self.stages


@contextlib.contextmanager
def deployed(work: Callable[[int], Any], depth: int, options: dict[str, Any]) -> Generator[list[Any]]:
    """Run so many deployments and yield what calls each."""
    stages = [serve.deployment(work, name=f"stage {n}", **options).bind() for n in range(depth)]
    with serve.running(serve.deployment(Stages).bind(stages)) as handle:
        yield [stage.remote for stage in handle.handles.remote().result()]


@contextlib.contextmanager
def deployed_by_ray(*, is_local: bool) -> Generator[list[Any]]:
    """Run a chain of four in Ray Serve, or in its local testing mode."""
    ray_serve = peers.ray_serve(is_local=is_local)
    few_cpus = {
        "num_cpus": 0.1
    }  # else a small machine is too small for five replicas, and waits for a bigger one
    one = ray_serve.deployment(increment).options(ray_actor_options=few_cpus)
    stages: list[Any] = [one.options(name=f"stage {n}").bind() for n in range(RAY_DEPTH)]
    app: Any = ray_serve.deployment(Stages).options(ray_actor_options=few_cpus).bind(stages)
    handle: Any = ray_serve.run(app, name="chain", route_prefix=None, _local_testing_mode=is_local)
    yield [stage.remote for stage in handle.handles.remote().result()]
    if not is_local:
        ray_serve.delete("chain")


def chained(submits: list[Any]) -> object:
    """Give each stage the response of the one before, and wait for the last."""
    response: Any = 0
    for submit in submits:
        response = submit(response)
    return response.result()


def in_turn(client: peers.Client, depth: int) -> object:
    """Call one after the other, as one has to where a response is no argument."""
    value = 0
    for _ in range(depth):
        value = client.call(value)
    return value


def measure(run: Run) -> None:
    mixes.calibrate()
    if run.wants("idle"):
        with contextlib.ExitStack() as stack:
            run.rounds([*chains(run, stack), *rivals(run, stack)])
    for mix in mixes.MIXES.values():
        if run.wants(mix.name):
            measure_beside(run, mix)
    run.note("rivals call the stages in turn, as they know no chains")


def chains(run: Run, stack: contextlib.ExitStack) -> Iterator[Case]:
    """Yield the cases of those who take a response as an argument."""
    depths = run.effort.pick(smoke=(1, 4, 64), quick=DEPTHS, full=DEPTHS)
    pinned = peers.HANDED_OFF.name
    few = [depth for depth in depths if depth <= RAY_DEPTH]
    kinds: list[tuple[str, str, Any, Sequence[int]]] = [
        (DEF, peers.OURS.name, deployed(increment, max(depths), {}), depths),
        (DEF, pinned, deployed(increment, max(depths), peers.NO_INLINE), depths),
        (ASYNC, peers.OURS.name, deployed(increment_async, max(depths), {}), depths),
        (ASYNC, pinned, deployed(increment_async, max(depths), peers.NO_INLINE), depths),
    ]
    kinds += [
        (DEF, peer.name, deployed_by_ray(is_local=peer is peers.RAY_LOCAL), few)
        for peer in peers.present([peers.RAY_LOCAL, peers.RAY], run)
    ]
    if run.app:
        call = stack.enter_context(run.app.open(increment, 1))().submit
        kinds.append((DEF, run.app.name, contextlib.nullcontext([call] * max(depths)), depths))
    for table, name, context, mine in kinds:
        submits = stack.enter_context(context)
        for depth in mine:
            call = partial(chained, submits[:depth])
            yield Case(subject(depth), name, partial(latency, call, run.effort.seconds), table)
        per_hop(run, table, name, mine)


def rivals(run: Run, stack: contextlib.ExitStack) -> Iterator[Case]:
    """Yield the cases of the others."""
    depths = run.effort.pick(smoke=(1, 4, 64), quick=DEPTHS, full=DEPTHS)
    for table, others in ((DEF, [peers.DIRECT, *peers.THREADS]), (ASYNC, [peers.EXECUTOR, peers.ASYNCIO])):
        for name, connect in peers.open_peers(stack, others, increment, 1, run).items():
            for depth in depths:
                call = partial(in_turn, connect(), depth)
                yield Case(subject(depth), name, partial(latency, call, run.effort.seconds), table)
            per_hop(run, table, name, depths)


def per_hop(run: Run, table: str, name: str, depths: Sequence[int]) -> None:
    low, high = min(depths), max(depths)
    ends = [Key(table, subject(depth), name, "p50") for depth in (low, high)]
    run.derive(Key(table, HOP, name, "p50"), ends, lambda one, many: (many - one) / (high - low))


def measure_beside(run: Run, mix: mixes.Mix) -> None:
    """Measure chains while a mix keeps another deployment busy, of threadserve or of the same rival."""
    seconds = run.effort.pick(smoke=0.002, quick=0.1, full=0.3)
    rounds = run.effort.pick(smoke=0, quick=3, full=9)
    depths = (1, 4, 16)
    with contextlib.ExitStack() as stack:
        cases: list[Case] = []
        for peer in peers.present([peers.OURS, peers.HANDED_OFF, peers.DIRECT, *peers.THREADS], run):
            neighbour = stack.enter_context(mixes.open_mix(peer, mix, 1, mixes.Ledger()))()
            if peer in (peers.OURS, peers.HANDED_OFF):
                options = {} if peer is peers.OURS else peers.NO_INLINE
                submits = stack.enter_context(deployed(increment, max(depths), options))
                calls = [partial(chained, submits[:depth]) for depth in depths]
            else:
                client = stack.enter_context(peer.open(increment, 1))()
                calls = [partial(in_turn, client, depth) for depth in depths]
            for depth, call in zip(depths, calls, strict=True):
                sample = partial(latency_beside, neighbour, mix, call, seconds)
                cases.append(Case(subject(depth), peer.name, sample, beside(mix)))
        run.rounds(cases, rounds)


def latency_beside(
    neighbour: peers.Client, mix: mixes.Mix, call: Callable[[], object], seconds: float
) -> dict[str, float]:
    with mixes.busy(neighbour, mix):
        return latency(call, seconds)
