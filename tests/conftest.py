"""Shared by all tests: no network, few threads, slow and GPU tests skipped, a tiny random model."""

from __future__ import annotations

import os

# Before anything imports torch or the Hugging Face libraries, in this process and in those that tests start.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ.update(TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg", NO_COLOR="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# The processes that tests start run this tree, whatever is installed.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "src")

import pytest
from hypothesis import HealthCheck, settings

# Derandomised: a failure seen once is seen again.
settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""With generation markers, so that TRL can train on the assistant's turns alone."""

TEXT = (
    "How do I bake bread? Mix flour, water, salt and yeast, let it rise for an hour, then bake it at 220 degrees. "
    "I will not help with that, because it would hurt people. Which response is better? The answer is: (A) (B)"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_slow = pytest.mark.skip(reason="slow: run with --runslow")
    skip_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--runslow"):
            item.add_marker(skip_slow)
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(skip_gpu)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _silent_library() -> Iterator[None]:
    """A command that ran in this process leaves its handler of warnings; other tests see what the library prints."""
    log = logging.getLogger("solon")
    before = list(log.handlers)
    yield
    log.handlers[:] = before


@pytest.fixture(scope="session")
def _tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_causal_lm(_tiny_model: Path) -> Callable[[Path], Path]:
    """tiny_causal_lm(tmp_path): a folder under it with a random 2-layer Llama, 512 tokens of context, seed 0.

    Byte-level BPE tokenizer (any text goes in and comes back), chat template, pad token that is not the end token.
    """

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(_tiny_model, folder / "tiny-model"))

    return copy
