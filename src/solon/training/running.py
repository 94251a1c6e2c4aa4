"""Training that can be killed: checkpoints, resuming, whole model folders, cards; and silence."""

# transformers, TRL and datasets leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from solon.artifact import Progress, StageFolder, read_json, read_rows, silent, write_rows
from solon.config import Launch, outcome_settings
from solon.errors import InputError
from solon.training.launching import launched, wait_for_leftovers
from solon.training.models import Model, Tokenizer, load_causal_lm, resolve_model

_log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""The folder in a stage's where its trainer keeps them."""

MakeTrainer = Callable[[], AbstractContextManager[Any]]
"""Makes a trainer of transformers, and closes what was opened for it when it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a run gives to each of its training stages."""

    seed: int = 0
    """The run's seed; each stage derives its own."""
    again: bool = False
    """Start from nothing, whatever the stage's folder holds."""
    facts: Mapping[str, object] = field(default_factory=dict[str, object])
    """Further lines of the model card, such as the constitution's fingerprint."""
    progress: Progress = silent
    launch: Launch | None = None
    """Processes to train in; None: this one."""

    @property
    def settings(self) -> dict[str, object]:
        """What decides what comes out of any stage, for `StageFolder.begin`."""
        launch = {} if self.launch is None else {"launch": outcome_settings(self.launch)}
        return {"seed": self.seed, **launch}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training stage made."""

    model: Path
    """Folder with safetensors, tokenizer and README.md."""
    counts: Mapping[str, int]
    """Rows read, used and refused."""


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars, no telemetry, no chatter from transformers, datasets and TRL; errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets
    from huggingface_hub import constants
    from transformers.utils import logging as messages

    bars, level, rows = (
        messages.is_progress_bar_enabled(),
        messages.get_verbosity(),
        datasets.are_progress_bars_disabled(),
    )
    # TRL warns of every rollout without a score, with its text; they are counted.
    trainers = logging.getLogger("trl")
    trainers_level = trainers.level
    trainers.setLevel(logging.ERROR)
    # Read by TRL for its bar over the log-probabilities of the reference.
    tqdm_before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    constants.HF_HUB_DISABLE_TELEMETRY = True
    messages.disable_progress_bar()
    messages.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if tqdm_before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = tqdm_before
        messages.set_verbosity(level)
        trainers.setLevel(trainers_level)
        if bars:
            messages.enable_progress_bar()
        if not rows:
            datasets.enable_progress_bars()


def last_checkpoint(folder: Path, *, processes: int = 1) -> Path | None:
    """The newest checkpoint that is whole; those that are not are deleted. None if there is none.

    A checkpoint's trainer_state.json is written last; the weights are opened all the same, because the oldest
    checkpoint is deleted file by file. Of several `processes` each writes the state of its random numbers without
    waiting for the first, which writes the rest: these files must be there too.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True):
        if _is_whole(checkpoint, processes=processes):
            return checkpoint
        _log.info("%s is not whole and is left out", checkpoint)
        shutil.rmtree(checkpoint)
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _is_whole(checkpoint: Path, *, processes: int) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        state = read_json(checkpoint / "trainer_state.json")
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, framework="pt"):
                pass
    except (InputError, SafetensorError, OSError):
        return False
    return (
        bool(weights)
        and _is_resumable(checkpoint)
        and _has_random_states(checkpoint, processes=processes)
        and state["global_step"] == _step_of(checkpoint)
    )


def _has_random_states(checkpoint: Path, *, processes: int) -> bool:
    """Whether every one of several processes has written its own; a file that was torn is no zip file."""
    return processes == 1 or all(is_zipfile(checkpoint / f"rng_state_{rank}.pth") for rank in range(processes))


def _is_resumable(checkpoint: Path) -> bool:
    """Whether the optimiser is there: whole, or in shards as DeepSpeed (`latest`, written last) and FSDP keep it."""
    optimizers = ("optimizer.pt", "optimizer.bin", "latest", "optimizer_0/.metadata")
    return any((checkpoint / name).is_file() for name in optimizers) and (checkpoint / "scheduler.pt").is_file()


