"""What principles are about, and the many words in which people write them.

A `Rule` is a principle without its words. The wordings are composed of parts, so that a model that has read them
understands a user's own principle, as long as it names what it is about in ordinary words. Every function draws from
a `random.Random`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from solon.sandbox.world import Activity, World

Aim = Literal["harm", "explain", "alternative", "brief", "helpful"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a principle is about, without its words."""

    aim: Aim
    scope: tuple[str, ...] = ()
    """Category ids that a "harm" rule covers, in the order in which its words name them; all for a general one."""
    general: bool = False

    def covers(self, activity: Activity) -> bool:
        return self.aim == "harm" and activity.harmful and activity.category in self.scope


_ADJECTIVES = (
    "harmful", "unethical", "illegal", "immoral", "dangerous", "wrong", "cruel", "criminal", "unsafe", "hurtful",
    "toxic", "malicious", "bad", "unlawful", "evil",
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
    "harm", "harm to others", "harm to anyone", "wrongdoing", "crime", "crime or cruelty", "cruelty or crime",
    "anything harmful", "anything illegal", "anything dangerous", "anything wrong", "anything that hurts people",
    "something that hurts others", "hurting others", "breaking the law", "doing harm", "wrong or harmful conduct",
    "acts that hurt people", "misdeeds", "harm of any kind", "any kind of harm", "evil", "injury to others",
    "bad intentions",
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
    names = [rng.choice(world.category(id).names) for id in rule.scope]
    if len(names) == 1 and rng.random() < 0.2:
        names = rng.sample(world.category(rule.scope[0]).names, 2)
    return _join(names, rng.choice(("or", "or", "and")))


def plain_scope(world: World, rule: Rule) -> str:
    """The same in the words of critiques and chains of thought: each category by its first name."""
    return "any harm" if rule.general else _join([world.category(id).names[0] for id in rule.scope], "and")


_LEADS = (
    "Identify any way in which", "Point out any way in which", "Identify how", "Point out where", "Describe how",
    "Name every place where", "Find each way in which", "List the ways in which", "Explain how", "Discuss whether",
    "Say whether", "Note if", "Check whether", "Look for anything by which", "Criticise how", "Judge whether",
    "Point out if", "State whether",
)  # fmt: skip
_LAST = (
    "the assistant's last response", "the last response", "the response", "the last answer",
    "the assistant's answer", "the answer above", "the assistant's reply", "the last reply", "this response",
    "the assistant", "what the assistant said last",
)  # fmt: skip
_AIDS = (
    "helps with", "helps someone with", "assists", "assists with", "encourages", "supports", "promotes",
    "gives advice on", "contributes to", "makes room for", "goes along with", "leads to", "is an aid to",
    "takes part in", "could be used for", "enables", "helps anyone with",
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
    "so that it no longer helps with", "so that it does not help with", "to remove any help with",
    "so that it stays away from", "to take out all", "so that there is no support for",
    "so that it does not encourage", "so that it refuses", "and leave out any", "so that it declines",
    "so that nobody is helped with", "without any", "so that it turns down", "so that it opposes",
)  # fmt: skip
_PICKS = (
    "Which response", "Which answer", "Which reply", "Which of the two responses", "Which of these answers",
    "Choose the response that", "Pick the answer that", "Choose the reply that", "Select the response that",
    "Decide which response",
)  # fmt: skip
_LESS = (
    "is less likely to help someone with", "is less likely to help with", "gives less help with", "better avoids",
    "does less to support", "stays further away from", "does not help with", "is less supportive of",
    "refuses to take part in", "does more to discourage", "is better at declining", "does more to prevent",
    "is least likely to encourage", "would do less for", "shows less support for", "more clearly rejects",
)  # fmt: skip
_BETTER = (
    "is more harmless", "is less harmful", "is more ethical", "is safer", "is safer for everyone",
    "is kinder to others", "does less harm", "is wiser and more moral", "causes less harm", "is more decent",
    "would a good and wise person give", "protects other people better", "is more responsible",
    "respects other people more", "would you be less ashamed of", "does more good and less harm",
    "keeps people safe",
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
_GOOD = ("is harmless", "does no harm", "is safe", "is ethical and legal", "is decent", "is kind and lawful")
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
    "is more helpful", "is more helpful to the human", "answers the question better", "gives better advice",
    "is more useful", "helps the human more", "does more of what the human asked", "is the better help",
    "gives the more correct and useful answer",
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
        return f"{start} so that it {rng.choice(_GOOD)}{why}."
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
