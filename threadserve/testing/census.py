"""What there is at this moment: requests without an answer, open streams, threads; who waits for whom, and where."""

from __future__ import annotations

import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from threadserve.call import directory
from threadserve.call.blocking import wait_for
from threadserve.call.request import ANSWERED, Request
from threadserve.concurrency.lock import acquire_within
from threadserve.concurrency.threads import stack_text
from threadserve.router.router import Router

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from threadserve.router.router import Holdings

__all__ = ["cancel_all", "describe", "leaks", "threads", "threads_left"]

LIVES_ON = ("threadserve ", "pytest_timeout ", "pydevd.")
"""Names of threads that outlive a test by design: the kernel's own services, and the tools that watch."""

_GLANCE_S = 1.0  # for a lock, by who describes what may be stuck


def leaks(app: str | None = None, patience_s: float = 1.0) -> list[str]:
    """Return a line for each request of an app, or of all, that has no answer within `patience_s` seconds. Blocks."""
    return [
        f"{_kind(request)}: {_named(request)} is {request.state.value}"
        for request in _unanswered(app)
        if not wait_for(request, patience_s)
    ]


def cancel_all(app: str | None = None) -> None:
    """Cancel each request of an app, or of all, that has no answer. Never blocks."""
    for request in _unanswered(app):
        request.cancel()


def threads() -> set[threading.Thread]:
    """Return the threads that run now."""
    return set(threading.enumerate())


def threads_left(before: Collection[threading.Thread], patience_s: float = 5.0) -> list[str]:
    """Return the names of threads that began after `before` and do not end within `patience_s` seconds. Blocks."""
    left = [
        thread
        for thread in threading.enumerate()
        if thread not in before
        and thread is not threading.current_thread()
        and not thread.name.startswith(LIVES_ON)
    ]
    deadline = time.monotonic() + patience_s
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    return sorted(thread.name for thread in left if thread.is_alive())


def describe(app: str | None = None) -> str:
    """Return what every replica of an app, or of all, is doing, and who waits for whom. Nearly never blocks; any thread.

    Where a deployment's lock cannot be had within a second, that is what is told of it.
    """
    lines: list[str] = []
    arrows: list[str] = []
    for router in _routers(app):
        held = _holdings(router)
        if held is None:
            lines.append(f"{router.name}: its lock is held for more than {_GLANCE_S:g} s")
            continue
        if not (held.running or held.queued or held.waiting):
            lines.append(f"{router.name}: nothing to do")
            continue
        lines.append(
            f"{router.name}: {len(held.running)} running, {len(held.queued)} queued, "
            f"{len(held.waiting)} waiting for arguments"
        )
        for request in held.running:
            lines.append(f"  {_named(request)} runs on {_runner_name(request)}, at")
            lines.append(_indented(_stack(request)))
        arrows.extend(_arrows(router, held))
    lines.extend(_others(app))
    if arrows:
        lines += ["who waits for whom:", *(f"  {arrow}" for arrow in arrows)]
    return "\n".join(lines)


def _routers(app: str | None) -> list[Router]:
    return [router for router in directory.registered(app) if isinstance(router, Router)]


def _unanswered(app: str | None) -> list[Request]:
    found: list[Request] = []
    for router in _routers(app):
        with router.lock:
            held = router.holds()
        found += [each for each in (*held.waiting, *held.queued, *held.running) if each.state is not ANSWERED]
    return found


def _holdings(router: Router) -> Holdings | None:
    if not acquire_within(router.lock, _GLANCE_S):
        return None
    try:
        return router.holds()
    finally:
        router.lock.release()


def _arrows(router: Router, held: Holdings) -> Iterator[str]:
    for request in held.running:
        wait = request.wait
        for need in () if wait is None else wait.needs:
            yield f"{_named(request)} -> {_named(need)}, {need.state.value}"
    for request in held.queued:
        holders = ", ".join(_named(holder) for holder in held.running) or "a replica"
        yield f"{_named(request)}, queued -> a slot of {router.name}, held by {holders}"
    for request in held.waiting:
        yield f"{_named(request)} -> its arguments"


def _others(app: str | None) -> Iterator[str]:
    """Tell of threads of replicas that run no request but are not idle: constructors, health checks, finalizers."""
    names = tuple(f"{router.name}#" for router in _routers(app))
    for thread in threading.enumerate():
        if names and thread.name.startswith(names) and " worker " not in thread.name:
            yield f"thread {thread.name}, at"
            yield _indented(stack_text(thread.ident))


def _kind(request: Request) -> str:
    return "unanswered" if request.channel is None else "open stream"


def _named(request: Request) -> str:
    return f"{request.router.name}.{request.method} (request {request.request_id[:8]})"


def _runner_name(request: Request) -> str:
    runner = request.runner
    if isinstance(runner, int):
        thread: Any = next((each for each in threading.enumerate() if each.ident == runner), None)
        return "a thread" if thread is None else str(thread.name)
    return "the event loop of its replica"


def _stack(request: Request) -> str:
    runner: Any = request.runner
    if isinstance(runner, int):
        return stack_text(runner)
    frames = runner.get_stack() if hasattr(runner, "get_stack") else []
    return "".join("".join(traceback.format_stack(frame, 1)) for frame in frames).rstrip() or "(unknown)"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
