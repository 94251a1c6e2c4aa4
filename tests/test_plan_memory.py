"""The memory that a plan foretells: against counts made by hand, and against the bytes of a real model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from solon.cli.screens import memory_table
from solon.config import Launch, Lora, Recipe
from solon.plan.memory import (
    How,
    Size,
    layer_parameters,
    recipe_memory,
    size_of,
    training_memory,
    zero_stage,
)
from solon.training import load_causal_lm, load_tokenizer, lora_config
from test_plan import SIZES

ACCELERATE = Path(__file__).parents[1] / "recipes" / "accelerate"
LLAMA_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
TINY = Size(parameters=1000, trained=1000, layers=2, width=8, attention=8, key_value=4, mlp=16)


@pytest.fixture
def llama_8b(tmp_path: Path) -> Path:
    """A folder with the configuration of Llama 3 8B, and no weights."""
    folder = tmp_path / "llama-8b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    (folder / "model.safetensors").touch()
    return folder


def test_the_size_of_llama_3_8b_is_what_its_shape_says(llama_8b: Path) -> None:
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    norms = 2 * 32 * 4096 + 4096
    size = size_of(llama_8b)
    assert size.parameters == size.trained == 32 * layer + norms + 2 * 128256 * 4096 == 8_030_261_248
    assert (size.layers, size.width, size.attention, size.key_value, size.mlp) == (32, 4096, 4096, 1024, 14336)
    assert layer_parameters(size) == layer
    # An adapter has r (in + out) weights: queries and output, keys and values, the MLP's three.
    adapters = 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    adapted = size_of(llama_8b, lora=Lora(r=16))
    assert (adapted.parameters, adapted.trained) == (8_030_261_248, adapters)
    scoring = size_of(llama_8b, lora=Lora(r=16), scores=True)
    assert scoring.parameters == 8_030_261_248 - 128256 * 4096 + 4096
    assert scoring.trained == adapters + 4096


def test_every_part_by_hand() -> None:
    found = training_memory(TINY, How(rows=3, tokens=5, reference=True, rollouts=12, reward=TINY))
    assert (found.weights, found.gradients, found.optimizer, found.reference) == (4000, 4000, 8000, 4000)
    layer = 2 * (2 * 8 + 2 * 8 + 2 * 4 + 4 * 16) + 2 * (4 + 2) * 8
    weights_of_a_layer = 8 * (2 * 8 + 2 * 4 + 3 * 16)
    assert found.activations == 15 * (layer + 2 * 4 * 8) + 2 * weights_of_a_layer
    assert found.kv_cache == 2 * 2 * 4 * 4 * 12 * 5
    assert found.reward_model == 4 * (1000 + 16_384 * (2 * 8 + 3 * 16))
    assert found.peak == 16000 + found.reward_model + max(found.kv_cache, 4000 + found.activations)


@pytest.mark.parametrize(("processes", "copies"), [(1, 1), (2, 2)])
def test_the_value_model_of_ppo_is_trained_whole_beside_the_policy(processes: int, copies: int) -> None:
    wide = replace(TINY, width=16)
    how = How(rows=3, tokens=5, processes=processes, lora=True, value=wide)
    found = training_memory(replace(TINY, trained=10), how)
    assert found.value_model == 4000 * (1 + 2 + copies)
    assert found.activations == training_memory(wide, replace(how, value=None)).activations, "one after the other"
    assert found.peak >= found.value_model + found.weights


def test_without_checkpointing_every_layer_is_kept() -> None:
    kept = training_memory(TINY, How(rows=3, tokens=5, checkpointing=False, autocast=False)).activations
    assert kept == 15 * 2 * (4 * (2 * 8 + 2 * 8 + 2 * 4 + 4 * 16) + 2 * (4 + 4) * 8)


def test_adapters_need_no_copy_for_the_reference_and_little_for_the_rest() -> None:
    how = How(rows=1, tokens=5, lora=True, weight_bytes=2, reference=True)
    found = training_memory(replace(TINY, trained=10), how)
    assert (found.weights, found.gradients, found.optimizer, found.reference) == (2040, 40, 80, 0)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 4000, 8000, 8000), (1, 4000, 4000, 2000), (2, 4000, 1000, 2000), (3, 1000, 1000, 2000)],
)
def test_what_is_divided_between_four_processes(stage: int, weights: int, gradients: int, optimizer: int) -> None:
    found = training_memory(TINY, How(rows=1, tokens=5, processes=4, zero_stage=stage))
    assert (found.weights, found.gradients, found.optimizer) == (weights, gradients, optimizer)


def test_where_answers_are_sampled() -> None:
    own = How(rows=1, tokens=5, rollouts=12)
    cache = 2 * 2 * 4 * 12 * 5
    assert training_memory(TINY, own).kv_cache == 4 * cache
    assert training_memory(TINY, replace(own, vllm="colocate")).kv_cache == 2 * (cache + 1000)
    assert training_memory(TINY, replace(own, vllm="server")).kv_cache == 0
    assert training_memory(TINY, replace(own, processes=2, zero_stage=3)).kv_cache == 4 * (cache + 1000)


def test_accelerates_file_says_what_is_divided() -> None:
    stages = [
        zero_stage(Launch(processes=2, accelerate=str(ACCELERATE / name))) for name in ("fsdp2.yaml", "zero3.yaml")
    ]
    assert [*stages, zero_stage(None), zero_stage(Launch(processes=2))] == [3, 3, 0, 0]


# ---- real bytes


@pytest.mark.parametrize("lora", [None, Lora(r=4)], ids=["whole", "adapters"])
def test_weights_gradients_and_moments_are_those_of_a_real_model(
    lora: Lora | None, tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = tiny_causal_lm(tmp_path)
    found = training_memory(size_of(folder, lora=lora), How(rows=1, tokens=5, lora=lora is not None))
    model = load_causal_lm(folder, tokenizer=load_tokenizer(folder))
    if lora is not None:
        from peft import get_peft_model

        model = get_peft_model(model, lora_config(lora))
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.arange(6)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert found.weights == sum(one.nbytes for one in model.parameters())
    assert found.gradients == sum(one.grad.nbytes for one in trained)
    assert found.optimizer == sum(one.nbytes for one in moments)


def test_keys_values_and_activations_are_those_of_a_real_model(
    tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = tiny_causal_lm(tmp_path)
    how = How(rows=3, tokens=40, rollouts=3, autocast=False, checkpointing=False)
    found = training_memory(size_of(folder), how)
    backbone = load_causal_lm(folder, tokenizer=load_tokenizer(folder)).model
    cache = backbone(input_ids=torch.zeros(3, 40, dtype=torch.long), use_cache=True).past_key_values
    assert found.kv_cache == sum(one.nbytes for layer in cache.layers for one in (layer.keys, layer.values))
    weights = {one.untyped_storage().data_ptr() for one in backbone.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = backbone(input_ids=torch.zeros(3, 40, dtype=torch.long), use_cache=False)
        assert output.last_hidden_state.requires_grad
        assert found.activations == pytest.approx(sum(kept.values()), rel=0.25)


# ---- a recipe


def recipe_of(model: Path, **sections: Any) -> Recipe:
    data = {
        "name": "test",
        "model": {"path": str(model)},
        "prompts": {"path": "sandbox"},
        "revisions": {},
        "supervised": {"pretrained": str(model), "lora": {}},
        "pairs": {},
        "comparisons": {},
        "preference": {"lora": {}},
        "reinforcement": {
            "lora": {},
            "trainer": {
                "model_init_kwargs": {"dtype": "bfloat16"},
                "per_device_train_batch_size": 16,
                "gradient_accumulation_steps": 4,
            },
        },
    }
    return Recipe.model_validate({**data, **sections})


def test_an_adapted_policy_and_a_merged_preference_model_of_8b_fit_one_gpu_of_80_gb(llama_8b: Path) -> None:
    sizes = replace(SIZES, longest_prompt=512, answer=128)
    found = {one.stage: one for one in recipe_memory(recipe_of(llama_8b), sizes)}
    assert list(found) == ["02-sl-cai", "04-preference-model", "05-rl-cai"]
    policy = found["05-rl-cai"]
    assert policy.reference == 0
    assert policy.weights == 2 * 8_030_261_248 + 4 * 41_943_040
    assert policy.reward_model > 4 * 7_504_924_672
    assert policy.kv_cache == 2 * 32 * 1024 * 2 * (16 * 4) * (512 + 128)
    assert 45e9 < policy.peak < 80e9
    whole = recipe_of(llama_8b, reinforcement={})
    *_, trained = recipe_memory(whole, sizes)
    assert trained.reference == trained.weights == 4 * 8_030_261_248
    assert trained.peak > 160e9


def test_the_plan_knows_ppos_value_model_and_a_judge_as_the_reward(llama_8b: Path) -> None:
    def policy(**settings: Any) -> Any:
        return list(recipe_memory(recipe_of(llama_8b, reinforcement=settings), SIZES))[-1]

    paper = policy(algorithm={"kind": "ppo"})
    assert paper.value_model == 16 * (8_030_261_248 - 128256 * 4096 + 4096)
    judged = policy(algorithm={"kind": "ppo", "num_generations": 2}, reward="judge")
    assert judged.value_model == paper.value_model
    assert judged.reward_model > paper.reward_model > 4 * 7_504_924_672


def test_a_judge_as_the_reward_takes_the_bytes_of_its_dtype(llama_8b: Path) -> None:
    found: dict[str, float] = {}
    for dtype in ("float32", "bfloat16", "int8"):
        judge = {"path": str(llama_8b), "dtype": dtype}
        recipe = recipe_of(llama_8b, comparisons={"judge": judge}, reinforcement={"reward": "judge"})
        found[dtype] = list(recipe_memory(recipe, SIZES))[-1].reward_model
    assert found["float32"] - found["bfloat16"] == 2 * 8_030_261_248
    # The 8-bit layers stand beside the float32 ones.
    assert found["int8"] - found["float32"] == 8_030_261_248


def test_processes_divide_what_the_file_of_the_launch_line_divides(llama_8b: Path) -> None:
    launch = {"processes": 8, "accelerate": str(ACCELERATE / "fsdp2.yaml")}
    alone, shared = (
        list(recipe_memory(recipe_of(llama_8b, reinforcement={}, **more), SIZES))[-1]
        for more in ({}, {"launch": launch})
    )
    assert (shared.weights, shared.optimizer) == (alone.weights / 8, alone.optimizer / 8)
    assert shared.reward_model == alone.reward_model


def test_the_table_has_a_row_for_every_stage_that_trains() -> None:
    memory = [training_memory(TINY, How(rows=1, tokens=5), stage=name) for name in ("02-sl-cai", "05-rl-cai")]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(memory_table(memory))
    lines = console.export_text().splitlines()
    assert "optimizer" in lines[0] and "kv cache" in lines[0] and lines[0].split()[-1] == "peak"
    assert [line.split()[0] for line in lines[1:]] == ["02-sl-cai", "05-rl-cai"]
