"""State machines of Hypothesis' around an app in the simulator: anything in any order, and what must hold all the while.

A machine lives outside of its *world*: the simulation has a thread of its own, does one deed at a time as its main thread
and then lets everybody go on until all wait. What must hold is asked for in that stillness, so nothing waits and hopes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from threadserve import api
from threadserve.call import directory
from threadserve.call.request import ANSWERED, Request
from threadserve.call.stream import DeploymentResponseGenerator
from threadserve.concurrency.outcome import Outcome, capture
from threadserve.concurrency.real import RealKernel
from threadserve.router.router import Router
from threadserve.testing import census, example
from threadserve.testing.choices import Replay
from threadserve.testing.doubles import Call
from threadserve.testing.generators import calls, schedules
from threadserve.testing.simulator import simulation
from threadserve.testing.watchdog import unwatch, watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.app.application import Application
    from threadserve.call.response import DeploymentResponse
    from threadserve.handle import DeploymentHandle
    from threadserve.testing.simulator import Grain, Simulation

__all__ = ["ServeStateMachine", "World"]

R = TypeVar("R")

_APP = "machine"
_END_S = 3600.0


class World:
    """A simulation that is done one deed at a time, from a thread outside of it.

    Args:
        simulation: What ``simulation(...)`` returned, not yet entered.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        kernel = RealKernel()
        self._asked, self._answered = kernel.waiter(), kernel.waiter()
        self._deed: Callable[[], object] | None = None  # belongs to who was told last
        self._outcome: Outcome | None = None  # the same
        self.is_alive = True
        """Whether there can be more deeds."""
        self._thread = kernel.spawn("threadserve simulated world", self._run)

    def do(self, deed: Callable[[], R]) -> R:
        """Do `deed` as the simulation's main thread, let everybody come to rest, and return what it returned. Blocks.

        Raises:
            RuntimeError: The world has come to its end.
            BaseException: What `deed` raises, or what the simulation has failed with; then it is at its end.
        """
        if not self.is_alive:
            raise RuntimeError("the simulated world has come to its end before")
        self._deed = deed
        return self._turn().unwrap()  # type: ignore[no-any-return]

    def end(self) -> None:
        """End the simulation. Blocks. Raises what it has failed with, if nobody has been told."""
        if self.is_alive:
            self._deed = None
            self._turn().unwrap()
        self._thread.join()

    def _turn(self) -> Outcome:
        self._asked.set()
        self._answered.wait()
        outcome, self._outcome = self._outcome, None
        assert outcome is not None
        return outcome

    def _run(self) -> None:
        outcome = capture(self._live)
        self.is_alive = False
        self._outcome = outcome
        self._answered.set()

    def _live(self) -> None:
        self._asked.wait()
        with self.simulation:
            turns = self.simulation._kernel.turns
            while (deed := self._deed) is not None:
                outcome = capture(deed)
                self.simulation.settle()
                del deed
                self._outcome = outcome
                unwatch(turns)  # it is not the simulation that takes its time now
                self._answered.set()
                self._asked.wait()
                watch(turns)


