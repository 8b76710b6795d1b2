"""Who waits for whom, and which of them can never go on. Pure: works on a picture of one moment.

"Waits in a circle" is the wrong test: a queued request waits for *any* slot of its deployment. *Stuck* is the greatest
set of requests such that each of them

* is queued, and every slot of its deployment is held by a stuck request, and nothing about the deployment is changing; or
* holds a slot, and its body waits, without a timeout or a deadline, for answers all of which are stuck; or
* produces into a full stream whose reader is stuck; or
* waits for arguments all of which are stuck.

Everything else can still move, or be moved: locks of the user's, sleep, I/O, tasks and threads that the body has
started, waits with a timeout. A cancellation from outside does not count. Because nothing in the set can move, being stuck
is stable: a picture taken under the locks proves it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping

__all__ = ["Picture", "stuck"]

K = TypeVar("K", bound="Hashable")


@dataclass(slots=True)
class Picture(Generic[K]):
    """The unanswered requests of one moment, by any key."""

    needs: dict[K, Collection[K]] = field(default_factory=dict)
    """What a request that waits cannot go on without: the answers its body, its reader or its arguments wait for."""
    queued: dict[K, str] = field(default_factory=dict)
    """The deployment in whose queue a request stands."""
    holders: dict[str, Collection[K]] = field(default_factory=dict)
    """Who has the slots of a deployment. A deployment that has a free slot, or is changing, is not listed."""


def stuck(picture: Picture[K]) -> set[K]:
    """Return the greatest set of requests none of which can ever go on; empty when all may."""
    found = set(picture.needs) | {key for key, name in picture.queued.items() if name in picture.holders}
    moves = True
    while moves:
        free = {key for key in found if not _is_held(key, picture, found)}
        found -= free
        moves = bool(free)
    return found


def _is_held(key: K, picture: Picture[K], found: Collection[K]) -> bool:
    """Whether all that could let `key` go on is in `found`."""
    waited_for: Mapping[K, Collection[K]] = picture.needs
    held_by = waited_for[key] if key in waited_for else picture.holders[picture.queued[key]]
    return bool(held_by) and all(other in found for other in held_by)
