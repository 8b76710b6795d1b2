"""What happened, as data, as text and as a picture."""

from __future__ import annotations

import re

import pytest

from tests.testing.apps import Adder, Front
from tests.testing.test_search import caching
from threadserve import testing


def one_call() -> testing.Trace:
    with testing.simulate(Front.bind(Adder.bind()), strategy=testing.Replay()) as handle:
        handle.remote(1).result()
    return testing.trace()


class TestTrace:
    def test_tells_the_stages_of_each_request(self) -> None:
        stages = [
            (step.operation, step.request, step.deployment, step.caller) for step in one_call().requests()
        ]

        assert stages == [
            ("calls", 1, "default/Front", None),
            ("begins", 1, "default/Front", None),
            ("calls", 2, "default/Adder", 1),
            ("begins", 2, "default/Adder", None),
            ("answers", 2, "default/Adder", None),
            ("answers", 1, "default/Front", None),
        ]

    def test_is_a_sequence_of_plain_steps(self) -> None:
        trace = one_call()

        assert [step.step for step in trace] == list(range(len(trace)))
        assert trace[0] is trace[:1][0]
        assert isinstance(trace[2:4], testing.Trace)
        assert trace == one_call()
        assert hash(trace) == hash(one_call())
        assert trace != trace[1:]
        assert trace[0].thread == "main"
        assert trace[0].time == 0.0

    def test_names_no_ids_or_addresses(self) -> None:
        text = one_call().text()

        assert not re.search(r"0x[0-9a-f]{4,}|[0-9a-f]{8}-[0-9a-f]{4}|\d{9,}", text)

    def test_as_text_has_a_line_for_each_step(self) -> None:
        trace = one_call()

        assert len(trace.text().splitlines()) == len(trace)
        assert trace.text().endswith(trace.text(last=5))
        assert len(trace.text(last=5).splitlines()) == 5
        assert " lock " in trace.text()
        assert " lock " not in trace.text(details=False)
        assert "main: calls  [1: default/Front.__call__]" in trace.text(details=False)

    def test_is_drawn_as_a_sequence_diagram(self) -> None:
        assert one_call().mermaid().splitlines() == [
            "sequenceDiagram",
            "    participant p0 as main",
            "    participant p1 as default/Front",
            "    participant p2 as default/Adder",
            "    p0->>p1: __call__ (1)",
            "    Note over p1: __call__ (1) begins",
            "    p1->>p2: __call__ (2)",
            "    Note over p2: __call__ (2) begins",
            "    p2-->>p1: answers (2)",
            "    p1-->>p0: answers (1)",
        ]

    def test_tells_failures_by_their_type(self) -> None:
        with testing.simulate(Adder.bind()) as handle:
            with pytest.raises(TypeError):
                handle.remote("x").result()

        trace = testing.trace()
        assert trace.requests()[-1].operation == "fails with TypeError"
        assert "--xp0: fails with TypeError (1)" in trace.mermaid()

    def test_tells_what_user_code_waits_for(self) -> None:
        with pytest.raises(testing.ScheduleError) as caught:
            testing.explore(caching(False))

        operations = {step.operation for step in caught.value.trace}
        assert {"waits for 1 s to pass", "starts default/Cache#0 worker 1"} <= operations
        steps = [step for step in caught.value.trace if step.operation == "waits for 1 s to pass"]
        assert {(step.deployment, step.method) for step in steps} == {("default/Cache", "get")}

    def test_can_be_taken_in_the_middle(self) -> None:
        with testing.simulate(Adder.bind()) as handle:
            before = len(testing.trace())
            handle.remote(1).result()
            assert len(testing.trace()) > before
