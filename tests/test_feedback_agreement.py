"""Two judges of the same pairs, and what one leans to: against closed forms, and by what swapping must change."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from typer.testing import CliRunner

from solon.artifact import read_json, write_rows
from solon.cli import app
from solon.engine.scripted import ScriptedEngine
from solon.errors import InputError
from solon.feedback import FeedbackRow, PairRow, judge_agreement, judge_bias, read_labels
from solon.stats import clustered_interval, proportion_interval
from test_feedback import BAD, GOOD, labelled, no_words, pair, prefers
from test_supervised import rows_of


def row(
    n: int,
    p_a: float,
    *,
    a: str = "A longer answer.",
    b: str = "A reply.",
    judge: str = "one",
    by: tuple[str, str] | None = None,
    principles: dict[str, float] | None = None,
    prompt: int | None = None,
    gap: float | None = 0.1,
) -> FeedbackRow:
    """A label; `principles` are p(a) by principle."""
    a_is_chosen = p_a >= 0.5
    by_principle = {name: p if a_is_chosen else 1 - p for name, p in (principles or {}).items()}
    about: dict[str, Any] = {
        "id": f"p{n:03}/1",
        "prompt_id": f"p{n if prompt is None else prompt}",
        "prompt": [{"role": "user", "content": f"Question {n}?"}],
        "chosen": [{"role": "assistant", "content": a if a_is_chosen else b}],
        "rejected": [{"role": "assistant", "content": b if a_is_chosen else a}],
        "probability": max(p_a, 1 - p_a),
        "a_is_chosen": a_is_chosen,
        "judge": judge,
        "order_gap": gap,
        "principles": list(by_principle),
        "p_by_principle": by_principle,
    }
    return cast(FeedbackRow, about | ({"a_by": by[0], "b_by": by[1]} if by else {}))


def turned(one: FeedbackRow) -> FeedbackRow:
    """The label of the same pair with its answers swapped."""
    about: dict[str, Any] = dict(one)
    if about["probability"] == 0.5:
        about["chosen"], about["rejected"] = about["rejected"], about["chosen"]
    else:
        about["a_is_chosen"] = not about["a_is_chosen"]
    if "a_by" in about:
        about["a_by"], about["b_by"] = about["b_by"], about["a_by"]
    return cast(FeedbackRow, about)


# ---- one judge


def test_shares_are_of_the_labels_that_decide_and_ties_are_counted_apart() -> None:
    rows = [row(0, 0.9), row(1, 0.6), row(2, 0.2), row(3, 0.5), row(4, 0.7, a="same", b="size", gap=None)]
    found = judge_bias(rows)
    assert (found.judge, found.num_labels, found.num_ties) == ("one", 5, 1)
    assert found.a_chosen == proportion_interval(3, n=4)
    assert found.longer == proportion_interval(2, n=3), "one pair has answers of the same length"
    assert found.own is None
    assert found.order_gap is not None and found.order_gap.n == 4
    assert found.order_gap.value == pytest.approx(0.1)


def test_the_longer_answer_is_meant_wherever_it_stands() -> None:
    always = [row(n, 0.9) if n % 2 else row(n, 0.1, a="short", b="longer answer") for n in range(8)]
    assert judge_bias(always).longer == proportion_interval(8, n=8)
    assert judge_bias([turned(one) for one in always]).longer == proportion_interval(8, n=8)
    assert judge_bias(always).a_chosen == proportion_interval(4, n=8)


def test_self_preference_is_measured_where_the_judge_wrote_one_of_the_two() -> None:
    rows = [
        row(0, 0.9, by=("one", "other")),
        row(1, 0.9, by=("other", "one")),
        row(2, 0.2, by=("other", "one")),
        row(3, 0.9, by=("one", "one")),
        row(4, 0.9, by=("other", "third")),
        row(5, 0.5, by=("one", "other")),
        row(6, 0.9),
    ]
    assert judge_bias(rows).own == proportion_interval(2, n=3)
    assert judge_bias([turned(one) for one in rows]).own == proportion_interval(2, n=3)


def test_pairs_of_one_prompt_count_as_alike() -> None:
    rows = [row(n, 0.9 if n < 8 else 0.1, prompt=n // 4) for n in range(16)]
    found = judge_bias(rows)
    assert found.a_chosen == clustered_interval([1.0] * 8 + [0.0] * 8, clusters=[n // 4 for n in range(16)])
    alone = judge_bias([row(n, 0.9 if n < 8 else 0.1) for n in range(16)])
    assert found.a_chosen is not None and alone.a_chosen is not None
    assert found.a_chosen.high - found.a_chosen.low > alone.a_chosen.high - alone.a_chosen.low


async def test_the_writers_of_answers_stay_on_the_rows_of_the_labeller(tmp_path: Path) -> None:
    pairs: list[PairRow] = [
        {**pair(n, a=a, b=b), "a_by": by_a, "b_by": by_b}
        for n, (a, b, by_a, by_b) in enumerate(
            [(GOOD, BAD, "scripted", "m"), (BAD, GOOD, "m", "scripted"), (GOOD, BAD, "m", "scripted")]
        )
    ]
    stage = await labelled(tmp_path, ScriptedEngine(no_words, prefers(GOOD)), pairs)
    rows = cast(list[FeedbackRow], rows_of(stage, "comparisons.jsonl"))
    assert judge_bias(rows).own == proportion_interval(2, n=3)
    assert judge_bias(read_labels(stage.path / "comparisons.jsonl")) == judge_bias(rows)


# ---- two judges


def test_agreement_kappa_and_difference_are_their_closed_forms() -> None:
    """Both a 20, both b 15, first alone 5, second alone 10: Cohen's own arithmetic."""
    p = [(0.9, 0.8)] * 20 + [(0.1, 0.2)] * 15 + [(0.9, 0.3)] * 5 + [(0.4, 0.6)] * 10 + [(0.5, 0.9), (0.5, 0.5)]
    rows = [row(n, first) for n, (first, _) in enumerate(p)]
    others = [row(n, second, judge="two") for n, (_, second) in enumerate(p)]
    found = judge_agreement([*rows, row(100, 0.9)], [*others, row(101, 0.9), row(102, 0.9)])
    assert found.judges == ("one", "one, two") and found.num_pairs == 52 and found.num_alone == (1, 2)
    assert found.num_ties == 2 and found.agreement == proportion_interval(35, n=50)
    assert found.kappa is not None and found.kappa.value == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert found.kappa.n == 50 and found.kappa.low < 0.4 < found.kappa.high
    mean = (20 * 0.1 + 15 * 0.1 + 5 * 0.6 + 10 * 0.2 + 0.4 + 0) / 52
    assert found.difference.value == pytest.approx(mean) and found.difference.n == 52
    assert found.difference.low < mean < found.difference.high


