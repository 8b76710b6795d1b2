"""Is every call answered, exactly once and within the limits, however long it is overloaded and whatever goes wrong?

Random graphs of deployments are called by more clients than they have slots for, while faults come at random points:
exceptions, SystemExit, deadlines, cancellations, streams left half read, calls in a circle, redeploys, deletions.
Then the account is drawn up. The exit status is 1 if it does not add up. One seed makes the same graphs, plans and
troubles each time, and what will be done is printed first; the order in which the threads meet is the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import threadserve as serve
from benchmarks.report import table
from threadserve import futures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

QUESTION = "Is every call answered, exactly once and within the limits, whatever goes wrong?"

APP = "soak"
MINUTES, SMOKE_S = 3.0, 20.0
LAYERS = 3
CLIENTS = 6
WINDOW = 24
SHOWN = 12
"""So many of the troubles are printed; the seed makes the others as well."""
HANG_S = 60.0
"""Whoever waits longer than this for an answer is said to hang."""

KINDS: dict[type[BaseException], str] = {
    serve.BackPressureError: "backpressure",
    serve.RequestTimeoutError: "timeout",
    serve.RequestCancelledError: "cancelled",
    serve.DeploymentUnavailableError: "unavailable",
    serve.ReplicaDiedError: "died",
    serve.DeadlockError: "deadlock",
}


class UserError(Exception):
    """What bodies raise."""


# ---- the account


class Account:
    """What was sent, how it was answered, and what bodies ran."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent: Counter[str] = Counter()
        self.answered: Counter[tuple[str, str]] = Counter()
        self.twice = 0
        self.begun = 0
        self.ended = 0
        self.overruns = 0
        """How often a replica ran more bodies than it may."""
        self.reruns = 0
        """How often a call had its body begun a second time."""
        self.faults: Counter[str] = Counter()
        self.surprises: list[str] = []

    def send(self, source: str, call: Callable[[], Any]) -> Any:
        """Make a call and see to it that its answer is counted."""
        answer = call()
        with self._lock:
            self.sent[source] += 1
        note = _Note(
            self, source, answer._request
        )  # what tells streams and responses alike, before any thread of the user's
        if not answer._request.subscribe(note):
            note.tell()
        return answer

    def receive(self, note: _Note) -> None:
        error = note.request.outcome.exception
        kind = (
            "value"
            if error is None
            else next((k for cls, k in KINDS.items() if isinstance(error, cls)), None)
        )
        if isinstance(error, UserError):
            kind = "user error"
        with self._lock:
            self.twice += note.is_told
            note.is_told = True
            self.answered[note.source, kind or "surprise"] += 1
            if kind is None:
                self.surprises.append(repr(error))

    def fault(self, kind: str) -> None:
        with self._lock:
            self.faults[kind] += 1

    def begin(self, plan: Plan, replica: Node) -> None:
        with self._lock:
            self.begun += 1
            self.reruns += plan.is_begun
            plan.is_begun = True
            replica.ongoing += 1
            self.overruns += replica.ongoing > replica.limit

    def end(self, replica: Node) -> None:
        with self._lock:
            self.ended += 1
            replica.ongoing -= 1

    def surprise(self, what: str) -> None:
        with self._lock:
            self.surprises.append(what)


class _Note:
    """Waits for one answer."""

    def __init__(self, account: Account, source: str, request: Any) -> None:
        self.account = account
        self.source = source
        self.request = request
        self.is_told = False

    def tell(self) -> tuple[()]:
        self.account.receive(self)
        return ()


# ---- what bodies do


@dataclass(eq=False)
class Plan:
    """What one body does."""

    pause_s: float = 0.0
    children: list[tuple[int, bool, Plan]] = field(default_factory=list)
    """Whom of those below to call, whether its coroutine, and what it does."""
    wait: str = "each"
    end: str = "value"
    is_circular: bool = False
    """Calls the top again, which may make a deadlock."""
    is_begun: bool = False


def make_plan(chance: random.Random, depth: int) -> Plan:
    plan = Plan(
        pause_s=chance.choice([0, 0, 0, 0.001, 0.003]),
        wait=chance.choice(["each", "all", "first", "none", "chain"]),
        end=chance.choices(["value", "error", "exit"], [100, 8, 0.3])[0],
        is_circular=chance.random() < 0.02,
    )
    if depth:
        plan.children = [
            (chance.randrange(8), chance.random() < 0.5, make_plan(chance, depth - 1))
            for _ in range(chance.randrange(3))
        ]
    return plan


