"""``ray.serve.metrics`` and ``ray.util.metrics``: kept in this process, by tags; nothing exports them yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadserve.call.context import inheritance
from threadserve.concurrency.real import RealKernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Counter", "Gauge", "Histogram"]

_OWN = ("deployment", "replica", "application")


class _Metric:
    """Values by their tags. Every member is safe from any thread."""

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        if not name:
            raise ValueError("Empty name is not allowed. Please provide a metric name.")
        if tag_keys is not None and not isinstance(tag_keys, tuple):
            raise TypeError(f"tag_keys should be a tuple type, got: {type(tag_keys)}")
        self._replica = inheritance.get()
        for key in tag_keys or ():
            if not isinstance(key, str):
                raise TypeError(f"Tag keys must be str, got {type(key)}.")
            if self._replica is not None and key in _OWN:
                raise ValueError(f"the tag {key!r} is set by Serve itself")
        self._name, self._description, self._tag_keys = name, description, tag_keys or ()
        self._default_tags: dict[str, str] = {}
        self._lock = RealKernel.lock()
        self._values: dict[tuple[tuple[str, str], ...], Any] = {}  # guarded by _lock

    @property
    def info(self) -> dict[str, Any]:
        """Name, description, tag keys and default tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._tag_keys,
            "default_tags": self._default_tags,
        }

    def set_default_tags(self, default_tags: Mapping[str, str]) -> None:
        """Set what tags have where a value does not say."""
        self._check(default_tags)
        self._default_tags = dict(default_tags)

    def _check(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            if key not in self._tag_keys:
                raise ValueError(f"Unrecognized tag key {key}.")
            if not isinstance(value, str):
                raise TypeError(f"Tag values must be str, got {type(value)}.")

    def _key(self, tags: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
        self._check(tags or {})
        own = {}
        if self._replica is not None:
            own = {
                "deployment": self._replica.deployment,
                "replica": self._replica.replica_tag,
                "application": self._replica.app_name,
            }
        given = {**own, **self._default_tags, **(tags or {})}
        missing = [key for key in self._tag_keys if key not in given and key != "route"]
        if missing:
            raise ValueError(f"Missing value for tag key(s): {','.join(missing)}.")
        return tuple(sorted(given.items()))


class Counter(_Metric):
    """Counts up."""

    def inc(self, value: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        """Add a positive number."""
        if value <= 0:
            raise ValueError(f"value must be >0, got {value}")
        key = self._key(tags)
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + value


class Gauge(_Metric):
    """Keeps the last value."""

    def set(self, value: float | None, tags: Mapping[str, str] | None = None) -> None:
        """Set it."""
        key = self._key(tags)
        with self._lock:
            self._values[key] = value


class Histogram(_Metric):
    """Counts values by the boundaries that they fall between."""

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(name, description, tag_keys)
        if not boundaries:
            raise ValueError("boundaries argument should be provided when using the Histogram class.")
        if any(each <= 0 for each in boundaries):
            raise ValueError(f"boundaries must be positive, got {boundaries}")
        self.boundaries = list(boundaries)

    def observe(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Count a value."""
        key = self._key(tags)
        bucket = sum(value > each for each in self.boundaries)
        with self._lock:
            counts = self._values.setdefault(key, [0] * (len(self.boundaries) + 1))
            counts[bucket] += 1
