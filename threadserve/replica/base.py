"""What a replica is to those who give it requests and keep it alive, wherever its code runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.call.context import ReplicaContext
    from threadserve.call.request import Request
    from threadserve.concurrency.outcome import Outcome
    from threadserve.errors import RequestError

__all__ = ["Replica"]


class Replica(Protocol):
    """One running copy of a deployment.

    Attributes:
        name: ``app/deployment#rank``.
        context: What its code is told of it.
        on_done: Called with each request that was posted, when its body has ended; set by the router.
        on_death: Called when the replica has come to its end by itself; set by the runtime. Must not block.
        died: Makes the error of a request that ends with the replica.
    """

    name: str
    context: ReplicaContext
    on_done: Callable[[Request, Outcome], object]
    on_death: Callable[[BaseException], None]
    died: Callable[..., RequestError]

    @property
    def has_health_check(self) -> bool:
        """Whether the user's class has a ``check_health``."""
        ...

    def start(self, user_config: Any) -> None:
        """Construct and configure the instance. Blocks. Raises what the user's code raises."""

    def check_health(self) -> None:
        """Call the user's ``check_health``, where there is one. Blocks. Raises what it raises."""

    def stop(self, timeout: float) -> list[str]:
        """Finalize the instance and end the threads; names those that would not end. Blocks up to `timeout` seconds."""
        ...

    def begins_async(self, method: str) -> bool:
        """Whether a call of `method` is for ``post`` rather than for ``run``. Runs no code of the user's."""
        ...

    def add_worker(self, work: Callable[[], None]) -> None:
        """Start a worker thread that runs `work`. Raises RuntimeError where the system has no thread to give."""

    def leave(self) -> None:
        """Be told, by a worker of its own, that it does something else for a while: ``stop`` is not to wait for it."""

    def come_back(self) -> None:
        """Be told, by that worker, that it has come back."""

    def run(self, request: Request) -> Outcome | None:
        """Run the body on this thread. None: it goes on elsewhere, and ``on_done`` will tell how it ended."""
        ...

    def post(self, request: Request) -> None:
        """Begin the body elsewhere; ``on_done`` will tell how it ended. Never blocks."""
