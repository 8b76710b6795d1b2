"""asyncio on virtual time: a loop that sleeps by parking its thread, and has no files.

Apart from its module, nothing of the kernel imports asyncio: not every run is for coroutines.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING, Any, cast

from threadserve.concurrency.outcome import capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.concurrency.kernel import Kernel, WaiterLike

__all__ = ["SimulatedEventLoop", "close_loop"]


class SimulatedSelector:
    """What an event loop waits with: a waiter of the kernel's, and nothing else."""

    def __init__(self, waiter: WaiterLike) -> None:
        self._waiter = waiter

    def select(self, timeout: float | None = None) -> list[Any]:
        """Block until woken, or until `timeout` virtual seconds have passed; no file is ever ready."""
        self._waiter.wait(timeout)
        return []

    def register(self, fileobj: object, *_: object) -> None:
        """Refuse."""
        raise RuntimeError(
            f"a simulated event loop has no files, sockets or pipes: cannot wait for {fileobj!r}"
        )

    def get_map(self) -> dict[Any, Any]:
        """Return what is registered: nothing."""
        return {}

    def get_key(self, fileobj: object) -> None:
        """Say that nothing is registered."""
        raise KeyError(fileobj)

    def close(self) -> None:
        """Nothing to close."""


class SimulatedEventLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop; its clock, its way to wait and its threads are the kernel's."""

    def __init__(self, kernel: Kernel, waiter: WaiterLike) -> None:
        self._kernel = kernel
        self._waiter = waiter
        super().__init__(cast("Any", SimulatedSelector(waiter)))

    def time(self) -> float:
        """The virtual time."""
        return self._kernel.now()

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Call `func` on a thread of the kernel's."""
        if executor is not None:
            raise RuntimeError(f"the threads of {executor!r} are not under control; pass None")
        return asyncio.wrap_future(_call_in_thread(self._kernel, func, args), loop=self)

    def add_signal_handler(self, *_: Any) -> None:  # type: ignore[override]
        """Refuse."""
        raise RuntimeError("a simulated event loop gets no signals")

    def _make_self_pipe(self) -> None:
        pass

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        self._waiter.set()


def _call_in_thread(
    kernel: Kernel, func: Callable[..., Any], args: tuple[Any, ...]
) -> concurrent.futures.Future[Any]:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        outcome = capture(func, *args)
        if outcome.exception is None:
            future.set_result(outcome.unwrap())
        else:
            future.set_exception(outcome.exception)

    kernel.spawn("executor", work)
    return future


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop that its thread has left; tasks that are still suspended end as if they were dropped."""
    tasks: list[Any] = sorted(
        asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name())
    )
    for task in tasks:
        task._log_destroy_pending = False
        capture(task.get_coro().close)
    if not loop.is_running():
        loop.close()
