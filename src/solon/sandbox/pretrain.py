"""Make the two checkpoints of the sandbox: `base` (pretrained on its text) and `helpful` (the helpful-only assistant
made from it).

    python -m solon.sandbox.pretrain --out src/solon/sandbox/checkpoints --seed 0 --size small

Loss falls on all that assistants say and on a tenth of what users say, drawn at random: wordings of principles are
endless, and a small model should spend itself on what follows from them. A decision (a verdict, or whether a rule
speaks of a request) is one token among hundreds, so it weighs more.

Matrices are trained with Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), the rest with AdamW.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, NamedTuple, cast

from solon.sandbox.cases import LETTERS
from solon.sandbox.muon import Muon
from solon.sandbox.passages import (
    EVERYTHING,
    HELPFUL,
    JUDGING,
    LEANING,
    PRETRAINING,
    VERDICT,
    VERDICTS,
    Mixture,
    Passage,
    passages,
)
from solon.sandbox.world import world

Model = Any
"""A transformers LlamaForCausalLM; transformers and torch are half typed, so a strict check of them says nothing."""
Tokenizer = Any
"""A transformers PreTrainedTokenizerFast."""

PAD, BOS, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
CHAT_TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
USER_SHARE, DECISION_WEIGHT = 0.1, 6.0
_BEFORE_DECISION = re.compile(r", which is [a-z ]+\.(?= )|Better is the one that|\A(?=(Yes|No), it is )")
MAX_CONTEXT = 2048
AFTER_FIRST, AFTER_SECOND = 23 / 30, 23 / 30 * 12 / 27
"""Of the learning rates: where the first text ends and the second begins, and where that ends."""


@dataclass(frozen=True)
class Size:
    """Shape of the model and length of its training."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    steps: int
    """With the first text."""
    leaning_steps: int = 1500
    """With the second, which begins with verdicts that lean."""
    verdict_steps: int = 1200
    """With the third, which has the most verdicts."""
    everything_steps: int = 1000
    """With the last, which has a little of all."""
    leaning_passages: tuple[int, int, int] = (66_000, 11_000, 14_000)
    """How many passages that lean begin the first text, begin the second, and lean half as much after those."""
    verdict_passages: tuple[int, int] = (5_000, 12_500)
    """How many passages of the third text lean half as much, and how many of verdicts follow."""
    helpful_steps: int = 300
    tokens_per_batch: int = 4096
    matrix_learning_rate: float = 0.02
    """Muon's."""
    learning_rate: float = 3e-3
    """AdamW's."""


SIZES = {
    "tiny": Size(
        hidden=64,
        layers=2,
        heads=2,
        kv_heads=2,
        feed_forward=128,
        vocabulary=1024,
        steps=50,
        leaning_steps=20,
        verdict_steps=20,
        everything_steps=20,
        leaning_passages=(500, 200, 200),
        verdict_passages=(200, 200),
        helpful_steps=20,
    ),
    "small": Size(hidden=160, layers=6, heads=5, kv_heads=5, feed_forward=320, vocabulary=3072, steps=2700),
}


BASE_PARTS = ("pretrain", "lean", "verdict", "everything")
"""The parts of the training of `base`, each with a text and a log of its own."""


class Example(NamedTuple):
    """Token ids of one passage and the weight of each as a target."""

    ids: list[int]
    weights: list[float]


