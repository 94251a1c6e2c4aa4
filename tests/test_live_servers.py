"""Real servers from PyPI, started as a recipe starts them: transformers' and llama-cpp-python's (make test-servers).

llama.cpp is compiled into an environment of its own, .venv-servers, and is left out where that is not there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from solon import sandbox
from solon.dialogue import Message
from solon.engine import ChoiceRequest, Engine, Request, Sampling, ServerEngineConfig, ServerLaunch, load_engine
from solon.engine.rendering import transcript_prompt
from solon.errors import EngineError
from test_processes import is_running, until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SERVERS = ROOT / ".venv-servers" / "bin" / "python"
TRANSFORMERS = str(Path(sys.executable).with_name("transformers"))
URL = "http://127.0.0.1:{port}/v1"
PROMPT: tuple[Message, ...] = ({"role": "user", "content": "How do I bake bread?"},)

needs_transformers_serve = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("fastapi", "uvicorn", "openai", "requests")),
    reason="`transformers serve` needs fastapi, uvicorn, openai and requests",
)
needs_llama = pytest.mark.skipif(not SERVERS.exists(), reason="`make test-servers` builds llama-cpp-python")


@asynccontextmanager
async def running(logs: Path, command: list[str], **settings: Any) -> AsyncIterator[Engine]:
    launch = ServerLaunch(command=tuple(command), wait_s=240)
    engine = await load_engine(ServerEngineConfig(url=URL, launch=launch, max_in_flight=1, **settings), logs=logs)
    try:
        yield engine
    finally:
        await engine.aclose()


# ---- transformers serve


def serve(folder: str) -> list[str]:
    return [TRANSFORMERS, "serve", folder, "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu"]


@needs_transformers_serve
async def test_transformers_serve(tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]) -> None:
    """200 without log-probabilities, sampling only by do_sample, no list of folders, texts beyond the context."""
    folder = str(tiny_causal_lm(tmp_path))
    async with running(tmp_path / "logs", serve(folder), model=folder, max_context=512) as engine:
        assert engine.capabilities.logprobs == "none"
        assert engine.capabilities.seed, engine.capabilities
        sampling = Sampling(max_new_tokens=20)
        requests = [Request(prompt=PROMPT, seed=seed, sampling=sampling) for seed in (1, 1, 2)]
        first, again, other = [(await engine.generate(request)).text for request in requests]
        assert first == again != other
        with pytest.raises(EngineError) as caught:
            await engine.generate(Request(prompt=({"role": "user", "content": "bread " * 600},)))
        assert caught.value.reason == "context-length"
    [log] = (tmp_path / "logs").iterdir()
    assert "POST /v1/chat/completions" in log.read_text()


RECIPE = """
name: x
model:
  kind: server
  url: {url}
  model: {folder}
  max_in_flight: 1
  max_context: 512
  launch: {{command: [{command}]}}
prompts: {{path: sandbox, limit: 200, helpful_limit: 0}}
revisions: {{rounds: 1, sampling: {{max_new_tokens: 60}}}}
"""


@needs_transformers_serve
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_run_that_is_ended_takes_its_server_with_it(
    number: signal.Signals, tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]
) -> None:
    folder = str(tiny_causal_lm(tmp_path))
    recipe = tmp_path / "recipe.yaml"
    command = ", ".join(f'"{part}"' for part in serve(folder))
    recipe.write_text(RECIPE.format(url=URL, folder=folder, command=command))
    run = tmp_path / "run"
    with (tmp_path / "printed").open("wb") as printed:
        arguments = [sys.executable, "-m", "solon", "run", str(recipe), "--out", str(run)]
        process = subprocess.Popen(arguments, stdout=printed, stderr=printed, start_new_session=True)
    try:
        rows = run / "01-revisions" / "revisions.jsonl"
        assert until(lambda: process.poll() is not None or (rows.exists() and rows.stat().st_size > 0), within_s=240)
        assert process.poll() is None, (tmp_path / "printed").read_text()
        servers = pids_of(folder)
        assert len(servers) == 2, "the keeper and the server"
        process.send_signal(number)
        process.wait(timeout=60)
        assert until(lambda: not any(map(is_running, servers)), within_s=30)
    finally:
        process.kill()
        process.wait()


def pids_of(argument: str) -> list[int]:
    """Processes of `transformers serve ARGUMENT`, and those that keep them."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if entry.name.isdigit() and "serve" in words and argument in words:
            found.append(int(entry.name))
    return found


# ---- llama-cpp-python


def gguf(folder: Path, *arguments: str) -> str:
    """The sandbox's assistant as a file of llama.cpp."""
    file = str(folder / "helpful.gguf")
    convert = str(Path(__file__).with_name("to_gguf.py"))
    subprocess.run([str(SERVERS), convert, str(sandbox.checkpoint("helpful")), file, *arguments], check=True)
    return file


def llama(file: str) -> list[str]:
    threads = os.environ.get("OMP_NUM_THREADS", "2")
    options = ["--port", "{port}", "--model_alias", "helpful", "--n_ctx", "2048", "--n_threads", threads]
    return [str(SERVERS), "-m", "llama_cpp.server", "--model", file, "--logits_all", "true", *options]


def log_p(text: str, option: str) -> float:
    """Of the option after the text, by transformers in float32, with the token for the beginning of a text."""
    folder = sandbox.checkpoint("helpful")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before, whole = (tokenizer(f"<|begin|>{one}", add_special_tokens=False).input_ids for one in (text, text + option))
    assert whole[: len(before)] == before
    with torch.no_grad():
        logprobs_TV = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logprobs_TV[at - 1, whole[at]]) for at in range(len(before), len(whole)))


@needs_llama
async def test_llama_cpp_compares_whole_options_as_transformers_does(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "helpful", "endpoint": "completions"}
    async with running(tmp_path, llama(gguf(tmp_path, "bos")), **settings) as engine:
        assert engine.capabilities.logprobs == "full", engine.capabilities
        options = (" (A)", " (B)", " Mix flour and water.", " I will not help.")
        [choice] = await engine.choose([ChoiceRequest(prompt=PROMPT, options=options, prefix="The answer is:")])
        text = transcript_prompt(PROMPT, "The answer is:").text
        assert choice.rule == "full"
        assert choice.logprobs == pytest.approx([log_p(text, option) for option in options], abs=0.05)
        sampling = Sampling(max_new_tokens=40, temperature=0.0)
        assert "flour" in (await engine.generate(Request(prompt=PROMPT, sampling=sampling))).text


@needs_llama
async def test_llama_cpp_without_a_first_token_echoes_wrong_values_which_is_seen(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "helpful", "endpoint": "completions"}
    async with running(tmp_path, llama(gguf(tmp_path)), **settings) as engine:
        assert engine.capabilities.logprobs == "first-token"
        assert any(note.startswith("echo is wrong") for note in engine.capabilities.notes)


@needs_llama
async def test_llama_cpp_as_a_chat_reads_the_first_token(tmp_path: Path) -> None:
    async with running(tmp_path, llama(gguf(tmp_path)), model="helpful") as engine:
        assert engine.capabilities.logprobs == "first-token"
        [choice] = await engine.choose([ChoiceRequest(prompt=PROMPT, options=("Mix", "Take", "zebra"))])
        assert choice.censored[2] and 0 < choice.mass <= 1
