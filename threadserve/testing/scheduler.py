"""The seeded kernel: the same program, one thread at a time, in an order that a number decides.

What it is for. A race is an unlucky order of steps. Real threads show it once in a million runs, on somebody
else's machine. Here the order is drawn from a seed: a thousand seeds are a thousand orders, tried in seconds,
and a seed that fails fails again. Time is virtual: what would sleep for five minutes is over at once.

How it works. ``SimulatedKernel`` is a Kernel. Its threads are real ones, but only the one that holds the
baton runs; each has a raw lock of its own to wait for it. Whoever comes to a *switch point* lets the kernel
choose who goes on, perhaps itself. Switch points are: before a lock is taken and after it has been released,
before a wait, before and after ``waiter.set``, after a thread or a timer was started, before a timer is
cancelled or a thread joined, and each turn of an event loop. A thread that has to wait is *parked* until
another one makes it runnable. When nobody can run, the clock jumps to the next timeout or timer; when there
is none, the run is stuck and fails with every thread's stack. Some seeds switch at most switch points, others
rarely: races differ in how long one thread must go on alone. Timers ring on a thread, as they do in the real
kernel, so what they call may take locks.

How it ends. Once ``main`` has returned, the others go on until all are parked; the clock stands still
meanwhile. What is parked then (workers, loops, a timer in the future) is ended: its wait raises a private
BaseException, its ``finally`` clauses run, one thread after the other, and it is joined. The same happens
when the run fails. No thread outlives ``run``; one that resists is named in an error after a bounded time.

Guarantees.

* The same program, seed and minor version of Python give the same run and the same ``trace``, in any process
  and under any hash seed. Hence a generator of our own for the choices, no iteration over a set, and names
  that count instead of addresses. Cyclic garbage collection, which comes when it likes, pauses during a run.
* Locks, timeouts and wake-ups mean what they mean on real threads, and every order that is shown here is one
  that real threads could take. Not every order is shown: no time passes while anybody can run.
* ``waiter.set`` and ``errands.post`` may be called at any moment: in a finalizer that interrupts the kernel
  itself, in a signal handler, on a foreign thread. Then they leave a note, acted on at the next switch point.
  Anything else that is called there raises; a finalizer that is caught taking a lock fails the run.
* Ctrl-C ends the run in order and comes out of ``run`` as KeyboardInterrupt. A thread that does not come to a
  switch point makes a second one necessary.

Assumptions. All waiting is the kernel's: a thread that blocks on something real (``time.sleep``, a socket, a
lock of ``threading``) blocks the whole run. Code between two switch points is not interleaved: a plain ``x +=
1`` is never torn. A loop that spins until the clock has moved spins until ``max_steps``. The code under test
has no chance of its own: no ``random``, no iteration over sets of objects that hash by their address.

What was rejected. Generators or greenlets instead of threads: the code under test would be another one. A
switch point on every line: a hundred times slower. Waking all who wait for a lock and letting them compete:
the same orders in more steps. ``random.Random`` for the choices: its methods may draw differently in another
version. A lock around the scheduler's own state: only the holder of the baton touches it, and a finalizer
would deadlock.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import heapq
import math
import os
import random
import signal
import sys
import threading
import traceback
from _thread import allocate_lock, get_ident
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar, cast

from threadserve.concurrency.outcome import capture
from threadserve.concurrency.reaper import Callbacks, Errands
from threadserve.concurrency.threads import start_thread

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from threadserve.concurrency.kernel import Service

__all__ = ["SimulatedKernel", "StuckError", "explore"]

R = TypeVar("R")

_MASK = 2**64 - 1
_PATIENCE_S = 5.0  # real time that a thread gets to end
_GLANCE_S = 0.1  # real time after which a Ctrl-C that was overlooked is noticed
_LAST_STEPS = 10_000  # what a thread may do while it ends before its every step raises


class StuckError(AssertionError):
    """Nobody can go on, or nobody comes to an end. Says where each thread is."""


class _Ended(BaseException):
    """Ends a thread that waits; private, so that nobody handles it by name."""


def explore(test: Callable[[SimulatedKernel], object], seeds: Iterable[int] | int) -> None:
    """Run ``test(kernel)`` under a kernel of each seed; a number means that many seeds, from 0.

    Blocks. The first failure is raised as it is, with a note of the seed and of the end of the trace.
    """
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        kernel = SimulatedKernel(seed)
        try:
            kernel.run(functools.partial(test, kernel))
        except BaseException as failure:
            failure.add_note("\n  ".join([f"with seed {seed}; the trace ends:", *kernel.trace[-40:]]))
            raise


class SimulatedKernel:
    """A Kernel whose threads take turns as `seed` says, on a clock that jumps. For one ``run``.

    Locks, waiters and loops may be made anywhere, but used only by threads of the run; see the module.

    Attributes:
        trace: What was done, by whom, in order.
    """

    def __init__(self, seed: int = 0, *, max_steps: int = 1_000_000) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.trace: list[str] = []
        self._max_steps = max_steps
        self._steps = 0
        self._chance = _Chance(seed)
        self._inertia = (0, 1, 3, 9)[self._chance.below(4)]  # how much the one that runs is preferred
        self._now = 0.0
        self._made: dict[str, int] = {}  # how many of each kind, for their names
        self._section = _Section(self)
        self._threads: list[SimulatedThread] = []  # the first one is main's
        self._current: SimulatedThread | None = None  # holds the baton
        self._is_busy = False  # its holder is in here: who calls now has interrupted it
        self._runnable: list[SimulatedThread] = []  # without the current one
        self._sleepers: list[tuple[float, int, SimulatedThread]] = []  # a heap; holds stale entries
        self._sleeps = 0
        self._notes: deque[SimulatedWaiter] = deque()  # to be set at the next switch point
        self._alarms: list[tuple[float, int, _Alarm]] = []  # a heap
        self._timer: SimulatedThread | None = None
        self._is_timer_idle = False
        self._loops: list[Any] = []
        self._has_returned = False
        self._is_interrupted = False
        self._is_ending = False
        self._failure: BaseException | None = None
        self.errands: Service = Errands(self, "threadserve reaper")
        self.callbacks: Service = Callbacks(self, "threadserve callbacks")

    # ---- the kernel

    def lock(self) -> SimulatedLock:
        """Make a lock."""
        return SimulatedLock(self, self._name("lock"))

    def waiter(self) -> SimulatedWaiter:
        """Make a waiter, for one wait."""
        return SimulatedWaiter(self, self._name("waiter"))

    def now(self) -> float:
        """The virtual time in seconds; 0.0 in the beginning."""
        return self._now

    def call_at(self, deadline: float, fn: Callable[[], object]) -> _Alarm:
        """Call `fn` on the timer thread when the clock says `deadline`. If it raises, the run fails."""
        with self._section as me:
            self._refuse_when_ending()
            alarm = _Alarm(self, self._name("alarm"), fn)
            heapq.heappush(self._alarms, (deadline, self._made["alarm"], alarm))
            self._log(me, f"sets {alarm} to {deadline:g}")
            if self._timer is None:
                self._timer = self._start("threadserve timer", self._ring)
            elif self._is_timer_idle and self._alarms[0][2] is alarm:
                self._wake(self._timer)
            self._pause(me)
            return alarm

    def spawn(self, name: str, fn: Callable[[], object]) -> SimulatedThread:
        """Start a thread that runs `fn` in an empty context. If it raises, the run fails."""
        with self._section as me:
            self._refuse_when_ending()
            thread = self._start(name, fn)
            self._log(me, f"starts {name}")
            self._pause(me)
            return thread

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Make an asyncio loop on virtual time. It has no file descriptors, and refuses them."""
        loop = _loop_class()(self, SimulatedWaiter(self, self._name("loop")))
        self._loops.append(loop)
        return cast("asyncio.AbstractEventLoop", loop)

    # ---- the run

    def run(self, main: Callable[[], R]) -> R:
        """Run `main` on this thread, under control, and return what it returns.

        Blocks until `main` has returned, the others are parked, and they have been ended and joined.

        Raises:
            StuckError: Nobody can go on and `main` has not returned; or a thread waits for a lock for ever;
                or there were more than `max_steps` switch points.
            BaseException: What `main` or a thread raised, whichever came first.
        """
        if self._threads:
            raise RuntimeError("a SimulatedKernel runs once; make another one")
        me = self._current = SimulatedThread(self, "main", None)
        me.ident = get_ident()
        self._threads.append(me)
        with _undisturbed(self._interrupt):
            try:
                outcome = capture(main)
                if outcome.exception is None:
                    self._settle()
                elif not isinstance(outcome.exception, _Ended):
                    self._fail(outcome.exception)
            finally:
                self._end(me)
        failure, self._failure = self._failure, None
        if failure is None and self._is_interrupted:
            failure = KeyboardInterrupt()
        if failure is None:
            return cast("R", outcome.unwrap())
        try:
            raise failure
        finally:
            del failure, outcome  # the traceback has this frame: no cycle

    def _settle(self) -> None:
        """Main has returned: let the others go on until all are parked."""
        with self._section as me:
            self._has_returned = True
            me.waits_for = "the others, having returned"
            self._pass_on(me, self._choose(None))
            is_time_left = any(thread.sleep == number for _, number, thread in self._sleepers)
            is_locked_out = any(t.is_parked and isinstance(t.waits_for, SimulatedLock) for t in self._threads)
            if is_locked_out and not is_time_left:
                self._fail(StuckError(self._report("main has returned; somebody waits for a lock for ever")))

    def _end(self, me: SimulatedThread) -> None:
        """Unwind and join all other threads, close the loops; bounded, whatever they do."""
        self._is_ending = self._is_busy = True
        if self._current is not me:  # a signal handler has raised in main's wait for the baton
            me.baton.acquire(timeout=_PATIENCE_S)
        for thread in self._threads[1:]:
            if not thread.is_done:
                self._current = thread
                with contextlib.suppress(RuntimeError):
                    thread.baton.release()
                me.baton.acquire(timeout=_PATIENCE_S)
            if thread.is_done and thread.real is not None:
                thread.real.join(_PATIENCE_S)
        self._current = me
        self._is_busy = False
        for loop in self._loops:
            _close_loop(loop)
        self._current = None
        if stubborn := [t.name for t in self._threads[1:] if t.real is None or t.real.is_alive()]:
            if self._failure is None:
                self._failure = StuckError("the run is over, but not all of its threads")
            self._failure.add_note(f"blocked outside of the kernel, or deaf: {', '.join(stubborn)}")

    def _interrupt(self) -> bool:
        """Ctrl-C: return whether it may strike at once; otherwise the run ends at the next switch point."""
        was_interrupted = self._is_interrupted
        is_in_main = self._current is not None and self._current is self._threads[0] and not self._is_busy
        self._is_interrupted = not is_in_main
        return is_in_main or was_interrupted

    def _fail(self, failure: BaseException) -> None:
        """End the run with `failure`, if it is the first one."""
        if not self._is_ending:
            self._failure = failure
            self._is_ending = True

    # ---- threads

    def _start(self, name: str, fn: Callable[[], object]) -> SimulatedThread:
        thread = SimulatedThread(self, name, fn)
        thread.real = start_thread(name, functools.partial(self._live, thread))
        thread.ident = thread.real.ident
        self._threads.append(thread)
        self._runnable.append(thread)
        return thread

    def _live(self, me: SimulatedThread) -> None:
        """The life of a thread: wait for the baton, run, pass the baton on."""
        me.baton.acquire()
        fn, me.fn = me.fn, None
        if fn is not None and not self._is_ending:
            self._is_busy = False
            failure = capture(Context().run, fn).exception
            if failure is not None and not isinstance(failure, (_Ended, SystemExit)):
                failure.add_note(f"raised in the simulated thread {me.name!r}")
                self._fail(failure)
            del failure
        del fn  # what it held dies while this thread has the baton
        self._is_busy = True
        self._log(me, "ends")
        me.is_done = True
        for thread in me.joining:
            self._wake(thread)
        chosen = self._current = self._choose(None)
        chosen.baton.release()

    def _ring(self) -> None:
        """The life of the timer thread."""
        while True:
            fn = self._next_alarm()
            fn()
            del fn

    def _next_alarm(self) -> Callable[[], object]:
        with self._section as me:
            while True:
                while self._alarms and self._alarms[0][2].fn is None:
                    heapq.heappop(self._alarms)
                if self._alarms and self._alarms[0][0] <= self._now:
                    alarm = heapq.heappop(self._alarms)[2]
                    self._log(me, f"rings {alarm}")
                    fn, alarm.fn = alarm.fn, None
                    return cast("Callable[[], object]", fn)
                self._is_timer_idle = True
                self._park(me, "the next alarm", self._alarms[0][0] if self._alarms else None)
                self._is_timer_idle = False

    # ---- switching; only ever called by who holds the baton, in the section

    def _pause(self, me: SimulatedThread) -> None:
        """A switch point of one that can go on."""
        if not self._is_ending:
            self._pass_on(me, self._choose(me))
            return
        me.last_steps += 1
        if me.last_steps > 2 * _LAST_STEPS and me is not self._threads[0]:
            self._pass_on(me, self._threads[0])  # it swallows whatever is raised: here it stays
        if me.last_steps > _LAST_STEPS:
            raise _Ended

    def _park(self, me: SimulatedThread, what: object, deadline: float | None) -> bool:
        """Wait until woken: True; or until `deadline`: False."""
        if deadline is not None and deadline <= self._now:
            return False
        self._refuse_when_ending()
        self._log(me, f"waits for {what}")
        me.is_parked, me.has_timed_out, me.waits_for = True, False, what
        if deadline is not None and deadline != math.inf:
            self._sleeps += 1
            me.sleep = self._sleeps
            heapq.heappush(self._sleepers, (deadline, me.sleep, me))
        self._pass_on(me, self._choose(None))
        self._refuse_when_ending()
        me.waits_for = None
        return not me.has_timed_out

    def _wake(self, thread: SimulatedThread) -> None:
        if thread.is_parked:
            thread.is_parked, thread.sleep = False, 0
            self._runnable.append(thread)

    def _choose(self, me: SimulatedThread | None) -> SimulatedThread:
        """Decide who goes on; `me` if it could. It is main, to end the run, once anything has failed."""
        main, others = self._threads[0], self._runnable
        self._steps += 1
        self._act_on_notes()
        if self._is_interrupted:
            self._fail(KeyboardInterrupt())
        elif self._steps > self._max_steps:
            self._fail(StuckError(self._report(f"still not done after {self._max_steps} steps: a livelock?")))
        if self._is_ending:
            return main
        if me is not None:
            pick = self._chance.below(len(others) + 1 + self._inertia) if others else 0
            if pick >= len(others):
                return me
            chosen, others[pick] = others[pick], me
            return chosen
        while not others:
            if self._has_returned:
                return main
            if not self._jump():
                self._fail(StuckError(self._report("nobody can go on, and main has not returned")))
                return main
        return others.pop(self._chance.below(len(others)))

    def _pass_on(self, me: SimulatedThread, chosen: SimulatedThread) -> None:
        if chosen is not me:
            self._current = chosen
            chosen.baton.release()
            # Main looks up now and then: a signal that came just before the wait would not end it.
            while not me.baton.acquire(timeout=_GLANCE_S if me is self._threads[0] else -1):
                pass

    def _jump(self) -> bool:
        """Let time pass until somebody can run; False when nobody ever will."""
        sleepers = self._sleepers
        while sleepers and sleepers[0][2].sleep != sleepers[0][1]:
            heapq.heappop(sleepers)
        if not sleepers:
            return False
        self._now = sleepers[0][0]
        self.trace.append(f"the clock: {self._now:g}")
        while sleepers and sleepers[0][0] <= self._now:
            _, number, thread = heapq.heappop(sleepers)
            if thread.sleep == number:
                self._wake(thread)
                thread.has_timed_out = True
        return True

    def _act_on_notes(self) -> None:
        """Do the ``set`` calls that came at odd moments."""
        while self._notes:
            waiter = self._notes.popleft()
            self.trace.append(f"a finalizer, signal handler or foreign thread: sets {waiter}")
            waiter.fulfil()

    def _refuse_when_ending(self) -> None:
        if self._is_ending:
            raise _Ended

    # ---- telling

    def _name(self, kind: str) -> str:
        number = self._made[kind] = self._made.get(kind, 0) + 1
        return f"{kind} {number}"

    def _log(self, me: SimulatedThread, what: str) -> None:
        if not self._is_ending:
            self.trace.append(f"{me.name}: {what}")

    def _report(self, headline: str) -> str:
        frames = sys._current_frames()
        lines = [headline]
        for thread in self._threads:
            if not thread.is_done:
                state = "could go on" if thread.waits_for is None else f"waits for {thread.waits_for}"
                lines.append(f"\n{thread.name} {state}\n{_stack(frames.get(thread.ident or 0))}")
        return "".join(lines)


