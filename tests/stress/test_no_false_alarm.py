"""DeadlockError is never a false alarm, and none is missed: random programs against the simulator's own verdict.

The simulator knows what the watch has to find out: a run is stuck when nobody can go on and the clock has nowhere to
jump. So each program is played twice under one seed. First with a watch that finds and does not act: what it calls
stuck must stay stuck until the run is over, and a run that gets stuck must have been called so. Then with the real
watch: now the program must come to its end, and somebody must have got the error, or nobody.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import threadserve as serve
from tests.doubles import LateSimulation
from tests.runtime.test_deadlock import Actor, Stage
from threadserve import futures
from threadserve.call import lookout
from threadserve.call.request import ANSWERED, Request
from threadserve.concurrency.outcome import Outcome, capture
from threadserve.errors import Cancelled, DeadlockError, RequestCancelledError, RequestTimeoutError
from threadserve.runtime import deadlock
from threadserve.testing.scheduler import SimulatedKernel, StuckError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from threadserve.handle import DeploymentHandle

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def nothing_is_left_to_collect() -> Iterator[None]:
    """A run that is stuck ends with coroutines still suspended; have them die, and complain, where that is ignored."""
    yield
    gc.collect()


DEPLOYMENTS = ("a", "b", "c")
SOMEWHERE = st.sampled_from(["a", "a", "b", "c"])


# ---- programs


@dataclass(frozen=True)
class Step:
    """Something that a body does.

    ``call`` another body and keep the answer, or pass it those kept so far as arguments (``chain``); then wait for ``each``
    of the kept ones, for ``all``, for the ``first``; ``sleep``. The others can end by themselves, and then have to be
    told apart from a deadlock: ``call hurried`` has a timeout, ``try`` waits with one, ``beside`` waits in a task or a thread.
    """

    verb: str
    where: str = "a"
    is_async: bool = False
    body: tuple[Step, ...] = ()
    seconds: float = 0.0


CERTAIN = ("each", "all", "first")
UNCERTAIN = ("try", "beside", "read")


def steps(bodies: st.SearchStrategy[tuple[Step, ...]], waits: Sequence[str]) -> st.SearchStrategy[Step]:
    calls = ["call", "chain"] if waits == CERTAIN else ["call", "chain", "call hurried"]
    return st.one_of(
        st.builds(
            Step,
            verb=st.sampled_from(calls),
            where=SOMEWHERE,
            is_async=st.booleans(),
            body=bodies,
        ),
        st.builds(Step, verb=st.sampled_from(waits), where=SOMEWHERE),
        st.builds(Step, verb=st.just("sleep"), seconds=st.sampled_from([0.05, 0.1, 0.2, 1.0])),
    )


def bodies(waits: Sequence[str]) -> st.SearchStrategy[tuple[Step, ...]]:
    """Return what bodies do; mostly they wait in the end for what they have called."""

    def outer(inner: st.SearchStrategy[tuple[Step, ...]]) -> st.SearchStrategy[tuple[Step, ...]]:
        begin = st.lists(steps(inner, waits), min_size=1, max_size=3).map(tuple)
        end = st.sampled_from([(Step("each"),), (Step("all"),), ()])
        return st.tuples(begin, end).map(lambda parts: parts[0] + parts[1])

    return outer(st.recursive(st.just(()), outer, max_leaves=6))


@dataclass(frozen=True)
class Program:
    slots: tuple[int, ...]
    replicas: tuple[int, ...]
    roots: tuple[Step, ...]
    seed: int
    is_late: bool
    """Whether workers come late, so that whoever waits runs what it waits for."""

    def kernel(self) -> SimulatedKernel:
        return LateSimulation(self.seed) if self.is_late else SimulatedKernel(self.seed)


def programs(waits: Sequence[str]) -> st.SearchStrategy[Program]:
    few = st.lists(st.sampled_from([1, 1, 1, 1, 2, 3]), min_size=3, max_size=3).map(tuple)
    root = st.builds(Step, st.just("call"), where=SOMEWHERE, is_async=st.booleans(), body=bodies(waits))
    return st.builds(
        Program,
        slots=few,
        replicas=st.lists(st.sampled_from([1, 1, 1, 1, 2]), min_size=3, max_size=3).map(tuple),
        roots=st.lists(root, min_size=1, max_size=4).map(tuple),
        seed=st.integers(0, 10_000),
        is_late=st.booleans(),
    )


# ---- playing them


class Play:
    """One run of one program."""

    def __init__(self, kernel: SimulatedKernel, program: Program) -> None:
        self.stage = Stage(kernel)
        self.answers: list[Any] = []
        self.deadlocks = 0
        self.handles: dict[str, DeploymentHandle[Any]] = {
            name: self.stage.deploy(name, slots, num_replicas=replicas, stream_buffer_size=1)
            for name, slots, replicas in zip(DEPLOYMENTS, program.slots, program.replicas, strict=True)
        }
        self.roots = program.roots
        if isinstance(kernel, LateSimulation):
            kernel.call_at(0.05, kernel.let_workers_come)

    def run(self) -> None:
        for answer in [self.call(root, ()) for root in self.roots]:
            answer.exception()
        for answer in self.answers:
            answer.exception()

    def call(self, step: Step, arguments: Sequence[Any]) -> Any:
        handle = self.handles[step.where]
        handle = handle.options(timeout_s=0.3) if step.verb == "call hurried" else handle
        method, body = (handle.ado, self.abody) if step.is_async else (handle.do, self.body)
        answer = method.remote(body, step.body, *arguments)
        self.answers.append(answer)
        return answer

    def body(self, steps: tuple[Step, ...], *_: object) -> None:
        kept: list[Any] = []
        for step in steps:
            try:
                self._step(step, kept)
            except DeadlockError:
                self.deadlocks += 1
                raise
            except (RequestTimeoutError, RequestCancelledError, TimeoutError):
                pass

    def _step(self, step: Step, kept: list[Any]) -> None:
        if step.body or step.verb in {"call", "chain", "call hurried"}:
            kept.append(self.call(step, kept if step.verb == "chain" else ()))
        elif step.verb == "sleep":
            self.stage.sleep(step.seconds)
        elif step.verb == "each":
            for answer in kept:
                answer.result()
        elif step.verb == "all":
            futures.gather(*kept).result()
        elif step.verb == "first":
            next(iter(futures.as_completed(kept)), None)
        elif step.verb == "try":
            futures.gather(*kept).result(timeout_s=0.2)
        elif step.verb == "read":
            stream = self.handles[step.where].options(stream=True).items.remote(lambda: iter(range(4)))
            next(iter(stream), None)
            stream.close()
        elif kept:
            self.stage.in_a_thread(lambda: self._wait_beside(kept[-1])).join(0.3)

    @staticmethod
    def _wait_beside(answer: Any) -> None:
        with contextlib.suppress(Cancelled):
            answer.exception()

    async def abody(self, steps: tuple[Step, ...], *_: object) -> None:
        kept: list[Any] = []
        for step in steps:
            try:
                await self._astep(step, kept)
            except DeadlockError:
                self.deadlocks += 1
                raise
            except (RequestTimeoutError, RequestCancelledError, TimeoutError):
                pass

    async def _astep(self, step: Step, kept: list[Any]) -> None:
        if step.body or step.verb in {"call", "chain", "call hurried"}:
            kept.append(self.call(step, kept if step.verb == "chain" else ()))
        elif step.verb == "sleep":
            await asyncio.sleep(step.seconds)
        elif step.verb == "each":
            for answer in kept:
                await answer
        elif step.verb == "all":
            await futures.gather(*kept)
        elif step.verb == "first":
            async for _ in futures.as_completed(kept):
                break
        elif step.verb == "try":
            async with asyncio.timeout(0.2):
                await futures.gather(*kept)
        elif step.verb == "read":
            stream = self.handles[step.where].options(stream=True).items.remote(lambda: iter(range(4)))
            async for _ in stream:
                break
            stream.close()
        elif kept:
            await asyncio.wait([asyncio.ensure_future(self._swallow(kept[-1]))], timeout=0.3)

    @staticmethod
    async def _swallow(answer: Any) -> None:
        with contextlib.suppress(Exception):
            await answer


@dataclass
class Verdict:
    """What a watch that does not act has found, and what came of the run."""

    found: list[Request] = field(default_factory=list)
    is_stuck: bool = False
    still_there: list[Request] = field(default_factory=list)
    """Those of the found that had no answer when nobody could go on any more."""


def watch_without_acting(program: Program) -> Verdict:
    """Play with a watch that only finds; after its first finding nobody looks any more."""
    verdict = Verdict()
    kernel = program.kernel()

    def run() -> None:
        play = Play(kernel, program)
        watch = play.stage.controller._watch

        def find_only() -> bool:
            group, _ = watch._find()
            if group:
                verdict.found = group
                watch._lookout._look_at = lambda moment: None  # type: ignore[method-assign]
            return False

        watch._resolve = find_only  # type: ignore[method-assign]
        outcomes: list[Outcome] = []
        # On a thread beside, since one that is stuck while it helps ends what it runs when the simulation is given up.
        player = kernel.spawn("player", lambda: outcomes.append(capture(play.run)))
        try:
            player.join()
            outcomes[0].unwrap()
        finally:
            verdict.still_there = [request for request in verdict.found if request.state is not ANSWERED]
        play.stage.controller.shutdown()

    try:
        kernel.run(run)
    except StuckError:
        verdict.is_stuck = True
    return verdict


def watch_and_act(program: Program) -> int:
    """Play with the real watch to the end, and return how many errors there were."""
    kernel = program.kernel()
    deadlocks: list[int] = []

    def run() -> None:
        play = Play(kernel, program)
        outcomes: list[Outcome] = []
        kernel.spawn("player", lambda: outcomes.append(capture(play.run))).join()  # as above: the same steps
        outcomes[0].unwrap()
        deadlocks.append(play.deadlocks)
        play.stage.controller.shutdown()

    kernel.run(run)
    return deadlocks[0]


@pytest.mark.slow
@given(programs(CERTAIN))
@settings(max_examples=120, suppress_health_check=list(HealthCheck))
def test_a_program_gets_the_error_exactly_if_it_would_be_stuck_without(program: Program) -> None:
    verdict = watch_without_acting(program)
    event(f"stuck: {verdict.is_stuck}")

    assert bool(verdict.found) == verdict.is_stuck
    assert verdict.still_there == verdict.found
    assert bool(watch_and_act(program)) == verdict.is_stuck


@pytest.mark.slow
@given(programs((*CERTAIN, *UNCERTAIN)))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_whoever_is_called_stuck_stays_so_whatever_else_there_is(program: Program) -> None:
    verdict = watch_without_acting(program)
    event(f"found: {bool(verdict.found)}")

    if verdict.found:
        assert verdict.is_stuck
        assert verdict.still_there == verdict.found


# ---- heavy load on real threads


def descend(handle: DeploymentHandle[Any], depth: int) -> int:
    if not depth:
        return 0
    return 1 + handle.do.remote(descend, handle, depth - 1).result()  # type: ignore[no-any-return]


async def adescend(handle: DeploymentHandle[Any], depth: int) -> int:
    if not depth:
        return 0
    return 1 + await handle.ado.remote(adescend, handle, depth - 1)  # type: ignore[no-any-return]


def spread(below: Sequence[DeploymentHandle[Any]], width: int) -> int:
    """Call the next deployment several times and wait for all, in one of several ways."""
    if not below:
        return 1
    answers = [below[0].do.remote(spread, below[1:], width) for _ in range(width)]
    if width % 2:
        return sum(futures.gather(*answers).result())
    return sum(answer.result() for answer in futures.as_completed(answers))


async def aspread(below: Sequence[DeploymentHandle[Any]], width: int) -> int:
    if not below:
        return 1
    answers = [below[0].ado.remote(aspread, below[1:], width) for _ in range(width)]
    return sum(await futures.gather(*answers))


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every wait looked at that lasts two milliseconds."""
    monkeypatch.setattr(lookout, "PATIENCE_S", 0.002)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 3.0], ids=["short", "long"])
