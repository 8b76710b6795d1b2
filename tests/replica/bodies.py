"""Deployments of every kind, in a module of their own: an interpreter replica imports them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import threadserve as serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TENANT: ContextVar[str] = ContextVar("tests_tenant", default="nobody")
UNKNOWN: ContextVar[str] = ContextVar("tests_unknown", default="nobody")


class OutOfStock(Exception):
    """Has a constructor that its arguments do not fit."""

    def __init__(self, item: str, count: int) -> None:
        super().__init__(f"{count} x {item}")
        self.item = item


class Point:
    """A value that can be pickled."""

    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    def __hash__(self) -> int:
        return hash((self.x, self.y))


class Broken:
    """A value that can be sent, but not read."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("nobody reads this")


class Everything:
    """One body of each kind."""

    def __init__(self, add: int = 0, *, other: Any = None) -> None:
        self.add = add
        self.other = other
        self.config: Any = None
        self.begun = 0
        self.ended: list[str] = []

    def reconfigure(self, user_config: Any) -> None:
        self.config = user_config

    def get_config(self) -> Any:
        return self.config

    def __call__(self, x: Any) -> Any:
        return x + self.add

    async def later(self, x: int) -> int:
        await asyncio.sleep(0)
        return x + self.add

    def echo(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def same(self, value: Any) -> Any:
        return value

    def kind_of(self, value: Any) -> tuple[str, int, int]:
        view = memoryview(value)
        return type(value).__name__, view.nbytes, view.tobytes()[-1]

    def fill(self, buffer: Any) -> None:
        memoryview(buffer).cast("B")[0] = 7

    def large(self, size: int) -> bytearray:
        return bytearray(b"x" * size)

    # errors

    def fail(self) -> None:
        try:
            dict[str, int]()["missing"]
        except KeyError as error:
            failure = OutOfStock("apple", 3)
            failure.add_note("ask again on Monday")
            raise failure from error

    async def fail_later(self) -> None:
        await asyncio.sleep(0)
        raise OutOfStock("pear", 2)

    def exit(self) -> None:
        raise SystemExit(3)

    # streams

    def items(self, count: int) -> Iterator[int]:
        try:
            for number in range(count):
                self.begun = number + 1
                yield number
        finally:
            self.ended.append("items")

    async def items_later(self, count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                self.begun = number + 1
                yield number
        finally:
            self.ended.append("items_later")

    def items_that_fail(self) -> Iterator[int]:
        yield 1
        raise OutOfStock("plum", 1)

    def how_far(self) -> tuple[int, list[str]]:
        return self.begun, self.ended

    # where it runs

    def whoami(self) -> tuple[str, int, str, str]:
        context = serve.get_replica_context()
        return context.deployment, context.rank.rank, context.replica_tag, threading.current_thread().name

    def variables(self) -> tuple[str, str]:
        return TENANT.get(), UNKNOWN.get()

    def left(self) -> float:
        return serve.remaining()

    def model(self) -> str:
        return serve.get_multiplexed_model_id()

    # cancellation

    def until_cancelled(self) -> None:
        self.begun = 1
        try:
            while True:
                serve.check_cancelled()
                threading.Event().wait(0.001)
        finally:
            self.ended.append("cancelled")

    async def until_cancelled_later(self) -> None:
        self.begun = 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append("cancelled")

    def hold(self, seconds: float) -> str:
        threading.Event().wait(seconds)
        return "held"

    # calls of its own

    def ask(self, method: str, *args: Any) -> Any:
        return self.other.options(method_name=method).remote(*args).result()

    async def ask_later(self, method: str, *args: Any) -> Any:
        return await self.other.options(method_name=method).remote(*args)

    def chain(self, x: int) -> Any:
        return self.other.remote(self.other.remote(self.other.remote(x))).result()

    def ask_items(self, count: int) -> list[int]:
        return list(self.other.options(stream=True).items.remote(count))

    async def ask_items_later(self, count: int) -> list[int]:
        return [item async for item in self.other.options(stream=True).items_later.remote(count)]

    def ask_and_leave(self, count: int) -> int:
        items = self.other.options(stream=True).items.remote(count)
        first: int = next(items)
        items.close()
        return first

    def ask_with_timeout(self) -> str:
        with contextlib.suppress(TimeoutError):
            self.other.options(timeout_s=0.05).until_cancelled.remote().result()
        return "gave up"

    def request_ids(self) -> bool:
        return bool(self.other.remote(1).request_id)

    def run_an_app(self) -> None:
        serve.run(serve.deployment(Point).bind(1, 2))


class Sick:
    """Fails its health checks when told to."""

    def __init__(self) -> None:
        self.is_sick = False

    def check_health(self) -> None:
        if self.is_sick:
            raise RuntimeError("does not feel well")

    def fall_ill(self) -> None:
        self.is_sick = True

    def __call__(self) -> bool:
        return self.is_sick


class Stillborn:
    """Cannot be made."""

    def __init__(self) -> None:
        raise OutOfStock("life", 0)


def double(x: int) -> int:
    return 2 * x


@serve.deployment(name="Decorated")
class Decorated:
    """Stands in its module as a Deployment."""

    def __call__(self) -> str:
        return "found"


class Busy:
    """Keeps a core busy."""

    def burn(self, turns: int) -> int:
        total = 0
        for number in range(turns):
            total += number & 3
        return total


class Lazy:
    """Imports, when it is made, what a subinterpreter cannot load."""

    def __init__(self) -> None:
        import faulthandler  # noqa: F401  # pyright: ignore[reportUnusedImport]
