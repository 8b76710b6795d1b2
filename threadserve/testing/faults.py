"""Faults on purpose: latency, errors, crashes, refusals, slow starts, streams that break off.

    app = faults.inject(
        Shop.bind(Stock.bind()),
        faults.Latency("Stock", seconds=0.5, probability=0.1),
        faults.Crash("Stock", calls=[3]),
    )

The result is an app like any other: for ``serve.run`` and real threads, for ``simulate`` and virtual time. A fault strikes a
request when its body begins, so what it needs (a slot, its arguments) it has; only then does it count as a call.

Every fault can be narrowed, and strikes where all that is given holds; without anything, it strikes every call:

* ``method``: only calls of this method
* ``calls``: which ones, by number from 1, in the order in which bodies of this deployment begin (of this method, with
  ``method``); the replicas count together, each app that runs for itself
* ``probability``: how likely, by the kernel's chance: the simulator's is seeded
* ``during``: seconds since the first replica started, from, to
"""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from threadserve.concurrency.real import RealKernel
from threadserve.errors import BackPressureError, ConfigError, GraphError, ReplicaDiedError
from threadserve.testing.interposition import Visit, interposed, router_of_running_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from threadserve.app.application import Application, Binding
    from threadserve.call.request import Request, Router

__all__ = ["Crash", "DroppedStream", "Failure", "Fault", "Latency", "Refusal", "SlowStart", "inject"]


@dataclass(frozen=True)
class Fault(ABC):
    """What befalls the calls of one deployment, or some of them; see the module. Raises ConfigError for what cannot be."""

    deployment: str
    method: str | None = field(default=None, kw_only=True)
    calls: Iterable[int] | None = field(default=None, kw_only=True)
    probability: float = field(default=1.0, kw_only=True)
    during: tuple[float, float] = field(default=(0.0, math.inf), kw_only=True)

    def __post_init__(self) -> None:
        if self.calls is not None:
            numbers = tuple(sorted(self.calls))
            object.__setattr__(self, "calls", numbers)
            if numbers and numbers[0] < 1:
                self._refuse("calls", "numbers from 1")
        if not 0 <= self.probability <= 1:
            self._refuse("probability", "from 0 to 1")
        if not 0 <= self.during[0] <= self.during[1]:
            self._refuse("during", "(from, to) in seconds")

    def _refuse(self, name: str, rule: str) -> None:
        raise ConfigError(
            f"{type(self).__name__} of {self.deployment!r}: {name} must be {rule}, not {getattr(self, name)!r}"
        )

    def strikes(self, number: int, since_s: float, chance: Callable[[], float]) -> bool:
        """Whether it befalls the call of this number, so many seconds after the start. Draws from `chance` last."""
        if self.calls is not None and number not in self.calls:
            return False
        if not self.during[0] <= since_s <= self.during[1]:
            return False
        return self.probability == 1 or chance() < self.probability

    @abstractmethod
    def afflict(self, visit: FaultyVisit) -> None:
        """Have it come over one call."""


@dataclass(frozen=True)
class Latency(Fault):
    """The body begins `seconds` later, on the kernel's clock; the slot is taken meanwhile. Ends early when cancelled."""

    seconds: float

    def afflict(self, visit: FaultyVisit) -> None:
        """Delay the body."""
        visit.delay += self.seconds


@dataclass(frozen=True)
class Failure(Fault):
    """The call raises `error`, an exception or a class of them, instead of running the body."""

    error: BaseException | type[BaseException]

    def afflict(self, visit: FaultyVisit) -> None:
        """Raise the error; each call its own where a class was given."""
        error = self.error
        visit.failure = error if isinstance(error, type) else type(error)(*error.args)


@dataclass(frozen=True)
class Crash(Fault):
    """The replica dies as the body begins: its callers get ReplicaDiedError, another replica comes up."""

    def afflict(self, visit: FaultyVisit) -> None:
        """End the replica."""
        visit.failure = SystemExit(f"{self!r}")


