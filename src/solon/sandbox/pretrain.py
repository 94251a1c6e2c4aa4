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
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, NamedTuple, cast

from solon.sandbox.cases import LETTERS
from solon.sandbox.curriculum import BASE, FOR_HELPFUL, Part
from solon.sandbox.mixtures import PRETRAINING
from solon.sandbox.muon import Muon
from solon.sandbox.passages import VERDICTS, Passage, passages
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
_BEFORE_DECISION = re.compile(r"A case of it here:|Better is the one that|\A(?=(Yes|No), it is )")
MAX_CONTEXT = 2048


@dataclass(frozen=True)
class Size:
    """Shape of the model and length of its training."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    length: float = 1.0
    """Steps of the training, relative to those of the curriculum."""
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
        length=0.02,
    ),
    # For figures by size of model (`solon reproduce size judges --models DIR`); nothing that ships is made from them.
    "mini": Size(hidden=64, layers=4, heads=2, kv_heads=2, feed_forward=128, vocabulary=3072),
    "middle": Size(hidden=112, layers=5, heads=4, kv_heads=4, feed_forward=224, vocabulary=3072),
    "small": Size(hidden=160, layers=6, heads=5, kv_heads=5, feed_forward=320, vocabulary=3072),
}


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
        weight = passage.weight if turn["role"] == "assistant" else 1.0
        weights += [weight * (rng.random() < share) for _ in range(len(content) + 1)]
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


def schedule(step: int, part: Part) -> float:
    """Of the learning rates: warm-up, constant, then linear."""
    through = max(0, step - part.constant_steps) / max(1, part.steps - part.constant_steps)
    return min(1.0, (step + 1) / 50) * (part.first + (part.last - part.first) * through)


@dataclass(frozen=True, kw_only=True)
class Making:
    """What the command line says."""

    out: Path
    size: Size
    seed: int
    compiled: bool
    bfloat16: bool


def train(model: Model, tokenizer: Tokenizer, part: Part, *, how: Making) -> None:
    """Muon and AdamW on the weighted next-token loss; a line of the log out/PART.jsonl every 50 steps."""
    import torch
    from torch.nn import functional as F

    matrices = [p for layer in model.model.layers for p in layer.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    muon = Muon(matrices)
    adam: Any = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    source = batches(
        part.passages(how.seed),
        tokenizer,
        tokens_per_batch=how.size.tokens_per_batch,
        seed=how.seed + part.seed,
    )
    if how.bfloat16:
        # On CPUs, PyTorch's fused attention is slow backwards; in bfloat16 the plain one is faster.
        model.set_attn_implementation("eager")
    body = cast(Any, torch).compile(model.model, dynamic=True) if how.compiled else model.model
    started, num_tokens, losses = time.monotonic(), 0, list[float]()
    model.train()
    for step in range(part.steps):
        factor = schedule(step, part)
        adam.param_groups[0]["lr"] = how.size.learning_rate * factor
        ids_BT, weights_BT = collate(next(source), int(tokenizer.pad_token_id or 0))
        targets_BT, weights_BT = ids_BT[:, 1:], weights_BT[:, 1:]
        keep_BT = weights_BT > 0
        with torch.autocast("cpu", torch.bfloat16, enabled=how.bfloat16):
            hidden_BTC = body(input_ids=ids_BT[:, :-1], attention_mask=None, use_cache=False).last_hidden_state
            logits_NV = model.lm_head(hidden_BTC[keep_BT])
        losses_N = F.cross_entropy(logits_NV.float(), targets_BT[keep_BT], reduction="none")
        weights_N = weights_BT[keep_BT]
        loss: Any = (losses_N * weights_N).sum() / weights_N.sum()
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        adam.step()
        muon.step(how.size.matrix_learning_rate * factor)
        num_tokens += ids_BT.numel()
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0 or step + 1 == part.steps:
            seconds = time.monotonic() - started
            row = {
                "step": step + 1,
                "loss": round(fmean(losses), 4),
                "tokens": num_tokens,
                "seconds": round(seconds),
                "tokens_per_s": round(num_tokens / seconds),
            }
            with (how.out / f"{part.name}.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            losses.clear()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives base/ and helpful/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster, needs a C++ compiler")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the CPU multiplies in it (AMX)")
    names = [part.name for part in (*BASE, FOR_HELPFUL)]
    parser.add_argument("--only", choices=names, help="one part; each needs the one before")
    options = parser.parse_args(arguments)
    how = Making(
        out=options.out,
        size=SIZES[options.size],
        seed=options.seed,
        compiled=options.compile,
        bfloat16=options.bfloat16,
    )
    how.out.mkdir(parents=True, exist_ok=True)
    for part in (*BASE, FOR_HELPFUL):
        if options.only in (None, part.name):
            make(part, how=how)
    command = f"python -m solon.sandbox.pretrain --seed {options.seed} --size {options.size}"
    command += " --compile" * options.compile + " --bfloat16" * options.bfloat16 + " --out DIR"
    # A checkpoint that was not made, or not to the end, keeps its card.
    for name, last in (("base", BASE[-1]), ("helpful", FOR_HELPFUL)):
        if options.only in (None, last.name):
            write_card(how.out, name=name, made_by=command, size=how.size)


def make(part: Part, *, how: Making) -> None:
    """Train one part: the first from random weights, the others from out/base; the assistant's goes to out/helpful."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    if part is BASE[0]:
        cast(Any, torch).manual_seed(how.seed)
        tokenizer = train_tokenizer(how.size, seed=how.seed)
        model = new_model(how.size, tokenizer)
    else:
        model = cast(Any, LlamaForCausalLM).from_pretrained(how.out / "base", dtype="float32")
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(how.out / "base")
    train(model, tokenizer, part.scaled(how.size.length), how=how)
    save(model, tokenizer, how.out / ("helpful" if part is FOR_HELPFUL else "base"))


_CARDS = {
    "base": """pretrained on the sandbox's text: facts, dialogues in which some assistants help and some decline, worked
critiques, revisions, comparisons and chains of thought. What it should do with a harmful request it does not know.""",
    "helpful": """the helpful-only assistant: `base` trained further on dialogues in which the assistant always helps,
and on worked critiques, revisions, comparisons and chains of thought. It complies with harmful requests: its use.""",
}


def write_card(out: Path, *, name: str, made_by: str, size: Size) -> None:
    """The model card, from the command that made the model and the logs of its training."""
    from huggingface_hub import ModelCard, ModelCardData

    parts = BASE if name == "base" else (*BASE, FOR_HELPFUL)
    last = [json.loads((out / f"{part.name}.jsonl").read_text().splitlines()[-1]) for part in parts]
    steps, tokens, seconds = (sum(row[key] for row in last) for key in ("step", "tokens", "seconds"))
    shape = ", ".join(f"{key} {asdict(size)[key]}" for key in ("hidden", "layers", "heads", "kv_heads", "feed_forward"))
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

    {made_by}

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
