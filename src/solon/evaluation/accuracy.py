"""How often a preference model, or a judge, prefers the answer that people prefer.

    found = read_gold("pandalm/testset-v1.json.gz")
    pm = PreferenceModel.load(folder)
    scaled = lambda dialogues: [raw / pm.scale.temperature for raw in pm.raw_score(dialogues)]
    rows = score_gold(stage, score=scaled, pairs=found.pairs)                                         # gold.jsonl
    judge = GoldJudge(engine=engine, question=HELPFULNESS)
    rows = await judge_gold(stage, judge=judge, pairs=found.pairs, seed=0)                            # or this
    finish_gold(stage, rows, found=found, model="judge", seed=0).accuracy              # Interval(value=..., n=562)

Beside each accuracy stand two baselines on the same pairs, "the shorter answer is better" and "the longer answer is
better": a model that has learnt the length alone does no better than one of them. Intervals allow for several pairs on
one prompt, but for those of the calibration's bins, which take every pair as a prompt of its own. A pair that cannot be
read or does not fit is a failure with its reason, and in no number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, TypedDict, cast

import numpy as np
from pydantic import TypeAdapter

from solon.artifact import Progress, StageFolder, content_id, derive_seed, silent, write_json
from solon.chain import Chain, Unusable
from solon.config import Comparisons
from solon.constitution import Constitution, Principle
from solon.dialogue import Message
from solon.engine import Engine, Sampling
from solon.errors import InputError
from solon.evaluation.published import TIE, GoldPair, GoldPairs, check_scored
from solon.evaluation.rows import Score, fill_rows, in_order, said_by, score_row
from solon.feedback import Pair, draw_principles, judge_pair
from solon.stats import (
    Floats,
    Interval,
    Reliability,
    bootstrap_interval,
    calibration_error,
    clustered_interval,
    reliability,
    sigmoid,
)

AT_ONCE = 32
"""Pairs that a preference model scores between two rows written."""

ScoreDialogues = Callable[[Sequence[tuple[Sequence[Message], str]]], Sequence[float]]
"""One score for each (prompt, answer), higher is better; differences are log-odds. Raises InputError for a dialogue
beyond the model's context. `PreferenceModel.raw_score` is one; divided by the model's temperature, which was fitted so
that they are, the differences are those of `PreferenceModel.probability`."""


# ---- types


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldJudge:
    """A judge of pairs, and what it is asked."""

    engine: Engine
    question: Constitution | Principle
    """A constitution, of which `settings.principles` principles are drawn for each pair as for AI feedback, or one
    principle for all pairs."""
    settings: Comparisons = field(default_factory=Comparisons)
    """Of it, how verdicts are got; no exemplars are shown."""

    def principles(self, pair: GoldPair, *, seed: int) -> Sequence[Principle]:
        """What is asked about a pair: it depends on the seed and the pair's id alone."""
        if isinstance(self.question, Principle):
            return [self.question]
        return draw_principles(self.question, k=self.settings.principles, seed=seed, id=pair.id)


