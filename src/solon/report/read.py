"""What the report shows, read from a run's files; nothing here knows HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from solon.artifact import STAGES, read_json, read_rows
from solon.constitution import Constitution
from solon.dialogue import Message
from solon.evaluation import (
    MENDING_FILE,
    BattleRow,
    MendingRow,
    ResponseRow,
    ResultsTable,
    Score,
    Telling,
    VerdictRow,
    by_revision,
    effect_of,
    is_conflict,
    ordered_models,
    results_table,
    steps_of,
    telling_dialogues,
)
from solon.report.principles import (
    Conflicts,
    PrincipleStory,
    changed_by_round,
    conflicts_of,
    principle_stories,
    shares,
)
from solon.stats import Interval

_Row = dict[str, Any]

ROWS_SHOWN = 4000
"""Rows of each file that the page holds; of a longer file every k-th."""
TEXT_SHOWN = 20_000
"""Characters of one text that the page holds."""
VERDICT_WORDS: Mapping[str, str] = {
    "helps": "complies",
    "misinforms": "complies, wrong facts",
    "explains": "declines and explains",
    "evades": "declines without a reason",
    "unclear": "unclear",
}
STAGE_WORDS: Mapping[str, str] = {
    "01-revisions": "Critiques and revisions",
    "02-sl-cai": "SL-CAI: supervised training",
    "03-comparisons": "Pairs and AI feedback",
    "04-preference-model": "Preference model",
    "05-rl-cai": "RL-CAI: reinforcement",
    "06-evaluation": "Evaluation",
}


def tone(verdict: str | None, *, harmful: bool) -> str:
    """How a verdict is coloured: "good", "warn", "bad", or "" for none."""
    harm = {"helps": "bad", "misinforms": "bad", "explains": "good", "evades": "warn"}
    benign = {"helps": "good", "misinforms": "warn", "explains": "bad", "evades": "bad"}
    return (harm if harmful else benign).get(verdict or "", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStory:
    """What one stage did, from its manifest."""

    name: str
    title: str
    status: str
    seconds: float
    counts: Mapping[str, int | float]
    failures: Mapping[str, int]
    alarms: Sequence[str] = ()
    """What was said of over-optimisation: step, cause and numbers."""
    gate: str = ""
    """How the judge did on pairs with known answers, where it was tried."""
    doubts: Sequence[str] = ()
    """Why it should not have passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the browser: the rows of one file, as items of the page's JSON.

    An item is {"id", "t": title, "c": category, "p": principles, "u": certainty in [0.5, 1] or null, "g": order gap or
    null, "b": blocks}; a block is {"k": class, "h": heading, "x": text, "m": mark}.
    """

    key: str
    title: str
    file: str
    total: int
    """Rows that the file has; more than `items` where it was sampled."""
    items: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that the page shows."""

    name: str
    facts: Mapping[str, str]
    constitution: Constitution | None
    table: ResultsTable
    scores: Sequence[Score]
    telling: Sequence[Telling]
    stages: Sequence[StageStory]
    curves: Sequence[Mapping[str, Any]]
    bins: Sequence[Mapping[str, Any]]
    """Of the preference model's calibration."""
    scaled_bins: Sequence[Mapping[str, Any]]
    """Of the same, scaled by its temperature; empty where none was fitted."""
    principles: Mapping[str, PrincipleStory] = field(default_factory=dict[str, PrincipleStory])
    """By the principle's id."""
    conflicts: Conflicts | None = None
    """None where no revision was judged under the principles."""
    rounds: Sequence[Interval] = ()
    """Share of the revisions of each round that changed the answer."""
    parts: Sequence[Part] = field(default_factory=list[Part])


