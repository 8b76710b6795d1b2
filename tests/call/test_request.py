"""One call from WAITING to ANSWERED: every event in every state, and the tree of calls that it stands in."""

from __future__ import annotations

import concurrent.futures
import gc
import math
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.doubles import StillReplica, call_under, deployed, let_the_dead_go, request_behind, still_router
from threadserve.call.request import ANSWERED, Request, State, current_request
from threadserve.concurrency.outcome import Error, Outcome, Value, Withdrawn
from threadserve.concurrency.real import RealKernel
from threadserve.errors import (
    Cancelled,
    DeploymentUnavailableError,
    RequestCancelledError,
    RequestTimeoutError,
)
from threadserve.handle import DeploymentHandle
from threadserve.testing.choices import Replay
from threadserve.testing.scheduler import SimulatedKernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from threadserve.call.response import DeploymentResponse
    from threadserve.concurrency.waiter import Subscriber
    from threadserve.router.router import Router


# ---- the table

# What there is after an event: the answer, and on which of the router's books the request stands
# (W waiting for its arguments, Q queued, S holding a slot, - none).
TABLE = """
              admit        claim        answer      cancel      expire      withdraw    end         close
 waiting      nothing W->Q nothing W    other -     cancelled - expired -   withdrawn - .           unavailable -
 queued       nothing Q    nothing Q->S other -     cancelled - expired -   withdrawn - .           unavailable -
 running      nothing S    nothing S    other S     cancelled S expired S   nothing S   value -     nothing S
 told_to_stop cancelled S  cancelled S  cancelled S cancelled S cancelled S cancelled S cancelled - cancelled S
 over         value -      value -      value -     value -     value -     value -     .           value -
 never_begun  cancelled -  cancelled -  cancelled - cancelled - cancelled - cancelled - .           cancelled -
"""


class Cell(NamedTuple):
    state: str
    event: str
    answer: str
    books: str

    def __str__(self) -> str:
        return f"{self.state}-{self.event}"


def cells() -> list[Cell]:
    header, *rows = [line.split() for line in TABLE.strip().splitlines()]
    found = []
    for state, *words in rows:
        for event in header:
            answer = words.pop(0)
            if answer != ".":
                found.append(Cell(state, event, answer, words.pop(0)[-1]))
        assert not words
    return found


class Told:
    """Somebody who waits for the answer."""

    def __init__(self) -> None:
        self.times = 0

    def tell(self) -> tuple[Subscriber, ...]:
        self.times += 1
        return ()


class World:
    """A request in a router whose only replica, once it is seated, does what the test says."""

    def __init__(self) -> None:
        self.router, self.replica, self.seat = still_router(RealKernel())
        self.handle = DeploymentHandle[Any](self.router)
        self.input = concurrent.futures.Future[int]()
        self.told = Told()

    def in_state(self, state: str) -> Request:
        """Bring a request into `state`, in the way in which the runtime does."""
        if state in ("running", "told_to_stop", "over"):
            self.router.replace((), (self.seat,))
        argument: Any = self.input if state == "waiting" else 1
        request = request_behind(self.handle.remote(argument))
        request.subscribe(self.told)
        if state == "over":
            self.replica.end(request, Value("value"))
        if state in ("told_to_stop", "never_begun"):
            request.cancel()
        return request

    def happen(self, event: str, request: Request) -> bool | None:
        """Do what the event is; return what it says of itself, where it says anything."""
        match event:
            case "admit" if request.state is State.WAITING:
                self.input.set_result(1)
            case "admit":
                assert self.router.admit(request) == ()
            case "claim" if not self.seat.is_open:
                self.router.replace((), (self.seat,))
            case "claim":
                other = request_behind(self.handle.remote())  # has the router look for somebody to run
                other.cancel()
                self.finish(other)
            case "answer":
                return request.answer(Value("other"))
            case "cancel":
                request.cancel()
            case "expire":
                request.expire()
            case "withdraw":
                return request.withdraw()
            case "end":
                self.replica.end(request, Value("value"))
            case "close":
                self.router.close("it was deleted", self.router._opening)
            case _:
                raise AssertionError(event)
        return None

    def finish(self, request: Request) -> None:
        if request in self.replica.begun:
            self.replica.end(request, Value("late"))

    def books(self, request: Request) -> str:
        now = self.router.statistics()
        letters = "W" * now.waiting + "Q" * now.queued + "S" * now.ongoing
        assert (request in self.replica.begun) == (letters == "S")
        return letters or "-"


