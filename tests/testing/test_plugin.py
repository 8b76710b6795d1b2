"""The pytest plugin, seen from a test suite that uses it: each test here runs one."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeAlias

import pytest

import threadserve
from threadserve.concurrency.interpreters import is_offered

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
IS_INSTALLED = any(each.value == "threadserve.testing.plugin" for each in entry_points(group="pytest11"))

HEAD = """
import threading
import pytest
import threadserve as serve
from hypothesis import given, settings, strategies as st
from threadserve.testing import example
example.carry()

made = []
gate = threading.Event()

@serve.deployment
class Model:
    def __init__(self):
        made.append(self)

    def __call__(self, number):
        return number

    def hang(self):
        gate.wait()

    def items(self):
        while True:
            yield 1

APP = Model.bind()
"""

Suite: TypeAlias = Callable[..., pytest.RunResult]


@pytest.fixture(autouse=True, scope="module")
def all_of_ours_is_loaded() -> None:
    """Load every module: what is loaded in a run inside of this process is forgotten after it, and then there twice."""
    for module in pkgutil.walk_packages(threadserve.__path__, "threadserve."):
        if not module.name.endswith("__main__"):
            import_module(module.name)


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("CI", raising=False)

    def run(tests: str, *options: str, is_alone: bool = False) -> pytest.RunResult:
        """Run tests, in a process of their own if they leave something behind that would not end."""
        pytester.makepyfile(test_them=HEAD + tests)
        plugin = () if IS_INSTALLED else ("-p", "threadserve.testing.plugin")
        options = (*plugin, "-q", "-W", "error", "-p", "no:cacheprovider", *options)
        if is_alone:
            return pytester.runpytest_subprocess(*options, timeout=60)
        return pytester.runpytest_inprocess(*options)

    return run


def test_a_suite_that_does_not_use_it_loads_nothing_of_ours(pytester: pytest.Pytester, suite: Suite) -> None:
    script = """
import re
import sys
def test_nothing():
    loaded = {name for name in sys.modules if name.startswith("threadserve")}
    assert loaded <= {"threadserve", "threadserve.testing", "threadserve.testing.plugin", "threadserve.testing.example"}
"""
    pytester.makepyfile(test_bare=script)
    result = suite("def test_it(): pass\n", "test_bare.py", is_alone=True)

    result.assert_outcomes(passed=1)


class TestServeApp:
    def test_examples_share_the_replicas_and_hypothesis_is_content(self, suite: Suite) -> None:
        result = suite("""
@given(st.integers())
def test_it(serve_app, number):
    assert serve_app(APP).remote(number).result() == number

def test_one_was_made():
    assert len(made) == 1
""")
        result.assert_outcomes(passed=2)

    def test_each_example_gets_fresh_replicas_on_request(self, suite: Suite) -> None:
        result = suite("""
runs = []

@settings(max_examples=20)
@given(st.integers())
def test_it(serve_app, number):
    runs.append(serve_app(APP, fresh=True).remote(number).result())

def test_as_many_were_made():
    assert len(made) == len(runs) >= 20
""")
        result.assert_outcomes(passed=2)

    def test_nothing_runs_after_the_test(self, suite: Suite) -> None:
        result = suite("""
def test_it(serve_app):
    assert serve_app(APP) is serve_app(APP)

def test_after():
    assert not serve.status().applications
""")
        result.assert_outcomes(passed=2)


class TestLeaks:
    def test_a_call_without_an_answer_fails_the_test_that_made_it_and_no_other(self, suite: Suite) -> None:
        result = suite(
            """
kept = []

def test_leaks(serve_app):
    kept.append(serve_app(Model.options(graceful_shutdown_timeout_s=0).bind()).hang.remote())

def test_does_not(serve_app):
    gate.set()
    assert serve_app(APP).remote(1).result() == 1
""",
            is_alone=True,
        )
        result.assert_outcomes(failed=1, passed=1)
        result.stdout.fnmatch_lines(
            ["*the test leaves behind*", "*unanswered: app-*/Model.hang (request *) is running"]
        )

    def test_an_open_stream_fails_the_test(self, suite: Suite) -> None:
        result = suite("""
kept = []

def test_leaks(serve_app):
    stream = serve_app(APP).options(stream=True).items.remote()
    next(stream)
    kept.append(stream)
""")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*open stream: app-*/Model.items (request *) is running"])

    def test_a_stream_that_was_left_is_no_leak(self, suite: Suite) -> None:
        result = suite("""
def test_it(serve_app):
    stream = serve_app(APP).options(stream=True).items.remote()
    next(stream)
    stream.close()
""")
        result.assert_outcomes(passed=1)

    def test_a_thread_fails_the_test(self, suite: Suite) -> None:
        result = suite(
            """
@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    from threadserve.testing import census
    monkeypatch.setattr(census.threads_left, "__defaults__", (0.01,))

def test_leaks(serve_app):
    serve_app(APP)
    threading.Thread(target=gate.wait, name="forgotten", daemon=True).start()
""",
            is_alone=True,
        )
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*thread: forgotten"])

    def test_a_test_that_fails_anyway_keeps_its_failure_and_notes_the_leak(self, suite: Suite) -> None:
        result = suite("""
kept = []

def test_leaks(serve_app):
    kept.append(serve_app(APP).options(stream=True).items.remote())
    assert False, "its own failure"
""")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*its own failure*", "*open stream: *"])


def test_a_failure_that_does_not_repeat_comes_with_the_advice_to_simulate(suite: Suite) -> None:
    result = suite("""
