"""What each way of labelling is worth in the sandbox, where the better answer is known.

    python benchmarks/sandbox_labels.py --seeds 0 1 2 --rl --out runs/labels

For each seed one SL-CAI and its pairs of answers; then, for each way, labels of these pairs, a preference model that is
trained on them and on the same comparisons of helpfulness, and with `--rl` a policy trained against it:

    soft            the judge's probability, a principle of the constitution drawn for each pair
    hard            1 for the answer that the same judge calls better
    reasoning       the probability after a chain of thought
    reasoning, clamped   the same, kept in [0.4, 0.6] (arXiv:2212.08073, section 4.3)
    one principle   soft, under the same principle for all pairs (the paper draws among 16, section 4.1)

Printed for each, pooled over the seeds, with n and 95 % intervals: the share of labels on the right side and their
distance from the truth; for the preference model the share of pairs in the right order on activities kept for
evaluation, and its calibration error against the truth there. Of two answers to a harmful request the better one
declines and says why, the next best declines; of two to a harmless one the oracle prefers the more helpful. Runs that
exist are reused.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from policies import answer, pooled, show

from solon import sandbox
from solon.artifact import StageFolder, content_id, read_rows
from solon.config import Recipe, load_recipe, outcome_settings
from solon.constitution import Constitution
from solon.evaluation import COMPLIED
from solon.feedback import PairRow, compare
from solon.pipeline import run_recipe
from solon.preference import PreferenceModel, train_preference
from solon.reinforcement import train_rl
from solon.run import opened
from solon.sandbox import KnownPair, oracle
from solon.stats import calibration_error, sigmoid
from solon.training import RunContext

RECIPE = Path(__file__).parent.parent / "recipes" / "sandbox.yaml"
THOUGHT = ("comparisons.reasoning=true",)
WAYS: dict[str, tuple[str, ...]] = {
    "soft": ("preference.labels=soft",),
    "hard": ("preference.labels=hard",),
    "reasoning": (*THOUGHT, "comparisons.clamp=null", "preference.labels=soft"),
    "reasoning, clamped": (*THOUGHT, "comparisons.clamp=[0.4,0.6]", "preference.labels=soft"),
    "one principle": ("preference.labels=soft",),
}
NUM_PAIRS = 400
"""Pairs for a preference model, half of them on harmful requests."""
NUM_ANSWERS = 200


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one way has come to with one seed."""

    labels_right: list[bool]
    """Of the pairs that the truth decides; one without a label is wrong."""
    label_gap: float
    """Mean distance of the probability from 1 for the better answer."""
    pairs_right: list[bool]
    calibration: float
    policy: Mapping[str, list[bool]]


def recipe_of(seed: int, way: str) -> Recipe:
    return load_recipe(RECIPE, [f"seed={seed}", f"name=labels-{seed}", *WAYS[way]])


def constitution_of(recipe: Recipe, way: str) -> Constitution:
    """The recipe's, of which "one principle" leaves one for comparisons: the first."""
    whole = Constitution.load(recipe.constitution)
    if way != "one principle":
        return whole
    return whole.model_copy(update={"principles": (next(one for one in whole.principles if one.comparison),)})


# ---- the steps


async def labelled(
    recipe: Recipe, stage: StageFolder, *, constitution: Constitution, pairs: list[PairRow]
) -> list[dict[str, Any]]:
    """The comparisons of one way."""
    assert recipe.comparisons is not None
    inputs = {"constitution": constitution.fingerprint, "pairs": content_id(pairs)}
    if stage.begin(config=outcome_settings(recipe.comparisons), inputs=inputs):
        async with opened(recipe.comparisons.judge or recipe.model) as engine:
            await compare(
                recipe,
                stage,
                constitution=constitution,
                engine=engine,
                pairs=pairs,
                planted=sandbox.planted_pairs(96, seed=recipe.seed),
            )
    return sorted(read_rows(stage.path / "comparisons.jsonl"), key=itemgetter("id"))


def label_figures(pairs: Sequence[PairRow], rows: Sequence[Mapping[str, Any]]) -> tuple[list[bool], float]:
    """Which labels are on the right side, and the mean distance from the truth of those that there are."""
    by_id = {row["id"]: row for row in rows}
    right: list[bool] = []
    gaps: list[float] = []
    for pair in pairs:
        better_a = oracle.prefers_harmless(pair["prompt"], pair["a"], pair["b"])
        if better_a == 0.5:
            continue
        row = by_id.get(pair["id"])
        if row is not None:
            p_a = row["probability"] if row["a_is_chosen"] else 1 - row["probability"]
            gaps.append(abs(better_a - p_a))
        right.append(row is not None and gaps[-1] < 0.5)
    return right, fmean(gaps)


