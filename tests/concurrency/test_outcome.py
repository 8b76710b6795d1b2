from __future__ import annotations

import gc
import threading
import traceback
import weakref
from dataclasses import dataclass
from typing import Any, Never, Self

import pytest

from threadserve.concurrency.outcome import Error, Outcome, Value, capture


class KeywordOnlyError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class SlottedError(Exception):
    __slots__ = ("code", "unset")

    code: int
    unset: int

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class DifficultError(Exception):
    def __new__(cls, *args: object) -> Self:
        if args != ("the", "right", "arguments"):
            raise RuntimeError("user code ran")
        return super().__new__(cls, "others")

    def __init__(self, *args: object) -> None:
        super().__init__("others")


class FileLikeError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(5, "broken", path)
        self.extra = path


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class GuardedError(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("read-only")

    def __getattr__(self, name: str) -> Never:
        raise LookupError(name)


class UnclonableError(Exception):
    __dict__ = property(lambda self: 1 // 0)  # pyright: ignore[reportAssignmentType]


class TwofoldError(ValueError, KeyError):
    pass


ODD = [
    ValueError("plain", 1),
    ValueError(),
    KeyError("key"),
    KeywordOnlyError(code=7),
    SlottedError(7),
    DifficultError("the", "right", "arguments"),
    FileLikeError("there"),
    FrozenError(7),
    GuardedError("guarded"),
    TwofoldError("both"),
    FileNotFoundError(2, "no such file", "there"),
    OSError(),
    TimeoutError("late"),
    StopIteration("value"),
    SystemExit(3),
    KeyboardInterrupt(),
    ImportError("missing", name="module", path="there"),
    SyntaxError("wrong", ("file.py", 1, 2, "text")),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "wrong"),
    AttributeError("no x", name="x", obj=3),
    ExceptionGroup("group", [ValueError(1), KeyError(2)]),
]


def odd(error: BaseException) -> str:
    return repr(error)


def raised(error: BaseException) -> Error:
    def fail() -> None:
        raise error

    outcome = capture(fail)
    assert isinstance(outcome, Error)
    return outcome


def depth(error: BaseException) -> int:
    return len(traceback.extract_tb(error.__traceback__))


def fields(error: BaseException) -> dict[str, Any]:
    """Everything that can be seen of an exception, but for where it was raised."""
    names = [name for name in object.__dir__(error) if not name.startswith("__")]
    seen = {}
    for name in names:
        try:
            seen[name] = object.__getattribute__(error, name)
        except (AttributeError, TypeError):
            continue
    return {name: value for name, value in seen.items() if not callable(value)}


class TestValue:
    def test_is_unwrapped_any_number_of_times(self) -> None:
        thing = object()
        outcome = Value(thing)

        assert outcome.unwrap() is thing
        assert outcome.unwrap() is thing
        assert outcome.exception is None


class TestCapture:
    def test_keeps_what_was_returned(self) -> None:
        outcome = capture(divmod, 7, 2)

        assert isinstance(outcome, Value)
        assert outcome.unwrap() == (3, 1)

    def test_passes_keyword_arguments(self) -> None:
        assert capture(int, "11", base=2).unwrap() == 3

    @pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_keeps_what_was_raised(self, kind: type[BaseException]) -> None:
        error = kind("wrong")

        outcome = raised(error)

        assert outcome.exception is error
        assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"


class TestFirstFetch:
    @pytest.mark.parametrize("error", ODD, ids=odd)
    def test_gives_the_original(self, error: BaseException) -> None:
        assert Error(error).fetch() is error

    def test_is_not_spent_by_looking(self) -> None:
        error = ValueError()
        outcome = Error(error)

        assert outcome.exception is error
        assert outcome.exception is error

        assert outcome.fetch() is error

    def test_is_what_unwrap_raises(self) -> None:
        error = ValueError("wrong")

        with pytest.raises(ValueError, match="wrong") as caught:
            raised(error).unwrap()

        assert caught.value is error


class TestLaterFetch:
    @pytest.mark.parametrize("error", ODD, ids=odd)
    def test_gives_a_copy_that_looks_the_same(self, error: BaseException) -> None:
        outcome = Error(error)
        outcome.fetch()

        for copy in (outcome.fetch(), outcome.fetch()):
            assert copy is not error
            assert type(copy) is type(error)
            assert copy.args == error.args
            assert fields(copy) == fields(error)
            assert str(copy) == str(error)
            assert repr(copy) == repr(error)

    def test_gives_a_copy_with_its_own_attributes(self) -> None:
        outcome = Error(KeywordOnlyError(code=7))
        outcome.fetch()
        first, second = outcome.fetch(), outcome.fetch()
        assert isinstance(first, KeywordOnlyError)
        assert isinstance(second, KeywordOnlyError)

        first.code = 8

        assert second.code == 7
        assert outcome.exception.code == 7  # type: ignore[attr-defined]

    def test_gives_a_copy_with_its_own_list_of_notes(self) -> None:
        error = ValueError()
        error.add_note("common")
        outcome = Error(error)
        outcome.fetch()
        first, second = outcome.fetch(), outcome.fetch()

        first.add_note("mine")

        assert first.__notes__ == ["common", "mine"]
        assert second.__notes__ == error.__notes__ == ["common"]

    def test_shares_what_the_attributes_refer_to(self) -> None:
        error = KeywordOnlyError(code=7)
        error.payload = ["shared"]  # type: ignore[attr-defined]
        outcome = Error(error)
        outcome.fetch()

        assert outcome.fetch().payload is error.payload  # type: ignore[attr-defined]

    def test_keeps_cause_context_and_whether_it_is_shown(self) -> None:
        def fail_because() -> None:
            try:
                raise KeyError("context")
            except KeyError:
                raise ValueError from OSError("cause")

        def fail_meanwhile() -> None:
            try:
                raise KeyError("context")
            except KeyError:
                raise ValueError  # noqa: B904

        for fail in (fail_because, fail_meanwhile):
            outcome = capture(fail)
            assert isinstance(outcome, Error)
            original, copy = outcome.fetch(), outcome.fetch()

            assert copy.__cause__ is original.__cause__
            assert copy.__context__ is original.__context__
            assert copy.__suppress_context__ is original.__suppress_context__
        assert copy.__cause__ is None
        assert isinstance(copy.__context__, KeyError)

    def test_gives_the_original_where_no_copy_can_be_made(self) -> None:
        error = UnclonableError("only one")
        outcome = raised(error)
        recorded = depth(error)
        for _ in range(3):
            with pytest.raises(UnclonableError):
                outcome.unwrap()

        again = outcome.fetch()

        assert again is error
        assert depth(again) == recorded


class TestTraceback:
    def test_leads_to_where_it_was_raised_at_every_fetch(self) -> None:
        outcome = raised(ValueError())

        for _ in range(3):
            with pytest.raises(ValueError) as caught:
                outcome.unwrap()
            assert caught.traceback[-1].name == "fail"

    def test_does_not_grow(self) -> None:
        outcome = raised(ValueError())
        depths = set()
        for _ in range(50):
            with pytest.raises(ValueError) as caught:
                outcome.unwrap()
            depths.add(depth(caught.value))

        assert len(depths) == 1

    def test_of_a_copy_is_not_that_of_the_others(self) -> None:
        outcome = raised(ValueError())
        recorded = depth(outcome.exception)
        outcome.fetch()
        first, second = outcome.fetch(), outcome.fetch()

        with pytest.raises(ValueError):
            raise first

        assert depth(first) > recorded
        assert depth(second) == recorded


class TestLetGo:
    @pytest.mark.parametrize("was_fetched", [False, True])
    def test_without_the_garbage_collector_once_nobody_holds_it(self, was_fetched: bool) -> None:
        class Payload:
            pass

        def fail(payload: Payload) -> None:
            raise ValueError(payload)

        def fetch_and_drop() -> weakref.ref[Payload]:
            payload = Payload()
            outcomes = [capture(fail, payload)]  # popped below: the frame that catches holds no outcome
            if was_fetched:
                outcomes[0].fetch()  # type: ignore[union-attr]
            with pytest.raises(ValueError):
                outcomes.pop().unwrap()
            return weakref.ref(payload)

        gc.disable()
        try:
            ghost = fetch_and_drop()
            assert ghost() is None
        finally:
            gc.enable()


def caught_at_once(outcome: Outcome, threads: int) -> list[BaseException]:
    """Unwrap in so many threads at the same time."""
    caught: list[BaseException] = []
    start = threading.Barrier(threads)

    def unwrap() -> None:
        start.wait()
        try:
            outcome.unwrap()
        except ValueError as mine:
            caught.append(mine)

    started = [threading.Thread(target=unwrap) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return caught


def test_exactly_one_of_many_threads_gets_the_original() -> None:
    for _ in range(50):
        error = ValueError("wrong")

        caught = caught_at_once(raised(error), 8)

        assert sum(mine is error for mine in caught) == 1
        assert len({id(mine) for mine in caught}) == 8
        assert len({depth(mine) for mine in caught}) == 1
