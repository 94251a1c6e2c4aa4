"""Log-probabilities of continuations, with every beginning that they share run once.

    scorer = scorer_for(model)
    scorer.score([Continuation(ids=(5, 7, 8, 9), start=3), Continuation(ids=(5, 7, 8, 4), start=3)])
    # [log p(9 | 5 7 8), log p(4 | 5 7 8)]; three tokens are run, 5 7 8

The continuations are laid out as a trie (see `trie`). A forward pass reads the next nodes as one row, each with its
depth as position, and only the logits that are asked for are made. What keeps branches apart is the attention (cascade
attention). The trie's segments, runs of tokens without a fork, each attend to themselves; and since the nodes stand in
preorder, what hangs below a segment is one slice of the row, which attends to the segment in one product. The parts are
merged by their log-sum-exp. From pass to pass only keys and values of segments are kept below which nodes are still to
come: one path; from call to call those of the first segment, which is the few-shot examples of a judge, so that they
are run once in a run. Nothing is padded, and no model code is patched: the attention is registered with transformers
and switched on for the pass.

Shape suffixes: N nodes; K key heads; G query heads that share a key head; D width of a head; P logits that are asked
for; V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import signature
from math import inf
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface

from solon.engine.attention import KeysValues, attend_part
from solon.engine.sharing import common_length
from solon.engine.trie import Continuation, Segment, Trie, Wanted, build_trie

TREE_ATTENTION = "solon_tree"
"""Name under which the attention over a trie is registered with transformers."""
PASS_TOKENS = 4096
"""Tokens of one forward pass, padding included; bounds the memory of its activations. The comparisons of one pair under
16 principles, a principle last, fit into one."""
_LOGITS = 2**26
"""Logits of one pass (256 MiB in float32)."""
_HARMLESS = {"position_ids", "cache_position", "use_cache", "output_attentions", "output_router_logits", "dropout"}
"""What models hand to their attention beside the tensors and does not change its result here."""


Memory = dict[torch.nn.Module, dict[int, KeysValues]]
"""For each layer, keys and values of segments, each [1, K, nodes, D], by their first node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The nodes `start` to `end` - 1 of a trie, and what their attention has to know."""

    start: int
    end: int
    known: list[Segment]
    """Segments run before, on the path to the first node."""
    new: list[Segment]
    """Segments that are run; none goes beyond the pass."""
    memory: Memory
    """Holds the known segments before the pass, and those that are known to the next one after it."""
    kept: int
    """Nodes from the first on that the memory still holds when the trie is done."""

    def below(self, segment: Segment) -> slice:
        """Places in the pass of the nodes below a segment."""
        start, end = max(segment.end, self.start), min(segment.last, self.end)
        return slice(start - self.start, max(start, end) - self.start)


class First:
    """The first segment of the trie that was scored last (few-shot examples, say); the next one may begin with it."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._layers: dict[torch.nn.Module, KeysValues] = {}

    def take(self, trie: Trie) -> tuple[int, Memory]:
        """How many first nodes of the trie are known and need no logits, and the memory of them."""
        size = min(common_length(self._ids, trie.ids[: trie.segments[0].end]), trie.wanted[0].node)
        layers = self._layers if size else {}
        cut = {module: KeysValues(*(part[:, :, :size] for part in one)) for module, one in layers.items()}
        return size, {module: {0: one} for module, one in cut.items()}

    def keep(self, ids: list[int], memory: Memory) -> None:
        """What a memory holds once its trie is done."""
        self._ids = ids
        self._layers = {
            module: KeysValues(*(torch.cat(parts, dim=2) for parts in zip(*(of[at] for at in sorted(of)), strict=True)))
            for module, of in memory.items()
        }


def passes(trie: Trie, first: First, *, most_tokens: int, most_logits: int) -> Iterator[Pass]:
    """The trie in pieces with as many nodes, and as many nodes whose logits are asked for, at most; without the nodes
    that `first` knows, which has the trie's own first segment afterwards, or as much of it as a pass may hold."""
    nodes = sorted({one.node for one in trie.wanted})
    segments, (start, memory) = list(trie.segments), first.take(trie)
    kept = min(segments[0].end, most_tokens)
    segments += [rest for node in (kept, start) for rest in segments[0].cut(node)]
    while start < len(trie.ids):
        end = min(start + most_tokens, len(trie.ids))
        beyond = bisect_left(nodes, start) + most_logits
        if beyond < len(nodes):
            end = min(end, nodes[beyond])
        segments += [rest for segment in segments for rest in segment.cut(end)]
        yield Pass(
            start=start,
            end=end,
            known=[one for one in segments if one.end <= start < one.last],
            new=[one for one in segments if start <= one.start < end],
            memory=memory,
            kept=kept,
        )
        start = end
    first.keep(trie.ids[:kept], memory)


# ---- attention


