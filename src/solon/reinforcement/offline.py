"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) on the labels of AI feedback.

The policy is its own preference model: the log-odds that answer a is better than b are

    d = beta ((log pi(a|x) - log pi_0(a|x)) - (log pi(b|x) - log pi_0(b|x)))

with SL-CAI as pi_0 (equation 7 there), and the loss is the cross-entropy of sigmoid(d) with the label: for p = 1 the
paper's, for a soft label the same loss with a soft target, least where d = logit(p).
"""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from solon.artifact import StageFolder, content_id, derive_seed, file_hash
from solon.config import DPO, Reinforcement, outcome_settings
from solon.dialogue import reply
from solon.errors import InputError
from solon.preference.pairs import Pair, check_sources, label_of, loss_weights, margin_of, pair_of
from solon.training import (
    CHECKPOINTS,
    RunContext,
    Tokenizer,
    Trained,
    algorithm_settings,
    context_length_of,
    encode_dialogue,
    length_limit,
    load_causal_lm,
    load_tokenizer,
    lora_config,
    quiet,
    resolve_model,
    rows_plan,
    run_trainer,
    save_model,
    scheduled_config,
    start_folder,
    whole_folder,
    write_card,
)

if TYPE_CHECKING:
    from solon.training.trainers import SoftDPOTrainer


def train_dpo(
    rows: Sequence[Mapping[str, Any]],
    *,
    model: str | Path,
    stage: StageFolder,
    config: Reinforcement,
    run: RunContext | None = None,
) -> Trained:
    """Train the policy from the folder `model`, which is the reference too, on comparisons {id, prompt, chosen,
    rejected}.

    Further columns: `probability` (without it the label is hard), `source`, `weight`. Runs through `stage`: a finished
    stage is not trained again, a killed one goes on from its last checkpoint. Pairs that do not fit into
    `trainer.max_length` or the model's context are failures with the reason "context-length". Raises InputError if no
    pair is left, and for sources that `algorithm.source_weights` does not name.
    """
    run = run or RunContext()
    inputs = {"model": file_hash(resolve_model(model)), "rows": content_id(list(rows))}
    if stage.begin(config={**outcome_settings(config), **run.settings}, inputs=inputs, again=run.again):
        with quiet():
            counts = _train(rows, model=model, stage=stage, config=config, run=run)
        stage.finish(counts=counts)
    return Trained(model=stage.path / "model", counts=stage.manifest()["counts"])


def _train(
    rows: Sequence[Mapping[str, Any]], *, model: str | Path, stage: StageFolder, config: Reinforcement, run: RunContext
) -> dict[str, int]:
    assert isinstance(config.algorithm, DPO)
    tokenizer = load_tokenizer(model)
    limit = length_limit(config.trainer, context=context_length_of(model))
    pairs = [pair_of(row) for row in rows]
    check_sources(pairs, source_weights=config.algorithm.source_weights)
    usable = _encode(pairs, tokenizer=tokenizer, limit=limit, stage=stage)
    counts = {"rows": len(rows), "trained_pairs": len(usable), "over_long": len(rows) - len(usable)}
    if not usable:
        raise InputError(f"none of {len(rows)} comparisons can be trained on", remedy=f"{limit} tokens is the limit")
    if not (stage.path / "model").exists():
        start = start_folder(model, tokenizer=tokenizer, folder=stage.path)
        make = partial(
            _trainer, usable, start=start, tokenizer=tokenizer, folder=stage.path, config=config, seed=run.seed
        )
        checkpoint = run_trainer(make, stage=stage, run=run, what="reinforcement")
        with whole_folder(stage.path / "model") as folder:
            load = partial(load_causal_lm, tokenizer=tokenizer)
            save_model(checkpoint, base=start, load=load, to=folder, tokenizer=tokenizer)
            write_card(folder, title="RL-CAI (DPO)", facts={"base model": model, **run.facts, **counts})
    for leftover in (CHECKPOINTS, "start"):
        shutil.rmtree(stage.path / leftover, ignore_errors=True)
    return counts


def _encode(
    pairs: Sequence[Pair], *, tokenizer: Tokenizer, limit: int, stage: StageFolder
) -> list[tuple[Pair, dict[str, list[int]]]]:
    """The pairs that fit, with the token ids of what the answers share and of each; the others are failures."""
    encoded: list[tuple[Pair, dict[str, list[int]]]] = []
    for pair in pairs:
        chosen, rejected = (
            encode_dialogue(tokenizer, pair.prompt, reply(text)) for text in (pair.chosen, pair.rejected)
        )
        if (num_tokens := max(len(chosen.ids), len(rejected.ids))) > limit:
            text = f"{num_tokens} tokens, at most {limit}"
            stage.fail(id=pair.id, where="comparison", reason="context-length", text=text)
            continue
        start = min(chosen.start, rejected.start)
        ids = {"prompt_ids": chosen.ids[:start], "chosen_ids": chosen.ids[start:], "rejected_ids": rejected.ids[start:]}
        encoded.append((pair, ids))
    return encoded


@contextmanager
def _trainer(
    pairs: Sequence[tuple[Pair, Mapping[str, list[int]]]],
    *,
    start: Path,
    tokenizer: Tokenizer,
    folder: Path,
    config: Reinforcement,
    seed: int,
) -> Generator[SoftDPOTrainer]:
    from accelerate import PartialState
    from datasets import Dataset

    from solon.training.trainers import DirectCollator, SoftDPOTrainer

    algorithm = cast(DPO, config.algorithm)
    weights = loss_weights([pair for pair, _ in pairs], source_weights=algorithm.source_weights)
    examples = [
        {
            **ids,
            "p": label_of(pair, labels=algorithm.labels, seed=seed),
            "margin": margin_of(pair, labels=algorithm.labels),
            "weight": weight,
        }
        for (pair, ids), weight in zip(pairs, weights, strict=True)
    ]
    arguments = scheduled_config(
        "dpo",
        config.trainer,
        folder=folder / CHECKPOINTS,
        seed=derive_seed(seed, "reinforcement"),
        fixed=algorithm_settings(config),
        plan=partial(rows_plan, num_rows=len(examples)),
    )
    # From a file, beside which TRL lets all processes find the log-probabilities of the reference.
    rows = folder / CHECKPOINTS / "rows"
    if PartialState().is_main_process:
        shutil.rmtree(rows, ignore_errors=True)
        Dataset.from_list(examples).save_to_disk(rows)
    PartialState().wait_for_everyone()
    yield SoftDPOTrainer(
        model=str(start),
        args=cast(Any, arguments),
        data_collator=DirectCollator(tokenizer.pad_token_id),
        train_dataset=Dataset.load_from_disk(rows),
        processing_class=tokenizer,
        peft_config=lora_config(config.lora),
    )
