from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.testing.programs import run
from threadserve.testing.scheduler import SimulatedKernel, explore
from threadserve.testing.turns import UncontrolledError

if TYPE_CHECKING:
    from collections.abc import Callable


class TestTime:
    def test_passes_at_once_and_exactly(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            assert kernel.now() == 0.0

            assert not kernel.waiter().wait(86_400)
            assert kernel.now() == 86_400

            lock = kernel.lock()
            lock.acquire()
            thread = kernel.spawn("late", lambda: lock.acquire(timeout=60))
            thread.join(15)
            assert thread.is_alive()
            assert kernel.now() == 86_415
            thread.join()
            assert kernel.now() == 86_460

        run(main)

    def test_stands_still_while_anybody_can_run(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            waited = False

            def wait() -> None:
                nonlocal waited
                waited = not kernel.waiter().wait(0.001)

            thread = kernel.spawn("waits", wait)
            for _ in range(1000):
                kernel.waiter().wait(0)
            assert not waited
            thread.join()
            assert waited

        explore(main, 5)

    def test_does_not_stop_at_a_timeout_that_came_to_nothing(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            waiter = kernel.waiter()
            thread = kernel.spawn("waits", lambda: waiter.wait(10))
            waiter.set()
            thread.join()
            kernel.waiter().wait(20)

            assert [line for line in kernel.trace if "clock" in line] == ["the clock: 20"]

        explore(main, 20)


class TestControl:
    @pytest.mark.parametrize(
        "use",
        [
            lambda kernel, lock, waiter: lock.acquire(),
            lambda kernel, lock, waiter: lock.release(),
            lambda kernel, lock, waiter: waiter.wait(0),
            lambda kernel, lock, waiter: kernel.spawn("thread", print),
            lambda kernel, lock, waiter: kernel.call_at(1, print),
            lambda kernel, lock, waiter: kernel.new_event_loop().run_forever(),
        ],
        ids=["acquire", "release", "wait", "spawn", "call_at", "event loop"],
    )
    def test_is_asked_of_every_thread_that_uses_the_kernel(self, use: Callable[..., object]) -> None:
        errors: list[str] = []

        def main(kernel: SimulatedKernel) -> None:
            lock, waiter = kernel.lock(), kernel.waiter()

            def intrude() -> None:
                with pytest.raises(UncontrolledError) as caught:
                    use(kernel, lock, waiter)
                errors.append(str(caught.value))

            thread = threading.Thread(target=intrude, name="stranger")
            thread.start()
            thread.join()

        with pytest.raises(UncontrolledError, match="'stranger' is not under control"):
            run(main)

        assert "'stranger' is not under control" in errors[0]

    def test_is_asked_before_and_after_the_run(self) -> None:
        kernel = SimulatedKernel()
        lock = kernel.lock()

        with pytest.raises(RuntimeError, match="not under control"):
            lock.acquire()
        kernel.run(lambda: None)
        with pytest.raises(RuntimeError, match="not under control"):
            lock.acquire()

    def test_is_not_asked_of_who_sets_a_waiter_or_posts_an_errand(self) -> None:
        done: list[str] = []

        def main(kernel: SimulatedKernel) -> None:
            waiter = kernel.waiter()
            kernel.errands.start()

            def notify() -> None:
                waiter.set()
                kernel.errands.post(lambda: done.append("errand"))

            thread = threading.Thread(target=notify)
            thread.start()
            thread.join()
            waiter.wait()

        explore(main, 10)

        assert done == ["errand"] * 10
