from __future__ import annotations

import inspect
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import GenerationConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from solon.artifact import StageFolder, read_rows
from solon.config import DPO, GRPO, PPO, RLOO, Algorithm, Labels, Lora, Preference, Reinforcement, Supervised
from solon.errors import InputError
from solon.preference import PreferenceModel, train_preference
from solon.reinforcement import ROLLOUTS_FILE, Reward, prompt_order, rollouts_plan, train_dpo, train_rl
from solon.training import (
    RunContext,
    algorithm_settings,
    encode_dialogue,
    load_causal_lm,
    load_tokenizer,
    train_sft,
)
from solon.training.trainers import RolloutGRPO, RolloutRLOO, SoftDPOTrainer, _WaitingForPolicy
from test_preference import WORDS, planted_rows
from test_training import Train, check_killed_run_equals_whole_run, weights

PROMPTS = [
    {"id": str(i), "prompt": [{"role": "user", "content": f"Question {i}?"}], "kind": "red-team"} for i in range(16)
]
TRAINER = {"per_device_train_batch_size": 32, "learning_rate": 2e-3}


class Start(NamedTuple):
    """A policy that answers with any of WORDS, and a preference model that knows their planted rewards."""

    policy: Path
    preference: Path


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, _tiny_model: Path) -> Start:
    folder = tmp_path_factory.mktemp("start")
    rows = [
        {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": word}]}
        for row in PROMPTS
        for word in WORDS
    ]
    trainer = {"per_device_train_batch_size": 16, "learning_rate": 1e-2, "num_train_epochs": 12}
    stage = StageFolder(folder / "policy")
    stage.begin(config={}, inputs={})
    policy = train_sft(rows, model=_tiny_model, stage=stage, config=Supervised(pretrained="x", trainer=trainer)).model
    config = Preference(start="x", holdout=0.2, trainer={**trainer, "num_train_epochs": 10})
    judge = train_preference(planted_rows(16), model=_tiny_model, stage=StageFolder(folder / "judge"), config=config)
    return Start(policy, judge.model)


ALGORITHMS = {
    "rloo": RLOO(beta=0.05, num_generations=4),
    "grpo": GRPO(beta=0.05, num_generations=4),
    "ppo": PPO(beta=0.05),
}
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


def settings(algorithm: Algorithm = ALGORITHMS["rloo"], **trainer: object) -> Reinforcement:
    return Reinforcement(algorithm=algorithm, max_new_tokens=6, trainer={**TRAINER, **trainer})


def rollouts(stage: StageFolder) -> list[dict[str, Any]]:
    return list(read_rows(stage.path / ROLLOUTS_FILE))


def rl_run(start: Start, algorithm: Algorithm = ALGORITHMS["rloo"], **trainer: object) -> Train:
    def train(stage: StageFolder) -> Path:
        return train_rl(
            PROMPTS,
            model=start.policy,
            preference_model=start.preference,
            stage=stage,
            config=settings(algorithm, **trainer),
        ).model

    return train


# ---- the whole loop


@each_algorithm
def test_the_policy_learns_what_the_preference_model_prefers(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str], algorithm: Algorithm
) -> None:
    capfd.readouterr()
    stage = StageFolder(tmp_path / "stage")
    model = rl_run(start, algorithm, max_steps=20)(stage)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    rows = rollouts(stage)
    assert [row["step"] for row in rows] == [step for step in range(1, 21) for _ in range(32)]

    def planted(steps: range) -> float:
        words = [row["completion"][0]["content"] for row in rows if row["step"] in steps]
        return sum(WORDS.get(word, 0.0) for word in words) / len(words)

    assert planted(range(1, 4)) < 0.5
    assert planted(range(18, 21)) > 1.0
    assert weights(model).keys() == weights(start.policy).keys()
    assert (model / "README.md").exists()


