"""Whose turn it is: the baton, the choices and the clock of a simulated run.

What it is for and what it promises stands in ``scheduler.py``. The thread that holds the baton is the only
one that runs. It comes to a switch point inside of the *section*: it ``pause``s there when it could go on
itself, and ``park``s when it cannot. Nothing here is guarded by a lock: all of it belongs to who holds the
baton, and the section is where a finalizer or a signal handler that interrupts the holder is found out.
"""

from __future__ import annotations

import heapq
import math
import os.path
import sys
import threading
import traceback
from _thread import allocate_lock, get_ident
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

from threadserve.call.request import CURRENT
from threadserve.concurrency.outcome import capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from threadserve.testing.choices import Schedule
    from threadserve.testing.crew import Worker

__all__ = [
    "LAST_STEPS",
    "Ended",
    "Entry",
    "SimulatedThread",
    "StuckError",
    "Turns",
    "UncontrolledError",
    "operation",
    "told",
]

_GLANCE_S = 0.1  # real time after which a Ctrl-C that was overlooked is noticed
_IDLE_JUMPS = (
    64  # how often the clock jumps for nothing but the runtime's own look-outs before a run is stuck
)
_FOLDER = os.path.join(os.path.dirname(__file__), "")  # noqa: PTH118, PTH120 - compared with many file names

LAST_STEPS = 10_000
"""What a thread may do while it ends before its every step raises."""

Entry = tuple[str, str, object, float, int]
"""What is noted of a step: thread, verb, object of the verb, time, identity of the request that the thread works for.

The object is a string, or something that leads back to no lock, thread or kernel: entries outlive those."""

current = CURRENT.get


class StuckError(AssertionError):
    """Nobody can go on, or nobody comes to an end. Says where each thread is."""


class UncontrolledError(AssertionError):
    """Something happened that the simulator does not control: a real wait, a foreign thread, real chance. Names it."""


class Ended(BaseException):
    """Ends a thread that waits. Not to be handled by anybody else."""


