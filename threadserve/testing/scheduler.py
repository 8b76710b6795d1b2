"""The seeded kernel: the same program, one thread at a time, in an order that a number decides.

What it is for. A race is an unlucky order of steps. Real threads show it once in a million runs, on somebody
else's machine. Here the order is drawn from a seed: a thousand seeds are a thousand orders, tried in seconds,
and a seed that fails fails again. Time is virtual: what would sleep for five minutes is over at once.

How it works. ``SimulatedKernel`` is a Kernel. Its threads are real ones, but only the one that holds the
baton runs; each has a raw lock of its own to wait for it. Whoever comes to a *switch point* lets the kernel
choose who goes on, perhaps itself. Switch points are: before a lock is taken and after it has been released,
before a wait, before and after ``waiter.set``, before and after an item is put into a deque that is used without a lock or
taken out of it, after a thread or a timer was started, before a timer is cancelled or a thread joined, and each turn of
an event loop. A thread that has to wait is *parked* until
another one makes it runnable. When nobody can run, the clock jumps to the next timeout or timer; when there
is none (or only the runtime's own look-outs set theirs again and again), the run is stuck and fails with every
thread's stack. Timers ring on a thread, as they do in the real kernel, so what they call may take locks. This file
begins and ends a run; ``turns.py`` says who goes on, as a schedule of ``choices.py`` has it, ``primitives.py`` is what
they wait with, ``loops.py`` is asyncio on that ground, and ``crew.py`` keeps the real threads for the next run.

``simulator.py`` makes it whole: the runtime and the test itself run on it, ``control.py`` puts the stand-ins of
``stand_ins.py`` in the places of what user code waits, tells the time and draws with, ``lines.py`` makes every line a
switch point where that is wanted, ``traces.py`` tells what happened, ``watchdog.py`` finds who blocks on something
real, ``search.py`` looks for a schedule that fails, and ``reproduction.py`` writes it down.

How it ends. Once ``main`` has returned, the others go on until all are parked; the clock stands still
meanwhile. What is parked then (workers, loops, a timer in the future) is ended: its wait raises a private
BaseException, and its ``finally`` clauses run, one thread after the other. The same happens when the run fails. No
simulated thread outlives ``run``; one that resists is named in an error after a bounded time.

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

Assumptions. All waiting is the kernel's, or that of a stand-in: a thread that blocks on something real (a socket, a
C lock that was made before) blocks the whole run, and the watchdog fails it. Code between two switch points is not
interleaved: at operation grain a plain ``x += 1`` is never torn. A loop that spins until the clock has moved spins
until ``max_steps``. Nothing iterates over sets of objects that hash by their address; what ``datetime.now()`` says, and
what other libraries keep in locals of real threads, differs from run to run.

What was rejected. Generators or greenlets instead of threads: the code under test would be another one. A
switch point on every line by default: two to three times slower, and traces to match. Waking all who wait for
a lock and letting them compete: the same orders in more steps. ``random.Random`` for the choices: its methods
may draw differently in another version. A lock around the scheduler's own state: only the holder of the baton
touches it, and a finalizer would deadlock.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import heapq
import os
import random
import signal
import threading
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar, cast

from threadserve.concurrency.outcome import capture
from threadserve.concurrency.real import put_under
from threadserve.concurrency.reaper import Callbacks, Errands
from threadserve.testing.choices import Random
from threadserve.testing.crew import Worker, hire
from threadserve.testing.primitives import SimulatedAlarm, SimulatedDeque, SimulatedLock, SimulatedWaiter
from threadserve.testing.turns import (
    LAST_STEPS,
    Ended,
    SimulatedThread,
    StuckError,
    Turns,
    UncontrolledError,
    told,
)
from threadserve.testing.watchdog import unwatch, watch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator, Iterable
    from types import FrameType

    from threadserve.concurrency.kernel import Service
    from threadserve.testing.choices import Schedule

__all__ = ["LateErrands", "SimulatedKernel", "StuckError", "explore", "on_one_processor"]

R = TypeVar("R")

_PATIENCE_S = 5.0  # real time that a thread gets to end
_LOOKOUTS = ("threadserve.runtime.deadlock", "threadserve.runtime.health")  # what sets alarms again and again


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


class LateErrands(Errands):
    """A reaper whose thread starts with the first note: most simulated runs have none, and a thread has its price."""

    def __init__(self, kernel: SimulatedKernel, name: str) -> None:
        super().__init__(kernel, name)
        self._waiter = _Summons(kernel.turns, lambda: kernel.begin_thread(name, self._run))

    def start(self) -> None:
        """Nothing to prepare: the thread comes with the first note, however that is posted."""

    def end(self) -> None:
        """Have nobody come any more."""
        self._waiter = self._kernel.waiter()


class _Summons(SimulatedWaiter):
    """What is set where nobody waits yet: then somebody comes."""

    __slots__ = ("_call",)

    def __init__(self, turns: Turns, call: Callable[[], object]) -> None:
        super().__init__(turns, "waiter", 0)
        self._call: Callable[[], object] | None = call

    def fulfil(self) -> None:
        call, self._call = self._call, None
        if call is not None and not self._turns.is_ending:
            call()


class SimulatedKernel:
    """A Kernel whose threads take turns as a schedule says, on a clock that jumps. For one ``run``.

    Locks, waiters and loops may be made anywhere, but used only by threads of the run; see the module.

    Args:
        seed: Of the schedule, and of ``random``.
        max_steps: How many switch points a run may have.
        schedule: Who goes on; by chance, as the seed says, if it is not given.
        on_thread: Called on each thread of the run, main's apart, with what the thread runs; calls it.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        max_steps: int = 1_000_000,
        schedule: Schedule | None = None,
        on_thread: Callable[[Callable[[], object]], object] | None = None,
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self._turns = Turns(
            Random().schedule(seed) if schedule is None else schedule,
            max_steps,
            {SimulatedKernel.run.__code__, SimulatedKernel._live.__code__, Worker._live.__code__},
        )
        self._turns.has_only_lookouts = self._has_only_lookouts
        self._on_thread = on_thread
        self._locks = self._waiters = self._alarms_set = 0  # how many there are of each kind, for their names
        self._alarms: list[tuple[float, int, SimulatedAlarm]] = []  # a heap
        self._timer: SimulatedThread | None = None
        self._is_timer_idle = False
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._has_begun = False
        self._disturbance = contextlib.ExitStack()
        self.user_chance: random.Random | None = (
            None  # what ``random`` draws from in simulated code, once it does
        )
        self.records: Any = None  # of the requests, where somebody wants them; ``traces.Records``
        self.simulation: Any = None  # which this is the kernel of
        self._user_locks = self._ids = 0
        self.errands: Service = Errands(self, "threadserve reaper")
        self.callbacks: Service = Callbacks(self, "threadserve callbacks")

    @property
    def trace(self) -> list[str]:
        """What was done, by whom, in order."""
        return [told(entry) for entry in self._turns.entries]

    @property
    def turns(self) -> Turns:
        """Who goes on; for this room."""
        return self._turns

    def count_user_lock(self) -> int:
        """Return a number for a lock of the user's."""
        self._user_locks += 1
        return self._user_locks

    def count_id(self) -> int:
        """Return a number for what wants an id."""
        self._ids += 1
        return self._ids

    # ---- the kernel

    def lock(self) -> SimulatedLock:
        """Make a lock."""
        self._locks += 1
        return SimulatedLock(self._turns, self._locks)

    turn = lock

    def waiter(self) -> SimulatedWaiter:
        """Make a waiter, for one wait."""
        self._waiters += 1
        return SimulatedWaiter(self._turns, "waiter", self._waiters)

    def deque(self) -> SimulatedDeque:
        """Make a deque that is used without a lock."""
        return SimulatedDeque(self._turns)

    def now(self) -> float:
        """The virtual time in seconds; 0.0 in the beginning."""
        return self._turns.now

    def call_at(self, deadline: float, fn: Callable[[], object]) -> SimulatedAlarm:
        """Call `fn` on the timer thread when the clock says `deadline`. If it raises, the run fails."""
        turns = self._turns
        with turns as me:
            turns.refuse_when_ending()
            self._alarms_set += 1
            alarm = SimulatedAlarm(turns, self._alarms_set, fn)
            heapq.heappush(self._alarms, (deadline, self._alarms_set, alarm))
            turns.log(me, "sets", f"{alarm} to {deadline:g}")
            if self._timer is None:
                self._timer = self.begin_thread("threadserve timer", self._ring)
            elif self._is_timer_idle and self._alarms[0][2] is alarm:
                turns.wake(self._timer)
            turns.pause(me)
            return alarm

    def spawn(self, name: str, fn: Callable[[], object]) -> SimulatedThread:
        """Start a thread that runs `fn` in an empty context. If it raises, the run fails."""
        turns = self._turns
        with turns as me:
            turns.refuse_when_ending()
            thread = self.begin_thread(name, fn)
            turns.log(me, "starts", name)
            turns.pause(me)
            return thread

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Make an asyncio loop on virtual time. It has no file descriptors, and refuses them."""
        from threadserve.testing.loops import SimulatedEventLoop  # and with it asyncio

        loop = SimulatedEventLoop(self, SimulatedWaiter(self._turns, "loop", len(self._loops) + 1))
        self._loops.append(loop)
        return loop

    # ---- the run

    def run(self, main: Callable[[], R]) -> R:
        """Run `main` on this thread, under control, and return what it returns.

        Blocks until `main` has returned, the others are parked, and they have been ended and joined.

        Raises:
            StuckError: Nobody can go on and `main` has not returned; or a thread waits for a lock for ever;
                or there were more than `max_steps` switch points.
            BaseException: What `main` or a thread raised, whichever came first.
        """
        self.begin()
        outcome = capture(main)
        self.finish(outcome.exception)
        return cast("R", outcome.unwrap())

    def begin(self) -> None:
        """Put the calling thread under control, as main. For who cannot use ``run``; ``finish`` must follow."""
        turns = self._turns
        if self._has_begun:
            raise RuntimeError("a SimulatedKernel runs once; make another one")
        self._has_begun = True
        me = turns.current = SimulatedThread(turns, "main", None)
        me.run_here()
        turns.threads.append(me)
        self._disturbance.enter_context(_undisturbed(self._interrupt))
        put_under(self, me.ident)
        watch(turns)

    def finish(self, raised: BaseException | None) -> None:
        """End the run, main having returned or raised; see ``run``. Returns if nothing has failed."""
        turns = self._turns
        me = turns.threads[0]
        with self._disturbance:
            try:
                if raised is None:
                    if capture(self._settle).exception is not None and not turns.is_ending:
                        turns.fail(StuckError("main's last wait was interrupted"))
                elif not isinstance(raised, Ended):
                    turns.fail(raised)
            finally:
                self._end(me)
        failure, turns.failure = turns.failure, None
        if failure is None and turns.is_interrupted:
            failure = KeyboardInterrupt()
        if failure is None:
            return
        try:
            raise failure
        finally:
            del failure, raised  # the traceback has this frame: no cycle

    def _settle(self) -> None:
        """Main has returned: let the others go on until all are parked."""
        turns = self._turns
        with turns as me:
            is_time_left = turns.settle(me)
            is_locked_out = any(t.is_parked and isinstance(t.waits_for, SimulatedLock) for t in turns.threads)
            if is_locked_out and not is_time_left:
                turns.fail(StuckError(turns.report("main has returned; somebody waits for a lock for ever")))

    def _end(self, me: SimulatedThread) -> None:
        """Unwind all other threads, close the loops; bounded, whatever they do."""
        turns = self._turns
        others = turns.threads[1:]
        turns.end()
        turns.is_busy = True
        stubborn: list[SimulatedThread] = []
        patience = 0 if turns.lost is not None and turns.current is turns.lost else _PATIENCE_S
        if turns.current is not me and not me.baton.acquire(timeout=patience):
            stubborn.extend([turns.current] if turns.current else [])  # it has the baton, and keeps it
        for thread in others:
            if not thread.is_done and thread not in stubborn:
                turns.current = thread
                thread.baton.release()
                if not me.baton.acquire(timeout=_PATIENCE_S) or not thread.is_done:
                    stubborn.append(thread)
        turns.current = me
        turns.is_busy = False
        self._close_loops()
        turns.current = None
        unwatch(turns)
        put_under(None, me.ident)
        if stubborn := [thread for thread in stubborn if not thread.is_done]:
            for thread in stubborn:
                put_under(None, thread.ident)
            if turns.failure is None:
                turns.failure = StuckError("the run is over, but not all of its threads")
            names = ", ".join(thread.name for thread in stubborn)
            turns.failure.add_note(f"blocked outside of the kernel, or deaf: {names}")
        else:
            self._let_go()

    def _let_go(self) -> None:
        """Leave no circle behind: a search makes thousands of kernels, and to collect one takes a tenth of its run."""
        self._alarms.clear()
        self._loops.clear()
        self._timer = None
        self._turns.let_go()
        if isinstance(self.errands, LateErrands):
            self.errands.end()
        self.errands = self.callbacks = _Over()

    def _close_loops(self) -> None:
        if self._loops:
            from threadserve.testing.loops import close_loop

            for loop in self._loops:
                close_loop(loop)

    def _interrupt(self) -> bool:
        """Ctrl-C: return whether it may strike at once; otherwise the run ends at the next switch point."""
        turns = self._turns
        if isinstance(turns.failure, UncontrolledError):
            raise Ended  # pressed by the watchdog, for main waits outside of the kernel
        was_interrupted = turns.is_interrupted
        is_in_main = turns.current is not None and turns.current is turns.threads[0] and not turns.is_busy
        turns.is_interrupted = not is_in_main
        return is_in_main or was_interrupted

    # ---- threads

    def begin_thread(self, name: str, fn: Callable[[], object]) -> SimulatedThread:
        """Start a thread; in the section, where ``spawn`` cannot be called."""
        thread = SimulatedThread(self._turns, name, fn)
        worker = hire()
        thread.run_on(worker)
        worker.give(name, functools.partial(self._live, thread))
        self._turns.join_in(thread)
        return thread

    def _live(self, me: SimulatedThread, worker: Worker) -> Callable[[], object]:
        """The life of a thread that has the baton: run, and return what passes the baton on."""
        turns = self._turns
        fn, me.fn = me.fn, None
        if fn is not None and not turns.is_ending:
            put_under(self, me.ident)
            turns.is_busy = False
            body = fn if self._on_thread is None else functools.partial(self._on_thread, fn)
            failure = capture(Context().run, body).exception
            if failure is not None and not isinstance(failure, (Ended, SystemExit)):
                failure.add_note(f"raised in the simulated thread {me.name!r}")
                turns.fail(failure)
            del failure, body
            put_under(None, me.ident)
        del fn  # what it held dies while this thread has the baton
        if turns.current is not me:  # it was given up, and the run goes on without it
            me.is_done = True
            worker.go()
            return _nobody
        turns.is_busy = True
        if me.last_steps > LAST_STEPS:
            worker.go()
        else:
            worker.rest()
        return turns.leave(me)

    def _ring(self) -> None:
        """The life of the timer thread."""
        while True:
            fn = self._next_alarm()
            fn()
            del fn

    def _next_alarm(self) -> Callable[[], object]:
        turns = self._turns
        with turns as me:
            while True:
                while self._alarms and self._alarms[0][2].fn is None:
                    heapq.heappop(self._alarms)
                if self._alarms and self._alarms[0][0] <= turns.now:
                    alarm = heapq.heappop(self._alarms)[2]
                    turns.log(me, "rings", alarm.label)
                    fn, alarm.fn = alarm.fn, None
                    return cast("Callable[[], object]", fn)
                self._is_timer_idle = True
                turns.park(me, "the next alarm", self._alarms[0][0] if self._alarms else None)
                self._is_timer_idle = False

    def _has_only_lookouts(self) -> bool:
        """Whether nothing will happen but that the runtime looks whether something has happened."""
        if any(thread is not self._timer for thread in self._turns.sleeping()):
            return False
        fns = [alarm.fn for _, _, alarm in self._alarms if alarm.fn is not None]
        return all(getattr(fn, "__module__", None) in _LOOKOUTS for fn in fns)


def _nobody() -> None:
    """Pass on a baton that is not there."""


class _Over:
    """The services of a kernel whose run is over: nobody is there to do what they are sent."""

    def start(self) -> None:
        """Nobody comes."""

    def post(self, note: Callable[[], object]) -> None:
        """Nobody hears it."""


@contextlib.contextmanager
def _undisturbed(interrupt: Callable[[], bool]) -> Generator[None]:
    """Keep away garbage collection, other processors, and Ctrl-C in the middle of a switch."""
    is_collecting = gc.isenabled()
    gc.disable()
    handler = signal.getsignal(signal.SIGINT)
    is_ours = threading.current_thread() is threading.main_thread() and handler is signal.default_int_handler

    def handle(signum: int, frame: FrameType | None) -> None:
        if interrupt():
            signal.default_int_handler(signum, frame)

    if is_ours:
        signal.signal(signal.SIGINT, handle)
    try:
        with on_one_processor():
            yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, handler)
        if is_collecting:
            gc.enable()


@contextlib.contextmanager
def on_one_processor() -> Generator[None]:
    """Keep the thread, and those that it starts, on one processor: a run takes a third of the time there.

    As a batch job, where the system has that: who is woken does not interrupt who wakes it, which keeps the
    interpreter's lock until it waits itself. A pass of the baton takes half the time so.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    if len(processors) > 1:
        os.sched_setaffinity(0, {sorted(processors)[os.getpid() % len(processors)]})
    is_batch = _become_a_batch_job()
    try:
        yield
    finally:
        if is_batch:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        if len(processors) > 1:
            os.sched_setaffinity(0, processors)


def _become_a_batch_job() -> bool:
    """Have the thread scheduled as a batch job; False where it is one already, is something better, or may not be one."""
    if not hasattr(os, "SCHED_BATCH"):
        return False
    try:
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            return False
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:  # a sandbox may forbid it: then runs take longer
        return False
    return True
