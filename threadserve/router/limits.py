"""What is set and seen of a router from outside: its limits, and what it has at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from threadserve.call.request import Request

__all__ = ["Holdings", "Limits", "RouterStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a deployment allows its callers."""

    max_queued_requests: int = -1
    """Requests that may wait beside those that have a slot; -1 for any number."""
    stream_buffer_size: int = 64
    """Items that a stream's producer may run ahead of its reader."""
    status_code: int = 503
    """What HTTP answers when the queue is full."""
    retry_after_s: float | None = None
    """What HTTP then advises, in seconds."""
    inline: bool = True
    """Whether other threads than its own may run a request: one that waits for it, and another deployment's worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStatistics:
    """What a router had at one moment."""

    waiting: int
    """Requests that wait for their arguments."""
    queued: int
    """Requests that wait for a slot."""
    ongoing: int
    """Slots that are taken in replicas that get requests."""
    replicas: int
    """Replicas that get requests."""
    workers: int
    """Worker threads of those replicas; not those that run a stage of somebody else's just now."""


class Holdings(NamedTuple):
    """The unanswered requests of a deployment at one moment."""

    waiting: tuple[Request, ...]
    """Those that wait for their arguments."""
    queued: tuple[Request, ...]
    """Those that wait for a slot."""
    running: tuple[Request, ...]
    """Those that have one, answered or not."""
    has_free_slot: bool
    """Whether a queued request could go on: there is a free slot, or no replica yet."""
