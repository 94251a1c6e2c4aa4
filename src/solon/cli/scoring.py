"""Dialogues of a file, scored by a preference model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from solon.artifact import Progress
from solon.cli.inputs import Answered
from solon.dialogue import Message
from solon.errors import InputError

AT_ONCE = 64
"""Dialogues between two steps of the progress."""


class Scorer(Protocol):
    """What is needed of a preference model."""

    def score(self, dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """One score for each (prompt, response). Raises InputError for a dialogue that is too long."""
        ...


def scored(model: Scorer, dialogues: Sequence[Answered], *, progress: Progress) -> Iterator[dict[str, Any]]:
    """The rows with their `score`; where a dialogue is too long, null and the reason."""
    progress.start("score", len(dialogues))
    for start in range(0, len(dialogues), AT_ONCE):
        batch = dialogues[start : start + AT_ONCE]
        for one, (score, reason) in zip(batch, _scores(model, batch), strict=True):
            yield {**one.row, "score": score} | ({"reason": reason} if reason else {})
        progress.advance(len(batch))
    progress.end()


def _scores(model: Scorer, batch: Sequence[Answered]) -> list[tuple[float | None, str]]:
    try:
        return [(score, "") for score in model.score([(one.prompt, one.response) for one in batch])]
    except InputError as error:
        if len(batch) == 1:
            return [(None, error.what)]
        return [found for one in batch for found in _scores(model, [one])]
