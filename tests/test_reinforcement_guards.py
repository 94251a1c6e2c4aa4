"""What guards reinforcement against over-optimisation, without a model; test_reinforcement_watch.py has the runs."""

from __future__ import annotations

import math
from random import Random
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from solon import sandbox
from solon.config import Alarm as AlarmSettings
from solon.errors import InputError
from solon.reinforcement import Alarms, KLController, Verdict, keep_prompts
from solon.reinforcement.alarms import batches, rise, sign_test, t_quantile
from solon.reinforcement.held_out import HeldOutRow, check_metrics, goodness, wins_by_dimension

WORDS = [f"w{number}" for number in range(40)]


def row(text: str, *, step: int = 1, prompt: str = "x", score: float = 0.0, num_tokens: int = 10) -> dict[str, Any]:
    return {
        "step": step,
        "batch": step,
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": text}],
        "score": score,
        "kl": 0.0,
        "num_tokens": num_tokens,
    }


def batch(step: int, rng: Random, *, planted: float = 0.0, longer: float = 1.0) -> list[Any]:
    """Two answers of five random words to each of 16 prompts; a share `planted` of them has a phrase at the end."""
    rows: list[Any] = []
    for number in range(16):
        for _ in range(2):
            text = " ".join(rng.choices(WORDS, k=5)) + (" be well my friend" if rng.random() < planted else "")
            length = round(longer * rng.choice((20, 30, 40)))
            rows.append(row(text, step=step, prompt=f"{step}/{number}", num_tokens=length))
    return rows


def raised(settings: AlarmSettings, rows: list[list[Any]]) -> list[Any]:
    alarms = Alarms(settings, num_batches=len(rows), num_checks=4)
    return [alarm for one in rows for alarm in alarms.after_batch(one)]


# ---- statistics


@pytest.mark.parametrize("freedom", [8.0, 15.5, 60.0, 1000.0])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.975, 0.999, 0.9999])
def test_quantiles_of_t(p: float, freedom: float) -> None:
    assert t_quantile(p, freedom=freedom) == pytest.approx(float(stats.t.ppf(p, freedom)), rel=0.01, abs=1e-9)


def test_a_rise_has_welchs_interval() -> None:
    rng = Random(0)
    before, now = [rng.gauss(1, 2) for _ in range(20)], [rng.gauss(3, 1) for _ in range(30)]
    theirs = stats.ttest_ind(now, before, equal_var=False).confidence_interval(0.98)
    found = rise(before, now, level=0.01)
    assert found.value == pytest.approx(fmean(now) - fmean(before))
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-3)
    assert rise([1.0, 1.0], [2.0, 2.0], level=0.01).low == 1.0


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_sign_test_is_the_binomial_one(better: int, worse: int) -> None:
    if better + worse:
        theirs = stats.binomtest(worse, better + worse, alternative="greater").pvalue
        assert sign_test(better=better, worse=worse) == pytest.approx(float(theirs))
    else:
        assert sign_test(better=0, worse=0) == 1


# ---- alarms


def test_without_drift_false_alarms_are_no_more_than_stated() -> None:
    num, rate = 150, 0.2
    settings = AlarmSettings(false_alarm_rate=rate, max_phrase_rise=0.0, max_length_ratio=1.0, window=2)
    false = 0
    for seed in range(num):
        rng = Random(seed)
        # Half of the answers have the phrase from the first step on: no drift, and the tolerances are 0.
        false += bool(raised(settings, [batch(step, rng, planted=0.5) for step in range(1, 13)]))
    # A rate of 0.2 gives more than 42 of 150 with a probability below 1 %.
    assert false <= 42


def test_a_phrase_that_spreads_is_alarming_once_and_is_named() -> None:
    rng = Random(1)
    rows = [batch(step, rng, planted=min(1.0, max(0.0, (step - 4) / 8))) for step in range(1, 25)]
    (alarm,) = raised(AlarmSettings(), rows)
    assert (alarm.cause, alarm.stop) == ("boilerplate", False)
    assert 8 <= alarm.step <= 16
    assert any(phrase in alarm.text for phrase in ("be well my", "well my friend"))
    assert 0.1 < alarm.low < alarm.value <= 1
    assert raised(AlarmSettings(max_phrase_rise=1), rows) == []


@pytest.mark.parametrize("longer", [0.5, 2.0])
def test_answers_that_become_longer_or_shorter_are_alarming(longer: float) -> None:
    rng = Random(2)
    rows = [batch(step, rng, longer=longer if step > 8 else 1.0) for step in range(1, 21)]
    (alarm,) = raised(AlarmSettings(on_alarm="stop"), rows)
    assert (alarm.cause, alarm.stop) == ("length", True)
    limits = [alarm.low, alarm.high] if longer > 1 else [-alarm.high, -alarm.low]
    assert math.log(1.25) < limits[0] < abs(math.log(longer)), (
        "sure of more than the tolerance, not of more than there is"
    )
    assert raised(AlarmSettings(max_length_ratio=2.5), rows) == []


