"""Mistakes with what a replica keeps: read, and written by somebody else meanwhile."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, ClassVar

from tests.testing.planted.bug import Planted, app, pause, together

__all__ = ["BUGS"]


# ---- the bodies that several bugs share


class Store:
    """A value in a deployment of its own."""

    def __init__(self) -> None:
        self.value = 0
        self.lock = threading.Lock()

    def read(self) -> int:
        return self.value

    def write(self, value: int) -> None:
        self.value = value

    def add(self, amount: int) -> None:
        with self.lock:
            self.value += amount

    def take(self) -> bool:
        with self.lock:
            self.value -= 1
            return self.value >= -1


# ---- lost update: read in one call, written in another


class LosesUpdates:
    def __init__(self, store: Any) -> None:
        self.store = store

    def add(self) -> None:
        value = self.store.read.remote().result()
        self.store.write.remote(value + 1).result()

    def total(self) -> Any:
        return self.store.read.remote().result()


class KeepsUpdates(LosesUpdates):
    def add(self) -> None:
        self.store.add.remote(1).result()


def two_additions(handle: Any) -> None:
    together(handle.add.remote(), handle.add.remote())
    assert handle.total.remote().result() == 2


# ---- lost update inside of one line's reach: seen at the grain of lines only


class LosesIncrements:
    def __init__(self) -> None:
        self.value = 0
        self.lock = threading.Lock()

    def add(self) -> None:
        value = self.value
        value += 1
        self.value = value

    def total(self) -> int:
        return self.value


class KeepsIncrements(LosesIncrements):
    def add(self) -> None:
        with self.lock:
            value = self.value
            value += 1
            self.value = value


# ---- lost update across an await: one thread, no lock, and still


class LosesAwaited:
    def __init__(self) -> None:
        self.value = 0
        self.lock = asyncio.Lock()

    async def add(self) -> None:
        value = self.value
        await asyncio.sleep(0)
        self.value = value + 1

    async def total(self) -> int:
        return self.value


class KeepsAwaited(LosesAwaited):
    async def add(self) -> None:
        async with self.lock:
            await super().add()


# ---- check-then-act: two calls miss the cache, and both compute


class ComputesTwice:
    def __init__(self, store: Any) -> None:
        self.store = store
        self.cache: dict[str, int] = {}
        self.lock = threading.Lock()

    def get(self, key: str) -> int:
        if key not in self.cache:
            self.cache[key] = self._compute()
        return self.cache[key]

    def _compute(self) -> int:
        self.store.add.remote(1).result()
        return 7

    def computed(self) -> Any:
        return self.store.read.remote().result()


class ComputesOnce(ComputesTwice):
    def get(self, key: str) -> int:
        with self.lock:
            return super().get(key)


def two_look_ups(handle: Any) -> None:
    assert together(handle.get.remote("a"), handle.get.remote("a")) == [7, 7]
    assert handle.computed.remote().result() == 1


# ---- stale cache: what was read before the invalidation is stored after it


class KeepsStale:
    def __init__(self, store: Any) -> None:
        self.store = store
        self.cached: int | None = None
        self.version = 0
        self.lock = threading.Lock()

    def get(self) -> Any:
        if self.cached is None:
            self.cached = self.store.read.remote().result()
        return self.cached

    def set(self, value: int) -> None:
        self.store.write.remote(value).result()
        with self.lock:
            self.cached = None
            self.version += 1


class KeepsFresh(KeepsStale):
    def get(self) -> Any:
        cached, version = self.cached, self.version
        if cached is not None:
            return cached
        value = self.store.read.remote().result()
        with self.lock:
            if self.version == version:
                self.cached = value
        return value


def read_beside_a_write(handle: Any) -> None:
    together(handle.get.remote(), handle.set.remote(5))
    assert handle.get.remote().result() == 5


# ---- lazy initialisation: said to be there before it is


class SaysTooEarly:
    def __init__(self) -> None:
        self.is_loaded = False
        self.model: list[int] = []
        self.lock = threading.Lock()

    def ask(self) -> int:
        if not self.is_loaded:
            self.is_loaded = True
            self._load()
        return self.model[0]

    def _load(self) -> None:
        pause()
        self.model.append(7)


class SaysInTime(SaysTooEarly):
    def ask(self) -> int:
        with self.lock:
            if not self.is_loaded:
                self._load()
                self.is_loaded = True
        return self.model[0]


def two_first_questions(handle: Any) -> None:
    assert together(handle.ask.remote(), handle.ask.remote()) == [7, 7]


# ---- overselling: looked at in one call, taken in another


class Oversells:
    def __init__(self, store: Any) -> None:
        self.store = store
        self.lock = threading.Lock()

    def buy(self) -> bool:
        if self.store.read.remote().result() >= 1:
            return False  # one was sold, and there was one
        self.store.add.remote(1).result()
        return True


class SellsWhatIsThere(Oversells):
    def buy(self) -> bool:
        with self.lock:
            return super().buy()


def two_buyers(handle: Any) -> None:
    assert sum(together(handle.buy.remote(), handle.buy.remote())) == 1


# ---- torn transfer: a reader sees the money on neither account


class TearsTransfers:
    def __init__(self) -> None:
        self.accounts = {"a": 10, "b": 0}
        self.lock = threading.Lock()

    def transfer(self, amount: int) -> None:
        with self.lock:
            self.accounts["a"] -= amount
        with self.lock:
            self.accounts["b"] += amount

    def total(self) -> int:
        with self.lock:
            return sum(self.accounts.values())


class KeepsTransfersWhole(TearsTransfers):
    def transfer(self, amount: int) -> None:
        with self.lock:
            self.accounts["a"] -= amount
            self.accounts["b"] += amount


def sum_beside_a_transfer(handle: Any) -> None:
    moved, total = handle.transfer.remote(3), handle.total.remote()
    moved.result()
    assert total.result() == 10


# ---- iterating over what somebody else changes


class ListsWhileItGrows:
    def __init__(self) -> None:
        self.members = {"a": 1, "b": 2}

    def join(self, name: str) -> None:
        self.members[name] = 0

    def names(self) -> list[str]:
        found = []
        for name in self.members:
            found.append(name)  # noqa: PERF402 - a line for others to come between
        return found


class ListsACopy(ListsWhileItGrows):
    def names(self) -> list[str]:
        found = []
        for name in list(self.members):
            found.append(name)  # noqa: PERF402
        return found


def list_beside_a_newcomer(handle: Any) -> None:
    names, joined = handle.names.remote(), handle.join.remote("c")
    joined.result()
    assert {"a", "b"} <= set(names.result())


# ---- numbers that are given out twice


class RepeatsNumbers:
    def __init__(self) -> None:
        self.last = 0
        self.lock = threading.Lock()

    def next(self) -> int:
        with self.lock:
            self.last += 1
        with self.lock:
            return self.last


class NumbersOnce(RepeatsNumbers):
    def next(self) -> int:
        with self.lock:
            self.last += 1
            return self.last


def two_numbers(handle: Any) -> None:
    assert len(set(together(handle.next.remote(), handle.next.remote()))) == 2


# ---- state of the class, taken for state of the replica


class SharesWithSiblings:
    seen: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.seen.clear()

    def squares(self, number: int) -> list[int]:
        self.seen.append(number)
        pause()
        answer = [each * each for each in self.seen]
        self.seen.clear()
        return answer


class KeepsToItself(SharesWithSiblings):
    def squares(self, number: int) -> list[int]:
        self.mine = [number]
        pause()
        return [each * each for each in self.mine]


def two_squares(handle: Any) -> None:
    assert together(handle.squares.remote(2), handle.squares.remote(3)) == [[4], [9]]


BUGS = [
    Planted("lost update", two_additions, app(LosesUpdates, app(Store)), app(KeepsUpdates, app(Store))),
    Planted("lost increment", two_additions, app(LosesIncrements), app(KeepsIncrements), grain="line"),
    Planted("lost update across an await", two_additions, app(LosesAwaited), app(KeepsAwaited)),
    Planted("check-then-act in a cache", two_look_ups, app(ComputesTwice, app(Store)), app(ComputesOnce, app(Store))),
    Planted("stale cache", read_beside_a_write, app(KeepsStale, app(Store)), app(KeepsFresh, app(Store))),
    Planted("published before it is ready", two_first_questions, app(SaysTooEarly), app(SaysInTime)),
    Planted("oversold", two_buyers, app(Oversells, app(Store)), app(SellsWhatIsThere, app(Store))),
    Planted("torn transfer", sum_beside_a_transfer, app(TearsTransfers), app(KeepsTransfersWhole)),
    Planted("changed while iterated", list_beside_a_newcomer, app(ListsWhileItGrows), app(ListsACopy), grain="line"),
    Planted("number given out twice", two_numbers, app(RepeatsNumbers), app(NumbersOnce)),
    Planted(
        "class attribute shared by replicas",
        two_squares,
        app(SharesWithSiblings, slots=1, num_replicas=2),
        app(KeepsToItself, slots=1, num_replicas=2),
    ),
]  # fmt: skip
