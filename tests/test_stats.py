"""Maths against closed forms, properties and independent implementations."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import evalica
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.ratings import (
    ELO_PER_NAT,
    Battle,
    bradley_terry,
    elo_ratings,
    elo_to_win,
    sequential_elo,
    win_rates,
)
from solon.stats import (
    MAX_T,
    MIN_T,
    Interval,
    bootstrap_interval,
    calibration_error,
    clustered_interval,
    fit_temperature,
    log_losses,
    mean_over_runs,
    normalise,
    paired_ratio,
    pooled_interval,
    proportion_interval,
    reliability,
    reliability_of,
    sigmoid,
)

DATA = Path(__file__).parents[2] / "shared" / "data"


def needs(folder: str) -> pytest.MarkDecorator:
    reason = f"the public data set {folder} is not on this machine"
    return pytest.mark.skipif(not (DATA / folder).is_dir(), reason=reason)


def battles_between(names: str, *, seed: int, n: int, strengths: dict[str, float] | None = None) -> list[Battle]:
    """`n` battles of each pair, won by chance according to the strengths (Elo, 0 where not given)."""
    rng = np.random.default_rng(seed)
    strengths = strengths or {}
    fought: list[Battle] = []
    for left, right in combinations(names, 2):
        p = elo_to_win(strengths.get(left, 0.0) - strengths.get(right, 0.0))
        fought += [Battle(left=left, right=right, score=float(won)) for won in rng.random(n) < p]
    return fought


# ---- shares


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(successes: int, n: int, low: float, high: float) -> None:
    interval = proportion_interval(successes, n=n)
    assert (interval.value, interval.n) == (successes / n, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_a_share_of_nothing_has_no_interval() -> None:
    with pytest.raises(ValueError, match="without a single case"):
        proportion_interval(0, n=0)
    with pytest.raises(ValueError, match="between 0 and their total"):
        proportion_interval(3, n=2)


@given(st.integers(1, 500), st.floats(0, 1))
def test_interval_holds_its_value_and_mirrors(n: int, share: float) -> None:
    successes = round(share * n)
    yes, no = proportion_interval(successes, n=n), proportion_interval(n - successes, n=n)
    assert yes.contains(yes.value) and 0 <= yes.low <= yes.high <= 1
    assert yes.low == pytest.approx(1 - no.high) and yes.high == pytest.approx(1 - no.low)


def test_wilson_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = [proportion_interval(int(rng.binomial(200, 0.08)), n=200).contains(0.08) for _ in range(1000)]
    assert 0.93 <= np.mean(covered) <= 0.98


def test_clusters_that_agree_change_nothing_and_clusters_that_differ_widen() -> None:
    flat = proportion_interval(60, n=120)
    assert pooled_interval([20, 20, 20], totals=[40, 40, 40]) == flat
    wide = pooled_interval([40, 20, 0], totals=[40, 40, 40])
    assert wide.value == flat.value and wide.n == 120
    # Design effect (20^2 + 0 + 20^2) * 3/2 / (120 / 4) = 40: as good as 3 answers.
    few = proportion_interval(1.5, n=3)
    assert (wide.low, wide.high) == pytest.approx((few.low, few.high))


def test_clustered_interval_covers_where_answers_of_one_activity_are_alike() -> None:
    rng = np.random.default_rng(1)
    covered, naive = [], []
    for _ in range(300):
        chance = rng.beta(2, 2, size=40)
        clusters = np.repeat(np.arange(40), 8)
        outcomes = (rng.random(320) < chance[clusters]).astype(float).tolist()
        covered.append(clustered_interval(outcomes, clusters=clusters.tolist()).contains(0.5))
        naive.append(proportion_interval(sum(outcomes), n=320).contains(0.5))
    assert np.mean(covered) >= 0.92 > np.mean(naive)


# ---- bootstrap


def test_the_mean_of_runs_by_hand() -> None:
    alike = [Interval(value=0.5, low=0.4, high=0.7, n=100)] * 4
    found = mean_over_runs(alike)
    assert (found.value, found.low, found.high, found.n) == (0.5, pytest.approx(0.45), pytest.approx(0.6), 400)
    # Runs that differ by far more than their own intervals: the normal interval of their mean.
    apart = mean_over_runs([Interval(value=v, low=v, high=v, n=1) for v in (0.0, 1.0)])
    half = 1.959963984540054 * math.sqrt(0.5 / 2)
    assert (apart.low, apart.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert mean_over_runs(alike[:1]) == alike[0]
    with pytest.raises(ValueError, match="no runs"):
        mean_over_runs([])


def test_the_interval_of_a_mean_of_runs_covers_the_truth() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        shares = [proportion_interval(int(won), n=200) for won in rng.binomial(200, 0.2, size=3)]
        covered += mean_over_runs(shares).contains(0.2)
    assert 0.93 <= covered / 400 <= 1.0


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(5, 2, size=400)
    interval = bootstrap_interval(values, statistic=lambda rows: float(rows.mean()), seed=0, draws=2000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.value == pytest.approx(values.mean()) and interval.n == 400
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert interval == bootstrap_interval(values, statistic=lambda rows: float(rows.mean()), seed=0, draws=2000)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([], statistic=float, seed=0)


def test_paired_ratio_uses_that_the_prompts_are_the_same() -> None:
    rng = np.random.default_rng(5)
    before = (rng.random(300) < 0.6).astype(float)
    same = paired_ratio(before, baseline=before, seed=0)
    assert same == Interval(value=1.0, low=1.0, high=1.0, n=300)
    after = before.copy()
    after[np.flatnonzero(before)[:18]] = 0
    lost = paired_ratio(after, baseline=before, seed=0)
    assert lost.value == pytest.approx(1 - 18 / before.sum()) and lost.high < 1
    with pytest.raises(ValueError, match="baseline"):
        paired_ratio([1.0, 1.0], baseline=[0.0, 0.0], seed=0)


# ---- probabilities


def test_normalise_is_the_share_of_the_two_options() -> None:
    assert normalise(math.log(0.3), math.log(0.1)) == pytest.approx(0.75)
    assert normalise(-1000.0, -1001.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert normalise(-math.inf, -2.0) == 0.0
    with pytest.raises(ValueError, match="neither option"):
        normalise(-math.inf, -math.inf)


@given(st.floats(-1e4, 0), st.floats(-1e4, 0))
def test_normalise_is_symmetric_under_swapping(a: float, b: float) -> None:
    assert normalise(a, b) == pytest.approx(1 - normalise(b, a), abs=1e-12)


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid([-1e4, 0.0, 1e4]).tolist() == [0.0, 0.5, 1.0]


def test_reliability_by_hand() -> None:
    found = reliability([0.1, 0.1, 0.9, 0.9, 1.0], outcomes=[0, 1, 1, 1, 0], bins=2)
    assert [one.n for one in found.bins] == [2, 3]
    assert [one.confidence for one in found.bins] == pytest.approx([0.1, 2.8 / 3])
    assert found.error == pytest.approx((2 * 0.4 + 3 * (2.8 / 3 - 2 / 3)) / 5)
    assert found.error == calibration_error([0.1, 0.1, 0.9, 0.9, 1.0], outcomes=[0, 1, 1, 1, 0], bins=2)
    assert found.error == pytest.approx(sum(b.n * abs(b.confidence - b.outcome.value) for b in found.bins) / 5)
    assert reliability_of(json.loads(json.dumps(asdict(found)))) == found
    assert reliability([1.0], outcomes=[1.0]).bins[0].low == 0.9
    with pytest.raises(ValueError, match="probabilities between 0 and 1"):
        reliability([1.5], outcomes=[1])


def test_calibrated_predictions_have_a_small_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    assert reliability(p, outcomes=(rng.random(20_000) < p)).error < 0.015
    assert reliability(p, outcomes=(rng.random(20_000) < 0.5)).error > 0.2


# ---- temperature

a_lead = st.one_of(st.just(0.0), st.floats(0.01, 30), st.floats(-30, -0.01))
labelled = st.lists(st.tuples(a_lead, st.floats(0, 1)), min_size=1, max_size=12)


@given(labelled)
def test_log_loss_is_the_cross_entropy_and_swapping_changes_nothing(cases: list[tuple[float, float]]) -> None:
    d, y = np.array(cases).T
    expected = [-label * math.log(sigmoid(lead)) - (1 - label) * math.log(sigmoid(-lead)) for lead, label in cases]
    assert log_losses(d, labels=y).tolist() == pytest.approx(expected)
    assert log_losses(-d, labels=1 - y).tolist() == pytest.approx(expected)
    assert log_losses([0.0], labels=[0.7]).tolist() == pytest.approx([math.log(2)])
    with pytest.raises(ValueError, match="labels between 0 and 1"):
        log_losses([0.0], labels=[1.1])


@pytest.mark.parametrize("k", [0.1, 0.5, 1.0, 3.0, 15.0])
def test_leads_that_are_k_times_too_large_give_the_temperature_k(k: float) -> None:
    true = np.random.default_rng(0).normal(0, 2, size=50)
    assert fit_temperature(k * true, labels=sigmoid(true)) == pytest.approx(k, rel=1e-9)


def test_the_temperature_is_found_from_outcomes_within_sampling_error() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(30):
        true = rng.normal(0, 1.5, size=2000)
        outcomes = rng.random(2000) < sigmoid(true)
        found.append(fit_temperature(2.5 * true, labels=outcomes))
    error = np.std(found, ddof=1)
    assert error < 0.2
    assert np.mean(found) == pytest.approx(2.5, abs=3 * error / math.sqrt(30))


@given(labelled, st.lists(st.booleans(), min_size=12, max_size=12), st.floats(0.5, 2))
def test_swapping_changes_no_temperature_and_scaling_scales_it(
    cases: list[tuple[float, float]], swaps: list[bool], k: float
) -> None:
    d, y = np.array(cases).T
    fitted = fit_temperature(d, labels=y)
    swapped = np.array(swaps[: len(d)])
    again = fit_temperature(np.where(swapped, -d, d), labels=np.where(swapped, 1 - y, y))
    assert again == pytest.approx(fitted, rel=1e-4)
    if 2 * MIN_T < fitted < MAX_T / 2 and d.any():
        assert fit_temperature(k * d, labels=y) == pytest.approx(k * fitted, rel=1e-4)


@given(labelled)
def test_no_temperature_near_by_has_less_loss(cases: list[tuple[float, float]]) -> None:
    d, y = np.array(cases).T
    fitted = fit_temperature(d, labels=y)
    least = log_losses(d / fitted, labels=y).mean()
    for other in (0.9 * fitted, 1.1 * fitted, 1.0):
        if MIN_T <= other <= MAX_T:
            assert log_losses(d / other, labels=y).mean() >= least - 1e-9


def test_the_limits_of_a_temperature() -> None:
    assert fit_temperature([1.0, 2.0, -1.0], labels=[1, 1, 0]) == MIN_T
    assert fit_temperature([1.0, 2.0, -1.0], labels=[0, 0, 1]) == MAX_T
    assert fit_temperature([1.0, -1.0], labels=[0.5, 0.5]) == MAX_T
    assert fit_temperature([0.0, 0.0], labels=[0.2, 1.0]) == 1.0
    with pytest.raises(ValueError, match="without a lead"):
        fit_temperature([], labels=[])
    with pytest.raises(ValueError, match="one label for each lead"):
        fit_temperature([1.0, 2.0], labels=[0.5])


# ---- ratings


def read_golden(name: str) -> tuple[list[Battle], dict[tuple[str, str], float]]:
    with (DATA / "evalica-elo" / f"{name}.csv").open() as file:
        score = {"left": 1.0, "right": 0.0, "tie": 0.5}
        battles = [
            Battle(left=row["left"], right=row["right"], score=score[row["winner"]]) for row in csv.DictReader(file)
        ]
    with (DATA / "evalica-elo" / f"{name}-golden.csv").open() as file:
        golden = {(row["algorithm"], row["item"]): float(row["score"]) for row in csv.DictReader(file)}
    return battles, golden


def wins_of(battles: list[Battle], names: list[str]) -> np.ndarray:
    wins = np.zeros((len(names), len(names)))
    for battle in battles:
        left, right = names.index(battle.left), names.index(battle.right)
        wins[left, right] += battle.score
        wins[right, left] += 1 - battle.score
    return wins


@needs("evalica-elo")
@pytest.mark.parametrize("name", ["simple", "food"])
def test_ratings_are_the_published_golden_ones(name: str) -> None:
    battles, golden = read_golden(name)
    names = sorted({one.left for one in battles} | {one.right for one in battles})
    shares = np.exp(bradley_terry(wins_of(battles, names)))
    shares /= shares.sum()
    assert shares.tolist() == pytest.approx([golden["bradley_terry", item] for item in names], abs=1e-9)
    assert sequential_elo(battles) == pytest.approx({item: golden["elo", item] for item in names}, abs=1e-9)


@needs("choix-bt")
@pytest.mark.parametrize("number", [1, 2])
def test_strengths_are_the_exact_estimates_of_choix(number: int) -> None:
    case = json.loads((DATA / "choix-bt" / f"testcase-pairwise-{number}.json").read_text())
    wins = np.zeros((case["n_items"], case["n_items"]))
    for winner, loser in case["data"]:
        wins[winner, loser] += 1
    assert bradley_terry(wins).tolist() == pytest.approx(case["ml_est"], abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_ratings_agree_with_evalica_on_random_tournaments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = list("abcdef")
    battles = [
        Battle(left=left, right=right, score=float(rng.choice([0.0, 0.5, 1.0])))
        for left, right in combinations(names, 2)
        for _ in range(9)
    ]
    winner = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    columns = [one.left for one in battles], [one.right for one in battles], [winner[one.score] for one in battles]
    oracle = evalica.bradley_terry(*columns, tolerance=1e-13, limit=100_000).scores
    ours = bradley_terry(wins_of(battles, names))
    logs = np.log([float(oracle[name]) for name in names])
    assert ours.tolist() == pytest.approx((logs - logs.mean()).tolist(), abs=1e-6)
    online = evalica.elo(*columns).scores
    assert sequential_elo(battles) == pytest.approx({name: float(online[name]) for name in names}, abs=1e-9)


def test_two_models_have_a_closed_form() -> None:
    battles = [Battle(left="a", right="b", score=1.0)] * 64 + [Battle(left="a", right="b", score=0.0)] * 36
    plain = elo_ratings(battles, anchor="b", seed=0, prior=0)
    assert plain["a"].value == pytest.approx(400 * math.log10(64 / 36), abs=1e-6)
    assert plain["b"] == Interval(value=0.0, low=0.0, high=0.0, n=100)
    assert elo_ratings(battles, anchor="b", seed=0)["a"].value == pytest.approx(400 * math.log10(64.5 / 36.5), abs=1e-6)
    assert elo_to_win(100) == pytest.approx(0.640, abs=5e-4)
    assert pytest.approx(173.72, abs=0.01) == ELO_PER_NAT


def test_a_judges_probability_is_a_share_of_a_win() -> None:
    soft = elo_ratings([Battle(left="a", right="b", score=0.75)] * 40, anchor="b", seed=0, prior=0)
    hard = [Battle(left="a", right="b", score=1.0)] * 30 + [Battle(left="a", right="b", score=0.0)] * 10
    assert soft["a"].value == pytest.approx(elo_ratings(hard, anchor="b", seed=0, prior=0)["a"].value)


def test_a_model_that_never_lost_is_finite_with_the_prior_and_refused_without() -> None:
    battles = [Battle(left="a", right="b", score=1.0)] * 50
    rating = elo_ratings(battles, anchor="b", seed=0)["a"]
    assert rating.value == pytest.approx(400 * math.log10(50.5 / 0.5), abs=1e-6)
    with pytest.raises(ValueError, match="no finite ratings"):
        elo_ratings(battles, anchor="b", seed=0, prior=0)
    with pytest.raises(ValueError, match="no finite ratings"):
        elo_ratings([*battles, Battle(left="c", right="d", score=0.5)], anchor="b", seed=0)
    with pytest.raises(ValueError, match="'z' is in none"):
        elo_ratings(battles, anchor="z", seed=0)


def test_interval_holds_the_planted_strengths() -> None:
    planted = {"a": 0.0, "b": 120.0, "c": -90.0, "d": 260.0}
    held = []
    for seed in range(40):
        battles = battles_between("abcd", seed=seed, n=60, strengths=planted)
        ratings = elo_ratings(battles, anchor="a", seed=0, draws=200)
        held += [ratings[name].contains(planted[name]) for name in "bcd"]
    assert np.mean(held) >= 0.9


def test_battles_of_one_prompt_are_drawn_together() -> None:
    alone = battles_between("ab", seed=0, n=50)
    together = [Battle(left=one.left, right=one.right, score=one.score, group=f"{i}") for i, one in enumerate(alone)]
    narrow = elo_ratings(alone * 8, anchor="a", seed=0)["b"]
    wide = elo_ratings(together * 8, anchor="a", seed=0)["b"]
    assert narrow.value == pytest.approx(wide.value)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from("abc"))
def test_order_side_and_origin_change_no_rating(random: object, anchor: str) -> None:
    battles = battles_between("abc", seed=11, n=12, strengths={"b": 80.0})
    ratings = elo_ratings(battles, anchor="a", seed=0, draws=2)
    shuffled = [battle.swapped() if random.random() < 0.5 else battle for battle in battles]  # type: ignore[attr-defined]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    moved = elo_ratings(shuffled, anchor=anchor, seed=0, draws=2)
    for name in "abc":
        assert moved[name].value == pytest.approx(ratings[name].value - ratings[anchor].value, abs=1e-6)
        assert moved[name].n == 24


def test_win_rates_of_both_sides_add_up() -> None:
    rates = win_rates([Battle(left="a", right="b", score=1.0), Battle(left="b", right="a", score=0.5)])
    assert rates["a", "b"].value == 0.75 and rates["b", "a"].value == 0.25 and rates["a", "b"].n == 2
