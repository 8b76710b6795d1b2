"""What stands for the parts of Ray that one process does not have: it can be imported, and refuses to be used."""

from __future__ import annotations

from typing import Any, NoReturn, Self

from threadserve.errors import NotSupportedError

__all__ = ["Absent", "AbsentBase"]


class Absent:
    """A name of Ray's. Naming, annotating with and inheriting from it is fine; calling it is not."""

    def __init__(self, name: str, reason: str) -> None:
        self.__name__ = self.__qualname__ = name
        self.__module__ = name.rpartition(".")[0]
        self.__doc__ = f"Not there in one process: {reason}."
        self._reason = reason

    def __repr__(self) -> str:
        return f"<{self.__name__}, which is not supported in one process>"

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse."""
        refuse(self.__name__, self._reason)

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}", self._reason)

    def __getitem__(self, _: Any) -> Absent:
        return self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        body = {"_absent": (self.__name__, self._reason)}
        return (type(self.__name__.rpartition(".")[2], (AbsentBase,), body),)

    def __instancecheck__(self, _: Any) -> bool:
        return False


class AbsentBase:
    """What a class inherits from that a script derives from an absent one; it cannot be instantiated."""

    _absent = ("", "")

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Refuse."""
        refuse(*cls._absent)


def refuse(name: str, reason: str) -> NoReturn:
    """Raise the NotSupportedError for a use of `name`."""
    raise NotSupportedError(f"{name} is not supported in one process: {reason}")
