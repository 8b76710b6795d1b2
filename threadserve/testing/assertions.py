"""What a test may want to hold of calls: that they were answered, in order, not too many at once, and left nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadserve.testing import census

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threadserve.call.response import DeploymentResponse
    from threadserve.handle import DeploymentHandle
    from threadserve.testing.traces import Step, Trace

__all__ = ["assert_answered", "assert_max_concurrency", "assert_no_leaks", "assert_order"]


def assert_answered(*responses: DeploymentResponse[Any]) -> None:
    """Assert that each response has its answer, be it an exception. Never blocks."""
    waiting = [repr(response) for response in responses if not response.done()]
    if waiting:
        raise AssertionError(
            f"{len(waiting)} of {len(responses)} calls have no answer:\n" + "\n".join(waiting)
        )


def assert_no_leaks(handle: DeploymentHandle[Any] | None = None, *, patience_s: float = 1.0) -> None:
    """Assert that all calls of an app are answered and all streams ended or left, within `patience_s` seconds. Blocks.

    Args:
        handle: Any handle of the app; all apps if not given.
        patience_s: In the simulator virtual seconds.
    """
    left = census.leaks(None if handle is None else handle.app_name, patience_s)
    if left:
        raise AssertionError("left behind:\n  " + "\n  ".join(left))


def assert_max_concurrency(
    deployment: str, limit: int, *, per_replica: bool = False, trace: Trace | None = None
) -> None:
    """Assert that never more than `limit` bodies of a deployment were under way at once. Never blocks.

    A body is under way from its beginning to its answer; one that goes on after it was cancelled is not counted.

    Args:
        deployment: ``"Model"``, or ``"app/Model"`` where several apps have one.
        limit: For the whole deployment, or for each replica.
        per_replica: Count each replica by itself.
        trace: Of a simulated run; the current one's, or the last one's, if not given.
    """
    under_way: dict[str, set[int | None]] = {}
    where: dict[int | None, str] = {}
    for step in _steps(deployment, trace):
        if step.operation == "begins":
            group = where[step.request] = step.replica if per_replica else step.deployment
            bodies = under_way.setdefault(group, set())
            bodies.add(step.request)
            if len(bodies) > limit:
                numbers = ", ".join(map(str, sorted(filter(None, bodies))))
                raise AssertionError(
                    f"{group} had {len(bodies)} bodies under way at step {step.step}, {step.time:g} s; at most "
                    f"{limit} were allowed: requests {numbers}"
                )
        elif step.operation.startswith(("answers", "fails")) and step.request in where:
            under_way[where.pop(step.request)].discard(step.request)


def assert_order(deployment: str, *, per_replica: bool = False, trace: Trace | None = None) -> None:
    """Assert that bodies of a deployment began in the order in which the calls were made. Never blocks.

    Args:
        deployment: ``"Model"``, or ``"app/Model"`` where several apps have one.
        per_replica: Among the calls of each replica only.
        trace: Of a simulated run; the current one's, or the last one's, if not given.
    """
    last: dict[str, Step] = {}
    made: dict[int | None, int] = {}
    for step in _steps(deployment, trace):
        if step.operation == "calls":
            made[step.request] = step.step
        elif step.operation == "begins":
            group = step.replica if per_replica else step.deployment
            before = last.get(group)
            if before is not None and made.get(before.request, 0) > made.get(step.request, 0):
                raise AssertionError(
                    f"{group}: request {step.request} was made before request {before.request} and began after it, at "
                    f"step {step.step}"
                )
            last[group] = step


def _steps(deployment: str, trace: Trace | None) -> Iterator[Step]:
    if trace is None:
        from threadserve.testing.simulator import trace as current_trace

        trace = current_trace()
    found = False
    for step in trace.requests():
        if deployment in (step.deployment, step.deployment.rpartition("/")[2]):
            found = True
            yield step
    if not found:
        raise AssertionError(f"the trace has no calls of {deployment!r}")
