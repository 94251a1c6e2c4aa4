from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, TrainerState

from solon.artifact import StageFolder, read_rows
from solon.config import Lora, Recipe, Supervised
from solon.dialogue import Message, render_transcript
from solon.errors import InputError
from solon.training import (
    RunContext,
    encode_dialogue,
    encode_prompt,
    last_checkpoint,
    load_causal_lm,
    load_sequence_classifier,
    load_tokenizer,
    quiet,
    resolve_model,
    sft_examples,
    train_sft,
    trainer_config,
    validate_trainers,
)
from solon.training.trainers import TokenCount

Train = Callable[[StageFolder], Path]

PROMPT: list[Message] = [{"role": "user", "content": "How do I bake bread?"}]
REPLY: Message = {"role": "assistant", "content": "Mix flour, water, salt and yeast."}
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Question {i}?"}],
        "completion": [{"role": "assistant", "content": "Mix flour." if i % 2 else "Let it rise."}],
        "origin": "test",
    }
    for i in range(24)
]
TRAINER = {
    "per_device_train_batch_size": 4,
    "max_steps": 12,
    "learning_rate": 3e-3,
    "save_steps": 2,
    "logging_steps": 1,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def kill_at_random_moments(train: Train, folder: Path, *, whole_s: float, seed: int) -> int:
    """Start `train` in a child process and kill it (SIGKILL) at a random moment, twice. Returns the kills."""
    moments, kills = random.Random(seed), 0
    for _ in range(2):
        child = multiprocessing.get_context("fork").Process(target=train, args=(StageFolder(folder),))
        child.start()
        child.join(moments.uniform(0.15, 0.8) * whole_s)
        kills += child.is_alive()
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL), "it crashed by itself"
        child.close()
    return kills


def check_killed_run_equals_whole_run(train: Train, tmp_path: Path, *, seed: int) -> tuple[StageFolder, StageFolder]:
    whole = StageFolder(tmp_path / "whole")
    began_s = time.monotonic()
    model = train(whole)
    whole_s = time.monotonic() - began_s
    kills = kill_at_random_moments(train, tmp_path / "killed", whole_s=whole_s, seed=seed)
    killed = StageFolder(tmp_path / "killed")
    resumed = train(killed)
    assert kills > 0, "the child was faster than the moments drawn"
    assert_same_weights(model, resumed)
    logged = [[row["step"] for row in read_rows(stage.path / "metrics.jsonl")] for stage in (whole, killed)]
    assert logged[0] == sorted(logged[0])
    assert sorted(set(logged[0])) == sorted(set(logged[1]))
    counted = [
        {row["step"]: row["num_tokens"] for row in read_rows(stage.path / "metrics.jsonl") if "num_tokens" in row}
        for stage in (whole, killed)
    ]
    assert counted[0] == counted[1]
    assert not (killed.path / "checkpoints").exists()
    return whole, killed


@pytest.mark.parametrize("before", [None, "0"])
def test_quiet_leaves_other_progress_bars_as_they_were(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if before is None:
        monkeypatch.delenv("TQDM_DISABLE", raising=False)
    else:
        monkeypatch.setenv("TQDM_DISABLE", before)
    with quiet():
        assert os.environ["TQDM_DISABLE"] == "1"
    assert os.environ.get("TQDM_DISABLE") == before


# ---- models and tokenizers


def test_no_model_and_pickled_weights_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json is missing"):
        resolve_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="safetensors"):
        resolve_model(tmp_path)


