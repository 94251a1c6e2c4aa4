"""Several chains of thought, intervals of sampled verdicts, agreement of principles, and when a judge abstains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from solon.artifact import derive_seed, read_rows
from solon.chain import Unusable
from solon.config import Comparisons
from solon.engine import ChoiceRequest, Request
from solon.engine.scripted import ScriptedEngine
from solon.errors import TooManyFailures
from solon.feedback import VERDICT_OPTIONS, helpful_comparisons
from solon.stats import proportion_interval
from test_feedback import BAD, GOOD, asked_text, first_is, judged, labelled, no_words, pair, prefers, says
from test_supervised import rows_of

probabilities = st.floats(0.001, 0.999)


def by_rule(p_good: Sequence[float]) -> ScriptedEngine:
    """A judge that gives GOOD the n-th probability under rule n."""

    def choose(request: ChoiceRequest) -> Sequence[float]:
        n = next(n for n in range(6) if f"rule {n} better?" in asked_text(request))
        return prefers(GOOD, p_good[n])(request)

    return ScriptedEngine(no_words, choose)


# ---- chains of thought


def thinker(p_of_chain: Sequence[float]) -> ScriptedEngine:
    """A judge whose chain of thought, drawn by its seed, is the name of the probability that it gives GOOD."""
    names = {derive_seed(0, "p0/1", f"reasoning-rule-{n}{tail}"): tail for n in range(6) for tail in TAILS}

    def choose(request: ChoiceRequest) -> Sequence[float]:
        number = int(request.prompt[-2]["content"].rpartition(" ")[2])
        return prefers(GOOD, p_of_chain[number])(request)

    return ScriptedEngine(lambda request: f"chain {TAILS.index(names[request.seed])}", choose)


TAILS = ("", "/1", "/2", "/3", "/4")


async def test_probabilities_after_all_chains_are_averaged_before_the_clamp() -> None:
    p = (0.95, 0.2, 0.9, 0.7, 0.85)
    said = await judged(thinker(p), reasoning=True, reasoning_samples=5, clamp=None)
    assert said.probability == pytest.approx(sum(p) / 5)
    assert said.reasoning == tuple(f"chain {n}" for n in (0, 1, 2, 3, 4, 0, 1, 2, 3, 4)), "a first, then b first"
    clamped = await judged(thinker(p), reasoning=True, reasoning_samples=5, clamp=(0.4, 0.71))
    assert clamped.probability == 0.71, "and not the mean of clamped ones, 0.61"
    assert clamped.p_by_principle == said.p_by_principle


async def test_the_first_chain_is_that_of_a_single_one() -> None:
    def seeds(engine: ScriptedEngine) -> Counter[int]:
        return Counter(request.seed for request in engine.requests if isinstance(request, Request))

    one, five = thinker((0.9,) * 5), thinker((0.9,) * 5)
    said = await judged(one, num_principles=2, reasoning=True)
    await judged(five, num_principles=2, reasoning=True, reasoning_samples=5)
    assert seeds(one) == {seed: 2 for seed in seeds(one)}, "the same for both orders"
    assert len(seeds(five)) == 10 and seeds(one).keys() <= seeds(five).keys()
    again = await judged(thinker((0.9,) * 5), num_principles=2, reasoning=True, reasoning_samples=1)
    assert again == said


@given(st.integers(0, 2**32), st.integers(1, 3), st.booleans())
async def test_swapping_mirrors_several_chains_too(salt: int, num: int, sampled: bool) -> None:
    def words(request: Request) -> str:
        return VERDICT_OPTIONS[derive_seed(salt, request.prompt, request.seed) % 2]

    def choose(request: ChoiceRequest) -> Sequence[float]:
        return log(0.1 + derive_seed(salt, request.prompt) % 800 / 1000), log(0.1)

    said = [
        await judged(
            ScriptedEngine(words, None if sampled else choose),
            a=a,
            b=b,
            num_principles=2,
            reasoning=True,
            reasoning_samples=num,
            clamp=None,
        )
        for a, b in ((GOOD, BAD), (BAD, GOOD))
    ]
    one, other = said[0], said[1].swapped()
    assert one.probability == pytest.approx(other.probability, abs=1e-12)
    assert one.p_by_principle == pytest.approx(other.p_by_principle, abs=1e-12)
    assert one.order_gap == pytest.approx(other.order_gap, abs=1e-12)
    assert one.agreement == other.agreement
    assert (one.interval or ()) == pytest.approx(other.interval or (), abs=1e-12)
    assert len(one.reasoning) == 2 * 2 * num


async def test_chains_that_were_cut_are_named_on_the_row(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda request: "so " * 300, prefers(GOOD))
    stage = await labelled(tmp_path, engine, [pair(0)], reasoning=True, reasoning_samples=2)
    (row,) = rows_of(stage, "comparisons.jsonl")
    assert row["truncated"] == [f"reasoning-{row['principles'][0]}{tail}" for tail in ("", "/1")]
    assert len(row["reasoning"]) == 4


async def test_one_chain_that_cannot_be_read_makes_no_label() -> None:
    second = {derive_seed(0, "p0/1", f"reasoning-rule-{n}/1") for n in range(6)}
    engine = ScriptedEngine(lambda request: "" if request.seed in second else "Because.", prefers(GOOD))
    await judged(engine, reasoning=True)
    with pytest.raises(Unusable, match="empty"):
        await judged(engine, reasoning=True, reasoning_samples=2)


def test_chains_without_reasoning_are_refused() -> None:
    with pytest.raises(ValidationError, match="reasoning_samples: there are none without `reasoning: true`"):
        Comparisons(reasoning_samples=5)


# ---- sampled verdicts


async def test_the_interval_is_wilsons_over_all_verdicts_that_were_read(tmp_path: Path) -> None:
    words = ["(A)", "(A)", "(A)", "(B)", "I would rather not.", "(A) or (B)", "", "(B)"]
    seeds = {derive_seed(0, "p0/1", f"verdict-rule-{n}-{i}"): i for n in range(6) for i in range(8)}
    engine = ScriptedEngine(lambda request: words[seeds[request.seed]] if first_is(GOOD, request) else "(B)")
    (row,) = rows_of(await labelled(tmp_path, engine, [pair(0)]), "comparisons.jsonl")
    wilson = proportion_interval(0.8 * 13, n=13)
    assert row["interval"] == pytest.approx([wilson.low, wilson.high], abs=1e-6)
    assert row["interval"][0] < row["probability"] < row["interval"][1]


async def test_the_interval_is_that_of_the_chosen_answer(tmp_path: Path) -> None:
    stages = [
        await labelled(tmp_path / a[:4], ScriptedEngine(says(GOOD)), [pair(0, a=a, b=b)])
        for a, b in ((GOOD, BAD), (BAD, GOOD))
    ]
    rows = [rows_of(stage, "comparisons.jsonl")[0] for stage in stages]
    wilson = proportion_interval(16, n=16)
    assert [row["interval"] for row in rows] == [pytest.approx([wilson.low, 1.0], abs=1e-6)] * 2
    assert [row["a_is_chosen"] for row in rows] == [True, False]


async def test_the_interval_is_of_the_probability_before_the_clamp() -> None:
    said = await judged(ScriptedEngine(says(GOOD)), reasoning=True)
    assert said.probability == 0.6
    assert said.interval == pytest.approx((proportion_interval(16, n=16).low, 1.0))


async def test_log_probabilities_have_no_interval(tmp_path: Path) -> None:
    (row,) = rows_of(await labelled(tmp_path, ScriptedEngine(no_words, prefers(GOOD)), [pair(0)]), "comparisons.jsonl")
    assert row["interval"] is None


# ---- agreement of principles


@given(st.lists(probabilities, min_size=6, max_size=6), st.integers(1, 6))
async def test_agreement_is_the_share_on_the_labels_side(p: list[float], num: int) -> None:
    said = await judged(by_rule(p), num_principles=num)
    sides = [one > 0.5 for one in said.p_by_principle.values()]
    if abs(said.probability - 0.5) > 1e-6 and all(abs(one - 0.5) > 1e-6 for one in said.p_by_principle.values()):
        assert said.agreement == pytest.approx(sum(side == (said.probability > 0.5) for side in sides) / num)
    assert said.agreement == (await judged(by_rule(p), a=BAD, b=GOOD, num_principles=num)).agreement
    if num == 1:
        assert said.agreement == 1.0


async def test_nobody_agrees_with_a_tie_of_two_that_differ() -> None:
    opposed = await judged(by_rule((0.9, 0.1, 0.9, 0.1, 0.9, 0.1)), num_principles=6)
    assert opposed.probability == pytest.approx(0.5) and opposed.agreement == 0.0
    undecided = await judged(by_rule((0.5,) * 6), num_principles=6)
    assert undecided.probability == 0.5 and undecided.agreement == 1.0


async def test_agreement_stands_on_the_row(tmp_path: Path) -> None:
    engine = by_rule((0.1, 0.9, 0.9, 0.9, 0.9, 0.9))
    (row,) = rows_of(await labelled(tmp_path, engine, [pair(0)], principles=6), "comparisons.jsonl")
    assert row["agreement"] == pytest.approx(5 / 6)
    given_by_people = helpful_comparisons([pair(0)], lambda prompt, a, b: 1.0).rows[0]
    assert given_by_people["agreement"] is None and given_by_people["interval"] is None
    assert given_by_people["fenced"] == []


# ---- abstaining

LOW_MASS = ScriptedEngine(no_words, lambda request: (log(0.02), log(0.01)))
GAPPED = ScriptedEngine(no_words, lambda request: (log(0.9), log(0.1)))
BACKWARD = ScriptedEngine(no_words, lambda request: (log(0.1), log(0.9)))


@pytest.mark.parametrize(
    ("engine", "threshold", "reason", "figure"),
    [
        (LOW_MASS, {"min_answer_mass": 0.05}, "low-answer-mass", "answer_mass 0.0300 is below"),
        (GAPPED, {"max_order_gap": 0.5}, "order-gap", "order_gap 0.8000 is beyond"),
        (BACKWARD, {"max_order_gap": 0.5}, "order-gap", "order_gap -0.8000 is beyond"),
        (
            by_rule((0.9, 0.1) * 3),
            {"min_agreement": 0.75, "principles": 6},
            "disagreement",
            "agreement 0.0000 is below",
        ),
    ],
    ids=["low-answer-mass", "order-gap", "order-gap-backward", "disagreement"],
)
async def test_a_judgement_beyond_a_threshold_is_unscored_and_counted_by_its_reason(
    tmp_path: Path, engine: ScriptedEngine, threshold: dict[str, float], reason: str, figure: str
) -> None:
    (name, limit) = next(iter(threshold.items()))
    stage = await labelled(tmp_path / "some", engine, [pair(0), pair(1)], **threshold, failure_limit=1.0)
    assert rows_of(stage, "comparisons.jsonl") == []
    failures = list(read_rows(stage.path / "failures.jsonl"))
    assert {(row["id"], row["where"], row["reason"]) for row in failures} == {
        (f"p{n}/1", "judgement", reason) for n in range(2)
    }
    assert all(f"{figure} comparisons.{name} {limit:g}" in row["text"] for row in failures)
    manifest = stage.manifest()
    assert manifest["failures"] == {reason: 2} and manifest["counts"]["comparisons"] == 0
    kept = await labelled(tmp_path / "all", engine, [pair(0)], principles=int(threshold.get("principles", 1)))
    assert len(rows_of(kept, "comparisons.jsonl")) == 1, "by default no threshold keeps a label back"


@given(probabilities, probabilities, st.floats(0.01, 1.0), st.floats(0, 1), st.floats(0, 1))
async def test_a_label_is_kept_exactly_where_its_figures_keep_the_thresholds(
    first: float, second: float, mass: float, min_mass: float, max_gap: float
) -> None:
    def choose(request: ChoiceRequest) -> Sequence[float]:
        p = first if first_is(GOOD, request) else second
        return log(mass * p), log(mass * (1 - p))

    whole = await judged(ScriptedEngine(no_words, choose))
    doubtful = whole.answer_mass < min_mass - 1e-6 or abs(whole.order_gap) > max_gap + 1e-6
    certain = whole.answer_mass > min_mass + 1e-6 and abs(whole.order_gap) < max_gap - 1e-6
    try:
        kept = await judged(ScriptedEngine(no_words, choose), min_answer_mass=min_mass, max_order_gap=max_gap)
    except Unusable:
        assert not certain
    else:
        assert not doubtful and kept == whole


async def test_pairs_on_which_the_judge_abstains_count_for_the_failure_limit(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match="order-gap: 3"):
        await labelled(tmp_path, GAPPED, [pair(n) for n in range(4)], max_order_gap=0.5)
