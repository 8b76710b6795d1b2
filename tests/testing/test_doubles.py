"""Fakes in the place of deployments, and spies on handles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve.testing.doubles import Call, fake, spy

if TYPE_CHECKING:
    from collections.abc import Iterator


class Model:
    def score(self, text: str, *, scale: int = 1) -> int:
        return len(text) * scale

    def words(self, text: str) -> Iterator[str]:
        yield from text.split()


class Shop:
    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, text: str) -> Any:
        return self.model.score.remote(text, scale=2).result()

    def words(self, text: str) -> list[str]:
        return list(self.model.options(stream=True).words.remote(text))


ModelD, ShopD = serve.deployment(Model), serve.deployment(Shop)


def shop_with(model: Any) -> Any:
    return serve.running(ShopD.bind(ModelD.bind()).replace(ModelD, model))


def test_a_fake_returns_and_knows_its_calls() -> None:
    model = fake(returns=7)

    with shop_with(model) as handle:
        answers = [handle.remote(text).result() for text in ("a", "b")]

    assert answers == [7, 7]
    assert model.calls == [Call("score", ("a",), {"scale": 2}), Call("score", ("b",), {"scale": 2})]


def test_a_fake_raises_and_each_caller_gets_an_exception_of_its_own() -> None:
    error = ValueError("no", 3)

    with shop_with(fake(raises=error)) as handle:
        raised = [handle.remote("a").exception() for _ in range(3)]

    assert [(type(each), each.args) for each in raised if each] == [(ValueError, ("no", 3))] * 3
    assert len({id(each) for each in raised}) == 3


def test_a_class_of_exceptions_will_do() -> None:
    with shop_with(fake(raises=KeyError)) as handle, pytest.raises(KeyError):
        handle.remote("a").result()


def test_a_fake_streams_and_then_raises() -> None:
    with shop_with(fake(stream=["a", "b"])) as handle:
        assert handle.words.remote("").result() == ["a", "b"]
    read: list[str] = []
    with serve.running(fake(stream=["a", "b"], raises=OSError("cut"))) as handle:
        with pytest.raises(OSError, match="cut"):
            read.extend(handle.options(stream=True).words.remote(""))
    assert read == ["a", "b"]


def test_a_fake_is_bound_like_any_app_and_has_options() -> None:
    model = fake(returns=1, name="model", num_replicas=2)

    with serve.running(ShopD.bind(model)) as handle:
        assert handle.remote("x").result() == 1
        (app,) = serve.status().applications.values()
    assert app.deployments["model"].replica_states == {"RUNNING": 2}


def test_a_fake_does_one_thing() -> None:
    with pytest.raises(TypeError, match="either returns, or raises, or streams"):
        fake(returns=1, raises=ValueError)


def test_a_spy_notes_what_goes_through_it_with_the_responses() -> None:
    with serve.running(ModelD.bind()) as handle:
        watched = spy(handle)
        answer = watched.score.remote("abc", scale=2)
        items = list(watched.options(stream=True).words.remote("a b"))
        handle.score.remote("unseen").result()

        assert watched.calls == [Call("score", ("abc",), {"scale": 2}), Call("words", ("a b",))]
        assert watched.calls[0].answer.result() == answer.result() == 6
        assert items == ["a", "b"]


def test_a_spy_can_stand_for_the_handle_in_a_unit_test() -> None:
    with serve.running(ModelD.bind()) as handle:
        watched = spy(handle)
        assert Shop(watched)("abcd") == 8
    assert [call.method for call in watched.calls] == ["score"]


def test_calls_made_through_a_spy_can_be_cancelled_and_chained() -> None:
    with serve.running(ModelD.bind()) as handle:
        watched = spy(handle)
        length = watched.score.remote("abc")
        assert watched.score.remote("a", scale=length).result() == 3
        length.cancel()
        assert length.cancelled()
