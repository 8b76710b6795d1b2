"""The decorator: makes a remote function of a function and an actor class of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadserve.app.callables import is_class
from threadserve.app.config import UNSET
from threadserve.tasks.actor import ActorClass
from threadserve.tasks.task import RemoteFunction

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["remote"]


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
