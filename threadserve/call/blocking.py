"""How code waits for answers: a thread blocks, a coroutine suspends, and a wait inside a replica is more than that.

It is a checkpoint: cancelling the request that the waiting body works for ends it. And it is visible: while it lasts the
request carries a ``Wait`` that says what it needs, so that a wait that can never end can be found (``call/waits.py``)
and be ended with DeadlockError. Only waits of the body itself are shown, on its own thread or in its own task, and only
those without a timeout or a deadline; all others can end by themselves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from threadserve.call.request import ANSWERED, CURRENT, Request, Wait, check_cancelled, current_request
from threadserve.concurrency.loops import LoopWaiter, current_task, make_future
from threadserve.concurrency.outcome import Error
from threadserve.concurrency.threads import forget_ours, get_ident

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from threadserve.concurrency.kernel import WaiterLike

_INF = math.inf

DEPTH = 16
"""How many bodies may be on one thread's stack, each helped by the one below."""

__all__ = ["DEPTH", "block", "check_cancelled_async", "suspend", "wait_for", "wait_for_async"]


def check_cancelled_async() -> None:
    """Raise asyncio's CancelledError, be it again, when the request that the running coroutine works for was cancelled."""
    request = current_request()
    if request is not None and request.state is ANSWERED:
        import asyncio

        raise asyncio.CancelledError(
            f"request {request.request_id} of {request.router.name} was cancelled or has expired"
        )


def block(
    waiter: WaiterLike,
    timeout: float | None = None,
    *,
    needs: Sequence[Request] = (),
    is_ended: Callable[[], bool] | None = None,
) -> bool:
    """Wait on `waiter`: True when it was set, False after `timeout` seconds. Blocks.

    Args:
        waiter: Set by what is waited for.
        timeout: In seconds; None for none.
        needs: The requests that can end the wait; empty where others can as well.
        is_ended: Says that the wait has ended though none of them is answered: items of a stream have come.

    Raises:
        Cancelled: The request that the waiting code works for was cancelled.
        DeadlockError: The wait could never have ended.
    """
    waiting = current_request()
    if waiting is None:
        return waiter.wait(timeout)
    wait = None
    if timeout is None and needs and waiting.deadline == math.inf and waiting.runner == get_ident():
        wait = Wait(needs, waiting.router.kernel.now(), waiter, is_ended)
    is_set = False
    try:
        if wait is None:
            may_wait = waiting.subscribe(waiter)
        elif may_wait := waiting.begin_wait(waiter, wait):
            waiting.router.watch()
        if may_wait:
            is_set = waiter.wait(timeout)
    finally:
        if wait is None:  # another thread's wait than the body's, perhaps, which is then the one to be seen
            waiting.forget(waiter)
        else:
            waiting.end_wait(waiter)
    if wait is not None and wait.error is not None:
        raise wait.error
    check_cancelled()
    return is_set


async def suspend(
    waiter: LoopWaiter,
    *,
    needs: Sequence[Request] = (),
    is_ended: Callable[[], bool] | None = None,
) -> None:
    """Await the future of `waiter`; see ``block``."""
    waiting = current_request()
    if waiting is None or not needs or waiting.deadline != _INF or waiting.runner is not current_task():
        await waiter.future
        return
    # No lock: nobody else writes it, and a picture without it shows a body that may go on. In a cancelled
    # request it waits as well: the cancellation of its task is on its way.
    wait = waiting.wait = Wait(needs, waiting.router.kernel.now(), waiter, is_ended)
    try:
        waiting.router.watch()
        await waiter.future
    finally:
        waiting.wait = None
    if wait.error is not None:
        raise wait.error


def wait_for(request: Request, timeout: float | None = None) -> bool:
    """Block until `request` has its answer: True; or until `timeout` seconds have passed: False.

    Without a timeout the thread may run `request` itself, if nobody has begun to: it would do nothing but wait. With one, or
    with a deadline, it does not, for nobody could end the wait meanwhile. Ctrl-C cancels the request and goes on as
    KeyboardInterrupt. A checkpoint; see ``block``.
    """
    waiting = CURRENT.get()
    if request.state is not ANSWERED:
        if (
            timeout is None
            and request.deadline == _INF
            and (waiting is None or (waiting.deadline == _INF and waiting.depth < DEPTH))
        ):
            try:
                request.router.help(request, waiting)
            except KeyboardInterrupt:
                request.cancel()
                raise
            if type(request.outcome) is Error:
                forget_ours(request.outcome.exception.__traceback__)
        if request.outcome is None and not _wait_until_answered(request, timeout, waiting):
            return False
    del request  # for the same reason
    if waiting is not None:
        check_cancelled()
    return True


def _wait_until_answered(request: Request, timeout: float | None, waiting: Request | None) -> bool:
    kernel = request.router.kernel
    end = None if timeout is None else kernel.now() + timeout
    left = None
    while request.state is not ANSWERED:  # again, in a thread that outlives the body which has started it
        if end is not None:
            left = end - kernel.now()
            if left <= 0:
                return False
        waiter = kernel.waiter()
        try:
            if request.subscribe(waiter):
                if waiting is None:
                    waiter.wait(left)
                else:
                    block(waiter, left, needs=(request,))
        except KeyboardInterrupt:
            request.cancel()
            raise
        finally:
            if request.outcome is None:  # else it has been told, or will be
                request.forget(waiter)
    return True


async def wait_for_async(request: Request) -> None:
    """Suspend until `request` has its answer, on whatever event loop runs. Giving up cancels nothing."""
    waiter = LoopWaiter(*make_future())
    if not request.subscribe(waiter):
        return
    try:
        await suspend(waiter, needs=(request,))
    except BaseException:
        request.forget(waiter)
        raise
