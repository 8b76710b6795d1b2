"""Whose turn it is: the baton, the choices and the clock of a simulated run.

What it is for and what it promises stands in ``scheduler.py``. The thread that holds the baton is the only
one that runs. It comes to a switch point inside of the *section*: it ``pause``s there when it could go on
itself, and ``park``s when it cannot. Nothing here is guarded by a lock: all of it belongs to who holds the
baton, and the section is where a finalizer or a signal handler that interrupts the holder is found out.
"""

from __future__ import annotations

import heapq
import math
import sys
import threading
import traceback
from _thread import allocate_lock, get_ident
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from threadserve.concurrency.outcome import capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

__all__ = ["Ended", "SimulatedThread", "StuckError", "Turns", "UncontrolledError"]

_MASK = 2**64 - 1
_GLANCE_S = 0.1  # real time after which a Ctrl-C that was overlooked is noticed
_LAST_STEPS = 10_000  # what a thread may do while it ends before its every step raises
_FOLDER = Path(__file__).parent


class StuckError(AssertionError):
    """Nobody can go on, or nobody comes to an end. Says where each thread is."""


class UncontrolledError(AssertionError):
    """Something happened that the simulator does not control: a real wait, a foreign thread, real chance. Names it."""


class Ended(BaseException):
    """Ends a thread that waits. Not to be handled by anybody else."""


class Turns:
    """The threads of a run, and which of them goes on.

    Attributes:
        now: The virtual time.
        trace: What was done, by whom, in order.
        section: To be entered, with ``with``, by who calls any method but ``fail``; gives the caller's thread.
        threads: All there are; the first one is main's.
        current: Who holds the baton.
        is_busy: The holder is in the section: who calls now has interrupted it.
        is_interrupted: Ctrl-C was pressed; the run ends at the next switch point.
        is_ending: The run has failed, or is over.
        failure: With what it failed.
        notes: What is to be set at the next switch point.
    """

    def __init__(self, seed: int, max_steps: int, outermost: set[CodeType]) -> None:
        self.now = 0.0
        self.trace: list[str] = []
        self.section = _Section(self)
        self.threads: list[SimulatedThread] = []
        self.current: SimulatedThread | None = None
        self.is_busy = False
        self.is_interrupted = False
        self.is_ending = False
        self.failure: BaseException | None = None
        self.notes: deque[_Note] = deque()
        self._max_steps = max_steps
        self._steps = 0
        self._outermost = outermost  # the functions at which a stack, as it is told, begins
        self._chance = _Chance(seed)
        self._inertia = (0, 1, 3, 9)[self._chance.below(4)]  # how much the one that runs is preferred
        self._runnable: list[SimulatedThread] = []  # without the current one
        self._sleepers: list[tuple[float, int, SimulatedThread]] = []  # a heap; holds stale entries
        self._sleeps = 0
        self._has_main_returned = False

    # ---- switch points

    def pause(self, me: SimulatedThread) -> None:
        """A switch point of one that can go on."""
        if not self.is_ending:
            self._pass_on(me, self._choose(me))
            return
        me.last_steps += 1
        if me.last_steps > 2 * _LAST_STEPS and me is not self.threads[0]:
            self._pass_on(me, self.threads[0])  # it swallows whatever is raised: here it stays
        if me.last_steps > _LAST_STEPS:
            raise Ended

    def park(self, me: SimulatedThread, what: object, deadline: float | None) -> bool:
        """Wait until woken: True; or until `deadline`: False."""
        if deadline is not None and deadline <= self.now:
            return False
        self.refuse_when_ending()
        self.log(me, f"waits for {what}")
        me.is_parked, me.has_timed_out, me.waits_for = True, False, what
        if deadline is not None and deadline != math.inf:
            self._sleeps += 1
            me.sleep = self._sleeps
            heapq.heappush(self._sleepers, (deadline, me.sleep, me))
        self._pass_on(me, self._choose(None))
        self.refuse_when_ending()
        me.waits_for = None
        return not me.has_timed_out

    def settle(self, me: SimulatedThread) -> bool:
        """Main has returned: let the others go on until all are parked. Return whether time would help them."""
        self._has_main_returned = True
        me.waits_for = "the others, having returned"
        self._pass_on(me, self._choose(None))
        return any(thread.sleep == number for _, number, thread in self._sleepers)

    def leave(self, me: SimulatedThread) -> None:
        """Pass the baton on for good."""
        self.log(me, "ends")
        me.is_done = True
        for thread in me.joining:
            self.wake(thread)
        chosen = self.current = self._choose(None)
        chosen.baton.release()

    # ---- what leads to a turn

    def join_in(self, thread: SimulatedThread) -> None:
        """Let a new thread have turns."""
        self.threads.append(thread)
        self._runnable.append(thread)

    def wake(self, thread: SimulatedThread) -> None:
        """Let a parked thread have turns again."""
        if thread.is_parked:
            thread.is_parked, thread.sleep = False, 0
            self._runnable.append(thread)

    def draw(self, limit: int) -> int:
        """Return one of 0 to `limit` - 1, as the seed says."""
        return self._chance.below(limit)

    def fail(self, failure: BaseException) -> None:
        """End the run with `failure`, if it is the first one."""
        if not self.is_ending:
            self.failure = failure
            self.is_ending = True

    def refuse_when_ending(self) -> None:
        """Whoever waits or starts something now is ended."""
        if self.is_ending:
            raise Ended

    # ---- choosing

    def _choose(self, me: SimulatedThread | None) -> SimulatedThread:
        """Decide who goes on; `me` if it could. It is main, to end the run, once anything has failed."""
        main, others = self.threads[0], self._runnable
        self._steps += 1
        self._act_on_notes()
        if self.is_interrupted:
            self.fail(KeyboardInterrupt())
        elif self._steps > self._max_steps:
            self.fail(StuckError(self.report(f"still not done after {self._max_steps} steps: a livelock?")))
        if self.is_ending:
            return main
        if me is not None:
            pick = self._chance.below(len(others) + 1 + self._inertia) if others else 0
            if pick >= len(others):
                return me
            chosen, others[pick] = others[pick], me
            return chosen
        while not others:
            if self._has_main_returned:
                return main
            if not self._jump():
                self.fail(StuckError(self.report("nobody can go on, and main has not returned")))
                return main
        return others.pop(self._chance.below(len(others)))

    def _pass_on(self, me: SimulatedThread, chosen: SimulatedThread) -> None:
        if chosen is not me:
            self.current = chosen
            chosen.baton.release()
            # Main looks up now and then: a signal that came just before the wait would not end it.
            while not me.baton.acquire(timeout=_GLANCE_S if me is self.threads[0] else -1):
                pass

    def _jump(self) -> bool:
        """Let time pass until somebody can run; False when nobody ever will."""
        sleepers = self._sleepers
        while sleepers and sleepers[0][2].sleep != sleepers[0][1]:
            heapq.heappop(sleepers)
        if not sleepers:
            return False
        self.now = sleepers[0][0]
        self.trace.append(f"the clock: {self.now:g}")
        while sleepers and sleepers[0][0] <= self.now:
            _, number, thread = heapq.heappop(sleepers)
            if thread.sleep == number:
                self.wake(thread)
                thread.has_timed_out = True
        return True

    def _act_on_notes(self) -> None:
        """Do the ``set`` calls that came at odd moments."""
        while self.notes:
            waiter = self.notes.popleft()
            self.trace.append(f"a finalizer, signal handler or foreign thread: sets {waiter}")
            waiter.fulfil()

    # ---- telling

    def log(self, me: SimulatedThread, what: str) -> None:
        """Add a line to the trace."""
        if not self.is_ending:
            self.trace.append(f"{me.name}: {what}")

    def report(self, headline: str) -> str:
        """Say of each thread what it waits for, and where."""
        frames = sys._current_frames()
        lines = [headline]
        for thread in self.threads:
            if not thread.is_done:
                state = "could go on" if thread.waits_for is None else f"waits for {thread.waits_for}"
                stack = _stack(frames.get(thread.ident or 0), self._outermost)
                lines.append(f"\n{thread.name} {state}\n{stack}")
        return "".join(lines)


