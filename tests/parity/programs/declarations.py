# Section 1.1 to 1.3: how deployments are declared, which options are refused, what a Deployment is.
import threading

from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig


def fact(name, value):
    print(f"- {name}: {value!r}", flush=True)


def refusal(call):
    """What a call raises, as far as a program can tell; "accepted" where it raises nothing."""
    try:
        call()
    except BaseException as error:
        return next(
            kind.__name__
            for kind in (TypeError, ValueError, RuntimeError, AttributeError)
            if isinstance(error, kind)
        )
    return "accepted"


@serve.deployment
class Bare:
    def __call__(self):
        return 1


@serve.deployment(num_replicas=2, max_ongoing_requests=7)
class Configured:
    pass


def function():
    return 1


fact("bare decorator", type(Bare).__name__)
fact("with options", type(Configured).__name__)
fact("plain call", type(serve.deployment(function)).__name__)
fact("lambda's name", serve.deployment(lambda: 1).name)
fact("class's name", Bare.name)
fact("not callable returns a decorator", callable(serve.deployment(5)))
fact("decorating what is not callable", refusal(lambda: serve.deployment(name="x")(5)))
fact("calling a deployment", refusal(lambda: Bare()))
fact("unpicklable bind argument", refusal(lambda: Configured.bind(threading.Lock())))
fact("function with bind arguments", refusal(lambda: serve.deployment(function).bind(1)))

OPTIONS = {
    "unknown": 1,
    "route_prefix": "/x",
    "max_concurrent_queries": 3,
    "version": "1",
    "name": 5,
    "num_replicas": 0,
    "num_replicas negative": -1,
    "num_replicas fraction": 1.5,
    "num_replicas word": "many",
    "num_replicas None": None,
    "num_replicas auto": "auto",
    "max_ongoing_requests": 0,
    "max_ongoing_requests None": None,
    "max_queued_requests": 0,
    "max_queued_requests negative": -2,
    "max_queued_requests unlimited": -1,
    "backpressure_config": {"status_code": 500},
    "backpressure_config unknown": {"no": 1},
    "backpressure_config good": {"status_code": 429, "retry_after_s": 2},
    "user_config": object(),
    "user_config list": [1],
    "ray_actor_options": 5,
    "ray_actor_options unknown": {"cpus": 1},
    "ray_actor_options negative": {"num_cpus": -1},
    "ray_actor_options good": {"num_cpus": 0.5},
    "max_replicas_per_node": 0,
    "max_replicas_per_node word": "1",
    "graceful_shutdown_timeout_s": -1,
    "graceful_shutdown_wait_loop_s": -1,
    "health_check_period_s": 0,
    "health_check_timeout_s": 0,
    "max_constructor_retry_count": 0,
    "rolling_update_percentage": 2,
    "max_surge_percent": 101,
    "logging_config": {"log_level": "LOUD"},
    "logging_config good": LoggingConfig(log_level="DEBUG"),
    "autoscaling_config unknown key": {"min_replicas": 1, "max_replicas": 2, "nothing": 3},
    "autoscaling_config max below min": {"min_replicas": 3, "max_replicas": 2},
    "autoscaling_config initial outside": {"min_replicas": 1, "initial_replicas": 5, "max_replicas": 2},
}
for label, value in OPTIONS.items():
    option = label.partition(" ")[0]
    fact(f"option {label}", refusal(lambda: serve.deployment(**{option: value})(function)))
fact("name with #", refusal(lambda: serve.deployment(name="a#b")(function)))
fact(
    "num_replicas and autoscaling in one call",
    refusal(lambda: serve.deployment(num_replicas=2, autoscaling_config={"max_replicas": 3})(function)),
)
fact(
    "num_replicas, then autoscaling",
    refusal(
        lambda: serve.deployment(num_replicas=2)(function).options(autoscaling_config={"max_replicas": 3})
    ),
)
fact("rolling_update_percentage in options()", refusal(lambda: Bare.options(rolling_update_percentage=0.5)))

fact("repr", repr(Bare))
fact("version", Bare.version)
fact("num_replicas", (Bare.num_replicas, Configured.num_replicas))
fact("max_ongoing_requests", (Bare.max_ongoing_requests, Configured.max_ongoing_requests))
fact("max_queued_requests", Bare.max_queued_requests)
fact("user_config", Bare.user_config)
fact("func_or_class", Bare.func_or_class().__call__())
changed = Configured.options(num_replicas=3, name="Other")
fact(
    "options copies",
    (changed.num_replicas, changed.max_ongoing_requests, changed.name, Configured.num_replicas),
)
fact("equal to its copy", Bare == Bare.options())
fact("equal to a changed one", Bare == Bare.options(num_replicas=2))
fact("two binds are equal", Bare.bind() == Bare.bind())
fact("an application is one", isinstance(Bare.bind(), serve.Application))

defaults = AutoscalingConfig()
for name in (
    "min_replicas initial_replicas max_replicas target_ongoing_requests look_back_period_s upscale_delay_s "
    "downscale_delay_s upscaling_factor downscaling_factor"
).split():
    fact(f"autoscaling {name}", getattr(defaults, name))
fact(
    "autoscaling aggregation", getattr(defaults.aggregation_function, "value", defaults.aggregation_function)
)
fact("autoscaling refused", refusal(lambda: AutoscalingConfig(min_replicas=3, max_replicas=1)))
