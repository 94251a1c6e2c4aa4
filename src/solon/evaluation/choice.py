"""Multiple choice: published questions, asked of any engine.

    found = read_questions("438HHHEvaluations.jsonl")
    rows = await ask(stage, engine=engine, questions=found.questions, seed=0)      # choices.jsonl
    finish_choices(stage, rows, found=found, engine=engine, seed=0).accuracy       # Interval(value=..., n=438)

The paper's evaluations (arXiv:2212.08073, sections 2 and appendix B): the log-probabilities of a question's options,
normalised over the options; the answer is the likeliest one. An engine without log-probabilities is asked several
times, and its answers are counted. What cannot be read is never a number: the question is a failure with its reason.

Differences from the paper: 1. the question is a human turn, which keeps the words with which the answer begins ("The
answer is:"), and the model's reply begins with them once more; where a file has no such words, the reply alone begins
with "The answer is:". 2. A chat server cannot continue a reply: it is sent the human turn alone. 3. No few-shot
examples and no chain of thought.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, isfinite, isnan
from statistics import fmean
from typing import Any, NamedTuple, cast

import numpy as np
from pydantic import TypeAdapter

from solon.artifact import Progress, StageFolder, derive_seed, silent, write_json
from solon.chain import Chain, Unusable
from solon.engine import Choice, ChoiceRequest, Engine, Sampling
from solon.errors import EngineError
from solon.evaluation.published import check_scored
from solon.evaluation.questions import Question, Questions, read_option
from solon.evaluation.rows import Score, asked, fill_rows, score_row
from solon.feedback import Verdict, judge_way, seen_mass
from solon.stats import (
    Floats,
    Interval,
    Reliability,
    bootstrap_interval,
    calibration_error,
    proportion_interval,
    reliability,
)

SAMPLES = 8
"""Answers per question of an engine without log-probabilities."""
SAMPLING = Sampling(max_new_tokens=32)
"""How they are sampled; temperature 1 as everywhere in the paper."""


class ChoiceRow(Question):
    """A row of choices.jsonl: what an engine answered."""

    probabilities: list[float]
    """Of the options, in their order, rounded; they sum to 1."""
    chosen: str
    """The likeliest option."""
    correct: bool
    """Whether a right option is likelier than every wrong one; as likely as a wrong one is not correct."""
    answer_mass: float
    """Probability, or share of the sampled answers, of answering with an option at all, in [0, 1]."""
    way: str
    """"logprobs" or "sampled"."""
    verdicts: dict[str, int] | None
    """Where sampled: how many answers were "read", and how many were not, by reason."""
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceMeasured:
    """How an engine did on the questions that are scored."""

    accuracy: Interval
    """Share of the questions that are answered correctly."""
    chance: Interval
    """What choosing blindly comes to: the mean share of right options. It is exact, so that its interval is a point."""
    majority: Interval
    """The baseline "always the option that is right most often", which these same questions tell."""
    majority_option: str
    calibration_error: Interval
    """Expected calibration error of the chosen option's probability, in [0, 1], with a bootstrap over questions."""
    reliability: Reliability
    """The bins behind it."""
    answer_mass: Interval
    """Mean over the questions, with a bootstrap."""
    num_ties: int
    """Questions whose likeliest options are right ones and wrong ones; they are not answered correctly."""


# ---- asking


class Shares(NamedTuple):
    """Probabilities of the options, or why there are none."""

    p: list[float] | None
    """Each in [0, 1]; they sum to 1."""
    reason: str = ""
    """"no-option": none was seen; "censored": one that was not seen may be as likely as the likeliest that was."""


def normalise_all(choice: Choice) -> Shares:
    """exp(x) of every option over the sum of all: `feedback.normalise` for any number of options.

    As there, an option that a server's list does not hold counts with its upper bound.
    """
    values = choice.logprobs
    seen = [value for value, censored in zip(values, choice.censored, strict=True) if not censored]
    if any(map(isnan, values)) or not any(map(isfinite, seen)):
        return Shares(None, "no-option")
    if any(value >= max(seen) for value, censored in zip(values, choice.censored, strict=True) if censored):
        return Shares(None, "censored")
    weights = [exp(value - max(values)) for value in values]
    return Shares([weight / sum(weights) for weight in weights])


