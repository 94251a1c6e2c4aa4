"""Where we reach into TRL 1.16: each subclass overrides one method, and a contract test guards it.

Imports torch, transformers and TRL, so that it is itself imported only inside the functions that train.
"""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import PartialState
from accelerate import utils as accelerate_utils
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.sft_trainer import SFTTrainer

from solon.artifact import Progress, StageFolder


class StageCallback(TrainerCallback):
    """Tells the progress how far training is, and writes every log row of the trainer to the stage's metrics.jsonl."""

    def __init__(self, *, stage: StageFolder, progress: Progress, what: str) -> None:
        self._stage, self._progress, self._what = stage, progress, what

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.start(self._what, state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        values = {name: value for name, value in (logs or {}).items() if name != "total_flos"}
        infinite = {name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
        if not state.is_world_process_zero:
            return
        self._stage.metric(
            {"step": state.global_step, **{name: None if name in infinite else value for name, value in values.items()}}
        )


FORGETS_TOKENS = (SFTTrainer, RewardTrainer)
"""TRL's trainers that count the tokens trained on from 0 again when they resume; others keep that in their state."""


class TokenCount(TrainerCallback):
    """Keeps that count, `num_tokens` of metrics.jsonl, in the state that checkpoints hold; for FORGETS_TOKENS."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._total_train_tokens = int(state.num_input_tokens_seen)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.num_input_tokens_seen = int(self._trainer._total_train_tokens)


# ---- preference model


class PreferenceCollator:
    """Token ids of B pairs -> a right-padded batch of 2B replies, the preferred ones first, and p, margin, ..."""

    def __init__(self, pad_token_id: int, *, sources: Sequence[str]) -> None:
        self._pad, self._sources = pad_token_id, list(sources)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        replies = [torch.tensor(example[side]) for side in ("chosen_ids", "rejected_ids") for example in examples]
        padded = nn.utils.rnn.pad_sequence(replies, batch_first=True, padding_value=self._pad)
        lengths = torch.tensor([len(reply) for reply in replies])
        return {
            "input_ids": padded,
            "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long(),
            "p": torch.tensor([example["p"] for example in examples], dtype=torch.float32),
            "margin": torch.tensor([example["margin"] for example in examples], dtype=torch.float32),
            "weight": torch.tensor([example["weight"] for example in examples], dtype=torch.float32),
            "source": torch.tensor([self._sources.index(example["source"]) for example in examples]),
        }


class SoftRewardTrainer(RewardTrainer):
    """TRL's RewardTrainer with the loss of `soft_label_loss` and the accuracy of each source in the log.

    Sources are numbered in the batch; `source_names` gives their names. `loss_is_scaled_for_ga` stays TRL's False: the
    loss is a mean over the batch.
    """

    source_names: Sequence[str] = ()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Differences from TRL: 1. the target is a probability; 2. each pair has a weight."""
        probability, margin, weight = inputs.pop("p"), inputs.pop("margin"), inputs.pop("weight")
        source = inputs.pop("source")
        outputs = cast(Any, super().compute_loss(model, inputs, return_outputs=True))[1]
        chosen, rejected = cast(Tensor, outputs.logits.squeeze(-1).float()).chunk(2)
        loss = soft_label_loss(chosen - rejected, probability, weight, margin)
        centring: float | None = cast(Any, self.args).center_rewards_coefficient
        if centring is not None:
            loss = loss + centring * ((chosen + rejected) ** 2).mean()
        for index, name in enumerate(self.source_names):
            of_source = source == index
            counts = torch.stack([((chosen > rejected) & of_source).sum(), of_source.sum()])
            num_right, num = cast(list[int], cast(Tensor, self.accelerator.reduce(counts)).tolist())
            if num:
                self._metrics["train"][f"accuracy_{name}"].append(num_right / num)
        return (loss, outputs) if return_outputs else loss


def soft_label_loss(lead_B: Tensor, probability_B: Tensor, weight_B: Tensor, margin_B: Tensor | float = 0.0) -> Tensor:
    """Mean of w (-p log sigmoid(d) - (1 - p) log sigmoid(-d)) in nats, for leads d = r(a) - r(b), p = P(a is better).

    The cross-entropy of arXiv:2204.05862, equation 4.2, with a soft target (arXiv:2212.08073, section 4.1): least where
    d = logit(p). With a margin m >= 0, which is for p in {0, 0.5, 1}, d is m less for p = 1 and m more for p = 0:
    -log sigmoid(d - m) of arXiv:2307.09288, equation 2. Weights have mean 1 over the data set, not over the batch.
    Swapping a and b (-d, 1 - p) changes nothing.
    """
    target_B = probability_B.to(lead_B.dtype)
    behind_B = lead_B - margin_B * (2 * target_B - 1)
    losses_B = functional.binary_cross_entropy_with_logits(behind_B, target_B, reduction="none")
    return (weight_B * losses_B).mean()


# ---- reinforcement


class DirectCollator:
    """TRL's collator of B pairs, the preferred answers first, and p, margin, weight as vectors."""

    def __init__(self, pad_token_id: int) -> None:
        self._pairs = DataCollatorForPreference(pad_token_id=pad_token_id)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = cast(dict[str, Tensor], self._pairs(list(examples)))
        for name in ("p", "margin", "weight"):
            batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
        return batch


class SoftDPOTrainer(DPOTrainer):
    """TRL's DPOTrainer with the loss of `soft_label_loss` on rows that are tokenised already.

    TRL ignores `label_smoothing` with its sigmoid loss and has no probability for each pair.
    """

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        known = {name: value for name, value in inputs.items() if name not in ("p", "margin", "weight")}
        return cast(Any, super()).compute_ref_log_probs(model, known)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Differences from TRL: 1. the target is a probability; 2. each pair has a weight."""
        labels_BT = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        outputs = model(**read, use_cache=False, labels=labels_BT, fused_lm_head=True)
        chosen_B, rejected_B = cast(Tensor, outputs.log_probs.sum(1)).chunk(2)
        reference_B = inputs["ref_chosen_logps"] - inputs["ref_rejected_logps"]
        lead_B = self.beta * (chosen_B - rejected_B - reference_B)
        loss = soft_label_loss(lead_B, inputs["p"], inputs["weight"], inputs["margin"])
        found = {
            "accuracy": (lead_B > 0).float().mean(),
            "lead": lead_B.mean(),
            "chosen_log_ratio": (chosen_B - inputs["ref_chosen_logps"]).mean(),
        }
        for name, value in found.items():
            self._metrics["train"][name].append(cast(Tensor, self.accelerator.gather(value)).mean().item())
        return (loss, outputs) if return_outputs else loss


class _KeepsLogProbabilities:
    """A trainer of TRL that keeps the log-probabilities of its rollouts, and so tells each one's KL divergence from the
    reference (`tell_kl`) without reading any of them once more.

    TRL computes those of the reference without gradient before it calls the reward function, and before them those of
    the policy where it needs them itself (RLOO always, GRPO where rollouts are used more than once). Where it does not,
    they come with the forward pass of the loss.
    """

    beta: float
    model: Any
    _metrics: dict[str, dict[str, list[float]]]
    log_ratio_BT: Tensor
    """What `tell_kl` summed: log pi(t) - log pi_0(t) of each token of the rollouts, 0 after an answer's end."""
    kl_before_loss = False
    """Whether the KL must be there when the reward function returns, at the price of a forward pass."""
    _asked: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]]
    _waiting: _WaitingForPolicy | None = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = cast(Any, super())._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled():
            if self._waiting is not None and self._waiting.read(cast(Tensor, args[1]), cast(Tensor, result[0])):
                waiting, self._waiting = self._waiting, None
                self._tell(waiting.policy_BT, waiting.reference_BT, waiting.lengths, waiting.then)
        elif self.beta:
            self.__dict__.setdefault("_asked", []).append((args, kwargs, result[0].detach()))
        return result

    def tell_kl(self, num_tokens: Sequence[int], then: Callable[[list[float]], None]) -> None:
        """Call `then` with log pi(y|x) - log pi_0(y|x) of each rollout in nats, over its tokens: an estimate; it may be
        negative. At once where both are known, else when the loss has read the last of the rollouts.

        Asked once for each batch of rollouts.
        """
        (_, ids_BP, *rest), options, reference_BT = self._asked[-1]
        policy_BT = self._asked[0][-1] if len(self._asked) == 2 else None
        self._asked.clear()
        if policy_BT is None and self.kl_before_loss:
            with torch.no_grad():
                ask = cast(Any, super())._get_per_token_logps_and_entropies
                policy_BT = cast(Tensor, ask(self.model, ids_BP, *rest, **options)[0])
        if policy_BT is None:
            self._waiting = _WaitingForPolicy(ids_BP, reference_BT, list(num_tokens), then)
        else:
            self._tell(policy_BT, reference_BT, num_tokens, then)

    def note(self, measures: Mapping[str, float]) -> None:
        """Add measures of a batch of rollouts, those of all processes, to what TRL logs.

        TRL's `log_metric` would put those that come with the loss into the next step.
        """
        for name, value in measures.items():
            self._metrics["train"][name].append(value)

    def _tell(
        self,
        policy_BT: Tensor,
        reference_BT: Tensor,
        num_tokens: Sequence[int],
        then: Callable[[list[float]], None],
    ) -> None:
        lengths_B = torch.tensor(list(num_tokens), device=policy_BT.device)
        inside_BT = torch.arange(policy_BT.shape[1], device=policy_BT.device) < lengths_B[:, None]
        self.log_ratio_BT = (policy_BT - reference_BT) * inside_BT
        then(cast(list[float], self.log_ratio_BT.sum(1).tolist()))


