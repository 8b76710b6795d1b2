"""Declaring: the forms of the decorator, its options, binding, and the answers to first mistakes."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import wrapt

from threadserve.app.application import binding_of
from threadserve.app.config import DeploymentConfig, LoggingConfig
from threadserve.app.deployment import Application, Deployment, deployment
from threadserve.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


class Adder:
    """Adds."""

    shared = 1

    def __init__(self, increment: int, *, label: str = "sum") -> None:
        self.increment = increment
        self.label = label

    def __call__(self, number: int) -> int:
        return number + self.increment


def double(number: int) -> int:
    """Doubles."""
    return 2 * number


# Deployments whose types the checkers would refuse, because the tests do what is wrong on purpose.
adder: Any = deployment(Adder)
doubler: Any = deployment(double)


class TestForms:
    def test_a_bare_decorator_declares(self) -> None:
        @deployment
        class Model: ...

        declared: Any = Model
        assert isinstance(declared, Deployment)
        assert (declared.name, declared.config) == ("Model", DeploymentConfig())

    def test_a_decorator_with_options_declares(self) -> None:
        @deployment(num_replicas=3, name="Other")
        class Model: ...

        declared: Any = Model
        assert isinstance(declared, Deployment)
        assert (declared.name, declared.num_replicas) == ("Other", 3)

    def test_an_empty_pair_of_parentheses_changes_nothing(self) -> None:
        assert deployment()(Adder) == deployment(Adder)

    def test_a_plain_call_declares_and_takes_options(self) -> None:
        declared = deployment(Adder, max_ongoing_requests=9)

        assert (declared.func_or_class, declared.max_ongoing_requests) == (Adder, 9)

    def test_a_function_is_declared_like_a_class(self) -> None:
        declared = deployment(double)

        assert (declared.name, declared.func_or_class) == ("double", double)

    def test_a_lambda_is_accepted(self) -> None:
        assert deployment(lambda: 1).name == "<lambda>"

    @pytest.mark.parametrize("target", [len, "abc".upper, Adder(1).__call__, dict])
    def test_builtins_and_bound_methods_are_accepted(self, target: Any) -> None:
        assert deployment(target).name == target.__name__

    def test_one_decorator_declares_several(self) -> None:
        declare = deployment(num_replicas=2)

        assert (declare(Adder).name, declare(double).name) == ("Adder", "double")
        assert declare(Adder).num_replicas == declare(double).num_replicas == 2


class Caller:
    def __call__(self) -> None: ...


class TestRefusedTargets:
    @pytest.mark.parametrize("target", [5, "Adder", None, [Adder], Adder(1).increment])
    def test_what_cannot_be_called_is_refused(self, target: Any) -> None:
        for declare in (deployment, deployment(num_replicas=2)):
            with pytest.raises(TypeError, match=r"takes a class or a function, not .*not callable"):
                declare(target)

    def test_an_instance_is_refused_with_the_advice_to_deploy_its_class(self) -> None:
        with pytest.raises(TypeError, match="deploy the class Caller"):
            deployment(Caller())

    def test_a_partial_is_refused_with_advice(self) -> None:
        with pytest.raises(TypeError, match=r"functools.partial.*write a def"):
            deployment(functools.partial(double, 1))

    def test_a_deployment_is_not_declared_twice(self) -> None:
        with pytest.raises(TypeError, match="declared already: <Deployment 'Adder'"):
            deployment(adder)

    def test_an_application_is_not_declared(self) -> None:
        with pytest.raises(TypeError, match="declared already: <Application of deployment 'Adder'"):
            deployment(adder.bind(1))

    def test_a_function_that_hides_a_class_is_refused(self) -> None:
        @functools.wraps(Adder)
        def only_one(*args: Any, **kwargs: Any) -> Adder:
            return Adder(*args, **kwargs)

        with pytest.raises(TypeError, match="hides the class Adder"):
            deployment(only_one)


class TestNames:
    def test_the_name_must_be_a_string(self) -> None:
        options: dict[str, Any] = {"name": 5}

        with pytest.raises(TypeError, match="name must be a string, not 5"):
            deployment(Adder, **options)

    @pytest.mark.parametrize("name", ["a#b", "#", ""])
    def test_a_name_is_not_empty_and_has_no_hash(self, name: str) -> None:
        with pytest.raises(ConfigError, match="name must be a string without '#'"):
            deployment(Adder, name=name)

    def test_a_target_without_a_name_needs_one(self) -> None:
        class Nameless:
            __wrapped__ = double

            def __call__(self) -> None: ...

        with pytest.raises(TypeError, match=r"has no __name__; give it one with .*name="):
            deployment(Nameless())

        assert deployment(Nameless(), name="named").name == "named"


class TestOptions:
    def test_a_refused_value_names_the_deployment(self) -> None:
        with pytest.raises(ConfigError) as caught:
            deployment(Adder, max_ongoing_requests=0)

        assert str(caught.value) == (
            "deployment 'Adder': max_ongoing_requests must be an int of at least 1, not 0"
        )

    def test_an_unknown_option_is_a_type_error_naming_the_nearest(self) -> None:
        options: dict[str, Any] = {"num_replica": 3}

        for declare in (lambda: deployment(Adder, **options), lambda: adder.options(**options)):
            with pytest.raises(
                TypeError, match=r"^deployment 'Adder': .*'num_replica'; did you mean 'num_replicas'"
            ):
                declare()

    def test_version_is_refused(self) -> None:
        options: dict[str, Any] = {"version": "1"}

        for declare in (lambda: deployment(Adder, **options), lambda: adder.options(**options)):
            with pytest.raises(ConfigError, match="version"):
                declare()

    def test_options_returns_a_changed_copy(self) -> None:
        before = deployment(Adder, num_replicas=2, user_config={"a": 1})

        after = before.options(num_replicas=3)

        assert (after.num_replicas, after.user_config, after.name) == (3, {"a": 1}, "Adder")
        assert (before.num_replicas, before.user_config) == (2, {"a": 1})

    def test_options_may_rename(self) -> None:
        assert adder.options(name="Plus").name == "Plus"
        assert adder.name == "Adder"

    def test_options_may_exchange_what_is_deployed(self) -> None:
        declared: Any = adder.options(double, num_replicas=2)

        assert (declared.name, declared.func_or_class, declared.num_replicas) == ("Adder", double, 2)

    def test_options_refuses_to_deploy_what_deployment_refuses(self) -> None:
        with pytest.raises(TypeError, match="takes a class or a function"):
            adder.options(5)

    def test_the_logging_config_can_be_set_afterwards(self) -> None:
        declared = deployment(Adder)

        declared.set_logging_config({"log_level": "debug"})

        assert declared.logging_config == LoggingConfig(log_level="DEBUG")


class TestADeployment:
    def test_it_has_the_attributes_that_ray_serves_has(self) -> None:
        declared = deployment(Adder, max_queued_requests=4, ray_actor_options={"num_cpus": 1})

        assert (declared.name, declared.version, declared.func_or_class) == ("Adder", None, Adder)
        assert (declared.num_replicas, declared.max_ongoing_requests, declared.max_queued_requests) == (
            1,
            5,
            4,
        )
        assert (declared.user_config, declared.logging_config) == (None, None)
        assert declared.backpressure_config.status_code == 503
        assert declared.ray_actor_options == {"num_cpus": 1}
        assert (declared.init_args, declared.init_kwargs) == ((), {})

    def test_it_equals_one_of_equal_name_and_options(self) -> None:
        declared = deployment(Adder, num_replicas=2)

        assert declared == declared.options() == deployment(Adder, num_replicas=2)
        assert len({declared, declared.options()}) == 1

    @pytest.mark.parametrize("other", [adder.options(name="B"), adder.options(num_replicas=2), Adder, None])
    def test_it_differs_from_everything_else(self, other: object) -> None:
        assert adder != other

    def test_it_tells_what_it_is(self) -> None:
        assert repr(deployment(Adder, num_replicas=3)) == (
            "<Deployment 'Adder' of a class, 3 replicas; .bind(...) makes an application of it>"
        )
        assert repr(doubler) == (
            "<Deployment 'double' of a function, 1 replica; .bind(...) makes an application of it>"
        )

    def test_it_carries_name_docstring_and_signature(self) -> None:
        assert (adder.__name__, adder.__qualname__, adder.__doc__) == ("Adder", "Adder", "Adds.")
        assert adder.__module__ == Adder.__module__
        assert inspect.signature(adder) == inspect.signature(Adder)

    def test_calling_it_names_bind_and_func_or_class(self) -> None:
        with pytest.raises(RuntimeError, match=r"'Adder' .*Adder\.bind\(.*Adder\.func_or_class\("):
            adder(5)

    def test_constructing_one_is_refused(self) -> None:
        constructor: Any = Deployment

        with pytest.raises(RuntimeError, match=r"@serve\.deployment"):
            constructor("name")

    @pytest.mark.parametrize("name", ["remote", "increment"])
    def test_a_method_of_it_is_answered_with_the_way_to_one(self, name: str) -> None:
        with pytest.raises(
            AttributeError, match=rf"'Adder' has no attribute '{name}': serve\.run\(Adder\.bind"
        ):
            getattr(adder, name)

    def test_a_private_name_is_a_plain_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="'Deployment' object has no attribute '_x'"):
            _ = adder._x

    def test_inheriting_from_it_names_the_class_to_inherit_from(self) -> None:
        with pytest.raises(TypeError, match=r"inherit from Adder\.func_or_class"):

            class Better(adder): ...  # type: ignore[misc]

    def test_it_can_be_copied(self) -> None:
        assert copy.copy(adder) == adder
        assert copy.copy(adder).func_or_class is Adder

    def test_it_survives_pickling(self) -> None:
        assert pickle.loads(pickle.dumps(doubler)) == doubler


class TestBinding:
    def test_each_bind_is_a_new_application(self) -> None:
        first, second = adder.bind(1), adder.bind(1)

        assert isinstance(first, Application)
        assert first != second
        assert first == first  # noqa: PLR0124
        assert len({first, second}) == 2

    def test_it_keeps_what_was_bound(self) -> None:
        binding = binding_of(adder.options(num_replicas=2).bind(1, label="x"))

        assert (binding.name, binding.target, binding.config.num_replicas) == ("Adder", Adder, 2)
        assert (binding.args, binding.kwargs) == ((1,), {"label": "x"})

    @pytest.mark.parametrize(
        ("args", "kwargs", "problem"),
        [
            ((), {}, "missing a required argument: 'increment'"),
            ((1, 2), {}, "too many positional arguments"),
            ((1,), {"lable": "x"}, "got an unexpected keyword argument 'lable'"),
            ((1,), {"increment": 2}, "multiple values for argument 'increment'"),
        ],
    )
    def test_arguments_that_do_not_fit_are_refused(self, args: Any, kwargs: Any, problem: str) -> None:
        with pytest.raises(TypeError) as caught:
            adder.bind(*args, **kwargs)

        assert str(caught.value) == (
            f"deployment 'Adder': {problem}; the constructor is Adder(increment, *, label='sum')"
        )

    def test_a_class_without_a_constructor_takes_no_arguments(self) -> None:
        bare: Any = deployment(Caller)

        with pytest.raises(TypeError, match=r"too many positional arguments; the constructor is Caller\(\)"):
            bare.bind(1)

    def test_a_function_takes_no_arguments(self) -> None:
        with pytest.raises(ConfigError, match=r"'double': it deploys a function.*not \(1, number=2\)"):
            doubler.bind(1, number=2)

        assert isinstance(doubler.bind(), Application)

    def test_an_async_constructor_is_checked_like_another(self) -> None:
        class Slow:
            async def __init__(self, size: int) -> None:  # type: ignore[misc]
                await asyncio.sleep(size)

        declared: Any = deployment(Slow)

        assert isinstance(declared.bind(1), Application)
        with pytest.raises(TypeError, match="missing a required argument: 'size'"):
            declared.bind()

    def test_what_has_no_signature_takes_anything(self) -> None:
        declared: Any = deployment(dict)

        assert isinstance(declared.bind([(1, 2)], a=3), Application)

    def test_options_with_another_class_check_against_that(self) -> None:
        with pytest.raises(TypeError, match="too many"):
            adder.options(Caller).bind(1)


@dataclass
class Parts:
    first: object
    rest: object = None


class TestMisplacedArguments:
    @pytest.mark.parametrize(
        "wrap",
        [lambda d: d, lambda d: [d], lambda d: ({"a": d},), lambda d: Parts([d]), lambda d: OrderedDict(x=d)],
    )
    def test_a_deployment_that_is_not_bound_is_refused_wherever_it_is(
        self, wrap: Callable[[Any], Any]
    ) -> None:
        with pytest.raises(
            ConfigError, match=r"deployment 'Adder': .*deployment 'double' itself.*double\.bind\("
        ):
            adder.bind(wrap(doubler))

    @pytest.mark.parametrize("kind", [Application, Deployment])
    def test_the_classes_themselves_are_refused(self, kind: type[object]) -> None:
        with pytest.raises(ConfigError, match=f"the class {kind.__name__}"):
            adder.bind(1, label=[kind])

    @pytest.mark.parametrize("wrap", [lambda a: {a}, lambda a: [frozenset([a])], lambda a: {a: 1}])
    def test_an_application_in_a_set_or_as_a_key_is_refused(self, wrap: Callable[[Any], Any]) -> None:
        with pytest.raises(ConfigError, match="in a set, or as the key of a dict"):
            adder.bind(wrap(doubler.bind()))

    def test_a_list_that_contains_itself_can_be_bound(self) -> None:
        endless: list[Any] = []
        endless.append(endless)

        assert binding_of(adder.bind(endless)).args[0] is endless

    def test_a_list_nested_beyond_the_recursion_limit_can_be_bound(self) -> None:
        deep: list[Any] = []
        for _ in range(5000):
            deep = [deep]

        assert binding_of(adder.bind(deep)).args[0] is deep


class TestAnApplication:
    def test_it_tells_what_it_is_and_what_to_do(self) -> None:
        assert repr(adder.bind(1)) == (
            "<Application of deployment 'Adder', not running: pass it to serve.run>"
        )

    @pytest.mark.parametrize("name", ["remote", "options", "increment", "name"])
    def test_it_is_no_handle_yet(self, name: str) -> None:
        with pytest.raises(AttributeError, match=rf"'Adder' is not running.*'{name}'.*serve\.run"):
            getattr(adder.bind(1), name)

    def test_it_cannot_be_called(self) -> None:
        with pytest.raises(TypeError, match=r"'Adder' is not running.*serve\.run"):
            adder.bind(1)(5)

    @pytest.mark.parametrize("name", ["__array__", "_repr_html_", "__await__"])
    def test_special_names_are_plain_attribute_errors(self, name: str) -> None:
        with pytest.raises(AttributeError, match="'Application' object has no attribute"):
            getattr(adder.bind(1), name)

    def test_it_takes_no_attributes(self) -> None:
        with pytest.raises(AttributeError):
            adder.bind(1).note = "x"

    def test_it_is_made_by_bind_alone(self) -> None:
        constructor: Any = Application

        with pytest.raises(TypeError, match=r"D\.bind"):
            constructor(3)

    def test_it_can_stand_in_annotations_and_be_copied(self) -> None:
        application = adder.bind(1)

        assert Application[Adder] is not None
        assert binding_of(copy.copy(application)) is binding_of(application)


@wrapt.decorator
def passing(wrapped: Any, _: Any, args: Any, kwargs: Any) -> Any:
    return wrapped(*args, **kwargs)


def plainly(target: Any) -> Any:
    @functools.wraps(target)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)

    return inner


class Counting:
    """A decorator written as a class, as many are."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def subclassed(cls: Any) -> Any:
    @functools.wraps(cls, updated=())
    class Subclass(cls):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    return Subclass


