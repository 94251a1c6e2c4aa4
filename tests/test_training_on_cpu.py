"""Training without padding computes what training with it computes, and touches nothing that it cannot compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from solon.artifact import StageFolder
from solon.config import Supervised
from solon.training import train_sft
from solon.training.on_cpu import ATTENTION, Unpadded, quicker, tiny_as_zero

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
READ: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "classifier": lambda: LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_key_value_heads=4, num_labels=1)),
    "qwen": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=8)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=4, sliding_window=None)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHAPE, num_key_value_heads=1, head_dim=8)),
    # With learnt positions, of which padding on the left takes some, too.
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=61,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    ),
}
LEFT_ALONE: dict[str, Callable[[], Any]] = {
    "a window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=4, sliding_window=4)),
    "eager": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=4, attn_implementation="eager")),
}


def model_of(make: Callable[[], Any]) -> Any:
    torch.manual_seed(1)
    return make().train()


def batch(spans: list[tuple[int, int]], *, width: int) -> dict[str, Tensor]:
    """Rows with tokens from one column to another, and padding (0) on both sides."""
    torch.manual_seed(2)
    columns = torch.arange(width)
    mask = torch.stack([(columns >= start) & (columns < end) for start, end in spans]).long()
    return {"input_ids": torch.randint(1, 61, mask.shape) * mask, "attention_mask": mask}


ROWS = batch([(0, 9), (4, 12), (0, 3), (1, 2), (0, 12), (5, 9), (0, 5), (0, 7), (3, 12), (0, 4)], width=12)


def outcome(model: Any, rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits where there are tokens, and the gradients of a loss on them."""
    model.zero_grad()
    logits = model(**rows, use_cache=False).logits
    seen = logits if logits.dim() == 2 else logits[rows["attention_mask"].bool()]
    (seen.float().sin().sum()).backward()
    return seen.detach(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def tokens_in(model: Any) -> list[int]:
    """Tokens that the first linear layer of the model read, a number for each forward pass."""
    seen: list[int] = []
    layers = (layer for layer in model.modules() if type(layer).__name__ in ("Linear", "Conv1D"))
    next(layers).register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize("family", READ)
def test_logits_and_gradients_are_those_of_the_padded_batch(family: str) -> None:
    model = model_of(READ[family])
    right, gradients = outcome(model, ROWS)
    read = tokens_in(model)
    with quicker(SimpleNamespace(model=model)):
        read.clear()
        seen, found = outcome(model, ROWS)
    assert read == [int(ROWS["attention_mask"].sum())], "no padding"
    torch.testing.assert_close(seen, right, rtol=1e-4, atol=1e-4)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_other_attention_is_left_alone(kind: str) -> None:
    model = model_of(LEFT_ALONE[kind])
    before = model.config._attn_implementation
    right, _ = outcome(model, ROWS)
    read = tokens_in(model)
    with quicker(SimpleNamespace(model=model)):
        assert model.config._attn_implementation == before
        read.clear()
        seen, _ = outcome(model, ROWS)
    assert read == [ROWS["input_ids"].numel()]
    assert torch.equal(seen, right)


def test_a_model_that_computes_something_else_without_padding_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(READ["llama"])
    right, _ = outcome(model, ROWS)
    pad = Unpadded.pad
    monkeypatch.setattr(Unpadded, "pad", lambda self, hidden: pad(self, hidden.flip(0)))
    with quicker(SimpleNamespace(model=model)):
        assert model.config._attn_implementation == "sdpa"
        seen, _ = outcome(model, ROWS)
    assert torch.equal(seen, right)


def test_everything_is_as_before_afterwards(tmp_path: Path) -> None:
    model = model_of(READ["llama"])
    asked = trl_utils._use_triton
    with pytest.raises(ZeroDivisionError), tiny_as_zero(), quicker(SimpleNamespace(model=model, ref_model=None)):
        assert model.config._attn_implementation == ATTENTION
        assert float(torch.tensor(1e-40) * 1.0) == 0
        with tiny_as_zero():
            pass
        assert float(torch.tensor(1e-40) * 1.0) == 0, "as it was before"
        assert model.training
        model.save_pretrained(tmp_path)
        raise ZeroDivisionError
    assert float(torch.tensor(1e-40) * 1.0) > 0
    assert trl_utils._use_triton is asked
    assert model.config._attn_implementation == "sdpa"
    assert not model.model._forward_hooks and not model.model._forward_pre_hooks
    assert ATTENTION not in (tmp_path / "config.json").read_text()


def test_writing_texts_is_left_alone() -> None:
    model = model_of(READ["llama"]).eval()
    rows = batch([(3, 8), (0, 8), (5, 8)], width=8)
    right = model.generate(**rows, max_new_tokens=6, do_sample=False)
    with quicker(SimpleNamespace(model=model)):
        assert torch.equal(model.generate(**rows, max_new_tokens=6, do_sample=False), right)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 7)), min_size=1, max_size=20))
def test_every_token_has_its_place_and_its_cell(spans: list[tuple[int, int]]) -> None:
    rows = batch([(start, start + length) for start, length in spans], width=max(map(sum, spans)))
    unpadded = Unpadded.of(rows["attention_mask"])
    tokens = rows["input_ids"].flatten()[unpadded.places_S]
    assert torch.equal(unpadded.pad(tokens[:, None])[..., 0], rows["input_ids"]), "there and back"
    cells = torch.cat([group.flatten() for group in unpadded.groups])
    assert torch.equal(cells[unpadded.order_S], torch.arange(len(tokens))), "in order"
    assert sum(group.shape[0] for group in unpadded.groups) == len(spans)


def test_the_language_head_reads_only_what_the_loss_falls_on(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    apply = chunked_logprob.ChunkedLogProbFunction.apply

    def counted(hidden: Tensor, *args: Any) -> Any:
        read.append(hidden.shape[0])
        return apply(hidden, *args)

    monkeypatch.setattr(trl_utils._ChunkedLogProbFunction, "apply", counted)
    answer = "x" * 3
    rows = [
        {"prompt": [{"role": "user", "content": "a" * n}], "completion": [{"role": "assistant", "content": answer}]}
        for n in (3, 30)
    ]
    stage = StageFolder(tmp_path / "02-sl-cai")
    stage.begin(config={}, inputs={})
    config = Supervised(trainer={"max_steps": 1, "per_device_train_batch_size": 2})
    train_sft(rows, model=tiny_causal_lm(tmp_path), stage=stage, config=config)
    assert len(read) == 1
    # Three letters at most a token each, the end of the answer and what the template writes behind it.
    assert read[0] <= 2 * (len(answer) + 3), "not the prompts and not the padding"
