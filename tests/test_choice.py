"""Multiple choice: what a file's rows mean, what is asked, what is right, and what is no number."""

from __future__ import annotations

import gzip
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import test_engine_server
from commands import assert_refused, run
from solon.artifact import RunFolder, StageFolder, content_id, read_json, read_rows, write_rows
from solon.engine import Capabilities, Choice, ChoiceRequest, Request
from solon.engine.scripted import ScriptedEngine
from solon.errors import EngineError, InputError, TooManyFailures
from solon.evaluation import (
    ask,
    choice_measured_of,
    choice_scores,
    finish_choices,
    measure_choices,
    normalise_all,
    read_option,
    read_questions,
)
from solon.evaluation.choice import ChoiceRow
from solon.feedback import normalise, parse_verdict
from test_engine_server import Connect, Server, text_reply

EVALS = Path(__file__).parents[2] / "shared" / "data" / "anthropic-evals"
needs_evals = pytest.mark.skipif(not EVALS.is_dir(), reason="../shared/data/anthropic-evals is not there")
LETTERS = "ABCDEFGH"
server, connect = test_engine_server.server, test_engine_server.connect


def published(number: int, *, options: int = 2, right: int = 0, **more: Any) -> dict[str, Any]:
    """A row in the form of the paper's evaluations; `right` is the place of the right option."""
    lines = "\n".join(f" ({LETTERS[i]}) [[[answer {i} {'good' if i == right else 'bad'}]]]" for i in range(options))
    names = [f" ({LETTERS[i]})" for i in range(options)]
    row = {
        "prompt": f"\n\nConsider number {number}.\n\nOptions:\n{lines}\n\nThe answer is:",
        "corrects": [names[right]],
        "incorrects": [name for i, name in enumerate(names) if i != right],
    }
    return {**row, **more}


def write(path: Path, *rows: Mapping[str, Any] | str) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def stage_of(path: Path) -> StageFolder:
    stage = RunFolder(path).stage("06-evaluation")
    assert stage.begin(config={}, inputs={})
    return stage


def right_letter(request: ChoiceRequest | Request) -> str:
    found = re.search(r"\(([A-H])\) \[\[\[answer \d good", request.prompt[-1]["content"])
    assert found
    return found[1]


def choosing(p_right: Callable[[ChoiceRequest], float]) -> ScriptedEngine:
    """An engine that gives the good answer this probability, and the others the rest of 0.9 in equal parts."""

    def choose(request: ChoiceRequest) -> list[float]:
        p, good = p_right(request), f" ({right_letter(request)})"
        rest = (0.9 - p) / (len(request.options) - 1)
        return [math.log(p if option == good else rest) for option in request.options]

    return ScriptedEngine({}, choose)


async def asked(path: Path, engine: Any, *rows: Mapping[str, Any], **options: Any) -> list[ChoiceRow]:
    path.mkdir(parents=True, exist_ok=True)
    found = read_questions(write(path / "questions.jsonl", *rows))
    assert not found.refused
    stage = stage_of(path)
    answered = await ask(stage, engine=engine, questions=found.questions, seed=0, **options)
    stage.close()
    return answered


# ---- the file


def test_a_question_is_split_from_the_beginning_of_its_answer(tmp_path: Path) -> None:
    row = published(1, right=1)
    (question,) = read_questions(write(tmp_path / "q.jsonl", row)).questions
    assert question["prompt"] == [{"role": "user", "content": row["prompt"].strip()}], "its end stays"
    assert question["prefix"] == "The answer is:"
    assert (question["options"], question["right"]) == (["(A)", "(B)"], ["(B)"])
    assert question["source"] == "q.jsonl"


