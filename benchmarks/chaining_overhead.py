"""What does a hop of a chain cost, beside a call of the executor of the standard library?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from report import is_smoke, microseconds, table

import threadserve as serve

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTION = "What do a call and a further hop of a chain cost? (us, median)"


@serve.deployment
def increment(value: int) -> int:
    return value + 1


def chain(handle: serve.DeploymentHandle[Any], hops: int) -> int:
    response = handle.remote(0)
    for _ in range(hops - 1):
        response = handle.remote(response)
    return int(response.result())


def main() -> None:
    rounds, calls = (3, 20) if is_smoke(QUESTION) else (9, 300)
    with serve.running(increment.bind()) as handle, ThreadPoolExecutor(1) as executor:
        executor_us = microseconds(lambda: executor.submit(lambda: 1).result(), rounds=rounds, calls=calls)
        chains = {
            hops: microseconds(partial(chain, handle, hops), rounds=rounds, calls=calls)
            for hops in (1, 2, 4, 8)
        }
    rows: list[Sequence[object]] = [["executor, one call", executor_us, 1.0]]
    rows += [[f"chain of {hops}", cost, cost / executor_us] for hops, cost in chains.items()]
    hop = (chains[8] - chains[1]) / 7
    rows.append(["each further hop", hop, hop / executor_us])
    table(QUESTION, ["", "us", "x executor"], rows)


if __name__ == "__main__":
    main()
