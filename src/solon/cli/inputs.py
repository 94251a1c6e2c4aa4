"""What the verbs are given: a model or a server, names of stages, files of rows."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import TypeAdapter, ValidationError

from solon.artifact import ITERATED, STAGES, NumberedRow, content_id, read_numbered_rows, read_rows
from solon.dialogue import Message, Role, SFTRow, dialogue_of, read_hh, read_prompts, sft_row, tidy
from solon.engine import EngineConfig, LocalEngineConfig, ServerEngineConfig
from solon.errors import ROWS_SHOWN, InputError
from solon.supervised import RevisionRow, build_sft_rows

KEY_VARIABLE = "SOLON_API_KEY"
"""Environment variable with the key of a server that is named on the command line; a recipe names its own."""
_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])


def engine_config(model: str) -> EngineConfig:
    """A model folder, "sandbox:base", or a server as URL#NAME: http://localhost:8000/v1#Qwen/Qwen3-8B."""
    if not model.startswith(("http://", "https://")):
        return LocalEngineConfig(path=model)
    url, _, name = model.partition("#")
    if not name:
        raise InputError(f"{model}: which model of this server?", remedy="write URL#NAME")
    return ServerEngineConfig(url=url, model=name, api_key_env=KEY_VARIABLE if KEY_VARIABLE in os.environ else None)


def not_the_input(out: Path | None, *given: Path | None) -> None:
    """Raises InputError where what is to be written would replace what is read."""
    if out is not None and out.resolve() in {path.resolve() for path in given if path is not None}:
        raise InputError("--out is a file that is read", path=out, remedy="choose another")


def stage_names(given: Iterable[str]) -> list[str]:
    """The stages meant by "01", "01-revisions" or "revisions", in the run's order; commas separate several.

    "iteration-2/05" is that of one iteration of reinforcement; without it the stage of all iterations is meant.
    """
    found: set[str] = set()
    for part in (part.strip() for text in given for part in text.split(",")):
        iteration, slash, own = part.rpartition("/")
        names = [name for name in (ITERATED if slash else STAGES) if own in (name, *name.split("-", 1))]
        if not names or (slash and not re.fullmatch(r"iteration-([2-9]|[1-9][0-9]+)", iteration)):
            known = ", ".join(STAGES)
            remedy = f"known: {known}; the number is enough; iteration-2/05 is that of one iteration"
            raise InputError(f"there is no stage {part!r}", remedy=remedy)
        found.update(f"{iteration}/{name}" if iteration else name for name in names)
    return sorted(found)


def prompt_rows(path: str, *, seed: int) -> list[dict[str, Any]]:
    """The prompts of a file; of "sandbox", those that the method may use, of both kinds."""
    if path != "sandbox":
        return [dict(row) for row in read_prompts(path).rows]
    from solon import sandbox

    return [
        *sandbox.prompts("method", "red-team", 400, seed=seed),
        *sandbox.prompts("method", "helpful", 200, seed=seed),
    ]


class Comparisons(NamedTuple):
    """Comparisons of a file, and the rows that could not be used, by reason."""

    rows: list[dict[str, Any]]
    refused: Counter[str]
    soft: bool
    """Whether the rows bring probabilities."""


def read_comparisons(path: Path, *, limit: int | None = None) -> Comparisons:
    """Comparisons to train a preference model on: an HH file (hard labels), or rows {prompt, chosen, rejected}.

    Of the latter, `probability` is that of `chosen` being better; a row without it is a hard label. Raises InputError
    that lists, with file and line, the rows that are neither.
    """
    first = next(read_rows(path), None)
    if first is None:
        raise InputError("there is no row in the file", path=path, remedy="one JSON object a line")
    if isinstance(first.get("chosen"), str):
        found = read_hh(path, limit=limit)
        return Comparisons(
            [dict(row) for row in found.rows], Counter(refused.reason for refused in found.refused), soft=False
        )
    rows = _checked(read_numbered_rows(path), path=path, limit=limit, check=_comparison)
    return Comparisons(rows, Counter(), soft=any("probability" in row for row in rows))