class _Chance:
    """Splitmix64: the same numbers in every process and every version."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def below(self, limit: int) -> int:
        """Return one of 0 to `limit` - 1."""
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return (z ^ (z >> 31)) % limit


class _Section:
    """Every call into the kernel: by a controlled thread, and not while it is in here already."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self._kernel = kernel

    def __enter__(self) -> SimulatedThread:
        kernel = self._kernel
        me = kernel._current
        if me is None or me.ident != get_ident():
            name = threading.current_thread().name
            raise RuntimeError(
                f"the thread {name!r} is not under control: what a SimulatedKernel made is for code "
                "inside of its run, and in threads that it spawned there"
            )
        if kernel._is_busy:
            failure = RuntimeError("a finalizer or signal handler took a lock, waited or started something")
            kernel._fail(failure)
            raise failure
        kernel._is_busy = True
        return me

    def __exit__(self, kind: type[BaseException] | None, failure: BaseException | None, tb: object) -> None:
        self._kernel._is_busy = False
        if failure is not None and kind not in (_Ended, RuntimeError):
            self._kernel._fail(failure)  # a signal handler's, from the middle of a switch


class SimulatedThread:
    """A thread under control. ``join`` is a wait like any other."""

    def __init__(self, kernel: SimulatedKernel, name: str, fn: Callable[[], object] | None) -> None:
        self._kernel = kernel
        self.name = name
        self.ident: int | None = None
        self.fn = fn
        self.real: threading.Thread | None = None
        self.baton = allocate_lock()  # held, except for the moment in which this thread is chosen
        self.baton.acquire()
        self.is_parked = False
        self.is_done = False
        self.waits_for: object = None
        self.sleep = 0  # the number of its entry among the sleepers
        self.has_timed_out = False
        self.joining: list[SimulatedThread] = []
        self.last_steps = 0

    def __str__(self) -> str:
        return f"the end of {self.name}"

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return not self.is_done

    def join(self, timeout: float | None = None) -> None:
        """Block until the thread has ended, or until `timeout` virtual seconds have passed."""
        if self.is_done:
            return
        kernel = self._kernel
        with kernel._section as me:
            if me is self:
                raise RuntimeError("a thread cannot join itself")
            kernel._pause(me)
            if not self.is_done:
                self.joining.append(me)
                kernel._park(me, self, None if timeout is None else kernel._now + timeout)
                self.joining.remove(me)


