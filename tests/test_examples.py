"""The flat scripts run, and ask, label, score and lose what the library does."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import runpy
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from solon import sandbox
from solon.artifact import StageFolder, read_rows
from solon.config import Recipe, Supervised
from solon.constitution import Constitution
from solon.dialogue import PromptRow, sft_row
from solon.engine import LocalEngineConfig, Request, load_engine
from solon.engine.scripted import ScriptedEngine
from solon.feedback import PairRow, compare
from solon.supervised import revise

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "sl_loop": {"NUM_RED_TEAM, NUM_HELPFUL, NUM_EVALUATED": (6, 4, 2), "STEPS, BATCH_SIZE": (2, 16)},
    "feedback_loop": {"NUM_RED_TEAM, NUM_HELPFUL": (6, 4), "STEPS, BATCH_SIZE": (2, 16)},
    "rl_loop": {"NUM_PROMPTS, NUM_EVALUATED": (4, 2), "STEPS, PROMPTS_PER_STEP": (2, 2)},
}
"""Constants at the head of each script that the test makes small; further names on the same line keep their values."""
CONSTITUTION = Constitution.load("harmless")


def small(name: str) -> str:
    """The script with other constants."""
    source = (EXAMPLES / f"{name}.py").read_text()
    for names, values in SMALL[name].items():
        found = re.search(rf"^{names}(?P<rest>.*?) = (?P<values>.*?)(?P<comment>  #.*)?$", source, flags=re.MULTILINE)
        assert found, f"{name}.py has no line that begins with {names}"
        kept = found["values"].split(", ")[len(values) :]
        line = f"{names}{found['rest']} = {', '.join([*map(str, values), *kept])}"
        source = source.replace(found[0], line)
    return source


def run(name: str, folder: Path) -> None:
    """Run the script in a process of its own, whose working folder is `folder`; its output goes to NAME.log."""
    import torch  # noqa: F401 - loaded once here, so that the processes forked from this one need not
    import transformers  # noqa: F401

    script = folder / f"{name}.py"
    script.write_text(small(name))
    child: Any = multiprocessing.get_context("fork").Process(target=_run_script, args=(script,))
    child.start()
    child.join()
    assert child.exitcode == 0, script.with_suffix(".log").read_text()


def _run_script(script: Path) -> None:
    log = script.with_suffix(".log").open("w", buffering=1)
    sys.stdout = sys.stderr = log
    os.chdir(script.parent)
    runpy.run_path(str(script), run_name="__main__")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the three scripts ran, one after the other."""
    folder = tmp_path_factory.mktemp("examples")
    for name in SMALL:
        run(name, folder)
    return folder / "runs" / "examples"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return list(read_rows(path))


def recipe(**sections: object) -> Recipe:
    given = {"revisions": {"rounds": 1}, "pairs": {}, "comparisons": {"gate": None}, **sections}
    return Recipe.model_validate({"name": "same", "model": {"path": "unused"}, "prompts": {"path": "unused"}, **given})


def begun(folder: Path) -> StageFolder:
    stage = StageFolder(folder)
    assert stage.begin(config={}, inputs={})
    return stage


def test_the_scripts_say_what_they_do(made: Path) -> None:
    said = {name: (made.parents[1] / f"{name}.log").read_text() for name in SMALL}
    assert re.search(r"Critique: .*\nRevision: ", said["sl_loop"])
    assert "SL-CAI" in said["sl_loop"].splitlines()[-1]
    assert re.search(r"^[1-6] labels from the judge", said["feedback_loop"], flags=re.MULTILINE)
    assert "RL-CAI" in said["rl_loop"].splitlines()[-1]
    for text in said.values():
        assert "step   2 of 2" in text
        assert "Warning" not in text


def test_a_script_without_the_one_before_says_which_to_run(tmp_path: Path) -> None:
    for name in ("feedback_loop", "rl_loop"):
        with pytest.raises(AssertionError, match=r"is not there: run examples/sl_loop\.py"):
            run(name, tmp_path)


async def test_the_same_dialogues_are_asked_and_the_same_principles_drawn(made: Path, tmp_path: Path) -> None:
    """The library, given the script's texts as answers, makes the script's rows."""
    by_id = {row["id"]: row for row in rows_of(made / "sl-cai" / "revisions.jsonl")}
    texts = {
        id: [row["response"], *(done[step] for done in row["rounds"] for step in ("critique", "revision"))]
        for id, row in by_id.items()
    }
    told: dict[str | None, list[Request]] = defaultdict(list)

    def answer(request: Request) -> str:
        told[request.session].append(request)
        assert request.session is not None
        return texts[request.session][len(told[request.session]) - 1]

    prompts = [row for row in sandbox.prompts("method", "red-team", 6, seed=0) if all(texts[row["id"]])]
    assert prompts
    await revise(
        recipe(),
        begun(tmp_path / "01-revisions"),
        constitution=CONSTITUTION,
        engine=ScriptedEngine(answer),
        prompts=[PromptRow(**row) for row in prompts],
    )
    for row in rows_of(tmp_path / "01-revisions" / "revisions.jsonl"):
        script = by_id[row["id"]]
        assert row["response"] == script["response"]
        assert row["rounds"] == [
            {name: done[name] for name in ("principle", "critique", "revision")} for done in script["rounds"]
        ]
        asked = [list(request.prompt) for request in told[row["id"]]]
        assert asked[2::2] == [done["messages"] for done in script["rounds"]]


