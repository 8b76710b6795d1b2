"""One call and its answer: the state machine that everything else moves.

::

    WAITING --admitted--> QUEUED --claimed--> RUNNING --body returned--> ANSWERED
       |                     |                   |
       `---------------------+-------------------+--> ANSWERED  (cancelled, expired, refused, closed, crashed)

The state is guarded by the lock of the request's router: one lock per deployment guards its queue, its slots and
the states of its requests, so that settling one, giving back its slot and taking the next is one critical section.
``settle`` is the only way to ANSWERED and says whether it won; only the winner tells anybody. What has to be done
in consequence comes back as *news* and is delivered after the lock has been released (``waiter.deliver``).

ANSWERED does not mean that the body has returned: a cancelled sync method runs on until its next checkpoint.
Only who runs the body ends the request (``is_over``) and with that gives the slot back.
"""

from __future__ import annotations

import enum
import math
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from threadserve.concurrency.ids import identify
from threadserve.concurrency.outcome import Error, Outcome, Withdrawn
from threadserve.concurrency.waiter import Subscriber, deliver
from threadserve.errors import (
    Cancelled,
    DeploymentUnavailableError,
    RequestCancelledError,
    RequestError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextvars import Context

    from threadserve.call.adapter import Adapter
    from threadserve.concurrency.channel import Channel
    from threadserve.concurrency.future import CallFuture
    from threadserve.concurrency.kernel import Kernel, Lock, Timer
    from threadserve.concurrency.loops import Host

__all__ = [
    "CURRENT",
    "Request",
    "Router",
    "State",
    "Wait",
    "check_cancelled",
    "current_request",
]


class State(enum.Enum):
    """Where a request is."""

    WAITING = "waiting for its arguments"
    QUEUED = "queued"
    RUNNING = "running"
    ANSWERED = "answered"


WAITING, QUEUED, RUNNING, ANSWERED = State.WAITING, State.QUEUED, State.RUNNING, State.ANSWERED

_INF = math.inf

CURRENT: ContextVar[Request | None] = ContextVar("threadserve_request", default=None)
"""The request whose body this context belongs to."""


def current_request() -> Request | None:
    """Return the request that the running code works for; None outside of one, and once its body has returned."""
    request = CURRENT.get()
    return None if request is None or request.is_over else request


def check_cancelled() -> None:
    """Raise Cancelled when the request that the running code works for has been cancelled or has expired."""
    request = current_request()
    if request is not None and request.state is ANSWERED:
        raise Cancelled(f"request {request.request_id} of {request.router.name} was cancelled or has expired")


class Router(Protocol):
    """All that a handle and a request know of who runs it.

    Attributes:
        kernel: What the requests wait, time and lock with.
        lock: Guards the queue, the slots and the state of every request of this router. A leaf: nothing foreign and
            no other lock is taken inside.
        app: The name of the app.
        deployment: The name of the deployment.
        name: ``app/deployment``.
        stream_buffer_size: How many items a stream's producer may run ahead of its reader.
    """

    kernel: Kernel
    lock: Lock
    app: str
    deployment: str
    name: str
    stream_buffer_size: float

    def assign(self, request: Request) -> None:
        """Take over `request` and see to its answer. Never blocks, never raises."""

    def watch(self) -> None:
        """Be told that a body waits, without a timeout, for requests; so that a wait that cannot end is found."""

    def leave(self, request: Request) -> None:
        """Strike `request`, which waits or is queued here, off the books; called with the lock held."""

    def help(self, request: Request, waiting: Request | None) -> None:
        """Run `request`, and what has to come before it, on the calling thread, as far as that is possible.

        The calling thread is about to block until `request` is answered. Raises nothing but KeyboardInterrupt.

        Args:
            request: Has no deadline.
            waiting: The request whose body the calling thread runs; None in plain code.
        """

    def run_here(
        self, request: Request, waiting: Request | None, *, is_due: bool = False
    ) -> Sequence[Subscriber] | None:
        """Run `request`, or one before it, on this thread: a step of ``help``, as is the next. See the router."""
        ...

    def visit(self, request: Request) -> bool:
        """Run what is ready on the loop that the body of `request` runs on; False where it cannot be."""
        ...


class Request:
    """A call on its way. Knows nothing of responses: those have one field, their request.

    Attributes:
        args, kwargs: The arguments; None once the body has begun or the request has been answered.
        context: The caller's context variables, copied; the body runs inside.
        caller: The identifier of the thread that made the call.
        created, admitted, started: When the call was made, was queued with its arguments, and got a slot, on the
            kernel's clock, seconds; kept only where there is a deadline.
        deadline: On the kernel's clock, seconds; ``math.inf`` for none.
        channel: Carries the items of a stream; None for a plain call.
        adapter: Calls the user's callable in another way than a handle does; None for a handle.
        is_over: The body has returned, or never will begin: calls made under it now are nobody's children.
        future: The ``concurrent.futures.Future`` that mirrors it; None until somebody asks for one.
        reader: The request whose body reads this one's stream, where that is known.
        replica: What the body can ask about the replica that runs it; None before it has begun.
        runner: Who runs the body: the identifier of a thread, or a task.
        host: Whom a thread that waits may visit, to bring the body on: the event loop that it runs on, for one.
        wait: What the body waits for, while it does; None where it could go on by itself.
        helped: The request whose body runs on this one's thread, above this one's, which waits for it; else None.
        depth: How many bodies run on its thread below its own.
        number: What it is called by in the interpreter that it has been sent to; 0 for none.
        was_cancelled: ``response.cancel()`` was called, whether or not that changed anything.
    """

    # No __dict__: since 3.13 it takes 250 bytes, empty as it is.
    __slots__ = (
        "__weakref__",
        "_children",
        "_has_ties",
        "_id",
        "_interrupt",
        "_parent",
        "_subscribers",
        "_timer",
        "adapter",
        "admitted",
        "args",
        "caller",
        "channel",
        "context",
        "created",
        "deadline",
        "depth",
        "future",
        "helped",
        "host",
        "is_over",
        "kwargs",
        "method",
        "model_id",
        "number",
        "outcome",
        "reader",
        "replica",
        "router",
        "runner",
        "started",
        "state",
        "wait",
        "was_cancelled",
    )

    future: CallFuture | None
    wait: Wait | None
    helped: Request | None
    reader: Request | None
    host: Host | None
    created: float | None
    admitted: float | None
    started: float | None
    outcome: Outcome | None
    replica: Any
    runner: object
    _parent: Request | None
    _children: dict[Request, None] | None
    _subscribers: dict[Subscriber, None] | None
    _timer: Timer | None
    _interrupt: Callable[[], object] | None

    def __init__(
        self,
        router: Router,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Context,
        caller: int = 0,
        request_id: str | None = None,
        channel: Channel | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.router = router
        self.method = method
        self.args: tuple[Any, ...] | None = args
        self.kwargs: dict[str, Any] | None = kwargs
        self.context: Context | None = context
        self.caller = caller
        self.channel = channel
        self.adapter = adapter
        self.deadline = _INF
        self.depth = self.number = 0
        self.model_id = ""
        self._id = request_id
        self.state = WAITING  # this and all below: guarded by router.lock
        self.is_over = self.was_cancelled = False
        self.outcome = self.replica = self.runner = self.future = self.wait = self.helped = self.reader = (
            self.host
        ) = None
        self.created = self.admitted = self.started = None
        self._subscribers = self._parent = self._children = self._timer = self._interrupt = None
        # Whether it has, or had, a channel, a parent, children, a timer, a host or somebody to interrupt.
        self._has_ties = channel is not None

    @property
    def request_id(self) -> str:
        """Shared by all requests that are made on behalf of one from outside. Made when first asked for; never blocks."""
        return self._id or identify(self)

    def __repr__(self) -> str:
        return f"<Request {self.request_id} {self.router.name}.{self.method} {self.state.value}>"

    # ---- before it is assigned: where it stands in the tree of calls

    def descend_from(self, parent: Request | None, timeout_s: float | None, bound: float) -> None:
        """Take a place below `parent`, and the deadline that follows from it, from `timeout_s` and from `bound`.

        None inherits what the parent has left, ``math.inf`` detaches from it. A call made in a request that has
        been cancelled is born cancelled; one made after the parent's body returned has no parent.

        Args:
            parent: The request whose body makes the call.
            timeout_s: Seconds, relative to now.
            bound: A deadline that the code has set for all its calls; ``math.inf`` for none.
        """
        inherited = own = _INF
        if timeout_s is not None or bound != _INF or (parent is not None and parent.deadline != _INF):
            self.created = self.router.kernel.now()
            own = _INF if timeout_s is None else self.created + timeout_s
            if timeout_s != _INF:
                own = min(own, bound)
                inherited = math.inf if parent is None else parent.deadline
            self.deadline = min(own, inherited)
        is_child = parent is not None and parent._adopt(self)
        if parent is not None and not is_child and not parent.is_over:
            self.answer(self.cancellation())
        elif not is_child or own < inherited:  # otherwise the parent's expiry comes down the tree
            self._set_alarm()

    def _set_alarm(self) -> None:
        """Have the deadline kept, where nobody above does it."""
        if self.deadline != _INF:
            self._has_ties = True
            try:
                timer = self._timer = self.router.kernel.call_at(self.deadline, self.expire)
            except RuntimeError as error:  # there is no thread for timers
                what = f"has a deadline that cannot be kept: {error}"
                self.answer(self._refusal(DeploymentUnavailableError, what))
                return
            if self.state is ANSWERED:  # meanwhile, and whoever answered found no timer to cancel
                timer.cancel()

    def _adopt(self, child: Request) -> bool:
        """Make `child` a child of this request; False when this one has been answered."""
        with self.router.lock:
            if self.state is ANSWERED:
                return False
            if self._children is None:
                self._children = {}
                self._has_ties = True
            self._children[child] = None
            child._parent = self
            child._has_ties = True
        return True

    def _disown(self, child: Request) -> None:
        with self.router.lock:
            if self._children is not None:
                self._children.pop(child, None)

    # ---- the answer

    def settle(self, outcome: Outcome) -> list[Subscriber] | None:
        """Make `outcome` the answer, with the router's lock held; None when there is an answer already.

        The news that comes back must be delivered once the lock has been released.
        """
        was = self.state
        if was is ANSWERED:
            return None
        if was is not RUNNING:
            self.router.leave(self)
            self.is_over = True
        self.outcome = outcome  # first: who sees the state without the lock goes on to the outcome
        self.state = ANSWERED
        subscribers, self._subscribers = self._subscribers, None
        news: list[Subscriber] = [] if subscribers is None else list(subscribers)
        if self._has_ties or was is not RUNNING:
            news.append(_Aftermath(self, has_returned=was is RUNNING and self.is_over))
        return news

    def end(self, outcome: Outcome) -> Sequence[Subscriber]:
        """Settle after the body has returned, with the router's lock held; the answer may have been given before."""
        self.is_over = True
        self.runner = None  # a task holds the context that holds this request
        if self._has_ties and (self._interrupt is not None or self.host is not None):
            self._interrupt = self.host = None
        return self.settle(outcome) or ()

    def answer(self, outcome: Outcome) -> bool:
        """Make `outcome` the answer and tell everybody; False when there is an answer already.

        Never blocks. Safe from any thread that holds no lock of ours.
        """
        with self.router.lock:
            news = self.settle(outcome)
        if news is None:
            return False
        deliver(news)
        return True

    def cancel(self) -> None:
        """Answer with RequestCancelledError unless there is an answer; the body and the children are told. Never blocks."""
        self.was_cancelled = True
        self.answer(self.cancellation())

    def withdraw(self) -> bool:
        """Cancel if the body has not begun: True, also if it was withdrawn before. Otherwise nothing happens: False."""
        with self.router.lock:
            if self.state is RUNNING or self.state is ANSWERED:
                return isinstance(self.outcome, Withdrawn)
            outcome = Withdrawn(self.cancellation().exception)
            news = self.settle(outcome)
            future = self.future
        if future is not None:  # before anybody is told, so that whoever looks at it then finds it cancelled
            future.complete(outcome)
        deliver(news or ())
        return True

    def expire(self) -> None:
        """Answer with RequestTimeoutError unless there is an answer."""
        if self.state is not ANSWERED:
            self.answer(self.expiry())

    def expiry(self) -> Error:
        """Return what a request is answered with when its deadline has passed."""
        now = self.router.kernel.now()
        moments = (self.created, self.admitted, self.started)
        created, admitted, started = (now if moment is None else moment for moment in moments)
        elapsed, inputs = now - created, admitted - created
        queued, running = started - admitted, now - started
        return Error(
            RequestTimeoutError(
                f"request {self.request_id} to {self.router.name}.{self.method} timed out after {elapsed:.3g} s, while "
                f"{self.state.value} ({inputs:.3g} s for its arguments, {queued:.3g} s queued, {running:.3g} s running)",
                deployment=self.router.name,
                request_id=self.request_id,
                elapsed_s=elapsed,
                inputs_s=inputs,
                queued_s=queued,
                running_s=running,
            )
        )

    def cancellation(self) -> Error:
        """Return what a request is answered with when it has been cancelled."""
        return self._refusal(RequestCancelledError, "was cancelled")

    def _refusal(self, kind: type[RequestError], what: str) -> Error:
        name, request_id = self.router.name, self.request_id
        text = f"request {request_id} to {name}.{self.method} {what}"
        return Error(kind(text, deployment=name, request_id=request_id))

    # ---- the body

    def attach(self, interrupt: Callable[[], object]) -> bool:
        """Say how to reach the running body when it should stop; False when it should stop already."""
        with self.router.lock:
            if self.state is ANSWERED:
                return False
            self._interrupt = interrupt
            self._has_ties = True
        return True

    def move_to(self, host: Host) -> None:
        """Note that the body goes on at `host`, which a thread that waits may visit."""
        self._has_ties = True
        self.host = host

    @property
    def is_root(self) -> bool:
        """Whether it works for no other request: plain code made the call, or a body that has returned."""
        return self._parent is None

    def readers(self) -> Sequence[Request]:
        """Return the request that alone can make room in this one's stream; nothing where others might."""
        return () if self.reader is None or self.reader.is_over else (self.reader,)

    # ---- waiting for the answer

    def subscribe(self, subscriber: Subscriber) -> bool:
        """Have `subscriber` told of the answer; False when there is an answer already and nobody will be told."""
        with self.router.lock:
            if self.state is ANSWERED:
                return False
            if self._subscribers is None:  # as in `listen`, without the call
                self._subscribers = {}
            self._subscribers[subscriber] = None
        return True

    def forget(self, subscriber: Subscriber) -> None:
        """Let `subscriber` not be told, if it has not been."""
        with self.router.lock:
            self.drop(subscriber)

    def listen(self, subscriber: Subscriber) -> None:
        """Have `subscriber` told of the answer; there is none yet, and the router's lock is held."""
        if self._subscribers is None:
            self._subscribers = {}
        self._subscribers[subscriber] = None

    def drop(self, subscriber: Subscriber) -> None:
        """Let `subscriber` not be told, if it has not been; the router's lock is held."""
        if self._subscribers is not None:
            self._subscribers.pop(subscriber, None)

    def begin_wait(self, subscriber: Subscriber, wait: Wait | None) -> bool:
        """Note that the body waits: `subscriber` is told when it should stop. False when it should stop already."""
        with self.router.lock:
            if self.state is ANSWERED:
                return False
            self.listen(subscriber)
            self.wait = wait
        return True

    def end_wait(self, subscriber: Subscriber) -> None:
        """Note that the body goes on."""
        with self.router.lock:
            self.wait = None
            self.drop(subscriber)

    def unwrap(self) -> Any:
        """Return the value or raise the exception; there must be an answer."""
        outcome = self.outcome
        assert outcome is not None
        del self  # the frame stands in the traceback of what is raised, which the request holds: no cycle
        try:
            return outcome.unwrap()
        finally:
            del outcome


class Wait:
    """One wait of a body.

    Attributes:
        needs: The requests whose answers (or items) it waits for; any of them may end it.
        since: When it began, on the kernel's clock, seconds.
        error: What to raise instead of waiting on; set by whoever found that it can never end.
        place: The ``file:line`` of a wait that another interpreter has told of; None for one of this interpreter's.
    """

    __slots__ = ("_is_ended", "_wake", "error", "needs", "place", "since")

    def __init__(
        self,
        needs: Sequence[Request],
        since: float,
        wake: Subscriber | None = None,
        is_ended: Callable[[], bool] | None = None,
    ) -> None:
        self.needs = needs
        self.since = since
        self.error: BaseException | None = None
        self.place: str | None = None
        self._wake = wake
        self._is_ended = is_ended

    @property
    def is_help(self) -> bool:
        """Whether the thread runs what it waits for, so that nobody can end the wait."""
        return self._wake is None

    def is_ended(self) -> bool:
        """Whether what it waits for has come, be it that the one who waits does not know yet. Takes no lock."""
        if self._is_ended is not None and self._is_ended():
            return True
        return any(request.state is ANSWERED for request in self.needs)

    def fail(self, error: BaseException) -> None:
        """End the wait with `error`."""
        self.error = error
        if self._wake is not None:
            self._wake.tell()


class _Aftermath:
    """What an answer entails beside telling who waits for it; done with no lock held."""

    __slots__ = ("_has_returned", "_request")

    def __init__(self, request: Request, *, has_returned: bool) -> None:
        self._request = request
        self._has_returned = has_returned  # the body itself brought the answer

    def tell(self) -> Iterable[Subscriber]:
        request = self._request
        parent, request._parent = request._parent, None
        timer = request._timer
        if timer is not None:
            request._timer = None
            timer.cancel()
        if parent is not None:
            parent._disown(request)
        if self._has_returned:
            if request.channel is not None:
                request.channel.finish()
            self._release_children()
            return ()
        if request.channel is not None:
            request.channel.close()
        if request.is_over:  # never begun
            request.args = request.kwargs = request.context = None
        return self._abandon()

    def _release_children(self) -> None:
        """The body has returned, so they have no parent any more; the deadline that they had from it stays."""
        if self._request._children is None:  # and there will be none: it is answered
            return
        with self._request.router.lock:
            children, self._request._children = self._request._children, None
        for child in children or ():
            child._parent = None
            if child._timer is None:
                child._set_alarm()

    def _abandon(self) -> Iterable[Subscriber]:
        """The answer came from outside: stop the body and, with it, all that it had called."""
        request = self._request
        with request.router.lock:
            children, request._children = request._children, None
            interrupt, request._interrupt = request._interrupt, None
        if interrupt is not None:
            interrupt()
        has_expired = request.outcome is not None and isinstance(
            request.outcome.exception, RequestTimeoutError
        )
        news: list[Subscriber] = []
        for child in children or ():
            if has_expired and child.deadline > request.deadline:
                continue  # it was detached from this deadline
            outcome = child.expiry() if has_expired else child.cancellation()
            with child.router.lock:
                news.extend(child.settle(outcome) or ())
        return news
