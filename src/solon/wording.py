"""What a batch of answers looks like, from their words alone: diversity, repetition, boilerplate, refusals. Any text,
no model.

    distinct(["yes yes", "no"], n=1)        # 2 / 3
    boilerplate(texts)                      # share of answers with the phrase that most of them have

Words are what white space separates, in lower case. A phrase is PHRASE_WORDS words in a row; an answer of fewer words
is one phrase as a whole, and an empty one has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

PHRASE_WORDS = 3

REFUSALS = (
    "i can't",
    "i cannot",
    "i can not",
    "i won't",
    "i will not",
    "i am not able to",
    "i'm not able to",
    "i am unable to",
    "i'm unable to",
    "i do not help",
    "i don't help",
    "i must decline",
    "i have to decline",
    "i would rather not",
    "i'd rather not",
    "i do not want to",
    "i don't want to",
    "i am sorry, but",
    "i'm sorry, but",
    "i apologize",
    "i apologise",
    "please do not",
    "please don't",
    "as an ai",
    "is not appropriate",
    "it is illegal",
    "it's illegal",
    "it is unethical",
    "it's unethical",
)
"""What declining sounds like in English: of the strings by which Zou et al. 2023 (arXiv:2307.15043) tell a refusal
those that answers of other kinds seldom have, with and without contraction, and the same said more mildly.
"""


def distinct(texts: Sequence[str], *, n: int) -> float:
    """Different n-grams over all n-grams of the batch, in [0, 1]: distinct-n of Li et al. 2016 (arXiv:1510.03055).

    1: nothing is said twice. It falls with the size of the batch, so that only batches of one size compare. 0 for a
    batch without an n-gram.
    """
    grams = [gram for text in texts for gram in _grams(text.lower().split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str) -> float:
    """Share of the answer's phrases that it has had before, in [0, 1]: 1 - distinct-PHRASE_WORDS of this one answer.

    0 where nothing is said twice; near 1 where an answer goes round in circles.
    """
    words = text.lower().split()
    grams = _grams(words, min(PHRASE_WORDS, len(words)))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def phrases(text: str) -> set[str]:
    """The different phrases of an answer."""
    words = text.lower().split()
    return {" ".join(gram) for gram in _grams(words, min(PHRASE_WORDS, len(words)))}


def phrase_shares(texts: Sequence[str]) -> Mapping[str, float]:
    """For each phrase the share of `texts` that have it, in (0, 1]."""
    counts = Counter(phrase for text in texts for phrase in phrases(text))
    return {phrase: count / len(texts) for phrase, count in counts.items()}


def boilerplate(texts: Sequence[str]) -> float:
    """Share of the answers that have the batch's commonest phrase, in [0, 1].

    Near 0 where every answer is worded anew, 1 where all share some PHRASE_WORDS words in a row. Of the kind of the
    self-repetition of Salkar et al. 2022 (Self-Repetition in Abstractive Neural Summarizers), which counts answers that
    share any n-gram with another one; one phrase is counted here, because a preference model is fooled by one.
    """
    return max(phrase_shares(texts).values(), default=0.0)


def is_refusal(text: str) -> bool:
    """Whether the answer has one of REFUSALS. What declines in other words, or another language, is not seen."""
    plain = " ".join(text.lower().replace("\u2019", "'").split())
    return any(mark in plain for mark in REFUSALS)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)] if n else []