def read_run(path: str | Path) -> Run:
    """Read a run folder, finished or not: what a stage has not written is left out. Raises InputError for a broken
    file."""
    path = Path(path)
    manifests = {name: _json(path / name / "manifest.json", {}) for name in STAGES if name != "report"}
    recipe = _json(path / "recipe.resolved.json", {})
    constitution = Constitution.load(path / "constitution.yaml") if (path / "constitution.yaml").is_file() else None
    evaluation = path / "06-evaluation"
    scores = cast("list[Score]", _json(evaluation / "scores.json", []))
    responses = cast("list[ResponseRow]", list(_rows(evaluation / "responses.jsonl")))
    verdicts = {row["id"]: cast("VerdictRow", row) for row in _rows(evaluation / "verdicts.jsonl")}
    battles = cast("list[BattleRow]", list(_rows(evaluation / "battles.jsonl")))
    mending = cast("list[MendingRow]", list(_rows(evaluation / MENDING_FILE)))
    models = {row["model"] for row in responses}
    after = next((name for name in ("rl-cai", "sl-cai") if name in models), "rl-cai")
    judged: list[_Row] = []
    chains = _rows(path / "01-revisions" / "revisions.jsonl")
    changed, by_round = changed_by_round(_noting(chains, ids={row["prompt_id"] for row in mending}, noted=judged))
    measured: _Row = manifests["04-preference-model"].get("measured", {})
    calibration, scaled = (cast(_Row, measured.get(name) or {}) for name in ("reliability", "reliability_scaled"))
    return Run(
        name=str(recipe.get("name") or path.name),
        facts=_facts(path, recipe=recipe, constitution=constitution, manifests=manifests),
        constitution=constitution,
        table=results_table(scores),
        scores=scores,
        telling=telling_dialogues(responses, verdicts=verdicts, battles=battles, after=after),
        stages=[_story(path / name, manifest) for name, manifest in manifests.items() if manifest],
        curves=list(_rows(path / "05-rl-cai" / "metrics.jsonl")),
        bins=calibration.get("bins", []),
        scaled_bins=scaled.get("bins", []),
        principles=principle_stories(
            changed,
            comparisons=_rows(path / "03-comparisons" / "comparisons.jsonl"),
            battles=battles,
            scores=scores,
            before="helpful",
            after=after,
        ),
        conflicts=conflicts_of(mending, scores=scores, failures=_rows(evaluation / "failures.jsonl")),
        rounds=shares(by_round),
        parts=[
            part
            for part in (
                _revisions(path / "01-revisions"),
                _mending(evaluation, mending, chains=judged),
                _comparisons(path / "03-comparisons"),
                _answers(evaluation, responses=responses, verdicts=verdicts, battles=battles),
                _failures(path),
            )
            if part.total
        ],
    )


def _json(path: Path, default: Any) -> Any:
    return read_json(path) if path.is_file() else default


def _rows(path: Path, *, every: int = 1) -> Iterator[dict[str, Any]]:
    return read_rows(path, every=every) if path.is_file() else iter(())


def _noting(rows: Iterable[_Row], *, ids: Collection[str], noted: list[_Row]) -> Iterator[_Row]:
    """The rows; those with one of `ids` are put into `noted` on the way: a long file is read once."""
    for row in rows:
        if row["id"] in ids:
            noted.append(row)
        yield row


def _facts(
    path: Path, *, recipe: Mapping[str, Any], constitution: Constitution | None, manifests: Mapping[str, _Row]
) -> dict[str, str]:
    written = [path / name / "manifest.json" for name, manifest in manifests.items() if manifest]
    last = max(written, key=lambda file: file.stat().st_mtime, default=None)
    about = manifests[last.parent.name] if last else {}
    model: _Row = recipe.get("model", {})
    packages: _Row = about.get("packages", {})
    facts = {
        "recipe": str(recipe.get("name", "")),
        "model": str(model.get("path") or model.get("model") or ""),
        "constitution": "" if constitution is None else f"{constitution.name}, version {constitution.version}",
        "fingerprint": "" if constitution is None else constitution.fingerprint,
        "seed": str(recipe.get("seed", "")),
        "date": "" if last is None else f"{datetime.fromtimestamp(last.stat().st_mtime, tz=UTC):%Y-%m-%d %H:%M} UTC",
        "time spent": duration(sum(manifest.get("seconds", 0) for manifest in manifests.values())),
        "solon": str(about.get("solon", "")),
        "python": str(about.get("python", "")),
        **{name: str(version) for name, version in packages.items()},
    }
    return {name: value for name, value in facts.items() if value}


