"""Calls in a file: what was recorded is what is replayed."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from threadserve.testing.recording import record, replay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


class Model:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int, *, unit: str = "m") -> tuple[int, str]:
        if number < 0:
            raise ValueError(number)
        return number, unit

    async def later(self, values: list[int]) -> int:
        values.append(1)
        return len(values)

    def next(self) -> int:
        self.count += 1
        return self.count

    def items(self, number: int) -> Iterator[int]:
        yield from range(number)
        raise EOFError(number)

    async def aitems(self, number: int) -> AsyncIterator[int]:
        for item in range(number):
            yield item

    def lock(self) -> object:
        return threading.Lock()


class Front:
    def __init__(self, model: Any) -> None:
        self.model = model

    def all_of_it(self) -> list[Any]:
        streams = self.model.options(stream=True)
        told: list[Any] = [self.model.remote(1, unit="km").result(), self.model.later.remote([5]).result()]
        told += [self.model.next.remote().result() for _ in range(3)]
        told.append(repr(self.model.remote(-1).exception()))
        read = streams.items.remote(2)
        told += [next(read), next(read)]
        with pytest.raises(EOFError):
            next(read)
        return told + list(streams.aitems.remote(2))


ModelD, FrontD = serve.deployment(Model), serve.deployment(Front)


def app() -> Any:
    return FrontD.bind(ModelD.bind())


def test_a_replay_answers_as_the_deployment_did(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    with serve.running(record(app(), file, ModelD)) as handle:
        told = handle.all_of_it.remote().result()

    with serve.running(app().replace(ModelD, replay(file))) as handle:
        assert handle.all_of_it.remote().result() == told
    assert told == [(1, "km"), 2, 1, 2, 3, "ValueError(-1)", 0, 1, 0, 1]


def test_the_file_can_be_read_and_holds_the_arguments_as_they_came(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    with serve.running(record(ModelD.bind(), file)) as handle:
        handle.later.remote([5]).result()

    assert json.loads(file.read_text()) == {
        "deployment": "Model",
        "method": "later",
        "args": [[5]],
        "kwargs": {},
        "returns": 2,
    }


def test_the_last_answer_to_a_call_is_given_again(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    with serve.running(record(ModelD.bind(), file)) as handle:
        for _ in range(2):
            handle.next.remote().result()

    with serve.running(replay(file)) as handle:
        assert [handle.next.remote().result() for _ in range(4)] == [1, 2, 2, 2]


def test_a_call_that_is_not_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    with serve.running(record(ModelD.bind(), file)) as handle:
        handle.remote(1).result()

    with serve.running(replay(file)) as handle, pytest.raises(LookupError, match=r"args=\(2,\)"):
        handle.remote(2).result()


def test_what_cannot_be_written_fails_the_call_and_says_so(tmp_path: Path) -> None:
    with serve.running(record(ModelD.bind(), tmp_path / "calls")) as handle:
        with pytest.raises(
            serve.ArgumentError, match=r"Model\.lock cannot be recorded: a lock cannot be pickled"
        ):
            handle.lock.remote().result()


def test_a_file_of_another_kind_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("hello\n")

    with pytest.raises(ValueError, match=r"notes:1: not a line that record\(\) wrote: 'hello'"):
        replay(tmp_path / "notes")


def test_a_deployment_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(serve.GraphError, match="no deployment 'Modal' to record"):
        record(app(), tmp_path / "calls", "Modal")