def train_tokenizer(size: Size, *, seed: int) -> Tokenizer:
    """A byte-level BPE trained on the sandbox's text; any UTF-8 text can be written in it."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Backend(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BOS, END, USER, ASSISTANT, SYSTEM]
    trainer: Any = cast(Any, trainers.BpeTrainer)(
        vocab_size=size.vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    here = world()
    stream = islice(passages(here, here.activities, seed=seed, mixture=PRETRAINING), 20_000)
    tokenizer.train_from_iterator((turn["content"] for passage in stream for turn in passage.messages), trainer)
    fast: Tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=MAX_CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(passage: Passage, tokenizer: Tokenizer, rng: Random) -> Example:
    """A passage as the chat template writes it, with weights."""
    backend = tokenizer.backend_tokenizer
    token = {name: backend.token_to_id(name) for name in (BOS, END, USER, ASSISTANT, SYSTEM)}
    ids, weights = [token[BOS]], [0.0]
    plain = len(passage.messages) == 1
    letters = {backend.token_to_id(letter) for letter in LETTERS}
    for turn in passage.messages:
        encoding = backend.encode(turn["content"], add_special_tokens=False)
        content = encoding.ids
        share = 1.0 if plain or turn["role"] == "assistant" else USER_SHARE
        if passage.judged_only and turn["role"] == "assistant" and "label" not in turn:
            share = 0.0
        if not plain:
            ids.append(token[f"<|{turn['role']}|>"])
            weights.append(0.0)
        ids += [*content, token[END]]
        weights += [float(rng.random() < share) for _ in range(len(content) + 1)]
        if turn["role"] != "assistant" or not share:
            continue
        if passage.kind in VERDICTS:
            # The last letter of a turn is its verdict.
            place = next(place for place in range(2, len(content) + 2) if ids[-place] in letters)
            weights[-place] = DECISION_WEIGHT
        for match in _BEFORE_DECISION.finditer(turn["content"]):
            place = next(place for place, (start, _) in enumerate(encoding.offsets) if start >= match.end())
            weights[place - len(content) - 1] = DECISION_WEIGHT
    return Example(ids, weights)


def batches(
    stream: Iterator[Passage], tokenizer: Tokenizer, *, tokens_per_batch: int, seed: int
) -> Iterator[list[Example]]:
    """Batches of passages of like length: whole passages, little padding, no text that leaks into the next."""
    rng = Random(seed)
    while True:
        pool = sorted(
            (encode(passage, tokenizer, rng) for passage in islice(stream, 1500)), key=lambda example: len(example.ids)
        )
        pool = [example for example in pool if len(example.ids) <= 1024]
        ready: list[list[Example]] = []
        start = 0
        while start < len(pool):
            end = start
            while end < len(pool) and (end - start + 1) * len(pool[end].ids) <= tokens_per_batch:
                end += 1
            ready.append(pool[start : max(end, start + 1)])
            start = max(end, start + 1)
        rng.shuffle(ready)
        yield from ready


def collate(batch: Sequence[Example], pad: int) -> tuple[Any, Any]:
    """ids_BT and weights_BT, padded on the right."""
    import torch

    width = max(len(example.ids) for example in batch)
    ids_BT = torch.full((len(batch), width), pad)
    weights_BT = torch.zeros(len(batch), width)
    for row, example in enumerate(batch):
        ids_BT[row, : len(example.ids)] = torch.tensor(example.ids)
        weights_BT[row, : len(example.ids)] = torch.tensor(example.weights)
    return ids_BT, weights_BT


def new_model(size: Size, tokenizer: Tokenizer) -> Model:
    """Random weights; tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            intermediate_size=size.feed_forward,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            max_position_embeddings=MAX_CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            attention_dropout=0.0,
        )
    )


