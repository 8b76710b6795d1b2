# Section 6: concurrency, order, back-pressure, failures, shutting down.
import threading
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


TOLD = {"TypeError", "ValueError", "RuntimeError", "TimeoutError"}


@serve.deployment(max_ongoing_requests=2)
class Pool:
    def __init__(self):
        self.lock, self.now, self.most, self.order = threading.Lock(), 0, 0, []

    def __call__(self, number):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(number)
        time.sleep(0.05)
        with self.lock:
            self.now -= 1

    def read(self):
        return self.most, self.order

    def returns_coroutine(self):
        async def inner():
            return 1

        return inner()


@serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
class Full:
    def __call__(self):
        time.sleep(0.8)
        return "done"


@serve.deployment
class Front:
    def __init__(self, full):
        self.full = full

    async def burst(self):
        responses = [self.full.remote() for _ in range(6)]
        for response in responses:
            await response


@serve.deployment(health_check_period_s=0.1)
class Mortal:
    def __init__(self):
        self.sick = False

    def die(self):
        raise SystemExit

    def alive(self):
        return "alive"

    def wait(self, seconds):
        time.sleep(seconds)
        return "waited"


@serve.deployment(graceful_shutdown_timeout_s=0.5, graceful_shutdown_wait_loop_s=0.1)
class Stubborn:
    def __call__(self, seconds):
        time.sleep(seconds)
        return "finished"


ray.init(num_cpus=10, include_dashboard=False)
serve.start(proxy_location="Disabled")
handle = serve.run(Pool.bind(), route_prefix=None)
responses = [handle.remote(number) for number in range(12)]
for response in responses:
    response.result()
most, _ = handle.read.remote().result()
fact("at most two at once", most)
one = serve.run(Pool.options(max_ongoing_requests=1).bind(), name="one", route_prefix=None)
responses = [one.remote(number) for number in range(12)]
for response in responses:
    response.result()
fact("first come, first served", one.read.remote().result()[1] == list(range(12)))
fact("a coroutine from a def", outcome(lambda: handle.returns_coroutine.remote().result()))

handle = serve.run(Full.bind(), name="full", route_prefix=None)
first = handle.remote()
time.sleep(0.2)
second = handle.remote()
time.sleep(0.1)
third = handle.remote()
fact("one too many", outcome(lambda: third.result()))
try:
    third.result()
except Exception as error:
    fact("its args", error.args)
    fact("its attributes", (error.status_code, error.retry_after_s, "backpressure" in error.message))
fact("the others", (first.result(), second.result()))
front = serve.run(Front.bind(Full.bind()), name="front", route_prefix=None)
fact("through a deployment", outcome(lambda: front.burst.remote().result()))

handle = serve.run(Mortal.bind(), name="mortal", route_prefix=None)
waiting = handle.wait.remote(3)
time.sleep(0.3)
dying = handle.die.remote()
# Ray's caller hears that the replica has died or, sooner, that it is unavailable: what both are is told.
fact("SystemExit", outcome(lambda: dying.result())[1:])
fact("what else ran in it", outcome(lambda: waiting.result())[1:])
fact("a new replica answers", handle.alive.remote().result(timeout_s=60))

handle = serve.run(Stubborn.bind(), name="stubborn", route_prefix=None)
short = handle.remote(0.3)
time.sleep(0.1)
serve.delete("stubborn")
fact("short enough to finish", outcome(lambda: short.result()))
handle = serve.run(Stubborn.bind(), name="stubborn", route_prefix=None)
long = handle.remote(3)
time.sleep(0.2)
serve.delete("stubborn")
fact("too long", outcome(lambda: long.result()))
serve.shutdown()