class Holder:
    """Has one method of each kind."""

    @staticmethod
    def static(number: int) -> int:
        """Doubles."""
        return 2 * number

    @classmethod
    def of_class(cls, number: int) -> int:
        """Doubles."""
        return 2 * number

    def method(self, number: int) -> int:
        """Doubles."""
        return 2 * number

    @plainly
    @staticmethod
    def wrapped_static(number: int) -> int:
        """Doubles."""
        return 2 * number


FUNCTIONS: dict[str, Any] = {
    "plain": double,
    "functools.wraps": plainly(double),
    "functools.wraps twice": plainly(plainly(double)),
    "wrapt decorator": passing(double),
    "wrapt decorator twice": passing(passing(double)),
    "wrapt over functools": passing(plainly(double)),
    "wrapt proxy": wrapt.ObjectProxy(double),
    "wrapt callable proxy": wrapt.CallableObjectProxy(double),
    "cache": functools.cache(double),
    "decorator class": Counting(double),
    "staticmethod object": staticmethod(double),
    "wrapt over staticmethod": passing(staticmethod(double)),
    "static method": Holder.static,
    "class method": Holder.of_class,
    "bound method": Holder().method,
    "wrapped static method": Holder.wrapped_static,
    "singledispatch": functools.singledispatch(double),
}

