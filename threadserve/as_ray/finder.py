"""Puts our modules in the place of Ray's, and takes them away again."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, cast

from threadserve.as_ray.modules import fill, is_known

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from types import ModuleType

__all__ = ["install", "is_installed", "serve_url", "uninstall"]


class _StandIns:
    """Finds ``ray`` and all below it, before anybody else does; and loads it.

    A finder and loader by its methods: their base classes would load more than all the rest of this.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Say how to load a module that has a stand-in."""
        if fullname.partition(".")[0] != "ray" or not is_known(fullname):
            return None
        return ModuleSpec(fullname, cast("Loader", self), origin="threadserve.as_ray", is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Let the module find its names."""
        fill(module)


_finder = _StandIns()
_hidden: dict[str, ModuleType] = {}


def install(*, http: bool = True, inline: bool = True) -> None:
    """Let every later ``import ray`` get threadserve's stand-in. May be repeated.

    Real Ray, where it has been imported already, is put aside; modules that hold on to it keep it.

    Args:
        http: Whether the first ``serve.run`` opens HTTP, as Ray does. False for test suites: there only
            ``serve.start(http_options=...)`` does.
        inline: Whether a thread that waits for a call may run its body; with Ray it always runs elsewhere.
    """
    from threadserve.as_ray.serve import settings

    settings.opens_http, settings.inline = http, inline
    if is_installed():
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        _hidden[name] = sys.modules.pop(name)
    sys.meta_path.insert(0, _finder)


def serve_url() -> str:
    """Return where HTTP is served, opening it, on a free port, if it is not open; for a test that asks for it.

    Never blocks for longer than taking a port does. Apps that run already are served there too.
    """
    from threadserve import api
    from threadserve.app.config import HTTPOptions

    if api.http_url() is None:
        api.serve_http_late(HTTPOptions(port=0))
    return str(api.http_url())


def is_installed() -> bool:
    """Whether ``import ray`` gets the stand-in."""
    return _finder in sys.meta_path


def uninstall() -> None:
    """Shut down what runs, and let ``import ray`` find Ray again, if it is there. May be repeated."""
    if not is_installed():
        return
    from threadserve.as_ray.session import shutdown

    shutdown()
    sys.meta_path.remove(_finder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        del sys.modules[name]
    sys.modules.update(_hidden)
    _hidden.clear()
