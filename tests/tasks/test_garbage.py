"""A task or an actor's call that is over is gone: nothing of it waits for the garbage collector."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve.call.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable


@serve.remote
def plain(value: Any = None) -> Any:
    return value


@serve.remote
async def coroutine() -> None:
    raise ValueError("no")


@serve.remote(num_cpus=1)
def reserving() -> Any:
    return serve.get(plain.remote(1))


@serve.remote(num_returns=2)
def pair() -> Any:
    return 1, 2


@serve.remote
class Actor:
    def call(self, value: Any) -> Any:
        return value

    def fail(self) -> None:
        raise ValueError("no")


def requests() -> int:
    return sum(type(each) is Request for each in gc.get_objects())


def both() -> None:
    for ref in pair.remote():
        serve.get(ref)


@pytest.mark.parametrize(
    "call",
    [
        lambda actor: serve.get(plain.remote(plain.remote(1))),
        lambda actor: serve.get(coroutine.remote()),
        lambda actor: serve.get(reserving.remote()),
        lambda actor: both(),
        lambda actor: serve.get(actor.call.remote(plain.remote(1))),
        lambda actor: serve.get(actor.fail.remote(), timeout=10),
    ],
    ids=["chain", "failing coroutine", "reserving", "two values", "actor", "failing actor"],
)
def test_a_call_leaves_no_cycle_behind(call: Callable[[Any], object]) -> None:
    actor = Actor.remote()
    with suppress(ValueError):
        call(actor)
    gc.collect()
    gc.disable()
    try:
        before = requests()
        for _ in range(50):
            with suppress(ValueError):
                call(actor)
        # The thread that ran the last few may still have them in its hands.
        assert requests() - before < 10
    finally:
        gc.enable()
