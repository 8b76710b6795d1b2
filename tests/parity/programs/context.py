# Section 7.3: what a replica knows of itself; and the caller's context variables.
import asyncio
import threading

import ray
from ray import serve
from ray.serve.context import _get_serve_request_context


def fact(name, value):
    print(f"- {name}: {value!r}", flush=True)


@serve.deployment(num_replicas=2)
class Who:
    def __init__(self):
        self.at_start = serve.get_replica_context().deployment

    def __call__(self):
        context = serve.get_replica_context()
        text = str(context.replica_id).replace(context.replica_tag, "TAG")
        found = []
        thread = threading.Thread(target=lambda: found.append(serve.get_replica_context().deployment))
        thread.start()
        thread.join()
        return {
            "app": context.app_name,
            "deployment": context.deployment,
            "tag": (len(context.replica_tag), context.replica_tag == context.replica_id.unique_id),
            "id": text,
            "deployment id": (
                context.replica_id.deployment_id.name,
                context.replica_id.deployment_id.app_name,
            ),
            "rank": (context.rank.rank in (0, 1), context.rank.node_rank, context.world_size),
            "instance": context.servable_object is self,
            "at start": self.at_start,
            "in a thread": found,
        }

    def ranks(self):
        return serve.get_replica_context().rank.rank

    async def request(self):
        own = _get_serve_request_context()
        return own.request_id, own.app_name, own.multiplexed_model_id, (await asyncio.gather(self.inner()))[0]

    async def inner(self):
        return _get_serve_request_context().request_id

    def model(self):
        return serve.get_multiplexed_model_id()


ray.init(num_cpus=10, include_dashboard=False)
serve.start(proxy_location="Disabled")
handle = serve.run(Who.bind(), name="who", route_prefix=None)
for name, value in handle.remote().result().items():
    fact(name, value)
ranks = set()
for _ in range(200):
    ranks |= {response.result() for response in [handle.ranks.remote() for _ in range(10)]}
    if len(ranks) == 2:
        break
fact("ranks", sorted(ranks))
response = handle.request.remote()
ours, app, model, inner = response.result()
fact("request", (ours == response.request_id == inner, app, model))
fact("no model outside", serve.get_multiplexed_model_id())
fact("model of a request", handle.options(multiplexed_model_id="m1").model.remote().result())
fact("no model without", handle.model.remote().result())
serve.shutdown()
