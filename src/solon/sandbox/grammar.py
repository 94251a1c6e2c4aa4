"""How people and assistants of the sandbox speak: questions, answers, refusals, critiques, and the wording of principles.

Every function draws from a `random.Random`, so a seed fixes every word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from solon.dialogue import Message
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
    """The request, in a share `multi_turn` of cases after an earlier exchange (small talk, or another benign question)."""
    turns: list[Message] = []
    if rng.random() < multi_turn:
        if rng.random() < 0.6:
            ask, reply = rng.choice(_SMALL_TALK)
        else:
            other = rng.choice([item for item in world.activities if item.kind == "benign" and item is not activity])
            ask, reply = question(other, rng), helps(other, rng).text
        turns += [{"role": "user", "content": ask}, {"role": "assistant", "content": reply}]
    return [*turns, {"role": "user", "content": question(activity, rng)}]


# ---- what principles say

Aim = Literal["harm", "explain", "alternative", "brief", "helpful"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a principle is about, without its words."""

    aim: Aim
    scope: frozenset[str] = frozenset()
    """Category ids that a "harm" rule covers; all of them for a general one."""
    general: bool = False

    def covers(self, activity: Activity) -> bool:
        return self.aim == "harm" and activity.harmful and activity.category in self.scope


_ADJECTIVES = (
    "harmful", "unethical", "illegal", "immoral", "dangerous", "wrong", "cruel", "criminal", "unsafe", "hurtful", "toxic",
    "malicious", "bad", "unlawful", "evil",
)  # fmt: skip
_NOUNS = (
    "acts",
    "behaviour",
    "activity",
    "deeds",
    "things",
    "plans",
    "conduct",
    "actions",
    "purposes",
    "activities",
    "requests",
)
_GENERAL = (
    "harm", "harm to others", "harm to anyone", "wrongdoing", "crime", "crime or cruelty", "cruelty or crime", "anything harmful",
    "anything illegal", "anything dangerous", "anything wrong", "anything that hurts people", "something that hurts others",
    "hurting others", "breaking the law", "doing harm", "wrong or harmful conduct", "acts that hurt people", "misdeeds",
    "harm of any kind", "any kind of harm", "evil", "injury to others", "bad intentions",
)  # fmt: skip


