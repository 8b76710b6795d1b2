"""Compose: fan out to several deployments at once, and bring what they say together."""

from typing import Any

import threadserve as serve
from threadserve.futures import gather


# Deployments may be functions. Four replicas, each with one call at a time: four calls run side by side.
@serve.deployment(num_replicas=4, max_ongoing_requests=1)
def count_words(page: str) -> int:
    return len(page.split())


@serve.deployment
def longest_word(page: str) -> str:
    return max(page.split(), key=len)


@serve.deployment
class Librarian:
    def __init__(self, counter: serve.DeploymentHandle[Any], reader: serve.DeploymentHandle[Any]) -> None:
        self.counter = counter
        self.reader = reader

    async def __call__(self, *pages: str) -> str:
        # Fan out: nothing waits here, so all of these calls are under way at once.
        counts = [self.counter.remote(page) for page in pages]
        words = [self.reader.remote(page) for page in pages]
        # Fan in: `gather` awaits them together. (In a plain `def` it is `gather(...).result()`.)
        total = sum(await gather(*counts))
        longest = max(await gather(*words), key=len)
        return f"{len(pages)} pages, {total} words, the longest is {longest!r}"


app = Librarian.bind(count_words.bind(), longest_word.bind())

if __name__ == "__main__":
    book = ["call me ishmael", "some years ago never mind how long", "precisely having little or no money"]
    with serve.running(app) as librarian:
        print(librarian.remote(*book).result())
