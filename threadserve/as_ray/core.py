"""``ray.remote``, ``get``, ``put`` and the like: Ray's rules around the tasks and actors of ``tasks/``.

A function or a class is wrapped before it is made remote: the wrapper copies what goes in and comes out, and makes a
RayTaskError of what is raised. What ``tasks/`` gives back is wrapped again, in the classes that a script knows.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NoReturn

from threadserve.as_ray.errors import ActorAlreadyExistsError, GetTimeoutError, RayError, translated, wrapped
from threadserve.as_ray.isolation import ISOLATION
from threadserve.as_ray.refs import ObjectRef, ObjectRefGenerator, face_of_ref
from threadserve.as_ray.session import need_session
from threadserve.call.response import is_in_event_loop
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ConfigError, NotSupportedError, ServeError
from threadserve.tasks import actor as actors
from threadserve.tasks import objects
from threadserve.tasks import task as tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "ActorClass",
    "ActorHandle",
    "ObjectRef",
    "ObjectRefGenerator",
    "RemoteFunction",
    "cancel",
    "exit_actor",
    "get",
    "get_actor",
    "kill",
    "list_named_actors",
    "method",
    "put",
    "remote",
    "wait",
]


# ---- refs


def get(object_refs: Any, *, timeout: float | None = None, **_: Any) -> Any:
    """Wait for the value of a ref, or of several in a list, and return copies. See Ray.

    Raises:
        GetTimeoutError: Not all of them were done in time.
        ValueError: Something is no ObjectRef.
    """
    need_session()
    refs = object_refs if isinstance(object_refs, list) else [object_refs]
    for ref in refs:
        if not isinstance(ref, ObjectRef):
            raise ValueError(
                f"Invalid type of object refs, {type(ref)}, is given. 'object_refs' must either be an ObjectRef "
                "or a list of ObjectRefs."
            )
    try:
        values = _values(refs, timeout)
    except ServeError as error:
        raise translated(error) from None
    except TimeoutError as error:
        if isinstance(error, RayError) or all(ref.done() for ref in refs):
            raise
        raise GetTimeoutError(f"Get timed out: some object(s) not ready. {error}") from None
    copies = [ISOLATION.copy(value) for value in values]
    return copies if isinstance(object_refs, list) else copies[0]


def _values(refs: list[ObjectRef], timeout: float | None) -> list[Any]:
    if not is_in_event_loop():
        return objects.get(refs, timeout=timeout)
    now = RealKernel.now  # Ray blocks the loop, and says in its log that one should not
    end = None if timeout is None else now() + timeout
    return [ref.future.result(None if end is None else max(0.0, end - now())) for ref in refs]


def put(value: Any, **_: Any) -> ObjectRef:
    """Return a ref to a copy of `value`."""
    need_session()
    if isinstance(value, ObjectRef):
        raise TypeError("Calling 'put' on an ray.ObjectRef is not allowed.")
    return face_of_ref(objects.put(ISOLATION.copy(value)))  # type: ignore[no-any-return]


def wait(
    ray_waitables: Iterable[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]:
    """Wait until some of the refs are done: (those that are, the rest). See Ray."""
    need_session()
    if isinstance(ray_waitables, ObjectRef):
        raise TypeError(
            "wait() expected a list of ray.ObjectRef or ray.ObjectRefGenerator, got a single ray.ObjectRef"
        )
    refs = list(ray_waitables)
    if not refs:
        return [], []
    return objects.wait(refs, num_returns=num_returns, timeout=timeout)


def cancel(ray_waitable: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Cancel what brings a value."""
    if isinstance(ray_waitable, ObjectRefGenerator):
        ray_waitable = ray_waitable._items
    objects.cancel(ray_waitable, force=force, recursive=recursive)


# ---- tasks


def remote(*args: Any, **options: Any) -> Any:
    """Make a function callable as a task, or a class as an actor. See Ray."""
    if len(args) == 1 and not options and callable(args[0]):
        return _remote(args[0], {})
    if args:
        raise TypeError(
            "The @ray.remote decorator must be applied either with no arguments and no parentheses, or with keyword "
            "arguments only."
        )
    return lambda target: _remote(target, options)


def _remote(target: Any, options: dict[str, Any]) -> RemoteFunction | ActorClass:
    if inspect.isclass(target):
        return ActorClass(target, options)
    if inspect.iscoroutinefunction(target):
        raise ValueError(
            "'async def' should not be used for remote tasks. You can wrap the async function with asyncio.run(f())."
        )
    if not callable(target):
        raise TypeError("The @ray.remote decorator must be applied to either a function or a class.")
    return RemoteFunction(target, options)


class _Late:
    """Makes something native at once, if it can; an option that one process cannot honour is refused at its use."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._refusal: NotSupportedError | None = None
        self._made: Any = None
        try:
            self._made = make()
        except NotSupportedError as error:
            self._refusal = error

    def get(self) -> Any:
        """Return it, or say why it cannot be."""
        if self._refusal is not None:
            raise self._refusal
        return self._made


class RemoteFunction:
    """A function whose calls are tasks."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function = function
        self._options = options
        self._native = _Late(lambda: tasks.RemoteFunction(_apart(function, function.__name__), **options))
        functools.update_wrapper(self, function)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Start a task."""
        need_session()
        args, kwargs = _sent(self._function.__name__, args, kwargs)
        return face_of_ref(self._native.get().remote(*args, **kwargs))

    def options(self, **options: Any) -> RemoteFunction:
        """Return the same function with other options."""
        return RemoteFunction(self._function, {**self._options, **options})

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        name = self._function.__name__
        raise TypeError(
            f"Remote functions cannot be called directly. Instead of running '{name}()', try '{name}.remote()'."
        )


def _sent(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy the arguments of a call; refs that are arguments themselves stay."""
    try:
        return (
            tuple(each if isinstance(each, ObjectRef) else ISOLATION.copy(each) for each in args),
            {
                key: each if isinstance(each, ObjectRef) else ISOLATION.copy(each)
                for key, each in kwargs.items()
            },
        )
    except TypeError as error:
        raise TypeError(f"Could not serialize an argument for a task or actor {name}: {error}") from None