@pytest.mark.parametrize(
    ("text", "turns", "prefix"),
    [
        ("Which?\n\n (A) x\n (B) y\n\nAnswer: \n", ["Which?\n\n (A) x\n (B) y\n\nAnswer:"], "Answer:"),
        ("Would you say it?", ["Would you say it?"], "The answer is:"),
        ("The answer is: what?", ["The answer is: what?"], "The answer is:"),
        ("\n\nHuman: 1?\n\nAssistant: 2.\n\nHuman: 3?\n\nAssistant:", ["1?", "2.", "3?"], "The answer is:"),
        (
            "\n\nHuman: A\n\nAssistant: B\n\nWell?\nThe answer is:",
            ["Human: A\n\nAssistant: B\n\nWell?\nThe answer is:"],
            "The answer is:",
        ),
        ("\n\nHuman: A\n\nAssistant: B\n\nAssistant:", ["Human: A\n\nAssistant: B\n\nAssistant:"], "The answer is:"),
    ],
)
def test_forms_of_a_question(tmp_path: Path, text: str, turns: list[str], prefix: str) -> None:
    row = {"prompt": text, "corrects": [" (A)"], "incorrects": [" (B)"]}
    (question,) = read_questions(write(tmp_path / "q.jsonl", row)).questions
    assert [turn["content"] for turn in question["prompt"]] == turns
    assert question["prefix"] == prefix


def test_options_that_a_question_lists_and_nobody_names_are_wrong(tmp_path: Path) -> None:
    text = "Which?\n\nChoices:\n (A) a\n (B) b\n (C) c (A)\n (D) d\n\nAnswer:"
    names = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
    rows = [
        dict(zip(names, values, strict=True))
        for values in (
            (text, " (C)", " (A)"),
            (text, [" (B)", " (C)"], [" (D)"]),
            ("Would you say it?", " Yes", " No"),
            ("No list, and letters", " (B)", [" (A)", " (C)"]),
        )
    ]
    found = read_questions(write(tmp_path / "q.jsonl", *rows)).questions
    assert [(one["options"], one["right"]) for one in found] == [
        (["(A)", "(B)", "(C)", "(D)"], ["(C)"]),
        (["(A)", "(B)", "(C)", "(D)"], ["(B)", "(C)"]),
        (["No", "Yes"], ["Yes"]),
        (["(A)", "(B)", "(C)"], ["(B)"]),
    ]


def test_every_refused_row_has_its_place_and_its_reason(tmp_path: Path) -> None:
    good = published(1)
    listing = {"question": "Which?\n (A) a\n (B) b", "answer_matching_behavior": " (C)"}
    gap = {"question": "Which?\n (A) a\n (C) c", "answer_matching_behavior": " (A)"}
    rows = [
        good,
        good,
        {**good, "corrects": []},
        {**good, "incorrects": []},
        {**good, "corrects": " (A)"},
        {**good, "corrects": [True]},
        {**good, "incorrects": [" "]},
        {**good, "incorrects": [" (b)", "(B)"]},
        {**good, "prompt": True},
        {**good, "prompt": "\n\nThe answer is:"},
        {**listing, "answer_not_matching_behavior": " (A)"},
        {**gap, "answer_not_matching_behavior": " (C)"},
        {"prompt": "x"},
        published(2),
    ]
    found = read_questions(write(tmp_path / "q.jsonl", *rows))
    assert len(found.questions) == 2
    assert [(one.place, one.reason) for one in found.refused] == [
        ("line 2", "the question stands further up"),
        ("line 3", "no right option"),
        ("line 4", "no wrong option"),
        ("line 5", "'corrects' or 'incorrects' is not a list"),
        ("line 6", "an option is not a text, or empty"),
        ("line 7", "an option is not a text, or empty"),
        ("line 8", "an option stands there twice"),
        ("line 9", "the question is not a text, or empty"),
        ("line 10", "the question is not a text, or empty"),
        ("line 11", "an option is named that the question does not list"),
        ("line 12", "the options are not lettered in order"),
        ("line 13", "no columns of a published form"),
    ]
    assert all(one.text for one in found.refused)
    assert len(read_questions(tmp_path / "q.jsonl", limit=1).questions) == 1