@dataclass(frozen=True)
class Refusal(Fault):
    """The call gets BackPressureError, as from a full queue. The body does not run."""

    def afflict(self, visit: FaultyVisit) -> None:
        """Refuse the call."""
        router = visit.request.router
        visit.failure = BackPressureError(
            f"Request dropped due to backpressure: {self!r}",
            deployment=router.name,
            request_id=visit.request.request_id,
            queued=0,
            limit=0,
        )


@dataclass(frozen=True)
class DroppedStream(Fault):
    """The stream breaks off with ReplicaDiedError when `after` items were handed on. Plain calls are spared."""

    after: int = 0

    def afflict(self, visit: FaultyVisit) -> None:
        """Break the stream off."""
        visit.items_left = min(visit.items_left, self.after)


@dataclass(frozen=True)
class SlowStart(Fault):
    """A replica waits `seconds`, on the kernel's clock, before its constructor. Its ``calls`` are starts."""

    seconds: float

    def afflict(self, visit: FaultyVisit) -> None:
        """Nothing: it is over when calls come."""


def inject(app: Application[Any], *faults: Fault) -> Application[Any]:
    """Return the app with faults in it; `app` stays as it is. Where several strike one call, all do, delays first.

    Raises:
        GraphError: There is no deployment of that name in the app.
    """
    found: set[str] = set()

    def interposer(binding: Binding) -> _Afflicted | None:
        mine = [fault for fault in faults if fault.deployment == binding.name]
        found.add(binding.name)
        return _Afflicted(mine) if mine else None

    changed = interposed(app, interposer)
    for fault in faults:
        if fault.deployment not in found:
            raise GraphError(f"{fault!r}: the app has no such deployment; there are: {sorted(found)}")
    return changed


class FaultyVisit(Visit):
    """One call, and what befalls it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.delay = 0.0
        self.failure: BaseException | type[BaseException] | None = None
        self.items_left = math.inf

    def delay_s(self) -> float:
        """Return the sum of the latencies."""
        return self.delay

    def begin(self) -> None:
        """Raise what is to be raised."""
        if self.failure is not None:
            raise self.failure

    def item(self, value: Any) -> None:
        """Break off a stream whose time has come."""
        if self.items_left <= 0:
            name = f"{self.request.router.name}.{self.request.method}"
            raise ReplicaDiedError(
                f"the stream of {name} was dropped on purpose",
                deployment=self.request.router.name,
                request_id=self.request.request_id,
            )
        self.items_left -= 1


class _Afflicted:
    """The faults of one deployment; it counts for each router by itself, so that every run begins anew."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults
        self._lock = RealKernel.lock()  # a leaf that is held for a moment, so real in the simulator as well
        self._counts: weakref.WeakKeyDictionary[Router, _Count] = weakref.WeakKeyDictionary()  # guarded by it

    def start_delay_s(self) -> float:
        router = router_of_running_code()
        count, number = self._next(router, None)
        return sum(
            fault.seconds
            for fault in self._faults
            if isinstance(fault, SlowStart)
            and fault.strikes(number, count.age(router), router.kernel.random.random)
        )

    def visit(self, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FaultyVisit:
        router, visit = request.router, FaultyVisit(request)
        count, number = self._next(router, "")
        _, of_method = self._next(router, request.method)
        for fault in self._faults:
            if fault.method not in (None, request.method) or isinstance(fault, SlowStart):
                continue
            its_number = number if fault.method is None else of_method
            if fault.strikes(its_number, count.age(router), router.kernel.random.random):
                fault.afflict(visit)
        return visit

    def _next(self, router: Router, of: str | None) -> tuple[_Count, int]:
        """Count one more: start (None), call ("") or call of a method."""
        now = router.kernel.now()
        with self._lock:
            count = self._counts.get(router)
            if count is None:
                count = self._counts[router] = _Count(now)
            count.numbers[of] += 1
            return count, count.numbers[of]


class _Count:
    """What has happened behind one router."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.numbers: Counter[str | None] = Counter()  # guarded by the lock of whoever counts

    def age(self, router: Router) -> float:
        return router.kernel.now() - self.since
