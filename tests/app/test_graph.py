"""Building: which node gets which name and place, what of the arguments is copied, what cannot be built."""

from __future__ import annotations

import logging
import pickle
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threadserve.app.application import binding_of
from threadserve.app.config import DeploymentConfig
from threadserve.app.deployment import Application, Deployment, deployment
from threadserve.app.graph import HandleTo, Plan, PlannedDeployment, build, fill
from threadserve.call import directory
from threadserve.errors import ConfigError, GraphError
from threadserve.handle import DeploymentHandle


class Node:
    def __init__(self, *args: object, **kwargs: object) -> None: ...


def call(number: int) -> int:
    return number


node: Any = deployment(Node)
function: Any = deployment(call)


def named(name: str) -> Any:
    return node.options(name=name)


def leaf(name: str) -> Any:
    return named(name).bind()


def order(plan: Plan) -> list[str]:
    return [planned.name for planned in plan.deployments]


def a_handle() -> DeploymentHandle[Any]:
    return DeploymentHandle(directory.Absent("app", "Node", "nothing runs"))


class TestPlan:
    def test_one_node_is_its_own_ingress(self) -> None:
        plan = build(node.options(num_replicas=2).bind(1, key="x"), "shop")

        assert (plan.app, plan.ingress) == ("shop", "Node")
        assert plan.deployments == (
            PlannedDeployment(
                name="Node",
                target=Node,
                config=DeploymentConfig(num_replicas=2),
                init_args=(1,),
                init_kwargs={"key": "x"},
                children=(),
            ),
        )

    def test_a_function_is_planned_like_a_class(self) -> None:
        plan = build(node.bind(function.bind()), "shop")

        assert plan.deployment("call").target is call
        assert plan.deployment("Node").init_args == (HandleTo("call"),)

    def test_children_come_before_their_parents_in_the_order_of_the_arguments(self) -> None:
        root = named("root").bind(leaf("a"), key=leaf("c"), other=[named("b").bind(leaf("d"))])

        plan = build(root, "shop")

        assert order(plan) == ["a", "c", "d", "b", "root"]
        assert plan.deployment("root").children == ("a", "c", "b")

    def test_a_node_bound_twice_is_one_deployment(self) -> None:
        shared = leaf("shared")
        root = named("root").bind(
            named("left").bind(shared), named("right").bind(shared, shared), again=[shared]
        )

        plan = build(root, "shop")

        assert order(plan) == ["shared", "left", "right", "root"]
        assert plan.deployment("right").init_args == (HandleTo("shared"), HandleTo("shared"))
        assert plan.deployment("right").children == ("shared",)
        assert plan.deployment("root").children == ("left", "right", "shared")

    def test_levels_hold_what_can_start_at_once(self) -> None:
        shared = leaf("shared")
        root = named("root").bind(named("left").bind(shared), named("right").bind(shared), leaf("alone"))

        assert build(root, "shop").levels() == (("shared", "alone"), ("left", "right"), ("root",))

    def test_an_unknown_deployment_is_answered_with_the_nearest(self) -> None:
        plan = build(named("root").bind(leaf("Recommender")), "shop")

        with pytest.raises(
            ConfigError, match=r"app 'shop' has no deployment 'Recomender'; did you mean 'Recommender'"
        ):
            plan.deployment("Recomender")
        with pytest.raises(ConfigError, match="there are: 'Recommender', 'root'"):
            plan.deployment("x")

    def test_building_twice_gives_equal_plans(self) -> None:
        root = node.bind([node.bind()], key={"a": node.bind()})

        assert build(root, "shop") == build(root, "shop")

    def test_a_chain_far_beyond_the_recursion_limit_can_be_built(self) -> None:
        declared = named("link")
        link = declared.bind()
        for _ in range(4999):
            link = declared.bind([link])

        plan = build(link, "shop")

        assert len(plan.deployments) == len(plan.levels()) == 5000
        assert (plan.deployments[1].name, plan.ingress) == ("link_1", "link_4999")

    def test_a_plan_can_be_pickled(self) -> None:
        plan = build(node.bind([node.bind()]), "shop")

        assert pickle.loads(pickle.dumps(plan)) == plan


