"""The whole method in miniature: every stage runs, is skipped, is refused, and survives kill -9 at a random moment.

A random model writes the texts, so that nothing here depends on what a trained one would say. It decodes one row at a
time (`max_batch: 1`): then a resumed run must give the same texts to the last character, not only up to rounding.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from solon.artifact import STAGES, RunFolder, StageFolder, read_rows, write_rows
from solon.config import Recipe, load_recipe
from solon.errors import InputError, StageChanged
from solon.feedback import num_helpful
from solon.pipeline import run_recipe

SEED = 2022
"""Of the moments at which processes are killed."""
TRAINED = ("02-sl-cai", "04-preference-model", "05-rl-cai")
KEYED = {
    "01-revisions": ("prompts.jsonl", "revisions.jsonl"),
    "02-sl-cai": ("helpful.jsonl",),
    "03-comparisons": ("pairs.jsonl", "comparisons.jsonl"),
    "04-preference-model": ("held-out.jsonl",),
    "05-rl-cai": (),
    "06-evaluation": ("responses.jsonl", "battles.jsonl", "mending.jsonl"),
}
"""The files of each stage whose rows have an id."""
UNKEYED = {"02-sl-cai": ("sft.jsonl",), "05-rl-cai": ("rollouts.jsonl",)}
"""Those whose rows have none, in the order in which they must stand."""

CONSTITUTION = """\
name: two-rules
principles:
  - id: theft
    critique: Say how it helps to steal.
    revision: Take the help to steal out.
    comparison: Which helps less to steal?
  - id: reasons
    critique: Say which reason it lacks.
    revision: Give a reason.
    comparison: Which gives a reason?
"""
RECIPE = """\
name: mini
seed: 3
constitution: {folder}/two-rules.yaml
model: {{path: {folder}/model, max_batch: 1}}
prompts: {{path: {folder}/red-team.jsonl, helpful_path: {folder}/helpful.jsonl}}
revisions:
  rounds: 2
  sampling: &short {{max_new_tokens: 48, stop: [e]}}
  window: 3
  failure_limit: 0.9
supervised:
  start: assistant
  helpful_samples: 2
  trainer: {{max_steps: 4, per_device_train_batch_size: 2, learning_rate: 1e-3}}
pairs: {{sampling: *short, window: 3, failure_limit: 0.9}}
comparisons: {{window: 3, gate: null}}
preference:
  helpful: {folder}/human.jsonl
  holdout: 0.3
  trainer: {{max_steps: 4, per_device_train_batch_size: 2, learning_rate: 1e-3}}
reinforcement:
  algorithm: {{num_generations: 2}}
  max_new_tokens: 6
  trainer: {{max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1e-3}}
evaluation:
  prompts: {folder}/red-team-unseen.jsonl
  helpful_prompts: {folder}/helpful-unseen.jsonl
  samples: 4
  battles: 3
  revisions: 3
  sampling: *short
"""
ACTS = ("take a bike", "open a lock", "copy a key", "read a letter", "bake bread", "grow beans", "mend a shirt")
PROMPTS = {"red-team": ACTS[:4], "helpful": ACTS[4:], "red-team-unseen": ACTS[:2], "helpful-unseen": ACTS[4:6]}


@pytest.fixture(scope="module")
def recipe_file(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with all stages, on its own prompts and a model of 2,048 tokens of context."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(_tiny_model, folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    (folder / "two-rules.yaml").write_text(CONSTITUTION)
    for name, acts in PROMPTS.items():
        asks = ("How do I {}?", "Please tell me: how can I {} today?")
        texts = [(asks[1 if "unseen" in name else 0]).replace("{}", act) for act in acts]
        earlier = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
        write_rows(
            folder / f"{name}.jsonl",
            [
                {"prompt": [*(earlier if i % 2 else []), {"role": "user", "content": text}]}
                for i, text in enumerate(texts)
            ],
        )
    asked = [f"\n\nHuman: How do I {act}?\n\nAssistant: " for act in ACTS]
    write_rows(folder / "human.jsonl", [{"chosen": ask + "Like this.", "rejected": ask + "No."} for ask in asked])
    path = folder / "mini.yaml"
    path.write_text(RECIPE.format(folder=folder))
    return path


@pytest.fixture(scope="module")
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file)


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that nobody disturbed, made in a process of its own."""
    import datasets  # noqa: F401 - loaded once here, so that the processes forked from this one need not
    import trl.trainer.reward_trainer
    import trl.trainer.rloo_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(recipe, folder)
    return folder


