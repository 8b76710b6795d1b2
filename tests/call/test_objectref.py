"""ObjectRefs: the other face of a response, and what may be done with them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve.call.objectref import ObjectRef, Store
from threadserve.concurrency.outcome import Error
from threadserve.futures import as_completed, gather

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class Actor:
    def __call__(self, value: Any) -> Any:
        return value

    def fail(self) -> None:
        raise ValueError("bad")

    def items(self, end: int) -> Iterator[int]:
        yield from range(end)
        raise KeyError(end)

    async def ask(self, response_of: Any) -> Any:
        response = response_of.remote(5)
        ref = await response._to_object_ref()
        return await ref

    async def collect(self, handle: Any) -> list[int]:
        stream = handle.options(stream=True).items.remote(2)
        generator: AsyncIterator[Any] = await stream._to_object_ref_gen()
        return [await ref async for ref in generator if not isinstance(await failure_of(ref), KeyError)]


Box = serve.deployment(Actor)


async def failure_of(ref: Any) -> BaseException | None:
    try:
        await ref
    except KeyError as error:
        return error
    return None


def test_a_response_has_a_ref_of_the_same_answer() -> None:
    with serve.running(Box.bind()) as box:
        response: Any = box.remote(7)
        ref = response._to_object_ref_sync()

        assert serve.get(ref) == 7
        assert ref == response._to_object_ref_sync()
        assert ref.future is response.future
        assert box.ask.remote(box).result() == 5


def test_a_failed_response_has_a_ref_that_raises_the_users_own_exception() -> None:
    with serve.running(Box.bind()) as box:
        ref = box.fail.remote()._to_object_ref_sync()

        with pytest.raises(ValueError, match=r"^bad$"):
            serve.get(ref)
        with pytest.raises(ValueError, match=r"^bad$"):
            box.remote(ref).result()


def test_a_ref_may_travel_in_containers_and_results_where_a_response_may_not() -> None:
    with serve.running(Box.bind()) as box:
        response = box.remote(7)
        ref = response._to_object_ref_sync()

        assert box.remote([{"a": ref}]).result() == [{"a": ref}]
        assert box.remote((ref,)).result()[0] is ref
        with pytest.raises(serve.ArgumentError, match="nested in a list"):
            box.remote([response]).result()


def test_a_ref_cannot_be_made_in_a_running_loop_without_await() -> None:
    async def make(box: Any) -> Any:
        response, stream = box.remote(1), box.options(stream=True).items.remote(0)
        with pytest.raises(RuntimeError, match=r"await response\._to_object_ref\(\)"):
            response._to_object_ref_sync()
        with pytest.raises(RuntimeError, match=r"await response\._to_object_ref_gen\(\)"):
            stream._to_object_ref_gen_sync()
        return await response._to_object_ref_sync(_allow_running_in_asyncio_loop=True)

    with serve.running(Box.bind()) as box:
        assert asyncio.run(make(box)) == 1


def test_a_stream_becomes_refs_one_for_each_item_and_one_for_its_failure() -> None:
    with serve.running(Box.bind()) as box:
        *refs, last = box.options(stream=True).items.remote(3)._to_object_ref_gen_sync()

        assert serve.get(refs) == [0, 1, 2]
        assert box.remote(refs[2]).result() == 2
        with pytest.raises(KeyError):
            serve.get(last)
        assert box.collect.remote(box).result() == [0, 1]


def test_a_generator_of_refs_cannot_be_copied() -> None:
    with serve.running(Box.bind()) as box:
        generator = box.options(stream=True).items.remote(0)._to_object_ref_gen_sync()

        with pytest.raises(serve.ArgumentError, match="cannot be pickled or copied"):
            copy.copy(generator)
        generator.close()


def test_a_ref_is_awaited_by_any_loop_any_number_of_times() -> None:
    ref = Store().put(1)

    async def twice() -> list[int]:
        return [await ref, await ref]

    assert asyncio.run(twice()) + asyncio.run(twice()) == [1] * 4


def test_the_helpers_over_futures_take_refs() -> None:
    store = Store()
    refs = [store.put(number) for number in range(3)]

    assert gather(*refs).result() == [0, 1, 2]
    assert set(as_completed(refs)) == set(refs)
    assert concurrent.futures.wait([ref.future for ref in refs]).not_done == set()
    with pytest.raises(TypeError, match=r"pass ref\.future"):
        concurrent.futures.wait(refs)  # type: ignore[arg-type]


def test_copies_of_a_ref_are_equal_and_hold_the_same_value() -> None:
    ref = Store().put([1])
    copies = [pickle.loads(pickle.dumps(ref)), copy.copy(ref), copy.deepcopy([ref])[0]]

    assert all(each == ref and hash(each) == hash(ref) and each.hex() == ref.hex() for each in copies)
    assert all(each.future.result() is ref.future.result() for each in copies)
    assert ref != Store().put([1])
    assert ref != 5


def test_a_ref_to_what_is_gone_cannot_be_rebuilt() -> None:
    pickled = pickle.dumps(Store().put(1))

    with pytest.raises(serve.ServeError, match="there is no object"):
        pickle.loads(pickled)


def test_a_ref_says_what_it_refers_to() -> None:
    store = Store()
    failed: ObjectRef[Any] = store.settled(Error(ValueError("bad")), "load")

    assert repr(store.put(1)) == "<ObjectRef of threadserve/objects.put: done; serve.get(ref) or await ref>"
    assert "load: failed" in repr(failed)
    assert "waiting" in repr(ObjectRef(store.promise("load")))
    with pytest.raises(TypeError, match="cannot be iterated over"):
        list(failed)
