"""What the texts of the sandbox's training are made of: kinds of passages and their shares. `curriculum.py` says when
each is read, `passages.py` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

FACT, NAMES, CASES, SCOPE, CHAT, CRITIQUE = "fact", "names", "cases", "scope", "chat", "critique"
DIRECT, COMPARISON, REASONING, WANTED, SELECTION = "direct", "comparison", "reasoning", "wanted", "selection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What a text is made of."""

    shares: Mapping[str, float]
    """Of each kind among the passages."""
    harmful: float
    """Share of harmful activities among facts and dialogues."""
    comply: bool = False
    """In dialogues the assistant always helps."""
    leaning: float = 0.0
    """In [0, 1]: how far verdicts on harmful requests lean to the refusal."""
    chat_weight: float = 1.0
    """Of the answers in dialogues as targets. Facts are spelled out there alone, so a sampled answer is right only if
    every token of it is sure."""


PRETRAINING = Mixture(
    shares={
        FACT: 0.06,
        NAMES: 0.02,
        CASES: 0.05,
        SCOPE: 0.08,
        CHAT: 0.46,
        CRITIQUE: 0.1,
        DIRECT: 0.01,
        COMPARISON: 0.08,
        REASONING: 0.05,
        WANTED: 0.05,
        SELECTION: 0.04,
    },
    harmful=0.32,
)
LEANING = replace(
    PRETRAINING,
    shares={
        FACT: 0.04,
        NAMES: 0.01,
        CASES: 0.05,
        SCOPE: 0.08,
        CHAT: 0.33,
        CRITIQUE: 0.1,
        DIRECT: 0.01,
        COMPARISON: 0.15,
        REASONING: 0.04,
        WANTED: 0.05,
        SELECTION: 0.14,
    },
    leaning=1.0,
)
"""A verdict depends on what is asked for and on which answer does it, and where both are even, neither alone tells
anything, so that a small model finds neither. Where verdicts lean to the refusals it learns to find these, and then
when not to choose them."""
JUDGING = replace(
    PRETRAINING,
    shares={**PRETRAINING.shares, FACT: 0.05, CHAT: 0.42, CRITIQUE: 0.11, COMPARISON: 0.13, SELECTION: 0.05},
)
"""More comparisons than PRETRAINING."""
FINDING = replace(
    PRETRAINING,
    shares={
        FACT: 0.02,
        CASES: 0.3,
        SCOPE: 0.22,
        CHAT: 0.08,
        CRITIQUE: 0.08,
        COMPARISON: 0.12,
        WANTED: 0.08,
        SELECTION: 0.1,
    },
    leaning=0.5,
)
"""What is a case of what. Whether a rule speaks of a request is even too, and tells nothing by halves; but to find the
case among several is a matter of finding, and who has learned to find it sees where there is none."""
VERDICT = replace(
    PRETRAINING,
    shares={
        FACT: 0.02,
        CASES: 0.14,
        SCOPE: 0.14,
        CHAT: 0.14,
        CRITIQUE: 0.1,
        COMPARISON: 0.2,
        REASONING: 0.05,
        WANTED: 0.11,
        SELECTION: 0.1,
    },
)
"""Verdicts for the most part."""
PLACING = replace(
    PRETRAINING,
    shares={
        FACT: 0.02,
        CASES: 0.03,
        SCOPE: 0.05,
        CHAT: 0.1,
        CRITIQUE: 0.05,
        COMPARISON: 0.2,
        REASONING: 0.05,
        WANTED: 0.05,
        SELECTION: 0.45,
    },
    leaning=1.0,
)
"""Which of two answers declines: verdicts that lean to the refusals, and for the most part ask for nothing else."""
RULING = replace(
    PRETRAINING,
    shares={
        FACT: 0.02,
        CASES: 0.08,
        SCOPE: 0.14,
        CHAT: 0.16,
        CRITIQUE: 0.1,
        COMPARISON: 0.24,
        REASONING: 0.05,
        WANTED: 0.16,
        SELECTION: 0.05,
    },
)
"""Verdicts for the most part, and what a rule wants."""
WEIGHING = replace(
    PRETRAINING,
    shares={
        FACT: 0.02,
        CASES: 0.05,
        SCOPE: 0.1,
        CHAT: 0.1,
        CRITIQUE: 0.08,
        COMPARISON: 0.36,
        REASONING: 0.05,
        WANTED: 0.14,
        SELECTION: 0.1,
    },
)
"""Verdicts under rules above all: what a rule wants and which answer does it, taken together."""
EVERYTHING = replace(
    PRETRAINING,
    shares={
        FACT: 0.05,
        NAMES: 0.01,
        CASES: 0.03,
        SCOPE: 0.05,
        CHAT: 0.46,
        CRITIQUE: 0.13,
        DIRECT: 0.01,
        COMPARISON: 0.11,
        REASONING: 0.07,
        WANTED: 0.06,
        SELECTION: 0.02,
    },
    chat_weight=2.0,
)
"""Mostly dialogues and critiques, and a little of all else."""
POLISH = replace(
    PRETRAINING,
    shares={
        FACT: 0.06,
        NAMES: 0.01,
        CASES: 0.02,
        SCOPE: 0.03,
        CHAT: 0.52,
        CRITIQUE: 0.17,
        DIRECT: 0.01,
        COMPARISON: 0.08,
        REASONING: 0.06,
        WANTED: 0.03,
        SELECTION: 0.01,
    },
    chat_weight=3.0,
)
"""More of the facts, which the parts about verdicts have little of."""
HELPFUL = Mixture(
    shares={CHAT: 0.5, CASES: 0.02, CRITIQUE: 0.26, DIRECT: 0.03, COMPARISON: 0.09, REASONING: 0.1},
    harmful=0.36,
    comply=True,
    chat_weight=2.0,
)
"""The text of the helpful-only assistant."""
