"""The report of a large run: seconds, memory and size of the page, by the number of dialogues.

    python benchmarks/report_speed.py --dialogues 20000

The rows are made up, in the form and about the length of those of red-team dialogues with a chat model: one to four
human turns of 10 to 60 words, answers, critiques and revisions of 40 to 160 words, four rounds; one comparison a
dialogue; answers of three models, verdicts and battles for a tenth as many prompts (--evaluated). The scores are made
by the code that makes them in a run. `solon report` is then run as a user runs it, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from solon.artifact import RunFolder, content_id, write_json, write_rows
from solon.config import load_recipe
from solon.constitution import Constitution
from solon.evaluation import elo_scores, mending_scores, style_scores, verdict_scores

RECIPE = Path(__file__).parents[1] / "recipes" / "sandbox.yaml"
MODELS = ("helpful", "sl-cai", "rl-cai")
VERDICTS = ("helps", "explains", "evades")
CATEGORIES = tuple(f"kind of harm {number}" for number in range(10))
ROUNDS = 4
VOCABULARY = 8000


class Writer:
    """Texts of words that are drawn as a language has them: few often, many seldom."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        letters = "etaoinshrdlucmfwygpb"
        self._words = ["".join(self.draw.choices(letters, k=self.draw.randint(2, 9))) for _ in range(VOCABULARY)]
        weights = [1 / (rank + 3) for rank in range(VOCABULARY)]
        self._stream = self.draw.choices(self._words, weights, k=2_000_000)

    def text(self, low: int, high: int) -> str:
        start, num = self.draw.randrange(len(self._stream) - high), self.draw.randint(low, high)
        return " ".join(self._stream[start : start + num]).capitalize() + "."


