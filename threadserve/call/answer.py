"""What every holder of an answer has: the request that it comes from, and the Future that stands for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from threadserve.call.blocking import check_cancelled_async, wait_for_async
from threadserve.call.request import ANSWERED, RUNNING, Request
from threadserve.concurrency.future import is_future
from threadserve.concurrency.interrupts import INTERRUPTED, is_our_code_interrupted

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Generator, Iterable

    from threadserve.concurrency.future import CallFuture
    from threadserve.concurrency.outcome import Outcome
    from threadserve.concurrency.waiter import Subscriber

__all__ = ["Answer", "Callback", "describe", "inputs_of", "mirror", "refuse_in_finalizer", "request_of"]

R_co = TypeVar("R_co", covariant=True)


class Answer(Generic[R_co]):
    """The future answer of one request, in somebody's hands: a DeploymentResponse or an ObjectRef.

    As an argument of a call, either is replaced by its value before the body runs.
    """

    __slots__ = ("__weakref__", "_request")

    def __init__(self, request: Request) -> None:
        self._request = request

    def done(self) -> bool:
        """Whether there is an answer. Never blocks."""
        return self._request.state is ANSWERED

    def __await__(self) -> Generator[Any, None, R_co]:
        if self._request.state is not ANSWERED:
            yield from wait_for_async(self._request).__await__()
        check_cancelled_async()
        request = self._request
        del self  # as in Request.unwrap
        try:
            return cast("R_co", request.unwrap())
        finally:
            del request

    @property
    def future(self) -> concurrent.futures.Future[R_co]:
        """A ``concurrent.futures.Future`` for the same answer, made when first asked for, always the same one.

        Its ``cancel`` has the Future's meaning: it succeeds only while the body has not begun.
        """
        refuse_in_finalizer("cannot make a future")
        return cast("concurrent.futures.Future[R_co]", mirror(self._request))


def refuse_in_finalizer(refusal: str) -> None:
    """Raise RuntimeError in a finalizer that has interrupted our code, and with it what holds the locks to be taken."""
    if INTERRUPTED and is_our_code_interrupted():
        raise RuntimeError(
            f"{refusal} in a finalizer that the garbage collector calls in the middle of threadserve's own code; "
            "send and cancel requests there, and do no more with them"
        )


def request_of(answer: Answer[Any]) -> Request:
    """Return the request whose answer this is; for the rooms above."""
    return answer._request


def inputs_of(request: Request) -> list[Request]:
    """Return the calls whose answers `request` waits for; nothing where something else will let it go on, or may."""
    inputs: list[Request] = []
    for value in (*(request.args or ()), *(request.kwargs or {}).values()):
        if isinstance(value, Answer):
            inputs.append(request_of(value))
        elif is_future(value):
            return []
    has_failed = any(
        (outcome := each.outcome) is not None and outcome.exception is not None for each in inputs
    )
    if has_failed or request.deadline != math.inf:  # it is about to be answered, or will expire
        return []
    return [each for each in inputs if each.outcome is None]


def describe(request: Request) -> str:
    """Say where `request` is and how to get at its answer."""
    outcome = request.outcome
    if outcome is None:
        return f"{request.state.value}; get the value with .result() or await"
    if outcome.exception is not None:
        return f"failed with {type(outcome.exception).__name__}; .result() or await raises it"
    return "done; get the value with .result() or await"


def mirror(request: Request) -> CallFuture:
    """Return the request's Future, making it if this is the first call."""
    future = request.future
    if future is not None:
        return future
    from threadserve.concurrency.future import CallFuture

    made = CallFuture(lambda: request.state is RUNNING, request.withdraw)
    with request.router.lock:
        if request.future is None:
            request.future = made
        future = request.future
    if future is made:
        callback = Callback(request, lambda: made.complete(cast("Outcome", request.outcome)))
        if not request.subscribe(callback):
            callback.call()
    return future


class Callback:
    """Foreign code that wants to know. It is never run by whoever tells it."""

    __slots__ = ("_fn", "_request")

    def __init__(self, request: Request, fn: Callable[[], object]) -> None:
        self._request = request
        self._fn = fn

    def tell(self) -> Iterable[Subscriber]:
        """Have it called on a thread for callbacks."""
        self._request.router.kernel.callbacks.post(self.call)
        return ()

    def call(self) -> None:
        """Call it now; an exception is logged."""
        try:
            self._fn()
        except Exception:
            import logging

            logging.getLogger("threadserve").exception(
                "a done callback of %s.%s raised", self._request.router.name, self._request.method
            )
