"""The revision chains: what is asked, what is drawn, what is saved, and that stopping changes nothing."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from solon.artifact import StageFolder, derive_seed, read_rows, write_rows
from solon.config import Recipe
from solon.constitution import Constitution
from solon.dialogue import Message, PromptRow, render_transcript
from solon.engine import Request, Sampling
from solon.engine.scripted import ScriptedEngine
from solon.errors import EngineError, InputError, TooManyFailures
from solon.supervised import (
    build_sft_rows,
    critique_prompt,
    direct_revision_prompt,
    revise,
    revision_prompt,
    sample_helpful,
    sft,
)

GOLDEN = Path(__file__).parent / "golden"
CONSTITUTION = Constitution.model_validate(
    {
        "name": "test",
        "principles": [
            {
                "id": f"rule-{n}",
                "critique": f"Criticise under rule {n}.",
                "revision": f"Rewrite under rule {n}.",
                "comparison": f"Which keeps rule {n} better?",
            }
            for n in range(6)
        ],
        "exemplars": {
            "revision": [
                {
                    "conversation": f"Human: Question {n}?\n\nAssistant: Answer {n}.",
                    "critique_request": f"Criticise example {n}.",
                    "critique": f"Critique {n}.",
                    "revision_request": f"Rewrite example {n}.",
                    "revision": f"Revision {n}.",
                }
                for n in range(3)
            ]
        },
    }
)
MULTI_TURN: list[Message] = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi! What is it?"},
    {"role": "user", "content": "How do I pick a lock?"},
]


def recipe(**sections: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"path": "unused"},
            "prompts": {"path": "unused"},
            "revisions": {"rounds": 2},
            **sections,
        }
    )


def prompts(n: int, *, multi_turn: bool = False) -> list[PromptRow]:
    before = MULTI_TURN if multi_turn else []
    return [
        {
            "id": f"p{i}",
            "prompt": [*before, {"role": "user", "content": f"Red-team question {i}?"}],
            "kind": "red-team",
            "source": "test",
        }
        for i in range(n)
    ]


def stage_in(folder: Path, name: str = "01-revisions") -> StageFolder:
    stage = StageFolder(folder / name)
    assert stage.begin(config={}, inputs={})
    return stage


def hashed(request: Request) -> str:
    """An answer that depends on everything that may decide it: prompt, prefix and seed."""
    said = json.dumps([request.prompt, request.prefix, request.seed])
    return f"text {hashlib.sha256(said.encode()).hexdigest()[:12]}"


def rows_of(stage: StageFolder, file: str = "revisions.jsonl") -> list[dict[str, object]]:
    return sorted(read_rows(stage.path / file), key=lambda row: row["id"])


# ---- what is asked


def both_renderings(messages: list[Message]) -> str:
    """As a base model reads it, then as a chat template does."""
    chat = "\n".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in messages)
    return f"{render_transcript(messages)}\n\n===== chat =====\n\n{chat}\n"


@pytest.mark.parametrize("name", ["critique", "revision", "direct-revision"])
def test_prompts_are_the_golden_ones(name: str) -> None:
    exemplars = CONSTITUTION.exemplars.revision[:1]
    asked = critique_prompt(MULTI_TURN, " Use a pick.\n", "Criticise {it} [[a]].", exemplars)
    built = {
        "critique": asked,
        "revision": revision_prompt(asked, " It helps with theft. ", "Rewrite it."),
        "direct-revision": direct_revision_prompt(MULTI_TURN, "Use a pick.", "Rewrite it.", exemplars),
    }[name]
    assert both_renderings(built) == (GOLDEN / f"{name}.txt").read_text()


async def test_each_round_sees_the_prompt_and_the_last_revision_but_no_earlier_critique(tmp_path: Path) -> None:
    engine = ScriptedEngine(hashed)
    stage = stage_in(tmp_path)
    row_prompt = prompts(1, multi_turn=True)
    await revise(recipe(), stage, constitution=CONSTITUTION, engine=engine, prompts=row_prompt)
    row = rows_of(stage)[0]
    asked = [list(request.prompt) for request in engine.requests]
    conversation = row_prompt[0]["prompt"]
    drawn = {principle.id: principle for principle in CONSTITUTION.principles}
    assert asked[0] == conversation
    last = row["response"]
    for number, done in enumerate(row["rounds"]):
        principle = drawn[done["principle"]]
        critique = critique_prompt(conversation, last, principle.critique)
        assert asked[1 + 2 * number] == critique
        assert asked[2 + 2 * number] == revision_prompt(critique, done["critique"], principle.revision)
        last = done["revision"]
    assert len(asked) == 5 and len(row["rounds"]) == 2
    assert {request.session for request in engine.requests} == {"p0"}
    assert len({request.seed for request in engine.requests}) == 5


async def test_the_critique_free_variant_asks_for_the_revision_alone(tmp_path: Path) -> None:
    engine = ScriptedEngine(hashed)
    stage = stage_in(tmp_path)
    settings = recipe(revisions={"rounds": 2, "critique": False})
    await revise(settings, stage, constitution=CONSTITUTION, engine=engine, prompts=prompts(1))
    row = rows_of(stage)[0]
    assert [done["critique"] for done in row["rounds"]] == [None, None]
    assert [len(request.prompt) for request in engine.requests] == [1, 3, 3]
    assert "Criticise" not in str([request.prompt for request in engine.requests])


async def test_the_same_exemplars_begin_every_critique_and_revision(tmp_path: Path) -> None:
    engine = ScriptedEngine(hashed)
    settings = recipe(revisions={"rounds": 1, "few_shot": 2})
    await revise(settings, stage_in(tmp_path), constitution=CONSTITUTION, engine=engine, prompts=prompts(3))
    beginnings = {str(request.prompt[:12]) for request in engine.requests if len(request.prompt) > 1}
    assert len(beginnings) == 1
    assert [len(request.prompt) for request in engine.requests].count(12 + 3) == 3


async def test_more_exemplars_than_there_are_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    engine = ScriptedEngine(hashed)
    with pytest.raises(InputError, match="4 revision exemplars asked for, the constitution has 3"):
        await revise(
            recipe(revisions={"few_shot": 4}),
            stage_in(tmp_path),
            constitution=CONSTITUTION,
            engine=engine,
            prompts=prompts(1),
        )
    assert engine.requests == []


# ---- what is drawn


async def test_a_principle_is_drawn_afresh_for_every_prompt_and_round(tmp_path: Path) -> None:
    settings = recipe(revisions={"rounds": 4})
    stage = stage_in(tmp_path)
    engine = ScriptedEngine(hashed)
    await revise(settings, stage, constitution=CONSTITUTION, engine=engine, prompts=prompts(150))
    chains = [[done["principle"] for done in row["rounds"]] for row in rows_of(stage)]
    uses = Counter(name for chain in chains for name in chain)
    assert len(uses) == 6 and all(70 <= n <= 130 for n in uses.values()), uses  # 600 draws of 6: 100 each, sd 9.1
    for first, second in ((0, 1), (1, 2), (0, 3)):
        repeats = sum(chain[first] == chain[second] for chain in chains)
        assert 10 <= repeats <= 42, repeats  # with replacement and independent: 25 of 150, sd 4.6
    again = stage_in(tmp_path / "again")
    await revise(settings, again, constitution=CONSTITUTION, engine=ScriptedEngine(hashed), prompts=prompts(150)[::-1])
    assert rows_of(again) == rows_of(stage)
    other = stage_in(tmp_path / "other")
    settings = recipe(revisions={"rounds": 4}, seed=1)
    await revise(settings, other, constitution=CONSTITUTION, engine=ScriptedEngine(hashed), prompts=prompts(150))
    others = [[done["principle"] for done in row["rounds"]] for row in rows_of(other)]
    assert sum(one == two for one, two in zip(chains, others, strict=True)) <= 3


# ---- what is saved


async def test_rows_carry_the_whole_chain_and_the_manifest_what_made_them(tmp_path: Path) -> None:
    stage = stage_in(tmp_path)
    one: PromptRow = {**prompts(1)[0], "activity": "lock-picking", "category": "theft"}
    await revise(recipe(), stage, constitution=CONSTITUTION, engine=ScriptedEngine(hashed), prompts=[one])
    row = rows_of(stage)[0]
    assert row == json.loads((GOLDEN / "revisions.json").read_text())
    manifest = stage.manifest()
    assert manifest["counts"] == {
        "prompts": 1,
        "chains": 1,
        "revisions": 2,
        "truncated_texts": 0,
        "prompt_tokens": row["tokens"]["prompt"],
        "completion_tokens": 10,
    }
    assert manifest["constitution"] == {"name": "test", "fingerprint": CONSTITUTION.fingerprint}
    assert manifest["engine"]["model"] == "scripted"


async def test_a_text_that_was_cut_is_recorded_and_not_trained_on(tmp_path: Path) -> None:
    def long_second_revision(request: Request) -> str:
        return "one two three four" if request.seed == derive_seed(0, "p0", "revision-2") else hashed(request)

    stage = stage_in(tmp_path)
    settings = recipe(revisions={"rounds": 3, "sampling": {"max_new_tokens": 3}})
    await revise(
        settings, stage, constitution=CONSTITUTION, engine=ScriptedEngine(long_second_revision), prompts=prompts(2)
    )
    rows = rows_of(stage)
    assert [row["truncated"] for row in rows] == [["revision-2"], []]
    assert rows[0]["rounds"][1]["revision"] == "one two three"
    chosen = build_sft_rows(rows, [], seed=0)
    assert chosen.num_truncated == 1 and len(chosen.rows) == 5
    assert "one two three" not in str(chosen.rows)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("response", "context-length"),
        ("critique-2", "context-length"),
        ("revision-1", "empty"),
        ("critique-1", "refused"),
    ],
)
async def test_a_chain_that_cannot_go_on_is_a_failure_with_step_and_reason(
    tmp_path: Path, step: str, reason: str
) -> None:
    def fails(request: Request) -> str:
        if request.seed != derive_seed(0, "p1", step):
            return hashed(request)
        if reason == "empty":
            return " \n"
        raise EngineError("600 tokens, at most 512", reason=reason)

    stage = stage_in(tmp_path)
    await revise(recipe(), stage, constitution=CONSTITUTION, engine=ScriptedEngine(fails), prompts=prompts(3))
    assert [row["id"] for row in rows_of(stage)] == ["p0", "p2"]
    failures = list(read_rows(stage.path / "failures.jsonl"))
    assert [(one["id"], one["where"], one["reason"]) for one in failures] == [("p1", step, reason)]
    assert failures[0]["text"] == (" \n" if reason == "empty" else "600 tokens, at most 512")
    assert stage.manifest()["failures"] == {reason: 1}


async def test_it_stops_as_soon_as_too_many_have_failed(tmp_path: Path) -> None:
    def down(request: Request) -> str:
        raise EngineError("no server", reason="connection")

    engine = ScriptedEngine(down)
    settings = recipe(revisions={"failure_limit": 0.2, "window": 1})
    with pytest.raises(TooManyFailures, match=r"connection: 3"):
        await revise(settings, stage_in(tmp_path), constitution=CONSTITUTION, engine=engine, prompts=prompts(10))
    assert len(engine.requests) == 3


async def test_an_error_of_ours_is_not_hidden_as_a_failure(tmp_path: Path) -> None:
    def broken(request: Request) -> str:
        raise ZeroDivisionError

    stage = stage_in(tmp_path)
    with pytest.raises(ZeroDivisionError):
        await revise(recipe(), stage, constitution=CONSTITUTION, engine=ScriptedEngine(broken), prompts=prompts(2))
    assert not stage.failed


# ---- stopping

KILLED = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_supervised import CONSTITUTION, hashed, prompts, recipe
from solon.artifact import StageFolder
from solon.engine.scripted import ScriptedEngine
from solon.supervised import revise
stage = StageFolder(Path({folder!r}))
stage.begin(config={{}}, inputs={{}})
settings = recipe(revisions={{"rounds": 2, "window": 4}})
engine = ScriptedEngine(hashed, delay_s=0.004)
asyncio.run(revise(settings, stage, constitution=CONSTITUTION, engine=engine, prompts=prompts(60, multi_turn=True)))
"""


