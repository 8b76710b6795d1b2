"""Whatever the graph: calling it concurrently gives what calling the functions by hand gives."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

import threadserve as serve
from threadserve import futures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from threadserve.app.deployment import Application
    from threadserve.handle import DeploymentHandle

WAIT_S = 30.0


class Failure(Exception):
    pass


def combine(tag: int, *args: Any, **kwargs: Any) -> Any:
    """A value that tells all that it was made of; a tag below zero is a failure."""
    if tag < 0:
        raise Failure(tag)
    return hash((tag, args, tuple(sorted(kwargs.items()))))


# ---- calls that have the responses of other calls as arguments


class Sync:
    def __call__(self, tag: int, *args: Any, **kwargs: Any) -> Any:
        return combine(tag, *args, **kwargs)


class Async:
    async def __call__(self, tag: int, *args: Any, **kwargs: Any) -> Any:
        if tag % 2:
            await asyncio.sleep(0)
        return combine(tag, *args, **kwargs)


@dataclass(frozen=True)
class Call:
    """One call: of which deployment, with constants and with the results of earlier calls."""

    target: int
    tag: int
    inputs: tuple[int, ...]
    by_name: dict[str, int]


@st.composite
def programs(draw: st.DrawFn, may_fail: bool = False) -> list[Call]:
    """Calls in an order in which each may use all before it: chains, diamonds, fans, shared nodes and lone ones."""
    calls: list[Call] = []
    for index in range(draw(st.integers(1, 25))):
        earlier = st.integers(0, index - 1) if index else st.nothing()
        inputs = st.lists(earlier, max_size=4) if index else st.just([])
        names = st.dictionaries(st.sampled_from("abc"), earlier, max_size=2) if index else st.just({})
        tag = draw(st.integers(-1 if may_fail else 0, 5))
        calls.append(Call(draw(st.integers(0, 3)), tag * (index + 1), tuple(draw(inputs)), draw(names)))
    return calls


def by_hand(calls: list[Call]) -> list[Any]:
    """Return the value of each call, or the set of failures that it can end with."""
    results: list[Any] = []
    for call in calls:
        used = [results[index] for index in (*call.inputs, *call.by_name.values())]
        failed = {tag for result in used if isinstance(result, set) for tag in result}
        if failed or call.tag < 0:
            results.append(failed or {call.tag})
            continue
        args = (results[index] for index in call.inputs)
        results.append(
            combine(call.tag, *args, **{name: results[index] for name, index in call.by_name.items()})
        )
    return results


def concurrently(handles: list[DeploymentHandle[Any]], calls: list[Call]) -> list[Any]:
    responses: list[Any] = []
    for call in calls:
        args = (responses[index] for index in call.inputs)
        kwargs = {name: responses[index] for name, index in call.by_name.items()}
        responses.append(handles[call.target].remote(call.tag, *args, **kwargs))
    return responses


class Workers:
    """The four deployments that programs call, run once and left running for all examples of a test."""

    def __enter__(self) -> list[DeploymentHandle[Any]]:
        running = serve.status().applications
        return [
            serve.get_app_handle(f"workers{index}")
            if f"workers{index}" in running
            else serve.run(serve.deployment(target, **options).bind(), name=f"workers{index}")
            for index, (target, options) in enumerate(self.DEPLOYMENTS)
        ]

    def __exit__(self, *_: object) -> None:
        """They run on until the end of the test."""

    DEPLOYMENTS: tuple[tuple[Any, dict[str, Any]], ...] = (
        (Sync, {"max_ongoing_requests": 1}),
        (Sync, {"num_replicas": 3, "max_ongoing_requests": 2}),
        (Async, {"max_ongoing_requests": 1}),
        (Async, {"num_replicas": 2}),
    )


@given(calls=programs())
def test_a_program_of_chained_calls_gives_what_the_functions_give(calls: list[Call]) -> None:
    with Workers() as handles:
        responses = concurrently(handles, calls)

        assert [response.result(timeout_s=WAIT_S) for response in responses] == by_hand(calls)


@given(calls=programs(may_fail=True))
def test_a_program_that_fails_in_places_fails_where_the_functions_fail(calls: list[Call]) -> None:
    with Workers() as handles:
        outcomes = futures.gather(*concurrently(handles, calls), return_exceptions=True).result(
            timeout_s=WAIT_S
        )

    for outcome, expected in zip(outcomes, by_hand(calls), strict=True):
        if isinstance(expected, set):
            assert isinstance(outcome, Failure)
            assert outcome.args[0] in expected
        else:
            assert outcome == expected


# ---- deployments that call their children


class Caller:
    """Calls its children one after the other, all at once, or hands each one's response to the next."""

    def __init__(self, tag: int, way: str, children: list[DeploymentHandle[Any]]) -> None:
        self.tag = tag
        self.way = way
        self.children = children

    def __call__(self, value: Any) -> Any:
        if self.way == "one by one":
            return combine(self.tag, value, *[child.remote(value).result() for child in self.children])
        return combine(self.tag, value, *futures.gather(*self.calls(value)).result())

    def calls(self, value: Any) -> list[Any]:
        if self.way == "at once":
            return [child.remote(value) for child in self.children]
        responses, handed_on = [], value
        for child in self.children:
            handed_on = child.remote(handed_on)
            responses.append(handed_on)
        return responses


