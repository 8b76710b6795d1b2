"""Puts the stand-ins in their places while there is a simulation, and takes them out again."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import os
import queue
import random
import sys
import threading
import time
import uuid
from _thread import LockType, RLock, allocate_lock
from typing import TYPE_CHECKING, Any

from threadserve.call import request
from threadserve.call.context import inheritance
from threadserve.testing import lines, stand_ins
from threadserve.testing.stand_ins import StandInLocal, StandInLock, StandInRLock, draws, here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

    from threadserve.app.graph import Plan

__all__ = ["Places", "install", "modules_of", "uninstall"]


class Places:
    """Places in which something stands in for something else, and what was there before."""

    def __init__(self) -> None:
        self._taken: list[tuple[Any, str, Any, Any]] = []

    def put(self, owner: Any, name: str, stand_in: Any) -> Any:
        """Put `stand_in` in the place of ``owner.name``, and return what was there."""
        original = vars(owner)[name]
        setattr(owner, name, stand_in)
        self._taken.append((owner, name, original, stand_in))
        return original

    def give_back(self) -> None:
        """Put back what was there, unless somebody else has put something there meanwhile."""
        while self._taken:
            owner, name, original, stand_in = self._taken.pop()
            if vars(owner).get(name) is stand_in:
                setattr(owner, name, original)

    def rebind(self, modules: Iterable[ModuleType], classes: Iterable[type] = ()) -> None:
        """Replace what modules have bound by ``from time import sleep`` and the like, and the locks that they have made."""
        for module in modules:
            for name, value in list(vars(module).items()):
                stand_in = _stand_in_for(value)
                if stand_in is not None:
                    self.put(module, name, stand_in)
        for cls in classes:
            for name, value in list(vars(cls).items()):
                if type(value) in _STATEFUL:
                    self.put(cls, name, _stand_in_for(value))


_LOCAL: type = threading.local
_STATEFUL = (LockType, RLock, _LOCAL)


def _stand_in_for(value: Any) -> Any:
    kind = type(value)
    if kind is LockType:
        return StandInLock(value)
    if kind is RLock:
        return StandInRLock(value)
    if kind is _LOCAL:
        return StandInLocal(value)
    return _BOUND_EARLY.get(id(value))


def _new_event_loop() -> asyncio.AbstractEventLoop:
    kernel = here()
    return _real_loop() if kernel is None else kernel.new_event_loop()


def _simple_queue() -> Any:
    return _real_simple_queue() if here() is None else queue._PySimpleQueue()  # type: ignore[attr-defined]


_real_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.events.new_event_loop
_real_simple_queue: Any = queue.SimpleQueue

_STAND_INS: list[tuple[Any, str, Any]] = [
    *(
        (time, name, getattr(stand_ins, name))
        for name in ("monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep")
    ),
    (time, "time", stand_ins.now),
    (time, "time_ns", stand_ins.now_ns),
    (threading, "_time", stand_ins.monotonic),
    (queue, "time", stand_ins.monotonic),
    (threading, "Lock", stand_ins.make_lock),
    (threading, "_allocate_lock", stand_ins.make_lock),
    (threading, "RLock", stand_ins.make_rlock),
    (threading.Thread, "join", stand_ins.join),
    (threading.Thread, "is_alive", stand_ins.is_alive),
    (queue, "SimpleQueue", _simple_queue),
    (uuid, "uuid4", stand_ins.uuid4),
    (request, "identify", stand_ins.identify),
    (os, "urandom", stand_ins.urandom),
    (random, "_urandom", stand_ins.urandom),
    (random.Random, "seed", stand_ins.seed),
    *(
        (random, name, draws(name, value))
        for name, value in vars(random).items()
        if not name.startswith("_") and getattr(value, "__self__", None) is random._inst
    ),
    (asyncio, "new_event_loop", _new_event_loop),
    (asyncio.events, "new_event_loop", _new_event_loop),
    (
        concurrent.futures.thread,
        "_global_shutdown_lock",
        StandInLock(concurrent.futures.thread._global_shutdown_lock),
    ),
]
_BOUND_EARLY: dict[int, Any] = {  # by identity: the values of strangers are not to be compared
    id(vars(owner)[name]): stand_in
    for owner, name, stand_in in _STAND_INS
    if name not in ("join", "is_alive", "seed")
}

_lock = allocate_lock()
_places = Places()  # guarded by _lock
_users = 0  # guarded by _lock


def install(hooks: Iterable[tuple[Any, str, Callable[[Any], Any]]] = ()) -> None:
    """Put the stand-ins in their places; counted, so every call needs its ``uninstall``.

    Args:
        hooks: What else to replace, by what is made of what was there.
    """
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        for owner, name, stand_in in _STAND_INS:
            _places.put(owner, name, stand_in)
        for owner, name, around in hooks:
            _places.put(owner, name, around(vars(owner)[name]))
        stand_ins.original_start = _places.put(threading.Thread, "start", stand_ins.start)
    inheritance.install()


def uninstall() -> None:
    """Take the stand-ins out when the last user has gone."""
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        inheritance.uninstall()
        lines.close()
        _places.give_back()


def modules_of(plan: Plan) -> tuple[list[ModuleType], list[type]]:
    """Return the modules that define the deployments of `plan`, and their classes."""
    targets = [planned.target for planned in plan.deployments]
    names = dict.fromkeys(getattr(target, "__module__", "") for target in targets)
    modules = [sys.modules[name] for name in names if name in sys.modules]
    classes = [
        base
        for target in targets
        if isinstance(target, type)
        for base in target.__mro__
        if base.__module__ not in sys.stdlib_module_names
    ]
    return modules, list(dict.fromkeys(classes))