def process(work: Callable[..., None], *arguments: object) -> Any:
    """A process of its own, begun; it can be killed like any other."""
    child = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    child.start()
    return child


def run_in_process(recipe: Recipe, folder: Path, stages: Collection[str] | None) -> None:
    asyncio.run(run_recipe(recipe, folder, stages=stages))


def finish(recipe: Recipe, folder: Path, *, stages: Collection[str] | None = None) -> None:
    child = process(run_in_process, recipe, folder, stages)
    child.join()
    assert child.exitcode == 0, f"the run of {stages or 'all stages'} ended with {child.exitcode}"


def copy_before(whole: Path, stage: str, folder: Path) -> Path:
    """A run folder in which everything before `stage` is there."""
    for name in STAGES[: STAGES.index(stage)]:
        shutil.copytree(whole / name, folder / name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


def status(folder: Path, stage: str) -> str:
    path = folder / stage / "manifest.json"
    return json.loads(path.read_text())["status"] if path.exists() else "not begun"


def rows_by_id(path: Path) -> dict[str, dict[str, Any]]:
    rows = list(read_rows(path))
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), f"an id stands twice in {path}"
    return found


def alike(left: Any, right: Any) -> bool:
    """Equal, but for numbers that come out of a batch of another size and so differ by rounding."""
    if isinstance(left, float) and isinstance(right, float):
        return left == pytest.approx(right, abs=1e-4)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(alike, left, right))
    return left == right


def assert_same_stage(whole: Path, folder: Path, stage: str) -> None:
    """The rows, counted failures, measured numbers and weights of one stage in two runs."""
    before, after = whole / stage, folder / stage
    for file in KEYED[stage]:
        rows = [rows_by_id(path / file) for path in (before, after)]
        assert rows[1].keys() == rows[0].keys(), file
        assert all(alike(rows[1][id], rows[0][id]) for id in rows[0]), file
    for file in UNKEYED.get(stage, ()):
        assert list(read_rows(after / file)) == list(read_rows(before / file)), file
    manifests = [StageFolder(path).manifest() for path in (before, after)]
    for part in ("status", "config", "inputs", "counts", "failures", "measured"):
        assert alike(manifests[1].get(part), manifests[0].get(part)), part
    if stage in TRAINED:
        weights = [(path / "model" / "model.safetensors").read_bytes() for path in (before, after)]
        assert weights[0] == weights[1]
        steps = [[row["step"] for row in read_rows(path / "metrics.jsonl")] for path in (before, after)]
        assert set(steps[1]) == set(steps[0])
        assert not (after / "checkpoints").exists()
    if stage == "06-evaluation":
        scores = [json.loads((path / "scores.json").read_text()) for path in (before, after)]
        assert alike(scores[1], scores[0])


# ---- a whole run


def test_every_stage_finishes_and_leaves_what_the_next_one_needs(whole: Path, recipe: Recipe) -> None:
    assert [status(whole, name) for name in STAGES[:-1]] == ["finished"] * 6
    assert (whole / "report" / "index.html").stat().st_size > 10_000
    assert json.loads((whole / "recipe.resolved.json").read_text()) == recipe.resolved()
    assert "two-rules" in (whole / "constitution.yaml").read_text()
    for stage, files in KEYED.items():
        for file in files:
            assert rows_by_id(whole / stage / file), file
    for stage in TRAINED:
        assert (whole / stage / "model" / "model.safetensors").is_file()
    revisions = rows_by_id(whole / "01-revisions" / "revisions.jsonl")
    failed = {row["id"] for row in read_rows(whole / "01-revisions" / "failures.jsonl")} if _failures(whole) else set()
    prompts = list(read_rows(whole / "01-revisions" / "prompts.jsonl"))
    assert {row["id"] for row in prompts if row["kind"] == "red-team"} == revisions.keys() | failed
    assert len(prompts) == len(PROMPTS["red-team"]) + len(PROMPTS["helpful"])
    scores = json.loads((whole / "06-evaluation" / "scores.json").read_text())
    assert {score["model"] for score in scores} >= {"helpful", "sl-cai", "rl-cai", "preference-model"}
    assert all(score["n"] > 0 and score["low"] <= score["value"] <= score["high"] for score in scores)


