"""Ray: another engine once in every actor, and the rows sharded over the actors.

    engine = await RayEngine.open(RayEngineConfig(engine=LocalEngineConfig(path="my-model"), actors=8))

All requests of a row go to one actor, which holds the cache of its earlier turns; rows are given to actors as they are
to the replicas of a server (`solon.engine.replicas`). The requests of an actor that dies are asked again of the others,
and it is replaced. Only the answers come back: this process alone writes the run's folder, so that a run that was
killed goes on as ever, on as many actors as there are then.

Engines whose settings of Ray are alike share the actors, so that a judge and the models that it compares do not wait
for each other's GPUs. The actors end when the last of these engines is closed, or with this process.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from solon.artifact import content_id
from solon.engine import (
    Capabilities,
    Choice,
    ChoiceRequest,
    Completion,
    LocalEngineConfig,
    OneEngineConfig,
    RayEngineConfig,
    Request,
    ServerEngineConfig,
    VLLMEngineConfig,
)
from solon.engine.host import Host
from solon.engine.replicas import Replica, Replicas
from solon.errors import EngineError, InputError, MissingDependency, SolonError

_log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Actors that may die at one request, which may be what kills them, and starts of an actor that is replaced."""
_AT_ONCE = 100_000
"""Requests that an actor takes at a time: more than any window, because its engine has its own limits."""
_CLOSE_S = 30.0
"""Seconds that engines have to end what they have started, before their actors are killed."""
_STORE_BYTES = 80 * 2**20
"""Of a Ray that is started here, whose own choice is a third of the memory: texts are small."""
_ENVIRONMENT = {
    # No report of its use to Ray's makers.
    "RAY_USAGE_STATS_ENABLED": "0",
    # An actor that asks for no GPU is not kept from seeing one; Ray warns that this will be so from some version on.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The actors are what the run waits for; Ray would have all else on the machine go before them (nice 15).
    "RAY_worker_niceness": "0",
}
"""Of a Ray that is started here, where nothing else is said."""


def find_ray() -> Any:
    """The package. Raises MissingDependency if it is not installed."""
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingDependency("kind: ray", extra="ray") from error


@dataclass(slots=True)
class _Actor:
    replica: Replica
    handle: Any
    """Ray's; None while it is replaced."""
    mending: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Hosted:
    """An engine that the actors hold."""

    config: OneEngineConfig
    logs: Path | None


