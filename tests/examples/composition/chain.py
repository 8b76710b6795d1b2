# An adder and a multiplier in a row: the response of one call is the argument of the next, unresolved.
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse


@serve.deployment
class Adder:
    def __init__(self, increment: int):
        self.increment = increment

    def __call__(self, value: int) -> int:
        return value + self.increment


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Multiplier:
    def __init__(self, factor: int):
        self.factor = factor

    def __call__(self, value: int) -> int:
        return value * self.factor


@serve.deployment
class Pipeline:
    def __init__(self, adder: DeploymentHandle, multiplier: DeploymentHandle):
        self.adder, self.multiplier = adder, multiplier

    async def __call__(self, value: int) -> int:
        added: DeploymentResponse = self.adder.remote(value)
        multiplied: DeploymentResponse = self.multiplier.remote(added)
        return await multiplied


handle: DeploymentHandle = serve.run(Pipeline.bind(Adder.bind(4), Multiplier.bind(3)), route_prefix=None)
response: DeploymentResponse = handle.remote(6)
print(response.result(timeout_s=60))