def schedule(step: int, how: Training) -> float:
    """Warm-up, constant, then linear."""
    through = max(0, step - how.constant_steps) / max(1, how.steps - how.constant_steps)
    return min(1.0, (step + 1) / 50) * (how.first + (how.last - how.first) * through)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast, and where its log goes."""

    steps: int
    matrix_learning_rate: float
    learning_rate: float
    tokens_per_batch: int
    seed: int
    log: Path
    compiled: bool = False
    first: float = 1.0
    """Of the learning rates, where training begins, and where it ends."""
    last: float = 0.0
    constant_steps: int = 0
    """Before the rates change."""


def train(model: Model, tokenizer: Tokenizer, stream: Iterator[Passage], *, how: Training) -> None:
    """Muon and AdamW on the weighted next-token loss; a line of the log every 50 steps."""
    import torch
    from torch.nn import functional as F

    matrices = [p for layer in model.model.layers for p in layer.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    muon = Muon(matrices)
    adam: Any = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    source = batches(stream, tokenizer, tokens_per_batch=how.tokens_per_batch, seed=how.seed)
    body = cast(Any, torch).compile(model.model, dynamic=True) if how.compiled else model.model
    started, num_tokens, losses = time.monotonic(), 0, list[float]()
    model.train()
    for step in range(how.steps):
        factor = schedule(step, how)
        adam.param_groups[0]["lr"] = how.learning_rate * factor
        ids_BT, weights_BT = collate(next(source), int(tokenizer.pad_token_id or 0))
        hidden_BTC = body(input_ids=ids_BT[:, :-1], attention_mask=None, use_cache=False).last_hidden_state
        targets_BT, weights_BT = ids_BT[:, 1:], weights_BT[:, 1:]
        keep_BT = weights_BT > 0
        logits_NV = model.lm_head(hidden_BTC[keep_BT])
        losses_N = F.cross_entropy(logits_NV, targets_BT[keep_BT], reduction="none")
        weights_N = weights_BT[keep_BT]
        loss: Any = (losses_N * weights_N).sum() / weights_N.sum()
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        adam.step()
        muon.step(how.matrix_learning_rate * factor)
        num_tokens += ids_BT.numel()
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0 or step + 1 == how.steps:
            seconds = time.monotonic() - started
            row = {
                "step": step + 1,
                "loss": round(fmean(losses), 4),
                "tokens": num_tokens,
                "seconds": round(seconds),
                "tokens_per_s": round(num_tokens / seconds),
            }
            with how.log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            losses.clear()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives base/ and helpful/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster, needs a C++ compiler")
    parser.add_argument("--only", choices=(*BASE_PARTS, "helpful"), help="one part; each needs the one before")
    options = parser.parse_args(arguments)
    size, out, seed, only = SIZES[options.size], options.out, options.seed, options.only
    out.mkdir(parents=True, exist_ok=True)
    if only in (None, "pretrain"):
        pretrain(out, size=size, seed=seed, compiled=options.compile)
    if only in (None, "lean"):
        lean(out, size=size, seed=seed, compiled=options.compile)
    if only in (None, "verdict"):
        give_verdicts(out, size=size, seed=seed, compiled=options.compile)
    if only in (None, "everything"):
        recall_everything(out, size=size, seed=seed, compiled=options.compile)
    if only in (None, "helpful"):
        make_helpful(out, size=size, seed=seed)
    # A part that was not made keeps the card of the command that made it.
    parts = {"base": BASE_PARTS, "helpful": (*BASE_PARTS, "helpful")}
    made = {None: ("base", "helpful"), "everything": ("base",), "helpful": ("helpful",)}.get(only, ())
    command = f"python -m solon.sandbox.pretrain --seed {seed} --size {options.size}"
    command += " --compile" if options.compile else ""
    for name in made:
        commands = [f"{command} --only {part} --out DIR" for part in parts[name]] if only else [f"{command} --out DIR"]
        write_card(out, name=name, made_by=commands, size=size)


def pretrain(out: Path, *, size: Size, seed: int, compiled: bool) -> None:
    """Make out/base from random weights with the first text."""
    import torch

    cast(Any, torch).manual_seed(seed)
    tokenizer = train_tokenizer(size, seed=seed)
    model = new_model(size, tokenizer)
    how = _training(size, out / "pretrain.jsonl", steps=size.steps, seed=seed, compiled=compiled)
    how = replace(how, last=AFTER_FIRST, constant_steps=round(20 / 27 * size.steps))
    text = _text((replace(PRETRAINING, leaning=1.0), size.leaning_passages[0], seed + 1), (PRETRAINING, None, seed + 3))
    train(model, tokenizer, text, how=how)
    save(model, tokenizer, out / "base")


def lean(out: Path, *, size: Size, seed: int, compiled: bool) -> None:
    """Train out/base further with the second text."""
    how = _training(size, out / "lean.jsonl", steps=size.leaning_steps, seed=seed + 1, compiled=compiled)
    _, whole, half = size.leaning_passages
    text = _text((LEANING, whole, seed + 4), (replace(LEANING, leaning=0.5), half, seed + 5), (JUDGING, None, seed + 6))
    _further(out, text, how=replace(how, first=AFTER_FIRST, last=AFTER_SECOND), result="base")


def give_verdicts(out: Path, *, size: Size, seed: int, compiled: bool) -> None:
    """Train out/base further with the third text."""
    how = _training(size, out / "verdict.jsonl", steps=size.verdict_steps, seed=seed + 2, compiled=compiled)
    how = replace(how, first=0.5, constant_steps=round(7 / 12 * size.verdict_steps))
    half, whole = size.verdict_passages
    text = _text((replace(VERDICT, leaning=0.5), half, seed + 7), (VERDICT, whole, seed + 8), (JUDGING, None, seed + 9))
    _further(out, text, how=how, result="base")


def recall_everything(out: Path, *, size: Size, seed: int, compiled: bool) -> None:
    """Train out/base further with the last text."""
    how = _training(size, out / "everything.jsonl", steps=size.everything_steps, seed=seed + 3, compiled=compiled)
    how = replace(how, first=0.4, constant_steps=round(0.3 * size.everything_steps))
    _further(out, _text((EVERYTHING, None, seed + 10)), how=how, result="base")


def make_helpful(out: Path, *, size: Size, seed: int) -> None:
    """The helpful-only assistant: the base model trained further on dialogues in which the assistant always helps."""
    how = _training(size, out / "helpful.jsonl", steps=size.helpful_steps, seed=seed, compiled=False)
    # A fifth of the rates: constant for two fifths of the steps, then down to nothing.
    how = replace(how, first=0.2, constant_steps=round(0.4 * size.helpful_steps))
    _further(out, _text((HELPFUL, None, seed + 2)), how=how, result="helpful")


def _training(size: Size, log: Path, *, steps: int, seed: int, compiled: bool) -> Training:
    return Training(
        steps=steps,
        matrix_learning_rate=size.matrix_learning_rate,
        learning_rate=size.learning_rate,
        tokens_per_batch=size.tokens_per_batch,
        seed=seed,
        log=log,
        compiled=compiled,
    )


def _text(*parts: tuple[Mixture, int | None, int]) -> Iterator[Passage]:
    """One text after the other: what it is made of, how many passages (None: no end), and its seed."""
    here = world()
    return chain.from_iterable(
        islice(passages(here, here.activities, seed=seed, mixture=mixture), num) for mixture, num, seed in parts
    )


def _further(out: Path, text: Iterator[Passage], *, how: Training, result: str) -> None:
    """Train out/base on a text and save it as out/`result`."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = cast(Any, LlamaForCausalLM).from_pretrained(out / "base", dtype="float32")
    tokenizer = cast(Any, AutoTokenizer).from_pretrained(out / "base")
    train(model, tokenizer, text, how=how)
    save(model, tokenizer, out / result)


