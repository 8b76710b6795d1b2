"""How a call ended: with a value or with an exception. Made once, fetched by anybody, any number of times."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from types import BuiltinFunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Error", "Outcome", "Value", "Withdrawn", "capture"]

_FIELDS = (MemberDescriptorType, GetSetDescriptorType)  # what an exception holds outside of its __dict__


class Value:
    """The call returned."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    @property
    def exception(self) -> BaseException | None:
        """None: a value is no exception."""
        return None

    def unwrap(self) -> Any:
        """Return the value."""
        return self.value


class Error:
    """The call raised.

    The first fetch gets the original object. Each later one gets a shallow copy with the traceback as it was
    recorded, so that neither tracebacks grow nor two threads raise one object at the same time. The copy is
    made without running user code; where that is not possible the original is given again.
    """

    __slots__ = ("_original", "_traceback", "_unfetched")

    def __init__(self, exception: BaseException) -> None:
        self._original = exception
        self._traceback: TracebackType | None = exception.__traceback__
        self._unfetched = deque(
            (exception,)
        )  # popleft is atomic: one fetch, of whatever thread, is the first

    @property
    def exception(self) -> BaseException:
        """The exception, for looking at; raise what ``fetch`` gives instead."""
        return self._original

    def fetch(self) -> BaseException:
        """Return an exception that the caller may raise."""
        try:
            return self._unfetched.popleft()
        except IndexError:
            return self._copy()

    def unwrap(self) -> Any:
        """Raise the exception."""
        exception = self.fetch()
        try:
            raise exception
        finally:
            del exception, self  # the frame is in the traceback: no cycle

    def _copy(self) -> BaseException:
        try:
            twin = _twin(self._original)
        except Exception:  # a class that cannot be made this way: see the class docstring
            return self._original.with_traceback(self._traceback)
        return twin.with_traceback(self._traceback)


def _twin(original: BaseException) -> BaseException:
    """Copy an exception, past what its class does in ``__new__``, ``__init__`` and ``__setattr__``."""
    cls = type(original)
    makers = [vars(base).get("__new__") for base in cls.__mro__]
    make = next(maker for maker in makers if isinstance(maker, BuiltinFunctionType))
    twin: BaseException = make(cls, *original.args)
    twin.__dict__.update(vars(original))
    if isinstance(notes := twin.__dict__.get("__notes__"), list):
        twin.__dict__["__notes__"] = notes.copy()  # a note added to one is not for the others
    for base in cls.__mro__:
        for name, field in vars(base).items():
            if isinstance(field, _FIELDS) and not name.startswith("__"):
                value = _read(field, original)
                if value is not _read(field, twin):  # and only then: to an OSError, None is not nothing
                    with suppress(AttributeError, TypeError):  # read-only, so __new__ has set it
                        field.__set__(twin, value)
    for name in ("args", "__cause__", "__context__", "__suppress_context__"):
        object.__setattr__(twin, name, getattr(original, name))
    return twin


def _read(field: Any, exception: BaseException) -> Any:
    try:
        return field.__get__(exception)
    except (AttributeError, TypeError):
        return None  # not set


class Withdrawn(Error):
    """The call was taken back before it began."""

    __slots__ = ()


Outcome: TypeAlias = Value | Error


def capture(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Outcome:
    """Call and keep whatever comes of it, BaseException included."""
    try:
        return Value(fn(*args, **kwargs))
    except BaseException as exception:
        return Error(exception)
