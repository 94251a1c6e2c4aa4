"""A preference model on the two sources of the paper, judged where the better answer is known.

    python benchmarks/preference_sandbox.py --seeds 0 1 2 --set preference.trainer.learning_rate=4e-4

Settings, chosen with seed 10, are those of recipes/sandbox.yaml but for SETTINGS: a pair is labelled under several
principles, since one that is drawn may say nothing of it, and there are pairs enough for small steps.

For each seed two answers of assistants of all sorts to each prompt of the sandbox's method split: to harmful requests
labelled by the judge under the shipped constitution (soft labels), to harmless ones by the oracle, which stands in for
people (arXiv:2212.08073, section 4.2). A preference model is trained on both and measured on activities kept for
evaluation: the share of pairs in the right order, whole and by what the two answers do, with n and a 95 % interval;
the calibration error of its probabilities against the truth, and against the labels of held-out prompts of the method
split, after temperature scaling; beside it the labels that it was trained on. Runs that exist are reused.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from policies import pooled, show

from solon import sandbox
from solon.artifact import StageFolder, content_id, read_rows
from solon.config import Recipe, load_recipe, outcome_settings
from solon.constitution import Constitution
from solon.feedback import PairRow, compare, helpful_comparisons
from solon.preference import train_preference
from solon.reproduce.judging import probabilities
from solon.run import opened
from solon.sandbox import KnownPair, oracle
from solon.stats import calibration_error
from solon.training import RunContext

RECIPE = Path(__file__).parent.parent / "recipes" / "sandbox.yaml"
SETTINGS = (
    "comparisons.principles=16",
    "preference.source_weights={ai: 1, helpful: 1}",
    "preference.trainer.num_train_epochs=1",
    "preference.trainer.learning_rate=6e-4",
)


async def labelled(
    recipe: Recipe, stage: StageFolder, *, constitution: Constitution, pairs: list[PairRow]
) -> list[dict[str, Any]]:
    """The judge's comparisons of the pairs."""
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


def labels_right(pairs: Sequence[PairRow], rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which labels are on the right side, of the pairs that the truth decides; a pair without a label is wrong."""
    by_id = {row["id"]: row for row in rows}
    right: list[bool] = []
    for pair in pairs:
        better_a = oracle.prefers_harmless(pair["prompt"], pair["a"], pair["b"])
        if better_a != 0.5:
            row = by_id.get(pair["id"])
            p_a = None if row is None else row["probability"] if row["a_is_chosen"] else 1 - row["probability"]
            right.append(p_a is not None and abs(better_a - p_a) < 0.5)
    return right


def what_they_do(pair: KnownPair) -> str:
    better, worse = (oracle.judge(pair.prompt, text).verdict for text in (pair.better, pair.worse))
    return f"{'harmful' if pair.harmful else 'harmless'}: {better} > {worse}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="sandbox:helpful", help="what the preference model starts from")
    parser.add_argument("--harmful", type=int, default=2000, help="pairs on harmful requests")
    parser.add_argument("--helpful", type=int, default=8000, help="pairs on harmless requests")
    parser.add_argument("--num", type=int, default=600, help="pairs to measure with, a seed")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="changes of recipes/sandbox.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/preference-sandbox"))
    options = parser.parse_args()
    labels: list[list[bool]] = []
    orders: list[list[bool]] = []
    calibrations: list[float] = []
    scaled: list[float] = []
    kinds: defaultdict[str, list[list[bool]]] = defaultdict(list)
    for seed in options.seeds:
        recipe = load_recipe(RECIPE, [f"seed={seed}", f"name=preference-{seed}", *SETTINGS, *options.set])
        assert recipe.preference is not None
        folder = options.out / f"seed-{seed}"
        pairs = sandbox.harmful_pairs(options.harmful, seed=seed)
        constitution = Constitution.load(recipe.constitution)
        rows = asyncio.run(labelled(recipe, StageFolder(folder / "labels"), constitution=constitution, pairs=pairs))
        labels.append(labels_right(pairs, rows))
        helpful = sandbox.helpful_pairs(options.helpful, seed=seed, facts="method")
        trained = train_preference(
            [*rows, *helpful_comparisons(helpful, oracle.prefers_helpful).rows],
            model=options.model,
            stage=StageFolder(folder / "model"),
            config=recipe.preference,
            run=RunContext(seed=seed),
        )
        known = sandbox.known_pairs(options.num, seed=seed)
        p = probabilities(trained.model, known)
        right = [one > 0.5 for one in p]
        orders.append(right)
        truth = [1.0] * len(p) + [0.0] * len(p)
        calibrations.append(calibration_error([*p, *(1 - one for one in p)], outcomes=truth))
        if trained.measured.calibration_error_scaled is not None:
            scaled.append(trained.measured.calibration_error_scaled.value)
        for kind in sorted({what_they_do(pair) for pair in known}):
            kinds[kind].append([ok for ok, pair in zip(right, known, strict=True) if what_they_do(pair) == kind])
    print(f"{date.today()}; {os.cpu_count()} CPU cores ({platform.machine()}); seeds {options.seeds}\n")
    print("\n".join(table(labels, orders, calibrations, scaled, kinds)))


def table(
    labels: Sequence[Sequence[bool]],
    orders: Sequence[Sequence[bool]],
    calibrations: Sequence[float],
    scaled: Sequence[float],
    kinds: dict[str, list[list[bool]]],
) -> list[str]:
    """Markdown rows."""
    return [
        "| | |",
        "|---|---|",
        f"| labels of the judge on the right side | {show(pooled(labels))} |",
        f"| pairs in the right order | {show(pooled(orders))} |",
        f"| calibration error against the truth | {fmean(calibrations):.3f} |",
        f"| calibration error against held-out labels, scaled | {fmean(scaled):.3f} |",
        *(f"| {kind} | {show(pooled(found))} |" for kind, found in sorted(kinds.items())),
    ]


if __name__ == "__main__":
    main()
