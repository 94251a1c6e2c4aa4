"""Where the time of a reinforcement step goes, for the benchmarks: rollout, scoring, log-probs, update, other."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

PARTS = ("rollout", "scoring", "log-probs", "update", "other")


class Stopwatch:
    """Seconds by part; what is called inside another part counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside: list[str] = []
        self._since_s = time.perf_counter()

    def _turn(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now_s = time.perf_counter()
        if self._inside:
            self.seconds[self._inside[-1]] += now_s - self._since_s
        self._since_s = now_s

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Count the time inside for `name`."""
        self._turn()
        self._inside.append(name)
        try:
            yield
        finally:
            self._turn()
            self._inside.pop()

    def timed(self, name: str, function: Callable[..., Any], *, without_gradient: bool = False) -> Callable[..., Any]:
        """The function, timed; where it is called with gradients `without_gradient` leaves it to what calls it."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if without_gradient and torch.is_grad_enabled():
                return function(*arguments, **options)
            with self.part(name):
                return function(*arguments, **options)

        return call


@contextmanager
def measured() -> Generator[Stopwatch]:
    """Time the parts of TRL's online trainers, and of those that stem from them, until the end of the block."""
    watch = Stopwatch()
    with ExitStack() as patches:
        for trainer in (GRPOTrainer, RLOOTrainer):
            for method, name in (
                ("_generate_single_turn", "rollout"),
                ("_calculate_rewards", "scoring"),
                ("_get_per_token_logps_and_entropies", "log-probs"),
                ("training_step", "update"),
                ("_generate_and_score_completions", "other"),
                ("_inner_training_loop", "other"),
            ):
                timed = watch.timed(name, getattr(trainer, method), without_gradient=name == "log-probs")
                patches.enter_context(patch.object(trainer, method, timed))
        timed = watch.timed("update", torch.optim.AdamW.step)
        patches.enter_context(patch.object(torch.optim.AdamW, "step", timed))
        yield watch


def shares(seconds: Counter[str]) -> str:
    """ "rollout 40 %, scoring 5 %, ..." of the whole."""
    whole = sum(seconds.values())
    return ", ".join(f"{part} {100 * seconds[part] / whole:.0f} %" for part in PARTS)
