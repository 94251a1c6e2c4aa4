"""Scoring: on which token and with which precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from solon.artifact import StageFolder
from solon.config import Preference
from solon.dialogue import Message
from solon.errors import InputError
from solon.preference import PreferenceModel, Scale, train_preference
from solon.training import encode_dialogue, load_sequence_classifier, load_tokenizer
from test_preference import TRAINER, planted_rows

PROMPT: list[Message] = [{"role": "user", "content": "How do I bake bread?"}]
DIALOGUES = [(PROMPT, f"Mix flour, water and {n} grams of salt." + " Let it rise." * (n % 3)) for n in range(48)]


def classifier(folder: Path, *, dtype: torch.dtype) -> Any:
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=dtype)
    model.config.pad_token_id = tokenizer.pad_token_id
    # A large head, so that the scores are well above the precision of bfloat16.
    torch.nn.init.normal_(model.score.weight, std=3.0)
    return model


def test_a_padding_token_that_the_model_does_not_know_is_refused(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = tiny_causal_lm(tmp_path)
    tokenizer, model = load_tokenizer(folder), classifier(folder, dtype=torch.float32)
    PreferenceModel(model, tokenizer, Scale(0, 1))
    model.config.pad_token_id = tokenizer.eos_token_id
    with pytest.raises(InputError, match="the model knows 1 as padding"):
        PreferenceModel(model, tokenizer, Scale(0, 1))
    plain = AutoTokenizer.from_pretrained(folder)
    plain.pad_token = plain.eos_token
    with pytest.raises(InputError, match="is the end"):
        PreferenceModel(model, plain, Scale(0, 1))


def test_training_refuses_a_padding_token_that_ends_replies(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    # The tokenizer's end token becomes its padding token inside TRL.
    config = Preference(start="x", trainer={**TRAINER, "max_steps": 1, "eos_token": "<pad>"})
    with pytest.raises(InputError, match="padding token '<pad>' is the end"):
        train_preference(
            planted_rows(4), model=tiny_causal_lm(tmp_path), stage=StageFolder(tmp_path / "stage"), config=config
        )


def test_the_score_is_read_on_the_token_that_ends_the_reply(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = tiny_causal_lm(tmp_path)
    tokenizer, model = load_tokenizer(folder), classifier(folder, dtype=torch.float32)
    scores = PreferenceModel(model, tokenizer, Scale(0, 1)).raw_score(DIALOGUES)
    for (prompt, text), score in zip(DIALOGUES, scores, strict=True):
        ids, _ = encode_dialogue(tokenizer, prompt, {"role": "assistant", "content": text})
        assert ids[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids])).last_hidden_state
            assert (hidden[0, -1] @ model.score.weight[0]).item() == pytest.approx(score, abs=1e-4)


def test_behind_a_backbone_in_bfloat16_the_head_and_the_scores_are_float32(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = tiny_causal_lm(tmp_path)
    tokenizer, coarse = load_tokenizer(folder), classifier(folder, dtype=torch.bfloat16)
    ids = [encode_dialogue(tokenizer, p, {"role": "assistant", "content": text}).ids for p, text in DIALOGUES]
    with torch.no_grad():
        plain = [coarse(torch.tensor([one])).logits.item() for one in ids]
        hidden = [coarse.model(torch.tensor([one])).last_hidden_state[0, -1] for one in ids]
    exact = [(one.double() @ coarse.score.weight[0].double()).item() for one in hidden]
    one_by_one = PreferenceModel(coarse, tokenizer, Scale(0, 1))
    scores = [one_by_one.raw_score_ids([one])[0] for one in ids]
    assert coarse.score.weight.dtype == torch.float32
    assert next(coarse.model.parameters()).dtype == torch.bfloat16
    assert scores == pytest.approx(exact, abs=1e-4)
    assert len(set(scores)) == len(DIALOGUES) > len(set(plain))


def test_a_model_saved_in_bfloat16_is_scored_in_float32(tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    folder, saved = tiny_causal_lm(tmp_path), tmp_path / "saved"
    classifier(folder, dtype=torch.bfloat16).save_pretrained(saved)
    load_tokenizer(folder).save_pretrained(saved)
    assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {torch.bfloat16}
    model = load_sequence_classifier(saved, tokenizer=load_tokenizer(saved))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.float32)
    got = PreferenceModel.load(saved, device="cpu")
    assert got.scale == Scale(0.0, 1.0, 1.0)
    scores = got.raw_score(DIALOGUES)
    for (prompt, text), score in zip(DIALOGUES, scores, strict=True):
        dialogue = [*prompt, {"role": "assistant", "content": text}]
        ids = load_tokenizer(saved).apply_chat_template(dialogue, return_dict=False, return_tensors="pt")
        with torch.inference_mode():
            assert expected(input_ids=ids).logits.item() == pytest.approx(score, abs=1e-5)
