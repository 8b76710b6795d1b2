"""The tasks and actors of one runtime."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from threadserve.api import controller
from threadserve.call.answer import request_of
from threadserve.call.objectref import ObjectRef, Store
from threadserve.concurrency.outcome import Error, Value
from threadserve.errors import ConfigError
from threadserve.handle import DeploymentHandle
from threadserve.tasks.lifetime import Actor
from threadserve.tasks.options import STREAMING
from threadserve.tasks.pool import ReservingRouter, TaskPool, TaskRouter, default_slots

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from threadserve.call.request import Request
    from threadserve.concurrency.waiter import Subscriber
    from threadserve.runtime.controller import Controller
    from threadserve.runtime.version import Quarters
    from threadserve.tasks.lifetime import Grip
    from threadserve.tasks.options import ActorOptions

__all__ = ["Workforce", "current", "send"]

PATIENCE_S = 2.0
"""How long a shutdown waits for the threads of actors, which have been told to end."""


class Workforce:
    """The tasks and actors of one runtime. Every member is safe from any thread."""

    def __init__(self, owner: Controller, slots: int | None = None) -> None:
        self.kernel = owner.kernel
        self._owner = owner
        self.tasks = TaskPool(TaskRouter(self.kernel), default_slots() if slots is None else slots)
        self.reserving_tasks = TaskPool(ReservingRouter(self.kernel, owner.ledger), 0)
        for pool in (self.tasks, self.reserving_tasks):
            owner.look_after(pool.router)
        self.store = Store(self.kernel)
        """Where ``put`` leaves what it is given."""
        self._numbers = itertools.count(1)
        self._lock = self.kernel.lock()
        self._actors: dict[Actor, None] = {}  # guarded by _lock; those that are not over
        self._ended: dict[Actor, None] = {}  # guarded by _lock; those whose threads may not have ended
        self._names: dict[tuple[str, str], Actor] = {}  # guarded by _lock

    def __repr__(self) -> str:
        return f"<Workforce of {self.tasks!r} and {len(self._actors)} actors>"

    def handle_of_tasks(self, *, reserving: bool) -> DeploymentHandle[Any]:
        """Return the handle that starts tasks."""
        return DeploymentHandle((self.reserving_tasks if reserving else self.tasks).router)

    def start_actor(
        self, cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: ActorOptions
    ) -> Grip:
        """Start an actor, or return the grip of the one that has its name where that is wanted. Never blocks.

        Raises:
            ConfigError: The name is taken.
        """
        key = (options.namespace or "", options.name or "")
        actor = Actor(
            self.kernel,
            self._owner.ledger,
            cls,
            name=f"{cls.__name__}-{next(self._numbers)}",
            options=options,
            on_end=self._forget,
            on_gone=self._let_go,
        )
        grip = actor.grip()
        assert grip is not None
        taken = None
        with self._lock:
            if options.name is not None:
                taken = self._names.setdefault(key, actor)
            if taken in (None, actor):
                self._actors[actor] = None
        if taken is None or taken is actor:
            self._owner.look_after(actor.router)
            actor.begin(args, kwargs)
            return grip
        actor.kill("its name was taken")
        existing = taken.grip()
        if existing is None:  # nobody can call the one that has it any more
            taken.dismiss()
            return self.start_actor(cls, args, kwargs, options)
        if options.get_if_exists:
            return existing
        raise ConfigError(
            f"the name {options.name!r} is taken by {taken!r}; choose another one, get it with serve.get_actor, "
            "or give options(get_if_exists=True)"
        )

    def find_actor(self, name: str, namespace: str | None) -> Grip:
        """Return the grip of a named actor.

        Raises:
            ConfigError: There is none.
        """
        with self._lock:
            actor = self._names.get((namespace or "", name))
            names = sorted(name for _, name in self._names)
        grip = None if actor is None else actor.grip()
        if grip is None:
            raise ConfigError(
                f"there is no actor named {name!r}{f' in namespace {namespace!r}' if namespace else ''}; "
                f"there are {names or 'none'}"
            )
        return grip

    def actors(self) -> list[Actor]:
        """Return the actors that are not over."""
        with self._lock:
            return list(self._actors)

    # ---- as the controller's lodger

    def pools(self) -> Sequence[Quarters]:
        """Return whatever runs requests here."""
        with self._lock:
            return [self.tasks, self.reserving_tasks, *self._actors, *self._ended]

    def shutdown(self) -> None:
        """End every actor and give up every task. Blocks, a few seconds at most."""
        reason = "the runtime was shut down"
        pools = (self.tasks, self.reserving_tasks)
        for pool in pools:
            pool.close(reason)
        while actors := self.actors():
            for actor in actors:
                actor.kill(reason)
        for pool in pools:
            pool.stop(reason)
        deadline = self.kernel.now() + PATIENCE_S
        with self._lock:
            ended = list(self._ended)
        for actor in ended:
            actor.kill(reason)  # be it that it wanted to finish what it runs
        for actor in ended:
            actor.wait_gone(max(0.0, deadline - self.kernel.now()))

    def _forget(self, actor: Actor) -> None:
        """Be told that an actor takes no more calls."""
        key = (actor.options.namespace or "", actor.options.name or "")
        with self._lock:
            self._actors.pop(actor, None)
            if actor.is_leaving:
                self._ended[actor] = None
            if self._names.get(key) is actor:
                del self._names[key]

    def _let_go(self, actor: Actor) -> None:
        """Be told that nothing is left of an actor."""
        with self._lock:
            self._ended.pop(actor, None)


def current() -> Workforce:
    """Return the workforce of the one runtime of this process, starting both if need be.

    Raises:
        ServeError: The runtime is being shut down.
    """
    return controller().lodge(Workforce)


def send(
    handle: DeploymentHandle[Any],
    first: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    num_returns: int | str,
    store: Store,
) -> Any:
    """Call, with `first` before the arguments, and return what the caller gets: a ref, several, none, or a generator."""
    if num_returns == STREAMING:
        stream = handle.options(stream=True).remote(first, *args, **kwargs)
        return stream._to_object_ref_gen_sync(_allow_running_in_asyncio_loop=True)
    request = request_of(handle.remote(first, *args, **kwargs))
    if num_returns == 1:
        return ObjectRef(request)
    if num_returns == 0:
        return None
    assert isinstance(num_returns, int)
    return _Parts(request, num_returns, store).refs()


class _Parts:
    """The several values of one call, each with a request of its own. Told when the call is answered."""

    def __init__(self, whole: Request, count: int, store: Store) -> None:
        self._whole = whole
        self._parts = [store.promise(whole.method) for _ in range(count)]

    def refs(self) -> list[ObjectRef[Any]]:
        """Return a ref to each of the values; cancelling one of them cancels the call."""
        for part in self._parts:
            part.attach(self._whole.cancel)
        if not self._whole.subscribe(self):
            self.tell()
        return [ObjectRef(part) for part in self._parts]

    def tell(self) -> Iterable[Subscriber]:
        outcome = self._whole.outcome
        assert outcome is not None
        if outcome.exception is not None:
            outcomes: list[Any] = [outcome] * len(self._parts)
        elif type(values := outcome.unwrap()) in (tuple, list) and len(values) == len(self._parts):
            outcomes = [Value(value) for value in values]
        else:
            told = f"{len(values)} of them" if type(values) in (tuple, list) else f"a {type(values).__name__}"
            name = f"{self._whole.router.name}.{self._whole.method}"
            wrong = ValueError(
                f"{name} was called with num_returns={len(self._parts)} and must return a tuple or list of as many "
                f"values; it returned {told}"
            )
            outcomes = [Error(wrong)] * len(self._parts)
        news: list[Subscriber] = []
        for part, each in zip(self._parts, outcomes, strict=True):
            with part.router.lock:
                news.extend(part.settle(each) or ())
        return news
