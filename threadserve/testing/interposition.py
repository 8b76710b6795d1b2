"""Puts something between the calls that reach a deployment and the user's code: faults, a recorder.

It works on what was declared. The class or function of a node is replaced by one that behaves the same, is called by
its replica in the same way (a coroutine stays one, a generator too) and tells an ``Interposer`` of every request as its body
begins. So it works wherever an app runs, on real threads as in the simulator, and the runtime knows nothing of it.

A method that the user's own code calls on ``self`` is no request and goes straight through.
"""

from __future__ import annotations

import functools
import inspect
import types
from contextlib import aclosing, closing
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from threadserve.app.application import Application, Binding, rebound
from threadserve.call import directory
from threadserve.call.blocking import block
from threadserve.call.context import replica_here
from threadserve.call.request import Request, Router, current_request
from threadserve.concurrency.loops import make_future
from threadserve.concurrency.outcome import Error, Outcome, Value

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

__all__ = ["Interposer", "Visit", "interposed", "router_of_running_code"]


class Visit:
    """One request to a deployment, seen from its body. Does nothing; subclasses see or change what happens."""

    def delay_s(self) -> float:
        """Return how many seconds, on the kernel's clock, the body begins later."""
        return 0.0

    def begin(self) -> None:
        """Be told that the body begins; what this raises, the request ends with."""

    def item(self, value: Any) -> None:
        """Be told of an item before it is handed on; what this raises, the stream ends with."""

    def end(self, outcome: Outcome) -> None:
        """Be told how the body ended. A stream that was read to its end has the value None."""


