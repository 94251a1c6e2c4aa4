"""The results table and the telling dialogues, as the console and the report both show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solon.dialogue import Message
from solon.evaluation.rows import BattleRow, ResponseRow, Score, ordered_models
from solon.evaluation.truth import COMPLIED, VerdictRow

COLUMNS: Mapping[str, str] = {
    "harmful_compliance": "complies with harmful requests",
    "explained_refusal": "of the rest: declines and explains",
    "evasiveness": "evades without a reason",
    "right_help": "right help on benign requests",
    "met_help": "helps with benign requests",
    "over_refusal": "refuses what only looks harmful",
    "elo_harmlessness": "Elo harmlessness",
    "elo_helpfulness": "Elo helpfulness",
}
"""Metric -> heading, in the table's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number of the table, ready to be shown."""

    value: str
    """"77.0 %", or "+142" for an Elo."""
    interval: str
    """Its 95 % limits in the same unit, "70.1 to 82.9"; "by definition" for the Elo that is the origin."""
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One model's line of the table."""

    model: str
    cells: tuple[Cell | None, ...]
    """One for each of the table's columns; None where nothing was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsTable:
    """Models by metrics; only metrics that some model has."""

    metrics: tuple[str, ...]
    rows: tuple[TableRow, ...]
    ways: Mapping[str, tuple[str, ...]]
    """How the numbers were got, as scores.json says -> headings of the columns that were got so."""

    @property
    def headings(self) -> tuple[str, ...]:
        return tuple(COLUMNS[metric] for metric in self.metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class WinTable:
    """Who beats whom in one trait: rows win against columns."""

    dimension: str
    models: tuple[str, ...]
    rows: tuple[TableRow, ...]
    """A row's cells are against `models`, in that order; None for itself and where the two never met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """The same prompt answered by two models."""

    prompt_id: str
    prompt: Sequence[Message]
    before_model: str
    before: str
    before_verdict: str | None
    after_model: str
    after: str
    after_verdict: str | None
    category: str | None


def results_table(scores: Sequence[Score]) -> ResultsTable:
    """The table of a run's scores: one line a model, one column a metric that was measured, each with interval and
    n."""
    found = {(row["model"], row["metric"]): row for row in scores if row["metric"] in COLUMNS}
    metrics = tuple(metric for metric in COLUMNS if any(key[1] == metric for key in found))
    rows: list[TableRow] = []
    for model in ordered_models({model for model, _ in found}):
        cells = tuple(score_cell(found[model, one]) if (model, one) in found else None for one in metrics)
        rows.append(TableRow(model=model, cells=cells))
    ways: dict[str, list[str]] = {}
    for metric in metrics:
        for way in sorted({row.get("way", "") for (_, one), row in found.items() if one == metric} - {""}):
            ways.setdefault(way, []).append(COLUMNS[metric])
    return ResultsTable(
        metrics=metrics, rows=tuple(rows), ways={way: tuple(headings) for way, headings in ways.items()}
    )


def win_tables(scores: Sequence[Score]) -> list[WinTable]:
    """The win rates of scores.json as a table for each trait that was compared."""
    tables: list[WinTable] = []
    for dimension in ("harmlessness", "helpfulness"):
        found = {
            (row["model"], row["metric"].partition(":")[2]): row
            for row in scores
            if row["metric"].startswith(f"win_{dimension}:")
        }
        models = tuple(ordered_models({name for pair in found for name in pair}))
        rows = tuple(
            TableRow(
                model=model,
                cells=tuple(score_cell(found[model, other]) if (model, other) in found else None for other in models),
            )
            for model in models
        )
        if rows:
            tables.append(WinTable(dimension=dimension, models=models, rows=rows))
    return tables


def score_cell(score: Score) -> Cell:
    """A score as text: shares in percent, an Elo with its sign; the minus sign is ASCII."""
    if score["metric"].startswith("elo_"):
        value, low, high = (f"{round(score[part]):+d}" for part in ("value", "low", "high"))
        interval = "by definition" if score["low"] == score["high"] else f"{low} to {high}"
        return Cell(value="0" if value in ("+0", "-0") else value, interval=interval, n=score["n"])
    value, low, high = (f"{100 * score[part]:.1f}" for part in ("value", "low", "high"))
    return Cell(value=f"{value} %", interval=f"{low} to {high}", n=score["n"])


def telling_dialogues(
    responses: Sequence[ResponseRow],
    *,
    verdicts: Mapping[str, VerdictRow] | None = None,
    battles: Sequence[BattleRow] = (),
    before: str = "helpful",
    after: str = "rl-cai",
    n: int = 3,
) -> list[Telling]:
    """The `n` red-team prompts whose answers changed most from `before` to `after`, categories first that are not shown
    yet.

    Most telling is harm before and an explained refusal after, by the verdicts; then a refusal of any kind; without
    verdicts, the judge's probability that `after` is the more harmless. The same rows give the same choice.
    """
    answers: dict[str, dict[str, ResponseRow]] = {}
    for row in responses:
        if row["kind"] == "red-team" and row["model"] in (before, after):
            answers.setdefault(row["prompt_id"], {})[row["model"]] = row
    preferred = {
        row["prompt_id"]: row["p"] if row["left"] == after else 1 - row["p"]
        for row in battles
        if row["dimension"] == "harmlessness" and {row["left"], row["right"]} == {before, after}
    }
    ranked: list[tuple[int, float, str, Telling]] = []
    for prompt_id, pair in answers.items():
        if len(pair) == 2:
            one = _telling(pair[before], pair[after], verdicts=verdicts or {})
            grade = _change(one.before_verdict, one.after_verdict)
            ranked.append((-grade, -preferred.get(prompt_id, 0.0), prompt_id, one))
    ranked.sort(key=lambda entry: entry[:3])
    shown: Counter[tuple[int, str | None]] = Counter()
    turns: list[tuple[int, int, int, Telling]] = []
    for place, (grade, _, _, one) in enumerate(ranked):
        shown[grade, one.category] += 1
        turns.append((grade, shown[grade, one.category], place, one))
    turns.sort(key=lambda entry: entry[:3])
    return [entry[3] for entry in turns[:n]]


def _change(before: str | None, after: str | None) -> int:
    """2: harm before and an explained refusal after; 1: any other refusal after harm; 0: neither, or not known."""
    if before not in COMPLIED:
        return 0
    return {"explains": 2, "evades": 1}.get(after or "", 0)


def _telling(before: ResponseRow, after: ResponseRow, *, verdicts: Mapping[str, VerdictRow]) -> Telling:
    found = [verdicts.get(row["id"]) for row in (before, after)]
    known = found[0]["category"] if found[0] else None
    return Telling(
        prompt_id=before["prompt_id"],
        prompt=before["prompt"],
        before_model=before["model"],
        before=before["response"],
        before_verdict=found[0]["verdict"] if found[0] else None,
        after_model=after["model"],
        after=after["response"],
        after_verdict=found[1]["verdict"] if found[1] else None,
        category=known or before["category"],
    )
