"""The rules that option values obey, and the words in which a refused one is explained."""

from __future__ import annotations

import copy
import difflib
import importlib.util
import json
import logging
import math
import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from threadserve.errors import ConfigError, NotSupportedError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "Keep",
    "Rule",
    "a_callable_or_import_string",
    "a_dict",
    "a_flag",
    "a_list",
    "a_string",
    "actor_options",
    "choice",
    "inside",
    "json_value",
    "log_level",
    "nearest",
    "no_tls",
    "number",
    "obeys",
    "optional",
    "positive",
    "refuse",
    "refuse_unknown",
    "replica_count",
    "replica_kind",
    "section",
    "shown",
    "strictly",
    "strings",
    "validate",
    "whole",
]

V = TypeVar("V")

Keep = Callable[[str, object], object]
"""Takes an option's name and value; returns the value to keep, or raises the error that refuses it."""

RULE = "rule"
LONGEST_SHOWN = 120


def obeys(rule: Keep) -> Mapping[str, Keep]:
    """Return the metadata of a dataclass field that ``validate`` holds against ``rule``."""
    return {RULE: rule}


def validate(options: Any) -> None:
    """Hold every field of a frozen dataclass against its rule, and keep what the rule returns."""
    for each in fields(options):
        if RULE in each.metadata:
            kept = each.metadata[RULE](each.name, getattr(options, each.name))
            object.__setattr__(options, each.name, kept)


def shown(value: object) -> str:
    """Return the value as an error message shows it: its repr, shortened."""
    try:
        told = repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide the error that is being told
        told = f"<{type(value).__name__}>"
    return told if len(told) <= LONGEST_SHOWN else f"{told[:LONGEST_SHOWN]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name that looks most like ``name``, or ``""``."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def refuse(name: str, allowed: str, value: object, error: type[Exception] = ConfigError) -> NoReturn:
    """Raise the error that says which option, what is allowed, and what was given."""
    raise error(f"{name} must be {allowed}, not {shown(value)}")


def refuse_unknown(
    names: Iterable[str], known: Collection[str], *, of: str, error: type[Exception] = ConfigError
) -> None:
    """Raise ``error`` for the first of ``names`` that is not a known one, and tell the nearest that is."""
    for name in names:
        if name not in known:
            hint = nearest(name, known) or f"; there are: {', '.join(sorted(known))}"
            raise error(f"{of} has no option {name!r}{hint}")


class inside(AbstractContextManager[None]):  # noqa: N801 - used like a function
    """Put ``place`` in front of every refusal that the body raises."""

    __slots__ = ("_place",)

    def __init__(self, place: str) -> None:
        self._place = place

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ConfigError):
            raise type(error)(f"{self._place}: {error}") from None
        if isinstance(error, TypeError):
            raise TypeError(f"{self._place}: {error}") from None


@dataclass(frozen=True, slots=True)
class Rule:
    """What one option accepts, as a test and in words."""

    allowed: str
    accepts: Callable[[object], bool]
    of_type: type[object] = object
    """A value that is no instance of this is a TypeError instead of a ConfigError."""

    def __call__(self, name: str, value: object) -> object:
        """Return the value, or refuse it."""
        if not self.accepts(value):
            refuse(name, self.allowed, value, ConfigError if isinstance(value, self.of_type) else TypeError)
        return value


def whole(*, at_least: int, at_most: int | None = None, or_else: int | None = None) -> Rule:
    """Accept an int within bounds (a bool is none), or the one value ``or_else`` outside of them."""
    bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
    allowed = f"an int {bounds}" if or_else is None else f"{or_else} or an int {bounds}"

    def accepts(value: object) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return value == or_else or (value >= at_least and (at_most is None or value <= at_most))

    return Rule(allowed, accepts)


def number(*, at_least: float) -> Rule:
    """Accept a finite int or float that is not below ``at_least``."""
    return Rule(f"a finite number of at least {at_least:g}", lambda value: finite(value) >= at_least)


def positive(*, at_most: float = math.inf) -> Rule:
    """Accept a finite int or float above 0."""
    bound = "" if at_most == math.inf else f" and at most {at_most:g}"
    return Rule(f"a finite number above 0{bound}", lambda value: 0 < finite(value) <= at_most)


def some_gpus() -> Rule:
    """Accept a whole number of GPUs, or a fraction of one, which several replicas share."""

    def accepts(value: object) -> bool:
        number = finite(value)
        return 0 <= number <= 1 or (number > 1 and number == int(number))

    return Rule("a whole number of at least 0, or a fraction of one GPU", accepts)


