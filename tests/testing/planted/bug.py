"""What a planted bug is: two apps that differ in one mistake, and a story that only one of them survives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import threadserve as serve
from threadserve.testing.simulator import current_simulation, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from threadserve.testing.choices import Strategy
    from threadserve.testing.simulator import Grain, StrategyName

__all__ = ["Planted", "app", "pause"]


@dataclass(frozen=True)
class Planted:
    """A bug and its fixed twin."""

    name: str
    story: Callable[[Any], None]
    """Calls the app through its handle, and asserts."""
    buggy: Any
    fixed: Any
    grain: Grain = "operation"

    def tell(
        self,
        app: Any,
        *,
        seed: int = 0,
        strategy: Strategy | StrategyName = "random",
        grain: Grain | None = None,
    ) -> None:
        """Tell the story of an app, one of the two, in a simulation; inside of one, in that one."""
        with simulate(app, seed=seed, strategy=strategy, grain=grain or self.grain) as handle:
            self.story(handle)

    def __str__(self) -> str:
        return self.name


def app(cls: type[Any], *parts: Any, slots: int = 2, **options: Any) -> Any:
    """Bind a class, with `slots` calls at once in its one replica."""
    return serve.deployment(cls).options(max_ongoing_requests=slots, **options).bind(*parts)


def pause(seconds: float = 0.01) -> None:
    """Let virtual time pass; everybody else may go on."""
    current_simulation().advance(seconds)


def together(*responses: Any) -> Sequence[Any]:
    """Wait for calls that were made before, all of them."""
    return [response.result() for response in responses]
