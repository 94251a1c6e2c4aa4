"""The held-out judges of a run's policy: the sandbox's oracle, or an AI judge that is asked by the constitution.

held_out_of(run, prompts)       # for `solon.reinforcement.train_rl`; None where the recipe has none
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from solon.artifact import derive_seed
from solon.config import Comparisons
from solon.constitution import Constitution
from solon.dialogue import Message
from solon.engine import EngineConfig
from solon.errors import EngineError
from solon.evaluation import ConstitutionJudge, Dimension
from solon.run import Run, fingerprint, opened

if TYPE_CHECKING:
    from solon.reinforcement import Asked, HeldOut, Verdict


def held_out_of(run: Run, prompts: Sequence[Mapping[str, Any]]) -> HeldOut | None:
    """The judge of the policy on the way, who asks for `prompts`; None where the recipe has none."""
    settings = run.recipe.reinforcement and run.recipe.reinforcement.held_out
    if settings is None:
        return None
    if settings.oracle == "auto" and run.recipe.prompts.path == "sandbox":
        return oracle_held_out(prompts, every=settings.every)
    found = judge_held_out(
        prompts,
        every=settings.every,
        judge=settings.judge or run.evaluation_judge,
        constitution=run.constitution,
        settings=run.judging,
        seed=run.recipe.seed,
    )
    return replace(found, grade=partial(cast(Any, found.grade), logs=run.logs))


def oracle_held_out(prompts: Sequence[Mapping[str, Any]], *, every: int) -> HeldOut:
    """The sandbox's oracle as held-out judge: right is not to comply on red-team prompts, and the right help on others.

    An answer is better than the start's where it is right and the other is not.
    """
    from solon.reinforcement import HeldOut

    return HeldOut(prompts=prompts, grade=_by_oracle, judge="oracle", every=every)


async def _by_oracle(asked: Sequence[Asked]) -> list[Verdict]:
    from solon.reinforcement import Verdict
    from solon.sandbox import oracle

    def right(prompt: Sequence[Message], text: str) -> float:
        found = oracle.judge(prompt, text)
        return float(not found.complied if found.harmful else found.verdict == "helps")

    values = [(right(one.prompt, one.response), right(one.prompt, one.start)) for one in asked]
    return [Verdict(value=now, win=0.5 + (now - before) / 2) for now, before in values]


def judge_held_out(
    prompts: Sequence[Mapping[str, Any]],
    *,
    every: int,
    judge: EngineConfig,
    constitution: Constitution,
    settings: Comparisons,
    seed: int,
) -> HeldOut:
    """An AI judge as held-out judge, which compares with the start's answers; opened for each check, so that it takes
    memory only then."""
    from solon.reinforcement import HeldOut

    grade = partial(_by_judge, judge=judge, constitution=constitution, settings=settings, seed=seed)
    return HeldOut(prompts=prompts, grade=grade, judge=fingerprint(judge), every=every)


async def _by_judge(
    asked: Sequence[Asked],
    *,
    judge: EngineConfig,
    constitution: Constitution,
    settings: Comparisons,
    seed: int,
    logs: Path | None = None,
) -> list[Verdict]:
    from solon.reinforcement import Verdict
    from solon.reinforcement.alarms import DIMENSIONS

    async with opened(judge, logs=logs) as engine:
        compare = ConstitutionJudge(engine=engine, constitution=constitution, settings=settings)

        async def one(case: Asked) -> Verdict:
            if case.response == case.start:
                return Verdict(value=0.5, win=0.5)
            dimension = cast(Dimension, DIMENSIONS[case.kind])
            drawn = derive_seed(seed, "held-out judge", case.id)
            try:
                found = await compare(case.prompt, case.response, case.start, dimension=dimension, seed=drawn)
            except EngineError as error:
                return Verdict(value=None, win=None, reason=error.reason)
            return Verdict(value=found.p, win=found.p, reason=found.reason)

        return await asyncio.gather(*map(one, asked))
