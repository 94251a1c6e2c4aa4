"""An engine that answers from a mapping or a function: for tests, documentation and dry runs.

engine = ScriptedEngine({"How do I bake bread?": "Mix flour and water."})
completion = await engine.generate(Request(prompt=({"role": "user", "content": "How do I bake bread?"},)))
engine.requests  # every Request and ChoiceRequest that was asked, in order
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from math import exp

from solon.engine import Capabilities, Choice, ChoiceRequest, Completion, Request
from solon.errors import EngineError


class ScriptedEngine:
    """An Engine without a model.

    `answers`: the text of the last message -> the completion, or a function of the Request. A prompt that is not in the
    mapping raises EngineError with reason "no-answer"; what the function raises is passed on.
    `choices`: a function of the ChoiceRequest that gives one log-probability (nats, <= 0) per option; None: an engine
    without log-probabilities, whose `choose` raises EngineError with reason "no-logprobs".
    `delay_s`: seconds that each answer takes.

    Tokens are counted as words.
    """

    def __init__(
        self,
        answers: Mapping[str, str] | Callable[[Request], str],
        choices: Callable[[ChoiceRequest], Sequence[float]] | None = None,
        *,
        capabilities: Capabilities | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self.requests: list[Request | ChoiceRequest] = []
        self.closed = False
        self._answers, self._choices, self._delay_s = answers, choices, delay_s
        self._capabilities = capabilities or Capabilities(
            model="scripted", logprobs="none" if choices is None else "full", seed=True, max_context=None
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def generate(self, request: Request) -> Completion:
        """The scripted answer, cut where one of its stop texts begins and to max_new_tokens words."""
        self.requests.append(request)
        await asyncio.sleep(self._delay_s)
        text, stopped = self._answer(request), True
        for stop in request.sampling.stop:
            text = text.partition(stop)[0]
        words = text.split(" ")
        limit = request.sampling.max_new_tokens
        if len(words) > limit:
            text, stopped = " ".join(words[:limit]), False
        return Completion(
            text=text,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=sum(len(turn["content"].split()) for turn in request.prompt) + len(request.prefix.split()),
            completion_tokens=min(len(words), limit),
        )

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
        """The scripted log-probabilities."""
        self.requests.extend(requests)
        await asyncio.sleep(self._delay_s)
        if self._choices is None:
            raise EngineError("this engine gives no log-probabilities", reason="no-logprobs")
        return [_choice(request, self._choices(request)) for request in requests]

    async def aclose(self) -> None:
        """Nothing is held; `closed` says that it was called."""
        self.closed = True

    def _answer(self, request: Request) -> str:
        if callable(self._answers):
            return self._answers(request)
        asked = request.prompt[-1]["content"] if request.prompt else ""
        if asked not in self._answers:
            raise EngineError(f"no answer is scripted for {asked[:80]!r}", reason="no-answer")
        return self._answers[asked]


def _choice(request: ChoiceRequest, logprobs: Sequence[float]) -> Choice:
    if len(logprobs) != len(request.options):
        raise ValueError(f"{len(logprobs)} log-probabilities are scripted for {len(request.options)} options")
    if any(value > 0 for value in logprobs) or sum(map(exp, logprobs)) > 1 + 1e-9:
        raise ValueError(f"not log-probabilities of different options: {list(logprobs)}")
    return Choice(logprobs=tuple(logprobs), censored=(False,) * len(logprobs), rule="full")
