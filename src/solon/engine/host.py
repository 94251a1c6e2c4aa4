"""Engines that answer in another process: an actor of Ray's (`cluster`), or a process on this machine (`copies`).

Run as a module, `python -m solon.engine.host DESCRIPTOR`, it answers what comes over the connection of that file
descriptor, (number, method, arguments), with (number, reply), in any order, until the other end is closed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from solon.engine import Capabilities, Choice, ChoiceRequest, Completion, Engine, OneEngineConfig, Request, load_engine
from solon.errors import EngineError, SolonError
from solon.processes import when_parent_ends


class Host:
    """The engines of a process. What is wrong is returned, not raised: Ray would wrap it in an error of its own."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    async def open(self, key: str, config: OneEngineConfig, logs: Path | None) -> Capabilities | SolonError:
        """Load an engine, or connect to its server."""
        try:
            self._engines[key] = await load_engine(config, logs=logs)
        except SolonError as error:
            return error
        return self._engines[key].capabilities

    async def generate(self, key: str, request: Request) -> Completion | SolonError:
        try:
            return await self._engines[key].generate(request)
        except SolonError as error:
            return error

    async def choose(self, key: str, requests: Sequence[ChoiceRequest]) -> list[Choice] | SolonError:
        try:
            return await self._engines[key].choose(requests)
        except SolonError as error:
            return error

    async def close(self, key: str) -> None:
        """Close one engine; one that was never opened is no error."""
        engine = self._engines.pop(key, None)
        if engine is not None:
            await engine.aclose()

    async def pid(self) -> int:
        """Of this process."""
        return os.getpid()


async def _serve(connection: Connection) -> None:
    host, loop = Host(), asyncio.get_running_loop()

    async def answer(number: int, method: str, arguments: tuple[object, ...]) -> None:
        try:
            reply = await getattr(host, method)(*arguments)
        except Exception as error:  # the process's boundary: whoever waits must hear of it
            reply = EngineError(f"the model failed: {type(error).__name__}: {error}", reason="engine-crashed")
        connection.send((number, reply))

    def read() -> None:
        with suppress(EOFError, OSError):
            while True:
                asyncio.run_coroutine_threadsafe(answer(*connection.recv()), loop)

    threading.Thread(target=read, daemon=True).start()
    await asyncio.Event().wait()


def main(descriptor: int) -> None:
    """Answer until the process that started this one ends, or has it end."""
    when_parent_ends(partial(os._exit, 0))
    # At once, because the process may be started before its first engine is asked for.
    import_module("solon.engine.local")
    asyncio.run(_serve(Connection(descriptor)))


if __name__ == "__main__":
    main(int(sys.argv[1]))
