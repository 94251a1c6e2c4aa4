"""Tools around the method: constitutions, scores, ratings, and whether the machine is ready."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Target = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write to a file, not to the screen.")]

constitution = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Check, show or import a constitution.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(constitution, name="constitution")
    for tool in (score, elo, compare_runs, doctor):
        app.command()(tool)


@constitution.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A constitution's file, or a shipped name.")],
) -> None:
    """Say what is wrong with a constitution, line by line."""
    from solon.constitution import Constitution

    found = Constitution.load(file)
    serving = {
        "for critique and revision": sum(one.serves("revision") for one in found.principles),
        "for comparison": sum(one.serves("comparison") for one in found.principles),
    }
    examples = found.exemplars
    typer.echo(f"{found.name}, version {found.version}: nothing is wrong")
    typer.echo(f"  principles   {len(found.principles)}: " + ", ".join(f"{n} {what}" for what, n in serving.items()))
    typer.echo(
        f"  exemplars    {len(examples.revision)} of revision, {len(examples.comparison)} of comparison, "
        f"{len(examples.reasoning)} of reasoning"
    )
    typer.echo(f"  fingerprint  {found.fingerprint}")


@constitution.command()
def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A constitution's file, or a shipped name.")] = "harmless",
) -> None:
    """Print a constitution as YAML: a start for one of your own."""
    from solon.constitution import Constitution, shipped

    found = Constitution.load(file)
    typer.echo(f"# fingerprint {found.fingerprint}; shipped with solon: {', '.join(shipped())}")
    typer.echo(found.to_yaml(), nl=False)


@constitution.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A published constitution: a JSON file, or a folder.")],
    out: _Target = None,
) -> None:
    """Convert a published constitution to solon's form."""
    from solon.cli.inputs import not_the_input
    from solon.constitution import import_constitution
    from solon.errors import InputError

    not_the_input(out, file)
    if out is not None and out.suffix.lower() not in (".yaml", ".yml"):
        raise InputError("a constitution is written as YAML", path=out, remedy="call it NAME.yaml")
    found = import_constitution(file)
    if out is None:
        typer.echo(found.to_yaml(), nl=False)
        return
    _write(out, found.to_yaml())
    typer.echo(f"{out}: {len(found.principles)} principles; use it with --set constitution={out}")


def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a preference model.")],
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help='JSON lines {"prompt", "response"}, or {"messages"}.'),
    ],
    out: _Target = None,
) -> None:
    """Score dialogues with a preference model.

    Prints the same JSON lines with a "score". Higher is better; on its own held-out replies a model's scores have mean
    0 and spread 1. A dialogue that is too long for the model has no score (null) and a "reason".
    """
    import sys

    from solon.artifact import row_line
    from solon.cli.inputs import not_the_input, read_dialogues
    from solon.cli.progress import shown
    from solon.cli.scoring import scored
    from solon.preference import PreferenceModel

    not_the_input(out, file)
    dialogues = read_dialogues(file)
    loaded = PreferenceModel.load(model)
    with shown() as progress:
        lines = [row_line(row) for row in scored(loaded, dialogues, progress=progress)]
    if out is None:
        sys.stdout.buffer.write(b"".join(lines))
    else:
        _write(out, b"".join(lines).decode())
        typer.echo(f"{out}: {len(lines)} rows")


def elo(
    battles: Annotated[Path, typer.Argument(metavar="BATTLES", help="CSV with the columns left, right, winner.")],
    out: _Target = None,
    anchor: Annotated[str | None, typer.Option(metavar="NAME", help="Whose rating is 0; else the first name.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Rate models from battles: Elo with intervals.

    By maximum likelihood, as JSON; beside it the Elo that is kept battle by battle.
    """
    import json

    from solon.cli.inputs import not_the_input
    from solon.evaluation import rate_battles

    not_the_input(out, battles)
    ratings = rate_battles(battles, anchor=anchor, seed=seed)
    text = json.dumps(ratings, indent=2, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    _write(out, text)
    best = ratings["ratings"][0]
    typer.echo(f"{out}: {len(ratings['ratings'])} models, {ratings['battles']} battles, best {best['model']}")


def compare_runs(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of an evaluated run.")],
    second: Annotated[Path, typer.Argument(metavar="OTHER", help="Another; differences are OTHER minus RUN.")],
    out: _Target = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Say how two evaluated runs differ: in settings, and in what came of it.

    Prompt by prompt where both asked the same; each difference with its 95 % interval. --out has all of it, as JSON.
    """
    import json
    from dataclasses import asdict

    from solon.cli.screens import compared
    from solon.evaluation import compare_runs as compare

    found = compare(first, second, seed=seed)
    if out is not None:
        about = {
            "settings": [one._asdict() for one in found.settings],
            "differences": [asdict(one) for one in found.differences],
        }
        _write(out, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    compared(found)


def doctor() -> None:
    """Say whether this machine is ready.

    Looks at Python, packages, memory, disk, GPU, and the checkpoints that ship with solon; exits with 1 if something is
    amiss.
    """
    from solon.cli.doctor import examine

    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        typer.echo(f"{'ok ' if finding.fine else '!! '} {finding.what:{width}}  {finding.found}")
    if not all(finding.fine for finding in findings):
        raise typer.Exit(1)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
