"""The little that the trainers share: load, configure TRL, resume, save, a model card; and supervised fine-tuning.

TRL does the training. Around it this package sees to what TRL leaves open: a padding token that is not the end token,
rows that do not fit refused and counted instead of cut, checkpoints that survive kill -9, a finished stage that trains
no further step, a model folder that is whole or not there, and silence.

    if stage.begin(config={...}, inputs={...}):
        trained = train_sft(rows, model="sandbox:base", stage=stage, config=recipe.supervised)
        stage.finish(counts=trained.counts)
"""

from __future__ import annotations

from solon.training.models import (
    TRANSCRIPT_TEMPLATE,
    Encoded,
    Model,
    Tokenizer,
    context_length,
    context_length_of,
    encode_dialogue,
    encode_prompt,
    float32_head,
    load_causal_lm,
    load_sequence_classifier,
    load_tokenizer,
    require_padding,
    resolve_model,
    score_head,
)
from solon.training.running import (
    CHECKPOINTS,
    RunContext,
    Trained,
    drop_rows_after,
    last_checkpoint,
    quiet,
    run_trainer,
    save_model,
    start_folder,
    whole_folder,
    write_card,
)
from solon.training.settings import (
    NUM_CHECKPOINTS,
    Plan,
    algorithm_settings,
    length_limit,
    lora_config,
    of_all_processes,
    rows_plan,
    scheduled_config,
    trainer_config,
    validate_trainers,
)
from solon.training.supervision import sft_examples, train_sft

__all__ = [
    "CHECKPOINTS",
    "NUM_CHECKPOINTS",
    "TRANSCRIPT_TEMPLATE",
    "Encoded",
    "Model",
    "Plan",
    "RunContext",
    "Tokenizer",
    "Trained",
    "algorithm_settings",
    "context_length",
    "context_length_of",
    "drop_rows_after",
    "encode_dialogue",
    "encode_prompt",
    "float32_head",
    "last_checkpoint",
    "length_limit",
    "load_causal_lm",
    "load_sequence_classifier",
    "load_tokenizer",
    "lora_config",
    "of_all_processes",
    "quiet",
    "require_padding",
    "resolve_model",
    "rows_plan",
    "run_trainer",
    "save_model",
    "scheduled_config",
    "score_head",
    "sft_examples",
    "start_folder",
    "train_sft",
    "trainer_config",
    "validate_trainers",
    "whole_folder",
    "write_card",
]
