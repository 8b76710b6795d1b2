"""Declares deployments: the decorator, what it returns, and what binding arguments to that gives."""

from __future__ import annotations

import functools
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeGuard,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from threadserve.app.application import Application, Binding, is_application
from threadserve.app.callables import (
    deployable,
    is_class,
    is_unbound_classmethod,
    name_of,
    refuse_out_of_reach,
    refuse_wrong_arguments,
    shown_signature,
)
from threadserve.app.config import UNSET, DeploymentConfig, DeploymentOptions
from threadserve.app.containers import contents
from threadserve.app.rules import inside, shown
from threadserve.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from threadserve.app.config import BackpressureConfig, LoggingConfig

__all__ = ["Application", "Decorator", "Deployment", "deployment", "is_deployment"]

P = ParamSpec("P")
P2 = ParamSpec("P2")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class FunctionLike(Protocol):
    """What every function and method written in Python has, and no class."""

    # pyright takes every Callable for one that has it, and says that the overloads for classes are never
    # used. It uses them all the same, because a class itself has none.
    @property
    def __code__(self) -> Any: ...


F = TypeVar("F", bound=FunctionLike)


class Decorator(Protocol):
    """What ``deployment(num_replicas=2, ...)`` returns."""

    @overload
    def __call__(self, func_or_class: F, /) -> Deployment[[], F]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, func_or_class: Callable[P, T], /
    ) -> Deployment[P, T]: ...


@overload
def deployment(func_or_class: F, /, **options: Unpack[DeploymentOptions]) -> Deployment[[], F]: ...
@overload
def deployment(  # pyright: ignore[reportOverlappingOverload]
    func_or_class: Callable[P, T], /, **options: Unpack[DeploymentOptions]
) -> Deployment[P, T]: ...
@overload
def deployment(**options: Unpack[DeploymentOptions]) -> Decorator: ...


def deployment(func_or_class: Any = UNSET, /, **options: Any) -> Any:
    """Declare a class or a function as a deployment.

    Works as a decorator with and without options, and as a plain call: ``deployment(Adder, num_replicas=2)``.
    Nothing runs before ``serve.run``.

    Args:
        func_or_class: What to deploy. Of a class, each replica makes one instance.
        options: ``name`` (by default that of the class or function) and the fields of ``DeploymentConfig``.

    Raises:
        TypeError: This is no class or function, or an option has an unknown name.
        ConfigError: An option has a value that is refused.

    Example:
        >>> @deployment(num_replicas=2)
        ... class Adder:
        ...     def __init__(self, increment: int) -> None:
        ...         self.increment = increment
        >>> Adder.bind(1)
        <Application of deployment 'Adder', not running: pass it to serve.run>
    """

    def decorate(target: object, /) -> Deployment[Any, Any]:
        return declare(target, options)

    return decorate if func_or_class is UNSET else decorate(func_or_class)


