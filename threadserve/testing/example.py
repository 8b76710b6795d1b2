"""Which Hypothesis example the running code belongs to: the one that made the call, in a replica's thread as well.

Hypothesis keeps the current example, and where its notes go, in variables of the thread. Calls of ours carry the caller's
context variables to the replica. So all there is to do is to keep Hypothesis' variables in context variables: then
``assume``, ``note``, ``event`` and ``data.draw`` in a deployment act on the example whose call runs there, and two
examples that run at once, in two threads, stay apart.

Hypothesis calls ``carry`` when it is imported (entry point ``hypothesis``); nothing of this is loaded without it.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import Any

__all__ = ["carry", "draw", "is_drawing"]

_CARRIED = (
    ("hypothesis.control", "_current_build_context"),
    ("hypothesis.reporting", "reporter"),
    ("hypothesis._settings", "default_variable"),
)
"""Module and name of what belongs to an example."""


class _InContext:
    """Stands in for a ``threading.local`` with the one attribute ``value``."""

    __slots__ = ("_variable",)

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_variable", ContextVar[Any](name))

    def __getattr__(self, name: str) -> Any:
        try:
            return self._variable.get()
        except LookupError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._variable.set(value)


def carry() -> None:
    """Let the current example travel with the context variables; may be repeated.

    A version of Hypothesis that keeps it elsewhere is left as it is: there, a deployment belongs to no example.
    """
    for module, name in _CARRIED:
        variable = getattr(sys.modules.get(module), name, None)
        kept = getattr(variable, "data", None)
        if kept is None or isinstance(kept, _InContext):
            continue
        present = vars(kept).copy()
        variable.data = _InContext(f"hypothesis {name}")  # type: ignore[union-attr]
        if "value" in present:  # it was imported, and in use, before this
            variable.data.value = present["value"]  # type: ignore[union-attr]


def is_drawing() -> bool:
    """Whether the running code belongs to an example of Hypothesis'. Never blocks, imports nothing."""
    control = sys.modules.get("hypothesis.control")
    return control is not None and bool(control.currently_in_test_context())


def draw(strategy: Any, label: str | None = None) -> Any:
    """Draw from `strategy`, for the example that the running code belongs to; `label` is what it prints before the value."""
    from hypothesis import note
    from hypothesis.control import current_build_context

    value = current_build_context().data.draw(strategy)
    if label is not None:
        note(f"{label}: {value!r}")
    return value
