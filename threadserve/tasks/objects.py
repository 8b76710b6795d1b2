"""The verbs over refs: get, put, wait, cancel. They take responses and plain futures as well."""

from __future__ import annotations

from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from threadserve.app.rules import shown
from threadserve.call.answer import Answer, request_of
from threadserve.call.blocking import wait_for
from threadserve.call.objectref import ObjectRef, ObjectRefGenerator
from threadserve.call.request import check_cancelled
from threadserve.call.response import check_seconds, refuse_to_block
from threadserve.call.stream import DeploymentResponseGenerator
from threadserve.errors import ConfigError
from threadserve.futures import as_completed, gather
from threadserve.tasks.pool import lent
from threadserve.tasks.workforce import current

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Generator, Iterable, Sequence

__all__ = ["cancel", "get", "put", "wait"]

R = TypeVar("R")
S = TypeVar("S")


@overload
def get(refs: Answer[R] | concurrent.futures.Future[R], *, timeout: float | None = ...) -> R: ...
@overload
def get(
    refs: Sequence[Answer[R] | concurrent.futures.Future[R]], *, timeout: float | None = ...
) -> list[R]: ...


def get(refs: Any, *, timeout: float | None = None) -> Any:
    """Wait for the value of a ref, or for those of several, and return it, or a list of them.

    Blocks. Any thread, not in a running event loop. Ctrl-C in the main thread cancels what is waited for. A
    checkpoint: in code that works for a cancelled request it raises Cancelled. A task that waits here lends its slot.

    Args:
        refs: An ObjectRef, a DeploymentResponse or a ``concurrent.futures.Future``; or a list (or tuple) of them.
        timeout: Give up after so many seconds; what is waited for goes on. 0 does not wait at all.

    Raises:
        TimeoutError: Not all of them were done in time.
        RuntimeError: An event loop runs in this thread; use ``await``.
        Exception: What the first of them to fail raised, as itself.
        TypeError: Something is none of these.
    """
    refuse_to_block("serve.get", "use `await ref`")
    if isinstance(refs, Answer):
        request = request_of(refs)
        _wait_for(refs, timeout)
        del refs  # as in Request.unwrap
        try:
            return request.unwrap()
        finally:
            del request
    if isinstance(refs, ObjectRefGenerator):
        raise TypeError(
            "serve.get takes refs, not the generator of refs: read it with `for ref in generator`"
        )
    is_one = not isinstance(refs, (list, tuple))
    sources = (refs,) if is_one else tuple(refs)
    gathering = gather(*sources)
    with nullcontext() if all(source.done() for source in sources) else lent():
        values = gathering.result(timeout_s=timeout)
    return values[0] if is_one else values


def _wait_for(ref: Answer[Any], timeout: float | None) -> None:
    """Wait for one answer."""
    if timeout is not None:
        check_seconds("timeout", timeout)
    if not ref.done():
        with lent():
            is_done = wait_for(request_of(ref), timeout)
        if not is_done:
            raise TimeoutError(f"{ref!r} was not done within timeout={timeout} s; it goes on")
    del ref  # as in wait_for
    check_cancelled()


def put(value: R) -> ObjectRef[R]:
    """Return a ref to `value`, which is shared and not copied. Never blocks. Any thread.

    Raises:
        TypeError: It is a ref already.
    """
    if isinstance(value, ObjectRef):
        raise TypeError("serve.put: this is an ObjectRef already; pass it on as it is")
    return current().store.put(value)


def wait(
    refs: Iterable[S], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
) -> tuple[list[S], list[S]]:
    """Wait until `num_returns` of `refs` are done, and return those that are and the rest, each in the order given.

    Blocks, as ``get`` does. At most `num_returns` are in the first list; fewer when the time is over.

    Args:
        refs: ObjectRefs, DeploymentResponses and ``concurrent.futures`` futures, each once.
        num_returns: How many to wait for.
        timeout: Seconds; None for none.
        fetch_local: Accepted for Ray's sake; without effect.

    Raises:
        TypeError: Something is none of these.
        ConfigError: num_returns is not from 1 to the number of refs, or one of them is given twice (a ValueError).
        RuntimeError: An event loop runs in this thread; await the refs, or ``asyncio.wait`` their futures.
    """
    refuse_to_block("serve.wait", "await the refs, or `asyncio.wait` their futures")
    sources = list(refs)
    if len(set(sources)) < len(sources):
        raise ConfigError("serve.wait: each ref can be given once, and one was given twice")
    if not sources:
        return [], []
    if not 1 <= num_returns <= len(sources):
        raise ConfigError(f"serve.wait: num_returns must be from 1 to {len(sources)}, not {num_returns!r}")
    ready: set[S] = set()
    with lent(), closing(cast("Generator[S]", iter(as_completed(sources, timeout)))) as done:
        while len(ready) < num_returns:
            try:
                ready.add(next(done))
            except TimeoutError:
                break
    return [ref for ref in sources if ref in ready], [ref for ref in sources if ref not in ready]


def cancel(ref: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Cancel what brings a value, and with it all that it has called; nothing happens if it is there already.

    Never blocks. Any thread. Whoever waits gets RequestCancelledError at once; see ``DeploymentResponse.cancel``.

    Args:
        ref: An ObjectRef, ObjectRefGenerator, DeploymentResponse or stream.
        force: Accepted for Ray's sake; a thread cannot be killed.
        recursive: Accepted for Ray's sake; what a task has called is always cancelled with it.

    Raises:
        TypeError: This is none of these.
    """
    if isinstance(ref, ObjectRefGenerator):
        ref = ref.completed()
    if isinstance(ref, DeploymentResponseGenerator):
        ref.cancel()
    elif isinstance(ref, Answer):
        request_of(ref).cancel()
    else:
        raise TypeError(
            f"serve.cancel takes an ObjectRef or a response, not {shown(ref)}; actors are ended with serve.kill"
        )
