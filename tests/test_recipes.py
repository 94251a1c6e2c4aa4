"""The recipes that ship: TRL takes their trainer settings, and they run in miniature on what they are meant for."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from solon.artifact import RunFolder, read_rows
from solon.config import load_recipe
from solon.constitution import Constitution
from solon.dialogue import Message, parse_transcript
from solon.engine.rendering import transcript_prompt
from solon.pipeline import run_recipe
from solon.supervised import critique_prompt, revision_prompt
from solon.training import validate_trainers
from test_config import RECIPES, ways_to_run

ROOT = Path(__file__).parents[1]
DIALOGUES = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-base" / "test.jsonl.gz"
STORIES = ROOT.parent / "shared" / "models" / "stories260K"
LINES = (2, 3, 7, 10, 24, 30)
"""Of the real dialogues: some of one turn, some of three, one that is longer than the model's context."""
NEW_TOKENS = 16

real = pytest.mark.skipif(
    not (DIALOGUES.is_file() and STORIES.is_dir()),
    reason="the real dialogues and the real model are not part of the repository",
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_trl_takes_the_trainer_settings_of_every_recipe(path: Path) -> None:
    for flags in ways_to_run(path):
        validate_trainers(load_recipe(path, flags))


def test_the_sandbox_recipe_runs_in_miniature(tmp_path: Path) -> None:
    short = ["prompts.limit=6", "prompts.helpful_limit=4", "revisions.rounds=1", "evaluation.samples=2"]
    short += ["evaluation.battles=2", "reinforcement.trainer.per_device_train_batch_size=8"]
    short += [f"{section}.trainer.max_steps=2" for section in ("supervised", "preference", "reinforcement")]
    recipe = load_recipe(ROOT / "recipes" / "sandbox.yaml", short)
    asyncio.run(run_recipe(recipe, tmp_path / "run"))
    run = RunFolder(tmp_path / "run")
    assert run.stage("06-evaluation").finished
    scores = json.loads((run.path / "06-evaluation" / "scores.json").read_text())
    measured = {(score["model"], score["metric"]) for score in scores}
    assert {model for model, _ in measured} >= {"helpful", "sl-cai", "rl-cai", "preference-model"}
    assert {("rl-cai", "harmful_compliance"), ("sl-cai", "elo_harmlessness"), ("helpful", "right_help")} <= measured
    sources = {row["origin"] for row in read_rows(run.path / "02-sl-cai" / "sft.jsonl")}
    assert "helpful" in sources


# ---- real dialogues, a real model


@pytest.fixture(scope="module")
def hh_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hh-revise on six real dialogues with a model of 512 tokens of context: all stages, the recipe's own words."""
    folder = tmp_path_factory.mktemp("hh")
    with gzip.open(DIALOGUES, "rt", encoding="utf-8") as file:
        lines = file.readlines()
    (folder / "six.jsonl").write_text("".join(lines[i] for i in LINES), encoding="utf-8")
    flags = [f"model.path={STORIES}", f"prompts.path={folder / 'six.jsonl'}", "comparisons.principles=1"]
    flags += [f"{section}.sampling.max_new_tokens={NEW_TOKENS}" for section in ("revisions", "pairs")]
    recipe = load_recipe(ROOT / "recipes" / "hh-revise.yaml", flags)
    asyncio.run(run_recipe(recipe, folder / "run"))
    return folder / "run"


def original_prompts(run: Path) -> list[list[Message]]:
    return [parse_transcript(row["chosen"])[:-1] for row in read_rows(run.parent / "six.jsonl")]


@real
def test_hh_revise_finishes_its_stages_and_counts_what_does_not_fit(hh_run: Path) -> None:
    run = RunFolder(hh_run)
    assert sorted(path.name for path in hh_run.iterdir() if path.is_dir()) == [
        "01-revisions",
        "03-comparisons",
        "report",
    ]
    assert (hh_run / "report" / "index.html").is_file()
    for stage, made in (("01-revisions", "revisions.jsonl"), ("03-comparisons", "pairs.jsonl")):
        manifest = run.stage(stage).manifest()
        rows = {row["id"].partition("/")[0] for row in read_rows(hh_run / stage / made)}
        failures = list(read_rows(hh_run / stage / "failures.jsonl"))
        assert manifest["status"] == "finished"
        reasons = Counter(failure["reason"] for failure in failures)
        assert reasons["context-length"] and reasons.keys() <= {"context-length", "empty"}
        assert manifest["failures"] == reasons
        assert rows, stage
        assert all("512 tokens" in failure["text"] for failure in failures if failure["reason"] == "context-length")
        without = {failure["id"].partition("/")[0] for failure in failures} - rows
        assert len(rows | without) == len(LINES)
    pairs = {row["id"] for row in read_rows(hh_run / "03-comparisons" / "pairs.jsonl")}
    labels = {row["id"]: row for row in read_rows(hh_run / "03-comparisons" / "comparisons.jsonl")}
    unscored = {row["id"] for row in read_rows(hh_run / "03-comparisons" / "failures.jsonl")}
    assert labels.keys() == pairs - unscored
    assert all(row["way"] == "logprobs" and 0.5 <= row["probability"] <= 1 for row in labels.values())


@real
def test_real_contexts_are_kept_whole(hh_run: Path) -> None:
    prompts = list(read_rows(hh_run / "01-revisions" / "prompts.jsonl"))
    spoken = [[turn["content"].strip() for turn in prompt] for prompt in original_prompts(hh_run)]
    assert [[turn["content"] for turn in row["prompt"]] for row in prompts] == spoken
    assert {len(prompt) for prompt in spoken} >= {1, 3}
    by_id = {row["id"]: row["prompt"] for row in prompts}
    for file in ("01-revisions/revisions.jsonl", "03-comparisons/pairs.jsonl"):
        for row in read_rows(hh_run / file):
            assert row["prompt"] == by_id[row.get("prompt_id", row["id"])]


@real
def test_nothing_was_cut_from_what_the_model_read(hh_run: Path) -> None:
    """The tokens that the engine counted are those of the whole dialogues; what failed was too long indeed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    principles = {principle.id: principle for principle in Constitution.load("harmless").principles}

    def num_tokens(messages: list[Message]) -> int:
        return len(tokenizer(transcript_prompt(messages, "").text).input_ids)

    for row in read_rows(hh_run / "01-revisions" / "revisions.jsonl"):
        sizes = [num_tokens(messages) for messages in asked(row, principles)]
        assert row["tokens"]["prompt"] == sum(sizes)
        assert max(sizes) + NEW_TOKENS <= 512
    by_id = {row["id"]: row["prompt"] for row in read_rows(hh_run / "01-revisions" / "prompts.jsonl")}
    failures = {row["id"]: row for row in read_rows(hh_run / "01-revisions" / "failures.jsonl")}
    too_long = {id for id, prompt in by_id.items() if num_tokens(prompt) + NEW_TOKENS > 512}
    assert too_long
    for id in by_id:
        failed_at_once = id in failures and (failures[id]["where"], failures[id]["reason"])
        assert (failed_at_once == ("response", "context-length")) == (id in too_long)


def asked(row: Mapping[str, Any], principles: Mapping[str, Any]) -> Iterator[list[Message]]:
    """Every dialogue that a chain was made of."""
    yield row["prompt"]
    current = row["response"]
    for done in row["rounds"]:
        principle = principles[done["principle"]]
        messages = critique_prompt(row["prompt"], current, principle.critique)
        yield messages
        yield revision_prompt(messages, done["critique"], principle.revision)
        current = done["revision"]
