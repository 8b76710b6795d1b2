"""A bounded channel: order, the bound, waking each other, and the two ways to end."""

from __future__ import annotations

import asyncio
import math
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from threadserve.concurrency.channel import EMPTY, END, Channel
from threadserve.concurrency.real import RealKernel
from threadserve.testing.scheduler import SimulatedKernel, StuckError, explore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from threadserve.concurrency.waiter import Subscriber


class Side:
    """One who reads or writes, and is told when it makes sense to try again."""

    def __init__(self) -> None:
        self.times_told = 0

    def tell(self) -> Iterable[Subscriber]:
        self.times_told += 1
        return ()


def channel_of(bound: float) -> Channel:
    return Channel(RealKernel(), bound)


def filled(channel: Channel, count: int) -> Channel:
    for number in range(count):
        assert channel.offer(number, None) is True
    return channel


def rest_of(channel: Channel) -> list[Any]:
    items = []
    while (item := channel.take()) not in (EMPTY, END):
        items.append(item)
    return items


class TestItems:
    def test_come_out_in_the_order_in_which_they_went_in(self) -> None:
        channel = filled(channel_of(5), 5)

        assert rest_of(channel) == [0, 1, 2, 3, 4]
        assert channel.take() is EMPTY

    def test_may_be_anything(self) -> None:
        channel = channel_of(5)
        for item in (None, False, (), StopIteration):
            channel.offer(item, None)

        assert rest_of(channel) == [None, False, (), StopIteration]

    @pytest.mark.parametrize("bound", [1, 2, 64])
    def test_are_at_most_as_many_as_the_bound(self, bound: int) -> None:
        channel = filled(channel_of(bound), bound)

        assert channel.offer("one too many", None) is None
        assert len(channel) == bound
        channel.take()
        assert channel.offer("now there is room", None) is True

    def test_may_be_any_number_without_a_bound(self) -> None:
        assert len(filled(channel_of(math.inf), 10_000)) == 10_000


class TestAReaderThatWaits:
    def test_is_told_of_the_next_item_once(self) -> None:
        channel, reader = channel_of(5), Side()

        assert channel.take(reader) is EMPTY
        filled(channel, 3)

        assert reader.times_told == 1

    def test_is_told_one_for_each_item(self) -> None:
        channel, readers = channel_of(5), [Side(), Side(), Side()]
        for reader in readers:
            channel.take(reader)

        filled(channel, 2)

        assert [reader.times_told for reader in readers] == [1, 1, 0]

    @pytest.mark.parametrize("end", ["finish", "close"])
    def test_is_told_of_the_end_as_all_are(self, end: str) -> None:
        channel, readers = channel_of(5), [Side(), Side()]
        for reader in readers:
            channel.take(reader)

        getattr(channel, end)()

        assert [reader.times_told for reader in readers] == [1, 1]
        assert channel.take() is END

    def test_and_gives_up_is_not_told(self) -> None:
        channel, reader = channel_of(5), Side()
        channel.take(reader)

        channel.forget(reader)
        channel.forget(reader)
        filled(channel, 1)

        assert reader.times_told == 0

    def test_and_gives_up_when_it_had_been_told_passes_the_news_on(self) -> None:
        channel, first, second = channel_of(5), Side(), Side()
        channel.take(first)
        channel.take(second)
        filled(channel, 1)

        channel.forget(first)

        assert second.times_told == 1
        assert channel.take() == 0


class TestAWriterThatWaits:
    def test_is_told_when_half_has_been_read(self) -> None:
        channel, writer = filled(channel_of(8), 8), Side()
        assert channel.offer("more", writer) is None

        told = []
        for _ in range(8):
            channel.take()
            told.append(writer.times_told)

        assert told == [0, 0, 0, 1, 1, 1, 1, 1]

    @pytest.mark.parametrize("bound", [1, 2, 3])
    def test_is_told_at_small_bounds_too(self, bound: int) -> None:
        channel, writer = filled(channel_of(bound), bound), Side()
        channel.offer("more", writer)

        assert len(rest_of(channel)) == bound

        assert writer.times_told == 1

    def test_is_told_of_the_close_and_then_that_it_should_stop(self) -> None:
        channel, writer = filled(channel_of(1), 1), Side()
        channel.offer("more", writer)

        channel.close()

        assert writer.times_told == 1
        assert channel.offer("more", writer) is False
        assert channel.is_closed

    def test_and_gives_up_is_not_told(self) -> None:
        channel, writer = filled(channel_of(1), 1), Side()
        channel.offer("more", writer)

        channel.forget(writer)
        channel.take()

        assert writer.times_told == 0


