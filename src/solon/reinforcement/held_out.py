"""A fixed set of prompts that is not trained on: what the policy answers to them on the way, judged by another judge.

At step 0 and at every check the policy answers each prompt once, always with the prompt's own seed, so that a policy
that did not change gives the same answers. A judge that nothing was optimised against then says of each answer how good
it is and whether it is better than the answer at step 0 (the start's), and beside it stands how probable the preference
model finds that. So one sees both: whether the policy gets better, and how far the preference model can still be
believed about it.

    held_out = HeldOut(prompts=kept, grade=oracle_grade, judge="oracle", every=10)
    train_rl(prompts, ..., held_out=held_out)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar, cast

from solon.artifact import derive_seed
from solon.dialogue import Message
from solon.engine import LocalEngineConfig, Request, Sampling
from solon.errors import InputError
from solon.reinforcement.alarms import DIMENSIONS
from solon.stats import calibration_error, sigmoid
from solon.training import Model, Tokenizer

HELD_OUT_FILE = "held-out.jsonl"
_T = TypeVar("_T")


class Verdict(NamedTuple):
    """What the judge says of one answer."""

    value: float | None
    """How good it is, in [0, 1]: of an oracle 1 for a right answer and 0 for a wrong one, of a judge that compares the
    same as `win`. None: unscored."""
    win: float | None
    """Probability that it is better than the start's answer, in [0, 1]; 0.5 for a tie. None: unscored."""
    reason: str = ""
    """A short word, where unscored."""


class HeldOutRow(TypedDict):
    """A row of held-out.jsonl: one answer at one check."""

    step: int
    """0: before the first step."""
    id: str
    """The prompt's."""
    kind: str
    prompt: list[Message]
    response: str
    start: str
    """The answer at step 0."""
    value: float | None
    win: float | None
    reason: str
    score: float | None
    """Of the preference model, as in rollouts.jsonl. None where the judge is the reward, like the next one."""
    pm_win: float | None
    """Probability of the preference model that the answer is better than the start's, in (0, 1); 0.5 for the same."""


class Asked(NamedTuple):
    """What a judge is shown."""

    id: str
    kind: str
    prompt: list[Message]
    response: str
    start: str


Grade = Callable[[Sequence[Asked]], Awaitable[list[Verdict]]]
"""Judges answers, in their order."""
RawScore = Callable[[Sequence[tuple[Sequence[Message], str]]], list[float]]
"""As `PreferenceModel.raw_score`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Who judges what, and how often."""

    prompts: Sequence[Mapping[str, Any]]
    """Rows {id, prompt, kind} that are not trained on."""
    grade: Grade
    judge: str
    """The judge's name, for the manifest."""
    every: int
    """Steps between two checks."""


