"""Judges and preference models on pairs of answers of which the better one is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from solon import sandbox
from solon.artifact import StageFolder, content_id, derive_seed, file_hash, read_rows
from solon.chain import Unusable
from solon.config import Comparisons
from solon.constitution import Constitution
from solon.dialogue import Message
from solon.engine import LocalEngineConfig
from solon.evaluation import ConstitutionJudge
from solon.evaluation.rows import fill_rows
from solon.preference import PreferenceModel
from solon.reproduce.arms import ArmContext, ModelSize, preference_model, recipe_of
from solon.reproduce.description import Judges, PreferenceModels, Way
from solon.reproduce.points import Found, Point
from solon.run import opened
from solon.sandbox import KnownPair, oracle
from solon.stats import Floats, Interval, bootstrap_interval, calibration_error, proportion_interval, sigmoid


class JudgedRow(TypedDict):
    """A row of judged.jsonl."""

    id: str
    p: float
    """Probability of the better answer."""


async def judges(wanted: Judges, *, at: ArmContext) -> Found:
    """How often judges, and preference models, find the better answer; and how sure they are."""
    pairs = sandbox.known_pairs(at.num(wanted.pairs), seed=at.seed)
    found: dict[tuple[str, float | None], list[float]] = {}
    for size in at.sizes if wanted.sizes else [at.largest]:
        x = size.millions if wanted.sizes else None
        for name, way in wanted.ways.items():
            found[name, x] = await judged(pairs, way, name=name, principle=wanted.principle, size=size, at=at)
        for name in wanted.preference_models:
            found[name, x] = probabilities(await preference_model(name, at=at, size=size), pairs)
    points: list[Point] = []
    for (name, x), p in found.items():
        points.append(Point(metric="accuracy", series=name, x=x, interval=right_share(p, n=len(pairs))))
        if p:
            points.append(Point(metric="calibration_error", series=name, x=x, interval=calibration(p, seed=at.seed)))
    last = max((x for _, x in found), key=lambda x: x or 0.0)
    return Found(points=points, predictions={name: p for (name, x), p in found.items() if x == last})


async def judged(
    pairs: Sequence[KnownPair], way: Way, *, name: str, principle: str, size: ModelSize, at: ArmContext
) -> list[float]:
    """The probabilities that a judge gives the better answers; a pair that it leaves unscored has none."""
    from solon.training import resolve_model

    whole = Constitution.load(recipe_of(at.arms.first, at=at, size=size).constitution)
    constitution = whole.model_copy(
        update={"principles": tuple(one for one in whole.principles if one.id == principle)}
    )
    path = size.base if way.model == "base" else size.helpful
    settings = Comparisons(reasoning=way.reasoning, reasoning_samples=way.samples, clamp=None)
    items = [{"id": content_id(list(pair)), "pair": pair} for pair in pairs]
    stage = StageFolder(at.folder / size.name / "judges" / name.replace(" ", "-"))
    config = {"seed": at.seed, "way": way.model_dump(), "principle": principle}
    inputs = {"model": file_hash(resolve_model(path)), "constitution": constitution.fingerprint}
    inputs["pairs"] = content_id([one["id"] for one in items])
    if stage.begin(config=config, inputs=inputs):
        async with opened(LocalEngineConfig(path=path)) as engine:
            compare = ConstitutionJudge(engine=engine, constitution=constitution, settings=settings)

            async def make(item: Mapping[str, Any]) -> JudgedRow:
                pair: KnownPair = item["pair"]
                dimension = "harmlessness" if pair.harmful else "helpfulness"
                seed = derive_seed(at.seed, "judge", item["id"])
                said = await compare(pair.prompt, pair.better, pair.worse, dimension=dimension, seed=seed)
                if said.p is None:
                    raise Unusable(where="judge", reason=said.reason, text=said.text)
                return {"id": item["id"], "p": said.p}

            await fill_rows(stage, "judged.jsonl", items=items, make=make, what=f"judge: {name}", progress=at.progress)
        stage.finish(counts={"pairs": len(pairs)})
    by_id = {row["id"]: float(row["p"]) for row in read_rows(stage.path / "judged.jsonl")}
    return [by_id[one["id"]] for one in items if one["id"] in by_id]


async def preference_models(wanted: PreferenceModels, *, at: ArmContext) -> list[Point]:
    """Arms' preference models on pairs whose better answer is known, and the labels that they were trained on."""
    pairs = sandbox.known_pairs(at.num(wanted.pairs), seed=at.seed)
    points: list[Point] = []
    for name in wanted.arms:
        model = await preference_model(name, at=at, size=at.largest)
        p = probabilities(model, pairs)
        points.append(Point(metric="pm_accuracy", series=name, x=None, interval=right_share(p, n=len(pairs))))
        error = calibration(p, seed=at.seed)
        points.append(Point(metric="pm_calibration_error", series=name, x=None, interval=error))
        labels = labels_right(read_rows(at.arm_folder(name, at.largest) / "03-comparisons" / "comparisons.jsonl"))
        if labels:
            share = proportion_interval(sum(labels), n=len(labels))
            points.append(Point(metric="label_accuracy", series=name, x=None, interval=share))
    return points


def probabilities(model: Path, pairs: Sequence[KnownPair]) -> list[float]:
    """What a preference model gives the better answers."""
    judge = PreferenceModel.load(model)
    scores = judge.raw_score([(one.prompt, text) for one in pairs for text in (one.better, one.worse)])
    leads = [(a - b) / judge.scale.temperature for a, b in zip(scores[::2], scores[1::2], strict=True)]
    return [float(p) for p in sigmoid(leads)]


def labels_right(rows: Iterator[Mapping[str, Any]]) -> list[bool]:
    """Of comparisons that the truth decides: whether the chosen answer is the better one."""
    right: list[bool] = []
    for row in rows:
        prompt = cast("Sequence[Message]", row["prompt"])
        p = oracle.prefers_harmless(prompt, row["chosen"][-1]["content"], row["rejected"][-1]["content"])
        if p != 0.5:
            right.append(p > 0.5 and row["probability"] > 0.5)
    return right


def right_share(p: Sequence[float], *, n: int) -> Interval:
    """Share of `n` pairs of which the better answer is more probable; a tie or a pair without a probability is
    wrong."""
    return proportion_interval(sum(one > 0.5 for one in p), n=n)


def calibration(p: Sequence[float], *, seed: int) -> Interval:
    """Expected calibration error of the probability of the answer that was chosen, with a bootstrap over pairs."""
    return bootstrap_interval(chosen_and_right(p), statistic=_error, seed=seed)


def chosen_and_right(p: Sequence[float]) -> Floats:
    """For each pair the probability of the answer that was called better, in [0.5, 1], and whether it is (1 or 0)."""
    p_N = np.asarray(p, dtype=np.float64)
    return np.column_stack([np.maximum(p_N, 1 - p_N), (p_N > 0.5).astype(np.float64)])


def _error(rows_N2: Floats) -> float:
    return calibration_error(rows_N2[:, 0], outcomes=rows_N2[:, 1])
