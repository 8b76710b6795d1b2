"""Faults strike where they were told to: the same on real threads and in virtual time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve.testing import faults
from threadserve.testing.simulator import current_simulation, simulate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from threadserve.handle import DeploymentHandle
    from threadserve.testing.simulator import Simulation


class Model:
    def __init__(self, start: int = 0) -> None:
        self.start = start

    def __call__(self, number: int = 0) -> int:
        return self.plus(number)

    def plus(self, number: int) -> int:
        return self.start + number

    async def later(self, number: int) -> int:
        return self.start + number

    def items(self, number: int) -> Iterator[int]:
        yield from range(number)

    async def aitems(self, number: int) -> AsyncIterator[int]:
        for item in range(number):
            yield item

    @staticmethod
    def static(number: int) -> int:
        return number

    @classmethod
    def named(cls) -> str:
        return cls.__name__


class Started:
    async def __init__(self) -> None:  # type: ignore[misc]
        self.is_started = True

    def __call__(self) -> bool:
        return self.is_started


def double(number: int) -> int:
    return 2 * number


ModelD = serve.deployment(Model)


def simulated(app: Any, story: Callable[[DeploymentHandle[Any], Simulation], Any]) -> Any:
    """Tell a story about an app in virtual time."""
    with simulate(app, seed=3) as handle:
        return story(handle, current_simulation())


def outcomes(handle: Any, count: int) -> list[Any]:
    return [handle.remote(0).exception() or "fine" for _ in range(count)]


def test_a_failure_strikes_the_calls_that_it_names_in_every_run_anew() -> None:
    app = faults.inject(ModelD.bind(), faults.Failure("Model", ValueError("no"), calls=[2, 4]))

    for _ in range(2):
        with serve.running(app) as handle:
            told = [str(outcome) for outcome in outcomes(handle, 5)]
        assert told == ["fine", "no", "fine", "no", "fine"]


def test_every_kind_of_callable_is_reached_and_stays_of_its_kind() -> None:
    app = faults.inject(ModelD.bind(1), faults.Latency("Model", 0.001))

    with serve.running(app) as handle:
        streams: Any = handle.options(stream=True)
        assert (
            handle.remote(2).result()
            == handle.plus.remote(2).result()
            == handle.later.remote(2).result()
            == 3
        )
        assert list(streams.items.remote(3)) == list(streams.aitems.remote(3)) == [0, 1, 2]
        assert handle.static.remote(4).result() == 4
        assert handle.named.remote().result() == "Model"


def test_a_function_is_reached_as_well() -> None:
    app = faults.inject(serve.deployment(double).bind(), faults.Failure("double", OSError, calls=[1]))

    with serve.running(app) as handle:
        with pytest.raises(OSError):
            handle.remote(1).result()
        assert handle.remote(1).result() == 2


def test_a_call_counts_once_however_often_the_body_calls_itself() -> None:
    app = faults.inject(ModelD.bind(), faults.Failure("Model", ValueError, calls=[2]))

    with serve.running(app) as handle:
        assert handle.remote(1).result() == 1  # __call__ calls plus
        with pytest.raises(ValueError):
            handle.remote(1).result()


def test_a_fault_of_a_method_counts_calls_of_that_method() -> None:
    app = faults.inject(ModelD.bind(), faults.Failure("Model", ValueError, method="plus", calls=[1]))

    with serve.running(app) as handle:
        assert handle.remote(1).result() == 1
        with pytest.raises(ValueError):
            handle.plus.remote(1).result()


def test_latency_passes_on_the_kernels_clock_sync_and_async() -> None:
    app = faults.inject(ModelD.bind(), faults.Latency("Model", 3600.0))

    def story(handle: Any, simulation: Simulation) -> tuple[float, float]:
        handle.remote(1).result()
        between = simulation.now
        handle.later.remote(1).result()
        return between, simulation.now

    assert simulated(app, story) == pytest.approx((3600, 7200))


def test_latency_ends_with_the_cancellation_of_the_call() -> None:
    app = faults.inject(
        ModelD.options(max_ongoing_requests=1).bind(), faults.Latency("Model", 3600.0, calls=[1])
    )

    def story(handle: Any, simulation: Simulation) -> float:
        first = handle.remote(1)
        simulation.advance(5)
        first.cancel()
        handle.remote(2).result()
        return simulation.now

    assert simulated(app, story) == pytest.approx(5)


def test_a_crash_ends_the_replica_and_another_one_comes() -> None:
    app = faults.inject(ModelD.bind(), faults.Crash("Model", calls=[2]))

    def story(handle: Any, simulation: Simulation) -> list[Any]:
        return outcomes(handle, 3)

    first, second, third = simulated(app, story)
    assert (first, third) == ("fine", "fine")
    assert isinstance(second, serve.ReplicaDiedError)


def test_a_refusal_is_backpressure() -> None:
    app = faults.inject(ModelD.bind(), faults.Refusal("Model", calls=[1]))

    with serve.running(app) as handle, pytest.raises(serve.BackPressureError):
        handle.remote(1).result()


@pytest.mark.parametrize("method", ["items", "aitems"])
def test_a_stream_is_dropped_after_some_items_and_plain_calls_are_spared(method: str) -> None:
    app = faults.inject(ModelD.bind(), faults.DroppedStream("Model", after=2))
    read: list[int] = []

    with serve.running(app) as handle:
        with pytest.raises(serve.ReplicaDiedError, match="dropped on purpose"):
            read.extend(getattr(handle.options(stream=True), method).remote(5))
        assert handle.remote(1).result() == 1
    assert read == [0, 1]


@pytest.mark.parametrize("target", [Model, Started])
def test_a_start_is_slow_on_the_kernels_clock(target: Any) -> None:
    deployment = serve.deployment(target)
    app = faults.inject(deployment.bind(), faults.SlowStart(deployment.name, 60.0))

    def story(handle: Any, simulation: Simulation) -> float:
        handle.remote().result()
        return simulation.now

    assert simulated(app, story) == pytest.approx(60)


def test_a_fault_has_its_time() -> None:
    app = faults.inject(ModelD.bind(), faults.Failure("Model", ValueError, during=(10, 20)))

    def story(handle: Any, simulation: Simulation) -> list[bool]:
        failed = []
        for _ in range(3):
            failed.append(handle.remote(1).exception() is not None)
            simulation.advance(12)
        return failed

    assert simulated(app, story) == [False, True, False]


def test_chance_is_the_kernels_so_a_seed_repeats_it() -> None:
    app = faults.inject(ModelD.bind(), faults.Failure("Model", ValueError, probability=0.5))

    def story(handle: Any, simulation: Simulation) -> list[bool]:
        return [handle.remote(1).exception() is None for _ in range(40)]

    first = simulated(app, story)
    assert first == simulated(app, story)
    assert 5 < sum(first) < 35


def test_several_faults_strike_one_call() -> None:
    app = faults.inject(
        ModelD.bind(),
        faults.Latency("Model", 5.0),
        faults.Latency("Model", 2.0),
        faults.Failure("Model", OSError),
    )

    def story(handle: Any, simulation: Simulation) -> tuple[bool, float]:
        return isinstance(handle.remote(1).exception(), OSError), simulation.now

    assert simulated(app, story) == (True, pytest.approx(7))


def test_inner_deployments_can_be_struck_and_the_others_are_not() -> None:
    class Front:
        def __init__(self, model: Any) -> None:
            self.model = model

        def __call__(self) -> str:
            return str(self.model.remote(1).exception())

    app = faults.inject(serve.deployment(Front).bind(ModelD.bind()), faults.Failure("Model", OSError("cut")))

    with serve.running(app) as handle:
        assert handle.remote().result() == "cut"


def test_a_deployment_that_is_not_there_is_refused() -> None:
    with pytest.raises(serve.GraphError, match=r"Crash\(deployment='Modal'.*there are: \['Model'\]"):
        faults.inject(ModelD.bind(), faults.Crash("Modal"))


@pytest.mark.parametrize(
    ("narrowed", "said"),
    [
        ({"calls": [0]}, "calls must be numbers from 1"),
        ({"probability": 1.5}, "probability must be from 0 to 1"),
        ({"during": (3, 1)}, r"during must be \(from, to\)"),
        ({"during": (-1, math.inf)}, r"during must be \(from, to\)"),
    ],
)
def test_what_cannot_be_is_refused(narrowed: dict[str, Any], said: str) -> None:
    with pytest.raises(serve.ConfigError, match=f"Crash of 'Model': {said}"):
        faults.Crash("Model", **narrowed)
