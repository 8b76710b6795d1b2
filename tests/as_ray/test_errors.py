"""RayTaskError in its two natures, and our errors as Ray's."""

from __future__ import annotations

import copy
import pickle

import pytest

from threadserve import errors as ours
from threadserve.as_ray.errors import (
    ActorDiedError,
    BackPressureError,
    DeploymentUnavailableError,
    RayError,
    RayServeException,
    RayTaskError,
    RequestCancelledError,
    TaskCancelledError,
    UnserializableException,
    translated,
    wrapped,
)


class Rich(Exception):
    def __init__(self, text: str, extra: int) -> None:
        super().__init__(text, extra)
        self.extra = extra


def the_same(error: Exception) -> Exception:
    return error


def test_a_wrapped_error_is_a_ray_task_error_and_what_it_was() -> None:
    error = wrapped("app/D.m", ValueError("bad value"), the_same)

    assert type(error).__name__ == "RayTaskError(ValueError)"
    assert isinstance(error, ValueError)
    assert isinstance(error, RayTaskError)
    assert error.args == (error.cause,)
    assert str(error).splitlines()[-1] == "ValueError: bad value"
    assert [cls.__name__ for cls in type(error).__mro__][1:4] == ["RayTaskError", "RayError", "ValueError"]


def test_attributes_of_the_cause_can_be_reached() -> None:
    error = wrapped("app/D.m", Rich("text", 5), the_same)

    assert isinstance(error, Rich)
    assert error.extra == 5
    with pytest.raises(AttributeError, match="nothing"):
        _ = error.nothing  # type: ignore[attr-defined]


def test_wrapped_twice_is_wrapped_once_and_tells_both_places() -> None:
    inner = wrapped("app/Inner.m", ValueError("bad value"), the_same)
    outer = wrapped("app/Outer.m", inner, the_same)

    assert type(outer) is type(inner)
    assert isinstance(outer, RayTaskError)
    assert repr(outer.cause) == "ValueError('bad value')"
    assert "app/Inner.m" in str(outer)
    assert "app/Outer.m" in str(outer)


@pytest.mark.parametrize(
    "cause",
    [OSError(2, "no such thing"), KeyError("k"), ExceptionGroup("g", [ValueError()]), UnicodeError("u")],
)
def test_builtin_classes_of_every_layout_can_be_wrapped(cause: Exception) -> None:
    error = wrapped("app/D.m", cause, the_same)

    assert isinstance(error, type(cause))
    assert isinstance(error, RayTaskError)
    assert error.cause is cause


def test_a_class_that_python_lets_no_other_join_stays_reachable_as_the_cause() -> None:
    class Final(Exception):
        def __init_subclass__(cls) -> None:
            raise TypeError("nobody inherits")

    error = wrapped("app/D.m", Final("x"), the_same)

    assert type(error) is RayTaskError
    assert isinstance(error.cause, Final)


def test_what_cannot_be_made_again_is_unserializable() -> None:
    def fails(_: Exception) -> Exception:
        raise TypeError("missing 1 required argument")

    error = wrapped("app/D.m", Rich("text", 5), fails)

    assert isinstance(error, UnserializableException)
    assert not isinstance(error, Rich)
    assert "Rich: " in str(error)


def test_a_wrapped_error_can_be_copied_and_pickled() -> None:
    error = wrapped("app/D.m", ValueError("bad value"), the_same)

    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == str(error)


TRANSLATIONS = [
    (
        ours.BackPressureError("full", deployment="a/D", queued=3, limit=2),
        (BackPressureError, RayServeException),
    ),
    (
        ours.RequestCancelledError("c", request_id="r"),
        (RequestCancelledError, RayServeException, TaskCancelledError),
    ),
    (
        ours.DeploymentUnavailableError("gone", deployment="a/D"),
        (DeploymentUnavailableError, RayServeException),
    ),
    (ours.ReplicaDiedError("dead"), (ActorDiedError, RayError)),
    (ours.ActorDiedError("dead"), (ActorDiedError, RayError)),
    (ours.MethodNotFoundError("no m", deployment="a/D"), (RayTaskError, RayServeException)),
    (ours.ArgumentError("no", deployment="a/D"), (RayTaskError, TypeError)),
]


@pytest.mark.parametrize(("error", "classes"), TRANSLATIONS, ids=lambda each: type(each).__name__)
def test_our_errors_become_rays(error: Exception, classes: tuple[type, ...]) -> None:
    found = translated(error)

    assert all(isinstance(found, cls) for cls in classes)
    assert type(found).__module__.startswith("ray.")


def test_rays_args_are_kept() -> None:
    full = translated(TRANSLATIONS[0][0])

    assert full.args == (3, 2, 503, None)
    assert "backpressure" in str(full)
    assert str(translated(TRANSLATIONS[1][0])) == "Request r was cancelled."


def test_what_is_nothing_of_rays_stays_itself() -> None:
    for error in (ValueError("x"), ours.DeadlockError("stuck"), ours.NotSupportedError("no")):
        assert translated(error) is error
