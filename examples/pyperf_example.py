"""Time an app with pyperf: `python examples/pyperf_example.py`. Compare two runs with `python -m pyperf compare_to`."""

import pyperf  # pyright: ignore[reportMissingTypeStubs]

import threadserve as serve


@serve.deployment
class Greeter:
    def greet(self, name: str) -> str:
        return f"hello {name}"


if __name__ == "__main__":
    # pyperf runs this file once more in each of its worker processes: each deploys an app of its own, and times it.
    runner = pyperf.Runner()
    with serve.running(Greeter.bind()) as greeter:
        runner.bench_func("greet", lambda: greeter.greet.remote("you").result())
