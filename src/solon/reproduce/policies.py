"""Policies answer prompts about activities kept for evaluation: the oracle's verdicts, and the Elo that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import cast

import numpy as np

from solon import sandbox
from solon.artifact import StageFolder, content_id, file_hash, read_rows
from solon.config import Evaluation
from solon.engine import LocalEngineConfig, Sampling, load_engine
from solon.evaluation import ResponseRow, VerdictRow, judge_responses, respond, style_scores, verdict_scores
from solon.ratings import Battle, elo_ratings
from solon.reproduce.arms import ArmContext, Policy, make_arm, snapshots, start_of
from solon.reproduce.description import Policies
from solon.reproduce.points import Point
from solon.sandbox import PromptKind, oracle
from solon.stats import Interval

SAMPLING = Sampling(max_new_tokens=96)
KINDS: tuple[PromptKind, ...] = ("red-team", "helpful", "look-alike")
GREEDY = ", T = 0"
"""Ends the names of series that were answered at temperature 0."""


async def policies(wanted: Policies, *, at: ArmContext) -> list[Point]:
    """What policies do, by the oracle, and their Elo against each other."""
    asked, num = await _policies(wanted, at=at), at.num(wanted.samples)
    answers = [await answer(policy, at=at, num=num) for policy in asked]
    points = [*verdict_points(answers, seed=at.seed), *elo_points(answers, anchor=wanted.anchor, seed=at.seed)]
    if wanted.greedy:
        points += verdict_points([await answer(one, at=at, num=num, greedy=True) for one in asked], seed=at.seed)
    return points


async def _policies(wanted: Policies, *, at: ArmContext) -> list[Policy]:
    from solon.training import resolve_model

    sides = {"base": at.largest.base, "helpful": at.largest.helpful}
    found = [Policy(series=name, x=None, model=resolve_model(sides[one])) for name, one in wanted.models.items()]
    for name in wanted.paths:
        folder = await make_arm(name, at=at, size=at.largest)
        found += snapshots(name, folder=folder, start=start_of(name, at=at, size=at.largest))
    for name in wanted.finals:
        folder = await make_arm(name, at=at, size=at.largest)
        x = at.largest.millions if wanted.sizes else None
        found.append(Policy(series=name, x=x, model=folder / "05-rl-cai" / "model"))
    for name in wanted.sizes:
        for size in at.sizes:
            folder = await make_arm(name, at=at, size=size)
            found.append(Policy(series=name, x=size.millions, model=folder / "05-rl-cai" / "model"))
    return found


def key_of(series: str, x: float | None) -> str:
    """ "cai@40", or the series alone."""
    return series if x is None else f"{series}@{x:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A policy's answers and the oracle's verdicts on them, in one order."""

    series: str
    x: float | None
    model: Path
    responses: Sequence[ResponseRow]
    verdicts: Sequence[VerdictRow]

    @property
    def key(self) -> str:
        return key_of(self.series, self.x)


async def answer(policy: Policy, *, at: ArmContext, num: int, greedy: bool = False) -> Answers:
    """`num` answers to prompts of each kind, at temperature 1; at 0 to harmful requests alone.

    One folder for each model, whatever asks for it: OUT/seed-0/answers/... Every policy has the same prompts and seeds.
    """
    kinds = KINDS[:1] if greedy else KINDS
    prompts = [row for kind in kinds for row in sandbox.prompts("evaluation", kind, num, seed=at.seed)]
    model = policy.model.resolve()
    own = at.folder.resolve()
    parts = model.relative_to(own).parts if model.is_relative_to(own) else (at.largest.name, model.name)
    stage = StageFolder(at.folder / "answers" / "-".join((*parts, "greedy") if greedy else parts))
    settings = Evaluation(samples=num, sampling=SAMPLING.model_copy(update={"temperature": 0.0 if greedy else 1.0}))
    config = {"seed": at.seed, "sampling": settings.sampling.model_dump(), "kinds": list(kinds), "samples": num}
    if stage.begin(config=config, inputs={"model": file_hash(model), "prompts": content_id(prompts)}):
        config_of_model = LocalEngineConfig(path=str(model))
        rows = await respond(
            stage,
            models={"policy": partial(load_engine, config_of_model)},
            prompts=prompts,
            settings=settings,
            seed=at.seed,
            progress=at.progress,
        )
        judge_responses(stage, responses=rows, oracle=oracle)
        stage.finish(counts={"responses": len(rows)})
    responses = cast("list[ResponseRow]", list(read_rows(stage.path / "responses.jsonl")))
    verdicts = {row["id"]: cast(VerdictRow, row) for row in read_rows(stage.path / "verdicts.jsonl")}
    place = {row["id"]: number for number, row in enumerate(prompts)}
    responses.sort(key=lambda row: place[row["prompt_id"]])
    return Answers(
        series=policy.series + (GREEDY if greedy else ""),
        x=policy.x,
        model=model,
        responses=responses,
        verdicts=[verdicts[row["id"]] for row in responses],
    )


def verdict_points(answers: Sequence[Answers], *, seed: int) -> list[Point]:
    """The oracle's shares, and how the answers to harmful requests are worded."""
    points: list[Point] = []
    for one in answers:
        verdicts = {row["id"]: row for row in one.verdicts}
        harmful = [row for row in one.responses if row["kind"] == "red-team"]
        scores = [
            *verdict_scores(one.responses, verdicts=verdicts, seed=seed),
            *(row for row in style_scores(harmful, seed=seed) if row["metric"] in ("boilerplate", "distinct_2")),
        ]
        for row in scores:
            if ":" not in row["metric"]:
                interval = Interval(value=row["value"], low=row["low"], high=row["high"], n=row["n"])
                points.append(Point(metric=row["metric"], series=one.series, x=one.x, interval=interval))
    return points


def elo_points(answers: Sequence[Answers], *, anchor: str, seed: int) -> list[Point]:
    """Elo of every policy in both traits: on each prompt each pair of policies is compared by the oracle's verdicts.

    Of answers to harmful requests the better declines and says why, then comes one that declines without (the paper's
    instruction for its tests, section 3.3); of others the more helpful. An answer that the oracle cannot read is in no
    battle of harmlessness. A policy that stands there under two names (the start of two arms) fights once.
    """
    fighters = {one.model: one for one in answers}
    key = next((one.key for one in answers if one.key == anchor), None)
    key = key or [one.key for one in answers if one.series == anchor][-1]
    origin = next(one.model for one in answers if one.key == key)
    points: list[Point] = []
    for dimension, kind, order in (
        ("harmlessness", "red-team", oracle.HARMLESSNESS),
        ("helpfulness", "helpful", oracle.HELPFULNESS),
    ):
        ranks: dict[str, dict[str, int]] = {}
        for one in fighters.values():
            for row, verdict in zip(one.responses, one.verdicts, strict=True):
                rank = cast("Mapping[str, int]", order).get(verdict["verdict"])
                if row["kind"] == kind and rank is not None:
                    ranks.setdefault(row["prompt_id"], {})[str(one.model)] = rank
        battles = [
            Battle(left=left, right=right, score=float(1 + np.sign(found[left] - found[right])) / 2, group=prompt)
            for prompt, found in ranks.items()
            for left, right in combinations(sorted(found), 2)
        ]
        fought = {name for one in battles for name in (one.left, one.right)}
        if str(origin) not in fought:
            continue
        ratings = elo_ratings(battles, anchor=str(origin), seed=seed)
        points += [
            Point(metric=f"elo_{dimension}", series=one.series, x=one.x, interval=ratings[str(one.model)])
            for one in answers
            if str(one.model) in fought
        ]
    return points
