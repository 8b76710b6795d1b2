"""A replica whose code runs in a subinterpreter with a GIL of its own, so that it has a core of its own.

The outside of it: what the router and the runtime see. The inside is ``replica/guest.py``; between them is a link. A call is
written to the link on the thread that makes it, as soon as there is a slot, and counts as started then: it is never
sent twice, and if the replica dies it is answered with ReplicaDiedError. One thread reads what comes back; where plain code
waits for an answer, it reads instead (``Mailbox.visit``), so that nobody has to be woken in order to wake it.

Calls that the code inside makes begin here: as children of the request whose body makes them, in its context
variables, behind the router of the deployment that they are for. Deadlines need no message, both sides have one clock;
that a request was cancelled or has expired is told inside.

Of the caller's context variables only those that were registered with ``serve.propagate`` are seen inside.

An interpreter is closed when all of its threads have ended. One whose code would not end is left as it is: to
close it would wait for the code, or crash.
"""

from __future__ import annotations

import math
import sys
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from threadserve.call import directory
from threadserve.call.context import propagated
from threadserve.call.deadline import BOUND
from threadserve.call.isolation import Isolation
from threadserve.call.request import ANSWERED, CURRENT, Request
from threadserve.concurrency.interpreters import Interpreter, Mailbox
from threadserve.concurrency.outcome import Error, Value
from threadserve.concurrency.real import RealKernel
from threadserve.concurrency.threads import get_ident
from threadserve.concurrency.waiter import log_failure
from threadserve.errors import ReplicaDiedError, RequestError
from threadserve.replica.codec import pack, pack_call, unpack, unpack_call, unpack_error
from threadserve.replica.link import STOP, TELL, Link, untransportable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from threadserve.call.context import ReplicaContext
    from threadserve.concurrency.channel import Channel
    from threadserve.concurrency.kernel import Kernel, Thread
    from threadserve.concurrency.outcome import Outcome
    from threadserve.concurrency.waiter import Subscriber
    from threadserve.replica.link import Extras

__all__ = ["InterpreterReplica", "close_all"]

_MOMENT_S = 0.2


