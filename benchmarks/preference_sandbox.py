"""A preference model on the two sources of the paper, judged where the better answer is known.

    python benchmarks/preference_sandbox.py --seeds 0 1 2 --set preference.trainer.learning_rate=4e-4

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
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import fmean

from policies import pooled, show
from sandbox_labels import label_figures, labelled, preference_figures

from solon import sandbox
from solon.artifact import StageFolder
from solon.config import load_recipe
from solon.constitution import Constitution
from solon.feedback import helpful_comparisons
from solon.preference import train_preference
from solon.sandbox import KnownPair, oracle
from solon.training import RunContext

RECIPE = Path(__file__).parent.parent / "recipes" / "sandbox.yaml"


def what_they_do(pair: KnownPair) -> str:
    better, worse = (oracle.judge(pair.prompt, text).verdict for text in (pair.better, pair.worse))
    return f"{'harmful' if pair.harmful else 'harmless'}: {better} > {worse}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="sandbox:helpful", help="what the preference model starts from")
    parser.add_argument("--harmful", type=int, default=2000, help="pairs on harmful requests")
    parser.add_argument("--helpful", type=int, default=4000, help="pairs on harmless requests")
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
        recipe = load_recipe(RECIPE, [f"seed={seed}", f"name=preference-{seed}", *options.set])
        assert recipe.preference is not None
        folder = options.out / f"seed-{seed}"
        pairs = sandbox.harmful_pairs(options.harmful, seed=seed)
        constitution = Constitution.load(recipe.constitution)
        rows = asyncio.run(labelled(recipe, StageFolder(folder / "labels"), constitution=constitution, pairs=pairs))
        labels.append(label_figures(pairs, rows)[0])
        helpful = sandbox.helpful_pairs(options.helpful, seed=seed)
        trained = train_preference(
            [*rows, *helpful_comparisons(helpful, oracle.prefers_helpful).rows],
            model=options.model,
            stage=StageFolder(folder / "model"),
            config=recipe.preference,
            run=RunContext(seed=seed),
        )
        known = sandbox.known_pairs(options.num, seed=seed)
        right, calibration = preference_figures(trained.model, known)
        orders.append(right)
        calibrations.append(calibration)
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
