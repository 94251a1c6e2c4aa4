"""The policy that started as SL-CAI, trained against the preference model (arXiv:2212.08073, section 4.1).

`policy` = TRL's model, `preference model` = its reward function. For each rollout y to a prompt x the reward is

    reward = score(x, y) - truncation_penalty [y has no end token] - beta (log pi(y|x) - log pi_0(y|x))

with the score of `PreferenceModel.score` and SL-CAI as pi_0 (arXiv:2204.05862, section 4.1). With RLOO the advantage of
a rollout is its reward less the mean of the other rollouts to the same prompt; with GRPO it is less the mean of all of
them, and the KL is a term of the loss. The ratio is clipped at 1 +- 0.2.

    trained = train_rl(prompts, model=sl_cai, preference_model=pm, stage=stage, config=recipe.reinforcement)

Differences from the paper: 1. RLOO (Ahmadian et al. 2024, arXiv:2402.14740) or GRPO (Shao et al. 2024,
arXiv:2402.03300) in place of PPO: no value function; 2. scores are on the scale of held-out replies; 3. the truncation
penalty, without which the policy learns never to end.
"""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypedDict, cast

from solon.artifact import StageFolder, content_id, derive_seed, file_hash
from solon.config import Reinforcement, outcome_settings
from solon.dialogue import Message
from solon.errors import InputError
from solon.preference import PreferenceModel
from solon.training import (
    CHECKPOINTS,
    Plan,
    RunContext,
    Tokenizer,
    Trained,
    algorithm_settings,
    context_length_of,
    encode_prompt,
    load_causal_lm,
    load_tokenizer,
    lora_config,
    quiet,
    resolve_model,
    run_trainer,
    save_model,
    scheduled_config,
    start_folder,
    whole_folder,
    write_card,
)

if TYPE_CHECKING:
    from solon.training.trainers import RolloutTrainer

ROLLOUTS_FILE = "rollouts.jsonl"
START_KL_LIMIT = 1e-4
"""Nats per token that policy and reference may differ by before the first step: they are the same model."""

Score = Callable[[Sequence[tuple[Sequence[Message], str]]], list[float]]
"""Scores of (prompt, response) pairs, such as `PreferenceModel.score`."""


class RolloutRow(TypedDict):
    """A row of rollouts.jsonl: one sampled answer and what it earned."""

    step: int
    """Counted from 1; the step that was trained on it."""
    prompt: list[Message]
    completion: list[Message]
    score: float
    """Of the preference model, on the scale of its held-out replies."""
    kl: float
    """log pi(y|x) - log pi_0(y|x) in nats, over the whole answer; its mean estimates the KL divergence."""
    reward: float
    """score - truncation penalty, and with RLOO - beta kl."""
    num_tokens: int
    """Of the answer, its end token included."""


# ---- pure functions


def rollouts_plan(arguments: Any, *, num_prompts: int) -> Plan:
    """An epoch uses every prompt once; checkpoints fall between batches of rollouts, which TRL does not save."""
    uses = uses_per_batch(arguments)
    unit = uses // math.gcd(uses, arguments.gradient_accumulation_steps)
    return Plan(batches=math.ceil(num_prompts / prompts_per_batch(arguments)) * uses, unit=unit)


def uses_per_batch(arguments: Any) -> int:
    """Micro-batches that are trained on one batch of rollouts."""
    return arguments.steps_per_generation * arguments.num_iterations


def prompts_per_batch(arguments: Any) -> int:
    """Prompts of one batch of rollouts."""
    return arguments.generation_batch_size // arguments.num_generations


