from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING

from threadserve.concurrency.loops import LoopWaiter
from threadserve.concurrency.waiter import Subscriber, Waiter, deliver, wait_on

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest


class Link:
    """A subscriber that tells others in turn."""

    def __init__(self, told: list[str], name: str, *, then: Iterable[Subscriber] = ()) -> None:
        self._told = told
        self._name = name
        self._then = then

    def tell(self) -> Iterable[Subscriber]:
        self._told.append(self._name)
        return self._then


class Broken:
    def tell(self) -> Iterable[Subscriber]:
        raise ValueError("broken")


class TestWaiter:
    def test_is_a_subscriber_that_wakes_its_thread(self) -> None:
        waiter = Waiter()

        deliver([waiter, waiter])

        assert waiter.wait(0)
        assert not waiter.wait(0)

    def test_that_was_set_before_does_not_wait(self) -> None:
        waiter = Waiter()
        waiter.set()

        assert waiter.wait() is True

    def test_gives_up_after_its_timeout(self) -> None:
        assert Waiter().wait(0.001) is False

    def test_with_a_timeout_that_is_over_looks_once(self) -> None:
        waiter = Waiter()

        assert waiter.wait(-5) is False
        waiter.set()
        assert waiter.wait(-5) is True

    def test_takes_a_timeout_longer_than_the_platform_can_wait(self) -> None:
        waiter = Waiter()
        waiter.set()

        assert waiter.wait(float("inf")) is True

    def test_is_ended_once_by_many_who_set_it_at_once(self) -> None:
        waiter = Waiter()
        start = threading.Barrier(8)

        def set_it() -> None:
            start.wait()
            waiter.set()

        threads = [threading.Thread(target=set_it) for _ in range(8)]
        for thread in threads:
            thread.start()

        assert waiter.wait(30)
        for thread in threads:
            thread.join()

    def test_waits_in_a_frame_that_ctrl_c_knows(self) -> None:
        calls: list[tuple[bool, float]] = []

        def acquire(blocking: bool, timeout: float) -> bool:
            calls.append((blocking, timeout))
            return True

        assert wait_on(acquire, 5.0)
        assert calls == [(True, 5.0)]


class TestDeliver:
    def test_tells_everybody_in_order_and_then_those_who_follow(self) -> None:
        told: list[str] = []
        grandchild = Link(told, "grandchild")
        first = Link(told, "first", then=[Link(told, "child", then=[grandchild])])

        deliver([first, Link(told, "second")])

        assert told == ["first", "second", "child", "grandchild"]

    def test_follows_ten_thousand_hops_without_recursion(self) -> None:
        told: list[str] = []
        link = Link(told, "last")
        for number in range(10_000):
            link = Link(told, str(number), then=[link])

        deliver([link])

        assert len(told) == 10_001
        assert told[-1] == "last"

    def test_tells_the_others_though_one_is_broken(self, caplog: pytest.LogCaptureFixture) -> None:
        told: list[str] = []

        with caplog.at_level(logging.ERROR, logger="threadserve"):
            deliver([Broken(), Link(told, "other")])

        assert told == ["other"]
        assert "could not be told" in caplog.text
        assert "ValueError: broken" in caplog.text

    def test_of_nothing_does_nothing(self) -> None:
        deliver(())


class TestLoopWaiter:
    def test_wakes_a_coroutine_from_another_thread(self) -> None:
        async def main() -> bool:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            thread = threading.Thread(target=deliver, args=([LoopWaiter(loop, future)],))
            thread.start()
            await asyncio.wait_for(future, 30)
            thread.join()
            return future.done()

        assert asyncio.run(main())

    def test_does_not_mind_that_the_coroutine_gave_up_or_was_told_before(self) -> None:
        errors: list[object] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: errors.append(context))
            cancelled: asyncio.Future[None] = loop.create_future()
            twice: asyncio.Future[None] = loop.create_future()
            cancelled.cancel()

            deliver([LoopWaiter(loop, cancelled), LoopWaiter(loop, twice), LoopWaiter(loop, twice)])
            await twice
            await asyncio.sleep(0)

        asyncio.run(main())

        assert not errors

    def test_whose_loop_is_closed_does_not_keep_the_others_from_being_told(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        told: list[str] = []
        loop = asyncio.new_event_loop()
        future: asyncio.Future[None] = loop.create_future()
        loop.close()

        with caplog.at_level(logging.ERROR, logger="threadserve"):
            deliver([LoopWaiter(loop, future), Link(told, "other")])

        assert told == ["other"]
        assert "Event loop is closed" in caplog.text
