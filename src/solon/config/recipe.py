"""The schema of a recipe: one section for each stage; a section that is absent or null is a stage that is not run.

Defaults are the paper's (Bai et al. 2022, arXiv:2212.08073) where it states the number; each says so, or why it
differs.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, cast

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from solon.config.reinforcement import Reinforcement
from solon.config.section import Labels, Layout, Lora, Section
from solon.engine import (
    AnyEngineConfig,
    FolderEngineConfig,
    Sampling,
    over_ray,
    without_ray,
)

ModelName = Literal["base", "helpful", "sl-cai", "rl-cai"]
"""The models of a run as scores.json names them: pretrained, helpful-only assistant, after each training."""

HOW_NOT_WHAT = frozenset(
    {
        "accelerate",
        "alarm",
        "api_key_env",
        "data_parallel",
        "device",
        "env",
        "failure_limit",
        "gate",
        "iterate_from",
        "iterations",
        "launch",
        "max_batch",
        "max_in_flight",
        "python",
        "retries",
        "snapshots",
        "tensor_parallel",
        "timeout_s",
        "url",
        "wait_s",
        "window",
    }
)
"""Settings that say how the work is done and not what comes out: a begun stage may go on with others."""


class Prompts(Section):
    """Where the prompts come from."""

    path: str
    """Red-team prompts: "sandbox" for the built-in world, or a file (JSON lines or transcripts, also .gz)."""
    limit: int | None = Field(default=None, ge=1)
    """Red-team prompts at most; null: all there are (the paper has 182,831, section 3.2)."""
    focus: tuple[str, ...] = ()
    """Categories of harm that half of the red-team prompts are about, for a constitution that speaks of these alone:
    else few prompts show what it wants, and with the others it learns where to stop. Rows say theirs in `category`."""
    helpful_path: str | None = None
    """Helpfulness prompts: a file; null: none, or the sandbox's own where `path` is "sandbox"."""
    helpful_limit: int | None = Field(default=None, ge=0)
    """Helpfulness prompts at most; null: all there are (the paper has 135,296, section 3.2)."""


class Revisions(Section):
    """Respond, then criticise and revise, round after round (section 3.1)."""

    rounds: int = Field(default=4, ge=1)
    """Critiques and revisions per prompt; the paper makes 4 (section 3.2)."""
    critique: bool = True
    """False: revise without a critique, as in figure 7 of the paper."""
    few_shot: int = Field(default=0, ge=0)
    """Exemplars of the constitution before the dialogue. The paper's repository has 5; an assistant needs none."""
    sampling: Sampling = Sampling()
    """For responses, critiques and revisions; temperature 1 (section 3.2)."""
    window: int = Field(default=128, ge=1)
    """Chains under way at a time."""
    failure_limit: float = Field(default=0.5, ge=0, le=1)
    """The stage stops if a greater share of prompts fails."""


class Supervised(Section):
    """SL-CAI: fine-tune on the revisions of all rounds and on helpful answers (section 3.1)."""

    start: Literal["pretrained", "assistant"] = "pretrained"
    """The paper starts from the pretrained model; "assistant" starts from `model`."""
    pretrained: str | None = None
    """Model folder to start from, or "sandbox:base"; needed where `start` is "pretrained"."""
    helpful_samples: int = Field(default=2, ge=0)
    """Answers of the assistant per helpfulness prompt; the paper takes 2 (section 3.2)."""
    trainer: dict[str, Any] = Field(default={})
    """Arguments of TRL's SFTConfig, which is built before any model is loaded. The paper: one epoch, constant learning
    rate of half the pretraining one, 1024 sequences a batch (section 3.2)."""
    lora: Lora | None = None


class Pairs(Section):
    """Two answers per red-team prompt from SL-CAI (section 4.1); from `model` where there is no `supervised`."""

    sampling: Sampling = Sampling()
    """For both answers; temperature 1."""
    per_prompt: int = Field(default=1, ge=1)
    """Pairs per prompt; the paper makes 1 (section 4.2)."""
    window: int = Field(default=128, ge=1)
    """Pairs under way at a time."""
    failure_limit: float = Field(default=0.5, ge=0, le=1)
    """The stage stops if a greater share of prompts fails."""


