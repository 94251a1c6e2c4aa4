"""What rollouts earn, as the function that TRL calls: scores, rows of rollouts.jsonl, what the guards are told."""

# accelerate leaves parts of its types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

from solon.artifact import StageFolder
from solon.config import Reinforcement
from solon.dialogue import Message
from solon.reinforcement.judge import Dialogue, JudgeAtWork, Judged
from solon.reinforcement.watch import ROLLOUTS_FILE, Watch

if TYPE_CHECKING:
    from solon.training.trainers import RolloutTrainer

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
    score: float | None
    """Of the preference model, on the scale of its held-out replies; of the judge, see `solon.reinforcement.judge`."""
    kl: float
    """log pi(y|x) - log pi_0(y|x) in nats, over the whole answer; its mean estimates the KL divergence."""
    reward: float | None
    """score - truncation penalty, and with RLOO and PPO - beta kl. None without a score, like the score itself."""
    num_tokens: int
    """Of the answer, its end token included."""
    beta: float
    """The weight of the KL that was in force, in the reward with RLOO and PPO and in the loss with GRPO."""
    batch: int
    """Counted from 1; rollouts that were made together."""
    p_by_principle: NotRequired[dict[str, float]]
    """Of the judge: mean probability of being the better one under each principle that was drawn, in [0, 1]."""
    unscored: NotRequired[str]
    """Why the judge gave no score."""


class Reward:
    """The reward function that TRL calls with a batch of rollouts: scores them and writes their rows.

    What it returns lacks the KL term of RLOO and PPO, which the trainers add with the same beta; the rows have it.
    Rollouts without a score are NaN, which TRL leaves out of the baseline and gives no advantage.
    """

    __name__ = "preference"

    def __init__(self, score: Score | JudgeAtWork | None, *, config: Reinforcement, stage: StageFolder) -> None:
        """`score` is None where another process asks the judge."""
        self.stage = stage
        self._score, self._config = score, config
        self.trainer: RolloutTrainer | None = None
        self.watch: Watch | None = None

    def __call__(
        self,
        *,
        prompts: Sequence[list[Message]],
        completions: Sequence[list[Message]],
        completion_ids: Sequence[Sequence[int]],
        **rest: Any,
    ) -> list[float]:
        from solon.training.trainers import gathered

        trainer = self.trainer
        assert trainer is not None, "a reward belongs to a trainer"
        algorithm = self._config.algorithm
        assert algorithm.kind != "dpo", "there are no rollouts"
        ends = set(cast(list[int], trainer.eos_token_ids))
        beta, batch = (algorithm.beta, 1) if self.watch is None else (self.watch.beta, self.watch.num_batches + 1)
        trainer.beta = beta
        in_reward = 0.0 if algorithm.kind == "grpo" else beta
        num_tokens = [len(ids) for ids in completion_ids]
        truncated = [ids[-1] not in ends for ids in completion_ids]
        dialogues: list[Dialogue] = [(p, c[-1]["content"]) for p, c in zip(prompts, completions, strict=True)]
        scores, details, metrics = self._judged(dialogues, group=algorithm.num_generations)
        rewards = [score - self._config.truncation_penalty * cut for score, cut in zip(scores, truncated, strict=True)]
        step = rest["trainer_state"].global_step + 1

        def tell(kls: list[float]) -> None:
            """Write the rows and what they show; with GRPO that is after the loss has read the rollouts."""
            if step == 1:
                drift = sum(map(abs, kls)) / sum(num_tokens)
                assert drift < START_KL_LIMIT, f"the policy is not its reference: {drift:.2g} nats a token apart"
            columns = zip(prompts, completions, scores, kls, rewards, num_tokens, details, strict=True)
            rows = [
                RolloutRow(
                    step=step,
                    prompt=p,
                    completion=c,
                    score=None if math.isnan(score) else score,
                    kl=kl,
                    reward=None if math.isnan(score) else reward - in_reward * kl,
                    num_tokens=tokens,
                    beta=beta,
                    batch=batch,
                    **more,
                )
                for p, c, score, kl, reward, tokens, more in columns
            ]
            trainer.note({**metrics, "truncated": fmean(gathered(truncated)), **self._told(gathered(rows))})

        if algorithm.beta:
            trainer.tell_kl(num_tokens, tell)
        else:
            tell([0.0] * len(scores))
        return rewards

    def _judged(self, dialogues: list[Dialogue], *, group: int) -> Judged:
        """A preference model scores the rollouts of its own process, the judge in the main process those of all: the
        answers to a prompt may be divided between processes."""
        from solon.training.trainers import asked_in_main

        ask = self._score
        if ask is not None and not isinstance(ask, JudgeAtWork):
            return Judged(ask(dialogues), [{} for _ in dialogues], {})

        def judge(every: list[Dialogue]) -> Judged:
            assert isinstance(ask, JudgeAtWork), "the main process has the judge"
            return ask(every, group=group)

        said, own = asked_in_main(dialogues, judge)
        return Judged(said.scores[own], said.columns[own], said.metrics)

    def _told(self, rows: Sequence[RolloutRow]) -> dict[str, float]:
        """Writes the rows of all processes, which have divided a batch of rollouts in its order; what they show."""
        from accelerate import PartialState

        if PartialState().is_main_process:
            for row in rows:
                self.stage.log(ROLLOUTS_FILE, row)
        known = [row["score"] for row in rows if row["score"] is not None]
        return {
            **({"score": fmean(known)} if known else {}),
            "sequence_kl": fmean(row["kl"] for row in rows),
            **({} if self.watch is None else self.watch.batch(rows)),
        }
