"""The gate: a judge that cannot tell good from bad, leans to a place, or does not answer, labels nothing."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from solon import sandbox
from solon.artifact import StageFolder, derive_seed, write_rows
from solon.config import Recipe, load_recipe, outcome_settings
from solon.config.recipe import Gate
from solon.constitution import Constitution
from solon.engine import ChoiceRequest, Request
from solon.engine.scripted import ScriptedEngine
from solon.errors import EngineError, InputError
from solon.feedback import (
    Planted,
    Reading,
    compare,
    gate_result,
    gate_result_of,
    pass_gate,
    planted_exemplars,
    read_planted,
    shipped_planted,
)
from test_feedback import CONSTITUTION, asked_text, no_words, pair
from test_supervised import kill_while_running, recipe, rows_of, stage_in

SHIPPED = shipped_planted()
BETTER_FIRST = {f"(A) {one.better}\n\n(B) {one.worse}": True for one in SHIPPED} | {
    f"(A) {one.worse}\n\n(B) {one.better}": False for one in SHIPPED
}
EXEMPLARS_FIRST = {f"(A) Better {n}.\n\n(B) Worse {n}.": True for n in range(4)} | {
    f"(A) Worse {n}.\n\n(B) Better {n}.": False for n in range(4)
}
SEEDS = range(20)

Judge = Callable[[ChoiceRequest], Sequence[float]]


def settings(seed: int = 0, **comparisons: object) -> Recipe:
    return recipe(pairs={}, comparisons=comparisons, seed=seed)


def answers_of(request: ChoiceRequest | Request) -> str:
    return (
        "(A) " + asked_text(request).partition("\n\n(A) ")[2].partition("\n\nAnswer with")[0].partition("\n\nThink")[0]
    )


def knows(request: ChoiceRequest | Request) -> bool | None:
    """Whether the better answer stands first; None for the same text twice, and for pairs that are no planted ones."""
    return {**BETTER_FIRST, **EXEMPLARS_FIRST}.get(answers_of(request))


def options(p_first: float, mass: float = 0.98) -> tuple[float, float]:
    return log(mass * p_first), log(mass * (1 - p_first))


def good(seed: int = 0) -> Judge:
    """Right nine times in ten or surer, with a little lean to the first place."""

    def choose(request: ChoiceRequest) -> Sequence[float]:
        first = knows(request)
        noise = derive_seed(seed, answers_of(request)) % 100 / 1000
        return options(0.55 if first is None else 0.98 - noise if first else 0.12 + noise)

    return choose


def flipping(seed: int) -> Judge:
    """As `good`, but of three pairs in ten it takes the worse answer for the better one, in both orders."""
    texts = sorted({"|".join(sorted(key[4:].split("\n\n(B) "))) for key in BETTER_FIRST | EXEMPLARS_FIRST})
    flipped = set(Random(seed).sample(texts, k=math.ceil(0.3 * len(texts))))

    def choose(request: ChoiceRequest) -> Sequence[float]:
        said = good(seed)(request)
        key = "|".join(sorted(answers_of(request)[4:].split("\n\n(B) ")))
        return said[::-1] if key in flipped else said

    return choose


def always_a(seed: int) -> Judge:
    """It names the first place, a little less surely where that is the worse answer."""
    lean = 0.9 + Random(seed).random() * 0.09

    def choose(request: ChoiceRequest) -> Sequence[float]:
        return options(lean if knows(request) else lean - 0.05)

    return choose


def elsewhere(seed: int) -> Judge:
    """Right, but what it would answer is something else than an option."""

    def choose(request: ChoiceRequest) -> Sequence[float]:
        return [value + log(0.001 * (1 + seed)) for value in good(seed)(request)]

    return choose


async def result_of(folder: Path, engine: ScriptedEngine, *, seed: int = 0, **comparisons: object) -> dict[str, object]:
    found = await pass_gate(
        settings(seed, **comparisons), stage_in(folder, "03-comparisons"), constitution=CONSTITUTION, engine=engine
    )
    assert isinstance(found, dict)
    return found


WARN = {"on_failure": "warn"}


# ---- judges made worse on purpose


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_good_judge_passes(tmp_path: Path, seed: int) -> None:
    found = await result_of(tmp_path, ScriptedEngine(no_words, good(seed)), seed=seed)
    assert found["passed"] and found["problems"] == [] and found["num_unscored"] == {}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("worse", "missed"),
    [(flipping, "accuracy"), (always_a, "position_bias"), (elsewhere, "answer_mass")],
    ids=["flipped", "always-a", "elsewhere"],
)
async def test_a_judge_made_worse_is_caught(
    tmp_path: Path, worse: Callable[[int], Judge], missed: str, seed: int
) -> None:
    found = await result_of(tmp_path, ScriptedEngine(no_words, worse(seed)), seed=seed, gate=WARN)
    assert not found["passed"]
    assert [line for line in found["problems"] if line.startswith(f"{missed} is ")]  # type: ignore[union-attr]


@pytest.mark.parametrize(("judge", "missed"), [("(A)", "accuracy"), ("No comment.", "accuracy")])
async def test_judges_in_words_are_caught_too(tmp_path: Path, judge: str, missed: str) -> None:
    found = await result_of(tmp_path, ScriptedEngine(lambda request: judge), gate=WARN)
    assert not found["passed"]
    assert [line for line in found["problems"] if line.startswith(f"{missed} is ")]  # type: ignore[union-attr]
    if judge == "No comment.":
        assert found["num_unscored"] == {"unparseable": 48} and found["consistency"] is None
        assert found["accuracy"] == pytest.approx({"value": 0, "low": 0, "high": 0.0741, "n": 48}, abs=1e-3)


@pytest.mark.parametrize("longer", [True, False])
async def test_a_rule_on_length_does_not_pass(tmp_path: Path, longer: bool) -> None:
    def choose(request: ChoiceRequest) -> Sequence[float]:
        a, _, b = answers_of(request)[4:].partition("\n\n(B) ")
        return options(0.5 if len(a) == len(b) else 0.9 if (len(a) > len(b)) == longer else 0.1)

    found = await result_of(tmp_path, ScriptedEngine(no_words, choose), gate=WARN)
    assert not found["passed"] and 0.3 < found["accuracy"]["value"] < 0.7  # type: ignore[index]


@pytest.mark.parametrize("reasoning", [False, True], ids=["direct", "chain-of-thought"])
@pytest.mark.parametrize("way", ["logprobs", "sampled"])
async def test_the_run_s_own_settings_are_used(tmp_path: Path, way: str, reasoning: bool) -> None:
    def words(request: Request) -> str:
        thinks = reasoning and request.prefix != ""
        return "Because." if thinks else "The answer is: " + ("(A)" if knows(request) else "(B)")

    engine = ScriptedEngine(words, good() if way == "logprobs" else None)
    more = {"verdicts": 3, "reasoning": reasoning, "few_shot": 1} | ({"reasoning_samples": 2} if reasoning else {})
    found = await result_of(tmp_path, engine, **more)
    assert found["passed"] and found["way"] == way
    asked = [one for one in engine.requests if isinstance(one, ChoiceRequest) or "verdict" in str(one.prompt)]
    assert all(len(one.prompt) >= 3 for one in asked), "a worked example stands before the question"
    kinds = {isinstance(one, ChoiceRequest) for one in engine.requests}
    assert kinds == ({True} if way == "logprobs" and not reasoning else {True, False} if way == "logprobs" else {False})


async def test_abstaining_counts_as_wrong(tmp_path: Path) -> None:
    """A judge that leans to a place in a fifth of the pairs, and is kept from labelling them."""
    leaning = {one.id for one in sorted(SHIPPED, key=lambda one: one.id)[:10]}
    texts = {text for one in SHIPPED if one.id in leaning for text in (one.better, one.worse)}

    def choose(request: ChoiceRequest) -> Sequence[float]:
        return options(0.95) if answers_of(request)[4:].partition("\n\n(B) ")[0] in texts else good()(request)

    engine = ScriptedEngine(no_words, choose)
    found = await result_of(tmp_path, engine, max_order_gap=0.5, gate=WARN, few_shot=1)
    assert found["num_unscored"] == {"order-gap": 10}
    assert found["accuracy"]["value"] == pytest.approx(34 / 44)  # type: ignore[index]
    assert found["consistency"]["n"] == 34 and found["prior"]["n"] == 32  # type: ignore[index]


# ---- the figures


readings = st.builds(
    lambda a, b, mass: Reading(0.5 + (a - b) / 2, a + b - 1, mass), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)
)


@hypothesis(max_examples=25)
@given(st.lists(readings, min_size=1, max_size=12), st.lists(st.floats(0, 1), max_size=4), st.integers(0, 5))
def test_figures_are_shares_and_means_and_their_intervals_hold_them(
    read: list[Reading], alone: list[float], num_unscored: int
) -> None:
    unscored = {"empty": num_unscored} if num_unscored else {}
    found = gate_result(read, alone=alone, unscored=unscored, gate=Gate(), seed=1)
    assert found.accuracy.value == pytest.approx(sum(one.p_better > 0.5 for one in read) / (len(read) + num_unscored))
    assert found.consistency is not None and found.position_bias is not None and found.answer_mass is not None
    assert found.position_bias.value == pytest.approx(sum(one.order_gap for one in read) / len(read))
    for one in (found.accuracy, found.consistency, found.position_bias, found.answer_mass, found.prior):
        assert one is None or one.low - 1e-9 <= one.value <= one.high + 1e-9
    assert found.consistency.n == len(read) and (found.prior is None) == (not alone)
    assert found.passed == (found.problems == ())
    assert gate_result_of(json.loads(json.dumps(found.facts()))) == found
    never = Gate(min_accuracy=0, min_consistency=0, max_position_bias=1, min_answer_mass=0)
    assert found.under(never).passed and found.under(never).under(Gate()) == found


@hypothesis(max_examples=25)
@given(st.lists(readings, min_size=1, max_size=8))
def test_a_lean_to_the_other_place_is_as_bad(read: list[Reading]) -> None:
    mirrored = [one._replace(order_gap=-one.order_gap) for one in read]
    one, other = (gate_result(each, alone=[], unscored={}, gate=Gate(), seed=0) for each in (read, mirrored))
    assert one.passed == other.passed and one.accuracy == other.accuracy and one.consistency == other.consistency
    assert one.position_bias is not None and other.position_bias is not None
    assert one.position_bias.value == pytest.approx(-other.position_bias.value)


def test_a_tie_is_not_right_and_both_orders_must_name_the_same() -> None:
    tie, torn = Reading(0.5, 0.0, 1.0), Reading(0.6, 0.9, 1.0)
    agreed = Reading(0.6, 0.1, 1.0)
    assert not tie.right and not tie.consistent
    assert torn.right and not torn.consistent
    assert agreed.right and agreed.consistent


async def test_the_prior_is_the_lean_to_the_letter_for_equal_texts(tmp_path: Path) -> None:
    found = await result_of(tmp_path, ScriptedEngine(no_words, good()))
    assert found["prior"] == pytest.approx({"value": 0.55, "low": 0.55, "high": 0.55, "n": 32})


async def test_the_better_answer_stands_first_in_about_half(tmp_path: Path) -> None:
    engine = ScriptedEngine(no_words, good())
    await result_of(tmp_path, engine)
    asked = [one for one in engine.requests if isinstance(one, ChoiceRequest) and knows(one) is not None]
    firsts = [knows(one) for one in asked[::2]]
    assert len(firsts) == 48 and 14 <= sum(map(bool, firsts)) <= 34
    assert [knows(one) for one in asked[1::2]] == [not first for first in firsts]


# ---- before a run labels


async def test_a_judge_that_fails_labels_nothing_and_every_figure_is_told(tmp_path: Path) -> None:
    engine = ScriptedEngine(no_words, always_a(0))
    stage = stage_in(tmp_path, "03-comparisons")
    with pytest.raises(InputError) as raised:
        await compare(settings(), stage, constitution=CONSTITUTION, engine=engine, pairs=[pair(0)])
    text = str(raised.value)
    assert isinstance(raised.value, ValueError) and "the judge 'scripted' fails the gate" in text
    for figure in ("accuracy", "consistency", "position_bias", "answer_mass"):
        assert f" {figure} is " in text
    assert "at most 0.35 is asked (comparisons.gate.max_position_bias)" in text
    assert "MISSED  position_bias" in text and "kept  answer_mass" in text
    for remedy in ("another comparisons.judge", "comparisons.few_shot", "comparisons.gate: null"):
        assert remedy in text
    assert not (stage.path / "comparisons.jsonl").exists() and not stage.finished
    about = json.loads((stage.path / "gate.json").read_text())
    assert about["passed"] is False and about["judge"] == "scripted" and len(about["problems"]) == 2
    assert not any("Red-team question" in str(one.prompt) for one in engine.requests)


async def test_warned_of_it_labels_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = stage_in(tmp_path, "03-comparisons")
    engine = ScriptedEngine(no_words, always_a(0))
    with caplog.at_level(logging.WARNING):
        await compare(settings(gate=WARN), stage, constitution=CONSTITUTION, engine=engine, pairs=[pair(0)])
    assert "the judge scripted fails the gate and labels all the same: consistency is 0.000" in caplog.text
    assert len(rows_of(stage, "comparisons.jsonl")) == 1
    assert stage.manifest()["gate"] == json.loads((stage.path / "gate.json").read_text())


async def test_without_a_gate_nothing_is_asked_and_the_manifest_says_off(tmp_path: Path) -> None:
    stage = stage_in(tmp_path, "03-comparisons")
    engine = ScriptedEngine(no_words, always_a(0))
    await compare(settings(gate=None), stage, constitution=CONSTITUTION, engine=engine, pairs=[pair(0)])
    assert stage.manifest()["gate"] == "off" and len(engine.requests) == 2
    assert not (stage.path / "gate.json").exists()


@pytest.mark.parametrize("more", [{}, {"reasoning": True}, {"few_shot": 2}], ids=["direct", "reasoning", "few-shot"])
async def test_the_gate_does_not_change_the_labels(tmp_path: Path, more: dict[str, object]) -> None:
    def choose(request: ChoiceRequest) -> Sequence[float]:
        if knows(request) is not None:
            return good()(request)
        return options(0.01 + derive_seed(request.prompt) % 980 / 1000)

    stages: list[StageFolder] = []
    for name, gate in (("with", {"min_consistency": 0.0}), ("without", None)):
        stage = stage_in(tmp_path / name, "03-comparisons")
        engine = ScriptedEngine(lambda request: f"because {request.seed}", choose)
        pairs = [pair(n) for n in range(6)]
        await compare(settings(gate=gate, **more), stage, constitution=CONSTITUTION, engine=engine, pairs=pairs)
        stages.append(stage)
    assert rows_of(stages[0], "comparisons.jsonl") == rows_of(stages[1], "comparisons.jsonl")
    assert stages[0].manifest()["gate"]["passed"] and stages[0].manifest()["counts"] == stages[1].manifest()["counts"]


def test_a_gate_may_be_changed_in_a_begun_stage() -> None:
    given, changed = settings().comparisons, settings(gate={"min_accuracy": 0.5}).comparisons
    assert given != changed and outcome_settings(given) == outcome_settings(changed)


# ---- resuming


async def test_a_gate_that_was_passed_is_not_asked_again(tmp_path: Path) -> None:
    stage = stage_in(tmp_path, "03-comparisons")
    await pass_gate(settings(), stage, constitution=CONSTITUTION, engine=ScriptedEngine(no_words, good()))
    assert stage.begin(config={}, inputs={})
    engine = ScriptedEngine(no_words, always_a(0))
    await compare(settings(), stage, constitution=CONSTITUTION, engine=engine, pairs=[pair(0)])
    assert len(engine.requests) == 2, "the label's alone"
    assert stage.manifest()["gate"]["passed"]


async def test_a_gate_that_was_missed_is_held_against_the_thresholds_as_they_are_now(tmp_path: Path) -> None:
    stage, engine = stage_in(tmp_path, "03-comparisons"), ScriptedEngine(no_words, flipping(0))
    for _ in range(2):
        with pytest.raises(InputError, match="min_accuracy"):
            await pass_gate(settings(), stage, constitution=CONSTITUTION, engine=engine)
    asked = len(engine.requests)
    lower = settings(gate={"min_accuracy": 0.6, "min_consistency": 0.5})
    found = await pass_gate(lower, stage, constitution=CONSTITUTION, engine=engine)
    assert isinstance(found, dict) and found["passed"] and found["thresholds"]["min_accuracy"] == 0.6
    assert len(engine.requests) == asked
    other = settings(gate={"num": 7, "on_failure": "warn"})
    found = await pass_gate(other, stage, constitution=CONSTITUTION, engine=engine)
    assert isinstance(found, dict) and found["accuracy"]["n"] == 7
    assert len(engine.requests) == asked + 4 * 7, "other pairs are asked"


async def test_a_gate_that_failed_with_the_server_is_asked_again(tmp_path: Path) -> None:
    up = False

    def flaky(request: ChoiceRequest) -> Sequence[float]:
        if not up:
            raise EngineError("gone", reason="connection")
        return good()(request)

    stage, engine = stage_in(tmp_path, "03-comparisons"), ScriptedEngine(no_words, flaky)
    with pytest.raises(InputError, match="unscored pairs, which count as wrong: connection: 48"):
        await pass_gate(settings(), stage, constitution=CONSTITUTION, engine=engine)
    up = True
    found = await pass_gate(settings(), stage, constitution=CONSTITUTION, engine=engine)
    assert isinstance(found, dict) and found["passed"]


KILLED = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_feedback import CONSTITUTION, no_words, pair
from test_feedback_gate import good, settings
from solon.artifact import StageFolder
from solon.engine.scripted import ScriptedEngine
from solon.feedback import compare
stage = StageFolder(Path({folder!r}))
stage.begin(config={{}}, inputs={{}})
engine = ScriptedEngine(no_words, good(), delay_s=0.005)
pairs = [pair(n) for n in range(60)]
asyncio.run(compare(settings(window=3), stage, constitution=CONSTITUTION, engine=engine, pairs=pairs))
"""


