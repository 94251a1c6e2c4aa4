"""Ray: rows are the same as without it, a row stays in one actor, and an actor that dies takes nothing with it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from solon.artifact import StageFolder, read_rows
from solon.config import Recipe, load_recipe, outcome_settings
from solon.constitution import Constitution
from solon.dialogue import Message, PromptRow
from solon.engine import (
    ChoiceRequest,
    Engine,
    LocalEngineConfig,
    RayEngineConfig,
    Request,
    Sampling,
    ServerEngineConfig,
    ServerLaunch,
    VLLMEngineConfig,
    load_engine,
)
from solon.engine.cluster import gpus_of, room_for
from solon.errors import EngineError, InputError, MissingDependency
from solon.plan.preflight import preflight
from solon.run import Run, RunFolder, fingerprint, settings_of
from solon.supervised import revise

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'solon[ray]'")
FAKE = str(Path(__file__).with_name("fake_server.py"))
PROMPT: tuple[Message, ...] = ({"role": "user", "content": "Hello"},)
RECIPE = """
name: x
model:
  kind: ray
  engine: {path: sandbox:helpful, max_batch: 8}
  actors: 4
prompts: {path: sandbox, limit: 3, helpful_limit: 0}
revisions: {rounds: 2, window: 16, sampling: {max_new_tokens: 12}}
supervised: {start: assistant}
pairs: {}
comparisons: {judge: {kind: ray, engine: {kind: server, url: "http://h/v1", model: m}}}
"""


# ---- the settings


def written(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_what_a_stage_was_made_with_does_not_depend_on_ray(tmp_path: Path) -> None:
    path = written(tmp_path)
    sharded = load_recipe(path)
    plain = load_recipe(path, ["model.kind=local", "model.path=sandbox:helpful", "comparisons.judge=null"])
    assert settings_of(sharded.model) == settings_of(plain.model)
    assert fingerprint(sharded.model) == fingerprint(plain.model)
    judged = load_recipe(path, ["comparisons.judge={kind: server, url: u, model: m}"])
    assert outcome_settings(sharded.comparisons) == outcome_settings(judged.comparisons)
    other = load_recipe(path, ["model.engine.dtype=bfloat16"])
    assert settings_of(other.model) != settings_of(sharded.model)


def test_the_models_of_a_run_are_sharded_as_the_assistant_is(tmp_path: Path) -> None:
    run = Run(recipe=load_recipe(written(tmp_path)), folder=RunFolder(tmp_path / "run"))
    tuned = run.models()["sl-cai"]
    assert isinstance(tuned, RayEngineConfig) and tuned.actors == 4
    assert tuned.engine == LocalEngineConfig(path=str(tmp_path / "run" / "02-sl-cai" / "model"), max_batch=8)


def test_a_recipe_goes_over_ray_whole_but_keeps_what_it_says_itself(tmp_path: Path) -> None:
    path = written(tmp_path)
    flags = ["model.kind=local", "model.path=m", "evaluation.judge.path=j", "supervised=null", "comparisons.judge=null"]
    recipe = load_recipe(path, flags).over_ray("auto")
    assert recipe.model == RayEngineConfig(engine=LocalEngineConfig(path="m"), address="auto")
    assert recipe.evaluation and recipe.evaluation.judge == RayEngineConfig(
        engine=LocalEngineConfig(path="j"), address="auto"
    )
    assert recipe.comparisons and recipe.comparisons.judge is None
    assert load_recipe(path).over_ray("auto").model == load_recipe(path).model


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("model.actor=3", "--set model.actor: there is no such setting (do you mean 'actors'?)"),
        ("model.engine.pathh=x", "--set model.engine.pathh: there is no such setting (do you mean 'path'?)"),
        ("model.actors=0", "--set model.actors: input should be greater than or equal to 1, not 0"),
        (
            "model.engine.kind=ray",
            "--set model.engine.kind: there is no kind 'ray' (known: 'local', 'server', 'vllm')",
        ),
    ],
)
def test_a_wrong_setting_is_one_clear_message(tmp_path: Path, flag: str, message: str) -> None:
    with pytest.raises(InputError) as found:
        load_recipe(written(tmp_path), [flag])
    assert str(found.value) == message


def test_a_missing_package_is_found_before_anything_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"kind: ray needs .*solon\[ray\]"):
        preflight(load_recipe(written(tmp_path)))


def test_room_is_that_of_each_machine_and_not_of_their_sum() -> None:
    nodes = [{"CPU": 16.0, "GPU": 3.0}, {"CPU": 16.0, "GPU": 8.0}, {"CPU": 64.0}]
    assert room_for(nodes, num_cpus=1, num_gpus=2) == 1 + 4
    assert room_for(nodes, num_cpus=8, num_gpus=1) == 2 + 2
    assert room_for(nodes, num_cpus=1, num_gpus=0.1) == 16 + 16
    assert room_for(nodes, num_cpus=1, num_gpus=0) == 96
    assert room_for(nodes, num_cpus=0, num_gpus=0) == float("inf")


def test_an_engine_takes_the_gpus_that_it_computes_on() -> None:
    assert gpus_of(VLLMEngineConfig(path="m", tensor_parallel=4)) == 4
    assert gpus_of(LocalEngineConfig(path="m")) == 1 and gpus_of(LocalEngineConfig(path="m", device="cpu")) == 0
    assert gpus_of(ServerEngineConfig(url="http://h/v1", model="m")) == 0


# ---- actors


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for these tests, with room for two actors; starting it takes seconds."""
    import ray

    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield
    ray.shutdown()


