"""Gold pairs of the published files: what is read, what is refused, and how accuracy on them is measured."""

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
from statistics import fmean
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import assert_refused, run
from solon.artifact import RunFolder, StageFolder, read_json, read_rows, write_json, write_rows
from solon.config import Comparisons
from solon.constitution import Constitution
from solon.dialogue import Message
from solon.engine import ChoiceRequest, Request
from solon.engine.scripted import ScriptedEngine
from solon.errors import EngineError, InputError, TooManyFailures
from solon.evaluation import (
    HELPFULNESS,
    GoldJudge,
    GoldPair,
    GoldPairs,
    GoldRow,
    finish_gold,
    gold_measured_of,
    gold_scores,
    judge_gold,
    majority,
    measure_gold,
    read_gold,
    score_gold,
)
from solon.preference import Pair, PreferenceModel, measure

DATA = Path(__file__).parents[2] / "shared" / "data"


def needs(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / folder).is_dir(), reason=f"../shared/data/{folder} is not there")


def llmbar(number: int = 0, **more: Any) -> dict[str, Any]:
    return {"input": f"Say {number}.", "output_1": f"It is {number}.", "output_2": "What?", "label": 1, **more}


def pandalm(number: int = 0, *, votes: Sequence[Any] = (1, 1, 2), **more: Any) -> dict[str, Any]:
    row = {"idx": number, "motivation_app": "x", "cmp_key": "m_n", "instruction": f"Say {number}.", "input": ""}
    row |= {"response1": f"It is {number}.", "response2": "What?"}
    return {**row, **{f"annotator{i}": vote for i, vote in enumerate(votes, start=1)}, **more}


def hh(number: int, *, chosen: str = "Like this.", rejected: str = "No.") -> dict[str, str]:
    start = f"\n\nHuman: How do I do {number}?\n\nAssistant: "
    return {"chosen": start + chosen, "rejected": start + rejected}


def share(pair: GoldPair) -> float:
    """Of the annotators who say what the gold says."""
    return pair.annotators.count(pair.gold) / len(pair.annotators)


def write_list(path: Path, *rows: object) -> Path:
    path.write_text(json.dumps(rows, indent=1))
    return path


# ---- the files


def test_three_forms_are_told_apart_by_their_columns(tmp_path: Path) -> None:
    turn: Message = {"role": "user", "content": "Say 0."}
    (pair,) = read_gold(write_list(tmp_path / "one", llmbar())).pairs
    assert (pair.prompt, pair.a, pair.b, pair.gold, pair.source) == ((turn,), "It is 0.", "What?", 1.0, "one")
    assert pair.annotators == ()
    (pair,) = read_gold(write_list(tmp_path / "one", llmbar(label=2))).pairs
    assert pair.gold == 0.0
    (pair,) = read_gold(write_list(tmp_path / "two", pandalm(votes=(2, 2, 0)))).pairs
    assert (pair.prompt, pair.gold, pair.annotators) == ((turn,), 0.0, (0.0, 0.0, 0.5))
    write_rows(tmp_path / "three", [hh(n) for n in range(40)])
    pairs = read_gold(tmp_path / "three").pairs
    assert {(pair.a, pair.gold) for pair in pairs} == {("Like this.", 1.0), ("No.", 0.0)}
    assert 8 < sum(pair.gold for pair in pairs) < 32, "the better one stands now here, now there"


def test_json_lines_a_list_and_gzip_hold_the_same(tmp_path: Path) -> None:
    rows = [pandalm(n, votes=(n % 3, 1, 2)) for n in range(5)]
    write_list(tmp_path / "a.json", *rows)
    write_rows(tmp_path / "b.jsonl", rows)
    (tmp_path / "c.json.gz").write_bytes(gzip.compress((tmp_path / "a.json").read_bytes()))
    (tmp_path / "d.json").write_bytes(b"\xef\xbb\xbf \n" + (tmp_path / "a.json").read_bytes())
    found = [read_gold(tmp_path / name).pairs for name in ("a.json", "b.jsonl", "c.json.gz", "d.json")]
    ids = [[(pair.id, pair.gold) for pair in pairs] for pairs in found]
    assert ids[0] == ids[1] == ids[2] == ids[3] and len(ids[0]) == 5