failures = iter([True])

@given(st.integers())
def test_it(serve_app, number):
    serve_app(APP).remote(number).result()
    assert not next(failures, False), "a race that was lost once"
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*With the fixture simulated_app in the place of serve_app*"])


class TestSimulatedApp:
    RACE = """
@serve.deployment
class Store:
    def __init__(self):
        self.value = 0

    def read(self):
        return self.value

    def write(self, value):
        self.value = value

@serve.deployment(max_ongoing_requests=2)
class Counter:
    def __init__(self, store):
        self.store = store

    def add(self):
        self.store.write.remote(self.store.read.remote().result() + 1).result()

    def total(self):
        return self.store.read.remote().result()

COUNTER = Counter.bind(Store.bind())
"""

    def test_hypothesis_draws_the_schedule_and_shrinks_it(self, suite: Suite) -> None:
        result = suite(
            self.RACE
            + """
@settings(database=None, max_examples=500, deadline=None)
@given(st.lists(st.integers(1, 9)))
def test_it(simulated_app, amounts):
    with simulated_app(COUNTER) as handle:
        for call in [handle.add.remote() for _ in amounts]:
            call.result()
        assert handle.total.remote().result() == len(amounts)
"""
        )
        result.assert_outcomes(failed=1)
        for line in ("*schedule: [[]*[]]", "*amounts=[[]1, 1[]]*"):
            result.stdout.fnmatch_lines([line])

    def test_many_schedules_are_explored_and_the_one_that_fails_is_named(self, suite: Suite) -> None:
        tests = (
            self.RACE
            + """
def test_it(simulated_app):
    with simulated_app(COUNTER) as handle:
        first, second = handle.add.remote(), handle.add.remote()
        seen = handle.total.remote().result()
        first.result(), second.result()
        assert seen != 1
"""
        )
        result = suite(tests, "--threadserve-explore=200")
        result.assert_outcomes(failed=1)
        found = re.search(r"run \d+ of 200; again with --threadserve-seed=(\d+)", result.stdout.str())
        assert found is not None

        again = suite(tests, f"--threadserve-seed={found[1]}")
        again.assert_outcomes(failed=1)

    def test_without_a_seed_it_is_the_same_each_time(self, suite: Suite) -> None:
        result = suite("""
traces = []

@pytest.mark.parametrize("number", [1, 2])
def test_it(simulated_app, number):
    from threadserve import testing
    with simulated_app(APP) as handle:
        handle.remote(1).result()
        traces.append(testing.trace().text())
    assert len(set(traces)) == 1
""")
        result.assert_outcomes(passed=2)

    def test_the_clock_is_virtual_and_can_be_advanced(self, suite: Suite) -> None:
        result = suite("""
def test_it(simulated_app, fake_clock):
    with simulated_app(APP) as handle:
        fake_clock.advance(86400)
        assert fake_clock.now == pytest.approx(86400)
""")
        result.assert_outcomes(passed=1)


def test_a_test_that_times_out_tells_what_the_replicas_do_and_who_waits_for_whom(suite: Suite) -> None:
    result = suite(
        """
@serve.deployment
class Front:
    def __init__(self, model):
        self.model = model

    def ask(self):
        return self.model.hang.remote().result()

@pytest.mark.timeout(2)
def test_hangs(serve_app):
    handle = serve_app(Front.options(max_ongoing_requests=1).bind(APP))
    handle.ask.remote()
    handle.ask.remote().result()
""",
        "--timeout-method=thread",
        is_alone=True,
    )
    told = result.stderr.str() + result.stdout.str()

    assert "test_hangs is about to time out" in told
    assert "in hang" in told
    assert "Front.ask" in told
    for arrow in (
        r"app-1/Front.ask \(request .*\) -> app-1/Model.hang \(request .*\), running",
        r"app-1/Front.ask \(request .*\), queued -> a slot of app-1/Front, held by app-1/Front.ask",
    ):
        (result.stderr if "about to" in result.stderr.str() else result.stdout).re_match_lines(
            [f".*{arrow}.*"]
        )


@pytest.mark.skipif(not is_offered(), reason="replica_type='interpreter' exists from Python 3.14 on")
def test_serve_app_runs_each_test_with_each_kind_of_replica(
    suite: Suite, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(pytester.path)
    pytester.makepyfile(
        where_it_runs="""
        import threadserve as serve

        @serve.deployment
        class Where:
            def __call__(self):
                from concurrent import interpreters

                return interpreters.get_current() == interpreters.get_main()
        """
    )
    result = suite(
        """
from where_it_runs import Where

def test_where(serve_app, request):
    is_on_a_thread = serve_app(Where.bind()).remote().result()
    assert request.node.name == f"test_where[{'thread' if is_on_a_thread else 'interpreter'}]"
""",
        "--threadserve-replicas=thread,interpreter",
    )

    result.assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--threadserve-engine=dask", "there are threads, ray"),
        ("--threadserve-replicas=process", "there are thread, interpreter"),
        ("--threadserve-explore=0", "at least 1"),
        ("--threadserve-engine=threads,ray", "runs apps on threads only"),
        pytest.param(
            "--threadserve-replicas=thread,interpreter",
            "from Python 3.14 on",
            marks=pytest.mark.skipif(is_offered(), reason="Python has them"),
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused(suite: Suite, option: str, said: str) -> None:
    result = suite("def test_it(): pass", option)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{said}*"])
