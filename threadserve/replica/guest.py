"""The inside of an interpreter replica: a thread replica, and the threads that bring it its requests.

In here runs what runs in the main interpreter, too: ``ThreadReplica`` with its loop, requests, responses. Only there is
no router; the slots are counted outside. Calls come through a link (``replica/link.py``).

Threads. Some wait at the inbox, and whichever hears the bell does what there is to do: the body of a ``def`` runs on the
very thread that was woken for it, so no other has to be. Before it begins it sees to it that somebody else stays at the
inbox: another one that waits there, one that rests, or a new one. Two wait at most; who comes back and finds two, rests.

The end. Whoever is told to stop sends the others home, has the instance finalized and the loop ended, waits for them all,
tells outside who would not end, and waits for those, too: the interpreter can be closed only when nobody runs in it.
"""

from __future__ import annotations

import sys
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from threadserve.call.context import DeploymentID, ReplicaID, inheritance, propagated
from threadserve.call.directory import Unmanned
from threadserve.call.lookout import Lookout
from threadserve.call.request import RUNNING, Request
from threadserve.concurrency.outcome import Error, capture
from threadserve.concurrency.real import RealKernel
from threadserve.concurrency.threads import get_ident, stack_text, wait_until_alone
from threadserve.concurrency.waiter import log_failure
from threadserve.errors import NotSupportedError
from threadserve.replica.codec import pack_error, unpack, unpack_call
from threadserve.replica.link import CALL, STOP, TELL, Link, end_here, untransportable
from threadserve.replica.target import Target
from threadserve.replica.thread import ThreadReplica

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.concurrency.channel import Channel
    from threadserve.concurrency.interpreters import Mailbox
    from threadserve.concurrency.kernel import Kernel, Lock, Thread, WaiterLike
    from threadserve.concurrency.outcome import Outcome
    from threadserve.replica.link import Extras

__all__ = ["Guest"]

_AT_THE_INBOX = 2
_REFUSAL = "does not support loading in subinterpreters"


