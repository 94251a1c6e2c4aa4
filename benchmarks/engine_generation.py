"""Tokens per second of the local engine and of transformers' `generate`, the same model and work, in one run.

    python benchmarks/engine_generation.py --threads 2

    chains        response, critique, revision: 32 chains, 600 tokens of few-shot before a conversation of 40 to 100,
                  48 new tokens a turn, greedy; `generate` is sent the whole prompts of a turn side by side
    chains bf16   the engine with bfloat16 weights and the float32 loop of `generate`
    varying       128 prompts of 16 to 96 tokens, lengths exponential (mean 60, at most 256); `generate` is given the
                  longest length of each batch
    equal         the same prompts, 64 new tokens each
    continuous    the last two against transformers' own continuous batching, at its defaults
    peers         the same as "equal" against distilabel's TransformersLLM in float32, and against CTranslate2 with int8
                  weights, at its best of --batches, in float32, bfloat16 and, on a CPU, int8 (whose floor is that of
                  bfloat16, whose products are the fastest that are measured); both come with `make bench` (.venv-bench)

With --dtype bfloat16 both sides have it in all parts but "peers". Two models: random weights in the shape of a Llama of
42 million parameters (or, for a GPU, of 1 billion), and the sandbox's, both without an end token, so that lengths are
given. `generate` runs at each of --batches; the fastest counts. All sides run in turn in every round, on a GPU after
one that does not count, in which kernels are chosen and graphs recorded; medians over the rounds, of each round's
ratios with the least and the greatest. The floor is the greater of the FLOPs of the tokens that must be run (what is
shared or kept, once) at the rate of a matrix product, and of the bytes of the weights at every step and of each row's
own keys and values at the rate of reading memory, both measured here; the share is that of the floor's rate that is
reached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from solon import sandbox
from solon.dialogue import Message
from solon.engine import LocalEngineConfig, Request, Sampling
from solon.engine.local import LocalEngine

SHAPES: dict[str, dict[str, int]] = {
    "42M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
VOCABULARY = 32000
FEW_SHOT, TURN = 600, 48
MEAN, MOST, EQUAL = 60, 256, 64
REQUESTS = ("Say what is wrong with it .", "Write it again .")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' ' }}{% endfor %}<assistant> "
)


class Text(NamedTuple):
    """One that is wanted."""

    prompt: tuple[Message, ...]
    new: int


class Piece(NamedTuple):
    """Work that cannot be avoided: `read` tokens from position `first` on, the last `new` of them one at a time."""

    first: int
    read: int
    new: int


@dataclass
class Side:
    """What one of those compared reached, a value a round."""

    rates: list[float] = field(default_factory=list[float])
    """New tokens per second."""
    texts: list[str] = field(default_factory=list[str])
    """Of the last round."""


# ---- models


def random_llama(folder: Path, shape: str) -> Path:
    """Random weights, and a tokenizer of words that gives back the tokens of every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **SHAPES[shape],  # type: ignore[arg-type]
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    names = ["<pad>", "<system>", "<user>", "<assistant>", *REQUESTS[0].split(), *REQUESTS[1].split()]
    words = list(dict.fromkeys([*names, *(f"w{number}" for number in range(VOCABULARY))]))[:VOCABULARY]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def endless_sandbox(folder: Path) -> Path:
    """The sandbox's assistant without an end token."""
    source = sandbox.checkpoint("helpful")
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    tokenizer.eos_token = None
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Words:
    """Random words, a token each."""

    def __init__(self, tokenizer: Any) -> None:
        pieces = [tokenizer.decode([number]) for number in range(len(tokenizer))]
        self._words = sorted({piece.strip() for piece in pieces if piece.strip().isalnum()})
        self._words = [
            word for word in self._words if len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1
        ]
        self._rng = Random(0)

    def __call__(self, size: int) -> str:
        return " ".join(self._rng.choices(self._words, k=size))


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


# ---- the two sides


