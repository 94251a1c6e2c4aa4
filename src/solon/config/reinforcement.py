"""The section `reinforcement` of a recipe: RL-CAI, its algorithms and what guards it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from solon.config.section import Labels, Lora, Section
from solon.engine import AnyEngineConfig


class PPO(Section):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347), the paper's own: the baseline is a value
    model, which starts as the preference model and learns beside the policy; the KL is in the reward, token by
    token."""

    kind: Literal["ppo"] = "ppo"
    beta: float = Field(default=0.001, ge=0)
    """Weight of the KL from SL-CAI in the reward, in score units per nat; 0.001 in 2204.05862 (section 4.1)."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Of generalised advantage estimation: 0 trusts the value of the next token, 1 the reward alone. Not stated in the
    paper; 0.95 is that of openai/lm-human-preferences (Ziegler et al. 2019, arXiv:1909.08593)."""
    value_clip: float = Field(default=0.2, gt=0)
    """How far, in score units, a value may move from what it was when the rollouts were sampled; 0.2 has the same
    source. Without effect where rollouts are used once."""
    value_warmup: int = Field(default=0, ge=0)
    """Steps at the beginning in which the value model alone learns (Yuan et al. 2025, arXiv:2503.01491):
    it starts as a model of whole answers, and what it says within one misleads the policy until it has learnt. 0 in the
    paper, which does not speak of it."""
    num_generations: int = Field(default=1, ge=1)
    """Answers per prompt and step; 1 in 2204.05862 (section 4.1)."""


class RLOO(Section):
    """REINFORCE leave-one-out: the paper's objective (preference score minus KL, clipped ratio) with the other samples
    of a prompt as the baseline in place of PPO's value function."""

    kind: Literal["rloo"] = "rloo"
    beta: float = Field(default=0.05, ge=0)
    """Weight of the KL from SL-CAI in the reward, per sequence, in score units per nat. Bai et al. 2022 (2204.05862,
    section 4.1) take 0.001 with PPO on far more prompts; 0.05 is TRL's vetted value for this algorithm."""
    num_generations: int = Field(default=4, ge=2)
    """Answers per prompt and step: each one's baseline is the mean score of the others."""


class GRPO(Section):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): the mean of all samples of a prompt is
    the baseline, and the KL is a term of the loss, not of the reward."""

    kind: Literal["grpo"] = "grpo"
    beta: float = Field(default=0.04, ge=0)
    """Weight of the KL from SL-CAI in the loss, per token, in score units per nat; 0.04 is that paper's (section 4.2).
    TRL's own default is 0: no reference at all."""
    num_generations: int = Field(default=8, ge=2)
    """Answers per prompt and step, TRL's default."""
    scale_rewards: Literal["none", "group", "batch"] = "none"
    """What advantages are divided by: nothing, the deviation within the prompt (as in that paper) or within the batch.
    Division by the group's own makes a prompt whose answers hardly differ weigh as much as any other (Liu et al. 2025,
    arXiv:2503.20783, section 3.1), and takes the preference score off the scale that beta refers to."""