def kind_of(outcome: Outcome | None) -> str:
    match outcome:
        case None:
            return "nothing"
        case Withdrawn():
            return "withdrawn"
        case Value(value=value):
            return str(value)
        case Error(exception=RequestCancelledError()):
            return "cancelled"
        case Error(exception=RequestTimeoutError()):
            return "expired"
        case Error(exception=DeploymentUnavailableError()):
            return "unavailable"
    raise AssertionError(outcome)


@pytest.mark.parametrize("cell", cells(), ids=str)
class TestEveryEventInEveryState:
    def test_leads_to_the_answer_and_the_books_of_the_table(self, cell: Cell) -> None:
        world = World()
        request = world.in_state(cell.state)

        world.happen(cell.event, request)

        assert kind_of(request.outcome) == cell.answer
        assert (request.state is ANSWERED) == (cell.answer != "nothing")
        assert world.books(request) == cell.books

    def test_brings_at_most_one_answer_and_tells_it_once(self, cell: Cell) -> None:
        world = World()
        request = world.in_state(cell.state)

        verdict = world.happen(cell.event, request)
        answered = request.outcome
        was_already_answered = cell.state in ("told_to_stop", "over", "never_begun")

        assert world.told.times == (0 if cell.answer == "nothing" else 1)
        if cell.event in ("answer", "withdraw"):
            assert verdict is (not was_already_answered and cell.answer != "nothing")
        if answered is not None:
            assert not request.answer(Value("too late"))
            assert request.withdraw() is (cell.answer == "withdrawn")
            request.cancel()
            request.expire()
            world.router.close("it was deleted", world.router._opening)
            world.finish(request)
            assert request.outcome is answered
            assert world.told.times == 1

    def test_leaves_empty_books_in_the_end(self, cell: Cell) -> None:
        world = World()
        request = world.in_state(cell.state)
        world.happen(cell.event, request)

        request.cancel()
        world.finish(request)

        assert world.books(request) == "-"
        assert request.is_over
        assert (request.args, request.kwargs, request.context) == (None, None, None)


STATES = ["waiting", "queued", "running", "told_to_stop", "over", "never_begun"]
UNANSWERED = ["waiting", "queued", "running"]


@pytest.mark.parametrize("state", STATES)
class TestWhoeverSubscribes:
    def test_is_accepted_only_while_there_is_no_answer(self, state: str) -> None:
        world, late = World(), Told()
        request = world.in_state(state)

        assert request.subscribe(late) is (state in UNANSWERED)
        request.cancel()
        world.finish(request)

        assert late.times == (1 if state in UNANSWERED else 0)

    def test_and_gives_up_is_never_told(self, state: str) -> None:
        world, late = World(), Told()
        request = world.in_state(state)

        request.subscribe(late)
        request.forget(late)
        request.forget(late)
        request.cancel()
        world.finish(request)

        assert late.times == 0


@pytest.mark.parametrize("state", ["running", "told_to_stop", "over"])
class TestABody:
    def test_that_says_how_to_stop_it_is_told_if_it_should_have_stopped_already(self, state: str) -> None:
        world = World()
        request = world.in_state(state)
        stopped: list[str] = []

        assert request.attach(lambda: stopped.append("stopped")) is (state == "running")
        request.cancel()
        request.cancel()

        assert stopped == (["stopped"] if state == "running" else [])

    def test_that_has_returned_is_not_stopped_any_more(self, state: str) -> None:
        world = World()
        request = world.in_state(state)
        stopped: list[str] = []

        request.attach(lambda: stopped.append("stopped"))
        world.finish(request)
        request.cancel()

        assert stopped == []

    def test_has_children_only_while_it_is_not_answered(self, state: str) -> None:
        world = World()
        parent = world.in_state(state)

        child = request_behind(call_under(parent, world.handle.remote))

        assert (child._parent is parent) == (state == "running")
        assert child.state is (
            ANSWERED if state == "told_to_stop" else State.RUNNING if state == "over" else State.QUEUED
        )
        if state == "told_to_stop":
            assert kind_of(child.outcome) == "cancelled"
            assert child not in world.replica.begun


# ---- the tree of calls


class Tree:
    """Calls whose bodies make calls; nothing runs, everything is queued, and the root has the slot."""

    def __init__(self, kernel: Any = None) -> None:
        self.kernel = kernel or RealKernel()
        self.router, self.replica, seat = still_router(self.kernel)
        self.router.replace((), (seat,))
        self.handle = DeploymentHandle[Any](self.router)
        self.root = request_behind(self.handle.remote())

    def child_of(self, parent: Request, **options: Any) -> Request:
        handle = self.handle.options(**options) if options else self.handle
        return request_behind(call_under(parent, handle.remote))


