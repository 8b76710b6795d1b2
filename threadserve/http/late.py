"""Holds a port for a server that starts with its first client."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from threadserve.concurrency.doorbell import Doorbell
from threadserve.http.listener import listen, url_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.app.config import HTTPOptions
    from threadserve.concurrency.kernel import Kernel, Lock
    from threadserve.http.routes import Route
    from threadserve.http.server import Server

__all__ = ["LateServer"]

_log = logging.getLogger("threadserve")


class LateServer:
    """A server whose port is taken at once, and which starts when the first client comes.

    A client finds the port open and waits a moment longer for its first answer; who needs no HTTP pays nothing for it.

    Args:
        kernel: Gives the thread that waits for the client, and the server's.
        options: Where to serve, and how.
        routes: As the Server's.
        patience: As the Server's.

    Raises:
        ServeError: The port is taken, or cannot be had for another reason.
    """

    def __init__(
        self,
        kernel: Kernel,
        options: HTTPOptions,
        routes: Callable[[], dict[str, Route]],
        patience: Callable[[], float],
    ) -> None:
        self._kernel = kernel
        self._patience = patience
        self._options = options
        self._routes = routes
        self._patience = patience
        self._listener = listen(options.host, options.port)
        self._doorbell = Doorbell(self._listener)
        self._lock: Lock = kernel.lock()
        self._server: Server | None = None  # guarded by _lock, as below
        self._is_stopped = False
        self.port: int = self._listener.getsockname()[1]
        """Where it listens."""
        self._porter = kernel.spawn("threadserve porter", self._open)

    def __repr__(self) -> str:
        return f"<LateServer {self.url} {'stopped' if self._is_stopped else 'listening'}>"

    @property
    def url(self) -> str:
        """Where clients on this machine find it, such as ``http://127.0.0.1:8000``."""
        return url_of(self._options.host, self.port)

    def stop(self) -> None:
        """Give the port back; see ``Server.stop``."""
        with self._lock:
            was_stopped, self._is_stopped = self._is_stopped, True
            server, self._server = self._server, None
        self._doorbell.stop()
        if server is not None:
            server.stop()
        elif not was_stopped:
            self._porter.join()

    def _open(self) -> None:
        """Wait for the first client, then start the server; the porter's whole life."""
        if not self._doorbell.wait():
            self._listener.close()
            return
        from threadserve.http.server import Server

        server = Server(self._kernel, self._options, self._routes, self._patience, self._listener)
        try:
            server.start()
        except Exception:
            _log.exception("HTTP could not be served at %s", self.url)
            self._listener.close()
            return
        with self._lock:
            is_stopped = self._is_stopped
            if not is_stopped:
                self._server = server
        if is_stopped:
            server.stop()