def test_every_odd_row_is_refused_with_its_place_and_reason(tmp_path: Path) -> None:
    rows: list[object] = [
        llmbar(),
        llmbar(1, label=3),
        llmbar(1, label=True),
        llmbar(1, label="1"),
        llmbar(1, label=[1]),
        llmbar(1, output_1=True),
        llmbar(1, output_2=None),
        llmbar(1, output_2=" \n"),
        llmbar(1, output_2="It is 1. "),
        llmbar(1, input=""),
        llmbar(1, input=7),
        {"input": "x", "label": 1},
        "text",
        llmbar(2, input="Two\n\nlines, {braces} and [[a]].", output_1="\u00e9\n\n\nx"),
        llmbar(2, label=float("nan")),
    ]
    found = read_gold(write_list(tmp_path / "l.json", *rows))
    assert [(one.place, one.reason) for one in found.refused] == [
        ("index 1", "the label is not 1 or 2"),
        ("index 2", "the label is not 1 or 2"),
        ("index 3", "the label is not 1 or 2"),
        ("index 4", "the label is not 1 or 2"),
        ("index 5", "a response is not a text"),
        ("index 6", "a response is not a text"),
        ("index 7", "empty response"),
        ("index 8", "the responses are the same"),
        ("index 9", "empty prompt"),
        ("index 10", "the prompt is not a text"),
        ("index 11", "without 'output_1' and 'output_2'"),
        ("index 12", "not an object"),
        ("index 14", "the label is not 1 or 2"),
    ]
    assert found.pairs[1].prompt[0]["content"] == "Two\n\nlines, {braces} and [[a]]."
    assert len(read_gold(tmp_path / "l.json", limit=1).pairs) == 1


def test_the_odd_rows_of_pandalm(tmp_path: Path) -> None:
    rows = [
        pandalm(0, response1=True),
        pandalm(1, response2=""),
        pandalm(2, votes=(1, 2, 3)),
        pandalm(3, votes=(1, True, 2)),
        pandalm(4, input=None),
        pandalm(5, input="More\ntext."),
        pandalm(6, votes=(1, 2, 0)),
        pandalm(6, votes=(2, 2, 2)),
        pandalm(7, instruction=True, input="More."),
    ]
    found = read_gold(write_list(tmp_path / "p.json", *rows))
    assert Counter(one.reason for one in found.refused) == {
        "a response is not a text": 1,
        "empty response": 1,
        "an annotator's verdict is not 0, 1 or 2": 2,
        "the prompt is not a text": 2,
    }
    joined, split, again = found.pairs
    assert joined.prompt[0]["content"] == "Say 5.\n\nMore\ntext."
    assert (split.gold, share(split)) == (0.5, 1 / 3), "no majority is a tie, and how few said so is kept"
    assert split.id != again.id, "the same two answers, judged again"
    assert (again.gold, share(again)) == (0.0, 1.0)


def test_what_read_hh_refuses_is_refused_here(tmp_path: Path) -> None:
    write_rows(tmp_path / "hh.jsonl", [hh(1), hh(2, rejected="Like this."), {"chosen": "x", "rejected": "y"}, hh(3)])
    found = read_gold(tmp_path / "hh.jsonl")
    assert [(one.place, one.reason) for one in found.refused] == [
        ("line 2", "replies are the same"),
        ("line 3", "not a transcript"),
    ]
    assert len(found.pairs) == 2