class TestCancel:
    def test_goes_down_to_every_descendant(self) -> None:
        tree = Tree()
        children = [tree.child_of(tree.root) for _ in range(3)]
        grandchildren = [tree.child_of(child) for child in children for _ in range(3)]

        tree.root.cancel()

        assert {kind_of(request.outcome) for request in [*children, *grandchildren]} == {"cancelled"}
        assert tree.router.statistics().queued == 0

    def test_does_not_go_up_nor_sideways(self) -> None:
        tree = Tree()
        child, sibling = tree.child_of(tree.root), tree.child_of(tree.root)
        grandchild = tree.child_of(child)

        child.cancel()

        assert kind_of(grandchild.outcome) == "cancelled"
        assert tree.root.outcome is None
        assert sibling.outcome is None
        assert set(tree.root._children or ()) == {sibling}

    @pytest.mark.slow
    def test_reaches_the_bottom_of_a_tree_of_10_000_floors(self) -> None:
        tree = Tree()
        floor = tree.root
        floors = [floor := tree.child_of(floor) for _ in range(10_000)]

        middle = weakref.ref(floors[5_000])
        tree.root.cancel()

        assert {kind_of(request.outcome) for request in floors} == {"cancelled"}
        del floor, floors
        assert middle() is None

    def test_of_a_wide_tree_leaves_nothing_in_the_queue(self) -> None:
        tree = Tree()
        for _ in range(1000):
            tree.child_of(tree.root)

        tree.root.cancel()

        assert tree.router.statistics().queued == 0
        assert len(tree.router._queue) < 200  # the dead were swept out

    def test_of_a_call_that_is_over_changes_nothing_but_what_cancelled_says(self) -> None:
        tree = Tree()
        tree.replica.end(tree.root, Value(7))

        tree.root.cancel()

        assert kind_of(tree.root.outcome) == "7"
        assert tree.root.was_cancelled


class TestAFinishedParent:
    def test_is_nobodys_parent(self) -> None:
        tree = Tree()
        made_before = tree.child_of(tree.root)

        tree.replica.end(tree.root, Value(1))
        made_after = tree.child_of(tree.root)
        tree.root.cancel()

        assert made_before.outcome is None
        assert made_after.outcome is None
        assert made_after._parent is None
        assert made_after.request_id == tree.root.request_id

    def test_gives_its_deadline_to_no_later_call(self) -> None:
        kernel = SimulatedKernel()

        def main() -> None:
            tree = Tree(kernel)
            parent = tree.child_of(tree.root, timeout_s=5)
            tree.replica.end(tree.root, Value(1))
            tree.replica.end(parent, Value(1))

            assert tree.child_of(parent).deadline == math.inf

        kernel.run(main)

    def test_keeps_only_children_that_are_not_answered(self) -> None:
        tree = Tree()
        children = [tree.child_of(tree.root) for _ in range(10)]

        for child in children[1:]:
            child.cancel()

        assert list(tree.root._children or ()) == [children[0]]

    def test_is_not_kept_alive_by_its_children(self) -> None:
        tree = Tree()
        parent = tree.child_of(tree.root)
        child = tree.child_of(parent)
        gone = weakref.ref(parent)

        tree.replica.end(tree.root, Value(1))
        tree.replica.end(parent, Value(1))
        tree.replica.end(child, Value(1))
        del parent
        gc.collect()

        assert gone() is None


