"""``serve.deployment`` by Ray's rules: what it accepts, when it looks, and what it refuses."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from threadserve.app import deployment as ours
from threadserve.app.application import Application, Binding, binding_of
from threadserve.app.callables import deployable, is_class, name_of
from threadserve.app.config import UNSET, DeploymentConfig
from threadserve.app.deployment import checked_name, configured
from threadserve.app.rules import inside
from threadserve.as_ray.isolation import Sealed, Sealing
from threadserve.call.isolation import culprit
from threadserve.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Application", "Deployment", "deployment", "sealed"]

_ATTEMPTS = 3
"""Ray starts a replica so often before it gives up, unless it is told less."""

_REPLACED = {
    "route_prefix": "it was removed; give it to serve.run(..., route_prefix=...)",
    "max_concurrent_queries": "it was removed; it is called max_ongoing_requests",
    "inline": "it is an option of threadserve's; threadserve.as_ray.install(inline=False) is for all deployments",
    "stream_buffer_size": "it is an option of threadserve's, and no limit holds here",
}


def deployment(func_or_class: Any = None, /, **options: Any) -> Any:
    """Declare a class or function as a deployment; with options only, return a decorator. See Ray.

    Raises:
        TypeError: This is no class or function or could not be shipped to a cluster; or an option is unknown.
        ValueError: An option has a value that is refused.
    """

    def decorate(target: Any) -> Deployment:
        if not is_class(target) and not callable(target):
            raise TypeError("@serve.deployment must be called on a class or function")
        reached = deployable(target)
        name = options.get("name") or name_of(reached)
        if "name" in options:
            checked_name(options["name"])
        given = {key: value for key, value in options.items() if key != "name"}
        _refuse_replaced(given)
        _refuse_unpicklable(f"the deployment {target!r}", reached)
        config = configured(str(name), _DEFAULTS, given)
        return _made(checked_name(name, reached), reached, _for_ray(config))

    return decorate(func_or_class) if callable(func_or_class) else decorate


_DEFAULTS = DeploymentConfig(stream_buffer_size=sys.maxsize)


def _for_ray(config: DeploymentConfig) -> DeploymentConfig:
    attempts = config.max_constructor_retry_count
    given = _ATTEMPTS if attempts is None else min(attempts, _ATTEMPTS)
    return config.changed({"max_constructor_retry_count": given})


def _made(name: str, target: Any, config: DeploymentConfig) -> Deployment:
    made = Deployment.of(name, target, config)
    assert isinstance(made, Deployment)
    return made


def _refuse_replaced(options: Mapping[str, Any]) -> None:
    for name, advice in _REPLACED.items():
        if name in options:
            raise TypeError(f"deployment() got an unexpected keyword argument {name!r}: {advice}")


def _refuse_unpicklable(what: str, value: Any) -> None:
    import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception as error:
        raise TypeError(f"Could not serialize {what}: {what}{culprit(value)}: {error}") from error


class Deployment(ours.Deployment[..., Any]):
    """A class or function with its options."""

    def bind(self, *args: Any, **kwargs: Any) -> Application[Any]:
        """Return a new node.

        Raises:
            TypeError: An argument could not be shipped to a cluster.
            ValueError: This deploys a function, which takes no bind arguments.
        """
        if not is_class(self._target) and (args or kwargs):
            raise ConfigError(f"deployment {self.name!r} is a function, and .bind() takes no arguments")
        try:
            Sealing().copy((args, kwargs))
        except Exception as error:
            raise TypeError(
                f"Could not serialize the deployment init args: args{culprit((args, kwargs))}: {error}"
            ) from error
        return Application(
            Binding(name=self._name, target=self._target, config=self._config, args=args, kwargs=kwargs)
        )

    def options(self, func_or_class: Any = UNSET, **options: Any) -> Deployment:  # type: ignore[override]
        """Return a copy in which only what is named differs."""
        _refuse_replaced(options)
        if "rolling_update_percentage" in options:
            raise TypeError("options() got an unexpected keyword argument 'rolling_update_percentage'")
        target = self._target if func_or_class is UNSET else deployable(func_or_class)
        name = checked_name(options.pop("name", self._name))
        with inside(f"deployment {name!r}"):
            config = self._config.changed(options)
        return _made(name, target, _for_ray(config))

    def __repr__(self) -> str:
        return f"Deployment(name={self._name})"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            """Say what has come in the place of what Ray has removed."""
            advice = {
                "deploy": "it was removed; use serve.run(D.bind(...))",
                "delete": "it was removed; use serve.delete(app_name)",
                "get_handle": "it was removed; serve.run returns a handle, serve.get_app_handle gets it again",
            }
            hint = f": {advice[name]}" if name in advice else ""
            raise AttributeError(f"'Deployment' object has no attribute {name!r}{hint}", name=name, obj=self)


def sealed(
    application: Application[Any],
    *,
    inline: bool,
    done: dict[Application[Any], Application[Any]] | None = None,
) -> Application[Any]:
    """Return the same graph with copies of the bind arguments, in which all applications are found, wherever they are.

    Without `inline` no body runs on the thread that waits for it.
    """
    done = {} if done is None else done
    if application not in done:
        binding = binding_of(application)
        sealing = Sealing()
        arguments = sealing.copy((binding.args, dict(binding.kwargs)))
        children = tuple(sealed(child, inline=inline, done=done) for child in sealing.children)
        config = binding.config if inline else binding.config.changed({"inline": False})
        done[application] = Application(
            replace(binding, config=config, args=(Sealed(arguments, children),), kwargs={})
        )
    return done[application]