class Node:
    """One replica of one deployment of the graph."""

    def __init__(self, account: Account, limit: int, *below: serve.DeploymentHandle[Any]) -> None:
        self.account = account
        self.limit = limit
        self.below = below
        self.top = serve.get_app_handle(APP)
        self.ongoing = 0

    def work(self, plan: Plan, *_: object) -> int:
        self.account.begin(plan, self)
        try:
            answers = self._call_below(plan)
            if plan.wait == "all":
                futures.gather(*answers).result()
            elif plan.wait == "first":
                next(iter(futures.as_completed(answers)), None)
            elif plan.wait != "none":
                for answer in answers:
                    answer.result()
            time.sleep(plan.pause_s)
            return self._end(plan)
        finally:
            self.account.end(self)

    async def work_async(self, plan: Plan, *_: object) -> int:
        self.account.begin(plan, self)
        try:
            answers = self._call_below(plan)
            if plan.wait == "all":
                await futures.gather(*answers)
            elif plan.wait == "first":
                async for _answer in futures.as_completed(answers):
                    break
            elif plan.wait != "none":
                for answer in answers:
                    await answer
            await asyncio.sleep(plan.pause_s)
            return self._end(plan)
        finally:
            self.account.end(self)

    def items(self, plan: Plan) -> Iterator[int]:
        self.account.begin(plan, self)
        try:
            for item in range(20):
                time.sleep(plan.pause_s / 5)
                yield item
            yield self._end(plan)
        finally:
            self.account.end(self)

    async def items_async(self, plan: Plan) -> AsyncIterator[int]:
        self.account.begin(plan, self)
        try:
            for item in range(20):
                await asyncio.sleep(plan.pause_s / 5)
                yield item
            yield self._end(plan)
        finally:
            self.account.end(self)

    def _call_below(self, plan: Plan) -> list[Any]:
        answers: list[Any] = []
        if plan.is_circular:
            answers.append(self.account.send("by bodies", partial(self.top.work.remote, Plan())))
        for which, is_async, child in plan.children if self.below else ():
            handle = self.below[which % len(self.below)]
            method = handle.work_async if is_async else handle.work
            inputs = answers[-1:] if plan.wait == "chain" else []
            answers.append(self.account.send("by bodies", partial(method.remote, child, *inputs)))
        return answers

    def _end(self, plan: Plan) -> int:
        if plan.end == "error":
            raise UserError
        if plan.end == "exit":
            self.account.fault("SystemExit")
            raise SystemExit(1)
        return 1


@dataclass(frozen=True)
class Shape:
    """One deployment of a graph."""

    name: str
    replicas: int
    slots: int
    queue: int
    buffer: int

    def __str__(self) -> str:
        queue = "" if self.queue < 0 else f", queue {self.queue}"
        return f"{self.name} ({self.replicas} x {self.slots} slots{queue}, buffer {self.buffer})"


def draw_graph(chance: random.Random) -> list[list[Shape]]:
    """Draw a graph of random width, slots, replicas and queues, layer by layer from the leaves."""
    return [
        [
            Shape(
                name=f"layer {depth} node {number}",
                replicas=chance.randint(1, 3),
                slots=chance.randint(1, 6),
                queue=chance.choice([-1, 20, 100]),
                buffer=chance.choice([1, 4, 64]),
            )
            for number in range(1 if depth == LAYERS - 1 else chance.randint(1, 3))
        ]
        for depth in range(LAYERS)
    ]


def bind_graph(graph: list[list[Shape]], account: Account) -> Any:
    """Bind a graph; each deployment has the whole layer below it."""
    below: list[Any] = []
    for layer in graph:
        below = [
            serve.deployment(Node)
            .options(
                name=shape.name,
                num_replicas=shape.replicas,
                max_ongoing_requests=shape.slots,
                max_queued_requests=shape.queue,
                stream_buffer_size=shape.buffer,
                graceful_shutdown_timeout_s=10,
            )
            .bind(account, shape.slots, *below)
            for shape in layer
        ]
    return below[0]


@dataclass(frozen=True)
class Trouble:
    """What happens to the app while it is called."""

    at_s: float
    is_deletion: bool
    """Whether the app is deleted before it is deployed anew."""
    graph: list[list[Shape]]

    def __str__(self) -> str:
        verb = "delete, then deploy" if self.is_deletion else "redeploy"
        return f"at {self.at_s:6.2f} s: {verb} {describe(self.graph)}"


