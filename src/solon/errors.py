"""Every error that solon raises on purpose.

    SolonError
    +-- InputError (ValueError)          wrong input of the user's: a file, a line, a setting
    +-- StageChanged (RuntimeError)      a finished or begun stage would be run again with other inputs
    +-- TooManyFailures (RuntimeError)   more rows of a stage failed than the recipe allows
    +-- EngineError (RuntimeError)       a model or server could not answer
    +-- TrainingFailed (RuntimeError)    a process that was started to train ended with an error
    +-- MissingDependency (ImportError)  an optional package is not installed

The command line prints any of them without a traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ROWS_SHOWN = 20
"""Wrong rows of a file that one message tells of."""


class SolonError(Exception):
    """Base of all errors raised on purpose; its text is one plain message for the user."""


class InputError(SolonError, ValueError):
    """Wrong input, with the place where it stands and what to do about it.

    Example: ``InputError("principle 'theft' has no text", path="c.yaml", line=12, remedy="give it a `critique`")``
    prints as ``c.yaml:12: principle 'theft' has no text (give it a `critique`)``.
    """

    def __init__(
        self, what: str, *, path: str | Path | None = None, line: int | None = None, remedy: str | None = None
    ) -> None:
        self.what, self.path, self.line, self.remedy = what, path, line, remedy
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(f"{where}{what}" + (f" ({remedy})" if remedy else ""))

    @classmethod
    def all_of(cls, errors: Sequence[InputError], *, shown: int | None = None) -> InputError:
        """One error that carries every message, a line each, so that a file is mended in one go; of rows the first
        `shown` and how many more there are."""
        if len(errors) == 1:
            return errors[0]
        lines = [str(error) for error in errors[:shown]]
        if len(lines) < len(errors):
            lines.append(f"and {len(errors) - len(lines)} more such rows")
        joined = cls("\n".join(lines))
        joined.path = errors[0].path
        return joined


class StageChanged(SolonError, RuntimeError):
    """A stage folder holds work made from other inputs or another configuration."""


class TooManyFailures(SolonError, RuntimeError):
    """The share of failed rows of a stage is above its limit; the rows are in its failures.jsonl."""


class EngineError(SolonError, RuntimeError):
    """A model or a server could not answer a request. `reason` is a short machine-readable word for counting."""

    def __init__(self, what: str, *, reason: str = "engine-error") -> None:
        self.reason = reason
        super().__init__(what)


class TrainingFailed(SolonError, RuntimeError):
    """A process that was started to train ended with an error that is not the user's input."""


class MissingDependency(SolonError, ImportError):
    """An optional package is needed for what was asked."""

    def __init__(self, feature: str, *, extra: str) -> None:
        super().__init__(f"{feature} needs an optional package: pip install 'solon[{extra}]'")
