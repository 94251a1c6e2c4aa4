"""What happens beside the training steps: measures and alarms of each batch, checks by the held-out judge, snapshots.

Everything that is known here is a function of the rows that are in the stage's folder, so that a resumed run, which
reads the rows up to its checkpoint, goes on as if it had not been stopped.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from solon.artifact import StageFolder, read_rows
from solon.config import Reinforcement
from solon.engine import LocalEngineConfig
from solon.preference import PreferenceModel
from solon.reinforcement.alarms import DIMENSIONS, Alarm, Alarms, Answered, KLController, batches
from solon.reinforcement.held_out import (
    HELD_OUT_FILE,
    HeldOut,
    HeldOutRow,
    answers,
    check_metrics,
    goodness,
    graded_rows,
    wins_by_dimension,
)
from solon.training import Tokenizer, load_causal_lm, save_model, whole_folder
from solon.wording import boilerplate, distinct, is_refusal

if TYPE_CHECKING:
    from solon.training.trainers import RolloutTrainer

ALARMS_FILE = "alarms.jsonl"
ROLLOUTS_FILE = "rollouts.jsonl"
LOGS = (ROLLOUTS_FILE, ALARMS_FILE, HELD_OUT_FILE)
"""Files whose rows have a step, and are made again from the checkpoint on that a run resumes at."""
SNAPSHOTS = "snapshots"
"""The folder of the snapshots: snapshots/step-8 and so on, each a model folder."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is needed to ask the policy and to save it."""

    start: Path
    """The folder that training began from."""
    tokenizer: Tokenizer
    """Not the trainer's own: it is changed here."""

    def save(self, checkpoint: Path, folder: Path) -> None:
        """Write a checkpoint, or a model folder, as a model folder."""
        load = partial(load_causal_lm, tokenizer=self.tokenizer)
        save_model(checkpoint, base=self.start, load=load, to=folder, tokenizer=self.tokenizer)


