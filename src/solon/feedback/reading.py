"""A judge's answer as a number, or the reason why it is none."""

from __future__ import annotations

import re
from math import exp, isfinite, isnan
from typing import NamedTuple

from solon.engine import Choice

_LETTER = r"\(([AB])\)"
_FIRST = re.compile(rf"[^\w(]*{_LETTER}")
_LED = re.compile(
    r"\W*(?i:(?:so )?(?:(?:the|my) )?(?:(?:better|best|correct|right|final) )?"
    rf"(?:answer|verdict|choice|option|response)(?: is)?)[^\w(]*(?:{_LETTER}|([AB])(?![\w']))"
)
_BARE = re.compile(r"\W*([AB])(?:\W*|[.:)\n].*)", re.DOTALL)
_NAMED = re.compile(r"\(([AB])\)|\b(B)\b|\b(A)(?=[.:)])|(?i:answer|option|response) (A)\b")
"""Any mention of an option. A lone "A" may be the article."""


class Verdict(NamedTuple):
    """What a judge's words decide."""

    option: int | None
    """0 for (A), 1 for (B), None where they decide nothing."""
    reason: str = ""
    """Why nothing: "empty", "ambiguous", "unparseable", or the engine's own word."""
    text: str = ""
    """The judge's words, where they decide nothing."""


def parse_verdict(text: str) -> Verdict:
    """The verdict in a judge's words, strictly: they begin with it, or with "The answer is" and it, and name no other.

    "(B)", "**A**", "The answer is: (A)." and "(B) because ..." are verdicts; "(A) or (B)" is ambiguous; "I cannot
    choose (A)", "A good question" and any other text are unparseable.
    """
    if not text.strip():
        return Verdict(None, "empty", text)
    named = {letter for groups in _NAMED.findall(text) for letter in groups if letter}
    match = _FIRST.match(text) or _LED.match(text) or _BARE.fullmatch(text)
    if match:
        named.add(next(group for group in match.groups() if group))
    if len(named) > 1:
        return Verdict(None, "ambiguous", text)
    return Verdict("AB".index(named.pop())) if match else Verdict(None, "unparseable", text)


def normalise(choice: Choice) -> float | None:
    """Probability of the first of two options, given that one of them is the answer: exp(x0) / (exp(x0) + exp(x1)).

    None where neither was seen: both are mere upper bounds, or minus infinity, or one is not a number.
    """
    first, second = choice.logprobs
    if all(choice.censored) or isnan(first + second) or not (isfinite(first) or isfinite(second)):
        return None
    return 1 / (1 + exp(second - first)) if second <= first else exp(first - second) / (1 + exp(first - second))


def seen_mass(choice: Choice) -> float:
    """Probability that the answer is an option, in [0, 1], from the values that are not mere bounds."""
    pairs = zip(choice.logprobs, choice.censored, strict=True)
    return min(1.0, sum(exp(value) for value, censored in pairs if not censored))
