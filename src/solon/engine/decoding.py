"""The arithmetic of the local engine: rows of keys and values that are filled, stepped and freed; sampling.

Shape suffixes: B rows, T columns (positions), V vocabulary. Every row's tokens stand from column 0 on, so that rows of
any length live side by side, a freed row is filled again while the others go on, and a prompt needs no padding mask:
what stands to the right of a token is never seen by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.integrations import sdpa_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

_library: Any = sdpa_attention
_masks: Any = ALL_MASK_ATTENTION_FUNCTIONS
_numpy = cast(Any, torch).from_numpy

ATTENTION = "solon_slots"
"""Name under which the attention of `Slots` is registered with transformers."""
_PREFILL_TOKENS = 8192
"""Tokens of one forward pass over prompts, padding included; bounds the memory of its activations."""
_COLUMNS = 64
"""The columns of the key and value store grow by this many."""


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, but with one query token per row the query heads that share a key head are taken
    as its queries, so that keys and values are read in place and not repeated per query head."""
    B, heads, length, _ = query.shape
    groups = key.shape[1]
    if length != 1 or attention_mask is None or groups == heads:
        return _library.sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    packed = query.reshape(B, groups, heads // groups, -1)
    out = scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return out.reshape(B, 1, heads, -1), None


_registry: Any = AttentionInterface
_registry.register(ATTENTION, attend)
_registry = AttentionMaskInterface
_registry.register(ATTENTION, _masks["sdpa"])


class Rows(Protocol):
    """Sequences that are decoded side by side."""

    def admit(self, prompts: Sequence[Sequence[int]]) -> None:
        """Append rows; the last token of each prompt is not read yet: it is the row's first token of `step`."""
        ...

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to every row; logits_BV (float32) of the token that follows."""
        ...

    def compact(self, alive: Sequence[bool]) -> list[int]:
        """Free the rows that are not alive; the old number of each row that stays, in the new order."""
        ...


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [rows, heads, columns, width]; where to read and write stands in `Slots`."""

    def __init__(self, slots: Slots) -> None:
        cast(Any, super()).__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self.slots.shape
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], columns, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        slots = self.slots
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        B, _, length, _ = key_states.shape
        if slots.filling:
            self.keys[slots.rows : slots.rows + B, :, :length] = key_states
            self.values[slots.rows : slots.rows + B, :, :length] = value_states
            return key_states, value_states
        self.keys[slots.numbers_B, :, slots.columns_B] = key_states[:, :, 0]
        self.values[slots.numbers_B, :, slots.columns_B] = value_states[:, :, 0]
        return self.keys[:B, :, : slots.width], self.values[:B, :, : slots.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def resize(self, rows: int, columns: int, used_rows: int) -> None:
        """Make room; the first `used_rows` rows are kept."""
        if not self.is_initialized:
            return
        assert self.keys is not None and self.values is not None
        for name, old in (("keys", self.keys), ("values", self.values)):
            new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
            new[:used_rows, :, : old.shape[2]] = old[:used_rows]
            setattr(self, name, new)

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """Copy whole rows onto freed ones."""
        assert self.keys is not None and self.values is not None
        self.keys[targets, :, :columns] = self.keys[sources, :, :columns]
        self.values[targets, :, :columns] = self.values[sources, :, :columns]


class Slots:
    """Rows of a model with ordinary (full, causal) attention: one store, one forward pass a step for all rows."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows, self.width, self.filling = 0, 0, False
        self.shape = (0, 0)
        self.lengths = np.zeros(0, dtype=np.int64)
        self.numbers_B = self.columns_B = torch.zeros(0, dtype=torch.long)
        self.layers = [_SlotLayer(self) for _ in range(model.config.get_text_config(decoder=True).num_hidden_layers)]
        self.cache = Cache(layers=list(self.layers))

    def admit(self, prompts: Sequence[Sequence[int]]) -> None:
        bodies = [prompt[:-1] for prompt in prompts]
        self._reserve(self.rows + len(bodies), max(map(len, bodies), default=0) + 1)
        for chunk in _chunks(bodies):
            ids = _right_padded(chunk, self.model.device)
            if ids.shape[1]:
                self.filling = True
                positions = torch.arange(ids.shape[1], device=ids.device).expand(len(chunk), -1)
                self.model(
                    input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1
                )
                self.filling = False
            self.rows += len(chunk)
            self.lengths = np.append(self.lengths, [len(body) for body in chunk])

    def step(self, tokens: Sequence[int]) -> Tensor:
        device = self.model.device
        self.width = int(self.lengths.max()) + 1
        self._reserve(self.rows, self.width)
        self.numbers_B = torch.arange(self.rows, device=device)
        self.columns_B = _numpy(self.lengths).to(device)
        unseen_BT = torch.arange(self.width, device=device) > self.columns_B[:, None]
        # Added to the scores, as every attention implementation takes it; made once a step and not once a layer.
        mask_BT = torch.zeros_like(unseen_BT, dtype=self.model.dtype).masked_fill(
            unseen_BT, torch.finfo(self.model.dtype).min
        )
        logits = self.model(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            attention_mask=mask_BT[:, None, None],
            position_ids=self.columns_B[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        self.lengths = self.lengths + 1
        return logits[:, -1].float()

    def compact(self, alive: Sequence[bool]) -> list[int]:
        order = _order(alive)
        moved = [(old, new) for new, old in enumerate(order) if new != old]
        self.lengths = self.lengths[order]
        if moved:
            sources, targets = torch.tensor(moved, device=self.model.device).unbind(1)
            for layer in self.layers:
                layer.move(sources, targets, int(self.lengths.max()))
        self.rows = len(order)
        return order

    def _reserve(self, rows: int, columns: int) -> None:
        if rows <= self.shape[0] and columns <= self.shape[1]:
            return
        self.shape = (max(rows, self.shape[0]), max(-(-columns // _COLUMNS) * _COLUMNS, self.shape[1]))
        for layer in self.layers:
            layer.resize(*self.shape, self.rows)


class OneByOne:
    """Rows of any other model (recurrent states, sliding windows, positions by mask), each with its own cache."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.caches: list[Any] = []

    def admit(self, prompts: Sequence[Sequence[int]]) -> None:
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
        order = _order(alive)
        self.caches = [self.caches[row] for row in order]
        return order


def _order(alive: Sequence[bool]) -> list[int]:
    """Rows that stay, with the last ones moved into the holes, so that few rows move."""
    size = sum(alive)
    late = [row for row in range(size, len(alive)) if alive[row]]
    return [row if alive[row] else late.pop() for row in range(size)]


def _chunks(rows: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """`rows` in pieces of at most _PREFILL_TOKENS tokens, padding included; a longer row alone."""
    chunks: list[list[Sequence[int]]] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row))
        if not chunks or longest * (len(chunks[-1]) + 1) > _PREFILL_TOKENS:
            chunks.append([])
            longest = len(row)
        chunks[-1].append(row)
    return chunks


