"""Four ways from SL-CAI to RL-CAI in the sandbox: what each reaches, and what it costs.

    python benchmarks/rl_quality.py --seeds 0 1 2 3 4 --out runs/rl-quality
    python benchmarks/rl_quality.py --seeds 0 1 2 3 4 --algorithms rloo --reasoning --out runs/rl-quality
    python benchmarks/rl_quality.py --seeds 0 1 2 --algorithms rloo rloo-twice --out runs/rl-quality

For each seed one SL-CAI, one set of labels and one preference model, by recipes/sandbox.yaml; from there rloo, grpo,
ppo and dpo, each in a process of its own, so that its memory can be told. `--reasoning`: the same with labels after a
chain of thought (arXiv:2212.08073, section 4.1), clamped as there. `rloo-twice` goes on from rloo: labels and
preference model are renewed from its policy, and SL-CAI is trained again (`reinforcement.iterations`).

Printed for each, pooled over the seeds, with n and 95 % intervals, on activities kept for evaluation: what is done with
harmful requests, and right help relative to the helpful-only assistant. Beside them, as means over seeds: the score of
the answers by the preference model (0: that of held-out answers, 1: their spread), the KL divergence of a whole answer
from SL-CAI in nats (estimated on the same answers), seconds of training, and the most memory that the process held.
Runs that exist are reused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

from policies import Answered, answer, pooled, show

from solon.artifact import ITERATED, RunFolder, read_json, write_json
from solon.config import Recipe, load_recipe
from solon.engine import ChoiceRequest, LocalEngineConfig
from solon.evaluation import COMPLIED
from solon.pipeline import run_recipe
from solon.preference import PreferenceModel
from solon.run import opened
from solon.stats import paired_ratio

RECIPE = Path(__file__).parent.parent / "recipes" / "sandbox.yaml"
ALGORITHMS: dict[str, tuple[str, ...]] = {
    "rloo": (
        "reinforcement.trainer={max_steps: 40, per_device_train_batch_size: 64, learning_rate: 2.2e-4,"
        " lr_scheduler_type: linear}",
    ),
    "grpo": (
        "reinforcement.algorithm={kind: grpo, beta: 0.1, num_generations: 4}",
        # Gradients of means over tokens are small; at this norm they are clipped as often as RLOO's are at 1.
        "reinforcement.trainer={max_steps: 40, per_device_train_batch_size: 64, learning_rate: 2.5e-4,"
        " max_grad_norm: 0.025, lr_scheduler_type: linear}",
    ),
    "ppo": (
        "reinforcement.algorithm={kind: ppo, beta: 0.07, gae_lambda: 1, value_warmup: 8}",
        "reinforcement.trainer={max_steps: 48, per_device_train_batch_size: 64, learning_rate: 4.0e-4,"
        " lr_scheduler_type: linear}",
    ),
    "dpo": (
        "reinforcement.algorithm={kind: dpo, beta: 0.3}",
        "reinforcement.trainer={num_train_epochs: 1, per_device_train_batch_size: 16, learning_rate: 5.0e-5}",
    ),
}
ALGORITHMS["rloo-twice"] = (*ALGORITHMS["rloo"], "reinforcement.iterations=2")
"""What each changes in the recipe."""
THOUGHT = ("comparisons.reasoning=true", "comparisons.clamp=[0.4,0.6]")
BEFORE = ("01-revisions", "02-sl-cai", "03-comparisons", "04-preference-model")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one algorithm has come to with one seed."""

    complies: list[bool]
    explains: list[bool]
    """Of the answers that do not comply."""
    evades: list[bool]
    right: list[bool]
    """Help on benign requests."""
    helpful: list[bool]
    """The same of the helpful-only assistant, on the same requests."""
    score: float
    kl: float
    seconds: float
    peak_gib: float


def recipe_of(seed: int, algorithm: str, *, reasoning: bool) -> Recipe:
    more = (*ALGORITHMS[algorithm], *(THOUGHT if reasoning else ()))
    return load_recipe(RECIPE, [f"seed={seed}", f"name=rl-{algorithm}-{seed}", *more])


async def kl_divergence(policy: Path, start: Path, answers: Sequence[Answered]) -> float:
    """Mean log pi(y|x) - log pi_0(y|x) in nats, over the policy's own answers."""

    async def log_probabilities(model: Path) -> list[float]:
        async with opened(LocalEngineConfig(path=str(model))) as engine:
            found = await engine.choose([ChoiceRequest(prompt=one.prompt, options=(one.text,)) for one in answers])
        return [choice.logprobs[0] for choice in found]

    said = [one for one in answers if one.text]
    now, before = await log_probabilities(policy), await log_probabilities(start)
    return fmean(a - b for a, b in zip(now, before, strict=True)) if said else 0.0


