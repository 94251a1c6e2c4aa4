"""A server that is started for a model answers, is shared, is ended, and says what is wrong when it does not start."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from solon.artifact import RunFolder
from solon.config import load_recipe
from solon.engine import Request, ServerEngineConfig, ServerLaunch, load_engine
from solon.engine.server import ServerEngine
from solon.errors import EngineError, InputError
from solon.pipeline import run_recipe

FAKE = str(Path(__file__).with_name("fake_server.py"))
URL = "http://127.0.0.1:{port}/v1"


def config_of(*arguments: str, url: str = URL, **launch: Any) -> ServerEngineConfig:
    command = (sys.executable, "-S", FAKE, "{port}", *arguments)
    return ServerEngineConfig(
        url=url, model="m", retries=0, launch=ServerLaunch(**{"command": command, "wait_s": 20.0, **launch})
    )


def ask(text: str = "Hello", *, seed: int = 3) -> Request:
    return Request(prompt=({"role": "user", "content": text},), seed=seed)


def port_of(engine: ServerEngine) -> int:
    found = re.search(r":(\d+)/", engine.urls[0])
    assert found
    return int(found[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_server_is_started_used_and_ended(tmp_path: Path) -> None:
    engine = await load_engine(config_of(env={"FAKE": "from the recipe"}), logs=tmp_path / "logs")
    assert isinstance(engine, ServerEngine)
    try:
        assert (await engine.generate(ask(seed=5))).text == "from the recipe 5"
        assert engine.capabilities.max_context == 500
        assert answers(port_of(engine))
    finally:
        await engine.aclose()
    assert not answers(port_of(engine))
    await engine.aclose()
    [log] = (tmp_path / "logs").iterdir()
    assert re.match(r"---- 20\d\d-\S+ .*fake_server.py \d+\narguments ", log.read_text())


async def test_engines_of_one_configuration_share_a_server_until_the_last_is_closed(tmp_path: Path) -> None:
    config = config_of()
    first, second = await asyncio.gather(load_engine(config, logs=tmp_path), load_engine(config, logs=tmp_path))
    assert isinstance(first, ServerEngine) and isinstance(second, ServerEngine)
    assert port_of(first) == port_of(second)
    await first.aclose()
    assert (await second.generate(ask())).text
    await second.aclose()
    assert not answers(port_of(second))
    third = await load_engine(config, logs=tmp_path)
    await third.aclose()
    [log] = tmp_path.iterdir()
    assert log.read_text().count("----") == 2


async def test_a_server_that_ends_before_it_answers_is_one_message_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)ended with code 3.*server-\w+\.log:.*no memory left.*launch\.command"):
        await load_engine(config_of("0", "3"), logs=tmp_path)


async def test_a_server_that_does_not_answer_in_time_is_ended(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with pytest.raises(InputError, match=r"(?s)did not answer within 0\.5 s at http.*\.log:\n.*fake_server.*wait_s"):
        await load_engine(config_of("60", wait_s=0.5), logs=tmp_path)
    assert time.monotonic() - started_s < 10


async def test_a_server_that_ends_in_the_middle_is_named_in_the_failures(tmp_path: Path) -> None:
    engine = await load_engine(config_of(), logs=tmp_path)
    try:
        with pytest.raises(EngineError) as caught:
            await engine.generate(ask("die"))
        await asyncio.sleep(0.5)
        with pytest.raises(EngineError, match=r"ended with code 9, see .*server-\w+\.log") as caught:
            await engine.generate(ask())
        assert caught.value.reason == "connection"
    finally:
        await engine.aclose()


async def test_a_port_that_is_taken_is_not_another_servers_model(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}/v1"
        with pytest.raises(InputError, match=r"something answers at .* already \(.*\{port\}"):
            await load_engine(config_of(url=url), logs=tmp_path)


async def test_a_command_that_is_not_there_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no command 'vlllm'.*launch\.command"):
        await load_engine(config_of(command=("vlllm", "serve")), logs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_free_port_needs_a_launch() -> None:
    with pytest.raises(ValidationError, match="the port of a server that `launch` starts"):
        ServerEngineConfig(url=URL, model="m")


RECIPE = """
name: x
model:
  kind: server
  url: http://127.0.0.1:{{port}}/v1
  model: m
  launch: {{command: [{python}, -S, {fake}, "{{port}}"]}}
prompts: {{path: sandbox, limit: 3, helpful_limit: 0}}
revisions: {{rounds: 1}}
"""


async def test_a_run_keeps_the_log_and_may_go_on_with_another_command(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(python=sys.executable, fake=FAKE))
    await run_recipe(load_recipe(path), tmp_path / "run", stages=["01-revisions"])
    stage = RunFolder(tmp_path / "run").stage("01-revisions")
    assert stage.manifest()["status"] == "finished"
    [log] = (tmp_path / "run" / "logs").iterdir()
    assert "POST /v1/chat/completions" in log.read_text()
    other = load_recipe(path, ["model.launch.wait_s=5"])
    await run_recipe(other, tmp_path / "run", stages=["01-revisions"])
