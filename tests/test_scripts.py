"""Programs as people write and start them: how they end, what they print, what a prompt, a fork or a tracer sees."""

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
            pytest.param(
                "threading.Thread(target=lambda: print(serve.run(double.bind()).remote(1).result())).start()",
                marks=pytest.mark.skipif(
                    sys.version_info[:2] == (3, 12),
                    reason="3.12 starts no thread once the main one has ended",
                ),
            ),
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
            h = serve.run(serve.deployment(Parent).bind(double.bind()))
            serve.get_deployment_handle("double", "default").remote(1).result()
            h.remote()
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

            def show():
                error = queued.exception(timeout_s=0)
                print(running.result(timeout_s=0), type(error).__name__, error)

            atexit.register(show)  # before the first use of serve.run, so it runs after what that registers

            @serve.deployment(max_ongoing_requests=1)
            def busy():
                began.set(); time.sleep(0.1); return "answered"

            h = serve.run(busy.bind(), name="shop")
            running, queued = h.remote(), h.remote()
            began.wait()
            """,
        )

        assert (ended.status, ended.err) == (0, "")
        assert ended.out == (
            "answered DeploymentUnavailableError shop/busy is not available: the process is exiting\n"
        )

    def test_after_an_exception_shows_nothing_but_that(self, tmp_path: Path) -> None:
        ended = run(tmp_path, "h = serve.run(double.bind()); h.remote(1).result(); 1 // 0")

        assert ended.status == 1
        assert ended.err.startswith("Traceback (most recent call last):")
        assert ended.err.splitlines()[-1].startswith("ZeroDivisionError: ")
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
            h.remote(1).result()
            atexit.register(lambda: print(h.remote(21).result()))
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "42\n", "")


@IS_POSIX
class TestCtrlC:
    """The signal comes when the main thread waits, which the program itself sees and says."""

    PROGRAM = """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may have it ignored

    def say_when_main_waits():
        began.wait()
        main = threading.main_thread().ident
        while sys._current_frames()[main].f_code.co_name not in WAITS: time.sleep(0)
        time.sleep(0.1)  # Python notices no signal that comes just before the thread goes to sleep
        print("waiting")

    WAITS = {"wait_on"}
    threading.Thread(target=say_when_main_waits, daemon=True).start()
    """

    def interrupted(self, folder: Path, code: str, **options: Any) -> Ended:
        process = start(folder, textwrap.dedent(self.PROGRAM) + textwrap.dedent(code), **options)
        assert process.stdout is not None
        line = process.stdout.readline()
        if line != "waiting\n":
            pytest.fail(f"the program said {line!r} and {end(process)}")
        process.send_signal(signal.SIGINT)
        return end(process)

    @pytest.mark.parametrize(
        "wait",
        [
            "h.remote(60).result()",
            "h.remote(60).exception()",
            "futures.gather(h.remote(60), h.remote(60)).result()",
            "futures.wait([h.remote(60), h.remote(60)])",
            "list(futures.as_completed([h.remote(60)]))",
            "list(futures.map(h, [60, 60]))",
            "next(h.options(stream=True).remote(60))",
            "h.remote(60); serve.delete('default')",
        ],
    )
    def test_ends_a_program_that_waits_at_once(self, tmp_path: Path, wait: str) -> None:
        ended = self.interrupted(tmp_path, f"h = serve.run(sleep.bind())\n{wait}")

        assert ended.status == -signal.SIGINT
        assert ended.seconds < AT_ONCE_S
        assert ended.err.count("Traceback") == 1
        assert ended.err.endswith("KeyboardInterrupt\n")
        assert "threadserve: exiting" not in ended.err

    @pytest.mark.parametrize(
        "wait",
        [
            "time.sleep(60)",
            "threading.Event().wait()",
            "def hold(): time.sleep(60)\nhold()",
        ],
    )
    def test_ends_a_program_that_does_something_else(self, tmp_path: Path, wait: str) -> None:
        code = f"WAITS = {{'<module>', 'wait', 'hold'}}\nserve.run(sleep.bind()).remote(60)\n{wait}"

        ended = self.interrupted(tmp_path, code)

        assert ended.status == -signal.SIGINT
        assert ended.seconds < AT_ONCE_S
        assert "threadserve: exiting" not in ended.err

    def test_ends_a_program_that_awaits(self, tmp_path: Path) -> None:
        ended = self.interrupted(
            tmp_path,
            """
            import asyncio
            WAITS = {"select"}
            h = serve.run(sleep.bind())
            async def main(): await h.remote(60)
            asyncio.run(main())
            """,
        )

        assert ended.status == -signal.SIGINT
        assert ended.seconds < AT_ONCE_S

    def test_ends_a_program_whose_app_is_still_starting(self, tmp_path: Path) -> None:
        ended = self.interrupted(
            tmp_path,
            """
            class Slow:
                def __init__(self): began.set(); time.sleep(60)
            serve.run(serve.deployment(Slow).bind())
            """,
        )

        assert ended.status == -signal.SIGINT
        assert ended.seconds < AT_ONCE_S

    def test_cancels_what_is_waited_for_and_nothing_else(self, tmp_path: Path) -> None:
        ended = self.interrupted(
            tmp_path,
            """
            @serve.deployment
            def wait(gate):
                began.set(); gate.wait(60); return "through"
            gate = threading.Event()
            h = serve.run(wait.bind())
            waited_for, other = h.remote(gate), h.remote(gate)
            try:
                waited_for.result()
            except KeyboardInterrupt:
                print(waited_for.cancelled(), type(waited_for.exception()).__name__, other.done())
            gate.set()
            print(other.result(), h.remote(gate).result())
            """,
        )

        assert (ended.status, ended.err) == (0, "")
        assert ended.out == "True RequestCancelledError False\nthrough through\n"

    @pytest.mark.parametrize(
        "wait",
        ["futures.gather(*calls).result()", "futures.wait(calls)", "list(futures.as_completed(calls))"],
    )
    def test_cancels_all_that_is_waited_for_together(self, tmp_path: Path, wait: str) -> None:
        ended = self.interrupted(
            tmp_path,
            f"""
            h = serve.run(sleep.bind())
            calls = [h.remote(60) for _ in range(3)]
            try:
                {wait}
            except KeyboardInterrupt:
                print([call.cancelled() for call in calls])
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "[True, True, True]\n", "")
        assert ended.seconds < AT_ONCE_S

    def test_while_the_end_is_waited_for_ends_that(self, tmp_path: Path) -> None:
        ended = self.interrupted(tmp_path, "serve.run(sleep.bind(), name='shop').remote(60)\nbegan.wait()")

        assert (ended.status, ended.out, ended.err) == (0, "", "")
        assert ended.seconds < AT_ONCE_S

    def test_of_a_serving_program_shuts_it_down(self, tmp_path: Path) -> None:
        ended = self.interrupted(
            tmp_path,
            """
            class Says:
                def __init__(self): began.set()
                def __del__(self): print("finalized")
            try:
                serve.run(serve.deployment(Says).bind(), blocking=True)
            except KeyboardInterrupt:
                print(serve.status())
            """,
        )

        assert (ended.status, ended.err) == (0, "")
        assert ended.out == "finalized\nServeStatus(applications={})\n"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no interval timers here")