class _GuestKernel(RealKernel):
    """The real kernel, which knows its threads, so that it can end them."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = self.lock()
        self._threads: list[Thread] = []  # guarded by _lock

    def spawn(self, name: str, fn: Callable[[], object]) -> Thread:
        with self._lock:
            thread = super().spawn(name, fn)
            self._threads = [*(former for former in self._threads if former.is_alive()), thread]
        return thread

    def end(self, but: int, deadline: float) -> list[str]:
        """End the services and wait for all threads but one; name those that would not end by `deadline`."""
        self.errands.post(sys.exit)
        self.callbacks.post(sys.exit)
        self.call_at(0.0, sys.exit)
        for thread in self._others(but):
            thread.join(max(0.0, deadline - self.now()))
        return [
            f"thread {thread.name}, which is at\n{stack_text(thread.ident)}" for thread in self._others(but)
        ]

    def wait_for_all(self, but: int) -> None:
        """Wait for all threads but one, however long that takes."""
        for thread in self._others(but):
            thread.join()

    def _others(self, but: int) -> list[Thread]:
        with self._lock:
            return [thread for thread in self._threads if thread.ident != but and thread.is_alive()]


class _Addressee(Unmanned):
    """What the requests that come from outside have for a router."""

    kernel: Kernel

    def __init__(self, kernel: Kernel, app: str, deployment: str, watch: Callable[[], None]) -> None:
        self.kernel = kernel
        self._watch = watch
        self.lock: Lock = kernel.lock()
        self.app = app
        self.deployment = deployment
        self.name = f"{app}/{deployment}"
        self.stream_buffer_size = 1.0

    def watch(self) -> None:
        """Be told that a body waits for calls, which are seen to outside: if it lasts, that is told there."""
        self._watch()

    def assign(self, request: Request) -> None:
        """Nobody calls it: requests come through the link."""


class Guest:
    """One replica, from its start to its end.

    Args:
        inbox: What it is sent.
        outbox: What it sends.
    """

    def __init__(self, inbox: Mailbox, outbox: Mailbox) -> None:
        self.kernel = _GuestKernel()
        self.link = Link(self.kernel, inbox, outbox, self._begin, end_here)
        self._inbox = inbox
        self._replica: ThreadReplica | None = None
        self._router: _Addressee | None = None
        self._name = ""
        self._lock = self.kernel.lock()
        self._waiting = 1  # guarded by _lock, as all below; threads at the inbox
        self._resting: list[WaiterLike] = []
        self._is_stopping = False
        self._main = 0
        self._has_left = self.kernel.waiter()
        self._has_ended = self.kernel.waiter()
        self._hired = 0
        self._death: BaseException | None = None

    def run(self) -> None:
        """Work until told to stop; returns when no thread of the replica's runs any more. Blocks."""
        self._main = get_ident()
        self.kernel.errands.start()
        inheritance.install()
        if not self._work():
            self._has_left.set()
            self._has_ended.wait()
        wait_until_alone()

    # ---- the threads

    def _work(self) -> bool:
        """Be one of those at the inbox. True: it was this thread that was told to stop, and all others have ended."""
        while True:
            message = self.link.next()
            if message is None:
                continue
            kind = message[0]
            if kind == STOP:
                return self._stop(message[1])
            if kind != CALL:
                try:
                    self.link.receive(message)
                except Exception:  # whoever it was for; the others still need this thread
                    log_failure()
                continue
            request = self._taken(message)
            if request is None:
                continue
            self._leave_inbox()
            self._run(request, message[3], message[4][-1])
            del request, message
            if not self._return_to_inbox():
                return False

    def _leave_inbox(self) -> None:
        """See to it that somebody stays at the inbox while this thread runs a body."""
        resting: WaiterLike | None = None
        with self._lock:
            self._waiting -= 1
            if self._waiting:
                return
            self._waiting = 1
            if self._resting:
                resting = self._resting.pop()
        if resting is not None:
            resting.set()
        else:
            self._hire()

    def _hire(self) -> None:
        self._hired += 1  # only one thread at a time hires: the one that left nobody at the inbox
        try:
            self.kernel.spawn(f"{self._name} worker {self._hired}", self._work)
        except RuntimeError:  # the system has no thread to give: what comes waits until this one is back
            with self._lock:
                self._waiting -= 1

    def _return_to_inbox(self) -> bool:
        """Be at the inbox again, be it after a rest: True; False when the thread goes home."""
        with self._lock:
            if self._is_stopping:
                return False
            if self._waiting < _AT_THE_INBOX:
                self._waiting += 1
                return True
            rest = self.kernel.waiter()
            self._resting.append(rest)
        rest.wait()
        return not self._is_stopping

    # ---- requests

    def _taken(self, message: tuple[Any, ...]) -> Request | None:
        """Return the request to run on this thread; None where it is for the loop, or no request."""
        _, number, method, packed, extras = message
        replica, router = self._replica, self._router
        if extras is None or replica is None or router is None:
            self.kernel.spawn(f"{method} {number}", partial(self._attend, number, method, packed))
            return None
        request_id, model_id, deadline, credit, more = extras
        request = Request(
            router,
            method,
            (),
            {},
            context=Context(),
            request_id=request_id,
            channel=cast("Channel", self.link.outlet(number, credit)) if credit else None,
        )
        request.model_id = model_id
        request.state = RUNNING
        request.deadline = deadline
        self.link.take(number, request)
        if replica.begins_async(method):
            if self._unpack(request, packed, more):
                replica.post(request)
            return None
        return request

    def _begin(self, number: int, method: str, packed: Any, extras: Extras) -> None:
        """Never called: the calls are seen to where they are read."""

    def _run(self, request: Request, packed: Any, more: Any) -> None:
        replica = self._replica
        assert replica is not None
        if self._unpack(request, packed, more):
            outcome = replica.run(request)
            if outcome is not None:
                self._done(request, outcome)

    def _unpack(self, request: Request, packed: Any, more: Any) -> bool:
        """Give `request` its arguments, context variables and adapter; where they cannot be read it is answered: False."""
        try:
            request.args, request.kwargs = unpack_call(packed)
            if more is not None:
                variables, request.adapter = unpack(more)
                if variables is not None:
                    assert request.context is not None
                    propagated.restore(variables, request.context)
        except Exception as error:
            self._done(request, Error(untransportable("an argument", error)))
            return False
        return True

    def _done(self, request: Request, outcome: Outcome) -> None:
        """Be told that a body has returned."""
        number = self.link.number_of(request)
        death, self._death = self._death, None
        if death is not None and isinstance(
            outcome, Error
        ):  # before the slot is free, and the next call comes
            self.link.put((TELL, "died", pack_error(death), number, pack_error(outcome.exception)))
        self.link.answer(number, outcome)
        end_here(request, outcome)

    # ---- what is not a request

    def _attend(self, number: int, verb: str, packed: Any) -> None:
        verbs: dict[str, Callable[..., Any]] = {"start": self._start, "check_health": self._check_health}
        self.link.answer(number, capture(verbs[verb], *unpack_call(packed)[0]))

    def _check_health(self) -> None:
        assert self._replica is not None
        self._replica.check_health()

    def _start(self, letter: dict[str, Any]) -> bool:
        """Make the instance: returns whether it has a health check."""
        propagated.add(*letter["variables"])
        args, kwargs = unpack_call(letter["arguments"])
        app, deployment = letter["deployment"]
        try:
            target = Target(_found(letter["module"], letter["path"]), args, kwargs)
        except ImportError as error:
            raise _explained(error, letter["module"]) from error
        replica = ThreadReplica(
            self.kernel,
            target,
            deployment=DeploymentID(deployment, app),
            rank=letter["rank"],
            world_size=letter["world_size"],
            code_version=letter["code_version"],
            gpu_ids=letter["gpu_ids"],
        )
        replica.context = replace(
            replica.context,
            replica_id=ReplicaID(letter["unique_id"], replica.context.replica_id.deployment_id),
        )
        self._name = replica.name
        replica.on_done = self._done
        replica.on_death = self._die
        lookout = Lookout(self.kernel, self.link.waits, self.link.tell_waits)
        self._router = _Addressee(self.kernel, app, deployment, lookout.notice)
        try:
            replica.start(letter["user_config"])
        except ImportError as error:
            raise _explained(error, letter["module"]) from error
        finally:
            self._replica = replica
        return replica.has_health_check

    def _die(self, error: BaseException) -> None:
        """Be told that the replica shall end; the request that asked for it ends next, on this thread."""
        self._death = error

    # ---- the end

    def _stop(self, seconds: float) -> bool:
        """Be told to stop: the first one ends all others, who are told here as well."""
        with self._lock:
            self._waiting -= 1
            waiting, is_first = self._waiting, not self._is_stopping
            self._is_stopping = True
            resting, self._resting = self._resting, []
        if waiting:
            self._inbox.put((STOP, seconds))
        for rest in resting:
            rest.set()
        if not is_first:
            return False
        deadline = self.kernel.now() + seconds
        inheritance.uninstall()
        stuck = [] if self._replica is None else self._replica.stop(seconds)
        stuck += self.kernel.end(get_ident(), deadline)
        is_main = get_ident() == self._main
        if not is_main and not self._has_left.wait(max(0.0, deadline - self.kernel.now())):
            stuck.append(f"the first thread of {self._name}, which is at\n{stack_text(self._main)}")
        self.link.put((TELL, "ended", tuple(stuck)))
        self.kernel.wait_for_all(get_ident())
        self._has_ended.set()
        return True


def _found(module: str, path: str) -> Any:
    """Return the class or function that is deployed, by its name: there stands it, or the Deployment that was made of it."""
    from importlib import import_module

    found: Any = import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    is_declared = type(found).__module__.startswith("threadserve.app.")
    return found.func_or_class if is_declared else found


def _explained(error: ImportError, module: str) -> Exception:
    """Return what tells which module keeps the code from running here, where that is the reason."""
    cause: BaseException | None = error
    while cause is not None:
        if _REFUSAL in str(cause):
            inner = str(cause).partition(_REFUSAL)[0].removeprefix("module ").strip()
            package = (
                inner.partition(".")[0].removeprefix("_")
                if inner
                else getattr(cause, "name", None) or "a module"
            )
            return NotSupportedError(
                f"{module} imports {package}, which cannot be loaded in a subinterpreter ({cause}); "
                "use replica_type='thread' for this deployment"
            )
        cause = cause.__cause__ or cause.__context__
    return error
