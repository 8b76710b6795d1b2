"""Programs that import only ``ray`` print on threads what they print on a cluster; ``make parity`` asks the cluster."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

HERE = Path(__file__).resolve().parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_compare", HERE / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


compare = load()


@pytest.mark.slow
@pytest.mark.parametrize("name", compare.names())
def test_a_ray_program_prints_the_facts_on_record(name: str) -> None:
    found, trouble = compare.run(name)

    assert not trouble
    assert compare.differing(name, found, on_ray=False) == []


def test_each_difference_is_about_a_fact_and_has_a_reason() -> None:
    for (program, fact), (_, reason) in compare.DIFFERENCES.items():
        assert fact in compare.expected(program)
        assert len(reason) > 20


def test_the_readme_tells_every_difference() -> None:
    told = (HERE / "README.md").read_text(encoding="utf-8")

    for (program, fact), (_, reason) in compare.DIFFERENCES.items():
        assert f"| {program} | {fact} |" in told
        assert reason in told


def test_a_fact_that_changed_is_found() -> None:
    name = compare.names()[0]
    facts = compare.expected(name)
    fact = next(iter(facts))

    assert compare.differing(name, {**facts, fact: "something else"}, on_ray=False) == [
        f"{name}: {fact}: expected {facts[fact]}, found something else"
    ]
    assert compare.differing(name, {**facts, "new": "1"}, on_ray=False) == [f"{name}: new: not on record"]
