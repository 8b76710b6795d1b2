"""The probe of one replica: when it asks, what is a strike, and that the third in a row is told once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from threadserve.runtime.health import STRIKES, HealthProbe
from threadserve.testing.scheduler import SimulatedKernel, explore

PERIOD_S, TIMEOUT_S = 10.0, 3.0

Check = Callable[[], object]


class Patient:
    """A replica whose checks go as they are told to; the last one goes on for ever."""

    name = "app/D#0"

    def __init__(self, kernel: SimulatedKernel, *checks: Check) -> None:
        self._kernel = kernel
        self._checks = checks
        self.asked_at: list[float] = []

    def check_health(self) -> None:
        number = len(self.asked_at)
        self.asked_at.append(round(self._kernel.now(), 3))
        self._checks[min(number, len(self._checks) - 1)]()


class Ward:
    """A probe, its patient, and what was reported."""

    def __init__(self, kernel: SimulatedKernel, *checks: Check) -> None:
        self.kernel = kernel
        self.patient = Patient(kernel, *checks)
        self.reports: list[tuple[float, BaseException]] = []
        replica: Any = self.patient
        self.probe = HealthProbe(
            kernel, replica, period_s=PERIOD_S, timeout_s=TIMEOUT_S, on_unhealthy=self._report
        )

    def _report(self, failure: BaseException) -> None:
        self.reports.append((round(self.kernel.now(), 3), failure))

    def watch_for(self, seconds: float) -> None:
        self.kernel.errands.start()
        self.probe.start()
        self.sleep(seconds)

    def sleep(self, seconds: float) -> None:
        self.kernel.waiter().wait(seconds)


def play(story: Callable[[SimulatedKernel], object], seeds: int = 30) -> None:
    explore(story, seeds)


def well() -> None:
    pass


def ill() -> None:
    raise OSError("ill")


class TestWhenItAsks:
    def test_is_once_per_period_from_the_end_of_the_last_check(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            ward = Ward(kernel, well, lambda: ward.sleep(2), well)

            ward.watch_for(45)

            assert ward.patient.asked_at == [10, 20, 32, 42]
            assert ward.reports == []

        play(story)

    def test_is_never_again_after_the_third_strike(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            ward = Ward(kernel, ill)

            ward.watch_for(200)

            assert ward.patient.asked_at == [10, 20, 30]

        play(story)

    def test_is_never_again_once_it_was_stopped(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            ward = Ward(kernel, ill)

            ward.watch_for(25)
            ward.probe.stop()
            ward.probe.stop()
            ward.sleep(100)

            assert ward.patient.asked_at == [10, 20]
            assert ward.reports == []

        play(story)

    def test_is_not_later_than_the_stop_when_both_come_at_once(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            ward = Ward(kernel, well)

            ward.watch_for(10)
            ward.probe.stop()
            ward.sleep(100)

            assert ward.patient.asked_at in ([], [10])

        play(story, seeds=200)

    def test_is_later_when_there_is_no_thread_to_be_had(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            ward = Ward(kernel, well)
            spawn = kernel.spawn
            refused: list[str] = []

            def refuse_twice(name: str, fn: Callable[[], object]) -> Any:
                if name.endswith("probe") and len(refused) < 2:
                    refused.append(name)
                    raise RuntimeError("can't start new thread")
                return spawn(name, fn)

            kernel.spawn = refuse_twice  # type: ignore[method-assign]
            ward.watch_for(45)

            assert ward.patient.asked_at == [30, 40]

        play(story)


class TestWhatIsAStrike:
    @pytest.mark.parametrize("failure", [OSError("ill"), SystemExit(3), AssertionError()])
    def test_a_check_that_raises(self, failure: BaseException) -> None:
        def story(kernel: SimulatedKernel) -> None:
            def fail() -> None:
                raise failure

            ward = Ward(kernel, fail)

            ward.watch_for(31)

            assert ward.reports == [(30, failure)]

        play(story)

    def test_a_check_that_does_not_return_in_time(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            ward = Ward(kernel, lambda: kernel.waiter().wait())

            ward.watch_for(100)

            [(moment, failure)] = ward.reports
            assert moment == 3 * (PERIOD_S + TIMEOUT_S)
            assert isinstance(failure, TimeoutError)
            assert str(failure) == "check_health of app/D#0 did not return within health_check_timeout_s=3"
            assert ward.patient.asked_at == [10, 23, 36]

        play(story)

    @pytest.mark.slow
    def test_no_check_that_returns_just_in_time_and_one_strike_at_most(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            ward = Ward(kernel, lambda: ward.sleep(TIMEOUT_S), well)

            ward.watch_for(100)

            assert ward.reports == []

        play(story, seeds=200)

    def test_a_late_return_is_neither_a_strike_nor_a_good_one(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            ward = Ward(kernel, lambda: ward.sleep(15), ill, ill)

            ward.watch_for(100)

            assert [moment for moment, _ in ward.reports] == [33]

        play(story)

    def test_a_late_failure_is_no_second_strike(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            def fail_late() -> None:
                ward.sleep(5)
                raise OSError("late")

            ward = Ward(kernel, fail_late, fail_late, well)

            ward.watch_for(100)

            assert ward.reports == []

        play(story)


class TestThreeInARow:
    def test_are_told_once_with_the_last_failure(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            failures = [OSError(f"failure {number}") for number in range(STRIKES)]

            def failing(failure: BaseException) -> Check:
                def fail() -> None:
                    raise failure

                return fail

            ward = Ward(kernel, *[failing(failure) for failure in failures])

            ward.watch_for(1000)

            assert ward.reports == [(30, failures[-1])]

        play(story)

    def test_are_not_told_when_a_good_one_came_between(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            ward = Ward(kernel, *[ill, ill, well] * 10)

            ward.watch_for(305)

            assert len(ward.patient.asked_at) == 30
            assert ward.reports == []

        play(story)

    def test_are_not_told_to_who_has_stopped_the_probe_meanwhile(self) -> None:
        def story(kernel: SimulatedKernel) -> None:
            def fail_slowly() -> None:
                ward.sleep(2)
                ill()

            ward = Ward(kernel, fail_slowly)

            ward.watch_for(35)
            ward.probe.stop()
            ward.sleep(100)

            assert ward.patient.asked_at == [10, 22, 34]
            assert ward.reports == []

        play(story)
