"""Remote functions: each call is a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RemoteFunction"]

R = TypeVar("R")


class RemoteFunction(Generic[R]):
    """A function whose calls are tasks: ``f.remote(1)`` returns an ObjectRef at once.

    Made by ``serve.remote``. Tasks run on threads that they share, at most as many at once as there are slots; a task
    that waits in ``serve.get`` or ``serve.wait`` lends its slot meanwhile, so tasks may wait for tasks of their own.

    Attributes:
        function: What is called.
        options_given: The options that differ from the defaults, by name.
    """

    def __init__(self, function: Callable[..., R], **options: Any) -> None: ...

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Start a task.

        Refs and responses among the arguments are replaced by their values before it runs, and it holds no thread while
        it waits for them; those inside of containers stay refs. Never blocks, never raises for what the call contains.
        Any thread.

        Returns:
            An ObjectRef; a list of `n` of them with ``num_returns=n`` (None with 0); an ObjectRefGenerator with
            ``num_returns="streaming"``, which is the default of generator functions.
        """

    def options(self, **options: Any) -> RemoteFunction[R]:
        """Return the same function with other options; what is not named stays as it is. See ``TaskOptions``.

        Raises:
            TypeError: An option has an unknown name.
            ConfigError: An option has a value that is refused.
        """
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a task is started with ``.remote``.

        Raises:
            TypeError: Always.
        """
        raise NotImplementedError
