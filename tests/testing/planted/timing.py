"""Mistakes with time and order: retries, hedged calls, cancellations that are forgotten or not heard."""

from __future__ import annotations

import threading
from typing import Any

import threadserve as serve
from tests.testing.planted.bug import Planted, app, pause, together
from threadserve import futures
from threadserve.testing import faults

__all__ = ["BUGS"]


class Bank:
    """Books what it is told to; the first booking takes long."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.booked: dict[str, int] = {}
        self.count = 0

    def book(self, key: str = "") -> None:
        with self.lock:
            self.count += 1
            is_slow = self.count == 1
        if is_slow:
            pause(2)
        with self.lock:
            self.booked[key or str(len(self.booked))] = 1

    def total(self) -> int:
        return len(self.booked)


# ---- a retry of what is not idempotent: the first attempt was only late


class BooksTwice:
    def __init__(self, bank: Any) -> None:
        self.bank = bank

    def pay(self, key: str) -> None:
        for _ in range(3):
            try:
                return self._attempt(key)
            except TimeoutError:
                continue
        return None

    def _attempt(self, key: str) -> None:
        self.bank.book.remote().result(timeout_s=1)

    def total(self) -> Any:
        pause(10)
        return self.bank.total.remote().result()


class BooksOnce(BooksTwice):
    def _attempt(self, key: str) -> None:
        self.bank.book.remote(key).result(timeout_s=1)


def pay_once(handle: Any) -> None:
    handle.pay.remote("order 1").result()
    assert handle.total.remote().result() == 1


# ---- a retry after a crash: the replica died, and perhaps it had done it before


class Ledger:
    def __init__(self, book: Any) -> None:
        self.book = book

    def pay(self, key: str) -> None:
        self.book.add.remote(key).result()


class Book:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(line)

    def add_once(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)

    def read(self) -> list[str]:
        return self.lines


class OnceLedger(Ledger):
    def pay(self, key: str) -> None:
        self.book.add_once.remote(key).result()


class RetriesWhatDied:
    def __init__(self, ledger: Any, book: Any) -> None:
        self.ledger, self.book = ledger, book

    def pay(self) -> Any:
        killer = self.ledger.die.remote()
        while True:
            try:
                self.ledger.pay.remote("line").result()
                break
            except serve.ReplicaDiedError:
                continue
        killer.exception()
        return self.book.read.remote().result()


def dying(ledger: type[Ledger]) -> Any:
    class Mortal(ledger):  # type: ignore[misc, valid-type]
        def die(self) -> None:
            raise SystemExit(1)

    book = app(Book)
    return app(RetriesWhatDied, app(Mortal, book, slots=2), book)


def pay_a_mortal(handle: Any) -> None:
    assert handle.pay.remote().result() == ["line"]


# ---- a hedged call whose loser is not cancelled goes on, and does it as well


class Instant(Bank):
    def book(self, key: str = "") -> None:
        with self.lock:
            self.booked[key or str(len(self.booked))] = 1


class Alternates:
    """Answers the first call at once, the second one late."""

    def __init__(self, bank: Any) -> None:
        self.bank = bank
        self.count = 0
        self.lock = threading.Lock()

    def work(self) -> int:
        with self.lock:
            self.count += 1
            is_late = self.count > 1
        if is_late:
            pause(5)
            serve.check_cancelled()
        self.bank.book.remote().result()
        return 7


class ForgetsTheLoser:
    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def ask(self) -> Any:
        first, second = self.worker.work.remote(), self.worker.work.remote()
        winner, *_ = futures.wait([first, second], return_when=futures.FIRST_COMPLETED).done
        self._end(second if winner is first else first)
        return winner.result()

    def _end(self, loser: Any) -> None:
        """It is not needed any more, but nobody tells it."""


class CancelsTheLoser(ForgetsTheLoser):
    def _end(self, loser: Any) -> None:
        loser.cancel()


class Hedge:
    def __init__(self, front: Any, bank: Any) -> None:
        self.front, self.bank = front, bank

    def booked(self) -> Any:
        self.front.ask.remote().result()
        pause(60)
        return self.bank.total.remote().result()


def hedging(front: type[ForgetsTheLoser]) -> Any:
    bank = app(Instant)
    return app(Hedge, app(front, app(Alternates, bank)), bank)


def hedge_once(handle: Any) -> None:
    assert handle.booked.remote().result() == 1


# ---- a cancellation that is swallowed: the body goes on as if nothing was


class SwallowsCancellation:
    def __init__(self) -> None:
        self.done = 0

    def work(self) -> None:
        try:
            pause(5)
            serve.check_cancelled()
        except BaseException:
            pass
        self.done += 1

    def booked(self) -> int:
        return self.done


class HeedsCancellation(SwallowsCancellation):
    def work(self) -> None:
        pause(5)
        serve.check_cancelled()
        self.done += 1


def cancel_in_time(handle: Any) -> None:
    work = handle.work.remote()
    pause(1)
    work.cancel()
    pause(60)
    assert handle.booked.remote().result() == 0


# ---- order that nobody has promised: two replicas, two writes


class Register:
    def __init__(self) -> None:
        self.value = ""

    def set(self, value: str) -> None:
        self.value = value

    def get(self) -> str:
        return self.value


class Writes:
    def __init__(self, register: Any) -> None:
        self.register = register

    def write(self, value: str) -> None:
        self.register.set.remote(value).result()


class TrustsInOrder:
    def __init__(self, writes: Any, register: Any) -> None:
        self.writes, self.register = writes, register

    def both(self) -> Any:
        together(self.writes.write.remote("first"), self.writes.write.remote("second"))
        return self.register.get.remote().result()


class WaitsInBetween(TrustsInOrder):
    def both(self) -> Any:
        self.writes.write.remote("first").result()
        self.writes.write.remote("second").result()
        return self.register.get.remote().result()


def writing(front: type[TrustsInOrder]) -> Any:
    register = app(Register)
    return app(front, app(Writes, register, slots=1, num_replicas=2), register)


def write_two(handle: Any) -> None:
    assert handle.both.remote().result() == "second"


# ---- a check of the time that is gone by the time it is used


class PromisesTime:
    def __init__(self, part: Any) -> None:
        self.part = part

    def ask(self) -> str:
        left = serve.remaining()
        first = self.part.work.remote().result()
        second = self.part.options(timeout_s=left).work.remote().result() if left else "late"
        return f"{first} {second}"


class Part:
    def work(self) -> str:
        pause(0.4)
        return "done"


class DegradesInTime(PromisesTime):
    def ask(self) -> str:
        first = self.part.work.remote().result()
        left = serve.remaining() or 0
        return f"{first} {self.part.work.remote().result() if left > 1 else 'skipped'}"


def ask_in_half_a_second(handle: Any) -> None:
    answer = handle.options(timeout_s=0.6).ask.remote()
    assert answer.exception() is None, "the caller was promised an answer in time"


def struck(cls: type[Any]) -> Any:
    """Bind a payer whose bank is slow now and then, by a fault."""
    return faults.inject(
        app(cls, app(Instant, name="Bank")), faults.Latency("Bank", 2.0, calls=[1], method="book")
    )


BUGS = [
    Planted("retry of what is not idempotent", pay_once, app(BooksTwice, app(Bank)), app(BooksOnce, app(Bank))),
    Planted("retry after injected latency", pay_once, struck(BooksTwice), struck(BooksOnce)),
    Planted("retry after a crash", pay_a_mortal, dying(Ledger), dying(OnceLedger)),
    Planted("forgotten cancel", hedge_once, hedging(ForgetsTheLoser), hedging(CancelsTheLoser)),
    Planted("cancellation that is swallowed", cancel_in_time, app(SwallowsCancellation), app(HeedsCancellation)),
    Planted("order that nobody promised", write_two, writing(TrustsInOrder), writing(WaitsInBetween)),
    Planted("time that is gone", ask_in_half_a_second, app(PromisesTime, app(Part)), app(DegradesInTime, app(Part))),
]  # fmt: skip