def _apart(  # noqa: C901 - four forms of one thing
    function: Callable[..., Any], name: str, own: int = 0
) -> Callable[..., Any]:
    """Return `function` with isolated arguments and results, and Ray's errors; of the same kind as it is.

    The first `own` arguments are its own: a method's ``self``.
    """
    copy = ISOLATION.copy

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return function(*args[:own], *copy(args[own:]), **copy(kwargs))

    def failure(error: Exception) -> Exception:
        if isinstance(error, StopIteration):
            error = RuntimeError("generator raised StopIteration").with_traceback(error.__traceback__)
        return wrapped(name, error, copy)

    async def aproduce(*args: Any, **kwargs: Any) -> Any:
        try:
            async for item in call(args, kwargs):
                yield copy(item)
        except Exception as error:
            raise failure(error)

    def produce(*args: Any, **kwargs: Any) -> Any:
        try:
            for item in call(args, kwargs):
                yield copy(item)
        except Exception as error:
            raise failure(error)

    async def arun(*args: Any, **kwargs: Any) -> Any:
        try:
            return copy(await call(args, kwargs))
        except Exception as error:
            raise failure(error)

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return copy(call(args, kwargs))
        except Exception as error:
            raise failure(error)

    wrapper: Callable[..., Any] = run
    if inspect.isasyncgenfunction(function):
        wrapper = aproduce
    elif inspect.isgeneratorfunction(function):
        wrapper = produce
    elif inspect.iscoroutinefunction(function):
        wrapper = arun
    return functools.wraps(function)(wrapper)


# ---- actors


class ActorClass:
    """A class whose instances are actors."""

    def __init__(self, cls: type, options: dict[str, Any]) -> None:
        self._cls = cls
        self._options = options
        self._native = _Late(lambda: actors.ActorClass(_apart_class(cls), **options))
        functools.update_wrapper(self, cls, updated=())

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Start an actor."""
        need_session()
        args, kwargs = _sent(f"{self._cls.__name__}.__init__", args, kwargs)
        try:
            return ActorHandle(self._native.get().remote(*args, **kwargs))
        except ConfigError as error:  # of all options only the name is looked at now
            raise ActorAlreadyExistsError(str(error)) from None

    def options(self, **options: Any) -> ActorClass:
        """Return the same class with other options."""
        return ActorClass(self._cls, {**self._options, **options})

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        name = self._cls.__name__
        raise TypeError(
            f"Actors cannot be instantiated directly. Instead of '{name}()', use '{name}.remote()'."
        )


def _apart_class(cls: type) -> type:
    """Return a class like `cls` whose methods are ``_apart``."""
    body: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        is_called = not (name.startswith("__") and name.endswith("__")) or name == "__call__"
        if is_called and inspect.isfunction(member):
            body[name] = _apart(member, f"{cls.__name__}.{name}", own=1)
    return type(cls)(cls.__name__, (cls,), body)


class ActorHandle:
    """Calls an actor: ``handle.method.remote(...)`` returns an ObjectRef."""

    def __init__(self, native: actors.ActorHandle[Any]) -> None:
        self._native = native

    def __repr__(self) -> str:
        return f"Actor({self._native!r})"

    def __getattr__(self, name: str) -> _ActorMethod:
        if name.startswith("__") or "_native" not in self.__dict__:
            raise AttributeError(name)
        return _ActorMethod(getattr(self._native, name), name)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorHandle, (self._native,)


class _ActorMethod:
    def __init__(self, native: Any, name: str) -> None:
        self._native = native
        self._name = name

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        args, kwargs = _sent(self._name, args, kwargs)
        return face_of_ref(self._native.remote(*args, **kwargs))

    def options(self, **options: Any) -> _ActorMethod:
        """Return the same method with other options."""
        return _ActorMethod(self._native.options(**options), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"Actor methods cannot be called directly. Instead of running 'object.{self._name}()', try "
            f"'object.{self._name}.remote()'."
        )


def method(*_: Any, **options: Any) -> Callable[[Any], Any]:
    """Give a method of an actor class options of its own."""
    return actors.method(**options)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """Return a handle to a named actor; ValueError where there is none."""
    need_session()
    try:
        return ActorHandle(actors.get_actor(name, namespace))
    except ConfigError:
        raise ValueError(
            f"Failed to look up actor with name '{name}'. This could be because 1. there is no such actor, 2. it has ended, "
            "or 3. it lives in another namespace."
        ) from None


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor at once."""
    if not isinstance(actor, ActorHandle):
        raise ValueError(
            f"ray.kill() only supported for actors. For tasks, try ray.cancel(). Got: {type(actor)}."
        )
    actors.kill(actor._native, no_restart=no_restart)


def list_named_actors(all_namespaces: bool = False) -> NoReturn:
    """Refused: the names are not kept for listing."""
    raise NotSupportedError("ray.util.list_named_actors is not supported in one process")


def exit_actor() -> NoReturn:
    """End the actor that calls it."""
    raise SystemExit(0)
