"""What stands in for the standard library's locks, threads, clocks and chance in simulated code.

Each looks at who calls: a thread under control gets the simulated thing, any other thread the real one. So a lock that
was made in a simulation still works when the simulation is over, and nobody else notices that there is one.
``threading``'s conditions, events, semaphores and barriers, and ``queue``'s queues, are Python code over locks and a
clock: with these in place, they are simulated without further ado.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import uuid
from _thread import RLock as RealRLock
from _thread import allocate_lock, get_ident
from contextvars import Context
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from threadserve.concurrency import ids
from threadserve.concurrency.outcome import capture
from threadserve.concurrency.real import kernel_here
from threadserve.concurrency.threads import user_line
from threadserve.testing.turns import Ended, UncontrolledError

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.testing.scheduler import SimulatedKernel
    from threadserve.testing.turns import SimulatedThread, Turns

__all__ = [
    "EPOCH_S",
    "StandInLocal",
    "StandInLock",
    "StandInRLock",
    "chance_of",
    "here",
    "make_lock",
    "make_rlock",
]

EPOCH_S = 1_767_225_600
"""What ``time.time()`` says in the beginning of a simulation: 2026-01-01 00:00 UTC."""


def here() -> SimulatedKernel | None:
    """Return the kernel that the calling thread is under; None for the real one."""
    return cast("SimulatedKernel | None", kernel_here())


# ---- locks


class StandInLock:
    """``threading.Lock``: anybody may release it."""

    __slots__ = ("__weakref__", "_count", "_holder", "_kernel", "_number", "_real", "_waiting")

    def __init__(self, real: Any = None) -> None:
        self._real = real
        self._kernel: SimulatedKernel | None = None
        self._number = 0
        self._forget()

    def _forget(self) -> None:
        self._holder: SimulatedThread | None = None
        self._count = 0
        self._waiting: list[SimulatedThread] = []

    def __repr__(self) -> str:
        return f"<{self.label} of threading>"

    def __str__(self) -> str:
        return self.label if self._holder is None else f"{self.label}, held by {self._holder.name}"

    @property
    def label(self) -> str:
        """Its name, whoever holds it."""
        return f"user lock {self._number}"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; True when taken. Blocks."""
        kernel = here()
        if kernel is None:
            return cast("bool", self._real_one().acquire(blocking, timeout))
        if not blocking and timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if timeout < 0 and timeout != -1:
            raise ValueError("timeout value must be a non-negative number")
        turns = self._turns(kernel)
        me = turns.enter()
        try:
            turns.pause(me)
            if self._is_held_against(me) and not self._wait_long(turns, me, blocking, timeout):
                turns.log(me, "does not get", str(self))
                return False
            self._holder = me
            self._count += 1
            if self._count == 1:
                turns.log(me, "takes", self.label)
            return True
        except BaseException as failure:
            turns.blame(failure)
            raise
        finally:
            turns.is_busy = False

    def release(self) -> None:
        """Give the lock back."""
        kernel = here()
        if kernel is None:
            self._real_one().release()
            return
        turns = self._turns(kernel)
        me = turns.enter()
        try:
            self._check_release(me)
            self._count -= 1
            if not self._count:
                self._let_go(turns, me)
        except BaseException as failure:
            turns.blame(failure)
            raise
        finally:
            turns.is_busy = False

    __enter__ = acquire

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def locked(self) -> bool:
        """Whether somebody holds it."""
        kernel = here()
        if kernel is None:
            real = self._real_one()
            return cast("bool", real.locked() if hasattr(real, "locked") else real._is_owned())
        self._turns(kernel)
        return self._holder is not None

    def _is_owned(self) -> bool:  # asked by threading.Condition
        return self.locked()

    def _at_fork_reinit(self) -> None:
        self._real = None
        self._forget()

    def _real_one(self) -> Any:
        if self._real is None:
            self._real = self._make_real()
        return self._real

    @staticmethod
    def _make_real() -> Any:
        return allocate_lock()

    def _turns(self, kernel: SimulatedKernel) -> Turns:
        """Return the turns to be taken; in another simulation than the last one the lock is free."""
        if kernel is not self._kernel:
            self._kernel = kernel
            self._number = kernel.count_user_lock()
            self._forget()
        return kernel.turns

    def _is_held_against(self, me: SimulatedThread) -> bool:
        return self._holder is not None

    def _check_release(self, me: SimulatedThread) -> None:
        if self._holder is None:
            raise RuntimeError("release unlocked lock")

    def _let_go(self, turns: Turns, me: SimulatedThread) -> None:
        self._holder = None
        turns.log(me, "releases", self.label)
        if self._waiting:
            turns.wake(self._waiting.pop(turns.draw(len(self._waiting))))
        turns.pause(me)

    def _wait_long(self, turns: Turns, me: SimulatedThread, blocking: bool, timeout: float) -> bool:
        deadline = None if timeout < 0 else turns.now + timeout
        while self._holder is not None:
            if not blocking:
                return False
            self._waiting.append(me)
            try:
                was_woken = turns.park(me, self, deadline) or me not in self._waiting
            finally:
                if me in self._waiting:
                    self._waiting.remove(me)
            if not was_woken:
                return False
        return True


