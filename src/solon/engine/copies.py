"""Copies of one model side by side on this machine, a process each (`data_parallel`).

    engine = await CopiesEngine.open(LocalEngineConfig(path="sandbox:helpful", data_parallel=2))

On CPUs each has its share of the cores: the threads of one small model wait for each other more than they compute. On
GPUs each has one of its own. Requests go to the copy that has the least to do, those of a chain to the one that holds
the cache of its earlier turns. The requests of a process that dies are asked again of the others.

Processes whose engine is closed stay for the next one, so that only the first waits for their start; `end_idle` ends
them, as does the end of this process, whatever ends it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count
from multiprocessing.connection import Pipe
from typing import Any, cast

from solon.artifact import content_id
from solon.engine import Capabilities, Choice, ChoiceRequest, Completion, LocalEngineConfig, Request
from solon.errors import EngineError, InputError, SolonError

_CHAINS_KNOWN = 100_000
"""Chains whose copy is remembered; more than are ever under way."""


class _Process:
    """A child that runs `solon.engine.host`."""

    def __init__(self, *, threads: int) -> None:
        self.threads = threads
        self.asked = 0
        """Requests under way."""
        self._waiting: dict[int, Future[Any]] = {}
        self._lock, self._numbers, self._ended = threading.Lock(), count(), False
        self._output = tempfile.TemporaryFile()
        self._connection, theirs = Pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        # A session of its own: Ctrl-C in the terminal reaches this process alone. It ends when its connection is
        # closed, which the system does when this process is gone.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "solon.engine.host", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        threading.Thread(target=self._read, name="solon-copy", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether it answers, as far as it is known."""
        return not self._ended

    async def ask(self, method: str, *arguments: object) -> Any:
        """The reply of a method of `Host`. Raises _Died."""
        future: Future[Any] = Future()
        with self._lock:
            if self._ended:
                raise _Died(self)
            number = next(self._numbers)
            self._waiting[number] = future
            try:
                self._connection.send((number, method, arguments))
            except OSError:
                # The reader hears of it, too, and ends what waits.
                pass
        return await asyncio.wrap_future(future)

    def end(self) -> None:
        """Let it end, and wait for that."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def why(self) -> str:
        """How it ended, and what it printed last."""
        code = self._process.wait()
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"a process with a copy of the model {how}" + (f": {lines[-1]}" if lines else "")

    def _read(self) -> None:
        try:
            while True:
                number, reply = self._connection.recv()
                with self._lock:
                    future = self._waiting.pop(number)
                if future.set_running_or_notify_cancel():
                    future.set_result(reply)
        except (EOFError, OSError, pickle.UnpicklingError):
            pass
        with self._lock:
            self._ended, waiting = True, list(self._waiting.values())
            self._waiting.clear()
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(_Died(self))


class _Died(Exception):
    """A process is gone. Never leaves this module."""

    def __init__(self, process: _Process) -> None:
        self.process = process
        super().__init__(process.pid)


_idle: list[_Process] = []
"""Processes without an engine."""
_idle_lock = threading.Lock()


def _take(num: int, *, threads: int) -> list[_Process]:
    """Processes for an engine: those that are idle, and new ones."""
    with _idle_lock:
        found = [process for process in _idle if process.threads == threads and process.lives][:num]
        for process in found:
            _idle.remove(process)
    return [*found, *(_Process(threads=threads) for _ in range(num - len(found)))]


def end_idle() -> None:
    """End the processes that wait for an engine."""
    with _idle_lock:
        processes = list(_idle)
        _idle.clear()
    for process in processes:
        process.end()


class CopiesEngine:
    """An Engine whose answers come from copies of a local model; make it with `open`."""

    def __init__(self, processes: Sequence[_Process], key: str) -> None:
        self._processes, self._key = list(processes), key
        self._of_chain: OrderedDict[str, _Process] = OrderedDict()
        self.capabilities = Capabilities(model="", logprobs="none", seed=False, max_context=None)

    @classmethod
    async def open(cls, config: LocalEngineConfig) -> CopiesEngine:
        """The model in `config.data_parallel` processes. Raises InputError: no such model, or more copies than GPUs."""
        engines = _one_each(config)
        key = content_id(config.model_dump(mode="json"))
        engine = cls(_take(len(engines), threads=max(1, _cores() // len(engines))), key)
        try:
            asked = (p.ask("open", key, one, None) for p, one in zip(engine._processes, engines, strict=True))
            replies = await asyncio.gather(*asked)
            for reply in replies:
                if isinstance(reply, SolonError):
                    raise reply
        except _Died as died:
            await engine.aclose()
            raise InputError(died.process.why(), path=config.path) from died
        except BaseException:
            await engine.aclose()
            raise
        engine.capabilities = cast(Capabilities, replies[0])
        return engine

    async def generate(self, request: Request) -> Completion:
        """Sample one text, as the copy has it; see `LocalEngine.generate`."""
        return await self._ask("generate", request, chain=request.session, size=1)

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
        """log p of every option, as the copy has it; see `LocalEngine.choose`."""
        return await self._ask("choose", requests, chain=None, size=len(requests))

    async def pids(self) -> list[int]:
        """The processes that live."""
        return [process.pid for process in self._processes if process.lives]

    async def aclose(self) -> None:
        """Close the copies; their processes wait for the next engine."""
        living = [process for process in self._processes if process.lives]
        await asyncio.gather(*(process.ask("close", self._key) for process in living), return_exceptions=True)
        self._processes = []
        with _idle_lock:
            _idle.extend(process for process in living if process.lives)

    async def _ask(self, method: str, asked: object, *, chain: str | None, size: int) -> Any:
        while True:
            process = self._of(chain)
            process.asked += size
            try:
                reply = await process.ask(method, self._key, asked)
            except _Died as died:
                if not any(other.lives for other in self._processes):
                    raise EngineError(died.process.why(), reason="engine-crashed") from died
                continue
            finally:
                process.asked -= size
            if isinstance(reply, SolonError):
                raise reply
            return reply

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
    """The config of each copy: with a GPU of its own where there are some."""
    num = config.data_parallel
    alone = config.model_copy(update={"data_parallel": 1})
    if config.device == "cpu" or not (gpus := _num_gpus()):
        return [alone.model_copy(update={"device": "cpu"})] * num
    if num > gpus:
        raise InputError(f"data_parallel is {num}, but there are {gpus} GPUs", remedy="a copy takes a GPU of its own")
    return [alone.model_copy(update={"device": f"cuda:{place}"}) for place in range(num)]


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _cores() -> int:
    """Those that this process may use."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        return int(threads)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
