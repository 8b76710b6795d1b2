# Tasks, actors and refs, by themselves and beside deployments.
import asyncio
import time

import ray
from ray import serve
from ray.util import ActorPool


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


TOLD = {"TypeError", "ValueError", "RuntimeError", "TimeoutError"}


@ray.remote
def double(value):
    return 2 * value


@ray.remote(num_cpus=0.5, num_returns=2)
def pair(value):
    return value, value + 1


@ray.remote
def kind(values):
    return type(values).__name__, type(values[0]).__name__


@ray.remote
def boom():
    raise ValueError("bad value")


@ray.remote
def slow(seconds):
    time.sleep(seconds)
    return "slow"


@ray.remote
def change(values):
    values.append(1)
    return values


@ray.remote
def produce(count):
    for index in range(count):
        yield index
    if count == 2:
        raise ValueError("after two")


@ray.remote
def nested(value):
    return ray.get(double.remote(value)) + 1


@ray.remote
class Counter:
    def __init__(self, start=0):
        self.count = start
        self.log = []

    def add(self, number=1):
        self.count += number
        return self.count

    def boom(self):
        raise KeyError("actor")

    def fails(self):
        raise ValueError("bad value")

    def items(self, count):
        for index in range(count):
            yield index


@ray.remote(max_concurrency=3)
class Async:
    def __init__(self):
        self.now = self.most = 0

    async def work(self):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.1)
        self.now -= 1
        return self.most


@ray.remote
class Broken:
    def __init__(self):
        raise ValueError("not today")

    def call(self):
        return 1


@serve.deployment
class Deployed:
    def __call__(self, value):
        return value + 1

    async def uses_a_task(self, value):
        return await double.remote(value)

    def uses_an_actor(self, counter):
        return ray.get(counter.add.remote(10))

    def items(self, count):
        yield from range(count)


ray.init(num_cpus=10, include_dashboard=False)
serve.start(proxy_location="Disabled")
fact("initialised", ray.is_initialized())
fact("twice", outcome(lambda: ray.init()))
fact("twice, ignored", ray.init(ignore_reinit_error=True) is not None)
fact("a task", ray.get(double.remote(2)))
fact("several", ray.get([double.remote(1), double.remote(2)]))
fact("ref's class", type(double.remote(1)).__name__)
fact("two returns", ray.get(pair.remote(1)))
fact("options", ray.get(double.options(num_cpus=2).remote(3)))
fact("calling it directly", outcome(lambda: double(1)))
fact("get of something else", outcome(lambda: ray.get(5)))
fact("put", ray.get(ray.put({"a": 1})))
fact("put a ref", outcome(lambda: ray.put(ray.put(1))))
ref = ray.put([5])
fact("refs resolve, nested ones stay", (ray.get(kind.remote([ref])), ray.get(kind.remote(ref))))
mine = []
fact("arguments are copies", (ray.get(change.remote(mine)), mine))
fact("each get is a copy", ray.get(ref) is ray.get(ref))
fact("an exception", outcome(lambda: ray.get(boom.remote())))
fact("of an input", outcome(lambda: ray.get(double.remote(boom.remote()))))
fact("get with a timeout", outcome(lambda: ray.get(slow.remote(1), timeout=0.05)))
refs = [slow.remote(0), slow.remote(2)]
ready, rest = ray.wait(refs, timeout=1.5)
fact("wait", ([refs.index(each) for each in ready], [refs.index(each) for each in rest]))
fact("wait for more than there are", outcome(lambda: ray.wait(refs, num_returns=3)))
fact("generator", [ray.get(each) for each in produce.remote(3)])
failing = []
for each in produce.remote(2):
    failing.append(outcome(lambda: ray.get(each)))
fact("failing generator", failing)
fact("a task in a task", ray.get(nested.remote(4)))


async def awaited():
    return await double.remote(8), await asyncio.gather(double.remote(1), double.remote(2))


fact("await", asyncio.run(awaited()))

counter = Counter.remote(5)
fact("an actor, in order", ray.get([counter.add.remote() for _ in range(5)]))
fact("its generator", [ray.get(each) for each in counter.items.remote(2)])
fact("its exception", outcome(lambda: ray.get(counter.fails.remote())))
fact("it lives on", ray.get(counter.add.remote()))
fact("missing method", hasattr(counter, "nothing"))
fact("calling a class", outcome(lambda: Counter()))
fact("calling a method", outcome(lambda: counter.add()))
named = Counter.options(name="named").remote(1)
fact("by name", ray.get(ray.get_actor("named").add.remote()))
fact("name taken", outcome(lambda: Counter.options(name="named").remote()))
fact("get if exists", ray.get(Counter.options(name="named", get_if_exists=True).remote().add.remote()))
fact("no such name", outcome(lambda: ray.get_actor("nobody")))
asynchronous = Async.remote()
fact("async actor", max(ray.get([asynchronous.work.remote() for _ in range(6)])))
fact("broken constructor", outcome(lambda: ray.get(Broken.remote().call.remote())))
ray.kill(counter)
killed = 0
for _ in range(100):  # it takes effect when it takes effect
    killed = outcome(lambda: ray.get(counter.add.remote(), timeout=20))
    if isinstance(killed, list):
        break
    time.sleep(0.05)
fact("killed", killed)
pool = ActorPool([Counter.remote(), Counter.remote()])
fact("pool", list(pool.map(lambda actor, value: actor.add.remote(value), [1, 1])))

handle = serve.run(Deployed.bind(), route_prefix=None)
fact("a response becomes a task's argument", ray.get(double.remote(handle.remote(1)._to_object_ref_sync())))
fact("a ref becomes a deployment's argument", handle.remote(double.remote(4)).result())
fact("a task in a deployment", handle.uses_a_task.remote(3).result())
fact("an actor in a deployment", handle.uses_an_actor.remote(named).result())


async def chain():
    ref = await handle.remote(1)._to_object_ref()
    return await double.remote(ref)


fact("response, ref, task", asyncio.run(chain()))
stream = handle.options(stream=True).items.remote(3)
fact("a stream as refs", [ray.get(each) for each in stream._to_object_ref_gen_sync()])
ray.shutdown()
fact("after shutdown", ray.is_initialized())