def test_a_file_of_something_else_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(InputError, match=r"x\.json: no pairs of a published form: a row has 'goal' \(known are HH"):
        read_gold(write_list(path, {"goal": "x"}))
    with pytest.raises(InputError, match="there is no row in the file"):
        read_gold(write_list(path))
    with pytest.raises(InputError, match="none of 2 rows can be used: empty response: 1; the label is not 1 or 2: 1"):
        read_gold(write_list(path, llmbar(output_1=""), llmbar(label=0)))
    path.write_text('[{"input": 1},\n{]')
    with pytest.raises(InputError, match=r"x\.json:2: not JSON"):
        read_gold(path)
    path.write_bytes(b'["\xff"]')
    with pytest.raises(InputError, match="not UTF-8"):
        read_gold(path)
    for unreadable in ("[" * 100_000, f"[{'7' * 5000}]", f'[{{"input": {"[" * 100_000}'):
        path.write_text(unreadable)
        with pytest.raises(InputError, match=r"x\.json: not JSON that can be read: .*\(one list of rows\)"):
            read_gold(path)
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b"[1, 2, 3]" * 999)[:-9])
    with pytest.raises(InputError, match="the gzip stream is broken"):
        read_gold(tmp_path / "x.json.gz")
    with pytest.raises(InputError, match="there is no such file"):
        read_gold(tmp_path / "nowhere.json")
    write_rows(tmp_path / "hh.jsonl", [hh(1), {"chosen": "x"}])
    with pytest.raises(InputError, match=r"hh\.jsonl:2: no text in 'rejected'"):
        read_gold(tmp_path / "hh.jsonl")


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(_json | st.sampled_from([*llmbar(), *pandalm()]).flatmap(lambda k: st.builds(dict, **{k: _json}))), _json
)
def test_any_list_is_pairs_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object], value: object
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.json"
    write_list(
        path, *rows, *(llmbar(**{name: value}) for name in llmbar()), *(pandalm(**{n: value}) for n in pandalm())
    )
    try:
        found = read_gold(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert len(found.pairs) + len(found.refused) == len(json.loads(path.read_text()))
        assert len({pair.id for pair in found.pairs}) == len(found.pairs)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_a_majority_is_more_than_half(votes: list[float], draw: random.Random) -> None:
    found = majority(votes)
    assert found == majority(draw.sample(votes, len(votes)))
    assert found == 1 - majority([1 - vote for vote in votes])
    assert found == next((one for one in (0.0, 0.5, 1.0) if votes.count(one) > len(votes) / 2), 0.5)


def test_a_swapped_pair_says_the_same() -> None:
    pair = GoldPair(id="x", prompt=(), a="a", b="b", gold=1.0, source="s", annotators=(1.0, 1.0, 0.5))
    assert pair.swapped().gold == 0 and pair.swapped().annotators == (0.0, 0.0, 0.5)
    assert pair.swapped().swapped() == pair


@needs("llmbar")
@pytest.mark.parametrize(
    ("name", "ones", "twos"),
    [("Natural", 42, 58), ("Adversarial__GPTInst", 45, 47), ("Adversarial__Manual", 22, 24)],
)
def test_every_row_of_llmbar_is_used(name: str, ones: int, twos: int) -> None:
    path = DATA / "llmbar" / f"{name}__dataset.json"
    found = read_gold(path)
    assert Counter(pair.gold for pair in found.pairs) == {1.0: ones, 0.0: twos} and not found.refused
    raw = json.loads(path.read_text())
    assert [pair.gold for pair in found.pairs] == [float(row["label"] == 1) for row in raw]
    assert [(pair.a, pair.b) for pair in found.pairs] == [
        (row["output_1"].strip(), row["output_2"].strip()) for row in raw
    ]


@needs("pandalm")
def test_every_row_of_pandalm_is_used_or_refused() -> None:
    path = DATA / "pandalm" / "testset-v1.json.gz"
    found = read_gold(path)
    assert Counter(one.reason for one in found.refused) == {"empty response": 38, "a response is not a text": 6}
    assert [one.place for one in found.refused if one.reason == "a response is not a text"] == [
        f"index {index}" for index in (107, 108, 109, 111, 112, 114)
    ]
    assert Counter(pair.gold for pair in found.pairs) == {0.0: 313, 1.0: 249, 0.5: 93}
    assert Counter(map(share, found.pairs)) == {1.0: 585, 2 / 3: 70}
    assert len({pair.id for pair in found.pairs}) == 655
    # Counted again, without the loader.
    raw = json.loads(gzip.decompress(path.read_bytes()))
    whole = [row for row in raw if all(isinstance(row[n], str) and row[n].strip() for n in ("response1", "response2"))]
    verdicts = [Counter(row[f"annotator{i}"] for i in (1, 2, 3)).most_common(1)[0][0] for row in whole]
    assert Counter(verdicts) == {2: 313, 1: 249, 0: 93}


@needs("hh-rlhf-harmless-base")
def test_every_row_of_the_hh_data_is_used_or_refused() -> None:
    found = read_gold(DATA / "hh-rlhf-harmless-base" / "test.jsonl.gz")
    assert len(found.pairs) == 1608 and 0.45 < fmean(pair.gold for pair in found.pairs) < 0.55
    assert [(one.place, one.reason) for one in found.refused] == [
        ("line 58", "empty reply"),
        ("line 776", "empty reply"),
        ("line 870", "contexts differ"),
        ("line 1176", "contexts differ"),
        ("line 1362", "contexts differ"),
    ]


# ---- accuracy


def gold(number: int, *, better: str = "It is so.", worse: str = "No.", a_better: bool = True, **more: Any) -> GoldPair:
    turn: Message = {"role": "user", "content": f"Question {more.pop('prompt', number)}?"}
    pair = GoldPair(id=f"{number}", prompt=(turn,), a=better, b=worse, gold=1.0, source="test")
    pair = GoldPair(**{**{name: getattr(pair, name) for name in pair.__slots__}, **more})
    return pair if a_better else pair.swapped()


def row_of(pair: GoldPair, p: float) -> GoldRow:
    about: dict[str, Any] = {**asdict(pair), "prompt": list(pair.prompt), "annotators": list(pair.annotators), "p": p}
    about |= {"judge": "x", "way": "score", "principle": None, "order_gap": None, "answer_mass": None}
    return cast(GoldRow, about)


def stage_of(path: Path) -> StageFolder:
    stage = RunFolder(path).stage("06-evaluation")
    assert stage.begin(config={}, inputs={})
    return stage


def lengths(dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
    """A preference model that likes length, 0.1 nats a character."""
    return [len(answer) / 10 for _, answer in dialogues]


def test_a_model_of_length_is_as_good_as_the_baseline(tmp_path: Path) -> None:
    pairs = [gold(i, better="x" * (4 + i % 5), worse="y" * 6, a_better=i % 2 == 0) for i in range(50)]
    rows = score_gold(stage_of(tmp_path), score=lengths, pairs=pairs)
    assert [row["id"] for row in rows] == [pair.id for pair in pairs]
    assert rows[1]["p"] == pytest.approx(1 / (1 + math.exp(-0.1)), abs=1e-6)  # a is the worse one, longer by 1
    measured = measure_gold(rows)
    assert measured.accuracy == measured.longer
    assert measured.accuracy is not None and (measured.accuracy.value, measured.accuracy.n) == (0.4, 50)
    assert measured.shorter is not None and measured.shorter.value == 0.4, "of equal length is wrong for both"
    assert measured.num_undecided == 10


def test_a_model_that_knows_the_gold_has_accuracy_one_and_its_calibration(tmp_path: Path) -> None:
    pairs = [gold(i, better="right", worse="wrong", a_better=i % 2 == 0) for i in range(20)]
    lead = math.log(0.8 / 0.2)
    rows = score_gold(stage_of(tmp_path), score=lambda given: [lead * (a == "right") for _, a in given], pairs=pairs)
    measured = measure_gold(rows)
    assert measured.accuracy is not None and measured.accuracy.value == 1
    assert measured.calibration_error.value == pytest.approx(0.2, abs=1e-6)
    calibrated = [row_of(pair, 0.8) for pair in (*pairs[0:16:2], *pairs[1:4:2])]
    assert measure_gold(calibrated).calibration_error.value == pytest.approx(0, abs=1e-6)


def test_every_pair_is_in_one_bin_once() -> None:
    """0.3 is 0.7 for the other answer; at 0.5 neither is preferred, and half of either side is what comes true."""
    given = [(0.3, 0.0), (0.7, 1.0), (0.7, 0.0), (0.9, 0.5), (0.5, 1.0), (0.5, 0.0), (0.5, 1.0), (0.5, 0.5)]
    measured = measure_gold([row_of(gold(i, gold=label), p) for i, (p, label) in enumerate(given)])
    found = measured.reliability
    assert found.n == measured.calibration_error.n == 8
    bins = [(one.low, one.n, one.outcome.n, round(one.confidence, 9), one.outcome.value) for one in found.bins]
    assert bins == [(0.5, 4, 4, 0.5, 0.5), (0.7, 3, 3, 0.7, 2 / 3), (0.9, 1, 1, 0.9, 0.5)]
    assert found.error == measured.calibration_error.value == pytest.approx((3 * (0.7 - 2 / 3) + 0.4) / 8)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(-4, 4), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 5), st.integers(1, 5)), min_size=1
    )
)
def test_figures_are_those_of_a_preference_models_held_out_pairs(cases: list[tuple[float, float, int, int]]) -> None:
    leads = [round(lead, 2) for lead, *_ in cases]
    pairs = [gold(i, better="x" * a, worse="y" * b, gold=label) for i, (_, label, a, b) in enumerate(cases)]
    found = measure_gold([row_of(pair, 1 / (1 + math.exp(-lead))) for pair, lead in zip(pairs, leads, strict=True)])
    theirs = [
        Pair(id=one.id, prompt=one.prompt, chosen=one.a, rejected=one.b, probability=one.gold, source="x")
        for one in pairs
    ]
    expected = measure(theirs, leads=leads)
    assert found.num_ties == expected.num_ties
    assert expected.calibration_error is not None
    assert found.calibration_error.value == pytest.approx(expected.calibration_error.value, abs=1e-8)
    for ours, other in (
        (found.accuracy, expected.accuracy.get("all")),
        (found.shorter, expected.shorter),
        (found.longer, expected.longer),
    ):
        assert (ours is None) == (other is None)
        assert ours is None or other is None or (ours.value, ours.n) == (pytest.approx(other.value), other.n)