class ServeStateMachine(RuleBasedStateMachine):
    """Runs an app and does anything to it; subclass it, set ``app``, add rules and invariants of your own.

    Example:
        class Shop(ServeStateMachine):
            app = Counter.bind()

            @rule(count=st.integers(1, 5))
            def buy(self, count):
                self.call("add", count)

            @invariant()
            def nothing_is_lost(self):
                assert self.ask("total") >= 0

        TestShop = Shop.TestCase

    Its own rules call methods of the ingress, read and leave streams, cancel, let time pass, crash replicas, redeploy, delete
    and run again. A subclass takes one away by setting its name to None, ``crash = None``. Hypothesis draws the
    schedule too, so a failure shrinks to few deeds and few switches.

    Its invariants: every call is answered once, no replica has more calls than its limit, an assertion that failed in a
    deployment fails the machine, and in the end all calls are answered, nothing is queued and no thread of the app is left.

    Attributes:
        answers: Of all calls that were made: responses, and generators of streams.
        handle: The ingress's; for use within ``do`` only.
    """

    app: ClassVar[Application[Any]]
    """What is run."""
    calls: ClassVar[st.SearchStrategy[Call] | None] = None
    """What the rule ``make_call`` calls; drawn from the annotations of the ingress's methods if None."""
    grain: ClassVar[Grain] = "operation"
    """See ``simulate``."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[DeploymentResponse[Any] | DeploymentResponseGenerator[Any]] = []
        self.handle: DeploymentHandle[Any]
        self._world: World | None = None
        self._told: dict[Request, int] = {}

    # ---- for rules of a subclass

    def do(self, deed: Callable[[], R]) -> R:
        """Do something in the simulated world, its main thread being the caller; then all others go on until they wait.

        All that has to do with the app belongs in here. Blocks. Raises what `deed` raises.
        """
        if self._world is None:
            self.begin()
        assert self._world is not None
        return self._world.do(deed)

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> DeploymentResponse[Any]:
        """Call a method of the ingress and return the response, which joins ``answers``."""
        response: DeploymentResponse[Any] = self._make(Call(method, args, kwargs))
        return response

    def ask(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the ingress, wait for the answer in virtual time, and return it."""
        return self.do(lambda: Call(method, args, kwargs).on(self.handle).result())

    @property
    def under_way(self) -> list[Any]:
        """The answers that have not come yet."""
        return [answer for answer in self.answers if answer._request.state is not ANSWERED]

    def _make(self, call: Call) -> Any:
        return self.do(partial(self._make_here, call))

    def _make_here(self, call: Call) -> Any:
        answer = call.on(self.handle)
        request = answer._request
        self._told[request] = 0
        if not request.subscribe(_Tally(self._told, request)):
            self._told[request] += 1
        self.answers.append(answer)
        return answer

    # ---- beginning and end

    @initialize()
    def begin(self) -> None:
        """Run the app, under a schedule that Hypothesis draws."""
        if self._world is None:
            schedule = Replay(example.draw(schedules(), "schedule"))
            self._world = World(simulation(strategy=schedule, grain=self.grain))
            self._world.do(self._deploy)

    def _deploy(self) -> None:
        self.handle = api.run(type(self).app, name=_APP)

    def teardown(self) -> None:
        """Take the app down and look whether it has left anything."""
        world = self._world
        if world is None:
            return
        try:
            if world.is_alive:
                self._check_end(world)
        finally:
            world.end()

    def _check_end(self, world: World) -> None:
        world.do(lambda: api.delete(_APP))
        world.do(lambda: world.simulation.advance(_END_S))
        self.assertions_hold()
        unanswered = [repr(answer) for answer in self.under_way]
        assert not unanswered, f"the app is gone, and nobody has answered {unanswered}"
        assert set(self._told.values()) <= {1}, f"a call was answered more than once: {self._told}"
        leaks = world.do(lambda: census.leaks(_APP))
        assert not leaks, f"the app is gone, and there is left: {leaks}"
        threads = [
            thread.name
            for thread in world.simulation._kernel.turns.threads
            if not thread.is_done and thread.name.startswith(f"{_APP}/")
        ]
        assert not threads, f"the app is gone, and its threads are not: {threads}"

    # ---- deeds

    @rule(data=st.data())
    def make_call(self, data: st.DataObject) -> None:
        """Call a method of the ingress; a method that yields is called for its stream."""
        self._make(data.draw(self._drawn_calls(), label="call"))

    def _drawn_calls(self) -> st.SearchStrategy[Call]:
        if self.calls is not None:
            return self.calls
        cls = type(self)
        cls.calls = calls(cls.app)
        return cls.calls

    @precondition(lambda self: self.answers)
    @rule(index=st.integers(0, 9))
    def cancel(self, index: int) -> None:
        """Cancel a call, one that is under way if there is one, the latest first."""
        self.do(self._some(index).cancel)

    @precondition(lambda self: self._streams())
    @rule(index=st.integers(0, 9), items=st.integers(1, 3))
    def read_stream(self, index: int, items: int) -> None:
        """Read some items; what it takes too long for is not waited for."""
        stream = self._some_stream(index)
        self.do(lambda: self._in_a_thread(partial(_read, stream, items)))

    @precondition(lambda self: self._streams())
    @rule(index=st.integers(0, 9))
    def leave_stream(self, index: int) -> None:
        """Leave a stream early."""
        self.do(self._some_stream(index).close)

    @rule(seconds=st.sampled_from([0.1, 1.0, 30.0]))
    def let_time_pass(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.do(lambda: self._simulation.advance(seconds))

    @rule(index=st.integers(0, 9))
    def crash(self, index: int) -> None:
        """Let a replica die, as if its code had raised SystemExit. Another one takes its place."""
        self.do(partial(self._crash, index))

    def _crash(self, index: int) -> None:
        seats = [seat for router in self._routers() for seat in list(router._seats)]
        if seats:
            seats[index % len(seats)].replica.on_death(SystemExit("crashed by the state machine"))

    @rule()
    def redeploy(self) -> None:
        """Run the app again: a new version takes the place of the old one."""
        self.do(lambda: self._in_a_thread(self._deploy))

    @rule()
    def delete_and_run(self) -> None:
        """Delete the app, wait until it is gone, and run it again."""
        self.do(self._delete_and_run)

    def _delete_and_run(self) -> None:
        api.delete(_APP)
        self._deploy()

    # ---- what holds whenever all is still

    @invariant()
    def limits_hold(self) -> None:
        """No replica has more calls at once than it may have, and no call was answered more than once."""
        if self._world is not None and self._world.is_alive:
            self.do(self._check_limits)
            assert set(self._told.values()) <= {0, 1}, f"a call was answered more than once: {self._told}"

    def _check_limits(self) -> None:
        for router in self._routers():
            with router.lock:
                broken = [repr(seat) for seat in router._seats if not 0 <= len(seat.running) <= seat.limit]
                held = router.holds()
            assert not broken, f"more calls at once than allowed: {broken}"
            assert not (held.queued and held.has_free_slot and len(router._seats)), (
                f"{router!r} has somebody queued beside a free slot"
            )

    @invariant()
    def assertions_hold(self) -> None:
        """No assertion has failed in a deployment, be it that nobody asked for the answer."""
        for answer in self.answers:
            outcome = answer._request.outcome
            if outcome is not None and isinstance(outcome.exception, AssertionError):
                outcome.unwrap()

    # ---- what there is

    @property
    def _simulation(self) -> Simulation:
        assert self._world is not None
        return self._world.simulation

    def _in_a_thread(self, deed: Callable[[], object]) -> None:
        self._simulation._kernel.spawn("deed", lambda: capture(deed))

    def _routers(self) -> list[Router]:
        return [router for router in directory.registered(_APP) if isinstance(router, Router)]

    def _some(self, index: int) -> Any:
        answers = self.under_way or self.answers
        return answers[-1 - index % len(answers)]

    def _streams(self) -> list[Any]:
        return [answer for answer in self.answers if isinstance(answer, DeploymentResponseGenerator)]

    def _some_stream(self, index: int) -> Any:
        streams = self._streams()
        return streams[-1 - index % len(streams)]


class _Tally:
    """Counts how often a request is answered."""

    def __init__(self, told: dict[Request, int], request: Request) -> None:
        self._told = told
        self._request = request

    def tell(self) -> tuple[()]:
        self._told[self._request] += 1
        return ()


def _read(stream: Any, items: int) -> None:
    for _ in range(items):
        if next(stream, None) is None:
            return
