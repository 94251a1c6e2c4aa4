"""Ratings from battles: the model of Bradley and Terry (1952) on the scale of Elo. No model, no files.

A lead of 400 means odds of 10 to 1, so that the strength in nats is r = E ln(10) / 400 (Bai et al. 2022,
arXiv:2204.05862, section 2.4 and appendix B.5).

Shapes: N battles, M models, D draws of a bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solon.stats import Floats, Interval, proportion_interval, sigmoid

ELO_PER_NAT = 400 / math.log(10)
"""Points of Elo in one nat of strength, 173.7."""


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
