"""How much more do more replicas serve, when each call waits, computes, or does both?"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from report import is_smoke, table

import threadserve as serve

QUESTION = "How much more do 2, 4 and 8 replicas serve than one? (calls/s of one; times as many with more)"
BLOCK = bytes(1 << 20)


class Work:
    def waits(self) -> None:
        time.sleep(0.005)

    def releases_gil(self) -> None:
        hashlib.sha256(BLOCK).digest()

    def computes(self) -> int:
        return sum(range(100_000))

    def mixed(self) -> None:
        self.waits()
        self.computes()


def rate(replicas: int, method: str, calls: int) -> float:
    deployment = serve.deployment(Work, num_replicas=replicas, max_ongoing_requests=1)
    with serve.running(deployment.bind()) as handle:
        call: Any = getattr(handle, method)
        call.remote().result()
        start = time.perf_counter()
        for response in [call.remote() for _ in range(calls)]:
            response.result()
        return calls / (time.perf_counter() - start)


def main() -> None:
    calls = 16 if is_smoke(QUESTION) else 400
    rows: list[list[object]] = []
    for method in ("waits", "releases_gil", "computes", "mixed"):
        one = rate(1, method, calls)
        rows.append([method, one, *(rate(replicas, method, calls) / one for replicas in (2, 4, 8))])
    table(QUESTION, ["", "1", "2", "4", "8"], rows)


if __name__ == "__main__":
    main()
