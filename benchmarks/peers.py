"""Who runs a function for whom: threadserve, and what else one could use, each behind the same two verbs.

A peer is opened with a function and a number of workers. Each caller then connects, and gets a client: `submit(value)`
makes a call and returns something at once, `result(that)` waits for its value.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib
import importlib.metadata
import itertools
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import threadserve as serve
from threadserve.app.importer import load_application

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from benchmarks.measure import Run

__all__ = [
    "ALL",
    "ASYNCIO",
    "DIRECT",
    "EXECUTOR",
    "HANDED_OFF",
    "INTERPRETERS",
    "NO_INLINE",
    "OURS",
    "OURS_ONE_AT_A_TIME",
    "PYKKA",
    "RAY",
    "RAY_LOCAL",
    "SIMPLE_QUEUE",
    "THREADS",
    "Client",
    "Connect",
    "Peer",
    "Work",
    "deploy",
    "is_installed",
    "open_peers",
    "own_app",
    "present",
    "ray_serve",
]

Work = Callable[[Any], Any]

NO_INLINE: Any = {"inline": False}
"""The option that keeps a deployment's calls off the threads of those who wait for them."""


class Client(NamedTuple):
    """What one caller calls with."""

    submit: Callable[[Any], Any]
    result: Callable[[Any], Any]

    def call(self, value: Any) -> Any:
        return self.result(self.submit(value))


Connect = Callable[[], Client]


@dataclass(frozen=True)
class Peer:
    """Somebody who runs functions."""

    name: str
    open: Callable[[Work, int], AbstractContextManager[Connect]]
    package: str = ""
    """Has to be installed."""
    is_slow: bool = False
    """A call takes milliseconds."""
    is_serve: bool = False
    """Its workers are replicas, each with slots of its own."""

    @property
    def missing(self) -> str:
        """Say why it cannot take part; empty if it can."""
        if not self.package or is_installed(self.package):
            return ""
        return f"{self.name}: no {self.package} installed here, so it is left out"


def is_installed(package: str) -> bool:
    """Tell whether a package is installed. A folder that happens to have its name is not taken for it."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def present(peers: Sequence[Peer], run: Run) -> list[Peer]:
    """Return those that take part in a run, and note why the others do not."""
    for peer in peers:
        if peer.missing:
            run.note(peer.missing)
    return [peer for peer in peers if not peer.missing and peer.name not in run.without]


def open_peers(
    stack: contextlib.ExitStack, peers: Sequence[Peer], work: Work, workers: int, run: Run
) -> dict[str, Connect]:
    """Open those that take part, for as long as `stack` lives."""
    return {peer.name: stack.enter_context(peer.open(work, workers)) for peer in present(peers, run)}


@contextlib.contextmanager
def _direct(work: Work, _workers: int) -> Generator[Connect]:
    yield lambda: Client(work, lambda value: value)


@contextlib.contextmanager
def _simple_queue(work: Work, workers: int) -> Generator[Connect]:
    """Two queues and nothing else. Answers come to their caller in the order in which they are made."""
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def serve_all() -> None:
        while (call := inbox.get()) is not None:
            replies, value = call
            replies.put(work(value))

    def connect() -> Client:
        replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        return Client(lambda value: inbox.put((replies, value)), lambda _: replies.get())

    threads = [threading.Thread(target=serve_all, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield connect
    finally:
        for _ in threads:
            inbox.put(None)
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def _executor(work: Work, workers: int) -> Generator[Connect]:
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:
        yield lambda: Client(lambda value: executor.submit(work, value), lambda future: future.result())


@contextlib.contextmanager
def _asyncio(work: Work, _workers: int) -> Generator[Connect]:
    """An event loop on a thread of its own, entered with run_coroutine_threadsafe."""

    async def coroutine(value: Any) -> Any:
        return work(value)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def submit(value: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine(value), loop)

    try:
        yield lambda: Client(submit, lambda future: future.result())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def _pykka(work: Work, workers: int) -> Generator[Connect]:
    pykka: Any = importlib.import_module("pykka")

    class Worker(pykka.ThreadingActor):  # type: ignore[misc] # an extra, so the checkers know nothing of it
        use_daemon_thread = True

        def run(self, value: Any) -> Any:
            return work(value)

    actors = [Worker.start() for _ in range(workers)]
    proxies: Any = [actor.proxy() for actor in actors]
    turns = itertools.cycle(proxies) if workers > 1 else itertools.repeat(proxies[0])
    try:
        yield lambda: Client(lambda value: next(turns).run(value), lambda future: future.get())
    finally:
        for actor in actors:
            actor.stop()


def deploy(work: Work, workers: int = 1, **options: Any) -> AbstractContextManager[Connect]:
    """Deploy the function with these options."""
    return _deploy(work, workers, options)


@contextlib.contextmanager
def _deploy(work: Work, workers: int, options: dict[str, Any]) -> Generator[Connect]:
    deployment: Any = serve.deployment(work, name="work", num_replicas=workers, **options)
    with serve.running(deployment.bind()) as handle:
        yield lambda: Client(handle.remote, lambda response: response.result())


def own_app(import_string: str, method: str, arguments: list[Any]) -> Peer:
    """Make a peer of an app of the user's. The method of its ingress gets these arguments, or in a chain the response before.

    Raises:
        ImportStringError: There is no such app.
    """
    app = load_application(import_string)

    @contextlib.contextmanager
    def opened(_work: Work, _workers: int) -> Generator[Connect]:
        with serve.running(app) as handle:
            call = handle.options(method_name=method).remote

            def submit(value: Any) -> Any:
                return call(value) if isinstance(value, serve.DeploymentResponse) else call(*arguments)

            yield lambda: Client(submit, lambda response: response.result())

    return Peer(f"{OURS.name}, {import_string}", opened)


def ray_serve(*, is_local: bool) -> Any:
    """Return Ray's module `serve`, quiet, with a cluster on this machine behind it unless all is to stay in here."""
    if not is_local:
        ray: Any = importlib.import_module("ray")
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    module = importlib.import_module("ray.serve")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return module