@each_algorithm
def test_a_row_adds_up_and_the_first_policy_is_the_reference(
    start: Start, tmp_path: Path, algorithm: Algorithm
) -> None:
    stage = StageFolder(tmp_path / "stage")
    rl_run(start, algorithm, max_steps=3)(stage)
    rows, in_reward = rollouts(stage), 0.0 if algorithm.kind == "grpo" else 0.05
    judge = PreferenceModel.load(start.preference)
    for row in rows[:8]:
        assert judge.score([(row["prompt"], row["completion"][0]["content"])])[0] == pytest.approx(
            row["score"], abs=1e-4
        )
    for row in rows:
        without_penalty = row["score"] - in_reward * row["kl"]
        penalty = 2.0 if row["num_tokens"] == 6 and row["reward"] < without_penalty - 1 else 0.0
        assert row["reward"] == pytest.approx(without_penalty - penalty, abs=1e-5)
    assert max(abs(row["kl"]) for row in rows if row["step"] == 1) < 1e-4
    assert max(abs(row["kl"]) for row in rows if row["step"] == 3) > 1e-3
    logged = {row["step"]: row for row in read_rows(stage.path / "metrics.jsonl") if "kl" in row}
    for step, row in logged.items():
        mine = [one["kl"] for one in rows if one["step"] == step]
        if algorithm.kind == "rloo":  # GRPO logs another estimate of the same divergence, PPO only this one.
            assert row["kl"] * row["completions/mean_length"] == pytest.approx(sum(mine) / len(mine), abs=1e-5)
        assert row["sequence_kl"] == pytest.approx(sum(mine) / len(mine), abs=1e-5)


