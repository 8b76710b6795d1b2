"""Waiting threads and workers race for the same calls: in every order that the simulator finds, and on real threads.

``THREADSERVE_SEEDS`` says how many seeds, as in ``test_races.py``.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from _thread import get_ident
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.concurrency.test_interrupts import run_program
from tests.doubles import (
    Answers,
    Deployed,
    LateWorkers,
    assert_nothing_left,
    check_invariants,
    deployed,
    unattended,
)
from threadserve.concurrency.real import RealKernel
from threadserve.errors import Cancelled, RequestCancelledError
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.call.response import DeploymentResponse

SEEDS = int(os.environ.get("THREADSERVE_SEEDS", "1000"))

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def nobody_helps() -> None:
    """Here they do, whatever THREADSERVE_INLINE says."""


class Floor:
    """A deployment that counts who is on it: how many at once, how often each, and on which threads."""

    def __init__(self, kernel: SimulatedKernel | RealKernel) -> None:
        self.runs: Counter[Any] = Counter()
        self.threads: dict[Any, int] = {}
        self.order: list[Any] = []
        self.most = 0
        self._inside = 0
        self._lock = kernel.lock()
        floor = self

        class Counted:
            def do(self, name: Any, deed: Callable[[], Any] = lambda: None, *_: object) -> Any:
                floor.enter(name)
                try:
                    return deed()
                finally:
                    floor.leave()

        self.target = Counted

    def enter(self, name: Any) -> None:
        with self._lock:
            self.runs[name] += 1
            self.threads[name] = get_ident()
            self.order.append(name)
            self._inside += 1
            self.most = max(self.most, self._inside)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1


# ---- simulated


@pytest.mark.parametrize("slots", [1, 2])
def test_a_worker_against_a_waiting_thread(slots: int) -> None:
    """Each call runs once, never more at once than there are slots, and all slots come back."""
    takers: Counter[str] = Counter()

    def race(kernel: SimulatedKernel) -> None:
        floor, answers = Floor(kernel), Answers()

        def wait_for(name: str) -> None:
            handle.do.remote(name, partial(kernel.waiter().wait, 0.001)).result()
            takers["helper" if floor.threads[name] == get_ident() else "worker"] += 1

        with deployed(kernel, floor.target, max_ongoing_requests=slots) as deployment:
            handle = deployment.handle
            warm = answers.watch(handle.do.remote("warm"))
            actors = [kernel.spawn(name, partial(wait_for, name)) for name in ("a", "b", "c")]
            fired = [answers.watch(handle.do.remote(f"fired {number}")) for number in range(2)]
            for actor in actors:
                actor.join()
            kernel.waiter().wait(1)  # nobody waits for what was fired, and nothing more is sent
            assert warm.done()
            assert all(response.done() for response in fired)
            check_invariants(deployment.router)
            assert_nothing_left(deployment.router)
        answers.assert_each_once()
        assert set(floor.runs.values()) == {1}
        assert floor.most <= slots

    explore(race, SEEDS)
    assert set(takers) == {"helper", "worker"}


def test_two_waiting_threads_against_each_other() -> None:
    takers: Counter[str] = Counter()

    def race(kernel: SimulatedKernel) -> None:
        floor = Floor(kernel)
        idents: dict[str, int] = {}

        def wait_for(response: DeploymentResponse[Any], me: str) -> None:
            idents[me] = get_ident()
            assert response.result() == "value"

        with deployed(kernel, floor.target) as deployment:
            response = deployment.handle.do.remote("raced", lambda: "value")
            actors = [kernel.spawn(me, partial(wait_for, response, me)) for me in ("a", "b")]
            for actor in actors:
                actor.join()
        assert floor.runs == {"raced": 1}
        takers[next((me for me, ident in idents.items() if ident == floor.threads["raced"]), "worker")] += 1

    explore(race, SEEDS)
    assert set(takers) == {"a", "b", "worker"}


def test_a_waiting_thread_against_whoever_cancels() -> None:
    endings: set[tuple[str, int]] = set()

    def race(kernel: SimulatedKernel) -> None:
        floor, answers = Floor(kernel), Answers()
        with deployed(kernel, floor.target, max_ongoing_requests=1) as deployment:
            response = answers.watch(deployment.handle.do.remote("raced", lambda: "value"))
            canceller = kernel.spawn("canceller", response.cancel)
            error = response.exception()
            canceller.join()
            assert isinstance(error, RequestCancelledError) or response.result() == "value"
            endings.add((type(error).__name__, floor.runs["raced"]))
            assert deployment.handle.do.remote("next", lambda: "next").result() == "next"
        answers.assert_each_once()

    explore(race, SEEDS)
    assert {("NoneType", 1), ("RequestCancelledError", 0)} <= endings
    assert endings <= {("NoneType", 1), ("RequestCancelledError", 0), ("RequestCancelledError", 1)}


def test_a_waiting_thread_against_a_replacement_of_the_replica() -> None:
    takers: set[bool] = set()

    def race(kernel: SimulatedKernel) -> None:
        floor = Floor(kernel)
        with deployed(kernel, floor.target, max_ongoing_requests=2) as deployment:
            replacing = kernel.spawn("replacing", lambda: deployment.replace_with(floor.target))
            for number in range(4):
                name = f"call {number}"
                body = partial(kernel.waiter().wait, 0.001)
                assert deployment.handle.do.remote(name, body).result() is False
                takers.add(floor.threads[name] == get_ident())
            replacing.join()
        assert floor.runs == {f"call {number}": 1 for number in range(4)}

    explore(race, SEEDS // 2)
    assert takers == {True, False}


def test_a_waiting_thread_against_a_deletion() -> None:
    """Answered or refused: never lost, never both."""
    endings: set[str] = set()

    def race(kernel: SimulatedKernel) -> None:
        floor, answers = Floor(kernel), Answers()
        with deployed(kernel, floor.target, max_ongoing_requests=1) as deployment:
            handle = deployment.handle
            older = answers.watch(handle.do.remote("older"))
            deleting = kernel.spawn("deleting", deployment.take_down)
            for number in range(3):
                response = answers.watch(handle.do.remote(f"call {number}", lambda: "value"))
                error = response.exception()
                endings.add(type(error).__name__)
                assert floor.runs[f"call {number}"] == (error is None)
            deleting.join()
            assert older.done()
        answers.assert_each_once()

    explore(race, SEEDS // 2)
    assert endings == {"NoneType", "DeploymentUnavailableError"}


def test_anything_that_waiting_threads_do() -> None:
    """A few threads at random: fire, wait, nest, chain, fan in, cancel. Then silence, in which all must come to an end."""
    takers: Counter[str] = Counter()

    def race(kernel: SimulatedKernel) -> None:
        chance = kernel.random
        floors = {name: Floor(kernel) for name in ("x", "y")}
        answers = Answers()
        mains: set[int] = set()

        def act(me: str, places: dict[str, Deployed], depth: int = 0) -> None:
            if not depth:
                mains.add(get_ident())
            sent: list[Any] = []
            for number in range(3):
                where = chance.choice(["x", "y"]) if not depth else "y"
                inner = partial(act, f"{me}.{number}", places, depth + 1)
                deed = inner if not depth and where == "x" and chance.random() < 0.4 else int
                inputs = chance.sample(sent, chance.randrange(len(sent) + 1))
                do = places[where].handle.do
                sent.append(answers.watch(do.remote(f"{me}.{number}", deed, *inputs)))
                verb = chance.choice(["go on", "wait", "wait", "cancel", "ask"])
                if verb == "wait":
                    end(chance.choice(sent))
                elif verb == "cancel":
                    chance.choice(sent).cancel()
                elif verb == "ask":
                    chance.choice(sent).done()

        def end(response: Any) -> None:
            error = response.exception()
            assert error is None or isinstance(error, RequestCancelledError)

        def actor(name: str, places: dict[str, Deployed]) -> None:
            try:
                act(name, places)
            except Cancelled:  # pragma: no cover
                raise AssertionError("a plain thread was cancelled") from None

        slots = chance.choice([1, 2])
        with (
            deployed(kernel, floors["x"].target, name="x", max_ongoing_requests=3) as x,
            deployed(kernel, floors["y"].target, name="y", max_ongoing_requests=slots) as y,
        ):
            places = {"x": x, "y": y}
            actors = [kernel.spawn(name, partial(actor, name, places)) for name in ("a", "b", "c")]
            for each in actors:
                each.join()
            kernel.waiter().wait(10)
            for place in (x, y):
                check_invariants(place.router)
                assert_nothing_left(place.router)
        answers.assert_each_once()
        for floor in floors.values():
            assert set(floor.runs.values()) <= {1}
            for ident in floor.threads.values():
                takers["helper" if ident in mains else "worker"] += 1
        assert floors["x"].most <= 3
        assert floors["y"].most <= slots

    explore(race, SEEDS)
    assert min(takers["helper"], takers["worker"]) > SEEDS


# ---- real threads


@pytest.mark.parametrize("options", [{}, {"num_replicas": 2}], ids=["one replica", "two replicas"])
def test_limits_hold_while_helpers_and_workers_race(options: dict[str, int]) -> None:
    """Eight threads fire and wait, three slots: never a fourth at once, and each call once."""
    floor = Floor(RealKernel())
    slots = 3 * options.get("num_replicas", 1)
    helped: Counter[bool] = Counter()

    def fire_and_wait(me: int) -> None:
        fired = []
        for number in range(150):
            name = (me, "waited", number)
            handle.do.remote(name, partial(time.sleep, 0)).result()
            helped[floor.threads[name] == get_ident()] += 1
            if number % 5 == 0:
                fired.append(handle.do.remote((me, "fired", number)))
        for response in fired:
            response.result()

    kernel = LateWorkers()
    with unattended(kernel, floor.target, max_ongoing_requests=3, **options) as deployment:
        handle = deployment.handle
        kernel.call_at(kernel.now() + 0.02, kernel.let_workers_come)  # whoever waits first has nobody to race
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(fire_and_wait, range(8)))

    assert floor.runs.total() == len(floor.runs) == 8 * (150 + 30)
    assert 1 < floor.most <= slots
    assert helped[True]


class Cell:
    """Keeps a value for each key."""

    def __init__(self) -> None:
        self.values: dict[Any, int] = {}

    def set(self, key: Any, value: int) -> None:
        self.values[key] = value

    def get(self, key: Any, _: object = None) -> int:
        return self.values[key]


class Writer:
    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def write_and_read(self, key: Any, count: int) -> int:
        return write_and_read(self.cell, key, count)


def write_and_read(cell: Any, key: Any, count: int) -> int:
    """Send writes that nobody waits for, each followed by a read; how many reads were stale comes back."""
    stale = 0
    for value in range(count):
        cell.set.remote(key, value)
        stale += cell.get.remote(key, value).result() != value
    return stale


@pytest.mark.parametrize("inline", [True, False], ids=["helped", "pinned"])
@pytest.mark.parametrize("place", ["one thread", "four threads", "a replica"])
def test_ten_thousand_reads_see_the_writes_before_them(inline: bool, place: str) -> None:
    with (
        deployed(RealKernel(), Cell, name="cell", max_ongoing_requests=1, inline=inline) as cell,
        deployed(RealKernel(), Writer, cell.handle, name="writer") as writer,
    ):
        if place == "one thread":
            stale = write_and_read(cell.handle, "key", 10_000)
        elif place == "four threads":
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                stale = sum(pool.map(lambda key: write_and_read(cell.handle, key, 2_500), range(4)))
        else:
            stale = writer.handle.write_and_read.remote("key", 10_000).result()

    assert stale == 0


@pytest.mark.parametrize("inline", [True, False], ids=["helped", "pinned"])
@pytest.mark.parametrize("place", ["one thread", "a replica"])
def test_ten_thousand_reads_are_begun_after_the_writes_before_them_where_there_are_four_slots(
    inline: bool, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls that have a slot each are free to overtake one another, so here it is their beginnings that are in order."""
    begun: list[int] = []
    with (
        deployed(RealKernel(), Cell, name="cell", max_ongoing_requests=4, inline=inline) as cell,
        deployed(RealKernel(), Writer, cell.handle, name="writer") as writer,
    ):
        claim = cell.router._claim

        def noted(seat: Any) -> Any:
            request = claim(seat)  # the lock is held
            begun.append(2 * (request.args or (0, 0))[1] + (request.method == "get"))
            return request

        monkeypatch.setattr(cell.router, "_claim", noted)
        if place == "one thread":
            cell.handle.set.remote("key", 0).result()
            begun.clear()
            stale = write_and_read(cell.handle, "key", 10_000)
        else:
            stale = writer.handle.write_and_read.remote("key", 10_000).result()

    assert begun == list(range(20_000))
    assert stale < 100


