"""The two ends between which calls, answers and the items of streams travel, one end in each interpreter.

Both ends do the same. Each sends calls and answers those of the other; a call has a number that its sender gives it. An end
has an inbox of its own and is driven by the threads that read that (``next``, ``receive``); ``put`` never blocks.

    CALL    number, method, arguments, extras   body begins
    ITEM    number, item                        of the answer of a stream
    RETURN  number, value                       the body has returned
    RAISE   number, error                       the body has raised
    CANCEL  number                              the sender wants no answer any more
    EXPIRE  number                              the same, because the deadline has passed
    CREDIT  number, count                       the reader of a stream has read so many
    WAITS   number, since, calls, line          the body waits for calls that it has made; see ``waiting.py``
    WAKE    number, since, error                its wait has an end, by this error
    TELL    verb, value                         outside of all calls; STOP ends a thread that reads

What has been put has been started: nothing is ever sent twice.

A stream's producer may be ahead of its reader by as many items as its bound says, those on their way included: it
gets that as credit with the call, each item costs one, and what has been read is given back, half of the bound at a time.
"""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from threadserve.call.request import ANSWERED, Request, Wait
from threadserve.concurrency.channel import put_async
from threadserve.concurrency.outcome import Error, Outcome, Value
from threadserve.concurrency.waiter import deliver
from threadserve.errors import ArgumentError, RequestTimeoutError
from threadserve.replica.codec import is_plain, pack, pack_call, pack_error, unpack, unpack_error
from threadserve.replica.waiting import heard, open_ended, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from threadserve.concurrency.channel import Channel
    from threadserve.concurrency.interpreters import Mailbox
    from threadserve.concurrency.kernel import Kernel, WaiterLike
    from threadserve.concurrency.waiter import Subscriber

__all__ = [
    "CALL",
    "CANCEL",
    "CREDIT",
    "EXPIRE",
    "ITEM",
    "RAISE",
    "RETURN",
    "STOP",
    "TELL",
    "Extras",
    "Link",
    "Outlet",
    "end_here",
    "untransportable",
]

CALL, ITEM, RETURN, RAISE, CANCEL, EXPIRE, CREDIT, TELL, STOP, ANSWERS, WAITS, WAKE = range(12)
_OF_ANSWERS = (RETURN, ITEM, RAISE, WAITS)  # a wait is told after the items that came before it
_IN_ORDER: tuple[Any, ...] = (ANSWERS,)
"""Stands for a message that waits for those before it."""

Extras = tuple[Any, ...]
"""What goes with the arguments: what both ends agree upon."""