def test_a_judge_agrees_with_itself_and_never_with_its_opposite() -> None:
    rows = [row(n, 0.9 if n % 3 else 0.2) for n in range(30)]
    opposite = [row(n, 0.1 if n % 3 else 0.8) for n in range(30)]
    same, other = judge_agreement(rows, rows), judge_agreement(rows, opposite)
    assert same.agreement == proportion_interval(30, n=30) and same.kappa is not None
    assert (same.kappa.value, same.kappa.low, same.kappa.high) == pytest.approx((1, 1, 1))
    assert same.difference.value == 0
    assert other.agreement == proportion_interval(0, n=30)
    assert other.kappa is not None and other.kappa.value < 0


def test_two_judges_that_always_choose_one_place_have_no_kappa() -> None:
    rows = [row(n, 0.9) for n in range(6)]
    found = judge_agreement(rows, rows)
    assert found.kappa is None and found.agreement == proportion_interval(6, n=6)


def test_a_coin_has_a_kappa_of_about_nought() -> None:
    draw = Random(5)
    rows, others = ([row(n, 0.9 if draw.random() < 0.8 else 0.1) for n in range(1500)] for _ in range(2))
    found = judge_agreement(rows, others)
    assert found.agreement is not None and found.agreement.value > 0.6, "high by chance alone"
    assert found.kappa is not None and found.kappa.contains(0.0) and abs(found.kappa.value) < 0.08


probabilities = st.sampled_from([0.1, 0.25, 0.5, 0.6, 0.9])
labels = st.lists(st.tuples(probabilities, probabilities, st.integers(0, 2)), min_size=1, max_size=8)


