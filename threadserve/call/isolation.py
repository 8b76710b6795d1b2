"""Keeps deployments apart as if each ran in a process of its own: strict mode, and the ground that as_ray stands on.

An isolated app shares nothing with its callers by reference. What crosses - an argument, a result, an item of a stream, a
bind argument - makes a round trip through cloudpickle. The copy is spared where nobody could tell: None, bool, int, float,
str and bytes, and tuples of these.

Three things are as they are in a process, because both ends are in one: a class arrives as itself (cloudpickle would replace
the methods of the one that there is), so its attributes are shared; an importable function does, with its module's globals;
and the memory behind large buffers is copied once, and cannot be written to, as with Ray.

An ``Isolation`` hangs on the routers of its app. It is asked once when a request comes (``enter``) and then is the request's
adapter: it calls the body with the copies, and copies what comes out.
"""

from __future__ import annotations

import inspect
import io
import pickle
import warnings
import weakref
from collections.abc import AsyncIterator, Iterator
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, cast

import cloudpickle

from threadserve.call.answer import Answer
from threadserve.call.request import CURRENT, Request
from threadserve.concurrency.future import is_future
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ArgumentError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

__all__ = ["Isolation", "culprit", "refuse_unshippable"]

_PLAIN = frozenset((type(None), bool, int, float, str, bytes))