@pytest.mark.usefixtures("impatience")
def test_nobody_gets_the_error_under_heavy_load(seconds: float) -> None:
    """Nested waits with no slot to spare: a slot for each level of each client, and not one more."""
    clients, depth = 4, 3
    actor: Any = serve.deployment(Actor)
    looks = itertools.count()
    find = deadlock.DeadlockWatch._find

    def counted(watch: deadlock.DeadlockWatch) -> Any:
        next(looks)
        return find(watch)

    def serve_one(number: int, tight: DeploymentHandle[Any], levels: Sequence[DeploymentHandle[Any]]) -> int:
        rounds = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rounds += 1
            deed, method = (descend, tight.do) if number % 2 else (adescend, tight.ado)
            assert method.remote(deed, tight, depth - 1).result() == depth - 1
            wide = levels[0].do.remote(spread, levels[1:], 2 + rounds % 2)
            awide = levels[0].ado.remote(aspread, levels[1:], 3)
            assert wide.result() == (2 + rounds % 2) ** 2
            assert awide.result() == 9
        return rounds

    def apps() -> Iterator[Any]:
        yield actor.options(name="tight", max_ongoing_requests=clients * depth).bind()
        for name, slots in (("top", 4), ("middle", 3), ("leaf", 1)):
            yield actor.options(name=name, max_ongoing_requests=slots).bind()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deadlock.DeadlockWatch, "_find", counted)
        tight, *levels = [serve.run(app, name=f"app {number}") for number, app in enumerate(apps())]
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            rounds = list(pool.map(lambda number: serve_one(number, tight, levels), range(clients)))
        serve.shutdown()

    assert all(rounds)
    assert next(looks) > seconds * 20  # it was looked, and in the thick of it
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("app ")]
