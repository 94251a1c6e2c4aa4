"""Proximal policy optimisation on TRL's GRPOTrainer, which has no value model of its own (TRL's PPO left in 1.13).

The one place where more than one method of a TRL trainer is overridden; tests/test_reinforcement_ppo.py guards each.
Imports torch and TRL, so that it is itself imported only inside the functions that train.

Tensor names end in their shape: B rollouts, P tokens of prompt and answer, T tokens of the answer.
"""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from solon.errors import InputError
from solon.training.models import Model, score_head
from solon.training.trainers import RolloutGRPO, gathered

VALUE_FILE = "value.pt"
"""In a checkpoint, beside the policy: the value model and its optimiser."""

# ---- pure functions


def token_rewards(scores_B: Tensor, log_ratio_BT: Tensor, mask_BT: Tensor, *, beta: float) -> Tensor:
    """Rewards of shape (B, T): -beta (log pi(t) - log pi_0(t)) at every token, and the score at the last one.

    As in arXiv:1909.08593, section 2.2, token by token: their sum over an answer is score - beta log(pi / pi_0). 0
    after the answer's end.
    """
    last_B = (mask_BT.sum(1) - 1).clamp(min=0)
    rewards_BT = -beta * log_ratio_BT
    return rewards_BT.scatter_add(1, last_B[:, None], scores_B[:, None]) * mask_BT


def gae(rewards_BT: Tensor, values_BT: Tensor, *, lam: float, gamma: float = 1.0) -> Tensor:
    """Advantages of shape (B, T) by generalised advantage estimation (arXiv:1506.02438, equation 16).

    A(t) = sum over l of (gamma lam)^l d(t + l), with d(t) = r(t) + gamma V(t + 1) - V(t). `values_BT` is the value of
    the state before each token. Rewards and values are 0 after an answer's end, so that nothing follows its last token.
    """
    advantages_BT = torch.zeros_like(rewards_BT)
    next_advantage_B = next_value_B = torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        surprise_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = surprise_B + gamma * lam * next_advantage_B
        next_value_B = values_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
    return advantages_BT


