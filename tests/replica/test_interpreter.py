"""What only a replica in an interpreter of its own does: where its code is found, how data gets there, how it ends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import threadserve as serve
from tests.doubles import Deployed, deployed, wait_until
from tests.replica.bodies import Broken, Everything, Lazy
from threadserve.concurrency.interpreters import is_offered
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ArgumentError, ConfigError, NotSupportedError, ReplicaStartError
from threadserve.replica.codec import LARGE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not is_offered(), reason="replica_type='interpreter' exists from Python 3.14 on"
)


@pytest.fixture(scope="module")
def kernel() -> RealKernel:
    return RealKernel()


@pytest.fixture
def everything(kernel: RealKernel) -> Iterator[Deployed]:
    with deployed(kernel, Everything, replica_type="interpreter") as everything:
        yield everything


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def posing_as(module: str, path: str) -> Any:
    """Return a class that claims to stand somewhere."""
    return type(path, (Everything,), {"__module__": module, "__qualname__": path})


class TestWhatIsDeployed:
    def test_must_not_be_local(self) -> None:
        class Local:
            pass

        with pytest.raises(ConfigError, match=r"'Local'.*inside of a function.*module of its own"):
            serve.deployment(Local, replica_type="interpreter")

    def test_must_not_be_part_of_the_program(self) -> None:
        with pytest.raises(ConfigError, match=r"__main__.*import it from there"):
            serve.deployment(posing_as("__main__", "Everything")).options(replica_type="interpreter")

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("Nothing", "tests.replica.bodies has no 'Nothing'"),
            ("Sick", "'Sick' in tests.replica.bodies is something else"),
        ],
    )
    def test_must_stand_under_its_name(self, path: str, reason: str) -> None:
        target = serve.deployment(posing_as("tests.replica.bodies", path), replica_type="interpreter")

        with pytest.raises(ConfigError, match=reason):
            serve.run(target.bind())

    def test_may_be_bound_to_what_can_be_pickled(self, kernel: RealKernel) -> None:
        with pytest.raises(ReplicaStartError, match=r"an argument of bind\(\) cannot travel") as caught:
            deployed(kernel, Everything, threading.Lock(), replica_type="interpreter").__enter__()

        assert isinstance(caught.value.__cause__, ArgumentError)

    def test_that_imports_what_cannot_be_loaded_names_it(self, kernel: RealKernel) -> None:
        with pytest.raises(ReplicaStartError, match="imports faulthandler, which cannot be loaded") as caught:
            deployed(kernel, Lazy, replica_type="interpreter").__enter__()

        assert isinstance(caught.value.__cause__, NotSupportedError)


def test_the_status_says_where_the_code_runs() -> None:
    inner = serve.deployment(Everything, name="Inner", replica_type="interpreter").bind()
    with serve.running(serve.deployment(Everything, name="Outer").bind(other=inner), name="mixed") as handle:
        assert handle.ask.remote("__call__", 1).result() == 1
        deployments = serve.status().applications["mixed"].deployments

        assert {name: each.replica_type for name, each in deployments.items()} == {
            "Inner": "interpreter",
            "Outer": "thread",
        }


class TestBuffers:
    @pytest.mark.parametrize("make", [bytearray, lambda data: memoryview(bytearray(data))])
    def test_that_are_large_are_shared(self, everything: Deployed, make: Any) -> None:
        buffer = make(b"x" * LARGE)

        assert everything.handle.kind_of.remote(buffer).result() == ("memoryview", LARGE, ord("x"))
        everything.handle.fill.remote(buffer).result()
        assert buffer[0] == 7

    def test_that_are_small_are_copied(self, everything: Deployed) -> None:
        buffer = bytearray(b"xyz")

        assert everything.handle.kind_of.remote(buffer).result() == ("bytearray", 3, ord("z"))
        everything.handle.fill.remote(buffer).result()
        assert buffer == b"xyz"

    def test_of_bytes_stay_bytes(self, everything: Deployed) -> None:
        data = b"x" * LARGE

        assert everything.handle.same.remote(data).result() == data

    def test_come_back_without_a_copy(self, everything: Deployed) -> None:
        view = everything.handle.large.remote(2 * LARGE).result()

        assert type(view) is memoryview
        assert bytes(view[-3:]) == b"xxx"
        view.release()

    def test_inside_of_other_values_are_shared_too(self, everything: Deployed) -> None:
        ((items,), _) = everything.handle.echo.remote([memoryview(b"abc"), 1]).result()

        assert bytes(items[0]) == b"abc"

    def test_outlive_the_call_that_brought_them(self, everything: Deployed) -> None:
        for _ in range(20):
            view = everything.handle.same.remote(memoryview(bytearray(LARGE))).result()
            assert view.nbytes == LARGE
            view.release()

    def test_of_numpy_arrive_as_views(self, everything: Deployed) -> None:
        numpy = pytest.importorskip("numpy")
        array = numpy.arange(6, dtype="<i4").reshape(2, 3)

        assert everything.handle.kind_of.remote(array).result() == ("memoryview", 24, 0)
        assert everything.handle.same.remote(array).result().tolist() == array.tolist()
        with pytest.raises(ArgumentError, match="Python objects"):
            everything.handle.same.remote(numpy.array([object()])).result()


class TestWhatCannotTravel:
    @pytest.mark.parametrize("value", [threading.Lock(), lambda: None], ids=["lock", "lambda"])
    def test_is_refused_as_an_argument(self, everything: Deployed, value: Any) -> None:
        with pytest.raises(ArgumentError, match="an argument cannot travel between interpreters"):
            everything.handle.same.remote(value).result()

        assert everything.handle.remote(1).result() == 1

    def test_is_refused_where_it_cannot_be_read(self, everything: Deployed) -> None:
        for method in ("same", "later"):
            with pytest.raises(ArgumentError, match="nobody reads this"):
                everything.handle.options(method_name=method).remote(Broken()).result()

        assert everything.router.statistics().ongoing == 0


class TestTheEnd:
    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no list of open files")
    def test_gives_back_threads_and_files(self, kernel: RealKernel) -> None:
        with deployed(kernel, Everything, replica_type="interpreter") as everything:
            everything.handle.later.remote(1).result()
        threads, files = threading.active_count(), open_files()

        for _ in range(3):
            with deployed(kernel, Everything, replica_type="interpreter") as everything:
                everything.handle.later.remote(1).result()

        assert threading.active_count() <= threads
        assert open_files() <= files

    def test_of_a_body_that_does_not_end_is_not_waited_for(
        self, kernel: RealKernel, caplog: pytest.LogCaptureFixture
    ) -> None:
        with deployed(
            kernel, Everything, replica_type="interpreter", graceful_shutdown_timeout_s=0.05
        ) as everything:
            response = everything.handle.hold.remote(2.5)
            wait_until(lambda: everything.router.statistics().ongoing == 1)
            everything.pool.close("the test is over")
            everything.pool.stop(kernel.now() + 0.05)

            with pytest.raises(serve.ReplicaDiedError):
                response.result()
            assert "bodies.py" in caplog.text
            wait_until(lambda: everything.router.statistics().ongoing == 0)
