"""Targets, margins and weights of comparisons; the losses that they make."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from solon.artifact import StageFolder
from solon.config import Preference
from solon.config.recipe import Labels
from solon.errors import InputError
from solon.preference import (
    MARGIN_BOUND,
    Pair,
    PreferenceModel,
    label_of,
    loss_weights,
    margin_of,
    pair_of,
    split_by_prompt,
    train_preference,
)
from solon.training.trainers import soft_label_loss
from test_preference import TRAINER, pair, planted_rows, sigmoid

chances = st.floats(0, 1)
surer = st.floats(0.001, 0.999)
leads = st.floats(-20, 20)


def loss(lead: float, one: Pair, *, labels: Labels, seed: int = 0) -> tuple[float, float]:
    """The loss of a pair, and its slope in the lead."""
    d = torch.tensor([lead], dtype=torch.float64, requires_grad=True)
    p, m = (
        torch.tensor([x], dtype=torch.float64) for x in (label_of(one, labels=labels, seed=seed), margin(one, labels))
    )
    value = soft_label_loss(d, p, torch.ones(1), m)
    value.backward()
    assert d.grad is not None
    return value.item(), d.grad.item()


def margin(one: Pair, labels: Labels) -> float:
    return margin_of(one, labels=labels)


def log_sigmoid(x: float) -> float:
    return functional.logsigmoid(torch.tensor(x, dtype=torch.float64)).item()


# ---- targets


@given(chances, st.sampled_from(get_args(Labels)), st.integers(0, 5))
def test_the_target_of_the_swapped_pair_is_the_other_share(p: float, labels: Labels, seed: int) -> None:
    one = replace(pair(p), id=f"id-{p}")
    assert label_of(one.swapped(), labels=labels, seed=seed) == pytest.approx(
        1 - label_of(one, labels=labels, seed=seed)
    )
    assert margin(one.swapped(), labels) == pytest.approx(margin(one, labels))


def test_a_sampled_target_is_won_as_often_as_the_probability_says() -> None:
    for p in (0.5, 0.7, 0.95):
        drawn = [label_of(replace(pair(p), id=str(n)), labels="sampled", seed=3) for n in range(4000)]
        assert set(drawn) == {0.0, 1.0}
        assert sum(drawn) / 4000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))
    assert label_of(pair(1.0), labels="sampled") == 1.0
    assert label_of(pair(0.0), labels="sampled") == 0.0


def test_a_sampled_target_depends_on_seed_and_id_alone() -> None:
    pairs = [replace(pair(0.6), id=str(n)) for n in range(200)]
    drawn = {one.id: label_of(one, labels="sampled", seed=1) for one in pairs}
    assert {one.id: label_of(one, labels="sampled", seed=1) for one in reversed(pairs)} == drawn
    reworded = [replace(one, source="helpful", prompt=()) for one in pairs]
    assert [label_of(one, labels="sampled", seed=1) for one in reworded] == list(drawn.values())
    assert [label_of(one, labels="sampled", seed=2) for one in pairs] != list(drawn.values())


def test_the_margin_is_the_logit_up_to_its_bound() -> None:
    assert margin(pair(0.8), "margin") == pytest.approx(math.log(4))
    assert margin(pair(0.2), "margin") == pytest.approx(math.log(4))
    assert margin(pair(0.5), "margin") == 0.0
    assert margin(pair(0.99), "margin") == margin(pair(1.0), "margin") == margin(pair(0.0), "margin") == MARGIN_BOUND
    assert sigmoid(MARGIN_BOUND) == pytest.approx(0.953, abs=5e-4)
    assert [margin(pair(0.8), labels) for labels in ("soft", "hard", "sampled")] == [0.0, 0.0, 0.0]


# ---- losses in closed form


@given(leads, surer)
def test_the_loss_of_each_kind_of_label(d: float, p: float) -> None:
    one, sign = pair(p), 1 if p > 0.5 else -1
    cross_entropy = -p * log_sigmoid(d) - (1 - p) * log_sigmoid(-d)
    assert loss(d, one, labels="soft")[0] == pytest.approx(cross_entropy, abs=1e-9)
    won = label_of(one, labels="sampled") == 1
    assert loss(d, one, labels="sampled")[0] == pytest.approx(-log_sigmoid(d if won else -d), abs=1e-9)
    if p != 0.5:
        assert loss(d, one, labels="hard")[0] == pytest.approx(-log_sigmoid(sign * d), abs=1e-9)
        m = min(abs(math.log(p / (1 - p))), 3)
        assert loss(d, one, labels="margin")[0] == pytest.approx(-log_sigmoid(sign * d - m), abs=1e-9)


@given(leads, surer)
def test_the_sign_of_each_slope(d: float, p: float) -> None:
    logit = math.log(p / (1 - p))
    assume(abs(d - logit) > 1e-3 and abs(logit) > 1e-3)
    one = pair(p)
    # Soft labels pull the lead to the logit from both sides; all others pull without end to one side.
    assert math.copysign(1, loss(d, one, labels="soft")[1]) == math.copysign(1, d - logit)
    for labels in ("hard", "margin"):
        assert math.copysign(1, loss(d, one, labels=labels)[1]) == -math.copysign(1, logit)
    won = label_of(one, labels="sampled") == 1
    assert math.copysign(1, loss(d, one, labels="sampled")[1]) == (-1 if won else 1)
    # A margin pulls harder than none, and with strength 1/2 where the lead is the margin.
    assert abs(loss(d, one, labels="margin")[1]) > abs(loss(d, one, labels="hard")[1])
    if abs(logit) < 3:
        assert loss(logit, one, labels="margin")[1] == pytest.approx(-math.copysign(0.5, logit))


def test_ties_pull_to_equal_scores() -> None:
    for labels in ("soft", "hard", "margin"):
        assert loss(0.0, pair(0.5), labels=labels)[1] == pytest.approx(0)
        assert loss(1.0, pair(0.5), labels=labels)[1] == pytest.approx(sigmoid(1) - 0.5)


@given(leads, chances, st.sampled_from(get_args(Labels)))
def test_told_from_the_other_side_the_loss_is_the_same(d: float, p: float, labels: Labels) -> None:
    there, back = loss(d, pair(p), labels=labels), loss(-d, pair(p).swapped(), labels=labels)
    assert there == pytest.approx((back[0], -back[1]), abs=1e-6)


def test_the_mean_slope_of_sampled_labels_is_that_of_the_soft_one() -> None:
    slopes = [loss(0.3, replace(pair(0.7), id=str(n)), labels="sampled")[1] for n in range(1000)]
    assert sum(slopes) / 1000 == pytest.approx(loss(0.3, pair(0.7), labels="soft")[1], abs=0.06)


# ---- weights


def mixture() -> list[Pair]:
    ai = [replace(pair(0.7), weight=1.0 + n) for n in range(3)]
    return [*ai, pair(0.7, source="helpful")]


def test_by_default_a_source_weighs_as_much_as_it_has_pairs() -> None:
    weights = loss_weights(mixture(), source_weights={})
    assert weights == pytest.approx([4 / 7, 8 / 7, 12 / 7, 4 / 7])


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_sources_weigh_what_they_are_given(ai: float, helpful: float) -> None:
    weights = loss_weights(mixture(), source_weights={"ai": ai, "helpful": helpful})
    assert sum(weights) == pytest.approx(4)
    assert sum(weights[:3]) / weights[3] == pytest.approx(ai / helpful)
    assert weights[2] / weights[0] == pytest.approx(3)


def test_weights_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="weight 0"):
        loss_weights([replace(pair(0.7), weight=0.0)], source_weights={})
    assert loss_weights(mixture(), source_weights={"ai": 0, "helpful": 2})[:3] == [0, 0, 0]
    for weights in ({"ai": -1.0}, {"ai": math.inf}, {"ai": 0.0}):
        with pytest.raises(ValidationError, match="from 0 on"):
            Preference(source_weights=weights)
    row = planted_rows(1)[0]
    for weight in (-1, math.nan):
        with pytest.raises(InputError, match="the weight is"):
            pair_of({**row, "weight": weight})


def test_weights_must_name_the_sources(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    config = Preference(start="x", source_weights={"ai": 1, "human": 1})
    with pytest.raises(InputError, match=r"names ai, human.*come from: ai, helpful"):
        train_preference(
            planted_rows(4), model=tiny_causal_lm(tmp_path), stage=StageFolder(tmp_path / "stage"), config=config
        )


def test_a_source_of_weight_0_is_measured_and_not_learnt(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    rows = planted_rows(16)
    for row in rows:
        if row["source"] == "helpful":
            row["probability"] = 1 - row["probability"]
    config = Preference(
        start="x",
        source_weights={"ai": 1, "helpful": 0},
        holdout=0.2,
        trainer={**TRAINER, "num_train_epochs": 10},
    )
    got = train_preference(rows, model=tiny_causal_lm(tmp_path), stage=StageFolder(tmp_path / "stage"), config=config)
    assert got.accuracy["ai"].value > 0.9
    assert got.accuracy["helpful"].value < 0.1
    errors = got.measured.calibration_error_by_source
    assert errors["helpful"].value > errors["ai"].value + 0.2
    assert errors["ai"].n + errors["helpful"].n == got.counts["held_out_pairs"]


def test_a_margin_makes_leads_larger(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    """Early in training: later on leads are far above the margins anyway."""
    model, rows, lead = tiny_causal_lm(tmp_path), planted_rows(8), dict[str, float]()
    for labels in ("hard", "margin"):
        for steps, folder in ((20, "early"), (60, "late")):
            config = Preference(start="x", labels=labels, trainer={**TRAINER, "max_steps": steps})
            stage = StageFolder(tmp_path / labels / folder)
            got = train_preference(rows, model=model, stage=stage, config=config)
        assert got.accuracy["all"].value > 0.9
        judge = PreferenceModel.load(tmp_path / labels / "early" / "model")
        a, b = (judge.raw_score([(row["prompt"], row[side][0]["content"]) for row in rows]) for side in SIDES)
        lead[labels] = sum(abs(one - other) for one, other in zip(a, b, strict=True)) / len(rows)
    assert lead["margin"] > lead["hard"]


SIDES = ("chosen", "rejected")


# ---- what is held out together


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=2, max_size=40), st.integers(0, 3))
def test_what_is_held_with_is_never_in_both_parts(numbers: list[tuple[int, int]], seed: int) -> None:
    # 13 prompts in 4 groups: prompt n belongs to group n % 4.
    pairs = [replace(pair(0.7, number=n, chosen=str(i)), held_with=f"g{n % 4}") for i, (n, _) in enumerate(numbers)]
    train, held_out = split_by_prompt(pairs, share=0.3, seed=seed)
    assert not {p.held_with for p in train} & {p.held_with for p in held_out}
    assert not {p.prompt_id for p in train} & {p.prompt_id for p in held_out}
    assert len(train) + len(held_out) == len(pairs)


def test_a_prompt_in_two_groups_is_refused() -> None:
    row = planted_rows(1)[0]
    pairs = [pair_of({**row, "group": "a"}), pair_of({**row, "id": "other", "group": "b"})]
    assert [one.group for one in pairs] == ["a", "b"]
    with pytest.raises(InputError, match="comparison other"):
        split_by_prompt(pairs, share=0.5, seed=0)
