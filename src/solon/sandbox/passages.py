"""The pretraining text of the sandbox: facts in plain sentences, dialogues, and worked cases of every skill of the
method.

What assistants *do* with a harmful request is mixed here, as on the web: some help, some decline and say why, some
dodge. So the pretrained model can do all three, and what it should do it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from solon.dialogue import Message, reply
from solon.feedback import verdict_prompt
from solon.sandbox import grammar
from solon.sandbox.cases import draw_activity, draw_answer, draw_comparison, draw_critique
from solon.sandbox.world import Activity, World
from solon.supervised import revision_prompt

FACT, CHAT, CRITIQUE, DIRECT, COMPARISON, REASONING = "fact", "chat", "critique", "direct", "comparison", "reasoning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What a text is made of."""

    shares: Mapping[str, float]
    """Of each kind among the passages."""
    harmful: float = 0.5
    """Share of harmful activities among facts and dialogues."""
    comply: bool = False
    """In dialogues the assistant always helps."""


PRETRAINING = Mixture(shares={FACT: 0.06, CHAT: 0.26, CRITIQUE: 0.30, DIRECT: 0.05, COMPARISON: 0.23, REASONING: 0.10})
REFINING = Mixture(
    shares={FACT: 0.03, CHAT: 0.22, CRITIQUE: 0.20, DIRECT: 0.03, COMPARISON: 0.40, REASONING: 0.12}, harmful=0.3
)
"""More of the harmless activities, which are twice as many, and of comparisons, which are learnt last."""
HELPFUL = Mixture(
    shares={CHAT: 0.5, CRITIQUE: 0.28, DIRECT: 0.05, COMPARISON: 0.09, REASONING: 0.08}, harmful=0.4, comply=True
)
"""The text of the helpful-only assistant."""
_NUM_EXEMPLARS = (0, 0, 0, 0, 0, 0, 1, 1, 2)


@dataclass(frozen=True, slots=True)
class Passage:
    """A plain text (one message of role system, shown without a role) or a dialogue that ends with an assistant's
    turn."""

    kind: str
    messages: tuple[Message, ...]


def _fact(world: World, activity: Activity, rng: Random) -> str:
    gerund = activity.gerund[0].upper() + activity.gerund[1:]
    if not activity.harmful:
        return rng.choice(
            (
                f"{gerund} is harmless. You need {activity.need}.",
                f"To {activity.also} is the same as to {activity.act}. First, {activity.first}. Then {activity.then}.",
                f"Who wants to {activity.act} needs {activity.need}. It harms nobody.",
            )
        )
    category = world.category(activity.category)
    name, reason = rng.choice(category.names), rng.choice(category.reasons)
    other, third = rng.sample(category.names, 2)
    return rng.choice(
        (
            f"{gerund} is {category.names[0]}. It is wrong, because {reason}.",
            f"{gerund} is a case of {name}. It is harmful and wrong, because {reason}.",
            f"To {activity.also} is the same as to {activity.act}. Both are {name}.",
            f"Speaking of {other}, one also thinks of {third}. It is all {category.names[0]}.",
            f"Whoever is against {name} is against {activity.gerund} too.",
        )
    )


def _critique_turns(world: World, activities: Sequence[Activity], rng: Random, *, direct: bool) -> list[Message]:
    case = draw_critique(world, activities, rng)
    if direct:
        return [*case.direct_prompt(), {"role": "assistant", "content": case.revision.text}]
    exemplars = [draw_critique(world, activities, rng).exemplar() for _ in range(rng.choice(_NUM_EXEMPLARS))]
    messages = revision_prompt(case.prompt(exemplars), case.critique, case.revision_request)
    return [*messages, {"role": "assistant", "content": case.revision.text}]


def _comparison_turns(world: World, activities: Sequence[Activity], rng: Random, *, reasoned: bool) -> list[Message]:
    case = draw_comparison(world, activities, rng)
    letter = case.letter(rng)
    if reasoned:
        category = world.category(case.activity.category) if case.activity.harmful else None
        thought = grammar.reasoning(category, case.rule, case.activity, case.a, case.b, better=letter)
        return [*verdict_prompt(case.reasoning_prompt(), thought), {"role": "assistant", "content": f"({letter})"}]
    exemplars = [draw_comparison(world, activities, rng).worked(rng) for _ in range(rng.choice(_NUM_EXEMPLARS))]
    return [*case.prompt(exemplars), {"role": "assistant", "content": f"The answer is: ({letter})"}]


def draw_passage(world: World, activities: Sequence[Activity], rng: Random, *, mixture: Mixture) -> Passage:
    """One passage."""
    kind = rng.choices(list(mixture.shares), list(mixture.shares.values()))[0]
    if kind in (CRITIQUE, DIRECT):
        return Passage(kind, tuple(_critique_turns(world, activities, rng, direct=kind == DIRECT)))
    if kind in (COMPARISON, REASONING):
        return Passage(kind, tuple(_comparison_turns(world, activities, rng, reasoned=kind == REASONING)))
    activity = draw_activity(activities, rng, harmful_share=mixture.harmful)
    if kind == FACT:
        return Passage(kind, ({"role": "system", "content": _fact(world, activity, rng)},))
    if mixture.comply:
        kinds = ("helps",)
    elif activity.harmful:
        kinds = ("helps",) * 6 + ("explains",) * 3 + ("evades",)
    else:
        kinds = ("helps",) * 29 + ("evades",)
    answer = draw_answer(world, activity, rng, kinds=kinds)
    return Passage(kind, (*grammar.conversation(world, activity, rng), reply(answer.text)))


def passages(
    world: World, activities: Sequence[Activity], *, seed: int, mixture: Mixture = PRETRAINING
) -> Iterator[Passage]:
    """An endless stream; the same seed gives the same passages."""
    rng = Random(seed)
    while True:
        yield draw_passage(world, activities, rng, mixture=mixture)
