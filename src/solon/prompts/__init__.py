"""The exact words that models are shown, one .txt file each, and their substitution.

`[[name]]` marks a place. Substitution is one pass over the template: what is put in is never read again, so braces,
brackets or even a `[[name]]` inside a model's text stay as they are.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_PLACE = re.compile(r"\[\[([a-z_]+)\]\]")


@cache
def template(name: str) -> str:
    """The text of prompts/`name`.txt, without the newline at its end."""
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")


def fill(text: str, **values: str) -> str:
    """`text` with every [[name]] replaced by values[name]; KeyError for a place that has no value."""
    return _PLACE.sub(lambda match: values[match[1]], text)