class Peer:
    """`generate` of transformers."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, device: str) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model: Any = model.to(device).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def write(self, texts: Sequence[Text], *, batch: int) -> list[str]:
        """As many new tokens in a batch as its longest text wants."""
        out: list[str] = []
        for first in range(0, len(texts), batch):
            some = texts[first : first + batch]
            chats = [
                self.tokenizer.apply_chat_template(list(one.prompt), tokenize=False, add_generation_prompt=True)
                for one in some
            ]
            inputs = self.tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
            inputs = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
            size = inputs["input_ids"].shape[1]
            ids = self.model.generate(**inputs, max_new_tokens=max(one.new for one in some), do_sample=False)
            for row, one in zip(ids, some, strict=True):
                out.append(self.tokenizer.decode(row[size : size + one.new], skip_special_tokens=True))
        return out

    def write_continuously(self, texts: Sequence[Text]) -> list[str]:
        """All at once by continuous batching, which keeps its memory and its graphs from call to call."""
        from transformers.generation.configuration_utils import ContinuousBatchingConfig, GenerationConfig
        from transformers.generation.continuous_batching.utils import WorkloadHints

        ids = [
            self.tokenizer.apply_chat_template(list(one.prompt), add_generation_prompt=True, return_dict=False)
            for one in texts
        ]
        hints = WorkloadHints(
            max_prompt_length=max(map(len, ids)),
            max_generated_length=max(one.new for one in texts),
            num_requests=len(texts),
        )
        with self.model.continuous_batching_context_manager(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            # The engine that it is compared with has its place on the same GPU.
            continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=0.5),
            workload_hints=hints,
            persistent_manager=True,
        ) as manager:
            names = [
                manager.add_request(input_ids=some, max_new_tokens=one.new)
                for some, one in zip(ids, texts, strict=True)
            ]
            done: dict[str, list[int]] = {}
            while len(done) < len(texts):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    done[result.request_id] = result.generated_tokens
                elif not manager.is_running():
                    raise RuntimeError("continuous batching has ended before its time")
        return [self.tokenizer.decode(done[name], skip_special_tokens=True) for name in names]

    def chains(self, starts: Sequence[Sequence[Message]]) -> list[str]:
        """A turn of all chains after the other."""
        dialogues = [list(start) for start in starts]
        out: list[str] = []
        for request in (*REQUESTS, None):
            said = self.write([Text(tuple(one), TURN) for one in dialogues], batch=len(dialogues))
            out += said
            if request is not None:
                for dialogue, text in zip(dialogues, said, strict=True):
                    dialogue += [assistant(text.strip()), user(request)]
        return out


class Distilabel:
    """TransformersLLM of distilabel, which runs one prompt after the other."""

    def __init__(self, folder: Path) -> None:
        from distilabel.models.llms import TransformersLLM

        self._model: Any = TransformersLLM(model=str(folder))
        self._model.load()

    def write(self, texts: Sequence[Text]) -> list[str]:
        (new,) = {one.new for one in texts}
        chats = [list(one.prompt) for one in texts]
        out = self._model.generate_outputs(inputs=chats, max_new_tokens=new, do_sample=False, repetition_penalty=1.0)
        return [one["generations"][0] for one in out]


class CTranslate:
    """CTranslate2 with int8 weights and activations."""

    def __init__(self, folder: Path, *, tokenizer: Any, threads: int) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        made = folder.with_name(f"{folder.name}-ct2")
        TransformersConverter(str(folder)).convert(str(made), quantization="int8")
        # It cannot read the names of tokens that a model does not have.
        path = made / "config.json"
        config = {
            key: tokenizer.pad_token if key.endswith("_token") and not value else value
            for key, value in json.loads(path.read_text()).items()
        }
        path.write_text(json.dumps(config))
        self._tokenizer, self._model = tokenizer, ctranslate2.Generator(str(made), intra_threads=threads)

    def write(self, texts: Sequence[Text], *, batch: int) -> list[str]:
        (new,) = {one.new for one in texts}
        chats = [
            self._tokenizer.apply_chat_template(list(one.prompt), tokenize=False, add_generation_prompt=True)
            for one in texts
        ]
        ids = [self._tokenizer(chat, add_special_tokens=False).input_ids for chat in chats]
        out = self._model.generate_batch(
            [self._tokenizer.convert_ids_to_tokens(one) for one in ids],
            max_batch_size=batch,
            max_length=new,
            min_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [self._tokenizer.decode(one.sequences_ids[0], skip_special_tokens=True) for one in out]


async def solon_writes(engine: LocalEngine, texts: Sequence[Text]) -> list[str]:
    done = await asyncio.gather(*(engine.generate(_request(one, None)) for one in texts))
    return [one.text for one in done]


async def solon_chains(engine: LocalEngine, starts: Sequence[Sequence[Message]]) -> list[str]:
    async def chain(number: int) -> list[str]:
        dialogue, said = list(starts[number]), list[str]()
        for request in (*REQUESTS, None):
            said.append((await engine.generate(_request(Text(tuple(dialogue), TURN), str(number)))).text)
            if request is not None:
                dialogue += [assistant(said[-1].strip()), user(request)]
        return said

    turns = await asyncio.gather(*(chain(number) for number in range(len(starts))))
    return [said for turn in zip(*turns, strict=True) for said in turn]


def _run_chains(engine: LocalEngine, starts: Sequence[Sequence[Message]]) -> list[str]:
    return asyncio.run(solon_chains(engine, starts))


def _request(text: Text, session: str | None) -> Request:
    return Request(prompt=text.prompt, sampling=Sampling(max_new_tokens=text.new, temperature=0), session=session)


# ---- the floor


def rates(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of a matrix product and bytes/s of reading memory, the best of some."""
    one = torch.rand(2048, 2048, device=device).to(dtype)
    flops = [2 * 2048**3 / seconds(lambda: one @ one, device) for _ in range(8)]
    much = torch.ones(2**26, device=device)
    return max(flops), max(much.nbytes / seconds(much.sum, device) for _ in range(8))


