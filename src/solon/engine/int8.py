"""A model whose linear layers multiply 8-bit integers, for generation on a CPU.

    writer = in_int8(model)         # beside `model`, with whose embeddings, norms and buffers it works

Weights are rounded once, a scale per output; what comes in is rounded anew, a scale per token ("W8A8" with dynamic
per-token scales; Yao et al. 2022, ZeroQuant, arXiv:2206.01861, section 4.1), so that a token's numbers do not depend on
what stands beside it in the batch. Sums are exact (32 bits); all else of the model is float32. Shape suffixes: M
tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from solon.errors import InputError

_onednn: Any = torch.ops.onednn

_LARGEST = 127
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of sibling layers with the same input: they are one product, which is faster than several small ones."""


class _Product:
    """The weights of one linear layer, or of several with the same input."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._sizes = [layer.out_features for layer in layers]
        weight_NK = torch.cat([layer.weight for layer in layers])
        self._scale_N = (weight_NK.abs().amax(1) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        rounded_NK = (weight_NK / self._scale_N[:, None]).round_().to(torch.int8)
        self._weight = _onednn.qlinear_prepack(rounded_NK, None)
        self._zero_N = torch.zeros(len(weight_NK), dtype=torch.int32)
        self._bias_N: Tensor | None = None
        biases: list[Tensor | None] = [cast(Any, layer).bias for layer in layers]
        if any(bias is not None for bias in biases):
            sizes_and_biases = zip(self._sizes, biases, strict=True)
            self._bias_N = torch.cat([torch.zeros(size) if bias is None else bias for size, bias in sizes_and_biases])
        self._given: Tensor | None = None
        self._parts: Sequence[Tensor] = ()

    def part(self, number: int, given: Tensor) -> Tensor:
        """The output of layer `number`. The first one that is asked computes all, the last one forgets them."""
        if self._given is not given:
            out_MN = self._multiply(given.reshape(-1, given.shape[-1]))
            out = out_MN.reshape(*given.shape[:-1], out_MN.shape[1])
            self._given, self._parts = given, cast(Any, torch).split(out, self._sizes, dim=-1)
        part = self._parts[number]
        if number == len(self._sizes) - 1:
            self._given, self._parts = None, ()
        return part

    def _multiply(self, given_MK: Tensor) -> Tensor:
        scale_M1 = (given_MK.abs().amax(1, keepdim=True) / _LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
        rounded_MK = (given_MK / scale_M1).round_().to(torch.int8)
        if len(rounded_MK) == 1:  # some shapes are twenty times slower with one token than with two
            rounded_MK = rounded_MK.expand(2, -1).contiguous()
        out_MN = _product(rounded_MK, self._weight, self._scale_N, self._zero_N)[: len(scale_M1)]
        return out_MN.mul_(scale_M1) if self._bias_N is None else torch.addcmul(self._bias_N, out_MN, scale_M1)


class _Int8Linear(nn.Module):
    """In the place of an nn.Linear."""

    def __init__(self, product: _Product, number: int) -> None:
        super().__init__()
        self._product, self._number = product, number

    def forward(self, given: Tensor) -> Tensor:
        return self._product.part(self._number, given)


def in_int8(model: Any) -> Any:
    """A model beside `model`, which stays as it is; they share all tensors but the weights of linear layers.

    Replaced is every nn.Linear, also an output layer whose weights are the embedding's. Raises InputError where the CPU
    or this build of PyTorch does not multiply 8-bit integers exactly.
    """
    if not _exact():
        raise InputError(
            "int8 cannot be used: this CPU (or this build of PyTorch) does not multiply 8-bit integers exactly",
            remedy="set `dtype: float32` or `bfloat16`; int8 wants AVX-512 or VNNI",
        )
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    with torch.inference_mode():
        writer = deepcopy(model, shared)
        for parent, names in list(_linear(writer)):
            product = _Product([getattr(parent, name) for name in names])
            for number, name in enumerate(names):
                setattr(parent, name, _Int8Linear(product, number))
    return writer


def _linear(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Names of linear children that are multiplied together, with their parent."""
    for parent in model.modules():
        names = [name for name, child in parent.named_children() if type(child) is nn.Linear]
        for some in _TOGETHER:
            if set(some) <= set(names) and len({getattr(parent, name).in_features for name in some}) == 1:
                yield parent, some
                names = [name for name in names if name not in some]
        yield from ((parent, (name,)) for name in names)


def _product(rounded_MK: Tensor, weight: Tensor, scale_N: Tensor, zero_N: Tensor) -> Tensor:
    """The product of integers, times the weights' scales, in float32: what PyTorch's own quantised models run on CPUs.

    Of its schema: the scale and zero of the input, those of the weights, a bias, the scale, zero and dtype of the
    output, and what is computed of it.
    """
    return _onednn.qlinear_pointwise(
        rounded_MK, 1.0, 0, weight, scale_N, zero_N, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _exact() -> bool:
    """Whether the greatest sums come out right: without VNNI, pairs of products can be cut off at 16 bits."""
    size = 256
    try:
        ends = torch.tensor([_LARGEST, -_LARGEST], dtype=torch.int8)[:, None].expand(2, size).contiguous()
        weight = _onednn.qlinear_prepack(ends, None)
        out = _product(ends, weight, torch.ones(2), torch.zeros(2, dtype=torch.int32))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    most = float(size * _LARGEST**2)
    return torch.equal(out, torch.tensor([[most, -most], [-most, most]]))
