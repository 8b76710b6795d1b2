"""Interpreter replicas under calls of every kind, cancellations, deadlines, exits and redeploys: each call is answered.

Every wait is looked at that lasts half a millisecond, and none of them is a deadlock.
"""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

import threadserve as serve
from tests.doubles import wait_until
from tests.replica.bodies import Impatient, OutOfStock
from threadserve.call import lookout
from threadserve.concurrency.interpreters import is_offered

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_offered(), reason="replica_type='interpreter' exists from Python 3.14 on"),
]

CALLERS = 8
CALLS = 300
REDEPLOYS = 3


def app(inner_kind: Any) -> Any:
    options: Any = {"num_replicas": 2, "graceful_shutdown_timeout_s": 5}
    inner = serve.deployment(Impatient, name="Inner", replica_type=inner_kind, **options)
    outer = serve.deployment(Impatient, name="Outer", replica_type="interpreter", **options)
    return outer.bind(1, other=inner.bind(10))


def answered(handle: Any) -> None:
    assert handle.remote(1).result() == 2


def asked(handle: Any) -> None:
    assert handle.ask.remote("__call__", 1).result() == 11


def asked_later(handle: Any) -> None:
    assert handle.ask_later.remote("later", 1).result(timeout_s=60) == 11


def streamed(handle: Any) -> None:
    assert handle.ask_items.remote(100).result() == [*range(100)]


def left(handle: Any) -> None:
    items = handle.options(stream=True).items.remote(200)
    assert [next(items) for _ in range(70)] == [*range(70)]
    items.close()


def cancelled(handle: Any) -> None:
    response = handle.ask.remote("until_cancelled")
    response.cancel()
    with pytest.raises(serve.RequestCancelledError):
        response.result()


def expired(handle: Any) -> None:
    with pytest.raises(serve.RequestTimeoutError):
        handle.options(timeout_s=0.005).ask.remote("until_cancelled_later").result()


def failed(handle: Any) -> None:
    with pytest.raises(OutOfStock):
        handle.fail.remote().result()


def shared(handle: Any) -> None:
    assert len(handle.same.remote(memoryview(bytearray(300_000))).result()) == 300_000


def exited(handle: Any) -> None:
    with pytest.raises(serve.ReplicaDiedError):
        handle.exit.remote().result()


KINDS = [answered, asked, asked_later, streamed, left, cancelled, expired, failed, shared]


@pytest.mark.parametrize("inner_kind", ["thread", "interpreter"])
def test_every_call_is_answered_as_it_should_be(inner_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "PATIENCE_S", 0.0005)  # which the replicas do as well
    handle = serve.run(app(inner_kind))
    wrong: list[BaseException] = []

    def call(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(CALLS):
            try:
                (exited if chance.random() < 0.002 else chance.choice(KINDS))(handle)
            except serve.ReplicaDiedError:
                pass  # another call has ended the replica
            except BaseException as error:
                wrong.append(error)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(CALLERS)]
    for caller in callers:
        caller.start()
    for _ in range(REDEPLOYS):
        serve.run(app(inner_kind))
    for caller in callers:
        caller.join()

    assert wrong == []
    for name in ("Outer", "Inner"):
        router: Any = serve.get_deployment_handle(name, "default")._router
        wait_until(lambda router=router: router.statistics().ongoing == 0)  # type: ignore[misc]