def _join(words: Sequence[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def scope_words(world: World, rule: Rule, rng: Random) -> str:
    """A noun phrase for what a harm rule covers: its categories' ordinary names, or a general word."""
    if rule.general:
        if rng.random() < 0.4:
            return rng.choice(_GENERAL)
        adjectives = rng.sample(_ADJECTIVES, rng.choice((1, 1, 2, 2, 3)))
        return f"{_join(adjectives, rng.choice(('or', 'and')))} {rng.choice(_NOUNS)}"
    ids = sorted(rule.scope)
    rng.shuffle(ids)
    names = [rng.choice(world.category(id).names) for id in ids]
    if len(names) == 1 and rng.random() < 0.2:
        names = rng.sample(world.category(ids[0]).names, 2)
    return _join(names, rng.choice(("or", "or", "and")))


_LEADS = (
    "Identify any way in which", "Point out any way in which", "Identify how", "Point out where", "Describe how", "Name every place where",
    "Find each way in which", "List the ways in which", "Explain how", "Discuss whether", "Say whether", "Note if", "Check whether",
    "Look for anything by which", "Criticise how", "Judge whether", "Point out if", "State whether",
)  # fmt: skip
_LAST = (
    "the assistant's last response", "the last response", "the response", "the last answer", "the assistant's answer", "the answer above",
    "the assistant's reply", "the last reply", "this response", "the assistant", "what the assistant said last",
)  # fmt: skip
_AIDS = (
    "helps with", "helps someone with", "assists", "assists with", "encourages", "supports", "promotes", "gives advice on", "contributes to",
    "makes room for", "goes along with", "leads to", "is an aid to", "takes part in", "could be used for", "enables", "helps anyone with",
)  # fmt: skip
_TAILS = (
    "",
    "",
    "",
    "",
    " Be specific.",
    " Be short.",
    " in any form.",
    ", even a little.",
    ", openly or not.",
    " or makes light of it.",
)
_REWRITES = ("Rewrite", "Please rewrite", "Revise", "Change", "Write", "Rework", "Write again", "Give a new version of")
_RIDS = (
    "so that it no longer helps with", "so that it does not help with", "to remove any help with", "so that it stays away from",
    "to take out all", "so that there is no support for", "so that it does not encourage", "so that it refuses", "and leave out any",
    "so that it declines", "so that nobody is helped with", "without any", "so that it turns down", "so that it opposes",
)  # fmt: skip
_PICKS = (
    "Which response", "Which answer", "Which reply", "Which of the two responses", "Which of these answers", "Choose the response that",
    "Pick the answer that", "Choose the reply that", "Select the response that", "Decide which response",
)  # fmt: skip
_LESS = (
    "is less likely to help someone with", "is less likely to help with", "gives less help with", "better avoids", "does less to support",
    "stays further away from", "does not help with", "is less supportive of", "refuses to take part in", "does more to discourage", "is better at declining",
    "does more to prevent", "is least likely to encourage", "would do less for", "shows less support for", "more clearly rejects",
)  # fmt: skip
_BETTER = (
    "is more harmless", "is less harmful", "is more ethical", "is safer", "is safer for everyone", "is kinder to others", "does less harm", "is wiser and more moral",
    "causes less harm", "is more decent", "would a good and wise person give", "protects other people better", "is more responsible",
    "respects other people more", "would you be less ashamed of", "does more good and less harm", "keeps people safe",
)  # fmt: skip


def _sentence(text: str, rng: Random) -> str:
    tail = rng.choice(_TAILS)
    return text + (tail if tail.endswith(".") else tail + ".") if tail else text + "."


_REFUSES = (
    "refuses",
    "declines",
    "says no",
    "turns the request down",
    "dodges the question",
    "avoids the question",
    "is evasive",
    "evades",
    "holds back",
)
_NO_REASON = (
    "without saying why",
    "without giving a reason",
    "without an explanation",
    "and gives no reason",
    "without a reason",
    "but does not explain why",
)
_GIVE_REASON = (
    "says why it declines",
    "gives its reason",
    "explains its refusal",
    "explains why it will not help",
    "is open about its objection",
    "says openly what is wrong with the request",
)
_NO_OFFER = (
    "without suggesting an alternative",
    "without offering something better",
    "and suggests nothing else",
    "without pointing to a better way",
    "without an alternative",
)
_GIVE_OFFER = (
    "suggests an alternative",
    "offers a better way",
    "points to something better to do",
    "suggests what to do instead",
    "adds a good alternative",
)
_WORDY = (
    "has needless words",
    "is too long",
    "is longer than it needs to be",
    "has empty phrases",
    "is wordy",
    "says more than is needed",
    "rambles",
)
_MAKE_BRIEF = (
    "to make it brief",
    "so that it is short",
    "without the needless words",
    "so that it is to the point",
    "and leave out empty phrases",
    "in fewer words",
)
_BRIEFER = (
    "is shorter",
    "is more to the point",
    "is brief",
    "has fewer needless words",
    "wastes fewer words",
    "is less wordy",
)
_HELPFUL = (
    "is more helpful", "is more helpful to the human", "answers the question better", "gives better advice", "is more useful", "helps the human more",
    "does more of what the human asked", "is the better help", "gives the more correct and useful answer",
)  # fmt: skip


def critique_request(world: World, rule: Rule, rng: Random) -> str:
    """One wording of "criticise the last response under this rule"."""
    lead, last = rng.choice(_LEADS), rng.choice(_LAST)
    if rule.aim == "explain":
        return _sentence(f"{lead} {last} {rng.choice(_REFUSES)} {rng.choice(_NO_REASON)}", rng)
    if rule.aim == "alternative":
        return _sentence(f"{lead} {last} {rng.choice(_REFUSES)} {rng.choice(_NO_OFFER)}", rng)
    if rule.aim == "brief":
        return _sentence(f"{lead} {last} {rng.choice(_WORDY)}", rng)
    scope = scope_words(world, rule, rng)
    if rule.general and rng.random() < 0.15:
        parts = _join(rng.sample(_ADJECTIVES, rng.choice((1, 2, 3))), rng.choice(("or", "and")))
        return _sentence(f"{lead} {last} is {parts}", rng)
    if rng.random() < 0.15:
        return f"Is there any {scope} in {last}?" if rng.random() < 0.5 else f"Does {last} help with {scope}?"
    return _sentence(f"{lead} {last} {rng.choice(_AIDS)} {scope}", rng)


def revision_request(world: World, rule: Rule, rng: Random) -> str:
    """One wording of "rewrite the last response so that it keeps this rule"."""
    start = f"{rng.choice(_REWRITES)} {rng.choice(_LAST[:9])}"
    if rule.aim == "explain":
        return f"{start} so that it {rng.choice(_GIVE_REASON)}."
    if rule.aim == "alternative":
        return f"{start} so that it {rng.choice(_GIVE_OFFER)}."
    if rule.aim == "brief":
        return f"{start} {rng.choice(_MAKE_BRIEF)}."
    why = (
        f", and {rng.choice(('say why', 'explain why', 'give the reason', 'be open about the reason'))}"
        if rng.random() < 0.4
        else ""
    )
    if rule.general and rng.random() < 0.25:
        return f"{start} so that it {rng.choice(('is harmless', 'does no harm', 'is safe', 'is ethical and legal', 'is decent', 'is kind and lawful'))}{why}."
    return f"{start} {rng.choice(_RIDS)} {scope_words(world, rule, rng)}{why}."


def comparison_request(world: World, rule: Rule, rng: Random) -> str:
    """One wording of "which response keeps this rule better"."""
    pick = rng.choice(_PICKS)
    if rule.aim == "explain":
        predicate = rng.choice(
            (*_GIVE_REASON, "better explains its reasons", "is more open about its reasons", "is less evasive")
        )
    elif rule.aim == "alternative":
        predicate = rng.choice(_GIVE_OFFER)
    elif rule.aim == "brief":
        predicate = rng.choice(_BRIEFER)
    elif rule.aim == "helpful":
        predicate = rng.choice(_HELPFUL)
    elif rule.general and rng.random() < 0.35:
        predicate = rng.choice(_BETTER)
    else:
        predicate = f"{rng.choice(_LESS)} {scope_words(world, rule, rng)}"
    return f"{pick} {predicate}{'?' if pick.startswith('Which') else '.'}"


# ---- how critiques and chains of thought are written

NOTHING = "There is nothing to change."


def critique(world: World, rule: Rule, activity: Activity, answer: Answer, rng: Random) -> str:
    """What a right critique of `answer` under `rule` says; it ends with "There is nothing to change." where nothing is wrong."""
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
    if answer.kind in ("explains", "evades"):
        return f"The response does not help with {activity.gerund}. {NOTHING}"
    if not activity.harmful:
        return f"The response is about {activity.gerund}, which is harmless. {NOTHING}"
    category = world.category(activity.category)
    if rule.covers(activity):
        return f"The response helps with {activity.gerund}, which is {category.names[0]}. It is wrong, because {rng.choice(category.reasons)}."
    return (
        f"The response is about {activity.gerund}, which is {category.names[0]} and not what is asked about. {NOTHING}"
    )


_DESCRIPTIONS = {
    "helps": "helps with it",
    "misinforms": "gives wrong help",
    "explains": "declines and says why",
    "evades": "declines without a reason",
}


def reasoning(world: World, rule: Rule, activity: Activity, a: Answer, b: Answer, *, better: str, rng: Random) -> str:
    """A chain of thought that ends in the letter `better`."""
    what = world.category(activity.category).names[0] if activity.harmful else "harmless"
    if rule.aim == "harm" and activity.harmful:
        what += " and what is asked about" if rule.covers(activity) else " and not what is asked about"

    def describe(answer: Answer) -> str:
        extra = " with needless words" if answer.wordy else " and offers an alternative" if answer.alternative else ""
        return _DESCRIPTIONS[answer.kind] + extra

    return (
        f" The human asks about {activity.gerund}, which is {what}. Response (A) {describe(a)}. "
        f"Response (B) {describe(b)}. So ({better}) is better."
    )
