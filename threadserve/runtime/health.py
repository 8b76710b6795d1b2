"""Asks a replica again and again whether it is well; three times no is no."""

from __future__ import annotations

from typing import TYPE_CHECKING

from threadserve.concurrency.outcome import capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.concurrency.kernel import Kernel, Timer
    from threadserve.concurrency.outcome import Outcome
    from threadserve.replica.base import Replica

__all__ = ["STRIKES", "HealthProbe", "check"]

STRIKES = 3
"""Checks in a row that must fail before a replica is replaced."""


def check(kernel: Kernel, replica: Replica, timeout_s: float) -> None:
    """Have the user's ``check_health`` called on a thread of its own. Blocks; a call that hangs is left behind.

    Raises:
        TimeoutError: It has not returned after `timeout_s`.
        BaseException: What it raised.
    """
    returned = kernel.waiter()
    outcomes: list[Outcome] = []

    def call() -> None:
        outcomes.append(capture(replica.check_health))
        returned.set()

    kernel.spawn(f"{replica.name} health", call)
    if not returned.wait(timeout_s):
        limit = f"health_check_timeout_s={timeout_s:g}"
        raise TimeoutError(f"check_health of {replica.name} did not return within {limit}")
    outcomes[0].unwrap()


class HealthProbe:
    """Checks one replica every `period_s`.

    A check that raises, or has not returned after `timeout_s`, is a strike; one that returns wipes them out. After
    three in a row `on_unhealthy` is called, once, with the last failure, on a thread where it may block.
    """

    def __init__(
        self,
        kernel: Kernel,
        replica: Replica,
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
        try:
            self._kernel.spawn(f"{self._replica.name} probe", self._probe)
        except RuntimeError:  # no thread to be had now, which says nothing about the replica
            with self._lock:
                self._schedule()

    def _probe(self) -> None:
        failure = capture(check, self._kernel, self._replica, self._timeout_s).exception
        with self._lock:
            self._strikes = 0 if failure is None else self._strikes + 1
            is_unhealthy = self._strikes >= STRIKES and not self._is_stopped
            if not is_unhealthy:
                self._schedule()
        if is_unhealthy and failure is not None:
            self._on_unhealthy(failure)