def test_the_kl_that_comes_with_the_loss_is_the_one_of_a_forward_pass_before_it(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRPO's loss reads the rollouts in parts and in another order."""
    runs = [StageFolder(tmp_path / name) for name in ("with-the-loss", "before-it")]
    train = rl_run(start, ALGORITHMS["grpo"], max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    train(runs[0])
    monkeypatch.setattr(RolloutGRPO, "kl_before_loss", True)
    train(runs[1])
    found, expected = ([(row["kl"], row["completion"], row["step"]) for row in rollouts(stage)] for stage in runs)
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    assert [row[0] for row in found] == pytest.approx([row[0] for row in expected], abs=1e-5)
    assert max(abs(row[0]) for row in found) > 1e-3
    logged = [[row["sequence_kl"] for row in read_rows(one.path / "metrics.jsonl") if "kl" in row] for one in runs]
    assert logged[0] == pytest.approx(logged[1], abs=1e-5)
    assert len(logged[0]) == 3


def test_equal_rollouts_do_not_end_the_wait_before_the_last_is_read() -> None:
    """Else processes would gather at different times, and wait for each other for ever."""
    ids_BP, zeros_BT = torch.tensor([[1, 2], [1, 2], [3, 4], [3, 4]]), torch.zeros(4, 1)
    waiting = _WaitingForPolicy(ids_BP, zeros_BT, [1] * 4, lambda kls: None)
    assert not waiting.read(ids_BP[[2, 0]], torch.tensor([[0.3], [0.1]]))
    assert waiting.read(ids_BP[[1, 3]], torch.tensor([[0.1], [0.3]]))
    assert waiting.policy_BT.flatten().tolist() == pytest.approx([0.1, 0.1, 0.3, 0.3])


@each_algorithm
def test_killed_reinforcement_ends_with_the_same_policy_and_rollouts(
    start: Start, tmp_path: Path, algorithm: Algorithm
) -> None:
    train = rl_run(start, algorithm, max_steps=15, save_steps=2)
    whole, killed = check_killed_run_equals_whole_run(train, tmp_path, seed=3)
    assert rollouts(whole) == rollouts(killed)


def test_a_finished_stage_is_skipped(start: Start, tmp_path: Path) -> None:
    train, stage = rl_run(start, max_steps=2), StageFolder(tmp_path / "stage")
    model = train(stage)
    before = (model / "model.safetensors").stat().st_mtime_ns, rollouts(stage)
    train(StageFolder(stage.path))
    assert ((model / "model.safetensors").stat().st_mtime_ns, rollouts(stage)) == before


@each_algorithm
def test_rollouts_that_are_used_several_times_are_written_once(
    start: Start, tmp_path: Path, algorithm: Algorithm
) -> None:
    stage = StageFolder(tmp_path / "stage")
    rl_run(start, algorithm, max_steps=4, num_iterations=2, per_device_train_batch_size=16)(stage)
    rows = rollouts(stage)
    assert [row["step"] for row in rows] == [1] * 16 + [3] * 16
    assert max(abs(row["kl"]) for row in rows if row["step"] == 1) < 1e-4 < max(abs(row["kl"]) for row in rows)


def test_advantages_are_on_the_scale_of_the_scores_unless_the_recipe_says_otherwise() -> None:
    scaled = Reinforcement.model_validate({"algorithm": {"kind": "grpo", "scale_rewards": "group"}})
    assert [algorithm_settings(one)["scale_rewards"] for one in (Reinforcement(algorithm=GRPO()), scaled)] == [
        "none",
        "group",
    ]


def test_an_algorithm_without_a_kind_is_the_default() -> None:
    assert Reinforcement.model_validate({"algorithm": {"beta": 0.2}}).algorithm == RLOO(beta=0.2)


@pytest.mark.parametrize("algorithm", [{"kind": "ppo2"}, {"kind": "rloo", "scale_rewards": "none"}])
def test_an_algorithm_that_there_is_not_and_a_setting_of_another_one(algorithm: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"ppo2|scale_rewards"):
        Reinforcement.model_validate({"algorithm": algorithm})


def test_another_run_seed_gives_other_rollouts(start: Start, tmp_path: Path) -> None:
    texts: list[list[str]] = []
    for number, seed in enumerate((0, 0, 1)):
        stage = StageFolder(tmp_path / str(number))
        train_rl(
            PROMPTS,
            model=start.policy,
            preference_model=start.preference,
            stage=stage,
            config=settings(max_steps=1),
            run=RunContext(seed=seed),
        )
        texts.append([row["completion"][0]["content"] for row in rollouts(stage)])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_adapters_are_merged_into_the_policy(start: Start, tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "stage")
    config = settings(max_steps=2, learning_rate=1e-2).model_copy(update={"lora": Lora(r=4, alpha=8)})
    trained = train_rl(PROMPTS, model=start.policy, preference_model=start.preference, stage=stage, config=config)
    before, after = weights(start.policy), weights(trained.model)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert max(abs(row["kl"]) for row in rollouts(stage) if row["step"] == 1) < 1e-4


# ---- what does not fit


def test_prompts_without_room_for_an_answer_are_failures(start: Start, tmp_path: Path) -> None:
    long = {"id": "long", "prompt": [{"role": "user", "content": "word " * 600}]}
    stage = StageFolder(tmp_path / "stage")
    trained = train_rl(
        [long, *PROMPTS],
        model=start.policy,
        preference_model=start.preference,
        stage=stage,
        config=settings(max_steps=1),
    )
    assert trained.counts == {"prompts": 17, "trained_prompts": 16, "over_long": 1}
    assert [row["id"] for row in read_rows(stage.path / "failures.jsonl")] == ["long"]


def test_a_checkpoint_inside_a_batch_of_rollouts_is_an_input_error(start: Start, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiple of 2"):
        rl_run(start, max_steps=4, num_iterations=2, save_steps=3)(StageFolder(tmp_path / "odd"))


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 3))
def test_prompts_come_in_shuffles_and_a_longer_run_begins_alike(num_prompts: int, num: int, seed: int) -> None:
    order = prompt_order(num_prompts, num=num, seed=seed)
    assert len(order) == num
    for start in range(0, num - num_prompts + 1, num_prompts):
        assert sorted(order[start : start + num_prompts]) == list(range(num_prompts))
    assert prompt_order(num_prompts, num=num + 5, seed=seed)[:num] == order


def test_an_epoch_uses_every_prompt(start: Start, tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "stage")
    rl_run(start, num_train_epochs=1, per_device_train_batch_size=24)(stage)
    rows = rollouts(stage)
    assert rows[-1]["step"] == 3
    assert {row["prompt"][0]["content"] for row in rows} == {row["prompt"][0]["content"] for row in PROMPTS}


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 100))
def test_checkpoints_fall_between_batches_of_rollouts(
    per_generation: int, iterations: int, accumulation: int, num_prompts: int
) -> None:
    arguments = SimpleNamespace(
        steps_per_generation=per_generation,
        num_iterations=iterations,
        gradient_accumulation_steps=accumulation,
        generation_batch_size=8 * per_generation,
        num_generations=4,
    )
    plan = rollouts_plan(arguments, num_prompts=num_prompts)
    uses = per_generation * iterations
    assert plan.unit * accumulation % uses == 0
    assert all(step * accumulation % uses for step in range(1, plan.unit))
    assert plan.batches % uses == 0


