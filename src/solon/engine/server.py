"""Any OpenAI-compatible server: a thin client of /chat/completions and /completions.

    engine = await ServerEngine.connect(ServerEngineConfig(url="http://localhost:8000/v1", model="my-model"))

What a server can do is seen, not assumed: `connect` sends one request of each kind and reads the shape of the replies.
Many servers (`transformers serve` among them) answer 200 and leave the log-probabilities out; then `choose` raises
EngineError with reason "no-logprobs" and verdicts have to be sampled.

With a chat endpoint a `prefix` cannot be continued in a way that all servers understand: it is not sent, and it is
taken away where the model repeats it. With /completions the dialogue is a "Human: / Assistant:" transcript and the
prefix stands at its end.

The API key comes from the environment and stands in the request's header only: in no message, log or file.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

import aiohttp

from solon.dialogue import Message
from solon.engine import Capabilities, Choice, ChoiceRequest, Completion, Request, Sampling, ServerEngineConfig
from solon.engine.launching import LaunchedServer, start_server
from solon.engine.rendering import transcript_prompt
from solon.engine.replies import (
    choice_of,
    common_beginning,
    completion_of,
    error_of,
    first_choice,
    positions_of,
    text_of,
)
from solon.errors import EngineError, InputError

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0
_MAX_STOPS = 4
"""Stop texts that OpenAI's API takes; texts are cut here at all of them in any case."""
_CHOICE_TOKENS = 4
"""Tokens asked for on a chat endpoint: a reply that begins with the options' common bracket is read behind it."""
_SAMPLE_FIELD = {"generation_config": json.dumps({"do_sample": True})}
"""`transformers serve` samples only where the model's generation_config.json says do_sample, or this field does."""
_PROBE_RETRIES = 2
_PROBE: tuple[Message, ...] = ({"role": "user", "content": "Tell me a short story about a river, a boat and a bird."},)


