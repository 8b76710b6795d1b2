"""``make demo``: serve a composed app over HTTP, call it from another process, show both sides, stop."""

from __future__ import annotations

import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = "Hola Dora"
START_S = 30.0
CLIENT_S = 60.0
STOP_S = 15.0


class Program:
    """A child process whose output is shown as it comes, every line behind the program's name."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.lines: list[str] = []
        print(f"$ {shlex.join([Path(command[0]).name, *command[1:]])}", flush=True)
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._show, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def interrupt(self) -> None:
        print(f"^C to the {self.name}", flush=True)
        self._process.send_signal(signal.SIGINT)

    def wait(self, timeout_s: float) -> int:
        """Wait for the end and for the last line; a program that outstays `timeout_s` is killed."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise SystemExit(f"demo: the {self.name} was still running after {timeout_s:.0f} s") from None
        self._reader.join(5)
        return status

    def kill(self) -> None:
        if self.is_running:
            self._process.kill()
            self._process.wait()

    def _show(self, output: IO[str]) -> None:
        for line in output:
            self.lines.append(line.rstrip())
            print(f"[{self.name}] {line.rstrip()}", flush=True)


def main() -> None:
    # A shell starts background jobs with SIGINT ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    threadserve = shutil.which("threadserve", path=str(Path(sys.executable).parent))
    command = [threadserve] if threadserve else [sys.executable, "-m", "threadserve"]
    server = Program(
        "server",
        [*command, "run", "hello:language_classifier", "--app-dir", "examples", "--port", str(port)],
    )
    try:
        wait_until_served(f"{url}-/healthz", server)
        client = Program("client", [sys.executable, "examples/hello_client.py", url])
        try:
            status = client.wait(CLIENT_S)
        finally:
            client.kill()
        check(status == 0, f"the client ended with status {status}")
        last = client.lines[-1] if client.lines else ""
        check(last.endswith(EXPECTED), f"the client's last line is {last!r}, not {EXPECTED!r}")
        check(server.is_running, "the server did not outlive its client")
        server.interrupt()
        status = server.wait(STOP_S)
        check(status == 0, f"the server ended with status {status}")
    finally:
        server.kill()
    print("demo: served, called, stopped")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_served(url: str, server: Program) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        check(server.is_running, "the server ended before it served")
        try:
            with opener.open(url, timeout=2):
                return
        except OSError:  # nobody listens yet, or it does not say 200 yet
            time.sleep(0.05)
    raise SystemExit(f"demo: nothing served at {url} after {START_S:.0f} s")


def check(ok: bool, otherwise: str) -> None:
    if not ok:
        raise SystemExit(f"demo: {otherwise}")


if __name__ == "__main__":
    main()