class Isolation:
    """What stands between the deployments of an app and their callers; stateless, safe from any thread."""

    # ---- copies

    def copy(self, value: Any) -> Any:
        """Return what would arrive of `value` in another process. Raises what its pickling raises."""
        if _is_plain(value):
            return value
        pickled, *buffers = _pickled(value, self.reduced)
        return pickle.loads(pickled, buffers=buffers)

    def reduced(self, value: object) -> Any:
        """Return how `value` is to be pickled, as ``__reduce__`` does; NotImplemented for the usual way."""
        return NotImplemented

    # ---- the way in

    def enter(self, request: Request) -> None:
        """Copy the arguments of a new request, and see to it that its results are copied.

        Responses and futures that are arguments themselves stay: their values are copied when they are there.

        Raises:
            ArgumentError: An argument could not be shipped; says which, and the path to the part that cannot.
        """
        if request.adapter is not None:  # HTTP's, which hands over nothing of anybody else's
            return
        args, kwargs = request.args or (), request.kwargs or {}
        request.args = tuple(self._sent(request, index, value) for index, value in enumerate(args))
        request.kwargs = {name: self._sent(request, name, value) for name, value in kwargs.items()}
        request.adapter = self

    def _sent(self, request: Request, name: int | str, value: Any) -> Any:
        if _is_plain(value) or self.is_input(value):
            return value
        try:
            return self.copy(value)
        except Exception as error:
            raise self.unsendable(request, name, value, error) from None

    def is_input(self, value: Any) -> bool:
        """Whether `value` is an answer that is waited for, and not to be copied."""
        return isinstance(value, Answer) or is_future(value)

    def unsendable(self, request: Request, name: int | str, value: Any, error: Exception) -> Exception:
        """Return what a request fails with whose argument cannot be pickled."""
        if isinstance(error, ArgumentError):  # a response inside of it, which says so itself
            return error
        path = f"argument {name}{culprit(value)}" if isinstance(name, int) else f"{name}{culprit(value)}"
        return ArgumentError(
            f"{request.router.name}.{request.method}: {path} could not be shipped to another process: {error}",
            deployment=request.router.name,
            request_id=request.request_id,
        )

    # ---- the body, as an Adapter

    def iterate(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a `def`."""
        name, is_stream = _current()
        watch = self.watch(name, args, kwargs)
        try:
            result = fn(*watch.args, **watch.kwargs)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(
                    f"{name} is a def that returned a coroutine, and nobody awaits that in a process of its own"
                )
            if is_stream and isinstance(result, AsyncIterator):
                return self._aitems(result, watch)
            if is_stream:
                return self._items(result, watch) if isinstance(result, Iterator) else result
            return self._returned(result, watch)
        except Exception as error:
            raise self.raised(name, error)

    def aiterate(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an `async def`."""
        name, is_stream = _current()
        watch = self.watch(name, args, kwargs)
        try:
            result = fn(*watch.args, **watch.kwargs)
        except Exception as error:
            raise self.raised(name, error)
        if inspect.isawaitable(result):
            return self._awaited(cast("Coroutine[Any, Any, Any]", result), watch, is_stream)
        return self._aitems(result, watch) if is_stream and isinstance(result, AsyncIterator) else result

    async def _awaited(self, coroutine: Coroutine[Any, Any, Any], watch: Watch, is_stream: bool) -> Any:
        try:
            result = await coroutine
            if not is_stream:
                return self._returned(result, watch)
        except Exception as error:
            raise self.raised(watch.name, error)
        if isinstance(result, AsyncIterator):
            return self._aitems(result, watch)
        return self._items(result, watch) if isinstance(result, Iterator) else result

    def _items(self, items: Iterator[Any], watch: Watch) -> Iterator[Any]:
        try:
            for item in items:
                yield self._shipped(watch.name, item)
            watch.report()
        except Exception as error:
            raise self.raised(watch.name, error)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    async def _aitems(self, items: AsyncIterator[Any], watch: Watch) -> AsyncIterator[Any]:
        try:
            async for item in items:
                yield self._shipped(watch.name, item)
            watch.report()
        except Exception as error:
            raise self.raised(watch.name, error)
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    def _returned(self, result: Any, watch: Watch) -> Any:
        watch.report()
        if isinstance(result, (GeneratorType, AsyncGeneratorType)):
            return result  # refused by the replica, in better words than pickle's
        return self._shipped(watch.name, result)

    def _shipped(self, name: str, result: Any) -> Any:
        try:
            return self.copy(result)
        except Exception as error:
            raise self.unreturnable(name, result, error) from None

    def unreturnable(self, name: str, result: Any, error: Exception) -> Exception:
        """Return what a body is said to have raised whose result cannot be pickled."""
        if isinstance(error, ArgumentError):
            return error
        kind = type(result).__name__
        return ArgumentError(
            f"{name} returned a {kind}, and {kind}{culprit(result)} could not be shipped to another process: {error}"
        )

    def raised(self, name: str, error: Exception) -> Exception:
        """Return what the caller of `name` gets for what its body raised."""
        return error

    def bound(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the bind arguments for one replica, which has its own."""
        return self.copy((args, dict(kwargs)))  # type: ignore[no-any-return]

    def watch(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Watch:
        """Return the arguments for the body: inputs that have come, too, are copied; and who changes them is seen."""
        return Watch(name, self.copy(args), self.copy(kwargs))


class Watch:
    """The arguments of a body, and whether it changes them, which its caller would see without isolation."""

    def __init__(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_watching: bool = True
    ) -> None:
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self._before = (
            {key: _fingerprint(value) for key, value in self._arguments() if not _is_plain(value)}
            if is_watching
            else {}
        )

    def _arguments(self) -> list[tuple[int | str, Any]]:
        return [*enumerate(self.args), *self.kwargs.items()]

    def report(self) -> None:
        """Warn if an argument is not what it was."""
        for key, value in self._arguments() if self._before else ():
            if key in self._before and _fingerprint(value) != self._before[key]:
                which = f"argument {key}" if isinstance(key, int) else f"argument {key!r}"
                warnings.warn(
                    f"{self.name} changed its {which}, a {type(value).__name__}: without strict=True its caller sees the "
                    "change, on a Ray cluster it does not; return what is new instead",
                    RuntimeWarning,
                    stacklevel=2,
                )


def _fingerprint(value: Any) -> list[bytes] | None:
    try:
        return _pickled(value, lambda _: NotImplemented)
    except Exception:
        return None


def _current() -> tuple[str, bool]:
    """Return what runs, and whether its items are wanted; no more, for frames that hold a request make cycles."""
    request = CURRENT.get()
    assert request is not None
    return f"{request.router.name}.{request.method}", request.channel is not None


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in _PLAIN or (kind is tuple and all(map(_is_plain, value)))


# ---- pickling within one process


def _pickled(value: Any, reduced: Callable[[object], Any]) -> list[bytes]:
    """Return the pickle of `value`, and copies of the large buffers that belong to it."""
    file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(file, reduced, buffers).dump(value)
    return [file.getvalue(), *(buffer.raw().tobytes() for buffer in buffers)]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles as for another process, except that classes arrive as themselves."""

    def __init__(
        self, file: io.BytesIO, reduced: Callable[[object], Any], buffers: list[pickle.PickleBuffer]
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)
        self._reduced = reduced

    def reducer_override(self, obj: Any) -> Any:
        """Say how `obj` is pickled; the built-in types do not come here."""
        if isinstance(obj, type):
            return _recall, (_remember(obj),)
        special = self._reduced(obj)
        return super().reducer_override(obj) if special is NotImplemented else special


_lock = RealKernel.lock()
_classes: weakref.WeakValueDictionary[int, type] = weakref.WeakValueDictionary()  # guarded by _lock


def _remember(cls: type) -> int:
    """Return the number under which ``_recall`` finds `cls`. Raises what pickling it for a cluster would raise."""
    number = id(cls)
    with _lock:
        is_known = _classes.get(number) is cls
    if not is_known:
        cloudpickle.dumps(cls)
        with _lock:
            _classes[number] = cls
    return number


def _recall(number: int) -> type:
    with _lock:
        return _classes[number]


# ---- what cannot be shipped, and why


def refuse_unshippable(what: str, name: str, value: Any) -> None:
    """Raise ConfigError if `value`, a part of `what`, cannot be pickled; names the path to the part that cannot."""
    try:
        cloudpickle.dumps(value)
    except Exception as error:
        raise ConfigError(
            f"{what}: {name}{culprit(value)} could not be shipped to a cluster: {error}"
        ) from error


def culprit(value: Any) -> str:
    """Return the path from `value` to what it cannot be pickled for, such as ``.lock`` or ``['a'][0].lock``."""
    path, seen = "", {id(value): value}
    found = True
    while found:
        found = False
        for step, part in _parts(value):
            if id(part) not in seen and not _is_shippable(part):
                seen[id(part)] = part
                path, value, found = path + step, part, True
                break
    return path


def _is_shippable(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is pickled with `value`, and how one gets there."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"{{{part!r}}}", part) for part in value)
    elif inspect.isfunction(value):
        yield from _parts_of_function(value)
    elif isinstance(value, (staticmethod, classmethod)) or inspect.ismethod(value):
        yield "", value.__func__
        yield ".__self__", getattr(value, "__self__", None)
    elif isinstance(value, property):
        yield from (("", part) for part in (value.fget, value.fset, value.fdel) if part)
    else:
        yield from ((f".{name}", part) for name, part in dict(getattr(value, "__dict__", {})).items())
        slots = (name for base in type(value).__mro__ for name in vars(base).get("__slots__", ()))
        yield from ((f".{name}", getattr(value, name)) for name in slots if hasattr(value, name))
        if not isinstance(value, type):
            yield f" (its class {type(value).__name__})", type(value)


def _parts_of_function(function: Any) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            yield f" (through its variable {name!r})", cell.cell_contents
        except ValueError:  # not bound yet
            continue
    for name in code.co_names:
        if name in function.__globals__:
            yield f" (through the global {name!r})", function.__globals__[name]
    for index, default in enumerate(function.__defaults__ or ()):
        yield f" (through its default {index})", default
