"""An app, the runtime and the test itself, one thread at a time in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import queue
import random
import subprocess
import sys
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import Any

import pytest

import threadserve as serve
from tests.doubles import IS_FREE_THREADED, garbage_of
from tests.testing import apps
from tests.testing.apps import Adder, Asleep, Front
from tests.testing.programs import alive
from threadserve import futures, testing

ROOT = Path(__file__).parents[2]


def chain() -> Any:
    return Front.bind(Adder.bind())


class TestSimulate:
    def test_runs_an_app_and_takes_it_down(self) -> None:
        before = alive()

        with testing.simulate(chain(), seed=7) as handle:
            assert handle.remote(1).result() == 3
            assert list(serve.status().applications) == ["default"]

        assert alive() <= before
        assert not serve.status().applications

    def test_takes_no_real_time(self) -> None:
        start = time.monotonic()

        with testing.simulate(Asleep.bind()) as handle:
            assert handle.remote(3600).result() == 3600
            assert testing.current_simulation().now == 3600

        assert time.monotonic() - start < 60

    def test_names_the_app(self) -> None:
        with testing.simulate(chain(), name="shop") as handle:
            assert serve.get_app_handle("shop").remote(1).result() == handle.remote(1).result()

    def test_stands_beside_a_real_app_of_the_same_name(self) -> None:
        with serve.running(Adder.bind(10), name="default") as real:
            with testing.simulate(Adder.bind(100)) as simulated:
                assert simulated.remote(1).result() == 101
                other: list[int] = []
                control_free(lambda: other.append(real.remote(1).result()))
                assert other == [11]
            assert real.remote(1).result() == 11
            assert serve.get_app_handle("default").remote(1).result() == 11
            assert serve.get_deployment_handle("Adder", "default").remote(2).result() == 12

    def test_lets_the_failure_of_the_block_out_with_the_line_that_repeats_it(self) -> None:
        before = alive()

        with pytest.raises(ZeroDivisionError) as caught:
            with testing.simulate(chain(), seed=3) as handle:
                handle.remote(1).result()
                divmod(1, 0)

        assert "@testing.reproduce('random:3')" in caught.value.__notes__[0]
        assert "main: calls" in caught.value.__notes__[0]
        assert alive() <= before

    def test_lets_the_users_error_out_as_itself(self) -> None:
        with pytest.raises(TypeError, match="can only concatenate"):
            with testing.simulate(Adder.bind()) as handle:
                handle.remote("one").result()

    def test_of_an_app_that_does_not_come_up_undoes_everything(self) -> None:
        sleep = time.sleep
        with pytest.raises(serve.ReplicaStartError):
            with testing.simulate(apps.Broken.bind()):
                pass

        assert time.sleep is sleep

    def test_inside_of_a_simulation_joins_it(self) -> None:
        with testing.simulation(seed=5) as simulation:
            with (
                testing.simulate(Adder.bind(1), name="a") as a,
                testing.simulate(Adder.bind(2), name="b") as b,
            ):
                assert a.remote(b.remote(10)).result() == 13
                assert testing.current_simulation() is simulation
            assert not serve.status().applications

    def test_refuses_what_it_does_not_know(self) -> None:
        with pytest.raises(ValueError, match="grain must be one of operation, line, runtime, not 'word'"):
            with testing.simulate(chain(), grain="word"):  # type: ignore[arg-type]
                pass
        with pytest.raises(
            ValueError, match="no strategy 'luck'; there are exhaustive, pct, random, round_robin"
        ):
            with testing.simulate(chain(), strategy="luck"):  # type: ignore[arg-type]
                pass

    def test_has_no_http(self) -> None:
        with testing.simulation():
            with pytest.raises(serve.NotSupportedError, match="no HTTP in a simulation"):
                serve.start()

    def test_lets_go_of_the_app(self) -> None:
        with testing.simulate(apps.Keeper.bind()) as handle:
            keeper = weakref.ref(handle.itself.remote().result())
        del handle
        with testing.simulation():
            pass
        gc.collect()

        assert keeper() is None


@pytest.mark.skipif(IS_FREE_THREADED, reason="what another thread made dies later, when that thread looks")
def test_a_simulated_app_leaves_nothing_to_the_garbage_collector() -> None:
    def call() -> None:
        with testing.simulate(chain()) as handle:
            assert handle.remote(1).result() == 3

    def call_twice() -> None:
        call()
        call()  # which lets go of the run before

    call()  # and what is made once

    assert garbage_of(call_twice) == 0


class TestTheReaper:
    def test_has_no_thread_where_it_has_nothing_to_do(self) -> None:
        with testing.simulate(chain()) as handle:
            handle.remote(1).result()

        assert "threadserve reaper" not in {step.thread for step in testing.trace()}

    def test_comes_with_the_first_note(self) -> None:
        with testing.simulate(apps.Counting.options(stream_buffer_size=1).bind()) as handle:
            next(handle.options(stream=True).remote(100))  # and nobody reads on

        assert "threadserve reaper" in {step.thread for step in testing.trace()}


class TestSimulation:
    def test_runs_several_apps(self) -> None:
        with testing.simulation(seed=2):
            a, b = serve.run(Adder.bind(1), name="a"), serve.run(Adder.bind(2), name="b")

            assert a.remote(b.remote(10)).result() == 13
            serve.delete("a")
            assert list(serve.status().applications) == ["b"]
            serve.shutdown()
            assert not serve.status().applications

    def test_gathers_and_waits(self) -> None:
        with testing.simulate(Asleep.bind()) as handle:
            assert futures.gather(*[handle.remote(n) for n in (3, 1, 2)]).result() == [3, 1, 2]
            first = next(iter(futures.as_completed([handle.remote(n) for n in (3, 1, 2)])))
            assert first.result() == 1
            done, not_done = futures.wait([handle.remote(9)], timeout=1)
            assert (len(done), len(not_done)) == (0, 1)
            with pytest.raises(TimeoutError):
                handle.remote(9).result(timeout_s=2)
            with serve.deadline(0.5), pytest.raises(serve.RequestTimeoutError):
                handle.remote(9).result()

    def test_advances_and_settles(self) -> None:
        with testing.simulate(Asleep.bind()) as handle:
            simulation = testing.current_simulation()
            response = handle.remote(5)
            simulation.settle()
            assert not response.done()
            assert simulation.now < 0.001
            simulation.advance(5)
            simulation.settle()
            assert response.done()
            assert 5 < simulation.now < 5.001

    def test_of_a_coroutine_runs_on_virtual_time(self) -> None:
        with testing.simulate(apps.Async.bind()) as handle:

            async def call() -> list[int]:
                return list(await asyncio.gather(handle.remote(100), handle.remote(200)))

            assert asyncio.run(call()) == [100, 200]
            assert 200 <= testing.current_simulation().now < 201

    def test_of_a_stream(self) -> None:
        with testing.simulate(apps.Counting.bind()) as handle:
            assert list(handle.options(stream=True).remote(100)) == list(range(100))

    def test_is_asked_for_where_there_is_none(self) -> None:
        found: list[str] = []

        def ask() -> None:
            with pytest.raises(RuntimeError, match="no simulation here") as caught:
                testing.trace()
            found.append(str(caught.value))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert found


class TestDeadlock:
    def test_of_replicas_is_told_as_in_real_life(self) -> None:
        with testing.simulate(apps.Recursive.bind()) as handle:
            with pytest.raises(serve.DeadlockError):
                handle.remote(3).result()

    @pytest.mark.parametrize("seed", range(5))
    def test_of_the_users_locks_is_told_with_who_waits_where(self, seed: int) -> None:
        with pytest.raises(testing.StuckError) as caught:
            with testing.simulate(apps.Crossed.bind(), seed=seed) as handle:
                handle.cross.remote().result()

        assert "waits for user lock" in str(caught.value)
        assert "held by default/Crossed#0 worker" in str(caught.value)
        assert "in left" in str(caught.value)
        assert "in right" in str(caught.value)

    def test_beside_a_health_check_is_found_all_the_same(self) -> None:
        with pytest.raises(testing.StuckError):
            with testing.simulate(apps.HealthyAndStuck.bind()) as handle:
                handle.remote().result()


class TestUserCode:
    """What a thread under control sees of the standard library, and what others see."""

    def test_has_virtual_clocks(self) -> None:
        real = time.time()
        with testing.simulation():
            start, wall = time.monotonic(), time.time()
            time.sleep(100)
            assert time.monotonic() - start == time.perf_counter() - start == 100
            assert time.time() - wall == pytest.approx(100)
            assert time.monotonic_ns() == 100 * 10**9
            assert time.time_ns() - int(wall * 1e9) == pytest.approx(100 * 10**9, rel=1e-6)
            with pytest.raises(ValueError, match="non-negative"):
                time.sleep(-1)
        assert time.time() - real < 60

    def test_has_names_that_were_bound_early(self) -> None:
        with testing.simulate(apps.BoundEarly.bind()) as handle:
            before = testing.current_simulation().now
            first = handle.remote().result()
            assert testing.current_simulation().now == before + 5
        with testing.simulate(apps.BoundEarly.bind()) as handle:
            assert handle.remote().result() == first

    def test_has_names_bound_early_in_modules_that_are_named(self) -> None:
        from tests.testing import programs

        programs.early_sleep = original = time.sleep  # type: ignore[attr-defined]
        try:
            with testing.simulation(rebind=[programs]) as simulation:
                programs.early_sleep(7)  # type: ignore[attr-defined]
                assert simulation.now == 7
            assert programs.early_sleep is original  # type: ignore[attr-defined]
        finally:
            del programs.early_sleep  # type: ignore[attr-defined]

    def test_has_seeded_chance(self) -> None:
        def draw() -> list[object]:
            return [
                random.random(),
                random.randint(1, 100),
                uuid.uuid4(),
                random.Random().random(),
                random.choice("abc"),
            ]

        drawn = []
        for seed in (1, 1, 2):
            with testing.simulation(seed=seed):
                drawn.append(draw())

        assert drawn[0] == drawn[1] != drawn[2]
        assert draw() != draw()

    def test_may_not_ask_the_system_for_chance(self) -> None:
        with pytest.raises(
            testing.UncontrolledError, match=r"test_simulator\.py:\d+ asks the system for chance"
        ):
            with testing.simulation():
                random.SystemRandom().random()
        with pytest.raises(testing.UncontrolledError, match=r"os\.urandom"):
            with testing.simulation():
                os.urandom(8)

    def test_has_threads_events_conditions_and_queues(self) -> None:
        with testing.simulation() as simulation:
            events: list[str] = []
            go, items = threading.Event(), queue.Queue[int](maxsize=1)
            barrier, gate = threading.Barrier(2), threading.Semaphore(0)
            simple: queue.SimpleQueue[int] = queue.SimpleQueue()

            class Worker(threading.Thread):
                def run(self) -> None:
                    go.wait()
                    for item in range(3):
                        items.put(item)
                    barrier.wait()
                    gate.acquire()
                    simple.put(42)
                    events.append(threading.current_thread().name)

            worker = Worker(name="a worker of mine")
            worker.start()
            assert worker.is_alive()
            go.set()
            assert [items.get() for _ in range(3)] == [0, 1, 2]
            barrier.wait()
            gate.release()
            assert simple.get(timeout=1) == 42
            worker.join()
            assert not worker.is_alive()
            assert events == ["a worker of mine"]
            with pytest.raises(queue.Empty):
                items.get(timeout=30)
            assert simulation.now == 30
            with pytest.raises(RuntimeError, match="started once"):
                worker.start()

            ring = threading.Timer(60, lambda: events.append("ring"))
            ring.start()
            ring.join()
            assert events[-1] == "ring"
            assert simulation.now == 90

    def test_has_reentrant_locks_and_conditions(self) -> None:
        with testing.simulation(seed=3):
            lock = threading.RLock()
            condition = threading.Condition(lock)
            ready: list[int] = []

            def produce() -> None:
                with lock, condition:
                    ready.append(1)
                    condition.notify_all()

            with condition, lock:
                threading.Thread(target=produce).start()
                assert condition.wait_for(lambda: ready, timeout=10)
            with pytest.raises(RuntimeError, match="un-acquired"):
                lock.release()
            plain = threading.Lock()
            assert plain.acquire()
            assert not plain.acquire(blocking=False)
            assert not plain.acquire(timeout=2)
            plain.release()
            with pytest.raises(RuntimeError, match="unlocked"):
                plain.release()

    def test_has_executors(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with testing.simulation() as simulation:

            def nap(seconds: int) -> int:
                time.sleep(seconds)
                return seconds

            with ThreadPoolExecutor(4) as executor:
                assert list(executor.map(nap, [3, 2, 1])) == [3, 2, 1]
            assert simulation.now == 3

    def test_keeps_its_locks_when_the_simulation_is_over(self) -> None:
        with testing.simulation():
            lock, reentrant, event = threading.Lock(), threading.RLock(), threading.Event()
            lock.acquire()

        for one in (lock, reentrant):
            with one:
                pass
        assert not event.wait(0)
        with testing.simulation():
            with lock:
                pass

    def test_has_thread_locals_of_its_own(self) -> None:
        seen = []
        for _ in range(2):
            with testing.simulate(apps.Local.bind()) as handle:
                seen.append(handle.remote().result())

        assert seen == [[1], [1]]

    def test_of_a_thread_that_raises_is_told_to_the_hook(self) -> None:
        told: list[str] = []
        hook, threading.excepthook = threading.excepthook, lambda args: told.append(str(args.exc_value))
        try:
            with testing.simulation():
                thread = threading.Thread(target=lambda: 1 // 0)
                thread.start()
                thread.join()
        finally:
            threading.excepthook = hook
        assert len(told) == 1
        assert "by zero" in told[0]

    def test_in_a_thread_of_its_own_knows_its_replica(self) -> None:
        with testing.simulate(apps.Spawning.bind()) as handle:
            assert handle.remote().result() == "Spawning"

    def test_of_others_is_not_touched(self) -> None:
        sleep = time.sleep
        outside: list[Any] = []

        def look() -> None:
            outside.append(time.time() < 1_767_225_600 or time.time() > 1_767_225_600 + 10)
            outside.append(type(threading.Lock()))
            outside.append(type(queue.SimpleQueue()))
            outside.append(random.random())
            outside.append(uuid.uuid4())
            thread = threading.Thread(target=lambda: outside.append("ran"))
            thread.start()
            thread.join()

        with testing.simulation():
            control_free(look)
        assert outside[0] is True
        assert outside[1] is type(threading.Lock())
        assert outside[2] is queue.SimpleQueue
        assert outside[5] == "ran"
        assert time.sleep is sleep

    def test_is_undone_whatever_happens(self) -> None:
        places = {
            (owner, name): vars(owner)[name]
            for owner in (time, threading, threading.Thread, queue, random, random.Random, uuid, os, apps)
            for name in vars(owner)
        }
        for failure in (ZeroDivisionError, KeyboardInterrupt, SystemExit, None):
            with contextlib.suppress(ZeroDivisionError, KeyboardInterrupt, SystemExit):
                with testing.simulate(apps.BoundEarly.bind(), grain="line"):
                    if failure is not None:
                        raise failure

        assert {(owner, name): vars(owner)[name] for owner, name in places} == places


def control_free(fn: Any) -> None:
    """Run `fn` on a thread that is not under control, while this one stands still."""
    from threadserve.testing.crew import start_real_thread

    done: list[None] = []
    thread = start_real_thread("foreign", lambda: (fn(), done.append(None)))
    while thread.is_alive():
        pass
    assert done


class TestTheSameSeed:
    @pytest.mark.parametrize("grain", ["operation", "line"])
    def test_gives_the_same_trace(self, grain: Any) -> None:
        for seed in range(5):
            texts = []
            for _ in range(2):
                with testing.simulate(chain(), seed=seed, grain=grain) as handle:
                    for response in [handle.remote(n) for n in range(3)]:
                        response.result()
                texts.append(testing.trace().text())
            assert texts[0] == texts[1]

    def test_is_one_of_many(self) -> None:
        texts = set()
        for seed in range(20):
            with testing.simulate(chain(), seed=seed) as handle:
                for response in [handle.remote(n) for n in range(3)]:
                    response.result()
            texts.add(testing.trace().text())
        assert len(texts) == 20

    @pytest.mark.slow
    @pytest.mark.parametrize("grain", ["operation", "line", "runtime"])
    def test_gives_the_same_trace_in_another_process_under_another_hash_seed(self, grain: str) -> None:
        printed = {traces_of(sys.executable, grain, hash_seed) for hash_seed in ("0", "1", "4711")}

        assert len(printed) == 1
        assert len(printed.pop().splitlines()) > 500

    @pytest.mark.slow
    def test_gives_the_same_trace_on_another_python(self) -> None:
        others = [python for python in os.environ.get("THREADSERVE_PYTHONS", "").split(os.pathsep) if python]
        if not others:
            pytest.skip("THREADSERVE_PYTHONS names no other Python")
        printed = {traces_of(python, "operation", "0") for python in (sys.executable, *others)}

        assert len(printed) == 1


def traces_of(python: str, grain: str, hash_seed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    command = [python, apps.__file__, grain]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
