"""Actors: instances of a class that run one call at a time, in order, wherever it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ActorClass", "ActorHandle", "ActorMethod", "get_actor", "kill", "method"]

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")


class ActorClass(Generic[T]):
    """A class whose instances are actors: ``Counter.remote(1)`` returns an ActorHandle at once.

    Attributes:
        cls: The class.
        options_given: The options that differ from the defaults, by name.
    """

    def __init__(self, cls: Callable[..., T], **options: Any) -> None: ...

    def remote(self, /, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Start an actor: its constructor runs on a thread of its own, with these arguments.

        Refs and responses among them are replaced by their values first. Never blocks. Any thread. A failed
        constructor shows at the first call, as ActorDiedError with the user's exception as its ``__cause__``.

        Raises:
            ConfigError: The name is taken, and ``get_if_exists`` was not given.
        """
        raise NotImplementedError

    def options(self, **options: Any) -> ActorClass[T]:
        """Return the same class with other options; what is not named stays as it is. See ``ActorOptions``.

        Raises:
            TypeError: An option has an unknown name.
            ConfigError: An option has a value that is refused.
        """
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: an actor is started with ``.remote``. Raises TypeError always."""
        raise NotImplementedError


class ActorHandle(Generic[T]):
    """Calls an actor: ``handle.method.remote(...)`` returns an ObjectRef at once.

    Handles are cheap, safe from any thread, may be passed around and pickled within this process. When the last of
    them is dropped the actor ends, after the calls that were made; ``lifetime="detached"`` keeps it until ``kill``.

    An attribute is a method of the class (an ActorMethod), or an AttributeError at once.

    Attributes:
        _actor_id: Names the actor in this process.
    """

    def __getattr__(self, name: str) -> ActorMethod:
        raise NotImplementedError


class ActorMethod:
    """A method of an actor, to be called: ``handle.add.remote(1)``."""

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it, and return at once what ``RemoteFunction.remote`` returns. Never blocks. Any thread.

        Calls of one caller run in the order in which they were made, also where an earlier one has to wait for its
        arguments. A call to an actor that has ended fails with ActorDiedError.
        """

    def options(self, *, num_returns: Any = None, timeout_s: float | None = None, **accepted: Any) -> ActorMethod:
        """Return the same method with other options.

        Args:
            num_returns: How many refs a call returns; "streaming" for an ObjectRefGenerator.
            timeout_s: Bounds each call, queueing included, in seconds; ``math.inf`` lifts an inherited deadline.
            accepted: Ray's name, concurrency_group, max_task_retries, retry_exceptions, enable_task_events and
                _generator_backpressure_num_objects: without effect.
        """
        raise NotImplementedError


def method(*, num_returns: Any = None, **accepted: Any) -> Callable[[F], F]:
    """Give a method of an actor class options of its own: ``@method(num_returns=2)``."""
    raise NotImplementedError


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """Return a handle to the actor that was started with ``options(name=...)``. Never blocks.

    Raises:
        ConfigError: There is no such actor (it is a ValueError).
    """
    raise NotImplementedError


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """End an actor at once: what it runs and what is queued fails with ActorDiedError. Never blocks.

    A thread cannot be stopped from outside: a running ``def`` gets Cancelled at its next checkpoint and its thread
    ends when it returns; a coroutine is cancelled.

    Args:
        actor: Any handle to it.
        no_restart: False lets it start anew, if it has restarts left (``max_restarts``).

    Raises:
        TypeError: This is no ActorHandle.
    """
