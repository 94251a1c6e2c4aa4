"""Training in two processes gives the losses of one, and only one of them writes; what goes wrong is one message."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import inspect
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from trl.import_utils import is_vllm_available

from solon.artifact import Progress, RunFolder, StageFolder, read_rows, silent
from solon.config import (
    DPO,
    GRPO,
    PPO,
    RLOO,
    Algorithm,
    Launch,
    Preference,
    Recipe,
    Reinforcement,
    Supervised,
    load_recipe,
)
from solon.errors import InputError, StageChanged, TrainingFailed
from solon.held_out_judges import judge_held_out, oracle_held_out
from solon.pipeline import _judge as judge_of
from solon.pipeline import run_recipe
from solon.preference import train_preference
from solon.reinforcement import ROLLOUTS_FILE, online, train_dpo, train_rl
from solon.reinforcement.online import _trainer_at_work as make_trainer
from solon.run import Run
from solon.training import RunContext, train_sft, trainer_config, validate_trainers
from solon.training.launching import LOG_FILE, check_launch, launched, wait_for_leftovers
from test_preference import planted_rows
from test_training import ROWS, weights

ROOT = Path(__file__).parents[1]
RECIPE: dict[str, Any] = {
    "name": "x",
    "model": {"path": "sandbox:helpful"},
    "prompts": {"path": "sandbox"},
    "revisions": {},
    "supervised": {"pretrained": "sandbox:base"},
    "pairs": {},
    "comparisons": {},
    "preference": {},
    "reinforcement": {},
}
TWO = Launch(processes=2)
STEPS = 3
ROWS_A_STEP = 8
"""In all processes together."""

Train = Callable[[StageFolder, RunContext, dict[str, Any]], Path]


@pytest.fixture(autouse=True)
def _children_find_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)]))


# ---- what processes do in these tests


def say_who(progress: Progress, *, folder: Path) -> None:
    from accelerate import PartialState

    state = PartialState()
    facts = [os.environ["WORLD_SIZE"], state.num_processes, state.distributed_type.value, state.backend]
    (folder / f"{state.process_index}").write_text(" ".join(map(str, facts)))
    progress.start("saying who", 2)
    progress.advance()
    progress.advance()
    progress.end()


def refuse(progress: Progress) -> None:
    raise InputError("the rows are wrong", path="rows.jsonl", line=3, remedy="mend them")


def fail_in_the_second(progress: Progress) -> None:
    from accelerate import PartialState

    if PartialState().process_index == 1:
        raise ZeroDivisionError("nothing to divide by")
    PartialState().wait_for_everyone()


def die(progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def last_for_ever(progress: Progress, *, folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(300)


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.events.append(("start", what, total, done))

    def advance(self, n: int = 1) -> None:
        self.events.append(("advance", n))

    def end(self) -> None:
        self.events.append(("end",))


# ---- processes


def test_two_processes_know_each_other_and_one_of_them_tells_how_far_it_is(tmp_path: Path) -> None:
    told = Told()
    launched(partial(say_who, folder=tmp_path), launch=TWO, folder=tmp_path, progress=told)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    expected = "2 2 MULTI_GPU nccl" if torch.cuda.is_available() else "2 2 MULTI_CPU gloo"
    assert found == {"0": expected, "1": expected}
    assert told.events == [("start", "saying who", 2, 0), ("advance", 1), ("advance", 1), ("end",)]


def test_wrong_input_in_all_processes_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        launched(refuse, launch=TWO, folder=tmp_path, progress=silent)
    assert str(caught.value) == "rows.jsonl:3: the rows are wrong (mend them)"


def test_the_first_failure_is_the_message_and_the_log_has_the_rest(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed) as caught:
        launched(fail_in_the_second, launch=TWO, folder=tmp_path, progress=silent)
    message = str(caught.value)
    assert message.startswith("process 2 of 2 failed: ZeroDivisionError: nothing to divide by.")
    assert str(tmp_path / LOG_FILE) in message and "\n" not in message
    assert "Traceback" in (tmp_path / LOG_FILE).read_text()


@pytest.mark.slow
def test_processes_that_die_silently_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"none of them said why.*out of memory"):
        launched(die, launch=TWO, folder=tmp_path, progress=silent)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs accelerate starts what it is asked for")
def test_fewer_processes_than_asked_for_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\n")
    launch = Launch(processes=2, accelerate=str(file))
    with pytest.raises(InputError, match=r"2 processes were asked for and 1 started \(.*launch\.accelerate"):
        launched(partial(say_who, folder=tmp_path), launch=launch, folder=tmp_path, progress=silent)


@pytest.mark.slow
def test_the_children_of_a_killed_process_end(tmp_path: Path) -> None:
    script = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "from solon.artifact import silent; from solon.config import Launch\n"
        "from solon.training.launching import launched; from test_launching import last_for_ever\n"
        "here = Path(sys.argv[1])\n"
        "launched(partial(last_for_ever, folder=here), launch=Launch(processes=2), folder=here, progress=silent)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    try:
        pids = wait_for(lambda: [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()], num=2)
    finally:
        parent.kill()
        parent.wait()
    deadline_s = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline_s, "they outlive the process that started them"
        time.sleep(0.1)


def wait_for(look: Callable[[], list[int]], *, num: int) -> list[int]:
    deadline_s = time.monotonic() + 120
    while len(found := look()) < num:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    return found


# ---- the stages


@contextmanager
def fixed_trainer(*arguments: Any, **options: Any) -> Any:
    """A trainer whose rollouts depend on the prompt and their number in its group alone, not on the process."""

    def generate(prompt_ids: list[list[int]], *rest: Any) -> Any:
        rollouts, number = [], 0
        for index, prompt in enumerate(prompt_ids):
            number = number + 1 if index and prompt == prompt_ids[index - 1] else 0
            draw = random.Random(hashlib.sha256(repr((prompt, number)).encode()).digest())
            words = [draw.randrange(5, 300) for _ in range(draw.randrange(1, 6))]
            rollouts.append([*words, trainer.eos_token_ids[0]])
        return (rollouts, None) if trainer.args.__class__.__name__ == "GRPOConfig" else rollouts

    with make_trainer(*arguments, **options) as trainer:
        trainer._generate_single_turn = generate
        yield trainer


def sft_stage(model: Path, stage: StageFolder, run: RunContext, trainer: dict[str, Any]) -> Path:
    stage.begin(config={}, inputs={})
    return train_sft(ROWS, model=model, stage=stage, config=Supervised(pretrained="x", trainer=trainer), run=run).model


def pm_stage(model: Path, stage: StageFolder, run: RunContext, trainer: dict[str, Any]) -> Path:
    rows = [{**row, "source": "ai" if i % 3 else "human"} for i, row in enumerate(planted_rows(8))]
    config = Preference(start="x", holdout=0.2, trainer=trainer)
    return train_preference(rows, model=model, stage=stage, config=config, run=run).model


def dpo_stage(model: Path, stage: StageFolder, run: RunContext, trainer: dict[str, Any]) -> Path:
    config = Reinforcement(algorithm=DPO(), trainer=trainer)
    return train_dpo(planted_rows(8), model=model, stage=stage, config=config, run=run).model


def rl_stage(
    model: Path, stage: StageFolder, run: RunContext, trainer: dict[str, Any], *, algorithm: Algorithm, judge: Path
) -> Path:
    prompts = [{"id": row["prompt"][0]["content"], "prompt": row["prompt"], "kind": "red-team"} for row in ROWS[:12]]
    config = Reinforcement(algorithm=algorithm, max_new_tokens=8, trainer=trainer)
    return train_rl(prompts, model=model, preference_model=judge, stage=stage, config=config, run=run).model


def in_one_and_two(train: Train, tmp_path: Path) -> list[tuple[StageFolder, dict[str, torch.Tensor]]]:
    found = []
    for launch in (None, TWO):
        processes = launch.processes if launch else 1
        trainer = {
            "max_steps": STEPS,
            "per_device_train_batch_size": ROWS_A_STEP // processes,
            "learning_rate": 1e-3,
            "logging_steps": 1,
        }
        stage = StageFolder(tmp_path / f"{processes}")
        found.append((stage, weights(train(stage, RunContext(launch=launch), trainer))))
    return found


def assert_equal_training(one: Any, two: Any) -> list[dict[str, Any]]:
    """The same log rows and weights; returns the log of the two processes."""
    (stage, tensors), (other, others) = one, two
    rows, logs = (list(read_rows(folder.path / "metrics.jsonl")) for folder in (stage, other))
    assert len(logs) == len(rows) > STEPS, "one process writes"
    for row, log in zip(rows, logs, strict=True):
        assert row.keys() == log.keys()
        for name in row:
            if "time" not in name and "runtime" not in name and "per_second" not in name:
                # A quotient of variances, far from 0 where a value model knows nothing.
                rel = 1e-3 if name == "value/explained_variance" else None
                assert log[name] == pytest.approx(row[name], abs=1e-4, rel=rel), name
    assert tensors.keys() == others.keys()
    moved = max(float((tensors[name] - others[name]).abs().max()) for name in tensors)
    assert moved < 1e-4
    assert sorted(path.name for path in stage.path.iterdir()) == sorted(path.name for path in other.path.iterdir())
    return logs


STAGES = {"sft": sft_stage, "pm": pm_stage, "dpo": dpo_stage}


@pytest.mark.parametrize("name", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pm", "dpo"))])
def test_two_processes_train_as_one(name: str, tiny_causal_lm: Callable[[Path], Path], tmp_path: Path) -> None:
    one, two = in_one_and_two(partial(STAGES[name], tiny_causal_lm(tmp_path)), tmp_path)
    logs = assert_equal_training(one, two)
    losses = [row["loss"] for row in logs if "loss" in row]
    assert len(losses) == STEPS and len(set(losses)) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm", [RLOO(num_generations=4), GRPO(num_generations=4), PPO(num_generations=4)], ids=lambda one: one.kind
)
def test_two_processes_learn_from_the_same_rollouts_as_one(
    algorithm: Algorithm, tiny_causal_lm: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process samples its own rollouts, so that these are fixed; losses, gradients, scores and KL are compared."""
    monkeypatch.setattr(online, "_trainer_at_work", fixed_trainer)
    model = tiny_causal_lm(tmp_path)
    judge = pm_stage(model, StageFolder(tmp_path / "judge"), RunContext(), {"max_steps": 2})
    one, two = in_one_and_two(partial(rl_stage, model, algorithm=algorithm, judge=judge), tmp_path)
    logs = assert_equal_training(one, two)
    steps = [row for row in logs if "loss" in row]
    assert len(steps) == STEPS and all(row["grad_norm"] > 1e-3 for row in steps) and steps[-1]["sequence_kl"] != 0
    rows, others = (list(read_rows(stage.path / ROLLOUTS_FILE)) for stage, _ in (one, two))
    assert len(rows) == STEPS * ROWS_A_STEP
    for row, other in zip(rows, others, strict=True):
        assert {**other, "score": 0, "kl": 0, "reward": 0} == {**row, "score": 0, "kl": 0, "reward": 0}
        assert [other[name] for name in ("score", "kl", "reward")] == pytest.approx(
            [row[name] for name in ("score", "kl", "reward")], abs=1e-4
        )