def draw_troubles(chance: random.Random, seconds: float) -> list[Trouble]:
    troubles: list[Trouble] = []
    at_s = chance.uniform(0.2, 1.5)
    while at_s < seconds:
        troubles.append(Trouble(at_s, chance.random() < 0.2, draw_graph(chance)))
        at_s += chance.uniform(0.2, 1.5)
    return troubles


def describe(graph: list[list[Shape]]) -> str:
    return " > ".join(" | ".join(map(str, layer)) for layer in reversed(graph))


# ---- who calls


class Client:
    """Keeps more calls under way than can be served, and does to them what users do."""

    def __init__(self, account: Account, handle: serve.DeploymentHandle[Any], seed: str, end: float) -> None:
        self.account = account
        self.handle = handle
        self.chance = random.Random(seed)
        self.end = end

    def run(self) -> None:
        window: deque[Any] = deque()
        while time.monotonic() < self.end:
            answer = self._send(list(window))
            window.append(answer)
            if self.chance.random() < 0.05:
                self._cancel(self.chance.choice(window))
            # A stream is read before anything else is waited for: its producer has a slot until somebody reads, and if
            # all slots are held like that by those who wait for another call, nobody is left to go on.
            if not isinstance(answer, serve.DeploymentResponse):
                self._take(window.pop())
            elif len(window) > WINDOW:
                self._take(window.popleft())
        while window:
            self._take(window.popleft())

    async def run_async(self) -> None:
        await asyncio.gather(*[self._visit() for _ in range(WINDOW)])

    async def _visit(self) -> None:
        while time.monotonic() < self.end:
            answer = self._send([])
            patience = HANG_S if self.chance.random() < 0.9 else 0.005
            limit = asyncio.timeout(patience)
            try:
                async with limit:
                    if isinstance(answer, serve.DeploymentResponse):
                        await answer
                    else:
                        async for item in answer:
                            if item == 5 and self.chance.random() < 0.3:
                                break
                        await answer.aclose()
            except Exception:  # noqa: BLE001 - it is in the account
                if limit.expired() and patience == HANG_S:
                    self.account.surprise(f"no answer within {HANG_S:g} s: {answer!r}")
                await asyncio.sleep(0.005)

    def _send(self, earlier: list[Any]) -> Any:
        plan = make_plan(self.chance, LAYERS - 1)
        is_hurried = self.chance.random() < 0.1
        if is_hurried:
            self.account.fault("deadline")
        handle = self.handle.options(
            timeout_s=self.chance.choice([0.001, 0.01, 0.05]) if is_hurried else None
        )
        is_async = self.chance.random() < 0.5
        if self.chance.random() < 0.1:
            stream: Any = handle.options(stream=True)
            method = stream.items_async if is_async else stream.items
            return self.account.send("streams", lambda: method.remote(plan))
        call = handle.work_async if is_async else handle.work
        responses = [answer for answer in earlier if isinstance(answer, serve.DeploymentResponse)]
        inputs = self.chance.sample(responses, 1) if responses and self.chance.random() < 0.1 else []
        return self.account.send("calls", lambda: call.remote(plan, *inputs))

    def _cancel(self, answer: Any) -> None:
        self.account.fault("cancellation")
        answer.cancel()

    def _take(self, answer: Any) -> None:
        """Wait for one answer; a stream is read, in part, or dropped."""
        try:
            if isinstance(answer, serve.DeploymentResponse):
                answer.result(timeout_s=HANG_S)
            elif self.chance.random() < 0.8:
                wanted = self.chance.choice([1, 5, 100])
                for count, _ in enumerate(answer, 1):
                    if count == wanted:
                        self.account.fault("stream left")
                        answer.close()
        except (serve.BackPressureError, serve.DeploymentUnavailableError):
            time.sleep(0.002)
        except (serve.RequestError, UserError):
            return
        except TimeoutError:
            self.account.surprise(f"no answer within {HANG_S:g} s: {answer!r}")


def make_trouble(account: Account, troubles: list[Trouble], begin: float, end: float) -> None:
    """Redeploy, and now and then delete, what is being called; what is late by then is done at once."""
    for trouble in troubles:
        time.sleep(max(0.0, begin + trouble.at_s - time.monotonic()))
        if time.monotonic() >= end:
            return
        if trouble.is_deletion:
            account.fault("deletion")
            serve.delete(APP)
        account.fault("redeploy")
        serve.run(bind_graph(trouble.graph, account), name=APP)


