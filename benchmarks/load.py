"""Who calls: threads that start together, closed loops, and open ones whose arrivals are drawn beforehand."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

__all__ = ["arrivals", "closed_loop", "open_loop", "together"]


def together(callers: int, work: Callable[[int], object]) -> float:
    """Run `work(number)` on so many threads at once; return the seconds from the start of all to the end of the last.

    One caller runs on the calling thread. The first error of a caller is raised here.
    """
    if callers == 1:
        start = time.perf_counter()
        work(0)
        return time.perf_counter() - start
    gate = threading.Barrier(callers + 1)
    errors: list[BaseException] = []

    def caller(number: int) -> None:
        gate.wait()
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - it is raised by who started the callers
            errors.append(error)

    threads = [threading.Thread(target=caller, args=(number,), daemon=True) for number in range(callers)]
    for thread in threads:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - start
    if errors:
        raise errors[0]
    return spent


def closed_loop(
    callers: int,
    call: Callable[[int], object],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, list[float]]:
    """Have each caller call again as soon as it is answered; return calls/s and the latency of each call in us."""
    end = clock() + seconds
    spent: list[list[float]] = [[] for _ in range(callers)]

    def work(caller: int) -> None:
        mine, number = spent[caller], caller
        stop = clock()
        while stop < end or not mine:
            start = clock()
            call(number)
            stop = clock()
            mine.append((stop - start) * 1e6)
            number += callers

    duration = together(callers, work)
    times = [value for mine in spent for value in mine]
    return len(times) / duration, times


def arrivals(rate: float, seconds: float, chance: random.Random) -> list[float]:
    """Draw the arrivals of a Poisson process: moments in seconds from its start, at least one."""
    moments = [chance.expovariate(rate)]
    while (following := moments[-1] + chance.expovariate(rate)) < seconds:
        moments.append(following)
    return moments


def open_loop(
    moments: Sequence[float],
    submit: Callable[[int], object],
    wait: Callable[[], Sequence[float]],
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[float, list[float]]:
    """Submit at the moments drawn, whether or not earlier calls are answered; return answers/s and latencies in us.

    A latency counts from the moment that was drawn, not from when the call was really made: who is late because the
    one before was slow has waited all the same.

    Args:
        moments: Seconds from the start, ascending.
        submit: Makes the call of a number.
        wait: Waits for the end of them all, and returns by number when each ended, on the same clock.
        clock: Tells the time in seconds.
        sleep: Waits for so many seconds.
    """
    start = clock()
    answers: list[object] = []  # kept: some calls end when nobody holds their answer any more
    for number, moment in enumerate(moments):
        while (left := start + moment - clock()) > 0:
            sleep(left)
        answers.append(submit(number))
    ends = wait()
    latencies = [(end - start - moment) * 1e6 for end, moment in zip(ends, moments, strict=True)]
    return len(moments) / (max(ends) - start), latencies
