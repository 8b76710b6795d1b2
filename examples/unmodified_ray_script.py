# A script that knows only Ray. It runs on a cluster:    python examples/unmodified_ray_script.py
# and, in a fraction of the time, on threads:            threadserve exec examples/unmodified_ray_script.py
import asyncio

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle


@ray.remote
def shorten(text: str, length: int) -> str:
    return text[:length]


@serve.deployment(num_replicas=2)
class Tokenizer:
    def split(self, text: str) -> list[str]:
        return text.split()


@serve.deployment
class Counter:
    def __init__(self, tokenizer: DeploymentHandle) -> None:
        self.tokenizer = tokenizer

    async def __call__(self, text: str) -> dict[str, int]:
        words = await self.tokenizer.split.remote(text)
        if not words:
            raise ValueError("there are no words")
        return {word: words.count(word) for word in words}


async def main(handle: DeploymentHandle) -> None:
    texts = ["to be or not to be", "tomorrow and tomorrow"]
    print(await asyncio.gather(*(handle.remote(text) for text in texts)))


if __name__ == "__main__":
    ray.init(num_cpus=8)
    handle = serve.run(Counter.bind(Tokenizer.bind()), route_prefix=None)
    asyncio.run(main(handle))
    print(handle.remote(shorten.remote("be quick, be short", 8)).result())
    try:
        handle.remote("").result()
    except ValueError as error:
        print(type(error).__name__, "-", repr(error.cause))
    ray.shutdown()