def attend_tree(  # noqa: PLR0913 - what transformers hands to an attention
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    nodes: Pass,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Every node attends to its ancestors and itself. [1, heads, N, D] -> [1, N, heads, D].

    `sliding_window` is nothing here, because no path is longer (see `Scorer`). Raises NotImplementedError for anything
    else that would change the scores, such as a cap or a sink.
    """
    unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _HARMLESS)
    if unknown:
        raise NotImplementedError(f"attention with {unknown[0]}")
    of_segment = nodes.memory.pop(module, {})
    for one in nodes.new:
        own = slice(one.start - nodes.start, one.end - nodes.start)
        of_segment[one.start] = KeysValues(key[:, :, own], value[:, :, own])
    # Query heads that share a key head stand beside each other; their keys are the same memory.
    query_KGND = cast(Tensor, cast(Any, query[0]).unflatten(0, (key.shape[1], -1)))
    num_shared = query_KGND.shape[1]
    out_NHD = query.new_empty(query.shape[2], query.shape[1], value.shape[3], dtype=torch.float32)
    out_KGND = cast(Tensor, cast(Any, out_NHD.transpose(0, 1)).unflatten(0, (key.shape[1], -1)))
    lse_KGN = query_KGND.new_empty(query_KGND.shape[:3], dtype=torch.float32)

    def part(rows: slice, segment: Segment, *, causal: bool) -> tuple[Tensor, Tensor]:
        key_KGND, value_KGND = (one[0, :, None].expand(-1, num_shared, -1, -1) for one in of_segment[segment.start])
        out, lse = attend_part(query_KGND[:, :, rows], key_KGND, value_KGND, causal=causal, scale=scaling)
        return out.float(), lse

    for segment in nodes.new:
        own = slice(segment.start - nodes.start, segment.end - nodes.start)
        if own.stop - own.start > 1:
            out_KGND[:, :, own], lse_KGN[:, :, own] = part(own, segment, causal=True)
    # A segment of one node sees itself alone; many are, since options differ in a token.
    if single := [one.start - nodes.start for one in nodes.new if one.end - one.start == 1]:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out_KGND[:, :, single] = value[0, :, None, single].float()
        lse_KGN[:, :, single] = (query_KGND[:, :, single] * key[0, :, None, single]).float().sum(-1) * scale
    for segment in (*nodes.known, *nodes.new):
        below = nodes.below(segment)
        if below.stop > below.start:
            out, lse = part(below, segment, causal=False)
            share_KGN = torch.sigmoid(lse - lse_KGN[:, :, below])
            out_KGND[:, :, below].lerp_(out, share_KGN[..., None])
            lse_KGN[:, :, below] = torch.logaddexp(lse_KGN[:, :, below], lse)
    stays = {one.start for one in (*nodes.known, *nodes.new) if one.last > nodes.end}
    nodes.memory[module] = {
        # Copied, so that a whole pass is not kept for the sake of one segment.
        start: KeysValues(*(part.clone() for part in kept)) if start >= nodes.start else kept
        for start, kept in of_segment.items()
        if start in stays or start < nodes.kept
    }
    return out_NHD[None].to(query.dtype), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The segments say what a node sees."""


_registry: Any = AttentionInterface
_registry.register(TREE_ATTENTION, attend_tree)
_registry = AttentionMaskInterface
_registry.register(TREE_ATTENTION, _no_mask)


@contextmanager
def _tree_attention(model: Any) -> Generator[None]:
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = TREE_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


# ---- scoring


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores continuations by one model; make it with `scorer_for`."""

    model: Any
    longest: float
    """Tokens of a continuation up to which beginnings are shared; 0: never, infinite: always."""
    pass_tokens: int = PASS_TOKENS
    first: First = field(default_factory=First)

    @torch.inference_mode()
    def score(self, continuations: Sequence[Continuation]) -> list[float]:
        """log p(ids[start:] | ids[:start]) of every continuation, in nats; the softmax is taken in float32."""
        out = [0.0] * len(continuations)
        wanted = [number for number, one in enumerate(continuations) if one.start < len(one.ids)]
        short = [number for number in wanted if len(continuations[number].ids) - 1 <= self.longest]
        long = [number for number in wanted if len(continuations[number].ids) - 1 > self.longest]
        trie = build_trie(continuations, short)
        most_logits = max(1, _LOGITS // _vocabulary(self.model))
        if short:
            for nodes in passes(trie, self.first, most_tokens=self.pass_tokens, most_logits=most_logits):
                _score_pass(self.model, trie, nodes, out)
        if long:
            _score_rows(self.model, continuations, long, out)
        return out


@torch.inference_mode()
def scorer_for(model: Any) -> Scorer:
    """A Scorer that shares beginnings where a trial shows that the model's own log-probabilities come out.

    The trial: two questions with two options each, in a trie of several passes and as rows. A model with layers of
    another kind than attention, or whose rotary embedding depends on the length of the pass, is not tried; in one with
    a sliding window, continuations that are longer than the window are scored as rows.
    """
    rows = Scorer(model, 0)
    config = model.config.get_text_config(decoder=True).to_dict()
    rotary = str(config.get("rope_parameters"))
    if not set(config.get("layer_types") or []) <= {"full_attention", "sliding_attention"} or any(
        f"'{kind}'" in rotary for kind in ("dynamic", "longrope")
    ):
        return rows
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    tries = Scorer(model, window or inf)
    texts = [(1, 5, 3, 8, *question, option, 2) for question in ((0, 11, 22), (4, 15, 26)) for option in (7, 9)]
    trial = [Continuation(tuple(token % config["vocab_size"] for token in text), 1) for text in texts]
    if len(trial[0].ids) > tries.longest:
        return rows
    try:
        seen = torch.tensor(replace(tries, pass_tokens=3).score(trial))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return rows
    right = torch.tensor(rows.score(trial))
    allowed = (1e-4 if model.dtype == torch.float32 else 0.05) * float(right.abs().max().clamp(min=1.0))
    return tries if float((seen - right).abs().max()) <= allowed else rows


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)


def _score_pass(model: Any, trie: Trie, nodes: Pass, out: list[float]) -> None:
    device = model.device
    first = bisect_left(trie.wanted, nodes.start, key=lambda one: one.node)
    wanted = trie.wanted[first : bisect_left(trie.wanted, nodes.end, key=lambda one: one.node)]
    places = {node: place for place, node in enumerate(dict.fromkeys(one.node for one in wanted))}
    with _tree_attention(model):
        logits_PV = model(
            input_ids=torch.tensor([trie.ids[nodes.start : nodes.end]], device=device),
            position_ids=torch.tensor([trie.depths[nodes.start : nodes.end]], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor([node - nodes.start for node in places], dtype=torch.long, device=device),
            nodes=nodes,
        ).logits[0]
    if wanted:
        _add(out, wanted, logits_PV, [places[one.node] for one in wanted])


@dataclass(frozen=True, slots=True)
class _Row:
    ids: tuple[int, ...]
    numbers: tuple[int, ...]
    """Of the continuations that this row's logits score."""


def _cover(continuations: Sequence[Continuation], numbers: Sequence[int]) -> list[_Row]:
    """The fewest input rows that hold every continuation without its last token, shortest first: one row serves all
    continuations that are a beginning of it, so options of one token cost a single row."""
    by_inputs: dict[tuple[int, ...], list[int]] = {}
    for number in numbers:
        by_inputs.setdefault(continuations[number].ids[:-1], []).append(number)
    rows: list[_Row] = []
    for ids in sorted(by_inputs, reverse=True):
        if rows and rows[-1].ids[: len(ids)] == ids:
            rows[-1] = _Row(rows[-1].ids, (*rows[-1].numbers, *by_inputs[ids]))
        else:
            rows.append(_Row(ids, tuple(by_inputs[ids])))
    return sorted(rows, key=lambda row: len(row.ids))


def _score_rows(model: Any, continuations: Sequence[Continuation], numbers: Sequence[int], out: list[float]) -> None:
    """Rows of like length side by side, with the model's own attention."""
    vocabulary = _vocabulary(model)
    keep = "logits_to_keep" in signature(model.forward).parameters
    batch: list[_Row] = []
    positions: set[int] = set()
    for row in _cover(continuations, numbers):
        own = {place for number in row.numbers for place in continuations[number].places}
        size, wide = len(batch) + 1, len(positions | own) if keep else len(row.ids)
        if batch and (size * len(row.ids) > PASS_TOKENS or size * wide * vocabulary > _LOGITS):
            _score_batch(model, continuations, batch, sorted(positions) if keep else None, out)
            batch, positions = [], set()
        batch.append(row)
        positions |= own
    if batch:
        _score_batch(model, continuations, batch, sorted(positions) if keep else None, out)


def _score_batch(
    model: Any,
    continuations: Sequence[Continuation],
    rows: Sequence[_Row],
    positions: list[int] | None,
    out: list[float],
) -> None:
    ids = pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True).to(model.device)
    extra = {} if positions is None else {"logits_to_keep": torch.tensor(positions, device=model.device)}
    logits = model(input_ids=ids, use_cache=False, **extra).logits
    column = {place: at for at, place in enumerate(positions if positions is not None else range(ids.shape[1]))}
    wanted = [
        (row, Wanted(number, place, continuations[number].ids[place + 1]))
        for row, item in enumerate(rows)
        for number in item.numbers
        for place in continuations[number].places
    ]
    logits_PV = logits[[row for row, _ in wanted], [column[one.node] for _, one in wanted]]
    _add(out, [one for _, one in wanted], logits_PV, range(len(wanted)))


def _add(out: list[float], wanted: Sequence[Wanted], logits_PV: Tensor, rows: Sequence[int]) -> None:
    """Add each log-probability that is wanted, from its row of the logits, to its continuation's sum."""
    logits_PV = logits_PV.float()
    row = torch.tensor(rows, device=logits_PV.device)
    token = torch.tensor([one.token for one in wanted], device=logits_PV.device)
    logprobs = logits_PV[row, token] - logits_PV.logsumexp(-1)[row]
    values: list[float] = cast(Any, logprobs.double()).tolist()
    for one, value in zip(wanted, values, strict=True):
        out[one.number] += value