def value_loss(values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip: float) -> Tensor:
    """Mean over the tokens of `mask_BT` of max((V - R)^2, (V' - R)^2) / 2; V' is V within `clip` of the old value.

    A value that has moved beyond `clip` towards the return, since the rollouts were sampled, has no gradient: as in
    openai/lm-human-preferences, `train_policy.py` (the code of arXiv:1909.08593). 0 where the mask is empty.
    """
    clipped_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
    losses_BT = torch.maximum((values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2) / 2
    return (losses_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)


# ---- the value model


class ValueModel(nn.Module):
    """What a dialogue will score, read at each of its tokens: a sequence classifier's backbone and head.

    Started as the preference model, as in arXiv:2009.01325, section 3.4; `mean` and `std` are those of its raw scores,
    so that values are on the scale of the rewards.
    """

    def __init__(self, classifier: Model, *, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.classifier, self.mean, self.std = cast(nn.Module, classifier), mean, std

    def forward(self, ids_BP: Tensor, mask_BP: Tensor) -> Tensor:
        """Values of shape (B, P), each after its token was read; 0 on padding, which may stand on either side.

        Rows are read with all their padding on the right, as the preference model reads them, so that places do not
        depend on the longest prompt of the batch.
        """
        order_BP = mask_BP.argsort(dim=1, descending=True, stable=True)
        packed_BP = mask_BP.gather(1, order_BP)
        backbone = cast(Any, self.classifier).base_model
        hidden_BPD = backbone(input_ids=ids_BP.gather(1, order_BP), attention_mask=packed_BP, use_cache=False)[0]
        values_BP = (score_head(self.classifier)(hidden_BPD).squeeze(-1).float() - self.mean) / self.std * packed_BP
        return torch.zeros_like(values_BP).scatter(1, order_BP, values_BP)


# ---- the trainer


class Critic(NamedTuple):
    """What PPO has and GRPO has not."""

    model: ValueModel
    gae_lambda: float
    """In [0, 1]."""
    value_clip: float
    """In units of the score."""
    warmup: int
    """Steps at the beginning in which the policy does not learn."""


class RolloutPPO(RolloutGRPO):
    """TRL's GRPOTrainer with the advantages of a value model in place of those of a group (arXiv:1707.06347).

    Set `critic` before training. The ratio of policies is clipped by TRL at 1 +- epsilon; the value model has an
    optimiser of its own, with the policy's settings and rate, and steps when the policy does. Advantages are not
    whitened, which would take them off the scale of the KL penalty. Rollouts without a score (NaN) have no advantage,
    and teach the value model nothing.
    """

    kl_before_loss = True

    def set_critic(self, critic: Critic) -> None:
        """Give the trainer its value model. Raises InputError where the policy's weights are sharded."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            remedy = "train it with DDP, or take rloo or grpo"
            raise InputError("ppo trains two models, and cannot shard them with FSDP or DeepSpeed", remedy=remedy)
        self.critic, arguments = critic, self.args
        if arguments.gradient_checkpointing:
            cast(Any, critic.model.classifier).gradient_checkpointing_enable()
        self.value_model = cast(nn.Module, self.accelerator.prepare_model(critic.model))
        self.value_optimizer = torch.optim.AdamW(
            critic.model.parameters(),
            lr=arguments.learning_rate,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            eps=arguments.adam_epsilon,
            weight_decay=arguments.weight_decay,
        )

    def _calculate_rewards(
        self, inputs: Any, prompts: Sequence[Any], completions: Any, completion_ids_list: Any
    ) -> Any:
        rewards = cast(Any, super())._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        # Gathered from all processes; ours are those of our own prompts.
        first = self.accelerator.process_index * len(prompts)
        self._scores_B = cast(Tensor, rewards)[first : first + len(prompts), 0]
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        rollouts = cast(Any, super())._generate_and_score_completions(inputs)
        mask_BT, scores_B = rollouts["completion_mask"], self._scores_B
        scored_BT = mask_BT * ~scores_B.isnan()[:, None]
        with torch.no_grad():
            size = self.args.per_device_train_batch_size
            parts = [
                self._values({name: rollouts[name][start : start + size] for name in _READ})
                for start in range(0, len(mask_BT), size)
            ]
        values_BT = torch.cat(parts)
        log_ratio_BT = self.log_ratio_BT if self.beta else torch.zeros_like(values_BT)
        rewards_BT = token_rewards(scores_B.nan_to_num(), log_ratio_BT, mask_BT, beta=self.beta)
        advantages_BT = gae(rewards_BT, values_BT, lam=self.critic.gae_lambda) * scored_BT
        returns_BT = advantages_BT + values_BT
        self._metrics["train"]["value/explained_variance"].append(
            explained_variance(self._of_all(values_BT[scored_BT > 0]), self._of_all(returns_BT[scored_BT > 0]))
        )
        return {
            **rollouts,
            "advantages": advantages_BT,
            "values": values_BT,
            "returns": returns_BT,
            "scored_mask": scored_BT,
        }

    def _compute_loss(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        self._train_value_model(inputs)
        # The KL is in the rewards; TRL would add its own to the loss.
        beta, self.beta = self.beta, 0.0
        try:
            loss = cast(Tensor, cast(Any, super())._compute_loss(model, inputs))
        finally:
            self.beta = beta
        return loss * 0.0 if self.state.global_step < self.critic.warmup else loss

    def _of_all(self, values_N: Tensor) -> Tensor:
        """The values of all processes, of which each may have another number."""
        return torch.tensor(gathered(cast("list[float]", values_N.tolist())))

    def _train_value_model(self, inputs: Mapping[str, Any]) -> None:
        # The mean over the tokens of all processes: DDP takes the mean of theirs, which may have different numbers.
        num = cast(Tensor, inputs["scored_mask"].sum())
        num_all = cast(Tensor, cast(Any, self.accelerator).reduce(num.clone()))
        share = num.clamp(min=1) * self.accelerator.num_processes / num_all.clamp(min=1)
        loss = share * value_loss(
            self._values(inputs),
            inputs["values"],
            inputs["returns"],
            inputs["scored_mask"],
            clip=self.critic.value_clip,
        )
        losses = cast(Tensor, cast(Any, self.accelerator).gather(loss.detach()))
        self._metrics["train"]["value/loss"].append(losses.mean().item())
        (loss / self.current_gradient_accumulation_steps).backward()
        if self.accelerator.sync_gradients:
            if self.args.max_grad_norm > 0:
                nn.utils.clip_grad_norm_(self.value_model.parameters(), self.args.max_grad_norm)
            (group,) = self.value_optimizer.param_groups
            group["lr"] = self._get_learning_rate()
            self.value_optimizer.step()
            self.value_optimizer.zero_grad()

    def _values(self, rollouts: Mapping[str, Tensor]) -> Tensor:
        """Values of shape (B, T) of the states before each token of the answers; 0 after an answer's end."""
        ids_BP = torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], dim=1)
        mask_BP = torch.cat([rollouts["prompt_mask"], rollouts["completion_mask"]], dim=1)
        with self.accelerator.autocast():
            values_BP = cast(Tensor, self.value_model(ids_BP, mask_BP))
        start = rollouts["prompt_ids"].shape[1]
        return values_BP[:, start - 1 : -1] * rollouts["completion_mask"]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # Before the checkpoint's trainer_state.json, without which it is not whole.
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {"model": self.critic.model.state_dict(), "optimizer": self.value_optimizer.state_dict()}
            torch.save(state, Path(output_dir) / VALUE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = torch.load(Path(checkpoint) / VALUE_FILE, map_location="cpu", weights_only=True)
            self.critic.model.load_state_dict(state["model"])
            self.value_optimizer.load_state_dict(state["optimizer"])


_READ = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns), at most 1; 0 for values that know nothing; NaN where returns are all
    one."""
    spread = returns_N.var(correction=0)
    return float("nan") if spread == 0 else (1 - (returns_N - values_N).var(correction=0) / spread).item()
