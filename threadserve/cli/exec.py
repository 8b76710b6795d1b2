"""``threadserve exec``: run a script that imports Ray, on threads."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
def command(script: str, arguments: tuple[str, ...]) -> None:
    """Run SCRIPT, which imports ray, unchanged and without Ray.

    As `python SCRIPT ARGS` would, except that threadserve stands in for ray.
    """
    from threadserve.as_ray.script import run_script

    run_script(script, arguments)