class TestNames:
    def test_the_second_of_a_name_gets_a_suffix_children_first(self) -> None:
        root = node.bind(node.bind(1), node.bind(2))

        plan = build(root, "shop")

        assert [(each.name, each.init_args) for each in plan.deployments] == [
            ("Node", (1,)),
            ("Node_1", (2,)),
            ("Node_2", (HandleTo("Node"), HandleTo("Node_1"))),
        ]
        assert plan.ingress == "Node_2"

    def test_a_generated_name_that_is_taken_is_skipped(self) -> None:
        root = named("root").bind(leaf("a_1"), leaf("a"), leaf("a"), leaf("a_2"), leaf("a"))

        assert order(build(root, "shop")) == ["a_1", "a", "a_2", "a_2_1", "a_3", "root"]

    def test_names_given_by_the_user_follow_the_same_rule(self) -> None:
        root = named("root").bind(leaf("root"))

        assert order(build(root, "shop")) == ["root", "root_1"]

    def test_renaming_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, logger="threadserve"):
            build(node.bind(node.bind()), "shop")

        assert "several deployments are named 'Node': renamed up to 'Node_1'" in caplog.text

    def test_unique_names_are_not_worth_a_word(self, caplog: pytest.LogCaptureFixture) -> None:
        build(named("root").bind(leaf("a")), "shop")

        assert not caplog.records


class Pair(NamedTuple):
    first: Any
    second: Any


class Tagged(tuple[Any, ...]):  # noqa: SLOT001 - with attributes on purpose
    tag: str = ""


class Row(list[Any]):
    tag: str = ""


class Table(dict[str, Any]):
    tag: str = ""


@dataclass
class Parts:
    first: Any
    rest: list[Any] = field(default_factory=list[Any])
    built: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.built += 1


@dataclass(frozen=True, slots=True)
class Sealed:
    first: Any
    second: Any = None


class Derived(Parts): ...


def built_argument(argument: object) -> Any:
    return build(named("root").bind(argument), "shop").deployments[-1].init_args[0]


class TestContainers:
    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ([1, leaf("a")], [1, HandleTo("a")]),
            ((leaf("a"),), (HandleTo("a"),)),
            ({"k": leaf("a"), 2: 3}, {"k": HandleTo("a"), 2: 3}),
            ([({"k": [leaf("a")]},)], [({"k": [HandleTo("a")]},)]),
            (Pair(1, leaf("a")), Pair(1, HandleTo("a"))),
            (Sealed(leaf("a"), [1]), Sealed(HandleTo("a"), [1])),
            (OrderedDict(k=leaf("a")), OrderedDict(k=HandleTo("a"))),
            (Sealed(Pair([Sealed(leaf("a"))], 0)), Sealed(Pair([Sealed(HandleTo("a"))], 0))),
        ],
    )
    def test_an_application_inside_becomes_a_placeholder(self, argument: Any, expected: Any) -> None:
        result = built_argument(argument)

        assert result == expected
        assert type(result) is type(argument)

    @pytest.mark.parametrize("kind", [Tagged, Row])
    def test_subclasses_of_sequences_keep_class_and_attributes(self, kind: Any) -> None:
        argument = kind([leaf("a")])
        argument.tag = "x"

        result = built_argument(argument)

        assert (type(result), list(result), result.tag) == (kind, [HandleTo("a")], "x")

    def test_subclasses_of_dict_keep_class_attributes_and_default(self) -> None:
        table = Table(k=leaf("a"))
        table.tag = "x"
        counts: Any = defaultdict(int, {"k": leaf("a")})

        assert (type(built_argument(table)), built_argument(table).tag) == (Table, "x")
        assert built_argument(counts)["missing"] == 0

    @pytest.mark.parametrize("kind", [Parts, Derived])
    def test_a_dataclass_is_copied_without_running_its_constructor(self, kind: Any) -> None:
        result = built_argument(kind(leaf("a"), [2]))

        assert (type(result), result.first, result.rest, result.built) == (kind, HandleTo("a"), [2], 1)

    def test_a_field_that_is_not_set_is_left_alone(self) -> None:
        parts = Parts(leaf("a"))
        del parts.rest

        assert not hasattr(built_argument(parts), "rest")

    def test_nothing_of_the_users_is_changed(self) -> None:
        application = leaf("a")
        inner, parts = [application], Parts(application)
        argument = {"inner": inner, "parts": parts}

        built_argument(argument)

        assert argument == {"inner": inner, "parts": parts}
        assert inner[0] is parts.first is application

    def test_what_holds_no_application_keeps_its_identity(self) -> None:
        plain: dict[str, Any] = {"list": [1], "object": object()}
        row = Row([1])

        result = built_argument([plain, row, leaf("a")])

        assert result[0] is plain
        assert result[1] is row

    def test_arguments_without_any_application_are_passed_as_they_are(self) -> None:
        plain = [1, [2]]

        assert built_argument(plain) is plain

    def test_a_container_that_stands_in_two_places_still_does(self) -> None:
        shared = [leaf("a")]
        plan = build(named("root").bind(shared, key=shared), "shop")

        root = plan.deployments[-1]

        assert root.init_args[0] is root.init_kwargs["key"]
        assert root.init_args[0] == [HandleTo("a")]

    def test_the_classes_in_arguments_are_no_containers(self) -> None:
        assert built_argument([Parts, leaf("a")]) == [Parts, HandleTo("a")]

    def test_applications_bound_into_a_list_later_are_found(self) -> None:
        items: list[Any] = []
        root = named("root").bind(items)
        items.append(leaf("late"))

        assert order(build(root, "shop")) == ["late", "root"]

    def test_an_application_deep_in_nested_lists_is_found(self) -> None:
        deep: list[Any] = [leaf("a")]
        for _ in range(5000):
            deep = [deep]

        result = built_argument(deep)
        for _ in range(5000):
            result = result[0]

        assert result == [HandleTo("a")]


