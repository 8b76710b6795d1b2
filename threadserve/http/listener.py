"""Takes a port, before anything else happens."""

from __future__ import annotations

import errno
import os
import socket

from threadserve.errors import ServeError

__all__ = ["listen", "url_of"]

_REACHED_AT = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # listening everywhere is no address


def url_of(host: str, port: int) -> str:
    """Return where clients on this machine find what listens there."""
    host = _REACHED_AT.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; only then is it certain that the port is ours."""
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        # Naming the protocol matters: only where it is named, asyncio spares us Nagle's 40 ms per response.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _refusal(host, port, error) from error
    try:
        if os.name == "posix":  # to take a port again soon after; elsewhere it would mean to share one
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _refusal(host, port, error) from error
    return listener


def _refusal(host: str, port: int, error: OSError) -> ServeError:
    if error.errno == errno.EADDRINUSE:
        return ServeError(
            f"cannot serve HTTP on {host}:{port}: the port is taken; name another one, or 0 for any free one"
        )
    return ServeError(f"cannot serve HTTP on {host}:{port}: {error.strerror or error}")
