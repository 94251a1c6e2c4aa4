"""A trained preference model: dialogues in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from solon.artifact import read_json
from solon.dialogue import Message, reply
from solon.errors import InputError
from solon.stats import sigmoid
from solon.training import (
    Model,
    Tokenizer,
    context_length,
    encode_dialogue,
    float32_head,
    load_sequence_classifier,
    load_tokenizer,
    quiet,
    require_padding,
    resolve_model,
)

TOKENS_PER_BATCH = 16_384
"""Tokens, padding included, that are scored side by side."""
SCALE_FILE = "solon.json"
"""Beside the weights: the scale, the counts and what was measured."""


class Scale(NamedTuple):
    """Of a model's raw scores on held-out replies."""

    mean: float
    """What `PreferenceModel.score` subtracts."""
    std: float
    """What it then divides by."""
    temperature: float = 1.0
    """What `PreferenceModel.probability` divides a difference of raw scores by."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From the folder of a preference model; 0, 1, 1 where `train_preference` did not write it."""
        file = resolve_model(path) / SCALE_FILE
        return cls(**read_json(file)["scale"]) if file.is_file() else cls(0.0, 1.0)


class PreferenceModel:
    """A trained preference model: higher is better; on its held-out replies scores have mean 0 and spread 1."""

    def __init__(self, model: Model, tokenizer: Tokenizer, scale: Scale) -> None:
        """Any sequence classifier with one label; its head computes in float32 from now on.

        Raises InputError if the padding token is missing, ends the replies, or is not the one that the model knows.
        """
        require_padding(tokenizer, model)
        self.scale = scale
        self._model, self._tokenizer = float32_head(model).eval(), tokenizer
        self._context = context_length(model.config)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Self:
        """From the folder that `train_preference` wrote, or any sequence classifier with one label (scale 0, 1, 1).

        All weights are read as float32, whatever they were saved as: in bfloat16 close scores fall together. `device`
        "auto": cuda where there is one.
        """
        import torch

        with quiet():
            tokenizer = load_tokenizer(path)
            model = load_sequence_classifier(path, tokenizer=tokenizer)
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        return cls(model.to(where), tokenizer, Scale.load(path))

    def score(self, dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """The score of each (prompt, response). Raises InputError for a dialogue beyond the model's context."""
        return [(raw - self.scale.mean) / self.scale.std for raw in self.raw_score(dialogues)]

    def probability(self, prompt: Sequence[Message], a: str, b: str) -> float:
        """That reply `a` is better than reply `b`, in (0, 1): sigmoid((raw_a - raw_b) / temperature).

        0.5 for equal raw scores; of b and a it is 1 minus this. The temperature was fitted on all held-out comparisons
        (`Measured.temperature`). Raises InputError for a dialogue beyond the model's context.
        """
        first, second = self.raw_score([(prompt, a), (prompt, b)])
        return float(sigmoid((first - second) / self.scale.temperature))

    def raw_score(self, dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """The model's own output, which has no absolute zero: differences are log-odds of being the better reply."""
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
