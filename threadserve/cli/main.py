"""The command itself: what it is called with decides which verb's file is loaded."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

import click

__all__ = ["main"]

_VERBS = {"run": "Serve an application over HTTP until Ctrl-C."}


class _Verbs(click.Group):
    """A group whose commands live in files of their own, loaded when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = import_module(f"threadserve.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


def _say_version(ctx: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        try:
            version = metadata.version("threadserve")
        except metadata.PackageNotFoundError:  # a source tree on the path, not installed
            version = "0+unknown"
        click.echo(f"threadserve {version}")
        ctx.exit()


def _version_option(command: Any) -> Any:
    return click.option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_say_version,
        help="Show the version and exit.",
    )(command)


@_version_option
@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Compose, call and serve Python classes in one process."""
