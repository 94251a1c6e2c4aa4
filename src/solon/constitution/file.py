"""Reading a constitution's file, so that everything that is wrong with it is said at once, each with its line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from solon.constitution.principles import (
    ComparisonExemplar,
    Constitution,
    Exemplars,
    Principle,
    ReasoningExemplar,
    RevisionExemplar,
    missing_texts,
    repeated_ids,
)
from solon.constitution.published import form_of
from solon.errors import InputError

Place = tuple[str | int, ...]
"""Where a value stands: ("principles", 3, "critique")."""

_START = "start from one that ships: solon constitution show harmless > mine.yaml"
_MAX_DEPTH = 16
_KEYS: Mapping[Place, type[BaseModel]] = {
    (): Constitution,
    ("principles",): Principle,
    ("exemplars",): Exemplars,
    ("exemplars", "revision"): RevisionExemplar,
    ("exemplars", "comparison"): ComparisonExemplar,
    ("exemplars", "reasoning"): ReasoningExemplar,
}
"""The model at each place, numbers left out."""

_QUOTE = "put it in quotes if it is meant as a text"
_WEIGHT = "a weight is a number above 0; leave it out for 1, and remove the principle if it shall never be drawn"
_REMEDIES: Mapping[str, str] = {
    "empty_text": "write it, or leave the key out",
    "unfilled_text": "write it, or leave the key out",
    "string_type": _QUOTE,
    "version": "write a whole number, or put it in quotes",
    "greater_than": _WEIGHT,
    "finite_number": _WEIGHT,
    "float_parsing": _WEIGHT,
    "float_type": _WEIGHT,
    "boolean": _WEIGHT,
    "too_short": "write at least one",
    "tuple_type": "begin each entry with '- '",
    "ending": "the conversation of a revision exemplar ends with the criticised response, the others with a human turn",
    "place": "write [[better]] and [[worse]] where the letters of the two options stand",
    "transcript": 'write "Human: ..." and "Assistant: ..." with a blank line before each turn, or a list of messages',
    "empty_turn": "every turn needs a text",
    "literal_error": "a role is system, user or assistant",
}


def parse(content: bytes, *, path: Path) -> Constitution:
    """The constitution in a file's bytes; JSON if the path ends in .json, else YAML.

    Raises one InputError that lists everything that is wrong, in the order of the lines.
    """
    source = _read(content, path=path)
    problems = source.twice.copy()
    try:
        constitution = Constitution.model_validate(source.data)
    except ValidationError as error:
        content_read = source.data
        if not isinstance(content_read, dict):
            what = f"holds {_kind(content_read)}, not the keys of a constitution"
            raise InputError(what, path=path, line=1, remedy=_START) from error
        data = cast("dict[str, Any]", content_read)
        if form := form_of(data):
            remedy = "convert it: solon constitution import"
            raise InputError(f"is not solon's own form but {form}", path=path, line=1, remedy=remedy) from error
        problems += _problems(error, data)
    else:
        if not problems:
            return constitution
    found = {(source.line(problem.place), problem.what): problem for problem in problems}
    ordered = sorted(found.items(), key=lambda item: item[0])
    raise InputError.all_of(
        [InputError(what, path=path, line=line, remedy=problem.remedy) for (line, what), problem in ordered]
    )


# ---- where things stand


class _Problem(NamedTuple):
    place: Place
    what: str
    remedy: str


@dataclass(slots=True, kw_only=True)
class _Source:
    data: object
    lines: dict[Place, int] = field(default_factory=dict[Place, int])
    twice: list[_Problem] = field(default_factory=list[_Problem])

    def line(self, place: Place) -> int:
        """Of the value, or of the nearest thing around it that stands in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def add(self, node: yaml.Node | None, place: Place) -> None:
        """Note the lines of everything in `node`, and the keys that stand twice."""
        if len(place) > _MAX_DEPTH:
            return
        if isinstance(node, yaml.SequenceNode):
            for number, child in enumerate(cast("list[yaml.Node]", node.value)):
                self.lines[*place, number] = child.start_mark.line + 1
                self.add(child, (*place, number))
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, child in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
                name, line = str(key.value), key.start_mark.line + 1
                if name in seen:
                    repeated = (*place, name, f"line {line}")
                    self.lines[repeated] = line
                    self.twice.append(_Problem(repeated, f"the key `{name}` stands twice", "remove one of them"))
                else:
                    seen.add(name)
                    self.lines[*place, name] = line
                self.add(child, (*place, name))


