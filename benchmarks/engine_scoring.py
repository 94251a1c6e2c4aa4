"""A judge's comparisons per second: solon's local engine and lm-evaluation-harness, one model, in one run.

    make bench      # or: .venv-bench/bin/python benchmarks/engine_scoring.py

A pair of answers under 16 principles in both orders, 32 comparisons: 600 tokens of few-shot, 100 of conversation, 40
a principle, 80 an answer, all of them words drawn at random; the options " (A)" and " (B)". Every round has another
pair, with the few-shot and the principles of those before, as the rows of a run have. Two models in float32: random
weights in the shape of a Llama of 42 million parameters, and the sandbox's. In every round each of these does its part,
so that all meet the same load of the machine:

    solon             `choose` of all 32 comparisons, the paper's layout
    principle last    the same with `layout: principle-last`
    lm-eval           HFLM.loglikelihood of the same options, the paper's layout, batches of 1 (its fastest on a CPU)
    lm-eval, 1 token  the same with the options "A" and "B" after " (", where it runs a question once for both
    peak              float32 products of square matrices

Each round asks lm-eval about a share of the comparisons, other ones each time, because it takes a second or more for
one. Printed: comparisons per second of wall clock and of processor time (which other work on the machine disturbs
less), medians over the rounds; the medians of each round's ratios with the least and the greatest; the greatest
difference of log-odds; and the floor, that is the FLOPs of the tokens that must be run (a beginning once, and not what
the round before began with, too) at the peak, and the share of it that is reached.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from solon import sandbox
from solon.config import Layout
from solon.dialogue import Message
from solon.engine import ChoiceRequest, LocalEngineConfig
from solon.engine.local import LocalEngine
from solon.engine.rendering import transcript_prompt
from solon.engine.sharing import common_length
from solon.engine.trie import Continuation, build_trie
from solon.feedback import OPTIONS, WorkedComparison, answer_start, comparison_prompt

NUM_PRINCIPLES = 16
LAYOUTS: tuple[Layout, ...] = ("paper", "principle-last")
PEAK_SIZE = 2048


class Spent(NamedTuple):
    """Seconds."""

    wall_s: float
    processor_s: float


@dataclass
class Rates:
    """Work per second, a value a round."""

    wall: list[float] = field(default_factory=list[float])
    processor: list[float] = field(default_factory=list[float])

    def add(self, work: float, spent: Spent) -> None:
        self.wall.append(work / spent.wall_s)
        self.processor.append(work / spent.processor_s)


class Text:
    """Random words with a given number of tokens, each a token of the vocabulary."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        pieces = [tokenizer.decode([id]) for id in range(len(tokenizer))]
        self._words = sorted({piece for piece in pieces if piece[:1] == " " and piece[1:].isalpha() and len(piece) > 3})
        self._rng = Random(seed)

    def __call__(self, num_tokens: int) -> str:
        return "".join(self._rng.choice(self._words) for _ in range(num_tokens)).strip()


def asker(text: Text) -> Callable[[], dict[Layout, list[ChoiceRequest]]]:
    """Gives the 32 comparisons of another pair in each layout."""

    def asking(num_tokens: int) -> list[Message]:
        return [{"role": "user", "content": text(num_tokens)}]

    worked = [
        WorkedComparison(conversation=asking(36), a=text(36), b=text(36), question=text(38), answer=OPTIONS[number % 2])
        for number in range(3)
    ]
    principles = [text(40) for _ in range(NUM_PRINCIPLES)]

    def ask() -> dict[Layout, list[ChoiceRequest]]:
        conversation, a, b = asking(100), text(80), text(80)
        return {
            layout: [
                ChoiceRequest(
                    prompt=tuple(comparison_prompt(conversation, one, other, principle, worked, layout=layout)),
                    options=OPTIONS,
                    prefix=answer_start(),
                )
                for principle in principles
                for one, other in ((a, b), (b, a))
            ]
            for layout in LAYOUTS
        }

    return ask


def one_token(requests: Sequence[ChoiceRequest]) -> list[ChoiceRequest]:
    """The same questions with options of one token."""
    return [ChoiceRequest(prompt=one.prompt, options=("A", "B"), prefix=f"{one.prefix} (") for one in requests]


def rendered(request: ChoiceRequest) -> str:
    return transcript_prompt(request.prompt, request.prefix).text


def num_flops(model: Any, tokenizer: Any, requests: Sequence[ChoiceRequest], *, before: ChoiceRequest) -> float:
    """Of the matrix products that cannot be avoided: every beginning once, but not that which `before` had, too, and
    the logits that are asked for."""
    asked: list[Continuation] = []
    for request in requests:
        start = len(tokenizer(rendered(request)).input_ids)
        asked += [Continuation(tuple(tokenizer(rendered(request) + one).input_ids), start) for one in request.options]
    trie, config = build_trie(asked, range(len(asked))), model.config
    known = common_length(trie.ids, tokenizer(rendered(before)).input_ids)
    linear = sum(weight.numel() for name, weight in model.model.layers.named_parameters() if weight.dim() == 2)
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    logits = len({one.node for one in trie.wanted})
    return (
        2 * linear * len(trie.ids[known:])
        + attention * sum(depth + 1 for depth in trie.depths[known:])
        + 2 * config.vocab_size * config.hidden_size * logits
    )


def peak() -> Spent:
    """For one product."""
    square = torch.ones(PEAK_SIZE, PEAK_SIZE)
    began = time.perf_counter(), time.process_time()
    for _ in range(8):
        square @ square
    return Spent((time.perf_counter() - began[0]) / 8, (time.process_time() - began[1]) / 8)


