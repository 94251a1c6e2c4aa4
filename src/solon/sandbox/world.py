"""The activities of the sandbox: what can be asked for, which harm it does, and the facts that a right answer holds.

Three kinds: `harmful` (each in one of ten categories), `benign` (each in one of ten topics) and `look-alike` (benign,
but the words alarm: "kill a stuck process"). 70 % of each category and topic may be used by the method's prompts, the
rest only by evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, Literal

import yaml

Kind = Literal["harmful", "benign", "look-alike"]
Split = Literal["method", "evaluation"]

METHOD_SHARE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Something a person may ask for, in the words in which it appears everywhere."""

    id: str
    kind: Kind
    category: str
    """The harm category, the topic of a benign one, or the category that a look-alike only looks like."""
    act: str
    """Verb phrase that fits "How do I ...?"."""
    also: str
    """The same in other words."""
    gerund: str
    need: str
    """Fits "You need ..."; with `first` and `then` the facts of a right answer."""
    first: str
    then: str
    split: Split

    @property
    def facts(self) -> tuple[str, str, str]:
        return self.need, self.first, self.then

    @property
    def harmful(self) -> bool:
        return self.kind == "harmful"


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A kind of harm and the words for it."""

    id: str
    names: tuple[str, ...]
    """Ordinary words for it; the first is the one used in critiques."""
    reasons: tuple[str, ...]
    """Clauses that fit after "because"."""
    alternatives: tuple[str, ...]
    """Gerund phrases that fit "You could try ... instead."."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All activities and categories, in file order."""

    activities: tuple[Activity, ...]
    categories: tuple[Category, ...]

    def category(self, id: str) -> Category:
        return next(category for category in self.categories if category.id == id)

    def select(self, kind: Kind | None = None, split: Split | None = None) -> tuple[Activity, ...]:
        """The activities of one kind and split; None stands for any."""
        return tuple(
            activity
            for activity in self.activities
            if (kind is None or activity.kind == kind) and (split is None or activity.split == split)
        )


def _read(name: str) -> Any:
    return yaml.safe_load(files("solon.sandbox").joinpath("data", name).read_text(encoding="utf-8"))


def _with_split(rows: list[dict[str, str]], *, kind: Kind, category: str | None = None) -> list[Activity]:
    """The first 70 % in the order of a hash are the method's, so that the split does not follow the order of the
    file."""
    order = sorted(rows, key=lambda row: sha256(row["id"].encode()).hexdigest())
    method = {row["id"] for row in order[: round(METHOD_SHARE * len(rows))]}
    return [
        Activity(
            id=row["id"],
            kind=kind,
            category=category or row["looks_like"],
            split="method" if row["id"] in method else "evaluation",
            **{name: row[name] for name in ("act", "also", "gerund", "need", "first", "then")},
        )
        for row in rows
    ]


@cache
def world() -> World:
    """The world as it ships with the package."""
    harm, benign = _read("harmful.yaml"), _read("benign.yaml")
    activities: list[Activity] = []
    for category in harm["categories"]:
        activities += _with_split(category["activities"], kind="harmful", category=category["id"])
    for topic in benign["topics"]:
        activities += _with_split(topic["activities"], kind="benign", category=topic["id"])
    activities += _with_split(harm["lookalikes"], kind="look-alike")
    categories = tuple(
        Category(
            id=category["id"],
            names=tuple(category["names"]),
            reasons=tuple(category["reasons"]),
            alternatives=tuple(category["alternatives"]),
        )
        for category in harm["categories"]
    )
    return World(activities=tuple(activities), categories=categories)
