"""The preference model: one number per dialogue, trained on soft labels (arXiv:2212.08073, 4.1; 2204.05862, A.2).

`preference model` = TRL's reward model: `AutoModelForSequenceClassification` with one label, read on the token that
ends the reply, saved as safetensors. Its scores have no absolute zero, so each model comes with the mean and spread of
its scores on held-out replies (solon.json), and `score` gives

    score = (raw - mean) / std        P(a is better than b) = sigmoid(raw_a - raw_b) = sigmoid(std (score_a - score_b))

    result = train_preference(rows, model="runs/first/02-sl-cai/model", stage=stage, config=recipe.preference)
    result.accuracy["all"].value                        # share of decisive held-out pairs ranked as labelled
    PreferenceModel.load(result.model).score([(prompt, "I cannot help with that, because ...")])

Differences from the paper: 1. no preference-model pretraining; 2. scores are divided by their spread too, not only
centred, so that the weight of the KL in reinforcement means the same for every preference model.
"""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast

from solon.artifact import StageFolder, content_id, derive_seed, file_hash, read_json, write_json
from solon.config import Preference, outcome_settings
from solon.dialogue import Message, reply
from solon.errors import InputError
from solon.stats import Interval, proportion_interval, reliability, sigmoid
from solon.training import (
    Model,
    RunContext,
    Tokenizer,
    context_length,
    encode_dialogue,
    length_limit,
    load_sequence_classifier,
    load_tokenizer,
    lora_config,
    quiet,
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

TOKENS_PER_BATCH = 16_384
"""Tokens, padding included, that are scored side by side."""
SCALE_FILE = "solon.json"


# ---- types


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two replies to one prompt, and the probability that the first is the better one."""

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    probability: float
    """That `chosen` is better, in [0, 1]; 0.5 is a tie."""
    source: str = "ai"
    """Whose judgement: "ai", "helpful", or the file's name."""
    weight: float = 1.0
    """Of the pair in the loss, relative to the others."""

    def swapped(self) -> Pair:
        """The same judgement told from the other side."""
        return Pair(
            id=self.id,
            prompt=self.prompt,
            chosen=self.rejected,
            rejected=self.chosen,
            probability=1 - self.probability,
            source=self.source,
            weight=self.weight,
        )

    @property
    def group(self) -> str:
        """Identity of the prompt: pairs on one prompt are held out together."""
        return content_id([[turn["role"], turn["content"]] for turn in self.prompt])


class Split(NamedTuple):
    """Pairs to train on and pairs to measure on; no prompt is in both."""

    train: list[Pair]
    held_out: list[Pair]


class EncodedPair(NamedTuple):
    """A pair and the token ids of its two dialogues."""

    pair: Pair
    chosen_ids: list[int]
    rejected_ids: list[int]


class Scale(NamedTuple):
    """Raw scores of a model on held-out replies: what `PreferenceModel.score` subtracts and divides by."""

    mean: float
    std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How the preference model does on pairs that it has not seen."""

    accuracy: Mapping[str, Interval]
    """By source, and "all": share of the decisive pairs (probability not 0.5) whose better reply scores higher."""
    shorter: Interval | None
    """The baseline "the shorter reply is better" on the same pairs, None where none is decisive. Equal is wrong."""
    longer: Interval | None
    calibration_error: float | None
    """Expected calibration error of sigmoid(raw_a - raw_b) against the labels, in [0, 1]; None without pairs."""
    absolute_error: float | None
    """Mean distance of that probability from the label, in [0, 1]."""
    num_ties: int
    """Held-out pairs with probability 0.5: in the calibration, not in the accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceResult:
    """What `train_preference` made and measured."""

    model: Path
    counts: Mapping[str, int]
    measured: Measured

    @property
    def accuracy(self) -> Mapping[str, Interval]:
        return self.measured.accuracy


# ---- pure functions


def pair_of(row: Mapping[str, Any], *, source: str = "ai") -> Pair:
    """The pair in a row of comparisons.jsonl or of human comparisons, turned so that its probability is at least 0.5.

    Without `probability` the label is hard: `chosen` was chosen. Raises InputError for a probability outside [0, 1].
    """
    probability = float(row.get("probability", 1.0))
    if not 0 <= probability <= 1:
        raise InputError(f"comparison {row['id']}: the probability is {probability}", remedy="it lies in [0, 1]")
    pair = Pair(
        id=row["id"],
        prompt=tuple(row["prompt"]),
        chosen=row["chosen"][-1]["content"],
        rejected=row["rejected"][-1]["content"],
        probability=probability,
        source=row.get("source", source),
        weight=float(row.get("weight", 1.0)),
    )
    return pair if probability >= 0.5 else pair.swapped()


def split_by_prompt(pairs: Sequence[Pair], *, share: float, seed: int) -> Split:
    """Hold out the pairs of `share` of the prompts of each source, drawn with `seed`; no prompt is in both parts.

    At least one prompt is held out, and at least one is kept, where there are two.
    """
    groups: dict[str, str] = {}
    for pair in pairs:
        groups.setdefault(pair.group, pair.source)
    held_out: set[str] = set()
    for source in dict.fromkeys(groups.values()):
        own = sorted((g for g, s in groups.items() if s == source), key=lambda g: derive_seed(seed, "holdout", g))
        held_out.update(own[: max(1, min(len(own) - 1, round(share * len(own))))] if len(own) > 1 else [])
    return Split([p for p in pairs if p.group not in held_out], [p for p in pairs if p.group in held_out])


def label_of(pair: Pair, *, labels: Literal["soft", "hard"]) -> float:
    """The target: the probability itself, or 1, 0 or (for a tie) 0.5."""
    if labels == "soft" or pair.probability == 0.5:
        return pair.probability
    return float(pair.probability > 0.5)


def measure(pairs: Sequence[Pair], *, leads: Sequence[float]) -> Measured:
    """Accuracy, baselines and calibration of raw leads r(chosen) - r(rejected) on held-out pairs; a lead of 0 is wrong.

    For the calibration every pair counts from both sides, because which reply is called `chosen` depends on the label.
    """
    decisive = [(pair, lead) for pair, lead in zip(pairs, leads, strict=True) if pair.probability != 0.5]
    right: dict[str, list[bool]] = defaultdict(list)
    for pair, lead in decisive:
        correct = (lead > 0) if pair.probability > 0.5 else (lead < 0)
        right["all"].append(correct)
        right[pair.source].append(correct)
    shorter = [_is_shorter(pair if pair.probability > 0.5 else pair.swapped()) for pair, _ in decisive]
    longer = [_is_shorter(pair.swapped() if pair.probability > 0.5 else pair) for pair, _ in decisive]
    predicted = [float(p) for lead in leads for p in (sigmoid(lead), sigmoid(-lead))]
    labels = [p for pair in pairs for p in (pair.probability, 1 - pair.probability)]
    gaps = [abs(a - b) for a, b in zip(predicted, labels, strict=True)]
    return Measured(
        accuracy={source: _share(values) for source, values in right.items()},
        shorter=_share(shorter) if shorter else None,
        longer=_share(longer) if longer else None,
        calibration_error=reliability(predicted, outcomes=labels).error if pairs else None,
        absolute_error=sum(gaps) / len(gaps) if gaps else None,
        num_ties=len(pairs) - len(decisive),
    )


def _is_shorter(pair: Pair) -> bool:
    return len(pair.chosen) < len(pair.rejected)


def _share(values: Sequence[bool]) -> Interval:
    return proportion_interval(sum(values), n=len(values))


# ---- the model


class PreferenceModel:
    """A trained preference model: higher is better; on its held-out replies scores have mean 0 and spread 1."""

    def __init__(self, model: Model, tokenizer: Tokenizer, scale: Scale) -> None:
        self.scale = scale
        self._model, self._tokenizer = model.eval(), tokenizer
        self._context = context_length(model.config)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Self:
        """From the folder that `train_preference` wrote, or any sequence classifier with one label (scale 0, 1).

        Scores are computed in float32: in bfloat16 close ones fall together. `device` "auto": cuda where there is one.
        """
        import torch

        with quiet():
            tokenizer = load_tokenizer(path)
            model = load_sequence_classifier(path, tokenizer=tokenizer)
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        scale_file = resolve_model(path) / SCALE_FILE
        scale = Scale(**read_json(scale_file)["scale"]) if scale_file.is_file() else Scale(0.0, 1.0)
        return cls(model.to(where), tokenizer, scale)

    def score(self, dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """The score of each (prompt, response). Raises InputError for a dialogue beyond the model's context."""
        return [(raw - self.scale.mean) / self.scale.std for raw in self.raw_score(dialogues)]

    def raw_score(self, dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """The model's own output: differences are log-odds of being the better reply."""
        return self.raw_score_ids([encode_dialogue(self._tokenizer, p, reply(text)).ids for p, text in dialogues])

    def raw_score_ids(self, ids: Sequence[Sequence[int]]) -> list[float]:
        """`raw_score` of encoded dialogues, the longest first, in batches of at most TOKENS_PER_BATCH tokens."""
        import torch

        if over := max((len(one) for one in ids if len(one) > self._context), default=0):
            raise InputError(
                f"a dialogue of {over} tokens", remedy=f"the preference model reads at most {self._context}"
            )
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        scores = [0.0] * len(ids)
        while order:
            size = max(1, TOKENS_PER_BATCH // len(ids[order[0]]))
            batch, order = order[:size], order[size:]
            rows = [torch.tensor(ids[i]) for i in batch]
            padded = torch.nn.utils.rnn.pad_sequence(
                rows, batch_first=True, padding_value=float(self._tokenizer.pad_token_id)
            )
            lengths = torch.tensor([len(row) for row in rows])
            mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
            device = self._model.device
            with torch.inference_mode():
                logits = self._model(
                    input_ids=padded.to(device), attention_mask=mask.to(device), use_cache=False
                ).logits
            for i, value in zip(batch, logits[:, 0].float().tolist(), strict=True):
                scores[i] = value
        return scores


# ---- the loop


def train_preference(
    rows: Sequence[Mapping[str, Any]],
    *,
    model: str | Path,
    stage: StageFolder,
    config: Preference,
    run: RunContext | None = None,
) -> PreferenceResult:
    """Train a preference model from `model` on comparisons {id, prompt, chosen, rejected}.

    Further columns: `probability` (without it the label is hard), `source`, `weight`. Runs through `stage`: a finished
    stage is not trained again, a killed one goes on from its last checkpoint. Pairs that do not fit into
    `trainer.max_length` or the model's context are failures with the reason "context-length". A share of
    `config.holdout` of the prompts is kept for measuring. Raises InputError if no pair is left to train on.
    """
    run = run or RunContext()
    settings = {**outcome_settings(config), "seed": run.seed}
    inputs = {"model": file_hash(resolve_model(model)), "rows": content_id(list(rows))}
    if stage.begin(config=settings, inputs=inputs, again=run.again):
        with quiet():
            _train(rows, model=model, stage=stage, config=config, run=run)
    about = read_json(stage.path / "model" / SCALE_FILE)
    return PreferenceResult(
        model=stage.path / "model", counts=about["counts"], measured=_measured_of(about["measured"])
    )


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
    start = load(model)
    limit = length_limit(config.trainer, context=context_length(start.config))
    split = split_by_prompt([pair_of(row) for row in rows], share=config.holdout, seed=run.seed)
    train, held_out = (_encode(pairs, tokenizer=tokenizer, limit=limit, stage=stage) for pairs in split)
    if not train:
        raise InputError(f"none of {len(rows)} comparisons can be trained on", remedy=f"{limit} tokens is the limit")
    counts = {"rows": len(rows), "trained_pairs": len(train), "held_out_pairs": len(held_out)}
    counts["over_long"] = len(rows) - len(train) - len(held_out)
    final = stage.path / "model"
    if not final.exists():
        trainer = _trainer(train, start=start, tokenizer=tokenizer, folder=stage.path, config=config, seed=run.seed)
        checkpoint = run_trainer(trainer, stage=stage, progress=run.progress, what="preference model")
        with whole_folder(final) as folder:
            save_model(checkpoint, base=model, load=load, to=folder, tokenizer=tokenizer)
            trained = PreferenceModel.load(folder)
            measured = measure([one.pair for one in held_out], leads=_leads(trained, held_out))
            scale = _scale_of(trained, held_out or train)
            write_json(folder / SCALE_FILE, {"scale": scale._asdict(), "counts": counts, "measured": asdict(measured)})
            write_card(folder, title="Preference model", facts={"base model": model, **run.facts, **counts})
    shutil.rmtree(stage.path / "checkpoints", ignore_errors=True)
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


def _trainer(
    pairs: Sequence[EncodedPair],
    *,
    start: Model,
    tokenizer: Tokenizer,
    folder: Path,
    config: Preference,
    seed: int,
) -> Trainer:
    from datasets import Dataset

    from solon.training.trainers import PreferenceCollator, SoftRewardTrainer

    mean_weight = sum(one.pair.weight for one in pairs) / len(pairs)
    examples = [
        {
            "chosen_ids": one.chosen_ids,
            "rejected_ids": one.rejected_ids,
            "p": label_of(one.pair, labels=config.labels),
            "weight": one.pair.weight / mean_weight,
            "source": one.pair.source,
        }
        for one in pairs
    ]
    arguments = scheduled_config(
        "reward",
        config.trainer,
        folder=folder / "checkpoints",
        seed=derive_seed(seed, "preference"),
        plan=partial(rows_plan, num_rows=len(examples)),
    )
    sources = sorted({one.pair.source for one in pairs})
    trainer = SoftRewardTrainer(
        model=start,
        args=cast(Any, arguments),
        data_collator=PreferenceCollator(tokenizer.pad_token_id, sources=sources),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=lora_config(config.lora, head="score"),
    )
    trainer.source_names = sources
    return trainer


def _leads(model: PreferenceModel, pairs: Sequence[EncodedPair]) -> list[float]:
    scores = model.raw_score_ids([ids for one in pairs for ids in (one.chosen_ids, one.rejected_ids)])
    return [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]


def _scale_of(model: PreferenceModel, pairs: Sequence[EncodedPair]) -> Scale:
    """Mean and standard deviation of the raw scores of all replies; a spread below 1e-6 counts as 1."""
    scores = model.raw_score_ids([ids for one in pairs for ids in (one.chosen_ids, one.rejected_ids)])
    spread = pstdev(scores)
    return Scale(fmean(scores), spread if spread > 1e-6 else 1.0)


def _measured_of(about: Mapping[str, Any]) -> Measured:
    """The inverse of `asdict`."""
    return Measured(
        accuracy={source: Interval(**value) for source, value in about["accuracy"].items()},
        shorter=about["shorter"] and Interval(**about["shorter"]),
        longer=about["longer"] and Interval(**about["longer"]),
        calibration_error=about["calibration_error"],
        absolute_error=about["absolute_error"],
        num_ties=about["num_ties"],
    )
