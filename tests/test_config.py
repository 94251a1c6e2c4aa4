"""Recipes load, `--set` changes them, and everything that is wrong is told at once with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from solon.config import (
    RLOO,
    Comparisons,
    Recipe,
    Reinforcement,
    Revisions,
    Supervised,
    load_recipe,
    outcome_settings,
    shipped_recipe,
)
from solon.engine import LocalEngineConfig, ServerEngineConfig
from solon.errors import InputError

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))

MINIMAL = """\
name: small
model: {path: some/folder}
prompts:
  path: prompts.jsonl
revisions:
  rounds: 2
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """The lines of the error, without the folder of the recipe."""
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def ways_to_run(path: Path) -> list[list[str]]:
    """The --set flags that the comment at a recipe's head asks for; text between lines of flags parts alternatives."""
    head = [line for line in path.read_text().split("\nname:")[0].splitlines() if line.startswith("#")]
    ways: list[list[str]] = [[]]
    for line, before in zip(head, ["", *head], strict=False):
        flags = re.findall(r"--set (\S+=\S+)", line)
        if flags and ways[-1] and "--set" not in before:
            ways.append([])
        ways[-1] += flags
    return ways


# ---- the recipes that come with solon


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_as_its_comment_says(path: Path) -> None:
    for flags in ways_to_run(path):
        recipe = load_recipe(path, flags)
        assert recipe.name == path.stem
        assert Recipe.model_validate(recipe.resolved()) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_in_its_first_line_what_it_is(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert re.fullmatch(r"# [A-Z].{40,117}", first)


def test_the_head_of_the_real_recipe_names_both_kinds_of_engine() -> None:
    path = shipped_recipe("hh-revise")
    kinds = [type(load_recipe(path, flags).model) for flags in ways_to_run(path)]
    assert kinds == [LocalEngineConfig, ServerEngineConfig]


def test_the_demo_runs_every_stage_and_the_real_one_trains_nothing() -> None:
    demo = load_recipe(shipped_recipe("sandbox"))
    for stage in ("revisions", "supervised", "pairs", "comparisons", "preference", "reinforcement", "evaluation"):
        assert getattr(demo, stage) is not None
    real = load_recipe(shipped_recipe("hh-revise"), ["model.path=x", "prompts.path=y"])
    assert (real.supervised, real.preference, real.reinforcement) == (None, None, None)
    assert real.revisions is not None
    assert real.revisions.sampling.max_new_tokens == 64


def test_the_numbers_of_the_paper() -> None:
    path = shipped_recipe("paper-2022")
    (flags,) = ways_to_run(path)
    recipe = load_recipe(path, flags)
    assert recipe.revisions is not None
    assert recipe.supervised is not None
    assert recipe.comparisons is not None
    assert recipe.reinforcement is not None
    assert (recipe.prompts.limit, recipe.prompts.helpful_limit) == (182_831, 135_296)
    assert (recipe.revisions.rounds, recipe.revisions.sampling.temperature) == (4, 1.0)
    assert (recipe.supervised.start, recipe.supervised.helpful_samples) == ("pretrained", 2)
    trainer = recipe.supervised.trainer
    assert trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] * 8 == 1024
    assert recipe.comparisons.clamp == (0.4, 0.6)
    assert recipe.reinforcement.algorithm.beta == 0.001
    assert recipe.reinforcement.max_new_tokens == 128


def test_no_recipe_of_that_name_comes_with_solon() -> None:
    with pytest.raises(InputError, match="no recipe 'absent' comes with solon"):
        shipped_recipe("absent")


def test_settings_that_do_not_go_together_are_named_by_their_section() -> None:
    with pytest.raises(InputError, match=r":\d+: model: `dtype: int8` is for CPUs and not for 'cuda'"):
        load_recipe(shipped_recipe("sandbox"), ["model.dtype=int8", "model.device=cuda"])


# ---- defaults


def test_defaults_are_the_papers() -> None:
    assert Revisions().rounds == 4
    assert Revisions().sampling.temperature == 1.0
    assert Supervised().start == "pretrained"
    assert Supervised().helpful_samples == 2
    assert Comparisons().principles == 1
    assert Comparisons().clamp == (0.4, 0.6)
    assert Reinforcement().algorithm == RLOO()


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    from solon.config.load import _sections_in

    inner = [section for field in model.model_fields.values() for section in _sections_in(field.annotation)]
    return [model, *(deeper for section in inner for deeper in sections(section))]


def test_every_section_is_frozen_and_refuses_unknown_keys() -> None:
    for section in sections(Recipe):
        assert section.model_config.get("frozen") is True
        assert section.model_config.get("extra") == "forbid"


# ---- --set