def prompt_order(num_prompts: int, *, num: int, seed: int) -> list[int]:
    """Places of the first `num` prompts to use: shuffles of all of them, one after the other.

    Ours, because TRL's sampler begins with its first shuffle again when it resumes in a later epoch.
    """
    order: list[int] = []
    while len(order) < num:
        shuffle = list(range(num_prompts))
        Random(derive_seed(seed, "epoch", len(order) // num_prompts)).shuffle(shuffle)
        order += shuffle
    return order[:num]


# ---- the reward


class Reward:
    """The reward function that TRL calls with a batch of rollouts: scores them and writes their rows.

    What it returns lacks RLOO's KL term, which TRL adds itself with the same beta; the rows have it.
    """

    __name__ = "preference"

    def __init__(self, score: Score, *, config: Reinforcement, stage: StageFolder) -> None:
        self.stage = stage
        self._score, self._config = score, config
        self.trainer: RolloutTrainer | None = None

    def __call__(
        self,
        *,
        prompts: Sequence[list[Message]],
        completions: Sequence[list[Message]],
        completion_ids: Sequence[Sequence[int]],
        **rest: Any,
    ) -> list[float]:
        assert self.trainer is not None, "a reward belongs to a trainer"
        algorithm = self._config.algorithm
        assert algorithm.kind != "dpo", "there are no rollouts"
        ends = set(cast(list[int], self.trainer.eos_token_ids))
        in_reward = algorithm.beta if algorithm.kind == "rloo" else 0.0
        num_tokens = [len(ids) for ids in completion_ids]
        truncated = [ids[-1] not in ends for ids in completion_ids]
        scores = self._score([(p, c[-1]["content"]) for p, c in zip(prompts, completions, strict=True)])
        rewards = [score - self._config.truncation_penalty * cut for score, cut in zip(scores, truncated, strict=True)]
        kls = self.trainer.sequence_kl(num_tokens) if algorithm.beta else [0.0] * len(scores)
        step = rest["trainer_state"].global_step + 1
        if step == 1:
            drift = sum(map(abs, kls)) / sum(num_tokens)
            assert drift < START_KL_LIMIT, f"the policy is not its reference: they differ by {drift:.2g} nats a token"
        columns = zip(prompts, completions, scores, kls, rewards, num_tokens, strict=True)
        self._write(
            RolloutRow(
                step=step,
                prompt=p,
                completion=c,
                score=score,
                kl=kl,
                reward=reward - in_reward * kl,
                num_tokens=tokens,
            )
            for p, c, score, kl, reward, tokens in columns
        )
        for name, values in (("score", scores), ("sequence_kl", kls), ("truncated", truncated)):
            rest["log_metric"](name, fmean(values))
        return rewards

    def _write(self, rows: Iterable[RolloutRow]) -> None:
        """Write the rows of all processes; a batch of rollouts is divided between them in its order."""
        from accelerate import PartialState
        from accelerate.utils import gather_object

        gathered = gather_object(list(rows))
        if PartialState().is_main_process:
            for row in gathered:
                self.stage.log(ROLLOUTS_FILE, row)


# ---- the loop


def train_rl(
    prompts: Sequence[Mapping[str, Any]],
    *,
    model: str | Path,
    preference_model: str | Path,
    stage: StageFolder,
    config: Reinforcement,
    run: RunContext | None = None,
) -> Trained:
    """Train the policy from the folder `model`, which is the reference of the KL too, on prompt rows {id, prompt}.

    Runs through `stage`: a finished stage is not trained again, a killed one goes on from its last checkpoint, and
    rollouts of steps after it are dropped. Prompts that leave no room for `config.max_new_tokens` are failures with the
    reason "context-length". Raises InputError if no prompt fits.
    """
    run = run or RunContext()
    inputs = {
        "model": file_hash(resolve_model(model)),
        "preference_model": file_hash(resolve_model(preference_model)),
        "prompts": content_id([[row["id"], row["prompt"]] for row in prompts]),
    }
    if stage.begin(config={**outcome_settings(config), **run.settings}, inputs=inputs, again=run.again):
        with quiet():
            tokenizer = load_tokenizer(model, padding_side="left")
            usable = _fitting(prompts, model=model, tokenizer=tokenizer, stage=stage, config=config)
            counts = {"prompts": len(prompts), "trained_prompts": len(usable), "over_long": len(prompts) - len(usable)}
            if not (stage.path / "model").exists():
                start = start_folder(model, tokenizer=tokenizer, folder=stage.path)
                reward = partial(_reward, preference_model, config=config, stage=stage)
                make = partial(
                    _trainer, usable, start=start, reward=reward, tokenizer=tokenizer, config=config, seed=run.seed
                )
                checkpoint = run_trainer(make, stage=stage, run=run, what="reinforcement", logs=[ROLLOUTS_FILE])
                with whole_folder(stage.path / "model") as folder:
                    load = partial(load_causal_lm, tokenizer=tokenizer)
                    save_model(checkpoint, base=start, load=load, to=folder, tokenizer=tokenizer)
                    write_card(folder, title="RL-CAI", facts={"base model": model, **run.facts, **counts})
        for leftover in (CHECKPOINTS, "start"):
            shutil.rmtree(stage.path / leftover, ignore_errors=True)
        stage.finish(counts=counts)
    return Trained(model=stage.path / "model", counts=stage.manifest()["counts"])


def _fitting(
    prompts: Sequence[Mapping[str, Any]],
    *,
    model: str | Path,
    tokenizer: Tokenizer,
    stage: StageFolder,
    config: Reinforcement,
) -> list[list[Message]]:
    """The prompts that leave room for an answer; the others are recorded as failures."""
    limit = context_length_of(model) - config.max_new_tokens
    fitting: list[list[Message]] = []
    for row in prompts:
        num_tokens = len(encode_prompt(tokenizer, row["prompt"]))
        if num_tokens > limit:
            text = f"{num_tokens} tokens, at most {limit} beside an answer of {config.max_new_tokens}"
            stage.fail(id=row["id"], where="rollout", reason="context-length", text=text)
        else:
            fitting.append([{"role": turn["role"], "content": turn["content"]} for turn in row["prompt"]])
    if not fitting:
        raise InputError(f"none of {len(prompts)} prompts fits into {limit} tokens", remedy="lower max_new_tokens")
    return fitting


def _reward(preference_model: str | Path, *, config: Reinforcement, stage: StageFolder) -> Reward:
    return Reward(PreferenceModel.load(preference_model).score, config=config, stage=stage)


def _trainer(
    prompts: list[list[Message]],
    *,
    start: Path,
    reward: Callable[[], Reward],
    tokenizer: Tokenizer,
    config: Reinforcement,
    seed: int,
) -> RolloutTrainer:
    from datasets import Dataset

    from solon.training.trainers import RolloutGRPO, RolloutRLOO

    # The preference model first: what is loaded after TRL's configuration is divided between processes with ZeRO-3.
    kind, rewarded = config.algorithm.kind, reward()
    assert kind != "dpo", "there are no rollouts"
    arguments = scheduled_config(
        kind,
        config.trainer,
        folder=rewarded.stage.path / CHECKPOINTS,
        seed=derive_seed(seed, "reinforcement"),
        fixed=algorithm_settings(config),
        plan=partial(rollouts_plan, num_prompts=len(prompts)),
    )
    batches = math.ceil(arguments.max_steps * arguments.gradient_accumulation_steps / uses_per_batch(arguments))
    order = prompt_order(len(prompts), num=batches * prompts_per_batch(arguments), seed=arguments.seed)
    trainer = {"rloo": RolloutRLOO, "grpo": RolloutGRPO}[kind](
        model=str(start),
        reward_funcs=cast(Any, rewarded),
        args=cast(Any, arguments),
        train_dataset=Dataset.from_dict({"prompt": [prompts[i] for i in order]}),
        processing_class=tokenizer,
        peft_config=lora_config(config.lora),
    )
    rewarded.trainer = trainer
    return trainer
