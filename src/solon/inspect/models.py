"""Models from one side to the other: solon's engines as models of Inspect, and Inspect's models as engines of solon.

inspect eval solon/harm --model solon/sandbox:helpful        # SolonModel: a checkpoint, in this process
engine = await engine_of(get_model(role="grader"))           # any model of Inspect, as solon's judges ask it
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from pydantic import ValidationError

from solon.artifact import content_id, derive_seed
from solon.cli.inputs import engine_config
from solon.dialogue import Message, tidy
from solon.engine import (
    Capabilities,
    Choice,
    ChoiceRequest,
    Completion,
    Engine,
    LocalEngineConfig,
    Request,
    Sampling,
    ServerEngineConfig,
    load_engine,
)
from solon.engine.checkpoint import find_folder
from solon.errors import EngineError, InputError
from solon.inspect.plain import as_prerequisite

AT_ONCE = 64
"""Requests that Inspect sends to a local model side by side: what `LocalEngineConfig` decodes in one batch."""


@modelapi(name="solon")
def solon() -> type[ModelAPI]:
    """The models `solon/NAME`: NAME is a model folder, "sandbox:base", "sandbox:helpful" or a server as URL#NAME."""
    return SolonModel


class SolonModel(ModelAPI):
    """An engine of solon as a model of Inspect; it is loaded when it is first asked.

    `model_args` (`-M` on the command line) are the fields of LocalEngineConfig or ServerEngineConfig. Where Inspect
    sets no temperature, top_p or max_tokens, they are those of `Sampling`: 1, 1 and 256. Seeds derive from Inspect's
    `seed`, the prompt and how often it was asked before, so that epochs differ. A prompt that does not fit the context
    gets an output without text, with the reason in `error` and the stop reason "model_length".
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - the signature that Inspect calls; it is not changed
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        with as_prerequisite():
            given = engine_config(model_name)
            try:
                self._settings = type(given).model_validate({**given.model_dump(), **model_args})
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                what = f"-M {place}: {first['msg'][0].lower()}{first['msg'][1:]}"
                raise InputError(what, remedy=f"known: {', '.join(type(given).model_fields)}") from error
            if isinstance(self._settings, LocalEngineConfig):
                find_folder(self._settings.path)
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._asked: Counter[str] = Counter()

    async def engine(self) -> Engine:
        """The engine behind the model. Raises PrerequisiteError where there is no such model."""
        if self._loop is not asyncio.get_running_loop():
            # Inspect keeps models from one evaluation to the next, each of which has a loop of its own.
            self._loop, self._opening = asyncio.get_running_loop(), asyncio.Lock()
            if isinstance(self._settings, ServerEngineConfig):
                self._engine = None
        async with self._opening:
            if self._engine is None:
                with as_prerequisite():
                    self._engine = await load_engine(self._settings)
            return self._engine

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One text. Raises EngineError for whatever the engine cannot answer but a prompt that is too long."""
        if tools:
            raise EngineError("solon's engines call no tools", reason="tools")
        prompt, prefix = _asked(input)
        key = content_id([prompt, prefix])
        seed = derive_seed(config.seed or 0, "inspect", key, self._asked[key])
        self._asked[key] += 1
        request = Request(prompt=tuple(prompt), prefix=prefix, sampling=_sampling(config), seed=seed)
        engine = await self.engine()
        try:
            completion = await engine.generate(request)
        except EngineError as error:
            if error.reason != "context-length":
                raise
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length", error=str(error))
        stop = "max_tokens" if completion.finish_reason == "length" else "stop"
        output = ModelOutput.from_content(self.model_name, completion.text, stop_reason=stop)
        read, written = completion.prompt_tokens, completion.completion_tokens
        output.usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
        return output

    async def aclose(self) -> None:
        """Close the engine; it is loaded again if it is asked again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.aclose()

    def max_connections(self) -> int:
        return self._settings.max_batch if isinstance(self._settings, LocalEngineConfig) else AT_ONCE


class InspectEngine:
    """A model of Inspect as an Engine without log-probabilities: its judgements are sampled.

    What Inspect sets for the model (`--model-role 'grader={model: ..., max_tokens: 2048}'`) goes before what is asked
    for. Requests are in Inspect's log like any other.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._capabilities = Capabilities(
            model=str(model), logprobs="none", seed=False, max_context=None, notes=("through Inspect",)
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def generate(self, request: Request) -> Completion:
        """Sample one text; the prefix is not sent, and cut off where the model begins with it. Raises EngineError:
        "context-length", "content-filter", "empty", or "refused" for another error in the model's output."""
        sampling = request.sampling
        asked = GenerateConfig(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.top_p < 1 else None,
            stop_seqs=list(sampling.stop) or None,
        )
        output = await self._model.generate(messages_of(request.prompt), config=asked.merge(self._model.config))
        if reason := no_answer(output):
            raise EngineError(output.error or f"{self._model} gave no text", reason=reason)
        text, start = output.completion.lstrip(), request.prefix.strip()
        return Completion(
            text=text[len(start) :] if start and text.startswith(start) else output.completion,
            finish_reason="length" if output.stop_reason == "max_tokens" else "stop",
            prompt_tokens=output.usage.input_tokens if output.usage else 0,
            completion_tokens=output.usage.output_tokens if output.usage else 0,
        )

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
        raise EngineError("Inspect's models give no log-probabilities of options", reason="no-logprobs")

    async def aclose(self) -> None:
        """Inspect closes its models."""


async def engine_of(model: Model) -> Engine:
    """How solon asks a model of Inspect: its own by their engine, which may have log-probabilities; others by texts."""
    return await model.api.engine() if isinstance(model.api, SolonModel) else InspectEngine(model)


def no_answer(output: ModelOutput) -> str:
    """Why an output is no answer that can be judged: "context-length", "content-filter", "refused" or "empty"; "" where
    it is one."""
    reasons = {"model_length": "context-length", "content_filter": "content-filter"}
    if output.stop_reason in reasons:
        return reasons[output.stop_reason]
    if output.error:
        return "refused"
    return "" if output.completion.strip() else "empty"


def messages_of(prompt: Sequence[Message]) -> list[ChatMessage]:
    """A dialogue in Inspect's types."""
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return [kinds[turn["role"]](content=turn["content"]) for turn in prompt]


def dialogue_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """Inspect's messages as a dialogue. Raises EngineError for the results of tools."""
    turns: list[Message] = []
    for one in messages:
        if one.role == "tool":
            raise EngineError("solon's engines read no results of tools", reason="tools")
        turns.append({"role": one.role, "content": one.text})
    return tidy(turns)


def _asked(messages: Sequence[ChatMessage]) -> tuple[list[Message], str]:
    """The prompt, and the beginning of the answer where the messages end with one."""
    turns = dialogue_of(messages)
    if turns and turns[-1]["role"] == "assistant":
        return turns[:-1], turns[-1]["content"]
    return turns, ""


def _sampling(config: GenerateConfig) -> Sampling:
    given: dict[str, Any] = {
        "max_new_tokens": config.max_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "stop": tuple(config.stop_seqs or ()),
    }
    return Sampling.model_validate({name: value for name, value in given.items() if value is not None})
