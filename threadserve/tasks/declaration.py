"""What remote functions and actor classes have in common: they stand in the place of what was decorated."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["Declaration"]


class Declaration:
    """A function or class with its options. It is not changed by anything; ``options`` makes another one.

    Attributes:
        options_given: The options that differ from the defaults, by name.
    """

    def __init__(self, target: Callable[..., Any], options: dict[str, Any]) -> None:
        self._target = target
        self._name = str(getattr(target, "__name__", type(target).__name__))
        self.options_given = options
        stand_in: Any = self
        functools.update_wrapper(stand_in, target, updated=())

    def options(self, **options: Any) -> Self:
        """Return the same with other options; what is not named stays as it is.

        Raises:
            TypeError: An option has an unknown name.
            ConfigError: An option has a value that is refused.
        """
        return type(self)(self._target, **{**self.options_given, **options})

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Be found by name where that is possible: what was decorated has lost its name to this."""
        name = getattr(self, "__qualname__", "")
        found: Any = sys.modules.get(getattr(self, "__module__", None) or "")
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is self:
            return str(name)
        if isinstance(found, Declaration) and found._target is self._target:
            return _changed, (found, self.options_given)
        return _made, (type(self), self._target, self.options_given)


def _changed(found: Declaration, options: dict[str, Any]) -> Declaration:
    return found.options(**options)


def _made(kind: Any, target: Any, options: dict[str, Any]) -> Declaration:
    made: Declaration = kind(target, **options)
    return made
