"""Copies of one model side by side on this machine, a process each (`data_parallel`).

    engine = await CopiesEngine.open(LocalEngineConfig(path="sandbox:helpful", data_parallel=2))

On CPUs each has its share of the cores: the threads of one small model wait for each other more than they compute. GPUs
are dealt out in turn. Requests go to the copy that has the least to do, those of a chain to the one that holds
the cache of its earlier turns. The requests of a process that dies are asked again of the others.

All engines of this process share these processes, which stay for the next engine, so that only the first waits for
their start; `end_idle` ends them, as does the end of this process, whatever ends it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Pipe
from typing import Any, cast

from solon import processes
from solon.engine import Capabilities, Choice, ChoiceRequest, Completion, EngineConfig, LocalEngineConfig, Request
from solon.errors import EngineError, InputError, SolonError

_CHAINS_KNOWN = 100_000
"""Chains whose copy is remembered; more than are ever under way."""


class _Died(Exception):
    """A process is gone; its text says how. Never leaves this module."""


class _Process:
    """A child that runs `solon.engine.host`."""

    def __init__(self, *, threads: int) -> None:
        self.threads = threads
        self.asked = 0
        """Requests under way."""
        self.engines: set[str] = set()
        """Those that are open, or being opened, in it."""
        self._waiting: dict[int, Future[Any]] = {}
        self._lock, self._numbers = threading.Lock(), count()
        self._end: str | None = None
        """How it ended."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process lives
        self._connection, theirs = Pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "solon.engine.host", str(theirs.fileno())]
        self._process = processes.start(command, output=self._output, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self._reader = threading.Thread(target=self._read, name="solon-copy", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether it answers, as far as it is known."""
        return self._end is None

    async def ask(self, method: str, *arguments: object) -> Any:
        """The reply of a method of `Host`. Raises _Died, and the SolonError that is the reply."""
        future: Future[Any] = Future()
        with self._lock:
            if self._end is not None:
                raise _Died(self._end)
            number = next(self._numbers)
            self._waiting[number] = future
            # A connection that is broken ends the reader, too, which ends what waits.
            with suppress(OSError):
                self._connection.send((number, method, arguments))
        reply = await asyncio.wrap_future(future)
        if isinstance(reply, SolonError):
            raise reply
        return reply

    def end(self) -> None:
        """End it, and wait for that."""
        processes.end(self._process)
        self._reader.join()

    def _how(self) -> str:
        """How it ended, and what it printed last."""
        code = self._process.wait()
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"a process with a copy of the model {how}" + (f": {lines[-1]}" if lines else "")

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                number, reply = self._connection.recv()
                with self._lock:
                    future = self._waiting.pop(number)
                if future.set_running_or_notify_cancel():
                    future.set_result(reply)
        processes.end(self._process)
        end = self._how()
        with self._lock:
            self._end, waiting = end, list(self._waiting.values())
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(_Died(end))
        self._connection.close()
        self._output.close()


_processes: list[_Process] = []
"""All that were started and live, as far as it is known."""
_lock = threading.Lock()


def _take(num: int, *, threads: int) -> list[_Process]:
    """Processes for an engine: those that run already, and new ones."""
    with _lock:
        _processes[:] = [process for process in _processes if process.lives]
        found = [process for process in _processes if process.threads == threads][:num]
        new = [_Process(threads=threads) for _ in range(num - len(found))]
        _processes.extend(new)
    return [*found, *new]


def start_ahead(config: EngineConfig | None) -> None:
    """Have the processes for this engine started while something else is done."""
    if isinstance(config, LocalEngineConfig) and config.data_parallel > 1:
        _take(config.data_parallel, threads=_threads(config.data_parallel))


def end_idle() -> None:
    """End the processes that hold no engine."""
    with _lock:
        idle = [process for process in _processes if not process.engines]
        _processes[:] = [process for process in _processes if process.engines]
    for process in idle:
        process.end()


class CopiesEngine:
    """An Engine whose answers come from copies of a local model; make it with `open`."""

    _numbers = count()

    def __init__(self, copies: Sequence[_Process]) -> None:
        self._processes, self._key = list(copies), f"engine {next(self._numbers)}"
        self._of_chain: OrderedDict[str, _Process] = OrderedDict()
        self.capabilities = Capabilities(model="", logprobs="none", seed=False, max_context=None)
        for process in copies:
            process.engines.add(self._key)

    @classmethod
    async def open(cls, config: LocalEngineConfig) -> CopiesEngine:
        """The model in `config.data_parallel` processes. Raises InputError: no such model, or no GPU."""
        copies = _one_each(config)
        engine = cls(_take(len(copies), threads=_threads(len(copies))))
        try:
            asked = (p.ask("open", engine._key, one, None) for p, one in zip(engine._processes, copies, strict=True))
            replies = await asyncio.gather(*asked)
        except _Died as died:
            await engine.aclose()
            raise InputError(str(died), path=config.path) from died
        except BaseException:
            await engine.aclose()
            raise
        engine.capabilities = cast(Capabilities, replies[0])
        return engine

    async def generate(self, request: Request) -> Completion:
        """Sample one text, as a copy has it; see `LocalEngine.generate`."""
        return await self._ask("generate", request, chain=request.session, size=1)

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
        """log p of every option, as a copy has it; see `LocalEngine.choose`."""
        return await self._ask("choose", requests, chain=None, size=len(requests))

    @property
    def pids(self) -> list[int]:
        """The processes that live."""
        return [process.pid for process in self._processes if process.lives]

    async def aclose(self) -> None:
        """Close the copies; their processes stay for the next engine. What still waits gets EngineError "closed"."""
        copies, self._processes = self._processes, []
        closing = (process.ask("close", self._key) for process in copies)
        await asyncio.gather(*closing, return_exceptions=True)
        for process in copies:
            process.engines.discard(self._key)

    async def _ask(self, method: str, asked: object, *, chain: str | None, size: int) -> Any:
        while True:
            process = self._of(chain)
            process.asked += size
            try:
                return await process.ask(method, self._key, asked)
            except _Died as died:
                if not any(other.lives for other in self._processes):
                    raise EngineError(str(died), reason="engine-crashed") from died
            finally:
                process.asked -= size

    def _of(self, chain: str | None) -> _Process:
        """The process of a chain; of a new one that with the least to do."""
        if not self._processes:
            raise EngineError("the engine is closed", reason="closed")
        known = None if chain is None else self._of_chain.get(chain)
        if known is not None and known.lives:
            return known
        living = [process for process in self._processes if process.lives] or self._processes
        process = min(living, key=lambda one: one.asked)
        if chain is not None:
            self._of_chain[chain] = process
            if len(self._of_chain) > _CHAINS_KNOWN:
                self._of_chain.popitem(last=False)
        return process


def _one_each(config: LocalEngineConfig) -> list[LocalEngineConfig]:
    """The config of each copy; GPUs, where there are some, are dealt out in turn."""
    num_gpus = 0 if config.device == "cpu" else _num_gpus()
    if config.device == "cuda" and not num_gpus:
        raise InputError("device is cuda, but there is no GPU", path=config.path, remedy="set `device: auto`")
    copies = range(config.data_parallel)
    devices = [f"cuda:{place % num_gpus}" if num_gpus else "cpu" for place in copies]
    return [config.model_copy(update={"data_parallel": 1, "device": device}) for device in devices]


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _threads(num: int) -> int:
    """Of each of `num` processes: their share of the cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal():
        cores = int(asked)
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num)