class _Loader(yaml.SafeLoader):
    """YAML in which a date is a text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read(content: bytes, *, path: Path) -> _Source:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError("not UTF-8", path=path, line=line, remedy="save the file as UTF-8") from error
    if path.suffix.lower() == ".json":
        return _read_json(text, path=path)
    loader = cast(Any, _Loader(text))
    try:
        node = loader.get_single_node()
        source = _Source(data=None if node is None else loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        remedy = "mend the indentation or quotes there; a text with ': ' or ' #' in it needs quotes or a block (|)"
        raise InputError(f"not YAML: {error.problem or error.context}", path=path, line=line, remedy=remedy) from error
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", path=path, remedy="remove the characters that YAML forbids") from error
    finally:
        loader.dispose()
    source.add(node, ())
    return source


def _read_json(text: str, *, path: Path) -> _Source:
    try:
        source = _Source(data=json.loads(text))
    except json.JSONDecodeError as error:
        remedy = "mend the JSON there"
        raise InputError(f"not JSON: {error.msg}", path=path, line=error.lineno, remedy=remedy) from error
    # JSON is YAML but for tabs, which can only stand between its tokens.
    try:
        source.add(cast(Any, yaml).compose(text.replace("\t", " "), Loader=_Loader), ())
    except yaml.YAMLError:
        source.lines.clear()
    return source


# ---- what is wrong, in a user's words


def _problems(error: ValidationError, data: dict[str, Any]) -> Iterator[_Problem]:
    for details in error.errors(include_url=False):
        # Checked below in the raw data, because pydantic looks at them only where all else is right.
        # A list of which no entry is right is "too short", too.
        if details["type"] != "structure" and not (details["type"] == "too_short" and details["input"]):
            yield _explain(details, data)
    raw = data.get("principles")
    principles = cast("list[Any]", raw) if isinstance(raw, list) else []
    for number, principle in enumerate(principles):
        if isinstance(principle, dict) and (what := missing_texts(cast("dict[str, Any]", principle))):
            place = ("principles", number)
            remedy = "a principle has a `comparison`, or a `critique` with its `revision`, or all three"
            yield _Problem(place, f"{_subject(place, data)} {what}", remedy)
    ids: list[object] = [_get(principle, "id") for principle in principles]
    for number, what in repeated_ids(ids).items():
        yield _Problem(("principles", number, "id"), what, "give each principle an id of its own")


def _explain(details: ErrorDetails, data: dict[str, Any]) -> _Problem:
    place, kind, value = details["loc"], details["type"], details["input"]
    subject, key = _subject(place, data), place[-1] if place else ""
    if kind == "extra_forbidden":
        known = _known_keys(place[:-1])
        close = get_close_matches(str(key), known, n=1)
        remedy = f"did you mean `{close[0]}`?" if close else f"the keys here are {', '.join(known)}"
        return _Problem(place, f"unknown key `{key}`{_inside(place[:-1], data)}", remedy)
    if kind == "missing":
        return _Problem(place, f"{_subject(place[:-1], data)} has no `{key}`", "add it")
    if kind == "string_pattern_mismatch":
        words = "".join(char if char.isascii() and char.isalnum() else " " for char in str(value).lower()).split()
        such = f", such as {'-'.join(words)!r}" if words else ""
        return _Problem(place, f"the id {value!r} is not kebab-case", f"lower-case words joined by hyphens{such}")
    if kind in ("string_type", "tuple_type", "dict_type", "model_type", "model_attributes_type", "float_type"):
        wanted = {"string": "a text", "tuple": "a list", "float": "a number"}.get(
            kind.split("_")[0], "keys with values"
        )
        return _Problem(place, f"{subject} is {_kind(value)}, not {wanted}", _REMEDIES.get(kind, _START))
    if kind in ("greater_than", "finite_number", "float_parsing"):
        return _Problem(place, f"{subject} is {value}", _REMEDIES[kind])
    if kind == "too_short":
        return _Problem(place, f"{subject} is empty", _REMEDIES[kind])
    message = details["msg"]
    what = message if message.startswith(("is ", "holds ", "does ")) else f": {message[0].lower()}{message[1:]}"
    return _Problem(place, f"{subject}{'' if what[0] == ':' else ' '}{what}", _REMEDIES.get(kind, _START))


def _subject(place: Place, data: dict[str, Any]) -> str:
    """What stands at a place: "the critique of principle 'theft'"."""
    if not place:
        return "the constitution"
    if len(place) >= 2 and place[0] == "principles":
        name = _get(_get(data["principles"], place[1]), "id")
        owner, rest = f"principle {name!r}" if isinstance(name, str) else f"principle {int(place[1]) + 1}", place[2:]
    elif len(place) >= 3 and place[0] == "exemplars":
        owner, rest = f"{place[1]} exemplar {int(place[2]) + 1}", place[3:]
    else:
        return f"`{'.'.join(map(str, place))}`"
    return f"`{'.'.join(map(str, rest))}` of {owner}" if rest else owner


def _inside(place: Place, data: dict[str, Any]) -> str:
    return f" in {_subject(place, data)}" if place else ""


def _known_keys(place: Place) -> list[str]:
    model = _KEYS.get(tuple(part for part in place if isinstance(part, str)))
    return list(model.model_fields) if model else ["role", "content"]


def _get(container: object, key: str | int) -> object:
    if isinstance(container, dict):
        return cast("dict[object, object]", container).get(key)
    return cast("list[object]", container)[int(key)] if isinstance(container, list) else None


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    names = {"dict": "keys with values", "list": "a list", "str": "a text", "int": "a number", "float": "a number"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")
