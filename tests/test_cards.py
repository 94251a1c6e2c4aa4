"""Cards of models and data sets: what stands in them, and that the Hub's own reader takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

from run_folder import make_run
from solon.config import load_recipe, shipped_recipe
from solon.report import write_cards
from solon.report.cards import deviations


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = make_run(tmp_path_factory.mktemp("cards") / "run", prompts=4)
    return {path.stem: path.read_text() for path in write_cards(run)}


def test_every_model_and_every_file_of_rows_has_one(cards: dict[str, str]) -> None:
    assert list(cards) == ["revisions", "sl-cai", "comparisons", "preference-model", "rl-cai"]


def test_a_model_card_has_results_judge_constitution_and_labels_of_people(cards: dict[str, str]) -> None:
    text = cards["rl-cai"]
    assert ModelCard(text).data.to_dict() == {"library_name": "transformers", "tags": ["solon", "constitutional-ai"]}
    assert "| harmful_compliance | 4.0 % | 0.0 to 10.0 | 240 | oracle |" in text
    assert "| elo_harmlessness | +143 | +119 to +167 | 400 | scripted, logprobs |" in text
    assert "| its gate | accuracy 0.520 (0.460 to 0.580), n = 100 |" in text
    assert "| constitution | small, version 3 |" in text and "| labels of people: harmlessness | 0 |" in text
    assert "harmful_compliance" not in cards["preference-model"]


def test_a_data_card_names_its_file_and_what_is_not_in_it(cards: dict[str, str]) -> None:
    data = DatasetCard(cards["comparisons"]).data.to_dict()
    assert data["configs"] == [{"config_name": "default", "data_files": "comparisons.jsonl"}]
    assert "| file | 03-comparisons/comparisons.jsonl |" in cards["comparisons"]
    assert "| unscored or failed | empty 1 |" in cards["revisions"]


def test_texts_of_models_and_data_end_no_cell_and_begin_no_tag(tmp_path: Path) -> None:
    hostile = "<script>window.hit = 1</script>|x\n# y"
    run = make_run(tmp_path / "run", prompts=4, hostile=hostile)
    for path in write_cards(run):
        text = path.read_text()
        assert "<script" not in text and "\n# y" not in text


def test_a_recipe_says_what_it_does_otherwise_than_the_paper() -> None:
    told = deviations(load_recipe(shipped_recipe("sandbox")))
    assert "RLOO in place of PPO (13)" in told and "SL-CAI starts from the assistant (22)" in told
    flags = ["comparisons.principles=4", "reinforcement.iterations=2", "preference.labels=hard"]
    more = deviations(load_recipe(shipped_recipe("sandbox"), flags))
    assert set(more) - set(told) == {
        "4 principles a pair, averaged (8)",
        "hard labels (23)",
        "trained 2 times, labels renewed (section 6.1)",
    }
    flags = ["model.path=m", "prompts.path=p", "comparisons.judge.path=j", "supervised.pretrained=b"]
    paper = load_recipe(shipped_recipe("paper-2022"), [*flags, "evaluation.prompts=e"])
    assert deviations(paper) == [
        "no comparisons of helpfulness (10)",
        "RLOO in place of PPO (13)",
        "an answer that is cut loses score (16)",
    ]
