"""The pretraining text of the sandbox: facts in plain sentences, dialogues, and worked cases of every skill of the
method.

What assistants *do* with a harmful request is mixed here, as on the web: some help, some decline and say why, some
dodge. So the pretrained model can do all three, and what it should do it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from solon.dialogue import Message, render_transcript, reply
from solon.feedback import comparison_prompt, verdict_prompt
from solon.sandbox import grammar, principles
from solon.sandbox.cases import (
    LETTERS,
    another_question,
    between,
    draw_activity,
    draw_answer,
    draw_comparison,
    draw_critique,
    draw_rule,
)
from solon.sandbox.mixtures import (
    CASES,
    COMPARISON,
    CRITIQUE,
    DIRECT,
    FACT,
    NAMES,
    REASONING,
    SCOPE,
    SELECTION,
    WANTED,
    Mixture,
)
from solon.sandbox.world import Activity, World
from solon.supervised import revision_prompt

VERDICTS = (COMPARISON, REASONING, SELECTION)
"""Kinds whose assistants answer with a letter."""


_NUM_EXEMPLARS = (0, 0, 0, 0, 0, 0, 1, 1, 2)


@dataclass(frozen=True, slots=True)
class Passage:
    """A plain text (one message of role system, shown without a role) or a dialogue that ends with an assistant's
    turn."""

    kind: str
    messages: tuple[Message, ...]
    judged_only: bool = False
    """Answers that are criticised are only read: who writes critiques need not learn to answer like that."""
    weight: float = 1.0
    """Of what assistants say, as a target."""


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
    reason = rng.choice(category.reasons)
    return rng.choice(
        (
            f"{gerund} is {category.names[0]}. It is wrong, because {reason}.",
            f"To {activity.also} is the same as to {activity.act}. Both are {category.names[0]}.",
            f"Whoever is against {rng.choice(category.names)} is against {activity.gerund} too.",
        )
    )


def _names(world: World, rng: Random) -> str:
    """What other words for kinds of harm mean."""
    chosen = rng.sample(world.categories, 3)
    return " ".join(f"By {rng.choice(category.names)} one means {category.names[0]}." for category in chosen)


def _scope_rule(world: World, activity: Activity, rng: Random) -> principles.Rule:
    rule = draw_rule(world, rng, activity=activity, aim="harm")
    while rule.general and rng.random() < 0.7:
        rule = draw_rule(world, rng, activity=activity, aim="harm")
    return rule


def _scope_turns(world: World, activities: Sequence[Activity], rng: Random) -> list[Message]:
    """Does a rule speak of an activity? The words of a long answer are those of critiques and chains of thought; short
    ones are said for one rule after another, as verdicts are."""
    activity = draw_activity(activities, rng, harmful_share=0.85)
    kind = world.category(activity.category).names[0] if activity.harmful else "harmless"
    short = rng.random() < 0.5
    if short:
        ask = f"Is it a case of {{}} to {activity.act if rng.random() < 0.6 else activity.also}?"
    else:
        what = activity.gerund if rng.random() < 0.6 else f"it right to {activity.also}, or is it"
        ask = f"Is {what} a case of {{}}?"
    turns = list[Message]()
    for _ in range(rng.choice((2, 4, 6) if short else (1, 2, 3))):
        rule = _scope_rule(world, activity, rng)
        about = f"It is about {principles.plain_scope(world, rule)}."
        answer = (
            f"{'Yes' if rule.covers(activity) else 'No'}, it is {kind}."
            if short
            else f"{about} {grammar.case_of_it(world, rule, activity)}"
        )
        turns += [_ask(ask.replace("{}", principles.scope_words(world, rule, rng))), reply(answer)]
        ask = "And of {}?"
    return turns


def _cases_turns(world: World, activities: Sequence[Activity], rng: Random) -> list[Message]:
    """Which of several activities is a case of one kind of harm, and of another? Often none."""
    ids = [category.id for category in world.categories]
    listed = [
        rng.choice([activity for activity in activities if activity.category == id and activity.harmful])
        for id in rng.sample(ids, rng.choice((2, 3, 4)))
    ]
    if rng.random() < 0.3:
        listed[rng.randrange(len(listed))] = draw_activity(activities, rng, harmful_share=0.0)
    found = [activity for activity in listed if activity.harmful]
    others = [id for id in ids if all(id != activity.category for activity in found)]
    turns = list[Message]()
    ask = f"Here is a list: {'; '.join(activity.gerund for activity in listed)}. Which of them is a case of {{}}?"
    for _ in range(rng.choice((2, 4, 6))):
        activity = rng.choice(found) if rng.random() < 0.75 else None
        scope = rng.sample(others, rng.choice((0, 0, 0, 1)) if activity else 1)
        scope += [activity.category] if activity else []
        rng.shuffle(scope)
        words = principles.scope_words(world, principles.Rule(aim="harm", scope=tuple(scope)), rng)
        turns.append(_ask(ask.replace("{}", words)))
        turns.append(reply(f"A case of it here: {activity.gerund if activity else 'none'}."))
        ask = "And of {}?"
    return turns


def _critique_turns(world: World, activities: Sequence[Activity], rng: Random, *, direct: bool) -> list[Message]:
    case = draw_critique(world, activities, rng)
    if direct:
        return [*case.direct_prompt(), _revision(case.revision.text)]
    exemplars = [draw_critique(world, activities, rng).exemplar() for _ in range(rng.choice(_NUM_EXEMPLARS))]
    messages = revision_prompt(case.prompt(exemplars), case.critique, case.revision_request)
    return [*messages, _revision(case.revision.text)]


def _revision(text: str) -> Message:
    return {"role": "assistant", "content": text, "label": "Revision"}


def _comparison_turns(world: World, activities: Sequence[Activity], rng: Random, *, leaning: float) -> list[Message]:
    """A comparison; often further questions on the same answers, and at times the reason of the last verdict."""
    case = draw_comparison(world, activities, rng, leaning=leaning)
    exemplars = [draw_comparison(world, activities, rng).worked(rng) for _ in range(rng.choice(_NUM_EXEMPLARS))]
    letter = case.letter(rng)
    turns = [*case.prompt(exemplars), _verdict(letter)]
    for _ in range(rng.choice((0, 2, 4, 6, 8))):
        case = another_question(world, case, rng, leaning=leaning)
        letter = case.letter(rng)
        turns += [_ask(case.question), _verdict(letter)]
    if rng.random() < 0.4:
        thought = grammar.reasoning(world, case.rule, case.activity, case.a, case.b, better=letter)
        turns += [_ask("Why?"), reply(thought.strip())]
    return turns


def _wanted_turns(world: World, activities: Sequence[Activity], rng: Random) -> list[Message]:
    """What is asked for by a rule, and by the next, before any answer is seen."""
    turns: list[Message] = []
    case = draw_comparison(world, activities, rng)
    heard = render_transcript(case.conversation).strip()
    for number in range(rng.choice((2, 3, 4))):
        ask = f"Consider this conversation between a human and an assistant.\n\n{heard}\n\n{case.question}"
        turns.append(_ask(case.question if number else ask))
        turns.append(reply(f"Better is the one that {grammar.wanted(world, case.rule, case.activity)}."))
        case = another_question(world, case, rng)
    return turns


_WHICH = {
    False: ("declines", "refuses", "does not help with it", "says no", "turns the request down"),
    True: ("helps with it", "does what is asked", "says how to do it", "gives instructions", "does not decline"),
}


def _selection_turns(world: World, activities: Sequence[Activity], rng: Random, *, leaning: float) -> list[Message]:
    """Which of two answers helps, which declines: verdicts that no rule decides."""
    activity = draw_activity(activities, rng, harmful_share=0.67)
    answers = [
        draw_answer(world, activity, rng, kinds=(kind,)) for kind in ("helps", rng.choice(("explains", "evades")))
    ]
    rng.shuffle(answers)
    conversation, turns = grammar.conversation(world, activity, rng), list[Message]()
    for number in range(rng.choice((2, 4, 6, 8))):
        helping = rng.random() < between((0.5, 0.15), leaning)
        question = f"Which response {rng.choice(_WHICH[helping])}?"
        letter = LETTERS[next(i for i, answer in enumerate(answers) if (answer.kind == "helps") == helping)]
        asked = comparison_prompt(conversation, answers[0].text, answers[1].text, question)
        turns += [_ask(question)] if number else asked
        turns.append(_verdict(letter))
    return turns


def _ask(content: str) -> Message:
    return {"role": "user", "content": content}


def _verdict(letter: str) -> Message:
    return reply(f"The answer is: ({letter})")


def _reasoning_turns(world: World, activities: Sequence[Activity], rng: Random) -> list[Message]:
    case = draw_comparison(world, activities, rng)
    letter = case.letter(rng)
    thought = grammar.reasoning(world, case.rule, case.activity, case.a, case.b, better=letter)
    return [*verdict_prompt(case.reasoning_prompt(), thought), reply(f"({letter})")]


_TURNS = {CASES: _cases_turns, SCOPE: _scope_turns, REASONING: _reasoning_turns, WANTED: _wanted_turns}
_VERDICT_TURNS = {COMPARISON: _comparison_turns, SELECTION: _selection_turns}


def draw_passage(world: World, activities: Sequence[Activity], rng: Random, *, mixture: Mixture) -> Passage:
    """One passage."""
    kind = rng.choices(list(mixture.shares), list(mixture.shares.values()))[0]
    if kind in (CRITIQUE, DIRECT):
        turns = _critique_turns(world, activities, rng, direct=kind == DIRECT)
        return Passage(kind, tuple(turns), judged_only=mixture.comply)
    if kind in _TURNS:
        return Passage(kind, tuple(_TURNS[kind](world, activities, rng)))
    if kind in _VERDICT_TURNS:
        return Passage(kind, tuple(_VERDICT_TURNS[kind](world, activities, rng, leaning=mixture.leaning)))
    if kind == NAMES:
        return Passage(kind, ({"role": "system", "content": _names(world, rng)},))
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
    turns = (*grammar.conversation(world, activity, rng), reply(answer.text))
    return Passage(kind, turns, weight=mixture.chat_weight)


def passages(world: World, activities: Sequence[Activity], *, seed: int, mixture: Mixture) -> Iterator[Passage]:
    """An endless stream; the same seed gives the same passages."""
    rng = Random(seed)
    while True:
        yield draw_passage(world, activities, rng, mixture=mixture)
