"""What binding arguments to a deployment gives: a node of the graph that ``serve.run`` runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeGuard, TypeVar

from threadserve.app.containers import contents, rebuilt
from threadserve.errors import GraphError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from threadserve.app.config import DeploymentConfig
    from threadserve.handle import DeploymentHandle

__all__ = ["Application", "Binding", "binding_of", "is_application", "rebound"]

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


class Declared(Protocol):
    """All that ``replace`` knows of a deployment."""

    @property
    def name(self) -> str: ...

    @property
    def func_or_class(self) -> Callable[..., Any]: ...


class Bindable(Protocol):
    """A deployment that needs no arguments."""

    def bind(self) -> Any: ...


if TYPE_CHECKING:

    class Application(DeploymentHandle[T_co]):
        """A bound deployment; where an argument is annotated as a handle, an application may stand."""

        __threadserve_binding__: Binding

        def __init__(self, binding: Binding) -> None: ...
        def replace(
            self, deployment: Declared | str, double: Application[Any] | Bindable
        ) -> Application[T_co]:
            """Return the same app with another deployment in the place of one."""
            ...

else:

    class Application(Generic[T_co]):
        """A deployment with its bind arguments: for ``serve.run``, or an argument of further deployments.

        ``replace`` is its one public attribute, and it equals only itself.
        """

        __slots__ = ("__threadserve_binding__", "__weakref__")

        def __init__(self, binding: Binding) -> None:
            if not isinstance(binding, Binding):
                raise TypeError("an Application is made by binding a deployment: D.bind(...)")
            self.__threadserve_binding__ = binding

        def replace(
            self, deployment: Declared | str, double: Application[Any] | Bindable
        ) -> Application[Any]:
            """Return the same app with every node of `deployment` replaced by `double`, under the name it had.

            This app stays as it is. Never blocks.

            Args:
                deployment: What was bound, ``Model`` of ``Model.bind(...)``; or its name. An ``options(...)`` copy of it
                    that has the same name is meant as well.
                double: Another application, ``testing.fake(...)`` for one, with its own options; or a deployment that
                    can be bound without arguments.

            Raises:
                GraphError: Nothing of that name was bound, or the graph has a circle.
                TypeError: Either is something else.
            """
            return replaced(self, deployment, double)

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


def rebound(root: Application[Any], change: Callable[[Binding], Binding]) -> Application[Any]:
    """Return a copy of the graph in which every node is made of what `change` returns for its binding.

    `change` is asked once for each node, children first, with the changed children among the arguments. A node that
    it leaves as it is stays the same object. Works however deep the graph is.

    Raises:
        GraphError: A node is its own descendant.
    """
    done: dict[Application[Any], Application[Any]] = {}
    opened: dict[Application[Any], Binding] = {}
    waiting: list[Application[Any]] = [root]
    while waiting:
        node = waiting[-1]
        if node in done:
            waiting.pop()
        elif node in opened:  # for the second time at the top: its children are done
            before, binding = binding_of(node), opened.pop(node)
            args, kwargs = rebuilt(
                (binding.args, dict(binding.kwargs)),
                lambda each: done[each] if is_application(each) else each,
            )
            if any(done[child] is not child for child in _children(before)):
                binding = replace(binding, args=args, kwargs=kwargs)
            after = change(binding)
            done[node] = node if after is before else Application(after)
        else:
            opened[node] = binding_of(node)
            waiting.extend(children := list(_children(opened[node])))
            if any(child in opened for child in children):
                raise GraphError(f"deployment {opened[node].name!r} is bound into its own arguments")
    return done[root]


def replaced(root: Application[Any], deployment: object, double: object) -> Application[Any]:
    """Return the graph with a double in the place of a deployment; what ``Application.replace`` does."""
    name = deployment if isinstance(deployment, str) else getattr(deployment, "name", None)
    if not isinstance(name, str) or is_application(deployment):
        raise TypeError(
            f"replace takes a deployment or its name, and what is to stand in for it; not {deployment!r}"
        )
    original = None if isinstance(deployment, str) else getattr(deployment, "func_or_class", None)
    stand_in = double if is_application(double) else _bound(double)
    made_of = binding_of(stand_in)
    found: list[str] = []
    known: dict[str, None] = {}

    def change(binding: Binding) -> Binding:
        known[binding.name] = None
        if binding.name != name or (original is not None and binding.target is not original):
            return binding
        found.append(name)
        return replace(made_of, name=name)

    changed = rebound(root, change)
    if not found:
        raise GraphError(
            f"the app has no deployment {name!r} to replace; there are: {', '.join(map(repr, known))}"
        )
    return changed


def _children(binding: Binding) -> Iterator[Application[Any]]:
    return filter(is_application, contents((binding.args, binding.kwargs)))


def _bound(double: object) -> Application[Any]:
    bind = getattr(double, "bind", None)
    bound = bind() if callable(bind) else None
    if not is_application(bound):
        raise TypeError(
            f"only an application or a deployment can stand in for a deployment, not {double!r}: decorate a class or "
            "function with @serve.deployment, or use threadserve.testing.fake"
        )
    return bound