def naming_itself(folder: Path) -> ServerEngineConfig:
    """A server that every actor starts for itself, and that says its process and the seed."""
    command = folder / "serve"
    command.write_text(f'#!/bin/sh\nFAKE=$$ exec "{sys.executable}" -S "{FAKE}" "$1"\n')
    command.chmod(0o755)
    launch = ServerLaunch(command=(str(command), "{port}"), wait_s=30)
    return ServerEngineConfig(url="http://127.0.0.1:{port}/v1", model="m", launch=launch)


def prompts(n: int) -> list[PromptRow]:
    return [
        {"id": f"p{i}", "prompt": [{"role": "user", "content": f"Question {i}?"}], "kind": "red-team", "source": "test"}
        for i in range(n)
    ]


async def revised(engine: Engine, folder: Path, *, num: int, advanced: Callable[[], None] = lambda: None) -> Path:
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "model": {"path": "unused"},
            "prompts": {"path": "unused"},
            "revisions": {"rounds": 2, "window": 8, "few_shot": 0, "sampling": {"max_new_tokens": 8}},
        }
    )

    class Told:
        def start(self, what: str, total: int, done: int = 0) -> None: ...

        def advance(self, n: int = 1) -> None:
            advanced()

        def end(self) -> None: ...

    stage = StageFolder(folder)
    assert stage.begin(config={}, inputs={})
    constitution = Constitution.load("harmless")
    await revise(recipe, stage, constitution=constitution, engine=engine, prompts=prompts(num), progress=Told())
    return folder / "revisions.jsonl"


