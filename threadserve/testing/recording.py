"""Calls in a file: recorded from a deployment that runs, replayed by a fake in its place.

The file has a line of JSON for each call that has ended, so that it can be read, compared and kept beside the tests. What
JSON cannot say exactly (tuples, arrays, objects, exceptions) is pickled inside the line: replay only files that you trust.
"""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from threadserve.app.application import Application, Binding, binding_of
from threadserve.concurrency.outcome import Error, Outcome
from threadserve.concurrency.real import RealKernel
from threadserve.errors import ArgumentError, GraphError
from threadserve.testing.doubles import Call, Fake
from threadserve.testing.interposition import Visit, interposed

if TYPE_CHECKING:
    import os
    from collections.abc import Generator
    from typing import Unpack

    from threadserve.app.application import Declared
    from threadserve.app.config import DeploymentOptions
    from threadserve.call.request import Request

__all__ = ["record", "replay"]

_PICKLED = "pickled"


_Line: TypeAlias = dict[str, Any]
"""One call: deployment, method, args, kwargs, and one or two of items, returns, raises."""


def record(
    app: Application[Any], path: str | os.PathLike[str], deployment: Declared | str | None = None
) -> Application[Any]:
    """Return the app with a recorder before one of its deployments: each call that ends adds a line to the file.

    The file is emptied at once; lines come in the order in which calls end. A call whose arguments or answer cannot be
    written, because they cannot be pickled, fails with ArgumentError. Cancelled calls are recorded as what their body did.

    Args:
        app: Stays as it is.
        path: The file.
        deployment: Whose calls; the ingress's if it is not given.

    Raises:
        GraphError: The app has no such deployment.
    """
    name = binding_of(app).name if deployment is None else getattr(deployment, "name", deployment)
    recorder = _Recorder(Path(path), str(name))
    found: list[str] = []

    def recorder_for(binding: Binding) -> _Recorder | None:
        found.append(binding.name)
        return recorder if binding.name == name else None

    changed = interposed(app, recorder_for)
    if name not in found:
        raise GraphError(f"the app has no deployment {name!r} to record; there are: {', '.join(found)}")
    Path(path).write_text("", encoding="utf-8")
    return changed


def replay(
    path: str | os.PathLike[str], deployment: str | None = None, **options: Unpack[DeploymentOptions]
) -> Fake:
    """Return a fake that answers as the file says; a call that is not in it fails with LookupError, which names it.

    A call is known by its method and by its arguments as they would be recorded. Where the same call was recorded several
    times, the answers come in that order, the last one again and again.

    Args:
        path: What ``record`` wrote. It may hold pickles: only files that you trust.
        deployment: Only lines of this deployment; all otherwise.
        options: As of ``serve.deployment``.

    Raises:
        ValueError: A line is not of a recording.
    """
    return Fake(_Replay(Path(path), deployment), options)


class _Recorder:
    """Writes the file."""

    def __init__(self, path: Path, deployment: str) -> None:
        self._path = path
        self._deployment = deployment
        self._lock = RealKernel.lock()  # a leaf, but for the file

    def start_delay_s(self) -> float:
        return 0.0

    def visit(self, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Visit:
        line: _Line = {"deployment": self._deployment, "method": request.method}
        return _Recorded(self, request, line, args, kwargs)

    def write(self, line: _Line) -> None:
        text = json.dumps(line)
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


class _Recorded(Visit):
    """One call that is being recorded."""

    def __init__(
        self,
        recorder: _Recorder,
        request: Request,
        line: _Line,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._recorder = recorder
        self._request = request
        self._line = line
        self._line["args"] = [self._encoded(value) for value in args]  # now: the body may change them
        self._line["kwargs"] = {name: self._encoded(value) for name, value in kwargs.items()}
        self._items: list[Any] = []

    def item(self, value: Any) -> None:
        self._items.append(self._encoded(value))

    def end(self, outcome: Outcome) -> None:
        if self._request.channel is not None:
            self._line["items"] = self._items
        if isinstance(outcome, Error):
            if isinstance(outcome.exception, GeneratorExit):  # the reader left
                return
            self._line["raises"] = self._encoded(outcome.exception)
        elif self._request.channel is None:
            self._line["returns"] = self._encoded(outcome.unwrap())
        self._recorder.write(self._line)

    def _encoded(self, value: Any) -> Any:
        try:
            return _encoded(value)
        except Exception as error:
            name = f"{self._request.router.name}.{self._request.method}"
            raise ArgumentError(
                f"{name} cannot be recorded: a {type(value).__name__} cannot be pickled ({error})",
                deployment=self._request.router.name,
                request_id=self._request.request_id,
            ) from error


class _Replay:
    """Answers as a file says."""

    def __init__(self, path: Path, deployment: str | None) -> None:
        self._path = path
        self._lock = RealKernel.lock()
        self._answers: dict[str, list[_Line]] = {}  # guarded by _lock; in the order in which they are to come
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                line: _Line = json.loads(text)
                key = _key(line["method"], line["args"], line["kwargs"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a line that record() wrote: {text[:80]!r}") from error
            if deployment in (None, line.get("deployment")):
                self._answers.setdefault(key, []).append(line)

    def answer(self, call: Call) -> Any:
        encoded = [_encoded(value) for value in call.args]
        key = _key(call.method, encoded, {name: _encoded(value) for name, value in call.kwargs.items()})
        with self._lock:
            lines = self._answers.get(key)
            line = None if lines is None else lines[0] if len(lines) == 1 else lines.pop(0)
        if line is None:
            raise LookupError(f"{self._path} has no {call!r}; record it anew, or correct the call")
        return self._stream(line) if "items" in line else self._end(line)

    def _stream(self, line: _Line) -> Generator[Any]:
        for item in line["items"]:
            yield _decoded(item)
        if "raises" in line:
            self._end(line)

    def _end(self, line: _Line) -> Any:
        if "raises" in line:
            raise _decoded(line["raises"])
        return _decoded(line["returns"])


def _key(method: str, args: list[Any], kwargs: dict[str, Any]) -> str:
    return json.dumps([method, args, kwargs], sort_keys=True)


def _encoded(value: Any) -> Any:
    """Return what stands for `value` in JSON: itself where nothing is lost, else its pickle."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_encoded(each) for each in value]
    if type(value) is dict and all(type(key) is str for key in value) and _PICKLED not in value:
        return {key: _encoded(each) for key, each in value.items()}
    return {_PICKLED: base64.b64encode(pickle.dumps(value, protocol=4)).decode()}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if isinstance(value, dict):
        if value.keys() == {_PICKLED}:
            return pickle.loads(base64.b64decode(value[_PICKLED]))
        return {key: _decoded(each) for key, each in value.items()}
    return value
