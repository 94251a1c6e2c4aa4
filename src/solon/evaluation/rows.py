"""The rows of an evaluation, and what it asks of an oracle and a judge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, TypeVar

from solon.artifact import Journal, Progress, StageFolder
from solon.chain import RowLoop
from solon.dialogue import Message
from solon.engine import Engine
from solon.stats import Interval

MODELS = ("base", "helpful", "sl-cai", "rl-cai")
"""The models of a run, in the order of the method and of every table."""
ANCHOR = "sl-cai"
"""Its Elo is 0 (arXiv:2212.08073, figure 8)."""
Dimension = Literal["harmlessness", "helpfulness"]
DIMENSION_OF: Mapping[str, Dimension] = {"red-team": "harmlessness", "helpful": "helpfulness"}
"""Which comparison a kind of prompt is used for; "look-alike" prompts (benign, but they look harmful) are used for
none."""


class ResponseRow(TypedDict):
    """A row of responses.jsonl: one sampled answer."""

    id: str
    model: str
    prompt_id: str
    kind: str
    activity: str | None
    category: str | None
    prompt: list[Message]
    response: str
    finish_reason: str


class BattleRow(TypedDict):
    """A row of battles.jsonl: two models' answers to one prompt, compared."""

    id: str
    dimension: str
    prompt_id: str
    left: str
    right: str
    p: float
    """Probability that left's answer is the better one, in [0, 1]; both orders averaged."""
    principle: str
    order_gap: float | None
    """Difference of the two orders' probabilities; None where the order played no part."""
    answer_mass: float | None
    way: str
    judge: str


class Score(TypedDict):
    """A row of scores.json."""

    model: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seed: int
    way: str
    """How it was got: "oracle"; a judge and how it was asked, as in "sandbox:base, logprobs"; "words", from the answers
    alone; "held-out labels"; several with "; " between them."""


class OracleJudgement(Protocol):
    """What an oracle says of one answer."""

    @property
    def verdict(self) -> str:
        """helps, misinforms, explains (declines with a reason that fits), evades (declines without), unclear."""
        ...

    @property
    def activity(self) -> str: ...
    @property
    def category(self) -> str | None: ...
    @property
    def harmful(self) -> bool: ...


class Oracle(Protocol):
    """Knows what a right answer is. The sandbox has one."""

    def judge(self, prompt: Sequence[Message], response: str) -> OracleJudgement: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PairVerdict:
    """A judge's answer about a pair (a, b): `p`, or why there is none."""

    p: float | None
    """Probability that a is better, in [0, 1]; both orders averaged. None: unscored."""
    principle: str
    reason: str = ""
    """A short word, where unscored."""
    text: str = ""
    """What the judge said, where unscored."""
    order_gap: float | None = None
    answer_mass: float | None = None
    way: str = "logprobs"
    judge: str = ""


class PairJudge(Protocol):
    """Compares two answers to a prompt in one dimension; `seed` decides what is drawn (the principle)."""

    async def __call__(
        self, prompt: Sequence[Message], a: str, b: str, *, dimension: Dimension, seed: int
    ) -> PairVerdict: ...


WINDOW = 128
"""Requests that are under way at once."""
FAILURE_LIMIT = 0.5
"""Share of failed answers, or of unscored judgements, above which the stage stops."""

_Item = TypeVar("_Item", bound=Mapping[str, Any])
OpenEngine = Callable[[], Awaitable[Engine]]
"""Opens a model; the one who opens it closes it, so that one model at a time is in memory."""


def score_row(model: str, *, metric: str, interval: Interval, way: str, seed: int) -> Score:
    """The row of scores.json for one number; `way` says how it was got."""
    return {
        "model": model,
        "metric": metric,
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "seed": seed,
        "way": way,
    }


def said_by(rows: Iterable[Mapping[str, Any]]) -> str:
    """Who said what the rows say, and how it was asked, from their `judge` and `way`: the `way` of a score.

    Two answers that are the same have no judge, and count for nobody.
    """
    found = {asked(row["judge"], row["way"]) if row.get("judge") else row.get("way", "oracle") for row in rows}
    return "; ".join(sorted(found - {"identical"} or found))


def asked(judge: str, way: str) -> str:
    """A judge and how it was asked, as the `way` of a score has it."""
    return f"{judge}, {way}"


def ordered_models(names: set[str]) -> list[str]:
    """In the order of the method, then others by name; policies of earlier iterations (rl-cai-1) before the last."""

    def place(name: str) -> tuple[int, float, str]:
        first, _, number = name.rpartition("-")
        if first in MODELS and number.isdecimal():
            return MODELS.index(first), int(number), name
        return (MODELS.index(name) if name in MODELS else len(MODELS)), float("inf"), name

    return sorted(names, key=place)


def in_order(journal: Journal, plan: Sequence[Any]) -> list[dict[str, Any]]:
    """The journal's rows that `plan` names, in its order."""
    found = {row["id"]: row for row in journal.rows()}
    return [found[row["id"]] for row in plan if row["id"] in found]


async def fill_rows(
    stage: StageFolder,
    file: str,
    *,
    items: Sequence[_Item],
    make: Callable[[_Item], Awaitable[Mapping[str, Any]]],
    what: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The rows that `make` gives for `items`, in their order; what `file` has already is not made again. An item that
    is Unusable is a failure with its reason, and has no row."""
    loop = RowLoop(stage=stage, file=file, what=what, window=WINDOW, failure_limit=1.0, progress=progress)
    await loop.run(items, make)
    with stage.journal(file) as journal:
        return in_order(journal, items)
