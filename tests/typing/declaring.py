# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What mypy and pyright both know of declared and bound deployments. Checked, never run.

mypy ignores what a class decorator returns: classes are declared by call here, else ``decorated_classes.py``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Generic, Self, TypeVar, assert_type

from threadserve.app.config import AutoscalingConfig, DeploymentConfig
from threadserve.app.deployment import Application, Deployment, deployment

if TYPE_CHECKING:
    from threadserve.handle import DeploymentHandle

Item = TypeVar("Item")


class Leaf:
    def __init__(self, size: int, *, label: str = "") -> None: ...

    def __call__(self, number: int) -> int:
        return number


class Special(Leaf): ...


class Other: ...


class Tree:
    def __init__(self, left: DeploymentHandle[Leaf], right: DeploymentHandle[Leaf] | None = None) -> None: ...


class Forest:
    def __init__(
        self, trees: list[DeploymentHandle[Tree]], by_name: dict[str, DeploymentHandle[Leaf]]
    ) -> None: ...


class Keeper(Generic[Item]):
    def __init__(self, item: Item) -> None: ...


class Made:
    def __new__(cls, size: int) -> Self:
        return object.__new__(cls)


def double(number: int, /) -> int:
    return 2 * number


async def items(number: int, /) -> AsyncIterator[int]:
    yield number


LeafD = deployment(Leaf)
SpecialD = deployment(Special, num_replicas=2)
OtherD = deployment(name="other", max_ongoing_requests=3)(Other)
TreeD = deployment(Tree)
ForestD = deployment(Forest)


def a_bound_class_is_an_application_of_its_instances() -> None:
    assert_type(LeafD.bind(1), Application[Leaf])
    assert_type(LeafD.bind(size=1, label="x"), Application[Leaf])
    assert_type(SpecialD.bind(1), Application[Special])
    assert_type(OtherD.bind(), Application[Other])
    assert_type(deployment(Keeper[str]).bind("x"), Application[Keeper[str]])
    assert_type(deployment(Made).bind(1), Application[Made])


def a_bound_function_is_an_application_of_that_function() -> None:
    assert_type(deployment(double), Deployment[[], Callable[[int], int]])
    assert_type(deployment(double).bind(), Application[Callable[[int], int]])
    assert_type(deployment(num_replicas=2)(items).bind(), Application[Callable[[int], AsyncIterator[int]]])


@deployment
def decorated(number: int, /) -> int:
    return number


@deployment(num_replicas="auto", autoscaling_config={"max_replicas": 3})
def decorated_with_options(number: int, /) -> int:
    return number


def decorated_functions_are_deployments() -> None:
    assert_type(decorated, Deployment[[], Callable[[int], int]])
    assert_type(decorated_with_options.bind(), Application[Callable[[int], int]])


def bind_arguments_are_those_of_the_constructor() -> None:
    LeafD.bind("1")  # type: ignore[arg-type]
    LeafD.bind(1, "x")  # type: ignore[call-arg]
    LeafD.bind(1, lable="x")  # type: ignore[call-arg]
    LeafD.bind()  # type: ignore[call-arg]
    OtherD.bind(1)  # type: ignore[call-arg]
    decorated.bind(1)  # type: ignore[call-arg]


def an_application_stands_for_a_handle() -> None:
    leaf = LeafD.bind(1)
    handle: DeploymentHandle[Leaf] = leaf
    tree = TreeD.bind(leaf, right=SpecialD.bind(2))

    assert_type(tree, Application[Tree])
    assert_type(ForestD.bind([tree], {"a": handle}), Application[Forest])
    assert_type(ForestD.bind(by_name={"a": leaf}, trees=[tree, tree]), Application[Forest])


def an_application_of_something_else_does_not() -> None:
    TreeD.bind(OtherD.bind())  # type: ignore[arg-type]
    TreeD.bind(LeafD)  # type: ignore[arg-type]
    TreeD.bind(Leaf(1))  # type: ignore[arg-type]
    TreeD.bind(deployment(double).bind())  # type: ignore[arg-type]


def options_keep_the_types_or_exchange_them() -> None:
    assert_type(LeafD.options(num_replicas=3, name="x").bind(1), Application[Leaf])
    assert_type(LeafD.options(Other).bind(), Application[Other])
    assert_type(LeafD.options(double).bind(), Application[Callable[[int], int]])
    assert_type(LeafD.options(autoscaling_config=AutoscalingConfig(max_replicas=3)).config, DeploymentConfig)
    LeafD.options(Other).bind(1)  # type: ignore[call-arg]


def wrong_options_are_known_by_name_and_type() -> None:
    deployment(Leaf, num_replica=3)  # type: ignore[call-overload]
    deployment(Leaf, num_replicas="many")  # type: ignore[call-overload]
    deployment(max_ongoing_requests=None)  # type: ignore[call-overload]
    LeafD.options(name=5)  # type: ignore[call-overload]


def what_cannot_be_deployed_is_known() -> None:
    deployment(5)  # type: ignore[call-overload]
    deployment("Leaf")  # type: ignore[call-overload]


def a_deployment_is_not_called() -> None:
    LeafD(1)  # type: ignore[operator]
    LeafD.remote(1)  # type: ignore[attr-defined]