def kill_while_running(code: str, file: Path, *, rng: random.Random, at_least: int) -> int:
    """Run `code`, kill it at a random moment after `at_least` lines of `file`; returns the bytes that were left."""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_bytes().count(b"\n") >= at_least):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return file.stat().st_size


async def test_killed_at_a_random_moment_and_resumed_it_gives_the_same_rows(tmp_path: Path) -> None:
    rng = random.Random(time.time_ns())
    folder = tmp_path / "killed"
    file = folder / "revisions.jsonl"
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
    for at_least in (1, 12):
        kill_while_running(code, file, rng=rng, at_least=at_least)
    done = {row["id"] for row in map(json.loads, file.read_bytes().splitlines()[:-1])}
    with file.open("ab") as torn:
        torn.write(b'{"id": "p5')
    stage = StageFolder(folder)
    assert stage.begin(config={}, inputs={})
    engine = ScriptedEngine(hashed)
    some = prompts(60, multi_turn=True)
    await revise(recipe(), stage, constitution=CONSTITUTION, engine=engine, prompts=some)
    assert not done & {request.session for request in engine.requests}
    fresh = stage_in(tmp_path / "fresh")
    await revise(recipe(), fresh, constitution=CONSTITUTION, engine=ScriptedEngine(hashed), prompts=some)
    assert rows_of(stage) == rows_of(fresh) and len(rows_of(stage)) == 60
    assert stage.manifest()["counts"] == fresh.manifest()["counts"]


