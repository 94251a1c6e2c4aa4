"""The plan of a recipe: its arithmetic against counts made by hand, and what is said before anything is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solon.artifact import RunFolder, silent, write_rows
from solon.config import Recipe
from solon.constitution import Constitution
from solon.engine import Request, Sampling
from solon.engine.scripted import ScriptedEngine
from solon.errors import EngineError, InputError
from solon.feedback import num_helpful
from solon.plan import PlanRow, Sizes, Step, measure_sizes, plan, preflight, probe, scaled, steps
from solon.run import Run

NUM_PRINCIPLES = len(Constitution.load("harmless").serving("comparison"))
SIZES = Sizes(
    num_red_team=10,
    num_helpful=4,
    prompt=20,
    longest_prompt=25,
    answer=30,
    critique_request=7,
    revision_request=5,
    question=40,
    revision_examples=0,
    comparison_examples=0,
)


def recipe_of(**sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"path": "sandbox:helpful"},
            "prompts": {"path": "sandbox", "limit": 10, "helpful_limit": 4},
            **sections,
        }
    )


def work_of(recipe: Recipe, sizes: Sizes = SIZES, **options: Any) -> dict[tuple[str, str], Step]:
    run = Run(recipe=recipe, folder=RunFolder(Path("nowhere")), again=frozenset(), progress=silent)
    return {(step.stage, step.what): step for step in steps(recipe, run, sizes, **options)}


def test_a_chain_is_one_answer_and_two_texts_a_round() -> None:
    work = work_of(recipe_of(revisions={"rounds": 3}))
    answers, critiques, revisions = work.values()
    assert (answers.requests, critiques.requests, revisions.requests) == (10, 30, 30)
    assert answers.prompt_tokens == 10 * 20
    assert critiques.prompt_tokens == 30 * (20 + 30 + 7)
    assert revisions.prompt_tokens == 30 * (20 + 30 + 7 + 30 + 5)
    assert answers.completion_tokens + critiques.completion_tokens + revisions.completion_tokens == 70 * 30


def test_without_critiques_there_are_half_as_many_texts_and_shorter_prompts() -> None:
    work = work_of(recipe_of(revisions={"rounds": 3, "critique": False}))
    assert [what for _, what in work] == ["answers", "revisions"]
    assert work["01-revisions", "revisions"].prompt_tokens == 30 * (20 + 30 + 5)


@pytest.mark.parametrize(
    ("trainer", "rows"),
    [
        ({"num_train_epochs": 2}, 2 * (10 * 2 + 4 * 2)),
        ({"max_steps": 7, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 7 * 4 * 2),
    ],
)
def test_training_tokens_follow_trls_own_settings(trainer: dict[str, Any], rows: int) -> None:
    supervised = {"pretrained": "sandbox:base", "trainer": trainer}
    work = work_of(recipe_of(revisions={"rounds": 2}, supervised=supervised))
    assert work["02-sl-cai", "helpful answers"].requests == 4 * 2
    assert work["02-sl-cai", "fine-tuning"].training_tokens == rows * (20 + 30)


def test_a_pair_is_asked_in_both_orders_under_every_principle() -> None:
    work = work_of(recipe_of(pairs={"per_prompt": 2}, comparisons={"principles": 3, "gate": None}))
    assert work["03-comparisons", "pairs"].requests == 10 * 2 * 2
    judged = work["03-comparisons", "comparisons"]
    assert judged.requests == 10 * 2 * 3 * 2
    assert judged.prompt_tokens == judged.requests * (20 + 2 * 30 + 40)
    assert judged.completion_tokens == 0
    assert judged.who == "judge"


def test_comparisons_of_helpfulness_are_as_many_as_the_pipeline_makes_and_cost_no_answers() -> None:
    rewarded = {"start": "sandbox:base", "helpful": "oracle", "holdout": 0.5}
    work = work_of(recipe_of(pairs={"per_prompt": 2}, comparisons={"gate": None}, preference=rewarded))
    assert work["03-comparisons", "pairs"].requests == 10 * 2 * 2
    assert work["04-preference-model", "training"].prompt_tokens == 2 * (20 + num_helpful(20)) * (20 + 30)


def test_the_gate_asks_of_planted_pairs_and_of_answers_beside_themselves() -> None:
    def requests(num: int, **more: object) -> float:
        recipe = recipe_of(pairs={}, comparisons={"gate": {"num": num}, **more})
        return work_of(recipe)["03-comparisons", "comparisons"].requests

    assert requests(4) == 10 * 2 + 2 * (4 + 4)
    assert requests(40) == 10 * 2 + 2 * (40 + 32)
    assert requests(4, reasoning=True, reasoning_samples=3) == 3 * requests(4)


def test_a_judge_without_log_probabilities_is_asked_for_each_verdict() -> None:
    work = work_of(recipe_of(pairs={}, comparisons={"verdicts": 5, "gate": None}), sampled=["judge"])
    judged = work["03-comparisons", "comparisons, by sampled verdicts"]
    assert judged.requests == 10 * 2 * 5
    assert judged.completion_tokens > 0


def test_reinforcement_samples_what_it_trains_on() -> None:
    recipe = recipe_of(
        revisions={},
        supervised={"pretrained": "sandbox:base"},
        pairs={},
        comparisons={},
        preference={},
        reinforcement={"max_new_tokens": 12, "trainer": {"max_steps": 6, "per_device_train_batch_size": 8}},
    )
    work = work_of(recipe)
    assert work["05-rl-cai", "rollouts"].requests == 6 * 8
    assert work["05-rl-cai", "rollouts"].completion_tokens == 6 * 8 * 12
    assert work["05-rl-cai", "scores, reference, training"].training_tokens == 6 * 8 * (20 + 12)


def test_a_value_model_is_trained_beside_the_policy_and_a_judge_compares_the_rollouts() -> None:
    def work(algorithm: dict[str, Any]) -> dict[tuple[str, str], Step]:
        trainer = {"max_steps": 6, "per_device_train_batch_size": 8}
        return work_of(
            recipe_of(
                revisions={},
                supervised={"pretrained": "sandbox:base"},
                comparisons={"gate": None},
                reinforcement={
                    "algorithm": algorithm,
                    "reward": "judge",
                    "max_new_tokens": 12,
                    "trainer": trainer,
                },
            )
        )

    four, two = work({"kind": "rloo", "num_generations": 4}), work({"kind": "ppo", "num_generations": 2})
    judged = four["05-rl-cai", "comparisons"]
    assert (judged.requests, judged.who) == (6 * 8 * 2, "judge")
    assert judged.prompt_tokens == judged.requests * (20 + 2 * 12 + 40)
    assert two["05-rl-cai", "comparisons"].requests == 6 * 8 / 2 * 2
    rloo, ppo = (found["05-rl-cai", "reference, training"] for found in (four, two))
    assert (rloo.training_tokens, ppo.training_tokens) == (6 * 8 * 32, 2 * 6 * 8 * 32)
    assert (rloo.prompt_tokens, ppo.prompt_tokens) == (2 * 6 * 8 * 32, 3 * 6 * 8 * 32)
    assert not any(stage == "03-comparisons" for stage, _ in four)


def test_dpo_needs_no_preference_model_and_reads_every_comparison_twice() -> None:
    recipe = recipe_of(
        revisions={},
        supervised={"pretrained": "sandbox:base"},
        pairs={},
        comparisons={},
        reinforcement={
            "algorithm": {"kind": "dpo"},
            "trainer": {"max_steps": 6, "per_device_train_batch_size": 8},
        },
    )
    work = work_of(recipe)
    assert [what for stage, what in work if stage == "05-rl-cai"] == ["reference, training"]
    step = work["05-rl-cai", "reference, training"]
    assert (step.prompt_tokens, step.training_tokens) == (2 * 10 * (20 + 30), 2 * 6 * 8 * (20 + 30))


def test_evaluation_counts_models_prompts_and_their_meetings() -> None:
    work = work_of(
        recipe_of(evaluation={"samples": 6, "battles": 4}, revisions={}, supervised={"pretrained": "sandbox:base"})
    )
    assert work["06-evaluation", "answers"].requests == 3 * 3 * 6
    gate = 2 * (96 + 32)  # No judge has labelled: this one is tried first.
    assert work["06-evaluation", "comparisons"].requests == gate + 3 * 2 * 4 * 2 + 2 * 40 * NUM_PRINCIPLES


def test_a_judge_that_labelled_is_not_tried_again_for_the_evaluation() -> None:
    judged = {"pairs": {}, "comparisons": {}, "evaluation": {"battles": 4, "samples": 6}}
    same = work_of(recipe_of(**judged))["06-evaluation", "comparisons"].requests
    judged["evaluation"] |= {"judge": {"path": "sandbox:base"}}
    assert work_of(recipe_of(**judged))["06-evaluation", "comparisons"].requests == same + 2 * (96 + 32)


@pytest.mark.parametrize(("asked", "judged"), [(0, 0), (15, 15), (1000, 10 * 4)])
def test_revisions_are_judged_under_every_principle_as_far_as_there_are_any(asked: int, judged: int) -> None:
    work = work_of(recipe_of(evaluation={"battles": 0, "revisions": asked}, revisions={}))
    gate = 2 * (96 + 32) if judged else 0
    assert work["06-evaluation", "comparisons"].requests == gate + 2 * judged * NUM_PRINCIPLES
    without = work_of(recipe_of(evaluation={"battles": 0, "revisions": asked}))
    assert without["06-evaluation", "comparisons"].requests == 0


def test_iterations_label_again_and_train_on_all_labels_so_far() -> None:
    sections = {"revisions": {}, "supervised": {}, "pairs": {"per_prompt": 2}, "comparisons": {"gate": None}}
    sections |= {"preference": {"holdout": 0.5}, "supervised": {"start": "assistant"}}
    once = work_of(recipe_of(**sections, reinforcement={}))
    thrice = work_of(recipe_of(**sections, reinforcement={"iterations": 3}))
    assert once.keys() == thrice.keys()
    for name in (("03-comparisons", "pairs"), ("03-comparisons", "comparisons"), ("05-rl-cai", "rollouts")):
        assert thrice[name].requests == 3 * once[name].requests > 0
    preference = ("04-preference-model", "training")
    assert thrice[preference].prompt_tokens == (1 + 2 + 3) * once[preference].prompt_tokens > 0


def test_a_stage_without_a_section_takes_nothing() -> None:
    assert work_of(recipe_of()) == {}


# ---- measuring


async def test_the_probe_counts_cut_answers_as_whole_ones() -> None:
    engine = ScriptedEngine(lambda request: "word " * 500, lambda request: [-0.7, -0.7], delay_s=0.01)
    prompts = [[{"role": "user", "content": f"question {i}"}] for i in range(4)]
    speed = await probe(engine, prompts, sampling=Sampling(max_new_tokens=64))  # type: ignore[arg-type]
    assert speed.answer == 64
    assert speed.reads > 0 and speed.writes > 0 and speed.chooses


async def test_the_probe_goes_on_where_a_prompt_does_not_fit_and_fails_where_none_does() -> None:
    def answer(request: Request) -> str:
        if request.prompt[0]["content"] != "short":
            raise EngineError("too long", reason="context-length")
        return "one two three"

    prompts: list[Any] = [[{"role": "user", "content": text}] for text in ("short", "long", "short")]
    speed = await probe(ScriptedEngine(answer), prompts, sampling=Sampling(max_new_tokens=64))
    assert speed.answer == 3
    assert not speed.chooses
    with pytest.raises(EngineError, match="too long"):
        await probe(ScriptedEngine(answer), prompts[1:2], sampling=Sampling())


def test_sizes_come_from_the_prompts_and_the_constitution(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    write_rows(prompts, [{"prompt": "one two three"}, {"prompt": "one two three four five"}])
    recipe = recipe_of(prompts={"path": str(prompts)})
    run = Run(recipe=recipe, folder=RunFolder(tmp_path / "run"), again=frozenset(), progress=silent)
    sizes = measure_sizes(run, answer=9, count=lambda dialogue: sum(len(turn["content"].split()) for turn in dialogue))
    assert (sizes.num_red_team, sizes.num_helpful, sizes.prompt, sizes.answer) == (2, 0, 4, 9)
    lengths = [len(one.critique.split()) for one in run.constitution.principles if one.critique]
    assert sizes.critique_request == pytest.approx(sum(lengths) / len(lengths))


async def test_a_plan_of_a_local_model_writes_nothing(
    tmp_path: Path, tiny_causal_lm: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_causal_lm(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    recipe = recipe_of(
        model={"path": str(model)},
        prompts={"path": "sandbox", "limit": 5, "helpful_limit": 0},
        revisions={"rounds": 1, "sampling": {"max_new_tokens": 8}},
        pairs={"sampling": {"max_new_tokens": 8}},
        comparisons={"gate": None},
    )
    preflight(recipe)
    found = await plan(recipe)
    assert [(row.stage, row.what, row.requests) for row in found.rows] == [
        ("01-revisions", "answers", 5),
        ("01-revisions", "critiques", 5),
        ("01-revisions", "revisions", 5),
        ("03-comparisons", "pairs", 10),
        ("03-comparisons", "comparisons", 10),
    ]
    assert all(row.seconds > 0 for row in found.rows)
    assert found.total.requests == 35
    assert found.total.seconds == pytest.approx(sum(row.seconds for row in found.rows))
    assert "5 red-team and 0 helpful prompts" in found.assumptions
    assert list(work.iterdir()) == []
    only = await plan(recipe, stages=["03-comparisons"])
    assert {row.stage for row in only.rows} == {"03-comparisons"}


# ---- before anything is run


def test_more_machines_divide_the_work_but_not_a_chain() -> None:
    def row(stage: str, requests: int, seconds: float) -> PlanRow:
        numbers = {"prompt_tokens": 0, "completion_tokens": 0, "training_tokens": 0}
        return PlanRow(stage=stage, what="", requests=requests, seconds=seconds, **numbers)

    rows = [row("01-revisions", 900, 3000), row("02-sl-cai", 0, 777), row("03-comparisons", 100, 1000)]
    found = scaled([*rows, row("05-rl-cai", 500, 9999)], chain_s=20)
    assert [(one.replicas, one.seconds) for one in found] == [(1, 4000), (10, 400), (100, 40), (1000, 20)]
    assert [one.requests_per_s for one in found] == [0.25, 2.5, 25, 50]
    assert scaled(rows[1:2], chain_s=20) == ()


def test_preflight_knows_what_is_wanted_of_the_constitution(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "name: rules\nprinciples:\n- {id: one, comparison: 'Is it better?'}\n- {id: two, comparison: 'Is it best?'}\n"
    )
    sections = {"revisions": {"few_shot": 1}, "pairs": {}, "comparisons": {"principles": 3, "few_shot": 2}}
    with pytest.raises(InputError) as caught:
        preflight(recipe_of(constitution=str(rules), **sections))
    message = str(caught.value)
    assert "no principle of the constitution 'rules' has a `critique` and a `revision`" in message
    assert "comparisons.principles: 3 different principles asked for, the constitution 'rules' has 2" in message
    assert "revisions.few_shot: 1 revision exemplars asked for, the constitution has 0" in message
    assert "comparisons.few_shot: 2 comparison exemplars asked for" in message
    preflight(recipe_of(constitution=str(rules), pairs={}, comparisons={"principles": 2}))


def test_preflight_names_everything_that_is_missing_at_once(tmp_path: Path) -> None:
    recipe = recipe_of(
        model={"path": str(tmp_path / "no-model")},
        prompts={"path": str(tmp_path / "no-prompts.jsonl")},
        constitution=str(tmp_path / "no-rules.yaml"),
        revisions={},
        supervised={"pretrained": str(tmp_path), "trainer": {"learning_rat": 1}},
    )
    with pytest.raises(InputError) as caught:
        preflight(recipe)
    message = str(caught.value)
    for part in ("no-prompts.jsonl: there is no such file", "no-model: no such model folder", "no-rules.yaml"):
        assert part in message
    assert "it has no config.json" in message
    assert "learning_rat" in message