class SimulatedLock:
    """A lock that is strict: only its holder may release it."""

    __slots__ = ("_holder", "_kernel", "_name", "_waiting")

    def __init__(self, kernel: SimulatedKernel, name: str) -> None:
        self._kernel = kernel
        self._name = name
        self._holder: SimulatedThread | None = None
        self._waiting: list[SimulatedThread] = []

    def __str__(self) -> str:
        return self._name if self._holder is None else f"{self._name}, held by {self._holder.name}"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; True when taken. Blocks."""
        kernel = self._kernel
        with kernel._section as me:
            kernel._pause(me)
            deadline = None if timeout < 0 else kernel._now + timeout
            while self._holder is not None:
                if not blocking or not self._wait(me, deadline):
                    kernel._log(me, f"does not get {self}")
                    return False
            self._holder = me
            kernel._log(me, f"takes {self._name}")
            return True

    def release(self) -> None:
        """Give the lock back; one of those who wait for it may try again."""
        kernel = self._kernel
        with kernel._section as me:
            if self._holder is not me:
                raise RuntimeError(f"{me.name} releases {self}" if self._holder else "release unlocked lock")
            self._holder = None
            kernel._log(me, f"releases {self._name}")
            if self._waiting:
                kernel._wake(self._waiting.pop(kernel._chance.below(len(self._waiting))))
            kernel._pause(me)

    __enter__ = acquire

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _wait(self, me: SimulatedThread, deadline: float | None) -> bool:
        self._waiting.append(me)
        try:  # one that was called by a release while its time ran out must try: it was the only one called
            return self._kernel._park(me, self, deadline) or me not in self._waiting
        finally:
            if me in self._waiting:
                self._waiting.remove(me)


class SimulatedWaiter:
    """One thread's one wait. A wait that was ended by ``set`` uses it up, as in the real one."""

    __slots__ = ("_is_set", "_kernel", "_name", "_thread")

    def __init__(self, kernel: SimulatedKernel, name: str) -> None:
        self._kernel = kernel
        self._name = name
        self._is_set = False
        self._thread: SimulatedThread | None = None

    def __str__(self) -> str:
        return self._name

    def wait(self, timeout: float | None = None) -> bool:
        """Block until ``set`` was called: True; or until `timeout` virtual seconds have passed: False."""
        kernel = self._kernel
        with kernel._section as me:
            kernel._pause(me)
            if not self._is_set:
                self._thread = me
                try:
                    is_woken = kernel._park(me, self, None if timeout is None else kernel._now + timeout)
                finally:
                    self._thread = None
                if not is_woken and not self._is_overtaken():
                    return False
            self._is_set = False
            kernel._log(me, f"has {self}")
            return True

    def set(self) -> None:
        """End the wait, now or in advance. Never blocks, safe from any thread and at any moment."""
        kernel = self._kernel
        me = kernel._current
        if kernel._is_busy or me is None or me.ident != get_ident():
            kernel._notes.append(self)
            return
        with kernel._section:
            kernel._pause(me)
            kernel._log(me, f"sets {self}")
            self.fulfil()
            kernel._pause(me)

    def _is_overtaken(self) -> bool:
        """Whether a timeout gives way to a ``set`` that came at the same time: either may have been first."""
        return self._is_set and self._kernel._chance.below(2) == 1

    def fulfil(self) -> None:
        """Be set, at a moment at which the kernel can act on it."""
        self._is_set = True
        if self._thread is not None:
            self._kernel._wake(self._thread)


