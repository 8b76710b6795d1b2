"""A call that is over is gone: nothing of it waits for the garbage collector."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import Any

import pytest

import threadserve as serve
from tests.doubles import IS_FREE_THREADED
from threadserve.call.request import Request

STILL_LAID_DOWN = 10 if IS_FREE_THREADED else 1
"""Of fifty: the last one, which its worker may just be laying down; without a GIL also those that another thread has let go
of last, which die when their own thread looks."""


class Bodies:
    def plain(self) -> int:
        return 1

    async def coroutine(self) -> int:
        return 1

    def fails(self) -> None:
        raise ValueError("no")

    async def fails_async(self) -> None:
        raise ValueError("no")


def call(handle: Any, method: str) -> None:
    with suppress(ValueError):  # no name for the response: the frame would be in the traceback
        getattr(handle, method).remote().result(timeout_s=10)


def requests() -> int:
    return sum(type(each) is Request for each in gc.get_objects())


@pytest.mark.parametrize("method", ["plain", "coroutine", "fails", "fails_async"])
def test_a_call_leaves_no_cycle_behind(method: str) -> None:
    app: Any = serve.deployment(Bodies).bind()
    with serve.running(app) as handle:
        call(handle, method)
        gc.collect()
        before = requests()  # other tests may hold some
        gc.disable()
        try:
            for _ in range(50):
                call(handle, method)
            left = requests() - before
        finally:
            gc.enable()

    assert left <= STILL_LAID_DOWN
