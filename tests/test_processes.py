"""A process that is started ends with the one that started it, whatever ends that, and so do its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from solon import processes

SERVER = (
    "import os, subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(300)'])\n"
    "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid} ')\n"
    "time.sleep(300)\n"
)
"""A server with a child of its own, as those have that give each GPU a process."""

PARENT = (
    "import sys, time; sys.path.append(sys.argv.pop(1)); import processes\n"
    "log = open(sys.argv[1] + '/log', 'wb')\n"
    "child = processes.start(processes.kept(sys.argv[3:]), output=log)\n"
    "open(sys.argv[1] + '/keeper', 'w').write(f'{child.pid} ')\n"
    "while not open(sys.argv[1] + '/pids', 'a+').tell(): time.sleep(0.02)\n"
    "match sys.argv[2]:\n"
    "    case 'end': processes.end(child)\n"
    "    case 'exception': raise ZeroDivisionError\n"
    "    case 'exit': sys.exit(0)\n"
    "    case 'wait': time.sleep(300)\n"
)


def pids_in(path: Path) -> list[int]:
    text = path.read_text() if path.exists() else ""
    return [int(pid) for pid in text.split()] if text.endswith(" ") else []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(look: Callable[[], bool], *, within_s: float = 15.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while not look():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", ["end", "exit", "exception", "SIGINT", "SIGTERM", "SIGKILL", "keeper"])
def test_a_server_and_its_children_end_with_the_process_that_started_it(how: str, tmp_path: Path) -> None:
    by_signal = how.startswith("SIG") or how == "keeper"
    beside, here = str(Path(processes.__file__).parent), str(tmp_path)
    arguments = [beside, here, "wait" if by_signal else how, sys.executable, "-S", "-c", SERVER, f"{here}/pids"]
    parent = subprocess.Popen([sys.executable, "-S", "-c", PARENT, *arguments], stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: len(pids_in(tmp_path / "pids")) == 2), (tmp_path / "log").read_text()
        server, its_child = pids_in(tmp_path / "pids")
        [keeper] = pids_in(tmp_path / "keeper")
        if how == "keeper":
            # Then nobody is left to end the group: the system ends the server.
            os.kill(keeper, signal.SIGKILL)
            assert until(lambda: not is_running(server))
            os.kill(its_child, signal.SIGKILL)
        elif by_signal:
            parent.send_signal(getattr(signal, how))
        assert until(lambda: not any(map(is_running, (server, its_child, keeper)))), "they outlive it"
    finally:
        parent.kill()
        parent.wait()


def test_a_server_that_does_not_listen_to_sigterm_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(300)"
    )
    copy = tmp_path / "processes.py"
    copy.write_text(Path(processes.__file__).read_text().replace("GRACE_S = 10.0", "GRACE_S = 0.2"))
    with (tmp_path / "log").open("wb") as log:
        child = processes.start([sys.executable, "-I", str(copy), sys.executable, "-S", "-c", deaf], output=log)
    assert until(lambda: b"deaf" in (tmp_path / "log").read_bytes())
    assert processes.end(child) == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "code", "printed"),
    [
        ([sys.executable, "-S", "-c", "print('hello'); raise SystemExit(3)"], 3, "hello"),
        (["no-such-command"], 127, "no-such-command cannot be started"),
    ],
)
def test_the_keeper_says_how_the_command_ended(command: list[str], code: int, printed: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        child = processes.start(processes.kept(command), output=log)
    assert child.wait(timeout=20) == code
    assert processes.end(child) == code
    assert printed in (tmp_path / "log").read_text()
