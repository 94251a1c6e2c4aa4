"""The `trainer:` sections of a recipe -> the configurations of TRL's trainers, checked before any model is loaded."""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args, get_type_hints

from solon.config import Launch, Lora, Recipe, Reinforcement
from solon.errors import InputError
from solon.training.launching import check_launch

if TYPE_CHECKING:
    from transformers import TrainingArguments

Kind = Literal["sft", "reward", "ppo", "rloo", "grpo", "dpo"]

NUM_CHECKPOINTS = 5
"""Checkpoints that a training run writes at least, if it has as many steps; the last two are kept."""

DEFAULT_BATCH = 8
"""Rows per process and step, transformers' default."""

_ONLINE: Mapping[str, object] = {"lr_scheduler_type": "constant", "disable_dropout": True, "logging_steps": 1}
_DEFAULTS: Mapping[Kind, Mapping[str, object]] = {
    "sft": {"lr_scheduler_type": "constant"},
    "reward": {},
    "ppo": _ONLINE,
    "rloo": _ONLINE,
    "grpo": _ONLINE,
    "dpo": {"lr_scheduler_type": "constant", "disable_dropout": True},
}
"""Where we differ from TRL's defaults: the learning rate is constant (arXiv:2212.08073, 3.2; 2204.05862, B.1)."""

_OURS: Mapping[str, object] = {"save_strategy": "steps", "save_only_model": False, "eval_strategy": "no"}
"""What resuming needs; held-out rows are measured when training is over."""

