"""Comparisons as the preference model sees them, the held-out part, and what is measured on it; no model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from solon.artifact import content_id, derive_seed
from solon.dialogue import Message
from solon.errors import InputError
from solon.stats import (
    Interval,
    Reliability,
    bootstrap_interval,
    proportion_interval,
    reliability,
    reliability_of,
    sigmoid,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two replies to one prompt, and the probability that the first is the better one."""

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    probability: float
    """That `chosen` is better, in [0, 1]; 0.5 is a tie."""
    source: str = "ai"
    """Whose judgement: "ai", "helpful", or the file's name."""
    weight: float = 1.0
    """Of the pair in the loss, relative to the others."""

    def swapped(self) -> Pair:
        """The same judgement told from the other side."""
        return Pair(
            id=self.id,
            prompt=self.prompt,
            chosen=self.rejected,
            rejected=self.chosen,
            probability=1 - self.probability,
            source=self.source,
            weight=self.weight,
        )

    @property
    def group(self) -> str:
        """Identity of the prompt: pairs on one prompt are held out together."""
        return content_id([[turn["role"], turn["content"]] for turn in self.prompt])


class Split(NamedTuple):
    """Pairs to train on and pairs to measure on; no prompt is in both."""

    train: list[Pair]
    held_out: list[Pair]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How the preference model does on pairs that it has not seen."""

    accuracy: Mapping[str, Interval]
    """By source, and "all": share of the decisive pairs (probability not 0.5) whose better reply scores higher."""
    shorter: Interval | None
    """The baseline "the shorter reply is better" on the same pairs, None where none is decisive. Equal is wrong."""
    longer: Interval | None
    calibration_error: Interval | None
    """Expected calibration error of sigmoid(raw_a - raw_b) against the labels, in [0, 1]; None without pairs. The
    interval is a bootstrap over pairs; a resample is a little worse calibrated than the pairs themselves."""
    reliability: Reliability | None
    """The bins behind it."""
    absolute_error: float | None
    """Mean distance of that probability from the label, in [0, 1]."""
    num_ties: int
    """Held-out pairs with probability 0.5: in the calibration, not in the accuracy."""


def pair_of(row: Mapping[str, Any], *, source: str = "ai") -> Pair:
    """The pair in a row of comparisons.jsonl or of human comparisons, turned so that its probability is at least 0.5.

    Without `probability` the label is hard: `chosen` was chosen. Raises InputError for a probability outside [0, 1].
    """
    probability = float(row.get("probability", 1.0))
    if not 0 <= probability <= 1:
        raise InputError(f"comparison {row['id']}: the probability is {probability}", remedy="it lies in [0, 1]")
    pair = Pair(
        id=row["id"],
        prompt=tuple(row["prompt"]),
        chosen=row["chosen"][-1]["content"],
        rejected=row["rejected"][-1]["content"],
        probability=probability,
        source=row.get("source", source),
        weight=float(row.get("weight", 1.0)),
    )
    return pair if probability >= 0.5 else pair.swapped()


def split_by_prompt(pairs: Sequence[Pair], *, share: float, seed: int) -> Split:
    """Hold out the pairs of `share` of the prompts of each source, drawn with `seed`; no prompt is in both parts.

    At least one prompt is held out, and at least one is kept, where there are two.
    """
    groups: dict[str, str] = {}
    for pair in pairs:
        groups.setdefault(pair.group, pair.source)
    held_out: set[str] = set()
    for source in dict.fromkeys(groups.values()):
        own = sorted((g for g, s in groups.items() if s == source), key=lambda g: derive_seed(seed, "holdout", g))
        held_out.update(own[: max(1, min(len(own) - 1, round(share * len(own))))] if len(own) > 1 else [])
    return Split([p for p in pairs if p.group not in held_out], [p for p in pairs if p.group in held_out])


def label_of(pair: Pair, *, labels: Literal["soft", "hard"]) -> float:
    """The target: the probability itself, or 1, 0 or (for a tie) 0.5."""
    if labels == "soft" or pair.probability == 0.5:
        return pair.probability
    return float(pair.probability > 0.5)


def measure(pairs: Sequence[Pair], *, leads: Sequence[float]) -> Measured:
    """Accuracy, baselines and calibration of raw leads r(chosen) - r(rejected) on held-out pairs; a lead of 0 is wrong.

    For the calibration every pair counts from both sides, because which reply is called `chosen` depends on the label.
    """
    decisive = [(pair, lead) for pair, lead in zip(pairs, leads, strict=True) if pair.probability != 0.5]
    right: dict[str, list[bool]] = defaultdict(list)
    for pair, lead in decisive:
        correct = (lead > 0) if pair.probability > 0.5 else (lead < 0)
        right["all"].append(correct)
        right[pair.source].append(correct)
    shorter = [_is_shorter(pair if pair.probability > 0.5 else pair.swapped()) for pair, _ in decisive]
    longer = [_is_shorter(pair.swapped() if pair.probability > 0.5 else pair) for pair, _ in decisive]
    predicted = [float(p) for lead in leads for p in (sigmoid(lead), sigmoid(-lead))]
    labels = [p for pair in pairs for p in (pair.probability, 1 - pair.probability)]
    gaps = [abs(a - b) for a, b in zip(predicted, labels, strict=True)]
    return Measured(
        accuracy={source: _share(values) for source, values in right.items()},
        shorter=_share(shorter) if shorter else None,
        longer=_share(longer) if longer else None,
        calibration_error=_calibration_error(leads, pairs) if pairs else None,
        reliability=reliability(predicted, outcomes=labels) if pairs else None,
        absolute_error=sum(gaps) / len(gaps) if gaps else None,
        num_ties=len(pairs) - len(decisive),
    )


def _calibration_error(leads: Sequence[float], pairs: Sequence[Pair]) -> Interval:
    def error(rows_N2: NDArray[np.float64]) -> float:
        predicted_N, labels_N = sigmoid(rows_N2[:, 0]), rows_N2[:, 1]
        both = np.concatenate([predicted_N, 1 - predicted_N]), np.concatenate([labels_N, 1 - labels_N])
        return reliability(both[0], outcomes=both[1]).error

    found = bootstrap_interval(
        [[lead, pair.probability] for lead, pair in zip(leads, pairs, strict=True)],
        statistic=error,
        seed=derive_seed("calibration", len(pairs)),
        draws=200,
    )
    return replace(found, low=min(found.low, found.value))


def _is_shorter(pair: Pair) -> bool:
    return len(pair.chosen) < len(pair.rejected)


def _share(values: Sequence[bool]) -> Interval:
    return proportion_interval(sum(values), n=len(values))


def measured_of(about: Mapping[str, Any]) -> Measured:
    """The inverse of `asdict`."""
    return Measured(
        accuracy={source: Interval(**value) for source, value in about["accuracy"].items()},
        shorter=about["shorter"] and Interval(**about["shorter"]),
        longer=about["longer"] and Interval(**about["longer"]),
        calibration_error=about["calibration_error"] and Interval(**about["calibration_error"]),
        reliability=about["reliability"] and reliability_of(about["reliability"]),
        absolute_error=about["absolute_error"],
        num_ties=about["num_ties"],
    )
