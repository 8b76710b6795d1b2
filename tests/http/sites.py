"""Ingresses in a module of their own: an interpreter replica imports them."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse

import threadserve as serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request


class Site:
    """Answers each path in its own way, in coroutines."""

    def __init__(self, other: Any = None) -> None:
        self.other = other
        self.notes: list[str] = []

    async def __call__(self, request: Request) -> Any:
        return await getattr(self, request.url.path.strip("/"))(request)

    async def whole(self, request: Request) -> Any:
        return [
            request.method,
            request.query_params["q"],
            request.headers["x-a"],
            request.cookies["c"],
            (await request.body()).decode(),
            await request.json(),
            request.client is not None,
            str(request.url),
        ]

    async def created(self, request: Request) -> Any:
        return JSONResponse({"made": 1}, 201, {"x-made": "yes"})

    async def streamed(self, request: Request) -> Any:
        async def items() -> AsyncIterator[str]:
            for number in range(500):
                yield f"{number},"

        return StreamingResponse(items(), media_type="text/plain")

    async def forever(self, request: Request) -> Any:
        async def items() -> AsyncIterator[str]:
            self.notes.append("begun")
            try:
                while True:
                    yield "x" * 10_000
                    await asyncio.sleep(0)
            finally:
                self.notes.append("left")

        return StreamingResponse(items())

    async def after(self, request: Request) -> Any:
        return PlainTextResponse("said", background=BackgroundTask(self.notes.append, "done after"))

    async def noted(self, request: Request) -> Any:
        return self.notes

    async def composed(self, request: Request) -> Any:
        return {"composed": await self.other.remote(20)}

    async def fails(self, request: Request) -> Any:
        raise ValueError("in the body")

    async def id(self, request: Request) -> Any:
        return serve.get_replica_context().replica_tag

    async def hangs(self, request: Request) -> Any:
        self.notes.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            self.notes.append("cancelled")


class PlainSite:
    """A ``def``, on a worker thread."""

    def __call__(self, request: Request) -> Any:
        if request.url.path == "/streamed":
            return StreamingResponse(self.items(), media_type="text/plain")
        return {"method": request.method, "thread": threading.current_thread().name}

    def items(self) -> Iterator[str]:
        for number in range(500):
            yield f"{number},"


def double(number: int) -> int:
    return 2 * number