class TestADeadline:
    def test_expires_the_request_on_time_wherever_it_is(self) -> None:
        for state in UNANSWERED:
            kernel = SimulatedKernel()

            def main(kernel: SimulatedKernel = kernel, state: str = state) -> None:
                router, _, seat = still_router(kernel)
                if state == "running":
                    router.replace((), (seat,))
                argument: Any = concurrent.futures.Future[int]() if state == "waiting" else 1
                response = DeploymentHandle[Any](router).options(timeout_s=5).remote(argument)

                with pytest.raises(RequestTimeoutError, match=r"app/D.* after 5 s"):
                    response.result()
                assert kernel.now() == 5

            kernel.run(main)

    def test_is_inherited_with_what_is_left(self) -> None:
        kernel = SimulatedKernel()

        def main() -> None:
            tree = Tree(kernel)
            parent = tree.child_of(tree.root, timeout_s=5)
            kernel.waiter().wait(2)

            assert tree.child_of(parent).deadline == 5
            assert tree.child_of(parent, timeout_s=1).deadline == 3
            assert tree.child_of(parent, timeout_s=60).deadline == 5

        kernel.run(main)

    def test_goes_down_as_what_it_is(self) -> None:
        kernel = SimulatedKernel()

        def main() -> None:
            tree = Tree(kernel)
            parent = tree.child_of(tree.root, timeout_s=5)
            grandchild = tree.child_of(tree.child_of(parent))

            kernel.waiter().wait(6)

            assert kind_of(parent.outcome) == "expired"
            assert kind_of(grandchild.outcome) == "expired"

        kernel.run(main)

    def test_is_lifted_by_an_infinite_timeout_at_any_depth(self) -> None:
        kernel = SimulatedKernel()

        def main() -> None:
            tree = Tree(kernel)
            parent = tree.child_of(tree.root, timeout_s=5)
            detached = tree.child_of(parent, timeout_s=math.inf)
            bound = tree.child_of(parent)
            detached_below = tree.child_of(bound, timeout_s=math.inf)
            below_that = tree.child_of(detached_below)

            kernel.waiter().wait(6)

            assert kind_of(bound.outcome) == "expired"
            for request in (detached, detached_below, below_that):
                assert request.deadline == math.inf
                assert request.outcome is None

        kernel.run(main)

    def test_that_was_lifted_does_not_keep_a_cancel_away(self) -> None:
        tree = Tree()
        detached = tree.child_of(tree.root, timeout_s=math.inf)

        tree.root.cancel()

        assert kind_of(detached.outcome) == "cancelled"

    def test_holds_for_a_child_that_outlives_its_parent(self) -> None:
        kernel = SimulatedKernel()

        def main() -> None:
            tree = Tree(kernel)
            parent = tree.child_of(tree.root, timeout_s=5)
            child = tree.child_of(parent)
            tree.replica.end(tree.root, Value(1))
            tree.replica.end(parent, Value(1))

            kernel.waiter().wait(6)

            assert kind_of(parent.outcome) == "1"
            assert kind_of(child.outcome) == "expired"
            assert child in tree.replica.begun

        kernel.run(main)

    def test_leaves_no_alarm_behind_when_the_answer_comes_first(self) -> None:
        kernel = SimulatedKernel()

        def main() -> None:
            tree = Tree(kernel)
            request = tree.child_of(tree.root, timeout_s=5)
            tree.root.cancel()

            assert request._timer is None
            kernel.waiter().wait(6)
            assert kind_of(request.outcome) == "cancelled"

        kernel.run(main)


