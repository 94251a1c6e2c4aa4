"""`solon demo` and `solon run`: the whole method from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Collection

    from solon.config import Recipe

Settings = Annotated[
    list[str], typer.Option("--set", metavar="A.B=VALUE", help="Change a setting of the recipe; repeatable.")
]
_Stages = Annotated[
    list[str], typer.Option("--stages", metavar="01,02", help="Run these stages alone; by default all of the recipe's.")
]
_Again = Annotated[list[str], typer.Option("--again", metavar="STAGE", help="Start a stage from nothing; repeatable.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(demo)
    app.command()(run)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run's folder.")] = Path("runs/demo"),
    again: _Again = [],  # noqa: B006 - typer makes a new list for each call
) -> None:
    """The whole method in a small world, in minutes.

    Offline, on a CPU, with models that ship with solon. Stopped, it goes on where it was when it is called again;
    finished, it shows its results again.
    """
    from solon.cli.inputs import stage_names
    from solon.cli.screens import closing
    from solon.config import load_recipe, shipped_recipe

    recipe = shipped_recipe("sandbox")
    execute(load_recipe(recipe), out, again=stage_names(again))
    closing(out, recipe=recipe)


def run(  # noqa: PLR0913 - the options of a command
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, such as those in recipes/.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; by default runs/NAME.")] = None,
    settings: Settings = [],  # noqa: B006
    stages: _Stages = [],  # noqa: B006
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it takes: counts, tokens, time.")] = False,
    again: _Again = [],  # noqa: B006
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help='Model and judges in Ray\'s actors: "local", "auto", HOST:PORT.'),
    ] = None,
) -> None:
    """Run a recipe, or go on where it was stopped.

    Finished stages are skipped; one that would come out differently is refused unless it is named in --again.
    """
    from solon.cli.inputs import stage_names
    from solon.cli.screens import closing, show_plan
    from solon.config import load_recipe

    wanted = load_recipe(recipe, settings)
    if ray is not None:
        wanted = wanted.over_ray(ray)
    chosen, fresh = stage_names(stages) if stages else None, stage_names(again)
    if plan:
        show_plan(wanted, stages=chosen)
        return
    folder = out or Path("runs") / wanted.name
    execute(wanted, folder, stages=chosen, again=fresh)
    closing(folder, recipe=recipe)


def execute(
    recipe: Recipe, folder: Path, *, stages: Collection[str] | None = None, again: Collection[str] = ()
) -> None:
    """Run the recipe with progress, after everything that it names has been seen to be there."""
    import asyncio

    from solon.cli.progress import shown
    from solon.engine.copies import start_ahead
    from solon.pipeline import run_recipe
    from solon.plan import preflight

    start_ahead(recipe.model)
    preflight(recipe)
    with shown() as progress:
        asyncio.run(run_recipe(recipe, folder, stages=stages, again=again, progress=progress))