class TestASignalHandlerOfTheUsers:
    @pytest.mark.slow
    @pytest.mark.parametrize("verb", ["serve.delete('default')", "serve.shutdown()"])
    def test_may_take_apps_down_whatever_it_interrupts(self, tmp_path: Path, verb: str) -> None:
        ended = run(
            tmp_path,
            f"""
            def handle(*_):
                handled.append(1)
                {verb}

            handled = []
            signal.signal(signal.SIGALRM, handle)
            end = time.monotonic() + 30
            rounds = 0
            while len(handled) < 200 and time.monotonic() < end:
                try:
                    h = serve.run(double.bind())
                except serve.ServeError:  # a shutdown that was left to a thread comes just now
                    continue
                begun = len(handled)
                signal.setitimer(signal.ITIMER_REAL, 0.0005 * (1 + rounds % 7))
                while len(handled) == begun:
                    h.remote(1)
                rounds += 1
            serve.shutdown()  # waits for what a thread is about to take down
            print(len(handled))
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "200\n", "")

    @pytest.mark.slow
    @pytest.mark.parametrize("verb", ["serve.delete('default')", "serve.shutdown()"])
    @pytest.mark.parametrize("moment", ["comes up", "is deleted", "is shut down"])
    def test_may_take_apps_down_while_the_main_thread_waits_for_one(
        self, tmp_path: Path, verb: str, moment: str
    ) -> None:
        ended = run(
            tmp_path,
            f"""
            import faulthandler; faulthandler.dump_traceback_later(20, exit=True)

            def strike():
                signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
                handled.wait(10)

            def handle(*_):
                {verb}
                handled.set()

            class Slow:
                def __init__(self):
                    if "{moment}" == "comes up":
                        strike()
                def __del__(self):
                    if "{moment}" != "comes up":
                        strike()

            handled = threading.Event()
            signal.signal(signal.SIGTERM, handle)
            try:
                serve.run(serve.deployment(Slow).bind())
            except serve.ServeError:  # it was taken down before it was up
                assert "{moment}" == "comes up"
            if "{moment}" == "is deleted":
                serve.delete("default")
            serve.shutdown()
            print(handled.is_set(), serve.status().applications)
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "True {}\n", "")

    @pytest.mark.slow
    def test_that_exits_ends_the_wait_for_what_runs_at_the_exit(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            def strike():
                began.wait()
                threading.Event().wait(0.3)  # until the exit waits, or a handler that exits would end the program itself
                signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

            signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
            threading.Thread(target=strike, daemon=True).start()
            serve.run(sleep.bind()).remote(60)
            """,
        )

        assert "Traceback" not in ended.err
        assert ended.seconds < 20


@HAS_FORK
class TestFork:
    def test_gives_the_child_a_clear_error_and_an_app_of_its_own(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            import warnings; warnings.simplefilter("ignore")
            h = serve.run(double.bind())
            stream = serve.run(count.bind(), name="other").options(stream=True).remote(1000)
            hung = serve.run(sleep.bind(), name="third").remote(0.5)
            next(stream)

            def show(ask):
                try: print("no error:", ask())
                except Exception as error: print(type(error).__name__, "forked" in str(error))

            pid = os.fork()
            if pid == 0:
                show(lambda: h.remote(1).result())
                show(lambda: h.options(timeout_s=60).remote(1).result())
                show(lambda: futures.gather(h.remote(1)).result())
                show(lambda: hung.result())
                show(lambda: list(stream))
                show(lambda: list(h.options(stream=True).remote(1)))
                print(serve.status())
                again = serve.run(double.bind())
                print(again.remote(21).result())
                show(lambda: h.remote(1).result())
                sys.exit(7)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(status, h.remote(1).result(), hung.result(), len(list(stream)))
            """,
        )

        assert (ended.status, ended.err) == (0, "")
        assert ended.out.splitlines() == [
            *["DeploymentUnavailableError True"] * 6,
            "ServeStatus(applications={})",
            "42",
            "DeploymentUnavailableError True",
            "7 2 slept 999",
        ]

    def test_by_multiprocessing_does_so_too(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            import multiprocessing, warnings; warnings.simplefilter("ignore")
            h = serve.run(double.bind())
            def work(queue):
                try: h.remote(1).result()
                except serve.DeploymentUnavailableError as error: queue.put("forked" in str(error))
                queue.put(serve.run(double.bind()).remote(21).result())
            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            process = context.Process(target=work, args=(queue,))
            process.start()
            print(queue.get(timeout=20), queue.get(timeout=20)); process.join(); print(process.exitcode)
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "True 42\n0\n", "")

    def test_out_of_a_running_call_leaves_the_parent_alone(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            import warnings; warnings.simplefilter("ignore")
            @serve.deployment
            def forks():
                pid = os.fork()
                if pid == 0:
                    try: h.remote().result()
                    except serve.DeploymentUnavailableError: os._exit(5)
                    os._exit(6)
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            h = serve.run(forks.bind())
            print(h.remote().result(), h.remote().result())
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "5 5\n", "")

    def test_leaves_the_child_of_a_body_in_its_replica(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            import warnings; warnings.simplefilter("ignore")
            @serve.deployment
            def forks():
                mine = serve.get_replica_context().replica_id
                pid = os.fork()
                if pid == 0:
                    os._exit(7 if serve.get_replica_context().replica_id == mine else 8)
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            print(serve.run(forks.bind()).remote().result())
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "7\n", "")

    def test_while_a_stream_is_busy_never_hangs_the_child(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            import warnings; warnings.simplefilter("ignore")
            stream = serve.run(count.bind()).options(stream=True).remote(1_000_000)
            for _ in range(20):
                for _ in range(50): next(stream)
                pid = os.fork()
                if pid == 0:
                    try: next(stream)
                    except serve.DeploymentUnavailableError: os._exit(0)
                    os._exit(1)
                assert os.waitpid(pid, 0)[1] == 0
            print("done")
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "done\n", "")


