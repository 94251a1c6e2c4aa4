"""A chain stays on its replica, requests in flight adapt to what a server can bear, and one that fails is left out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from openai_server import Server, serving
from solon.dialogue import Message
from solon.engine import ChoiceRequest, Request, ServerEngineConfig, ServerLaunch
from solon.engine import replicas as replicas_module
from solon.engine.replicas import FAILURES, LEFT_OUT_S, Replica, Replicas
from solon.engine.server import ServerEngine
from solon.errors import EngineError, InputError

PROMPT: tuple[Message, ...] = ({"role": "user", "content": "Hello"},)
URLS = ("http://a/v1", "http://b/v1", "http://c/v1")


def ask(chain: str | None, **more: Any) -> Request:
    return Request(prompt=PROMPT, session=chain, **more)


# ---- which replica


@given(st.text())
def test_a_chain_has_one_replica_in_whatever_order_they_are_named(chain: str) -> None:
    there = [Replicas(urls, most=1).of(chain).url for urls in (URLS, URLS[::-1])]
    assert there[0] == there[1]


def test_chains_are_spread_and_only_those_of_a_replica_that_is_left_out_move() -> None:
    replicas = Replicas(URLS, most=1)
    before = {str(n): replicas.of(str(n)) for n in range(3000)}
    assert all(900 < num < 1100 for num in Counter(replica.url for replica in before.values()).values())
    out = replicas.all[1]
    for _ in range(FAILURES):
        out.failed()
    after = {chain: replicas.of(chain) for chain in before}
    assert out not in after.values()
    assert all(after[chain] is replica for chain, replica in before.items() if replica is not out)
    moved = Counter(after[chain].url for chain, replica in before.items() if replica is out)
    assert all(num > 400 for num in moved.values()) and len(moved) == 2


def test_a_replica_comes_back_and_where_all_are_out_the_first_to_come_back_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(replicas_module.time, "monotonic", lambda: now_s)
    replicas = Replicas(URLS[:2], most=8)
    first, second = replicas.all
    for replica in (first, second):
        for _ in range(FAILURES - 1):
            replica.failed()
        replica.answered()
        for _ in range(FAILURES - 1):
            replica.failed()
        assert replica.back_s == 0, "failures that do not follow each other are the requests' own"
    for replica in (first, second):
        replica.failed()
        now_s += 1
    assert replicas.of("any") is first and first.limit == 1
    now_s += LEFT_OUT_S - 1.5
    assert {replicas.of(str(n)) for n in range(20)} == {first}
    now_s += 1
    assert {replicas.of(str(n)) for n in range(20)} == {first, second}


async def test_without_a_chain_the_replica_with_the_least_to_do_is_asked() -> None:
    replicas = Replicas(URLS, most=4)
    for _ in range(12):
        await replicas.enter(None)
    assert [replica.in_flight for replica in replicas.all] == [4, 4, 4]


# ---- how many at a time


async def test_overload_halves_the_limit_once_and_answers_raise_it_by_one_each_time_round() -> None:
    replica = Replica("http://a/v1", most=16)
    asked_s = time.monotonic()
    for _ in range(16):
        replica.slow_down(asked_s=asked_s, rest_s=0.0)
    assert replica.limit == 8, "all were sent before the limit was halved"
    replica.slow_down(asked_s=time.monotonic(), rest_s=0.0)
    assert replica.limit == 4
    for _ in range(4):
        replica.answered()
    assert 4.8 < replica.limit < 5
    for _ in range(300):
        replica.answered()
    assert replica.limit == 16
    for _ in range(20):
        replica.slow_down(asked_s=time.monotonic(), rest_s=0.0)
    assert replica.limit == 1


async def test_those_who_wait_enter_in_order_and_one_who_gives_up_takes_no_place() -> None:
    replica = Replica("http://a/v1", most=1)
    await replica.enter()
    entered: list[int] = []

    async def use(number: int) -> None:
        await replica.enter()
        entered.append(number)
        await asyncio.sleep(0)
        replica.leave()

    tasks = [asyncio.create_task(use(number)) for number in range(6)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    replica.leave()
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert entered == [2, 3, 4, 5]
    assert replica.in_flight == 0


async def test_a_replica_rests_as_long_as_it_asks() -> None:
    replica = Replica("http://a/v1", most=4)
    replica.slow_down(asked_s=time.monotonic(), rest_s=0.3)
    began_s = time.monotonic()
    await asyncio.gather(replica.enter(), replica.enter())
    assert 0.3 <= time.monotonic() - began_s < 2


# ---- two servers


Two = tuple[ServerEngine, Server, Server]
Connect = Callable[..., Awaitable[Two]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """connect(first, second, **config): an engine on both, probed, and their records emptied."""
    async with AsyncExitStack() as stack:

        async def connect(first: Server | None = None, second: Server | None = None, **config: Any) -> Two:
            servers = (first or Server(), second or Server())
            urls = tuple([await stack.enter_async_context(serving(server)) for server in servers])
            engine = await ServerEngine.connect(ServerEngineConfig(**{"url": urls, "model": "m", **config}))
            stack.push_async_callback(engine.aclose)
            for server in servers:
                server.bodies.clear()
            return engine, *servers

        yield connect


async def test_a_chain_is_kept_on_its_replica_and_both_are_used(connect: Connect) -> None:
    engine, *servers = await connect()
    rows = [f"row {number}" for number in range(24)]
    for step in range(3):
        await asyncio.gather(*(engine.generate(ask(row, seed=24 * step + n)) for n, row in enumerate(rows)))
    seen = [Counter(body["seed"] % 24 for body in server.bodies) for server in servers]
    assert all(len(chains) > 4 and set(chains.values()) == {3} for chains in seen)
    assert sum(map(len, seen)) == 24


async def test_the_options_of_a_group_are_asked_of_one_replica(connect: Connect) -> None:
    top = [("A", {"A": -0.1, "B": -3.0})]
    engine, *servers = await connect(Server(top=top), Server(top=top))
    requests = [ChoiceRequest(prompt=PROMPT, options=("A", "B"), prefix=f"{n}:") for n in range(8)]
    await engine.choose(requests)
    assert sorted(len(server.bodies) for server in servers) == [0, 8]


async def test_what_a_replica_fails_to_answer_another_does(connect: Connect) -> None:
    engine, broken, _ = await connect(retries=6)
    broken.answer = lambda body: web.Response(status=500)
    found = await asyncio.gather(*(engine.generate(ask(f"row {n}", seed=n)) for n in range(20)))
    assert [one.text for one in found] == [f"drawn {n}" for n in range(20)]
    asked = len(broken.bodies)
    await asyncio.gather(*(engine.generate(ask(f"row {n}", seed=n)) for n in range(20)))
    assert len(broken.bodies) == asked, "it is left out"


async def test_the_limit_follows_a_server_that_takes_few_at_a_time(connect: Connect) -> None:
    """The server takes three at a time and refuses the fourth."""
    engine, small, large = await connect(max_in_flight=32, retries=30)

    async def few(body: dict[str, Any]) -> web.Response:
        if small.now > 3:
            return web.Response(status=429, headers={"Retry-After": "0.01"})
        await asyncio.sleep(0.005)
        return small.say(body)

    small.answer = few
    found = await asyncio.gather(*(engine.generate(ask(f"row {n}", seed=n)) for n in range(300)))
    assert [one.text for one in found] == [f"drawn {n}" for n in range(300)]
    limit = next(one.limit for one in engine._wire.replicas.all if one.limit < 32)
    assert limit < 10 and large.most > 10
    assert len(small.bodies) < 300, "refusals are few, because the limit is kept near what it takes"


async def test_a_replica_that_is_not_there_or_is_another_is_said_at_once(connect: Connect) -> None:
    with pytest.raises(InputError, match=r"the replicas differ in logprobs: none at http.*, first-token at http"):
        await connect(Server(), Server(top=[("A", {"A": -0.1})]))
    with pytest.raises(InputError, match=r"the replicas differ in max_context: 500 at .*, 900 at "):
        await connect(Server(), Server(models=[{"id": "m", "max_model_len": 900}]))
    with pytest.raises(InputError, match=r"no server answers at http://127\.0\.0\.1:9/v1"):
        await connect(url=("http://127.0.0.1:9/v1",))


async def test_a_request_that_is_wrong_is_not_the_replicas_fault(connect: Connect) -> None:
    engine, *servers = await connect()
    for server in servers:
        server.answer = lambda body: web.Response(status=400, text="odd field")
    for number in range(12):
        with pytest.raises(EngineError, match="400"):
            await engine.generate(ask(f"row {number}"))
    assert all(replica.back_s == 0 and replica.limit == 32 for replica in engine._wire.replicas.all)


def test_one_server_is_started_at_a_time_and_a_list_is_not_empty() -> None:
    launch = ServerLaunch(command=("serve",))
    with pytest.raises(ValidationError, match="starts one server, but `url` names several"):
        ServerEngineConfig(url=URLS, model="m", launch=launch)
    with pytest.raises(ValidationError, match="an empty list"):
        ServerEngineConfig(url=(), model="m")
