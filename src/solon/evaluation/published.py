"""Pairs of answers with a gold verdict, from the published files: what a judge or a preference model is measured on.

    found = read_gold("pandalm/testset-v1.json.gz")
    found.pairs[0].gold                       # 1.0: a is the better one, 0.0: b is, 0.5: a tie
    [one.reason for one in found.refused]     # ["a response is not a text", ...]

Three forms are told apart by their columns, whatever the file is called (JSON lines or a JSON list, also .gz):

    HH       chosen, rejected: two transcripts (arXiv:2204.05862)
    LLMBar   input, output_1, output_2, label: 1 or 2 (arXiv:2310.07641)
    PandaLM  instruction, input, response1, response2, annotator1 to annotator3: 0, 1 or 2 (arXiv:2306.05087)

Every row is either a pair or refused with its place and reason; nothing is mended.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from solon.artifact import StageFolder, content_id, read_numbered_rows, read_rows
from solon.dialogue import ComparisonRow, Message, read_hh
from solon.errors import InputError, TooManyFailures
from solon.evaluation.rows import FAILURE_LIMIT

TIE = 0.5
"""The gold of a pair whose answers are equally good."""


# ---- types


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldPair:
    """Two answers to a prompt, and which of them is better."""

    id: str
    """A hash of prompt and answers; a pair that stands in the file again has another one."""
    prompt: tuple[Message, ...]
    a: str
    b: str
    gold: float
    """Probability that a is better: 1, 0, or 0.5 for a tie."""
    source: str
    """Name of the file."""
    annotators: tuple[float, ...] = ()
    """What each person said, in the same numbers; empty where the file gives one verdict alone."""

    def swapped(self) -> GoldPair:
        """The same pair with b first."""
        votes = tuple(1 - vote for vote in self.annotators)
        return replace(self, a=self.b, b=self.a, gold=1 - self.gold, annotators=votes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRow:
    """A row of a published file that could not be used."""

    place: str
    """"line 58" (from 1) of JSON lines, "index 107" (from 0) of a JSON list."""
    reason: str
    text: str
    """What was refused, or the parser's message."""


class GoldPairs(NamedTuple):
    """What a file held: every row is in exactly one of the two."""

    pairs: list[GoldPair]
    refused: list[RefusedRow]


class _Unusable(Exception):
    """The reason why a row is refused, and what was refused."""

    def __init__(self, reason: str, text: object) -> None:
        self.reason, self.text = reason, text if isinstance(text, str) else json.dumps(text)
        super().__init__(reason)


# ---- the forms


def _llmbar(raw: Mapping[str, Any]) -> GoldPair:
    label: object = raw["label"]
    if isinstance(label, bool) or label not in (1, 2):
        raise _Unusable("the label is not 1 or 2", label)
    return _pair(raw["input"], a=raw["output_1"], b=raw["output_2"], gold=float(label == 1))


_VOTES = {0: TIE, 1: 1.0, 2: 0.0}


def _pandalm(raw: Mapping[str, Any]) -> GoldPair:
    given = [raw[name] for name in ("annotator1", "annotator2", "annotator3")]
    if any(isinstance(one, bool) or one not in (0, 1, 2) for one in given):
        raise _Unusable("an annotator's verdict is not 0, 1 or 2", given)
    votes = tuple(_VOTES[one] for one in given)
    asked = [raw["instruction"], raw["input"]]
    if not all(isinstance(part, str) for part in asked):
        raise _Unusable("the prompt is not a text", asked)
    prompt = "\n\n".join(part for part in asked if part.strip())
    pair = _pair(prompt, a=raw["response1"], b=raw["response2"], gold=majority(votes))
    return replace(pair, annotators=votes)


def majority(votes: Sequence[float]) -> float:
    """What more than half of the votes (1, 0 or 0.5) say; a tie, 0.5, where there is no such verdict."""
    verdict, count = Counter(votes).most_common(1)[0]
    return verdict if 2 * count > len(votes) else TIE


def _pair(prompt: object, *, a: object, b: object, gold: float) -> GoldPair:
    """The pair without its file's name. White space around a text is no part of it."""
    if not isinstance(prompt, str):
        raise _Unusable("the prompt is not a text", prompt)
    if not prompt.strip():
        raise _Unusable("empty prompt", prompt)
    if not isinstance(a, str) or not isinstance(b, str):
        raise _Unusable("a response is not a text", [a, b])
    if not a.strip() or not b.strip():
        raise _Unusable("empty response", [a, b])
    if a.strip() == b.strip():
        raise _Unusable("the responses are the same", a)
    message: Message = {"role": "user", "content": prompt.strip()}
    a, b = a.strip(), b.strip()
    identity = content_id({"prompt": [message], "a": a, "b": b})
    return GoldPair(id=identity, prompt=(message,), a=a, b=b, gold=gold, source="")


_HH = ("chosen", "rejected")
_FORMS: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], GoldPair]]] = {
    "LLMBar": (("input", "output_1", "output_2", "label"), _llmbar),
    "PandaLM": (
        ("instruction", "input", "response1", "response2", "annotator1", "annotator2", "annotator3"),
        _pandalm,
    ),
}
_REMEDY = "; ".join(
    [
        "known are HH: 'chosen' and 'rejected'",
        *(f"{name}: {', '.join(map(repr, form[0]))}" for name, form in _FORMS.items()),
    ]
)


def _form_of(raw: object) -> str | None:
    """Which form a row's columns are."""
    row = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
    if all(isinstance(row.get(name), str) for name in _HH):
        return "HH"
    return next((name for name, (columns, _) in _FORMS.items() if row.keys() >= set(columns)), None)


