"""What may happen in the middle of a simulated run: finalizers, signal handlers, Ctrl-C."""

from __future__ import annotations

import gc
import signal
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from tests.doubles import IS_FREE_THREADED
from tests.testing.programs import alive, assert_back_to, run
from threadserve.concurrency.interrupts import Interrupts
from threadserve.testing import scheduler
from threadserve.testing.scheduler import SimulatedKernel, explore
from threadserve.testing.turns import Entry, told

if TYPE_CHECKING:
    from collections.abc import Callable


class Interrupting(list[Entry]):
    """The entries of a trace that lets something happen in the middle of the kernel, when `what` is traced."""

    def __init__(self, what: str, act: Callable[[], object]) -> None:
        super().__init__()
        self._what = what
        self._act = act

    def append(self, entry: Entry) -> None:
        super().append(entry)
        if self._what in told(entry):
            self._act()


class Finalized:
    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def __del__(self) -> None:
        self._act()


def in_a_finalizer(act: Callable[[], object]) -> None:
    hostage = Finalized(act)
    del hostage


def in_a_signal_handler(act: Callable[[], object]) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: act())
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


class TestInterruption:
    @pytest.mark.parametrize("interrupt", [in_a_finalizer, in_a_signal_handler])
    @pytest.mark.parametrize(
        "moment", ["main: takes", "main: releases", "main: waits", "main: starts", "main: sets"]
    )
    def test_in_the_middle_of_the_kernel_may_set_a_waiter(
        self, interrupt: Callable[[Callable[[], object]], None], moment: str
    ) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock, news = kernel.lock(), kernel.waiter()
            kernel._turns.entries = Interrupting(moment, lambda: interrupt(news.set))
            with lock:
                pass
            kernel.spawn("worker", lambda: None)
            kernel.waiter().set()
            kernel.waiter().wait(1)

            assert news.wait(10)

        explore(main, 20)

    @pytest.mark.parametrize("interrupt", [in_a_finalizer, in_a_signal_handler])
    def test_in_the_middle_of_the_kernel_may_post_an_errand(
        self, interrupt: Callable[[Callable[[], object]], None]
    ) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock, done = kernel.lock(), kernel.waiter()
            kernel.errands.start()
            kernel._turns.entries = Interrupting(
                "main: takes", lambda: interrupt(lambda: kernel.errands.post(done.set))
            )
            with lock:
                pass

            assert done.wait(1)

        explore(main, 20)

    @pytest.mark.skipif(
        IS_FREE_THREADED, reason="what another thread made dies later, when that thread looks"
    )
    @pytest.mark.parametrize("place", ["closure", "context"])
    def test_by_what_dies_with_a_thread_comes_while_the_thread_has_its_turn(self, place: str) -> None:
        variable: ContextVar[Finalized] = ContextVar("variable")

        def main(kernel: SimulatedKernel) -> None:
            last_words, go = kernel.waiter(), kernel.waiter()

            def closure() -> Callable[[], object]:
                hostage = Finalized(last_words.set)
                return lambda: go.wait() and hostage

            def context() -> object:
                return variable.set(Finalized(last_words.set))

            kernel.spawn("worker", closure() if place == "closure" else context)
            go.set()
            last_words.wait()
            assert "worker: sets waiter 2" in kernel.trace

        explore(main, 20)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_that_takes_a_lock_fails_the_run(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock, other = kernel.lock(), kernel.lock()
            kernel._turns.entries = Interrupting("main: takes lock 3", lambda: in_a_finalizer(other.acquire))
            lock.acquire()
            kernel.waiter().wait(1)

        with pytest.raises(RuntimeError, match="a finalizer or signal handler took a lock"):
            run(main)

    @pytest.mark.skipif(IS_FREE_THREADED, reason="its collector has no young generation to be kept small")
    def test_by_the_garbage_collector_at_any_moment_may_set_a_waiter(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            class Cycle:
                def __init__(self) -> None:
                    self.itself = self
                    self.waiter = kernel.waiter()

                def __del__(self) -> None:
                    self.waiter.set()
                    collected.append(self)

            lock = kernel.lock()
            for _ in range(300):
                Cycle()
                with lock:
                    kernel.waiter().wait(0)

        collected: list[object] = []
        kernel = SimulatedKernel(3)
        threshold = gc.get_threshold()
        gc.set_threshold(3, 1, 1)

        def collecting() -> None:
            gc.enable()
            main(kernel)

        try:
            kernel.run(collecting)
        finally:
            gc.set_threshold(*threshold)

        assert len(collected) > 100


class TestCtrlC:
    def test_ends_the_run_in_order_while_main_waits(self) -> None:
        before = alive()
        handler = signal.getsignal(signal.SIGINT)
        unwound: list[str] = []
        main_thread = threading.get_ident()

        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()

            def press_and_go_on() -> None:
                try:
                    signal.pthread_kill(main_thread, signal.SIGINT)
                    while True:
                        with lock:
                            pass
                finally:
                    unwound.append("worker")

            try:
                kernel.spawn("worker", press_and_go_on).join()
            finally:
                unwound.append("main")

        with pytest.raises(KeyboardInterrupt):
            run(main, max_steps=10**9)

        assert unwound == ["main", "worker"]
        assert_back_to(before)
        assert signal.getsignal(signal.SIGINT) is handler

    def test_ends_the_run_as_well_while_a_real_app_keeps_handlers_out_of_our_code(self) -> None:
        interrupts = Interrupts()
        interrupts.install()
        try:
            self.test_ends_the_run_in_order_while_main_waits()
        finally:
            interrupts.uninstall()

    def test_strikes_at_once_in_the_code_of_main(self) -> None:
        def main(kernel: SimulatedKernel) -> str:
            kernel.spawn("worker", kernel.waiter().wait)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            kernel.waiter().wait(1)
            return "went on"

        kernel = SimulatedKernel()

        assert kernel.run(lambda: main(kernel)) == "went on"

    def test_in_the_middle_of_the_kernel_ends_the_run_at_the_next_switch_point(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            lock = kernel.lock()
            kernel._turns.entries = Interrupting("main: takes", lambda: signal.raise_signal(signal.SIGINT))
            with lock:
                taken.append(lock)
            kernel.waiter().wait(1)
            pytest.fail("it went on")

        taken: list[object] = []
        with pytest.raises(KeyboardInterrupt):
            run(main)

        assert len(taken) == 1

    def test_pressed_twice_frees_a_main_that_waits_for_a_blocked_thread(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scheduler, "_PATIENCE_S", 0.01)
        real = threading.Lock()
        real.acquire()
        main_thread = threading.get_ident()
        kernel = SimulatedKernel()

        def press_twice() -> None:
            signal.pthread_kill(main_thread, signal.SIGINT)
            while not kernel._turns.is_interrupted:
                pass
            signal.pthread_kill(main_thread, signal.SIGINT)
            with real:
                pass

        with pytest.raises(KeyboardInterrupt) as caught:
            kernel.run(lambda: kernel.spawn("blocked", press_twice).join())

        assert "blocked" in caught.value.__notes__[0]
        real.release()
        blocked = kernel._turns.threads[1].real
        assert blocked is not None
        blocked.join()
