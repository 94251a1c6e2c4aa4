"""A small closed world with known right answers, two checkpoints that live in it, and an oracle that judges what they
say.

So the whole method runs in minutes on a laptop, and behaviour can be tested, not only shapes. It is never more than
that: the same recipe with another `model.path` is the real use.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from solon.dialogue import Message
from solon.errors import InputError

if TYPE_CHECKING:
    from solon.feedback import PairRow, Planted
    from solon.sandbox.world import Activity

PromptKind = Literal["red-team", "helpful", "look-alike"]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
PREFIX = "sandbox:"


def checkpoint(name: str) -> Path:
    """The folder of a packaged checkpoint: "base" (pretrained) or "helpful" (the helpful-only assistant)."""
    folder = CHECKPOINTS / name
    if not (folder / "config.json").is_file():
        raise InputError(f"there is no sandbox checkpoint {name!r}", remedy="use sandbox:base or sandbox:helpful")
    return folder


def prompts(
    split: Literal["method", "evaluation"],
    kind: PromptKind,
    num: int,
    *,
    seed: int = 0,
    focus: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """`num` different prompt rows, spread evenly over the activities of the split; "helpful" has harmless activities
    of both sorts. With `focus`, half of the rows are about these categories.

    Rows are those of prompts.jsonl with the activity and its category beside them. Evaluation asks for "look-alike"
    by itself: its "helpful" has benign activities alone.

    Raises InputError where no activity is of a category of `focus`.
    """
    from solon.sandbox.world import Kind, world

    here = world()
    harmless: tuple[Kind, ...] = ("benign",) if split == "evaluation" else ("benign", "look-alike")
    kinds: dict[PromptKind, tuple[Kind, ...]] = {
        "red-team": ("harmful",),
        "helpful": harmless,
        "look-alike": ("look-alike",),
    }
    activities = [item for name in kinds[kind] for item in here.select(kind=name, split=split)]
    rng = Random(f"{split}/{kind}/{seed}")

    def rows(num: int, *, about: Sequence[Activity]) -> list[dict[str, Any]]:
        found = _prompts(num, about=about, rng=rng)
        return [{**row, "kind": kind, "source": f"sandbox-{split}"} for row in found]

    if not focus:
        return rows(num, about=activities)
    if unknown := set(focus) - {item.category for item in activities}:
        known = ", ".join(sorted({item.category for item in activities}))
        raise InputError(f"the sandbox has no category {sorted(unknown)[0]!r}", remedy=f"one of {known}")
    inside = [item for item in activities if item.category in focus]
    outside = [item for item in activities if item.category not in focus]
    return [*rows(num // 2, about=inside), *rows(num - num // 2, about=outside)]


def _prompts(num: int, *, about: Sequence[Activity], rng: Random) -> list[dict[str, Any]]:
    from solon.artifact import content_id
    from solon.sandbox import grammar
    from solon.sandbox.world import world

    activities, rows = list(about), dict[str, dict[str, Any]]()
    while len(rows) < num:
        rng.shuffle(activities)
        for activity in activities:
            prompt = grammar.conversation(world(), activity, rng)
            id = content_id(prompt)
            rows.setdefault(id, {"id": id, "prompt": prompt, "activity": activity.id, "category": activity.category})
            if len(rows) == num:
                break
    return list(rows.values())


def helpful_pairs(num: int, *, seed: int = 0, facts: Literal["all", "method"] = "all") -> list[PairRow]:
    """`num` pairs of answers to harmless requests of the method's split, as assistants of all sorts give them.

    Some help, some misinform, some dodge, some decline for a reason that is beside the point. Wrong help has the facts
    of any activity, or with "method" of those of the split: with "all" a preference model sees the facts of the
    evaluation's activities as wrong ones alone, and scores them lower there. Labelled by
    `oracle.prefers_helpful` they stand in for the human comparisons of helpfulness that the paper takes from earlier
    work (arXiv:2212.08073, section 4.2).
    """
    from solon.sandbox import cases
    from solon.sandbox.world import world

    rng, facts_of = Random(f"helpful-pairs/{seed}"), world().select(split="method") if facts == "method" else None
    rows = prompts("method", "helpful", num, seed=seed)
    return [_pair(row, cases.draw_helpful_answers(row["activity"], rng, facts_of=facts_of)) for row in rows]


def harmful_pairs(num: int, *, seed: int = 0) -> list[PairRow]:
    """The same for harmful requests: some answers help, some decline and say why, some dodge.

    Labelled by `oracle.prefers_harmless` they stand in for the human comparisons of harmlessness that the method does
    without, and that the paper's baseline HH RLHF is made from.
    """
    from solon.sandbox import cases

    rng = Random(f"harmful-pairs/{seed}")
    rows = prompts("method", "red-team", num, seed=seed)
    return [_pair(row, cases.draw_harmful_answers(row["activity"], rng)) for row in rows]


def _pair(prompt: dict[str, Any], answers: tuple[str, str]) -> PairRow:
    from solon.artifact import content_id

    a, b = answers
    return {
        "id": content_id([prompt["id"], a, b]),
        "prompt_id": prompt["id"],
        "prompt": prompt["prompt"],
        "kind": prompt["kind"],
        "activity": prompt["activity"],
        "category": prompt["category"],
        "a": a,
        "b": b,
        "truncated": [],
    }


class KnownPair(NamedTuple):
    """Two answers of which the first is better."""

    prompt: list[Message]
    better: str
    worse: str
    harmful: bool
    """Whether harm is asked for: then the better answer declines and says why, or at least declines; else it helps
    more."""


def known_pairs(num: int, *, seed: int = 0) -> list[KnownPair]:
    """`num` pairs about activities kept for evaluation; every other request is harmful."""
    from solon.sandbox import cases, grammar, oracle
    from solon.sandbox.world import world

    here, rng = world(), Random(f"sandbox-labels/{seed}")
    activities = here.select(split="evaluation")
    found: list[KnownPair] = []
    while len(found) < num:
        harmful = len(found) % 2 == 0
        activity = cases.draw_activity(activities, rng, harmful_share=float(harmful))
        prompt = grammar.conversation(here, activity, rng)
        if harmful:
            a, b = (cases.draw_answer(here, activity, rng, kinds=cases.HARMFUL_KINDS).text for _ in range(2))
            p = oracle.prefers_harmless(prompt, a, b)
        else:
            a, b = cases.draw_helpful_answers(activity.id, rng)
            p = oracle.prefers_helpful(prompt, a, b)
        if p != 0.5:
            better, worse = (a, b) if p > 0.5 else (b, a)
            found.append(KnownPair(prompt=prompt, better=better, worse=worse, harmful=harmful))
    return found


def planted_pairs(num: int, *, seed: int = 0) -> list[Planted]:
    """`num` different pairs of answers to requests of the method's split, each under a rule that decides between them:
    what a judge of this world is tried on before it labels (`comparisons.gate`).

    No answer is wrong help: whether its facts are right is not what the rules are about.
    """
    from solon.feedback import Planted
    from solon.sandbox import cases
    from solon.sandbox.world import world

    here = world()
    activities, rng = here.select(split="method"), Random(f"planted/{seed}")
    found: dict[str, Planted] = {}
    while len(found) < num:
        case = cases.draw_comparison(here, activities, rng, decisive=True)
        if "misinforms" in (case.a.kind, case.b.kind):
            continue
        better, worse = (case.a, case.b) if case.probability > 0.5 else (case.b, case.a)
        one = Planted(prompt=case.conversation, better=better.text, worse=worse.text, question=case.question)
        found.setdefault(one.id, one)
    return list(found.values())
