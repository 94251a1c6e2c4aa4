"""What a stage that trains needs of a device's memory: arithmetic on the shape of the model, nothing is loaded.

    found = training_memory(size, how)
    found.peak / 2**30          # GiB

Weights, gradients and AdamW's two moments follow Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, sections 3.1 and 5),
activations Korthikanti et al. 2022 (arXiv:2205.05198, section 4), the cache of keys and values Kwon et al. 2023
(arXiv:2309.06180, section 3). Not counted: logits (TRL computes them in tiles), fragmentation, the libraries' own
(about 1 GiB with CUDA), the weights of one layer that sharded training gathers, offloading.
"""

# transformers leaves parts of its types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from solon.config import Launch, Lora, Preference, Recipe, Reinforcement, Supervised
from solon.engine import LocalEngineConfig, without_ray
from solon.plan.arithmetic import Sizes, trainer_arguments
from solon.preference.model import TOKENS_PER_BATCH
from solon.supervised import start_model

FLOAT32, BFLOAT16 = 4, 2
"""Bytes."""
ENGINE_BYTES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": FLOAT32 + 1}
"""Of a weight of the local engine, by its dtype; int8 layers stand beside the float32 ones."""


# ---- types


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a model's memory follows from; counts are of numbers, not bytes."""

    parameters: int
    """All weights, adapters not included."""
    trained: int
    """Weights that are trained: all of them, or the adapters (and what is trained whole beside them)."""
    layers: int
    width: int
    """Of the residual stream (hidden size)."""
    attention: int
    """Of the queries of one token: heads times the size of a head."""
    key_value: int
    """Of the keys of one token, and of its values."""
    mlp: int
    """Of the hidden layer of the MLP (intermediate size)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a stage trains on one device."""

    rows: int
    """Sequences of a micro-batch."""
    tokens: float
    """Of the longest sequence."""
    lora: bool = False
    weight_bytes: int = FLOAT32
    """Of a weight that is not an adapter's; adapters are float32."""
    autocast: bool = True
    """Whether layers compute in bfloat16 whatever the weights are."""
    checkpointing: bool = True
    """Whether only the inputs of the layers are kept (gradient checkpointing)."""
    processes: int = 1
    zero_stage: int = 0
    """What is divided between the processes: 0 nothing (DDP), 1 the optimiser, 2 gradients too, 3 weights too (as
    FSDP does)."""
    reference: bool = False
    """Whether the KL needs log-probabilities of the first policy; with adapters it is the policy without them."""
    rollouts: int = 0
    """Answers sampled side by side."""
    vllm: Literal["off", "colocate", "server"] = "off"
    reward: Size | None = None
    """The preference model (or the local judge in its place), whole."""
    reward_weight_bytes: int = FLOAT32
    """Of its weights: float32, or what the judge's engine has."""
    value: Size | None = None
    """The value model of PPO, float32, trained whole beside the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one device."""

    stage: str = ""
    weights: float
    gradients: float
    optimizer: float
    reference: float
    reward_model: float
    value_model: float
    """Weights, gradients and optimiser of PPO's value model."""
    activations: float
    kv_cache: float
    """Keys and values while answers are sampled, and a copy of the weights where sampling needs one."""

    @property
    def peak(self) -> float:
        """What stays, and the greater of sampling and update, which follow each other."""
        stays = self.weights + self.optimizer + self.reference + self.reward_model + self.value_model
        return stays + max(self.kv_cache, self.gradients + self.activations)


PARTS = tuple(field.name for field in fields(Memory) if field.name != "stage")


# ---- arithmetic


def training_memory(size: Size, how: How, *, stage: str = "") -> Memory:
    """The parts: P parameters of w bytes, T trained ones of t bytes (w, or 4 for adapters), N processes.

    Weights P w + adapters; gradients T t, twice with DDP (its buckets are a copy, torch's
    `DistributedDataParallel(gradient_as_bucket_view=False)`); optimiser 2 T t; reference P w, or nothing with adapters;
    a value model all of this for itself.
    """
    trained_bytes = FLOAT32 if how.lora else how.weight_bytes

    def share(stage: int) -> int:
        return how.processes if how.zero_stage >= stage else 1

    base = size.parameters * how.weight_bytes
    trained = size.trained * trained_bytes
    copies = 2 if how.processes > 1 and how.zero_stage == 0 else 1
    return Memory(
        stage=stage,
        weights=(base + (trained if how.lora else 0)) / share(3),
        gradients=copies * trained / share(2),
        optimizer=2 * trained / share(1),
        reference=base / share(3) if how.reference and not how.lora else 0,
        reward_model=0 if how.reward is None else reward_model_bytes(how.reward, how.reward_weight_bytes),
        # It is never divided, and of its own the backward pass is over before the policy's begins.
        value_model=0 if how.value is None else FLOAT32 * how.value.parameters * (3 + copies),
        activations=max(activation_bytes(one, how) for one in (size, how.value) if one is not None),
        kv_cache=sampling_bytes(size, how),
    )


