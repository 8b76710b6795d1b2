"""Loads what an import string names, and says which half of it is wrong."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from threadserve.app.application import is_application
from threadserve.app.callables import is_class
from threadserve.app.deployment import is_deployment
from threadserve.app.rules import nearest, shown
from threadserve.errors import ConfigError, ImportStringError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from threadserve.app.application import Application

__all__ = ["load", "load_application"]


def load(import_string: str, *, app_dir: str | None = None) -> Any:
    """Return the object that an import string names.

    Args:
        import_string: ``module:attribute`` or ``module.attribute``.
        app_dir: Put first in ``sys.path``, where it stays for what is imported later.

    Raises:
        ImportStringError: There is no such module, or it has no such attribute. What the module itself raises
            while it is imported arrives as itself.
        ConfigError: ``app_dir`` is no folder.
    """
    module_name, path = halves(import_string)
    if app_dir is not None:
        look_first_in(app_dir)
    found: Any = imported(module_name, import_string)
    for name in path.split("."):
        found = attribute(found, name, import_string)
    return found


def load_application(
    import_string: str, args: Mapping[str, str] | None = None, app_dir: str | None = None
) -> Application[Any]:
    """Return the application that an import string names, itself or by a function that builds it.

    Args:
        import_string: As of ``load``.
        args: What the builder function gets, as a dict.
        app_dir: As of ``load``.

    Raises:
        ImportStringError: As ``load``; or what it names is neither an application nor a function.
        ConfigError: There are ``args``, but no builder function to take them.
        TypeError: The builder function does not take exactly one argument, or returns no application.
    """
    found = load(import_string, app_dir=app_dir)
    if is_application(found):
        if args:
            raise ConfigError(f"{import_string!r} is an application, which takes no arguments: {dict(args)}")
        return found
    if is_deployment(found):
        raise ImportStringError(
            f"{import_string!r} is a deployment, not an application; let it name {found.name}.bind(...) there"
        )
    if is_class(found) or not callable(found):
        raise ImportStringError(
            f"{import_string!r} is no application and no builder function: {shown(found)}"
        )
    return built(found, dict(args or {}), import_string)


def halves(import_string: str) -> tuple[str, str]:
    """Return the module's name and the attribute's path."""
    separator = ":" if ":" in import_string else "."
    module_name, _, path = import_string.rpartition(separator)
    if "/" in import_string or module_name.endswith(".py") or import_string.endswith(".py"):
        raise ImportStringError(
            f"{import_string!r} names a file; write module:attribute, without path and .py"
        )
    if not module_name or not path:
        missing = "module" if import_string.startswith(separator) else "attribute"
        raise ImportStringError(f"{import_string!r} names no {missing}; write module:attribute")
    return module_name, path


def look_first_in(app_dir: str) -> None:
    """Put the folder first in ``sys.path``."""
    folder = Path(app_dir).resolve()
    if not folder.is_dir():
        raise ConfigError(f"app_dir {app_dir!r} is not a folder")
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))


def imported(name: str, import_string: str) -> ModuleType:
    """Return the module; of what goes wrong only that it does not exist is translated."""
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{name}.".startswith(f"{missing}."):
            raise  # it exists, and something that it imports does not
        hint = nearest(missing, (each.name for each in pkgutil.iter_modules(sys.path[:1])))
        raise ImportStringError(f"{import_string!r}: there is no module {missing!r}{hint}") from None


def attribute(owner: Any, name: str, import_string: str) -> Any:
    """Return one attribute, or say which similar ones there are."""
    try:
        return getattr(owner, name)
    except AttributeError as error:
        known = [each for each in dir(owner) if not each.startswith("_")]
        apps = [each for each in known if is_application(inspect.getattr_static(owner, each, None))]
        where = f"module {owner.__name__!r}" if inspect.ismodule(owner) else shown(owner)
        hint = nearest(name, known) or (f"; its applications are: {', '.join(apps)}" if apps else "")
        raise ImportStringError(f"{import_string!r}: {where} has no attribute {name!r}{hint}") from error


def built(builder: Any, args: dict[str, str], import_string: str) -> Application[Any]:
    """Return what the builder function makes of the arguments."""
    count = len(inspect.signature(builder).parameters)
    if count != 1:
        raise TypeError(
            f"{import_string!r} is a builder function: it must take one parameter, a dict, not {count}"
        )
    made = builder(args)
    if not is_application(made):
        hint = f"; return {made.name}.bind(...)" if is_deployment(made) else ""
        raise TypeError(
            f"{import_string!r} must return an application, not {shown(cast('object', made))}{hint}"
        )
    return made
