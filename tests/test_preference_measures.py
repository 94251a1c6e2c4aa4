"""Calibration of the preference model: by hand, in closed form, and as it is shown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from run_folder import make_run
from solon.artifact import read_json, write_rows
from solon.cli.verbs import pm
from solon.preference import Pair, measure
from solon.preference.measures import FEWEST_FOR_TEMPERATURE, cross_fitted, measured_of
from solon.report import read_run, write_report
from solon.report.figures import reliability_svg
from solon.stats import fit_temperature
from test_preference import pair, planted_rows, sigmoid


def pairs_of(leads: list[float], *, per_prompt: int = 1) -> list[Pair]:
    """Pairs whose probability is the lead's sigmoid."""
    return [pair(sigmoid(lead), number=n // per_prompt, chosen=f"a{n}") for n, lead in enumerate(leads)]


def normal(n: int, *, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(0, 1.5, size=n).tolist()


@pytest.mark.parametrize("k", [0.25, 1.0, 4.0])
def test_leads_that_are_k_times_too_large_are_mended(k: float) -> None:
    true = normal(300)
    got = measure(pairs_of(true), leads=[k * lead for lead in true])
    assert got.temperature == pytest.approx(k, rel=1e-6)
    assert got.calibration_error_scaled.value == pytest.approx(0, abs=1e-6)
    entropy = np.mean([-p * math.log(p) - (1 - p) * math.log(1 - p) for p in map(sigmoid, true)])
    assert got.log_loss_scaled.value == pytest.approx(entropy, abs=1e-6)
    assert got.log_loss_scaled.low < entropy < got.log_loss_scaled.high
    assert got.log_loss.value >= entropy - 1e-9
    assert got.calibration_error.n == got.log_loss.n == 300
    if k != 1:
        assert got.calibration_error.low > 0.03
        assert got.log_loss.value > entropy + 0.01


def test_the_temperature_of_sampled_outcomes_is_k_within_sampling_error() -> None:
    rng = np.random.default_rng(5)
    true = normal(3000)
    pairs = [pair(float(rng.random() < sigmoid(lead)), number=n) for n, lead in enumerate(true)]
    got = measure(pairs, leads=[3 * lead for lead in true])
    assert got.temperature == pytest.approx(3, abs=0.3)
    assert got.log_loss_scaled.high < got.log_loss.low


def test_no_temperature_is_used_on_the_prompts_that_it_was_fitted_on() -> None:
    leads = normal(60, seed=1)
    pairs = pairs_of(normal(60, seed=2), per_prompt=3)
    fitted = cross_fitted(pairs, leads=leads)
    assert len(set(fitted.tolist())) == 2
    sizes = []
    for value in sorted(set(fitted.tolist())):
        mine = [i for i in range(60) if fitted[i] == value]
        others = [i for i in range(60) if fitted[i] != value]
        assert not {pairs[i].group for i in mine} & {pairs[i].group for i in others}
        again = fit_temperature([leads[i] for i in others], labels=[pairs[i].probability for i in others])
        assert value == pytest.approx(again)
        sizes.append(len(mine))
    assert sizes == [30, 30]
    order = list(range(60))[::-1]
    assert cross_fitted([pairs[i] for i in order], leads=[leads[i] for i in order]) == pytest.approx(fitted[order])


@settings(max_examples=30)
@given(st.lists(st.booleans(), min_size=40, max_size=40))
def test_telling_pairs_from_the_other_side_changes_no_measure(swaps: list[bool]) -> None:
    leads = normal(40, seed=3)
    pairs = pairs_of(normal(40, seed=4))
    turned = [one.swapped() if swap else one for one, swap in zip(pairs, swaps, strict=True)]
    there = measure(pairs, leads=leads)
    back = measure(turned, leads=[-lead if swap else lead for lead, swap in zip(leads, swaps, strict=True)])
    assert back.temperature == pytest.approx(there.temperature, rel=1e-6)
    for name in ("calibration_error", "calibration_error_scaled", "log_loss", "log_loss_scaled"):
        assert getattr(back, name).value == pytest.approx(getattr(there, name).value)
    assert back.accuracy == there.accuracy


def test_few_pairs_or_one_prompt_have_no_temperature() -> None:
    true = normal(FEWEST_FOR_TEMPERATURE)
    for pairs in (pairs_of(true)[:-1], pairs_of(true, per_prompt=100)):
        got = measure(pairs, leads=[3 * lead for lead in true[: len(pairs)]])
        assert got.temperature == 1.0
        assert got.calibration_error_scaled is got.reliability_scaled is got.log_loss_scaled is None
        assert got.calibration_error.n == got.log_loss.n == len(pairs)
    assert measure(pairs_of(true), leads=[3 * lead for lead in true]).temperature == pytest.approx(3)


def test_the_calibration_error_of_each_source() -> None:
    true = normal(40)
    pairs = pairs_of(true)
    pairs = [replace(one, source="ai" if n < 30 else "helpful") for n, one in enumerate(pairs)]
    got = measure(pairs, leads=[lead if n < 30 else 30 * lead for n, lead in enumerate(true)])
    errors = got.calibration_error_by_source
    assert {source: one.n for source, one in errors.items()} == {"ai": 30, "helpful": 10}
    assert errors["ai"].value == pytest.approx(0, abs=1e-9)
    assert errors["helpful"].value > 0.1


def test_what_was_measured_comes_back_from_json_and_older_files_are_read() -> None:
    true = normal(30)
    got = measure(pairs_of(true), leads=true)
    about = json.loads(json.dumps(asdict(got)))
    assert measured_of(about) == got
    names = ("temperature", "log_loss", "log_loss_scaled", "reliability_scaled")
    older = {name: value for name, value in about.items() if name not in names and "error_" not in name}
    old = measured_of({**older, "absolute_error": got.absolute_error})
    assert (old.accuracy, old.reliability, old.temperature) == (got.accuracy, got.reliability, 1.0)
    assert old.calibration_error_scaled is old.log_loss is None
    assert measured_of(json.loads(json.dumps(asdict(measure([], leads=[]))))) == measure([], leads=[])


# ---- shown


def test_the_report_draws_the_calibration_before_and_after(tmp_path: Path) -> None:
    true = normal(200)
    got = asdict(measure(pairs_of(true), leads=[3 * lead for lead in true]))
    run = make_run(tmp_path / "run", prompts=4)
    assert "scaled by the temperature" not in write_report(run).read_text()
    manifest = run / "04-preference-model" / "manifest.json"
    manifest.write_text(json.dumps({**read_json(manifest), "measured": got}))
    found = read_run(run)
    assert (len(found.bins), len(found.scaled_bins)) == (
        len(got["reliability"]["bins"]),
        len(got["reliability_scaled"]["bins"]),
    )
    html = write_report(run).read_text()
    assert "as trained" in html
    assert "scaled by the temperature" in html
    assert reliability_svg([]) is None


def test_pm_takes_labels_and_shows_the_calibration(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "comparisons.jsonl"
    rows: list[dict[str, Any]] = planted_rows(40)
    write_rows(file, rows)
    model = str(tiny_causal_lm(tmp_path))
    pm(file, model=model, out=tmp_path / "pm", epochs=0.2, learning_rate=1e-3, labels="margin")
    shown = capsys.readouterr()
    assert f"{len(rows)} comparisons with margin labels" in shown.err
    stage = tmp_path / "pm" / "04-preference-model"
    manifest = read_json(stage / "manifest.json")
    assert manifest["config"]["labels"] == "margin"
    measured = manifest["measured"]
    lines = [line.split() for line in shown.out.splitlines()]
    for name, column in (("expected", "calibration_error"), ("log", "log_loss")):
        at = next(i for i, line in enumerate(lines) if line[0] == name)
        assert f"{measured[column]['value']:.3f}" in lines[at]
        scaled = next(line for line in lines[at:] if line[0] == "scaled")
        assert scaled[1] == f"{measured[f'{column}_scaled']['value']:.3f}"
        assert scaled[-1] == str(measured[column]["n"])
    assert f"temperature {measured['temperature']:.3f}, fitted on all of them" in shown.out
    assert {"ai", "helpful"} <= {line[0] for line in lines}