# ---- Ctrl-C


STORM = """
import random, signal, sys, threading, traceback
from tests.doubles import assert_nothing_left, check_invariants, deployed
from threadserve.concurrency.interrupts import Interrupts
from threadserve.concurrency.real import RealKernel
from threadserve.errors import RequestCancelledError

sys.setswitchinterval(1e-5)  # so that it strikes anywhere, and not just where the main thread blocks
seed, wanted = int(sys.argv[1]), int(sys.argv[2])
chance, times = random.Random(seed), random.Random(seed + 1)
kernel, interrupts = RealKernel(), Interrupts()
may_strike = threading.Event()
main = threading.get_ident()
struck = struck_in_a_body = helped = 0
requests, wrong = [], []


def send(call, *args):
    response = call.remote(*args)
    requests.append(response._request)
    return response


class Work:
    def spin(self, turns, *rest):
        global helped
        helped += threading.get_ident() == main
        for _ in range(turns):
            pass
        return turns

    def nest(self, depth):
        return depth and send(work.handle.nest, depth - 1).result() + 1

    def later(self, turns):
        return self.alater(turns)

    async def alater(self, turns):
        return turns


def step():
    kind = chance.randrange(5)
    if kind == 0:
        turns = chance.choice([1, 100, 2_000])
        assert send(work.handle.spin, turns).result() == turns
    elif kind == 1:
        assert send(work.handle.nest, chance.randrange(1, 6)).result() > 0
    elif kind == 2:
        response = send(work.handle.spin, 10)
        for number in range(5):
            response = send(work.handle.spin, number, response)
        assert response.result() == 4
    elif kind == 3:
        assert send(work.handle.later, 3).result() == 3
    else:
        for number in range(3):
            send(single.handle.spin, number)
        assert send(single.handle.spin, 5).result() == 5


def storm():
    pause = threading.Event()
    for _ in range(wanted):
        may_strike.wait()
        may_strike.clear()
        pause.wait(times.random() ** 3 * 0.001)
        signal.pthread_kill(main, signal.SIGINT)


with (
    deployed(kernel, Work, name="work", max_ongoing_requests=20) as work,
    deployed(kernel, Work, name="single", max_ongoing_requests=1) as single,
):
    for _ in range(200):
        step()
    interrupts.install()
    thread = threading.Thread(target=storm)
    thread.start()
    while struck < wanted:
        try:
            may_strike.set()
            while True:
                step()
        except KeyboardInterrupt as interrupt:
            struck += 1
            names = {frame.name for frame in traceback.extract_tb(interrupt.__traceback__)}
            struck_in_a_body += bool(names & {"spin", "nest", "later"})
        if len(requests) > 1000:
            wrong += [r for r in requests if r.outcome and isinstance(r.outcome.exception, KeyboardInterrupt)]
            requests[:] = [request for request in requests if request.outcome is None]
    thread.join()
    interrupts.uninstall()

    nap = threading.Event()
    for deployment in (work, single):
        for _ in range(30_000):
            now = deployment.router.statistics()
            if not (now.waiting or now.queued or now.ongoing or deployment.router._is_waking):
                break
            nap.wait(0.001)
        check_invariants(deployment.router)
        assert_nothing_left(deployment.router)
        for number in range(100):
            assert deployment.handle.spin.remote(number).result() == number
            assert deployment.handle.spin.remote(number).result(timeout_s=30) == number
    assert all(request.outcome is not None for request in requests)
    wrong += [r for r in requests if isinstance(r.outcome.exception, KeyboardInterrupt)]
    assert not wrong
print(struck, struck_in_a_body, helped)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_2000_interrupts_while_the_main_thread_helps_lose_no_slot_no_request_and_no_lock(seed: int) -> None:
    """KeyboardInterrupt is the waiting thread's: it is nobody's answer."""
    struck, struck_in_a_body, helped = map(int, run_program(STORM, seed, 1000).split())

    assert struck == 1000
    assert struck_in_a_body > 50
    assert helped > 1000


def test_ctrl_c_in_a_body_that_the_main_thread_runs() -> None:
    program = """
import signal, threading, time
from tests.doubles import LateWorkers, check_invariants, unattended
from threadserve.concurrency.interrupts import Interrupts
from threadserve.errors import RequestCancelledError

interrupts = Interrupts()
interrupts.install()
main, seen, after = threading.get_ident(), [], []

class Slow:
    def outer(self):
        assert threading.get_ident() == main
        inner = slow.handle.inner.remote()
        try:
            return inner.result()
        finally:
            after.append(type(inner.exception()).__name__)

    def inner(self):
        assert threading.get_ident() == main
        threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGINT)).start()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            pass
        after.append("not interrupted")

with unattended(LateWorkers(), Slow) as slow:
    response = slow.handle.outer.remote()
    other = threading.Thread(target=lambda: seen.append(type(response.exception(timeout_s=20)).__name__))
    other.start()
    try:
        response.result()
    except KeyboardInterrupt:
        seen.append("interrupted")
    other.join()
    assert after == ["RequestCancelledError"], after
    assert sorted(seen) == ["RequestCancelledError", "interrupted"], seen
    assert slow.router.statistics().ongoing == 0
    check_invariants(slow.router)
    interrupts.uninstall()
print("ok")
"""

    assert run_program(program) == "ok\n"
