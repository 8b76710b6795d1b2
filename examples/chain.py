"""Chain calls: the response of one is the argument of the next, before there is a value."""

from typing import Any

import threadserve as serve


@serve.deployment
class Adder:
    def __init__(self, increment: int) -> None:
        self.increment = increment

    def add(self, number: int) -> int:
        return number + self.increment


@serve.deployment
class Multiplier:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def multiply(self, number: int) -> int:
        return number * self.factor


@serve.deployment
class Calculator:
    def __init__(self, adder: serve.DeploymentHandle[Any], multiplier: serve.DeploymentHandle[Any]) -> None:
        self.adder = adder
        self.multiplier = multiplier

    async def __call__(self, number: int) -> int:
        # `.remote` gives a response: the promise of a value. It is passed on as it is; the multiplier's
        # method gets the number, once there is one, and until then no thread waits for it.
        added = self.adder.add.remote(number)
        multiplied = self.multiplier.multiply.remote(added)
        result: int = await multiplied
        return result


app = Calculator.bind(Adder.bind(2), Multiplier.bind(3))

if __name__ == "__main__":
    # The app runs as long as the block; outside of coroutines `.result()` waits for the value.
    with serve.running(app) as calculator:
        print("(5 + 2) * 3 =", calculator.remote(5).result())
