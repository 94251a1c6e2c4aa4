"""The words in which a judge is asked which of two answers is better, and their worked examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import cast

from solon.artifact import derive_seed
from solon.config import Layout
from solon.constitution import ComparisonExemplar, Constitution, Principle, ReasoningExemplar
from solon.dialogue import Message, render_transcript, reply
from solon.prompts import fill, template

OPTIONS = (" (A)", " (B)")
"""The answers to a comparison, after its beginning "The answer is:"."""
VERDICT_OPTIONS = ("(A)", "(B)")
"""The answers to the question that follows a chain of thought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkedComparison:
    """A comparison with its answer: a few-shot example."""

    conversation: Sequence[Message]
    a: str
    b: str
    question: str
    """A principle's comparison text."""
    answer: str
    """One of OPTIONS."""
    reasoning: str = ""
    """A chain of thought that leads to the answer, without its first words; used by `reasoning_prompt` alone."""


def comparison_prompt(
    conversation: Sequence[Message],
    a: str,
    b: str,
    question: str,
    exemplars: Sequence[WorkedComparison] = (),
    *,
    layout: Layout = "paper",
) -> list[Message]:
    """The dialogue whose next turn begins with `answer_start()` and goes on with one of OPTIONS."""
    messages: list[Message] = []
    for worked in exemplars:
        ask = _question("comparison", layout, worked.conversation, worked.a, worked.b, worked.question)
        messages += [ask, reply(answer_start() + worked.answer)]
    return [*messages, _question("comparison", layout, conversation, a, b, question)]


def reasoning_prompt(
    conversation: Sequence[Message],
    a: str,
    b: str,
    question: str,
    exemplars: Sequence[WorkedComparison] = (),
    *,
    layout: Layout = "paper",
) -> list[Message]:
    """The dialogue whose next turn begins with `reasoning_start()` and goes on with a chain of thought."""
    messages: list[Message] = []
    for worked in exemplars:
        messages.append(_question("reasoning", layout, worked.conversation, worked.a, worked.b, worked.question))
        messages = [*verdict_prompt(messages, worked.reasoning), reply(worked.answer.strip())]
    return [*messages, _question("reasoning", layout, conversation, a, b, question)]


def verdict_prompt(messages: Sequence[Message], reasoning: str) -> list[Message]:
    """The dialogue of `reasoning_prompt` with the chain of thought after; its next turn is one of VERDICT_OPTIONS."""
    thought = reply(f"{reasoning_start()} {reasoning.strip()}")
    return [*messages, thought, {"role": "user", "content": template("reasoning_answer")}]


def answer_start() -> str:
    """The words with which the answer to a comparison begins."""
    return template("comparison_answer")


def reasoning_start() -> str:
    """The words with which a chain of thought begins."""
    return template("reasoning_start")


def _question(kind: str, layout: Layout, conversation: Sequence[Message], a: str, b: str, question: str) -> Message:
    transcript = render_transcript(conversation).strip()
    name = kind if layout == "paper" else f"{kind}_principle_last"
    text = fill(template(name), conversation=transcript, question=question.strip(), a=a.strip(), b=b.strip())
    return {"role": "user", "content": text}


def draw_exemplars(constitution: Constitution, *, k: int, reasoning: bool, seed: int) -> list[WorkedComparison]:
    """`k` worked comparisons, each under a principle and in an order of its own, all drawn from the seed (section 4.1).

    Raises InputError if the constitution has fewer exemplars, or none of its principles has a comparison.
    """
    drawn = constitution.exemplars.draw("reasoning" if reasoning else "comparison", k, seed=seed)
    worked: list[WorkedComparison] = []
    for number, exemplar in enumerate(cast("Sequence[ComparisonExemplar]", drawn)):
        better_first = Random(derive_seed(seed, "exemplar-order", number)).random() < 0.5
        answers = (exemplar.better, exemplar.worse) if better_first else (exemplar.worse, exemplar.better)
        letters = {"better": "A", "worse": "B"} if better_first else {"better": "B", "worse": "A"}
        worked.append(
            WorkedComparison(
                conversation=exemplar.conversation,
                a=answers[0],
                b=answers[1],
                question=question_of(constitution.draw("comparison", derive_seed(seed, "exemplar-principle", number))),
                answer=OPTIONS[0 if better_first else 1],
                reasoning=fill(exemplar.reasoning, **letters) if isinstance(exemplar, ReasoningExemplar) else "",
            )
        )
    return worked


def question_of(principle: Principle) -> str:
    """The words of a principle that was drawn for a comparison."""
    assert principle.comparison is not None
    return principle.comparison
