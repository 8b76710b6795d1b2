"""Deployments of every kind, in a module of their own: an interpreter replica imports them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import threadserve as serve
from threadserve.call import lookout
from threadserve.call.request import current_request

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
        self.running = 0
        self.most = 0

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

    def no_items(self) -> Iterator[int]:
        yield from ()

    def items_that_never_come(self) -> Iterator[int]:
        yield from self.nothing_but_an_error()

    def nothing_but_an_error(self) -> list[int]:
        raise OutOfStock("fig", 0)

    def items_until_exit(self) -> Iterator[int]:
        yield 1
        raise SystemExit(3)

    # errors that mean something else elsewhere

    async def exit_later(self) -> None:
        await asyncio.sleep(0)
        raise SystemExit(3)

    def stop_iterating(self) -> None:
        raise StopIteration("nothing more")

    def cancel_itself(self) -> None:
        raise asyncio.CancelledError

    def interrupt(self) -> None:
        raise KeyboardInterrupt("by the body")

    def fail_in_a_group(self) -> None:
        raise ExceptionGroup("two", [OutOfStock("kiwi", 1), ValueError("second")])

    def fail_with_a_lock(self) -> None:
        raise RuntimeError("holds", threading.Lock())

    def return_what_should_be_a_stream(self) -> Iterator[int]:
        return self.items(3)

    # several at once

    def hold_until(self, flag: Any) -> int:
        """Run until the first byte of `flag` is set; return how many ran at once, at most."""
        self._enter()
        try:
            while not flag[0]:
                serve.check_cancelled()
                threading.Event().wait(0.001)
            return self.most
        finally:
            self.running -= 1

    async def hold_until_later(self, flag: Any) -> int:
        self._enter()
        try:
            while not flag[0]:
                await asyncio.sleep(0.001)
            return self.most
        finally:
            self.running -= 1

    def _enter(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)

    def at_once(self) -> int:
        return self.running

    # where it runs

    def request_id(self) -> str:
        request = current_request()
        return "" if request is None else request.request_id

    def whoami_in_a_thread(self) -> str:
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.append(serve.get_replica_context().replica_tag))
        thread.start()
        thread.join()
        return seen[0]

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

    # calls of whatever it is given: in a circle, for one

    def call(self, handle: Any, method: str, *args: Any) -> Any:
        return handle.options(method_name=method).remote(*args).result()

    async def call_later(self, handle: Any, method: str, *args: Any) -> Any:
        return await handle.options(method_name=method).remote(*args)

    async def call_for(self, seconds: float, handle: Any, method: str, *args: Any) -> Any:
        async with asyncio.timeout(seconds):
            return await handle.options(method_name=method).remote(*args)

    def call_in_a_chain(self, handle: Any) -> Any:
        return handle.remote(handle.remote(1)).result()

    def call_and_catch(self, handle: Any) -> str:
        try:
            return str(handle.remote(1).result())
        except serve.DeadlockError as error:
            return str(error)

    def read(self, handle: Any, method: str, *args: Any) -> list[Any]:
        return list(handle.options(stream=True, method_name=method).remote(*args))

    def items_and_a_call(self, handle: Any, count: int) -> Iterator[Any]:
        yield from range(count)
        yield handle.remote(1).result()

    def ask_with_timeout(self) -> str:
        with contextlib.suppress(TimeoutError):
            self.other.options(timeout_s=0.05).until_cancelled.remote().result()
        return "gave up"

    def request_ids(self) -> bool:
        return bool(self.other.remote(1).request_id)

    def run_an_app(self) -> None:
        serve.run(serve.deployment(Point).bind(1, 2))


class Impatient(Everything):
    """Has waits looked at, in the interpreter where it is, that have lasted half a millisecond."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        lookout.PATIENCE_S = 0.0005


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


class SickLater:
    """Has a health check that is a coroutine, and hangs when it is told to."""

    def __init__(self) -> None:
        self.is_sick = False

    async def check_health(self) -> None:
        while self.is_sick:
            await asyncio.sleep(0.001)

    def fall_ill(self) -> None:
        self.is_sick = True

    def __call__(self) -> bool:
        return self.is_sick


class Configured:
    """Is configured by a coroutine, which refuses what is not a number."""

    def __init__(self) -> None:
        self.threshold = 0
        self.tag = serve.get_replica_context().replica_tag

    async def reconfigure(self, user_config: Any) -> None:
        await asyncio.sleep(0)
        self.threshold = int(user_config)

    def __call__(self) -> tuple[int, bool]:
        return self.threshold, self.tag == serve.get_replica_context().replica_tag


class Mortal:
    """Notes in a buffer that both sides share how often it was made, and that it was finalized."""

    def __init__(self, notes: Any, failures: int = 0) -> None:
        self.notes = notes
        notes[0] += 1
        if notes[0] <= failures:
            raise OutOfStock("luck", notes[0])

    def __call__(self) -> str:
        return "here"

    def __del__(self) -> None:
        self.notes[1] += 1


class Quitter:
    """Exits when it is made."""

    def __init__(self) -> None:
        raise SystemExit(4)


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
