"""What a deployable class or function is called, what it accepts, and which of the two it is."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from threadserve.app.rules import shown
from threadserve.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "deployable",
    "is_class",
    "is_function",
    "is_unbound_classmethod",
    "name_of",
    "parameters_of",
    "refuse_out_of_reach",
    "refuse_wrong_arguments",
    "shown_signature",
]


def unwrapped(target: Any) -> object:
    """Return what the innermost of the ``__wrapped__`` links leads to."""
    try:
        return inspect.unwrap(target)
    except ValueError:  # the links form a circle
        return target


def is_class(target: object) -> bool:
    """Whether it is a class, also behind a transparent proxy."""
    return inspect.isclass(target)


def is_function(target: object) -> bool:
    """Whether it is a function or bound method, also behind a proxy, a cache or a wrapper object."""
    inner = unwrapped(target)
    return (is_routine(target) or is_routine(inner)) and not is_class(target) and not is_class(inner)


def is_routine(target: object) -> bool:
    """Whether Python counts it among functions and methods; a partial, which 3.14 counts in, is none."""
    return inspect.isroutine(target) and not isinstance(target, functools.partial)


def is_unbound_classmethod(target: object) -> bool:
    """Whether it is a class method that does not know its class yet."""
    return isinstance(target, classmethod)


def name_of(target: object) -> str | None:
    """Return the ``__name__``, if there is one."""
    name = getattr(target, "__name__", None)
    return name if isinstance(name, str) else None


def deployable(target: Any) -> Any:
    """Return what to call in order to construct or to run ``target``.

    That is the target itself, or what it wraps if it is a transparent proxy that cannot be called.

    Raises:
        TypeError: It is no class or function; says what to deploy instead.
    """
    reached = target
    while not can_be_called(reached) and hasattr(reached, "__wrapped__"):
        reached = reached.__wrapped__
    reason = why_not_deployable(reached)
    if reason:
        raise TypeError(f"serve.deployment takes a class or a function, not {shown(target)}{reason}")
    return reached


def can_be_called(target: object) -> bool:
    """Whether it is callable, or will be when its class is known."""
    return callable(target) or is_unbound_classmethod(target)


def why_not_deployable(target: Any) -> str | None:
    """Return the advice for what cannot be deployed; None for a class or function."""
    if not can_be_called(target):
        return ", which is not callable; options are given by keyword"
    if is_class(target) or is_function(target):
        return None
    if isinstance(target, functools.partial):
        return "; write a def that calls it, or a class that is bound to these arguments"
    if is_class(unwrapped(target)):
        return f", which hides the class {name_of(target)} behind a function; deploy the class itself"
    kind = type(target).__name__
    return f"; deploy the class {kind} and bind the arguments of its constructor, or deploy a method"


def parameters_of(target: Any) -> str:
    """Return the parameters that the target shows to the world, as in code, without annotations."""
    signature = shown_signature(target)
    if signature is None:
        return "(...)"
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(inspect.Signature(bare))


def shown_signature(target: Any) -> inspect.Signature | None:
    """Return the signature that the target shows to the world; None where Python knows none.

    ``inspect`` follows links to what is wrapped. Since 3.13 it follows none from a class, and cannot read a proxy
    of one; here these are followed too.
    """
    passed: set[int] = set()
    while is_class(target) and id(target) not in passed:
        passed.add(id(target))
        target = target.__wrapped__ if is_proxy(target) else vars(target).get("__wrapped__", target)
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None


def is_proxy(target: Any) -> bool:
    """Whether it passes itself off as what it wraps."""
    return type(target) is not target.__class__ and hasattr(target, "__wrapped__")


def accepted_signature(target: Any) -> inspect.Signature | None:
    """Return the signature that is certain to hold when the target is called; None where Python knows none.

    A ``functools.wraps`` wrapper shows the signature of what it wraps and is free to accept another one (it
    may supply an argument by itself), so only its own counts. Proxies of wrapt promise what they show.
    """
    if is_proxy(target):
        return accepted_signature(target.__wrapped__)
    try:
        return inspect.signature(target, follow_wrapped=False)
    except (TypeError, ValueError):
        return None


def refuse_wrong_arguments(target: Any, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Refuse bind arguments that are certain not to be accepted.

    Raises:
        ConfigError: The target is a function, which has no constructor to take any.
        TypeError: The constructor does not accept these; says why, and shows its parameters.
    """
    if is_function(target):
        refuse_arguments_of_function(args, kwargs)
    elif signature := accepted_signature(target):
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{error}; the constructor is {name_of(target)}{parameters_of(target)}") from None


def refuse_out_of_reach(target: Any) -> None:
    """Refuse what another interpreter cannot import: it gets nothing but the name of the module and the name in it.

    Raises:
        ConfigError: The target stands in the program itself, inside of a function, or has no such names.
    """
    module, path = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str):
        reason = "has no name to import it by"
    elif module == "__main__":
        reason = "is part of the program itself (__main__), which no other interpreter can import"
    elif "<" in path:
        reason = "is made inside of a function, so it cannot be imported"
    else:
        return
    raise ConfigError(
        f"{shown(target)} {reason}; for replica_type='interpreter' put it at the top level of a module of its own and "
        "import it from there, or use replica_type='thread'"
    )


def refuse_arguments_of_function(args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Raise ConfigError if there are any."""
    if args or kwargs:
        given = ", ".join([*map(shown, args), *(f"{name}={shown(value)}" for name, value in kwargs.items())])
        raise ConfigError(
            f"it deploys a function, so .bind() takes no arguments, not ({given}): give them to .remote(), "
            "or deploy a class whose constructor takes them"
        )
