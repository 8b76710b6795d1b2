"""Anything at once: random programs over two deployments, one of which calls the other, on the simulator.

Callers call, chain, stream, wait, give up, cancel and withdraw; bodies call on; deadlines pass; both deployments
are replaced meanwhile. Nobody knows how it should come out, but for what must always hold.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.doubles import (
    Answers,
    assert_nothing_left,
    check_invariants,
    deployed,
    let_it_rest,
    request_behind,
)
from threadserve.errors import Cancelled, RequestError
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from threadserve.handle import DeploymentHandle

SEEDS = int(os.environ.get("THREADSERVE_SEEDS", "1000"))

METHODS = ["plain", "coroutine", "calling", "awaiting", "deferring", "leaving"]


class Mine(Exception):
    """What bodies raise now and then."""


class Program:
    """What one seed does."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self.kernel = kernel
        self.chance = kernel.random
        self.answers = Answers()
        self.ongoing: dict[str, int] = {}
        self.overdrawn: list[str] = []
        self.ran: dict[int, int] = {}
        self.calls = 0

    def target(self, limit: int) -> Any:
        """Make a class whose instances note how many calls they run at once."""
        program, kernel, chance = self, self.kernel, self.chance

        class Body:
            def __init__(self, child: DeploymentHandle[Any] | None = None) -> None:
                self.child = child
                self.inside = 0

            def enter(self, call: int) -> None:
                program.ran[call] = program.ran.get(call, 0) + 1
                self.inside += 1
                if self.inside > limit:
                    program.overdrawn.append(f"{self.inside} of {limit}")

            def leave(self, value: Any = None) -> Any:
                self.inside -= 1
                if chance.random() < 0.1:
                    raise Mine
                return value

            def plain(self, call: int, *inputs: Any) -> Any:
                self.enter(call)
                kernel.waiter().wait(chance.choice([0, 0, 1, 3]))
                return self.leave(call)

            async def coroutine(self, call: int, *inputs: Any) -> Any:
                self.enter(call)
                try:
                    await asyncio.sleep(chance.choice([0, 0, 1, 3]))
                finally:
                    self.inside -= 1
                return call

            def calling(self, call: int, *inputs: Any) -> Any:
                self.enter(call)
                try:
                    if self.child is not None:
                        children = [program.call(self.child) for _ in range(chance.randrange(3))]
                        for child in children[:1]:
                            child.result()
                finally:
                    self.inside -= 1
                return call

            async def awaiting(self, call: int, *inputs: Any) -> Any:
                self.enter(call)
                try:
                    if self.child is not None:
                        await asyncio.gather(
                            *[_await(program.call(self.child)) for _ in range(chance.randrange(3))]
                        )
                finally:
                    self.inside -= 1
                return call

            def deferring(self, call: int, *inputs: Any) -> Any:
                return self.coroutine(call, *inputs)

            def leaving(self, call: int, *inputs: Any) -> Any:
                """Return at once and leave a child to itself."""
                self.enter(call)
                if self.child is not None:
                    program.call(self.child)
                return self.leave(call)

            def items(self, call: int) -> Iterator[int]:
                self.enter(call)
                try:
                    for item in range(5):
                        kernel.waiter().wait(chance.choice([0, 1]))
                        yield item
                finally:
                    self.inside -= 1

            async def async_items(self, call: int) -> AsyncIterator[int]:
                self.enter(call)
                try:
                    for item in range(5):
                        await asyncio.sleep(chance.choice([0, 1]))
                        yield item
                finally:
                    self.inside -= 1

        return Body

    def call(self, handle: DeploymentHandle[Any], *inputs: Any) -> Any:
        """Make a call of any kind, with any timeout."""
        self.calls += 1
        timeout = self.chance.choice([None, None, None, 1.0, 2.0])
        bound = handle.options(method_name=self.chance.choice(METHODS), timeout_s=timeout)
        return self.answers.watch(bound.remote(self.calls, *inputs))

    def stream(self, handle: DeploymentHandle[Any]) -> None:
        """Read a stream, or some of it."""
        self.calls += 1
        name = self.chance.choice(["items", "async_items"])
        stream = handle.options(stream=True, method_name=name).remote(self.calls)
        self.answers.watch(stream)  # type: ignore[arg-type]
        with suppress(RequestError):
            for item in stream:
                if item == self.chance.randrange(8):
                    leave: Any = self.chance.choice([stream.close, stream.cancel, str])
                    leave()
                    break

    def caller(self, handle: DeploymentHandle[Any]) -> None:
        """Go on calling for a while."""
        responses: list[Any] = []
        for _ in range(self.chance.randrange(1, 5)):
            match self.chance.randrange(6):
                case 0:
                    self.stream(handle)
                case 1 if responses:
                    responses.append(self.call(handle, *self.chance.sample(responses, 1)))
                case 2 if responses:
                    self.chance.choice(responses).cancel()
                case 3 if responses:
                    self.chance.choice(responses).future.cancel()
                case 4 if responses:
                    with suppress(TimeoutError, RequestError, Mine):
                        self.chance.choice(responses).result(timeout_s=self.chance.choice([0, 1]))
                case _:
                    responses.append(self.call(handle))
        for response in responses:
            with suppress(RequestError, Mine, Cancelled):
                response.result()
            future = response.future
            let_it_rest(self.kernel)
            assert future.done()


async def _await(response: Any) -> Any:
    return await response


def options_of(chance: Any) -> dict[str, Any]:
    return {
        "max_ongoing_requests": chance.choice([1, 2]),
        "num_replicas": chance.choice([1, 2]),
        "max_queued_requests": chance.choice([-1, -1, 3]),
        "stream_buffer_size": chance.choice([1, 4]),
    }


def anything(kernel: SimulatedKernel) -> None:
    program, chance = Program(kernel), kernel.random
    below, above = options_of(chance), options_of(chance)
    leaf, root = program.target(below["max_ongoing_requests"]), program.target(above["max_ongoing_requests"])
    with (
        deployed(kernel, leaf, name="Leaf", **below) as child,
        deployed(kernel, root, child.handle, name="Root", **above) as parent,
    ):
        handles = [child.handle, parent.handle]
        callers = [
            kernel.spawn(f"caller {number}", partial(program.caller, chance.choice(handles)))
            for number in range(chance.randrange(2, 5))
        ]
        if chance.random() < 0.3:
            child.replace_with(leaf, **below)
        if chance.random() < 0.3:
            parent.replace_with(root, child.handle, **above)
        for deployment in (child, parent):
            check_invariants(deployment.router)
        for caller in callers:
            caller.join()
        kernel.waiter().wait(1000)
        for deployment in (child, parent):
            check_invariants(deployment.router)
            assert_nothing_left(deployment.router)
    program.answers.assert_each_once()
    assert set(program.ran.values()) <= {1}
    assert program.overdrawn == []
    for request in program.answers.requests:
        assert not request._subscribers
        assert not request._children
        assert request.is_over
        assert (request.args, request.kwargs, request.context) == (None, None, None)


@pytest.mark.slow
def test_anything_at_once_leaves_everything_in_order() -> None:
    explore(anything, SEEDS // 4)


def test_request_behind_knows_both_kinds_of_answers() -> None:
    kernel = SimulatedKernel()

    def main() -> None:
        with deployed(kernel, Program(kernel).target(1)) as deployment:
            stream = deployment.handle.options(stream=True).items.remote(1)
            assert request_behind(stream).channel is not None
            assert list(stream) == [0, 1, 2, 3, 4]

    kernel.run(main)
