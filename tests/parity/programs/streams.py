# Section 5: generators.
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


TOLD = {"TypeError", "ValueError", "RuntimeError", "StopIteration", "StopAsyncIteration", "AttributeError"}


@serve.deployment(max_ongoing_requests=20)
class Producer:
    def __init__(self):
        self.log = []

    def items(self, count, name=""):
        for index in range(count):
            self.log.append(f"{name}{index}")
            yield index

    async def aitems(self, count, pause=0.0):
        try:
            for index in range(count):
                yield index
                await asyncio.sleep(pause)
        finally:
            self.log.append("closed")

    def returned(self, count):
        return (index for index in range(count))

    def plain(self):
        self.log.append("plain")
        return 1

    def breaks(self):
        yield 1
        yield 2
        raise ValueError("broken")

    def count(self, name):
        return sum(1 for each in self.log if each.startswith(name))


@serve.deployment
class Relay:
    def __init__(self, producer):
        self.producer = producer.options(stream=True)

    def items(self, count):
        for item in self.producer.items.remote(count):
            yield item * 10

    async def aitems(self, count):
        async for item in self.producer.aitems.remote(count):
            yield item * 10


ray.init(num_cpus=10, include_dashboard=False)
serve.start(proxy_location="Disabled")
relay = serve.run(Relay.bind(Producer.bind()), route_prefix=None)
h = serve.get_deployment_handle("Producer", "default")
s = h.options(stream=True)


async def collected(stream):
    return [item async for item in stream]


fact("for", list(s.items.remote(3)))
fact("for, of an async generator", list(s.aitems.remote(3)))
fact("async for", asyncio.run(collected(s.items.remote(3))))
fact("async for, of an async generator", asyncio.run(collected(s.aitems.remote(3))))
fact("a generator that is returned", list(s.returned.remote(3)))
stream = s.items.remote(1)
fact("its own iterator", iter(stream) is stream)
fact("single use", (list(stream), list(stream), outcome(lambda: next(stream))))


async def next_in_loop():
    return next(s.items.remote(1))


fact("next in a loop", outcome(lambda: asyncio.run(next_in_loop())))
fact("result", outcome(lambda: s.items.remote(1).result()))
fact(
    "no close, no aclose", [hasattr(s.items.remote(1), name) for name in ("close", "aclose", "send", "throw")]
)
before = h.count.remote("plain").result()
fact("not a generator", outcome(lambda: next(s.plain.remote())))
fact("but it was run", h.count.remote("plain").result() - before)
fact("a generator without stream", outcome(lambda: h.items.remote(1).result()))
fact("missing method", outcome(lambda: next(s.nothing.remote())))
stream = s.breaks.remote()
fact(
    "broken in the middle",
    (next(stream), next(stream), outcome(lambda: next(stream)), outcome(lambda: next(stream))),
)

stream = s.items.remote(300, "dropped ")
next(stream)
del stream
for _ in range(100):
    if h.count.remote("dropped").result() == 300:
        break
    time.sleep(0.05)
fact("a dropped stream is produced to its end", h.count.remote("dropped").result())
stream = s.aitems.remote(1000, 0.02)
next(stream)
time.sleep(0.2)
stream.cancel()
fact("cancelled", (outcome(lambda: next(stream)), outcome(lambda: next(stream)), stream.cancelled()))
for _ in range(100):
    if h.count.remote("closed").result() >= 3:
        break
    time.sleep(0.05)
fact("and closed", h.count.remote("closed").result())


async def gives_up_once():
    stream = s.aitems.remote(4, 0.1)
    got = []
    while True:
        try:
            got.append(await asyncio.wait_for(stream.__anext__(), 0.03))
        except TimeoutError:
            continue
        except StopAsyncIteration:
            return got


fact("giving up loses no item", asyncio.run(gives_up_once()))
fact("relayed", list(relay.options(stream=True).items.remote(3)))
fact("relayed, async", list(relay.options(stream=True).aitems.remote(3)))
serve.shutdown()
