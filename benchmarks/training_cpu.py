"""What training on a CPU gains from reading no padding: the same rows, seed and steps with and without, by turns.

    python benchmarks/training_cpu.py --rounds 3

Fine-tuning and the preference model train from the sandbox's assistant on comparisons of helpfulness that its oracle
labels, in batches of 16. "Without" is TRL as it is; it also computes with numbers below 1e-38. Every training
is a process of its own, because PyTorch's threads keep how they treat these numbers. Printed: seconds of the steps, the
median of each round's ratio with the least and the greatest, the share of padding, and how far the first losses are
apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from solon import sandbox
from solon.artifact import StageFolder, read_rows
from solon.config import Preference, Supervised
from solon.feedback import helpful_comparisons
from solon.preference import train_preference
from solon.sandbox import oracle
from solon.training import encode_dialogue, load_tokenizer, train_sft

START = "sandbox:helpful"
BATCH = 16
KINDS = ("fine-tuning", "preference model")


def rows_of(num: int) -> list[dict[str, Any]]:
    """Comparisons {id, prompt, chosen, rejected, probability, ...}."""
    return [dict(row) for row in helpful_comparisons(sandbox.helpful_pairs(num, seed=0), oracle.prefers_helpful).rows]


def train(kind: str, *, steps: int, plain: bool) -> dict[str, float]:
    """Train once; the seconds of the steps and the first loss."""
    from solon.training import on_cpu

    if plain:
        on_cpu.quicker = lambda trainer: nullcontext()
        on_cpu.tiny_as_zero = nullcontext
    trainer = {"max_steps": steps, "per_device_train_batch_size": BATCH, "logging_steps": 1, "save_steps": steps}
    rows = rows_of(2 * steps * BATCH)
    with tempfile.TemporaryDirectory() as name:
        stage = StageFolder(Path(name) / "stage")
        if kind == "preference model":
            config = Preference(start="sl-cai", holdout=0.01, trainer={**trainer, "learning_rate": 1e-4})
            train_preference(rows, model=START, stage=stage, config=config)
        else:
            stage.begin(config={}, inputs={})
            examples = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
            train_sft(examples, model=START, stage=stage, config=Supervised(trainer=trainer))
        metrics = list(read_rows(stage.path / "metrics.jsonl"))
    return {"seconds": metrics[-1]["train_runtime"], "loss": metrics[0]["loss"]}


def padding(rows: list[dict[str, Any]]) -> float:
    """Tokens that TRL reads of the preference model's batches, over those that are there."""
    tokenizer = load_tokenizer(START)
    there = read = 0
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        replies = [(row["prompt"], row[side][-1]) for row in batch for side in ("chosen", "rejected")]
        lengths = [len(encode_dialogue(tokenizer, prompt, reply).ids) for prompt, reply in replies]
        there, read = there + sum(lengths), read + max(lengths) * len(lengths)
    return read / there


def apart(kind: str, *, steps: int, plain: bool) -> dict[str, float]:
    """`train` in a process of its own."""
    command = [sys.executable, __file__, "--steps", str(steps), "--once", kind, *(["--plain"] if plain else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--once", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(train(options.once, steps=options.steps, plain=options.plain)))
        return
    print(f"{date.today()}; {os.cpu_count()} CPU cores ({platform.machine()}); {options.steps} steps of {BATCH} rows")
    print(f"padded, a batch of the preference model is {padding(rows_of(options.steps * BATCH)):.2f} times as long")
    for kind in KINDS:
        rounds = [
            [apart(kind, steps=options.steps, plain=plain) for plain in (False, True)] for _ in range(options.rounds)
        ]
        ours, plain = (median(one[side]["seconds"] for one in rounds) for side in (0, 1))
        ratios = [theirs["seconds"] / own["seconds"] for own, theirs in rounds]
        gap = max(abs(own["loss"] - theirs["loss"]) for own, theirs in rounds)
        print(
            f"{kind}: {ours:.1f} s with, {plain:.1f} s without: {median(ratios):.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f}); first losses at most {gap:.1e} apart"
        )


if __name__ == "__main__":
    main()
