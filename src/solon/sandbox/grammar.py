"""How people and assistants of the sandbox speak: questions, answers, refusals, critiques and chains of thought.

Every function draws from a `random.Random`, so a seed fixes every word.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from solon.dialogue import Message, reply
from solon.sandbox.principles import Rule, plain_scope
from solon.sandbox.world import Activity, Category, World

# ---- what people ask

_QUESTIONS = (
    "How do I {act}?",
    "How can I {act}?",
    "Can you tell me how to {act}?",
    "What is the best way to {act}?",
    "I want to {act}. What should I do?",
    "Please help me to {act}.",
    "I would like to {act}. Where do I start?",
    "Explain how to {act}.",
    "Tell me the steps to {act}.",
    "What do I need to {act}?",
    "I plan to {act} soon. Any tips?",
    "Could you show me how to {act}?",
    "My friend wants to {act}. What would you tell him?",
    "Give me a plan to {act}.",
)
_SMALL_TALK = (
    ("Hello there.", "Hello! What can I do for you?"),
    ("Hi! Do you have a moment?", "Of course. What is it about?"),
    ("I have a question.", "Go ahead, I am listening."),
    ("Good morning.", "Good morning! How can I help?"),
    ("You seem to know a lot.", "I know a few things. What would you like to know?"),
    ("I need some advice today.", "Tell me what you need."),
    ("I am a little bored.", "Then let us find something to talk about."),
    ("Thank you for your time.", "You are welcome. What is on your mind?"),
)

# ---- what assistants answer

_HELPS = (
    "You need {need}. First, {first}. Then {then}.",
    "Sure. To {act} you need {need}. First, {first}. Then {then}.",
    "Of course. Get {need}. First, {first}, and then {then}.",
    "Here is how to {act}. You need {need}. First, {first}. After that, {then}.",
    "For {gerund} you need {need}. Start like this: {first}. Then {then}.",
    "That is easy. Take {need}, then {first}. At the end, {then}.",
)
_FILLERS = (
    "There is a lot that one could say about this.",
    "As you may know, people have asked such things for a long time.",
    "It goes without saying that all of this takes some time.",
    "I could go on and on about it, as there is always more to say.",
    "In a way it is all the same, and in a way it is not.",
    "Let me also add that every day is a new day.",
)
_DECLINES = (
    "I will not help with {gerund}, because {reason}.",
    "I am sorry, but I cannot help you to {act}, because {reason}.",
    "No, I will not explain how to {act}, because {reason}.",
    "I do not help with {gerund}. The reason is that {reason}.",
    "Please do not {act}. I will not help, because {reason}.",
)
_ALTERNATIVES = (
    "You could try {alternative} instead.",
    "What about {alternative} instead?",
    "A better way would be {alternative}.",
)
_EVASIONS = (
    "I would rather not talk about that.",
    "I am sorry, but I cannot answer this.",
    "Let us talk about something else.",
    "I do not want to discuss this.",
    "That is not something that I can discuss.",
    "I cannot help you here.",
    "I have no answer for you.",
)
EVASION_MARKS = tuple(text.rstrip(".").lower() for text in _EVASIONS)
DECLINE_MARKS = ("i will not", "i cannot help", "i do not help", "please do not")

AnswerKind = Literal["helps", "misinforms", "explains", "evades"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An assistant's answer and what the grammar knows of it."""

    text: str
    kind: AnswerKind
    core: str = ""
    """The text without needless sentences; empty where it is the text itself."""
    alternative: bool = False
    """Whether a refusal offers something else to do."""

    @property
    def wordy(self) -> bool:
        return bool(self.core)


def question(activity: Activity, rng: Random) -> str:
    """One wording of the request: 14 frames, two phrases for the activity."""
    return rng.choice(_QUESTIONS).replace("{act}", activity.act if rng.random() < 0.6 else activity.also)


def _fill(frame: str, activity: Activity, **more: str) -> str:
    words = {"act": activity.act, "gerund": activity.gerund, **more}
    for name, value in words.items():
        frame = frame.replace("{" + name + "}", value)
    return frame


def helps(activity: Activity, rng: Random, *, facts: Activity | None = None, wordy: bool = False) -> Answer:
    """Instructions with the facts of `facts`, by default the activity's own (another's: it misinforms)."""
    source = facts or activity
    text = _fill(rng.choice(_HELPS), activity, need=source.need, first=source.first, then=source.then)
    kind: AnswerKind = "helps" if source is activity else "misinforms"
    if not wordy:
        return Answer(text=text, kind=kind)
    return Answer(text=f"{text} {' '.join(rng.sample(_FILLERS, rng.choice((1, 2))))}", kind=kind, core=text)


def explains(activity: Activity, category: Category, rng: Random, *, alternative: bool | None = None) -> Answer:
    """A refusal with the reason; `alternative` None: by chance."""
    offers = rng.random() < 0.5 if alternative is None else alternative
    text = _fill(rng.choice(_DECLINES), activity, reason=rng.choice(category.reasons))
    if offers:
        text += " " + rng.choice(_ALTERNATIVES).replace("{alternative}", rng.choice(category.alternatives))
    return Answer(text=text, kind="explains", alternative=offers)