CLASSES: dict[str, Any] = {
    "plain": Adder,
    "functools.wraps": subclassed(Adder),
    "functools.wraps twice": subclassed(subclassed(Adder)),
    "wrapt decorator": passing(Adder),
    "wrapt decorator twice": passing(passing(Adder)),
    "wrapt proxy": wrapt.ObjectProxy(Adder),
    "wrapt callable proxy": wrapt.CallableObjectProxy(Adder),
}


def parametrized(zoo: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("target", zoo.values(), ids=list(zoo))


class TestDecoratedByOthers:
    @parametrized(FUNCTIONS)
    def test_a_function_keeps_name_docstring_and_signature(self, target: Any) -> None:
        declared: Any = deployment(target)

        assert (
            declared.name == declared.__name__ in {"double", "static", "of_class", "method", "wrapped_static"}
        )
        assert declared.__doc__ == "Doubles."
        assert list(inspect.signature(declared).parameters) == ["number"]

    @parametrized(FUNCTIONS)
    def test_a_function_stays_one_and_still_works(self, target: Any) -> None:
        declared: Any = deployment(target)

        with pytest.raises(ConfigError, match="deploys a function"):
            declared.bind(1)
        assert declared.func_or_class(4) == 8
        assert "of a function" in repr(declared)

    @parametrized(CLASSES)
    def test_a_class_keeps_name_docstring_and_signature(self, target: Any) -> None:
        declared: Any = deployment(target)

        assert declared.name == declared.__name__ == "Adder"
        assert declared.__doc__ == "Adds."
        assert list(inspect.signature(declared).parameters) == ["increment", "label"]

    @parametrized(CLASSES)
    def test_a_class_stays_one_and_still_works(self, target: Any) -> None:
        declared: Any = deployment(target)

        binding = binding_of(declared.bind(1))

        assert binding.target(*binding.args)(4) == 5
        assert "of a class" in repr(declared)

    @parametrized({name: CLASSES[name] for name in CLASSES if not name.startswith("functools")})
    def test_wrong_arguments_are_found_through_proxies(self, target: Any) -> None:
        declared: Any = deployment(target)

        with pytest.raises(
            TypeError, match=r"missing a required argument: 'increment'.*Adder\(increment, \*, label="
        ):
            declared.bind()

    def test_a_wrapper_that_supplies_an_argument_is_not_refused(self) -> None:
        def with_database(constructor: Any) -> Any:
            @functools.wraps(constructor)
            def inner(self: Any, *args: Any, **kwargs: Any) -> None:
                constructor(self, "database", *args, **kwargs)

            return inner

        class Store:
            @with_database
            def __init__(self, database: str, table: str) -> None:
                self.names = (database, table)

        declared: Any = deployment(Store)
        binding = binding_of(declared.bind("users"))

        assert binding.target(*binding.args).names == ("database", "users")

    def test_a_decorated_constructor_keeps_its_check_under_wrapt(self) -> None:
        class Store:
            @passing  # type: ignore[misc]
            def __init__(self, table: str) -> None: ...

        declared: Any = deployment(Store)

        with pytest.raises(
            TypeError, match=r"too many positional arguments; the constructor is Store\(table\)"
        ):
            declared.bind(1, 2)

    def test_static_and_class_methods_deploy_in_the_body_of_their_class(self) -> None:
        class Models:
            factor = 3

            @deployment
            @staticmethod
            def static(number: int) -> int:
                return 2 * number

            @deployment(num_replicas=2)
            @classmethod
            def of_class(cls, number: int) -> int:
                return cls.factor * number

        static: Any = Models.static
        of_class: Any = Models.of_class

        assert binding_of(static.bind()).target(4) == 8
        assert binding_of(of_class.bind()).target(4) == 12
        assert (of_class.name, of_class.num_replicas) == ("of_class", 2)

    def test_a_class_method_without_its_class_is_refused_when_bound(self) -> None:
        target: Any = classmethod(lambda cls: cls)
        declared: Any = deployment(target, name="lost")

        with pytest.raises(TypeError, match="'lost': a classmethod object does not know its class"):
            declared.bind()

    def test_a_circle_of_wrappers_does_not_hang(self) -> None:
        target = plainly(double)
        target.__wrapped__ = target

        assert deployment(target).name == "double"