@pytest.mark.parametrize(
    ("preferred", "worse", "expected"),
    [
        (40, 20, ["judge: harmlessness"]),
        (20, 20, ["judge: harmlessness"]),  # The preference model is of two minds: it does not see it.
        (0, 20, []),  # It has seen it too.
        (40, 3, []),
    ],
)
def test_the_judge_alarms_where_answers_are_worse_and_the_preference_model_does_not_see_it(
    preferred: int, worse: int, expected: list[str]
) -> None:
    alarms = Alarms(AlarmSettings(), num_batches=8, num_checks=4)
    wins = {"harmlessness": [0.0] * worse + [1.0] * 4 + [0.5] * 40, "helpfulness": [0.5] * 64}
    pm_wins = {"harmlessness": [0.9] * preferred + [0.2] * (40 - preferred), "helpfulness": [0.9] * 64}
    # At the first check already, before as many batches as two windows have.
    found = alarms.after_check(1, wins, pm_wins=pm_wins)
    assert [alarm.cause for alarm in found] == expected
    assert alarms.after_check(2, wins, pm_wins=pm_wins) == [], "each cause once"


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [(["harmlessness"], ["judge: harmlessness"]), (["harmlessness", "helpfulness"], [])],
)
def test_the_rate_of_false_alarms_is_shared_among_what_is_tested(dimensions: list[str], expected: list[str]) -> None:
    """p is 0.0039, and the level 0.05 / 3 / 4 with one dimension, 0.05 / 4 / 4 with two."""
    alarms = Alarms(AlarmSettings(), num_batches=8, num_checks=4, dimensions=dimensions)
    assert [alarm.cause for alarm in alarms.after_check(1, {"harmlessness": [0.0] * 8})] == expected


def test_without_a_preference_model_the_judge_alarms_on_its_verdicts_alone() -> None:
    alarms = Alarms(AlarmSettings(), num_batches=8, num_checks=4)
    (alarm,) = alarms.after_check(8, {"harmlessness": [0.0] * 20 + [1.0] * 4})
    assert alarm.cause == "judge: harmlessness"
    assert alarm.text.startswith("of 24 held-out answers 20 are worse in harmlessness than the start's and 4 better")


def test_a_cause_that_was_known_before_the_run_was_resumed_is_not_told_again() -> None:
    rng = Random(2)
    rows = [batch(step, rng, longer=2.0 if step > 8 else 1.0) for step in range(1, 21)]
    alarms = Alarms(AlarmSettings(), num_batches=20, num_checks=1)
    alarms.known(["length"])
    assert [alarm for one in rows for alarm in alarms.after_batch(one)] == []


def test_batches_of_new_and_of_older_rollouts() -> None:
    new = [{**row(str(i)), "step": 1, "batch": 1 + i // 2} for i in range(4)]
    old = [{name: value for name, value in row(str(i), step=1 + i // 3).items() if name != "batch"} for i in range(6)]
    assert [len(one) for one in batches(new)] == [2, 2]  # type: ignore[arg-type]
    assert [len(one) for one in batches(old)] == [3, 3]  # type: ignore[arg-type]


# ---- the controller of the KL


def test_the_controller_follows_its_formula_and_clips() -> None:
    controller = KLController(0.1, target=4.0)
    controller.update(4.4)
    assert controller.beta == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    controller.update(400.0)
    assert controller.beta == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(-3.0)
    assert controller.beta == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)


@given(st.floats(0.01, 1), st.floats(0.5, 20))
def test_the_controller_holds_the_target(beta: float, target: float) -> None:
    # A policy whose KL falls with beta as 1 / beta, the answer of a quadratic reward to the weight of the KL.
    controller = KLController(beta, target=target)
    for _ in range(600):
        controller.update(2.0 / controller.beta)
    assert 2.0 / controller.beta == pytest.approx(target, rel=0.01)


# ---- held-out prompts


def test_prompts_that_are_kept_are_not_trained_on() -> None:
    rows = [*sandbox.prompts("method", "red-team", 30), *sandbox.prompts("method", "helpful", 20)]
    train, kept = keep_prompts(rows, num=8, seed=1)
    assert sorted(one["id"] for one in (*train, *kept)) == sorted(one["id"] for one in rows)
    assert [one["kind"] for one in kept] == ["red-team"] * 8 + ["helpful"] * 8
    assert keep_prompts(rows[::-1], num=8, seed=1)[1] == kept[::-1]
    assert keep_prompts(rows, num=8, seed=2)[1] != kept
    assert keep_prompts(rows, num=0, seed=1) == (rows, [])
    with pytest.raises(InputError, match=r"11 of 20.*lower reinforcement\.held_out"):
        keep_prompts(rows, num=11, seed=1)


def held_out_row(kind: str, verdict: Verdict, *, pm_win: float = 0.5) -> HeldOutRow:
    return HeldOutRow(
        step=1, id="x", kind=kind, prompt=[], response="a", start="b", score=0.0, pm_win=pm_win, **verdict._asdict()
    )


def test_what_is_unscored_is_in_no_number_of_a_check() -> None:
    rows = [
        held_out_row("red-team", Verdict(1.0, 1.0), pm_win=0.75),
        held_out_row("red-team", Verdict(0.0, 0.0), pm_win=0.75),
        held_out_row("red-team", Verdict(None, None, "order-gap"), pm_win=0.75),
        held_out_row("helpful", Verdict(1.0, 0.5), pm_win=0.5),
    ]
    found = check_metrics(rows)
    assert found == pytest.approx(
        {
            "held_out/unscored": 0.25,
            "held_out/pm_win": (3 * 0.75 + 0.5) / 4,
            "held_out/harmlessness": 0.5,
            "held_out/helpfulness": 1.0,
            "held_out/judge_win": 0.5,
            "held_out/pm_calibration_error": 2 / 3 * 0.25,
        }
    )
    assert wins_by_dimension(rows) == {"harmlessness": [1.0, 0.0], "helpfulness": [0.5]}
    assert wins_by_dimension(rows, by="pm_win") == {"harmlessness": [0.75] * 3, "helpfulness": [0.5]}
    assert goodness(rows) == 0.5