def _comparison(raw: Mapping[str, Any]) -> dict[str, Any]:
    holds = "'prompt', 'chosen' and 'rejected', or is one of HH's with two transcripts"
    row = {**raw, **{name: _dialogue(raw, name, holds=holds) for name in ("prompt", "chosen", "rejected")}}
    for name in ("chosen", "rejected"):
        if [turn["role"] for turn in row[name]] != ["assistant"] or not row[name][0]["content"]:
            raise InputError(f"{name!r} is not one reply of the assistant", remedy="the turns before it are the prompt")
    if row["chosen"][0]["content"] == row["rejected"][0]["content"]:
        raise InputError("'chosen' and 'rejected' are the same reply", remedy="leave the row out: it says nothing")
    probability = raw.get("probability", 1.0)
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise InputError(f"probability is {probability!r}", remedy="it is that of `chosen` being better, in [0, 1]")
    identity = raw.get("id", content_id([row["prompt"], row["chosen"], row["rejected"]]))
    return {**row, "id": str(identity)}


def read_sft(path: Path, *, seed: int) -> list[SFTRow]:
    """Rows {prompt, completion} to fine-tune on, or the revisions of a revisions.jsonl.

    Raises InputError that lists, with file and line, the rows that are neither.
    """
    first = next(read_rows(path), None)
    if first is not None and "rounds" in first:
        return build_sft_rows(cast("Iterable[RevisionRow]", read_rows(path)), (), seed=seed).rows
    return _checked(read_numbered_rows(path), path=path, limit=None, check=_sft)


def _sft(raw: Mapping[str, Any]) -> SFTRow:
    holds = "'prompt' and 'completion'; the rows of a revisions.jsonl are read, too"
    prompt, completion = (
        _dialogue(raw, "prompt", holds=holds),
        _dialogue(raw, "completion", holds=holds, role="assistant"),
    )
    if len(completion) != 1 or completion[0]["role"] != "assistant" or not completion[0]["content"]:
        raise InputError("'completion' is not one reply of the assistant", remedy="the turns before it are the prompt")
    return sft_row(prompt, completion[0]["content"], origin=str(raw.get("origin", "file")))


class Answered(NamedTuple):
    """A dialogue that ends with a reply, and the row that it came from."""

    row: dict[str, Any]
    prompt: list[Message]
    response: str


def read_dialogues(path: Path) -> list[Answered]:
    """Dialogues to score: `prompt` with `response` or `completion`, or `messages` that end with the assistant's turn.

    Texts may be transcripts. Raises InputError that lists, with file and line, the rows that are neither.
    """
    return _checked(read_numbered_rows(path), path=path, limit=None, check=_answered)


def _answered(raw: dict[str, Any]) -> Answered:
    holds = "'prompt' and 'response', or 'messages' that end with the assistant's turn"
    column = next((name for name in ("response", "completion") if name in raw), None)
    if column is None:
        turns = _dialogue(raw, "messages", holds=holds)
    else:
        turns = [*_dialogue(raw, "prompt", holds=holds), *_dialogue(raw, column, holds=holds, role="assistant")]
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or turns[-2]["role"] == "assistant":
        raise InputError("no dialogue that ends with one reply", remedy=f"a row holds {holds}")
    return Answered(raw, turns[:-1], turns[-1]["content"])


def _dialogue(raw: Mapping[str, Any], column: str, *, holds: str, role: Role = "user") -> list[Message]:
    """The messages in a column: a list of them, a transcript, or a text of `role`. `holds`: what a row needs."""
    if column not in raw:
        has = ", ".join(map(repr, raw)) or "nothing"
        raise InputError(f"a row without {column!r}: it has {has}", remedy=f"a row holds {holds}")
    value = raw[column]
    if isinstance(value, str):
        return tidy(dialogue_of(value, role=role))
    try:
        return tidy(_MESSAGES.validate_python(value))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in (column, *problem["loc"]))
        remedy = 'messages are objects like {"role": "user", "content": "..."}'
        raise InputError(f"{place}: {problem['msg'][0].lower()}{problem['msg'][1:]}", remedy=remedy) from error


def _checked(numbered: Iterator[NumberedRow], *, path: Path, limit: int | None, check: Any) -> list[Any]:
    """What `check` makes of each row. Raises InputError with the line of every row that it refuses."""
    rows: list[Any] = []
    problems: list[InputError] = []
    for line, raw in numbered:
        if limit is not None and len(rows) >= limit:
            break
        try:
            rows.append(check(raw))
        except InputError as error:
            problems.append(InputError(error.what, path=path, line=line, remedy=error.remedy))
    if problems:
        raise InputError.all_of(problems, shown=ROWS_SHOWN)
    if not rows:
        raise InputError("there is no row in the file", path=path, remedy="one JSON object a line")
    return rows


def described(refused: Mapping[str, int]) -> str:
    """ "empty reply: 3, contexts differ: 1"; "none" for none."""
    parts: Sequence[tuple[str, int]] = Counter(refused).most_common()
    return ", ".join(f"{reason}: {n}" for reason, n in parts) or "none"
