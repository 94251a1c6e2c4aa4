"""What a preference model learns from soft, hard, sampled and margin labels, where the true probabilities are known.

    python benchmarks/preference_labels.py --seeds 0 1 2 --jobs 2 --out runs/preference-labels

Replies are six words of sixteen; each word is worth a fixed number, a reply is worth their sum r, and the better one of
a pair is so with probability p = sigmoid(r_a - r_b) (mean |r_a - r_b| about 1.5). A random Llama of two layers is
trained on the pairs by `solon.preference.train_preference` and asked about others that it has not seen, q being its
probability. Without noise the labels are made of p itself; with noise, of sigmoid(r_a - r_b + N(0, 1)), as if the judge
were unsure of its scale: `soft` is that probability, `hard` its argmax, `sampled` a draw from it, `margin` a hard label
and a margin that follows from it. Measured always against the p without noise. Runs that exist are reused.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, NamedTuple, get_args

from solon.artifact import StageFolder, derive_seed
from solon.config import Preference
from solon.config.recipe import Labels
from solon.preference import PreferenceModel, pair_of, split_by_prompt, train_preference
from solon.stats import calibration_error, pooled_interval, sigmoid
from solon.training import RunContext, quiet

WORTH = {f"w{number}": 0.128 * (number - 7.5) for number in range(16)}
"""From -0.96 to 0.96."""
WORDS_PER_REPLY = 6
TARGET = 0.01
"""Of mean |q - p| and of the calibration error, for soft labels without noise."""
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' ' + eos_token + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


class Case(NamedTuple):
    """One model to train."""

    labels: Labels
    noise: bool
    seed: int
    num_train: int
    num_held_out: int
    epochs: float
    out: Path


class Found(NamedTuple):
    """What one model has learnt, on the held-out pairs."""

    gap: float
    """Mean |q - p|."""
    error: float
    """Expected calibration error of q against p."""
    num_right: int
    num_decisive: int
    temperature: float
    seconds: float


def worth(reply: str) -> float:
    return sum(WORTH[word] for word in reply.split())


def planted_rows(case: Case) -> list[dict[str, Any]]:
    """Pairs on prompts that all differ and mean nothing; the same for every kind of label."""
    draw = Random(derive_seed(case.seed, "pairs"))
    rows: list[dict[str, Any]] = []
    for number in range(case.num_train + case.num_held_out):
        a, b = (" ".join(draw.choices(list(WORTH), k=WORDS_PER_REPLY)) for _ in range(2))
        unsure = draw.gauss(0, 1)
        rows.append(
            {
                "id": f"{case.seed}-{number}",
                "prompt": [{"role": "user", "content": " ".join(f"{number:05}")}],
                "chosen": [{"role": "assistant", "content": a}],
                "rejected": [{"role": "assistant", "content": b}],
                "probability": float(sigmoid(worth(a) - worth(b) + (unsure if case.noise else 0))),
            }
        )
    return rows


def random_model(folder: Path, *, seed: int) -> Path:
    """A Llama with 64 dimensions and 2 layers that knows the words, and nothing about them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", "user", "assistant", *"0123456789", *WORTH]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **special)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def learn(case: Case) -> Found:
    """Train one model and ask it about the pairs that it has not seen."""
    began_s = time.monotonic()
    folder = case.out / f"{case.labels}-{'noise' if case.noise else 'exact'}-{case.seed}"
    start = folder / "start"
    if not (start / "tokenizer.json").exists():
        with quiet():
            random_model(start, seed=case.seed)
    share = case.num_held_out / (case.num_train + case.num_held_out)
    trainer = {
        "num_train_epochs": case.epochs,
        "per_device_train_batch_size": 32,
        "learning_rate": 2e-3,
        "warmup_steps": 20,
    }
    config = Preference(start="random", labels=case.labels, holdout=share, trainer=trainer)
    rows = planted_rows(case)
    stage = StageFolder(folder / "preference-model")
    result = train_preference(rows, model=start, stage=stage, config=config, run=RunContext(seed=case.seed))
    unseen = split_by_prompt([pair_of(row) for row in rows], share=share, seed=case.seed).held_out
    assert len(unseen) == result.counts["held_out_pairs"] == case.num_held_out
    scores = PreferenceModel.load(result.model, device="cpu").raw_score(
        [(pair.prompt, reply) for pair in unseen for reply in (pair.chosen, pair.rejected)]
    )
    leads = [a - b for a, b in zip(scores[::2], scores[1::2], strict=True)]
    true = [worth(pair.chosen) - worth(pair.rejected) for pair in unseen]
    q, p = sigmoid(leads), sigmoid(true)
    decisive = [(lead, t) for lead, t in zip(leads, true, strict=True) if abs(t) > 1e-9]
    return Found(
        gap=float(abs(q - p).mean()),
        error=calibration_error([*q, *(1 - q)], outcomes=[*p, *(1 - p)]),
        num_right=sum(lead * t > 0 for lead, t in decisive),
        num_decisive=len(decisive),
        temperature=result.measured.temperature,
        seconds=time.monotonic() - began_s,
    )


def spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def table(found: dict[tuple[bool, Labels], list[Found]], *, num_held_out: int) -> list[str]:
    """Markdown rows; mean, least and most over the seeds, but pooled over them with a 95 % interval for accuracy."""
    lines = ["| noise | labels | mean abs(q - p) | calibration error | n | accuracy | n | temperature |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for (noise, labels), runs in found.items():
        accuracy = pooled_interval([run.num_right for run in runs], totals=[run.num_decisive for run in runs])
        cells = [
            "N(0, 1)" if noise else "none",
            labels,
            spread([run.gap for run in runs]),
            spread([run.error for run in runs]),
            f"{len(runs)} x {num_held_out}",
            f"{accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]",
            str(accuracy.n),
            spread([run.temperature for run in runs]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=2000, help="to train on")
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on one core")
    parser.add_argument("--labels", nargs="+", choices=get_args(Labels), default=get_args(Labels))
    parser.add_argument("--out", type=Path, default=Path("runs/preference-labels"))
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    began_s = time.monotonic()
    kinds = list(product((False, True), options.labels))
    sizes = {"num_train": options.pairs, "num_held_out": options.held_out, "epochs": options.epochs}
    cases = [
        Case(labels=labels, noise=noise, seed=seed, out=options.out, **sizes)
        for (noise, labels), seed in product(kinds, options.seeds)
    ]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(learn, cases))
    per_kind = len(options.seeds)
    found = {kind: results[i * per_kind : (i + 1) * per_kind] for i, kind in enumerate(kinds)}
    each_s = fmean(result.seconds for result in results)
    print(f"{date.today()}; {os.cpu_count()} CPU cores ({platform.machine()}), {options.jobs} jobs of one core")
    print(
        f"{options.pairs} pairs, {options.epochs:g} epochs, seeds {options.seeds}; {time.monotonic() - began_s:.0f} s"
    )
    print(f"in all, {each_s:.0f} s each. In brackets: the seeds' least and most; for accuracy, the 95 % interval.\n")
    print("\n".join(table(found, num_held_out=options.held_out)))
    if (False, "soft") in found:
        soft = found[False, "soft"]
        gap, error = fmean(run.gap for run in soft), fmean(run.error for run in soft)
        met = "met" if max(gap, error) <= TARGET else "missed"
        print(f"\nTarget for soft labels without noise, both at most {TARGET}: {gap:.4f} and {error:.4f}: {met}")


if __name__ == "__main__":
    main()