class _Pool:
    """Actors that engines share; see `_shared`."""

    def __init__(self, ray: Any, config: RayEngineConfig, *, num: int, num_gpus: float) -> None:
        self._ray, self._wait_s = ray, config.wait_s
        self._resources = {"num_cpus": config.num_cpus, "num_gpus": num_gpus}
        self._replicas = Replicas([f"actor {number}" for number in range(num)], most=_AT_ONCE)
        self._hosted: dict[str, _Hosted] = {}
        self._users: dict[str, int] = {}
        self._actors = {replica.url: _Actor(replica, self._start()) for replica in self._replicas.all}

    def _start(self) -> Any:
        return self._ray.remote(Host).options(**self._resources, max_concurrency=_AT_ONCE).remote()

    @property
    def handles(self) -> list[Any]:
        """Of the actors that live, as far as it is known."""
        return [actor.handle for actor in self._actors.values() if actor.handle is not None]

    async def open(self, key: str, hosted: _Hosted) -> Capabilities:
        """Have every actor load the engine `key`, if none has. Raises InputError: no place in time, or what an actor
        says; actors that differ."""
        self._users[key] = self._users.get(key, 0) + 1
        self._hosted[key] = hosted
        calls = [asyncio.ensure_future(_call(handle.open, key, hosted.config, hosted.logs)) for handle in self.handles]
        done, waiting = await asyncio.wait(calls, timeout=self._wait_s)
        for call in waiting:
            call.cancel()
        try:
            replies = [call.result() for call in calls if call in done]
        except self._ray.exceptions.RayActorError as error:
            raise InputError(f"an actor died while it loaded its model: {_first_line(error)}") from error
        for reply in replies:
            if isinstance(reply, SolonError):
                raise reply
        if waiting:
            what = f"after {self._wait_s:g} s {len(done)} of {len(calls)} actors have a place and their model"
            raise InputError(what, remedy="ask for fewer `actors`, `num_cpus` or `num_gpus`, or raise `wait_s`")
        if any(reply != replies[0] for reply in replies):
            what = f"the actors differ in what they can do: {replies}"
            raise InputError(what, remedy="give them machines with the same model and the same packages")
        return cast(Capabilities, replies[0])

    async def ask(self, method: str, key: str, asked: object, *, chain: str | None) -> Any:
        """The reply of the chain's actor. Raises what its engine raises; EngineError "actor-died", "no-actor"."""
        lost = (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError)
        for _ in range(ATTEMPTS):
            actor = await self._enter(chain)
            handle = actor.handle
            try:
                reply = await getattr(handle, method).remote(key, asked)
            except lost as error:
                self._lose(actor, handle, error)
                continue
            finally:
                actor.replica.leave()
            if isinstance(reply, SolonError):
                raise reply
            return reply
        raise EngineError(f"{ATTEMPTS} actors died at this request, one after the other", reason="actor-died")

    async def _enter(self, chain: str | None) -> _Actor:
        while True:
            replica = self._replicas.of(chain)
            if replica.back_s <= time.monotonic():
                await replica.enter()
                return self._actors[replica.url]
            mending = [actor.mending for actor in self._actors.values() if actor.mending is not None]
            if not mending:
                raise EngineError("no actor is left, and none could be started again", reason="no-actor")
            await asyncio.wait(mending, return_when=asyncio.FIRST_COMPLETED)

    def _lose(self, actor: _Actor, handle: Any, error: Exception) -> None:
        if actor.handle is not handle:
            return  # Another request has seen it.
        _log.warning("%s died and is replaced: %s", actor.replica.url, _first_line(error))
        actor.handle, actor.replica.back_s = None, math.inf
        # One that cannot be reached any longer may still live, and hold a GPU.
        self._ray.kill(handle)
        actor.mending = asyncio.create_task(self._replace(actor))

    async def _replace(self, actor: _Actor) -> None:
        """Start the actor again, wherever the cluster has a place or gets one, with all engines."""
        try:
            for _ in range(ATTEMPTS):
                handle = self._start()
                try:
                    found = await self._load_all(handle)
                except self._ray.exceptions.RayActorError as error:
                    found = error
                except asyncio.CancelledError:
                    self._ray.kill(handle)
                    raise
                if found is None:
                    actor.handle, actor.replica.back_s = handle, 0.0
                    return
                self._ray.kill(handle)
                _log.warning("%s could not be replaced: %s", actor.replica.url, _first_line(found))
        finally:
            actor.mending = None

    async def _load_all(self, handle: Any) -> SolonError | None:
        loaded: set[str] = set()
        # An engine may be opened while others are loaded.
        while missing := [key for key in self._hosted if key not in loaded]:
            for key in missing:
                hosted = self._hosted[key]
                reply = await _call(handle.open, key, hosted.config, hosted.logs)
                if isinstance(reply, SolonError):
                    return reply
                loaded.add(key)
        return None

    async def close(self, key: str) -> bool:
        """One user of an engine less; True if the actors hold none any longer, and are ended."""
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key], self._hosted[key]
            closing = (_call(handle.close, key) for handle in self.handles)
            # So that servers that actors have started end in good order; an actor that is dead has nothing to close.
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), timeout=_CLOSE_S)
        if self._users:
            return False
        for actor in self._actors.values():
            if actor.mending is not None:
                actor.mending.cancel()
            if actor.handle is not None:
                self._ray.kill(actor.handle)
        return True


async def _call(method: Any, *arguments: object) -> Any:
    return await method.remote(*arguments)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class RayEngine:
    """An Engine whose answers come from Ray's actors; make it with `open`."""

    def __init__(self, pool: _Pool, key: str, capabilities: Capabilities, *, settings: Settings) -> None:
        self._pool, self._key, self._settings = pool, key, settings
        self.capabilities = capabilities

    @classmethod
    async def open(cls, config: RayEngineConfig, *, logs: Path | None = None) -> RayEngine:
        """The engine of a config, in all actors. Raises InputError: no such cluster, no room in it, no such model.

        `logs` is the folder for what servers print that actors start.
        """
        settings = _settings(config)
        pool = _shared(config, settings)
        key = content_id(config.engine.model_dump(mode="json"))
        hosted = _Hosted(_absolute(config.engine), None if logs is None else logs.absolute())
        engine = cls(
            pool, key, Capabilities(model="", logprobs="none", seed=False, max_context=None), settings=settings
        )
        try:
            found = await pool.open(key, hosted)
        except BaseException:
            await engine.aclose()
            raise
        name = config.engine.model if isinstance(config.engine, ServerEngineConfig) else config.engine.path
        engine.capabilities = replace(found, model=name)
        return engine

    async def generate(self, request: Request) -> Completion:
        """Sample one text. Raises what the engine in the actor raises; EngineError with reason "actor-died" where
        several died at this request, "no-actor" where none is left."""
        return await self._pool.ask("generate", self._key, request, chain=request.session)

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
        """log p of every option, as the engine in the actor has it; raises what `generate` raises."""
        # Together in one actor, because they share their beginning.
        chain = str(requests[0].prompt) if requests else ""
        return await self._pool.ask("choose", self._key, requests, chain=chain)

    async def pids(self) -> list[int]:
        """The processes of the actors, on whatever machine they are."""
        return await asyncio.gather(*(_call(handle.pid) for handle in self._pool.handles))

    async def aclose(self) -> None:
        """Close the engine in the actors; end them, and a Ray that was started for them, if no engine uses them."""
        if await self._pool.close(self._key):
            _pools.pop(self._settings, None)
            if not _pools:
                _disconnect()