class StandInRLock(StandInLock):
    """``threading.RLock``: its holder may take it again, and nobody else may release it."""

    __slots__ = ()

    @property
    def label(self) -> str:
        """Its name, whoever holds it."""
        return f"user rlock {self._number}"

    @staticmethod
    def _make_real() -> Any:
        return RealRLock()

    def _is_held_against(self, me: SimulatedThread) -> bool:
        return self._holder is not None and self._holder is not me

    def _check_release(self, me: SimulatedThread) -> None:
        if self._holder is not me:
            raise RuntimeError("cannot release un-acquired lock")

    def _is_owned(self) -> bool:
        kernel = here()
        if kernel is None:
            return cast("bool", self._real_one()._is_owned())
        return self._holder is not None and self._holder is self._turns(kernel).current

    def _release_save(self) -> Any:
        kernel = here()
        if kernel is None:
            return self._real_one()._release_save()
        count, self._count = self._count, 1
        self.release()
        return count

    def _acquire_restore(self, state: Any) -> None:
        if here() is None:
            self._real_one()._acquire_restore(state)
        else:
            self.acquire()
            self._count = state


def make_lock() -> Any:
    """Be ``threading.Lock``."""
    return allocate_lock() if kernel_here() is None else StandInLock()


def make_rlock() -> Any:
    """Be ``threading.RLock``."""
    return RealRLock() if kernel_here() is None else StandInRLock()


