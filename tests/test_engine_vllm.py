"""`kind: vllm` starts `vllm serve` with the flags that are needed; a command of that name stands in for vLLM itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from solon.artifact import RunFolder
from solon.config import load_recipe
from solon.engine import Request, VLLMEngineConfig, load_engine
from solon.engine.vllm import server_config
from solon.errors import InputError, MissingDependency
from solon.plan.preflight import preflight
from solon.run import Run, fingerprint, settings_of

FAKE = str(Path(__file__).with_name("fake_server.py"))


@pytest.fixture
def python(tmp_path: Path) -> str:
    """The Python of an environment that has a command `vllm`, which says its arguments and serves on --port."""
    folder = tmp_path / "serving" / "bin"
    folder.mkdir(parents=True)
    command = folder / "vllm"
    serve = f'exec "{sys.executable}" -S "{FAKE}" "$(echo "$@" | sed "s/.*--port \\([0-9]*\\).*/\\1/")"'
    command.write_text(f'#!/bin/sh\necho "$@"\n{serve}\n')
    command.chmod(0o755)
    return str(folder / "python")


def test_the_command_is_that_of_the_documented_flags(
    python: str, tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]
) -> None:
    folder = str(tiny_causal_lm(tmp_path))
    found = server_config(
        VLLMEngineConfig(path=folder, python=python, tensor_parallel=4, args=("--quantization", "fp8"))
    )
    assert found.launch is not None and found.model == folder
    assert found.launch.command == (
        *(python.removesuffix("python") + "vllm", "serve", folder),
        *("--host", "127.0.0.1", "--port", "{port}", "--served-model-name", folder),
        *("--dtype", "auto", "--seed", "0", "--tensor-parallel-size", "4", "--max-logprobs", "20"),
        *("--generation-config", "vllm", "--enable-prefix-caching", "--quantization", "fp8"),
    )
    shorter = server_config(VLLMEngineConfig(path=folder, python=python, max_context=4096)).launch
    assert shorter is not None and "--max-model-len 4096" in " ".join(shorter.command)


async def test_it_is_started_and_asked_for_the_model_by_its_path(
    python: str, tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]
) -> None:
    folder = str(tiny_causal_lm(tmp_path))
    config = VLLMEngineConfig(path=folder, python=python, env={"FAKE": "vllm says"}, wait_s=20)
    engine = await load_engine(config, logs=tmp_path / "logs")
    try:
        assert (
            await engine.generate(Request(prompt=({"role": "user", "content": "Hello"},), seed=4))
        ).text == "vllm says 4"
        assert engine.capabilities.model == folder
    finally:
        await engine.aclose()
    [log] = (tmp_path / "logs").iterdir()
    assert f"serve {folder} --host 127.0.0.1 --port " in log.read_text()


def test_a_missing_vllm_is_found_before_anything_is_run(tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]) -> None:
    folder = str(tiny_causal_lm(tmp_path))
    with pytest.raises(MissingDependency, match=r"solon\[vllm\]"):
        server_config(VLLMEngineConfig(path=folder))
    with pytest.raises(InputError, match=r"there is no .*/vllm .*an environment with vLLM"):
        server_config(VLLMEngineConfig(path=folder, python=str(tmp_path / "bin" / "python")))
    with pytest.raises(InputError, match="no such model folder"):
        server_config(VLLMEngineConfig(path=str(tmp_path / "none")))


RECIPE = """
name: x
model: {kind: vllm, path: MODEL, python: PYTHON}
prompts: {path: sandbox, limit: 3, helpful_limit: 0}
revisions: {}
supervised: {start: assistant}
pairs: {}
comparisons: {}
"""


def test_the_models_of_a_run_are_served_too_and_can_be_trained(
    python: str, tmp_path: Path, tiny_causal_lm: Callable[[Path], Path]
) -> None:
    folder = tiny_causal_lm(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("MODEL", json.dumps(str(folder))).replace("PYTHON", json.dumps(python)))
    recipe = load_recipe(path)
    run = Run(recipe=recipe, folder=RunFolder(tmp_path / "run"))
    tuned = run.models()["sl-cai"]
    assert isinstance(tuned, VLLMEngineConfig)
    assert (tuned.path, tuned.python) == (str(tmp_path / "run" / "02-sl-cai" / "model"), python)
    assert fingerprint(recipe.model) not in (str(folder), "") and len(fingerprint(recipe.model)) >= 16
    other = load_recipe(path, ["model.tensor_parallel=2", "model.python=null", "model.wait_s=9"])
    assert settings_of(other.model) == settings_of(recipe.model)
    assert settings_of(load_recipe(path, ["model.dtype=float16"]).model) != settings_of(recipe.model)
    preflight(recipe)
    with pytest.raises(InputError, match=r"there is no .*/bin/vllm"):
        preflight(load_recipe(path, [f"model.python={tmp_path}/bin/python"]))