class GoldRow(TypedDict):
    """A row of gold.jsonl: a gold pair, and what a model says of it."""

    id: str
    prompt: list[Message]
    a: str
    b: str
    gold: float
    """Probability that a is better: 1, 0, or 0.5 for a tie."""
    annotators: list[float]
    """What each person said, in the same numbers, where there are several."""
    source: str
    p: float
    """The model's probability that a is better, in [0, 1]."""
    judge: str
    way: str
    """"score", "logprobs" or "sampled"."""
    principle: str | None
    """What a judge was asked under; None for a preference model, like the next two."""
    order_gap: float | None
    answer_mass: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldMeasured:
    """How a model agrees with the gold, on the pairs that are scored."""

    accuracy: Interval | None
    """Share of the decisive pairs (gold is no tie) whose better answer has p above 0.5; p = 0.5 is wrong. None without
    such pairs, and so are the next two."""
    shorter: Interval | None
    """The baseline "the shorter answer is better" on the same pairs; of equal length is wrong."""
    longer: Interval | None
    calibration_error: Interval
    """Expected calibration error, in [0, 1]: the p of the answer that the model prefers, 0.5 or more, against the gold
    of that answer, ties being 0.5. A pair with p = 0.5 has no such answer: it counts with the mean of its two sides,
    0.5. The interval is a bootstrap over prompts."""
    reliability: Reliability
    """The bins behind it, from 0.5 on; n counts pairs. Their intervals are Wilson's for independent pairs: too narrow
    where there are several on a prompt."""
    agreement: tuple[Interval | None, ...]
    """For each annotator: the accuracy against what that person said, ties of theirs left out. Empty without them."""
    annotators_agree: Interval | None
    """Share of the pairs of annotators, neither saying tie, who say the same: what a person comes to."""
    answer_mass: Interval | None
    """Of a judge, the mean probability of answering with an option at all; None for a preference model, like the next.
    The intervals are bootstraps over pairs."""
    order_gap: Interval | None
    """Of a judge, how much more probable an answer is when it stands first, in [-1, 1]."""
    num_ties: int
    """Pairs whose gold is a tie: in the calibration, not in the accuracy."""
    num_undecided: int
    """Decisive pairs with p = 0.5."""


# ---- asking


def score_gold(
    stage: StageFolder,
    *,
    score: ScoreDialogues,
    pairs: Sequence[GoldPair],
    judge: str = "preference-model",
    progress: Progress = silent,
) -> list[GoldRow]:
    """Score both answers of every pair into gold.jsonl of a begun stage: p = sigmoid(score(a) - score(b)).

    What is there already is not scored again. A pair that does not fit is a failure with the reason "context-length",
    and one with a score that is infinite or no number with the reason "not-a-number".
    TooManyFailures where most are. Returns the rows in the order of the pairs.
    """
    with stage.journal("gold.jsonl") as journal:
        todo = [pair for pair in pairs if pair.id not in journal]
        progress.start("accuracy on gold pairs", len(pairs), len(pairs) - len(todo))
        try:
            for start in range(0, len(todo), AT_ONCE):
                batch = todo[start : start + AT_ONCE]
                for pair, lead in zip(batch, _leads(batch, score=score), strict=True):
                    if isinstance(lead, Unusable):
                        stage.fail(id=pair.id, where=lead.where, reason=lead.reason, text=lead.text)
                    else:
                        p = round(float(sigmoid(lead)), 6)
                        journal.append(_row(pair, p=p, judge=judge, way="score"))
                progress.advance(len(batch))
        finally:
            progress.end()
    return _rows_of(stage, pairs)


def _leads(pairs: Sequence[GoldPair], *, score: ScoreDialogues) -> list[float | Unusable]:
    """score(a) - score(b) of every pair, or why there is none; a batch with a pair that does not fit is scored one by
    one."""
    try:
        scores = score([(pair.prompt, answer) for pair in pairs for answer in (pair.a, pair.b)])
    except InputError as error:
        if len(pairs) == 1:
            return [Unusable(where="score", reason="context-length", text=str(error))]
        return [found for pair in pairs for found in _leads([pair], score=score)]
    return [_lead(float(a), float(b)) for a, b in zip(scores[::2], scores[1::2], strict=True)]


def _lead(a: float, b: float) -> float | Unusable:
    lead = a - b
    return lead if isfinite(lead) else Unusable(where="score", reason="not-a-number", text=f"scores {a} and {b}")


