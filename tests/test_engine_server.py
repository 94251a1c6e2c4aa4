"""The client against a server in this process with scripted answers and faults, and against `transformers serve`."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from openai_server import Answer, Server, serving, text_reply
from solon.dialogue import Message
from solon.engine import ChoiceRequest, Request, Sampling, ServerEngineConfig, load_engine
from solon.engine.replies import Position, choice_of, common_beginning, completion_of
from solon.engine.server import ServerEngine
from solon.errors import EngineError, InputError

PROMPT: tuple[Message, ...] = ({"role": "user", "content": "Hello"},)
Connect = Callable[..., Awaitable[ServerEngine]]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def connect(server: Server) -> AsyncIterator[Connect]:
    """connect(**config): an engine on the scripted server, probed, and the server's records emptied."""
    async with serving(server) as url:
        engines: list[ServerEngine] = []

        async def connect(**config: Any) -> ServerEngine:
            engine = await ServerEngine.connect(ServerEngineConfig(**{"url": url, "model": "m", **config}))
            engines.append(engine)
            server.bodies.clear()
            server.most = 0
            return engine

        yield connect
        for engine in engines:
            await engine.aclose()


def ask(**more: Any) -> Request:
    return Request(prompt=PROMPT, **more)


# ---- requests and replies


async def test_a_chat_request_says_what_was_asked(server: Server, connect: Connect) -> None:
    engine = await connect()
    prompt: tuple[Message, ...] = (*PROMPT, {"role": "assistant", "content": "Hi"}, {**PROMPT[0], "label": "X"})
    sampling = Sampling(max_new_tokens=5, temperature=0.5, top_p=0.9, stop=("END",))
    completion = await engine.generate(Request(prompt=prompt, sampling=sampling, seed=2**40 + 7))
    assert completion.text == "drawn 7"
    assert (completion.prompt_tokens, completion.completion_tokens, completion.finish_reason) == (7, 3, "stop")
    assert server.bodies == [
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": "Hello"},
            ],
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "stop": ["END"],
            "seed": 7,
        }
    ]


async def test_completions_get_a_transcript_with_the_prefix_and_the_implied_stop(
    server: Server, connect: Connect
) -> None:
    engine = await connect(endpoint="completions")
    server.answer = lambda body: text_reply(" fine thanks.\n\nHuman: and you?")
    assert (await engine.generate(ask())).text == "fine thanks."
    assert (await engine.generate(ask(prefix="I am"))).text == " fine thanks."
    assert [body["prompt"] for body in server.bodies] == [
        "\n\nHuman: Hello\n\nAssistant:",
        "\n\nHuman: Hello\n\nAssistant: I am",
    ]
    assert server.bodies[0]["stop"] == ["\n\nHuman:"]
    assert set(server.paths[-2:]) == {"/v1/completions"}


async def test_a_prefix_that_a_chat_model_repeats_is_taken_away(server: Server, connect: Connect) -> None:
    engine = await connect()
    server.answer = lambda body: text_reply("The answer is: A, of course")
    assert (await engine.generate(ask(prefix="The answer is:"))).text == " A, of course"
    assert "The answer" not in json.dumps(server.bodies)


async def test_more_stops_than_the_protocol_takes_are_cut_here(server: Server, connect: Connect) -> None:
    engine = await connect()
    server.answer = lambda body: text_reply("one s6 two")
    completion = await engine.generate(ask(sampling=Sampling(stop=tuple(f"s{n}" for n in range(1, 7)))))
    assert completion.text == "one "
    assert len(server.bodies[0]["stop"]) == 4


