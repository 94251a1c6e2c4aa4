"""What labels show of the judges that made them: do two of them agree, and what does each lean to?

    first, second = read_labels("a/comparisons.jsonl"), read_labels("b/comparisons.jsonl")
    judge_agreement(first, second, seed=0).kappa        # Interval
    judge_bias(first).longer                            # share in which the longer answer is chosen

All from rows of comparisons.jsonl, and no model. p(a) is the probability that the pair's a is better, whichever is
`chosen`. A tie, a probability of exactly 0.5, names no answer: it is counted apart and is in no share. Pairs of one
prompt are alike and are drawn together in every interval (the design effect of `stats.clustered_interval`, the
bootstrap's groups); `n` counts pairs. A lean is not a fault by itself: the longer answer may be the better one. Between
two judges of the same pairs it is the difference that tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

from pydantic import TypeAdapter, ValidationError

from solon.artifact import read_numbered_rows
from solon.dialogue import Message
from solon.errors import ROWS_SHOWN, InputError
from solon.feedback.labelling import FeedbackRow
from solon.stats import Floats, Interval, bootstrap_interval, clustered_interval, proportion_interval

MOST_DIFFERENT = 10
"""Pairs that are shown."""
_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])
_COLUMNS = ("prompt", "chosen", "rejected", "probability", "a_is_chosen", "judge")


# ---- types


class Label(NamedTuple):
    """A row in the orientation of its pair."""

    row: FeedbackRow
    p_a: float
    """That a is better, in [0, 1]."""
    a: str
    b: str
    own_is_a: bool | None
    """Whether the judge wrote a; None where it wrote neither, or both, or the row does not say."""

    def turned(self) -> Label:
        """The same label with b first."""
        return Label(self.row, 1 - self.p_a, self.b, self.a, None if self.own_is_a is None else not self.own_is_a)

    @property
    def is_tie(self) -> bool:
        return self.p_a == 0.5

    @property
    def prefers_a(self) -> bool:
        return self.p_a > 0.5

    @property
    def group(self) -> str:
        """Labels of one group, a prompt, are alike."""
        return str(self.row.get("prompt_id", self.row["id"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeBias:
    """What one judge's labels lean to; a share without a single case is None."""

    judge: str
    num_labels: int
    num_ties: int
    a_chosen: Interval | None
    """Share in which the pair's a is chosen; of answers sampled alike, 0.5."""
    order_gap: Interval | None
    """Mean lead of the place (A), in [-1, 1], before both orders were averaged."""
    longer: Interval | None
    """Share in which the answer with more characters is chosen, of the pairs whose lengths differ."""
    own: Interval | None
    """Share in which the judge chooses the answer that it wrote itself, of the pairs in which it wrote one (columns
    `a_by` and `b_by`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A pair on which two judges differ."""

    id: str
    prompt: list[Message]
    p_a: tuple[float, float]
    """The first judge's p(a), and the second's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeAgreement:
    """Two judges of the same pairs. A difference is the first judge's share less the second's, on the same pairs."""

    judges: tuple[str, str]
    num_pairs: int
    """Labelled by both."""
    num_alone: tuple[int, int]
    """Labelled by the first alone, by the second alone."""
    num_ties: int
    """Pairs in which one of the two labels, or both, is a tie."""
    agreement: Interval | None
    """Share of the pairs without a tie in which both choose the same answer."""
    kappa: Interval | None
    """Cohen's (1960), in [-1, 1]: the agreement above that of two judges who choose as often, but by chance, the answer
    whose text comes first in the order of characters; so that it does not matter which answer a file calls a. None
    where both always choose that one, or both always the other."""
    difference: Interval
    """Mean absolute difference of p(a), in [0, 1]; with ties."""
    by_principle: dict[str, Interval]
    """The agreement of the probabilities under each principle that both were asked under, before any clamp."""
    longer: Interval | None
    """Difference of the preference for the longer answer, in [-1, 1]."""
    own: tuple[Interval | None, Interval | None]
    """Where the first judge wrote one of the answers: how much more often it chooses that answer than the second does.
    Then the same for the second judge's own answers against the first: positive is self-preference in both."""
    most_different: tuple[Difference, ...]


