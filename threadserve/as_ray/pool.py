"""``ray.util.ActorPool``: hands work to whichever of its actors is free."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from threadserve.as_ray.core import get, wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["ActorPool"]


class ActorPool:
    """A fixed set of actors; for one thread, as Ray's."""

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle = list(actors)
        self._busy: dict[Any, tuple[int, Any]] = {}
        self._refs: dict[int, Any] = {}
        self._next_index = self._next_return = 0
        self._waiting: deque[tuple[Callable[[Any, Any], Any], Any]] = deque()

    def submit(self, fn: Callable[[Any, Any], Any], value: Any) -> None:
        """Have ``fn(actor, value)`` called with the next idle actor."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.pop()
        ref = fn(actor, value)
        self._busy[ref] = (self._next_index, actor)
        self._refs[self._next_index] = ref
        self._next_index += 1

    def has_next(self) -> bool:
        """Whether there is a result to come."""
        return bool(self._busy)

    def has_free(self) -> bool:
        """Whether an actor is idle."""
        return bool(self._idle) and not self._waiting

    def push(self, actor: Any) -> None:
        """Add an idle actor."""
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.popleft())

    def pop_idle(self) -> Any | None:
        """Take an idle actor out; None where there is none."""
        return self._idle.pop() if self.has_free() else None

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return the next result in the order of ``submit``. Blocks."""
        if not self.has_next():
            raise StopIteration("No more results to get")
        ref = self._refs[self._next_return]
        if timeout is not None and not wait([ref], timeout=timeout)[0]:
            raise TimeoutError("Timed out waiting for result")
        del self._refs[self._next_return]
        self._next_return += 1
        return self._fetch(ref)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Return whichever result comes first. Blocks."""
        if not self.has_next():
            raise StopIteration("No more results to get")
        ready, _ = wait(list(self._busy), num_returns=1, timeout=timeout)
        if not ready:
            raise TimeoutError("Timed out waiting for result")
        index, _ = self._busy[ready[0]]
        del self._refs[index]
        self._next_return = max(self._next_return, index + 1)
        return self._fetch(ready[0])

    def _fetch(self, ref: Any) -> Any:
        _, actor = self._busy.pop(ref)
        self.push(actor)
        return get(ref)

    def map(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in the order of `values`."""
        for value in values:
            self.submit(fn, value)
        while self.has_next():
            yield self.get_next()

    def map_unordered(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """Yield the results as they come."""
        for value in values:
            self.submit(fn, value)
        while self.has_next():
            yield self.get_next_unordered()