class StandInLocal:
    """``threading.local``: real threads outlive simulated ones, and must not hand down what these have left there."""

    def __init__(self, real: threading.local) -> None:
        self.__dict__.update({"_real": real, "_kernel": None, "_values": {}})

    def _of_thread(self) -> Any:
        kernel, mine = here(), self.__dict__
        if kernel is None:
            return mine["_real"]
        if kernel is not mine["_kernel"]:
            mine["_kernel"], mine["_values"] = kernel, {}
        return mine["_values"].setdefault(kernel.turns.current, SimpleNamespace())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of_thread(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._of_thread(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._of_thread(), name)


# ---- the clock

_time, _monotonic, _perf_counter, _sleep = time.time, time.monotonic, time.perf_counter, time.sleep
_time_ns, _monotonic_ns, _perf_counter_ns = time.time_ns, time.monotonic_ns, time.perf_counter_ns


def _glance(kernel: SimulatedKernel) -> float:
    """Look at the clock: a switch point, so that who waits for it to go on lets others go on."""
    turns = kernel.turns
    if not turns.is_busy and not turns.is_ending:
        with turns as me:
            turns.pause(me)
    return turns.now


def now() -> float:
    """Be ``time.time``."""
    kernel = here()
    return _time() if kernel is None else EPOCH_S + _glance(kernel)


def now_ns() -> int:
    """Be ``time.time_ns``."""
    kernel = here()
    return _time_ns() if kernel is None else EPOCH_S * 10**9 + round(_glance(kernel) * 1e9)


def monotonic() -> float:
    """Be ``time.monotonic``."""
    kernel = here()
    return _monotonic() if kernel is None else _glance(kernel)


def monotonic_ns() -> int:
    """Be ``time.monotonic_ns``."""
    kernel = here()
    return _monotonic_ns() if kernel is None else round(_glance(kernel) * 1e9)


def perf_counter() -> float:
    """Be ``time.perf_counter``."""
    kernel = here()
    return _perf_counter() if kernel is None else _glance(kernel)


def perf_counter_ns() -> int:
    """Be ``time.perf_counter_ns``."""
    kernel = here()
    return _perf_counter_ns() if kernel is None else round(_glance(kernel) * 1e9)


def sleep(seconds: float, /) -> None:
    """Be ``time.sleep``."""
    kernel = here()
    if kernel is None:
        _sleep(seconds)
    elif seconds < 0:
        raise ValueError("sleep length must be non-negative")
    else:
        turns = kernel.turns
        with turns as me:
            turns.pause(me)
            turns.park(me, f"{seconds:g} s to pass", turns.now + seconds)


# ---- chance

_urandom, _uuid4, _seed = os.urandom, uuid.uuid4, random.Random.seed


def chance_of(kernel: SimulatedKernel) -> random.Random:
    """Return what ``random`` draws from in the simulation; not what the runtime draws from."""
    chance = kernel.user_chance
    if chance is None:
        chance = kernel.user_chance = random.Random(kernel.seed + 1)
    return chance


def draws(name: str, original: Any) -> Callable[..., Any]:
    """Return what stands in for a function of ``random``."""

    def draw(*args: Any, **kwargs: Any) -> Any:
        kernel = here()
        return (original if kernel is None else getattr(chance_of(kernel), name))(*args, **kwargs)

    return draw


def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
    """Be ``random.Random.seed``: a generator without a seed gets one."""
    kernel = here() if a is None else None
    if kernel is not None:
        a = chance_of(kernel).getrandbits(64)
    _seed(self, a, version)


def uuid4() -> uuid.UUID:
    """Be ``uuid.uuid4``."""
    kernel = here()
    return _uuid4() if kernel is None else uuid.UUID(int=chance_of(kernel).getrandbits(128), version=4)


_identify = ids.identify


def identify(owner: ids.Identified) -> str:
    """Be what gives requests their ids: in a simulation they count from its beginning."""
    kernel = here()
    if kernel is None:
        return _identify(owner)
    if owner._id is None:
        owner._id = f"00000000-0000-4000-8000-{kernel.count_id():012x}"
    return owner._id


def urandom(size: int, /) -> bytes:
    """Be ``os.urandom``, which has no seed: in simulated code an error."""
    kernel = here()
    if kernel is None:
        return _urandom(size)
    where = user_line(_caller_of_random())
    failure = UncontrolledError(
        f"the code at {where} asks the system for chance (os.urandom, which SystemRandom and secrets use): it has no "
        "seed, so no run could be repeated; use random, or replace it in the test"
    )
    kernel.turns.fail(failure)
    raise failure


def _caller_of_random() -> Any:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in ("random", "secrets", "uuid", "os"):
        frame = frame.f_back
    return frame


# ---- threads

_start, _join, _is_alive = threading.Thread.start, threading.Thread.join, threading.Thread.is_alive
_MARK = "_threadserve_simulated"


def start(self: Any) -> None:
    """Be ``threading.Thread.start``."""
    kernel = here()
    if kernel is None:
        original_start(self)
        return
    if self._started.is_set():
        raise RuntimeError("threads can only be started once")
    self._started.set()
    self.__dict__[_MARK] = kernel.spawn(self.name, partial(_live, self))


original_start: Callable[[Any], None] = _start
"""What ``Thread.start`` was when it was replaced."""


def join(self: Any, timeout: float | None = None) -> None:
    """Be ``threading.Thread.join``."""
    simulated = self.__dict__.get(_MARK)
    if simulated is None or here() is None:
        if simulated is None:
            _join(self, timeout)
    else:
        simulated.join(None if timeout is None else max(0.0, timeout))


def is_alive(self: Any) -> bool:
    """Be ``threading.Thread.is_alive``."""
    simulated = self.__dict__.get(_MARK)
    return _is_alive(self) if simulated is None else simulated.is_alive()


def _live(thread: Any) -> None:
    """Run a thread of the user's, on a thread of the simulation's."""
    ident = get_ident()
    active = threading._active  # type: ignore[attr-defined]
    before = active.get(ident)
    thread._ident, active[ident] = ident, thread
    try:
        context = getattr(thread, "_context", None) or Context()
        failure = capture(context.run, thread.run).exception
        if isinstance(failure, Ended):
            raise failure
        if failure is not None and not isinstance(failure, SystemExit):
            arguments = (type(failure), failure, failure.__traceback__, thread)
            threading.excepthook(threading.ExceptHookArgs(arguments))
        del failure
    finally:
        if before is None:
            active.pop(ident, None)
        else:
            active[ident] = before