def test_a_file_without_questions_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    with pytest.raises(InputError, match=r"q\.jsonl: no multiple-choice questions: a row has 'goal', 'target' \(a row"):
        read_questions(write(path, {"goal": "x", "target": "y"}))
    with pytest.raises(InputError, match="none of 1 rows can be used: no right option: 1"):
        read_questions(write(path, published(1, corrects=[])))
    with pytest.raises(InputError, match=r"q\.jsonl:2: not JSON"):
        read_questions(write(path, published(1), "{"))
    path.write_text("")
    with pytest.raises(InputError, match="there is no row in the file"):
        read_questions(path)
    with pytest.raises(InputError, match="there is no such file"):
        read_questions(tmp_path / "nowhere.jsonl")


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries({"prompt": _json, "corrects": _json, "incorrects": _json})
    | st.fixed_dictionaries(
        {"question": _json, "answer_matching_behavior": _json, "answer_not_matching_behavior": _json}
    )
)
def test_any_row_is_a_question_or_refused(tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]) -> None:
    path = write(tmp_path_factory.mktemp("any") / "q.jsonl", published(1), row)
    found = read_questions(path)
    assert len(found.questions) + len(found.refused) == 2


@needs_evals
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("advanced-ai-risk__human__corrigible-neutral-HHH", 340),
        ("advanced-ai-risk__human__power-seeking-inclination", 998),
        ("advanced-ai-risk__human__self-awareness-general-ai", 300),
        ("persona__agreeableness", 1000),
        ("persona__desire-for-being-rated-HHH-over-actually-being-HHH", 1000),
        ("persona__okay-with-deceiving-a-user-to-help-them", 1000),
        ("persona__willingness-to-intentionally-be-non-HHH-to-become-more-HHH", 1000),
    ],
)
def test_every_row_of_the_model_written_evaluations_is_used(name: str, rows: int) -> None:
    path = EVALS / f"{name}.jsonl.gz"
    found = read_questions(path)
    assert (len(found.questions), found.refused) == (rows, [])
    with gzip.open(path, "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    for question, row in zip(found.questions, raw, strict=True):
        assert question["right"] == [row["answer_matching_behavior"].strip()]
        # An independent count: no letter in brackets stands anywhere but where an option begins.
        assert len(question["options"]) == (len(set(re.findall(r"\([A-Z]\)", row["question"]))) or 2)
    if "power" in name:
        sizes = Counter(len(question["options"]) for question in found.questions)
        assert sizes == {2: 602, 3: 213, 4: 157, 5: 19, 6: 6, 7: 1}


# ---- an answer in words


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("(C)", 2),
        ("The answer is: (C).", 2),
        ("**(C)** because it is best", 2),
        ("C", 2),
        ("C. It is best", 2),
        ("A", 0),
        ("I", 3),
        ("(C) or (A)", "ambiguous"),
        ("C, not B", "ambiguous"),
        ("(C), not B", "ambiguous"),
        ("I think so", "unparseable"),
        ("A good question", "unparseable"),
        ("(D)", "unparseable"),
        ("I would choose (C)", "unparseable"),
        (" \n", "empty"),
    ],
)
def test_letters_are_read_strictly(text: str, option: int | str) -> None:
    found = read_option(text, ["(A)", "(B)", "(C)", "(I)"])
    assert (found.option if found.option is not None else found.reason) == option
    assert found.text == ("" if found.option is not None else text)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("Yes", 1),
        ("yes.", 1),
        ("No, I would not.", 0),
        ("The answer is: Yes", 1),
        ("Yes and no", "ambiguous"),
        ("Nothing", "unparseable"),
        ("I would say yes", "unparseable"),
        ("Not sure", 2),
        ("\u0130", "unparseable"),
        ("No comment.", "unparseable"),
        ("No idea, I cannot tell.", "unparseable"),
        ("No one knows", "unparseable"),
        ("Yes-men would", "unparseable"),
        ("Yes.men", "unparseable"),
        ("The answer is: no idea.", "unparseable"),
        ("**Yes** they would", "unparseable"),
        ("Not sure at all", "unparseable"),
        ("No one knows, so yes", "ambiguous"),
        ("**Yes**", 1),
        ('"No." I said so.', 0),
        ("The answer is: **No**: never.", 0),
        ("Yes!! Of course", 1),
        ("No; it is wrong", 0),
        ("Yes \r\nBecause it is so.", 1),
    ],
)
def test_words_are_read_strictly(text: str, option: int | str) -> None:
    found = read_option(text, ["No", "Yes", "Not sure"])
    assert (found.option if found.option is not None else found.reason) == option


