"""Where the value model of PPO starts: as the preference model (arXiv:2009.01325, section 3.4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from solon.config import PPO
from solon.errors import InputError
from solon.preference import Scale
from solon.training import Tokenizer, load_sequence_classifier, load_tokenizer, score_head

if TYPE_CHECKING:
    from solon.training.ppo import Critic


def start_critic(
    preference_model: str | Path | None, *, policy: str | Path, tokenizer: Tokenizer, settings: PPO
) -> Critic:
    """A copy of the preference model that reads what the policy writes, token by token, on the scale of its scores.

    Without a preference model, a copy of the policy with a head that says 0 of everything. Raises InputError if the
    preference model's tokenizer is not the policy's: it could not read the policy's tokens.
    """
    from solon.training.ppo import Critic, ValueModel

    classifier = load_sequence_classifier(preference_model or policy, tokenizer=tokenizer)
    scale = Scale(0.0, 1.0)
    if preference_model is None:
        score_head(classifier).weight.data.zero_()
    elif load_tokenizer(preference_model).get_vocab() == tokenizer.get_vocab():
        scale = Scale.load(preference_model)
    else:
        remedy = "train it from SL-CAI (preference.start: sl-cai), or take rloo or grpo"
        what = "ppo's value model starts as the preference model, whose tokenizer is not the policy's"
        raise InputError(what, path=preference_model, remedy=remedy)
    value_model = ValueModel(classifier, mean=scale.mean, std=scale.std)
    return Critic(
        model=value_model,
        gae_lambda=settings.gae_lambda,
        value_clip=settings.value_clip,
        warmup=settings.value_warmup,
    )