_FIXED: Mapping[Kind, Mapping[str, object]] = {
    "sft": {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": False, "pad_token": None},
    "reward": {"remove_unused_columns": False, "pad_token": None},
    "ppo": {
        "temperature": 1.0,
        "shuffle_dataset": False,
        "loss_type": "dapo",  # The mean over tokens, which have an advantage each.
        "importance_sampling_level": "token",
        "scale_rewards": "none",
    },
    "rloo": {"temperature": 1.0, "shuffle_dataset": False},
    "grpo": {"temperature": 1.0, "shuffle_dataset": False},
    "dpo": {
        "loss_type": ["sigmoid"],
        "label_smoothing": 0.0,
        "precompute_ref_log_probs": True,
        "remove_unused_columns": False,
        "pad_token": None,
    },
}


def trainer_config(
    kind: Kind, trainer: Mapping[str, object], *, folder: Path, seed: int, fixed: Mapping[str, object] | None = None
) -> TrainingArguments:
    """TRL's SFTConfig, RewardConfig, GRPOConfig (PPO too), RLOOConfig or DPOConfig from the `trainer:` section.

    `fixed` are the settings that solon itself decides; `max_length` is ours too (rows above it are refused). Raises
    InputError for an unknown key (with the nearest known one), a key that is fixed, and a value that TRL refuses.
    """
    import torch
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.sft_config import SFTConfig

    build = {
        "sft": SFTConfig,
        "reward": RewardConfig,
        "ppo": GRPOConfig,
        "rloo": RLOOConfig,
        "grpo": GRPOConfig,
        "dpo": DPOConfig,
    }[kind]
    own: dict[str, object] = {**_OURS, **_FIXED[kind], **(fixed or {}), "output_dir": str(folder), "seed": seed % 2**32}
    known = {field.name for field in fields(build) if field.init}
    problems = [_unknown(key, known=known) for key in trainer if key not in known]
    problems += [
        InputError(f"trainer: {key!r} is decided by solon", remedy="leave it out") for key in trainer if key in own
    ]
    problems += _of_wrong_type(trainer, build)
    if problems:
        raise InputError.all_of(problems)
    on_gpu = torch.cuda.is_available()
    machine = {} if on_gpu else {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    values = {
        **machine,
        "report_to": "none",
        "save_total_limit": 2,
        "disable_tqdm": True,
        **_DEFAULTS[kind],
        **trainer,
        **own,
    }
    if "max_length" in known:
        values["max_length"] = None
    # GRPO cannot do with one answer per prompt, and says so when it is configured; PPO has a value model instead.
    single = kind == "ppo" and values["num_generations"] == 1
    try:
        arguments = cast(Any, build)(**{**values, "num_generations": 2} if single else values)
    except (TypeError, ValueError) as error:
        raise InputError(f"trainer: {error}", remedy=f"see the settings of TRL's {build.__name__}") from error
    if single:
        arguments.num_generations = 1
    return cast("TrainingArguments", arguments)


def _of_wrong_type(trainer: Mapping[str, object], build: type) -> Iterator[InputError]:
    """Values of settings that are numbers or switches and are none; TRL takes them, and training fails then."""
    numbers = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    for key, hint in get_type_hints(build).items():
        wanted = set(get_args(hint)) or {hint}
        if key not in trainer or not wanted <= numbers.keys():
            continue
        value = trainer[key]
        found = float if type(value) is int and float in wanted else type(value)
        if found not in wanted:
            what = " or ".join(text for kind, text in numbers.items() if kind in wanted)
            yield InputError(f"trainer: {key} is {value!r}", remedy=f"{what} is wanted")
        elif key == "learning_rate" and cast(float, value) < 0:
            yield InputError(f"trainer: {key} is {value!r}", remedy="it is 0 or more")


def of_all_processes(trainer: Mapping[str, object], launch: Launch | None) -> dict[str, object]:
    """The `trainer:` section with which one process would train as those of `launch` do together."""
    if launch is None:
        return dict(trainer)
    name = "per_device_train_batch_size"
    batch = trainer.get(name, DEFAULT_BATCH)
    return {**trainer, name: batch * launch.processes if isinstance(batch, int) else batch}


def _unknown(key: str, *, known: Iterable[str]) -> InputError:
    near = difflib.get_close_matches(key, sorted(known), n=3)
    return InputError(f"trainer: unknown setting {key!r}", remedy=f"do you mean {' or '.join(near)}?" if near else None)


class Plan(NamedTuple):
    """How the rows of a stage fill an epoch."""

    batches: int
    """Micro-batches of an epoch, for each process."""
    unit: int = 1
    """Optimiser steps that a checkpoint must come after a multiple of."""


def scheduled_config(
    kind: Kind,
    trainer: Mapping[str, object],
    *,
    folder: Path,
    seed: int,
    plan: Callable[[Any], Plan],
    fixed: Mapping[str, object] | None = None,
) -> TrainingArguments:
    """`trainer_config` with the steps worked out, so that NUM_CHECKPOINTS are written and progress is known."""
    draft = trainer_config(kind, trainer, folder=folder, seed=seed, fixed=fixed)
    batches, unit = plan(draft)
    per_epoch = max(1, math.ceil(batches / draft.gradient_accumulation_steps))
    total = draft.max_steps if draft.max_steps > 0 else math.ceil(draft.num_train_epochs * per_epoch)
    save_steps = trainer.get("save_steps", max(1, total // NUM_CHECKPOINTS // unit) * unit)
    if not isinstance(save_steps, int) or save_steps < 1 or save_steps % unit:
        remedy = (
            f"give a multiple of {unit}: a checkpoint between two uses of the same rollouts does not resume exactly"
        )
        raise InputError(f"trainer: save_steps is {save_steps!r}", remedy=remedy)
    planned = {"logging_steps": max(1, total // 100), **_DEFAULTS[kind], **trainer}
    planned |= {"max_steps": total, "save_steps": save_steps}
    return trainer_config(kind, planned, folder=folder, seed=seed, fixed=fixed)


def rows_plan(arguments: Any, *, num_rows: int) -> Plan:
    """Rows that are each used once an epoch."""
    return Plan(math.ceil(num_rows / (arguments.per_device_train_batch_size * arguments.world_size)))


def length_limit(trainer: Mapping[str, object], *, context: int) -> int:
    """Tokens of the longest row that is trained on: `max_length` of the trainer, at most the model's context."""
    value = trainer.get("max_length")
    if value is None:
        return context
    if not isinstance(value, int) or value < 2:
        raise InputError(f"trainer: max_length is {value!r}", remedy="give a number of tokens")
    return min(value, context)


def lora_config(lora: Lora | None, *, head: str | None = None) -> Any:
    """peft's configuration of the adapters, or None; `head` is a module that is trained whole beside them."""
    if lora is None:
        return None
    from peft import LoraConfig, TaskType

    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        modules_to_save=None if head is None else [head],
        task_type=TaskType.CAUSAL_LM if head is None else TaskType.SEQ_CLS,
    )


def validate_trainers(recipe: Recipe) -> None:
    """Build the TRL configuration of every stage that trains, look for vLLM, read the file of `launch.accelerate`.

    Raises InputError that carries all their errors.
    """
    errors: list[InputError] = []
    sections: dict[str, tuple[Kind, Mapping[str, Any], Mapping[str, object]]] = {}
    if recipe.supervised:
        sections["supervised"] = ("sft", recipe.supervised.trainer, {})
    if recipe.preference:
        sections["preference"] = ("reward", recipe.preference.trainer, {})
    if recipe.reinforcement:
        policy = recipe.reinforcement
        sections["reinforcement"] = (policy.algorithm.kind, policy.trainer, algorithm_settings(policy))
    for name, (kind, trainer, fixed) in sections.items():
        try:
            trainer_config(
                kind,
                of_all_processes(trainer, recipe.launch),
                folder=Path("runs") / recipe.name / "checkpoints",
                seed=recipe.seed,
                fixed=fixed,
            )
            length_limit(trainer, context=2**30)
            _check_vllm(trainer)
        except InputError as error:
            errors += [InputError(f"{name}.{line}") for line in str(error).splitlines()]
    try:
        if recipe.launch:
            check_launch(recipe.launch)
    except InputError as error:
        errors.append(error)
    if errors:
        raise InputError.all_of(errors)


def _check_vllm(trainer: Mapping[str, object]) -> None:
    if trainer.get("use_vllm"):
        from trl.import_utils import is_vllm_available

        if not is_vllm_available():
            raise InputError("trainer: use_vllm, but vLLM is not installed", remedy="pip install 'solon[vllm]'")


def algorithm_settings(config: Reinforcement) -> dict[str, object]:
    """The settings of GRPOConfig, RLOOConfig or DPOConfig that the recipe's `reinforcement` section gives by name."""
    if config.algorithm.kind == "dpo":
        return {"beta": config.algorithm.beta}
    ours = {"kind", "gae_lambda", "value_clip", "value_warmup"}
    return {**config.algorithm.model_dump(exclude=ours), "max_completion_length": config.max_new_tokens}