PROMPT = """
import threadserve as serve
@serve.deployment
def double(n):
    return 2 * n

h = serve.run(double.bind())
h.remote(21).result()
@serve.deployment
def double(n):
    return 200 * n

h is serve.run(double.bind())
h.remote(21).result()
h
h.remote(1)
h(5)
1 // 0
h.remote(2).result()
"""


class TestPrompt:
    def test_of_python_redeploys_and_goes_on(self, tmp_path: Path) -> None:
        ended = end(launch([sys.executable, "-i", "-q"], tmp_path, stdin=subprocess.PIPE), PROMPT)

        assert ended.status == 0
        assert ended.out.splitlines()[:3] == ["42", "True", "4200"]
        assert "<DeploymentHandle of default/double; call it with .remote(...)>" in ended.out
        assert "<DeploymentResponse of default/double.__call__: " in ended.out
        assert ended.out.splitlines()[-1] == "400"
        assert "write handle.remote(5)" in ended.err
        assert "threadserve: exiting" not in ended.err

    def test_with_a_running_loop_awaits_and_says_so(self, tmp_path: Path) -> None:
        cells = """
import threadserve as serve
double = serve.deployment(lambda n: 2 * n, name="double")
h = serve.run(double.bind())
print(await h.remote(21))
h.remote(21).result()
print([n async for n in h.options(stream=True).remote(1)])
print(await h.remote(4))
"""
        ended = end(launch([sys.executable, "-m", "asyncio"], tmp_path, stdin=subprocess.PIPE), cells)

        said = ended.out + ended.err
        assert ended.status == 0
        assert "42" in said
        assert (
            "cannot block on default/double.__call__ inside a running event loop; await the response" in said
        )
        assert "did not return a generator" in said
        assert "8\n" in ended.out

    def test_after_a_ctrl_c_still_waits_for_what_runs(self, tmp_path: Path) -> None:
        cells = """
import threadserve as serve, time, threading
began = threading.Event()
@serve.deployment
def work():
    began.set(); time.sleep(0.2); print("worked")

raise KeyboardInterrupt
_ = serve.run(work.bind()).remote()
began.wait()
"""
        ended = end(launch([sys.executable, "-i", "-q"], tmp_path, stdin=subprocess.PIPE), cells)

        assert ended.out.endswith("worked\n")


