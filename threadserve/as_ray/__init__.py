"""Runs unmodified Ray scripts on the threads of this process: ``python -m threadserve.as_ray SCRIPT [ARGS]``.

``install()`` puts modules in the place of ``ray`` and all that lies below it, whether or not Ray is installed; what is
imported of Ray afterwards is ours. In a conftest::

    from threadserve import as_ray

    as_ray.install()

What a script then sees is Ray's behaviour: RayTaskError, isolated values, Ray's names and rules. What one process cannot do
raises NotSupportedError when it is used; importing it is no error.
"""

from threadserve.as_ray.finder import install, is_installed, serve_url, uninstall

__all__ = ["install", "is_installed", "serve_url", "uninstall"]
