"""Calls that wait for the answers of other calls: no thread, no slot and no place in a queue is held meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadserve.call.answer import Answer, request_of
from threadserve.call.request import ANSWERED, Request
from threadserve.call.response import DeploymentResponse
from threadserve.call.stream import DeploymentResponseGenerator
from threadserve.concurrency.future import is_future
from threadserve.concurrency.outcome import Error, Outcome, capture
from threadserve.concurrency.waiter import Subscriber, deliver
from threadserve.errors import ArgumentError

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Inputs", "LoneInput", "count_inputs", "lone_input", "watch_inputs"]

_PLAIN = frozenset((int, float, str, bytes, bool, type(None)))
_LOOK_DEPTH = 2
_LOOK_COUNT = 64


def count_inputs(request: Request) -> int:
    """Return how many responses, refs and futures `request` has among its arguments.

    Raises:
        ArgumentError: A response is nested in a container, or a generator is an argument.
    """
    found = 0
    for value in request.args or ():
        if type(value) not in _PLAIN and _is_input(request, value):
            found += 1
    if request.kwargs:
        for value in request.kwargs.values():
            if type(value) not in _PLAIN and _is_input(request, value):
                found += 1
    return found


def _is_input(request: Request, value: Any) -> bool:
    if isinstance(value, Answer):
        return True
    if type(value) in _CONTAINERS:
        _look_inside(request, value)
    elif isinstance(value, DeploymentResponseGenerator):
        _refuse_stream(request)
    return is_future(value)


def lone_input(request: Request) -> Request | None:
    """Return the one call whose answer `request` waits for; None where there are several, or a plain future, or none."""
    found: Request | None = None
    for value in _arguments(request):
        if type(value) in _PLAIN:
            continue
        if isinstance(value, Answer):
            upstream = request_of(value)
            if upstream.state is not ANSWERED and upstream is not found:
                if found is not None:
                    return None
                found = upstream
        elif is_future(value) and not value.done():
            return None
    return found


def watch_inputs(
    request: Request, count: int, admit: Callable[[Request, Subscriber], Iterable[Subscriber]]
) -> Inputs | LoneInput:
    """Make what waits for the `count` inputs of `request`, and then admits it."""
    if count == 1:
        for value in _arguments(request):
            if isinstance(value, Answer):
                return LoneInput(request, value, admit)
    return Inputs(request, count, admit)


def _arguments(request: Request) -> Sequence[Any]:
    args, kwargs = request.args or (), request.kwargs
    return (*args, *kwargs.values()) if kwargs else args


_CONTAINERS = frozenset((list, tuple, set, dict))


def _look_inside(request: Request, value: Any) -> None:
    """Find a nested response, two levels deep and among the first 64 elements: a full walk would cost too much."""
    level: list[Any] = [value]
    left = _LOOK_COUNT
    for _ in range(_LOOK_DEPTH):
        inner: list[Any] = []
        for container in level:
            for element in tuple(container.values() if type(container) is dict else container):
                if left == 0:
                    return
                left -= 1
                if isinstance(element, DeploymentResponse):
                    _refuse_nested(request, type(value).__name__)
                if isinstance(element, DeploymentResponseGenerator):
                    _refuse_stream(request)
                if type(element) in _CONTAINERS:
                    inner.append(element)
        level = inner


def _refuse_nested(request: Request, container: str) -> None:
    raise ArgumentError(
        f"{request.router.name}.{request.method} got a DeploymentResponse nested in a {container}: only responses that are "
        "arguments themselves are resolved; pass each as an argument of its own (`*responses`), or fetch the "
        "values first (`await threadserve.futures.gather(...)` or .result())",
        deployment=request.router.name,
        request_id=request.request_id,
    )


def _refuse_stream(request: Request) -> None:
    raise ArgumentError(
        f"{request.router.name}.{request.method} got a DeploymentResponseGenerator as an argument: a stream cannot be passed "
        "to another deployment; read it (`async for` or `for`) and pass the items",
        deployment=request.router.name,
        request_id=request.request_id,
    )


class LoneInput:
    """The only input of one request, another call's answer: what ``Inputs`` is for several, at half the cost.

    It is told of both, the answer that is waited for and the request's own, should that come before. It knows the argument by
    identity: whether another one is an input too was asked before, and may be for code of the user's to say.
    """

    __slots__ = ("_admit", "_input", "_request")

    def __init__(
        self,
        request: Request,
        answer: Answer[Any],
        admit: Callable[[Request, Subscriber], Iterable[Subscriber]],
    ) -> None:
        self._request = request
        self._input = answer
        self._admit = admit

    def register(self) -> None:
        """Begin to wait, once the request tells this of its answer. Never blocks."""
        upstream = request_of(self._input)
        if not upstream.subscribe(self):
            deliver(self.tell())
        elif self._request.state is ANSWERED:  # meanwhile
            upstream.forget(self)

    def tell(self) -> Iterable[Subscriber]:
        """There is an answer: to the call that is waited for, or to the request itself."""
        request, answer = self._request, self._input
        upstream = request_of(answer)
        args, kwargs = request.args, request.kwargs
        if request.state is ANSWERED or args is None:
            upstream.forget(self)
            return ()
        outcome = upstream.outcome
        assert outcome is not None
        if outcome.exception is not None:
            with request.router.lock:
                return request.settle(outcome) or ()
        value = outcome.unwrap()
        request.args = tuple([value if given is answer else given for given in args])
        if kwargs:
            request.kwargs = {name: value if given is answer else given for name, given in kwargs.items()}
        return self._admit(request, self)


class Inputs:
    """The unanswered inputs of one request; it is admitted when the last of them has its value.

    The first input that fails answers the request with its own failure. How many there are is known before the first
    is registered, so inputs that are answered while others are still being registered do not start the call too early.
    """

    __slots__ = ("_admit", "_pending", "_request", "_upstream")

    def __init__(
        self, request: Request, count: int, admit: Callable[[Request, Subscriber], Iterable[Subscriber]]
    ) -> None:
        self._request = request
        self._admit = admit
        self._pending = count  # guarded by the lock of the request's router
        self._upstream: list[tuple[Request, _Input]] = []

    def register(self) -> None:
        """Begin to wait, once the request tells this of its answer. Never blocks."""
        request = self._request
        for value in _arguments(request):
            if type(value) in _PLAIN:
                continue
            if isinstance(value, Answer):
                upstream = request_of(value)
                watch = _Input(self, upstream)
                self._upstream.append((upstream, watch))
                if not upstream.subscribe(watch):
                    deliver(watch.tell())
            elif is_future(value):
                value.add_done_callback(self._future_done)
        if request.state is ANSWERED:  # an input had failed already
            self.tell()

    def tell(self) -> Iterable[Subscriber]:
        """The request itself was answered while it waited: nobody needs to be told of its inputs any more."""
        for upstream, watch in self._upstream:
            upstream.forget(watch)
        self._upstream.clear()
        return ()

    def arrived(self) -> Iterable[Subscriber]:
        """One input has its value; admit the request if that was the last."""
        request = self._request
        if self._pending > 1:  # it never grows, so a single one needs no lock to know that it is the last
            with request.router.lock:
                self._pending -= 1
                if self._pending:
                    return ()
        self._upstream.clear()  # its entries lead back here
        try:
            failure = self._resolve()
        except Exception as error:  # a class has changed its mind about being looked at
            failure = Error(error.with_traceback(None))
        return self._admit(request, self) if failure is None else self.failed(failure)

    def failed(self, outcome: Outcome) -> Iterable[Subscriber]:
        """An input failed: so has the request, whose body never runs."""
        with self._request.router.lock:
            return self._request.settle(outcome) or ()

    def _future_done(self, future: concurrent.futures.Future[Any]) -> None:
        outcome = _outcome(future)
        if outcome is not None and outcome.exception is not None:
            deliver(self.failed(outcome))
        else:
            deliver(self.arrived())

    def _resolve(self) -> Outcome | None:
        """Put the values in the place of the responses; the failure of the first that failed comes back instead."""
        request = self._request
        args, kwargs = request.args, request.kwargs
        if args is None or kwargs is None:
            return None
        values: list[Any] = []
        for value in _arguments(request):
            outcome = _outcome(value)
            if outcome is None:
                values.append(value)
            elif outcome.exception is not None:
                return outcome
            else:
                values.append(outcome.unwrap())
        if not kwargs:
            request.args = tuple(values)
            return None
        request.args = tuple(values[: len(args)])
        request.kwargs = dict(zip(kwargs, values[len(args) :], strict=True))
        return None


def _outcome(value: Any) -> Outcome | None:
    """Return how an input ended; None for what is no input."""
    if type(value) in _PLAIN:
        return None
    if isinstance(value, Answer):
        return request_of(value).outcome
    if is_future(value):
        outcome = capture(value.result)
        return Error(outcome.exception) if isinstance(outcome, Error) else outcome
    return None


class _Input:
    """One input, as its own request sees it."""

    __slots__ = ("_inputs", "_upstream")

    def __init__(self, inputs: Inputs, upstream: Request) -> None:
        self._inputs = inputs
        self._upstream = upstream

    def tell(self) -> Iterable[Subscriber]:
        outcome = self._upstream.outcome
        if outcome is not None and outcome.exception is not None:
            return self._inputs.failed(outcome)
        return self._inputs.arrived()