_votes = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=3)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.8]), _votes), min_size=1, max_size=9))
def test_which_answer_is_called_a_changes_no_figure(cases: list[tuple[float, list[float]]]) -> None:
    pairs = [gold(i, gold=majority(votes), annotators=tuple(votes)) for i, (_, votes) in enumerate(cases)]
    ours = measure_gold([row_of(pair, p) for pair, (p, _) in zip(pairs, cases, strict=True)])
    theirs = measure_gold([row_of(pair.swapped(), 1 - p) for pair, (p, _) in zip(pairs, cases, strict=True)])
    assert (ours.accuracy, ours.shorter, ours.longer) == (theirs.accuracy, theirs.shorter, theirs.longer)
    assert (ours.agreement, ours.annotators_agree) == (theirs.agreement, theirs.annotators_agree)
    assert ours.reliability == theirs.reliability and ours.calibration_error == theirs.calibration_error
    assert ours.reliability.n == sum(one.n for one in ours.reliability.bins) == len(cases)


def test_agreement_with_each_annotator_and_among_them() -> None:
    votes = [(1.0, 1.0, 0.0), (1.0, 0.5, 1.0), (0.0, 0.0, 0.0), (0.5, 0.5, 1.0)]
    rows = [row_of(gold(i, gold=majority(one), annotators=one), 0.9) for i, one in enumerate(votes)]
    measured = measure_gold(rows)
    assert measured.accuracy is not None and (measured.accuracy.value, measured.accuracy.n) == (2 / 3, 3)
    assert measured.num_ties == 1
    agreement = [(one.value, one.n) for one in measured.agreement if one is not None]
    assert agreement == [(2 / 3, 3), (0.5, 2), (0.5, 4)]
    # Among them: 1 of 3, 1 of 1, 3 of 3, none of 0.
    assert measured.annotators_agree is not None
    assert (measured.annotators_agree.value, measured.annotators_agree.n) == (5 / 7, 7)


