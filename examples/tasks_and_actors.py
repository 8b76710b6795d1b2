"""Functions as tasks and classes as actors, beside deployments: refs go from one to the other."""

from typing import Any

import threadserve as serve


@serve.remote
def squares(numbers: list[int]) -> list[int]:
    return [number * number for number in numbers]


@serve.remote
def total(values: list[int]) -> int:
    return sum(values)


@serve.remote
def divide(numbers: list[int]) -> int:
    # A task may start tasks and wait for them: meanwhile its slot is lent to another one.
    if len(numbers) < 3:
        return serve.get(total.remote(squares.remote(numbers)))
    half = len(numbers) // 2
    return sum(serve.get([divide.remote(numbers[:half]), divide.remote(numbers[half:])]))


@serve.remote
class Tally:
    # An actor: one instance, one call at a time, in order. Its state needs no lock.
    def __init__(self) -> None:
        self.entries: dict[str, int] = {}

    def note(self, name: str, value: int) -> int:
        self.entries[name] = value
        return len(self.entries)

    def report(self) -> str:
        return ", ".join(f"{name}: {value}" for name, value in self.entries.items())


@serve.deployment
class Doubler:
    def __call__(self, number: int) -> int:
        return 2 * number


if __name__ == "__main__":
    tally: Any = Tally.remote()
    result = divide.remote(list(range(10)))  # a ref: there is no value yet, and nobody waits for it
    tally.note.remote(
        "squares", result
    )  # the actor is called once there is one, and what follows comes after

    with serve.running(Doubler.bind()) as doubler:
        doubled = doubler.remote(result)  # a ref is an argument of a deployment as well ...
        tally.note.remote("doubled", doubled)  # ... and a response one of an actor
        print(serve.get(tally.report.remote()))

    ready, rest = serve.wait([squares.remote([n]) for n in range(4)], num_returns=2)
    print(len(ready), "ready,", len(rest), "not asked for")