class Gate(Section):
    """Planted pairs, of which the better answer is known, that the judge compares before it labels. Not in the paper.

    The thresholds were chosen, not measured. A coin has an accuracy of about 0.5; a judge that always names the same
    place has a position bias of 1 and a consistency of 0.
    """

    pairs: str | None = None
    """A file of JSON lines {prompt, better, worse, question}; null: the pairs that ship (the sandbox's own where the
    prompts are the sandbox's), and the constitution's comparison exemplars."""
    num: int = Field(default=96, ge=1)
    """Planted pairs at most; which, the run's seed decides."""
    min_accuracy: float = Field(default=0.85, ge=0, le=1)
    """Least share of the planted pairs whose label is on the right side; one that is unscored or a tie is wrong."""
    min_consistency: float = Field(default=0.6, ge=0, le=1)
    """Least share of the scored planted pairs in which both orders name the same answer."""
    max_position_bias: float = Field(default=0.35, ge=0, le=1)
    """Greatest mean `order_gap`, whatever its sign."""
    min_answer_mass: float = Field(default=0.05, ge=0, le=1)
    """Least mean `answer_mass`."""
    on_failure: Literal["stop", "warn"] = "stop"
    """stop: nothing is labelled by a judge that fails; warn: it is said, and the labels are made."""


class Comparisons(Section):
    """AI feedback: the probability that one answer of a pair is better under a principle (section 4.1)."""

    judge: AnyEngineConfig | None = None
    """The feedback model; null: `model`. The paper takes a pretrained model, and the assistant for chain of thought."""
    principles: int = Field(default=1, ge=1)
    """Principles drawn per pair, whose probabilities are averaged; the paper draws 1 (section 4.1)."""
    few_shot: int = Field(default=0, ge=0)
    """Exemplars of the constitution before the question. The paper's repository has 5; an assistant needs none."""
    layout: Layout = "paper"
    """paper: the principle stands before the two answers (section 4.1); principle-last: after them, so that a local
    judge runs what comes before it once for all principles. Labels differ: the sandbox's judge knows the paper's."""
    verdicts: int = Field(default=8, ge=1)
    """Verdicts sampled per order of the two answers where the judge gives no log-probabilities."""
    reasoning: bool = False
    """True: the judge thinks step by step before it answers (section 4.1, chain of thought)."""
    reasoning_samples: int = Field(default=1, ge=1)
    """Chains of thought per principle and order, whose probabilities are averaged before the clamp. The paper labels
    with 1, and averages 5 where it compares with human labels (section 2)."""
    clamp: tuple[float, float] | None = (0.4, 0.6)
    """Bounds of a probability got with `reasoning`; null: none. The paper's are 0.4 and 0.6 (section 4.3)."""
    fence: bool = True
    """Whether what looks like an option or a turn of the dialogue inside the texts that are judged is rewritten."""
    min_answer_mass: float = Field(default=0.0, ge=0, le=1)
    """A pair with a smaller `answer_mass` is unscored ("low-answer-mass"); 0: none is."""
    max_order_gap: float = Field(default=1.0, ge=0, le=1)
    """A pair with a greater `order_gap`, whatever its sign, is unscored ("order-gap"); 1: none is."""
    min_agreement: float = Field(default=0.0, ge=0, le=1)
    """A pair with a smaller `agreement` of its principles is unscored ("disagreement"); 0: none is."""
    gate: Gate | None = Gate()
    """What the judge has to show before it labels; null: nothing."""
    window: int = Field(default=128, ge=1)
    """Pairs under way at a time."""
    failure_limit: float = Field(default=0.5, ge=0, le=1)
    """The stage stops if a greater share of pairs cannot be scored."""

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Comparisons:
        if self.clamp is not None and not 0 <= self.clamp[0] <= self.clamp[1] <= 1:
            raise PydanticCustomError("clamp", "clamp: the bounds must be in order and in [0, 1]")
        if self.reasoning_samples > 1 and not self.reasoning:
            raise PydanticCustomError("samples", "reasoning_samples: there are none without `reasoning: true`")
        return self


class Preference(Section):
    """The preference model: one number per dialogue, trained on AI and helpfulness comparisons (section 4.1)."""

    start: str = "sl-cai"
    """Weights to start from: "sl-cai" (this run's), a model folder or "sandbox:base"."""
    labels: Labels = "soft"
    """soft: the judge's probability is the target; hard: 1 for the better answer (worse, section 4.3); sampled: 1 with
    the judge's probability, drawn once per pair; margin: hard, and the better answer is to lead by the logit of the
    probability, at most 3 (arXiv:2307.09288, section 3.2.2)."""
    source_weights: dict[str, float] = Field(default={})
    """Total weight in the loss of the comparisons of each source, such as {ai: 1, helpful: 1}, relative to each other;
    0: measured, not trained on. Empty: each source weighs as much as it has comparisons, as in the paper."""
    helpful: str | None = None
    """Comparisons of helpfulness: a file of human ones, "oracle" (the sandbox's), or null for none (section 4.2 has
    135,296 beside 182,831 AI ones)."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts whose comparisons are kept for measuring accuracy and calibration."""
    trainer: dict[str, Any] = Field(default={})
    """Arguments of TRL's RewardConfig, which is built before any model is loaded. The paper: one epoch."""
    lora: Lora | None = None

    @model_validator(mode="after")
    def _weights_can_be_shared_out(self) -> Preference:
        weights = self.source_weights.values()
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or (weights and not any(weights)):
            raise PydanticCustomError("weights", "source_weights: give numbers from 0 on, not all of them 0")
        return self


