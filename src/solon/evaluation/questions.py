"""Multiple-choice questions of the published files, and which option a text names.

found = read_questions("438HHHEvaluations.jsonl")
found.questions[0]["options"], found.questions[0]["right"]       # ["(A)", "(B)"], ["(B)"]
read_option("The answer is: (A).", ["(A)", "(B)"])               # Verdict(option=0)
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

from solon.artifact import content_id
from solon.dialogue import Message, parse_transcript, tidy
from solon.errors import InputError
from solon.evaluation.published import RefusedRow, numbered_rows
from solon.feedback import Verdict, answer_start


class Question(TypedDict):
    """A question with its options."""

    id: str
    """A hash of all that is asked and right."""
    prompt: list[Message]
    """It ends with the words with which the answer begins, where they stand in the file."""
    prefix: str
    """These words; an option follows after a space."""
    options: list[str]
    """Without white space around them, sorted: their order in a file plays no part."""
    right: list[str]
    """Those of them that are right (or match the behaviour); at least one is not."""
    source: str
    """Name of the file."""


class Questions(NamedTuple):
    """What a file held: every row is in exactly one of the two."""

    questions: list[Question]
    refused: list[RefusedRow]


# ---- reading a file


class _Refuse(Exception):
    """Why a row is no question."""


def read_questions(path: str | Path, *, limit: int | None = None) -> Questions:
    """The questions of a file of JSON lines or of a JSON list (also .gz); `limit` counts those that are used.

    Two forms are told apart by their columns: the paper's evaluations (`prompt`; `corrects` and `incorrects`, lists of
    options) and the model-written evaluations of arXiv:2212.09251 (`question`; `answer_matching_behavior`, which counts
    as right, and `answer_not_matching_behavior`: an option or a list of them). Of the latter every lettered line of the
    question is an option, and one that neither column names is wrong.

    A row without options or with contradictory ones, and a question that stands further up, is refused with its place
    and reason. Raises InputError for a file that is not there or not JSON, or that holds no question.
    """
    path = Path(path)
    questions: dict[str, Question] = {}
    refused: list[RefusedRow] = []
    for place, raw in numbered_rows(path):
        if limit is not None and len(questions) >= limit:
            break
        try:
            question = _question_of(raw, source=path.name)
            if question["id"] in questions:
                raise _Refuse("the question stands further up")
        except _Refuse as problem:
            refused.append(RefusedRow(place=place, reason=str(problem), text=json.dumps(raw)))
        else:
            questions[question["id"]] = question
    if not questions and limit != 0:
        raise InputError(_nothing_in(path, refused=refused), path=path, remedy=_REMEDY)
    return Questions(list(questions.values()), refused)


_REMEDY = (
    "a row holds 'prompt', 'corrects' and 'incorrects', or 'question', 'answer_matching_behavior' and "
    "'answer_not_matching_behavior'; pairs of answers are read by `solon accuracy`"
)
_NO_COLUMNS = "no columns of a published form"


def _nothing_in(path: Path, *, refused: Sequence[RefusedRow]) -> str:
    if not refused:
        return "there is no row in the file"
    if any(one.reason != _NO_COLUMNS for one in refused):
        reasons = "; ".join(f"{reason}: {n}" for reason, n in Counter(one.reason for one in refused).items())
        return f"none of {len(refused)} rows can be used: {reasons}"
    has = (", ".join(map(repr, cast("dict[str, Any]", raw))) for _, raw in numbered_rows(path) if isinstance(raw, dict))
    return f"no multiple-choice questions: a row has {next(has, 'no columns')}"


def _question_of(raw: object, *, source: str) -> Question:
    row = cast("dict[str, Any]", raw) if isinstance(raw, dict) else dict[str, Any]()
    if {"prompt", "corrects", "incorrects"} <= row.keys():
        text, right, wrong = (row[name] for name in ("prompt", "corrects", "incorrects"))
        if not all(isinstance(one, list) for one in (right, wrong)):
            raise _Refuse("'corrects' or 'incorrects' is not a list")
    elif {"question", "answer_matching_behavior", "answer_not_matching_behavior"} <= row.keys():
        text, right, wrong = (
            row[name] for name in ("question", "answer_matching_behavior", "answer_not_matching_behavior")
        )
    else:
        raise _Refuse(_NO_COLUMNS)
    if not isinstance(text, str) or not text.strip():
        raise _Refuse("the question is not a text, or empty")
    rights, wrongs = _options(right), _options(wrong)
    if "question" in row and "prompt" not in row:
        wrongs += _unnamed(text, named=[*rights, *wrongs])
    for kind, options in (("right", rights), ("wrong", wrongs)):
        if not options:
            raise _Refuse(f"no {kind} option")
    options = sorted([*rights, *wrongs])
    if len({one.casefold() for one in options}) < len(options):
        raise _Refuse("an option stands there twice")
    prompt, prefix = _asked(text)
    content = {"prompt": prompt, "prefix": prefix, "options": options, "right": sorted(rights)}
    return cast(Question, {"id": content_id(content), **content, "source": source})


def _options(value: object) -> list[str]:
    given = cast("list[object]", value) if isinstance(value, list) else [value]
    texts = [one.strip() for one in given if isinstance(one, str)]
    if len(texts) < len(given) or not all(texts):
        raise _Refuse("an option is not a text, or empty")
    return texts


_LETTERED = re.compile(r"\([A-Z]\)")
_LISTED = re.compile(r"^[ \t]*(\([A-Z]\))", re.MULTILINE)


def _unnamed(question: str, *, named: Sequence[str]) -> list[str]:
    """The options that a question lists on lettered lines, but for those that are named."""
    listed = _LISTED.findall(question)
    if not listed or not all(_LETTERED.fullmatch(one) for one in named):
        return []
    if listed != [f"({letter})" for letter in string.ascii_uppercase[: len(listed)]]:
        raise _Refuse("the options are not lettered in order")
    if not set(named) <= set(listed):
        raise _Refuse("an option is named that the question does not list")
    return [one for one in listed if one not in named]


_START = re.compile(r"\n[ \t]*((?:so )?(?:the |my )?(?:[a-z]+ )?answer(?: is)?:)\s*\Z", re.IGNORECASE)


class _Asked(NamedTuple):
    prompt: list[Message]
    prefix: str


def _asked(text: str) -> _Asked:
    """The dialogue and the beginning of the answer: what a text ends with, such as "The answer is:".

    The human turn keeps these words: an engine that cannot continue an answer, such as a chat server, is not sent the
    beginning of one, and would not know in what words to answer.

    A text is a transcript where it begins with "Human:" and ends with an empty turn "Assistant:".
    """
    if text.lstrip().startswith("Human:") and text.rstrip().endswith("\n\nAssistant:"):
        *turns, last = tidy(parse_transcript(text.rstrip()))
        if not last["content"] and turns and all(turn["content"] for turn in turns):
            return _Asked(turns, answer_start())
    start = _START.search(text)
    if start and not text[: start.start()].strip():
        raise _Refuse("the question is not a text, or empty")
    return _Asked([{"role": "user", "content": text.strip()}], start[1] if start else answer_start())


# ---- reading an answer


def read_option(text: str, options: Sequence[str]) -> Verdict:
    """Which of `options` a text names, strictly, as `feedback.parse_verdict` does for two.

    It begins with the option, or with "The answer is" and it, and names no other. Lettered options are also read
    without their brackets; a lone A or I may be a word, and so is no mention. Other options are read in either case,
    and where the text goes on after one, a line or one of .,:;! must end it: "No, never." is No, "No comment." nothing.
    """
    if not text.strip():
        return Verdict(None, "empty", text)
    lettered = all(_LETTERED.fullmatch(option) for option in options)
    found = _letters_in(text, options) if lettered else _words_in(text, options)
    named = found.mentioned if found.begun is None else {*found.mentioned, found.begun}
    if len(named) > 1:
        return Verdict(None, "ambiguous", text)
    return Verdict(None, "unparseable", text) if found.begun is None else Verdict(found.begun)


_LEAD = (
    r"\W*(?i:(?:so )?(?:(?:the|my) )?(?:(?:better|best|correct|right|final) )?"
    r"(?:answer|verdict|choice|option|response)(?: is)?)[^\w(]*"
)


class _Found(NamedTuple):
    """Options in a text, by their index."""

    begun: int | None
    """The one that the text begins with."""
    mentioned: set[int]


def _letters_in(text: str, options: Sequence[str]) -> _Found:
    letters = "".join(option[1] for option in options)
    words = "".join(letter for letter in letters if letter in "AI")
    others = "".join(letter for letter in letters if letter not in "AI")
    mentions = [rf"\(([{letters}])\)"]
    mentions += [rf"\b([{others}])\b"] if others else []
    mentions += [rf"\b([{words}])(?=[.:)])", rf"(?i:answer|option|response) ([{words}])\b"] if words else []
    begins = (
        rf"[^\w(]*\(([{letters}])\)",
        rf"{_LEAD}(?:\(([{letters}])\)|([{letters}])(?![\w']))",
        rf"\W*([{letters}])(?:\W*\Z|[.:)\n])",
    )
    begin = next((found for one in begins if (found := re.match(one, text))), None)
    return _Found(
        letters.index(begin[begin.lastindex or 0]) if begin else None,
        {letters.index(found[found.lastindex or 0]) for found in re.finditer("|".join(mentions), text)},
    )


_CLOSED = r"""[*_"'`)\]]*"""
_ENDED = rf"{_CLOSED}(?:[.,:;!]+{_CLOSED}(?=\s|\Z)|[ \t]*(?:\r?\n|\Z))"
"""After an option in words that begins a text; marks of emphasis and quotation may close it."""


def _words_in(text: str, options: Sequence[str]) -> _Found:
    # The longest first, so that "yes and no" is not read as "yes".
    order = sorted(range(len(options)), key=lambda index: -len(options[index]))
    one = "(?i:" + "|".join(f"({re.escape(options[index])})" for index in order) + ")"
    begin = re.match(rf"\W*{one}{_ENDED}", text) or re.match(_LEAD + one + _ENDED, text)
    return _Found(
        order[(begin.lastindex or 0) - 1] if begin else None,
        {order[(found.lastindex or 0) - 1] for found in re.finditer(rf"(?<!\w){one}(?!\w)", text)},
    )
