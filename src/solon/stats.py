"""Pure maths of judgements and ratings: arrays in, numbers out; no model, no files.

Every number that a table shows is an `Interval`: a value, its 95 % limits and the number of things it was measured on.
Ratings follow the model of Bradley and Terry (1952) on the scale of Elo: a lead of 400 means odds of 10 to 1, so that
the strength in nats is r = E ln(10) / 400 (Bai et al. 2022, arXiv:2204.05862, section 2.4 and appendix B.5).

Shapes: N values or battles, C clusters, M models, D draws of a bootstrap, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_Value = TypeVar("_Value")

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
MIN_T, MAX_T = 0.05, 20.0
"""Limits of a fitted temperature."""
ELO_PER_NAT = 400 / math.log(10)
"""Points of Elo in one nat of strength, 173.7."""


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
class Battle:
    """One comparison of two models' answers to the same prompt."""

    left: str
    right: str
    score: float
    """Left's share of the win, in [0, 1]: 1 left won, 0 right won, 0.5 a tie; a judge's probability is a share too."""
    group: str = ""
    """Battles of one group (a prompt) are drawn together in the bootstrap; "" is a group of its own."""

    def swapped(self) -> Battle:
        return Battle(left=self.right, right=self.left, score=1 - self.score, group=self.group)


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


def elo_to_win(lead: float) -> float:
    """Probability that a model that leads by `lead` Elo wins: 100 -> 0.64, 400 -> 0.909."""
    return float(sigmoid(lead / ELO_PER_NAT))


def bradley_terry(wins: ArrayLike, *, tolerance: float = 1e-12, limit: int = 200) -> Floats:
    """Strengths in nats, with mean 0, that make the wins most likely: the maximum of sum W_ij log sigmoid(r_i - r_j).

    `wins` is (M, M), or (D, M, M) for D tournaments at once: W_ij is how often i beat j; a tie is half a win to each.
    Newton's method on a concave function, halving a step that does not climb, until no strength moves by `tolerance`.
    Raises ValueError where no finite maximum exists, which is when the models fall into two groups of which one never
    won against the other (Ford 1957).
    """
    given = np.asarray(wins, dtype=np.float64)
    size = given.shape[-1]
    off_diagonal_MM = 1 - np.eye(size)
    wins_DMM = given.reshape(-1, size, size) * off_diagonal_MM
    if not _strongly_connected(wins_DMM > 0):
        raise ValueError("no finite ratings: some models never won against the others, or never met them")
    met_DMM = wins_DMM + wins_DMM.swapaxes(1, 2)
    strength_DM = np.zeros(wins_DMM.shape[:2])
    best_D = _log_likelihood(wins_DMM, strength_DM)
    for _ in range(limit):
        p_DMM = sigmoid(strength_DM[:, :, None] - strength_DM[:, None, :])
        gradient_DM = wins_DMM.sum(2) - (met_DMM * p_DMM).sum(2)
        weight_DMM = met_DMM * p_DMM * (1 - p_DMM)
        total_DM = weight_DMM.sum(2)
        # The strengths' common level is free; adding a constant to the matrix fixes it and changes no difference.
        information_DMM = total_DM[:, :, None] * np.eye(size) - weight_DMM + total_DM.mean(1)[:, None, None] / size
        step_DM = cast(Floats, np.linalg.solve(information_DMM, gradient_DM[:, :, None]))[:, :, 0]
        scale_D = _climbing_scale(wins_DMM, strength_DM, step_DM, best_D)
        strength_DM = strength_DM + scale_D[:, None] * step_DM
        strength_DM -= strength_DM.mean(1, keepdims=True)
        best_D = _log_likelihood(wins_DMM, strength_DM)
        if float(np.abs(step_DM).max(initial=0.0)) < tolerance:
            break
    return strength_DM.reshape(given.shape[:-1])


def _climbing_scale(wins_DMM: Floats, strength_DM: Floats, step_DM: Floats, best_D: Floats) -> Floats:
    """For each tournament the largest of 1, 1/2, 1/4, ... of the step that does not lower the likelihood."""
    scale_D = np.ones(len(best_D))
    for _ in range(20):
        reached_D = _log_likelihood(wins_DMM, strength_DM + scale_D[:, None] * step_DM)
        falls_D = reached_D < best_D - 1e-12 * np.abs(best_D)
        if not falls_D.any():
            break
        scale_D[falls_D] /= 2
    return scale_D


def _log_likelihood(wins_DMM: Floats, strength_DM: Floats) -> Floats:
    losses_DMM = np.logaddexp(0, strength_DM[:, None, :] - strength_DM[:, :, None])
    return -np.asarray((wins_DMM * losses_DMM).sum((1, 2)), dtype=np.float64)


