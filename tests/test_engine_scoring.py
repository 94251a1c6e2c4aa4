"""Scoring by a trie against one plain forward pass per continuation: families of models, random tries, cuts of passes,
and the models that need rows of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from solon.engine import scoring
from solon.engine.scoring import First, Scorer, passes, scorer_for
from solon.engine.trie import Continuation, build_trie

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MAKERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama, a key head per query head": lambda: LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_key_value_heads": 4})),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**{**SHAPE, "num_key_value_heads": 1})),
    "mistral, window of 12": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=12)),
    "gemma2, capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE)),
    "bloom, no rotary positions": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    ),
    "llama, rope by length": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    ),
}
SHARING = ("llama", "llama, a key head per query head", "qwen2", "qwen3", "mistral", "gemma")


@cache
def model_of(name: str) -> Any:
    """Weights far from the initial ones, so that attention and distributions are peaked and errors show."""
    torch.manual_seed(1)
    model = MAKERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return model


def alone(model: Any, one: Continuation) -> float:
    """One plain forward pass, every logit."""
    with torch.inference_mode():
        logprobs = model(torch.tensor([one.ids])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[place - 1, one.ids[place]]) for place in range(one.start, len(one.ids)))


def judgements(*, few_shot: int = 30, principles: int = 3, step: int = 7) -> list[Continuation]:
    """The shape of a judge's questions: shared beginning, two orders, several principles, two options of three tokens;
    then an option that is the beginning of another, the same one again, and one that nothing else shares."""
    beginning = tuple(step * place % 59 + 1 for place in range(few_shot))
    found: list[Continuation] = []
    for order in range(2):
        for principle in range(principles):
            prompt = (*beginning, 5 + order, 9, 11, 20 + principle, 21, 22 + order)
            found += [Continuation((*prompt, 3, option, 4), len(prompt)) for option in (30, 31)]
    longest = found[0]
    return [*found, longest, Continuation(longest.ids[:-1], longest.start), Continuation((40, 41, 42), 1)]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("pass_tokens", [5, 2048])
def test_log_probabilities_are_those_of_a_plain_forward_pass(name: str, pass_tokens: int) -> None:
    model, asked = model_of(name), judgements()
    scorer = replace(scorer_for(model), pass_tokens=pass_tokens)
    assert scorer.longest == (math.inf if name in SHARING else 12 if "window" in name else 0)
    expected = [alone(model, one) for one in asked]
    assert max(map(abs, expected)) > 1
    assert scorer.score(asked) == pytest.approx(expected, abs=1e-4)
    assert model.config._attn_implementation != scoring.TREE_ATTENTION, "generation goes on as before"


@pytest.mark.parametrize("name", MAKERS)
def test_rows_of_their_own_give_the_same(name: str) -> None:
    model, asked = model_of(name), judgements()
    assert Scorer(model, 0).score(asked) == pytest.approx([alone(model, one) for one in asked], abs=1e-4)


def test_a_window_is_kept_by_scoring_what_is_longer_apart() -> None:
    model = model_of("mistral, window of 12")
    short = [Continuation((1, 2, 3, *range(10, 10 + length)), 2) for length in range(1, 20)]
    assert {len(one.ids) - 1 > 12 for one in short} == {True, False}
    assert scorer_for(model).score(short) == pytest.approx([alone(model, one) for one in short], abs=1e-4)


@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=10),
    pass_tokens=st.integers(1, 40),
    logits=st.integers(1, 10),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_random_tries_in_passes_of_any_size(rows: list[list[int]], pass_tokens: int, logits: int, rng: Any) -> None:
    model = model_of("llama")
    asked = [Continuation(tuple(row), rng.randint(1, len(row))) for row in rows]
    before, scoring._LOGITS = scoring._LOGITS, logits * 61
    try:
        got = Scorer(model, math.inf, pass_tokens).score(asked)
    finally:
        scoring._LOGITS = before
    assert got == pytest.approx([alone(model, one) for one in asked], abs=1e-4)


@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), min_size=1, max_size=10),
    most_tokens=st.integers(1, 20),
    most_logits=st.integers(1, 5),
)
def test_a_trie_has_a_node_per_beginning_and_its_passes_are_bounded(
    rows: list[list[int]], most_tokens: int, most_logits: int
) -> None:
    asked = [Continuation(tuple(row), len(row) - 1) for row in rows]
    trie = build_trie(asked, range(len(asked)))
    beginnings = {one.ids[:length] for one in asked for length in range(1, len(one.ids))}
    assert len(trie.ids) == len(beginnings)
    paths: list[tuple[int, ...]] = []
    for node, (token, depth) in enumerate(zip(trie.ids, trie.depths, strict=True)):
        above = [one for one in trie.segments if one.end <= node < one.last or one.start <= node < one.end]
        ancestors = [at for one in sorted(above, key=lambda one: one.start) for at in range(one.start, one.end)]
        paths.append(tuple(trie.ids[at] for at in ancestors if at <= node))
        assert (paths[node][-1], len(paths[node])) == (token, depth + 1)
    assert set(paths) == beginnings
    assert sorted((paths[one.node], one.token) for one in trie.wanted) == sorted(
        (one.ids[:-1], one.ids[-1]) for one in asked
    )
    cut = list(passes(trie, First(), most_tokens=most_tokens, most_logits=most_logits))
    assert [one.start for one in cut] == [0, *(one.end for one in cut[:-1])] and cut[-1].end == len(trie.ids)
    for nodes in cut:
        assert nodes.end - nodes.start <= most_tokens
        assert len({one.node for one in trie.wanted if nodes.start <= one.node < nodes.end}) <= most_logits


def test_a_shared_beginning_is_run_once_and_only_its_path_is_kept() -> None:
    """Tokens through the model, logits made, and keys held, as a spy on the model sees them."""
    model, asked = model_of("llama"), judgements(few_shot=100)[:12]
    seen: list[tuple[int, int, int]] = []

    class Spy:
        config, device, dtype = model.config, model.device, model.dtype

        def __call__(self, **given: Any) -> Any:
            out, memory = model(**given), given["nodes"].memory
            held = max((sum(one.keys.shape[2] for one in kept.values()) for kept in memory.values()), default=0)
            seen.append((given["input_ids"].numel(), out.logits.shape[1], held))
            return out

    scorer = Scorer(Spy(), math.inf, 25)
    scorer.score(asked)
    nodes = {one.ids[:length] for one in asked for length in range(1, len(one.ids))}
    scored = {one.ids[:place] for one in asked for place in range(one.start, len(one.ids))}
    assert sum(tokens for tokens, _, _ in seen) == len(nodes) < sum(len(one.ids) for one in asked) / 5
    assert sum(logits for _, logits, _ in seen) == len(scored)
    assert max(held for _, _, held in seen) <= max(len(one.ids) for one in asked)
    assert seen[-1][2] == 25, "at the end, as much of the first segment as a pass may hold"
    seen.clear()
    scorer.score(asked)
    assert sum(tokens for tokens, _, _ in seen) == len(nodes) - 25


@given(
    calls=st.lists(
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=5), min_size=2, max_size=5
    ),
    pass_tokens=st.integers(1, 40),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_what_is_known_of_the_call_before_changes_nothing(
    calls: list[list[list[int]]], pass_tokens: int, rng: Any
) -> None:
    model = model_of("llama")
    scorer = Scorer(model, math.inf, pass_tokens)
    for rows in calls:
        asked = [Continuation(tuple(row), rng.randint(1, len(row))) for row in rows]
        assert scorer.score(asked) == pytest.approx([alone(model, one) for one in asked], abs=1e-4)


def test_a_cap_or_a_sink_in_the_attention_is_refused_and_not_ignored() -> None:
    query = torch.zeros(1, 2, 3, 4)
    for unknown in ("softcap", "s_aux"):
        with pytest.raises(NotImplementedError, match=unknown):
            scoring.attend_tree(torch.nn.Identity(), query, query, query, None, nodes=None, **{unknown: 1.0})  # type: ignore[arg-type]


def test_in_bfloat16_the_error_is_that_of_the_dtype() -> None:
    model: Any = MAKERS["llama"]().eval().to(torch.bfloat16)
    asked = judgements()
    scorer = scorer_for(model)
    assert scorer.longest == math.inf
    for value, expected in zip(scorer.score(asked), [alone(model, one) for one in asked], strict=True):
        assert value == pytest.approx(expected, abs=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*SHARING, "mistral, window of 12"])
def test_on_a_gpu_log_probabilities_are_those_of_a_plain_forward_pass(name: str) -> None:
    model, asked = MAKERS[name]().eval().cuda(), judgements()
    scorer = replace(scorer_for(model), pass_tokens=50)
    assert scorer.longest > 0
    with torch.inference_mode():
        logits = [model(torch.tensor([one.ids], device="cuda")).logits[0].float().log_softmax(-1) for one in asked]
    expected = [
        sum(float(rows[place - 1, one.ids[place]]) for place in range(one.start, len(one.ids)))
        for one, rows in zip(asked, logits, strict=True)
    ]
    assert scorer.score(asked) == pytest.approx(expected, abs=1e-3)
