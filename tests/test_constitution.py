"""Constitutions: what a file may hold, every error at once with its line, draws, fingerprints, published forms."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from solon.constitution import (
    ComparisonExemplar,
    Constitution,
    Exemplars,
    Principle,
    ReasoningExemplar,
    RevisionExemplar,
    import_constitution,
    shipped,
)
from solon.dialogue import reply
from solon.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "constitutions"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="../shared/data/constitutions is not there")

SMALL = """\
name: small
principles:
  - id: one
    critique: Find one.
    revision: Mend one.
    comparison: Which is one?
  - id: two
    comparison: Which is two?
    weight: 3
  - id: three
    critique: Find three.
    revision: Mend three.
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def errors_of(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        Constitution.load(path)
    return str(caught.value).replace(f"{path}:", "").splitlines()


def error_of(path: Path, text: str) -> str:
    (one,) = errors_of(write(path, text))
    return one


def golden(name: str, text: str) -> None:
    if os.environ.get("SOLON_UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


def constitution(*principles: dict[str, Any], **more: Any) -> Constitution:
    return Constitution.model_validate({"name": "test", "principles": principles, **more})


@pytest.fixture
def small(tmp_path: Path) -> Constitution:
    return Constitution.load(write(tmp_path / "small.yaml", SMALL))


# ---- what a file may hold


def test_a_file_is_read_as_it_is_written(tmp_path: Path, small: Constitution) -> None:
    assert [principle.id for principle in small.principles] == ["one", "two", "three"]
    assert small.principles[0] == Principle(
        id="one", critique="Find one.", revision="Mend one.", comparison="Which is one?"
    )
    assert small.principles[1].weight == 3.0 and small.principles[0].weight == 1.0
    assert small.version == 1 and small.licence is None and small.exemplars == Exemplars()


def test_a_conversation_is_a_transcript_or_messages(tmp_path: Path) -> None:
    text = (
        SMALL
        + """\
exemplars:
  comparison:
    - conversation: |
        Human: Hello.

        Assistant: Hi!
        How are you?

        Human: Fine.
      better: Good.
      worse: Bad.
    - conversation:
        - {role: user, content: Hello.}
        - {role: assistant, content: "Hi!\\nHow are you?"}
        - {role: user, content: "Fine."}
      better: Good.
      worse: Bad.
"""
    )
    one, other = Constitution.load(write(tmp_path / "c.yaml", text)).exemplars.comparison
    assert one == other
    assert [turn["content"] for turn in one.conversation] == ["Hello.", "Hi!\nHow are you?", "Fine."]


def test_everything_is_frozen(small: Constitution) -> None:
    with pytest.raises(ValidationError):
        small.principles[0].critique = "other"  # type: ignore[misc]


# ---- errors

BAD = """\
name: bad
verson: 2
version: 2024-05-01
principles:
  - id: My Rule
    critique: Find it.
  - id: empty
  - id: no
    comparison: Which?
  - id: twice
    comparison: "   "
    weigth: 2
  - id: twice
    comparison: ...
    weight: -1
  - id: lost-critique
    revision: <your text here>
    tags: harm
  - comparison: Which?
    weight: yes
  - just a text
  - id: blank-critique
    critique:
    revision: Mend it.
exemplars:
  revision:
    - conversation: |
        Human: Hello.
      critique_request: Find.
      critique: Found.
      revision_request: Mend.
      revision: Mended.
  comparison:
    - conversation:
        - {role: human, content: Hello.}
      better: Good.
    - conversation: Hello.
      better: Good.
      worse: Bad.
      why: because
  reasoning:
    - conversation: |
        Human: Hello.
      better: Good.
      worse: Bad.
      reasoning: Response (A) is good. [[a]]
    - conversation: |
        Human: Hello.
      better: Good.
      worse: Bad.
      reasoning: Response ([[worse]]) is bad.
"""


def test_every_error_of_a_file_is_said_at_once_with_its_line_and_a_remedy(tmp_path: Path) -> None:
    errors = errors_of(write(tmp_path / "bad.yaml", BAD))
    lines = [int(error.split(":")[0]) for error in errors]
    assert lines == sorted(lines)
    assert all(re.search(r" \(.+\)$", error) for error in errors), "a remedy stands at the end of each"
    golden("constitution_errors.txt", "\n".join(errors) + "\n")


def test_json_errors_have_lines_too(tmp_path: Path) -> None:
    text = '{\n\t"name": "j",\n\t"principles": [\n\t\t{"id": "a", "comparison": ""},\n\t\t{"id": "b"}\n\t]\n}'
    first, second = errors_of(write(tmp_path / "c.json", text))
    assert first.startswith("4: `comparison` of principle 'a' is empty")
    assert second.startswith("5: principle 'b' has no text")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: holds empty, not the keys"),
        ("- a\n- b\n", "1: holds a list, not the keys"),
        ("just words\n", "1: holds a text, not the keys"),
        ("name: [\n", "2: not YAML"),
        ("name: a\n  principles: b: c\n", "2: not YAML: mapping values are not allowed here"),
        ("name: a\n---\nname: b\n", "2: not YAML: but found another document"),
        ("name: !!python/object:os.system a\n", "1: not YAML: could not determine a constructor"),
        ("name: a\nprinciples: []\n", "2: `principles` is empty (write at least one)"),
        ("name: a\n", "1: the constitution has no `principles` (add it)"),
        ("name: a\nprinciples:\n", "2: `principles` is empty, not a list"),
        (SMALL + "metadata: {a: .nan}\n", "13: `metadata` holds a number that is not finite"),
        (SMALL + "version: true\n", "13: `version` is True"),
        (SMALL + "name: again\n", "13: the key `name` stands twice (remove one of them)"),
        (SMALL.replace("weight: 3", "weight: .inf"), "9: `weight` of principle 'two' is inf"),
        (SMALL.replace("weight: 3", "weight: 0"), "9: `weight` of principle 'two' is 0 (a weight is a number above 0"),
        (SMALL.replace("weight: 3", "weight: much"), "9: `weight` of principle 'two' is much"),
        (SMALL.replace("id: two", "id: one"), "7: the id 'one' is that of principle 1 too"),
        (SMALL.replace("id: two", "id: Two Words"), "lower-case words joined by hyphens, such as 'two-words'"),
        (SMALL.replace("Mend one.", "TODO"), "5: `revision` of principle 'one' is still to be filled in: 'TODO'"),
        (SMALL.replace("    revision: Mend three.\n", ""), "10: principle 'three' has a critique but no revision"),
        (SMALL.replace("critique: Find three.", "critque: x"), "did you mean `critique`?"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path: Path, text: str, said: str) -> None:
    errors = errors_of(write(tmp_path / "c.yaml", text))
    assert any(said in error for error in errors), errors


def test_a_recursive_file_is_refused(tmp_path: Path) -> None:
    assert errors_of(write(tmp_path / "c.yaml", SMALL + "metadata: &a {b: *a}\n"))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"name: a\nlicence: \xff\n")
    assert errors_of(path) == ["2: not UTF-8 (save the file as UTF-8)"]
    path = write(tmp_path / "c.json", '{"name": \n}')
    assert errors_of(path)[0].startswith("2: not JSON")


def test_what_is_not_there_or_no_constitution_is_said_with_a_way_on(tmp_path: Path) -> None:
    for wrong in ("harmles", tmp_path / "none.yaml"):
        with pytest.raises(InputError, match=r"no such constitution.*shipped: hacking-only, harmless, theft-only"):
            Constitution.load(wrong)
    with pytest.raises(InputError, match="is a folder"):
        Constitution.load(tmp_path)
    with pytest.raises(InputError, match=r"a \.yaml or \.json file, not \.txt"):
        Constitution.load(write(tmp_path / "c.txt", SMALL))
    path = write(tmp_path / "c.json", json.dumps([{"trait": "I am kind."}]))
    assert error_of(path, path.read_text()).startswith("1: holds a list")
    path = write(path, json.dumps({"constitutions": []}))
    assert "solon constitution import" in error_of(path, path.read_text())


def test_a_constitution_made_in_python_keeps_the_same_rules() -> None:
    with pytest.raises(ValidationError, match="has no text"):
        Principle(id="a")
    with pytest.raises(ValidationError, match="has a revision but no critique"):
        Principle(id="a", revision="Mend.", comparison="Which?")
    with pytest.raises(ValidationError, match="the id 'a' is that of principle 1 too"):
        constitution({"id": "a", "comparison": "Which?"}, {"id": "a", "comparison": "Which one?"})
    with pytest.raises(ValidationError, match="does not end with a turn of the human"):
        ComparisonExemplar(conversation=(reply("Hi."),), better="A", worse="B")


# ---- identity


_chars = st.sampled_from(["\n", " ", "\t", ":", "#", "'", '"', "\x85", "\u2028", "- "]) | st.characters(codec="utf-8")
_words = st.lists(_chars, min_size=1, max_size=12).map(lambda chars: f"w{''.join(chars)}w")
_ids = st.from_regex(r"[a-z0-9]{1,4}(-[a-z0-9]{1,3}){0,2}", fullmatch=True)


@st.composite
def constitutions(draw: st.DrawFn) -> Constitution:
    ids = draw(st.lists(_ids, min_size=1, max_size=4, unique=True))
    principles = []
    for identity in ids:
        kind = draw(st.sampled_from(["both", "revision", "comparison"]))
        texts = {} if kind == "comparison" else {"critique": draw(_words), "revision": draw(_words)}
        texts |= {} if kind == "revision" else {"comparison": draw(_words)}
        weight = draw(st.floats(1e-6, 1e6))
        principles.append({"id": identity, "weight": weight, "tags": draw(st.lists(_words, max_size=2)), **texts})
    turn = {"role": "user", "content": draw(_words)}
    reasoning = {"conversation": [turn], "better": draw(_words), "worse": draw(_words), "reasoning": "([[better]])"}
    return constitution(
        *principles,
        version=draw(st.one_of(st.integers(0, 99), _words)),
        licence=draw(st.none() | _words),
        exemplars={"reasoning": [reasoning] * draw(st.integers(0, 1))},
        metadata=draw(st.dictionaries(_words, st.none() | st.integers() | _words, max_size=2)),
    )


def shuffled(value: Any) -> Any:
    """The same with the keys of every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(one) for one in value] if isinstance(value, list) else value


@settings(max_examples=25)
@given(one=constitutions())
def test_writing_and_reading_gives_the_same_constitution(one: Constitution, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("c")
    (folder / "c.yaml").write_bytes(one.to_yaml().encode())
    again = Constitution.load(folder / "c.yaml")
    assert again == one and again.fingerprint == one.fingerprint


@settings(max_examples=25)
@given(one=constitutions())
def test_the_fingerprint_is_that_of_the_content(one: Constitution, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("c")
    content = shuffled(one.model_dump(mode="json"))
    (folder / "c.json").write_text(json.dumps(content, indent="\t"), encoding="utf-8")
    # ASCII, because PyYAML itself does not read back every character that it writes otherwise.
    as_yaml = yaml.safe_dump(content, sort_keys=False, width=40)
    commented = "# a comment\n" + as_yaml + "# another\n"
    (folder / "unix.yaml").write_bytes(commented.encode())
    (folder / "windows.yml").write_bytes(b"\xef\xbb\xbf" + commented.replace("\n", "\r\n").encode())
    assert {Constitution.load(path).fingerprint for path in folder.iterdir()} == {one.fingerprint}


def test_the_fingerprint_changes_with_every_text_weight_and_order(small: Constitution, tmp_path: Path) -> None:
    changes = [("one.", "ones."), ("weight: 3", "weight: 2"), ("name: small", "name: tiny"), ("id: one", "id: won")]
    texts = [SMALL.replace(*change) for change in changes]
    texts += [SMALL + "metadata: {a: 1}\n", SMALL + "version: 2\n"]
    prints = [Constitution.load(write(tmp_path / "c.yaml", text)).fingerprint for text in texts]
    assert len({*prints, small.fingerprint}) == len(texts) + 1
    assert re.fullmatch("[0-9a-f]{64}", small.fingerprint)


# ---- draws


@cache
def _harmless() -> Constitution:
    return Constitution.load("harmless")


def test_draws_are_the_same_on_every_machine(small: Constitution) -> None:
    drawn = {
        "fingerprint": small.fingerprint,
        "revision": [small.draw("revision", seed).id for seed in range(12)],
        "comparison": [small.draw("comparison", seed).id for seed in range(12)],
        "sample": [[one.id for one in small.sample("comparison", 2, seed)] for seed in range(6)],
        "exemplars": [
            [one.better for one in Constitution.load("TEMPLATE").exemplars.draw("comparison", 1, seed=0)],  # type: ignore[union-attr]
        ],
        "large seed": small.draw("comparison", 2**62 + 1).id,
    }
    golden("constitution_draws.json", json.dumps(drawn, indent=2) + "\n")


def test_draws_follow_the_weights() -> None:
    weights = {"a": 1.0, "b": 2.5, "c": 0.5, "d": 4.0}
    one = constitution(*({"id": id, "comparison": f"Which {id}?", "weight": w} for id, w in weights.items()))
    n, total = 4000, sum(weights.values())
    counts = Counter(one.draw("comparison", seed).id for seed in range(n))
    chi2 = sum((counts[id] - n * w / total) ** 2 / (n * w / total) for id, w in weights.items())
    assert chi2 < 16.27, "three degrees of freedom, p = 0.001"
    pairs = Counter(tuple(p.id for p in one.sample("comparison", 2, seed)) for seed in range(n))
    for first, w in weights.items():
        for second, v in weights.items():
            if first != second:
                expected = w / total * v / (total - w)
                assert abs(pairs[first, second] / n - expected) < 4 * math.sqrt(expected / n)


def test_only_principles_with_the_texts_are_drawn(small: Constitution) -> None:
    assert {small.draw("revision", seed).id for seed in range(100)} == {"one", "three"}
    assert {small.draw("comparison", seed).id for seed in range(100)} == {"one", "two"}
    alone = constitution({"id": "a", "comparison": "Which?"})
    with pytest.raises(InputError, match="no principle of the constitution 'test' has a `critique` and a `revision`"):
        alone.draw("revision", 0)
    other = constitution({"id": "a", "critique": "Find.", "revision": "Mend."})
    with pytest.raises(InputError, match="has a `comparison`"):
        other.sample("comparison", 1, 0)


@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=6), order=st.permutations(range(18)))
def test_a_draw_depends_on_nothing_but_its_seed(seeds: list[int], order: list[int]) -> None:
    whole = _harmless()
    moved = whole.model_copy(update={"principles": tuple(whole.principles[i] for i in order)})
    forwards = [whole.draw("revision", seed) for seed in seeds]
    backwards = [moved.draw("revision", seed) for seed in reversed(seeds)][::-1]
    assert forwards == backwards
    for seed in seeds:
        three = whole.sample("comparison", 3, seed)
        assert len({one.id for one in three}) == 3
        assert three[:2] == whole.sample("comparison", 2, seed) and three[0] == whole.draw("comparison", seed)


def test_a_new_principle_changes_only_the_draws_that_it_wins(small: Constitution) -> None:
    new = Principle(id="new", comparison="Which is new?")
    more = small.model_copy(update={"principles": (new, *small.principles)})
    for seed in range(300):
        assert more.draw("comparison", seed) in (new, small.draw("comparison", seed))


def test_more_than_there_are_cannot_be_sampled(small: Constitution) -> None:
    assert small.sample("comparison", 0, 1) == ()
    with pytest.raises(InputError, match="3 different principles asked for, the constitution 'small' has 2"):
        small.sample("comparison", 3, 1)
    with pytest.raises(InputError, match="1 revision exemplars asked for, the constitution has 0"):
        small.exemplars.draw("revision", 1, seed=0)


def test_exemplars_are_drawn_in_an_order_that_the_seed_fixes() -> None:
    exemplars = _harmless().exemplars
    orders = {
        tuple(exemplars.comparison.index(one) for one in exemplars.draw("comparison", 4, seed=s)) for s in range(200)
    }  # type: ignore[arg-type]
    assert len(orders) == math.factorial(4)
    assert exemplars.draw("comparison", 2, seed=5) == exemplars.draw("comparison", 4, seed=5)[:2]
    assert all(isinstance(one, RevisionExemplar) for one in exemplars.draw("revision", 3, seed=0))
    assert all(isinstance(one, ReasoningExemplar) for one in exemplars.draw("reasoning", 3, seed=0))


# ---- what ships


def test_what_ships_is_whole() -> None:
    assert shipped() == ("hacking-only", "harmless", "theft-only")
    harmless = _harmless()
    assert len(harmless.principles) == 18 and harmless.licence == "CC-BY-4.0"
    for one in harmless.principles:
        assert one.serves("revision") and one.serves("comparison") and one.tags
    texts = [t for one in harmless.principles for t in (one.critique, one.revision, one.comparison) if t]
    assert len(set(texts)) == len(texts) and max(len(text.split()) for text in texts) <= 30
    assert [
        len(kind) for kind in (harmless.exemplars.revision, harmless.exemplars.comparison, harmless.exemplars.reasoning)
    ] == [3, 4, 3]
    unchanged = [one for one in harmless.exemplars.revision if one.revision == one.conversation[-1]["content"]]
    assert len(unchanged) == 1
    assert len({Constitution.load(name).fingerprint for name in (*shipped(), "TEMPLATE")}) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [("theft-only", "thef|steal|thiev|rob|shoplift|belongs"), ("hacking-only", "hack|break|crack|virus|computer")],
)
def test_a_narrow_constitution_names_its_kind_in_every_text(name: str, words: str) -> None:
    principles = Constitution.load(name).principles
    assert len(principles) == 6
    for one in principles:
        assert all(re.search(words, text or "") for text in (one.critique, one.revision, one.comparison))


def test_the_words_that_ship_are_ours() -> None:
    if not PUBLISHED.is_dir():
        pytest.skip("../shared/data/constitutions is not there")
    theirs = import_constitution(PUBLISHED / "hf_constitution_anthropic.json")
    sevens = {
        seven for one in theirs.principles for text in (one.critique, one.revision) for seven in _sevens(text or "")
    }
    for name in shipped():
        for one in Constitution.load(name).principles:
            for text in (one.critique, one.revision, one.comparison):
                assert not sevens & set(_sevens(text or "")), text


def _sevens(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"[a-z']+", text.lower())
    return [tuple(words[i : i + 7]) for i in range(len(words) - 6)]


# ---- published forms


def paper_folder(folder: Path) -> Path:
    """Files in the form of the paper's repository, with words of our own."""
    folder.mkdir()
    instructions = {
        f"harmful{i}": {
            "prompt": [f"\n\nCritiqueRequest: Find harm {i}.\n\nCritique:"],
            "edit_request": f"\n\nRevisionRequest: Mend harm {i}.\n\nRevision:",
        }
        for i in range(2)
    }
    turns = (
        "Human: A",
        "Assistant: B",
        "CritiqueRequest: C",
        "Critique: D",
        "RevisionRequest: E",
        "Revision: F",
        "Human:",
    )
    example = "".join(f"\n\n{turn}" for turn in turns)
    reasoning = (
        "{start}Human: Consider the following conversation between a human (H) and an assistant (A):\n\n"
        "H: Hi.\n\nA: Hello.\n\nH: Help {{me}}.\n\n{{}}\n (A) [[[No (A)?]]]\n (B) [[[Yes.\n\nGladly.]]]\n\n"
        "Assistant: Let's think step by step: Option (A) refuses, so (B) is better.\n\nHuman:\nSo the answer is: (B)"
    )
    contents: dict[str, Any] = {
        "CritiqueRevisionInstructions": instructions,
        "CritiqueRevisionFewShotPrompts": [example, example.removesuffix("\n\nHuman:").replace("B", "B2")],
        "RLMadisonInstructions": ["\nPlease choose the kinder one. Options:", "\nWhich one is calmer? Options:"],
        "RLMadisonFewShotPrompts": [{"prompt": "\n\nHuman: A\n\nAssistant:", "corrects": ["B"], "incorrects": ["C"]}],
        "RLMadisonPrecogFewShotPrompts": [{"prompt": reasoning.format(start=start)} for start in ("\n\n", "\n", "")],
    }
    for name, content in contents.items():
        write(folder / f"{name}.json", json.dumps(content))
    return folder


def test_the_folder_of_the_papers_repository_becomes_one_constitution(tmp_path: Path) -> None:
    one = import_constitution(paper_folder(tmp_path / "prompts"))
    golden("constitution_imported.yaml", one.to_yaml())
    again = Constitution.load(write(tmp_path / "again.yaml", one.to_yaml()))
    assert again.fingerprint == one.fingerprint
    revision, _ = one.exemplars.revision
    assert [turn["content"] for turn in revision.conversation] == ["A", "B"] and revision.revision == "F"
    reasoning = one.exemplars.reasoning[0]
    assert (reasoning.better, reasoning.worse) == ("Yes.\n\nGladly.", "No (A)?")
    assert reasoning.reasoning == "Option ([[worse]]) refuses, so ([[better]]) is better."
    assert [turn["role"] for turn in reasoning.conversation] == ["user", "assistant", "user"]


def test_single_files_of_the_papers_repository_are_read(tmp_path: Path) -> None:
    folder = paper_folder(tmp_path / "prompts")
    pairs = import_constitution(folder / "CritiqueRevisionInstructions.json")
    assert [(one.id, one.critique, one.revision) for one in pairs.principles] == [
        ("harmful0", "Find harm 0.", "Mend harm 0."),
        ("harmful1", "Find harm 1.", "Mend harm 1."),
    ]
    choices = import_constitution(folder / "RLMadisonInstructions.json")
    assert [one.comparison for one in choices.principles] == ["Please choose the kinder one.", "Which one is calmer?"]
    with pytest.raises(InputError, match="holds examples but no principles"):
        import_constitution(folder / "RLMadisonFewShotPrompts.json")


def test_a_strange_file_in_a_folder_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = paper_folder(tmp_path / "prompts")
    write(folder / "other.json", '{"a": 1}')
    with caplog.at_level(logging.WARNING):
        one = import_constitution(folder)
    assert "other.json: passed over" in caplog.text and "other.json" not in one.metadata["imported_from"]  # type: ignore[operator]


@pytest.mark.parametrize("text", ['{"a": 1}', "[]", "[1, 2]", '"text"', '[{"question": "A"}]'])
def test_an_unknown_form_is_refused_with_those_that_are_understood(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"not known.*llm-swarm.*CritiqueRevisionInstructions.*trait"):
        import_constitution(write(tmp_path / "c.json", text))


@pytest.mark.parametrize(
    "text",
    [
        '{"constitutions": [{"critic": "A"}]}',
        '{"constitutions": ["A"]}',
        '{"a": {"prompt": [], "edit_request": "B"}}',
        '["\\n\\nHuman: A\\n\\nAssistant: B\\n\\nCritiqueRequest: C"]',
        '[{"trait": 1}]',
        '[{"prompt": "\\n\\nHuman: A"}]',
        '[{"prompt": "A", "corrects": ["B"], "incorrects": ["C"]}]',
    ],
)
def test_a_file_that_breaks_its_form_is_refused_without_a_traceback(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="looks like"):
        import_constitution(write(tmp_path / "c.json", text))


def test_an_imported_text_that_is_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"principles\.0\.critique.*is empty"):
        import_constitution(write(tmp_path / "c.json", '{"constitutions": [{"critic": " ", "revision": "B"}]}'))