# ---- Ray itself

Settings = tuple[asyncio.AbstractEventLoop, str, int | None, float, float | None]
"""What engines that share their actors have in common; actors are asked from one event loop."""
_pools: dict[Settings, _Pool] = {}
_ours = False
"""Whether this module connected the process to Ray."""


def _settings(config: RayEngineConfig) -> Settings:
    return asyncio.get_running_loop(), config.address, config.actors, config.num_cpus, config.num_gpus


def _shared(config: RayEngineConfig, settings: Settings) -> _Pool:
    """The actors for these settings, started if no engine has them yet."""
    if settings in _pools:
        return _pools[settings]
    ray = find_ray()
    _connect(ray, config.address)
    try:
        nodes: list[Mapping[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        has_gpus = any(node.get("GPU", 0) > 0 for node in nodes)
        num_gpus = config.num_gpus if config.num_gpus is not None else gpus_of(config.engine) if has_gpus else 0
        room = room_for(nodes, num_cpus=config.num_cpus, num_gpus=num_gpus)
        wanted = config.actors or (0 if math.isinf(room) else int(room))
        if not 1 <= wanted <= room:
            asked = f"{wanted} actors" if config.actors else "an actor"
            what = f"there is no room for {asked} of {config.num_cpus:g} CPUs and {num_gpus:g} GPUs"
            has = (
                f"{sum(node.get('CPU', 0) for node in nodes):g} CPUs and {sum(node.get('GPU', 0) for node in nodes):g}"
            )
            remedy = "set `actors`, `num_cpus` or `num_gpus`, or start more machines first"
            raise InputError(f"{what}: Ray has {has} GPUs on {len(nodes)} machines", remedy=remedy)
        pool = _pools[settings] = _Pool(ray, config, num=wanted, num_gpus=num_gpus)
        return pool
    except BaseException:
        if not _pools:
            _disconnect()
        raise


def gpus_of(config: OneEngineConfig) -> float:
    """GPUs that an engine takes on a machine that has some; a server that a command starts says it with num_gpus."""
    if isinstance(config, VLLMEngineConfig):
        return config.tensor_parallel
    return 1 if isinstance(config, LocalEngineConfig) and config.device != "cpu" and config.dtype != "int8" else 0


def room_for(nodes: Sequence[Mapping[str, Any]], *, num_cpus: float, num_gpus: float) -> float:
    """Actors that fit on machines with these resources, none of which is split; infinite for actors that need none."""
    needs = {name: need for name, need in (("CPU", num_cpus), ("GPU", num_gpus)) if need > 0}
    if not needs:
        return math.inf
    # Ray counts in ten-thousandths, so that ten tenths are one.
    return sum(
        min((math.floor(node.get(name, 0) / need + 1e-4) for name, need in needs.items()), default=0) for node in nodes
    )


def _connect(ray: Any, address: str) -> None:
    """Start Ray on this machine, or join the cluster; a process that uses Ray already keeps its own.

    Nothing but the machines of the cluster is asked: no dashboard, no report of use.
    """
    global _ours
    if ray.is_initialized():
        return
    if "://" in address:
        what = f"address {address!r} is that of a Ray client, which is not supported"
        raise InputError(what, remedy="start the run on a machine of the cluster, with address: auto")
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    # It tells of itself what nobody has asked; what goes wrong is raised.
    logging.getLogger("ray").setLevel(logging.ERROR)
    here = address == "local"
    own: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if here else {}
    own |= {"object_store_memory": _STORE_BYTES} if here else {}
    main = threading.current_thread() is threading.main_thread()
    # Ray puts a handler of its own in place of it.
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        # In this thread: the system ends Ray's processes together with the thread that started them.
        ray.init(address=address, configure_logging=False, log_to_driver=False, **own)
    except Exception as error:  # Ray's boundary: a start that takes too long is a plain Exception.
        if here:
            raise InputError(f"Ray cannot be started on this machine: {_first_line(error)}") from error
        remedy = "start it with `ray start --head`, or write address: local"
        raise InputError(
            f"no Ray cluster can be reached at {address!r}: {_first_line(error)}", remedy=remedy
        ) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    _ours = True


def _disconnect() -> None:
    global _ours
    if _ours:
        find_ray().shutdown()
        _ours = False


def _absolute(config: OneEngineConfig) -> OneEngineConfig:
    """The same with a folder that is found from wherever an actor works."""
    if isinstance(config, ServerEngineConfig) or not Path(config.path).expanduser().exists():
        return config
    return config.model_copy(update={"path": str(Path(config.path).expanduser().absolute())})
