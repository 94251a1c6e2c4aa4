"""The constitution as the reward: who meets whom, what the judgements make, and what cannot be read."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from solon.artifact import StageFolder, content_id
from solon.chain import Chain, Unusable
from solon.config import Comparisons, Reinforcement
from solon.engine import ChoiceRequest, Sampling
from solon.engine.scripted import ScriptedEngine
from solon.errors import EngineError, InputError, TooManyFailures
from solon.feedback import Judgement, Pair, judge_under_drawn
from solon.reinforcement import RolloutJudge
from solon.reinforcement.judge import meetings, scored
from test_feedback import CONSTITUTION, GOOD, asked_text, no_words, prefers
from test_supervised import MULTI_TURN


def said(p: float, *, rule: str = "rule-0") -> Judgement:
    return Judgement(
        probability=p,
        p_by_principle={rule: p},
        order_gap=0.0,
        answer_mass=1.0,
        agreement=1.0,
        interval=None,
        way="logprobs",
        verdicts=None,
        reasoning=(),
        fenced=(),
    )


UNREADABLE = Unusable(where="verdict", reason="no-verdict", text="Hm.")


@given(st.integers(2, 6), st.integers(1, 4))
def test_every_rollout_meets_two_of_its_group_or_the_only_other_one(group: int, num_groups: int) -> None:
    found = meetings(group * num_groups, group=group)
    assert all(first // group == second // group and first != second for first, second in found)
    assert len({frozenset(pair) for pair in found}) == len(found)
    assert Counter(place for pair in found for place in pair) == dict.fromkeys(
        range(group * num_groups), 2 if group > 2 else 1
    )


def test_a_score_is_the_mean_probability_of_being_the_better_one() -> None:
    found = scored(3, {(0, 1): said(0.9), (1, 2): said(0.6, rule="rule-1"), (2, 0): said(0.25)})
    assert found.scores == pytest.approx([(0.9 + 0.75) / 2, (0.1 + 0.6) / 2, (0.4 + 0.25) / 2])
    assert [column["p_by_principle"] for column in found.columns] == [
        pytest.approx({"rule-0": (0.9 + 0.75) / 2}),
        pytest.approx({"rule-0": 0.1, "rule-1": 0.6}),
        pytest.approx({"rule-1": 0.4, "rule-0": 0.25}),
    ]
    assert found.metrics == pytest.approx(
        {"unscored": 0.0, "unread": 0.0, "decided/rule-0": (0.8 + 0.5) / 2, "decided/rule-1": 0.2}
    )


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_scores_of_a_group_have_the_mean_of_a_half(p: list[float]) -> None:
    found = scored(4, dict(zip(meetings(4, group=4), map(said, p), strict=True)))
    assert sum(found.scores) / 4 == pytest.approx(0.5, abs=1e-5)
    assert all(0 <= score <= 1 for score in found.scores)


def test_what_cannot_be_read_is_left_out_and_a_rollout_with_nothing_else_is_unscored() -> None:
    found = scored(3, {(0, 1): UNREADABLE, (1, 2): UNREADABLE, (2, 0): said(0.25)})
    assert math.isnan(found.scores[1])
    assert (found.scores[0], found.scores[2]) == (0.75, 0.25)
    assert [column.get("unscored") for column in found.columns] == [None, "no-verdict", None]
    assert found.columns[1]["p_by_principle"] == {}
    assert (found.metrics["unscored"], found.metrics["unread"]) == pytest.approx((1 / 3, 2 / 3))


def judge(engine: ScriptedEngine, **settings: object) -> RolloutJudge:
    async def opened() -> ScriptedEngine:
        return engine

    return RolloutJudge(
        open=opened, constitution=CONSTITUTION, settings=Comparisons.model_validate({"principles": 2, **settings})
    )


async def test_rollouts_are_judged_as_pairs_are_labelled(tmp_path: Path) -> None:
    engine = ScriptedEngine(no_words, prefers(GOOD, 0.9))
    dialogues = [(MULTI_TURN, GOOD), (MULTI_TURN, "Another.")]
    with judge(engine).at_work(StageFolder(tmp_path / "stage"), seed=4) as ask:
        found, again = ask(dialogues, group=2), ask(dialogues, group=2)
    assert found == again
    assert engine.closed
    label = await judge_under_drawn(
        Pair(MULTI_TURN, GOOD, "Another."),
        chain=Chain(engine=engine, id=content_id([MULTI_TURN, GOOD, "Another."]), seed=4, sampling=Sampling()),
        settings=Comparisons(principles=2),
        constitution=CONSTITUTION,
    )
    assert found.scores == pytest.approx([label.probability, 1 - label.probability])
    assert found.scores[0] == pytest.approx(0.9)
    assert found.columns[0]["p_by_principle"] == pytest.approx(label.p_by_principle)
    assert len(label.p_by_principle) == 2


def test_a_judge_that_leaves_too_many_unscored_stops_the_training(tmp_path: Path) -> None:
    def silent(request: ChoiceRequest) -> Sequence[float]:
        if "mute" in asked_text(request):
            raise EngineError("mute", reason="engine-error")
        return prefers(GOOD)(request)

    dialogues = [(MULTI_TURN, text) for text in (GOOD, "Another.", "mute", "mute too")]
    stage = StageFolder(tmp_path / "stage")
    with judge(ScriptedEngine(no_words, silent), failure_limit=0.5).at_work(stage, seed=0) as ask:
        assert [math.isnan(score) for score in ask(dialogues, group=2).scores] == [False, False, True, True]
    with (
        judge(ScriptedEngine(no_words, silent), failure_limit=0.4).at_work(stage, seed=0) as ask,
        pytest.raises(TooManyFailures, match=r"50% of 4 rollouts unscored \(engine-error\)"),
    ):
        ask(dialogues, group=2)


def test_a_judge_that_fails_the_gate_is_not_asked_and_its_engine_is_closed(tmp_path: Path) -> None:
    async def refuse(stage: StageFolder, engine: object) -> None:
        await asyncio.sleep(0)
        raise InputError("it fails the gate")

    engine = ScriptedEngine(no_words, prefers(GOOD))
    refused = RolloutJudge(open=judge(engine).open, constitution=CONSTITUTION, settings=Comparisons(), gate=refuse)
    with pytest.raises(InputError, match="fails the gate"), refused.at_work(StageFolder(tmp_path / "s"), seed=0):
        raise AssertionError("nothing is asked")
    assert (engine.closed, engine.requests) == (True, [])


@pytest.mark.parametrize(
    ("algorithm", "what"), [({"kind": "dpo"}, "has no reward"), ({"kind": "ppo"}, "must be 2 or more")]
)
def test_a_judge_needs_answers_to_compare(algorithm: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Reinforcement.model_validate({"algorithm": algorithm, "reward": "judge"})
    Reinforcement.model_validate({"algorithm": {"kind": "ppo", "num_generations": 2}, "reward": "judge"})
