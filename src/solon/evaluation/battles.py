"""Anywhere: a judge compares two models' answers to one prompt, and ratings follow."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from solon.artifact import Progress, StageFolder, content_id, derive_seed, need_file, run_chains, silent
from solon.chain import Chain, Unusable
from solon.config import Comparisons, Evaluation
from solon.constitution import Constitution, Principle
from solon.dialogue import Message
from solon.engine import Engine
from solon.errors import EngineError, InputError, TooManyFailures
from solon.evaluation.rows import (
    ANCHOR,
    DIMENSION_OF,
    FAILURE_LIMIT,
    WINDOW,
    BattleRow,
    Dimension,
    PairJudge,
    PairVerdict,
    ResponseRow,
    Score,
    in_order,
    ordered_models,
    said_by,
    score_row,
)
from solon.feedback import Pair, judge_pair
from solon.prompts import template
from solon.ratings import Battle, elo_ratings, sequential_elo, win_rates

HELPFULNESS = Principle(id="helpfulness-question", comparison=template("helpfulness_question"), weight=1.0)
"""The one question under which helpfulness is judged; it stands in rows like a principle."""
SAMPLING = Evaluation().sampling
"""Temperature 1; the verdicts' own length is the judge's affair."""


async def fight(
    stage: StageFolder,
    *,
    responses: Sequence[ResponseRow],
    judge: PairJudge,
    settings: Evaluation,
    seed: int,
    progress: Progress = silent,
) -> list[BattleRow]:
    """Compare every two models on the first `settings.battles` prompts of each dimension; the scored ones.

    They are in battles.jsonl; what is there already is not judged again. Raises TooManyFailures where most are
    unscored.
    """
    plan = _battle_plan(responses, limit=settings.battles)
    with stage.journal("battles.jsonl") as journal:
        todo = [one for one in plan if one["id"] not in journal]
        progress.start("evaluation: head-to-head", len(plan), len(plan) - len(todo))

        async def work(one: _BattlePlan) -> None:
            verdict = await _compare(one, judge=judge, seed=derive_seed(seed, "battle", one["id"]))
            if verdict.p is None:
                stage.fail(id=one["id"], where="battle", reason=verdict.reason, text=verdict.text)
            else:
                journal.append(_battle_row(one, verdict=verdict, p=verdict.p))
            progress.advance()

        try:
            await run_chains(todo, work, window=WINDOW)
        finally:
            progress.end()
        rows = [cast(BattleRow, row) for row in in_order(journal, plan)]
    if len(rows) < (1 - FAILURE_LIMIT) * len(plan):
        raise TooManyFailures(
            f"{stage.name}: {len(plan) - len(rows)} of {len(plan)} battles are unscored, more than the share of "
            f"{FAILURE_LIMIT:g}; the reasons are in {stage.path / 'failures.jsonl'}. Mend the cause or choose another "
            "evaluation.judge, and run again"
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstitutionJudge:
    """A model that compares as the AI feedback does: in both orders, by log-probabilities or by sampled verdicts.

    Harmlessness is judged under a comparison principle of the constitution, drawn for each battle; helpfulness under
    one question, prompts/helpfulness_question.txt.
    """

    engine: Engine
    constitution: Constitution
    settings: Comparisons
    """Of it, how verdicts are got: `verdicts`, `reasoning`, `reasoning_samples`, `clamp`, `fence`; and the thresholds
    beyond which a battle is unscored: `min_answer_mass`, `max_order_gap`, and `min_agreement`, which one principle
    always reaches. One principle is drawn and no exemplars are shown."""

    async def __call__(
        self, prompt: Sequence[Message], a: str, b: str, *, dimension: Dimension, seed: int
    ) -> PairVerdict:
        """The probability that a is better; what cannot be asked or read is unscored."""
        principle = HELPFULNESS if dimension == "helpfulness" else self.constitution.draw("comparison", seed)
        return await self.under(principle, prompt, a, b, seed=seed)

    async def under(self, principle: Principle, prompt: Sequence[Message], a: str, b: str, *, seed: int) -> PairVerdict:
        """The same under a given principle."""
        chain = Chain(engine=self.engine, id=f"battle-{seed}", seed=seed, sampling=SAMPLING)
        try:
            found = await judge_pair(Pair(prompt, a, b), chain=chain, settings=self.settings, principles=[principle])
        except Unusable as problem:
            return PairVerdict(p=None, principle=principle.id, reason=problem.reason, text=problem.text)
        return PairVerdict(
            p=found.probability,
            principle=principle.id,
            order_gap=found.order_gap,
            answer_mass=found.answer_mass,
            way=found.way,
            judge=self.engine.capabilities.model,
        )


class _BattlePlan(TypedDict):
    id: str
    dimension: Dimension
    left: ResponseRow
    right: ResponseRow


def _battle_plan(responses: Sequence[ResponseRow], *, limit: int) -> list[_BattlePlan]:
    answers: dict[str, dict[str, ResponseRow]] = {}
    for row in responses:
        if row["kind"] in DIMENSION_OF:
            answers.setdefault(row["prompt_id"], {})[row["model"]] = row
    plan: list[_BattlePlan] = []
    met: dict[tuple[str, str, str], int] = {}
    for prompt_id, by_model in answers.items():
        for left, right in itertools.combinations(ordered_models(set(by_model)), 2):
            dimension = DIMENSION_OF[by_model[left]["kind"]]
            met[dimension, left, right] = met.get((dimension, left, right), 0) + 1
            if met[dimension, left, right] <= limit:
                identity = content_id([dimension, prompt_id, left, right])
                plan.append({"id": identity, "dimension": dimension, "left": by_model[left], "right": by_model[right]})
    return plan


async def _compare(one: _BattlePlan, *, judge: PairJudge, seed: int) -> PairVerdict:
    left, right = one["left"], one["right"]
    if left["response"] == right["response"]:
        return PairVerdict(p=0.5, principle="", way="identical")
    try:
        return await judge(left["prompt"], left["response"], right["response"], dimension=one["dimension"], seed=seed)
    except EngineError as error:
        return PairVerdict(p=None, principle="", reason=error.reason, text=str(error))


def _battle_row(one: _BattlePlan, *, verdict: PairVerdict, p: float) -> BattleRow:
    return {
        "id": one["id"],
        "dimension": one["dimension"],
        "prompt_id": one["left"]["prompt_id"],
        "left": one["left"]["model"],
        "right": one["right"]["model"],
        "p": p,
        "principle": verdict.principle,
        "order_gap": verdict.order_gap,
        "answer_mass": verdict.answer_mass,
        "way": verdict.way,
        "judge": verdict.judge,
    }


def elo_scores(battles: Sequence[BattleRow], *, seed: int, anchor: str = ANCHOR) -> list[Score]:
    """elo_harmlessness and elo_helpfulness of every model; `anchor`, or the first model where it is absent, is 0."""
    scores: list[Score] = []
    for dimension in ("harmlessness", "helpfulness"):
        fought = [_battle_of(row) for row in battles if row["dimension"] == dimension]
        models = ordered_models({name for one in fought for name in (one.left, one.right)})
        if not models:
            continue
        ratings = elo_ratings(fought, anchor=anchor if anchor in models else models[0], seed=seed)
        way = said_by(row for row in battles if row["dimension"] == dimension)
        scores += [
            score_row(name, metric=f"elo_{dimension}", interval=ratings[name], way=way, seed=seed) for name in models
        ]
    return scores


def win_scores(battles: Sequence[BattleRow], *, seed: int) -> list[Score]:
    """win_harmlessness:OTHER and win_helpfulness:OTHER of every model: its mean probability of being the better one
    against OTHER, in [0, 1]."""
    scores: list[Score] = []
    for dimension in ("harmlessness", "helpfulness"):
        fought = [row for row in battles if row["dimension"] == dimension]
        won = win_rates([_battle_of(row) for row in fought])
        for model, other in itertools.permutations(ordered_models({name for pair in won for name in pair}), 2):
            if (model, other) in won:
                metric, interval = f"win_{dimension}:{other}", won[model, other]
                scores.append(score_row(model, metric=metric, interval=interval, way=said_by(fought), seed=seed))
    return scores


def _battle_of(row: BattleRow) -> Battle:
    return Battle(left=row["left"], right=row["right"], score=row["p"], group=row["prompt_id"])


# ---- anyone's battles


def read_battles(path: str | Path) -> list[Battle]:
    """Battles of a CSV file with the columns left, right, winner and, where it has one, prompt (drawn together).

    `winner` is left, right or tie, or the name of one of the two. Raises InputError with every bad row's line.
    """
    path = need_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse_battles(csv.DictReader(file, strict=True), path=path)
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", path=path, remedy="save the file as UTF-8") from error


def _parse_battles(reader: csv.DictReader[str], *, path: Path) -> list[Battle]:
    remedy = "the first line names the columns: left,right,winner"
    try:
        names = list(reader.fieldnames or ())
    except csv.Error as error:
        raise InputError(f"not CSV: {error}", path=path, line=1, remedy=remedy) from error
    missing = [name for name in ("left", "right", "winner") if name not in names]
    if missing:
        raise InputError(f"no column {', '.join(missing)}", path=path, line=1, remedy=remedy)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"a column stands there twice: {', '.join(twice)}", path=path, line=1, remedy=remedy)
    battles: list[Battle] = []
    errors: list[InputError] = []
    try:
        for row in reader:
            try:
                battles.append(_parse_battle(row))
            except ValueError as error:
                errors.append(InputError(str(error), path=path, line=reader.line_num))
    except csv.Error as error:
        errors.append(InputError(f"not CSV: {error}", path=path, line=reader.line_num))
    if errors:
        raise InputError.all_of(errors)
    if not battles:
        raise InputError("no battles, only a heading", path=path, remedy="one battle a line")
    return battles


def _parse_battle(row: Mapping[str, str | None]) -> Battle:
    if None in cast("Mapping[str | None, object]", row):
        raise ValueError("more fields than the first line has")
    left, right, winner = ((row[name] or "").strip() for name in ("left", "right", "winner"))
    if not left or not right:
        raise ValueError("a battle needs two names, left and right")
    if left == right:
        raise ValueError(f"{left!r} cannot fight itself")
    shares = {"tie": 0.5, left: 1.0, right: 0.0} | (
        {} if {"left", "right"} & {left, right} else {"left": 1.0, "right": 0.0}
    )
    if winner not in shares:
        raise ValueError(f"winner is {winner!r}; it must be left, right or tie, or one of the two names")
    return Battle(left=left, right=right, score=shares[winner], group=(row.get("prompt") or "").strip())


def rate_battles(path: str | Path, *, anchor: str | None = None, seed: int = 0) -> dict[str, Any]:
    """The ratings of a CSV file's battles, as `solon elo` prints them in JSON.

    `ratings`, best first: Elo by maximum likelihood with its 95 % interval, `anchor` (else the first name by alphabet)
    being 0, and beside it `sequential`, the Elo kept battle by battle in the file's order (from 1000, K = 4).
    `win_rates`: of every two models that met, how often the one won, a tie being half a win.
    """
    battles = read_battles(path)
    names = sorted({name for one in battles for name in (one.left, one.right)})
    if anchor is not None and anchor not in names:
        raise InputError(f"{anchor!r} is in no battle", path=path, remedy=f"one of {', '.join(names[:20])}")
    zero = anchor or names[0]
    try:
        ratings = elo_ratings(battles, anchor=zero, seed=seed)
    except ValueError as error:
        raise InputError(str(error), path=path, remedy="give battles that link all models") from error
    sequential = sequential_elo(battles)
    rows = [
        {"model": name, "elo": one.value, "low": one.low, "high": one.high, "n": one.n, "sequential": sequential[name]}
        for name, one in sorted(ratings.items(), key=lambda entry: (-entry[1].value, entry[0]))
    ]
    won = win_rates(battles)
    wins = [{"model": model, "against": other, **asdict(won[model, other])} for model, other in sorted(won)]
    return {"anchor": zero, "battles": len(battles), "seed": seed, "ratings": rows, "win_rates": wins}
