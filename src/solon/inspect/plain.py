"""Wrong input inside Inspect: its command prints a PrerequisiteError as one message, without a traceback."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

# Inspect has no public name for it.
from inspect_ai._util.error import PrerequisiteError
from rich.markup import escape

from solon.errors import InputError


@contextmanager
def as_prerequisite() -> Generator[None]:
    """Raise an InputError as Inspect's PrerequisiteError; its text is no markup."""
    try:
        yield
    except InputError as error:
        raise PrerequisiteError(escape(str(error))) from error