def test_the_preference_model_says_how_it_scores_what_it_did_not_learn_from(whole: Path) -> None:
    stage = StageFolder(whole / "04-preference-model")
    rows = list(rows_by_id(stage.path / "held-out.jsonl").values())
    labels = rows_by_id(whole / "03-comparisons" / "comparisons.jsonl")
    assert len(rows) == stage.manifest()["counts"]["held_out_pairs"] > 0
    assert any(row["probability"] == labels[row["id"]]["probability"] for row in rows if row["source"] == "ai")
    scores = [row[name] for row in rows for name in ("score_chosen", "score_rejected")]
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-3)  # Centred on these very replies.


def _failures(whole: Path) -> bool:
    return (whole / "01-revisions" / "failures.jsonl").exists()


def test_a_prompt_keeps_its_earlier_turns_through_every_stage(whole: Path) -> None:
    for path in (whole / "01-revisions" / "revisions.jsonl", whole / "03-comparisons" / "comparisons.jsonl"):
        lengths = {len(row["prompt"]) for row in read_rows(path)}
        assert lengths == {1, 3}, path
    for row in read_rows(whole / "02-sl-cai" / "sft.jsonl"):
        assert [turn["role"] for turn in row["prompt"]] in (["user"], ["user", "assistant", "user"])


def test_a_finished_run_is_skipped_whole(whole: Path, recipe: Recipe) -> None:
    before = contents(whole)
    finish(recipe, whole)
    after = contents(whole)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []


def test_a_finished_stage_is_skipped_when_only_the_way_of_working_changed(
    whole: Path, recipe_file: Path, tmp_path: Path
) -> None:
    other = load_recipe(recipe_file, ["revisions.window=1", "revisions.failure_limit=0.8"])
    folder = copy_before(whole, "02-sl-cai", tmp_path / "run")
    manifest = (folder / "01-revisions" / "manifest.json").read_bytes()
    asyncio.run(run_recipe(other, folder, stages=["01-revisions"]))
    assert (folder / "01-revisions" / "manifest.json").read_bytes() == manifest


# ---- refusals


def test_a_changed_setting_is_refused_and_again_starts_the_stage_fresh(
    whole: Path, recipe_file: Path, tmp_path: Path
) -> None:
    folder = copy_before(whole, "02-sl-cai", tmp_path / "run")
    changed = load_recipe(recipe_file, ["revisions.rounds=1"])
    before = contents(folder / "01-revisions")
    with pytest.raises(StageChanged, match=r"revisions\.rounds: 2 -> 1(.|\n)*--again 01-revisions"):
        asyncio.run(run_recipe(changed, folder, stages=["01-revisions"]))
    assert contents(folder / "01-revisions") == before
    asyncio.run(run_recipe(changed, folder, stages=["01-revisions"], again=["01-revisions"]))
    rows = rows_by_id(folder / "01-revisions" / "revisions.jsonl")
    assert {len(row["rounds"]) for row in rows.values()} == {1}
    old = rows_by_id(whole / "01-revisions" / "revisions.jsonl")
    assert all(row["rounds"] == old[id]["rounds"][:1] for id, row in rows.items() if id in old)


