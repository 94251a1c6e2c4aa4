"""Chains over a server: the share of it that is busy, as solon runs them and with a barrier after every round.

    python benchmarks/engine_chains.py --chains 1000 --in-flight 64

The chains are those of the first stage: response, then critique and revision four times, nine requests of which each
needs the one before. `solon` is the stage itself (`revise`: chains, window, journal on disk) over a simulated server,
whose answers take log-normal times (sigma 1) and which works on --in-flight of them at a time, behind the gate that the
real client has. `barrier` asks the first request of all chains, waits, asks the second, and so on, as a batch API does,
with the same times: each derives from the request's seed. Busy is the time of all answers over the time of the places.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from solon.artifact import RunFolder, content_id, derive_seed
from solon.config import Recipe, load_recipe
from solon.constitution import Constitution
from solon.dialogue import PromptRow
from solon.engine import Capabilities, Choice, ChoiceRequest, Completion, Request
from solon.engine.replicas import Replica
from solon.errors import EngineError
from solon.supervised import revise

RECIPE = Path(__file__).parents[1] / "recipes" / "sandbox.yaml"
ROUNDS = 4
REQUESTS = 1 + 2 * ROUNDS
SIGMA = 1.0


class Simulated:
    """An engine that takes its time."""

    def __init__(self, *, in_flight: int, mean_s: float) -> None:
        self._gate, self._mean_s = Replica("http://simulated/v1", most=in_flight), mean_s
        self.busy_s = 0.0
        self.requests = 0
        self.capabilities = Capabilities(model="simulated", logprobs="none", seed=True, max_context=None)

    async def generate(self, request: Request) -> Completion:
        await self.answer(request.seed)
        return Completion(text="It is noted.", finish_reason="stop", prompt_tokens=100, completion_tokens=4)

    async def answer(self, seed: int) -> None:
        """Hold a place for as long as the answer takes."""
        draw = random.Random(seed).lognormvariate(-SIGMA * SIGMA / 2, SIGMA)
        await self._gate.enter()
        began_s = time.perf_counter()
        try:
            await asyncio.sleep(self._mean_s * draw)
        finally:
            self._gate.leave()
            self.busy_s += time.perf_counter() - began_s
            self.requests += 1

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
        raise EngineError("the simulated server only writes", reason="no-logprobs")

    async def aclose(self) -> None:
        pass


async def chains(engine: Simulated, rows: Sequence[PromptRow], *, recipe: Recipe) -> None:
    """The stage, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        stage = RunFolder(Path(folder)).stage("01-revisions")
        stage.begin(config={}, inputs={})
        await revise(recipe, stage, constitution=Constitution.load("harmless"), engine=engine, prompts=rows)


async def barrier(engine: Simulated, rows: Sequence[PromptRow], *, recipe: Recipe) -> None:
    """Round after round, each of which waits for its slowest answer."""
    steps = ["response", *(f"{what}-{n}" for n in range(1, ROUNDS + 1) for what in ("critique", "revision"))]
    for step in steps:
        await asyncio.gather(*(engine.answer(derive_seed(recipe.seed, row["id"], step)) for row in rows))


async def measure(arguments: argparse.Namespace) -> None:
    """Print the table."""
    seeds = range(arguments.seeds)
    print(
        f"{arguments.chains} chains of {REQUESTS} requests, {arguments.in_flight} in flight, mean {arguments.mean_s} s"
    )
    ratios: list[float] = []
    for seed in seeds:
        rows = [prompt(f"{seed} {n}") for n in range(arguments.chains)]
        flags = [f"seed={seed}", f"revisions.rounds={ROUNDS}", f"revisions.window={arguments.window}"]
        recipe = load_recipe(RECIPE, flags)
        took: dict[str, float] = {}
        for name, way in (("solon", chains), ("barrier", barrier)):
            engine = Simulated(in_flight=arguments.in_flight, mean_s=arguments.mean_s)
            began_s = time.perf_counter()
            await way(engine, rows, recipe=recipe)
            took[name] = time.perf_counter() - began_s
            assert engine.requests == REQUESTS * arguments.chains
            share = engine.busy_s / (arguments.in_flight * took[name])
            print(f"seed {seed}  {name:8} {took[name]:7.1f} s   busy {share:.3f}")
        ratios.append(took["barrier"] / took["solon"])
        print(f"seed {seed}  ratio    {ratios[-1]:7.2f}")
    print(f"geometric mean of the ratios {math.prod(ratios) ** (1 / len(ratios)):.2f}, window {arguments.window}")


def prompt(text: str) -> PromptRow:
    turns = [{"role": "user", "content": f"Question {text}?"}]
    return {"id": content_id(turns), "prompt": turns, "kind": "red-team", "source": "simulated"}  # type: ignore[typeddict-item]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument(
        "--window", type=int, default=128, help="chains under way (revisions.window; 128 is its default)"
    )
    parser.add_argument("--mean-s", type=float, default=0.1, help="mean time of an answer")
    parser.add_argument("--seeds", type=int, default=3)
    asyncio.run(measure(parser.parse_args()))
