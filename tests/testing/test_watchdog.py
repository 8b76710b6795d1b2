"""What the simulator does not control is found out and named."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

import threadserve as serve
from tests.testing.programs import alive, assert_back_to
from threadserve import testing
from threadserve.testing import watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Blocked:
    def __init__(self, real: list[threading.Lock]) -> None:
        self.real = real[0]

    def __call__(self) -> None:
        self.real.acquire()


class _Busy:
    def __call__(self) -> int:
        count = 0
        while count < 10**12 and not over:
            count += 1
        return count


Blocked = serve.deployment(name="Blocked", inline=False)(_Blocked)
Busy = serve.deployment(name="Busy", inline=False)(_Busy)
over: list[bool] = []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watchdog, "PATIENCE_S", 0.05)
    over.clear()
    yield
    over.append(True)


@pytest.mark.usefixtures("impatient")
class TestAThreadThat:
    def test_waits_for_something_real_fails_the_run_with_its_stack(self) -> None:
        before, real = alive(), threading.Lock()
        real.acquire()

        with pytest.raises(testing.UncontrolledError) as caught:
            with testing.simulate(Blocked.bind([real])) as handle:
                handle.remote().result()

        assert "the thread 'default/Blocked#0 worker 1' has not come to a switch point" in str(caught.value)
        assert "self.real.acquire()" in str(caught.value)
        real.release()
        assert_back_to(before)

    def test_is_main_fails_the_run_too(self) -> None:
        real = threading.Lock()
        real.acquire()

        with pytest.raises(testing.UncontrolledError, match=r"(?s)the thread 'main'.*real\.acquire\(\)"):
            with testing.simulation():
                real.acquire()

    def test_computes_for_very_long_fails_the_run(self) -> None:
        before = alive()

        with pytest.raises(testing.UncontrolledError, match=r"(?s)Busy#0 worker 1.*in __call__"):
            with testing.simulate(Busy.bind()) as handle:
                handle.remote().result()

        over.append(True)
        assert_back_to(before)


def test_a_thread_that_is_foreign_fails_the_run_when_it_touches_the_runtime() -> None:
    from tests.testing.apps import Adder
    from tests.testing.test_simulator import control_free

    errors: list[str] = []

    def touch() -> None:
        with pytest.raises(testing.UncontrolledError) as caught:
            handle.remote(1)
        errors.append(str(caught.value))

    with pytest.raises(testing.UncontrolledError, match="the thread 'foreign' is not under control"):
        with testing.simulate(Adder.bind()) as handle:
            control_free(touch)
            handle.remote(1).result()
    assert errors


def test_a_run_that_takes_its_time_is_left_alone() -> None:
    with testing.simulation():
        for _ in range(20):
            until = time.process_time() + 0.01
            while time.process_time() < until:
                pass
            time.sleep(0)
