# Section 4: the answer, exceptions, cancelling.
import asyncio
import time

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


TOLD = {
    "TypeError",
    "ValueError",
    "KeyError",
    "RuntimeError",
    "TimeoutError",
    "AttributeError",
    "CancelledError",
    "Custom",
}


class Custom(Exception):
    def __init__(self, text, extra):
        super().__init__(text, extra)
        self.extra = extra


class Unrebuildable(Exception):
    def __init__(self, text, *, needed):
        super().__init__(text)
        self.needed = needed


@serve.deployment(max_ongoing_requests=10)
class Worker:
    def __init__(self):
        self.log = []

    def value(self, value):
        return value

    def slow(self, seconds):
        time.sleep(seconds)
        self.log.append("slow ended")
        return "slow"

    async def wait(self, seconds):
        try:
            await asyncio.sleep(seconds)
            self.log.append("wait ended")
            return "waited"
        except asyncio.CancelledError:
            self.log.append("wait cancelled")
            raise

    def raises(self, kind):
        if kind == "custom":
            raise Custom("custom", {"more": 1})
        if kind == "unrebuildable":
            raise Unrebuildable("x", needed=1)
        if kind == "stop":
            raise StopIteration
        if kind == "from":
            raise ValueError("bad value") from KeyError("why")
        if kind == "group":
            raise ExceptionGroup("several", [ValueError("one")])
        if kind == "timeout":
            raise TimeoutError("late")
        raise ValueError("bad value")

    def read(self):
        return list(self.log)


@serve.deployment(max_ongoing_requests=1)
class Narrow:
    def __init__(self):
        self.ran = 0

    async def hold(self, seconds):
        self.ran += 1
        await asyncio.sleep(seconds)
        return "held"

    def count(self):
        return self.ran


@serve.deployment
class Parent:
    def __init__(self, worker):
        self.worker = worker
        self.seen = []

    async def blocks(self):
        return self.worker.value.remote(1).result()

    def may_block(self):
        return self.worker.value.remote(1).result()

    async def relays_error(self):
        return await self.worker.raises.remote("plain")

    async def cancels(self):
        child = self.worker.wait.remote(5)
        await asyncio.sleep(0.1)
        child.cancel()
        try:
            await child
        except Exception as error:
            return type(error).__name__

    async def has_children(self):
        unawaited = self.worker.wait.remote(5)
        try:
            await self.worker.wait.remote(5)
        except asyncio.CancelledError:
            self.seen.append("parent cancelled")
            raise
        return unawaited

    async def ids(self):
        child = self.worker.value.remote(1)
        return child.request_id, self.worker.value.remote(2).request_id

    def read(self):
        return self.seen


def until(call, wanted):
    for _ in range(200):
        if call() == wanted:
            break
        time.sleep(0.02)
    return call()


ray.init(num_cpus=10, include_dashboard=False)
serve.start(proxy_location="Disabled")
parent = serve.run(Parent.bind(Worker.bind()), route_prefix=None)
narrow = serve.run(Narrow.bind(), name="narrow", route_prefix=None)
h = serve.get_deployment_handle("Worker", "default")

fact("positional timeout", outcome(lambda: h.value.remote(1).result(1)))
response = h.value.remote([1])
fact("repeatable", (response.result(), response.result(), response.result() is response.result()))


async def awaited(each):
    return await each


fact("awaited after result, on two loops", (asyncio.run(awaited(response)), asyncio.run(awaited(response))))


async def in_loop():
    return h.value.remote(1).result()


fact("result in a loop, of a program", outcome(lambda: asyncio.run(in_loop())))
fact("result in an async method", outcome(lambda: parent.blocks.remote().result()))
fact("result in a def", parent.may_block.remote().result())