async def measured(run: Path, *, seed: int, helpful: str, num: int) -> Found:
    *_, last = (stage.path.parent for stage in RunFolder(run).stages() if stage.path.name == "05-rl-cai")
    policy, start = last / "05-rl-cai" / "model", run / "02-sl-cai" / "model"
    harmful = await answer(policy, "red-team", num, seed=seed)
    benign = await answer(policy, "helpful", num, seed=seed)
    before = await answer(helpful, "helpful", num, seed=seed)
    judge = PreferenceModel.load(last / "04-preference-model" / "model")
    answers = [*harmful, *benign]
    return Found(
        complies=[one.verdict in COMPLIED for one in harmful],
        explains=[one.verdict == "explains" for one in harmful if one.verdict not in COMPLIED],
        evades=[one.verdict == "evades" for one in harmful],
        right=[one.verdict == "helps" for one in benign],
        helpful=[one.verdict == "helps" for one in before],
        score=fmean(judge.score([(one.prompt, one.text) for one in answers])),
        kl=await kl_divergence(policy, start, answers),
        seconds=read_json(last / "05-rl-cai" / "manifest.json")["seconds"],
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    )


def one_run(seed: int, algorithm: str, *, reasoning: bool, base: Path, run: Path, num: int) -> Found:
    """Train from the stages of `base`, copied, and measure. In a process of its own."""
    recipe, figures = recipe_of(seed, algorithm, reasoning=reasoning), run / "figures.json"
    if not figures.exists():
        for stage in BEFORE:
            shutil.copytree(base / stage, run / stage, dirs_exist_ok=True)
        if algorithm == "rloo-twice" and (run.with_name("rloo") / "figures.json").exists():
            shutil.copytree(run.with_name("rloo") / "05-rl-cai", run / "05-rl-cai", dirs_exist_ok=True)
        asyncio.run(run_recipe(recipe, run, stages=set(ITERATED)))
        assert isinstance(recipe.model, LocalEngineConfig)
        found = asyncio.run(measured(run, seed=seed, helpful=recipe.model.path, num=num))
        write_json(figures, asdict(found))
    return Found(**read_json(figures))


def table(found: dict[str, list[Found]]) -> list[str]:
    """Markdown rows."""
    heads = (
        "", "complies", "of the rest: explains", "evades", "right help, relative", "score", "KL", "seconds", "GiB",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for algorithm, runs in found.items():
        right, helpful = ([float(x) for run in runs for x in getattr(run, name)] for name in ("right", "helpful"))
        cells = [
            algorithm,
            *(show(pooled([getattr(run, name) for run in runs])) for name in ("complies", "explains", "evades")),
            show(paired_ratio(right, baseline=helpful, seed=0)),
            *(f"{fmean(getattr(run, name) for run in runs):.2f}" for name in ("score", "kl")),
            f"{fmean(run.seconds for run in runs):.0f}",
            f"{max(run.peak_gib for run in runs):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), default=["rloo", "grpo", "ppo", "dpo"])
    parser.add_argument("--reasoning", action="store_true", help="labels after a chain of thought")
    parser.add_argument("--num", type=int, default=200, help="prompts of each kind to measure with")
    parser.add_argument("--out", type=Path, default=Path("runs/rl-quality"))
    options = parser.parse_args()
    found: dict[str, list[Found]] = {algorithm: [] for algorithm in options.algorithms}
    labels = "reasoning" if options.reasoning else "direct"
    for seed in options.seeds:
        base = options.out / f"{labels}-{seed}" / "base"
        asyncio.run(run_recipe(recipe_of(seed, "rloo", reasoning=options.reasoning), base, stages=BEFORE))
        for algorithm in options.algorithms:
            with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as apart:
                task = apart.submit(
                    one_run,
                    seed,
                    algorithm,
                    reasoning=options.reasoning,
                    base=base,
                    run=base.with_name(algorithm),
                    num=options.num,
                )
                found[algorithm].append(task.result())
            last = found[algorithm][-1]
            print(json.dumps({"seed": seed, "algorithm": algorithm, "seconds": last.seconds}), flush=True)
    machine = f"{date.today()}; {os.cpu_count()} CPU cores ({platform.machine()})"
    print(f"\nlabels: {labels}; seeds {options.seeds}; {machine}\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