async def ask(
    stage: StageFolder,
    *,
    engine: Engine,
    questions: Sequence[Question],
    seed: int,
    samples: int = SAMPLES,
    progress: Progress = silent,
) -> list[ChoiceRow]:
    """Ask every question into choices.jsonl of a begun stage; what is there already is not asked again.

    `samples` answers are drawn per question where the engine gives no log-probabilities. A question that does not fit,
    or whose answer cannot be read, is a failure with its reason. Raises TooManyFailures where most are. Returns the
    rows in the order of the questions.
    """

    async def make(question: Question) -> Mapping[str, Any]:
        chain = Chain(engine=engine, id=question["id"], seed=seed, sampling=SAMPLING)
        return await answer_question(question, chain=chain, samples=samples)

    rows = await fill_rows(
        stage, "choices.jsonl", items=questions, make=make, what="multiple choice", progress=progress
    )
    check_scored(stage, scored=len(rows), attempted=len(questions))
    return cast("list[ChoiceRow]", rows)


async def answer_question(question: Question, *, chain: Chain, samples: int = SAMPLES) -> dict[str, Any]:
    """The ChoiceRow of one question, by log-probabilities where the chain's engine has them, else by `samples` answers.
    Raises Unusable."""
    if judge_way(chain.engine) == "logprobs":
        return await _by_logprobs(question, engine=chain.engine)
    return await _by_samples(question, chain=chain, samples=samples)


async def _by_logprobs(question: Question, *, engine: Engine) -> dict[str, Any]:
    options = tuple(f" {option}" for option in question["options"])
    request = ChoiceRequest(prompt=tuple(question["prompt"]), options=options, prefix=question["prefix"])
    try:
        (choice,) = await engine.choose([request])
    except EngineError as error:
        raise Unusable(where="choose", reason=error.reason, text=str(error)) from error
    found = normalise_all(choice)
    if found.p is None:
        said = f"log-probabilities {choice.logprobs}, upper bounds {choice.censored}"
        raise Unusable(where="choose", reason=found.reason, text=said)
    return _row(question, found.p, mass=seen_mass(choice), way="logprobs", verdicts=None, engine=engine)


async def _by_samples(question: Question, *, chain: Chain, samples: int) -> dict[str, Any]:
    """The share of the answers for each option; those that name none, or several, are counted and left out."""

    async def say(number: int) -> Verdict:
        try:
            text = await chain.say(question["prompt"], where=f"answer-{number}", prefix=question["prefix"])
        except Unusable as problem:
            return Verdict(option=None, reason=problem.reason, text=problem.text)
        return read_option(text, question["options"])

    said = await asyncio.gather(*map(say, range(samples)))
    read = [one.option for one in said if one.option is not None]
    unread = Counter(one.reason for one in said if one.option is None)
    if not read:
        reason = unread.most_common(1)[0][0]
        raise Unusable(where="answer", reason=reason, text=next(one.text for one in said if one.reason == reason))
    p = [read.count(index) / len(read) for index in range(len(question["options"]))]
    verdicts = {"read": len(read), **unread}
    return _row(question, p, mass=len(read) / samples, way="sampled", verdicts=verdicts, engine=chain.engine)


def _row(
    question: Question, p: Sequence[float], *, mass: float, way: str, verdicts: dict[str, int] | None, engine: Engine
) -> dict[str, Any]:
    # Rounding hides what the make-up of a batch does to the last digits, so that a resumed run has the same rows.
    rounded = [round(one, 6) for one in p]
    likeliest = _likeliest(question["options"], rounded)
    return {
        **question,
        "probabilities": rounded,
        "chosen": likeliest[0],
        "correct": set(likeliest) <= set(question["right"]),
        "answer_mass": round(mass, 6),
        "way": way,
        "verdicts": verdicts,
        "model": engine.capabilities.model,
    }


