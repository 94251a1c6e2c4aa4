"""Pure maths of judgements: arrays in, numbers out; no model, no files. `solon.ratings` has that of battles.

Every number that a table shows is an `Interval`: a value, its 95 % limits and the number of things it was measured on.

Shapes: N values, C clusters, D draws of a bootstrap, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_Value = TypeVar("_Value")

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
MIN_T, MAX_T = 0.05, 20.0
"""Limits of a fitted temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """Number of independent things that it was measured on: answers, battles, prompts."""

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One bin of a reliability diagram."""

    low: float
    high: float
    n: int
    confidence: float
    """Mean predicted probability in the bin."""
    outcome: Interval
    """Share of it that came true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How far predicted probabilities can be taken at their word."""

    bins: tuple[Bin, ...]
    """Bins that are not empty, in rising order."""
    error: float
    """Expected calibration error, in [0, 1]: the mean gap of confidence and outcome, weighted by n (Guo et al. 2017,
    eq. 3)."""
    n: int


def reliability_of(about: Mapping[str, Any]) -> Reliability:
    """The inverse of `dataclasses.asdict`."""
    bins: list[dict[str, Any]] = [{**one, "outcome": Interval(**one["outcome"])} for one in about["bins"]]
    return Reliability(bins=tuple(Bin(**one) for one in bins), error=about["error"], n=about["n"])


def sigmoid(x: ArrayLike) -> Floats:
    """1 / (1 + e^-x), without overflow for any finite x."""
    x = np.asarray(x, dtype=np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def normalise(logprob_a: float, logprob_b: float) -> float:
    """p(A) of two options whose log-probabilities are given in nats: e^a / (e^a + e^b) (arXiv:2212.08073, section
    4.1)."""
    if not (math.isfinite(logprob_a) or math.isfinite(logprob_b)):
        raise ValueError(f"neither option has a finite log-probability: {logprob_a}, {logprob_b}")
    return float(sigmoid(logprob_a - logprob_b))


def proportion_interval(successes: float, *, n: int) -> Interval:
    """Share of successes with Wilson's score interval (Wilson 1927). Raises ValueError for n = 0: nothing was
    measured."""
    return pooled_interval([successes], totals=[n])


def pooled_interval(successes: Sequence[float], *, totals: Sequence[int]) -> Interval:
    """One share from several clusters (seeds, activities), with an interval that knows how much the clusters differ.

    Wilson's interval for n / d answers, where d >= 1 is the design effect: the clustered variance of the share over its
    binomial one (the linearised ratio estimator; Cochran 1977, section 9A). Answers about the same activity are alike,
    so that 200 answers about 30 activities say less than 200 about 200. With one cluster, or all or none successful, d
    = 1.
    """
    y_C, n_C = np.asarray(successes, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    n, clusters = n_C.sum(), int((n_C > 0).sum())
    if n <= 0:
        raise ValueError("no interval of a share without a single case")
    if (y_C < 0).any() or (y_C > n_C).any():
        raise ValueError("successes must lie between 0 and their total")
    p = float(y_C.sum() / n)
    design = 1.0
    if clusters > 1 and 0 < p < 1:
        spread = float(((y_C - p * n_C) ** 2).sum()) * clusters / (clusters - 1)
        design = max(1.0, spread / (n * p * (1 - p)))
    effective = n / design
    centre = (p + Z_95**2 / (2 * effective)) / (1 + Z_95**2 / effective)
    half = Z_95 * math.sqrt(p * (1 - p) / effective + Z_95**2 / (4 * effective**2)) / (1 + Z_95**2 / effective)
    return Interval(value=p, low=min(p, max(0.0, centre - half)), high=max(p, min(1.0, centre + half)), n=int(n))


def clustered_interval(outcomes: Sequence[float], *, clusters: Sequence[Hashable]) -> Interval:
    """Share of `outcomes` (each in [0, 1]) whose answers belong to `clusters`; see `pooled_interval`."""
    sums: dict[Hashable, list[float]] = {}
    for outcome, cluster in zip(outcomes, clusters, strict=True):
        entry = sums.setdefault(cluster, [0.0, 0])
        entry[0] += outcome
        entry[1] += 1
    return pooled_interval([entry[0] for entry in sums.values()], totals=[int(entry[1]) for entry in sums.values()])


def mean_over_runs(runs: Sequence[Interval]) -> Interval:
    """Mean of a measure over independent runs (seeds), each with its own interval; n is the sum of theirs.

    Each side's squared half-width is the mean of the runs' own, or the normal one of the spread between the runs where
    that is the greater, over the number of runs: runs that differ by more than their intervals allow widen the result.
    With few runs the spread itself is known badly. One run is left as it is. Raises ValueError for none.
    """
    if not runs:
        raise ValueError("no mean of no runs")
    if len(runs) == 1:
        return runs[0]
    value = float(np.mean([one.value for one in runs]))
    between = Z_95**2 * float(np.var([one.value for one in runs], ddof=1))
    below = max(between, float(np.mean([(one.value - one.low) ** 2 for one in runs])))
    above = max(between, float(np.mean([(one.high - one.value) ** 2 for one in runs])))
    return Interval(
        value=value,
        low=value - math.sqrt(below / len(runs)),
        high=value + math.sqrt(above / len(runs)),
        n=sum(one.n for one in runs),
    )


def bootstrap_interval(
    values: ArrayLike, *, statistic: Callable[[Floats], float], seed: int, draws: int = 1000
) -> Interval:
    """`statistic` of `values` (N rows) with the percentile interval of `draws` resamples of its rows (Efron 1979)."""
    rows = np.asarray(values, dtype=np.float64)
    if len(rows) == 0:
        raise ValueError("no interval of nothing: there are no values to draw from")
    rng = np.random.default_rng(seed)
    drawn_D = np.array([statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(draws)])
    low, high = np.nanquantile(drawn_D, [0.025, 0.975])
    return Interval(value=float(statistic(rows)), low=float(low), high=float(high), n=len(rows))


def jackknife_interval(
    values: Sequence[_Value], *, statistic: Callable[[Sequence[_Value]], float], groups: int = 20
) -> Interval:
    """`statistic` of `values` with 1.96 standard errors on either side, by the delete-a-group jackknife (Shao and Wu
    1989; Kott 2001).

    For what a bootstrap would spoil: a resample says some things twice, and so is less diverse than any text is. Value
    i is in group i mod `groups`; fewer values than groups are left out one by one. A single value has no spread: its
    interval is itself.
    """
    if not values:
        raise ValueError("no interval of nothing: there are no values to leave out")
    count, value = min(groups, len(values)), float(statistic(values))
    if count < 2:
        return Interval(value=value, low=value, high=value, n=len(values))
    without = [statistic([one for i, one in enumerate(values) if i % count != group]) for group in range(count)]
    half = Z_95 * math.sqrt((count - 1) * float(np.var(without)))
    return Interval(value=value, low=value - half, high=value + half, n=len(values))


def difference_of_means(first: ArrayLike, second: ArrayLike, *, paired: bool, seed: int, draws: int = 1000) -> Interval:
    """Mean of `second` minus mean of `first`, with the percentile interval of `draws` resamples of clusters.

    Rows are clusters of answers that are drawn as a whole: columns (sum of values, number of values). `paired`: row i
    of both is about the same thing, and is drawn for both together. n is the number of values in both. Raises
    ValueError where either has no value.
    """
    rows_C2, more_D2 = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not (rows_C2.size and more_D2.size and rows_C2[:, 1].sum() and more_D2[:, 1].sum()):
        raise ValueError("no difference of a mean without a single value")
    rng = np.random.default_rng(seed)

    def mean(rows: Floats) -> float:
        total = float(rows[:, 1].sum())
        return float(rows[:, 0].sum()) / total if total else math.nan

    drawn_D = np.empty(draws)
    for draw in range(draws):
        one = rng.integers(len(rows_C2), size=len(rows_C2))
        other = one if paired else rng.integers(len(more_D2), size=len(more_D2))
        drawn_D[draw] = mean(more_D2[other]) - mean(rows_C2[one])
    low, high = np.nanquantile(drawn_D, [0.025, 0.975])
    value, n = mean(more_D2) - mean(rows_C2), int(rows_C2[:, 1].sum() + more_D2[:, 1].sum())
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value), n=n)


def difference_of_intervals(first: Interval, second: Interval) -> Interval:
    """`second` minus `first`, which were measured apart, from their limits alone (Newcombe 1998, method 10)."""
    value = second.value - first.value
    low = value - math.hypot(second.value - second.low, first.high - first.value)
    high = value + math.hypot(second.high - second.value, first.value - first.low)
    return Interval(value=value, low=low, high=high, n=first.n + second.n)


def paired_ratio(values: ArrayLike, *, baseline: ArrayLike, seed: int, draws: int = 1000) -> Interval:
    """Mean of `values` over mean of `baseline`, each measured on the same N prompts, which are drawn together.

    Raises ValueError where the baseline's mean is 0.
    """
    pairs = np.column_stack([np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)])
    if len(pairs) and pairs[:, 1].sum() == 0:
        raise ValueError("a ratio needs a baseline that is not 0")
    return bootstrap_interval(pairs, statistic=_ratio_of_means, seed=seed, draws=draws)


def _ratio_of_means(pairs: Floats) -> float:
    below = float(pairs[:, 1].sum())
    return float(pairs[:, 0].sum()) / below if below else math.nan


def reliability(probabilities: ArrayLike, *, outcomes: ArrayLike, bins: int = 10) -> Reliability:
    """Predicted probabilities against what came true (each in [0, 1]), in `bins` bins of equal width."""
    p_N, y_N = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    error, index_N = calibration_error(p_N, outcomes=y_N, bins=bins), _bin_of(p_N, bins)
    filled: list[Bin] = []
    for index in np.unique(index_N):
        inside = index_N == index
        n = int(inside.sum())
        filled.append(
            Bin(
                low=float(index / bins),
                high=float((index + 1) / bins),
                n=n,
                confidence=float(p_N[inside].mean()),
                outcome=proportion_interval(float(y_N[inside].sum()), n=n),
            )
        )
    return Reliability(bins=tuple(filled), error=error, n=len(p_N))


def calibration_error(probabilities: ArrayLike, *, outcomes: ArrayLike, bins: int = 10) -> float:
    """The error of `reliability` alone, fast enough for a bootstrap."""
    p_N, y_N = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if len(p_N) == 0:
        raise ValueError("no calibration without a prediction")
    if p_N.shape != y_N.shape or (p_N < 0).any() or (p_N > 1).any():
        raise ValueError("one outcome for each probability, and probabilities between 0 and 1")
    return float(np.abs(np.bincount(_bin_of(p_N, bins), weights=p_N - y_N)).sum() / len(p_N))


def _bin_of(p_N: Floats, bins: int) -> NDArray[np.int64]:
    return np.minimum((p_N * bins).astype(np.int64), bins - 1)


def log_losses(leads: ArrayLike, *, labels: ArrayLike) -> Floats:
    """-y log sigmoid(d) - (1 - y) log sigmoid(-d) in nats for each lead d and label y in [0, 1]; 0 is the least.

    Against labels that are probabilities themselves the least mean is their mean entropy, not 0. Swapping the two
    things that are compared (-d, 1 - y) changes nothing. Raises ValueError for labels outside [0, 1] or another number
    of them.
    """
    d_N, y_N = np.asarray(leads, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if d_N.shape != y_N.shape or (y_N < 0).any() or (y_N > 1).any():
        raise ValueError("one label for each lead, and labels between 0 and 1")
    return np.asarray(y_N * np.logaddexp(0, -d_N) + (1 - y_N) * np.logaddexp(0, d_N), dtype=np.float64)


def fit_temperature(leads: ArrayLike, *, labels: ArrayLike) -> float:
    """The T for which sigmoid(lead / T) has the least log loss against `labels`, each in [0, 1]; in MIN_T to MAX_T.

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599, section 4.2): one number, fitted on rows that were not
    trained on, that leaves every ranking as it is. T > 1 says that the leads are too large. The loss is convex in 1/T,
    so that its slope is brought to 0 by Newton's steps inside a bracket. MAX_T stands for leads that are no better than
    chance, MIN_T for leads that are never wrong, and 1 for leads that are all 0. Swapping the replies of some rows
    (-lead, 1 - label) changes nothing; leads k times as large give k T, inside the limits. Raises ValueError for no
    leads and as `log_losses`.
    """
    d_N, y_N = np.asarray(leads, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if len(d_N) == 0:
        raise ValueError("no temperature without a lead")
    log_losses(d_N, labels=y_N)
    if not d_N.any():
        return 1.0

    def slope(inverse: float) -> float:
        return float((d_N * (sigmoid(inverse * d_N) - y_N)).mean())

    low, high = 1 / MAX_T, 1 / MIN_T
    if slope(low) >= 0:
        return MAX_T
    if slope(high) <= 0:
        return MIN_T
    inverse = 1.0
    for _ in range(200):
        rise = slope(inverse)
        low, high = (low, inverse) if rise > 0 else (inverse, high)
        p_N = sigmoid(inverse * d_N)
        curvature = float((d_N**2 * p_N * (1 - p_N)).mean())
        step = -rise / curvature if curvature > 0 else math.inf
        if abs(step) < 1e-12 * inverse:
            break
        if not low < inverse + step < high:
            step = (low + high) / 2 - inverse
        inverse += step
    return 1 / inverse
