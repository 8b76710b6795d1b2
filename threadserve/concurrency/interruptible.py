"""Coroutines that are run to their end on the calling thread, and can be stopped from any other one."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from threadserve.concurrency.loops import run_coroutine

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from threadserve.concurrency.kernel import Kernel

__all__ = ["run_interruptibly"]


def run_interruptibly(
    kernel: Kernel, coroutine: Coroutine[Any, Any, Any], attach: Callable[[Callable[[], object]], bool]
) -> Any:
    """Run `coroutine` to its end on a loop of its own, on the calling thread.

    Blocks. Ends early with asyncio's CancelledError when it is interrupted.

    Args:
        kernel: Makes the loop.
        coroutine: What is run; it sees the context variables of the caller.
        attach: Is given, once, what interrupts the coroutine from any thread, also when it has long
            ended; says whether it should run at all.
    """

    async def interruptible() -> Any:
        import asyncio

        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            with suppress(RuntimeError):  # the loop is closed: there is nothing left to stop
                loop.call_soon_threadsafe(task.cancel)

        if not attach(interrupt):
            interrupt()
        return await coroutine

    return run_coroutine(kernel, interruptible())