@hypothesis(max_examples=15)
@given(labels, st.randoms(use_true_random=False))
def test_what_swapping_judges_answers_and_rows_must_change(
    given_p: list[tuple[float, float, int]], draw: Random
) -> None:
    writers = [("one", "two"), ("two", "one"), ("three", "one")]
    rows = [row(n, p, by=writers[by], principles={"r": p}) for n, (p, _, by) in enumerate(given_p)]
    others = [row(n, q, by=writers[by], principles={"r": q}, judge="two") for n, (_, q, by) in enumerate(given_p)]
    found, swapped = judge_agreement(rows, others), judge_agreement(others, rows)
    assert (swapped.agreement, swapped.difference, swapped.num_ties) == (
        found.agreement,
        found.difference,
        found.num_ties,
    )
    assert swapped.own == found.own[::-1] and swapped.by_principle == found.by_principle
    assert (swapped.kappa is None) == (found.kappa is None)
    if found.kappa is not None and swapped.kappa is not None:
        assert swapped.kappa.value == pytest.approx(found.kappa.value)
    if found.longer is not None and swapped.longer is not None:
        assert swapped.longer.value == pytest.approx(-found.longer.value)
        assert (swapped.longer.low, swapped.longer.high) == pytest.approx((-found.longer.high, -found.longer.low))
    shuffled = draw.sample(rows, k=len(rows))
    assert judge_agreement(shuffled, others[::-1]) == found
    one_turned = judge_agreement(rows, [turned(one) for one in others])
    assert one_turned.agreement == found.agreement and one_turned.own == found.own
    assert one_turned.by_principle == found.by_principle
    assert one_turned.difference.value == pytest.approx(found.difference.value)
    # Some pairs of either file with their answers swapped, and either file first.
    mixed, others_mixed = ([turned(one) if draw.random() < 0.5 else one for one in each] for each in (rows, others))
    there, back = judge_agreement(mixed, others_mixed), judge_agreement(others_mixed, mixed)
    assert there.kappa == found.kappa and back.kappa == swapped.kappa
    assert (there.agreement, there.own, there.by_principle) == (found.agreement, found.own, found.by_principle)


def test_kappa_is_the_same_whichever_file_comes_first_and_is_turned() -> None:
    """Both a 4, neither 4, one alone 1 and 3: turned as a whole or in part, the counts are of the same answers."""
    p = [(0.9, 0.8)] * 4 + [(0.1, 0.2)] * 4 + [(0.9, 0.3)] + [(0.4, 0.6)] * 3
    rows = [row(n, first) for n, (first, _) in enumerate(p)]
    others = [row(n, second, judge="two") for n, (_, second) in enumerate(p)]
    found = judge_agreement(rows, others).kappa
    by_chance = (5 * 7 + 7 * 5) / 144
    assert found is not None and found.value == pytest.approx((8 / 12 - by_chance) / (1 - by_chance))
    half = [turned(one) if n % 3 else one for n, one in enumerate(rows)]
    for first, second in ((half, others), (half, [turned(one) for one in others])):
        for one, other in ((first, second), (second, first)):
            again = judge_agreement(one, other).kappa
            assert again is not None and again.value == pytest.approx(found.value)


def test_two_equal_answers_are_not_turned() -> None:
    found = judge_agreement([row(0, 0.9, a="same", b="same")], [row(0, 0.8, a="same", b="same")])
    assert found.agreement is not None and found.agreement.value == 1
    assert found.difference.value == pytest.approx(0.1)


def test_the_agreement_under_a_principle_is_of_its_own_probabilities() -> None:
    rows = [row(0, 0.9, principles={"r": 0.9, "s": 0.4}), row(1, 0.2, principles={"r": 0.2, "s": 0.9})]
    others = [row(0, 0.2, principles={"r": 0.8, "s": 0.3}), row(1, 0.9, principles={"r": 0.9, "t": 0.9})]
    found = judge_agreement(rows, others).by_principle
    assert found == {"r": proportion_interval(1, n=2), "s": proportion_interval(1, n=1)}


def test_the_pairs_on_which_they_differ_most_come_first() -> None:
    rows = [row(n, 0.9) for n in range(14)]
    others = [row(n, 0.9 - 0.05 * n) for n in range(14)]
    found = judge_agreement(rows, others).most_different
    assert [one.id for one in found] == [f"p{n:03}/1" for n in range(13, 3, -1)]
    assert found[0].prompt == [{"role": "user", "content": "Question 13?"}]
    assert found[0].p_a == pytest.approx((0.9, 0.25))


def test_two_judges_are_compared_on_the_same_pairs_for_what_they_lean_to() -> None:
    """The first always chooses its own answer, which is the longer; the second chooses it in half."""
    rows = [row(n, 0.9, by=("one", "m")) for n in range(40)]
    others = [row(n, 0.9 if n % 2 else 0.1, by=("one", "m"), judge="two") for n in range(40)]
    found = judge_agreement(rows, others)
    assert found.longer is not None and found.longer.value == pytest.approx(0.5) and found.longer.n == 40
    assert found.longer.low > 0.3
    own, others_own = found.own
    assert own is not None and own.value == pytest.approx(0.5) and own.low > 0.3
    assert others_own is None, "the second wrote none of the answers"


