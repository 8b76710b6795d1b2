from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from threadserve.concurrency.interruptible import run_interruptibly
from threadserve.concurrency.real import RealKernel

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE: ContextVar[str] = ContextVar("VARIABLE")


class Interrupts:
    """Keeps what is attached, and says whether the coroutine should run."""

    def __init__(self, *, should_run: bool = True) -> None:
        self.should_run = should_run
        self.kept: list[Callable[[], object]] = []

    def attach(self, interrupt: Callable[[], object]) -> bool:
        self.kept.append(interrupt)
        return self.should_run


def test_a_coroutine_runs_on_the_calling_thread_and_in_its_context() -> None:
    async def body() -> tuple[int, str]:
        await asyncio.sleep(0)
        return threading.get_ident(), VARIABLE.get()

    VARIABLE.set("seen")

    assert run_interruptibly(RealKernel(), body(), Interrupts().attach) == (threading.get_ident(), "seen")


def test_it_can_be_interrupted_from_another_thread() -> None:
    waiting, tidied = threading.Event(), threading.Event()
    interrupts = Interrupts()

    async def body() -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            tidied.set()

    def interrupt() -> None:
        waiting.wait()
        interrupts.kept[0]()

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(asyncio.CancelledError):
        run_interruptibly(RealKernel(), body(), interrupts.attach)
    other.join()

    assert tidied.is_set()


def test_what_should_not_run_ends_at_its_first_wait() -> None:
    steps: list[int] = []

    async def body() -> None:
        steps.append(1)
        await asyncio.Event().wait()
        steps.append(2)

    with pytest.raises(asyncio.CancelledError):
        run_interruptibly(RealKernel(), body(), Interrupts(should_run=False).attach)

    assert steps == [1]


def test_an_interrupt_that_comes_too_late_does_nothing() -> None:
    interrupts = Interrupts()

    async def body() -> str:
        return "done"

    assert run_interruptibly(RealKernel(), body(), interrupts.attach) == "done"
    interrupts.kept[0]()
