"""What users deploy, however it was decorated: how it is made, what can be called, and where each call begins."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest
import wrapt

from tests.doubles import deployed
from threadserve.concurrency.loops import run_coroutine
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ArgumentError, ConfigError, MethodNotFoundError, ReplicaStartError
from threadserve.replica.target import Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


# ---- decorators of other people's


def wrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function around anything, as most decorators are."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def wrapped_async(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    return wrapper


def blocking(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function that runs a coroutine to its end: it must not begin on an event loop."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(fn(*args, **kwargs))

    return wrapper


@wrapt.decorator
def passing(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    return wrapped(*args, **kwargs)


class Doubling:
    """A decorator that is a descriptor of its own."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __get__(self, instance: Any, owner: Any) -> Any:
        return lambda number: 2 * self.fn(instance, number)


class Adding:
    """A callable instance."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, number: int) -> int:
        return self.number + number


class AddingSlowly(Adding):
    async def __call__(self, number: int) -> int:  # type: ignore[override]
        await asyncio.sleep(0)
        return self.number + number


def add_one(number: int) -> int:
    return number + 1


async def add_one_slowly(number: int) -> int:
    await asyncio.sleep(0)
    return number + 1


def count_up(count: int) -> Iterator[int]:
    yield from range(count)


async def count_up_slowly(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


class Zoo:
    """Every way to write ``number + 1``."""

    from_outside = staticmethod(add_one)
    partial_of_class = functools.partialmethod(lambda self, plus, number: number + plus, 1)
    shared_instance = Adding(1)
    in_a_lambda = lambda self, number: number + 1  # noqa: E731
    proxied = wrapt.CallableObjectProxy(shared_instance)

    def __init__(self) -> None:
        self.partial = functools.partial(add_one)
        self.partial_of_coroutine = functools.partial(add_one_slowly)
        self.instance = Adding(1)
        self.async_instance = AddingSlowly(1)
        self.function = add_one
        self.bound_lambda = lambda number: number + 1
        self.proxy = wrapt.CallableObjectProxy(add_one)
        self.function_wrapper = wrapt.FunctionWrapper(
            add_one_slowly, lambda fn, _, args, kwargs: fn(*args, **kwargs)
        )

    def __call__(self, number: int) -> int:
        return number + 1

    def plain(self, number: int) -> int:
        return number + 1

    async def coroutine(self, number: int) -> int:
        await asyncio.sleep(0)
        return number + 1

    @staticmethod
    def static(number: int) -> int:
        return number + 1

    @staticmethod
    async def static_coroutine(number: int) -> int:
        return number + 1

    @classmethod
    def of_class(cls, number: int) -> int:
        assert issubclass(cls, Zoo)
        return number + 1

    @classmethod
    async def coroutine_of_class(cls, number: int) -> int:
        assert issubclass(cls, Zoo)
        return number + 1

    @wrapped
    def wrapped_plain(self, number: int) -> int:
        return number + 1

    @wrapped
    async def wrapped_coroutine(self, number: int) -> int:
        await asyncio.sleep(0)
        return number + 1

    @wrapped_async
    async def coroutine_wrapped_by_one(self, number: int) -> int:
        return number + 1

    @wrapped
    @wrapped
    @wrapped_async
    async def wrapped_three_times(self, number: int) -> int:
        return number + 1

    @blocking
    async def run_to_its_end(self, number: int) -> int:
        await asyncio.sleep(0)
        return number + 1

    @passing
    def wrapt_plain(self, number: int) -> int:
        return number + 1

    @passing
    async def wrapt_coroutine(self, number: int) -> int:
        await asyncio.sleep(0)
        return number + 1

    @passing
    @staticmethod
    def wrapt_static(number: int) -> int:
        return number + 1

    @passing
    @classmethod
    def wrapt_of_class(cls, number: int) -> int:
        assert issubclass(cls, Zoo)
        return number + 1

    @classmethod
    @wrapped
    async def wrapped_of_class(cls, number: int) -> int:
        return number + 1

    cached = functools.lru_cache(lambda self, number: number + 1)

    @functools.singledispatchmethod
    def dispatching(self, number: object) -> int:
        raise TypeError(number)

    @dispatching.register
    def _(self, number: int) -> int:
        return number + 1

    @Doubling
    def doubled(self, number: int) -> int:
        return number / 2 + 0.5  # type: ignore[return-value]

    @property
    def from_a_property(self) -> Callable[[int], int]:
        return lambda number: number + 1

    def returns_a_coroutine(self, number: int) -> Any:
        return self.coroutine(number)

    def __getattr__(self, name: str) -> Any:
        if name == "made_up":
            return add_one
        if name == "made_up_coroutine":
            return add_one_slowly
        raise AttributeError(name)


EVERY_WAY = [
    name
    for name in [*vars(Zoo), *vars(Zoo()), "made_up", "made_up_coroutine", "__call__"]
    if name not in ("_", "__getattr__", "__init__") and (name == "__call__" or not name.startswith("__"))
]


@pytest.mark.parametrize("name", dict.fromkeys(EVERY_WAY))
def test_every_way_to_write_a_method_is_called_as_it_was_meant(name: str) -> None:
    with deployed(RealKernel(), Zoo) as zoo:
        call = zoo.handle.options(method_name=name)

        assert call.remote(1).result() == 2
        assert call.remote(2).result() == 3


def test_the_zoo_is_complete() -> None:
    assert len(set(EVERY_WAY)) >= 37


class Streams:
    """Every way to produce 0, 1, 2."""

    def __init__(self) -> None:
        self.attribute = count_up
        self.async_attribute = functools.partial(count_up_slowly)

    def plain(self, count: int) -> Iterator[int]:
        yield from range(count)

    async def slowly(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    static = staticmethod(count_up)
    static_slowly = staticmethod(count_up_slowly)
    wrapped_plain = wrapped(lambda self, count: count_up(count))
    wrapped_slowly = wrapped(lambda self, count: count_up_slowly(count))
    wrapt_plain = passing(lambda self, count: count_up(count))

    @passing
    async def wrapt_slowly(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    def returns_a_generator(self, count: int) -> Iterator[int]:
        return count_up(count)

    def returns_an_async_generator(self, count: int) -> AsyncIterator[int]:
        return count_up_slowly(count)

    async def awaits_and_returns_a_generator(self, count: int) -> Iterator[int]:
        await asyncio.sleep(0)
        return count_up(count)

    async def awaits_and_returns_an_async_generator(self, count: int) -> AsyncIterator[int]:
        await asyncio.sleep(0)
        return count_up_slowly(count)

    def returns_an_iterator(self, count: int) -> Iterator[int]:
        return iter(list(range(count)))

    def returns_a_map(self, count: int) -> Iterator[int]:
        return map(int, range(count))

    def __getattr__(self, name: str) -> Any:
        if name == "made_up":
            return count_up
        raise AttributeError(name)


STREAMS = [name for name in [*vars(Streams), *vars(Streams()), "made_up"] if not name.startswith("__")]


@pytest.mark.parametrize("name", STREAMS)
def test_every_way_to_write_a_stream_is_read_item_by_item(name: str) -> None:
    with deployed(RealKernel(), Streams) as streams:
        assert list(streams.handle.options(stream=True, method_name=name).remote(3)) == [0, 1, 2]


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("plain", "stream=True"),
            ("slowly", "stream=True"),
            ("returns_a_generator", "stream=True"),
            ("awaits_and_returns_an_async_generator", "stream=True"),
        ],
    )
    def test_a_generator_without_stream(self, name: str, hint: str) -> None:
        with deployed(RealKernel(), Streams) as streams:
            error = streams.handle.options(method_name=name).remote(3).exception()

        assert isinstance(error, ArgumentError)
        assert hint in str(error)
        assert f"app/D.{name}" in str(error)

    @pytest.mark.parametrize("name", ["plain", "coroutine", "wrapped_coroutine", "wrapt_coroutine"])
    def test_a_value_where_a_stream_was_asked_for(self, name: str) -> None:
        with deployed(RealKernel(), Zoo) as zoo:
            stream = zoo.handle.options(stream=True, method_name=name).remote(1)
            with pytest.raises(ArgumentError, match=r"did not return a generator \(it returned a int\)"):
                next(stream)

    def test_a_coroutine_that_nobody_awaited(self) -> None:
        class Nested:
            async def __call__(self) -> Any:
                return add_one_slowly(1)

        with deployed(RealKernel(), Nested) as nested:
            with pytest.raises(ArgumentError, match="a coroutine that nobody awaited"):
                nested.handle.remote().result()

    def test_an_unresolved_response_as_the_result(self) -> None:
        class Relay:
            def __init__(self, handle: Any) -> None:
                self.handle = handle

            def plain(self) -> Any:
                return self.handle.remote(1)

            async def coroutine(self) -> Any:
                return self.handle.remote(1)

        kernel = RealKernel()
        with (
            deployed(kernel, Zoo, name="Zoo") as zoo,
            deployed(kernel, Relay, zoo.handle, name="Relay") as relay,
        ):
            for method in (relay.handle.plain, relay.handle.coroutine):
                with pytest.raises(ArgumentError, match="unresolved DeploymentResponse"):
                    method.remote().result()

    def test_a_name_that_is_no_method(self) -> None:
        class Settings:
            limit = 5

        with deployed(RealKernel(), Settings) as settings:
            with pytest.raises(ArgumentError, match=r"app/D\.limit is a int, not a method"):
                settings.handle.limit.remote().result()

    def test_a_misspelt_name_which_is_answered_with_the_nearest(self) -> None:
        class Methods:
            def predict(self) -> None: ...
            def _private(self) -> None: ...
            def __call__(self) -> None: ...

            @property
            def danger(self) -> None:
                raise AssertionError("a property was evaluated")

        with deployed(RealKernel(), Methods) as methods:
            error = methods.handle.options(method_name="predit").remote().exception()

        assert isinstance(error, MethodNotFoundError)
        assert "did you mean 'predict'?" in str(error)
        assert error.available == ("__call__", "_private", "predict")

    def test_wrong_arguments_as_python_does(self) -> None:
        with deployed(RealKernel(), Zoo) as zoo:
            with pytest.raises(TypeError, match="missing 1 required positional argument: 'number'"):
                zoo.handle.plain.remote().result()
            with pytest.raises(TypeError, match="unexpected keyword argument 'nummer'"):
                zoo.handle.coroutine.remote(nummer=1).result()


class TestAProperty:
    def test_is_evaluated_by_the_call_alone(self) -> None:
        evaluated: list[str] = []

        class Lazy:
            @property
            def method(self) -> Callable[[], str]:
                evaluated.append("evaluated")
                return lambda: "called"

            def other(self) -> None: ...

        with deployed(RealKernel(), Lazy) as lazy:
            lazy.handle.other.remote().result()
            assert evaluated == []
            assert lazy.handle.method.remote().result() == "called"
            assert evaluated == ["evaluated"]

    def test_that_fails_is_the_users_error(self) -> None:
        class Broken:
            @property
            def method(self) -> Callable[[], str]:
                return self.missing  # type: ignore[no-any-return, attr-defined]

        with deployed(RealKernel(), Broken) as broken:
            with pytest.raises(AttributeError, match="'Broken' object has no attribute 'missing'") as caught:
                broken.handle.method.remote().result()
            assert not isinstance(caught.value, MethodNotFoundError)


class TestAFunction:
    @pytest.mark.parametrize(
        "function",
        [
            add_one,
            add_one_slowly,
            wrapped(add_one),
            wrapped(add_one_slowly),
            blocking(add_one_slowly),
            passing(add_one),
            passing(add_one_slowly),
            functools.lru_cache(add_one),
            wrapt.CallableObjectProxy(add_one),
            wrapt.CallableObjectProxy(add_one_slowly),
            lambda number: number + 1,
            lambda number: add_one_slowly(number),
            Adding(1).__call__,
            AddingSlowly(1).__call__,
        ],
    )
    def test_of_any_kind_is_called(self, function: Any) -> None:
        with deployed(RealKernel(), function) as deployment:
            assert deployment.handle.remote(1).result() == 2

    @pytest.mark.parametrize(
        "function", [count_up, count_up_slowly, passing(count_up), passing(count_up_slowly)]
    )
    def test_that_generates_is_a_stream(self, function: Any) -> None:
        with deployed(RealKernel(), function) as deployment:
            assert list(deployment.handle.options(stream=True).remote(3)) == [0, 1, 2]

    def test_is_called_whatever_the_method_is_named(self) -> None:
        with deployed(RealKernel(), add_one) as deployment:
            assert deployment.handle.anything.remote(1).result() == 2

    def test_cannot_be_configured(self) -> None:
        with pytest.raises(ReplicaStartError) as caught:
            with deployed(RealKernel(), add_one, user_config={"a": 1}):
                pass
        assert isinstance(caught.value.__cause__, ConfigError)


class TestAConstructor:
    def test_gets_its_arguments(self) -> None:
        class Named:
            def __init__(self, first: str, second: str = "-") -> None:
                self.name = first + second

            def __call__(self) -> str:
                return self.name

        with deployed(RealKernel(), Named, "a", "b") as named:
            assert named.handle.remote().result() == "ab"

    def test_may_be_a_coroutine(self) -> None:
        class Slow:
            def __new__(cls, *args: object) -> Any:
                instance = super().__new__(cls)
                instance.made = True  # type: ignore[attr-defined]
                return instance

            async def __init__(self, number: int) -> None:  # type: ignore[misc]
                await asyncio.sleep(0)
                self.number = number

            async def __call__(self) -> Any:
                return self.number, self.made  # type: ignore[attr-defined]

        with deployed(RealKernel(), Slow, 3) as slow:
            assert slow.handle.remote().result() == (3, True)

    def test_that_is_a_coroutine_may_fail(self) -> None:
        class Broken:
            async def __init__(self) -> None:  # type: ignore[misc]
                raise ValueError("no model")

        with pytest.raises(ReplicaStartError, match="app/D could not start: ValueError: no model") as caught:
            with deployed(RealKernel(), Broken):
                pass
        assert isinstance(caught.value.__cause__, ValueError)

    @pytest.mark.parametrize(
        "error",
        [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()],
    )
    @pytest.mark.parametrize("is_async", [False, True])
    def test_that_raises_anything_fails_the_start(self, error: BaseException, is_async: bool) -> None:
        class Broken:
            def __init__(self) -> None:
                raise error

        class BrokenSlowly:
            async def __init__(self) -> None:  # type: ignore[misc]
                raise error

        with pytest.raises(ReplicaStartError) as caught:
            with deployed(RealKernel(), BrokenSlowly if is_async else Broken):
                pass
        assert isinstance(caught.value.__cause__, type(error))

    def test_of_a_class_behind_a_proxy_is_the_classs_own(self) -> None:
        class Inner:
            async def __init__(self, number: int) -> None:  # type: ignore[misc]
                self.number = number

            async def plus(self, number: int) -> int:
                return self.number + number

        with deployed(RealKernel(), wrapt.CallableObjectProxy(Inner), 3) as proxied:
            assert proxied.handle.plus.remote(4).result() == 7
            error = proxied.handle.options(method_name="pluss").remote().exception()
            assert isinstance(error, MethodNotFoundError)
            assert error.available == ("plus",)


class TestReconfigure:
    @pytest.mark.parametrize("is_async", [False, True])
    @pytest.mark.parametrize("wants_rank", [False, True])
    def test_is_called_once_for_each_replica_before_the_first_request(
        self, is_async: bool, wants_rank: bool
    ) -> None:
        seen: list[Any] = []

        def note(config: Any, rank: Any = None) -> None:
            seen.append((config, None if rank is None else rank.rank))

        class Configured:
            def __call__(self) -> int:
                return len(seen)

        async def later(*args: Any) -> None:
            await asyncio.sleep(0)
            note(*args)

        do = later if is_async else note
        if wants_rank:
            Configured.reconfigure = lambda self, config, rank: do(config, rank)  # type: ignore[attr-defined]
        else:
            Configured.reconfigure = lambda self, config: do(config)  # type: ignore[attr-defined]

        with deployed(RealKernel(), Configured, user_config={"a": 1}, num_replicas=3) as configured:
            assert configured.handle.remote().result() == 3

        ranks: list[int | None] = [0, 1, 2] if wants_rank else [None] * 3
        assert sorted(seen, key=str) == [({"a": 1}, rank) for rank in ranks]

    def test_is_not_called_without_a_config(self) -> None:
        class Configured:
            def reconfigure(self, config: Any) -> None:
                raise AssertionError

            def __call__(self) -> int:
                return 1

        with deployed(RealKernel(), Configured) as configured:
            assert configured.handle.remote().result() == 1

    def test_that_is_missing_fails_the_start(self) -> None:
        with pytest.raises(ReplicaStartError) as caught:
            with deployed(RealKernel(), Adding, 1, user_config={}):
                pass
        assert isinstance(caught.value.__cause__, ConfigError)
        assert "reconfigure" in str(caught.value.__cause__)

    @pytest.mark.parametrize("is_async", [False, True])
    def test_that_raises_fails_the_start(self, is_async: bool) -> None:
        class Configured:
            def reconfigure(self, config: Any) -> Any:
                if is_async:
                    return self.later()
                raise ValueError("bad config")

            async def later(self) -> None:
                raise ValueError("bad config")

        with pytest.raises(ReplicaStartError, match="ValueError: bad config"):
            with deployed(RealKernel(), Configured, user_config={"a": 1}):
                pass


class TestALookAtTheClass:
    """The router asks where a call begins while it holds its lock: nothing of the user's may run for that."""

    def test_runs_nothing_of_the_users(self) -> None:
        class Trap:
            def __get__(self, *_: object) -> Any:
                raise AssertionError("a descriptor was asked")

        class Careful(type):
            def __getattribute__(cls, name: str) -> Any:
                if name in ("trap", "danger"):
                    raise AssertionError("an attribute was taken")
                return super().__getattribute__(name)

        class Deployment(metaclass=Careful):
            trap = Trap()

            @property
            def danger(self) -> None:
                raise AssertionError("a property was evaluated")

            async def fine(self) -> None: ...

        target = Target(Deployment, (), {})

        assert target.begins_async("fine")
        assert not any(target.begins_async(name) for name in ("trap", "danger", "absent"))

    @pytest.mark.parametrize(
        "name",
        [
            "coroutine",
            "static_coroutine",
            "coroutine_of_class",
            "coroutine_wrapped_by_one",
            "wrapt_coroutine",
        ],
    )
    def test_sees_what_begins_on_the_loop(self, name: str) -> None:
        assert Target(Zoo, (), {}).begins_async(name)

    @pytest.mark.parametrize(
        "name", ["plain", "wrapped_coroutine", "run_to_its_end", "static", "wrapt_plain", "absent"]
    )
    def test_leaves_the_rest_to_the_workers(self, name: str) -> None:
        assert not Target(Zoo, (), {}).begins_async(name)

    def test_sees_what_is_inherited(self) -> None:
        class Sub(Zoo):
            def coroutine(self, number: int) -> int:  # type: ignore[override]
                return number

        assert not Target(Sub, (), {}).begins_async("coroutine")
        assert Target(Sub, (), {}).begins_async("static_coroutine")

    def test_is_only_a_guess_what_the_call_returns_decides(self) -> None:
        class Shadowed:
            def __init__(self) -> None:
                self.method = lambda: "from the instance"

            async def method(self) -> str:  # type: ignore[no-redef]
                return "from the class"

        with deployed(RealKernel(), Shadowed) as shadowed:
            assert shadowed.handle.method.remote().result() == "from the instance"


def test_run_coroutine_runs_to_the_end_and_tidies_up() -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("background")

    async def main() -> str:
        task = asyncio.create_task(background())
        await asyncio.sleep(0)
        assert not task.done()
        return "value"

    assert run_coroutine(RealKernel(), main()) == "value"
    assert ended == ["background"]
    assert inspect.iscoroutinefunction(main)
