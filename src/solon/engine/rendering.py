"""A dialogue as the text that a model continues: the "Human: / Assistant:" transcript of a base model.

text, stops = transcript_prompt([{"role": "user", "content": "Hello"}], prefix="")
# "\n\nHuman: Hello\n\nAssistant:", ("\n\nHuman:",)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from solon.dialogue import Message, render_transcript


class TranscriptPrompt(NamedTuple):
    """A transcript that ends where the answer begins."""

    text: str
    stops: tuple[str, ...]
    """The beginnings of a next turn of the asking side: there the answer is over."""


def transcript_prompt(prompt: Sequence[Message], prefix: str) -> TranscriptPrompt:
    """`prompt` as a transcript with the answer's name and `prefix` at its end.

    The answer to a turn labelled XRequest is named X, as in the paper's CritiqueRequest and Critique; any other is
    named Assistant. Without a prefix the text ends with the colon, because vocabularies join a space to the next word.
    """
    last = prompt[-1].get("label", "") if prompt else ""
    name = last.removesuffix("Request") if last.endswith("Request") and last != "Request" else "Assistant"
    askers = ["Human", *(turn["label"] for turn in prompt if turn["role"] == "user" and "label" in turn)]
    stops = tuple(dict.fromkeys(f"\n\n{asker}:" for asker in askers))
    return TranscriptPrompt(render_transcript(prompt) + f"\n\n{name}:" + (f" {prefix}" if prefix else ""), stops)


def cut_at_stop(text: str, stops: Iterable[str]) -> str:
    """`text` up to the first place where any of `stops` begins."""
    places = [place for place in (text.find(stop) for stop in stops if stop) if place >= 0]
    return text[: min(places)] if places else text


def break_special_tokens(text: str, specials: Iterable[str]) -> str:
    """`text` with a space after the first character of every name of a special token that stands in it.

    Text of models and data is hostile: "<|im_end|>" inside a message would otherwise end the turn.
    """
    for special in specials:
        if special in text:
            text = text.replace(special, f"{special[0]} {special[1:]}")
    return text
