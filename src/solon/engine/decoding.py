"""The arithmetic of the local engine: rows of keys and values that are filled, stepped and freed; sampling.

Shape suffixes: B rows, L tokens of a row that are read, T columns, V vocabulary. A row's own tokens stand from column 0
on, so that rows of any length live side by side, a freed row is filled again while the others go on, and a prompt needs
no padding mask: what stands to the right of a token is never seen by it. A beginning that many rows have in common is
stored once, outside of the rows, and what a chain's row held is kept for the chain's next request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from solon.engine.attention import KeysValues, Shared
from solon.engine.graphs import Graphs, Reading, rounded
from solon.engine.sharing import Beginning, Beginnings, Chains, Kept, common_beginnings, common_length

_numpy = cast(Any, torch).from_numpy

_PREFILL_TOKENS = 8192
"""Tokens of one forward pass over prompts, padding included; bounds the memory of its activations."""
_COLUMNS = 64
"""The columns of the key and value store grow by this many."""
_SHARED_BYTES = 2**30
"""Of the beginnings that are stored once."""


class Rows(Protocol):
    """Sequences that are decoded side by side."""

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


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [rows, heads, columns, width]; where to read and write stands in `Slots`."""

    def __init__(self, slots: Slots) -> None:
        cast(Any, super()).__init__()
        self.slots = slots

    @property
    def store(self) -> KeysValues:
        assert self.keys is not None and self.values is not None
        return KeysValues(self.keys, self.values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self.slots.shape
        dtype = self.slots.dtype
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[3], dtype=dtype)
        self.values = value_states.new_zeros(rows, value_states.shape[1], columns, value_states.shape[3], dtype=dtype)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.store
        reading = self.slots.reading
        keys[reading.rows_B[:, None], :, reading.columns_BL] = key_states.transpose(1, 2).to(keys.dtype)
        values[reading.rows_B[:, None], :, reading.columns_BL] = value_states.transpose(1, 2).to(values.dtype)
        if reading.fresh:
            return key_states, value_states
        return keys[reading.read, :, : reading.width], values[reading.read, :, : reading.width]

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
        for name, old in zip(("keys", "values"), self.store, strict=True):
            new = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
            new[:used_rows, :, : old.shape[2]] = old[:used_rows]
            setattr(self, name, new)

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """Copy whole rows onto freed ones."""
        for store in self.store:
            store[targets, :, :columns] = store[sources, :, :columns]

    def copied(self, row: int, columns: slice) -> KeysValues:
        return KeysValues(*(store[row, :, columns].clone() for store in self.store))

    def write(self, row: int, source: KeysValues) -> None:
        """Into the row's first columns."""
        for store, new in zip(self.store, source, strict=True):
            store[row, :, : new.shape[1]] = new


@dataclass(eq=False, slots=True, kw_only=True)
class _Slot:
    """A row: the tokens that it has read, of which the first may stand in a shared beginning."""

    prompt: list[int]
    chain: str | None
    ids: list[int] = field(default_factory=lambda: list[int]())
    beginning: Beginning | None = None

    @property
    def num_shared(self) -> int:
        return len(self.beginning.ids) if self.beginning is not None else 0

    @property
    def num_own(self) -> int:
        """Tokens in columns of its own."""
        return len(self.ids) - self.num_shared

    @property
    def unread(self) -> list[int]:
        """The rest of the prompt."""
        return self.prompt[len(self.ids) :]