def keep_prompts(
    rows: Sequence[Mapping[str, Any]], *, num: int, seed: int
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Prompts to train on, and `num` of each kind that are kept from it; which, the seed and the ids decide.

    Raises InputError if that would keep more than half of a kind.
    """
    kept: set[str] = set()
    for kind in sorted({row["kind"] for row in rows}):
        own = sorted((row["id"] for row in rows if row["kind"] == kind), key=lambda id: derive_seed(seed, "kept", id))
        if 2 * num > len(own):
            what = f"{num} of {len(own)} prompts of the kind {kind!r} would be kept from training"
            raise InputError(what, remedy="lower reinforcement.held_out.prompts")
        kept.update(own[:num])
    return [row for row in rows if row["id"] not in kept], [row for row in rows if row["id"] in kept]


def answers(
    model: Model,
    *,
    tokenizer: Tokenizer,
    config: LocalEngineConfig,
    prompts: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    """One answer of the model to each prompt, sampled at temperature 1 with the prompt's own seed.

    Takes nothing from the global random state, so that training goes on as if it had not been asked.
    """
    sampling = Sampling(temperature=1.0, max_new_tokens=max_new_tokens)

    async def sample() -> list[str]:
        from solon.engine.local import LocalEngine

        engine = LocalEngine(model, tokenizer, config)
        try:
            requests = [
                Request(prompt=tuple(row["prompt"]), sampling=sampling, seed=derive_seed(seed, "held-out", row["id"]))
                for row in prompts
            ]
            return [done.text for done in await asyncio.gather(*map(engine.generate, requests))]
        finally:
            await engine.aclose()

    was_training = model.training
    model.eval()
    try:
        return run_apart(sample())
    finally:
        model.train(was_training)


def graded_rows(
    found: Sequence[str],
    *,
    starts: Mapping[str, str],
    held_out: HeldOut,
    step: int,
    raw_score: RawScore | None,
    scale: tuple[float, float, float],
) -> list[HeldOutRow]:
    """The rows of a check, judged; `scale` are mean, spread and temperature of the preference model's raw scores."""
    asked = [
        Asked(row["id"], row["kind"], list(row["prompt"]), text, starts.get(row["id"], text))
        for row, text in zip(held_out.prompts, found, strict=True)
    ]

    async def grade() -> list[Verdict]:
        return await held_out.grade(asked)

    verdicts = run_apart(grade())
    scores: list[tuple[float | None, float | None]] = [(None, None) for _ in asked]
    if raw_score is not None:
        raw = raw_score([(one.prompt, text) for one in asked for text in (one.response, one.start)])
        mean, spread, temperature = scale
        scores = [
            ((now - mean) / spread, float(sigmoid((now - before) / temperature)) if one.response != one.start else 0.5)
            for one, now, before in zip(asked, raw[::2], raw[1::2], strict=True)
        ]
    return [
        HeldOutRow(step=step, **one._asdict(), **verdict._asdict(), score=score, pm_win=pm_win)
        for one, verdict, (score, pm_win) in zip(asked, verdicts, scores, strict=True)
    ]


def wins_by_dimension(rows: Sequence[HeldOutRow], *, by: Literal["win", "pm_win"] = "win") -> dict[str, list[float]]:
    """For each dimension the probabilities of being better than the start's answers, of those that have one: by the
    judge, or by the preference model."""
    return {
        dimension: [win for row in rows if row["kind"] == kind and (win := row[by]) is not None]
        for kind, dimension in DIMENSIONS.items()
        if any(row["kind"] == kind for row in rows)
    }


def check_metrics(rows: Sequence[HeldOutRow]) -> dict[str, float]:
    """What metrics.jsonl says of a check, as means over the answers that are scored.

    held_out/harmlessness, held_out/helpfulness: the judge's `value`, by kind of prompt; judge_win, pm_win: probability
    of being better than the start's answer, by the judge and by the preference model, if there is one;
    pm_calibration_error: expected calibration error of the second against the first (Guo et al. 2017, equation 3);
    unscored: share without a verdict.
    """
    scored = [row for row in rows if row["win"] is not None]
    found = {"unscored": 1 - len(scored) / len(rows)}
    pm_wins = [row["pm_win"] for row in rows if row["pm_win"] is not None]
    if pm_wins:
        found["pm_win"] = fmean(pm_wins)
    for kind, dimension in DIMENSIONS.items():
        values = [cast(float, row["value"]) for row in scored if row["kind"] == kind]
        if values:
            found[dimension] = fmean(values)
    if scored:
        wins = [cast(float, row["win"]) for row in scored]
        found["judge_win"] = fmean(wins)
        if pm_wins:
            pm_of_scored = [cast(float, row["pm_win"]) for row in scored]
            found["pm_calibration_error"] = calibration_error(pm_of_scored, outcomes=wins)
    return {f"held_out/{name}": value for name, value in found.items()}


def goodness(rows: Iterable[HeldOutRow]) -> float:
    """By what the best snapshot is chosen: the mean over the dimensions of the mean win over the start, in [0, 1]."""
    by_dimension = [fmean(wins) for wins in wins_by_dimension(list(rows)).values() if wins]
    return fmean(by_dimension) if by_dimension else 0.5


def run_apart(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine, run in a thread of its own: where training is, a loop may be running already."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()
