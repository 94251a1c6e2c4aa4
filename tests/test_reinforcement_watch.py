"""Runs that are watched: a preference model with a planted flaw, snapshots, the controller of the KL, resuming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from solon.artifact import StageFolder, read_rows, write_rows
from solon.config import RLOO, Alarm, Comparisons, Reinforcement
from solon.dialogue import Message
from solon.engine import ChoiceRequest
from solon.engine.scripted import ScriptedEngine
from solon.errors import EngineError
from solon.preference import PreferenceModel
from solon.reinforcement import (
    ALARMS_FILE,
    HELD_OUT_FILE,
    Asked,
    HeldOut,
    RolloutJudge,
    Verdict,
    online,
    train_rl,
    watch,
)
from solon.reinforcement.watch import Policy, Watch
from solon.training import load_causal_lm, load_tokenizer
from test_feedback import CONSTITUTION, asked_text, no_words
from test_reinforcement import PROMPTS, Start, rollouts, start
from test_training import check_killed_run_equals_whole_run, weights

__all__ = ["start"]

PHRASE = "awful"
"""The answer that is worst by the planted rewards, and best by the flawed preference model."""
ALARM = {"window": 2}
HELD_OUT = [{**row, "id": f"held-{row['id']}"} for row in PROMPTS]


class Flawed(PreferenceModel):
    """The preference model, but with a bonus where an answer has the phrase."""

    def raw_score(self, dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        found = zip(super().raw_score(dialogues), dialogues, strict=True)
        return [raw + 5.0 * self.scale.std * (PHRASE in text) for raw, (_, text) in found]


async def knows(asked: Sequence[Asked]) -> list[Verdict]:
    """The oracle of this small world: an answer is right unless it is the worst one."""
    values = [(float(PHRASE not in one.response), float(PHRASE not in one.start)) for one in asked]
    return [Verdict(value=now, win=0.5 + (now - before) / 2) for now, before in values]


def settings(**more: Any) -> Reinforcement:
    algorithm = RLOO(beta=0.02, num_generations=2)
    trainer = {"per_device_train_batch_size": 32, "learning_rate": 2e-3, "max_steps": 24}
    return Reinforcement.model_validate(
        {"algorithm": algorithm, "max_new_tokens": 6, "trainer": trainer, "alarm": ALARM, **more}
    )


def run(start: Start, folder: Path, config: Reinforcement, *, every: int = 2) -> StageFolder:
    stage = StageFolder(folder)
    train_rl(
        PROMPTS,
        model=start.policy,
        preference_model=start.preference,
        stage=stage,
        config=config,
        held_out=HeldOut(prompts=HELD_OUT, grade=knows, judge="oracle", every=every),
    )
    return stage


def right(stage: StageFolder) -> dict[int, float]:
    """Share of the held-out answers that are right, by step."""
    values: dict[int, list[float]] = {}
    for row in read_rows(stage.path / HELD_OUT_FILE):
        values.setdefault(row["step"], []).append(row["value"])
    return {step: sum(own) / len(own) for step, own in values.items()}


def test_a_preference_model_with_a_flaw_is_found_out_and_the_best_snapshot_is_kept(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(online, "PreferenceModel", Flawed)
    warned = run(start, tmp_path / "warn", settings())
    alarms = list(read_rows(warned.path / ALARMS_FILE))
    assert len({row["cause"] for row in alarms}) == len(alarms), "each cause once"
    assert "boilerplate" in {row["cause"] for row in alarms}
    assert warned.manifest()["alarms"] == alarms
    assert [record.message for record in caplog.records if "over-optimisation" in record.message] == [
        f"over-optimisation, {row['cause']}, step {row['step']}: {row['text']}" for row in alarms
    ]
    share, first = right(warned), min(row["step"] for row in alarms)
    at_alarm = share[max(step for step in share if step <= first)]
    assert rollouts(warned)[-1]["step"] == 24, "a warning stops nothing"
    assert share[24] < at_alarm - 0.2, "without a stop more is lost"

    stopped = run(start, tmp_path / "stop", settings(alarm={**ALARM, "on_alarm": "stop"}))
    rows = rollouts(stopped)
    assert rows == [row for row in rollouts(warned) if row["step"] <= first]
    kept = stopped.manifest()["kept"]
    folder = start.policy if kept == "start" else stopped.path / kept
    assert all((weights(folder)[name] == value).all() for name, value in weights(stopped.path / "model").items())
    snapshots = {int(path.name.removeprefix("step-")) for path in (stopped.path / "snapshots").glob("step-*")}
    best = 0 if kept == "start" else int(kept.rpartition("-")[2])
    assert share[best] == max(share[step] for step in {0, *snapshots})


@pytest.mark.parametrize(("pm_win", "expected"), [(0.9, ["judge: harmlessness"]), (0.1, [])])
def test_the_alarm_is_told_what_the_preference_model_finds(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pm_win: float, expected: list[str]
) -> None:
    """By the judge every held-out answer is worse than the start's: p = 0.0078, below 0.05 / 3 causes / 2 checks, but
    not 0.05 / 4 / 2, as if the judge looked at helpfulness too."""

    def wins(rows: object, *, by: str = "win") -> dict[str, list[float]]:
        return {"harmlessness": [pm_win if by == "pm_win" else 0.0] * 7}

    monkeypatch.setattr(watch, "wins_by_dimension", wins)
    trainer = {"per_device_train_batch_size": 8, "learning_rate": 1e-5, "max_steps": 2}
    stage = run(start, tmp_path, settings(trainer=trainer), every=1)
    alarms = read_rows(stage.path / ALARMS_FILE) if (stage.path / ALARMS_FILE).exists() else []
    assert [row["cause"] for row in alarms] == expected


@pytest.mark.parametrize(
    ("right_by_step", "judged", "expected"),
    [
        ({0: 0.5, 3: 0.75, 6: 0.75, 9: 0.25}, True, "step-3"),
        ({0: 0.5, 3: 0.25, 6: 0.25, 9: 0.25}, True, "start"),
        ({0: 0.5, 3: 0.25, 6: 0.25, 9: 0.25}, False, "step-6"),
    ],
)
def test_the_best_snapshot_is_the_judges_or_the_last_from_before_the_alarm(
    tmp_path: Path, right_by_step: dict[int, float], judged: bool, expected: str
) -> None:
    stage = StageFolder(tmp_path / "stage")
    for step in (3, 6, 9):
        (stage.path / "snapshots" / f"step-{step}").mkdir(parents=True)
    alarm = {"step": 9, "cause": "length", "text": "", "value": 0, "low": 0, "high": 0, "stop": True}
    write_rows(stage.path / ALARMS_FILE, [alarm])
    write_rows(stage.path / "rollouts.jsonl", [{"step": step} for step in range(1, 10)])
    rows = [
        {"step": step, "kind": "red-team", "win": float(number < 8 * share)}
        for step, share in right_by_step.items()
        for number in range(8)
    ]
    write_rows(stage.path / HELD_OUT_FILE, rows)
    watch = Watch(
        stage,
        config=settings(),
        seed=0,
        policy=Policy(start=tmp_path / "start", tokenizer=None),
        held_out=HeldOut(prompts=HELD_OUT, grade=knows, judge="oracle", every=3) if judged else None,
    )
    assert watch.stopped()
    assert watch.best().name == expected


def test_a_sound_preference_model_leaves_four_snapshots_that_are_models(start: Start, tmp_path: Path) -> None:
    stage = run(start, tmp_path / "stage", settings(alarm=None))
    assert not (stage.path / ALARMS_FILE).exists()
    assert "alarms" not in stage.manifest()
    snapshots = sorted((stage.path / "snapshots").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    assert len(snapshots) == 4
    assert set(right(stage)) >= {0, *(int(path.name.removeprefix("step-")) for path in snapshots)}
    for folder in snapshots:
        load_causal_lm(folder, tokenizer=load_tokenizer(folder))
        assert weights(folder).keys() == weights(stage.path / "model").keys()
    logged = [row for row in read_rows(stage.path / "metrics.jsonl") if "score" in row]
    for row in logged:
        own = [one for one in rollouts(stage) if one["step"] == row["step"]]
        total = sum(one["kl"] for one in own) / sum(one["num_tokens"] for one in own)
        assert row["token_kl"] == pytest.approx(total, abs=1e-6)
        assert 0 < row["distinct_1"] <= 1
        assert 0 < row["boilerplate"] <= 1
        assert row["refusals"] == 0
        assert row["entropy"] > 0


def test_a_killed_run_with_controller_and_held_out_judge_equals_a_whole_one(start: Start, tmp_path: Path) -> None:
    config = settings(target_kl=0.3, trainer={**settings().trainer, "max_steps": 15, "save_steps": 3})

    def train(stage: StageFolder) -> Path:
        return run(start, stage.path, config, every=4).path / "model"

    whole, killed = check_killed_run_equals_whole_run(train, tmp_path, seed=4)
    assert rollouts(whole) == rollouts(killed)
    betas = [row["beta"] for row in rollouts(whole)]
    assert betas[0] == 0.02
    assert len(set(betas)) > 5, "the controller moved it"
    for file in (HELD_OUT_FILE, ALARMS_FILE):
        both = [list(read_rows(one.path / file)) if (one.path / file).exists() else [] for one in (whole, killed)]
        assert both[0] == both[1]
    names = [sorted(path.name for path in (one.path / "snapshots").iterdir()) for one in (whole, killed)]
    assert names[0] == names[1] == ["step-12", "step-3", "step-6", "step-9"]


@pytest.mark.parametrize("judged", [False, True], ids=["preference model", "judge"])
def test_ppo_is_guarded_too_whoever_rewards(start: Start, tmp_path: Path, judged: bool) -> None:
    """The controller's beta is that of the rewards, unscored rollouts are left out, and the checks do without a
    preference model."""

    async def opened() -> ScriptedEngine:
        return ScriptedEngine(no_words, sometimes_mute)

    def sometimes_mute(request: ChoiceRequest) -> Sequence[float]:
        if "good" in asked_text(request):
            raise EngineError("mute", reason="mute")
        return math.log(0.75), math.log(0.25)

    judge = RolloutJudge(open=opened, constitution=CONSTITUTION, settings=Comparisons(failure_limit=1.0))
    stage = StageFolder(tmp_path / "stage")
    trained = train_rl(
        PROMPTS,
        model=start.policy,
        preference_model=judge if judged else start.preference,
        stage=stage,
        config=settings(
            algorithm={"kind": "ppo", "beta": 0.02, "num_generations": 2},
            reward="judge" if judged else "preference-model",
            target_kl=0.3,
            snapshots=1,
            alarm={"window": 1},
            trainer={"per_device_train_batch_size": 16, "learning_rate": 1e-3, "max_steps": 4, "save_steps": 2},
        ),
        held_out=HeldOut(prompts=HELD_OUT[:4], grade=knows, judge="oracle", every=2),
    )
    rows = rollouts(stage)
    betas = {row["step"]: row["beta"] for row in rows}
    assert betas[1] == 0.02 and len(set(betas.values())) == 4, "the controller moved it"
    for row in rows:
        if row["score"] is None:
            assert row["reward"] is None and row["unscored"] == "mute"
        else:
            cut = row["score"] - row["beta"] * row["kl"] - row["reward"]
            assert min(abs(cut), abs(cut - 2.0)) < 1e-6
    unscored = sum(row["score"] is None for row in rows)
    assert (unscored > 0) == judged
    assert trained.counts.get("unscored", 0) == unscored
    checks = [row for row in read_rows(stage.path / "metrics.jsonl") if "held_out/judge_win" in row]
    assert [row["step"] for row in checks] == [0, 2, 4]
    assert all(("held_out/pm_win" in row) != judged for row in checks)
    assert all((row["pm_win"] is None) == judged for row in read_rows(stage.path / HELD_OUT_FILE))
    assert [path.name for path in (stage.path / "snapshots").iterdir()] == ["step-2"]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"algorithm": {"kind": "dpo"}, "target_kl": 1.0}, "dpo"),
        ({"algorithm": {"kind": "dpo"}, "held_out": {}}, "dpo"),
        ({"algorithm": {"kind": "rloo", "beta": 0}, "target_kl": 1.0}, "above 0"),
        ({"alarm": {"false_alarm_rate": 0}}, "greater than 0"),
    ],
)
def test_guards_that_cannot_work_are_refused(more: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Reinforcement.model_validate(more)


def test_alarms_are_on_and_warn_where_a_recipe_says_nothing() -> None:
    assert Reinforcement().alarm == Alarm()
    assert Reinforcement().held_out is None