# ---- the reward function


def test_an_answer_without_an_end_token_pays_the_penalty(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "stage")
    reward = Reward(lambda dialogues: [float(len(text)) for _, text in dialogues], config=settings(), stage=stage)
    metrics: dict[str, float] = {}
    reward.trainer = SimpleNamespace(  # type: ignore[assignment]
        eos_token_ids=[1, 7], tell_kl=lambda lengths, then: then([0.0, 0.4, 0.0]), note=metrics.update
    )
    rewards = reward(
        prompts=[[{"role": "user", "content": "x"}]] * 3,
        completions=[[{"role": "assistant", "content": text}] for text in ("a", "bb", "ccc")],
        completion_ids=[[5, 1], [5, 6], [7]],
        trainer_state=SimpleNamespace(global_step=4),
    )
    stage.close()
    assert rewards == [1.0, 0.0, 3.0]
    assert [row["reward"] for row in rollouts(stage)] == pytest.approx([1.0, -0.02, 3.0])
    assert [row["step"] for row in rollouts(stage)] == [5, 5, 5]
    assert metrics == pytest.approx({"score": 2.0, "sequence_kl": 0.4 / 3, "truncated": 1 / 3})


def test_a_policy_that_is_not_its_reference_is_caught_at_the_first_step(tmp_path: Path) -> None:
    reward = Reward(lambda dialogues: [0.0] * len(dialogues), config=settings(), stage=StageFolder(tmp_path / "stage"))
    reward.trainer = SimpleNamespace(eos_token_ids=[1], tell_kl=lambda lengths, then: then([0.1]))  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="not its reference"):
        reward(
            prompts=[[{"role": "user", "content": "x"}]],
            completions=[[{"role": "assistant", "content": "y"}]],
            completion_ids=[[5, 1]],
            trainer_state=SimpleNamespace(global_step=0),
        )


# ---- without a preference model


def direct(labels: Labels = "soft", beta: float = 1.0, **trainer: object) -> Reinforcement:
    base = {"per_device_train_batch_size": 16, "learning_rate": 5e-3, "num_train_epochs": 4}
    return Reinforcement(algorithm=DPO(beta=beta, labels=labels), trainer={**base, **trainer})


def dpo_run(start: Start, config: Reinforcement) -> Train:
    def train(stage: StageFolder) -> Path:
        return train_dpo(planted_rows(16), model=start.policy, stage=stage, config=config).model

    return train


def log_ratios(model: Path, reference: Path) -> dict[str, float]:
    """log pi(word) - log pi_0(word) of each planted word, its end token included, after one of the prompts."""
    tokenizer = load_tokenizer(reference)
    found: dict[str, float] = {}
    for word in WORDS:
        encoded = encode_dialogue(tokenizer, PROMPTS[0]["prompt"], {"role": "assistant", "content": word})
        ids, sums = torch.tensor([encoded.ids]), list[float]()
        for folder in (model, reference):
            with torch.no_grad():
                logits = load_causal_lm(folder, tokenizer=tokenizer)(input_ids=ids).logits.log_softmax(-1)
            read = logits[0, encoded.start - 1 : -1].gather(1, ids[0, encoded.start :, None])
            sums.append(float(read.sum()))
        found[word] = sums[0] - sums[1]
    return found


def test_dpo_with_soft_labels_learns_their_probabilities_and_hard_ones_go_beyond(start: Start, tmp_path: Path) -> None:
    gaps: dict[str, float] = {}
    for labels in ("soft", "hard"):
        model = dpo_run(start, direct(labels))(StageFolder(tmp_path / labels))
        ratio = log_ratios(model, start.policy)
        leads = {(a, b): ratio[a] - ratio[b] for a in WORDS for b in WORDS if WORDS[a] > WORDS[b]}
        assert all(lead > 0 for lead in leads.values())
        gaps[labels] = sum(abs(lead - (WORDS[a] - WORDS[b])) for (a, b), lead in leads.items()) / len(leads)
    assert gaps["soft"] < 0.3 < 1 < gaps["hard"]


