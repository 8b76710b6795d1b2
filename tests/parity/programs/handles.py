# Sections 3 and 3.1: handles, their options, and responses as arguments.
import pickle
import threading

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator


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


TOLD = {"TypeError", "ValueError", "KeyError", "RuntimeError", "TimeoutError", "AttributeError"}


@serve.deployment
class Echo:
    def __init__(self):
        self.attribute = 5
        self.ran = []

    def __call__(self, value=None, *rest):
        self.ran.append("call")
        return value

    def change(self, values):
        values.append("changed")
        return values

    def boom(self):
        raise ValueError("bad value")

    def ran_now(self):
        return len(self.ran)

    def add(self, left, *, right):
        return left + right

    def options(self):
        return "a method called options"

    def _private(self):
        return "private"

    def items(self, count):
        yield from range(count)

    def unpicklable(self):
        return threading.Lock()

    async def nested(self, other):
        return await other.remote([other.remote(1)])

    async def returned(self, other):
        return other.remote(1)

    async def kind(self, other):
        return type(other).__name__, await other.remote("through")


@serve.deployment
def function(value):
    return value * 2


@serve.deployment
class Both:
    def __init__(self, echo, function):
        self.echo, self.function = echo, function

    async def nested(self):
        return await self.echo.remote([self.echo.remote(1)])

    async def returned(self):
        return self.echo.remote(1)

    async def passed(self):
        return await self.echo.kind.remote(self.function)

    async def failed_input(self):
        try:
            await self.echo.remote(self.echo.boom.remote())
        except ValueError as error:
            return type(error).__name__, str(error).splitlines()[-1]


ray.init(num_cpus=10, include_dashboard=False)
serve.start(proxy_location="Disabled")
both = serve.run(Both.bind(Echo.bind(), function.bind()), route_prefix=None)
h = serve.get_deployment_handle("Echo", "default")
f = serve.get_deployment_handle("function", "default")

fact("classes", (type(h) is DeploymentHandle, type(h.remote()) is DeploymentResponse))
fact("stream's class", type(h.options(stream=True).items.remote(1)) is DeploymentResponseGenerator)
fact("repr", repr(h))
fact("names", (h.deployment_name, h.app_name))
fact("value", h.remote(1).result())
fact("keywords", h.add.remote(1, right=2).result())
fact("unknown option", outcome(lambda: h.options(request_id="x")))
fact("a method named like a member", h.options(method_name="options").remote().result())
fact("a private method", h._private.remote().result())
fact("calling a handle", outcome(lambda: h(1)))
fact("missing method", outcome(lambda: h.nothing.remote().result()))
fact("not callable", outcome(lambda: h.attribute.remote().result()))
fact("wrong arguments", outcome(lambda: h.add.remote(1).result()))
fact("function ignores the method", f.whatever.remote(3).result())
fact("equal to another of the same method", (h.add == h.add, h == pickle.loads(pickle.dumps(h))))
fact("an unpickled handle works", pickle.loads(pickle.dumps(h)).remote(4).result())
fact("subscriptable", (str(DeploymentHandle[int]) != "", str(DeploymentResponse[int]) != ""))

mine = ["mine"]
returned = h.change.remote(mine).result()
fact("arguments are copies", (mine, returned, returned is mine))
same = ["same"]
fact("results are copies", h.remote(same).result() is same)
fact("unpicklable argument, at result", outcome(lambda: h.remote(threading.Lock()).result()))
fact("unpicklable result", outcome(lambda: h.unpicklable.remote().result()))
fact("remote itself raises nothing", type(h.remote(threading.Lock())).__name__)

fact("a response as argument", h.remote(h.remote(5)).result())
fact("a response as keyword", h.add.remote(h.remote(1), right=h.remote(2)).result())
fact("nested in a list", outcome(lambda: h.remote([h._private.remote()]).result()))
fact("nested in an object's dict", outcome(lambda: h.remote({"a": (h._private.remote(),)}).result()))
fact("a generator as argument", outcome(lambda: h.remote(h.options(stream=True).items.remote(2)).result()))
before = h.ran_now.remote().result()
fact("a failed response as argument", outcome(lambda: h.remote(h.boom.remote()).result()))
fact("the body was not run", h.ran_now.remote().result() - before)
fact("nested, in a deployment", outcome(lambda: both.nested.remote().result()))
fact("returning a response", outcome(lambda: both.returned.remote().result()))
fact("a handle as argument", both.passed.remote().result())
fact("a failed input, in a deployment", both.failed_input.remote().result())
fact("pickling a response", outcome(lambda: pickle.dumps(h.remote(1))))
ref = ray.put([1])
fact("a ref as argument", h.remote(ref).result())
fact("a nested ref stays a ref", type(h.remote([ref]).result()[0]).__name__)
serve.shutdown()
