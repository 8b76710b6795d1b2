# A stream that is read and yielded again on its way.
from typing import AsyncGenerator, Generator

from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator


@serve.deployment
class Source:
    def __call__(self, limit: int) -> Generator[int, None, None]:
        for number in range(limit):
            yield number


@serve.deployment
class Squares:
    def __init__(self, source: DeploymentHandle):
        self.source = source.options(stream=True)

    async def __call__(self, limit: int) -> AsyncGenerator[int, None]:
        numbers: DeploymentResponseGenerator = self.source.remote(limit)
        async for number in numbers:
            yield number * number


handle = serve.run(Squares.bind(Source.bind()), route_prefix=None).options(stream=True)
for square in handle.remote(5):
    print(square)
