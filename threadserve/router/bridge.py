"""The router of every deployment there is, for the code of a replica that runs in an interpreter of its own.

The deployments are in the main interpreter, behind their routers; a call from in here waits for its arguments here, as
any call does, goes there as a child of the request whose body makes it, and its answer comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadserve.call import directory
from threadserve.call.context import propagated
from threadserve.call.request import CURRENT, RUNNING, WAITING, Request
from threadserve.concurrency.interpreters import Mailbox
from threadserve.concurrency.outcome import Error
from threadserve.concurrency.threads import become_guest
from threadserve.concurrency.waiter import Subscriber, deliver
from threadserve.replica.codec import pack, pack_call
from threadserve.replica.guest import Guest
from threadserve.replica.link import untransportable
from threadserve.router.arguments import count_inputs, watch_inputs
from threadserve.router.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from threadserve.concurrency.kernel import Kernel
    from threadserve.replica.link import Link

__all__ = ["ENTRY", "Bridge", "enter"]

ENTRY = f"import sys; sys.path[:] = path; from {__name__} import enter; enter(inbox, outbox)"
"""What an interpreter runs to become a replica."""


class Bridge(directory.Unmanned):
    """Sends the calls of one deployment out of the interpreter. Every member is safe from any thread."""

    def __init__(self, kernel: Kernel, link: Link, app: str, deployment: str) -> None:
        self.kernel = kernel
        self.lock = kernel.lock()
        self.app = app
        self.deployment = deployment
        self.name = f"{app}/{deployment}"
        self.stream_buffer_size: float = Limits().stream_buffer_size
        self._link = link

    def assign(self, request: Request) -> None:
        """Take over `request` and see to its answer. Never blocks, never raises."""
        try:
            count = count_inputs(request)
        except Exception as error:
            request.answer(Error(error.with_traceback(None)))
            return
        if not count:
            deliver(self._send(request))
            return
        inputs = watch_inputs(request, count, self._send)
        if request.subscribe(inputs):
            inputs.register()

    def _send(self, request: Request, inputs: Subscriber | None = None) -> Sequence[Subscriber]:
        """Send `request`, which has all its arguments; news comes back."""
        context = request.context
        try:
            packed = pack_call(request.args or (), request.kwargs or {})
            values = None if context is None else propagated.values(context)
            variables = None if values is None else pack(values)
        except Exception as error:
            refusal = Error(untransportable("an argument", error))
            with self.lock:
                return request.settle(refusal) or ()
        parent = None if context is None else context.get(CURRENT)
        with self.lock:
            if inputs is not None:
                request.drop(inputs)
            if request.state is not WAITING:  # answered meanwhile; as in Router.admit
                _left = request.args, request.kwargs
                request.args = request.kwargs = None
                return ()
            request.state = RUNNING
            request.args = request.kwargs = request.context = None
        credit = 0.0 if request.channel is None else request.channel.bound
        where = (self.app, self.deployment, self._link.number_of(parent))
        self._link.send(
            request,
            packed,
            (*where, request.request_id, request.model_id, request.deadline, credit, variables),
        )
        return ()


def enter(inbox: Any, outbox: Any) -> None:
    """Make a replica of this interpreter, and run it to its end. Blocks."""
    become_guest()
    guest = Guest(Mailbox(*inbox), Mailbox(*outbox))
    bridges: dict[tuple[str, str], Bridge] = {}
    lock = guest.kernel.lock()

    def find(app: str, deployment: str) -> Bridge:
        with lock:
            bridge = bridges.get((app, deployment))
            if bridge is None:
                bridge = bridges[app, deployment] = Bridge(guest.kernel, guest.link, app, deployment)
            return bridge

    directory.look_beyond(find)
    guest.run()
