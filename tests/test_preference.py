from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl.trainer.reward_trainer import RewardTrainer

from solon.artifact import StageFolder, read_json, read_rows
from solon.config import Lora, Preference
from solon.config.recipe import Labels
from solon.dialogue import Message
from solon.errors import InputError, StageChanged
from solon.preference import Pair, PreferenceModel, label_of, measure, pair_of, split_by_prompt, train_preference
from solon.training.trainers import PreferenceCollator, SoftRewardTrainer, soft_label_loss
from test_training import Train, check_killed_run_equals_whole_run

WORDS = {"awful": -1.5, "bad": -0.5, "so-so": 0.0, "good": 0.5, "great": 1.5}
"""Replies and their planted rewards."""
TRAINER = {"per_device_train_batch_size": 16, "learning_rate": 1e-2, "logging_steps": 5}

leads = st.floats(-20, 20)
chances = st.floats(0, 1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def planted_rows(num_prompts: int) -> list[dict[str, Any]]:
    """Every ordered pair of words, told from a random side, under `num_prompts` prompts."""
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b]
    return [
        {
            "id": f"{number}-{a}-{b}",
            "prompt": [{"role": "user", "content": f"Question {number}?"}],
            "chosen": [{"role": "assistant", "content": a}],
            "rejected": [{"role": "assistant", "content": b}],
            "probability": sigmoid(WORDS[a] - WORDS[b]),
            "source": "ai" if number % 2 else "helpful",
        }
        for number in range(num_prompts)
        for a, b in pairs[number % 2 :: 2]
    ]


def pair(probability: float, *, number: int = 0, chosen: str = "a", rejected: str = "bb", source: str = "ai") -> Pair:
    prompt: tuple[Message, ...] = ({"role": "user", "content": f"Question {number}?"},)
    return Pair(
        id=f"{number}-{chosen}-{rejected}",
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        probability=probability,
        source=source,
    )


# ---- the loss


@given(st.lists(st.tuples(leads, chances, st.floats(0.1, 10)), min_size=1, max_size=8))
def test_swapping_the_replies_changes_no_loss(cases: list[tuple[float, float, float]]) -> None:
    d, p, w = (torch.tensor(column, dtype=torch.float64) for column in zip(*cases, strict=True))
    torch.testing.assert_close(soft_label_loss(d, p, w), soft_label_loss(-d, 1 - p, w), atol=1e-9, rtol=1e-6)


@given(leads, chances)
def test_the_loss_is_the_papers_cross_entropy(d: float, p: float) -> None:
    expected = -p * functional.logsigmoid(torch.tensor(d, dtype=torch.float64)) - (1 - p) * functional.logsigmoid(
        torch.tensor(-d, dtype=torch.float64)
    )
    got = soft_label_loss(*(torch.tensor([x], dtype=torch.float64) for x in (d, p, 1.0)))
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-6)


@given(st.floats(0.02, 0.98))
def test_the_loss_is_least_where_the_lead_is_the_logit(p: float) -> None:
    d = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64, requires_grad=True)
    soft_label_loss(d, torch.tensor([p]), torch.ones(1)).backward()
    assert d.grad is not None
    assert abs(d.grad.item()) < 1e-6


def test_a_weight_of_two_is_the_pair_twice() -> None:
    d, p = torch.tensor([0.3, -1.0]), torch.tensor([0.9, 0.6])
    weighted = soft_label_loss(d, p, torch.tensor([2.0, 1.0])) * 2 / 3
    repeated = soft_label_loss(torch.tensor([0.3, 0.3, -1.0]), torch.tensor([0.9, 0.9, 0.6]), torch.ones(3))
    torch.testing.assert_close(weighted, repeated)


# ---- rows


@given(chances)
def test_a_pair_is_turned_so_that_the_better_reply_is_chosen(p: float) -> None:
    row = {"id": "1", "prompt": [], "probability": p}
    row |= {"chosen": [{"role": "assistant", "content": "x"}], "rejected": [{"role": "assistant", "content": "y"}]}
    got = pair_of(row)
    assert got.probability == pytest.approx(max(p, 1 - p))
    assert got.chosen == ("x" if p >= 0.5 else "y")
    other = got.swapped()
    assert (other.chosen, other.rejected, other.probability) == (got.rejected, got.chosen, 1 - got.probability)


