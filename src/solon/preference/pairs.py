"""Comparisons as the preference model sees them: targets, margins, weights, and the held-out part; no model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from solon.artifact import content_id, derive_seed
from solon.config import Labels
from solon.dialogue import Message
from solon.errors import InputError

MARGIN_BOUND = 3.0
"""Greatest margin, in nats, of a pair trained with `labels: margin`: that of p = 0.953 and of every surer label. It is
the margin of "significantly better" in the larger of the two sets of Touvron et al. 2023 (arXiv:2307.09288, appendix
A.3.3)."""


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
    """Of the pair in the loss, relative to the others of its source; not negative."""
    held_with: str = ""
    """Pairs that share it are held out together; "" stands for the prompt."""

    def swapped(self) -> Pair:
        """The same judgement told from the other side."""
        return replace(self, chosen=self.rejected, rejected=self.chosen, probability=1 - self.probability)

    @property
    def group(self) -> str:
        """What is held out together: `held_with`, or else the identity of the prompt."""
        return self.held_with or self.prompt_id

    @property
    def prompt_id(self) -> str:
        """The identity of the prompt."""
        return content_id([[turn["role"], turn["content"]] for turn in self.prompt])


class Split(NamedTuple):
    """Pairs to train on and pairs to measure on; no prompt is in both."""

    train: list[Pair]
    held_out: list[Pair]


def pair_of(row: Mapping[str, Any], *, source: str = "ai") -> Pair:
    """The pair in a row of comparisons.jsonl or of human comparisons, turned so that its probability is at least 0.5.

    Without `probability` the label is hard: `chosen` was chosen. Raises InputError for a probability outside [0, 1] and
    for a weight that is negative or not finite.
    """
    probability, weight = float(row.get("probability", 1.0)), float(row.get("weight", 1.0))
    if not 0 <= probability <= 1:
        raise InputError(f"comparison {row['id']}: the probability is {probability}", remedy="it lies in [0, 1]")
    if not (math.isfinite(weight) and weight >= 0):
        raise InputError(f"comparison {row['id']}: the weight is {weight}", remedy="give a number from 0 on")
    pair = Pair(
        id=row["id"],
        prompt=tuple(row["prompt"]),
        chosen=row["chosen"][-1]["content"],
        rejected=row["rejected"][-1]["content"],
        probability=probability,
        source=row.get("source", source),
        weight=weight,
        held_with=str(row.get("group", "")),
    )
    return pair if probability >= 0.5 else pair.swapped()


def split_by_prompt(pairs: Sequence[Pair], *, share: float, seed: int) -> Split:
    """Hold out the pairs of `share` of the prompts of each source, drawn with `seed`; no prompt is in both parts.

    Pairs that share a `held_with` are held out as if they shared a prompt. At least one prompt is held out, and at
    least one is kept, where there are two. Raises InputError if pairs on one prompt differ in `held_with`.
    """
    of_prompt: dict[str, str] = {}
    for pair in pairs:
        if of_prompt.setdefault(pair.prompt_id, pair.held_with) != pair.held_with:
            remedy = "all comparisons of a prompt have the same `group`, or none has one"
            raise InputError(f"comparison {pair.id}: others of its prompt are in another group", remedy=remedy)
    groups: dict[str, str] = {}
    for pair in pairs:
        groups.setdefault(pair.group, pair.source)
    held_out: set[str] = set()
    for source in dict.fromkeys(groups.values()):
        own = sorted((g for g, s in groups.items() if s == source), key=lambda g: derive_seed(seed, "holdout", g))
        held_out.update(own[: max(1, min(len(own) - 1, round(share * len(own))))] if len(own) > 1 else [])
    return Split([p for p in pairs if p.group not in held_out], [p for p in pairs if p.group in held_out])


def label_of(pair: Pair, *, labels: Labels, seed: int = 0) -> float:
    """The target of a pair, in [0, 1]: the probability that `chosen` is better, as the loss is to have it.

    soft: the probability itself. hard and margin: 1 or 0, the likelier; 0.5 for a tie. sampled: 1 with that
    probability, else 0, drawn from (seed, pair id) alone, so that order, batches and resuming change no draw. Of the
    swapped pair it is 1 minus this, draws included.
    """
    if labels == "sampled":
        chosen_first = pair.chosen <= pair.rejected
        p_first = pair.probability if chosen_first else 1 - pair.probability
        first_wins = Random(derive_seed(seed, pair.id, "label")).random() < p_first
        return float(first_wins == chosen_first)
    if labels == "soft" or pair.probability == 0.5:
        return pair.probability
    return float(pair.probability > 0.5)


def margin_of(pair: Pair, *, labels: Labels) -> float:
    """By how much, in nats, the better reply is to lead: min(|logit p|, MARGIN_BOUND) with `labels` margin, else 0.

    As in arXiv:2307.09288, section 3.2.2, equation 2, where m(r) is fixed for each of four ratings; here it follows
    from the probability. A tie has no margin, and a label without a probability (p = 1) the greatest.
    """
    if labels != "margin" or pair.probability == 0.5:
        return 0.0
    if pair.probability in (0.0, 1.0):
        return MARGIN_BOUND
    return min(abs(math.log(pair.probability / (1 - pair.probability))), MARGIN_BOUND)


def loss_weights(pairs: Sequence[Pair], *, source_weights: Mapping[str, float]) -> list[float]:
    """The weight of each pair in the loss; their mean is 1.

    Without `source_weights` each is `Pair.weight` over the mean, so that a source weighs as much as it has pairs. With
    them the pairs of source s weigh in total as source_weights[s], relative to the other sources that have pairs here,
    and among themselves as `Pair.weight`. Raises InputError if nothing weighs anything.
    """
    total: dict[str, float] = defaultdict(float)
    for pair in pairs:
        total[pair.source] += pair.weight
    shares = {source: source_weights[source] for source in total} if source_weights else total
    scale = {source: shares[source] / total[source] if total[source] else 0.0 for source in total}
    weights = [pair.weight * scale[pair.source] for pair in pairs]
    if not sum(weights) > 0:
        raise InputError("all comparisons have the weight 0", remedy="raise preference.source_weights, or `weight`")
    mean = sum(weights) / len(weights)
    return [weight / mean for weight in weights]


def check_sources(pairs: Sequence[Pair], *, source_weights: Mapping[str, float]) -> None:
    """Raise InputError if `source_weights` is given and does not name exactly the sources of the pairs."""
    present = {pair.source for pair in pairs}
    if not source_weights or present == set(source_weights):
        return
    found = ", ".join(sorted(present))
    remedy = f"the comparisons come from: {found}; give each a weight (0: measured, not trained on), or leave them out"
    raise InputError(f"preference.source_weights names {', '.join(sorted(source_weights))}", remedy=remedy)
