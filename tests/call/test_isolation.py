"""What crosses between isolated deployments, what cannot, and who changes what is not theirs."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import threadserve as serve
from threadserve.call.isolation import Isolation, culprit
from threadserve.errors import ArgumentError, ConfigError

copy = Isolation().copy


@dataclass
class Point:
    x: list[int]


class HasLock:
    def __init__(self) -> None:
        self.lock = threading.Lock()


# ---- copies


@pytest.mark.parametrize("value", [None, True, 5, 1.5, "text", b"bytes", (), (1, ("a", None))])
def test_what_nobody_could_tell_from_its_copy_is_not_copied(value: object) -> None:
    assert copy(value) is value


@pytest.mark.parametrize(
    "value", [[1], {"a": [1]}, {1}, (1, [2]), Point([1]), bytearray(b"x"), ValueError("v")]
)
def test_all_else_is_copied(value: Any) -> None:
    found = copy(value)

    assert found is not value
    assert repr(found) == repr(value)


@given(
    st.recursive(
        st.integers() | st.text() | st.none(), lambda inner: st.lists(inner) | st.tuples(inner, inner)
    )
)
def test_a_copy_is_equal_and_shares_nothing_that_can_be_changed(value: Any) -> None:
    found = copy(value)

    assert found == value
    assert not (lists_in(value) & lists_in(found))


def lists_in(value: Any) -> set[int]:
    if not isinstance(value, (list, tuple)):
        return set()
    return set[int]().union({id(value)} if isinstance(value, list) else set(), *map(lists_in, value))


def test_a_class_arrives_as_itself_with_the_methods_that_it_had() -> None:
    class Local:
        counter: int = 0

        def method(self) -> int:
            return 1

    method = Local.method
    Local.counter = 5

    assert type(copy(Local())) is Local
    assert Local.method is method
    assert copy([Local])[0] is Local
    assert Local.counter == 5


def test_an_instance_of_a_class_that_could_not_be_shipped_is_refused() -> None:
    class Local:
        lock = threading.Lock()

    with pytest.raises(TypeError, match="cannot pickle"):
        copy(Local())


def test_a_closure_is_copied_with_what_it_holds() -> None:
    held = [1]

    def closure() -> list[int]:
        return held

    assert copy(closure)() == [1]
    assert copy(closure)() is not held


# ---- what cannot be shipped

lock = threading.Lock()


def uses_a_global() -> object:
    return lock


def make_closure() -> Any:
    inner = threading.Lock()
    return lambda: inner


class Slotted:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()


UNSHIPPABLE = [
    (HasLock(), ".lock"),
    ({"a": [1, HasLock()]}, "['a'][1].lock"),
    ((1, threading.Lock()), "[1]"),
    (Slotted(), ".lock"),
    (make_closure(), " (through its variable 'inner')"),
]


@pytest.mark.parametrize(("value", "path"), UNSHIPPABLE, ids=[path for _, path in UNSHIPPABLE])
def test_the_path_to_the_culprit_is_found(value: object, path: str) -> None:
    assert culprit(value) == path


def test_an_app_whose_class_could_not_be_shipped_is_refused_with_the_path() -> None:
    class Model:
        shared: ClassVar = {"lock": threading.Lock()}

        def __call__(self) -> None: ...

    class Uses:
        def __call__(self) -> object:
            return held

    held = threading.Lock()
    with pytest.raises(
        ConfigError, match=r"deployment 'Model': .*Model\.shared\['lock'\] could not be shipped"
    ):
        serve.run(serve.deployment(Model).bind(), strict=True)
    with pytest.raises(ConfigError, match=r"Uses\.__call__ \(through its variable 'held'\)"):
        serve.run(serve.deployment(Uses).bind(), strict=True)


def test_a_bind_argument_that_could_not_be_shipped_is_refused_with_the_path() -> None:
    class Model:
        def __init__(self, first: object, *, second: object = None) -> None: ...

    with pytest.raises(ConfigError, match=r"bind argument 0\.lock"):
        serve.run(serve.deployment(Model).bind(HasLock()), strict=True)
    with pytest.raises(ConfigError, match=r"bind argument second\['a'\]"):
        serve.run(serve.deployment(Model).bind(1, second={"a": threading.Lock()}), strict=True)


# ---- a strict app


class Echo:
    def __init__(self, values: list[Any] | None = None) -> None:
        self.values = values

    def same(self, value: Any, *, more: Any = None) -> Any:
        return value

    async def same_async(self, value: Any) -> Any:
        return value

    def change(self, values: list[int]) -> list[int]:
        values.append(1)
        return values

    async def change_async(self, *, values: list[int]) -> None:
        values.append(1)

    def items(self, values: list[Any]) -> Any:
        for value in values:
            yield [value]

    async def items_async(self, values: list[Any]) -> Any:
        for value in values:
            yield [value]

    def mine(self) -> Any:
        return self.values

    def broken(self, kind: str) -> Any:
        if kind == "lock":
            return [threading.Lock()]
        if kind == "coroutine":
            return self.same_async(1)
        if kind == "generator":
            return (number for number in range(3))
        raise ValueError("bad value")


class Chain:
    def __init__(self, echo: Any) -> None:
        self.echo = echo

    async def __call__(self, value: Any) -> Any:
        first = self.echo.same.remote(value)
        return await self.echo.same_async.remote(first), await self.echo.same.remote(first)


@pytest.mark.parametrize("method", ["same", "same_async"])
def test_arguments_and_results_are_copies(method: str) -> None:
    value = [Point([1])]
    with serve.running(serve.deployment(Echo).bind(), strict=True) as handle:
        found = getattr(handle, method).remote(value).result()

    assert found == value
    assert found is not value
    assert found[0] is not value[0]


def test_what_is_passed_on_from_one_answer_is_everybodys_own() -> None:
    app = serve.deployment(Chain).bind(serve.deployment(Echo).bind())
    with serve.running(app, strict=True) as handle:
        first, second = handle.remote([1]).result()

    assert first == second == [1]
    assert first is not second


@pytest.mark.parametrize("method", ["items", "items_async"])
def test_items_of_a_stream_are_copied(method: str) -> None:
    inner = [1]
    with serve.running(serve.deployment(Echo).bind(), strict=True) as handle:
        found = list(handle.options(stream=True, method_name=method).remote([inner]))

    assert found == [[[1]]]


def test_each_replica_has_bind_arguments_of_its_own() -> None:
    values: list[Any] = []
    app = serve.deployment(Echo).bind(values)
    with serve.running(app, strict=True) as handle:
        values.append(1)

        assert handle.mine.remote().result() == []
    assert app is not None


def test_a_method_that_changes_an_argument_is_reported() -> None:
    mine: list[int] = []
    with serve.running(serve.deployment(Echo).bind(), name="app", strict=True) as handle:
        with pytest.warns(RuntimeWarning, match=r"app/Echo\.change changed its argument 0, a list"):
            assert handle.change.remote(mine).result() == [1]
        with pytest.warns(
            RuntimeWarning, match=r"app/Echo\.change_async changed its argument 'values', a list"
        ):
            handle.change_async.remote(values=mine).result()

    assert mine == []


def test_an_argument_that_cannot_be_shipped_fails_the_call_and_names_its_part() -> None:
    with serve.running(serve.deployment(Echo).bind(), name="app", strict=True) as handle:
        with pytest.raises(
            ArgumentError, match=r"app/Echo\.same: argument 0\['a'\]\.lock could not be shipped"
        ):
            handle.same.remote({"a": HasLock()}).result()
        with pytest.raises(ArgumentError, match=r"app/Echo\.same: more\.lock could not be shipped"):
            handle.same.remote(1, more=HasLock()).result()
        with pytest.raises(ArgumentError, match="cannot be pickled or copied"):
            handle.same.remote([handle.same.remote(1)]).result()


def test_a_result_that_cannot_be_shipped_fails_the_call() -> None:
    with serve.running(serve.deployment(Echo).bind(), name="app", strict=True) as handle:
        with pytest.raises(
            ArgumentError, match=r"app/Echo\.broken returned a list, and list\[0\] could not be"
        ):
            handle.broken.remote("lock").result()
        with pytest.raises(TypeError, match="returned a coroutine"):
            handle.broken.remote("coroutine").result()
        with pytest.raises(ArgumentError, match=r"must use handle\.options\(stream=True\)"):
            handle.broken.remote("generator").result()


def test_the_users_exception_still_arrives_as_itself() -> None:
    with serve.running(serve.deployment(Echo).bind(), strict=True) as handle:
        with pytest.raises(ValueError, match=r"^bad value$") as info:
            handle.broken.remote("raise").result()

        assert info.traceback[-1].name == "broken"
        assert list(handle.options(stream=True).broken.remote("generator")) == [0, 1, 2]


def test_a_handle_may_be_an_argument() -> None:
    class Calls:
        async def __call__(self, handle: Any) -> Any:
            return await handle.same.remote(5)

    app = serve.deployment(Echo).bind()
    with (
        serve.running(app, strict=True) as echo,
        serve.running(serve.deployment(Calls).bind(), strict=True) as calls,
    ):
        assert calls.remote(echo).result() == 5


def test_a_later_version_that_is_not_strict_shares_again() -> None:
    value = [1]
    serve.run(serve.deployment(Echo).bind(), strict=True)
    handle = serve.run(serve.deployment(Echo).bind())

    assert handle.same.remote(value).result() is value


def test_a_strict_app_can_be_awaited() -> None:
    async def main(handle: Any) -> Any:
        return await handle.same.remote([1])

    with serve.running(serve.deployment(Echo).bind(), strict=True) as handle:
        assert asyncio.run(main(handle)) == [1]
