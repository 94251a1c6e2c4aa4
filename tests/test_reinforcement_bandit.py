"""A bandit: answers of one token. By the real trainers, what can be said of it in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from conftest import CHAT_TEMPLATE
from solon.artifact import StageFolder, read_rows, write_json
from solon.config import GRPO, PPO, RLOO, Algorithm, Comparisons, Reinforcement
from solon.dialogue import Message
from solon.engine import ChoiceRequest
from solon.engine.scripted import ScriptedEngine
from solon.errors import EngineError, InputError
from solon.preference import PreferenceModel
from solon.reinforcement import ROLLOUTS_FILE, Reward, RolloutJudge, train_rl
from solon.reinforcement.critic import start_critic
from solon.reinforcement.online import _trainer  # pyright: ignore[reportPrivateUsage]
from solon.training import (
    RunContext,
    encode_dialogue,
    encode_prompt,
    load_causal_lm,
    load_tokenizer,
    quiet,
    run_trainer,
)
from solon.training.ppo import RolloutPPO
from solon.training.trainers import RolloutTrainer
from test_feedback import CONSTITUTION, asked_text, no_words

ARMS = {"a": -1.0, "b": -0.6, "c": -0.2, "d": 0.2, "e": 0.6, "f": 1.0}
"""Answers and their scores; any other token is an empty answer and scores 0."""
PROMPT: list[Message] = [{"role": "user", "content": "a"}]
BETA, GROUP = 0.8, 8
SHARE = (GROUP - 1) / GROUP
"""GRPO's baseline holds the rollout itself: its advantages are smaller by this than the leads of the rewards."""
ALGORITHMS = {
    "ppo": PPO(beta=BETA),
    "rloo": RLOO(beta=BETA, num_generations=GROUP),
    "grpo": GRPO(beta=BETA, num_generations=GROUP),
}
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