@needs_ray
async def test_rows_and_choices_are_those_of_one_engine(
    cluster: None, tmp_path: Path, tiny_causal_lm: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_causal_lm(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = LocalEngineConfig(path="tiny-model")
    asked = [ChoiceRequest(prompt=PROMPT, options=("(A)", "(B)"), prefix=prefix) for prefix in ("", "Well,")]
    found = []
    for number, each in enumerate((config, RayEngineConfig(engine=config, actors=2))):
        engine = await load_engine(each)
        try:
            path = await revised(engine, tmp_path / str(number), num=10)
            choices = await engine.choose(asked)
            with pytest.raises(EngineError, match="context") as refused:
                await engine.generate(Request(prompt=PROMPT, sampling=Sampling(max_new_tokens=600)))
        finally:
            await engine.aclose()
        rows = sorted(read_rows(path), key=lambda row: row["id"])
        found.append((rows, engine.capabilities, refused.value.reason))
        logprobs = [value for choice in choices for value in choice.logprobs]
        if number == 0:
            alone = logprobs
        else:
            assert logprobs == pytest.approx(alone, abs=1e-5)
    assert found[0] == found[1] and len(found[0][0]) == 10


@needs_ray
async def test_a_row_stays_in_its_actor_and_engines_share_the_actors(cluster: None, tmp_path: Path) -> None:
    config = naming_itself(tmp_path)
    engine = await load_engine(RayEngineConfig(engine=config, actors=2), logs=tmp_path / "logs")
    other = await load_engine(RayEngineConfig(engine=config.model_copy(update={"retries": 1}), actors=2))
    try:
        requests = [Request(prompt=PROMPT, session=str(n % 40), seed=n) for n in range(120)]
        texts = [one.text.split() for one in await asyncio.gather(*map(engine.generate, requests))]
        assert [seed for _, seed in texts] == [str(n) for n in range(120)]
        servers: dict[str, set[str]] = defaultdict(set)
        for request, (server, _) in zip(requests, texts, strict=True):
            servers[str(request.session)].add(server)
        assert {len(of) for of in servers.values()} == {1}
        shares = Counter(next(iter(of)) for of in servers.values())
        assert len(shares) == 2 and min(shares.values()) > 10
        assert await other.pids() == await engine.pids()  # type: ignore[attr-defined]
        assert len(set(await engine.pids())) == 2  # type: ignore[attr-defined]
        assert (await other.generate(requests[0])).text.split()[1] == "0"
    finally:
        await other.aclose()
        await engine.aclose()
    for server in shares:
        with pytest.raises(ProcessLookupError):
            os.kill(int(server), 0)


@needs_ray
async def test_an_actor_that_is_killed_is_replaced_and_no_row_is_lost_or_made_twice(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await load_engine(RayEngineConfig(engine=naming_itself(tmp_path), actors=2))
    try:
        before = await engine.pids()  # type: ignore[attr-defined]
        num_done = 0

        def advanced() -> None:
            nonlocal num_done
            num_done += 1
            if num_done == 10:
                os.kill(before[0], signal.SIGKILL)

        path = await revised(engine, tmp_path / "stage", num=80, advanced=advanced)
        rows = list(read_rows(path))
        assert sorted(row["id"] for row in rows) == sorted(row["id"] for row in prompts(80))
        assert not (path.parent / "failures.jsonl").exists()
        assert "died and is replaced" in caplog.text
        for _ in range(100):
            if len(after := await engine.pids()) == 2:  # type: ignore[attr-defined]
                break
            await asyncio.sleep(0.1)
        assert before[0] not in after and before[1] in after and len(set(after)) == 2
        seeds = [re.fullmatch(r"\d+ (\d+)", row["response"]) for row in rows]
        assert all(seeds) and len({seed[1] for seed in seeds if seed}) == 80
    finally:
        await engine.aclose()


@needs_ray
async def test_where_no_actor_can_be_started_again_it_is_said(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await load_engine(RayEngineConfig(engine=naming_itself(tmp_path), actors=1))
    try:
        assert await engine.generate(Request(prompt=PROMPT, session="1"))
        (tmp_path / "serve").unlink()
        os.kill((await engine.pids())[0], signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match="no actor is left") as found:
            await engine.generate(Request(prompt=PROMPT, session="1"))
        assert found.value.reason == "no-actor" and "there is no command" in caplog.text
    finally:
        await engine.aclose()


@needs_ray
async def test_what_an_actor_cannot_load_or_the_cluster_cannot_hold_is_one_message(cluster: None) -> None:
    with pytest.raises(InputError, match=r"no such model folder .*nothing is downloaded"):
        await load_engine(RayEngineConfig(engine=LocalEngineConfig(path="no/such/folder"), actors=1))
    there = LocalEngineConfig(path="sandbox:helpful")
    with pytest.raises(InputError, match=r"no room for 3 actors of 1 CPUs and 0 GPUs: Ray has 2 CPUs and 0 GPUs"):
        await load_engine(RayEngineConfig(engine=there, actors=3))
    with pytest.raises(InputError, match=r"no room for an actor of 8 CPUs"):
        await load_engine(RayEngineConfig(engine=there, num_cpus=8))


@needs_ray
@pytest.mark.slow
def test_a_run_over_ray_that_is_killed_leaves_nothing_behind_and_goes_on_without_ray(tmp_path: Path) -> None:
    import psutil

    path = written(
        tmp_path,
        "name: x\nmodel: {path: sandbox:helpful, max_batch: 4}\n"
        "prompts: {path: sandbox, limit: 60, helpful_limit: 0}\n"
        "revisions: {rounds: 2, window: 8, sampling: {max_new_tokens: 24}}\n",
    )
    out = tmp_path / "run"
    command = [sys.executable, "-m", "solon", "run", str(path), "--out", str(out)]
    rows = out / "01-revisions" / "revisions.jsonl"
    process = subprocess.Popen([*command, "--ray", "local"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline_s = time.monotonic() + 200
    while not (rows.exists() and rows.read_bytes().count(b"\n") >= 10):
        assert process.poll() is None and time.monotonic() < deadline_s, process.communicate()[0].decode()
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in one.name() for one in family)
    process.kill()
    process.communicate()
    before = rows.read_text().splitlines()
    # The actors end within seconds; Ray's own agents look only now and then whether their raylet lives.
    _, alive = psutil.wait_procs(family, timeout=120)
    assert [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    after = rows.read_text().splitlines()
    assert after[: len(before) - 1] == before[:-1]
    ids = [row["id"] for row in read_rows(rows)]
    assert len(before) < 60 == len(ids) == len(set(ids))
