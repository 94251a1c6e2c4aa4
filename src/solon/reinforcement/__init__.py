"""RL-CAI: SL-CAI is trained to give the answers that the constitution prefers (arXiv:2212.08073, section 4.1).

online.py    against the preference model, on answers that the policy samples while it learns: PPO, RLOO, GRPO
reward.py    what those answers earn
critic.py    where PPO's value model starts
judge.py     the constitution asked directly, in place of the preference model
offline.py   on the comparisons themselves, without a preference model: DPO with soft labels

and what guards the first against over-optimisation, whose reward is only a model of what is wanted:

alarms.py    tests of drift with a stated rate of false alarms; a controller of the KL
held_out.py  another judge, on prompts that are not trained on
watch.py     the three at work beside the training steps, and snapshots

trained = train_rl(prompts, model=sl_cai, preference_model=pm, stage=stage, config=recipe.reinforcement)
trained = train_dpo(comparisons, model=sl_cai, stage=stage, config=recipe.reinforcement)
"""

from __future__ import annotations

from solon.reinforcement.alarms import Alarm, Alarms, KLController
from solon.reinforcement.held_out import HELD_OUT_FILE, Asked, Grade, HeldOut, HeldOutRow, Verdict, keep_prompts
from solon.reinforcement.judge import RolloutJudge
from solon.reinforcement.offline import train_dpo
from solon.reinforcement.online import (
    prompt_order,
    prompts_per_batch,
    rollouts_plan,
    train_rl,
    uses_per_batch,
)
from solon.reinforcement.reward import Reward, RolloutRow
from solon.reinforcement.watch import ALARMS_FILE, ROLLOUTS_FILE, SNAPSHOTS

__all__ = [
    "ALARMS_FILE",
    "HELD_OUT_FILE",
    "ROLLOUTS_FILE",
    "SNAPSHOTS",
    "Alarm",
    "Alarms",
    "Asked",
    "Grade",
    "HeldOut",
    "HeldOutRow",
    "KLController",
    "Reward",
    "RolloutJudge",
    "RolloutRow",
    "Verdict",
    "keep_prompts",
    "prompt_order",
    "prompts_per_batch",
    "rollouts_plan",
    "train_dpo",
    "train_rl",
    "uses_per_batch",
]
