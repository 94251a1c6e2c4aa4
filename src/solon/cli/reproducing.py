"""`solon reproduce`: the paper's experiments run again in the sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from solon.reproduce import Result


class SeedsCommand(TyperCommand):
    """A command whose --seeds takes several numbers: --seeds 0 1 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click's own, with one --seeds before each number."""
        return super().parse_args(ctx, spread(args, option="--seeds"))


def spread(arguments: Sequence[str], *, option: str) -> list[str]:
    """["--seeds", "0", "1"] as ["--seeds", "0", "--seeds", "1"]; numbers that follow nothing of the kind stay."""
    found: list[str] = []
    after = False
    for argument in arguments:
        if after and argument.isdigit() and found[-1] != option:
            found.append(option)
        found.append(argument)
        after = argument == option or (after and argument.isdigit())
    return found


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(cls=SeedsCommand)(reproduce)


def reproduce(
    figures: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIGURE", help="Names of experiments, or fig2, fig10, ...; all by default."),
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(min=0, metavar="N ...", help="Seeds to run and to pool; 0 1 2 by default.")
    ] = None,
    models: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A further size: what solon.sandbox.pretrain --out made; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Runs, results and the page go under it.")] = Path(
        "runs/reproduce"
    ),
    list_: Annotated[bool, typer.Option("--list", help="Only say which experiments there are.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="The least that runs, to see that it does; its numbers mean nothing.")
    ] = False,
) -> None:
    """Run the paper's experiments again in the sandbox.

    For each figure and ablation: the arms are trained, a picture is drawn, and each expected ordering came out, did
    not, or cannot be told. What is finished is not run again; stopped, the same command goes on.
    """
    import asyncio

    from solon.cli.progress import shown
    from solon.reproduce import chosen, read_experiments
    from solon.reproduce import reproduce as run

    experiments = read_experiments()
    wanted = chosen(figures or [], experiments=experiments)
    if list_:
        for one in wanted:
            typer.echo(f"{one.name:15} {one.paper:28} {one.title}")
        return
    with shown() as progress:
        results = asyncio.run(
            run(
                wanted,
                seeds=list(dict.fromkeys(seeds or (0, 1, 2))),
                out=out,
                models=models or [],
                quick=quick,
                progress=progress,
            )
        )
    names = {one.name for one in wanted}
    _say([one for one in results if one.experiment.name in names], out=out)


def _say(results: Sequence[Result], *, out: Path) -> None:
    from solon.cli.text import clean

    for one in results:
        typer.echo(f"\n{one.experiment.paper}: {one.experiment.title}")
        for statement in one.statements:
            typer.echo(clean(f"  {statement.verdict}: {statement.says}"))
            typer.echo(clean(f"      {statement.numbers}"))
    typer.echo(f"\n{out / 'reproduce.json'}\n{out / 'index.html'}")
