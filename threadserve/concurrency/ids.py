"""Ids that look like UUIDs and cost a tenth: a random beginning for the process, then a number."""

from __future__ import annotations

import os
from itertools import count
from typing import Protocol

from threadserve.concurrency.real import RealKernel

__all__ = ["Identified", "identify"]


class Identified(Protocol):
    """What gets an id when somebody asks for it."""

    _id: str | None


class _Ids:
    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        drawn = os.urandom(9).hex()
        self._beginning = f"{drawn[:8]}-{drawn[8:12]}-4{drawn[12:15]}-8{drawn[15:]}"
        self._numbers = count()
        self._lock = RealKernel.lock()  # a leaf: ids are asked for under other locks, too

    def identify(self, owner: Identified) -> str:
        with self._lock:
            if owner._id is None:
                owner._id = f"{self._beginning}-{next(self._numbers):012x}"
            return owner._id


identify = _Ids().identify
"""Return the id of `owner`, which has one from now on. Never blocks for long, safe from any thread."""