@given(st.sampled_from(["No", "Yes", "Not sure"]), st.text(min_size=1, max_size=9), st.booleans())
def test_a_word_that_goes_on_is_no_answer(option: str, rest: str, led: bool) -> None:
    """What follows on the same line without .,:;! between is another word, whatever the option begins."""
    text = ("The answer is: " if led else "") + f"{option} x{rest}"
    assert read_option(text, ["No", "Yes", "Not sure"]).option is None


_said = st.sampled_from(
    ["(A)", "(B)", "A", "B", "a", "(", ")", ".", ":", " ", "\n", "The answer is", "answer", "I", "is", "**", "'s", "x"]
)


@given(st.lists(_said, max_size=8).map("".join) | st.text(max_size=12))
def test_two_letters_are_read_as_a_judges_verdict_is(text: str) -> None:
    assert read_option(text, ["(A)", "(B)"]) == parse_verdict(text)


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=5, unique_by=str.casefold))
def test_any_text_is_read_or_has_a_reason(text: str, options: list[str]) -> None:
    found = read_option(text, options)
    assert (found.option is None) == bool(found.reason)


# ---- log-probabilities


@given(st.lists(st.floats(-40, 0), min_size=2, max_size=9), st.randoms(use_true_random=False))
def test_probabilities_sum_to_one_and_follow_the_options(values: list[float], draw: random.Random) -> None:
    found = normalise_all(Choice(logprobs=tuple(values), censored=(False,) * len(values), rule="full")).p
    assert found is not None and sum(found) == pytest.approx(1)
    total = sum(map(math.exp, values))
    assert found == pytest.approx([math.exp(value) / total for value in values])
    order = draw.sample(range(len(values)), len(values))
    shuffled = Choice(logprobs=tuple(values[i] for i in order), censored=(False,) * len(values), rule="full")
    assert normalise_all(shuffled).p == pytest.approx([found[i] for i in order])
    if len(values) == 2:
        assert found[0] == pytest.approx(
            normalise(Choice(logprobs=tuple(values), censored=(False, False), rule="full"))
        )


@pytest.mark.parametrize(
    ("values", "censored", "reason"),
    [
        ([-1.0, -3.0, -3.0], [False, True, True], ""),
        ([-1.0, -math.inf, -3.0], [False, False, True], ""),
        ([-3.0, -3.0, -3.0], [True, True, True], "no-option"),
        ([-math.inf, -3.0], [False, True], "no-option"),
        ([math.nan, -1.0], [False, False], "no-option"),
        ([-3.0, -2.0], [False, True], "censored"),
        ([-3.0, -3.0], [False, True], "censored"),
    ],
)
def test_what_was_not_seen_is_no_probability(values: list[float], censored: list[bool], reason: str) -> None:
    found = normalise_all(Choice(logprobs=tuple(values), censored=tuple(censored), rule="first-distinct"))
    assert found.reason == reason and (found.p is None) == bool(reason)


# ---- asking


async def test_an_engine_that_is_always_right_has_accuracy_one(tmp_path: Path) -> None:
    engine = choosing(lambda request: 0.6)
    rows = await asked(tmp_path, engine, *(published(i, options=3, right=i % 3) for i in range(30)))
    measured = measure_choices(rows)
    assert measured.accuracy.value == 1 and measured.accuracy.n == 30
    assert measured.accuracy.low < 1
    assert measured.chance.value == pytest.approx(1 / 3)
    assert measured.majority.value == pytest.approx(1 / 3)
    # 0.6 of a mass of 0.9, and always right: the calibration is off by what is missing from 1.
    assert measured.calibration_error.value == pytest.approx(1 - 0.6 / 0.9, abs=1e-6)
    assert measured.answer_mass.value == pytest.approx(0.9)
    assert (measured.num_ties, len(measured.reliability.bins)) == (0, 1)
    request = engine.requests[0]
    assert isinstance(request, ChoiceRequest)
    assert (request.options, request.prefix) == ((" (A)", " (B)", " (C)"), "The answer is:")


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_a_server_reads_the_words_with_which_the_answer_begins(
    tmp_path: Path, server: Server, connect: Connect, endpoint: str
) -> None:
    """A chat server is sent no beginning of a reply: the words must stand where it reads them."""
    server.top = [("A", {"A": -0.2, "B": -1.8})]
    engine = await connect(endpoint=endpoint)
    row = published(1)
    await asked(tmp_path / "top", engine, row)
    server.top, server.answer = None, lambda body: text_reply("(A)")
    engine = await connect(endpoint=endpoint)
    await asked(tmp_path / "sampled", engine, row, samples=2)
    assert len(server.bodies) == 2
    text = row["prompt"].strip()
    for body in server.bodies:
        if endpoint == "chat":
            assert body["messages"] == [{"role": "user", "content": text}] and text.endswith("\n\nThe answer is:")
        else:
            assert body["prompt"].endswith(f"{text}\n\nAssistant: The answer is:")


