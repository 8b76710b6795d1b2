from __future__ import annotations

import contextlib
import re
import signal
import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Terminal

pytestmark = pytest.mark.slow

APPS = """
import threadserve as serve
print("imported")

@serve.deployment
class Echo:
    def __init__(self, word="hello"):
        self.word = word

    def __call__(self):
        print("called", flush=True)
        return self.word

@serve.deployment
class Broken:
    def __init__(self):
        raise ValueError("the model is missing")

@serve.deployment
class Failing:
    def __call__(self):
        raise KeyError("what the handler lost")

@serve.deployment
class Slow:
    def __call__(self):
        import time
        print("started", flush=True)
        time.sleep(0.5)
        return "answered"

@serve.deployment(graceful_shutdown_timeout_s=60)
class Endless:
    def __call__(self):
        import time
        print("started", flush=True)
        time.sleep(60)

echo, broken, failing, slow, endless = Echo.bind(), Broken.bind(), Failing.bind(), Slow.bind(), Endless.bind()

def build(args):
    return Echo.bind(args["word"])
"""


@pytest.fixture
def apps(terminal: Terminal) -> Terminal:
    terminal.write("apps.py", APPS)
    return terminal


def get(url: str) -> str:
    return httpx.get(url, timeout=20, trust_env=False).text


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_run_serves_until_it_is_told_to_end(apps: Terminal, signum: signal.Signals) -> None:
    command = apps.start("apps:echo", "--port", "0")
    url = command.url()
    answer = get(url)

    command.process.send_signal(signum)
    status, out, err = command.end()

    assert answer == "hello"
    assert status == 0
    assert out == "imported\ncalled\n"  # the user's, and nothing of ours
    assert "".join(command.said) + err == f"Serving app 'default' at {url} (Ctrl-C stops)\n"


def test_run_answers_what_it_has_begun(apps: Terminal) -> None:
    command = apps.start("apps:slow", "--port", "0")
    url = command.url()
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(get(url)))
    asking.start()
    assert command.process.stdout is not None
    while "started" not in command.process.stdout.readline():
        pass

    command.process.send_signal(signal.SIGINT)
    asking.join()

    assert command.end()[0] == 0
    assert answers == ["answered"]


def test_a_second_ctrl_c_skips_the_rest_of_the_drain(apps: Terminal) -> None:
    command = apps.start("apps:endless", "--port", "0")
    url = command.url()
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2].strip("/")))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert command.process.stdout is not None
        while "started" not in command.process.stdout.readline():
            pass
        began = time.monotonic()
        command.process.send_signal(signal.SIGINT)
        with contextlib.suppress(httpx.ConnectError):  # it has begun to drain when it listens no more
            while True:
                httpx.get(f"{url}-/healthz", timeout=20, trust_env=False)

        command.process.send_signal(signal.SIGINT)
        status, _, err = command.end()

    assert time.monotonic() - began < 20
    assert status != 0
    assert "Endless" in err  # what has been given up is named


def test_name_prefix_and_arguments_are_taken_from_the_command_line(apps: Terminal) -> None:
    options = ["--port", "0", "--host", "localhost", "--name", "shop", "--route-prefix", "/echo"]
    command = apps.start("apps:build", "word=a=b", *options)

    url = command.url()

    assert re.fullmatch(r"http://localhost:\d+/echo", url)
    assert get(url) == "a=b"
    assert httpx.get(f"{url[:-5]}/-/routes", trust_env=False).json() == {"/echo": "shop"}


def test_app_dir_is_looked_in_first(terminal: Terminal) -> None:
    (terminal.folder / "inner").mkdir()
    terminal.write("inner/apps.py", APPS)

    assert get(terminal.start("apps:echo", "--port", "0", "--app-dir", "inner").url()) == "hello"
    assert get(terminal.start("apps.echo", "--port", "0", "-d", "inner").url()) == "hello"


def test_what_a_handler_raises_is_shown(apps: Terminal) -> None:
    command = apps.start("apps:failing", "--port", "0")

    answer = get(command.url())
    command.process.send_signal(signal.SIGINT)
    status, _, err = command.end()

    assert (status, answer) == (0, "Internal Server Error")
    assert "KeyError: 'what the handler lost'" in err
    assert 'raise KeyError("what the handler lost")' in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["app:echo"], r"there is no module 'app'; did you mean 'apps'\?"),
        (["apps:ecko"], r"module 'apps' has no attribute 'ecko'; did you mean 'echo'\?"),
        (["apps"], r"'apps' names no attribute; write module:attribute"),
        (["apps.py:echo"], r"names a file; write module:attribute"),
        (["apps:Echo"], r"'apps:Echo' is a deployment, not an application.*Echo\.bind\("),
        (["apps:serve"], r"is no application"),
        (["apps:echo", "a=b"], r"takes no arguments"),
        (["apps:build"], r"KeyError: 'word'"),
        (["apps:echo", "--app-dir", "nowhere"], r"app_dir 'nowhere' is not a folder"),
        (["apps:echo", "--route-prefix", "echo"], r"route_prefix must start with '/'"),
        (["apps:echo", "--name", ""], r"name of an app must be a non-empty string"),
        (["apps:echo", "--host", "203.0.113.1"], r"cannot serve HTTP on 203\.0\.113\.1:\d+: "),
    ],
)
def test_a_mistake_is_one_clear_line_and_status_1(apps: Terminal, arguments: list[str], said: str) -> None:
    status, _, err = apps.run(*arguments, "--port", "0")

    last = err.splitlines()[-1]
    assert status == 1
    assert re.match(f"Error: .*{said}", last), err
    if "KeyError" not in said:  # that is raised by the user's code, and has the user's part of the traceback
        assert err == f"{last}\n"


def test_a_taken_port_is_one_clear_line_and_status_1(apps: Terminal) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]

        status, _, err = apps.run("apps:echo", "--port", str(port))

    assert status == 1
    assert re.fullmatch(rf"Error: cannot serve HTTP on 127\.0\.0\.1:{port}: the port is taken.*\n", err)


def test_a_constructor_that_fails_shows_the_users_part_of_its_traceback(apps: Terminal) -> None:
    status, _, err = apps.run("apps:broken", "--port", "0")

    lines = err.splitlines()
    assert status == 1
    assert lines[0] == "Traceback (most recent call last):"
    assert "in __init__" in lines[1]
    assert "ValueError: the model is missing" in lines
    assert lines[-1].startswith("Error: ")
    assert "default/Broken" in lines[-1]
    assert "/threadserve/" not in err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_like_this\n", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("broken = (\n", "SyntaxError: '(' was never closed"),
    ],
)
def test_a_module_that_fails_shows_its_own_failure(terminal: Terminal, source: str, said: str) -> None:
    terminal.write("apps.py", source)

    status, _, err = terminal.run("apps:app", "--port", "0")

    assert status == 1
    assert err.splitlines()[-1].startswith(f"Error: {said}")
    assert "/threadserve/" not in err