def test_dpo_that_was_killed_ends_with_the_same_policy(start: Start, tmp_path: Path) -> None:
    config = direct(num_train_epochs=1, max_steps=12, save_steps=2)
    check_killed_run_equals_whole_run(dpo_run(start, config), tmp_path, seed=5)


def test_dpo_merges_adapters_and_says_which_pairs_do_not_fit(start: Start, tmp_path: Path) -> None:
    stage, long = StageFolder(tmp_path / "stage"), [{"role": "user", "content": "word " * 600}]
    config = direct(max_steps=2).model_copy(update={"lora": Lora(r=4, alpha=8)})
    rows = [*planted_rows(2), {**planted_rows(1)[0], "id": "long", "prompt": long}]
    trained = train_dpo(rows, model=start.policy, stage=stage, config=config)
    assert trained.counts == {"rows": len(rows), "trained_pairs": len(rows) - 1, "over_long": 1}
    assert [(row["id"], row["reason"]) for row in read_rows(stage.path / "failures.jsonl")] == [
        ("long", "context-length")
    ]
    assert weights(start.policy).keys() == weights(trained.model).keys()
    with pytest.raises(InputError, match="none of 1 comparisons"):
        train_dpo(rows[-1:], model=start.policy, stage=StageFolder(tmp_path / "none"), config=config)


def test_dpo_of_sure_labels_is_trls(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[tuple[float, float]] = []

    def both(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        ours = original(self, model, inputs, *args, **kwargs)
        known = {name: value for name, value in inputs.items() if name not in ("p", "margin", "weight")}
        losses.append((ours.item(), DPOTrainer.compute_loss(self, model, known).item()))
        return ours

    original = SoftDPOTrainer.compute_loss
    monkeypatch.setattr(SoftDPOTrainer, "compute_loss", both)
    dpo_run(start, direct("hard", max_steps=3))(StageFolder(tmp_path / "stage"))
    assert len(losses) == 3
    assert [ours for ours, _ in losses] == pytest.approx([theirs for _, theirs in losses], abs=1e-6)
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-6)


def test_the_methods_of_trl_that_dpo_overrides_are_there() -> None:
    overridden = {name for name in vars(SoftDPOTrainer) if name in vars(DPOTrainer) and not name.startswith("__")}
    assert overridden == {"_prepare_dataset", "compute_loss", "compute_ref_log_probs"}
    assert "self._prepare_dataset(train_dataset" in inspect.getsource(DPOTrainer.__init__)
    assert "self.compute_ref_log_probs(model, padded_batch)" in inspect.getsource(DPOTrainer._precompute_ref_logps)


# ---- what we rely on in TRL


@pytest.mark.parametrize(("theirs", "ours"), [(RLOOTrainer, RolloutRLOO), (GRPOTrainer, RolloutGRPO)])
def test_trl_scores_the_policy_and_then_the_reference_before_it_calls_the_reward(theirs: Any, ours: Any) -> None:
    """`tell_kl` reads the results of this method; TRL's own KL is compared above."""
    source = inspect.getsource(theirs._generate_and_score_completions)
    places = [
        source.index(text)
        for text in ("old_per_token_logps, _, _", "ref_per_token_logps, _, _", "self._calculate_rewards(")
    ]
    assert places == sorted(places)
    if theirs is RLOOTrainer:
        assert "per_token_kl = old_per_token_logps - ref_per_token_logps" in source
    added = {name for base in ours.__mro__[: ours.__mro__.index(theirs)] for name in vars(base)}
    assert {name for name in added if name in vars(theirs) and not name.startswith("__")} == {
        "_get_per_token_logps_and_entropies"
    }


def test_the_sampling_is_plain(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GenerationConfig] = []
    original = RLOOTrainer.__init__

    def watch(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        seen.append(self.generation_config)

    monkeypatch.setattr(RLOOTrainer, "__init__", watch)
    rl_run(start, max_steps=1)(StageFolder(tmp_path / "stage"))
    (config,) = seen
    assert (config.do_sample, config.temperature, config.top_p, config.top_k) == (True, 1.0, 1.0, 0)
    assert config.max_new_tokens == 6