@pytest.mark.slow
def test_a_recipe_with_a_launch_line_trains_in_two_processes_and_goes_on_where_it_was(tmp_path: Path) -> None:
    short = ["prompts.limit=4", "prompts.helpful_limit=0", "revisions.rounds=1", "supervised.trainer.max_steps=2"]
    short += ["launch.processes=2"]
    recipe = load_recipe(ROOT / "recipes" / "sandbox.yaml", short)

    def run() -> dict[str, Any]:
        asyncio.run(run_recipe(recipe, tmp_path, stages=["01-revisions", "02-sl-cai"]))
        return RunFolder(tmp_path).stage("02-sl-cai").manifest()

    manifest = run()
    assert (manifest["status"], manifest["config"]["launch"]) == ("finished", {"processes": 2})
    assert not (tmp_path / "02-sl-cai" / LOG_FILE).exists()
    assert run() == manifest
    alone = load_recipe(ROOT / "recipes" / "sandbox.yaml", short[:-1])
    with pytest.raises(StageChanged, match=r"config\.launch"):
        asyncio.run(run_recipe(alone, tmp_path, stages=["02-sl-cai"]))


def train_in_two(model: Path, folder: Path) -> None:
    """Eight steps of SL-CAI in two processes, with a checkpoint after each."""
    trainer = {
        "max_steps": 8,
        "per_device_train_batch_size": ROWS_A_STEP // 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 1,
    }
    sft_stage(model, StageFolder(folder), RunContext(launch=TWO), trainer)


