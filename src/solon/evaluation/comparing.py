"""Two runs beside each other: what was asked for, and what came of it.

    found = compare_runs("runs/sandbox", "runs/theft-only")
    found.settings          # where the recipes and constitutions differ
    found.differences       # second minus first, for every model and metric that both have

Where both runs asked a model of theirs the same prompts, these alone are compared, drawn together: what makes one
prompt harder than another is in both and cancels out. With a third of the prompts in common or fewer, all answers are
compared, each run's drawn for itself. What is no mean over answers (the accuracy of a preference model) is compared by
its limits, as measured apart. Elo ratings are not: each run has its own origin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from solon.artifact import derive_seed, read_json, read_rows
from solon.errors import InputError
from solon.evaluation.rows import ResponseRow, Score, ordered_models
from solon.evaluation.style import style_cases
from solon.evaluation.truth import Case, VerdictRow, verdict_cases
from solon.stats import Interval, difference_of_intervals, difference_of_means

STAGE = "06-evaluation"
FEWEST_IN_COMMON = 1 / 3
"""Share of the prompts of the run with fewer of them, above which the runs are compared prompt by prompt."""
Way = Literal["paired", "apart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of one model in both runs."""

    model: str
    metric: str
    first: float
    second: float
    difference: Interval
    """second - first; its n is the number of answers of both."""
    way: Way
    told: tuple[str, str]
    """How each run got its number, as the `way` of its scores.json; "" where that does not say."""


class Changed(NamedTuple):
    """A setting that the runs do not share; None: it is not set."""

    setting: str
    first: object
    second: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What distinguishes two runs."""

    settings: Sequence[Changed]
    differences: Sequence[Difference]


class _Evaluated(NamedTuple):
    settings: Mapping[str, object]
    prompts: Mapping[str, frozenset[str]]
    """Of each model, the ids of the prompts that it was asked."""
    cases: Mapping[tuple[str, str], Sequence[Case]]
    """By model and metric."""
    scores: Mapping[tuple[str, str], Score]


def compare_runs(first: str | Path, second: str | Path, *, seed: int = 0) -> Comparison:
    """Compare the evaluations of two run folders.

    Raises InputError where one is not evaluated, or where they share nothing.
    """
    one, other = _read(Path(first)), _read(Path(second))
    keys = [key for key in one.scores if key in other.scores]
    keys += [key for key in one.cases if key in other.cases and key not in one.scores]
    found = [_difference(key, one, other, seed=seed) for key in keys if not key[1].startswith("elo_")]
    if not found:
        remedy = "compare runs whose evaluations have a model in common, by the name that scores.json gives it"
        raise InputError(f"nothing to compare with {first}", path=Path(second), remedy=remedy)
    order = ordered_models({row.model for row in found})
    found.sort(key=lambda row: order.index(row.model))
    return Comparison(settings=_changed(one.settings, other.settings), differences=found)


def _read(path: Path) -> _Evaluated:
    stage = path / STAGE
    if not (stage / "scores.json").is_file():
        raise InputError(
            "there is no finished evaluation", path=stage, remedy=f"finish it with `solon evaluate {path}`"
        )
    responses = [cast(ResponseRow, row) for row in read_rows(stage / "responses.jsonl")]
    judged = stage / "verdicts.jsonl"
    verdicts = {row["id"]: cast(VerdictRow, row) for row in read_rows(judged)} if judged.is_file() else {}
    models = {row["model"] for row in responses}
    cases: dict[tuple[str, str], list[Case]] = {}
    for model in models:
        own = [row for row in responses if row["model"] == model]
        known = verdict_cases(own, verdicts=verdicts)
        cases |= {(model, metric): found for metric, found in {**known, **style_cases(own)}.items()}
    written = path / "recipe.resolved.json"
    recipe = cast("dict[str, object]", read_json(written)) if written.is_file() else {}
    constitution = path / "constitution.yaml"
    text = {"constitution.yaml": constitution.read_text(encoding="utf-8")} if constitution.is_file() else {}
    scores = cast("list[Score]", read_json(stage / "scores.json"))
    return _Evaluated(
        settings={**_flat(recipe), **text},
        prompts={model: frozenset(row["prompt_id"] for row in responses if row["model"] == model) for model in models},
        cases=cases,
        scores={(row["model"], row["metric"]): row for row in scores},
    )


def _difference(key: tuple[str, str], one: _Evaluated, other: _Evaluated, *, seed: int) -> Difference:
    model, metric = key
    told = (_told(one, key), _told(other, key))
    if key not in one.cases or key not in other.cases:
        first, second = (_interval(run.scores[key]) for run in (one, other))
        interval, way = difference_of_intervals(first, second), "apart"
        return Difference(
            model=model, metric=metric, first=first.value, second=second.value, difference=interval, way=way, told=told
        )
    common = one.prompts[model] & other.prompts[model]
    paired = len(common) > FEWEST_IN_COMMON * min(len(one.prompts[model]), len(other.prompts[model]))
    before, after = (
        [case for case in run.cases[key] if not paired or case.prompt_id in common] for run in (one, other)
    )
    if not (before and after):
        paired, before, after = False, one.cases[key], other.cases[key]
    clusters = sorted({case.cluster for case in (*before, *after)})
    interval = difference_of_means(
        _sums(before, clusters if paired else sorted({case.cluster for case in before})),
        _sums(after, clusters if paired else sorted({case.cluster for case in after})),
        paired=paired,
        seed=derive_seed(seed, "compare-runs", model, metric),
    )
    first, second = (sum(case.value for case in cases) / len(cases) for cases in (before, after))
    return Difference(
        model=model,
        metric=metric,
        first=first,
        second=second,
        difference=interval,
        way="paired" if paired else "apart",
        told=told,
    )


def _told(run: _Evaluated, key: tuple[str, str]) -> str:
    score = run.scores.get(key)
    return score.get("way", "") if score else ""


def _interval(score: Score) -> Interval:
    return Interval(value=score["value"], low=score["low"], high=score["high"], n=score["n"])


def _sums(cases: Sequence[Case], clusters: Sequence[str]) -> list[tuple[float, int]]:
    own: dict[str, list[float]] = {cluster: [] for cluster in clusters}
    for case in cases:
        own[case.cluster].append(case.value)
    return [(sum(own[cluster]), len(own[cluster])) for cluster in clusters]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        section = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
        found |= _flat(section, f"{name}.") if section else {name: inner}
    return found


def _changed(first: Mapping[str, object], second: Mapping[str, object]) -> list[Changed]:
    keys = [*first, *(key for key in second if key not in first)]
    pairs = [Changed(key, first.get(key), second.get(key)) for key in keys if key != "name"]
    return [one for one in pairs if one.first != one.second]
