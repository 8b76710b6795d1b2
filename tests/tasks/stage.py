"""What the tests of tasks share: a workforce on a simulated kernel, and the books, which must be empty in the end."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from threadserve.runtime.controller import Controller
from threadserve.tasks.pool import ReservingRouter
from threadserve.tasks.workforce import Workforce, current
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SEEDS = int(os.environ.get("THREADSERVE_SEEDS", "1000"))


class Stage:
    """One simulated runtime with its tasks and actors, and what happened there."""

    def __init__(self, kernel: SimulatedKernel, controller: Controller) -> None:
        self.kernel = kernel
        self.controller = controller
        self.log: list[Any] = []
        self.now_running = 0
        self.most_running = 0

    @property
    def workforce(self) -> Workforce:
        return current()

    def rest(self, seconds: float = 1.0) -> None:
        """Wait for so many seconds of virtual time."""
        self.kernel.waiter().wait(seconds)

    def work(self, seconds: float = 1.0) -> None:
        """Be busy for so many seconds, and be counted meanwhile."""
        self.now_running += 1
        self.most_running = max(self.most_running, self.now_running)
        self.rest(seconds)
        self.now_running -= 1

    def spawn(self, name: str, deed: Callable[[], object]) -> Any:
        return self.kernel.spawn(name, deed)


@contextmanager
def staged(
    kernel: SimulatedKernel, *, slots: int = 2, resources: Mapping[str, object] | None = None
) -> Iterator[Stage]:
    """Have what is called in the block run under `kernel`; afterwards nothing may be left of it."""
    controller = Controller(kernel, resources or {"CPU": 2, "GPU": 2, "memory": 100})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("threadserve.tasks.workforce.controller", lambda: controller)
        patch.setattr("threadserve.tasks.workforce.default_slots", lambda: slots)
        stage = Stage(kernel, controller)
        yield stage
        stage.rest(100)
        check_books(stage)
        controller.shutdown()
        stage.rest(100)
        ledger = controller.ledger.statistics()
        assert ledger.free == ledger.total


def check_books(stage: Stage) -> None:
    """Assert that nothing waits, is queued, runs, lends or holds anything, but the actors that are up."""
    for pool in stage.workforce.pools():
        now = pool.router.statistics()
        assert (pool.router.name, now.waiting, now.queued, now.ongoing) == (pool.router.name, 0, 0, 0)
    for tasks in (stage.workforce.tasks, stage.workforce.reserving_tasks):
        assert not tasks.router._lent
        seat = tasks.seats[0]
        assert len(seat.idle) == seat.workers <= seat.limit
    router = stage.workforce.reserving_tasks.router
    assert isinstance(router, ReservingRouter)
    assert not router._held
    assert not router._lines
    assert router.pool.seats[0].limit == 0


def on_stage(test: Callable[[Stage], object], *, seeds: int | None = None, **options: Any) -> None:
    """Run `test(stage)` under the kernel of each seed."""

    def run(kernel: SimulatedKernel) -> None:
        with staged(kernel, **options) as stage:
            test(stage)

    explore(run, min(SEEDS, 8) if seeds is None else seeds)
