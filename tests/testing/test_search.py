"""explore finds the schedule that breaks a test, says how to repeat it, and finds nothing where nothing is wrong."""

from __future__ import annotations

import gc
import itertools
import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.testing.programs import alive
from threadserve import testing
from threadserve.testing.reproduction import read, written

if TYPE_CHECKING:
    from collections.abc import Callable


class _Counter:
    """Counts, in three ways; two of them lose updates."""

    def __init__(self) -> None:
        self.count = 0
        self.lock = threading.Lock()

    def in_one_line(self) -> None:
        self.count += 1

    def in_two_lines(self) -> None:
        count = self.count
        self.count = count + 1

    def locked(self) -> None:
        with self.lock:
            self.count += 1

    def total(self) -> int:
        return self.count


class _Cache:
    """Looks whether a value is there, and makes it if it is not."""

    def __init__(self, is_guarded: bool) -> None:
        self.values: dict[str, int] = {}
        self.made = 0
        self.lock = threading.Lock()
        self.is_guarded = is_guarded

    def get(self, key: str) -> int:
        if not self.is_guarded:
            return self.look_up(key)
        with self.lock:
            return self.look_up(key)

    def look_up(self, key: str) -> int:
        if key not in self.values:
            time.sleep(1)  # the model is loaded
            self.made += 1
            self.values[key] = self.made
        return self.values[key]

    def count(self) -> int:
        return self.made


class _Accounts:
    """Transfers between two accounts, each with a lock."""

    def __init__(self, in_order: bool) -> None:
        self.locks = {"a": threading.Lock(), "b": threading.Lock()}
        self.money = {"a": 10, "b": 10}
        self.in_order = in_order

    def transfer(self, source: str, target: str) -> None:
        first, second = sorted((source, target)) if self.in_order else (source, target)
        with self.locks[first], self.locks[second]:
            self.money[source] -= 1
            self.money[target] += 1


Counter = serve.deployment(name="Counter", max_ongoing_requests=2)(_Counter)
Cache = serve.deployment(name="Cache")(_Cache)
Accounts = serve.deployment(name="Accounts")(_Accounts)


def counting(method: str) -> Callable[[], None]:
    def count() -> None:
        with testing.simulate(Counter.bind()) as handle:
            for response in [getattr(handle, method).remote() for _ in range(2)]:
                response.result()
            assert handle.total.remote().result() == 2, "an update was lost"

    return count


def caching(is_guarded: bool) -> Callable[[], None]:
    def cache() -> None:
        with testing.simulate(Cache.bind(is_guarded)) as handle:
            for response in [handle.get.remote("model") for _ in range(2)]:
                response.result()
            assert handle.count.remote().result() == 1

    return cache


def transferring(in_order: bool) -> Callable[[], None]:
    def transfer() -> None:
        with testing.simulate(Accounts.bind(in_order)) as handle:
            for response in [handle.transfer.remote("a", "b"), handle.transfer.remote("b", "a")]:
                response.result()

    return transfer


BROKEN = [
    pytest.param(counting("in_one_line"), "line", AssertionError, id="lost-update-in-one-line"),
    pytest.param(counting("in_two_lines"), "line", AssertionError, id="lost-update-in-two-lines"),
    pytest.param(caching(False), "operation", AssertionError, id="check-then-act"),
    pytest.param(transferring(False), "operation", testing.StuckError, id="lock-order"),
]
FIXED = [
    pytest.param(counting("locked"), "line", id="lost-update"),
    pytest.param(caching(True), "operation", id="check-then-act"),
    pytest.param(transferring(True), "operation", id="lock-order"),
]
STRATEGIES: list[Any] = ["random", "pct"]


class TestAPlantedBug:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize(("fn", "grain", "kind"), BROKEN)
    def test_is_found_and_replayed(
        self, fn: Callable[[], None], grain: Any, kind: type[Exception], strategy: Any
    ) -> None:
        before = alive()

        with pytest.raises(testing.ScheduleError) as caught:
            testing.explore(fn, grain=grain, strategy=strategy)

        found = caught.value
        assert isinstance(found.__cause__, kind)
        assert found.runs <= 1000
        assert f"@testing.reproduce({found.reproduction!r})" in str(found)
        assert "sequenceDiagram" in str(found)
        for _ in range(2):
            with pytest.raises(kind):
                testing.reproduce(found.reproduction)(fn)()
        assert testing.trace() == found.trace
        assert alive() <= before

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize(("fn", "grain"), FIXED)
    def test_that_is_fixed_is_not_found(self, fn: Callable[[], None], grain: Any, strategy: Any) -> None:
        assert testing.explore(fn, runs=200, grain=grain, strategy=strategy) == (200, False)

    def test_is_not_found_where_nobody_switches(self) -> None:
        testing.explore(
            counting("in_two_lines"), runs=100
        )  # between the operations of the runtime there is no race

    def test_is_told_simply(self) -> None:
        with pytest.raises(testing.ScheduleError) as caught:
            testing.explore(counting("in_two_lines"), grain="line")

        choices = caught.value.schedule
        for index in [index for index, choice in enumerate(choices) if choice]:
            simpler = [0 if at == index else choice for at, choice in enumerate(choices)]
            with testing.simulation(grain="line", strategy=testing.Replay(simpler), seed=0):
                counting("in_two_lines")()


