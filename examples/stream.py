"""Stream: a method that yields, and callers that get the items while it still runs."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import threadserve as serve


@serve.deployment
class Poet:
    # A plain generator. It runs on a thread of its replica, ahead of its reader, but never far: when 64 items
    # have not been read (the option stream_buffer_size), `yield` waits.
    def recite(self, poem: str) -> Iterator[str]:
        yield from poem.split()


@serve.deployment
class Announcer:
    def __init__(self, poet: serve.DeploymentHandle[Any]) -> None:
        # With stream=True a call returns a generator of items instead of the response of one value.
        self.poet = poet.options(stream=True)

    # An async generator that passes on what the other yields, each item as it comes.
    async def announce(self, poem: str) -> AsyncIterator[str]:
        number = 0
        async for word in self.poet.recite.remote(poem):
            number += 1
            yield f"{number}: {word}"


app = Announcer.bind(Poet.bind())

if __name__ == "__main__":
    with serve.running(app) as announcer:
        # `for` here and `async for` above: either kind of caller reads either kind of generator.
        for line in announcer.options(stream=True).announce.remote("so much depends upon a red wheel barrow"):
            print(line)

        # Whoever leaves early closes the stream: the generators of both replicas are stopped.
        endless = announcer.options(stream=True).announce.remote("tick " * 1_000_000)
        print(next(endless), "... and that is enough")
        endless.close()
