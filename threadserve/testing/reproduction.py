"""The line that stands for a run: what a failure prints and ``reproduce`` reads."""

from __future__ import annotations

import itertools
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["read", "trimmed", "written"]

_LINE = re.compile(r"(?:random:(-?\d+)|replay:(-?\d+):([\dx.]*))(?:@(\w+)/(\d+\.\d+))?")
_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def written(seed: int, grain: str, choices: Sequence[int] | None) -> str:
    """Return the line that stands for a run; without `choices` they follow from the seed."""
    what = f"random:{seed}" if choices is None else f"replay:{seed}:{_packed(choices)}"
    return what if grain == "operation" else f"{what}@{grain}/{_VERSION}"


def read(line: str) -> tuple[int, str, list[int] | None]:
    """Return the seed, the grain, and the choices; None for those that follow from the seed.

    Raises:
        ValueError: It is no such line, or was written by another version of Python at a grain where that matters.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"reproduce takes the line that a failure has printed, not {line!r}")
    by_chance, by_choice, packed, grain, version = match.groups(default="")
    if version and version != _VERSION:
        raise ValueError(
            f"{line!r} was printed by Python {version}, and lines differ between versions: this is {_VERSION}; "
            "search again with testing.explore"
        )
    choices = _unpacked(packed) if by_choice else None
    return int(by_chance or by_choice), grain or "operation", choices


def trimmed(choices: Sequence[int]) -> list[int]:
    """Return the choices without the zeros at the end, which go without saying."""
    last = max((index for index, choice in enumerate(choices) if choice), default=-1)
    return list(choices[: last + 1])


def _packed(choices: Sequence[int]) -> str:
    runs = ((value, len(list(group))) for value, group in itertools.groupby(trimmed(choices)))
    return ".".join(
        f"{value}x{count}" if count > 2 else ".".join([str(value)] * count) for value, count in runs
    )


def _unpacked(packed: str) -> list[int]:
    choices: list[int] = []
    for part in filter(None, packed.split(".")):
        value, _, count = part.partition("x")
        choices += [int(value)] * int(count or 1)
    return choices