class AsyncCaller(Caller):
    async def __call__(self, value: Any) -> Any:
        if self.way == "one by one":
            return combine(self.tag, value, *[await child.remote(value) for child in self.children])
        return combine(self.tag, value, *await asyncio.gather(*self.calls(value)))


@dataclass(frozen=True)
class Node:
    children: tuple[int, ...]
    way: str
    is_async: bool
    replicas: int


NODES = st.builds(
    Node,
    children=st.just(()),
    way=st.sampled_from(["one by one", "at once", "handed on"]),
    is_async=st.booleans(),
    replicas=st.integers(1, 2),
)


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    """Nodes, children before their parents; the last is the ingress, and children may be shared or repeated."""
    nodes: list[Node] = []
    for index in range(draw(st.integers(1, 6))):
        node = draw(NODES)
        children = draw(st.lists(st.integers(0, index - 1), max_size=3)) if index else []
        nodes.append(Node(tuple(children), node.way, node.is_async, node.replicas))
    return nodes


def bound(nodes: list[Node]) -> Application[Any]:
    applications: list[Application[Any]] = []
    for tag, node in enumerate(nodes):
        deployment = serve.deployment(
            AsyncCaller if node.is_async else Caller,
            num_replicas=node.replicas,
            max_ongoing_requests=1000,  # enough for all calls of a parent at once, so that none waits for itself
        )
        children: Any = [applications[child] for child in node.children]
        applications.append(deployment.bind(tag, node.way, children))
    return applications[-1]


def value_of(nodes: list[Node], tag: int, value: Any) -> Any:
    results, argument = [], value
    for child in nodes[tag].children:
        results.append(value_of(nodes, child, argument))
        argument = results[-1] if nodes[tag].way == "handed on" else value
    return combine(tag, value, *results)


@settings(max_examples=50)
@given(nodes=graphs(), values=st.lists(st.integers(), min_size=1, max_size=5))
def test_a_graph_of_deployments_gives_what_the_functions_give(nodes: list[Node], values: list[int]) -> None:
    with serve.running(bound(nodes)) as handle:
        assert list(futures.map(handle, values)) == [
            value_of(nodes, len(nodes) - 1, value) for value in values
        ]


# ---- streams


class Source:
    def items(self, items: list[Any]) -> Iterator[Any]:
        yield from items

    async def items_async(self, items: list[Any]) -> AsyncIterator[Any]:
        for item in items:
            yield item


class Relay:
    def __init__(self, source: DeploymentHandle[Any]) -> None:
        self.source = source.options(stream=True)

    def items(self, items: list[Any]) -> Iterator[Any]:
        yield from self.source.items.remote(items)

    async def items_async(self, items: list[Any]) -> AsyncIterator[Any]:
        async for item in self.source.items_async.remote(items):
            yield item


def read_async(stream: Any) -> list[Any]:
    async def main() -> list[Any]:
        return [item async for item in stream]

    return asyncio.run(main())


@settings(max_examples=50)
@given(
    items=st.lists(st.none() | st.integers() | st.text(), max_size=40),
    hops=st.integers(0, 3),
    bound=st.integers(1, 5),
    method=st.sampled_from(["items", "items_async"]),
    read=st.sampled_from([list, read_async]),
)
def test_a_stream_gives_its_items_through_any_hops_and_buffers(
    items: list[Any], hops: int, bound: int, method: str, read: Callable[[Any], list[Any]]
) -> None:
    app: Any = serve.deployment(Source, stream_buffer_size=bound).bind()
    for _ in range(hops):
        app = serve.deployment(Relay, stream_buffer_size=bound).bind(app)
    with serve.running(app) as handle:
        stream: Any = getattr(handle.options(stream=True), method).remote(items)

        assert read(stream) == items


# ---- as a user's own property test


@given(number=st.integers())
def test_an_app_in_every_example_passes_the_default_health_checks(number: int) -> None:
    with serve.running(serve.deployment(Sync).bind()) as handle:
        assert handle.remote(1, number).result() == combine(1, number)