@pytest.mark.parametrize("finish", ["stop", "length", None])
async def test_the_finish_reason_is_the_servers(server: Server, connect: Connect, finish: str | None) -> None:
    engine = await connect()
    server.answer = lambda body: text_reply("text", finish_reason=finish)
    completion = await engine.generate(ask(sampling=Sampling(max_new_tokens=3)))
    # Three tokens of three, and no word of the server's: the limit ended it.
    assert completion.finish_reason == ("stop" if finish == "stop" else "length")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda body: text_reply(None), "empty"),
        (lambda body: text_reply("  \n"), "empty"),
        (lambda body: text_reply("half", finish_reason="content_filter"), "content-filter"),
        (lambda body: web.json_response({"choices": []}), "bad-reply"),
        (lambda body: web.json_response([1, 2]), "bad-reply"),
        (lambda body: web.json_response({"choices": [{"message": {"content": [1]}}]}), "bad-reply"),
        (lambda body: web.json_response({"error": {"message": "no"}}, status=404), "no-model"),
        (lambda body: web.json_response({"error": {"message": "no"}}, status=401), "unauthorised"),
        (lambda body: web.json_response({"detail": "odd field"}, status=422), "refused"),
        (lambda body: web.Response(text="This model's maximum context length is 99", status=400), "context-length"),
    ],
)
async def test_what_is_no_answer_is_an_engine_error(
    server: Server, connect: Connect, reply: Answer, reason: str
) -> None:
    engine = await connect(retries=0)
    server.answer = reply
    with pytest.raises(EngineError) as caught:
        await engine.generate(ask())
    assert caught.value.reason == reason
    assert len(server.bodies) == 1


async def test_a_refusal_carries_the_servers_words(server: Server, connect: Connect) -> None:
    engine = await connect()
    server.answer = lambda body: web.json_response({"error": {"message": "temperature\nmust be nice"}}, status=400)
    with pytest.raises(EngineError, match="400: temperature must be nice"):
        await engine.generate(ask())


async def test_a_completion_beyond_the_context_is_refused(server: Server, connect: Connect) -> None:
    engine = await connect()
    assert engine.capabilities.max_context == 500
    server.answer = lambda body: web.json_response(
        {"choices": [{"message": {"content": "noise"}}], "usage": {"prompt_tokens": 490, "completion_tokens": 3}}
    )
    assert (await engine.generate(ask(sampling=Sampling(max_new_tokens=10)))).text == "noise"
    with pytest.raises(EngineError, match=r"490 tokens and 11 .* 500") as caught:
        await engine.generate(ask(sampling=Sampling(max_new_tokens=11)))
    assert caught.value.reason == "context-length"


# ---- faults


def status(code: int, **headers: str) -> Answer:
    return lambda body: web.Response(
        status=code, text="busy", headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


async def dropped(body: dict[str, Any]) -> web.Response:
    raise ConnectionResetError


@pytest.mark.parametrize(
    "fault",
    [status(500), status(503), status(429, Retry_After="0"), lambda body: web.Response(text="{not json"), dropped],
)
async def test_a_passing_fault_is_tried_again(server: Server, connect: Connect, fault: Answer) -> None:
    engine = await connect()
    server.faults = [fault]
    assert (await engine.generate(ask(seed=4))).text == "drawn 4"
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1]


async def test_retry_after_is_waited_for(server: Server, connect: Connect) -> None:
    engine = await connect()
    server.faults = [status(429, Retry_After="1.5")]
    start = time.monotonic()
    await engine.generate(ask())
    assert time.monotonic() - start >= 1.5


@pytest.mark.parametrize(
    ("fault", "reason"), [(status(429, Retry_After="0"), "rate-limit"), (status(502), "server-error")]
)
async def test_a_lasting_fault_is_an_error_after_the_retries(
    server: Server, connect: Connect, fault: Answer, reason: str
) -> None:
    engine = await connect(retries=1)
    server.answer = fault
    with pytest.raises(EngineError) as caught:
        await engine.generate(ask())
    assert caught.value.reason == reason
    assert len(server.bodies) == 2


async def test_a_slow_server_is_a_timeout(server: Server, connect: Connect) -> None:
    engine = await connect(retries=0, timeout_s=0.5)
    server.delay_s = 2.0
    with pytest.raises(EngineError, match=r"0\.5 s") as caught:
        await engine.generate(ask())
    assert caught.value.reason == "timeout"


