"""A replica whose code runs on threads of this interpreter: workers for ``def``, one event loop for ``async def``.

How it works. The router claims a request for a slot of this replica and then either runs it on one of the replica's
worker threads (``run``) or posts it to the replica's event loop (``post``). Which of the two is a guess from the outside
of the user's callable; what the call *returns* decides. A coroutine that comes out of a ``def`` goes on on the loop
with its slot, a generator is drained into the request's channel, where it came up. So decorated callables need no
declaration of what they are.

What it promises.

* ``run`` never raises: whatever the user's code does is an outcome.
* The body runs in the caller's context variables, copied, with the replica and the request set.
* A request ends once: ``run`` returns its outcome, or ``on_done`` is called with it, later, on the loop.
* The loop and its thread exist only after the first coroutine.

What it assumes. The router takes care of limits: nobody is refused here. Constructors, ``reconfigure`` and the like run
outside of the slots (``call``), on a thread that may wait.

Rejected: running coroutines by hand on worker threads (they are distinguishable without a loop and a task, and break the
exclusivity of the loop's code); a pool of threads shared by replicas (a slow replica would starve another).
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import AsyncIterator
from contextvars import Context, copy_context
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, cast

from threadserve.call.blocking import block, suspend
from threadserve.call.context import REPLICA, DeploymentID, ReplicaContext, ReplicaID, ReplicaRank
from threadserve.call.request import ANSWERED, CURRENT, Request
from threadserve.concurrency.interrupts import is_interrupt
from threadserve.concurrency.loops import LoopThread, LoopWaiter, current_task, is_cancellation, make_future
from threadserve.concurrency.outcome import Error, Outcome, Value, capture
from threadserve.concurrency.threads import below_ours, get_ident, is_current, stack_text
from threadserve.errors import Cancelled, ReplicaDiedError, RequestCancelledError, RequestError
from threadserve.replica.target import NO_RESULT, Target, check_result, check_stream

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from threadserve.concurrency.channel import Channel
    from threadserve.concurrency.kernel import Kernel, Thread

__all__ = ["ThreadReplica"]

_log = logging.getLogger("threadserve")


class ThreadReplica:
    """One running copy of a deployment."""

    def __init__(
        self,
        kernel: Kernel,
        target: Target,
        *,
        deployment: DeploymentID,
        rank: int,
        world_size: int,
        code_version: str,
        gpu_ids: tuple[str, ...] = (),
    ) -> None:
        self._kernel = kernel
        self._target = target
        self.name = f"{deployment.app_name}/{deployment.name}#{rank}"
        """``app/deployment#rank``."""
        self.context = ReplicaContext(
            replica_id=ReplicaID(f"{kernel.random.getrandbits(40):010x}"[:8], deployment),
            rank=ReplicaRank(rank),
            world_size=world_size,
            code_version=code_version,
            gpu_ids=gpu_ids,
            get_servable_object=partial(_servable, weakref.ref(target)),  # answers lead here, and may be kept
        )
        self.on_done: Callable[[Request, Outcome], object] = _nobody
        """Called with each request that ends on the loop; set by the router."""
        self.on_death: Callable[[BaseException], None] = lambda error: None
        """Called when the user's code has asked for the end of the replica; set by the runtime. Must not block."""
        self.died: Callable[..., RequestError] = ReplicaDiedError
        """Makes the error of a request that ends with the replica; set by who wants another one."""
        self._loop = LoopThread(kernel, f"{self.name} loop")
        self._lock = kernel.lock()
        self._threads: list[Thread] = []  # guarded by _lock
        self._hired = 0  # guarded by _lock
        self._away: set[int] = (
            set()
        )  # guarded by _lock; idents of workers that run what is not this replica's

    def __repr__(self) -> str:
        return f"<ThreadReplica {self.name} of {len(self._threads)} threads>"

    # ---- its life; each blocks, on a thread that may

    def start(self, user_config: Any) -> None:
        """Construct and configure the instance. Raises what the user's code raises."""
        self.call(self._target.construct)
        reconfigure = self._target.reconfiguration(user_config, self.context.rank)
        if reconfigure is not None:
            self.call(reconfigure)

    def call(self, fn: Callable[[], Any]) -> Any:
        """Call `fn` as code of this replica, outside of the slots; a coroutine is awaited on the loop."""
        context = Context()
        context.run(REPLICA.set, self.context)
        result = context.run(fn)
        return self._await(result, context) if inspect.iscoroutine(result) else result

    @property
    def has_health_check(self) -> bool:
        """Whether the user's class has a ``check_health``."""
        return self._target.has("check_health")

    def check_health(self) -> None:
        """Call the user's ``check_health``, where there is one. Raises what it raises."""
        if self.has_health_check:
            self.call(lambda: self._target.servable.check_health())

    def stop(self, timeout: float) -> list[str]:
        """Finalize the instance, end the loop and wait for the workers, which the router has sent home.

        Blocks up to `timeout` seconds. Names the threads that would not end, with what they are at.
        """
        deadline = self._kernel.now() + timeout
        ending: list[Thread] = []
        try:
            ending.append(self._kernel.spawn(f"{self.name} stop", self._finalize))
        except (
            RuntimeError
        ):  # the system has no thread to give: then on this one, unbounded, rather than not at all
            self._finalize()
        with self._lock:
            workers = [thread for thread in self._threads if thread.ident not in self._away]
        stuck = self._join([*ending, *workers], deadline, stack_text)
        loop = self._loop.thread
        if loop is not None and not any(thread.is_alive() for thread in ending):  # else it has not been told
            stuck += self._join([loop], deadline, lambda _: self._loop.stuck())
        return stuck

    def _join(
        self, threads: Sequence[Thread], deadline: float, describe: Callable[[int | None], str]
    ) -> list[str]:
        """Wait for `threads` until `deadline`, and name those that would not end."""
        stuck: list[str] = []
        for thread in threads:
            if is_current(thread):
                continue
            thread.join(max(0.0, deadline - self._kernel.now()))
            if thread.is_alive():
                stuck.append(f"thread {thread.name}, which is at\n{describe(thread.ident)}")
        return stuck

    def _finalize(self) -> None:
        """Call the user's ``__del__``, once and for all, let go of the instance, and end the loop."""
        outcome = capture(self.call, self._target.finalize)
        if isinstance(outcome, Error):
            _log.error("__del__ of %s raised", self.name, exc_info=outcome.exception)
        del outcome  # with the frames of the user's in it
        self._target.let_go()
        self._loop.stop(0)  # whoever stops the replica waits for its thread

    def add_worker(self, work: Callable[[], None]) -> None:
        """Start a worker thread that runs `work`. Raises RuntimeError where the system has no thread to give."""
        with self._lock:
            self._hired += 1
            name = f"{self.name} worker {self._hired}"
        thread = self._kernel.spawn(name, work)
        with self._lock:
            self._threads = [*(former for former in self._threads if former.is_alive()), thread]

    def leave(self) -> None:
        """Be told, by a worker of its own, that it does something else for a while: ``stop`` is not to wait for it."""
        with self._lock:
            self._away.add(get_ident())

    def come_back(self) -> None:
        """Be told, by that worker, that it has come back."""
        with self._lock:
            self._away.discard(get_ident())

    # ---- requests

    def begins_async(self, method: str) -> bool:
        """Whether a call of `method` is for ``post`` rather than for ``run``. Runs no code of the user's."""
        return self._target.begins_async(method)

    def run(self, request: Request) -> Outcome | None:
        """Run the body on this thread. None: it goes on on the loop, and ``on_done`` will tell how it ended."""
        context, request.context = request.context, None
        if context is None:  # answered between claim and start
            return Value(None)
        try:
            return context.run(self._run, request)
        finally:
            # The user's frames, which an exception keeps, lead back to these: without the request in them there is no
            # cycle of request, outcome, exception, traceback and frame. The same further down.
            del request, context

    def post(self, request: Request) -> None:
        """Begin the body on the loop; ``on_done`` will tell how it ended. Never blocks."""
        context, request.context = request.context, None
        self._post(request, context or Context())

    def _run(self, request: Request) -> Outcome | None:
        try:
            CURRENT.set(request)
            request.replica = self.context
            request.runner = get_ident()
            if request.adapter is None and request.deadline == inf and request.state is not ANSWERED:
                fn = self._target.lookup(request)
                args, kwargs = request.args or (), request.kwargs
                request.args = request.kwargs = None
                result = fn(*args, **kwargs) if kwargs else fn(*args)
            else:
                result = self._begin(request)
            if type(result) not in NO_RESULT and request.channel is None:
                return Value(result)
            if inspect.iscoroutine(result):
                self._post(request, copy_context(), result)
                return None
            if request.channel is None:
                check_result(request, result)
                return Value(result)
            check_stream(request, result)
            if isinstance(result, AsyncIterator) and not hasattr(result, "__next__"):
                self._post(request, copy_context(), result)
                return None
            self._drain(request, cast("Iterator[Any]", result))
            return Value(None)
        except BaseException as error:
            return self._failure(request, error)
        finally:
            del request

    def _begin(self, request: Request) -> Any:
        """Call the user's callable. The request lets go of the arguments: from here they are the body's."""
        if (
            request.deadline != inf and self._kernel.now() >= request.deadline
        ):  # it passed in the queue, and the timer is late
            request.expire()
        if request.state is ANSWERED:
            raise Cancelled("the request was cancelled or had expired before the body began")
        fn = self._target.lookup(request)
        args, kwargs = request.args or (), request.kwargs or {}
        request.args = request.kwargs = None
        adapter = request.adapter
        if adapter is None:
            del request
            return fn(*args, **kwargs)
        is_async = self._target.begins_async(request.method)
        del request
        return adapter.aiterate(fn, args, kwargs) if is_async else adapter.iterate(fn, args, kwargs)

    def _failure(self, request: Request, error: BaseException) -> Outcome:
        """Make an outcome of what the body raised; what means something else to the caller's thread is translated."""
        request.args = request.kwargs = None  # a body that never began has not taken them
        error.__traceback__ = below_ours(
            error.__traceback__
        )  # our frames hold the request, which will hold the error
        name = f"{request.router.name}.{request.method}"
        where = {"deployment": request.router.name, "request_id": request.request_id}
        if isinstance(error, SystemExit) and not is_interrupt(error):
            died = self.died(f"{name} raised SystemExit({error.code!r}) in replica {self.name}", **where)
            died.__cause__ = error
            request.answer(Error(died))  # first, for the replica's death is the end of all that runs in it
            self.on_death(error)
            return Error(died)
        if isinstance(error, Cancelled) or is_cancellation(error):
            cancelled = RequestCancelledError(f"the code of {name} cancelled itself", **where)
            cancelled.__cause__ = error
            return Error(cancelled)
        if request.channel is not None and isinstance(error, (StopIteration, StopAsyncIteration)):
            misleading = RuntimeError(
                f"{name} raised {type(error).__name__}, which would look like the end of its stream"
            )
            misleading.__cause__ = error
            return Error(misleading)
        return Error(error)

    # ---- generators

    def _drain(self, request: Request, items: Iterator[Any]) -> None:
        """Hand on the items until they end or nobody wants them; the generator's ``finally`` runs here."""
        channel = request.channel
        assert channel is not None
        offer = channel.offer
        try:
            for item in items:
                if not (offer(item, None) or self._put(request, channel, item)):
                    return
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _put(self, request: Request, channel: Channel, item: Any) -> bool:
        """Put `item` in a full channel, blocking; False when it is closed. A checkpoint."""
        while True:
            waiter = self._kernel.waiter()
            accepted = channel.offer(item, waiter)
            if accepted is not None:
                return accepted
            try:
                block(waiter, needs=request.readers(), is_ended=channel.has_room)
            finally:
                channel.forget(waiter)

    async def _drain_async(self, request: Request, items: Any) -> None:
        channel = request.channel
        assert channel is not None
        offer = channel.offer
        try:
            if isinstance(items, AsyncIterator):
                async for item in items:
                    if not (offer(item, None) or await self._put_async(request, channel, item)):
                        return
            else:
                for item in items:
                    if not (offer(item, None) or await self._put_async(request, channel, item)):
                        return
        finally:
            close = getattr(items, "aclose", None) or getattr(items, "close", None)
            if close is not None and inspect.isawaitable(closing := close()):
                await closing

    async def _put_async(self, request: Request, channel: Channel, item: Any) -> bool:
        """Put `item` in the channel, suspending while it is full; False when it is closed."""
        while True:
            subscriber = LoopWaiter(*make_future())
            accepted = channel.offer(item, subscriber)
            if accepted is not None:
                return accepted
            try:
                await suspend(subscriber, needs=request.readers(), is_ended=channel.has_room)
            finally:
                channel.forget(subscriber)

    # ---- coroutines

    def _post(self, request: Request, context: Context, rest: Any = None) -> None:
        """Have the loop conduct `request`; `rest` is what the call has returned, where it has been made."""
        request.move_to(self._loop)
        try:
            if self._loop.submit(lambda: self._start(request, context, rest)):
                return
            error = self._stopping(request)
        except RuntimeError as failure:
            error = self._stopping(request, str(failure))
        _discard(rest)
        self.on_done(request, Error(error))

    def _start(self, request: Request, context: Context, rest: Any) -> None:
        loop = self._loop.loop
        assert loop is not None
        conducted = self._conduct(request, rest)
        try:
            task: asyncio.Task[Outcome] = loop.create_task(
                conducted, context=context, name=f"{self.name} {request.method}"
            )
        except BaseException as error:  # from a task factory of the user's
            conducted.close()
            _discard(rest)
            if _ends_the_visit(error):  # out of an eager task's first step
                self._interrupted(request)
                raise
            self.on_done(request, self._failure(request, error))
            return
        task.add_done_callback(lambda task: self._end(request, rest, task))

    async def _conduct(self, request: Request, rest: Any) -> Outcome:
        """Bring a body to its end, and keep what it raises from the loop, which SystemExit would end.

        The interrupt is attached here, in the first step: a task that is cancelled before it would never begin.
        """
        try:
            task = request.runner = (
                current_task()
            )  # not what `create_task` returns: an eager one's first step comes before that
            interrupt = partial(_cancel_threadsafe, task)
            if not request.attach(interrupt):
                interrupt()
            del task, interrupt
            if rest is None:
                CURRENT.set(request)
                request.replica = self.context
                rest = self._begin(request)
            if inspect.isawaitable(rest) and not isinstance(rest, AsyncIterator):
                rest = await rest
            if request.channel is None:
                check_result(request, rest)
                return Value(rest)
            check_stream(request, rest)
            await self._drain_async(request, rest)
            return Value(None)
        except BaseException as error:
            if _ends_the_visit(error):
                raise
            return self._failure(request, error)
        finally:
            del request, rest

    def _end(self, request: Request, rest: Any, task: asyncio.Task[Outcome]) -> None:
        if task.cancelled():  # the loop was stopped before the first step
            _discard(rest)
            self.on_done(request, Error(self._stopping(request)))
        elif task.exception() is not None:  # Ctrl-C
            self._interrupted(request)
        else:
            self.on_done(request, task.result())

    def _interrupted(self, request: Request) -> None:
        request.was_cancelled = True
        self.on_done(request, request.cancellation())

    def _stopping(self, request: Request, reason: str = "it is stopping") -> RequestError:
        return self.died(
            f"replica {self.name} could not run {request.method}: {reason}",
            deployment=request.router.name,
            request_id=request.request_id,
        )

    def _await(self, coroutine: Coroutine[Any, Any, Any], context: Context) -> Any:
        """Run `coroutine` on the loop and wait for it, on a thread that may."""
        waiter = self._kernel.waiter()
        outcomes: list[Outcome] = []
        tasks: list[asyncio.Task[None]] = []  # a loop does not keep its tasks alive

        async def body() -> None:
            try:
                outcomes.append(Value(await coroutine))
            except BaseException as error:
                outcomes.append(Error(error))
                if _ends_the_visit(error):
                    raise

        def start() -> None:
            assert self._loop.loop is not None
            guarded = body()
            try:
                task = self._loop.loop.create_task(guarded, context=context)
            except BaseException as error:  # from a task factory of the user's
                guarded.close()
                coroutine.close()
                outcomes.append(Error(error))
                waiter.set()
                if _ends_the_visit(error):
                    raise
                return
            tasks.append(task)
            task.add_done_callback(_hush)
            task.add_done_callback(lambda _: waiter.set())

        if self._loop.submit(start):
            waiter.wait()
        if not outcomes:  # the loop was stopped before the first step
            coroutine.close()
            raise ReplicaDiedError(f"replica {self.name} is stopping")
        return outcomes[0].unwrap()


def _servable(target: weakref.ref[Target]) -> Any:
    """Return what a replica runs, as long as it is there."""
    held = target()
    return None if held is None else held.servable


def _nobody(request: Request, outcome: Outcome) -> None:
    """Stand in for the router until there is one."""


def _discard(rest: Any) -> None:
    """Let go of what a call has returned and nobody will run, without a warning that nobody has."""
    close = getattr(rest, "close", None)
    if close is not None:
        close()


def _hush(task: asyncio.Task[None]) -> None:
    """Have asyncio not complain that nobody has asked for the exception."""
    if not task.cancelled():
        task.exception()


def _ends_the_visit(error: BaseException) -> bool:
    """Whether `error` is a signal handler's, and so the waiting thread's, which is the loop just now, and gets there."""
    return isinstance(error, (KeyboardInterrupt, SystemExit)) and is_interrupt(error)


def _cancel_threadsafe(task: asyncio.Task[Any] | None) -> None:
    assert task is not None
    loop = task.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)