class Harness:
    """lm-eval's model around a model of ours."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        self._instance: Any = Instance
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._lm: Any = HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=1, add_bos_token=True)

    def log_odds(self, requests: Sequence[ChoiceRequest]) -> list[float]:
        pairs = [(rendered(request), option) for request in requests for option in request.options]
        asked = [self._instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
        values = [value for value, _ in self._lm.loglikelihood(asked, disable_tqdm=True)]
        return [one - other for one, other in zip(values[::2], values[1::2], strict=True)]


async def timed(work: Callable[[], Awaitable[list[float]]]) -> tuple[list[float], Spent]:
    began = time.perf_counter(), time.process_time()
    result = await work()
    return result, Spent(time.perf_counter() - began[0], time.process_time() - began[1])


async def measure(name: str, folder: Path, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Print the table of one model."""
    ask = asker(Text(tokenizer, seed=0))
    asked = ask()
    config = LocalEngineConfig(path=str(folder), template="transcript", dtype="float32", device="cpu")
    # A run has one layout.
    engines, harness = {layout: LocalEngine.load(config) for layout in LAYOUTS}, Harness(folder, tokenizer)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    length = len(tokenizer(rendered(asked["paper"][0])).input_ids)
    num_parameters = sum(weight.numel() for weight in model.parameters())
    print(f"\n{name}: {num_parameters / 1e6:.1f} M parameters, {len(asked['paper'])} comparisons of {length} tokens")
    rates = {key: Rates() for key in ("solon", "principle last", "lm-eval", "lm-eval, 1 token", "peak")}
    gaps = {"lm-eval": 0.0, "lm-eval, 1 token": 0.0}
    flops: dict[Layout, float] = {}

    async def ours(layout: Layout, requests: Sequence[ChoiceRequest]) -> list[float]:
        return [choice.logprobs[0] - choice.logprobs[1] for choice in await engines[layout].choose(requests)]

    async def theirs(requests: Sequence[ChoiceRequest]) -> list[float]:
        return harness.log_odds(requests)

    for layout in LAYOUTS:
        await ours(layout, asked[layout])
    num = len(asked["paper"])
    for number in range(arguments.rounds):
        before, asked = asked, ask()
        right: dict[str, list[float]] = {}
        for key, layout in zip(("solon", "principle last"), LAYOUTS, strict=True):
            flops[layout] = num_flops(model, tokenizer, asked[layout], before=before[layout][0])
            rates["peak"].add(2 * PEAK_SIZE**3, peak())
            right[layout], spent = await timed(partial(ours, layout, asked[layout]))
            rates[key].add(num, spent)
        right["lm-eval"], tokens = right["paper"], one_token(asked["paper"])
        right["lm-eval, 1 token"] = await ours("paper", tokens)
        for key, requests, share in (
            ("lm-eval", asked["paper"], arguments.asked),
            ("lm-eval, 1 token", tokens, 2 * arguments.asked),
        ):
            chosen = [(number * share + one) % num for one in range(share)]
            values, spent = await timed(partial(theirs, [requests[one] for one in chosen]))
            rates[key].add(share, spent)
            gaps[key] = max(gaps[key], *(abs(values[i] - right[key][one]) for i, one in enumerate(chosen)))
    for engine in engines.values():
        await engine.aclose()
    show(rates, gaps, flops, num=num)


def show(rates: dict[str, Rates], gaps: dict[str, float], flops: dict[Layout, float], *, num: int) -> None:
    """The rates; then ratios, round by round; then the floors."""
    peaks = rates.pop("peak")
    wall, processor = median(peaks.wall), median(peaks.processor)
    print(f"peak: {wall / 1e9:.0f} GFLOP/s by wall clock, {processor / 1e9:.0f} a second of one processor")
    print(f"{'comparisons per second':24} {'wall clock':>10} {'processor':>10}")
    for key, found in rates.items():
        print(f"{key:24} {median(found.wall):10.2f} {median(found.processor):10.2f}")
    for one, other in (("solon", "lm-eval"), ("solon", "lm-eval, 1 token"), ("principle last", "solon")):
        line = f"{one} : {other}"
        for kind in ("wall", "processor"):
            found = [a / b for a, b in zip(getattr(rates[one], kind), getattr(rates[other], kind), strict=True)]
            line += f"   {kind} {median(found):.1f} ({min(found):.1f} to {max(found):.1f})"
        print(line)
    for key, gap in gaps.items():
        print(f"log-odds, solon and {key}: at most {gap:.1e} nats apart")
    for at, (key, layout) in enumerate((("solon", "paper"), ("principle last", "principle-last"))):
        line = f"{key}: {flops[layout] / 1e9:.0f} GFLOP"
        for kind in ("wall", "processor"):
            top = getattr(peaks, kind)[at::2]
            rate = getattr(rates[key], kind)
            found = [flops[layout] / best / (num / one) for one, best in zip(rate, top, strict=True)]
            floor_s = flops[layout] / median(top)
            line += f"   {kind} floor {floor_s:.2f} s, share {median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--asked", type=int, default=4, help="comparisons of lm-eval in a round; twice in 1-token mode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="*", choices=("random", "sandbox"), default=["random", "sandbox"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    logging.disable(logging.WARNING)
    disable_progress_bar()
    import lm_eval
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, lm-eval {lm_eval.__version__}"
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads"
    print(f"{date.today()}, {machine}; {versions}; {arguments.rounds} rounds")
    base = sandbox.checkpoint("base")
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    with tempfile.TemporaryDirectory() as name:
        for kind in arguments.models:
            folder = base
            if kind == "random":
                folder = Path(name)
                torch.manual_seed(0)
                shape: dict[str, Any] = {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376}
                heads: dict[str, Any] = {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8}
                LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=True)).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            asyncio.run(measure(kind, folder, tokenizer, arguments))


if __name__ == "__main__":
    main()
