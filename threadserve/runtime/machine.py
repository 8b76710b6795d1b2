"""What this machine has, and what of it this process may use: cores, memory, GPUs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

__all__ = ["cores", "installed_gpus", "memory", "memory_limits", "visible_gpus"]

_log = logging.getLogger("threadserve")

LOOK_S = 5.0
"""How long nvidia-smi may take to name the GPUs."""


def cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Return how many bytes of memory this process may have; 0 where the system does not tell."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    return max(0, min([physical, *memory_limits()]))


def memory_limits(root: Path = Path("/")) -> list[int]:
    """Return the memory limits, in bytes, of the control groups that this process is in."""
    limits: list[str] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, membership = line.partition(":")
        controllers, _, group = membership.partition(":")
        if not controllers:  # version 2: one tree for all
            base, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # A container sees its own group as the base, whatever the path says; so a missing folder is no error.
        folder = base / group.lstrip("/")
        limits += [_read(each / file) for each in (folder, *folder.parents) if each.is_relative_to(base)]
    return [int(limit) for limit in limits if limit.strip().isdigit()]  # "max" is none


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def visible_gpus(variable: str | None) -> tuple[str, ...] | None:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` names, as it names them; None where it is not set.

    As for CUDA, what stands behind the first name that is none (empty, or -1) does not count.
    """
    if variable is None:
        return None
    named: dict[str, None] = {}
    for name in map(str.strip, variable.split(",")):
        if not name or name.startswith("-"):
            break
        named[name] = None
    return tuple(named)


def installed_gpus() -> tuple[str, ...]:
    """Ask nvidia-smi for the GPUs; none where it is not installed or does not answer. Blocks, 5 s at most."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LOOK_S, check=False
        ).stdout.decode(errors="replace")
    except OSError:
        return ()
    except subprocess.TimeoutExpired:
        _log.warning("nvidia-smi did not answer within %g s: no GPUs are taken to be there", LOOK_S)
        return ()
    return tuple(line.strip() for line in told.splitlines() if line.strip().isdigit())