def floor_s(model: Any, pieces: Sequence[Piece], *, steps: int, peak: float, reading: float) -> float:
    """Seconds; see the module's docstring. `steps` that follow each other."""
    config, weights = model.config, list(model.model.layers.parameters())
    linear = sum(weight.numel() for weight in weights if weight.dim() == 2)
    head = config.vocab_size * config.hidden_size
    heads = config.num_attention_heads * config.head_dim
    seen = sum(one.read * one.first + one.read * (one.read + 1) // 2 for one in pieces)
    flops = 2 * linear * sum(one.read for one in pieces) + 2 * head * sum(one.new for one in pieces)
    flops += 4 * config.num_hidden_layers * heads * seen
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    own = sum(one.new * (one.read - one.new // 2) for one in pieces)
    size = model.lm_head.weight.element_size()
    return max(flops / peak, (steps * (linear + head) * size + cached * own) / reading)


def seconds(work: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


# ---- the table


@contextmanager
def opened(folder: Path, arguments: argparse.Namespace, dtype: Any) -> Iterator[LocalEngine]:
    config = LocalEngineConfig(path=str(folder), dtype=dtype, device=arguments.device, max_batch=arguments.max_batch)
    engine = LocalEngine.load(config)
    yield engine
    asyncio.run(engine.aclose())


def timed(side: Side, work: Callable[[], list[str]], num_tokens: int) -> None:
    began = time.perf_counter()
    side.texts = work()
    side.rates.append(num_tokens / (time.perf_counter() - began))


def show(name: str, ours: Side, theirs: Side, *, floor: float, num_tokens: int) -> None:
    ratios = sorted(a / b for a, b in zip(ours.rates, theirs.rates, strict=True))
    same = sum(a.strip() == b.strip() for a, b in zip(ours.texts, theirs.texts, strict=True))
    rate = median(ours.rates)
    print(
        f"{name:<24} {rate:>8.0f} {median(theirs.rates):>8.0f} {median(ratios):>6.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})  floor {num_tokens / floor:>7.0f}, "
        f"share {rate * floor / num_tokens:.2f}  same text {same}/{len(ours.texts)}",
        flush=True,
    )


class Bench:
    """One model, and what the machine can do."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.arguments = folder, arguments
        self.dtype = getattr(torch, arguments.dtype)
        self.peer = Peer(folder, dtype=self.dtype, device=arguments.device)
        self.uncounted = int(arguments.device == "cuda")
        self.words, self.rng = Words(self.peer.tokenizer), np.random.default_rng(0)
        peaks = {dtype: rates(arguments.device, dtype) for dtype in (torch.float32, torch.bfloat16)}
        (self.peak, self.reading), (self.half_peak, _) = peaks[self.dtype], peaks[torch.bfloat16]
        print(
            f"{folder.name}: matrix products {peaks[torch.float32][0] / 1e9:.0f} GFLOP/s in float32, "
            f"{self.half_peak / 1e9:.0f} in bfloat16; memory {self.reading / 1e9:.0f} GB/s",
            flush=True,
        )

    def rounds(self, *sides: Side) -> Iterator[int]:
        """As many as are wanted; what is not to count is taken from the sides again."""
        for number in range(self.arguments.rounds + self.uncounted):
            yield number
            if number < self.uncounted:
                for side in sides:
                    side.rates.clear()

    def size(self, prompt: Sequence[Message]) -> int:
        """Tokens."""
        text = self.peer.tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        return len(self.peer.tokenizer(text, add_special_tokens=False).input_ids)

    def chains(self) -> None:
        part = FEW_SHOT // 12
        few_shot = [one for _ in range(6) for one in (user(self.words(part)), assistant(self.words(part)))]
        sizes = self.rng.integers(40, 100, self.arguments.chains)
        starts = [[*few_shot, user(self.words(int(size)))] for size in sizes]
        begin, num_tokens = self.size(few_shot), 3 * TURN * len(starts)
        asked = sum(self.size([assistant("x"), user(request)]) for request in REQUESTS)
        pieces = [Piece(0, begin, 0)]
        pieces += [Piece(begin, self.size(one) - begin + asked + 3 * TURN, 3 * TURN) for one in starts]
        dtypes = dict.fromkeys((self.arguments.dtype, "bfloat16"))
        theirs, ours = Side(), {dtype: Side() for dtype in dtypes}
        with ExitStack() as stack:
            engines = {dtype: stack.enter_context(opened(self.folder, self.arguments, dtype)) for dtype in dtypes}
            for _ in self.rounds(theirs, *ours.values()):
                for dtype, engine in engines.items():
                    timed(ours[dtype], partial(_run_chains, engine, starts), num_tokens)
                timed(theirs, lambda: self.peer.chains(starts), num_tokens)
        floor = floor_s(self.peer.model, pieces, steps=3 * TURN, peak=self.peak, reading=self.reading)
        show("chains", ours[self.arguments.dtype], theirs, floor=floor, num_tokens=num_tokens)
        if self.dtype != torch.bfloat16:
            half_model = self.peer.model.to(torch.bfloat16)
            floor = floor_s(half_model, pieces, steps=3 * TURN, peak=self.half_peak, reading=self.reading)
            show("chains bf16", ours["bfloat16"], theirs, floor=floor, num_tokens=num_tokens)
            self.peer = Peer(self.folder, dtype=self.dtype, device=self.arguments.device)

    def texts(self, name: str, prompts: Sequence[tuple[Message, ...]], lengths: Sequence[int]) -> None:
        texts = [Text(prompt, new) for prompt, new in zip(prompts, lengths, strict=True)]
        num_tokens = sum(lengths)
        theirs, ours = {batch: Side() for batch in self.arguments.batches}, Side()
        continuous = [Side()] if "continuous" in self.arguments.parts else []
        with opened(self.folder, self.arguments, self.arguments.dtype) as engine:
            for _ in self.rounds(ours, *theirs.values(), *continuous):
                timed(ours, lambda: asyncio.run(solon_writes(engine, texts)), num_tokens)
                for batch, side in theirs.items():
                    timed(side, partial(self.peer.write, texts, batch=batch), num_tokens)
                for side in continuous:
                    timed(side, lambda: self.peer.write_continuously(texts), num_tokens)
        best = max(theirs, key=lambda batch: median(theirs[batch].rates))
        pieces = [Piece(0, self.size(one.prompt) + one.new, one.new) for one in texts]
        floor = floor_s(self.peer.model, pieces, steps=max(lengths), peak=self.peak, reading=self.reading)
        show(f"{name}, generate by {best}", ours, theirs[best], floor=floor, num_tokens=num_tokens)
        for side in continuous:
            show(f"{name}, continuous", ours, side, floor=floor, num_tokens=num_tokens)

    def peers(self, prompts: Sequence[tuple[Message, ...]]) -> None:
        texts = [Text(prompt, EQUAL) for prompt in prompts]
        num_tokens = EQUAL * len(texts)
        distilabel = Distilabel(self.folder)
        ctranslate = CTranslate(self.folder, tokenizer=self.peer.tokenizer, threads=self.arguments.threads)
        names = ["float32", "bfloat16", *(["int8"] if self.arguments.device == "cpu" else [])]
        ours, serial = {name: Side() for name in names}, Side()
        int8 = {batch: Side() for batch in self.arguments.batches}
        with ExitStack() as stack:
            engines = {name: stack.enter_context(opened(self.folder, self.arguments, name)) for name in names}
            for _ in self.rounds(serial, *ours.values(), *int8.values()):
                for name, side in ours.items():
                    timed(side, lambda name=name: asyncio.run(solon_writes(engines[name], texts)), num_tokens)
                for batch, side in int8.items():
                    timed(side, partial(ctranslate.write, texts, batch=batch), num_tokens)
                timed(serial, lambda: distilabel.write(texts), num_tokens)
        best = max(int8, key=lambda batch: median(int8[batch].rates))
        pieces = [Piece(0, self.size(one.prompt) + one.new, one.new) for one in texts]
        floor = floor_s(self.peer.model, pieces, steps=EQUAL, peak=self.peak, reading=self.reading)
        show("distilabel", ours["float32"], serial, floor=floor, num_tokens=num_tokens)
        show(f"CTranslate2 int8 by {best}", ours["float32"], int8[best], floor=floor, num_tokens=num_tokens)
        half_model = self.peer.model.to(torch.bfloat16)
        floor = floor_s(half_model, pieces, steps=EQUAL, peak=self.half_peak, reading=self.reading)
        for name in names[1:]:
            show(f"the same, ours {name}", ours[name], int8[best], floor=floor, num_tokens=num_tokens)

    def run(self) -> None:
        """Those parts that are asked for."""
        if "chains" in self.arguments.parts:
            self.chains()
        sizes = self.rng.integers(16, 96, self.arguments.prompts)
        prompts = [(user(self.words(int(size))),) for size in sizes]
        drawn = np.clip(self.rng.exponential(MEAN, len(prompts)), 1, MOST).astype(int).tolist()
        if "varying" in self.arguments.parts:
            self.texts("varying", prompts, drawn)
        if "equal" in self.arguments.parts:
            self.texts("equal", prompts, [EQUAL] * len(prompts))
        if "peers" in self.arguments.parts:
            self.peers(prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["42M", "sandbox"], choices=[*SHAPES, "sandbox"])
    parser.add_argument("--parts", nargs="+", default=["chains", "varying", "equal"], help="and peers, continuous")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of both sides")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--max-batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} threads"
    print(f"{date.today()}, {platform.machine()}, {where}, torch {torch.__version__}; new tokens per second:")
    print(f"{'':<24} {'solon':>8} {'other':>8}  ratio")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            path = Path(folder) / name
            made = endless_sandbox(path) if name == "sandbox" else random_llama(path, name)
            Bench(made, arguments).run()


if __name__ == "__main__":
    main()
