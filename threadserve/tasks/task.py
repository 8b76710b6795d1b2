"""Remote functions: each call is a task."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

from threadserve.app.rules import shown
from threadserve.tasks.declaration import Declaration
from threadserve.tasks.options import STREAMING, TaskOptions, changed
from threadserve.tasks.pool import Job
from threadserve.tasks.workforce import current, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from threadserve.call.objectref import ObjectRef, ObjectRefGenerator
    from threadserve.handle import DeploymentHandle
    from threadserve.tasks.workforce import Workforce

__all__ = ["RemoteFunction"]

R_co = TypeVar("R_co", covariant=True)
R2 = TypeVar("R2")


class RemoteFunction(Declaration, Generic[R_co]):
    """A function whose calls are tasks: ``f.remote(1)`` returns an ObjectRef at once.

    Made by ``serve.remote``. Tasks run on threads that they share, at most as many at once as there are slots; a task
    that waits in ``serve.get`` or ``serve.wait`` lends its slot meanwhile, so tasks may wait for tasks of their own.

    Attributes:
        function: What is called.
        options_given: The options that differ from the defaults, by name.
    """

    def __init__(self, function: Callable[..., R_co], **options: Any) -> None:
        reached: Any = inspect.unwrap(function)
        super().__init__(function, options)
        self.function = function
        if not callable(function):
            raise TypeError(f"serve.remote takes a function or a class, not {shown(function)}")
        self._options = changed(f"task {self._name!r}", TaskOptions(), options)
        self._demand = self._options.demand(f"task {self._name}")
        is_generator = inspect.isgeneratorfunction(reached) or inspect.isasyncgenfunction(reached)
        given = self._options.num_returns
        self._num_returns = given if given is not None else STREAMING if is_generator else 1
        self._job = Job(function, self._options, self._demand)
        self._bound: tuple[Workforce, DeploymentHandle[Any]] | None = None

    def __repr__(self) -> str:
        return f"<RemoteFunction {self._name}; call it with .remote(...)>"

    if TYPE_CHECKING:

        @overload
        def remote(
            self: RemoteFunction[Coroutine[Any, Any, R2]], /, *args: Any, **kwargs: Any
        ) -> ObjectRef[R2]: ...
        @overload
        def remote(
            self: RemoteFunction[Iterator[R2]], /, *args: Any, **kwargs: Any
        ) -> ObjectRefGenerator[R2]: ...
        @overload
        def remote(
            self: RemoteFunction[AsyncIterator[R2]], /, *args: Any, **kwargs: Any
        ) -> ObjectRefGenerator[R2]: ...
        @overload
        def remote(self, /, *args: Any, **kwargs: Any) -> ObjectRef[R_co]: ...

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Start a task.

        Refs and responses among the arguments are replaced by their values before it runs, and it holds no thread while
        it waits for them; those inside of containers stay refs. Never blocks, never raises for what the call contains.
        Any thread.

        Returns:
            An ObjectRef; a list of `n` of them with ``num_returns=n`` (None with 0); an ObjectRefGenerator with
            ``num_returns="streaming"``, which is the default of generator functions.
        """
        workforce, handle = self._reach()
        return send(handle, self._job, args, kwargs, num_returns=self._num_returns, store=workforce.store)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a task is started with ``.remote``.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"a remote function is not called itself: write {self._name}.remote(...), or {self._name}.function(...) to run "
            "it here"
        )

    def _reach(self) -> tuple[Workforce, DeploymentHandle[Any]]:
        """Return the workforce of the runtime that there is now, and the handle that starts this task there."""
        workforce, bound = current(), self._bound
        if bound is None or bound[0] is not workforce:
            handle = workforce.handle_of_tasks(reserving=not self._demand.is_empty)
            name = self._options.name or self._name
            bound = workforce, handle.options(method_name=name, timeout_s=self._options.timeout_s)
            self._bound = bound
        return bound
