"""Copies of a local model in processes of their own: the same answers, also when a process dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from solon.config import Comparisons, Recipe, outcome_settings
from solon.engine import (
    ChoiceRequest,
    LocalEngineConfig,
    RayEngineConfig,
    Request,
    Sampling,
    copies,
    load_engine,
)
from solon.engine.copies import CopiesEngine, _one_each, _threads, end_idle, start_ahead
from solon.errors import EngineError, InputError

TWO = LocalEngineConfig(path="sandbox:helpful", data_parallel=2)


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    end_idle()
    assert not copies._processes


def ask(text: str, *, session: str | None = None, tokens: int = 24) -> Request:
    sampling = Sampling(max_new_tokens=tokens, temperature=0)
    return Request(prompt=({"role": "user", "content": text},), sampling=sampling, session=session)


QUESTIONS = [
    ask(f"How do I bake {what}?", session=str(n)) for n, what in enumerate(("bread", "a cake", "a pie", "rolls"))
]
CHOICES = [
    ChoiceRequest(prompt=({"role": "user", "content": "Is the sky blue?"},), options=(" Yes", " No")),
    ChoiceRequest(prompt=({"role": "user", "content": "Is grass red?"},), options=(" Yes", " No", " Perhaps")),
]


def test_the_answers_are_those_of_one_engine() -> None:
    async def answers(config: LocalEngineConfig) -> tuple[list[Any], list[Any], Any]:
        engine = await load_engine(config)
        try:
            texts = await asyncio.gather(*map(engine.generate, QUESTIONS))
            return texts, await engine.choose(CHOICES), engine.capabilities
        finally:
            await engine.aclose()

    texts, choices, able = asyncio.run(answers(TWO))
    right_texts, right_choices, right_able = asyncio.run(answers(TWO.model_copy(update={"data_parallel": 1})))
    assert texts == right_texts
    assert able == right_able
    for seen, right in zip(choices, right_choices, strict=True):
        assert seen.logprobs == pytest.approx(right.logprobs, abs=1e-4)


def test_engines_share_the_processes_and_a_closed_one_answers_nothing() -> None:
    async def scenario() -> None:
        first, second = await CopiesEngine.open(TWO), await CopiesEngine.open(TWO)
        assert first.pids == second.pids
        assert len(set(first.pids)) == 2
        one = await first.generate(QUESTIONS[0])
        waiting = asyncio.create_task(first.generate(ask("How do I bake bread?", tokens=200)))
        await asyncio.sleep(0)
        await first.aclose()
        with pytest.raises(EngineError) as closed:
            await waiting
        assert closed.value.reason == "closed"
        with pytest.raises(EngineError, match="closed"):
            await first.generate(QUESTIONS[0])
        end_idle()
        assert len(second.pids) == 2, "they hold an engine"
        assert await second.generate(QUESTIONS[0]) == one
        pids = second.pids
        await second.aclose()
        end_idle()
        assert not any(map(lives, pids))

    asyncio.run(scenario())


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_requests_of_a_process_that_dies_are_asked_again_and_the_next_engine_has_a_new_one() -> None:
    async def scenario() -> None:
        engine = await CopiesEngine.open(TWO)
        right = await asyncio.gather(*map(engine.generate, QUESTIONS))
        dead, other = engine.pids
        waiting = [asyncio.create_task(engine.generate(question)) for question in QUESTIONS]
        await asyncio.sleep(0)
        os.kill(dead, signal.SIGKILL)
        assert await asyncio.gather(*waiting) == right
        assert engine.pids == [other]
        assert await engine.generate(QUESTIONS[0]) == right[0]
        third = await CopiesEngine.open(TWO)
        assert other in third.pids and len(third.pids) == 2
        await third.aclose()
        for pid in third.pids or [other]:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="killed by signal 9") as crashed:
            await engine.generate(QUESTIONS[0])
        assert crashed.value.reason == "engine-crashed"
        await engine.aclose()

    asyncio.run(scenario())


def test_what_is_wrong_is_said_as_by_one_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(InputError, match=r"config\.json"):
            await load_engine(LocalEngineConfig(path=str(tmp_path), data_parallel=2))
        engine = await CopiesEngine.open(TWO)
        with pytest.raises(EngineError) as long:
            await engine.generate(ask("word " * 5000))
        assert long.value.reason == "context-length"
        # What nobody has thought of is heard of, too: no request waits for ever.
        with pytest.raises(EngineError, match="AssertionError") as failed:
            await engine.choose([ChoiceRequest(prompt=QUESTIONS[0].prompt, options=())])
        assert failed.value.reason == "engine-crashed"
        await engine.aclose()

    asyncio.run(scenario())


class Still:
    """A process that is asked and does not answer."""

    def __init__(self) -> None:
        self.lives, self.asked, self.engines = True, 0, set[str]()
        self.chains: list[str | None] = []

    async def ask(self, method: str, key: str, asked: Any) -> Any:
        self.chains += [asked.session] if method == "generate" else [None] * len(asked)
        await asyncio.sleep(3600)


def test_a_chain_stays_and_new_ones_go_where_there_is_least_to_do() -> None:
    async def scenario() -> None:
        a, b = processes = [Still(), Still()]
        engine = CopiesEngine(processes)  # pyright: ignore[reportArgumentType]
        tasks: list[asyncio.Task[Any]] = []

        async def go(request: Request | list[ChoiceRequest]) -> None:
            asked = engine.generate(request) if isinstance(request, Request) else engine.choose(request)
            tasks.append(asyncio.create_task(asked))
            await asyncio.sleep(0)

        await go([CHOICES[0]] * 3)
        for name in ("1", "2", "3", "1", "1", "4", "5"):
            await go(ask("x", session=name))
        assert (a.chains, b.chains) == ([None, None, None, "4", "5"], ["1", "2", "3", "1", "1"])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert a.asked == b.asked == 0

    asyncio.run(scenario())


def test_they_end_with_the_process_that_started_them() -> None:
    script = (
        "import time\n"
        "from solon.engine import LocalEngineConfig, copies\n"
        "copies.start_ahead(LocalEngineConfig(path='sandbox:helpful', data_parallel=2))\n"
        "print(*(one.pid for one in copies._processes), flush=True)\n"
        "time.sleep(3600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(map(lives, pids))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline_s = time.monotonic() + 60
    while any(map(lives, pids)):
        assert time.monotonic() < deadline_s, "they are left"
        time.sleep(0.1)


def test_each_copy_has_its_device_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(**settings: Any) -> list[str]:
        return [one.device for one in _one_each(LocalEngineConfig(path="m", **settings))]

    monkeypatch.setattr(copies, "_num_gpus", lambda: 0)
    assert devices(data_parallel=3) == ["cpu"] * 3
    with pytest.raises(InputError, match="there is no GPU"):
        devices(data_parallel=2, device="cuda")
    monkeypatch.setattr(copies, "_num_gpus", lambda: 2)
    assert devices(data_parallel=2) == ["cuda:0", "cuda:1"]
    assert devices(data_parallel=3, device="cpu") == ["cpu"] * 3
    # A recipe for two copies runs on a machine with one GPU, too.
    assert devices(data_parallel=3) == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert [_threads(num) for num in (2, 3, 16)] == [4, 2, 1]
    with pytest.raises(ValidationError, match="gives each copy its device"):
        LocalEngineConfig(path="m", data_parallel=2, device="cuda:1")


def test_how_many_copies_there_are_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = LocalEngineConfig(path="j", data_parallel=4)
    assert "data_parallel" not in outcome_settings(judge)
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"path": "m", "data_parallel": 2},
            "prompts": {"path": "p"},
            "constitution": "harmless",
            "pairs": {},
            "comparisons": Comparisons(judge=judge),
        }
    ).over_ray("local")
    assert isinstance(recipe.model, RayEngineConfig) and recipe.comparisons is not None
    # Ray's actors are the copies.
    assert isinstance(recipe.model.engine, LocalEngineConfig) and recipe.model.engine.data_parallel == 1
    assert isinstance(recipe.comparisons.judge, RayEngineConfig)
    assert recipe.comparisons.judge.engine == judge.model_copy(update={"data_parallel": 1})

    taken: list[int] = []
    monkeypatch.setattr(copies, "_take", lambda num, *, threads: taken.append(num))
    for config in (None, LocalEngineConfig(path="m"), recipe.model, judge):
        start_ahead(config)
    assert taken == [4]
