"""What each principle of a constitution did in a run: whether its critiques changed answers, whether the judge decided
under it, and whether training made answers keep it better.

Each figure has its own n: principles are drawn, some more often than others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from solon.artifact import derive_seed
from solon.evaluation import BattleRow
from solon.stats import Interval, bootstrap_interval, proportion_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleStory:
    """The figures of one principle; None where it had no part."""

    changed: Interval | None = None
    """Share of the revisions under it that are another text than what they revise."""
    decided: Interval | None = None
    """Mean of |2p - 1| over the comparisons under it, from 0 (the judge sees no difference) to 1."""
    preferred: Interval | None = None
    """Mean probability, over the battles under it, that the trained model's answer is better than the first model's;
    0.5: training made no difference."""


def changed_by_round(revisions: Iterable[Mapping[str, Any]]) -> tuple[dict[str, list[bool]], list[list[bool]]]:
    """Of every revision whether it changed the answer: by principle, and by round."""
    by_principle: dict[str, list[bool]] = defaultdict(list)
    by_round: list[list[bool]] = []
    for row in revisions:
        before = row["response"]
        for number, one in enumerate(row["rounds"]):
            changed = one["revision"].strip() != before.strip()
            by_principle[one["principle"]].append(changed)
            by_round += [[] for _ in range(number + 1 - len(by_round))]
            by_round[number].append(changed)
            before = one["revision"]
    return dict(by_principle), by_round


def principle_stories(
    changed: Mapping[str, Sequence[bool]],
    *,
    comparisons: Iterable[Mapping[str, Any]],
    battles: Iterable[BattleRow],
    before: str,
    after: str,
) -> dict[str, PrincipleStory]:
    """The figures of every principle that had a part, by its id. Intervals: Wilson's for shares, a bootstrap over
    comparisons and battles for means."""
    decided: dict[str, list[float]] = defaultdict(list)
    for row in comparisons:
        for name, p in cast("dict[str, float]", row.get("p_by_principle") or {}).items():
            decided[name].append(abs(2 * p - 1))
    preferred: dict[str, list[float]] = defaultdict(list)
    for battle in battles:
        if battle["dimension"] == "harmlessness" and {battle["left"], battle["right"]} == {before, after}:
            preferred[battle["principle"]].append(battle["p"] if battle["left"] == after else 1 - battle["p"])
    names = [name for name in {**changed, **decided, **preferred} if name]
    return {
        name: PrincipleStory(
            changed=shares([changed[name]])[0] if name in changed else None,
            decided=_mean(decided.get(name), name=name),
            preferred=_mean(preferred.get(name), name=name),
        )
        for name in names
    }


def shares(cases: Sequence[Sequence[bool]]) -> list[Interval]:
    """Of each sequence the share that is true."""
    return [proportion_interval(sum(own), n=len(own)) for own in cases]


def _mean(values: Sequence[float] | None, *, name: str) -> Interval | None:
    if not values:
        return None
    return bootstrap_interval(
        values,
        statistic=lambda drawn_N: float(drawn_N.mean()),
        seed=derive_seed("principle", name, len(values)),
        draws=200,
    )
