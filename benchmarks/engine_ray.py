"""The same rows over two Ray actors, and in two plain processes with the same engines: rows per second.

    python benchmarks/engine_ray.py                            # a Llama of 40 M random weights
    python benchmarks/engine_ray.py --model sandbox:helpful --rows 400

The rows are chains of the first stage: response, critique, revision. `ray` is the stage as `kind: ray` runs it: chains,
window and journal in this process, every request passed to the actor of its row. `plain` is the least that there is:
two processes of which each has an engine and runs the stage on its own half of the rows, so that nothing passes between
them but the word to begin. Both give a row to the same half, every engine has one thread, and the models are loaded
before the clock starts. The two take turns; `ratio` is plain's time over Ray's. Beside it stands the same ratio of the
CPU seconds of all processes, Ray's own included, which other work on the machine does not change; the text is the same,
and it is seen to be. `actors` passes requests that take no work, so that what Ray costs per request is seen.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

# One thread an engine, in this process's children too.
os.environ["OMP_NUM_THREADS"] = "1"

import psutil

from solon.artifact import StageFolder, content_id, read_rows
from solon.config import Recipe
from solon.constitution import Constitution
from solon.dialogue import PromptRow
from solon.engine import Engine, LocalEngineConfig, RayEngineConfig, Request, Sampling, load_engine
from solon.engine.replicas import Replicas
from solon.supervised import revise

ACTORS = 2
STEPS = 3


def recipe(*, new_tokens: int, window: int) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "engine-ray",
            "model": {"path": "unused"},
            "prompts": {"path": "unused"},
            "revisions": {"rounds": 1, "few_shot": 0, "window": window, "sampling": {"max_new_tokens": new_tokens}},
        }
    )


def prompts(num: int) -> list[PromptRow]:
    return [
        {
            "id": f"row {n}",
            "prompt": [{"role": "user", "content": f"How do I get into house number {n} without being seen?"}],
            "kind": "red-team",
            "source": "benchmark",
        }
        for n in range(num)
    ]


def llama(folder: Path) -> Path:
    """About 40 M random weights, with the tokenizer and the template of the sandbox's models."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from solon.sandbox import checkpoint

    tokenizer = AutoTokenizer.from_pretrained(checkpoint("helpful"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    print(f"a Llama of {sum(one.numel() for one in model.parameters()) / 1e6:.1f} M random weights")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Done(NamedTuple):
    """What a run of the stage has written."""

    tokens: int
    texts: list[str]
    """A hash of every row, sorted."""


async def run_stage(engine: Engine, rows: Sequence[PromptRow], settings: Recipe) -> Done:
    """The stage in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        stage = StageFolder(Path(folder) / "01-revisions")
        stage.begin(config={}, inputs={})
        constitution = Constitution.load("harmless")
        await revise(settings, stage, constitution=constitution, engine=engine, prompts=rows)
        done = list(read_rows(stage.path / "revisions.jsonl"))
        assert len(done) == len(rows), f"{len(rows) - len(done)} rows failed"
        return Done(sum(row["tokens"]["completion"] for row in done), sorted(map(content_id, done)))


# ---- two plain processes


def work(told: Connection, config: LocalEngineConfig, rows: Sequence[PromptRow], settings: Recipe) -> None:
    """A process: load the engine, then run the stage on its rows whenever it is told to."""
    import torch

    torch.set_num_threads(1)

    async def serve() -> None:
        engine = await load_engine(config)
        told.send("ready")
        while await asyncio.to_thread(told.recv):
            told.send(await run_stage(engine, rows, settings))
        await engine.aclose()

    asyncio.run(serve())


class Plain:
    """Two processes, each with its share of the rows: that of the actor of the same number."""

    def __init__(self, config: LocalEngineConfig, rows: Sequence[PromptRow], settings: Recipe) -> None:
        replicas = Replicas([f"actor {number}" for number in range(ACTORS)], most=1)
        fresh = multiprocessing.get_context("spawn")
        self._told: list[Connection] = []
        self.processes: list[psutil.Process] = []
        for replica in replicas.all:
            mine = [row for row in rows if replicas.of(row["id"]) is replica]
            ours, its = fresh.Pipe()
            process = fresh.Process(target=work, args=(its, config, mine, settings), daemon=True)
            process.start()
            self.processes.append(psutil.Process(process.pid))
            self._told.append(ours)
        for told in self._told:
            told.recv()

    def run(self) -> Done:
        """All rows once."""
        for told in self._told:
            told.send(True)
        halves: list[Done] = [told.recv() for told in self._told]
        return Done(sum(half.tokens for half in halves), sorted(text for half in halves for text in half.texts))

    def end(self) -> None:
        for told, process in zip(self._told, self.processes, strict=True):
            told.send(False)
            process.wait()


# ---- both


async def cost_of_a_request(engine: Engine, num: int) -> float:
    """Milliseconds of a request that asks for nothing, 64 at a time: this process's share of Ray's work, and more."""
    # A prompt that is refused by its length comes back at once.
    request = Request(prompt=({"role": "user", "content": "Hello"},), sampling=Sampling(max_new_tokens=10**6))
    left = iter(range(num))

    async def ask() -> None:
        for number in left:
            try:
                await engine.generate(Request(prompt=request.prompt, sampling=request.sampling, session=str(number)))
            except Exception as error:
                assert "context" in str(error), error

    began_s = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(64)))
    return 1000 * (time.perf_counter() - began_s) / num


async def measure(arguments: argparse.Namespace, model: str) -> None:
    """Print a line a round, and the row of the table."""
    rows = prompts(arguments.rows)
    config = LocalEngineConfig(path=model, max_batch=arguments.max_batch)
    window = 2 * arguments.max_batch
    halves = recipe(new_tokens=arguments.new_tokens, window=window // ACTORS)
    whole = recipe(new_tokens=arguments.new_tokens, window=window)
    plain = Plain(config, rows, halves)
    engine = await load_engine(RayEngineConfig(engine=config, actors=ACTORS))
    this = psutil.Process()
    rays = [one for one in this.children(recursive=True) if one not in plain.processes]
    found: dict[str, list[Cost]] = {"plain": [], "ray": []}
    texts: set[tuple[str, ...]] = set()
    for number in range(arguments.rounds + 1):
        for name in ("plain", "ray") if number % 2 else ("ray", "plain"):
            whose = [this, *(plain.processes if name == "plain" else rays)]
            began_s, before_s = time.perf_counter(), cpu_s(whose)
            done = await run_stage(engine, rows, whole) if name == "ray" else await asyncio.to_thread(plain.run)
            # The first round warms up.
            found[name] += [Cost(time.perf_counter() - began_s, cpu_s(whose) - before_s)] if number else []
            texts.add(tuple(done.texts))
        if number:
            a, b = found["plain"][-1], found["ray"][-1]
            print(
                f"round {number}: plain {a.wall_s:.1f} s (CPU {a.cpu_s:.1f}), ray {b.wall_s:.1f} s (CPU {b.cpu_s:.1f})",
                flush=True,
            )
    assert len(texts) == 1, "the rows differ"
    cost_ms = await cost_of_a_request(engine, arguments.requests)
    await engine.aclose()
    plain.end()
    for name, costs in found.items():
        middle = statistics.median(cost.wall_s for cost in costs)
        pace = f"{len(rows) / middle:7.2f} rows/s {STEPS * len(rows) / middle:7.1f} requests/s"
        print(f"{name:7} {pace} {done.tokens / middle:9,.0f} tokens/s")
    print(f"actors  {1000 / cost_ms:,.0f} requests/s at most pass through Ray, {cost_ms:.2f} ms each")
    both = list(zip(found["plain"], found["ray"], strict=True))
    wall, cpu = ([getattr(a, what) / getattr(b, what) for a, b in both] for what in ("wall_s", "cpu_s"))
    print(
        f"ratio   {spread(wall)}, of CPU seconds {spread(cpu)}; {len(rows)} rows, {done.tokens:,} tokens; {where()}",
    )


class Cost(NamedTuple):
    """Of a run of the stage."""

    wall_s: float
    cpu_s: float
    """Of all processes that take part."""


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in processes)


def spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def where() -> str:
    import ray

    return (
        f"{date.today().isoformat()}, {os.cpu_count()} cores ({platform.machine()}), "
        f"load {os.getloadavg()[0]:.1f}, Ray {ray.__version__}"
    )


def main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(arguments, arguments.model or str(llama(Path(folder) / "llama"))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, or sandbox:helpful; by default random weights")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--max-batch", type=int, default=32, help="of an engine; twice as many chains are under way")
    parser.add_argument("--requests", type=int, default=2000, help="to measure what Ray costs")
    main(parser.parse_args())