class TestTheEnd:
    def test_by_the_producer_comes_after_the_last_item(self) -> None:
        channel = filled(channel_of(5), 2)

        channel.finish()

        assert [channel.take() for _ in range(4)] == [0, 1, END, END]

    def test_by_anybody_else_drops_what_is_buffered(self) -> None:
        channel = filled(channel_of(5), 2)

        channel.close()

        assert channel.take() is END
        assert len(channel) == 0

    def test_may_come_both_ways_and_more_than_once(self) -> None:
        channel = filled(channel_of(5), 2)

        channel.finish()
        channel.close()
        channel.finish()
        channel.close()

        assert channel.take() is END
        assert channel.offer("late", None) is False

    def test_lets_go_of_the_items(self) -> None:
        class Item:
            pass

        channel, item = channel_of(5), Item()
        channel.offer(item, None)
        gone = weakref.ref(item)
        del item

        channel.close()

        assert gone() is None

    def test_lets_the_items_die_outside_of_the_lock(self) -> None:
        seen: list[int] = []

        class Item:
            def __del__(self) -> None:
                channel.forget(Side())  # which takes the lock
                seen.append(len(channel))

        channel = channel_of(5)
        channel.offer(Item(), None)
        channel.offer(Item(), None)

        channel.take()
        channel.close()

        assert seen == [1, 0]


def test_a_channel_says_what_it_is() -> None:
    channel = filled(channel_of(5), 2)
    assert repr(channel) == "<Channel open, 2 of 5 items>"
    channel.finish()
    assert repr(channel) == "<Channel finished, 2 of 5 items>"
    channel.close()
    assert repr(channel) == "<Channel closed, 0 of 5 items>"
    assert (repr(EMPTY), repr(END)) == ("EMPTY", "END")


def test_who_looks_without_the_lock_sees_whether_to_go_on() -> None:
    channel = channel_of(2)
    assert (channel.has_news(), channel.has_room()) == (False, True)
    filled(channel, 2)
    assert (channel.has_news(), channel.has_room()) == (True, False)
    channel.close()
    assert (channel.has_news(), channel.has_room()) == (True, True)


class TestACoroutineThatProduces:
    def test_suspends_while_the_channel_is_full(self) -> None:
        async def main() -> None:
            channel = filled(channel_of(1), 1)
            put = asyncio.create_task(channel.aput("second"))
            await asyncio.sleep(0)
            assert not put.done()

            assert channel.take() == 0
            assert await put is True
            assert channel.take() == "second"

        asyncio.run(main())

    def test_stops_when_the_channel_is_closed(self) -> None:
        async def main() -> None:
            channel = filled(channel_of(1), 1)
            put = asyncio.create_task(channel.aput("second"))
            await asyncio.sleep(0)

            channel.close()

            assert await put is False
            assert await channel.aput("third") is False

        asyncio.run(main())

    def test_puts_nothing_in_when_it_is_cancelled(self) -> None:
        async def main() -> None:
            channel = filled(channel_of(1), 1)
            put = asyncio.create_task(channel.aput("second"))
            await asyncio.sleep(0)

            put.cancel()
            with pytest.raises(asyncio.CancelledError):
                await put

            assert rest_of(channel) == [0]
            assert not channel._writers

        asyncio.run(main())

    def test_may_have_its_reader_on_a_thread(self) -> None:
        kernel = RealKernel()
        channel = Channel(kernel, 3)
        got: list[int] = []

        def read() -> None:
            while True:
                waiter = kernel.waiter()
                item = channel.take(waiter)
                if item is END:
                    return
                if item is EMPTY:
                    waiter.wait(20)
                else:
                    got.append(item)

        async def main() -> None:
            for number in range(2000):
                await channel.aput(number)
            channel.finish()

        reader = threading.Thread(target=read)
        reader.start()
        asyncio.run(main())
        reader.join()
        assert got == list(range(2000))


def test_several_readers_and_writers_lose_and_double_nothing() -> None:
    def story(kernel: SimulatedKernel) -> None:
        channel = Channel(kernel, 2)
        got: list[int] = []

        def write(first: int) -> None:
            for number in range(first, first + 3):
                while True:
                    waiter = kernel.waiter()
                    if channel.offer(number, waiter):
                        break
                    waiter.wait()

        def read() -> None:
            while True:
                waiter = kernel.waiter()
                item = channel.take(waiter)
                if item is END:
                    return
                if item is EMPTY:
                    waiter.wait()
                else:
                    got.append(item)

        writers = [kernel.spawn(f"writer {first}", partial(write, first)) for first in (0, 10)]
        readers = [kernel.spawn(f"reader {number}", read) for number in range(2)]
        for writer in writers:
            writer.join()
        channel.finish()
        for reader in readers:
            reader.join()
        assert sorted(got) == [0, 1, 2, 10, 11, 12]

    explore(story, 150)