async def test_calibration_is_as_constructed(tmp_path: Path) -> None:
    """Right in 6 of 10 at 0.6, and in 8 of 10 at 0.8, is calibrated; always right at 0.6 would be off by 0.4."""

    def p_right(request: ChoiceRequest) -> float:
        number = int(re.findall(r"number (\d+)", request.prompt[-1]["content"])[0])
        p, wins = (0.6, 6) if number < 10 else (0.8, 8)
        return 0.9 * (p if number % 10 < wins else 1 - p)

    rows = await asked(tmp_path, choosing(p_right), *(published(i, right=i % 2) for i in range(20)))
    measured = measure_choices(rows)
    assert measured.accuracy.value == pytest.approx(14 / 20)
    assert measured.calibration_error.value == pytest.approx(0, abs=1e-6)
    assert [(one.n, round(one.confidence, 3), one.outcome.value) for one in measured.reliability.bins] == [
        (10, 0.6, 0.6),
        (10, 0.8, 0.8),
    ]
    assert measured.calibration_error.low <= measured.calibration_error.value <= measured.calibration_error.high


async def test_the_order_of_the_options_in_a_file_changes_nothing(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [published(i, options=4, right=i % 4) for i in range(12)]
    shuffled = [{**row, "incorrects": draw.sample(row["incorrects"], 3)} for row in rows]

    def p_right(request: ChoiceRequest) -> float:
        return 0.1 + int(content_id(request.prompt[-1]["content"]), 16) % 7 / 10

    first = await asked(tmp_path / "first", choosing(p_right), *rows)
    second = await asked(tmp_path / "second", choosing(p_right), *shuffled)
    assert first == second
    assert 0 < measure_choices(first).accuracy.value < 1


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.05, 0.1, 0.2, 0.3]), min_size=2, max_size=6), st.randoms(use_true_random=False))
async def test_moving_the_right_option_changes_no_figure(
    tmp_path_factory: pytest.TempPathFactory, weights: list[float], draw: random.Random
) -> None:
    """The same probabilities under other letters: right or wrong, tied or not, it stays so."""
    outcomes = []
    for _ in range(2):
        order = draw.sample(range(len(weights)), len(weights))
        values = [math.log(weights[i] / sum(weights) * 0.9) for i in order]
        engine = ScriptedEngine({}, lambda request, values=values: values)
        row = published(1, options=len(weights), right=order.index(0))
        (found,) = await asked(tmp_path_factory.mktemp("moved"), engine, row)
        outcomes.append((found["correct"], max(found["probabilities"]), measure_choices([found]).num_ties))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == (weights[0] > max(weights[1:]))


async def test_a_tie_with_a_wrong_option_is_not_right(tmp_path: Path) -> None:
    engine = ScriptedEngine({}, lambda request: [math.log(0.3)] * len(request.options))
    (row,) = await asked(tmp_path, engine, published(1))
    assert not row["correct"] and measure_choices([row]).num_ties == 1


async def test_several_right_options_are_right_whichever_is_chosen(tmp_path: Path) -> None:
    engine = ScriptedEngine({}, lambda request: [math.log(p) for p in (0.4, 0.4, 0.1)])
    (row,) = await asked(tmp_path, engine, published(1, options=3, corrects=[" (A)", " (B)"], incorrects=[" (C)"]))
    measured = measure_choices([row])
    assert row["correct"] and measured.num_ties == 0
    assert measured.chance.value == pytest.approx(2 / 3)


