"""What makes a trainer of TRL quicker on a CPU and changes nothing that it computes but the rounding.

    with tiny_as_zero(), make() as trainer, quicker(trainer):
        trainer.train()

1. Batches are read without their padding: tokens of all rows stand one after the other, except inside attention, where
rows of like length are padded together. 2. The language head, whose matrix is the largest, reads only the tokens that
the loss falls on, as TRL has it on GPUs. 3. Numbers below 1e-38, of which gradients are full, count as 0: a CPU
multiplies many times slower with them.

Imports torch, transformers and TRL, so that it is itself imported only inside the functions that train. Shape suffixes:
B rows, T tokens of a padded row, S tokens of all rows without padding, H heads, D width of a head, W of the model.
"""

# transformers and TRL leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations import sdpa_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from trl.trainer import utils as trl_utils

_log = logging.getLogger(__name__)
_library: Any = sdpa_attention
_trl: Any = trl_utils

ATTENTION = "solon_unpadded"
"""Name under which `attend` is registered with transformers."""
ROWS_TOGETHER = 8
"""Rows of like length whose attention is computed side by side."""


class Unpadded(NamedTuple):
    """Where the tokens of a padded batch stand without the padding; reaches `attend` through the model's own kwargs."""

    shape: tuple[int, int]
    """(B, T)"""
    places_S: Tensor
    """Of the tokens in the padded batch, row after row, the rows sorted by length."""
    groups: Sequence[Tensor]
    """Of some rows each [rows, their longest]: which of the S tokens stands there; 0 after a row's end."""
    order_S: Tensor
    """Of the groups' cells, one after the other, those that hold the S tokens."""

    @classmethod
    def of(cls, mask_BT: Tensor) -> Unpadded:
        """From an attention mask of zeros and ones."""
        B, T = mask_BT.shape
        lengths_B = mask_BT.sum(1)
        rows = torch.argsort(lengths_B, stable=True)
        inside_BT = mask_BT[rows].bool()
        places_S = (rows[:, None] * T + torch.arange(T))[inside_BT]
        ends = lengths_B[rows].cumsum(0)
        groups: list[Tensor] = []
        cells: list[Tensor] = []
        start = 0
        for first in range(0, B, ROWS_TOGETHER):
            lengths = lengths_B[rows[first : first + ROWS_TOGETHER]]
            columns = torch.arange(int(lengths[-1]))
            filled = columns < lengths[:, None]
            begins = ends[first : first + ROWS_TOGETHER] - lengths
            groups.append(torch.where(filled, begins[:, None] + columns, 0))
            cells.append(filled.flatten().nonzero()[:, 0] + start)
            start += filled.numel()
        return cls((B, T), places_S, groups, torch.cat(cells))

    def pad(self, hidden_SW: Tensor) -> Tensor:
        """[B, T, W], with zeros for padding."""
        B, T = self.shape
        padded = hidden_SW.new_zeros(B * T, hidden_SW.shape[-1])
        return padded.index_copy(0, self.places_S, hidden_SW).view(B, T, -1)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    unpadded: Unpadded | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention; with `unpadded` of each row's tokens, [1, H, S, D], to those before them."""
    if unpadded is None:
        return _library.sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    tokens_SHD = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    outs: list[Tensor] = []
    for cells in unpadded.groups:
        q, k, v = (_cells(tensor_SHD, cells) for tensor_SHD in tokens_SHD)
        out, _ = _library.sdpa_attention_forward(module, q, k, v, None, **{**kwargs, "is_causal": True})
        outs.append(out.flatten(0, 1))
    return torch.cat(outs).index_select(0, unpadded.order_S)[None], None


def _cells(tensor_SHD: Tensor, cells: Tensor) -> Tensor:
    """Of some rows [rows, H, their longest, D]."""
    return tensor_SHD[cells.flatten()].view(*cells.shape, *tensor_SHD.shape[1:]).transpose(1, 2)


_registry: Any = AttentionInterface
_registry.register(ATTENTION, attend)
_registry = cast(Any, AttentionMaskInterface)
_registry.register(ATTENTION, cast(Any, ALL_MASK_ATTENTION_FUNCTIONS)["sdpa"])

_OTHERS = ("past_key_values", "inputs_embeds", "use_cache", "output_hidden_states", "output_router_logits")
"""With any of these a forward pass is left as it is."""