@contextlib.contextmanager
def _ray(work: Work, workers: int, *, is_local: bool) -> Generator[Connect]:
    serve_by_ray = ray_serve(is_local=is_local)
    name = f"benchmark-{next(_numbers)}"

    def run(value: Any) -> Any:
        return work(value)

    app = (
        serve_by_ray.deployment(run).options(num_replicas=workers, ray_actor_options={"num_cpus": 0.1}).bind()
    )
    handle = serve_by_ray.run(app, name=name, route_prefix=None, _local_testing_mode=is_local)
    try:
        yield lambda: Client(handle.remote, lambda response: response.result())
    finally:
        if not is_local:
            serve_by_ray.delete(name)


_numbers = itertools.count(1)

OURS = Peer("threadserve", deploy, is_serve=True)
HANDED_OFF = Peer(
    "threadserve, inline=False", lambda work, workers: deploy(work, workers, **NO_INLINE), is_serve=True
)
INTERPRETERS = Peer(
    "threadserve, interpreters",
    lambda work, workers: deploy(work, workers, replica_type="interpreter"),
    is_serve=True,
)
OURS_ONE_AT_A_TIME = Peer(
    "threadserve", lambda work, workers: deploy(work, workers, max_ongoing_requests=1), is_serve=True
)
DIRECT = Peer("direct call", _direct)
SIMPLE_QUEUE = Peer("SimpleQueue", _simple_queue)
EXECUTOR = Peer("executor", _executor)
ASYNCIO = Peer("asyncio thread", _asyncio)
PYKKA = Peer("Pykka", _pykka, package="pykka")
RAY_LOCAL = Peer(
    "Ray local",
    lambda work, workers: _ray(work, workers, is_local=True),
    package="ray",
    is_slow=True,
    is_serve=True,
)
RAY = Peer(
    "Ray Serve",
    lambda work, workers: _ray(work, workers, is_local=False),
    package="ray",
    is_slow=True,
    is_serve=True,
)

THREADS = [SIMPLE_QUEUE, EXECUTOR, PYKKA]
"""Rivals that hand a call to a thread: the floor first."""
ALL = [OURS, HANDED_OFF, DIRECT, *THREADS, ASYNCIO, RAY_LOCAL, RAY]
