"""A model on an OpenAI-compatible server in this process, with scripted answers and faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

Answer = Callable[[dict[str, Any]], "web.Response | Awaitable[web.Response]"]


def text_reply(text: str | None, **more: Any) -> web.Response:
    """A reply that serves both endpoints."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
    return web.json_response(
        {"choices": [{**choice, **more}], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
    )


@dataclass
class Server:
    """A model that says its seed; `answer` replaces it, `faults` are served first, one a request."""

    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "m", "max_model_len": 500}])
    answer: Answer | None = None
    faults: list[Answer] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    top: list[tuple[str, dict[str, float]]] | None = None
    """Positions as (token, top list); None: no log-probabilities."""
    ids: Callable[[str], list[int]] | None = None
    """What vLLM's /tokenize gives; None: there is none."""
    now: int = 0
    most: int = 0
    delay_s: float = 0.0
    seed_honoured: bool = True

    async def list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.models})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.paths.append(request.path)
        self.headers.append(dict(request.headers))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.delay_s)
            if request.path == "/tokenize":
                return self.tokenize(body)
            answer = self.faults.pop(0) if self.faults else self.answer or self.say
            result = answer(body)
            return await result if isinstance(result, Awaitable) else result
        finally:
            self.now -= 1

    def tokenize(self, body: dict[str, Any]) -> web.Response:
        if self.ids is None:
            return web.Response(status=404)
        tokens = self.ids(body["prompt"])
        return web.json_response({"count": len(tokens), "max_model_len": 500, "tokens": tokens, "token_strs": None})

    def say(self, body: dict[str, Any]) -> web.Response:
        if body.get("logprobs") and self.top is not None:
            return text_reply("x", logprobs=self.logprobs(chat="messages" in body))
        seed = body.get("seed") if self.seed_honoured else len(self.bodies)
        return text_reply("cold" if body["temperature"] == 0 else f"drawn {seed}")

    def logprobs(self, *, chat: bool) -> dict[str, Any]:
        assert self.top is not None
        if chat:
            listed = [[{"token": t, "logprob": v} for t, v in top.items()] for _, top in self.top]
            return {
                "content": [
                    {"token": token, "logprob": top[token], "top_logprobs": listed[at]}
                    for at, (token, top) in enumerate(self.top)
                ]
            }
        return {
            "tokens": [token for token, _ in self.top],
            "token_logprobs": [top[token] for token, top in self.top],
            "top_logprobs": [top for _, top in self.top],
        }


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    """The URL at which `server` answers."""
    app = web.Application()
    app.router.add_get("/v1/models", server.list_models)
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        app.router.add_post(path, server.complete)
    running = TestServer(app)
    await running.start_server()
    try:
        yield str(running.make_url("/v1"))
    finally:
        await running.close()