class _Alarm:
    """Something that will happen, unless cancelled."""

    __slots__ = ("_kernel", "_name", "fn")

    def __init__(self, kernel: SimulatedKernel, name: str, fn: Callable[[], object]) -> None:
        self._kernel = kernel
        self._name = name
        self.fn: Callable[[], object] | None = fn

    def __str__(self) -> str:
        return self._name

    def cancel(self) -> None:
        """Let it not happen, if it has not yet."""
        kernel = self._kernel
        with kernel._section as me:
            kernel._pause(me)
            fn, self.fn = self.fn, None
            kernel._log(me, f"cancels {self}")
        del fn  # dies outside of the kernel


class _Selector:
    """What an event loop waits with: the kernel, and nothing else."""

    def __init__(self, waiter: SimulatedWaiter) -> None:
        self._waiter = waiter

    def select(self, timeout: float | None = None) -> list[Any]:
        self._waiter.wait(timeout)
        return []

    def register(self, fileobj: object, *_: object) -> None:
        raise RuntimeError(
            f"a simulated event loop has no files, sockets or pipes: cannot wait for {fileobj!r}"
        )

    def get_map(self) -> dict[Any, Any]:
        return {}

    def get_key(self, fileobj: object) -> None:
        raise KeyError(fileobj)

    def close(self) -> None:
        pass


