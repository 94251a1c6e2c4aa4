"""The policy that started as SL-CAI, trained against the preference model (arXiv:2212.08073, section 4.1).

`policy` = TRL's model, `preference model` = its reward function. For each rollout y to a prompt x the reward is

    reward = score(x, y) - truncation_penalty [y has no end token] - beta (log pi(y|x) - log pi_0(y|x))

with the score of `PreferenceModel.score` and SL-CAI as pi_0 (arXiv:2204.05862, section 4.1). With RLOO the advantage of
a rollout is its reward less the mean of the other rollouts to the same prompt; with GRPO it is less the mean of all of
them, and the KL is a term of the loss; with PPO each token has its own, by a value model (`solon.training.ppo`). The
ratio is clipped at 1 +- 0.2.

    trained = train_rl(prompts, model=sl_cai, preference_model=pm, stage=stage, config=recipe.reinforcement)

Differences from the paper: 1. by default RLOO (Ahmadian et al. 2024, arXiv:2402.14740), or GRPO (Shao et al. 2024,
arXiv:2402.03300), in place of PPO: no value function; 2. scores are on the scale of held-out replies; 3. the truncation
penalty, without which the policy learns never to end.
"""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

from solon.artifact import StageFolder, content_id, derive_seed, file_hash, read_rows
from solon.config import PPO, Reinforcement, outcome_settings
from solon.dialogue import Message
from solon.errors import InputError
from solon.preference import PreferenceModel
from solon.reinforcement.critic import start_critic
from solon.reinforcement.held_out import HeldOut
from solon.reinforcement.judge import JudgeAtWork, RolloutJudge
from solon.reinforcement.reward import Reward
from solon.reinforcement.watch import LOGS, ROLLOUTS_FILE, Policy, Watch
from solon.training import (
    CHECKPOINTS,
    Plan,
    RunContext,
    Tokenizer,
    Trained,
    algorithm_settings,
    context_length_of,
    encode_prompt,
    load_tokenizer,
    lora_config,
    quiet,
    resolve_model,
    run_trainer,
    scheduled_config,
    start_folder,
    whole_folder,
    write_card,
)

if TYPE_CHECKING:
    from solon.training.ppo import RolloutPPO
    from solon.training.trainers import RolloutTrainer


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


# ---- the loop


def train_rl(  # noqa: PLR0913 - one for each thing that it reads
    prompts: Sequence[Mapping[str, Any]],
    *,
    model: str | Path,
    preference_model: str | Path | RolloutJudge,
    stage: StageFolder,
    config: Reinforcement,
    run: RunContext | None = None,
    held_out: HeldOut | None = None,
) -> Trained:
    """Train the policy from the folder `model`, which is the reference of the KL too, on prompt rows {id, prompt}.

    Runs through `stage`: a finished stage is not trained again, a killed one goes on from its last checkpoint, and
    rollouts of steps after it are dropped. In place of the preference model's folder stands a `RolloutJudge` where the
    constitution is asked itself; rollouts without a score are counted as `unscored`. Prompts that leave no room for
    `config.max_new_tokens` are failures with the reason "context-length". `held_out` is asked on the way. An alarm is
    in the log, alarms.jsonl and the manifest; with `config.alarm.on_alarm` "stop" the model is then the best snapshot,
    or the start. Raises InputError if no prompt fits, and for a held-out judge with several processes.
    """
    run = run or RunContext()
    if held_out is not None and run.launch is not None and run.launch.processes > 1:
        remedy = "leave reinforcement.held_out out, or train with one process"
        raise InputError("the held-out judge does not work with several processes", remedy=remedy)
    inputs = _inputs(prompts, model=model, preference_model=preference_model, held_out=held_out)
    if stage.begin(config={**_settings(config), **run.settings}, inputs=inputs, again=run.again):
        with quiet():
            tokenizer = load_tokenizer(model, padding_side="left")
            fitting = partial(_fitting, model=model, tokenizer=tokenizer, stage=stage, config=config)
            usable = [_plain(row["prompt"]) for row in fitting(prompts, where="rollout")]
            if held_out is not None:
                held_out = replace(held_out, prompts=fitting(held_out.prompts, where="held-out"))
            counts = {"prompts": len(prompts), "trained_prompts": len(usable), "over_long": len(prompts) - len(usable)}
            start = start_folder(model, tokenizer=tokenizer, folder=stage.path)
            policy = Policy(start=start, tokenizer=load_tokenizer(model))
            guards = partial(Watch, stage, config=config, seed=run.seed, policy=policy, held_out=held_out)
            watch = guards()
            if not (stage.path / "model").exists():
                judge = preference_model
                if isinstance(judge, RolloutJudge) and run.launch is not None:
                    judge = judge.passed(stage, seed=run.seed)
                make = partial(_trainer_at_work, usable, judge=judge, guards=guards, start=start, tokenizer=tokenizer)
                checkpoint = run_trainer(
                    partial(make, config=config, stage=stage, seed=run.seed),
                    stage=stage,
                    run=run,
                    what="reinforcement",
                    logs=LOGS,
                    stopped=watch.stopped,
                )
                with whole_folder(stage.path / "model") as folder:
                    policy.save(watch.best() if watch.stopped() else checkpoint, folder)
                    write_card(folder, title="RL-CAI", facts={"base model": model, **run.facts, **counts})
        for leftover in (CHECKPOINTS, "start"):
            shutil.rmtree(stage.path / leftover, ignore_errors=True)
        if isinstance(preference_model, RolloutJudge):
            scores = [row["score"] for row in read_rows(stage.path / ROLLOUTS_FILE)]
            counts |= {"rollouts": len(scores), "unscored": scores.count(None)}
        stage.finish(counts=counts, **watch.told())
    return Trained(model=stage.path / "model", counts=stage.manifest()["counts"])