def test_several_pairs_on_one_prompt_are_less_than_as_many_prompts() -> None:
    def width(prompts: int) -> float:
        rows = [row_of(gold(i, prompt=i % prompts), 0.9 if i % 4 < 2 else 0.1) for i in range(40)]
        found = measure_gold(rows).accuracy
        assert found is not None and (found.value, found.n) == (0.5, 40)
        return found.high - found.low

    assert width(4) > width(40)


def test_a_dialogue_that_does_not_fit_is_counted_and_the_rest_is_scored(tmp_path: Path) -> None:
    pairs = [gold(i, better="x" * 99 if i % 5 == 0 else "right") for i in range(40)]

    def score(dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        if any(len(answer) > 50 for _, answer in dialogues):
            raise InputError("a dialogue of 99 tokens", remedy="at most 50")
        return lengths(dialogues)

    stage = stage_of(tmp_path)
    rows = score_gold(stage, score=score, pairs=pairs)
    assert len(rows) == 32
    measured = finish_gold(stage, rows, found=GoldPairs(pairs, []), model="preference-model", seed=0)
    manifest = stage.manifest()
    assert manifest["failures"] == {"context-length": 8}
    assert manifest["counts"] == {"pairs": 40, "scored": 32, "refused": 0}
    assert "99 tokens" in next(read_rows(stage.path / "failures.jsonl"))["text"]
    assert gold_measured_of(manifest["measured"]) == measured
    scores, said = read_json(stage.path / "scores.json"), f"{rows[0]['judge']}, score"
    assert scores == gold_scores(measured, model="preference-model", way=said, seed=0)
    metrics = ["gold_accuracy", "gold_accuracy:shorter", "gold_accuracy:longer", "calibration_error"]
    assert [row["metric"] for row in scores] == metrics
    assert [row["way"] for row in scores] == [said, "words", "words", said]
    with pytest.raises(TooManyFailures, match="context-length: 40"):
        score_gold(stage_of(tmp_path / "x"), score=score, pairs=[gold(i, better="x" * 99) for i in range(40)])


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("both", [False, True])
def test_a_score_that_is_no_number_is_a_failure(tmp_path: Path, odd: float, both: bool) -> None:
    pairs = [gold(i, better=f"right {i}", worse=f"wrong {i}") for i in range(5)]
    strange = {"right 3", "wrong 3"} if both else {"wrong 3"}
    stage = stage_of(tmp_path)
    rows = score_gold(stage, score=lambda given: [odd if a in strange else len(a) for _, a in given], pairs=pairs)
    assert [row["id"] for row in rows] == ["0", "1", "2", "4"]
    finish_gold(stage, rows, found=GoldPairs(pairs, []), model="preference-model", seed=0)
    assert stage.manifest()["failures"] == {"not-a-number": 1}
    (failure,) = read_rows(stage.path / "failures.jsonl")
    assert (failure["id"], failure["where"]) == ("3", "score") and str(odd) in failure["text"]


def test_stopped_and_started_again_only_the_rest_is_scored(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    pairs = [gold(i, better="x" * (i % 7 + 2)) for i in range(100)]
    asked: list[str] = []

    def dying(dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        if asked:
            raise Killed
        asked.extend(answer for _, answer in dialogues)
        return lengths(dialogues)

    def counting(dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        asked.extend(answer for _, answer in dialogues)
        return lengths(dialogues)

    with pytest.raises(Killed):
        score_gold(stage_of(tmp_path / "killed"), score=dying, pairs=pairs)
    rows = score_gold(stage_of(tmp_path / "killed"), score=counting, pairs=pairs)
    assert len(asked) == 200
    assert rows == score_gold(stage_of(tmp_path / "never"), score=lengths, pairs=pairs)


def liking(word: str) -> ScriptedEngine:
    """A judge that says 0.8 for the answer with the word, and 0.1 more for whatever stands first."""

    def choose(request: ChoiceRequest) -> list[float]:
        text = request.prompt[-1]["content"]
        first = text.index("(A)") < text.index(word) < text.index("(B)")
        return [math.log(0.9), math.log(0.1)] if first else [math.log(0.3), math.log(0.7)]

    return ScriptedEngine({}, choose)


async def test_a_judge_is_asked_in_both_orders_under_one_question(tmp_path: Path) -> None:
    pairs = [gold(i, better="right", worse="wrong", a_better=i % 2 == 0) for i in range(10)]
    engine = liking("right")
    judge = GoldJudge(engine=engine, question=HELPFULNESS)
    rows = await judge_gold(stage_of(tmp_path), judge=judge, pairs=pairs, seed=0)
    measured = measure_gold(rows)
    assert measured.accuracy is not None and measured.accuracy.value == 1
    assert {row["p"] for row in rows} == {0.8, 0.2}
    assert measured.order_gap is not None and measured.order_gap.value == pytest.approx(0.2)
    assert measured.answer_mass is not None and measured.answer_mass.value == pytest.approx(1)
    assert measured.calibration_error.value == pytest.approx(0.2, abs=1e-6)
    assert len(engine.requests) == 20 and "more helpful" in str(engine.requests[0].prompt)
    wrong = await judge_gold(
        stage_of(tmp_path / "x"), judge=GoldJudge(engine=liking("wrong"), question=HELPFULNESS), pairs=pairs, seed=0
    )
    assert (found := measure_gold(wrong).accuracy) is not None and found.value == 0


async def test_rows_of_a_judge_are_rounded(tmp_path: Path) -> None:
    """So that the last digits, which the make-up of a batch changes, are in no row."""
    engine = ScriptedEngine({}, lambda request: [math.log(0.9 / 1.4), math.log(0.4 / 1.4)])
    judge = GoldJudge(engine=engine, question=HELPFULNESS)
    (row,) = await judge_gold(stage_of(tmp_path), judge=judge, pairs=[gold(0)], seed=0)
    assert (row["p"], row["order_gap"], row["answer_mass"]) == (0.5, 0.384615, 0.928571)


async def test_a_judge_draws_a_principle_for_each_pair(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text('name: two\nprinciples:\n  - {id: one, comparison: "One?"}\n  - {id: two, comparison: "Two?"}\n')
    judge = GoldJudge(engine=liking("right"), question=Constitution.load(path))
    pairs = [gold(i, better="right", worse="wrong") for i in range(20)]
    rows = await judge_gold(stage_of(tmp_path / "a"), judge=judge, pairs=pairs, seed=0)
    assert {row["principle"] for row in rows} == {"one", "two"}
    again = await judge_gold(stage_of(tmp_path / "b"), judge=judge, pairs=pairs[::-1], seed=0)
    assert again == rows[::-1], "which one depends on the pair alone"


async def test_a_judge_that_cannot_be_read_leaves_pairs_unscored(tmp_path: Path) -> None:
    def say(request: Request) -> str:
        text = request.prompt[-1]["content"]
        if "Question 3?" in text:
            raise EngineError("900 tokens, the context is 512", reason="context-length")
        if "Question 4?" in text:
            return "Both are fine."
        return "(A)" if text.index("(A)") < text.index("right") < text.index("(B)") else "(B)"

    pairs = [gold(i, better="right", worse="wrong") for i in range(6)]
    judge = GoldJudge(engine=ScriptedEngine(say), question=HELPFULNESS, settings=Comparisons(verdicts=2))
    stage = stage_of(tmp_path)
    rows = await judge_gold(stage, judge=judge, pairs=pairs, seed=0)
    assert len(rows) == 4 and {row["way"] for row in rows} == {"sampled"}
    finish_gold(stage, rows, found=GoldPairs(pairs, []), model="scripted", seed=0)
    assert stage.manifest()["failures"] == {"context-length": 1, "unparseable": 1}


def test_nothing_scored_is_no_number() -> None:
    with pytest.raises(ValueError, match="no pair is scored"):
        measure_gold([])
    only_ties = measure_gold([row_of(gold(0, gold=0.5), 0.7)])
    assert (only_ties.accuracy, only_ties.shorter, only_ties.longer, only_ties.num_ties) == (None, None, None, 1)


# ---- the command


def test_wrong_input_is_one_message(tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]) -> None:
    file = write_list(tmp_path / "l.json", llmbar())
    assert_refused(run("accuracy", file), "what is to be measured?", "--pm DIR or --judge MODEL")
    assert_refused(run("accuracy", file, "--pm", "x", "--judge", "y"), "one of them")
    assert_refused(run("accuracy", file, "--pm", "x", "--constitution", "harmless"), "--constitution is for a judge")
    assert_refused(run("accuracy", file, "--pm", "x", "--seed", "0"), "--seed is for a judge", "leave it out")
    both = ["--constitution", "harmless", "--question", "Which?"]
    assert_refused(run("accuracy", file, "--judge", "x", *both), "give one of them")
    model, out = tiny_causal_lm(tmp_path), tmp_path / "out"
    assert_refused(run("accuracy", file, "--pm", model, "--out", out), "not a preference model", "LlamaForCausalLM")
    assert_refused(run("accuracy", file, "--pm", tmp_path, "--out", out), "config.json is missing")
    assert_refused(run("accuracy", file, "--judge", model, "--constitution", "nowhere", "--out", out), "nowhere")
    assert_refused(run("accuracy", file, "--judge", model, "--question", " ", "--out", out), "--question is empty")
    write_list(file, {"goal": "x"})
    assert_refused(run("accuracy", file, "--pm", model), "l.json: no pairs of a published form", "'goal'", "PandaLM")
    assert_refused(run("accuracy", tmp_path / "nowhere.json", "--pm", model), "nowhere.json: there is no such file")


def test_options_are_few() -> None:
    for verb in ("accuracy", "evaluate"):
        options = set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", run(verb, "--help").stdout, flags=re.MULTILINE))
        assert len(options - {"--help"}) <= 8


def test_a_preference_model_and_a_judge_are_measured_on_a_file(
    tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]
) -> None:
    from solon.training import load_sequence_classifier, load_tokenizer

    model, pm = tiny_causal_lm(tmp_path), tmp_path / "pm"
    tokenizer = load_tokenizer(model)
    load_sequence_classifier(model, tokenizer=tokenizer, seed=1).save_pretrained(pm)
    tokenizer.save_pretrained(pm)
    write_json(pm / "solon.json", {"scale": {"mean": 0.3, "std": 0.1, "temperature": 0.01}})
    rows: list[Mapping[str, Any]] = [pandalm(n, votes=(1, 1, n % 3)) for n in range(12)]
    rows += [pandalm(12, response1=True), pandalm(13, response1="word " * 600), pandalm(14, votes=(0, 0, 1))]
    file = write_list(tmp_path / "p.json", *rows)
    command = ["accuracy", file, "--pm", pm, "--out", tmp_path / "by-pm"]
    first = run(*command)
    assert first.exit_code == 0, first.stderr
    for pattern in (
        r"preference model +\d+\.\d % +\d+\.\d to \d+\.\d +12\n",
        r"the shorter answer is better +0\.0 %",
        r"the longer answer is better +100\.0 %",
        r"preference model, by annotator 3 +\d+\.\d % +\S+ to \S+ +9\n",
        r"annotators among themselves",
        r"calibration error +\d\.\d{3} +\d\.\d{3} to \d\.\d{3} +13\n",
        r"ties, left out: 1; undecided, not right: 0",
        r"unscored: context-length: 1",
        r"refused rows: a response is not a text: 1 \(index 12\)",
    ):
        assert re.search(pattern, first.stdout), f"{pattern} not in\n{first.stdout}"
    assert run(*command).stdout == first.stdout
    trained = PreferenceModel.load(pm)
    for row in read_rows(tmp_path / "by-pm" / "06-evaluation" / "gold.jsonl"):
        assert row["p"] == pytest.approx(trained.probability(row["prompt"], row["a"], row["b"]), abs=1e-5)
        raw_a, raw_b = trained.raw_score([(row["prompt"], row[name]) for name in "ab"])
        assert abs(row["p"] - 1 / (1 + math.exp(raw_b - raw_a))) > 1e-3, "its own temperature matters"
    judged = ["accuracy", file, "--judge", model, "--seed", "1", "--out", tmp_path / "by-judge"]
    second = run(*judged)
    assert second.exit_code == 0, second.stderr
    assert re.search(r"judge +\d+\.\d %", second.stdout) and "order gap" in second.stdout
    rows = list(read_rows(tmp_path / "by-judge" / "06-evaluation" / "gold.jsonl"))
    assert {row["principle"] for row in rows} == {"helpfulness-question"} and len(rows) == 13
    changed = run(*judged, "--question", "Which is right?")
    assert changed.exit_code == 2 and "inputs.question" in changed.stderr
