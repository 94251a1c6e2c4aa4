"""Beginnings that rows share and what is kept of chains, against plain forward passes of four families of models."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from solon.dialogue import Message
from solon.engine import LocalEngineConfig, Request, Sampling
from solon.engine.attention import ATTENTION, KeysValues, Shared, _plain_attention, attend, dtype_of_keys
from solon.engine.decoding import rows_for
from solon.engine.graphs import Graphs, Reading, rounded
from solon.engine.local import LocalEngine
from solon.engine.sharing import common_beginnings, common_length
from solon.engine.slots import Slots
from solon.supervised import critique_prompt, revision_prompt

FAMILIES: dict[str, Any] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2}),
    "qwen": (Qwen3ForCausalLM, Qwen3Config, {"num_key_value_heads": 2, "head_dim": 8}),
    "mistral": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 4, "sliding_window": None}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {"num_key_value_heads": 1, "head_dim": 8}),
}
VOCABULARY = 97


def model_of(family: str) -> Any:
    kind, config, shape = FAMILIES[family]
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = kind(config(vocab_size=VOCABULARY, max_position_embeddings=256, initializer_range=0.3, **sizes, **shape))
    model.eval().set_attn_implementation(ATTENTION)
    return model


@contextmanager
def tokens_read(model: Any) -> Iterator[list[int]]:
    """Numbers of tokens of the forward passes, padding included."""
    seen: list[int] = []

    def count(_: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["input_ids"].numel() if kwargs else args[0].numel())

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    yield seen
    handle.remove()


def tokens(rng: np.random.Generator, size: int) -> list[int]:
    return rng.integers(0, VOCABULARY, size).tolist()


def expected(model: Any, texts: list[list[int]]) -> torch.Tensor:
    model.set_attn_implementation("sdpa")
    logits = torch.stack([model(torch.tensor([text], device=model.device)).logits[0, -1] for text in texts])
    model.set_attn_implementation(ATTENTION)
    return logits


# ---- rows


class Passes:
    """In place of recorded steps: padded like those, and run."""

    def __init__(self, run: Callable[[Reading], torch.Tensor]) -> None:
        self.run = run
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, reading: Reading) -> torch.Tensor:
        self.shapes.append(reading.shape)
        return self.run(reading)

    def clear(self) -> None:
        self.shapes.append(())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_rows_that_share_and_chains_that_go_on_give_the_models_own_logits(
    family: str, bounded: bool, device: str, padded: bool
) -> None:
    """Rows with one of two beginnings or none come and go; chains go on with all, with a part or with nothing of what
    they had. `bounded`: there is room for next to nothing, so that what was kept must be read again. `padded`: as steps
    are that are recorded, on a GPU they are."""
    model = model_of(family).to(device)
    found = rows_for(model)
    assert isinstance(found, Slots) and found.least_rows
    rows = Slots(model, least_tokens=5, least_rows=2, record=padded)
    if padded and device == "cpu":
        rows.graphs = Passes(rows._run)  # type: ignore[assignment]
    if bounded:
        rows.beginnings.limit = 8000
    rng = np.random.default_rng(0)
    starts = [tokens(rng, 30), tokens(rng, 12), []]
    texts: list[list[int]] = []
    names: list[str] = []
    left: list[tuple[str, list[int]]] = []
    num_shared = 0
    with torch.inference_mode():
        for turn in range(20):
            new = [(f"{turn}-{n}", [*starts[rng.integers(3)], *tokens(rng, int(rng.integers(1, 9)))]) for n in range(2)]
            for name, text in left[: int(rng.integers(0, 3))]:
                cut = int(rng.integers(1, len(text) + 1)) if rng.random() < 0.5 else len(text)
                new.append((name, [*text[:cut], *tokens(rng, int(rng.integers(1, 9)))]))
            rows.admit([text for _, text in new], [name for name, _ in new])
            texts += [text for _, text in new]
            names += [name for name, _ in new]
            logits_BV = rows.step([text[-1] for text in texts])
            torch.testing.assert_close(logits_BV, expected(model, texts), atol=1e-4, rtol=0)
            num_shared += sum(slot.beginning is not None for slot in rows.slots)
            order = rows.compact([bool(rng.random() < 0.6) for _ in texts])
            left = [(names[row], texts[row]) for row in range(len(texts)) if row not in order]
            texts = [[*texts[row], int(rng.integers(VOCABULARY))] for row in order]
            names = [names[row] for row in order]
            stored = sum(store.nbytes for layer in rows.layers for store in layer.store)
            assert rows.chains.num_bytes <= stored
            assert sum(one.num_bytes for one in rows.beginnings.stored) <= rows.beginnings.limit
        assert num_shared > (0 if bounded else 20)
        rows.compact([False] * len(texts))
    users = [slot.beginning for slot in rows.chains.kept.values() if slot.beginning is not None]
    assert sum(one.users for one in rows.beginnings.stored) == len(users)


@pytest.mark.gpu
def test_a_step_of_a_shape_that_came_before_is_replayed() -> None:
    """The forward is called by Python twice: to warm up, and to record."""
    model = model_of("llama").to("cuda")
    rng = np.random.default_rng(0)
    few_shot = tokens(rng, 40)
    texts = [[*few_shot, row, *tokens(rng, 9)] for row in range(6)]
    rows = rows_for(model)
    with torch.inference_mode(), tokens_read(model) as seen:
        rows.admit(texts)
        before = len(seen)
        for _ in range(8):
            logits_BV = rows.step([text[-1] for text in texts])
            torch.testing.assert_close(logits_BV, expected(model, texts), atol=1e-4, rtol=0)
            texts = [[*text, int(rng.integers(VOCABULARY))] for text in texts]
        # Those of `expected` have one row each.
        assert sum(size > 1 for size in seen[before:]) - 8 * 6 == 2


class Driver:
    """As much of torch.cuda as recording needs. A replay repeats what was recorded, on the numbers that stand there."""

    def __init__(self) -> None:
        self.pools: list[Any] = []
        self.num_replays = 0

    def CUDAGraph(self) -> Any:
        return self

    @contextmanager
    def graph(self, graph: Any, *, pool: Any, capture_error_mode: str) -> Iterator[None]:
        assert graph is self and capture_error_mode == "thread_local" and not gc.isenabled()
        self.pools.append(pool)
        yield

    def pool(self) -> int:
        return 7

    def replay(self) -> None:
        self.num_replays += 1


def test_a_shape_is_run_once_recorded_once_and_then_replayed_on_new_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, runs = Driver(), list[Reading]()
    monkeypatch.setattr("solon.engine.graphs._cuda", driver)

    def run(reading: Reading) -> torch.Tensor:
        runs.append(reading)
        return reading.ids_BL.float()

    def reading(token: int, rows: int = 2) -> Reading:
        ids = torch.full((rows, 1), token)
        return Reading(
            ids_BL=ids,
            columns_BL=ids,
            positions_BL=ids,
            rows_B=torch.arange(rows),
            read=slice(rows),
            width=64,
            fresh=False,
            shared=[Shared([], torch.tensor([0]))] if rows == 1 else (),
        )

    graphs = Graphs(run)
    for token in range(5):
        graphs(reading(token))
    assert len(runs) == 2 and driver.num_replays == 4 and gc.isenabled()
    assert runs[1].ids_BL.tolist() == runs[1].columns_BL.tolist() == runs[1].positions_BL.tolist() == [[4], [4]]
    for _ in range(2):
        # Its list of keys and values is another each time.
        graphs(reading(9, rows=1))
    assert len(runs) == 4
    for _ in range(2):
        graphs(reading(9, rows=3))
    assert driver.pools == [None, 7]
    graphs.clear()
    for _ in range(2):
        graphs(reading(9))
    # The old pool went with its graphs.
    assert len(runs) == 8 and driver.pools == [None, 7, None]


def test_a_step_to_be_recorded_has_rows_columns_and_sharers_in_few_numbers() -> None:
    model = model_of("llama")
    rng = np.random.default_rng(0)
    few_shot = tokens(rng, 40)
    texts = [[*few_shot, row, *tokens(rng, 9)] for row in range(17)]
    rows = Slots(model, record=True)
    passes = Passes(rows._run)
    rows.graphs = passes  # type: ignore[assignment]
    with torch.inference_mode():
        rows.admit(texts)
        logits_BV = rows.step([text[-1] for text in texts])
        torch.testing.assert_close(logits_BV, expected(model, texts), atol=1e-4, rtol=0)
    (beginning,) = rows.beginnings.stored
    assert passes.shapes[-1] == (20, 1, 64, id(beginning.layers), 20)


def test_sizes_of_recorded_steps_are_few_and_little_more_than_what_is_needed() -> None:
    sizes = [rounded(number) for number in range(1, 257)]
    assert len(set(sizes)) == 28 and all(number <= size <= 1.25 * number for number, size in enumerate(sizes, start=1))


def test_a_shared_beginning_is_read_once_and_a_chain_goes_on_where_it_was() -> None:
    model = model_of("llama")
    rng = np.random.default_rng(0)
    few_shot = tokens(rng, 100)
    prompts = [[*few_shot, row, *tokens(rng, 9)] for row in range(8)]
    names = [str(row) for row in range(8)]
    rows = rows_for(model)
    with torch.inference_mode():
        with tokens_read(model) as seen:
            rows.admit(prompts, names)
        assert sum(seen) == 100 + 8 * 9  # the last token of a prompt is read by `step`
        rows.step([prompt[-1] for prompt in prompts])
        rows.compact([False] * 8)
        later = [[*prompt, 7, 8, 9] for prompt in prompts]
        with tokens_read(model) as seen:
            rows.admit(later[::-1], names[::-1])
        assert sum(seen) == 8 * 2
        torch.testing.assert_close(rows.step([9] * 8), expected(model, later[::-1]), atol=1e-4, rtol=0)


def test_a_row_that_came_first_is_put_behind_the_beginning_that_it_shares_with_later_ones() -> None:
    """Else its length alone would be that of every row's attention."""
    model = model_of("llama")
    rng = np.random.default_rng(0)
    few_shot = tokens(rng, 100)
    prompts = [[*few_shot, row, *tokens(rng, 9)] for row in range(8)]
    rows = Slots(model)
    with torch.inference_mode():
        rows.admit(prompts[:1])
        with tokens_read(model) as seen:
            rows.admit(prompts[1:])
        assert sum(seen) == 7 * 9
        logits_BV = rows.step([prompt[-1] for prompt in prompts])
        torch.testing.assert_close(logits_BV, expected(model, prompts), atol=1e-4, rtol=0)
    assert rows.reading.width < 20


