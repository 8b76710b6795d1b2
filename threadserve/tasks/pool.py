"""Where tasks run: a replica whose slots all remote functions share, and one for those that reserve resources.

A task is a request like any other. What is its own is that it may *lend*: while it waits in ``serve.get`` or
``serve.wait`` its slot goes to another task, as in Ray; otherwise tasks that wait for tasks of their own would use up all
slots and never end. A coroutine needs no thread, so it lends its slot for as long as it runs.

A task that asks for resources stands in a line with those that ask for the same. Only the first of a line asks the
ledger, among whose own line each of these lines is one; when it got what it wants it is admitted, with a slot of its
own. What it holds it gives back when its body has returned, or when it was answered before its body had begun; while
it lends, its cores.
"""

from __future__ import annotations

import inspect
import os
from collections import deque
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from threadserve.call.context import DeploymentID
from threadserve.call.objectref import find_object, object_id
from threadserve.call.request import ANSWERED, Request, current_request
from threadserve.concurrency.outcome import Error
from threadserve.concurrency.waiter import deliver
from threadserve.errors import Cancelled, ResourceError
from threadserve.replica.target import Target
from threadserve.replica.thread import ThreadReplica
from threadserve.router.router import Limits, Router
from threadserve.runtime.resources import Ask, Demand

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from threadserve.concurrency.kernel import Kernel
    from threadserve.concurrency.waiter import Subscriber
    from threadserve.runtime.resources import Ledger, Reservation
    from threadserve.tasks.options import TaskOptions

__all__ = ["Job", "ReservingRouter", "TaskPool", "TaskRouter", "lent"]

GRACE_S = 20.0
"""What running tasks get to finish at the end of the process."""
STOP_S = 1.0


class TaskRouter(Router):
    """The router of tasks: knows which of them lend their slots."""

    def __init__(self, kernel: Kernel, deployment: str = "tasks") -> None:
        super().__init__(kernel, "threadserve", deployment)
        self._lent: dict[
            Request, int
        ] = {}  # guarded by lock; how many of its waits have lent the task's slot
        self.pool: TaskPool

    def lend(self, task: Request) -> None:
        """Give the slot of `task`, which is about to wait, to another; every call needs its ``recover``."""
        with self.lock:
            waits = self._lent[task] = self._lent.get(task, 0) + 1
        if waits == 1:
            self._give(task)

    def recover(self, task: Request) -> None:
        """Let `task` go on; as long as another still runs in its slot there is one more than the limit."""
        with self.lock:
            waits = self._lent[task] = self._lent[task] - 1
            if not waits:
                del self._lent[task]
        if not waits:
            self._take(task)

    def begin(self, task: Request) -> None:
        """Be told that the body of `task` begins. Raises Cancelled if it must not."""

    def finish(self, task: Request) -> None:
        """Be told that the body of `task` has returned."""

    def _give(self, task: Request) -> None:
        self.resize(self.pool.seats[0], 1)

    def _take(self, task: Request) -> None:
        self.resize(self.pool.seats[0], -1)


