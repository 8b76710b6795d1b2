"""Workers that go on with others' stages: programs of chains over several deployments, which lend slots, die and are replaced.

Whatever the order, afterwards every worker that is counted rests and is a thread, and no other thread is one.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import Answers, Deployed, assert_nothing_left, check_invariants, deployed
from threadserve.call.response import DeploymentResponse
from threadserve.errors import Cancelled, RequestError
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import Iterator

SEEDS = int(os.environ.get("THREADSERVE_SEEDS", "1000"))

RAISED = (LookupError, RecursionError, MemoryError, SystemExit, Cancelled)
ARRIVED = (RequestError, LookupError, RecursionError, MemoryError, TimeoutError)
"""What of these comes out at a response."""


class Program:
    """What one seed does."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self.kernel = kernel
        self.chance = kernel.random
        self.answers = Answers()
        self.ran: dict[int, int] = {}
        self.numbers = itertools.count(1)
        self.deployments: list[tuple[Deployed, dict[str, Any]]] = []

    def target(self) -> Any:
        program, kernel, chance = self, self.kernel, self.chance

        def enter(call: int) -> None:
            program.ran[call] = program.ran.get(call, 0) + 1

        class Stage:
            def do(self, call: int, *inputs: Any) -> int:
                enter(call)
                program.pause(0, 0, 0, 1, 3, 20)
                if chance.random() < 0.2:
                    raise chance.choice(RAISED)
                return call

            async def ado(self, call: int, *inputs: Any) -> int:
                enter(call)
                await asyncio.sleep(chance.choice([0, 0, 1]))
                return call

            def defer(self, call: int, *inputs: Any) -> Any:
                return self.ado(call)

            def items(self, call: int, *inputs: Any) -> Iterator[int]:
                enter(call)
                for item in range(3):
                    kernel.waiter().wait(chance.choice([0, 1]))
                    yield item

        return Stage

    def options(self) -> dict[str, Any]:
        return {
            "max_ongoing_requests": self.chance.choice([1, 1, 2, 3]),
            "num_replicas": self.chance.choice([1, 1, 2]),
            "max_queued_requests": self.chance.choice([-1, -1, 4]),
            "inline": self.chance.random() < 0.85,
        }

    def pause(self, *seconds: float) -> None:
        if chosen := self.chance.choice(seconds):
            self.kernel.waiter().wait(chosen)

    def call(self, earlier: list[Any]) -> Any:
        """Call a stage of any deployment, of any kind, most of them with one earlier answer."""
        chance = self.chance
        inputs = chance.sample(earlier, min(len(earlier), chance.choice([0, 1, 1, 1, 2])))
        method = chance.choice(["do", "do", "do", "do", "ado", "defer", "items"])
        deployment, _ = chance.choice(self.deployments)
        handle: Any = deployment.handle
        bound = handle.options(
            method_name=method, stream=method == "items", timeout_s=chance.choice([None, None, None, 2.0])
        )
        return self.answers.watch(bound.remote(next(self.numbers), *inputs))

    def caller(self) -> None:
        """Go on calling for a while."""
        responses: list[Any] = []
        for _ in range(self.chance.randrange(2, 9)):
            match self.chance.randrange(6):
                case 0 if responses:
                    self.chance.choice(responses).cancel()
                case 1 if responses:
                    with suppress(*ARRIVED):
                        self.chance.choice(responses).result(timeout_s=self.chance.choice([None, 1]))
                case 2:
                    self.pause(0.5, 1, 3)
                case _:
                    answer = self.call(responses)
                    if isinstance(answer, DeploymentResponse):
                        responses.append(answer)
                    else:
                        with suppress(*ARRIVED):
                            list(answer)
        for response in responses:
            with suppress(*ARRIVED):
                response.result(timeout_s=1000)

    def meddler(self) -> None:
        """Replace deployments, and lend slots of theirs."""
        for _ in range(self.chance.randrange(4)):
            self.pause(0.5, 1, 2)
            deployment, options = self.chance.choice(self.deployments)
            seats = list(deployment.seats)
            if self.chance.random() < 0.3 or not seats:
                deployment.replace_with(self.target(), **options)
                continue
            seat, slots = self.chance.choice(seats), self.chance.choice([1, 2])
            deployment.router.resize(seat, slots)
            self.pause(0.5, 1)
            deployment.router.resize(seat, -slots)

    def run(self) -> None:
        with ExitStack() as stack:
            for name in "abcd"[: self.chance.randrange(2, 5)]:
                options = self.options()
                deployment = stack.enter_context(deployed(self.kernel, self.target(), name=name, **options))
                self.deployments.append((deployment, options))
            threads = [
                self.kernel.spawn(f"caller {number}", self.caller)
                for number in range(self.chance.randrange(1, 4))
            ]
            threads.append(self.kernel.spawn("meddler", self.meddler))
            for thread in threads:
                thread.join()
            self.kernel.waiter().wait(2000)
            for deployment, _ in self.deployments:
                check_invariants(deployment.router)
                assert_nothing_left(deployment.router)
                assert_workers_rest(deployment)


def assert_workers_rest(deployment: Deployed) -> None:
    """Assert that nobody is away, and that those who are counted are those who are there."""
    for seat in deployment.router._seats:
        there = [thread for thread in seat.replica._threads if thread.is_alive()]
        assert len(seat.idle) == seat.workers == len(there)
        assert not seat.replica._away


@pytest.mark.slow
def test_workers_are_counted_right_whatever_they_do_for_others() -> None:
    def race(kernel: SimulatedKernel) -> None:
        program = Program(kernel)
        program.run()
        program.answers.assert_each_once()
        assert set(program.ran.values()) <= {1}
        for request in program.answers.requests:
            assert not request._subscribers
            assert not request._children
            assert request.is_over
            assert (request.args, request.kwargs, request.context) == (None, None, None)

    explore(race, SEEDS // 4)