# ---- the run


def soak(seconds: float, seed: int) -> tuple[Account, list[str]]:
    """Run for so long; return the account, and what should not be there any more."""
    account, chance = Account(), random.Random(seed)
    graph, troubles = draw_graph(chance), draw_troubles(chance, seconds)
    print(f"seed {seed}, {seconds:g} s, {CLIENTS + 1} clients\nat   0.00 s: deploy {describe(graph)}")
    for trouble in troubles[:SHOWN]:
        print(trouble)
    if len(troubles) > SHOWN:
        print(f"... and {len(troubles) - SHOWN} more of this kind")
    before = set(threading.enumerate())
    begin = time.monotonic()
    end = begin + seconds
    handle = serve.run(bind_graph(graph, account), name=APP)
    clients = [Client(account, handle, f"{seed} {number}", end) for number in range(CLIENTS + 1)]
    deeds: list[Callable[[], object]] = [client.run for client in clients[1:]]
    deeds.append(lambda: asyncio.run(clients[0].run_async()))
    deeds.append(lambda: make_trouble(account, troubles, begin, end))
    threads = [threading.Thread(target=_reporting, args=(account, deed), daemon=True) for deed in deeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 2 * HANG_S)
    left = [f"client {thread.name} hangs" for thread in threads if thread.is_alive()]
    left += still_taken()
    serve.shutdown()
    for thread in set(threading.enumerate()) - before - set(threads):
        if not thread.name.startswith("threadserve "):
            thread.join(5.0)
            left += [f"thread {thread.name}"] if thread.is_alive() else []
    if account.begun != account.ended:
        left.append(f"{account.begun - account.ended} bodies that have a slot")
    return account, left


def still_taken() -> list[str]:
    """Name what is queued or has a slot, a while after the last answer: bodies that were cancelled may still run."""
    names = list(serve.status().applications[APP].deployments)
    routers: list[Any] = [serve.get_deployment_handle(name, APP)._router for name in names]
    end = time.monotonic() + 10.0
    while (taken := [str(router) for router in routers if _load(router)]) and time.monotonic() < end:
        time.sleep(0.01)
    return taken


def _load(router: Any) -> int:
    now = router.statistics()
    return int(now.waiting + now.queued + now.ongoing)


def _reporting(account: Account, deed: Callable[[], object]) -> None:
    try:
        deed()
    except BaseException as error:  # noqa: BLE001 - it would be lost with its thread
        account.surprise(f"{type(error).__name__}: {error}")


def report(account: Account, left: list[str]) -> bool:
    """Print the account; False if it does not add up."""
    sources = ["calls", "streams", "by bodies"]
    kinds = ["value", "user error", *KINDS.values(), "surprise"]
    rows: list[list[object]] = [["sent", *[account.sent[source] for source in sources]]]
    rows.extend([kind, *[account.answered[source, kind] for source in sources]] for kind in kinds)
    answered = [sum(account.answered[source, kind] for kind in kinds) for source in sources]
    missing = [account.sent[source] - count for source, count in zip(sources, answered, strict=True)]
    rows.extend((["answered", *answered], ["unaccounted", *missing]))
    table(QUESTION, ["", *sources], rows)
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(account.faults.items()))
    print(f"\nfaults: {faults}\nbodies: {account.begun} begun, {account.ended} ended")
    wrong = {
        "answered twice": account.twice,
        "body begun twice": account.reruns,
        "limit exceeded": account.overruns,
        "unaccounted": sum(map(abs, missing)),
        "surprises": len(account.surprises),
        "left behind": len(left),
    }
    print("wrong: " + ", ".join(f"{count} {what}" for what, count in wrong.items()))
    for line in [*left, *account.surprises[:20]]:
        print(f"  {line}")
    return not any(wrong.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--seconds", type=float, default=MINUTES * 60, help="how long (default: %(default)g)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of graphs, plans and faults (default: %(default)d)"
    )
    parser.add_argument("--smoke", action="store_true", help=f"run for {SMOKE_S:g} s")
    options = parser.parse_args()
    logging.getLogger("threadserve").setLevel(logging.CRITICAL)  # it says a lot about replicas that die
    account, left = soak(SMOKE_S if options.smoke else options.seconds, options.seed)
    return 0 if report(account, left) else 1


if __name__ == "__main__":
    sys.exit(main())