class Interposer(Protocol):
    """Stands before one deployment. Called by all its replicas, at once."""

    def start_delay_s(self) -> float:
        """Return how many seconds a replica that is starting waits before its constructor."""
        ...

    def visit(self, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Visit:
        """Return what is to be told of a request."""
        ...


def interposed(
    app: Application[Any], interposer_for: Callable[[Binding], Interposer | None]
) -> Application[Any]:
    """Return the app with an interposer before each deployment for which there is one. `app` stays as it is."""

    def change(binding: Binding) -> Binding:
        interposer = interposer_for(binding)
        if interposer is None:
            return binding
        is_class = isinstance(binding.target, type)
        wrap = _subclass if is_class else _function
        return replace(binding, target=wrap(binding.target, interposer))

    return rebound(app, change)


def router_of_running_code() -> Router:
    """Return the router of the deployment whose replica runs this code: a method, or its constructor."""
    request = current_request()
    if request is not None:
        return request.router
    replica = replica_here()
    assert replica is not None  # who asks is a replica's code
    router = directory.find(replica.app_name, replica.deployment)
    assert router is not None  # it is running
    return router


# ---- the class or function in front of the user's

_VISITED: ContextVar[Request | None] = ContextVar("threadserve_visited", default=None)
"""The request that has been told of in this context."""


def _function(function: Any, interposer: Interposer) -> Any:
    return _in_front_of(function, function, interposer)


def _subclass(cls: Any, interposer: Interposer) -> Any:
    """Return a subclass that looks like `cls`, with all that can be called from outside wrapped."""

    def fill(members: dict[str, Any]) -> None:
        members.update(__module__=cls.__module__, __qualname__=cls.__qualname__, __doc__=cls.__doc__)
        for name in dir(cls):
            member = inspect.getattr_static(cls, name)
            if (name == "__call__" or not name.startswith("__")) and _is_method(member):
                members[name] = _method(name, member, interposer)
        members["__init__"] = _constructor(cls, interposer)
        if hasattr(cls, "__getattr__"):
            members["__getattr__"] = _lookup(cls, interposer)

    return types.new_class(cls.__name__, (cls,), exec_body=fill)


def _is_method(member: Any) -> bool:
    if isinstance(member, (staticmethod, classmethod)):
        return True
    return callable(member) and not isinstance(member, type)


def _method(name: str, member: Any, interposer: Interposer) -> Any:
    plain = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        get: Any = getattr(type(member), "__get__", None)
        bound: Any = member if get is None else get(member, self, type(self))
        return bound(*args, **kwargs)

    return _in_front_of(plain, call, interposer, method=name)


def _lookup(cls: Any, interposer: Interposer) -> Any:
    def get(self: Any, name: str) -> Any:
        found = cls.__getattr__(self, name)
        return _in_front_of(found, found, interposer, method=name) if callable(found) else found

    return get


def _constructor(cls: Any, interposer: Interposer) -> Any:
    original = cls.__init__
    takes_nothing = original is object.__init__  # it complains about arguments that __new__ has taken

    if inspect.iscoroutinefunction(original):

        async def construct_async(self: Any, *args: Any, **kwargs: Any) -> None:
            await _wait_async(interposer.start_delay_s())
            await original(self, *args, **kwargs)

        return functools.wraps(original)(construct_async)

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        _wait(interposer.start_delay_s())
        if takes_nothing:
            original(self)
        else:
            original(self, *args, **kwargs)

    return functools.wraps(original)(construct)


def _in_front_of(original: Any, call: Callable[..., Any], interposer: Interposer, method: str = "") -> Any:
    """Return what stands in for `original` and is of its kind; `call` calls it, for a method with ``self`` first."""
    own = 1 if method and original is not call else 0  # `self`, which is no argument of the request

    def visit(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Visit:
        request = current_request()
        if request is None or _VISITED.get() is request or (method and request.method != method):
            return Visit()
        _VISITED.set(request)
        return interposer.visit(request, args[own:], kwargs)

    return functools.update_wrapper(_of_kind(original, visit, call), original)


def _of_kind(original: Any, visit: Callable[..., Visit], call: Callable[..., Any]) -> Callable[..., Any]:
    async def front_async(*args: Any, **kwargs: Any) -> Any:
        return await _follow(visit(args, kwargs), call, args, kwargs)

    async def front_items_async(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for item in _follow_items_async(visit(args, kwargs), call, args, kwargs):
            yield item

    def front_items(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from _follow_items(visit(args, kwargs), call, args, kwargs)

    def front(*args: Any, **kwargs: Any) -> Any:
        return _run(visit(args, kwargs), call, args, kwargs)

    if inspect.iscoroutinefunction(original):
        return front_async
    if inspect.isasyncgenfunction(original):
        return front_items_async
    return front_items if inspect.isgeneratorfunction(original) else front


# ---- one request


def _run(visit: Visit, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a ``def``. What it returns may be a coroutine or a generator, which is where its body is then."""
    _wait(visit.delay_s())
    try:
        visit.begin()
        result = call(*args, **kwargs)
    except BaseException as error:
        visit.end(Error(error))
        raise
    if inspect.iscoroutine(result):
        return _follow(visit, lambda: result, (), {}, has_begun=True)
    if inspect.isgenerator(result):
        return _follow_items(visit, lambda: result, (), {}, has_begun=True)
    if inspect.isasyncgen(result):
        return _follow_items_async(visit, lambda: result, (), {}, has_begun=True)
    visit.end(Value(result))
    return result


async def _follow(
    visit: Visit,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    has_begun: bool = False,
) -> Any:
    if not has_begun:
        await _wait_async(visit.delay_s())
    try:
        if not has_begun:
            visit.begin()
        result = await call(*args, **kwargs)
    except BaseException as error:
        visit.end(Error(error))
        raise
    visit.end(Value(result))
    return result


def _follow_items(
    visit: Visit,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    has_begun: bool = False,
) -> Generator[Any]:
    if not has_begun:
        _wait(visit.delay_s())
    try:
        if not has_begun:
            visit.begin()
        with closing(call(*args, **kwargs)) as items:
            for item in items:
                visit.item(item)
                yield item
    except BaseException as error:
        visit.end(Error(error))
        raise
    visit.end(Value(None))


async def _follow_items_async(
    visit: Visit,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    has_begun: bool = False,
) -> AsyncIterator[Any]:
    if not has_begun:
        await _wait_async(visit.delay_s())
    try:
        if not has_begun:
            visit.begin()
        async with aclosing(call(*args, **kwargs)) as items:
            async for item in items:
                visit.item(item)
                yield item
    except BaseException as error:
        visit.end(Error(error))
        raise
    visit.end(Value(None))


def _wait(seconds: float) -> None:
    """Let `seconds` pass on the kernel's clock. A checkpoint."""
    if seconds > 0:
        block(router_of_running_code().kernel.waiter(), seconds)


async def _wait_async(seconds: float) -> None:
    if seconds > 0:
        loop, future = make_future()
        loop.call_later(seconds, _ring, future)
        await future


def _ring(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
