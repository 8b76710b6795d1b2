"""Tasks and actors under Ray's rules, as far as no program of tests/parity tells of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from threadserve.errors import NotSupportedError


def test_ray_begins_with_its_first_use_and_takes_all_of_its_arguments(ray: Any) -> None:
    assert not ray.is_initialized()
    assert ray.get(ray.put(1)) == 1
    assert ray.is_initialized()
    ray.shutdown()

    with ray.init(
        "auto", num_cpus=3, dashboard_host="0.0.0.0", runtime_env={}, log_to_driver=False
    ) as connection:
        assert connection.address_info["address"] == "auto"
        assert ray.cluster_resources()["CPU"] == 3
        assert ray.nodes()[0]["Alive"]
    assert not ray.is_initialized()


def test_what_one_process_cannot_record_is_refused(ray: Any) -> None:
    with pytest.raises(NotSupportedError, match=r"ray\.timeline"):
        ray.timeline()


def test_the_context_of_the_program_has_ids(ray: Any) -> None:
    context = ray.get_runtime_context()

    assert context.get_job_id()
    assert context.get_node_id() == ray.nodes()[0]["NodeID"]
    assert context.get_actor_id() is None


def test_get_in_an_event_loop_blocks_it_as_ray_does(ray: Any) -> None:
    double = ray.remote(lambda value: 2 * value)

    async def main() -> Any:
        return ray.get(double.remote(2))

    assert asyncio.run(main()) == 4


def test_an_option_that_one_process_cannot_honour_is_refused_at_its_use(ray: Any) -> None:
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy

    with pytest.raises(NotSupportedError, match="NodeAffinity"):
        strategy(node_id="x", soft=False)


def test_values_of_actors_are_isolated(ray: Any) -> None:
    class Keeper:
        def __init__(self, values: list[int]) -> None:
            self.values = values

        def read(self) -> list[int]:
            return self.values

    mine = [1]
    keeper = ray.remote(Keeper).remote(mine)
    mine.append(2)
    ray.get(keeper.read.remote()).append(3)

    assert ray.get(keeper.read.remote()) == [1]


def test_a_class_keeps_its_name_and_its_inheritance_as_an_actor(ray: Any) -> None:
    class Base:
        def who(self) -> str:
            return type(self).__name__

    class Derived(Base):
        def who(self) -> str:
            return "derived: " + super().who()

    assert ray.get(ray.remote(Derived).remote().who.remote()) == "derived: Derived"


def test_a_handle_to_an_actor_can_be_passed_on(ray: Any) -> None:
    class Counter:
        count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

    @ray.remote  # type: ignore[untyped-decorator]
    def use(counters: list[Any]) -> int:
        return ray.get(counters[0].add.remote())  # type: ignore[no-any-return]

    counter = ray.remote(Counter).remote()
    ray.get(counter.add.remote())

    assert ray.get(use.remote([counter])) == 2


def test_a_coroutine_function_is_no_task(ray: Any) -> None:
    async def coroutine() -> None: ...

    with pytest.raises(ValueError, match="async def"):
        ray.remote(coroutine)


def test_a_metric_counts_by_its_tags(ray: Any) -> None:
    metrics = ray.serve.metrics
    counter = metrics.Counter("calls", description="how many", tag_keys=("kind",))

    counter.inc(tags={"kind": "a"})
    counter.inc(2, tags={"kind": "a"})

    assert counter._values == {(("kind", "a"),): 3.0}
    with pytest.raises(TypeError, match="tuple"):
        metrics.Gauge("g", tag_keys=["kind"])
    with pytest.raises(ValueError, match="Unrecognized"):
        counter.inc(tags={"other": "x"})
