# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What mypy and pyright know of tasks and actors. Checked, never run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

from threadserve.call.objectref import ObjectRef, ObjectRefGenerator
from threadserve.tasks.actor import ActorClass, ActorHandle
from threadserve.tasks.objects import get, put, wait
from threadserve.tasks.remote import remote
from threadserve.tasks.task import RemoteFunction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from threadserve.call.response import DeploymentResponse


@remote
def double(number: int) -> int:
    return 2 * number


@remote(num_cpus=1)
async def later(number: int) -> str:
    return str(number)


@remote
def items(number: int) -> Iterator[int]:
    yield number


@remote
async def async_items(number: int) -> AsyncIterator[int]:
    yield number


class Counter:
    def add(self, number: int) -> int:
        return number


async def tasks(response: DeploymentResponse[str]) -> None:
    assert_type(double, RemoteFunction[int])
    assert_type(double.remote(1), ObjectRef[int])
    assert_type(get(double.remote(1)), int)
    assert_type(get([double.remote(1)]), list[int])
    assert_type(await double.remote(1), int)
    assert_type(later.remote(1), ObjectRef[str])
    assert_type(items.remote(1), ObjectRefGenerator[int])
    assert_type(async_items.remote(1), ObjectRefGenerator[int])
    assert_type(put("a"), ObjectRef[str])
    assert_type(get(response), str)
    assert_type(wait([put(1)]), tuple[list[ObjectRef[int]], list[ObjectRef[int]]])


def actors() -> None:
    counters = remote(Counter)
    assert_type(counters, ActorClass[Counter])
    assert_type(remote(max_restarts=1)(Counter), ActorClass[Counter])
    assert_type(counters.remote(), ActorHandle[Counter])
    value: Any = get(counters.remote().add.remote(1))
    assert value
