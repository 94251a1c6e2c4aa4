"""Any Hugging Face causal language model in this process: the embedded default engine.

    engine = LocalEngine.load(LocalEngineConfig(path="sandbox:helpful"))
    completion = await engine.generate(Request(prompt=({"role": "user", "content": "How do I bake bread?"},)))

One thread owns the model. Requests wait in a queue; up to `max_batch` of them are decoded side by side, a finished one
leaves at once and waiting ones take its place. A sample depends on (seed, prompt): token number n of a request is drawn
by one uniform number that is a function of (seed, n) alone, so neighbours matter only by rounding. What many prompts
begin with is read once, and a chain (`Request.session`) goes on from what its last request left, which is rounding,
too; with `max_batch` 1 nothing is shared or kept.

Only safetensors are loaded, nothing is downloaded and no code of a model folder is run. Names of special tokens inside
a message are broken by a space, so that no text can end a turn. `choose` runs the beginnings that waiting choices share
once (see `scoring`), in the model's dtype; use float32 where log-odds matter (bfloat16 moves them by about 0.1 nat).
With `dtype: int8`, for CPUs, texts are written by 8-bit linear layers, and `choose` is that of float32 (see `int8`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import inf
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar, cast

import numpy as np
import torch

from solon.dialogue import Message
from solon.engine import Capabilities, Choice, ChoiceRequest, Completion, LocalEngineConfig, Request, Sampling
from solon.engine.attention import dtype_of_keys
from solon.engine.checkpoint import context_length, eos_ids, find_folder, load_model
from solon.engine.decoding import OneByOne, Rows, draw, rows_for
from solon.engine.int8 import in_int8
from solon.engine.rendering import break_special_tokens, cut_at_stop, transcript_prompt
from solon.engine.scoring import Scorer, scorer_for
from solon.engine.sharing import common_length
from solon.engine.slots import Slots
from solon.engine.trie import Continuation
from solon.engine.uniforms import uniforms
from solon.errors import EngineError, InputError

_T = TypeVar("_T")
_PAUSE_S = 0.002
"""How long an idle engine waits for another request once there is one."""
_CONTEXT_TOKENS = 4
"""Tokens before a completion with which it is decoded, so that its leading space is kept."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Text:
    """A completion under way."""

    ids: list[int]
    sampling: Sampling
    stops: tuple[str, ...]
    seed: int
    chain: str | None
    strip: bool
    """Drop the white space at the beginning (a transcript's answer begins after a colon)."""
    future: Future[Completion] = field(default_factory=lambda: Future[Completion]())
    number: int = 0
    out: list[int] = field(default_factory=lambda: list[int]())


@dataclass(eq=False, slots=True, kw_only=True)
class _Scores:
    """Continuations to be scored."""

    continuations: list[Continuation]
    future: Future[list[float]] = field(default_factory=lambda: Future[list[float]]())


