"""Engines: a dialogue in, a completion out; a dialogue and options in, log-probabilities out.

Asynchronous, one awaitable per request, so that a chain of critiques and revisions is one coroutine that reads like the
paper; batching is the engine's own affair. What is sampled depends on (seed, prompt), never on the neighbours in a
batch, as far as rounding of the arithmetic allows.

    engine = load_engine(LocalEngineConfig(path="sandbox:helpful"))
    completion = await engine.generate(Request(prompt=({"role": "user", "content": "How do I bake bread?"},)))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from solon.dialogue import Message


class Sampling(BaseModel):
    """How a text is sampled. The paper samples at temperature 1 throughout (section 3.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_new_tokens: int = Field(default=256, ge=1)
    """Tokens at most; a text that reaches the limit has finish_reason "length"."""
    temperature: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus: the smallest set of tokens with this mass."""
    stop: tuple[str, ...] = ()
    """Texts at which sampling ends; they are not part of the completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One text to sample: the continuation of `prompt` + `prefix`."""

    prompt: tuple[Message, ...]
    """The dialogue; its last message is not the assistant's."""
    prefix: str = ""
    """The beginning of the assistant's answer, already written; not repeated in the completion."""
    sampling: Sampling = field(default_factory=lambda: Sampling())
    seed: int = 0
    session: str | None = None
    """The chain that this request belongs to, so that an engine may reuse the cache of its earlier turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A sampled text."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceRequest:
    """Which of `options` follows `prompt` + `prefix`?"""

    prompt: tuple[Message, ...]
    options: tuple[str, ...]
    """Whole continuations, such as ("(A)", "(B)")."""
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Log-probabilities of the options of one ChoiceRequest, in its order."""

    logprobs: tuple[float, ...]
    """log p(option | prompt + prefix), in nats, <= 0."""
    censored: tuple[bool, ...]
    """True where the value is only an upper bound (a server's top list did not hold the option)."""
    rule: str
    """How it was got: "full" (every token of the option), "full-from-boundary" (the same from the last token on that
    the options share with the prompt, which the vocabulary joins to them), "first-distinct" (the first token after the
    options' common beginning)."""

    @property
    def mass(self) -> float:
        """Probability that the answer is one of the options at all, in [0, 1]."""
        from math import exp

        return min(1.0, sum(exp(value) for value in self.logprobs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine was seen to do when it was probed; written into the manifests."""

    model: str
    """Name or path of the model, as the manifests show it."""
    logprobs: Literal["full", "first-token", "none"]
    """Whether `choose` can be used: whole options, only one token of the top list, or not at all."""
    seed: bool
    """Whether a request's seed is honoured."""
    max_context: int | None
    """Tokens of prompt and completion together, where known."""
    notes: tuple[str, ...] = ()


class Engine(Protocol):
    """Anything that answers requests. Raises EngineError for a request that cannot be answered (reason "context-length"
    for one that does not fit); never cuts a prompt silently."""

    @property
    def capabilities(self) -> Capabilities: ...
    async def generate(self, request: Request) -> Completion: ...
    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]: ...
    async def aclose(self) -> None: ...


class LocalEngineConfig(BaseModel):
    """Any Hugging Face causal language model, in this process."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["local"] = "local"
    path: str
    """A folder in Hugging Face format, or "sandbox:base" / "sandbox:helpful"."""
    template: Literal["auto", "chat", "transcript"] = "auto"
    """auto: the tokenizer's chat template where it has one, else a "Human: / Assistant:" transcript."""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """int8, on a CPU: texts are written with 8-bit linear layers beside the float32 ones, with which choices are
    scored, so that a weight takes 5 bytes."""
    device: str = "auto"
    """auto: cuda where there is one, else cpu."""
    max_batch: int = Field(default=64, ge=1)
    """Sequences that are generated side by side."""
    data_parallel: int = Field(default=1, ge=1)
    """Copies of the model, in a process each: on CPUs with its share of the cores, which is quicker where the model is
    small; of GPUs each takes the next one, and those that are left over begin again."""

    @model_validator(mode="after")
    def _int8_is_for_cpus(self) -> LocalEngineConfig:
        if self.dtype == "int8" and self.device not in ("auto", "cpu"):
            raise ValueError(f"`dtype: int8` is for CPUs and not for {self.device!r}: set `dtype: bfloat16` there")
        return self

    @model_validator(mode="after")
    def _copies_have_devices_of_their_own(self) -> LocalEngineConfig:
        if self.data_parallel > 1 and self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"`data_parallel` gives each copy its device, but `device` is {self.device!r}: leave it out"
            )
        return self


class ServerLaunch(BaseModel):
    """A command that starts a server, which ends when nothing uses it any longer, and with this process."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    command: tuple[str, ...] = Field(min_length=1)
    """The program (that of any virtual environment) and its arguments; "{port}" stands for a free port."""
    env: dict[str, str] = Field(default={})
    """Environment variables beside those of this process, such as CUDA_VISIBLE_DEVICES. No keys: they are inherited."""
    wait_s: float = Field(default=900.0, gt=0)
    """Seconds that the server may take until it answers."""


class ServerEngineConfig(BaseModel):
    """Any OpenAI-compatible server."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["server"] = "server"
    url: str | tuple[str, ...]
    """Base URL, such as http://localhost:8000/v1, or those of several servers with the same model; with `launch`,
    "{port}" stands in it for a free port."""
    model: str
    """The model's name on the server."""
    endpoint: Literal["chat", "completions"] = "chat"
    """chat: /chat/completions; completions: /completions with a "Human: / Assistant:" transcript."""
    options: Literal["whole", "first-token"] = "whole"
    """How options are compared. whole: by all of their tokens, which takes a request per option and one more, where the
    server gives the log-probabilities of a prompt; first-token: by one request for the first token that tells them
    apart, everywhere."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself never stands in a file."""
    max_in_flight: int = Field(default=32, ge=1)
    """Requests to a server at a time, at most; fewer while it says that it has too much to do."""
    timeout_s: float = Field(default=300.0, gt=0)
    retries: int = Field(default=4, ge=0)
    max_context: int | None = Field(default=None, ge=1)
    """Tokens of prompt and completion together, where the server does not tell. Some servers write on beyond their
    model's context; such a completion is refused where this is known."""
    launch: ServerLaunch | None = None
    """Start the server; null: it runs already."""

    @property
    def urls(self) -> tuple[str, ...]:
        """All of them."""
        return (self.url,) if isinstance(self.url, str) else self.url

    @model_validator(mode="after")
    def _urls_are_of_one_kind(self) -> ServerEngineConfig:
        if not self.urls:
            raise ValueError("url: an empty list")
        if self.launch is not None and len(self.urls) > 1:
            raise ValueError("`launch` starts one server, but `url` names several")
        if self.launch is None and any("{port}" in url for url in self.urls):
            raise ValueError("'{port}' in the url stands for the port of a server that `launch` starts")
        return self


class VLLMEngineConfig(BaseModel):
    """A model folder on a vLLM server that is started for it on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["vllm"] = "vllm"
    path: str
    """A folder in Hugging Face format, or "sandbox:helpful"."""
    endpoint: Literal["chat", "completions"] = "chat"
    """As for a server."""
    options: Literal["whole", "first-token"] = "whole"
    """As for a server."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: that of the weights; float32 becomes float16."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that the model is split over."""
    max_context: int | None = Field(default=None, ge=1)
    """Tokens of prompt and completion together; null: the model's."""
    seed: int = Field(default=0, ge=0)
    """Of the server; every request has its own."""
    args: tuple[str, ...] = ()
    """Further arguments of `vllm serve`, such as ("--gpu-memory-utilization", "0.8")."""
    python: str | None = None
    """The Python of an environment with vLLM in it; null: this one."""
    env: dict[str, str] = Field(default={})
    """Environment variables beside those of this process."""
    wait_s: float = Field(default=1800.0, gt=0)
    """Seconds that it may take until it answers."""
    max_in_flight: int = Field(default=256, ge=1)
    timeout_s: float = Field(default=600.0, gt=0)
    retries: int = Field(default=4, ge=0)


FolderEngineConfig = LocalEngineConfig | VLLMEngineConfig
"""Engines whose model is a folder on this machine, which can also be trained."""


def _default_kind(value: object) -> object:
    return {"kind": "local", **cast("dict[str, object]", value)} if isinstance(value, dict) else value


OneEngineConfig = LocalEngineConfig | ServerEngineConfig | VLLMEngineConfig
"""An engine of this process alone."""


class RayEngineConfig(BaseModel):
    """Another engine once in every actor of a Ray cluster, and the rows sharded over the actors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["ray"] = "ray"
    engine: Annotated[Annotated[OneEngineConfig, Field(discriminator="kind")], BeforeValidator(_default_kind)]
    """What each actor holds; a model's folder is found at the same path on every machine."""
    address: str = "local"
    """local: Ray is started on this machine, and ends with what uses it; "auto" or HOST:PORT: a cluster that runs
    already, of which this machine is a part."""
    actors: int | None = Field(default=None, ge=1)
    """Actors, each a process with an engine of its own; null: as many as the cluster's CPUs and GPUs suffice for."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs of an actor, and its threads."""
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs of an actor, or the part of one; null: what the engine takes, where the cluster has any."""
    wait_s: float = Field(default=900.0, gt=0)
    """Seconds until all actors have a place and their model."""


EngineConfig = OneEngineConfig | RayEngineConfig
AnyEngineConfig = Annotated[Annotated[EngineConfig, Field(discriminator="kind")], BeforeValidator(_default_kind)]
"""For recipes: without `kind` it is "local"."""


def over_ray(config: EngineConfig, address: str) -> RayEngineConfig:
    """The engine in the actors of a Ray cluster, which are its copies; one that is there already is left alone."""
    if isinstance(config, RayEngineConfig):
        return config
    if isinstance(config, LocalEngineConfig):
        config = config.model_copy(update={"data_parallel": 1})
    return RayEngineConfig(engine=config, address=address)


def without_ray(config: EngineConfig) -> OneEngineConfig:
    """The engine that answers in the end: what comes out does not depend on how many of them there are."""
    return config.engine if isinstance(config, RayEngineConfig) else config


async def load_engine(config: EngineConfig, *, logs: Path | None = None) -> Engine:
    """The engine of a config, loaded or probed. Raises InputError if there is no such model, server or cluster,
    MissingDependency if its package is not installed.

    `logs` is the folder for what a server prints that is started for it; the system's temporary one by default.
    """
    if isinstance(config, LocalEngineConfig) and config.data_parallel > 1:
        from solon.engine.copies import CopiesEngine

        return await CopiesEngine.open(config)
    if isinstance(config, LocalEngineConfig):
        from solon.engine.local import LocalEngine

        return LocalEngine.load(config)
    if isinstance(config, RayEngineConfig):
        from solon.engine.cluster import RayEngine

        return await RayEngine.open(config, logs=logs)
    from solon.engine.server import ServerEngine

    if isinstance(config, VLLMEngineConfig):
        from solon.engine.vllm import server_config

        config = server_config(config)
    return await ServerEngine.connect(config, logs=logs)
