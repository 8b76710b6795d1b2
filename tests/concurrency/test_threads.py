from __future__ import annotations

import threading
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from threadserve.concurrency.threads import Inheritance, is_current, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VARIABLE: ContextVar[str] = ContextVar("the_variable")


@pytest.fixture
def inheritance() -> Iterator[Inheritance]:
    inheritance = Inheritance("the_variable", partial(VARIABLE.get, None))
    inheritance.install()
    yield inheritance
    inheritance.uninstall()


def with_value(value: str, act: Callable[[], Any]) -> Any:
    """Call where the variable has `value`."""

    def inside() -> Any:
        VARIABLE.set(value)
        return act()

    return copy_context().run(inside)


def seen_by_a_thread(look: Callable[[], Any]) -> Any:
    """Start a thread as users do, and return what it sees."""
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(look()))
    thread.start()
    thread.join()
    return seen[0]


class TestStartThread:
    def test_starts_a_daemon_under_its_name(self) -> None:
        seen: list[threading.Thread] = []

        thread = start_thread("shop worker 1", lambda: seen.append(threading.current_thread()))
        thread.join()

        assert seen == [thread]
        assert thread.name == "shop worker 1"
        assert thread.daemon

    def test_is_current_only_to_itself(self) -> None:
        seen: list[bool] = []
        go = threading.Event()

        def look() -> None:
            go.wait()
            seen.append(is_current(thread))

        thread = start_thread("looks", look)
        assert not is_current(thread)
        go.set()
        thread.join()

        assert seen == [True]


class TestInheritance:
    def test_reaches_threads_and_their_threads(self, inheritance: Inheritance) -> None:
        def look() -> tuple[Any, Any]:
            return inheritance.get(), seen_by_a_thread(inheritance.get)

        assert with_value("mine", lambda: seen_by_a_thread(look)) == ("mine", "mine")

    def test_is_what_was_in_force_at_the_start(self, inheritance: Inheritance) -> None:
        go = threading.Event()
        seen: list[Any] = []

        def look() -> None:
            go.wait()
            seen.append(inheritance.get())

        def start() -> threading.Thread:
            thread = threading.Thread(target=look)
            thread.start()
            VARIABLE.set("later")
            return thread

        thread = with_value("first", start)
        go.set()
        thread.join()

        assert seen == ["first"]

    def test_gives_way_to_the_context(self, inheritance: Inheritance) -> None:
        def look() -> Any:
            VARIABLE.set("its own")
            return inheritance.get()

        assert with_value("inherited", lambda: seen_by_a_thread(look)) == "its own"

    def test_is_nothing_where_there_was_nothing(self, inheritance: Inheritance) -> None:
        assert seen_by_a_thread(inheritance.get) is None
        assert inheritance.get() is None

    def test_does_not_touch_threads_of_our_own(self, inheritance: Inheritance) -> None:
        seen: list[Any] = []

        with_value(
            "a caller's", lambda: start_thread("worker", lambda: seen.append(inheritance.get())).join()
        )

        assert seen == [None]

    def test_of_two_variables_is_kept_apart(self, inheritance: Inheritance) -> None:
        other_variable: ContextVar[str] = ContextVar("the_other_variable")
        other = Inheritance("the_other_variable", partial(other_variable.get, None))
        other.install()

        def start() -> Any:
            other_variable.set("other")
            return seen_by_a_thread(lambda: (inheritance.get(), other.get()))

        try:
            assert with_value("mine", start) == ("mine", "other")
        finally:
            other.uninstall()

    def test_ends_with_the_last_user(self) -> None:
        plain = threading.Thread.start
        inheritance = Inheritance("the_variable", partial(VARIABLE.get, None))
        inheritance.install()
        inheritance.install()

        inheritance.uninstall()
        assert with_value("mine", lambda: seen_by_a_thread(inheritance.get)) == "mine"
        inheritance.uninstall()

        assert threading.Thread.start is plain
        assert with_value("mine", lambda: seen_by_a_thread(inheritance.get)) is None

    def test_may_be_installed_again(self) -> None:
        plain = threading.Thread.start
        inheritance = Inheritance("the_variable", partial(VARIABLE.get, None))
        inheritance.install()
        inheritance.uninstall()

        inheritance.install()

        assert with_value("mine", lambda: seen_by_a_thread(inheritance.get)) == "mine"
        inheritance.uninstall()
        assert threading.Thread.start is plain

    def test_leaves_in_place_what_others_have_put_over_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[str] = []
        monkeypatch.setattr(threading.Thread, "start", threading.Thread.start)  # put back afterwards
        inheritance = Inheritance("the_variable", partial(VARIABLE.get, None))
        inheritance.install()
        ours = threading.Thread.start

        def theirs(thread: threading.Thread) -> None:
            started.append(thread.name)
            ours(thread)

        monkeypatch.setattr(threading.Thread, "start", theirs)
        inheritance.uninstall()

        assert threading.Thread.start is theirs
        assert with_value("mine", lambda: seen_by_a_thread(inheritance.get)) is None
        assert len(started) == 1
        inheritance.install()
        assert with_value("mine", lambda: seen_by_a_thread(inheritance.get)) == "mine"

    def test_lets_a_thread_fail_to_start_as_it_would(self, inheritance: Inheritance) -> None:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()

        with pytest.raises(RuntimeError, match="only be started once"):
            thread.start()
        assert inheritance.get() is None
