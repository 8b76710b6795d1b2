# A response becomes a ref, and the ref the argument of a task.
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse


@ray.remote
def shout(text: str) -> str:
    return text.upper() + "!"


@serve.deployment
class Greeter:
    def __call__(self, name: str) -> str:
        return f"hello {name}"


@serve.deployment
class Driver:
    def __init__(self, greeter: DeploymentHandle):
        self.greeter = greeter

    async def __call__(self, name: str) -> str:
        response: DeploymentResponse = self.greeter.remote(name)
        ref: ray.ObjectRef = await response._to_object_ref()
        return await shout.remote(ref)


handle = serve.run(Driver.bind(Greeter.bind()), route_prefix=None)
print(handle.remote("Ada").result())
ref = serve.get_deployment_handle("Greeter", "default").remote("Grace")._to_object_ref_sync()
print(ray.get(shout.remote(ref)))