@pytest.fixture(scope="module")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy over 11 tokens, far from uniform, and beside it a preference model of the same shape, also random."""
    folder = tmp_path_factory.mktemp("bandit")
    words = ["<pad>", "<eos>", "<|user|>", "<|assistant|>", "<unk>", *ARMS]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:5])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.2,
        num_labels=1,
    )
    for name, architecture in (("policy", LlamaForCausalLM), ("preference", LlamaForSequenceClassification)):
        architecture(config).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    write_json(folder / "preference" / "solon.json", {"scale": {"mean": 0.3, "std": 0.5, "temperature": 1.0}})
    return folder


def score(dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
    return [ARMS.get(text, 0.0) for _, text in dialogues]


def trainer_of(
    bandit: Path,
    algorithm: Algorithm,
    stage: StageFolder,
    *,
    score: Callable[[Sequence[tuple[Sequence[Message], str]]], list[float]] = score,
    **trainer: object,
) -> RolloutTrainer:
    tokenizer = load_tokenizer(bandit / "policy", padding_side="left")
    usual = {"max_steps": 60, "per_device_train_batch_size": 128, "learning_rate": 2e-2, "lr_scheduler_type": "linear"}
    config = Reinforcement(algorithm=algorithm, max_new_tokens=1, truncation_penalty=0.0, trainer={**usual, **trainer})
    reward = Reward(score, config=config, stage=stage)
    with quiet():
        made = _trainer([PROMPT], start=bandit / "policy", reward=reward, tokenizer=tokenizer, config=config, seed=0)
        if isinstance(algorithm, PPO):
            assert isinstance(made, RolloutPPO)
            made.set_critic(
                start_critic(bandit / "preference", policy=bandit / "policy", tokenizer=tokenizer, settings=algorithm)
            )
    return made


# ---- the optimum


def probabilities(model: Path) -> Tensor:
    """Of every token of the vocabulary, as the answer."""
    tokenizer = load_tokenizer(model)
    ids = torch.tensor([encode_prompt(tokenizer, PROMPT)])
    with torch.no_grad():
        return load_causal_lm(model, tokenizer=tokenizer)(input_ids=ids).logits[0, -1].softmax(-1)


def reverse_kl_optimum(reference: Tensor, scores: Tensor, *, beta: float) -> Tensor:
    """Where E r - beta KL(pi || pi_0) is greatest: pi in proportion to pi_0 exp(r / beta)."""
    return (reference.log() + scores / beta).softmax(-1)


def forward_kl_optimum(reference: Tensor, scores: Tensor, *, beta: float) -> Tensor:
    """Where E r - beta KL(pi_0 || pi) is greatest: pi = beta pi_0 / (level - r), the level such that it sums to 1."""
    low, high = scores.max(), scores.max() + beta
    for _ in range(60):
        level = (low + high) / 2
        low, high = (level, high) if (beta * reference / (level - scores)).sum() > 1 else (low, level)
    return beta * reference / (high - scores)


def total_variation(p: Tensor, q: Tensor) -> float:
    return (p - q).abs().sum().item() / 2


@pytest.mark.parametrize(
    ("kind", "trainer", "optimum"),
    [
        ("ppo", {}, lambda p, r: reverse_kl_optimum(p, r, beta=BETA)),
        ("rloo", {}, lambda p, r: reverse_kl_optimum(p, r, beta=BETA)),
        ("grpo", {}, lambda p, r: reverse_kl_optimum(p, SHARE * r, beta=BETA)),
        # As in Shao et al. 2024: the gradient of their estimate at fixed samples is that of the other divergence.
        ("grpo", {"use_bias_correction_kl": False}, lambda p, r: forward_kl_optimum(p, SHARE * r, beta=BETA)),
    ],
    ids=["ppo", "rloo", "grpo", "grpo-without-correction"],
)
def test_the_policy_reaches_the_optimum_under_the_kl_penalty(
    bandit: Path,
    tmp_path: Path,
    kind: str,
    trainer: dict[str, object],
    optimum: Callable[[Tensor, Tensor], Tensor],
) -> None:
    tokenizer, start = load_tokenizer(bandit / "policy"), probabilities(bandit / "policy")
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], skip_special_tokens=True)
    best = optimum(start, torch.tensor([ARMS.get(text, 0.0) for text in texts]))
    assert total_variation(start, best) > 0.2
    stage = StageFolder(tmp_path / "stage")
    checkpoint = run_trainer(
        lambda: nullcontext(trainer_of(bandit, ALGORITHMS[kind], stage, **trainer)),
        stage=stage,
        run=RunContext(),
        what="bandit",
    )
    assert total_variation(probabilities(checkpoint), best) < 0.03


# ---- a single batch


@each_algorithm
@pytest.mark.parametrize(
    ("ratio", "advantage", "learns"),
    [
        (1.19, 1.0, True),
        (1.21, 1.0, False),
        (0.81, -1.0, True),
        (0.79, -1.0, False),
        (1.21, -1.0, True),
        (0.79, 1.0, True),
    ],
)
def test_beyond_the_clip_of_a_fifth_nothing_is_learnt(
    bandit: Path, tmp_path: Path, algorithm: Algorithm, ratio: float, advantage: float, learns: bool
) -> None:
    trainer = trainer_of(bandit, algorithm.model_copy(update={"beta": 0.0}), StageFolder(tmp_path / "stage"))
    tokenizer = load_tokenizer(bandit / "policy")
    prompt, answer = encode_prompt(tokenizer, PROMPT), tokenizer.convert_tokens_to_ids("e")
    old = (probabilities(bandit / "policy")[answer] / ratio).log()
    batch: dict[str, Any] = {
        "prompt_ids": torch.tensor([prompt]),
        "prompt_mask": torch.ones(1, len(prompt), dtype=torch.long),
        "completion_ids": torch.tensor([[answer]]),
        "completion_mask": torch.ones(1, 1, dtype=torch.long),
        "num_items_in_batch": torch.tensor(1),
        "advantages": torch.tensor([advantage]),
        "old_per_token_logps": old.reshape(1, 1),
        "old_logps": old.reshape(1),
        "values": torch.zeros(1, 1),
        "returns": torch.zeros(1, 1),
        "scored_mask": torch.ones(1, 1),
    }
    trainer.current_gradient_accumulation_steps, trainer.accelerator.gradient_state.sync_gradients = 1, False
    trainer._compute_loss(trainer.model, batch).backward()
    gradient = sum(float(p.grad.abs().sum()) for p in trainer.model.parameters() if p.grad is not None)
    assert (gradient > 1e-6) is learns


@each_algorithm
def test_a_rollout_without_a_score_has_no_advantage_and_no_part_in_the_baseline(
    bandit: Path, tmp_path: Path, algorithm: Algorithm, capfd: pytest.CaptureFixture[str]
) -> None:
    """How TRL takes NaN is what `RolloutJudge` relies on."""

    def some(dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        return [math.nan if text in ("", "a", "c") else ARMS[text] for _, text in dialogues]

    stage = StageFolder(tmp_path / "stage")
    trainer = trainer_of(bandit, algorithm, stage, score=some, per_device_train_batch_size=32)
    trainer.model.train()
    trainer.kl_before_loss = True  # There is no loss here, with which GRPO's KL, and so its rows, would come.
    with quiet():
        found = trainer._generate_and_score_completions([{"prompt": PROMPT}] * 32)
    rows = list(read_rows(stage.path / ROLLOUTS_FILE))
    unscored = torch.tensor([row["score"] is None for row in rows])
    assert 4 < unscored.sum() < 28
    assert [row["reward"] is None for row in rows] == unscored.tolist()
    advantages = found["advantages"].reshape(-1)
    assert advantages[unscored].eq(0).all()
    if isinstance(algorithm, PPO):
        values = found["values"].reshape(-1)
        expected = torch.tensor([row["reward"] or 0.0 for row in rows]) - values
        assert found["scored_mask"].reshape(-1).eq(0).tolist() == unscored.tolist()
    else:
        rewards = torch.tensor([math.nan if row["reward"] is None else row["reward"] for row in rows]).view(-1, GROUP)
        expected = rewards - rewards.nanmean(1, keepdim=True)
        if isinstance(algorithm, RLOO):
            num = (~rewards.isnan()).sum(1, keepdim=True)
            expected = expected * num / (num - 1)
        expected = expected.reshape(-1)
    assert torch.allclose(advantages[~unscored], expected[~unscored].nan_to_num(), atol=1e-5)
    assert capfd.readouterr().err == ""


# ---- the value model


def test_the_value_of_a_finished_answer_is_its_score(bandit: Path) -> None:
    tokenizer = load_tokenizer(bandit / "policy")
    critic = start_critic(bandit / "preference", policy=bandit / "policy", tokenizer=tokenizer, settings=PPO())
    ids = torch.tensor([encode_dialogue(tokenizer, PROMPT, {"role": "assistant", "content": "e"}).ids])
    with torch.no_grad():
        values = critic.model(ids, torch.ones_like(ids))
    (expected,) = PreferenceModel.load(bandit / "preference").score([(PROMPT, "e")])
    assert values[0, -1].item() == pytest.approx(expected, abs=1e-5)
    without = start_critic(None, policy=bandit / "policy", tokenizer=tokenizer, settings=PPO(gae_lambda=0.5))
    with torch.no_grad():
        assert without.model(ids, torch.ones_like(ids)).eq(0).all()
    assert (critic.gae_lambda, without.gae_lambda, without.value_clip) == (0.95, 0.5, 0.2)


def test_a_value_is_that_of_the_state_before_its_token(bandit: Path, tmp_path: Path) -> None:
    """What an answer says at a token does not change the values up to that token."""
    trainer = trainer_of(bandit, PPO(), StageFolder(tmp_path / "stage"))
    assert isinstance(trainer, RolloutPPO)
    prompt = torch.tensor([[0, 2, 3]])

    def values(*answer: int) -> torch.Tensor:
        ids = torch.tensor([answer])
        rollouts = {
            "prompt_ids": prompt,
            "prompt_mask": (prompt > 0).long(),
            "completion_ids": ids,
            "completion_mask": torch.ones_like(ids),
        }
        with torch.no_grad():
            return trainer._values(rollouts)[0]

    changed = (values(5, 6, 7) - values(5, 8, 7)).abs() > 1e-6
    assert changed.tolist() == [False, False, True]


def test_while_the_value_model_warms_up_the_policy_stays(bandit: Path, tmp_path: Path) -> None:
    """The value model alone learns for as many steps as are set, and the policy from the next one on."""
    start = probabilities(bandit / "policy")
    for steps, learns in ((3, False), (4, True)):
        trainer = trainer_of(bandit, PPO(value_warmup=3), StageFolder(tmp_path / str(steps)), max_steps=steps)
        assert isinstance(trainer, RolloutPPO)
        before = [weight.clone() for weight in trainer.critic.model.parameters()]
        with quiet():
            trainer.train()
        assert any(not weight.equal(old) for weight, old in zip(trainer.critic.model.parameters(), before, strict=True))
        trainer.save_model(str(tmp_path / str(steps) / "model"))
        changed = not torch.equal(probabilities(tmp_path / str(steps) / "model"), start)
        assert changed == learns


def test_a_preference_model_of_another_vocabulary_cannot_be_the_value_model(bandit: Path, _tiny_model: Path) -> None:
    with pytest.raises(InputError, match="tokenizer is not the policy's"):
        start_critic(_tiny_model, policy=bandit / "policy", tokenizer=load_tokenizer(bandit / "policy"), settings=PPO())


def test_sharded_weights_are_refused(bandit: Path, tmp_path: Path) -> None:
    trainer = trainer_of(bandit, PPO(), StageFolder(tmp_path / "stage"))
    assert isinstance(trainer, RolloutPPO)
    trainer.is_fsdp_enabled = True
    with pytest.raises(InputError, match="FSDP"):
        trainer.set_critic(trainer.critic)


# ---- the constitution as the reward


def prefers_by_arms(request: ChoiceRequest) -> Sequence[float]:
    """A judge by the scores of the arms; of an empty answer it says nothing."""
    first, second = asked_text(request).partition("\n\n(A) ")[2].partition("\n\nAnswer with")[0].split("\n\n(B) ")
    if not first or not second:
        raise EngineError("an empty answer", reason="nothing-to-judge")
    p = 1 / (1 + math.exp(3 * (ARMS[second] - ARMS[first])))
    return math.log(p), math.log(1 - p)


@each_algorithm
async def test_the_policy_learns_what_the_judge_prefers(bandit: Path, tmp_path: Path, algorithm: Algorithm) -> None:
    """Inside an event loop, as in a run."""
    engine = ScriptedEngine(no_words, prefers_by_arms)

    async def opened() -> ScriptedEngine:
        return engine

    settings = Comparisons(failure_limit=1.0, principles=2)
    stage, update = StageFolder(tmp_path / "stage"), {"beta": 0.0, "num_generations": 4}
    trainer = {"max_steps": 25, "per_device_train_batch_size": 64, "learning_rate": 1e-2}
    trained = train_rl(
        [{"id": "0", "prompt": PROMPT}],
        model=bandit / "policy",
        preference_model=RolloutJudge(open=opened, constitution=CONSTITUTION, settings=settings),
        stage=stage,
        config=Reinforcement(
            algorithm=algorithm.model_copy(update=update),
            reward="judge",
            max_new_tokens=1,
            truncation_penalty=0.0,
            trainer=trainer,
        ),
    )
    rows = list(read_rows(stage.path / ROLLOUTS_FILE))
    planted = [
        sum(ARMS.get(row["completion"][0]["content"], 0.0) for row in part) / 64 for part in (rows[:64], rows[-64:])
    ]
    assert planted[1] > planted[0] + 0.4
    unscored = [row for row in rows if row["score"] is None]
    assert trained.counts["unscored"] == len(unscored) > 0
    assert {row["unscored"] for row in unscored} == {"nothing-to-judge"}
    assert all(2 <= len(row["p_by_principle"]) <= 4 for row in rows if row["score"] is not None)
    logged = list(read_rows(stage.path / "metrics.jsonl"))
    assert any(name.startswith("decided/rule-") for name in logged[0])
    assert logged[0]["unscored"] == pytest.approx(sum(row["score"] is None for row in rows[:64]) / 64)
    assert engine.closed
