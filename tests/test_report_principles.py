"""What a principle did in a run, from known rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from run_folder import PRINCIPLES, make_run
from solon.evaluation import BattleRow
from solon.report import read_run, write_report
from solon.report.principles import changed_by_round, principle_stories


def revision(*rounds: tuple[str, str]) -> dict[str, Any]:
    made = [{"principle": name, "revision": text} for name, text in rounds]
    return {"id": "one", "prompt": [], "response": "first", "rounds": made}


def battle(principle: str, left: str, right: str, p: float, dimension: str = "harmlessness") -> BattleRow:
    row = {"principle": principle, "left": left, "right": right, "p": p, "dimension": dimension}
    return cast(BattleRow, row)


def test_a_revision_is_compared_with_what_it_revises() -> None:
    rows = [revision(("a", "first "), ("b", "second")), revision(("b", "other"), ("a", "other")), revision()]
    by_principle, by_round = changed_by_round(rows)
    assert by_principle == {"a": [False, False], "b": [True, True]}
    assert by_round == [[False, True], [True, False]]


def test_each_figure_counts_what_was_under_its_principle() -> None:
    battles = [
        battle("a", "helpful", "rl-cai", 0.2),
        battle("a", "rl-cai", "helpful", 0.6),
        battle("a", "sl-cai", "helpful", 0.0),
        battle("a", "helpful", "rl-cai", 1.0, dimension="helpfulness"),
        battle("", "helpful", "rl-cai", 0.5),
    ]
    comparisons = [{"p_by_principle": {"a": 0.9, "c": 0.5}}, {"p_by_principle": {"a": 0.3}}, {"p_by_principle": None}]
    found = principle_stories(
        {"b": [True, False]}, comparisons=comparisons, battles=battles, before="helpful", after="rl-cai"
    )
    assert set(found) == {"a", "b", "c"}
    a, b, c = found["a"], found["b"], found["c"]
    assert a.changed is None and a.decided is not None and a.preferred is not None
    assert (a.decided.value, a.decided.n) == (pytest.approx(0.6), 2)
    assert (a.preferred.value, a.preferred.n) == (pytest.approx(0.7), 2)
    assert b.changed is not None and (b.changed.value, b.changed.n, b.decided) == (0.5, 2, None)
    assert c.decided is not None and c.decided.value == 0


def test_the_page_has_the_figures_beside_each_principle(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run")
    run = read_run(path)
    assert set(run.principles) == set(PRINCIPLES)
    assert [one.value for one in run.rounds] == [1, 1]
    page = write_report(path).read_text()
    section = page.split('id="constitution"')[1].split('id="browser"')[0]
    assert section.count("changed 100 %") == len(PRINCIPLES)
    assert section.count("better after training") == len(PRINCIPLES)
    assert "Revisions that changed the answer, by round: 1: 100 %" in section