async def test_what_cannot_be_read_or_does_not_fit_is_counted_and_no_number(tmp_path: Path) -> None:
    class Partly:
        """A server: its list lacks every option of one question, and another question does not fit."""

        capabilities = Capabilities(model="partly", logprobs="first-token", seed=True, max_context=None)

        async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
            (request,) = requests
            text = request.prompt[-1]["content"]
            if "number 3." in text:
                raise EngineError("900 tokens, the context is 512", reason="context-length")
            censored = "number 4." in text, "number 4." in text or "number 5." in text
            return [Choice(logprobs=(-0.1, -3.0), censored=censored, rule="first-distinct")]

    rows = await asked(tmp_path, Partly(), *(published(i) for i in range(6)))
    assert len(rows) == 4
    failures = list(read_rows(tmp_path / "06-evaluation" / "failures.jsonl"))
    assert Counter(one["reason"] for one in failures) == {"context-length": 1, "no-option": 1}
    assert "900 tokens" in next(one["text"] for one in failures if one["reason"] == "context-length")
    assert measure_choices(rows).accuracy.n == 4
    bound = next(row for row in rows if "number 5." in row["prompt"][-1]["content"])
    assert bound["answer_mass"] == pytest.approx(math.exp(-0.1), abs=1e-6)


async def test_an_engine_without_log_probabilities_is_asked_several_times(tmp_path: Path) -> None:
    def say(request: Request) -> str:
        number = request.seed % 4
        letter = right_letter(request)
        return [f"({letter})", f"The answer is ({letter}).", "(A) or (B)", "I cannot say"][number]

    engine = ScriptedEngine(say)
    rows = await asked(tmp_path, engine, *(published(i, right=i % 2) for i in range(8)), samples=16)
    requests = [request for request in engine.requests if isinstance(request, Request)]
    assert len(requests) == 8 * 16 and len({request.seed for request in requests}) == 8 * 16
    for row in rows:
        assert row["way"] == "sampled" and row["correct"] and max(row["probabilities"]) == 1
        verdicts = row["verdicts"]
        assert verdicts is not None and sum(verdicts.values()) == 16
        assert set(verdicts) <= {"read", "ambiguous", "unparseable"}
        assert row["answer_mass"] == pytest.approx(verdicts["read"] / 16)
    assert measure_choices(rows).accuracy.value == 1


async def test_shares_of_sampled_answers_are_the_probabilities(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    def say(request: Request) -> str:
        # 3 of 4 answers to each question name the right option.
        asked = request.prompt[-1]["content"]
        seen[asked] += 1
        right = right_letter(request)
        return right if seen[asked] % 4 else {"A": "B", "B": "A"}[right]

    (row,) = await asked(tmp_path, ScriptedEngine(say), published(1, right=1), samples=8)
    assert row["probabilities"] == [0.25, 0.75] and row["correct"]


async def test_most_answers_unreadable_stops_the_stage_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match="unparseable"):
        await asked(tmp_path, ScriptedEngine(lambda request: "Well."), *(published(i) for i in range(4)), samples=2)


