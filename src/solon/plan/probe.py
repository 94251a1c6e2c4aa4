"""How fast a model reads and writes, and how long texts are in its tokens: measured in a few seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from solon.dialogue import Message, PromptRow, render_transcript
from solon.engine import Engine, EngineConfig, FolderEngineConfig, Request, Sampling, without_ray
from solon.errors import EngineError
from solon.feedback import comparison_prompt, question_of
from solon.plan.arithmetic import Sizes
from solon.run import Run

SAMPLE = 200
"""Prompts whose tokens are counted, at most."""
PROBE_S = 4.0
"""Seconds that the answers of the probe may take, about."""
CHARACTERS_PER_TOKEN = 4
"""Where there is no tokenizer to count with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a probe saw of a model."""

    reads: float
    """Tokens per second."""
    writes: float
    """Tokens per second, over requests side by side."""
    alone: float
    """Tokens per second that one request alone writes: no chain is done sooner, on however many machines."""
    answer: float
    """Tokens of an answer, on average."""

    """Whether tokens were counted by the model's own tokenizer."""
    chooses: bool = True
    """Whether it gives log-probabilities, so that verdicts need not be sampled."""


class _Probed(NamedTuple):
    read_tokens: int
    written: list[int]
    cut: list[bool]
    seconds: float


async def probe(engine: Engine, prompts: Sequence[Sequence[Message]], *, sampling: Sampling) -> Speed:
    """How fast the engine reads and writes, and how long its answers are, from a few seconds of work.

    Raises EngineError if it answers none of the prompts.
    """
    await _answer(engine, prompts[:1], sampling=sampling, max_new_tokens=1)
    read = await _answer(engine, prompts, sampling=sampling, max_new_tokens=1)
    one = await _answer(engine, prompts[:1], sampling=sampling, max_new_tokens=min(8, sampling.max_new_tokens))
    per_token_s = one.seconds / max(1, sum(one.written))
    tokens = min(sampling.max_new_tokens, max(8, int(PROBE_S / per_token_s / 2)))
    whole = await _answer(engine, prompts, sampling=sampling, max_new_tokens=tokens)
    reads = read.read_tokens / read.seconds
    writing_s = max(whole.seconds - whole.read_tokens / reads, whole.seconds / 10)
    lengths = [sampling.max_new_tokens if cut else n for n, cut in zip(whole.written, whole.cut, strict=True)]
    return Speed(
        reads=reads,
        writes=sum(whole.written) / writing_s,
        alone=1 / per_token_s,
        answer=fmean(lengths),
        chooses=engine.capabilities.logprobs != "none",
    )


async def _answer(
    engine: Engine, prompts: Sequence[Sequence[Message]], *, sampling: Sampling, max_new_tokens: int
) -> _Probed:
    chosen = sampling.model_copy(update={"max_new_tokens": max_new_tokens})
    requests = [Request(prompt=tuple(prompt), sampling=chosen, seed=i) for i, prompt in enumerate(prompts)]
    began_s = time.monotonic()
    results = await asyncio.gather(*(engine.generate(request) for request in requests), return_exceptions=True)
    seconds = time.monotonic() - began_s
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, EngineError):
            raise result
    done = [result for result in results if not isinstance(result, BaseException)]
    if not done:
        assert isinstance(results[0], EngineError)
        raise results[0]
    return _Probed(
        read_tokens=sum(one.prompt_tokens for one in done),
        written=[one.completion_tokens for one in done],
        cut=[one.finish_reason == "length" for one in done],
        seconds=max(seconds, 1e-6),
    )


def token_counter(config: EngineConfig) -> Callable[[Sequence[Message]], int]:
    """Counts the tokens of a dialogue: by the tokenizer of a model in a folder, by characters for a server's."""
    config = without_ray(config)
    if not isinstance(config, FolderEngineConfig):
        return lambda dialogue: len(render_transcript(dialogue)) // CHARACTERS_PER_TOKEN
    from solon.training import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(config.path)
    return lambda dialogue: len(encode_prompt(tokenizer, dialogue))


def measure_sizes(run: Run, *, answer: float, count: Callable[[Sequence[Message]], int]) -> Sizes:
    """Lengths of the prompts and of what the constitution adds to them."""
    recipe, principles = run.recipe, run.constitution.principles
    rows: list[PromptRow] = [*run.red_team[:SAMPLE], *run.helpful[: max(0, SAMPLE - len(run.red_team))]]

    lengths = [count(row["prompt"]) for row in rows]

    def text(texts: Iterable[str | None]) -> float:
        found = [count([_asking(one)]) for one in texts if one]
        return fmean(found) if found else 0.0

    empty = comparison_prompt([_asking("?")], "", "", "")
    questions = [question_of(one) for one in principles if one.serves("comparison")]
    examples = run.constitution.exemplars
    revised = [(*one.conversation, _asking(f"{one.critique} {one.revision}")) for one in examples.revision]
    compared = [(*one.conversation, _asking(f"{one.better} {one.worse}")) for one in examples.comparison]
    few_revision = recipe.revisions.few_shot if recipe.revisions else 0
    few_comparison = recipe.comparisons.few_shot if recipe.comparisons else 0
    return Sizes(
        num_red_team=len(run.red_team),
        num_helpful=len(run.helpful),
        prompt=fmean(lengths) if lengths else 0.0,
        longest_prompt=max(lengths, default=0),
        answer=answer,
        critique_request=text(one.critique for one in principles),
        revision_request=text(one.revision for one in principles),
        question=count(empty) + text(questions),
        revision_examples=few_revision * (fmean(map(count, revised)) if revised else 0.0),
        comparison_examples=few_comparison * (count(empty) + (fmean(map(count, compared)) if compared else 0.0)),
    )


def _asking(content: str) -> Message:
    return {"role": "user", "content": content}
