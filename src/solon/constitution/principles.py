"""Principles, exemplars and the constitution that holds them; drawing from it with a seed.

Each principle holds the words that a model is asked with: a critique and a revision request (the supervised stage), a
comparison (the AI feedback), or all three. The paper draws a principle afresh for every revision and every comparison
(sections 3.1 and 4.1); `Constitution.draw` does, from a seed.

Differences from the paper: 1. principles may have weights; the paper draws uniformly. 2. One list may serve both
stages; the paper has two disjoint ones, which a file can hold too, as a principle may have the texts of one stage only.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from solon.artifact import canonical_json, content_id, derive_seed
from solon.dialogue import Message, parse_transcript, tidy
from solon.errors import InputError

Kind = Literal["revision", "comparison"]
"""What a principle is drawn for: a critique and its revision, or a comparison."""
ExemplarKind = Literal["revision", "comparison", "reasoning"]

ID_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
_PLACE = re.compile(r"\[\[(.*?)\]\]")
_UNFILLED = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|(to-?do|tbd|fixme|xxx+|n/?a|none|null)\W*", re.IGNORECASE)


# ---- texts


def _line_ends(text: str) -> str:
    """What YAML makes of them: the same text has the same fingerprint from every editor and format."""
    return re.sub("\r\n?|\x85", "\n", text)


def _text(text: str) -> str:
    text = _line_ends(text).strip()
    if not text:
        raise PydanticCustomError("empty_text", "is empty")
    if not any(char.isalnum() for char in text) or _UNFILLED.fullmatch(text):
        raise PydanticCustomError("unfilled_text", "is still to be filled in: {text}", {"text": repr(text)})
    return text


def _not_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "is {value}, not a number", {"value": str(value).lower()})
    return value


def _transcript_or_messages(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tidy(parse_transcript(value))
    except InputError as error:
        raise PydanticCustomError("transcript", "is {problem}", {"problem": error.what}) from error


def _tidied(value: tuple[Message, ...]) -> tuple[Message, ...]:
    dialogue = tuple(tidy([{"role": turn["role"], "content": _line_ends(turn["content"])} for turn in value]))
    if not all(turn["content"] for turn in dialogue):
        raise PydanticCustomError("empty_turn", "holds an empty turn")
    return dialogue


Text = Annotated[str, AfterValidator(_text)]
"""A text with something in it; white space around it is dropped."""
Conversation = Annotated[tuple[Message, ...], BeforeValidator(_transcript_or_messages), AfterValidator(_tidied)]
"""Messages; in a file also a transcript, "Human: ... (blank line) Assistant: ..."."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# ---- principles and exemplars


class Principle(_Frozen):
    """One rule, as the requests that a model is given."""

    id: str = Field(pattern=ID_PATTERN)
    """Stable name, unique in its file: lower-case words joined by hyphens. Rows and reports use it."""
    critique: Text | None = None
    """Asks for a critique of the assistant's last response. It comes with `revision`."""
    revision: Text | None = None
    """Asks for that response to be rewritten."""
    comparison: Text | None = None
    """Asks which of two responses is better."""
    weight: Annotated[float, BeforeValidator(_not_boolean)] = Field(1.0, gt=0, allow_inf_nan=False)
    """The principle is drawn with a probability proportional to it."""
    tags: tuple[Text, ...] = ()
    """Free words for grouping in reports."""

    def serves(self, kind: Kind) -> bool:
        """Whether it has the texts for `kind`."""
        return (self.revision if kind == "revision" else self.comparison) is not None

    @model_validator(mode="after")
    def _has_texts(self) -> Self:
        if problem := missing_texts(self.__dict__):
            raise PydanticCustomError("structure", "{problem}", {"problem": problem})
        return self


class RevisionExemplar(_Frozen):
    """A worked example of a critique and a revision. Some should say that there is nothing to change."""

    conversation: Conversation
    """Ends with the response that is criticised."""
    critique_request: Text
    critique: Text
    revision_request: Text
    revision: Text

    @field_validator("conversation")
    @classmethod
    def _ends_with_assistant(cls, value: tuple[Message, ...]) -> tuple[Message, ...]:
        return _ending(value, "assistant")


