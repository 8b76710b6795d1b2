"""Waits of bodies in one interpreter, told to the other, where it is found out whether they can ever end.

A body in an interpreter replica waits for calls whose requests are in the main interpreter, where all the queues and
slots are. So the wait is told there once it has lasted, as long as a wait there lasts before it is looked at: a call that
ends in time pays nothing. What was told stays true for as long as it matters. Nothing but the answers and the items that
the wait is for can end it, or a cancellation, and all of these come from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadserve.call.answer import inputs_of
from threadserve.call.request import ANSWERED, CURRENT, WAITING, Request, Wait
from threadserve.concurrency.loops import may_time_out, stack_of_task
from threadserve.concurrency.threads import stack_of_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Told", "heard", "open_ended", "told"]

Told = tuple[int, float, tuple[tuple[int, int], ...], str]
"""Of the call with this number, since when, for which calls (and how many of their items have come), at which line."""


def open_ended(requests: Iterable[Request]) -> list[tuple[Request, Wait]]:
    """Return those whose bodies wait for calls without anything here that could end it."""
    found: list[tuple[Request, Wait]] = []
    for request in requests:
        wait = request.wait
        if wait is None or wait.error is not None or request.state is ANSWERED or wait.is_ended():
            continue
        is_bounded = may_time_out(request.runner, _is_of(request))
        if not is_bounded and request.wait is wait:  # last: a timer may have rung meanwhile
            found.append((request, wait))
    return found


def _is_of(request: Request) -> Callable[[Any], bool]:
    return lambda context: context.get(CURRENT) is request


def told(
    number: int, request: Request, wait: Wait, way: Callable[[Request], tuple[int, int] | None]
) -> Told | None:
    """Return what to tell of a wait; None where something in here may end it yet.

    Args:
        number: Of the call whose body waits.
        request: That call.
        wait: What it waits for.
        way: Returns the number of a call that was sent, and how many of its items have come; None where it was not sent.
    """
    needs: list[tuple[int, int]] = []
    for need in _sent(wait.needs):
        how = None if need is None else way(need)
        if how is None:
            return None
        needs.append(how)
    runner = request.runner
    place = stack_of_thread(runner) if isinstance(runner, int) else stack_of_task(runner)
    return (number, wait.since, tuple(needs), place) if needs else None


def _sent(needs: Iterable[Request]) -> Iterable[Request | None]:
    """Yield the calls that are waited for; instead of one that waits for its arguments, those. None: something may move."""
    ahead = list(needs)
    seen: set[Request] = set()
    while ahead:
        need = ahead.pop()
        if need in seen:
            continue
        seen.add(need)
        if need.state is not WAITING:
            yield need
            continue
        inputs = inputs_of(need)
        if not inputs:
            yield None
        ahead += inputs


def heard(
    told: Told,
    sent: Mapping[int, Request],
    taken: Mapping[int, Request | None],
    wake: Callable[[int, float, BaseException], None],
) -> None:
    """Let a wait be seen here that was told from the other interpreter.

    Args:
        told: What was told.
        sent: The calls whose bodies run there.
        taken: The calls that were made there.
        wake: Has the wait end with an error: the number, since when, and the error.
    """
    number, since, needs, place = told
    request = sent.get(number)
    children = [taken.get(child) for child, _ in needs]
    if request is None:
        return
    streams: list[tuple[Any, int]] = []
    requests: list[Request] = []
    for child, (_, come) in zip(children, needs, strict=True):
        if child is None:  # it has been answered, or has not arrived: then the wait will be told again
            return
        requests.append(child)
        if child.channel is not None:
            streams.append((child.channel, come))
    end = _End(lambda error: wake(number, since, error))
    wait = end.wait = Wait(
        requests, since, end, lambda: any(channel.sent != come for channel, come in streams)
    )
    wait.place = place
    with request.router.lock:
        if request.state is ANSWERED:
            return
        request.wait = wait
    request.router.watch()


class _End:
    """Is told when a wait has failed, and tells who waits."""

    __slots__ = ("_wake", "wait")

    wait: Wait

    def __init__(self, wake: Callable[[BaseException], None]) -> None:
        self._wake = wake

    def tell(self) -> tuple[()]:
        if self.wait.error is not None:
            self._wake(self.wait.error)
        return ()
