"""What is measured: a point is one number with its interval, of a metric and a series, at a place along x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from solon.stats import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One number of an experiment."""

    metric: str
    series: str
    x: float | None
    """None where the series has one point alone."""
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was measured with one seed."""

    points: Sequence[Point]
    predictions: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """Of each judge: its probabilities of the better answers, for the reliability diagram."""