def _without_padding(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A hook before the forward pass of a model without its head."""
    if len(args) > 1 or any(kwargs.get(name) for name in _OTHERS):
        return None
    given: dict[str, Any] = {**({"input_ids": args[0]} if args else {}), **kwargs}
    ids_BT, mask_BT = given.get("input_ids"), given.get("attention_mask")
    if ids_BT is None or mask_BT is None or mask_BT.dim() != 2 or mask_BT.shape != ids_BT.shape:
        return None
    if mask_BT.all() or not mask_BT.any(1).all():
        # Nothing to leave out, or rows without any token.
        return None
    unpadded = Unpadded.of(mask_BT)
    positions_BT = given.get("position_ids")
    if positions_BT is None:
        positions_BT = torch.arange(ids_BT.shape[1])
    positions = positions_BT.expand(ids_BT.shape).reshape(-1)[unpadded.places_S]
    given |= {
        "input_ids": ids_BT.reshape(1, -1)[:, unpadded.places_S],
        # Of four dimensions: transformers takes it as it is and makes none of its own.
        "attention_mask": mask_BT.new_ones(1, 1, 1, 1),
        "position_ids": positions[None],
        "use_cache": False,
        "unpadded": unpadded,
    }
    return (), given


def _padded_again(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The hook after it."""
    unpadded: Unpadded | None = kwargs.get("unpadded")
    if unpadded is not None:
        output.last_hidden_state = unpadded.pad(output.last_hidden_state[0])
    return output


def _always(device: torch.device) -> bool:
    """In place of TRL's question whether to leave out the tokens without a label; its kernels ask for themselves."""
    return True


@contextmanager
def tiny_as_zero() -> Generator[None]:
    """Numbers below 1e-38 count as 0 in what this thread computes.

    From before the first computation on: it starts PyTorch's threads, which inherit this, and keep it.
    """
    before = float(torch.tensor(1e-40) * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextmanager
def quicker(trainer: Any) -> Generator[None]:
    """Have a trainer of TRL and its models leave out what the first two points name, where they are on a CPU."""
    models = [trainer.model, getattr(trainer, "ref_model", None)]
    models = [model for model in models if model is not None and model.device.type == "cpu"]
    if not models:
        yield
        return
    before = _trl._use_triton
    with ExitStack() as stack:
        for model in models:
            stack.callback(_read_without_padding(model))
        _trl._use_triton = _always
        try:
            yield
        finally:
            _trl._use_triton = before


def _read_without_padding(model: Any) -> Callable[[], object]:
    """Set the hooks, if the model's attention is SDPA's over all that stands before, and a trial gives its own numbers;
    what is returned takes them away."""
    backbone = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    config = backbone.config.get_text_config(decoder=True).to_dict()
    kinds = set(config.get("layer_types") or ["full_attention"])
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    takes_positions = "position_ids" in signature(backbone.forward).parameters
    undo = ExitStack()
    if window or kinds != {"full_attention"} or not takes_positions or backbone.config._attn_implementation != "sdpa":
        return undo.close
    right = _trial(backbone)
    backbone.set_attn_implementation(ATTENTION)
    undo.callback(backbone.set_attn_implementation, "sdpa")
    undo.callback(backbone.register_forward_pre_hook(_without_padding, with_kwargs=True).remove)
    undo.callback(backbone.register_forward_hook(_padded_again, with_kwargs=True).remove)
    try:
        seen = _trial(backbone)
        agrees = torch.allclose(seen, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        _log.info("padding is read as well: %s", error)
        agrees = False
    if not agrees:
        undo.close()
    return undo.close


def _trial(backbone: Any) -> Tensor:
    """What it makes of rows that are padded on both sides, where they are not."""
    vocabulary = int(backbone.config.get_text_config(decoder=True).vocab_size)
    ids_BT = (torch.arange(7 * 11).view(7, 11) * 3) % vocabulary
    columns = torch.arange(11)
    mask_BT = (
        (columns >= torch.tensor([0, 2, 0, 1, 0, 0, 3])[:, None])
        & (columns < torch.tensor([11, 9, 4, 11, 1, 7, 8])[:, None])
    ).long()
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        output: Mapping[str, Any] = backbone(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    backbone.train(training)
    return cast(Any, output).last_hidden_state[mask_BT.bool()].float()
