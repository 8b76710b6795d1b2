"""The pytest plugin: loaded by its entry point, it loads nothing else of ours until a test uses it.

* ``serve_app(app)``, ``with simulated_app(app) as handle``, ``fake_clock``: see ``fixtures.py``
* what a test of ``serve_app`` leaves behind (threads, unanswered calls, open streams) fails it
* ``--threadserve-seed``, ``--threadserve-explore=N``: which schedule, and how many, for ``simulated_app``
* ``--threadserve-replicas=thread,interpreter``: each test of ``serve_app`` once with each kind of replica
* ``--threadserve``: a suite that imports ray runs on threads, ours standing in; ``serve_url`` is where HTTP is served
* a test that times out (with pytest-timeout) tells what every replica is doing, and who waits for whom
* a failure that Hypothesis could not repeat says what to do about it
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from threadserve.testing.fixtures import FakeClock, ServedApps, SimulatedApps

__all__: list[str] = []

_SERVED: pytest.StashKey[ServedApps] = pytest.StashKey()
_SIMULATED: pytest.StashKey[SimulatedApps] = pytest.StashKey()
_ALARM: pytest.StashKey[threading.Timer] = pytest.StashKey()

_HINT = (
    "threadserve: the threads of the app may have raced, in another order each time. With the fixture simulated_app "
    "in the place of serve_app (or testing.simulate in the place of serve.running) the order is drawn by Hypothesis too, "
    "so that the failure repeats and shrinks."
)
_ENGINES = ("threads", "ray")
_REPLICAS = ("thread", "interpreter")


# ---- options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("threadserve")
    group.addoption(
        "--threadserve",
        action="store_true",
        help="run tests that import ray on threads, with threadserve in the place of ray",
    )
    group.addoption(
        "--threadserve-seed",
        type=int,
        default=0,
        metavar="N",
        help="the schedule of simulated_app; 0 by default",
    )
    group.addoption(
        "--threadserve-explore",
        type=int,
        default=1,
        metavar="N",
        help="run each test that uses simulated_app under N schedules, until one fails",
    )
    group.addoption(
        "--threadserve-engine",
        default="threads",
        metavar="NAMES",
        help="where serve_app runs apps, in this order: threads; ray is to come",
    )
    group.addoption(
        "--threadserve-replicas",
        default="thread",
        metavar="KINDS",
        help="what kinds of replicas serve_app uses, one after the other: thread, interpreter (from Python 3.14 on)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Put our modules in the place of Ray's before a conftest can import them."""
    if getattr(early_config.known_args_namespace, "threadserve", False):
        from threadserve import as_ray

        as_ray.install(http=False)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Shut down what a suite for Ray has left running, as the end of a program does."""
    if config.getoption("--threadserve"):
        from threadserve import as_ray

        as_ray.uninstall()


def pytest_configure(config: pytest.Config) -> None:
    """Refuse options that cannot be."""
    for engine in _option(config, "engine").split(","):
        if engine not in _ENGINES:
            raise pytest.UsageError(f"--threadserve-engine={engine}: there are {', '.join(_ENGINES)}")
        if engine == "ray":
            raise pytest.UsageError(
                "--threadserve-engine=ray: this version of threadserve runs apps on threads only, whether or not Ray is there"
            )
    for kind in _kinds(config):
        if kind not in _REPLICAS:
            raise pytest.UsageError(f"--threadserve-replicas={kind}: there are {', '.join(_REPLICAS)}")
        if kind == "interpreter" and find_spec("concurrent.interpreters") is None:
            raise pytest.UsageError("--threadserve-replicas=interpreter: they exist from Python 3.14 on")
    if _option(config, "explore") < 1:
        raise pytest.UsageError("--threadserve-explore: at least 1")


def _option(config: pytest.Config, name: str) -> Any:
    return config.getoption(f"--threadserve-{name}")


def _kinds(config: pytest.Config) -> list[str]:
    """Return the kinds of replicas that are asked for."""
    return str(_option(config, "replicas")).split(",")


# ---- fixtures


@pytest.fixture(scope="session")
def serve_app(request: pytest.FixtureRequest) -> ServedApps:
    """Apps on real threads: call it with an app to get a handle, with ``fresh=True`` to get new replicas."""
    from threadserve.testing.fixtures import ServedApps

    served = request.config.stash[_SERVED] = ServedApps(getattr(request, "param", _REPLICAS[0]))
    return served


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have each test of ``serve_app`` run with each kind of replica that is asked for."""
    kinds = _kinds(metafunc.config)
    if "serve_app" in metafunc.fixturenames and kinds != [_REPLICAS[0]]:
        metafunc.parametrize("serve_app", kinds, indirect=True, scope="session")


