"""What a caller holds: the future answer of one call."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, Never, NoReturn, TypeVar, cast

from threadserve.call.answer import Answer, Callback, describe, refuse_in_finalizer, request_of
from threadserve.call.blocking import wait_for
from threadserve.concurrency.interrupts import INTERRUPTED, is_our_code_interrupted
from threadserve.concurrency.outcome import Value
from threadserve.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.call.objectref import ObjectRef
    from threadserve.call.request import Request
    from threadserve.concurrency.outcome import Outcome

__all__ = [
    "DeploymentResponse",
    "cancel",
    "check_seconds",
    "is_in_event_loop",
    "refuse_to_block",
    "request_of",
]

R_co = TypeVar("R_co", covariant=True)


class DeploymentResponse(Answer[R_co]):
    """The answer to ``handle.method.remote(...)``, now or later.

    Get it with ``.result()`` in plain code and with ``await`` in coroutines, as often as you like, from any thread
    and any event loop; or pass the response, as it is, to another call. A response that nobody asks still runs.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        request = self._request
        return f"<DeploymentResponse of {request.router.name}.{request.method}: {describe(request)}>"

    @property
    def request_id(self) -> str:
        """The id of the request; all calls made on its behalf share it."""
        return self._request.request_id

    def result(self, *refused: Never, timeout_s: float | None = None, **unknown: Never) -> R_co:
        """Wait for the answer and return it.

        Blocks. Safe from any thread, any number of times; not in a running event loop. Ctrl-C in the main thread
        cancels the request. When the code that waits works for a request that is cancelled, it raises Cancelled.

        Without a timeout, a ``def`` that nobody has begun may run on the waiting thread, after what it needs as arguments:
        in its order, within its limits and in its own context, but on this thread, with its locals, its locks
        and its stack. The wait then ends when the body does, even if the request is cancelled meanwhile.
        ``@deployment(inline=False)`` prevents it.

        Args:
            timeout_s: Give up after so many seconds; the request goes on and can be asked again.

        Raises:
            TimeoutError: There is no answer yet.
            RuntimeError: An event loop runs in this thread; use ``await``.
            RequestCancelledError: The request was cancelled.
            Exception: What the user's code raised, as itself.
        """
        if refused or unknown:
            refuse_wait_arguments("result", refused, unknown)
        request = self._request
        if timeout_s is not None or INTERRUPTED or _running_loop() is not None:
            self._wait(timeout_s)
        else:
            wait_for(request)
        del self  # as in Request.unwrap
        outcome = request.outcome
        if type(outcome) is Value:
            return outcome.value  # type: ignore[no-any-return]
        try:
            return request.unwrap()  # type: ignore[no-any-return]
        finally:
            del request, outcome

    def exception(
        self, *refused: Never, timeout_s: float | None = None, **unknown: Never
    ) -> BaseException | None:
        """Wait for the answer and return the exception it ended with, None if there is none.

        Waits as ``result`` does, and may run the request as ``result`` does.
        """
        if refused or unknown:
            refuse_wait_arguments("exception", refused, unknown)
        self._wait(timeout_s)
        outcome = cast("Outcome", self._request.outcome)
        return outcome.exception

    def cancel(self) -> None:
        """Cancel the request, and with it all that it has called; nothing happens if it is answered already.

        Never blocks, may be repeated, safe from any thread. Whoever waits gets RequestCancelledError at once. A
        body that has not begun never will; a running coroutine gets CancelledError at its ``await``; a running ``def``
        gets Cancelled at its next checkpoint and keeps its slot until it returns.
        """
        cancel(self._request)

    def cancelled(self) -> bool:
        """Whether ``cancel`` was called, be it too late."""
        return self._request.was_cancelled

    def add_done_callback(self, fn: Callable[[DeploymentResponse[R_co]], object]) -> None:
        """Have ``fn(response)`` called once there is an answer: at once if there is one, else on a thread for callbacks.

        Never blocks. An exception in `fn` is logged.

        Raises:
            TypeError: `fn` cannot be called.
        """
        if not callable(fn):
            raise TypeError(f"add_done_callback wants a function of the response, not {fn!r}")
        refuse_in_finalizer("cannot add a callback")
        callback = Callback(self._request, lambda: fn(self))
        if not self._request.subscribe(callback):
            callback.call()

    @property
    def _condition(self) -> NoReturn:
        # concurrent.futures.wait and as_completed take this of whatever they are given.
        raise TypeError(
            "a DeploymentResponse is no concurrent.futures.Future: pass response.future, "
            "or use threadserve.futures.wait and as_completed, which take responses as they are"
        )

    def __reduce__(self) -> NoReturn:
        raise ArgumentError(
            f"the response of {self._request.router.name}.{self._request.method} cannot be pickled or copied: "
            "it belongs to this process; fetch its value, or pass the response itself as an argument of a call",
            deployment=self._request.router.name,
            request_id=self._request.request_id,
        )

    async def _to_object_ref(self) -> ObjectRef[R_co]:
        """Return an ObjectRef of the same answer, for tasks, actors and containers. Never blocks."""
        from threadserve.call.objectref import ObjectRef

        return ObjectRef(self._request)

    def _to_object_ref_sync(
        self, _timeout_s: float | None = None, _allow_running_in_asyncio_loop: bool = False
    ) -> ObjectRef[R_co]:
        """Return an ObjectRef of the same answer, in plain code. Never blocks.

        Raises:
            RuntimeError: An event loop runs in this thread, and that was not allowed.
        """
        from threadserve.call.objectref import ObjectRef

        if not _allow_running_in_asyncio_loop:
            refuse_to_block("_to_object_ref_sync()", "use `await response._to_object_ref()`")
        return ObjectRef(self._request)

    def _wait(self, timeout_s: float | None) -> None:
        request = self._request
        refuse_to_block(f"{request.router.name}.{request.method}", "await the response: `await response`")
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s)
        if not wait_for(request, timeout_s):
            raise TimeoutError(
                f"no answer from {request.router.name}.{request.method} within timeout_s={timeout_s} "
                f"(request {request.request_id} is {request.state.value} and goes on)"
            )


