"""One pair of answers under one or several principles -> the probability that the first is better, or Unusable."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal, NamedTuple, TypeVar, cast

from solon.chain import Chain, Unusable
from solon.config import Comparisons
from solon.constitution import Principle
from solon.dialogue import Message
from solon.engine import ChoiceRequest, Engine, Sampling
from solon.errors import EngineError
from solon.feedback.fencing import fence
from solon.feedback.questions import (
    OPTIONS,
    VERDICT_OPTIONS,
    WorkedComparison,
    answer_start,
    comparison_prompt,
    question_of,
    reasoning_prompt,
    reasoning_start,
    verdict_prompt,
)
from solon.feedback.reading import Verdict, normalise, parse_verdict, seen_mass
from solon.stats import proportion_interval

REASONING_SAMPLING = Sampling(max_new_tokens=256)
"""How a chain of thought is sampled; temperature 1 as everywhere in the paper."""
VERDICT_SAMPLING = Sampling(max_new_tokens=32)
"""How the verdicts of a judge without log-probabilities are sampled."""

Way = Literal["logprobs", "sampled"]
_Result = TypeVar("_Result")
_TINY = 1e-9
"""What rounding may do to a mean of probabilities; no threshold turns on it."""


class Pair(NamedTuple):
    """Two answers to one prompt."""

    prompt: Sequence[Message]
    a: str
    b: str

    def swapped(self) -> Pair:
        """The same pair with b first."""
        return Pair(self.prompt, self.b, self.a)

    def fenced(self) -> Pair:
        """The same pair with every text fenced."""
        turns: list[Message] = [{**turn, "content": fence(turn["content"])} for turn in self.prompt]
        return Pair(turns, fence(self.a), fence(self.b))

    def changes(self, other: Pair) -> tuple[str, ...]:
        """Which of "prompt", "a" and "b" are not the same in another pair."""
        same = {
            "prompt": list(self.prompt) == list(other.prompt),
            "a": self.a == other.a,
            "b": self.b == other.b,
        }
        return tuple(name for name, is_same in same.items() if not is_same)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge said of a pair (a, b)."""

    probability: float
    """That a is better, in [0, 1]; averaged over orders and principles, and clamped where that is asked for."""
    p_by_principle: dict[str, float]
    """The same for each principle, before any clamp."""
    order_gap: float
    """How much more probable an answer is when it stands first, in [-1, 1]; 0: the judge prefers no place."""
    answer_mass: float
    """Probability (or share of the verdicts) with which the judge answers with an option at all, in [0, 1]."""
    agreement: float
    """Share of the principles that are on the same side of 0.5 as their mean, in [0, 1]; 1 for one principle. One at
    exactly 0.5 agrees with a mean of 0.5 alone."""
    interval: tuple[float, float] | None
    """Where sampled: 95 % limits of the probability before any clamp, by Wilson over all the verdicts that were read;
    those that follow one chain of thought count like others."""
    way: Way
    verdicts: dict[str, int] | None
    """Where sampled: how many were "read", and how many were not, by reason."""
    reasoning: tuple[str, ...]
    """The chains of thought: for each principle those with a first, then those with b first."""
    fenced: tuple[str, ...]
    """Which of "prompt", "a" and "b" the judge was shown with changes, see `fence`."""

    def swapped(self) -> Judgement:
        """The judgement of (b, a). The gap is one of places, not of answers, and stays."""
        other = {"prompt": "prompt", "a": "b", "b": "a"}
        return replace(
            self,
            probability=1 - self.probability,
            p_by_principle={name: 1 - p for name, p in self.p_by_principle.items()},
            interval=None if self.interval is None else (1 - self.interval[1], 1 - self.interval[0]),
            fenced=tuple(name for name in other if other[name] in self.fenced),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What is asked of the judge in one order under one principle, for one chain of thought where there are several."""

    name: str
    """In the names of the steps, from which seeds derive: the principle's id, "/" and the number of the chain from its
    second on. The order has no part in it, so that the judgement of the swapped pair is the mirror image."""
    prompt: list[Message]
    prefix: str
    options: tuple[str, str]
    thought: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What the judge said to one question."""

    p_first: float
    """Probability of the answer that stands first, in [0, 1]."""
    mass: float
    """Probability, or share of the verdicts, of answering with an option at all."""
    verdicts: Counter[str] = field(default_factory=Counter[str])


async def judge_pair(
    pair: Pair,
    *,
    chain: Chain,
    settings: Comparisons,
    principles: Sequence[Principle],
    exemplars: Sequence[WorkedComparison] = (),
) -> Judgement:
    """The probability that a is better than b: the mean over `principles`, and for each over both orders.

    The judgement of `pair.swapped()` is the mirror image: seeds do not depend on the order. With `settings.reasoning`
    the probabilities after `settings.reasoning_samples` chains of thought are averaged in each order, and the mean of
    all is clamped to `settings.clamp`; without, it never is (section 4.3). Raises Unusable if any of the questions is
    without an answer that can be read (a label is the mean over all the principles that were drawn for it), and where
    the judgement is beyond one of the settings' thresholds: "low-answer-mass", "order-gap", "disagreement".
    """
    shown = pair.fenced() if settings.fence else pair
    questions = _questions(shown, settings=settings, principles=principles, exemplars=exemplars)
    if settings.reasoning:
        questions = await _all(_think(question, chain=chain) for question in questions)
    way = judge_way(chain.engine)
    if way == "logprobs":
        said = await _choose(questions, engine=chain.engine)
    else:
        said = await _all(_sample(question, chain=chain, num_verdicts=settings.verdicts) for question in questions)
    answers = _averaged(said, num=len(questions) // (2 * len(principles)))
    p, gap = _by_principle(answers), [one.p_first + other.p_first - 1 for one, other in _orders(answers)]
    low, high = settings.clamp if settings.reasoning and settings.clamp is not None else (0.0, 1.0)
    judgement = Judgement(
        probability=min(max(fmean(p), low), high),
        p_by_principle=dict(zip((principle.id for principle in principles), p, strict=True)),
        order_gap=fmean(gap),
        answer_mass=fmean(answer.mass for answer in answers),
        agreement=fmean(_side(one) == _side(fmean(p)) for one in p),
        interval=_interval(fmean(p), num_read=sum(answer.verdicts["read"] for answer in answers)),
        way=way,
        verdicts=dict(sum((answer.verdicts for answer in answers), Counter[str]())) if way == "sampled" else None,
        reasoning=tuple(question.thought for question in questions if question.thought),
        fenced=pair.changes(shown),
    )
    _refuse_doubtful(judgement, settings=settings)
    return judgement


def _questions(
    pair: Pair, *, settings: Comparisons, principles: Sequence[Principle], exemplars: Sequence[WorkedComparison]
) -> list[_Question]:
    """For each principle those with a first, then those with b first; of each as many as chains of thought."""
    build = reasoning_prompt if settings.reasoning else comparison_prompt
    num_samples = settings.reasoning_samples if settings.reasoning else 1
    return [
        _Question(
            name=f"{principle.id}/{number}" if number else principle.id,
            prompt=build(one.prompt, one.a, one.b, question_of(principle), exemplars, layout=settings.layout),
            prefix=answer_start(),
            options=OPTIONS,
        )
        for principle in principles
        for one in (pair, pair.swapped())
        for number in range(num_samples)
    ]


def _refuse_doubtful(judgement: Judgement, *, settings: Comparisons) -> None:
    """Raise Unusable for a judgement that is beyond a threshold: it is read, but not worth a label."""
    mass, gap, agreement = judgement.answer_mass, judgement.order_gap, judgement.agreement
    for reason, beyond, what in (
        (
            "low-answer-mass",
            mass < settings.min_answer_mass - _TINY,
            f"answer_mass {mass:.4f} is below comparisons.min_answer_mass {settings.min_answer_mass:g}",
        ),
        (
            "order-gap",
            abs(gap) > settings.max_order_gap + _TINY,
            f"order_gap {gap:.4f} is beyond comparisons.max_order_gap {settings.max_order_gap:g}",
        ),
        (
            "disagreement",
            agreement < settings.min_agreement - _TINY,
            f"agreement {agreement:.4f} is below comparisons.min_agreement {settings.min_agreement:g}",
        ),
    ):
        if beyond:
            by_principle = ", ".join(f"{name} {p:.4f}" for name, p in judgement.p_by_principle.items())
            raise Unusable(where="judgement", reason=reason, text=f"{what}; p(a) by principle: {by_principle}")


def judge_way(engine: Engine) -> Way:
    """How the engine's verdicts are read."""
    return "sampled" if engine.capabilities.logprobs == "none" else "logprobs"


def _averaged(answers: Sequence[_Answer], *, num: int) -> list[_Answer]:
    """One answer for each principle and order: the mean over its `num` chains of thought."""
    groups = [answers[start : start + num] for start in range(0, len(answers), num)]
    return [
        _Answer(
            p_first=fmean(answer.p_first for answer in group),
            mass=fmean(answer.mass for answer in group),
            verdicts=sum((answer.verdicts for answer in group), Counter[str]()),
        )
        for group in groups
    ]


def _orders(answers: Sequence[_Answer]) -> list[tuple[_Answer, _Answer]]:
    """The answers with a first and with b first, for each principle."""
    return list(zip(answers[::2], answers[1::2], strict=True))


def _by_principle(answers: Sequence[_Answer]) -> list[float]:
    """p(a is better) for each principle: the mean of both orders. At b first it is 1 - p_first."""
    return [0.5 + (a_first.p_first - b_first.p_first) / 2 for a_first, b_first in _orders(answers)]


def _side(p: float) -> int:
    """1 where a is better, -1 where b is, 0 where neither is."""
    return (p > 0.5 + _TINY) - (p < 0.5 - _TINY)


def _interval(p: float, *, num_read: int) -> tuple[float, float] | None:
    if num_read == 0:
        return None
    found = proportion_interval(p * num_read, n=num_read)
    return found.low, found.high


async def _all(work: Iterable[Awaitable[_Result]]) -> list[_Result]:
    """The results, in order; when all have ended, the first Unusable is raised, if there is one."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[_Result]", results)


async def _think(question: _Question, *, chain: Chain) -> _Question:
    where = f"reasoning-{question.name}"
    thought = await chain.say(question.prompt, where=where, prefix=reasoning_start(), sampling=REASONING_SAMPLING)
    return replace(
        question, prompt=verdict_prompt(question.prompt, thought), prefix="", options=VERDICT_OPTIONS, thought=thought
    )


async def _choose(questions: Sequence[_Question], *, engine: Engine) -> list[_Answer]:
    """All questions of a pair in one group, so that an engine sees the beginnings that they share."""
    requests = [ChoiceRequest(prompt=tuple(one.prompt), options=one.options, prefix=one.prefix) for one in questions]
    try:
        choices = await engine.choose(requests)
    except EngineError as error:
        raise Unusable(where="choose", reason=error.reason, text=str(error)) from error
    answers: list[_Answer] = []
    for question, choice in zip(questions, choices, strict=True):
        p_first = normalise(choice)
        if p_first is None:
            said = f"log-probabilities {choice.logprobs}, upper bounds {choice.censored}"
            raise Unusable(where=f"choose-{question.name}", reason="no-option", text=said)
        answers.append(_Answer(p_first=p_first, mass=seen_mass(choice)))
    return answers


async def _sample(question: _Question, *, chain: Chain, num_verdicts: int) -> _Answer:
    """The share of sampled verdicts for the first answer; those that cannot be read are counted and left out."""
    said = await asyncio.gather(*(_verdict(question, chain=chain, number=i) for i in range(num_verdicts)))
    read = [verdict.option for verdict in said if verdict.option is not None]
    unread = [verdict for verdict in said if verdict.option is None]
    if not read:
        reason = Counter(verdict.reason for verdict in unread).most_common(1)[0][0]
        text = next(verdict.text for verdict in unread if verdict.reason == reason)
        raise Unusable(where=f"verdict-{question.name}", reason=reason, text=text)
    verdicts = Counter({"read": len(read)}) + Counter(verdict.reason for verdict in unread)
    return _Answer(p_first=read.count(0) / len(read), mass=len(read) / num_verdicts, verdicts=verdicts)


async def _verdict(question: _Question, *, chain: Chain, number: int) -> Verdict:
    try:
        where = f"verdict-{question.name}-{number}"
        return parse_verdict(await chain.say(question.prompt, where=where, sampling=VERDICT_SAMPLING))
    except Unusable as problem:
        return Verdict(option=None, reason=problem.reason, text=problem.text)