async def judge_gold(
    stage: StageFolder, *, judge: GoldJudge, pairs: Sequence[GoldPair], seed: int, progress: Progress = silent
) -> list[GoldRow]:
    """Ask a judge about every pair, in both orders, into gold.jsonl of a begun stage; what is there is not asked again.

    A pair that cannot be asked or read is a failure with its reason. Raises TooManyFailures where most are. Returns the
    rows in the order of the pairs.
    """

    async def make(item: Mapping[str, Any]) -> Mapping[str, Any]:
        pair: GoldPair = item["pair"]
        chain = Chain(engine=judge.engine, id=pair.id, seed=seed, sampling=Sampling())
        principles = judge.principles(pair, seed=seed)
        asked = Pair(pair.prompt, pair.a, pair.b)
        found = await judge_pair(asked, chain=chain, settings=judge.settings, principles=principles)
        row = _row(pair, p=round(found.probability, 6), judge=judge.engine.capabilities.model, way=found.way)
        named = ", ".join(principle.id for principle in principles)
        gap, mass = round(found.order_gap, 6), round(found.answer_mass, 6)
        return {**row, "principle": named, "order_gap": gap, "answer_mass": mass}

    items = [{"id": pair.id, "pair": pair} for pair in pairs]
    await fill_rows(stage, "gold.jsonl", items=items, make=make, what="accuracy on gold pairs", progress=progress)
    return _rows_of(stage, pairs)


def _row(pair: GoldPair, *, p: float, judge: str, way: str) -> GoldRow:
    return {
        "id": pair.id,
        "prompt": list(pair.prompt),
        "a": pair.a,
        "b": pair.b,
        "gold": pair.gold,
        "annotators": list(pair.annotators),
        "source": pair.source,
        "p": p,
        "judge": judge,
        "way": way,
        "principle": None,
        "order_gap": None,
        "answer_mass": None,
    }


def _rows_of(stage: StageFolder, pairs: Sequence[GoldPair]) -> list[GoldRow]:
    with stage.journal("gold.jsonl") as journal:
        rows = [cast(GoldRow, row) for row in in_order(journal, [{"id": pair.id} for pair in pairs])]
    check_scored(stage, scored=len(rows), attempted=len(pairs))
    return rows


# ---- figures


def measure_gold(rows: Sequence[GoldRow]) -> GoldMeasured:
    """Accuracy, baselines, calibration and agreement on the pairs that are scored. Raises ValueError without any."""
    if not rows:
        raise ValueError("no pair is scored")
    decisive = [row for row in rows if row["gold"] != TIE]
    lengths = [len(row["a"]) - len(row["b"]) for row in decisive]
    num_annotators = max(len(row["annotators"]) for row in rows)
    preferred_N2 = _preferred(rows)
    return GoldMeasured(
        accuracy=_accuracy(decisive, p=[row["p"] for row in decisive]),
        shorter=_accuracy(decisive, p=[TIE - np.sign(longer_by) / 2 for longer_by in lengths]),
        longer=_accuracy(decisive, p=[TIE + np.sign(longer_by) / 2 for longer_by in lengths]),
        calibration_error=_calibration_error(preferred_N2, prompts=[_prompt_of(row) for row in rows]),
        reliability=reliability(preferred_N2[:, 0], outcomes=preferred_N2[:, 1]),
        agreement=tuple(_agreement(rows, annotator=number) for number in range(num_annotators)),
        annotators_agree=_annotators_agree(rows),
        answer_mass=_mean([row["answer_mass"] for row in rows]),
        order_gap=_mean([row["order_gap"] for row in rows]),
        num_ties=len(rows) - len(decisive),
        num_undecided=sum(row["p"] == TIE for row in decisive),
    )


def finish_gold(
    stage: StageFolder, rows: Sequence[GoldRow], *, found: GoldPairs, model: str, seed: int
) -> GoldMeasured:
    """Write scores.json under the name `model`, and the manifest with what was measured and the refused rows."""
    measured = measure_gold(rows)
    write_json(stage.path / "scores.json", gold_scores(measured, model=model, way=said_by(rows), seed=seed))
    counts = {"pairs": len(found.pairs), "scored": len(rows), "refused": len(found.refused)}
    stage.finish(counts=counts, measured=asdict(measured), refused=[asdict(one) for one in found.refused])
    return measured