class Watch:
    """Looks on while a policy is trained, and says when to stop."""

    def __init__(
        self,
        stage: StageFolder,
        *,
        config: Reinforcement,
        seed: int,
        policy: Policy,
        judge: PreferenceModel | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        """`judge` is the preference model that rewards, in the process that trains; None where it is another judge."""
        assert config.algorithm.kind != "dpo", "there are no rollouts"
        self._stage, self._config, self._seed, self._policy = stage, config, seed, policy
        self._judge, self._held_out = judge, held_out
        self._trainer: RolloutTrainer | None = None
        self._alarms: Alarms | None = None
        self._stop = False
        self.num_batches = 0
        """Batches of rollouts that were seen."""
        self._controller = (
            None if config.target_kl is None else KLController(config.algorithm.beta, target=config.target_kl)
        )

    # ---- what the trainer tells

    def attach(self, trainer: RolloutTrainer, *, num_batches: int) -> None:
        """The trainer that is watched, and the batches of rollouts that it will make."""
        self._trainer = trainer
        if self._config.alarm is not None:
            checks = sum(self._is_check(step) for step in range(1, trainer.args.max_steps + 1))
            kinds = {row.get("kind") for row in self._held_out.prompts} if self._held_out is not None else set[str]()
            judged = [name for kind, name in DIMENSIONS.items() if kind in kinds]
            self._alarms = Alarms(self._config.alarm, num_batches=num_batches, num_checks=checks, dimensions=judged)

    def begin(self, step: int) -> None:
        """Take up what is known after `step`, and check the start where it has not been."""
        for batch in batches(cast("Iterable[Answered]", self._rows(ROLLOUTS_FILE))):
            self._learn(batch)
        if self._alarms is not None:
            self._alarms.known([row["cause"] for row in self._rows(ALARMS_FILE)])
        for folder in (self._stage.path / SNAPSHOTS).glob("step-*"):
            if _step_of(folder) > step and self._is_main():
                shutil.rmtree(folder)
        if self._held_out is not None and step == 0:
            self._check(0)

    def batch(self, rows: Sequence[Answered]) -> dict[str, float]:
        """Measures of a batch of rollouts, those of all processes, for the log; sets beta for the next one."""
        self._raise(self._learn(rows))
        texts = [row["completion"][-1]["content"] for row in rows]
        kl = sum(row["kl"] for row in rows) / sum(row["num_tokens"] for row in rows)
        return {
            "token_kl": kl,
            "distinct_1": distinct(texts, n=1),
            "distinct_2": distinct(texts, n=2),
            "boilerplate": boilerplate(texts),
            "refusals": fmean(map(is_refusal, texts)),
        }

    @property
    def beta(self) -> float:
        """The weight of the KL in the next batch."""
        algorithm = self._config.algorithm
        assert algorithm.kind != "dpo", "there are no rollouts"
        return algorithm.beta if self._controller is None else self._controller.beta

    def after_step(self, step: int) -> bool:
        """Make the checks that fall on this step; True: stop."""
        if self._is_check(step):
            self._check(step)
        return self._stop

    def saved(self, step: int, checkpoint: Path) -> None:
        """A checkpoint is whole: the snapshot that falls on it is made, unless it is there."""
        from solon.training.trainers import weights_are_divided

        folder = self._stage.path / SNAPSHOTS / f"step-{step}"
        if self._is_snapshot(step) and not folder.exists() and self._is_main() and not weights_are_divided():
            with whole_folder(folder) as part:
                self._policy.save(checkpoint, part)

    # ---- what is asked afterwards

    def stopped(self) -> bool:
        """Whether an alarm on disk has stopped the run."""
        return any(row["stop"] for row in self._rows(ALARMS_FILE))

    def told(self) -> dict[str, Any]:
        """For the manifest: the rows of alarms.jsonl, the judge and the model that was kept, where there are any."""
        about: dict[str, Any] = {}
        if alarms := list(self._rows(ALARMS_FILE)):
            about["alarms"] = alarms
        if self._held_out is not None:
            about["held_out_judge"] = self._held_out.judge
        if self.stopped():
            about["kept"] = "start" if (best := self.best()) == self._policy.start else f"{SNAPSHOTS}/{best.name}"
        return about

    def best(self) -> Path:
        """The model to keep of a run that was stopped: a snapshot, or the start where none is better.

        With a held-out judge the one that it likes best, the earliest of equal ones; without, the last snapshot from
        before the batches that the alarm saw.
        """
        folders = {0: self._policy.start}
        folders |= {_step_of(folder): folder for folder in (self._stage.path / SNAPSHOTS).glob("step-*")}
        if self._held_out is not None:
            rows = cast("list[HeldOutRow]", list(self._rows(HELD_OUT_FILE)))
            good = {step: goodness(row for row in rows if row["step"] == step) for step in folders}
            return folders[min(folders, key=lambda step: (-good[step], step))]
        alarm = next(row["step"] for row in self._rows(ALARMS_FILE) if row["stop"])
        steps = list(dict.fromkeys(row["step"] for row in self._rows(ROLLOUTS_FILE)))
        assert self._config.alarm is not None, "no alarm without settings"
        seen = steps[: steps.index(alarm) + 1][-self._config.alarm.window :]
        return folders[max(step for step in folders if step < seen[0])]

    # ---- inside

    def _learn(self, batch: Sequence[Answered]) -> list[Alarm]:
        self.num_batches += 1
        if self._controller is not None:
            self._controller.update(fmean(row["kl"] for row in batch))
        return [] if self._alarms is None else self._alarms.after_batch(batch)

    def _raise(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            self._stop |= alarm.stop
            if self._is_main():
                then = "; the run stops" if alarm.stop else ""
                _log.warning("over-optimisation, %s, step %d: %s%s", alarm.cause, alarm.step, alarm.text, then)
                with self._stage.journal(ALARMS_FILE, key=None) as journal:
                    journal.append(asdict(alarm))

    def _check(self, step: int) -> None:
        from solon.training.trainers import unwrapped

        held_out, trainer = self._held_out, self._trainer
        assert held_out is not None and trainer is not None
        found = answers(
            unwrapped(trainer),
            tokenizer=self._policy.tokenizer,
            config=LocalEngineConfig(path=str(self._policy.start)),
            prompts=held_out.prompts,
            max_new_tokens=self._config.max_new_tokens,
            seed=self._seed,
        )
        starts = {row["id"]: row["response"] for row in self._rows(HELD_OUT_FILE) if row["step"] == 0}
        rows = graded_rows(
            found,
            starts=starts,
            held_out=held_out,
            step=step,
            raw_score=None if self._judge is None else self._judge.raw_score,
            scale=(0.0, 1.0, 1.0) if self._judge is None else self._judge.scale,
        )
        with self._stage.journal(HELD_OUT_FILE, key=None) as journal:
            for row in rows:
                journal.append(row)
        self._stage.metric({"step": step, **check_metrics(rows)})
        if step and self._alarms is not None:
            pm_wins = None if self._judge is None else wins_by_dimension(rows, by="pm_win")
            self._raise(self._alarms.after_check(step, wins_by_dimension(rows), pm_wins=pm_wins))

    def _is_check(self, step: int) -> bool:
        return self._held_out is not None and (step % self._held_out.every == 0 or self._is_snapshot(step))

    def _is_snapshot(self, step: int) -> bool:
        """Whether a snapshot falls on the checkpoint at `step`: `snapshots` of them, evenly spread over the steps."""
        assert self._trainer is not None
        total, every = self._trainer.args.max_steps, int(self._trainer.args.save_steps)
        parts = self._config.snapshots + 1
        return step % every == 0 and step < total and step * parts // total > (step - every) * parts // total

    def _is_main(self) -> bool:
        return self._trainer is not None and self._trainer.is_world_process_zero()

    def _rows(self, file: str) -> Iterable[dict[str, Any]]:
        path = self._stage.path / file
        return read_rows(path) if path.exists() else ()


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
