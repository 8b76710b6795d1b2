"""Another way to call the user's callable than a handle's: over HTTP, for one, or isolated from its caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Adapter"]


class Adapter(Protocol):
    """How somebody who is no handle wants the user's callable to be called: HTTP, for one.

    Either member gets the callable and the arguments, and produces the items of a stream.
    """

    def iterate(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[Any]:
        """Call a `def`; runs on a worker thread."""
        ...

    def aiterate(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an `async def`; an async generator that runs on the replica's loop."""
