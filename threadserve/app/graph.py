"""Turns a graph of bound deployments into a plan: every node named, checked, and after its children."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from threadserve.app.application import Application, binding_of, is_application
from threadserve.app.callables import is_class, is_function, name_of
from threadserve.app.containers import contents, rebuilt
from threadserve.app.deployment import Deployment, is_deployment
from threadserve.app.rules import inside, nearest, shown
from threadserve.errors import ConfigError, GraphError
from threadserve.handle import DeploymentHandle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from threadserve.app.config import DeploymentConfig

__all__ = ["HandleTo", "Plan", "PlannedDeployment", "build", "fill"]

V = TypeVar("V")
Node = Application[Any]

_log = logging.getLogger("threadserve")


@dataclass(frozen=True, slots=True)
class HandleTo:
    """Stands in planned arguments where the handle of a child will be."""

    deployment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDeployment:
    """One node of an app: what each replica of it is made of."""

    name: str
    """Unique in the app."""
    target: Callable[..., Any]
    """The class or function."""
    config: DeploymentConfig
    init_args: tuple[object, ...] = ()
    """Arguments of the constructor, with a ``HandleTo`` in the place of each application."""
    init_kwargs: Mapping[str, object] = field(default_factory=dict[str, object])
    children: tuple[str, ...] = ()
    """Names of the deployments that the arguments hold handles to, each once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An app, ready to be brought up."""

    app: str
    ingress: str
    """The deployment at the root of the graph."""
    deployments: tuple[PlannedDeployment, ...]
    """Children before their parents, the ingress last."""
    _by_name: dict[str, PlannedDeployment] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {planned.name: planned for planned in self.deployments})

    def deployment(self, name: str) -> PlannedDeployment:
        """Return the deployment of that name.

        Raises:
            ConfigError: There is none.
        """
        if name not in self._by_name:
            known = ", ".join(map(repr, self._by_name))
            hint = nearest(name, self._by_name) or f"; there are: {known}"
            raise ConfigError(f"app {self.app!r} has no deployment {name!r}{hint}")
        return self._by_name[name]

    def levels(self) -> tuple[tuple[str, ...], ...]:
        """Return the names in groups to start one after the other; those of one group can start at once."""
        level_of: dict[str, int] = {}
        levels: list[list[str]] = []
        for planned in self.deployments:
            level = 1 + max([level_of[child] for child in planned.children], default=-1)
            level_of[planned.name] = level
            if level == len(levels):  # never more: a level is one above that of a child
                levels.append([])
            levels[level].append(planned.name)
        return tuple(map(tuple, levels))


def build(target: object, app: str) -> Plan:
    """Return the plan of the app that ``target`` is the root of.

    Applications are found in the bind arguments, also nested in lists, tuples, dict values and dataclasses. A
    node that is met several times is one deployment. Where several nodes have one name, the second gets the
    suffix ``_1``, and so on, children before parents, in the order of the arguments.

    Nothing of the user's is changed: containers that hold an application are copied, all else stays as it is.

    Raises:
        TypeError: ``target`` is no application; says what to do with what it is.
        GraphError: The graph has a circle, or two ingresses.
    """
    if not is_application(target):
        raise TypeError(f"app {app!r}: serve.run takes an application, not {what_it_is(target)}")
    with inside(f"app {app!r}"):
        children = walk(target)
        refuse_two_ingresses(children)
        names = unique_names(children)
        deployments = tuple(plan_of(node, names, children[node]) for node in children)
    return Plan(app=app, ingress=names[target], deployments=deployments)


def fill(value: V, handle_for: Callable[[str], object]) -> V:
    """Return planned arguments with each ``HandleTo`` replaced by what ``handle_for`` returns for its name.

    Containers that hold one are copied, all else stays as it is.
    """
    return rebuilt(value, lambda each: handle_for(each.deployment) if isinstance(each, HandleTo) else each)


def walk(root: Node) -> dict[Node, tuple[Node, ...]]:
    """Return the children of every node, children before parents, however deep the graph is.

    Raises:
        GraphError: A node is its own descendant, which a list that was changed after binding can bring about.
    """
    finished: dict[Node, tuple[Node, ...]] = {}
    found: dict[Node, tuple[Node, ...]] = {root: children_of(root)}
    path: dict[Node, Iterator[Node]] = {
        root: iter(found[root])
    }  # from the root to where we are, in this order
    while path:
        node, remaining = next(reversed(path.items()))
        child = next(remaining, None)
        if child is None:
            finished[node] = found[node]
            del path[node]
        elif child in path:
            raise GraphError(f"the bound deployments form a circle: {circle(path, child)}")
        elif child not in finished:
            found[child] = children_of(child)
            path[child] = iter(found[child])
    return finished


def children_of(node: Node) -> tuple[Node, ...]:
    """Return the applications among the arguments, each once, in the order in which they stand."""
    binding = binding_of(node)
    arguments = (binding.args, binding.kwargs)
    return tuple(filter(is_application, contents(arguments)))


def circle(path: Mapping[Node, object], again: Node) -> str:
    """Return the names along the path from where it meets itself."""
    nodes = list(path)
    return " -> ".join(binding_of(node).name for node in [*nodes[nodes.index(again) :], again])


def unique_names(nodes: Mapping[Node, object]) -> dict[Node, str]:
    """Return a name for each node by Ray Serve's rule: the first keeps its own, then come ``_1``, ``_2``."""
    names: dict[Node, str] = {}
    taken: set[str] = set()
    used: dict[str, int] = {}
    for node in nodes:
        given = name = binding_of(node).name
        while name in taken:
            used[given] = used.get(given, 0) + 1
            name = f"{given}_{used[given]}"
        taken.add(name)
        names[node] = name
    for given, count in used.items():
        _log.warning("several deployments are named %r: renamed up to %r", given, f"{given}_{count}")
    return names