class Turns:
    """The threads of a run, and which of them goes on.

    It is the *section* itself: ``with turns as me`` is how to call any method but ``fail``; by a thread under control, and
    not while it is in there already.

    Attributes:
        now: The virtual time.
        entries: What was done, by whom, in order.
        choices: What was chosen, where there was a choice; as ``Replay`` takes it.
        steps: How many switch points there were; the watchdog looks at it.
        threads: All there are; the first one is main's.
        current: Who holds the baton.
        is_busy: The holder is in the section: who calls now has interrupted it.
        is_interrupted: Ctrl-C was pressed; the run ends at the next switch point.
        is_ending: The run has failed, or is over.
        failure: With what it failed.
        lost: Who had the baton and does not come to a switch point; the run goes on to its end without it.
        notes: What is to be set at the next switch point.
        runnable: Who could go on, without the current one: their numbers, in the order in which they became able to.
        limit: Beyond so many steps a switch point has to look at more; -1 when it must at once.
        has_only_lookouts: Says that nothing but alarms of the runtime's own look-outs can let time pass.
    """

    def __init__(self, schedule: Schedule, max_steps: int, outermost: set[CodeType]) -> None:
        self.now = 0.0
        self.entries: list[Entry] = []
        self.choices: list[int] = []
        self.steps = 0
        self.threads: list[SimulatedThread] = []
        self.current: SimulatedThread | None = None
        self.is_busy = False
        self.is_ending = False
        self.failure: BaseException | None = None
        self.lost: SimulatedThread | None = None
        self.notes: deque[_Note] = deque()
        self.has_only_lookouts: Callable[[], bool] = _never
        self._is_interrupted = False
        self.limit = self._max_steps = max_steps
        self.outermost = outermost  # the functions at which a stack, as it is told, begins
        self._schedule = schedule
        self._choose_next = schedule.choose
        self.runnable: list[int] = []
        self._sleepers: list[tuple[float, int, SimulatedThread]] = []  # a heap; holds stale entries
        self._sleeps = 0
        self._idle_jumps = 0
        self._has_main_returned = False

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._is_interrupted

    @is_interrupted.setter
    def is_interrupted(self, value: bool) -> None:
        self._is_interrupted = value
        if value:
            self.limit = -1

    # ---- switch points

    def enter(self) -> SimulatedThread:
        """Enter the section and return the caller's thread; who calls this sets ``is_busy`` back."""
        me = self.current
        if me is None or me.ident != get_ident():
            return self._refuse_foreigner()
        if self.is_busy:
            failure = RuntimeError("a finalizer or signal handler took a lock, waited or started something")
            self.fail(failure)
            raise failure
        self.is_busy = True
        return me

    def __enter__(self) -> SimulatedThread:
        return self.enter()

    def __exit__(self, kind: type[BaseException] | None, failure: BaseException | None, tb: object) -> None:
        self.is_busy = False
        if failure is not None:
            self.blame(failure)

    def pause(self, me: SimulatedThread) -> None:
        """A switch point of one that can go on."""
        self.steps += 1
        if self.runnable or self.steps > self.limit:
            self.give_way(me)

    def stop(self) -> None:
        """A switch point outside of the section, for the holder of the baton; nothing for a thread that is none of the run's."""
        me = self.current
        if me is not None and not self.is_busy and me.ident == get_ident():
            with self:
                self.pause(me)

    def give_way(self, me: SimulatedThread) -> None:
        """Let the schedule say whether `me` or another one goes on: a switch point at which there is something to decide."""
        if self.steps <= self.limit:
            runnable = self.runnable
            pick = self._choose_next(me.number, runnable)  # as in _choose_with, without the calls
            self.choices.append(pick)
            if pick:
                self.current = chosen = self.threads[runnable.pop(pick - 1)]
                runnable.append(me.number)
                if me.number:
                    chosen.baton.release()
                    me.baton.acquire()
                else:
                    self._pass_on(me, chosen)
            return
        if not self.is_ending:
            self._pass_on(me, self._choose(me))
            return
        me.last_steps += 1
        if me.last_steps > 2 * LAST_STEPS and me is not self.threads[0]:
            self._pass_on(me, self.threads[0])  # it swallows whatever is raised: here it stays
        if me.last_steps > LAST_STEPS:
            raise Ended

    def park(self, me: SimulatedThread, what: object, deadline: float | None) -> bool:
        """Wait until woken: True; or until `deadline`: False."""
        if deadline is not None and deadline <= self.now:
            return False
        self.refuse_when_ending()
        self.log(me, "waits for", getattr(what, "label", what))
        me.is_parked, me.has_timed_out, me.waits_for = True, False, what
        if deadline is not None and deadline != math.inf:
            self._sleeps += 1
            me.sleep = self._sleeps
            heapq.heappush(self._sleepers, (deadline, me.sleep, me))
        self.steps += 1
        self._pass_on(me, self._choose(None))
        self.refuse_when_ending()
        me.waits_for = None
        return not me.has_timed_out

    def settle(self, me: SimulatedThread) -> bool:
        """Main has returned: let the others go on until all are parked. Return whether time would help them."""
        self._has_main_returned = True
        me.waits_for = "the others, having returned"
        self.steps += 1
        self._pass_on(me, self._choose(None))
        return any(thread.sleep == number for _, number, thread in self._sleepers)

    def leave(self, me: SimulatedThread) -> Callable[[], object]:
        """Return what passes the baton on for good."""
        self.log(me, "ends", "")
        me.is_done = True
        for thread in me.joining:
            self.wake(thread)
        self.steps += 1
        chosen = self.current = self._choose(None)
        return cast("Callable[[], object]", chosen.baton.release)

    # ---- what leads to a turn

    def join_in(self, thread: SimulatedThread) -> None:
        """Let a new thread have turns."""
        thread.number = len(self.threads)
        self.threads.append(thread)
        self.runnable.append(thread.number)

    def wake(self, thread: SimulatedThread) -> None:
        """Let a parked thread have turns again."""
        if thread.is_parked:
            thread.is_parked, thread.sleep = False, 0
            self.runnable.append(thread.number)

    def draw(self, limit: int) -> int:
        """Return one of 0 to `limit` - 1, as the schedule says."""
        if limit < 2:
            return 0
        drawn = self._schedule.draw(limit)
        self.choices.append(drawn)
        return drawn

    def fail(self, failure: BaseException) -> None:
        """End the run with `failure`, if it is the first one."""
        if not self.is_ending:
            self.failure = failure
            self.end()

    def blame(self, failure: BaseException) -> None:
        """End the run if `failure` is a signal handler's, from the middle of a switch."""
        if type(failure) not in (Ended, RuntimeError, UncontrolledError):
            self.fail(failure)

    def end(self) -> None:
        """Begin to end the run: from now on nobody waits, and nothing is started."""
        self.is_ending = True
        self.limit = -1

    def refuse_when_ending(self) -> None:
        """Whoever waits or starts something now is ended."""
        if self.is_ending:
            raise Ended

    # ---- choosing

    def _choose(self, me: SimulatedThread | None) -> SimulatedThread:
        """Decide who goes on; `me` if it could. It is main, to end the run, once anything has failed."""
        if self.steps > self.limit:
            self._look_around()
        if self.is_ending:
            return self.threads[0]
        if me is not None:
            return me if not self.runnable else self._choose_with(me)
        while not self.runnable:
            if self._has_main_returned:
                return self.threads[0]
            if not self._jump():
                self.fail(StuckError(self.report("nobody can go on, and main has not returned")))
                return self.threads[0]
        if len(self.runnable) == 1:
            return self._take(0)
        pick = self._choose_next(None, self.runnable)
        self.choices.append(pick)
        return self._take(pick)

    def _choose_with(self, me: SimulatedThread) -> SimulatedThread:
        """Decide whether `me` or another one goes on."""
        pick = self._choose_next(me.number, self.runnable)
        self.choices.append(pick)
        if not pick:
            return me
        chosen = self._take(pick - 1)
        self.runnable.append(me.number)
        return chosen

    def _look_around(self) -> None:
        """Act on what came at odd moments, and see whether the run has to end."""
        if self.notes:
            self._act_on_notes()
        if self._is_interrupted:
            self.fail(KeyboardInterrupt())
        elif self.steps > self._max_steps and not self.is_ending:
            self.fail(StuckError(self.report(f"still not done after {self._max_steps} steps: a livelock?")))

    def _take(self, index: int) -> SimulatedThread:
        return self.threads[self.runnable.pop(index)]

    def _pass_on(self, me: SimulatedThread, chosen: SimulatedThread) -> None:
        if chosen is me:
            return
        self.current = chosen
        chosen.baton.release()
        if me.number:
            me.baton.acquire()
            return
        # Main looks up now and then: a signal that came just before the wait would not end it, and
        # whoever has the baton may never give it back.
        while not me.baton.acquire(timeout=_GLANCE_S):
            if self.lost is not None:
                return

    def _jump(self) -> bool:
        """Let time pass until somebody can run; False when nobody ever will."""
        sleepers = self._sleepers
        while sleepers and sleepers[0][2].sleep != sleepers[0][1]:
            heapq.heappop(sleepers)
        if not sleepers:
            return False
        self._idle_jumps = self._idle_jumps + 1 if self.has_only_lookouts() else 0
        if self._idle_jumps > _IDLE_JUMPS:
            return False
        self.now = sleepers[0][0]
        self.entries.append(("the clock", "", f"{self.now:g}", self.now, 0))
        while sleepers and sleepers[0][0] <= self.now:
            _, number, thread = heapq.heappop(sleepers)
            if thread.sleep == number:
                self.wake(thread)
                thread.has_timed_out = True
        return True

    def sleeping(self) -> list[SimulatedThread]:
        """Return who waits with a timeout."""
        return [thread for _, number, thread in self._sleepers if thread.sleep == number]

    def note(self, waiter: _Note) -> None:
        """Have `waiter` set at the next switch point. At any moment, from any thread."""
        self.notes.append(waiter)
        self.limit = -1

    def _act_on_notes(self) -> None:
        """Do the ``set`` calls that came at odd moments."""
        while self.notes:
            waiter = self.notes.popleft()
            self.entries.append(
                ("a finalizer, signal handler or foreign thread", "sets", waiter.label, self.now, 0)
            )
            waiter.fulfil()
        if not self._is_interrupted and not self.is_ending:
            self.limit = self._max_steps
            if self.notes:  # one came just now
                self.limit = -1

    # ---- telling

    def log(self, me: SimulatedThread, verb: str, what: object) -> None:
        """Note a step."""
        if not self.is_ending:
            self.entries.append((me.name, verb, what, self.now, id(current())))

    def report(self, headline: str) -> str:
        """Say of each thread what it waits for, and where."""
        frames = sys._current_frames()
        lines = [headline]
        for thread in self.threads:
            if not thread.is_done:
                state = "could go on" if thread.waits_for is None else f"waits for {thread.waits_for}"
                stack = told_stack(frames.get(thread.ident or 0), self.outermost)
                lines.append(f"\n{thread.name} {state}\n{stack}")
        return "".join(lines)

    def let_go(self) -> None:
        """Keep no more than what was done: the run is over, and all of its threads have ended."""
        self.threads.clear()
        self.runnable.clear()
        self._sleepers.clear()
        self.has_only_lookouts = _never

    def begin_here(self) -> None:
        """Let the stacks, as they are told, begin with the function that calls into this room."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code is not capture.__code__ and not frame.f_code.co_filename.startswith(_FOLDER):
                self.outermost.add(frame.f_code)
                return
            frame = frame.f_back

    def stack_of(self, thread: SimulatedThread) -> str:
        """Return where `thread` is, as a traceback shows it."""
        return told_stack(sys._current_frames().get(thread.ident or 0), self.outermost)

    def _refuse_foreigner(self) -> NoReturn:
        if any(thread.ident == get_ident() and not thread.is_done for thread in self.threads[1:]):
            raise Ended  # it was given up: the run went on, or is over
        text = (
            f"the thread {threading.current_thread().name!r} is not under control: what a simulation made is for code "
            "inside of its run, and in threads that were started there"
        )
        if self.current is None:
            raise RuntimeError(text)
        failure = UncontrolledError(text)
        self.fail(failure)  # its holder goes on to the next switch point
        raise failure


class SimulatedThread:
    """A thread under control. ``join`` is a wait like any other."""

    def __init__(self, turns: Turns, name: str, fn: Callable[[], object] | None) -> None:
        self._turns = turns
        self.name = name
        self.label = f"the end of {name}"
        """What is waited for, by who waits for it."""
        self.number = 0
        self.ident: int | None = None
        self.fn = fn
        self.worker: Worker | None = None
        self.baton: Any = None  # held, except for the moment in which this thread is chosen
        self.is_parked = False
        self.is_done = False
        self.waits_for: object = None
        self.sleep = 0  # the number of its entry among the sleepers
        self.has_timed_out = False
        self.joining: list[SimulatedThread] = []
        self.last_steps = 0

    def __str__(self) -> str:
        return self.label

    @property
    def real(self) -> threading.Thread | None:
        """The thread of the operating system that it runs on."""
        return None if self.worker is None else self.worker.real

    def run_on(self, worker: Worker) -> None:
        """Run on `worker`, once chosen."""
        self.worker, self.baton, self.ident = worker, worker.baton, worker.real.ident

    def run_here(self) -> None:
        """Be the thread that calls, which has the baton."""
        self.baton = allocate_lock()
        self.baton.acquire()
        self.ident = get_ident()

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return not self.is_done

    def join(self, timeout: float | None = None) -> None:
        """Block until the thread has ended, or until `timeout` virtual seconds have passed."""
        if self.is_done:
            return
        turns = self._turns
        with turns as me:
            if me is self:
                raise RuntimeError("a thread cannot join itself")
            turns.pause(me)
            if not self.is_done:
                self.joining.append(me)
                turns.park(me, self, None if timeout is None else turns.now + timeout)
                self.joining.remove(me)


class _Note(Protocol):
    """A waiter that was set when the kernel could not act on it."""

    label: str

    def fulfil(self) -> None: ...


def _never() -> bool:
    return False


def told_stack(frame: FrameType | None, outermost: set[CodeType]) -> str:
    """Format where a thread is, from where the run begins, without the kernel's own frames."""
    frames: list[tuple[FrameType, int]] = []
    while frame is not None:
        code = frame.f_code
        if code is not capture.__code__ and not code.co_filename.startswith(_FOLDER):
            frames.append((frame, frame.f_lineno))
        if code in outermost:
            break
        frame = frame.f_back
    return "".join(traceback.StackSummary.extract(reversed(frames)).format())


def told(entry: Entry) -> str:
    """Return an entry of the kernel's as a line."""
    thread, verb, what, _, _ = entry
    return f"{thread}: {operation(verb, what)}"


def operation(verb: str, what: object) -> str:
    """Say what was done to what."""
    return f"{verb} {getattr(what, 'label', what)}".strip()
