"""Every error keeps what it knows on its way through a pickle, and stands where the drawn tree has it."""

from __future__ import annotations

import builtins
import concurrent.futures
import copy
import inspect
import pickle
import re
from typing import Any

import pytest

from threadserve import errors

CLASSES: list[type[BaseException]] = [getattr(errors, name) for name in errors.__all__]


def attributes(cls: type[BaseException]) -> dict[str, Any]:
    """A telling value, unlike the default, for each keyword that `cls` takes beside its message."""
    return {
        each.name: telling(each.default)
        for each in inspect.signature(cls.__init__).parameters.values()
        if each.kind is each.KEYWORD_ONLY
    }


def telling(default: object) -> object:
    match default:
        case str():
            return "shop/Recommender"
        case int() | float() | None:
            return (default or 0) + 1.5
        case tuple():
            return ("recommend", "train")
        case dict():
            return {"recommend": 1}
        case _:
            raise AssertionError(f"a default of a new kind: {default!r}")


def drawn_tree() -> dict[str, tuple[str, ...]]:
    """Class name -> names of its bases, as the docstring of the module draws them."""
    assert errors.__doc__ is not None
    tree: dict[str, tuple[str, ...]] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        drawn = re.match(r"(    [| `-]*)([A-Z]\w+) *(?:\(([\w., ]+)\))?  ", line)
        if drawn is None:
            continue
        depth, name = len(drawn[1]), drawn[2]
        while above and above[-1][0] >= depth:
            above.pop()
        others = [other.rpartition(".")[2] for other in (drawn[3] or "").split(", ") if other]
        tree[name] = (*([above[-1][1]] if above else []), *others)
        above.append((depth, name))
    return tree


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_pickling_with_message_and_attributes(cls: type[BaseException]) -> None:
    error = cls("queue is full: 100 waiting, limit 99", **attributes(cls))

    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is cls
        assert str(twin) == "queue is full: 100 waiting, limit 99"
        assert twin.args == error.args
        assert vars(twin) == attributes(cls)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_needs_no_more_than_a_message(cls: type[BaseException]) -> None:
    assert str(cls("it went wrong")) == "it went wrong"


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_says_what_it_is_for(cls: type[BaseException]) -> None:
    assert cls.__doc__
    assert cls.__module__ == "threadserve.errors"


def test_the_drawn_tree_has_every_error() -> None:
    assert sorted(drawn_tree()) == sorted(errors.__all__)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_stands_where_the_tree_has_it(cls: type[BaseException]) -> None:
    bases = tuple(base.__name__ for base in cls.__bases__ if base is not Exception)

    assert bases == drawn_tree()[cls.__name__]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_foreign_base_is_the_well_known_one(cls: type[BaseException]) -> None:
    for base in cls.__bases__:
        known = getattr(builtins, base.__name__, None) or getattr(concurrent.futures, base.__name__, None)
        assert base in CLASSES or base is known


def test_cancelled_passes_through_except_exception() -> None:
    assert not issubclass(errors.Cancelled, Exception)
    assert not issubclass(errors.Cancelled, errors.ServeError)
