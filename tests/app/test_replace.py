"""``app.replace``: the same graph with another deployment in one place."""

from __future__ import annotations

from typing import Any

import pytest

import threadserve as serve
from threadserve.app.application import binding_of
from threadserve.app.graph import build


class Part:
    def __init__(self, *parts: Any, **named: Any) -> None: ...


def part(name: str, **options: Any) -> Any:
    return serve.deployment(Part).options(name=name, **options)


def shape(app: Any) -> dict[str, tuple[str, ...]]:
    return {planned.name: planned.children for planned in build(app, "app").deployments}


def test_the_double_takes_the_place_and_the_name_and_keeps_its_own_options() -> None:
    app = part("shop").bind(part("stock", num_replicas=3).bind())

    changed = app.replace("stock", part("double", num_replicas=2).bind("argument"))

    planned = build(changed, "app").deployment("stock")
    assert planned.config.num_replicas == 2
    assert planned.init_args == ("argument",)
    assert shape(changed) == {"stock": (), "shop": ("stock",)}


def test_the_app_itself_stays_as_it_is() -> None:
    stock = part("stock").bind()
    app = part("shop").bind({"stock": [stock]})

    changed = app.replace("stock", part("double").bind())

    assert binding_of(app).args == ({"stock": [stock]},)
    assert changed is not app


def test_what_has_no_double_below_it_is_the_same_node_as_before() -> None:
    left, right = part("left").bind(), part("right").bind()
    app = part("top").bind(left, right)

    changed = app.replace("right", part("double").bind())

    assert binding_of(changed).args[0] is left


def test_a_node_that_is_shared_is_still_one_node() -> None:
    shared = part("shared").bind(part("leaf").bind())
    app = part("top").bind(part("a").bind(shared), part("b").bind(shared))

    changed = app.replace("leaf", part("double").bind())

    assert shape(changed) == {
        "leaf": (),
        "shared": ("leaf",),
        "a": ("shared",),
        "b": ("shared",),
        "top": ("a", "b"),
    }


def test_a_deployment_is_known_by_what_it_deploys_and_by_its_name() -> None:
    class Other(Part):
        pass

    app = part("top").bind(part("a").bind(), serve.deployment(Other).options(name="a").bind())

    changed = app.replace(part("a"), part("double").bind("new"))

    kept, new = (binding_of(node) for node in binding_of(changed).args)  # type: ignore[arg-type]
    assert (new.target, kept.args) == (Other, ("new",))


def test_the_root_can_be_replaced_and_a_deployment_is_bound_without_arguments() -> None:
    changed = part("top").bind().replace("top", part("double"))

    assert binding_of(changed).name == "top"


def test_a_graph_ten_thousand_deep_is_no_trouble() -> None:
    app = part("leaf").bind()
    for _ in range(10_000):
        app = part("link").bind(app)

    changed = app.replace("leaf", part("double").bind("new"))

    while (binding := binding_of(changed)).name == "link":
        (changed,) = binding.args
    assert binding.args == ("new",)


def test_a_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    app = part("shop").bind(part("stock").bind())

    with pytest.raises(
        serve.GraphError, match="no deployment 'stuck' to replace; there are: 'stock', 'shop'"
    ):
        app.replace("stuck", part("double"))


def test_a_circle_is_refused() -> None:
    parts: list[Any] = []
    app = part("shop").bind(parts)
    parts.append(app)

    with pytest.raises(serve.GraphError, match="'shop' is bound into its own arguments"):
        app.replace("shop?", part("double"))


@pytest.mark.parametrize("double", [Part, 7, None, lambda: 3])
def test_only_what_can_be_deployed_stands_in(double: Any) -> None:
    with pytest.raises(TypeError, match="only an application or a deployment can stand in"):
        part("shop").bind().replace("shop", double)


def test_an_application_is_not_what_is_replaced() -> None:
    app = part("shop").bind()

    with pytest.raises(TypeError, match="replace takes a deployment or its name"):
        app.replace(app, app)