def _likeliest(options: Sequence[str], p: Sequence[float]) -> list[str]:
    """The options of the greatest probability; several are a tie."""
    best = max(p)
    return [option for option, one in zip(options, p, strict=True) if one == best]


# ---- figures


def measure_choices(rows: Sequence[ChoiceRow]) -> ChoiceMeasured:
    """Accuracy, baselines and calibration on the questions that are scored. Raises ValueError without any."""
    if not rows:
        raise ValueError("no question is scored")
    right = Counter(option for row in rows for option in row["right"])
    favourite = min(right, key=lambda option: (-right[option], option))
    chance = fmean(len(row["right"]) / len(row["options"]) for row in rows)
    confident_N2 = np.array([[max(row["probabilities"]), row["correct"]] for row in rows], dtype=np.float64)
    error = bootstrap_interval(confident_N2, statistic=_error, seed=derive_seed("choices", len(rows)), draws=200)
    mass = bootstrap_interval(
        [row["answer_mass"] for row in rows], statistic=_mean, seed=derive_seed("mass", len(rows)), draws=200
    )
    return ChoiceMeasured(
        accuracy=proportion_interval(sum(row["correct"] for row in rows), n=len(rows)),
        chance=Interval(value=chance, low=chance, high=chance, n=len(rows)),
        majority=proportion_interval(right[favourite], n=len(rows)),
        majority_option=favourite,
        # A resample is a little worse calibrated than the questions themselves.
        calibration_error=replace(error, low=min(error.low, error.value)),
        reliability=reliability(confident_N2[:, 0], outcomes=confident_N2[:, 1]),
        answer_mass=mass,
        num_ties=sum(_is_tied(row) for row in rows),
    )


def finish_choices(
    stage: StageFolder, rows: Sequence[ChoiceRow], *, found: Questions, engine: Engine, seed: int
) -> ChoiceMeasured:
    """Write scores.json, and the manifest with what was measured, the refused rows and the engine's capabilities."""
    measured = measure_choices(rows)
    way = judge_way(engine)
    scores = choice_scores(measured, model=engine.capabilities.model, way=way, seed=seed)
    write_json(stage.path / "scores.json", scores)
    counts = {"questions": len(found.questions), "scored": len(rows), "refused": len(found.refused)}
    stage.finish(
        counts=counts,
        measured=asdict(measured),
        refused=[asdict(one) for one in found.refused],
        engine=asdict(engine.capabilities),
        way=way,
    )
    return measured


def _error(confident_N2: Floats) -> float:
    return calibration_error(confident_N2[:, 0], outcomes=confident_N2[:, 1])


def _mean(values_N: Floats) -> float:
    return float(values_N.mean())


def _is_tied(row: ChoiceRow) -> bool:
    likeliest = _likeliest(row["options"], row["probabilities"])
    return len({option in row["right"] for option in likeliest}) > 1


def choice_measured_of(about: Mapping[str, Any]) -> ChoiceMeasured:
    """The inverse of `dataclasses.asdict`."""
    return TypeAdapter(ChoiceMeasured).validate_python(about)


def choice_scores(measured: ChoiceMeasured, *, model: str, way: str, seed: int) -> list[Score]:
    """The rows of scores.json: choice_accuracy, its baselines, calibration_error and answer_mass."""
    found = {
        "choice_accuracy": measured.accuracy,
        "choice_accuracy:chance": measured.chance,
        "choice_accuracy:majority": measured.majority,
        "calibration_error": measured.calibration_error,
        "answer_mass": measured.answer_mass,
    }
    baselines = ("choice_accuracy:chance", "choice_accuracy:majority")
    return [
        score_row(
            model,
            metric=name,
            interval=interval,
            way="questions" if name in baselines else asked(model, way),
            seed=seed,
        )
        for name, interval in found.items()
    ]