class Link:
    """One end. Every member is safe from any thread.

    Args:
        kernel: Makes locks, and runs the code of users' classes that pickle.
        inbox: What this end is sent.
        outbox: The inbox of the other end.
        begin: Called with number, method, arguments and extras of a call of the other end's. Must not block.
        end: Called with a request that was sent, and how its body has ended.
    """

    def __init__(
        self,
        kernel: Kernel,
        inbox: Mailbox,
        outbox: Mailbox,
        begin: Callable[[int, str, Any, Extras], None],
        end: Callable[[Request, Outcome], None],
    ) -> None:
        self._kernel = kernel
        self._inbox = inbox
        self._begin = begin
        self._end = end
        self._visiting = kernel.turn()
        self._lock = kernel.lock()
        self._numbers = 0  # guarded by _lock, as all below
        self._sent: dict[int, Request] = {}
        self._taken: dict[int, Request | None] = {}  # None until its body is about to begin
        self._early: dict[int, list[tuple[Any, ...]]] = {}
        self._answers: deque[tuple[Any, ...]] = deque()
        self._is_busy = False
        self._inlets: dict[int, _Inlet] = {}
        self._questions: dict[int, _Question] = {}
        self._death: Exception | None = None
        self.put = outbox.put

    # ---- calls that go

    def send(self, request: Request, packed: Any, extras: Extras) -> None:
        """Send the call of `request`, which is RUNNING; ``end`` will be called with it."""
        with self._lock:
            self._numbers += 1
            number = self._numbers
            self._sent[number] = request
            if request.channel is not None:
                self._inlets[number] = _Inlet(
                    self._kernel, request.channel, partial(self._give_credit, number)
                )
        may_begin = request.attach(partial(self._interrupt, request, number))
        self.put((CALL, number, request.method, packed, extras))
        if not may_begin or (request.state is ANSWERED and number in self._sent):
            self._interrupt(request, number)  # what was sent before the call is not heard

    def ask(self, verb: str, *args: Any) -> Any:
        """Have the other end do what is no request, and return what it returns. Blocks.

        Raises:
            Exception: What it raises there.
        """
        question = _Question(self._kernel.waiter())
        packed = pack_call(args, {})
        with self._lock:
            if self._death is not None:
                raise self._death
            self._numbers += 1
            number = self._numbers
            self._questions[number] = question
        self.put((CALL, number, verb, packed, None))
        question.waiter.wait()
        assert question.outcome is not None
        return question.outcome.unwrap()

    def fail(self, death: Exception) -> None:
        """Be told that the other end is no more: what was asked gets no answer. Requests are their router's to answer."""
        with self._lock:
            self._death = death
            questions, self._questions = self._questions, {}
        for question in questions.values():
            question.settle(Error(death))

    def sent(self, number: int) -> Request | None:
        """Return the request whose call has the number, while its body runs."""
        return self._sent.get(number)

    def number_of(self, request: Request | None) -> int:
        """Return the number of a call of the other end's whose body runs here; 0 where there is none."""
        return 0 if request is None else request.number

    def _interrupt(self, request: Request, number: int) -> None:
        outcome = request.outcome
        has_expired = outcome is not None and isinstance(outcome.exception, RequestTimeoutError)
        self.put((EXPIRE if has_expired else CANCEL, number))
        self._inbox.nudge()

    def _give_credit(self, number: int, count: int) -> None:
        self.put((CREDIT, number, count))

    # ---- calls that come

    def take(self, number: int, request: Request) -> None:
        """Note that `request` is the call `number` of the other end's, before its body begins."""
        request.number = number
        with self._lock:
            self._taken[number] = request
            early = self._early.pop(number, ())
        for message in early:
            self._notify(message)

    def outlet(self, number: int, credit: float) -> Outlet:
        """Return what carries the items of the answer to the call `number`."""
        return Outlet(self._kernel, credit, lambda item: self.put((ITEM, number, pack(item))))

    def answer(self, number: int, outcome: Outcome) -> None:
        """Send how the body of the call `number` has ended. Runs code of the classes of what is sent."""
        with self._lock:
            self._taken.pop(number, None)
        if isinstance(outcome, Error):
            message: tuple[Any, ...] = (RAISE, number, pack_error(outcome.exception))
        else:
            try:
                message = (RETURN, number, pack(outcome.value))
            except Exception as error:
                message = (RAISE, number, pack_error(untransportable("its result", error)))
        self.put(message)

    def answer_later(self, number: int, outcome: Outcome) -> None:
        """Do the same where no code of users' may run."""
        if isinstance(outcome, Value) and is_plain(outcome.value):
            self.answer(number, outcome)
        else:
            self._kernel.callbacks.post(partial(self.answer, number, outcome))

    # ---- what has come

    def next(self) -> tuple[Any, ...] | None:
        """Wait for a message and take it; None where somebody else has taken it. Blocks.

        Several threads may wait. A call is noted in the same step, so that what concerns it, and was sent after it, finds
        it, whichever thread is quicker.
        """
        self._inbox.wait()
        with self._lock:
            return self._note(self._inbox.take())

    def _note(self, message: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if message is not None:
            if message[0] == CALL:
                self._taken[message[1]] = None
            elif self._inlets and message[0] in _OF_ANSWERS:
                self._answers.append(message)
                return _IN_ORDER
        return message

    def visit(self, see_to: Callable[[tuple[Any, ...]], object], is_enough: Callable[[], bool]) -> bool:
        """Wait at the inbox until it is enough: True; False if somebody else does so already. Blocks.

        Args:
            see_to: Called with each message that comes meanwhile.
            is_enough: Becomes true by a message, or by the end of a request that was sent.

        Raises:
            KeyboardInterrupt: It struck while the thread waited.
        """
        if not self._visiting.acquire(False):
            return False
        try:
            self._inbox.visit(self._lock, self._note, see_to, is_enough)
        finally:
            self._visiting.release()
        return True

    def nudge(self) -> None:
        """Have a visitor look whether it has what it came for."""
        self._inbox.nudge()

    def receive(self, message: tuple[Any, ...]) -> None:
        """See to a message that ``next`` has returned, but for TELL and STOP, which are the reader's own."""
        kind = message[0]
        if kind == CALL:
            self._begin(message[1], message[2], message[3], message[4])
        elif kind == ANSWERS:
            self._work_off_answers()
        elif kind == WAITS:
            self._hear(message)
        elif kind in _OF_ANSWERS:  # no stream comes, so the order does not matter
            self._returned(kind, message[1], message[2])
        else:
            self._notify(message)

    # ---- waits

    def waits(self) -> list[Wait]:
        """Return the waits of the bodies that run here for the other end."""
        with self._lock:
            running = list(self._taken.values())
        return [wait for request in running if request is not None and (wait := request.wait) is not None]

    def tell_waits(self) -> None:
        """Tell the other end of those waits that nothing here can end."""
        with self._lock:
            numbers = {request: number for number, request in self._taken.items() if request is not None}
            ways = {
                request: (number, 0 if (inlet := self._inlets.get(number)) is None else inlet.poured)
                for number, request in self._sent.items()
            }
        for request, wait in open_ended(numbers):
            what = told(numbers[request], request, wait, ways.get)
            if what is not None:
                self.put((WAITS, *what))

    def _hear(self, message: tuple[Any, ...]) -> None:
        with self._lock:
            sent, taken = dict(self._sent), dict(self._taken)
        heard(message[1:], sent, taken, self._wake)

    def _wake(self, number: int, since: float, error: BaseException) -> None:
        self.put((WAKE, number, since, pack_error(error)))

    def _work_off_answers(self) -> None:
        """See to items and ends of bodies in the order in which they came; one thread at a time does."""
        while True:
            with self._lock:
                if self._is_busy or not self._answers:
                    return
                self._is_busy = True
                message = self._answers.popleft()
            try:
                if message[0] == ITEM:
                    inlet = self._inlets.get(message[1])
                    if inlet is not None:
                        inlet.pour(message[2])
                elif message[0] == WAITS:
                    self._hear(message)
                else:
                    self._returned(message[0], message[1], message[2])
            finally:
                with self._lock:
                    self._is_busy = False

    def _notify(self, message: tuple[Any, ...]) -> None:
        kind, number = message[0], message[1]
        with self._lock:
            request = self._taken.get(number)
            if request is None:
                if number in self._taken:  # its body is about to begin
                    self._early.setdefault(number, []).append(message)
                return
        if kind == CREDIT:
            cast("Outlet", request.channel).earn(message[2])
        elif kind == WAKE:
            wait = request.wait
            if wait is not None and wait.since == message[2]:
                wait.fail(unpack_error(message[3]))
        elif kind == EXPIRE:
            request.expire()
        else:
            request.cancel()

    def _returned(self, kind: int, number: int, packed: Any) -> None:
        with self._lock:
            request = self._sent.pop(number, None)
            inlet = self._inlets.pop(number, None) if self._inlets else None
            question = self._questions.pop(number, None) if self._questions else None
        failure = None if inlet is None else inlet.failure
        if failure is not None:
            outcome: Outcome = Error(failure)
        elif kind == RAISE:
            outcome = Error(unpack_error(packed))
        else:
            try:
                outcome = Value(unpack(packed))
            except Exception as error:
                outcome = Error(untransportable("its result", error))
        if request is not None:
            self._end(request, outcome)
        elif question is not None:
            question.settle(outcome)


class _Question:
    """What was asked, and by whom."""

    def __init__(self, waiter: WaiterLike) -> None:
        self.waiter = waiter
        self.outcome: Outcome | None = None

    def settle(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.waiter.set()


def untransportable(what: str, error: Exception) -> ArgumentError:
    """Return the error for a value that cannot go from one interpreter to another."""
    refusal = ArgumentError(
        f"{what} cannot travel between interpreters: {type(error).__name__}: {error}; send what can be pickled and imported "
        "there, or use replica_type='thread'"
    )
    refusal.__cause__ = error
    return refusal


class Outlet:
    """The producer's end of a stream whose reader is in another interpreter; to the producer it is a channel."""

    def __init__(self, kernel: Kernel, credit: float, send: Callable[[Any], None]) -> None:
        self.bound = credit
        """How many items the producer may be ahead; ``math.inf``: any number."""
        self._send = send
        self.sent = 0
        """How many items have been sent; grows before one is on its way."""
        self._lock = kernel.lock()
        self._credit = credit  # guarded by _lock, as all below, and what was sent
        self._writers: dict[Subscriber, None] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return 0 if self.bound == math.inf else int(self.bound - self._credit)

    @property
    def is_closed(self) -> bool:
        """Whether the producer should stop."""
        return self._is_closed

    def has_room(self) -> bool:
        """Whether a producer that waits would be let go on. Takes no lock: the answer may be old when it comes."""
        return self._credit > 0 or self._is_closed

    def offer(self, item: Any, subscriber: Subscriber | None) -> bool | None:
        """Send `item`: True. Closed: False. No credit: None; then `subscriber` is told when to offer again.

        Raises:
            ArgumentError: The item cannot travel.
        """
        with self._lock:
            if self._is_closed:
                return False
            if self._credit < 1:
                if subscriber is not None:
                    self._writers[subscriber] = None
                return None
            self._credit -= 1
            self.sent += 1
        try:
            self._send(item)
        except Exception as error:
            raise untransportable("an item", error) from error
        return True

    async def aput(self, item: Any) -> bool:
        """Send `item`, suspending while there is no credit; False when it is closed."""
        return await put_async(self, item)

    def wait_for_room(self, subscriber: Subscriber) -> bool:
        """Whether an item may be offered; if not, `subscriber` is told when one may be."""
        with self._lock:
            if self._credit >= 1 or self._is_closed:
                return True
            self._writers[subscriber] = None
            return False

    def forget(self, subscriber: Subscriber) -> None:
        """Let a producer that gave up waiting not be told."""
        with self._lock:
            self._writers.pop(subscriber, None)

    def earn(self, count: int) -> None:
        """Let the producer send so many items more."""
        with self._lock:
            self._credit += count
            news = tuple(self._writers)
            self._writers.clear()
        deliver(news)

    def finish(self) -> None:
        """The producer has come to its end; the answer says so to the reader."""

    def close(self) -> None:
        """Send the producer home."""
        with self._lock:
            self._is_closed = True
            news = tuple(self._writers)
            self._writers.clear()
        deliver(news)


class _Inlet:
    """Pours items that come from elsewhere into a channel, and gives credit for those that were read."""

    def __init__(self, kernel: Kernel, channel: Channel, give: Callable[[int], None]) -> None:
        self._channel = channel
        self._give = give
        self._lock = kernel.lock()
        self.poured = 0  # guarded by _lock, as is the next; how many items have come
        self._given = 0
        self.failure: Exception | None = None
        """Why an item could not be read; what comes after it is dropped."""

    def pour(self, packed: Any) -> None:
        """Put an item in; there is room for it, as it was paid for."""
        if self.failure is not None:
            return
        try:
            self._channel.offer(unpack(packed), None)
        except Exception as error:
            self.failure = untransportable("an item", error)
            return
        with self._lock:
            self.poured += 1
        if self._channel.bound != math.inf:
            self.tell()

    def tell(self) -> Iterable[Subscriber]:
        """Give back what was read, once it is half of what there may be, or the producer has nothing left."""
        bound = self._channel.bound
        while True:
            with self._lock:
                out = self.poured - self._given
                read = out - len(self._channel)
                is_due = read > 0 and (out >= bound or read * 2 >= bound)
                if is_due:
                    self._given += read
            if is_due:
                self._give(read)
                return ()
            if out < bound or not self._channel.wait_for_room(self) or self._channel.is_closed:
                return ()


def end_here(request: Request, outcome: Outcome) -> None:
    """End `request`, whose body has returned or was never here."""
    with request.router.lock:
        news = request.end(outcome)
    deliver(news)
