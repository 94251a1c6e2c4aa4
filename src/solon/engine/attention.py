"""Attention over a beginning that many rows share, computed once for all of them, and over each row's own tokens.

    out = attend(module, query, key, value, mask, shared=[Shared(layers, rows)])

The two parts of a softmax are computed apart and joined by the logarithms of their sums ("cascade"; Juravsky et al.
2024, Hydragen, arXiv:2402.05099, section 3.1). Shape suffixes: B rows, H query heads, G key heads, N queries of a group
(of its heads and tokens), L query tokens, P tokens of the shared beginning, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations import sdpa_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

_library: Any = sdpa_attention
_masks: Any = ALL_MASK_ATTENTION_FUNCTIONS
_aten: Any = torch.ops.aten

ATTENTION = "solon_slots"
"""Name under which `attend` is registered with transformers."""


class KeysValues(NamedTuple):
    """Of one layer."""

    keys: Tensor
    values: Tensor


class Shared(NamedTuple):
    """A beginning that stands before some rows of a forward pass; reaches `attend` through the model's own kwargs."""

    layers: Sequence[KeysValues]
    """Each [G, P, D]."""
    rows: Tensor
    """Numbers of the rows of the batch that it stands before."""


class Span(NamedTuple):
    """Some rows of a forward pass that reads one token per row; reaches `attend` as `shared` does."""

    rows: slice
    width: int
    """Columns of their own that they can see, at most."""


class Part(NamedTuple):
    """Attention to some of the keys, which can be joined with that to others."""

    out: Tensor
    logsumexp: Tensor
    """Of the scaled scores, float32, one number per query."""


def dtype_of_keys(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Of keys and values of a model that computes in `dtype`: the same, but float32 on a CPU without matrix units for
    bfloat16, where attention of few queries is several times slower in it."""
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("amx_bf16"):
        return torch.float32
    return dtype


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared: Sequence[Shared] = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, with four differences.

    1. A row sees the beginning that it shares, too. 2. With one query token per row the query heads that share a key
    head are taken as its queries, so that keys and values are read in place and not repeated per query head. 3. It is
    computed in the dtype of keys and values. 4. Of some rows no more columns are read than they can see (`spans`), as
    reading them is what takes the time.
    """
    dtype, scale = query.dtype, kwargs.get("scaling")
    spans: Sequence[Span] = kwargs.pop("spans", ())
    query = query.to(key.dtype)
    B, heads, length, width = query.shape
    groups = key.shape[1]
    if not shared and (length > 1 or attention_mask is None or (groups == heads and len(spans) < 2)):
        out, _ = _library.sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out.to(dtype), None
    if length == 1:
        query = query.reshape(B, groups, heads // groups, width)
    parts = _by_span(query, key, value, attention_mask, spans=spans)
    if not shared:
        outs = [scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale) for q, k, v, mask in parts]
        out_BHLD = torch.cat(outs)
    else:
        owns = [attend_part(*part, scale=scale) for part in parts]
        own = Part(torch.cat([one.out for one in owns]), torch.cat([one.logsumexp for one in owns]))
        out_BHLD = _join(own, query, module.layer_idx, shared, scale=scale, groups=groups)
    return out_BHLD.reshape(B, heads, length, width).transpose(1, 2).contiguous().to(dtype), None


def _by_span(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, spans: Sequence[Span]
) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    if mask is None or not spans:
        return [(query, key, value, mask)]
    return [
        (query[rows], key[rows, :, :width], value[rows, :, :width], mask[rows, :, :, :width]) for rows, width in spans
    ]


def _join(
    own: Part, query: Tensor, layer: int, shared: Sequence[Shared], *, scale: float | None, groups: int
) -> Tensor:
    """The rows' own part joined with that of the beginning that each of them shares: one call per beginning, in which
    the queries of all its rows and of all heads of a group stand side by side."""
    B, width = query.shape[0], query.shape[-1]
    query_BGND = query.reshape(B, groups, -1, width)
    out_BGND = own.out.reshape(B, groups, -1, width)
    own_BGN = own.logsumexp.reshape(B, groups, -1)
    for beginning in shared:
        keys, values = beginning.layers[layer]
        rows = beginning.rows
        packed = query_BGND[rows].transpose(0, 1).reshape(1, groups, -1, width)
        part = attend_part(packed.to(keys.dtype), keys[None], values[None], None, scale=scale, causal=False)
        out = part.out.reshape(groups, len(rows), -1, width).transpose(0, 1)
        logsumexp = part.logsumexp.reshape(groups, len(rows), -1).transpose(0, 1)
        weight = torch.sigmoid(own_BGN[rows] - logsumexp)[..., None]
        out_BGND[rows] = out.float().lerp(out_BGND[rows].float(), weight).to(out_BGND.dtype)
    return out_BGND.reshape(query.shape)


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, scale: float | None, causal: bool = True
) -> Part:
    """Attention with the logarithm of the sum of its softmax; without a mask it is causal, or full."""
    causal = causal and mask is None and query.shape[2] > 1
    kind = query.device.type
    if kind == "cpu":
        out = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
        return Part(out[0], out[1])
    repeats = query.shape[1] // key.shape[1]
    key, value = _library.repeat_kv(key, repeats), _library.repeat_kv(value, repeats)
    # Its kernels read the mask in pieces of 16 bytes.
    if kind == "cuda" and (mask is None or mask.shape[-1] % 8 == 0):
        mask = mask.expand(*query.shape[:3], -1) if mask is not None else None
        out = _aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, 0.0, causal, scale=scale)
        return Part(out[0], out[1][:, :, : query.shape[2]])
    return _plain_attention(query, key, value, mask, scale=scale, causal=causal)


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float | None, causal: bool
) -> Part:
    scores = (query @ key.transpose(-1, -2)).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(unseen, float("-inf"))
    if mask is not None:
        scores = scores + mask
    return Part(scores.softmax(dim=-1).to(value.dtype) @ value, scores.logsumexp(dim=-1))


_registry: Any = AttentionInterface
_registry.register(ATTENTION, attend)
_registry = cast(Any, AttentionMaskInterface)
_registry.register(ATTENTION, _masks["sdpa"])
