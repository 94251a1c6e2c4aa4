"""Training a preference model through a stage folder, with TRL's RewardTrainer."""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from solon.artifact import StageFolder, content_id, derive_seed, file_hash, read_json, write_json, write_rows
from solon.config import Preference, outcome_settings
from solon.dialogue import reply
from solon.errors import InputError
from solon.preference.measures import Measured, measure, measured_of
from solon.preference.model import SCALE_FILE, PreferenceModel, Scale
from solon.preference.pairs import Pair, check_sources, label_of, loss_weights, margin_of, pair_of, split_by_prompt
from solon.stats import Interval
from solon.training import (
    CHECKPOINTS,
    Model,
    RunContext,
    Tokenizer,
    context_length_of,
    encode_dialogue,
    length_limit,
    load_sequence_classifier,
    load_tokenizer,
    lora_config,
    quiet,
    require_padding,
    resolve_model,
    rows_plan,
    run_trainer,
    save_model,
    scheduled_config,
    whole_folder,
    write_card,
)

if TYPE_CHECKING:
    from transformers import Trainer


class EncodedPair(NamedTuple):
    """A pair and the token ids of its two dialogues."""

    pair: Pair
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceResult:
    """What `train_preference` made and measured."""

    model: Path
    counts: Mapping[str, int]
    measured: Measured

    @property
    def accuracy(self) -> Mapping[str, Interval]:
        return self.measured.accuracy


def train_preference(
    rows: Sequence[Mapping[str, Any]],
    *,
    model: str | Path,
    stage: StageFolder,
    config: Preference,
    run: RunContext | None = None,
) -> PreferenceResult:
    """Train a preference model from `model` on comparisons {id, prompt, chosen, rejected}.

    Further columns: `probability` (without it the label is hard), `source`, `weight`, and `group`: comparisons that
    share it are held out together, as those that share a prompt always are. Runs through `stage`: a finished stage is
    not trained again, a killed one goes on from its last checkpoint. Pairs that do not fit into `trainer.max_length` or
    the model's context are failures with the reason "context-length". A share of `config.holdout` of the prompts is
    kept for measuring, against the probabilities whatever `config.labels` is. Raises InputError if no pair is left to
    train on, for sources that `config.source_weights` does not name, and for a padding token that ends replies.
    """
    run = run or RunContext()
    settings = {**outcome_settings(config), **run.settings}
    inputs = {"model": file_hash(resolve_model(model)), "rows": content_id(list(rows))}
    if stage.begin(config=settings, inputs=inputs, again=run.again):
        with quiet():
            _train(rows, model=model, stage=stage, config=config, run=run)
    about = read_json(stage.path / "model" / SCALE_FILE)
    return PreferenceResult(model=stage.path / "model", counts=about["counts"], measured=measured_of(about["measured"]))


def _train(
    rows: Sequence[Mapping[str, Any]],
    *,
    model: str | Path,
    stage: StageFolder,
    config: Preference,
    run: RunContext,
) -> None:
    tokenizer = load_tokenizer(model)
    load = partial(load_sequence_classifier, tokenizer=tokenizer, seed=derive_seed(run.seed, "head") % 2**32)
    limit = length_limit(config.trainer, context=context_length_of(model))
    pairs = [pair_of(row) for row in rows]
    check_sources(pairs, source_weights=config.source_weights)
    split = split_by_prompt(pairs, share=config.holdout, seed=run.seed)
    train, held_out = (_encode(pairs, tokenizer=tokenizer, limit=limit, stage=stage) for pairs in split)
    if not train:
        raise InputError(f"none of {len(rows)} comparisons can be trained on", remedy=f"{limit} tokens is the limit")
    counts = {"rows": len(rows), "trained_pairs": len(train), "held_out_pairs": len(held_out)}
    counts["over_long"] = len(rows) - len(train) - len(held_out)
    final = stage.path / "model"
    if not final.exists():
        make = partial(
            _trainer,
            train,
            start=partial(load, model),
            tokenizer=tokenizer,
            folder=stage.path,
            config=config,
            seed=run.seed,
        )
        checkpoint = run_trainer(make, stage=stage, run=run, what="preference model")
        with whole_folder(final) as folder:
            save_model(checkpoint, base=model, load=load, to=folder, tokenizer=tokenizer)
            scores = _scores(PreferenceModel.load(folder), held_out or train)
            leads = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
            measured = measure([one.pair for one in held_out], leads=leads if held_out else [])
            scale = _scale_of(scores, temperature=measured.temperature)
            write_rows(stage.path / "held-out.jsonl", _held_out_rows(held_out, scores=scores, scale=scale))
            write_json(folder / SCALE_FILE, {"scale": scale._asdict(), "counts": counts, "measured": asdict(measured)})
            write_card(folder, title="Preference model", facts={"base model": model, **run.facts, **counts})
    shutil.rmtree(stage.path / CHECKPOINTS, ignore_errors=True)
    about = read_json(final / SCALE_FILE)
    stage.finish(counts=counts, measured=about["measured"], scale=about["scale"])


