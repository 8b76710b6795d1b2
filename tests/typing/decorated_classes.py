# mypy: ignore-errors
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What pyright knows of decorated classes. Checked, never run.

mypy takes a decorated class for the class itself, whatever its decorator returns; for it, classes are
declared by call, as in ``declaring.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

from threadserve.app.deployment import deployment

if TYPE_CHECKING:
    from threadserve.app.deployment import Application, Deployment
    from threadserve.handle import DeploymentHandle


@deployment
class Bare: ...


@deployment(num_replicas=2)
class Leaf:
    def __init__(self, size: int, *, label: str = "") -> None: ...


class Plain:
    def __call__(self, number: int) -> int:
        return number


@deployment()
class Tree:
    def __init__(self, plain: DeploymentHandle[Plain], size: int = 1) -> None: ...


def decorated_classes_are_deployments() -> None:
    bare: Deployment[[], object] = Bare
    leaf: Application[object] = Leaf.options(num_replicas=3).bind(1, label="x")

    assert_type(bare.num_replicas, int)
    assert_type(leaf.deployment_name, str)


def bind_arguments_are_those_of_the_constructor() -> None:
    Bare.bind(1)  # type: ignore[call-arg]
    Leaf.bind("1")  # type: ignore[arg-type]
    Leaf.bind(1, lable="x")  # type: ignore[call-arg]
    Tree.bind(deployment(Plain).bind(), size=2)
    Tree.bind(Leaf.bind(1))  # type: ignore[arg-type]


def a_decorated_class_is_no_class_any_more() -> None:
    Leaf(1)  # type: ignore[operator]


class Model:
    @deployment
    @staticmethod
    def static(number: int, /) -> int:
        return number


def a_decorated_static_method_is_a_deployment() -> None:
    Model.static.bind()
    Model.static.bind(1)  # type: ignore[call-arg]
