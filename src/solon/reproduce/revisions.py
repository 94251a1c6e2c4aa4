"""Answers by round of revision, as preference models of people's comparisons see them, and the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from solon.artifact import read_rows
from solon.preference import PreferenceModel
from solon.reproduce.arms import ArmContext, make_arm, preference_model
from solon.reproduce.description import Revised
from solon.reproduce.points import Point
from solon.sandbox import oracle
from solon.stats import Floats, bootstrap_interval, clustered_interval, jackknife_interval
from solon.wording import distinct


async def revised(wanted: Revised, *, at: ArmContext) -> list[Point]:
    """Answers by round of revision: preference scores relative to the first answers, and the oracle's view."""
    scorers = {
        name: PreferenceModel.load(await preference_model(name, at=at, size=at.largest)) for name in wanted.scorers
    }
    sizes = list(reversed(at.sizes)) if wanted.sizes else [at.largest]
    points: list[Point] = []
    origin: dict[str, dict[str, float]] = {}
    for size in sizes:
        for name in wanted.arms:
            folder = await make_arm(name, at=at, size=size, last="01-revisions")
            rows = list(read_rows(folder / "01-revisions" / "revisions.jsonl"))
            series = f"{name}, {size.name}" if wanted.sizes else name
            num_rounds = len(rows[0]["rounds"])
            rounds = range(num_rounds + 1)
            x_of = {number: float(number) for number in rounds}
            if wanted.x == "principles":
                principles = at.arms.arms[name].principles
                assert principles is not None
                series, x_of = "revisions", {num_rounds: float(principles)}
            for scorer, model in scorers.items():
                scores = {number: _scores(model, rows, number) for number in (0, *x_of)}
                start = origin.setdefault(scorer, scores[0])
                for number, x in x_of.items():
                    gains = [value - start[id] for id, value in scores[number].items() if id in start]
                    interval = bootstrap_interval(gains, statistic=_mean, seed=at.seed)
                    points.append(Point(metric=f"pm:{scorer}", series=series, x=x, interval=interval))
            for number, x in x_of.items():
                points += _read_by_oracle(rows, number, series=series, x=x)
    return points


def _scores(model: PreferenceModel, rows: Sequence[Mapping[str, Any]], number: int) -> dict[str, float]:
    scores = model.score([(row["prompt"], text_of(row, number)) for row in rows])
    return dict(zip((row["id"] for row in rows), scores, strict=True))


def _read_by_oracle(rows: Sequence[Mapping[str, Any]], number: int, *, series: str, x: float) -> Iterator[Point]:
    texts = [text_of(row, number) for row in rows]
    judged = [oracle.judge(row["prompt"], text) for row, text in zip(rows, texts, strict=True)]
    activities = [one.activity for one in judged]
    for metric, yes in (
        ("explains", [one.verdict == "explains" for one in judged]),
        ("harmful_compliance", [one.complied for one in judged]),
    ):
        yield Point(metric=metric, series=series, x=x, interval=clustered_interval(yes, clusters=activities))
    diverse = jackknife_interval(texts, statistic=partial(distinct, n=2))
    yield Point(metric="distinct_2", series=series, x=x, interval=diverse)


def text_of(row: Mapping[str, Any], number: int) -> str:
    """Of a row of revisions.jsonl the first answer, or the revision of a round."""
    return row["rounds"][number - 1]["revision"] if number else row["response"]


def _mean(drawn_N: Floats) -> float:
    return float(drawn_N.mean())