class ComparisonExemplar(_Frozen):
    """A worked example of a comparison."""

    conversation: Conversation
    """Ends with a human turn."""
    better: Text
    worse: Text

    @field_validator("conversation")
    @classmethod
    def _ends_with_human(cls, value: tuple[Message, ...]) -> tuple[Message, ...]:
        return _ending(value, "user")


class ReasoningExemplar(ComparisonExemplar):
    """A comparison with a written chain of thought."""

    reasoning: Text
    """Its letters are drawn with the order of the two, so it writes [[better]] and [[worse]] where a letter stands:
    "Response ([[better]]) says why it declines."."""

    @field_validator("reasoning")
    @classmethod
    def _known_places(cls, value: str) -> str:
        names = _PLACE.findall(value)
        if unknown := [name for name in names if name not in ("better", "worse")]:
            raise PydanticCustomError("place", "holds [[{name}]]", {"name": unknown[0]})
        if "better" not in names:
            raise PydanticCustomError("place", "does not say which option is better")
        return value


Exemplar = RevisionExemplar | ComparisonExemplar | ReasoningExemplar


class Exemplars(_Frozen):
    """Few-shot examples; each kind may be empty."""

    revision: tuple[RevisionExemplar, ...] = ()
    comparison: tuple[ComparisonExemplar, ...] = ()
    reasoning: tuple[ReasoningExemplar, ...] = ()

    def draw(self, kind: ExemplarKind, k: int, *, seed: int) -> tuple[Exemplar, ...]:
        """`k` different ones in an order that the seed fixes. Raises InputError if there are fewer."""
        population: Sequence[Exemplar] = getattr(self, kind)
        if not 0 <= k <= len(population):
            remedy = "ask for fewer, or write more under `exemplars`"
            raise InputError(f"{k} {kind} exemplars asked for, the constitution has {len(population)}", remedy=remedy)
        keys = [_race(seed, f"{kind} exemplar", content_id(one.model_dump(mode="json"))) for one in population]
        return tuple(population[i] for i in sorted(range(len(population)), key=keys.__getitem__)[:k])


# ---- the constitution


