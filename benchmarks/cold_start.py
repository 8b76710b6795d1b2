"""How long from nothing to the import, and to the first result of an app of two deployments?"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from report import is_smoke, table

QUESTION = "How long from the start of Python to the import, and to the first result? (ms, median)"

SCRIPTS = {
    "bare Python": "pass",
    "import threadserve": "import threadserve",
    "first result of two deployments": """
import threadserve as serve
@serve.deployment
def child(x): return x + 1
@serve.deployment
class Parent:
    def __init__(self, child): self.child = child
    def __call__(self, x): return self.child.remote(x).result()
assert serve.run(Parent.bind(child.bind())).remote(1).result() == 2
""",
}


def milliseconds(script: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    rounds = 2 if is_smoke(QUESTION) else 15
    figures = {
        name: statistics.median(milliseconds(script) for _ in range(rounds))
        for name, script in SCRIPTS.items()
    }
    bare = figures["bare Python"]
    table(QUESTION, ["", "ms", "above bare"], [[name, cost, cost - bare] for name, cost in figures.items()])


if __name__ == "__main__":
    main()