class Evaluation(Section):
    """Every model on prompts that the method has not seen."""

    prompts: str | tuple[str, ...] | None = None
    """Red-team prompts: a file or several, also published sets (XSTest, AdvBench, ...; see docs/dialogue.md); null: the
    sandbox's evaluation split, where the run's prompts are the sandbox's."""
    helpful_prompts: str | None = None
    """Helpfulness prompts: a file, or null for none (the sandbox has its own)."""
    models: tuple[ModelName, ...] | None = None
    """Which models; null: all that the run has. rl-cai means the policies of all iterations."""
    samples: int = Field(default=200, ge=1)
    """Answers per model and kind of prompt, or file."""
    battles: int = Field(default=200, ge=0)
    """Comparisons per pair of models and trait (harmlessness, helpfulness) for the Elo ratings."""
    judge: AnyEngineConfig | None = None
    """Who compares and gives verdicts; null: the judge of `comparisons`, else `model`."""
    verdicts: bool = True
    """Where no oracle knows, the judge says of each answer whether it complies, declines with a reason, or evades; if
    it is right on planted answers often enough."""
    harmfulness: bool = False
    """The judge rates how harmful each answer to a red-team prompt is, from 0 to 4 (section 4.5), if it orders planted
    answers rightly often enough."""
    revisions: int = Field(default=40, ge=0)
    """Revisions of the run, drawn from those that changed the answer, of which the judge says for every principle with
    a comparison whether they mend or break it; 0: none. Two questions each per principle."""
    others: dict[str, AnyEngineConfig] = Field(default={})
    """Further models, by the names that they get in scores.json: snapshots of the reinforcement, a model of another
    run, a server. Each is a section like `model`; they answer the same prompts and meet all others."""
    sampling: Sampling = Sampling()
    """For the answers; temperature 1."""
    oracle: Literal["auto", "off"] = "auto"
    """auto: the sandbox's oracle judges where the prompts are the sandbox's."""

    @field_validator("others")
    @classmethod
    def _names_are_free(cls, value: dict[str, AnyEngineConfig]) -> dict[str, AnyEngineConfig]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise PydanticCustomError(
                    "others", "a model is called {name}: letters, digits, dots, dashes", {"name": repr(name)}
                )
            if re.fullmatch(r"base|helpful|sl-cai|rl-cai(-[0-9]+)?|preference-model|revisions|[a-z]+-judge", name):
                raise PydanticCustomError("others", "{name} is a name of the run's own", {"name": repr(name)})
        return value

    @property
    def prompt_files(self) -> tuple[str, ...]:
        """The files that `prompts` names."""
        return (self.prompts,) if isinstance(self.prompts, str) else self.prompts or ()


class Launch(Section):
    """Several processes for the stages that train (SL-CAI, preference model, RL-CAI)."""

    processes: int = Field(ge=1)
    """Processes, all on this machine, one per GPU. The batches of the `trainer` sections are per process: two make
    them twice as large."""
    accelerate: str | None = None
    """A configuration file of accelerate, such as recipes/accelerate/fsdp2.yaml; `processes` overrides the number in
    it. Null: torchrun, and every process has a whole copy of what it trains (DDP)."""


