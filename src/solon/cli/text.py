"""Texts and numbers as a terminal shows them."""

from __future__ import annotations


def clean(text: str) -> str:
    """The text with its control characters made visible: what comes from models and files cannot steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, *, length: int) -> str:
    """At most `length` characters of a text, on one line."""
    text = clean(" ".join(text.split()))
    return text if len(text) <= length else f"{text[: length - 3]}..."
