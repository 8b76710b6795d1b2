"""What binding arguments to a deployment gives: a node of the graph that ``serve.run`` runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeGuard, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from threadserve.app.config import DeploymentConfig
    from threadserve.handle import DeploymentHandle

__all__ = ["Application", "Binding", "binding_of", "is_application"]

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Binding:
    """What an application is made of."""

    name: str
    """The name that its deployment was given, before the app made it unique."""
    target: Callable[..., Any]
    """The class or function."""
    config: DeploymentConfig
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


if TYPE_CHECKING:

    class Application(DeploymentHandle[T_co]):
        """A bound deployment; where an argument is annotated as a handle, an application may stand."""

        __threadserve_binding__: Binding

        def __init__(self, binding: Binding) -> None: ...

else:

    class Application(Generic[T_co]):
        """A deployment with its bind arguments: for ``serve.run``, or an argument of further deployments.

        It has no public attributes, and equals only itself.
        """

        __slots__ = ("__threadserve_binding__", "__weakref__")

        def __init__(self, binding: Binding) -> None:
            if not isinstance(binding, Binding):
                raise TypeError("an Application is made by binding a deployment: D.bind(...)")
            self.__threadserve_binding__ = binding

        def __repr__(self) -> str:
            return f"<Application of deployment {binding_of(self).name!r}, not running: pass it to serve.run>"

        def __call__(self, *_: object, **__: object) -> NoReturn:
            """Refuse to be taken for what runs."""
            raise TypeError(not_running(self, "be called"))

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):
                raise AttributeError(f"'Application' object has no attribute {name!r}", name=name, obj=self)
            raise AttributeError(not_running(self, f"have {name!r}"), name=name)


def binding_of(application: Application[Any]) -> Binding:
    """Return what the application is made of."""
    return application.__threadserve_binding__


def is_application(value: object) -> TypeGuard[Application[Any]]:
    """Whether it is an application."""
    return isinstance(value, Application)


def not_running(application: Application[Any], wish: str) -> str:
    """Return the sentence for somebody who takes an application for its handle."""
    return (
        f"the application of deployment {binding_of(application).name!r} is not running and cannot {wish}: "
        "pass it to serve.run, which returns a handle"
    )
