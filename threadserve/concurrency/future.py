"""The ``concurrent.futures.Future`` that stands for a call, made when somebody asks for it.

``concurrent.futures.wait`` and ``as_completed`` read a Future's internals, so this one is a real one. Only what
a Future cannot know is overridden: whether the call runs, and whether it may still be cancelled.
"""

from __future__ import annotations

import concurrent.futures
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from threadserve.concurrency.outcome import Error, Withdrawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.concurrency.outcome import Outcome

__all__ = ["CallFuture", "is_future"]


class CallFuture(concurrent.futures.Future[Any]):
    """Mirrors a call. Completed by whoever answers the call; nobody else may set its result."""

    def __init__(self, is_running: Callable[[], bool], withdraw: Callable[[], bool]) -> None:
        super().__init__()
        self._is_call_running = is_running
        self._withdraw = withdraw
        self._turn = deque((None,))  # popleft is atomic: whoever gets the turn completes this future

    def running(self) -> bool:
        """Whether the call has been started and not yet been answered."""
        return not self.done() and self._is_call_running()

    def cancel(self) -> bool:
        """Cancel the call if it has not been started: True. Otherwise nothing happens: False. Never blocks."""
        return self._withdraw()

    def complete(self, outcome: Outcome) -> None:
        """Take over how the call ended, unless that has been done. Runs the future's callbacks."""
        try:
            self._turn.popleft()
        except IndexError:
            return
        if isinstance(outcome, Withdrawn):
            super().cancel()
        self.set_running_or_notify_cancel()
        if isinstance(outcome, Withdrawn):
            return
        if isinstance(outcome, Error):
            self.set_exception(outcome.fetch())
        else:
            self.set_result(outcome.value)


def is_future(value: object) -> bool:
    """Whether `value` is a plain future; looks no further than what has been imported."""
    kind = getattr(sys.modules.get("concurrent.futures"), "Future", ())
    return isinstance(value, kind)
