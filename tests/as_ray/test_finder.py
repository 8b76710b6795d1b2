"""Which modules stand in for Ray's, and what they say of what is not there."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest

from threadserve import as_ray
from threadserve.as_ray import absent
from threadserve.as_ray.modules import _ABSENT_NAMES, _MODULES
from threadserve.errors import NotSupportedError

OFFERED = [
    (module, name) for module, homes in _MODULES.items() for names in homes.values() for name in names.split()
]


@pytest.mark.parametrize(("module", "name"), OFFERED)
def test_every_name_that_is_offered_is_there(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize("module", _ABSENT_NAMES)
def test_what_only_a_cluster_has_can_be_imported_and_refuses_to_be_used(module: str) -> None:
    name = _ABSENT_NAMES[module].split()[0]
    found = getattr(importlib.import_module(module), name)

    with pytest.raises(NotSupportedError, match=rf"{module}.{name} is not supported in one process"):
        found(1)


def test_real_ray_is_hidden_while_the_stand_in_is_in_place() -> None:
    as_ray.uninstall()
    real = ModuleType("ray")
    sys.modules["ray"] = real
    try:
        as_ray.install(http=False)
        assert importlib.import_module("ray") is not real

        as_ray.uninstall()
        assert sys.modules["ray"] is real
    finally:
        sys.modules.pop("ray", None)


def test_ray_below_a_package_that_only_looks_like_it_is_left_alone() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("rayleigh")
    with pytest.raises(ModuleNotFoundError, match=r"ray\.nothing_like_this"):
        importlib.import_module("ray.nothing_like_this")


@pytest.mark.parametrize("name", ["ray.data", "ray.train.torch", "ray.serve.llm", "ray.util.placement_group"])
def test_a_part_that_needs_a_cluster_is_refused_at_its_use_and_not_at_its_import(name: str) -> None:
    module: Any = importlib.import_module(name)
    something = module.Something

    with pytest.raises(NotSupportedError, match=f"{name}.Something is not supported in one process: ."):
        something(1, two=3)
    with pytest.raises(NotSupportedError, match=f"{name}.Something.of"):
        something.of(1)


def test_a_class_may_inherit_from_what_is_absent_and_cannot_be_instantiated() -> None:
    module: Any = importlib.import_module("ray.tune")

    class Mine(module.Trainable):  # type: ignore[misc]
        def step(self) -> int:
            return 1

    assert issubclass(Mine, absent.AbsentBase)
    with pytest.raises(NotSupportedError, match=r"ray\.tune\.Trainable"):
        Mine()


def test_annotations_with_what_is_absent_are_fine() -> None:
    module: Any = importlib.import_module("ray.data")

    assert all(
        [module.Dataset | None, None | module.Dataset, module.Dataset[int], module.Dataset.Inner | int]
    )


def test_what_ray_has_removed_fails_as_in_ray_with_a_word_on_what_replaced_it() -> None:
    with pytest.raises(
        ImportError, match=r"RayServeHandle.* from 'ray\.serve\.handle'.*use DeploymentHandle"
    ):
        exec("from ray.serve.handle import RayServeHandle")
    with pytest.raises(ImportError, match="use DeploymentHandle"):
        exec("from ray.serve.handle import RayServeSyncHandle")
    serve: Any = importlib.import_module("ray.serve")
    assert not hasattr(serve, "get_handle")
    with pytest.raises(AttributeError, match=r"get_handle.*use serve\.get_app_handle"):
        _ = serve.get_handle


def test_a_misspelt_name_is_no_name() -> None:
    with pytest.raises(ImportError, match="cannot import name 'deploymnt'"):
        exec("from ray.serve import deploymnt")


def test_an_exception_that_one_process_never_raises_can_be_caught() -> None:
    exceptions: Any = importlib.import_module("ray.exceptions")

    assert issubclass(exceptions.OutOfMemoryError, exceptions.RayError)
    assert exceptions.OutOfMemoryError is exceptions.OutOfMemoryError
    assert not hasattr(exceptions, "NoSuchError")