async def test_requests_in_flight_are_bounded(server: Server, connect: Connect) -> None:
    engine = await connect(max_in_flight=3)
    server.delay_s = 0.02
    await asyncio.gather(*(engine.generate(ask(seed=seed)) for seed in range(20)))
    assert server.most == 3


# ---- the probe


async def test_a_server_without_log_probabilities_is_seen(server: Server, connect: Connect) -> None:
    engine = await connect()
    assert engine.capabilities.logprobs == "none"
    assert any("silently left out" in note for note in engine.capabilities.notes)
    with pytest.raises(EngineError) as caught:
        await engine.choose([ChoiceRequest(prompt=PROMPT, options=("(A)", "(B)"))])
    assert caught.value.reason == "no-logprobs"
    assert server.bodies == []


async def test_a_server_that_refuses_twenty_is_asked_for_five(server: Server, connect: Connect) -> None:
    server.top = [("A", {"A": -0.1, "B": -3.0})]

    def answer(body: dict[str, Any]) -> web.Response:
        return status(400)(body) if body.get("top_logprobs") == 20 else server.say(body)  # type: ignore[return-value]

    server.answer = answer
    engine = await connect()
    assert engine.capabilities.logprobs == "first-token"
    [choice] = await engine.choose([ChoiceRequest(prompt=PROMPT, options=("A", "B"))])
    assert choice.logprobs == (-0.1, -3.0)
    assert server.bodies[0]["top_logprobs"] == 5


async def test_seeds_are_honoured_or_not(server: Server, connect: Connect) -> None:
    assert (await connect()).capabilities.seed
    server.seed_honoured = False
    assert not (await connect()).capabilities.seed


async def test_a_server_that_never_samples_is_seen(server: Server, connect: Connect) -> None:
    server.answer = lambda body: text_reply("always this")
    engine = await connect()
    assert not engine.capabilities.seed
    assert any("does not sample" in note for note in engine.capabilities.notes)
    assert "generation_config" not in json.dumps(server.bodies)


async def test_do_sample_is_sent_where_only_that_makes_a_server_sample(server: Server, connect: Connect) -> None:
    """As `transformers serve` does: temperature and seed alone leave it greedy."""

    def answer(body: dict[str, Any]) -> web.Response:
        samples = json.loads(body.get("generation_config", "{}")).get("do_sample")
        return text_reply(f"drawn {body['seed']}" if samples else "greedy")

    server.answer = answer
    engine = await connect()
    assert engine.capabilities.seed
    assert (await engine.generate(ask(seed=9))).text == "drawn 9"


async def test_a_model_that_is_not_listed_but_answers_is_taken(server: Server, connect: Connect) -> None:
    server.models = []
    engine = await connect()
    assert any("does not list it" in note for note in engine.capabilities.notes)


async def test_a_missing_model_is_an_input_error_that_lists_the_others(server: Server, connect: Connect) -> None:
    server.models = [{"id": "big"}, {"id": "small"}]
    server.answer = lambda body: web.json_response({"error": {"message": "unknown model"}}, status=404)
    with pytest.raises(InputError, match=r"no model 'm'.*unknown model.*big, small"):
        await connect()


async def test_no_server_is_an_input_error_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    start = time.monotonic()
    with pytest.raises(InputError, match=r"no server answers at http://127.*start it"):
        await load_engine(ServerEngineConfig(url=url, model="m"))
    assert time.monotonic() - start < 5
    with pytest.raises(InputError, match="not a URL"):
        await load_engine(ServerEngineConfig(url="localhost:8000", model="m"))