class TestCircles:
    def test_a_circle_of_nodes_is_refused_with_its_names(self) -> None:
        items: list[Any] = []
        inner = named("inner").bind(items)
        outer = named("outer").bind(inner)
        items.append(outer)

        with pytest.raises(GraphError, match=r"app 'shop': .*circle: outer -> inner -> outer$"):
            build(outer, "shop")

    def test_only_the_circle_is_named_not_the_way_to_it(self) -> None:
        items: list[Any] = []
        loop = named("loop").bind(items)
        items.append(loop)

        with pytest.raises(GraphError, match=r"circle: loop -> loop$"):
            build(named("root").bind(loop), "shop")

    def test_a_container_that_contains_itself_and_an_application_is_refused(self) -> None:
        endless: list[Any] = [leaf("a")]
        endless.append({"self": endless})

        with pytest.raises(GraphError, match=r"deployment 'root': a list .*contains itself"):
            build(named("root").bind(endless), "shop")

    def test_a_container_that_contains_just_itself_is_the_users_business(self) -> None:
        endless: list[Any] = []
        endless.append(endless)

        assert built_argument(endless) is endless


class TestRefusedTargets:
    @pytest.mark.parametrize(
        ("target", "words"),
        [
            (node, r"the deployment 'Node' itself; bind it: serve\.run\(Node\.bind\("),
            (Node, r"<class .*Node'>; decorate it with @serve\.deployment.*Node\.bind\("),
            (call, r"<function call.*>; decorate it with @serve\.deployment"),
            (a_handle(), "a handle, whose app is running already"),
            ("module:app", "the string 'module:app'; import"),
            (None, r"None; make one with D\.bind"),
            ([leaf("a")], r"make one with D\.bind"),
            (Application, r"the class Application; pass what \.bind"),
            (Deployment, r"the class Deployment; pass what \.bind"),
        ],
    )
    def test_what_is_no_application_is_answered_with_the_way_to_one(self, target: Any, words: str) -> None:
        with pytest.raises(TypeError, match=f"app 'shop': serve.run takes an application, not .*{words}"):
            build(target, "shop")

    def test_two_ingresses_are_refused_by_name(self) -> None:
        class First(Node):
            __threadserve_ingress__ = True

        class Second(Node):
            __threadserve_ingress__ = True

        first: Any = deployment(First)
        second: Any = deployment(Second)

        assert build(first.bind(node.bind()), "shop").ingress == "First"
        with pytest.raises(
            GraphError, match="app 'shop': an app has one ingress at most, not 2: 'Second', 'First'"
        ):
            build(first.bind(second.bind()), "shop")


class TestFill:
    def test_placeholders_become_what_the_function_returns(self) -> None:
        args = build(named("root").bind(leaf("a"), [Pair(leaf("b"), 1)]), "shop").deployments[-1].init_args

        assert fill(args, str.upper) == ("A", [Pair("B", 1)])

    def test_the_plan_can_be_filled_again_for_the_next_replica(self) -> None:
        args = build(named("root").bind([leaf("a")]), "shop").deployments[-1].init_args

        first, second = fill(args, str.upper), fill(args, str.lower)

        assert (first, second) == ((["A"],), (["a"],))
        assert args == ([HandleTo("a")],)

    def test_what_holds_no_placeholder_keeps_its_identity(self) -> None:
        plain = ([1], {"k": Parts(1)})

        assert fill(plain, str.upper) is plain

    def test_what_the_function_returns_is_not_searched(self) -> None:
        filled: list[Any] = fill([HandleTo("a")], lambda name: [HandleTo(name)])

        assert filled == [[HandleTo("a")]]


Point = namedtuple("Point", ["x", "y"])  # noqa: PYI024  # pyright: ignore[reportUntypedNamedTuple]


@dataclass(frozen=True)
class Box:
    content: Any
    label: str = "box"


