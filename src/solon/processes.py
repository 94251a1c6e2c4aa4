"""Processes that end when this one does, however it ends: normally, by an exception, Ctrl-C, SIGTERM or SIGKILL.

    child = start([sys.executable, "-m", "ours"], output=log)            # our own code, which calls `when_parent_ends`
    child = start(kept(["vllm", "serve", "my-model"]), output=log)       # any other command
    end(child)

The child's stdin is a pipe that only this process holds open, so that the system closes it when this process is gone.
Our own code listens to it in a thread. Any other command is started by a keeper, which is this file run as a script: it
listens in the command's place and then ends the command's whole process group, so that nothing holds a GPU or a port
any longer. On Linux the command also gets SIGKILL if the keeper is killed (PR_SET_PDEATHSIG; see prctl(2)).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import IO

GRACE_S = 10.0
"""Seconds between SIGTERM and SIGKILL."""
_POLL_S = 0.2
_PR_SET_PDEATHSIG = 1
_NOT_STARTED = 127
"""Exit code of a shell for a command that cannot be started."""


def start(
    command: Sequence[str], *, output: IO[bytes], env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start `command`, whose stdin tells it of the end of this process; what it prints goes to `output`, and it has the
    file descriptors of `pass_fds`.

    Its session is its own: Ctrl-C in the terminal reaches this process alone, which then ends it in good order.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=env,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> int:
    """Let a process of `start` end, and wait for that; returns its exit code."""
    assert process.stdin is not None
    process.stdin.close()
    return process.wait()


def when_parent_ends(act: Callable[[], object]) -> None:
    """In a process of `start`: call `act`, in a thread, once the process that started it ends or calls `end`."""

    def listen() -> None:
        # Not sys.stdin, whose lock this thread would still hold when the interpreter ends.
        os.read(sys.stdin.fileno(), 1)
        act()

    threading.Thread(target=listen, daemon=True).start()


def kept(command: Sequence[str]) -> list[str]:
    """The command of a keeper that runs `command`; its exit code is the command's."""
    return [sys.executable, "-I", __file__, *command]


# ---- the keeper


def _keep(command: Sequence[str]) -> int:
    parent = os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_the_keeper
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return _NOT_STARTED
    try:
        # Both: a process that was forked from the parent may hold the pipe open.
        while process.poll() is None and os.getppid() == parent:
            if select.select([sys.stdin.fileno()], [], [], _POLL_S)[0]:
                break
    finally:
        _end_group(process)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _die_with_the_keeper() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process and its children; SIGKILL to those that are left when it has ended, or after GRACE_S."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


if __name__ == "__main__":
    sys.exit(_keep(sys.argv[1:]))
