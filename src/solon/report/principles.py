"""What each principle of a constitution did in a run: whether its critiques changed answers, what revisions under all
principles did to it, whether the judge decided under it, and whether training made answers keep it better.

Each figure has its own n: principles are drawn, some more often than others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from solon.evaluation import (
    REVISIONS,
    BattleRow,
    MendingRow,
    Score,
    by_revision,
    opposed,
    steps_of,
)
from solon.stats import Interval, proportion_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleStory:
    """The figures of one principle; None where it had no part."""

    changed: Interval | None = None
    """Share of the revisions under it that are another text than what they revise."""
    mended: Interval | None = None
    """Share of the judged revisions, under whichever principle, that clearly mend it."""
    broken: Interval | None = None
    """Share of the same that clearly break it."""
    decided: Interval | None = None
    """Mean of |2p - 1| over the comparisons under it, from 0 (the judge sees no difference) to 1."""
    preferred: Interval | None = None
    """Mean probability, over the battles under it, that the trained model's answer is better than the first model's;
    0.5: training made no difference."""


class Opposed(NamedTuple):
    """Two principles of which revisions mend the one and break the other."""

    mended: str
    broken: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflicts:
    """What the judge said of revisions under every principle."""

    conflicts: Interval | None
    """Share of the revisions judged under all principles that mend one and break another; None where there is none."""
    mends: Interval | None
    """Share of the same that mend any."""
    breaks: Interval | None
    """Share of the same that break any."""
    revisions: int
    """How many were judged."""
    judgements: int
    unscored: int
    """Judgements that could not be read."""
    opposed: Sequence[Opposed]
    """The pairs that were met most often."""


OPPOSED_SHOWN = 8
"""Pairs of opposed principles that the page lists."""


def interval_of(scores: Iterable[Score], metric: str) -> Interval | None:
    """What scores.json says about the revisions, as an interval."""
    row = next((row for row in scores if row["model"] == REVISIONS and row["metric"] == metric), None)
    return row and Interval(value=row["value"], low=row["low"], high=row["high"], n=row["n"])


def conflicts_of(
    rows: Sequence[MendingRow], *, scores: Sequence[Score], failures: Iterable[Mapping[str, Any]]
) -> Conflicts | None:
    """The figures of mending.jsonl; None where nothing was judged."""
    unscored = sum(row["where"] == "mending" for row in failures)
    if not rows and not unscored:
        return None
    revisions = by_revision(rows)
    pairs = sorted(opposed(revisions.values()).items(), key=lambda entry: (-entry[1], entry[0]))
    return Conflicts(
        conflicts=interval_of(scores, "conflicts"),
        mends=interval_of(scores, "mends"),
        breaks=interval_of(scores, "breaks"),
        revisions=len(revisions),
        judgements=len(rows),
        unscored=unscored,
        opposed=[Opposed(*names, n) for names, n in pairs[:OPPOSED_SHOWN]],
    )


def changed_by_round(revisions: Iterable[Mapping[str, Any]]) -> tuple[dict[str, list[bool]], list[list[bool]]]:
    """Of every revision whether it changed the answer: by principle, and by round."""
    by_principle: dict[str, list[bool]] = defaultdict(list)
    by_round: list[list[bool]] = []
    for row in revisions:
        for step in steps_of(row):
            by_principle[step.principle].append(step.changed)
            by_round += [[] for _ in range(step.round - len(by_round))]
            by_round[step.round - 1].append(step.changed)
    return dict(by_principle), by_round


def principle_stories(
    changed: Mapping[str, Sequence[bool]],
    *,
    comparisons: Iterable[Mapping[str, Any]],
    battles: Iterable[BattleRow],
    scores: Sequence[Score] = (),
    before: str,
    after: str,
) -> dict[str, PrincipleStory]:
    """The figures of every principle that had a part, by its id.

    Intervals are Wilson's, for means of numbers in [0, 1] too: there they are rather too wide, where a bootstrap of the
    few comparisons that a principle may have is far too narrow, and of one has no width at all.
    """
    decided: dict[str, list[float]] = defaultdict(list)
    for row in comparisons:
        for name, p in cast("dict[str, float]", row.get("p_by_principle") or {}).items():
            decided[name].append(abs(2 * p - 1))
    preferred: dict[str, list[float]] = defaultdict(list)
    for battle in battles:
        if battle["dimension"] == "harmlessness" and {battle["left"], battle["right"]} == {before, after}:
            preferred[battle["principle"]].append(battle["p"] if battle["left"] == after else 1 - battle["p"])
    mended = {row["metric"].partition(":")[2]: None for row in scores if row["metric"].startswith("mends:")}
    names = [name for name in {**changed, **decided, **preferred, **mended} if name]
    return {
        name: PrincipleStory(
            changed=shares([changed[name]])[0] if name in changed else None,
            mended=interval_of(scores, f"mends:{name}"),
            broken=interval_of(scores, f"breaks:{name}"),
            decided=_mean(decided.get(name)),
            preferred=_mean(preferred.get(name)),
        )
        for name in names
    }


def shares(cases: Sequence[Sequence[bool]]) -> list[Interval]:
    """Of each sequence the share that is true."""
    return [proportion_interval(sum(own), n=len(own)) for own in cases]


def _mean(values: Sequence[float] | None) -> Interval | None:
    return proportion_interval(sum(values), n=len(values)) if values else None