@pytest.mark.parametrize("has_units", [False, True])
def test_keys_are_in_bfloat16_on_a_cpu_that_has_matrix_units_for_it(
    monkeypatch: pytest.MonkeyPatch, has_units: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_units})
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    half = torch.bfloat16 if has_units else torch.float32
    assert [dtype_of_keys(cpu, dtype) for dtype in (torch.float32, torch.bfloat16)] == [torch.float32, half]
    assert dtype_of_keys(gpu, torch.bfloat16) == torch.bfloat16
    assert Slots(model_of("llama").bfloat16()).dtype == half


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bfloat16_differs_from_float32_by_its_rounding(device: str) -> None:
    model = model_of("llama").to(device)
    rng = np.random.default_rng(0)
    few_shot = tokens(rng, 60)
    prompts = [[*few_shot, row, *tokens(rng, 9)] for row in range(6)]
    right_BV = expected(model, prompts)
    rows = rows_for(model.to(torch.bfloat16))
    with torch.inference_mode():
        rows.admit(prompts)
        logits_BV = rows.step([prompt[-1] for prompt in prompts])
    assert isinstance(rows, Slots) and all(slot.beginning for slot in rows.slots)
    error = (logits_BV - right_BV).norm() / right_BV.norm()
    plain = (expected(model, prompts).float() - right_BV).norm() / right_BV.norm()
    assert error < 1.5 * plain


