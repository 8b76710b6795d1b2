"""What keeps apart what runs under Ray's rules: copies both ways, RayTaskError for what is raised, refused what Ray refuses."""

from __future__ import annotations

from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from threadserve.app.application import is_application
from threadserve.as_ray.errors import RayServeException, wrapped
from threadserve.call.isolation import Isolation, Watch, culprit
from threadserve.call.response import DeploymentResponse
from threadserve.call.stream import DeploymentResponseGenerator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from threadserve.call.request import Request

__all__ = ["FACES", "ISOLATION", "NESTED", "STREAM", "RayIsolation", "Sealed", "Sealing", "Slot"]

FACES: dict[type, Callable[[Any], Any]] = {}
"""Native class -> what makes the object that a script gets in the place of one; each face puts itself in here."""

NESTED = (
    "`DeploymentResponse` is not serializable. A response nested in a list, dict or object is not resolved: pass each as an "
    "argument of its own, or fetch the values first"
)
STREAM = (
    "Streaming results cannot be passed downstream: a DeploymentResponseGenerator cannot be an argument; "
    "read it and pass the items"
)


class RayIsolation(Isolation):
    """Deployments apart from each other, by Ray's rules."""

    def enter(self, request: Request) -> None:
        """Copy the arguments; the body will see none of the caller's context variables."""
        for value in (*(request.args or ()), *(request.kwargs or {}).values()):
            if isinstance(value, DeploymentResponseGenerator):
                raise RuntimeError(STREAM)
        super().enter(request)
        if request.adapter is self:
            request.context = Context()

    def reduced(self, value: object) -> Any:
        """Pickle native handles and refs as Ray's; refuse responses."""
        face = FACES.get(type(value))
        if face is not None:
            return face(value).__reduce__()
        if isinstance(value, DeploymentResponse):
            raise RayServeException(NESTED)
        if isinstance(value, DeploymentResponseGenerator):
            raise RayServeException(STREAM)
        return NotImplemented

    def bound(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the bind arguments for one replica, with handles wherever applications were bound."""
        sealed = args[0] if args else None
        if not isinstance(sealed, Sealed):
            return super().bound(args, kwargs)
        return _Unsealing(sealed.children).copy(sealed.arguments)  # type: ignore[no-any-return]

    def unsendable(self, request: Request, name: int | str, value: Any, error: Exception) -> Exception:
        """Return Ray's TypeError; what refuses to be pickled on its own account keeps its error."""
        if isinstance(error, RayServeException):
            return error
        return TypeError(
            f"Could not serialize the argument {name}{culprit(value)} for "
            f"ServeReplica:{request.router.app}:{request.router.deployment}.{request.method}: {error}"
        )

    def unreturnable(self, name: str, result: Any, error: Exception) -> Exception:
        """Return what pickling raised, as Ray does."""
        return error

    def raised(self, name: str, error: Exception) -> Exception:
        """Return the RayTaskError for what a body raised."""
        if isinstance(error, StopIteration):
            error = RuntimeError("coroutine raised StopIteration").with_traceback(error.__traceback__)
        return wrapped(f"ServeReplica:{name}", error, self.copy)

    def watch(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Watch:
        """Return copies; a body may do with them what it likes."""
        return Watch(name, self.copy(args), self.copy(kwargs), is_watching=False)


ISOLATION = RayIsolation()


@dataclass(frozen=True)
class Sealed:
    """Bind arguments as they were when they were bound, with a Slot in the place of each application.

    The graph finds the applications in `children`, and puts handles there.
    """

    arguments: Any
    children: tuple[Any, ...]


class Slot:
    """Stands in sealed arguments for one of the children."""

    def __init__(self, index: int) -> None:
        self.index = index


class Sealing(RayIsolation):
    """Copies bind arguments, and takes the applications out of whatever they are in."""

    def __init__(self) -> None:
        self.children: list[Any] = []

    def reduced(self, value: object) -> Any:
        """Put a Slot in the place of an application."""
        if not is_application(value):
            return super().reduced(value)
        if not any(child is value for child in self.children):
            self.children.append(value)
        return Slot, (next(index for index, child in enumerate(self.children) if child is value),)


class _Unsealing(RayIsolation):
    """Copies sealed arguments, and puts handles into the slots."""

    def __init__(self, handles: tuple[Any, ...]) -> None:
        self._handles = handles

    def reduced(self, value: object) -> Any:
        if isinstance(value, Slot):
            value = self._handles[value.index]
        return super().reduced(value)