@functools.cache
def _loop_class() -> Any:
    """Make the class of our loops when the first one is: asyncio is not for everybody."""
    import asyncio

    class SimulatedEventLoop(asyncio.SelectorEventLoop):
        """asyncio's own loop; its clock, its way to wait and its threads are the kernel's."""

        def __init__(self, kernel: SimulatedKernel, waiter: SimulatedWaiter) -> None:
            self._kernel = kernel
            self._waiter = waiter
            super().__init__(cast("Any", _Selector(waiter)))

        def time(self) -> float:
            return self._kernel.now()

        def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
            if executor is not None:
                raise RuntimeError(f"the threads of {executor!r} are not under control; pass None")
            return asyncio.wrap_future(_call_in_thread(self._kernel, func, args), loop=self)

        def add_signal_handler(self, *_: Any) -> None:  # type: ignore[override]
            raise RuntimeError("a simulated event loop gets no signals")

        def _make_self_pipe(self) -> None:
            pass

        def _close_self_pipe(self) -> None:
            pass

        def _write_to_self(self) -> None:
            self._waiter.set()

    return SimulatedEventLoop


def _call_in_thread(
    kernel: SimulatedKernel, func: Callable[..., Any], args: tuple[Any, ...]
) -> concurrent.futures.Future[Any]:
    import concurrent.futures

    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        outcome = capture(func, *args)
        if outcome.exception is None:
            future.set_result(outcome.unwrap())
        else:
            future.set_exception(outcome.exception)

    kernel.spawn("executor", work)
    return future