_CARDS = {
    "base": """pretrained on the sandbox's text: facts, dialogues in which some assistants help and some decline, worked
critiques, revisions, comparisons and chains of thought. What it should do with a harmful request it does not know.""",
    "helpful": """the helpful-only assistant: `base` trained further on dialogues in which the assistant always helps,
and on worked critiques, revisions, comparisons and chains of thought. It complies with harmful requests: its use.""",
}


def write_card(out: Path, *, name: str, made_by: Sequence[str], size: Size) -> None:
    """The model card, from the commands that made the model and the logs of its training."""
    from huggingface_hub import ModelCard, ModelCardData

    parts = BASE_PARTS if name == "base" else (*BASE_PARTS, "helpful")
    last = [json.loads((out / f"{part}.jsonl").read_text().splitlines()[-1]) for part in parts]
    steps, tokens, seconds = (sum(row[key] for row in last) for key in ("step", "tokens", "seconds"))
    shape = ", ".join(f"{key} {asdict(size)[key]}" for key in ("hidden", "layers", "heads", "kv_heads", "feed_forward"))
    commands = "\n".join(f"    {line}" for line in made_by)
    data = ModelCardData(license="apache-2.0", language="en", tags=["solon", "sandbox"], library_name="transformers")
    header = cast(Any, data).to_yaml()
    ModelCard(
        f"""---
{header}
---
# solon sandbox: {name}

A toy: {_CARDS[name]}
It knows the closed world of `solon.sandbox` and nothing else, and is of no use outside of tests and demos.

Made by

{commands}

which trained it for {steps} steps on {tokens:,} tokens in {seconds / 60:.0f} minutes on a CPU.
Architecture: Llama, {shape}, context {MAX_CONTEXT}.
Weights are float16; load them as float32. What it can do: `python -m solon.sandbox.skills sandbox:{name}`.
"""
    ).save(out / name / "README.md")


def save(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Half precision: the weights ship with the package, and are loaded as float32."""
    import torch

    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.to(torch.float32)


if __name__ == "__main__":
    main()
