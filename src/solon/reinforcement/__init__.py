"""RL-CAI: SL-CAI is trained to give the answers that the constitution prefers (arXiv:2212.08073, section 4.1).

online.py    against the preference model, on answers that the policy samples while it learns: PPO, RLOO, GRPO
critic.py    where PPO's value model starts
judge.py     the constitution asked directly, in place of the preference model
offline.py   on the comparisons themselves, without a preference model: DPO with soft labels

trained = train_rl(prompts, model=sl_cai, preference_model=pm, stage=stage, config=recipe.reinforcement)
trained = train_dpo(comparisons, model=sl_cai, stage=stage, config=recipe.reinforcement)
"""

from __future__ import annotations

from solon.reinforcement.judge import RolloutJudge
from solon.reinforcement.offline import train_dpo
from solon.reinforcement.online import (
    ROLLOUTS_FILE,
    Reward,
    RolloutRow,
    prompt_order,
    prompts_per_batch,
    rollouts_plan,
    train_rl,
    uses_per_batch,
)

__all__ = [
    "ROLLOUTS_FILE",
    "Reward",
    "RolloutJudge",
    "RolloutRow",
    "prompt_order",
    "prompts_per_batch",
    "rollouts_plan",
    "train_dpo",
    "train_rl",
    "uses_per_batch",
]
