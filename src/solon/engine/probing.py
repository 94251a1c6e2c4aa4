"""What a server can do, seen by the shape of its replies and not by its name.

    abilities = await probe(wire, config)

Many servers answer 200 and leave out what they do not know, so that each kind of request is sent once and its reply
looked at. What was seen goes into `Capabilities.notes` and from there into the manifests.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from solon.dialogue import Message
from solon.engine import Sampling, ServerEngineConfig
from solon.engine.asking import WHOLE_PROMPT, ask, path_of, top_tokens
from solon.engine.replies import READERS, Position, first_choice, positions_of, text_of
from solon.engine.wire import Trouble, Wire
from solon.errors import EngineError, InputError

_RETRIES = 2
_PROMPT: tuple[Message, ...] = ({"role": "user", "content": "Tell me a short story about a river, a boat and a bird."},)
_UNLIKELY = " zebra"
"""A word that is not among the likeliest tokens anywhere: it is in a list only where it was named."""
_NUM_TOPS = (20, 5)
"""Likeliest tokens that are asked for; some servers refuse the first number."""
_NEAR = 0.1
"""Nats by which two ways to the log-probability of one token may differ, and this share of it: bfloat16 is coarse."""
_SAMPLE_FIELD = {"generation_config": json.dumps({"do_sample": True})}
"""`transformers serve` samples only where the model's generation_config.json says do_sample, or this field does."""
_CONTEXT_KEYS = ("max_model_len", "context_length", "context_window", "max_context_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a server was seen to do."""

    num_top: int
    """Likeliest tokens that it may be asked for; 0: it gives no log-probabilities of them."""
    whole: Literal["echo", "prompt_logprobs"] | None
    """How it gives the log-probabilities of a prompt's own tokens (/completions alone)."""
    names_tokens: bool
    """Whether it gives the log-probabilities of tokens that are named by their ids (vLLM's logprob_token_ids)."""
    seed: bool
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields without which it does not sample."""
    max_context: int | None
    notes: tuple[str, ...]

    @property
    def logprobs(self) -> Literal["full", "first-token", "none"]:
        """As in Capabilities."""
        return "full" if self.whole else "first-token" if self.num_top else "none"


async def probe(wire: Wire, config: ServerEngineConfig) -> Abilities:
    """Ask the first replica of `wire`. Raises InputError: no server there, no such model, a key that is not taken."""
    return await _Probe(wire, config).run()


class _Probe:
    def __init__(self, wire: Wire, config: ServerEngineConfig) -> None:
        self._wire, self._config, self._chat = wire, config, config.endpoint == "chat"
        self._notes = [f"endpoint {config.endpoint}"]
        self._first: Position | None = None
        """The likeliest token after _PROMPT."""
        self._more: dict[str, Any] = {}

    async def run(self) -> Abilities:
        listed = await self._list_models()
        try:
            text_of(first_choice(await self._ask(max_tokens=8, temperature=0.0)), chat=self._chat)
        except EngineError as error:
            raise self._no_answer(error, listed) from error
        if self._config.model not in listed:
            self._notes.append("the model answers, but the server does not list it")
        num_top = await self._top()
        return Abilities(
            num_top=num_top,
            names_tokens=num_top > 0 and await self._names_tokens(num_top),
            whole=await self._whole(),
            seed=await self._seed(),
            more=self._more,
            max_context=self._config.max_context or listed.get(self._config.model),
            notes=tuple(self._notes),
        )

    async def _ask(self, *, max_tokens: int, temperature: float = 1.0, prefix: str = "", **more: Any) -> object:
        sampling = Sampling(max_new_tokens=max_tokens, temperature=temperature)
        fields, _ = ask(self._config, _PROMPT, prefix=prefix.lstrip(), sampling=sampling)
        return await self._wire.post(path_of(self._config), {**fields, **more}, retries=_RETRIES)

    async def _list_models(self) -> dict[str, int | None]:
        """Names of the server's models with their context where told; {} where the server has no readable list."""
        reply = await self._wire.get("/models")
        if isinstance(reply, Trouble):
            if reply.error.reason in ("connection", "timeout"):
                remedy = "start it, or mend `url`, which ends with /v1 as a rule"
                raise InputError(f"no server answers at {self._wire.url}", remedy=remedy)
            if reply.error.reason == "unauthorised":
                raise self._no_answer(reply.error, {})
            return {}
        rows = cast(Any, reply).get("data") if isinstance(reply, dict) else None
        return {
            str(row["id"]): next((row[key] for key in _CONTEXT_KEYS if isinstance(row.get(key), int)), None)
            for row in (cast("list[dict[str, Any]]", rows) if isinstance(rows, list) else [])
            if isinstance(cast(object, row), dict) and "id" in row
        }

    def _no_answer(self, error: EngineError, listed: dict[str, int | None]) -> InputError:
        """Why the first request failed, as the user can mend it."""
        url, model = self._wire.url, self._config.model
        where = f"{url} does not answer for model {model!r}"
        if error.reason == "unauthorised":
            remedy = "set `api_key_env` to the name of the environment variable that holds the key"
        elif listed and model not in listed:
            where = f"{url} has no model {model!r}"
            remedy = f"it has {', '.join(sorted(listed)[:20])}"
        else:
            remedy = "mend `model` or `url` (it ends with /v1 as a rule)"
            if self._chat:
                remedy += "; a model without a chat template needs `endpoint: completions`"
        return InputError(f"{where}: {self._wire.clean(error)}", remedy=remedy)

    async def _top(self) -> int:
        for num_top in _NUM_TOPS:
            try:
                reply = await self._ask(max_tokens=1, temperature=0.0, **top_tokens(num_top, chat=self._chat))
                positions = positions_of(first_choice(reply))
            except EngineError as error:
                self._notes.append(f"log-probabilities refused ({num_top} asked for): {error}")
                continue
            if not positions:
                self._notes.append("log-probabilities were asked for and silently left out")
                return 0
            self._notes.append(f"log-probabilities of the {len(positions[0].top)} likeliest tokens")
            self._first = positions[0]
            return num_top
        return 0

    async def _names_tokens(self, num_top: int) -> bool:
        """Whether a list that was to hold two named tokens holds them and the generated one alone."""
        ids = (await token_ids(self._wire, self._config, _UNLIKELY))[:2]
        if not ids:
            return False
        more: dict[str, Any] = {**top_tokens(num_top, chat=self._chat), "logprob_token_ids": ids}
        try:
            positions = positions_of(first_choice(await self._ask(max_tokens=1, temperature=0.0, **more)))
        except EngineError:
            return False
        named = bool(positions) and any(
            text and _UNLIKELY.strip().startswith(text.strip()) for text in positions[0].top if text.strip()
        )
        if not named or len(positions[0].top) > len(ids) + 1:
            return False
        self._notes.append("log-probabilities of tokens that are named (logprob_token_ids)")
        return True

    async def _whole(self) -> Literal["echo", "prompt_logprobs"] | None:
        """How the server gives log-probabilities of a prompt, if options are to be compared by all of their tokens.

        The first token that it generates must have the same one as the last of a prompt: llama-cpp-python 0.3 gives
        each token that of its successor's place where the model has no token for the beginning of a text.
        """
        if self._first is None or self._chat or self._config.options == "first-token":
            return None
        for name, more in WHOLE_PROMPT.items():
            try:
                found = READERS[name](await self._ask(prefix=self._first.token, **more))
            except EngineError:
                continue
            if found is None:
                continue
            value = found.logprobs[-1]
            if value is None or abs(value - self._first.logprob) > _NEAR * (1 + abs(self._first.logprob)):
                expected = f"{self._first.logprob:.2f} when it is generated"
                self._notes.append(f"{name} is wrong: {value} for a token that has {expected}; it is not used")
                continue
            self._notes.append(f"log-probabilities of a prompt's own tokens ({name})")
            return cast(Literal["echo", "prompt_logprobs"], name)
        self._notes.append("no log-probabilities of a prompt's own tokens: options are compared by their first")
        return None

    async def _seed(self) -> bool:
        """Whether equal seeds give equal texts and others do not, asked side by side as in use."""
        texts = await self._seeded()
        if len(set(texts)) == 1:
            self._more = _SAMPLE_FIELD
            try:
                sampled = await self._seeded()
            except EngineError:
                sampled = texts
            if len(set(sampled)) == 1:
                self._more = {}
                self._notes.append("every seed gives the same text at temperature 1: the server does not sample")
                return False
            self._notes.append("samples only with generation_config.do_sample, which is sent with every request")
            texts = sampled
        honoured = texts[0] == texts[2] and texts[0] != texts[1]
        if not honoured:
            self._notes.append("the seed is not honoured: a sample cannot be had again")
        return honoured

    async def _seeded(self) -> list[str]:
        asked = (self._ask(max_tokens=24, seed=seed, **self._more) for seed in (11, 12, 11))
        return [text_of(first_choice(reply), chat=self._chat) for reply in await asyncio.gather(*asked)]


async def token_ids(wire: Wire, config: ServerEngineConfig, text: str) -> list[int]:
    """The ids of a text's tokens from vLLM's /tokenize, which stands beside /v1; [] from a server that has none."""
    body = {"model": config.model, "prompt": text, "add_special_tokens": False}
    try:
        reply = await wire.post("/../tokenize", body, retries=0)
    except EngineError:
        return []
    ids = cast(Any, reply).get("tokens") if isinstance(reply, dict) else None
    found = cast("list[object]", ids) if isinstance(ids, list) else []
    return [one for one in found if isinstance(one, int)]
