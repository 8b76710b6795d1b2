"""What does one call and its result cost the caller?"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import threadserve as serve
from benchmarks import peers
from benchmarks.measure import Case, can_pin, latency, pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from benchmarks.measure import Run

QUESTION = "What does one call and its result cost the caller?"

ONE_CALL = "one call"
ONE_CORE = "one call, all on one core"
INGRESS = "async ingress over two stages"
ROUND_TRIP = "round trip to a loop"


def same(value: int) -> int:
    return value


def measure(run: Run) -> None:
    with contextlib.ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {
            name: partial(connect().call, 1)
            for name, connect in peers.open_peers(stack, peers.ALL, same, 1, run).items()
        }
        ingresses = open_ingresses(stack) | {ROUND_TRIP: calls[peers.ASYNCIO.name]}
        if run.app:
            calls[run.app.name] = partial(stack.enter_context(run.app.open(same, 1))().call, 1)
        seconds = run.effort.seconds
        cases = [Case(ONE_CALL, name, partial(latency, call, seconds)) for name, call in calls.items()]
        cases += [Case(INGRESS, name, partial(latency, call, seconds)) for name, call in ingresses.items()]
        if can_pin:
            cases += [
                Case(ONE_CORE, peer.name, partial(pinned_latency, calls[peer.name], seconds))
                for peer in (peers.OURS, peers.HANDED_OFF, *peers.THREADS)
                if peer.name in calls
            ]
        else:
            run.note(f"{ONE_CORE}: this platform cannot pin threads")
        run.rounds(cases)


def pinned_latency(call: Callable[[], object], seconds: float) -> dict[str, float]:
    with pinned():
        return latency(call, seconds)


# ---- an ingress that awaits two stages, one after the other


class Ingress:
    def __init__(self, first: Any, second: Any) -> None:
        self.first = first
        self.second = second

    async def __call__(self, value: int) -> int:
        once = await self.first.remote(value)
        twice: int = await self.second.remote(once)
        return twice


def open_ingresses(stack: contextlib.ExitStack) -> dict[str, Callable[[], object]]:
    """Open every contender that has an ingress."""
    return {
        peers.OURS.name: stack.enter_context(ingress({})),
        peers.HANDED_OFF.name: stack.enter_context(ingress(peers.NO_INLINE)),
        peers.EXECUTOR.name: stack.enter_context(executor_ingress()),
        peers.ASYNCIO.name: stack.enter_context(asyncio_ingress()),
    }


@contextlib.contextmanager
def ingress(options: dict[str, Any]) -> Generator[Callable[[], object]]:
    stages = [serve.deployment(same, name=name, **options).bind() for name in ("first", "second")]
    deployment: Any = serve.deployment(Ingress, **options)
    with serve.running(deployment.bind(*stages)) as handle:
        yield lambda: handle.remote(1).result()


@contextlib.contextmanager
def executor_ingress() -> Generator[Callable[[], object]]:
    """The ingress is a function on one executor, the stages on another."""
    with contextlib.ExitStack() as stack:
        stages = stack.enter_context(peers.EXECUTOR.open(same, 1))()
        front = stack.enter_context(peers.EXECUTOR.open(lambda value: stages.call(stages.call(value)), 1))()
        yield lambda: front.call(1)


@contextlib.contextmanager
def asyncio_ingress() -> Generator[Callable[[], object]]:
    """The ingress runs on a loop and awaits stages that run on an executor's thread."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Thread

    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def front(value: int) -> int:
        once = await loop.run_in_executor(executor, same, value)
        return await loop.run_in_executor(executor, same, once)

    with ThreadPoolExecutor(1) as executor:
        try:
            yield lambda: asyncio.run_coroutine_threadsafe(front(1), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
