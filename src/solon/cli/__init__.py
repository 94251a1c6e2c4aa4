"""The command line: `solon demo`, `solon run RECIPE`, a verb per stage, and tools around them.

Answers go to the standard output; progress, warnings and errors to the standard error. An error of the user's is one
plain message and exit code 2; Ctrl-C says how to go on and exits with 130. Modules are light to import: `solon --help`
loads typer alone.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper

from solon.cli import measuring, recipes, reproducing, tools, verbs
from solon.cli.app import app

__all__ = ["app", "main"]

for _module in (recipes, verbs, measuring, reproducing, tools):
    _module.register(app)


def main() -> None:
    """The entry point of the `solon` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Texts of models may hold what this terminal cannot show.
            stream.reconfigure(errors="backslashreplace")
    app()