def test_a_human_comparison_is_a_hard_label_and_a_wrong_probability_is_refused() -> None:
    row = planted_rows(1)[0]
    assert pair_of({name: row[name] for name in ("id", "prompt", "chosen", "rejected")}).probability == 1.0
    with pytest.raises(InputError, match=r"1\.5"):
        pair_of({**row, "probability": 1.5})


@pytest.mark.parametrize(("p", "hard"), [(0.9, 1.0), (0.5, 0.5), (0.2, 0.0)])
def test_hard_labels_are_the_argmax(p: float, hard: float) -> None:
    assert label_of(pair(p), labels="hard") == hard
    assert label_of(pair(p), labels="soft") == p


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.floats(0.05, 0.9), st.integers(0, 3))
def test_no_prompt_is_in_both_parts_of_the_split(numbers: list[int], share: float, seed: int) -> None:
    pairs = [pair(0.7, number=number, chosen=str(i)) for i, number in enumerate(numbers)]
    train, held_out = split_by_prompt(pairs, share=share, seed=seed)
    assert not {p.group for p in train} & {p.group for p in held_out}
    assert sorted(p.chosen for p in (*train, *held_out)) == sorted(p.chosen for p in pairs)
    if len(set(numbers)) > 1:
        assert train
        assert held_out
    again = split_by_prompt(pairs[::-1], share=share, seed=seed)
    assert {p.chosen for p in again.held_out} == {p.chosen for p in held_out}


def test_every_source_is_held_out() -> None:
    pairs = [pair(0.7, number=number, source="ai" if number < 20 else "helpful") for number in range(40)]
    held_out = split_by_prompt(pairs, share=0.1, seed=0).held_out
    assert sorted(p.source for p in held_out) == ["ai", "ai", "helpful", "helpful"]


# ---- measures


def test_accuracy_counts_decisive_pairs_by_source_and_a_tie_of_scores_is_wrong() -> None:
    pairs = [pair(0.9), pair(0.3), pair(0.8, source="helpful"), pair(0.5), pair(0.7)]
    got = measure(pairs, leads=[1.0, -1.0, -2.0, 5.0, 0.0])
    assert {source: (one.value, one.n) for source, one in got.accuracy.items()} == {
        "all": (0.5, 4),
        "ai": (2 / 3, 3),
        "helpful": (0.0, 1),
    }
    assert got.num_ties == 1


def test_the_baselines_look_at_the_length_of_the_better_reply() -> None:
    pairs = [
        pair(0.9, chosen="a", rejected="bb"),
        pair(0.2, chosen="a", rejected="bb"),
        pair(0.9, chosen="ab", rejected="bb"),
    ]
    got = measure(pairs, leads=[1.0, 1.0, 1.0])
    assert got.shorter is not None
    assert got.longer is not None
    assert (got.shorter.value, got.longer.value) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_a_model_that_knows_the_probabilities_has_no_calibration_error() -> None:
    probabilities = [0.55, 0.65, 0.75, 0.85, 0.95]
    exact = measure([pair(p) for p in probabilities], leads=[math.log(p / (1 - p)) for p in probabilities])
    assert exact.calibration_error.value == pytest.approx(0, abs=1e-9)
    assert exact.absolute_error == pytest.approx(0, abs=1e-9)
    sure = measure([pair(p) for p in probabilities], leads=[20.0] * 5)
    assert sure.calibration_error.value == pytest.approx(1 - 0.75, abs=1e-6)


def test_without_held_out_pairs_nothing_is_claimed() -> None:
    got = measure([], leads=[])
    assert (got.accuracy, got.shorter, got.calibration_error) == ({}, None, None)


# ---- training


def preference_run(model: Path, rows: list[dict[str, Any]], *, labels: Labels = "soft", **trainer: object) -> Train:
    def train(stage: StageFolder) -> Path:
        config = Preference(start=str(model), labels=labels, holdout=0.2, trainer={**TRAINER, **trainer})
        return train_preference(rows, model=model, stage=stage, config=config).model

    return train


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, _tiny_model: Path) -> dict[str, Any]:
    """Preference models trained on planted probabilities, with soft and with hard labels."""
    folder = tmp_path_factory.mktemp("planted")
    results: dict[str, Any] = {}
    for labels in ("soft", "hard"):
        config = Preference(start="x", labels=labels, holdout=0.2, trainer={**TRAINER, "num_train_epochs": 12})
        results[labels] = train_preference(
            planted_rows(20), model=_tiny_model, stage=StageFolder(folder / labels), config=config
        )
    return results