async def test_the_key_is_sent_and_shown_nowhere(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SOLON_TEST_KEY", "sk-very-secret")
    engine = await connect(api_key_env="SOLON_TEST_KEY")
    assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    server.answer = lambda body: web.Response(status=401, text="bad key sk-very-secret")
    with pytest.raises(EngineError) as caught:
        await engine.generate(ask())
    assert "***" in str(caught.value)
    shown = f"{caught.value!r} {engine!r} {engine.capabilities!r} {caplog.text}"
    assert "sk-very-secret" not in shown
    monkeypatch.delenv("SOLON_TEST_KEY")
    with pytest.raises(InputError, match="SOLON_TEST_KEY"):
        await connect(api_key_env="SOLON_TEST_KEY")


# ---- choices


async def choice_on(server: Server, connect: Connect, endpoint: str, **request: Any) -> Any:
    engine = await connect(endpoint=endpoint)
    [choice] = await engine.choose([ChoiceRequest(prompt=PROMPT, **request)])
    return choice


async def test_completions_read_the_letter_after_the_bracket(server: Server, connect: Connect) -> None:
    server.top = [("A", {"A": math.log(0.5), " A": math.log(0.1), "B": math.log(0.3), "C": math.log(0.01)})]
    choice = await choice_on(server, connect, "completions", options=(" (A)", " (B)"), prefix="The answer is:")
    assert server.bodies[0]["prompt"].endswith("\n\nAssistant: The answer is: (")
    assert server.bodies[0]["max_tokens"] == 1
    assert choice.logprobs == pytest.approx((math.log(0.6), math.log(0.3)))
    assert choice.rule == "first-distinct"
    assert choice.mass == pytest.approx(0.9)


async def test_a_chat_reply_is_read_behind_its_bracket(server: Server, connect: Connect) -> None:
    server.top = [
        (" (", {" (": math.log(0.8), "A": math.log(0.1), "(B": math.log(0.05)}),
        ("B", {"B": math.log(0.75), "A": math.log(0.2), "C": math.log(0.05)}),
        (")", {")": -0.01}),
    ]
    choice = await choice_on(server, connect, "chat", options=("(A)", "(B)"))
    assert choice.logprobs == pytest.approx((math.log(0.1 + 0.8 * 0.2), math.log(0.05 + 0.8 * 0.75)))
    assert choice.censored == (False, False)


async def test_an_option_that_is_not_in_the_list_is_bounded_and_marked(server: Server, connect: Connect) -> None:
    server.top = [("A", {"A": math.log(0.9), "x": math.log(0.06), "y": math.log(0.02)})]
    choice = await choice_on(server, connect, "chat", options=("(A)", "(B)"))
    assert choice.logprobs == pytest.approx((math.log(0.9), math.log(0.02)))
    assert choice.censored == (False, True)


async def test_words_that_only_begin_like_an_option_are_not_it() -> None:
    top = {"An": math.log(0.5), "A.": math.log(0.2), "Because": math.log(0.2), "B": math.log(0.1)}
    choice = choice_of([Position("An", math.log(0.5), top)], ("A", "B"))
    assert choice.logprobs == pytest.approx((math.log(0.2), math.log(0.1)))


@given(st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4))
def test_swapping_the_options_swaps_the_choice(weights: list[float]) -> None:
    logprobs = [math.log(weight / sum(weights)) for weight in weights]
    top = dict(zip(["(", "A", "(B", "other"], logprobs, strict=True))
    behind = {"A": math.log(0.3), "B": math.log(0.6), ")": math.log(0.1)}
    positions = [Position("(", logprobs[0], top), Position("B", math.log(0.6), behind)]
    forth, back = choice_of(positions, ("(A)", "(B)")), choice_of(positions, ("(B)", "(A)"))
    assert forth.logprobs == back.logprobs[::-1]
    assert sum(map(math.exp, forth.logprobs)) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        (("(A)", "(B)"), "("),
        ((" (A)", " (B)"), " ("),
        (("yes", "yet"), ""),
        (("the first", "the second"), "the"),
        (("A", "B"), ""),
    ],
)
def test_the_common_beginning_cuts_no_word(options: tuple[str, ...], shared: str) -> None:
    assert common_beginning(options) == shared


def test_a_reply_of_another_shape_is_not_guessed_at() -> None:
    with pytest.raises(EngineError) as caught:
        completion_of({"result": "text"}, chat=True, max_tokens=3, stops=(), prefix="", strip=False)
    assert caught.value.reason == "bad-reply"
