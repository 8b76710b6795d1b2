"""The user's class or function: how it is made, which of its methods there are, where each begins to run."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType
from typing import TYPE_CHECKING, Any, NoReturn

from threadserve.call.response import DeploymentResponse
from threadserve.call.stream import DeploymentResponseGenerator
from threadserve.errors import ArgumentError, ConfigError, MethodNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from threadserve.call.request import Request

__all__ = ["NO_RESULT", "Target", "check_result", "check_stream"]


class Target:
    """One instance of a deployment's class, or its function.

    What the class looks like is read once, without running the user's code (no property is evaluated): the router
    asks ``begins_async`` while it holds its lock.
    """

    def __init__(self, func_or_class: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._func_or_class = func_or_class
        self._args = args
        self._kwargs = kwargs
        self.is_class = inspect.isclass(func_or_class)
        self._looks = _behind_proxies(func_or_class) if self.is_class else func_or_class
        self.servable: Any = None if self.is_class else func_or_class
        """The user's instance, once it is made; a function is its own."""
        self._members = self._find_members() if self.is_class else {}
        self._async_methods = self._find_async_methods()

    def construct(self) -> Any:
        """Make the instance; a coroutine to be awaited comes back where ``__init__`` is one."""
        if not self.is_class:
            return None
        cls, args, kwargs = self._looks, self._args, self._kwargs
        if not inspect.iscoroutinefunction(cls.__init__):
            self.servable = self._func_or_class(*args, **kwargs)
            return None
        self.servable = cls.__new__(cls, *args, **kwargs)
        return self.servable.__init__(*args, **kwargs)

    def begins_async(self, method: str) -> bool:
        """Whether calling `method` begins on the event loop: it is an ``async def``, a generator or not."""
        return ("__call__" if not self.is_class else method) in self._async_methods

    def lookup(self, request: Request) -> Callable[..., Any]:
        """Return what `request` calls. A function is called whatever the method is named.

        Raises:
            MethodNotFoundError: There is no such method.
            ArgumentError: The name stands for something that cannot be called.
        """
        if not self.is_class:
            return self.servable  # type: ignore[no-any-return]
        try:
            fn = getattr(self.servable, request.method)
        except AttributeError:
            if inspect.getattr_static(self.servable, request.method, None) is not None:
                raise  # a property of the user's that failed
            self._refuse(request)
        if not callable(fn):
            raise ArgumentError(
                f"{request.router.name}.{request.method} is a {type(fn).__name__}, not a method; it cannot be called",
                deployment=request.router.name,
                request_id=request.request_id,
            )
        return fn  # type: ignore[no-any-return]

    def reconfiguration(self, user_config: Any, rank: Any) -> Callable[[], Any] | None:
        """Return what hands `user_config` to the instance; None where there is nothing to hand over.

        Raises:
            ConfigError: There is a user_config and no ``reconfigure`` to take it.
        """
        reconfigure = getattr(self.servable, "reconfigure", None) if self.is_class else None
        if reconfigure is None:
            if user_config is None:
                return None
            raise ConfigError(
                "a user_config was given, but there is no method reconfigure(user_config) to take it"
            )
        if "rank" in inspect.signature(reconfigure).parameters:
            return lambda: reconfigure(user_config, rank=rank)
        return None if user_config is None else lambda: reconfigure(user_config)

    def has(self, method: str) -> bool:
        """Whether the user's class has `method`."""
        return self._members.get(method) is not None

    def finalize(self) -> Any:
        """Call the instance's ``__del__``, if there is one, and see to it that Python does not call it again.

        A coroutine to be awaited comes back where it is one.
        """
        servable = self.servable
        finalizer = getattr(type(servable), "__del__", None)
        if not self.is_class or finalizer is None:
            return None
        try:
            return finalizer(servable)
        finally:
            with suppress(
                TypeError
            ):  # a layout that allows no other class: Python will call it a second time
                servable.__class__ = type(
                    type(servable).__name__, (type(servable),), {"__slots__": (), "__del__": _done}
                )

    def let_go(self) -> None:
        """Keep the instance alive no longer: it may be large, a model, and whoever still has this may stay."""
        if self.is_class:
            self.servable = None

    def methods(self) -> tuple[str, ...]:
        """Return the names that can be called, public ones and those with one leading underscore."""
        names = (name for name in dir(self._looks) if not name.startswith("__"))
        found = [name for name in names if _is_method(inspect.getattr_static(self._looks, name, None))]
        if "__call__" in self._members:
            found.insert(0, "__call__")
        return tuple(found)

    def _find_async_methods(self) -> frozenset[str]:
        if not self.is_class:
            is_async = _begins_async(self._looks)
            return frozenset(("__call__",) if is_async else ())
        return frozenset(
            name for name, member in self._members.items() if _is_method(member) and _begins_async(member)
        )

    def _find_members(self) -> dict[str, object]:
        """Return what the user's class and its bases have, but for ``object``."""
        members: dict[str, object] = {}
        for base in reversed(inspect.getmro(self._looks)[:-1]):
            members.update(vars(base))
        return members

    def _refuse(self, request: Request) -> NoReturn:
        available = self.methods()
        near = difflib.get_close_matches(request.method, available, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise MethodNotFoundError(
            f"method {request.method!r} does not exist in {request.router.name}{hint} "
            f"Available methods: {list(available)}",
            deployment=request.router.name,
            request_id=request.request_id,
            available=available,
        )


def _done(servable: object) -> None:
    """Be the ``__del__`` of what has been finalized."""


def _behind_proxies(cls: Any) -> Any:
    """Return the class that `cls` is, or transparently stands in for."""
    while not issubclass(type(cls), type):
        cls = cls.__wrapped__
    return cls


def _is_method(member: object) -> bool:
    return callable(member) or isinstance(member, (staticmethod, classmethod))


def _begins_async(member: object) -> bool:
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    if type(member) is FunctionType and not member.__dict__:  # as nearly all are: its flags say all
        return bool(member.__code__.co_flags & _ASYNC)
    return inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)


_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

NO_RESULT = frozenset(
    (CoroutineType, GeneratorType, AsyncGeneratorType, DeploymentResponse, DeploymentResponseGenerator)
)
"""Types of what a plain call cannot return as it is."""


def check_result(request: Request, result: Any) -> None:
    """Refuse what a plain call cannot return; a coroutine has been awaited before."""
    kind = type(result)
    if kind not in NO_RESULT:
        return
    name = f"{request.router.name}.{request.method}"
    if kind is GeneratorType or kind is CoroutineType:
        result.close()
    if kind is DeploymentResponse:
        hint = "an unresolved DeploymentResponse: return its value (`await` it, or .result() in a def)"
    elif kind is CoroutineType:
        hint = "a coroutine that nobody awaited"
    else:
        hint = "a generator: the caller must use handle.options(stream=True)"
    raise ArgumentError(
        f"{name} returned {hint}", deployment=request.router.name, request_id=request.request_id
    )


def check_stream(request: Request, items: Any) -> None:
    """Refuse what cannot be streamed."""
    if isinstance(items, (Iterator, AsyncIterator)):
        return
    raise ArgumentError(
        f"{request.router.name}.{request.method} was called with stream=True but did not return a generator "
        f"(it returned a {type(items).__name__}); yield the items, or call without stream=True",
        deployment=request.router.name,
        request_id=request.request_id,
    )
