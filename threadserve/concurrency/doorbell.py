"""Waits until somebody connects to a socket, or until it is told to stop."""

from __future__ import annotations

import select
import socket

__all__ = ["Doorbell"]


class Doorbell:
    """One wait for a client of a listening socket. ``wait`` is for one thread, ``stop`` for any."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._inside, self._outside = socket.socketpair()

    def wait(self) -> bool:
        """Wait for a client, who stays in the socket's backlog: True. False when ``stop`` came first. Blocks. Once."""
        try:
            ready, _, _ = select.select([self._listener, self._inside], [], [])
        finally:
            self._inside.close()
        return self._inside not in ready

    def stop(self) -> None:
        """Let ``wait`` return. Never blocks; may be repeated."""
        self._outside.close()