class Deployment(Generic[P, T_co]):
    """A class or a function with its options. It is not changed by anything but ``set_logging_config``.

    Made by ``deployment``; ``bind`` makes an application of it. It carries the name, signature and
    docstring of what it deploys.
    """

    _name: str
    _target: Callable[..., Any]
    _config: DeploymentConfig

    def __init__(self, *_: object, **__: object) -> None:
        raise RuntimeError(
            "a Deployment is not constructed: decorate a class or function with @serve.deployment"
        )

    @classmethod
    def of(cls, name: str, target: Callable[..., Any], config: DeploymentConfig) -> Deployment[Any, Any]:
        """Return a new Deployment; what ``deployment`` and ``options`` use instead of the constructor."""
        new = object.__new__(cls)
        new._name = name
        new._config = config
        if config.replica_type == "interpreter":
            with inside(f"deployment {name!r}"):
                refuse_out_of_reach(target)
        new._deploy(target)
        return new

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Application[T_co]:
        """Return an application: a new node, to run or to bind into others.

        Args:
            args: Arguments of the constructor. Applications among them reach it as handles, also those in
                lists, tuples, dict values and dataclasses.
            kwargs: The same by keyword.

        Raises:
            TypeError: The constructor does not accept these arguments.
            ConfigError: This deploys a function, which takes no bind arguments; or an argument was meant to
                be an application and is none.
        """
        with inside(f"deployment {self.name!r}"):
            if is_unbound_classmethod(self._target):
                raise TypeError("a classmethod object does not know its class; deploy Class.method")
            refuse_wrong_arguments(self._target, args, kwargs)
            refuse_unbound((args, kwargs))
        return Application(
            Binding(name=self._name, target=self._target, config=self._config, args=args, kwargs=kwargs)
        )

    @overload
    def options(self, **options: Unpack[DeploymentOptions]) -> Deployment[P, T_co]: ...
    @overload
    def options(self, func_or_class: F, **options: Unpack[DeploymentOptions]) -> Deployment[[], F]: ...
    @overload
    def options(  # pyright: ignore[reportOverlappingOverload]
        self, func_or_class: Callable[P2, T], **options: Unpack[DeploymentOptions]
    ) -> Deployment[P2, T]: ...

    def options(self, func_or_class: Any = UNSET, **options: Any) -> Deployment[Any, Any]:
        """Return a copy in which only what is named differs.

        Args:
            func_or_class: Another class or function to deploy, under the same name.
            options: As of ``deployment``.

        Raises:
            TypeError: An option has an unknown name, or ``func_or_class`` cannot be deployed.
            ConfigError: An option has a value that is refused.
        """
        target = self._target if func_or_class is UNSET else deployable(func_or_class)
        name = checked_name(options.pop("name", self._name))
        return Deployment.of(name, target, configured(name, self._config, options))

    def set_logging_config(self, logging_config: LoggingConfig | Mapping[str, object] | None) -> None:
        """Change the logging of this very deployment.

        Raises:
            ConfigError: A value is refused.
        """
        self._config = configured(self._name, self._config, {"logging_config": logging_config})

    @property
    def name(self) -> str:
        """By default that of the class or function; made unique when an app is built."""
        return self._name

    @property
    def func_or_class(self) -> Callable[..., Any]:
        """What is deployed."""
        return self._target

    @property
    def config(self) -> DeploymentConfig:
        """All options except the name."""
        return self._config

    @property
    def version(self) -> None:
        """Always None, as in Ray Serve."""
        return None

    @property
    def num_replicas(self) -> int:
        """Copies of the class or function."""
        return self._config.num_replicas

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that one replica works on at once."""
        return self._config.max_ongoing_requests

    @property
    def max_queued_requests(self) -> int:
        """Requests that may wait before further ones are refused; -1 means any number."""
        return self._config.max_queued_requests

    @property
    def user_config(self) -> object:
        """What ``reconfigure`` is given."""
        return self._config.user_config

    @property
    def backpressure_config(self) -> BackpressureConfig:
        """What HTTP answers when the queue is full."""
        return self._config.backpressure_config

    @property
    def logging_config(self) -> LoggingConfig | None:
        """How the log is written."""
        return self._config.logging_config

    @property
    def ray_actor_options(self) -> Mapping[str, object]:
        """What each replica reserves."""
        return self._config.ray_actor_options

    @property
    def init_args(self) -> tuple[()]:
        """Always empty: arguments belong to the application that ``bind`` returns."""
        return ()

    @property
    def init_kwargs(self) -> dict[str, object]:
        """Always empty: arguments belong to the application that ``bind`` returns."""
        return {}

    def __eq__(self, other: object) -> bool:
        if not is_deployment(other):
            return NotImplemented
        return self._name == other.name and self._config == other.config

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        kind = "class" if is_class(self._target) else "function"
        count = self._config.initial_replicas
        plural = "replica" if count == 1 else "replicas"
        return (
            f"<Deployment {self.name!r} of a {kind}, {count} {plural}; .bind(...) makes an application of it>"
        )

    def __set_name__(self, owner: type[object], _: str) -> None:
        """Bind a class method that was deployed in the body of its class."""
        if is_unbound_classmethod(self._target):
            self._deploy(self._target.__get__(None, owner))

    def _deploy(self, target: Callable[..., Any]) -> None:
        self._target = target
        functools.update_wrapper(cast("Any", self), target, updated=())
        is_wrapped_class = is_class(target) and hasattr(target, "__wrapped__")
        if is_wrapped_class and (signature := shown_signature(target)):
            self.__signature__ = signature  # inspect would not find it

    if not TYPE_CHECKING:  # checkers say of themselves that none of these exist

        def __call__(self, *_: object, **__: object) -> NoReturn:
            """Refuse to be taken for the class or function."""
            raise RuntimeError(
                f"deployment {self.name!r} is not called: {self.name}.bind(...) makes an application for "
                f"serve.run, {self.name}.func_or_class(...) calls the original"
            )

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):
                raise AttributeError(f"'Deployment' object has no attribute {name!r}", name=name, obj=self)
            raise AttributeError(
                f"deployment {self.name!r} has no attribute {name!r}: serve.run({self.name}.bind(...)) "
                f"returns a handle with the methods, {self.name}.func_or_class is the original",
                name=name,
            )

        def __mro_entries__(self, _: tuple[object, ...]) -> NoReturn:
            raise TypeError(
                f"deployment {self.name!r} cannot be a base class: inherit from {self.name}.func_or_class"
            )


def is_deployment(value: object) -> TypeGuard[Deployment[..., Any]]:
    """Whether it is a deployment."""
    return isinstance(value, Deployment)


def declare(target: object, options: Mapping[str, Any]) -> Deployment[Any, Any]:
    """Return the deployment of ``target``."""
    if is_deployment(target) or is_application(target):
        raise TypeError(
            f"serve.deployment takes a class or a function, not what is declared already: {target!r}"
        )
    func_or_class = deployable(target)
    named = dict(options)
    name = checked_name(named.pop("name", name_of(func_or_class)), func_or_class)
    return Deployment.of(name, func_or_class, configured(name, DeploymentConfig(), named))


def configured(name: str, base: DeploymentConfig, options: Mapping[str, object]) -> DeploymentConfig:
    """Return ``base`` changed by the options; a refusal names the deployment."""
    with inside(f"deployment {name!r}"):
        return base.changed(options)


def checked_name(name: object, target: object = None) -> str:
    """Return the name of a deployment, or refuse it."""
    if name is None and target is not None:
        raise TypeError(f"{shown(target)} has no __name__; give it one with serve.deployment(name=...)")
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {shown(name)}")
    if not name or "#" in name:
        raise ConfigError(f"name must be a string without '#' that is not empty, not {name!r}")
    return name


def refuse_unbound(arguments: object) -> None:
    """Raise ConfigError for an argument that was meant to be an application, but cannot become a handle."""
    for value in contents(arguments):
        if is_deployment(value):
            raise ConfigError(
                f"an argument is the deployment {value.name!r} itself; bind it: {value.name}.bind(...)"
            )
        if value is Application or value is Deployment:
            raise ConfigError(
                f"an argument is the class {value.__name__}; pass what .bind(...) of yours returns"
            )
        if isinstance(value, (set, frozenset, dict)) and any(map(is_application, cast("set[object]", value))):
            raise ConfigError("an application in a set, or as the key of a dict, cannot become a handle")
