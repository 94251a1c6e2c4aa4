"""Which held-out judge a recipe gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from solon.artifact import RunFolder
from solon.config import load_recipe, shipped_recipe
from solon.held_out_judges import held_out_of
from solon.run import Run, fingerprint


@pytest.mark.parametrize("oracle", ["auto", "off"])
def test_the_oracle_where_the_prompts_are_the_sandboxs_else_the_judge_of_the_evaluation(
    oracle: str, tmp_path: Path
) -> None:
    recipe = load_recipe(shipped_recipe("sandbox"), [f"reinforcement.held_out={{oracle: {oracle}, every: 7}}"])
    run = Run(recipe=recipe, folder=RunFolder(tmp_path))
    found = held_out_of(run, [])
    assert found is not None and found.every == 7
    assert found.judge == ("oracle" if oracle == "auto" else fingerprint(run.evaluation_judge))


def test_none_where_the_recipe_asks_for_none(tmp_path: Path) -> None:
    run = Run(recipe=load_recipe(shipped_recipe("sandbox")), folder=RunFolder(tmp_path))
    assert held_out_of(run, []) is None