def _settings(config: Reinforcement) -> dict[str, object]:
    """What decides what comes out; of the alarm only where it stops the run."""
    settings = outcome_settings(config)
    if config.alarm is not None and config.alarm.on_alarm == "stop":
        settings["stopped by"] = config.alarm.model_dump()
    return settings


def _inputs(
    prompts: Sequence[Mapping[str, Any]],
    *,
    model: str | Path,
    preference_model: str | Path | RolloutJudge,
    held_out: HeldOut | None,
) -> dict[str, str]:
    """The hashes of what is read."""
    inputs = {
        "model": file_hash(resolve_model(model)),
        "prompts": content_id([[row["id"], row["prompt"]] for row in prompts]),
    }
    if isinstance(preference_model, RolloutJudge):
        inputs |= preference_model.inputs
    else:
        inputs["preference_model"] = file_hash(resolve_model(preference_model))
    if held_out is not None:
        inputs["held_out"] = content_id([held_out.judge, *([row["id"], row["prompt"]] for row in held_out.prompts)])
    return inputs


@contextmanager
def _trainer_at_work(  # noqa: PLR0913 - what a process that trains is given
    prompts: list[list[Message]],
    *,
    judge: str | Path | RolloutJudge,
    guards: Callable[..., Watch],
    start: Path,
    tokenizer: Tokenizer,
    config: Reinforcement,
    stage: StageFolder,
    seed: int,
) -> Generator[RolloutTrainer]:
    """The trainer in a process that trains, with its judge open and its guards."""
    # The judge first: what is loaded after TRL's configuration is divided between processes with ZeRO-3.
    with _scorer(judge, stage=stage, seed=seed) as scorer:
        of_model = isinstance(scorer, PreferenceModel)
        reward = Reward(scorer.score if of_model else scorer, config=config, stage=stage)
        reward.watch = guards(judge=scorer if of_model else None)
        trainer = _trainer(prompts, start=start, reward=reward, tokenizer=tokenizer, config=config, seed=seed)
        if isinstance(config.algorithm, PPO):
            scores_like = None if isinstance(judge, RolloutJudge) else judge
            critic = start_critic(scores_like, policy=start, tokenizer=tokenizer, settings=config.algorithm)
            cast("RolloutPPO", trainer).set_critic(critic)
        yield trainer


@contextmanager
def _scorer(
    judge: str | Path | RolloutJudge, *, stage: StageFolder, seed: int
) -> Generator[PreferenceModel | JudgeAtWork | None]:
    """A preference model in every process; the judge in the main one alone."""
    from accelerate import PartialState

    if not isinstance(judge, RolloutJudge):
        yield PreferenceModel.load(judge)
    elif PartialState().is_main_process:
        with judge.at_work(stage, seed=seed) as at_work:
            yield at_work
    else:
        yield None


def _fitting(
    prompts: Sequence[Mapping[str, Any]],
    *,
    where: str,
    model: str | Path,
    tokenizer: Tokenizer,
    stage: StageFolder,
    config: Reinforcement,
) -> list[Mapping[str, Any]]:
    """The prompts that leave room for an answer; the others are recorded as failures."""
    limit = context_length_of(model) - config.max_new_tokens
    fitting: list[Mapping[str, Any]] = []
    for row in prompts:
        num_tokens = len(encode_prompt(tokenizer, row["prompt"]))
        if num_tokens > limit:
            text = f"{num_tokens} tokens, at most {limit} beside an answer of {config.max_new_tokens}"
            stage.fail(id=row["id"], where=where, reason="context-length", text=text)
        else:
            fitting.append(row)
    if not fitting:
        raise InputError(f"none of {len(prompts)} prompts fits into {limit} tokens", remedy="lower max_new_tokens")
    return fitting


def _plain(prompt: Sequence[Message]) -> list[Message]:
    """The turns with nothing beside them, as a data set wants them."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in prompt]


def _trainer(
    prompts: list[list[Message]],
    *,
    start: Path,
    reward: Reward,
    tokenizer: Tokenizer,
    config: Reinforcement,
    seed: int,
) -> RolloutTrainer:
    from datasets import Dataset

    from solon.training.ppo import RolloutPPO
    from solon.training.trainers import RolloutGRPO, RolloutRLOO, WatchCallback

    kind = config.algorithm.kind
    assert kind != "dpo", "there are no rollouts"
    arguments = scheduled_config(
        kind,
        config.trainer,
        folder=reward.stage.path / CHECKPOINTS,
        seed=derive_seed(seed, "reinforcement"),
        fixed=algorithm_settings(config),
        plan=partial(rollouts_plan, num_prompts=len(prompts)),
    )
    batches = math.ceil(arguments.max_steps * arguments.gradient_accumulation_steps / uses_per_batch(arguments))
    order = prompt_order(len(prompts), num=batches * prompts_per_batch(arguments), seed=arguments.seed)
    trainer = {"ppo": RolloutPPO, "rloo": RolloutRLOO, "grpo": RolloutGRPO}[kind](
        model=str(start),
        reward_funcs=cast(Any, reward),
        args=cast(Any, arguments),
        train_dataset=Dataset.from_dict({"prompt": [prompts[i] for i in order]}),
        processing_class=tokenizer,
        peft_config=lora_config(config.lora),
    )
    reward.trainer = trainer
    if reward.watch is not None:
        reward.watch.attach(trainer, num_batches=batches)
        trainer.add_callback(WatchCallback(reward.watch))
    return trainer