def test_files_of_other_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="no pair in common"):
        judge_agreement([row(0, 0.9)], [row(1, 0.9)])
    with pytest.raises(InputError, match="'p000/1' has other answers in the two files"):
        judge_agreement([row(0, 0.9)], [row(0, 0.9, a="Another answer.")])


# ---- files and the command


def test_rows_that_are_no_labels_are_refused_together(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    good = dict(row(0, 0.9))
    bad = [
        {**good, "probability": 2},
        {**good, "id": 3},
        {**good, "id": "x", "a_is_chosen": 1},
        {**good, "id": "y", "chosen": "text"},
        {key: value for key, value in good.items() if key != "judge"},
        good,
        {**good, "id": "z1", "judge": ["one"]},
        {**good, "id": "z2", "judge": None},
        {**good, "id": "z3", "order_gap": "0.1"},
        {**good, "id": "z4", "order_gap": True},
        {**good, "id": "z5", "p_by_principle": [0.9]},
        {**good, "id": "z6", "p_by_principle": {"r": None}},
        {**good, "id": "z7", "p_by_principle": {"r": 0.5, "s": "0.5"}},
        {**good, "id": "z8", "p_by_principle": {"r": 2}},
    ]
    write_rows(path, [good, *bad])
    with pytest.raises(InputError) as raised:
        read_labels(path)
    assert [line.split(":")[1] for line in str(raised.value).splitlines()] == [str(2 + n) for n in range(len(bad))]
    for words in ("judge is ['one']", "order_gap is '0.1'", "p_by_principle has 's': '0.5'", "p_by_principle is [0.9]"):
        assert words in str(raised.value)
    for odd in ('"order_gap": NaN', '"order_gap": Infinity', '"p_by_principle": {"r": NaN}', '"judge": {}'):
        path.write_text(json.dumps(good)[:-1] + f", {odd}}}\n")
        with pytest.raises(InputError, match=r"labels\.jsonl:1: "):
            read_labels(path)
    bare = {key: value for key, value in good.items() if key not in ("order_gap", "p_by_principle", "principles")}
    write_rows(path, [bare, {**good, "id": "x", "order_gap": None, "p_by_principle": None}])
    assert judge_bias(read_labels(path)).order_gap is None
    write_rows(path, [])
    with pytest.raises(InputError, match="no label in the file"):
        read_labels(path)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_the_command_shows_a_table_or_writes_all_of_it(tmp_path: Path) -> None:
    first, second, out = tmp_path / "one.jsonl", tmp_path / "two.jsonl", tmp_path / "out" / "agree.json"
    prompt = [{"role": "user", "content": "Question\x1b[31m?"}]
    write_rows(first, [{**row(n, 0.9 if n % 3 else 0.2), "prompt": prompt} for n in range(12)])
    write_rows(second, [row(n, 0.8 if n % 4 else 0.3, judge="two") for n in range(12)])
    code, text = run("agree", str(first))
    assert code == 0 and "one: 12 labels, 0 ties" in text and "together" not in text
    code, text = run("agree", str(first), str(second))
    assert code == 0 and "\x1b" not in text and all(len(line) <= 120 for line in text.splitlines())
    for words in ("two: 12 labels", "together: 12 pairs", "agreement", "Cohen's kappa", "where they differ most"):
        assert words in text
    code, text = run("agree", str(first), str(second), "--out", str(out))
    assert code == 0 and text.strip() == str(out)
    found = read_json(out)
    assert [one["judge"] for one in found["judges"]] == ["one", "two"]
    share = judge_agreement(read_labels(first), read_labels(second)).agreement
    assert share is not None and found["agreement"]["agreement"]["value"] == share.value
    code, _ = run("agree", str(first), "--out", str(out))
    assert code == 0 and json.loads(out.read_text())["agreement"] is None
    code, text = run("agree", str(tmp_path / "nowhere.jsonl"))
    assert code == 2 and "there is no such file" in text


def test_the_command_s_options_are_few() -> None:
    for verb, listed in (("agree", ["--out"]), ("compare", ["--reasoning-samples", "--few-shot"])):
        code, text = run(verb, "--help")
        assert code == 0 and all(option in text for option in listed)
    assert "--no-gate" in text, "of compare: named in its description"