def _close_loop(loop: Any) -> None:
    """Close a loop that its thread has left; tasks that are still suspended end as if they were dropped."""
    import asyncio

    tasks: list[Any] = sorted(
        asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name())
    )
    for task in tasks:
        task._log_destroy_pending = False
        capture(task.get_coro().close)
    if not loop.is_running():
        loop.close()


@contextlib.contextmanager
def _undisturbed(interrupt: Callable[[], bool]) -> Iterator[None]:
    """Keep away garbage collection, other processors, and Ctrl-C in the middle of a switch."""
    is_collecting = gc.isenabled()
    gc.disable()
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if processors:  # on one of them, a run takes a third less time
        os.sched_setaffinity(0, {sorted(processors)[os.getpid() % len(processors)]})
    handler = signal.getsignal(signal.SIGINT)
    is_ours = threading.current_thread() is threading.main_thread() and handler is signal.default_int_handler

    def handle(signum: int, frame: FrameType | None) -> None:
        if interrupt():
            cast("Any", handler)(signum, frame)

    if is_ours:
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, handler)
        if processors:
            os.sched_setaffinity(0, processors)
        if is_collecting:
            gc.enable()


_OUTERMOST = {SimulatedKernel.run.__code__, SimulatedKernel._live.__code__}


def _stack(frame: FrameType | None) -> str:
    """Format where a thread is, from where the run begins, without the kernel's own frames."""
    frames: list[tuple[FrameType, int]] = []
    while frame is not None and frame.f_code not in _OUTERMOST:
        if frame.f_code.co_filename != __file__:
            frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    if frames and frames[-1][0].f_code is capture.__code__:
        del frames[-1]  # run's own call of main, or a thread's of its function
    return "".join(traceback.StackSummary.extract(reversed(frames)).format())
