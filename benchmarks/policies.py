"""What the benchmarks of policies share: what a policy of the sandbox does, and how shares are shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from solon import sandbox
from solon.dialogue import Message
from solon.engine import LocalEngineConfig, Request, Sampling
from solon.run import opened
from solon.sandbox import PromptKind, oracle
from solon.stats import Interval, pooled_interval

SAMPLING = Sampling(max_new_tokens=96)


class Answered(NamedTuple):
    """A policy's answer to a prompt and the oracle's verdict on it."""

    prompt: tuple[Message, ...]
    text: str
    verdict: str


async def answer(model: str | Path, kind: PromptKind, num: int, *, seed: int) -> list[Answered]:
    """Answers, at T = 1, to `num` prompts about activities kept for evaluation; the same prompts for every model."""
    rows = sandbox.prompts("evaluation", kind, num, seed=seed)
    asked = [Request(prompt=tuple(row["prompt"]), sampling=SAMPLING, seed=number) for number, row in enumerate(rows)]
    async with opened(LocalEngineConfig(path=str(model))) as engine:
        said = await asyncio.gather(*map(engine.generate, asked))
    return [
        Answered(prompt=one.prompt, text=done.text, verdict=oracle.judge(one.prompt, done.text).verdict)
        for one, done in zip(asked, said, strict=True)
    ]


def pooled(runs: Sequence[Sequence[bool]]) -> Interval:
    """A share over seeds; none of them may be empty."""
    return pooled_interval([sum(run) for run in runs], totals=[len(run) for run in runs])


def show(interval: Interval) -> str:
    """The value with its interval and n, for a table's cell."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}] n={interval.n}"
