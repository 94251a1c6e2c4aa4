"""Pairs of answers of which it is known, under one question, which is the better: what a judge is tried on.

    planted = [*shipped_planted(), *planted_exemplars(constitution, seed=0)]

44 ship (planted.jsonl), written for solon in everyday English: half are on harmlessness, the others on giving a reason,
helpfulness, brevity and honesty. The better answer is the longer one in 18 of them, so that no rule on length gets far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from solon.artifact import content_id, derive_seed, read_numbered_rows
from solon.constitution import Constitution
from solon.dialogue import Message, parse_transcript, tidy
from solon.errors import ROWS_SHOWN, InputError
from solon.feedback.questions import question_of

_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])
_COLUMNS = ("prompt", "better", "worse", "question")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """Two answers to a prompt, and a question that one of them is the better answer to."""

    prompt: Sequence[Message]
    better: str
    worse: str
    question: str
    """Asks which response is better, as a principle's `comparison` does."""

    @property
    def id(self) -> str:
        """A hash of all of it."""
        return content_id([list(self.prompt), self.better, self.worse, self.question])


def shipped_planted() -> list[Planted]:
    """The pairs that come with solon."""
    return read_planted(Path(str(files("solon.feedback").joinpath("planted.jsonl"))))


def planted_exemplars(constitution: Constitution, *, seed: int) -> list[Planted]:
    """The constitution's comparison exemplars, each under a principle that the seed draws.

    They are as certain as the constitution is: an exemplar that a principle does not decide is a coin.
    """
    return [
        Planted(
            prompt=exemplar.conversation,
            better=exemplar.better,
            worse=exemplar.worse,
            question=question_of(constitution.draw("comparison", derive_seed(seed, "planted-principle", number))),
        )
        for number, exemplar in enumerate(constitution.exemplars.comparison)
    ]


def read_planted(path: str | Path) -> list[Planted]:
    """JSON lines with `prompt` (messages that end with a human turn, a transcript, or a plain text), `better`, `worse`
    and `question`; other columns are refused, as a misspelt one would be.

    Raises InputError that lists, with file and line, every row that is none.
    """
    found: dict[str, Planted] = {}
    problems: list[InputError] = []
    for line, raw in read_numbered_rows(path):
        try:
            one = _planted(raw)
        except InputError as error:
            problems.append(InputError(error.what, path=path, line=line, remedy=error.remedy))
        else:
            found[one.id] = one
    if problems:
        raise InputError.all_of(problems, shown=ROWS_SHOWN)
    if not found:
        raise InputError("no planted pair in the file", path=path, remedy=f"one object a line: {', '.join(_COLUMNS)}")
    return list(found.values())


def _planted(raw: Mapping[str, Any]) -> Planted:
    remedy = f"a planted pair holds {', '.join(_COLUMNS)}"
    if unknown := sorted(set(raw) - set(_COLUMNS)):
        raise InputError(f"unknown column {', '.join(map(repr, unknown))}", remedy=remedy)
    texts = {name: raw.get(name) for name in _COLUMNS[1:]}
    empty = [name for name, text in texts.items() if not isinstance(text, str) or not text.strip()]
    if empty:
        raise InputError(f"no text in {' and '.join(map(repr, empty))}", remedy=remedy)
    if raw["better"].strip() == raw["worse"].strip():
        raise InputError("'better' and 'worse' are the same", remedy="one of the two must be better")
    return Planted(
        prompt=_dialogue(raw.get("prompt")), better=raw["better"], worse=raw["worse"], question=raw["question"]
    )


def _dialogue(given: object) -> list[Message]:
    try:
        if not isinstance(given, str):
            prompt = tidy(_MESSAGES.validate_python(given))
        elif given.lstrip().startswith(("Human:", "Assistant:")):
            prompt = tidy(parse_transcript(given))
        else:
            prompt = tidy([{"role": "user", "content": given}])
    except ValidationError as error:
        raise InputError(
            "'prompt' is no dialogue", remedy='a text, or a list of {"role": ..., "content": ...}'
        ) from error
    if not prompt or prompt[-1]["role"] != "user" or not all(turn["content"] for turn in prompt):
        raise InputError("'prompt' has an empty turn or does not end with a human turn", remedy="the answers follow it")
    return prompt
