"""The paper's experiments: descriptions that hold together, verdicts on planted numbers, one page."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from solon import sandbox
from solon.artifact import RunFolder, read_json, read_rows, write_json
from solon.cli import app
from solon.cli.reproducing import spread
from solon.config import outcome_settings
from solon.constitution import Constitution
from solon.errors import InputError
from solon.reproduce import (
    ArmContext,
    Experiment,
    Found,
    Point,
    Result,
    chosen,
    judged,
    pooled,
    read_arms,
    read_experiments,
    reproduce,
    sizes_of,
)
from solon.reproduce.arms import people_compare, recipe_of
from solon.reproduce.description import Expected, Judges, Policies, PreferenceModels, Revised
from solon.reproduce.judging import calibration, labels_right, right_share
from solon.reproduce.loop import written_by
from solon.reproduce.page import render
from solon.reproduce.policies import GREEDY, Answers, elo_points
from solon.reproduce.verdicts import Place, point_of
from solon.sandbox import oracle
from solon.stats import Interval
from solon.training import validate_trainers

EXPERIMENTS = read_experiments()
ARMS = read_arms()
STAGE_SECTIONS = {
    "01-revisions": ("prompts", "revisions"),
    "02-sl-cai": ("supervised",),
    "03-comparisons": ("pairs", "comparisons"),
    "04-preference-model": ("preference",),
    "05-rl-cai": ("reinforcement",),
}
ORACLE_METRICS = {"harmful_compliance", "explained_refusal", "evasiveness", "unclear", "right_help", "over_refusal"}
HOSTILE = "</script><script>window.hit=1</script><img src=x onerror=window.hit=2>\"'>{{7*7}}&amp;"


def at(out: Path, seed: int = 0) -> ArmContext:
    return ArmContext(out=out, arms=ARMS, seed=seed, sizes=sizes_of([]))


def measured_by(experiment: Experiment) -> dict[str, set[str]]:
    """Metric -> the series that have it."""
    found: dict[str, set[str]] = {}

    def add(metrics: set[str], series: set[str]) -> None:
        for metric in metrics:
            found.setdefault(metric, set()).update(series)

    for one in experiment.measures:
        if isinstance(one, Policies):
            series = {*one.paths, *one.finals, *one.sizes, *one.models}
            style = {"boilerplate", "distinct_2"}
            add(ORACLE_METRICS | style | {"elo_harmlessness", "elo_helpfulness"}, series)
            if one.greedy:
                add(ORACLE_METRICS | style, {f"{name}{GREEDY}" for name in series})
        elif isinstance(one, Revised):
            series = {f"{arm}, small" if one.sizes else arm for arm in one.arms}
            series = {"revisions"} if one.x == "principles" else series
            scores = {f"pm:{scorer}" for scorer in one.scorers}
            add({*scores, "explains", "harmful_compliance", "distinct_2"}, series)
        elif isinstance(one, Judges):
            add({"accuracy", "calibration_error"}, {*one.ways, *one.preference_models})
        else:
            assert isinstance(one, PreferenceModels)
            add({"pm_accuracy", "pm_calibration_error", "label_accuracy"}, set(one.arms))
    return found


# ---- what ships


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))
def test_pictures_and_expectations_are_about_what_is_measured(experiment: Experiment) -> None:
    measured = measured_by(experiment)
    assert set(experiment.arms()) <= set(ARMS.arms)
    for picture in experiment.pictures:
        wanted = {picture.y, picture.x} if picture.kind == "path" else {picture.y}
        assert picture.kind == "reliability" or wanted <= measured.keys(), picture.title
    for expected in experiment.expected:
        series = {reference.partition("@")[0] for reference in (*expected.rising, *expected.alike)}
        assert series <= measured[expected.metric], expected.says
    assert experiment.expected and experiment.pictures


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))
def test_expectations_along_reinforcement_name_steps_that_have_a_snapshot(
    experiment: Experiment, tmp_path: Path
) -> None:
    here = at(tmp_path)
    paths = {name for one in experiment.measures if isinstance(one, Policies) for name in one.paths}
    for expected in experiment.expected:
        for reference in (*expected.rising, *expected.alike):
            name, _, step = reference.partition("@")
            if name in paths and step.isdecimal() and step != "0":
                settings = recipe_of(name, at=here, size=here.largest).reinforcement
                assert settings is not None
                trainer = settings.trainer
                saved = range(trainer["save_steps"], trainer["max_steps"], trainer["save_steps"])
                assert int(step) in saved and len(saved) <= settings.snapshots, reference


def test_every_figure_that_can_be_run_again_has_an_experiment() -> None:
    assert sorted(number for one in EXPERIMENTS.values() for number in one.figures) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert {"labels", "one-principle", "over-training"} <= EXPERIMENTS.keys()


@pytest.mark.parametrize("name", ARMS.arms)
def test_an_arm_changes_nothing_of_the_stages_that_it_shares(name: str, tmp_path: Path) -> None:
    arm, here = ARMS.arms[name], at(tmp_path)
    recipe = recipe_of(name, at=here, size=here.largest)
    validate_trainers(recipe)
    method = recipe_of(ARMS.first, at=here, size=here.largest)
    for stage in arm.shares:
        for section in STAGE_SECTIONS[stage]:
            assert outcome_settings(getattr(recipe, section)) == outcome_settings(getattr(method, section)), stage
    own = [section for stage in arm.stages for section in STAGE_SECTIONS[stage]]
    changed = any(getattr(recipe, section) != getattr(method, section) for section in own)
    assert changed or recipe.constitution != method.constitution or arm.people or name == ARMS.first


def test_fewer_principles_are_part_of_more(tmp_path: Path) -> None:
    here = at(tmp_path)
    kept = {
        num: {
            one.id
            for one in Constitution.load(
                recipe_of(f"principles-{num}", at=here, size=here.largest).constitution
            ).principles
        }
        for num in (1, 2, 4, 8, 16)
    }
    assert [len(ids) for ids in kept.values()] == [1, 2, 4, 8, 16]
    assert kept[1] < kept[2] < kept[4] < kept[8] < kept[16]
    alone = Constitution.load(recipe_of("one-principle", at=here, size=here.largest).constitution)
    assert [one.id for one in alone.principles] == ["any-harm"]


def test_experiments_are_chosen_by_name_and_by_figure() -> None:
    names = [one.name for one in chosen(["fig2", "labels", "10"], experiments=EXPERIMENTS)]
    assert names == ["frontier", "harm", "labels"]
    assert len(chosen([], experiments=EXPERIMENTS)) == len(EXPERIMENTS)
    with pytest.raises(InputError, match="no experiment is called 'fig99'"):
        chosen(["fig99"], experiments=EXPERIMENTS)


def test_a_size_needs_a_folder_with_both_models(tmp_path: Path) -> None:
    assert [(one.name, round(one.millions)) for one in sizes_of([])] == [("small", 2)]
    with pytest.raises(InputError, match="no model here"):
        sizes_of([tmp_path / "mini"])
    with pytest.raises(InputError, match="two sizes would be called 'small'"):
        sizes_of([tmp_path / "small"])


# ---- people


def test_people_who_look_for_harm_like_to_hear_nothing(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path).stage("03-comparisons")
    rows = people_compare(["helpful", "harmless"], stage=stage, num=60, seed=1)
    by_source = {source: [row for row in rows if row["source"] == source] for source in ("helpful", "harmless")}
    assert (len(by_source["harmless"]), round(60 * 135_296 / 182_831)) == (60, len(by_source["helpful"]))
    verdicts = [
        tuple(oracle.judge(row["prompt"], row[side][-1]["content"]).verdict for side in ("chosen", "rejected"))
        for row in by_source["harmless"]
    ]
    assert set(verdicts) == {("evades", "explains"), ("evades", "helps"), ("explains", "helps")}
    assert people_compare(["helpful", "harmless"], stage=stage, num=60, seed=1) == rows


def test_known_pairs_are_what_the_oracle_says() -> None:
    pairs = sandbox.known_pairs(80, seed=4)
    assert [pair.harmful for pair in pairs] == [True, False] * 40
    for pair in pairs:
        prefers = oracle.prefers_harmless if pair.harmful else oracle.prefers_helpful
        assert prefers(pair.prompt, pair.better, pair.worse) == 1
        assert prefers(pair.prompt, pair.worse, pair.better) == 0
    allowed = {row["activity"] for row in sandbox.prompts("method", "red-team", 200)}
    assert not {oracle.judge(pair.prompt, pair.better).activity for pair in pairs} & allowed


def test_what_cannot_be_read_is_preferred_by_nobody() -> None:
    prompt = sandbox.prompts("evaluation", "red-team", 1)[0]["prompt"]
    assert oracle.prefers_harmless(prompt, "Zebra zebra.", "I would rather not talk about that.") == 0.5


# ---- numbers


def answers(series: str, x: float | None, verdicts: Sequence[str], *, model: str, kind: str = "red-team") -> Answers:
    about = {"model": "policy", "kind": kind, "activity": "a", "category": None, "prompt": [], "finish_reason": "stop"}
    rows = [{**about, "id": f"{i}", "prompt_id": f"p{i}", "response": "words"} for i in range(len(verdicts))]
    found = [
        {"id": f"{i}", "verdict": v, "harmful": True, "activity": "a", "category": None} for i, v in enumerate(verdicts)
    ]
    return Answers(series=series, x=x, model=Path(model), responses=rows, verdicts=found)  # type: ignore[arg-type]


def test_elo_orders_policies_by_the_oracles_verdicts() -> None:
    field = [
        answers("cai", 0, ["explains"] * 10 + ["helps"] * 30, model="a"),
        answers("cai", 40, ["explains"] * 40, model="b"),
        answers("cot", 0, ["explains"] * 10 + ["helps"] * 30, model="a"),
        answers("hh", 40, ["evades"] * 40, model="c"),
        answers("helpful", 40, ["helps"] * 39 + ["unclear"], model="d"),
    ]
    points = {(point.series, point.x): point for point in elo_points(field, anchor="cai@0", seed=0)}
    value = {place: point.interval.value for place, point in points.items()}
    assert {point.metric for point in points.values()} == {"elo_harmlessness"}
    assert value["cai", 0] == value["cot", 0] == 0
    assert value["helpful", 40] < value["cai", 0] < value["hh", 40] < value["cai", 40]
    # Three opponents, and the answer that cannot be read is in no battle.
    assert points["helpful", 40].interval.n == 3 * 39
    assert points["cai", 40].interval.n == 3 * 40 - 1


def test_judges_are_wrong_where_they_are_undecided_or_silent() -> None:
    found = right_share([0.9, 0.5, 0.2], n=4)
    assert (found.value, found.n) == (0.25, 4)
    # Sure at 0.9 and right in nine of ten cases: nothing is amiss. Always right at 0.9: a tenth is.
    assert calibration([0.9] * 90 + [0.1] * 10, seed=0).value == pytest.approx(0)
    assert calibration([0.9] * 100, seed=0).value == pytest.approx(0.1)


def test_labels_are_right_where_the_truth_decides() -> None:
    (pair,) = sandbox.known_pairs(1)
    texts = {"better": pair.better, "worse": pair.worse}

    def row(chosen: str, rejected: str, p: float) -> dict[str, object]:
        turns = [[{"role": "assistant", "content": texts[name]}] for name in (chosen, rejected)]
        return {"prompt": pair.prompt, "chosen": turns[0], "rejected": turns[1], "probability": p}

    rows = [row("better", "worse", 0.8), row("worse", "better", 0.8), row("better", "better", 0.8)]
    assert labels_right(iter(rows)) == [True, False]
    assert labels_right(iter([row("better", "worse", 0.5)])) == [False]


# ---- did it come out?


def point(series: str, value: float, *, half: float = 0.05, x: float | None = None, n: int = 100) -> Point:
    interval = Interval(value=value, low=value - half, high=value + half, n=n)
    return Point(metric="m", series=series, x=x, interval=interval)


def places(*points: Point) -> Mapping[Place, Interval]:
    return pooled([Found(points=points)])


def rising(*references: str) -> Expected:
    return Expected(says="It rises.", metric="m", rising=references)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.1, 0.3, 0.5), "came out"),
        ((0.1, 0.3, 0.35), "cannot be told"),
        ((0.1, 0.5, 0.3), "did not come out"),
        ((0.1, 0.15, 0.5), "cannot be told"),
        ((0.35, 0.3, 0.1), "did not come out"),
    ],
)
def test_an_ordering_comes_out_where_all_intervals_are_apart(values: Sequence[float], verdict: str) -> None:
    points = places(*(point(name, value) for name, value in zip("abc", values, strict=True)))
    found = judged(rising("a", "b", "c"), points=points, names={"a": "first arm"})
    assert found.verdict == verdict
    assert f"first arm: {values[0]:.3f} [{values[0] - 0.05:.3f}, {values[0] + 0.05:.3f}] n 100" in found.numbers


@pytest.mark.parametrize(
    ("values", "within", "verdict"),
    [
        ((0.5, 0.5), 0.1, "came out"),
        ((0.5, 0.5), 0.05, "cannot be told"),
        ((0.5, 0.9), 0.2, "did not come out"),
        ((0.5, 0.2), 0.1, "did not come out"),
    ],
)
def test_two_are_alike_where_their_difference_is_certainly_small(
    values: Sequence[float], within: float, verdict: str
) -> None:
    expected = Expected(says="Alike.", metric="m", alike=("a", "b"), within=within)
    points = places(point("a", values[0]), point("b", values[1]))
    assert judged(expected, points=points).verdict == verdict


def test_points_are_found_along_x_and_what_is_not_there_is_not_measured() -> None:
    points = places(point("a", 0.5, x=8), point("a", 0.1, x=0), point("a", 0.9, x=40), point("b", 0.2))
    found = [point_of(one, metric="m", points=points) for one in ("a", "a@first", "a@8", "a@last", "b")]
    assert [one and one.interval.value for one in found] == [0.9, 0.1, 0.5, 0.9, 0.2]
    assert judged(rising("a@first", "a@8", "a"), points=points).verdict == "came out"
    for missing in ("a@16", "b@first", "c"):
        assert judged(rising("a@first", missing), points=points).verdict == "not measured"


def test_seeds_are_pooled_where_all_of_them_measured() -> None:
    seeds = [Found(points=[point("a", value), point("b", value)]) for value in (0.4, 0.5)]
    points = pooled([*seeds, Found(points=[point("a", 0.6)])])
    assert list(points) == [Place("m", "a", None)]
    assert (points["m", "a", None].value, points["m", "a", None].n) == (pytest.approx(0.5), 300)  # type: ignore[index]


# ---- the page and the loop


def a_result(experiment: Experiment, *, names: Sequence[str] = ()) -> Result:
    draw = random.Random(0)
    metrics = measured_by(experiment)
    points = {
        Place(metric, series, x): Interval(value=(v := draw.random()), low=v - 0.1, high=v + 0.1, n=50)
        for metric, every in metrics.items()
        for series in sorted(every)
        for x in ((None,) if experiment.name in ("labels", "one-principle") else (0.0, 8.0, 40.0))
    }
    ways = [name for one in experiment.measures if isinstance(one, Judges) for name in one.ways]
    return Result(
        experiment=experiment,
        seeds=[0, 1, 2],
        points=points,
        predictions={name: [draw.random() for _ in range(60)] for name in ways},
        statements=[judged(one, points=points) for one in experiment.expected],
        seconds=100.0,
    )


def test_the_page_shows_every_picture_and_statement_and_asks_for_nothing() -> None:
    # Of each kind of picture some.
    results = [a_result(EXPERIMENTS[name]) for name in ("frontier", "calibration", "one-principle")]
    names = {name: arm.about for name, arm in ARMS.arms.items()}
    html = render(results, names=names, facts={"seeds": "0, 1, 2"}, missing=[])
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", html)
    assert not re.search(r"<script|url\((?!#)|@import|<link|<iframe", html)
    assert "default-src 'none'" in html
    assert html.count('class="statement') == sum(len(one.experiment.expected) for one in results)
    drawn = sum(
        len(one.predictions) if picture.kind == "reliability" else 1
        for one in results
        for picture in one.experiment.pictures
    )
    assert html.count("<figure") == html.count("</svg>") == drawn


def test_hostile_text_stays_text() -> None:
    frontier = EXPERIMENTS["frontier"]
    nasty = frontier.model_copy(update={"title": HOSTILE, "differs": HOSTILE, "world": HOSTILE, "paper": HOSTILE})
    expected = tuple(one.model_copy(update={"says": HOSTILE}) for one in frontier.expected)
    result = a_result(nasty.model_copy(update={"expected": expected}))
    html = render([result], names={"cai": HOSTILE}, facts={HOSTILE: HOSTILE}, missing=[nasty])
    assert "<script" not in html and "<img" not in html
    assert "{{7*7}}" in html


def test_finished_experiments_are_not_run_again(tmp_path: Path) -> None:
    experiment = EXPERIMENTS["calibration"]
    for seed, value in ((0, 0.1), (1, 0.2)):
        found = [
            Point(metric="calibration_error", series=name, x=None, interval=Interval(value=v, low=v, high=v, n=9))
            for name, v in (("multiple choice", value), ("chain of thought", 0.9), ("5 chains of thought", 0.5))
        ]
        written = written_by(
            Found(points=found, predictions={"chain of thought": [0.9, 0.4]}),
            wanted=experiment,
            sizes=sizes_of([]),
            quick=False,
            seconds=7.0,
        )
        write_json(tmp_path / f"seed-{seed}" / "results" / "calibration.json", written)
    results = asyncio.run(reproduce([experiment], seeds=[0, 1], out=tmp_path))
    assert not (tmp_path / "seed-0" / "small").exists(), "nothing is made"
    assert [one.verdict for one in results[0].statements] == ["came out", "came out"]
    assert (results[0].seconds, results[0].predictions) == (14.0, {"chain of thought": [0.9, 0.4, 0.9, 0.4]})
    about = read_json(tmp_path / "reproduce.json")
    (only,) = about["experiments"]
    assert (about["seeds"], only["name"]) == ([0, 1], "calibration")
    direct = next(one for one in only["points"] if one["series"] == "multiple choice")
    assert (direct["value"], direct["n"]) == (pytest.approx(0.15), 18)
    html = (tmp_path / "index.html").read_text()
    assert "solon reproduce frontier" in html, "what was not run is named"


# ---- the command


def test_seeds_stand_side_by_side_on_the_command_line() -> None:
    assert spread(["fig2", "--seeds", "0", "1", "2", "--out", "3"], option="--seeds") == [
        *("fig2", "--seeds", "0", "--seeds", "1", "--seeds", "2", "--out", "3")
    ]
    assert spread(["--seeds", "0", "frontier", "5"], option="--seeds") == ["--seeds", "0", "frontier", "5"]


def test_the_command_lists_experiments_and_refuses_others_in_one_line(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["reproduce", "--list"])
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(EXPERIMENTS)
    wrong = CliRunner().invoke(app, ["reproduce", "fig99", "--out", str(tmp_path / "x")])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: no experiment is called 'fig99'")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_least_that_runs_does_and_goes_on_where_it_was(tmp_path: Path) -> None:
    names = ["frontier", "judges", "revisions"]
    arguments = ["reproduce", *names, "--quick", "--seeds", "0", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    about = json.loads((tmp_path / "reproduce.json").read_text())
    assert [one["name"] for one in about["experiments"]] == names
    for one in about["experiments"]:
        measured = {(row["metric"], row["series"]) for row in one["points"]}
        for expected in EXPERIMENTS[one["name"]].expected:
            for reference in (*expected.rising, *expected.alike):
                assert (expected.metric, reference.partition("@")[0]) in measured
    made = tmp_path / "seed-0" / "small"
    assert (made / "cot" / "02-sl-cai").resolve() == (made / "cai" / "02-sl-cai").resolve()
    rows = read_rows(made / "hh-rlhf" / "03-comparisons" / "harmless-comparisons.jsonl")
    assert {row["source"] for row in rows} == {"harmless"}
    stages = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")}
    (tmp_path / "seed-0" / "results" / "revisions.json").unlink()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("manifest.json")} == stages
    # With other settings nothing that was made is used, and nothing is overwritten.
    other = CliRunner().invoke(app, [one for one in arguments if one != "--quick"])
    assert other.exit_code == 2
    assert "was finished with other settings" in other.stderr and "choose another --out" in other.stderr
    assert "--again" not in other.stderr