class TestWaysToStart:
    PROGRAM = """
import threadserve as serve
@serve.deployment
def add(n): return n + 1
print(serve.run(add.bind()).remote(1).result())
"""

    def test_as_a_command(self, tmp_path: Path) -> None:
        ended = end(launch([sys.executable, "-c", self.PROGRAM], tmp_path))

        assert (ended.status, ended.out, ended.err) == (0, "2\n", "")

    def test_as_a_module(self, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text(self.PROGRAM)

        ended = end(launch([sys.executable, "-m", "program"], tmp_path))

        assert (ended.status, ended.out, ended.err) == (0, "2\n", "")

    def test_from_standard_input(self, tmp_path: Path) -> None:
        ended = end(launch([sys.executable, "-"], tmp_path, stdin=subprocess.PIPE), self.PROGRAM)

        assert (ended.status, ended.out, ended.err) == (0, "2\n", "")

    @pytest.mark.parametrize("flags", [["-O"], ["-X", "dev"], ["-W", "error"], ["-B", "-s", "-u"]])
    def test_with_flags_that_make_python_stricter(self, tmp_path: Path, flags: list[str]) -> None:
        ended = end(launch([sys.executable, *flags, "-c", self.PROGRAM], tmp_path))

        assert (ended.status, ended.out, ended.err) == (0, "2\n", "")


class TestTools:
    def test_that_trace_see_user_code_on_worker_threads(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            seen = set()
            def trace(frame, event, arg):
                if frame.f_code.co_name in ("traced_def", "traced_async", "traced_items"):
                    seen.add((frame.f_code.co_name, event))
                return trace
            threading.settrace(trace)

            class Traced:
                def traced_def(self):
                    return 1
                async def traced_async(self):
                    return 2
                def traced_items(self):
                    yield 3
            h = serve.run(serve.deployment(Traced, inline=False).bind())  # this thread is not traced
            print(h.traced_def.remote().result(), h.traced_async.remote().result())
            print(*h.options(stream=True).traced_items.remote())
            print(sorted({name for name, event in seen if event == "line"}))
            """,
        )

        assert (ended.status, ended.err) == (0, "")
        assert ended.out == "1 2\n3\n['traced_async', 'traced_def', 'traced_items']\n"

    def test_that_profile_see_it_too(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            seen = set()
            threading.setprofile(lambda frame, event, arg: seen.add(frame.f_code.co_name))
            @serve.deployment(inline=False)  # this thread is not profiled
            def profiled(): return 1
            print(serve.run(profiled.bind()).remote().result(), "profiled" in seen)
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "1 True\n", "")

    def test_breakpoint_stops_in_a_body(self, tmp_path: Path) -> None:
        process = start(
            tmp_path,
            """
            @serve.deployment
            def stops(n):
                breakpoint()
                return n + 1
            print("result", serve.run(stops.bind()).remote(41).result())
            """,
            stdin=subprocess.PIPE,
        )

        ended = end(process, "p n * 1000\np threading.current_thread().name\nc\n")

        assert (ended.status, ended.err) == (0, "")
        assert "41000" in ended.out
        assert "'default/stops#0 worker 1'" in ended.out
        assert "result 42" in ended.out

    def test_the_hook_for_exceptions_of_threads_is_called_for_threads_of_a_body(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            threading.excepthook = lambda args: print(args.exc_type.__name__, args.thread.name)
            @serve.deployment
            def starts():
                thread = threading.Thread(target=lambda: 1 // 0, name="mine")
                thread.start(); thread.join()
                return "fine"
            print(serve.run(starts.bind()).remote().result())
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "ZeroDivisionError mine\nfine\n", "")


class TestOutput:
    def test_is_the_programs_alone_whatever_happens(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            class Bad:
                def __init__(self): raise ValueError("no")
            h = serve.run(double.bind()); serve.run(double.bind())
            try: serve.run(serve.deployment(Bad).bind(), name="bad")
            except serve.ReplicaStartError: pass
            h.remote("x", 1).exception(); h.remote(1).cancel(); h.nothing.remote(1).result()
            r = h.remote(1); r.result(); r.add_done_callback(lambda _: 1 // 0)
            serve.run(sleep.options(graceful_shutdown_timeout_s=0).bind(), name="s").remote(60); began.wait()
            serve.delete("s"); serve.shutdown()
            """,
        )

        assert (ended.status, ended.out, ended.err) == (0, "", "")

    def test_of_the_log_tells_the_life_of_apps_to_who_asks(self, tmp_path: Path) -> None:
        ended = run(
            tmp_path,
            """
            import logging
            logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
            serve.run(double.bind(), name="shop"); serve.run(double.bind(), name="shop"); serve.delete("shop")
            """,
        )

        assert (ended.status, ended.out) == (0, "")
        life = ["deploying app 'shop': double", "app 'shop' is running"]
        assert ended.err.splitlines() == [
            f"threadserve INFO {message}" for message in (*life, *life, "deleting app 'shop'")
        ]


def test_a_graph_of_plain_functions_starts_no_event_loop(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        class Sum:
            def __init__(self, child): self.child = child
            def __call__(self, to):
                one, two = self.child.remote(1), self.child.remote(2)
                return sum(futures.gather(one, two, self.child.remote(one)).result())
            def items(self, to):
                yield from futures.map(self.child, range(to))
        h = serve.run(serve.deployment(Sum, num_replicas=2).bind(double.bind()))
        r = h.options(timeout_s=60).remote(3)
        r.add_done_callback(lambda _: None)
        print(r.result(), h.remote(1).future.result(), list(h.options(stream=True).items.remote(3)))
        serve.run(double.bind(), name="other"); serve.shutdown()
        print("asyncio" in sys.modules)
        """,
    )

    assert (ended.status, ended.out, ended.err) == (0, "10 10 [0, 2, 4]\nFalse\n", "")
