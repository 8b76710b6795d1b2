"""The server: uvicorn on a thread of the kernel's, on a socket that is bound before anything else happens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import uvicorn

from threadserve.call.request import current_request
from threadserve.concurrency.loops import run_coroutine
from threadserve.concurrency.outcome import Error, Outcome, capture
from threadserve.errors import ServeError
from threadserve.http.listener import listen, url_of
from threadserve.http.routes import ConnectionCut, Route, Routes

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from threadserve.app.config import HTTPOptions
    from threadserve.concurrency.kernel import Kernel, Thread

__all__ = ["Server"]

_GRACE_S = 20.0  # as long as a deployment gives its requests, unless it says otherwise
_LEAST_S = 0.25  # for what needs no patience: connections that are idle are closed one turn of the loop later


class Server:
    """Serves HTTP from ``start`` to ``stop``.

    Args:
        kernel: Gives the thread and its event loop.
        options: Where to serve, and how.
        routes: Asked with each request: route prefix -> (app, ingress handle). Must not block.
        patience: Asked when it stops: how many seconds what runs may take to finish. Must not block.
        listener: A socket that listens already; without one, `options` say where.
    """

    def __init__(
        self,
        kernel: Kernel,
        options: HTTPOptions,
        routes: Callable[[], dict[str, Route]],
        patience: Callable[[], float] = lambda: _GRACE_S,
        listener: socket.socket | None = None,
    ) -> None:
        self._kernel = kernel
        self._patience = patience
        self._listener = listener
        self._options = options
        self._app = Routes(routes, options.request_timeout_s)
        self._uvicorn: _Uvicorn | None = None
        self._thread: Thread | None = None
        self._has_ended = kernel.waiter()
        self._outcome: Outcome | None = None
        self.port = options.port
        """Where it listens; not 0 once it has been started."""

    def __repr__(self) -> str:
        return f"<Server {self.url} {'stopped' if self._thread is None else 'serving'}>"

    @property
    def url(self) -> str:
        """Where clients on this machine find it, such as ``http://127.0.0.1:8000``."""
        return url_of(self._options.host, self.port)

    def start(self) -> None:
        """Begin to serve. Blocks until connections are accepted. Once.

        Raises:
            ServeError: The port is taken, or cannot be had for another reason.
        """
        listener = self._listener or listen(self._options.host, self._options.port)
        self.port = listener.getsockname()[1]
        ready = self._kernel.waiter()
        self._uvicorn = _Uvicorn(_config(self._app, self._options), ready.set)
        self._thread = self._kernel.spawn("threadserve http", lambda: self._serve(listener, ready.set))
        try:
            ready.wait()
        except BaseException:  # Ctrl-C
            self.stop()
            raise
        if isinstance(self._outcome, Error):
            self.stop()
            raise ServeError(f"cannot serve HTTP at {self.url}") from self._outcome.fetch()

    def stop(self) -> None:
        """Accept no more, let what runs finish, and end; what runs when the patience is at its end is cancelled.

        Blocks until all is done; Ctrl-C skips the rest of that and goes on as KeyboardInterrupt. From inside a request,
        which could not finish, it does not wait. May be repeated, which does not wait either. Safe from any thread.
        """
        thread, self._thread = self._thread, None
        if self._uvicorn is None or thread is None:
            return
        self._uvicorn.finish(max(_LEAST_S, self._patience()))
        if current_request() is not None:
            return
        try:
            self._has_ended.wait()  # Ctrl-C may end this wait; a join it could not
        except KeyboardInterrupt:
            self._uvicorn.force_exit = True
            raise
        thread.join()

    def _serve(self, listener: socket.socket, tell: Callable[[], None]) -> None:
        """Run the server to its end; the thread's whole life."""
        assert self._uvicorn is not None
        log = logging.getLogger("uvicorn.error")
        log.addFilter(_has_no_news)
        try:
            self._outcome = capture(run_coroutine, self._kernel, self._uvicorn.serve_on(listener))
        finally:
            log.removeFilter(_has_no_news)
            listener.close()
            tell()
            self._has_ended.set()


class _Uvicorn(uvicorn.Server):
    """A uvicorn that says when it has started, and leaves nothing behind."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve until ``finish``; connections that would not end by then are cut."""
        await self.serve([listener])
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def finish(self, timeout_s: float) -> None:
        """Have the server end within `timeout_s` seconds. Any thread: it looks every tenth of a second."""
        self.config.timeout_graceful_shutdown = timeout_s  # type: ignore[assignment]
        self.should_exit = True


def _config(app: Routes, options: HTTPOptions) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        root_path=options.root_path,
        timeout_keep_alive=options.keep_alive_timeout_s,  # type: ignore[arg-type]  # asyncio takes any number
    )


def _has_no_news(record: logging.LogRecord) -> bool:
    """Keep from uvicorn's log that a connection was cut: the reason for it stands in ours."""
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionCut))