def finite(value: object) -> float:
    """Return the value if it is a finite number, else NaN, which no comparison accepts."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return math.nan
    try:
        return value if math.isfinite(value) else math.nan
    except OverflowError:  # an int beyond every float
        return math.nan


def choice(*allowed: object) -> Rule:
    """Accept one of the listed values."""
    words = " or ".join(repr(value) for value in allowed)
    return Rule(words, lambda value: not isinstance(value, bool) and value in allowed)


def instance(kind: type[object], words: str) -> Rule:
    """Accept instances of one type."""
    return Rule(words, lambda value: isinstance(value, kind))


a_dict = instance(dict, "a dict")
a_flag = instance(bool, "True or False")
a_list = instance(list, "a list")
a_string = instance(str, "a string")
a_callable_or_import_string = Rule(
    "a callable or an import string", lambda value: callable(value) or isinstance(value, str)
)


def optional(rule: Rule) -> Rule:
    """Accept None beside what ``rule`` accepts."""
    return Rule(f"None or {rule.allowed}", lambda value: value is None or rule.accepts(value), rule.of_type)


def strictly(kind: type[object], rule: Rule) -> Rule:
    """Make it a TypeError when the value is no ``kind`` at all."""
    return replace(rule, of_type=kind)


def section(kind: type[Any], *, absent: object = None, ignore_unknown: bool = False) -> Keep:
    """Accept an instance of the dataclass ``kind``, a dict to make one of, or None for ``absent``."""

    def keep(name: str, value: object) -> object:
        if value is None:
            return absent
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            refuse(name, f"None, a dict or an instance of {kind.__name__}", value)
        options = cast("Mapping[str, object]", value)
        known = [each.name for each in fields(kind)]
        with inside(name):
            if not ignore_unknown:
                refuse_unknown(options, known, of=kind.__name__)
            return kind(**{key: options[key] for key in known if key in options})

    return keep


ACTOR_OPTIONS: Mapping[str, Rule] = {
    "accelerator_type": optional(a_string),
    "fallback_strategy": optional(a_list),
    "label_selector": optional(a_dict),
    "memory": optional(number(at_least=0)),
    "num_cpus": optional(number(at_least=0)),
    "num_gpus": optional(some_gpus()),
    "resources": optional(a_dict),
    "runtime_env": optional(a_dict),
}


def actor_options(name: str, value: object) -> object:
    """Keep a copy of a dict whose keys are Ray's actor options; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        refuse(name, "a dict", value, TypeError)
    given = cast("Mapping[str, object]", value)
    refuse_unknown(given, ACTOR_OPTIONS, of=name)
    return {key: ACTOR_OPTIONS[key](f"{name}[{key!r}]", part) for key, part in given.items()}


def replica_count(name: str, value: object) -> object:
    """Keep an int of at least 1; None is 1."""
    if value is None:
        return 1
    if not whole(at_least=1).accepts(value):
        refuse(name, "an int of at least 1, 'auto' or None", value)
    return value


def replica_kind(name: str, value: object) -> object:
    """Keep ``"thread"``, or ``"interpreter"`` where this Python has interpreters to run replicas in."""
    if not (isinstance(value, str) and value in ("thread", "interpreter")):
        refuse(name, "'thread' or 'interpreter'", value)
    if value == "interpreter" and importlib.util.find_spec("concurrent.interpreters") is None:
        raise NotSupportedError(
            f"{name}='interpreter' needs CPython 3.14 or newer, which has subinterpreters with a GIL of their own; this is "
            f"{platform.python_implementation()} {platform.python_version()}: use {name}='thread', the default"
        )
    return value


def json_value(name: str, value: object) -> object:
    """Keep a copy of what JSON can write down, so that no later change of the original reaches a replica."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} must be JSON-serialisable, but {error}: {shown(value)}") from None
    return copy.deepcopy(value)


def log_level(name: str, value: object) -> object:
    """Keep the upper-case name of a level that ``logging`` knows, given by name or number."""
    levels = logging.getLevelNamesMapping()
    if isinstance(value, str) and value.upper() in levels:
        return value.upper()
    if isinstance(value, bool) or value not in levels.values():
        refuse(name, f"one of {', '.join(levels)}, or its number", value)
    return logging.getLevelName(cast("int", value))


def strings(name: str, value: object) -> object:
    """Keep a list or tuple of strings, as a tuple."""
    is_sequence = issubclass(type(value), (list, tuple))
    items = tuple(cast("Sequence[object]", value)) if is_sequence else (None,)
    if not all(isinstance(item, str) for item in items):
        refuse(name, "a list of strings", value)
    return items


def no_tls(name: str, value: object) -> object:
    """Keep None: TLS is not offered."""
    if value is not None:
        raise NotSupportedError(f"{name}: threadserve does not speak TLS; let a proxy in front of it do so")
    return None
