from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.testing.programs import run
from threadserve.testing import loops
from threadserve.testing.scheduler import SimulatedKernel, explore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

ROOT = Path(loops.__file__).parents[2]


def on_a_loop(coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> SimulatedKernel:
    def main(kernel: SimulatedKernel) -> None:
        loop = kernel.new_event_loop()
        loop.run_until_complete(coroutine())
        loop.close()

    return run(main)


class TestEventLoop:
    def test_sleeps_five_minutes_at_once(self) -> None:
        start = time.monotonic()

        assert on_a_loop(lambda: asyncio.sleep(300)).now() == 300
        assert time.monotonic() - start < 60

    def test_keeps_the_order_of_virtual_time(self) -> None:
        order: list[tuple[str, float]] = []

        async def sleep(name: str, delay: float) -> None:
            await asyncio.sleep(delay)
            order.append((name, asyncio.get_running_loop().time()))

        async def main() -> None:
            await asyncio.gather(sleep("c", 30), sleep("a", 10), sleep("b", 20))

        on_a_loop(main)

        assert order == [("a", 10), ("b", 20), ("c", 30)]

    def test_knows_timeouts(self) -> None:
        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5):
                    await asyncio.sleep(6)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 5)
            assert await asyncio.wait_for(asyncio.sleep(1, "slept"), 5) == "slept"

        assert on_a_loop(main).now() == 11

    def test_runs_in_a_thread_and_is_woken_by_others(self) -> None:
        orders = set()

        def main(kernel: SimulatedKernel) -> None:
            loop = kernel.new_event_loop()
            order: list[str] = []
            server = kernel.spawn("loop", loop.run_forever)

            def send(name: str) -> None:
                loop.call_soon_threadsafe(order.append, name)

            clients = [kernel.spawn(name, lambda name=name: send(name)) for name in "ab"]  # type: ignore[misc]
            for client in clients:
                client.join()
            kernel.waiter().wait(100)
            loop.call_soon_threadsafe(loop.stop)
            server.join()
            loop.close()
            orders.add("".join(order))

        explore(main, 30)

        assert orders == {"ab", "ba"}

    def test_runs_what_blocks_in_a_thread_of_the_kernel(self) -> None:
        def main(kernel: SimulatedKernel) -> None:
            async def call() -> int:
                with pytest.raises(ZeroDivisionError):
                    await asyncio.to_thread(lambda: 1 // 0)
                sleeping = asyncio.to_thread(kernel.waiter().wait, 50)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(sleeping, 20)
                return await asyncio.to_thread(lambda: 42)

            loop = kernel.new_event_loop()
            assert loop.run_until_complete(call()) == 42
            loop.close()

        explore(main, 20)

    def test_refuses_files_signals_and_executors(self) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            with pytest.raises(RuntimeError, match="has no files, sockets or pipes"):
                loop.add_reader(0, print)
            with pytest.raises(RuntimeError, match="gets no signals"):
                loop.add_signal_handler(signal.SIGUSR1, print)
            with pytest.raises(RuntimeError, match="not under control"):
                await loop.run_in_executor(object(), print)  # type: ignore[arg-type]

        on_a_loop(main)

    def test_that_is_left_running_is_closed_and_its_tasks_end(self, caplog: pytest.LogCaptureFixture) -> None:
        ended: list[str] = []

        async def work(name: str) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                ended.append(name)

        def main(kernel: SimulatedKernel) -> asyncio.AbstractEventLoop:
            loop = kernel.new_event_loop()

            def serve() -> None:
                tasks = [loop.create_task(work(str(number))) for number in range(12)]
                loop.run_forever()
                del tasks

            kernel.spawn("loop", serve)
            return loop

        kernel = SimulatedKernel()
        loop = kernel.run(lambda: main(kernel))

        assert loop.is_closed()
        assert ended == [str(number) for number in range(12)]
        gc.collect()
        assert not caplog.records

    def test_may_be_ended_properly_by_its_own_thread(self) -> None:
        ended: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(0)
                ended.append("task")

        def main(kernel: SimulatedKernel) -> None:
            def serve() -> None:
                loop = kernel.new_event_loop()
                task = loop.create_task(work())
                try:
                    loop.run_forever()
                finally:
                    task.cancel()
                    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
                    loop.close()
                    ended.append("loop")

            kernel.spawn("loop", serve)

        run(main)

        assert ended == ["task", "loop"]

    def test_is_what_imports_asyncio(self) -> None:
        code = """
import sys
from threadserve.testing.scheduler import SimulatedKernel
SimulatedKernel().run(lambda: None)
assert "asyncio" not in sys.modules
"""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}

        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
