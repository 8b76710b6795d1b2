from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import wrapt

from threadserve.http.exchange import takes_argument

if TYPE_CHECKING:
    from collections.abc import Callable


def none() -> None: ...


def one(request: object) -> None: ...


def defaulted(request: object = None) -> None: ...


def only_keywords(*, a: int = 1) -> None: ...


def anything(*args: object, **kwargs: object) -> None: ...


def only_named(**kwargs: object) -> None: ...


def wrapped_openly(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def supplied(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper() -> Any:
        return fn("an argument of the wrapper's own")

    return wrapper


def swallowed(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(request: object) -> Any:
        return fn()

    return wrapper


@wrapt.decorator
def transparent(fn: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    return fn(*args, **kwargs)


class Zoo:
    def none(self) -> None: ...

    def one(self, request: object) -> None: ...

    @staticmethod
    def static_none() -> None: ...

    @classmethod
    def class_one(cls, request: object) -> None: ...

    @wrapped_openly
    def wrapped_none(self) -> None: ...

    @wrapped_openly
    def wrapped_one(self, request: object) -> None: ...

    @transparent
    def transparent_none(self) -> None: ...

    @transparent
    def transparent_one(self, request: object) -> None: ...


zoo = Zoo()


@pytest.mark.parametrize(
    "fn",
    [
        one,
        defaulted,
        anything,
        wrapped_openly(one),
        wrapped_openly(wrapped_openly(one)),
        wrapped_openly(anything),
        swallowed(none),
        transparent(one),
        functools.partial(one),
        zoo.one,
        zoo.class_one,
        zoo.wrapped_one,
        zoo.transparent_one,
        print,
        dict.fromkeys,
    ],
)
def test_the_request_is_handed_to_what_takes_an_argument(fn: Callable[..., Any]) -> None:
    assert takes_argument(fn)


@pytest.mark.parametrize(
    "fn",
    [
        none,
        only_keywords,
        only_named,
        wrapped_openly(none),
        wrapped_openly(wrapped_openly(none)),
        supplied(one),
        transparent(none),
        functools.partial(one, "bound"),
        zoo.none,
        zoo.static_none,
        zoo.wrapped_none,
        zoo.transparent_none,
    ],
)
def test_nothing_is_handed_to_what_takes_no_argument(fn: Callable[..., Any]) -> None:
    assert not takes_argument(fn)
