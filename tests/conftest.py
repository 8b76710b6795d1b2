"""What holds for every test: nothing keeps running behind it, and Hypothesis never hurries it."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

settings.register_profile("threadserve", deadline=None)
settings.register_profile("threadserve-ci", deadline=None, derandomize=True)
settings.load_profile("threadserve-ci" if os.environ.get("CI") else "threadserve")

LEAVE_S = 5.0
"""How long the threads that a test started may take to end, once the test has shut down."""

LIVES_ON = ("threadserve ", "pytest_timeout ", "pydevd.")
"""Names of threads that outlive a test by design: the kernel's own services, and the tools that watch."""


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    """Shut down after the test, and fail it if a thread that began in it will not end."""
    before = set(threading.enumerate())

    yield

    api = sys.modules.get("threadserve.api")
    if api is not None:
        api.shutdown()
    left = [thread for thread in threading.enumerate() if is_guest(thread) and thread not in before]
    deadline = time.monotonic() + LEAVE_S
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    names = sorted(thread.name for thread in left if thread.is_alive())
    if names:
        pytest.fail(f"left {len(names)} threads behind: {', '.join(names)}", pytrace=False)


def is_guest(thread: threading.Thread) -> bool:
    return thread is not threading.current_thread() and not thread.name.startswith(LIVES_ON)


@pytest.fixture(autouse=True)
def nobody_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With THREADSERVE_INLINE=off, have every deployment keep to its own threads: nothing else may change."""
    if os.environ.get("THREADSERVE_INLINE") == "off":
        from threadserve.router.router import Router

        monkeypatch.setattr(Router, "run_here", lambda *_, **__: None)
        monkeypatch.setattr(Router, "claim_instead", Router.wake)