def refuse_wait_arguments(verb: str, refused: tuple[Any, ...], unknown: dict[str, Any]) -> NoReturn:
    """Answer the usual slips: ``result(5)`` and ``result(timeout=5)``."""
    from reprlib import repr as shown

    given = ", ".join([*map(shown, refused), *(f"{name}={shown(value)}" for name, value in unknown.items())])
    raise TypeError(f"{verb}({given}): the only argument is timeout_s, by name: {verb}(timeout_s=5.0)")


def cancel(request: Request) -> None:
    """Cancel `request` for a user: a finalizer or handler that has interrupted our code must not wait for our locks."""
    if is_our_code_interrupted():
        request.was_cancelled = True
        request.router.kernel.errands.post(request.cancel)
    else:
        request.cancel()


def check_seconds(name: str, seconds: Any) -> None:
    """Raise unless `seconds` is a number of seconds to wait; zero and less mean not to wait at all.

    Raises:
        TypeError: It is no number.
        ValueError: It is not a number, as IEEE calls it.
    """
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(f"{name} must be a number of seconds or None, not {seconds!r}")
    is_beyond_every_float = isinstance(seconds, int) and abs(seconds) > sys.float_info.max
    if is_beyond_every_float or math.isnan(seconds):
        raise ValueError(f"{name} must be a number of seconds or None, not {seconds!r:.40}")


def refuse_to_block(what: str, instead: str) -> None:
    """Raise RuntimeError where blocking would stop what the answer needs.

    That is an event loop that runs in this thread, or code of ours that a finalizer has interrupted.
    """
    refuse_in_finalizer(f"cannot block on {what}")
    if is_in_event_loop():
        raise RuntimeError(f"cannot block on {what} inside a running event loop; {instead}")


def is_in_event_loop() -> bool:
    """Whether an event loop runs in this thread."""
    # None can run where asyncio has not been imported, or is only just being imported by another thread.
    return _running_loop() is not None


def _running_loop() -> object:
    """Stand in for asyncio's own until that has been imported."""
    global _running_loop
    found = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    if found is None:
        return None
    _running_loop = found
    return found()