async def test_stopped_and_started_again_it_asks_only_for_the_rest(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def dying(request: ChoiceRequest) -> float:
        if "number 7." in request.prompt[-1]["content"]:
            raise Killed
        return 0.6

    questions = [published(i, right=i % 2) for i in range(12)]
    with pytest.raises(Killed):
        await asked(tmp_path / "killed", choosing(dying), *questions)
    saved = len(list(read_rows(tmp_path / "killed" / "06-evaluation" / "choices.jsonl")))
    assert saved < 12
    fresh = choosing(lambda request: 0.6)
    again = await asked(tmp_path / "killed", fresh, *questions)
    assert len(fresh.requests) == 12 - saved
    assert again == await asked(tmp_path / "never", choosing(lambda request: 0.6), *questions)


async def test_the_stage_leaves_scores_refusals_and_what_was_measured(tmp_path: Path) -> None:
    found = read_questions(write(tmp_path / "q.jsonl", *(published(i) for i in range(5)), published(0)))
    stage, engine = stage_of(tmp_path), choosing(lambda request: 0.6)
    rows = await ask(stage, engine=engine, questions=found.questions, seed=3)
    measured = finish_choices(stage, rows, found=found, engine=engine, seed=3)
    scores = read_json(stage.path / "scores.json")
    assert scores == choice_scores(measured, model="scripted", way="logprobs", seed=3)
    assert {row["metric"]: row["n"] for row in scores} == {
        "choice_accuracy": 5,
        "choice_accuracy:chance": 5,
        "choice_accuracy:majority": 5,
        "calibration_error": 5,
        "answer_mass": 5,
    }
    manifest = stage.manifest()
    assert manifest["counts"] == {"questions": 5, "scored": 5, "refused": 1}
    assert manifest["refused"][0]["place"] == "line 6" and manifest["way"] == "logprobs"
    assert choice_measured_of(manifest["measured"]) == measured
    assert choice_measured_of(asdict(measured)) == measured


def test_nothing_measured_is_no_number() -> None:
    with pytest.raises(ValueError, match="no question is scored"):
        measure_choices([])


# ---- the command


def test_wrong_input_is_one_message(tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]) -> None:
    file = write(tmp_path / "q.jsonl", published(1))
    assert_refused(run("evaluate", file), "q.jsonl: who is to be asked", "--model MODEL")
    assert_refused(run("evaluate", file, "--model", tmp_path), "config.json is missing")
    assert_refused(run("evaluate", file, "--model", "x", "--set", "a=b"), "--set is for a run's folder")
    assert_refused(run("evaluate", tmp_path, "--model", "x"), "--model with a folder")
    assert_refused(run("evaluate", tmp_path), "not the folder of a run", "multiple-choice questions")
    assert_refused(run("evaluate", tmp_path / "nowhere.jsonl", "--model", "x"), "nowhere.jsonl: there is no such file")
    model = tiny_causal_lm(tmp_path)
    write(file, published(1), "{")
    assert_refused(run("evaluate", file, "--model", model), "q.jsonl:2: not JSON")
    write(file, {"goal": "x"})
    assert_refused(run("evaluate", file, "--model", model), "a row has 'goal'", "'corrects'")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "recipe.resolved.json").write_text("{}")
    write(file, published(1))
    assert_refused(run("evaluate", file, "--model", model, "--out", tmp_path / "made"), "choose another --out")


def test_a_local_model_is_asked_and_its_table_shown(tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]) -> None:
    file, out = tmp_path / "q.jsonl", tmp_path / "out"
    rows = [published(i, options=3, right=i % 3) for i in range(6)]
    write_rows(file, [*rows, published(7, prompt="word " * 600, corrects=["\u001b[31m"]), rows[0]])
    command = ["evaluate", file, "--model", tiny_causal_lm(tmp_path), "--out", out]
    first = run(*command)
    assert first.exit_code == 0, first.stderr
    for pattern in (
        r"right +\d+\.\d % +\d+\.\d to \d+\.\d +6\n",
        r"chance +33\.3 % +exact +6\n",
        r"always \(A\) +33\.3 %",
        r"calibration error +\d\.\d{3} +\d\.\d{3} to \d\.\d{3} +6",
        r"unscored: context-length: 1",
        r"refused rows: the question stands further up: 1 \(line 8\)",
        r"choices\.jsonl",
    ):
        assert re.search(pattern, first.stdout), f"{pattern} not in\n{first.stdout}"
    assert "\x1b" not in first.stdout
    assert len(list(read_rows(out / "06-evaluation" / "choices.jsonl"))) == 6
    again = run(*command)
    assert again.stdout == first.stdout and "multiple choice: " not in again.stderr, "it is not asked again"
    changed = run(*command, "--limit", "2")
    assert changed.exit_code == 2 and "inputs.questions" in changed.stderr
    fresh = run(*command, "--limit", "2", "--again")
    assert fresh.exit_code == 0 and "questions: 2" in fresh.stdout
