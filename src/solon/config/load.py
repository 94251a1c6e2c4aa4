"""A recipe file and `--set` flags to a Recipe, or every error at once with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from solon.config.recipe import Recipe
from solon.errors import InputError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of plain scalars: 1e-5 is a number; off, on, yes and no are words."""


def _resolve(tag: str, pattern: str, first: str) -> None:
    cast(Any, _Loader).add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", "-+.0123456789")
_resolve("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")


NO_SECTION = frozenset({"model_type", "model_attributes_type"})
"""Pydantic's types of error where a section of settings is wanted, and something else stands."""


class _Line(NamedTuple):
    line: int | None
    whole: bool
    """False: the setting itself is not in the file; the line is that of the innermost section around it that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where each setting was written."""

    path: Path
    root: yaml.MappingNode | None
    flags: tuple[str, ...]
    """Dotted names of the settings that came from --set."""

    def error(self, place: Sequence[str | int], what: str, *, remedy: str | None = None) -> InputError:
        """The error of the setting at `place`, with its flag or else its line (or the line of its section)."""
        name = ".".join(map(str, place))
        line, whole = self._line(place)
        for flag in self.flags:
            if name == flag or name.startswith(f"{flag}.") or (not whole and flag.startswith(f"{name}.")):
                return InputError(f"--set {name}: {what}", remedy=remedy)
        return InputError(f"{name}: {what}" if name else what, path=self.path, line=line, remedy=remedy)

    def _line(self, place: Sequence[str | int]) -> _Line:
        node: yaml.Node | None = self.root
        line: int | None = None
        for part in place:
            key, node = _child(node, part)
            if key is None:
                return _Line(line, whole=False)
            line = key.start_mark.line + 1
        return _Line(line, whole=True)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, changed by `overrides` of the form "a.b=value" (the values of --set, in YAML).

    Raises InputError that carries every error at once, each with the dotted name of the setting and its line or flag.
    """
    path = Path(path)
    data, root, errors = _read(path)
    flags: list[str] = []
    # Kinds first: a new kind empties its section, which must not lose what another flag puts there.
    for override in sorted(overrides, key=lambda text: not text.partition("=")[0].strip().endswith(".kind")):
        try:
            flags.append(_apply(data, override))
        except InputError as error:
            errors.append(error)
    source = _Source(path=path, root=root, flags=tuple(flags))
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as invalid:
        found = [*invalid.errors(), *_hidden_errors(data, invalid.errors())]
        errors += [error for details in found for error in _explain(details, data, source)]
        raise InputError.all_of(errors) from None
    if errors:
        raise InputError.all_of(errors)
    return recipe


def shipped_recipe(name: str) -> Path:
    """The file of a recipe that comes with solon: "sandbox" is recipes/sandbox.yaml, in a checkout or in a wheel."""
    package = Path(__file__).parents[1]
    places = [folder / f"{name}.yaml" for folder in (package / "recipes", package.parents[1] / "recipes")]
    for place in places:
        if place.is_file():
            return place
    raise InputError(f"no recipe {name!r} comes with solon", remedy="give the path of a file")


def _read(path: Path) -> tuple[dict[str, Any], yaml.MappingNode | None, list[InputError]]:
    if not path.is_file():
        raise InputError("there is no such recipe", path=path, remedy="check the path; recipes/ has some to start from")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        duplicates = [
            InputError(f"{key.value}: the key stands there twice", path=path, line=key.start_mark.line + 1)
            for key in _twice(node)
        ]
        data = cast(object, cast(Any, loader).construct_document(node)) if node is not None else None
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", path=path, remedy="save the file as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise InputError(f"not YAML: {error.problem}", path=path, line=mark.line + 1 if mark else None) from error
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", path=path) from error
    if not isinstance(data, dict) or not isinstance(node, yaml.MappingNode):
        raise InputError("a recipe is a mapping of settings", path=path, remedy="start from one in recipes/")
    return cast(dict[str, Any], data), node, duplicates


def _apply(data: dict[str, Any], override: str) -> str:
    """Set one "a.b=value" in `data`, making the sections on the way; returns "a.b"."""
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {override}: not of the form a.b=value")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not YAML", remedy="put it in quotes") from error
    section = data
    for depth, part in enumerate(parts[:-1], start=1):
        inner = section.get(part)
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise InputError(f"--set {override}: {'.'.join(parts[:depth])} is not a section but {inner!r}")
        section = cast(dict[str, Any], inner)
    if parts[-1] == "kind" and section.get("kind", _default_kind(parts[:-1])) != value:
        section.clear()  # The settings of one kind mean nothing to another.
    section[parts[-1]] = value
    return ".".join(parts)


def _hidden_errors(data: dict[str, Any], seen: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """What is wrong between stages, which pydantic looks at only when every single setting is right."""
    if any(details["type"] == "stages" for details in seen):
        return []
    stand_ins: dict[str | int, object] = {"name": "x", "model": {"path": "x"}, "prompts": {"path": "sandbox"}}
    rest = deepcopy(data)
    for details in seen:
        *outer, last = _without_tags(details["loc"], data)
        if not outer and details["type"] in NO_SECTION:
            rest[str(last)] = {}  # It is asked for, if not as it should be.
            continue
        section: Any = rest
        for part in outer:
            section = cast(dict[Any, Any], section).get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):
            cast(dict[Any, Any], section).pop(last, None)
        first = details["loc"][0]
        if first in stand_ins:
            rest[str(first)] = stand_ins[first]
    try:
        Recipe.model_validate(rest)
    except ValidationError as invalid:
        return [details for details in invalid.errors() if details["type"] == "stages"]
    return []


def _explain(details: ErrorDetails, data: dict[str, Any], source: _Source) -> Iterator[InputError]:
    kind, value = details["type"], details["input"]
    place = _without_tags(details["loc"], data, of_all=kind == "value_error")
    if kind == "stages":
        for problem in details["msg"].split("\n"):
            name, _, what = problem.partition(": ")
            yield source.error(name.split("."), what)
    elif kind == "missing":
        flag = ".".join(map(str, [*place, *_required(place)]))
        yield source.error(place, "it is missing", remedy=f"write it, or give --set {flag}=VALUE")
    elif kind == "extra_forbidden":
        yield _unknown_key(place, source)
    elif kind == "union_tag_invalid":
        context = details.get("ctx", {})
        what = f"there is no kind {context['tag']!r}"
        yield source.error([*place, "kind"], what, remedy=f"known: {context['expected_tags']}")
    elif kind in NO_SECTION:
        example = ".".join(map(str, [*place, *_required(place)]))
        yield source.error(place, f"a section of settings is wanted, not {value!r}", remedy=f"as in {example}=VALUE")
    elif isinstance(value, (dict, list, BaseModel)):
        yield source.error(place, _lower(details["msg"].removeprefix("Value error, ")))
    else:
        yield source.error(place, f"{_lower(details['msg'])}, not {value!r}")


def _unknown_key(place: Sequence[str | int], source: _Source) -> InputError:
    known = _known_keys(place[:-1])
    close = get_close_matches(str(place[-1]), known, n=1)
    remedy = f"do you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return source.error(place, "there is no such setting", remedy=remedy)


def _known_keys(place: Sequence[str | int]) -> list[str]:
    """The settings of the section at `place`; of all its kinds where it has several."""
    return list(dict.fromkeys(name for section in _sections_at(place) for name in section.model_fields))


def _required(place: Sequence[str | int]) -> list[str]:
    """The first setting that the section at `place` cannot do without; [] where `place` is a plain setting."""
    sections = _sections_at(place)
    fields = sections[0].model_fields if sections else {}
    return [name for name, field in fields.items() if field.is_required()][:1]


def _default_kind(place: Sequence[str | int]) -> object:
    sections = [section for section in _sections_at(place) if "kind" in section.model_fields]
    return sections[0].model_fields["kind"].default if sections else None


def _sections_at(place: Sequence[str | int]) -> list[type[BaseModel]]:
    sections: list[type[BaseModel]] = [Recipe]
    for part in place:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = [inner for field in fields for inner in _sections_in(field.annotation)]
    return sections


def _sections_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]


def _without_tags(place: Sequence[str | int], data: object, *, of_all: bool = False) -> list[str | int]:
    """Pydantic's location less the name of the chosen kind, which is no key of the file.

    `of_all`: the error is that of all settings of the place together, so that the name may come last.
    """
    kept: list[str | int] = []
    for index, part in enumerate(place):
        inside = cast(dict[Any, Any], data) if isinstance(data, dict) else {}
        a_tag = part not in inside and inside.get("kind", "local") == part and (of_all or index < len(place) - 1)
        if not (isinstance(data, dict) and a_tag):
            kept.append(part)
            data = inside.get(part)
    return kept


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node | None, yaml.Node | None]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None, None


def _twice(node: yaml.Node | None) -> Iterator[yaml.Node]:
    """Keys that a mapping has twice: YAML lets the last one win silently."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key
                seen.add(key.value)
            yield from _twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _twice(value)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
