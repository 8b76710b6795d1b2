"""Hypothesis strategies: schedules, faults, options of deployments, histories of calls, whole apps.

A *schedule* is a list of small integers for ``Replay``: 0 lets the same thread go on, so a failing interleaving shrinks to few
switches, early ones, and in the end to the empty list, which is no switch that need not be.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_type_hints

from hypothesis import strategies as st

from threadserve.app.application import Application, Binding, binding_of, rebound
from threadserve.app.deployment import deployment
from threadserve.errors import ConfigError
from threadserve.testing import faults as fault
from threadserve.testing.doubles import Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from threadserve.app.config import DeploymentOptions
    from threadserve.handle import DeploymentHandle

__all__ = [
    "DrawnApp",
    "applications",
    "call_histories",
    "calls",
    "deployment_options",
    "faults",
    "names_in",
    "schedules",
]


# ---- schedules


def schedules(*, switches: int = 12, reach: int = 40) -> st.SearchStrategy[list[int]]:
    """Draw schedules for ``Replay``: who goes on, at each moment at which several could.

    Args:
        switches: At most so many times somebody else goes on than without a schedule.
        reach: So many moments pass between two of them, at most.
    """
    switch = st.tuples(st.integers(0, reach), st.integers(1, 3))
    return st.lists(switch, max_size=switches).map(_flat)


def _flat(switches: list[tuple[int, int]]) -> list[int]:
    choices: list[int] = []
    for gap, choice in switches:
        choices += [0] * gap
        choices.append(choice)
    return choices


# ---- options and faults


def deployment_options(
    *, replicas: int = 3, ongoing: int = 4, queued: int | None = None
) -> st.SearchStrategy[DeploymentOptions]:
    """Draw keyword arguments for ``serve.deployment`` and ``options``, those that change how calls are run.

    Args:
        replicas: ``num_replicas`` at most.
        ongoing: ``max_ongoing_requests`` at most.
        queued: ``max_queued_requests`` at most; None for no limit, so that no call is refused.
    """
    options: dict[str, st.SearchStrategy[Any]] = {
        "num_replicas": st.integers(1, replicas),
        "max_ongoing_requests": st.integers(1, ongoing),
        "stream_buffer_size": st.integers(1, 3),
    }
    if queued is not None:
        options["max_queued_requests"] = st.integers(1, queued) | st.just(-1)
    return st.fixed_dictionaries({}, optional=options)  # type: ignore[return-value]


def faults(
    app: Application[Any], *, at_most: int = 3, calls: int = 5
) -> st.SearchStrategy[list[fault.Fault]]:
    """Draw faults for deployments of `app`, to be put into it by ``faults.inject(app, *drawn)``.

    Args:
        app: Whose deployments are struck.
        at_most: So many faults.
        calls: Each strikes one of the first so many calls.
    """
    deployments = st.sampled_from(names_in(app))
    number = st.integers(1, calls).map(lambda call: (call,))
    seconds = st.sampled_from([0.1, 1.0, 60.0])
    kinds: list[st.SearchStrategy[fault.Fault]] = [
        st.builds(fault.Failure, deployments, st.just(RuntimeError("a fault on purpose")), calls=number),
        st.builds(fault.Latency, deployments, seconds, calls=number),
        st.builds(fault.Refusal, deployments, calls=number),
        st.builds(fault.Crash, deployments, calls=number),
        st.builds(fault.DroppedStream, deployments, st.integers(0, 2), calls=number),
        st.builds(fault.SlowStart, deployments, seconds),
    ]
    return st.lists(st.one_of(kinds), max_size=at_most)


def names_in(app: Application[Any]) -> list[str]:
    """Return the names of the deployments of an app, children first, each once."""
    names: list[str] = []

    def note(binding: Binding) -> Binding:
        names.append(binding.name)
        return binding

    rebound(app, note)
    return list(dict.fromkeys(names))


# ---- histories of calls


def calls(
    app: Application[Any] | DeploymentHandle[Any],
    *,
    methods: Sequence[str] | None = None,
    arguments: Mapping[str, st.SearchStrategy[Sequence[Any]]] | None = None,
) -> st.SearchStrategy[Call]:
    """Draw a call of an app's ingress; ``call.on(handle)`` makes it and returns the response, or the stream.

    Args:
        app: An application, or the handle of one that runs.
        methods: Those to be called; all public ones if not given.
        arguments: Method -> positional arguments, for those whose annotations do not say what to draw.

    Raises:
        ConfigError: A parameter has no annotation that Hypothesis could draw from, and no arguments are given.
    """
    target = _target_of(app)
    given = dict(arguments or {})
    drawn = [_calls(target, name, given.get(name)) for name in methods or _methods_of(target)]
    if not drawn:
        raise ConfigError(f"{target.__name__} has no public methods to be called")
    return st.one_of(drawn)


def call_histories(
    app: Application[Any] | DeploymentHandle[Any],
    *,
    methods: Sequence[str] | None = None,
    arguments: Mapping[str, st.SearchStrategy[Sequence[Any]]] | None = None,
    at_most: int = 8,
) -> st.SearchStrategy[list[Call]]:
    """Draw sequences of up to `at_most` calls of an app's ingress; the other arguments are those of ``calls``."""
    return st.lists(calls(app, methods=methods, arguments=arguments), max_size=at_most)


def _target_of(app: Any) -> Any:
    if isinstance(app, Application):
        return binding_of(app).target
    router = getattr(app, "_router", None)
    seats = list(getattr(router, "_seats", ()))
    if not seats:
        raise ConfigError(f"call_histories takes an application, or the handle of one that runs; not {app!r}")
    return type(seats[0].replica.context.servable_object)


