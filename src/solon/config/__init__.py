"""Recipes: one YAML file says everything about a run; `--set a.b=value` changes single settings.

recipe = load_recipe("recipes/sandbox.yaml", ["revisions.rounds=2", "preference.trainer.learning_rate=1e-5"])
recipe.revisions.rounds      # 2
"""

from __future__ import annotations

from solon.config.load import load_recipe, shipped_recipe
from solon.config.recipe import (
    Comparisons,
    Evaluation,
    Gate,
    Launch,
    ModelName,
    Pairs,
    Preference,
    Prompts,
    Recipe,
    Revisions,
    Supervised,
    outcome_settings,
)
from solon.config.reinforcement import (
    DPO,
    GRPO,
    PPO,
    RLOO,
    Alarm,
    Algorithm,
    HeldOut,
    Reinforcement,
)
from solon.config.section import (
    Labels,
    Layout,
    Lora,
)

__all__ = [
    "DPO",
    "GRPO",
    "PPO",
    "RLOO",
    "Alarm",
    "Algorithm",
    "Comparisons",
    "Evaluation",
    "Gate",
    "HeldOut",
    "Labels",
    "Launch",
    "Layout",
    "Lora",
    "ModelName",
    "Pairs",
    "Preference",
    "Prompts",
    "Recipe",
    "Reinforcement",
    "Revisions",
    "Supervised",
    "load_recipe",
    "outcome_settings",
    "shipped_recipe",
]
