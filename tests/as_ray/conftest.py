"""The stand-in for Ray, in place for one test."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

from threadserve import as_ray

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def stand_in() -> Iterator[None]:
    as_ray.install(http=False)
    yield
    as_ray.uninstall()


@pytest.fixture
def ray() -> Any:
    return importlib.import_module("ray")


@pytest.fixture
def serve() -> Any:
    return importlib.import_module("ray.serve")
