"""The arithmetic of the local engine: the rows of a model that are decoded side by side, and sampling.

    rows = rows_for(model)
    rows.admit([[5, 7, 8]])
    draw(rows.step([8]), ...)      # the token that follows 5 7 8

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from solon.engine.slots import Slots, compacted

_numpy = cast(Any, torch).from_numpy


class Rows(Protocol):
    """Sequences that are decoded side by side."""

    model: Any
    """What is run; another of the same shape may be put in its place while there is no row."""

    def admit(self, prompts: Sequence[Sequence[int]], chains: Sequence[str | None] = ()) -> None:
        """Append rows; the last token of each prompt is not read yet: it is the row's first token of `step`. `chains`
        are the names under which what the rows hold may be kept for the next request of the same chain."""
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to every row; logits_BV (float32) of the token that follows."""
        ...

    def compact(self, alive: Sequence[bool]) -> list[int]:
        """Free the rows that are not alive; the old number of each row that stays, in the new order."""
        ...


class OneByOne:
    """Rows of any other model (recurrent states, sliding windows, positions by mask), each with its own cache."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.caches: list[Any] = []

    def admit(self, prompts: Sequence[Sequence[int]], chains: Sequence[str | None] = ()) -> None:
        for prompt in prompts:
            cache = None
            if len(prompt) > 1:
                ids = torch.tensor([prompt[:-1]], device=self.model.device)
                cache = self.model(input_ids=ids, use_cache=True).past_key_values
            self.caches.append(cache if cache is not None else DynamicCache(config=self.model.config))

    def step(self, tokens: Sequence[int]) -> Tensor:
        logits: list[Tensor] = []
        for row, token in enumerate(tokens):
            ids = torch.tensor([[token]], device=self.model.device)
            out = self.model(input_ids=ids, past_key_values=self.caches[row], use_cache=True)
            self.caches[row] = out.past_key_values
            logits.append(out.logits[0, -1].float())
        return torch.stack(logits)

    def compact(self, alive: Sequence[bool]) -> list[int]:
        order = compacted(alive)
        self.caches = [self.caches[row] for row in order]
        return order


@torch.inference_mode()
def rows_for(model: Any, *, share: bool = True) -> Rows:
    """`Slots` where a trial shows that they give the model's own logits, else `OneByOne`; where only the attention over
    shared beginnings is not the model's own, `Slots` that share nothing, as without `share`.

    The trial: prompts of different lengths with a common beginning, decoded three tokens, one of them going on with
    what its chain kept, against plain forward passes. Models with windows or layers without full attention are not
    tried: a short trial would not show the difference.
    """
    config = model.config.get_text_config(decoder=True).to_dict()
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    kinds = set(config.get("layer_types") or ["full_attention"])
    parameters = signature(model.forward).parameters
    if (
        window
        or kinds != {"full_attention"}
        or not {"position_ids", "past_key_values", "logits_to_keep"} <= set(parameters)
    ):
        return OneByOne(model)
    for shares in (True, False) if share else (False,):
        for record in (True, False) if model.device.type == "cuda" else (False,):
            if _agrees(model, least_rows=2 if shares else 0, record=record):
                return Slots(model, record=record) if shares else Slots(model, least_rows=0, record=record)
    return OneByOne(model)


def _agrees(model: Any, *, least_rows: int, record: bool) -> bool:
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    texts = [[(3 * column + row * (column > 2)) % vocabulary for column in range(6 + 3 * row)] for row in range(3)]
    names = [str(row) for row in range(3)]
    try:
        slots = Slots(model, least_tokens=3, least_rows=least_rows, record=record)
        slots.admit([texts[2][:-3]], names[2:])
        slots.step([texts[2][-4]])
        slots.compact([False])
        slots.admit([text[:-2] for text in texts], names)
        slots.step([text[-3] for text in texts])
        slots.step([text[-2] for text in texts])
        seen_BV = slots.step([text[-1] for text in texts])
        right_BV = torch.stack(
            [model(input_ids=torch.tensor([text], device=model.device)).logits[0, -1] for text in texts]
        )
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return False
    allowed = (1e-4 if model.dtype == torch.float32 else 0.05) * float(right_BV.float().abs().max().clamp(min=1.0))
    return float((seen_BV - right_BV.float()).abs().max()) <= allowed


# ---- sampling


def draw(logits_BV: Tensor, *, temperature_B: np.ndarray, top_p_B: np.ndarray, uniform_B: np.ndarray) -> list[int]:
    """A token per row by the inverse of the distribution function; temperature 0 takes the greatest logit.

    top_p keeps the smallest set of likeliest tokens whose mass reaches it, always the likeliest one.
    """
    greedy = temperature_B == 0
    if greedy.all():
        return _greatest(logits_BV)
    device = logits_BV.device
    scale_B1 = _numpy(np.where(greedy, 1.0, temperature_B).astype(np.float32)).to(device)[:, None]
    p_BV = (logits_BV / scale_B1).softmax(dim=-1)
    if (top_p_B < 1).any():
        sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True, stable=True)
        before_BV = sorted_BV.double().cumsum(dim=-1) - sorted_BV
        limit_B1 = _numpy(np.where(top_p_B < 1, top_p_B, 2.0)).to(device)[:, None]
        p_BV = torch.zeros_like(p_BV).scatter(1, order_BV, sorted_BV * (before_BV < limit_B1))
    cdf_BV = p_BV.double().cumsum(dim=-1)
    target_B1 = _numpy(uniform_B).to(device)[:, None] * cdf_BV[:, -1:]
    drawn_B = torch.searchsorted(cdf_BV, target_B1, right=True).squeeze(1).clamp(max=p_BV.shape[1] - 1)
    if greedy.any():
        drawn_B = torch.where(_numpy(greedy).to(device), torch.tensor(_greatest(logits_BV), device=device), drawn_B)
    return _ints(drawn_B)


def _greatest(logits_BV: Tensor) -> list[int]:
    """The first greatest logit of each row; on a CPU numpy finds it several times faster."""
    if logits_BV.device.type == "cpu":
        return _ints(_numpy(logits_BV.numpy().argmax(axis=-1)))
    return _ints(logits_BV.argmax(dim=-1))


def _ints(values: Tensor) -> list[int]:
    return cast(Any, values).tolist()
