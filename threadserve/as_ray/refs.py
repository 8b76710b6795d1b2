"""``ray.ObjectRef``: refs whose every fetch is a copy, and raises Ray's errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadserve.as_ray.errors import translated
from threadserve.as_ray.isolation import FACES, ISOLATION
from threadserve.call import objectref
from threadserve.call.answer import request_of
from threadserve.errors import ServeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["ObjectRef", "ObjectRefGenerator", "face_of_ref"]


class ObjectRef(objectref.ObjectRef[Any]):
    """Refers to a value that is there now or later; each fetch gets a copy."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            value = yield from super().__await__()
        except ServeError as error:
            raise translated(error) from None
        return ISOLATION.copy(value)

    def binary(self) -> bytes:
        """Return the id as bytes."""
        return bytes.fromhex(self.hex())

    def __reduce__(self) -> tuple[Any, ...]:
        find, arguments = super().__reduce__()
        return _refound, (find, arguments)


def _refound(find: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return face_of_ref(find(*arguments))


class ObjectRefGenerator:
    """The items of a generator task, as refs."""

    def __init__(self, items: objectref.ObjectRefGenerator[Any]) -> None:
        self._items = items

    def __iter__(self) -> ObjectRefGenerator:
        return self

    def __next__(self) -> ObjectRef:
        return ObjectRef(request_of(next(self._items)))

    def __aiter__(self) -> ObjectRefGenerator:
        return self

    async def __anext__(self) -> ObjectRef:
        return ObjectRef(request_of(await self._items.__anext__()))

    def completed(self) -> ObjectRef:
        """Return a ref that is done when the producer is."""
        return ObjectRef(request_of(self._items.completed()))


def face_of_ref(made: Any) -> Any:
    """Return what a script gets for what ``tasks/`` has made: a ref, a list of refs, a generator, or None."""
    if isinstance(made, objectref.ObjectRefGenerator):
        return ObjectRefGenerator(made)
    if isinstance(made, list):
        return [face_of_ref(each) for each in made]
    if isinstance(made, objectref.ObjectRef):
        return ObjectRef(request_of(made))
    return made


FACES[objectref.ObjectRef] = face_of_ref
