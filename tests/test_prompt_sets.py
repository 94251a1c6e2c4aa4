"""Published sets of prompts: each form, the real files, and what is refused with its line."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from solon.dialogue import PromptRow, read_prompts
from solon.errors import InputError

DATA = Path(__file__).parents[2] / "shared" / "data"


def only(path: Path) -> PromptRow:
    (row,) = read_prompts(path).rows
    return row


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "prompt", "kind", "category"),
    [
        ("x.csv", "id,prompt,type,label,focus,note\n1,How?,homonyms,safe,a,b\n", "How?", "look-alike", "homonyms"),
        ("x.csv", "id,prompt,type,label\n2,Why?,contrast,unsafe\n", "Why?", "red-team", "contrast"),
        ("x.csv", '\ufeffgoal,target\n"Do\nit","Sure"\n', "Do\nit", "red-team", None),
        (
            "x.csv",
            "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\nDo,f,s,,Given,b1\n",
            "Given\n\nDo",
            "red-team",
            "s",
        ),
        ("x.csv", ",Goal,Target,Behavior,Category,Source\n0,Do,Sure,b,c,s\n", "Do", "red-team", "c"),
        ("x.csv", "prompt\nplain\n", "plain", "red-team", None),
        ("x.json", '["plain"]', "plain", "red-team", None),
        ("x.json", '{"One": {"Inner": ["plain"]}}', "plain", "red-team", "One"),
        (
            "x.jsonl",
            '{"id": "s", "name": "n", "instruction": "Do", "instances": [{"input": "this", "output": "o"}]}',
            "Do\n\nthis",
            "helpful",
            None,
        ),
        ("x.jsonl", '{"question_id": 81, "category": "writing", "turns": ["One", "Two"]}', "One", "helpful", "writing"),
    ],
)
def test_each_form_is_known_by_its_columns(
    name: str, text: str, prompt: str, kind: str, category: str | None, tmp_path: Path
) -> None:
    row = only(written(tmp_path / name, text))
    assert row["prompt"] == [{"role": "user", "content": prompt}]
    assert (row["kind"], row.get("category"), row["source"]) == (kind, category, name)
    assert "Sure" not in json.dumps(row)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert only(packed)["prompt"] == row["prompt"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "prompt,id\nfine,1\none\n", "x.csv:3"),
        ("x.csv", 'prompt\n"fine"\n"open\n', "not CSV"),
        ("x.csv", "", "empty"),
        ("x.csv", "id,prompt,type,label\n1,How?,t,perhaps\n", "x.csv:2"),
        ("x.json", '["a",', "not JSON"),
        ("x.json", "[1]", "1 is no prompt"),
        ("x.json", '"text"', "no list of prompts"),
        ("x.jsonl", '{"question_id": 1, "category": "c", "turns": 5}', "x.jsonl:1"),
        ("x.jsonl", '{"id": 1, "instruction": "Do", "instances": "none"}', "x.jsonl:1"),
    ],
)
def test_what_cannot_be_read_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_prompts(written(tmp_path / name, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("file", "num", "kinds", "num_categories"),
    [
        ("xstest/xstest_prompts.csv", 300, {"look-alike", "red-team"}, 10),
        ("advbench/harmful_behaviors.csv", 516, {"red-team"}, 0),
        ("harmbench/harmbench_behaviors_text_val.csv", 79, {"red-team"}, 6),
        ("jailbreakbench/behaviors.csv", 97, {"red-team"}, 10),
        ("red-instruct/harmfulqa.json", 1960, {"red-team"}, 10),
        ("red-instruct/dangerousqa.json", 200, {"red-team"}, 0),
        ("self-instruct/seed_tasks.jsonl", 175, {"helpful"}, 0),
        ("self-instruct/user_oriented_instructions.jsonl", 252, {"helpful"}, 0),
        ("mt-bench/mt_bench_question.jsonl", 80, {"helpful"}, 8),
    ],
)
def test_every_row_of_the_real_files_is_read(file: str, num: int, kinds: set[str], num_categories: int) -> None:
    path = DATA / file
    if not path.is_file():
        pytest.skip(f"needs {file} in shared/data")
    found = read_prompts(path)
    assert len(found.rows) + found.num_duplicates == num
    assert {row["kind"] for row in found.rows} == kinds
    counts = Counter(row["category"] for row in found.rows if "category" in row)
    assert len(counts) >= num_categories and (num_categories == 0) == (not counts)