class ReservingRouter(TaskRouter):
    """The router of tasks that reserve resources."""

    def __init__(self, kernel: Kernel, ledger: Ledger) -> None:
        super().__init__(kernel, "reserving tasks")
        self._ledger = ledger
        self._own = kernel.lock()
        self._lines: dict[Demand, _Line] = {}  # guarded by _own
        self._held: dict[Request, _Hold] = {}  # guarded by _own
        self._is_shut = False  # guarded by _own

    def admit(self, request: Request, inputs: Subscriber | None = None) -> Sequence[Subscriber]:
        """Put `request`, which has its arguments, at the end of its line."""
        job = (request.args or (None,))[0]
        if not isinstance(job, Job):  # it was answered meanwhile
            return super().admit(request, inputs)
        with self._own:
            line = None
            if not self._is_shut:
                line = self._lines.setdefault(job.demand, _Line(self, job.demand))
                line.join(request, inputs)
        if line is None:
            return super().admit(request, inputs)
        request.subscribe(line)  # one that is answered while it stands there must not keep others waiting
        return line.tell()

    def let_go(self, line: _Line) -> None:
        """Keep `line` no longer if nobody stands in it, nor its place before those who ask for something else."""
        with self._own:
            is_done = line.is_empty and self._lines.get(line.demand) is line
            if is_done:
                del self._lines[line.demand]
        if is_done:
            self._ledger.forget(line)

    def reserve(self, request: Request, demand: Demand, line: Subscriber) -> list[Reservation] | None:
        """Reserve what `request` asks for: its cores apart from the rest. None where `line` is told when to ask again.

        Raises:
            ResourceError: It asks for more than there is.
        """
        cores = Demand(tuple(unit for unit in demand.units if unit[0] == "CPU"))
        others = Demand(tuple(unit for unit in demand.units if unit[0] != "CPU"))
        name = f"{self.name}.{request.method}"
        asks = [Ask(name, part, 1) for part in (cores, others) if not part.is_empty]
        return self._ledger.reserve_together(asks, line)

    def grant(
        self, line: _Line, request: Request, inputs: Subscriber | None, reservations: list[Reservation]
    ) -> Sequence[Subscriber]:
        """Let `request` run, which has what it asked for."""
        request.forget(line)
        hold = _Hold(self, request, reservations)
        with self._own:
            self._held[request] = hold
        self.resize(self.pool.seats[0], 1)
        if not request.subscribe(hold):
            hold.tell()
        return super().admit(request, inputs)

    def close(self, reason: str, opening: int) -> None:
        """Take no more requests; those in the lines fail as the queued ones do."""
        super().close(reason, opening)
        with self._own:
            self._is_shut = True
            lines = list(self._lines.values())
        for line in lines:
            for request, inputs in line.leave():
                deliver(super().admit(request, inputs))  # which is refused

    def begin(self, task: Request) -> None:
        """Be told that the body of `task` begins, which from now on gives back itself what it holds."""
        with self._own:
            hold = self._held.get(task)
            if hold is None:
                raise Cancelled("the task was answered before it began")
            hold.has_begun = True
        gpu_ids = tuple(gpu_id for held in hold.reservations for gpu_id in held.gpu_ids)
        if gpu_ids:
            task.replica = replace(task.replica, gpu_ids=gpu_ids)

    def finish(self, task: Request) -> None:
        """Give back what `task` holds."""
        with self._own:
            hold = self._held.pop(task, None)
        if hold is None:
            return
        self.resize(self.pool.seats[0], -1)
        for reservation in hold.reservations:
            reservation.release()

    def finish_unless_begun(self, task: Request) -> None:
        """Give back what `task` holds, which has been answered, if its body will not do so."""
        with self._own:
            hold = self._held.get(task)
            if hold is None or hold.has_begun:
                return
        self.finish(task)

    def _give(self, task: Request) -> None:
        """Give back the cores alone: GPUs and memory are in use though the task waits."""
        with self._own:
            hold = self._held.get(task)
        for reservation in hold.reservations if hold else ():
            if reservation.demand.units[0][0] == "CPU":
                reservation.release()

    def _take(self, task: Request) -> None:
        """Reserve the cores again if they are free; the task goes on in any case, and somebody else ends soon."""
        with self._own:
            hold = self._held.get(task)
        if hold is None:
            return
        given = [held for held in hold.reservations if not self._ledger.holds(held)]
        for reservation in given:
            ask = Ask(reservation.deployment, reservation.demand, 1)
            again = self._ledger.reserve_together([ask], goes_first=True)
            if again is not None:
                hold.reservations[hold.reservations.index(reservation)] = again[0]


class _Hold:
    """What a task has reserved. Told when the task is answered."""

    __slots__ = ("_router", "_task", "has_begun", "reservations")

    def __init__(self, router: ReservingRouter, task: Request, reservations: list[Reservation]) -> None:
        self._router = router
        self._task = task
        self.reservations = reservations
        self.has_begun = False

    def tell(self) -> Sequence[Subscriber]:
        self._router.finish_unless_begun(self._task)
        return ()


class _Line:
    """Tasks that ask for the same, in order; told when somebody has released something, or a task in it was answered.

    One thread at a time asks, and asks again when anything has changed meanwhile: so none overtakes another.
    """

    def __init__(self, router: ReservingRouter, demand: Demand) -> None:
        self._router = router
        self.demand = demand
        self._lock = router.kernel.lock()
        self._tasks: deque[tuple[Request, Subscriber | None]] = deque()  # guarded by _lock, as all below
        self._is_asking = False
        self._has_news = False

    @property
    def is_empty(self) -> bool:
        """Whether nobody stands in it, and nobody looks after it."""
        with self._lock:
            return not self._tasks and not self._is_asking

    def join(self, task: Request, inputs: Subscriber | None) -> None:
        """Put `task` at the end; then the line must be told."""
        with self._lock:
            self._tasks.append((task, inputs))

    def leave(self) -> list[tuple[Request, Subscriber | None]]:
        """Take everybody out."""
        with self._lock:
            tasks, self._tasks = self._tasks, deque()
        return list(tasks)

    def tell(self) -> Sequence[Subscriber]:
        with self._lock:
            self._has_news = True
            if self._is_asking:
                return ()
            self._is_asking = True
        news: list[Subscriber] = []
        while (place := self._head()) is not None:
            head, inputs = place
            try:
                reservations = self._router.reserve(head, self.demand, self)
            except ResourceError as error:
                head.answer(Error(error))
                reservations = []
            if reservations is not None and self._pop(head):
                news.extend(self._router.grant(self, head, inputs, reservations))
            else:
                for reservation in reservations or ():
                    reservation.release()
        self._router.let_go(self)
        return news

    def _head(self) -> tuple[Request, Subscriber | None] | None:
        """Return the first task if something has changed since the last look, else None: then others may ask."""
        with self._lock:
            while self._tasks and self._tasks[0][0].state is ANSWERED:
                self._tasks.popleft()
            if self._tasks and self._has_news:
                self._has_news = False
                return self._tasks[0]
            self._is_asking = False
            return None

    def _pop(self, head: Request) -> bool:
        with self._lock:
            self._has_news = True  # the next one has not asked yet
            if not self._tasks or self._tasks[0][0] is not head:
                return False
            self._tasks.popleft()
            return True