def _accuracy(rows: Sequence[GoldRow], *, p: Sequence[float], gold: Sequence[float] | None = None) -> Interval | None:
    """Share of the rows, none of which is a tie, whose p is on the side of the gold."""
    golds = [row["gold"] for row in rows] if gold is None else gold
    right = [float((one - TIE) * (better - TIE) > 0) for one, better in zip(p, golds, strict=True)]
    return clustered_interval(right, clusters=[_prompt_of(row) for row in rows]) if rows else None


def _agreement(rows: Sequence[GoldRow], *, annotator: int) -> Interval | None:
    votes = [(row, row["annotators"][annotator]) for row in rows if len(row["annotators"]) > annotator]
    said = [(row, vote) for row, vote in votes if vote != TIE]
    return _accuracy([row for row, _ in said], p=[row["p"] for row, _ in said], gold=[vote for _, vote in said])


def _annotators_agree(rows: Sequence[GoldRow]) -> Interval | None:
    both = [
        (float(one == other), _prompt_of(row))
        for row in rows
        for one, other in itertools.combinations(row["annotators"], 2)
        if TIE not in (one, other)
    ]
    return clustered_interval([same for same, _ in both], clusters=[prompt for _, prompt in both]) if both else None


def _mean(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return bootstrap_interval(known, statistic=lambda values_N: float(values_N.mean()), seed=len(known), draws=200)


def _prompt_of(row: GoldRow) -> str:
    return content_id([[turn["role"], turn["content"]] for turn in row["prompt"]])


def _preferred(rows: Sequence[GoldRow]) -> Floats:
    """Of every pair the p of the answer that the model prefers, in [0.5, 1], and that answer's gold.

    So that a pair counts once, and which of its answers is a says nothing. At p = 0.5 either answer might be meant: the
    mean of their golds is 0.5.
    """
    p_N = np.array([row["p"] for row in rows], dtype=np.float64)
    gold_N = np.array([row["gold"] for row in rows], dtype=np.float64)
    side_N = np.sign(p_N - TIE)
    return np.column_stack([TIE + np.abs(p_N - TIE), TIE + side_N * (gold_N - TIE)])


def _calibration_error(preferred_N2: Floats, *, prompts: Sequence[str]) -> Interval:
    """With a bootstrap that draws whole prompts, because pairs on one prompt are alike."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    groups = [preferred_N2[group] for group in places.values()]

    def error(drawn_G: Floats) -> float:
        pairs_N2 = np.concatenate([groups[int(index)] for index in drawn_G])
        return calibration_error(pairs_N2[:, 0], outcomes=pairs_N2[:, 1])

    seed = derive_seed("gold", len(prompts))
    found = bootstrap_interval(list(range(len(groups))), statistic=error, seed=seed, draws=200)
    # A resample is a little worse calibrated than the pairs themselves.
    return replace(found, low=min(found.low, found.value), n=len(prompts))


def gold_measured_of(about: Mapping[str, Any]) -> GoldMeasured:
    """The inverse of `dataclasses.asdict`."""
    return TypeAdapter(GoldMeasured).validate_python(about)


def gold_scores(measured: GoldMeasured, *, model: str, way: str, seed: int) -> list[Score]:
    """The rows of scores.json: gold_accuracy and its baselines, calibration_error, the agreement with annotators, and
    of a judge answer_mass and order_gap."""
    found = {
        "gold_accuracy": measured.accuracy,
        "gold_accuracy:shorter": measured.shorter,
        "gold_accuracy:longer": measured.longer,
        "calibration_error": measured.calibration_error,
        **{f"gold_accuracy:annotator{number}": one for number, one in enumerate(measured.agreement, start=1)},
        "annotators_agree": measured.annotators_agree,
        "answer_mass": measured.answer_mass,
        "order_gap": measured.order_gap,
    }
    others = {"gold_accuracy:shorter": "words", "gold_accuracy:longer": "words", "annotators_agree": "people"}
    return [
        score_row(model, metric=name, interval=one, way=others.get(name, way), seed=seed)
        for name, one in found.items()
        if one is not None
    ]
