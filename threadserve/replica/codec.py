"""How values and errors travel between interpreters.

None, bools, numbers, strings, bytes and tuples of them go as they are. A buffer goes without a copy, as a memoryview that
both sides share: any memoryview, any numpy array (which no other interpreter could make anew), and everything else
that is a buffer of ``LARGE`` bytes or more, but for bytes, which stay bytes. The rest goes by pickle, with buffers inside of it
out of band.

An error arrives as itself: type, arguments, attributes, notes, cause, context, and a traceback that shows the files and lines
of the other interpreter. Its frames are stand-ins that hold no variables.
"""

from __future__ import annotations

import io
import pickle
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LARGE", "is_plain", "pack", "pack_call", "pack_error", "unpack", "unpack_call", "unpack_error"]

LARGE = 256 * 1024
"""Bytes from which on a buffer is shared instead of copied."""

Packed = tuple[Any, ...]
"""``(value,)``, or ``(pickle, buffers, None)``; both can be put in a mailbox."""

_PLAIN = frozenset((str, bytes, bool, float, type(None)))
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_LONGEST_TRACEBACK = 64


def is_plain(value: Any) -> bool:
    """Whether `value` goes as it is."""
    kind = type(value)
    if kind is int:
        return bool(_LEAST <= value <= _MOST)
    if kind is tuple:
        return all(map(is_plain, value))
    if kind is memoryview:
        return "O" not in value.format
    return kind in _PLAIN


def pack(value: Any) -> Packed:
    """Return what a mailbox takes for `value`.

    Raises:
        Exception: It cannot be pickled; what pickle, or the code of the value's class, says of that.
    """
    if not is_plain(value):
        value = _shared(value)
        if not is_plain(value):
            return _pickled(value)
    return (value,)


def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Packed:
    """Return what a mailbox takes for the arguments of a call. Raises what ``pack`` raises."""
    if not kwargs and is_plain(args):
        return (args,)
    shared = tuple(map(_shared, args))
    if not kwargs and is_plain(shared):
        return (shared,)
    return _pickled((shared, {name: _shared(value) for name, value in kwargs.items()}))


def unpack(packed: Packed) -> Any:
    """Return the value. Raises what pickle, or the code of the value's class, raises."""
    return packed[0] if len(packed) == 1 else pickle.loads(packed[0], buffers=packed[1])