def _methods_of(target: Any) -> list[str]:
    if not isinstance(target, type):
        return ["__call__"]
    lifecycle = {"check_health", "reconfigure"}
    names = [name for name in dir(target) if not name.startswith("_") and name not in lifecycle]
    if "__call__" in dir(target):
        names.insert(0, "__call__")
    return [name for name in names if callable(getattr(target, name))]


def _calls(
    target: Any, method: str, arguments: st.SearchStrategy[Sequence[Any]] | None
) -> st.SearchStrategy[Call]:
    function = getattr(target, method) if isinstance(target, type) else target
    is_stream = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if arguments is None:
        arguments = st.tuples(*_drawn_from_annotations(target, function, method))
    return arguments.map(lambda args: Call(method, tuple(args), is_stream=is_stream))


def _drawn_from_annotations(target: Any, function: Any, method: str) -> Iterator[st.SearchStrategy[Any]]:
    parameters = list(inspect.signature(function).parameters.values())
    is_bound = isinstance(target, type) and not inspect.ismethod(function)
    is_static = isinstance(inspect.getattr_static(target, method, None), staticmethod)
    for parameter in parameters[1 if is_bound and not is_static else 0 :]:
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        hint = _hint(function, parameter)
        if hint is Any:
            raise ConfigError(
                f"call_histories: {target.__name__}.{method} does not say of what type {parameter.name!r} is; give "
                f"arguments={{{method!r}: st.tuples(...)}}, or the methods to be called"
            )
        yield st.from_type(hint)


def _hint(function: Any, parameter: inspect.Parameter) -> Any:
    """Return the type of a parameter; Any where it has none, or one whose name is there for checkers only."""
    if parameter.annotation is parameter.empty:
        return Any
    holder = SimpleNamespace(__annotations__={"hint": parameter.annotation})
    try:
        return get_type_hints(holder, globalns=getattr(inspect.unwrap(function), "__globals__", {}))["hint"]
    except NameError:
        return Any


# ---- whole apps


@dataclass(frozen=True)
class DrawnApp:
    """An app whose answers are known: ``handle.remote(n)`` returns ``expected(n)``, and so does the sum of its stream.

    Its ``repr`` tells the graph.
    """

    app: Application[Any]
    nodes: tuple[_Node, ...]

    def expected(self, number: int) -> int:
        """Return what a call with `number` returns, worked out by hand, one node after the other."""
        return self._value(len(self.nodes) - 1, number)

    def _value(self, at: int, number: int) -> int:
        node = self.nodes[at]
        return node.increment + (sum(self._value(child, number) for child in node.children) or number)

    def __repr__(self) -> str:
        return f"DrawnApp({', '.join(map(str, self.nodes))})"


@dataclass(frozen=True)
class _Node:
    kind: str
    increment: int
    children: tuple[int, ...]
    options: Any

    def __str__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{self.kind}{list(self.children)} + {self.increment}{options}"


def applications(
    *, nodes: int = 5, options: st.SearchStrategy[DeploymentOptions] | None = None
) -> st.SearchStrategy[DrawnApp]:
    """Draw apps of up to `nodes` deployments: chains, fan-outs, diamonds, shared children; sync, async and streaming.

    Args:
        nodes: Deployments, at most.
        options: Of each deployment; ``deployment_options()`` if not given.
    """
    return _applications(nodes, deployment_options() if options is None else options)


@st.composite
def _applications(draw: st.DrawFn, nodes: int, options: st.SearchStrategy[Any]) -> DrawnApp:
    drawn: list[_Node] = []
    bound: list[Application[Any]] = []
    for at in range(draw(st.integers(1, nodes))):
        earlier = st.integers(0, at - 1)
        children = tuple(draw(st.lists(earlier, max_size=3, unique=True))) if at else ()
        kind = draw(st.sampled_from(list(_KINDS)))
        node = _Node(kind, draw(st.integers(1, 9)), children, draw(options))
        make: Any = deployment(_KINDS[kind]).options(name=f"{kind}_{at}", **node.options)
        bound.append(make.bind(node.increment, *(bound[child] for child in children)))
        drawn.append(node)
    return DrawnApp(bound[-1], tuple(drawn))


class _Adder:
    """Asks its children all at once and adds up what they say."""

    def __init__(self, increment: int, *children: Any) -> None:
        self._increment = increment
        self._children = children

    def __call__(self, number: int) -> int:
        answers = [child.remote(number) for child in self._children]
        return self._increment + (sum(answer.result() for answer in answers) or number)

    def items(self, number: int) -> Iterator[int]:
        yield self._increment
        for child in self._children:
            yield from child.options(stream=True).items.remote(number)
        if not self._children:
            yield number


class _AsyncAdder(_Adder):
    """The same in coroutines."""

    async def __call__(self, number: int) -> int:  # type: ignore[override]
        answers = [child.remote(number) for child in self._children]
        return self._increment + (sum([await answer for answer in answers]) or number)

    async def items(self, number: int) -> AsyncIterator[int]:  # type: ignore[override]
        yield self._increment
        for child in self._children:
            async for item in child.options(stream=True).items.remote(number):
                yield item
        if not self._children:
            yield number


class _Chain(_Adder):
    """Asks its children one after the other."""

    def __call__(self, number: int) -> int:
        total = 0
        for child in self._children:
            total += child.remote(number).result()
        return self._increment + (total or number)


class _Streamer(_Adder):
    """Reads its children's streams instead of asking for their answers; one at a time, for each may hold a slot."""

    def __call__(self, number: int) -> int:
        total = sum(sum(child.options(stream=True).items.remote(number)) for child in self._children)
        return self._increment + (total or number)


_KINDS: dict[str, Callable[..., Any]] = {
    "chain": _Chain,
    "fan_out": _Adder,
    "async": _AsyncAdder,
    "stream": _Streamer,
}
