"""Apps for the simulator, shared by its tests; run as a script, it prints traces."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from time import sleep
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import threadserve as serve
from threadserve import testing

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Adder:
    def __init__(self, step: int = 1) -> None:
        self.step = step

    def __call__(self, value: int) -> int:
        return value + self.step


class _Front:
    def __init__(self, after: Any) -> None:
        self.after = after

    def __call__(self, value: int) -> int:
        return int(self.after.remote(value).result()) + 1


class _Asleep:
    def __call__(self, seconds: int) -> int:
        time.sleep(seconds)
        return seconds


class _Async:
    async def __call__(self, seconds: int) -> int:
        await asyncio.sleep(seconds)
        return seconds


class _Counting:
    def __call__(self, count: int) -> Iterator[int]:
        yield from range(count)


class _Broken:
    def __init__(self) -> None:
        raise ValueError("broken")


class _Keeper:
    def itself(self) -> Any:
        return self


class _Recursive:
    def __call__(self, depth: int) -> int:
        handle = serve.get_deployment_handle("Recursive")
        return 0 if not depth else 1 + int(handle.remote(depth - 1).result())


class _Crossed:
    """Takes two locks in two orders, and sees to it that both are taken."""

    def __init__(self) -> None:
        self.locks = (threading.Lock(), threading.Lock())
        self.both = threading.Barrier(2)

    def left(self) -> None:
        with self.locks[0]:
            self.both.wait()
            with self.locks[1]:
                pass

    def right(self) -> None:
        with self.locks[1]:
            self.both.wait()
            with self.locks[0]:
                pass

    def cross(self) -> None:
        handle = serve.get_deployment_handle("Crossed")
        responses = [handle.left.remote(), handle.right.remote()]
        for response in responses:
            response.result()


class _HealthyAndStuck:
    def check_health(self) -> None:
        pass

    def __call__(self) -> None:
        threading.Event().wait()


class _BoundEarly:
    def __call__(self) -> tuple[object, ...]:
        with _lock:
            sleep(5)
            return uuid4(), random.random()


class _Local:
    def __call__(self) -> list[int]:
        values: list[int] | None = getattr(_local, "values", None)
        if values is None:
            values = _local.values = []
        values.append(1)
        return list(values)


class _Spawning:
    def __call__(self) -> str:
        names: list[str] = []
        thread = threading.Thread(target=lambda: names.append(serve.get_replica_context().deployment))
        thread.start()
        thread.join()
        return names[0]


_lock = threading.Lock()
_local = threading.local()

Adder = serve.deployment(name="Adder")(_Adder)
Front = serve.deployment(name="Front")(_Front)
Asleep = serve.deployment(name="Asleep")(_Asleep)
Async = serve.deployment(name="Async")(_Async)
Counting = serve.deployment(name="Counting")(_Counting)
Broken = serve.deployment(name="Broken")(_Broken)
Keeper = serve.deployment(name="Keeper")(_Keeper)
Recursive = serve.deployment(name="Recursive", max_ongoing_requests=1)(_Recursive)
Crossed = serve.deployment(name="Crossed")(_Crossed)
HealthyAndStuck = serve.deployment(name="HealthyAndStuck")(_HealthyAndStuck)
BoundEarly = serve.deployment(name="BoundEarly")(_BoundEarly)
Local = serve.deployment(name="Local")(_Local)
Spawning = serve.deployment(name="Spawning")(_Spawning)


def use_it_all(grain: Any, seed: int) -> testing.Trace:
    """Calls, chains, streams, threads, locks and chance; returns the trace."""
    with testing.simulate(Front.bind(Adder.bind()), seed=seed, grain=grain, name="shop") as handle:
        with testing.simulate(Asleep.bind(), name="slow") as asleep:
            responses = [handle.remote(n) for n in range(3)]
            naps = [asleep.remote(random.randint(1, 3)) for _ in range(2)]
            thread = threading.Thread(target=lambda: time.sleep(random.random()), name="napper")
            thread.start()
            for response in (*responses, *naps):
                response.result()
            thread.join()
            asleep.remote(60).cancel()
    return testing.trace()


if __name__ == "__main__":
    for seed in range(5):
        print(use_it_all(sys.argv[1], seed).text())  # noqa: T201