# ---- reading


def read_gold(path: str | Path, *, limit: int | None = None) -> GoldPairs:
    """The pairs of a published file, in its order; `limit` counts those that are used.

    HH: a is the chosen or the rejected reply by the row's hash, so that a preference for a place is no accuracy.
    PandaLM: `gold` is the majority of the three annotators, a tie where there is none. Refused are rows whose answers
    are no texts (PandaLM has `true`), empty or the same, rows without a verdict or a column, and what `read_hh`
    refuses.

    Raises InputError for a file that is not there or not JSON, that is in none of the forms, or of which no row can be
    used.
    """
    path = Path(path)
    name = next((found for _, raw in numbered_rows(path) if (found := _form_of(raw))), None)
    if name is None:
        raise _unknown_form(path)
    if name == "HH":
        found = _read_hh(path, limit=limit)
    else:
        columns, read = _FORMS[name]
        found = _read(numbered_rows(path), columns=columns, read=read, limit=limit)
    if not found.pairs and limit != 0:
        reasons = "; ".join(f"{reason}: {n}" for reason, n in Counter(one.reason for one in found.refused).items())
        raise InputError(f"none of {len(found.refused)} rows can be used: {reasons}", path=path, remedy=_REMEDY)
    return GoldPairs(_with_own_ids(replace(pair, source=path.name) for pair in found.pairs), found.refused)


def _read(
    rows: Iterable[tuple[str, object]],
    *,
    columns: Sequence[str],
    read: Callable[[Mapping[str, Any]], GoldPair],
    limit: int | None,
) -> GoldPairs:
    pairs: list[GoldPair] = []
    refused: list[RefusedRow] = []
    for place, raw in rows:
        if limit is not None and len(pairs) >= limit:
            break
        try:
            pairs.append(read(_with_columns(raw, columns)))
        except _Unusable as problem:
            refused.append(RefusedRow(place=place, reason=problem.reason, text=problem.text))
    return GoldPairs(pairs, refused)


def _with_columns(raw: object, columns: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise _Unusable("not an object", raw)
    if missing := [column for column in columns if column not in raw]:
        raise _Unusable(f"without {' and '.join(map(repr, missing))}", cast("dict[str, Any]", raw))
    return cast("dict[str, Any]", raw)


def _read_hh(path: Path, *, limit: int | None) -> GoldPairs:
    found = read_hh(path, limit=limit)
    refused = [RefusedRow(place=f"line {one.line}", reason=one.reason, text=one.text) for one in found.refused]
    return GoldPairs([_of_comparison(row) for row in found.rows], refused)


def _of_comparison(row: ComparisonRow) -> GoldPair:
    better, worse = row["chosen"][-1]["content"], row["rejected"][-1]["content"]
    pair = GoldPair(id=row["id"], prompt=tuple(row["prompt"]), a=better, b=worse, gold=1.0, source=row["source"])
    return pair.swapped() if int(row["id"], 16) % 2 else pair


def _with_own_ids(pairs: Iterable[GoldPair]) -> list[GoldPair]:
    """PandaLM asks about the same two answers again where two models gave them: each has verdicts of its own."""
    seen: Counter[str] = Counter()
    kept: list[GoldPair] = []
    for pair in pairs:
        seen[pair.id] += 1
        again = seen[pair.id]
        kept.append(pair if again == 1 else replace(pair, id=content_id([pair.id, again])))
    return kept


def _unknown_form(path: Path) -> InputError:
    objects = (cast("dict[str, Any]", raw) for _, raw in numbered_rows(path) if isinstance(raw, dict))
    first = next(objects, None)
    if first is None:
        return InputError("there is no row in the file", path=path, remedy=_REMEDY)
    has = ", ".join(map(repr, first)) or "nothing"
    return InputError(f"no pairs of a published form: a row has {has}", path=path, remedy=_REMEDY)


def numbered_rows(path: Path) -> Iterator[tuple[str, object]]:
    """The rows of a file with their places: of JSON lines, or of one JSON list; also .gz.

    Raises InputError for a file that is not there, and with the line for what is not JSON.
    """
    if not path.is_file() or not _is_list(path):
        return ((f"line {line}", row) for line, row in read_numbered_rows(path))
    return ((f"index {index}", row) for index, row in enumerate(_json_list(path)))


def _is_list(path: Path) -> bool:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return re.match(rb"(?:\xef\xbb\xbf)?\s*\[", file.read(4096)) is not None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return False


def _json_list(path: Path) -> list[object]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return cast("list[object]", json.loads(raw))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        message, remedy = f"the gzip stream is broken: {error}", "fetch or write the file again"
        raise InputError(message, path=path, remedy=remedy) from error
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", path=path, line=error.lineno, remedy="one list of rows") from error
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", path=path, remedy="save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits; lists in lists without end.
        raise InputError(f"not JSON that can be read: {error}", path=path, remedy="one list of rows") from error


# ---- measuring on it


def check_scored(stage: StageFolder, *, scored: int, attempted: int) -> None:
    """Raise TooManyFailures where more than FAILURE_LIMIT of a test set is unscored: what is left says little of it."""
    if scored >= (1 - FAILURE_LIMIT) * attempted:
        return
    reasons = Counter(row["reason"] for row in read_rows(stage.path / "failures.jsonl"))
    counted = ", ".join(f"{reason}: {n}" for reason, n in reasons.most_common())
    raise TooManyFailures(
        f"{attempted - scored} of {attempted} rows are unscored ({counted}), more than the share of {FAILURE_LIMIT:g}. "
        f"They are in {stage.path / 'failures.jsonl'}; mend the cause, or take a model that reads more, and run again"
    )
