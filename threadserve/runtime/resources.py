"""What replicas reserve: cores, GPUs, memory, and what else the user counts. Nobody waits in here.

Amounts are whole numbers of 1/10000, Ray's grain, so ten times 0.1 is 1. What is finer is rounded down: n
replicas that ask for 1/n each always fit on 1.

``check`` and ``reserve`` ask one question, ``place``, of an empty machine and of the present one. So what
passed the check does fit once the others have given back what they hold.

Rejected: counting GPUs as an amount alone. Three replicas of 0.6 are 1.8, and yet do not fit on two GPUs.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from threadserve.app.rules import inside, number, refuse
from threadserve.concurrency.waiter import deliver
from threadserve.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from threadserve.concurrency.kernel import Kernel
    from threadserve.concurrency.waiter import Subscriber

__all__ = ["Ask", "Demand", "Ledger", "LedgerStatistics", "Reservation", "Totals"]

_log = logging.getLogger("threadserve")

UNIT = 10_000
"""What 1 is in units."""
NOISE = 1_000_000
"""A float may lie this part of a unit below what was meant: 0.0003 * 10000 is 2.9999999999999996."""
LOOK_S = 5.0
"""How long nvidia-smi may take to name the GPUs."""

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
            gpus = units.get("GPU", 0)
            if gpus > UNIT and gpus % UNIT:
                allowed = "a whole number or a fraction of one GPU"
                refuse("ray_actor_options['num_gpus']", allowed, given["num_gpus"])
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
        amounts = {"CPU": _cores() * UNIT, "memory": _memory() * UNIT, **given}
        gpu_ids = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStatistics:
    """What there was at one moment; each amount by the name of its resource."""

    total: dict[str, float]
    """Without GPUs, as long as no deployment has asked for one and the environment does not name them."""
    reserved: dict[str, dict[str, float]]
    """By deployment."""
    free: dict[str, float]
    waiting: int
    """Subscribers that will be told of the next release."""


class Ledger:
    """Who has reserved how much of the machine. Every member is safe from any thread.

    Nothing here waits for anybody: who gets None leaves a subscriber, is told of the next release, and asks
    again. All who wait are told, since what came back may suit any of them; so there is no order among them.

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
        self._subscribers: dict[Subscriber, None] = {}  # guarded by _lock

    def __repr__(self) -> str:
        totals, held, waiting = self._totals, list(self._held), len(self._subscribers)
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

    def reserve_all(
        self, deployment: str, demand: Demand, count: int, subscriber: Subscriber | None = None
    ) -> list[Reservation] | None:
        """Reserve for `count` replicas, or for none of them and return None; see ``reserve_together``."""
        return self.reserve_together([Ask(deployment, demand, count)], subscriber)

    def reserve_together(
        self, asks: Sequence[Ask], subscriber: Subscriber | None = None
    ) -> list[Reservation] | None:
        """Reserve for every replica of every ask, in their order, or for none and return None.

        Deployments that need each other ask together: two apps that each held a part and waited for the rest
        would wait for ever.

        On None `subscriber` is told, once, of the next release. None is decided and the subscriber noted in
        one critical section, so no release falls in between.

        Raises:
            ResourceError: It never fits, and waiting for it would not end.
        """
        self.check_together(asks)
        totals = self._look_up(asks)
        with self._lock:
            placed = place(asks, totals, self._held)
            if placed is None:
                if subscriber is not None:
                    self._subscribers[subscriber] = None
                return None
            each = [ask for ask in asks for _ in range(ask.replicas)]
            made = [
                Reservation(self, ask.deployment, ask.demand, gpu_ids)
                for ask, gpu_ids in zip(each, placed, strict=True)
            ]
            self._held.update(dict.fromkeys(made))
        return made

    def forget(self, subscriber: Subscriber) -> None:
        """Let a subscriber that gave up not be told, if it has not been."""
        with self._lock:
            self._subscribers.pop(subscriber, None)

    def holds(self, reservation: Reservation) -> bool:
        """Whether it is still reserved. Takes no lock: the answer may be old when it comes."""
        return reservation in self._held

    def take_back(self, reservation: Reservation) -> None:
        """Do what ``Reservation.release`` promises."""
        with self._lock:
            if reservation not in self._held:
                return
            del self._held[reservation]
            news = tuple(self._subscribers)
            self._subscribers.clear()
        deliver(news)

    def statistics(self) -> LedgerStatistics:
        """Return what there is at this moment."""
        totals = self._look_up(())
        with self._lock:
            held, waiting = list(self._held), len(self._subscribers)
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
            totals = replace(totals, gpu_ids=installed_gpus())
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


# ---- what the machine has


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # this system does not tell: then it must be given
        return 0
    return max(0, min([physical, *memory_limits()]))


def memory_limits(root: Path = Path("/")) -> list[int]:
    """Return the memory limits, in bytes, of the control groups that this process is in."""
    limits: list[str] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, membership = line.partition(":")
        controllers, _, group = membership.partition(":")
        if not controllers:  # version 2: one tree for all
            base, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # A container sees its own group as the base, whatever the path says; so a missing folder is no error.
        folder = base / group.lstrip("/")
        limits += [_read(each / file) for each in (folder, *folder.parents) if each.is_relative_to(base)]
    return [int(limit) for limit in limits if limit.strip().isdigit()]  # "max" is none


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def visible_gpus(variable: str | None) -> tuple[str, ...] | None:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` names, as it names them; None where it is not set.

    As for CUDA, what stands behind the first name that is none (empty, or -1) does not count.
    """
    if variable is None:
        return None
    named: dict[str, None] = {}
    for name in map(str.strip, variable.split(",")):
        if not name or name.startswith("-"):
            break
        named[name] = None
    return tuple(named)


def _first_gpus(visible: tuple[str, ...] | None, count: int) -> tuple[str, ...]:
    gpu_ids = visible or tuple(map(str, range(count)))
    if len(gpu_ids) < count:
        raise ConfigError(
            f"resources['GPU'] is {count}, but CUDA_VISIBLE_DEVICES names only {', '.join(gpu_ids)}; "
            "give no more than it names"
        )
    return gpu_ids[:count]


def installed_gpus() -> tuple[str, ...]:
    """Ask nvidia-smi for the GPUs; none where it is not installed or does not answer. Blocks, 5 s at most."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LOOK_S, check=False
        ).stdout.decode(errors="replace")
    except OSError:
        return ()
    except subprocess.TimeoutExpired:
        _log.warning("nvidia-smi did not answer within %g s: no GPUs are taken to be there", LOOK_S)
        return ()
    return tuple(line.strip() for line in told.splitlines() if line.strip().isdigit())