running = h.slow.remote(0.8)
time.sleep(0.3)
fact("timeout while running", outcome(lambda: running.result(timeout_s=0.05)))
fact("it goes on", running.result())
narrow.hold.remote(0.8)
time.sleep(0.2)
queued = narrow.hold.remote(0)
fact("timeout while queued", outcome(lambda: queued.result(timeout_s=0.05)))
fact("no time at all", outcome(lambda: queued.result(timeout_s=0)))
fact("negative time", outcome(lambda: queued.result(timeout_s=-1)))
fact("queued, later", queued.result())

h.slow.remote(0.1)
fact("a dropped response runs", until(lambda: h.read.remote().result().count("slow ended"), 2))


async def gives_up():
    try:
        await asyncio.wait_for(awaited(h.wait.remote(0.6)), 0.2)
    except TimeoutError as error:
        return type(error).__name__


fact("wait_for", asyncio.run(gives_up()))
fact("and the call runs on", until(lambda: h.read.remote().result().count("wait ended"), 1))

for kind in ("plain", "custom", "stop", "group", "timeout", "unrebuildable"):
    fact(f"raises {kind}", outcome(lambda: h.raises.remote(kind).result()))
try:
    h.raises.remote("from").result()
except ValueError as error:
    fact("class's name", type(error).__name__)
    fact("str ends with", str(error).splitlines()[-1])
    fact("cause", repr(error.cause))
    fact("args", repr(error.args))
    fact("__cause__", (error.__cause__, error.cause.__cause__))
try:
    h.raises.remote("custom").result()
except Custom as error:
    fact("attributes of the cause", error.extra)
try:
    parent.relays_error.remote().result()
except ValueError as error:
    fact("through two deployments", (type(error).__name__, repr(error.cause), str(error).splitlines()[-1]))

sync = h.slow.remote(0.5)
time.sleep(0.2)
fact("cancel returns", (sync.cancel(), sync.cancel(), sync.cancelled()))
fact("cancelled while it runs, def", outcome(lambda: sync.result()))
fact("the thread runs on", until(lambda: h.read.remote().result().count("slow ended"), 3))
coroutine = h.wait.remote(5)
time.sleep(0.2)
coroutine.cancel()
fact("cancelled while it runs, async", outcome(lambda: coroutine.result()))
fact("awaiting it", outcome(lambda: asyncio.run(awaited(coroutine))))
fact("it saw CancelledError", until(lambda: h.read.remote().result().count("wait cancelled"), 1))
finished = h.value.remote("done")
finished.result()
finished.cancel()
fact("cancelled too late", (finished.cancelled(), finished.result()))
before = narrow.count.remote().result()
holder = narrow.hold.remote(0.8)
time.sleep(0.2)
queued = narrow.hold.remote(0)
queued.cancel()
fact("cancelled in the queue", outcome(lambda: queued.result()))
holder.result()
fact("and never run", narrow.count.remote().result() - before)
upstream = h.wait.remote(5)
downstream = h.value.remote(upstream)
time.sleep(0.2)
upstream.cancel()
fact("a cancelled input", outcome(lambda: downstream.result()))
upstream = h.wait.remote(0.5)
downstream = h.value.remote(upstream)
downstream.cancel()
fact("cancelled while it waits for an input", outcome(lambda: downstream.result()))
fact("its input goes on", upstream.result())
fact("a deployment cancels its child", parent.cancels.remote().result())
tree = parent.has_children.remote()
time.sleep(0.4)
cancelled_before = h.read.remote().result().count("wait cancelled")
tree.cancel()
fact("cancelled parent", outcome(lambda: tree.result()))
fact("it saw CancelledError itself", until(lambda: parent.read.remote().result(), ["parent cancelled"]))
fact(
    "children cancelled with it",
    until(lambda: h.read.remote().result().count("wait cancelled") - cancelled_before, 2),
)

response = parent.ids.remote()
children = response.result()
fact(
    "children share the request id",
    (children[0] == children[1] == response.request_id, len(response.request_id)),
)


async def as_ref():
    return ray.get(await h.value.remote(7)._to_object_ref())


fact("to a ref", asyncio.run(as_ref()))
fact("to a ref, sync", ray.get(h.value.remote(8)._to_object_ref_sync()))
serve.shutdown()