def test_soft_labels_recover_the_probabilities_and_hard_ones_do_not(planted: dict[str, Any]) -> None:
    soft, hard = planted["soft"].measured, planted["hard"].measured
    assert soft.accuracy["all"].value > 0.97
    assert hard.accuracy["all"].value > 0.97
    assert soft.absolute_error < 0.03
    assert soft.calibration_error.value < 0.03
    assert hard.absolute_error > 0.15
    assert soft.accuracy.keys() == {"all", "ai", "helpful"}


@cache
def loaded(path: Path) -> PreferenceModel:
    return PreferenceModel.load(path)


def test_scores_are_centred_and_scaled_on_held_out_replies(planted: dict[str, Any]) -> None:
    model = PreferenceModel.load(planted["soft"].model)
    prompt: list[Message] = [{"role": "user", "content": "Question 3?"}]
    dialogues = [(prompt, word) for word in WORDS]
    raw, scores = model.raw_score(dialogues), model.score(dialogues)
    assert scores == sorted(scores)
    for one, score in zip(raw, scores, strict=True):
        assert score == pytest.approx((one - model.scale.mean) / model.scale.std)
    assert sum(scores) / len(scores) == pytest.approx(0, abs=0.3)
    spread = math.sqrt(sum(value**2 for value in WORDS.values()) / len(WORDS))
    assert model.scale.std == pytest.approx(spread, rel=0.2)


