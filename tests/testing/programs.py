"""Programs for the simulated kernel, shared by its tests; run as a script, it prints traces."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tests.doubles import wait_until
from threadserve.testing.scheduler import SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Callable


def a_bit_of_everything(kernel: SimulatedKernel) -> list[str]:
    """Threads, locks, timeouts, timers, a loop and chance; returns in which order things happened."""
    events: list[str] = []
    lock = kernel.lock()
    news = kernel.waiter()
    loop = kernel.new_event_loop()

    def note(event: str) -> None:
        with lock:
            events.append(f"{kernel.now():g} {event}")

    def serve() -> None:
        loop.run_forever()

    def work(name: str) -> None:
        for step in range(3):
            note(f"{name} {step}")
            kernel.waiter().wait(kernel.random.choice([0, 1, 2]))
        loop.call_soon_threadsafe(note, f"{name} on the loop")

    threads = [kernel.spawn(name, lambda name=name: work(name)) for name in ("a", "b", "c")]  # type: ignore[misc]
    kernel.spawn("loop", serve)
    kernel.call_at(2.0, lambda: note("alarm"))
    kernel.call_at(3.0, news.set)
    for thread in threads:
        thread.join()
    news.wait()
    return events


def unprotected_counter(kernel: SimulatedKernel) -> None:
    """Two threads count to two; but each lets go of the lock between reading and writing."""
    lock = kernel.lock()
    count = 0

    def increment() -> None:
        nonlocal count
        with lock:
            read = count
        with lock:
            count = read + 1

    threads = [kernel.spawn(name, increment) for name in ("one", "two")]
    for thread in threads:
        thread.join()
    assert count == 2


def protected_counter(kernel: SimulatedKernel) -> None:
    lock = kernel.lock()
    count = 0

    def increment() -> None:
        nonlocal count
        with lock:
            count += 1

    threads = [kernel.spawn(name, increment) for name in ("one", "two")]
    for thread in threads:
        thread.join()
    assert count == 2


def run(main: Callable[[SimulatedKernel], Any], seed: int = 0, max_steps: int = 1_000_000) -> SimulatedKernel:
    kernel = SimulatedKernel(seed, max_steps=max_steps)
    kernel.run(lambda: main(kernel))
    return kernel


def alive() -> set[threading.Thread]:
    """The threads that there are, without those that the simulator keeps for its next run."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("threadserve simulator")}


def assert_back_to(before: set[threading.Thread]) -> None:
    """Assert that no other threads are left; the last may be on its way out, or to those that are kept."""
    wait_until(lambda: alive() <= before)


if __name__ == "__main__":
    for seed in range(20):
        for line in run(a_bit_of_everything, seed).trace:
            print(line)  # noqa: T201
