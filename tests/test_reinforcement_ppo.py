"""The mathematics of PPO, its value model, and what it relies on in TRL."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification, Trainer
from trl.trainer.grpo_trainer import GRPOTrainer

from solon.training.ppo import RolloutPPO, ValueModel, explained_variance, gae, token_rewards, value_loss

numbers = st.lists(st.floats(-3, 3), min_size=1, max_size=6)
shares = st.floats(0, 1)


def mask_of(lengths: list[int]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


# ---- advantages


@given(numbers, numbers, shares, shares)
def test_advantages_are_the_discounted_sum_of_the_surprises(
    rewards: list[float], values: list[float], lam: float, gamma: float
) -> None:
    num = min(len(rewards), len(values))
    r, v = rewards[:num], [*values[:num], 0.0]
    surprise = [r[t] + gamma * v[t + 1] - v[t] for t in range(num)]
    expected = [sum((gamma * lam) ** k * surprise[t + k] for k in range(num - t)) for t in range(num)]
    found = gae(torch.tensor([r]), torch.tensor([v[:num]]), lam=lam, gamma=gamma)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-4)


@given(numbers, numbers)
def test_without_a_discount_lambda_1_is_the_rest_of_the_return_less_the_value(
    rewards: list[float], values: list[float]
) -> None:
    num = min(len(rewards), len(values))
    found = gae(torch.tensor([rewards[:num]]), torch.tensor([values[:num]]), lam=1.0)
    assert found[0].tolist() == pytest.approx([sum(rewards[t:num]) - values[t] for t in range(num)], abs=1e-4)


def test_a_short_answer_beside_a_long_one_has_the_advantages_it_has_alone() -> None:
    torch.manual_seed(0)
    mask_BT = mask_of([2, 5])
    rewards_BT, values_BT = torch.randn(2, 5) * mask_BT, torch.randn(2, 5) * mask_BT
    together = gae(rewards_BT, values_BT, lam=0.9)
    alone = gae(rewards_BT[:1, :2], values_BT[:1, :2], lam=0.9)
    assert torch.allclose(together[0], torch.cat([alone[0], torch.zeros(3)]))


def test_the_score_comes_with_the_last_token_and_the_kl_with_each() -> None:
    log_ratio_BT = torch.tensor([[0.5, -0.25, 1.0], [0.25, 0.75, 9.0]])
    found = token_rewards(torch.tensor([2.0, -1.0]), log_ratio_BT, mask_of([3, 2]), beta=0.2)
    assert torch.allclose(found, torch.tensor([[-0.1, 0.05, 1.8], [-0.05, -1.15, 0.0]]))


# ---- the value loss


@pytest.mark.parametrize(
    ("value", "learns"),
    [
        (0.19, True),
        (0.21, False),  # Beyond the clip, towards the return.
        (-0.21, True),  # Beyond it on the other side.
        (1.21, True),  # Past the return, further from it than the clipped value.
    ],
)
def test_a_value_learns_until_it_has_moved_by_the_clip_towards_the_return(value: float, learns: bool) -> None:
    values = torch.tensor([[value]], requires_grad=True)
    returns = torch.tensor([[1.0 if value < 1 else 0.7]])
    old = torch.zeros(1, 1) if value < 1 else torch.full((1, 1), 0.5)
    value_loss(values, old, returns, torch.ones(1, 1), clip=0.2).backward()
    assert values.grad is not None
    assert (abs(values.grad.item()) > 0) is learns


def test_the_value_loss_is_half_the_mean_square_over_the_mask() -> None:
    values, returns = torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    assert value_loss(values, values, returns, mask, clip=0.2).item() == pytest.approx((1 + 0 + 4) / 6)
    assert value_loss(values, values, returns, torch.zeros(2, 2), clip=0.2).item() == 0


def test_explained_variance() -> None:
    returns = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert explained_variance(returns + 5, returns) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(4), returns) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones(4)) != explained_variance(returns, torch.ones(4)), "NaN"


# ---- the value model


def test_padding_on_either_side_changes_no_value() -> None:
    """With learnt places, which padding on the left would shift."""
    torch.manual_seed(0)
    size = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "initializer_range": 0.5}
    model = ValueModel(
        GPT2ForSequenceClassification(GPT2Config(**size, num_labels=1, pad_token_id=0)).eval(), mean=0.5, std=2.0
    )
    short, long = [5, 6, 7, 8, 9], [11, 12, 13, 14, 15, 16, 17, 18]
    # A prompt of 3 and an answer of 2 tokens beside ones of 4: padded left and right.
    ids_BP, mask_BP = torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 8, dtype=torch.long)
    ids_BP[0, 1:6], mask_BP[0, 1:6] = torch.tensor(short), 1
    ids_BP[1], mask_BP[1] = torch.tensor(long), 1
    with torch.no_grad():
        together = model(ids_BP, mask_BP)
        for row, ids, places in ((0, short, slice(1, 6)), (1, long, slice(0, 8))):
            alone = model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
            assert torch.allclose(together[row, places], alone[0], atol=1e-5)
            raw = model.classifier(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits
            assert together[row, places][-1].item() == pytest.approx((raw.item() - 0.5) / 2.0, abs=1e-5)
    assert together[0, [0, 6, 7]].eq(0).all()


# ---- what we rely on in TRL and transformers


def source(method: Any) -> str:
    return " ".join(inspect.getsource(method).split())


def test_the_methods_that_ppo_overrides_are_there() -> None:
    theirs = {name for base in GRPOTrainer.__mro__[:-1] for name in vars(base)}
    assert {name for name in vars(RolloutPPO) if name in theirs and not name.startswith("__")} == {
        "_calculate_rewards",
        "_compute_loss",
        "_generate_and_score_completions",
        "_load_optimizer_and_scheduler",
        "_save_optimizer_and_scheduler",
    }
    assert list(inspect.signature(GRPOTrainer._calculate_rewards).parameters) == [
        "self",
        "inputs",
        "prompts",
        "completions",
        "completion_ids_list",
    ]


@pytest.mark.parametrize(
    ("method", "texts"),
    [
        (GRPOTrainer._prepare_inputs, ["generation_batch = self._generate_and_score_completions(generation_batch)"]),
        (GRPOTrainer.compute_loss, ["return self._compute_loss(model, inputs)"]),
        (
            GRPOTrainer._generate_and_score_completions,
            [
                # Gathered: ours are the rows of our own prompts.
                "rewards_per_func = self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
                "self.accelerator.process_index * len(prompts)",
                '"completion_mask": completion_mask',
            ],
        ),
        (
            GRPOTrainer._compute_loss,
            [
                # An advantage for each token is taken as it is; without beta no KL is added.
                "if advantages.dim() == 1: advantages = advantages.unsqueeze(1)",
                "if self.beta != 0.0: per_token_loss = per_token_loss + self.beta * per_token_kl",
                "self.accelerator.sync_gradients",
                "self.current_gradient_accumulation_steps",
            ],
        ),
        # The value model is saved before the state that makes a checkpoint whole.
        (Trainer._save_checkpoint, ["self._save_optimizer_and_scheduler(output_dir)", "self.state.save_to_json("]),
    ],
    ids=["prepare_inputs", "compute_loss", "generate", "loss", "save"],
)
def test_trl_calls_what_ppo_overrides_as_ppo_expects(method: Any, texts: list[str]) -> None:
    places = [source(method).index(text) for text in texts]
    if method is Trainer._save_checkpoint:
        assert places == sorted(places)