def _version(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("version", "is {value}", {"value": str(value)})
    return value


class Constitution(_Frozen):
    """Principles, and examples of how they are used."""

    name: Text
    version: Annotated[int | str, BeforeValidator(_version)] = 1
    licence: Text | None = None
    """Of the constitution's own text, such as CC-BY-4.0; goes into the cards."""
    principles: tuple[Principle, ...] = Field(min_length=1)
    exemplars: Exemplars = Exemplars()
    metadata: dict[str, JsonValue] = {}
    """Anything else worth keeping with it: authors, sources, a description. Part of the fingerprint."""

    @field_validator("metadata")
    @classmethod
    def _has_json(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            canonical_json(value)
        except ValueError as error:
            raise PydanticCustomError("not_json", "holds a number that is not finite") from error
        return value

    @model_validator(mode="after")
    def _unique_ids(self) -> Self:
        for problem in repeated_ids([principle.id for principle in self.principles]).values():
            raise PydanticCustomError("structure", "{problem}", {"problem": problem})
        return self

    @classmethod
    def load(cls, name_or_path: str | Path) -> Constitution:
        """A shipped constitution by its name (see `shipped`), or the file at a path (.yaml, .yml or .json).

        Raises one InputError that lists everything that is wrong with the file, each with its line and a remedy.
        """
        from solon.constitution.file import parse

        path = _resolve(name_or_path)
        return parse(path.read_bytes(), path=path)

    @property
    def fingerprint(self) -> str:
        """The sha256, in hexadecimal, of the canonical JSON: the same however the same constitution is written."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()

    def serving(self, kind: Kind) -> tuple[Principle, ...]:
        """The principles that have the texts for `kind`. Raises InputError if there is none."""
        population = tuple(principle for principle in self.principles if principle.serves(kind))
        if not population:
            texts = "a `critique` and a `revision`" if kind == "revision" else "a `comparison`"
            what = f"no principle of the constitution {self.name!r} has {texts}"
            raise InputError(what, remedy="write one, or choose another constitution")
        return population

    def draw(self, kind: Kind, seed: int) -> Principle:
        """One principle for `kind`, with a probability proportional to its weight; the seed alone decides.

        Every principle runs its own race, so the order of the file and the wording of principles never change a draw,
        and adding or removing one only changes the draws that it wins.
        """
        return self.sample(kind, 1, seed)[0]

    def sample(self, kind: Kind, k: int, seed: int) -> tuple[Principle, ...]:
        """`k` different principles for `kind`, drawn by weight without replacement; the first is `draw(kind, seed)`.

        Raises InputError if fewer serve. Exponential races: Efraimidis and Spirakis 2006, algorithm A.
        """
        population = self.serving(kind)
        if not 0 <= k <= len(population):
            what = (
                f"{k} different principles asked for, the constitution {self.name!r} has {len(population)} for a {kind}"
            )
            raise InputError(what, remedy="ask for fewer, or write more")
        ranked = sorted(population, key=lambda one: _race(seed, kind, one.id) / one.weight)
        return tuple(ranked[:k])

    def to_yaml(self) -> str:
        """The constitution as a file that `load` reads back to an equal one."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        content = {"name": self.name, "version": self.version} | content
        return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def missing_texts(values: Mapping[str, object]) -> str | None:
    """What a principle lacks, given its texts by name; None if nothing."""
    has = {name for name in ("critique", "revision", "comparison") if values.get(name) is not None}
    if not has:
        return "has no text"
    if "critique" in has and "revision" not in has:
        return "has a critique but no revision"
    return "has a revision but no critique" if "revision" in has and "critique" not in has else None


def repeated_ids(ids: Sequence[object]) -> dict[int, str]:
    """By position: which ids stand further up already."""
    first: dict[object, int] = {}
    found: dict[int, str] = {}
    for position, one in enumerate(ids):
        if isinstance(one, str) and first.setdefault(one, position) != position:
            found[position] = f"the id {one!r} is that of principle {first[one] + 1} too"
    return found


def shipped() -> tuple[str, ...]:
    """The names of the constitutions in the package."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml") if path.stem != "TEMPLATE"))


def _folder() -> Path:
    return Path(str(files("solon") / "constitutions"))


def _resolve(name_or_path: str | Path) -> Path:
    if isinstance(name_or_path, str) and re.fullmatch(r"[\w-]+", name_or_path):
        path = _folder() / f"{name_or_path}.yaml"
        if path.is_file():
            return path
    path = Path(name_or_path)
    if path.is_dir():
        remedy = "name a .yaml or .json file, or convert the folder: solon constitution import"
        raise InputError("is a folder, not a constitution", path=path, remedy=remedy)
    if not path.is_file():
        remedy = f"give the path of a file, or one of the shipped: {', '.join(shipped())}"
        raise InputError("there is no such constitution", path=path, remedy=remedy)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        remedy = "name the file .yaml or .json, or convert it: solon constitution import"
        raise InputError(
            f"a constitution is a .yaml or .json file, not {path.suffix or 'one without ending'}",
            path=path,
            remedy=remedy,
        )
    return path


def _race(seed: int, *names: str) -> float:
    """An exponential waiting time with mean 1, the same on every machine; divided by a weight, the shortest of several
    is first with a probability proportional to its weight."""
    uniform = ((derive_seed("constitution", seed, *names) >> 10) + 0.5) / 2**53
    return -math.log(uniform)


def _ending(dialogue: tuple[Message, ...], role: str) -> tuple[Message, ...]:
    if not dialogue or dialogue[-1]["role"] != role:
        who = "the assistant" if role == "assistant" else "the human"
        raise PydanticCustomError("ending", "does not end with a turn of {who}", {"who": who})
    return dialogue


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are written as blocks."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Between quotes that allow escapes, because YAML reads these as line ends.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else "|" if "\n" in text else None
    represent = cast(Any, dumper).represent_scalar
    return represent("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
