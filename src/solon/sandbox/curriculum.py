"""What the two checkpoints of the sandbox read, part after part, and how fast they learn from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import NamedTuple

from solon.sandbox.mixtures import (
    EVERYTHING,
    FINDING,
    HELPFUL,
    JUDGING,
    LEANING,
    PLACING,
    POLISH,
    PRETRAINING,
    RULING,
    VERDICT,
    WEIGHING,
    Mixture,
)
from solon.sandbox.passages import Passage, passages
from solon.sandbox.world import world


class Stretch(NamedTuple):
    """Some passages of a text."""

    mixture: Mixture
    num: int | None
    """Of passages; None: no end."""
    seed: int
    """Beside the seed of the whole."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a training: it begins with the weights of the part before, and with a new optimiser."""

    name: str
    text: tuple[Stretch, ...]
    """One after the other."""
    seed: int
    """Of batches, beside the seed of the whole."""
    steps: int
    first: float
    """Of the learning rates, where the part begins; the warm-up comes before."""
    last: float = 0.0
    """Where it ends."""
    constant_steps: int = 0
    """Before the rates go from `first` to `last` in a line."""

    def scaled(self, length: float) -> Part:
        """The same with another number of steps and passages."""
        return replace(
            self,
            text=tuple(one._replace(num=None if one.num is None else round(length * one.num)) for one in self.text),
            steps=max(1, round(length * self.steps)),
            constant_steps=round(length * self.constant_steps),
        )

    def passages(self, seed: int) -> Iterator[Passage]:
        """The text."""
        here = world()
        return chain.from_iterable(
            islice(passages(here, here.activities, seed=seed + one.seed, mixture=one.mixture), one.num)
            for one in self.text
        )


BASE = (
    Part(
        name="pretrain",
        text=(Stretch(replace(PRETRAINING, leaning=1.0), 66_000, seed=1), Stretch(PRETRAINING, None, seed=3)),
        seed=0,
        steps=2700,
        first=1.0,
        last=23 / 30,
        constant_steps=2000,
    ),
    Part(
        name="lean",
        text=(
            Stretch(LEANING, 11_000, seed=4),
            Stretch(replace(LEANING, leaning=0.5), 14_000, seed=5),
            Stretch(JUDGING, None, seed=6),
        ),
        seed=1,
        steps=1500,
        first=23 / 30,
        last=23 / 30 * 12 / 27,
    ),
    Part(
        name="find",
        text=(Stretch(FINDING, None, seed=7),),
        seed=2,
        steps=700,
        first=0.5,
        last=0.5,
    ),
    Part(
        name="verdict",
        text=(Stretch(VERDICT, None, seed=8),),
        seed=3,
        steps=900,
        first=0.5,
        last=0.4,
    ),
    Part(
        name="place",
        text=(
            Stretch(PLACING, 6_000, seed=12),
            Stretch(replace(PLACING, leaning=0.5), 4_000, seed=13),
            Stretch(replace(PLACING, leaning=0.0), None, seed=14),
        ),
        seed=7,
        steps=600,
        first=0.5,
        last=0.45,
    ),
    Part(
        name="ruling",
        text=(Stretch(RULING, None, seed=9),),
        seed=4,
        steps=750,
        first=0.45,
        last=0.4,
    ),
    Part(
        name="weigh",
        text=(Stretch(WEIGHING, None, seed=15),),
        seed=8,
        steps=900,
        first=0.45,
        last=0.4,
    ),
    Part(
        name="everything",
        text=(Stretch(EVERYTHING, None, seed=10),),
        seed=5,
        steps=650,
        first=0.4,
        constant_steps=200,
    ),
    Part(
        name="polish",
        text=(Stretch(POLISH, None, seed=11),),
        seed=6,
        steps=1200,
        first=0.35,
        constant_steps=300,
    ),
)
"""The parts of `base`."""
FOR_HELPFUL = Part(
    name="helpful", text=(Stretch(HELPFUL, None, seed=2),), seed=0, steps=500, first=0.2, constant_steps=200
)
"""What makes `helpful` of `base`."""
