"""The command itself. Its verbs load what they need when they are called, so that ``--help`` is quick."""

from __future__ import annotations

import click

from threadserve.cli.doctor import command as doctor
from threadserve.cli.exec import command as exec_
from threadserve.cli.run import command as run

__all__ = ["main"]


def _say_version(context: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        from importlib import metadata

        try:
            version = metadata.version("threadserve")
        except metadata.PackageNotFoundError:  # a source tree on the path, not installed
            version = "0+unknown"
        click.echo(f"threadserve {version}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Compose, call and serve Python classes in one process."""


main.add_command(run)
main.add_command(exec_)
main.add_command(doctor)
