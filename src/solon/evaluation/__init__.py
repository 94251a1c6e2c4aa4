"""Evaluation: what the models of a run do with prompts that the method never saw.

    responses = await respond(stage, models=models, prompts=prompts, settings=settings, seed=0)
    scores = verdict_scores(responses, verdicts=judge_responses(stage, responses=responses, oracle=oracle), seed=0)
    battles = await fight(stage, responses=responses, judge=judge, settings=settings, seed=0)
    scores += elo_scores(battles, seed=0)

Two ways, each with an interval and n on every number. An oracle gives a verdict on every answer where the right one is
known (the sandbox), elsewhere a judge that was tried on planted answers. And a judge compares two models' answers to
one prompt, under the constitution's comparison principles on red-team prompts and under a question of helpfulness on
helpful ones (arXiv:2212.08073, sections 3.3 and 4.4, with a model in the crowdworkers' place). Differences from the
paper: 1. whole answers to the prompts of a set are compared, not the turns of a live conversation; 2. a battle's score
is the judge's probability, averaged over both orders, and not a vote: it is the vote's expectation, and two equal
answers are a tie; 3. those that `ratings.elo_ratings` lists.

Published test sets need no run: `choice` asks multiple-choice questions, `accuracy` measures a judge or a preference
model on pairs of answers of which people have said which is better.

A judgement that cannot be read is unscored: it is in failures.jsonl with its reason, counted, and in no number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solon.artifact import Progress, StageFolder, silent, write_json
from solon.config import Evaluation
from solon.constitution import Principle
from solon.engine import Engine
from solon.evaluation.accuracy import (
    GoldJudge,
    GoldMeasured,
    GoldRow,
    finish_gold,
    gold_measured_of,
    gold_scores,
    judge_gold,
    measure_gold,
    score_gold,
)
from solon.evaluation.answers import respond
from solon.evaluation.battles import (
    HELPFULNESS,
    ConstitutionJudge,
    elo_scores,
    fight,
    rate_battles,
    read_battles,
    win_scores,
)
from solon.evaluation.choice import (
    ChoiceMeasured,
    ChoiceRow,
    ask,
    choice_measured_of,
    choice_scores,
    finish_choices,
    measure_choices,
    normalise_all,
)
from solon.evaluation.comparing import Changed, Comparison, Difference, compare_runs
from solon.evaluation.harmfulness import (
    Rating,
    harmfulness_scores,
    rate_answers,
    ratings_if_trusted,
    read_harmfulness,
    try_scale,
)
from solon.evaluation.mending import (
    CLEAR,
    MENDING_FILE,
    REVISIONS,
    MendingRow,
    PrincipleJudge,
    Step,
    by_revision,
    draw_steps,
    effect_of,
    is_conflict,
    judge_mending,
    mending_scores,
    opposed,
    steps_of,
)
from solon.evaluation.published import GoldPair, GoldPairs, RefusedRow, majority, read_gold
from solon.evaluation.questions import Question, Questions, read_option, read_questions
from solon.evaluation.rows import (
    ANCHOR,
    MODELS,
    BattleRow,
    Dimension,
    OpenEngine,
    Oracle,
    OracleJudgement,
    PairJudge,
    PairVerdict,
    ResponseRow,
    Score,
    asked,
    ordered_models,
    score_row,
)
from solon.evaluation.style import style_scores
from solon.evaluation.table import (
    COLUMNS,
    Cell,
    ResultsTable,
    TableRow,
    Telling,
    WinTable,
    results_table,
    score_cell,
    telling_dialogues,
    win_tables,
)
from solon.evaluation.truth import COMPLIED, VerdictRow, judge_responses, verdict_scores
from solon.evaluation.verdicts import (
    DESCRIPTIONS,
    Trust,
    judge_answers,
    num_planted,
    read_verdict,
    try_judge,
    verdicts_if_trusted,
)
from solon.stats import Interval

__all__ = [
    "ANCHOR",
    "CLEAR",
    "COLUMNS",
    "COMPLIED",
    "DESCRIPTIONS",
    "HELPFULNESS",
    "MENDING_FILE",
    "MODELS",
    "REVISIONS",
    "BattleRow",
    "Cell",
    "Changed",
    "ChoiceMeasured",
    "ChoiceRow",
    "Comparison",
    "ConstitutionJudge",
    "Difference",
    "Dimension",
    "Field",
    "GoldJudge",
    "GoldMeasured",
    "GoldPair",
    "GoldPairs",
    "GoldRow",
    "MendingRow",
    "OpenEngine",
    "Oracle",
    "OracleJudgement",
    "PairJudge",
    "PairVerdict",
    "PrincipleJudge",
    "Question",
    "Questions",
    "Rating",
    "RefusedRow",
    "ResponseRow",
    "ResultsTable",
    "Score",
    "Step",
    "TableRow",
    "Telling",
    "Trust",
    "VerdictRow",
    "WinTable",
    "ask",
    "by_revision",
    "choice_measured_of",
    "choice_scores",
    "compare_runs",
    "draw_steps",
    "effect_of",
    "elo_scores",
    "evaluate",
    "fight",
    "finish_choices",
    "finish_gold",
    "gold_measured_of",
    "gold_scores",
    "harmfulness_scores",
    "is_conflict",
    "judge_answers",
    "judge_gold",
    "judge_mending",
    "judge_responses",
    "majority",
    "measure_choices",
    "measure_gold",
    "mending_scores",
    "normalise_all",
    "num_planted",
    "opposed",
    "ordered_models",
    "rate_answers",
    "rate_battles",
    "ratings_if_trusted",
    "read_battles",
    "read_gold",
    "read_harmfulness",
    "read_option",
    "read_questions",
    "read_verdict",
    "respond",
    "results_table",
    "score_cell",
    "score_gold",
    "score_row",
    "steps_of",
    "style_scores",
    "telling_dialogues",
    "try_judge",
    "try_scale",
    "verdict_scores",
    "verdicts_if_trusted",
    "win_scores",
    "win_tables",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Who is evaluated, on what, by whom."""

    models: Mapping[str, OpenEngine]
    prompts: Sequence[Mapping[str, Any]]
    oracle: Oracle | None = None
    """None where the right answers are not known."""
    judge: PairJudge | None = None
    """None where nothing is compared."""
    gate: Mapping[str, Any] | None = None
    """What `judge` did on pairs with known answers (`solon.feedback.try_gate`), for manifest and scores."""
    verdict_judge: Engine | None = None
    """Who says what an answer did, where there is no oracle; None: nobody."""
    harmfulness_judge: Engine | None = None
    """Who says how harmful an answer is; None: nobody."""
    steps: Sequence[Step] = ()
    """Revisions of the run of which `principle_judge` says what they did to every one of `principles`."""
    principles: Sequence[Principle] = ()
    principle_judge: PrincipleJudge | None = None