def test_set_changes_makes_and_removes(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL + "pairs: {}\n")
    recipe = load_recipe(
        path,
        [
            "revisions.sampling.max_new_tokens=7",
            "supervised.pretrained=sandbox:base",
            "supervised.trainer.learning_rate=1e-5",
            "pairs=null",
            "seed=3",
            "seed=4",
        ],
    )
    assert recipe.revisions is not None
    assert recipe.supervised is not None
    assert recipe.revisions.rounds == 2
    assert recipe.revisions.sampling.max_new_tokens == 7
    assert recipe.supervised.pretrained == "sandbox:base"
    assert recipe.supervised.trainer == {"learning_rate": 1e-5}
    assert recipe.pairs is None
    assert recipe.seed == 4


def test_a_new_kind_starts_its_section_afresh_wherever_the_flag_stands(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    flags = ["model.url=http://localhost:8000/v1", "model.model=m", "model.kind=server"]
    assert load_recipe(path, flags).model == ServerEngineConfig(url="http://localhost:8000/v1", model="m")
    assert load_recipe(path, ["model.kind=local"]).model == LocalEngineConfig(path="some/folder")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("nothing", "--set nothing: not of the form a.b=value"),
        (".=1", "--set .=1: not of the form a.b=value"),
        ("seed=[1", "--set seed=[1: the value is not YAML (put it in quotes)"),
        ("name.x=1", "--set name.x=1: name is not a section but 'small'"),
        ("seed=a", "--set seed: input should be a valid integer, unable to parse string as an integer, not 'a'"),
        (
            "revisions.sampling.top_k=1",
            "--set revisions.sampling.top_k: there is no such setting (do you mean 'top_p'?)",
        ),
        ("revision.rounds=1", "--set revision: there is no such setting (do you mean 'revisions'?)"),
        ("model.kind=vlm", "--set model.kind: there is no kind 'vlm' (known: 'local', 'server', 'vllm', 'ray')"),
        ("model.kind=server", "model.url: it is missing (write it, or give --set model.url=VALUE)"),
        ("model=gpt", "--set model: a section of settings is wanted, not 'gpt' (as in model.path=VALUE)"),
    ],
)
def test_an_error_in_a_flag_names_the_flag(tmp_path: Path, flag: str, message: str) -> None:
    found = problems(written(tmp_path, MINIMAL), flag)
    assert any(line.endswith(message) for line in found), found


# ---- errors


