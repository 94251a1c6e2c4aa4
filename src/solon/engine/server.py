"""Any OpenAI-compatible server, or several with the same model: a thin client of /chat/completions and /completions.

    engine = await ServerEngine.connect(ServerEngineConfig(url="http://localhost:8000/v1", model="my-model"))

What a server can do is seen, not assumed: `connect` sends one request of each kind and reads the shape of the replies
(`solon.engine.probing`). Many servers (`transformers serve` among them) answer 200 and leave the log-probabilities out;
then `choose` raises EngineError with reason "no-logprobs" and verdicts have to be sampled.

With a chat endpoint a `prefix` cannot be continued in a way that all servers understand: it is not sent, and it is
taken away where the model repeats it. With /completions the dialogue is a "Human: / Assistant:" transcript and the
prefix stands at its end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from solon.dialogue import Message
from solon.engine import Capabilities, Choice, ChoiceRequest, Completion, Request, Sampling, ServerEngineConfig
from solon.engine.asking import WHOLE_PROMPT, ask, path_of, top_tokens
from solon.engine.launching import LaunchedServer, start_server
from solon.engine.probing import Abilities, probe, token_ids
from solon.engine.rendering import transcript_prompt
from solon.engine.replies import (
    READERS,
    Echoed,
    choice_of,
    common_beginning,
    completion_of,
    first_choice,
    positions_of,
    whole_choice,
    with_named,
)
from solon.engine.wire import Wire
from solon.errors import EngineError, InputError

_CHOICE_TOKENS = 4
"""Tokens asked for on a chat endpoint: a reply that begins with the options' common bracket is read behind it."""


