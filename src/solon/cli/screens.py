"""The screens that end a command: results, telling dialogues, what each stage took, where everything is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from solon.artifact import StageFolder, content_id
from solon.cli.text import clean, shortened
from solon.config import Recipe
from solon.dialogue import Message
from solon.evaluation import COLUMNS, Cell, Comparison, Difference, ResultsTable, Telling
from solon.report import read_run
from solon.report.browser import VERDICT_WORDS
from solon.report.read import StageStory, duration

if TYPE_CHECKING:
    from solon.plan import Memory, Scaled

DIALOGUES = 3
ANSWER_SHOWN, REQUEST_SHOWN = 400, 300
"""Characters."""
SETTING_SHOWN = 60
"""Likewise."""


def closing(folder: Path, *, recipe: Path | None = None, console: Console | None = None) -> None:
    """What a run has come to: the table, dialogues before and after, time per stage, the report, what to try next."""
    console = console or Console()
    run = read_run(folder)
    if run.table.rows:
        console.print(results(run.table))
        console.print(Text("each number with its 95 % interval, and n cases", style="dim"))
    for number, one in enumerate(run.telling[:DIALOGUES], start=1):
        console.print(dialogue(one, number=number))
    console.print()
    console.print(stages(run.stages))
    page = folder / "report" / "index.html"
    if page.is_file():
        _whole(console, f"\nReport: {page}\n        {page.resolve().as_uri()}")
    if recipe is not None:
        for line in next_commands(recipe, folder=folder):
            _whole(console, line)


def _whole(console: Console, text: str) -> None:
    """Print text that is not wrapped, so that it can be copied."""
    console.print(Text(clean(text)), soft_wrap=True)


def results(table: ResultsTable) -> Table:
    """Metrics by models, so that it fits into 80 columns."""
    shown = Table(show_header=True, header_style="bold", show_lines=True)
    shown.add_column("")
    for row in table.rows:
        shown.add_column(Text(clean(row.model)), justify="right", no_wrap=True)
    for index, metric in enumerate(table.metrics):
        shown.add_row(COLUMNS[metric], *(_cell(row.cells[index]) for row in table.rows))
    return shown


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-")
    return Text.assemble((cell.value, "bold"), "\n", (f"{cell.interval}\nn {cell.n}", "dim"))


def dialogue(one: Telling, *, number: int) -> Text:
    """One prompt and what the model said before and after."""
    text = Text()
    text.append(f"\n{number}. {_request(one.prompt)}\n", style="bold")
    for model, answer, verdict in (
        (one.before_model, one.before, one.before_verdict),
        (one.after_model, one.after, one.after_verdict),
    ):
        words = f" ({VERDICT_WORDS.get(verdict, verdict)})" if verdict else ""
        text.append(f"{model}{words}: ", style="cyan")
        text.append(f"{shortened(answer, length=ANSWER_SHOWN)}\n")
    text.rstrip()
    return text


def _request(prompt: Sequence[Message]) -> str:
    before = f" (after {len(prompt) - 1} turns)" if len(prompt) > 1 else ""
    return shortened(prompt[-1]["content"], length=REQUEST_SHOWN) + before


def stages(stories: Sequence[StageStory]) -> Table:
    """What each stage took and counted."""
    shown = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for heading in ("stage", "time", "failed", "counts"):
        shown.add_column(
            heading, justify="right" if heading in ("time", "failed") else "left", no_wrap=heading != "counts"
        )
    for story in stories:
        time = duration(story.seconds) if story.status == "finished" else story.status
        counts = ", ".join(f"{name} {value:,}" for name, value in story.counts.items() if value)
        failed = str(sum(story.failures.values()))
        shown.add_row(*(Text(clean(cell)) for cell in (story.name, time, failed, counts)))
    return shown


def next_commands(recipe: Path, *, folder: Path) -> list[str]:
    """What to try after a run of this recipe."""
    shown = quote(str(_nearby(recipe)))
    return [
        "",
        "Next: a constitution of your own (in the sandbox, in words about its ten kinds of harm)",
        "  solon constitution show > mine.yaml      # edit it, then: solon constitution check mine.yaml",
        f"  solon run {shown} --set constitution=mine.yaml --out {quote(str(folder.with_name('mine')))}",
        "Next: a constitution that speaks of one kind of harm alone",
        f"  solon run {quote(str(_nearby(recipe.with_name('one-kind.yaml'))))}",
        "Next: a model and prompts of your own",
        f"  solon run {quote(str(_nearby(recipe.with_name('hh-revise.yaml'))))} --set model.path=DIR "
        "--set prompts.path=FILE --plan",
    ]


def _nearby(path: Path) -> Path:
    """The path as seen from here, if that is the shorter one."""
    relative = Path(os.path.relpath(path))
    return relative if len(str(relative)) < len(str(path)) else path


def stage_done(folder: Path, made: str, *, console: Console | None = None) -> None:
    """What one stage has made, for the verbs."""
    manifest = StageFolder(folder).manifest()
    console = console or Console()
    counts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in manifest["counts"].items() if value)
    _whole(console, str(folder / made))
    console.print(Text(clean(f"{counts}; {duration(manifest['seconds'])}")))
    if manifest["failures"]:
        failures = ", ".join(f"{reason}: {n}" for reason, n in manifest["failures"].items())
        console.print(Text(clean(f"failed: {failures}; see {folder / 'failures.jsonl'}")))


# ---- the plan

GIB = 2**30
MEMORY_ASSUMPTIONS = (
    "Estimated from the models' shapes, for a GPU with TRL's defaults (bfloat16 autocast, gradient checkpointing, "
    "AdamW) and the longest prompt seen. Peak: what stays, and the greater of sampling and update. Not counted: "
    "logits, fragmentation, offloading, a held-out judge, what CUDA itself takes."
)


def show_plan(recipe: Recipe, *, stages: Collection[str] | None, console: Console | None = None) -> None:
    """Print what a recipe takes; nothing is run and nothing is written."""
    import asyncio

    from solon.plan import plan, preflight

    console = console or Console()
    preflight(recipe)
    found = asyncio.run(plan(recipe, stages=stages))
    shown = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for heading in ("", "requests", "read", "written", "trained", "time"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    stage = ""
    for row in (*found.rows, found.total):
        if row.stage != stage and row is not found.total:
            # On a line of its own, so that the numbers fit into 80 columns.
            stage = row.stage
            shown.add_row(Text(stage, style="bold"))
        numbers = (row.requests, row.prompt_tokens, row.completion_tokens, row.training_tokens)
        name = row.stage if row is found.total else f"  {row.what}"
        cells = (name, *(f"{number:,}" if number else "" for number in numbers), duration(row.seconds))
        shown.add_row(*(Text(cell) for cell in cells), style="bold" if row is found.total else None)
    console.print(shown)
    console.print(Text(clean(found.assumptions)))
    if found.scale:
        console.print()
        console.print(scale_table(found.scale))
    if found.memory:
        console.print()
        console.print(memory_table(found.memory))
        console.print(Text(MEMORY_ASSUMPTIONS))


def scale_table(scale: Sequence[Scaled]) -> Table:
    """What generation and labels take on several of what was probed."""
    shown = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    shown.add_column("generation and labels on", no_wrap=True)
    for heading in ("time", "requests/s"):
        shown.add_column(heading, justify="right")
    for one in scale:
        shown.add_row(f"{one.replicas:,} of it", duration(one.seconds), f"{one.requests_per_s:,.0f}")
    return shown


def memory_table(memory: Sequence[Memory]) -> Table:
    """What each stage that trains needs of a device, part by part."""
    from solon.plan import PARTS

    shown = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    shown.add_column("GiB per device", no_wrap=True)
    for heading in (*PARTS, "peak"):
        shown.add_column(heading.replace("_", " "), justify="right")
    for one in memory:
        values = dataclasses.asdict(one)
        parts = (f"{values[name] / GIB:,.2f}" if values[name] else "" for name in PARTS)
        shown.add_row(one.stage, *parts, f"{one.peak / GIB:,.2f}")
    return shown


def compared(found: Comparison, *, console: Console | None = None) -> None:
    """How two runs differ: settings, then the metrics of the results table and all whose interval is beside 0."""
    console = console or Console()
    if found.settings:
        settings = _plain_table(("setting", "first", "second"))
        for one in found.settings:
            texts = (one.setting, *(_setting(value) for value in (one.first, one.second)))
            settings.add_row(*(Text(shortened(clean(text), length=SETTING_SHOWN)) for text in texts))
        console.print(settings)
    else:
        console.print("The runs have the same settings.")
    results = _plain_table(("model", "metric", "first", "second", "difference", "n", ""))
    shown = [one for one in found.differences if one.metric in COLUMNS or not _holds_zero(one)]
    for one in shown:
        lead = one.difference
        cells = (
            clean(one.model),
            clean(one.metric),
            f"{one.first:.3f}",
            f"{one.second:.3f}",
            f"{lead.value:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}]",
            str(lead.n),
            one.way,
        )
        results.add_row(*cells, style="" if _holds_zero(one) else "bold")
    console.print()
    console.print(results)
    for told in sorted({one.told for one in shown if "" not in one.told and one.told[0] != one.told[1]}):
        metrics = sorted({f"{one.model}'s {one.metric}" for one in shown if one.told == told})
        who = f"{told[0]} in the first run, {told[1]} in the second"
        console.print(Text(clean(f"not told by the same: {who}; so differences in {', '.join(metrics)} may be theirs")))
    hidden = len(found.differences) - len(shown)
    console.print(
        Text(f"second minus first, 95 % intervals, n answers of both; {hidden} more metrics differ by nothing certain")
    )


def _holds_zero(one: Difference) -> bool:
    return one.difference.low <= 0 <= one.difference.high


def _setting(value: object) -> str:
    """A text of several lines (a constitution) by its length and hash, anything else as it stands."""
    if isinstance(value, str) and "\n" in value:
        return f"{len(value.splitlines())} lines, {content_id(value)[:8]}"
    return "-" if value is None else str(value)


def _plain_table(headings: Sequence[str]) -> Table:
    shown = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for heading in headings:
        shown.add_column(heading, overflow="fold")
    return shown
