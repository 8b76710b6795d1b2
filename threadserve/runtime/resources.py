"""What replicas reserve: cores, GPUs, memory, and what else the user counts. Nobody waits in here.

Amounts are whole numbers of 1/10000, Ray's grain, so ten times 0.1 is 1. What is finer is rounded down: n
replicas that ask for 1/n each always fit on 1.

``check`` and ``reserve`` ask one question, ``place``, of an empty machine and of the present one. So what
passed the check does fit once the others have given back what they hold.

Rejected: counting GPUs as an amount alone. Three replicas of 0.6 are 1.8, and yet do not fit on two GPUs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast

from threadserve.app.rules import inside, number, refuse, some_gpus
from threadserve.concurrency.waiter import deliver
from threadserve.errors import ConfigError, ResourceError
from threadserve.runtime import machine

if TYPE_CHECKING:
    from threadserve.app.graph import Plan
    from threadserve.concurrency.kernel import Kernel
    from threadserve.concurrency.waiter import Subscriber

__all__ = ["Ask", "Demand", "Ledger", "LedgerStatistics", "Reservation", "Totals", "asks_of"]

UNIT = 10_000
"""What 1 is in units."""
NOISE = 1_000_000
"""A float may lie this part of a unit below what was meant: 0.0003 * 10000 is 2.9999999999999996."""

RESOURCE_OF = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
WORDS = {"CPU": "cores", "GPU": "GPUs", "memory": "bytes of memory"}


@dataclass(frozen=True, slots=True, repr=False)
class Demand:
    """What one replica asks for: only what the user has set."""

    units: tuple[tuple[str, int], ...] = ()
    """Resource and amount in units, ordered by name, none of them 0."""

    @classmethod
    def of(cls, deployment: str, options: Mapping[str, object]) -> Demand:
        """Read the demand from a deployment's ``ray_actor_options``.

        Raises:
            ConfigError: An amount is no finite number of at least 0, or is finer than 1/10000; more than
                one GPU is no whole number; or ``resources`` has a name that it must not have.
        """
        given = {option: options[option] for option in RESOURCE_OF if options.get(option) is not None}
        with inside(f"deployment {deployment!r}"):
            units = _named("ray_actor_options['resources']", options.get("resources"), RESOURCE_OF.values())
            for option, value in given.items():
                units[RESOURCE_OF[option]] = _in_units(f"ray_actor_options[{option!r}]", value)
            if "num_gpus" in given:
                some_gpus()("ray_actor_options['num_gpus']", given["num_gpus"])
        return cls(tuple(sorted((name, amount) for name, amount in units.items() if amount)))

    def __repr__(self) -> str:
        return f"Demand({', '.join(f'{name}={amount}' for name, amount in self.amounts.items())})"

    @property
    def is_empty(self) -> bool:
        """Whether it asks for nothing."""
        return not self.units

    @property
    def amounts(self) -> dict[str, float]:
        """Resource -> amount, as a person counts."""
        return _counted(dict(self.units))

    @property
    def gpu_units(self) -> int:
        """How much of GPUs it asks for, in units."""
        return dict(self.units).get("GPU", 0)


class Ask(NamedTuple):
    """What a deployment asks for: `demand`, for each of so many replicas."""

    deployment: str
    demand: Demand
    replicas: int

    @property
    def units(self) -> dict[str, int]:
        """What the replicas ask for together."""
        return {name: amount * self.replicas for name, amount in self.demand.units}


def asks_of(plan: Plan) -> list[Ask]:
    """Return what a plan's deployments reserve; nothing for those that ask for nothing.

    Raises:
        ConfigError: See ``Demand.of``.
    """
    asks: list[Ask] = []
    for planned in plan.deployments:
        options = planned.config.ray_actor_options
        if not options:
            continue
        name = f"{plan.app}/{planned.name}"
        demand = Demand.of(name, options)
        if not demand.is_empty:
            asks.append(Ask(name, demand, planned.config.initial_replicas))
    return asks


@dataclass(frozen=True, slots=True)
class Totals:
    """What there is to reserve."""

    units: Mapping[str, int]
    """Resource -> amount, without GPUs. What is not named, or could not be found out, is not there."""
    gpu_ids: tuple[str, ...] | None
    """None as long as nobody has looked for GPUs."""

    @classmethod
    def of_machine(cls, given: Mapping[str, int]) -> Totals:
        """Look at this machine and this process; what is `given` (in units) goes before what is found.

        Raises:
            ConfigError: More GPUs are given than ``CUDA_VISIBLE_DEVICES`` names.
        """
        amounts = {"CPU": machine.cores() * UNIT, "memory": machine.memory() * UNIT, **given}
        gpu_ids = machine.visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if (gpus := amounts.pop("GPU", None)) is not None:
            gpu_ids = _first_gpus(gpu_ids, gpus // UNIT)
        return cls(amounts, gpu_ids)

    def of(self, name: str) -> int:
        """Return how much there is of a resource, in units."""
        return len(self.gpu_ids or ()) * UNIT if name == "GPU" else self.units.get(name, 0)

    @property
    def amounts(self) -> dict[str, float]:
        """Resource -> amount, as a person counts; without GPUs as long as nobody has looked for them."""
        names = self.units if self.gpu_ids is None else (*self.units, "GPU")
        return _counted({name: self.of(name) for name in names})


class Reservation:
    """What one replica holds, until it is released.

    Attributes:
        deployment: Whose replica it is.
        demand: What it holds.
        gpu_ids: The GPUs among that, by the names that CUDA_VISIBLE_DEVICES has for them.
    """

    __slots__ = ("_ledger", "demand", "deployment", "gpu_ids")

    def __init__(self, ledger: Ledger, deployment: str, demand: Demand, gpu_ids: tuple[str, ...]) -> None:
        self._ledger = ledger
        self.deployment = deployment
        self.demand = demand
        self.gpu_ids = gpu_ids

    def __repr__(self) -> str:
        gpus = f" on GPU {', '.join(self.gpu_ids)}" if self.gpu_ids else ""
        state = "" if self._ledger.holds(self) else ", released"
        return f"<Reservation {self.deployment} {_worded(dict(self.demand.units))}{gpus}{state}>"

    def release(self) -> None:
        """Give it back and tell who waits for that. May be repeated.

        Never blocks. Safe from any thread, but not from a finalizer: it takes a lock.
        """
        self._ledger.take_back(self)


class _Place(NamedTuple):
    """A place in the line."""

    subscriber: Subscriber | None
    asks: tuple[Ask, ...]
    goes_first: bool

    @property
    def resources(self) -> set[str]:
        """The names of what is asked for."""
        return {name for ask in self.asks for name in ask.units}


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStatistics:
    """What there was at one moment; each amount by the name of its resource."""

    total: dict[str, float]
    """Without GPUs, as long as no deployment has asked for one and the environment does not name them."""
    reserved: dict[str, dict[str, float]]
    """By deployment."""
    free: dict[str, float]
    waiting: int
    """Subscribers in the line."""


class Ledger:
    """Who has reserved how much of the machine. Every member is safe from any thread.

    Nothing here waits for anybody: who gets None has a place in the line, is told whenever that may have changed,
    and asks again. Nobody gets what somebody before them in the line asks for as well, even if it would fit: small
    asks, one after the other, would keep a large one waiting for ever. Who has nothing in common does not wait.

    The first call looks at the machine. The first that asks for a GPU looks for GPUs: where the environment
    does not name them, that runs nvidia-smi and takes a moment. No other call blocks.
    """

    def __init__(self, kernel: Kernel, resources: Mapping[str, object] | None = None) -> None:
        """Keep account of the machine and of `resources`: others, or other totals of CPU, GPU and memory.

        Raises:
            ConfigError: `resources` has a refused name or amount.
        """
        self._given = _given_totals(resources)
        self._lock = kernel.lock()
        self._totals: Totals | None = None  # guarded by _lock; replaced, never changed
        self._held: dict[Reservation, None] = {}  # guarded by _lock; all that is known of who has what
        self._line: list[_Place] = []  # guarded by _lock; who waits, those who go first in front

    def __repr__(self) -> str:
        totals, held, waiting = self._totals, list(self._held), len(self._line)
        taken = _sum(reservation.demand for reservation in held)
        parts = [f"{_number(taken[name])} of {_worded({name: totals.of(name)})}" for name in taken if totals]
        return f"<Ledger {', '.join(parts) or 'nothing'} reserved by {len(held)} replicas, {waiting} waiting>"

    def check(self, deployment: str, demand: Demand, replicas: int) -> None:
        """Refuse what would not fit on an empty machine.

        Raises:
            ResourceError: One replica, or all of them together, ask for more than there is.
        """
        self.check_together([Ask(deployment, demand, replicas)])

    def check_together(self, asks: Sequence[Ask]) -> None:
        """Refuse what would not fit on an empty machine at the same time.

        Raises:
            ResourceError: Some deployment is too much, alone or beside those that stand before it.
        """
        totals = self._look_up(asks)
        if place(asks, totals, ()) is None:
            raise _refusal(asks, totals)

    def reserve(
        self, deployment: str, demand: Demand, subscriber: Subscriber | None = None
    ) -> Reservation | None:
        """Reserve for one replica, or return None: it does not fit now; see ``reserve_together``."""
        made = self.reserve_together([Ask(deployment, demand, 1)], subscriber)
        return made[0] if made else None

    def reserve_together(
        self, asks: Sequence[Ask], subscriber: Subscriber | None = None, *, goes_first: bool = False
    ) -> list[Reservation] | None:
        """Reserve for every replica of every ask, in their order, or for none and return None.

        Deployments that need each other ask together: two apps that each held a part and waited for the rest
        would wait for ever.

        On None `subscriber` has a place in the line, and is told of every release until it gets what it asks for
        or is forgotten: it asks again, as the same subscriber. None is decided and the place taken in one critical
        section, so no release falls in between.

        Args:
            asks: What is asked for.
            subscriber: Who is told; without one there is no place in the line.
            goes_first: It waits only behind others that go first: for who gives back what it needs anew.

        Raises:
            ResourceError: It never fits, and waiting for it would not end.
        """
        self.check_together(asks)
        totals = self._look_up(asks)
        place_in_line = _Place(subscriber, tuple(asks), goes_first)
        with self._lock:
            placed = None if self._before(place_in_line) else place(asks, totals, self._held)
            if placed is None:
                self._queue(place_in_line)
                return None
            each = [ask for ask in asks for _ in range(ask.replicas)]
            made = [
                Reservation(self, ask.deployment, ask.demand, gpu_ids)
                for ask, gpu_ids in zip(each, placed, strict=True)
            ]
            self._held.update(dict.fromkeys(made))
            news = self._leave(subscriber)
        deliver(news)
        return made

    def forget(self, subscriber: Subscriber) -> None:
        """Take a subscriber that gave up out of the line, if it is in it."""
        with self._lock:
            news = self._leave(subscriber)
        deliver(news)

    def ahead_of(self, subscriber: Subscriber) -> list[str]:
        """Name the deployments that come before `subscriber` in the line and ask for something that it asks for."""
        with self._lock:
            own = next((each for each in self._line if each.subscriber is subscriber), None)
            before = self._before(own) if own else []
        return [ask.deployment for each in before for ask in each.asks]

    def _before(self, own: _Place) -> list[_Place]:
        """Return who comes before `own` and asks for something that it asks for; the lock is held."""
        before: list[_Place] = []
        for other in self._line:
            if other.subscriber is own.subscriber or (own.goes_first and not other.goes_first):
                break
            if own.resources & other.resources:
                before.append(other)
        return before

    def _queue(self, own: _Place) -> None:
        """Take a place in the line, unless there is one already or nobody to be told; the lock is held."""
        if own.subscriber is None or any(other.subscriber is own.subscriber for other in self._line):
            return
        self._line.append(own)
        self._line.sort(key=lambda each: not each.goes_first)  # which keeps the order otherwise

    def _leave(self, subscriber: Subscriber | None) -> tuple[Subscriber, ...]:
        """Give up a place in the line and return whom that may help; the lock is held."""
        line = [each for each in self._line if each.subscriber is not subscriber]
        is_shorter, self._line = len(line) < len(self._line), line
        return self._waiting() if is_shorter else ()

    def _waiting(self) -> tuple[Subscriber, ...]:
        return tuple(each.subscriber for each in self._line if each.subscriber is not None)

    def holds(self, reservation: Reservation) -> bool:
        """Whether it is still reserved. Takes no lock: the answer may be old when it comes."""
        return reservation in self._held

    def take_back(self, reservation: Reservation) -> None:
        """Do what ``Reservation.release`` promises."""
        with self._lock:
            if reservation not in self._held:
                return
            del self._held[reservation]
            news = self._waiting()
        deliver(news)

    def statistics(self) -> LedgerStatistics:
        """Return what there is at this moment."""
        totals = self._look_up(())
        with self._lock:
            held, waiting = list(self._held), len(self._line)
        reserved: dict[str, Counter[str]] = {}
        for reservation in held:
            reserved.setdefault(reservation.deployment, Counter()).update(dict(reservation.demand.units))
        taken = _sum(reservation.demand for reservation in held)
        return LedgerStatistics(
            total=totals.amounts,
            reserved={deployment: _counted(units) for deployment, units in reserved.items()},
            free=_counted({name: totals.of(name) - taken[name] for name in totals.amounts}),
            waiting=waiting,
        )

    def _look_up(self, asks: Sequence[Ask]) -> Totals:
        """Return what there is; GPUs are looked for when one is asked for.

        Looks without the lock, since that reads files and may run a program. So two may look at once; then
        what the first of them found stands.
        """
        totals = self._totals or Totals.of_machine(self._given)
        if totals.gpu_ids is None and any(ask.demand.gpu_units for ask in asks):
            totals = replace(totals, gpu_ids=machine.installed_gpus())
        with self._lock:
            known = self._totals or totals
            if known.gpu_ids is None:
                known = replace(known, gpu_ids=totals.gpu_ids)
            self._totals = known
            return known


# ---- what fits: pure


def place(asks: Sequence[Ask], totals: Totals, held: Iterable[Reservation]) -> list[tuple[str, ...]] | None:
    """Return the GPUs for each replica of each ask, in order; None if they do not fit beside what is held."""
    held = list(held)
    taken = _sum(reservation.demand for reservation in held)
    for ask in asks:
        taken.update(ask.units)
    if any(taken[name] > totals.of(name) for ask in asks for name in ask.units):
        return None
    loads = dict.fromkeys(totals.gpu_ids or (), 0)
    for reservation in held:
        for gpu_id in reservation.gpu_ids:
            loads[gpu_id] += min(UNIT, reservation.demand.gpu_units)
    return pack([ask.demand.gpu_units for ask in asks for _ in range(ask.replicas)], loads)


def pack(demands: Sequence[int], loads: dict[str, int]) -> list[tuple[str, ...]] | None:
    """Return the GPUs for each demand (in units) and add it to their `loads`; None where one does not fit.

    Whole GPUs belong to one replica. A fraction goes to the first GPU that has room, shared ones before free
    ones, so that these stay whole. The largest demands go first, which leaves fewer gaps.
    """
    placed: dict[int, tuple[str, ...]] = {}
    for index in sorted(range(len(demands)), key=lambda index: -demands[index]):
        units = demands[index]
        count = max(1, units // UNIT) if units else 0
        share = min(UNIT, units)
        fitting = [gpu_id for gpu_id, load in loads.items() if load + share <= UNIT]
        fitting.sort(key=lambda gpu_id: not loads[gpu_id])
        if len(fitting) < count:
            return None
        placed[index] = tuple(fitting[:count])
        for gpu_id in placed[index]:
            loads[gpu_id] += share
    return [placed[index] for index in range(len(demands))]


def _refusal(asks: Sequence[Ask], totals: Totals) -> ResourceError:
    """Explain why `asks` do not fit on an empty machine: the first that is too much, and what it lacks."""
    end = next(end for end in range(1, len(asks) + 1) if place(asks[:end], totals, ()) is None)
    culprit = asks[end - 1]
    one = culprit._replace(replicas=1)
    guilty = next(part for part in ([one], [culprit], asks[:end]) if place(part, totals, ()) is None)
    asked = Counter[str]()
    for ask in guilty:
        asked.update(ask.units)
    resource = next((name for name, units in asked.items() if units > totals.of(name)), "GPU")
    is_gap = asked[resource] <= totals.of(resource)
    limit = "; a fraction must fit on one GPU, and a whole one is not shared" if is_gap else ""
    if len(guilty) > 1:
        others = [ask.deployment for ask in guilty[:-1] if resource in ask.units]
        who = f"together with {', '.join(others)} it asks for"
    elif guilty[0].replicas > 1:
        who = f"{culprit.replicas} replicas together ask for"
    else:
        who = "one replica asks for"
    return ResourceError(
        f"{culprit.deployment} can never start: {who} {_worded({resource: asked[resource]})}, and there are "
        f"{_number(totals.of(resource))}{limit}; ask for less, or say what there is: "
        f"serve.start(resources={{{resource!r}: ...}})",
        deployment=culprit.deployment,
        resource=resource,
        asked=_counted(asked),
        total=totals.amounts,
    )


# ---- amounts


def _in_units(name: str, value: object) -> int:
    number(at_least=0)(name, value)
    numerator, denominator = cast("float", value).as_integer_ratio()
    units = (numerator * UNIT * NOISE + denominator) // (denominator * NOISE)
    if value and not units:
        refuse(name, f"0 or at least {1 / UNIT}", value)
    return units


def _named(place: str, given: object, reserved: Iterable[str]) -> dict[str, int]:
    """Read resource -> amount as units; refuse the names of options, and those `reserved` for one."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        refuse(place, "a dict", given)
    amounts = cast("Mapping[object, object]", given)
    units: dict[str, int] = {}
    for name, value in amounts.items():
        if not isinstance(name, str) or not name:
            refuse(f"a name in {place}", "a string that is not empty", name)
        for option, resource in RESOURCE_OF.items():
            if name == resource and resource in reserved:
                raise ConfigError(f"{place} cannot have {name!r}: it has an option of its own, {option}")
            if name == option != resource:
                raise ConfigError(f"{place} cannot have {name!r}; the resource is named {resource!r}")
        units[name] = _in_units(f"{place}[{name!r}]", value)
    return units


def _given_totals(resources: Mapping[str, object] | None) -> dict[str, int]:
    units = _named("resources", resources, ())
    if resources and units.get("GPU", 0) % UNIT:
        refuse("resources['GPU']", "a whole number", resources["GPU"])
    return units


def _sum(demands: Iterable[Demand]) -> Counter[str]:
    total = Counter[str]()
    for demand in demands:
        total.update(dict(demand.units))
    return total


def _number(units: int) -> float:
    return units / UNIT if units % UNIT else units // UNIT


def _counted(units: Mapping[str, int]) -> dict[str, float]:
    return {name: _number(amount) for name, amount in units.items()}


def _worded(units: Mapping[str, int]) -> str:
    said = [f"{_number(amount)} {WORDS.get(name, repr(name))}" for name, amount in units.items()]
    return ", ".join(said) or "nothing"


def _first_gpus(visible: tuple[str, ...] | None, count: int) -> tuple[str, ...]:
    gpu_ids = visible or tuple(map(str, range(count)))
    if len(gpu_ids) < count:
        raise ConfigError(
            f"resources['GPU'] is {count}, but CUDA_VISIBLE_DEVICES names only {', '.join(gpu_ids)}; "
            "give no more than it names"
        )
    return gpu_ids[:count]
