"""``threadserve run``: import an application, serve it until Ctrl-C or SIGTERM, drain, exit 0.

What we have to say goes to stderr; stdout is the user's.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from threadserve import api
from threadserve.app.config import HTTPOptions
from threadserve.app.importer import load_application
from threadserve.concurrency.termination import Termination
from threadserve.errors import ReplicaStartError, ServeError

if TYPE_CHECKING:
    from types import TracebackType

    from threadserve.app.application import Application

__all__ = ["command"]


@click.command("run")
@click.argument("import_path", metavar="MODULE:APP")
@click.argument("arguments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="The port to listen at; 0 takes any free one.",
)
@click.option("--name", default="default", show_default=True, help="The name of the app.")
@click.option("--route-prefix", default="/", show_default=True, help="The path under which it is served.")
@click.option(
    "-d",
    "--app-dir",
    type=click.Path(exists=True, file_okay=False),
    default=".",
    show_default=True,
    help="The folder that MODULE is looked for in first.",
)
def command(
    import_path: str,
    arguments: tuple[str, ...],
    *,
    host: str,
    port: int,
    name: str,
    route_prefix: str,
    app_dir: str,
) -> None:
    """Serve an application over HTTP until Ctrl-C.

    APP in MODULE is an application, made by .bind(), or a function that builds one from a dict of the KEYs and VALUEs.
    """
    given = dict(map(_split, arguments))
    _log_to_stderr()
    try:
        app = load_application(import_path, given, app_dir)
        _serve(app, HTTPOptions(host=host, port=port), name, route_prefix)
    except Exception as error:
        if not _explain(error):
            raise
        sys.exit(1)


def _serve(app: Application[Any], options: HTTPOptions, name: str, route_prefix: str) -> None:
    try:
        api.start(options)
        api.run(app, name=name, route_prefix=route_prefix)
        with Termination() as termination:
            click.echo(f"Serving app {name!r} at {api.http_url()}{route_prefix} (Ctrl-C stops)", err=True)
            termination.wait()
    finally:
        api.shutdown()


def _split(argument: str) -> tuple[str, str]:
    key, _, value = argument.partition("=")
    if not key or not value:
        raise click.BadParameter(f"{argument!r} is not KEY=VALUE", param_hint="KEY=VALUE")
    return key, value


def _log_to_stderr() -> None:
    """Show our warnings and errors, a request's that failed for one, unless the user's code sets up logging."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: not logging.getLogger().handlers)
    logging.getLogger("threadserve").addHandler(handler)


# Mistakes.


def _explain(error: Exception) -> bool:
    """Say what is wrong in one line, after the user's part of the traceback; False if that would explain nothing."""
    origin = error.__cause__ if isinstance(error, ReplicaStartError) and error.__cause__ else error
    theirs = _users_part(origin.__traceback__)
    if theirs is None and not isinstance(error, (ServeError, TypeError, ValueError, ImportError, SyntaxError)):
        return False
    if theirs is not None:
        traceback.print_exception(origin.with_traceback(theirs))
    message = str(error) if isinstance(error, (ServeError, TypeError)) else f"{type(error).__name__}: {error}"
    click.echo(f"Error: {message}", err=True)
    return True


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """Return `trace` from the first frame on that is neither ours nor the import system's."""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in {"threadserve", "importlib", "runpy"}:
            return trace
        trace = trace.tb_next
    return None
