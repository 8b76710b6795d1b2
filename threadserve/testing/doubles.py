"""Doubles: a fake in the place of a deployment, and a spy on a handle.

model = fake(returns=0.9)
with serve.running(Shop.bind(Model.bind()).replace(Model, model)) as handle:
    assert handle.buy.remote("book").result() == "sold"
assert model.calls == [Call("score", ("book",))]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from threadserve.app.application import Application, Binding
from threadserve.app.config import DeploymentConfig
from threadserve.app.deployment import checked_name
from threadserve.call.response import DeploymentResponse
from threadserve.call.stream import DeploymentResponseGenerator
from threadserve.concurrency.outcome import Error
from threadserve.concurrency.real import RealKernel
from threadserve.handle import DeploymentHandle

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from typing import Unpack

    from threadserve.app.config import DeploymentOptions
    from threadserve.call.request import Request, Router
    from threadserve.concurrency.kernel import Kernel, Lock

__all__ = ["Answering", "Call", "Fake", "Spy", "fake", "spy"]

T_co = TypeVar("T_co", covariant=True)

_NOT_CALLS = ("check_health", "reconfigure")


@dataclass(frozen=True)
class Call:
    """One call: two are equal when method and arguments are."""

    method: str = "__call__"
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    answer: Any = field(default=None, compare=False, repr=False)
    """In the calls of a spy: the DeploymentResponse, or the DeploymentResponseGenerator, which is the caller's to read."""
    is_stream: bool = field(default=False, compare=False, repr=False)
    """Whether it was, or is to be, made with ``stream=True``."""

    def on(self, handle: DeploymentHandle[Any]) -> Any:
        """Make the call and return its response, or the generator of its items. Never blocks."""
        options: dict[str, Any] = {"method_name": self.method, "stream": self.is_stream}
        return handle.options(**options).remote(*self.args, **self.kwargs)


class Answering(Protocol):
    """How a fake answers."""

    def answer(self, call: Call) -> Any:
        """Return the value, or a generator of the items of a stream; or raise."""
        ...


class Calls:
    """The calls that were made, in the order in which they came. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = RealKernel.lock()  # a leaf, held for a moment: real in the simulator as well
        self._calls: list[Call] = []  # guarded by _lock

    def add(self, call: Call) -> None:
        """Note a call."""
        with self._lock:
            self._calls.append(call)

    def so_far(self) -> list[Call]:
        """Return them all."""
        with self._lock:
            return list(self._calls)


# ---- fakes


class Fake(Application[Any]):
    """An application that answers every method in the same way and notes its calls; made by ``fake`` and ``replay``."""

    __slots__ = ("_book",)

    def __init__(self, answering: Answering, options: DeploymentOptions) -> None:
        self._book = Calls()
        others: dict[str, object] = dict(options)
        name = checked_name(others.pop("name", "Fake"))
        config = DeploymentConfig().changed(others)
        super().__init__(
            Binding(name=name, target=_Stub, config=config, args=(answering, self._book), kwargs={})
        )

    @property
    def calls(self) -> list[Call]:
        """The calls that its replicas have begun, in all apps that it is part of."""
        return self._book.so_far()


def fake(
    *,
    returns: Any = None,
    raises: BaseException | type[BaseException] | None = None,
    stream: Iterable[Any] | None = None,
    **options: Unpack[DeploymentOptions],
) -> Fake:
    """Return an application that answers every call of every method in the same way; ``.calls`` has them.

    Bind it where a real one would stand, or put it there with ``app.replace(Model, fake(...))``. Never blocks.

    Args:
        returns: The value of each call.
        raises: The exception, or a class of it; with `stream` it comes after the items.
        stream: The items of each stream, for callers with ``stream=True``.
        options: As of ``serve.deployment``; ``name`` is "Fake" otherwise.

    Raises:
        TypeError: Both `returns` and one of the others were given.
    """
    if returns is not None and (raises is not None or stream is not None):
        raise TypeError("a fake either returns, or raises, or streams and then perhaps raises")
    return Fake(_Fixed(returns, raises, None if stream is None else tuple(stream)), options)


class _Fixed:
    """Answers all calls alike."""

    def __init__(
        self, value: Any, raises: BaseException | type[BaseException] | None, items: tuple[Any, ...] | None
    ) -> None:
        self._value = value
        self._raises = raises
        self._error = Error(raises) if isinstance(raises, BaseException) else None
        self._items = items

    def answer(self, call: Call) -> Any:
        if self._items is not None:
            return self._stream(self._items)
        return self._end()

    def _stream(self, items: tuple[Any, ...]) -> Generator[Any]:
        yield from items
        self._end()

    def _end(self) -> Any:
        if self._error is not None:
            return self._error.unwrap()  # each caller gets an exception of its own
        if isinstance(self._raises, type):
            raise self._raises
        return self._value


class _Stub:
    """What is deployed in the place of the user's class."""

    def __init__(self, answering: Answering, book: Calls) -> None:
        self._answering = answering
        self._book = book

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer("__call__", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _NOT_CALLS or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return partial(self._answer, name)

    def _answer(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        call = Call(method, args, kwargs)
        self._book.add(call)
        return self._answering.answer(call)


# ---- spies


def spy(handle: DeploymentHandle[T_co]) -> Spy[T_co]:
    """Return a handle to the same deployment that notes what is called through it, and through handles made from it.

    ``spy.calls`` has the calls, each with its response. What others call is not seen. Safe from any thread.
    """
    return Spy(handle)


class Spy(DeploymentHandle[T_co]):
    """A handle that keeps book. A deployment's own method ``calls`` is reached by ``options(method_name="calls")``."""

    def __init__(self, handle: DeploymentHandle[T_co]) -> None:
        router = _Tap(handle._router)
        self._book = router.book
        super().__init__(cast("Router", router), **handle._options._asdict())

    @property
    def calls(self) -> list[Call]:
        """The calls that were made so far, in the order in which they were made."""
        return self._book.so_far()


class _Tap:
    """A router that notes what passes, and lets the real one do the rest."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.book = Calls()
        self.kernel: Kernel = router.kernel
        self.lock: Lock = router.lock
        self.app, self.deployment, self.name = router.app, router.deployment, router.name
        self.stream_buffer_size = router.stream_buffer_size

    def assign(self, request: Request) -> None:
        is_stream = request.channel is not None
        answer: Any = DeploymentResponseGenerator(request) if is_stream else DeploymentResponse(request)
        self.book.add(Call(request.method, request.args or (), request.kwargs or {}, answer, is_stream))
        request.router = self._router
        self._router.assign(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)  # for what else a handle may ask; its requests ask the real one
