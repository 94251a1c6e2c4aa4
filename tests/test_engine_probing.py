"""What a server can do is seen, and options are compared in the best way that it has.

The server is a toy model behind replies of the form that vLLM documents and that its source gives (0.31:
vllm/entrypoints/openai/completion/{protocol,serving}.py, vllm/entrypoints/serve/tokenize/protocol.py).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from openai_server import Server, serving
from solon.dialogue import Message
from solon.engine import Choice, ChoiceRequest, ServerEngineConfig
from solon.engine.server import ServerEngine
from solon.errors import EngineError

PROMPT: tuple[Message, ...] = ({"role": "user", "content": "Which is better?"},)
PLAIN = r" ?\w+|\s|[^\w\s]"


@dataclass
class Toy:
    """A model whose probabilities a hash gives, on a server with vLLM's replies."""

    tokens: str = PLAIN
    """The vocabulary's pattern."""
    ways: frozenset[str] = frozenset({"echo", "prompt_logprobs", "logprob_token_ids"})
    """What the server knows; of what it does not, it says nothing."""
    rejects: frozenset[str] = frozenset()
    """Fields that it answers with 400."""
    shift: int = 0
    """Places by which the log-probabilities of an echo are late."""
    likeliest: tuple[str, ...] = (" The", " A", " I", " My", " So")
    ids: dict[str, int] = field(default_factory=dict)

    def split(self, text: str) -> list[str]:
        return re.findall(self.tokens, text)

    def id_of(self, token: str) -> int:
        return self.ids.setdefault(token, len(self.ids) + 100)

    def logprob(self, before: str, token: str) -> float:
        return -1.0 - hashlib.sha256(f"{before}|{token}".encode()).digest()[0] / 32

    def answer(self, body: dict[str, Any]) -> web.Response:
        if odd := self.rejects & body.keys():
            message = f"{odd} is not permitted"
            return web.json_response(
                {"error": {"message": message, "type": "BadRequestError", "code": 400}}, status=400
            )
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        tokens = self.split(prompt)
        said = f" {body.get('seed')}" if body["temperature"] else " The"
        choice: dict[str, Any] = {
            **{"index": 0, "text": said, "message": {"role": "assistant", "content": said}},
            **{"finish_reason": "length", "stop_reason": None, "logprobs": None, "prompt_logprobs": None},
        }
        if "echo" in self.ways and body.get("echo"):
            listed = self.listed([*tokens, said], start=0)
            values = listed["token_logprobs"]
            listed["token_logprobs"] = [None, *values[1 + self.shift :], *([-9.0] * self.shift)]
            choice |= {"text": prompt + said, "logprobs": listed}
        elif body.get("logprobs"):
            named = [token for token, id in self.ids.items() if id in body.get("logprob_token_ids", ())]
            top = [said, *named] if named and "logprob_token_ids" in self.ways else [said, *self.likeliest]
            chat = "messages" in body
            choice["logprobs"] = self.content(prompt, said, top) if chat else self.listed([*tokens, said], -1, top)
        if "prompt_logprobs" in self.ways and "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [None, *(self.place(tokens, at) for at in range(1, len(tokens)))]
        usage = {"prompt_tokens": len(tokens), "total_tokens": len(tokens) + 1, "completion_tokens": 1}
        return web.json_response({"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage})

    def listed(self, tokens: list[str], start: int, top: list[str] | None = None) -> dict[str, Any]:
        """The `logprobs` of /completions, from token `start` on."""
        places = range(len(tokens))[start:] if start else range(len(tokens))
        before = ["".join(tokens[:at]) for at in places]
        values = [self.logprob(b, tokens[at]) if at else None for at, b in zip(places, before, strict=True)]
        tops = [
            None if v is None else {t: self.logprob(b, t) for t in top or [tokens[at]]}
            for at, b, v in zip(places, before, values, strict=True)
        ]
        names = [tokens[at] for at in places]
        return {"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": list(map(len, before))}

    def content(self, before: str, said: str, top: list[str]) -> dict[str, Any]:
        """The `logprobs` of /chat/completions, of one token."""
        listed = [{"token": t, "logprob": self.logprob(before, t), "bytes": list(t.encode())} for t in top]
        return {"content": [{**listed[0], "top_logprobs": listed}]}

    def place(self, tokens: list[str], at: int) -> dict[str, Any]:
        value = self.logprob("".join(tokens[:at]), tokens[at])
        return {str(self.id_of(tokens[at])): {"logprob": value, "rank": 7, "decoded_token": tokens[at]}}

    def log_p(self, before: str, option: str) -> float:
        """The sum over the option's own tokens."""
        num = len(self.split(before))
        tokens = self.split(before + option)
        assert "".join(tokens[:num]) == before
        return sum(self.logprob("".join(tokens[:at]), tokens[at]) for at in range(num, len(tokens)))


Connect = Callable[..., Awaitable[ServerEngine]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """connect(toy, **config): an engine on it, probed; `engine.bodies` are what it is asked from then on."""
    async with AsyncExitStack() as stack:

        async def connect(toy: Toy, **config: Any) -> ServerEngine:
            server = Server(answer=toy.answer)
            if "logprob_token_ids" in toy.ways:
                server.ids = lambda text: [toy.id_of(token) for token in toy.split(text)]
            url = await stack.enter_async_context(serving(server))
            settings = {"url": url, "model": "m", "endpoint": "completions", **config}
            engine = await ServerEngine.connect(ServerEngineConfig(**settings))
            stack.push_async_callback(engine.aclose)
            server.bodies.clear()
            engine.bodies = server.bodies  # type: ignore[attr-defined]
            return engine

        yield connect


async def choose(engine: ServerEngine, *options: str, prefix: str = "The answer is:") -> Choice:
    [choice] = await engine.choose([ChoiceRequest(prompt=PROMPT, options=options, prefix=prefix)])
    return choice


TEXT = "\n\nHuman: Which is better?\n\nAssistant: The answer is:"


# ---- whole options


@pytest.mark.parametrize("way", ["echo", "prompt_logprobs"])
async def test_whole_options_are_summed_over_all_of_their_tokens(way: str, connect: Connect) -> None:
    toy = Toy(ways=frozenset({way}))
    engine = await connect(toy)
    assert engine.capabilities.logprobs == "full"
    assert f"log-probabilities of a prompt's own tokens ({way})" in engine.capabilities.notes
    options = (" the first of the two", " (B)", " neither")
    choice = await choose(engine, *options)
    assert choice.logprobs == pytest.approx([toy.log_p(TEXT, option) for option in options])
    assert (choice.rule, choice.censored) == ("full", (False,) * 3)
    asked = sorted(body["prompt"] for body in engine.bodies)  # type: ignore[attr-defined]
    assert asked == sorted([TEXT, *(TEXT + option for option in options)])


async def test_an_echo_that_gives_wrong_values_is_seen_and_told_of(connect: Connect) -> None:
    notes = (await connect(Toy(ways=frozenset({"echo"}), shift=1))).capabilities.notes
    assert any(re.match(r"echo is wrong: -\d.* for a token that has -\d.* when it is generated", one) for one in notes)


async def test_without_a_prefix_an_option_follows_the_name_of_the_turn(connect: Connect) -> None:
    toy = Toy()
    choice = await choose(await connect(toy), "yes", "no", prefix="")
    before = TEXT.removesuffix(" The answer is:")
    assert choice.logprobs == pytest.approx([toy.log_p(before, " yes"), toy.log_p(before, " no")])


async def test_a_vocabulary_that_joins_the_prompt_to_an_option_is_read_from_there(connect: Connect) -> None:
    toy = Toy(tokens=rf": \(|{PLAIN}")
    choice = await choose(await connect(toy), " (A)", " (B)")
    before = TEXT.removesuffix(":")
    assert choice.rule == "full-from-boundary"
    assert choice.logprobs == pytest.approx([toy.log_p(before, ": (A)"), toy.log_p(before, ": (B)")])


@pytest.mark.parametrize(
    "toy",
    [
        Toy(ways=frozenset()),
        Toy(rejects=frozenset({"echo", "prompt_logprobs"})),
        Toy(ways=frozenset({"echo"}), shift=1),
    ],
    ids=["says nothing", "refuses", "gives those of the next place"],
)
async def test_a_server_that_does_not_repeat_the_prompt_is_asked_for_the_first_token(
    toy: Toy, connect: Connect
) -> None:
    engine = await connect(toy)
    assert engine.capabilities.logprobs == "first-token"
    assert any("options are compared by their first" in note for note in engine.capabilities.notes)
    choice = await choose(engine, " My", " So")
    assert choice.rule == "first-distinct"
    assert choice.logprobs == pytest.approx([toy.logprob(TEXT, " My"), toy.logprob(TEXT, " So")])


async def test_the_first_token_can_be_asked_for_to_spare_the_prefix_cache(connect: Connect) -> None:
    engine = await connect(Toy(), options="first-token")
    assert engine.capabilities.logprobs == "first-token"
    assert (await choose(engine, " My", " So")).rule == "first-distinct"
    assert len(engine.bodies) == 1  # type: ignore[attr-defined]


async def test_a_chat_has_no_whole_options(connect: Connect) -> None:
    engine = await connect(Toy(), endpoint="chat")
    assert engine.capabilities.logprobs == "first-token"


# ---- tokens that are named


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_an_option_that_the_list_does_not_hold_is_asked_for_by_its_ids(endpoint: str, connect: Connect) -> None:
    toy = Toy()
    engine = await connect(toy, endpoint=endpoint, options="first-token")
    assert any("logprob_token_ids" in note for note in engine.capabilities.notes)
    choice = await choose(engine, " My", " Yours")
    before = "Which is better?" if endpoint == "chat" else TEXT
    # " My" is in the list; of " Yours" both spellings are asked for, and their probabilities are added.
    yours = sum(math.exp(toy.logprob(before, token)) for token in ("Yours", " Yours"))
    bound = min(toy.logprob(before, token) for token in (" The", *toy.likeliest))
    assert choice.censored == (False, False)
    assert choice.logprobs == pytest.approx((toy.logprob(before, " My"), min(bound, math.log(yours))))
    named = engine.bodies[-1]["logprob_token_ids"]  # type: ignore[attr-defined]
    assert sorted(named) == sorted(toy.ids[token] for token in ("My", " My", "Yours", " Yours"))
    again = len(engine.bodies)  # type: ignore[attr-defined]
    assert await choose(engine, " My", " Yours") == choice
    assert len(engine.bodies) == again + 2, "the ids are known by now"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "toy",
    [Toy(ways=frozenset()), Toy(rejects=frozenset({"logprob_token_ids"}))],
    ids=["another server", "an older vLLM"],
)
async def test_where_no_token_can_be_named_an_option_stays_a_bound(toy: Toy, connect: Connect) -> None:
    engine = await connect(toy, options="first-token")
    choice = await choose(engine, " My", " Yours")
    assert choice.censored == (False, True)
    assert choice.logprobs[1] == min(toy.logprob(TEXT, token) for token in (" The", *toy.likeliest))
    assert len(engine.bodies) == 1  # type: ignore[attr-defined]


async def test_a_server_that_ignores_the_names_is_not_taken_at_its_word(connect: Connect) -> None:
    """It has /tokenize and answers 200, but the list holds the likeliest tokens as ever."""
    toy = Toy(ways=frozenset({"echo"}))
    server = Server(answer=toy.answer, ids=lambda text: [1, 2])
    async with serving(server) as url:
        config = ServerEngineConfig(url=url, model="m", endpoint="completions", options="first-token")
        engine = await ServerEngine.connect(config)
        assert (await choose(engine, " My", " Yours")).censored == (False, True)
        await engine.aclose()


async def test_a_reply_that_has_lost_its_log_probabilities_is_no_choice(connect: Connect) -> None:
    toy = Toy()
    engine = await connect(toy)
    toy.ways = frozenset()
    with pytest.raises(EngineError) as caught:
        await choose(engine, " A", " B")
    assert caught.value.reason == "bad-reply"
