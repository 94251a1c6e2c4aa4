"""Published sets of prompts, read as rows of prompts.jsonl: CSV tables, JSON lists and the columns that each set has.

    for line, raw in numbered_prompts(Path("xstest_prompts.csv")):
        row = known(raw)        # prompt, kind, category

Known by their columns: XSTest (arXiv:2308.01263), AdvBench (arXiv:2307.15043), HarmBench (arXiv:2402.04249),
JailbreakBench (arXiv:2404.01318), Self-Instruct (arXiv:2212.10560), MT-bench (arXiv:2306.05685) and the nested lists of
HarmfulQA (arXiv:2308.09662). Rows of any other form are left as they are; `solon.dialogue.read_prompts`, which calls
these, knows what a row needs. Target answers that some sets have are left out: no one is to be taught them.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from solon.artifact import NumberedRow, need_file, read_numbered_rows
from solon.errors import InputError

Row = Mapping[str, Any]


class _Form(NamedTuple):
    """A published set: the columns by which it is known, and what becomes of a row."""

    columns: frozenset[str]
    read: Callable[[Row], dict[str, Any]]


def _xstest(row: Row) -> dict[str, Any]:
    kinds = {"safe": "look-alike", "unsafe": "red-team"}
    if (label := row["label"]) not in kinds:
        raise InputError(f"label is {label!r}", remedy="XSTest's are 'safe' and 'unsafe'")
    return {"id": f"xstest-{row['id']}", "prompt": row["prompt"], "kind": kinds[label], "category": row["type"]}


def _advbench(row: Row) -> dict[str, Any]:
    return {"prompt": row["goal"], "kind": "red-team"}


def _harmbench(row: Row) -> dict[str, Any]:
    context = row.get("ContextString") or ""
    prompt = f"{context}\n\n{row['Behavior']}" if context else row["Behavior"]
    about = {"id": row["BehaviorID"], "category": row["SemanticCategory"]}
    return {"prompt": prompt, "kind": "red-team", **about}


def _jailbreakbench(row: Row) -> dict[str, Any]:
    return {"prompt": row["Goal"], "kind": "red-team", "category": row["Category"]}


def _self_instruct(row: Row) -> dict[str, Any]:
    instances = cast("list[Row]", row["instances"] or [{}])
    given = str(instances[0].get("input") or "").strip()
    prompt = f"{row['instruction']}\n\n{given}" if given else row["instruction"]
    return {"id": str(row["id"]), "prompt": prompt, "kind": "helpful"}


def _mt_bench(row: Row) -> dict[str, Any]:
    """The first turn: the second one asks about an answer that is not there."""
    turns = cast("list[str]", row["turns"] or [""])
    return {"id": f"mt-bench-{row['question_id']}", "prompt": turns[0], "kind": "helpful", "category": row["category"]}


FORMS = (
    _Form(frozenset({"id", "prompt", "type", "label"}), _xstest),
    _Form(frozenset({"goal", "target"}), _advbench),
    _Form(frozenset({"Behavior", "SemanticCategory", "BehaviorID"}), _harmbench),
    _Form(frozenset({"Goal", "Behavior", "Category"}), _jailbreakbench),
    _Form(frozenset({"id", "instruction", "instances"}), _self_instruct),
    _Form(frozenset({"question_id", "turns", "category"}), _mt_bench),
)


def numbered_prompts(path: Path) -> Iterator[NumberedRow]:
    """The rows of a file of prompts with their lines: .jsonl, .json (a list of rows or texts, or such lists by
    category) or .csv, each also .gz.

    Raises InputError, with the line where there is one, for what cannot be read.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return {".csv": _csv_rows, ".json": _json_rows}.get(suffix.lower(), read_numbered_rows)(path)


def known(row: Row) -> Row:
    """The row as a row of prompts.jsonl, where it is one of a published set; else itself. Raises InputError without
    path and line for a set's row whose values are none of its own."""
    form = _form(tuple(row))
    if form is None:
        return row
    try:
        return form.read(row)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        names = ", ".join(sorted(form.columns))
        raise InputError(f"a row of the columns {names} without their values", remedy="mend or remove it") from error


@lru_cache
def _form(columns: tuple[str, ...]) -> _Form | None:
    return next((form for form in FORMS if form.columns.issubset(columns)), None)


def _csv_rows(path: Path) -> Iterator[NumberedRow]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True), strict=True)
    if not reader.fieldnames:
        raise InputError("the file is empty", path=path, remedy="a first line with the names of the columns")
    try:
        for row in reader:
            if None in row or None in row.values():
                what = f"not {len(reader.fieldnames)} values, as the first line has names"
                raise InputError(what, path=path, line=reader.line_num, remedy="mend the line, or its quotes")
            yield NumberedRow(reader.line_num, cast("dict[str, Any]", row))
    except csv.Error as error:
        raise InputError(f"not CSV: {error}", path=path, line=reader.line_num, remedy="mend the quotes") from error


def _json_rows(path: Path) -> Iterator[NumberedRow]:
    """Rows have no lines here: they are counted."""
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError as error:
        remedy = "one list of rows or texts; for one row a line call the file .jsonl"
        raise InputError(f"not JSON: {error.msg}", path=path, line=error.lineno, remedy=remedy) from error
    except (RecursionError, ValueError) as error:
        raise InputError(
            f"not JSON that can be read: {error}", path=path, remedy="one list of rows or texts"
        ) from error
    for number, row in enumerate(_leaves(found, category=None, path=path), start=1):
        yield NumberedRow(number, row)


def _leaves(value: object, *, category: str | None, path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a list, or of lists by category; of categories in categories the outermost counts."""
    if isinstance(value, dict):
        for name, inner in cast("dict[str, object]", value).items():
            yield from _leaves(inner, category=category or name, path=path)
    elif isinstance(value, list):
        about = {} if category is None else {"category": category}
        for one in cast("list[object]", value):
            if not isinstance(one, str | dict):
                raise InputError(f"{one!r:.60} is no prompt", path=path, remedy="a list holds texts or rows")
            yield {"prompt": one, **about} if isinstance(one, str) else {**about, **cast("dict[str, Any]", one)}
    else:
        raise InputError(f"{value!r:.60} is no list of prompts", path=path, remedy="lists of texts or rows")


def _text(path: Path) -> str:
    need_file(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", path=path, remedy="save the file as UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        message = f"the gzip stream is broken: {error}"
        raise InputError(message, path=path, remedy="fetch or write the file again") from error