class TaskPool:
    """The replica behind a router of tasks.

    Args:
        router: Whose tasks these are.
        slots: How many run at once; those that reserve bring a slot each.
    """

    is_growing = False
    graceful_shutdown_timeout_s = GRACE_S

    def __init__(self, router: TaskRouter, slots: int) -> None:
        self.router = router
        router.pool = self
        replica = ThreadReplica(
            router.kernel,
            Target(_perform, (), {}),
            deployment=DeploymentID(router.deployment, router.app),
            rank=0,
            world_size=1,
            code_version="",
        )
        self._opening = router.open(Limits())
        self.seats = [router.seat(replica, slots)]
        router.replace((), self.seats)

    def __repr__(self) -> str:
        return f"<TaskPool of {self.router!r}>"

    def close(self, reason: str) -> None:
        """Take no more tasks; those that wait fail with DeploymentUnavailableError, those that run go on."""
        self.router.close(reason, self._opening)
        if self.seats[0].is_open:
            self.router.replace(self.seats, ())

    def stop(self, reason: str) -> list[str]:
        """Give up what runs, and end the threads; those that will not end are named. Blocks, a second at most."""
        self.router.abandon(self.seats[0], reason)
        self.router.drain(self.seats[0], STOP_S)
        stuck: list[str] = self.seats[0].replica.stop(STOP_S)
        return stuck


def default_slots() -> int:
    """Return how many tasks that reserve nothing run at once: as many as ``asyncio.to_thread`` would run."""
    count = getattr(os, "process_cpu_count", os.cpu_count)
    return min(32, (count() or 1) + 4)


@contextmanager
def lent() -> Generator[None]:
    """Lend the slot of the task whose code this is, if it is one, for the length of a ``with`` block."""
    task = current_request()
    if task is None or not isinstance(task.router, TaskRouter):
        yield
        return
    router = task.router
    router.lend(task)
    try:
        yield
    finally:
        router.recover(task)


class Job:
    """What a task runs; its first argument. Copied and pickled it stays itself."""

    __slots__ = ("__weakref__", "_exceptions", "_retries", "demand", "function")

    def __init__(self, function: Callable[..., Any], options: TaskOptions, demand: Demand) -> None:
        self.function = function
        self.demand = demand
        wanted = options.retry_exceptions
        self._exceptions = (Exception,) if wanted is True else () if wanted is False else tuple(wanted)
        self._retries = options.retries

    def __reduce__(self) -> tuple[Any, ...]:
        return find_object, (object_id(self),)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, again where it raised what is to be tried again."""
        failures = 0
        while True:
            try:
                return self.function(*args, **kwargs)
            except Exception as error:
                failures += 1
                if not self._may_retry(error, failures):
                    raise

    async def run_async(
        self, task: Request, coroutine: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Await what the function returned; see ``run``."""
        failures = 0
        with _on_the_loop(task):
            while True:
                try:
                    return await coroutine
                except Exception as error:
                    failures += 1
                    if not self._may_retry(error, failures):
                        raise
                coroutine = self.function(*args, **kwargs)

    def _may_retry(self, error: Exception, failures: int) -> bool:
        return failures <= self._retries and isinstance(error, self._exceptions)


def _perform(job: Job, /, *args: Any, **kwargs: Any) -> Any:
    """Be the body of every task."""
    task = current_request()
    assert task is not None
    router = task.router
    assert isinstance(router, TaskRouter)
    router.begin(task)
    result = None
    try:
        result = job.run(args, kwargs)
        if inspect.iscoroutine(result):
            return job.run_async(task, result, args, kwargs)
        if inspect.isasyncgen(result):
            return _items_async(task, result)
        if inspect.isgenerator(result) and isinstance(router, ReservingRouter):
            return _items(task, result)
        return result
    finally:
        if not (inspect.iscoroutine(result) or inspect.isasyncgen(result) or inspect.isgenerator(result)):
            router.finish(task)


def _items(task: Request, items: Any) -> Any:
    try:
        yield from items
    finally:
        _router_of(task).finish(task)


async def _items_async(task: Request, items: Any) -> Any:
    with _on_the_loop(task):
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()


@contextmanager
def _on_the_loop(task: Request) -> Generator[None]:
    """Let a body that is a coroutine do without its slot; what it has reserved it keeps."""
    router = _router_of(task)
    is_lending = not isinstance(router, ReservingRouter)
    if is_lending:
        router.lend(task)
    try:
        yield
    finally:
        if is_lending:
            router.recover(task)
        router.finish(task)


def _router_of(task: Request) -> TaskRouter:
    assert isinstance(task.router, TaskRouter)
    return task.router
