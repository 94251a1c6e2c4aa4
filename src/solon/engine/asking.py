"""What a request to an OpenAI-compatible server says: the fields of its JSON, as pure functions.

fields, stops = ask(config, prompt, prefix="", sampling=Sampling(max_new_tokens=8))
{**fields, **top_tokens(20, chat=True)}      # the same, and the likeliest tokens of every place
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from solon.dialogue import Message
from solon.engine import Sampling, ServerEngineConfig
from solon.engine.rendering import transcript_prompt

_MAX_STOPS = 4
"""Stop texts that OpenAI's API takes; texts are cut here at all of them in any case."""


class Asked(NamedTuple):
    """A request for a text."""

    fields: dict[str, Any]
    stops: tuple[str, ...]
    """Every text at which the reply is to be cut."""


def path_of(config: ServerEngineConfig) -> str:
    """Of the endpoint."""
    return "/chat/completions" if config.endpoint == "chat" else "/completions"


def ask(config: ServerEngineConfig, prompt: Sequence[Message], *, prefix: str, sampling: Sampling) -> Asked:
    """A request for the text that follows `prompt`; with /completions after `prefix`, which a chat is not sent."""
    stops = sampling.stop
    fields: dict[str, Any] = {
        "model": config.model,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if config.endpoint == "chat":
        fields["messages"] = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    else:
        fields["prompt"], implied = transcript_prompt(prompt, prefix)
        stops = (*stops, *implied)
    if stops:
        fields["stop"] = list(stops[:_MAX_STOPS])
    return Asked(fields, stops)


def top_tokens(num: int, *, chat: bool) -> dict[str, Any]:
    """More fields: the `num` likeliest tokens of every place of the reply."""
    return {"logprobs": True, "top_logprobs": num} if chat else {"logprobs": num}


_ONE = {"max_tokens": 1, "temperature": 0.0}
"""One token is generated, because some servers take 0 for no limit."""
WHOLE_PROMPT: dict[str, dict[str, Any]] = {
    "echo": {**_ONE, "echo": True, "logprobs": 1},
    "prompt_logprobs": {**_ONE, "prompt_logprobs": 0},
}
"""Fields of /completions by which a server gives the log-probabilities of a prompt's own tokens, by the name of the
way: OpenAI's own, and vLLM's."""