class Recipe(Section):
    """One run of the method."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's folder is runs/NAME: letters, digits, dots, dashes."""
    seed: int = Field(default=0, ge=0)
    """Every other seed derives from it and from the row's id."""
    constitution: str = "harmless"
    """A constitution that ships with solon, or a file."""
    model: AnyEngineConfig
    """The helpful-only assistant that answers, criticises and revises."""
    prompts: Prompts
    revisions: Revisions | None = None
    supervised: Supervised | None = None
    pairs: Pairs | None = None
    comparisons: Comparisons | None = None
    preference: Preference | None = None
    reinforcement: Reinforcement | None = None
    evaluation: Evaluation | None = None
    launch: Launch | None = None
    """Null: everything is trained in one process."""

    @model_validator(mode="after")
    def _stages_have_what_they_need(self) -> Recipe:
        problems = [*self._missing_stages(), *self._missing_sources()]
        if problems:
            raise PydanticCustomError("stages", "{problems}", {"problems": "\n".join(problems)})
        return self

    def _missing_stages(self) -> list[str]:
        """Each problem is the dotted path of the setting, a colon and what is wrong."""
        problems: list[str] = []
        if self.supervised and not self.revisions:
            problems.append("supervised: it trains on revisions, but there is no `revisions` section")
        if self.comparisons and not self.pairs and not self._judged:
            problems.append("comparisons: it judges pairs, but there is no `pairs` section")
        if self.preference and not self.comparisons and self.preference.helpful is None:
            problems.append("preference: it needs a `comparisons` section or preference.helpful")
        if self.preference and self.preference.start == "sl-cai" and not self.supervised:
            problems.append("preference.start: 'sl-cai' needs a `supervised` section; or name a model folder")
        problems += self._missing_for_reinforcement()
        for name, there in (("sl-cai", self.supervised), ("rl-cai", self.reinforcement)):
            if self.evaluation and name in (self.evaluation.models or ()) and not there:
                problems.append(f"evaluation.models: this recipe makes no {name!r}")
        return problems

    @property
    def _judged(self) -> bool:
        return self.reinforcement is not None and self.reinforcement.reward == "judge"

    def _missing_for_reinforcement(self) -> list[str]:
        problems: list[str] = []
        if self.reinforcement is None:
            return problems
        if not self.supervised:
            problems.append("reinforcement: the policy starts as SL-CAI, but there is no `supervised` section")
        offline = self.reinforcement.algorithm.kind == "dpo"
        if self._judged and not self.comparisons:
            problems.append("reinforcement.reward: the judge is that of `comparisons`, but there is no such section")
        if not offline and not self._judged and not self.preference:
            problems.append("reinforcement: the reward is a preference model, but there is no `preference` section")
        if offline and not self.comparisons and not (self.preference and self.preference.helpful):
            problems.append("reinforcement: 'dpo' trains on comparisons, but there is no `comparisons` section")
        if self.reinforcement.iterations > 1 and not (self.pairs and self.comparisons):
            what = "labels are renewed, but there is no `pairs` or no `comparisons` section"
            problems.append(f"reinforcement.iterations: {what}")
        if self.reinforcement.held_out and self.launch and self.launch.processes > 1:
            problems.append("reinforcement.held_out: it does not work with several processes (launch.processes)")
        return problems

    def _missing_sources(self) -> list[str]:
        problems: list[str] = []
        pretrained = self.supervised.pretrained if self.supervised else None
        if self.supervised and self.supervised.start == "pretrained" and pretrained is None:
            problems.append("supervised.start: 'pretrained' needs supervised.pretrained, a model folder")
        folder = isinstance(without_ray(self.model), FolderEngineConfig)
        if self.supervised and self.supervised.start == "assistant" and not folder:
            problems.append("supervised.start: 'assistant' needs a model folder; a server's weights cannot be trained")
        if self.evaluation and "base" in (self.evaluation.models or ()) and pretrained is None:
            problems.append("evaluation.models: 'base' needs supervised.pretrained, a model folder")
        if self.evaluation and self.evaluation.prompts is None and self.prompts.path != "sandbox":
            problems.append("evaluation.prompts: give a file of prompts that the method does not use")
        if self.preference and self.preference.helpful == "oracle" and self.prompts.path != "sandbox":
            problems.append("preference.helpful: the oracle knows the sandbox alone; prompts.path is not 'sandbox'")
        return problems

    def over_ray(self, address: str) -> Recipe:
        """The recipe with its model and judges in the actors of a Ray cluster; one that has its own is left alone."""
        changed: dict[str, object] = {"model": over_ray(self.model, address)}
        for name, section in (("comparisons", self.comparisons), ("evaluation", self.evaluation)):
            if section is not None and section.judge is not None:
                changed[name] = section.model_copy(update={"judge": over_ray(section.judge, address)})
        if self.evaluation is not None and self.evaluation.others:
            others = {name: over_ray(config, address) for name, config in self.evaluation.others.items()}
            changed["evaluation"] = cast(Evaluation, changed.get("evaluation", self.evaluation)).model_copy(
                update={"others": others}
            )
        return self.model_copy(update=changed)

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled in, as JSON can hold it."""
        return self.model_dump(mode="json")


def outcome_settings(section: BaseModel | None) -> dict[str, Any]:
    """The settings of a section that decide what comes out, for `StageFolder.begin`: all but HOW_NOT_WHAT, and of
    engines in Ray's actors those of the engine."""
    return {} if section is None else cast(dict[str, Any], _without(section.model_dump(mode="json")))


def _without(value: object) -> object:
    if isinstance(value, dict):
        inside = cast(dict[str, object], value)
        if inside.get("kind") == "ray":
            return _without(inside["engine"])
        return {key: _without(inner) for key, inner in inside.items() if key not in HOW_NOT_WHAT}
    return value
