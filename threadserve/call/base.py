"""What a request asks of the rooms above it, as protocols: who routes it, and how it wants to be called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from threadserve.call.request import Request
    from threadserve.concurrency.kernel import Kernel, Lock

__all__ = ["Adapter", "Router"]


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

    def leave(self, request: Request) -> None:
        """Strike `request`, which waits or is queued here, off the books; called with the lock held."""


class Adapter(Protocol):
    """How somebody who is no handle wants the user's callable to be called: HTTP, for one.

    Either member gets the callable and the arguments, and produces the items of a stream.
    """

    def iterate(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[Any]:
        """Call a `def`; runs on a worker thread."""

    def aiterate(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an `async def`; an async generator that runs on the replica's loop."""