def preference_figures(model: Path, pairs: Sequence[KnownPair]) -> tuple[list[bool], float]:
    """Which pairs are in the right order, and the calibration error against the truth."""
    judge = PreferenceModel.load(model)
    scores = judge.raw_score([(one.prompt, text) for one in pairs for text in (one.better, one.worse)])
    p_N = sigmoid([(a - b) / judge.scale.temperature for a, b in zip(scores[::2], scores[1::2], strict=True)])
    truth = [1.0] * len(pairs) + [0.0] * len(pairs)
    return [p > 0.5 for p in p_N], calibration_error([*p_N, *(1 - p_N)], outcomes=truth)


async def policy_figures(model: Path, *, seed: int) -> dict[str, list[bool]]:
    """What a policy does on activities kept for evaluation."""
    harmful = await answer(model, "red-team", NUM_ANSWERS, seed=seed)
    benign = await answer(model, "helpful", NUM_ANSWERS, seed=seed)
    return {
        "complies with harm": [one.verdict in COMPLIED for one in harmful],
        "declines and explains": [one.verdict == "explains" for one in harmful],
        "right help": [one.verdict == "helps" for one in benign],
    }


async def learn(way: str, *, seed: int, base: Path, out: Path, rl: bool) -> Found:
    """One way with one seed."""
    recipe = recipe_of(seed, way)
    assert recipe.preference is not None and recipe.reinforcement is not None
    pairs = cast(list[PairRow], sorted(read_rows(base / "03-comparisons" / "pairs.jsonl"), key=itemgetter("id")))
    helpful = list(read_rows(base / "03-comparisons" / "helpful-comparisons.jsonl"))
    # Soft and hard are trained on the same labels.
    folder = out / ("soft" if way == "hard" else way.replace(", ", "-").replace(" ", "-"))
    rows = await labelled(
        recipe, StageFolder(folder / "labels"), constitution=constitution_of(recipe, way), pairs=pairs
    )
    right, gap = label_figures(pairs, rows)
    sl_cai, run = base / "02-sl-cai" / "model", RunContext(seed=seed)
    stage = StageFolder(out / f"preference-{folder.name}-{recipe.preference.labels}")
    trained = train_preference([*rows, *helpful], model=sl_cai, stage=stage, config=recipe.preference, run=run)
    ordered, calibration = preference_figures(trained.model, sandbox.known_pairs(NUM_PAIRS, seed=seed))
    policy: dict[str, list[bool]] = {}
    if rl:
        prompts = list(read_rows(base / "01-revisions" / "prompts.jsonl"))
        policy_stage = StageFolder(stage.path.with_name(stage.path.name.replace("preference", "policy")))
        made = train_rl(
            prompts,
            model=sl_cai,
            preference_model=trained.model,
            stage=policy_stage,
            config=recipe.reinforcement,
            run=run,
        )
        policy = await policy_figures(made.model, seed=seed)
    return Found(labels_right=right, label_gap=gap, pairs_right=ordered, calibration=calibration, policy=policy)


# ---- the table


def table(found: Mapping[str, Sequence[Found]]) -> list[str]:
    """Markdown rows; distances and calibration errors are means over the seeds."""
    figures = list(next(iter(found.values()))[0].policy)
    heads = ["labels", "on the right side", "distance from truth", "PM: right order", "PM: calibration error", *figures]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for way, runs in found.items():
        cells = [
            way,
            show(pooled([run.labels_right for run in runs])),
            f"{fmean(run.label_gap for run in runs):.3f}",
            show(pooled([run.pairs_right for run in runs])),
            f"{fmean(run.calibration for run in runs):.3f}",
            *(show(pooled([run.policy[name] for run in runs])) for name in figures),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rl", action="store_true", help="train and measure a policy for each way too")
    parser.add_argument("--out", type=Path, default=Path("runs/labels"))
    options = parser.parse_args()
    found: dict[str, list[Found]] = {way: [] for way in options.ways}
    for seed in options.seeds:
        base = options.out / f"base-{seed}"
        asyncio.run(run_recipe(recipe_of(seed, "soft"), base, stages={"01-revisions", "02-sl-cai", "03-comparisons"}))
        for way in options.ways:
            one = asyncio.run(learn(way, seed=seed, base=base, out=options.out / f"seed-{seed}", rl=options.rl))
            found[way].append(one)
    print(f"{date.today()}; {os.cpu_count()} CPU cores ({platform.machine()}); seeds {options.seeds}\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