def test_solons_own_files_can_be_imported_too(tmp_path: Path, small: Constitution) -> None:
    assert import_constitution(write(tmp_path / "c.yaml", SMALL)) == small
    as_json = write(tmp_path / "c.json", json.dumps(small.model_dump(mode="json")))
    assert import_constitution(as_json) == small
    with pytest.raises(InputError, match="there is no such file"):
        import_constitution(tmp_path / "none.json")


@needs_published
def test_the_published_files_are_read() -> None:
    swarm = import_constitution(PUBLISHED / "hf_constitution_anthropic.json")
    assert len(swarm.principles) == 16 and len(swarm.serving("revision")) == 16
    assert len(swarm.exemplars.revision) == 4
    for name, n in (("oct_goodness", 15), ("oct_sycophancy", 10)):
        raw = json.loads((PUBLISHED / f"{name}.txt").read_text())
        traits = import_constitution(PUBLISHED / f"{name}.txt")
        assert len(traits.principles) == n == len(raw) and traits.name == name
        for row, one in zip(raw, traits.principles, strict=True):
            texts = (one.critique, one.revision, one.comparison)
            assert all(text is not None and row["trait"] in text for text in texts)
            assert traits.metadata["questions"][one.id] == row["questions"]  # type: ignore[index,call-overload]
        assert len({one.comparison for one in traits.principles}) == n
