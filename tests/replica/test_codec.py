"""What travels between interpreters, and in what form; here both ends are in one."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from tests.replica.bodies import OutOfStock, Point
from threadserve.errors import BackPressureError, RequestTimeoutError
from threadserve.replica.codec import LARGE, pack, pack_call, pack_error, unpack, unpack_call, unpack_error

PLAIN = [None, True, 1, -(2**63), 2**63 - 1, 0.5, "text", b"bytes", (), (1, ("a", (None,)))]


class Twins(tuple[Any, ...]):
    """No tuple exactly."""

    __slots__ = ()


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_go_as_they_are(value: Any) -> None:
    assert pack(value) == (value,)
    assert pack(value)[0] is value


@pytest.mark.parametrize("value", [2**63, [1], {"k": 1}, Twins((1,)), (1, [2]), Point(1, 2)], ids=repr)
def test_all_else_is_pickled(value: Any) -> None:
    packed = pack(value)

    assert isinstance(packed[0], bytes)
    assert unpack(packed) == value
    assert type(unpack(packed)) is type(value)


def test_the_arguments_of_a_call_go_as_they_are_where_all_are_plain() -> None:
    assert pack_call((1, "a"), {}) == ((1, "a"),)
    assert unpack_call(pack_call((1, "a"), {})) == ((1, "a"), {})
    assert unpack_call(pack_call((1,), {"k": [2]})) == ((1,), {"k": [2]})


@pytest.mark.parametrize("size", [LARGE - 1, LARGE])
def test_a_bytearray_is_shared_from_a_size_on(size: int) -> None:
    original = bytearray(size)

    (received,), _ = unpack_call(pack_call((original,), {}))
    original[0] = 7

    assert type(received) is (memoryview if size == LARGE else bytearray)
    assert received[0] == (7 if size == LARGE else 0)


def test_a_view_keeps_its_form() -> None:
    view = memoryview(bytearray(48)).cast("i", (3, 4))

    received = unpack(pack({"view": view}))["view"]

    assert (received.format, received.shape) == ("i", (3, 4))
    view[1, 1] = 5
    assert received[1, 1] == 5


def failed(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


class Sealed(Exception):
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("sealed")


class Locked(Exception):
    """Has what cannot be pickled."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        OSError(2, "no such file", "path"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(3),
        KeyboardInterrupt(),
        OutOfStock("apple", 3),
        ExceptionGroup("several", [ValueError(1), OutOfStock("pear", 1)]),
        BackPressureError("full", deployment="a/b", queued=3, limit=2),
        RequestTimeoutError("late", elapsed_s=1.5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_itself(error: BaseException) -> None:
    arrived = unpack_error(pack_error(failed(error)))

    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived).keys() == vars(error).keys()
    shown = "".join(traceback.format_exception(arrived))
    assert "in failed\n" in shown
    assert "raise error" in shown


def test_causes_contexts_and_notes_arrive() -> None:
    error, cause, context = ValueError("error"), KeyError("cause"), IndexError("context")
    error.__cause__, cause.__context__ = cause, context
    context.__cause__ = error  # a circle
    error.add_note("a note")

    arrived = unpack_error(pack_error(error))

    assert arrived.__notes__ == ["a note"]
    assert repr(arrived.__cause__) == repr(cause)
    assert arrived.__cause__ is not None
    assert repr(arrived.__cause__.__context__) == repr(context)
    assert arrived.__suppress_context__


def test_an_error_that_cannot_travel_is_told_of() -> None:
    locked = Locked()
    locked.__dict__["lock"] = __import__("threading").Lock()

    assert type(unpack_error(pack_error(Sealed("message")))) is Sealed
    with pytest.raises(RuntimeError, match=r"Locked: .*cannot leave its interpreter as itself.*pickle"):
        raise unpack_error(pack_error(locked))
