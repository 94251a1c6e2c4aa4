"""Two runs beside each other, and how answers are worded: known differences, and their intervals."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import pytest

from commands import assert_refused, run
from run_folder import make_run
from solon.artifact import read_rows, write_rows
from solon.errors import InputError
from solon.evaluation import Comparison, Difference, ResponseRow, compare_runs, style_scores
from solon.stats import (
    Interval,
    difference_of_intervals,
    difference_of_means,
    jackknife_interval,
    proportion_interval,
)
from solon.wording import distinct


def found(comparison: Comparison, model: str, metric: str) -> Difference:
    (one,) = (row for row in comparison.differences if (row.model, row.metric) == (model, metric))
    return one


def changed_verdicts(path: Path, *, every: int, verdict: str) -> None:
    """Give every k-th answer of rl-cai another verdict."""
    stage = path / "06-evaluation"
    changed = [row["id"] for row in read_rows(stage / "responses.jsonl") if row["model"] == "rl-cai"][::every]
    rows = [{**row, "verdict": verdict} if row["id"] in changed else row for row in read_rows(stage / "verdicts.jsonl")]
    (stage / "verdicts.jsonl").unlink()
    write_rows(stage / "verdicts.jsonl", rows)


def test_a_run_differs_from_itself_by_nothing(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    same = compare_runs(path, path)
    assert same.settings == []
    means = [one.difference for one in same.differences if one.way == "paired"]
    assert means
    assert {(one.value, one.low, one.high) for one in means} == {(0, 0, 0)}


def test_a_planted_difference_is_found_prompt_by_prompt(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    changed_verdicts(second, every=4, verdict="helps")
    recipe = json.loads((second / "recipe.resolved.json").read_text())
    recipe |= {"name": "other", "seed": 3, "model": {**recipe["model"], "path": "else"}}
    (second / "recipe.resolved.json").write_text(json.dumps(recipe))
    (second / "constitution.yaml").write_text((second / "constitution.yaml").read_text() + "# changed\n")
    comparison = compare_runs(first, second)
    assert [one.setting for one in comparison.settings] == ["seed", "model.path", "constitution.yaml"]
    one = found(comparison, "rl-cai", "harmful_compliance")
    assert (one.first, one.second, one.way) == (0, 0.25, "paired")
    assert one.difference.value == 0.25 and 0 < one.difference.low < 0.25 < one.difference.high < 0.5
    assert one.difference.n == 80
    assert found(comparison, "helpful", "harmful_compliance").difference.value == 0
    assert found(comparison, "rl-cai", "words").difference.value == 0
    assert not any(one.metric.startswith("elo_") for one in comparison.differences)


def test_of_runs_that_share_some_prompts_these_alone_are_compared(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    stage = second / "06-evaluation"
    rows = list(read_rows(stage / "responses.jsonl"))
    other = set(list(dict.fromkeys(row["prompt_id"] for row in rows))[20:])
    renamed = [{**row, "prompt_id": row["prompt_id"] + "'" * (row["prompt_id"] in other)} for row in rows]
    write_rows(stage / "responses.jsonl", renamed)
    one = found(compare_runs(first, second), "sl-cai", "evasiveness")
    assert (one.way, one.difference.n, one.difference.value) == ("paired", 40, 0)
    assert (one.difference.low, one.difference.high) == (0, 0)


def test_other_prompts_are_compared_apart(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    stage = second / "06-evaluation"
    rows = [{**row, "prompt_id": f"new-{row['prompt_id']}"} for row in read_rows(stage / "responses.jsonl")]
    (stage / "responses.jsonl").unlink()
    write_rows(stage / "responses.jsonl", rows)
    one = found(compare_runs(first, second), "sl-cai", "evasiveness")
    assert (one.way, one.difference.value) == ("apart", 0)
    assert one.difference.low < 0 < one.difference.high


def test_what_is_no_mean_over_answers_is_compared_by_its_limits(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    for path, value in ((first, 0.8), (second, 0.9)):
        file = path / "06-evaluation" / "scores.json"
        row = {"model": "preference-model", "metric": "pm_accuracy", "value": value, "seed": 0}
        file.write_text(json.dumps([*json.loads(file.read_text()), row | {"low": value - 0.1, "high": 1.0, "n": 50}]))
    one = found(compare_runs(first, second), "preference-model", "pm_accuracy")
    assert one.way == "apart" and one.difference.value == pytest.approx(0.1)
    assert one.difference.low == pytest.approx(0.1 - np.hypot(0.1, 0.2))


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    with pytest.raises(InputError, match="no finished evaluation"):
        compare_runs(path, tmp_path)
    other = make_run(tmp_path / "b")
    write_rows(other / "06-evaluation" / "responses.jsonl", [])
    (other / "06-evaluation" / "responses.jsonl").write_text("")
    (other / "06-evaluation" / "scores.json").write_text("[]")
    with pytest.raises(InputError, match="nothing to compare"):
        compare_runs(path, other)


def test_the_command_shows_and_writes_the_differences(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    changed_verdicts(second, every=2, verdict="helps")
    ran = run("compare-runs", first, second, "--out", tmp_path / "found.json")
    assert ran.exit_code == 0, ran.output
    assert "same settings" in ran.stdout and "harmful_compliance" in ran.stdout and "+0.500" in ran.stdout
    written = json.loads((tmp_path / "found.json").read_text())
    row = next(
        one for one in written["differences"] if (one["model"], one["metric"]) == ("rl-cai", "harmful_compliance")
    )
    assert row["difference"]["value"] == 0.5
    assert "not told by the same" not in ran.output
    assert_refused(run("compare-runs", first, tmp_path / "none"), "no finished evaluation")


def test_runs_whose_figures_another_told_are_compared_with_a_word_of_it(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    file = second / "06-evaluation" / "scores.json"
    told = [
        {**row, "way": "a judge, logprobs"} if row["way"] == "oracle" else row for row in json.loads(file.read_text())
    ]
    file.write_text(json.dumps(told))
    compared = compare_runs(first, second)
    assert found(compared, "rl-cai", "harmful_compliance").told == ("oracle", "a judge, logprobs")
    assert found(compared, "rl-cai", "words").told == ("", "")
    said = " ".join(run("compare-runs", first, second).stdout.split())
    assert "not told by the same: oracle in the first run, a judge, logprobs in the second" in said
    assert "rl-cai's harmful_compliance" in said and "rl-cai's words" not in said


# ---- how answers are worded


def responses(**texts: list[str]) -> list[ResponseRow]:
    rows: list[Any] = []
    for model, own in texts.items():
        for number, text in enumerate(own):
            row = {"id": f"{model}/{number}", "model": model, "prompt_id": str(number), "kind": "red-team"}
            rows.append({**row, "activity": None, "category": None, "prompt": [], "response": text})
    return cast(list[ResponseRow], rows)


def test_collapse_shows_in_the_wording() -> None:
    varied = [f"word{number} then thing{number} and more{number}" for number in range(40)]
    collapsed = ["Of course. Of course. Of course."] * 40
    rows = style_scores(responses(**{"helpful": varied, "rl-cai": collapsed}), seed=0)
    scores = {(row["model"], row["metric"]): row for row in rows}
    for metric in ("distinct_2", "repetition", "boilerplate", "words_ratio"):
        before, after = scores["helpful", metric], scores["rl-cai", metric]
        apart = after["high"] < before["low"] or before["high"] < after["low"] or metric == "words_ratio"
        assert apart, metric
    assert scores["helpful", "words_ratio"]["value"] == 1
    assert scores["rl-cai", "boilerplate"]["value"] == 1
    assert scores["rl-cai", "repetition"]["value"] == 0.5
    assert scores["helpful", "sounds_declining:red-team"]["value"] == 0


def test_the_longer_answers_are_so_many_times_as_long() -> None:
    rows = style_scores(responses(**{"helpful": ["a b", "a b c d"], "rl-cai": ["a b c d", "a b c d e f g h"]}), seed=0)
    (one,) = (row for row in rows if (row["model"], row["metric"]) == ("rl-cai", "words_ratio"))
    assert (one["value"], one["low"], one["high"], one["n"]) == (2, 2, 2, 2)


# ---- intervals


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, size=400).tolist()
    one = jackknife_interval(values, statistic=lambda own: float(np.mean(own)), groups=400)
    assert one.value == pytest.approx(np.mean(values))
    assert (one.high - one.low) / 2 == pytest.approx(1.96 * np.std(values, ddof=1) / 20, rel=1e-4)
    assert jackknife_interval(["a a b"], statistic=lambda texts: distinct(texts, n=1)).low == pytest.approx(2 / 3)


def test_pairs_make_a_difference_more_certain() -> None:
    """Values that differ by prompt far more than by run: drawn together, the prompts cancel out."""
    rng = Random(0)
    base = [rng.gauss(0, 5) for _ in range(60)]
    first = [(value, 1) for value in base]
    second = [(value + 1 + rng.gauss(0, 0.1), 1) for value in base]
    paired = difference_of_means(first, second, paired=True, seed=0)
    apart = difference_of_means(first, second, paired=False, seed=0)
    assert paired.value == pytest.approx(apart.value) and paired.value == pytest.approx(1, abs=0.1)
    assert paired.high - paired.low < 0.1 < 2 < apart.high - apart.low


def test_a_paired_interval_holds_the_truth_as_often_as_it_says() -> None:
    inside = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        hard = rng.random(80)
        before, after = (rng.random(80) < hard), (rng.random(80) < np.minimum(1, hard + 0.1))
        truth = float(np.mean(np.minimum(1, hard + 0.1) - hard))
        rows = ([(float(yes), 1) for yes in own] for own in (before, after))
        one = difference_of_means(*rows, paired=True, seed=trial, draws=200)
        inside += one.low <= truth <= one.high
    assert inside >= 180


def test_newcombes_interval_of_a_published_example() -> None:
    """56 / 70 against 48 / 80: 0.0524 to 0.3339 (Newcombe 1998, table II, example (a), method 10)."""
    one = difference_of_intervals(proportion_interval(48, n=80), proportion_interval(56, n=70))
    assert (one.low, one.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert difference_of_intervals(Interval(value=1, low=1, high=1, n=1), one).n == 151
