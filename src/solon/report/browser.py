"""The page's browser: the rows of a run's files as items of its JSON; nothing here knows HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from solon.artifact import RunFolder, read_rows
from solon.dialogue import Message
from solon.evaluation import (
    MENDING_FILE,
    BattleRow,
    MendingRow,
    ResponseRow,
    VerdictRow,
    by_revision,
    effect_of,
    is_conflict,
    ordered_models,
    steps_of,
)

_Row = dict[str, Any]

ROWS_SHOWN = 4000
SURE = 0.6
"""A label whose likelier answer has a smaller probability is marked as unsure."""
ORDERS_DISAGREE, UNSURE, MODEL_DISAGREES = "orders disagree", f"p below {SURE}", "preference model disagrees"
"""Marks of AI feedback to filter by."""
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
class Part:
    """One part of the browser: the rows of one file, as items of the page's JSON.

    An item is {"id", "t": title, "c": category, "p": principles, "m": marks to filter by, "u": certainty in [0.5, 1] or
    null, "g": order gap or null, "b": blocks}; a block is {"k": class, "h": heading, "x": text, "m": mark}.
    """

    key: str
    title: str
    file: str
    total: int
    """Rows that the file has; more than `items` where it was sampled."""
    items: Sequence[Mapping[str, Any]]


def rows_of(path: Path, *, every: int = 1) -> Iterator[dict[str, Any]]:
    """The rows of a file, of `every` lines the first; none where it is not there."""
    return read_rows(path, every=every) if path.is_file() else iter(())


def _sampled(path: Path) -> tuple[int, Iterator[dict[str, Any]]]:
    """How many rows the file has, and at most ROWS_SHOWN of them, evenly spread."""
    total = 0
    if path.is_file():
        with path.open("rb") as file:
            total = sum(1 for _ in file)
    return total, rows_of(path, every=max(1, -(-total // ROWS_SHOWN)))


def _block(kind: str, heading: str, text: str, mark: str = "") -> dict[str, str]:
    shown = text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]}\n[{len(text) - TEXT_SHOWN} more characters]"
    return {"k": kind, "h": heading, "x": shown, "m": mark}


def _turns(prompt: Sequence[Message]) -> list[dict[str, str]]:
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return [_block(turn["role"], names[turn["role"]], turn["content"]) for turn in prompt]


_BARE: Mapping[str, Any] = {"p": [], "m": [], "u": None, "g": None}


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


def revisions_part(stage: Path) -> Part:
    """Answers with their critiques and revisions, of stage 01."""
    total, rows = _sampled(stage / "revisions.jsonl")
    items: list[dict[str, Any]] = []
    for row in rows:
        blocks = [_block("response", "First response", row["response"])]
        for number, one in enumerate(row["rounds"], start=1):
            if one.get("critique"):
                blocks.append(_block("critique", f"Critique {number}", one["critique"], one["principle"]))
            blocks.append(_block("revision", f"Revision {number}", one["revision"], one["principle"]))
        principles = sorted({one["principle"] for one in row["rounds"]})
        kept = all(one["revision"].strip() == row["response"].strip() for one in row["rounds"])
        items.append(_item(row, blocks=blocks, p=principles, m=["the first response is kept"] if kept else []))
    return Part(
        key="revisions", title="Critiques and revisions", file=f"{stage.name}/revisions.jsonl", total=total, items=items
    )


def mending_part(stage: Path, rows: Sequence[MendingRow], *, chains: Sequence[_Row]) -> Part:
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


def comparisons_part(stage: Path, *, run: Path) -> Part:
    """Labelled pairs, of a stage 03 of the run."""
    total, rows = _sampled(stage / "comparisons.jsonl")
    items: list[dict[str, Any]] = []
    later = "" if stage.parent == run else stage.parent.name
    prefix = f"{later}/" if later else ""
    scored = {row["id"]: row for row in rows_of(stage.parent / "04-preference-model" / "held-out.jsonl")}
    for row in rows:
        p = float(row["probability"])
        scores = scored.get(prefix + row["id"])
        blocks = [
            _block("chosen", "Preferred", row["chosen"][-1]["content"], f"p = {p:.3f}"),
            _block("rejected", "Other", row["rejected"][-1]["content"], f"p = {1 - p:.3f}"),
            *(_block("reasoning", "Chain of thought", text) for text in row.get("reasoning") or ()),
            _block("facts", "How it was judged", _judged(row)),
        ]
        marks = [ORDERS_DISAGREE] if _orders_disagree(row) else []
        marks += [UNSURE] if max(p, 1 - p) < SURE else []
        if scores:
            text = f"preferred: {scores['score_chosen']:+.2f}; other: {scores['score_rejected']:+.2f}"
            blocks.append(_block("facts", "Scores of the preference model, which was not trained on this pair", text))
            marks += [MODEL_DISAGREES] if scores["score_chosen"] <= scores["score_rejected"] else []
        about = {"p": list(row.get("principles") or ()), "m": marks, "u": max(p, 1 - p), "g": row.get("order_gap")}
        items.append(_item(row, blocks=blocks, **about))
    file = str((stage / "comparisons.jsonl").relative_to(run))
    return Part(
        key=f"comparisons-{later}" if later else "comparisons",
        title=f"AI feedback, {later.replace('-', ' ')}" if later else "AI feedback",
        file=file,
        total=total,
        items=items,
    )


def rollouts_part(stage: Path, *, run: Path) -> Part:
    """What the policy wrote while it was trained, and what that earned; of a stage 05 of the run."""
    total, rows = _sampled(stage / "rollouts.jsonl")
    items: list[dict[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        score = "unscored" if row["score"] is None else f"score {row['score']:+.2f}"
        facts = [f"step {row['step']}", f"KL {row['kl']:.2f} nats", f"{row['num_tokens']} tokens"]
        facts += [] if row["reward"] is None else [f"reward {row['reward']:+.2f}"]
        blocks = [
            _block("response", "Policy", row["completion"][-1]["content"], score),
            _block("facts", "What it earned", "; ".join(facts)),
        ]
        items.append(_item({**row, "id": f"{row['step']}/{number}"}, blocks=blocks))
    later = "" if stage.parent == run else f", {stage.parent.name.replace('-', ' ')}"
    key = "rollouts" if stage.parent == run else f"rollouts-{stage.parent.name}"
    file = str((stage / "rollouts.jsonl").relative_to(run))
    return Part(key=key, title=f"Rollouts{later}", file=file, total=total, items=items)


def _orders_disagree(row: Mapping[str, Any]) -> bool:
    """Whether the judge, before any clamp, names the answer that stands first in both orders, or the other in both."""
    gap = row.get("order_gap")
    if gap is None:
        return False
    mean = fmean((row.get("p_by_principle") or {"": float(row["probability"])}).values())
    return (mean + gap / 2 - 0.5) * (mean - gap / 2 - 0.5) < 0


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


def answers_part(
    stage: Path,
    *,
    responses: Sequence[ResponseRow],
    verdicts: Mapping[str, VerdictRow],
    battles: Sequence[BattleRow],
) -> Part:
    """Each prompt of the evaluation with the answers of all models, their verdicts and battles."""
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


def failures_part(run: Path) -> Part:
    """What failed or is unscored, of all stages."""
    items: list[dict[str, Any]] = []
    total = 0
    for stage in RunFolder(run).stages():
        num_rows, rows = _sampled(stage.path / "failures.jsonl")
        total += num_rows
        for row in rows:
            block = _block("facts", f"{stage.name}, step {row['where']}", row["text"] or "(no text)", row["reason"])
            items.append(
                {"id": row["id"], "t": f"{row['reason']}: {row['id']}", "c": row["reason"], **_BARE, "b": [block]}
            )
    return Part(key="failures", title="Unscored and failed", file="*/failures.jsonl", total=total, items=items)


def page_json(parts: Sequence[Part]) -> str:
    """The browser's data, safe inside a script element: no `<`, `>` or `&` is left in it."""
    data = [
        {"key": part.key, "title": part.title, "file": part.file, "total": part.total, "items": list(part.items)}
        for part in parts
    ]
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
