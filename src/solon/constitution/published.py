"""Constitutions that others have published, converted to ours.

- the JSON of Hugging Face's llm-swarm recipe: `{"constitutions": [{"critic", "revision"}], "system_chat": [messages]}`;
- the files of the paper's supplementary repository (PAPER.md, section 6), one by one or as their folder:
  CritiqueRevisionInstructions, CritiqueRevisionFewShotPrompts, RLMadisonInstructions, RLMadisonFewShotPrompts and
  RLMadisonPrecogFewShotPrompts;
- lists of traits, `[{"trait", "questions"}]`, as OpenCharacterTraining has them: each becomes a principle in our words
  around the trait, and the questions are kept in the metadata.

Texts are taken as they are, without the labels around them ("CritiqueRequest:", "Critique:", "Options:").
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from solon.artifact import read_json
from solon.constitution.principles import ID_PATTERN, Constitution
from solon.dialogue import CRITIQUE_NAMES, Message, parse_transcript, reply
from solon.errors import InputError

Form = Literal[
    "llm-swarm's form",
    "the paper's critique and revision instructions",
    "the paper's critique and revision examples",
    "the paper's comparison instructions",
    "the paper's comparison examples",
    "the paper's reasoning examples",
    "a list of traits",
]

_UNDERSTOOD = (
    "understood are a constitution of solon's own, llm-swarm's JSON, the JSON files of the paper's repository "
    "(CritiqueRevisionInstructions, CritiqueRevisionFewShotPrompts, RLMadisonInstructions, RLMadisonFewShotPrompts, "
    "RLMadisonPrecogFewShotPrompts) or their folder, and JSON lists of {trait, questions}"
)
_LABELS = re.compile(r"\A\s*(?:CritiqueRequest|RevisionRequest):|(?:Critique|Revision|Options):\s*\Z")
_OPTIONS = re.compile(r"\n *\(A\) \[\[\[(?P<a>.*?)\]\]\]\n *\(B\) \[\[\[(?P<b>.*?)\]\]\]", re.DOTALL)
_REASONING_START = re.compile(r"\A\s*Let's think step[ -]by[ -]step:?\s*", re.IGNORECASE)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Parts:
    """What a constitution is made of, as plain data."""

    principles: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    revision: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    comparison: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    reasoning: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    questions: dict[str, Any] = field(default_factory=dict[str, Any])


def import_constitution(path: str | Path) -> Constitution:
    """The constitution in a published file or folder, or in one of solon's own files.

    In a folder, JSON files of another form are passed over with a warning. Raises InputError for what is not
    understood, for a file that breaks its form, and for examples without any principle.
    """
    path = Path(path)
    if not path.is_dir() and path.suffix.lower() in (".yaml", ".yml"):
        return Constitution.load(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    parts, sources = _Parts(), list[str]()
    for file in files:
        content = read_json(file)
        form = form_of(content)
        if form is not None:
            _add(parts, form, content, path=file)
            sources.append(file.name)
        elif path.is_dir():
            _log.warning("%s: passed over, its form is not known", file)
        elif isinstance(content, dict) and "principles" in content:
            return Constitution.load(file)
    if not sources:
        raise InputError("the form of this constitution is not known", path=path, remedy=_UNDERSTOOD)
    if not parts.principles:
        remedy = "import the folder, so that the instructions come with them"
        raise InputError("holds examples but no principles", path=path, remedy=remedy)
    return _assemble(parts, path=path, sources=sources)


def form_of(content: object) -> Form | None:
    """Which published form a JSON value has; None for any other."""
    if isinstance(content, dict):
        values = cast("dict[str, object]", content)
        if isinstance(values.get("constitutions"), list):
            return "llm-swarm's form"
        if values and all({"prompt", "edit_request"} <= _keys(value) for value in values.values()):
            return "the paper's critique and revision instructions"
        return None
    if not isinstance(content, list) or not content:
        return None
    rows = cast("list[object]", content)
    if all(isinstance(row, str) for row in rows):
        is_dialogue = any("CritiqueRequest:" in str(row) and "Assistant:" in str(row) for row in rows)
        return "the paper's critique and revision examples" if is_dialogue else "the paper's comparison instructions"
    shared = set[str].intersection(*(_keys(row) for row in rows))
    if {"prompt", "corrects", "incorrects"} <= shared:
        return "the paper's comparison examples"
    if "trait" in shared:
        return "a list of traits"
    return "the paper's reasoning examples" if "prompt" in shared else None


def _keys(value: object) -> set[str]:
    return set(cast("dict[str, object]", value)) if isinstance(value, dict) else set()


# ---- the forms


def _swarm(parts: _Parts, content: Any) -> None:
    for number, pair in enumerate(content["constitutions"], start=1):
        texts = {"critique": _bare(pair["critic"]), "revision": _bare(pair["revision"])}
        parts.principles.append({"id": f"principle-{number:02}", **texts})
    for chat in content.get("system_chat", ()):
        parts.revision.append(_revision_exemplar(cast("Sequence[Message]", chat)))


def _instructions(parts: _Parts, content: Any) -> None:
    for number, (key, value) in enumerate(content.items(), start=1):
        prompt = value["prompt"]
        texts = {
            "critique": _bare(prompt if isinstance(prompt, str) else prompt[0]),
            "revision": _bare(value["edit_request"]),
        }
        parts.principles.append({"id": key if re.match(ID_PATTERN, key) else f"revision-{number:02}", **texts})


def _comparisons(parts: _Parts, content: Any) -> None:
    for number, text in enumerate(content, start=1):
        parts.principles.append({"id": f"comparison-{number:02}", "comparison": _bare(text)})


def _traits(parts: _Parts, content: Any) -> None:
    for row in content:
        number, trait = len(parts.questions) + 1, row["trait"].strip()
        identity = f"trait-{number:02}"
        parts.principles.append(
            {
                "id": identity,
                "critique": "Here is how the assistant describes itself. Point out any way in which its last response "
                f"does not fit the description.\n\n{trait}",
                "revision": f"Rewrite the response so that it fits this description of the assistant.\n\n{trait}",
                "comparison": f"Which response fits this description of the assistant better?\n\n{trait}",
            }
        )
        parts.questions[identity] = list(row.get("questions", ()))


def _revision_examples(parts: _Parts, content: Any) -> None:
    for text in content:
        turns = parse_transcript(text, names=CRITIQUE_NAMES)
        while turns[-1]["role"] == "user" and not turns[-1]["content"].strip():
            turns.pop()
        parts.revision.append(_revision_exemplar(turns))


def _comparison_examples(parts: _Parts, content: Any) -> None:
    for row in content:
        parts.comparison.append(
            {
                "conversation": _question_turns(row["prompt"]),
                "better": row["corrects"][0],
                "worse": row["incorrects"][0],
            }
        )


def _reasoning_examples(parts: _Parts, content: Any) -> None:
    for row in content:
        # Some of the published strings begin with one newline or none.
        asked, thought, said = (turn["content"] for turn in parse_transcript("\n\n" + row["prompt"].strip()))
        options = _OPTIONS.search(asked)
        letter = re.search(r"\(([AB])\)", said)
        if options is None or letter is None:
            raise ValueError("a reasoning example without its options or its answer")
        conversation = asked[: options.start()].partition("\n\n")[2].replace("{}", "").strip()
        better, worse = ("a", "b") if letter[1] == "A" else ("b", "a")
        thought = _REASONING_START.sub("", thought)
        thought = thought.replace(f"({better.upper()})", "([[better]])").replace(f"({worse.upper()})", "([[worse]])")
        parts.reasoning.append(
            {
                "conversation": _question_turns(re.sub(r"(?:\A|\n\n)(H|A):", _whole_name, conversation)),
                "better": options[better],
                "worse": options[worse],
                "reasoning": thought,
            }
        )


_READERS: Mapping[Form, Callable[[_Parts, Any], None]] = {
    "llm-swarm's form": _swarm,
    "the paper's critique and revision instructions": _instructions,
    "the paper's critique and revision examples": _revision_examples,
    "the paper's comparison instructions": _comparisons,
    "the paper's comparison examples": _comparison_examples,
    "the paper's reasoning examples": _reasoning_examples,
    "a list of traits": _traits,
}


def _add(parts: _Parts, form: Form, content: Any, *, path: Path) -> None:
    # The content is any JSON that looked like a form from outside.
    try:
        _READERS[form](parts, content)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        lacks = isinstance(error, KeyError)
        why = f"an entry has no {error.args[0]!r}" if lacks else f"{type(error).__name__}: {error}"
        what = f"looks like {form}, but cannot be read as that: {why}"
        raise InputError(what, path=path, remedy=_UNDERSTOOD) from error


def _bare(text: str) -> str:
    """An instruction without the labels that stand around it in the published files."""
    return _LABELS.sub("", text).strip()


def _question_turns(transcript: str) -> list[Message]:
    """The turns up to the last human one; a bare "Assistant:" at the end is left out."""
    turns = parse_transcript(transcript)
    return turns[:-1] if turns[-1] == reply(turns[-1]["content"].strip()) and not turns[-1]["content"] else turns


def _whole_name(match: re.Match[str]) -> str:
    return f"\n\n{'Human' if match[1] == 'H' else 'Assistant'}:"


def _revision_exemplar(turns: Sequence[Message]) -> dict[str, Any]:
    """A dialogue whose last four turns are critique request, critique, revision request and revision."""
    roles = [turn["role"] for turn in turns[-5:]]
    if roles != ["assistant", "user", "assistant", "user", "assistant"]:
        raise ValueError("an example does not end with a response, its critique and its revision")
    ask, critique, ask_again, revision = (turn["content"] for turn in turns[-4:])
    return {
        "conversation": list(turns[:-4]),
        "critique_request": _bare(ask),
        "critique": critique,
        "revision_request": _bare(ask_again),
        "revision": revision,
    }


def _assemble(parts: _Parts, *, path: Path, sources: Sequence[str]) -> Constitution:
    metadata: dict[str, Any] = {"imported_from": list(sources)}
    if parts.questions:
        metadata["questions"] = parts.questions
    try:
        return Constitution.model_validate(
            {
                "name": path.stem,
                "principles": parts.principles,
                "exemplars": {
                    "revision": parts.revision,
                    "comparison": parts.comparison,
                    "reasoning": parts.reasoning,
                },
                "metadata": metadata,
            }
        )
    except ValidationError as error:
        problems = [
            InputError(f"{'.'.join(map(str, one['loc']))}: {one['msg']}", path=path, remedy="mend it in that file")
            for one in error.errors(include_url=False)
        ]
        raise InputError.all_of(problems) from error
