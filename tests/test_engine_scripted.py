"""The public fake: it answers as it was told, records what it was asked, and is as strict as a real engine."""

from __future__ import annotations

import math

import pytest

from solon.engine import ChoiceRequest, Request, Sampling
from solon.engine.scripted import ScriptedEngine
from solon.errors import EngineError


def ask(text: str, **sampling: object) -> Request:
    return Request(prompt=({"role": "user", "content": text},), sampling=Sampling.model_validate(sampling))


async def test_a_mapping_answers_the_last_message_and_requests_are_recorded_in_order() -> None:
    engine = ScriptedEngine({"bread?": "Mix flour.", "tea?": "Boil water."})
    requests = [ask("tea?"), ask("bread?")]
    assert [(await engine.generate(request)).text for request in requests] == ["Boil water.", "Mix flour."]
    assert engine.requests == requests


async def test_an_unknown_prompt_is_an_engine_error_and_is_recorded() -> None:
    engine = ScriptedEngine({})
    with pytest.raises(EngineError, match=r"bread\?") as caught:
        await engine.generate(ask("bread?"))
    assert caught.value.reason == "no-answer"
    assert len(engine.requests) == 1


async def test_a_function_sees_the_whole_request_and_its_error_is_passed_on() -> None:
    def answer(request: Request) -> str:
        if request.seed == 3:
            raise EngineError("too long", reason="context-length")
        return f"{request.prefix}{request.seed}"

    engine = ScriptedEngine(answer)
    prompt = ask("x").prompt
    assert (await engine.generate(Request(prompt=prompt, prefix="n=", seed=2))).text == "n=2"
    with pytest.raises(EngineError) as caught:
        await engine.generate(Request(prompt=prompt, seed=3))
    assert caught.value.reason == "context-length"


async def test_stop_texts_and_the_token_limit_cut_as_in_a_real_engine() -> None:
    engine = ScriptedEngine({"x": "one two END three"})
    stopped = await engine.generate(ask("x", stop=("END",)))
    assert (stopped.text, stopped.finish_reason) == ("one two ", "stop")
    short = await engine.generate(ask("x", max_new_tokens=2))
    assert (short.text, short.finish_reason, short.completion_tokens) == ("one two", "length", 2)


async def test_choices_come_from_the_function() -> None:
    engine = ScriptedEngine({}, lambda request: [math.log(0.7), math.log(0.2)])
    [choice] = await engine.choose([ChoiceRequest(prompt=ask("x").prompt, options=("(A)", "(B)"))])
    assert choice.mass == pytest.approx(0.9)
    assert engine.capabilities.logprobs == "full"


async def test_without_choices_there_are_no_log_probabilities() -> None:
    engine = ScriptedEngine({})
    assert engine.capabilities.logprobs == "none"
    with pytest.raises(EngineError) as caught:
        await engine.choose([ChoiceRequest(prompt=ask("x").prompt, options=("(A)", "(B)"))])
    assert caught.value.reason == "no-logprobs"


@pytest.mark.parametrize("scripted", [[-1.0], [0.5, -1.0], [-0.1, -0.1]])
async def test_what_cannot_be_log_probabilities_is_refused(scripted: list[float]) -> None:
    engine = ScriptedEngine({}, lambda request: scripted)
    with pytest.raises(ValueError, match="log-probabilities"):
        await engine.choose([ChoiceRequest(prompt=ask("x").prompt, options=("(A)", "(B)"))])


async def test_closing_is_seen() -> None:
    engine = ScriptedEngine({})
    await engine.aclose()
    assert engine.closed