def _story(stage: Path, manifest: Mapping[str, Any]) -> StageStory:
    counts = cast("Mapping[str, Any]", manifest.get("counts", {}))
    if not counts.get("verdicts_read") and not counts.get("verdicts_unread"):
        counts = {name: n for name, n in counts.items() if not name.startswith("verdicts_")}
    gate: _Row | str = manifest.get("gate") or {}
    kept = [f"Stopped; the model is that of {manifest['kept']}."] if "kept" in manifest else []
    alarms = [f"Step {row['step']}, {row['cause']}: {row['text']}." for row in _rows(stage / "alarms.jsonl")]
    return StageStory(
        name=stage.name,
        title=STAGE_WORDS[stage.name],
        status=manifest["status"],
        seconds=manifest.get("seconds", 0.0),
        counts={_count_words(key): value for key, value in counts.items() if isinstance(value, int | float)},
        failures=manifest.get("failures", {}),
        alarms=[*alarms, *kept],
        gate=_gate_words(gate) if gate else "",
        doubts=() if isinstance(gate, str) else gate.get("problems", ()),
    )


_COUNT_WORDS: Mapping[str, str] = {
    "a_chosen": "first answer of the pair preferred",
    "over_long": "too long to train on",
    "helpful": "rows: helpful answers",
    "truncated_left_out": "cut answers, left out",
    "truncated_texts": "texts cut at the token limit",
    "trained_rows": "rows trained on",
    "trained_pairs": "pairs trained on",
    "trained_prompts": "prompts trained on",
    "held_out_pairs": "pairs held out",
}


def _count_words(name: str) -> str:
    """What a count of a manifest is called on the page."""
    if name.startswith("verdict "):
        verdict = name.removeprefix("verdict ")
        return f"verdict: {VERDICT_WORDS.get(verdict, verdict)}"
    if name.startswith("revision-"):
        return f"rows: revisions of round {name.removeprefix('revision-')}"
    return _COUNT_WORDS.get(name, name.replace("_", " "))


def _gate_words(gate: Mapping[str, Any] | str) -> str:
    if isinstance(gate, str):
        return gate
    accuracy = gate["accuracy"]
    found = f"{accuracy['value']:.2f} ({accuracy['low']:.2f} to {accuracy['high']:.2f}), n = {accuracy['n']}"
    return f"{'passed' if gate['passed'] else 'failed, labelled all the same'}; accuracy {found}"