def test_a_stage_whose_inputs_changed_is_refused(whole: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = copy_before(whole, "03-comparisons", tmp_path / "run")
    path = folder / "01-revisions" / "revisions.jsonl"
    write_rows(path, list(read_rows(path))[:-1])
    with pytest.raises(StageChanged, match=r"inputs\.revisions\.jsonl"):
        asyncio.run(run_recipe(recipe, folder, stages=["02-sl-cai"]))


def test_a_stage_whose_model_changed_is_refused(whole: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = copy_before(whole, "04-preference-model", tmp_path / "run")
    weights = folder / "02-sl-cai" / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StageChanged, match=r"inputs\.model"):
        asyncio.run(run_recipe(recipe, folder, stages=["03-comparisons"]))


def test_another_constitution_is_refused_by_every_stage(whole: Path, recipe_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(CONSTITUTION.replace("a reason", "two reasons"))
    changed = load_recipe(recipe_file, [f"constitution={other}"])
    folder = copy_before(whole, "04-preference-model", tmp_path / "run")
    for stage in STAGES[:3]:
        with pytest.raises(StageChanged, match=r"inputs\.constitution"):
            asyncio.run(run_recipe(changed, folder, stages=[stage]))


@pytest.mark.parametrize("stage", STAGES[1:6])
def test_a_stage_without_the_stages_before_it_is_an_input_error(stage: str, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the earlier stages"):
        asyncio.run(run_recipe(recipe, tmp_path / "run", stages=[stage]))
    assert status(tmp_path / "run", stage) == "not begun"


def test_stages_that_are_not_run_keep_what_they_were_made_with(whole: Path, recipe_file: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    other = load_recipe(recipe_file, ["seed=99", "revisions.rounds=1", "evaluation.battles=2"])
    asyncio.run(run_recipe(other, folder, stages=["report"]))
    assert json.loads((folder / "recipe.resolved.json").read_text()) == load_recipe(recipe_file).resolved()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "recipe.resolved.json").write_text('{"name": "of a call that began nothing"}')
    asyncio.run(run_recipe(other, tmp_path / "new", stages=["01-revisions"]))
    assert json.loads((tmp_path / "new" / "recipe.resolved.json").read_text()) == other.resolved()


@pytest.mark.parametrize(
    ("stage", "before"), [("02-sl-cai", "01-revisions"), ("04-preference-model", "03-comparisons")]
)
def test_the_rows_of_a_stage_that_was_killed_are_not_trained_on(
    stage: str, before: str, whole: Path, recipe: Recipe, tmp_path: Path
) -> None:
    folder = copy_before(whole, stage, tmp_path / "run")
    path = folder / before / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running", "resumed_at": time.time()}))
    with pytest.raises(InputError, match=f"{before}.*is not finished"):
        asyncio.run(run_recipe(recipe, folder, stages=[stage]))
    assert status(folder, stage) == "not begun"


def test_a_stage_that_does_not_exist_is_an_input_error(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stage is called '07-more'"):
        asyncio.run(run_recipe(recipe, tmp_path / "run", stages=["07-more"]))
    with pytest.raises(InputError, match="no stage is called 'all'"):
        asyncio.run(run_recipe(recipe, tmp_path / "run", again=["all"]))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A run folder in which another process works."""
    folder = tmp_path / "run"
    child = process(_hold, folder)
    while not (folder / "held").exists():
        assert child.is_alive()
        time.sleep(0.01)
    yield folder
    child.kill()
    child.join()


def _hold(folder: Path) -> None:
    with RunFolder(folder).held():
        (folder / "held").touch()
        time.sleep(600)


def test_a_run_in_which_another_process_works_is_refused(held: Path, recipe: Recipe) -> None:
    with pytest.raises(InputError, match="another process works in this run"):
        asyncio.run(run_recipe(recipe, held))
    assert not (held / "recipe.resolved.json").exists()


def test_the_order_in_which_comparisons_were_saved_does_not_change_the_preference_model(
    whole: Path, recipe: Recipe, tmp_path: Path
) -> None:
    folder = copy_before(whole, "05-rl-cai", tmp_path / "run")
    path = folder / "03-comparisons" / "comparisons.jsonl"
    rows = list(read_rows(path))
    assert len(rows) > 1
    write_rows(path, rows[::-1])
    before = contents(folder / "04-preference-model")
    asyncio.run(run_recipe(recipe, folder, stages=["04-preference-model"]))
    assert contents(folder / "04-preference-model") == before


# ---- kill -9


@pytest.mark.parametrize("stage", STAGES[:6])
def test_a_stage_killed_at_a_random_moment_ends_as_if_it_had_not_been(
    stage: str, whole: Path, recipe: Recipe, tmp_path: Path
) -> None:
    folder = kill_within(stage, whole=whole, recipe=recipe, scratch=tmp_path, seed=SEED)
    finish(recipe, folder, stages=[stage])
    assert_same_stage(whole, folder, stage)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stage", STAGES[:6])
def test_a_stage_killed_twice_ends_as_if_it_had_not_been(
    stage: str, seed: int, whole: Path, recipe: Recipe, tmp_path: Path
) -> None:
    folder = kill_within(stage, whole=whole, recipe=recipe, scratch=tmp_path, seed=seed)
    child = process(run_in_process, recipe, folder, [stage])
    time.sleep(random.Random(seed).uniform(0, seconds_of(whole, stage)))
    child.kill()
    child.join()
    finish(recipe, folder, stages=[stage])
    assert_same_stage(whole, folder, stage)


@pytest.mark.slow
def test_a_run_of_the_command_killed_again_and_again_ends_as_if_it_had_not_been(
    whole: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """Fresh interpreters, with other hash seeds, and the command line over them."""
    command = [sys.executable, "-m", "solon", "run", str(recipe_file), "--out", str(tmp_path / "run")]
    moments = random.Random(SEED)
    for stage in STAGES[:6]:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        while child.poll() is None and status(tmp_path / "run", stage) == "not begun":
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5 * seconds_of(whole, stage)))
        child.kill()
        child.wait()
    subprocess.run(command, check=True, capture_output=True)
    for stage in STAGES[:3]:
        assert_same_stage(whole, tmp_path / "run", stage)
    # From here on the labels' rounding, which depends on who was judged side by side, is part of the input.
    for stage in STAGES[3:6]:
        before, after = (StageFolder(folder / stage).manifest() for folder in (whole, tmp_path / "run"))
        assert (after["status"], after["counts"]) == ("finished", before["counts"])
    steps = [row["step"] for row in read_rows(tmp_path / "run" / "05-rl-cai" / "rollouts.jsonl")]
    assert steps == [row["step"] for row in read_rows(whole / "05-rl-cai" / "rollouts.jsonl")]
    for file in KEYED["06-evaluation"]:
        found = [rows_by_id(folder / "06-evaluation" / file) for folder in (whole, tmp_path / "run")]
        assert found[0].keys() == found[1].keys()


def seconds_of(whole: Path, stage: str) -> float:
    return StageFolder(whole / stage).manifest()["seconds"]


def kill_within(stage: str, *, whole: Path, recipe: Recipe, scratch: Path, seed: int) -> Path:
    """A run folder whose process died by SIGKILL at a random moment while `stage` was at work.

    The moment is drawn over the time that the whole run took for the stage. A process that was faster than its moment
    is begun anew with half the time.
    """
    moments, span_s = random.Random(f"{seed}/{stage}"), seconds_of(whole, stage)
    for attempt in range(8):
        folder = copy_before(whole, stage, scratch / f"attempt-{attempt}")
        wait_s = moments.uniform(0, span_s)
        print(f"{stage}, seed {seed}, attempt {attempt}: kill {wait_s:.3f} s after the stage has begun")
        child = process(run_in_process, recipe, folder, [stage])
        while child.is_alive() and status(folder, stage) == "not begun":
            time.sleep(0.002)
        child.join(wait_s)
        child.kill()
        child.join()
        if status(folder, stage) == "running":
            return folder
        assert status(folder, stage) == "finished", "the process died by itself"
        span_s /= 2
    raise AssertionError(f"{stage} was always finished before it was killed")


def test_comparisons_of_helpfulness_grow_with_the_pairs_of_a_prompt(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "pairs",
            "constitution": "harmless",
            "model": {"path": "sandbox:helpful"},
            "prompts": {"path": "sandbox", "limit": 4, "helpful_limit": 1},
            "pairs": {"per_prompt": 3, "sampling": {"max_new_tokens": 8}},
            "preference": {"start": "sandbox:base", "helpful": "oracle"},
        }
    )
    asyncio.run(run_recipe(recipe, tmp_path, stages={"03-comparisons"}))
    rows = list(read_rows(tmp_path / "03-comparisons" / "helpful-comparisons.jsonl"))
    assert len(rows) == num_helpful(4 * 3) == 9


def test_a_judge_rewards_in_place_of_pairs_and_a_preference_model(
    recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    judged = load_recipe(
        recipe_file,
        [
            *("pairs=null", "preference=null", "evaluation=null"),
            *("comparisons.gate={num: 2, on_failure: warn}", "comparisons.failure_limit=1.0"),
            "reinforcement.reward=judge",
            "reinforcement.algorithm={kind: ppo, num_generations: 2}",
        ],
    )
    folder = copy_before(whole, "03-comparisons", tmp_path / "run")
    finish(judged, folder, stages={"05-rl-cai"})
    stage, manifest = folder / "05-rl-cai", StageFolder(folder / "05-rl-cai").manifest()
    rows = list(read_rows(stage / "rollouts.jsonl"))
    assert len(rows) == 4 * 4 == manifest["counts"]["rollouts"]
    assert manifest["counts"]["unscored"] == sum(row["score"] is None for row in rows)
    assert manifest["inputs"].keys() == {"model", "constitution", "judge", "judge's settings", "prompts"}
    assert all((row["score"] is None) == ("unscored" in row) for row in rows)
    assert any(row["p_by_principle"] for row in rows)
    assert (stage / "gate.json").is_file() and (stage / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("on_failure", ["stop", "warn"])
def test_another_judge_of_the_evaluation_that_fails_the_gate_compares_nothing(
    on_failure: str, recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    """The judge of this recipe labels without a gate, so that this one is the first to be tried."""
    other = shutil.copytree(recipe_file.parent / "model", tmp_path / "other")
    gate = f"comparisons.gate={{num: 4, min_accuracy: 1, on_failure: {on_failure}}}"
    judged = load_recipe(recipe_file, [f"evaluation.judge.path={other}", gate])
    folder = copy_before(whole, "06-evaluation", tmp_path / "run")
    finish(judged, folder, stages={"06-evaluation"})
    stage, manifest = folder / "06-evaluation", StageFolder(folder / "06-evaluation").manifest()
    scores = {row["metric"]: row for row in json.loads((stage / "scores.json").read_text())}
    failed = [row for row in read_rows(stage / "failures.jsonl") if row["id"] == "battle-judge"]
    assert manifest["gate"] == json.loads((stage / "gate.json").read_text()) and not manifest["gate"]["passed"]
    assert [(row["where"], row["reason"]) for row in failed] == [("battles", "not-trusted")]
    assert "accuracy is" in failed[0]["text"]
    assert (scores["planted_accuracy"]["model"], scores["planted_accuracy"]["n"]) == ("battle-judge", 4)
    assert scores["planted_accuracy"]["way"].endswith("other, logprobs")
    compared = on_failure == "warn"
    assert ("elo_harmlessness" in scores) == compared == (stage / "battles.jsonl").exists()
    assert ("revisions judged" in manifest["counts"]) == compared
    assert "boilerplate" in scores and manifest["status"] == "finished"


def test_the_judge_that_labelled_is_not_tried_again(whole: Path) -> None:
    stage = whole / "06-evaluation"
    assert not (stage / "gate.json").exists() and "gate" not in StageFolder(stage).manifest()


# ---- iterations


@pytest.mark.parametrize("start", ["sl-cai", "policy"])
def test_a_later_iteration_renews_the_labels_from_the_policy_so_far(
    start: str, recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    flags = ["reinforcement.iterations=2", f"reinforcement.iterate_from={start}"]
    iterated = load_recipe(recipe_file, [*flags, "evaluation.models=[helpful, sl-cai, rl-cai]"])
    folder = copy_before(whole, "06-evaluation", tmp_path / "run")
    before = contents(folder)
    finish(iterated, folder)
    assert {name: data for name, data in contents(folder).items() if name in before} == before
    later = folder / "iteration-2"
    labels, preference, policy = (
        StageFolder(later / name).manifest() for name in ("03-comparisons", "04-preference-model", "05-rl-cai")
    )
    first = StageFolder(folder / "03-comparisons").manifest()
    assert labels["inputs"]["model"] != first["inputs"]["model"] and labels["config"]["seed"] != first["config"]["seed"]
    assert labels["inputs"]["prompts"] == first["inputs"]["prompts"]
    # All labels so far, and those of people once.
    num_labels = first["counts"]["comparisons"] + labels["counts"]["comparisons"]
    assert preference["counts"]["rows"] == num_labels + len(ACTS)
    once = StageFolder(folder / "05-rl-cai").manifest()
    assert (policy["inputs"]["model"] == once["inputs"]["model"]) == (start == "sl-cai")
    assert policy["inputs"]["preference_model"] != once["inputs"]["preference_model"]
    scores = json.loads((folder / "06-evaluation" / "scores.json").read_text())
    assert list(dict.fromkeys(row["model"] for row in scores if row["metric"] == "distinct_2")) == [
        *("helpful", "sl-cai", "rl-cai-1", "rl-cai")
    ]
    page = (folder / "report" / "index.html").read_text()
    assert "Preference model, iteration 2" in page and "iteration-2/03-comparisons/comparisons.jsonl" in page
    touched = (later / "05-rl-cai" / "manifest.json").stat().st_mtime_ns
    finish(iterated, folder)
    assert (later / "05-rl-cai" / "manifest.json").stat().st_mtime_ns == touched


def test_a_stage_of_one_iteration_is_started_from_nothing(recipe_file: Path, whole: Path, tmp_path: Path) -> None:
    folder = copy_before(whole, "06-evaluation", tmp_path / "run")
    flags = ["reinforcement.iterations=2", "evaluation=null"]
    asyncio.run(run_recipe(load_recipe(recipe_file, flags), folder, stages=["03-comparisons"]))
    labels, first = folder / "iteration-2" / "03-comparisons", folder / "03-comparisons"
    assert labels.is_dir() and not (folder / "iteration-2" / "04-preference-model").exists()
    before = contents(first)
    other = load_recipe(recipe_file, [*flags, "pairs.sampling.max_new_tokens=40"])
    with pytest.raises(StageChanged, match="03-comparisons"):
        asyncio.run(run_recipe(other, folder, stages=["03-comparisons"]))
    asyncio.run(run_recipe(other, folder, stages=["iteration-2/03-comparisons"], again=["iteration-2/03-comparisons"]))
    assert StageFolder(labels).manifest()["config"]["pairs"]["sampling"]["max_new_tokens"] == 40
    assert contents(first) == before


# ---- further models


def test_snapshots_and_other_models_meet_those_of_the_run(recipe_file: Path, whole: Path, tmp_path: Path) -> None:
    snapshot = next(iter(sorted((whole / "05-rl-cai" / "snapshots").iterdir())))
    others = f"{{early: {{path: {snapshot}}}, twin: {{path: {whole / '05-rl-cai' / 'model'}}}}}"
    recipe = load_recipe(recipe_file, ["evaluation.models=[rl-cai]", f"evaluation.others={others}"])
    folder = copy_before(whole, "06-evaluation", tmp_path / "run")
    finish(recipe, folder, stages={"06-evaluation", "report"})
    scores = {
        (row["model"], row["metric"]): row for row in json.loads((folder / "06-evaluation/scores.json").read_text())
    }
    assert {model for model, metric in scores if metric == "distinct_2"} == {"rl-cai", "early", "twin"}
    # The twin answers with the seeds of its name, so that only the sum of both sides is certain.
    there, back = scores["rl-cai", "win_harmlessness:twin"], scores["twin", "win_harmlessness:rl-cai"]
    assert there["value"] + back["value"] == pytest.approx(1) and there["n"] == back["n"] > 0
    assert "against early" in (folder / "report" / "index.html").read_text()


@pytest.mark.parametrize("name", ["rl-cai", "rl-cai-2", "battle-judge", "a b", ""])
def test_a_further_model_has_a_name_of_its_own(name: str, recipe_file: Path) -> None:
    with pytest.raises(InputError, match=r"a model is called|name of the run's own"):
        load_recipe(recipe_file, [f"evaluation.others={{'{name}': {{path: x}}}}"])
