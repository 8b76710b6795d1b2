"""Mailboxes between threads: no item is lost, whoever is woken."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from tests.doubles import wait_until
from threadserve.concurrency.interpreters import Interpreter, Mailbox, is_offered
from threadserve.concurrency.real import RealKernel

pytestmark = pytest.mark.skipif(not is_offered(), reason="subinterpreters exist from Python 3.14 on")


def as_it_is(item: object) -> object:
    return item


def test_an_item_is_there_for_who_has_waited() -> None:
    mailbox = Mailbox.new()
    mailbox.put((1, "a", b"b", None))

    mailbox.wait()
    assert mailbox.take() == (1, "a", b"b", None)
    assert mailbox.take() is None
    mailbox.close()


def test_it_works_through_pipes_where_there_is_no_eventfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "eventfd", raising=False)

    test_an_item_is_there_for_who_has_waited()


def test_what_many_put_is_taken_by_many_each_item_once() -> None:
    mailbox = Mailbox.new(for_many=True)
    taken: list[int] = []

    def take() -> None:
        while True:
            mailbox.wait()
            item = mailbox.take()
            if item < 0:
                return
            taken.append(item)

    takers = [threading.Thread(target=take) for _ in range(4)]
    for taker in takers:
        taker.start()
    putters = [
        threading.Thread(target=lambda start=start: [mailbox.put(start + n) for n in range(250)])
        for start in (0, 1000)
    ]
    for putter in putters:
        putter.start()
    for putter in putters:
        putter.join()
    for _ in takers:
        mailbox.put(-1)
    for taker in takers:
        taker.join()

    assert sorted(taken) == [*range(250), *range(1000, 1250)]
    mailbox.close()


def test_a_visitor_and_those_who_wait_miss_nothing_between_them() -> None:
    mailbox, lock, count = Mailbox.new(), RealKernel.lock(), 2000
    taken: list[int] = []

    def wait() -> None:
        while len(taken) < count:
            mailbox.wait()
            item = mailbox.take()
            if item is not None:
                taken.append(item)
                mailbox.nudge()

    def put() -> None:
        for number in range(count):
            mailbox.put(number)

    waiting, putting = threading.Thread(target=wait), threading.Thread(target=put)
    waiting.start()
    putting.start()
    while len(taken) < count:
        goal = min(count, len(taken) + 7)
        mailbox.visit(lock, as_it_is, taken.append, lambda goal=goal: len(taken) >= goal)  # type: ignore[misc]
    mailbox.ring()
    putting.join()
    waiting.join()

    assert sorted(taken) == [*range(count)]
    mailbox.close()


def test_a_visitor_that_is_nudged_looks_again() -> None:
    mailbox, lock = Mailbox.new(), RealKernel.lock()
    is_enough = threading.Event()
    visitor = threading.Thread(target=mailbox.visit, args=(lock, as_it_is, as_it_is, is_enough.is_set))
    visitor.start()
    wait_until(lambda: mailbox.parts[3][0] == 1)

    is_enough.set()
    mailbox.nudge()

    visitor.join()
    mailbox.close()


def test_another_interpreter_puts_and_takes() -> None:
    there, back = Mailbox.new(), Mailbox.new()
    interpreter = Interpreter()
    there.put((20, memoryview(b"shared")))

    interpreter.run(
        "import sys; sys.path[:] = path\n"
        "from threadserve.concurrency.interpreters import Mailbox\n"
        "there, back = Mailbox(*there), Mailbox(*back)\n"
        "there.wait(); number, view = there.take(); back.put((number + 1, bytes(view)))",
        {"path": tuple(sys.path), "there": there.parts, "back": back.parts},
    )

    back.wait()
    assert back.take() == (21, b"shared")
    interpreter.close()
    there.close()
    back.close()


def test_what_is_raised_in_another_interpreter_is_told() -> None:
    interpreter = Interpreter()

    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        interpreter.run("1 / zero", {"zero": 0})

    interpreter.close()
