"""Waiting for several calls at once: over responses and plain ``concurrent.futures`` futures, mixed as you like.

``gather``, ``as_completed`` and ``map`` give objects that serve plain code and coroutines alike: ``gather(...).result()`` or
``await gather(...)``, ``for`` or ``async for``. ``wait`` blocks; ``wait_async`` is its twin for coroutines. Nothing
here holds a thread while it waits, and giving up cancels nothing; Ctrl-C does, as in ``response.result()``.

The name ``concurrent-futures-extra`` that is sometimes mentioned for such helpers is not a published package.
"""

from __future__ import annotations

import concurrent.futures
import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, cast

from threadserve.call.answer import Answer, request_of
from threadserve.call.blocking import block, suspend
from threadserve.call.response import check_seconds, refuse_to_block
from threadserve.concurrency.loops import LoopWaiter, make_future
from threadserve.concurrency.outcome import Error, Outcome, Value
from threadserve.concurrency.real import RealKernel, kernel_here
from threadserve.concurrency.waiter import Subscriber, deliver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator

    from threadserve.call.request import Request
    from threadserve.call.response import DeploymentResponse
    from threadserve.concurrency.kernel import Kernel

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "DoneAndNotDone",
    "Gathering",
    "as_completed",
    "gather",
    "map",
    "wait",
    "wait_async",
]

ALL_COMPLETED = concurrent.futures.ALL_COMPLETED
FIRST_COMPLETED = concurrent.futures.FIRST_COMPLETED
FIRST_EXCEPTION = concurrent.futures.FIRST_EXCEPTION

R = TypeVar("R")
S = TypeVar("S")

Source: TypeAlias = "Answer[R] | concurrent.futures.Future[R]"
"""Something that will have an outcome."""


class Remote(Protocol):
    """What ``map`` calls: a handle, or a method of one."""

    def remote(self, *args: Any, **kwargs: Any) -> DeploymentResponse[Any]:
        """Call, and return the response at once."""
        ...


class DoneAndNotDone(NamedTuple, Generic[S]):
    """What ``wait`` found."""

    done: set[S]
    not_done: set[S]


