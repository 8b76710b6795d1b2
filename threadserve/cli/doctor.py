"""``threadserve doctor``: what this Python and this machine offer, and what keeps them from offering more."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
import sysconfig
import warnings

import click

__all__ = ["command"]

PACKAGES = ("starlette", "uvicorn", "wrapt", "click", "rich", "cloudpickle", "PyYAML")
EXTRAS = {"uvloop": "http", "httptools": "http", "pytest": "test", "hypothesis": "test", "httpx": "test"}


@click.command("doctor")
@click.argument("modules", metavar="[MODULE]...", nargs=-1)
@click.option("-d", "--app-dir", default=".", show_default=True, help="Where to look for MODULE first.")
def command(modules: tuple[str, ...], app_dir: str) -> None:
    """Say what this Python and this machine offer.

    Each MODULE is imported, and it is said whether it turns the GIL back on (on a free-threaded build) and whether
    an interpreter replica could import it. The exit status is 1 if one of them is kept from anything.
    """
    sys.path.insert(0, app_dir)
    _line("python", f"{platform.python_implementation()} {platform.python_version()}, {_build()}")
    _line("GIL", _gil())
    _line("cores", _cores())
    _line("replica types", _replica_types())
    _line("packages", _found(dict.fromkeys(PACKAGES, "")))
    _line("extras", _found(EXTRAS))
    complaints = [complaint for name in modules for complaint in _examine(name)]
    for complaint in complaints:
        _line("warning", complaint)
    sys.exit(1 if complaints else 0)


def _line(what: str, says: str) -> None:
    click.echo(f"{what + ':':15}{says}")


def _build() -> str:
    return "free-threaded build" if _is_free_threaded() else "build with a GIL"


def _is_free_threaded() -> bool:
    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def _is_gil_on() -> bool:
    asked = getattr(sys, "_is_gil_enabled", None)
    return asked is None or bool(asked())


def _gil() -> str:
    if not _is_gil_on():
        return "off: threads use all cores"
    if _is_free_threaded():
        return "on, though this build can do without: PYTHON_GIL=1, -X gil=1, or an import that turned it on"
    return "on: threads share one core for Python code; they overlap in I/O, and in C code that lets go of it"


def _cores() -> str:
    from threadserve.runtime.machine import cores

    return f"{cores()} usable of {os.cpu_count()}"


def _replica_types() -> str:
    from threadserve.concurrency.interpreters import is_offered

    if is_offered():
        doorbell = "eventfd" if hasattr(os, "eventfd") else "a pipe"
        return f"thread, interpreter (woken by {doorbell})"
    return "thread (interpreter: from CPython 3.14 on)"


def _found(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {_version(name, extra)}" for name, extra in packages.items())


def _version(name: str, extra: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"missing ({f'pip install threadserve[{extra}]' if extra else 'reinstall threadserve'})"


def _examine(name: str) -> list[str]:
    """Import a module; return what is wrong with it."""
    was_on = _is_gil_on()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # Python's own, of what is said here
            importlib.import_module(name)
    except Exception as error:
        return [f"{name} cannot be imported: {type(error).__name__}: {error}"]
    complaints = []
    if _is_gil_on() and not was_on:
        complaints.append(
            f"importing {name} turned the GIL back on: an extension module in it is not made for free threading; "
            "PYTHON_GIL=0 keeps it off at your own risk"
        )
    obstacle = _obstacle(name)
    if obstacle:
        complaints.append(f"{name} is for thread replicas only: {obstacle}")
    return complaints


def _obstacle(name: str) -> str:
    """Say what keeps a module out of interpreter replicas; empty if nothing does, or if there are none."""
    from threadserve.concurrency.interpreters import Interpreter, is_offered

    if not is_offered():
        return ""
    interpreter = Interpreter()
    try:
        interpreter.run(f"import sys; sys.path[:] = path; import {name}", {"path": tuple(sys.path)})
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    finally:
        interpreter.close()
    return ""
