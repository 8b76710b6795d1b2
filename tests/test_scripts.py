"""Programs as people write and start them: how they end, what they print, and what a prompt, a fork or a tracer sees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 30.0
AT_ONCE_S = 5.0
"""What "at once" means to a test on a busy machine; the waits that it tells apart last at least twice as long."""

HAS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
IS_POSIX = pytest.mark.skipif(os.name != "posix", reason="this system sends no signals to processes")

APP = """
import threading, time, sys, os, signal
import threadserve as serve
from threadserve import futures

@serve.deployment
def double(n):
    return 2 * n

@serve.deployment
def sleep(seconds):
    began.set()
    time.sleep(seconds)
    return "slept"

@serve.deployment
def count(to):
    yield from range(to)

began = threading.Event()
"""


class Ended(NamedTuple):
    status: int
    out: str
    err: str
    seconds: float


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def start(folder: Path, code: str, **options: Any) -> subprocess.Popen[str]:
    (folder / "program.py").write_text(APP + textwrap.dedent(code))
    return launch([sys.executable, "program.py"], folder, **options)


def launch(command: list[str], folder: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**environment(), **options.pop("env", {})},
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def end(process: subprocess.Popen[str], given: str | None = None) -> Ended:
    begin = time.monotonic()
    try:
        out, err = process.communicate(given, timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    return Ended(process.returncode, out, err, time.monotonic() - begin)


def run(folder: Path, code: str) -> Ended:
    return end(start(folder, code))


class TestEnd:
    @pytest.mark.parametrize(
        "code",
        [
            "serve.run(double.bind())",
            "print(serve.run(double.bind()).remote(1).result())",
            "serve.start({'port': 0}); serve.run(double.bind())",
            "h = serve.run(double.bind()); r = h.remote(1); r.add_done_callback(print); f = r.future; f.result()",
            "h = serve.run(double.bind()).options(timeout_s=60); h.remote(1).result()",
            "h = serve.run(double.bind()); rs = [h.remote(n) for n in range(1000)]",
            "g = serve.run(count.bind()).options(stream=True).remote(3); list(g)",
            "serve.run(double.bind()); serve.shutdown()",
            "with serve.running(double.bind()) as h: h.remote(1)",
            """
            @serve.deployment
            async def add(n): return n + 1
            h = serve.run(add.bind()); h.remote(1).result()
            """,
            """
            async def main():
                print(await serve.run(double.bind()).remote(1))
            import asyncio; asyncio.run(main())
            """,
            "t = threading.Thread(target=lambda: print(serve.run(double.bind()).remote(1).result())); t.start()",
        ],
    )
    def test_is_at_once_silent_and_successful_when_nothing_runs(self, tmp_path: Path, code: str) -> None:
        ended = run(tmp_path, code)

        assert (ended.status, ended.err) == (0, "")
        assert ended.seconds < AT_ONCE_S

    def test_keeps_the_status_of_the_program(self, tmp_path: Path) -> None:
        ended = run(tmp_path, "serve.run(double.bind()); sys.exit(3)")

        assert (ended.status, ended.out, ended.err) == (3, "", "")

    def test_waits_for_what_runs(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            @serve.deployment
            def work():
                began.set(); time.sleep(0.2); print("worked")
            serve.run(work.bind()).remote()
            began.wait()
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "worked\n", "")

    def test_waits_for_a_running_coroutine_and_what_it_calls(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            import asyncio
            class Parent:
                def __init__(self, child): self.child = child
                async def __call__(self):
                    began.set(); await asyncio.sleep(0.2); print(await self.child.remote(21))
            serve.run(serve.deployment(Parent).bind(double.bind())).remote()
            began.wait()
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "42\n", "")

    @pytest.mark.slow
    def test_names_what_it_waits_for_after_a_second(self, tmp_path: Path) -> None:
        ended = run(tmp_path, "serve.run(sleep.bind(), name='shop').remote(1.5); began.wait()")

        assert ended.status == 0
        assert ended.err == "threadserve: exiting, waiting for 1 running: shop/sleep.__call__\n"

    @pytest.mark.parametrize("timeout", [0, 0.2])
    def test_waits_no_longer_than_the_graceful_timeout(self, tmp_path: Path, timeout: float) -> None:
        ended = run(
            tmp_path,
            f"""
            serve.run(sleep.options(graceful_shutdown_timeout_s={timeout}).bind(), name="shop").remote(60)
            began.wait()
            """,
        )

        assert ended.status == 0
        assert ended.seconds < AT_ONCE_S
        assert ended.err == "threadserve: exiting, gave up 1 running: shop/sleep.__call__\n"

    def test_does_not_wait_for_what_was_cancelled(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            r = serve.run(sleep.bind()).remote(60)
            began.wait()
            r.cancel()
            """,
        )

        assert (ended.status, ended.err) == (0, "")
        assert ended.seconds < AT_ONCE_S

    def test_does_not_wait_for_a_stream_that_nobody_will_read_on(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            g = serve.run(count.bind()).options(stream=True).remote(1_000_000)
            for number in g: break
            print(number)
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "0\n", "")
        assert ended.seconds < AT_ONCE_S

    def test_answers_what_is_queued(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            import atexit
            @serve.deployment(max_ongoing_requests=1)
            def busy():
                began.set(); time.sleep(0.1); return "answered"
            h = serve.run(busy.bind())
            running, queued = h.remote(), h.remote()
            began.wait()
            serve.api = __import__("threadserve.api")
            atexit.unregister(show) if "show" in globals() else None
            """,
        )
        assert (ended.status, ended.err) == (0, "")

        ended = run(
            tmp_path,
            """
            began.wait()
            """
            if False
            else """
            queued.clear()
            """
            if False
            else ATEXIT,
        )
        assert ended.out == "answered\nDeploymentUnavailableError: default/busy is not available: the process is exiting\n"

    def test_after_an_exception_shows_nothing_but_that(self, tmp_path: Path) -> None:
        ended = run(tmp_path, "h = serve.run(double.bind()); h.remote(1).result(); 1 // 0")

        assert ended.status == 1
        assert ended.err.startswith("Traceback (most recent call last):")
        assert ended.err.endswith("ZeroDivisionError: integer division or modulo by zero\n")
        assert "threadserve" not in ended.err

    def test_after_an_exception_of_a_call_shows_its_lines(self, tmp_path: Path) -> None:
        ended = run(tmp_path, "serve.run(double.bind()).remote([], 1).result()")

        assert ended.status == 1
        assert ended.err.count("Traceback") == 1
        assert "double() takes 1 positional argument but 2 were given" in ended.err.splitlines()[-1]

    def test_lets_the_programs_own_exit_handlers_call(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            import atexit
            h = serve.run(double.bind())
            atexit.register(lambda: print(h.remote(21).result()))
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "42\n", "")


ATEXIT = """
import atexit
def show():
    print(running.result(timeout_s=0))
    error = queued.exception(timeout_s=0)
    print(f"{type(error).__name__}: {error}")
"""
