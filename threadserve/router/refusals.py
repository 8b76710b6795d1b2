"""What a request is answered with when its body will not answer: the queue is full, nobody is there, its replica is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from threadserve.concurrency.outcome import Error
from threadserve.errors import BackPressureError

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.call.request import Request
    from threadserve.errors import RequestError
    from threadserve.router.limits import Limits

__all__ = ["given_up", "refusal", "unavailable"]


def unavailable(kind: Callable[..., RequestError], request: Request, reason: str | None) -> Error:
    """Return what a request gets that nobody will run."""
    name = request.router.name
    return Error(kind(f"{name} is not available: {reason}", deployment=name, request_id=request.request_id))


def given_up(kind: Callable[..., RequestError], request: Request, reason: str) -> Error:
    """Return what a request gets that was running, and is waited for no longer."""
    name, request_id = request.router.name, request.request_id
    text = f"request {request_id} to {name}.{request.method} was given up: {reason}"
    return Error(kind(text, deployment=name, request_id=request_id))


def refusal(request: Request, queued: int, limits: Limits) -> Error:
    """Return what a request gets that finds the queue full, with `queued` in it."""
    name = request.router.name
    return Error(
        BackPressureError(
            f"Request dropped due to backpressure: the queue of {name} is full "
            f"({queued} waiting, max_queued_requests={limits.max_queued_requests})",
            deployment=name,
            request_id=request.request_id,
            queued=queued,
            limit=limits.max_queued_requests,
            status_code=limits.status_code,
            retry_after_s=limits.retry_after_s,
        )
    )