def activation_bytes(size: Size, how: How) -> float:
    """What the forward pass of a micro-batch keeps for the backward pass.

    Korthikanti et al. 2022, section 4.1, for a layer without dropout, with a gated MLP, grouped queries and fused
    attention (no term in the square of the length). Of a token a layer keeps, at e bytes a number computed and r bytes
    of the residual stream, the inputs of the projections (2 h), queries and attention's output (2 a), keys and values
    (2 k), gate, up, activated gate and product (4 m), and for two norms input and output:
    e (2 h + 2 a + 2 k + 4 m) + 2 (r + e) h. With checkpointing (section 5 there) every layer keeps r h, and one
    layer at a time the rest. Autocast keeps a bfloat16 copy of the float32 weights of the layers whose inputs it keeps.
    """
    computed = BFLOAT16 if how.autocast else how.weight_bytes
    residual = how.weight_bytes
    projections = 2 * size.width + 2 * size.attention + 2 * size.key_value + 4 * size.mlp
    layer = computed * projections + 2 * (residual + computed) * size.width
    whole = 1 if how.checkpointing else size.layers
    per_token = whole * layer + (size.layers * residual * size.width if how.checkpointing else 0)
    cast = whole * layer_parameters(size) * BFLOAT16 if how.autocast and how.weight_bytes == FLOAT32 else 0
    return how.rows * how.tokens * per_token + cast


def layer_parameters(size: Size) -> int:
    """Weights of the projections of one layer: queries and output, keys and values, the gated MLP's three."""
    return size.width * (2 * size.attention + 2 * size.key_value + 3 * size.mlp)


def sampling_bytes(size: Size, how: How) -> float:
    """2 (keys and values) x layers x width of the keys x bytes, for each token of each answer and its prompt.

    vLLM in the same process has bfloat16 weights of its own; on a server of its own it takes nothing here. Weights that
    are divided between the processes are gathered for sampling (TRL's `ds3_gather_for_generation`).
    """
    if not how.rollouts or how.vllm == "server":
        return 0
    number = BFLOAT16 if how.vllm == "colocate" else how.weight_bytes
    cache = 2 * size.layers * size.key_value * number * how.rollouts * how.tokens
    copied = how.vllm == "colocate" or (how.zero_stage == 3 and how.processes > 1)
    return cache + (size.parameters * number if copied else 0)


def reward_model_bytes(size: Size, weight_bytes: int = FLOAT32) -> float:
    """Weights, and what one layer computes for TOKENS_PER_BATCH tokens in float32: its input and output, gate, up and
    their product."""
    return weight_bytes * size.parameters + FLOAT32 * TOKENS_PER_BATCH * (2 * size.width + 3 * size.mlp)


# ---- a recipe


def recipe_memory(recipe: Recipe, sizes: Sizes) -> Iterator[Memory]:
    """Of every stage of the recipe that trains, as on a GPU. Reads configurations of models, no weights.

    Raises InputError for a model folder that is not there.
    """
    if recipe.supervised is not None and recipe.revisions is not None:
        yield _fine_tuning(recipe, recipe.supervised, sizes)
    if recipe.preference is not None:
        yield _preference(recipe, recipe.preference, sizes)
    if recipe.reinforcement is not None:
        yield _reinforcement(recipe, recipe.reinforcement, sizes)


def _fine_tuning(recipe: Recipe, settings: Supervised, sizes: Sizes) -> Memory:
    size = size_of(start_model(recipe), lora=settings.lora)
    arguments = trainer_arguments(recipe, "sft", settings.trainer)
    rows = arguments.per_device_train_batch_size
    how = _how(recipe, settings, rows=rows, tokens=_length(settings.trainer, sizes.longest_prompt + sizes.answer))
    return training_memory(size, how(), stage="02-sl-cai")


def _preference(recipe: Recipe, settings: Preference, sizes: Sizes) -> Memory:
    size = size_of(_preference_start(recipe, settings), lora=settings.lora, scores=True)
    arguments = trainer_arguments(recipe, "reward", settings.trainer)
    rows = 2 * arguments.per_device_train_batch_size
    how = _how(recipe, settings, rows=rows, tokens=_length(settings.trainer, sizes.longest_prompt + sizes.answer))
    return training_memory(size, how(), stage="04-preference-model")