class SimulatedThread:
    """A thread under control. ``join`` is a wait like any other."""

    def __init__(self, turns: Turns, name: str, fn: Callable[[], object] | None) -> None:
        self._turns = turns
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
        turns = self._turns
        with turns.section as me:
            if me is self:
                raise RuntimeError("a thread cannot join itself")
            turns.pause(me)
            if not self.is_done:
                self.joining.append(me)
                turns.park(me, self, None if timeout is None else turns.now + timeout)
                self.joining.remove(me)


class _Section:
    """Every call into the kernel: by a controlled thread, and not while it is in here already."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> SimulatedThread:
        turns = self._turns
        me = turns.current
        if me is None or me.ident != get_ident():
            name = threading.current_thread().name
            raise RuntimeError(
                f"the thread {name!r} is not under control: what a SimulatedKernel made is for code "
                "inside of its run, and in threads that it spawned there"
            )
        if turns.is_busy:
            failure = RuntimeError("a finalizer or signal handler took a lock, waited or started something")
            turns.fail(failure)
            raise failure
        turns.is_busy = True
        return me

    def __exit__(self, kind: type[BaseException] | None, failure: BaseException | None, tb: object) -> None:
        self._turns.is_busy = False
        if failure is not None and kind not in (Ended, RuntimeError):
            self._turns.fail(failure)  # a signal handler's, from the middle of a switch


class _Note(Protocol):
    """A waiter that was set when the kernel could not act on it."""

    def fulfil(self) -> None: ...


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


def _stack(frame: FrameType | None, outermost: set[CodeType]) -> str:
    """Format where a thread is, from where the run begins, without the kernel's own frames."""
    frames: list[tuple[FrameType, int]] = []
    while frame is not None and frame.f_code not in outermost:
        if Path(frame.f_code.co_filename).parent != _FOLDER:
            frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    if frames and frames[-1][0].f_code is capture.__code__:
        del frames[-1]  # run's own call of main, or a thread's of its function
    return "".join(traceback.StackSummary.extract(reversed(frames)).format())
