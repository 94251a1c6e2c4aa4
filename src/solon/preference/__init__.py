"""The preference model: one number per dialogue, trained on soft labels (arXiv:2212.08073, 4.1; 2204.05862, A.2).

`preference model` = TRL's reward model: `AutoModelForSequenceClassification` with one label, read on the token that
ends the reply, saved as safetensors. Its scores have no absolute zero, so each model comes with the mean and spread of
its scores on held-out replies (solon.json), and `score` gives

    score = (raw - mean) / std        P(a is better than b) = sigmoid((raw_a - raw_b) / temperature)

    result = train_preference(rows, model="runs/first/02-sl-cai/model", stage=stage, config=recipe.preference)
    result.accuracy["all"].value                        # share of decisive held-out pairs ranked as labelled
    loaded = PreferenceModel.load(result.model)
    loaded.score([(prompt, "I cannot help with that, because ...")])
    loaded.probability(prompt, "I cannot help with that, because ...", "No.")

Differences from the paper: 1. no preference-model pretraining; 2. scores are divided by their spread too, not only
centred, so that the weight of the KL in reinforcement means the same for every preference model.
"""

from __future__ import annotations

from solon.preference.loop import PreferenceResult, train_preference
from solon.preference.measures import Measured, measure
from solon.preference.model import PreferenceModel, Scale
from solon.preference.pairs import (
    MARGIN_BOUND,
    Pair,
    Split,
    label_of,
    loss_weights,
    margin_of,
    pair_of,
    split_by_prompt,
)

__all__ = [
    "MARGIN_BOUND",
    "Measured",
    "Pair",
    "PreferenceModel",
    "PreferenceResult",
    "Scale",
    "Split",
    "label_of",
    "loss_weights",
    "margin_of",
    "measure",
    "pair_of",
    "split_by_prompt",
    "train_preference",
]