class LocalEngine:
    """An Engine around one model; make it with `load`."""

    def __init__(self, model: Any, tokenizer: Any, config: LocalEngineConfig) -> None:
        if config.template == "chat" and not tokenizer.chat_template:
            raise InputError(
                "the tokenizer has no chat template", path=config.path, remedy="set `template: transcript` or `auto`"
            )
        self._tokenizer = tokenizer
        self._chat = config.template != "transcript" and bool(tokenizer.chat_template)
        self._specials = _special_texts(tokenizer)
        self._context = context_length(model, tokenizer)
        # Over-long prompts are refused with their length; the tokenizer's own warning would say it again.
        tokenizer.model_max_length = int(1e30)
        rows = rows_for(model, share=config.max_batch > 1)
        if config.dtype == "int8":
            # Only now: the trial of the rows compares float32 logits, which agree much closer.
            rows.model = in_int8(model)
            if isinstance(rows, Slots):
                rows.dtype = dtype_of_keys(model.device, torch.bfloat16)
        self._worker = _Worker(
            rows, scorer_for(model), _Decoder(tokenizer), max_batch=config.max_batch, eos=eos_ids(model, tokenizer)
        )
        notes = ["chat template" if self._chat else "Human/Assistant transcript"]
        if isinstance(self._worker.rows, OneByOne):
            notes.append("rows decoded one by one: the model's attention does not allow batches of unequal lengths")
        longest = self._worker.scorer.longest
        if longest == 0:
            notes.append("choices scored row by row: the model's attention does not allow sharing their beginnings")
        elif longest < inf:
            notes.append(f"beginnings are shared among choices of up to {longest:.0f} tokens, the model's window")
        if config.dtype == "bfloat16":
            notes.append("log-probabilities from bfloat16 arithmetic: log-odds differ by about 0.1 nat from float32")
        elif config.dtype == "int8":
            notes.append("texts written with int8 weights and activations; log-probabilities of choices from float32")
        self.capabilities = Capabilities(
            model=config.path, logprobs="full", seed=True, max_context=self._context, notes=tuple(notes)
        )

    @classmethod
    def load(cls, config: LocalEngineConfig) -> LocalEngine:
        """The model of a folder. Raises InputError that says what is missing, or why it cannot be loaded."""
        model, tokenizer = load_model(find_folder(config.path), config)
        return cls(model, tokenizer, config)

    async def generate(self, request: Request) -> Completion:
        """Sample one text; an empty one is an answer, too.

        Raises EngineError: "context-length" where prompt and max_new_tokens do not fit, "template" where the chat
        template refuses the dialogue, "closed", "engine-crashed".
        """
        ids, stops = self._prompt_ids(request.prompt, request.prefix)
        sampling = request.sampling
        self._check_length(len(ids), sampling.max_new_tokens)
        stops = tuple(stop for stop in dict.fromkeys((*sampling.stop, *stops)) if stop)
        strip = not self._chat and not request.prefix
        job = _Text(ids=ids, sampling=sampling, stops=stops, seed=request.seed, chain=request.session, strip=strip)
        self._worker.submit(job)
        return await asyncio.wrap_future(job.future)

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice]:
        """log p of every whole option after prompt + prefix.

        Prompt and option are tokenised as one text. Rule "full": the sum over all tokens after the prompt's. Rule
        "full-from-boundary": the vocabulary joins the end of the prompt to the beginning of an option, so that the sum
        runs from the last token that all options and the prompt share; options compare exactly, but their mass is too
        small by the probability of that end of the prompt.
        """
        plans = self._plans(requests)
        job = _Scores(continuations=[item for continuations, _ in plans for item in continuations])
        self._worker.submit(job)
        values = iter(await asyncio.wrap_future(job.future))
        return [
            Choice(
                logprobs=tuple(min(0.0, next(values)) for _ in continuations),
                censored=(False,) * len(continuations),
                rule=rule,
            )
            for continuations, rule in plans
        ]

    async def aclose(self) -> None:
        """End the thread; what still waits gets EngineError with reason "closed"."""
        await asyncio.to_thread(self._worker.close)

    def _render(self, prompt: Sequence[Message], prefix: str) -> tuple[str, tuple[str, ...]]:
        messages: list[Message] = [
            cast(Message, {**turn, "content": break_special_tokens(turn["content"], self._specials)}) for turn in prompt
        ]
        prefix = break_special_tokens(prefix, self._specials)
        if not self._chat:
            return transcript_prompt(messages, prefix)
        from jinja2 import TemplateError

        turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise EngineError(f"the chat template refuses this dialogue: {error}", reason="template") from error
        return str(text) + prefix, ()

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids; a transcript gets the vocabulary's beginning token, a chat template writes its own."""
        rows: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=not self._chat).input_ids
        if self._chat:
            return rows
        end = self._tokenizer.eos_token_id
        return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in rows]

    def _prompt_ids(self, prompt: Sequence[Message], prefix: str) -> tuple[list[int], tuple[str, ...]]:
        text, stops = self._render(prompt, prefix)
        (ids,) = self._tokens([text])
        if not ids:
            raise EngineError("the prompt has no token", reason="empty-prompt")
        return ids, stops

    def _check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        if self._context is not None and prompt_tokens + new_tokens > self._context:
            raise EngineError(
                f"the prompt has {prompt_tokens} tokens and {new_tokens} are to follow, "
                f"but the model's context is {self._context} tokens",
                reason="context-length",
            )

    def _plans(self, requests: Sequence[ChoiceRequest]) -> list[tuple[list[Continuation], str]]:
        """What is scored for each request, and the rule. All are tokenised at once, which goes side by side."""
        texts: list[str] = []
        for request in requests:
            assert request.options and all(request.options), "a choice needs options, each with text"
            text, _ = self._render(request.prompt, request.prefix)
            texts += [text, *(text + break_special_tokens(option, self._specials) for option in request.options)]
        ids = iter(self._tokens(texts) if texts else [])
        return [self._plan(next(ids), [next(ids) for _ in request.options]) for request in requests]

    def _plan(self, prompt: list[int], joint: list[list[int]]) -> tuple[list[Continuation], str]:
        self._check_length(len(prompt), max(map(len, joint)) - len(prompt))
        shared = min(common_length(prompt, ids) for ids in joint)
        if not shared:
            raise EngineError("the prompt shares no token with the prompt that an option follows", reason="boundary")
        rule = "full" if shared == len(prompt) else "full-from-boundary"
        return [Continuation(tuple(ids), shared) for ids in joint], rule