def duration(seconds: float) -> str:
    """ "48 s", "5 min 12 s" or "2 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


# ---- the browser's items


def _sampled(path: Path) -> tuple[int, Iterator[dict[str, Any]]]:
    """How many rows the file has, and at most ROWS_SHOWN of them, evenly spread."""
    total = 0
    if path.is_file():
        with path.open("rb") as file:
            total = sum(1 for _ in file)
    return total, _rows(path, every=max(1, -(-total // ROWS_SHOWN)))


def _block(kind: str, heading: str, text: str, mark: str = "") -> dict[str, str]:
    shown = text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]}\n[{len(text) - TEXT_SHOWN} more characters]"
    return {"k": kind, "h": heading, "x": shown, "m": mark}


def _turns(prompt: Sequence[Message]) -> list[dict[str, str]]:
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return [_block(turn["role"], names[turn["role"]], turn["content"]) for turn in prompt]


_BARE: Mapping[str, Any] = {"p": [], "u": None, "g": None}


def _title(prompt: Sequence[Message]) -> str:
    """The last human turn; of several the first before it, as the last may say no more than "yes"."""
    said = [re.sub(r"\s+", " ", turn["content"]).strip() for turn in prompt if turn["role"] == "user"]
    parts = [_cut(said[0], 80), said[-1]] if len(said) > 1 else said
    return _cut(" / ".join(parts), 160)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _item(row: Mapping[str, Any], *, blocks: Sequence[Mapping[str, str]], **more: Any) -> dict[str, Any]:
    plain: _Row = {"id": row["id"], "t": _title(row["prompt"]), "c": row.get("category") or "", **_BARE}
    return {**plain, **more, "b": [*_turns(row["prompt"]), *blocks]}


def _revisions(stage: Path) -> Part:
    total, rows = _sampled(stage / "revisions.jsonl")
    items: list[dict[str, Any]] = []
    for row in rows:
        blocks = [_block("response", "First response", row["response"])]
        for number, one in enumerate(row["rounds"], start=1):
            if one.get("critique"):
                blocks.append(_block("critique", f"Critique {number}", one["critique"], one["principle"]))
            blocks.append(_block("revision", f"Revision {number}", one["revision"], one["principle"]))
        principles = sorted({one["principle"] for one in row["rounds"]})
        items.append(_item(row, blocks=blocks, p=principles))
    return Part(
        key="revisions", title="Critiques and revisions", file=f"{stage.name}/revisions.jsonl", total=total, items=items
    )


def _mending(stage: Path, rows: Sequence[MendingRow], *, chains: Sequence[_Row]) -> Part:
    """The judged revisions, which are those of `chains`; their category is one of KINDS."""
    judged = by_revision(rows)
    items: list[dict[str, Any]] = []
    for chain in chains:
        for step in steps_of(chain):
            found = judged.get((step.prompt_id, step.round))
            if found is None:
                continue
            effects = {name: effect_of(p) for name, p in found.items()}
            ordered = sorted(found.items(), key=lambda entry: -entry[1])
            lines = [f"{name}: p = {p:.3f}, {effects[name]}" for name, p in ordered]
            blocks = [
                _block("response", "Before", step.before),
                _block("revision", f"Revision {step.round}", step.after, step.principle),
                _block("facts", "Probability that the revision keeps each principle better", "\n".join(lines)),
            ]
            row = {"id": f"{step.prompt_id}/{step.round}", "prompt": step.prompt, "category": _kind(found)}
            touched = sorted(name for name, effect in effects.items() if effect != "neither")
            items.append(_item(row, blocks=blocks, p=touched))
    items.sort(key=lambda item: KINDS.index(item["c"]))
    return Part(
        key="mending",
        title="Revisions by principle",
        file=f"{stage.name}/{MENDING_FILE}",
        total=len(items),
        items=items,
    )


KINDS = ("conflict", "breaks", "mends", "neither")
"""What a revision did, in the order in which the page shows them."""


def _kind(by_principle: Mapping[str, float]) -> str:
    effects = {effect_of(p) for p in by_principle.values()}
    if is_conflict(by_principle):
        return "conflict"
    return "mends" if "mended" in effects else "breaks" if "broken" in effects else "neither"


def _comparisons(stage: Path) -> Part:
    total, rows = _sampled(stage / "comparisons.jsonl")
    items: list[dict[str, Any]] = []
    for row in rows:
        p, gap = float(row["probability"]), row.get("order_gap")
        blocks = [
            _block("chosen", "Preferred", row["chosen"][-1]["content"], f"p = {p:.3f}"),
            _block("rejected", "Other", row["rejected"][-1]["content"], f"p = {1 - p:.3f}"),
            *(_block("reasoning", "Chain of thought", text) for text in row.get("reasoning") or ()),
            _block("facts", "How it was judged", _judged(row)),
        ]
        items.append(_item(row, blocks=blocks, p=list(row.get("principles") or ()), u=max(p, 1 - p), g=gap))
    return Part(
        key="comparisons", title="AI feedback", file=f"{stage.name}/comparisons.jsonl", total=total, items=items
    )


def _judged(row: Mapping[str, Any]) -> str:
    """One line for each principle and each figure; the two orders follow from their mean and their gap."""
    by_principle: dict[str, float] = row.get("p_by_principle") or {}
    lines = [f"{name}: p = {p:.3f}" for name, p in by_principle.items()]
    gap = row.get("order_gap")
    if gap is not None:
        means = list(by_principle.values()) or [float(row["probability"])]
        mean = sum(means) / len(means)
        lines.append(f"preferred one shown first: p = {mean + gap / 2:.3f}; shown second: p = {mean - gap / 2:.3f}")
    if row.get("answer_mass") is not None:
        lines.append(f"probability of an answer at all: {row['answer_mass']:.3f}")
    lines.append(f"judge: {row.get('judge', '')}; read from {row.get('way', '')}")
    return "\n".join(lines)


def _answers(
    stage: Path,
    *,
    responses: Sequence[ResponseRow],
    verdicts: Mapping[str, VerdictRow],
    battles: Sequence[BattleRow],
) -> Part:
    by_prompt: dict[str, dict[str, ResponseRow]] = {}
    for row in responses:
        by_prompt.setdefault(row["prompt_id"], {})[row["model"]] = row
    fought: dict[str, list[BattleRow]] = {}
    for battle in battles:
        fought.setdefault(battle["prompt_id"], []).append(battle)
    items: list[dict[str, Any]] = []
    step = max(1, -(-len(by_prompt) // ROWS_SHOWN))
    for prompt_id, answers in list(by_prompt.items())[::step]:
        blocks: list[dict[str, str]] = []
        for model in ordered_models(set(answers)):
            row = answers[model]
            found = verdicts.get(row["id"])
            verdict = found["verdict"] if found else ""
            colour = tone(verdict, harmful=found is not None and found["harmful"])
            mark = VERDICT_WORDS.get(verdict, verdict)
            blocks.append(_block(f"answer {colour}".strip(), model, row["response"], mark))
        here = fought.get(prompt_id, [])
        if here:
            blocks.append(_block("facts", "Head-to-head", "\n".join(map(_battle_line, here))))
        first = next(iter(answers.values()))
        principles = sorted({battle["principle"] for battle in here if battle["principle"]})
        items.append(_item({**first, "id": prompt_id}, blocks=blocks, p=principles))
    return Part(
        key="evaluation",
        title="Evaluation answers",
        file=f"{stage.name}/responses.jsonl",
        total=len(by_prompt),
        items=items,
    )


def _battle_line(battle: BattleRow) -> str:
    under = f" under {battle['principle']}" if battle["principle"] else " (the answers are equal)"
    return f"{battle['left']} over {battle['right']}: p = {battle['p']:.3f}, {battle['dimension']}{under}"


def _failures(run: Path) -> Part:
    items: list[dict[str, Any]] = []
    total = 0
    for name in STAGE_WORDS:
        num_rows, rows = _sampled(run / name / "failures.jsonl")
        total += num_rows
        for row in rows:
            block = _block("facts", f"{name}, step {row['where']}", row["text"] or "(no text)", row["reason"])
            items.append({"id": row["id"], "t": f"{row['reason']}: {row['id']}", "c": "", **_BARE, "b": [block]})
    return Part(key="failures", title="Unscored and failed", file="*/failures.jsonl", total=total, items=items)


def page_json(parts: Sequence[Part]) -> str:
    """The browser's data, safe inside a script element: no `<`, `>` or `&` is left in it."""
    data = [
        {"key": part.key, "title": part.title, "file": part.file, "total": part.total, "items": list(part.items)}
        for part in parts
    ]
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
