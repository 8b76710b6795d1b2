"""Asks a replica again and again whether it is well; three times no is no."""

from __future__ import annotations

from typing import TYPE_CHECKING

from threadserve.concurrency.outcome import capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.concurrency.kernel import Kernel, Timer
    from threadserve.replica.thread import ThreadReplica

__all__ = ["STRIKES", "HealthProbe"]

STRIKES = 3
"""Checks in a row that must fail before a replica is replaced."""


class HealthProbe:
    """Calls the ``check_health`` of one replica every `period_s`, each time on a thread of its own.

    A check that raises, or has not returned after `timeout_s`, is a strike; one that returns wipes them out. After three
    in a row `on_unhealthy` is called, once, with the last failure, on a thread where it may block. A check that hangs is
    left behind: the next one runs beside it.
    """

    def __init__(
        self,
        kernel: Kernel,
        replica: ThreadReplica,
        *,
        period_s: float,
        timeout_s: float,
        on_unhealthy: Callable[[BaseException], object],
    ) -> None:
        self._kernel = kernel
        self._replica = replica
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._on_unhealthy = on_unhealthy
        self._lock = kernel.lock()
        self._strikes = 0  # guarded by _lock, as all below
        self._check = 0  # the number of the check under way; a report of any other one comes too late
        self._timer: Timer | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Begin, one period from now. Never blocks."""
        with self._lock:
            self._schedule()

    def stop(self) -> None:
        """Check no more. Never blocks; a check under way goes on unheard."""
        with self._lock:
            self._is_stopped = True
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _schedule(self) -> None:
        if not self._is_stopped:
            self._timer = self._kernel.call_at(self._kernel.now() + self._period_s, self._begin)

    def _begin(self) -> None:
        with self._lock:
            if self._is_stopped:  # just now: the timer had rung already
                return
            self._check += 1
            check = self._check
        try:
            self._kernel.spawn(f"{self._replica.name} health", lambda: self._run(check))
        except RuntimeError:  # no thread to be had now, which says nothing about the replica
            with self._lock:
                self._schedule()

    def _run(self, check: int) -> None:
        seconds = self._timeout_s
        late = TimeoutError(
            f"check_health of {self._replica.name} did not return within health_check_timeout_s={seconds:g}"
        )
        alarm = self._kernel.call_at(
            self._kernel.now() + seconds, lambda: self._kernel.errands.post(lambda: self._report(check, late))
        )
        outcome = capture(self._replica.check_health)
        alarm.cancel()
        self._report(check, outcome.exception)

    def _report(self, check: int, failure: BaseException | None) -> None:
        with self._lock:
            if check != self._check or self._is_stopped:
                return
            self._check += 1
            self._strikes = 0 if failure is None else self._strikes + 1
            is_unhealthy = self._strikes >= STRIKES
            if not is_unhealthy:
                self._schedule()
        if is_unhealthy and failure is not None:
            self._on_unhealthy(failure)