@dataclass(frozen=True)
class Earlier:
    """Stands for one of the nodes that come before, if there are any."""

    index: int

    def among(self, nodes: list[Any]) -> Any:
        return nodes[self.index % len(nodes)] if nodes else None


def containers(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inside, max_size=3),
        st.lists(inside, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("abc"), inside, max_size=3),
        st.builds(Point, inside, inside),
        st.builds(Box, inside),
    )


earlier_nodes = st.builds(Earlier, st.integers(0, 11))
values = st.recursive(earlier_nodes | st.integers() | st.none(), containers, max_leaves=5)
names = st.sampled_from(["a", "b", "a_1", "a_1_1"])  # that clash, with each other and with generated ones
arguments = st.tuples(
    names, st.lists(values, max_size=3), st.dictionaries(st.sampled_from("pq"), values, max_size=2)
)


def bound(described: list[tuple[str, list[Any], dict[str, Any]]]) -> list[Any]:
    """Return applications, each bound to some of those before it."""
    nodes: list[Any] = []
    for name, args, kwargs in described:
        nodes.append(named(name).bind(*resolved(args, nodes), **resolved(kwargs, nodes)))
    return nodes


def resolved(value: Any, nodes: list[Any]) -> Any:
    match value:
        case Earlier():
            return value.among(nodes)
        case Box(content):
            return Box(resolved(content, nodes))
        case Point(x, y):
            return Point(resolved(x, nodes), resolved(y, nodes))
        case dict():
            return {key: resolved(part, nodes) for key, part in value.items()}
        case list() | tuple():
            return type(value)(resolved(part, nodes) for part in value)
        case _:
            return value


graphs = st.lists(arguments, min_size=1, max_size=10).map(bound)
some_graphs = settings(max_examples=40)


def found(value: Any, kind: type[Any]) -> list[Any]:
    """Find by recursion what the code under test finds without."""
    if isinstance(value, kind):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, Box):
        value = [value.content]
    return [each for part in value for each in found(part, kind)] if isinstance(value, (list, tuple)) else []


class TestRandomGraphs:
    @some_graphs
    @given(graphs)
    def test_names_are_unique_and_children_stand_before_their_parents(self, nodes: list[Any]) -> None:
        plan = build(nodes[-1], "shop")

        names = order(plan)
        assert len(set(names)) == len(names)
        assert names[-1] == plan.ingress
        for index, planned in enumerate(plan.deployments):
            assert set(planned.children) <= set(names[:index])

    @some_graphs
    @given(graphs)
    def test_levels_hold_each_deployment_once_and_after_its_children(self, nodes: list[Any]) -> None:
        plan = build(nodes[-1], "shop")

        levels = plan.levels()
        level_of = {name: index for index, level in enumerate(levels) for name in level}
        assert sorted(name for level in levels for name in level) == sorted(order(plan))
        for planned in plan.deployments:
            assert level_of[planned.name] == max((level_of[each] + 1 for each in planned.children), default=0)

    @some_graphs
    @given(graphs)
    def test_every_application_is_replaced_and_every_child_is_held(self, nodes: list[Any]) -> None:
        plan = build(nodes[-1], "shop")

        for planned in plan.deployments:
            arguments = (planned.init_args, dict(planned.init_kwargs))
            held = [each.deployment for each in found(arguments, HandleTo)]
            assert not found(arguments, Application)
            assert list(dict.fromkeys(held)) == list(planned.children)

    @some_graphs
    @given(graphs)
    def test_filling_with_the_applications_restores_the_arguments(self, nodes: list[Any]) -> None:
        plan = build(nodes[-1], "shop")

        node_of: dict[str, Any] = {plan.ingress: nodes[-1]}
        for planned in reversed(
            plan.deployments
        ):  # parents first, so that each node is known when its turn comes
            binding = binding_of(node_of[planned.name])
            holders = (planned.init_args, dict(planned.init_kwargs))
            held = [each.deployment for each in found(holders, HandleTo)]
            node_of.update(zip(held, found((binding.args, binding.kwargs), Application), strict=True))

            assert fill(holders, node_of.__getitem__) == (binding.args, binding.kwargs)
        assert len(set(map(id, node_of.values()))) == len(plan.deployments)

    @some_graphs
    @given(graphs)
    def test_building_leaves_the_arguments_as_they_were(self, nodes: list[Any]) -> None:
        before = [
            repr((each.__threadserve_binding__.args, each.__threadserve_binding__.kwargs)) for each in nodes
        ]

        build(nodes[-1], "shop")

        after = [
            repr((each.__threadserve_binding__.args, each.__threadserve_binding__.kwargs)) for each in nodes
        ]
        assert after == before
