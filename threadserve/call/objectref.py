"""The other face of a request: references to values that exist now or later, for tasks, actors and containers.

A DeploymentResponse is for whoever made the call: it can only be an argument itself. An ObjectRef may go anywhere,
into lists, attributes and results, and stays what it is there; whoever finds it asks for the value
(``serve.get(ref)``, ``await ref``) or passes it on. Both have one field, their request. A value that no call has
brought (``serve.put``, an item of a stream, one of several results) has a request of its own, answered by the ``Store``.
"""

from __future__ import annotations

import weakref
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar
from uuid import uuid4

from threadserve.call.answer import Answer
from threadserve.call.directory import Unmanned
from threadserve.call.request import Request
from threadserve.concurrency.outcome import Error, Outcome, Value
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ArgumentError, ServeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from threadserve.concurrency.kernel import Kernel, Lock

__all__ = ["ObjectRef", "ObjectRefGenerator", "Store", "find_object", "object_id"]

R_co = TypeVar("R_co", covariant=True)


class ObjectRef(Answer[R_co]):
    """Refers to a value that exists now or later: the result of a task, of an actor's method, or what was ``put``.

    Get it with ``serve.get(ref)`` in plain code and with ``await ref`` in coroutines, as often as you like, from any
    thread and any event loop. As an argument of a call it is replaced by its value, inside of a container it stays a
    ref. Two refs to one value are equal. A ref may be pickled within this process, as long as another one is kept.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        request = self._request
        outcome = request.outcome
        state = request.state.value if outcome is None else "done" if outcome.exception is None else "failed"
        return f"<ObjectRef of {request.router.name}.{request.method}: {state}; serve.get(ref) or await ref>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and other._request is self._request

    def __hash__(self) -> int:
        return hash(self._request)

    def hex(self) -> str:
        """Return the id of what this refers to: the same for equal refs, in this process."""
        return object_id(self._request)

    @property
    def _condition(self) -> NoReturn:
        # concurrent.futures.wait and as_completed take this of whatever they are given.
        raise TypeError(
            "an ObjectRef is no concurrent.futures.Future: pass ref.future, "
            "or use serve.wait, threadserve.futures.wait and as_completed, which take refs as they are"
        )

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "an ObjectRef cannot be iterated over: get its value first, with serve.get(ref) or await ref"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.hex(),)


class ObjectRefGenerator(Generic[R_co]):
    """The items of a generator task, or of a stream, as refs: for ``for`` and for ``async for``.

    Each step waits until the next item is there, so its ref has a value at once. An exception of the producer's arrives
    as the last ref, whose ``get`` raises it. Dropping the generator stops the producer, as dropping a stream does.
    """

    __slots__ = ("__weakref__", "_has_ended", "_items", "_request", "_store")

    def __init__(self, request: Request, items: Any) -> None:
        self._request = request
        self._items = items
        self._store = Store(request.router.kernel)
        self._has_ended = False

    def __repr__(self) -> str:
        request = self._request
        return f"<ObjectRefGenerator of {request.router.name}.{request.method}: {request.state.value}>"

    def __iter__(self) -> Iterator[ObjectRef[R_co]]:
        iter(self._items)
        return self

    def __next__(self) -> ObjectRef[R_co]:
        """Return a ref to the next item, blocking until there is one. Any thread; a checkpoint.

        Raises:
            RuntimeError: An event loop runs in this thread; read with ``async for``.
        """
        if self._has_ended:
            raise StopIteration
        try:
            return self._store.put(next(self._items), self._request.method)
        except Exception as error:
            return self._failed(error)

    def __aiter__(self) -> AsyncIterator[ObjectRef[R_co]]:
        self._items.__aiter__()
        return self

    async def __anext__(self) -> ObjectRef[R_co]:
        """Return a ref to the next item, suspending until there is one, on any event loop."""
        if self._has_ended:
            raise StopAsyncIteration
        try:
            return self._store.put(await self._items.__anext__(), self._request.method)
        except Exception as error:
            return self._failed(error)

    def completed(self) -> ObjectRef[None]:
        """Return a ref that is done when the producer is; it fails if that fails."""
        return ObjectRef(self._request)

    def close(self) -> None:
        """Leave: the producer is stopped, further reads find the end. Never blocks, safe from any thread."""
        self._has_ended = True
        self._items.close()

    def __reduce__(self) -> NoReturn:
        raise ArgumentError(
            f"the refs of {self._request.router.name}.{self._request.method} cannot be pickled or copied: "
            "they belong to whoever reads them; read them and pass on the refs",
            deployment=self._request.router.name,
            request_id=self._request.request_id,
        )

    def _failed(self, error: Exception) -> ObjectRef[R_co]:
        """Make a ref of what the stream ended with; what is about the reader, and no failure of the stream, is raised."""
        outcome = self._request.outcome
        if (
            isinstance(error, (StopIteration, StopAsyncIteration))
            or outcome is None
            or outcome.exception is None
        ):
            raise error
        self._has_ended = True
        return self._store.settled(Error(error), self._request.method)


class Store(Unmanned):
    """The router of values that no call brings: its requests are answered by whoever made them."""

    app = "threadserve"
    deployment = "objects"
    name = "threadserve/objects"
    stream_buffer_size = 1.0

    def __init__(self, kernel: Kernel | None = None) -> None:
        self.kernel: Kernel = RealKernel() if kernel is None else kernel
        self.lock: Lock = self.kernel.lock()

    def promise(self, method: str) -> Request:
        """Return a request that somebody is going to answer."""
        return Request(self, method, (), {}, context=Context())

    def settled(self, outcome: Outcome, method: str) -> ObjectRef[Any]:
        """Return a ref to what is there already."""
        request = self.promise(method)
        request.answer(outcome)
        return ObjectRef(request)

    def put(self, value: Any, method: str = "put") -> ObjectRef[Any]:
        """Return a ref to `value`."""
        return self.settled(Value(value), method)

    def assign(self, request: Request) -> None:
        """Nothing is to be run for it."""


_lock = RealKernel.lock()
_ids: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()  # guarded by _lock
_things: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()  # guarded by _lock


def object_id(thing: Any) -> str:
    """Return the id by which `thing` can be found again as long as it lives, giving it one at the first call."""
    with _lock:
        found = _ids.get(thing)
        if found is None:
            found = _ids[thing] = uuid4().hex
            _things[found] = thing
        return found


def find_object(name: str) -> Any:
    """Return the thing that has this id.

    Raises:
        ServeError: It is not there any more, or never was in this process.
    """
    with _lock:
        thing = _things.get(name)
    if thing is None:
        raise ServeError(
            f"there is no object {name} in this process: refs and actor handles can be unpickled only where they were "
            "pickled, and only while another one to the same thing is kept"
        )
    return thing


def _rebuilt(name: str) -> ObjectRef[Any]:
    return ObjectRef(find_object(name))