class ServerEngine:
    """An Engine around one model of one server; make it with `connect`."""

    def __init__(self, config: ServerEngineConfig, session: aiohttp.ClientSession, key: str | None) -> None:
        self._config, self._session, self._key = config, session, key
        self._launched: LaunchedServer | None = None
        self._url = config.url.rstrip("/")
        self._chat = config.endpoint == "chat"
        self._in_flight = asyncio.Semaphore(config.max_in_flight)
        self._num_top = 20
        self._extra: dict[str, Any] = {}
        self.capabilities = Capabilities(
            model=config.model, logprobs="none", seed=False, max_context=config.max_context, notes=("not probed",)
        )

    @classmethod
    async def connect(cls, config: ServerEngineConfig, *, logs: Path | None = None) -> ServerEngine:
        """A client whose server has been started, if it is to be, and probed; `logs` is the folder for what it prints.

        Raises InputError: no server there, no such model, no key.
        """
        if not config.url.startswith(("http://", "https://")):
            raise InputError(f"{config.url!r} is not a URL of a server", remedy="write http://HOST:PORT/v1")
        key = os.environ.get(config.api_key_env) if config.api_key_env else None
        if config.api_key_env and not key:
            raise InputError(
                f"the environment variable {config.api_key_env} holds no API key",
                remedy=f"export {config.api_key_env}=...",
            )
        launched = start_server(config, logs=logs) if config.launch else None
        try:
            if launched:
                await launched.until_it_answers()
                config = config.model_copy(update={"url": launched.url})
            engine = await cls._probed(config, key)
        except BaseException:
            if launched:
                await launched.release()
            raise
        engine._launched = launched
        return engine

    @classmethod
    async def _probed(cls, config: ServerEngineConfig, key: str | None) -> ServerEngine:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=config.max_in_flight),
            timeout=aiohttp.ClientTimeout(total=config.timeout_s),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        engine = cls(config, session, key)
        try:
            engine.capabilities = await engine._probe()
        except BaseException:
            await session.close()
            raise
        return engine

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._url

    async def generate(self, request: Request) -> Completion:
        """Sample one text. Raises EngineError: "context-length", "empty", "content-filter", "rate-limit", "timeout",
        "connection", "server-error", "refused", "unauthorised", "no-model", "bad-reply"."""
        body, stops = self._body(request.prompt, request.prefix, request.sampling)
        completion = completion_of(
            await self._post({**body, "seed": request.seed % 2**31, **self._extra}),
            chat=self._chat,
            max_tokens=request.sampling.max_new_tokens,
            stops=stops,
            prefix=request.prefix,
            strip=not self._chat and not request.prefix,
        )
        self._check_length(completion.prompt_tokens, request.sampling.max_new_tokens)
        return completion

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
        """log p of every option's first distinct token. Raises EngineError with reason "no-logprobs" where the server
        gives none, and what `generate` raises."""
        if self.capabilities.logprobs == "none":
            raise EngineError("the server gives no log-probabilities", reason="no-logprobs")
        return await asyncio.gather(*(self._choose(request) for request in requests))

    async def aclose(self) -> None:
        """Close the connections, and end the server if it was started for this engine and nothing else uses it."""
        await self._session.close()
        if self._launched:
            launched, self._launched = self._launched, None
            await launched.release()

    def _check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        """Some servers (`transformers serve`) write on where the model's context has ended, and the text is noise."""
        limit = self.capabilities.max_context
        if limit is not None and prompt_tokens + new_tokens > limit:
            needed = f"the prompt has {prompt_tokens} tokens and {new_tokens} are to follow"
            raise EngineError(f"{needed}, but the context is {limit} tokens", reason="context-length")

    async def _choose(self, request: ChoiceRequest) -> Choice:
        # /completions goes on in the text, so the options' common beginning can stand in the prompt.
        shared = "" if self._chat else common_beginning(request.options)
        options = [option[len(shared) :] for option in request.options]
        prefix = request.prefix + shared if request.prefix else shared.lstrip()
        sampling = Sampling(max_new_tokens=_CHOICE_TOKENS if self._chat else 1, temperature=0.0)
        body, _ = self._body(request.prompt, prefix, sampling)
        reply = await self._post({**body, **self._top_fields()})
        return choice_of(positions_of(first_choice(reply)), options)

    def _top_fields(self) -> dict[str, Any]:
        return {"logprobs": True, "top_logprobs": self._num_top} if self._chat else {"logprobs": self._num_top}

    def _body(
        self, prompt: Sequence[Message], prefix: str, sampling: Sampling
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The fields of a request, and every text at which its reply is to be cut."""
        stops = sampling.stop
        body: dict[str, Any] = {
            "model": self._config.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if self._chat:
            body["messages"] = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
        else:
            body["prompt"], implied = transcript_prompt(prompt, prefix)
            stops = (*stops, *implied)
        if stops:
            body["stop"] = list(stops[:_MAX_STOPS])
        return body, stops

    # ---- the wire

    async def _post(self, body: dict[str, Any], *, retries: int | None = None) -> object:
        retries = self._config.retries if retries is None else min(retries, self._config.retries)
        path = "/chat/completions" if self._chat else "/completions"
        async with self._in_flight:
            for attempt in range(retries + 1):
                result = await self._once("POST", path, body)
                if not isinstance(result, _Trouble):
                    return result
                if not result.transient or attempt == retries:
                    raise self._clean(result.error)
                await asyncio.sleep(_wait_s(attempt, result.retry_after_s))
            raise AssertionError("the last attempt returns or raises")

    async def _once(self, method: str, path: str, body: dict[str, Any] | None = None) -> object:
        """The parsed reply, or the trouble that one attempt met."""
        try:
            async with self._session.request(method, self._url + path, json=body) as response:
                text = await response.text(errors="replace")
                if response.status != 200:
                    transient = response.status in (408, 429) or response.status >= 500
                    return _Trouble(error_of(response.status, text), transient, _retry_after_s(response))
                return json.loads(text)
        except TimeoutError:
            what = f"no answer from {self._url} within {self._config.timeout_s:g} s"
            return _Trouble(EngineError(what, reason="timeout"), True, None)
        except aiohttp.ClientError as error:
            what = f"the connection to {self._url} failed: {error or type(error).__name__}"
            if self._launched and self._launched.end_of_it:
                what += f"; the server that was started {self._launched.end_of_it}, see {self._launched.log}"
            return _Trouble(EngineError(what, reason="connection"), True, None)
        except ValueError:
            what = f"the reply of {self._url}{path} is not JSON"
            return _Trouble(EngineError(what, reason="bad-reply"), True, None)

    def _clean(self, error: EngineError) -> EngineError:
        """The error without the key, should the server have repeated it, and with the context's size where it helps."""
        text = str(error).replace(self._key, "***") if self._key else str(error)
        if error.reason == "context-length" and self.capabilities.max_context is not None:
            text += f" (the context is {self.capabilities.max_context} tokens)"
        return EngineError(text, reason=error.reason)

    # ---- the probe

    async def _probe(self) -> Capabilities:
        listed = await self._list_models()
        notes: list[str] = [f"endpoint {self._config.endpoint}"]
        try:
            body, _ = self._body(_PROBE, "", Sampling(max_new_tokens=8, temperature=0.0))
            text_of(first_choice(await self._post(body, retries=_PROBE_RETRIES)), chat=self._chat)
        except EngineError as error:
            raise self._no_answer(error, listed) from error
        if self._config.model not in listed:
            notes.append("the model answers, but the server does not list it")
        logprobs = await self._probe_logprobs(notes)
        seed = await self._probe_seed(notes)
        return Capabilities(
            model=self._config.model,
            logprobs="first-token" if logprobs else "none",
            seed=seed,
            max_context=self._config.max_context or listed.get(self._config.model),
            notes=tuple(notes),
        )

    async def _list_models(self) -> dict[str, int | None]:
        """Names of the server's models with their context where told; {} where the server has no readable list."""
        reply = await self._once("GET", "/models")
        if isinstance(reply, _Trouble):
            if reply.error.reason in ("connection", "timeout"):
                raise InputError(
                    f"no server answers at {self._config.url}",
                    remedy="start it, or mend `url`, which ends with /v1 as a rule",
                )
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
        where = f"{self._config.url} does not answer for model {self._config.model!r}"
        if error.reason == "unauthorised":
            remedy = "set `api_key_env` to the name of the environment variable that holds the key"
        elif listed and self._config.model not in listed:
            where = f"{self._config.url} has no model {self._config.model!r}"
            remedy = f"it has {', '.join(sorted(listed)[:20])}"
        else:
            remedy = "mend `model` or `url` (it ends with /v1 as a rule)"
            if self._chat:
                remedy += "; a model without a chat template needs `endpoint: completions`"
        return InputError(f"{where}: {self._clean(error)}", remedy=remedy)

    async def _probe_logprobs(self, notes: list[str]) -> bool:
        for num_top in (20, 5):
            self._num_top = num_top
            body, _ = self._body(_PROBE, "", Sampling(max_new_tokens=1, temperature=0.0))
            try:
                positions = positions_of(
                    first_choice(await self._post({**body, **self._top_fields()}, retries=_PROBE_RETRIES))
                )
            except EngineError as error:
                notes.append(f"log-probabilities refused ({num_top} asked for): {error}")
                continue
            if not positions:
                notes.append("log-probabilities were asked for and silently left out")
                return False
            notes.append(f"log-probabilities of the {len(positions[0].top)} likeliest tokens")
            return True
        return False

    async def _probe_seed(self, notes: list[str]) -> bool:
        """Whether equal seeds give equal texts and others do not, asked side by side as in use."""
        texts = await self._seeded()
        if len(set(texts)) == 1:
            self._extra = _SAMPLE_FIELD
            try:
                sampled = await self._seeded()
            except EngineError:
                sampled = texts
            if len(set(sampled)) == 1:
                self._extra = {}
                notes.append("every seed gives the same text at temperature 1: the server does not sample")
                return False
            notes.append("samples only with generation_config.do_sample, which is sent with every request")
            texts = sampled
        honoured = texts[0] == texts[2] and texts[0] != texts[1]
        if not honoured:
            notes.append("the seed is not honoured: a sample cannot be had again")
        return honoured

    async def _seeded(self) -> list[str]:
        body, _ = self._body(_PROBE, "", Sampling(max_new_tokens=24))
        replies = await asyncio.gather(*(self._post({**body, "seed": seed, **self._extra}) for seed in (11, 12, 11)))
        return [text_of(first_choice(reply), chat=self._chat) for reply in replies]


_CONTEXT_KEYS = ("max_model_len", "context_length", "context_window", "max_context_length")


class _Trouble(NamedTuple):
    """Why one attempt failed."""

    error: EngineError
    transient: bool
    """Whether another attempt may succeed."""
    retry_after_s: float | None


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _wait_s(attempt: int, retry_after_s: float | None) -> float:
    """What the server asked for, else twice as long each time, spread so that clients do not return together."""
    if retry_after_s is not None:
        return min(_LONGEST_WAIT_S, retry_after_s)
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1.0)
