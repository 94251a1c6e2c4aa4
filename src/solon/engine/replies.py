"""Reading what an OpenAI-compatible server replies: texts, top lists of log-probabilities, and options in such a list.

Pure functions on parsed JSON. A reply of another shape raises EngineError with reason "bad-reply"; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from typing import Any, Literal, NamedTuple, cast

from solon.engine import Choice, Completion
from solon.engine.rendering import cut_at_stop
from solon.errors import EngineError

_CONTEXT_WORDS = (
    "context length",
    "context_length",
    "context window",
    "context size",
    "maximum context",
    "max_model_len",
)


class Position(NamedTuple):
    """One generated token with the likeliest tokens of its place."""

    token: str
    logprob: float
    top: dict[str, float]
    """Token text -> log-probability, nats; tokens of the same text are summed."""


def completion_of(
    reply: object, *, chat: bool, max_tokens: int, stops: Sequence[str], prefix: str, strip: bool
) -> Completion:
    """The text of a reply. Tokens are 0 where the server does not count them.

    Raises EngineError: "empty" without text, "content-filter" where the server withheld it, "bad-reply".
    """
    choice = first_choice(reply)
    text = text_of(choice, chat=chat)
    finish = choice.get("finish_reason")
    if finish == "content_filter":
        raise EngineError("the server withheld the text by its content filter", reason="content-filter")
    usage: Any = cast(Any, reply).get("usage") or {}
    tokens = int(usage.get("completion_tokens") or 0)
    cut = cut_at_stop(text, stops)
    if chat and prefix and cut.lstrip().startswith(prefix.strip()):
        cut = cut.lstrip()[len(prefix.strip()) :]
    if not cut.strip():
        raise EngineError("the server returned no text", reason="empty")
    ended: Literal["stop", "length"] = "length" if finish == "length" else "stop"
    if finish is None and tokens >= max_tokens:
        ended = "length"
    return Completion(
        text=cut.lstrip() if strip else cut,
        finish_reason="stop" if cut_at_stop(text, stops) != text else ended,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=tokens,
    )


def first_choice(reply: object) -> dict[str, Any]:
    """The first of a reply's choices."""
    try:
        choice = cast(Any, reply)["choices"][0]
    except (KeyError, IndexError, TypeError):
        choice = None
    if not isinstance(choice, dict):
        raise EngineError(f"the server's reply holds no choices: {str(reply)[:200]}", reason="bad-reply")
    return cast("dict[str, Any]", choice)


def text_of(choice: Mapping[str, Any], *, chat: bool) -> str:
    """The text of a choice; "" where the server gave null."""
    holder: Any = choice.get("message") if chat else choice
    text: Any = cast("dict[str, Any]", holder).get("content" if chat else "text") if isinstance(holder, dict) else None
    if text is None:
        return ""
    if not isinstance(text, str):
        raise EngineError(f"the server's reply holds no text: {str(choice)[:200]}", reason="bad-reply")
    return text


def positions_of(choice: Mapping[str, Any]) -> list[Position]:
    """The top lists of a choice, in the form of chat completions or of completions.

    [] where there are none, which is how many servers answer a request for them.
    """
    found: Any = choice.get("logprobs")
    if not isinstance(found, dict):
        return []
    logprobs: dict[str, Any] = dict(cast("dict[str, Any]", found))
    try:
        if logprobs.get("content"):
            return [
                Position(
                    one["token"],
                    float(one["logprob"]),
                    _summed((t["token"], t["logprob"]) for t in one["top_logprobs"]),
                )
                for one in logprobs["content"]
                if one.get("top_logprobs")
            ]
        if logprobs.get("top_logprobs"):
            rows = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
            return [Position(token, float(value), _summed(top.items())) for token, value, top in rows if top]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"the server's log-probabilities cannot be read: {str(logprobs)[:200]}", reason="bad-reply"
        ) from error
    return []


def _summed(pairs: Any) -> dict[str, float]:
    top: dict[str, float] = {}
    for token, logprob in pairs:
        top[str(token)] = _log_add(top.get(str(token)), float(logprob))
    return top


def _log_add(a: float | None, b: float) -> float:
    if a is None:
        return b
    return max(a, b) + log(1.0 + exp(min(a, b) - max(a, b)))


