"""Property tests: Hypothesis draws the inputs and the order of the threads, and shrinks what fails to what it takes."""

from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import threadserve as serve
from threadserve import testing


@serve.deployment
class Ledger:
    def __init__(self) -> None:
        self.balance = 0

    def read(self) -> int:
        return self.balance

    def write(self, balance: int) -> None:
        self.balance = balance


# The mistake: there may be two deposits at once, and both may read before one writes.
@serve.deployment(max_ongoing_requests=2)
class Teller:
    def __init__(self, ledger: serve.DeploymentHandle[Any]) -> None:
        self.ledger = ledger

    def deposit(self, amount: int) -> None:
        balance = self.ledger.read.remote().result()
        self.ledger.write.remote(balance + amount).result()

    def balance(self) -> int:
        return self.ledger.read.remote().result()


racy = Teller.bind(Ledger.bind())
sound = Teller.options(max_ongoing_requests=1).bind(Ledger.bind())


def check_that_nothing_is_lost(app: serve.Application[Any]) -> None:
    @settings(deadline=None, derandomize=True, print_blob=False, phases=[Phase.generate, Phase.shrink])
    @given(st.lists(st.integers(1, 100), max_size=6), testing.schedules())
    def nothing_is_lost(amounts: list[int], schedule: list[int]) -> None:
        with testing.simulate(app, strategy=testing.Replay(schedule)) as teller:
            for deposit in [teller.deposit.remote(amount) for amount in amounts]:
                deposit.result()
            assert teller.balance.remote().result() == sum(amounts), testing.trace().mermaid()

    nothing_is_lost()


if __name__ == "__main__":
    try:
        check_that_nothing_is_lost(racy)
    except AssertionError as failure:
        print(failure.__notes__[-1], failure, sep="\n")  # what it was shrunk to, and what happens then
    check_that_nothing_is_lost(sound)
    print("With one call at a time, nothing is lost.")