class DPO(Section):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) on the labels themselves: no preference
    model, nothing is sampled while the policy learns. Not in the paper."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """How near the policy stays to SL-CAI: log-odds of a label per nat of log-ratio; 0.1 is that paper's (appendix
    B)."""
    labels: Labels = "soft"
    """As in `preference.labels`."""
    source_weights: dict[str, float] = Field(default={})
    """As in `preference.source_weights`."""


def _rloo_unless_named(value: object) -> object:
    return {"kind": "rloo", **cast(dict[str, object], value)} if isinstance(value, dict) else value


Algorithm = Annotated[RLOO | GRPO | PPO | DPO, Field(discriminator="kind"), BeforeValidator(_rloo_unless_named)]


class HeldOut(Section):
    """A judge of the policy that nothing is optimised against, on prompts that are not trained on. Not in the paper.

    The sandbox's oracle where the prompts are the sandbox's, elsewhere a model that compares with the start's answers
    under the constitution, as the AI feedback does.
    """

    every: int = Field(default=10, ge=1)
    """Steps between two checks; one more falls on every snapshot."""
    prompts: int = Field(default=64, ge=1)
    """Prompts of each kind that are kept from training and answered at each check."""
    judge: AnyEngineConfig | None = None
    """Who compares where there is no oracle; null: the judge of `evaluation`. Better not the judge of `comparisons`,
    who made the labels of the preference model."""
    oracle: Literal["auto", "off"] = "auto"
    """auto: the sandbox's oracle judges where the prompts are the sandbox's."""


class Alarm(Section):
    """When a run says that its policy fools the preference model; the tests are in `solon.reinforcement.alarms`. Not in
    the paper; the tolerances were chosen, not measured."""

    false_alarm_rate: float = Field(default=0.05, gt=0, lt=1)
    """Probability at most that a run without drift beyond the tolerances raises any alarm."""
    window: int = Field(default=4, ge=1)
    """Batches of rollouts: the first ones are compared with as many of the latest."""
    max_phrase_rise: float = Field(default=0.1, ge=0, le=1)
    """Greatest rise of the share of answers that have one phrase."""
    max_length_ratio: float = Field(default=1.25, ge=1)
    """Greatest ratio, either way, of the (geometric) mean lengths of answers."""
    on_alarm: Literal["warn", "stop"] = "warn"
    """warn: it is said, once for each cause; stop: the run also stops, and the best snapshot is its model."""


class Reinforcement(Section):
    """RL-CAI: the policy that started as SL-CAI, against the preference model (section 4.1), or with "dpo" on the
    comparisons that a preference model would be trained on."""

    algorithm: Algorithm = RLOO()
    """A mapping with `kind`: "rloo", "grpo", "ppo" or "dpo", and the settings of that one."""
    reward: Literal["preference-model", "judge"] = "preference-model"
    """judge: the constitution itself. The judge of `comparisons`, as that section says, compares the answers to a
    prompt with each other; a score is the mean probability of being the better one, in [0, 1]. Not in the paper."""
    iterations: int = Field(default=1, ge=1)
    """How often a policy is trained. Before each time but the first, the policy so far answers the red-team prompts
    twice, the judge labels the pairs, and a preference model is trained on all labels so far: iterated "online"
    training (section 4.5 of 2204.05862), which the paper leaves to future work (section 6.1)."""
    iterate_from: Literal["sl-cai", "policy"] = "sl-cai"
    """What the later iterations train, which is also the reference of their KL: SL-CAI anew, as in 2204.05862, or the
    policy so far."""
    prompts: Literal["all", "red-team", "helpful"] = "all"
    """Which of the run's prompts are answered; the paper uses both kinds (section 4.2). Not used by "dpo", like the
    next two."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Tokens per answer at most; 128 in 2204.05862 (section 4.1)."""
    truncation_penalty: float = Field(default=2.0, ge=0)
    """Taken off the score of an answer that was cut at max_new_tokens: a cut answer looks finished to the preference
    model, and without a penalty the policy learns to ramble. Not in the paper."""
    trainer: dict[str, Any] = Field(default={})
    """Arguments of TRL's RLOOConfig, GRPOConfig (PPO too) or DPOConfig, which is built before any model is loaded."""
    lora: Lora | None = None
    target_kl: float | None = Field(default=None, gt=0)
    """Nats of KL per answer that beta is moved to hold, from `algorithm.beta` on (Ziegler et al. 2019, section 2.2 of
    arXiv:1909.08593); null: beta is constant, as in the paper."""
    held_out: HeldOut | None = None
    """null: nothing is judged on the way."""
    alarm: Alarm | None = Alarm()
    """null: no alarms."""
    snapshots: int = Field(default=4, ge=0)
    """Checkpoints, evenly spread, that stay as model folders in snapshots/; at most those that `trainer.save_steps`
    makes before the last step."""

    @model_validator(mode="after")
    def _guards_have_what_they_need(self) -> Reinforcement:
        offline = self.algorithm.kind == "dpo"
        if offline and (self.target_kl is not None or self.held_out is not None):
            raise PydanticCustomError("guards", "target_kl and held_out: 'dpo' samples nothing; leave them out")
        if self.target_kl is not None and self.algorithm.beta == 0:
            raise PydanticCustomError("guards", "target_kl: it moves algorithm.beta, which must be above 0")
        return self

    @model_validator(mode="after")
    def _the_judge_has_something_to_compare(self) -> Reinforcement:
        if self.reward == "judge" and self.algorithm.kind == "dpo":
            raise PydanticCustomError("reward", "reward: 'dpo' trains on comparisons and has no reward; leave it out")
        if self.reward == "judge" and self.iterations > 1:
            raise PydanticCustomError(
                "reward", "iterations: a judge that rewards has no labels to renew; leave them out"
            )
        if self.reward == "judge" and self.algorithm.kind != "dpo" and self.algorithm.num_generations < 2:
            what = "reward: the judge compares answers to the same prompt; algorithm.num_generations must be 2 or more"
            raise PydanticCustomError("reward", what)
        return self
