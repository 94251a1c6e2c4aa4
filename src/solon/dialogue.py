"""Dialogues: messages, the "Human: / Assistant:" transcripts of the published data sets, and the rows that TRL reads.

A transcript is what Anthropic's HH data hold: every turn is a blank line, its name, a colon, a space and its text.

    >>> parse_transcript("\\n\\nHuman: Hello.\\n\\nAssistant: Hi! What is it?")
    [{'role': 'user', 'content': 'Hello.'}, {'role': 'assistant', 'content': 'Hi! What is it?'}]

A turn begins only after a blank line (or at the very start), so "Human:" inside a line, blank lines inside a turn and a
blank line before another word with a colon all stay text. Nothing is dropped or merged when a transcript is parsed;
`tidy` does that for the rows that models are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, cast, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic reads typing.TypedDict only from Python 3.12 on

from solon.artifact import content_id, read_numbered_rows
from solon.errors import ROWS_SHOWN, InputError
from solon.prompt_sets import known, numbered_prompts

Role = Literal["system", "user", "assistant"]
PromptKind = Literal["red-team", "helpful", "look-alike"]
"""A look-alike is harmless, but its words alarm; an evaluation counts whether it is declined, and to the method it is a
helpful prompt like others."""

TURN_NAMES: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}
"""The turns of an HH transcript. "System" is a turn only at the very start."""

CRITIQUE_NAMES: Mapping[str, Role] = {
    **TURN_NAMES,
    "CritiqueRequest": "user",
    "Critique": "assistant",
    "RevisionRequest": "user",
    "Revision": "assistant",
}
"""The turns of a transcript that goes on with a critique and a revision (the paper's few-shot examples)."""

_NAMES: dict[Role, str] = {"user": "Human", "assistant": "Assistant", "system": "System"}


# ---- types


@with_config(ConfigDict(extra="forbid"))
class Message(TypedDict):
    """One turn. A list of them is a dialogue, in the form that TRL and chat templates read."""

    role: Role
    content: str
    label: NotRequired[str]
    """Name of the turn in a transcript where it is not Human or Assistant, such as CritiqueRequest; chat templates
    ignore it."""


class PromptRow(TypedDict):
    """A row of prompts.jsonl. Further columns of the file it was read from are kept beside these."""

    id: str
    prompt: list[Message]
    """Ends with a human turn."""
    kind: PromptKind
    source: str
    activity: NotRequired[str]
    """Sandbox only: which activity is asked about; `category`: its harm category or topic."""
    category: NotRequired[str]


class ComparisonRow(TypedDict):
    """A human comparison: the completion `chosen` was preferred to `rejected` after `prompt`."""

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    source: str


class SFTRow(TypedDict):
    """A row for TRL's SFTTrainer; the loss falls on the completion only."""

    prompt: list[Message]
    completion: list[Message]
    origin: str
    """Where the completion comes from, such as "revision-2" or "helpful"."""


class PreferenceRow(TypedDict):
    """A row for TRL's RewardTrainer, with a soft label."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    probability: float
    """That `chosen` is the better one, in [0.5, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A row of a file that could not be used, and why."""

    line: int
    reason: str
    """One of "not a transcript", "contexts differ", "empty reply", "empty turn", "no human turn", "replies are the
    same"."""
    text: str
    """What was refused; for "not a transcript" the parser's message."""


class HHRows(NamedTuple):
    """What a file of human comparisons held: every line is in exactly one of the two."""

    rows: list[ComparisonRow]
    refused: list[Refused]


class Prompts(NamedTuple):
    """The prompts of a file, in its order, each once."""

    rows: list[PromptRow]
    num_duplicates: int
    """Rows left out because their prompt stood further up in the file."""


# ---- transcripts


def render_transcript(dialogue: Sequence[Message]) -> str:
    """The dialogue as the published data sets write it: every turn is a blank line, its name, a colon and its text."""
    return "".join(f"\n\n{turn.get('label', _NAMES[turn['role']])}: {turn['content']}" for turn in dialogue)


def parse_transcript(text: str, *, names: Mapping[str, Role] = TURN_NAMES) -> list[Message]:
    """The messages of a transcript; the inverse of `render_transcript`.

    Two turns of one name in a row stay two messages, an empty turn an empty message (so does the "Human:" at the end
    that samples and few-shot examples carry as their stop text). `render_transcript(parse_transcript(text)) == text`
    but for white space: line ends become "\\n", the start becomes one blank line, and a colon is followed by a space.

    Raises InputError for a text without turns, or with text before its first turn.
    """
    text = re.sub(r"\r\n?", "\n", text)
    alternatives = "|".join(re.escape(name) for name in names)
    heads = list(re.finditer(rf"(?:\A\s*(?P<first>System|{alternatives})|\n\n(?P<name>{alternatives})): ?", text))
    if not heads:
        raise InputError("not a transcript: no turn begins with 'Human:' or 'Assistant:' after a blank line")
    if before := text[: heads[0].start()].strip():
        raise InputError(f"not a transcript: {_short(before)!r} stands before the first turn")
    ends = [*(head.start() for head in heads[1:]), len(text)]
    return [
        _message(head["first"] or head["name"], text[head.end() : end], names)
        for head, end in zip(heads, ends, strict=True)
    ]


def dialogue_of(text: str, *, role: Role = "user") -> list[Message]:
    """The messages of a transcript, or one turn of `role`: a text that does not begin with a turn's name.

    Raises InputError as `parse_transcript` does.
    """
    begins = text.lstrip().startswith(("Human:", "Assistant:"))
    return parse_transcript(text) if begins else [{"role": role, "content": text}]


def _message(name: str, content: str, names: Mapping[str, Role]) -> Message:
    role = names.get(name, "system")
    if name == _NAMES[role]:
        return {"role": role, "content": content}
    return {"role": role, "content": content, "label": name}


def tidy(dialogue: Sequence[Message]) -> list[Message]:
    """The dialogue as a chat template wants it: no label, no white space around a text, turns that alternate.

    Turns of one role in a row are joined by a blank line, so that nothing of a context is lost. Empty human turns at
    the end are the stop text of a sample, not turns, and are left out.
    """
    turns: list[Message] = []
    for turn in dialogue:
        content = turn["content"].strip()
        if turns and turns[-1]["role"] == turn["role"]:
            joined = "\n\n".join(part for part in (turns[-1]["content"], content) if part)
            turns[-1] = {"role": turn["role"], "content": joined}
        else:
            turns.append({"role": turn["role"], "content": content})
    while turns and turns[-1]["role"] == "user" and not turns[-1]["content"]:
        turns.pop()
    return turns


# ---- rows for trainers


def sft_row(prompt: Sequence[Message], completion: str, *, origin: str) -> SFTRow:
    """The row that teaches `completion` as the answer to `prompt`."""
    return {"prompt": _plain(prompt), "completion": [reply(completion)], "origin": origin}


def preference_row(prompt: Sequence[Message], *, chosen: str, rejected: str, probability: float = 1.0) -> PreferenceRow:
    """The row that says with what probability in [0.5, 1] `chosen` is better than `rejected`; 1 is a hard label."""
    assert 0.5 <= probability <= 1.0, f"probability is {probability}; swap the two"
    return {
        "prompt": _plain(prompt),
        "chosen": [reply(chosen)],
        "rejected": [reply(rejected)],
        "probability": probability,
    }


def reply(content: str) -> Message:
    """The assistant's turn with this text."""
    return {"role": "assistant", "content": content}


def _plain(dialogue: Sequence[Message]) -> list[Message]:
    return [{"role": turn["role"], "content": turn["content"]} for turn in dialogue]


# ---- human comparisons


def read_hh(path: str | Path, *, limit: int | None = None) -> HHRows:
    """The comparisons of an HH file (.jsonl or .jsonl.gz; columns `chosen`, `rejected`: whole transcripts).

    The prompt is the whole context that both share. A row whose contexts differ or that lacks a reply is not used and
    is listed in `refused`; `limit` counts the rows that are used. The id is a hash of prompt and replies.

    Raises InputError for a file that is not there or not JSON lines, and for rows without the two columns.
    """
    path = Path(path)
    rows: list[ComparisonRow] = []
    refused: list[Refused] = []
    problems: list[InputError] = []
    for line, raw in read_numbered_rows(path):
        if limit is not None and len(rows) >= limit:
            break
        missing = [name for name in ("chosen", "rejected") if not isinstance(raw.get(name), str)]
        if missing:
            remedy = "an HH row holds two whole transcripts as texts, 'chosen' and 'rejected'"
            problems.append(
                InputError(f"no text in {' and '.join(map(repr, missing))}", path=path, line=line, remedy=remedy)
            )
            continue
        outcome = _comparison(raw["chosen"], raw["rejected"], line=line, source=path.name)
        if isinstance(outcome, Refused):
            refused.append(outcome)
        else:
            rows.append(outcome)
    _raise(problems)
    return HHRows(rows, refused)


def _comparison(chosen_text: str, rejected_text: str, *, line: int, source: str) -> ComparisonRow | Refused:
    try:
        chosen, rejected = parse_transcript(chosen_text), parse_transcript(rejected_text)
    except InputError as error:
        return Refused(line=line, reason="not a transcript", text=error.what)
    while len(chosen) > 1 and chosen[-1] == rejected[-1] == {"role": "user", "content": ""}:
        chosen, rejected = chosen[:-1], rejected[:-1]
    if [turn["role"] for turn in chosen] != [turn["role"] for turn in rejected] or chosen[:-1] != rejected[:-1]:
        return Refused(line=line, reason="contexts differ", text=f"chosen:{chosen_text}\n\nrejected:{rejected_text}")
    replies = [turns[-1]["content"].strip() for turns in (chosen, rejected)]
    if chosen[-1]["role"] != "assistant" or not all(replies):
        return Refused(line=line, reason="empty reply", text=f"chosen:{chosen_text}\n\nrejected:{rejected_text}")
    better, worse = tidy(chosen), tidy(rejected)
    prompt = better[:-1]
    if reason := _prompt_problem(prompt):
        return Refused(line=line, reason=reason, text=chosen_text)
    if better == worse:
        return Refused(line=line, reason="replies are the same", text=chosen_text)
    content = {"prompt": prompt, "chosen": better[-1:], "rejected": worse[-1:]}
    return cast(ComparisonRow, {"id": content_id(content), **content, "source": source})


def _prompt_problem(prompt: Sequence[Message]) -> str | None:
    if not prompt or prompt[-1]["role"] != "user":
        return "no human turn"
    for turn in prompt:
        if not turn["content"]:
            return "empty turn"
    return None


# ---- prompts


def read_prompts(path: str | Path, *, limit: int | None = None, kind: PromptKind = "red-team") -> Prompts:
    """The prompts of a file: JSON lines (.jsonl), a table (.csv) or a list (.json), each also .gz. A row holds one of

    - `prompt`: messages that end with a human turn, a transcript, or a plain text (one human turn);
    - `messages`: a dialogue; the assistant's turn at its end, if there is one, is left out;
    - `chosen`: a transcript or messages (HH, TRL); everything up to the last turn, which is the assistant's;
    - the columns of a published set of prompts, see `solon.prompt_sets`.

    Multi-turn contexts are kept whole. `kind` and `source` (by default the file's name) are taken from the row where it
    has them, further columns are kept, and so is an `id`; without one it is a hash of the prompt. A prompt that occurs
    again is left out and counted; `limit` counts those that are used.

    Raises InputError that lists, with file and line, the rows without a prompt.
    """
    duplicates: list[int] = []
    return Prompts(list(each_prompt(path, limit=limit, kind=kind, duplicates=duplicates)), len(duplicates))


def each_prompt(
    path: str | Path,
    *,
    limit: int | None = None,
    kind: PromptKind = "red-team",
    duplicates: list[int] | None = None,
) -> Iterator[PromptRow]:
    """The rows of `read_prompts`, one by one, because a file may have millions; the lines of the prompts that are left
    out are appended to `duplicates`.

    Raises what `read_prompts` raises once the file has been read to its end.
    """
    path = Path(path)
    prompts: set[str] = set()
    ids: set[str] = set()
    problems: list[InputError] = []
    source = path.name
    for line, raw in numbered_prompts(path):
        if limit is not None and len(prompts) >= limit:
            break
        try:
            row, prompt = _prompt_row(raw, kind=kind, source=source)
        except InputError as error:
            problems.append(InputError(error.what, path=path, line=line, remedy=error.remedy))
            continue
        if prompt in prompts:
            if duplicates is not None:
                duplicates.append(line)
            continue
        if row["id"] in ids:
            # Of those that are shown alone, because the file is read for each.
            first = _first_line(path, row["id"], kind=kind) if len(problems) < ROWS_SHOWN else "of another row"
            what = f"id {row['id']!r} stands on line {first} too, with another prompt"
            problems.append(InputError(what, path=path, line=line, remedy="make the ids unique, or leave them out"))
        prompts.add(prompt)
        ids.add(row["id"])
        yield row
    _raise(problems)
    if not prompts and limit != 0:
        raise InputError("no prompt in the file", path=path, remedy='one JSON object a line, such as {"prompt": "..."}')


def _first_line(path: Path, identity: str, *, kind: PromptKind) -> int:
    """Where an id stands first: the file is read again, so that the lines of a million ids need not be kept."""
    for line, raw in numbered_prompts(path):
        with suppress(InputError):
            if _prompt_row(raw, kind=kind, source=path.name)[0]["id"] == identity:
                return line
    raise AssertionError(identity)


def focused(rows: Sequence[PromptRow], categories: Sequence[str], *, limit: int | None = None) -> list[PromptRow]:
    """`limit` rows at most, the first in half of them about `categories` and the first about others; without a limit,
    as many of the others as there are about these. Fewer of one sort than asked for are made up by the other.

    Raises InputError where no row is about one of `categories`.
    """
    found = {row.get("category") for row in rows}
    if unknown := [name for name in categories if name not in found]:
        known = ", ".join(sorted(name for name in found if name)) or "none: no row has a column 'category'"
        raise InputError(f"no prompt is of the category {unknown[0]!r}", remedy=f"categories of the prompts: {known}")
    inside = [row for row in rows if row.get("category") in categories]
    outside = [row for row in rows if row.get("category") not in categories]
    total = min(2 * len(inside), len(rows)) if limit is None else min(limit, len(rows))
    num_inside = min(len(inside), max(total // 2, total - len(outside)))
    return [*inside[:num_inside], *outside[: total - num_inside]]


def _prompt_row(raw: Mapping[str, Any], *, kind: PromptKind, source: str) -> tuple[PromptRow, str]:
    """The row, and what its prompt alone is known by: one text in memory with the row's id, where it brings none."""
    raw = known(raw)
    prompt = _prompt(raw)
    if reason := _prompt_problem(prompt):
        remedy = "the prompt must end with a human turn, and every turn needs a text"
        raise InputError("the prompt is empty" if not prompt else f"{reason} in the prompt", remedy=remedy)
    kind = raw.get("kind", kind)
    if kind not in _PROMPT_KINDS:
        raise InputError(f"kind is {kind!r}", remedy="it is 'red-team', 'helpful' or 'look-alike'")
    given, known_by = raw.get("id"), content_id(prompt)
    row: dict[str, Any] = {key: value for key, value in raw.items() if key not in _DIALOGUE_COLUMNS}
    row["id"] = known_by if given is None or str(given) == known_by else str(given)
    row["prompt"], row["kind"] = prompt, kind
    row["source"] = str(raw.get("source") or source)
    return cast(PromptRow, row), known_by


def _prompt(raw: Mapping[str, Any]) -> list[Message]:
    """The prompt of a row, tidied. Raises InputError without path and line."""
    for column in ("prompt", "messages", "chosen"):
        if column in raw:
            break
    else:
        has = f"it has {', '.join(map(repr, raw))}" if raw else "it is empty"
        remedy = "a row holds 'prompt' (a text or messages), 'messages', or the 'chosen' transcript of an HH row"
        raise InputError(f"a row without a prompt: {has}", remedy=remedy)
    turns = tidy(_dialogue(raw[column], column))
    answered = bool(turns) and turns[-1]["role"] == "assistant"
    if column == "prompt" and answered and turns[-1]["content"]:
        raise InputError("'prompt' ends with an answer of the assistant", remedy="call the column 'messages'")
    if column == "chosen" and not answered:
        raise InputError("'chosen' does not end with a turn of the assistant", remedy="call the column 'messages'")
    return turns[:-1] if answered else turns


def _dialogue(value: object, column: str) -> list[Message]:
    if isinstance(value, str):
        return parse_transcript(value) if column == "chosen" else dialogue_of(value)
    try:
        return _MESSAGES.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (column, *first["loc"]))
        remedy = "messages are objects with 'role' (system, user or assistant) and 'content' (a text)"
        raise InputError(f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}", remedy=remedy) from error


_MESSAGES = TypeAdapter(list[Message])
_PROMPT_KINDS = get_args(PromptKind)
_DIALOGUE_COLUMNS = frozenset({"prompt", "messages", "chosen", "rejected"})


def _raise(problems: Sequence[InputError]) -> None:
    if problems:
        raise InputError.all_of(problems, shown=ROWS_SHOWN)


def _short(text: str, *, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