@pytest.fixture
def bare_model(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A model whose tokenizer has neither a padding token nor a chat template, and embeddings for its tokens only."""
    folder = tmp_path / "bare"
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_lm(tmp_path))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size, **ends)).save_pretrained(folder)
    return folder


def test_a_padding_token_of_its_own_is_added_with_room_in_the_embeddings(bare_model: Path) -> None:
    tokenizer = load_tokenizer(bare_model)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    for load in (load_causal_lm, load_sequence_classifier):
        model = load(bare_model, tokenizer=tokenizer)
        assert model.get_input_embeddings().num_embeddings == len(tokenizer)
        assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_classifier_is_not_loaded_with_a_padding_token_that_ends_replies(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = tiny_causal_lm(tmp_path)
    plain = AutoTokenizer.from_pretrained(folder)
    load_sequence_classifier(folder, tokenizer=plain)
    plain.pad_token = plain.eos_token
    with pytest.raises(InputError, match=r"padding token '<eos>' is the end.*load_tokenizer"):
        load_sequence_classifier(folder, tokenizer=plain)
    plain.pad_token = None
    with pytest.raises(InputError, match="no padding token"):
        load_sequence_classifier(folder, tokenizer=plain)


def test_a_padding_token_written_into_a_reply_does_not_end_it(bare_model: Path) -> None:
    tokenizer = load_tokenizer(bare_model)
    ids, _ = encode_dialogue(tokenizer, PROMPT, {"role": "assistant", "content": "Mix." + tokenizer.pad_token})
    assert ids[-2:] == [tokenizer.pad_token_id, tokenizer.eos_token_id]


def test_the_head_of_a_classifier_is_exact_under_autocast(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = tiny_causal_lm(tmp_path)
    model = load_sequence_classifier(folder, tokenizer=load_tokenizer(folder))
    hidden = torch.randn(1000, model.config.hidden_size)
    exact = (hidden.bfloat16().double() @ model.score.weight.double().T).squeeze(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = model.score(hidden.bfloat16()).squeeze(-1)
        plain = torch.nn.functional.linear(hidden, model.score.weight).squeeze(-1)
    assert ours.dtype == torch.float32
    assert (ours.double() - exact).abs().max() < 1e-6
    assert plain.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "saved")
    assert set(weights(tmp_path / "saved")) == {*weights(folder), "score.weight"} - {"lm_head.weight"}


def test_a_model_without_a_chat_template_reads_the_transcript(bare_model: Path) -> None:
    tokenizer = load_tokenizer(bare_model)
    dialogue: list[Message] = [{"role": "system", "content": "Be kind."}, *PROMPT, REPLY]
    ids, start = encode_dialogue(tokenizer, dialogue[:-1], REPLY)
    assert tokenizer.decode(ids[:-1]) == render_transcript(dialogue)
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:start]) == render_transcript(dialogue[:-1]) + "\n\nAssistant:"


def test_the_score_head_depends_on_the_seed_alone(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = tiny_causal_lm(tmp_path)
    tokenizer = load_tokenizer(folder)
    heads = [load_sequence_classifier(folder, tokenizer=tokenizer, seed=seed).score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


# ---- the loss mask


def test_the_loss_falls_on_the_reply_and_its_end_token(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_causal_lm(tmp_path))
    stage = StageFolder(tmp_path / "stage")
    history: list[Message] = [*PROMPT, {"role": "assistant", "content": "Earlier reply."}, *PROMPT]
    row = {"prompt": history, "completion": [REPLY]}
    (example,) = sft_examples([row], tokenizer=tokenizer, limit=512, stage=stage)
    learnt = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != -100]
    assert tokenizer.decode(learnt) == REPLY["content"] + tokenizer.eos_token
    assert [label for label in example["labels"] if label != -100] == learnt
    assert example["input_ids"][: -len(learnt)] == encode_prompt(tokenizer, history)


def test_what_a_template_writes_after_the_end_token_is_left_out(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_causal_lm(tmp_path))
    tokenizer.chat_template = tokenizer.chat_template.replace("+ eos_token", "+ eos_token + '\n'")
    ids, start = encode_dialogue(tokenizer, PROMPT, REPLY)
    assert tokenizer.decode(ids[start:]) == REPLY["content"] + tokenizer.eos_token


def test_over_long_rows_are_failures_and_never_cut(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_causal_lm(tmp_path))
    stage = StageFolder(tmp_path / "stage")
    long = {"id": "long", "prompt": PROMPT, "completion": [{"role": "assistant", "content": "word " * 50}]}
    short = {"id": "short", "prompt": PROMPT, "completion": [REPLY]}
    length = len(encode_dialogue(tokenizer, PROMPT, REPLY).ids)
    examples = sft_examples([long, short], tokenizer=tokenizer, limit=length, stage=stage)
    assert [len(example["input_ids"]) for example in examples] == [length]
    (failure,) = read_rows(stage.path / "failures.jsonl")
    assert (failure["id"], failure["reason"]) == ("long", "context-length")


# ---- configuration


def test_a_wrong_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'learning_rat'.*learning_rate") as caught:
        trainer_config("sft", {"learning_rat": 1, "warmup_ratio": 0.1}, folder=tmp_path, seed=0)
    assert "warmup_ratio" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "trainer", "message"),
    [
        ("sft", {"output_dir": "x"}, "decided by solon"),
        ("reward", {"save_only_model": True}, "decided by solon"),
        ("reward", {"pad_token": "<eos>"}, "decided by solon"),
        ("rloo", {"max_length": 10}, "unknown setting"),
        ("reward", {"lr_scheduler_type": "nonsense"}, "nonsense"),
    ],
)
def test_settings_that_cannot_be_are_input_errors(
    kind: Any, trainer: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        trainer_config(kind, trainer, folder=tmp_path, seed=0)


def test_all_trainer_sections_are_checked_at_once() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"path": "sandbox:helpful"},
            "prompts": {"path": "sandbox"},
            "revisions": {},
            "supervised": {"pretrained": "sandbox:base", "trainer": {"learning_rat": 1}},
            "pairs": {},
            "comparisons": {},
            "preference": {"trainer": {"max_length": "long"}},
            "reinforcement": {"trainer": {"beta": 1, "epsilon": 0.1, "num_train_epoch": 1}},
        }
    )
    with pytest.raises(InputError) as caught:
        validate_trainers(recipe)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["supervised.trainer", "preference.trainer"] + [
        "reinforcement.trainer"
    ] * 2


def test_a_machine_without_a_gpu_gets_float32_and_no_checkpointing(tmp_path: Path) -> None:
    arguments = trainer_config("rloo", {}, folder=tmp_path, seed=2**40 + 3)
    assert arguments.seed == 3
    if not torch.cuda.is_available():
        assert (arguments.use_cpu, arguments.bf16, arguments.gradient_checkpointing) == (True, False, False)


# ---- checkpoints


def whole_checkpoint(folder: Path, step: int) -> Path:
    from safetensors.torch import save_file

    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"w": torch.zeros(100)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        (checkpoint / name).write_bytes(b"x")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return checkpoint


@pytest.mark.parametrize("damage", ["no state", "torn state", "torn weights", "no weights", "no optimizer"])
def test_a_checkpoint_that_is_not_whole_gives_way_to_the_one_before(damage: str, tmp_path: Path) -> None:
    before, newest = whole_checkpoint(tmp_path, 9), whole_checkpoint(tmp_path, 10)
    assert last_checkpoint(tmp_path) == newest
    state, model = newest / "trainer_state.json", newest / "model.safetensors"
    if damage == "no state":
        state.unlink()
    elif damage == "torn state":
        state.write_text(state.read_text()[:-3])
    elif damage == "torn weights":
        model.write_bytes(model.read_bytes()[:-40])
    elif damage == "no weights":
        model.unlink()
    else:
        (newest / "optimizer.pt").unlink()
    assert last_checkpoint(tmp_path) == before
    assert not newest.exists()


def test_a_checkpoint_of_several_processes_has_the_random_state_of_each(tmp_path: Path) -> None:
    before, newest = whole_checkpoint(tmp_path, 9), whole_checkpoint(tmp_path, 10)
    for checkpoint in (before, newest):
        for rank in range(2):
            torch.save({"cpu": torch.random.get_rng_state()}, checkpoint / f"rng_state_{rank}.pth")
    assert last_checkpoint(tmp_path, processes=2) == newest
    torn = newest / "rng_state_1.pth"
    torn.write_bytes(torn.read_bytes()[:-40])
    assert last_checkpoint(tmp_path, processes=2) == before
    (before / "rng_state_0.pth").unlink()
    assert last_checkpoint(tmp_path, processes=2) is None


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") is None


# ---- fine-tuning


def sft_run(model: Path, *, steps: int = 12, lora: Lora | None = None) -> Train:
    def train(stage: StageFolder) -> Path:
        stage.begin(config={"steps": steps}, inputs={})
        config = Supervised(pretrained=str(model), trainer={**TRAINER, "max_steps": steps}, lora=lora)
        trained = train_sft(
            ROWS, model=model, stage=stage, config=config, run=RunContext(facts={"fingerprint": "a|b<c"})
        )
        stage.finish(counts=trained.counts)
        return trained.model

    return train


def test_sft_learns_quietly_and_leaves_a_model_that_transformers_loads(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    stage = StageFolder(tmp_path / "stage")
    model = sft_run(tiny_causal_lm(tmp_path))(stage)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    losses = [row["loss"] for row in read_rows(stage.path / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]
    assert AutoModelForCausalLM.from_pretrained(model).config.use_cache
    assert load_tokenizer(model).chat_template == load_tokenizer(tmp_path / "tiny-model").chat_template
    card = ModelCard.load(model / "README.md")
    assert card.data.library_name == "transformers"
    assert "| trained_rows | 24 |" in card.text
    assert r"a\|b&lt;c" in card.text
    assert stage.manifest()["counts"] == {"rows": 24, "trained_rows": 24, "over_long": 0}


def test_a_finished_model_is_not_trained_again(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    base, stage = tiny_causal_lm(tmp_path), StageFolder(tmp_path / "stage")
    model = sft_run(base, steps=2)(stage)
    before = (model / "model.safetensors").stat().st_mtime_ns
    config = Supervised(pretrained=str(base), trainer={**TRAINER, "max_steps": 9})
    assert train_sft(ROWS, model=base, stage=stage, config=config).model == model
    assert (model / "model.safetensors").stat().st_mtime_ns == before


def test_killed_sft_ends_with_the_same_weights(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    check_killed_run_equals_whole_run(sft_run(tiny_causal_lm(tmp_path), steps=24), tmp_path, seed=1)


def test_the_tokens_trained_on_are_counted_on_from_the_state_of_a_checkpoint() -> None:
    first, resumed = (SimpleNamespace(_total_train_tokens=count) for count in (7, 0))
    saved = TrainerState()
    arguments: Any = (None, saved, None)
    TokenCount(first).on_step_end(*arguments)
    TokenCount(resumed).on_train_begin(*arguments)
    assert resumed._total_train_tokens == saved.num_input_tokens_seen == 7


def test_a_run_killed_between_the_last_checkpoint_and_the_model_trains_no_further(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import solon.training.supervision as supervision

    train, stage = sft_run(tiny_causal_lm(tmp_path), steps=4), StageFolder(tmp_path / "stage")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(supervision, "save_model", die)
        with pytest.raises(KeyboardInterrupt):
            train(stage)
    assert last_checkpoint(stage.path / "checkpoints").name == "checkpoint-4"
    logged = len(list(read_rows(stage.path / "metrics.jsonl")))
    resumed = train(StageFolder(stage.path))
    assert len(list(read_rows(stage.path / "metrics.jsonl"))) == logged
    assert_same_weights(resumed, train(StageFolder(tmp_path / "whole")))


def test_adapters_are_merged_into_the_saved_model(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    base = tiny_causal_lm(tmp_path)
    model = sft_run(base, steps=4, lora=Lora(r=4, alpha=8))(StageFolder(tmp_path / "stage"))
    assert not (model / "adapter_config.json").exists()
    before, after = weights(base), weights(model)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)