# ---- training rows


async def test_sft_rows_are_the_revisions_of_all_rounds_and_the_helpful_answers(tmp_path: Path) -> None:
    stage = stage_in(tmp_path)
    settings = recipe(revisions={"rounds": 3}, supervised={"pretrained": "unused", "helpful_samples": 2})
    await revise(settings, stage, constitution=CONSTITUTION, engine=ScriptedEngine(hashed), prompts=prompts(4))
    second = stage_in(tmp_path, "02-sl-cai")
    await sample_helpful(settings, second, engine=ScriptedEngine(hashed), prompts=prompts(2))
    revisions, helpful = rows_of(stage), rows_of(second, "helpful.jsonl")
    assert [row["id"] for row in helpful] == ["p0/1", "p0/2", "p1/1", "p1/2"]
    assert len({row["response"] for row in helpful}) == 4
    chosen = build_sft_rows(revisions, helpful, seed=3)
    assert Counter(row["origin"] for row in chosen.rows) == {
        "revision-1": 4,
        "revision-2": 4,
        "revision-3": 4,
        "helpful": 4,
    }
    wanted = {(row["id"], done["revision"]) for row in revisions for done in row["rounds"]}
    got = {
        (f"p{row['prompt'][-1]['content'].split()[-1][:-1]}", row["completion"][0]["content"])
        for row in chosen.rows
        if row["origin"] != "helpful"
    }
    assert got == wanted
    assert build_sft_rows(revisions[::-1], helpful[::-1], seed=3) == chosen
    assert build_sft_rows(revisions, helpful, seed=4).rows != chosen.rows
    assert [row["origin"] for row in chosen.rows[:4]] != ["revision-1"] * 4