def _special_texts(tokenizer: Any) -> tuple[str, ...]:
    """What the tokenizer would read as a special token wherever it stands, the longest first."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = {str(text) for text in (*tokenizer.all_special_tokens, *added)}
    return tuple(sorted((text for text in texts if len(text) > 1), key=lambda text: (-len(text), text)))


class _Decoder:
    """Token ids to text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def continuation(self, prompt: Sequence[int], out: Sequence[int]) -> str:
        """The text of `out` where it stands after `prompt`; at the beginning of a text, a leading space is dropped."""
        context = list(prompt[-_CONTEXT_TOKENS:])
        before, whole = self.text(context), self.text([*context, *out])
        return whole[len(before) :] if whole.startswith(before) else self.text(out)

    def stopped(self, out: Sequence[int], stops: Sequence[str]) -> bool:
        """Whether the last token completes one of `stops`, seen in the last tokens only."""
        piece = self._pieces.get(out[-1])
        if piece is None:
            piece = self._pieces[out[-1]] = self.text(out[-1:])
        # A stop is complete only with the token that holds its last character; bytes and spaces can hide in a piece.
        near = [stop for stop in stops if stop[-1] in piece or stop[-1].isspace() or "\ufffd" in piece]
        if not near:
            return False
        tail = self.text(out[-4 * max(map(len, near)) - _CONTEXT_TOKENS :])
        return any(stop in tail for stop in near)


