"""vLLM: `vllm serve` as a child of this process, used as any server is.

server_config(VLLMEngineConfig(path="my-model", tensor_parallel=4)).launch.command
# ("vllm", "serve", "my-model", "--host", "127.0.0.1", "--port", "{port}", ...)
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from solon.engine import ServerEngineConfig, ServerLaunch, VLLMEngineConfig
from solon.engine.checkpoint import find_folder
from solon.engine.launching import PORT
from solon.errors import InputError, MissingDependency

NUM_TOP = 20
"""Likeliest tokens that a request may ask for."""


def server_config(config: VLLMEngineConfig) -> ServerEngineConfig:
    """The server that `config` describes, and the command that starts it.

    Raises InputError if there is no such model folder or no vLLM beside `config.python`, MissingDependency if there is
    none in this environment.
    """
    return ServerEngineConfig(
        url=f"http://127.0.0.1:{PORT}/v1",
        model=config.path,
        endpoint=config.endpoint,
        options=config.options,
        max_in_flight=config.max_in_flight,
        timeout_s=config.timeout_s,
        retries=config.retries,
        max_context=config.max_context,
        launch=ServerLaunch(command=_command(config), env=config.env, wait_s=config.wait_s),
    )


def _command(config: VLLMEngineConfig) -> tuple[str, ...]:
    flags = {
        "--host": "127.0.0.1",
        "--port": PORT,
        "--served-model-name": config.path,
        "--dtype": config.dtype,
        "--seed": str(config.seed),
        "--tensor-parallel-size": str(config.tensor_parallel),
        "--max-logprobs": str(NUM_TOP),
        # What a request does not say is not taken from the model's generation_config.json.
        "--generation-config": "vllm",
    }
    if config.max_context is not None:
        flags["--max-model-len"] = str(config.max_context)
    pairs = [part for pair in flags.items() for part in pair]
    folder = str(find_folder(config.path))
    return (find_program(config.python), "serve", folder, *pairs, "--enable-prefix-caching", *config.args)


def find_program(python: str | None) -> str:
    """The `vllm` beside the Python of an environment, null for this one. Raises what `server_config` does."""
    program = Path(python or sys.executable).with_name("vllm")
    if shutil.which(program):
        return str(program)
    if python is None:
        raise MissingDependency("kind: vllm", extra="vllm")
    raise InputError(f"there is no {program}", remedy="`python` is that of an environment with vLLM in it")
