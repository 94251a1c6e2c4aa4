"""What all commands share: how they fail, how they are stopped, and a quiet environment for what they load."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from solon.cli.text import clean
from solon.errors import SolonError, StageChanged

INPUT_ERROR, INTERRUPTED = 2, 130
"""Exit codes."""
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment of every command, unless the user has set it: nothing is sent, fetched or chattered about."""
_OF_THE_USER = {
    getattr(errno, name)
    for name in ("EACCES", "EDQUOT", "EISDIR", "ENAMETOOLONG", "ENOSPC", "ENOTDIR", "EEXIST", "EPERM", "EROFS")
}
"""What a file system refuses for reasons that are not a bug of ours."""


class Commands(TyperGroup):
    """The commands, with the errors that are no bugs turned into one message."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. SolonError and refusals of the file system end with code 2, Ctrl-C with 130."""
        prepare()
        try:
            with interruptible():
                return super().invoke(ctx)
        except StageChanged as error:
            fail(str(error) if takes_stages(ctx.invoked_subcommand) else without_stage(str(error)))
        except SolonError as error:
            fail(str(error))
        except OSError as error:
            if error.errno not in _OF_THE_USER:
                raise
            where = f"{error.filename}: " if error.filename is not None else ""
            fail(f"{where}{(error.strerror or str(error)).lower()}")
        except KeyboardInterrupt:
            typer.echo(f"\nStopped. What was finished is kept; go on with: {command_to_go_on(sys.argv)}", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="solon",
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Constitutional AI end to end: one file of principles makes the critiques, the training data, the preference "
    "model, the policy, the evaluation and the report. Start with: solon demo",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import solon

        typer.echo(f"solon {solon.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def fail(message: str) -> NoReturn:
    """Print one message on the standard error and exit with INPUT_ERROR."""
    message = clean(message)
    typer.echo(f"error:\n{message}" if "\n" in message else f"error: {message}", err=True)
    raise typer.Exit(INPUT_ERROR) from None


def takes_stages(command: str | None) -> bool:
    """Whether the command's --again names stages; a verb's has but its own."""
    return command in ("demo", "run")


def without_stage(message: str) -> str:
    """The message with "--again STAGE" as a verb has it."""
    from solon.artifact import STAGES

    for name in STAGES:
        message = message.replace(f"--again {name}", "--again")
    return message


def command_to_go_on(arguments: list[str]) -> str:
    """The command line that goes on where this one stopped: the same, but not `--again`."""
    import shlex

    kept: list[str] = []
    skip = False
    for argument in arguments[1:]:
        if skip:
            skip = False
        elif argument == "--again":
            skip = takes_stages(arguments[1])
        elif not argument.startswith("--again="):
            kept.append(argument)
    return shlex.join(["solon", *kept])


# ---- the environment


def prepare() -> None:
    """Set the environment before anything heavy is loaded; warnings of third parties are silenced, ours are shown."""
    import warnings

    from solon.cli.log import show_warnings

    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("OMP_NUM_THREADS", str(physical_cores()))
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    show_warnings()


@contextmanager
def interruptible() -> Generator[None]:
    """Let Ctrl-C interrupt at once; asyncio's own handler would wait for a training step to give way."""
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def physical_cores() -> int:
    """Physical cores that this process may use: its CPU affinity and its control group's quota, less hyperthreads."""
    allowed = os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))
    cores = {_first_line(Path(f"/sys/devices/system/cpu/cpu{one}/topology/thread_siblings_list")) for one in allowed}
    count = len(allowed) if None in cores else len(cores)
    quota, _, period = (_first_line(Path("/sys/fs/cgroup/cpu.max")) or "max").partition(" ")
    if quota != "max":
        count = min(count, -(-int(quota) // int(period)))
    return max(1, count)


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