# ---- reading


def read_labels(path: str | Path) -> list[FeedbackRow]:
    """The rows of a comparisons.jsonl, or of any file with its columns.

    Raises InputError that lists, with file and line, every row that lacks one, has an old id, or has another value than
    `solon compare` writes in a column that is used here.
    """
    rows: list[FeedbackRow] = []
    problems: list[InputError] = []
    lines: dict[str, int] = {}
    for line, raw in read_numbered_rows(path):
        what = _problem(raw) or (
            f"id {raw['id']!r} stands on line {lines[raw['id']]} too" if raw["id"] in lines else ""
        )
        if what:
            problems.append(
                InputError(what, path=path, line=line, remedy="give a comparisons.jsonl of `solon compare`")
            )
            continue
        lines[raw["id"]] = line
        rows.append(cast(FeedbackRow, raw))
    if problems:
        raise InputError.all_of(problems, shown=ROWS_SHOWN)
    if not rows:
        raise InputError("no label in the file", path=path, remedy="give a comparisons.jsonl of `solon compare`")
    return rows


def _problem(raw: Mapping[str, Any]) -> str:
    if not isinstance(raw.get("id"), str):
        return "a row without an id"
    if missing := [name for name in _COLUMNS if name not in raw]:
        return f"a row without {', '.join(map(repr, missing))}"
    if not _lies_between(raw["probability"], 0, 1):
        return f"probability is {raw['probability']!r}"
    if not isinstance(raw["a_is_chosen"], bool):
        return f"a_is_chosen is {raw['a_is_chosen']!r}"
    for name in ("prompt", "chosen", "rejected"):
        try:
            turns = _MESSAGES.validate_python(raw[name])
        except ValidationError:
            return f"{name!r} is no list of messages"
        if not turns:
            return f"{name!r} is empty"
    return _judge_problem(raw)


def _judge_problem(raw: Mapping[str, Any]) -> str:
    """What is wrong with the columns about the judge; the two that may be missing may be null."""
    if not isinstance(raw["judge"], str):
        return f"judge is {raw['judge']!r}"
    gap, by_principle = raw.get("order_gap"), raw.get("p_by_principle")
    if gap is not None and not _lies_between(gap, -1, 1):
        return f"order_gap is {gap!r}"
    if by_principle is None:
        return ""
    if not isinstance(by_principle, dict):
        return f"p_by_principle is {by_principle!r}"
    wrong = [
        f"{name!r}: {p!r}" for name, p in cast("dict[str, object]", by_principle).items() if not _lies_between(p, 0, 1)
    ]
    return f"p_by_principle has {', '.join(wrong)}" if wrong else ""


def _lies_between(value: object, low: float, high: float) -> bool:
    """Whether it is a number, and within the limits, which NaN never is."""
    return not isinstance(value, bool) and isinstance(value, int | float) and low <= value <= high


# ---- one judge


def judge_bias(rows: Sequence[FeedbackRow], *, seed: int = 0) -> JudgeBias:
    """What the labels of one judge lean to; `seed` is the bootstrap's. Raises ValueError for no rows."""
    if not rows:
        raise ValueError("no bias without a label")
    labels = _labels(rows)
    decided = [one for one in labels if not one.is_tie]
    read = [(gap, one.group) for one in labels if (gap := one.row.get("order_gap")) is not None]
    return JudgeBias(
        judge=_judge(rows),
        num_labels=len(labels),
        num_ties=len(labels) - len(decided),
        a_chosen=_share([(one.prefers_a, one.group) for one in decided]),
        order_gap=_mean(read, seed=seed),
        longer=_share(
            [(one.prefers_a == longer, one.group) for one in decided if (longer := _longer_is_a(one)) is not None]
        ),
        own=_share([(one.prefers_a == own, one.group) for one in decided if (own := one.own_is_a) is not None]),
    )


