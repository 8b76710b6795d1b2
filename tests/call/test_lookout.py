"""When waits are looked at."""

from __future__ import annotations

from threadserve.call.lookout import PATIENCE_S, Lookout
from threadserve.call.request import Wait
from threadserve.testing.scheduler import SimulatedKernel


class Watcher:
    """Notes when it looked, and at how many waits."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self.kernel = kernel
        kernel.errands.start()
        self.waits: list[Wait] = []
        self.looks: list[float] = []
        self.asked = 0
        self.lookout = Lookout(kernel, self.those_there_are, self.look)

    def those_there_are(self) -> list[Wait]:
        self.asked += 1
        return self.waits

    def look(self) -> None:
        self.looks.append(round(self.kernel.now() / PATIENCE_S, 6))

    def begin(self) -> Wait:
        wait = Wait((), self.kernel.now())
        self.waits.append(wait)
        self.lookout.notice()
        return wait

    def sleep(self, patiences: float) -> None:
        self.kernel.waiter().wait(patiences * PATIENCE_S)


def test_a_wait_is_looked_at_soon_and_each_time_its_age_has_doubled() -> None:
    kernel = SimulatedKernel()

    def run() -> None:
        watcher = Watcher(kernel)
        watcher.begin()
        watcher.sleep(20)

        assert watcher.looks == [1, 2, 4, 8, 16]
        watcher.waits.clear()

    kernel.run(run)


def test_waits_that_begin_together_are_looked_at_once() -> None:
    kernel = SimulatedKernel()

    def run() -> None:
        watcher = Watcher(kernel)
        for _ in range(100):
            watcher.begin()
        watcher.sleep(1.5)

        assert watcher.looks == [1]
        watcher.waits.clear()

    kernel.run(run)


def test_looks_are_as_far_apart_as_a_wait_is_long_however_many_begin() -> None:
    kernel = SimulatedKernel()

    def run() -> None:
        watcher = Watcher(kernel)
        watcher.begin()
        watcher.sleep(0.5)
        watcher.begin()
        watcher.sleep(1.75)

        assert watcher.looks == [1, 2]
        watcher.waits.clear()

    kernel.run(run)


def test_nobody_looks_when_nobody_waits() -> None:
    kernel = SimulatedKernel()

    def run() -> None:
        watcher = Watcher(kernel)
        watcher.waits.remove(watcher.begin())
        watcher.sleep(100)

        assert watcher.looks == []
        assert watcher.asked == 1

    kernel.run(run)
