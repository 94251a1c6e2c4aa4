"""A million prompts: memory and time of the first stage around an engine that takes none, and of what follows it.

    python benchmarks/scale.py --rows 1000000

A file of prompts is written; then, each in a process of its own so that its memory is its own: `new` runs the stage
(reading, hashes, response, critique and revision of every prompt, rows on disk, manifest), `resumed` begins it again
with all of its rows there (its start-up ends where the first chain could begin; nothing but the manifest is left),
`report` makes the page. Memory is the greatest resident size of the process; beside it
stands what Python and the packages take before anything is read. While rows are made, their pace and the resident size
are shown for every tenth of them, so that what grows is seen. Seconds are those of the CPU, which other work on the
machine hardly changes; the work is that of one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from solon.artifact import RunFolder, write_rows
from solon.config import Recipe
from solon.engine import Capabilities, Choice, ChoiceRequest, Completion, Request
from solon.errors import EngineError
from solon.report import write_report
from solon.run import Run
from solon.supervised import revise

PARTS = ("new", "resumed", "report")
WINDOW = 128
TENTHS = 10


class Canned:
    """An engine that answers at once, and keeps nothing."""

    capabilities = Capabilities(model="canned", logprobs="none", seed=True, max_context=None)

    async def generate(self, request: Request) -> Completion:
        await asyncio.sleep(0)
        text = f"I would rather not, because it could hurt someone. ({request.seed % 10**6})"
        return Completion(text=text, finish_reason="stop", prompt_tokens=100, completion_tokens=14)

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
        raise EngineError("it only writes", reason="no-logprobs")

    async def aclose(self) -> None:
        pass


class Watched:
    """Progress that tells the pace and the memory of every tenth."""

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.total, self.done, self.last_s = total, done, time.process_time()
        print(f"  {done:,} rows were there; start-up {self.last_s - self.began_s:.1f} s, {resident_mib():.0f} MiB")

    def advance(self, n: int = 1) -> None:
        self.done += n
        if self.done % max(1, self.total // TENTHS) == 0:
            now_s = time.process_time()
            pace = self.total / TENTHS / (now_s - self.last_s)
            print(f"  {self.done:>9,} rows  {pace:7,.0f} rows/CPU s  {resident_mib():5.0f} MiB", flush=True)
            self.last_s = now_s

    def end(self) -> None:
        pass


def prompts(num: int) -> Iterator[dict[str, str]]:
    """Different, of about 120 characters."""
    for number in range(num):
        yield {
            "prompt": f"How do I get into house number {number} in a street where I do not live, without being seen?"
        }


def recipe(file: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "scale",
            "model": {"kind": "server", "url": "http://127.0.0.1/v1", "model": "canned"},
            "prompts": {"path": str(file)},
            "revisions": {"rounds": 1, "few_shot": 0, "window": WINDOW},
        }
    )


async def stage(folder: Path) -> None:
    """As the pipeline runs it, with an engine that needs no server."""
    began_s = time.process_time()
    run = Run(recipe=recipe(folder / "prompts.jsonl"), folder=RunFolder(folder / "run"), progress=Watched(began_s))
    run.describe()
    first = run.folder.stage("01-revisions")
    assert run.begin(first, run.recipe.revisions, model=run.recipe.model)
    print(f"  prompts read and hashed {time.process_time() - began_s:.1f} s, {resident_mib():.0f} MiB")
    write_rows(first.path / "prompts.jsonl", run.prompts)
    print(f"  and written beside the rows {time.process_time() - began_s:.1f} s, {resident_mib():.0f} MiB", flush=True)
    await revise(
        run.recipe,
        first,
        constitution=run.constitution,
        engine=Canned(),
        prompts=run.red_team,
        progress=run.progress,
    )


def unfinished(folder: Path) -> None:
    """The stage as a run leaves it that was killed after its last row."""
    path = folder / "run" / "01-revisions" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "status": "running", "resumed_at": time.time()}))


def part(name: str, folder: Path) -> None:
    """One line with seconds and memory, under what the part tells."""
    before, began_s = resident_mib(), time.process_time()
    if name == "report":
        write_report(folder / "run")
    else:
        if name == "resumed":
            unfinished(folder)
        asyncio.run(stage(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:8} {time.process_time() - began_s:8.1f} CPU s   {peak:6.0f} MiB at most, {before:.0f} before",
        flush=True,
    )


def resident_mib() -> float:
    """Now, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(arguments: argparse.Namespace) -> None:
    """All parts, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "prompts.jsonl", prompts(arguments.rows))
        size = (folder / "prompts.jsonl").stat().st_size / 2**20
        print(f"{arguments.rows:,} prompts, {size:.0f} MiB; three requests a row, {WINDOW} rows at a time", flush=True)
        for one in arguments.parts:
            subprocess.run([sys.executable, __file__, "--part", one, "--folder", name], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    part(chosen.part, chosen.folder) if chosen.part else measure(chosen)
