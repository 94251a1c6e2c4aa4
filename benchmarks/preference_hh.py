"""A preference model on real human comparisons, beside the two baselines that look at the length alone.

    python benchmarks/preference_hh.py test.jsonl.gz --model scratch --out runs/preference-hh
    python benchmarks/preference_hh.py test.jsonl.gz --model sandbox:base --epochs 2 --learning-rate 5e-4 ...

"scratch" is a Llama of one layer and 64 units with random weights, and a tokenizer of 4,000 pieces made of the
replies (of all of them, without their labels). FILE holds comparisons in hh-rlhf's form (harmless-base, test rows).
For each seed a fifth of the FIRST HUMAN TURNS is held out with all comparisons that begin with it, so that no opening
is on both sides, and `solon.preference` trains on the rest. Accuracies are pooled over the seeds; a comparison may be
held out by several of them, so that the 95 % intervals are clustered by opening. Runs that exist are reused.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from solon.artifact import StageFolder
from solon.config import Preference
from solon.dialogue import read_hh
from solon.preference import Measured, PreferenceModel, pair_of, split_by_prompt, train_preference
from solon.stats import Interval, bootstrap_interval, clustered_interval
from solon.training import RunContext

HELD_OUT = 0.2
"""Share of the openings."""
SCRATCH = "scratch"
TEMPLATE = (
    "{% for one in messages %}{{ '\\n\\n' + one['role'] + ': ' + one['content'] }}"
    "{% if one['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nassistant: ' }}{% endif %}"
)


class Case(NamedTuple):
    """One held-out comparison, and who is right about it; equal is wrong."""

    opening: str
    right: Mapping[str, bool]
    """By name: the preference model, and the baselines."""


NAMES = ("preference model", "the shorter reply is better", "the longer reply is better")


def opening(row: Mapping[str, Any]) -> str:
    """The first human turn, whatever its case and spaces."""
    first = next(turn["content"] for turn in row["prompt"] if turn["role"] == "user")
    return " ".join(first.casefold().split())


def make_scratch(folder: Path, rows: Sequence[Mapping[str, Any]], *, seed: int) -> None:
    """Write the model of random weights, unless it is there."""
    if (folder / "config.json").exists():
        return
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    bpe.train_from_iterator([row[key][-1]["content"] for row in rows for key in ("chosen", "rejected")], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(config).save_pretrained(folder)


def held_out_cases(rows: Sequence[Mapping[str, Any]], *, model: Path, stage: StageFolder, seed: int) -> list[Case]:
    """Who is right about the comparisons that this seed held out and that fit into the model."""
    pairs = [
        pair
        for pair in split_by_prompt([pair_of(row) for row in rows], share=HELD_OUT, seed=seed).held_out
        if pair.id not in stage.failed
    ]
    replies = [(pair.prompt, reply) for pair in pairs for reply in (pair.chosen, pair.rejected)]
    scores = PreferenceModel.load(model).raw_score(replies)
    cases: list[Case] = []
    for pair, better, worse in zip(pairs, scores[::2], scores[1::2], strict=True):
        shorter = len(pair.chosen) - len(pair.rejected)
        right = dict(zip(NAMES, (better > worse, shorter < 0, shorter > 0), strict=True))
        cases.append(Case(pair.group, right))
    return cases


def accuracy(cases: Sequence[Case], name: str) -> Interval:
    return clustered_interval([case.right[name] for case in cases], clusters=[case.opening for case in cases])


def lead(cases: Sequence[Case], baseline: str) -> Interval:
    """Accuracy of the preference model minus the baseline's, on the same comparisons; openings are drawn whole."""
    sums: dict[str, list[float]] = {}
    for case in cases:
        entry = sums.setdefault(case.opening, [0.0, 0.0])
        entry[0] += case.right[NAMES[0]] - case.right[baseline]
        entry[1] += 1
    return bootstrap_interval(
        list(sums.values()), statistic=lambda drawn: float(drawn[:, 0].sum() / drawn[:, 1].sum()), seed=0
    )


def show(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def calibration(measured: Measured) -> str:
    """The calibration error before and after the temperature, which is fitted on the other half of the openings."""
    parts: list[str] = []
    for what, found in (("", measured.calibration_error), (" scaled", measured.calibration_error_scaled)):
        if found is not None:
            limits = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
            parts.append(f"calibration error{what} {limits} n={found.n}")
    return ", ".join([*parts, f"temperature {measured.temperature:.2f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default=SCRATCH, help="scratch, a folder to start from, or sandbox:base")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--limit", type=int, help="use the first rows only")
    parser.add_argument("--out", type=Path, default=Path("runs/preference-hh"))
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    began_s = time.monotonic()
    found = read_hh(options.file, limit=options.limit)
    rows = [{**row, "source": "human", "group": opening(row)} for row in found.rows]
    trainer = {
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": 16,
        "learning_rate": options.learning_rate,
        "weight_decay": 0.1,
    }
    cases: list[Case] = []
    for seed in options.seeds:
        folder = options.out / Path(options.model).name.replace(":", "-")
        stage, model = StageFolder(folder / f"seed-{seed}"), options.model
        if model == SCRATCH:
            model = str(folder / f"start-{seed}")
            make_scratch(Path(model), rows, seed=seed)
        config = Preference(start=model, labels="hard", holdout=HELD_OUT, trainer=trainer)
        result = train_preference(rows, model=model, stage=stage, config=config, run=RunContext(seed=seed))
        own = held_out_cases(rows, model=result.model, stage=StageFolder(stage.path), seed=seed)
        assert len(own) == result.counts["held_out_pairs"]
        cases += own
        print(f"seed {seed}: {dict(result.counts)}; {show(accuracy(own, NAMES[0]))} % right; ", end="")
        print(calibration(result.measured), flush=True)
    machine = f"{date.today()}; {os.cpu_count()} CPU cores ({platform.machine()}); {time.monotonic() - began_s:.0f} s"
    settings = f"{options.epochs:g} epochs, learning rate {options.learning_rate:g}, seeds {options.seeds}"
    openings = len({row["group"] for row in rows})
    print(f"\n{options.file.name}: {len(rows)} comparisons, {openings} openings, {len(found.refused)} rows refused")
    print(f"from {options.model}; {settings}; {machine}\n")
    print(f"| held-out accuracy, % (n = {len(cases)}) | 95 % interval | lead of the preference model |\n|---|---|---|")
    for name in NAMES:
        ahead = "" if name == NAMES[0] else show(lead(cases, name))
        print(f"| {name} | {show(accuracy(cases, name))} | {ahead} |")


if __name__ == "__main__":
    main()