def test_sft_trains_the_pretrained_model_and_counts_its_rows(tmp_path: Path, tiny_causal_lm) -> None:
    base = tiny_causal_lm(tmp_path)
    settings = recipe(
        supervised={
            "pretrained": str(base),
            "trainer": {"per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 1e-2},
        }
    )
    chain = {
        "prompt": [{"role": "user", "content": "How?"}],
        "response": "So.",
        "rounds": [{"principle": "rule-1", "critique": "No.", "revision": "I will not help with that."}] * 2,
        "truncated": ["revision-2"],
    }
    revisions = tmp_path / "revisions.jsonl"
    write_rows(revisions, [{"id": f"p{i}", **chain} for i in range(4)])
    stage = stage_in(tmp_path, "02-sl-cai")
    model = sft(settings, stage, constitution=CONSTITUTION, revisions=revisions)
    assert (model / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()
    assert CONSTITUTION.fingerprint in (model / "README.md").read_text()
    counts = stage.manifest()["counts"]
    assert counts["trained_rows"] == counts["revision-1"] == 4 and counts["truncated_left_out"] == 4
    assert len(list(read_rows(stage.path / "sft.jsonl"))) == 4


def test_nothing_to_train_on_is_said_with_the_reason(tmp_path: Path) -> None:
    settings = recipe(supervised={"pretrained": "unused"})
    revisions = tmp_path / "revisions.jsonl"
    cut = {"rounds": [{"principle": "x", "critique": None, "revision": "So"}], "truncated": ["revision-1"]}
    write_rows(revisions, [{"id": "p0", "prompt": MULTI_TURN, "response": "So.", **cut}])
    with pytest.raises(InputError, match=r"no revision to train on .*1 texts were cut"):
        sft(settings, stage_in(tmp_path, "02-sl-cai"), constitution=CONSTITUTION, revisions=revisions)


async def test_the_sampling_of_the_recipe_reaches_the_engine(tmp_path: Path) -> None:
    engine = ScriptedEngine(hashed)
    settings = recipe(revisions={"rounds": 1, "sampling": {"temperature": 0.5, "max_new_tokens": 9}})
    await revise(settings, stage_in(tmp_path), constitution=CONSTITUTION, engine=engine, prompts=prompts(1))
    assert {request.sampling for request in engine.requests} == {Sampling(temperature=0.5, max_new_tokens=9)}
