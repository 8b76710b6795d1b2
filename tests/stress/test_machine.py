"""Anything, in any order: calls, streams, chains, cancellations, deadlines, deaths, redeploys, deletions, shutdowns.

The machine is Hypothesis's, the world is the one of ``threadserve.testing.machine``: it does one deed at a time and then
lets everybody go on until all wait. What must hold is asked for in that stillness, so nothing here waits and hopes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import threadserve as serve
from tests.doubles import Answers, assert_nothing_left, check_invariants
from tests.runtime.test_deadlock import Stage
from threadserve import errors
from threadserve.app.graph import build
from threadserve.call.request import ANSWERED, Request
from threadserve.concurrency.outcome import capture
from threadserve.runtime.controller import Controller
from threadserve.testing.machine import World
from threadserve.testing.simulator import simulation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from threadserve.concurrency.outcome import Outcome
    from threadserve.handle import DeploymentHandle
    from threadserve.router.router import Router

APPS = ("front", "back")
LIVES_ON = {"main", "threadserve timer", "threadserve reaper", "threadserve callbacks"}

EXPECTED = (
    errors.BackPressureError,
    errors.DeadlockError,
    errors.DeploymentUnavailableError,
    errors.ReplicaDiedError,
    errors.RequestCancelledError,
    errors.RequestTimeoutError,
)


class UserError(Exception):
    """What bodies raise."""


# ---- what is called


@dataclass(eq=False)
class Task:
    """What one body does, and what became of it."""

    number: int
    is_async: bool = False
    is_deaf: bool = False
    """Does not care for being cancelled."""
    end: str = "value"
    child: Task | None = None
    answer: Any = None
    """The response, or the generator; None before the call."""
    is_open: bool = False
    """The body may come to its end."""
    begun: int = 0
    ended: int = 0
    replica: str = ""
    """Where its body runs, or ran."""

    @property
    def request(self) -> Request:
        return self.answer._request  # type: ignore[no-any-return]


@dataclass
class Books:
    """What the bodies write down."""

    stage: Stage
    answers: Answers = field(default_factory=Answers)
    tasks: list[Task] = field(default_factory=list)
    ongoing: Counter[str] = field(default_factory=Counter)
    """Replica -> bodies that run in it."""
    most: int = 0
    """The most bodies that ran in one replica at once."""
    dead: set[str] = field(default_factory=set)
    """Replicas whose code has asked for their end."""
    constructed: int = 0
    finalized: int = 0
    handles: dict[str, DeploymentHandle[Any]] = field(default_factory=dict)

    def begin(self, task: Task) -> None:
        task.begun += 1
        tag = task.replica = serve.get_replica_context().replica_tag
        self.ongoing[tag] += 1
        self.most = max(self.most, self.ongoing[tag])

    def come_to(self, task: Task) -> int:
        """End the body of `task` as it is to."""
        if task.end == "error":
            raise UserError(task.number)
        if task.end == "exit":
            self.dead.add(task.replica)
            raise SystemExit(task.number)
        return task.number

    def finish(self, task: Task) -> None:
        task.ended += 1
        self.ongoing[task.replica] -= 1

    def call(self, task: Task, where: str, timeout_s: float | None = None, *arguments: Any) -> None:
        """Make the call of `task`; an earlier answer may be an argument."""
        handle = self.handles[where].options(timeout_s=timeout_s)
        method = handle.work_async if task.is_async else handle.work
        task.answer = self.answers.watch(method.remote(task, *arguments))
        self.tasks.append(task)

    def stream(self, task: Task, where: str, timeout_s: float | None = None) -> None:
        handle = self.handles[where].options(stream=True, timeout_s=timeout_s)
        method = handle.items_async if task.is_async else handle.items
        stream: Any = method.remote(task)
        task.answer = self.answers.watch(stream)
        self.tasks.append(task)


class Worker:
    """Does tasks."""

    def __init__(self, books: Books, other: str) -> None:
        self.books = books
        self.other = other
        books.constructed += 1

    def __del__(self) -> None:
        self.books.finalized += 1

    def work(self, task: Task, *_: object) -> int:
        self.books.begin(task)
        try:
            if task.child is not None:
                self.books.call(task.child, self.other)
                task.child.answer.result()
            self._stay(task)
            return self.books.come_to(task)
        finally:
            self.books.finish(task)

    async def work_async(self, task: Task, *_: object) -> int:
        self.books.begin(task)
        try:
            if task.child is not None:
                self.books.call(task.child, self.other)
                await task.child.answer
            await self._stay_async(task)
            return self.books.come_to(task)
        finally:
            self.books.finish(task)

    def items(self, task: Task) -> Iterator[int]:
        self.books.begin(task)
        try:
            yield from range(3)
            self._stay(task)
            yield self.books.come_to(task)
        finally:
            self.books.finish(task)

    async def items_async(self, task: Task) -> AsyncIterator[int]:
        self.books.begin(task)
        try:
            for item in range(3):
                yield item
            await self._stay_async(task)
            yield self.books.come_to(task)
        finally:
            self.books.finish(task)

    def _stay(self, task: Task) -> None:
        while not task.is_open:
            self.books.stage.sleep(0.5)
            if not task.is_deaf:
                serve.check_cancelled()

    async def _stay_async(self, task: Task) -> None:
        while not task.is_open:
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                if not task.is_deaf:
                    raise


# ---- the machine


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()
        self.seen: dict[Request, Outcome] = {}
        self.changed: set[str] = set()
        """Apps that were redeployed or deleted."""
        self.is_up = False

    # ---- beginning and end

    @initialize(seed=st.integers(0, 1000), replicas=st.integers(1, 2), limit=st.integers(1, 2))
    def begin(self, seed: int, replicas: int, limit: int) -> None:
        self.world = World(simulation(seed=seed))
        self.kernel = self.world.simulation._kernel
        self.replicas, self.limit = replicas, limit
        self.books = Books(self.world.do(lambda: Stage(self.kernel)))
        self.stoppers: list[Any] = []
        self.routers: list[Router] = []
        for app in APPS:
            self.world.do(partial(self._deploy, app))
        self.is_up = True

    def _deploy(self, app: str) -> None:
        """Run an app of one deployment; one after the other, whoever asks."""
        deployment: Any = serve.deployment(Worker).options(
            name=app,
            num_replicas=self.replicas,
            max_ongoing_requests=self.limit,
            max_queued_requests=6,
            stream_buffer_size=2,
            graceful_shutdown_timeout_s=2,
        )
        other = APPS[1 - APPS.index(app)]
        try:
            handle = self.books.stage.controller.deploy(build(deployment.bind(self.books, other), app))
        except errors.ServeError:
            return  # it was shut down, or deleted, meanwhile
        self.books.handles[app] = handle
        router: Any = handle._router
        if router not in self.routers:
            self.routers.append(router)

    def teardown(self) -> None:
        if not (self.is_up and self.world.is_alive):
            return
        try:
            self.world.do(self._end)
            self.everything_holds()
            self.world.do(self._check_end)
        finally:
            self.world.end()

    def _check_end(self) -> None:
        books = self.books
        assert all(task.request.state is ANSWERED for task in books.tasks), (
            "shut down, and somebody still waits"
        )
        books.answers.assert_each_once()
        assert [task.number for task in books.tasks if task.begun != task.ended] == [], "a body did not end"
        assert not +books.ongoing
        for router in self.routers:
            assert_nothing_left(router)
            assert router.statistics().replicas == router.statistics().workers == 0
        left = {thread.name for thread in self.kernel.turns.threads if not thread.is_done} - LIVES_ON
        assert left == set(), "threads are left"
        assert books.finalized == books.constructed

    def _end(self) -> None:
        """Shut down, with all that hangs; only then let the deaf ones go."""
        self.books.stage.sleep(30)
        assert self.books.stage.controller._watch._find()[0] == [], "a deadlock that nobody was told of"
        self.changed.update(APPS)
        self.books.stage.controller.shutdown()
        for stopper in self.stoppers:
            stopper.join()
        unanswered = [task.number for task in self.books.tasks if task.request.state is not ANSWERED]
        assert unanswered == [], "shut down, and somebody still waits"
        for task in self.books.tasks:
            task.is_open = True
        self.books.stage.sleep(10)

    # ---- deeds

    def task(self, **what: Any) -> Task:
        return Task(next(self.numbers), **what)

    def some(self, index: int) -> Task:
        """Return a task, one of those that are under way if there is one, the latest first."""
        under_way = [task for task in self.books.tasks if task.request.state is not ANSWERED]
        tasks = under_way or self.books.tasks
        return tasks[-1 - index % len(tasks)]

    @rule(
        where=st.sampled_from(APPS),
        is_async=st.booleans(),
        is_deaf=st.booleans(),
        end=st.sampled_from(["value", "value", "error", "exit"]),
        is_open=st.booleans(),
        timeout_s=st.sampled_from([None, None, None, 0.3, 3.0]),
    )
    def call(self, where: str, timeout_s: float | None, **what: Any) -> None:
        self.world.do(lambda: self.books.call(self.task(**what), where, timeout_s))

    @rule(
        where=st.sampled_from(APPS),
        is_async=st.booleans(),
        is_deaf=st.booleans(),
        child=st.builds(
            dict,
            is_async=st.booleans(),
            is_deaf=st.booleans(),
            end=st.sampled_from(["value", "error", "exit"]),
        ),
        is_deeper=st.booleans(),
        timeout_s=st.sampled_from([None, None, 3.0]),
    )
    def call_that_calls(
        self, where: str, child: dict[str, Any], is_deeper: bool, timeout_s: float | None, **what: Any
    ) -> None:
        below = self.task(**child, child=self.task(is_async=True) if is_deeper else None)
        self.world.do(lambda: self.books.call(self.task(**what, child=below), where, timeout_s))

    @rule(
        where=st.sampled_from(APPS),
        is_async=st.booleans(),
        is_deaf=st.booleans(),
        is_read=st.booleans(),
        end=st.sampled_from(["value", "error", "exit"]),
        timeout_s=st.sampled_from([None, 3.0]),
    )
    def stream(self, where: str, is_read: bool, timeout_s: float | None, **what: Any) -> None:
        def begin() -> None:
            task = self.task(**what)
            self.books.stream(task, where, timeout_s)
            if is_read:
                read = partial(capture, list, task.answer)
                self.stoppers.append(self.kernel.spawn("reader", read))

        self.world.do(begin)

    @precondition(lambda self: self.is_up and self.books.tasks)
    @rule(index=st.integers(0, 9), where=st.sampled_from(APPS), is_async=st.booleans())
    def chain(self, index: int, where: str, is_async: bool) -> None:
        earlier = self.some(index)
        if isinstance(earlier.answer, serve.DeploymentResponse):
            task = self.task(is_async=is_async, is_open=True)
            self.world.do(lambda: self.books.call(task, where, None, earlier.answer))

    @precondition(lambda self: self.is_up and self.books.tasks)
    @rule(index=st.integers(0, 9))
    def cancel(self, index: int) -> None:
        self.world.do(self.some(index).answer.cancel)

    @precondition(lambda self: self.is_up and self.books.tasks)
    @rule(index=st.integers(0, 9), is_for_all=st.booleans())
    def let_go(self, index: int, is_for_all: bool = False) -> None:
        tasks = self.books.tasks if is_for_all else [self.some(index)]

        def release() -> None:
            for task in tasks:
                task.is_open = True
            self.books.stage.sleep(0.6)

        self.world.do(release)

    @precondition(lambda self: self.is_up and self.books.tasks)
    @rule(index=st.integers(0, 9))
    def crash(self, index: int) -> None:
        self.some(index).end = "exit"
        self.let_go(index)

    @rule(seconds=st.sampled_from([0.2, 1.0, 4.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.world.do(lambda: self.books.stage.sleep(seconds))

    @rule(
        app=st.sampled_from(APPS),
        deed=st.sampled_from(["redeploy", "delete", "delete and deploy"]),
        is_waited_for=st.booleans(),
    )
    def change(self, app: str, deed: str, is_waited_for: bool) -> None:
        def work() -> None:
            if deed != "redeploy":
                self.books.stage.controller.delete(app)
            if deed != "delete":
                self._deploy(app)

        self.changed.add(app)

        def begin() -> None:
            stopper = self.kernel.spawn(deed, work)
            self.stoppers.append(stopper)
            if is_waited_for:
                stopper.join()

        self.world.do(begin)

    @rule()
    def shut_down_and_start_again(self) -> None:
        self.changed.update(APPS)

        def work() -> None:
            self.books.stage.controller.shutdown()
            for stopper in self.stoppers:
                stopper.join(0)
            assert not any(
                statistics.replicas for statistics in (router.statistics() for router in self.routers)
            )
            self.books.stage.controller = Controller(self.kernel)
            for app in APPS:
                self._deploy(app)

        self.world.do(work)

    # ---- what holds whenever all is still

    @invariant()
    def everything_holds(self) -> None:
        if self.is_up:
            self.world.do(lambda: None)
            self.world.do(self._check)

    def _check(self) -> None:
        books = self.books
        assert books.most <= self.limit, "more at once than a replica may have"
        doers = {task.request: task for task in books.tasks}
        states = books.stage.controller.status().applications
        for router in self.routers:
            check_invariants(router)
            with router.lock:
                now = router.holds()
                is_closed, seats = router._closed_because is not None, len(router._seats)
            assert not (now.queued and now.has_free_slot and seats), "queued beside a free slot"
            assert not (is_closed and (now.queued or now.waiting)), "somebody waits at a closed door"
            bodies = [doers[request] for request in now.running]
            assert all(task.begun > task.ended for task in bodies), "a slot that nobody uses"
            if router.app not in self.changed:
                up = states[router.app].deployments[router.deployment].replica_states.get("RUNNING", 0)
                assert up == seats, "a replica without a seat"
                for task in books.tasks:
                    if task.request.router is router and task.replica in books.dead:
                        assert task.request.state is ANSWERED, "nobody told who waits for a dead replica"
        for task in books.tasks:
            self._check_task(task)

    def _check_task(self, task: Task) -> None:
        request = task.request
        assert task.ended <= task.begun <= 1, "a body ran twice"
        outcome = request.outcome
        assert self.seen.setdefault(request, outcome) is outcome if outcome is not None else True
        if outcome is None:
            return
        error = outcome.exception
        assert error is None or isinstance(error, (*EXPECTED, UserError)), repr(error)
        if error is None and request.channel is None:
            assert outcome.unwrap() == task.number
            assert task.begun == task.ended == 1
        was_stopped = isinstance(error, (errors.RequestCancelledError, errors.RequestTimeoutError))
        if was_stopped and task.child is not None and task.child.answer is not None:
            assert task.child.request.state is ANSWERED, "a child outlives its cancelled parent"
        if isinstance(error, errors.BackPressureError) and task.child is None:
            assert task.begun == 0


@pytest.mark.slow
def test_whatever_is_done_in_whatever_order_everything_holds() -> None:
    patience = settings(
        max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )

    run_state_machine_as_test(Machine, settings=patience)
