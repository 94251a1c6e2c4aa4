"""The command line, called from a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from solon.cli import app


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def assert_refused(result: Any, *parts: str) -> None:
    """One message on stderr that has `parts`, exit code 2, and nothing else."""
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.stderr
    assert result.stderr.startswith("error:") and result.stdout == ""
    for part in parts:
        assert part in result.stderr
