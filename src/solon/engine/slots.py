"""Rows of keys and values that are filled, stepped and freed: what the local engine decodes side by side.

Shape suffixes: B rows, L tokens of a row that are read, T columns, V vocabulary. A row's own tokens stand from column 0
on, so that rows of any length live side by side, a freed row is filled again while the others go on, and a prompt needs
no padding mask: what stands to the right of a token is never seen by it. A beginning that many rows have in common is
stored once, outside of the rows, and what a chain's row held is kept for the chain's next request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from solon.engine.attention import KeysValues, Shared, Span, dtype_of_keys
from solon.engine.graphs import Graphs, Reading, rounded
from solon.engine.sharing import Beginning, Beginnings, Chains, Kept, common_beginnings, common_length

_numpy = cast(Any, torch).from_numpy

_PREFILL_TOKENS = 8192
"""Tokens of one forward pass over prompts, padding included; bounds the memory of its activations."""
_CPU_PREFILL_TOKENS = 512
"""The same on a CPU: enough for its matrix products, and activations stay in its caches."""
_SPAN = 16
"""Rows side by side of which a step on a CPU reads no more columns than the longest of them has."""
_COLUMNS = 64
"""The columns of the key and value store grow by this many."""
_SHARED_BYTES = 2**30
"""Of the beginnings that are stored once."""


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
        for store, states in ((keys, key_states), (values, value_states)):
            width = store.shape[3]
            places = self.slots.places(store.shape[1])
            store.view(-1, width).index_copy_(0, places, states.reshape(-1, width).to(store.dtype))
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
        self.dtype = dtype_of_keys(model.device, model.dtype)
        self.slots: list[_Slot] = []
        self.shape = (0, 0)
        self.graphs = Graphs(self._run) if record else None
        self._places: dict[int, Tensor] = {}
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
        order = compacted(alive)
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
            most = _CPU_PREFILL_TOKENS if self.model.device.type == "cpu" else _PREFILL_TOKENS
            for chunk in _chunks([self.slots[row].unread for row in some], most=most):
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
            # A GPU would rather have one call.
            spans=_spans(own_B1[:, 0] + 1) if step and device.type == "cpu" else (),
            shared=_shared(slots, device, padded=padded),
        )

    def _run(self, reading: Reading) -> Tensor:
        """logits_BV after the last column."""
        self.reading, self._places = reading, {}
        extra: dict[str, Any] = {}
        if not reading.fresh:
            # Added to the scores, as every attention implementation takes it; made once a pass and not once a layer.
            unseen_BLT = torch.arange(reading.width, device=self.model.device) > reading.columns_BL[:, :, None]
            mask_BLT = torch.zeros_like(unseen_BLT, dtype=self.dtype)
            extra["attention_mask"] = mask_BLT.masked_fill_(unseen_BLT, torch.finfo(self.dtype).min)[:, None]
        if reading.spans and not reading.fresh:
            extra["spans"] = reading.spans
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

    def places(self, heads: int) -> Tensor:
        """Where the keys of a layer's pass are written, as numbers of [row, head, column]; the same for all layers with
        as many heads."""
        if heads not in self._places:
            rows_B = self.reading.rows_B
            first_BH1 = rows_B[:, None, None] * heads + torch.arange(heads, device=rows_B.device)[:, None]
            self._places[heads] = (first_BH1 * self.shape[1] + self.reading.columns_BL[:, None]).flatten()
        return self._places[heads]

    def _reserve(self, rows: int, columns: int) -> None:
        if rows <= self.shape[0] and columns <= self.shape[1]:
            return
        used = min(len(self.slots), self.shape[0])
        self.shape = (max(rows, self.shape[0]), max(-(-columns // _COLUMNS) * _COLUMNS, self.shape[1]))
        for layer in self.layers:
            layer.resize(*self.shape, used)
        if self.graphs is not None:
            self.graphs.clear()


def _spans(widths_B: np.ndarray) -> list[Span]:
    """Rows that stand side by side, with the columns that they have; prompts are admitted by their length."""
    starts = range(0, len(widths_B), _SPAN)
    return [Span(slice(start, start + _SPAN), int(widths_B[start : start + _SPAN].max())) for start in starts]


def _shared(slots: Iterable[_Slot], device: Any, *, padded: bool) -> list[Shared]:
    """The beginnings of rows, with the numbers of the rows that each stands before."""
    rows: dict[Beginning, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot.beginning is not None:
            rows.setdefault(slot.beginning, []).append(row)
    if padded:
        rows = {one: [*some, *([some[-1]] * (rounded(len(some)) - len(some)))] for one, some in rows.items()}
    return [Shared(one.layers, torch.tensor(some, device=device)) for one, some in rows.items()]


def compacted(alive: Sequence[bool]) -> list[int]:
    """Rows that stay, with the last ones moved into the holes, so that few rows move."""
    size = sum(alive)
    late = [row for row in range(size, len(alive)) if alive[row]]
    return [row if alive[row] else late.pop() for row in range(size)]


def _chunks(rows: Sequence[Sequence[int]], *, most: int) -> list[list[Sequence[int]]]:
    """`rows` in pieces of at most `most` tokens, padding included; a longer row alone."""
    chunks: list[list[Sequence[int]]] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row))
        if not chunks or longest * (len(chunks[-1]) + 1) > most:
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
