"""How fast reinforcement is beside plain TRL: the same policy, prompts, reward, settings and steps, in one process.

    nice -n 10 python benchmarks/rl_throughput.py --repeats 7

The policy is the sandbox's assistant, the preference model the same network with a random head, so that both sides
score alike. Plain TRL gets the preference model's folder, as its documentation has it. Both train with the same
TRL configuration and seeds; the repeats alternate, and which side begins does too. Seconds are those from the end of
the first step to the end of the last. Solon does more in a step: it writes every rollout with its score and KL.
"""

from __future__ import annotations

import argparse
import math
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from rl_timing import measured, shares
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from solon import sandbox
from solon.artifact import StageFolder, derive_seed, read_rows
from solon.config import GRPO, RLOO, Reinforcement
from solon.reinforcement import prompt_order, prompts_per_batch, train_rl
from solon.stats import bootstrap_interval
from solon.training import (
    RunContext,
    algorithm_settings,
    load_sequence_classifier,
    load_tokenizer,
    quiet,
    trainer_config,
)

ALGORITHMS = {"rloo": RLOO(num_generations=4), "grpo": GRPO(num_generations=4)}


class Trial(NamedTuple):
    """One training of either side."""

    seconds: float
    tokens: float
    """Read and written."""


class Steps(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ended_s: list[float] = []

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.ended_s.append(time.perf_counter())

    # As solon's progress:
    def start(self, what: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        self.on_step_end()

    def end(self) -> None:
        pass

    @property
    def seconds(self) -> float:
        return self.ended_s[-1] - self.ended_s[0]


def settings_of(kind: str, *, steps: int, rows: int, new_tokens: int) -> Reinforcement:
    trainer = {
        "max_steps": steps,
        "per_device_train_batch_size": rows,
        "learning_rate": 1e-6,
        "save_steps": steps,
        "logging_steps": 1,
    }
    return Reinforcement(algorithm=ALGORITHMS[kind], max_new_tokens=new_tokens, truncation_penalty=0.0, trainer=trainer)


def ours(config: Reinforcement, *, policy: Path, judge: Path, prompts: list[Any], folder: Path) -> Trial:
    steps, stage = Steps(), StageFolder(folder, "05-rl-cai")
    train_rl(prompts, model=policy, preference_model=judge, stage=stage, config=config, run=RunContext(progress=steps))
    return Trial(steps.seconds, tokens_in(list(read_rows(folder / "metrics.jsonl"))))


def plain(config: Reinforcement, *, policy: Path, judge: Path, prompts: list[Any], folder: Path) -> Trial:
    kind = config.algorithm.kind
    fixed = algorithm_settings(config)
    with quiet():
        seed = derive_seed(0, "reinforcement")
        arguments: Any = trainer_config(kind, config.trainer, folder=folder, seed=seed, fixed=fixed)
        num = prompts_per_batch(arguments) * arguments.max_steps
        order = prompt_order(len(prompts), num=num, seed=arguments.seed)
        steps = Steps()
        trainer = {"rloo": RLOOTrainer, "grpo": GRPOTrainer}[kind](
            model=str(policy),
            reward_funcs=str(judge),
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [prompts[i]["prompt"] for i in order]}),
            processing_class=load_tokenizer(policy, padding_side="left"),
            callbacks=[steps],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return Trial(steps.seconds, tokens_in(trainer.state.log_history))


def tokens_in(log: list[dict[str, Any]]) -> float:
    """After the first step."""
    seen = [row["num_tokens"] for row in log if "num_tokens" in row]
    return seen[-1] - seen[0]


def judge_folder(policy: Path, folder: Path) -> Path:
    with quiet():
        tokenizer = load_tokenizer(policy)
        load_sequence_classifier(policy, tokenizer=tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def compare(kind: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The lines that tell of one algorithm."""
    policy = sandbox.checkpoint("helpful")
    judge = judge_folder(policy, folder / "judge")
    prompts = sandbox.prompts("method", "red-team", 64, seed=0)
    config = settings_of(kind, steps=arguments.steps, rows=arguments.rows, new_tokens=arguments.new_tokens)
    sides: dict[str, Callable[..., Trial]] = {"solon": ours, "TRL": plain}
    spent = {name: Counter[str]() for name in sides}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(-1, arguments.repeats):
        for name in sorted(sides, reverse=repeat % 2 == 0):
            where = folder / f"{kind}-{name}-{repeat}"
            with measured() as watch:
                trial = sides[name](config, policy=policy, judge=judge, prompts=prompts, folder=where)
            if repeat >= 0:  # The first of each warms up.
                rates[name].append(trial.tokens / trial.seconds)
                spent[name] += watch.seconds
    ratios = [math.log(a / b) for a, b in zip(rates["solon"], rates["TRL"], strict=True)]
    found = bootstrap_interval(ratios, statistic=lambda values: math.exp(values.mean()), seed=0)
    lines = [
        f"{kind}: solon / TRL {found.value:.3f} ({found.low:.3f} to {found.high:.3f}, 95 %, n {found.n}); "
        f"tokens/s {fmean(rates['solon']):.0f} and {fmean(rates['TRL']):.0f}"
    ]
    return lines + [f"  {name:6} {shares(spent[name])}" for name in sides]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="of each training; the first is not timed")
    parser.add_argument("--rows", type=int, default=32, help="answers of a step")
    parser.add_argument("--new-tokens", type=int, default=64, help="of an answer at most")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    arguments = parser.parse_args()
    print(f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads of torch {torch.__version__}")
    print(f"{arguments.repeats} repeats of {arguments.steps} steps, {arguments.rows} answers a step", flush=True)
    with tempfile.TemporaryDirectory() as name:
        for kind in arguments.algorithms:
            folder = Path(name) / kind
            folder.mkdir()
            print("\n".join(compare(kind, arguments, folder)), flush=True)


if __name__ == "__main__":
    main()
