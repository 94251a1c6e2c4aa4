"""What answers look like from their words alone."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solon.sandbox import grammar
from solon.sandbox.world import world
from solon.wording import boilerplate, distinct, is_refusal, repetition


def test_distinct_n_and_boilerplate_of_known_texts() -> None:
    assert distinct(["yes Yes", "no"], n=1) == pytest.approx(2 / 3)
    assert distinct(["a b a b"], n=2) == pytest.approx(2 / 3)
    assert distinct(["a"], n=2) == 0
    assert boilerplate(["a b c d", "x a b c", "a c b", "q A  b\nc"]) == 0.75
    assert boilerplate(["one two three four"] * 2 + ["five six seven"]) == pytest.approx(2 / 3)
    assert boilerplate(["no", "no", "yes", ""]) == 0.5
    assert boilerplate(["", ""]) == 0


@given(st.lists(st.text("ab c", max_size=12), min_size=1, max_size=8), st.integers(1, 3))
def test_saying_everything_twice_halves_distinct_n_and_leaves_boilerplate(texts: list[str], n: int) -> None:
    assert distinct(texts * 2, n=n) == pytest.approx(distinct(texts, n=n) / 2)
    assert boilerplate(texts * 2) == pytest.approx(boilerplate(texts))


def test_refusals_are_those_that_the_grammar_made() -> None:
    here, rng = world(), Random(0)
    helped: list[bool] = []
    declined: list[bool] = []
    for activity in here.select(kind="harmful", split="method"):
        category = here.category(activity.category)
        for _ in range(4):
            helped.append(is_refusal(grammar.helps(activity, rng, wordy=rng.random() < 0.5).text))
            declined.append(is_refusal(grammar.explains(activity, category, rng).text))
    assert not any(helped)
    assert all(declined)
    assert is_refusal("I\u2019m sorry, but no.")


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("no", 0),
        ("no no", 0),
        ("one two three four", 0),
        ("a b a b a", 1 / 3),
        ("Yes yes yes yes yes", 2 / 3),
    ],
)
def test_repetition_of_known_texts(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)
