"""A server that is started for a model, as a child of this process, and that ends with it.

    server = start_server(ServerEngineConfig(url="http://127.0.0.1:{port}/v1", model="m", launch=ServerLaunch(...)))
    try:
        await server.until_it_answers()
        ...                                     # server.url
    finally:
        await server.release()

Engines of one configuration share one server: it ends when the last of them is closed, so that its memory is free when
the next stage trains; and with this process, whatever ends that (see `solon.processes`). What it prints stays in a log.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import aiohttp

from solon import processes
from solon.engine import ServerEngineConfig, ServerLaunch
from solon.errors import InputError

PORT = "{port}"
"""Stands in `url` and `command` for a port that is free when the server is started."""
_POLL_S = 0.2
_ASKED_S = 5.0
"""Seconds that one question whether the server answers may take."""
_LOADING = (502, 503, 504)
_LINES_SHOWN = 12
_CHARACTERS_SHOWN = 1500


class LaunchedServer:
    """A server that runs as a child; make it with `start_server`."""

    def __init__(
        self, key: str, launch: ServerLaunch, *, url: str, log: Path, process: subprocess.Popen[bytes]
    ) -> None:
        self.url, self.log = url, log
        self._key, self._launch, self._process = key, launch, process
        self._deadline_s = time.monotonic() + launch.wait_s
        self._users = 1

    @property
    def pid(self) -> int:
        """Of the keeper, whose child the server is."""
        return self._process.pid

    async def until_it_answers(self) -> None:
        """Wait for a first answer, whatever it is. Raises InputError if the server ends before, or takes too long."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASKED_S)) as session:
            while not await _answers(session, self.url):
                self._check(f"did not answer within {self._launch.wait_s:g} s at {self.url}")
                await asyncio.sleep(_POLL_S)

    def _check(self, too_late: str) -> None:
        remedy = "mend `launch.command`"
        if self._process.poll() is not None:
            what = self.end_of_it
        elif time.monotonic() > self._deadline_s:
            what, remedy = too_late, "mend `url` or `launch.command`, or raise `launch.wait_s`"
        else:
            return
        raise InputError(
            f"the server that was started {what}. The end of {self.log}:\n{_end_of(self.log)}\n", remedy=remedy
        )

    @property
    def end_of_it(self) -> str | None:
        """ "ended with code 1", or None while it runs."""
        code = self._process.poll()
        return None if code is None else f"ended with code {code}"

    def told_end(self) -> str | None:
        """The same as a sentence of a message, with the log."""
        end = self.end_of_it
        return end and f"the server that was started {end}, see {self.log}"

    async def release(self) -> None:
        """One user less; without any the server is ended, and this waits until it is."""
        with _lock:
            self._users -= 1
            last = self._users == 0
            if last:
                del _running[self._key]
        if last:
            await asyncio.to_thread(processes.end, self._process)

    def share(self) -> LaunchedServer:
        """One user more."""
        self._users += 1
        return self


_running: dict[str, LaunchedServer] = {}
_lock = threading.Lock()
"""Engines may be opened by several threads."""


def start_server(config: ServerEngineConfig, *, logs: Path | None = None) -> LaunchedServer:
    """The server of `config.launch`: started, or that which runs already for another engine of this configuration.

    Its log is in the folder `logs`, or in the system's temporary folder. Raises InputError if the command is not there
    or if something else has its port.
    """
    assert config.launch is not None
    [url] = config.urls
    key = sha256(config.model_dump_json().encode()).hexdigest()[:8]
    with _lock:
        if key in _running:
            return _running[key].share()
        port = str(_free_port())
        if PORT not in url:
            _refuse_a_taken_port(url)
        url = url.replace(PORT, port)
        command = [part.replace(PORT, port) for part in config.launch.command]
        if shutil.which(command[0]) is None:
            raise InputError(f"there is no command {command[0]!r}", remedy="mend `launch.command`")
        log = (logs or Path(tempfile.gettempdir())) / f"server-{key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write(f"---- {datetime.now().isoformat(timespec='seconds')} {' '.join(command)}\n".encode())
            output.flush()
            env = {**os.environ, **config.launch.env}
            process = processes.start(processes.kept(command), output=output, env=env)
        server = LaunchedServer(key, config.launch, url=url, log=log, process=process)
        _running[key] = server
    return server


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether something answers; what a server says that has not loaded its model yet does not count, an error does:
    `transformers serve` has one for its list of models where nothing was ever downloaded."""
    try:
        async with session.get(f"{url.rstrip('/')}/models") as response:
            return response.status not in _LOADING
    except (aiohttp.ClientError, TimeoutError):
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _refuse_a_taken_port(url: str) -> None:
    """Another server there would be taken for ours, with whatever model it has."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    place = (parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 80))
    try:
        socket.create_connection(place, timeout=1.0).close()
    except OSError:
        return
    remedy = f"end it and leave out `launch`, or write {PORT} in `url` and `launch.command` for a free port"
    raise InputError(f"something answers at {url} already", remedy=remedy)


def _end_of(log: Path) -> str:
    text = log.read_bytes()[-100_000:].decode(errors="replace")
    return "\n".join(text.strip().splitlines()[-_LINES_SHOWN:])[-_CHARACTERS_SHOWN:]
