"""Who waits for whom, and which of them can never go on. Pure: works on a picture of one moment.

"Waits in a circle" is the wrong test: a queued request waits for *any* slot of its deployment. *Stuck* is the greatest
set of requests such that each of them

* is queued, and every slot of its deployment is held by a stuck request, and nothing about the deployment is changing; or
* holds a slot, and its body waits, without a timeout or a deadline, for answers all of which are stuck; or
* produces into a full stream whose reader is stuck; or
* waits for arguments all of which are stuck (one that is not may fail, and that is an answer).

Everything else can still move, or be moved: locks of the user's, sleep, I/O, tasks and threads that the body has
started, waits with a timeout. A cancellation from outside does not count. Because nothing in the set can move, being stuck
is stable: a picture taken under the locks proves it.

Any one of what it waits for lets a request go on. So stuck are those from which no path leads to one that can move, and
to find them is to walk back along the paths from those that can.

Most of the stuck are bystanders, who would go on if only those they wait for did. A *knot* is a group whose members
can reach one another and nobody else: each holds itself, and one of its members has to give way.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Mapping

__all__ = ["Picture", "knot", "stuck"]

K = TypeVar("K", bound="Hashable")
N = TypeVar("N", bound="Hashable")


@dataclass(slots=True)
class Picture(Generic[K]):
    """The unanswered requests of one moment, by any key. A request that is no key of it can move."""

    needs: dict[K, Collection[K]] = field(default_factory=dict)
    """What a request that waits cannot go on without: the answers its body, its reader or its arguments wait for."""
    queued: dict[K, str] = field(default_factory=dict)
    """The deployment in whose queue a request stands."""
    holders: dict[str, Collection[K]] = field(default_factory=dict)
    """Who has the slots of a deployment. A deployment that has a free slot, or is changing, is not listed."""


class _Queue(NamedTuple):
    """A step on the way from all who are queued to all who have a slot, of whom there may be thousands."""

    deployment: str


def stuck(picture: Picture[K]) -> set[K]:
    """Return the greatest set of requests none of which can ever go on; empty when all may."""
    return set(_requests(_stuck(_waits(picture))))


def knot(picture: Picture[K]) -> list[K]:
    """Return a smallest group of stuck requests that wait for nobody outside of it; empty when all may go on.

    Of all walks against the waits, each starting where none has been, the last one starts in such a group: a walk
    from anything outside that its start waits for, directly or not, would have come by there.
    """
    waits = _stuck(_waits(picture))
    follows = _turned(waits)
    seen: set[K | _Queue] = set()
    last = None
    for node in waits:
        if node not in seen:
            last = node
            seen |= _reach([node], follows, seen)
    group = set() if last is None else _reach([last], waits)
    return _requests(node for node in waits if node in group)


def _waits(picture: Picture[K]) -> dict[K | _Queue, Collection[K | _Queue]]:
    """Return, for all who wait, those any of whom could let them go on."""
    waits: dict[K | _Queue, Collection[K | _Queue]] = {}
    waits.update(picture.needs.items())
    waits.update((key, (_Queue(name),)) for key, name in picture.queued.items())
    waits.update((_Queue(name), holders) for name, holders in picture.holders.items())
    return waits


def _stuck(waits: Mapping[N, Collection[N]]) -> dict[N, Collection[N]]:
    """Return what is left of `waits` without all who may go on."""
    follows = _turned(waits)
    movers = [node for node in (*follows, *waits) if not waits.get(node)]
    moving = _reach(movers, follows)
    return {node: others for node, others in waits.items() if node not in moving}


def _turned(waits: Mapping[N, Iterable[N]]) -> dict[N, list[N]]:
    """Return, for each node, those who wait for it."""
    follows: defaultdict[N, list[N]] = defaultdict(list)
    for node, others in waits.items():
        for other in others:
            follows[other].append(node)
    return follows


def _reach(starts: Iterable[N], onward: Mapping[N, Iterable[N]], beyond: Collection[N] = ()) -> set[N]:
    """Return `starts` and all that can be come to from them, but for what is in `beyond`."""
    seen = set(starts)
    ahead = list(seen)
    while ahead:
        for node in onward.get(ahead.pop(), ()):
            if node not in seen and node not in beyond:
                seen.add(node)
                ahead.append(node)
    return seen


def _requests(nodes: Iterable[K | _Queue]) -> list[K]:
    return [node for node in nodes if not isinstance(node, _Queue)]
