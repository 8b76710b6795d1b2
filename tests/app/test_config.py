"""Options: their defaults, what each accepts, and how a refused one is explained."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadserve.app.config import (
    UNSET,
    AutoscalingConfig,
    AutoscalingPolicy,
    BackpressureConfig,
    DeploymentConfig,
    DeploymentOptions,
    HTTPOptions,
    LoggingConfig,
    Unset,
)
from threadserve.concurrency.interpreters import is_offered
from threadserve.errors import ConfigError, NotSupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HUGE = 10**400
NO_COUNTS = [0, -1, 1.5, "3", True, math.nan]
NO_TIMES = [-0.1, math.nan, math.inf, -math.inf, True, "1", None, HUGE]

REFUSED: Mapping[str, Sequence[object]] = {
    "num_replicas": [0, -1, 1.5, "three", True, [1]],
    "max_ongoing_requests": [*NO_COUNTS, None],
    "max_queued_requests": [0, -2, 1.5, "1", None, True],
    "stream_buffer_size": [*NO_COUNTS, None],
    "inline": [0, 1, None, "no"],
    "replica_type": [None, "process", "Thread", 1],
    "user_config": [object(), {1, 2}, {"f": print}],
    "autoscaling_config": [3, [("max_replicas", 2)], {"max_replicas": 0}, {"policy": 3}],
    "backpressure_config": [429, {"status_code": 500}, {"status": 503}, {"retry_after_s": -1}],
    "graceful_shutdown_timeout_s": NO_TIMES,
    "graceful_shutdown_wait_loop_s": NO_TIMES,
    "health_check_period_s": [*NO_TIMES, 0],
    "health_check_timeout_s": [*NO_TIMES, 0],
    "max_constructor_retry_count": NO_COUNTS,
    "logging_config": ["INFO", {"log_level": "LOUD"}, {"level": "INFO"}, {"encoding": "XML"}],
    "ray_actor_options": [
        {"cpus": 1},
        {"num_cpus": -1},
        {"num_gpus": math.nan},
        {"num_gpus": 1.5},
        {"resources": 3},
    ],
    "placement_group_bundles": ["CPU", {"CPU": 1}],
    "placement_group_strategy": ["PACK", "LOOSE"],
    "placement_group_bundle_label_selector": [[{"a": "b"}], "a"],
    "max_replicas_per_node": [0, 101],
    "request_router_config": [3],
    "gang_scheduling_config": [3],
    "deployment_actors": [3],
    "rolling_update_percentage": [0, 1.1, None, True],
    "max_surge_percent": [-1, 101, 1.5, None],
}

ACCEPTED: Mapping[str, Sequence[object]] = {
    "num_replicas": [1, 1000],
    "max_ongoing_requests": [1, 10_000],
    "max_queued_requests": [-1, 1, 10_000],
    "stream_buffer_size": [1],
    "inline": [True, False],
    "replica_type": ["thread"],
    "user_config": [None, 3, "text", [1, {"a": None}], {"threshold": 0.5}],
    "graceful_shutdown_timeout_s": [0, 0.5, 1000],
    "graceful_shutdown_wait_loop_s": [0, 2],
    "health_check_period_s": [0.1, 3],
    "health_check_timeout_s": [0.1, 3],
    "max_constructor_retry_count": [None, 1, 20],
    "ray_actor_options": [{}, {"num_cpus": 0.5, "num_gpus": 1, "resources": {"tpu": 1}, "runtime_env": {}}],
    "placement_group_bundles": [None, [{"CPU": 1}]],
    "max_replicas_per_node": [None, 1, 100],
    "request_router_config": [None, {"initial_backoff_s": 1}],
    "gang_scheduling_config": [None, {}],
    "deployment_actors": [None, []],
    "rolling_update_percentage": [0.01, 1],
    "max_surge_percent": [0, 100],
}


def cases(table: Mapping[str, Sequence[object]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{index}")
        for name, values in table.items()
        for index, value in enumerate(values)
    ]


def changed(**options: object) -> DeploymentConfig:
    return DeploymentConfig().changed(options)


@pytest.mark.parametrize(("name", "value"), cases(REFUSED))
def test_a_refused_value_is_explained_with_option_and_value(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        changed(**{name: value})

    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("name", "value"), cases(ACCEPTED))
def test_an_accepted_value_is_kept(name: str, value: object) -> None:
    config = changed(**{name: value})

    assert getattr(config, name) == value


@pytest.mark.skipif(is_offered(), reason="this Python has them")
def test_interpreters_are_refused_where_there_are_none() -> None:
    with pytest.raises(NotSupportedError, match=r"replica_type='interpreter' needs CPython 3\.14.*'thread'"):
        changed(replica_type="interpreter")


@pytest.mark.skipif(not is_offered(), reason="replica_type='interpreter' exists from Python 3.14 on")
def test_interpreters_are_accepted_where_there_are_some() -> None:
    assert changed(replica_type="interpreter").replica_type == "interpreter"


def test_every_option_is_in_the_table_of_refused_values() -> None:
    assert set(REFUSED) == {each.name for each in dataclasses.fields(DeploymentConfig)}


def test_the_typed_keywords_are_the_fields_and_the_name() -> None:
    fields = {each.name for each in dataclasses.fields(DeploymentConfig)}

    assert set(get_type_hints(DeploymentOptions)) == fields | {"name"}


def test_the_defaults_are_those_of_ray_serve() -> None:
    config = DeploymentConfig()

    assert (config.num_replicas, config.max_ongoing_requests, config.max_queued_requests) == (1, 5, -1)
    assert (config.graceful_shutdown_wait_loop_s, config.graceful_shutdown_timeout_s) == (2, 20)
    assert (config.health_check_period_s, config.health_check_timeout_s) == (10, 30)
    assert (config.rolling_update_percentage, config.max_surge_percent) == (0.2, 0)
    assert config.backpressure_config == BackpressureConfig(status_code=503, retry_after_s=None)
    assert (config.user_config, config.autoscaling_config, config.logging_config) == (None, None, None)
    assert config.ray_actor_options == {}


def test_retries_are_not_set_and_streams_run_64_items_ahead_by_default() -> None:
    config = DeploymentConfig()

    assert config.max_constructor_retry_count is None
    assert config.stream_buffer_size == 64
    assert config.inline is True


def test_a_message_names_what_is_allowed() -> None:
    with pytest.raises(ConfigError) as caught:
        changed(max_ongoing_requests=0)

    assert str(caught.value) == "max_ongoing_requests must be an int of at least 1, not 0"


def test_a_message_shows_no_endless_value() -> None:
    with pytest.raises(ConfigError) as caught:
        changed(max_ongoing_requests="x" * 10_000)

    assert len(str(caught.value)) < 300


def test_a_value_whose_repr_fails_is_refused_like_any_other() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(ConfigError, match="not <Broken>"):
        changed(max_ongoing_requests=Broken())


@pytest.mark.parametrize("value", ["a", 1.5, [2]])
def test_max_replicas_per_node_of_a_wrong_type_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="max_replicas_per_node"):
        changed(max_replicas_per_node=value)


@pytest.mark.parametrize("value", [3, "num_cpus", [("num_cpus", 1)]])
def test_actor_options_that_are_no_dict_are_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="ray_actor_options must be a dict"):
        changed(ray_actor_options=value)


def test_no_actor_options_are_an_empty_dict() -> None:
    assert changed(ray_actor_options=None).ray_actor_options == {}


def test_an_unknown_option_is_a_type_error_that_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"no option 'num_replica'; did you mean 'num_replicas'\?"):
        changed(num_replica=2)


def test_an_option_like_no_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(TypeError, match=r"there are: .*max_ongoing_requests"):
        changed(zzz=2)


def test_version_is_refused_with_a_reason() -> None:
    with pytest.raises(ConfigError, match="'version'"):
        changed(version="1")


def test_only_named_options_change() -> None:
    before = changed(num_replicas=3, max_ongoing_requests=7)

    after = before.changed({"max_ongoing_requests": 8})

    assert (after.num_replicas, after.max_ongoing_requests) == (3, 8)
    assert (before.num_replicas, before.max_ongoing_requests) == (3, 7)


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DeploymentConfig().num_replicas = 2  # type: ignore[misc]


def test_a_config_survives_pickle_and_copy() -> None:
    config = changed(num_replicas="auto", user_config={"a": [1]}, ray_actor_options={"num_cpus": 2})

    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config


def test_a_later_change_of_the_users_dicts_does_not_reach_the_config() -> None:
    user_config = {"threshold": [1]}
    actor_options = {"num_cpus": 1}
    config = changed(user_config=user_config, ray_actor_options=actor_options)

    user_config["threshold"].append(2)
    actor_options["num_cpus"] = 5

    assert config.user_config == {"threshold": [1]}
    assert config.ray_actor_options == {"num_cpus": 1}


class TestReplicas:
    def test_none_is_one_replica(self) -> None:
        assert changed(num_replicas=None).initial_replicas == 1

    def test_a_number_is_that_number(self) -> None:
        assert changed(num_replicas=3).initial_replicas == 3

    def test_auto_scales_from_one_to_a_hundred(self) -> None:
        config = changed(num_replicas="auto")

        assert config.autoscaling_config == AutoscalingConfig(min_replicas=1, max_replicas=100)
        assert config.initial_replicas == 1

    def test_auto_takes_over_what_the_autoscaling_config_says(self) -> None:
        config = changed(num_replicas="auto", autoscaling_config={"min_replicas": 4})

        assert config.autoscaling_config == AutoscalingConfig(min_replicas=4, max_replicas=100)
        assert config.initial_replicas == 4

    def test_auto_raises_a_maximum_that_was_not_set(self) -> None:
        scaling = AutoscalingConfig(target_ongoing_requests=9)

        config = changed(num_replicas="auto", autoscaling_config=scaling)

        assert config.autoscaling_config == dataclasses.replace(scaling, max_replicas=100)

    def test_auto_refuses_what_is_no_autoscaling_config(self) -> None:
        with pytest.raises(ConfigError, match="autoscaling_config"):
            changed(num_replicas="auto", autoscaling_config=5)

    def test_auto_works_in_the_constructor_too(self) -> None:
        config = DeploymentConfig(num_replicas="auto")  # type: ignore[arg-type]

        assert config.initial_replicas == 1
        assert config.autoscaling_config is not None

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"min_replicas": 2, "max_replicas": 5}, 2),
            ({"min_replicas": 2, "max_replicas": 5, "initial_replicas": 4}, 4),
            ({"min_replicas": 0, "max_replicas": 5}, 1),
            ({"min_replicas": 0, "max_replicas": 5, "initial_replicas": 0}, 1),
        ],
    )
    def test_autoscaling_starts_with_initial_or_minimal_replicas_but_one(
        self, options: dict[str, int], expected: int
    ) -> None:
        assert changed(autoscaling_config=options).initial_replicas == expected

    @pytest.mark.parametrize("number", [1, 3])
    def test_a_number_and_autoscaling_in_one_call_exclude_each_other(self, number: int) -> None:
        with pytest.raises(ConfigError, match=f"num_replicas={number}.*autoscaling_config"):
            changed(num_replicas=number, autoscaling_config={"max_replicas": 3})

    def test_a_number_named_later_ends_autoscaling(self) -> None:
        config = changed(autoscaling_config={"max_replicas": 3}).changed({"num_replicas": 2})

        assert config.autoscaling_config is None
        assert config.initial_replicas == 2

    def test_autoscaling_named_later_replaces_the_number(self) -> None:
        config = changed(num_replicas=7).changed({"autoscaling_config": {"max_replicas": 3}})

        assert config.initial_replicas == 1

    def test_auto_named_later_forgets_an_earlier_autoscaling_config(self) -> None:
        config = changed(autoscaling_config={"max_replicas": 3}).changed({"num_replicas": "auto"})

        assert config.autoscaling_config == AutoscalingConfig(max_replicas=100)


class TestPlacement:
    @pytest.mark.parametrize(
        "options",
        [
            {"placement_group_strategy": "SPREAD"},
            {"placement_group_bundle_label_selector": [{"a": "b"}]},
            {"placement_group_bundles": [{"CPU": 1}], "max_replicas_per_node": 1},
        ],
    )
    def test_options_that_contradict_each_other_are_refused(self, options: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match="placement_group_"):
            changed(**options)

    def test_a_whole_placement_group_is_accepted(self) -> None:
        config = changed(placement_group_bundles=[{"CPU": 1}], placement_group_strategy="SPREAD")

        assert config.placement_group_strategy == "SPREAD"


class TestAutoscaling:
    def test_the_defaults_are_those_of_ray_serve(self) -> None:
        config = AutoscalingConfig()

        assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (1, None, 1)
        assert (config.target_ongoing_requests, config.look_back_period_s) == (2, 30)
        assert (config.upscale_delay_s, config.downscale_delay_s) == (30, 600)
        assert (config.metrics_interval_s, config.smoothing_factor) == (10, 1)
        assert config.downscale_to_zero_delay_s is None
        assert (config.upscaling_factor, config.downscaling_factor) == (None, None)
        assert (config.aggregation_function, config.policy) == ("mean", None)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (
                {"min_replicas": 3, "max_replicas": 2},
                "max_replicas must be at least min_replicas \\(3\\), not 2",
            ),
            (
                {"initial_replicas": 5, "max_replicas": 4},
                "initial_replicas must be from .* \\(1\\) to .* \\(4\\)",
            ),
            ({"initial_replicas": 0}, "initial_replicas"),
            ({"min_replicas": -1}, "min_replicas"),
            ({"max_replicas": 0}, "max_replicas"),
            ({"target_ongoing_requests": 0}, "target_ongoing_requests"),
            ({"upscale_delay_s": -1}, "upscale_delay_s"),
            ({"look_back_period_s": 0}, "look_back_period_s"),
            ({"upscaling_factor": 0}, "upscaling_factor"),
            ({"aggregation_function": "median"}, "aggregation_function must be 'mean' or 'max' or 'min'"),
            ({"policy": {"policy_function": 3}}, "policy: policy_function"),
        ],
    )
    def test_impossible_numbers_are_refused(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            AutoscalingConfig(**options)

    def test_a_dict_is_told_under_its_option(self) -> None:
        with pytest.raises(ConfigError, match=r"^autoscaling_config: max_replicas must be"):
            changed(autoscaling_config={"max_replicas": 0})

    def test_unknown_keys_of_a_dict_are_ignored(self) -> None:
        config = changed(autoscaling_config={"max_replicas": 2, "no_such_key": 1})

        assert config.autoscaling_config == AutoscalingConfig(max_replicas=2)

    def test_a_policy_may_be_a_dict(self) -> None:
        config = AutoscalingConfig(policy={"policy_function": "a:b"})  # type: ignore[arg-type]

        assert config.policy == AutoscalingPolicy(policy_function="a:b")

    @given(low=st.integers(0, 20), high=st.integers(1, 20), first=st.none() | st.integers(0, 20))
    def test_what_is_accepted_starts_within_its_bounds(self, low: int, high: int, first: int | None) -> None:
        try:
            scaling = AutoscalingConfig(min_replicas=low, max_replicas=high, initial_replicas=first)
        except ConfigError:
            assert high < low or (first is not None and not low <= first <= high)
        else:
            assert max(1, low) <= changed(autoscaling_config=scaling).initial_replicas <= high


class TestOtherSections:
    def test_backpressure_given_as_none_is_the_default(self) -> None:
        assert changed(backpressure_config=None).backpressure_config == BackpressureConfig()

    def test_backpressure_may_be_a_dict(self) -> None:
        config = changed(backpressure_config={"status_code": 429, "retry_after_s": 1.5})

        assert config.backpressure_config == BackpressureConfig(status_code=429, retry_after_s=1.5)

    def test_an_unknown_key_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(
            ConfigError, match=r"^backpressure_config: .*'retry_after'; did you mean 'retry_after_s'"
        ):
            changed(backpressure_config={"retry_after": 1})

    @pytest.mark.parametrize("level", ["debug", "DEBUG", 10])
    def test_a_log_level_is_kept_by_its_name(self, level: object) -> None:
        config = changed(logging_config={"log_level": level})

        assert config.logging_config == LoggingConfig(log_level="DEBUG")

    @pytest.mark.parametrize("level", [True, 11, 1.5, None, ["INFO"]])
    def test_what_is_no_log_level_is_refused(self, level: Any) -> None:
        with pytest.raises(ConfigError, match="log_level must be one of"):
            LoggingConfig(log_level=level)

    def test_log_attributes_are_kept_as_a_tuple(self) -> None:
        config = changed(logging_config={"additional_log_standard_attrs": ["name"]})

        assert config.logging_config == LoggingConfig(additional_log_standard_attrs=("name",))

    @pytest.mark.parametrize("value", ["name", [1], None])
    def test_log_attributes_are_strings(self, value: Any) -> None:
        with pytest.raises(ConfigError, match="additional_log_standard_attrs must be a list of strings"):
            LoggingConfig(additional_log_standard_attrs=value)


class TestHTTPOptions:
    def test_the_defaults_are_those_of_ray_serve(self) -> None:
        options = HTTPOptions()

        assert (options.host, options.port, options.root_path) == ("127.0.0.1", 8000, "")
        assert (options.request_timeout_s, options.keep_alive_timeout_s) == (None, 90)

    def test_port_0_is_accepted_for_any_free_port(self) -> None:
        assert HTTPOptions(port=0).port == 0

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"port": -1}, "port must be an int from 0 to 65535"),
            ({"port": 65536}, "port"),
            ({"port": "8000"}, "port"),
            ({"host": None}, "host must be a string"),
            ({"request_timeout_s": 0}, "request_timeout_s"),
            ({"keep_alive_timeout_s": -1}, "keep_alive_timeout_s"),
            ({"root_path": 3}, "root_path"),
        ],
    )
    def test_refused_values_are_explained(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            HTTPOptions(**options)

    @pytest.mark.parametrize("name", ["ssl_keyfile", "ssl_certfile", "ssl_keyfile_password", "ssl_ca_certs"])
    def test_tls_is_not_supported(self, name: str) -> None:
        options: dict[str, Any] = {name: "file.pem"}

        with pytest.raises(NotSupportedError, match=name):
            HTTPOptions(**options)

    def test_they_may_be_given_as_themselves_as_a_dict_or_not_at_all(self) -> None:
        options = HTTPOptions(port=1234)

        assert HTTPOptions.of(options) is options
        assert HTTPOptions.of({"port": 1234}) == options
        assert HTTPOptions.of(None) == HTTPOptions()

    def test_an_unknown_key_of_a_dict_is_refused(self) -> None:
        with pytest.raises(
            ConfigError, match="http_options: HTTPOptions has no option 'prt'; did you mean 'port'"
        ):
            HTTPOptions.of({"prt": 1})


def test_unset_is_one_object_with_a_short_repr() -> None:
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET is Unset.UNSET
    assert repr(UNSET) == "UNSET"