async def test_killed_while_it_labels_and_resumed_the_manifest_has_the_same_gate(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
    kill_while_running(code, folder / "comparisons.jsonl", rng=Random(3), at_least=3)
    stage = StageFolder(folder)
    assert stage.begin(config={}, inputs={})
    pairs, engine = [pair(n) for n in range(60)], ScriptedEngine(no_words, good())
    await compare(settings(), stage, constitution=CONSTITUTION, engine=engine, pairs=pairs)
    assert all(knows(one) is None for one in engine.requests)
    fresh = stage_in(tmp_path / "fresh", "03-comparisons")
    await compare(settings(), fresh, constitution=CONSTITUTION, engine=ScriptedEngine(no_words, good()), pairs=pairs)
    assert stage.manifest()["gate"] == fresh.manifest()["gate"]
    assert rows_of(stage, "comparisons.jsonl") == rows_of(fresh, "comparisons.jsonl")


# ---- planted pairs


def test_the_shipped_pairs_are_different_and_no_rule_on_length_helps() -> None:
    assert len(SHIPPED) == len({one.id for one in SHIPPED}) == 44
    assert len({one.prompt[-1]["content"] for one in SHIPPED}) == 44
    longer = sum(len(one.better) > len(one.worse) for one in SHIPPED)
    assert longer == 18
    assert all(one.question.endswith(("?", ".")) and one.better != one.worse for one in SHIPPED)


def test_exemplars_have_principles_of_their_own_and_the_seed_draws_them() -> None:
    drawn = [planted_exemplars(CONSTITUTION, seed=seed) for seed in range(20)]
    assert all([one.better for one in each] == [f"Better {n}." for n in range(4)] for each in drawn)
    assert len({one.question for each in drawn for one in each}) == 6
    assert drawn[3] == planted_exemplars(CONSTITUTION, seed=3)
    assert planted_exemplars(Constitution.load("theft-only"), seed=0) == []


async def test_which_pairs_are_asked(tmp_path: Path) -> None:
    async def contents(name: str, planted: list[Planted] | None = None, **comparisons: object) -> set[str]:
        engine = ScriptedEngine(no_words, lambda request: options(0.5))
        stage = stage_in(tmp_path / name, "03-comparisons")
        await pass_gate(settings(**comparisons), stage, constitution=CONSTITUTION, engine=engine, planted=planted)
        asked = [one for one in engine.requests if isinstance(one, ChoiceRequest)]
        return {answers_of(one)[4:].partition("\n\n(B) ")[0] for one in asked}

    shipped = {text for one in SHIPPED for text in (one.better, one.worse)}
    own = {f"{word} {n}." for word in ("Better", "Worse") for n in range(4)}
    assert await contents("all", gate=WARN) == shipped | own
    assert await contents("few-shot", gate=WARN, few_shot=1) == shipped, "worked examples bring their own answers"
    given = [Planted(prompt=[{"role": "user", "content": "Q?"}], better="yes", worse="no", question="Which?")]
    assert await contents("given", given, gate=WARN) == {"yes", "no"}
    write_rows(tmp_path / "mine.jsonl", [{"prompt": "Q?", "better": "x", "worse": "y", "question": "Which?"}] * 2)
    assert await contents("file", given, gate={**WARN, "pairs": str(tmp_path / "mine.jsonl")}) == {"x", "y"}
    fewer = await contents("fewer", gate={**WARN, "num": 5})
    assert len(fewer) == 10 and fewer < shipped | own


def test_a_file_of_planted_pairs_is_read_and_bad_rows_refused_together(tmp_path: Path) -> None:
    path = tmp_path / "planted.jsonl"
    good_row = {
        "prompt": "Human: Hello?\n\nAssistant: Yes?\n\nHuman: Why?",
        "better": "So.",
        "worse": "No.",
        "question": "Which?",
    }
    write_rows(path, [good_row, {**good_row, "prompt": [{"role": "user", "content": "Why?"}]}])
    first, second = read_planted(path)
    assert [turn["content"] for turn in first.prompt] == ["Hello?", "Yes?", "Why?"] and len(second.prompt) == 1
    write_rows(
        path,
        [
            good_row,
            {**good_row, "worse": " "},
            {**good_row, "a": "x"},
            {**good_row, "better": "No. "},
            {**good_row, "prompt": 7},
            {**good_row, "prompt": "Human: Why?\n\nAssistant: So."},
        ],
    )
    with pytest.raises(InputError) as raised:
        read_planted(path)
    assert [line.split(":")[1] for line in str(raised.value).splitlines()] == ["2", "3", "4", "5", "6"]
    write_rows(path, [])
    with pytest.raises(InputError, match="no planted pair in the file"):
        read_planted(path)


def test_the_sandbox_s_pairs_are_decided_by_their_rule_and_by_no_wrong_help() -> None:
    here = sandbox.planted_pairs(40, seed=1)
    assert len({one.id for one in here}) == 40 and here == sandbox.planted_pairs(40, seed=1)
    assert here != sandbox.planted_pairs(40, seed=2) and here[:9] == sandbox.planted_pairs(9, seed=1)
    from solon.sandbox import oracle
    from solon.sandbox.world import world

    method = {activity.id for activity in world().select(split="method")}
    for one in here:
        for text in (one.better, one.worse):
            said = oracle.judge(list(one.prompt), text)
            assert said.verdict in ("helps", "explains", "evades"), text
            assert said.activity in method


async def test_a_judge_of_the_sandbox_s_pairs_passes_if_it_knows_them(tmp_path: Path) -> None:
    planted = sandbox.planted_pairs(96, seed=0)
    better = {(one.better, one.worse) for one in planted}

    def choose(request: ChoiceRequest) -> Sequence[float]:
        a, _, b = answers_of(request)[4:].partition("\n\n(B) ")
        return options(0.5 if a == b else 0.9 if (a, b) in better else 0.1)

    stage = stage_in(tmp_path, "03-comparisons")
    engine = ScriptedEngine(no_words, choose)
    found = await pass_gate(settings(), stage, constitution=CONSTITUTION, engine=engine, planted=planted)
    assert isinstance(found, dict) and found["passed"] and found["accuracy"]["n"] == 96


# ---- settings


def test_the_recipe_for_any_checkpoint_only_warns() -> None:
    path = Path(__file__).parents[1] / "recipes" / "hh-revise.yaml"
    loaded = load_recipe(path, ["model.path=m", "prompts.path=p"])
    assert loaded.comparisons is not None and loaded.comparisons.gate == Gate(on_failure="warn")
    off = load_recipe(path, ["model.path=m", "prompts.path=p", "comparisons.gate=null"])
    assert off.comparisons is not None and off.comparisons.gate is None


def test_thresholds_are_shares(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\nmodel: {path: m}\nprompts: {path: p}\npairs: {}\ncomparisons: {gate: {min_accuracy: 2, mass: 1}}\n"
    )
    with pytest.raises(InputError) as raised:
        load_recipe(path)
    assert "comparisons.gate.min_accuracy" in str(raised.value) and "comparisons.gate.mass" in str(raised.value)