class InterpreterReplica:
    """One running copy of a deployment, in an interpreter of its own.

    Args:
        kernel: Must be the real one: no other reaches into another interpreter.
        target: The class or function; another interpreter finds it by its module and name.
        arguments: Of the constructor.
        entry: What the interpreter runs to become the replica.
        context: What its code is told of it.
    """

    def __init__(
        self,
        kernel: Kernel,
        target: Any,
        arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
        *,
        entry: str,
        context: ReplicaContext,
    ) -> None:
        self._kernel = kernel
        self._target = target
        self._arguments = arguments
        self._entry = entry
        deployment = context.replica_id.deployment_id
        self.name = f"{deployment.app_name}/{deployment.name}#{context.rank.rank}"
        """``app/deployment#rank``."""
        self.context = context
        self.on_done: Callable[[Request, Outcome], object] = _nobody
        """Called with each request whose body has ended; set by the router."""
        self.on_death: Callable[[BaseException], None] = lambda error: None
        """Called when the replica has come to its end by itself; set by the runtime. Must not block."""
        self.died: Callable[..., RequestError] = ReplicaDiedError
        """Makes the error of a request that ends with the replica; set by who wants another one."""
        self._interpreter: Interpreter | None = None
        self._link: Link | None = None
        self._boxes: tuple[Mailbox, Mailbox] | None = None
        """What it is sent, and what it sends."""
        self._threads: list[Thread] = []
        self._has_health_check = False
        self._stuck: tuple[str, ...] = ()
        self._is_over = False
        self._ending = kernel.turn()  # held by who stops it
        self._lock = kernel.lock()
        self._is_stopping = False  # guarded by _lock
        self._end = ""  # guarded by _lock; how the interpreter came to its end, once it has

    def __repr__(self) -> str:
        return f"<InterpreterReplica {self.name}>"

    # ---- its life; each blocks, on a thread that may

    def start(self, user_config: Any) -> None:
        """Make the interpreter, and construct and configure the instance. Raises what the user's code raises."""
        letter = self._letter(user_config)
        with _lock:
            if _is_closed:
                raise ReplicaDiedError(f"replica {self.name} is not started: the process is exiting")
            self._interpreter = Interpreter()
            _alive[self] = None
        theirs, ours = self._boxes = Mailbox.new(for_many=True), Mailbox.new()
        link = self._link = Link(self._kernel, ours, theirs, self._begin, self._done)
        self._threads.append(self._kernel.spawn(f"{self.name} interpreter", self._inhabit))
        self._threads.append(self._kernel.spawn(f"{self.name} replies", partial(self._read, link)))
        self._has_health_check = link.ask("start", letter)

    def _letter(self, user_config: Any) -> dict[str, Any]:
        """Return what the replica is made of."""
        deployment = self.context.replica_id.deployment_id
        args, kwargs = self._arguments
        try:
            arguments = pack_call(args, dict(kwargs))
        except Exception as error:
            raise untransportable("an argument of bind()", error) from error
        return {
            "module": self._target.__module__,
            "path": self._target.__qualname__,
            "arguments": arguments,
            "deployment": (deployment.app_name, deployment.name),
            "rank": self.context.rank.rank,
            "world_size": self.context.world_size,
            "code_version": self.context.code_version,
            "gpu_ids": self.context.gpu_ids,
            "unique_id": self.context.replica_tag,
            "user_config": user_config,
            "variables": propagated.names,
        }

    def _inhabit(self) -> None:
        """Be the thread on which the interpreter runs, until its end."""
        interpreter, link = self._interpreter, self._link
        assert interpreter is not None
        assert link is not None
        assert self._boxes is not None
        theirs, ours = self._boxes
        how = "it ended"
        try:
            interpreter.run(
                self._entry, {"path": tuple(sys.path), "inbox": theirs.parts, "outbox": ours.parts}
            )
        except Exception as error:
            how = str(error)
        with self._lock:
            self._end = how
            is_stopping = self._is_stopping
        death = ReplicaDiedError(f"the interpreter of replica {self.name} has come to its end: {how}")
        link.fail(death)
        self._is_over = True
        ours.ring()
        ours.nudge()
        if not is_stopping:
            self.on_death(death)

    @property
    def has_health_check(self) -> bool:
        """Whether the user's class has a ``check_health``."""
        return self._has_health_check

    def check_health(self) -> None:
        """Call the user's ``check_health``, where there is one. Raises what it raises."""
        if self._has_health_check and self._link is not None:
            self._link.ask("check_health")

    def stop(self, timeout: float) -> list[str]:
        """Finalize the instance, end the threads inside, and close the interpreter.

        Blocks up to `timeout` seconds. Names the threads that would not end, with what they are at; then the
        interpreter is left as it is.
        """
        deadline = self._kernel.now() + timeout
        if not self._ending.acquire(True, timeout + 2 * _MOMENT_S):
            return []  # somebody else is at it
        try:
            return self._stop(deadline)
        finally:
            self._ending.release()
            with _lock:
                _alive.pop(self, None)

    def _stop(self, deadline: float) -> list[str]:
        if self._interpreter is None or self._boxes is None or not self._threads:
            return []
        theirs, ours = self._boxes
        with self._lock:
            was_stopping, self._is_stopping = self._is_stopping, True
        if not was_stopping and not self._end:
            theirs.put((STOP, max(0.0, deadline - self._kernel.now())))
        inhabited, reader = self._threads
        inhabited.join(max(_MOMENT_S, deadline + _MOMENT_S - self._kernel.now()))
        reader.join(max(_MOMENT_S, deadline - self._kernel.now()))
        if inhabited.is_alive() or reader.is_alive():
            return list(self._stuck) or [
                f"the interpreter of {self.name}, whose code does not let others have its GIL"
            ]
        stuck = self._close(self._interpreter, max(_MOMENT_S, deadline - self._kernel.now()))
        if not stuck:
            theirs.close()
            ours.close()
            self._interpreter = self._boxes = None
        return stuck

    def _close(self, interpreter: Interpreter, timeout: float) -> list[str]:
        """Close the interpreter, which waits for threads that the user's code has started."""
        try:
            closing = self._kernel.spawn(f"{self.name} close", interpreter.close)
        except RuntimeError:  # the process ends, or the system has no thread to give
            interpreter.close()
            return []
        closing.join(timeout)
        if closing.is_alive():
            return [f"the interpreter of {self.name}, which waits for threads that its code has started"]
        return []

    # ---- requests

    def begins_async(self, method: str) -> bool:
        """True: no call takes a thread of this interpreter's."""
        return True

    def add_worker(self, work: Callable[[], None]) -> None:
        """Never needed, as every call begins elsewhere."""

    def leave(self) -> None:
        """Never needed, as there are no workers here."""

    def come_back(self) -> None:
        """Never needed."""

    def run(self, request: Request) -> Outcome | None:
        """Post it."""
        self.post(request)
        return None

    def post(self, request: Request) -> None:
        """Send the call inside; ``on_done`` will tell how its body ended. Never blocks."""
        link, context = self._link, request.context
        args, kwargs = request.args or (), request.kwargs or {}
        request.args = request.kwargs = None
        deadline = request.deadline
        if (
            deadline != math.inf and self._kernel.now() >= deadline
        ):  # it passed in the queue, and the timer is late
            request.expire()
        if link is None or context is None or request.state is ANSWERED:
            self.on_done(request, request.cancellation())
            return
        channel = request.channel
        try:
            packed = pack_call(args, kwargs)
            values, adapter = propagated.values(context), request.adapter
            if isinstance(adapter, Isolation):  # pickling isolates well enough
                adapter = None
            more = None if values is None is adapter else pack((values, adapter))
        except Exception as error:
            self.on_done(request, Error(untransportable("an argument", error)))
            return
        credit = 0.0 if channel is None else channel.bound
        request.move_to(self)
        link.send(request, packed, (request.request_id, request.model_id, deadline, credit, more))

    def _done(self, request: Request, outcome: Outcome) -> None:
        request.context = None
        if type(outcome) is Error and request.deadline != math.inf and self._kernel.now() >= request.deadline:
            request.expire()  # the clock inside was quicker than the timer here
        self.on_done(request, outcome)

    # ---- what comes out of it

    def _read(self, link: Link) -> None:
        """Read until the interpreter has come to its end, be it long after it was given up."""
        while True:
            message = link.next()
            if message is not None:
                self._see_to(message)
                link.nudge()
            elif self._is_over:
                return
            del message

    def _see_to(self, message: tuple[Any, ...]) -> None:
        link = self._link
        assert link is not None
        try:
            if message[0] != TELL:
                link.receive(message)
            elif message[1] == "died":
                self._died(link, *message[2:])
            else:
                self._stuck = message[2]
        except Exception:  # whoever it was for; the others still need whoever reads
            log_failure()

    def visit(self, is_enough: Callable[[], bool]) -> bool:
        """Wait at the inbox, on the calling thread, until it is enough; False where somebody else does so.

        A wait of plain code only: one inside of a body has to end when the request of that is cancelled.
        """
        link = self._link
        return link is not None and CURRENT.get() is None and link.visit(self._see_to, is_enough)

    def _died(self, link: Link, death: Any, number: int, error: Any) -> None:
        """Be told that the code of the call `number` has asked for the replica's end."""
        request = link.sent(number)
        if request is not None:
            request.answer(Error(unpack_error(error)))  # first: the others get another one
        self.on_death(unpack_error(death))

    def _begin(self, number: int, method: str, packed: Any, extras: Extras) -> None:
        """Begin a call that the code inside makes."""
        link = self._link
        assert link is not None
        app, deployment, parent_number, request_id, model_id, deadline, credit, variables = extras
        parent = link.sent(parent_number)
        router = directory.find(app, deployment) or directory.Absent(
            app, deployment, "there is no such deployment"
        )
        context = Context() if parent is None or parent.context is None else parent.context.copy()
        context.run(CURRENT.set, parent)
        context.run(BOUND.set, math.inf)
        request = Request(
            router,
            method,
            (),
            {},
            context=context,
            caller=get_ident(),
            request_id=request_id,
            channel=cast("Channel", link.outlet(number, credit)) if credit else None,
        )
        request.model_id = model_id
        link.take(number, request)
        try:
            request.args, request.kwargs = unpack_call(packed)
            if variables is not None:
                propagated.restore(unpack(variables), context)
        except Exception as error:
            link.answer_later(number, Error(untransportable("an argument", error)))
            return
        if parent is not None or deadline != math.inf:
            left = None if deadline == math.inf else max(1e-9, deadline - self._kernel.now())
            request.descend_from(parent, left, math.inf)
        answer = _Answer(link, number, request)
        if not request.subscribe(answer):
            answer.tell()
            return
        router.assign(request)


class _Answer:
    """Sends the answer of a call to the code inside that made it."""

    __slots__ = ("_link", "_number", "_request")

    def __init__(self, link: Link, number: int, request: Request) -> None:
        self._link = link
        self._number = number
        self._request = request

    def tell(self) -> Iterable[Subscriber]:
        outcome = self._request.outcome
        self._link.answer_later(self._number, Value(None) if outcome is None else outcome)
        return ()


def _nobody(request: Request, outcome: Outcome) -> None:
    """Stand in for the router until there is one."""


_lock = RealKernel.lock()
_is_closed = False  # guarded by _lock, as is the next
_alive: dict[InterpreterReplica, None] = {}


def close_all(seconds: float) -> None:
    """Close the interpreters that still run, at the end of the process, and start no more. Blocks up to `seconds` each."""
    global _is_closed
    with _lock:
        _is_closed = True
        replicas = list(_alive)
    for replica in replicas:
        replica.stop(seconds)