def _reinforcement(recipe: Recipe, settings: Reinforcement, sizes: Sizes) -> Memory:
    kind, trainer = settings.algorithm.kind, settings.trainer
    size = size_of(start_model(recipe), lora=settings.lora)
    arguments: Any = trainer_arguments(recipe, kind, trainer)
    rows = arguments.per_device_train_batch_size
    dtype: object = (cast(dict[str, object] | None, trainer.get("model_init_kwargs")) or {}).get("dtype", "float32")
    weight_bytes = FLOAT32 if "32" in str(dtype) else BFLOAT16
    if kind == "dpo":
        tokens = _length(trainer, sizes.longest_prompt + sizes.answer)
        how = _how(recipe, settings, rows=2 * rows, tokens=tokens)
        return training_memory(size, how(weight_bytes=weight_bytes), stage="05-rl-cai")
    how = _how(recipe, settings, rows=rows, tokens=sizes.longest_prompt + settings.max_new_tokens)
    online = how(
        weight_bytes=weight_bytes,
        reference=settings.algorithm.beta > 0,
        rollouts=rows * arguments.steps_per_generation,
        vllm=trainer.get("vllm_mode", "colocate") if trainer.get("use_vllm") else "off",
        reward=_judge_size(recipe, settings),
        reward_weight_bytes=_judge_weight_bytes(recipe, settings),
        value=None if kind != "ppo" else _value_size(recipe, settings),
    )
    return training_memory(size, online, stage="05-rl-cai")


def _how(recipe: Recipe, settings: Supervised | Preference | Reinforcement, *, rows: int, tokens: float) -> Any:
    return partial(
        How,
        rows=rows,
        tokens=tokens,
        lora=settings.lora is not None,
        # TRL's defaults on a GPU, whatever this machine has.
        autocast=bool(settings.trainer.get("bf16", True)),
        checkpointing=bool(settings.trainer.get("gradient_checkpointing", True)),
        processes=recipe.launch.processes if recipe.launch else 1,
        zero_stage=zero_stage(recipe.launch),
    )


def _length(trainer: dict[str, Any], expected: float) -> float:
    return min(trainer.get("max_length") or expected, expected)


def _preference_start(recipe: Recipe, settings: Preference) -> str:
    return start_model(recipe) if settings.start == "sl-cai" else settings.start


def _judge_size(recipe: Recipe, settings: Reinforcement) -> Size | None:
    """Of who rewards: the preference model, or the judge where it is a local model."""
    if settings.reward == "preference-model":
        assert recipe.preference is not None, "there is a reward"
        return size_of(_preference_start(recipe, recipe.preference), scores=True)
    judge = without_ray((recipe.comparisons and recipe.comparisons.judge) or recipe.model)
    return size_of(judge.path) if isinstance(judge, LocalEngineConfig) else None


def _judge_weight_bytes(recipe: Recipe, settings: Reinforcement) -> int:
    judge = without_ray((recipe.comparisons and recipe.comparisons.judge) or recipe.model)
    if settings.reward == "judge" and isinstance(judge, LocalEngineConfig):
        return ENGINE_BYTES[judge.dtype]
    return FLOAT32


def _value_size(recipe: Recipe, settings: Reinforcement) -> Size:
    """Of the value model, which starts as the preference model, and without one as the policy."""
    if settings.reward == "judge" or recipe.preference is None:
        return size_of(start_model(recipe), scores=True)
    return size_of(_preference_start(recipe, recipe.preference), scores=True)


def zero_stage(launch: Launch | None) -> int:
    """What accelerate's configuration file divides between the processes; see `How.zero_stage`."""
    if launch is None or launch.accelerate is None:
        return 0
    import yaml

    config: dict[str, Any] = yaml.safe_load(Path(launch.accelerate).read_text(encoding="utf-8"))
    if config.get("distributed_type") == "FSDP":
        return 3
    deepspeed: dict[str, Any] = config.get("deepspeed_config") or {}
    return int(deepspeed.get("zero_stage", 0))


def size_of(path: str | Path, *, lora: Lora | None = None, scores: bool = False) -> Size:
    """The size of the model in a folder, from its configuration: it is built without memory, on torch's meta device.

    `scores`: as a classifier with one score per sequence.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from solon.training import lora_config, resolve_model

    config = cast(Any, AutoConfig).from_pretrained(resolve_model(path))
    kind: Any = AutoModelForCausalLM
    if scores:
        config.num_labels, kind = 1, AutoModelForSequenceClassification
    with torch.device("meta"):
        model = kind.from_config(config)
        parameters = trained = sum(one.numel() for one in model.parameters())
        if lora is not None:
            import peft

            adapted = cast(Any, peft).get_peft_model(model, lora_config(lora, head="score" if scores else None))
            trained = sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Size(
        parameters=parameters,
        trained=trained,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        attention=text.num_attention_heads * head,
        key_value=(getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * head,
        mlp=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
    )
