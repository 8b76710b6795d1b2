"""Actors: instances of a class that run one call at a time, in order, wherever it comes from."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from threadserve.app.rules import nearest, shown
from threadserve.call.objectref import object_id
from threadserve.tasks.declaration import Declaration
from threadserve.tasks.options import STREAMING, ActorOptions, MethodOptions, changed
from threadserve.tasks.workforce import current, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.tasks.lifetime import Grip

__all__ = ["ActorClass", "ActorHandle", "ActorMethod", "get_actor", "kill", "method"]

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")

_METHOD_OPTIONS = "__threadserve_method__"
_BUILT_IN = ("__ray_ready__", "__ray_terminate__")


class ActorClass(Declaration, Generic[T]):
    """A class whose instances are actors: ``Counter.remote(1)`` returns an ActorHandle at once.

    Made by ``serve.remote``.

    Attributes:
        cls: The class.
        options_given: The options that differ from the defaults, by name.
    """

    def __init__(self, cls: Callable[..., T], **options: Any) -> None:
        super().__init__(cls, options)
        self.cls = cls
        self._options = changed(f"actor class {self._name!r}", ActorOptions(), options)
        self._options.demand(f"actor {self._name}")

    def __repr__(self) -> str:
        return f"<ActorClass {self._name}; start an actor with .remote(...)>"

    def remote(self, /, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Start an actor: its constructor runs on a thread of its own, with these arguments.

        Refs and responses among them are replaced by their values first. Never blocks. Any thread. A failed
        constructor shows at the first call, as ActorDiedError with the user's exception as its ``__cause__``.

        Raises:
            ConfigError: The name is taken, and ``get_if_exists`` was not given.
        """
        return ActorHandle(current().start_actor(self.cls, args, kwargs, self._options))

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: an actor is started with ``.remote``. Raises TypeError always."""
        raise TypeError(
            f"an actor class is not called itself: write {self._name}.remote(...), or {self._name}.cls(...) for an "
            "instance that is no actor"
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise TypeError(
            f"a class cannot inherit from the actor class {self._name}: inherit from {self._name}.cls, or decorate the "
            "subclass alone"
        )


class ActorHandle(Generic[T]):
    """Calls an actor: ``handle.method.remote(...)`` returns an ObjectRef at once.

    Handles are cheap, safe from any thread, may be passed around and pickled within this process. When the last of
    them is dropped the actor ends, after the calls that were made; ``lifetime="detached"`` keeps it until ``kill``.

    An attribute is a method of the class (an ActorMethod), or an AttributeError at once.
    """

    def __init__(self, grip: Grip) -> None:
        self._grip = grip

    def __repr__(self) -> str:
        return f"<ActorHandle of {self._grip.actor.router.name}; call a method with .method.remote(...)>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._grip.actor is self._grip.actor

    def __hash__(self) -> int:
        return hash(self._grip.actor)

    @property
    def _actor_id(self) -> str:
        """Names the actor in this process: the same for equal handles."""
        return object_id(self._grip.actor)

    def __getattr__(self, name: str) -> ActorMethod:
        grip = self.__dict__.get("_grip")
        if grip is None:  # while it is being unpickled or copied
            raise AttributeError(name)
        made = self.__dict__[name] = ActorMethod(grip, name, _options_of(grip.actor.cls, name))
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorHandle, (self._grip,)


class ActorMethod:
    """A method of an actor, to be called: ``handle.add.remote(1)``."""

    def __init__(self, grip: Grip, name: str, options: MethodOptions) -> None:
        self._grip = grip
        self._name = name
        self._options = options
        self._handle = grip.actor.handle.options(method_name=name, timeout_s=options.timeout_s)

    def __repr__(self) -> str:
        return f"<ActorMethod {self._name} of {self._grip.actor.router.name}; call it with .remote(...)>"

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it, and return at once what ``RemoteFunction.remote`` returns. Never blocks. Any thread.

        Calls of one caller run in the order in which they were made, also where an earlier one has to wait for its
        arguments. A call to an actor that has ended fails with ActorDiedError.
        """
        num_returns = 1 if self._options.num_returns is None else self._options.num_returns
        store = self._grip.actor.store
        return send(self._handle, self._grip, args, kwargs, num_returns=num_returns, store=store)

    def options(self, **options: Any) -> ActorMethod:
        """Return the same method with other options; what is not named stays as it is. See ``MethodOptions``.

        Raises:
            TypeError: An option has an unknown name.
            ConfigError: An option has a value that is refused.
        """
        where = f"{self._grip.actor.router.name}.{self._name}"
        return ActorMethod(self._grip, self._name, changed(where, self._options, options))

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a method is called with ``.remote``. Raises TypeError always."""
        raise TypeError(
            f"a method of an actor is not called itself: write {self._name}.remote(...) "
            f"of {self._grip.actor.router.name}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorMethod, (self._grip, self._name, self._options)


def method(**options: Any) -> Callable[[F], F]:
    """Give a method of an actor class options of its own: ``@method(num_returns=2)``. See ``MethodOptions``.

    Raises:
        TypeError: An option has an unknown name.
        ConfigError: An option has a value that is refused.
    """
    kept = changed("method", MethodOptions(), options)

    def decorate(fn: F) -> F:
        setattr(fn, _METHOD_OPTIONS, kept)
        return fn

    return decorate


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """Return a handle to the actor that was started with ``options(name=...)``. Never blocks.

    Raises:
        ConfigError: There is no such actor (it is a ValueError).
    """
    return ActorHandle(current().find_actor(name, namespace))


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """End an actor at once: what it runs and what is queued fails with ActorDiedError. Never blocks for long.

    A thread cannot be stopped from outside: a running ``def`` gets Cancelled at its next checkpoint and its thread
    ends when it returns; a coroutine is cancelled.

    Args:
        actor: Any handle to it.
        no_restart: False lets it start anew, if it has restarts left (``max_restarts``).

    Raises:
        TypeError: This is no ActorHandle.
    """
    if not isinstance(actor, ActorHandle):
        raise TypeError(
            f"serve.kill takes an ActorHandle, not {shown(actor)}; tasks are ended with serve.cancel"
        )
    actor._grip.actor.kill("it was killed with serve.kill", may_restart=not no_restart)


def _options_of(cls: Any, name: str) -> MethodOptions:
    """Return the options that a method of `cls` was declared with.

    Raises:
        AttributeError: There is no such method.
    """
    member = inspect.getattr_static(cls, name, None)
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    is_special = name.startswith("__") and name.endswith("__") and name != "__call__"
    if name in _BUILT_IN:
        return MethodOptions()
    if is_special or not callable(member):
        hint = "" if is_special else nearest(name, [each for each in dir(cls) if not each.startswith("_")])
        raise AttributeError(f"actor class {cls.__name__} has no method {name!r}{hint}")
    options = cast("MethodOptions", getattr(member, _METHOD_OPTIONS, MethodOptions()))
    is_generator = inspect.isgeneratorfunction(member) or inspect.isasyncgenfunction(member)
    if options.num_returns is None and is_generator:
        return changed(name, options, {"num_returns": STREAMING})
    return options
