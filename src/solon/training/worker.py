"""One of the processes that `solon.training.launching` starts: python -m solon.training.worker FOLDER."""

# accelerate leaves parts of its types unknown.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import json
import os
import pickle
import sys
import time
import traceback
from functools import partial
from pathlib import Path

from solon.artifact import Progress, silent
from solon.errors import InputError
from solon.processes import when_parent_ends
from solon.training.launching import PROGRESS_FILE, WORK_FILE, Work
from solon.training.running import quiet

FAILED = 1
"""Exit code."""


class Relay:
    """Progress that is written down for the process that shows it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Say what begins."""
        self._tell("start", what, total, done)

    def advance(self, n: int = 1) -> None:
        """Count."""
        self._tell("advance", n)

    def end(self) -> None:
        """Nothing: who shows it sees the end."""

    def _tell(self, *event: object) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def main(folder: Path) -> None:
    """Do the work in `folder`, or write down why it could not be done."""
    when_parent_ends(partial(os._exit, FAILED))
    try:
        _work(folder)
    except Exception as error:
        traceback.print_exc()
        ours = isinstance(error, InputError)
        text = str(error) if ours else "".join(traceback.format_exception_only(error)).strip()
        rank = int(os.environ.get("RANK", "0"))
        told = {"rank": rank, "time": time.time(), "input": ours, "text": text}
        part = folder / f".error-{rank}"
        part.write_text(json.dumps(told), encoding="utf-8")
        part.rename(folder / f"error-{rank}.json")
        sys.stderr.flush()
        # Not sys.exit: a process group that waits for its peers would hold this process up.
        os._exit(FAILED)


def _work(folder: Path) -> None:
    import torch
    from accelerate import PartialState

    work: Work
    work, processes = pickle.loads((folder / WORK_FILE).read_bytes())
    # Before anything else: it joins the processes and gives each its GPU.
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes != processes:
        remedy = "accelerate's launcher starts several only on GPUs: leave `launch.accelerate` out without them"
        raise InputError(f"{processes} processes were asked for and {state.num_processes} started", remedy=remedy)
    progress: Progress = Relay(folder / PROGRESS_FILE) if state.is_main_process else silent
    with quiet():
        work(progress)
    # Again: TRL has set it up anew.
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
