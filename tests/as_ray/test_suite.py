"""``pytest --threadserve``: a suite that was written for Ray, on threads."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
IS_INSTALLED = any(each.value == "threadserve.testing.plugin" for each in entry_points(group="pytest11"))

CONFTEST = """
import pytest
import ray
from ray import serve

@pytest.fixture(scope="session", autouse=True)
def cluster():
    ray.init(num_cpus=4)
    yield
    ray.shutdown()
"""
TESTS = """
import urllib.request
import pytest
from ray import serve
from ray.exceptions import RayTaskError

@serve.deployment
class Echo:
    def __call__(self, request):
        return request.url.path

    def boom(self):
        raise KeyError("x")

def test_without_http():
    handle = serve.run(Echo.bind())
    with pytest.raises(KeyError) as info:
        handle.boom.remote().result()
    assert isinstance(info.value, RayTaskError)
    assert serve.status().proxies == {}

def test_with_http(serve_url):
    with urllib.request.urlopen(serve_url + "/path", timeout=30) as response:
        assert response.read() == b"/path"
"""


@pytest.mark.slow
def test_a_suite_for_ray_runs_on_threads(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_them=TESTS)
    plugin = [] if IS_INSTALLED else ["-p", "threadserve.testing.plugin"]

    result = pytester.runpytest_subprocess(*plugin, "--threadserve", timeout=60)

    result.assert_outcomes(passed=2)
