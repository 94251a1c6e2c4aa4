"""Supervised fine-tuning with TRL's SFTTrainer (arXiv:2212.08073, section 3.2)."""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from solon.artifact import StageFolder, content_id, derive_seed
from solon.config import Supervised
from solon.errors import InputError
from solon.training.models import (
    Model,
    Tokenizer,
    context_length_of,
    encode_dialogue,
    load_causal_lm,
    load_tokenizer,
)
from solon.training.running import (
    CHECKPOINTS,
    RunContext,
    Trained,
    quiet,
    run_trainer,
    save_model,
    whole_folder,
    write_card,
)
from solon.training.settings import length_limit, lora_config, rows_plan, scheduled_config

if TYPE_CHECKING:
    from transformers import Trainer


def sft_examples(
    rows: Sequence[Mapping[str, Any]], *, tokenizer: Tokenizer, limit: int, stage: StageFolder
) -> list[dict[str, list[int]]]:
    """Token ids and labels of rows {prompt, completion}; labels are -100 before the completion.

    A row of more than `limit` tokens is left out and recorded as a failure with the reason "context-length".
    """
    examples: list[dict[str, list[int]]] = []
    for row in rows:
        assert len(row["completion"]) == 1, "a completion is one reply"
        ids, start = encode_dialogue(tokenizer, row["prompt"], row["completion"][0])
        if len(ids) > limit:
            identity = row["id"] if "id" in row else content_id(row)
            stage.fail(
                id=identity, where="fine-tune", reason="context-length", text=f"{len(ids)} tokens, at most {limit}"
            )
        else:
            examples.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return examples


def train_sft(
    rows: Sequence[Mapping[str, Any]],
    *,
    model: str | Path,
    stage: StageFolder,
    config: Supervised,
    run: RunContext | None = None,
) -> Trained:
    """Fine-tune `model` on rows {prompt, completion}; the loss falls on the completion and the token that ends it.

    `stage` has been begun by the caller, who also finishes it; the model is written to its folder `model`, and when
    that is there nothing is trained. Rows that do not fit are failures with the reason "context-length", never cut. As
    in the paper (section 3.2) the learning rate is constant; TRL's other defaults hold unless `config.trainer` says
    otherwise. Raises InputError if no row fits.
    """
    run = run or RunContext()
    with quiet():
        tokenizer = load_tokenizer(model)
        limit = length_limit(config.trainer, context=context_length_of(model))
        examples = sft_examples(rows, tokenizer=tokenizer, limit=limit, stage=stage)
        if not examples:
            raise InputError(
                f"none of {len(rows)} rows fits into {limit} tokens", remedy="use a model with more context"
            )
        counts = {"rows": len(rows), "trained_rows": len(examples), "over_long": len(rows) - len(examples)}
        final = stage.path / "model"
        if not final.exists():
            load = partial(load_causal_lm, tokenizer=tokenizer)
            make = partial(
                _trainer,
                examples,
                start=partial(load, model),
                tokenizer=tokenizer,
                folder=stage.path,
                config=config,
                seed=run.seed,
            )
            checkpoint = run_trainer(make, stage=stage, run=run, what="fine-tuning")
            with whole_folder(final) as folder:
                save_model(checkpoint, base=model, load=load, to=folder, tokenizer=tokenizer)
                write_card(folder, title="SL-CAI", facts={"base model": model, **run.facts, **counts})
        shutil.rmtree(stage.path / CHECKPOINTS, ignore_errors=True)
    return Trained(model=final, counts=counts)


@contextmanager
def _trainer(
    examples: list[dict[str, list[int]]],
    *,
    start: Callable[[], Model],
    tokenizer: Tokenizer,
    folder: Path,
    config: Supervised,
    seed: int,
) -> Generator[Trainer]:
    from datasets import Dataset
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = scheduled_config(
        "sft",
        config.trainer,
        folder=folder / CHECKPOINTS,
        seed=derive_seed(seed, "sft"),
        plan=partial(rows_plan, num_rows=len(examples)),
    )
    yield SFTTrainer(
        model=start(),
        args=cast(Any, arguments),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=lora_config(config.lora),
    )