class TestExplore:
    def test_tries_every_schedule_of_a_small_program(self) -> None:
        seen = set()

        def program() -> None:
            order: list[str] = []
            threads = [threading.Thread(target=order.append, args=(name,), name=name) for name in "abc"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            seen.add("".join(order))

        done = testing.explore(program, strategy=testing.Exhaustive(preemptions=1), runs=50_000)

        assert done.is_complete
        assert seen == {"".join(order) for order in itertools.permutations("abc")}

    def test_does_not_say_that_it_has_seen_all_when_it_has_not(self) -> None:
        assert testing.explore(caching(True), strategy="exhaustive", runs=5) == (5, False)

    def test_counts_its_runs(self) -> None:
        runs: list[None] = []

        assert testing.explore(lambda: runs.append(None), runs=7) == (7, False)
        assert len(runs) == 7

    def test_simulates_what_is_run_without_simulate(self) -> None:
        def program() -> None:
            with serve.running(Cache.bind(False)) as handle:
                for response in [handle.get.remote("model") for _ in range(2)]:
                    response.result()
                assert handle.count.remote().result() == 1

        with pytest.raises(testing.ScheduleError):
            testing.explore(program)

    def test_names_what_differs_when_a_run_does_not_fail_again(self) -> None:
        runs: list[None] = []

        def fails_the_third_time() -> None:
            runs.append(None)
            for _ in runs:
                time.sleep(1)
            assert len(runs) != 3

        with pytest.raises(
            testing.ScheduleError, match=r"(?s)not again with the same choices.*first step that differs"
        ):
            testing.explore(fails_the_third_time)

    def test_is_not_called_inside_of_a_simulation(self) -> None:
        with testing.simulation(), pytest.raises(RuntimeError, match="inside of a simulation"):
            testing.explore(lambda: None)

    def test_keeps_the_garbage_collector_for_between_its_runs(self) -> None:
        came: list[str] = []
        is_running = False

        def come(phase: str, info: dict[str, int]) -> None:
            came.append("in a run" if is_running else "between")

        def leave_garbage() -> None:
            nonlocal is_running
            is_running = True
            for _ in range(2 * gc.get_threshold()[0]):
                circle: list[object] = []
                circle.append(circle)
            is_running = False

        gc.callbacks.append(come)
        try:
            testing.explore(leave_garbage, runs=5)
        finally:
            gc.callbacks.remove(come)

        assert gc.isenabled()
        assert came
        assert "in a run" not in came

    def test_lets_ctrl_c_through(self) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            testing.explore(interrupted)


class TestReproduce:
    def test_gives_the_test_its_arguments_and_its_result(self) -> None:
        @testing.reproduce("random:3")
        def add(a: int, *, b: int) -> tuple[int, int]:
            return a + b, testing.current_simulation().seed

        assert add(1, b=2) == (3, 3)
        assert add.__name__ == "add"

    @pytest.mark.parametrize("line", ["", "7", "random", "random:x", "replay:1:a"])
    def test_refuses_what_is_no_such_line(self, line: str) -> None:
        with pytest.raises(ValueError, match="takes the line that a failure has printed"):
            testing.reproduce(line)

    def test_refuses_lines_of_another_python(self) -> None:
        with pytest.raises(ValueError, match=r"printed by Python 2.7, and lines differ"):
            testing.reproduce("replay:1:0.1@line/2.7")

    @pytest.mark.parametrize("choices", [[], [1], [0, 0, 0, 1], [1, 1, 1, 2, 0, 3, 3]])
    def test_reads_what_was_written(self, choices: list[int]) -> None:
        line = written(4, "line", choices)

        assert re.fullmatch(rf"replay:4:[\dx.]*@line/{sys.version_info[0]}.{sys.version_info[1]}", line)
        assert read(line) == (4, "line", choices)

    def test_takes_a_failure_of_simulate(self) -> None:
        with pytest.raises(testing.ScheduleError) as caught:
            testing.explore(transferring(False))
        seed = next(
            seed
            for seed in range(1000)
            if fails(lambda: testing.reproduce(f"random:{seed}")(transferring(False))())  # noqa: B023
        )
        with pytest.raises(testing.StuckError) as stuck:
            with testing.simulation(seed=seed):
                transferring(False)()
        assert f"'random:{seed}'" in stuck.value.__notes__[0]
        assert caught.value.runs == seed + 1


def fails(fn: Callable[[], object]) -> bool:
    try:
        fn()
    except AssertionError:
        return True
    return False