class ServerEngine:
    """An Engine around one model of one server or its replicas; make it with `connect`."""

    def __init__(
        self, config: ServerEngineConfig, session: aiohttp.ClientSession, wire: Wire, abilities: Abilities
    ) -> None:
        self._config, self._session, self._wire, self._abilities = config, session, wire, abilities
        self._chat = config.endpoint == "chat"
        self._path = path_of(config)
        self._launched: LaunchedServer | None = None
        self._ids: dict[str, list[int]] = {}
        self.capabilities = Capabilities(
            model=config.model,
            logprobs=abilities.logprobs,
            seed=abilities.seed,
            max_context=abilities.max_context,
            notes=abilities.notes,
        )

    @classmethod
    async def connect(cls, config: ServerEngineConfig, *, logs: Path | None = None) -> ServerEngine:
        """A client whose server has been started, if it is to be, and probed; `logs` is the folder for what it prints.

        Raises InputError: no server there, no such model, no key, replicas that differ.
        """
        key = _key(config)
        for url in config.urls:
            if not url.startswith(("http://", "https://")):
                raise InputError(f"{url!r} is not a URL of a server", remedy="write http://HOST:PORT/v1")
        launched = start_server(config, logs=logs) if config.launch else None
        try:
            if launched:
                await launched.until_it_answers()
            engine = await cls._probed(config, key, launched)
        except BaseException:
            if launched:
                await launched.release()
            raise
        engine._launched = launched
        return engine

    @classmethod
    async def _probed(
        cls, config: ServerEngineConfig, key: str | None, launched: LaunchedServer | None
    ) -> ServerEngine:
        urls = (launched.url,) if launched else config.urls
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=config.max_in_flight * len(urls)),
            timeout=aiohttp.ClientTimeout(total=config.timeout_s),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

        def wire(*urls: str) -> Wire:
            its_end = launched.told_end if launched else lambda: None
            return Wire(session, urls, settings=config, key=key, its_end=its_end)

        try:
            found = await asyncio.gather(*(probe(wire(url), config) for url in urls))
            return cls(config, session, wire(*urls), _common(urls, found))
        except BaseException:
            await session.close()
            raise

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the replicas are."""
        return tuple(replica.url for replica in self._wire.replicas.all)

    async def generate(self, request: Request) -> Completion:
        """Sample one text. Raises EngineError: "context-length", "empty", "content-filter", "rate-limit", "timeout",
        "connection", "server-error", "refused", "unauthorised", "no-model", "bad-reply"."""
        fields, stops = ask(self._config, request.prompt, prefix=request.prefix, sampling=request.sampling)
        body = {**fields, "seed": request.seed % 2**31, **self._abilities.more}
        completion = completion_of(
            await self._post(body, chain=request.session),
            chat=self._chat,
            max_tokens=request.sampling.max_new_tokens,
            stops=stops,
            prefix=request.prefix,
            strip=not self._chat and not request.prefix,
        )
        self._check_length(completion.prompt_tokens, request.sampling.max_new_tokens)
        return completion

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
        """log p of every option: of all of its tokens where the server gives those of a prompt, else of its first
        distinct token. Raises EngineError with reason "no-logprobs" where the server gives none, and what `generate`
        raises."""
        if self.capabilities.logprobs == "none":
            raise EngineError("the server gives no log-probabilities", reason="no-logprobs")
        # Together on one replica, because they share their beginning.
        chain = str(requests[0].prompt) if requests else ""
        way = self._choose_whole if self._abilities.whole else self._choose_first
        return await asyncio.gather(*(way(request, chain) for request in requests))

    async def aclose(self) -> None:
        """Close the connections, and end the server if it was started for this engine and nothing else uses it."""
        await self._session.close()
        if self._launched:
            launched, self._launched = self._launched, None
            await launched.release()

    async def _post(self, body: dict[str, Any], *, chain: str | None) -> object:
        try:
            return await self._wire.post(self._path, body, chain=chain)
        except EngineError as error:
            limit = self.capabilities.max_context
            if error.reason != "context-length" or limit is None:
                raise
            raise EngineError(f"{error} (the context is {limit} tokens)", reason=error.reason) from error

    def _check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        """Some servers (`transformers serve`) write on where the model's context has ended, and the text is noise."""
        limit = self.capabilities.max_context
        if limit is not None and prompt_tokens + new_tokens > limit:
            needed = f"the prompt has {prompt_tokens} tokens and {new_tokens} are to follow"
            raise EngineError(f"{needed}, but the context is {limit} tokens", reason="context-length")

    # ---- choices

    async def _choose_whole(self, request: ChoiceRequest, chain: str) -> Choice:
        prefixes = [request.prefix, *(_joined(request.prefix, option) for option in request.options)]
        prompt, *followed = await asyncio.gather(*(self._echo(request.prompt, prefix, chain) for prefix in prefixes))
        return whole_choice(prompt, followed)

    async def _echo(self, prompt: Sequence[Message], prefix: str, chain: str) -> Echoed:
        way = self._abilities.whole
        assert way is not None
        body = {"model": self._config.model, "prompt": transcript_prompt(prompt, prefix).text, **WHOLE_PROMPT[way]}
        echoed = READERS[way](await self._post(body, chain=chain))
        if echoed is None:
            raise EngineError("the server's reply holds no log-probabilities of the prompt", reason="bad-reply")
        self._check_length(len(echoed.tokens), 0)
        return echoed

    async def _choose_first(self, request: ChoiceRequest, chain: str) -> Choice:
        # /completions goes on in the text, so the options' common beginning can stand in the prompt.
        shared = "" if self._chat else common_beginning(request.options)
        options = [option[len(shared) :] for option in request.options]
        sampling = Sampling(max_new_tokens=_CHOICE_TOKENS if self._chat else 1, temperature=0.0)
        prefix = _joined(request.prefix, shared)
        fields, _ = ask(self._config, request.prompt, prefix=prefix, sampling=sampling)
        body = {**fields, **top_tokens(self._abilities.num_top, chat=self._chat)}
        choice = choice_of(positions_of(first_choice(await self._post(body, chain=chain))), options)
        if any(choice.censored) and self._abilities.names_tokens:
            ids = await self._first_ids(options)
            if len(ids) <= self._abilities.num_top:
                reply = await self._post({**body, "logprob_token_ids": ids}, chain=chain)
                return with_named(choice, choice_of(positions_of(first_choice(reply)), options))
        return choice

    async def _first_ids(self, options: Sequence[str]) -> list[int]:
        """The ids of the tokens with which the options may begin, with and without a space and the common bracket."""
        bare = [option.strip() for option in options]
        shared = common_beginning(bare)
        spellings = {space + text for option in bare for text in (option, option[len(shared) :]) for space in ("", " ")}
        for text in sorted(spellings - self._ids.keys()):
            self._ids[text] = await token_ids(self._wire, self._config, text)
        return sorted({ids[0] for ids in map(self._ids.__getitem__, spellings) if ids})


def _joined(prefix: str, text: str) -> str:
    return prefix + text if prefix else text.lstrip()


def _key(config: ServerEngineConfig) -> str | None:
    key = os.environ.get(config.api_key_env) if config.api_key_env else None
    if config.api_key_env and not key:
        what = f"the environment variable {config.api_key_env} holds no API key"
        raise InputError(what, remedy=f"export {config.api_key_env}=...")
    return key


def _common(urls: Sequence[str], found: Sequence[Abilities]) -> Abilities:
    """What all replicas can do. Raises InputError if they differ, because a row must not depend on who answers it."""
    first, *others = ({**asdict(one), "logprobs": one.logprobs} for one in found)
    for url, other in zip(urls[1:], others, strict=True):
        for name in ("logprobs", "num_top", "whole", "names_tokens", "seed", "more", "max_context"):
            if first[name] != other[name]:
                what = f"the replicas differ in {name}: {first[name]} at {urls[0]}, {other[name]} at {url}"
                raise InputError(what, remedy="serve the same model in the same way on all of them")
    return found[0]
