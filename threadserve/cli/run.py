"""``threadserve run``: import an application, serve it until Ctrl-C or SIGTERM, drain, exit 0.

What we have to say goes to stderr; stdout is the user's.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from types import TracebackType

    from threadserve.app.application import Application
    from threadserve.app.config import HTTPOptions

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
@click.option("--as-ray", is_flag=True, help="MODULE imports ray: let threadserve stand in for it.")
@click.option("-d", "--app-dir", default=".", show_default=True, help="Where to look for MODULE first.")
def command(
    import_path: str,
    arguments: tuple[str, ...],
    *,
    host: str,
    port: int,
    name: str,
    route_prefix: str,
    as_ray: bool,
    app_dir: str,
) -> None:
    """Serve an application over HTTP until Ctrl-C.

    APP in MODULE is an application, made by .bind(), or a function that builds one from a dict of the KEYs
    and VALUEs.
    """
    from threadserve.app.config import HTTPOptions
    from threadserve.app.importer import load_application

    given = dict(map(_split, arguments))
    try:
        if as_ray:
            from threadserve.as_ray import install

            install()
        app = load_application(import_path, given, app_dir)
        _serve(app, HTTPOptions(host=host, port=port), name, route_prefix, as_ray)
    except Exception as error:
        if not _explain(error):
            raise
        sys.exit(1)


def _serve(
    app: Application[Any], options: HTTPOptions, name: str, route_prefix: str, as_ray: bool = False
) -> None:
    from threadserve import api
    from threadserve.concurrency.termination import Termination

    try:
        api.start(options)
        if as_ray:
            from threadserve.as_ray import serve

            serve.start()
            serve.run(app, name=name, route_prefix=route_prefix)
        else:
            api.run(app, name=name, route_prefix=route_prefix)
        _log_to_stderr()  # not before: what goes wrong until here is told by what is raised
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
    """Show our warnings and errors, a handler's exception for one, unless the user has set up logging."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda _: not logging.getLogger().handlers)
    logging.getLogger("threadserve").addHandler(handler)


# Mistakes.


def _explain(error: Exception) -> bool:
    """Say what is wrong in a line, below the user's part of the traceback; False if that explains nothing."""
    from threadserve.errors import ReplicaStartError, ServeError

    origin = error.__cause__ if isinstance(error, ReplicaStartError) and error.__cause__ else error
    theirs = _users_part(origin.__traceback__)
    if theirs is not None:
        from traceback import print_exception

        print_exception(origin.with_traceback(theirs))
    elif not isinstance(error, (ServeError, TypeError, ValueError, ImportError, SyntaxError)):
        return False
    message = str(error) if isinstance(error, (ServeError, TypeError)) else f"{type(error).__name__}: {error}"
    click.echo(f"Error: {message}", err=True)
    return True


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """Return `trace` from the first frame on that is neither ours nor the import system's."""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in {"threadserve", "importlib", "pkgutil"}:
            return trace
        trace = trace.tb_next
    return None