async def evaluate(
    stage: StageFolder,
    *,
    settings: Evaluation,
    seed: int,
    field: Field,
    more: Sequence[Score] = (),
    progress: Progress = silent,
) -> list[Score]:
    """The whole of a begun stage: answers, verdicts, battles, scores.json and the manifest.

    `more` are numbers that other stages measured (the preference model's accuracy and calibration); they stand in
    scores.json too.
    """
    models, prompts, oracle, judge = field.models, field.prompts, field.oracle, field.judge
    responses = await respond(stage, models=models, prompts=prompts, settings=settings, seed=seed, progress=progress)
    scores: list[Score] = []
    counts: dict[str, int] = {"prompts": len(prompts), "models": len(models), "responses": len(responses)}
    verdicts: Mapping[str, VerdictRow] = {}
    if oracle is not None:
        verdicts = judge_responses(stage, responses=responses, oracle=oracle)
    elif field.verdict_judge is not None:
        verdicts, tried = await verdicts_if_trusted(
            stage, responses=responses, engine=field.verdict_judge, seed=seed, progress=progress
        )
        scores.append(tried)
    if field.harmfulness_judge is not None:
        scores += await ratings_if_trusted(
            stage, responses=responses, engine=field.harmfulness_judge, seed=seed, progress=progress
        )
    scores += verdict_scores(responses, verdicts=verdicts, seed=seed)
    counts |= {f"verdict {name}": n for name, n in sorted(Counter(v["verdict"] for v in verdicts.values()).items())}
    scores += style_scores(responses, seed=seed)
    if field.gate is not None:
        way = asked(field.gate["judge"], field.gate["way"])
        accuracy = Interval(**field.gate["accuracy"])
        scores.append(score_row("battle-judge", metric="planted_accuracy", interval=accuracy, way=way, seed=seed))
    if judge is not None and settings.battles:
        battles = await fight(stage, responses=responses, judge=judge, settings=settings, seed=seed, progress=progress)
        scores += [*elo_scores(battles, seed=seed), *win_scores(battles, seed=seed)]
        counts["battles"] = len(battles)
    if field.principle_judge is not None and field.steps:
        mending = await judge_mending(
            stage,
            steps=field.steps,
            principles=field.principles,
            judge=field.principle_judge,
            seed=seed,
            progress=progress,
        )
        scores += mending_scores(mending, num_principles=len(field.principles), seed=seed)
        counts |= {"revisions judged": len(field.steps), "judgements of revisions": len(mending)}
    scores += more
    write_json(stage.path / "scores.json", scores)
    counts["scores"] = len(scores)
    stage.finish(counts=counts, **({} if field.gate is None else {"gate": dict(field.gate)}))
    return scores
