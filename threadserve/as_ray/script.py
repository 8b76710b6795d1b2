"""Runs a script as ``__main__``, with the stand-in for Ray in place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from threadserve.as_ray.finder import install

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "run_script"]

USAGE = "usage: python -m threadserve.as_ray SCRIPT [ARGS]"


def main(arguments: Sequence[str]) -> None:
    """Run the script that the first argument names, with the others as its own."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    run_script(arguments[0], arguments[1:])


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Run the script at `path` as ``python SCRIPT ARGUMENTS`` would, with the stand-in in the place of Ray.

    What the script raises, SystemExit included, arrives as itself.

    Raises:
        SystemExit: There is no such file.
    """
    file = Path(path)
    if not file.is_file():
        sys.exit(f"threadserve.as_ray: there is no script {path!r}")
    install()
    # A module of its own in the place of __main__, and not runpy: that takes the module away when the script has ended,
    # and with it what replicas and threads still need while they finish.
    module = ModuleType("__main__")
    module.__file__ = str(file)
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.argv = [path, *arguments]
    sys.path[0] = str(file.resolve().parent)
    exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), module.__dict__)
