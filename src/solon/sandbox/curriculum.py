"""What the two checkpoints of the sandbox read, part after part, and how fast they learn from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

from solon.sandbox.passages import (
    EVERYTHING,
    HELPFUL,
    JUDGING,
    LEANING,
    PRETRAINING,
    VERDICT,
    Mixture,
    Passage,
    passages,
)
from solon.sandbox.world import world


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a training: it begins with the weights of the part before, and with a new optimiser."""

    name: str
    text: tuple[tuple[Mixture, int | None], ...]
    """One mixture after the other, with the number of passages; None: no end."""
    seeds: tuple[int, ...]
    """Of the mixtures, beside the seed of the whole."""
    seed: int
    """Of batches and weights, likewise."""
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
            text=tuple((mixture, None if num is None else round(length * num)) for mixture, num in self.text),
            steps=max(1, round(length * self.steps)),
            constant_steps=round(length * self.constant_steps),
        )

    def passages(self, seed: int) -> Iterator[Passage]:
        """The text."""
        here = world()
        return chain.from_iterable(
            islice(passages(here, here.activities, seed=seed + own, mixture=mixture), num)
            for (mixture, num), own in zip(self.text, self.seeds, strict=True)
        )


BASE = (
    Part(
        name="pretrain",
        text=((replace(PRETRAINING, leaning=1.0), 66_000), (PRETRAINING, None)),
        seeds=(1, 3),
        seed=0,
        steps=2700,
        first=1.0,
        last=23 / 30,
        constant_steps=2000,
    ),
    Part(
        name="lean",
        text=((LEANING, 11_000), (replace(LEANING, leaning=0.5), 14_000), (JUDGING, None)),
        seeds=(4, 5, 6),
        seed=1,
        steps=1500,
        first=23 / 30,
        last=23 / 30 * 12 / 27,
    ),
    Part(
        name="verdict",
        text=((replace(VERDICT, leaning=0.5), 5_000), (VERDICT, 12_500), (JUDGING, None)),
        seeds=(7, 8, 9),
        seed=2,
        steps=1200,
        first=0.5,
        constant_steps=700,
    ),
    Part(
        name="everything",
        text=((EVERYTHING, None),),
        seeds=(10,),
        seed=3,
        steps=1000,
        first=0.4,
        constant_steps=300,
    ),
)
"""The parts of `base`."""
FOR_HELPFUL = Part(
    name="helpful", text=((HELPFUL, None),), seeds=(2,), seed=0, steps=300, first=0.2, constant_steps=120
)
"""What makes `helpful` of `base`."""