class _Worker:
    """The thread that owns the model: scores what is asked, admits what waits, decodes a token for every row, again."""

    def __init__(self, rows: Rows, scorer: Scorer, decoder: _Decoder, *, max_batch: int, eos: frozenset[int]) -> None:
        self.rows, self.scorer, self.decoder, self.max_batch, self.eos = rows, scorer, decoder, max_batch, eos
        self.queue: SimpleQueue[_Text | _Scores | None] = SimpleQueue()
        self.lock, self.ended = Lock(), ""
        self.waiting: list[_Text] = []
        self.active: list[_Text] = []
        self.scoring: list[_Scores] = []
        self.num_texts = 0
        self.thread = Thread(target=self._run, name="solon-local-engine", daemon=True)
        self.thread.start()

    def submit(self, job: _Text | _Scores) -> None:
        with self.lock:
            if self.ended:
                raise EngineError(
                    self.ended, reason="closed" if self.ended == "the engine is closed" else "engine-crashed"
                )
            self.queue.put(job)

    def close(self) -> None:
        with self.lock:
            if not self.ended:
                self.queue.put(None)
        self.thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        ended = "the engine is closed"
        # Numbers below 1e-38 slow down what a CPU multiplies many times over; this thread's helpers inherit it.
        torch.set_flush_denormal(True)
        try:
            while self._take():
                self._score()
                self._admit()
                if self.active:
                    self._step()
        except BaseException as error:  # the thread's boundary: whoever waits must hear of it
            ended = f"the model failed: {type(error).__name__}: {error}"
        self._end(ended)

    def _end(self, message: str) -> None:
        with self.lock:
            self.ended = message
            jobs: list[_Text | _Scores] = [*self.waiting, *self.active, *self.scoring]
            while not self.queue.empty():
                job = self.queue.get()
                jobs += [job] if job is not None else []
        reason = "closed" if message == "the engine is closed" else "engine-crashed"
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(EngineError(message, reason=reason))

    def _take(self) -> bool:
        """Read the queue; wait there if there is nothing else to do. False at the end."""
        idle, pause_s = not (self.active or self.waiting), None
        while True:
            try:
                job = self.queue.get(timeout=pause_s) if idle else self.queue.get_nowait()
            except Empty:
                return True
            if job is None:
                return False
            # What many ask for at the same time comes one by one.
            idle, pause_s = idle and len(self.waiting) + 1 < self.max_batch, _PAUSE_S
            if isinstance(job, _Scores):
                self.scoring.append(job)
            else:
                # Those that come together are sorted by length; an old one is never overtaken by more than two batches.
                job.number = self.num_texts // (2 * self.max_batch)
                self.num_texts += 1
                self.waiting.append(job)

    def _score(self) -> None:
        jobs = [job for job in self.scoring if not job.future.cancelled()]
        if jobs:
            values = iter(self.scorer.score([item for job in jobs for item in job.continuations]))
            for job in jobs:
                _deliver(job.future, [next(values) for _ in job.continuations])
        self.scoring = []

    def _admit(self) -> None:
        self.waiting = [job for job in self.waiting if not job.future.cancelled()]
        free = self.max_batch - len(self.active)
        if not self.waiting or free < min(len(self.waiting), max(1, self.max_batch // 8)):
            return
        self.waiting.sort(key=lambda job: (job.number, len(job.ids)))
        jobs, self.waiting = self.waiting[:free], self.waiting[free:]
        jobs.sort(key=lambda job: len(job.ids))
        self.rows.admit([job.ids for job in jobs], [job.chain for job in jobs])
        self.active += jobs

    def _step(self) -> None:
        jobs = self.active
        logits_BV = self.rows.step([job.out[-1] if job.out else job.ids[-1] for job in jobs])
        tokens = draw(
            logits_BV,
            temperature_B=np.array([job.sampling.temperature for job in jobs]),
            top_p_B=np.array([job.sampling.top_p for job in jobs]),
            uniform_B=uniforms(
                np.array([job.seed & (2**64 - 1) for job in jobs], dtype=np.uint64),
                np.array([len(job.out) for job in jobs], dtype=np.uint64),
            ),
        )
        alive = [self._append(job, token) for job, token in zip(jobs, tokens, strict=True)]
        if not all(alive):
            self.active = [jobs[row] for row in self.rows.compact(alive)]

    def _append(self, job: _Text, token: int) -> bool:
        """Add a token to a text; False when the text is finished (and delivered) or no longer wanted."""
        if job.future.cancelled():
            return False
        job.out.append(token)
        ended = token in self.eos
        if ended or (job.stops and self.decoder.stopped(job.out, job.stops)):
            self._finish(job, job.out[:-1] if ended else job.out, stopped=True)
        elif len(job.out) == job.sampling.max_new_tokens:
            self._finish(job, job.out, stopped=False)
        else:
            return True
        return False

    def _finish(self, job: _Text, out: Sequence[int], *, stopped: bool) -> None:
        text = cut_at_stop(self.decoder.continuation(job.ids, out), job.stops)
        completion = Completion(
            text=text.lstrip() if job.strip else text,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(job.ids),
            completion_tokens=len(job.out),
        )
        _deliver(job.future, completion)


def _deliver(future: Future[_T], value: _T) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(value)