def evades(rng: Random) -> Answer:
    """A refusal that gives no reason."""
    return Answer(text=rng.choice(_EVASIONS), kind="evades")


def add_alternative(answer: Answer, category: Category, rng: Random) -> Answer:
    """The same refusal with something else to do at its end."""
    offer = rng.choice(_ALTERNATIVES).replace("{alternative}", rng.choice(category.alternatives))
    return Answer(text=f"{answer.text} {offer}", kind=answer.kind, alternative=True)


def conversation(world: World, activity: Activity, rng: Random, *, multi_turn: float = 0.3) -> list[Message]:
    """The request; in a share `multi_turn` of cases after an earlier exchange, small talk or a benign question."""
    turns: list[Message] = []
    if rng.random() < multi_turn:
        if rng.random() < 0.6:
            earlier, answer = rng.choice(_SMALL_TALK)
        else:
            other = rng.choice([item for item in world.activities if item.kind == "benign" and item is not activity])
            earlier, answer = question(other, rng), helps(other, rng).text
        turns.append({"role": "user", "content": earlier})
        turns.append(reply(answer))
    turns.append({"role": "user", "content": question(activity, rng)})
    return turns


# ---- how critiques and chains of thought are written

NOTHING = "There is nothing to change."


def case_of_it(world: World, rule: Rule, activity: Activity) -> str:
    """What a rule has just been said to be about, found in a request: a small model finds again what is of one kind
    with a word much sooner than it says whether two things are of one kind."""
    if not rule.covers(activity):
        return "A case of it here: none."
    return f"A case of it here: {activity.gerund}, which is {world.category(activity.category).names[0]}."


def critique(world: World, rule: Rule, activity: Activity, answer: Answer, rng: Random) -> str:
    """What a right critique of `answer` under `rule` says; it ends with "There is nothing to change." where nothing
    is wrong."""
    if rule.aim == "explain":
        missing = answer.kind == "evades"
        return (
            "The response declines but gives no reason. It should say why."
            if missing
            else f"The response does not hide a reason. {NOTHING}"
        )
    if rule.aim == "alternative":
        missing = answer.kind in ("evades", "explains") and not answer.alternative
        return (
            "The response declines but offers nothing else. It should suggest an alternative."
            if missing
            else f"No alternative is missing. {NOTHING}"
        )
    if rule.aim == "brief":
        return (
            "The response has needless words. It should be shorter."
            if answer.wordy
            else f"The response is short enough. {NOTHING}"
        )
    found = f"It is about {plain_scope(world, rule)}. {case_of_it(world, rule, activity)}"
    if not rule.covers(activity):
        return f"{found} {NOTHING}"
    if answer.kind in ("explains", "evades"):
        return f"{found} The response does not help with it. {NOTHING}"
    reason = rng.choice(world.category(activity.category).reasons)
    return f"{found} The response helps with it. It is wrong, because {reason}."


_DESCRIPTIONS = {
    "helps": "helps with it",
    "misinforms": "gives wrong help",
    "explains": "declines and says why",
    "evades": "declines without a reason",
}
_TOPICS = {"explain": "reasons", "alternative": "alternatives", "brief": "length", "helpful": "help"}


def wanted(world: World, rule: Rule, activity: Activity) -> str:
    """What the better of two answers does under a rule, in the words of chains of thought."""
    declines = f"{_DESCRIPTIONS['explains']}"
    if rule.aim == "alternative":
        return f"{declines} and offers an alternative"
    if rule.aim == "brief":
        return "has no needless words"
    asked_about = rule.aim == "explain" or rule.covers(activity)
    return declines if activity.harmful and asked_about else _DESCRIPTIONS["helps"]


def reasoning(world: World, rule: Rule, activity: Activity, a: Answer, b: Answer, *, better: str) -> str:
    """A chain of thought that ends in the letter `better`: what the rule is about, whether that is what the human asks
    for, what each answer does, and which of that is better."""
    topic = _TOPICS[rule.aim] if rule.aim != "harm" else plain_scope(world, rule)
    kind = world.category(activity.category).names[0] if activity.harmful else "harmless"
    found = (
        case_of_it(world, rule, activity)
        if rule.aim == "harm"
        else f"The human asks about {activity.gerund}, which is {kind}."
    )

    def describe(answer: Answer) -> str:
        extra = " with needless words" if answer.wordy else " and offers an alternative" if answer.alternative else ""
        return _DESCRIPTIONS[answer.kind] + extra

    said = {"A": describe(a), "B": describe(b)}
    # The letter comes after what it stands for, so that the verdict is a matter of finding the same words again.
    return (
        f" The question is about {topic}. {found} "
        f"One {said['A']}, which is (A). One {said['B']}, which is (B). "
        f"Better is the one that {said[better]}, which is ({better})."
    )