class _WaitingForPolicy:
    """Rollouts whose log-probabilities by the policy come with the loss, in parts and in another order."""

    def __init__(
        self, ids_BP: Tensor, reference_BT: Tensor, lengths: list[int], then: Callable[[list[float]], None]
    ) -> None:
        self._ids_BP, self._left = ids_BP, len(ids_BP)
        self.policy_BT, self.reference_BT = torch.zeros_like(reference_BT), reference_BT
        self.lengths, self.then = lengths, then

    def read(self, ids_bP: Tensor, policy_bT: Tensor) -> bool:
        """Take the rows of a micro-batch, known by their tokens; whether it was the last.

        Rows are counted, since equal ones are known together: all processes must come to the end at the same time.
        """
        same_bB = (ids_bP[:, None] == self._ids_BP).all(-1)
        found_B = same_bB.any(0)
        self.policy_BT[found_B] = policy_bT.detach()[same_bB.int().argmax(0)[found_B]].to(self.policy_BT)
        self._left -= len(ids_bP)
        return self._left <= 0


class RolloutRLOO(_KeepsLogProbabilities, RLOOTrainer):
    """TRL's RLOOTrainer, which puts the KL into the reward."""


class RolloutGRPO(_KeepsLogProbabilities, GRPOTrainer):
    """TRL's GRPOTrainer, which puts the KL into the loss."""


