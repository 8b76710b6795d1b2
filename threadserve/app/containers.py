"""Walks through the containers that bind arguments consist of, without recursion and without changing any."""

from __future__ import annotations

import copy
import operator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from threadserve.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["contents", "rebuilt"]

V = TypeVar("V")


def contents(value: object) -> Iterator[object]:
    """Yield the value and all that it contains, outside in, left to right, each object once.

    Containers are lists, tuples, dicts (their values) and dataclasses, and what derives from them.
    """
    seen: dict[int, object] = {}  # holds the objects, so that no id is taken anew
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        yield each
        parts = parts_of(each)
        if parts:
            waiting.extend(reversed(parts))


def rebuilt(value: V, replace: Callable[[object], object]) -> V:
    """Return the value with all it contains replaced, copying only containers in which something changes.

    ``replace`` is asked for containers, too, and returns what is given where nothing is to be replaced.
    A container that stands in several places still does so afterwards.

    Raises:
        GraphError: A container contains itself.
    """
    done: dict[int, tuple[object, object]] = {}  # the originals are held, so that no id is taken anew
    opened: dict[int, list[Any]] = {}
    waiting: list[object] = [value]
    while waiting:
        each = waiting[-1]
        key = id(each)
        if key in done:
            waiting.pop()
        elif key in opened:  # for the second time at the top: its parts are done
            before = opened.pop(key)
            after = [done[id(part)][1] if id(part) in done else part for part in before]
            is_same = all(map(operator.is_, after, before))
            done[key] = (each, each if is_same else remade(each, after))
        elif (new := replace(each)) is not each:
            done[key] = (each, new)
        elif (parts := parts_of(each)) is None:
            waiting.pop()  # a leaf that stays
        else:
            opened[key] = parts
            refuse_circle(parts, opened)
            waiting.extend(reversed(parts))
    return cast("V", done[id(value)][1]) if id(value) in done else value


def refuse_circle(parts: list[Any], opened: dict[int, list[Any]]) -> None:
    """Raise GraphError if one of the parts is a container whose parts are being looked at."""
    for part in parts:
        if id(part) in opened:
            raise GraphError(f"a {type(part).__name__} among the bind arguments contains itself")


def parts_of(value: Any) -> list[Any] | None:
    """Return what a container holds, in order; None for everything that is no container."""
    kind = value.__class__
    if issubclass(kind, (list, tuple)):
        return list(value)
    if issubclass(kind, dict):
        return list(value.values())
    if is_dataclass(kind):
        return [getattr(value, name) for name in field_names(value)]
    return None


def remade(container: Any, parts: list[Any]) -> Any:
    """Return a copy of the container with other parts; no constructor of the user's is called."""
    kind = container.__class__
    if issubclass(kind, tuple):
        return tuple_like(container, parts)
    clone = copy.copy(container)
    if issubclass(kind, list):
        clone[:] = parts
    elif issubclass(kind, dict):
        clone.update(zip(list(clone), parts, strict=True))
    else:
        for name, part in zip(field_names(container), parts, strict=True):
            object.__setattr__(clone, name, part)  # also where the dataclass is frozen
    return clone


def tuple_like(original: Any, parts: list[Any]) -> Any:
    """Return a tuple of the same class; ``tuple.__new__`` because namedtuples and others have their own."""
    clone: Any = tuple.__new__(original.__class__, parts)  # pyright: ignore[reportUnknownMemberType]
    for name, value in getattr(original, "__dict__", {}).items():
        setattr(clone, name, value)
    return clone


def field_names(value: Any) -> list[str]:
    """Return the names of those fields of a dataclass that are set."""
    return [each.name for each in fields(value) if hasattr(value, each.name)]
