"""The constitution as the reward: a judge compares the rollouts to a prompt with each other, with no preference model.

The judge is that of the AI feedback (`solon.feedback`): principles drawn for each pair, both orders, log-probabilities
or sampled verdicts. Each rollout of a group meets the next one, and the last the first, so that it stands in two
comparisons (in one, where there are two rollouts), and the cost grows with the number of rollouts, not with its square.

Its score is the mean probability that it is the better one, in [0, 1]; a group's mean is 1/2. Not the mean log-odds,
which under the Bradley-Terry model would be on the preference model's scale: they are infinite where all the sampled
verdicts agree. A comparison that cannot be read is left out of the mean. A rollout without any that can is unscored,
NaN: TRL gives it no advantage and leaves it out of the baseline of the others.

Differences from the paper: 1. no preference model; 2. the score is relative to the policy's other answers, so that its
mean says nothing of progress.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

from solon.artifact import StageFolder, content_id, run_chains
from solon.chain import Chain, Unusable
from solon.config import Comparisons
from solon.constitution import Constitution
from solon.dialogue import Message
from solon.engine import Engine, Sampling
from solon.errors import TooManyFailures
from solon.feedback import Judgement, Pair, judge_under_drawn

Dialogue = tuple[Sequence[Message], str]
"""A prompt and a response to it."""
Gate = Callable[[StageFolder, Engine], Awaitable[object]]
_Result = TypeVar("_Result")


class Judged(NamedTuple):
    """What the judge said of a batch of rollouts."""

    scores: list[float]
    """Mean probability of being the better one, in [0, 1]; NaN: unscored."""
    columns: list[dict[str, Any]]
    """For the row of each rollout: p_by_principle, and `unscored`, the reason, where it has no score."""
    metrics: dict[str, float]
    """`unscored` and `unread`: shares of rollouts and of comparisons. `decided/PRINCIPLE`: mean of |2p - 1| over the
    comparisons under it, from 0 (it sees no difference) to 1."""


# ---- pure functions


def meetings(num_rollouts: int, *, group: int) -> list[tuple[int, int]]:
    """Places of the rollouts that are compared: in each group of `group` (>= 2) neighbours, every one with the next."""
    assert group >= 2 and num_rollouts % group == 0, f"{num_rollouts} rollouts in groups of {group}"
    num = group if group > 2 else 1
    return [(start + i, start + (i + 1) % group) for start in range(0, num_rollouts, group) for i in range(num)]


def scored(num_rollouts: int, found: Mapping[tuple[int, int], Judgement | Unusable]) -> Judged:
    """The scores that the judgements of `meetings` make."""
    wins: list[list[float]] = [[] for _ in range(num_rollouts)]
    by_principle: list[dict[str, list[float]]] = [defaultdict(list) for _ in range(num_rollouts)]
    reasons: list[str] = [""] * num_rollouts
    decided: dict[str, list[float]] = defaultdict(list)
    for (first, second), said in found.items():
        if isinstance(said, Unusable):
            reasons[first] = reasons[second] = said.reason
            continue
        for place, seen in ((first, said), (second, said.swapped())):
            wins[place].append(seen.probability)
            for name, p in seen.p_by_principle.items():
                by_principle[place][name].append(p)
        for name, p in said.p_by_principle.items():
            decided[name].append(abs(2 * p - 1))
    # Rounding hides what the make-up of a batch does to the last digits, so that a resumed run has the same scores.
    scores = [round(fmean(own), 6) if own else math.nan for own in wins]
    columns: list[dict[str, Any]] = [
        {"p_by_principle": {name: round(fmean(p), 6) for name, p in own.items()}} for own in by_principle
    ]
    for column, score, reason in zip(columns, scores, reasons, strict=True):
        if math.isnan(score):
            column["unscored"] = reason
    metrics = {
        "unscored": fmean(map(math.isnan, scores)),
        "unread": fmean(isinstance(said, Unusable) for said in found.values()),
        **{f"decided/{name}": fmean(values) for name, values in sorted(decided.items())},
    }
    return Judged(scores, columns, metrics)


# ---- asking


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutJudge:
    """Who rewards in place of a preference model."""

    open: Callable[[], Awaitable[Engine]]
    constitution: Constitution
    settings: Comparisons
    """How pairs are judged. `failure_limit` is the share of a batch's rollouts that may be unscored."""
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    """Hashes of what decides the judgements, for the stage's manifest."""
    gate: Gate | None = None
    """What the judge must pass first; it raises InputError."""

    def passed(self, stage: StageFolder, *, seed: int) -> RolloutJudge:
        """The judge once it has passed the gate, without it: for other processes, which only ask."""
        if self.gate is None:
            return self
        with self.at_work(stage, seed=seed):
            return replace(self, gate=None)

    @contextmanager
    def at_work(self, stage: StageFolder, *, seed: int) -> Generator[JudgeAtWork]:
        """The judge with its engine open, once it has passed the gate."""
        # The trainer waits for the judge, and may itself be called from an event loop, which it then blocks.
        runner = asyncio.Runner()
        with ThreadPoolExecutor(max_workers=1) as thread:

            def wait(work: Coroutine[Any, Any, _Result]) -> _Result:
                return thread.submit(runner.run, work).result()

            engine = wait(_awaited(self.open()))
            try:
                if self.gate is not None:
                    wait(_awaited(self.gate(stage, engine)))
                yield JudgeAtWork(judge=self, engine=engine, seed=seed, wait=wait)
            finally:
                wait(engine.aclose())
                thread.submit(runner.close).result()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeAtWork:
    """A RolloutJudge that can be asked."""

    judge: RolloutJudge
    engine: Engine
    seed: int
    """Of the run."""
    wait: Callable[[Coroutine[Any, Any, Any]], Any]

    def __call__(self, dialogues: Sequence[Dialogue], *, group: int) -> Judged:
        """Compare rollouts, of which `group` neighbours have the same prompt.

        A pair is judged alike whenever it comes: principles and seeds derive from its texts and the run's seed. Raises
        TooManyFailures if more than `settings.failure_limit` of the rollouts are unscored.
        """
        found: Mapping[tuple[int, int], Judgement | Unusable] = self.wait(self._compare(dialogues, group=group))
        result = scored(len(dialogues), found)
        limit, share = self.judge.settings.failure_limit, result.metrics["unscored"]
        if share > limit:
            reasons = ", ".join(sorted({said.reason for said in found.values() if isinstance(said, Unusable)}))
            raise TooManyFailures(
                f"the judge {self.engine.capabilities.model!r} left {share:.0%} of {len(dialogues)} rollouts unscored "
                f"({reasons}), more than comparisons.failure_limit {limit:g}; take another judge, or raise it"
            )
        return result

    async def _compare(
        self, dialogues: Sequence[Dialogue], *, group: int
    ) -> dict[tuple[int, int], Judgement | Unusable]:
        pairs = meetings(len(dialogues), group=group)
        found: dict[tuple[int, int], Judgement | Unusable] = {}

        async def ask(places: tuple[int, int]) -> None:
            (prompt, a), (_, b) = (dialogues[place] for place in places)
            chain = Chain(engine=self.engine, id=content_id([list(prompt), a, b]), seed=self.seed, sampling=Sampling())
            try:
                found[places] = await judge_under_drawn(
                    Pair(prompt, a, b), chain=chain, settings=self.judge.settings, constitution=self.judge.constitution
                )
            except Unusable as problem:
                found[places] = problem

        await run_chains(pairs, ask, window=self.judge.settings.window)
        return {places: found[places] for places in pairs}


async def _awaited(work: Awaitable[_Result]) -> _Result:
    return await work