def common_beginning(options: Sequence[str]) -> str:
    """What all options begin with, up to a place where no word is cut: "(" of (A) and (B), nothing of yes and yet."""
    shared = 0
    for column in zip(*options, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    while shared and options[0][shared - 1].isalnum():
        shared -= 1
    return options[0][:shared].rstrip()


class Echoed(NamedTuple):
    """A prompt as the server read it."""

    tokens: tuple[str, ...]
    """Texts of the tokens, or their ids."""
    logprobs: tuple[float | None, ...]
    """Of each token after those before it, nats; None for the first."""


def echoed_of(reply: object) -> Echoed | None:
    """The prompt's tokens that a reply to `echo` repeats; None where it does not."""
    found: Any = first_choice(reply).get("logprobs")
    usage: Any = cast(Any, reply).get("usage") or {}
    num_generated = usage.get("completion_tokens")
    if not isinstance(found, dict) or not isinstance(num_generated, int):
        return None
    logprobs = cast("dict[str, Any]", found)
    tokens, values = (list(cast("list[Any]", logprobs.get(name) or [])) for name in ("tokens", "token_logprobs"))
    # From the end, because some servers count a first token that they do not list.
    num = len(tokens) - num_generated
    return _echoed(tokens[:num], values[:num]) if num > 1 else None


def prompt_tokens_of(reply: object) -> Echoed | None:
    """The same of a reply to vLLM's `prompt_logprobs: 0`; each place is {id: {"logprob": ...}}, the first is null."""
    places = cast(object, first_choice(reply).get("prompt_logprobs"))
    if not isinstance(places, list) or len(cast("list[Any]", places)) < 2:
        return None
    tokens: list[str] = [""]
    values: list[object] = [None]
    for place in cast("list[dict[str, dict[str, object]] | None]", places[1:]):
        if not place:
            return None
        name, about = next(iter(place.items()))
        tokens.append(name)
        values.append(about.get("logprob"))
    return _echoed(tokens, values)


def _echoed(tokens: Sequence[Any], values: Sequence[Any]) -> Echoed | None:
    if not all(isinstance(value, int | float) and value <= 0 for value in values[1:]):
        return None
    return Echoed(tuple(map(str, tokens)), tuple(None if value is None else float(value) for value in values))


READERS: dict[str, Callable[[object], Echoed | None]] = {"echo": echoed_of, "prompt_logprobs": prompt_tokens_of}
"""Of replies to the fields of asking.WHOLE_PROMPT."""


def whole_choice(prompt: Echoed, followed: Sequence[Echoed]) -> Choice:
    """Log-probabilities of whole options, from the prompt alone and the prompt followed by each of them.

    Raises EngineError with reason "boundary" if the prompt's first token is another with an option behind it.
    """
    shared = 0
    for column in zip(prompt.tokens, *(one.tokens for one in followed), strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    if shared == 0:
        raise EngineError("the prompt shares no token with the prompt that an option follows", reason="boundary")
    return Choice(
        logprobs=tuple(sum(value for value in one.logprobs[shared:] if value is not None) for one in followed),
        censored=(False,) * len(followed),
        rule="full" if shared == len(prompt.tokens) else "full-from-boundary",
    )


def with_named(choice: Choice, named: Choice) -> Choice:
    """`choice`, of a top list, with the options that the list did not hold from a list of `named` tokens."""
    pairs = list(zip(choice.logprobs, choice.censored, named.logprobs, named.censored, strict=True))
    return Choice(
        logprobs=tuple(min(a, b) if a_censored and not b_censored else a for a, a_censored, b, b_censored in pairs),
        censored=tuple(a_censored and b_censored for _, a_censored, _, b_censored in pairs),
        rule=choice.rule,
    )


def choice_of(positions: Sequence[Position], options: Sequence[str]) -> Choice:
    """Log-probabilities of options from the top lists of a greedy reply, by the first token that tells them apart.

    White space before a token is passed over, and so is the options' common beginning: the option (A) is found as A, (A
    and (A), and where the reply begins with the bracket alone, behind it as well. Variants are summed. An option that
    no list holds gets the sum of the lists' smallest probabilities, an upper bound, and is marked censored.
    """
    if not positions:
        raise EngineError("the server's reply holds no log-probabilities", reason="no-logprobs")
    wanted = [option.strip() for option in options]
    shared = common_beginning(wanted)
    rests = [option[len(shared) :] for option in wanted]
    found: list[float | None] = [None] * len(wanted)
    behind, said = 0.0, ""
    bound: float | None = None
    for position in positions:
        bound = _log_add(bound, behind + min(position.top.values()))
        for token, logprob in position.top.items():
            number = _meant(said + token, wanted, rests)
            if number is not None:
                found[number] = _log_add(found[number], behind + logprob)
        said = (said + position.token).lstrip()
        behind += position.logprob
        if not shared.startswith(said):
            break
    assert bound is not None
    return Choice(
        logprobs=tuple(min(0.0, bound if value is None else value) for value in found),
        censored=tuple(value is None for value in found),
        rule="first-distinct",
    )


def _meant(text: str, options: Sequence[str], rests: Sequence[str]) -> int | None:
    """The one option that `text` begins or begins with; None for none or several."""
    text = text.strip()
    hits = {
        number
        for spellings in (options, rests)
        for number, spelling in enumerate(spellings)
        if text and (spelling.startswith(text) or (text.startswith(spelling) and not text[len(spelling)].isalnum()))
    }
    return hits.pop() if len(hits) == 1 else None


def error_of(status: int, body: str) -> EngineError:
    """The error of a request that the server refused, with the server's own words."""
    words = body.lower()
    if status == 413 or (status in (400, 422) and any(phrase in words for phrase in _CONTEXT_WORDS)):
        return EngineError(f"the prompt does not fit: {_message(body)}", reason="context-length")
    reason = {401: "unauthorised", 403: "unauthorised", 404: "no-model", 429: "rate-limit"}.get(status)
    return EngineError(
        f"the server answered {status}: {_message(body)}",
        reason=reason or ("server-error" if status >= 500 else "refused"),
    )


def _message(body: str) -> str:
    """The message in an error's JSON, or its beginning."""
    import json

    try:
        found: Any = json.loads(body)
    except ValueError:
        found = None
    for key in ("error", "message", "detail"):
        if isinstance(found, dict):
            inner = cast("dict[str, Any]", found)
            found = inner.get(key, found)
    text = found if isinstance(found, str) else body
    return " ".join(text.split())[:300] or "(no text)"
