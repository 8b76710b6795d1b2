"""A server that takes its port at once and starts with its first client."""

from __future__ import annotations

import socket
import sys
from typing import Any

import httpx
import pytest

from threadserve.app.config import HTTPOptions
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ServeError
from threadserve.http.late import LateServer


def late_server(port: int = 0) -> LateServer:
    return LateServer(RealKernel(), HTTPOptions(port=port), dict[str, Any], lambda: 1.0)


def can_be_bound(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_the_first_client_is_answered_and_the_next_one_too() -> None:
    server = late_server()
    try:
        with httpx.Client(trust_env=False, timeout=30) as client:
            answers = [client.get(f"{server.url}/-/healthz").status_code for _ in range(2)]
    finally:
        server.stop()

    assert answers == [503, 503]
    assert can_be_bound(server.port)


def test_without_a_client_the_port_is_held_until_stop_and_then_free() -> None:
    server = late_server()
    assert not can_be_bound(server.port)

    server.stop()

    assert can_be_bound(server.port)
    assert "stopped" in repr(server)
    server.stop()


def test_a_taken_port_is_told_at_once() -> None:
    first = late_server()
    try:
        with pytest.raises(ServeError, match=f"127.0.0.1:{first.port}: the port is taken"):
            late_server(first.port)
    finally:
        first.stop()


def test_nothing_of_uvicorn_is_needed_to_take_a_port() -> None:
    import subprocess

    program = (
        "import sys, threadserve.http.late\n"
        "assert not {'uvicorn', 'starlette', 'asyncio'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
