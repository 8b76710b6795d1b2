"""How a program that serves learns that it should end: Ctrl-C, or SIGTERM."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from threadserve.concurrency.waiter import Waiter

if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Self

__all__ = ["Termination"]


class Termination:
    """A ``with`` block that Ctrl-C and SIGTERM end in the same way: quietly, so that what follows tidies up.

    For the main thread. SIGTERM is ours only in the block: before it nothing is served that could be drained,
    and after it a second SIGTERM kills, as it always does.

    Example::

        with Termination() as termination:
            print("serving")
            termination.wait()
    """

    def __init__(self) -> None:
        self._waiter = Waiter()
        self._former: Any = signal.SIG_DFL

    def __enter__(self) -> Self:
        self._former = signal.signal(signal.SIGTERM, self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        signal.signal(signal.SIGTERM, self._former)
        return isinstance(error, KeyboardInterrupt)

    def _end(self, _signum: int, _frame: FrameType | None) -> None:
        self._waiter.set()

    def wait(self) -> None:
        """Block until the process is told to end."""
        self._waiter.wait()