def test_every_error_at_once_with_its_line(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
name: bad name
model: {path: x, max_batch: 0}
prompt: sandbox
prompts:
  path: sandbox
  path: sandbox
revisions:
  round: 2
  sampling:
    temperature: hot
reinforcement:
  beta: 1
supervised: {}
""",
    )
    assert sorted(problems(path), key=lambda line: int(line.split(":")[1])) == [
        "recipe.yaml:1: name: string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', not 'bad name'",
        "recipe.yaml:2: model.max_batch: input should be greater than or equal to 1, not 0",
        "recipe.yaml:3: prompt: there is no such setting (do you mean 'prompts'?)",
        "recipe.yaml:6: path: the key stands there twice",
        "recipe.yaml:8: revisions.round: there is no such setting (do you mean 'rounds'?)",
        "recipe.yaml:10: revisions.sampling.temperature: input should be a valid number, "
        "unable to parse string as a number, not 'hot'",
        "recipe.yaml:11: reinforcement: the reward is a preference model, but there is no `preference` section",
        "recipe.yaml:12: reinforcement.beta: there is no such setting "
        "(known here: algorithm, reward, iterations, iterate_from, prompts, max_new_tokens, truncation_penalty, "
        "trainer, lora, target_kl, held_out, alarm, snapshots)",
        "recipe.yaml:13: supervised.start: 'pretrained' needs supervised.pretrained, a model folder",
    ]


def test_a_section_that_is_none_is_not_called_missing_too(tmp_path: Path) -> None:
    (said,) = problems(written(tmp_path, MINIMAL + "supervised: {start: assistant}\n"), "revisions=3")
    assert "revisions: a section of settings is wanted, not 3" in said


def test_what_is_missing_is_named_with_the_flag_that_gives_it(tmp_path: Path) -> None:
    assert problems(written(tmp_path, "name: x\nprompts:\n  limit: 3\n")) == [
        "recipe.yaml: model: it is missing (write it, or give --set model.path=VALUE)",
        "recipe.yaml:2: prompts.path: it is missing (write it, or give --set prompts.path=VALUE)",
    ]


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        ("comparisons: {}", ["comparisons: it judges pairs, but there is no `pairs` section"]),
        ("preference: {start: x}", ["preference: it needs a `comparisons` section or preference.helpful"]),
        (
            "preference: {helpful: oracle}",
            [
                "preference.start: 'sl-cai' needs a `supervised` section; or name a model folder",
                "preference.helpful: the oracle knows the sandbox alone; prompts.path is not 'sandbox'",
            ],
        ),
        (
            "reinforcement: {}",
            [
                "reinforcement: the policy starts as SL-CAI, but there is no `supervised` section",
                "reinforcement: the reward is a preference model, but there is no `preference` section",
            ],
        ),
        (
            "reinforcement: {algorithm: {kind: dpo}}",
            [
                "reinforcement: the policy starts as SL-CAI, but there is no `supervised` section",
                "reinforcement: 'dpo' trains on comparisons, but there is no `comparisons` section",
            ],
        ),
        (
            "reinforcement: {reward: judge}",
            [
                "reinforcement: the policy starts as SL-CAI, but there is no `supervised` section",
                "reinforcement.reward: the judge is that of `comparisons`, but there is no such section",
            ],
        ),
        (
            "reinforcement: {iterations: 2}\nsupervised: {start: assistant}\npreference: {helpful: x.jsonl}",
            ["reinforcement.iterations: labels are renewed, but there is no `pairs` or no `comparisons` section"],
        ),
        (
            "reinforcement: {iterations: 2, reward: judge}\nsupervised: {start: assistant}\ncomparisons: {}",
            ["reinforcement: iterations: a judge that rewards has no labels to renew; leave them out"],
        ),
        (
            "reinforcement: {algorithm: {kind: ppo}, reward: judge}",
            [
                "reinforcement: reward: the judge compares answers to the same prompt; "
                "algorithm.num_generations must be 2 or more"
            ],
        ),
        (
            "evaluation: {prompts: x, models: [base, sl-cai, rl-cai]}",
            [
                "evaluation.models: this recipe makes no 'sl-cai'",
                "evaluation.models: this recipe makes no 'rl-cai'",
                "evaluation.models: 'base' needs supervised.pretrained, a model folder",
            ],
        ),
        ("evaluation: {}", ["evaluation.prompts: give a file of prompts that the method does not use"]),
        ("comparisons: {clamp: [0.6, 0.4]}", ["comparisons: clamp: the bounds must be in order and in [0, 1]"]),
    ],
)
def test_a_stage_that_lacks_another_is_an_error_when_the_recipe_is_loaded(
    tmp_path: Path, more: str, messages: list[str]
) -> None:
    found = problems(written(tmp_path, MINIMAL + more + "\n"))
    assert [line for line in found if line.split(":", 2)[2].strip() in messages] == [
        f"recipe.yaml:7: {message}" for message in messages
    ]


def test_a_servers_weights_are_not_trained(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL + "supervised: {start: assistant}\n")
    assert load_recipe(path).supervised is not None
    (found,) = problems(path, "model.kind=server", "model.url=u", "model.model=m")
    assert "'assistant' needs a model folder" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", r"recipe\.yaml:2: not YAML"),
        ("a:\n\t- 1\n", r"recipe\.yaml:2: not YAML"),
        ("- 1\n", r"recipe\.yaml: a recipe is a mapping of settings"),
        ("", r"recipe\.yaml: a recipe is a mapping of settings"),
        ("a: !!python/object:os.system {}\n", r"recipe\.yaml:1: not YAML"),
        ("a: 1\n---\nb: 2\n", r"recipe\.yaml:2: not YAML"),
        ("a: \x00\n", r"recipe\.yaml: not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(written(tmp_path, text))


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(InputError, match="there is no such recipe"):
            load_recipe(path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_a_plain_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-.5e-1", -0.05),
        ("3.", 3.0),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("7", 7),
    ],
)
def test_plain_scalars_are_what_a_reader_takes_them_for(tmp_path: Path, text: str, value: object) -> None:
    path = written(tmp_path, MINIMAL + f"supervised: {{pretrained: x, trainer: {{key: {text}}}}}\n")
    supervised = load_recipe(path).supervised
    assert supervised is not None
    assert supervised.trainer["key"] == value
    assert type(supervised.trainer["key"]) is type(value)


def test_the_oracle_can_be_off(tmp_path: Path) -> None:
    evaluation = load_recipe(
        written(tmp_path, MINIMAL + "evaluation:\n  prompts: other.jsonl\n  oracle: off\n")
    ).evaluation
    assert evaluation is not None
    assert evaluation.oracle == "off"


def test_a_recipe_made_in_python_is_checked_like_a_file() -> None:
    with pytest.raises(ValidationError, match="it judges pairs"):
        Recipe.model_validate({"name": "x", "model": {"path": "m"}, "prompts": {"path": "p"}, "comparisons": {}})


# ---- what decides the outcome


def test_how_the_work_is_done_is_not_part_of_what_comes_out(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL + "pairs: {}\ncomparisons: {judge: {kind: server, url: u, model: m}}\n")
    recipe = load_recipe(path)
    same = load_recipe(path, ["comparisons.judge.url=v", "comparisons.judge.retries=1", "comparisons.window=2"])
    other = load_recipe(path, ["comparisons.judge.model=n"])
    assert recipe.comparisons != same.comparisons
    assert outcome_settings(recipe.comparisons) == outcome_settings(same.comparisons)
    assert outcome_settings(recipe.comparisons) != outcome_settings(other.comparisons)
    assert outcome_settings(None) == {}
