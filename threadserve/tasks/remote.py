"""The decorator: makes a remote function of a function and an actor class of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from threadserve.app.callables import is_class
from threadserve.app.config import UNSET
from threadserve.tasks.actor import ActorClass
from threadserve.tasks.task import RemoteFunction

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Decorator", "remote"]

R = TypeVar("R")
T = TypeVar("T")


class Decorator(Protocol):
    """What ``remote(num_cpus=1, ...)`` returns."""

    # A class can be called as well; but what is a class is one, and gets the first answer.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, func_or_class: type[T], /
    ) -> ActorClass[T]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, func_or_class: Callable[..., R], /) -> RemoteFunction[R]: ...


@overload
def remote(  # pyright: ignore[reportOverlappingOverload]
    func_or_class: type[T], /, **options: Any
) -> ActorClass[T]: ...
@overload
def remote(func_or_class: Callable[..., R], /, **options: Any) -> RemoteFunction[R]: ...
@overload
def remote(*, num_returns: int | str, **options: Any) -> Callable[[Any], Any]: ...
@overload
def remote(**options: Any) -> Decorator: ...


def remote(func_or_class: Any = UNSET, /, **options: Any) -> Any:
    """Make a function callable as a task, or a class as an actor.

    Works as a decorator with and without options, and as a plain call: ``remote(num_cpus=2)(f)``. Nothing runs before
    ``.remote(...)``.

    Args:
        func_or_class: A function, whose ``.remote(...)`` starts a task and returns an ObjectRef; or a class, whose
            ``.remote(...)`` starts an actor and returns its ActorHandle.
        options: Those of ``TaskOptions`` for a function, those of ``ActorOptions`` for a class.

    Raises:
        TypeError: This is no function or class, or an option has an unknown name.
        ConfigError: An option has a value that is refused.
        NotSupportedError: An option asks for what one process cannot do.
    """

    def decorate(target: Callable[..., Any], /) -> RemoteFunction[Any] | ActorClass[Any]:
        return ActorClass(target, **options) if is_class(target) else RemoteFunction(target, **options)

    return decorate if func_or_class is UNSET else decorate(func_or_class)