def _labels(rows: Sequence[FeedbackRow]) -> list[Label]:
    """By id, so that the order of a file changes no interval."""
    return [_label(row) for row in sorted(rows, key=itemgetter("id"))]


def _label(row: FeedbackRow) -> Label:
    p, a_is_chosen = row["probability"], row["a_is_chosen"]
    chosen, rejected = row["chosen"][-1]["content"], row["rejected"][-1]["content"]
    a, b = (chosen, rejected) if a_is_chosen else (rejected, chosen)
    writers = [row.get("a_by"), row.get("b_by")]
    own_is_a = writers[0] == row["judge"] if writers.count(row["judge"]) == 1 else None
    return Label(row, p if a_is_chosen else 1 - p, a, b, own_is_a)


def _longer_is_a(label: Label) -> bool | None:
    return None if len(label.a) == len(label.b) else len(label.a) > len(label.b)


def _judge(rows: Sequence[FeedbackRow]) -> str:
    return ", ".join(sorted({row["judge"] for row in rows}))


# ---- two judges


def judge_agreement(rows: Sequence[FeedbackRow], others: Sequence[FeedbackRow], *, seed: int = 0) -> JudgeAgreement:
    """How far two judges agree on the pairs that both have labelled, joined by their ids; `seed` is the bootstrap's.

    Swapping the judges changes the sign of `longer` and the order of what comes in twos, and nothing else; the order of
    the rows changes nothing, and which answer a file calls a changes `Difference.p_a` alone. Raises InputError where
    the two have no pair in common, or an id stands for other answers.
    """
    joined = _joined(rows, others)
    decided = [both for both in joined if not (both[0].is_tie or both[1].is_tie)]
    longer = [
        ((one.prefers_a == is_a) - (other.prefers_a == is_a), one.group)
        for one, other in decided
        if (is_a := _longer_is_a(one)) is not None
    ]
    by_difference = sorted(joined, key=lambda both: (-abs(both[0].p_a - both[1].p_a), both[0].row["id"]))
    return JudgeAgreement(
        judges=(_judge(rows), _judge(others)),
        num_pairs=len(joined),
        num_alone=(len(rows) - len(joined), len(others) - len(joined)),
        num_ties=len(joined) - len(decided),
        agreement=_share([(one.prefers_a == other.prefers_a, one.group) for one, other in decided]),
        kappa=_kappa([(one.prefers_a, other.prefers_a, one.group) for one, other in map(_by_text, decided)], seed=seed),
        difference=cast(Interval, _mean([(abs(one.p_a - other.p_a), one.group) for one, other in joined], seed=seed)),
        by_principle=_by_principle(joined),
        longer=_mean(longer, seed=seed),
        own=(
            _self_preference(decided, seed=seed),
            _self_preference([(other, one) for one, other in decided], seed=seed),
        ),
        most_different=tuple(
            Difference(id=one.row["id"], prompt=one.row["prompt"], p_a=(round(one.p_a, 6), round(other.p_a, 6)))
            for one, other in by_difference[:MOST_DIFFERENT]
        ),
    )


_Both = tuple[Label, Label]


def _joined(rows: Sequence[FeedbackRow], others: Sequence[FeedbackRow]) -> list[_Both]:
    """The labels of each pair that both have, by id, turned so that a is the same answer in both."""
    labels = {row["id"]: _label(row) for row in others}
    joined: list[_Both] = []
    for one in _labels(rows):
        other = labels.get(one.row["id"])
        if other is None:
            continue
        if one.a != other.a:
            other = other.turned()
        if (one.a, one.b) != (other.a, other.b):
            what = f"the pair {one.row['id']!r} has other answers in the two files"
            raise InputError(
                what, remedy="let both judges label the same pairs.jsonl: solon compare PAIRS --judge OTHER"
            )
        joined.append((one, other))
    if not joined:
        raise InputError("the two files have no pair in common", remedy="let both judges label the same pairs.jsonl")
    return joined