@pytest.fixture
def serve_url() -> str:
    """Where apps with a route prefix are served over HTTP: ``http://127.0.0.1:<port>``. Opened when it is first asked for."""
    from threadserve.as_ray import serve_url

    return serve_url()


@pytest.fixture(scope="session")
def simulated_app(request: pytest.FixtureRequest) -> SimulatedApps:
    """Apps in the simulator: call it with an app to get a context manager. Hypothesis draws the schedule."""
    from threadserve.testing.fixtures import SimulatedApps

    seed = _option(request.config, "seed")
    simulated = request.config.stash[_SIMULATED] = SimulatedApps(seed)
    return simulated


@pytest.fixture(scope="session")
def fake_clock() -> FakeClock:
    """Read and advance the virtual time of the app that ``simulated_app`` runs."""
    from threadserve.testing.fixtures import FakeClock

    return FakeClock()


# ---- around a test


def pytest_runtest_setup() -> None:
    """Load the runtime before the first test that will use it, whose deadline would have to bear that otherwise."""
    if "threadserve.app.deployment" in sys.modules:
        import_module("threadserve.api")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Stop what the test has started with ``serve_app``; what is left then fails the test, unless it has failed already."""
    served = item.config.stash.get(_SERVED, None) if _uses(item, "serve_app") else None
    if served is None:
        return (yield)
    served.begin()
    try:
        result = yield
    except BaseException as failure:
        try:
            served.end()
        except AssertionError as left:
            failure.add_note(str(left))
        raise
    try:
        served.end()
    except AssertionError as left:
        pytest.fail(str(left), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Say what to do about a failure that does not repeat."""
    try:
        return (yield)
    except Exception as failure:
        if _may_have_raced(failure) and not _uses(pyfuncitem, "simulated_app"):
            failure.add_note(_HINT)
        raise


def _may_have_raced(failure: Exception) -> bool:
    """Whether Hypothesis could not repeat it, for another reason than that one example took longer."""
    errors = sys.modules.get("hypothesis.errors")
    if errors is None or "threadserve.api" not in sys.modules or not isinstance(failure, errors.Flaky):
        return False
    parts = getattr(failure, "exceptions", ())
    return not (parts and all(isinstance(part, errors.DeadlineExceeded) for part in parts))


class _Exploration:
    """Runs a test under many schedules."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Call the test with one seed after the other; not one of Hypothesis', which draws its schedules itself."""
        runs = _option(pyfuncitem.config, "explore")
        if not _uses(pyfuncitem, "simulated_app") or getattr(pyfuncitem.obj, "is_hypothesis_test", False):
            return None
        simulated = pyfuncitem.config.stash[_SIMULATED]
        first = seed = simulated.seed
        names = pyfuncitem._fixtureinfo.argnames
        arguments = {name: pyfuncitem.funcargs[name] for name in names}
        try:
            for seed in range(first, first + runs):
                simulated.seed = seed
                pyfuncitem.obj(**arguments)
        except Exception as failure:
            failure.add_note(
                f"threadserve: run {seed - first + 1} of {runs}; again with --threadserve-seed={seed}"
            )
            raise
        finally:
            simulated.seed = first
        return True


def pytest_sessionstart(session: pytest.Session) -> None:
    """Explore where that is asked for."""
    if _option(session.config, "explore") > 1:
        session.config.pluginmanager.register(_Exploration(), "threadserve-exploration")


# ---- a test that times out


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Be there shortly before pytest-timeout is, which may end the process."""
    if settings.timeout:
        early = min(0.5, settings.timeout / 4)
        alarm = item.stash[_ALARM] = threading.Timer(settings.timeout - early, _tell, (item,))
        alarm.name, alarm.daemon = "threadserve timeout", True
        alarm.start()


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    """The test has ended in time."""
    alarm = item.stash.get(_ALARM, None)
    if alarm is not None:
        alarm.cancel()


def _tell(item: pytest.Item) -> None:
    if "threadserve.api" not in sys.modules:
        return
    from threadserve.testing import census

    text = f"{item.nodeid} is about to time out. What threadserve is doing:\n{census.describe()}\n"
    capture: Any = item.config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        sys.stderr.write(text)
    else:
        with capture.global_and_fixture_disabled():
            sys.stderr.write(text)
            sys.stderr.flush()


def _uses(item: pytest.Item, fixture: str) -> bool:
    return fixture in getattr(item, "fixturenames", ())