def test_scores_in_batches_are_those_of_a_plain_forward(
    planted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import solon.preference.model as scoring

    monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", 100)
    path = planted["soft"].model
    model = PreferenceModel.load(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    plain = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    prompt: list[Message] = [{"role": "user", "content": "How do I bake bread?"}]
    replies = ["word " * n + end for n, end in [(0, "bad"), (13, "great"), (2, "so-so"), (40, "good"), (1, "awful")]]
    for text, score in zip(replies, model.raw_score([(prompt, text) for text in replies]), strict=True):
        dialogue = [*prompt, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(dialogue, return_dict=False, return_tensors="pt")
        with torch.inference_mode():
            assert plain(input_ids=ids).logits.item() == pytest.approx(score, abs=1e-5)


def test_a_dialogue_beyond_the_context_is_refused(planted: dict[str, Any]) -> None:
    model = PreferenceModel.load(planted["soft"].model)
    with pytest.raises(InputError, match="reads at most 512"):
        model.score([([{"role": "user", "content": "x"}], "word " * 600)])
    with pytest.raises(InputError, match="reads at most 512"):
        model.probability([{"role": "user", "content": "x"}], "good", "word " * 600)


@settings(max_examples=40)
@given(st.text(max_size=40), st.text(max_size=40))
def test_probabilities_of_both_sides_add_up(planted: dict[str, Any], a: str, b: str) -> None:
    model = loaded(planted["hard"].model)
    prompt: list[Message] = [{"role": "user", "content": "Question 3?"}]
    p = model.probability(prompt, a, b)
    assert 0 < p < 1
    assert model.probability(prompt, b, a) == pytest.approx(1 - p, abs=1e-6)
    raw_a, raw_b = model.raw_score([(prompt, a), (prompt, b)])
    assert p == pytest.approx(sigmoid((raw_a - raw_b) / model.scale.temperature), abs=1e-9)


def test_the_temperature_mends_what_hard_labels_spoil(planted: dict[str, Any]) -> None:
    soft, hard = planted["soft"].measured, planted["hard"].measured
    assert soft.temperature == pytest.approx(1, abs=0.15)
    assert hard.temperature > 2
    assert hard.calibration_error_scaled.high < hard.calibration_error.low
    assert hard.log_loss_scaled.value < hard.log_loss.value
    about = read_json(planted["hard"].model / "solon.json")
    assert about["scale"]["temperature"] == about["measured"]["temperature"] == hard.temperature
    manifest = StageFolder(planted["hard"].model.parent).manifest()
    assert manifest["measured"] == about["measured"]
    model = loaded(planted["hard"].model)
    errors = [
        abs(model.probability([{"role": "user", "content": f"Question {n}?"}], a, b) - sigmoid(WORDS[a] - WORDS[b]))
        for n in range(20)
        for a, b in (("great", "good"), ("so-so", "awful"), ("bad", "so-so"))
    ]
    assert sum(errors) / len(errors) < 0.7 * hard.absolute_error


def test_a_finished_stage_is_skipped_and_other_labels_are_refused(planted: dict[str, Any], _tiny_model: Path) -> None:
    folder = planted["soft"].model.parent
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    config = Preference(start="x", labels="soft", holdout=0.2, trainer={**TRAINER, "num_train_epochs": 12})
    again = train_preference(planted_rows(20), model=_tiny_model, stage=StageFolder(folder), config=config)
    assert again == planted["soft"]
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(StageChanged, match=r"config\.labels"):
        train_preference(
            planted_rows(20),
            model=_tiny_model,
            stage=StageFolder(folder),
            config=config.model_copy(update={"labels": "hard"}),
        )


def test_the_log_has_the_accuracy_of_each_source(planted: dict[str, Any]) -> None:
    last = [row for row in read_rows(planted["soft"].model.parent / "metrics.jsonl") if "loss" in row][-1]
    assert last["accuracy_ai"] > 0.9
    assert last["accuracy_helpful"] > 0.9


def test_pairs_that_do_not_fit_are_failures(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    rows = planted_rows(4)
    rows[0]["rejected"] = [{"role": "assistant", "content": "word " * 100}]
    stage = StageFolder(tmp_path / "stage")
    config = Preference(start="x", holdout=0.2, trainer={**TRAINER, "max_steps": 1, "max_length": 60})
    result = train_preference(rows, model=tiny_causal_lm(tmp_path), stage=stage, config=config)
    assert result.counts["over_long"] == 1
    assert result.counts["trained_pairs"] + result.counts["held_out_pairs"] == len(rows) - 1
    assert [row["id"] for row in read_rows(stage.path / "failures.jsonl")] == [rows[0]["id"]]
    assert stage.manifest()["failures"] == {"context-length": 1}


def test_adapters_and_head_are_merged(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    config = Preference(start="x", holdout=0.2, trainer={**TRAINER, "max_steps": 30}, lora=Lora(r=8, alpha=16))
    model = tiny_causal_lm(tmp_path)
    result = train_preference(planted_rows(12), model=model, stage=StageFolder(tmp_path / "stage"), config=config)
    assert not (result.model / "adapter_config.json").exists()
    assert result.accuracy["all"].value > 0.8


def test_killed_preference_training_ends_with_the_same_model(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    train = preference_run(tiny_causal_lm(tmp_path), planted_rows(8), labels="sampled", max_steps=30, save_steps=3)
    whole, killed = check_killed_run_equals_whole_run(train, tmp_path, seed=2)
    assert whole.manifest()["measured"] == killed.manifest()["measured"]


# ---- what we rely on in TRL


def test_trl_still_has_what_the_trainer_overrides(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    from datasets import Dataset

    from solon.training import load_sequence_classifier, load_tokenizer, trainer_config

    tokenizer = load_tokenizer(tiny_causal_lm(tmp_path))
    model = load_sequence_classifier(tmp_path / "tiny-model", tokenizer=tokenizer)
    example = {"chosen_ids": [5, 6, 7], "rejected_ids": [8, 9], "source": "ai"}
    example |= {"p": 1.0, "margin": 0.0, "weight": 1.0}
    trainer = SoftRewardTrainer(
        model=model,
        args=trainer_config("reward", {}, folder=tmp_path / "out", seed=0),
        data_collator=PreferenceCollator(tokenizer.pad_token_id, sources=["ai"]),
        train_dataset=Dataset.from_list([example, {**example, "chosen_ids": [3]}]),
        processing_class=tokenizer,
    )
    trainer.source_names = ["ai"]
    model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == (4, 3)
    assert batch["attention_mask"].sum() == 3 + 1 + 2 + 2
    theirs = RewardTrainer.compute_loss(trainer, model, {name: batch[name] for name in ("input_ids", "attention_mask")})
    ours = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(ours, theirs)
    own = trainer.compute_loss(model, {**batch, "margin": torch.tensor([0.5, 2.0])})
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    batch["margin"] = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(own, RewardTrainer.compute_loss(trainer, model, batch))
    assert trainer._metrics["train"]["accuracy_ai"] == trainer._metrics["train"]["accuracy"][1:3]
