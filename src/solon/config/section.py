"""What the sections of a recipe share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Labels = Literal["soft", "hard", "sampled", "margin"]
"""What a preference model is trained to say of a pair; see `Preference.labels`."""
Layout = Literal["paper", "principle-last"]
"""Where a comparison has its principle; see `Comparisons.layout`."""


class Section(BaseModel):
    """Frozen, without extra keys; a field is documented under the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Lora(Section):
    """Low-rank adapters in place of full training; they are merged into the saved model."""

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: int = Field(default=32, ge=1)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that an adapter's input is dropped in training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """The layers that get adapters, in peft's words."""