def wait(
    sources: Iterable[S], timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> DoneAndNotDone[S]:
    """Block until all (or the first, or the first failed) of `sources` are done; like ``concurrent.futures.wait``.

    Args:
        sources: Responses and futures.
        timeout: Give up after so many seconds; what is not done is told apart in the answer.
        return_when: ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION.

    Raises:
        TypeError: Something is neither a response nor a future.
        ValueError: return_when or timeout is wrong.
        RuntimeError: An event loop runs in this thread; use ``wait_async``.
    """
    arrivals = _Arrivals(sources)
    enough = _enough(return_when, arrivals.total)
    refuse_to_block("the calls", "use `await wait_async(...)`")
    done: set[S] = set()
    deadline = arrivals.deadline(timeout)
    with arrivals:
        source = None
        while not enough(len(done), source):
            source = arrivals.next(deadline)
            if source is None:
                break
            done.add(source)
        done.update(arrivals.rest())
    return DoneAndNotDone(done, set(arrivals.sources) - done)


async def wait_async(
    sources: Iterable[S], timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> DoneAndNotDone[S]:
    """Suspend until all (or the first, or the first failed) of `sources` are done; see ``wait``. Any event loop."""
    arrivals = _Arrivals(sources)
    enough = _enough(return_when, arrivals.total)
    done: set[S] = set()
    deadline = arrivals.deadline(timeout)
    with arrivals:
        source = None
        while not enough(len(done), source):
            source = await arrivals.next_async(deadline)
            if source is None:
                break
            done.add(source)
        done.update(arrivals.rest())
    return DoneAndNotDone(done, set(arrivals.sources) - done)


class as_completed(Generic[S]):  # noqa: N801 - used like a function
    """Iterate over `sources` in the order in which they get done, with ``for`` or ``async for``.

    Args:
        sources: Responses and futures; what was given is what comes out.
        timeout: Seconds, from the first step, after which TimeoutError is raised.
    """

    def __init__(self, sources: Iterable[S], timeout: float | None = None) -> None:
        self._sources = _checked(sources)
        self._timeout = timeout

    def __iter__(self) -> Iterator[S]:
        refuse_to_block("as_completed", "use `async for`")
        arrivals = _Arrivals(self._sources)
        deadline = arrivals.deadline(self._timeout)
        with arrivals:
            for left in range(arrivals.total, 0, -1):
                source = arrivals.next(deadline)
                if source is None:
                    raise TimeoutError(f"{left} of {arrivals.total} were not done within {self._timeout} s")
                yield source

    async def __aiter__(self) -> AsyncIterator[S]:
        arrivals = _Arrivals(self._sources)
        deadline = arrivals.deadline(self._timeout)
        with arrivals:
            for left in range(arrivals.total, 0, -1):
                source = await arrivals.next_async(deadline)
                if source is None:
                    raise TimeoutError(f"{left} of {arrivals.total} were not done within {self._timeout} s")
                yield source


class Gathering(Generic[R]):
    """All the values of several calls, in their order: ``.result()`` in plain code, ``await`` in coroutines."""

    def __init__(self, sources: tuple[Source[R], ...], return_exceptions: bool) -> None:
        self._sources = _checked(sources)
        self._return_exceptions = return_exceptions

    def __repr__(self) -> str:
        done = sum(source.done() for source in self._sources)
        return (
            f"<Gathering of {len(self._sources)} calls, {done} done; get the values with .result() or await>"
        )

    def result(self, *, timeout_s: float | None = None) -> list[R]:
        """Block until every call is done, or the first has failed, and return the values in order.

        Raises:
            TimeoutError: They were not done within `timeout_s` seconds; they go on.
            Exception: What the first call that failed raised, as itself; the others go on.
        """
        found = wait(self._sources, timeout_s, self._return_when)
        if found.not_done and not self._has_failed(found.done):
            raise TimeoutError(
                f"{len(found.not_done)} of {len(self._sources)} calls were not done within {timeout_s} s"
            )
        return self._values(found.done)

    def __await__(self) -> Generator[Any, None, list[R]]:
        found = yield from wait_async(self._sources, None, self._return_when).__await__()
        return self._values(found.done)

    @property
    def _return_when(self) -> str:
        return ALL_COMPLETED if self._return_exceptions else FIRST_EXCEPTION

    def _has_failed(self, done: Iterable[Source[R]]) -> bool:
        return not self._return_exceptions and any(_has_failed(source) for source in done)

    def _values(self, done: set[Source[R]]) -> list[R]:
        if not self._return_exceptions:
            for source in self._sources:
                if source in done and _has_failed(source):
                    _outcome(source).unwrap()
            return [_outcome(source).unwrap() for source in self._sources]
        return [_value_or_exception(source) for source in self._sources]


def gather(*sources: Source[R], return_exceptions: bool = False) -> Gathering[R]:
    """Wait for several calls together: ``gather(a, b).result()`` or ``await gather(a, b)``. Never blocks itself.

    Args:
        sources: Responses and futures.
        return_exceptions: Put exceptions among the values instead of raising the first.

    Raises:
        TypeError: Something is neither a response nor a future.
    """
    return Gathering(sources, return_exceptions)


class map(Generic[R]):  # noqa: A001, N801 - the name of the builtin on purpose, used like a function
    """Call `handle` with each of the items and iterate over the values, in their order, with ``for`` or ``async for``.

    Args:
        handle: What to call; ``handle.method`` for a method.
        iterables: The arguments, one iterable per parameter, as for the builtin.
        buffersize: Calls that may be under way ahead of the one whose value is read next; None makes them all at once.
    """

    def __init__(self, handle: Remote, *iterables: Iterable[Any], buffersize: int | None = None) -> None:
        if not iterables:
            raise TypeError("map needs at least one iterable")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be at least 1 or None, not {buffersize!r}")
        self._calls: Iterator[DeploymentResponse[R]] = (
            handle.remote(*items) for items in zip(*iterables, strict=False)
        )
        self._under_way: deque[DeploymentResponse[R]] = deque()
        self._size = math.inf if buffersize is None else buffersize
        self._fill()

    def __iter__(self) -> Iterator[R]:
        while self._under_way:
            value = self._result()
            self._advance()
            yield value

    async def __aiter__(self) -> AsyncIterator[R]:
        while self._under_way:
            value = await self._under_way[0]
            self._advance()
            yield value

    def _result(self) -> R:
        try:
            return self._under_way[0].result()
        except KeyboardInterrupt:
            for call in self._under_way:
                call.cancel()
            raise

    def _advance(self) -> None:
        self._under_way.popleft()
        self._fill()

    def _fill(self) -> None:
        while len(self._under_way) < self._size:
            call = next(self._calls, None)
            if call is None:
                return
            self._under_way.append(call)


class _Arrivals(Generic[S]):
    """The order in which sources get done. Watches them while it is entered, for one reader at a time."""

    def __init__(self, sources: Iterable[S]) -> None:
        self.sources = list(dict.fromkeys(_checked(sources)))
        self.total = len(self.sources)
        self._kernel = _kernel_of(self.sources)
        self._lock = self._kernel.lock()
        self._done: deque[S] = deque()  # guarded by _lock
        self._reader: Subscriber | None = None  # guarded by _lock
        self._arrivals: list[tuple[S, _Arrival]] = []
        self._awaited: dict[Request, None] = {}  # those that have not arrived
        self._needs: Sequence[Request] = _Awaited(self._awaited)

    def __enter__(self) -> None:
        for source in self.sources:
            arrival = _Arrival(partial(self._put, source))
            self._arrivals.append((source, arrival))
            if isinstance(source, Answer):
                request = request_of(source)
                self._awaited[request] = None
                if not request.subscribe(arrival):
                    deliver((arrival,))
            else:
                self._needs = ()  # a plain future comes from anywhere
                cast("concurrent.futures.Future[Any]", source).add_done_callback(arrival.happen)

    def __exit__(self, *exc_info: object) -> None:
        for source, arrival in self._arrivals:
            if isinstance(source, Answer):
                request_of(source).forget(arrival)
            arrival.ignore()  # a plain future keeps it

    def deadline(self, timeout: float | None) -> float:
        """Return when `timeout` seconds from now will have passed, on the kernel's clock."""
        if timeout is None:
            return math.inf
        check_seconds("timeout", timeout)
        return self._kernel.now() + timeout

    def next(self, deadline: float) -> S | None:
        """Block until another source is done and return it; None when the deadline has passed."""
        while True:
            waiter = self._kernel.waiter()
            source = self._take(waiter)
            if source is not None:
                return source
            left = deadline - self._kernel.now()
            if left <= 0:
                return self._take(None)
            try:
                block(waiter, None if left == math.inf else left, needs=self._needs, is_ended=self._has_news)
            except KeyboardInterrupt:
                for request in self._awaited.copy():
                    request.cancel()
                raise

    async def next_async(self, deadline: float) -> S | None:
        """Suspend until another source is done and return it; None when the deadline has passed."""
        while True:
            loop, future = make_future()
            waiter = LoopWaiter(loop, future)
            source = self._take(waiter)
            if source is not None:
                return source
            left = deadline - self._kernel.now()
            if left <= 0:
                return None
            alarm = None if left == math.inf else loop.call_later(left, waiter.wake)
            try:
                await suspend(waiter, needs=self._needs if alarm is None else (), is_ended=self._has_news)
            finally:
                if alarm is not None:
                    alarm.cancel()

    def rest(self) -> list[S]:
        """Return what is done and has not been taken."""
        with self._lock:
            done, self._done = list(self._done), deque()
        return done

    def _has_news(self) -> bool:
        return bool(self._done)

    def _take(self, reader: Subscriber | None) -> S | None:
        with self._lock:
            if self._done:
                return self._done.popleft()
            self._reader = reader
        return None

    def _put(self, source: S) -> Iterable[Subscriber]:
        with self._lock:
            self._done.append(source)
            if isinstance(source, Answer):
                self._awaited.pop(request_of(source), None)
            reader, self._reader = self._reader, None
        return () if reader is None else (reader,)


class _Arrival:
    """One source that gets done."""

    __slots__ = ("_put",)

    def __init__(self, put: Callable[[], Iterable[Subscriber]]) -> None:
        self._put = put

    def tell(self) -> Iterable[Subscriber]:
        return self._put()

    def ignore(self) -> None:
        """Let go of who waited; who is told hereafter has nothing to do."""
        self._put = tuple

    def happen(self, future: concurrent.futures.Future[Any]) -> None:
        """Be the callback of a plain future."""
        deliver((self,))


class _Awaited(Sequence["Request"]):
    """The requests that could end a wait, as of the moment when somebody looks."""

    def __init__(self, requests: dict[Request, None]) -> None:
        self._requests = requests

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, index: Any) -> Any:
        return tuple(self._requests)[index]

    def __iter__(self) -> Iterator[Request]:
        return iter(tuple(self._requests))


def _checked(sources: Iterable[S]) -> tuple[S, ...]:
    """Return the sources, or raise TypeError for what is none."""
    found = tuple(sources)
    for source in found:
        if not isinstance(source, (Answer, concurrent.futures.Future)):
            raise TypeError(
                f"expected responses and concurrent.futures futures, not {type(source).__name__}: {source!r:.80}"
            )
    return found


def _kernel_of(sources: Iterable[object]) -> Kernel:
    """Return the kernel that the sources belong to; plain futures belong to the one that the thread is under."""
    for source in sources:
        if isinstance(source, Answer):
            return request_of(source).router.kernel
    return kernel_here() or RealKernel()


def _outcome(source: object) -> Outcome:
    if isinstance(source, Answer):
        return cast("Outcome", request_of(source).outcome)
    future = cast("concurrent.futures.Future[Any]", source)
    if future.cancelled():
        return Error(concurrent.futures.CancelledError())
    exception = future.exception()
    return Value(future.result()) if exception is None else Error(exception)


def _value_or_exception(source: object) -> Any:
    outcome = _outcome(source)
    return outcome.fetch() if isinstance(outcome, Error) else outcome.unwrap()


def _enough(return_when: str, total: int) -> Callable[[int, Any], bool]:
    """Return what says, of how many are done and which was the last, whether that is enough."""
    if return_when == ALL_COMPLETED:
        return lambda count, last: count == total
    if return_when == FIRST_COMPLETED:
        return lambda count, last: count > 0 or not total
    if return_when == FIRST_EXCEPTION:
        return lambda count, last: count == total or (last is not None and _has_failed(last))
    raise ValueError(
        f"return_when must be ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION, not {return_when!r}"
    )


def _has_failed(source: object) -> bool:
    return _outcome(source).exception is not None