def looks_for_readers_first(self: Channel, item: Any, subscriber: Subscriber | None) -> bool | None:
    """Look whether somebody sleeps, and put the item in then: who falls asleep in between is not told of it."""
    if self._is_closed:
        return False
    if len(self._items) >= self._bound and not self._has_room_now(subscriber):
        return self._refusal()
    has_readers = bool(self._readers)
    self._items.append(item)
    if has_readers:
        self._tell_a_reader()
    return True


def looks_for_writers_first(self: Channel, subscriber: Subscriber | None = None) -> Any:
    """Look whether somebody sleeps, and take an item then: who falls asleep in between is not told of the room."""
    if self._is_closed:
        return END
    has_writers = bool(self._writers)
    try:
        item = self._items.popleft()
    except IndexError:
        item = self._take_or_wait(subscriber)
        has_writers = bool(self._writers)
    if has_writers and len(self._items) <= self._low:
        self._tell_writers()
    return item


@pytest.mark.parametrize(
    ("step", "race"), [("offer", looks_for_readers_first), ("take", looks_for_writers_first)]
)
def test_a_race_in_what_takes_no_lock_is_found(
    step: str, race: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    explore(hand_over, 200)
    monkeypatch.setattr(Channel, step, race)

    with pytest.raises(StuckError):
        explore(hand_over, 200)


def hand_over(kernel: SimulatedKernel) -> None:
    """Have one thread put in what another one takes out, which then waits until the first one has put in all."""
    channel = Channel(kernel, 1)

    def produce() -> None:
        for number in range(2):
            waiter = kernel.waiter()
            while channel.offer(number, waiter) is None:
                waiter.wait()
                waiter = kernel.waiter()

    producer = kernel.spawn("producer", produce)
    waiter = kernel.waiter()
    while (item := channel.take(waiter)) is EMPTY:
        waiter.wait()
        waiter = kernel.waiter()
    producer.join()
    assert [item, channel.take()] == [0, 1]


class ChannelMachine(RuleBasedStateMachine):
    """A channel against a list, with readers and writers that wait and give up."""

    def __init__(self) -> None:
        super().__init__()
        self.channel = channel_of(3)
        self.bound = 3
        self.items: list[int] = []
        self.is_finished = self.is_closed = False
        self.number = 0
        self.readers: list[Side] = []
        self.writers: list[Side] = []

    @initialize(bound=st.integers(1, 4))
    def begin(self, bound: int) -> None:
        self.channel, self.bound = channel_of(bound), bound

    @precondition(lambda self: not self.is_finished)
    @rule(waits=st.booleans())
    def offer(self, waits: bool) -> None:
        writer = Side() if waits else None
        self.number += 1
        accepted = self.channel.offer(self.number, writer)
        if self.is_closed:
            assert accepted is False
        elif len(self.items) < self.bound:
            assert accepted is True
            self.items.append(self.number)
        else:
            assert accepted is None
            if writer is not None:
                self.writers.append(writer)

    @rule(waits=st.booleans())
    def take(self, waits: bool) -> None:
        reader = Side() if waits else None
        item = self.channel.take(reader)
        if self.items:
            assert item == self.items.pop(0)
        elif self.is_closed or self.is_finished:
            assert item is END
        else:
            assert item is EMPTY
            if reader is not None:
                self.readers.append(reader)

    @rule(number=st.integers(0, 9))
    def somebody_gives_up(self, number: int) -> None:
        everybody = [*self.readers, *self.writers]
        if not everybody:
            return
        side = everybody[number % len(everybody)]
        told_before = side.times_told
        self.channel.forget(side)
        for sides in (self.readers, self.writers):
            if side in sides:
                sides.remove(side)
        assert side.times_told == told_before

    @rule()
    def finish(self) -> None:
        self.channel.finish()
        self.is_finished = True

    @rule()
    def close(self) -> None:
        self.channel.close()
        self.is_closed = True
        self.items.clear()

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        assert len(self.channel) == len(self.items)
        waiting_readers = [reader for reader in self.readers if not reader.times_told]
        told_readers = [reader for reader in self.readers if reader.times_told]
        if self.is_closed or self.is_finished:
            assert not waiting_readers
        elif self.items and waiting_readers:
            assert told_readers, "an item is there, and none of those who wait has been told"
        waiting_writers = [writer for writer in self.writers if not writer.times_told]
        if self.is_closed or not self.items:
            assert not waiting_writers
        assert all(side.times_told <= 1 for side in [*self.readers, *self.writers])


ChannelMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestChannelAgainstAModel = ChannelMachine.TestCase