def _right_padded(rows: Sequence[Sequence[int]], device: Any) -> Tensor:
    """The rows as one tensor, 0 where a row has ended; causal attention keeps that from being seen."""
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return _numpy(ids).to(device)


@torch.inference_mode()
def rows_for(model: Any) -> Rows:
    """`Slots` where a trial shows that they give the model's own logits, else `OneByOne`.

    The trial: two prompts of different lengths, decoded three tokens, against plain forward passes. Models with windows
    or layers without full attention are not tried: a short trial would not show the difference.
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
    vocabulary = int(config["vocab_size"])
    texts = [[(7 * column + 3 * row) % vocabulary for column in range(4 + 3 * row)] for row in range(2)]
    try:
        slots = Slots(model)
        slots.admit([text[:-2] for text in texts])
        slots.step([text[-3] for text in texts])
        slots.step([text[-2] for text in texts])
        seen_BV = slots.step([text[-1] for text in texts])
        right_BV = torch.stack(
            [model(input_ids=torch.tensor([text], device=model.device)).logits[0, -1] for text in texts]
        )
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return OneByOne(model)
    allowed = (1e-4 if model.dtype == torch.float32 else 0.05) * float(right_BV.float().abs().max().clamp(min=1.0))
    return Slots(model) if float((seen_BV - right_BV.float()).abs().max()) <= allowed else OneByOne(model)


# ---- sampling


def draw(logits_BV: Tensor, *, temperature_B: np.ndarray, top_p_B: np.ndarray, uniform_B: np.ndarray) -> list[int]:
    """A token per row by the inverse of the distribution function; temperature 0 takes the greatest logit.

    top_p keeps the smallest set of likeliest tokens whose mass reaches it, always the likeliest one.
    """
    greedy = temperature_B == 0
    if greedy.all():
        return _ints(logits_BV.argmax(dim=-1))
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
        drawn_B = torch.where(_numpy(greedy).to(device), logits_BV.argmax(dim=-1), drawn_B)
    return _ints(drawn_B)


def _ints(values: Tensor) -> list[int]:
    return cast(Any, values).tolist()