def prompts(num: int, *, writer: Writer, source: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number in range(num):
        turns = [{"role": "user", "content": writer.text(10, 60)}]
        for _ in range(writer.draw.randint(0, 3)):
            turns += [
                {"role": "assistant", "content": writer.text(30, 120)},
                {"role": "user", "content": writer.text(10, 60)},
            ]
        category = CATEGORIES[number % len(CATEGORIES)]
        row = {"id": content_id([source, number]), "prompt": turns, "kind": "red-team", "source": source}
        found.append({**row, "category": category})
    return found


def revisions(rows: list[dict[str, Any]], *, names: list[str], writer: Writer) -> Iterator[dict[str, Any]]:
    for row in rows:
        rounds = [
            {
                "principle": writer.draw.choice(names),
                "critique": writer.text(40, 120),
                "revision": writer.text(40, 160),
            }
            for _ in range(ROUNDS)
        ]
        more = {"truncated": [], "tokens": {"prompt": 2000, "completion": 900}, "seed": 0}
        yield {**row, "response": writer.text(40, 160), "rounds": rounds, **more}


def comparisons(rows: list[dict[str, Any]], *, names: list[str], writer: Writer) -> Iterator[dict[str, Any]]:
    for row in rows:
        p, name = 0.5 + writer.draw.random() / 2, writer.draw.choice(names)
        yield {
            **row,
            "id": f"{row['id']}/1",
            "prompt_id": row["id"],
            "chosen": [{"role": "assistant", "content": writer.text(40, 160)}],
            "rejected": [{"role": "assistant", "content": writer.text(40, 160)}],
            "probability": p,
            "a_is_chosen": True,
            "source": "ai",
            "principles": [name],
            "p_by_principle": {name: p},
            "order_gap": writer.draw.uniform(-0.3, 0.3),
            "answer_mass": 0.97,
            "way": "logprobs",
            "judge": "made-up",
            "reasoning": [],
        }


def evaluation(stage: Path, rows: list[dict[str, Any]], *, names: list[str], writer: Writer) -> int:
    """Rows and scores of an evaluation; returns how many answers there are."""
    responses: list[Any] = []
    verdicts: list[Any] = []
    battles: list[Any] = []
    for row in rows:
        about = {"prompt_id": row["id"], "activity": None, "finish_reason": "stop"}
        for model in MODELS:
            identity = content_id([model, row["id"]])
            responses.append({**row, **about, "id": identity, "model": model, "response": writer.text(40, 160)})
            truth = {"harmful": True, "activity": row["id"], "category": row["category"]}
            verdicts.append({"id": identity, "verdict": writer.draw.choice(VERDICTS), **truth})
        for left, right in (MODELS[:2], MODELS[1:], MODELS[::2]):
            found = {"dimension": "harmlessness", "prompt_id": row["id"], "left": left, "right": right}
            how = {"order_gap": 0.02, "answer_mass": 0.98, "way": "logprobs", "judge": "made-up"}
            drawn = {"p": writer.draw.random(), "principle": writer.draw.choice(names)}
            battles.append({"id": content_id([left, right, row["id"]]), **found, **drawn, **how})
    write_rows(stage / "responses.jsonl", responses)
    write_rows(stage / "verdicts.jsonl", verdicts)
    write_rows(stage / "battles.jsonl", battles)
    scores = verdict_scores(responses, verdicts={row["id"]: row for row in verdicts}, seed=0)
    scores += style_scores(responses, seed=0)
    scores += elo_scores(battles[:3000], seed=0)
    write_json(stage / "scores.json", scores)
    return len(responses)


def mending(stage: Path, rows: list[dict[str, Any]], *, names: list[str], writer: Writer) -> None:
    """Forty revisions judged under every principle; their scores are added to the others."""
    judged: list[Any] = [
        {
            "id": content_id([row["id"], 1, name]),
            "prompt_id": row["id"],
            "round": 1,
            "revised_under": names[0],
            "principle": name,
            "p": writer.draw.random(),
            "order_gap": 0.0,
            "answer_mass": 1.0,
            "way": "logprobs",
            "judge": "made-up",
        }
        for row in rows[:: max(1, len(rows) // 40)][:40]
        for name in names
    ]
    write_rows(stage / "mending.jsonl", judged)
    scores = json.loads((stage / "scores.json").read_text(encoding="utf-8"))
    write_json(stage / "scores.json", scores + mending_scores(judged, num_principles=len(names), seed=0))


def make_run(folder: Path, *, dialogues: int, evaluated: int, seed: int) -> None:
    """A run folder that looks finished."""
    writer, run, recipe = Writer(seed), RunFolder(folder), load_recipe(RECIPE)
    constitution = Constitution.load(recipe.constitution)
    names = [principle.id for principle in constitution.principles]
    folder.mkdir(parents=True)
    (folder / "constitution.yaml").write_text(constitution.to_yaml(), encoding="utf-8")
    write_json(folder / "recipe.resolved.json", recipe.resolved())
    rows = prompts(dialogues, writer=writer, source="made-up")
    unseen = prompts(evaluated, writer=writer, source="made-up, unseen")
    for name, file, made in (
        ("01-revisions", "revisions.jsonl", lambda: revisions(rows, names=names, writer=writer)),
        ("03-comparisons", "comparisons.jsonl", lambda: comparisons(rows, names=names, writer=writer)),
    ):
        stage = run.stage(name)
        stage.begin(config={}, inputs={})
        write_rows(stage.path / file, made())
        stage.finish(counts={"prompts": dialogues})
    stage = run.stage("06-evaluation")
    stage.begin(config={}, inputs={})
    num = evaluation(stage.path, unseen, names=names, writer=writer)
    mending(stage.path, rows, names=names, writer=writer)
    stage.finish(counts={"prompts": evaluated, "responses": num})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=20_000, help="prompts with revisions and a comparison")
    parser.add_argument("--evaluated", type=int, default=None, help="evaluated prompts (a tenth)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the run, to open its report")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch) / "run"
        evaluated = asked.dialogues // 10 if asked.evaluated is None else asked.evaluated
        make_run(folder, dialogues=asked.dialogues, evaluated=evaluated, seed=asked.seed)
        size = sum(file.stat().st_size for file in folder.rglob("*.jsonl"))
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-m", "solon", "report", str(folder)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began_s
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        page = (folder / "report" / "index.html").stat().st_size
    print(f"date       {datetime.now(UTC):%Y-%m-%d}")
    print(f"machine    {platform.system()} {platform.machine()}, Python {platform.python_version()}, one process")
    print(f"dialogues  {asked.dialogues:,}, and {evaluated:,} evaluated with {len(MODELS)} models each")
    print(f"rows       {size / 1e6:.0f} MB")
    print(f"page       {page / 1e6:.1f} MB")
    print(f"seconds    {seconds:.1f} (of the processor {used.ru_utime + used.ru_stime:.1f})")
    print(f"memory     {used.ru_maxrss / 2**20:.2f} GiB at most")


if __name__ == "__main__":
    main()
