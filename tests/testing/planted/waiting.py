"""Mistakes with waiting: circles, signals that nobody hears, batches that leave somebody behind, streams left open."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import threadserve as serve
from tests.testing.planted.bug import Planted, app, pause, together

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BUGS"]


# ---- deadlock through a circle of calls: only when both are on their way at once


class Left:
    """Calls right, which may call left again."""

    def go(self, depth: int) -> int:
        if not depth:
            return 0
        right = serve.get_deployment_handle("Right")
        return 1 + right.go.remote(depth - 1).result()  # type: ignore[no-any-return]


class Right:
    def go(self, depth: int) -> int:
        if not depth:
            return 0
        left = serve.get_deployment_handle("Left")
        return 1 + left.go.remote(depth - 1).result()  # type: ignore[no-any-return]


class Both:
    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right

    def go(self) -> list[int]:
        return list(together(self.left.go.remote(1), self.right.go.remote(1)))


def go_once(handle: Any) -> None:
    assert handle.go.remote().result() == [1, 1]


# ---- locks in another order


class TakesLocksInBothOrders:
    def __init__(self) -> None:
        self.a, self.b = threading.Lock(), threading.Lock()

    def there(self) -> str:
        with self.a, self.b:
            return "there"

    def back(self) -> str:
        with self.b, self.a:
            return "back"


class TakesLocksInOneOrder(TakesLocksInBothOrders):
    def back(self) -> str:
        with self.a, self.b:
            return "back"


def there_and_back(handle: Any) -> None:
    assert together(handle.there.remote(), handle.back.remote()) == ["there", "back"]


# ---- a lock that is held across a call back into the same replica


class CallsHomeUnderItsLock:
    def __init__(self, other: Any) -> None:
        self.other = other
        self.lock = threading.Lock()
        self.value = 0

    def outer(self) -> Any:
        with self.lock:
            return self.other.ask.remote().result()

    def inner(self) -> int:
        with self.lock:
            return 7


class CallsHomeWithoutIt(CallsHomeUnderItsLock):
    def outer(self) -> Any:
        with self.lock:
            self.value += 1
        return self.other.ask.remote().result()


class AsksBack:
    def ask(self) -> Any:
        return serve.get_deployment_handle("Home").inner.remote().result()


def call_home(handle: Any) -> None:
    assert handle.outer.remote().result() == 7


# ---- a signal that came before anybody listened


class MissesTheSignal:
    def __init__(self) -> None:
        self.is_ready = False
        self.condition = threading.Condition()

    def wait(self) -> bool:
        if not self.is_ready:
            with self.condition:
                self.condition.wait()
        return True

    def signal(self) -> None:
        with self.condition:
            self.is_ready = True
            self.condition.notify_all()


class HearsTheSignal(MissesTheSignal):
    def wait(self) -> bool:
        with self.condition:
            while not self.is_ready:
                self.condition.wait()
        return True


def signal_and_wait(handle: Any) -> None:
    waiting = handle.wait.remote()
    handle.signal.remote().result()
    assert waiting.result(timeout_s=60)


# ---- a batch, written by hand, that loses what comes while it is being worked on


class LosesFromItsBatch:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.batch: list[int] = []
        self.done: dict[int, int] = {}

    def add(self, number: int) -> None:
        with self.lock:
            self.batch.append(number)

    def flush(self) -> None:
        with self.lock:
            numbers = list(self.batch)
        for number in numbers:
            self.done[number] = number * number
        with self.lock:
            self.batch.clear()

    def answers(self) -> dict[int, int]:
        return self.done


class KeepsItsBatch(LosesFromItsBatch):
    def flush(self) -> None:
        with self.lock:
            numbers, self.batch = self.batch, []
        for number in numbers:
            self.done[number] = number * number


def add_beside_a_flush(handle: Any) -> None:
    together(handle.add.remote(2), handle.flush.remote(), handle.add.remote(3))
    handle.flush.remote().result()
    assert handle.answers.remote().result() == {2: 4, 3: 9}


# ---- a batch that answers its callers in the order in which they came to wait, not in which they came


class MixesUpItsBatch:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.numbers: list[int] = []
        self.places = 0

    def double(self, number: int) -> int:
        with self.lock:
            self.numbers.append(number)
        with self.lock:
            place = self.places
            self.places += 1
        return 2 * self.numbers[place]


class KeepsPlaces(MixesUpItsBatch):
    def double(self, number: int) -> int:
        with self.lock:
            place = len(self.numbers)
            self.numbers.append(number)
        return 2 * self.numbers[place]


def two_doubles(handle: Any) -> None:
    assert together(handle.double.remote(1), handle.double.remote(5)) == [2, 10]


# ---- a stream that is not closed keeps its producer's slot


class Producer:
    def items(self) -> Iterator[int]:
        yield from range(1000)


class LeavesStreamsOpen:
    def __init__(self, producer: Any) -> None:
        self.producer = producer
        self.streams: list[Any] = []

    def first(self) -> Any:
        stream = self.producer.options(stream=True).items.remote()
        self.streams.append(stream)
        return next(stream)


class ClosesStreams(LeavesStreamsOpen):
    def first(self) -> Any:
        stream = self.producer.options(stream=True).items.remote()
        try:
            return next(stream)
        finally:
            stream.close()


def first_of_two_streams(handle: Any) -> None:
    assert handle.first.remote().result() == 0
    assert handle.first.remote().result(timeout_s=60) == 0


# ---- a semaphore by hand that lets in one too many


class LetsInTooMany:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free = 1
        self.inside = 0
        self.most = 0

    def enter(self) -> None:
        while not self._has_room():
            pause()
        with self.lock:
            self.free -= 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        pause()
        with self.lock:
            self.inside -= 1
            self.free += 1

    def _has_room(self) -> bool:
        with self.lock:
            return self.free > 0

    def most_inside(self) -> int:
        return self.most


class LetsInOne(LetsInTooMany):
    def enter(self) -> None:
        while not self._take():
            pause()
        pause()
        with self.lock:
            self.inside -= 1
            self.free += 1

    def _take(self) -> bool:
        with self.lock:
            if self.free < 1:
                return False
            self.free -= 1
            self.inside += 1
            self.most = max(self.most, self.inside)
            return True


def two_at_the_door(handle: Any) -> None:
    together(handle.enter.remote(), handle.enter.remote())
    assert handle.most_inside.remote().result() == 1


def both(slots: int) -> Any:
    return app(Both, app(Left, slots=slots), app(Right, slots=slots))


def home(cls: type[Any]) -> Any:
    return app(cls, app(AsksBack), name="Home")


BUGS = [
    Planted("deadlock through a circle of calls", go_once, both(1), both(2)),
    Planted("locks in both orders", there_and_back, app(TakesLocksInBothOrders), app(TakesLocksInOneOrder)),
    Planted("lock held across a call that comes back", call_home, home(CallsHomeUnderItsLock), home(CallsHomeWithoutIt)),
    Planted("missed signal", signal_and_wait, app(MissesTheSignal), app(HearsTheSignal)),
    Planted("batch that loses an item", add_beside_a_flush, app(LosesFromItsBatch), app(KeepsItsBatch)),
    Planted("batch that mixes up its answers", two_doubles, app(MixesUpItsBatch), app(KeepsPlaces)),
    Planted(
        "stream that is not closed",
        first_of_two_streams,
        app(LeavesStreamsOpen, app(Producer, slots=1)),
        app(ClosesStreams, app(Producer, slots=1)),
    ),
    Planted("one too many inside", two_at_the_door, app(LetsInTooMany), app(LetsInOne)),
]  # fmt: skip