RolloutTrainer = RolloutRLOO | RolloutGRPO
"""PPO's is a RolloutGRPO; see ppo.py."""


class Watcher(Protocol):
    """Who looks on while a policy is trained; `solon.reinforcement.watch.Watch`."""

    def begin(self, step: int) -> None: ...
    def after_step(self, step: int) -> bool: ...
    def saved(self, step: int, checkpoint: Path) -> None: ...


class WatchCallback(TrainerCallback):
    """Tells a watcher of steps and checkpoints, and stops, with a checkpoint, when it says so.

    What it does takes nothing from the random numbers of training, so that a resumed run, which does less of it, draws
    the same ones.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with torch.random.fork_rng():
            self._watcher.begin(state.global_step)
        self._saved(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        with torch.random.fork_rng():
            if self._watcher.after_step(state.global_step):
                control.should_training_stop = control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved(args, state)

    def _saved(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.global_step:
            checkpoint = Path(cast(str, args.output_dir)) / f"checkpoint-{state.global_step}"
            with torch.random.fork_rng():
                self._watcher.saved(state.global_step, checkpoint)


def unwrapped(trainer: RolloutTrainer) -> Any:
    """The language model that a trainer trains, adapters inside its layers included, without what is around it."""
    from peft import PeftModel

    model: Any = cast(Any, trainer.accelerator).unwrap_model(trainer.model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def gathered(rows: Sequence[Any]) -> list[Any]:
    """The rows of every process, in the order of the processes; every process gets them all."""
    return cast(Any, accelerate_utils).gather_object(list(rows))


def asked_in_main(rows: Sequence[Any], ask: Callable[[list[Any]], Any]) -> tuple[Any, slice]:
    """What `ask` says in the main process of the rows of every process, and which of them are those of this one.

    Every process has as many rows.
    """
    state: Any = PartialState()
    every = gathered(rows)
    said: list[Any] = [ask(every) if state.is_main_process else None]
    cast(Any, accelerate_utils).broadcast_object_list(said)
    start: int = state.process_index * len(rows)
    return said[0], slice(start, start + len(rows))


def weights_are_divided() -> bool:
    """Whether a model that is loaded now would be divided between the processes (ZeRO-3): one alone cannot load any."""
    return cast(bool, is_deepspeed_zero3_enabled())