def refuse_two_ingresses(nodes: Mapping[Node, object]) -> None:
    """Raise GraphError if more than one deployment brings its own HTTP routes."""
    bindings = [binding_of(node) for node in nodes]
    marked = [each.name for each in bindings if getattr(each.target, "__threadserve_ingress__", False)]
    if len(marked) > 1:
        raise GraphError(f"an app has one ingress at most, not {len(marked)}: {', '.join(map(repr, marked))}")


def plan_of(node: Node, names: Mapping[Node, str], children: tuple[Node, ...]) -> PlannedDeployment:
    """Return the plan of one node."""
    binding = binding_of(node)
    with inside(f"deployment {names[node]!r}"):
        if binding.config.replica_type == "interpreter":
            refuse_unknown_to_its_module(binding.target)
        arguments = (binding.args, dict(binding.kwargs))
        if children:
            arguments = rebuilt(arguments, lambda each: placeholder(each, names))
    args, kwargs = arguments
    return PlannedDeployment(
        name=names[node],
        target=binding.target,
        config=binding.config,
        init_args=args,
        init_kwargs=kwargs,
        children=tuple(names[child] for child in children),
    )


def refuse_unknown_to_its_module(target: Any) -> None:
    """Raise ConfigError unless the module of a class or function has it, or its deployment, under its name."""
    module, path = target.__module__, target.__qualname__
    found: Any = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    if is_deployment(found):
        found = found.func_or_class
    if found is target:
        return
    reason = f"{module} has no {path!r}" if found is None else f"{path!r} in {module} is something else"
    raise ConfigError(
        f"replica_type='interpreter' imports the class or function by its name, but {reason}; "
        "keep it at the top level of its module, under its own name"
    )


def placeholder(value: object, names: Mapping[Node, str]) -> object:
    """Return the placeholder of an application; everything else as it is."""
    return HandleTo(names[value]) if is_application(value) else value


def what_it_is(target: object) -> str:
    """Return what somebody gave instead of an application, and what to do with it."""
    if is_deployment(target):
        return f"the deployment {target.name!r} itself; bind it: serve.run({target.name}.bind(...))"
    if target is Application or target is Deployment:
        return f"the class {name_of(target)}; pass what .bind(...) of a deployment returns"
    if isinstance(target, DeploymentHandle):
        return "a handle, whose app is running already"
    if is_class(target) or is_function(target):
        name = name_of(target)
        return f"{shown(target)}; decorate it with @serve.deployment, then serve.run({name}.bind(...))"
    if isinstance(target, str):
        return f"the string {target!r}; import the application and pass that"
    return f"{shown(target)}; make one with D.bind(...) of a deployment D"