class TestABodyThatMakesCalls:
    @pytest.mark.parametrize(
        ("inline", "moment"), [(False, 3), (True, 10)], ids=["on other threads", "on its own"]
    )
    def test_learns_of_its_cancellation_at_its_wait(
        self, inline: bool, moment: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()  # whatever THREADSERVE_INLINE says: here both ways are told
        kernel = SimulatedKernel(schedule=Replay().schedule(0))  # where the waiter comes first
        seen: list[str] = []

        class Child:
            def __call__(self) -> None:
                kernel.waiter().wait(10)

        class Parent:
            def __init__(self, child: DeploymentHandle[Any]) -> None:
                self.child = child

            def __call__(self) -> None:
                try:
                    self.child.remote().result()
                except Cancelled:
                    seen.append(f"cancelled at {kernel.now():g}")
                    raise

        def main() -> None:
            with (
                deployed(kernel, Child, name="Child", inline=inline) as child,
                deployed(kernel, Parent, child.handle, name="Parent") as parent,
            ):
                response = parent.handle.remote()
                kernel.waiter().wait(3)
                response.cancel()
                with pytest.raises(RequestCancelledError):
                    response.result()
                kernel.waiter().wait(20)

        kernel.run(main)
        assert seen == [f"cancelled at {moment}"]

    @pytest.mark.parametrize("ask", ["result", "exception", "stream"])
    def test_meets_a_checkpoint_even_where_the_answer_is_there_already(self, ask: str) -> None:
        kernel = SimulatedKernel()
        seen: list[object] = []

        class Child:
            def __call__(self) -> int:
                return 1

            def items(self) -> Any:
                yield from range(10)

        class Parent:
            def __init__(self, child: DeploymentHandle[Any]) -> None:
                self.child = child

            def __call__(self) -> None:
                value = self.child.remote()
                items = self.child.options(stream=True).items.remote()
                value.result()
                next(items)
                kernel.waiter().wait(10)
                steps: dict[str, Callable[[], object]] = {
                    "result": value.result,
                    "exception": value.exception,
                    "stream": lambda: next(items),
                }
                try:
                    seen.append(steps[ask]())
                except BaseException as error:
                    seen.append(type(error))
                    raise

        def main() -> None:
            with (
                deployed(kernel, Child, name="Child") as child,
                deployed(kernel, Parent, child.handle, name="Parent") as parent,
            ):
                response = parent.handle.remote()
                kernel.waiter().wait(3)
                response.cancel()
                kernel.waiter().wait(20)

        kernel.run(main)
        assert seen == [Cancelled]

    def test_cannot_make_calls_that_begin_once_it_is_cancelled(self) -> None:
        kernel = SimulatedKernel()
        calls: list[str] = []

        class Child:
            def __call__(self) -> None:
                calls.append("child")

        class Parent:
            def __init__(self, child: DeploymentHandle[Any]) -> None:
                self.child = child

            def __call__(self) -> None:
                kernel.waiter().wait(10)  # not a wait of ours: no checkpoint
                late = self.child.remote()
                calls.append(kind_of(request_behind(late).outcome))

        def main() -> None:
            with (
                deployed(kernel, Child, name="Child") as child,
                deployed(kernel, Parent, child.handle, name="Parent") as parent,
            ):
                response = parent.handle.remote()
                kernel.waiter().wait(3)
                response.cancel()
                kernel.waiter().wait(20)

        kernel.run(main)
        assert calls == ["cancelled"]


def test_arguments_are_let_go_when_the_body_begins() -> None:
    class Argument:
        pass

    kernel = SimulatedKernel()
    seen: list[object] = []

    class Body:
        def plain(self, argument: object) -> None:
            request = current_request()
            assert request is not None
            seen.append((request.args, request.kwargs, request.context))

        async def coroutine(self, argument: object) -> None:
            gone = weakref.ref(argument)
            del argument
            let_the_dead_go()
            seen.append(gone())

    def main() -> None:
        with deployed(kernel, Body) as body:
            body.handle.plain.remote(Argument()).result()
            body.handle.coroutine.remote(argument=Argument()).result()

    kernel.run(main)
    assert seen == [(None, None, None), None]


@pytest.mark.parametrize("why", ["no such method", "cancelled between claim and start"])
def test_arguments_are_let_go_where_the_body_never_begins(why: str) -> None:
    class Argument:
        pass

    kernel = SimulatedKernel()

    class Body:
        def __call__(self, argument: object) -> None:
            raise AssertionError("it was cancelled")

    def main() -> None:
        with deployed(kernel, Body) as body:
            argument = Argument()
            gone = weakref.ref(argument)
            if why == "no such method":
                response = body.handle.options(method_name="absent").remote(argument)
                response.exception()
            else:
                response = cancelled_when_claimed(body.router, body.handle, argument)
            del argument
            kernel.waiter().wait(1)
            assert gone() is None
            del response

    kernel.run(main)


def cancelled_when_claimed(
    router: Router, handle: DeploymentHandle[Any], *args: object
) -> DeploymentResponse[Any]:
    """Make a call that is cancelled at the moment at which a worker has claimed it."""
    seat = next(iter(router._seats))
    run: Callable[[Request], Outcome | None] = seat.replica.run

    def cancel_and_run(request: Request) -> Outcome | None:
        request.cancel()
        return run(request)

    seat.replica.run = cancel_and_run
    response = handle.remote(*args)
    response.exception()
    return response


def test_a_body_that_was_cancelled_before_it_began_never_begins() -> None:
    kernel = SimulatedKernel()
    begun: list[str] = []

    class Body:
        def __call__(self) -> None:
            begun.append("begun")

    def main() -> None:
        with deployed(kernel, Body) as body:
            response = cancelled_when_claimed(body.router, body.handle)
            assert isinstance(response.exception(), RequestCancelledError)
            kernel.waiter().wait(1)

    kernel.run(main)
    assert begun == []


def test_a_still_replica_is_a_fair_stand_in() -> None:
    """What the table rests on: a posted request holds a slot until the replica says that it has ended."""
    world = World()
    request = world.in_state("running")
    assert isinstance(world.replica, StillReplica)

    assert world.router.statistics().ongoing == 1
    world.replica.end(request, Value("value"))

    assert world.router.statistics().ongoing == 0