def _by_text(both: _Both) -> _Both:
    """Turned so that a is the answer whose text comes first: kappa depends on whose choices are counted as a's."""
    one, other = both
    return both if one.a <= one.b else (one.turned(), other.turned())


def _by_principle(joined: Sequence[_Both]) -> dict[str, Interval]:
    found: dict[str, list[tuple[bool, str]]] = {}
    for one, other in joined:
        theirs = _p_by_principle(other)
        for name, p in _p_by_principle(one).items():
            q = theirs.get(name, 0.5)
            if p != 0.5 and q != 0.5:
                found.setdefault(name, []).append(((p > 0.5) == (q > 0.5), one.group))
    return {name: cast(Interval, _share(outcomes)) for name, outcomes in sorted(found.items())}


def _p_by_principle(label: Label) -> dict[str, float]:
    """That a is better, under each principle."""
    by_principle = label.row.get("p_by_principle") or {}
    chosen_is_a = label.row["chosen"][-1]["content"] == label.a
    return {name: p if chosen_is_a else 1 - p for name, p in by_principle.items()}


def _self_preference(decided: Sequence[_Both], *, seed: int) -> Interval | None:
    """On the pairs in which the first judge wrote one answer: its choices of it, less those of the second."""
    found: list[tuple[float, str]] = []
    for one, other in decided:
        own_is_a = one.own_is_a
        if own_is_a is not None:
            found.append(((one.prefers_a == own_is_a) - (other.prefers_a == own_is_a), one.group))
    return _mean(found, seed=seed)


# ---- intervals


def _share(outcomes: Sequence[tuple[bool, str]]) -> Interval | None:
    if not outcomes:
        return None
    groups = [group for _, group in outcomes]
    if len(set(groups)) == len(groups):
        return proportion_interval(sum(outcome for outcome, _ in outcomes), n=len(outcomes))
    return clustered_interval([float(outcome) for outcome, _ in outcomes], clusters=groups)


def _mean(values: Sequence[tuple[float, str]], *, seed: int) -> Interval | None:
    if not values:
        return None
    sums: dict[str, list[float]] = {}
    for value, group in values:
        entry = sums.setdefault(group, [0.0, 0.0])
        entry[0] += value
        entry[1] += 1
    found = _bootstrap(list(sums.values()), lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum()), seed=seed)
    return replace(found, value=fmean(value for value, _ in values), n=len(values))


def _kappa(choices: Sequence[tuple[bool, bool, str]], *, seed: int) -> Interval | None:
    cells: dict[str, list[float]] = {}
    for first, second, group in choices:
        cells.setdefault(group, [0.0] * 4)[2 * first + second] += 1
    if not choices or len({first for first, _, _ in choices} | {second for _, second, _ in choices}) == 1:
        return None
    return replace(_bootstrap(list(cells.values()), _kappa_of, seed=seed), n=len(choices))


def _kappa_of(cells: Floats) -> float:
    """Cohen's kappa of rows of counts (both b, a by the second alone, a by the first alone, both a).

    A resample in which both always choose the same place has none, and is left out of the interval.
    """
    neither, second_alone, first_alone, both = cells.sum(0) / cells.sum()
    first, second = first_alone + both, second_alone + both
    by_chance = first * second + (1 - first) * (1 - second)
    return float((neither + both - by_chance) / (1 - by_chance)) if by_chance < 1 - 1e-12 else nan


def _bootstrap(rows: Sequence[Sequence[float]], statistic: Callable[[Floats], float], *, seed: int) -> Interval:
    found = bootstrap_interval(rows, statistic=statistic, seed=seed)
    return replace(found, low=min(found.low, found.value), high=max(found.high, found.value))