def unpack_call(packed: Packed) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call. Raises what ``unpack`` raises."""
    return (packed[0], {}) if len(packed) == 1 else pickle.loads(packed[0], buffers=packed[1])


def _pickled(value: Any) -> Packed:
    buffers: list[memoryview] = []
    file = io.BytesIO()
    _Pickler(file, 5, buffer_callback=lambda buffer: buffers.append(memoryview(buffer))).dump(value)
    return file.getvalue(), tuple(buffers), None


def _shared(value: Any) -> Any:
    """Return a large bytearray as a view of it: pickle would copy it before it asks anybody."""
    return memoryview(value) if type(value) is bytearray and len(value) >= LARGE else value


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        view = _view(value)
        if view is None:
            return NotImplemented
        if "O" in view.format:
            raise pickle.PicklingError("a buffer of Python objects cannot be shared with another interpreter")
        return _itself, (pickle.PickleBuffer(view),)


def _view(value: Any) -> memoryview | None:
    """Return `value` as a memoryview where it is to be shared."""
    if type(value) is memoryview:
        return value
    if isinstance(value, type):
        return None
    try:
        view = memoryview(value)
    except (TypeError, ValueError, BufferError):
        return None
    is_array = view.ndim > 0 and type(value).__module__.partition(".")[0] == "numpy"
    return view if is_array or view.nbytes >= LARGE else None


def _itself(value: Any) -> Any:
    return value


# ---- errors


def pack_error(error: BaseException) -> Packed:
    """Return what a mailbox takes for `error`. Does not raise."""
    return (pickle.dumps(_portrait(error, set()), 5),)


def unpack_error(packed: Packed) -> BaseException:
    """Return the error."""
    return _revived(pickle.loads(packed[0]))


class Portrait(dict[str, Any]):
    """An error as far as it can travel; pickled parts within, so that one that cannot be read spoils no other."""


def _portrait(error: BaseException, seen: set[int]) -> Portrait:
    seen.add(id(error))
    cause, context = (
        None if other is None or id(other) in seen else _portrait(other, seen)
        for other in (error.__cause__, error.__context__)
    )
    return Portrait(
        whole=_whole(error),
        kind=type(error).__name__,
        text=_text(error),
        notes=[str(note) for note in getattr(error, "__notes__", ())],
        trace=list(_lines(error.__traceback__)),
        cause=cause,
        context=context,
        members=[_portrait(member, seen) for member in _members(error)],
        is_quiet=error.__suppress_context__,
    )


def _members(error: BaseException) -> tuple[BaseException, ...]:
    return error.exceptions if isinstance(error, BaseExceptionGroup) else ()


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<its __str__ raises>"


def _whole(error: BaseException) -> bytes:
    """Return the pickled error; or, where its class does not allow that, what a new one can be made of."""
    if isinstance(error, BaseExceptionGroup):  # its members travel by themselves
        return pickle.dumps((type(error), (error.message,), vars(error)), 5)
    try:
        pickled = pickle.dumps(error, 5)
        twin = pickle.loads(pickled)
        if type(twin) is type(error) and twin.args == error.args:
            return pickled
    except Exception:
        pass  # its class does not allow it, and is no reason to lose what it was raised with
    try:
        return pickle.dumps((type(error), error.args, vars(error)), 5)
    except Exception as failure:
        return pickle.dumps(_text(failure), 5)


def _revived(portrait: Portrait) -> BaseException:
    error = _made(portrait)
    for note in portrait["notes"]:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    for name, other in (("__cause__", portrait["cause"]), ("__context__", portrait["context"])):
        if other is not None:
            setattr(error, name, _revived(other))
    error.__suppress_context__ = portrait["is_quiet"]
    return error.with_traceback(_traceback(portrait["trace"]))


def _made(portrait: Portrait) -> BaseException:
    try:
        whole = pickle.loads(portrait["whole"])
    except Exception as failure:
        whole = _text(failure)
    if isinstance(whole, BaseException):
        return whole
    if isinstance(whole, str):
        return RuntimeError(
            f"{portrait['kind']}: {portrait['text']} (it cannot leave its interpreter as itself: {whole})"
        )
    kind, args, attributes = whole
    members = [_revived(member) for member in portrait["members"]]
    if members:
        args = (*args, members)
    error: BaseException = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


def _lines(trace: TracebackType | None) -> Iterable[tuple[str, str, int]]:
    count = 0
    while trace is not None and count < _LONGEST_TRACEBACK:
        code = trace.tb_frame.f_code
        yield code.co_filename, code.co_name, trace.tb_lineno
        trace, count = trace.tb_next, count + 1


_STAND_IN = compile("raise error", "<stand-in>", "exec")


def _traceback(lines: list[tuple[str, str, int]]) -> TracebackType | None:
    """Return a traceback with these lines, of frames that have only their names."""
    trace: TracebackType | None = None
    for filename, name, line in reversed(lines):
        frame = _frame(filename, name, line)
        if frame is not None:
            trace = TracebackType(trace, frame.tb_frame, frame.tb_lasti, line)
    return trace


def _frame(filename: str, name: str, line: int) -> TracebackType | None:
    code = _STAND_IN.replace(co_filename=filename, co_name=name, co_qualname=name, co_firstlineno=line)
    try:
        exec(code, {"error": RuntimeError(), "__name__": "<another interpreter>"})
    except RuntimeError as stand_in:
        raised = stand_in.__traceback__
        return None if raised is None else raised.tb_next
    return None
