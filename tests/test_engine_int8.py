"""The local engine in int8: near float32 in four families of models, and a token's numbers are its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from solon.engine import ChoiceRequest, LocalEngineConfig, load_engine
from solon.engine.int8 import _exact, _Int8Linear, _Product, in_int8
from solon.engine.local import LocalEngine
from solon.engine.slots import Slots
from test_engine_local import TEXTS, ask, dialogue, sharpened
from test_engine_sharing import FAMILIES, expected, model_of, tokens

pytestmark = pytest.mark.skipif(not _exact(), reason="this CPU cannot multiply 8-bit integers exactly")


def layer(inputs: int, outputs: int, *, bias: bool = False, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Each row to whole multiples of its greatest number's 127th part; in float64, so that sums are exact."""
    scale = (x.double().abs().amax(-1, keepdim=True) / 127).clamp_min(1e-38)
    return (x.double() / scale).round() * scale


@given(st.integers(1, 5), st.sampled_from([8, 33, 160]), st.sampled_from([1, 7, 160]), st.booleans())
def test_a_product_is_that_of_the_rounded_numbers(size: int, inputs: int, outputs: int, bias: bool) -> None:
    one = layer(inputs, outputs, bias=bias)
    with torch.inference_mode():
        given_MK = torch.randn(size, inputs)
        right_MN = rounded(given_MK) @ rounded(one.weight).T + (one.bias if bias else 0)
        got_MN = _Product([one]).part(0, given_MK)
    torch.testing.assert_close(got_MN, right_MN.float(), atol=1e-5, rtol=1e-5)


def test_layers_that_are_multiplied_together_give_what_each_gives_alone() -> None:
    layers = [layer(16, 24, seed=1), layer(16, 8, bias=True, seed=2), layer(16, 8, seed=3)]
    together = _Product(layers)
    with torch.inference_mode():
        for given_ in (torch.randn(2, 3, 16), torch.randn(1, 1, 16)):
            for number, one in enumerate(layers):
                torch.testing.assert_close(together.part(number, given_), _Product([one]).part(0, given_))
        # The second is asked first, for another input: it is not given the numbers of the first.
        first, second = torch.randn(2, 16), torch.randn(2, 16)
        together.part(0, first)
        torch.testing.assert_close(together.part(1, second), _Product([layers[1]]).part(0, second))


def test_zeros_and_large_numbers_stay_finite() -> None:
    one = _Product([layer(16, 4)])
    with torch.inference_mode():
        assert torch.equal(one.part(0, torch.zeros(2, 16)), torch.zeros(2, 4))
        assert one.part(0, torch.full((2, 16), 1e30)).isfinite().all()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_logits_are_near_those_of_float32(family: str) -> None:
    """Also where the output layer's weights are the embedding's; the model itself is left as it was."""
    model, rng = model_of(family), np.random.default_rng(0)
    prompts = [tokens(rng, int(size)) for size in rng.integers(2, 30, 40)]
    right_BV = expected(model, prompts)
    writer = in_int8(model)
    assert not [one for one in writer.modules() if type(one) is nn.Linear]
    assert isinstance(writer.lm_head, _Int8Linear)
    assert writer.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert torch.equal(expected(model, prompts), right_BV)
    rows = Slots(writer)
    with torch.inference_mode():
        rows.admit(prompts)
        logits_BV = rows.step([prompt[-1] for prompt in prompts])
    assert (logits_BV - right_BV).norm() < 0.07 * right_BV.norm()
    # Next to the error of the weights' and inputs' rounding, that of sums in another order.
    torch.testing.assert_close(logits_BV, expected(writer, prompts), atol=0.03 * right_BV.abs().max().item(), rtol=0)


def test_a_tokens_numbers_do_not_depend_on_what_stands_beside_it() -> None:
    """To the bit, beside any number of others and whatever they hold: scales are per token, and sums are exact."""
    one = _Product([layer(48, 20, bias=True), layer(48, 7)])
    with torch.inference_mode():
        row = torch.randn(1, 48)
        alone = one.part(0, row)
        for number in (1, 2, 15, 64):
            beside = one.part(0, torch.cat([row, 1e3 * torch.randn(number, 48)]))
            assert torch.equal(beside[:1], alone)


@pytest.fixture
def folder(tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]) -> Path:
    return sharpened(tiny_causal_lm(tmp_path))


async def test_texts_are_the_same_alone_and_side_by_side(folder: Path) -> None:
    """Rounding of the float32 attention between the products can cross a boundary of theirs, but rarely."""
    requests = [ask(text, seed=number) for number, text in enumerate(TEXTS)]
    said: list[list[str]] = []
    for size in (1, 3, 16):
        engine = LocalEngine.load(LocalEngineConfig(path=str(folder), dtype="int8", device="cpu", max_batch=size))
        said.append([one.text for one in await asyncio.gather(*(engine.generate(one) for one in requests))])
        await engine.aclose()
    for other in said[1:]:
        assert sum(a == b for a, b in zip(said[0], other, strict=True)) >= len(TEXTS) - 1


async def test_choices_are_those_of_float32(folder: Path) -> None:
    asked = [ChoiceRequest(prompt=dialogue(text), options=("(A)", "(B)")) for text in TEXTS]
    got: list[Any] = []
    for dtype in ("float32", "int8"):
        engine = await load_engine(LocalEngineConfig.model_validate({"path": str(folder), "dtype": dtype}))
        got.append(await engine.choose(asked))
        await engine.aclose()
        assert any("int8" in note for note in engine.capabilities.notes) == (dtype == "int8")
    assert got[0] == got[1]


def test_a_gpu_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValidationError, match=r"int8` is for CPUs and not for 'cuda:0': set `dtype: bfloat16`"):
        LocalEngineConfig(path="sandbox:base", dtype="int8", device="cuda:0")
