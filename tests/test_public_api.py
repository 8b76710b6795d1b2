"""The face: what it offers, what the checkers see of it, and what it costs to import."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import threadserve

ROOT = Path(__file__).resolve().parent.parent

# Frozen: who changes this list changes what users wrote programs against. Changelog, docstring and
# typing tests go with it.
HOMES = {
    "AutoscalingConfig": "threadserve.app.config",
    "BackpressureConfig": "threadserve.app.config",
    "HTTPOptions": "threadserve.app.config",
    "Application": "threadserve.app.deployment",
    "Deployment": "threadserve.app.deployment",
    "deployment": "threadserve.app.deployment",
    "RunTarget": "threadserve.api",
    "delete": "threadserve.api",
    "get_app_handle": "threadserve.api",
    "get_deployment_handle": "threadserve.api",
    "run": "threadserve.api",
    "run_many": "threadserve.api",
    "running": "threadserve.api",
    "shutdown": "threadserve.api",
    "start": "threadserve.api",
    "status": "threadserve.api",
    "ReplicaContext": "threadserve.call.context",
    "cancelled": "threadserve.call.context",
    "check_cancelled": "threadserve.call.context",
    "deadline": "threadserve.call.deadline",
    "get_multiplexed_model_id": "threadserve.call.context",
    "get_replica_context": "threadserve.call.context",
    "propagate": "threadserve.call.context",
    "remaining": "threadserve.call.deadline",
    "ObjectRef": "threadserve.call.objectref",
    "ObjectRefGenerator": "threadserve.call.objectref",
    "DeploymentResponse": "threadserve.call.response",
    "DeploymentResponseGenerator": "threadserve.call.stream",
    "DeploymentHandle": "threadserve.handle",
    "ActorClass": "threadserve.tasks.actor",
    "ActorHandle": "threadserve.tasks.actor",
    "get_actor": "threadserve.tasks.actor",
    "kill": "threadserve.tasks.actor",
    "cancel": "threadserve.tasks.objects",
    "get": "threadserve.tasks.objects",
    "put": "threadserve.tasks.objects",
    "wait": "threadserve.tasks.objects",
    "remote": "threadserve.tasks.remote",
    "RemoteFunction": "threadserve.tasks.task",
    "ActorDiedError": "threadserve.errors",
    "ArgumentError": "threadserve.errors",
    "BackPressureError": "threadserve.errors",
    "Cancelled": "threadserve.errors",
    "ConfigError": "threadserve.errors",
    "DeadlockError": "threadserve.errors",
    "DeployError": "threadserve.errors",
    "DeploymentUnavailableError": "threadserve.errors",
    "GraphError": "threadserve.errors",
    "ImportStringError": "threadserve.errors",
    "InternalError": "threadserve.errors",
    "MethodNotFoundError": "threadserve.errors",
    "NotInReplicaError": "threadserve.errors",
    "NotSupportedError": "threadserve.errors",
    "ReplicaDiedError": "threadserve.errors",
    "ReplicaStartError": "threadserve.errors",
    "RequestCancelledError": "threadserve.errors",
    "RequestError": "threadserve.errors",
    "RequestTimeoutError": "threadserve.errors",
    "ResourceError": "threadserve.errors",
    "ServeError": "threadserve.errors",
}

LOADED = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import threadserve
print(*sorted(set(sys.modules) - before))
"""


def test_the_face_offers_exactly_the_frozen_names() -> None:
    assert sorted(threadserve.__all__) == sorted(HOMES)


@pytest.mark.parametrize("name", HOMES)
def test_a_name_of_the_face_is_the_one_of_its_room(name: str) -> None:
    home = importlib.import_module(HOMES[name])

    assert getattr(threadserve, name) is getattr(home, name)
    assert name in home.__all__


def test_every_error_is_offered() -> None:
    errors = importlib.import_module("threadserve.errors")

    assert set(errors.__all__) <= set(threadserve.__all__)


def test_checkers_see_the_same_names_from_the_same_rooms() -> None:
    tree = ast.parse((ROOT / "threadserve" / "__init__.py").read_text(encoding="utf-8"))
    guarded = [node for node in tree.body if isinstance(node, ast.If)]

    seen = {
        alias.asname or alias.name: node.module
        for branch in guarded
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert seen == HOMES


def test_dir_lists_what_is_offered() -> None:
    assert {*HOMES, "__version__"} <= set(dir(threadserve))


def test_a_star_import_brings_every_name() -> None:
    namespace: dict[str, object] = {}

    exec("from threadserve import *", namespace)

    assert set(HOMES) <= set(namespace)


def test_a_misspelt_name_is_told_the_nearest_one() -> None:
    with pytest.raises(
        AttributeError, match=r"module 'threadserve' .* 'deploymnt'; did you mean 'deployment'\?"
    ):
        _ = threadserve.deploymnt  # type: ignore[attr-defined]


def test_a_name_like_none_of_ours_is_refused_without_a_guess() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'zyx'$"):
        _ = threadserve.zyx  # type: ignore[attr-defined]


def test_the_version_is_the_one_of_the_installed_package() -> None:
    installed = [found.version for found in importlib.metadata.distributions(name="threadserve")]

    assert threadserve.__version__ == (installed or ["0+unknown"])[0]


def test_importing_the_face_loads_nothing_else() -> None:
    # Without site and environment: what an editable install or a tool brings along is not ours.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LOADED, str(ROOT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert set(done.stdout.split()) <= {"threadserve", "__future__"}