class Slots:
    """Rows of a model with ordinary (full, causal) attention: one store, one forward pass a step for all rows.

    A beginning of at least `least_tokens` tokens that at least `least_rows` rows have in common is stored once;
    `least_rows` 0: nothing is shared or kept, every text is computed alone. Beginnings take at most _SHARED_BYTES, what
    is kept of chains at most as much as the rows. `record`: steps are CUDA graphs.
    """

    reading: Reading
    """Of the pass under way."""

    def __init__(self, model: Any, *, least_tokens: int = 32, least_rows: int = 4, record: bool = False) -> None:
        self.model = model
        self.least_tokens, self.least_rows = least_tokens, least_rows
        # CPU attention over few queries is several times slower in bfloat16 on machines without matrix units for it.
        self.dtype = torch.float32 if model.device.type == "cpu" else model.dtype
        self.slots: list[_Slot] = []
        self.shape = (0, 0)
        self.graphs = Graphs(self._run) if record else None
        self.layers = [_SlotLayer(self) for _ in range(model.config.get_text_config(decoder=True).num_hidden_layers)]
        self.cache = Cache(layers=list(self.layers))
        self.beginnings = Beginnings(_SHARED_BYTES)
        self.chains = Chains(self.beginnings)

    def admit(self, prompts: Sequence[Sequence[int]], chains: Sequence[str | None] = ()) -> None:
        names = chains if chains and self.least_rows else [None] * len(prompts)
        new = [_Slot(prompt=list(prompt[:-1]), chain=name) for prompt, name in zip(prompts, names, strict=True)]
        kept = {id(slot): self.chains.take(slot.chain) for slot in new}
        first = len(self.slots)
        self.slots += new
        self._reserve(len(self.slots), 1)
        for ids in self._common(new, kept) if self.least_rows else ():
            behind = [slot for slot in self.slots if tuple(slot.prompt[: len(ids)]) == ids]
            ready = next((slot for slot in behind if slot.ids), behind[0])
            if not ready.ids:
                self._fill([ready], kept)
            self._share(ids, ready)
        self._fill([slot for slot in self.slots[first:] if not slot.ids], kept)

    def step(self, tokens: Sequence[int]) -> Tensor:
        reading = self._reading(range(len(self.slots)), [[token] for token in tokens], step=True)
        logits_BV = self._run(reading) if self.graphs is None else self.graphs(reading)
        for slot, token in zip(self.slots, tokens, strict=True):
            slot.ids.append(token)
        return logits_BV[: len(self.slots)]

    def compact(self, alive: Sequence[bool]) -> list[int]:
        for row, (slot, stays) in enumerate(zip(self.slots, alive, strict=True)):
            if not stays:
                self._free(row, slot)
        order = _order(alive)
        self.slots = [self.slots[row] for row in order]
        moved = [(old, new) for new, old in enumerate(order) if new != old]
        if moved:
            sources, targets = torch.tensor(moved, device=self.model.device).unbind(1)
            columns = max(slot.num_own for slot in self.slots)
            for layer in self.layers:
                layer.move(sources, targets, columns)
        return order

    # ---- what is shared and kept

    def _common(self, new: Sequence[_Slot], kept: dict[int, Kept | None]) -> list[tuple[int, ...]]:
        """Beginnings worth storing that are not stored yet, and for which there is room."""
        have: list[int] = []
        for slot in self.slots:
            found = self.beginnings.longest(slot.prompt) if not slot.ids else slot.beginning
            shared = len(found.ids) if found is not None else 0
            old = kept.get(id(slot))
            have.append(max(shared, common_length(old.ids, slot.prompt) if old is not None else 0))
        rows = [slot.prompt for slot in self.slots]
        return common_beginnings(rows, have, least_tokens=self.least_tokens, least_rows=self.least_rows)

    def _share(self, ids: tuple[int, ...], source: _Slot) -> None:
        """Store the beginning that `source` holds once, and let all rows that begin so use it."""
        before, own = source.beginning, slice(len(ids) - source.num_shared)
        parts = [layer.copied(self.slots.index(source), own) for layer in self.layers]
        if before is not None:
            parts = [
                KeysValues(*(torch.cat(pair, dim=1) for pair in zip(one, other, strict=True)))
                for one, other in zip(before.layers, parts, strict=True)
            ]
        beginning = Beginning(ids, parts)
        if not self.beginnings.fits(beginning.num_bytes):
            return
        self.beginnings.add(beginning)
        if self.graphs is not None:
            # Among the beginnings that were dropped, there may be some of those recorded.
            self.graphs.clear()
        for row, slot in enumerate(self.slots):
            if slot.num_shared < len(ids) and tuple(slot.ids[: len(ids)]) == ids:
                own = slice(len(ids) - slot.num_shared, slot.num_own)
                for layer in self.layers:
                    layer.write(row, layer.copied(row, own))
                self._use(slot, beginning)

    def _use(self, slot: _Slot, beginning: Beginning | None) -> None:
        self.beginnings.use(beginning)
        self.beginnings.leave(slot.beginning)
        slot.beginning = beginning

    def _free(self, row: int, slot: _Slot) -> None:
        if slot.chain is not None:
            layers = [layer.copied(row, slice(slot.num_own)) for layer in self.layers]
            limit = sum(store.nbytes for layer in self.layers for store in layer.store)
            self.chains.keep(slot.chain, Kept(ids=slot.ids, beginning=slot.beginning, layers=layers), limit=limit)
        self._use(slot, None)

    def _restore(self, row: int, kept: Kept | None) -> None:
        """Take the stored beginning of the row's prompt, and from what its chain had, what it goes on with."""
        slot = self.slots[row]
        self._use(slot, self.beginnings.longest(slot.prompt) if self.least_rows else None)
        slot.ids = slot.prompt[: slot.num_shared]
        if kept is None:
            return
        size = common_length(kept.ids, slot.prompt)
        before = len(kept.beginning.ids) if kept.beginning is not None else 0
        if before <= slot.num_shared < size:
            self._reserve(len(self.slots), size - slot.num_shared)
            own = slice(slot.num_shared - before, size - before)
            for layer, part in zip(self.layers, kept.layers, strict=True):
                layer.write(row, KeysValues(part.keys[:, own], part.values[:, own]))
            slot.ids = slot.prompt[:size]

    # ---- forward passes

    def _fill(self, slots: Sequence[_Slot], kept: dict[int, Kept | None]) -> None:
        """Read what is not read yet of the rows' prompts."""
        place = {id(slot): row for row, slot in enumerate(self.slots)}
        rows = [place[id(slot)] for slot in slots]
        for row, slot in zip(rows, slots, strict=True):
            self._restore(row, kept[id(slot)])
        rows = [row for row in rows if self.slots[row].unread]
        rows.sort(key=lambda row: len(self.slots[row].unread))
        # Those that go on with columns of their own need a mask, so that they are not among the others.
        for some in (
            [row for row in rows if not self.slots[row].num_own],
            [row for row in rows if self.slots[row].num_own],
        ):
            done = 0
            for chunk in _chunks([self.slots[row].unread for row in some]):
                self._forward(some[done : done + len(chunk)], chunk)
                done += len(chunk)

    def _forward(self, rows: Sequence[int], new: Sequence[Sequence[int]]) -> None:
        """Let the rows read tokens."""
        self._run(self._reading(rows, new))
        for row, ids in zip(rows, new, strict=True):
            self.slots[row].ids += ids

    def _reading(self, rows: Sequence[int], new: Sequence[Sequence[int]], *, step: bool = False) -> Reading:
        """What a pass needs. A step that is to be recorded has the shape of many others: rows that are free read a
        token, too, whole blocks of columns are seen, and the rows behind a beginning are filled up with the last."""
        device, slots = self.model.device, [self.slots[row] for row in rows]
        padded = step and self.graphs is not None
        size = rounded(len(rows)) if padded else len(rows)
        unused = [[0]] * (size - len(rows))
        ids_BL = _right_padded([*new, *unused])
        own_B1 = _right_padded([[slot.num_own] for slot in slots] + unused)
        shared_B1 = _right_padded([[slot.num_shared] for slot in slots] + unused)
        columns_BL = own_B1 + np.arange(ids_BL.shape[1], dtype=np.int64)
        width = int(own_B1.max()) + ids_BL.shape[1]
        width = -(-width // _COLUMNS) * _COLUMNS if padded else width
        self._reserve(max(len(self.slots), size), width)
        numbers = _numpy(np.stack([ids_BL, columns_BL, columns_BL + shared_B1])).to(device)
        in_order = list(rows) == list(range(len(self.slots)))
        rows_B = torch.tensor(range(size) if padded else rows, device=device)
        return Reading(
            ids_BL=numbers[0],
            columns_BL=numbers[1],
            positions_BL=numbers[2],
            rows_B=rows_B,
            read=slice(size) if in_order else rows_B,
            width=width,
            fresh=not padded and not own_B1.any(),
            shared=_shared(slots, device, padded=padded),
        )

    def _run(self, reading: Reading) -> Tensor:
        """logits_BV after the last column."""
        self.reading = reading
        extra: dict[str, Any] = {}
        if not reading.fresh:
            # Added to the scores, as every attention implementation takes it; made once a pass and not once a layer.
            unseen_BLT = torch.arange(reading.width, device=self.model.device) > reading.columns_BL[:, :, None]
            mask_BLT = torch.zeros_like(unseen_BLT, dtype=self.dtype)
            extra["attention_mask"] = mask_BLT.masked_fill_(unseen_BLT, torch.finfo(self.dtype).min)[:, None]
        if reading.shared:
            extra["shared"] = reading.shared
        logits = self.model(
            input_ids=reading.ids_BL,
            position_ids=reading.positions_BL,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        ).logits
        return logits[:, -1].float()

    def _reserve(self, rows: int, columns: int) -> None:
        if rows <= self.shape[0] and columns <= self.shape[1]:
            return
        used = min(len(self.slots), self.shape[0])
        self.shape = (max(rows, self.shape[0]), max(-(-columns // _COLUMNS) * _COLUMNS, self.shape[1]))
        for layer in self.layers:
            layer.resize(*self.shape, used)
        if self.graphs is not None:
            self.graphs.clear()


def _shared(slots: Iterable[_Slot], device: Any, *, padded: bool) -> list[Shared]:
    """The beginnings of rows, with the numbers of the rows that each stands before."""
    rows: dict[Beginning, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot.beginning is not None:
            rows.setdefault(slot.beginning, []).append(row)
    if padded:
        rows = {one: [*some, *([some[-1]] * (rounded(len(some)) - len(some)))] for one, some in rows.items()}
    return [Shared(one.layers, torch.tensor(some, device=device)) for one, some in rows.items()]


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


def _right_padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """The rows as one array, 0 where a row has ended; causal attention keeps that from being seen."""
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return ids


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