def _strongly_connected(beat_DMM: NDArray[np.bool_]) -> bool:
    """Whether, in every tournament, every model reaches every other along wins."""
    size = beat_DMM.shape[-1]
    reach_DMM = (beat_DMM | np.eye(size, dtype=np.bool_)).astype(np.float64)
    for _ in range(max(1, math.ceil(math.log2(size)))):
        reach_DMM = (reach_DMM @ reach_DMM > 0).astype(np.float64)
    return bool((reach_DMM > 0).all())


def elo_ratings(
    battles: Sequence[Battle], *, anchor: str, seed: int, prior: float = 1.0, draws: int = 1000
) -> dict[str, Interval]:
    """Elo of every model by maximum likelihood over all battles, `anchor` being 0, with percentile bootstrap intervals.

    The bootstrap draws whole groups (prompts), because battles on one prompt are alike. `n` counts a model's battles;
    the anchor's interval is a point. Two differences from the paper (arXiv:2204.05862, appendix B.5): 1. a tie counts
    as half a win, where the paper drops unsure votes; 2. every pair that met gets `prior` more battles, half won by
    each, which keeps a model that never lost finite and takes out most of the estimate's bias (for two models and prior
    1, Firth 1993); prior 0 is plain maximum likelihood. Raises ValueError without battles, for an anchor that never
    fought, and where no finite ratings exist.
    """
    names = sorted({battle.left for battle in battles} | {battle.right for battle in battles})
    if anchor not in names:
        raise ValueError(f"the anchor {anchor!r} is in none of the {len(battles)} battles")
    place = {name: index for index, name in enumerate(names)}
    left_N = np.array([place[battle.left] for battle in battles])
    right_N = np.array([place[battle.right] for battle in battles])
    score_N = np.array([battle.score for battle in battles], dtype=np.float64)
    if (score_N < 0).any() or (score_N > 1).any() or (left_N == right_N).any():
        raise ValueError("a battle is between two different models and its score lies between 0 and 1")
    met_MM = _win_matrix(left_N, right_N, score_N, np.ones(len(battles)), len(names)) > 0
    prior_MM = prior / 2 * (met_MM | met_MM.T)

    def fit(weights_N: Sequence[Floats]) -> Floats:
        wins_DMM = np.stack([_win_matrix(left_N, right_N, score_N, weight_N, len(names)) for weight_N in weights_N])
        strength_DM = bradley_terry(prior_MM + wins_DMM)
        return ELO_PER_NAT * (strength_DM - strength_DM[:, [place[anchor]]])

    keys: dict[str, int] = {}
    group_N = np.array([keys.setdefault(battle.group or f"\0{i}", len(keys)) for i, battle in enumerate(battles)])
    rng = np.random.default_rng(seed)
    at_once = max(1, 1_000_000 // len(names) ** 2)
    drawn_DM: list[Floats] = []
    for start in range(0, draws, at_once):
        picks = (rng.integers(len(keys), size=len(keys)) for _ in range(start, min(draws, start + at_once)))
        drawn_DM.append(fit([np.bincount(pick, minlength=len(keys)).astype(np.float64)[group_N] for pick in picks]))
    low_M, high_M = np.quantile(np.concatenate(drawn_DM), [0.025, 0.975], axis=0)
    fought_M = np.bincount(left_N, minlength=len(names)) + np.bincount(right_N, minlength=len(names))
    return {
        name: Interval(value=float(value), low=float(low_M[i]), high=float(high_M[i]), n=int(fought_M[i]))
        for i, (name, value) in enumerate(zip(names, fit([np.ones(len(battles))])[0], strict=True))
    }


def _win_matrix(
    left_N: NDArray[np.int64], right_N: NDArray[np.int64], score_N: Floats, weight_N: Floats, size: int
) -> Floats:
    won = np.bincount(left_N * size + right_N, weights=weight_N * score_N, minlength=size * size)
    lost = np.bincount(right_N * size + left_N, weights=weight_N * (1 - score_N), minlength=size * size)
    return np.asarray(won + lost, dtype=np.float64).reshape(size, size)


def sequential_elo(battles: Sequence[Battle], *, initial: float = 1000.0, k: float = 4.0) -> dict[str, float]:
    """Elo as a chess federation keeps it: updated after each battle, in order, by k (score - expected)."""
    ratings: dict[str, float] = {}
    for battle in battles:
        left, right = ratings.setdefault(battle.left, initial), ratings.setdefault(battle.right, initial)
        gain = k * (battle.score - elo_to_win(left - right))
        ratings[battle.left], ratings[battle.right] = left + gain, right - gain
    return ratings


def win_rates(battles: Sequence[Battle]) -> Mapping[tuple[str, str], Interval]:
    """Share of the wins that the first of a pair took from the second, for every ordered pair that met."""
    sums: dict[tuple[str, str], list[float]] = {}
    for battle in (*battles, *(battle.swapped() for battle in battles)):
        entry = sums.setdefault((battle.left, battle.right), [0.0, 0])
        entry[0] += battle.score
        entry[1] += 1
    return {pair: proportion_interval(won, n=int(n)) for pair, (won, n) in sorted(sums.items())}