def test_fine_tuning_begins_with_the_loss_of_trl(made: Path, tmp_path: Path) -> None:
    from solon.training import train_sft

    about = json.loads((made / "sl-cai" / "sft.json").read_text())
    rows = [sft_row(prompt, completion, origin="script") for prompt, completion in about["examples"]]
    assert 4 <= len(rows) <= 16, "all rows are to be in one batch"
    stage = begun(tmp_path / "02-sl-cai")
    settings = Supervised(trainer={"max_steps": 1, "per_device_train_batch_size": 16, "logging_steps": 1})
    train_sft(rows, model="sandbox:base", stage=stage, config=settings)
    loss = next(row["loss"] for row in rows_of(stage.path / "metrics.jsonl") if "loss" in row)
    assert about["losses"][0] == pytest.approx(loss, abs=1e-4)
    assert about["losses"][1] < about["losses"][0]


async def test_labels_are_those_of_the_library(made: Path, tmp_path: Path) -> None:
    script = [row for row in rows_of(made / "preference-model" / "comparisons.jsonl") if row["principle"]]
    pairs = [
        PairRow(
            id=row["id"],
            prompt_id=row["id"].partition("/")[0],
            prompt=row["prompt"],
            kind="red-team",
            a=row["a"],
            b=row["b"],
            truncated=[],
        )
        for row in script
    ]
    engine = await load_engine(LocalEngineConfig(path="sandbox:base"))
    stage = begun(tmp_path / "03-comparisons")
    await compare(recipe(), stage, constitution=CONSTITUTION, engine=engine, pairs=pairs)
    await engine.aclose()
    labels = {row["id"]: row for row in rows_of(stage.path / "comparisons.jsonl")}
    assert labels.keys() == {row["id"] for row in script}
    for row in script:
        label = labels[row["id"]]
        p_a = label["probability"] if label["a_is_chosen"] else 1 - label["probability"]
        assert row["p"] == pytest.approx(p_a, abs=1e-4)
        assert row["both"][0] + row["both"][1] - 1 == pytest.approx(label["order_gap"], abs=1e-4)
        assert [row["principle"]] == label["principles"]


def test_the_preference_model_loses_and_scores_as_the_library_s(made: Path) -> None:
    import torch

    from solon.preference import PreferenceModel
    from solon.preference.model import Scale
    from solon.training import load_sequence_classifier, load_tokenizer
    from solon.training.trainers import soft_label_loss

    rows = rows_of(made / "preference-model" / "comparisons.jsonl")
    about = json.loads((made / "preference-model" / "training.json").read_text())
    replies = [(row["prompt"], row[side]) for side in "ab" for row in rows]
    assert len(rows) <= 16, "all comparisons are to be in one batch"

    tokenizer = load_tokenizer(made / "sl-cai")
    start = load_sequence_classifier(made / "sl-cai", tokenizer=tokenizer, seed=0)
    a_B, b_B = torch.tensor(PreferenceModel(start, tokenizer, Scale(0.0, 1.0)).raw_score(replies)).chunk(2)
    p_B = torch.tensor([row["p"] for row in rows])
    loss = soft_label_loss(a_B - b_B, p_B, torch.ones(len(rows)))
    assert about["losses"][0] == pytest.approx(loss.item(), abs=1e-4)

    trained = PreferenceModel.load(made / "preference-model")
    assert trained.raw_score(replies) == pytest.approx(about["raw_scores"], abs=1e-4)
    scores = trained.score(replies)
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)


def test_rollouts_earn_what_the_library_s_would(made: Path) -> None:
    import torch

    from solon.engine.scoring import Scorer
    from solon.engine.trie import Continuation
    from solon.preference import PreferenceModel
    from solon.training import encode_prompt, load_causal_lm, load_tokenizer

    rows = rows_of(made / "rl-cai" / "rollouts.jsonl")
    assert [row["step"] for row in rows] == [1] * 8 + [2] * 8
    scores = PreferenceModel.load(made / "preference-model").score([(row["prompt"], row["completion"]) for row in rows])
    assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-3)

    tokenizer = load_tokenizer(made / "sl-cai")
    assert [row["cut"] for row in rows] == [row["tokens"][-1] != tokenizer.eos_token_id for row in rows]
    start = load_causal_lm(made / "sl-cai", tokenizer=tokenizer).eval()
    before = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
    whole = [Continuation((*ids, *row["tokens"]), len(ids)) for ids, row in zip(before, rows, strict=True)]
    with torch.inference_mode():
        logprobs = Scorer(start, 0).score(whole)
    for row, logprob in zip(rows, logprobs, strict=True):
        # log pi_0 by the library's own arithmetic, without the padding of the script's batch
        assert row["logprob"] - row["kl"] == pytest.approx(logprob, abs=1e-2)
        assert row["reward"] == pytest.approx(row["score"] - 2.0 * row["cut"] - 0.05 * row["kl"], abs=1e-4)
    assert all(row["kl"] == pytest.approx(0, abs=1e-3) for row in rows[:8])
    assert any(abs(row["kl"]) > 1e-3 for row in rows[8:]), "the first step changed nothing"
    for group in (rows[i : i + 4] for i in range(0, 16, 4)):
        assert len({json.dumps(row["prompt"]) for row in group}) == 1
        total = sum(row["reward"] for row in group)
        for row in group:
            assert row["advantage"] == pytest.approx(row["reward"] - (total - row["reward"]) / 3, abs=1e-4)
