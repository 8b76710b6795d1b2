# Sections 1.5, 1.6, 2.1 to 2.3: constructors, reconfigure, run, redeploy, failures, delete, status.
import asyncio
import warnings

import ray
from ray import serve


def fact(name, value):
    print(f"- {name}: {value!r}", flush=True)


def outcome(call):
    """The value of a call; or what it raised, as far as programs tell exceptions apart."""
    try:
        return call()
    except BaseException as error:
        return [
            cls.__name__
            for cls in type(error).__mro__
            if cls.__name__ in TOLD or cls.__module__.startswith("ray.")
        ]


TOLD = {"TypeError", "ValueError", "KeyError", "RuntimeError", "TimeoutError"}


@serve.deployment
class Counter:
    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return self.count


@serve.deployment
class Late:
    async def __init__(self, child):
        await asyncio.sleep(0)
        self.got = await child.remote()

    def __call__(self):
        return self.got


@serve.deployment(user_config={"a": 1})
class Configured:
    def __init__(self):
        self.seen = []

    async def reconfigure(self, config):
        self.seen.append(config)

    def __call__(self):
        return self.seen


@serve.deployment(user_config={"a": 1})
class NoReconfigure:
    pass


@serve.deployment
class Broken:
    def __init__(self):
        raise ValueError("not today")


@serve.deployment
class BlocksInInit:
    def __init__(self, child):
        child.remote().result()


@serve.deployment(name="Unhealthy")
class Sick:
    def check_health(self):
        raise RuntimeError("sick")


@serve.deployment
class Outside:
    def own(self):
        return serve.get_deployment_handle("Outside").deployment_name

    def other(self):
        return serve.get_deployment_handle("Counter", "default").remote().result()


ray.init(num_cpus=10, include_dashboard=False)
fact("status before", serve.status().applications)
fact("app handle before", outcome(lambda: serve.get_app_handle("default")))
fact("delete before", outcome(lambda: serve.delete("default")))
serve.start(proxy_location="Disabled")
fact("empty name", outcome(lambda: serve.run(Counter.bind(), name="")))
fact("not bound", outcome(lambda: serve.run(Counter)))
for prefix in ("x", "/x/", "/{x}"):
    fact(f"prefix {prefix}", outcome(lambda: serve.run(Counter.bind(), route_prefix=prefix)))

handle = serve.run(Counter.bind(), route_prefix="/counter")
fact("first call", handle.remote().result())
fact("same handle", serve.get_app_handle("default") is handle)
fact("status", serve.status().applications["default"].status == "RUNNING")
deployment = serve.status().applications["default"].deployments["Counter"]
fact(
    "deployment status",
    (deployment.status == "HEALTHY", deployment.status_trigger == "CONFIG_UPDATE_COMPLETED"),
)
fact(
    "replica states",
    {str(getattr(state, "value", state)): count for state, count in deployment.replica_states.items()},
)
fact(
    "prefix of another app", outcome(lambda: serve.run(Counter.bind(), name="other", route_prefix="/counter"))
)
again = serve.run(Counter.bind(), route_prefix="/counter")
fact("redeploy restarts", (again is handle, handle.remote().result()))
serve.run(Outside.bind(), name="second", route_prefix=None)
fact(
    "other apps stay",
    sorted(name for name, app in serve.status().applications.items() if app.status == "RUNNING"),
)
second = serve.get_app_handle("second")
fact("own deployment's handle", second.own.remote().result())
fact("another app's deployment", second.other.remote().result())
fact("unknown app", outcome(lambda: serve.get_app_handle("nobody")))
fact("unknown deployment", outcome(lambda: serve.get_deployment_handle("Nobody", "default")))
fact("no app outside of a replica", outcome(lambda: serve.get_deployment_handle("Counter")))
fact("replica context outside", outcome(serve.get_replica_context))

fact(
    "async constructor calls",
    serve.run(Late.bind(Counter.bind()), name="late", route_prefix=None).remote().result(),
)
fact("reconfigure", serve.run(Configured.bind(), name="configured", route_prefix=None).remote().result())
changed = Configured.options(user_config={"a": 2}).bind()
fact("other user_config", serve.run(changed, name="configured", route_prefix=None).remote().result()[-1])
for application, name in (
    (NoReconfigure.bind(), "noreconfigure"),
    (Broken.bind(), "broken"),
    (Sick.bind(), "sick"),
):
    fact(f"start of {name}", outcome(lambda: serve.run(application, name=name, route_prefix=None)))
    app = serve.status().applications[name]
    deployment = next(iter(app.deployments.values()))
    fact(
        f"status of {name}",
        (
            app.status == "DEPLOY_FAILED",
            deployment.status == "DEPLOY_FAILED",
            deployment.status_trigger == "REPLICA_STARTUP_FAILED",
        ),
    )
broken = serve.status().applications["broken"].deployments["Broken"]
fact("the reason is in the status", "ValueError: not today" in broken.message)
blocking = BlocksInInit.bind(Counter.bind())
fact("result() in a constructor", outcome(lambda: serve.run(blocking, name="blocks", route_prefix=None)))

fact("unknown delete", outcome(lambda: serve.delete("nobody")))
serve.delete("default")
fact("call after delete", outcome(lambda: handle.remote().result(timeout_s=5)))
serve.run(Counter.bind(), route_prefix=None)
fact("old handle after a new run", outcome(lambda: handle.remote().result(timeout_s=20)))
many = serve.run_many(
    [
        serve.RunTarget(Counter.bind(), name="m1", route_prefix=None),
        serve.RunTarget(Counter.bind(), name="m2", route_prefix="/m2"),
    ]
)
fact("run_many", [(each.app_name, each.remote().result()) for each in many])
fact("run_many of nothing", outcome(lambda: serve.run_many([])))
serve.shutdown()
fact("status after shutdown", serve.status().applications)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    serve.shutdown()
fact("second shutdown", "accepted")