# ---- attention


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_the_joined_attention_is_that_over_both_parts(length: int, masked: bool) -> None:
    torch.manual_seed(0)
    B, heads, groups, width, size = 4, 6, 2, 8, 11
    own = length + 3 if masked else length
    query, before = torch.randn(B, heads, length, width), torch.randn(2, groups, size, width)
    key, value = torch.randn(B, groups, own, width), torch.randn(B, groups, own, width)
    unseen = torch.ones(length, own, dtype=torch.bool).triu(1 + own - length)
    mask = torch.zeros(B, 1, length, own).masked_fill(unseen, torch.finfo(torch.float32).min) if masked else None
    module: Any = torch.nn.Module()
    module.layer_idx, module.num_key_value_groups = 0, heads // groups
    shared = [Shared([KeysValues(before[0], before[1])], torch.tensor([0, 2]))]
    got, _ = attend(module, query, key, value, mask, shared=shared, scaling=0.3)
    for row in range(B):
        k, v = (
            torch.cat([*([start] if row in (0, 2) else []), one[row]], dim=1)
            for start, one in zip(before, (key, value), strict=True)
        )
        k, v = k.repeat_interleave(heads // groups, 0), v.repeat_interleave(heads // groups, 0)
        scores = 0.3 * query[row] @ k.mT
        scores = scores.masked_fill(torch.nn.functional.pad(unseen, (k.shape[1] - own, 0)), float("-inf"))
        torch.testing.assert_close(got[row], (scores.softmax(-1) @ v).transpose(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_the_plain_attention_is_the_processors(causal: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    mask = None if causal else torch.randn(2, 1, 5, 5)
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask
    )
    got = _plain_attention(query, key, value, mask, scale=None, causal=causal)
    torch.testing.assert_close(got.out, out)
    torch.testing.assert_close(got.logsumexp, logsumexp)


# ---- the engine


async def test_greedy_chains_equal_generate_of_transformers(
    tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]
) -> None:
    """Chains of a response, a critique and a revision after worked examples, more of them than rows."""
    folder = tiny_causal_lm(tmp_path)
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    engine = LocalEngine.load(LocalEngineConfig(path=str(folder), max_batch=6))
    worked: list[Message] = [
        {"role": "user", "content": "Mix flour, water, salt and yeast. "},
        {"role": "assistant", "content": "I will not help with that."},
    ]
    asked: list[list[Message]] = []
    got: list[str] = []

    async def say(messages: list[Message], name: str) -> str:
        request = Request(
            prompt=tuple(messages), session=name, sampling=Sampling(max_new_tokens=4 + len(name) % 9, temperature=0)
        )
        text = (await engine.generate(request)).text
        asked.append(messages)
        got.append(text)
        return text

    async def chain(name: str) -> None:
        conversation: list[Message] = [*worked, {"role": "user", "content": name}]
        response = await say(conversation, name)
        criticised = critique_prompt(conversation, response, "Is it rude?")
        critique = await say(criticised, name)
        await say(revision_prompt(criticised, critique, "Rewrite it."), name)

    with tokens_read(engine._worker.rows.model) as seen:
        await asyncio.gather(*(chain("bake " * n + "bread?" + str(n)) for n in range(12)))
    await engine.aclose()
    whole = 0
    for messages, text in zip(asked, got, strict=True):
        name = messages[2]["content"]
        chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        size = chat["input_ids"].shape[1]
        out = model.generate(**chat, max_new_tokens=4 + len(name) % 9, do_sample=False)[0, size:]
        assert text == tokenizer.decode(out, skip_special_tokens=True)
        whole += size + len(out)
    assert sum(seen) < whole / 2


# ---- what rows have in common


@given(st.lists(st.integers(0, 1), max_size=9), st.lists(st.integers(0, 1), max_size=9))
def test_common_length(one: list[int], other: list[int]) -> None:
    size = common_length(one, other)
    assert one[:size] == other[:size]
    assert size == min(len(one), len(other)) or one[size] != other[size]


def test_the_beginnings_that_spare_most_are_found() -> None:
    few_shot, other = list(range(40)), list(range(50, 90))
    rows = [
        *([*few_shot, n, n] for n in range(5)),
        *([*few_shot, 99, 98, n] for n in range(5)),  # two tokens more, not worth a beginning of their own
        *([*other, n] for n in range(3)),
        [1, 2, 3],
    ]
    found = common_beginnings(rows, [0] * len(rows), least_tokens=10, least_rows=2)
    assert sorted(found) == [tuple(few_shot), tuple(other)]
    assert common_beginnings(rows, [0] * len(rows), least_tokens=10, least_rows=4) == [tuple(few_shot)]
    assert common_beginnings(rows, [0] * len(rows), least_tokens=43, least_rows=2) == []
    have = [40] * 10 + [0] * 4
    assert common_beginnings(rows, have, least_tokens=10, least_rows=2) == [tuple(other)]


@given(st.lists(st.lists(st.integers(0, 1), max_size=7), max_size=9), st.data())
def test_no_other_beginning_spares_more_than_the_best_one(rows: list[list[int]], data: st.DataObject) -> None:
    have = [data.draw(st.integers(0, len(row))) for row in rows]
    found = common_beginnings(rows, have, least_tokens=1, least_rows=2)

    def spared(ids: tuple[int, ...]) -> int:
        behind = [number for number, row in enumerate(rows) if tuple(row[: len(ids)]) == ids]
        gains = [len(ids) - have[number] for number in behind if have[number] < len(ids)]
        return sum(gains) - len(ids) if len(gains) >= 2 else 0

    every = {tuple(row[:size]) for row in rows for size in range(1, len(row) + 1)}
    assert sum(map(spared, found)) >= max(map(spared, every), default=0)
    assert all(spared(ids) > 0 for ids in found)
    assert not any(one != other and other[: len(one)] == one for one in found for other in found)