def steps_logged(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    # The last line may be half written at this moment.
    return [row["step"] for row in map(json.loads, lines[:-1]) if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_two_processes_that_were_killed_end_as_if_they_had_not_been(
    seed: int, tiny_causal_lm: Callable[[Path], Path], tmp_path: Path
) -> None:
    """SIGKILL to the process that started them, twice, at random moments; each time it is begun again at once."""
    model, moments = tiny_causal_lm(tmp_path), random.Random(seed)
    train_in_two(model, tmp_path / "whole")
    script = (
        "import sys; from pathlib import Path; from test_launching import train_in_two\n"
        "train_in_two(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    folder = tmp_path / "killed"
    for until in (moments.randrange(1, 4), moments.randrange(4, 7)):
        parent = subprocess.Popen([sys.executable, "-c", script, str(model), str(folder)])
        try:
            wait_for(lambda until=until: [step for step in steps_logged(folder) if step >= until], num=1)
            time.sleep(moments.uniform(0, 0.3))
            assert parent.poll() is None, "it was finished before it was killed"
        finally:
            parent.kill()
            parent.wait()
    train_in_two(model, folder)
    found = [weights(path / "model") for path in (tmp_path / "whole", folder)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    logs = [
        [
            {name: value for name, value in row.items() if "time" not in name and "per_second" not in name}
            for row in read_rows(path / "metrics.jsonl")
            if "loss" in row
        ]
        for path in (tmp_path / "whole", folder)
    ]
    assert len(logs[0]) == 8 and logs[1] == logs[0]
    assert not (folder / "checkpoints").exists() and not (folder / LOG_FILE).exists()


def test_processes_that_a_killed_run_left_are_waited_for(tmp_path: Path) -> None:
    """Who prints to the log holds it, as the children of a run that is gone do."""
    with (tmp_path / LOG_FILE).open("wb") as output:
        fcntl.flock(output, fcntl.LOCK_EX)
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(0.5)"], stdout=output)
    began_s = time.monotonic()
    wait_for_leftovers(tmp_path)
    assert child.wait(5) == 0 and time.monotonic() - began_s >= 0.2
    wait_for_leftovers(tmp_path / "where nothing was launched")


# ---- the judge as the reward


def judge_in_main(progress: Progress, *, folder: Path) -> None:
    from accelerate import PartialState

    from solon.training.trainers import asked_in_main

    asked: list[list[str]] = []

    def ask(every: list[str]) -> list[str]:
        asked.append(every)
        return [text.upper() for text in every]

    who = PartialState().process_index
    said, own = asked_in_main([f"{who}a", f"{who}b"], ask)
    (folder / str(who)).write_text(f"{len(asked)} {said[own]}")


@pytest.mark.slow
def test_one_process_asks_the_judge_about_the_rollouts_of_all(tmp_path: Path) -> None:
    launched(partial(judge_in_main, folder=tmp_path), launch=TWO, folder=tmp_path, progress=silent)
    assert (tmp_path / "0").read_text() == "1 ['0A', '0B']"
    assert (tmp_path / "1").read_text() == "0 ['1A', '1B']"


def test_what_a_process_is_given_can_be_sent_to_it() -> None:
    """The judge that rewards, without its gate, and both held-out judges."""
    recipe = load_recipe(ROOT / "recipes" / "sandbox.yaml", ["reinforcement.reward=judge"])
    run = Run(recipe=recipe, folder=RunFolder(ROOT / "runs" / "none"))
    settings = recipe.comparisons
    assert settings is not None
    by_judge = judge_held_out([], every=1, judge=recipe.model, constitution=run.constitution, settings=settings, seed=0)
    for one in (replace(judge_of(run), gate=None), by_judge, oracle_held_out([], every=1)):
        sent = pickle.loads(pickle.dumps(one))
        assert type(sent) is type(one)


def test_a_held_out_judge_is_refused_with_several_processes_before_anything_is_run() -> None:
    more = {"reinforcement": {"held_out": {}}, "launch": {"processes": 2}}
    with pytest.raises(ValidationError, match="held_out: it does not work with several processes"):
        Recipe.model_validate({**RECIPE, **more})


# ---- configuration


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_accelerate_loads_the_files_that_ship(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DistributedType

    path = ROOT / "recipes" / "accelerate" / f"{name}.yaml"
    check_launch(Launch(processes=8, accelerate=str(path)))
    config = load_config_from_file(str(path))
    assert config.distributed_type == {"fsdp2": DistributedType.FSDP, "zero3": DistributedType.DEEPSPEED}[name]
    assert (config.mixed_precision, config.num_machines) == ("bf16", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed_type: FSDP\nfsdp_confg: {}\n", "unknown keys.*fsdp_confg"),
        ("num_processes: 2\n", "distributed_type"),
        ("distributed_type: FSDP\nnum_machines: 4\n", "num_machines is 4"),
        ("just a word\n", "not a configuration of accelerate"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_accelerate_cannot_read_is_found_before_anything_is_trained(
    text: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "accelerate.yaml"
    if text is not None:
        path.write_text(text)
    recipe = Recipe.model_validate({**RECIPE, "launch": {"processes": 2, "accelerate": str(path)}})
    with pytest.raises(InputError, match=rf"(?s)accelerate\.yaml: .*{message}"):
        validate_trainers(recipe)


def test_batches_are_checked_for_all_processes_together() -> None:
    """Two processes with two answers each have the four that a prompt needs; one process has not."""
    trainer = {"per_device_train_batch_size": 2}
    section = {"algorithm": {"num_generations": 4}, "trainer": trainer}
    validate_trainers(Recipe.model_validate({**RECIPE, "reinforcement": section, "launch": {"processes": 2}}))
    with pytest.raises(InputError, match="num_generations"):
        validate_trainers(Recipe.model_validate({**RECIPE, "reinforcement": section}))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rate": "high"}, "learning_rate is 'high' (a number is wanted)"),
        ({"learning_rate": -1e-4}, "learning_rate is -0.0001 (it is 0 or more)"),
        ({"max_steps": 1.5}, "max_steps is 1.5 (a whole number is wanted)"),
        ({"per_device_train_batch_size": True}, "per_device_train_batch_size is True (a whole number is wanted)"),
        ({"disable_dropout": "no"}, "disable_dropout is 'no' (true or false is wanted)"),
    ],
)
def test_a_setting_of_the_wrong_type_is_found_before_anything_is_trained(
    setting: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(f"preference.trainer: {message}")):
        validate_trainers(Recipe.model_validate({**RECIPE, "preference": {"start": "m", "trainer": setting}}))


def test_the_number_of_processes_is_part_of_what_a_stage_was_made_with_and_the_file_is_not() -> None:
    assert RunContext(seed=3).settings == {"seed": 3}
    launch = Launch(processes=2, accelerate="fsdp2.yaml")
    assert RunContext(seed=3, launch=launch).settings == {"seed": 3, "launch": {"processes": 2}}


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_vllm_is_asked_for_by_trls_own_settings_and_missed_before_anything_is_trained(kind: str) -> None:
    trainer = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://localhost:8000"}
    recipe = Recipe.model_validate({**RECIPE, "reinforcement": {"algorithm": {"kind": kind}, "trainer": trainer}})
    with pytest.raises(InputError, match=r"^reinforcement\.trainer: use_vllm.*pip install 'solon\[vllm\]'\)$"):
        validate_trainers(recipe)
    arguments: Any = trainer_config(kind, trainer, folder=Path("x"), seed=0)  # type: ignore[arg-type]
    assert (arguments.vllm_mode, arguments.vllm_server_base_url) == ("server", "http://localhost:8000")


def test_the_extra_asks_for_the_vllm_that_trl_accepts() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        (wanted,) = tomllib.load(file)["project"]["optional-dependencies"]["vllm"]
    accepted = re.findall(r'Version\("(\d+\.\d+)\.0"\)', inspect.getsource(is_vllm_available))
    assert wanted == f"vllm>={accepted[0]},<={accepted[1]}"