def _encode(pairs: Sequence[Pair], *, tokenizer: Tokenizer, limit: int, stage: StageFolder) -> list[EncodedPair]:
    encoded: list[EncodedPair] = []
    for pair in pairs:
        chosen, rejected = (
            encode_dialogue(tokenizer, pair.prompt, reply(text)).ids for text in (pair.chosen, pair.rejected)
        )
        if (num_tokens := max(len(chosen), len(rejected))) > limit:
            text = f"{num_tokens} tokens, at most {limit}"
            stage.fail(id=pair.id, where="preference", reason="context-length", text=text)
        else:
            encoded.append(EncodedPair(pair, chosen, rejected))
    return encoded


@contextmanager
def _trainer(
    pairs: Sequence[EncodedPair],
    *,
    start: Callable[[], Model],
    tokenizer: Tokenizer,
    folder: Path,
    config: Preference,
    seed: int,
) -> Generator[Trainer]:
    from datasets import Dataset

    from solon.training.trainers import PreferenceCollator, SoftRewardTrainer

    weights = loss_weights([one.pair for one in pairs], source_weights=config.source_weights)
    examples = [
        {
            "chosen_ids": one.chosen_ids,
            "rejected_ids": one.rejected_ids,
            "p": label_of(one.pair, labels=config.labels, seed=seed),
            "margin": margin_of(one.pair, labels=config.labels),
            "weight": weight,
            "source": one.pair.source,
        }
        for one, weight in zip(pairs, weights, strict=True)
    ]
    arguments = scheduled_config(
        "reward",
        config.trainer,
        folder=folder / CHECKPOINTS,
        seed=derive_seed(seed, "preference"),
        plan=partial(rows_plan, num_rows=len(examples)),
    )
    sources = sorted({one.pair.source for one in pairs})
    trainer = SoftRewardTrainer(
        model=start(),
        args=cast(Any, arguments),
        data_collator=PreferenceCollator(tokenizer.pad_token_id, sources=sources),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=lora_config(config.lora, head="score"),
    )
    # TRL writes a padding token of its own choice into the tokenizer and the model's configuration.
    require_padding(tokenizer, cast(Model, trainer.model))
    trainer.source_names = sources
    yield trainer


def _scores(model: PreferenceModel, pairs: Sequence[EncodedPair]) -> list[float]:
    """Raw scores of all replies: chosen, rejected, chosen, ..."""
    return model.raw_score_ids([ids for one in pairs for ids in (one.chosen_ids, one.rejected_ids)])


def _held_out_rows(pairs: Sequence[EncodedPair], *, scores: Sequence[float], scale: Scale) -> list[dict[str, Any]]:
    """Label and scores of every comparison that was held out, the likelier answer first."""
    standard = [round((score - scale.mean) / scale.std, 4) for score in scores]
    return [
        {
            "id": one.pair.id,
            "source": one.pair.source,
            "probability": one.pair.probability,
            "score_chosen": chosen,
            "score_rejected": rejected,
        }
        for one, chosen, rejected in zip(pairs, standard[::2], standard[1::2], strict=False)
    ]


def _scale_of(scores: Sequence[float], *, temperature: float) -> Scale:
    """Mean and standard deviation of raw scores; a spread below 1e-6 counts as 1."""
    spread = pstdev(scores)
    return Scale(fmean(scores), spread if spread > 1e-6 else 1.0, temperature)
