"""What a caller of a generator holds: the items of one call, as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from threadserve.call.blocking import block, suspend
from threadserve.call.directory import refuse_after_fork
from threadserve.call.request import ANSWERED, CURRENT, Request, check_cancelled, current_request
from threadserve.call.response import cancel, is_in_event_loop, refuse_to_block
from threadserve.concurrency.channel import EMPTY, END, Channel
from threadserve.concurrency.interrupts import INTERRUPTED
from threadserve.concurrency.loops import LoopWaiter, current_task, make_future
from threadserve.concurrency.threads import get_ident
from threadserve.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

    from threadserve.call.objectref import ObjectRefGenerator

__all__ = ["DeploymentResponseGenerator"]

R_co = TypeVar("R_co", covariant=True)


class DeploymentResponseGenerator(Generic[R_co]):
    """The items of ``handle.options(stream=True).method.remote(...)``, for ``for`` and for ``async for``.

    The producer runs ahead of the reader by at most ``stream_buffer_size`` items (64 by default) and then waits.
    An exception in it arrives after the items before it, once. Leaving early - ``close``, ``aclose``, or
    dropping the generator - stops the producer and gives its slot back; none of them waits for it.
    """

    __slots__ = ("__weakref__", "_channel", "_has_ended", "_is_shared", "_request")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._channel = cast("Channel", request.channel)
        self._has_ended = False
        self._is_shared = False

    def __repr__(self) -> str:
        request = self._request
        state = "ended" if self._has_ended else f"{request.state.value}, {len(self._channel)} items ready"
        return (
            f"<DeploymentResponseGenerator of {request.router.name}.{request.method}: {state}; "
            "get the items with for or async for>"
        )

    @property
    def request_id(self) -> str:
        """The id of the request; all calls made on its behalf share it."""
        return self._request.request_id

    def __iter__(self) -> Iterator[R_co]:
        self._note_reader(get_ident())
        return self

    def __next__(self) -> R_co:
        """Return the next item, blocking until there is one. Any thread; a checkpoint, as ``response.result`` is."""
        if INTERRUPTED or is_in_event_loop():  # before an item is taken, which would be lost
            refuse_to_block(self._name, "read it with `async for`")
        refuse_after_fork(self._request.router)
        if CURRENT.get() is not None:
            check_cancelled()
        item = self._channel.take()
        if item is EMPTY:
            item = self._wait_for_item()
        if item is END:
            self._end()
            raise StopIteration
        return cast("R_co", item)

    def __aiter__(self) -> AsyncIterator[R_co]:
        if is_in_event_loop():
            self._note_reader(current_task())
        return self

    async def __anext__(self) -> R_co:
        """Return the next item, suspending until there is one, on any event loop. Giving up loses nothing."""
        refuse_after_fork(self._request.router)
        item = self._channel.take()
        if item is EMPTY:
            item = await self._wait_for_item_async()
        if item is END:
            self._end()
            raise StopAsyncIteration
        return cast("R_co", item)

    def cancel(self) -> None:
        """Cancel the request: items not yet read are dropped, the next read raises RequestCancelledError, once.

        Never blocks, may be repeated, safe from any thread.
        """
        cancel(self._request)

    def cancelled(self) -> bool:
        """Whether ``cancel`` was called, be it too late."""
        return self._request.was_cancelled

    def close(self) -> None:
        """Leave: the producer is stopped, further reads find the end. Never blocks, safe from any thread."""
        self._has_ended = True
        self._request.cancel()
        self._channel.close()  # also where the producer has ended, and the answer has been given

    async def aclose(self) -> None:
        """Leave, as ``close`` does; there is nothing to wait for."""
        self.close()

    def __del__(self) -> None:
        # A finalizer may run while its thread holds a lock of ours: it only leaves a note.
        request = getattr(self, "_request", None)
        if request is not None and request.state is not ANSWERED:
            request.router.kernel.errands.post(request.cancel)

    def result(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a stream has items, not a result.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"the response of {self._request.router.name}.{self._request.method} is a stream: read it with `for` or "
            "`async for`, or call without stream=True for a single result"
        )

    def __await__(self) -> Generator[Any, None, NoReturn]:
        yield self.result()

    async def _to_object_ref_gen(self) -> ObjectRefGenerator[R_co]:
        """Return a generator of ObjectRefs, one for each item; it takes the stream over. Never blocks."""
        from threadserve.call.objectref import ObjectRefGenerator

        return ObjectRefGenerator(self._request, self)

    def _to_object_ref_gen_sync(
        self, _timeout_s: float | None = None, _allow_running_in_asyncio_loop: bool = False
    ) -> ObjectRefGenerator[R_co]:
        """Return a generator of ObjectRefs, in plain code; see ``_to_object_ref_gen``.

        Raises:
            RuntimeError: An event loop runs in this thread, and that was not allowed.
        """
        from threadserve.call.objectref import ObjectRefGenerator

        if not _allow_running_in_asyncio_loop:
            refuse_to_block("_to_object_ref_gen_sync()", "use `await response._to_object_ref_gen()`")
        return ObjectRefGenerator(self._request, self)

    def __reduce__(self) -> NoReturn:
        raise ArgumentError(
            f"the stream of {self._request.router.name}.{self._request.method} cannot be pickled or copied: "
            "it belongs to this process; read it and pass on the items",
            deployment=self._request.router.name,
            request_id=self._request.request_id,
        )

    def _note_reader(self, runner: object) -> None:
        """Note whose body reads the items, as long as nobody else does: the producer may then wait for that one alone."""
        request, reader = self._request, current_request()
        is_body = reader is not None and reader.runner == runner
        if is_body and not self._is_shared and request.reader in (None, reader):
            request.reader = reader
        else:
            request.reader, self._is_shared = None, True

    @property
    def _name(self) -> str:
        return f"{self._request.router.name}.{self._request.method}"

    def _wait_for_item(self) -> Any:
        request, channel = self._request, self._channel
        while True:
            waiter = request.router.kernel.waiter()
            item = channel.take(waiter)
            if item is not EMPTY:
                return item
            try:
                block(waiter, needs=(request,), is_ended=channel.has_news)
            except KeyboardInterrupt:
                request.cancel()
                raise
            finally:
                channel.forget(waiter)

    async def _wait_for_item_async(self) -> Any:
        while True:
            subscriber = LoopWaiter(*make_future())
            item = self._channel.take(subscriber)
            if item is not EMPTY:
                return item
            try:
                await suspend(subscriber, needs=(self._request,), is_ended=self._channel.has_news)
            finally:
                self._channel.forget(subscriber)

    def _end(self) -> None:
        """Raise what the stream ended with, if that is an exception and nobody has seen it."""
        if self._has_ended:
            return
        self._has_ended = True
        self._request.unwrap()