def drop_rows_after(step: int, path: Path) -> None:
    """Take the rows of later steps out of a file of rows with a column `step`: they will be made again."""
    if path.exists():
        write_rows(path, [row for row in read_rows(path) if row["step"] <= step])


def run_trainer(
    make: MakeTrainer,
    *,
    stage: StageFolder,
    run: RunContext,
    what: str,
    logs: Sequence[str] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> Path:
    """Train from the last whole checkpoint to the last step, or until `stopped`, and return the checkpoint there.

    `make` makes the trainer, whose folder is CHECKPOINTS in the stage's; with `run.launch` it is pickled and called in
    every process. Rows of metrics.jsonl, and of the files named in `logs`, from after the checkpoint are dropped first.
    A trainer that had reached its last step trains no further (TRL itself would take one step more).
    """
    processes = 1 if run.launch is None else run.launch.processes
    wait_for_leftovers(stage.path)
    checkpoint = last_checkpoint(stage.path / CHECKPOINTS, processes=processes)
    stage.close()
    for name in ("metrics.jsonl", *logs):
        drop_rows_after(-1 if checkpoint is None else _step_of(checkpoint), stage.path / name)
    if checkpoint is None or not stopped():
        work = partial(_train, make=make, stage=stage, checkpoint=checkpoint, what=what)
        if run.launch is None:
            work(run.progress)
        else:
            launched(work, launch=run.launch, folder=stage.path, progress=run.progress)
        checkpoint = last_checkpoint(stage.path / CHECKPOINTS, processes=processes)
    assert checkpoint is not None
    return checkpoint


def _train(progress: Progress, *, make: MakeTrainer, stage: StageFolder, checkpoint: Path | None, what: str) -> None:
    from transformers import PrinterCallback

    from solon.training.on_cpu import quicker, tiny_as_zero
    from solon.training.trainers import FORGETS_TOKENS, StageCallback, TokenCount

    with tiny_as_zero(), make() as trainer:
        last = trainer.args.max_steps
        if checkpoint is None or _step_of(checkpoint) < last:
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(StageCallback(stage=stage, progress=progress, what=what))
            if issubclass(type(trainer), FORGETS_TOKENS):
                trainer.add_callback(TokenCount(trainer))
            try:
                with quicker(trainer):
                    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            finally:
                progress.end()
                stage.close()
            # Before the last one where a watcher stopped it.
            last = trainer.state.global_step
        trainer.accelerator.wait_for_everyone()
        saved = stage.path / CHECKPOINTS / f"checkpoint-{last}"
        assert _is_whole(saved, processes=trainer.args.world_size), "the last step is saved"


@contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """A folder to write to, which becomes `path` only when it is complete."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    part.rename(path)


def start_folder(model: str | Path, *, tokenizer: Tokenizer, folder: Path) -> Path:
    """The folder that TRL loads policy and reference from: the model's own, or a copy with room for an added token."""
    from transformers import AutoConfig

    own = resolve_model(model)
    if len(tokenizer) <= AutoConfig.from_pretrained(own).get_text_config().vocab_size:
        return own
    copy = folder / "start"
    if not copy.exists():
        with whole_folder(copy) as part:
            load_causal_lm(own, tokenizer=tokenizer).save_pretrained(part)
            tokenizer.save_pretrained(part)
    return copy


def save_model(
    checkpoint: Path,
    *,
    base: str | Path,
    load: Callable[[str | Path], Model],
    to: Path,
    tokenizer: Tokenizer,
) -> None:
    """Write the weights of a checkpoint as a model folder; adapters are merged into `base`, where training began."""
    if (checkpoint / "adapter_config.json").exists():
        from peft import PeftModel

        model: Model = PeftModel.from_pretrained(load(base), str(checkpoint)).merge_and_unload()
    else:
        model = load(checkpoint)
    model.config.use_cache = True
    model.save_pretrained(to)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(to)


def write_card(folder: Path, *, title: str, facts: Mapping[str, object]) -> None:
    """README.md of a model folder: the facts of its manifest as a table."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(library_name="transformers", tags=["solon", "constitutional-ai"])
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items()]
    table = "\n".join(["| | |", "|---|---|", *lines])
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\nMade with solon.\n\n{table}\n").save(folder / "README.md")


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())
