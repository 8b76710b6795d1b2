"""The replicas of a deployment: how they are kept alive, and how they go. On the simulator, in virtual time.

Everything goes through the controller, as in life; each story tells its bodies what to do, see ``test_deadlock``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests import doubles
from tests.runtime.test_deadlock import Actor, Stage, nothing, play
from threadserve import futures
from threadserve.app.graph import build
from threadserve.errors import DeploymentUnavailableError, ReplicaDiedError, ReplicaStartError
from threadserve.replica.target import Target
from threadserve.runtime.status import ApplicationStatus, DeploymentStatus, DeploymentStatusTrigger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from threadserve.handle import DeploymentHandle
    from threadserve.runtime.status import ApplicationStatusOverview, DeploymentStatusOverview
    from threadserve.testing.scheduler import SimulatedKernel


class Life:
    """What happened to the replicas of a story, and how well they are."""

    def __init__(self) -> None:
        self.born: list[int] = []
        """The ranks of those that were made."""
        self.gone: list[int] = []
        """The ranks of those whose ``__del__`` ran."""
        self.ill = 0
        """So many of the first ones fail their checks."""
        self.prepare: Callable[[], object] = lambda: None
        """What constructors do first."""
        self.part: Callable[[], object] = lambda: None
        """What ``__del__`` does last."""


def rank() -> int:
    return serve.get_replica_context().rank.rank


def tag() -> str:
    return serve.get_replica_context().replica_tag


class Mortal(Actor):
    """An actor that is born, can be ill, and dies."""

    def __init__(self, life: Life) -> None:
        life.prepare()
        self.life = life
        self.rank = rank()
        life.born.append(self.rank)
        self.number = len(life.born)

    def check_health(self) -> None:
        if self.number <= self.life.ill:
            raise OSError("not well")

    def __del__(self) -> None:
        if not hasattr(self, "number"):  # not quite born: Python calls it all the same
            return
        self.life.gone.append(self.rank)
        self.life.part()


class AsyncMortal(Mortal):
    async def check_health(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0.01)
        super().check_health()

    async def __del__(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0.01)
        super().__del__()


MORTALS = [Mortal, AsyncMortal]


def deploy(stage: Stage, life: Life, kind: type[Mortal] = Mortal, **options: Any) -> DeploymentHandle[Any]:
    """Run an app ``one`` of one deployment ``one``, with one slot and checks every second."""
    chosen: dict[str, Any] = {
        "max_ongoing_requests": 1,
        "health_check_period_s": 1,
        "health_check_timeout_s": 1,
        "graceful_shutdown_timeout_s": 20,
        **options,
    }
    deployment: Any = serve.deployment(kind).options(name="one", **chosen)
    return stage.controller.deploy(build(deployment.bind(life), "one"))


def app_status(stage: Stage) -> ApplicationStatusOverview:
    return stage.controller.status().applications["one"]


def status(stage: Stage) -> DeploymentStatusOverview:
    return app_status(stage).deployments["one"]


def die(code: object = 1) -> None:
    raise SystemExit(code)


async def adie() -> None:
    die()


@contextlib.contextmanager
def no_thread(stage: Stage, *verbs: str) -> Iterator[None]:
    """Have the system refuse threads with such names for the length of the block."""
    spawn = stage.kernel.spawn

    def refuse(name: str, fn: Callable[[], object]) -> Any:
        if name.endswith(verbs):
            raise RuntimeError("can't start new thread")
        return spawn(name, fn)

    stage.kernel.spawn = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        stage.kernel.spawn = spawn  # type: ignore[method-assign]


# ---- health


class TestIllness:
    @pytest.mark.parametrize("kind", MORTALS)
    def test_replaces_the_replica_after_three_strikes_with_one_of_the_same_rank(
        self, kind: type[Mortal]
    ) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, kind)
            first = one.do.remote(tag).result()

            stage.sleep(10.5)
            assert one.do.remote(tag).result() == first
            life.ill = 1
            stage.sleep(2.2)
            assert one.do.remote(tag).result() == first
            stage.sleep(1.5)

            assert one.do.remote(tag).result() != first
            assert one.do.remote(rank).result() == 0
            assert life.born == [0, 0]
            assert life.gone == [0]
            assert app_status(stage).status is ApplicationStatus.RUNNING

        play(story)

    @pytest.mark.parametrize("kind", MORTALS)
    def test_of_one_replica_leaves_the_others_alone(self, kind: type[Mortal]) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            deploy(stage, life, kind, num_replicas=3)
            life.ill = 1
            stage.sleep(10)

            assert sorted(life.born[:3]) == [0, 1, 2]
            assert life.born[3:] == life.gone == life.born[:1]
            assert status(stage).replica_states == {"RUNNING": 3}

        play(story)

    def test_that_hangs_counts_as_well(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            is_hanging = [False]

            class Hanging(Mortal):
                def check_health(self) -> None:
                    if is_hanging[0] and life.born == [0]:
                        stage.kernel.waiter().wait()

            one = deploy(stage, life, Hanging)
            is_hanging[0] = True
            stage.sleep(10)

            assert life.born == [0, 0]
            assert one.do.remote(nothing).result() == "nothing"

        play(story)

    def test_that_hangs_in_a_coroutine_ends_with_the_replica(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            is_hanging = [False]
            ended = []

            class Hanging(AsyncMortal):
                async def check_health(self) -> None:  # type: ignore[override]
                    if is_hanging[0] and life.born == [0]:
                        try:
                            await asyncio.sleep(1e6)
                        finally:
                            ended.append(self)

            one = deploy(stage, life, Hanging)
            is_hanging[0] = True
            stage.sleep(10)

            assert life.born == [0, 0]
            assert len(ended) == 3
            assert one.do.remote(nothing).result() == "nothing"
            assert not [line for line in stage.kernel.trace if "waits for ever" in line]

        play(story)

    def test_lets_what_runs_finish_and_what_is_queued_run_on_the_next_one(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)
            ran: Counter[str] = Counter()

            def work(name: str, seconds: float) -> str:
                ran[name] += 1
                stage.sleep(seconds)
                return f"{name} on {tag()}"

            first = one.do.remote(work, "first", 8)
            queued = [one.do.remote(work, f"queued {number}", 0) for number in range(5)]
            life.ill = 1
            stage.sleep(3.5)

            tags = {answer.result().rpartition(" ")[2] for answer in queued}
            assert stage.kernel.now() < 5
            assert len(tags) == 1
            assert first.result().rpartition(" ")[2] not in tags
            assert set(ran.values()) == {1}
            stage.sleep(1)
            assert life.gone == [0]

        play(story)

    @pytest.mark.slow
    def test_of_a_replica_whose_constructor_asks_for_patience_does_not_stop_the_start(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            begun = itertools.count()
            life.prepare = lambda: stage.sleep(0 if next(begun) == 0 else 60)

            class Fragile(Mortal):
                def check_health(self) -> None:
                    if life.born == [self.rank] and stage.kernel.now() > 0:
                        raise OSError("not well")

            one = deploy(stage, life, Fragile, num_replicas=2)

            assert 60 <= stage.kernel.now() < 120 + 1
            assert futures.gather(*[one.do.remote(nothing) for _ in range(4)]).result() == ["nothing"] * 4
            stage.sleep(60)
            assert status(stage).replica_states == {"RUNNING": 2}

        play(story)


# ---- sudden death


class TestSystemExit:
    def test_takes_the_replica_down_and_all_that_runs_in_it_but_not_what_is_queued(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, max_ongoing_requests=3)
            first = one.do.remote(tag).result()
            begun: Counter[str] = Counter()

            def work(name: str) -> str:
                begun[name] += 1
                stage.sleep(1)
                return tag()

            async def awork(name: str) -> str:
                begun[name] += 1
                await asyncio.sleep(1)
                return tag()

            neighbours = one.do.remote(work, "a"), one.ado.remote(awork, "b")
            stage.sleep(0.1)
            dying = one.do.remote(die, "enough")
            queued = [one.do.remote(work, "c"), one.ado.remote(awork, "d")]

            error = dying.exception()
            assert isinstance(error, ReplicaDiedError)
            assert "one/one.do" in str(error)
            assert "enough" in str(error)
            assert isinstance(error, ReplicaDiedError)
            for neighbour in neighbours:
                assert isinstance(neighbour.exception(), ReplicaDiedError)
                assert neighbour.request_id in str(neighbour.exception())
            assert stage.kernel.now() < 0.5
            assert all(answer.result() != first for answer in queued)
            assert set(begun.values()) == {1}
            stage.sleep(2)
            assert life.born == [0, 0]
            assert life.gone == [0]
            assert app_status(stage).status is ApplicationStatus.RUNNING

        play(story)

    def test_in_a_coroutine(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)

            answers = [one.ado.remote(adie) for _ in range(3)]

            assert [type(answer.exception()) for answer in answers] == [ReplicaDiedError] * 3
            assert one.do.remote(nothing).result() == "nothing"
            assert life.born == [0] * 4

        play(story)

    @pytest.mark.parametrize("method", ["items", "aitems"])
    def test_in_a_stream_comes_after_its_items(self, method: str) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)

            def produce() -> Iterator[str]:
                yield "first"
                stage.sleep(1)
                die()

            async def aproduce() -> AsyncIterator[str]:
                yield "first"
                await asyncio.sleep(1)
                die()

            stream = iter(
                getattr(one.options(stream=True), method).remote(produce if method == "items" else aproduce)
            )

            assert next(stream) == "first"
            with pytest.raises(ReplicaDiedError):
                next(stream)
            assert list(stream) == []
            assert one.do.remote(nothing).result() == "nothing"

        play(story)

    def test_in_a_task_of_the_user_s_ends_neither_the_loop_nor_the_others(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, max_ongoing_requests=2)

            async def body() -> str:
                task = asyncio.create_task(adie())
                await asyncio.wait([task])
                await asyncio.sleep(1)
                return "still here"

            assert one.ado.remote(body).result() == "still here"
            assert one.do.remote(nothing).result() == "nothing"

        play(story)

    def test_in_the_constructor_is_a_failed_start(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            life.prepare = die

            with pytest.raises(ReplicaStartError) as raised:
                deploy(stage, life)

            assert isinstance(raised.value.__cause__, SystemExit)
            assert app_status(stage).status is ApplicationStatus.DEPLOY_FAILED

        play(story)

    @pytest.mark.parametrize("kind", MORTALS)
    def test_in_a_finalizer_is_logged(self, kind: type[Mortal], caplog: pytest.LogCaptureFixture) -> None:
        def story(stage: Stage) -> None:
            caplog.clear()
            life = Life()
            life.part = lambda: die() if life.gone == [0] else None
            one = deploy(stage, life, kind)
            one.do.remote(nothing).result()

            stage.controller.delete("one")

            assert life.gone == [0]
            assert "__del__ of one/one#0 raised" in caplog.text

        play(story, seeds=5)

    @pytest.mark.slow
    def test_of_all_replicas_at_once_loses_no_request_that_is_queued(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, num_replicas=3)
            ran: Counter[int] = Counter()

            def work(number: int) -> int:
                ran[number] += 1
                return number

            dying = [one.do.remote(die) for _ in range(3)]
            queued = [one.do.remote(work, number) for number in range(10)]

            assert futures.gather(*queued).result() == list(range(10))
            assert set(ran.values()) == {1}
            assert {type(answer.exception()) for answer in dying} == {ReplicaDiedError}
            stage.sleep(60)
            assert len(life.born) == 6
            assert len(life.gone) == 3
            assert sorted((Counter(life.born) - Counter(life.gone)).elements()) == [0, 1, 2]
            assert status(stage).replica_states == {"RUNNING": 3}

        play(story)

    def test_ends_with_the_deployment_gone_when_everybody_dies_of_it(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)
            life.prepare = die

            assert isinstance(one.do.remote(die).exception(), ReplicaDiedError)
            error = one.do.remote(nothing).exception()

            assert isinstance(error, DeploymentUnavailableError)
            assert "SystemExit" in str(error)

        play(story)


# ---- the replacement


class TestReplacement:
    def test_is_tried_again_and_again_with_pauses_that_grow_to_a_second(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)
            attempts: list[float] = []

            def fail() -> None:
                attempts.append(stage.kernel.now())
                if len(attempts) < 8:
                    raise OSError("not yet")

            life.prepare = fail
            assert isinstance(one.do.remote(die).exception(), ReplicaDiedError)
            queued = one.do.remote(nothing)
            stage.sleep(1)
            assert not queued.done()
            assert status(stage).replica_states == {"STARTING": 1}
            assert app_status(stage).status is ApplicationStatus.UNHEALTHY

            assert queued.result() == "nothing"

            pauses = [round(later - sooner, 3) for sooner, later in itertools.pairwise(attempts)]
            assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1, 1]
            stage.sleep(0.01)
            assert app_status(stage).status is ApplicationStatus.RUNNING
            assert status(stage).message == ""

        play(story)

    @pytest.mark.parametrize("asked", [None, 1, 4])
    def test_is_given_up_after_as_many_attempts_as_the_user_allows_and_the_reason_is_told(
        self, asked: int | None
    ) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, max_constructor_retry_count=asked)
            attempts: list[float] = []

            def fail() -> None:
                attempts.append(stage.kernel.now())
                raise OSError("no more of them")

            life.prepare = fail
            dying, queued = one.do.remote(die), one.do.remote(nothing)
            chained = one.do.remote(lambda value: value, one.do.remote(nothing))
            error = queued.exception()

            assert len(attempts) == (asked or 20)
            assert isinstance(error, DeploymentUnavailableError)
            assert isinstance(dying.exception(), ReplicaDiedError)
            for text in (str(error), status(stage).message):
                assert "replica one/one#0 was lost: SystemExit: 1" in text
                assert f"the last of {asked or 20} attempts" in text
                assert "no more of them" in text
            assert isinstance(chained.exception(), DeploymentUnavailableError)
            assert isinstance(one.do.remote(nothing).exception(), DeploymentUnavailableError)
            assert app_status(stage).status is ApplicationStatus.UNHEALTHY
            assert status(stage).status is DeploymentStatus.UNHEALTHY
            assert status(stage).status_trigger is DeploymentStatusTrigger.HEALTH_CHECK_FAILED
            assert status(stage).replica_states == {}

        play(story)

    def test_that_fails_leaves_the_other_replicas_at_work_and_says_so(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, num_replicas=3, max_constructor_retry_count=2)
            ruined: list[int] = []

            def fail() -> None:
                ruined.append(rank())
                if len(set(ruined)) == 1:
                    raise OSError("no more of them")

            life.prepare = fail
            one.do.remote(die).exception()
            stage.sleep(10)
            one.do.remote(die).exception()
            stage.sleep(10)

            assert status(stage).replica_states == {"RUNNING": 2}
            assert app_status(stage).status is ApplicationStatus.UNHEALTHY
            assert f"one/one#{ruined[0]} was lost" in status(stage).message
            assert status(stage).message.count("was lost") == 1
            assert futures.gather(*[one.do.remote(nothing) for _ in range(9)]).result() == ["nothing"] * 9

        play(story)

    def test_of_a_dead_deployment_is_a_new_version_of_it(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, max_constructor_retry_count=1)
            life.prepare = die
            assert isinstance(one.do.remote(die).exception(), ReplicaDiedError)
            assert isinstance(one.do.remote(nothing).exception(), DeploymentUnavailableError)

            life.prepare = lambda: None
            deploy(stage, life)

            assert one.do.remote(nothing).result() == "nothing"
            assert app_status(stage).status is ApplicationStatus.RUNNING
            assert status(stage).message == ""

        play(story)

    @pytest.mark.parametrize("kind", MORTALS)
    def test_whose_check_fails_at_birth_is_tried_again(self, kind: type[Mortal]) -> None:
        def story(stage: Stage) -> None:
            life = Life()

            one = deploy(stage, life, kind)
            life.ill = 4
            one.do.remote(die).exception()

            assert one.do.remote(nothing).result() == "nothing"
            assert life.born == [0] * 5
            assert life.gone == [0] * 4

        play(story)

    def test_whose_first_check_hangs_is_tried_again(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()

            class Hanging(Mortal):
                def check_health(self) -> None:
                    if self.number == 2:
                        stage.kernel.waiter().wait()

            one = deploy(stage, life, Hanging, health_check_timeout_s=5)
            one.do.remote(die).exception()

            assert one.do.remote(nothing).result() == "nothing"
            assert 5 <= stage.kernel.now() < 7
            assert life.born == [0, 0, 0]

        play(story)

    @pytest.mark.slow
    def test_of_an_old_version_gets_no_requests_when_a_new_one_has_taken_over(self) -> None:
        def story(stage: Stage) -> None:
            old, new = Life(), Life()
            one = deploy(stage, old)
            pause = itertools.repeat(5)
            old.prepare = lambda: stage.sleep(next(pause))
            assert isinstance(one.do.remote(die).exception(), ReplicaDiedError)

            new.prepare = lambda: stage.sleep(5)
            deploy(stage, new, Mortal)
            answers = [one.do.remote(lambda: serve.get_replica_context().code_version) for _ in range(3)]
            versions = set(futures.gather(*answers).result())
            stage.sleep(10)
            versions.add(one.do.remote(lambda: serve.get_replica_context().code_version).result())

            assert len(versions) == 1
            assert new.born == [0]
            assert len(old.gone) == len(old.born)

        play(story, seeds=80)

    def test_of_a_version_that_others_still_need_is_not_made_any_more_once_it_was_taken_over(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()

            class Parent:
                def __init__(self, child: DeploymentHandle[Any]) -> None:
                    self.child = child

                def __call__(self, seconds: float) -> None:
                    stage.sleep(seconds)

            def run() -> DeploymentHandle[Any]:
                child: Any = serve.deployment(Mortal).options(name="one", max_ongoing_requests=5)
                parent: Any = serve.deployment(Parent)
                return stage.controller.deploy(build(parent.bind(child.bind(life)), "one"))

            parent = run()
            child = stage.controller.deployment_handle("one", "one")
            long = parent.remote(15)
            dying = child.do.remote(lambda: (stage.sleep(10), die()))
            stage.sleep(1)
            run()

            assert isinstance(dying.exception(), ReplicaDiedError)
            long.result()
            stage.sleep(10)
            assert life.born == [0, 0]
            assert life.gone == [0]

        play(story)


# ---- going


class TestWhereThereIsNoThreadToBeHad:
    def test_a_start_fails_and_says_so(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            with (
                no_thread(stage, "#1 start"),
                pytest.raises(ReplicaStartError, match="can't start new thread"),
            ):
                deploy(stage, life, num_replicas=3)

            assert sorted(life.born) == sorted(life.gone)
            assert app_status(stage).status is ApplicationStatus.DEPLOY_FAILED

        play(story)

    def test_a_replica_that_could_not_be_checked_is_a_failed_start(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            call_at = stage.kernel.call_at

            def refuse(deadline: float, fn: Callable[[], object]) -> Any:
                raise RuntimeError("can't start new thread")

            stage.kernel.call_at = refuse  # type: ignore[method-assign]
            with pytest.raises(ReplicaStartError, match="can't start new thread"):
                deploy(stage, life)
            stage.kernel.call_at = call_at  # type: ignore[method-assign]

            assert life.born == life.gone == [0]

        play(story)

    @pytest.mark.parametrize("verbs", [("replace",), ("replace", "dismiss")])
    def test_the_last_replica_that_is_lost_ends_the_deployment_and_nobody_waits(
        self, verbs: tuple[str, ...], caplog: pytest.LogCaptureFixture
    ) -> None:
        def story(stage: Stage) -> None:
            one = deploy(stage, Life())
            with no_thread(stage, *verbs):
                running, queued = one.do.remote(die), one.do.remote(nothing)

                assert isinstance(running.exception(timeout_s=100), ReplicaDiedError)
                assert isinstance(queued.exception(timeout_s=100), DeploymentUnavailableError)
            assert "can't start new thread" in status(stage).message

            deploy(stage, Life()).do.remote(nothing).result(timeout_s=100)

        play(story)

    @pytest.mark.parametrize("verb", ["retire", "stop"])
    def test_an_app_is_taken_down_all_the_same(self, verb: str) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)
            one.do.remote(nothing).result()

            with no_thread(stage, verb):
                stage.controller.delete("one")

            assert life.gone == [0]
            assert isinstance(one.do.remote(nothing).exception(), DeploymentUnavailableError)

        play(story)


class TestFinalizer:
    @pytest.mark.parametrize("kind", MORTALS)
    @pytest.mark.parametrize("way", ["delete", "redeploy", "shutdown", "loss", "illness"])
    def test_runs_once_per_replica(self, kind: type[Mortal], way: str) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, kind, num_replicas=2)
            one.do.remote(nothing).result()
            if way == "delete":
                stage.controller.delete("one")
            elif way == "redeploy":
                deploy(stage, Life())
            elif way == "shutdown":
                stage.controller.shutdown()
            elif way == "loss":
                futures.gather(one.do.remote(die), one.do.remote(die), return_exceptions=True).result()
            else:
                life.ill = 2
                stage.sleep(3.5)
            stage.sleep(5)

            assert sorted(life.gone) == [0, 1]
            stage.controller.shutdown()
            assert sorted(life.gone) == sorted(life.born)

        play(story)

    @pytest.mark.parametrize("kind", MORTALS)
    def test_that_raises_is_logged_and_keeps_nothing_from_stopping(
        self, kind: type[Mortal], caplog: pytest.LogCaptureFixture
    ) -> None:
        def story(stage: Stage) -> None:
            caplog.clear()
            life = Life()
            life.part = lambda: int("not a number" if len(life.gone) <= 2 else "0")
            one = deploy(stage, life, kind, num_replicas=2)
            one.do.remote(nothing).result()

            stage.controller.delete("one")

            assert sorted(life.gone) == [0, 1]
            assert caplog.text.count("ValueError: invalid literal") == 2
            assert stage.kernel.now() < 1

        play(story, seeds=5)

    def test_that_raises_is_not_called_again_by_python(self) -> None:
        calls: list[int] = []

        class Failing:
            def __del__(self) -> None:
                calls.append(1)
                if len(calls) == 1:
                    raise OSError("not today")

        target = Target(Failing, (), {})
        target.construct()
        with pytest.raises(OSError, match="not today"):
            target.finalize()
        del target
        gc.collect()

        assert calls == [1]

    def test_that_hangs_is_left_behind_loudly(self, caplog: pytest.LogCaptureFixture) -> None:
        def story(stage: Stage) -> None:
            caplog.clear()
            life = Life()
            life.part = lambda: None if life.gone[1:] else stage.kernel.waiter().wait()  # for ever
            one = deploy(stage, life, graceful_shutdown_timeout_s=5)
            one.do.remote(nothing).result()

            stage.controller.delete("one")

            assert 5 <= stage.kernel.now() < 7
            assert "replica one/one#0 would not stop and is abandoned" in caplog.text
            assert "stage.kernel.waiter().wait()  # for ever" in caplog.text

        play(story, seeds=5)

    def test_of_a_replica_that_failed_its_first_check_runs_too(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            life.ill = 2

            with pytest.raises(ReplicaStartError):
                deploy(stage, life, num_replicas=2)

            assert sorted(life.born) == sorted(life.gone) == [0, 1]

        play(story)

    def test_finds_the_context_of_its_replica(self) -> None:
        def story(stage: Stage) -> None:
            life, tags = Life(), []
            life.part = lambda: tags.append(tag())
            one = deploy(stage, life)
            first = one.do.remote(tag).result()

            stage.controller.delete("one")

            assert tags == [first]

        play(story, seeds=5)


class TestStopping:
    def test_lets_what_runs_finish_and_answers_what_is_queued(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)
            running = one.do.remote(lambda: (stage.sleep(10), "finished")[1])
            stage.sleep(1)
            queued = one.do.remote(nothing)
            waiting = one.do.remote(lambda value: value, running)

            stage.controller.delete("one")

            assert stage.kernel.now() == pytest.approx(10)
            assert running.result() == "finished"
            for answer in (queued, waiting, one.do.remote(nothing)):
                error = answer.exception()
                assert isinstance(error, DeploymentUnavailableError)
                assert "its app was deleted" in str(error)

        play(story)

    def test_what_will_not_finish_is_given_up_with_its_stack_in_the_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def story(stage: Stage) -> None:
            caplog.clear()
            life = Life()
            one = deploy(stage, life, graceful_shutdown_timeout_s=5, num_replicas=2)

            def hang() -> None:
                stage.kernel.waiter().wait()  # for ever

            hanging = [one.do.remote(hang) for _ in range(2)]
            stage.sleep(1)
            stage.controller.delete("one")

            for answer in hanging:
                error = answer.exception()
                assert isinstance(error, ReplicaDiedError)
                assert "graceful_shutdown_timeout_s=5" in str(error)
            assert 6 <= stage.kernel.now() < 8
            assert caplog.text.count("stage.kernel.waiter().wait()  # for ever") == 2
            assert "thread one/one#0 worker 1" in caplog.text
            assert "thread one/one#1 worker 1" in caplog.text
            assert sorted(life.gone) == [0, 1]

        play(story, seeds=5)

    def test_a_coroutine_that_will_not_finish_is_cancelled_with_its_loop(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, graceful_shutdown_timeout_s=5)
            ended = []

            async def hang() -> None:
                try:
                    await asyncio.sleep(1e6)
                finally:
                    ended.append(stage.kernel.now())

            hanging = one.ado.remote(hang)
            stage.sleep(1)
            stage.controller.delete("one")

            assert isinstance(hanging.exception(), ReplicaDiedError)
            assert ended == [pytest.approx(6)]
            assert life.gone == [0]

        play(story)

    def test_a_request_that_runs_in_a_lost_replica_is_answered_when_the_app_is_gone(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, graceful_shutdown_timeout_s=30)
            hanging = one.do.remote(lambda: stage.kernel.waiter().wait())
            life.ill = 1
            stage.sleep(3.5)
            stage.sleep(20)
            assert not hanging.done()

            begin = stage.kernel.now()
            stage.controller.delete("one")

            assert stage.kernel.now() - begin < 32
            assert isinstance(hanging.exception(timeout_s=0), ReplicaDiedError)
            assert life.gone == [0, 0]

        play(story)

    def test_a_check_that_is_just_beginning_ends_too(self) -> None:
        class Checked:
            async def check_health(self) -> None:
                await asyncio.sleep(0.01)

        def story(stage: Stage) -> None:
            deployed = doubles.deploy(stage.kernel, Checked)
            replica: Any = deployed.seats[0].replica

            def check() -> None:
                with contextlib.suppress(BaseException):
                    replica.check_health()

            checking = stage.kernel.spawn("check", check)
            deployed.take_down()
            stage.sleep(10)

            assert not checking.is_alive()

        play(story, seeds=100)

    def test_during_a_replacement_ends_it(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)
            life.prepare = lambda: int("not a number")
            assert isinstance(one.do.remote(die).exception(), ReplicaDiedError)
            queued = one.do.remote(nothing)
            stage.sleep(3)

            begin = stage.kernel.now()
            stage.controller.delete("one")

            assert stage.kernel.now() - begin < 1
            assert isinstance(queued.exception(), DeploymentUnavailableError)
            assert life.born == life.gone == [0]

        play(story, seeds=40)

    def test_during_a_slow_replacement_stops_it_when_it_is_up(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)
            life.prepare = lambda: stage.sleep(10)
            assert isinstance(one.do.remote(die).exception(), ReplicaDiedError)
            stage.sleep(3)

            stage.controller.delete("one")

            assert life.born == life.gone == [0, 0]
            assert one.do.remote(nothing).exception() is not None

        play(story, seeds=40)

    def test_during_a_replacement_that_hangs_gives_it_up_with_its_stack_in_the_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def story(stage: Stage) -> None:
            caplog.clear()
            life = Life()
            one = deploy(stage, life, graceful_shutdown_timeout_s=5)
            life.prepare = lambda: stage.kernel.waiter().wait()
            assert isinstance(one.do.remote(die).exception(), ReplicaDiedError)
            stage.sleep(1)

            begin = stage.kernel.now()
            stage.controller.delete("one")

            assert stage.kernel.now() - begin < 8
            assert "life.prepare = lambda: stage.kernel.waiter().wait()" in caplog.text
            assert life.gone == [0]

        play(story, seeds=5)

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", [0.05, 0.15, 1.0])
    def test_at_the_very_moment_at_which_a_replacement_comes_up_leaves_nothing(self, moment: float) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)
            life.prepare = lambda: stage.sleep_until(moment)
            assert isinstance(one.do.remote(die).exception(), ReplicaDiedError)
            stage.sleep_until(moment)

            stage.controller.delete("one")
            late = one.do.remote(nothing)
            life.prepare = lambda: None
            deploy(stage, life)
            answers = [one.do.remote(tag) for _ in range(4)]

            assert isinstance(late.exception(), DeploymentUnavailableError)
            assert len({answer.result() for answer in answers}) == 1
            assert len(life.gone) == len(life.born) - 1
            assert stage.controller.status().applications["one"].deployments["one"].replica_states == {
                "RUNNING": 1
            }

        play(story, seeds=100)

    @pytest.mark.slow
    def test_at_the_very_moment_at_which_a_replica_dies_leaves_nothing(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life, num_replicas=2)

            def die_soon() -> None:
                stage.sleep(1)
                die()

            dying = [one.do.remote(die_soon) for _ in range(2)]
            stage.sleep(1)
            stage.controller.delete("one")

            assert {type(answer.exception()) for answer in dying} == {ReplicaDiedError}
            assert sorted(life.gone) == sorted(life.born)

        play(story, seeds=80)


class TestAgainAndFromAnywhere:
    def test_delete_and_shutdown_may_be_repeated_by_many_at_once(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)
            running = one.do.remote(lambda: (stage.sleep(1), "finished")[1])
            stage.sleep(0.1)

            deeds = [lambda: stage.controller.delete("one")] * 3 + [stage.controller.shutdown] * 2
            threads = [stage.kernel.spawn(f"stopper {number}", deed) for number, deed in enumerate(deeds)]
            for thread in threads:
                thread.join()

            assert running.result() == "finished"
            assert life.gone == [0]
            stage.controller.delete("one")
            stage.controller.delete("never there")
            stage.controller.shutdown()
            with pytest.raises(serve.ServeError, match="shut down"):
                deploy(stage, Life())

        play(story, seeds=40)

    @pytest.mark.slow
    def test_many_who_redeploy_at_once_take_turns_and_no_request_is_lost(self) -> None:
        def story(stage: Stage) -> None:
            lives = [Life() for _ in range(4)]
            one = deploy(stage, lives[0])
            threads = [
                stage.kernel.spawn("redeploy", lambda life=life: deploy(stage, life))  # type: ignore[misc]
                for life in lives[1:]
            ]
            answers = []
            for _ in range(10):
                answers.append(one.do.remote(lambda: stage.sleep(0.01)))
                stage.sleep(0.02)
            for thread in threads:
                thread.join()
            futures.gather(*answers).result()
            stage.sleep(5)

            assert [life.born for life in lives] == [[0]] * 4
            assert sum(len(life.gone) for life in lives) == 3

        play(story, seeds=40)

    @pytest.mark.parametrize("deed", ["delete", "shutdown"])
    @pytest.mark.parametrize(
        "place", ["a method", "a coroutine", "a thread of the body's", "a done callback", "a finalizer"]
    )
    def test_from_inside(self, deed: str, place: str) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            one = deploy(stage, life)
            returned: list[float] = []

            def stop() -> str:
                stage.controller.delete("one") if deed == "delete" else stage.controller.shutdown()
                returned.append(stage.kernel.now())
                return "stopped"

            async def astop() -> str:
                return stop()

            def stop_in_a_thread() -> str:
                stage.in_a_thread(stop).join()
                return "stopped"

            if place == "a method":
                assert one.do.remote(stop).result() == "stopped"
            elif place == "a coroutine":
                assert one.ado.remote(astop).result() == "stopped"
            elif place == "a thread of the body's":
                assert one.do.remote(stop_in_a_thread).result() == "stopped"
            elif place == "a done callback":
                one.do.remote(nothing).add_done_callback(lambda _: stop())
            else:
                life.part = stop
                one.do.remote(nothing).result()
                stage.controller.delete("one")
            stage.sleep(5)

            assert len(returned) == 1
            assert returned[0] < 1
            assert life.gone == [0]
            assert isinstance(one.do.remote(nothing).exception(), DeploymentUnavailableError)

        play(story)

    def test_a_redeploy_from_inside(self) -> None:
        def story(stage: Stage) -> None:
            life, other = Life(), Life()
            one = deploy(stage, life)

            def replace_yourself() -> str:
                deploy(stage, other)
                return "replaced"

            assert one.do.remote(replace_yourself).result() == "replaced"
            stage.sleep(5)
            assert (life.gone, other.born, other.gone) == ([0], [0], [])
            assert one.do.remote(nothing).result() == "nothing"

        play(story)

    @pytest.mark.parametrize("deed", ["delete", "shutdown"])
    def test_while_the_app_is_still_starting(self, deed: str) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            life.prepare = lambda: stage.sleep(10)
            errors: list[BaseException] = []

            def run() -> None:
                try:
                    deploy(stage, life)
                except serve.ServeError as error:
                    errors.append(error)

            starting = stage.kernel.spawn("run", run)
            stage.sleep(1)
            stage.controller.delete("one") if deed == "delete" else stage.controller.shutdown()
            starting.join()
            stage.sleep(30)

            assert stage.controller.status().applications.keys() <= {"one"}
            assert len(life.gone) == len(life.born)
            stage.controller.delete("one")
            assert life.born == life.gone

        play(story, seeds=40)

    def test_shutdown_ends_though_a_constructor_does_not(self) -> None:
        def story(stage: Stage) -> None:
            life = Life()
            life.prepare = lambda: stage.kernel.waiter().wait()
            errors: list[BaseException] = []

            def run() -> None:
                try:
                    deploy(stage, life)
                except serve.ServeError as error:
                    errors.append(error)

            starting = stage.kernel.spawn("run", run)
            stage.sleep(1)
            stage.controller.shutdown()
            starting.join()

            assert len(errors) == 1
            assert stage.kernel.now() < 60

        play(story)


def test_the_simulated_stories_are_the_same_each_time() -> None:
    def story(stage: Stage) -> None:
        life = Life()
        one = deploy(stage, life, num_replicas=2)
        one.do.remote(die).exception()
        one.do.remote(nothing).result()

    def trace(kernel: SimulatedKernel) -> list[str]:
        def run() -> None:
            stage = Stage(kernel)
            story(stage)
            stage.controller.shutdown()

        kernel.run(run)
        return kernel.trace

    from threadserve.testing.scheduler import SimulatedKernel

    assert trace(SimulatedKernel(7)) == trace(SimulatedKernel(7))
