"""Transcripts, prompts and rows: the odd rows of the real data, round trips, and what is refused with its line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.artifact import RunFolder, content_id, write_rows
from solon.config import Recipe
from solon.dialogue import (
    CRITIQUE_NAMES,
    Message,
    PromptRow,
    focused,
    parse_transcript,
    preference_row,
    read_hh,
    read_prompts,
    render_transcript,
    reply,
    sft_row,
    tidy,
)
from solon.errors import InputError
from solon.run import Run

GOLDEN = Path(__file__).parent / "golden"
HH = Path(__file__).parents[2] / "shared" / "data" / "hh-rlhf-harmless-base" / "test.jsonl.gz"
needs_hh = pytest.mark.skipif(not HH.is_file(), reason="../shared/data/hh-rlhf-harmless-base is not there")

HUMAN: Message = {"role": "user", "content": "How do I bake bread?"}


def human(content: str) -> Message:
    return {"role": "user", "content": content}


def write(path: Path, *rows: Mapping[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def golden(name: str, value: object) -> None:
    text = json.dumps(value, indent=2) + "\n"
    if os.environ.get("SOLON_UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


# ---- transcripts


@pytest.mark.parametrize(
    ("text", "dialogue"),
    [
        ("\n\nHuman: Hi.\n\nAssistant: Hello!", [human("Hi."), reply("Hello!")]),
        ("Human: Hi.\n\nAssistant: Hello!", [human("Hi."), reply("Hello!")]),
        ("\n\nHuman: One\n\ntwo\n\n\nthree.\n\nAssistant: Yes.", [human("One\n\ntwo\n\n\nthree."), reply("Yes.")]),
        ("\n\nHuman: Play Human: and\nAssistant: now.", [human("Play Human: and\nAssistant: now.")]),
        ("\n\nAssistant: Human: I think.  Human: So", [reply("Human: I think.  Human: So")]),
        ("\n\nHuman: Write\n\nIngredients: flour\n\nSystem: x", [human("Write\n\nIngredients: flour\n\nSystem: x")]),
        ("\n\nHuman: Hi.\n\nAssistant: ", [human("Hi."), reply("")]),
        ("\n\nHuman: Hi.\n\nAssistant:", [human("Hi."), reply("")]),
        ("\n\nHuman: A\n\nAssistant: B\n\nAssistant:  C", [human("A"), reply("B"), reply(" C")]),
        ("\n\nHuman: A\n\nHuman: B", [human("A"), human("B")]),
        ("\n\nHuman: A\n\nAssistant: B\n\nHuman:", [human("A"), reply("B"), human("")]),
        ("\n\nHuman: \n\nAssistant: B", [human(""), reply("B")]),
        ("\r\n\r\nHuman: A\r\n\r\nAssistant: B\r\nC", [human("A"), reply("B\nC")]),
        ("\n\nSystem: Be kind.\n\nHuman: A", [{"role": "system", "content": "Be kind."}, human("A")]),
    ],
)
def test_transcript_is_split_only_where_a_turn_begins(text: str, dialogue: list[Message]) -> None:
    assert parse_transcript(text) == dialogue


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Once upon a time.\n\nHuman: Hi.", "'Once upon a time.' stands before the first turn"),
        ("Just a text about a Human: being", "no turn begins"),
        ("", "no turn begins"),
    ],
)
def test_text_that_is_no_transcript_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_transcript(text)


def test_turns_of_a_critique_are_read_only_where_asked_for() -> None:
    text = "\n\nHuman: A\n\nAssistant: B\n\nCritiqueRequest: C\n\nCritique: D\n\nRevisionRequest: E\n\nRevision: F"
    turns = parse_transcript(text, names=CRITIQUE_NAMES)
    assert [(turn["role"], turn.get("label"), turn["content"]) for turn in turns] == [
        ("user", None, "A"),
        ("assistant", None, "B"),
        ("user", "CritiqueRequest", "C"),
        ("assistant", "Critique", "D"),
        ("user", "RevisionRequest", "E"),
        ("assistant", "Revision", "F"),
    ]
    assert render_transcript(turns) == text
    assert len(parse_transcript(text)) == 2


_pieces = st.sampled_from(
    ["Human:", "Assistant:", "System:", "Note:", " ", "\n", "\n\n", "word", "{x}", "[[a]]", "\u00e9", "(A)", ":", "\t"]
)
_contents = st.lists(_pieces, max_size=8).map("".join)


def _is_one_turn(content: str) -> bool:
    # The rendered turn begins with ": ", so that a content may begin with one newline but not hold a heading.
    return "\n\nHuman:" not in content and "\n\nAssistant:" not in content


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), _contents.filter(_is_one_turn)), min_size=1))
def test_what_is_rendered_is_parsed_back(turns: list[tuple[Any, str]]) -> None:
    dialogue: list[Message] = [{"role": role, "content": content} for role, content in turns]
    assert parse_transcript(render_transcript(dialogue)) == dialogue


@given(st.lists(_pieces, max_size=12).map(lambda pieces: "\n\nHuman: " + "".join(pieces)))
def test_what_is_parsed_is_rendered_back_but_for_the_space_after_a_colon(text: str) -> None:
    rendered = render_transcript(parse_transcript(text))
    assert rendered.replace(" ", "") == text.replace(" ", "")
    assert parse_transcript(rendered) == parse_transcript(text)


@needs_hh
def test_every_transcript_of_the_hh_data_survives_a_round_trip() -> None:
    with gzip.open(HH, "rt", encoding="utf-8") as file:
        texts = [text for line in file for text in json.loads(line).values()]
    assert len(texts) == 2 * 1613
    assert [text for text in texts if render_transcript(parse_transcript(text)) != text] == []
    assert max(len(parse_transcript(text)) for text in texts) == 36


def test_tidied_turns_alternate_and_nothing_of_the_context_is_lost() -> None:
    turns = parse_transcript(
        "\n\nHuman: A\n\nAssistant: B \n\nAssistant:  C\n\nHuman: D\n\nHuman:  \n\nHuman: E\n\nAssistant: F"
    )
    assert tidy(turns) == [human("A"), reply("B\n\nC"), human("D\n\nE"), reply("F")]
    assert tidy(parse_transcript("\n\nHuman: A\n\nAssistant: B\n\nHuman:")) == [human("A"), reply("B")]
    labelled: Message = {"role": "user", "content": " A ", "label": "CritiqueRequest"}
    assert tidy([labelled]) == [human("A")]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), _contents)))
def test_tidying_twice_changes_nothing_more(turns: list[tuple[Any, str]]) -> None:
    once = tidy([{"role": role, "content": content} for role, content in turns])
    assert tidy(once) == once
    assert all(one["role"] != other["role"] for one, other in pairwise(once))
    assert not once or once[-1]["role"] == "assistant" or once[-1]["content"]


# ---- human comparisons


def test_every_refused_comparison_has_its_line_and_its_reason(tmp_path: Path) -> None:
    context = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C"
    path = write(
        tmp_path / "hh.jsonl",
        {"chosen": f"{context}\n\nAssistant: D", "rejected": f"{context}\n\nAssistant: E"},
        {"chosen": f"{context}\n\nAssistant: ", "rejected": f"{context}\n\nAssistant: E"},
        {"chosen": f"{context}\n\nAssistant: D", "rejected": "\n\nHuman: Z\n\nAssistant: E"},
        {"chosen": f"{context}\n\nAssistant: D\n\nAssistant: F", "rejected": f"{context}\n\nAssistant: E"},
        {"chosen": f"Intro.{context}\n\nAssistant: D", "rejected": f"{context}\n\nAssistant: E"},
        {"chosen": f"{context}\n\nAssistant: D", "rejected": f"{context}\n\nAssistant: D "},
        {"chosen": "\n\nHuman: \n\nAssistant: D", "rejected": "\n\nHuman: \n\nAssistant: E"},
        {"chosen": "\n\nAssistant: D", "rejected": "\n\nAssistant: E"},
        {"chosen": context, "rejected": context},
        {"chosen": f"{context}\n\nAssistant: D\n\nHuman:", "rejected": f"{context}\n\nAssistant: G\n\nHuman:"},
    )
    rows, refused = read_hh(path)
    assert [(one.line, one.reason) for one in refused] == [
        (2, "empty reply"),
        (3, "contexts differ"),
        (4, "contexts differ"),
        (5, "not a transcript"),
        (6, "replies are the same"),
        (7, "empty turn"),
        (8, "no human turn"),
        (9, "empty reply"),
    ]
    assert all(one.text for one in refused)
    assert [row["prompt"] for row in rows] == [[human("A"), reply("B"), human("C")]] * 2
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        ([reply("D")], [reply("E")]),
        ([reply("D")], [reply("G")]),
    ]
    assert len({row["id"] for row in rows}) == 2 and {row["source"] for row in rows} == {"hh.jsonl"}


def test_two_answers_in_a_row_are_one_reply_where_the_context_holds_them(tmp_path: Path) -> None:
    context = "\n\nHuman: A\n\nAssistant: B\n\nAssistant:  C\n\nHuman: D"
    path = write(
        tmp_path / "hh.jsonl", {"chosen": f"{context}\n\nAssistant: E", "rejected": f"{context}\n\nAssistant: F"}
    )
    rows, refused = read_hh(path)
    assert rows[0]["prompt"] == [human("A"), reply("B\n\nC"), human("D")] and not refused


def test_rows_without_transcripts_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path / "hh.jsonl", {"chosen": "\n\nHuman: A"}, {"prompt": "A"})
    with pytest.raises(InputError) as caught:
        read_hh(path)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}:1: no text in 'rejected'")
    assert second.startswith(f"{path}:2: no text in 'chosen' and 'rejected'")


@needs_hh
def test_every_comparison_of_the_hh_data_is_used_or_refused_with_its_line() -> None:
    rows, refused = read_hh(HH)
    assert len(rows) == 1608
    assert [(one.line, one.reason) for one in refused] == [
        (58, "empty reply"),
        (776, "empty reply"),
        (870, "contexts differ"),
        (1176, "contexts differ"),
        (1362, "contexts differ"),
    ]
    for row in rows:
        roles = [turn["role"] for turn in row["prompt"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert max(len(row["prompt"]) for row in rows) == 35
    assert len(read_hh(HH, limit=100).rows) == 100


# ---- prompts


def test_prompts_are_read_from_every_form(tmp_path: Path) -> None:
    turns = [human("A"), reply("B"), human("C")]
    path = write(
        tmp_path / "prompts.jsonl",
        {"prompt": [human("one")]},
        {"prompt": "two {braces}"},
        {"prompt": "\n\nHuman: three\n\nAssistant: B\n\nHuman: C\n\nAssistant:"},
        {"messages": [*turns, reply("D")]},
        {"messages": [human("five")], "source": "mine"},
        {"chosen": "\n\nHuman: six\n\nAssistant: B\n\nHuman: C\n\nAssistant: ", "rejected": "ignored"},
        {"chosen": [human("seven"), reply("B")]},
        {"id": "mine", "prompt": "eight", "kind": "helpful", "activity": "bake", "category": "food", "extra": 1},
        {"prompt": [{"role": "system", "content": "Be kind."}, human("nine")]},
    )
    rows = read_prompts(path).rows
    assert [row["prompt"] for row in rows] == [
        [human("one")],
        [human("two {braces}")],
        [human("three"), reply("B"), human("C")],
        turns,
        [human("five")],
        [human("six"), reply("B"), human("C")],
        [human("seven")],
        [human("eight")],
        [{"role": "system", "content": "Be kind."}, human("nine")],
    ]
    assert rows[0]["id"] == content_id([human("one")]) and rows[0]["source"] == "prompts.jsonl"
    assert rows[4]["source"] == "mine"
    assert rows[7] == {
        "id": "mine",
        "prompt": [human("eight")],
        "kind": "helpful",
        "activity": "bake",
        "category": "food",
        "extra": 1,
        "source": "prompts.jsonl",
    }
    assert all(set(row) == {"id", "prompt", "kind", "source"} for row in rows[:7])
    assert {row["kind"] for row in rows[:7]} == {"red-team"}
    assert {row["kind"] for row in read_prompts(path, kind="helpful").rows} == {"helpful"}


def test_prompts_that_were_read_read_the_same_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "one", "extra": True}, {"messages": [human(" two ")]})
    rows = read_prompts(path).rows
    write_rows(tmp_path / "b.jsonl", rows)
    assert read_prompts(tmp_path / "b.jsonl").rows == rows


def test_a_prompt_that_stands_twice_is_used_once_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "A"}, {"prompt": [human("A ")]}, {"prompt": "B"}, {"prompt": "A"})
    prompts = read_prompts(path)
    assert [row["prompt"][0]["content"] for row in prompts.rows] == ["A", "B"] and prompts.num_duplicates == 2
    assert [row["prompt"][0]["content"] for row in read_prompts(path, limit=1).rows] == ["A"]


def test_every_row_without_a_prompt_is_named_with_its_line_and_a_remedy(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "fine"},
        {"text": "A"},
        "",
        {"prompt": "  "},
        {"prompt": [human("A"), reply("B")]},
        {"messages": [{"role": "human", "content": "A"}]},
        {"messages": [{"role": "user"}]},
        {"prompt": 3},
        {"prompt": "A", "kind": "odd"},
        {"chosen": "no transcript"},
        {"messages": []},
        {"messages": [human("A"), reply(""), human("B")]},
    )
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    said = dict(line.removeprefix(f"{path}:").split(": ", 1) for line in str(caught.value).splitlines())
    assert list(said) == ["2", "4", "5", "6", "7", "8", "9", "10", "11", "12"]
    assert said["2"].startswith("a row without a prompt: it has 'text' (a row holds 'prompt'")
    assert "the prompt is empty" in said["4"] and "the prompt is empty" in said["11"]
    assert "call the column 'messages'" in said["5"]
    assert said["6"].startswith("messages.0.role: input should be 'system', 'user' or 'assistant'")
    assert said["7"].startswith("messages.0.content: field required")
    assert said["8"].startswith("prompt: input should be a valid list")
    assert "kind is 'odd'" in said["9"]
    assert "not a transcript" in said["10"]
    assert "empty turn" in said["12"]


def test_many_bad_rows_are_cut_to_a_readable_list(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_prompts(write(tmp_path / "p.jsonl", *({"text": str(i)} for i in range(50))))
    assert str(caught.value).splitlines()[-1] == "and 30 more such rows"


def test_an_id_of_two_prompts_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"id": 7, "prompt": "A"}, {"id": "7", "prompt": "B"})
    with pytest.raises(InputError, match=r"p\.jsonl:2: id '7' stands on line 1 too"):
        read_prompts(path)
    with pytest.raises(InputError, match="no prompt in the file"):
        read_prompts(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match="there is no such file"):
        read_prompts(tmp_path / "none.jsonl")


@needs_hh
def test_hh_data_gives_whole_multi_turn_prompts() -> None:
    prompts = read_prompts(HH)
    assert len(prompts.rows) + prompts.num_duplicates == 1613
    assert len({row["id"] for row in prompts.rows}) == len(prompts.rows)
    turns = [len(row["prompt"]) for row in prompts.rows]
    assert max(turns) == 35 and sum(n > 1 for n in turns) > 1000
    assert all(row["prompt"][-1]["role"] == "user" for row in prompts.rows)


# ---- rows for trainers


def test_rows_are_what_trl_reads() -> None:
    labelled: Message = {"role": "user", "content": "A", "label": "CritiqueRequest"}
    golden(
        "dialogue_rows.json",
        {
            "sft": sft_row([HUMAN], "Mix flour and water.", origin="revision-1"),
            "sft_labelled": sft_row([labelled], "B", origin="helpful"),
            "preference": preference_row([HUMAN], chosen="Mix.", rejected="No.", probability=0.75),
            "hard": preference_row([HUMAN], chosen="Mix.", rejected="No."),
        },
    )


@pytest.mark.parametrize("probability", [0.49, 1.01, float("nan")])
def test_a_preference_says_that_the_chosen_one_is_better(probability: float) -> None:
    with pytest.raises(AssertionError, match="probability"):
        preference_row([HUMAN], chosen="A", rejected="B", probability=probability)


def test_the_transcript_of_a_dialogue_is_as_the_golden_file_says() -> None:
    def turns() -> Iterator[Message]:
        yield {"role": "system", "content": "Be kind."}
        yield HUMAN
        yield reply("Mix flour.\n\nNote: let it rise.")
        yield {"role": "user", "content": "Point out any harm.", "label": "CritiqueRequest"}

    golden("transcript.json", render_transcript(list(turns())))


# ---- a set of prompts for a constitution that speaks of some categories


def about(*categories: str | None) -> list[PromptRow]:
    rows = list[PromptRow]()
    for number, category in enumerate(categories):
        row: PromptRow = {"id": str(number), "prompt": [], "kind": "red-team", "source": "x"}
        rows.append(row if category is None else {**row, "category": category})
    return rows


@pytest.mark.parametrize(
    ("categories", "limit", "ids"),
    [
        (["a", "b", "c", "a", None, "a", "b"], 4, "0312"),
        (["a", "b", "c", "a", None, "a", "b"], None, "035124"),
        (["a", "b", "c", "d"], 4, "0123"),
        (["a", "a", "a", "b"], 4, "0123"),
        (["a", "b", "a", "b", "b"], 3, "013"),
        (["a", "b"], 9, "01"),
    ],
)
def test_half_of_a_set_is_about_the_categories_asked_for(
    categories: list[str | None], limit: int | None, ids: str
) -> None:
    assert "".join(row["id"] for row in focused(about(*categories), ["a"], limit=limit)) == ids


@pytest.mark.parametrize(("categories", "known"), [(["b", "c"], "b, c"), ([None], "no row has a column 'category'")])
def test_a_category_that_no_prompt_has_is_refused(categories: list[str | None], known: str) -> None:
    with pytest.raises(InputError, match="no prompt is of the category 'a'") as caught:
        focused(about(*categories), ["a"])
    assert known in str(caught.value)


def test_the_focus_of_a_file_is_among_its_red_team_prompts(tmp_path: Path) -> None:
    kinds = ["helpful", "red-team", "red-team", "red-team", "red-team"]
    rows = [
        {"prompt": f"Prompt {number}.", "kind": kind, "category": "a" if number in (3, 4) else "b"}
        for number, kind in enumerate(kinds)
    ]
    path = write(tmp_path / "prompts.jsonl", *rows)
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"kind": "local", "path": "sandbox:helpful"},
            "prompts": {"path": str(path), "focus": ["a"], "limit": 2},
            "revisions": {},
        }
    )
    run = Run(recipe=recipe, folder=RunFolder(tmp_path / "run"))
    assert [row["prompt"][0]["content"] for row in run.red_team] == ["Prompt 3.", "Prompt 1."]
    assert [row["prompt"][0]["content"] for row in run.helpful] == ["Prompt 0."]
