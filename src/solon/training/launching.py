"""Training in several processes: torchrun or accelerate's launcher, started as a child of this process.

    launched(work, launch=Launch(processes=2), folder=stage.path, progress=progress)

Each process calls `work(progress)`; what distributes the training is accelerate, inside TRL. This process stays what it
was: it alone begins and finishes the stage, and it shows the progress and the errors of its children. They end when it
does, however it ends, so that a run that was killed can be gone on with at once.
"""

# torch and accelerate leave parts of their types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, cast

from solon import processes
from solon.artifact import Progress
from solon.config import Launch
from solon.errors import InputError, TrainingFailed

LOG_FILE = "launch.log"
"""In the stage's folder while processes train, and after they failed: what they and the libraries printed."""
WORK_FILE, PROGRESS_FILE, ERROR_FILES = "work.pickle", "progress.jsonl", "error-*.json"
"""In the temporary folder that this process and its children share."""
_POLL_S = 0.1

Work = Callable[[Progress], None]


def launched(work: Work, *, launch: Launch, folder: Path, progress: Progress) -> None:
    """Run `work(progress)` in `launch.processes` processes at once, and wait for them.

    `work` is pickled; it finds its rank with accelerate. Raises InputError if that is what it raised, TrainingFailed
    for any other error, with the message of the first process that failed; LOG_FILE in `folder` then has the rest.
    """
    import fcntl

    log = folder / LOG_FILE
    with TemporaryDirectory(prefix="solon-") as name, log.open("wb") as output:
        # The children print to this open file: it stays locked until the last of them is gone.
        fcntl.flock(output, fcntl.LOCK_EX)
        shared = Path(name)
        (shared / WORK_FILE).write_bytes(pickle.dumps((work, launch.processes)))
        (shared / PROGRESS_FILE).touch()
        command = [*_launcher(launch), "solon.training.worker", str(shared)]
        # The launcher's children inherit its stdin, which tells them of the end of this process.
        process = processes.start(command, output=output, env=_environment(launch))
        try:
            with (shared / PROGRESS_FILE).open(encoding="utf-8") as told:
                while process.poll() is None:
                    _pass_on(told, progress)
                    time.sleep(_POLL_S)
                _pass_on(told, progress)
        finally:
            progress.end()
            processes.end(process)
        if process.returncode:
            raise _failure(shared, launch=launch, log=log, code=process.returncode)
    log.unlink()


def wait_for_leftovers(folder: Path) -> None:
    """Wait until the processes are gone that a killed run may have left in `folder`: they end by themselves, but one
    may be writing a checkpoint at this moment."""
    import fcntl

    log = folder / LOG_FILE
    if log.is_file():
        with log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)


def _launcher(launch: Launch) -> list[str]:
    """torchrun for whole copies, because accelerate's launcher starts one process alone on a machine without GPUs."""
    if launch.accelerate is None:
        run = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(launch.processes)]
    else:
        run = ["accelerate.commands.launch", "--config_file", launch.accelerate]
        run += ["--num_processes", str(launch.processes), "--main_process_port", "0"]
    return [sys.executable, "-m", *run, "--module"]


def _environment(launch: Launch) -> dict[str, str]:
    import torch

    # The processes share the cores; more threads than cores slow all of them down many times over.
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // launch.processes))}


def _pass_on(told: IO[str], progress: Progress) -> None:
    for line in told:
        match json.loads(line):
            case ["start", what, total, done]:
                progress.start(what, total, done)
            case ["advance", n]:
                progress.advance(n)
            case other:
                raise AssertionError(f"no progress: {other}")


def _failure(shared: Path, *, launch: Launch, log: Path, code: int) -> InputError | TrainingFailed:
    """The error of the process that failed first: the others only missed it."""
    errors: list[Mapping[str, Any]] = [json.loads(path.read_text("utf-8")) for path in shared.glob(ERROR_FILES)]
    if not errors:
        what = f"the launcher of {launch.processes} processes ended with code {code} and none of them said why"
        return TrainingFailed(f"{what}; the system may have been out of memory. What it printed is in {log}")
    first = min(errors, key=lambda error: error["time"])
    if first["input"]:
        return InputError(first["text"])
    who = f"process {first['rank'] + 1} of {launch.processes}"
    return TrainingFailed(f"{who} failed: {first['text']}. What all of them printed is in {log}")


def check_launch(launch: Launch) -> None:
    """Raise InputError for a file that accelerate cannot read, or one that is for several machines."""
    if launch.accelerate is None:
        return
    from accelerate.commands.config import config_args

    path = launch.accelerate
    if not Path(path).is_file():
        raise InputError("there is no such file", path=path, remedy="recipes/accelerate has some to start from")
    try:
        config: Any = cast(Any, config_args).load_config_from_file(path)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "write it with `accelerate config`, or start from one in recipes/accelerate"
        raise InputError(f"not a configuration of accelerate: {error}", path=path, remedy=remedy) from error
    if getattr(config, "num_machines", 1) > 1:
        remedy = "set num_machines: 1; the processes are started on this machine"
        raise InputError(f"num_machines is {config.num_machines}", path=path, remedy=remedy)
