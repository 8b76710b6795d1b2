"""The options of tasks and actors: Ray's names, and a clear word on what is refused."""

from __future__ import annotations

from typing import Any

import pytest

import threadserve as serve


def function() -> None:
    """Do nothing."""


class Class:
    """Has nothing."""


@pytest.mark.parametrize("target", [function, Class])
def test_an_unknown_option_is_told_the_nearest_one(target: Any) -> None:
    with pytest.raises(TypeError, match=r"has no option 'num_cpu'; did you mean 'num_cpus'\?"):
        serve.remote(num_cpu=1)(target)


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        (function, {"num_cpus": -1}, "num_cpus must be .* at least 0, not -1"),
        (function, {"num_gpus": 1.5}, "num_gpus"),
        (function, {"num_returns": -1}, 'num_returns must be an int of at least 0 or "streaming", not -1'),
        (function, {"retry_exceptions": [5]}, "retry_exceptions must be True, False or a list of exception"),
        (function, {"max_retries": -2}, "max_retries"),
        (function, {"resources": {"num_cpus": 1}}, "the resource is named 'CPU'"),
        (Class, {"max_concurrency": 0}, "max_concurrency must be None or an int of at least 1, not 0"),
        (
            Class,
            {"lifetime": "forever"},
            "lifetime must be None or 'detached' or 'non_detached', not 'forever'",
        ),
        (Class, {"get_if_exists": True}, "get_if_exists=True needs a name"),
        (Class, {"max_pending_calls": 0}, "max_pending_calls"),
    ],
)
def test_a_refused_value_is_told_at_once(target: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(serve.ConfigError, match=told):
        serve.remote(**options)(target)
    with pytest.raises(ValueError, match=told):
        serve.remote(target).options(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"runtime_env": {"pip": ["numpy"]}},
        {"scheduling_strategy": object()},
        {"placement_group": object()},
    ],
)
def test_what_needs_a_cluster_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(serve.NotSupportedError, match=f"{next(iter(options))}=.* needs a cluster"):
        serve.remote(**options)(function)


def test_what_means_nothing_here_is_accepted() -> None:
    harmless: dict[str, Any] = {
        "runtime_env": {},
        "scheduling_strategy": "SPREAD",
        "placement_group": "default",
        "max_calls": 5,
        "accelerator_type": "A100",
        "_metadata": {"a": 1},
        "enable_task_events": False,
        "num_returns": "dynamic",
    }

    assert serve.remote(**harmless)(function).options_given == harmless
    serve.remote(concurrency_groups={"io": 2}, max_task_retries=-1, **harmless)(Class)


def test_options_add_up_and_leave_the_original_alone() -> None:
    first = serve.remote(num_cpus=1)(function)
    second = first.options(num_gpus=1).options(num_cpus=2)

    assert first.options_given == {"num_cpus": 1}
    assert second.options_given == {"num_cpus": 2, "num_gpus": 1}
