"""Deadlines that code sets for the calls it makes, and what is left of them."""

from __future__ import annotations

import math
import sys
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from threadserve.call.request import current_request
from threadserve.concurrency.real import kernel_here

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["BOUND", "check_timeout", "deadline", "remaining"]

BOUND: ContextVar[float] = ContextVar("threadserve_bound", default=math.inf)
"""The deadline that ``deadline`` has set for the calls made in this context, on the clock of their kernel."""


def check_timeout(what: str, timeout_s: Any) -> None:
    """Raise ValueError unless `timeout_s` is a positive number of seconds; ``math.inf`` is one."""
    is_number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
    if (
        not (is_number and timeout_s > 0) or sys.float_info.max < timeout_s != math.inf
    ):  # an int beyond every float
        raise ValueError(
            f"{what}: the timeout must be a positive number of seconds or math.inf, not {timeout_s!r:.40}"
        )


@contextmanager
def deadline(timeout_s: float) -> Generator[None]:
    """Bound all calls made in a ``with`` block, and the calls that they make: ``with serve.deadline(2.0): ...``.

    When the time is over, what is still unanswered is cancelled and fails with RequestTimeoutError. Blocks nest; the
    earliest deadline counts. Works in plain code and in coroutines; the block itself is not interrupted.

    Args:
        timeout_s: Seconds from now; positive. ``math.inf`` bounds nothing.

    Raises:
        ValueError: timeout_s is not a positive number.
    """
    check_timeout("serve.deadline", timeout_s)
    token = BOUND.set(min(BOUND.get(), _now() + timeout_s))
    try:
        yield
    finally:
        BOUND.reset(token)


def remaining() -> float:
    """Return the seconds that are left to this code's calls; ``math.inf`` without a deadline, never below zero. Never blocks."""
    request = current_request()
    bound = BOUND.get() if request is None else min(BOUND.get(), request.deadline)
    return bound if bound == math.inf else max(0.0, bound - _now())


def _now() -> float:
    """Return the time on the clock of the kernel that this code runs on."""
    request = current_request()
    kernel = kernel_here() if request is None else request.router.kernel
    return time.monotonic() if kernel is None else kernel.now()
