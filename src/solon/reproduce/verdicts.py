"""Did it come out? Points of several seeds pooled, and an expected ordering judged on their intervals. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

from solon.reproduce.description import Expected
from solon.reproduce.points import Found, Point
from solon.stats import Interval, difference_of_intervals, mean_over_runs

Verdict = Literal["came out", "did not come out", "cannot be told", "not measured"]


class Place(NamedTuple):
    """What a point is of."""

    metric: str
    series: str
    x: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """An expected ordering, and whether it came out."""

    says: str
    verdict: Verdict
    numbers: str
    """The points in the order in which they are expected to rise, each with its interval and n."""


def pooled(found: Sequence[Found]) -> dict[Place, Interval]:
    """Every point that all seeds have, as the mean over them."""
    by_place: dict[Place, list[Interval]] = {}
    for one in found:
        for point in one.points:
            by_place.setdefault(Place(point.metric, point.series, point.x), []).append(point.interval)
    return {place: mean_over_runs(runs) for place, runs in by_place.items() if len(runs) == len(found)}


def along(points: Mapping[Place, Interval], *, metric: str, series: str) -> list[Point]:
    """A series' points, by rising x."""
    own = [(place.x, interval) for place, interval in points.items() if place[:2] == (metric, series)]
    own.sort(key=lambda one: one[0] or 0.0)
    return [Point(metric=metric, series=series, x=x, interval=interval) for x, interval in own]


def point_of(reference: str, *, metric: str, points: Mapping[Place, Interval]) -> Point | None:
    """The point that "SERIES", "SERIES@first" or "SERIES@8" means; None where it was not measured.

    "first" and "last" of a series with one point alone mean nothing, unless it is the only kind of point: a series
    without x.
    """
    series, _, x = reference.partition("@")
    own = along(points, metric=metric, series=series)
    if not own or (x == "first" and len(own) == 1):
        return None
    if x in ("", "last"):
        return own[-1]
    return own[0] if x == "first" else next((one for one in own if one.x == float(x)), None)


def judged(
    expected: Expected, *, points: Mapping[Place, Interval], names: Mapping[str, str] | None = None
) -> Statement:
    """Whether an ordering came out: 95 % intervals apart in the expected order; the other way round it did not; where
    they overlap it cannot be told. Of several points in a row one that is the wrong way round is enough for "did not",
    and all must be apart for "came out"."""
    references = expected.rising or expected.alike
    found = [point_of(one, metric=expected.metric, points=points) for one in references]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        missing = [one for one, point in zip(references, found, strict=True) if point is None]
        return Statement(says=expected.says, verdict="not measured", numbers=f"no point {', '.join(missing)}")
    shown = partial(in_words, metric=expected.metric)
    numbers = "; ".join(f"{label(one, names=names)}: {shown(one.interval)}" for one in known)
    intervals = [one.interval for one in known]
    if expected.rising:
        verdict = _rising(intervals)
    else:
        difference = difference_of_intervals(intervals[0], intervals[1])
        verdict = _alike(difference, within=expected.within)
        numbers += f"; difference {shown(difference)}, to be within {expected.within:g}"
    return Statement(says=expected.says, verdict=verdict, numbers=numbers)


def _rising(intervals: Sequence[Interval]) -> Verdict:
    if any(after.high < before.low for before, after in pairwise(intervals)):
        return "did not come out"
    if all(before.high < after.low for before, after in pairwise(intervals)):
        return "came out"
    return "cannot be told"


def _alike(difference: Interval, *, within: float) -> Verdict:
    if -within <= difference.low and difference.high <= within:
        return "came out"
    return "did not come out" if difference.low > within or difference.high < -within else "cannot be told"


def label(point: Point, *, names: Mapping[str, str] | None = None) -> str:
    """ "RL-CAI at 40", or the name alone."""
    name = named(point.series, names=names or {})
    return name if point.x is None else f"{name} at {point.x:g}"


def named(series: str, *, names: Mapping[str, str]) -> str:
    """A series as it is called in pictures: the arm's name replaced by what it is, what follows a comma kept."""
    arm, comma, rest = series.partition(",")
    return f"{names.get(arm, arm)}{comma}{rest}"


def in_words(interval: Interval, *, metric: str) -> str:
    """ "0.270 [0.240, 0.310] n 600"; an Elo without decimals."""
    digits = 0 if metric.startswith("elo_") else 3
    # Adding 0 makes 0 of -0.
    parts = (round(one, digits) + 0.0 for one in (interval.value, interval.low, interval.high))
    value, low, high = (f"{one:.{digits}f}" for one in parts)
    return f"{value} [{low}, {high}] n {interval.n}"
